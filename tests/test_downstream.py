"Samples, sums of codes and anomaly scores: shapes, seeds, limits with known answers, and inputs that are refused."

import math

import pytest
import torch

from disent_nb.core import fails, generator, seed_all
from disent_nb.rendered.dsprites import ReducedDSprites
from disent_nb.uses.downstream import anomaly_scores, interpolate, sample_aggregate, sample_images, transfer
from disent_nb.methods.ladder import LVAE
from disent_nb.methods.factor import FactorVAE
from disent_nb.methods.vae import VAE
from disent_nb.train.method import decode, encode
from disent_nb.nets.conv64 import burgess64

pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture(scope='module', params=[VAE, FactorVAE])
def model(request):
    seed_all(0)
    return request.param(*burgess64(1, 4)).eval()


@pytest.fixture(scope='module')
def x():
    return ReducedDSprites().images(torch.arange(7, 7200, 600))


def test_samples_depend_on_the_seed_alone(model, x):
    before = torch.get_rng_state()
    for f in (
        lambda n, s: sample_images(model, n, s),
        lambda n, s: sample_aggregate(model, x, n, False, s),
        lambda n, s: sample_aggregate(model, x, n, True, s),
    ):
        a = f(3, 0)
        assert (
            a.shape == (3, 1, 64, 64)
            and 0 <= a.min()
            and a.max() <= 1
            and torch.equal(a, f(3, 0))
            and not torch.equal(a, f(3, 1))
        )
    assert torch.equal(before, torch.get_rng_state())


class Slot(torch.nn.Module):
    "Encoder and decoder that copy: the code of an image is its two pixels, with (almost) no noise"

    latents = 2

    def __init__(self):
        super().__init__()
        self.one = torch.nn.Parameter(torch.ones(()))

    def forward(self, v):
        return (v.flatten(1) * self.one, torch.full((len(v), 2), -40.0)) if v.ndim == 4 else v[:, None, None] * self.one


def test_the_aggregate_keeps_what_the_product_of_marginals_breaks():
    m, x = VAE(Slot(), Slot(), 'gaussian'), torch.tensor([[0.1, 0.1], [0.9, 0.9]])[:, None, None]
    together, apart = (sample_aggregate(m, x, 400, i)[:, 0, 0] for i in (False, True))
    assert (together[:, 0] - together[:, 1]).abs().max() < 1e-4
    assert 0.4 < ((apart[:, 0] - apart[:, 1]).abs() > 0.5).float().mean() < 0.6
    for z in (together, apart):
        assert torch.allclose(z.mean(0), torch.full((2,), 0.5), atol=0.08)


def test_sums_and_lines(model, x):
    a, b, c = x[:3], x[3:6], x[6:9]
    mu = [encode(model, v).mu for v in (a, b, c)]
    assert torch.allclose(transfer(model, a, b, c), decode(model, mu[0] - mu[1] + mu[2]))
    line = interpolate(model, a, b, 5)
    assert line.shape == (3, 5, 1, 64, 64)
    assert torch.allclose(line[:, 3], decode(model, 0.25 * mu[0] + 0.75 * mu[1]), atol=1e-5)
    assert torch.allclose(interpolate(model, a, b, 1)[:, 0], decode(model, mu[0]), atol=1e-6)


def test_scores(model, x):
    one, many = anomaly_scores(model, x, 1), anomaly_scores(model, x, 64)
    assert torch.allclose(one['kl'], encode(model, x).kl().sum(1)) and torch.equal(
        many['neg_elbo'], many['rec'] + many['kl']
    )
    assert (many['neg_log_px'] <= many['neg_elbo'] + 3).all()  # equal in the mean for S = 1, less for more
    for s in (one, many):
        assert all(v.shape == (len(x),) and v.isfinite().all() for v in s.values())
    assert torch.allclose(anomaly_scores(model, x, 64, chunk=5)['kl'], many['kl']) and torch.equal(
        anomaly_scores(model, x, 64)['rec'], many['rec']
    )
    assert torch.allclose(anomaly_scores(model, x.float() / 255, 64)['rec'], many['rec'])


def test_the_weighted_bound_by_loops(x):
    seed_all(0)
    m, s = VAE(*burgess64(1, 2)).eval(), 3
    got, g = anomaly_scores(m, x[:2], s, seed=4), generator(4)
    q, image = m.encode(x[:2].float() / 255), x[:2].double() / 255
    weights = []
    for _ in range(s):
        eps = torch.randn(2, 2, generator=g)
        z = (q.mu + q.std * eps).detach()
        p = torch.sigmoid(m.decoder(z)).detach().double()
        log_px = (image * p.log() + (1 - image) * (1 - p).log()).flatten(1).sum(1)
        log_pz, log_q = (
            torch.distributions.Normal(a, b).log_prob(z).sum(1)
            for a, b in ((torch.zeros(2), torch.ones(2)), (q.mu, q.std))
        )
        weights.append(log_px + log_pz - log_q)
    naive = -(torch.stack(weights).logsumexp(0) - math.log(s))
    assert torch.allclose(got['neg_log_px'].double(), naive.detach(), atol=0.01)


def test_bad_input(model, x):
    for f in (
        lambda: sample_images(model, 0),
        lambda: sample_images(model, 2.5),
        lambda: sample_aggregate(model, x, -1),
    ):
        assert fails(f, 'n:')
    assert fails(lambda: anomaly_scores(model, x, 0), 'n_samples') and fails(
        lambda: interpolate(model, x, x, 0), 'steps'
    )
    assert fails(lambda: anomaly_scores(model, x * 1.0, 2), 'images', '[0,1]') and fails(
        lambda: transfer(model, x[:, 0], x, x), 'four axes'
    )


def test_anomaly_scores_refuse_a_prior_that_is_not_standard_normal():
    "Their KL would be that to another prior than the model's"
    images = torch.zeros(2, 1, 16, 16)
    fails(lambda: anomaly_scores(LVAE.small(), images), 'model', 'LVAE', 'prior')
