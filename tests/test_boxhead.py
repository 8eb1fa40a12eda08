"Boxhead: the picture against originals, and the draws against the rules of dependence."
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from disent_nb.core import generator
from disent_nb.data.boxhead import (Boxhead07, Boxhead07NoAzimuth, BoxheadSimple, BoxheadSimple2, BoxheadSimple2NoAzimuth, BoxheadSimpleNoAzimuth, Draws, look_at, nearest_indices,
                                    render)

REFERENCE = Path(__file__).resolve().parents[2]/'shared'/'references'/'boxhead_original.npz'
needs_reference = pytest.mark.skipif(not REFERENCE.exists(), reason='the original images are not on this machine')
NAMES = ('azimuth', 'floor_color', 'wall_color', 'box_color', 'box_size', 'eye_top_left', 'eye_top_right', 'eye_bottom_left', 'eye_bottom_right', 'hidden')
MOVING, STILL = (BoxheadSimple, BoxheadSimple2, Boxhead07), (BoxheadSimpleNoAzimuth, BoxheadSimple2NoAzimuth, Boxhead07NoAzimuth)
every = pytest.mark.parametrize('cls', MOVING + STILL, ids=lambda c: c.__name__)


pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture(scope='module')
def originals():
    with np.load(REFERENCE) as f:
        assert tuple(f['names']) == NAMES
        return torch.from_numpy(f['images']).permute(0, 3, 1, 2).float(), torch.from_numpy(f['factors'])


@needs_reference
def test_originals_are_matched(originals):
    images, values = originals
    error = (render(values) - images).abs()
    print(f'{len(images)} originals: mean absolute error {error.mean():.2f}/255, {(error.amax(1) <= 24).float().mean():.1%} of the pixels within 24')
    assert len(images) == 200 and error.mean() <= 4 and (error.amax(1) <= 24).float().mean() >= .94
    assert error.mean((1, 2, 3)).max() <= 5                                        # each of them, not only their mean


@needs_reference
def test_each_column_means_what_it_means_in_the_original(originals):
    "Exchanging any two columns that are drawn makes the match worse"
    images, values = originals
    def error(v): return (render(v) - images).abs().mean()
    right = error(values)
    for a, b in [(1, 2), (2, 3), (5, 6), (7, 8), (5, 7), (6, 8)]:
        v = values.clone(); v[:, [a, b]] = values[:, [b, a]]
        assert error(v) > right + .3
    assert error(values * torch.tensor([-1.] + [1.] * 9)) > right + 5              # the azimuth has a sign


@needs_reference
def test_originals_lie_on_our_grid(originals):
    ds, (_, values) = BoxheadSimple2(n=1), originals
    off = ds.values(nearest_indices(values, ds.space)) - values
    off[:, 5:9] = (off[:, 5:9] + .5) % 1 - .5
    assert off.abs().max() < 1e-5


@every
def test_sets_have_the_size_and_the_factors_of_the_original(cls):
    ds = cls()
    assert len(ds) == 51_328 and ds.shape == (3, 64, 64) and ds.space.names == NAMES
    eyes, hidden, sizes = {'Simple2': (35, 8, 11), 'Simple': (70, 8, 11), '07': (70, 211, 16)}[cls.__name__.removeprefix('Boxhead').removesuffix('NoAzimuth')]
    assert ds.space.sizes == (1 if cls in STILL else 11, 11, 11, 11, sizes, eyes, eyes, eyes, eyes, hidden)
    v = ds.values(ds.y)
    assert (v[:, 0] == 0).all() if cls in STILL else torch.allclose(v[:, 0].aminmax()[1], torch.tensor(math.pi / 6))
    assert (v[:, 1:4] >= 0).all() and (v[:, 1:4] <= 1).all() and (v[:, 4] >= 1).all() and (v[:, 4] <= 1.25).all() and (v[:, 5:9] < 1).all()


def circle(h): return torch.polar(torch.ones_like(h), 2 * math.pi * h)     # hues as unit vectors


def resultant(h): return circle(h).mean(0).abs()


# mean of cos(2 pi x) of the noise of an eye; rounding to sevenths adds a twelfth of a step squared to the variance of a normal
NORMAL = lambda s: math.exp(-2 * math.pi**2 * s**2 * (1 + 1 / 12 / 49))
UNIFORM = float((torch.tensor([.5, 1, 1, 1, 1, 1, 1, .5]) / 7 * torch.cos(2 * math.pi * torch.linspace(-.1, .1, 8))).sum())


@pytest.mark.parametrize('continuous', [False, True])
@pytest.mark.parametrize('cls,length', [(BoxheadSimple, NORMAL(.1)), (BoxheadSimple2, NORMAL(.2)), (Boxhead07, UNIFORM)])
def test_eyes_follow_the_hidden_factor(cls, length, continuous):
    v = cls(seed=5, continuous=continuous).drawn(torch.arange(51_328)).double()
    noise = (v[:, 5:9] - v[:, 9:] + .5) % 1 - .5
    assert (resultant(noise) - length).abs().max() < .01 and circle(noise).mean(0).angle().abs().max() < .02    # as far apart, and centred
    if cls is Boxhead07: assert noise.abs().max() <= .1 + 1e-5
    given = torch.corrcoef(noise.T) - torch.eye(4)
    assert given.abs().max() < .02                                                            # independent given hidden
    together = resultant(v[:, 5] - v[:, 6])
    assert abs(together - length**2) < .01                                                    # dependent through it


@pytest.mark.parametrize('cls', MOVING)
def test_the_hidden_factor_follows_the_box_in_boxhead_07_only(cls):
    v = cls(seed=2).drawn(torch.arange(51_328)).double()
    link, eye_link = resultant(v[:, 9] - v[:, 3]), resultant(v[:, 5] - v[:, 3])
    if cls is Boxhead07:
        assert abs(link - NORMAL(.2)) < .01 and abs((v[:, 9] - v[:, 3]).std() - .2) < .003 and abs(eye_link - NORMAL(.2) * UNIFORM) < .01
        assert torch.allclose(v[:, 9] * 70, (v[:, 9] * 70).round(), atol=1e-3)
    else: assert link < .02 and eye_link < .02


@pytest.mark.parametrize('cls', MOVING)
def test_macro_factors_are_even_and_independent(cls):
    ds = cls(seed=1)
    for k in range(5):
        n = ds.space.sizes[k]
        share = ds.y[:, k].bincount(minlength=n) / len(ds) * (n - 1)
        assert (share - torch.tensor([.5] + [1.] * (n - 2) + [.5])).abs().max() < .08            # rounding halves the ends
    correlation = torch.corrcoef(ds.y[:, :5].T.double()) - torch.eye(5)
    assert correlation.abs().max() < .02
    hidden, others = circle(ds.drawn(torch.arange(len(ds)))[:, 9].double()), ds.y[:, [0, 1, 2, 4]].double()
    assert ((others - others.mean(0)) * hidden.real[:, None]).mean(0).abs().max() < .1


def test_quantized_normal_draws():
    z = Draws(200_000, 0, False).normal(.2, 7).flatten()
    k, count = (z * 35).round().long().unique(return_counts=True)
    assert torch.allclose(z * 35, (z * 35).round())
    edge = lambda x: .5 * (1 + math.erf(x / 7 / math.sqrt(2)))
    for a, n in zip(k.tolist(), count.tolist()): assert abs(n / 200_000 - (edge(a + .5) - edge(a - .5))) < .003


def test_draws_are_seeded_and_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    a, b, c = BoxheadSimple(n=100), BoxheadSimple(n=100), BoxheadSimple(n=100, seed=1)
    assert torch.equal(a.y, b.y) and not torch.equal(a.y, c.y) and torch.equal(torch.get_rng_state(), state)
    assert repr(a) == repr(b) != repr(c) and 'seed 1' in repr(c)
    a.images(range(3)); assert torch.equal(torch.get_rng_state(), state)


@every
def test_every_access_gives_the_same_images_in_any_batch(cls):
    ds, i = cls(n=300, seed=4), torch.randperm(300, generator=generator(0))[:40]
    x = ds.images(i)
    assert x.shape == (40, 3, 64, 64) and x.dtype == torch.uint8
    assert torch.equal(x, ds.observe(ds.factors(i))) and torch.equal(x, render(ds.values(ds.factors(i)))) and torch.equal(x, render(ds.drawn(i)))
    assert torch.equal(x, torch.cat([ds.images(j[None]) for j in i])) and torch.equal(x, torch.cat([render(v[None]) for v in ds.drawn(i)]))
    image, factors = ds[int(i[7])]
    assert torch.equal(image, x[7] / 255) and torch.equal(factors, ds.y[i[7]])
    images, factors = next(iter(DataLoader(ds, batch_size=8, num_workers=0)))
    assert torch.equal(images, ds.images(range(8)) / 255) and torch.equal(factors, ds.y[:8])


@pytest.mark.parametrize('cls', MOVING)
def test_continuous_sets(cls):
    ds = cls(n=400, seed=4, continuous=True)
    v, grid, i = ds.drawn(torch.arange(400)), ds.values(ds.y), torch.tensor([3, 1, 399])
    off = (v - grid).abs()
    off[:, 5:9] = torch.minimum(off[:, 5:9], 1 - off[:, 5:9])
    assert (off <= torch.tensor([(t[1] - t[0]).item() / 2 for t in ds.space.tables]) + 1e-5).all() and len(v[:, 0].unique()) > 390
    assert torch.equal(ds.images(i), render(v[i])) and torch.equal(ds[3][0], ds.images(i)[0] / 255) and torch.equal(ds[3][1], ds.y[3])


def test_a_factor_changes_what_it_should():
    base = torch.tensor([[.2, .1, .55, .35, 1.12, 0., .2, .6, .8, .5]])
    x = render(base)
    changed = []
    for k, step in enumerate([.2, .3, .3, .3, .1, .3, .3, .3, .3, .3]):
        v = base.clone(); v[:, k] += step
        changed.append((render(v) != x).any(1)[0])
    area = [c.sum().item() for c in changed]
    assert area[9] == 0 and min(area[1:4]) > 400 and all(9 <= a <= 60 for a in area[5:9])
    where = [c.nonzero().float().mean(0) for c in changed[5:9]]                               # row and column
    assert where[0][0] < where[2][0] and where[1][0] < where[3][0] and where[0][1] < where[1][1] and where[2][1] < where[3][1]


def test_no_view_has_a_hole():
    "Every pixel gets light from something, and the shares of the unlit sky are whole"
    views = torch.cartesian_prod(BoxheadSimple.space.tables[0], torch.tensor([1., 1.25]))
    A = look_at(views)
    assert A.isfinite().all() and (A.sum((1, 2)) > .1).all()


@pytest.mark.parametrize('values', [[.0] * 9, np.zeros((0, 10)), np.zeros((2, 9)), [[0, 0, 0, 0, 1, 0, 0, 0, 0, math.nan]], [[2, 0, 0, 0, 1, 0, 0, 0, 0, 0]], [[0, 0, 0, 0, 9, 0, 0, 0, 0, 0]]])
def test_wrong_values_are_refused(values):
    with pytest.raises(ValueError, match='values: got .* expected'): render(values)


def test_wrong_arguments_are_refused():
    for n in (0, -1, 2.5): pytest.raises(ValueError, BoxheadSimple, n=n).match('n: got')
    ds = BoxheadSimple2(n=10)
    for index in ([10], [-1], [.5]): pytest.raises(ValueError, ds.images, index).match('index: got')
    with pytest.raises(ValueError, match='y: got eye_top_left'): ds.observe([[0, 0, 0, 0, 0, 35, 0, 0, 0, 0]])
    with pytest.raises(IndexError): ds[10]


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
def test_gpu_draws_where_the_indices_lie():
    ds = BoxheadSimple2(n=500)
    x = ds.observe(ds.y.cuda())
    assert x.is_cuda and ((x.cpu().int() - ds.observe(ds.y).int()).abs() > 40).float().mean() < 1e-3
