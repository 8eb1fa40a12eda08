"The factor grid and the dataset on top of it."

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.utils.data import DataLoader

from disent_nb.core import generator
from disent_nb.data.factors import (
    FactorDataset,
    FactorSpace,
    FirstImages,
    Grid,
    check_ints,
    factor_grid,
    to_factors,
    to_index,
)

sizes = st.lists(st.integers(1, 5), min_size=1, max_size=5).map(tuple)


def space_of(n):
    return FactorSpace([f'f{k}' for k in range(len(n))], n)


class Code(FactorDataset):
    "An image whose pixels are the factor indices themselves"

    space, shape = FactorSpace(('a', 'b', 'c'), (3, 2, 4)), (1, 1, 3)

    def draw(self, y):
        return y.to(torch.uint8)[:, None, None]


@given(sizes)
@settings(max_examples=40, deadline=None)
def test_numbers_are_the_lexicographic_order(n):
    s, listed = space_of(n), torch.tensor(list(itertools.product(*map(range, n))))
    assert torch.equal(s.all(), listed)
    assert torch.equal(s.index(listed), torch.arange(len(s)))
    assert to_index(listed, n).numpy().tolist() == np.ravel_multi_index(listed.T.numpy(), n).tolist()
    assert torch.equal(to_factors(torch.arange(len(s)), n), listed)


@given(sizes, st.integers(1, 30), st.integers(0, 5), st.data())
@settings(max_examples=40, deadline=None)
def test_fixing_a_factor_changes_that_factor_only(n, rows, seed, data):
    s, k = space_of(n), data.draw(st.integers(0, len(n) - 1))
    value = data.draw(st.integers(0, n[k] - 1))
    free, fixed = s.sample(rows, generator(seed)), s.sample(rows, generator(seed), {f'f{k}': value})
    others = [j for j in range(len(n)) if j != k]
    assert (fixed[:, k] == value).all() and torch.equal(free[:, others], fixed[:, others])
    assert free.shape == (rows, len(n)) and (free >= 0).all() and (free < torch.tensor(n)).all()


def test_sampling_is_uniform_and_leaves_the_global_generator_alone():
    s, state = space_of((2, 3)), torch.get_rng_state()
    share = s.index(s.sample(60_000, generator(0))).bincount(minlength=6) / 60_000
    assert (share - 1 / 6).abs().max() < 0.01
    assert torch.equal(torch.get_rng_state(), state)


def test_values_follow_the_tables():
    s = FactorSpace(('size', 'angle'), values=([0.5, 1.0], np.linspace(0, 3, 4)))
    assert s.sizes == (2, 4)
    assert s.values([[1, 3], [0, 1]]).tolist() == [[1.0, 3.0], [0.5, 1.0]]
    assert space_of((2, 3)).values([[1, 2]]).tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize(
    'args',
    [
        ((), ()),
        (('a', 'a'), (1, 1)),
        ('ab', (1, 1)),
        ((1, 2), (1, 1)),
        (('a',), None),
        (('a',), (0,)),
        (('a',), (1.5,)),
        (('a',), (2, 2)),
        (('a',), (2,), ([0.0],)),
        (('a',), None, ([np.inf],)),
        (('a',), None, (['x'],)),
        (('a',), None, 3),
        (('a',), None, ([[1.0]],)),
        (('a',), None, ([],)),
    ],
)
def test_wrong_grids_are_refused(args):
    with pytest.raises(ValueError, match='got .* expected'):
        FactorSpace(*args)


@pytest.mark.parametrize(
    'y',
    [
        [[0, 0, 4]],
        [[-1, 0, 0]],
        [[0, 0]],
        [0, 0, 0],
        [[0.0, 0.0, 0.0]],
        np.zeros((0, 3), int),
        [[True, False, True]],
        'abc',
        None,
        [[0, 0], [0, 0, 0]],
    ],
)
def test_wrong_indices_are_refused(y):
    for f in (Code().observe, Code().values, Code.space.index):
        with pytest.raises(ValueError, match='y: got .* expected'):
            f(y)


@pytest.mark.parametrize(
    'n,fixed,word',
    [
        (0, None, 'n: got 0'),
        (2.5, None, 'n: got'),
        (4, dict(bb=0), "'bb'"),
        (4, dict(b=2), 'got b in'),
        (4, dict(b=[0, 1]), 'expected one, or 4'),
        (4, dict(b=0.5), 'float'),
        (4, dict(b=-1), 'got b in'),
    ],
)
def test_wrong_samples_are_refused(n, fixed, word):
    with pytest.raises(ValueError, match='expected') as e:
        Code.space.sample(n, generator(0), fixed)
    assert word in str(e.value)
    with pytest.raises(ValueError, match='torch.Generator'):
        Code.space.sample(1, None)


def test_a_misspelt_factor_is_corrected():
    with pytest.raises(ValueError, match="did you mean 'orientation'"):
        FactorSpace(('shape', 'orientation'), (2, 2)).column('orientaton')


@pytest.mark.parametrize('workers', [0, 2])
def test_every_way_to_an_image_agrees(workers):
    ds, y = Code(), Code.space.all()
    x = torch.cat([x for x, _ in DataLoader(ds, batch_size=7, num_workers=workers)])
    assert torch.equal(x, ds.images(torch.arange(24)) / 255) and x.dtype == torch.float32
    assert torch.equal(torch.cat([f for _, f in DataLoader(ds, batch_size=7)]), y)
    assert torch.equal(ds.observe(y), ds.images(range(24)))
    assert len(ds) == len(list(ds)) == 24
    assert torch.equal(ds[-1][1], y[23]) and torch.equal(ds[np.int64(5)][1], y[5])


def test_numbers_out_of_range_are_refused():
    for i in (24, -25):
        with pytest.raises(IndexError, match=str(i)):
            Code()[i]
    for i in ([24], [-1], [], [0.5]):
        with pytest.raises(ValueError, match='index: got'):
            Code().images(i)


def test_repr_is_stable():
    assert repr(Code()) == repr(Code()) == 'Code(a 3, b 2, c 4; 24 images 1x1x3)'
    with pytest.raises(NotImplementedError, match='Half'):
        type('Half', (FactorDataset,), dict(space=Code.space))().observe([[0, 0, 0]])


def test_small_integer_types_do_not_overflow():
    s = FactorSpace(('a', 'b'), (200, 200))
    assert s.index(np.array([[199, 199]], np.uint8)).item() == 39_999
    assert check_ints(np.array([3], np.int16), 'i').dtype == torch.int64 and factor_grid(('a',), [np.int64(2)], None)[
        0
    ] == (2,)


def test_a_space_has_no_more_combinations_than_it_can_number():
    "A grid may have more: that of the faces has, of which no combination is numbered"
    names, sizes = tuple('abcd'), (2**16,) * 4
    assert Grid(names, sizes).sizes == sizes and len(FactorSpace(names[:3], sizes[:3])) == 2**48
    with pytest.raises(ValueError, match='sizes: got .*expected at most'):
        FactorSpace(names, sizes)


@pytest.mark.parametrize('sizes', [(2**24 + 1,), (True,), (10**30,)])
def test_sizes_beyond_the_whole_numbers_of_float32_are_refused(sizes):
    with pytest.raises(ValueError, match='sizes: got .*expected an integer from 1 to'):
        FactorSpace(('a',), sizes)


def test_images_that_cannot_be_rendered_are_found_by_their_factors():
    "The first image with each combination, by a loop and by the helper"
    table = torch.tensor([[1, 0], [0, 2], [1, 0], [0, 0]])
    first = FirstImages(table)
    for row in table:
        assert first(row[None]).tolist() == [table.tolist().index(row.tolist())]
    with pytest.raises(ValueError, match=r'y: got \[2, 2\], expected factors that one of the 4 images has'):
        first(torch.tensor([[0, 0], [2, 2]]))


@pytest.mark.parametrize('i', ['a', 0.5, None, [1]])
def test_an_item_has_a_whole_number(i):
    with pytest.raises(ValueError, match='index: got .*expected an integer'):
        Code()[i]


def test_images_without_factors_say_so():
    class Bare(FactorDataset):
        pass

    for f in (Bare().observe, Bare().values, Bare().factors):
        with pytest.raises(ValueError, match='factors: got none.*Bare'):
            f([[0]])


def test_values_may_be_views_of_numpy():
    "Negative strides, as of a reversed scale"
    assert FactorSpace(('a',), values=[np.arange(3.0)[::-1]]).tables[0].tolist() == [2, 1, 0]
