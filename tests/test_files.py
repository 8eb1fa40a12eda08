"Files of the official layouts, written small: read exactly, and told apart when they are not what they should be."

import gzip, hashlib, io, os, signal, subprocess, sys, tarfile, threading, time, zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings, strategies as st
from PIL import Image
from scipy.io import savemat
from torch.utils.data import DataLoader

from disent_nb.core import generator
from disent_nb.rendered.dsprites import DSprites
from disent_nb.data import store
from disent_nb.data.factors import FactorSpace
from disent_nb.files.containers import BadFile, Container, Official, digest, download, official_files
from disent_nb.files.folders import ArcUkiyoe, CelebA
from disent_nb.files.official import Cars3DFile, DSpritesFile, MPI3DFile, Shapes3DFile, SmallNORBFile
from disent_nb.files.cache import identify, readers

PAGE = b'\n <!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head></html>'
LFS = b'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 28024106\n'
MPI = (2, 1, 2, 3, 1, 2, 3)


class Trap:
    "A pickle that leaves a mark when it is opened"

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def coded(y, shape):
    "Images whose pixels say which factors they have"
    x = np.zeros((len(y), *shape), np.uint8)
    x[:, :, : y.shape[1]] = np.asarray(y).astype(np.uint8)[:, None, :, None]
    return x


def mixed(y):
    return y[torch.randperm(len(y), generator=generator(1))]


def sprites(path):
    names = ('shape', 'scale', 'orientation', 'posX', 'posY')
    y = mixed(FactorSpace(names, (2, 3, 2, 2, 2)).all())
    values = np.column_stack(
        [
            np.ones(len(y)),
            y + 1.0,
        ]
    )
    arrays = dict(
        imgs=(coded(y, (64, 64, 1))[..., 0] > 0).astype(np.uint8),
        latents_values=values,
        latents_classes=np.column_stack([np.zeros(len(y), int), y]),
    )
    if path.suffix == '.npz':
        np.savez_compressed(path, metadata=np.array(Trap(path.parent / 'sprung'), dtype=object), **arrays)
    else:
        with h5py.File(path, 'w') as f:
            for n, a in arrays.items():
                f.create_dataset(n.replace('latents_', 'latents/'), data=a, compression='gzip')


def shapes(path):
    y = mixed(FactorSpace(Shapes3DFile.names, (2, 2, 3, 2, 2, 2)).all())
    with h5py.File(path, 'w') as f:
        f.create_dataset('images', data=coded(y, (64, 64, 3)), compression='gzip')
        f['labels'] = y.numpy() / 10.0


def mpi(path):
    np.savez_compressed(path, images=coded(FactorSpace(MPI3DFile.names, MPI).all(), (64, 64, 3)))


def add(t, name, data=b'', **kwargs):
    m = tarfile.TarInfo(name)
    m.size = len(data)
    for k, v in kwargs.items():
        setattr(m, k, v)
    t.addfile(m, io.BytesIO(data))


def cars(
    path, there=('car_003_mesh', 'car_001_mesh'), listed=('car_003_mesh', 'car_001_mesh'), shape=(128, 128, 3, 24, 4)
):
    with tarfile.open(path, 'w:gz', compresslevel=1) as t:
        add(t, 'data/sprites/sprites_1.mat', b'of no concern')
        for car in sorted(there):
            im = np.zeros(shape, np.uint8)
            im[:, :3] = np.stack(
                np.broadcast_arrays(np.arange(shape[4]), np.arange(shape[3])[:, None], listed.index(car))
            )[None, :, None]
            savemat(f := io.BytesIO(), dict(im=im), do_compression=True)
            add(t, f'data/cars/{car}.mat', f.getvalue())
        if listed:
            add(t, 'data/cars/list.txt', '\n'.join(listed).encode())


def matrix(path, a):
    head = np.array(
        [dict(uint8=0x1E3D4C55, int32=0x1E3D4C54)[a.dtype.name], a.ndim, *a.shape, *[1] * (3 - a.ndim)], '<i4'
    )
    with (gzip.open if path.suffix == '.gz' else open)(path, 'wb') as f:
        f.write(head.tobytes() + a.tobytes())


def norb(folder, split='training', end='.mat.gz', instances=(4, 9)):
    y = mixed(FactorSpace(SmallNORBFile.names, (3, 2, 2, 3, 2)).all())
    info = np.column_stack([np.array(instances)[y[:, 1]], y[:, 2], 2 * y[:, 3], y[:, 4]]).astype(np.int32)
    dat = np.stack([coded(y, (96, 96, 1))[..., 0], np.full((len(y), 96, 96), 255, np.uint8)], 1)
    folder.mkdir(exist_ok=True)
    for part, a in dict(dat=dat, cat=y[:, 0].numpy().astype(np.int32), info=info).items():
        matrix(folder / f'smallnorb-5x46789x9x18x6x2x96x96-{split}-{part}{end}', a)


def picture(i, w=178, h=218):
    x = np.zeros((h, w, 3), np.uint8)
    x[h // 2 - 40 : h // 2 + 40, w // 2 - 40 : w // 2 + 40] = 40 + 5 * i
    Image.fromarray(x).save(f := io.BytesIO(), 'JPEG', quality=95)
    return f.getvalue()


def celeba(folder, n=9, archive=True):
    folder.mkdir()
    names, y = (
        [f'{i + 1:06d}.jpg' for i in range(n)],
        np.array([[(i >> k % 4) & 1 for k in range(40)] for i in range(n)]),
    )
    (folder / 'list_attr_celeba.txt').write_text(
        f'{n}\n{" ".join(f"A{k}" for k in range(40))} \n'
        + ''.join(f'{f} ' + ' '.join(f'{v:2d}' for v in 2 * a - 1) + '\n' for f, a in zip(names, y))
    )
    (folder / 'list_eval_partition.txt').write_text(''.join(f'{f} {i % 3}\n' for i, f in enumerate(names)))
    if archive:
        with zipfile.ZipFile(folder / 'img_align_celeba.zip', 'w') as z:
            for i, f in enumerate(names):
                z.writestr(f'img_align_celeba/{f}', picture(i))
    else:
        (folder / 'img_align_celeba').mkdir()
        for i, f in enumerate(names):
            (folder / 'img_align_celeba' / f).write_bytes(picture(i))
    return torch.tensor(y)


def ukiyoe(folder, n=6):
    (folder / 'arc_extracted_face_images').mkdir(parents=True)
    for i in range(n):
        (folder / 'arc_extracted_face_images' / f'arcUP{i}_0.jpg').write_bytes(picture(i, 256, 256))
    pd.DataFrame(
        dict(
            絵師=[['広貞', '', '国貞'][i % 3] for i in range(n)],
            西暦=['1849'] * n,
            filename=[f'arcUP{i}_0.jpg' for i in range(n)],
        )
    ).to_csv(folder / 'arc_extracted_face_metadata.csv', index=False)


CASES = dict(
    sprites_npz=(DSpritesFile, sprites, 'd.npz', {}),
    sprites_h5=(DSpritesFile, sprites, 'd.hdf5', {}),
    shapes=(Shapes3DFile, shapes, '3dshapes.h5', {}),
    mpi=(MPI3DFile, mpi, 'mpi3d_real.npz', dict(sizes=MPI)),
    cars=(Cars3DFile, cars, 'cars.tar.gz', dict(size=None)),
    norb=(SmallNORBFile, norb, 'norb', dict(size=None)),
    celeba=(CelebA, celeba, 'celeba', {}),
    ukiyoe=(ArcUkiyoe, ukiyoe, 'prints', {}),
)


@pytest.fixture(scope='module')
def good(tmp_path_factory):
    "A folder with one whole small file of each kind"
    folder = tmp_path_factory.mktemp('good')
    for _, make, name, _ in CASES.values():
        make(folder / name)
    return folder


def kind(f):
    with pytest.raises(BadFile, match='path: got .*, which is .*; expected') as e:
        f()
    return e.value.kind


def small(cls, path, cache=None, **options):
    return cls(path, verify=False, progress=False, cache=cache, **options)


def opened(case, folder, cache):
    cls, _, name, options = CASES[case]
    return small(cls, folder / name, cache, **options)


# ---- what is read


@pytest.mark.parametrize('case', ['shapes', 'mpi', 'cars', 'norb'])
def test_every_image_is_where_its_factors_say(good, tmp_path, case):
    ds = opened(case, good, tmp_path)
    y = ds.space.all()
    x = ds.observe(y)
    assert torch.equal(x[:, 0, 0, : y.shape[1]].long(), y) and not x[:, :, :, y.shape[1] :].any()
    assert (
        torch.equal(ds.images(torch.arange(len(ds)).flip(0)), x.flip(0))
        and len(ds) == len(y)
        and x.shape[1:] == ds.shape
        and x.dtype == torch.uint8
    )
    image, factors = ds[-1]
    assert torch.equal(image, x[-1] / 255) and torch.equal(factors, y[-1]) and len(ds.values(y)) == len(y)
    assert torch.equal(torch.cat([b for b, _ in DataLoader(ds, 16, num_workers=2)]), x / 255)


@pytest.mark.parametrize('case', ['sprites_npz', 'sprites_h5'])
def test_sprites(good, tmp_path, case):
    ds = opened(case, good, tmp_path)
    y = ds.space.all()
    want = torch.zeros(len(y), 1, 64, 64, dtype=torch.uint8)
    want[:, 0, :, :5] = 255 * (y > 0).byte()[:, None]
    assert torch.equal(ds.observe(y), want) and ds.space.sizes == (2, 3, 2, 2, 2) and torch.equal(ds.values(y), y + 1.0)
    assert ds.space.names == DSprites.space.names
    assert not (good / 'sprung').exists(), 'a pickle was opened'


def test_norb_values_and_sizes(good, tmp_path):
    ds = opened('norb', good, tmp_path)
    assert [t.tolist() for t in ds.space.tables] == [[0, 1, 2], [4, 9], [30, 35], [0, 20, 40], [0, 1]]
    assert small(SmallNORBFile, good / 'norb', tmp_path).shape == (1, 64, 64) and small(
        Cars3DFile, good / 'cars.tar.gz', tmp_path
    ).shape == (3, 64, 64)
    norb(tmp_path / 'plain', 'testing', '.mat')
    assert torch.equal(
        small(SmallNORBFile, tmp_path / 'plain', tmp_path, split='testing', size=None).images([5, 0]), ds.images([5, 0])
    )


@pytest.mark.parametrize('archive', [True, False])
def test_celeba(tmp_path, archive):
    y = celeba(tmp_path / 'c', archive=archive)
    ds = small(CelebA, tmp_path / 'c', tmp_path)
    assert (
        len(ds) == 9
        and ds.shape == (3, 64, 64)
        and ds.space.names == tuple(f'A{k}' for k in range(40))
        and torch.equal(ds.factors(range(9)), y)
        and torch.equal(ds.values(y), y.float())
    )
    x = ds.images(torch.arange(9))
    assert (
        x[:, :, 30:34, 30:34].float().mean((1, 2, 3)) - 40 - 5 * torch.arange(9)
    ).abs().max() < 2  # the centre is the centre
    assert abs((x[8] > 30).float().mean() - (80 / 178) ** 2) < 0.02  # and the scale that of the largest square
    assert (
        abs(
            (small(CelebA, tmp_path / 'c', tmp_path, crop=148, size=128).images([8]) > 30).float().mean()
            - (80 / 148) ** 2
        )
        < 0.02
    )
    for i, split in enumerate(CelebA.splits):
        part = CelebA(tmp_path / 'c', split, verify=False, progress=False, cache=tmp_path)
        assert (
            len(part) == 3
            and torch.equal(part.images([0, 2]), x[[i, i + 6]])
            and torch.equal(part.factors([1]), y[[i + 3]])
            and torch.equal(part.observe(y[[i + 3]]), x[[i + 3]])
        )
        assert split in repr(part)
    assert torch.equal(torch.stack([a for a, _ in ds]), x / 255) and torch.equal(next(iter(DataLoader(ds, 9)))[1], y)
    with pytest.raises(ValueError, match='split'):
        CelebA(tmp_path / 'c', 'train2')
    with pytest.raises(ValueError, match='index'):
        ds.images([9])
    with pytest.raises(ValueError, match='y: .*factors that one of the 9 images has'):
        ds.observe(torch.ones(1, 40, dtype=int) - torch.eye(40, dtype=int)[:1])


def test_celeba_in_the_subfolders_of_the_official_drive(tmp_path):
    celeba(tmp_path / 'flat')
    celeba(tmp_path / 'tree')
    for sub, name in (
        ('Anno', 'list_attr_celeba.txt'),
        ('Eval', 'list_eval_partition.txt'),
        ('Img', 'img_align_celeba.zip'),
    ):
        (tmp_path / 'tree' / sub).mkdir()
        (tmp_path / 'tree' / name).rename(tmp_path / 'tree' / sub / name)
    a, b = (
        small(CelebA, tmp_path / 'flat' / 'img_align_celeba.zip', tmp_path),
        small(CelebA, tmp_path / 'tree', tmp_path),
    )
    assert torch.equal(a.images(torch.arange(9)), b.images(torch.arange(9)))


def test_ukiyoe(good, tmp_path):
    ds = ArcUkiyoe(
        good / 'prints', progress=False, cache=tmp_path
    )  # no official sum: the default checks that all are there
    assert ds.space.names == ('painter', 'year') and ds.labels == dict(painter=['', '国貞', '広貞'], year=['1849'])
    assert [ds.labels['painter'][i] for i in ds.factors(range(6))[:, 0]] == ['広貞', '', '国貞'] * 2
    assert (ds.images(torch.arange(6))[:, :, 32, 32].float().mean(1) - 40 - 5 * torch.arange(6)).abs().max() < 2
    ukiyoe(tmp_path / 'p')
    (tmp_path / 'p' / 'arc_extracted_face_images' / 'arcUP3_0.jpg').unlink()
    assert (
        kind(lambda: ArcUkiyoe(tmp_path / 'p', progress=False)) == 'missing member'
        and len(small(ArcUkiyoe, tmp_path / 'p')) == 5
    )
    with pytest.raises(ValueError, match="columns: got '絵帥'.*絵師"):
        small(ArcUkiyoe, tmp_path / 'p', columns=('絵帥',))


# ---- what is refused


@pytest.mark.parametrize('case', CASES)
def test_by_default_only_official_files_are_read(good, tmp_path, case):
    cls, _, name, options = CASES[case]
    if case == 'ukiyoe':
        return
    refused = kind(lambda: cls(good / name, progress=False, cache=tmp_path, **options))
    assert refused in ('corrupt', 'truncated', 'wrong dataset')  # damaged is only what has the name of an official file
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('case', ['sprites_npz', 'sprites_h5', 'shapes', 'mpi', 'cars', 'norb', 'celeba'])
def test_a_file_with_the_official_sum_is_read_and_a_changed_byte_is_noticed(good, tmp_path, monkeypatch, case):
    cls, _, name, options = CASES[case]
    parts = sorted((good / name).iterdir()) if (good / name).is_dir() else [good / name]
    table = [
        Official(cls.__name__, p.name, p.stat().st_size if i % 2 else None, a, digest(p, a), None)
        for i, p in enumerate(parts)
        for a in [('md5', 'sha256', 'git')[i % 3]]
    ]
    for module in ('cache', 'official', 'folders'):
        monkeypatch.setattr(f'disent_nb.files.{module}.official_files', lambda: table)
    ds = cls(good / name, progress=False, cache=tmp_path, **options)
    assert (
        'not verified' not in repr(ds)
        and torch.equal(ds.images([1]), opened(case, good, tmp_path).images([1]))
        and identify(good / name)[0] == cls.__name__
    )
    for p in parts:
        data = bytearray(p.read_bytes())
        data[len(data) // 2] ^= 1
        broken = tmp_path / f'broken-{p.name}' / name
        for q in parts:
            to = broken / q.name if (good / name).is_dir() else broken
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes(data if q == p else q.read_bytes())
        assert kind(lambda: cls(broken, progress=False, **options)) in ('corrupt', 'truncated')
        assert kind(lambda: identify(broken)) in ('corrupt', 'truncated')


@pytest.mark.parametrize(
    'content, want',
    [(PAGE, 'html'), (b'', 'empty'), (LFS, 'pointer'), (b'<?xml version="1.0"?><Error>NoSuchKey</Error>', 'html')],
)
@pytest.mark.parametrize('case', CASES)
def test_a_page_an_empty_file_and_a_pointer_are_named(tmp_path, case, content, want):
    cls, make, name, options = CASES[case]
    make(tmp_path / name)
    parts = [p for p in (tmp_path / name).iterdir() if p.is_file()] if (tmp_path / name).is_dir() else [tmp_path / name]
    for p in parts:
        whole = p.read_bytes()
        p.write_bytes(content)
        assert kind(lambda: small(cls, tmp_path / name, **options)) == want
        p.write_bytes(whole)
    assert len(small(cls, tmp_path / name, **options))


@pytest.mark.parametrize('case', ['sprites_npz', 'sprites_h5', 'shapes', 'mpi', 'cars'])
def test_other_datasets_are_named(good, tmp_path, case):
    cls, _, _, options = CASES[case]
    for other, (their, _, name, _) in CASES.items():
        if their is cls:
            continue
        with pytest.raises(BadFile, match=f'{their.__name__}.*{cls.__name__}') as e:
            small(cls, good / name, tmp_path, **options)
        assert e.value.kind == 'wrong dataset'


def test_missing_members_are_named(good, tmp_path):
    np.savez(tmp_path / 'd.npz', imgs=np.zeros((2, 64, 64), np.uint8), latents_values=np.ones((2, 6)))
    with h5py.File(tmp_path / '3dshapes.h5', 'w') as f:
        f['images'] = np.zeros((2, 64, 64, 3), np.uint8)
    cars(tmp_path / 'cars.tar.gz', there=['car_001_mesh'])
    cars(tmp_path / 'unlisted.tar.gz', there=['car_001_mesh'], listed=['car_001_mesh'])
    with tarfile.open(tmp_path / 'unlisted.tar.gz', 'w:gz') as t:
        add(t, 'data/cars/car_001_mesh.mat', b'x')
    norb(tmp_path / 'norb')
    next((tmp_path / 'norb').glob('*cat*')).unlink()
    celeba(tmp_path / 'celeba')
    with zipfile.ZipFile(tmp_path / 'celeba' / 'img_align_celeba.zip', 'w') as z:
        z.writestr('img_align_celeba/000001.jpg', picture(0))
    celeba(tmp_path / 'listless')
    (tmp_path / 'listless' / 'list_attr_celeba.txt').unlink()
    for cls, name, word in (
        (DSpritesFile, 'd.npz', 'latents_classes'),
        (Shapes3DFile, '3dshapes.h5', 'labels'),
        (Cars3DFile, 'cars.tar.gz', 'car_003_mesh'),
        (Cars3DFile, 'unlisted.tar.gz', 'list.txt'),
        (SmallNORBFile, 'norb', 'cat'),
        (CelebA, 'celeba', '8 of 9 .*000002.jpg'),
        (CelebA, 'listless', 'list_attr_celeba.txt'),
    ):
        with pytest.raises(BadFile, match=word) as e:
            small(cls, tmp_path / name)
        assert e.value.kind == 'missing member', name


def test_arrays_of_another_shape_or_type_are_refused(tmp_path):
    np.savez(tmp_path / 'm.npz', images=np.zeros((4, 32, 32, 3), np.uint8))
    np.savez(tmp_path / 'f.npz', images=np.zeros((72, 64, 64, 3), np.float32))
    np.savez(tmp_path / 'o.npz', images=np.array([Trap(tmp_path / 'sprung')], dtype=object))
    np.savez(tmp_path / 'n.npz', images=np.zeros((71, 64, 64, 3), np.uint8))
    cars(tmp_path / 'cars.tar.gz', shape=(128, 128, 3, 12, 4))
    for name, want in (
        ('m.npz', 'wrong dataset'),
        ('f.npz', 'wrong dataset'),
        ('o.npz', 'unsafe'),
        ('n.npz', 'wrong dataset'),
    ):
        assert kind(lambda: small(MPI3DFile, tmp_path / name, sizes=MPI)) == want
    assert (
        kind(lambda: small(Cars3DFile, tmp_path / 'cars.tar.gz')) == 'wrong dataset'
        and not (tmp_path / 'sprung').exists()
    )


def test_repeated_or_missing_combinations_are_refused(tmp_path):
    y = FactorSpace(Shapes3DFile.names, (2, 2, 1, 1, 1, 2)).all()
    for rows, want in ((y[:-1], 'missing member'), (torch.cat([y, y[:1]]), 'corrupt')):
        with h5py.File(tmp_path / 's.h5', 'w') as f:
            f['images'], f['labels'] = coded(rows, (64, 64, 3)), rows.numpy().astype(float)
        assert kind(lambda: small(Shapes3DFile, tmp_path / 's.h5')) == want
        assert sorted(p.name for p in tmp_path.iterdir()) == ['s.h5']


@pytest.mark.parametrize('case', ['sprites_npz', 'sprites_h5', 'shapes', 'mpi', 'cars', 'norb', 'celeba'])
@given(part=st.floats(0, 1, exclude_max=True))
@example(part=1e-9)
@example(part=0.0001)
@example(part=0.001)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_cut_anywhere_is_refused_or_lacks_nothing(good, tmp_path_factory, case, part):
    cls, make, name, options = CASES[case]
    folder = tmp_path_factory.mktemp('cut')
    make(folder / name)
    path = (
        max((p for p in (folder / name).iterdir()), key=lambda p: p.stat().st_size)
        if (folder / name).is_dir()
        else folder / name
    )
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part) + (part == 1e-9)])  # one byte is the hardest to tell
    try:
        ds = small(cls, folder / name, **options)
    except BadFile as e:
        assert e.kind in ('truncated', 'empty', 'corrupt')
    else:
        assert (
            torch.equal(ds.images(torch.arange(len(ds))), opened(case, good, folder).images(torch.arange(len(ds))))
            and part > 0.9
        )


@pytest.mark.parametrize('case', ['sprites_npz', 'mpi', 'norb', 'cars'])
@given(part=st.floats(0, 1, exclude_max=True))
@example(part=0.171875)
@example(part=0.98046875)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_changed_bit_in_an_archive_is_noticed_or_harmless(good, tmp_path_factory, case, part):
    cls, make, name, options = CASES[case]
    folder = tmp_path_factory.mktemp('flip')
    make(folder / name)
    path = (
        max((p for p in (folder / name).iterdir()), key=lambda p: p.stat().st_size)
        if (folder / name).is_dir()
        else folder / name
    )
    data = bytearray(path.read_bytes())
    data[int(len(data) * part)] ^= 16
    path.write_bytes(data)
    try:
        ds = small(cls, folder / name, **options)
    except BadFile:
        return
    assert torch.equal(ds.images(torch.arange(len(ds))), opened(case, good, folder).images(torch.arange(len(ds))))


@pytest.mark.parametrize(
    'member',
    [
        dict(name='../evil'),
        dict(name='/tmp/evil'),
        dict(name='data/../../evil'),
        dict(name='data/l', type=tarfile.SYMTYPE, linkname='../../evil'),
        dict(name='data/l', type=tarfile.SYMTYPE, linkname='/etc/passwd'),
        dict(name='data/l', type=tarfile.LNKTYPE, linkname='../evil'),
        dict(name='C:\\evil'),
    ],
    ids=str,
)
def test_archives_with_members_that_leave_the_folder_are_refused(tmp_path, member):
    cars(tmp_path / 'cars.tar.gz')
    with tarfile.open(tmp_path / 'cars.tar.gz') as t:
        content = [(m.name, t.extractfile(m).read()) for m in t]
    with tarfile.open(tmp_path / 'evil.tar.gz', 'w:gz') as t:
        for name, data in content:
            add(t, name, data)
        add(t, **member)
    assert (
        kind(lambda: small(Cars3DFile, tmp_path / 'evil.tar.gz')) == 'unsafe'
        and kind(lambda: identify(tmp_path / 'evil.tar.gz')) == 'unsafe'
    )
    if 'type' not in member:
        celeba(tmp_path / 'celeba')
        with zipfile.ZipFile(tmp_path / 'celeba' / 'img_align_celeba.zip', 'a') as z:
            z.writestr(member['name'], picture(0))
        assert kind(lambda: small(CelebA, tmp_path / 'celeba')) == 'unsafe'


def test_links_within_a_zip_and_names_within_a_table_are_not_followed(tmp_path):
    celeba(tmp_path / 'celeba')
    link = zipfile.ZipInfo('img_align_celeba/x.jpg')
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / 'celeba' / 'img_align_celeba.zip', 'a') as z:
        z.writestr(link, '../../../etc/passwd')
    assert kind(lambda: small(CelebA, tmp_path / 'celeba')) == 'unsafe'
    ukiyoe(tmp_path / 'p')
    (tmp_path / 'p' / 'arc_extracted_face_metadata.csv').write_text(
        '絵師,西暦,filename\na,1,../../secret.jpg\n', encoding='utf-8'
    )
    assert kind(lambda: ArcUkiyoe(tmp_path / 'p', progress=False)) == 'unsafe'


def test_damaged_pictures_and_tables(tmp_path):
    y = celeba(tmp_path / 'c', archive=False)
    image, table, split = (
        tmp_path / 'c' / 'img_align_celeba' / '000004.jpg',
        tmp_path / 'c' / 'list_attr_celeba.txt',
        tmp_path / 'c' / 'list_eval_partition.txt',
    )
    for path, content, want in (
        (image, picture(1)[:800], 'corrupt'),
        (image, PAGE, 'corrupt'),
        (table, table.read_bytes()[:-200], 'truncated'),
        (table, table.read_bytes().replace(b' 1', b' 3', 1), 'corrupt'),
        (split, split.read_bytes()[:-30], 'truncated'),
        (split, b'000001.jpg seven\n', 'wrong dataset'),
        (split, table.read_bytes(), 'wrong dataset'),
    ):
        whole = path.read_bytes()
        path.write_bytes(content)
        assert kind(lambda: small(CelebA, tmp_path / 'c')) == want
        path.write_bytes(whole)
    assert torch.equal(small(CelebA, tmp_path / 'c').factors(range(9)), y) and len(list(tmp_path.glob('*.h5'))) == 1


# ---- the cache


def test_the_cache_is_made_once_and_only_of_this_file(good, tmp_path):
    path = tmp_path / 'd.npz'
    path.write_bytes((good / 'd.npz').read_bytes())
    ds = small(DSpritesFile, path)
    made = ds.cache.stat().st_mtime_ns
    assert ds.cache.parent == tmp_path and small(DSpritesFile, path).cache.stat().st_mtime_ns == made
    assert kind(lambda: DSpritesFile(path, progress=False)) == 'wrong dataset', (
        'an unverified cache must not stand for a verified file'
    )
    whole = ds.cache.read_bytes()
    for broken, word in ((whole[:1000], 'cut off or damaged'), (b'', 'no HDF5 file')):
        ds.cache.write_bytes(broken)
        with pytest.raises(ValueError, match=f'{ds.cache.name}.*{word}.*delete it and write it again'):
            small(DSpritesFile, path)
    with h5py.File(ds.cache, 'w') as f:  # as earlier versions wrote it
        f['images'], f.attrs['stamp'] = np.zeros((3, 64, 64, 1), np.uint8), '{}'
    with pytest.raises(ValueError, match=f'{ds.cache.name}, an HDF5 file of format None.*delete it and write it again'):
        small(DSpritesFile, path)
    ds.cache.unlink()
    assert torch.equal(
        small(DSpritesFile, path).images([3]), small(DSpritesFile, good / 'd.npz', tmp_path / 'other').images([3])
    )
    assert ds.cache.read_bytes() == whole
    sprites(path)
    os.utime(path, ns=(1, 1))
    assert small(DSpritesFile, path).cache.stat().st_mtime_ns > made
    with pytest.raises(ValueError, match="'sise'.*did you mean 'size'"):
        small(Cars3DFile, good / 'cars.tar.gz', tmp_path, sise=3)


def test_a_folder_that_changes_is_read_again(tmp_path):
    norb(tmp_path / 'norb')
    before = small(SmallNORBFile, tmp_path / 'norb').space.tables[1].tolist()
    norb(tmp_path / 'norb', instances=(6, 7))
    assert before == [4, 9] and small(SmallNORBFile, tmp_path / 'norb').space.tables[1].tolist() == [6, 7]


def test_a_killed_conversion_leaves_nothing_that_is_taken_for_whole(good, tmp_path, monkeypatch):
    script = '''
import sys, time
import disent_nb.files.official as o
blocks = o.rows_of
def slow(*args):
    for b in blocks(*args, 3): print('block', flush=True); time.sleep(.2); yield b
o.rows_of = lambda stream, shape, dtype, path: slow(stream, shape, dtype, path) if len(shape) > 2 else blocks(stream, shape, dtype, path)
o.DSpritesFile(sys.argv[1], verify=False, cache=sys.argv[2], progress=False)
'''
    process = subprocess.Popen([sys.executable, '-c', script, good / 'd.npz', tmp_path], stdout=subprocess.PIPE)
    for _ in range(3):
        assert process.stdout.readline() == b'block\n'
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(tmp_path.iterdir()) and not list(tmp_path.glob('d.npz*.h5'))
    (parts,) = tmp_path.glob('.d.npz*.parts')
    there = {p.name: p.stat().st_mtime_ns for p in parts.glob('*.h5')}
    assert 2 <= len(there) < 16
    kept = {}
    assemble = store.assemble

    def watched(path, about, content, files):
        kept.update({p.name: p.stat().st_mtime_ns for p, _, _ in files})
        assemble(path, about, content, files)

    monkeypatch.setattr(store, 'assemble', watched)
    ds = small(DSpritesFile, good / 'd.npz', tmp_path)
    assert there.items() <= kept.items()  # what was read before the kill is not read again
    every = torch.arange(48)
    assert torch.equal(ds.images(every), small(DSpritesFile, good / 'd.npz', tmp_path / 'other').images(every))
    assert sorted(p.name for p in tmp_path.iterdir()) == [ds.cache.name, 'other']


def test_two_processes_read_a_file_once(good, tmp_path, monkeypatch):
    calls, source = [], DSpritesFile.source.__func__

    def slow(cls, path, verify):
        calls.append(path)
        time.sleep(0.3)
        return source(cls, path, verify)

    monkeypatch.setattr(DSpritesFile, 'source', classmethod(slow))
    found = []
    readers = [
        threading.Thread(target=lambda: found.append(small(DSpritesFile, good / 'd.npz', tmp_path))) for _ in range(3)
    ]
    for thread in readers:
        thread.start()
    for thread in readers:
        thread.join()
    assert len(found) == 3 and len(calls) == 1 and [p.name for p in tmp_path.iterdir()] == [found[0].cache.name]


def test_a_damaged_image_in_the_cache_is_not_shown(good, tmp_path):
    ds = small(DSpritesFile, good / 'd.npz', tmp_path)
    data = bytearray(ds.cache.read_bytes())
    with h5py.File(ds.cache) as f:
        chunk = f['images'].id.get_chunk_info(3)
    data[chunk.byte_offset + chunk.size // 2] ^= 8
    ds.cache.write_bytes(data)
    ds = small(DSpritesFile, good / 'd.npz', tmp_path)
    with pytest.raises(ValueError, match=f'{ds.cache.name}.*damaged.*delete it and write it again'):
        ds.images(torch.arange(48))


def test_progress_is_shown(good, tmp_path, capfd):
    DSpritesFile(good / 'd.npz', verify=False, cache=tmp_path)
    assert 'reading d.npz' in (err := capfd.readouterr().err) and '48/48' in err
    DSpritesFile(good / 'd.npz', verify=False, cache=tmp_path)
    assert not capfd.readouterr().err


# ---- what a file is


def test_the_command_says_what_a_file_is(good, tmp_path, capsys):
    from disent_nb.runs.cli import main

    (tmp_path / 'img_align_celeba.zip').write_bytes(PAGE)
    (tmp_path / '3dshapes.h5').write_bytes((good / '3dshapes.h5').read_bytes()[:5000])
    (tmp_path / 'notes.txt').write_text('hello')
    for path, code, word in (
        (good / 'prints', 0, 'ArcUkiyoe'),
        (tmp_path / 'img_align_celeba.zip', 1, 'HTML page'),
        (tmp_path / '3dshapes.h5', 1, 'cut off'),
        (good / 'celeba', 1, 'list_attr_celeba.txt'),
        (tmp_path / 'notes.txt', 2, 'expected a file or folder of'),
        (tmp_path / 'nothing', 2, 'does not exist'),
    ):
        got, text = main(['data', 'check', str(path)]), ''.join(capsys.readouterr())
        assert got == code and word in text, text
    for words in (['data'], ['data', 'check']):
        with pytest.raises(SystemExit) as e:
            main(words)
        assert e.value.code == 2
    command = [Path(sys.executable).parent / 'disent-nb', 'data', 'check', tmp_path / 'img_align_celeba.zip']
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and 'HTML page' in done.stderr and 'Traceback' not in done.stderr


@pytest.mark.parametrize('case', CASES)
def test_identify_finds_the_reader(good, case):
    cls, _, name, _ = CASES[case]
    if cls is ArcUkiyoe:
        return
    with pytest.raises(BadFile, match='expected') as e:
        identify(good / name)  # all are whole in their layout, but not official
    assert e.value.kind in ('corrupt', 'truncated', 'wrong dataset')


def test_the_table_of_official_files():
    table = {o.name: o for o in official_files()}
    assert len(table) == 22 and {o.dataset for o in table.values()} == {
        'DSpritesFile',
        'Shapes3DFile',
        'Cars3DFile',
        'MPI3DFile',
        'SmallNORBFile',
        'CelebA',
    } == {r.__name__ for r in readers()} - {'ArcUkiyoe'}
    assert (
        table['3dshapes.h5'].size == 267_573_662
        and table['3dshapes.h5'].url == 'https://storage.googleapis.com/3d-shapes/3dshapes.h5'
    )
    for o in table.values():
        assert len(o.digest) == dict(md5=32, sha256=64, git=40)[o.algorithm] and set(o.digest) <= set(
            '0123456789abcdef'
        )
    assert (
        all(o.url is None or o.url.endswith('/' + o.name) for o in table.values())
        and table['img_align_celeba.zip'].url is None
    )


def test_a_git_sum(tmp_path):
    (tmp_path / 'hello').write_bytes(b'hello\n')
    assert digest(tmp_path / 'hello', 'git') == 'ce013625030ba8dba906f756967f9e9ca394464a'


# ---- download


@pytest.fixture
def server():
    "A web server on this machine: /data with ranges, /whole without, /cut breaks off after 100,000 bytes, /page answers with a page"

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            first = int(self.headers.get('Range', 'bytes=0-')[6:-1]) if self.path != '/whole' else 0
            data = PAGE if self.path == '/page' else self.server.content[first:]
            self.server.asked.append((self.path, first))
            if self.path == '/lost' or first and not data:
                return self.send_error(404 if self.path == '/lost' else 416)
            self.send_response(206 if first else 200)
            self.send_header('Content-Length', len(data))
            self.end_headers()
            self.wfile.write(data[:100_000] if self.path == '/cut' else data)

        def log_message(self, *args):
            pass

    s = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    s.content, s.asked, s.url = os.urandom(250_000), [], f'http://127.0.0.1:{s.server_port}'
    threading.Thread(target=s.serve_forever, daemon=True).start()
    yield s
    s.shutdown()
    s.server_close()


@pytest.mark.parametrize('algorithm', ['md5', 'sha256', 'git'])
def test_download_resumes_and_checks(tmp_path, server, algorithm):
    (tmp_path / 'x').write_bytes(server.content)
    o = Official(
        'Toy',
        'toy.bin',
        len(server.content) if algorithm == 'md5' else None,
        algorithm,
        digest(tmp_path / 'x', algorithm),
        None,
    )
    get = lambda path: download(o, tmp_path, server.url + path, progress=False)
    for n in (1, 2):
        with pytest.raises(ConnectionError, match='goes on'):
            get('/cut')
        assert not (tmp_path / 'toy.bin').exists() and (tmp_path / 'toy.bin.part').stat().st_size == n * 100_000
    assert get('/data').read_bytes() == server.content and server.asked == [
        ('/cut', 0),
        ('/cut', 100_000),
        ('/data', 200_000),
    ]
    assert (
        get('/data') == tmp_path / 'toy.bin'
        and len(server.asked) == 3
        and sorted(p.name for p in tmp_path.iterdir()) == ['toy.bin', 'x']
    )
    (tmp_path / 'toy.bin').write_bytes(b'another version')
    assert get('/data').read_bytes() == server.content  # a file with the wrong sum is fetched again


def test_download_from_servers_without_ranges_and_of_complete_parts(tmp_path, server):
    o = Official('Toy', 'toy.bin', None, 'sha256', hashlib.sha256(server.content).hexdigest(), None)
    (tmp_path / 'toy.bin.part').write_bytes(server.content[:70_000])
    assert download(o, tmp_path, f'{server.url}/whole', progress=False).read_bytes() == server.content
    (tmp_path / 'toy.bin').rename(tmp_path / 'toy.bin.part')
    assert download(o, tmp_path, f'{server.url}/data', progress=False).read_bytes() == server.content


def test_download_refuses_pages_wrong_sums_and_missing_addresses(tmp_path, server):
    o = Official('Toy', 'toy.bin', None, 'sha256', hashlib.sha256(b'other').hexdigest(), None)
    assert kind(lambda: download(o, tmp_path, f'{server.url}/page', progress=False)) == 'html'
    assert kind(lambda: download(o, tmp_path, f'{server.url}/data', progress=False)) == 'corrupt'
    with pytest.raises(ConnectionError, match='404'):
        download(o, tmp_path, f'{server.url}/lost', progress=False)
    with pytest.raises(ValueError, match='url: got None.*browser'):
        download('img_align_celeba.zip', tmp_path)
    with pytest.raises(ValueError, match='name: got .*3dshapes.h5'):
        download('3dshape.h5', tmp_path)
    assert not list(tmp_path.iterdir())


def test_containers_do_not_write(good, tmp_path):
    c = Container(good / 'cars.tar.gz')
    assert c.read('data/cars/list.txt') == b'car_003_mesh\ncar_001_mesh' and not list(tmp_path.iterdir())
    assert kind(lambda: c.read('data/cars/car_009_mesh.mat')) == 'missing member'
