"Jobs, sweeps and tables: real processes, real kernels, and what happens when one of them dies."

import json, math, os, signal, subprocess, sys, textwrap, time
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from disent_nb.core import fails
from disent_nb.runs.jobs import run_jobs, threads_each
from disent_nb.runs.run import run
from disent_nb.runs.sweep import expand, plan, read_spec, short, specs
from disent_nb.runs.tables import mean_interval, read_runs, table, table_text, text_lines

command = Path(sys.executable).parent / 'disent-nb'

WORK = """
import os, signal, time

def square(x): return x * x

def about_threads(_):
    import torch
    return torch.get_num_threads(), os.environ['OMP_NUM_THREADS']

def interrupts(folder):
    "Counts the SIGINTs that it gets, over two seconds after the first"
    got = []
    signal.signal(signal.SIGINT, lambda *_: got.append(1))
    open(f'{folder}/{os.getpid()}.pid', 'w').close()
    while not got: time.sleep(.05)
    time.sleep(2)
    open(f'{folder}/{os.getpid()}.got', 'w').write(str(len(got)))

def stubborn(folder):
    open(f'{folder}/{os.getpid()}.pid', 'w').close()
    time.sleep(600)

def jobs(f, folder):
    from disent_nb.runs.jobs import run_jobs
    for _ in run_jobs(f, [folder] * 2, 2): pass
"""


@pytest.fixture(scope='module')
def work(tmp_path_factory):
    "A module whose functions other processes can import"
    folder = tmp_path_factory.mktemp('module')
    (folder / 'jobs_for_tests.py').write_text(WORK)
    sys.path.insert(0, str(folder))
    import jobs_for_tests

    yield jobs_for_tests
    sys.path.remove(str(folder))


def until(condition, what, seconds=300):
    "Wait for something"
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, what
        time.sleep(0.05)


def alive(pid):
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except OSError:
        return False


def start(*args, **kwargs):
    return subprocess.Popen(
        [*map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, **kwargs
    )


def call(*args):
    process = start(command, *args)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def test_jobs_give_the_same_for_any_number_of_workers_and_leave_the_caller_alone(work):
    def state():
        return (
            dict(os.environ),
            signal.getsignal(signal.SIGINT),
            signal.pthread_sigmask(signal.SIG_BLOCK, []),
            os.getcwd(),
        )

    before, items = state(), [3, 1, 'x', 2]
    answers = [sorted(run_jobs(work.square, items, w)) for w in (1, 3)]
    assert answers[0] == answers[1] and [r for _, r, _ in answers[0]] == [9, 1, None, 4]
    assert [e and e[:10] for *_, e in answers[0]] == [None, None, 'TypeError:', None] and state() == before
    assert list(run_jobs(work.square, [], 2)) == []


def test_a_job_ended_by_a_signal_without_a_name_is_an_error_of_that_job():
    found = sorted(run_jobs(signal.raise_signal, [signal.SIGRTMIN + 6, 0], 2))
    assert f'signal {signal.SIGRTMIN + 6}' in found[0][2] and found[1] == (1, None, None)


def test_each_job_has_an_equal_part_of_the_threads(work, monkeypatch):
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    assert [r for _, r, _ in run_jobs(work.about_threads, [0], 1)] == [(threads_each(1), str(threads_each(1)))]
    assert threads_each(10**6) == 1 and threads_each(1) == len(os.sched_getaffinity(0))


@pytest.mark.skipif(sys.platform != 'linux', reason='looks into /proc')
@pytest.mark.parametrize('f, how', [('interrupts', signal.SIGINT), ('stubborn', signal.SIGKILL)])
def test_the_end_of_the_caller_is_the_end_of_the_jobs(work, tmp_path, f, how):
    "Ctrl-C in a terminal reaches the whole group: each job is interrupted once; and when the caller alone is killed its jobs follow"
    code = f'import jobs_for_tests as j\nif __name__ == "__main__": j.jobs(j.{f}, {str(tmp_path)!r})'
    (tmp_path / 'script.py').write_text(code)
    process = start(
        sys.executable, tmp_path / 'script.py', env=dict(os.environ, PYTHONPATH=str(Path(work.__file__).parent))
    )
    until(lambda: len(list(tmp_path.glob('*.pid'))) == 2 or process.poll() is not None, 'no jobs')
    pids = [int(p.stem) for p in tmp_path.glob('*.pid')]
    (os.killpg if how == signal.SIGINT else os.kill)(process.pid, how)
    _, err = process.communicate(timeout=60)
    until(lambda: not any(map(alive, pids)), f'{pids} are still there', 20)
    assert len(pids) == 2, err
    if how == signal.SIGINT:
        assert 'KeyboardInterrupt' in err and [p.read_text() for p in tmp_path.glob('*.got')] == ['1', '1']


def toy(folder):
    "An experiment that counts; a file named by `label` in the folder `trouble` says what goes wrong, and with the label 'wait' it waits there for a file 'go' after the first step"
    cells = [
        new_code_cell("label = 'a'\nsteps = 2\nseed = 0\ntrouble = ''\nout = ''", metadata=dict(tags=['parameters'])),
        new_code_cell(
            textwrap.dedent("""
                import json, os, pathlib, time
                pathlib.Path('kernel.pid').write_text(str(os.getpid()))
                note, state = pathlib.Path(trouble)/label, pathlib.Path('state.json')
                what = note.read_text() if trouble and note.exists() else ''
                if what == 'raise': raise ValueError('told to fail')
                if what: os.kill(os.getppid(), 9); time.sleep(60)
                begin = json.loads(state.read_text()) if state.exists() else 0
                for i in range(begin, steps):
                    while i and label == 'wait' and not (pathlib.Path(trouble)/'go').exists(): time.sleep(.05)
                    pathlib.Path('state.tmp').write_text(str(i + 1))
                    os.replace('state.tmp', state)
                pathlib.Path('metrics.json').write_text(json.dumps(dict(score=seed + len(label), begin=begin)))""")
        ),
    ]
    nbformat.write(
        new_notebook(
            cells=cells, metadata=dict(kernelspec=dict(name='python3', display_name='python3', language='python'))
        ),
        folder / 'toy.ipynb',
    )
    return folder / 'toy.ipynb'


def test_failures_are_listed_and_the_same_command_does_the_rest(tmp_path):
    toy(tmp_path)
    (tmp_path / 'spec.yaml').write_text(
        f"experiment: toy.ipynb\nparameters: {{trouble: {tmp_path}}}\ngrid:\n- label: [fine, cell, worker]\n- {{label: fine, steps: 2}}\n"
    )
    for label, what in dict(cell='raise', worker='worker').items():
        (tmp_path / label).write_text(what)
    words = ('sweep', tmp_path / 'spec.yaml', '-j', 2, '--out', tmp_path / 'runs')
    code, out, err = call(*words)
    assert code == 1, out + err
    assert (
        '3 runs (1 repeated combinations left out), 0 complete, 3 to do' in out
        and '[3/3]' in out
        and '2 of 3 runs failed' in out
    )
    summary = out.partition('runs failed')[2]
    for text in ('ValueError: told to fail', 'SIGKILL'):
        assert text in summary, out
    done = [p for p in (tmp_path / 'runs' / 'toy').iterdir() if p.is_dir() and p.suffix != '.part']
    assert len(done) == 1 and json.loads((done[0] / 'config.json').read_text())['parameters']['label'] == 'fine'
    stamp = (done[0] / 'run.ipynb').stat().st_mtime_ns
    for label in ('cell', 'worker'):
        (tmp_path / label).unlink()
    code, out, err = call(*words)
    assert code == 0 and '1 complete, 2 to do' in out and 'failed' not in out, out + err
    assert (done[0] / 'run.ipynb').stat().st_mtime_ns == stamp and not list(tmp_path.glob('runs/toy/*.part'))
    code, out, err = call('table', tmp_path / 'runs', '--rows', 'label', '--metrics', 'score', '--format', 'csv')
    assert code == 0 and [line.split(',')[::2] for line in out.splitlines()[1:]] == [
        [k, f'{len(k)}.0', ''] for k in ('cell', 'fine', 'worker')
    ], out


@pytest.mark.skipif(sys.platform != 'linux', reason='looks into /proc')
def test_an_interrupted_sweep_ends_its_processes_and_goes_on(tmp_path):
    toy(tmp_path)
    (tmp_path / 'spec.yaml').write_text(
        f'experiment: toy.ipynb\nparameters: {{label: wait, trouble: {tmp_path}}}\nseeds: [0, 1]\n'
    )
    words = ('sweep', tmp_path / 'spec.yaml', '-j', 2, '--out', tmp_path / 'runs')
    process = start(command, *words)
    until(
        lambda: len(list(tmp_path.glob('runs/toy/*.part/state.json'))) == 2 or process.poll() is not None,
        'nothing runs',
    )
    kernels = [int(p.read_text()) for p in tmp_path.glob('runs/toy/*.part/kernel.pid')]
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130 and 'the same command goes on' in err and 'Traceback' not in err, out + err
    until(lambda: not any(map(alive, kernels)), 'a kernel outlived its run', 20)
    assert len(kernels) == 2 and len(list(tmp_path.glob('runs/toy/*.part'))) == 2
    (tmp_path / 'go').touch()
    code, out, err = call(*words)
    assert code == 0, out + err
    assert all(json.loads(p.read_text())['begin'] == 1 for p in tmp_path.glob('runs/toy/*/metrics.json'))


@pytest.mark.parametrize('first_one_is_killed', [False, True])
def test_two_sweeps_on_one_folder_divide_the_runs(tmp_path, first_one_is_killed):
    "The second waits for what the first is writing, and does it if the first does not end it; neither calls it failed"
    toy(tmp_path)
    (tmp_path / 'spec.yaml').write_text(
        f'experiment: toy.ipynb\nparameters: {{label: wait, trouble: {tmp_path}}}\nseeds: [0, 1]\n'
    )
    words = (command, 'sweep', tmp_path / 'spec.yaml', '--out', tmp_path / 'runs')

    def begun(n):
        return len(list(tmp_path.glob('runs/toy/*.part/state.json'))) == n

    first = start(*words)
    until(lambda: begun(1) or first.poll() is not None, 'the first sweep does nothing')
    second = start(*words)
    until(lambda: begun(2) or second.poll() is not None, 'the second sweep does nothing')
    if first_one_is_killed:
        os.killpg(first.pid, signal.SIGINT)
        first.communicate(timeout=120)
    (tmp_path / 'go').touch()
    out, err = second.communicate(timeout=300)
    assert second.returncode == 0 and 'left to another process' in out and 'failed' not in out, out + err
    if first_one_is_killed:
        assert '[1/1] done' in out, out
    else:
        out, err = first.communicate(timeout=300)
        assert first.returncode == 0 and 'failed' not in out, out + err
    begins = [json.loads(p.read_text())['begin'] for p in tmp_path.glob('runs/toy/*/metrics.json')]
    assert sorted(begins) == [0, int(first_one_is_killed)] and not list(tmp_path.glob('runs/toy/*.part'))


def test_a_kernel_that_does_not_start_is_started_again(tmp_path, monkeypatch):
    tried, python = tmp_path / 'tried', tmp_path / 'python'
    python.write_text(f'#!/bin/sh\n[ -e {tried} ] || {{ touch {tried}; exit 1; }}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, 'executable', str(python))  # the kernel is that of this interpreter
    folder = run(toy(tmp_path), out=tmp_path / 'runs', progress=False)
    assert (tmp_path / 'tried').exists() and json.loads((folder / 'metrics.json').read_text()) == dict(score=1, begin=0)


def test_everything_wrong_is_found_before_the_first_run(tmp_path):
    toy(tmp_path)
    (tmp_path / 'spec.yaml').write_text('experiment: toy.ipynb\ngrid: {steps: [1, many, 2.5], seed: [0, 1]}\n')
    code, out, err = call('sweep', tmp_path / 'spec.yaml', '--out', tmp_path / 'runs')
    assert code == 2 and '4 of 6 runs' in err and 'steps many, seed 0: steps: got' in err and 'Traceback' not in err
    assert not (tmp_path / 'runs').exists()


def test_a_plan_holds_each_run_once_and_shipped_sweeps_are_right(tmp_path):
    path = toy(tmp_path)
    planned = plan(path, expand(dict(steps=[2, 3, '2', 2.0]), seeds=[0]) + [dict(), dict(seed=0)], out=tmp_path)
    assert [p['given'].get('steps', 2) for p in planned] == [2, 3]
    for name in specs():
        spec = read_spec(name)
        assert plan(**spec, out=tmp_path) and spec['runs']


def store(folder, parameters, metrics, experiment='quickstart', code=None):
    folder.mkdir(parents=True)
    config = dict(experiment=experiment, parameters=parameters, seconds=1.0)
    if code is not None:
        config['code'] = code
    (folder / 'config.json').write_text(json.dumps(config))
    (folder / 'metrics.json').write_text(json.dumps(metrics))


VAE, TC = 'disent_nb.methods.vae.VAE', 'disent_nb.methods.betatc.BetaTCVAE'


@pytest.fixture
def runs(tmp_path):
    "Two methods; one has a single run, the other three with a score of 0.2, 0.4, 0.9; one more number is not finite"
    out = tmp_path / 'runs'
    store(
        out / 'quickstart' / 'a',
        dict(method=VAE, method_options={}, latents=10, seed=0),
        dict(mig=0.25, loss=None, per=dict(x_1=1, y=2), text='no number', flag=True),
    )
    for seed, mig in enumerate((0.2, 0.4, 0.9)):
        store(
            out / 'quickstart' / f'b{seed}',
            dict(method=TC, method_options=dict(beta=4), latents=10, seed=seed),
            dict(mig=mig, loss=2.0 * seed, per=dict(x_1=1, y=seed)),
        )
    return out


def test_means_and_intervals_are_those_of_the_textbook(runs):
    cells = table(runs, metrics=['mig', 'loss']).set_index(['method', 'metric'])
    mean, half = (
        0.5,
        4.302652729911275 * math.sqrt(0.13) / math.sqrt(3),
    )  # t(0.975, 2); variance of 0.2, 0.4, 0.9 is 0.13
    assert cells.loc[TC, 'mig'].tolist() == pytest.approx([mean, mean - half, mean + half, 3])
    assert cells.loc[TC, 'loss'].tolist() == pytest.approx(
        [2, 2 - 4.302652729911275 * 2 / math.sqrt(3), 2 + 4.302652729911275 * 2 / math.sqrt(3), 3]
    )
    assert (
        cells.loc[(VAE, 'mig'), ['mean', 'n']].tolist() == [0.25, 1]
        and cells.loc[(VAE, 'mig'), ['low', 'high']].isna().all()
    )
    assert cells.loc[(VAE, 'loss'), 'n'] == 0 and math.isnan(cells.loc[(VAE, 'loss'), 'mean'])
    assert mean_interval([1.0, 1.0]) == dict(mean=1.0, low=1.0, high=1.0, n=2)


def test_a_wide_frame_holds_the_same_numbers(runs):
    long, wide = table(runs), table(runs, wide=True)
    assert wide.shape == (2, 4 * long['metric'].nunique()) and wide.index.name == 'method'
    for _, c in long.iterrows():
        for k in ('mean', 'low', 'high', 'n'):
            np.testing.assert_equal(wide.loc[c['method'], (c['metric'], k)], c[k])
    wide = table(runs, ['method', 'latents'], ['method_options.beta', 'metric'], ['mig'], wide=True)
    assert wide.loc[(TC, 10), (4, 'mig', 'mean')] == pytest.approx(0.5) and math.isnan(
        wide.loc[(TC, 10), ('-', 'mig', 'mean')]
    )


def test_what_is_left_out_or_thrown_together_is_said(runs):
    assert set(table(runs)['metric']) == {'mig', 'loss'} and set(table(runs, metrics=['per'])['metric']) == {
        'per.x_1',
        'per.y',
    }
    (runs / 'quickstart' / 'c.part').mkdir()
    store(runs / 'quickstart' / 'd', {}, {})
    (runs / 'quickstart' / 'd' / 'metrics.json').write_text('[1')
    store(runs / 'quickstart' / 'e', dict(method=TC, method_options=dict(beta=8), latents=10, seed=0), dict(mig=0.1))
    said = '\n'.join(table(runs).attrs['notes'])
    for word in (
        'differ in method_options.beta',
        'ignored 2 folders',
        'c.part (not finished)',
        'd (metrics.json is broken)',
        '1 numbers were not finite',
    ):
        assert word in said
    assert table(runs, where={'method_options.beta': 4}, metrics=['mig']).attrs['notes'][0].startswith('ignored')
    fails(lambda: table(runs, 'latents', 'method'), 'metric', 'mig', 'loss')
    store(runs / 'faces' / 'f', dict(method=TC, seed=0), dict(mig=0.1), 'faces')
    fails(lambda: table(runs), 'experiment', 'faces', 'quickstart')
    assert table(runs, ['experiment', 'method'])['experiment'].value_counts().to_dict() == dict(quickstart=4, faces=1)
    assert set(table(runs, where=dict(experiment='faces'))['mean']) == {0.1}
    fails(lambda: table(runs.parent / 'empty'), 'no folder')
    (runs.parent / 'empty').mkdir()
    fails(lambda: table(runs.parent / 'empty'), 'no complete run')


@pytest.mark.parametrize('name', 'experiment folder metric value mean low high n self'.split())
def test_a_parameter_may_be_named_like_a_column_of_the_table(tmp_path, name):
    for i, (v, seed) in enumerate(((5, 0), (5, 1), (7, 0), (7, 1))):
        store(tmp_path / 'x' / str(i), {name: v, 'lr': 0.1, 'seed': seed}, dict(mig=v + seed, loss=0.0))
    column = name if name == 'self' else f'parameters.{name}'
    for other in ([], ['lr']):
        cells = table(tmp_path, [column, *other], metrics=['mig'])
        assert cells[[column, 'metric', 'mean', 'n']].values.tolist() == [[5, 'mig', 5.5, 2], [7, 'mig', 7.5, 2]]
    assert table(tmp_path, column, metrics=['mig'], wide=True)[('mig', 'mean')].tolist() == [5.5, 7.5]
    assert table(tmp_path, 'lr', where={column: 7}, metrics=['mig'])['mean'].tolist() == [7.5]
    assert table(tmp_path, 'lr', metrics=['mig']).attrs['notes'] == [f'runs in one cell differ in {column}']
    text = table_text(table(tmp_path, column), [column], ['metric'])
    assert text.splitlines()[0].split() == [column, 'mig', 'loss']
    if name not in ('self', 'experiment', 'metric', 'folder'):
        fails(lambda: table(tmp_path, name), repr(column))


DAMAGED = dict(
    empty='',
    torn='{"parameters": {"a"',
    a_list='[1]',
    deep='[' * 100_000,
    deep_dicts='{"a":' * 20_000 + '1' + '}' * 20_000,
    bytes='\x00\x01',
    other='{"a": 1}',
    no_numbers='{"text": "x"}',
    parameters='{"seconds": 1, "parameters": 3}',
    code='{"seconds": 1, "parameters": {}, "code": "x"}',
)


# the others hold numbers, which is all that metrics.json has to hold
DAMAGED_METRICS = [what for what in DAMAGED if what not in ('other', 'parameters', 'code')]
DAMAGED_FILES = [('config.json', what) for what in DAMAGED] + [('metrics.json', what) for what in DAMAGED_METRICS]


@pytest.mark.parametrize('file, what', DAMAGED_FILES)
def test_one_damaged_folder_is_ignored_and_named(runs, file, what):
    want = table(runs)
    folder = runs / 'quickstart' / 'z'
    store(folder, dict(method=TC, seed=9), dict(mig=0.1))
    (folder / file).write_text(DAMAGED[what])
    found = table(runs)
    pd.testing.assert_frame_equal(found, want)
    assert any('ignored 1 folder: ' in note and 'z (' in note for note in found.attrs['notes'])


def test_numbers_too_large_for_a_float_are_no_numbers(tmp_path):
    for seed, mig in enumerate((1, 3, 10**400, math.inf)):
        store(tmp_path / 'x' / str(seed), dict(method=TC, seed=seed), dict(mig=mig))
    found = table(tmp_path)
    assert found[['mean', 'n']].values.tolist() == [[2.0, 2]] and '2 numbers were not finite' in found.attrs['notes'][0]


def test_runs_of_two_states_of_a_notebook_are_not_averaged_in_silence(tmp_path):
    for seed, code in enumerate((None, dict(notebook='aaaa', package='1'), dict(notebook='bbbb', package='1'))):
        store(tmp_path / 'x' / str(seed), dict(method=TC, seed=seed), dict(mig=1.0 * seed), code=code)
    store(tmp_path / 'y' / '0', dict(method=TC, seed=0), dict(mig=9.0), 'faces', dict(notebook='cccc', package='2'))
    rows = ['experiment', 'method']
    fails(lambda: table(tmp_path, rows), 'quickstart', '3 states', '1 by -', '1 by aaaa', '1 by bbbb', 'mixed=True')
    found = table(tmp_path, rows, mixed=True)
    assert found['mean'].tolist() == [9.0, 1.0] and 'code.notebook' in found.attrs['notes'][0]
    one = table(tmp_path, rows, where={'code.notebook': 'bbbb'})
    assert one['mean'].tolist() == [2.0] and one.attrs['notes'] == []
    each = table(tmp_path, [*rows, 'code.notebook'])
    assert each['n'].tolist() == [1] * 4
    alike = tmp_path / 'alike'
    for seed in (0, 1):
        code = dict(notebook='aaaa', package=str(seed))
        store(alike / str(seed), dict(method=TC, seed=seed), dict(mig=1.0 * seed), code=code)
    assert table(alike).attrs['notes'] == ['runs in one cell differ in code.package']


def test_numbers_are_sorted_as_numbers(tmp_path):
    for i, beta in enumerate((10, 9, 0.5, None)):
        store(
            tmp_path / 'x' / str(i),
            dict(method_options={} if beta is None else dict(beta=beta), seed=0),
            dict(mig=0.1 * i),
        )
    lines = text_lines(table(tmp_path, 'method_options.beta'), ['method_options.beta'], ['metric'])
    assert [line[0] for line in lines] == ['method_options.beta', '0.5', '9', '10', '-']
    lines = text_lines(table(tmp_path, 'metric', 'method_options.beta'), ['metric'], ['method_options.beta'])
    assert [h.split()[-1] for h in lines[0]] == ['metric', '0.5', '9', '10', '-']


def test_the_formats(runs):
    cells = table(runs, metrics=['mig', 'per.x_1'])

    def shown(format):
        return table_text(cells, ['method'], ['metric'], format)

    assert (
        shown('text').splitlines()[1].split() == 'BetaTCVAE 0.500 ± 0.896 (3) 1.000 ± 0.000 (3)'.split()
        and shown('text').splitlines()[2].split() == 'VAE 0.250 (1) 1.000 (1)'.split()
    )
    assert shown('markdown').splitlines()[:2] == ['| method | mig | per.x_1 |', '| --- | ---: | ---: |']
    assert (
        r'method & mig & per.x\_1 \\' in shown('latex')
        and r'BetaTCVAE & 0.500 $\pm$ 0.896 (3)' in shown('latex')
        and shown('latex').count('tabular') == 2
    )
    import io

    pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(shown('csv'))), cells, check_dtype=False)
    fails(lambda: shown('html'), "'html'", 'latex')


def test_names_are_short_only_where_that_is_clear():
    assert short([VAE, 'disent_nb.other.VAE', TC, 'data.h5', 4]) == {
        VAE: VAE,
        'disent_nb.other.VAE': 'disent_nb.other.VAE',
        TC: 'BetaTCVAE',
        'data.h5': 'data.h5',
        '4': '4',
    }
    assert short([VAE, 'VAE']) == {VAE: VAE, 'VAE': 'VAE'}
