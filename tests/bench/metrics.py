"""Metrics: time of each in `evaluate`, against the reference implementation's and scikit-learn's ways in the same run, and cost against rows.

dSprites-sized factors (3, 6, 40, 32, 32; 737,280 images), 10 codes, 10,000 + 5,000 samples. Encoding is done beforehand and does not count."""

import time, warnings

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import mutual_info_score, roc_auc_score

from disent_nb import metrics
from disent_nb.metrics.encode import Encoder
from disent_nb.metrics._explicitness import scale_like
from disent_nb.metrics._mig import bin_codes
from disent_nb.metrics.toy import ToyImages

warnings.simplefilter('ignore')
sizes = np.array([3, 6, 40, 32, 32])
r = np.random.default_rng(0)
mixing = np.eye(5, 10) + r.normal(0, 0.1, (5, 10))
noise = r.normal(0, 0.05, (*sizes, 10)).astype(np.float32)


def represent(x):
    "Five latents with a factor each, some mixing, five latents with traces, noise"
    v = (x[:, 0, 0] * 255).round().int().numpy()
    return (v / (sizes - 1) - 0.5) @ mixing * 3 + noise[tuple(v.T)]


def ratio(a, b, rounds=5):
    "Median seconds of `a` and of `b`, in turns, and the median of how many times longer `b` takes"
    t = []
    for _ in range(rounds):
        for f in (a, b):
            start = time.perf_counter()
            f()
            t.append(time.perf_counter() - start)
    a, b = np.array(t[::2]), np.array(t[1::2])
    return np.median(a), np.median(b), np.median(b / a)


def data(n, seed=0):
    v = np.random.default_rng(seed).integers(0, sizes, (n, 5))
    return (v / (sizes - 1) - 0.5) @ mixing * 3 + noise[tuple(v.T)], v


def explicitness_sklearn(codes, factors, codes_test, factors_test):
    codes, codes_test = scale_like(codes, codes_test)
    p = [LogisticRegression().fit(codes, y).predict_proba(codes_test) for y in factors.T]
    return np.mean([roc_auc_score(np.eye(q.shape[1])[y], q) for q, y in zip(p, factors_test.T)])


def evaluation():
    ds = ToyImages(tuple(map(int, sizes)))
    encode = Encoder(represent, ds, batch=8192)
    encode(ds.space.all())
    start, busy = time.perf_counter(), time.process_time()
    table = metrics.evaluate(encode, ds, bootstrap=0, progress=False)
    total, busy = time.perf_counter() - start, time.process_time() - busy
    print(
        f'evaluate without intervals: {total:.1f} s ({busy:.1f} s of processor time), at most 15 s on 2 cores (the reference implementation, measured elsewhere on such a machine: about 370 s)'
    )
    for name, t in table.groupby('metric', sort=False).seconds.sum().sort_values(ascending=False).items():
        print(f'    {name:<28}{t:>8.2f} s')
    for row in table[table.value.isna()].itertuples():
        print(f'    {row.metric}: {row.protocol}')


def compared():
    (c, f), (ct, ft) = data(10_000), data(5_000, 1)
    naive = lambda: [[mutual_info_score(v, b) for v in f.T] for b in bin_codes(c).T]
    pairs = {
        'mutual_information / mutual_info_score': (lambda: metrics.mutual_information(c, f), naive, 5, 5),
        'explicitness / LogisticRegression': (
            lambda: metrics.explicitness(c, f, ct, ft),
            lambda: explicitness_sklearn(c, f, ct, ft),
            None,
            1,
        ),
    }
    print(f'{"here / the other way":<42}{"seconds":>9}{"other":>9}{"ratio":>9}{"at least":>10}')
    for name, (a, b, bar, rounds) in pairs.items():
        ours, theirs, times = ratio(a, b, rounds)
        print(f'{name:<42}{ours:>9.3f}{theirs:>9.3f}{times:>8.1f}x{"" if bar is None else bar:>10}', flush=True)


def curve(rows=(10_000, 100_000, 1_000_000)):
    print('seconds per million rows, which a linear cost keeps constant' + ''.join(f'{n:>12,}' for n in rows))
    for name in ('mig', 'modularity', 'irs'):
        f, cost = getattr(metrics, name), []
        for n in rows:
            c, v = data(n)
            t = []
            for _ in range(3):
                start = time.perf_counter()
                f(c, v)
                t.append(time.perf_counter() - start)
            cost.append(min(t) / n * 1e6)
        print(f'    {name:<56}' + ''.join(f'{s:>12.2f}' for s in cost), flush=True)


if __name__ == '__main__':
    compared()
    curve()
    evaluation()
