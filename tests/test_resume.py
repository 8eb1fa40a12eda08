"A run killed with SIGKILL at any moment and started again ends bit-identical to one that was never interrupted."
import random, signal, subprocess, sys, time

import pytest
from safetensors.torch import load_file

SCRIPT = """
import sys
from disent_nb.core import seed_all
from disent_nb.data.dsprites import ReducedDSprites
from disent_nb.data.views import Singles
from disent_nb.methods.betatc import BetaTCVAE
from disent_nb.nets.conv64 import burgess64
from disent_nb.runs.folder import RunFolder
from disent_nb.train.fit import adam, fit

folder = RunFolder(sys.argv[1], every_s=0.)   # saves after every step, so that many kills hit a file half written
seed_all(0)
m = BetaTCVAE(*burgess64(1, 4))
print('ready', flush=True)
fit(m, Singles(ReducedDSprites(), 16, 0, 'cpu'), 120, adam(1e-3), 'cpu', 0, folder.callbacks)
folder.weights(m)
"""


def start(out): return subprocess.Popen([sys.executable, '-c', SCRIPT, str(out)], stdout=subprocess.PIPE)


def run_to_end(out): assert start(out).wait(300) == 0


@pytest.fixture(scope='module')
def quiet(tmp_path_factory):
    "The uninterrupted run, and how long its training takes"
    out = tmp_path_factory.mktemp('quiet')
    process = start(out)
    process.stdout.readline()
    begin = time.monotonic()
    assert process.wait(300) == 0
    return out, time.monotonic() - begin


@pytest.mark.parametrize('seed', [1, 2])
def test_killed_runs_end_bit_identical(quiet, tmp_path, seed):
    want, seconds = quiet
    moments, kills = random.Random(f'{seed}'), 0
    for _ in range(3):
        process = start(tmp_path)
        process.stdout.readline()
        time.sleep(moments.uniform(.05, .45) * seconds)
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert kills >= 2, 'the run was over before it could be killed'
    assert (tmp_path/'checkpoint.pt').exists(), 'no checkpoint survived, so nothing was resumed'
    run_to_end(tmp_path)
    assert (want/'model.safetensors').read_bytes() == (tmp_path/'model.safetensors').read_bytes()
    assert (want/'history.csv').read_bytes() == (tmp_path/'history.csv').read_bytes()
    state = load_file(tmp_path/'model.safetensors')
    assert all(v.isfinite().all() for v in state.values())


def test_another_seed_is_told_apart(quiet, tmp_path):
    "The comparison above can fail: other noise gives other bytes"
    want, _ = quiet
    code = SCRIPT.replace("'cpu', 0, folder", "'cpu', 1, folder")
    assert code != SCRIPT
    subprocess.run([sys.executable, '-c', code, str(tmp_path)], check=True, timeout=300)
    assert (want/'model.safetensors').read_bytes() != (tmp_path/'model.safetensors').read_bytes()
