"Metrics of arrays and sampling protocols: properties, known answers, inputs of every kind, the evaluation of all of them."

import functools, json, warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.linear_model import LogisticRegression

from disent_nb import metrics
from disent_nb.core import generator
from disent_nb.metrics import (
    Encoder,
    active,
    evaluate,
    explicitness,
    find_metrics,
    irs,
    modularity,
    mig,
    mig_max,
    sap,
    udr,
    udr_matrix,
    z_diff,
    z_min,
)
from disent_nb.metrics._evaluate import interval
from disent_nb.metrics.linear import softmax_regression
from disent_nb.metrics.toy import TOYS, ToyImages, toy_codes, toy_factors, toy_represent


pytestmark = pytest.mark.usefixtures('one_thread')


scores = dict(
    modularity=lambda c, f: modularity(c, f),
    active=lambda c, f: modularity(c, f, active_only=True),
    irs=irs,
    worst=lambda c, f: irs(c, f, 1),
    r2=lambda c, f: sap(c, f, c, f, 'r2'),
    svm=lambda c, f: sap(c, f, c, f),
    explicitness=lambda c, f: explicitness(c, f, c, f),
)
r = np.random.default_rng(0)


# ---- properties


@st.composite
def data(draw, min_rows=4):
    "Codes of any range, with ties and constant columns, and at least two factors with at least two values each"
    n, d, k = draw(st.integers(min_rows, 40)), draw(st.integers(1, 4)), draw(st.integers(2, 3))
    floats = st.one_of(
        st.floats(-1e6, 1e6, width=64), st.integers(-3, 3).map(float), st.sampled_from([1e-300, 1e100, -1e100, 0.0])
    )
    codes = draw(arrays(np.float64, (n, d), elements=floats))
    factors = draw(arrays(np.int64, (n, k), elements=st.integers(-5, 5)))
    factors[0] = factors[-1] + 1
    factors = np.where(factors < 0, 2 * factors, factors)  # no -1, the mark of an unknown label
    return codes, factors


@pytest.mark.filterwarnings('error')
@settings(deadline=None, max_examples=60)
@given(data())
def test_every_score_is_a_finite_number_in_range(case):
    for name, f in scores.items():
        s = f(*case)
        assert type(s) is float and -1e-9 <= s <= 1 + 1e-9, name


@settings(deadline=None, max_examples=60)
@given(data(), st.randoms(use_true_random=False))
def test_invariances(case, random):
    codes, factors = case
    codes = np.where(abs(codes) > 1e6, 0, codes).round(3)
    rows, latents, columns = (random.sample(range(n), n) for n in (len(codes), codes.shape[1], factors.shape[1]))
    for name in ('modularity', 'irs', 'worst', 'r2'):
        f = scores[name]
        same = [
            f(codes[rows], factors[rows]),
            f(codes[:, latents], factors),
            f(codes, factors[:, columns]),
            f(codes * 4, factors),
            f(np.c_[codes, codes], factors),
        ]
        assert np.allclose(same[:4], f(codes, factors), atol=1e-6), name
        if name != 'r2':
            assert np.isclose(same[4], f(codes, factors), atol=1e-6), name  # they look from the latents
        else:
            assert np.isclose(same[4], 0, atol=1e-6)  # a copy closes every gap
    assert np.isclose(irs(np.c_[codes, codes[:, :1] * 0 + 2.5], factors), irs(codes, factors), atol=1e-9)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(2, 6), min_size=2, max_size=3), st.integers(0, 100))
def test_perfect_codes_of_independent_factors(sizes, seed):
    f = np.stack(np.meshgrid(*map(range, sizes), indexing='ij'), -1).reshape(-1, len(sizes))
    z = f * np.random.default_rng(seed).uniform(0.1, 9, len(sizes)) - 3
    for name in ('modularity', 'irs', 'worst', 'r2'):
        assert np.isclose(scores[name](z, f), 1), name
    for name, g in scores.items():
        assert g(0 * z + 1.7, f) == (0.5 if name == 'explicitness' else 0), name
    assert np.allclose(udr([z, -(z[:, ::-1] ** 3), np.exp(z)]), 1)


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 5), st.integers(20, 60), st.integers(0, 1000))
def test_udr_is_symmetric_and_in_range(m, n, seed):
    r = np.random.default_rng(seed)
    models = [r.normal(size=(n, r.integers(1, 5))).round(1) for _ in range(m)]
    pairs = udr_matrix(models)
    assert (
        np.allclose(pairs, pairs.T) and (np.diag(pairs) == 1).all() and (pairs >= 0).all() and (pairs <= 1 + 1e-9).all()
    )
    assert np.allclose(udr(models), udr([-3 * c[:, ::-1] + 1 for c in models]))


@settings(deadline=None, max_examples=12)
@given(
    st.lists(st.integers(1, 5), min_size=2, max_size=4).filter(lambda s: sum(n > 1 for n in s) > 1),
    st.integers(0, 1000),
)
def test_protocols_on_perfect_and_constant_codes(sizes, seed):
    ds, chance = ToyImages(tuple(sizes)), 1 / sum(n > 1 for n in sizes)
    for f in (z_diff, z_min):
        assert f(toy_represent('perfect', sizes), ds, 200, 100, seed=seed) == 1
        assert f(toy_represent('perfect', sizes), ds, 20, 10, seed=seed) == f(
            toy_represent('perfect', sizes), ds, 20, 10, seed=seed
        )
    assert z_min(toy_represent('constant', sizes), ds, 200, 100, seed=seed) == 0
    assert abs(z_diff(toy_represent('constant', sizes), ds, 200, 100, seed=seed) - chance) < 0.25


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 1000), st.integers(2, 6), st.integers(1, 4))
def test_softmax_regression_equals_sklearn(seed, n_classes, d):
    r = np.random.default_rng(seed)
    y = np.r_[np.arange(n_classes), r.integers(0, n_classes, 200)]
    x = r.normal(size=(len(y), d)) + y[:, None] * r.normal(size=d)
    nll = [
        -np.log(np.maximum(p[np.arange(len(y)), y], 1e-30)).mean()
        for p in (
            softmax_regression(x, y, x, n_classes, max_iter=2000),
            LogisticRegression(max_iter=2000, tol=1e-6).fit(x, y).predict_proba(x),
        )
    ]
    assert (
        n_classes == 2 or abs(nll[0] - nll[1]) < 0.005
    )  # two classes: scikit-learn has one weight vector, and half the penalty


# ---- known answers


def test_every_image_is_encoded_once():
    ds, seen = ToyImages((3, 4, 5)), []
    f = toy_represent('rotated', (3, 4, 5))
    encode = Encoder(lambda x: (seen.append(x), f(x))[1], ds)
    once = z_diff(encode, ds, 300, 100), z_min(encode, ds, 300, 100)
    images = torch.cat(seen)
    assert len(images) == len(ds) == len(torch.unique(images, dim=0)) and images.dtype == torch.float32
    assert once == (z_diff(f, ds, 300, 100), z_min(f, ds, 300, 100))


def test_the_prune_threshold_prunes():
    "A latent that depends on one factor, but hardly moves, must not vote"
    ds = ToyImages((4, 6))
    f = lambda x: np.c_[toy_represent('perfect', (4, 6))(x) @ [1, 1], 1e-3 * toy_represent('perfect', (4, 6))(x)]
    assert (
        z_min(f, ds, 500, 300, threshold=0) == 1
        and z_min(f, ds, 500, 300) < 0.7
        and z_min(lambda x: 1e-3 * f(x), ds, 500, 300) == 0
    )


def test_global_random_state_is_left_alone():
    before, torch_before = np.random.get_state(), torch.get_rng_state()
    evaluate(
        toy_represent('noise', (3, 4)),
        ToyImages((3, 4)),
        ['z_diff', 'sap', 'explicitness'],
        60,
        40,
        bootstrap=2,
        progress=False,
    )
    assert all(np.array_equal(a, b) for a, b in zip(before, np.random.get_state())) and torch.equal(
        torch_before, torch.get_rng_state()
    )


def test_active_latents():
    f = toy_factors(1000, (3, 6, 10))
    z = np.c_[f + r.normal(0, 0.5, f.shape), r.normal(size=(1000, 20)), np.ones(1000)]
    assert active(z, f).tolist() == [True] * 3 + [False] * 21


def test_codes_whose_squares_vanish_do_not_hang_the_svm():
    assert 0 <= sap([[0.0], [4e-252]] * 2, [[1, 0], [0, 1]] * 2, [[0.0], [4e-252]], [[1, 0], [0, 1]]) <= 1


@pytest.mark.parametrize('name', TOYS)
def test_one_to_one_codes(name):
    v = toy_factors(500, (5, 6, 7))
    rows = np.c_[v, toy_codes(v)[name].round(9)]
    same = len(np.unique(rows, axis=0)) == len(np.unique(rows[:, 3:], axis=0))
    assert same != (name == 'constant')


# ---- inputs

factors = r.integers(0, 4, (300, 3))
codes = (factors @ r.normal(size=(3, 5)) + r.normal(0, 0.2, (300, 5))).astype(np.float32)


@pytest.mark.parametrize('name', scores)
@pytest.mark.parametrize(
    'convert',
    [
        np.asfortranarray,
        np.ndarray.tolist,
        torch.tensor,
        lambda a: np.repeat(a, 2, 1)[:, ::2],
        lambda a: a.astype(np.float64),
        lambda a: torch.tensor(a, device='cuda') if torch.cuda.is_available() else torch.tensor(a),
    ],
)
def test_any_array(name, convert):
    c, f = convert(codes), convert(factors)
    assert np.isclose(scores[name](c, f), scores[name](codes, factors), atol=1e-9)


@pytest.mark.parametrize('name', scores)
def test_integer_codes_and_other_labels(name):
    z = (codes * 10).astype(int)
    assert scores[name](z, factors) == scores[name](z.astype(float), factors)
    assert np.isclose(scores[name](codes, factors * 7 - 2), scores[name](codes, factors))
    assert np.isfinite(
        scores[name](codes, np.c_[factors[:, 0] > 1, np.arange(300)])
    )  # booleans, and as many values as rows


nan, inf, one_value = codes.copy(), codes.copy(), factors.copy()
nan[3, 1], inf[5, 0], one_value[:, 2] = np.nan, np.inf, 9


@pytest.mark.parametrize('name', scores)
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
        (None, factors, 'codes'),
    ],
)
def test_bad_arrays(name, c, f, word):
    with pytest.raises(ValueError, match=f'^{word}: got'):
        scores[name](c, f)


@pytest.mark.parametrize('f', [sap, lambda *a: sap(*a, kind='r2'), explicitness])
def test_the_test_part(f):
    test, known = codes[:100], factors[:100]
    lacking = known[:, 0] != 2
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for c, v in ((test[lacking], known[lacking]), (test, np.where(known == 1, 8, known))):
            assert 0 <= f(codes, factors, c, v) <= 1  # a class missing, and an unknown one
    for c, v, word in (
        (test[:, :4], known, 'codes_test'),
        (test, known[:, :2], 'factors_test'),
        (test[:-1], known, 'factors_test'),
        (test * np.nan, known, 'codes_test'),
        (test[:1], known[:1], 'codes_test'),
    ):
        with pytest.raises(ValueError, match=f'^{word}: got'):
            f(codes, factors, c, v)


def test_explicitness_needs_two_values_in_the_test_part():
    one = factors[:, 1] == 3
    with pytest.raises(ValueError, match='^factors_test: got column 1'):
        explicitness(codes, factors, codes[one], factors[one])


@pytest.mark.parametrize(
    'call, word',
    [
        (lambda: sap(codes, factors, codes, factors, 'tree'), 'kind'),
        (lambda: irs(codes, factors, 0), 'quantile'),
        (lambda: irs(codes, factors, 99), 'quantile'),
        (lambda: modularity(codes, factors, 1), 'bins'),
        (lambda: modularity(codes, factors[:, :1]), 'factors'),
        (lambda: udr([codes]), 'models'),
        (lambda: udr([codes, codes[:9]]), 'models'),
        (lambda: udr([codes, nan]), r'models\[1\]'),
        (lambda: udr([codes, codes], [[1], [1]]), 'kl'),
        (lambda: udr([codes, codes], kind='x'), 'kind'),
        (lambda: toy_factors(5, (9, 2)), 'sizes'),
        (lambda: z_min(toy_represent('perfect', (3, 3)), ToyImages((3, 3)), batch_size=1), 'batch_size'),
        (lambda: z_diff(toy_represent('perfect', (3, 1)), ToyImages((3, 1))), 'dataset'),
        (lambda: z_diff(lambda x: x[:1, 0, 0], ToyImages((3, 3))), 'represent'),
        (lambda: evaluate(codes, ToyImages((3, 3))), 'represent'),
        (lambda: evaluate(toy_represent('perfect', (3, 3)), ToyImages((3, 3)), n_test=1), 'n_test'),
    ],
)
def test_bad_options(call, word):
    with pytest.raises(ValueError, match=f'^{word}: got'):
        call()


# ---- evaluate


def test_the_interval_covers():
    "Of the mean of 200 numbers the exact interval is known; and 95 of 100 intervals hold the true mean"
    r, hits, widths = np.random.default_rng(1), 0, []
    for _ in range(200):
        x = r.exponential(size=200)
        low, high = interval(x.mean(), [x[r.permutation(200)[:100]].mean() for _ in range(50)])
        hits += low <= 1 <= high
        widths.append((high - low) / (2 * 1.97 * x.std() / 200**0.5))
    assert 0.9 <= hits / 200 <= 0.99 and abs(np.mean(widths) - 1.02) < 0.06


def test_evaluate_finds_every_metric_and_says_what_it_leaves_out(tmp_path):
    ds = ToyImages((3, 4, 1, 5))
    table = evaluate(
        toy_represent('perfect', ds.space.sizes),
        ds,
        n_train=300,
        n_test=150,
        bootstrap=3,
        out=tmp_path / 'scores.json',
        progress=False,
    )
    assert list(table) == ['metric', 'variant', 'value', 'ci_low', 'ci_high', 'seconds', 'protocol'] and set(
        table.metric
    ) == set(find_metrics())
    assert not table.duplicated(['metric', 'variant']).any() and (table.protocol != '').all()
    lacking = table[table.value.isna()]
    assert 'mig_sampled' in set(lacking.metric) and lacking.protocol.str.startswith('left out: ').all()
    stored = json.loads((tmp_path / 'scores.json').read_text())
    assert [s['value'] for s in stored['scores']] == [None if np.isnan(v) else v for v in table.value] and stored[
        'dataset'
    ] == repr(ds)
    one = table.set_index(['metric', 'variant'])
    y = ds.sample(450, generator(0))[:300, [0, 1, 3]].numpy()
    z = (y / [2, 3, 4]).astype(np.float32)
    assert one.value['mig', 'bins=20'] == mig(z, y) and f'{mig_max(y):.3f}' in one.protocol['mig', 'bins=20']
    again = evaluate(toy_represent('perfect', ds.space.sizes), ds, n_train=300, n_test=150, bootstrap=0, progress=False)
    assert np.allclose(again.value, table.value, equal_nan=True) and again[['ci_low', 'ci_high']].isna().all(axis=None)


def test_evaluate_with_posteriors_has_the_sampled_mig():
    f = toy_represent('perfect', (3, 4))
    table = evaluate(
        lambda x: (f(x), torch.full((len(x), 2), -6.0)),
        ToyImages((3, 4)),
        'mig_sampled',
        300,
        100,
        bootstrap=0,
        progress=False,
    )
    assert table.value[0] > 0.9


def test_a_metric_that_refuses_has_a_row_or_raises():
    ds = ToyImages((3, 4))
    lone = lambda x: toy_represent('perfect', (3, 4))(x)[:, :1]
    assert set(evaluate(lone, ds, n_train=100, n_test=50, bootstrap=0, progress=False).metric) == set(find_metrics())
    with pytest.raises(ValueError, match='^mig_sampled: needs mu, log_var'):
        evaluate(lone, ds, ['mig', 'mig_sampled'], 100, 50, bootstrap=0, progress=False)


def own(codes, factors) -> float:
    return float(np.std(codes))


def no_return(codes, factors): ...
def a_pair(codes, factors) -> tuple[float, float]: ...
def other_name(z, factors) -> float: ...
def positional(codes, factors, /) -> float: ...
def unknown_input(codes, labels) -> float: ...
def swapped(factors, codes) -> float: ...
def _private(codes) -> float: ...


NO_METRIC = [
    (no_return, 'no_return: got no return annotation, expected -> float'),
    (a_pair, r'a_pair: got the return annotation tuple\[float, float\], expected float'),
    (other_name, "other_name: got 'z' as its first parameter, expected one of"),
    (positional, "positional: got parameter 'codes', expected parameters that are given by name"),
    (unknown_input, "unknown_input: got parameter 'labels' without a default"),
    (swapped, "swapped: got 'factors' as its first parameter"),
    (_private, "metric: got '_private', expected a public name"),
    (lambda codes: 0.0, 'no return annotation'),
    (functools.partial(own, factors=0), 'metric: got functools.partial.*expected a function'),
    (own(np.eye(2), 0), 'metric: got 0.5, expected a function'),
]


@pytest.mark.parametrize('f, why', NO_METRIC, ids=lambda o: getattr(o, '__name__', None))
def test_a_function_that_is_no_metric_is_refused_with_the_reason(f, why):
    with pytest.raises(ValueError, match=why):
        metrics.check_metric(f)
    ds = ToyImages((3, 4))
    for asked in (f, [f], ['mig', f]):
        with pytest.raises(ValueError, match=why):
            evaluate(toy_represent('perfect', (3, 4)), ds, asked, 50, 50, bootstrap=0, progress=False)


def test_functions_of_the_user_stand_in_the_table():
    ds = ToyImages((3, 4))
    options = dict(n_train=60, n_test=40, bootstrap=3, progress=False)
    table = evaluate(toy_represent('perfect', (3, 4)), ds, ['irs', own, mig], **options)
    assert table.metric.tolist() == ['irs', 'own', 'mig']
    assert (table.ci_low <= table.value).all() and (table.value <= table.ci_high).all()
    y = ds.sample(100, generator(0))[:60].numpy()
    assert np.isclose(table.value[1], (y / [2, 3]).std(), atol=0.02)  # the codes have a little noise
    everything = evaluate(toy_represent('perfect', (3, 4)), ds, ['all', own], 60, 40, bootstrap=0)
    assert set(everything.metric) == {*find_metrics(), 'own'}
    assert everything.set_index('metric').value.isna().idxmax() == 'mig_sampled'


def test_a_name_that_is_taken_is_refused():
    def mig(codes, factors) -> float: ...

    def own_again(codes) -> float: ...

    own_again.__name__ = 'own'
    for asked in (mig, [own, own_again]):
        with pytest.raises(ValueError, match='expected a name that no metric has yet'):
            find_metrics(asked)
    assert find_metrics([own, own]) == dict(own=own)


@pytest.mark.parametrize('result', [None, 'high', (1.0, 2.0), float('nan'), np.ones(2)])
def test_a_metric_that_returns_no_number_says_so(result):
    def wrong(codes) -> float:
        return result

    with pytest.raises(ValueError, match='^wrong: gave .*expected'):
        evaluate(toy_represent('perfect', (3, 4)), ToyImages((3, 4)), wrong, 50, 50, bootstrap=0, progress=False)


def test_shows_a_bar(capsys):
    evaluate(toy_represent('perfect', (3, 4)), ToyImages((3, 4)), ['mig', 'irs'], 50, 50, bootstrap=0)
    out, err = capsys.readouterr()
    assert 'irs' in err and '2/2' in err and out == ''


def test_udr_is_in_the_package():
    assert metrics.udr is udr and 'udr' in metrics.__all__
