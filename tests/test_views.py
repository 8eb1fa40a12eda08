"What methods are shown: exactly the factors that differ, differ; and every batch is a function of (seed, t)."

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from disent_nb.core import generator
from disent_nb.rendered.dsprites import DSprites, ReducedDSprites
from disent_nb.data.factors import FactorDataset, FactorSpace, Grid, SampledDataset
from disent_nb.data.views import Groups, Labelled, Pairs, Singles, choose_labelled

small = ReducedDSprites()
sizes = st.lists(st.integers(1, 5), min_size=1, max_size=5).filter(lambda s: max(s) > 1)


class Squares(FactorDataset):
    "Each factor is the grey level of one pixel, so that the factors can be read off the image"

    def __init__(self, sizes):
        self.space, self.shape = FactorSpace([f'f{k}' for k in range(len(sizes))], tuple(sizes)), (1, 1, len(sizes))

    def draw(self, y):
        return y.byte()[:, None, None, :]


def read(x):
    return (x * 255).round().long()[:, 0, 0]


@given(sizes, st.data())
@settings(max_examples=60, deadline=None)
def test_pairs_differ_where_they_must_and_nowhere_else(sizes, data):
    k = data.draw(st.integers(1, sum(n > 1 for n in sizes)))
    pairs = Pairs(
        Squares(sizes),
        40,
        k=k,
        seed=data.draw(st.integers(0, 9)),
        device='cpu',
        resident_bytes=data.draw(st.sampled_from((0, 2**20))),
    )
    b = pairs(data.draw(st.integers(0, 10**6)))
    y1, y2 = map(read, b.xs)
    assert torch.equal(y1 != y2, b.y) and (b.y.sum(1) == k).all()
    assert torch.equal(pairs.space.check(y1), y1) and torch.equal(pairs.space.check(y2), y2)


@given(sizes, st.data())
@settings(max_examples=40, deadline=None)
def test_groups_agree_in_one_factor(sizes, data):
    groups = Groups(Squares(sizes), 40, data.draw(st.integers(2, 5)), seed=data.draw(st.integers(0, 9)), device='cpu')
    b = groups(data.draw(st.integers(0, 10**6)))
    ys = torch.stack([read(x) for x in b.xs])
    assert ((~b.y).sum(1) == 1).all() and ((ys == ys[0]).all(0) | b.y).all()
    assert (torch.tensor(sizes) > 1).expand(40, -1)[~b.y].all()  # what cannot vary is not worth sharing


def test_the_free_factors_of_groups_are_independent():
    groups = Groups(Squares((3, 4)), 500, 2, factor='f0', device='cpu')
    ys = [torch.stack([read(x) for x in groups(t).xs]) for t in range(20)]
    y = torch.cat(ys, 1)
    assert torch.equal(y[0, :, 0], y[1, :, 0])
    counts = torch.zeros(4, 4).index_put_((y[0, :, 1], y[1, :, 1]), torch.ones(10_000), accumulate=True)
    assert ((counts - 625) ** 2 / 625).sum() < 15 + 5 * 30**0.5  # chi-square, 15 degrees of freedom


def test_pairs_are_uniform_over_factors_and_values():
    pairs = Pairs(Squares((3, 4)), 2000, device='cpu')
    y, differ, _ = pairs.at(0)
    assert abs(differ[:, 0].float().mean() - 0.5) < 4 * 0.25**0.5 / 2000**0.5
    for k, n in enumerate((3, 4)):
        a, b = y[:, differ[:, k], k]
        counts = torch.zeros(n, n).index_put_((a, b), torch.ones(len(a)), accumulate=True)
        cells = counts[~torch.eye(n, dtype=torch.bool)]
        assert (
            counts.diag().sum() == 0
            and ((cells - cells.mean()) ** 2 / cells.mean()).sum() < len(cells) + 5 * (2 * len(cells)) ** 0.5
        )


def test_random_k_and_untold():
    pairs = Pairs(Squares((3, 4, 1, 5, 2)), 3000, k='random', tell=False, device='cpu')
    y, differ, _ = pairs.at(5)
    assert pairs(5).y is None and torch.equal(y[0] != y[1], differ)
    counts = differ.sum(1).bincount(minlength=5)
    assert counts[[0, 4]].tolist() == [0, 0] and (counts[1:4] - 1000).abs().max() < 5 * (3000 * 2 / 9) ** 0.5


def test_sdsprites_has_no_pair_of_equal_images_and_keeps_the_shares():
    pairs = Pairs(small, 256, device='cpu')
    shares = torch.zeros(5)
    for t in range(20):
        b = pairs(t)
        assert (b.xs[0] != b.xs[1]).flatten(1).any(1).all()
        shares += b.y.sum(0) / (20 * 256)
    assert (shares - 0.2).abs().max() < 4 * (0.16 / 5120) ** 0.5
    y, differ, x = Pairs(small, 2000, distinct=False, device='cpu').at(0)
    same = (x[0] == x[1]).flatten(1).all(1)
    assert abs(same.float().mean() - 4 / 45) < 0.03 and (differ[same].long().argmax(1) == 2).all()


def test_a_pair_does_not_depend_on_its_neighbours():
    literal, distinct = (Pairs(small, 500, distinct=d, device='cpu').at(1) for d in (False, True))
    kept = (literal[2][0] != literal[2][1]).flatten(1).any(1)
    assert (
        400 < kept.sum() < 500
        and torch.equal(literal[0][:, kept], distinct[0][:, kept])
        and torch.equal(literal[1], distinct[1])
    )


def test_a_factor_that_changes_no_image_is_named():
    class Blind(Squares):
        def draw(self, y):
            return y.byte()[:, None, None, :1]

    with pytest.raises(ValueError, match="ds: .*'f1'.*distinct=False"):
        Pairs(Blind((3, 3)), 8, device='cpu')(0)
    assert len(Pairs(Blind((3, 3)), 8, distinct=False, device='cpu')(0)) == 8


def test_finite_pairs_come_in_epochs():
    pairs = Pairs(small, 30, n_pairs=90, k=2, device='cpu')
    rows = lambda ts: sorted(tuple(r.tolist()) for t in ts for r in pairs.at(t)[0].permute(1, 0, 2).flatten(1))
    first, second = rows(range(3)), rows(range(3, 6))
    assert first == second and len(set(first)) == 90
    y, differ, x = pairs.at(7)
    assert torch.equal(y[0] != y[1], differ) and torch.equal(x[1], small.observe(y[1]))
    more = Pairs(small, 30, n_pairs=9000, device='cpu', resident_bytes=2**30)
    assert more.y.shape == (2, 9000, 5) and torch.equal(more.y[0] != more.y[1], more.differ)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=200),
    st.floats(0, 1),
    st.integers(0, 99),
)
@settings(max_examples=100, deadline=None)
def test_labels_are_stratified_to_within_one_sample(labels, rate, seed):
    labels = torch.tensor(labels)
    chosen = choose_labelled(labels, rate, generator(seed))
    _, kind = labels.unique(dim=0, return_inverse=True)
    for members in [torch.ones(len(labels), dtype=torch.bool)] + [kind == i for i in kind.unique()]:
        assert abs(chosen[members].sum().item() - rate * members.sum().item()) < 1 + 1e-9
    assert torch.equal(chosen, choose_labelled(labels, rate, generator(seed)))


def test_semi_supervised_batches():
    semi = Labelled(small, ['shape'], 0.2, 100, seed=4, device='cpu')
    truth = small.space.factors(torch.arange(7200))[:, 0]
    assert semi.known.sum() == 1440 and truth[semi.known].bincount().tolist() == [480] * 3
    seen = torch.full((7200,), -2)
    for t in range(72):
        b, index = semi(t), semi.order(t)
        assert (
            b.y.shape == (100, 1)
            and b.y.dtype == torch.int64
            and b.n_data == 7200
            and torch.equal(b.x, small.images(index) / 255)
        )
        seen[index] = b.y[:, 0]
    assert torch.equal(seen, truth.where(semi.known, -1))  # an epoch shows all, and the same labels as ever
    assert not torch.equal(semi.known, Labelled(small, ['shape'], 0.2, 100, seed=5, device='cpu').known)
    everything = Labelled(small, rate=1.0, device='cpu')(0)
    assert everything.y.min() == 0 and everything.y.shape == (64, 5)


views = [
    lambda **o: Singles(small, device='cpu', **o),
    lambda **o: Pairs(small, device='cpu', **o),
    lambda **o: Pairs(small, k='random', n_pairs=300, device='cpu', **o),
    lambda **o: Groups(small, n_views=3, device='cpu', **o),
    lambda **o: Labelled(small, ['posX'], device='cpu', **o),
]


@pytest.mark.parametrize('view', views)
def test_a_batch_is_a_function_of_seed_and_step(view):
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    a, drawn, other = view(), view(resident_bytes=0), view(seed=1)
    late = a(130)
    for t in (0, 131, 7, 130):
        b = drawn(t)
    assert all(torch.equal(p, q) for p, q in zip(late.xs, b.xs)) and (late.y is b.y is None or torch.equal(late.y, b.y))
    assert not torch.equal(late.x, other(130).x) and not torch.equal(late.x, a(131).x)
    assert late.x.dtype == torch.float32 and 0 <= late.x.min() and late.x.max() <= 1 and late.n_data == 7200
    assert repr(a) == repr(view()) != repr(other) and ' at 0x' not in repr(a)
    assert (
        torch.equal(states[0], torch.get_rng_state())
        and (states[1] == np.random.get_state()[1]).all()
        and states[2] == random.getstate()
    )


def test_a_method_trains_on_pairs_groups_and_labels():
    from disent_nb.methods.vae import VAE
    from disent_nb.nets.conv64 import burgess64
    from disent_nb.train.fit import fit

    for view in (views[1], views[3], views[4]):
        assert fit(VAE(*burgess64(1, 3)), view(batch_size=8), 2, device='cpu').t == 2


def test_large_sets_are_drawn_on_demand():
    pairs = Pairs(DSprites(), 32, device='cpu', resident_bytes=2**30)
    y, differ, x = pairs.at(3)
    assert (
        pairs.images.held is None and torch.equal(y[0] != y[1], differ) and torch.equal(x[1], DSprites().observe(y[1]))
    )


@pytest.mark.parametrize(
    'make, word',
    [
        (lambda: Pairs(torch.rand(4, 1, 8, 8), device='cpu'), 'ds'),
        (lambda: Pairs(small, k=0, device='cpu'), 'k'),
        (lambda: Pairs(small, k=6, device='cpu'), 'k'),
        (lambda: Pairs(small, k=1.5, device='cpu'), 'k'),
        (lambda: Pairs(small, 64, n_pairs=63, device='cpu'), 'batch_size'),
        (lambda: Pairs(small, 0, device='cpu'), 'batch_size'),
        (lambda: Groups(small, n_views=1, device='cpu'), 'n_views'),
        (lambda: Groups(small, factor='hue', device='cpu'), 'name'),
        (lambda: Labelled(small, rate=-0.1, device='cpu'), 'rate'),
        (lambda: Labelled(small, ['shpae'], device='cpu'), 'name'),
        (lambda: Singles(small, 7201, device='cpu'), 'batch_size'),
    ],
)
def test_wrong_arguments_are_named(make, word):
    with pytest.raises(ValueError, match=f'{word}: got .*expected'):
        make()


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
def test_the_gpu_shows_the_same():
    for view in (
        lambda d: Pairs(small, device=d),
        lambda d: Groups(small, device=d),
        lambda d: Labelled(small, device=d),
    ):
        a, b = view('cuda')(5), view('cpu')(5)
        assert a.x.is_cuda and a.y.is_cuda and torch.equal(a.y.cpu(), b.y) and ((a.x.cpu() != b.x).sum() <= 5)


class Sampled(SampledDataset):
    "Sprites chosen at random, whose space nevertheless numbers all combinations"

    space, shape, draw = small.space, small.shape, ReducedDSprites.draw


@pytest.mark.parametrize('n', [7200, 300])
@pytest.mark.parametrize('view', [Pairs, Groups])
def test_a_set_whose_images_are_numbered_otherwise_is_refused(view, n):
    with pytest.raises(ValueError, match=f'ds: got Sampled, whose images are not numbered.*{view.__name__}.*expected'):
        view(Sampled(small.space.sample(n, generator(0))), 8, device='cpu')


@pytest.mark.parametrize('view', [Pairs, Groups])
def test_a_sampled_set_is_shown_by_its_factors(view):
    "Where its space numbers the combinations as the set does, or not at all"

    class Unnumbered(Sampled):
        class space(Grid):
            sample = FactorSpace.sample

        space = space(small.space.names, values=small.space.tables)

    ordered, loose = Sampled(small.space.all()), Unnumbered(small.space.sample(300, generator(0)))
    for ds in (ordered, loose):
        y, differ, x = view(ds, 40, device='cpu').at(3)
        assert torch.equal(x[0], small.observe(y[0])) and torch.equal(x[1], small.observe(y[1]))
