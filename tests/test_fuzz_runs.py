"Any input to what plans runs, sweeps and studies: a right answer, or a ValueError that says what is wrong."

import json
import math

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from disent_nb.core import plain
from disent_nb.runs.parameters import convert, from_yaml, resolve
from disent_nb.runs.run import find_experiment, run_id
from disent_nb.runs.study import build, check_spec, load_run, plan_study, train_defaults
from disent_nb.runs.sweep import expand, labels, plan, read_spec, short

quick = settings(
    max_examples=settings().max_examples * 4 // 5,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
texts = st.text(max_size=12) | st.sampled_from(
    ['', '0', '1e3', '-', '..', 'a/b', 'os.system', 'disent_nb.core', '\x00']
)
scalars = st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | texts
values = st.recursive(scalars, lambda s: st.lists(s, max_size=3) | st.dictionaries(texts, s, max_size=3), max_leaves=6)
anything = (
    values | st.binary(max_size=4) | st.sampled_from([object(), int, np.int64(3), np.float32(2), np.ones(2), {1}])
)


def outcome(f):
    "What `f()` returns; None if it refuses with a text"
    try:
        return f()
    except ValueError as e:
        assert str(e).strip()
        return None


def names_one_of(f, words):
    "As `outcome`; the text of a refusal has one of the words"
    try:
        return f()
    except ValueError as e:
        assert any(word in str(e) for word in words), str(e)
        return None


@quick
@given(anything, anything, anything)
def test_expand(grid, parameters, seeds):
    runs = names_one_of(lambda: expand(grid, parameters, seeds), ['grid', 'parameters', 'seeds'])
    if runs is not None:
        assert runs and all(isinstance(r, dict) for r in runs)
        assert len(labels(runs)) == len(runs)


@quick
@given(st.lists(st.dictionaries(texts, st.lists(scalars, min_size=1, max_size=3), max_size=3), min_size=1, max_size=3))
def test_expand_gives_all_combinations_in_order(grids):
    runs = expand(grids, seeds=None)
    assert len(runs) == sum(math.prod(len(v) for v in g.values()) for g in grids)
    at = 0
    for g in grids:
        n = math.prod(len(v) for v in g.values())
        for name, choices in g.items():
            assert {repr(r[name]) for r in runs[at : at + n]} == set(map(repr, choices))
        at += n


@quick
@given(st.lists(scalars, max_size=5))
def test_short_texts_tell_apart_what_differs(found):
    shown = short(found)
    assert list(shown) == list(dict.fromkeys(map(str, found))) and len(set(shown.values())) == len(shown)


keys = st.sampled_from(['experiment', 'preset', 'parameters', 'grid', 'seeds', 'gird', 'on'])


@quick
@given(st.dictionaries(keys, values, max_size=5) | values)
@example(dict(experiment='quickstart', preset=['smoke']))
@example(dict(experiment='quickstart', grid=3))
@example(dict(experiment='quickstart', parameters=[1]))
def test_a_sweep_file_is_read_and_planned_or_refused(tmp_path, content):
    (tmp_path / 'spec.yaml').write_text(yaml.safe_dump(content, allow_unicode=True), encoding='utf-8')
    spec = outcome(lambda: read_spec(tmp_path / 'spec.yaml'))
    if spec is not None and len(spec['runs']) < 20:
        outcome(lambda: plan(**spec, out=tmp_path))


@quick
@given(st.text(max_size=60) | texts)
@example('a: ' + '[' * 5000)
@example('!!int x')
@example('{on: 1}')
@example('? [a]\n: b')
def test_any_text_is_yaml_of_plain_values_or_refused(text):
    found = names_one_of(lambda: from_yaml(text, 'the text'), ['the text'])
    json.dumps(plain(found))


@quick
@given(anything, anything, anything)
def test_a_plan_of_anything(tmp_path, runs, preset, out):
    outcome(lambda: plan('quickstart', runs, preset, tmp_path))
    outcome(lambda: plan('quickstart', [dict(seed=runs)], 'smoke', tmp_path))


@quick
@given(st.sampled_from(['seed', 'steps', 'lr', 'method', 'device', 'latents', 'method_options', 'net']), anything)
def test_one_parameter_of_a_run(name, value):
    "It is refused by its name, or taken in the type of the default"
    notebook = find_experiment('quickstart')
    found = names_one_of(lambda: resolve(notebook, 'smoke', {name: value}), [name])
    if found is not None:
        assert type(found[name]) is type(resolve(notebook, 'smoke')[name])


@quick
@given(anything, st.sampled_from([1, 1.5, 'a', True, [1], dict(a=1), None]))
def test_convert_keeps_the_value_in_the_type_of_the_default(value, default):
    found = names_one_of(lambda: convert(value, default, 'the parameter'), ['the parameter'])
    if found is not None and default is not None:
        assert type(found) is type(default)
        again = convert(found, default, 'x')
        assert again == found or again != again


@quick
@given(st.dictionaries(texts, values, max_size=4), st.dictionaries(texts, values, max_size=4))
def test_runs_have_one_name_each(first, second):
    assert run_id(first) == run_id(dict(reversed(first.items())))
    same = json.dumps(plain(first), sort_keys=True) == json.dumps(plain(second), sort_keys=True)
    assert (run_id(first) == run_id(second)) == same


parameters = st.sampled_from([*train_defaults(), 'stepz'])


@quick
@given(st.lists(st.dictionaries(parameters, anything, max_size=3), max_size=3) | anything)
@example([dict(label='a', seed=np.int64(3), metrics=('mig',))])
@example([dict(label='a'), dict(label='a')])
@example([dict(label=None)])
def test_a_study_of_anything(tmp_path, specs):
    items = outcome(lambda: plan_study(specs, tmp_path))
    if items:
        assert len({i['out'] for i in items}) == len(items) == len(specs)
        assert all(i.keys() - {'out'} == train_defaults().keys() for i in items)
        assert not list(tmp_path.iterdir())


@quick
@given(st.sampled_from(['dataset', 'net', 'method', 'views', 'views_options', 'metrics', 'method_options']), anything)
def test_one_value_of_a_spec(tmp_path, name, value):
    "It is refused by its name, or the spec can be used"
    spec = dict(label='a') | {name: value}
    words = [name, 'images', 'data', 'array'] if name == 'dataset' else [name, name.removesuffix('_options')]
    items = names_one_of(lambda: plan_study([spec], tmp_path), words)
    if items is not None:
        check_spec(items[0])


@quick
@given(st.dictionaries(st.sampled_from([*train_defaults()]), values, min_size=1, max_size=3))
def test_a_record_of_anything_is_loaded_or_refused(tmp_path, changes):
    record = dict(experiment='train', seconds=1, parameters=plain(train_defaults() | changes))
    (tmp_path / 'config.json').write_text(json.dumps(record))
    (tmp_path / 'metrics.json').write_text('{}')
    with pytest.raises(ValueError):  # there are no weights
        load_run(tmp_path)
