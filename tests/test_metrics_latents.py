"Scores of single latents, InfoMEC, edits and the summary table: naive ways, known answers, properties, and inputs of every kind."

import math, warnings

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import spearmanr
from sklearn.linear_model import LinearRegression
from sklearn.preprocessing import PolynomialFeatures

from disent_nb.metrics import (
    average_mse_of_others,
    best_disentanglement,
    dci_per_latent,
    dci_scores,
    entropy,
    infomec,
    minimality_sufficiency,
    latent_summary,
    mutual_information,
)
from disent_nb.metrics._best_disentanglement import best_gaps
from disent_nb.metrics._dci_per_latent import polynomial_r2
from disent_nb.metrics._infomec import concentration, in_use
from disent_nb.metrics._latent_summary import kl_per_latent, spearman
from disent_nb.metrics.inputs import is_metric
from disent_nb.metrics.toy import toy_codes, toy_factors
from disent_nb.viz.bars import factor_bars, side_by_side
from disent_nb.viz.heatmaps import importance_heatmap

grid = np.stack(np.meshgrid(range(4), range(5), range(6), indexing='ij'), -1).reshape(-1, 3)
r = np.random.default_rng(0)
v = toy_factors(600, (3, 4, 6))
codes = (v @ r.normal(size=(3, 4)) + r.normal(0, 0.3, (600, 4))).astype(np.float32)


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        yield


@st.composite
def data(draw):
    n, d, k = draw(st.integers(2, 30)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    z = draw(
        arrays(
            float,
            (n, d),
            elements=st.one_of(
                st.floats(-1e3, 1e3), st.integers(-3, 3).map(float), st.sampled_from([1e100, -1e100, 1e-300])
            ),
        )
    )
    f = draw(arrays(np.int64, (n, k), elements=st.integers(-5, 5)))
    f[0] = f[-1] + 1
    f = np.where(f < 0, 2 * f, f)  # no -1, the mark of an unknown label
    return z, f


# ---- polynomial R2 and what is made of it


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 9999), st.integers(10, 60), st.integers(1, 5), st.integers(2, 12))
def test_r2_equals_sklearn(seed, n, degree, different):
    r = np.random.default_rng(seed)
    z, f = r.integers(0, different, (n, 2)) / different, r.normal(size=(n, 3))
    z[:2] = [[0, 0.5], [1, 0]]
    for j, row in enumerate(polynomial_r2(z, f, degree)):
        x = PolynomialFeatures(degree, include_bias=False).fit_transform(z[:, [j]])
        assert np.allclose(row, [LinearRegression().fit(x, y).score(x, y) for y in f.T], atol=1e-6)


@settings(deadline=None, max_examples=80)
@given(data(), st.randoms(use_true_random=False))
def test_r2_of_anything(case, random):
    z, f = case
    r2, s = polynomial_r2(z, f), dci_per_latent(z, f)
    assert (
        ((r2 >= 0) & (r2 <= 1)).all()
        and 0 <= s.disentanglement <= 1
        and 0 <= s.completeness <= 1
        and np.array_equal(s.importance, r2)
    )
    best = best_disentanglement(z, f)
    assert ((best >= 0) & (best <= 1)).all()
    latents, columns = (random.sample(range(n), n) for n in (z.shape[1], f.shape[1]))
    assert np.allclose(polynomial_r2(z[:, latents] * 4, 3 - 2 * f[:, columns]), r2[latents][:, columns], atol=1e-6)
    sp = spearman(z, f)
    assert ((sp >= 0) & (sp <= 1)).all()
    varies = np.flatnonzero(np.ptp(z, axis=0))
    if len(z) > 2:
        assert np.allclose(
            sp[varies], [[abs(spearmanr(z[:, j], y).statistic) for y in f.T] for j in varies] or sp[varies], atol=1e-9
        )


def test_per_latent_known_answers():
    def both(z, f=grid, **options):
        return (lambda s: (s.disentanglement, s.completeness))(dci_per_latent(z, f, **options))

    assert (
        np.allclose(both(grid), 1)
        and both(grid * 0) == (0, 0)
        and np.allclose(both(np.c_[grid, -grid]), (1, 1 - math.log(2, 6)))
    )
    assert np.allclose(both(np.c_[grid[:, 0], grid[:, 1] + grid[:, 2], grid[:, 1] - grid[:, 2]], subset=[0]), 1)
    s = dci_per_latent(codes, v, subset=[1, 2])
    assert (s.disentanglement, s.completeness) == dci_scores(polynomial_r2(codes, v), [1, 2])
    steep = dci_per_latent(grid**3, grid)
    assert steep.disentanglement > 0.999 and (np.diag(steep.importance) < 1 - 1e-6).any()


def test_best_known_answers():
    assert (
        np.allclose(best_disentanglement(np.c_[grid, grid], grid), 1)
        and (best_disentanglement(grid * 0, grid) == 0).all()
    )
    assert np.allclose(best_disentanglement(grid[:, [1]], grid), [0, 1, 0]) and np.allclose(
        best_disentanglement(grid[:, :1], grid[:, :1]), 1
    )
    square = np.stack(np.meshgrid(range(5), range(5)), -1).reshape(-1, 2)
    assert np.allclose(best_disentanglement(square @ [[1, 1], [1, -1]], square), 0)
    assert np.allclose(
        best_disentanglement(square @ [[2, 0], [1, 1]], square, degree=1), [0.6, 1]
    )  # 4/5 - 1/5 of the first latent; the second is v_1


@settings(deadline=None, max_examples=100)
@given(arrays(float, (5, 3), elements=st.floats(0, 1)))
def test_best_gaps_naive(m):
    for k, b in enumerate(best_gaps(m)):
        gaps = [m[j, k] - max(m[j, i] for i in range(3) if i != k) for j in range(5) if m[j, k] == m[j].max()]
        assert np.isclose(b, max(gaps, default=0))


# ---- minimality and sufficiency


def of_both(z, f, **options):
    s = minimality_sufficiency(z, f, **options)
    return np.array([s.minimality, s.sufficiency, s.invariance])


def dependent(rho, n=4000):
    a, free, c = np.random.default_rng(3).integers(0, 5, (3, n))
    return np.c_[a, np.where(np.random.default_rng(4).random(n) < rho, a, free), c]


@pytest.mark.parametrize('rho', [0, 0.5, 0.9])
def test_a_latent_for_each_factor_is_perfect_however_dependent_the_factors(rho):
    f = dependent(rho)
    assert np.allclose(of_both(f[:, [2, 0, 1]] * [1, -2, 0.1], f), 1) and np.allclose(of_both(np.c_[f, 0 * f], f), 1)
    blurred = f + np.random.default_rng(5).normal(0, 0.4, f.shape)
    assert of_both(blurred, f)[2] > 0.97
    both = of_both(5 * f[:, :1] + f[:, 1:2], f[:, :2], bins=25)  # one latent for two factors
    h = [entropy(x[:, None])[0] for x in (f[:, 0], 5 * f[:, 0] + f[:, 1])]
    assert np.allclose(both[[0, 2]], h[0] / h[1], atol=0.02) and np.isclose(both[1], 1)


def test_minimality_sufficiency_known_answers():
    assert np.allclose(of_both(grid, grid), 1) and np.allclose(of_both(grid[:, :1], grid[:, :1]), 1)
    assert (of_both(0 * grid + 2.0, grid) == 0).all() and np.allclose(of_both(np.c_[grid, -grid], grid), 1)
    square = np.stack(np.meshgrid(range(6), range(6)), -1).reshape(-1, 2)
    turned = of_both(square @ [[1, 1], [1, -1]], square)
    assert (turned < 0.3).all()
    assert np.isclose(of_both(grid[:, :2], grid)[1], 2 / 3)  # a factor that no latent knows
    noise = of_both(r.normal(size=(5000, 4)), toy_factors(5000, (3, 4)))
    assert noise.max() < 0.5 and noise[:2].max() < 0.01
    a, b = np.random.default_rng(0).integers(0, 4, (2, 4000))
    nuisance = of_both(np.c_[4 * a + b], np.c_[a], bins=16)  # b is no factor
    assert np.allclose(nuisance, [0.5, 1, 1], atol=0.01)


@settings(deadline=None, max_examples=15)
@given(data(), st.randoms(use_true_random=False))
def test_minimality_sufficiency_of_anything(case, random):
    z, f = case
    s = minimality_sufficiency(z, f)
    for value in (s.minimality, s.sufficiency, s.invariance):
        assert 0 <= value <= 1 and type(value) is float
    assert np.allclose(s.information, mutual_information(z, f))
    latents, columns = (random.sample(range(n), n) for n in (z.shape[1], f.shape[1]))
    assert np.allclose(of_both(z[:, latents], f[:, columns]), of_both(z, f), atol=1e-6)
    assert np.allclose(of_both(np.c_[z, z], f), of_both(z, f), atol=1e-6)


# ---- InfoMEC


def test_infomec_known_answers():
    s = infomec(grid, grid)
    assert np.isclose(s.infom, 1) and np.isclose(s.infoc, 1) and s.infoe > 0.95
    s = infomec(np.c_[grid, grid, 0 * grid], grid)
    assert (
        np.isclose(s.infom, 1)
        and np.isclose(s.infoc, (1 / 2 - 1 / 6) / (5 / 6))
        and s.used.tolist() == [True] * 6 + [False] * 3
    )
    s = infomec(grid * 0.0 + 2, grid)
    assert (s.infom, s.infoe, s.infoc) == (0, 0, 0) and not s.used.any()
    s = infomec(r.normal(size=(2000, 4)), toy_factors(2000, (3, 4)))
    assert s.infoe < 0.02
    assert infomec(grid, grid).infom == infomec(grid, grid[:, ::-1]).infom


@settings(deadline=None, max_examples=40)
@given(data())
def test_infomec_of_anything(case):
    z, f = case
    s = infomec(z, f)
    for value in (s.infom, s.infoe, s.infoc):
        assert 0 <= value <= 1 and isinstance(value, float)
    assert np.allclose(s.information, mutual_information(z, f) / entropy(f)) and np.array_equal(s.used, in_use(z))
    assert np.isclose(s.infoc, concentration(s.information[s.used].T) if s.used.any() else 0)


# ---- edits


def naive(before, after, target):
    n_attributes, total = before.shape[1], []
    for t in sorted(set(target)):
        total.append(
            np.mean(
                [
                    sum((after[i, a] - before[i, a]) ** 2 for a in range(n_attributes) if a != t)
                    for i in range(len(before))
                    if target[i] == t
                ]
            )
        )
    return np.mean(total)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 9999), st.integers(2, 20), st.integers(2, 5))
def test_edits(seed, n, a):
    r = np.random.default_rng(seed)
    before, after, target = r.uniform(size=(n, a)), r.uniform(size=(n, a)), r.integers(0, a, n)
    score = average_mse_of_others(before, after, target)
    assert np.isclose(score, naive(before, after, target)) and 0 <= score <= a - 1
    assert np.isclose(average_mse_of_others(torch.tensor(before), torch.tensor(after), torch.tensor(target)), score)
    only = before.copy()
    only[np.arange(n), target] = after[np.arange(n), target]
    assert average_mse_of_others(before, only, target) == 0 and np.isclose(
        average_mse_of_others(before, 2 * after - before, target), 4 * score
    )
    assert before.max() <= 1 and np.isclose(average_mse_of_others(before, after, 0), naive(before, after, [0] * n))


@pytest.mark.parametrize(
    'change, word',
    [
        (dict(scores_before=codes * np.nan), 'scores_before'),
        (dict(scores_after=codes[1:]), 'scores_after'),
        (dict(scores_after=None), 'scores_after'),
        (dict(target=4), 'target'),
        (dict(target=-1), 'target'),
        (dict(target=0.5), 'target'),
        (dict(target=[0, 1]), 'target'),
        (dict(target=np.full(600, 1.0)), 'target'),
        (dict(scores_before=codes[:, :1], scores_after=codes[:, :1]), 'scores_before'),
    ],
)
def test_bad_edits(change, word):
    with pytest.raises(ValueError, match=f'^{word}: got'):
        average_mse_of_others(**(dict(scores_before=codes, scores_after=codes, target=0) | change))


# ---- the table and its figures


def test_summary():
    log_var = np.full(codes.shape, -2.0)
    t = latent_summary(codes, v, log_var, ['a', 'b', 'c'])
    assert list(t) == ['latent', 'factor', 'kl', 'spearman', 'r2', 'importance'] and len(t) == 12
    m = t.pivot(index='latent', columns='factor')
    assert (
        np.allclose(m.spearman, spearman(codes, v))
        and np.allclose(m.r2, polynomial_r2(codes, v))
        and np.allclose(m.importance.sum(), 1)
    )
    assert np.allclose(m.kl['a'], 0.5 * ((codes.astype(float) ** 2).mean(0) + math.exp(-2) + 2 - 1)) and np.allclose(
        m.kl['a'], kl_per_latent(codes, log_var)
    )
    real = latent_summary(codes, r.normal(size=(600, 2)))  # real-valued factors, no KL
    assert real.kl.isna().all() and np.isfinite(real[['spearman', 'r2', 'importance']]).all(axis=None)
    none = latent_summary(codes * 0, v)
    assert none[['spearman', 'r2', 'importance']].to_numpy().max() == 0
    for table in (t, real, none):
        assert factor_bars(table)._repr_png_()[:4] == b'\x89PNG'
    assert [x.get_text() for x in factor_bars(t).axes[0].texts][:4] == [
        f'z{j}\n{m.kl["a"][j]:.2f} nats' for j in np.argsort(-m.kl['a'])
    ]


def test_heatmap_and_joined_figures():
    fig = importance_heatmap(polynomial_r2(codes, v), list('abc'))
    assert [t.get_text() for t in fig.axes[0].texts] == [f'{x:.2f}' for x in polynomial_r2(codes, v).ravel()]
    both = side_by_side(fig, fig)
    assert both.bbox.width // 1 == 2 * (fig.bbox.width // 1) and both.bbox.height // 1 == fig.bbox.height // 1
    for bad in (-np.eye(2), [[np.nan]], np.eye(2)[0]):
        with pytest.raises(ValueError, match='^importance: got'):
            importance_heatmap(bad)


# ---- inputs


@pytest.mark.parametrize(
    'convert',
    [
        np.asfortranarray,
        np.ndarray.tolist,
        torch.tensor,
        lambda a: np.repeat(a, 2, 1)[:, ::2],
        lambda a: torch.tensor(a).T.contiguous().T,
        lambda a: a.astype(np.float64),
        lambda a: torch.tensor(a, device='cuda') if torch.cuda.is_available() else torch.tensor(a),
        pd.DataFrame,
    ],
)
def test_any_array(convert):
    c, f = convert(codes), convert(v)
    assert np.allclose(best_disentanglement(c, f), best_disentanglement(codes, v)) and np.allclose(
        dci_per_latent(c, f).importance, dci_per_latent(codes, v).importance
    )
    assert np.isclose(infomec(c, f).infom, infomec(codes, v).infom) and np.isclose(average_mse_of_others(c, c, 0), 0)
    assert np.allclose(latent_summary(c, f, model='lasso').spearman, latent_summary(codes, v, model='lasso').spearman)


nan = codes.copy()
nan[3, 1] = np.nan


def test_circles():
    h = np.repeat(np.arange(120), 5)
    turn = 2 * np.pi * h / 120
    z = np.c_[np.cos(turn), np.sin(turn), np.cos(turn + 1)]
    v = np.c_[h, h % 5]
    circle = polynomial_r2(z, v, periods={0: 120})
    assert np.allclose(circle[:, 0], 0.5) and polynomial_r2(z, v)[0, 0] < 0.01
    assert np.array_equal(circle[:, 1], polynomial_r2(z, v)[:, 1])  # other factors stay
    for scaled, period in ((h / 120, 1), (h * 3 - 1000, 360), (turn, 2 * np.pi)):
        assert np.allclose(polynomial_r2(z, scaled[:, None], periods={0: period}), circle[:, :1])
    s = dci_per_latent(z, v, periods={0: 120})
    assert np.array_equal(s.importance, circle) and (s.disentanglement, s.completeness) == dci_scores(circle)
    assert np.allclose(best_disentanglement(z, v, periods={0: 120}), best_gaps(circle))
    start = r.integers(120, size=10)
    noisy = h[:, None] / 50 + r.normal(0, 0.3, (600, 1))
    turned = [polynomial_r2(noisy, ((h + s) % 120)[:, None], periods={0: 120})[0, 0] for s in start]
    assert np.ptp(turned) < 1e-9
    for bad in ({0: 100}, {2: 120}, {'hue': 120}, [120], {0: 1e12}, {0: None}):
        with pytest.raises(ValueError, match='^periods: got'):
            dci_per_latent(z, v, periods=bad)


@pytest.mark.parametrize(
    'f',
    [dci_per_latent, best_disentanglement, polynomial_r2, spearman, latent_summary, infomec, minimality_sufficiency],
)
@pytest.mark.parametrize(
    'c, y, word',
    [
        (nan, v, 'codes'),
        (np.full_like(codes, np.inf), v, 'codes'),
        (codes, v[1:], 'second'),
        (codes[:1], v[:1], 'codes'),
        (codes, v * [1, 0, 1], 'second'),
        (codes[:, 0], v, 'codes'),
        (None, v, 'codes'),
        (codes, v * np.nan, 'second'),
        (codes[:, :0], v, 'codes'),
    ],
)
def test_bad_arrays(f, c, y, word):
    second = 'factors' if f in (infomec, minimality_sufficiency) else 'values'
    with pytest.raises(ValueError, match=f"^{word.replace('second', second)}: got"):
        f(c, y)


@pytest.mark.parametrize(
    'call, word',
    [
        (lambda: dci_per_latent(codes, v, 0), 'degree'),
        (lambda: best_disentanglement(codes, v, 1.5), 'degree'),
        (lambda: dci_per_latent(codes, v, subset=[5]), 'subset'),
        (lambda: infomec(codes, v, 1), 'bins'),
        (lambda: minimality_sufficiency(codes, v, 1), 'bins'),
        (lambda: latent_summary(codes, v, codes[:, :2]), 'log_var'),
        (lambda: latent_summary(codes, v, codes * 0 + 99), 'log_var'),
        (lambda: latent_summary(codes, v, factor_names=['a']), 'factor_names'),
        (lambda: latent_summary(codes, v, model='tree'), 'model'),
    ],
)
def test_bad_options(call, word):
    with pytest.raises(ValueError, match=f'^{word}: got'):
        call()


def test_which_are_metrics():
    assert (
        is_metric(dci_per_latent)
        and is_metric(infomec)
        and is_metric(minimality_sufficiency)
        and not any(map(is_metric, (best_disentanglement, average_mse_of_others, latent_summary)))
    )
