"The command line: what it prints, what it completes, how it ends."

import argparse
import io
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
import safetensors.numpy

from disent_nb.metrics import evaluate, find_metrics
from disent_nb.runs import commands
from disent_nb.runs.cli import KINDS, main, parser
from disent_nb.runs.parameters import canonical, resolve
from disent_nb.runs.run import experiments, find_experiment
from disent_nb.runs.sweep import short, specs


@pytest.fixture
def says(capsys):
    "Exit code, output and error text of a command"

    def call(*words):
        code = main([str(word) for word in words])
        return code, *capsys.readouterr()

    return call


# ---- the words


@pytest.mark.parametrize('module', ['disent_nb', 'disent_nb.runs.cli'])
def test_both_modules_run_the_command_line(module):
    for words, code in (['--version'], 0), (['lst'], 2), ([], 2):
        done = subprocess.run([sys.executable, '-m', module, *words], capture_output=True, text=True)
        assert done.returncode == code
        assert ('disent_nb 0' in done.stdout) if code == 0 else ('usage' in done.stderr)


WITHOUT_TORCH = 'import sys; sys.modules["torch"] = None; from disent_nb.runs.cli import main; main()'


def completions(line, tmp_path):
    "What the shell is told, by argcomplete's protocol; an import of torch would fail"
    answer = tmp_path / 'answer'
    answer.touch()
    env = dict(
        os.environ,
        _ARGCOMPLETE='1',
        _ARGCOMPLETE_IFS='\n',
        _ARGCOMPLETE_SUPPRESS_SPACE='1',
        _ARGCOMPLETE_STDOUT_FILENAME=str(answer),
        COMP_LINE=line,
        COMP_POINT=str(len(line)),
    )
    done = subprocess.run([sys.executable, '-c', WITHOUT_TORCH], env=env, capture_output=True, text=True)
    assert done.returncode == 0 and 'Traceback' not in done.stderr, done.stderr
    return answer.read_text().split('\n')


COMPLETED = {
    'disent-nb ': {'run', 'sweep', 'table', 'score', 'show', 'list', 'data'},
    'disent-nb list me': {'methods', 'metrics'},
    'disent-nb run quick': {'quickstart'},
    'disent-nb show quick': {'quickstart'},
    'disent-nb run quickstart --preset smo': {'smoke'},
    'disent-nb run quickstart -p step': {'steps'},
    'disent-nb run quickstart -p seed 1 -p steps ': {'3000'},
    'disent-nb run nothing -p step': {''},
    'disent-nb sweep quickstart_m': {'quickstart_methods'},
    'disent-nb score --fac': {'--factor-bins'},
}


@pytest.mark.parametrize('line', COMPLETED)
def test_the_tabulator_key_completes(line, tmp_path):
    assert {word.strip() for word in completions(line, tmp_path)} >= COMPLETED[line]


def test_what_is_completed_without_torch_is_what_there_is():
    from disent_nb.runs.cli import default_texts, file_names, preset_names
    from disent_nb.runs.parameters import parameters, presets

    assert file_names('*.ipynb') == sorted(experiments()) and file_names('sweeps/*.yaml') == sorted(specs())
    assert KINDS == tuple(commands.FINDERS)
    for name, notebook in experiments().items():
        typed = argparse.Namespace(experiment=name)
        assert preset_names(typed) == list(presets(notebook))
        assert list(default_texts(typed)) == [k for k in parameters(notebook) if k != 'out']


def test_help_says_the_exit_codes():
    text = parser().format_help()
    assert re.findall(r'(?:codes: |; )(\d+) ', text.replace('\n', ' ')) == ['0', '1', '2', '130']


@pytest.mark.parametrize('words', [['run', 'quickstart', '--help'], ['show', 'quickstart']])
def test_parameters_come_with_their_comments(words, capsys):
    try:
        main(words)
    except SystemExit as e:
        assert e.code == 0
    out = capsys.readouterr().out
    assert re.search(r"^net = '.*'  +import path of", out, re.M) and 'steps = 3000' in out
    assert not re.search(r'^out\b', out, re.M)
    assert 'preset smoke' in out


# ---- what there is


def test_every_short_name_that_is_listed_can_be_used():
    for kind, name in dict(methods='method', views='views', networks='net', datasets='dataset').items():
        found = commands.inventory(kind)[kind]
        names = short(found)
        assert sum(names[path] != path for path in found) > 1
        for path in found:
            wanted = canonical(path, name, 'disent_nb.x.X', True)
            assert canonical(names[path], name, 'disent_nb.x.X', True) == wanted
    metrics = commands.inventory('metrics')['metrics']
    assert set(short(metrics).values()) == set(find_metrics())


def test_a_kind_is_listed_alone_and_a_wrong_one_is_named(says):
    code, out, _ = says('list', 'networks')
    assert code == 0 and re.search(r'^  burgess64 .* \[disent_nb.nets.conv64.burgess64\]$', out, re.M)
    assert out.startswith('networks\n') and 'methods' not in out
    code, out, err = says('list', 'method')
    assert code == 2 and "did you mean 'methods'" in err and out == ''


def test_texts_reach_a_run_as_they_were_typed(monkeypatch, tmp_path, says):
    got = {}

    def fake(*words, texts):
        got.update(texts)
        (tmp_path / 'metrics.json').write_text('{"mig": 0.5}')
        return tmp_path

    monkeypatch.setattr(commands, 'run', fake)
    words = '-p', 'seed', '010', '-p', 'method', 'BetaVAE', '-p', 'method_options.beta', '1e1'
    code, out, _ = says('run', 'quickstart', *words, '--out', tmp_path)
    assert code == 0 and 'mig' in out
    assert got == {'seed': '010', 'method': 'BetaVAE', 'method_options.beta': '1e1'}
    params = resolve(find_experiment('quickstart'), texts=got)
    assert params['seed'] == 10 and params['method'] == 'disent_nb.methods.betavae.BetaVAE'
    assert params['method_options'] == dict(beta=10)


# ---- how it ends


@pytest.mark.parametrize('module, extra', [('papermill', 'runs'), ('yaml', 'runs'), ('ipykernel', 'runs')])
def test_a_missing_extra_is_named_before_anything_starts(module, extra, monkeypatch, tmp_path, says):
    monkeypatch.setitem(sys.modules, module, None)
    for words in ('run', 'quickstart'), ('sweep', 'quickstart_methods'):
        code, _, err = says(*words, '--out', tmp_path / 'runs')
        assert code == 2 and f"'{module}'" in err and f"pip install 'disent_nb[{extra}]'" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'module, extra', [('pooch', 'download'), ('onnxruntime', 'onnx'), ('tensorboard.x', 'tensorboard')]
)
def test_a_module_that_is_missing_later_is_named_too(module, extra, monkeypatch, says):
    def fails(args):
        raise ModuleNotFoundError(f'No module named {module!r}', name=module)

    monkeypatch.setitem(commands.COMMANDS, 'list', fails)
    code, _, err = says('list')
    assert code == 2 and err.endswith(f"; pip install 'disent_nb[{extra}]'\n")


def test_a_folder_that_cannot_be_written_to_is_a_wrong_argument(tmp_path, says):
    (tmp_path / 'file').touch()
    places = [tmp_path / 'file', tmp_path / 'file' / 'runs']
    if Path('/proc/self').exists():
        places.append(Path('/proc/runs'))  # where not even root may write
    for out in places:
        for words in ('run', 'quickstart'), ('sweep', 'quickstart_methods'):
            code, printed, err = says(*words, '--out', out)
            assert code == 2 and err.startswith('disent-nb: out: got ') and err.count('\n') == 1 and printed == ''
    assert [p.name for p in tmp_path.iterdir()] == ['file']


def test_an_error_of_the_system_is_a_line(monkeypatch, says):
    def full(args):
        raise OSError(28, 'No space left on device', '/x/model.safetensors')

    monkeypatch.setitem(commands.COMMANDS, 'list', full)
    assert says('list') == (1, '', 'disent-nb: /x/model.safetensors: No space left on device\n')


def test_ctrl_c_at_any_time_is_a_line(monkeypatch, says):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setitem(commands.COMMANDS, 'list', interrupted)
    code, _, err = says('list')
    assert code == 130 and 'the same command goes on' in err
    monkeypatch.setattr(commands, 'carry_out', interrupted)  # as while the module is imported
    assert says('list') == (130, '', 'disent-nb: interrupted\n')


LISTING = """
import sys, types
from disent_nb.runs import cli
sys.modules['disent_nb.runs.commands'] = module = types.ModuleType('quick')  # the real one takes seconds to import
module.carry_out = lambda _: print('±\\n' * 99999) or 0
sys.exit(cli.main(['list']))
"""


def test_a_reader_that_leaves_and_a_narrow_terminal_end_nothing():
    process = subprocess.Popen([sys.executable, '-c', LISTING], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == '±\n'.encode()
    process.stdout.close()
    assert process.stderr.read() == b'' and process.wait(60) == 0
    env = dict(os.environ, PYTHONIOENCODING='ascii')
    done = subprocess.run([sys.executable, '-c', LISTING], capture_output=True, env=env)
    assert done.returncode == 0 and done.stdout.startswith(b'\\xb1\n') and done.stderr == b''


@pytest.mark.skipif(sys.platform != 'linux', reason='looks into /proc')
def test_output_that_is_lost_is_no_success():
    with open('/dev/full', 'w') as full:
        done = subprocess.run([sys.executable, '-c', LISTING], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and 'No space left' in done.stderr and 'Traceback' not in done.stderr


# ---- scores of files


@pytest.fixture(scope='module')
def arrays():
    r = np.random.default_rng(0)
    y = r.integers(0, (3, 4), (400, 2))
    return y + r.normal(0, 0.2, y.shape), pd.DataFrame(y, columns=['shape', 'size'])


FEW = '--metrics', 'mig', 'sap', '--bootstrap', '4'


def save_codes(z, path):
    if path.suffix == '.npy':
        np.save(path, z)
    elif path.suffix == '.npz':
        np.savez(path, codes=z, other=z[:, :1])
    elif path.suffix == '.csv':
        pd.DataFrame(z, columns=['z 1', 'z 2']).to_csv(path, index=False, header=path.stem != 'headless')
    else:
        safetensors.numpy.save_file(dict(codes=z), path)
    return path


@pytest.mark.parametrize('name', ['z.npy', 'z.npz', 'z.csv', 'headless.csv', 'z.safetensors'])
def test_scores_of_files_are_those_of_the_arrays(name, arrays, tmp_path, says):
    z, y = arrays
    y.to_csv(tmp_path / 'y.csv', index=False)
    code, out, err = says('score', save_codes(z, tmp_path / name), tmp_path / 'y.csv', *FEW, '--seed', 3, '--json')
    found = json.loads(out)
    wanted = evaluate(codes=z, factors=y, metrics=['mig', 'sap'], seed=3, bootstrap=4, progress=False)
    assert code == 0 and err == '' and found['seed'] == 3 and found['codes_file'].endswith(name)
    for row, expected in zip(found['scores'], wanted.to_dict('records'), strict=True):
        assert row['metric'] == expected['metric'] and row['protocol'] == expected['protocol']
        assert row['value'] == pytest.approx(expected['value'], abs=1e-9)


def test_a_posterior_an_array_of_factors_and_the_formats(arrays, tmp_path, says):
    z, y = arrays
    np.savez(tmp_path / 'q.npz', mu=z, log_var=np.full_like(z, -3))
    np.save(tmp_path / 'y.npy', y.to_numpy())
    files = tmp_path / 'q.npz', tmp_path / 'y.npy'
    code, out, _ = says('score', *files, '--metrics', 'mig', 'mig_sampled', '--bootstrap', 0)
    lines = out.splitlines()
    assert code == 0 and lines[0].split() == ['metric', 'variant', 'value', '95%', 'interval', 'how']
    assert {'mig', 'mig_sampled'} <= {line.split()[0] for line in lines[1:]}
    code, out, _ = says('score', *files, *FEW, '--csv', '--out', tmp_path / 'scores.csv')
    assert code == 0 and out == '' and set(pd.read_csv(tmp_path / 'scores.csv')['metric']) == {'mig', 'sap'}


def test_all_metrics_of_arrays_leave_out_what_needs_images(arrays, tmp_path, says):
    z, y = arrays
    y.to_csv(tmp_path / 'y.csv', index=False)
    save_codes(z, tmp_path / 'z.npy')
    code, out, _ = says('score', tmp_path / 'z.npy', tmp_path / 'y.csv', '--bootstrap', 0)
    assert code == 0 and re.search(r'^z_min .* -  +-  +left out: .*images', out, re.M)
    assert re.search(r'^modularity .* 0\.\d{3} ', out, re.M)


def test_real_factors_are_binned_and_unknown_labels_left_out(arrays, tmp_path, says):
    z, y = arrays
    real = y.assign(size=y['size'] + np.random.default_rng(1).normal(0, 0.1, len(y)))
    real.loc[:49, 'shape'] = -1
    real.to_csv(tmp_path / 'y.csv', index=False)
    files = save_codes(z, tmp_path / 'z.npy'), tmp_path / 'y.csv'
    code, _, err = says('score', *files, *FEW, '--missing', -1)
    assert code == 2 and 'size' in err and 'factor_bins' in err
    for bins in ('size=4', '4'):
        code, out, _ = says('score', *files, *FEW, '--missing', -1, '--factor-bins', bins, '--json')
        wanted = evaluate(None, None, ['mig', 'sap'], codes=z, factors=real, missing=-1, bootstrap=4, progress=False,
                          factor_bins=dict(size=4) if '=' in bins else 4)  # fmt: skip
        assert code == 0 and [row['value'] for row in json.loads(out)['scores']] == pytest.approx(
            wanted['value'].tolist()
        )


class Payload:
    "Runs when it is unpickled"

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def damaged(folder, z):
    "`{name: file}` that cannot be read, each in a way of its own"
    payload = Payload()
    payload.path = folder / 'ran'
    np.save(folder / 'pickled.npy', np.array([payload], dtype=object), allow_pickle=True)
    np.savez(folder / 'several.npz', a=z, b=z)
    np.save(folder / 'whole.npy', z)
    whole = (folder / 'whole.npy').read_bytes()
    (folder / 'cut.npy').write_bytes(whole[:300])
    (folder / 'huge.npy').write_bytes(whole.replace(b'(400, 2)', b'(99999999999, 2)'))
    (folder / 'text.npz').write_text('no archive')
    (folder / 'text.safetensors').write_text('no tensors')
    (folder / 'words.csv').write_text('a,b\n1,x\n2,y\n')
    (folder / 'index.csv').write_text(',a\n0,1\n1,2\n')
    (folder / 'pandas.csv').write_text('0,1\n1,2\n')
    (folder / 'empty.csv').write_text('')
    (folder / 'bytes.csv').write_bytes(b'a,b\n\xff\xfe,\x00\n')
    (folder / 'z.pt').write_text('')
    (folder / 'folder.npy').mkdir()
    names = 'pickled.npy several.npz cut.npy huge.npy text.npz text.safetensors words.csv index.csv pandas.csv empty.csv bytes.csv'
    return [*names.split(), 'z.pt', 'folder.npy', 'nowhere.npy']


def test_a_file_that_cannot_be_read_is_named_and_nothing_in_it_runs(arrays, tmp_path, says):
    z, y = arrays
    y.to_csv(tmp_path / 'y.csv', index=False)
    for name in damaged(tmp_path, z):
        code, out, err = says('score', tmp_path / name, tmp_path / 'y.csv', *FEW)
        assert code == 2 and out == '' and 'codes' in err and name in err and 'Traceback' not in err, name
    for name in ('pickled.npy', 'cut.npy', 'index.csv', 'nowhere.csv'):
        code, _, err = says('score', tmp_path / 'whole.npy', tmp_path / name, *FEW)
        assert code == 2 and 'factors' in err and name in err, name
    assert not (tmp_path / 'ran').exists()


def test_wrong_words_of_score(arrays, tmp_path, says):
    z, y = arrays
    y.to_csv(tmp_path / 'y.csv', index=False)
    files = save_codes(z, tmp_path / 'z.npy'), tmp_path / 'y.csv'
    for words, said in (
        (['--metrics', 'mgi'], "'mig'"),
        (['--factor-bins', 'many'], 'factor_bins'),
        (['--factor-bins', 'sise=3'], 'sise'),
        ([*FEW, '--out', tmp_path / 'y.csv' / 'x'], 'out: got'),
        (['--metrics', 'z_min'], 'z_min'),
    ):
        code, _, err = says('score', *files, '--bootstrap', 0, *words)
        assert code == 2 and said in err, words
    y[:-1].to_csv(tmp_path / 'y.csv', index=False)
    code, _, err = says('score', *files, *FEW)
    assert code == 2 and '400' in err and '399' in err


# ---- tables and the page of runs

VAE, TC = 'disent_nb.methods.vae.VAE', 'disent_nb.methods.betatc.BetaTCVAE'
PNG = b'\x89PNG\r\n\x1a\n'


def store(folder, parameters, metrics, experiment='quickstart'):
    folder.mkdir(parents=True)
    config = dict(experiment=experiment, parameters=parameters, seconds=1.0, code=dict(notebook='0a1b', package='1'))
    (folder / 'config.json').write_text(json.dumps(config))
    (folder / 'metrics.json').write_text(json.dumps(metrics))
    (folder / 'report.html').write_text('<html></html>')
    cell = dict(
        cell_type='code', metadata=dict(tags=['parameters']), source="method = 'x'\nseed = 0\nlr = 0.1\nout = ''"
    )
    (folder / 'run.ipynb').write_text(json.dumps(dict(cells=[cell])))
    (folder / 'figures').mkdir()
    for name in ('curves', 'a "b" <c>&#'):
        (folder / 'figures' / f'{name}.png').write_bytes(PNG)


@pytest.fixture
def runs(tmp_path):
    "Three runs of two experiments, the folder of one with an odd name; and one that is damaged"
    out = tmp_path / 'my runs'
    store(out / 'quickstart' / 'a', dict(method=VAE, seed=0, lr=0.1), dict(mig=0.25, loss=None, per=dict(x=1)))
    store(out / 'quickstart' / 'b:1%20<i>', dict(method=TC, seed=1, lr=0.1), dict(mig=0.5, loss=2.0))
    store(out / 'faces' / 'c', dict(text='<script>alert(1)</script>', seed=0), dict(auc=0.75), 'faces & more')
    store(out / 'faces' / 'd', dict(seed=0), dict(auc=0.75), 'faces & more')
    (out / 'faces' / 'd' / 'metrics.json').write_text('{')
    return out


class Page(HTMLParser):
    "Tags that are open, links, pictures and rows of cells"

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.pictures, self.rows, self.tags = [], [], [], [], set()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        attrs = dict(attrs)
        self.links += [attrs['href']] if 'href' in attrs else []
        self.pictures += [attrs['src']] if 'src' in attrs else []
        if tag == 'tr':
            self.rows.append([])
        if tag in ('td', 'th'):
            self.rows[-1].append('')
        if tag not in ('meta', 'br', 'img'):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {'td', 'th'} & set(self.open):
            self.rows[-1][-1] += data


@pytest.mark.parametrize('place', ['my runs/index.html', 'pages/index.html'])
def test_the_page_of_runs(runs, place, says):
    file = runs.parent / place
    code, out, err = says('table', runs, '--html', file)
    text = file.read_text(encoding='utf-8')
    page = Page(text)
    assert code == 0 and out.strip() == str(file) and page.open == []
    assert not re.search(r'https?:|//|<script|javascript', text) and 'script' not in page.tags
    for target in page.links + page.pictures:
        assert (file.parent / unquote(target)).is_file(), target
    assert sum(target.endswith('report.html') for target in page.links) == 3 and len(page.pictures) == 6
    faces, one, head, a, b = page.rows
    assert faces == ['run', 'changed parameters', 'auc', 'figures'] and one[2] == '0.750'
    assert 'text = <script>alert(1)</script>' in one[1]
    assert head == ['run', 'changed parameters', 'mig', 'loss', 'figures']
    assert a[1] == 'method = VAE' and a[2:4] == ['0.250', '-']  # seed 0 and lr 0.1 are the defaults
    assert b[1] == 'method = BetaTCVAEseed = 1' and b[2:4] == ['0.500', '2.000'] and 'b:1%20<i>' in b[0]
    assert 'faces/d (metrics.json is broken)' in text and 'faces/d (metrics.json is broken)' in err


def test_the_page_takes_a_choice_of_runs_and_metrics(runs, tmp_path, says):
    words = '--where', 'experiment', 'quickstart', '--where', 'method', 'VAE', '--metrics', 'per', '--digits', '1'
    code, _, _ = says('table', runs, '--html', tmp_path / 'x.html', *words)
    page = Page((tmp_path / 'x.html').read_text(encoding='utf-8'))
    assert code == 0 and page.rows[0][2:] == ['per.x', 'figures'] and [row[2] for row in page.rows[1:]] == ['1.0']
    (runs / 'quickstart' / 'a' / 'run.ipynb').write_text('[')
    says('table', runs, '--html', tmp_path / 'x.html', *words)
    page = Page((tmp_path / 'x.html').read_text(encoding='utf-8'))
    for text in ('method = VAE', 'seed = 0', 'lr = 0.1'):  # all, where the defaults are not known
        assert text in page.rows[1][1]
    code, _, err = says('table', runs, '--html', runs / 'faces' / 'c' / 'report.html' / 'x.html')
    assert code == 2 and err.startswith('disent-nb: html: got')


@pytest.mark.parametrize('name, value', [('method', 'VAE'), ('method', VAE), ('seed', '0'), ('seed', '00')])
def test_a_choice_takes_short_names_full_names_and_numbers(runs, name, value, says):
    words = '--where', 'experiment', 'quickstart', '--where', name, value
    code, out, _ = says('table', runs, *words, '--metrics', 'mig', '--format', 'csv')
    assert code == 0 and pd.read_csv(io.StringIO(out))['mean'].tolist() == [0.25]


def test_texts_that_look_like_numbers_are_told_apart(tmp_path, says):
    for i, label in enumerate(('007', '7', '1e5')):
        store(tmp_path / 'x' / str(i), dict(label=label, seed=0), dict(mig=float(i)))
    for i, label in enumerate(('007', '7', '1e5')):
        words = '--where', 'label', label, '--rows', 'label', '--format', 'csv'
        code, out, _ = says('table', tmp_path, *words)
        assert code == 0 and pd.read_csv(io.StringIO(out))['mean'].tolist() == [i]
