"DCI: scikit-learn's trees and the reference implementation's matrices, known answers, properties, and inputs of every kind."

import math, warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from references.read import representation, scores
from sklearn.ensemble import GradientBoostingClassifier

from disent_nb.metrics import dci, dci_scores, subset_disentanglement
from disent_nb.metrics._dci import CLASSIFIERS, REGRESSORS, boosted_trees, kept_latents, rank_codes
from disent_nb.metrics.inputs import is_metric
from disent_nb.metrics.toy import toy_codes, toy_factors

models = CLASSIFIERS + REGRESSORS

# disentanglement_lib's values: 3,000 training and 1,500 test rows in the order of the file
published = dict(
    axis_0=(0.9999999993456067, 0.999999998970842, 1.0),
    mixed_1=(0.7303741247030086, 0.6810793623155197, 0.8289333333333333),
    rotated_2=(0.2714473890358818, 0.23064590089241416, 0.5910666666666666),
    split_3=(0.9667339223516238, 0.6812764086132861, 0.9696),
)


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        yield


@pytest.mark.parametrize('name', published)
def test_reference(name):
    r = representation(name)
    s = dci(r.codes, r.factors, r.codes_test, r.factors_test)
    d, c, accuracy = published[name]
    assert abs(s.disentanglement - d) < 0.01
    assert abs(s.completeness - c) < 0.01
    assert abs(s.informativeness_accuracy - accuracy) < 0.02
    assert abs(s.importance - r.dci_importance).max() < 0.03
    stored = [scores[name][f'dci_{k}'] for k in ('disentanglement', 'completeness', 'informativeness_test')]
    assert tuple(stored) == published[name]
    assert np.allclose(dci_scores(r.dci_importance), (d, c), atol=1e-8)


@pytest.mark.parametrize('name', ['mixed_1', 'rotated_2'])
def test_reference_exact(name):
    "scikit-learn's own trees; only the factors with 3 and 6 values, whose columns of the matrix do not depend on the others (all of them take minutes)"
    r = representation(name)
    importance = r.dci_importance[:, :2]
    s = dci(r.codes, r.factors[:, :2], r.codes_test, r.factors_test[:, :2], model='gbt')
    assert abs(s.importance - importance).max() < 0.005
    assert np.allclose(dci_scores(s.importance), dci_scores(importance), atol=0.005)


# ---- LightGBM's trees against scikit-learn's, on codes of many kinds


def kinds(seed, n=500, sizes=(2, 3, 5)):
    r = np.random.default_rng(seed)
    v = np.stack([r.permutation(np.arange(n) % s) for s in sizes], 1)
    u, k = v / sizes, len(sizes)
    mixed = np.c_[u, np.zeros((n, 2))] @ (np.eye(k + 2) + 0.3 * r.normal(size=(k + 2, k + 2))) + r.normal(
        0, 0.1, (n, k + 2)
    )
    yield 'mixed', mixed, v
    yield 'rounded', np.round(4 * mixed), v
    yield 'heavy tails', np.sinh(4 * mixed) + 0.1 * r.standard_cauchy(mixed.shape), v
    yield 'unequal scales', mixed * 10.0 ** np.arange(-4, k - 2) + 3, v
    yield 'curved', np.sin(3 * u @ r.normal(size=(k, 5))) + r.normal(0, 0.05, (n, 5)), v
    yield 'noise', r.normal(size=(n, 4)), v
    yield 'twice', np.c_[u, u] + r.normal(0, 0.1, (n, 2 * k)), v
    rare = np.c_[r.uniform(size=n) < 0.05, r.choice(4, n, p=[0.88, 0.07, 0.03, 0.02])].astype(int)
    yield 'rare classes', np.c_[rare @ r.normal(size=(2, 3)) + r.normal(0, 0.3, (n, 3)), r.normal(size=n)], rare


@pytest.mark.parametrize('name, z, v', list(kinds(0)), ids=[k[0] for k in kinds(0)])
def test_equals_sklearn(name, z, v):
    x, x_test = rank_codes(z, z[:50])
    exact = abs(
        np.stack([GradientBoostingClassifier(random_state=0).fit(x, f).feature_importances_ for f in v.T], 1)
    )  # some are -1e-18
    s = dci(z, v, z[:50], v[:50])
    assert np.allclose(
        (s.disentanglement, s.completeness), dci_scores(exact), atol=0.03
    )  # ties and their seeds: up to .025
    assert abs(s.importance - exact).max() < 0.05


def test_ties_are_shared():
    r = np.random.default_rng(0)
    v = r.integers(0, 4, (800, 2))
    s = dci(np.c_[v, -3 * v], v, v[:, [0, 1, 0, 1]], v)
    assert s.disentanglement > 0.999 and abs(s.completeness - 0.5) < 0.03
    assert np.allclose(dci(np.c_[v, -3 * v], v, v[:, [0, 1, 0, 1]], v, seed=1).importance, s.importance, atol=0.15)


# ---- known answers

v = toy_factors(900, (3, 4, 6))
toys = toy_codes(v)


def score(z, f=v, n=600, **options):
    return dci(z[:n], f[:n], z[n:], f[n:], **options)


@pytest.mark.parametrize('model', models)
def test_known_answers(model):
    s = score(toys['perfect'], model=model)
    assert (
        np.allclose([s.disentanglement, s.completeness, s.informativeness_accuracy], 1, atol=0.01)
        and s.informativeness_error < 0.03
    )
    s = score(toys['constant'], model=model)
    assert s.disentanglement == s.completeness == 0 and (s.importance == 0).all() and s.informativeness_accuracy < 0.4
    assert s.informativeness_error > 0.6
    s = score(toys['merged'], model=model)
    assert np.isfinite([s.disentanglement, s.completeness]).all() and s.importance.shape == (2, 3)


@pytest.mark.parametrize('model', models)
def test_invariances(model):
    v, z = (
        a[:300]
        for a in (
            toy_factors(900, (3, 4, 6)),
            toys['rotated'] + np.random.default_rng(1).normal(0, 0.1, toys['rotated'].shape),
        )
    )

    def score(z, f=v, **options):
        return dci(z[:200], f[:200], z[200:], f[200:], **options)

    s = score(z, model=model)
    for same in (
        score(z[:, [2, 0, 1]], model=model),
        score(z * [1e-9, -1e7, 3] + 1e-9, model=model),
        score(z, v * 3 - 1, model=model),
    ):
        assert np.allclose(
            [same.disentanglement, same.completeness, same.informativeness_accuracy],
            [s.disentanglement, s.completeness, s.informativeness_accuracy],
            atol=0.01,
        )
    if model in CLASSIFIERS:
        assert np.allclose(score(z, v[:, ::-1], model=model).importance[:, ::-1], s.importance)
    assert np.array_equal(score(z, model=model).importance, s.importance)
    if model != 'lasso':
        assert np.allclose(s.importance.sum(0), 1)


def test_subset():
    z = np.c_[toys['perfect'][:, :2], toys['perfect'][:, 2] + 0.5 * toys['perfect'][:, 0], toys['noise']]
    s, part = score(z), score(z, subset=[1, 2])
    assert np.array_equal(part.importance, s.importance) and (part.disentanglement, part.completeness) == dci_scores(
        s.importance, [1, 2]
    )
    assert kept_latents(np.array([[1.0, 2, 3], [3, 2, 1], [2, 1, 1]]), [2]).tolist() == [False, False, False]
    assert kept_latents(np.array([[1.0, 2, 3], [3, 2, 1], [2, 1, 1]]), [1, 2]).tolist() == [True, False, False]
    assert dci_scores(np.eye(3), [1]) == (1, 1) and dci_scores(np.ones((2, 3)), [0]) == (0, 0)
    one_large = np.array([[0, 0.4, 0.3, 0.3], [1, 0, 0, 0]])
    assert kept_latents(one_large, [1], 'max').tolist() == [True, False]
    assert dci_scores(one_large, [1], 'max') == (1, 1) and dci_scores(one_large, [1], 'sum') == (0, 0)
    part = score(z, subset=[1, 2], keep='max')
    assert (part.disentanglement, part.completeness) == dci_scores(s.importance, [1, 2], 'max')


PUBLISHED = dict(np.load(Path(__file__).parent / 'references' / 'boxhead_scores.npz'))
CHILD = [3, 4, 5, 6]


def test_published_scores_of_boxhead():
    "Scores of 140 trained models, as their authors published them"
    found = [subset_disentanglement(m, CHILD, 'max') for m in PUBLISHED['importance']]
    child, overall = np.transpose(found)
    assert len(found) == 140 and (PUBLISHED['child'] == 0).sum() == 16
    assert abs(child - PUBLISHED['child']).max() < 1e-12
    assert abs(overall - PUBLISHED['overall']).max() < 1e-12
    by_sum = [subset_disentanglement(m, CHILD, 'sum')[0] for m in PUBLISHED['importance']]
    assert abs(by_sum - PUBLISHED['child']).max() > 0.1  # the rule matters
    in_another_order = [subset_disentanglement(m, CHILD[::-1], 'max')[0] for m in PUBLISHED['importance']]
    assert np.allclose(in_another_order, PUBLISHED['child'], atol=1e-12)


def entropy_in_base(p, base):
    return -sum(x * math.log(x) for x in p) / math.log(base)


def naive_blocks(m, columns, keep):
    "Row by row"
    others = [k for k in range(m.shape[1]) if k not in columns]
    rule = dict(max=lambda a, b: max(a) >= max(b, default=0), sum=lambda a, b: sum(a) > sum(b))[keep]
    kept = [rule([row[k] for k in columns], [row[k] for k in others]) for row in m]
    scores = []
    for block, rows in ((columns, kept), (others, [not k for k in kept])):
        part = [[row[k] for k in block] for row, wanted in zip(m, rows) if wanted]
        total = sum(map(sum, part))
        score = 0.0
        for row in part:
            p = [(x + 1e-11) / (sum(row) + 1e-11 * len(row)) for x in row]
            score += sum(row) / total * (1 - entropy_in_base(p, max(2, len(row)))) if sum(row) else 0
        scores.append(score)
    return scores


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 5), st.integers(1, 6), st.sampled_from(['max', 'sum']), st.data())
def test_two_blocks_of_any_matrix(d, k, keep, data):
    m = data.draw(arrays(float, (d, k), elements=st.one_of(st.just(0.0), st.just(0.5), st.floats(1e-12, 10))))
    columns = data.draw(st.lists(st.integers(0, k - 1), min_size=1, unique=True))
    found = subset_disentanglement(m, columns, keep)
    assert np.allclose(found, naive_blocks(m, columns, keep), atol=1e-9)
    assert all(type(s) is float and 0 <= s <= 1 + 1e-12 for s in found)
    assert subset_disentanglement(m, range(k), keep)[1] == 0 and subset_disentanglement(0 * m, columns, keep) == (0, 0)


def test_a_block_of_one_column():
    assert subset_disentanglement([[1, 0], [0, 1]], [0]) == (1, 1)
    assert subset_disentanglement([[1], [0]], [0]) == (1, 0)
    assert subset_disentanglement([[0, 1, 1], [0, 1, 1]], [0])[0] == 0
    for bad in (
        dict(keep='mean'),
        dict(columns=[3]),
        dict(columns=[1, 1]),
        dict(columns=[]),
        dict(importance=[[-1, 0]]),
    ):
        arguments = dict(importance=np.eye(3), columns=[1], keep='max') | bad
        with pytest.raises(ValueError, match=f'^{next(iter(bad))}: got'):
            subset_disentanglement(**arguments)


@settings(deadline=None, max_examples=150)
@given(
    st.integers(1, 6).flatmap(
        lambda d: st.integers(1, 5).flatmap(
            lambda k: arrays(float, (d, k), elements=st.one_of(st.just(0.0), st.floats(1e-12, 1e6)))
        )
    ),
    st.randoms(use_true_random=False),
)
def test_scores_of_any_matrix(m, random):
    d, c = dci_scores(m)
    assert 0 <= d <= 1 + 1e-12 and 0 <= c <= 1 + 1e-12
    rows, columns = (random.sample(range(n), n) for n in m.shape)
    assert (
        np.allclose(dci_scores(m[rows][:, columns]), (d, c))
        and np.allclose(dci_scores(m.T), (c, d))
        and np.allclose(dci_scores(4 * m), (d, c))
    )
    assert np.isclose(dci_scores(np.r_[m, 0 * m])[0], d)  # empty latents
    if m.any():
        assert np.isclose(
            dci_scores(np.r_[m, m])[1],
            1 - (1 - c) * math.log(max(2, len(m))) / math.log(2 * len(m)) - (math.log(2) / math.log(2 * len(m))),
            atol=1e-9,
        )


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10_000), st.integers(6, 40), st.integers(1, 3), st.integers(1, 3))
def test_anything_gives_scores(seed, n, d, k):
    r = np.random.default_rng(seed)
    z, f = r.choice([0.0, 1, 1e100, -1e-300, 2.5], (n, d)), r.integers(0, 3, (n, k))
    f[:3] = np.arange(3)[:, None]
    s = dci(z, f, z[:2], f[:2], seed=seed)
    assert (
        0 <= s.disentanglement <= 1
        and 0 <= s.completeness <= 1
        and 0 <= s.informativeness_accuracy <= 1
        and np.isfinite(s.importance).all()
    )


def test_nothing_left_to_split():
    "A code without any relation to the factor: no split gains anything, and no tree has a branch"
    grid = np.stack(np.meshgrid(range(4), range(5), range(3)), -1).reshape(-1, 3)
    for f in (grid[:, :1], grid[:, 2:] > 0):
        weights, guess = boosted_trees(grid[:, 1:2].astype(float), f[:, 0], grid[:6, 1:2].astype(float))
        assert min(abs(weights.sum()), abs(weights.sum() - 1)) < 1e-9 and len(guess) == 6


# ---- inputs

codes = toys['rotated'].astype(np.float32)


@pytest.mark.parametrize(
    'convert',
    [
        np.asfortranarray,
        np.ndarray.tolist,
        torch.tensor,
        lambda a: np.repeat(a, 2, 1)[:, ::2],
        lambda a: torch.tensor(a).T.contiguous().T,
        lambda a: (
            torch.tensor(a, device='cuda')
            if torch.cuda.is_available()
            else torch.tensor(a, requires_grad=a.dtype.kind == 'f')
        ),
    ],
)
def test_any_array(convert):
    a, b = (
        dci(*map(convert, (codes[:200], v[:200], codes[200:], v[200:]))),
        dci(codes[:200], v[:200], codes[200:], v[200:]),
    )
    assert np.array_equal(a.importance, b.importance) and a.informativeness_error == b.informativeness_error


def test_integer_codes_and_classes_that_are_missing():
    assert score(v).disentanglement > 0.999 and score(v.astype(np.uint8), v > 1).informativeness_accuracy > 0.99
    few = v[600:] * [1, 1, 0]  # a test part in which a factor has one value
    assert dci(v[:600], v[:600], few, few).informativeness_accuracy > 0.99
    train = v[:600][v[:600, 2] < 5]  # a test part with a value that the training part lacks
    s = dci(train, train, v[600:], v[600:])
    assert abs(s.informativeness_accuracy - (2 + np.mean(v[600:, 2] < 5)) / 3) < 0.01
    for model in REGRESSORS:
        assert np.isfinite(dci(train, train, few, few, model=model).informativeness_error)


nan = codes.copy()
nan[3, 1] = np.nan


@pytest.mark.parametrize(
    'change, word',
    [
        (dict(codes=nan), 'codes'),
        (dict(codes_test=nan), 'codes_test'),
        (dict(codes_test=np.full_like(codes, np.inf)), 'codes_test'),
        (dict(factors=v[1:]), 'factors'),
        (dict(factors_test=v[1:]), 'factors_test'),
        (dict(codes=codes[:1], factors=v[:1]), 'codes'),
        (dict(factors=v * [1, 0, 1]), 'factors'),
        (dict(codes_test=codes[:, :2]), 'codes_test'),
        (dict(factors_test=v[:, :2]), 'factors_test'),
        (dict(codes=codes[:, 0]), 'codes'),
        (dict(codes=None), 'codes'),
        (dict(model='ligthgbm'), "model.*'lightgbm'"),
        (dict(subset=[3]), 'subset'),
        (dict(subset=[]), 'subset'),
        (dict(subset=[0], keep='mean'), 'keep'),
        (dict(factors=toys['noise'], factors_test=toys['noise']), 'factors.*gbt_regressor'),
    ],
)
def test_bad_input(change, word):
    arguments = dict(codes=codes, factors=v, codes_test=codes, factors_test=v) | change
    with pytest.raises(ValueError, match=f'^{word}'):
        dci(**arguments)


def test_it_is_a_metric():
    assert is_metric(dci)
