"Mutual information and its gap: the reference implementation's numbers, properties, and inputs of every kind."

import math
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from references.read import representation, scores
from sklearn.metrics import mutual_info_score

import disent_nb.metrics
from disent_nb.core import discover
from disent_nb.metrics import (
    entropy,
    mig,
    mig_max,
    mig_per_factor,
    mig_sampled,
    mutual_information,
    mutual_information_sampled,
)
from disent_nb.metrics.inputs import check_codes, is_metric

# disentanglement_lib's values: 20 bins, the first 3,000 rows of each representation
published = dict(
    axis_0=0.9882754588022487, mixed_1=0.4838691370956284, rotated_2=0.08580374216252414, split_3=0.22884884942611872
)


@pytest.mark.parametrize('name', published)
def test_reference(name):
    r = representation(name)
    assert abs(mig(r.codes, r.factors) - published[name]) < 1e-9
    assert np.allclose(mutual_information(r.codes, r.factors), r.mutual_information, atol=1e-9)
    assert scores[name]['mig'] == published[name]


# ---- properties


@st.composite
def data(draw, min_rows=2):
    "Codes of any range, with ties and constant columns, and factors with at least two values each"
    n, d, k = draw(st.integers(min_rows, 40)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    floats = st.one_of(
        st.floats(-1e6, 1e6, width=64), st.integers(-3, 3).map(float), st.sampled_from([1e-300, 1e100, -1e100, 0.0])
    )
    codes = draw(arrays(np.float64, (n, d), elements=floats))
    factors = draw(arrays(np.int64, (n, k), elements=st.integers(-5, 5)))
    factors[0] = factors[-1] + 1
    factors = np.where(factors < 0, 2 * factors, factors)  # no -1, the mark of an unknown label
    return codes, factors, draw(st.integers(2, 30))


def naive(codes, factors, bins):
    exponent = np.frexp(abs(codes).max(0))[1]
    codes = np.ldexp(codes, -np.minimum(exponent, 0))  # numpy's edges of the smallest floats coincide
    return np.array(
        [[mutual_info_score(v, np.digitize(z, np.histogram(z, bins)[1][:-1])) for v in factors.T] for z in codes.T]
    )


@settings(deadline=None, max_examples=150)
@given(data())
def test_equals_sklearn(case):
    codes, factors, bins = case
    mi = mutual_information(codes, factors, bins)
    try:
        expected = naive(codes, factors, bins)
    except ValueError as e:  # numpy refuses bins narrower than it can tell apart
        assert 'Too many bins' in str(e)
    else:
        assert np.allclose(mi, np.maximum(expected, 0), atol=1e-9)
    assert (
        np.isfinite(mi).all() and (mi >= 0).all() and (mi <= np.minimum(entropy(factors), math.log(bins)) + 1e-9).all()
    )


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('unit', [5e-324, 1e-310, 1.0, 1e148])
def test_the_smallest_and_largest_codes(unit):
    codes, factors = np.array([[0.0], [5], [9], [16]]) * unit, np.array([[0], [1], [2], [3]])
    assert np.allclose(mutual_information(codes, factors, 4), math.log(4))
    assert np.allclose(mutual_information(codes - 8 * unit, factors, 2), math.log(2))


@settings(deadline=None, max_examples=100)
@given(data(), st.randoms(use_true_random=False))
@example((np.array([[0.0], [5e-324]]), np.array([[1], [0]]), 2), Random(0))
def test_invariances(case, random):
    codes, factors, bins = case
    score = mig_per_factor(codes, factors, bins)
    assert (score >= 0).all() and -1e-9 <= mig(codes, factors, bins) <= mig_max(factors, bins) + 1e-9

    def close(c, f, expected=score):
        assert np.allclose(mig_per_factor(c, f, bins), expected, atol=1e-9)

    rows, latents, columns = (random.sample(range(n), n) for n in (len(codes), codes.shape[1], factors.shape[1]))
    close(codes[rows], factors[rows])
    close(codes[:, latents], factors)
    close(codes, factors[:, columns], score[columns])
    close(codes * 4, factors)  # a power of two moves no edge by rounding
    close(codes, 7 - 3 * factors)  # other numbers for the same values
    close(np.tile(codes, (3, 1)), np.tile(factors, (3, 1)))
    close(np.c_[codes, np.full(len(codes), 2.5)], factors)  # an empty latent
    close(np.c_[codes, codes], factors, 0)  # a copy of each latent


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(2, 7), min_size=1, max_size=3), st.integers(7, 40))
def test_perfect_code(sizes, bins):
    factors = np.stack(np.meshgrid(*map(range, sizes), indexing='ij'), -1).reshape(-1, len(sizes))
    assert np.isclose(mig(factors, factors, bins), 1) and mig_max(factors, bins) == 1
    assert mig(np.ones_like(factors), factors, bins) == 0


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(2, 30), st.integers(1, 3))
def test_sampled_bounds(seed, n, d):
    r = np.random.default_rng(seed)
    mu, log_var, factors = r.normal(size=(n, d)) * 3, r.uniform(-8, 2, (n, d)), r.integers(0, 4, (n, 2))
    factors[0] = factors[-1] + 1
    mi = mutual_information_sampled(mu, log_var, factors, n * 40, seed)  # each row equally often
    assert mi.shape == (d, 2) and np.isfinite(mi).all() and (mi >= 0).all() and (mi <= entropy(factors) + 1e-6).all()
    assert np.array_equal(mi, mutual_information_sampled(mu, log_var, factors, n * 40, seed))


# ---- the sampled estimator against an integral, with several images per value and posteriors of unequal width


def test_sampled_converges():
    r = np.random.default_rng(0)
    v, mu, sigma = np.repeat([0, 1, 1, 2], 3)[:, None], r.normal(size=(12, 1)) * 2, r.uniform(0.2, 1.5, (12, 1))
    z = np.linspace(-15, 15, 60_001)
    q = np.exp(-0.5 * ((z - mu) / sigma) ** 2) / sigma / math.sqrt(2 * math.pi)
    joint = np.stack([q[v[:, 0] == k].sum(0) / 12 for k in range(3)])  # p(z, v)
    exact = (
        joint
        * np.log(np.maximum(joint, 1e-300) / (q.mean(0) * joint.sum(1, keepdims=True) * (z[1] - z[0])).clip(1e-300))
    ).sum() * (z[1] - z[0])
    got = mutual_information_sampled(mu, 2 * np.log(sigma), v, 200_000)[0, 0]
    assert abs(got - exact) < 0.006 and 0.1 < exact < 1


def test_sampled_sees_width_and_binned_does_not():
    factors = np.stack(np.meshgrid(range(5), range(6)), -1).reshape(-1, 2)
    sharp, wide = np.full((30, 2), -8.0), np.full((30, 2), 3.0)
    assert np.isclose(mig_sampled(factors, sharp, factors, 3000), 1) and mig_sampled(factors, wide, factors, 3000) < 0.2
    faint = np.c_[factors, factors * 1e-3]
    assert mig(faint, factors) == 0 and mig_sampled(faint, np.c_[sharp, 0 * sharp], factors, 3000) > 0.99


@pytest.mark.parametrize('log_var', [-50.0, 50.0])
def test_sampled_extreme_variances(log_var):
    factors = np.stack(np.meshgrid(range(5), range(6)), -1).reshape(-1, 2)
    mixed = np.full((30, 2), log_var)
    mixed[::2] = -log_var
    for v in (mixed, mixed * 0 + log_var):
        assert np.isfinite(mutual_information_sampled(factors * 1e3, v, factors, 300)).all()


# ---- inputs

r = np.random.default_rng(0)
factors = r.integers(0, 4, (300, 3))
codes = (factors @ r.normal(size=(3, 5)) + r.normal(0, 0.2, (300, 5))).astype(np.float32)


@pytest.mark.parametrize(
    'convert',
    [
        np.asfortranarray,
        np.ndarray.tolist,
        torch.tensor,
        lambda a: np.repeat(a, 2, 1)[:, ::2],
        lambda a: torch.tensor(a).T.contiguous().T,
        lambda a: torch.tensor(a, device='cuda') if torch.cuda.is_available() else torch.tensor(a),
    ],
)
def test_any_array(convert):
    c, f = convert(codes), convert(factors)
    assert mig(c, f) == mig(codes, factors)
    assert np.allclose(mig_sampled(c, convert(codes * 0), f, 500), mig_sampled(codes, codes * 0, factors, 500))


def test_integer_codes():
    assert mig((codes * 10).astype(int), factors) == mig((codes * 10).astype(int).astype(float), factors)
    assert mig(factors.astype(np.uint8), factors > 1) >= 0


nan, inf = codes.copy(), codes.copy()
nan[3, 1], inf[5, 0] = np.nan, np.inf
one_value = factors.copy()
one_value[:, 2] = 9


@pytest.mark.parametrize(
    'c, f, word',
    [
        (nan, factors, 'codes'),
        (inf, factors, 'codes'),
        (codes, factors[:-1], 'factors'),
        (codes[:1], factors[:1], 'codes'),
        (codes[:0], factors[:0], 'codes'),
        (codes, one_value, 'factors'),
        (codes, factors * np.nan, 'factors'),
        (codes[:, 0], factors, 'codes'),
        (codes, factors[:, 0], 'factors'),
        (codes[:, :0], factors, 'codes'),
        (codes.astype(str), factors, 'codes'),
        (None, factors, 'codes'),
        (codes, [[1], [2, 3]], 'factors'),
    ],
)
def test_bad_arrays(c, f, word):
    for metric in (mig, mutual_information, mig_per_factor, check_codes):
        with pytest.raises(ValueError, match=f'^{word}: got'):
            metric(c, f)
    with pytest.raises(ValueError, match=f"^{word.replace('codes', 'mu')}: got"):
        mig_sampled(c, codes * 0, f)


@pytest.mark.parametrize(
    'call, word',
    [
        (lambda: mig(codes, factors, bins=1), 'bins'),
        (lambda: mig(codes, factors, bins=2.5), 'bins'),
        (lambda: mig_max(factors, 0), 'bins'),
        (lambda: mig_sampled(codes, codes[:, :2], factors), 'log_var'),
        (lambda: mig_sampled(codes, nan, factors), 'log_var'),
        (lambda: mig_sampled(codes, codes * 0 + 99, factors), 'log_var'),
        (lambda: mig_sampled(codes, codes * 0, factors, 0), 'n_samples'),
    ],
)
def test_bad_options(call, word):
    with pytest.raises(ValueError, match=f'^{word}: got'):
        call()


# ---- the package


def test_package_gathers_its_modules():
    found = discover('disent_nb.metrics', lambda o: True)
    by_name = {p.rpartition('.')[2]: o for p, o in found.items()}
    assert len(by_name) == len(found)
    offered = disent_nb.metrics.__all__
    assert all(getattr(disent_nb.metrics, n) is by_name[n] for n in offered)
    assert {n for n, o in by_name.items() if '._' in o.__module__} <= set(offered) and len(offered) < 40
    metrics = [p for p, o in found.items() if is_metric(o)]
    assert {'disent_nb.metrics.mig', 'disent_nb.metrics.mig_sampled'} <= set(metrics)
    assert 'disent_nb.metrics._mig.mig_max' not in metrics
