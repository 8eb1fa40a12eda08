"Sets in files: whole or absent, taken up again after a kill, and checked when opened."
import json, os, signal, subprocess, sys

import h5py
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from disent_nb.data.boxhead import Boxhead07, BoxheadSimple2
from disent_nb.data.dsprites import ReducedDSprites
from disent_nb.data.factors import FactorSpace
from disent_nb.data.store import CHUNK, open_h5, part_of, records, write_h5

N = 403 # not a multiple of the chunk
ds = Boxhead07(n=N, seed=3)


pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp('whole')/'set.h5'
    write_h5(ds, path)
    return path


def test_a_stored_set_is_the_set(whole):
    stored, i = open_h5(whole), torch.randperm(N)[:50]
    assert repr(stored) == repr(ds) and len(stored) == N and stored.space is ds.space or stored.space.names == ds.space.names
    assert torch.equal(stored.images(torch.arange(N)), ds.images(torch.arange(N)))
    assert torch.equal(stored.images(i), ds.images(i)) and torch.equal(stored.factors(i), ds.factors(i)) and torch.equal(stored.drawn(i), ds.drawn(i))
    assert torch.equal(stored[-1][0], ds[N - 1][0]) and torch.equal(stored.observe(ds.y[:3]), ds.observe(ds.y[:3]))
    x, y = next(iter(DataLoader(stored, batch_size=32, num_workers=1)))
    assert torch.equal(x, ds.images(range(32)) / 255) and torch.equal(y, ds.y[:32])
    assert os.listdir(whole.parent) == ['set.h5'] and whole.stat().st_size < N * 3 * 64 * 64 / 5
    for bad in ([N], [-1], [.5]): pytest.raises(ValueError, stored.images, bad).match('index: got')


def test_any_program_can_read_it(whole):
    with h5py.File(whole) as h:
        assert h['images'].compression == 'gzip' and h['images'].chunks == (CHUNK, 3, 64, 64)
        assert np.array_equal(h['images'][:], ds.images(torch.arange(N)).numpy()) and np.array_equal(h['factors'][:], ds.y.numpy())
        assert np.allclose(h['values'][:], ds.values(ds.y).numpy()) and json.loads(h.attrs['options']) == dict(n=N, seed=3, continuous=False)


def test_continuous_and_full_grids(tmp_path):
    smooth = BoxheadSimple2(n=40, continuous=True)
    stored = write_h5(smooth, tmp_path/'a'/'smooth.h5')
    assert torch.equal(stored.images(range(40)), smooth.images(range(40))) and torch.equal(stored.drawn(range(40)), smooth.drawn(range(40)))
    small = ReducedDSprites()
    assert torch.equal(write_h5(small, tmp_path/'grid.h5').images(range(7000, 7200)), small.images(range(7000, 7200)))


PROGRAM = """
import sys, time
import torch
from disent_nb.data.boxhead import Boxhead07
from disent_nb.data.store import write_h5
torch.set_num_threads(1)
write_h5(Boxhead07(n=403, seed=3), sys.argv[1], progress=lambda c: (print(c, flush=True), time.sleep(.05)))
"""


def killed(path, after):
    "Run the program until `after` chunks are done and kill it, without a warning; returns the chunks that were announced before"
    child, seen = subprocess.Popen([sys.executable, '-c', PROGRAM, str(path)], stdout=subprocess.PIPE, text=True), 0
    for line in child.stdout:
        seen = int(line)
        if seen >= after: child.send_signal(signal.SIGKILL); break
    child.wait(); child.stdout.close()
    assert child.returncode == -signal.SIGKILL
    return seen


def test_writing_goes_on_after_a_kill(whole, tmp_path):
    path, done = tmp_path/'set.h5', 0
    for after in (4, 12):                                                  # killed twice
        killed(path, after)
        assert not path.exists() and part_of(path).exists()
        with pytest.raises(ValueError, match='half written'): open_h5(path)
        with open(part_of(path), 'rb') as f: now = sum(1 for _ in records(f)) - 1
        assert now >= after > done
        done = now
    with open(part_of(path), 'ab') as f: f.write(b'half a record')            # killed in the middle of a write
    again = []
    stored = write_h5(ds, path, again.append)
    assert again == list(range(done + 1, -(-N // CHUNK) + 1)) and os.listdir(tmp_path) == ['set.h5']
    assert torch.equal(stored.images(torch.arange(N)), ds.images(torch.arange(N)))
    with h5py.File(path) as a, h5py.File(whole) as b: assert np.array_equal(a['checks'][:], b['checks'][:])


def test_the_journal_of_another_set_is_dropped(tmp_path):
    path = tmp_path/'set.h5'
    killed(path, 3)
    other, chunks = BoxheadSimple2(n=50), []
    assert torch.equal(write_h5(other, path, chunks.append).images(range(50)), other.images(range(50))) and chunks == [1, 2, 3, 4]


def test_a_failure_leaves_no_file_and_is_made_good(tmp_path):
    path = tmp_path/'set.h5'
    def fail(c):
        if c == 4: raise OSError('the disk is full')
    with pytest.raises(OSError, match='full'): write_h5(ds, path, fail)
    assert not path.exists()
    again = []
    write_h5(ds, path, again.append)
    assert again[0] == 5


def test_what_is_there_is_not_overwritten(whole, tmp_path):
    before = whole.read_bytes()
    write_h5(ds, whole, progress=lambda c: pytest.fail('drawn again'))
    with pytest.raises(ValueError, match='holds Boxhead07.*expected BoxheadSimple2'): write_h5(BoxheadSimple2(n=3), whole)
    assert whole.read_bytes() == before
    (tmp_path/'text.h5').write_text('my notes')
    with pytest.raises(ValueError, match='not a whole HDF5 file'): write_h5(ds, tmp_path/'text.h5')
    assert (tmp_path/'text.h5').read_text() == 'my notes'


@pytest.mark.parametrize('seed', range(12))
def test_no_damage_goes_unseen(whole, tmp_path, seed):
    "A changed byte in the images is found; anywhere else it is found or changes nothing that is read"
    data, rng = bytearray(whole.read_bytes()), np.random.default_rng(seed)
    with h5py.File(whole) as h: chunks = [h['images'].id.get_chunk_info(c) for c in range(-(-N // CHUNK))]
    chunk = chunks[rng.integers(len(chunks))]
    data[chunk.byte_offset + rng.integers(chunk.size)] ^= 1 << rng.integers(8)
    (tmp_path/'set.h5').write_bytes(data)
    with pytest.raises(ValueError, match='is damaged: images'): open_h5(tmp_path/'set.h5')


@pytest.mark.parametrize('share', [0, .01, .3, .9, .999])
def test_a_cut_off_file_is_refused(whole, tmp_path, share):
    data = whole.read_bytes()
    (tmp_path/'set.h5').write_bytes(data[:int(share * len(data))])
    with pytest.raises(ValueError, match='not a whole HDF5 file'): open_h5(tmp_path/'set.h5')


def altered(whole, tmp_path, change):
    path = tmp_path/'set.h5'
    path.write_bytes(whole.read_bytes())
    with h5py.File(path, 'r+') as h: change(h)
    return path


def remove(name):
    def change(h): del h[name]
    return change


def say(**attrs): return lambda h: h.attrs.update(attrs)


@pytest.mark.parametrize('change,message', [
    (remove('values'), 'parts of shape'), (remove('checks'), 'parts of shape'), (remove('images'), 'HDF5|parts of shape'), (say(set='Boxhead08'), 'holds Boxhead08, expected Boxhead07'),
    (say(options='{"n": 5}'), 'expected Boxhead07'), (say(options='{"m": 5}'), 'm'), (say(format='2'), 'was not made by write_h5'), (say(cls='os.system'), 'not one of disent_nb.data'),
    (say(cls='disent_nb.data.boxhead.render'), 'render'), (say(cls='disent_nb.data.nothing.Here'), 'nothing')])
def test_a_wrong_file_is_named_as_such(whole, tmp_path, change, message):
    with pytest.raises(ValueError, match=message): open_h5(altered(whole, tmp_path, change))


def test_other_files_and_none(tmp_path):
    with pytest.raises(ValueError, match='does not exist'): open_h5(tmp_path/'absent.h5')
    (tmp_path/'page.h5').write_text('<!DOCTYPE html><html>Quota exceeded</html>')
    with pytest.raises(ValueError, match='not a whole HDF5 file'): open_h5(tmp_path/'page.h5')
    with h5py.File(tmp_path/'3dshapes.h5', 'w') as h: h['images'], h['labels'] = np.zeros((4, 64, 64, 3), np.uint8), np.zeros((4, 6))
    with pytest.raises(ValueError, match='was not made by write_h5'): open_h5(tmp_path/'3dshapes.h5')


def test_a_class_of_the_user(tmp_path):
    class Mine(ReducedDSprites):
        space = FactorSpace(ReducedDSprites.space.names, values=[t[:2] for t in ReducedDSprites.space.tables])
    stored = write_h5(Mine(), tmp_path/'mine.h5')
    assert torch.equal(stored.images(range(32)), Mine().images(range(32))) and len(open_h5(tmp_path/'mine.h5', Mine())) == 32
    with pytest.raises(ValueError, match='ds: got None'): open_h5(tmp_path/'mine.h5')
