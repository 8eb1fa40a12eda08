"Every method that `disent-nb list` shows runs through quickstart, on the views that it wants to see; what cannot be served is refused."

import inspect
import math

import pytest

from disent_nb.core import discover, load_object
from disent_nb.runs.cli import main
from disent_nb.runs.folder import read_record
from disent_nb.runs.run import run
from disent_nb.runs.study import load_run
from disent_nb.train.method import Model, decode

METHODS = discover('disent_nb.methods', lambda o: inspect.isclass(o) and issubclass(o, Model))
LABELS = dict(views_options=dict(names=['shape']))  # models with labels need to know which, and of how many classes
OF_LABELS = {
    'labels': LABELS | dict(net='disent_nb.nets.adain.label_adain', net_options=dict(classes=[3], features=2, width=4)),
    'ccvae': LABELS | dict(method_options=dict(classes=[3], features=2)),
}
PAIRS = [path for path, cls in METHODS.items() if cls.views == 'disent_nb.data.views.Pairs']


@pytest.mark.parametrize('path', METHODS)
def test_each_method_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    own = OF_LABELS.get(path.split('.')[-2], {})
    folder = run('quickstart', dict(own, method=path, device='cpu', steps=5), 'smoke', tmp_path, progress=False)
    config, metrics = read_record(folder)
    assert config['parameters']['method'] == path and set(config['code']) == {'package', 'notebook'}
    assert all(math.isfinite(metrics[name]) for name in ('mig', 'mig_sampled', 'kl', 'rec'))
    ds, model = load_run(folder)
    assert type(model) is load_object(path) and decode(model, model.sample_prior(2)).shape == (2, *ds.shape)


@pytest.mark.parametrize('path', PAIRS)
def test_pairs_of_a_set_without_a_full_space_are_refused_before_anything_runs(path, tmp_path, capsys):
    boxhead = 'disent_nb.rendered.boxhead.BoxheadSimple2'
    code = main(['run', 'quickstart', '-p', 'method', path, '-p', 'dataset', boxhead, '--out', str(tmp_path / 'runs')])
    assert code == 2 and 'BoxheadSimple2' in capsys.readouterr().err
    assert not (tmp_path / 'runs').exists()


@pytest.mark.parametrize('name, path', [('net', 'os.system'), ('method', 'subprocess.run'), ('views', 'os.system')])
def test_names_of_other_things_are_not_called(name, path, tmp_path, capsys):
    assert main(['run', 'quickstart', '-p', name, path, '--out', str(tmp_path / 'runs')]) == 2
    assert path in capsys.readouterr().err


def test_another_notebook_is_not_answered_with_an_old_result(tmp_path, capsys):
    import json
    from pathlib import Path

    cells = [
        dict(
            cell_type='code', metadata=dict(tags=['parameters']), source="out = ''\n", outputs=[], execution_count=None
        ),
        dict(cell_type='code', metadata={}, source='', outputs=[], execution_count=None),
    ]
    kernel = dict(kernelspec=dict(name='python3', display_name='python3', language='python'))
    notebook = Path(tmp_path / 'toy.ipynb')

    def write(value):
        cells[1]['source'] = f"import json\nopen('metrics.json', 'w').write(json.dumps(dict(a={value})))\n"
        notebook.write_text(json.dumps(dict(cells=cells, metadata=kernel, nbformat=4, nbformat_minor=4)))

    write(1)
    words = ['run', str(notebook), '--out', str(tmp_path / 'runs')]
    assert main(words) == 0
    assert main(words) == 0 and 'complete already' in capsys.readouterr().err
    write(2)
    assert main(words) == 2 and '--force' in capsys.readouterr().err
    assert main([*words, '--force']) == 0 and 'a  2' in capsys.readouterr().out
