"Sets in files: whole or absent, taken up again after a kill, and checked when opened."

import json, os, signal, subprocess, sys, threading, time

import h5py
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from disent_nb.rendered.boxhead import Boxhead07, BoxheadSimple2
from disent_nb.rendered.dsprites import ReducedDSprites
from disent_nb.data import store
from disent_nb.data.factors import FactorDataset, FactorSpace
from disent_nb.data.store import ImageFile, Source, open_h5, write_h5, write_once

N = 403
ROWS = 16  # images in a part, in these tests; N is no multiple of it
ENDS = [*range(ROWS, N, ROWS), N]  # what `progress` is called with
PART = ROWS * 3 * 64 * 64
ds = Boxhead07(n=N, seed=3)


pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(store, 'PART', PART)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp('whole') / 'set.h5'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, 'PART', PART)
        write_h5(ds, path)
    return path


def test_a_stored_set_is_the_set(whole):
    stored, i = open_h5(whole), torch.randperm(N)[:50]
    assert (
        repr(stored) == repr(ds)
        and len(stored) == N
        and stored.space is ds.space
        or stored.space.names == ds.space.names
    )
    assert torch.equal(stored.images(torch.arange(N)), ds.images(torch.arange(N)))
    assert (
        torch.equal(stored.images(i), ds.images(i))
        and torch.equal(stored.factors(i), ds.factors(i))
        and torch.equal(stored.drawn(i), ds.drawn(i))
    )
    assert torch.equal(stored[-1][0], ds[N - 1][0]) and torch.equal(stored.observe(ds.y[:3]), ds.observe(ds.y[:3]))
    x, y = next(iter(DataLoader(stored, batch_size=32, num_workers=1)))
    assert torch.equal(x, ds.images(range(32)) / 255) and torch.equal(y, ds.y[:32])
    assert os.listdir(whole.parent) == ['set.h5'] and whole.stat().st_size < N * 3 * 64 * 64 / 5
    for bad in ([N], [-1], [0.5]):
        pytest.raises(ValueError, stored.images, bad).match('index: got')


def test_any_program_can_read_it(whole):
    with h5py.File(whole) as h:
        assert h['images'].compression == 'gzip' and h['images'].shape == (N, 64, 64, 3)
        assert np.array_equal(h['images'][:], ds.images(torch.arange(N)).permute(0, 2, 3, 1).numpy())
        assert np.array_equal(h['factors'][:], ds.y.numpy()) and np.allclose(h['values'][:], ds.values(ds.y).numpy())
        assert json.loads(h.attrs['about'])['options'] == dict(n=N, seed=3, continuous=False)
        assert tuple(json.loads(h.attrs['names'])) == ds.space.names
        for k, table in enumerate(ds.space.tables):
            assert np.array_equal(h[f'space/{k}'][:], table.numpy())
        arrays = []
        h.visititems(lambda name, o: arrays.append(o) if isinstance(o, h5py.Dataset) else None)
        assert len(arrays) == 3 + len(ds.space.names) and all(a.fletcher32 for a in arrays)


def test_continuous_and_full_grids(tmp_path):
    smooth = BoxheadSimple2(n=40, continuous=True)
    stored = write_h5(smooth, tmp_path / 'a' / 'smooth.h5')
    assert torch.equal(stored.images(range(40)), smooth.images(range(40))) and torch.equal(
        stored.drawn(range(40)), smooth.drawn(range(40))
    )
    small = ReducedDSprites()
    assert torch.equal(write_h5(small, tmp_path / 'grid.h5').images(range(7000, 7200)), small.images(range(7000, 7200)))


PROGRAM = f"""
import sys, time
import torch
from disent_nb.rendered.boxhead import Boxhead07
from disent_nb.data import store
torch.set_num_threads(1)
store.PART = {PART}
store.write_h5(Boxhead07(n={N}, seed=3), sys.argv[1], lambda done: (print(done, flush=True), time.sleep(.05)))
"""


def started(path):
    return subprocess.Popen([sys.executable, '-c', PROGRAM, str(path)], stdout=subprocess.PIPE, text=True)


def killed(path, after):
    "Run the program until `after` images are done and kill it, without a warning; returns how many were announced before"
    child, seen = started(path), 0
    for line in child.stdout:
        seen = int(line)
        if seen >= after:
            child.send_signal(signal.SIGKILL)
            break
    child.wait()
    child.stdout.close()
    assert child.returncode == -signal.SIGKILL
    return seen


def folder_of_parts(path):
    return path.with_name(f'.{path.name}.parts')


def rows_there(path):
    return max(int(p.stem.split('-')[1]) for p in folder_of_parts(path).glob('*.h5'))


def test_writing_goes_on_after_a_kill(whole, tmp_path):
    path, done = tmp_path / 'set.h5', 0
    for after in (64, 192):  # killed twice
        killed(path, after)
        assert not path.exists()
        with pytest.raises(ValueError, match='half written'):
            open_h5(path)
        now = rows_there(path)
        assert now >= after > done
        done = now
    (folder_of_parts(path) / '.000000208-000000224.h5.0123.tmp').write_bytes(
        b'half a part'
    )  # killed in the middle of one
    again = []
    stored = write_h5(ds, path, again.append)
    assert again == [end for end in ENDS if end > done] and os.listdir(tmp_path) == ['set.h5']
    assert torch.equal(stored.images(torch.arange(N)), ds.images(torch.arange(N)))
    assert path.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize('seed', range(2))
def test_a_kill_at_any_moment_leaves_nothing_or_what_can_go_on(whole, tmp_path, seed):
    "Also while a part is written, or while the file is put together"
    path, rng = tmp_path / 'set.h5', np.random.default_rng(seed)
    program = PROGRAM.replace('time.sleep(.05)', '0')
    for _ in range(2):
        child = subprocess.Popen([sys.executable, '-c', program, str(path)], stdout=subprocess.PIPE, text=True)
        child.stdout.readline()
        time.sleep(rng.uniform(0, 0.5))
        child.kill()
        child.communicate()
        if path.exists():
            break
    write_h5(ds, path)
    assert path.read_bytes() == whole.read_bytes() and os.listdir(tmp_path) == ['set.h5']


def test_parts_that_a_kill_left_beside_the_whole_file_are_removed(whole, tmp_path):
    path = tmp_path / 'set.h5'
    path.write_bytes(whole.read_bytes())
    folder_of_parts(path).mkdir()
    (folder_of_parts(path) / '000000000-000000403.h5').write_bytes(b'a part')
    write_h5(ds, path, progress=lambda done: pytest.fail('rendered again'))
    assert os.listdir(tmp_path) == ['set.h5'] and path.read_bytes() == whole.read_bytes()


def test_of_two_writers_one_waits(whole, tmp_path):
    path = tmp_path / 'set.h5'
    child = started(path)
    assert int(child.stdout.readline()) == ROWS
    stored = write_h5(ds, path, lambda done: pytest.fail('written twice'))  # waits until the other is ready
    assert child.wait() == 0 and child.stdout.read().split() == [str(end) for end in ENDS[1:]]
    child.stdout.close()
    assert torch.equal(stored.images([0, N - 1]), ds.images([0, N - 1]))
    assert path.read_bytes() == whole.read_bytes() and os.listdir(tmp_path) == ['set.h5']


def test_who_waits_for_a_killed_writer_goes_on_for_it(whole, tmp_path):
    path, again = tmp_path / 'set.h5', []
    child = started(path)
    assert int(child.stdout.readline()) == ROWS
    waiting = threading.Thread(target=write_h5, args=(ds, path, again.append))
    waiting.start()
    time.sleep(0.2)
    assert not again  # the child has the lock
    child.kill()
    child.communicate()
    waiting.join()
    assert again[0] > ROWS and again[-1] == N
    assert path.read_bytes() == whole.read_bytes() and os.listdir(tmp_path) == ['set.h5']


def test_the_parts_of_another_set_are_dropped(tmp_path):
    path = tmp_path / 'set.h5'
    killed(path, 48)
    other, done = BoxheadSimple2(n=50), []
    assert torch.equal(write_h5(other, path, done.append).images(range(50)), other.images(range(50)))
    assert done == [16, 32, 48, 50] and os.listdir(tmp_path) == ['set.h5']


@pytest.mark.parametrize('lost', [0, 2, -1])
def test_a_lost_part_is_made_again(whole, tmp_path, lost):
    "As when a kill came while the parts were removed, and the file was deleted after that"

    def stop(done):
        if done == 5 * ROWS:
            raise KeyboardInterrupt

    path, again = tmp_path / 'set.h5', []
    pytest.raises(KeyboardInterrupt, write_h5, ds, path, stop)
    parts = sorted(folder_of_parts(path).glob('*.h5'))
    assert len(parts) == 5
    parts[lost].unlink()
    write_h5(ds, path, again.append)
    assert again[0] == ROWS * (lost % 5 + 1) and path.read_bytes() == whole.read_bytes()


def test_a_damaged_part_is_not_taken(whole, tmp_path):
    path = tmp_path / 'set.h5'
    killed(path, 48)
    part = sorted(folder_of_parts(path).glob('*.h5'))[1]
    with h5py.File(part) as h:
        chunk = h['images'].id.get_chunk_info(0)
    flip(part, chunk.byte_offset + 5)
    with pytest.raises(ValueError, match='000000016-000000032.h5.*damaged'):
        write_h5(ds, path)
    assert not os.listdir(tmp_path)  # and the next call begins anew
    write_h5(ds, path)
    assert path.read_bytes() == whole.read_bytes()


def test_a_failure_leaves_no_file_and_is_made_good(tmp_path):
    path = tmp_path / 'set.h5'

    def fail(done):
        if done == 4 * ROWS:
            raise OSError('the disk is full')

    with pytest.raises(OSError, match='full'):
        write_h5(ds, path, fail)
    assert not path.exists()
    again = []
    write_h5(ds, path, again.append)
    assert again[0] == 5 * ROWS


def test_a_full_disk_while_the_file_is_put_together_keeps_the_parts(tmp_path, monkeypatch):
    path, assemble = tmp_path / 'set.h5', store.assemble

    def full(*args):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(store, 'assemble', full)
    with pytest.raises(OSError, match='No space'):
        write_h5(ds, path)
    monkeypatch.setattr(store, 'assemble', assemble)
    stored = write_h5(ds, path, progress=lambda done: pytest.fail('rendered again'))
    assert torch.equal(stored.images(torch.arange(N)), ds.images(torch.arange(N)))


def test_what_is_there_is_not_overwritten(whole, tmp_path):
    before = whole.read_bytes()
    write_h5(ds, whole, progress=lambda c: pytest.fail('drawn again'))
    with pytest.raises(ValueError, match='holds Boxhead07.*expected BoxheadSimple2'):
        write_h5(BoxheadSimple2(n=3), whole)
    assert whole.read_bytes() == before
    (tmp_path / 'text.h5').write_text('my notes')
    with pytest.raises(ValueError, match='text.h5, which is no HDF5 file.*delete it'):
        write_h5(ds, tmp_path / 'text.h5')
    assert (tmp_path / 'text.h5').read_text() == 'my notes'


def flip(path, position, bit=0):
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


def read_all(path):
    stored = open_h5(path)
    every = torch.arange(len(stored))
    return [stored.images(every), stored.factors(every), stored.drawn(every), *stored.space.tables]


@pytest.mark.parametrize('array', ['images', 'factors', 'values', 'space/0'])
@pytest.mark.parametrize('seed', range(4))
def test_a_flipped_bit_in_an_array_is_found(whole, tmp_path, array, seed):
    path, rng = tmp_path / 'set.h5', np.random.default_rng(seed)
    path.write_bytes(whole.read_bytes())
    with h5py.File(path) as h:
        dataset = h[array].id
        chunk = dataset.get_chunk_info(int(rng.integers(dataset.get_num_chunks())))
    flip(path, chunk.byte_offset + int(rng.integers(chunk.size)), rng.integers(8))
    with pytest.raises(ValueError, match='set.h5, which is .*damaged.*delete it and write it again'):
        read_all(path)


def test_a_flipped_bit_anywhere_is_found_or_harmless(whole, tmp_path):
    path, good = tmp_path / 'set.h5', read_all(whole)
    data, rng, found = whole.read_bytes(), np.random.default_rng(0), 0
    with h5py.File(whole) as h:
        chunks = [h['images'].id.get_chunk_info(i) for i in range(h['images'].id.get_num_chunks())]
    inside = np.zeros(len(data), bool)
    for chunk in chunks:
        inside[chunk.byte_offset : chunk.byte_offset + chunk.size] = True
    for position in rng.choice(np.flatnonzero(~inside), 150, replace=False):  # what is not the images themselves
        changed = bytearray(data)
        changed[position] ^= 1 << rng.integers(8)
        path.write_bytes(changed)
        try:
            read = read_all(path)
        except ValueError as e:
            found += 'set.h5' in str(e)
        else:
            assert all(torch.equal(a, b) for a, b in zip(good, read))
    assert found > 50


@pytest.mark.parametrize('fraction', [0, 0.01, 0.3, 0.9, 0.999])
def test_a_cut_off_file_is_refused(whole, tmp_path, fraction):
    data = whole.read_bytes()
    (tmp_path / 'set.h5').write_bytes(data[: int(fraction * len(data))])
    with pytest.raises(
        ValueError, match='set.h5, which is no HDF5 file, cut off or damaged.*delete it and write it again'
    ):
        open_h5(tmp_path / 'set.h5')


def altered(whole, tmp_path, change):
    path = tmp_path / 'set.h5'
    path.write_bytes(whole.read_bytes())
    with h5py.File(path, 'r+') as h:
        change(h)
    return path


def remove(name):
    def change(h):
        del h[name]

    return change


def say(**changes):
    def change(h):
        h.attrs['about'] = np.bytes_(json.dumps({**json.loads(h.attrs['about']), **changes}))

    return change


@pytest.mark.parametrize(
    'change,message',
    [
        (remove('values'), 'holds Boxhead07.*expected Boxhead07'),
        (remove('images'), 'set.h5, which is .*damaged.*images'),
        (remove('factors'), 'set.h5, which is .*damaged.*factors'),
        (remove('space/1'), 'set.h5, which is .*damaged'),
        (lambda h: h.attrs.__delitem__('about'), 'set.h5, which is .*damaged.*about'),
        (
            lambda h: h.attrs.update(format='disent_nb set, version 1'),
            "'disent_nb set, version 1'.*delete it and write",
        ),
        (lambda h: h.attrs.__delitem__('format'), 'format None.*delete it and write'),
        (say(set='Boxhead08'), 'holds Boxhead08.*expected Boxhead07'),
        (say(options=dict(n=5)), 'expected Boxhead07'),
        (say(options=dict(m=5)), "'m'"),
        (say(cls='os.system'), 'not one of disent_nb'),
        (say(cls='disent_nb.rendered.boxhead.render'), 'render'),
        (say(cls='disent_nb.data.nothing.Here'), 'nothing'),
    ],
)
def test_a_wrong_file_is_named_as_such(whole, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        open_h5(altered(whole, tmp_path, change))


def test_other_files_and_none(tmp_path):
    with pytest.raises(ValueError, match='does not exist'):
        open_h5(tmp_path / 'absent.h5')
    (tmp_path / 'page.h5').write_text('<!DOCTYPE html><html>Quota exceeded</html>')
    with pytest.raises(ValueError, match='no HDF5 file'):
        open_h5(tmp_path / 'page.h5')
    with h5py.File(tmp_path / '3dshapes.h5', 'w') as h:
        h['images'], h['labels'] = np.zeros((4, 64, 64, 3), np.uint8), np.zeros((4, 6))
    with pytest.raises(ValueError, match='format None, expected .*; if it is a stored set'):
        open_h5(tmp_path / '3dshapes.h5')


def test_a_class_of_the_user(tmp_path):
    class Mine(ReducedDSprites):
        space = FactorSpace(ReducedDSprites.space.names, values=[t[:2] for t in ReducedDSprites.space.tables])

    stored = write_h5(Mine(), tmp_path / 'mine.h5')
    assert (
        torch.equal(stored.images(range(32)), Mine().images(range(32)))
        and len(open_h5(tmp_path / 'mine.h5', Mine())) == 32
    )
    with pytest.raises(ValueError, match='ds: got None'):
        open_h5(tmp_path / 'mine.h5')


def test_names_and_tables_of_any_language_and_size(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (7, 2, 3, 1), np.uint8)
    factors = np.stack([np.arange(7) % 3, np.arange(7) % 2], 1)
    names, extra = ('größe/höhe', '色'), {'étiquettes': np.frombuffer('広貞'.encode(), np.uint8), 'b': np.arange(7.0)}
    source = Source(factors, (2, 3, 1), [x[:4], x[4:]], [[0.1, 0.2, 0.3], range(2)], names, extra)
    path = tmp_path / 'ordner' / 'größe 色.h5'
    write_once(path, path.exists, {'größe': ['色', 1, None]}, lambda first: source)
    file = ImageFile(path)
    assert file.names == names and file.about == {'größe': ['色', 1, None]} and file.values is None
    assert [len(table) for table in file.tables] == [3, 2] and np.array_equal(file.factors, factors)
    assert {name: table.tolist() for name, table in file.extra.items()} == {n: t.tolist() for n, t in extra.items()}
    rows = torch.tensor([6, 0, 6, 3])
    assert np.array_equal(file.images(rows).permute(0, 2, 3, 1), x[rows]) and os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize('blocks', [[5], [4, 4]])
def test_too_few_or_too_many_images_are_refused(tmp_path, blocks):
    images = [np.zeros((n, 2, 2, 1), np.uint8) for n in blocks]
    source = Source(np.zeros((7, 1), int), (2, 2, 1), images, [[0]], ('a',))
    with pytest.raises(ValueError, match=f'images: got {sum(blocks)}, expected 7'):
        write_once(tmp_path / 'x.h5', lambda: False, {}, lambda first: source)
    assert not os.listdir(tmp_path)


def test_any_size_of_parts_gives_the_same_images(tmp_path, monkeypatch):
    "Chunks of the file lie across parts"

    class Tiny(FactorDataset):
        space, shape = FactorSpace(('a', 'b'), (20, 19)), (1, 9, 7)

        def draw(self, y):
            return (y[:, :1, None, None] * y[:, 1:, None, None] % 256 + torch.arange(7)).expand(-1, 1, 9, 7).byte()

    for rows in (7, 100, 1000):
        monkeypatch.setattr(store, 'PART', rows * 63)
        stored = write_h5(Tiny(), tmp_path / f'{rows}.h5')
        assert torch.equal(stored.images(range(380)), Tiny().images(range(380)))
