"Every experiment runs with its smoke preset, from the command's function to the folder it leaves."

import json, math

import pytest

from disent_nb.runs.run import experiments, run


def numbers(o):
    "All numbers in nested dicts and lists"
    for v in o.values() if isinstance(o, dict) else o if isinstance(o, list) else []:
        yield from numbers(v)
    if isinstance(o, (int, float)):
        yield o


@pytest.mark.parametrize('name', [n for n in experiments() if n != 'quickstart'])  # test_runs.py runs that one
def test_an_experiment_runs(name, tmp_path):
    folder = run(name, preset='smoke', out=tmp_path, progress=False)
    scores = json.loads((folder / 'metrics.json').read_text())
    assert scores['failed'] == 0 and all(map(math.isfinite, numbers(scores)))
    figures = {p.name for p in (folder / 'figures').iterdir()}
    assert len(figures) >= 4 and all(p.stat().st_size > 2000 for p in (folder / 'figures').iterdir())
    notebook = (folder / 'run.ipynb').read_text()
    assert str(tmp_path) not in notebook and '"name": "stderr"' not in notebook
