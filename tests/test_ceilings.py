"How high a metric can go when images hide a factor: against brute force over pixels, over codes, and on sets where the answer is known."

import numpy as np
import pytest
import torch

from disent_nb.core import discover, fails
from disent_nb.rendered.dsprites import ReducedDSprites
from disent_nb.data.factors import FactorDataset, FactorSpace
from disent_nb.metrics import evaluate, image_ceiling, mig, mig_ceiling, mig_max, z_min, z_min_ceiling
from disent_nb.metrics._evaluate import find_metrics
from disent_nb.metrics._mig import image_keys, keyed_set
from disent_nb.metrics._z_min import image_lookup, most_correlated, visible_codes


pytestmark = pytest.mark.usefixtures('one_thread')


class Hidden(FactorDataset):
    "Three factors: one shown, one of which the image shows only the parity, one never shown; and a constant one"

    space, shape = FactorSpace(('shown', 'half', 'hidden', 'constant'), (3, 4, 2, 1)), (1, 1, 2)

    def draw(self, y):
        return torch.stack([y[:, 0] * 90, y[:, 1] % 2], 1)[:, None, None].byte()


def information(x, v):
    "I(x; v) in nats by counting pairs in loops"
    n, pairs = len(v), list(zip(x, v))
    return sum(
        c / n * np.log(c * n / (list(x).count(a) * list(v).count(b)))
        for (a, b), c in ((p, pairs.count(p)) for p in set(pairs))
    )


def test_keys_are_equal_where_pixels_are():
    x = torch.randint(0, 2, (400, 1, 2, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)) * 255
    same = (x.flatten(1)[:, None] == x.flatten(1)).all(2).numpy()
    assert np.array_equal(same, image_keys(x)[:, None] == image_keys(x)) and same.sum() > 400
    assert np.array_equal(image_keys(x), image_keys(x.transpose(2, 3).contiguous().transpose(2, 3)))


def test_image_ceiling_counts_information():
    ds = Hidden()
    keys, y = keyed_set(ds)
    assert y.shape == (24, 3)
    by_hand = [information(keys.tolist(), v) / np.log(n) for v, n in zip(y.T.tolist(), (3, 4, 2))]
    assert np.allclose(image_ceiling(ds), by_hand) and np.allclose(by_hand, [1, 0.5, 0])
    assert np.allclose(image_ceiling(ds, 2), [np.log(2) / np.log(3), 0.5, 0]) and np.isclose(
        mig_ceiling(ds, 2), image_ceiling(ds, 2).mean()
    )
    assert fails(lambda: image_ceiling(3), 'dataset', 'int') and fails(lambda: mig_ceiling(ds, 1), 'bins', '1')


def test_no_function_of_the_image_has_a_greater_gap():
    ds = Hidden()
    keys, y = keyed_set(ds)
    _, x = np.unique(keys, return_inverse=True)
    r, best = np.random.default_rng(0), 0
    for _ in range(3000):
        best = max(best, mig(r.integers(0, r.integers(2, 7), (x.max() + 1, r.integers(1, 4)))[x].astype(float), y))
    assert 0.3 < best <= mig_ceiling(ds) + 1e-9 == pytest.approx(0.5)
    assert np.isclose(mig(x[:, None], y), 0.5)  # one latent for all that can be seen


def test_the_numbers_of_the_reduced_sprites():
    ds = ReducedDSprites()
    assert (
        np.allclose(image_ceiling(ds), [1, 1, 0.5, 1, 1])
        and np.isclose(mig_ceiling(ds), 0.9)
        and mig_max(keyed_set(ds)[1]) == 1
    )
    assert z_min_ceiling(ds, 3000, 2000) == 1
    keys, y = keyed_set(ds)
    four = image_lookup(keys, visible_codes(keys, y)[0][:, [0, 1, 3, 4]])
    assert abs(z_min(four, ds, 3000, 3000) - 0.8) < 0.03  # four standard deviations of 3,000 votes


def test_the_maximal_correlation_is_the_largest_of_all_codes():
    r = np.random.default_rng(0)
    keys, v = r.integers(0, 5, 60).astype(np.uint64), r.integers(0, 3, 60)
    z, rho2 = most_correlated(keys, v)
    x = np.unique(keys, return_inverse=True)[1]

    def explained(z):  # the share of the variance of z that v explains: corr(z, E[z|v])^2
        return np.array([z[v == k].mean() for k in range(3)])[v].var() / z.var()

    assert np.isclose(explained(z), rho2) and np.isclose(z.var(), 1)
    others = [explained(r.normal(size=5)[x]) for _ in range(4000)]
    assert 0.95 * rho2 < max(others) <= rho2 + 1e-9


def test_codes_are_functions_of_the_image():
    ds = Hidden()
    keys, y = keyed_set(ds)
    codes, rho2 = visible_codes(keys, y)
    assert np.allclose(rho2, [1, 1, 0], atol=1e-5) and codes[:, 2].std() < 0.1
    for k in np.unique(keys):
        assert np.ptp(codes[keys == k], axis=0).max() == 0
    x = ds.images(torch.arange(24))
    assert np.array_equal(image_lookup(keys, codes)(x.float() / 255), codes)


def test_no_ceiling_is_taken_for_a_metric():
    assert not [n for n in find_metrics() if 'ceiling' in n]
    bounds = discover('disent_nb.metrics', lambda o: getattr(o, '__name__', '').endswith('_max'))
    assert [p.rpartition('.')[2] for p in bounds] == ['mig_max']
    ds = Hidden()
    keys, y = keyed_set(ds)
    table = evaluate(
        image_lookup(keys, visible_codes(keys, y)[0]), ds, ['mig', 'z_min'], 500, 200, bootstrap=0, progress=False
    )
    assert table.metric.tolist() == ['mig', 'z_min']
