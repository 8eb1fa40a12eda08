"""Training speed: `fit` with all callbacks against loops written by hand, beta-TCVAE, Burgess network, batch 64 of 64x64x1.

All variants run in turns in one process, so that a noisy machine disturbs them alike; what counts are the ratios. Memory is measured in a process for each."""

import resource, statistics, subprocess, sys, tempfile, time
from pathlib import Path

import torch

from disent_nb.core import Batch, pick_device, seed_all
from disent_nb.rendered.dsprites import ReducedDSprites
from disent_nb.data.views import Singles
from disent_nb.methods.betatc import BetaTCVAE
from disent_nb.nets.conv64 import burgess64
from disent_nb.runs.folder import RunFolder
from disent_nb.train.fit import adam, fit
from disent_nb.train.method import weighted

device = pick_device('auto')
bar = dict(fit=None, bare=0.93, default_layout=1.35)  # least ratio of `fit` to each


def hand_written(layout):
    "A loop on one resident batch: loss, backward, fused Adam"
    seed_all(0)
    m = BetaTCVAE(*burgess64()).to(device, memory_format=layout)
    ds = ReducedDSprites()
    x = (ds.images(torch.randperm(len(ds))[:64]).float() / 255).to(device).contiguous(memory_format=layout)
    opt, b = torch.optim.Adam(m.parameters(), 1e-3, fused=True), Batch((x,), n_data=len(ds))

    def steps(n):
        for t in range(n):
            opt.zero_grad()
            weighted(m.loss(b, t)).backward()
            opt.step()

    return steps


def with_fit(folder):
    "What an experiment does: batches from the set, history, NaN stop, progress, checkpoints"
    seed_all(0)
    m, batches, run = BetaTCVAE(*burgess64()), Singles(ReducedDSprites(), 64), RunFolder(folder)
    done = [0]

    def steps(n):
        done[0] += n
        fit(m, batches, done[0], adam(1e-3), cbs=run.callbacks)

    return steps


variants = dict(
    fit=lambda: with_fit(tempfile.mkdtemp()),
    bare=lambda: hand_written(torch.channels_last),
    default_layout=lambda: hand_written(torch.contiguous_format),
)


def timed(steps, n):
    start = time.perf_counter()
    steps(n)
    if device.type == 'cuda':
        torch.cuda.synchronize()
    return 64 * n / (time.perf_counter() - start)


def memory(name):
    "Peak memory in MB of a process that runs only this variant (on a GPU: of the GPU)"
    done = subprocess.run([sys.executable, __file__, name], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def main(rounds=9, n=40):
    loops = {name: make() for name, make in variants.items()}
    for steps in loops.values():
        steps(10)
    speed = {name: [] for name in loops}
    for _ in range(rounds):
        for name, steps in loops.items():
            speed[name].append(timed(steps, n))
    print(
        f'training, beta-TCVAE, Burgess network, batch 64, 64x64x1, on {device}; median of {rounds} rounds of {n} steps, in turns'
    )
    print(f'{"loop":<32}{"images/s":>10}{"fit is":>9}{"at least":>10}{"peak MB":>9}')
    titles = dict(fit='fit, all callbacks', bare='by hand, channels_last', default_layout='by hand, default layout')
    for name, title in titles.items():
        ratio = statistics.median(f / o for f, o in zip(speed['fit'], speed[name]))
        bound = '' if bar[name] is None else f'{bar[name]:.2f}'
        print(f'{title:<32}{statistics.median(speed[name]):>10.0f}{ratio:>8.2f}x{bound:>10}{memory(name):>9}')


if __name__ == '__main__':
    if len(sys.argv) == 1:
        main()
    else:
        variants[sys.argv[1]]()(20)
        kb = (
            torch.cuda.max_memory_allocated() / 1024
            if device.type == 'cuda'
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        )
        print(int(kb / 1024))
