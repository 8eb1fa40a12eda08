"""Drawing speed and memory of every generated dataset: images per second in batches of 256 in random order, with 1 and 2 threads, and per second of one processor.

The first batch, in which views or tables are made, is timed apart. Each set runs in a process of its own, for its memory; the best batch counts, as others may use the machine. Sets that take `continuous` or `size` are also drawn with continuous factors or at 128x128. Last: a full Boxhead set into an HDF5 file."""

import inspect, json, resource, subprocess, sys, tempfile, time
from pathlib import Path

import torch

from disent_nb.core import discover, generator, load_object
from disent_nb.data.factors import FactorDataset


def generated():
    "(import path, options) of every dataset that needs no file: a class that draws, and whose arguments all have defaults"

    def accept(o):
        return (
            inspect.isclass(o)
            and issubclass(o, FactorDataset)
            and o.draw is not FactorDataset.draw
            and all(
                p.default is not p.empty or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
                for p in inspect.signature(o).parameters.values()
            )
        )

    for path, cls in discover('disent_nb.rendered', accept).items():
        yield path, {}
        for name, value in dict(continuous=True, size=128).items():
            if name in inspect.signature(cls).parameters:
                yield path, {name: value}


def memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def rate(ds, threads, seconds=1.5, batch=256):
    "Images per second and per second of processor time, the best of the batches that fit into some seconds, at least three"
    torch.set_num_threads(threads)
    best, clocks, stop, i = [0.0, 0.0], (time.perf_counter, time.process_time), time.perf_counter() + seconds, 0
    while i < 3 or time.perf_counter() < stop:
        index, start = torch.randint(len(ds), (batch,), generator=generator(i)), [t() for t in clocks]
        ds.images(index)
        best, i = [max(b, batch / (t() - s)) for b, t, s in zip(best, clocks, start)], i + 1
    return best


def measure(path, options):
    "What one row of the table shows"
    torch.set_num_threads(2)
    before, ds = memory(), load_object(path)(**options)
    start = time.perf_counter()
    ds.images(torch.arange(256) % len(ds))
    first = time.perf_counter() - start
    (one, processor), (two, _) = rate(ds, 1), rate(ds, 2)
    return dict(first=first, one=one, two=two, processor=processor, mb=memory() - before)


def full_boxhead():
    "Seconds to draw 51,328 images of Boxhead into a file, with two threads, and its size in MB"
    from disent_nb.rendered.boxhead import BoxheadSimple2
    from disent_nb.data.store import write_h5

    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter(), time.process_time()
        write_h5(BoxheadSimple2(), Path(folder) / 'boxhead.h5')
        return dict(
            seconds=time.perf_counter() - start[0],
            processor=time.process_time() - start[1],
            mb=(Path(folder) / 'boxhead.h5').stat().st_size / 1e6,
        )


def alone(*args):
    "The result of this file called with `args`, in a process of its own"
    return json.loads(
        subprocess.run(
            [sys.executable, __file__, *args], capture_output=True, text=True, check=True
        ).stdout.splitlines()[-1]
    )


def main():
    print(
        f'{"drawing, batches of 256":<34}{"first batch":>12}{"1 thread":>11}{"2 threads":>11}{"per cpu-s":>11}{"MB":>6}'
    )
    for path, options in generated():
        row = alone(path, json.dumps(options))
        name = path.rpartition('.')[2] + (''.join(f' {k}' if v is True else f' {v}' for k, v in options.items()))
        print(
            f"{name:<34}{row['first']:>10.1f} s{row['one']:>9.0f}/s{row['two']:>9.0f}/s{row['processor']:>9.0f}/s{row['mb']:>6}",
            flush=True,
        )
    row = alone('full')
    print(
        f"51,328 images of BoxheadSimple2 to HDF5: {row['seconds']:.1f} s ({row['processor']:.1f} s of processor time), {row['mb']:.0f} MB; at most 60 s on 2 free cores"
    )


if __name__ == '__main__':
    if len(sys.argv) == 1:
        main()
    else:
        print(json.dumps(full_boxhead() if sys.argv[1] == 'full' else measure(sys.argv[1], json.loads(sys.argv[2]))))
