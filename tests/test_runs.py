"The command line, end to end: real runs of the quickstart notebook in processes of their own."

import json, os, signal, subprocess, sys, time
from pathlib import Path

import pandas as pd
import pytest

command = Path(sys.executable).parent / 'disent-nb'
tiny = ['-p', 'steps', '24', '-p', 'batch_size', '16', '-p', 'latents', '4', '-p', 'device', 'cpu']


def start(*args, **kwargs):
    return subprocess.Popen(
        [command, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **kwargs,
    )


def call(*args):
    process = start(*args)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def only(path, pattern):
    found = sorted(path.glob(pattern))
    assert len(found) == 1, found
    return found[0]


@pytest.fixture(scope='module')
def done(tmp_path_factory):
    "A complete run"
    out = tmp_path_factory.mktemp('runs')
    code, printed, err = call('run', 'quickstart', *tiny, '--out', out)
    assert code == 0, err
    return out, only(out, 'quickstart/seed0-*'), printed


def test_a_run_is_a_folder_with_everything(done):
    out, folder, printed = done
    names = {str(p.relative_to(folder)) for p in folder.rglob('*') if p.is_file()}
    assert names >= {'run.ipynb', 'report.html', 'config.json', 'metrics.json', 'history.csv', 'model.safetensors'}
    assert {n for n in names if n.startswith('figures/')} >= {
        f'figures/{n}.png' for n in 'data curves reconstructions traversals mutual_information'.split()
    }
    assert not names & {'checkpoint.pt', 'progress.json'}
    assert 'mig' in printed and str(folder / 'report.html') in printed
    config = json.loads((folder / 'config.json').read_text())
    assert (
        config['parameters']['steps'] == 24
        and config['device'] == 'cpu'
        and config['versions']['torch']
        and config['seconds'] > 0
        and 'revision' in config['git']
    )
    history = pd.read_csv(folder / 'history.csv')
    assert history['step'].iloc[-1] == 24 and history.notna().all(axis=None)
    assert 0 <= json.loads((folder / 'metrics.json').read_text())['mig'] <= 1
    assert str(out) not in (folder / 'run.ipynb').read_text()


def test_a_complete_run_is_skipped(done):
    out, folder, _ = done
    stamp, begin = (folder / 'run.ipynb').stat().st_mtime_ns, time.monotonic()
    code, printed, err = call('run', 'quickstart', *tiny, '--out', out)
    assert code == 0 and 'mig' in printed and (folder / 'run.ipynb').stat().st_mtime_ns == stamp
    assert 'complete already' in err and '--force' in err


def test_the_saved_weights_give_the_saved_score(done):
    "What a user does with the folder: load the model, encode the set, measure"
    import torch
    from disent_nb.core import load_object
    from disent_nb.train.method import encode
    from disent_nb.metrics import mig
    from disent_nb.train.checkpoint import load_weights

    _, folder, _ = done
    p = json.loads((folder / 'config.json').read_text())['parameters']
    ds = load_object(p['dataset'])()
    m = load_weights(load_object(p['method'])(*load_object(p['net'])(1, p['latents'])), folder / 'model.safetensors')
    index = torch.arange(len(ds))
    assert mig(encode(m, ds.images(index)).mu, ds.space.factors(index)) == pytest.approx(
        json.loads((folder / 'metrics.json').read_text())['mig'], abs=1e-6
    )


@pytest.mark.parametrize('how', [signal.SIGKILL, signal.SIGINT], ids=['SIGKILL', 'Ctrl-C'])
def test_an_interrupted_run_resumes_to_the_same_result(done, tmp_path, how):
    _, want, _ = done
    args = ('run', 'quickstart', *tiny, '--out', tmp_path)
    process = start(*args)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob('quickstart/*.part/progress.json')):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, how)
    _, err = process.communicate(timeout=60)
    if how == signal.SIGINT:
        assert process.returncode == 130 and 'the same command goes on' in err
    assert not list(tmp_path.glob('quickstart/seed0-????????')), 'an interrupted run looks complete'
    code, _, err = call(*args)
    assert code == 0, err
    folder = only(tmp_path, 'quickstart/seed0-*')
    for name in ('model.safetensors', 'history.csv', 'metrics.json'):
        assert (folder / name).read_bytes() == (want / name).read_bytes(), name


@pytest.mark.parametrize(
    'args, word',
    [
        (['quickstart', '-p', 'stepz', '10'], "'steps'"),
        (['quickstart', '-p', 'steps', 'many'], 'expected int'),
        (['quickstart', '-p', 'steps', '2.5'], 'expected int'),
        (['quickstart', '-p', 'method', 'disent_nb.methods.betatc.BetaTCVEA'], 'BetaTCVAE'),
        (['quickstart', '-p', 'method_options.betta', '3'], "'beta'"),
        (['quickstart', '--preset', 'quik'], "'quick'"),
        (['quikstart'], "'quickstart'"),
        (['quickstart', '-p', 'device', 'tpu'], 'device'),
    ],
    ids=lambda a: ' '.join(a) if isinstance(a, list) else a,
)
def test_a_wrong_command_exits_2_before_anything_starts(tmp_path, args, word):
    code, _, err = call('run', *args, '--out', tmp_path / 'runs')
    assert code == 2 and word in err and 'Traceback' not in err
    assert not [p for p in tmp_path.rglob('*') if p.is_file() and p.suffix != '.lock']


def test_a_failing_notebook_exits_1_and_keeps_what_it_did(tmp_path):
    code, _, err = call('run', 'quickstart', *tiny, '-p', 'batch_size', '9999', '--out', tmp_path)
    assert code == 1 and 'batch_size: got 9999' in err and 'batches = ' in err
    part = only(tmp_path, 'quickstart/*.part')
    assert 'ValueError' in (part / 'run.ipynb').read_text() and not (part / 'metrics.json').exists()


def test_a_running_run_is_not_started_twice(tmp_path):
    args = ('run', 'quickstart', *tiny, '--out', tmp_path)
    first = start(*args)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob('quickstart/*.part')):
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    code, _, err = call(*args)
    assert code == 2 and 'another process' in err
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()


def test_list_and_show():
    code, out, _ = call('list')
    assert code == 0
    for word in (
        'quickstart',
        'disent_nb.methods.betatc.BetaTCVAE',
        'disent_nb.rendered.dsprites.DSprites',
        'disent_nb.metrics.mig',
    ):
        assert word in out
    code, out, _ = call('show', 'quickstart')
    assert code == 0 and 'steps = 3000' in out and 'preset smoke' in out
