"A run killed with SIGKILL at any moment and started again ends bit-identical to one that was never interrupted."

import random, signal, subprocess, sys, time

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = """
import sys
from disent_nb.core import seed_all
from disent_nb.rendered.dsprites import ReducedDSprites
from disent_nb.data.views import Singles
from disent_nb.methods.betatc import BetaTCVAE
from disent_nb.nets.conv64 import burgess64
from disent_nb.runs.folder import RunFolder
from disent_nb.train.fit import Callback, adam, fit

class Say(Callback):
    def step_end(self, loop): print(loop.t, flush=True)

folder = RunFolder(sys.argv[1], every_s=0.)   # saves after every step, so that many kills hit a file half written
seed_all(0)
m = BetaTCVAE(*burgess64(1, 4))
fit(m, Singles(ReducedDSprites(), 16, 0, 'cpu'), 60, adam(1e-3), 'cpu', 0, [*folder.callbacks, Say()])
folder.weights(m)
"""


def start(out):
    return subprocess.Popen([sys.executable, '-c', SCRIPT, str(out)], stdout=subprocess.PIPE, text=True)


def run_to_end(out):
    process = start(out)
    process.communicate(timeout=300)
    assert process.returncode == 0


def kill_after(process, n_steps, seconds):
    "Kill a training some time after it has done a number of steps; returns how many it had done, 0 if it was over"
    for line, _ in zip(process.stdout, range(n_steps)):
        step = int(line)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    return step if process.wait() == -signal.SIGKILL else 0


@pytest.fixture(scope='module')
def want(tmp_path_factory):
    "The uninterrupted run"
    out = tmp_path_factory.mktemp('want')
    run_to_end(out)
    return out


@pytest.mark.parametrize('seed', [1, 2])
def test_killed_runs_end_bit_identical(want, tmp_path, seed):
    "Killed three times, each after some steps of its own and at a random moment within a step"
    moments, done = random.Random(f'{seed}'), [0]
    for _ in range(3):
        step = kill_after(start(tmp_path), moments.randint(2, 14), moments.uniform(0, 0.05))
        assert step > done[-1], 'the run was over before it could be killed, or it began anew'
        done.append(step)
    assert (tmp_path / 'checkpoint.pt').exists(), 'no checkpoint survived, so nothing was resumed'
    run_to_end(tmp_path)
    expected, found = (load_file(folder / 'model.safetensors') for folder in (want, tmp_path))
    assert expected.keys() == found.keys() and all(torch.equal(expected[k], found[k]) for k in found)
    assert all(v.isfinite().all() for v in found.values())
    assert (want / 'history.csv').read_bytes() == (tmp_path / 'history.csv').read_bytes()


def test_another_seed_is_told_apart(want, tmp_path):
    "The comparison above can fail: other noise gives other weights"
    code = SCRIPT.replace("'cpu', 0, [", "'cpu', 1, [")
    assert code != SCRIPT
    subprocess.run([sys.executable, '-c', code, str(tmp_path)], check=True, timeout=300, stdout=subprocess.DEVNULL)
    expected, found = (load_file(folder / 'model.safetensors') for folder in (want, tmp_path))
    assert not all(torch.equal(expected[k], found[k]) for k in found)
