"Ladders: which latents see and move what, the schedule, the prior of each level, and the models that they are in a limit."

from functools import partial

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from disent_nb.core import Batch, fails, generator, seed_all
from disent_nb.methods.betavae import BetaVAE
from disent_nb.methods.ladder import LVAE, SMALL, ProVLAE, fade_factors, kl_weights
from disent_nb.nets.ladder import ladder
from disent_nb.nets.resnet import resnet
from disent_nb.train.checkpoint import load_model, save_weights
from disent_nb.train.fit import adam, fit
from disent_nb.train.method import decode

pytestmark = pytest.mark.usefixtures('one_thread')
X = torch.rand(4, 1, 16, 16, generator=generator(0))


def tiny(levels=2, **options):
    torch.manual_seed(0)
    return ladder(1, 12, levels, **{**dict(size=16, width=2), **options})


@pytest.mark.parametrize('size, levels', [(8, 1), (16, 1), (16, 2), (32, 3), (64, 3), (64, 4)])
@pytest.mark.parametrize('batch_norm', [True, False])
def test_every_size_gives_codes_and_images(size, levels, batch_norm):
    encoder, decoder = tiny(levels, size=size, width=1, batch_norm=batch_norm)
    x = torch.rand(3, 1, size, size, generator=generator(size))
    mu, log_var = encoder(x)
    assert mu.shape == log_var.shape == (3, 12) and decoder(mu).shape == x.shape


@pytest.mark.parametrize('level', [0, 1, 2])
def test_each_level_is_faded_alone(level):
    encoder, decoder = (net.eval() for net in tiny(3, size=32))
    x = torch.rand(4, 1, 32, 32, generator=generator(1))
    columns = slice(4 * level, 4 * level + 4)
    fade = [float(i != level) for i in range(2)]
    with torch.no_grad():
        full, faded = encoder(x)[0], encoder(x, fade)[0]
        moved = full.clone()
        moved[:, columns] += 1
        same = torch.equal(decoder(full, fade), decoder(moved, fade))
    changed = (full != faded).any(0).view(3, 4).any(1).tolist()
    assert changed == [i == level < 2 for i in range(3)]
    assert same == (level < 2)


def test_what_is_refused():
    for name in ('channels', 'latents', 'levels', 'width'):
        fails(lambda: ladder(**{name: 0}), name, 0)
    fails(lambda: ladder(1, 10, 3), 'latents', 10, 'multiple of 3')
    fails(lambda: ladder(1, 12, 3, 16), 'levels', 'at most 2')
    fails(lambda: ladder(size=48), 'size', 48)
    encoder, decoder = tiny()
    fails(lambda: encoder(X[..., :8]), 'x: got', '(B,1,16,16)')
    fails(lambda: encoder(X, (1.0, 1.0)), 'fade')
    fails(lambda: decoder(torch.zeros(4, 11)), 'z: got', '(B,12)')


# the methods on it


IMAGES = torch.rand(6, 1, 16, 16, generator=generator(2))
BATCH = Batch((IMAGES,), n_data=6)


def made(cls, levels=2, size=16, **options):
    seed_all(0)
    net = partial(ladder, levels=levels, size=size, width=2, batch_norm=False)
    return cls.from_net(net, 1, 6, **options)


def trained(model, n=4):
    fit(model, lambda t: BATCH, n, adam(1e-3), 'cpu')
    return model


def same(a, b):
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return all(torch.equal(p, q) for p, q in pairs)


def test_schedule_of_chen_et_al():
    "Steps 5,000 to 10,000 fade the second level in, the next 5,000 the lowest; the top one's weight falls from 150"
    rows = {0: (0, 0), 5000: (0, 0), 7500: (0, 0.5), 10_000: (0, 1), 12_500: (0.5, 1), 15_000: (1, 1), 10**6: (1, 1)}
    for t, wanted in rows.items():
        assert fade_factors(t, 3, 5000) == list(wanted)
    weights = [kl_weights(t, 3, 5000, 10.0, 1.0, 150.0) for t in (0, 2500, 5000, 5001, 10_001)]
    assert weights == [[1, 1, 150], [1, 1, 80], [1, 1, 10], [1, 10, 10], [10, 10, 10]]


def test_without_fading_it_is_the_beta_vae_on_a_ladder_to_the_bit():
    beta_vae = trained(made(BetaVAE, beta=3.0))
    assert same(trained(made(ProVLAE, fade_steps=0, beta=3.0)), beta_vae)
    assert not same(trained(made(ProVLAE, fade_steps=2, beta=3.0)), beta_vae)


def test_a_network_without_taps_has_one_level():
    for cls in (ProVLAE, LVAE):
        seed_all(0)
        model = cls(*resnet(1, 4, 16, 4), beta=2.0)
        seed_all(0)
        assert model.levels == 1 and same(trained(model), trained(BetaVAE(*resnet(1, 4, 16, 4), beta=2.0)))


@pytest.mark.parametrize('levels, size', [(2, 16), (3, 32)])
def test_lvae_whose_encoder_knows_nothing_has_no_kl_for_any_image(levels, size):
    def found(**options):
        model = made(LVAE, levels, size, width=4, **options).double()
        with torch.no_grad():
            for net in model.priors:
                net[-1].weight.normal_(0, 1, generator=generator(3))
        mu = torch.zeros(50, 6, dtype=torch.float64)
        log_var = torch.full_like(mu, 60)
        log_var[:, -6 // levels :] = 0
        model.encoder.forward = lambda x: (mu, log_var)
        terms = model.loss(Batch((torch.rand(50, 1, size, size, dtype=torch.float64),)), 0)
        return [terms[f'kl{i}'][1] for i in range(1, levels + 1)]

    assert all(kl.abs().max() < 1e-9 for kl in found())
    assert found(prior_at='prior')[0].mean() > 0.1


def test_lvae_reads_the_prior_at_the_inferred_sample():
    "By the chain rule in loops over three levels"
    model = made(LVAE, 3, 32, width=4)
    x = torch.rand(5, 1, 32, 32, generator=generator(4))
    torch.manual_seed(1)
    terms = model.loss(Batch((x,)), 0)
    torch.manual_seed(1)
    with torch.no_grad():
        mu, log_var = model.encoder(x)
        above = torch.zeros(5, 0)
        for level in (3, 2, 1):
            columns = slice(2 * level - 2, 2 * level)
            q = Normal(mu[:, columns], (log_var[:, columns] / 2).exp())
            p = Normal(torch.zeros(5, 2), torch.ones(5, 2))
            if level < 3:
                mean, log_prior = model.priors[2 - level](above).chunk(2, 1)
                p = Normal(mean, (log_prior / 2).exp())
                precision = q.scale**-2 + p.scale**-2
                q = Normal((q.loc / q.scale**2 + p.loc / p.scale**2) / precision, precision**-0.5)
            wanted = kl_divergence(q, p).sum(1)
            torch.testing.assert_close(terms[f'kl{level}'][1], wanted, rtol=1e-4, atol=1e-5)
            above = torch.cat([q.loc + q.scale * torch.randn(5, 2), above], 1)


def test_lvae_samples_its_own_prior_and_encodes_without_noise():
    model = made(LVAE, 3, 32)
    with torch.no_grad():
        for net in model.priors:
            net[-1].bias[:2] = 3.0
    z = model.sample_prior(500, generator(5))
    assert torch.equal(z, model.sample_prior(500, generator(5))) and not z.requires_grad
    assert z[:, :4].mean() > 2 and z[:, 4:].mean().abs() < 0.2
    x = torch.rand(5, 1, 32, 32, generator=generator(6))
    assert torch.equal(model.encode(x).mu, model.encode(x).mu)
    assert model.latent_names == ('z1_0', 'z1_1', 'z2_0', 'z2_1', 'z3_0', 'z3_1')


@pytest.mark.parametrize('cls', [ProVLAE, LVAE])
def test_a_stored_ladder_is_loaded_with_its_levels(cls, tmp_path):
    model = made(cls, 3, 32).eval()
    save_weights(model, tmp_path / 'w')
    other = load_model(tmp_path / 'w')
    assert type(other) is cls and other.levels == 3
    z = model.sample_prior(3, generator(7))
    torch.testing.assert_close(decode(other, z), decode(model, z), rtol=0, atol=1e-6)


def test_bad_options_are_refused():
    fails(lambda: made(ProVLAE, fade_steps=0.5), 'fade_steps', 0.5)
    fails(lambda: made(ProVLAE, start_beta=-1.0), 'start_beta', -1.0)
    fails(lambda: made(LVAE, warmup_steps=-1), 'warmup_steps', -1)
    fails(lambda: made(LVAE, width=0), 'width', 0)
    fails(lambda: made(LVAE, prior_at='top'), 'prior_at', 'top')
    encoder, decoder = SMALL(1, 4)
    fails(lambda: ProVLAE(encoder, ladder(1, 4, 1, 16, 2)[1]), 'decoder', 'levels')
