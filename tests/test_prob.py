"prob: properties over random inputs, agreement with torch.distributions, gradients, and the KL decomposition against exact mixtures"

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import distributions as D

from disent_nb.core import fails, generator
from disent_nb.prob import (
    LIKELIHOODS,
    Posterior,
    bernoulli_nll,
    exact_kl_decomposition,
    gaussian_log_prob,
    gaussian_nll,
    kl_decomposition,
    kl_parts,
    likelihood,
    mixture_log_prob,
    mixture_log_weights,
    pairwise_log_prob,
)

ESTIMATORS = 'weighted', 'stratified'
close = torch.testing.assert_close
few = settings(max_examples=40, deadline=None)
seeds, batches, latents, dtypes = (
    st.integers(0, 10**6),
    st.integers(2, 12),
    st.integers(1, 6),
    st.sampled_from([torch.float32, torch.float64]),
)


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=generator(seed, *shape), dtype=torch.float64).to(dtype)


def posterior(n, d, seed=0, dtype=torch.float32, shift=-1.0):
    "A random posterior and one sample of each row"
    q = Posterior(randn(n, d, seed=seed, dtype=dtype), 0.7 * randn(n, d, seed=seed + 1, dtype=dtype) + shift)
    return q, q.sample(randn(n, d, seed=seed + 2, dtype=dtype))


def log_ratio(q, z):
    return (q.log_prob(z) - D.Normal(0.0, 1.0).log_prob(z)).sum(1)


# Posterior


@few
@given(seeds, batches, latents, dtypes, st.floats(0, 4))
def test_posterior_is_torchs_normal(seed, b, d, dtype, scale):
    q = Posterior(scale * randn(b, d, seed=seed, dtype=dtype), scale * randn(b, d, seed=seed + 1, dtype=dtype))
    ref, eps = D.Normal(q.mu, q.std), randn(b, d, seed=seed + 2, dtype=dtype)
    z = q.sample(eps)
    close(z, ref.loc + ref.scale * eps)
    close(q.log_prob(z), ref.log_prob(z), rtol=1e-4, atol=1e-4)
    close(
        q.kl(),
        D.kl_divergence(ref, D.Normal(torch.zeros((), dtype=dtype), torch.ones((), dtype=dtype))),
        rtol=1e-4,
        atol=1e-5,
    )
    assert q.kl().dtype == z.dtype == q.std.dtype == dtype and len(q) == b


@few
@given(st.floats(-5, 5, width=32), st.floats(-10, 10, width=32))
def test_kl_is_positive_unless_standard(mu, log_var):
    kl = Posterior(torch.tensor([[mu]]), torch.tensor([[log_var]])).kl().item()
    assert kl >= 0
    if abs(mu) > 1e-6 or abs(log_var) > 1e-3:
        assert kl > 0


def test_kl_is_zero_at_the_prior_and_keeps_its_digits_near_it():
    assert Posterior(torch.zeros(2, 3), torch.zeros(2, 3)).kl().abs().max() == 0
    small = torch.logspace(-4, -2, 20)[:, None]
    exact = (small.double().expm1() - small.double()) / 2
    close(Posterior(torch.zeros(20, 1), small).kl().double(), exact, rtol=5e-3, atol=0)


def test_posterior_promotes_half_precision_and_indexes():
    q = Posterior(randn(5, 3).bfloat16(), randn(5, 3, seed=1).half())
    assert q.mu.dtype == q.log_var.dtype == q.sample().dtype == q.log_prob(q.sample().bfloat16()).dtype == torch.float32
    part = q[torch.tensor([3, 1])]
    assert torch.equal(part.mu, q.mu[[3, 1]]) and torch.equal(part.log_var, q.log_var[[3, 1]]) and len(q[1:]) == 4
    mu = randn(5, 3).requires_grad_()
    assert Posterior(mu, mu).sample().requires_grad and not Posterior(mu, mu).detach().sample().requires_grad


def test_default_noise_follows_the_global_seed():
    q, _ = posterior(4, 3)
    torch.manual_seed(3)
    a = q.sample()
    torch.manual_seed(3)
    b = q.sample()
    assert torch.equal(a, b) and not torch.equal(a, q.sample())
    many = Posterior(torch.full((1, 200_000), 2.0), torch.full((1, 200_000), 2 * math.log(3))).sample(randn(1, 200_000))
    assert abs(many.mean() - 2) < 0.03 and abs(many.std() - 3) < 0.03


def test_posterior_gradients():
    mu, log_var, eps = (randn(3, 2, seed=k, dtype=torch.float64).requires_grad_() for k in range(3))

    def f(mu, log_var, eps):
        q = Posterior(mu, log_var)
        z = q.sample(eps)
        return z, q.kl(), q.log_prob(z.sin())

    assert torch.autograd.gradcheck(f, (mu, log_var, eps))


def test_reparametrised_gradient_is_the_analytic_one():
    mu, log_var = torch.tensor([[0.7]]).requires_grad_(), torch.tensor([[-0.4]]).requires_grad_()
    q = Posterior(mu.expand(1, 400_000), log_var.expand(1, 400_000))
    g_mu, g_log_var = torch.autograd.grad(
        q.sample(randn(1, 400_000)).sin().mean(), (mu, log_var)
    )  # E sin z = sin(mu) exp(-var/2)
    var = math.exp(-0.4)
    assert abs(g_mu.item() - math.cos(0.7) * math.exp(-var / 2)) < 0.01
    assert abs(g_log_var.item() + 0.5 * var * math.sin(0.7) * math.exp(-var / 2)) < 0.01


# Likelihoods


@few
@given(seeds, st.integers(1, 4), st.sampled_from([1, 3]), dtypes, st.floats(0.1, 3))
def test_likelihoods_are_torchs(seed, b, c, dtype, sigma):
    x_hat, x = 3 * randn(b, c, 5, 4, seed=seed, dtype=dtype), randn(b, c, 5, 4, seed=seed + 1, dtype=dtype).sigmoid()
    close(bernoulli_nll(x_hat, x.round()), -D.Bernoulli(logits=x_hat).log_prob(x.round()).sum((1, 2, 3)))
    close(gaussian_nll(x_hat, x, sigma), -D.Normal(x_hat, sigma).log_prob(x).sum((1, 2, 3)), rtol=1e-4, atol=1e-4)
    p = x_hat.sigmoid()
    close(bernoulli_nll(x_hat, x), -(x * p.log() + (1 - x) * (1 - p).log()).sum((1, 2, 3)), rtol=1e-3, atol=1e-3)
    assert (
        bernoulli_nll(x_hat, x).shape == gaussian_nll(x_hat, x).shape == (b,) and bernoulli_nll(x_hat, x).dtype == dtype
    )


def test_likelihood_minimum_is_at_the_image():
    x = torch.tensor([[[[0.2, 0.5], [0.9, 0.4]]]]).double()
    for name, out in (('bernoulli', x.logit()), ('gaussian', x.clone())):
        lik, out = likelihood(name), out.requires_grad_()
        (g,) = torch.autograd.grad(lik.nll(out, x).sum(), out)
        close(g, torch.zeros_like(g))
        close(lik.mean(out), x)
        assert (lik.nll(out + 0.3, x) > lik.nll(out, x)).all()


def test_likelihood_sums_over_pixels_in_any_layout_and_precision():
    x_hat, x = randn(2, 3, 8, 8), randn(2, 3, 8, 8, seed=1).sigmoid()
    for lik in LIKELIHOODS.values():
        close(lik.nll(x_hat.to(memory_format=torch.channels_last), x), lik.nll(x_hat, x))
        half = lik.nll(x_hat.bfloat16(), x)
        assert half.dtype == torch.float32
        close(half, lik.nll(x_hat.bfloat16().float(), x))
        assert torch.isfinite(lik.nll(1e4 * x_hat, x)).all()


# The bound


def test_elbo_plus_gap_is_the_evidence():
    "Linear decoder, 4 pixels, 2 latents: log p(x), the true posterior and the expectations in the ELBO have closed forms"
    w, x, s = randn(4, 2, dtype=torch.float64), randn(1, 4, seed=1, dtype=torch.float64), 0.6
    log_px = D.MultivariateNormal(torch.zeros(4).double(), w @ w.T + s**2 * torch.eye(4)).log_prob(x)
    cov = torch.linalg.inv(torch.eye(2) + w.T @ w / s**2)
    true = D.MultivariateNormal((cov @ w.T @ x[0] / s**2), cov)
    q = Posterior(randn(1, 2, seed=2, dtype=torch.float64), randn(1, 2, seed=3, dtype=torch.float64) - 1)
    rec = -gaussian_nll(q.mu @ w.T, x, s) - (w**2 @ q.std[0] ** 2).sum() / (2 * s**2)  # E log p(x|z)
    gap = D.kl_divergence(D.MultivariateNormal(q.mu[0], torch.diag(q.std[0] ** 2)), true)
    close(rec - q.kl().sum(1) + gap, log_px)


# The decomposition


@few
@given(seeds, batches, latents, dtypes, st.integers(0, 5000), st.sampled_from(ESTIMATORS))
def test_parts_sum_to_the_kl_sample_whatever_the_estimator(seed, b, d, dtype, more, estimator):
    q, z = posterior(b, d, seed, dtype)
    parts = kl_decomposition(z, q, b + more, estimator)
    assert list(parts) == ['mi', 'tc', 'dwkl'] and all(v.shape == (b,) and v.dtype == dtype for v in parts.values())
    tol = 1e-3 if dtype == torch.float32 else 1e-9
    close(sum(parts.values()), log_ratio(q, z), rtol=tol, atol=tol)
    if estimator == 'stratified':
        assert parts['mi'].max() <= math.log(b + more) + tol  # own weight 1/N
    else:
        assert parts['mi'].max() <= math.log(b * (b + more)) + tol  # own weight 1/(NB)


@few
@given(seeds, batches, latents, st.sampled_from(ESTIMATORS))
def test_order_of_batch_and_latents_does_not_matter(seed, b, d, estimator):
    q, z = posterior(b, d, seed, torch.float64)
    rows, cols = torch.randperm(b, generator=generator(seed, 1)), torch.randperm(d, generator=generator(seed, 2))
    parts = kl_decomposition(z, q, 100, estimator)
    by_row, by_col = (
        kl_decomposition(z[rows], q[rows], 100, estimator),
        kl_decomposition(z[:, cols], Posterior(q.mu[:, cols], q.log_var[:, cols]), 100, estimator),
    )
    for k in parts:
        close(by_row[k], parts[k][rows])
        close(by_col[k], parts[k])


@few
@given(seeds, batches, latents)
def test_whole_set_as_batch_has_known_answers(seed, n, d):
    q, z = posterior(n, d, seed, torch.float64)
    exact, weighted, stratified = (
        exact_kl_decomposition(z, q),
        kl_decomposition(z, q, n, 'weighted'),
        kl_decomposition(z, q, n, 'stratified'),
    )
    for k, shift in dict(mi=1, tc=d - 1, dwkl=-d).items():
        close(stratified[k], exact[k])
        close(weighted[k], exact[k] + shift * math.log(n))


def test_one_latent_has_no_total_correlation():
    q, z = posterior(9, 1)
    for e in ESTIMATORS:
        close(kl_decomposition(z, q, 50, e)['tc'], torch.zeros(9))


def test_exact_decomposition_is_torchs_mixture_in_chunks_of_any_size():
    q, _ = posterior(60, 3, dtype=torch.float64)
    index = torch.randint(60, (25,), generator=generator(5))
    z = q[index].sample(randn(25, 3, dtype=torch.float64))

    def mixture(mu, std):
        return D.MixtureSameFamily(D.Categorical(torch.ones(60).double()), D.Independent(D.Normal(mu, std), 1))

    log_q = mixture(q.mu, q.std).log_prob(z)
    log_q_j = torch.stack(
        [mixture(q.mu[:, j : j + 1], q.std[:, j : j + 1]).log_prob(z[:, j : j + 1]) for j in range(3)], 1
    )
    known = dict(
        mi=q[index].log_prob(z).sum(1) - log_q,
        tc=log_q - log_q_j.sum(1),
        dwkl=log_q_j.sum(1) - D.Normal(0.0, 1.0).log_prob(z).sum(1),
    )
    for size in (1, 180, 400, 10**6):
        parts = exact_kl_decomposition(z, q, index, max_size=size)
        for k in known:
            close(parts[k], known[k])
    for k in known:
        close(exact_kl_decomposition(z, q, index.tolist())[k], known[k])


def test_exact_decomposition_averages_to_the_kl_with_nonnegative_parts():
    q, _ = posterior(50, 3)
    many = torch.arange(50).repeat(400)
    parts = {k: v.mean().item() for k, v in exact_kl_decomposition(q[many].sample(randn(20_000, 3)), q, many).items()}
    assert abs(sum(parts.values()) - q.kl().sum(1).mean().item()) < 0.03
    assert 0 < parts['mi'] < math.log(50) and min(parts.values()) > 0


def product_set():
    "60 images: every combination of three factors, one latent each, and one unused latent; q(z) factorises exactly"
    f = torch.cartesian_prod(torch.linspace(-2, 2, 5), torch.linspace(-1, 1, 4), torch.linspace(-1.5, 1.5, 3))
    return Posterior(torch.cat([f, torch.zeros(60, 1)], 1), torch.tensor([-3.0, -2.5, -3.0, 0.0]).expand(60, 4))


def test_product_set_has_no_total_correlation():
    q = product_set()
    parts = exact_kl_decomposition(q.sample(randn(60, 4)), q)
    close(parts['tc'], torch.zeros(60), atol=1e-4, rtol=0)
    turned = Posterior(q.mu @ torch.linalg.qr(randn(4, 4))[0], q.log_var)
    assert exact_kl_decomposition(turned.sample(randn(60, 4)), turned)['tc'].mean() > 0.1


def test_correlated_gaussian_has_the_total_correlation_of_theory():
    rho = 0.9 * 0.96
    mu = 0.96**0.5 * randn(3000, 2) @ torch.linalg.cholesky(torch.tensor([[1, 0.9], [0.9, 1]])).T
    q = Posterior(mu, torch.full((3000, 2), math.log(0.04)))
    tc = exact_kl_decomposition(q.sample(randn(3000, 2, seed=1)), q)['tc'].mean().item()
    assert abs(tc + 0.5 * math.log(1 - rho**2)) < 0.06


# Estimators against the exact mixture


def estimates(q, z_i, i, estimator, batch, others):
    "Estimate of q(z_i), and of each q(z_ij), from a batch that holds image i in first place"
    rows = torch.tensor([i, *others])
    z = z_i.expand(batch, -1)
    log_q, log_q_j = mixture_log_prob(pairwise_log_prob(z, q[rows]), mixture_log_weights(z, len(q), estimator))
    return torch.cat([log_q[:1], log_q_j[0]]).exp()


def exact_density(q, z_i):
    log_q, log_q_j = mixture_log_prob(
        pairwise_log_prob(z_i[None], q), torch.full((1, len(q)), -math.log(len(q))).to(z_i)
    )
    return torch.cat([log_q, log_q_j[0]]).exp()


@pytest.mark.parametrize('n, b', [(6, 2), (6, 4), (7, 3), (5, 5)])
def test_mean_over_all_batches_is_exact(n, b):
    "Every batch that holds image i: stratified is unbiased to rounding, weighted is low by a known amount"
    q, z = posterior(n, 3, seed=n, dtype=torch.float64)
    for i in range(n):
        subsets = list(itertools.combinations([k for k in range(n) if k != i], b - 1))
        mean = {e: torch.stack([estimates(q, z[i], i, e, b, o) for o in subsets]).mean(0) for e in ESTIMATORS}
        exact, own = exact_density(q, z[i]), torch.cat([q.log_prob(z)[i].sum()[None], q.log_prob(z)[i]]).exp()
        close(mean['stratified'], exact)
        close(mean['weighted'], (own + (b - 1) * (n * exact - own) / (n - 1)) / (n * b))
        assert (mean['weighted'] < exact).all()


def test_stratified_is_unbiased_on_a_larger_set():
    "Random batches of 16 of 300 images, through kl_decomposition: the mean of the estimated density is the exact one within the Monte Carlo error"
    n, b, reps = 300, 16, 3000
    q, z = posterior(n, 2, seed=3, dtype=torch.float64)
    for i in (0, 17, 123):
        exact, draws = exact_density(q, z[i])[0], []
        for r in range(reps):
            rest = torch.randperm(n - 1, generator=generator(i, r))[: b - 1]
            rows = torch.cat([torch.tensor([i]), rest + (rest >= i)])
            zs = torch.cat([z[i : i + 1], z[rows[1:]]])
            mi = kl_decomposition(zs, q[rows], n, 'stratified')['mi'][0]
            draws.append((q.log_prob(z)[i].sum() - mi).exp())
        draws = torch.stack(draws)
        assert abs(draws.mean() - exact) < 4 * draws.std() / reps**0.5
        assert draws.log().mean() < exact.log()  # and its log is low: Jensen


def test_weights_sit_on_the_diagonal_and_sum_to_one():
    w = mixture_log_weights(torch.zeros(5, 2).double(), 80, 'stratified').exp()
    close(w.diag(), torch.full((5,), 1 / 80).double())
    close(w.sum(1), torch.ones(5).double())
    assert torch.equal(w, w.T) and w[0, 1] == w[3, 4]
    close(mixture_log_weights(torch.zeros(5, 2), 80, 'weighted').exp().sum(1), torch.full((5,), 1 / 80))


def test_weighted_constants_leave_the_gradient_alone():
    q, z = posterior(6, 3, dtype=torch.float64)

    def grad(n):
        mu = q.mu.clone().requires_grad_()
        return torch.autograd.grad(kl_decomposition(z, Posterior(mu, q.log_var), n, 'weighted')['tc'].mean(), mu)[0]

    close(grad(6), grad(10**6))


@pytest.mark.parametrize('estimator', ESTIMATORS)
def test_decomposition_gradients(estimator):
    mu, log_var, eps = (randn(4, 2, seed=k, dtype=torch.float64).requires_grad_() for k in range(3))

    def f(mu, log_var, eps):
        q = Posterior(mu, log_var)
        return tuple(kl_decomposition(q.sample(eps), q, 30, estimator).values())

    assert torch.autograd.gradcheck(f, (mu, log_var, eps))
    z = randn(4, 2, seed=7, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z, mu: tuple(kl_decomposition(z, Posterior(mu, log_var.detach()), 30, estimator).values()), (z, mu)
    )


def test_exact_gradient_is_the_stratified_one_of_the_whole_set():
    mu, log_var = (
        randn(12, 3, dtype=torch.float64).requires_grad_(),
        randn(12, 3, seed=1, dtype=torch.float64).requires_grad_(),
    )
    eps = randn(12, 3, seed=2, dtype=torch.float64)

    def grads(f):
        q = Posterior(mu, log_var)
        return torch.autograd.grad(f(q.sample(eps), q)['tc'].mean(), (mu, log_var))

    for a, b in zip(
        grads(lambda z, q: exact_kl_decomposition(z, q, max_size=40)),
        grads(lambda z, q: kl_decomposition(z, q, 12, 'stratified')),
    ):
        close(a, b)


def test_decomposition_stays_finite_for_extreme_posteriors():
    q = Posterior(
        torch.tensor([[-1e3, 0.0], [1e3, 0.0], [0.0, 1e3]]), torch.tensor([[-20.0, 0.0], [-20.0, 5.0], [10.0, -20.0]])
    )
    for e in ESTIMATORS:
        parts = kl_decomposition(q.sample(randn(3, 2)), q, 1000, e)
        assert all(torch.isfinite(v).all() for v in parts.values())


# Bad input


def bad():
    q, z = posterior(4, 3)
    x = torch.rand(2, 1, 4, 4)
    return {
        'vector': (lambda: Posterior(z[0], z[0]), 'mu: got', '(3,)'),
        'not a tensor': (lambda: Posterior(z.numpy(), z), 'mu: got ndarray'),
        'integers': (lambda: Posterior(z.long(), z), 'mu: got', 'int64'),
        'no rows': (lambda: Posterior(z[:0], z[:0]), 'mu: got', '(0, 3)'),
        'two shapes': (lambda: Posterior(z, z[:2]), 'log_var: got', '(2, 3)', '(4, 3)'),
        'eps': (lambda: q.sample(z[:, :2]), 'eps: got', '(4, 2)'),
        'z': (lambda: q.log_prob(z[:1]), 'z: got', '(1, 3)'),
        'x_hat': (lambda: bernoulli_nll(x[:1], x), 'x_hat: got', '(1, 1, 4, 4)'),
        'x is numpy': (lambda: gaussian_nll(x, x.numpy()), 'x: got ndarray'),
        'x is 8 bit': (lambda: bernoulli_nll(x, x.byte()), 'x: got', 'uint8'),
        'x without batch': (lambda: gaussian_nll(x.flatten(), x.flatten()), 'x: got', '(32,)'),
        'x is None': (lambda: gaussian_nll(x, None), 'x: got NoneType'),
        'sigma 0': (lambda: gaussian_nll(x, x, 0), 'sigma: got 0'),
        'sigma NaN': (lambda: gaussian_nll(x, x, float('nan')), 'sigma: got nan'),
        'likelihood': (lambda: likelihood('bernouli'), "'bernouli'", "did you mean 'bernoulli'"),
        'estimator': (lambda: kl_decomposition(z, q, 9, 'stratify'), "'stratify'", "did you mean 'stratified'"),
        'batch above set': (lambda: kl_decomposition(z, q, 3), 'n_data: got 3', '>= the batch size 4'),
        'no n_data': (lambda: kl_decomposition(z, q, None), 'n_data: got None'),
        'fractional n_data': (lambda: kl_decomposition(z, q, 7200.0), 'n_data: got 7200.0'),
        'one stratified': (lambda: kl_decomposition(z[:1], q[:1], 9, 'stratified'), 'at least 2'),
        'z of another batch': (lambda: kl_decomposition(z[:3], q, 9), 'z: got', '(3, 3)'),
        'index too large': (lambda: exact_kl_decomposition(z[:1], q, [4]), 'index: got', '[0,3]'),
        'index negative': (lambda: exact_kl_decomposition(z[:1], q, [-1]), 'index: got'),
        'index is a mask': (lambda: exact_kl_decomposition(z, q, [True] * 4), 'index: got', 'bool'),
        'index empty': (lambda: exact_kl_decomposition(z[:0], q, torch.zeros(0).long()), 'index: got'),
        'index of another length': (lambda: exact_kl_decomposition(z, q, [1, 2]), 'z: got', '(2, 3)'),
    }


@pytest.mark.parametrize('case', list(bad()))
def test_bad_input_is_refused_by_name(case):
    f, *words = bad()[case]
    fails(f, *words)


def test_numpy_integers_and_batches_of_one_are_accepted():
    q, z = posterior(3, 2)
    for k, v in kl_decomposition(z, q, np.int64(9)).items():
        close(v, kl_decomposition(z, q, 9)[k])
    close(kl_decomposition(z[:1], q[:1], 9)['mi'], torch.tensor([math.log(9)]))
    close(gaussian_log_prob(z, q.mu, q.log_var), q.log_prob(z))
    close(sum(kl_parts(q.log_prob(z).sum(1), torch.ones(3), torch.ones(3, 2), z).values()), log_ratio(q, z))
