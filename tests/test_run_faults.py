"What goes wrong around a run: no git, readers that leave, odd parameters cells, texts that look like numbers, names of strangers, full disks, folders left by killed processes."

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from nbformat import write
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from disent_nb.core import load_object, mix, plain
from disent_nb.runs import folder as folder_module
from disent_nb.runs.folder import RunFolder, locked, provenance, read_record, recorded
from disent_nb.runs.parameters import from_text, from_yaml, parameter_comments, parameters, path_parameters, resolve
from disent_nb.runs.run import RunFailed, find_experiment, inputs_of, is_done, run, run_id

command = Path(sys.executable).parent / 'disent-nb'
SCORES = "import json\nopen('metrics.json', 'w').write(json.dumps(dict(a=1)))"


def notebook_of(folder, parameters_text, *cells, name='toy'):
    "A notebook without kernelspec and language"
    folder.mkdir(parents=True, exist_ok=True)
    first = [new_markdown_cell('# A toy\n\n> It shows $\\beta$.')]
    first.append(new_code_cell(parameters_text, metadata=dict(tags=['parameters'])))
    path = folder / f'{name}.ipynb'
    write(new_notebook(cells=first + [new_code_cell(c) for c in cells or (SCORES,)]), path)
    return path


def program(folder, name, text):
    "An executable"
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f'#!/bin/sh\n{text}\n')
    (folder / name).chmod(0o755)


# ---- git


@pytest.mark.parametrize('what', ['exit 3', 'kill -9 $$', '/bin/sleep 60', None])
def test_git_that_is_missing_fails_or_hangs_leaves_the_revision_unknown(tmp_path, monkeypatch, what):
    if what:
        program(tmp_path, 'git', what)
    monkeypatch.setenv('PATH', str(tmp_path))
    monkeypatch.setattr(folder_module, 'GIT_SECONDS', 0.3)
    assert provenance()['git'] == dict(revision=None, modified=None)


def test_git_variables_of_the_caller_do_not_name_another_repository(tmp_path, monkeypatch):
    before = provenance()['git']['revision']
    subprocess.run(['git', 'init', '-q', tmp_path], check=True)
    monkeypatch.setenv('GIT_DIR', str(tmp_path / '.git'))
    assert provenance()['git']['revision'] == before


# ---- the command, with a reader that leaves


def test_a_run_ends_well_without_git_and_without_a_reader_of_its_progress(tmp_path):
    wait = (
        "import json, pathlib, time\n"
        "pathlib.Path('progress.json').write_text(json.dumps(dict(step=1, n_steps=2, loss=0.5)))\n"
        "while not pathlib.Path('../../../go').exists(): time.sleep(0.05)\n" + SCORES
    )
    notebook = notebook_of(tmp_path, 'steps = 2', wait)
    env = dict(os.environ, PATH='', OMP_NUM_THREADS='1')
    words = [command, 'run', notebook, '--out', tmp_path / 'runs']
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)
    assert b'training' in process.stderr.read(20)
    process.stderr.close()
    (tmp_path / 'go').touch()
    out = process.stdout.read()
    assert process.wait(120) == 0 and b'report:' in out
    (done,) = (tmp_path / 'runs' / 'toy').glob('[!.]*')
    assert read_record(done)[0]['git'] == dict(revision=None, modified=None)
    with locked(done):  # the lock is free
        pass


# ---- parameters cells

CELLS = [
    'n: int = 1',
    'n = 2 * 10\nrate = 10**-3\nlist_ = [1] * 3\nhalf = n / 2 - 1',
    'a = b = 1',
    'a, b = 1, 2\n(c, d), e = [(1, 2), "x"]',
    'beta = 4.0\nlabel = f"beta {beta:.1f} of {beta!r}"\nlabels = [label, "b"]',
    '"a docstring"\nimport math\n# a comment\nx = -1\nx += 2\npass\ny = not x',
    'options = dict(beta=max(1, 2))\nfirst = options["beta"]\nout = ""',
    't = (1,)\nnothing = None\nflag = True\nlong = """two\nlines"""',
    '',
    '# nothing',
]


@pytest.mark.parametrize('cell', CELLS)
def test_cells_that_papermill_takes_are_read_as_python_reads_them(tmp_path, cell):
    want = {}
    exec(cell, want)
    want = {k: v for k, v in want.items() if k not in ('__builtins__', '__annotations__', 'math', '__doc__')}
    found = parameters(notebook_of(tmp_path, cell))
    assert found == want and [type(v) for v in found.values()] == [type(v) for v in want.values()]
    assert set(parameter_comments(tmp_path / 'toy.ipynb')) == set(found)


@pytest.mark.parametrize(
    'cell, line, name',
    [
        ('a = 1\nn: int', 2, 'n'),
        ('n = open("x")', 1, 'n'),
        ('import math\nn = math.pi', 2, 'n'),
        ('n = {1, 2}', 1, 'n'),
        ('a, b = 1', 1, 'a, b'),
        ('n = 10**10**10', 1, 'n'),
        ('n = "a" * 10**10', 1, 'n'),
        ('n = [[0] * 1000] * 10**8', 1, 'n'),
        ('n = 3' + '\nn *= n' * 40, 14, 'n'),
        ('n = [1]' + '\nn += n' * 40, 18, 'n'),
        ('n = "a"' + '\nn = f"{n}{n}"' * 40, 18, 'n'),
        ('n = 1' + '\nn = [n, n]' * 40, 17, 'n'),
        ('n = 1 / 0', 1, 'n'),
        ('n = unknown', 1, 'n'),
        ('n = b"x"', 1, 'n'),
        ('a = 1\nprint(a)', 2, ''),
        ('x.y = 1', 1, ''),
        ('a = 1\nn = = 2', 2, ''),
        ('a = 1\n%matplotlib inline', 2, ''),
    ],
)
def test_cells_that_would_have_to_be_run_are_refused_with_notebook_line_and_parameter(tmp_path, cell, line, name):
    with pytest.raises(ValueError, match=rf'toy\.ipynb, line {line} of the parameters.*\b{name}'):
        parameters(notebook_of(tmp_path, cell))


@pytest.mark.parametrize('text', ['', '[]', '{}', '{"cells": 3}', '{"cells": [3]}', '{"cells": []}', '{"cells": [{}]}'])
def test_a_file_that_is_no_notebook_is_an_error(tmp_path, text):
    (tmp_path / 'toy.ipynb').write_text(text)
    with pytest.raises(ValueError, match='toy.ipynb'):
        parameters(tmp_path / 'toy.ipynb')


def test_comments_and_marks_of_paths(tmp_path):
    cell = "images = ''  # path: folder of images\nn = 3\n# a table\n# of factors\nt = [\n    1,\n]\na, b = 1, 2  # two"
    notebook = notebook_of(tmp_path, cell)
    want = dict(images='path: folder of images', n='', t='a table of factors', a='two', b='two')
    assert parameter_comments(notebook) == want and path_parameters(notebook) == ['images']


def test_paths_are_taken_from_where_the_user_stands(tmp_path, monkeypatch):
    notebook = notebook_of(tmp_path / 'far', "images = ''  # path: folder\nplain = ''  # name of a path")
    (tmp_path / 'pictures').mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HOME', str(tmp_path))
    want = str(tmp_path / 'pictures')
    for value in ('pictures', '~/pictures', 'far/../pictures', want):
        assert resolve(notebook, None, {}, dict(images=value, plain='pictures')) == dict(images=want, plain='pictures')
    assert resolve(notebook) == dict(images='', plain='')
    for value in ('picturez', '~nobody-of-this-name/x'):
        with pytest.raises(ValueError, match=f'images: got {value!r}'):
            resolve(notebook, None, dict(images=value))


def test_paths_among_the_options_of_a_dataset_are_taken_from_where_the_user_stands(tmp_path, monkeypatch):
    notebook = notebook_of(tmp_path / 'far', 'dataset_options = {}')
    (tmp_path / 'pictures').mkdir()
    monkeypatch.chdir(tmp_path)
    given = dict(images='pictures', factors='folders', size=8, names=['a'])
    made = resolve(notebook, None, dict(dataset_options=given))
    assert made['dataset_options'] == given | dict(images=str(tmp_path / 'pictures'))
    assert inputs_of(notebook, made) == [str(tmp_path / 'pictures')]
    for name in ('path', 'images', 'factors'):
        with pytest.raises(ValueError, match=f"dataset_options.{name}: got 'picturez'"):
            resolve(notebook, None, dict(dataset_options={name: 'picturez'}))


# ---- texts


@pytest.mark.parametrize('text', '007|12:30|1e5|0x1F|12e34|no|2026-01-02|a: b||~|[|true| x |1_000|"'.split('|'))
def test_a_text_stays_as_it_is_where_a_text_is_expected(tmp_path, text):
    notebook = notebook_of(tmp_path, "label = 'a'\noptions = {}")
    assert resolve(notebook, None, {}, dict(label=text))['label'] == text == from_text(text, 'a')


def test_numbers_are_decimal_and_lose_nothing():
    assert from_text('010', 0) == 10 and from_text('1e3', 0) == 1000 and from_text(str(2**60 + 1), 0) == 2**60 + 1
    assert from_text('1e-3', 1.0) == 0.001 and from_text('5', 1.0) == 5.0 and from_text('inf', 1.0) == float('inf')
    for text in ('0x1F', '12:30', '2.5', 'no', '', '1e400', '0o10', 'true'):
        with pytest.raises(ValueError, match=f'seed: got {text!r}'):
            from_text(text, 3, 'seed')
    for text in ('0x1F', '12:30', 'nan', '1e400', 'x'):
        with pytest.raises(ValueError, match='rate'):
            from_text(text, 0.5, 'rate')
    assert [from_text(t, False) for t in ('true', 'no', 'ON')] == [True, False, True]
    for text in ('1', '0', 'maybe'):
        with pytest.raises(ValueError, match='flag'):
            from_text(text, False, 'flag')
    assert from_text('[1, 2]', []) == [1, 2] and from_text('{a: 010}', {}) == dict(a='010')
    with pytest.raises(ValueError, match='names'):
        from_text('a', [], 'names')


def test_an_option_is_read_by_the_default_of_the_argument_that_it_is_for():
    notebook = find_experiment('quickstart')
    typed = {'method_options.kind': 'II', 'method_options.lambda_d': '010', 'method': 'DIPVAE'}
    assert resolve(notebook, None, {}, typed)['method_options'] == dict(kind='II', lambda_d=10.0)
    assert type(resolve(notebook, None, {}, typed)['method_options']['lambda_d']) is float


@pytest.mark.parametrize('seed', ['-1', '-7'])
def test_a_negative_seed_is_called_a_seed(tmp_path, seed):
    with pytest.raises(ValueError, match=rf'^seed: got {seed}'):
        resolve(notebook_of(tmp_path, 'seed = 0'), None, {}, dict(seed=seed))
    with pytest.raises(ValueError, match=r'^seed: got -1'):
        mix(-1, 2)
    with pytest.raises(ValueError, match=r'^seeds: got -1'):
        resolve(notebook_of(tmp_path, 'seeds = [0, 1]'), None, dict(seeds=[0, -1]))


# ---- YAML

LAUGHS = 'a: &a [x]\n' + '\n'.join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip('abcdefghi', 'bcdefghij'))
MERGES = 'a: &a {x: 1}\n' + '\n'.join(
    f"{b}: &{b} {{<<: [{', '.join([f'*{a}'] * 9)}]}}" for a, b in zip('abcdefghi', 'bcdefghij')
)


@pytest.mark.parametrize(
    'text',
    [LAUGHS, MERGES, '[' * 5000, '{a: ' * 5000, '- ' * 5000, 'a: &a [*a]', 'a: &a {b: *a}', '!!int x', '!!set {b, a}', '!!binary x',
     '!!python/name:os.system', '!x y', '{1: a}', '{true: a}', '{a: 1, a: 2}', '{~: 1}', '[a]: 1', '*a', '\x00', 'x' * 200_000,
     '\n'.join(f'k{i}: 1' for i in range(5000)) + '\nk1: 2'],
    ids=lambda t: t[:12],
)  # fmt: skip
def test_yaml_that_is_not_plain_is_refused_at_once(text):
    with pytest.raises(ValueError, match='^spec.yaml: ') as e:
        from_yaml(text, 'spec.yaml')
    assert len(str(e.value)) < 1000


def test_yaml_means_what_people_mean():
    text = '{on: no, "1": 010, t: 12:30, d: 2026-01-02, h: 0x1F, e: 1e-3, i: .inf, n: ~, b: true, dots: .., s: -7}'
    assert from_yaml(text, 'spec') == {
        'on': 'no', '1': '010', 't': '12:30', 'd': '2026-01-02', 'h': '0x1F', 'e': 1e-3, 'i': float('inf'), 'n': None, 'b': True,
        'dots': '..', 's': -7,
    }  # fmt: skip
    assert from_yaml('..', 'spec') == '..' and from_yaml('', 'spec') is None


def test_sets_are_stored_in_one_order():
    "The order of texts in a set is another one in each process"
    letters = list('abcdefghijklmn')
    assert plain(set(letters)) == plain(frozenset(letters)) == letters and plain({3, 1}) == [1, 3]


# ---- names


def test_short_and_full_names_are_one_run():
    notebook = find_experiment('quickstart')
    full = dict(
        method='disent_nb.methods.betavae.BetaVAE',
        net='disent_nb.nets.conv64.locatello64',
        views='disent_nb.data.views.Singles',
        dataset='disent_nb.rendered.dsprites.ReducedDSprites',
    )
    short = {name: path.rpartition('.')[2] for name, path in full.items()}
    assert resolve(notebook, None, full) == resolve(notebook, None, short) == resolve(notebook, None, {}, short)
    assert {k: resolve(notebook, None, short)[k] for k in full} == full
    ways = [
        resolve(notebook, None, dict(method=m))
        for m in ('VAE', 'disent_nb.methods.vae.VAE', 'disent_nb.methods.betavae.VAE')
    ]
    assert len({run_id(w) for w in ways}) == 1
    for name, near in dict(method='BetaVEA', net='burges64', views='Pair', dataset='ReducedDsprite').items():
        with pytest.raises(ValueError, match=f'{name}: .*did you mean'):
            resolve(notebook, None, {name: near})
    with pytest.raises(ValueError, match="did you mean 'disent_nb.methods.betavae.BetaVAE'"):
        resolve(notebook, None, dict(method='disent_nb.nets.betavae.BetaVAE'))


def test_a_parameter_of_that_name_that_holds_no_path_is_left_alone(tmp_path):
    assert resolve(notebook_of(tmp_path, "method = 'pca'"), None, dict(method='ica')) == dict(method='ica')


def test_a_file_of_a_stranger_imports_nothing(tmp_path, monkeypatch):
    (tmp_path / 'stranger').mkdir()
    (tmp_path / 'stranger' / '__init__.py').write_text("raise SystemExit('imported')")
    (tmp_path / 'stranger' / 'deep.py').touch()
    monkeypatch.syspath_prepend(tmp_path)
    notebook = find_experiment('quickstart')
    for name in ('method', 'net', 'dataset', 'views'):
        for path in ('stranger.deep.Model', 'stranger.Model'):
            with pytest.raises(ValueError, match=f'{name}: .*import stranger'):
                resolve(notebook, None, {name: path}, own=False)
    for path in ('os.system', 'subprocess.run', 'builtins.exec'):  # imported already, but nothing of the kind
        with pytest.raises(ValueError, match='method: .*no Model|method: .*expected'):
            resolve(notebook, None, dict(method=path), own=False)
    assert not [m for m in sys.modules if m.startswith('stranger')]
    with pytest.raises(ValueError, match='method: the module stranger fails when it is imported: SystemExit'):
        load_object('stranger.Model', 'method')


# ---- own classes, the report and the card, in one real run

OWN = '''
from disent_nb.methods.vae import VAE

class MyVAE(VAE):
    "One of my own"
    def __init__(self, encoder, decoder, likelihood='bernoulli', beta=1.0):
        super().__init__(encoder, decoder, likelihood)
'''


@pytest.fixture(scope='module')
def own(tmp_path_factory):
    "A run of quickstart with a class that stands where the user stands"
    here = tmp_path_factory.mktemp('here')
    (here / 'mymethod_of_mine.py').write_text(OWN)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        patch.setenv('OMP_NUM_THREADS', '1')
        texts = {'method': 'mymethod_of_mine.MyVAE', 'method_options.beta': '2', 'device': 'cpu', 'steps': '5'}
        yield here, texts, run('quickstart', None, 'smoke', 'runs', progress=False, texts=texts)


def test_an_own_class_is_found_where_the_user_stands(own):
    from disent_nb.runs.study import load_run

    here, texts, folder = own
    params = read_record(folder)[0]['parameters']
    assert params['method'] == texts['method'] and params['method_options'] == dict(beta=2.0)
    assert not [p for p in sys.path if p == str(here)]
    assert type(load_run(folder)[1]).__name__ == 'MyVAE'
    (here / 'mymethod_of_mine.py').write_text(OWN + '    other = 1\n')
    with pytest.raises(ValueError, match='other modules'):
        run('quickstart', None, 'smoke', 'runs', progress=False, texts=texts)
    (here / 'mymethod_of_mine.py').write_text(OWN)
    assert run('quickstart', None, 'smoke', 'runs', progress=False, texts=texts) == folder


def test_the_report_needs_no_network_and_has_a_title_and_a_summary(own):
    text = (own[2] / 'report.html').read_text()
    assert not re.search(r'<(script|link|iframe|img)[^>]*(src|href)="?\s*(https?:)?//|@import|import\(', text)
    title = re.search('<title>(.*)</title>', text)[1]
    assert title.endswith(own[2].name) and 'MathJax' not in text and '.part' not in title
    heading, summary = text.index('<h1'), text.index('class="summary"')
    rows = dict(re.findall('<tr><th[^>]*>(.*?)</th><td[^>]*>(.*?)</td></tr>', text[summary:]))
    assert heading < summary < text.index('class="highlight')
    assert (
        rows['method'] == 'mymethod_of_mine.MyVAE'
        and rows['device'] == 'cpu'
        and 'mig' in rows
        and 'latents' not in rows
    )
    assert rows['revision'] == (read_record(own[2])[0]['git']['revision'] or 'unknown')


def test_the_card_says_what_the_model_is_and_how_to_load_it(own):
    text = (own[2] / 'card.md').read_text()
    mig = read_record(own[2])[1]['mig']
    for part in ('license: apache-2.0', '# MyVAE on ReducedDSprites, seed 0', '`{"beta": 2.0}`', f'| mig | `{mig:.4g}` |',
                 'load_run(', 'revision', '## Licence', '## Limits'):  # fmt: skip
        assert part in text, part


def test_a_study_training_has_a_card_too(tmp_path):
    from disent_nb.runs.study import train

    folder = tmp_path / 'VAE'
    small = dict(steps=2, batch_size=8, latents=3, metrics=(), device='cpu')
    train(folder, 'a label', dataset='disent_nb.rendered.dsprites.ReducedDSprites', **small)
    assert '# VAE on ReducedDSprites, seed 0' in (folder / 'card.md').read_text()


def test_a_notebook_of_ones_own_runs_as_papermill_would_run_it(tmp_path, monkeypatch):
    "Formulas as MathML; an annotated and computed cell, no `out`, no kernelspec, a helper beside it, another python3 kernel, braces in paths"
    kernel = tmp_path / 'jupyter' / 'kernels' / 'python3'
    kernel.mkdir(parents=True)
    spec = dict(argv=['/bin/false', '{connection_file}'], display_name='another', language='python')
    (kernel / 'kernel.json').write_text(json.dumps(spec))
    monkeypatch.setenv('JUPYTER_PATH', str(tmp_path / 'jupyter'))
    cell = "import json, sys, helper_beside_it\nfound = dict(n=n, half=half, label=label, python=sys.executable, twice=helper_beside_it.twice(n), free=sorted({'p', 'sys_'} & set(globals())))\nopen('metrics.json', 'w').write(json.dumps(found))"
    notebook = notebook_of(tmp_path / 'far {braces}', 'n: int = 2 * 2\nhalf = n / 2\nlabel = f"n is {n}"', cell)
    (notebook.parent / 'helper_beside_it.py').write_text('def twice(n):\n    return 2 * n\n')
    done = run(notebook, out=tmp_path / '{runs}', progress=False, texts=dict(n='05'))
    want = dict(n=5, half=2.0, label='n is 4', twice=10, python=sys.executable, free=[])
    assert read_record(done)[1] == want, 'parameters that are computed keep the value that the notebook gives them'
    text = (done / 'report.html').read_text()
    assert '<math' in text and '$\\beta$' not in text and '<title>A toy: ' in text
    assert not (done / 'card.md').exists()


# ---- folders


def make(folder, number=1, **kwargs):
    "A complete folder without a kernel"
    with locked(folder), recorded(folder, 'toy', {}, **kwargs) as part:
        (part / 'metrics.json').write_text(json.dumps(dict(number=number)))
    return folder


@pytest.mark.parametrize('left', ['a folder', 'a file', 'a link'])
def test_a_leftover_old_folder_is_no_hindrance(tmp_path, left):
    folder, old, elsewhere = make(tmp_path / 'run'), tmp_path / 'run.old', tmp_path / 'elsewhere'
    elsewhere.mkdir()
    (elsewhere / 'kept').touch()
    if left == 'a folder':
        shutil.copytree(folder, old)
    elif left == 'a file':
        old.touch()
    else:
        old.symlink_to(elsewhere)
    assert read_record(make(folder, 2))[1] == dict(number=2) and not old.exists() and (elsewhere / 'kept').exists()


def test_a_process_killed_between_two_renamings_has_lost_nothing(tmp_path):
    folder = make(tmp_path / 'run')
    for left, want in (('run.old', 1), ('run.part', 1)):
        folder.rename(tmp_path / left)
        with locked(folder):
            assert read_record(folder)[1] == dict(number=want)
    shutil.copytree(folder, tmp_path / 'run.old')
    folder.rename(tmp_path / 'run.part')
    (tmp_path / 'run.part' / 'metrics.json').write_text('{"number": 3}')
    with locked(folder):
        assert read_record(folder)[1] == dict(number=3) and not (tmp_path / 'run.old').exists()


@pytest.mark.parametrize('file', ['config.json', 'metrics.json'])
@pytest.mark.parametrize('text', [None, '', '{', '[]', '3', '{"a": 1}', '\x00'])
def test_a_damaged_record_names_the_file_and_what_to_do(tmp_path, file, text):
    notebook = notebook_of(tmp_path / 'nb', 'n = 1')
    folder = make(tmp_path / 'run', notebook=notebook)
    assert is_done(folder, notebook)
    if text is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(text)
    if (file, text) == ('metrics.json', '{"a": 1}'):
        assert is_done(folder, notebook)
        return
    with pytest.raises(ValueError, match=r'\brun\b.*delete the folder, or repeat the run with --force'):
        is_done(folder, notebook)


def test_an_empty_folder_is_not_complete(tmp_path):
    notebook = notebook_of(tmp_path / 'nb', 'n = 1')
    (tmp_path / 'run').mkdir()
    assert not is_done(tmp_path / 'run', notebook)
    make(tmp_path / 'run', notebook=notebook)
    assert is_done(tmp_path / 'run', notebook)


@pytest.mark.parametrize('out', ['file', 'file/below', '/proc/nothing', '/dev/null/x'])
def test_a_place_that_cannot_be_written_to_is_found_before_the_training(tmp_path, out):
    notebook = notebook_of(tmp_path / 'nb', 'n = 1', 'raise SystemExit')
    (tmp_path / 'file').touch()
    with pytest.raises(ValueError, match='^out: .*cannot be written to'):
        run(notebook, out=tmp_path / out, progress=False)


def test_a_full_disk_is_found_before_the_training(tmp_path):
    notebook = notebook_of(tmp_path / 'nb', 'n = 1', 'raise SystemExit')
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))  # no file may hold a byte
    try:
        with pytest.raises(ValueError, match='^out: .*cannot be written to'):
            run(notebook, out=tmp_path / 'runs', progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_up_during_a_run_is_a_failed_run(tmp_path, monkeypatch):
    from disent_nb.runs import run as module

    def full(*args):
        raise OSError(28, 'No space left on device', 'run.ipynb')

    monkeypatch.setattr(module, 'execute', full)
    with pytest.raises(RunFailed, match='No space left on device.*the same command goes on'):
        run(notebook_of(tmp_path, 'n = 1'), out=tmp_path / 'runs', progress=False)


@pytest.mark.parametrize('name', ['../x', '../../x', '/tmp/x', 'a/../../x', '..', 'link/x', 'x\x00'])
def test_a_figure_stays_within_the_folder(tmp_path, name):
    from matplotlib.figure import Figure

    (tmp_path / 'out' / 'figures').mkdir(parents=True)
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'out' / 'figures' / 'link').symlink_to(tmp_path / 'elsewhere')
    before = set(tmp_path.rglob('*'))
    if name == '..':  # the file `...png` is an odd one, but within the folder
        RunFolder(tmp_path / 'out').figure(name, Figure())
        assert (tmp_path / 'out' / 'figures' / '...png').exists()
        return
    with pytest.raises(ValueError, match='name: got'):
        RunFolder(tmp_path / 'out').figure(name, Figure())
    assert set(tmp_path.rglob('*')) == before


@pytest.mark.parametrize('seed', ['../../x', '/x', 'a/b', '..'])
def test_a_text_as_seed_stays_within_the_folder_of_runs(tmp_path, seed):
    assert re.fullmatch('[0-9a-f]{8}', run_id(dict(seed=seed)))
    with pytest.raises(ValueError, match='hidden'):
        find_experiment(notebook_of(tmp_path, 'n = 1', name='..'))


def test_two_runs_in_threads_of_one_process(tmp_path):
    notebook = notebook_of(tmp_path, 'n = 1', "import json\nopen('metrics.json', 'w').write(json.dumps(dict(n=n)))")
    found = {}

    def work(n):
        found[n] = run(notebook, dict(n=n), out=tmp_path / 'runs', progress=True)

    threads = [threading.Thread(target=work, args=(n,)) for n in (1, 2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(120)
    assert {n: read_record(done)[1]['n'] for n, done in found.items()} == {1: 1, 2: 2}
