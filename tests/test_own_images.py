"Images of your own: every layout, type and source is read as what it is, or refused with what to pass instead."

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset, random_split

from disent_nb.data.table import ImageTable, as_images
from disent_nb.data.views import Groups, Images, Labelled, Pairs, Singles
from disent_nb.metrics import evaluate

pytestmark = pytest.mark.usefixtures('one_thread')

rng = np.random.default_rng(0)
BYTES = rng.integers(0, 256, (6, 3, 8, 8), np.uint8)
UNIT = torch.from_numpy(BYTES) / 255
LABELS = torch.arange(6) % 2


class Mapped(Dataset):
    "A dataset as users write them: an image and a class"

    images = BYTES  # a common name of an attribute, which is no method

    def __len__(self):
        return 6

    def __getitem__(self, i):
        return UNIT[i], i % 2


class Stream(IterableDataset):
    def __len__(self):
        return 6

    def __iter__(self):
        return iter(UNIT)


tensors = TensorDataset(UNIT, LABELS)
SOURCES = dict(
    array=BYTES,
    last=BYTES.transpose(0, 2, 3, 1),
    float64=UNIT.double().numpy(),
    tensor64=UNIT.double(),
    tensor_last=torch.from_numpy(BYTES).permute(0, 2, 3, 1),
    uint16=BYTES.astype(np.uint16) * 257,
    list_of_tensors=list(UNIT),
    list_of_arrays=list(BYTES),
    list_of_pictures=[Image.fromarray(x.transpose(1, 2, 0)) for x in BYTES],
    list_of_pairs=[(x, i % 2) for i, x in enumerate(UNIT)],
    tensor_dataset=tensors,
    subset=Subset(tensors, range(6)),
    split=random_split(tensors, [6])[0],
    sum=ConcatDataset([Subset(tensors, range(2)), Subset(tensors, range(2, 6))]),
    mapped=Mapped(),
)


@pytest.mark.parametrize('name', SOURCES)
def test_a_batch_of_whatever_holds_images(name):
    "Images lie in the order of the source; only `random_split` has one of its own"
    views = Singles(SOURCES[name], 6, device='cpu')
    b, order = views(0), views.order(0)
    assert b.x.dtype == torch.float32 and b.x.shape == (6, 3, 8, 8) and b.n_data == 6
    wanted = UNIT[SOURCES[name].indices] if name == 'split' else UNIT
    assert (b.x - wanted[order]).abs().max() < 1e-6
    assert torch.equal(Images(SOURCES[name], 'cpu', resident_bytes=0)(order).float(), views.images(order).float())


@pytest.mark.parametrize('name', ['list_of_pairs', 'tensor_dataset', 'subset', 'split', 'sum', 'mapped'])
def test_labels_of_a_torch_dataset(name):
    source = SOURCES[name]
    semi = Labelled(source, rate=1.0, batch_size=6, device='cpu')
    wanted = LABELS[source.indices] if name == 'split' else LABELS
    assert torch.equal(semi(0).y[:, 0], wanted[semi.order(0)])


@pytest.mark.parametrize('name', ['array', 'tensor64', 'list_of_tensors'])
def test_labels_are_not_invented(name):
    "An array has items too, and the second row of an image is no label"
    with pytest.raises(ValueError, match='(ds|factors): got .*expected'):
        Labelled(SOURCES[name], device='cpu')
    with pytest.raises(ValueError, match='factors: got .*expected a pair'):
        ImageTable(SOURCES[name], 'labels')


@pytest.mark.parametrize('name', SOURCES)
@pytest.mark.parametrize('view', [Pairs, Groups])
def test_pairs_and_groups_need_factors(view, name):
    with pytest.raises(ValueError, match=f'ds: got .*{view.__name__} cannot be made, expected a dataset'):
        view(SOURCES[name], device='cpu')


@pytest.mark.parametrize('view', [Singles, Labelled, Images, as_images])
@pytest.mark.parametrize(
    'source, words',
    [
        (DataLoader(tensors), 'DataLoader, .*pass loader.dataset'),
        (Stream(), r'Stream, .*list\(dataset\)'),
        ('imgs', "'imgs', which is no folder"),
        (3, 'int, expected an array'),
        ({'a': 1}, 'dict, expected an array'),
        (pd.DataFrame([[1]]), 'DataFrame, expected an array'),
    ],
)
def test_what_holds_no_images_is_refused_with_what_to_pass(view, source, words):
    with pytest.raises(ValueError, match=f'(images|ds): got {words}'):
        view(source) if view in (Images, as_images) else view(source, 32)


@pytest.mark.parametrize('source', [2 * UNIT - 1, (2 * UNIT - 1).numpy(), 2 * UNIT.half() - 1])
def test_images_from_minus_one_to_one(source):
    with pytest.raises(ValueError, match=r'image 0, expected \[0, 1\].*range=\(black, white\)'):
        Singles(source, 2, device='cpu')(0)
    own = ImageTable(source, range=(-1, 1))
    assert (own.images([5]) - UNIT[[5]]).abs().max() < 1e-3


def test_transparent_images():
    opaque = np.concatenate([BYTES, np.full((6, 1, 8, 8), 255, np.uint8)], 1)
    for source in (opaque, torch.from_numpy(opaque)):
        assert torch.equal(as_images(source).images([1]), torch.from_numpy(BYTES[[1]]))
    opaque[2, 3] = 0
    with pytest.raises(ValueError, match='transparent.*background='):
        ImageTable(opaque).images([2])
    assert (ImageTable(opaque, background=1.0).images([2]) == 255).all()


def test_a_set_without_factors_can_be_loaded():
    "Float images are not divided by 255, and what needs factors says that there are none"
    own = ImageTable(UNIT.numpy())
    x, y = next(iter(DataLoader(own, 6)))
    assert torch.equal(x, UNIT) and y.shape == (6, 0) and torch.equal(own[-1][0], UNIT[5])
    for f in (own.factors, own.observe, own.drawn, own.values):
        with pytest.raises(ValueError, match='factors: .*none'):
            f([[0]] if f in (own.observe, own.values) else [0])
    assert torch.equal(ImageTable(UNIT.numpy(), LABELS)[1][0], UNIT[1])


def test_masks_and_numbers_beyond_float32():
    with pytest.raises(ValueError, match='images: got masked'):
        ImageTable(np.ma.masked_equal(BYTES, 7))
    with pytest.raises(ValueError, match="factors: got no value of 'factor 0' in 3 of 6"):
        ImageTable(BYTES, np.ma.masked_equal(LABELS.numpy(), 0))
    ids = 2**60 + np.arange(6)  # as floats they would be equal
    assert ImageTable(BYTES, ids).factors(range(6))[:, 0].tolist() == list(range(6))
    for wrong in (np.full(6, np.inf), np.full(6, 1e300), np.ones(6) * 1j):
        with pytest.raises(ValueError, match='factors: got complex, infinite or huge'):
            ImageTable(BYTES, wrong)


def test_columns_keep_their_types():
    "Of rows with texts and numbers; and numbers of an object array are numbers, 10 after 9"
    own = ImageTable(BYTES, [[i + 5, 'ab'[i % 2]] for i in range(6)])
    assert own.space.tables[0].tolist() == [5, 6, 7, 8, 9, 10] and own.labels == {'factor 1': ['a', 'b']}
    assert ImageTable(BYTES, np.arange(5, 11).astype(object)).space.tables[0].tolist() == [5, 6, 7, 8, 9, 10]
    own = ImageTable(BYTES, dict(size=pd.Categorical(list('smlsml'), ['s', 'm', 'l'])))
    assert own.labels == dict(size=['s', 'm', 'l']) and own.factors([0, 1, 2])[:, 0].tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="two columns named 'a'"):
        ImageTable(BYTES, pd.DataFrame(np.ones((6, 2)), columns=['a', 'a']))


@pytest.fixture
def pictures(tmp_path):
    "Grey, coloured and nested files, a hidden one, and a photograph that lies on its side"
    for name in ('a/x.png', 'a/deep/y.jpg', 'b/z.bmp'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (20, 10), (200, 0, 0)).save(tmp_path / name)
    Image.new('L', (20, 10), 90).save(tmp_path / 'b' / 'grey.png')
    (tmp_path / '.cache').mkdir()
    Image.new('L', (5, 5)).save(tmp_path / '.cache' / 'hidden.png')
    side = Image.new('RGB', (10, 20))
    side.paste((0, 0, 255), (0, 0, 10, 10))  # the upper half, which is on the right when it is turned
    exif = side.getexif()
    exif[0x0112] = 6  # turn by 90 degrees, clockwise
    side.save(tmp_path / 'b' / 'side.png', exif=exif)
    return tmp_path


def test_folders_and_lists_of_files(pictures):
    own = ImageTable(pictures)
    names = sorted(
        p.relative_to(pictures).as_posix() for p in pictures.rglob('*.*') if p.suffix and '.cache' not in str(p)
    )
    assert len(own) == len(names) == 5 and own.shape == (3, 10, 20)
    assert (own.images([names.index('b/grey.png')]) == 90).all()
    side = own.images([names.index('b/side.png')])[0]
    assert (side[2, :, 10:] == 255).all() and not side[2, :, :10].any()
    for paths in (
        [pictures / n for n in names],
        np.array([str(pictures / n) for n in names]),
        pd.Series([str(pictures / n) for n in names]),
    ):
        assert torch.equal(ImageTable(paths).images(range(5)), own.images(range(5)))
    assert ImageTable(pictures, size=4).images([0]).shape == (1, 3, 4, 4)
    assert Singles(str(pictures), 5, device='cpu')(0).x.shape == (5, 3, 10, 20)
    with pytest.raises(ValueError, match='layout, range: got'):
        ImageTable(pictures, range=(-1, 1))


def test_a_table_of_factors_finds_its_files(pictures):
    names = ['a/x.png', 'a/deep/y.jpg', 'b/z.bmp', 'b/grey.png', 'b/side.png']
    table = pd.DataFrame(dict(path=names, colour=['red', 'red', 'red', 'grey', 'blue'], n=range(5)))
    table.sample(frac=1, random_state=1).to_csv(pictures / 'table.csv', index=False)
    own = ImageTable(pictures, pictures / 'table.csv')
    order = sorted(names)
    assert [own.labels['colour'][k] for k in own.factors(range(5))[:, 0]] == [
        table.colour[names.index(name)] for name in order
    ]
    listed = ImageTable([pictures / n for n in names], table.drop(columns='path'))
    assert listed.factors(range(5))[:, 1].tolist() == list(range(5))


def test_a_file_that_is_no_picture_is_named(pictures):
    (pictures / 'b' / 'text.png').write_text(
        '%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n'
    )  # a program, for ghostscript
    with pytest.raises(ValueError, match='images: got .*text.png, which cannot be read'):
        ImageTable(pictures, size=4)


def test_parts_of_a_set():
    own = ImageTable(BYTES, np.arange(6))
    a, b = own.split((0.5, 0.5), seed=3)
    assert sorted([*a.rows, *b.rows]) == list(range(6)) and len(a) == 3
    again = own.split((0.5, 0.5), seed=3)[0]
    assert (again.rows == a.rows).all() and a.subset([2, 0]).rows.tolist() == a.rows[[2, 0]].tolist()
    assert torch.equal(a.observe(a.factors([1])), a.images([1]))
    with pytest.raises(ValueError, match='y: .*one of the 3 images'):
        a.observe(b.factors([0]))  # a part shows its own images only
    for fractions, seed, word in ((0.5, 0, 'fractions'), ('ab', 0, 'fractions'), ((0.5,), -1, 'seed')):
        with pytest.raises(ValueError, match=f'{word}: got'):
            own.split(fractions, seed)


@pytest.mark.parametrize(
    'options',
    [dict(size=0), dict(size=True), dict(size=10**6), dict(background='white'), dict(background=2), dict(names=['a'])],
)
def test_options_are_named(options):
    with pytest.raises(ValueError, match=f'{next(iter(options))}: got .*expected'):
        ImageTable(BYTES, **options)


@pytest.mark.parametrize('view', [Singles, Labelled])
def test_a_negative_seed_is_named(view):
    with pytest.raises(ValueError, match='seed: got -1, expected'):
        view(ImageTable(BYTES, LABELS), 2, seed=-1, device='cpu') if view is Singles else view(
            ImageTable(BYTES, LABELS), seed=-1, batch_size=2, device='cpu'
        )


def test_numbers_of_images_from_numpy():
    "Negative strides, foreign byte orders and read-only arrays"
    own, i = ImageTable(BYTES), np.arange(5)
    locked = i.copy()
    locked.flags.writeable = False
    for index, wanted in ((i[::-1], [4, 3, 2, 1, 0]), (i.astype('>i2'), list(range(5))), (locked, list(range(5)))):
        assert torch.equal(own.images(index), torch.from_numpy(BYTES[wanted]))
    with pytest.raises(ValueError, match='index: got masked'):
        own.images(np.ma.masked_equal(i, 2))


def test_items_that_differ_are_refused():
    with pytest.raises(ValueError, match='item 1 of shape'):
        ImageTable([UNIT[0], UNIT[1, :, :4]]).images([0, 1])
    with pytest.raises(ValueError, match='item 1 .*type uint8'):
        ImageTable([UNIT[0], BYTES[1]]).images([1])
    assert ImageTable([UNIT[0], UNIT[1, :, :4]], size=4).images([0, 1]).shape == (2, 3, 4, 4)


def test_scores_of_whatever_holds_images():
    "`evaluate` makes a table of it, as the views do"
    x = torch.rand(60, 1, 8, 8)
    labels = np.c_[np.arange(60) % 3, np.arange(60) % 4]
    options = dict(metrics=['mig'], bootstrap=0, progress=False)

    def represent(x):
        return x.flatten(1)[:, :4]

    expected = evaluate(represent, ImageTable(x, labels), **options).value
    for images in (x, x.numpy(), TensorDataset(x), Subset(TensorDataset(x), range(60))):
        assert np.array_equal(evaluate(represent, images, factors=labels, **options).value, expected)
    with pytest.raises(ValueError, match='factors'):
        evaluate(represent, TensorDataset(x), **options)
    with pytest.raises(ValueError, match='loader.dataset'):
        evaluate(represent, DataLoader(TensorDataset(x)), factors=labels, **options)
    with pytest.raises(ValueError, match='factors'):
        evaluate(represent, ImageTable(x, labels), factors=labels, **options)
