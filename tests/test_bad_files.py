"Files that a stranger may have made: named as what they are, and never read without bound."

import gzip
import io
import os
import signal
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from disent_nb.data.factors import FactorSpace
from disent_nb.data.store import open_h5, write_h5
from disent_nb.files.cache import identify
from disent_nb.data.table import ImageTable
from disent_nb.files import containers
from disent_nb.files.containers import BadFile, Container, digest, official_files
from disent_nb.files.folders import ArcUkiyoe, CelebA
from disent_nb.files.official import Cars3DFile, DSpritesFile, MPI3DFile, Shapes3DFile, SmallNORBFile
from disent_nb.rendered.dsprites import ReducedDSprites

pytestmark = pytest.mark.usefixtures('one_thread')


def read(cls, path, **options):
    return cls(path, verify=False, progress=False, **options)


def refused(f, *words):
    with pytest.raises(BadFile, match='path: got .*, which is .*; expected') as e:
        f()
    for word in words:
        assert word in str(e.value)
    return e.value.kind


# ---- nothing is unpacked or read without bound

MEGABYTES = 60  # that a call may take at its peak; the files would unpack to more
BOMB = 160  # megabytes


def in_little_memory(f):
    "What a call says that is refused before it takes much memory"
    tracemalloc.start()
    try:
        with pytest.raises(BadFile, match='path: got .*, which is .*; expected') as e:
            f()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MEGABYTES * 2**20
    return str(e.value)


ZEROS = bytes(2**20)


def zeros(f, megabytes):
    for _ in range(megabytes):
        f.write(ZEROS)


def test_a_link_in_a_zip_is_not_unpacked(tmp_path):
    "A zip of one megabyte whose only member, a symbolic link, has a target a hundred times as large"
    link = zipfile.ZipInfo('images.npy')
    link.external_attr, link.compress_type = 0o120777 << 16, zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(tmp_path / 'bomb.zip', 'w', zipfile.ZIP_DEFLATED) as z, z.open(link, 'w') as f:
        zeros(f, BOMB)
    assert (tmp_path / 'bomb.zip').stat().st_size < 2**21
    tracemalloc.start()
    with pytest.raises(ValueError, match='bomb.zip'):
        identify(tmp_path / 'bomb.zip')
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MEGABYTES * 2**20


def npz(path, **members):
    "A zip with members that are given as header and megabytes of zeros"
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED, compresslevel=1) as z:
        for name, (head, megabytes) in members.items():
            with z.open(f'{name}.npy', 'w', force_zip64=True) as f:
                f.write(head)
                zeros(f, megabytes)


def header(shape, dtype):
    np.lib.format.write_array_header_1_0(f := io.BytesIO(), dict(descr=dtype, fortran_order=False, shape=shape))
    return f.getvalue()


def test_labels_of_an_npz_are_not_read_before_their_shape_is_right(tmp_path):
    path = tmp_path / 'd.npz'
    many = header((25_000_000, 6), '<f8')
    few = header((1, 64, 64), '|u1')
    npz(path, imgs=(few, 1), latents_values=(many, BOMB), latents_classes=(many, 1))
    long = b'\x93NUMPY\x02\x00' + struct.pack('<I', 2**30)
    npz(tmp_path / 'm.npz', images=(long, BOMB))
    said = in_little_memory(lambda: read(DSpritesFile, path))
    assert '(25000000, 6)' in said and '(1, 6)' in said
    assert '1,073,741,824 bytes long' in in_little_memory(lambda: read(MPI3DFile, tmp_path / 'm.npz'))


def test_a_tar_is_not_unpacked_beyond_what_images_can_be(tmp_path):
    path = tmp_path / 'cars.tar.gz'
    big = tarfile.TarInfo('data/cars/list.txt')
    big.size = 2**30
    with gzip.open(path, 'wb', compresslevel=1) as f:
        f.write(big.tobuf())
        zeros(f, BOMB)
        f.write(bytes(1024))
    for check in (lambda: identify(path), lambda: read(Cars3DFile, path)):
        assert 'unpacks to more than' in in_little_memory(check)
    pax = tarfile.TarInfo('x')
    pax.type, pax.size = tarfile.XHDTYPE, 2**30  # a header that tarfile reads as a whole
    with gzip.open(path, 'wb', compresslevel=1) as f:
        f.write(pax.tobuf())
        zeros(f, BOMB)
    with pytest.raises(BadFile, match='unpacks to more than'):
        identify(path)


def test_a_compressed_variable_of_a_car_is_not_unpacked(tmp_path):
    savemat(f := io.BytesIO(), dict(im=np.zeros((128, 128, 3, 24, 4), np.uint8)))
    head = f.getvalue()[:128]
    packer = zlib.compressobj(1)
    parts = [packer.compress(struct.pack('<II', 14, BOMB * 2**20))]
    parts += [packer.compress(ZEROS) for _ in range(BOMB)]
    packed = b''.join([*parts, packer.flush()])
    car = head + struct.pack('<II', 15, len(packed)) + packed
    with tarfile.open(tmp_path / 'cars.tar.gz', 'w:gz') as t:
        for name, data in {'list.txt': b'car_001_mesh', 'car_001_mesh.mat': car}.items():
            m = tarfile.TarInfo(f'data/cars/{name}')
            m.size = len(data)
            t.addfile(m, io.BytesIO(data))
    assert 'unpacks to more bytes' in in_little_memory(lambda: read(Cars3DFile, tmp_path / 'cars.tar.gz'))


def test_labels_and_chunks_of_an_hdf5_file_are_bounded(tmp_path):
    labels, chunk = tmp_path / 'labels.h5', tmp_path / 'chunk.h5'
    with h5py.File(labels, 'w') as f:
        f.create_dataset('images', (4, 64, 64, 3), np.uint8)
        f.create_dataset('labels', (50_000_000, 6), float, chunks=(1000, 6), compression='gzip')
    with h5py.File(chunk, 'w') as f:
        f.create_dataset('images', (100_000, 64, 64, 3), np.uint8, chunks=(100_000, 64, 64, 3), compression='gzip')
        f['labels'] = np.zeros((100_000, 6))
    assert labels.stat().st_size < 2**20
    assert '(50000000, 6)' in in_little_memory(lambda: read(Shapes3DFile, labels))
    assert '1,228,800,000 bytes' in in_little_memory(lambda: read(Shapes3DFile, chunk))


def test_arrays_in_other_files_are_not_followed(tmp_path):
    "External storage and virtual arrays of HDF5 could show any file of the reader"
    (tmp_path / 'secret').write_bytes(bytes(4 * 64 * 64 * 3))
    with h5py.File(tmp_path / 'external.h5', 'w') as f:
        external = [(str(tmp_path / 'secret'), 0, 4 * 64 * 64 * 3)]
        f.create_dataset('images', (4, 64, 64, 3), np.uint8, external=external)
        f['labels'] = np.zeros((4, 6))
    with h5py.File(tmp_path / 'other.h5', 'w') as f:
        f['x'] = np.zeros((4, 64, 64, 3), np.uint8)
    with h5py.File(tmp_path / 'virtual.h5', 'w') as f:
        layout = h5py.VirtualLayout((4, 64, 64, 3), np.uint8)
        layout[:] = h5py.VirtualSource(str(tmp_path / 'other.h5'), 'x', (4, 64, 64, 3))
        f.create_virtual_dataset('images', layout)
        f['labels'] = np.zeros((4, 6))
    for name in ('external.h5', 'virtual.h5'):
        assert refused(lambda: read(Shapes3DFile, tmp_path / name), 'images lies in other files') == 'unsafe'


def test_arrays_of_a_stored_set_in_other_files_are_not_followed(tmp_path):
    path = tmp_path / 'set.h5'
    write_h5(ReducedDSprites(), path)
    with h5py.File(path, 'r+') as f:
        n = f['factors'].shape
        del f['factors']
        (tmp_path / 'secret').write_bytes(bytes(8 * n[0] * n[1]))
        f.create_dataset('factors', n, np.int64, external=[(str(tmp_path / 'secret'), 0, 8 * n[0] * n[1])])
    with pytest.raises(ValueError, match='set.h5.*factors lies in other files'):
        open_h5(path)
    with h5py.File(path, 'r+') as f:
        del f['factors']
        f.create_dataset('factors', (10**9, 5), np.int64, chunks=(1000, 5))
    with pytest.raises(ValueError, match='set.h5.*factors has 40,000,000,000 bytes'):
        open_h5(path)


def test_pipes_and_devices_are_not_opened(tmp_path):
    "They hang whoever reads them"
    os.mkfifo(tmp_path / 'pipe')
    (tmp_path / 'norb').mkdir()
    os.mkfifo(tmp_path / 'norb' / 'smallnorb-5x46789x9x18x6x2x96x96-training-dat.mat')
    signal.alarm(60)  # ends the tests rather than to wait for ever
    for path in (tmp_path / 'pipe', Path('/dev/zero')):
        assert refused(lambda: read(DSpritesFile, path), 'a pipe, a socket or a device') == 'unsafe'
        assert refused(lambda: identify(path), 'a pipe, a socket or a device') == 'unsafe'
    assert 'smallnorb' not in str(Container(tmp_path / 'norb').names)
    with pytest.raises(ValueError, match='path: got .*expected a file'):
        digest(tmp_path / 'pipe', 'md5')
    with pytest.raises(ValueError, match='pipe.*no file'):
        open_h5(tmp_path / 'pipe')
    with pytest.raises(ValueError, match='images: got .*pipe.*no file'):
        ImageTable([tmp_path / 'pipe'])
    signal.alarm(0)


def test_a_file_larger_than_any_dataset_is_not_summed(tmp_path, monkeypatch):
    with open(tmp_path / 'mpi3d_toy.npz', 'wb') as f:
        f.write(b'PK\3\4')
        f.truncate(2**36)  # takes no space
    monkeypatch.setattr(containers, 'digest', lambda *args: pytest.fail('read in full'))
    refused(lambda: identify(tmp_path / 'mpi3d_toy.npz'))
    with pytest.raises(BadFile, match='68,719,476,736 bytes'):
        containers.check_official(tmp_path / 'mpi3d_toy.npz', official_files())


# ---- what cannot be read is a BadFile that says what is wrong


def celeba(folder, lines, count=None, images=True):
    folder.mkdir()
    (folder / 'list_attr_celeba.txt').write_text(
        f'{len(lines) if count is None else count}\nbald smiling\n' + '\n'.join(lines)
    )
    names = [line.split()[0] for line in lines]
    (folder / 'list_eval_partition.txt').write_text(''.join(f'{name} 0\n' for name in names))
    (folder / 'img_align_celeba').mkdir()
    for name in names if images else ():
        Image.new('RGB', (8, 8)).save(folder / 'img_align_celeba' / name)


@pytest.mark.parametrize('line', ['b.jpg -1 x', 'b.jpg -1 1.5', 'b.jpg nan 1', 'b.jpg 1e400 1', 'b.jpg 1 0x1'])
def test_a_letter_among_the_numbers_of_a_list_is_shown_with_its_line(tmp_path, line):
    celeba(tmp_path / 'c', ['a.jpg -1 1', line, 'c.jpg 1 1'])
    assert refused(lambda: read(CelebA, tmp_path / 'c'), 'list_attr_celeba.txt', 'line 4') == 'corrupt'


def test_lists_of_other_kinds_are_refused(tmp_path):
    celeba(tmp_path / 'none', [])
    celeba(tmp_path / 'digits', ['a.jpg 1 1'], count='²')
    celeba(tmp_path / 'zipped', ['a.jpg 1 1'])
    (tmp_path / 'zipped' / 'list_attr_celeba.txt').write_bytes(gzip.compress(b'1\nbald smiling\na.jpg 1 1'))
    for name in ('none', 'digits', 'zipped'):
        refused(lambda: read(CelebA, tmp_path / name), 'list_attr_celeba.txt')
    with open(tmp_path / 'zipped' / 'list_attr_celeba.txt', 'wb') as f:
        f.write(b'1 ')
        f.truncate(2**33)
    refused(lambda: read(CelebA, tmp_path / 'zipped'), 'list_attr_celeba.txt', '8,589,934,592 bytes')


def test_a_huge_picture_is_not_decoded(tmp_path):
    "A PNG of a few kilobytes that claims to have 60,000 x 60,000 pixels"
    celeba(tmp_path / 'c', ['a.png -1 1'], images=False)
    head = b'IHDR' + struct.pack('>IIBBBBB', 60_000, 60_000, 8, 2, 0, 0, 0)
    data = b'\x89PNG\r\n\x1a\n' + struct.pack('>I', 13) + head + struct.pack('>I', zlib.crc32(head))
    (tmp_path / 'c' / 'img_align_celeba' / 'a.png').write_bytes(data)
    assert refused(lambda: read(CelebA, tmp_path / 'c'), 'a.png') == 'corrupt'
    Image.new('1', (5000, 5000)).save(tmp_path / 'c' / 'img_align_celeba' / 'a.png')
    assert refused(lambda: read(CelebA, tmp_path / 'c'), 'a.png', '(5000, 5000) pixels') == 'corrupt'


def test_a_member_without_a_name(tmp_path):
    with zipfile.ZipFile(tmp_path / 'x.zip', 'w') as z:
        z.writestr('a', b'x')
    data = (tmp_path / 'x.zip').read_bytes()
    start = data.index(b'PK\1\2')
    central = bytearray(data[start:])
    central[28:30] = b'\0\0'  # length of the name
    del central[46:47]
    end = central.index(b'PK\5\6')
    central[end + 12 : end + 16] = struct.pack('<I', end)
    (tmp_path / 'x.zip').write_bytes(data[:start] + central)
    assert refused(lambda: identify(tmp_path / 'x.zip'), 'empty name') == 'corrupt'


GRID = FactorSpace(Shapes3DFile.names, (2, 1, 1, 1, 1, 1)).all().numpy().astype(float)
IMAGES = np.zeros((2, 64, 64, 3), np.uint8)


@pytest.mark.parametrize(
    'images, labels',
    [
        (IMAGES[:0], GRID[:0]),
        (IMAGES[0, 0, 0], GRID),
        (np.uint8(3), GRID),
        (IMAGES.view([('a', np.uint8), ('b', np.uint8), ('c', np.uint8)])[..., 0], GRID),
        (IMAGES, GRID[:, 0]),
        (IMAGES, np.float64(1)),
        (IMAGES, GRID[:1]),
        (IMAGES, np.where(GRID == 1, np.nan, GRID)),
        (IMAGES, np.where(GRID == 1, np.inf, GRID)),
        (IMAGES, GRID.astype(bool)),
        (IMAGES, GRID.astype('S3')),
    ],
)
def test_arrays_of_other_kinds_are_refused(tmp_path, images, labels):
    with h5py.File(tmp_path / 's.h5', 'w') as f:
        f['images'], f['labels'] = images, labels
    refused(lambda: read(Shapes3DFile, tmp_path / 's.h5'), 's.h5')
    wide = np.asarray(labels)
    np.savez(tmp_path / 'd.npz', imgs=images, latents_values=wide, latents_classes=wide)
    refused(lambda: read(DSpritesFile, tmp_path / 'd.npz'), 'd.npz')
    np.savez(tmp_path / 'm.npz', images=images)
    refused(lambda: read(MPI3DFile, tmp_path / 'm.npz', sizes=(2, 1, 1, 1, 1, 1, 3)), 'm.npz')


def test_labels_with_too_many_combinations_are_refused(tmp_path):
    "A grid of 400^6 would be listed"
    with h5py.File(tmp_path / 's.h5', 'w') as f:
        f.create_dataset('images', (400, 64, 64, 3), np.uint8, chunks=(10, 64, 64, 3))
        f['labels'] = np.random.default_rng(0).normal(size=(400, 6))
    refused(lambda: read(Shapes3DFile, tmp_path / 's.h5'), '400 images')


@pytest.mark.parametrize('lengths', [(0, 2, 96, 96), (-1, 2, 96, 96), (2, -2, -96, 96), (2**31 - 1, 2, 96, 96)])
@pytest.mark.parametrize('part', ['dat', 'cat', 'info'])
def test_matrices_with_other_lengths_are_refused(tmp_path, part, lengths):
    good = dict(dat=(0x1E3D4C55, (2, 2, 96, 96)), cat=(0x1E3D4C54, (2,)), info=(0x1E3D4C54, (2, 4)))
    for name, (magic, shape) in good.items():
        shape = lengths[: len(shape)] if name == part else shape
        head = struct.pack(f'<{2 + max(3, len(shape))}i', magic, len(shape), *shape, *[1] * (3 - len(shape)))
        size = abs(int(np.prod(good[name][1]))) * (1 if name == 'dat' else 4)
        (tmp_path / f'smallnorb-x-training-{name}.mat').write_bytes(head + bytes(size))
    if lengths[0] == 2 and part == 'cat':
        return  # two rows are right
    refused(lambda: read(SmallNORBFile, tmp_path), 'smallnorb-x-training-')


@pytest.mark.parametrize('listed', [b'', b'\xff\xfe car', b'../car_001_mesh', b'car ' * 200])
def test_a_list_of_cars_of_another_kind_is_refused(tmp_path, listed):
    with tarfile.open(tmp_path / 'cars.tar.gz', 'w:gz') as t:
        for name, data in {'list.txt': listed, 'car_001_mesh.mat': b'x'}.items():
            m = tarfile.TarInfo(f'data/cars/{name}')
            m.size = len(data)
            t.addfile(m, io.BytesIO(data))
    refused(lambda: read(Cars3DFile, tmp_path / 'cars.tar.gz'), 'cars.tar.gz')


def test_an_npz_of_your_own_is_not_called_a_damaged_official_file(tmp_path):
    path = tmp_path / 'mine.npz'
    np.savez(path, images=np.zeros((5, 28, 28), np.uint8), labels=np.arange(5))
    for check in (lambda: identify(path), lambda: MPI3DFile(path)):
        assert refused(check, 'mine.npz') == 'wrong dataset'
    refused(lambda: identify(path), 'ImageTable')
    with h5py.File(tmp_path / 'mine.h5', 'w') as f:
        f['images'], f['labels'] = IMAGES, GRID
    assert refused(lambda: identify(tmp_path / 'mine.h5'), 'ImageTable') == 'wrong dataset'


def test_prints_whose_folder_is_a_file(tmp_path):
    (tmp_path / 'arc_extracted_face_images').write_text('no folder')
    (tmp_path / 'arc_extracted_face_metadata.csv').write_text('絵師,西暦,filename\na,1,x.jpg\n', encoding='utf-8')
    refused(lambda: read(ArcUkiyoe, tmp_path), 'arc_extracted_face_images')


def test_a_pointer_that_is_no_text(tmp_path):
    (tmp_path / 'x.npz').write_bytes(b'version https://git-lfs\xff')
    assert refused(lambda: identify(tmp_path / 'x.npz')) == 'pointer'


@pytest.mark.parametrize('options', [dict(size=0), dict(size='64'), dict(size=10**9), dict(crop=-1), dict(split='all')])
def test_options_are_named(tmp_path, options):
    celeba(tmp_path / 'c', ['a.png -1 1'])
    if 'split' in options:
        assert len(read(CelebA, tmp_path / 'c', **options)) == 1
        return
    with pytest.raises(ValueError, match=f'{next(iter(options))}: got .*expected'):
        read(CelebA, tmp_path / 'c', **options)


def test_a_link_that_leads_nowhere_beside_the_files(tmp_path):
    celeba(tmp_path / 'c', ['a.png -1 1'])
    (tmp_path / 'c' / 'lost').symlink_to(tmp_path / 'nothing')
    assert torch.equal(read(CelebA, tmp_path / 'c').factors([0]), torch.tensor([[0, 1]]))
