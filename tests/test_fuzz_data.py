"Whatever comes to the data modules: a right answer, or a ValueError that names what is wrong with which argument."

import inspect
import io
import pkgutil
import re
import tempfile
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st

import disent_nb.data
import disent_nb.files
from disent_nb.core import generator
from disent_nb.data.factors import FactorSpace, Grid
from disent_nb.data.store import ImageFile, write_h5
from disent_nb.data.table import ImageTable
from disent_nb.data.views import Groups, Labelled, Pairs, Singles
from disent_nb.files.cache import readers
from disent_nb.files.containers import Container
from disent_nb.rendered.dsprites import ReducedDSprites

pytestmark = pytest.mark.usefixtures('one_thread')
FUZZ = settings(deadline=None, max_examples=settings().max_examples // 4, database=None)

sprites = ReducedDSprites()
folder = Path(tempfile.mkdtemp())
(folder / 'empty').mkdir()
for ending in ('png', 'npz', 'h5', 'zip', 'csv', 'txt', 'tar.gz'):
    rng = np.random.default_rng(len(ending))
    (folder / f'noise.{ending}').write_bytes(rng.integers(0, 256, 700, np.uint8).tobytes())
np.savez(folder / 'own.npz', images=np.zeros((2, 8, 8), np.uint8))

ARRAYS = [
    np.zeros(0),
    np.zeros((0, 3), int),
    np.zeros((3, 0)),
    np.arange(5)[::-1],
    np.full((4, 2), np.nan),
    np.full((2, 1, 4, 4), np.inf),
    np.ones((2, 3, 4, 4), np.complex64),
    np.array(['a', 'b']),
    np.array([None, {}], object),
    np.zeros(3, [('a', int), ('b', 'U2')]),
    np.ma.masked_equal(np.arange(4), 2),
    np.ma.masked_equal(np.zeros((2, 4, 4), np.uint8), 0),
    np.zeros((2, 4, 4), np.uint16),
    np.zeros((2, 4, 4, 4), np.uint8),
    np.zeros((2, 2, 2, 2, 2)),
    np.array(3),
    np.array(['2020-01-01'], 'M8[D]'),
    np.array([2**63 + 5], np.uint64),
]
TENSORS = [
    torch.zeros(2, 3, 4, 4, dtype=torch.float16),
    torch.full((2, 1, 4, 4), -1.0),
    torch.zeros(2, 1, 4, 4, dtype=torch.bool),
    torch.zeros(2, 3, dtype=torch.bfloat16),
    torch.eye(3).to_sparse(),
    torch.zeros(2, 1, 4, 4, device='meta'),
    torch.zeros(0, 1, 4, 4),
    torch.tensor(1),
    torch.arange(3),
]
PATHS = [folder, folder / 'empty', folder / 'absent', 'x' * 5000, '~nobody/x', '\0', '', *sorted(folder.iterdir())]
OTHER = [
    None,
    True,
    -1,
    0,
    2**40,
    10**30,
    0.5,
    float('nan'),
    float('inf'),
    1j,
    'auto',
    'ünï',
    b'bytes',
    [],
    [[1, 2], [3]],
    [None],
    ['a', 'a'],
    {},
    {'a': [1, 2]},
    {'shape': 99},
    set(),
    object(),
    print,
    int,
    range(3),
    (x for x in 'ab'),
    pd.Series([1.5, None]),
    pd.DataFrame(),
    pd.DataFrame([[1, 'a']], columns=['a', 'a']),
    torch.utils.data.DataLoader([1, 2]),
    generator(0),
    sprites,
]
junk = st.one_of(
    st.sampled_from(range(len(values))).map(values.__getitem__) for values in (ARRAYS, TENSORS, PATHS, OTHER)
)


def tried(f, *args, **kwargs):
    "The answer, or None where it was refused with a ValueError that says what came"
    try:
        return f(*args, **kwargs)
    except ValueError as e:
        assert re.match(r"[\w.]+(\[[^]]*\])?(, [\w.]+)*: ", str(e)), f'names no argument: {str(e)!r}'


def public(package):
    "Functions and classes that the modules of a package offer"
    for found in pkgutil.iter_modules(package.__path__, f'{package.__name__}.'):
        module = import_module(found.name)
        for name in module.__all__:
            o = getattr(module, name)
            if inspect.isroutine(o) or inspect.isclass(o):
                yield f'{found.name}.{name}', o


# what is not called with anything at all: error types and records, what a subclass completes, and the three that take functions
# or tensors of the library itself
INTERNAL = (
    'BadFile Official Source FactorDataset SampledDataset FileDataset GridFile ListFile Views FactorViews write_once'
)
INTERNAL += ' native numbers_of check_ints check_index check_flag check_whole FirstImages Stored move_factors pick_factors choose_labelled'
INTERNAL += ' recognise'
FUNCTIONS = {
    name: f
    for package in (disent_nb.data, disent_nb.files)
    for name, f in public(package)
    if name.rsplit('.', 1)[1] not in INTERNAL.split()
}
OPTIONS = dict(progress=False, device='cpu', verify=False, resident_bytes=2**20)  # where they are not drawn


@pytest.mark.parametrize('name', FUNCTIONS)
@given(data=st.data())
@FUZZ
def test_a_public_function_refuses_junk_by_name(name, data):
    f = FUNCTIONS[name]
    parameters = [
        p for p in inspect.signature(f).parameters.values() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    drawn = {
        p.name: data.draw(junk, p.name)
        for p in parameters
        if p.default is p.empty or (p.name != 'device' and data.draw(st.booleans()))
    }
    if name.endswith('download'):
        drawn['url'] = data.draw(st.sampled_from(['', 'x', 'file:///etc/hosts', 'http://', 7]))
    if name.endswith('write_h5'):
        drawn['ds'] = data.draw(junk.filter(lambda v: v is not sprites))
    fixed = {p.name: OPTIONS[p.name] for p in parameters if p.name in OPTIONS and p.name not in drawn}
    tried(f, **drawn, **fixed)


@pytest.mark.parametrize('view', [Singles, Pairs, Groups, Labelled])
@given(data=st.data())
@FUZZ
def test_one_wrong_option_of_a_view(view, data):
    options = dict(batch_size=4, seed=0)
    names = [p for p in inspect.signature(view).parameters if p not in ('ds', 'device')]
    name = data.draw(st.sampled_from(names))
    made = tried(view, sprites, **options | {name: data.draw(junk)}, device='cpu')
    if made is not None:
        batch = tried(made, data.draw(st.one_of(st.just(3), junk)))
        assert batch is None or (batch.x.dtype == torch.float32 and 0 <= batch.x.min() and batch.x.max() <= 1)


@given(data=st.data())
@FUZZ
def test_methods_of_spaces_and_sets(data):
    space, table = sprites.space, ImageTable(np.zeros((3, 4, 4), np.uint8))
    methods = [space.index, space.factors, space.values, space.check, space.column]
    methods += [
        sprites.observe,
        sprites.images,
        sprites.factors,
        sprites.drawn,
        table.images,
        table.observe,
        table.subset,
    ]
    tried(data.draw(st.sampled_from(methods)), data.draw(junk))
    tried(space.sample, data.draw(junk), generator(0), data.draw(junk))
    tried(sprites.sample, data.draw(junk), data.draw(st.one_of(st.just(generator(0)), junk)))
    tried(table.split, data.draw(junk), data.draw(st.one_of(st.just(0), junk)))
    for ds in (sprites, table):
        try:
            tried(ds.__getitem__, data.draw(junk))
        except IndexError:
            pass  # what python asks of sequences


@given(data=st.data())
@FUZZ
def test_grids(data):
    sized = [('a', 'b'), (2, 3), None]
    k = data.draw(st.integers(0, 2))
    sized[k] = data.draw(junk)
    for cls in (Grid, FactorSpace):
        tried(cls, *sized)


IMAGES = [
    np.random.default_rng(0).integers(0, 256, (3, 5, 6), np.uint8),
    np.random.default_rng(1).random((3, 3, 5, 6)),
    [np.zeros((5, 6, 3), np.float32)] * 3,
    torch.utils.data.TensorDataset(torch.rand(3, 1, 5, 6), torch.arange(3)),
]


@given(data=st.data())
@FUZZ
def test_one_wrong_option_of_own_images(data):
    name = data.draw(st.sampled_from(['factors', 'names', 'size', 'range', 'layout', 'background']))
    images = data.draw(st.sampled_from(range(len(IMAGES))).map(IMAGES.__getitem__))
    ds = tried(ImageTable, images, **{name: data.draw(junk)})
    if ds is not None:
        x = tried(ds.images, [2, 0])
        assert x is None or (len(x) == 2 and x.dtype in (torch.uint8, torch.float32) and x.shape[1:] == ds.shape)


HEADS = [b'', b'\x89PNG\r\n\x1a\n', b'PK\3\4', b'PK\5\6', b'\x1f\x8b\x08\0', b'\x89HDF\r\n\x1a\n', b'\x93NUMPY\x01\0']
HEADS += [
    b'BM',
    b'GIF89a',
    b'II*\0',
    b'\xff\xd8\xff\xe0',
    b'RIFF\0\1\0\0WEBP',
    b'\x55\x4c\x3d\x1e\3\0\0\0',
    b'1\na b\n',
]


@given(st.sampled_from(HEADS), st.binary(max_size=300), st.sampled_from(['png', 'csv', 'npz', 'h5', 'tar.gz', 'mat']))
@FUZZ
def test_bytes_of_any_kind_as_a_file(head, rest, ending):
    with tempfile.TemporaryDirectory() as at:
        path = Path(at) / f'x.{ending}'
        path.write_bytes(head + rest)
        tried(ImageTable, [path])
        tried(ImageTable, np.zeros((2, 4, 4), np.uint8), path)
        tried(ImageFile, path)
        tried(Container, path)
        for reader in readers():
            tried(reader, path, verify=False, progress=False)


@pytest.fixture(scope='module')
def stored(tmp_path_factory):
    class Few(ReducedDSprites):
        space = FactorSpace(sprites.space.names, values=[t[:2] for t in sprites.space.tables])

    path = tmp_path_factory.mktemp('stored') / 'set.h5'
    write_h5(Few(), path)
    return path.read_bytes()


def archive(kind):
    "A small whole file of a kind that readers know"
    f = io.BytesIO()
    if kind == 'npz':
        y = np.array([[0, 0, 0, 0, 0], [0, 0, 1, 0, 0]])
        table = np.column_stack([np.zeros(2, int), y])
        np.savez(f, imgs=np.zeros((2, 64, 64), np.uint8), latents_values=table + 1.0, latents_classes=table)
    else:
        import h5py

        with h5py.File(f, 'w') as h:
            h['images'] = np.zeros((2, 64, 64, 3), np.uint8)
            h['labels'] = np.array([[0.0] * 6, [0.0] * 5 + [1.0]])
    return f.getvalue()


ARCHIVES = {kind: archive(kind) for kind in ('npz', 'h5')}


@given(st.data())
@FUZZ
def test_a_whole_file_with_changed_bytes(stored, data):
    kind = data.draw(st.sampled_from(['set.h5', 'npz', 'h5']))
    changed = bytearray(stored if kind == 'set.h5' else ARCHIVES[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, min(len(changed), 4000) - 1)) * data.draw(st.sampled_from([1, -1]))
        changed[place] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as at:
        path = Path(at) / f'x.{kind}'
        path.write_bytes(changed)
        if kind == 'set.h5':
            file = tried(ImageFile, path)
            if file is not None:
                tried(file.images, torch.tensor([0, 5]))
            return
        for reader in readers():
            tried(reader, path, verify=False, progress=False)
