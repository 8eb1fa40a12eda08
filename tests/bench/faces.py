"""Procedural faces: images per second and peak memory, by size and number of threads, on this machine; on a GPU where there is one.

The threads run in turns in one process, so that a noisy machine disturbs them alike; memory is measured in a process for each size."""
import resource, statistics, subprocess, sys, time

import torch

from disent_nb.core import pick_device
from disent_nb.data.faces import Faces, render

device = pick_device('auto')
least = {64: 500}            # images per second that the project promises


def values(size, n): return Faces(n, size=size).values(Faces(n).space.factors(torch.arange(n))).to(device)


def timed(v, size, threads):
    torch.set_num_threads(threads)
    start = time.perf_counter()
    render(v, size)
    if device.type == 'cuda': torch.cuda.synchronize()
    return len(v) / (time.perf_counter() - start)


def memory(size):
    "Peak memory in MB of a process that draws 2,000 faces (on a GPU: of the GPU)"
    return int(subprocess.run([sys.executable, __file__, str(size)], capture_output=True, text=True, check=True).stdout.split()[-1])


def main(rounds=5):
    print(f'faces on {device}, median of {rounds} rounds')
    print(f'{"size":>6}{"1 thread":>12}{"2 threads":>12}{"at least":>10}{"peak MB":>9}')
    for size, n in ((64, 512), (128, 128)):
        v = values(size, n)
        render(v, size)
        speed = {k: [] for k in (1, 2)}
        for _ in range(rounds):
            for k in speed: speed[k].append(timed(v, size, k))
        print(f'{size:>6}' + ''.join(f'{statistics.median(s):>10.0f}/s' for s in speed.values()) + f'{least.get(size, ""):>10}{memory(size):>9}')


if __name__ == '__main__':
    if len(sys.argv) == 1: main()
    else:
        render(values(int(sys.argv[1]), 2000), int(sys.argv[1]))
        print(int((torch.cuda.max_memory_allocated() / 1024 if device.type == 'cuda' else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / 1024))
