"""Every public function of the metrics with arguments of all kinds: a valid answer, or a ValueError that names one

The cases are the same in every run; HYPOTHESIS_PROFILE=explore looks at others each time, and at more (conftest.py).
"""

import dataclasses
import faulthandler
import inspect
import re
import warnings
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st

from disent_nb.core import discover
from disent_nb.data.table import ImageTable
from disent_nb.metrics import mig
from disent_nb.metrics.inputs import is_metric
from disent_nb.metrics.toy import ToyImages, toy_represent

pytestmark = pytest.mark.usefixtures('one_thread')

FUNCTIONS = discover('disent_nb.metrics', inspect.isfunction)
EXAMPLES = settings().max_examples // 4
LIMIT = 120  # seconds that no call may take on the slowest machine

# ---- arguments


def matrix(rows, columns, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, columns))


def classes(rows, columns, seed=0):
    r = np.random.default_rng(seed)
    return np.stack([r.permutation(np.arange(rows) % (2 + k)) for k in range(columns)], 1)


def toy(name):
    return toy_represent(name, (2, 3))


def pair(x):
    z = toy('rotated')(x)
    return z, 0 * z - 2


def variants(a):
    "The same numbers in other clothes, and numbers that are hard"
    return [
        a,
        a.tolist(),
        torch.tensor(a),
        pd.DataFrame(a),
        np.asfortranarray(a),
        a.astype(np.float16),
        np.ma.array(a),
        a * 0 + 1,
        -a,
        a * 10**6,
        a[:, :1],
        np.tile(a[:1], (len(a), 1)),
    ]


HARD = [1e-300, 1e140, 1e-3]
CODES = variants(matrix(24, 3)) + [matrix(24, 3) * s for s in HARD]
FACTORS = [*variants(classes(24, 2)), classes(24, 2) * 7 - 2, classes(24, 2) > 0, classes(24, 1)]
VALUES = [*variants(matrix(24, 2)), *FACTORS, matrix(24, 2) * 1e-300]
SCORES = [np.abs(m) for m in (matrix(3, 2), matrix(1, 2), matrix(4, 1), matrix(3, 2) * 0)]
TESTS = dict(codes_test=[None, matrix(8, 3, 1)], factors_test=[None, classes(8, 2, 1)])
GOOD = dict(
    codes=CODES,
    factors=FACTORS,
    values=VALUES,
    mu=CODES,
    log_var=[matrix(24, 3), matrix(24, 3) * 10, None],
    **TESTS,
    represent=[*map(toy, ('perfect', 'rotated', 'constant')), pair, lambda x: 1e100 * toy('perfect')(x), None],
    dataset=[
        ToyImages((2, 3)),
        ToyImages((3, 2)),
        ImageTable(matrix(9, 4).reshape(9, 2, 2) % 1, classes(9, 2)),
        None,
    ],
    models=[
        [matrix(24, 3), matrix(24, 2, 1)],
        [matrix(24, 3)] * 3,
        (matrix(24, 1), torch.zeros(24, 2)),
        np.ones((2, 5, 3)),
    ],
    kl=[None, [[1, 0, 1], [0.5, 0.5]], [[0] * 3] * 3],
    importance=SCORES,
    mi=SCORES,
    scores_before=[matrix(24, 3), classes(24, 2)],
    scores_after=[matrix(24, 3, 1), classes(24, 2, 1)],
    target=[0, 1, np.arange(24) % 3, torch.arange(24) % 2],
    factor_names=[None, ['a', 'b'], 'ab'],
    subset=[None, [0], [1, 0], np.array([1])],
    columns=[[0], [1, 0], np.array([1])],
    keep=['sum', 'max'],
    periods=[None, {0: 9}, {0: 100, 1: 1e150 / 2}, {}],
    metrics=['mig', ['irs', mig], 'infomec', 'sap'],
    f=[mig, len, 'mig', lambda codes: 1.0],
    o=[mig, len, 'mig'],
    x=CODES,
    kind=['svm', 'r2', 'spearman', 'lasso', 'lasso_published'],
    model=['lightgbm', 'gbt', 'gbt_regressor', 'random_forest', 'lasso'],
    name=['perfect', 'noise'],
    names=[('codes', 'factors')],
    sizes=[(2, 3), [2, 2, 4]],
    n=[24, 4],
    n_train=[20],
    n_test=[10],
    batch_size=[2, 8],
    n_samples=[1, 50],
    bootstrap=[0, 3],
    bins=[2, 20, 1000],
    degree=[1, 4],
    seed=[0, 1, 2**40],
    quantile=[0.5, 1],
    level=[0.05],
    threshold=[0, 0.05],
    out=[''],
    progress=[False],
    factor_bins=[None, 3, {'factor 0': 2}],
    missing=[None, -1, float('nan'), 'x'],
)
STRUCTURED = np.zeros(24, [('a', float), ('b', int)])
MASKED = np.ma.array(matrix(24, 3), mask=matrix(24, 3) > 1)
ODD_NUMBERS = [0, 1, -1, 3, 1.5, np.nan, np.inf, -np.inf, 10**9, 10**30, -(10**30), 1e300, True, False, 1j]
ODD_THINGS = [
    None,
    '',
    'a',
    'constant',
    b'a',
    [],
    (),
    {},
    {'a': [1, 2]},
    object(),
    len,
    int,
    range(3),
    np.datetime64('2020'),
]
ODD_ARRAYS = [
    *variants(matrix(5, 3)),
    classes(5, 2),
    *(np.empty(shape) for shape in ((0,), (0, 3), (3, 0), (1, 3))),
    np.array(3.0),
    matrix(24, 3)[:, 0],
    matrix(24, 3).reshape(24, 3, 1),
    np.where(matrix(24, 3) > 1, np.nan, 1),
    np.where(classes(24, 2) > 0, np.inf, 1),
    np.full((24, 3), 1e200),
    np.full((24, 2), 10**400),
    np.array([['a', 'b']] * 24),
    np.array([[1, None]] * 24),
    np.array([['2020-01-01'] * 2] * 24, 'M8'),
    matrix(24, 3) * 1j,
    matrix(24, 3).astype(np.longdouble),
    STRUCTURED,
    MASKED,
    list(MASKED),
    [[1, 2], [3]],
    [[[1]], 2],
    classes(24, 2) - 1,
    matrix(24, 2),
    classes(24, 2) + 1e-9 * matrix(24, 2),
    torch.eye(24).to_sparse(),
    torch.zeros(24, 3, dtype=torch.complex64),
    torch.ones(24, 3, requires_grad=True),
    torch.ones(24, 3, dtype=torch.bfloat16),
    pd.DataFrame(dict(a=pd.array([1, None] * 12, 'Int64'), b=range(24))),
    pd.DataFrame(dict(a=['x', 'y'] * 12, b=range(24))),
    pd.DataFrame(dict(a=pd.Categorical(['x', 'y'] * 12), b=[True, False] * 12)),
    pd.DataFrame(dict(a=[0.5, 1] * 12, b=[True, False] * 12, c=range(24))),
    pd.Series(range(24)),
]
ODD = ODD_NUMBERS + ODD_THINGS + ODD_ARRAYS
OF_DEVELOPERS = ('name', 'names')  # how errors call an argument; of functions in `inputs`


def is_free(f, name):
    "Whether users choose this argument"
    return name not in OF_DEVELOPERS or not f.__module__.endswith('inputs')


@st.composite
def arguments(draw, f):
    "Arguments of a function by name, in half of the calls one of them odd: what came first is refused first"
    parameters = inspect.signature(f).parameters
    names = [name for name, p in parameters.items() if p.default is p.empty or draw(st.integers(0, 2)) == 0]
    if f.__name__ == 'evaluate':  # it takes one of two pairs
        names = [name for name in names if name not in ('represent', 'dataset', 'codes', 'factors', 'bootstrap')]
        names += ['bootstrap'] + draw(st.sampled_from([['represent', 'dataset'], ['codes', 'factors']]))
    chosen = {name: draw(st.sampled_from(GOOD.get(name, [parameters[name].default]))) for name in names}
    free = [name for name in names if is_free(f, name)]
    if free and draw(st.booleans()):
        chosen[draw(st.sampled_from(free))] = draw(st.sampled_from(ODD))
    return chosen


# ---- answers


def numbers_in(answer):
    "All numbers of an answer, as arrays"
    if dataclasses.is_dataclass(answer) and not isinstance(answer, type):
        answer = vars(answer)
    if isinstance(answer, pd.DataFrame):
        answer = {name: answer[name].to_numpy() for name in answer}
    if isinstance(answer, dict):
        return [a for value in answer.values() for a in numbers_in(value)]
    if isinstance(answer, (tuple, list)):
        return [a for value in answer for a in numbers_in(value)]
    a = np.asarray(answer)
    return [a] if a.dtype.kind in 'fiub' else []


def check_table(table):
    "Of `evaluate`: each row has a score, or says why it has none"
    missing = table.value.isna()
    assert table.protocol[missing].str.startswith('left out: ').all()
    least = np.where(table.variant.str.contains('scaled=True'), -1, 0) - 1e-9  # explicitness below chance
    assert ((table.value >= least) & (table.value <= 1 + 1e-9))[~missing].all()
    assert (table.ci_low >= least)[table.ci_low.notna()].all() and (table.ci_high.dropna() <= 1 + 1e-9).all()


def check_answer(f, answer):
    "Finite numbers, in the range of the scores where there is one"
    if f.__name__ == 'evaluate':
        return check_table(answer)
    if f.__name__ == 'latent_summary':
        answer = answer.drop(columns='kl')  # empty without log-variances
    for a in numbers_in(answer):
        assert np.isfinite(a).all()
    if is_metric(f) and isinstance(answer, float):
        assert -1 - 1e-9 <= answer <= 1 + 1e-9
    if f.__name__ == 'udr':
        assert ((answer >= 0) & (answer <= 1 + 1e-9)).all()


def how_errors_call(chosen):
    "Other names of the arguments: that of a function which is no metric, and those that developers choose"
    f, name = chosen.get('f'), chosen.get('name')
    return [str(getattr(f, '__name__', 'metric')), *([name] if isinstance(name, str) and name else [])]


@contextmanager
def no_hang():
    "Ends the process, also within C, if a call does not end"
    faulthandler.dump_traceback_later(LIMIT, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.mark.parametrize('path', FUNCTIONS)
def test_a_usual_call_has_an_answer(path):
    "So that refusing everything does not pass"
    f = FUNCTIONS[path]
    names = [name for name, p in inspect.signature(f).parameters.items() if p.default is p.empty]
    if f.__name__ == 'evaluate':
        names = ['codes', 'factors', 'bootstrap']
    check_answer(f, f(**{name: GOOD[name][0] for name in names}))


@pytest.mark.parametrize('path', FUNCTIONS)
@settings(deadline=None, max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_argument(path, data):
    f = FUNCTIONS[path]
    chosen = data.draw(arguments(f))
    with warnings.catch_warnings(), no_hang():
        warnings.simplefilter('error')
        try:
            answer = f(**chosen)
        except ValueError as e:
            names = '|'.join(map(re.escape, [*inspect.signature(f).parameters, *how_errors_call(chosen)]))
            assert re.search(rf'(^|\W)({names})\W', str(e)), f'names no argument: {e}'
            return
    check_answer(f, answer)


def test_the_functions_are_those_that_are_offered():
    import disent_nb.metrics

    names = {path.rpartition('.')[2] for path in FUNCTIONS}
    offered = {n for n in disent_nb.metrics.__all__ if inspect.isfunction(getattr(disent_nb.metrics, n))}
    assert offered <= names and len(offered) > 25
    known = {name for f in FUNCTIONS.values() for name in inspect.signature(f).parameters}
    assert set(GOOD) <= known
