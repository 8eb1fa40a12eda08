"Faults of the metrics that users met, and their relatives: each test says what it guards"

import inspect

import numpy as np
import pandas as pd
import pytest
import torch

import disent_nb.metrics as metrics
from disent_nb.core import generator
from disent_nb.data.table import ImageTable
from disent_nb.metrics import (
    best_disentanglement,
    dci,
    dci_per_latent,
    entropy,
    evaluate,
    explicitness,
    explicitness_per_factor,
    image_ceiling,
    infomec,
    minimality_sufficiency,
    irs,
    latent_summary,
    mig,
    mig_ceiling,
    mig_max,
    mig_sampled,
    modularity,
    mutual_information,
    sap,
    udr,
    z_diff,
    z_min,
    z_min_ceiling,
)
from disent_nb.metrics._evaluate import interval
from disent_nb.metrics.encode import Encoder
from disent_nb.metrics.inputs import split_rows
from disent_nb.metrics.toy import ToyImages, toy_factors, toy_represent
from disent_nb.rendered.boxhead import BoxheadSimple
from disent_nb.rendered.dsprites import ReducedDSprites

pytestmark = pytest.mark.usefixtures('one_thread')

r = np.random.default_rng(0)
START = r.bit_generator.state


@pytest.fixture(autouse=True)
def same_numbers_in_any_order():
    "A test draws the same numbers whichever ran before it"
    r.bit_generator.state = START


whole = toy_factors(120, (3, 4))
codes = whole + r.normal(0, 0.1, whole.shape)

OF_CLASSES = dict(
    mig=mig,
    mig_sampled=lambda z, v: mig_sampled(z, 0 * np.asarray(z), v, 50),
    mutual_information=mutual_information,
    entropy=lambda z, v: entropy(v).mean(),
    mig_max=lambda z, v: mig_max(v),
    dci=lambda z, v: dci(z, v).disentanglement,
    sap=sap,
    modularity=modularity,
    active=lambda z, v: modularity(z, v, active_only=True),
    explicitness=explicitness,
    irs=irs,
    infomec=lambda z, v: infomec(z, v).infom,
    invariance=lambda z, v: minimality_sufficiency(z, v).invariance,
)
OF_NUMBERS = dict(
    sap=lambda z, v: sap(z, v, kind='r2'),
    lasso=lambda z, v: dci(z, v, model='lasso').disentanglement,
    per_latent=lambda z, v: dci_per_latent(z, v).disentanglement,
    best=lambda z, v: best_disentanglement(z, v).min(),
)


# ---- factors that are no classes


@pytest.mark.parametrize('name', OF_CLASSES)
def test_real_valued_factors_are_refused_by_name(name):
    "Noise of 1e-9 on the factors of a perfect code gave MIG 0.00, modularity 0, IRS 1.00"
    f = OF_CLASSES[name]
    for noisy in (whole + 1e-9 * r.normal(size=whole.shape), r.normal(size=whole.shape)):
        for column in (0, 1):
            v = whole.astype(float)
            v[:, column] = noisy[:, column]
            with pytest.raises(ValueError, match=rf'^factors: got .*\[{column}\]'):
                f(codes, v)
            with pytest.raises(ValueError, match=r"^factors: got .*('size'|\[1\])" if column else '^factors: got'):
                f(codes, pd.DataFrame(v, columns=['shape', 'size']))
    twice = np.repeat(noisy, 2, axis=0)
    with pytest.raises(ValueError, match='^factors: got'):
        f(np.repeat(codes, 2, axis=0), twice)  # two views of each scene


@pytest.mark.parametrize('name', OF_CLASSES)
def test_values_of_a_grid_are_classes(name):
    "Numbers that repeat are classes, whatever they are"
    f = OF_CLASSES[name]
    for v in (whole / [2, 3], whole * [0.1, 7] - 0.3, whole * 2.0 - 3):
        assert np.allclose(f(codes, v), f(codes, whole), atol=1e-9)


@pytest.mark.parametrize('name', OF_NUMBERS)
def test_metrics_that_fit_numbers_take_real_values(name):
    angle = r.uniform(-1, 1, (2000, 2))
    assert OF_NUMBERS[name](angle * [2, -3], angle) > 0.9


@pytest.mark.parametrize('name', OF_CLASSES)
def test_the_mark_of_unknown_labels_is_no_class(name):
    "-1 beside 0..V-1 counted as one more class; other negative numbers are classes"
    f = OF_CLASSES[name]
    with pytest.raises(ValueError, match=r"^factors: got -1 beside 0 in column\(s\) \['kind'\].*missing=-1"):
        f(codes, pd.DataFrame(whole - [0, 1], columns=['shape', 'kind']))
    signs = 2 * (whole > 0) - 1
    assert np.allclose(f(codes, signs), f(codes, whole > 0))
    assert np.allclose(f(codes, whole * 2 - 3), f(codes, whole))
    thirds = (whole[:, :1] - 1) / 2  # -0.5, 0, 0.5
    assert np.allclose(f(codes, np.c_[thirds, whole]), f(codes, np.c_[whole[:, :1], whole]))


def test_unknown_labels_of_the_test_part():
    with pytest.raises(ValueError, match='^factors_test: got -1 beside 0'):
        sap(codes, whole, codes, whole - 1)


def test_minus_one_is_a_value_where_numbers_are_asked_for():
    "A regression on -1, 0, 1 is the same as one on 0, 1, 2"
    table, shifted = (latent_summary(codes, whole - s, model='lasso') for s in (1, 0))
    assert np.allclose(table.importance, shifted.importance) and np.allclose(table.r2, shifted.r2)


@pytest.mark.parametrize('name', OF_CLASSES)
@pytest.mark.parametrize(
    'wrap',
    [
        lambda a: np.ma.array(a, mask=np.arange(a.size).reshape(a.shape) == 5),
        lambda a: list(np.ma.array(a, mask=a == a[0])),
    ],
    ids=['array', 'list of rows'],
)
def test_masks_are_not_dropped(name, wrap):
    for z, v, word in ((wrap(codes), whole, 'codes|mu'), (codes, wrap(whole), 'factors')):
        if word == 'factors' or name not in ('entropy', 'mig_max'):
            with pytest.raises(ValueError, match=f'^({word}): got masked entries'):
                OF_CLASSES[name](z, v)
    assert np.isfinite(OF_CLASSES[name](np.ma.array(codes), np.ma.array(whole))).all()


@pytest.mark.parametrize('name', OF_CLASSES)
def test_tables_of_any_kind(name):
    "Mixed and nullable columns are numbers; missing values and texts are an error that names the argument"
    f = OF_CLASSES[name]
    columns = dict(shape=pd.array(whole[:, 0], 'Int64'), lit=whole[:, 1] > 1)
    expected = f(codes, np.c_[whole[:, 0], whole[:, 1] > 1])
    assert np.allclose(f(codes, pd.DataFrame(columns)), expected)
    lacking = pd.DataFrame(dict(columns, shape=pd.array([None, *whole[1:, 0]], 'Int64')))
    texts = pd.DataFrame(dict(columns, shape=np.array(['a', 'b', 'c'])[whole[:, 0]]))
    for bad in (lacking, texts, lacking.astype(object), None, 'abc'):
        with pytest.raises(ValueError, match='^factors: got'):
            f(codes, bad)


def test_photographs_with_real_valued_or_unknown_labels():
    "The same rules for sets that are lists of images, and the same ways out"
    images = torch.rand(60, 2, 2, generator=generator(0))
    real = ImageTable(images, dict(size=images[:, 0, 0].numpy(), kind=np.arange(60) % 3))
    unknown = ImageTable(images, dict(kind=np.arange(60) % 3 - 1, other=np.arange(60) % 2))
    options = dict(metrics='mig', bootstrap=0, progress=False)

    def represent(x):
        return x.flatten(1)

    with pytest.raises(ValueError, match="^factors: got 60 different values of 'size'.*factor_bins"):
        evaluate(represent, real, **options)
    with pytest.raises(ValueError, match="^factors: got -1 in 'kind'.*missing=-1"):
        evaluate(represent, unknown, **options)
    table = evaluate(represent, real, factor_bins=dict(size=4), **options)
    assert 'size in 4 intervals' in table.protocol[0] and 0 < table.value[0] < 1
    assert '20 rows with unknown labels left out' in evaluate(represent, unknown, missing=-1, **options).protocol[0]
    with pytest.raises(ValueError, match='^factor_bins: got 4, expected None'):
        evaluate(toy_represent('perfect', (3, 4)), ToyImages((3, 4)), factor_bins=4, **options)


# ---- numbers of any size


@pytest.mark.parametrize('scale', [1.0, 1e6, 1e18, 1e100])
def test_codes_are_not_rounded_to_single_precision(scale):
    "z-diff of a perfect code was 0.29 at scale 1e18; an offset of 1e6 hid small differences"
    ds = ToyImages((3, 4))
    perfect = toy_represent('perfect', (3, 4))
    for f in (z_diff, z_min):
        assert f(lambda x: scale * perfect(x), ds, 300, 200) == 1
        assert f(lambda x: 1e9 + perfect(x), ds, 300, 200) == 1
    assert z_min(lambda x: np.full((len(x), 2), scale / 3), ds, 300, 200) == 0
    assert Encoder(lambda x: perfect(x) + 1e9, ds)(ds.space.all()).dtype == np.float64


def test_udr_refuses_unknown_kl():
    "NaN gave 0"
    for kl in ([[np.nan, 1], [1, 1]], [['a', 'b'], [1, 1]], [[None, 1], [1, 1]], 3, 'ab'):
        with pytest.raises(ValueError, match='^kl: got'):
            udr([codes, codes], kl)
    assert np.allclose(udr([codes, codes], [[1, 1], [1, 1]]), udr([codes, codes]))


def test_the_published_udr_looks_one_way():
    "The published code scores a model by how well others predict it, and does not average both directions"
    mixed = np.c_[codes[:, :1] + codes[:, 1:], r.normal(size=(120, 1))]
    both = metrics.udr_matrix([codes, mixed], kind='lasso')
    one_way = metrics.udr_matrix([codes, mixed], kind='lasso_published')
    assert np.allclose(both, both.T) and not np.allclose(one_way, one_way.T)


# ---- test parts


SPLITTING = [
    name
    for name, f in inspect.getmembers(metrics, inspect.isfunction)
    if 'codes_test' in inspect.signature(f).parameters
]
CALLS = dict(
    sap=sap,
    explicitness=explicitness,
    explicitness_per_factor=explicitness_per_factor,
    dci=lambda *a, **k: dci(*a, **k).importance,
)


def test_every_metric_with_a_test_part_splits():
    assert set(SPLITTING) == set(CALLS)


@pytest.mark.parametrize('name', SPLITTING)
def test_a_split_by_hand_gives_the_same_number(name):
    f = CALLS[name]
    scores, codes = [], whole + np.random.default_rng(7).normal(0, 0.7, whole.shape)
    for seed in (0, 5):
        rows, rows_test = split_rows(len(codes), seed)
        assert sorted([*rows, *rows_test]) == list(range(120)) and len(rows_test) == 40
        options = dict(seed=seed) if name == 'dci' else {}  # the trees have one too
        by_hand = f(codes[rows], whole[rows], codes[rows_test], whole[rows_test], **options)
        assert np.array_equal(f(codes, whole, seed=seed), by_hand)
        scores.append(by_hand)
    assert not np.array_equal(*scores)
    assert np.array_equal(f(codes, whole), scores[0])


@pytest.mark.parametrize('name', SPLITTING)
def test_half_a_test_part_is_an_error(name):
    for given, lacking in ((dict(codes_test=codes), 'factors_test'), (dict(factors_test=whole), 'codes_test')):
        with pytest.raises(ValueError, match=f'^{lacking}: got None'):
            CALLS[name](codes, whole, **given)
    with pytest.raises(ValueError, match='^codes: got 3 rows, expected at least 4'):
        CALLS[name](codes[:3], whole[:3])
    with pytest.raises(ValueError, match='^seed: got -1'):
        CALLS[name](codes, whole, seed=-1)
    rare = np.c_[whole[:, :1], np.arange(120) == split_rows(120)[1][0]]
    with pytest.raises(
        ValueError, match=r'^factors: got one value only in the random training part in column\(s\) \[1\]'
    ):
        CALLS[name](codes, rare)


def test_evaluate_splits_as_the_metrics_do():
    table = evaluate(codes=codes, factors=whole, metrics=['sap', 'explicitness'], bootstrap=0, progress=False, seed=3)
    assert table.value[0] == sap(codes, whole, seed=3) and table.value[2] == explicitness(codes, whole, seed=3)


# ---- sets whose factors cannot be held fixed


def no_grid():
    "Six of the nine combinations of two factors, some of them twice"
    y = np.array([[0, 0], [0, 1], [1, 1], [1, 2], [2, 0], [2, 2]] * 5)
    return ImageTable(torch.rand(30, 4, 4, generator=generator(1)), dict(a=y[:, 0], b=y[:, 1]))


@pytest.mark.parametrize('make', [no_grid, lambda: BoxheadSimple(60)], ids=['ImageTable', 'Boxhead'])
def test_sets_that_cannot_hold_a_factor_fixed_have_a_row(make):
    "evaluate with its defaults ended in an AttributeError of z-min"
    ds = make()
    table = evaluate(lambda x: x.flatten(1)[:, :3], ds, n_train=40, n_test=20, bootstrap=2, progress=False)
    by_name = table.set_index('metric')
    for name in ('z_diff', 'z_min'):
        assert by_name.protocol[name].startswith('left out: dataset: got') and np.isnan(by_name.value[name])
    assert by_name.value[['irs', 'infomec']].notna().all()
    for f in (z_diff, z_min):
        with pytest.raises(ValueError, match='^dataset: got'):
            f(lambda x: x.flatten(1)[:, :3], ds)
    with pytest.raises(ValueError, match='^dataset: got'):
        z_min_ceiling(ds)


def test_images_without_factors():
    ds = ImageTable(torch.rand(9, 4, 4, generator=generator(1)))
    for call in (lambda: evaluate(lambda x: x.flatten(1), ds), lambda: image_ceiling(ds), lambda: z_min_ceiling(ds)):
        with pytest.raises(ValueError, match='^(factors: these images have none|dataset: got)'):
            call()


# ---- options that would hang or fill the memory


HUGE = 10**9
ds, perfect = ToyImages((3, 4)), toy_represent('perfect', (3, 4))


@pytest.mark.parametrize(
    'call, word',
    [
        (lambda n: dci_per_latent(codes, whole, degree=n), 'degree'),
        (lambda n: best_disentanglement(codes, whole, degree=n), 'degree'),
        (lambda n: latent_summary(codes, whole, degree=n), 'degree'),
        (lambda n: mig(codes, whole, bins=n), 'bins'),
        (lambda n: mig_max(whole, bins=n), 'bins'),
        (lambda n: mig_ceiling(ds, bins=n), 'bins'),
        (lambda n: image_ceiling(ds, bins=n), 'bins'),
        (lambda n: modularity(codes, whole, bins=n), 'bins'),
        (lambda n: infomec(codes, whole, bins=n), 'bins'),
        (lambda n: mig_sampled(codes, 0 * codes, whole, n_samples=n), 'n_samples'),
        (lambda n: z_diff(perfect, ds, n_train=n), 'n_train'),
        (lambda n: z_diff(perfect, ds, n_test=n), 'n_test'),
        (lambda n: z_min(perfect, ds, batch_size=n), 'batch_size'),
        (lambda n: z_min_ceiling(ds, n_train=n), 'n_train'),
        (lambda n: evaluate(perfect, ds, n_train=n), 'n_train'),
        (lambda n: evaluate(perfect, ds, n_test=n), 'n_test'),
        (lambda n: evaluate(perfect, ds, bootstrap=n), 'bootstrap'),
        (lambda n: evaluate(codes=codes, factors=whole, factor_bins=n), 'factor_bins'),
    ],
)
@pytest.mark.parametrize('n', [HUGE, 10**30, -1, 2.0, True, '3', np.nan])
def test_integers_are_bounded(call, word, n):
    with pytest.raises(ValueError, match=f'^{word}: got'):
        call(n)


@pytest.mark.parametrize(
    'call',
    [
        lambda s: z_diff(perfect, ds, seed=s),
        lambda s: z_min(perfect, ds, seed=s),
        lambda s: z_min_ceiling(ds, seed=s),
        lambda s: dci(codes, whole, codes, whole, model='gbt', seed=s),
        lambda s: mig_sampled(codes, 0 * codes, whole, 50, seed=s),
        lambda s: latent_summary(codes, whole, seed=s),
        lambda s: evaluate(perfect, ds, seed=s),
        lambda s: sap(codes, whole, seed=s),
    ],
)
@pytest.mark.parametrize('seed', [-1, 0.5, None, 'a', True])
def test_seeds_are_called_seed(call, seed):
    "A negative seed was called 'keys', 'random_state' or nothing"
    with pytest.raises(ValueError, match='^seed: got .*expected an integer of at least 0'):
        call(seed)


def test_large_seeds():
    "scikit-learn takes none above 2**32"
    assert dci(codes, whole, codes, whole, model='gbt', seed=2**40).disentanglement > 0.9


# ---- what evaluate says


def test_the_protocol_knows_what_images_show():
    "At most 1.000 was said of the reduced dSprites, where no function of an image reaches more than 0.9"
    options = dict(metrics=['mig', 'sap'], n_train=300, n_test=100, bootstrap=0, progress=False)
    sprites = evaluate(lambda x: x[:, 0, ::16, ::16].flatten(1), ReducedDSprites(), **options)
    assert 'at most 0.900 can be reached from these images' in sprites.protocol[0]
    assert not sprites.protocol[1:].str.contains('at most').any()
    arrays = evaluate(codes=codes, factors=whole, **options)
    assert 'at most 1.000 by the factors alone; images may show less' in arrays.protocol[0]


def test_the_protocol_says_that_dci_grows():
    options = dict(metrics=['dci', 'mig'], n_train=80, n_test=40, progress=False)
    table = evaluate(codes=codes, factors=whole, bootstrap=3, **options)
    caveat = table.protocol.str.contains('grows with the number of rows')
    grows = table.variant.str.startswith(('disentanglement', 'completeness'))
    assert (caveat == grows).all() and grows.sum() == 2
    assert table.protocol[grows].str.contains(r'2 x score - mean of the halves: [01]\.\d{3}').all()
    without = evaluate(codes=codes, factors=whole, bootstrap=0, **options)
    assert (without.protocol.str.contains('grows with the number of rows') == grows).all()


def test_intervals_stay_in_the_range_of_the_score():
    assert interval(0.99, [0.9, 1.0, 0.97])[1] == 1 and interval(0.01, [0.0, 0.1, 0.03])[0] == 0
    assert interval(1.0, [1.0 + 1e-12, 0.9])[1] == 1  # rounding
    assert interval(1.2, [0.1, 0.9])[0] < -1 and interval(1.2, [0.1, 0.9])[1] > 2  # a score without a known range
    low, high = interval(0.0, [-0.9, 0.9, 0.5])
    assert low == -1 and high == 1  # scaled explicitness


def test_all_intervals_of_evaluate_stay_in_range():
    weak = toy_represent('noise', (3, 4))
    for name in ('perfect', 'noise', 'constant'):
        represent = weak if name == 'noise' else toy_represent(name, (3, 4))
        table = evaluate(represent, ds, n_train=40, n_test=20, bootstrap=4, progress=False)
        done = table[table.ci_low.notna()]
        scaled = done.variant.str.contains('scaled=True')
        assert (done.ci_low >= np.where(scaled, -1, 0)).all() and (done.ci_high <= 1).all()
        assert (done.ci_low <= done.value).all() and (done.value <= done.ci_high).all()
        assert {'z_diff', 'z_min', 'dci', 'sap'} <= set(done.metric)


@pytest.mark.parametrize('metric', [sap, dci, explicitness])
def test_noise_on_the_factors_of_the_test_part_is_noticed(metric):
    r = np.random.default_rng(0)
    z, f = r.normal(size=(200, 3)), r.integers(0, 4, (200, 2)) / 4
    with pytest.raises(ValueError, match='factors_test'):
        metric(z, f, z, f + r.normal(0, 1e-9, f.shape))
    assert metric(z, f, z, f) is not None


def test_real_values_that_occur_twice_are_no_classes():
    v = np.repeat(np.random.default_rng(0).normal(size=(50, 2)), 2, axis=0)
    for metric in (sap, dci, explicitness):
        with pytest.raises(ValueError, match='factors'):
            metric(v, v, v, v)


def test_values_that_floats_can_hardly_tell_apart():
    r = np.random.default_rng(0)
    z, f = r.normal(size=(60, 2)), r.choice([0, 1e-300, 1e100], (60, 1))
    assert np.isfinite(dci(z, f, z, f, model='lasso').disentanglement)


def test_nothing_that_is_given_is_dropped():
    x = torch.rand(40, 1, 8, 8)
    labels = np.c_[np.arange(40) % 3, np.arange(40) % 4]
    with pytest.raises(ValueError, match='codes'):
        evaluate(lambda x: x.flatten(1)[:, :3], x, codes=np.zeros((7, 7)), factors=labels)


def test_the_mark_of_unknown_labels_may_be_a_text():
    r = np.random.default_rng(0)
    codes = r.normal(size=(60, 2))
    factors = pd.DataFrame(dict(a=np.array(['-1', '0', '1'])[np.arange(60) % 3], b=np.arange(60) % 4))
    table = evaluate(codes=codes, factors=factors, missing=-1, metrics='mig', bootstrap=0, progress=False)
    assert '20 rows with unknown labels left out' in table.protocol[0]
