"""The diff in CONTRIBUTING.md is real: applied to a copy of the repository it adds a method that is found, trains, and passes the tests of all methods.
So are its templates of a metric, a dataset and an experiment."""

import os, re, shutil, subprocess, sys
from pathlib import Path

import pytest

root, bin = Path(__file__).parents[1], Path(sys.executable).parent
guide = (root / 'CONTRIBUTING.md').read_text(encoding='utf-8')
patch = re.search(r'```diff\n(.*?)```', guide, re.S)[1]
notebook = re.search(r'^\+\+\+ b/(.*)$', patch, re.M)[1]


def call(copy, *command, **kwargs):
    env = {
        **os.environ,
        'PYTHONPATH': str(copy),
        'OMP_NUM_THREADS': '1',
        'GIT_CONFIG_GLOBAL': os.devnull,
        'GIT_CEILING_DIRECTORIES': str(copy.parent),
    }
    done = subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True, timeout=600, **kwargs)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope='module')
def copy(tmp_path_factory):
    "The repository with the diff applied, exported and cleaned"
    if not shutil.which('git'):
        pytest.skip('git is not installed')
    copy = tmp_path_factory.mktemp('repo')
    for part in ('nbs', 'disent_nb', 'tests', 'settings.ini', 'setup.py', 'README.md', '.gitattributes'):
        (shutil.copytree if (root / part).is_dir() else shutil.copy)(root / part, copy / part)
    assert not (copy / notebook).exists()
    call(copy, 'git', 'init', '-q')
    call(copy, 'git', 'apply', '-', input=patch)
    call(
        copy,
        bin / 'jupytext',
        '--from',
        'py:percent',
        '--to',
        'ipynb',
        '-o',
        notebook,
        '-',
        input=(copy / notebook).read_text(encoding='utf-8'),
    )
    for command in ('nbdev_export', 'nbdev_clean'):
        call(copy, bin / command)
    return copy


def test_git_prints_this_diff(copy):
    call(
        copy,
        'git',
        'config',
        'diff.ipynb.textconv',
        re.search(r"textconv '\.venv/bin/(.*?)'\n", guide)[1].replace('jupytext', str(bin / 'jupytext'), 1),
    )
    call(copy, 'git', 'add', '-N', notebook)
    assert re.sub(r'^index .*\n', '', call(copy, 'git', 'diff', '--', notebook), flags=re.M) == patch


def test_the_method_is_listed(copy):
    listed = call(copy, bin / 'disent-nb', 'list')
    assert re.search(r'InfoVAE +VAE with a penalty.*\[disent_nb\.methods\.infovae\.InfoVAE\]', listed)
    assert not (root / 'disent_nb' / 'methods' / 'infovae.py').exists()


def test_the_notebook_trains_and_is_fit_to_be_read(copy):
    call(copy, bin / 'jupyter', 'nbconvert', '--to', 'notebook', '--execute', '--inplace', notebook)
    call(copy, bin / 'nbdev_clean')
    told = call(
        copy, sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', 'tests/test_notebooks.py', '-k', 'infovae'
    )
    assert re.search(r'6 passed', told)  # title and outputs, evidence, layers, docstrings


def test_it_passes_the_tests_of_all_methods(copy):
    told = call(
        copy, sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', 'tests/test_methods.py', '-k', 'infovae'
    )
    assert int(re.search(r'(\d+) passed', told)[1]) >= 10


def blocks(title, language):
    "The blocks of code of a section, in their order"
    section = re.search(rf'^## {title}\n(.*?)(?=^## )', guide, re.S | re.M)[1]
    every = re.findall(r'^```(\w*)\n(.*?)^```$', section, re.S | re.M)
    return [text for kind, text in every if kind == language]


def run_here(folder, *command):
    "Output of a command in a folder of the user's, with this package"
    env = {**os.environ, 'PYTHONPATH': str(root), 'OMP_NUM_THREADS': '1', 'TQDM_DISABLE': '1'}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize('title, word', [('Adding a metric', 'centroid_accuracy'), ('Adding a dataset', 'Bars(')])
def test_the_template_runs(tmp_path, title, word):
    (template,) = blocks(title, 'python')
    assert 'assert ' in template
    (tmp_path / 'template.py').write_text(template, encoding='utf-8')
    assert word in run_here(tmp_path, sys.executable, 'template.py')


def test_the_metric_of_the_template_fails_its_known_answers_if_it_is_wrong(tmp_path):
    (template,) = blocks('Adding a metric', 'python')
    wrong = template.replace('far.argmin(1)', 'far.argmax(1)')
    (tmp_path / 'template.py').write_text(wrong, encoding='utf-8')
    done = subprocess.run(
        [sys.executable, 'template.py'],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': str(root)},
        capture_output=True,
        text=True,
    )
    assert wrong != template and 'AssertionError' in done.stderr


def test_the_experiment_runs_as_it_says(tmp_path):
    (template,), (preset,), (commands,) = (blocks('Adding an experiment', kind) for kind in ('python', 'yaml', ''))
    (tmp_path / 'beta_gap.py').write_text(template, encoding='utf-8')
    (tmp_path / 'presets').mkdir()
    (tmp_path / 'presets' / 'beta_gap.yaml').write_text(preset, encoding='utf-8')
    told = []
    for command in commands.splitlines():
        program, *arguments = command.split()
        told.append(run_here(tmp_path, bin / Path(program).name, *arguments))
    metrics = sorted(tmp_path.glob('runs/beta_gap/*/metrics.json'))
    assert len(metrics) == 2
    assert 'mig' in told[-1] and 'sap' in told[-1]
