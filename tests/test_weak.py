"Groups and pairs: limits of ML-VAE, GVAE, their adaptive forms and SVAE, and what they refuse."

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from disent_nb.core import Batch, discover, generator, seed_all
from disent_nb.methods.betavae import BetaVAE
from disent_nb.methods.group import (
    MERGES,
    AdaGVAE,
    AdaMLVAE,
    GroupVAE,
    GVAE,
    MLVAE,
    adaptive_shared,
    gaussian_mean,
    gaussian_product,
    kl_between,
    change_mask,
    varying_columns,
)
from disent_nb.methods.svae import SVAE, critical_weight, assigned_latents, pair_distances
from disent_nb.methods.vae import VAE
from disent_nb.nets.conv64 import burgess64
from disent_nb.prob import Posterior
from disent_nb.train.callbacks import StopOnNaN
from disent_nb.train.fit import adam, fit

pytestmark = pytest.mark.usefixtures('one_thread')
every = (MLVAE, GVAE, AdaMLVAE, AdaGVAE, SVAE)


def images(n, *keys):
    return torch.rand(n, 1, 64, 64, generator=generator(*keys))


def pair(n=4, k=5, y=True):
    "Two views, and a mask with one factor in each row"
    return Batch((images(n, 1), images(n, 2)), torch.eye(k, dtype=torch.bool)[torch.arange(n) % k] if y else None, 100)


def posterior(*keys, shape=(6, 5), scale=1.0):
    mu, log_var = scale * torch.randn(2, *shape, generator=generator(*keys), dtype=torch.float64)
    return Posterior(mu, log_var)


def weights(make, b, n=3, latents=5):
    seed_all(0)
    m = make(*burgess64(1, latents))
    fit(m, lambda t: b, n, adam(1e-3), 'cpu', cbs=[StopOnNaN()])
    return torch.cat([p.detach().flatten() for p in m.parameters()])


def test_the_methods_are_found():
    found = discover('disent_nb.methods', lambda o: isinstance(o, type) and issubclass(o, VAE))
    for m in every:
        assert f'{m.__module__}.{m.__name__}' in found


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.floats(-3, 3), st.floats(-3, 2)), min_size=1, max_size=5))
def test_the_product_is_the_integral(params):
    grid = torch.linspace(-40, 40, 40_001, dtype=torch.float64)
    qs = [
        Posterior(torch.tensor([[m]], dtype=torch.float64), torch.tensor([[v]], dtype=torch.float64)) for m, v in params
    ]
    log = sum(
        q.log_prob(grid[None].T)[:, 0] if len(q) > 1 else torch.distributions.Normal(q.mu[0], q.std[0]).log_prob(grid)
        for q in qs
    )
    density = (log - log.max()).exp()
    density = density / density.sum()
    mean = (density * grid).sum()
    q = gaussian_product(qs)
    assert abs(q.mu.item() - mean) < 1e-6 and math.isclose(
        q.log_var.exp().item(), (density * (grid - mean) ** 2).sum(), rel_tol=1e-4
    )


def test_merging_does_not_depend_on_the_order_and_survives_extremes():
    qs = [posterior(v) for v in range(4)]
    for merge in MERGES.values():
        a, b = merge(qs), merge(qs[::-1])
        assert torch.allclose(a.mu, b.mu) and torch.allclose(a.log_var, b.log_var)
        q = merge(
            [
                Posterior(torch.tensor([[1.0, 2.0]]), torch.tensor([[-200.0, 200.0]])),
                Posterior(torch.tensor([[3.0, 4.0]]), torch.tensor([[-200.0, -200.0]])),
            ]
        )
        assert q.mu.isfinite().all() and q.log_var.isfinite().all()
    assert torch.allclose(gaussian_product(qs[:1]).mu, qs[0].mu) and torch.allclose(
        gaussian_mean(qs[:1]).log_var, qs[0].log_var
    )


def test_the_adaptive_threshold():
    p, zero = posterior(0), torch.zeros(1, 4)
    assert (kl_between(p, p) == 0).all() and not adaptive_shared([p, p]).any()
    assert torch.allclose(kl_between(p, Posterior(torch.zeros_like(p.mu), torch.zeros_like(p.mu))), p.kl())
    q = Posterior(torch.tensor([[0.0, 1.0, 2.0, 3.0]]), zero)  # KL 0, .5, 2, 4.5; half of the range is 2.25
    assert adaptive_shared([Posterior(zero, zero), q]).tolist() == [[True, True, True, False]]
    q = Posterior(torch.tensor([[0.0, 1.0, 2.2, 3.0]]), zero)
    assert adaptive_shared([Posterior(zero, zero), q]).tolist() == [[True, True, False, False]]
    with pytest.raises(ValueError, match='3 views'):
        adaptive_shared([p, p, p])


def test_latents_follow_the_factors_that_vary():
    sizes, b = (1, 3, 6, 40), pair(4, 4)
    assert (
        varying_columns(sizes) == (1, 2, 3)
        and torch.equal(change_mask(b, 3, varying_columns(sizes)), b.y[:, 1:])
        and torch.equal(change_mask(b, 7), b.y)
    )
    m = GVAE(*burgess64(1, 5), factors=varying_columns(sizes))
    shared = m.shared([m.encode(x) for x in b.xs], b)
    assert torch.equal(shared[:, :3], ~b.y[:, 1:]) and shared[:, 3:].all()
    assert not GVAE(*burgess64(1, 5), factors=(1, 2, 3), unassigned='private').shared(None, b)[:, 3:].any()
    assert GVAE(*burgess64(1, 5), factors=(2, 2, 2)).shared(None, b)[:, :3].sum(1).tolist() == [
        3,
        3,
        0,
        3,
    ]  # content of three latents
    with pytest.raises(ValueError, match='4 for 3 latents'):
        change_mask(b, 3)
    for bad in ((), (4,), (-1,), (1.5,)):
        with pytest.raises(ValueError, match='factors'):
            change_mask(b, 5, bad)


@pytest.mark.parametrize('make', every)
def test_limits_are_plain_vaes(make):
    b, alone = pair(), Batch((images(4, 1),), None)
    if make in (MLVAE, GVAE):
        apart = Batch(b.xs, torch.ones(4, 5).bool())
        assert torch.equal(weights(make, apart), weights(VAE, apart)) and torch.equal(
            weights(make, alone), weights(VAE, alone)
        )
    else:
        m = make(*burgess64(1, 5))
        with pytest.raises(ValueError, match='1 views'):
            m.loss(alone, 0)
    same = Batch((b.x, b.x), torch.zeros(4, 5).bool())
    if make in (AdaMLVAE, AdaGVAE):
        assert torch.equal(weights(make, same), weights(VAE, same))
    if make is GVAE:
        m = make(*burgess64(1, 5))
        q = m.encode(b.x)
        for merged in m.merge_views([q, q], same):
            torch.testing.assert_close((merged.mu, merged.log_var), (q.mu, q.log_var))
    if make is SVAE:
        assert torch.equal(
            weights(lambda e, d: SVAE(e, d, beta=2.0, weight=0.0), b), weights(lambda e, d: BetaVAE(e, d, 2.0), b)
        )


def test_beta_weighs_the_kl_of_groups():
    b = pair()
    for make in (MLVAE, GVAE, AdaMLVAE, AdaGVAE):
        assert make(*burgess64(1, 5), beta=3.0).loss(b, 0)['kl'][0] == 3.0


@pytest.mark.parametrize('views', [2, 3, 5])
def test_the_kl_of_a_shared_latent_counts_once(views):
    b = Batch(tuple(images(3, v) for v in range(views)), torch.tensor([[0, 1, 1, 0, 0]]).bool().expand(3, -1))
    seed_all(0)
    nets = burgess64(1, 5)
    view, group = (GVAE(*nets, count=c).merge_views([VAE(*nets).encode(x) for x in b.xs], b) for c in ('view', 'group'))
    for p, q in zip(view, group):
        assert (
            torch.equal(p.mu, q.mu)
            and torch.equal(p.kl()[:, 1:3], q.kl()[:, 1:3])
            and torch.allclose(p.kl()[:, [0, 3, 4]], views * q.kl()[:, [0, 3, 4]])
        )
    assert all(torch.equal(view[0].mu[:, 0], q.mu[:, 0]) for q in view) and not torch.equal(
        view[0].mu[:, 1], view[1].mu[:, 1]
    )


def test_the_choice_sends_no_gradient_but_the_merge_does():
    p, q = (
        Posterior(o.mu.clone().requires_grad_(), o.log_var.clone().requires_grad_())
        for o in (posterior(0), posterior(1))
    )
    seed_all(0)
    m = AdaGVAE(*burgess64(1, 5))
    shared = adaptive_shared([p, q])
    m.merge_views([p, q], pair(6))[0].mu.sum().backward()
    assert torch.equal(p.mu.grad, torch.where(shared, 0.5, 1.0).double()) and torch.equal(
        q.mu.grad, torch.where(shared, 0.5, 0.0).double()
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(0, 3), st.integers(0, 10_000))
def test_the_pair_loss_in_loops(n, extra, seed):
    z1, z2 = torch.randn(2, 5, n + extra, generator=generator(seed))
    target = torch.zeros(5, n).bool()
    for i in range(4):
        target[i, i % n] = True  # the last row has no target
    terms = pair_distances(z1, z2, target, margin=1.0)
    for i in range(5):
        d2 = [(z1[i, k] - z2[i, k]).item() ** 2 for k in range(n)]
        assert math.isclose(terms['apart'][i], sum(min(v, 1) for k, v in enumerate(d2) if target[i, k]), abs_tol=1e-5)
        others = [v for k, v in enumerate(d2) if not target[i, k]]
        assert math.isclose(terms['together'][i], sum(others) / max(len(others), 1), rel_tol=1e-4, abs_tol=1e-5)


def test_a_margin_out_of_reach_is_the_literal_form():
    b = pair()
    assert torch.equal(weights(SVAE, b), weights(lambda e, d: SVAE(e, d, margin=1e9), b))
    assert not torch.equal(weights(SVAE, b), weights(lambda e, d: SVAE(e, d, margin=0.5), b))


def test_unassigned_latents_have_no_pair_loss():
    b = pair(4, 5)
    seed_all(0)
    m = SVAE(*burgess64(1, 8), factors=(1, 2, 4))
    target = m.targets([m.encode(x) for x in b.xs], b)
    assert target.shape == (4, 3) and torch.equal(target, b.y[:, [1, 2, 4]])
    z = torch.randn(2, 4, 8, requires_grad=True)
    sum(v.sum() for v in pair_distances(z[0], z[1], target).values()).backward()
    assert (z.grad[:, :, 3:] == 0).all() and (z.grad[:, :, :3] != 0).all()


def test_the_heuristics_look_at_assigned_latents_only():
    q1, q2 = posterior(0, shape=(200, 6)), posterior(1, shape=(200, 6))
    for choose in ('kl_prior', 'kl_pair'):
        m = SVAE(*burgess64(1, 6), choose=choose, assigned=4)
        a = m.targets([q1, q2], Batch((None, None)))
        assert a.shape == (200, 4) and (a.sum(1) == 1).all() and a.any(0).all()
        assert torch.equal(a, m.targets([q2, q1], Batch((None, None))))  # neither image is the first
    spread = Posterior(torch.zeros(1, 6), torch.tensor([[0.0, 0.0, 0.0, 0.0, -9.0, -9.0]]))
    far = Posterior(torch.tensor([[0.0, 1.0, 0.0, 0.0, 0.0, 0.0]]), torch.zeros(1, 6))
    assert SVAE(*burgess64(1, 6), choose='kl_prior').targets([spread, spread], None).long().argmax() == 4
    assert (
        SVAE(*burgess64(1, 6), choose='kl_pair').targets([far, Posterior(-far.mu, far.log_var)], None).long().argmax()
        == 1
    )


def quadratic(sizes, d, beta, w):
    "Lowest eigenvalue of the terms with mu over all pairs of a grid, for the latent of factor d"
    shape, n = tuple(sizes), math.prod(sizes)
    eye, A = torch.eye(n, dtype=torch.float64).view(n, *shape), torch.zeros(n, n, dtype=torch.float64)
    for k, size in enumerate(sizes):
        for step in range(1, size):
            D = (eye - eye.roll(step, k + 1)).view(n, n)
            A += D @ D.T * (-w if k == d else w / (len(sizes) - 1)) / (size - 1) / len(sizes)
    return torch.linalg.eigvalsh(A + beta / 2 * torch.eye(n, dtype=torch.float64))[0].item()


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(2, 5), min_size=2, max_size=3), st.floats(0.5, 8))
def test_the_critical_weight_is_where_the_minimum_ends(sizes, beta):
    limit = critical_weight(sizes, beta)
    lowest = [min(quadratic(sizes, d, beta, w) for d in range(len(sizes))) for w in (0.99 * limit, 1.01 * limit)]
    assert lowest[0] > 0 > lowest[1] and beta / 8 <= limit
    assert critical_weight([*sizes, 1, 1], beta) == limit


def test_bad_batches_and_options_are_refused():
    for make in (MLVAE, GVAE, SVAE):
        with pytest.raises(ValueError, match='tell=True'):
            make(*burgess64(1, 5)).loss(pair(y=False), 0)
        with pytest.raises(ValueError, match='int64'):
            make(*burgess64(1, 5)).loss(Batch(pair().xs, torch.zeros(4, 5).long()), 0)
        with pytest.raises(ValueError, match='4 latents'):
            make(*burgess64(1, 4)).loss(pair(), 0)
    for make in (AdaMLVAE, AdaGVAE):
        make(*burgess64(1, 5)).loss(pair(y=False), 0)  # these need no mask
    for choose in ('kl_prior', 'kl_pair'):
        SVAE(*burgess64(1, 5), choose=choose).loss(pair(y=False), 0)
    with pytest.raises(ValueError, match='3 views'):
        SVAE(*burgess64(1, 5)).loss(Batch(pair().xs + (images(4, 3),), pair().y), 0)
    for name, bad in (
        ('merge', 'sum'),
        ('choose', 'all'),
        ('unassigned', 1),
        ('count', 'once'),
        ('beta', -1),
        ('likelihood', 'poisson'),
    ):
        with pytest.raises(ValueError, match=name):
            GroupVAE(*burgess64(1, 5), **{name: bad})
    for name, bad in (
        ('choose', 'kl'),
        ('weight', -1),
        ('weight', math.nan),
        ('margin', 0),
        ('margin', -1.0),
        ('attraction', -1),
        ('assigned', 6),
        ('assigned', 0),
        ('factors', ()),
        ('factors', range(6)),
    ):
        with pytest.raises(ValueError, match=name):
            SVAE(*burgess64(1, 5), **{name: bad})
    with pytest.raises(ValueError, match='assigned'):
        assigned_latents((0, 1), 3, 'known', 5)


def test_settings_show_in_the_repr():
    nets = burgess64(1, 5)
    texts = {
        repr(m)
        for m in (
            GVAE(*nets),
            GVAE(*nets, factors=(1, 0)),
            GVAE(*nets, count='group'),
            MLVAE(*nets),
            AdaGVAE(*nets),
            SVAE(*nets),
            SVAE(*nets, margin=1.0),
            SVAE(*nets, margin=2.0),
            SVAE(*nets, attraction=5.0),
            SVAE(*nets, assigned=3),
            SVAE(*nets, factors=(1, 2)),
        )
    }
    assert len(texts) == 11
