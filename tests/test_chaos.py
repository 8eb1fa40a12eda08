"""Runs, sweeps and studies that are killed at random moments and started again end as if nothing had happened:
the same weights, histories and numbers bit for bit, nothing left over, nothing done twice.

`CHAOS_KILLS` says how many kills there are in all (20 in `make test`, 200 in `make chaos`)."""

import itertools, json, os, random, signal, subprocess, sys, time
from pathlib import Path

import nbformat
import psutil
import pytest
import torch
from nbformat.v4 import new_code_cell, new_notebook
from safetensors.torch import load_file

KILLS = int(os.environ.get('CHAOS_KILLS', 20))

METHODS = {
    'disent_nb.methods.vae.VAE': {},
    'disent_nb.methods.betatc.BetaTCVAE': dict(beta=4.0),
    'disent_nb.methods.factor.FactorVAE': dict(width=16),
    'disent_nb.methods.group.AdaGVAE': {},
    'disent_nb.methods.soft_intro.SoftIntroVAE': {},
}
SPEC = dict(
    dataset='chaos_bars.Bars',
    net='disent_nb.nets.mlp.dense',
    net_options=dict(size=8, width=16, depth=1),
    latents=3,
    batch_size=4,
    steps=20,
    device='cpu',
    metrics=[],
    checkpoint_s=0.0,  # a checkpoint after each step, so that many kills hit a file half written
)

BARS = """
import os
import torch
from disent_nb.train.checkpoint import Checkpoint
from disent_nb.data.factors import FactorDataset, FactorSpace

class Bars(FactorDataset):
    "Bright columns on a dark ground: 6 places, 3 widths"
    space = FactorSpace(('place', 'width'), (6, 3))
    shape = (1, 8, 8)

    def draw(self, y):
        place, width = y[:, :, None].unbind(1)
        pixel = torch.arange(8)
        lit = (place <= pixel) & (pixel <= place + width)
        return 255 * lit[:, None, None].expand(-1, 1, 8, 8).byte().contiguous()

load = Checkpoint.load

def load_and_note(self, loop, state):
    "Note from which step a training goes on"
    with open(os.environ['CHAOS_RESUMED'], 'a') as f:
        f.write(f"{state['t']}\\n")
    load(self, loop, state)

Checkpoint.load = load_and_note
"""

PARAMETERS = """
method = 'disent_nb.methods.vae.VAE'
method_options = {}
seed = 0
out = ''
"""
# the same training as that of `runs.study.train`, with the modules that it needs: a kernel starts faster without the rest
TRAINING = f"""
from chaos_bars import Bars
from disent_nb.core import load_object, seed_all
from disent_nb.nets.mlp import dense
from disent_nb.runs.folder import RunFolder
from disent_nb.train.fit import adam, fit

cls = load_object(method, 'method')
folder = RunFolder(out, every_s=0.0)
ds = Bars()
seed_all(seed)
net = lambda channels, latents: dense(channels, latents, **{SPEC['net_options']})
model = cls.from_net(net, 1, {SPEC['latents']}, **method_options)
views = load_object(cls.views or 'disent_nb.data.views.Singles', 'views')
batches = views(ds, batch_size={SPEC['batch_size']}, seed=seed, device='cpu', **cls.views_options)
fit(model, batches, {SPEC['steps']}, adam(1e-3), 'cpu', seed, folder.callbacks)
folder.weights(model)
folder.metrics({{name: values[-1] for name, values in folder.history.rows.items() if name != 'step'}})
"""

# A process that has imported everything and forks for each try: what is killed has not spent its time on imports.
# It has no threads and has trained nothing when it forks.
FORKS = """
import json, multiprocessing, os, sys, traceback
fork = multiprocessing.get_context('fork')
multiprocessing.get_context = lambda method=None: fork  # the processes of a study or a sweep, too
import nbclient, nbconvert, nbformat, papermill
import disent_nb.runs.commands, disent_nb.runs.study, disent_nb.nets.mlp, chaos_bars
from disent_nb.core import discover
from disent_nb.runs.cli import main
from disent_nb.runs.study import study, train
discover('disent_nb.methods', lambda o: True)

def work(kind, words):
    if kind == 'command':
        return main(words)
    if kind == 'study':
        return int((study(**words).error != '').any())
    for spec in words:
        train(**spec)
    return 0

for line in sys.stdin:
    job = json.loads(line)
    pid = os.fork()
    if not pid:
        os.setsid()
        log = os.open(job['log'], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = 70
        try:
            code = work(job['kind'], job['words'])
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Forks:
    "The process that forks"

    def __init__(self, folder):
        self.log, self.resumed = folder / 'log.txt', folder / 'resumed.txt'
        env = dict(os.environ, OMP_NUM_THREADS='1', TQDM_DISABLE='1', CHAOS_RESUMED=str(self.resumed))
        env['PYTHONPATH'] = os.pathsep.join([str(folder), *filter(None, [env.get('PYTHONPATH')])])
        words = [sys.executable, '-c', FORKS]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)

    def start(self, kind, words):
        "Start a try; returns its process"
        self.process.stdin.write(json.dumps(dict(kind=kind, words=words, log=str(self.log))) + '\n')
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, 'the process that forks has ended'
        return psutil.Process(int(line))

    def wait(self):
        "The exit code of the try, negative: the signal that ended it"
        return int(self.process.stdout.readline())

    def complete(self, kind, words):
        "A try that nothing disturbs; returns its seconds"
        begin = time.monotonic()
        self.start(kind, words)
        assert self.wait() == 0, self.log.read_text()[-3000:]
        return time.monotonic() - begin


def kill(process, how, rng):
    "End a try: with all that it has started, alone, or one of those that it has started; whether there was one"
    try:
        below = process.children(recursive=True)
        victims = dict(all=[process, *below], alone=[process], child=below and [rng.choice(below)])[how]
    except psutil.NoSuchProcess:
        victims = []
    hit = False
    for victim in victims:
        try:
            victim.kill()
            hit = True
        except psutil.NoSuchProcess:
            pass
    return hit


@pytest.fixture(scope='module')
def chaos(tmp_path_factory):
    "The process that forks, an experiment, and what undisturbed trainings give: `{method: folder}`"
    folder = tmp_path_factory.mktemp('chaos')
    (folder / 'chaos_bars.py').write_text(BARS)
    cells = [new_code_cell(PARAMETERS, metadata=dict(tags=['parameters'])), new_code_cell(TRAINING)]
    nbformat.write(new_notebook(cells=cells), folder / 'toy.ipynb')
    (folder / 'five.yaml').write_text(json.dumps(dict(experiment='toy.ipynb', grid=grids())))
    forks = Forks(folder)
    want = {method: folder / 'want' / method for method in METHODS}
    forks.complete('train', [spec(method) | dict(out=str(out)) for method, out in want.items()])
    yield forks, folder, want
    forks.process.stdin.close()
    forks.process.wait(60)


def spec(method):
    return SPEC | dict(label=method.rpartition('.')[2], method=method, method_options=METHODS[method])


def grids():
    return [dict(method=m, **{f'method_options.{k}': v for k, v in o.items()}) for m, o in METHODS.items()]


@pytest.fixture(scope='module')
def seconds(chaos):
    "How long an undisturbed run takes"
    forks, folder, want = chaos
    (method, *_) = METHODS
    took = forks.complete('command', run_words(folder, folder / 'undisturbed', method))
    check(folder / 'undisturbed' / 'toy', want, [method])
    return took


def run_words(folder, out, method):
    words = ['run', str(folder / 'toy.ipynb'), '--out', str(out), '-p', 'method', method]
    for name, value in METHODS[method].items():
        words += ['-p', f'method_options.{name}', str(value)]
    return words


def stamp(folder):
    "Which file the record of a complete training is: another one if it was made again"
    found = (folder / 'config.json').stat()
    return found.st_ino, found.st_mtime_ns


def complete_folders(out):
    "The complete trainings in a folder"
    return [p for p in out.glob('*') if p.is_dir() and p.suffix != '.part' and (p / 'config.json').exists()]


def check(out, want, methods):
    "In `out` is one complete training for each method, equal to the undisturbed one bit for bit, and nothing else"
    found = {}
    for folder in complete_folders(out):
        method = json.loads((folder / 'config.json').read_text())['parameters']['method']
        assert method not in found, 'twice'
        found[method] = folder
    assert found.keys() == set(methods)
    for method, folder in found.items():
        mine, its = (load_file(f / 'model.safetensors') for f in (folder, want[method]))
        assert mine.keys() == its.keys() and all(torch.equal(mine[k], its[k]) for k in its), method
        assert (folder / 'history.csv').read_bytes() == (want[method] / 'history.csv').read_bytes(), method
        mine, its = (json.loads((f / 'metrics.json').read_text()) for f in (folder, want[method]))
        assert mine.items() - {('seconds', mine.get('seconds'))} <= its.items() and len(mine) >= 3, method
    names = ('*.part', '*.old', '.*.tmp', 'checkpoint.pt', 'progress.json', 'kernel-ipc-*')
    left = [str(p) for name in names for p in out.rglob(name)]
    assert not left and len(found) == len([p for p in out.glob('*') if p.is_dir()]), left


def storm(forks, kind, words, out, kills, seconds, rng, hows):
    "Start a job until it is complete, killing it at random moments of its `seconds`; returns how many kills hit it"
    hits, stamps = 0, {}
    while hits < kills:
        process, how = forks.start(kind, words), next(hows)
        time.sleep(rng.uniform(0, seconds))
        hit = kill(process, how, rng)
        code = forks.wait()
        hits += hit and code != 0
        for folder in complete_folders(out):
            assert stamps.setdefault(folder, stamp(folder)) == stamp(folder), 'a complete training was made again'
        if code == 0:
            break
    forks.complete(kind, words)
    assert all(stamp(folder) == then for folder, then in stamps.items()), 'a complete training was made again'
    return hits


def storms(forks, kind, words_of, out, kills, seconds, name, hows, verify):
    "Storms over one folder after the other until there were enough kills"
    rng, hits, hows = random.Random(name), 0, itertools.cycle(hows)
    for number in itertools.count():
        place = out / str(number)
        inner = place / 'toy' if kind == 'command' else place
        hits += storm(forks, kind, words_of(place), inner, kills - hits, seconds, rng, hows)
        verify(inner)
        assert number < 5 * kills, 'the kills come too late'
        if hits >= kills:
            return


@pytest.mark.parametrize('method', METHODS)
def test_killed_runs_lose_nothing_and_do_nothing_twice(chaos, seconds, tmp_path, method):
    "`disent-nb run`: the kernel is killed with it, or outlives it for a moment while the next try begins"
    forks, folder, want = chaos
    hows = ['all', 'alone'] if len(method) % 2 else ['alone', 'all']
    storms(
        forks,
        'command',
        lambda out: run_words(folder, out, method),
        tmp_path,
        max(1, KILLS // 20),
        seconds,
        method,
        hows,
        lambda out: check(out, want, [method]),
    )


def test_killed_sweeps_lose_nothing_and_do_nothing_twice(chaos, seconds, tmp_path):
    forks, folder, want = chaos
    storms(
        forks,
        'command',
        lambda out: ['sweep', str(folder / 'five.yaml'), '-j', '2', '--out', str(out)],
        tmp_path,
        max(1, KILLS // 4),
        2 * seconds,
        'sweep',
        ['all', 'alone', 'child'],
        lambda out: check(out, want, METHODS),
    )


def test_killed_studies_lose_nothing_and_do_nothing_twice(chaos, tmp_path):
    forks, folder, want = chaos

    def words(out):
        return dict(specs=[spec(method) for method in METHODS], out=str(out), workers=2)

    took = forks.complete('study', words(tmp_path / 'undisturbed'))
    check(tmp_path / 'undisturbed', want, METHODS)
    storms(
        forks,
        'study',
        words,
        tmp_path / 'killed',
        KILLS // 2,
        took,
        'study',
        ['all', 'alone', 'child'],
        lambda out: check(out, want, METHODS),
    )
    steps = [int(line) for line in forks.resumed.read_text().split()]
    assert max(steps) > 0, 'no training went on where it was'
