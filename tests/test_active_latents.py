"Which latents are active: the test keeps its level where classes are rare, finds what is there, and the score follows."

import numpy as np
import pytest

from disent_nb.metrics import active, modularity, modularity_per_latent, mutual_information
from disent_nb.metrics._mig import bin_codes, joint_counts
from disent_nb.metrics._modularity import independence_p, merge_rare

RARE = {
    'one in 200': [0.975, 0.02, 0.005],
    'one in 100': [0.49, 0.5, 0.01],
    'one in 50': [0.6, 0.38, 0.02],
    'many rare ones': [0.9, *[0.01] * 10],
}
N_SETS, N = 300, 2000


def drop_empty(table):
    "The table as it is, without the bins that no sample is in"
    return table[table.sum(1) > 0]


def tables(codes, factor):
    "How often each bin meets each value, for each latent `(D,bins,V)`"
    counts, _ = joint_counts(bin_codes(codes), factor[:, None], 20)
    return counts


def noise_and_factor(classes, seed, d=10, n=N):
    "Latents that know nothing `(n,d)`, and a factor with these frequencies `(n,)`"
    r = np.random.default_rng(seed)
    factor = np.searchsorted(np.cumsum(RARE[classes])[:-1], r.uniform(size=n), side='right')
    return r.normal(size=(n, d)), factor


@pytest.mark.parametrize('classes', RARE)
def test_the_level_is_kept(classes):
    "Of 300 sets of ten latents of noise at most 5% have one that is called active, give or take the count's own spread"
    p = {drop_empty: [], merge_rare: []}
    for seed in range(N_SETS):
        codes, factor = noise_and_factor(classes, seed)
        for merge, found in p.items():
            found.append([independence_p(merge(table)) for table in tables(codes, factor)])
        if seed < 5:
            called = active(codes, factor[:, None], level=0.05)
            assert called.tolist() == [value < 0.05 / 10 for value in p[merge_rare][-1]]
    any_of_ten = {merge: (np.array(found) < 0.05 / 10).any(1).sum() for merge, found in p.items()}
    spread = np.sqrt(N_SETS * 0.05 * 0.95)
    assert any_of_ten[merge_rare] <= N_SETS * 0.05 + 4 * spread
    assert any_of_ten[drop_empty] > N_SETS * 0.05 + 4 * spread  # what the merging is for
    assert abs(np.mean(np.array(p[merge_rare]) < 0.5) - 0.5) < 4 * np.sqrt(0.25 / (10 * N_SETS)) + 0.02


@pytest.mark.parametrize('classes', RARE)
def test_the_p_value_is_that_of_a_permutation_test(classes):
    "Pearson's statistic of the merged table under 2,000 orders of the factor, which assumes no distribution"
    codes, factor = noise_and_factor(classes, 0, d=4)
    r = np.random.default_rng(1)

    def statistics(factor):
        found = []
        for table in tables(codes, factor):
            merged = merge_rare(table)
            expected = np.outer(merged.sum(1), merged.sum(0)) / merged.sum()
            found.append(((merged - expected) ** 2 / expected).sum())
        return np.array(found)

    shuffled = np.array([statistics(r.permutation(factor)) for _ in range(2000)])
    exact = (shuffled >= statistics(factor) - 1e-9).mean(0)
    p = [independence_p(merge_rare(table)) for table in tables(codes, factor)]
    assert abs(exact - p).max() < 0.06


@pytest.mark.parametrize('classes', RARE)
def test_a_latent_that_shows_the_rarest_value_is_found(classes):
    "If the value has 20 samples or more; one with fewer is merged with its neighbour, and may be missed"
    codes, factor = noise_and_factor(classes, 0, n=10_000)
    assert np.bincount(factor).min() >= 20
    codes[:, 3] = (factor == factor.max()) + 0.2 * codes[:, 3]
    assert active(codes, factor[:, None]).tolist() == [j == 3 for j in range(10)]


@pytest.mark.parametrize('classes', RARE)
def test_the_score_is_that_of_the_informative_latents(classes):
    "Noise beside two informative latents does not change `modularity(active_only=True)`, in 20 sets of 20"
    for seed in range(20):
        codes, rare = noise_and_factor(classes, seed)
        factors = np.c_[rare, np.random.default_rng(100 + seed).integers(0, 6, (N, 2))]
        codes[:, 0] = factors[:, 1] + 0.3 * codes[:, 0]
        codes[:, 1] = factors[:, 2] + factors[:, 1] / 2 + 0.3 * codes[:, 1]
        each = modularity_per_latent(mutual_information(codes, factors))
        assert np.isclose(modularity(codes, factors, active_only=True), each[:2].mean(), atol=1e-12)
        assert modularity(codes, factors) < each[:2].mean() - 0.1
