"What every method has in common, and the limits in which one method is another."

import inspect, itertools, math

import pytest
import torch
from torch import nn

from disent_nb.core import Batch, discover, fails, generator, load_object, seed_all
from disent_nb.rendered.dsprites import ReducedDSprites
from disent_nb.methods.ae import AE
from disent_nb.methods.annealed import AnnealedVAE
from disent_nb.methods.betatc import BetaTCVAE
from disent_nb.methods.betavae import BetaVAE
from disent_nb.methods.dip import DIPVAE
from disent_nb.methods.factor import FactorVAE
from disent_nb.methods.group import AdaGVAE, AdaMLVAE, kl_between
from disent_nb.methods.vae import VAE
from disent_nb.train.method import decode, encode
from disent_nb.nets.resnet import resnet
from disent_nb.prob import Posterior, exact_kl_decomposition
from disent_nb.train.checks import check_falls, check_isolation, check_resume, same_weights
from disent_nb.train.fit import adam, fit
from disent_nb.train.method import Method, weighted

METHODS = list(discover('disent_nb.methods', lambda o: inspect.isclass(o) and issubclass(o, Method)))
pytestmark = pytest.mark.usefixtures('one_thread')
every = pytest.mark.parametrize('path', METHODS)

sprites = ReducedDSprites().images(torch.arange(5, 7200, 900))
IMAGES = nn.functional.avg_pool2d(sprites.float() / 255, 4)  # (8,1,16,16)
PLAIN = Batch((IMAGES,), n_data=7200)


def batches():
    "What a method may need: nothing, a second view, which factors differ, labels of some"
    two, mask = (IMAGES, IMAGES.roll(1, 0)), torch.tensor([[True, False, True, False]]).expand(8, 4)
    return [
        PLAIN,
        Batch(two, n_data=7200),
        Batch(two, mask, 7200),
        Batch((IMAGES,), torch.arange(32).reshape(8, 4) % 3 - 1, 7200),
    ]


def nets():
    return resnet(1, 4, 16, 8)


def make(path, **options):
    seed_all(0)
    return load_object(path).small(**options)


def batch_for(path):
    "The first of `batches()` that the method takes"
    refused = []
    for b in batches():
        try:
            list(make(path).updates(b, 0))
        except ValueError as e:
            refused.append(str(e))
        else:
            return b
    raise AssertionError(f'{path} takes no batch of these tests: {refused}')


def trained(m, n):
    fit(m, lambda t: PLAIN, n, adam(1e-3), 'cpu')
    return m


def code_nets(m):
    return nn.ModuleList([m.encoder, m.decoder])


# Every method


def test_the_methods_are_found():
    assert len(METHODS) >= 7 and 'disent_nb.methods.vae.VAE' in METHODS


@every
def test_each_parameter_has_one_owner(path):
    m = make(path)
    owned = [p for g in m.groups().values() for p in g.parameters()]
    assert len({id(p) for p in owned}) == len(owned) and {id(p) for p in owned} == {id(p) for p in m.parameters()}
    assert set(m.opts(adam())) == set(m.groups()) >= {name for name, _ in m.updates(batch_for(path), 0)}


def checked(path):
    "What the checks of `train.checks` need: a function that makes the method, and its batches"
    b = batch_for(path)
    return load_object(path).small, lambda t: b


@every
def test_an_update_changes_only_its_own_group(path):
    check_isolation(*checked(path))


@every
def test_loss_on_one_batch(path):
    "It falls where one loss is minimised; that of adversaries stays finite"
    check_falls(*checked(path))


@every
def test_save_load_same_next_step(path):
    check_resume(*checked(path))


def all_terms(m, b):
    torch.manual_seed(3)
    return [v.detach() for _, terms in m.updates(b, 7) for v in (weighted(terms), *(v for _, v in terms.values()))]


@pytest.mark.parametrize('make_adaptive', [AdaGVAE.small, AdaMLVAE.small])
def test_no_adaptive_choice_is_nearly_tied_here(make_adaptive):
    "Otherwise rounding would decide what is merged, and the next test would compare different choices"
    seed_all(0)
    m = make_adaptive()
    delta = kl_between(*(m.encode(x) for x in (IMAGES, IMAGES.roll(1, 0))))
    middle = (delta.amax(1, True) + delta.amin(1, True)) / 2
    assert ((delta - middle).abs() > 1e-3 * middle).all()


@every
@pytest.mark.parametrize('dtype, rtol', [(torch.float32, 2e-4), (torch.float64, 1e-6)])
def test_layout_of_the_memory_does_not_matter(path, dtype, rtol):
    b = batch_for(path)
    b = Batch(tuple(x.to(dtype) for x in b.xs), b.y, b.n_data)
    turned = Batch(tuple(x.contiguous(memory_format=torch.channels_last) for x in b.xs), b.y, b.n_data)
    plain = all_terms(make(path).to(dtype), b)
    for a, c in zip(plain, all_terms(make(path).to(dtype, memory_format=torch.channels_last), turned)):
        torch.testing.assert_close(a, c, rtol=rtol, atol=rtol)
    assert all(v.isfinite().all() for v in plain)


@every
def test_order_of_the_batch_does_not_matter_to_codes(path):
    m = make(path)
    q, p = encode(m, IMAGES), encode(m, IMAGES.flip(0), chunk=3)
    torch.testing.assert_close(q.mu.flip(0), p.mu)
    assert decode(m, q.mu).shape == IMAGES.shape


def options(path, *types):
    return {
        n: p.default for n, p in inspect.signature(load_object(path)).parameters.items() if type(p.default) in types
    }


@every
def test_wrong_options_are_refused_by_name(path):
    for name in options(path, float):
        for wrong in (-1.0, math.nan):
            fails(lambda: make(path, **{name: wrong}), name, wrong)
    for name in options(path, str):
        fails(lambda: make(path, **{name: 'nonsense'}), name, 'nonsense')


@every
def test_options_show_in_the_repr(path):
    "What a reader of the repr does not see could be changed unnoticed"
    m = make(path)
    for name in options(path, int, float, str):
        assert f'{name}={getattr(m, name)!r}' in repr(m)


@every
def test_batch_of_one(path):
    "It works, or is refused by name"
    b = batch_for(path)
    one = Batch(tuple(x[:1] for x in b.xs), b.y[:1] if torch.is_tensor(b.y) else b.y, b.n_data)
    try:
        found = all_terms(make(path), one)
    except ValueError as e:
        assert 'batch of 1' in str(e)
    else:
        assert all(v.isfinite().all() for v in found)


# Limits, to the bit where the arithmetic is the same


def built(cls, *args, **options):
    seed_all(0)
    return cls(*nets(), *args, **options)


LIMITS = {
    'beta-VAE, beta 1': lambda: built(BetaVAE, beta=1.0),
    'FactorVAE, gamma 0': lambda: built(FactorVAE, gamma=0.0, width=16),
    'DIP-VAE-I, no weights': lambda: built(DIPVAE, 'I', 0.0, 0.0),
    'DIP-VAE-II, no weights': lambda: built(DIPVAE, 'II', 0.0, 0.0),
}


@pytest.mark.parametrize('name', LIMITS)
def test_limit_is_the_vae_to_the_bit(name):
    assert same_weights(code_nets(trained(LIMITS[name](), 4)), code_nets(trained(built(VAE), 4)))


@pytest.mark.parametrize(
    'make_other',
    [
        lambda: built(BetaVAE, beta=2.0),
        lambda: built(FactorVAE, gamma=9.0, width=16),
        lambda: built(DIPVAE, 'I', 5.0, 0.0),
        lambda: built(DIPVAE, 'II', 0.0, 5.0),
    ],
)
def test_off_the_limit_it_is_not(make_other):
    assert not same_weights(code_nets(trained(make_other(), 4)), code_nets(trained(built(VAE), 4)))


def gradient(m, t=0, b=PLAIN):
    "Of the loss of the first update, with fixed noise, for encoder and decoder"
    torch.manual_seed(5)
    _, terms = next(m.updates(b, t))
    return torch.cat([g.flatten() for g in torch.autograd.grad(weighted(terms), list(code_nets(m).parameters()))])


def test_capacity_equal_to_the_kl_is_no_penalty():
    "The deviation is zero and has no slope, so what is left is the reconstruction, to the bit"
    m = built(AnnealedVAE, gamma=1000.0, c_steps=1)
    m.c_max = m.encode(IMAGES).kl().sum(1).mean().item()
    assert m.penalty(m.encode(IMAGES), None, PLAIN, 1)['deviation'][1] == 0
    assert torch.equal(gradient(m, t=1), gradient(built(BetaVAE, beta=0.0)))
    assert not torch.equal(gradient(m, t=0), gradient(built(BetaVAE, beta=0.0)))


def test_capacity_zero_is_beta_vae():
    for t in (0, 5):
        torch.testing.assert_close(
            gradient(built(AnnealedVAE, gamma=4.0, c_max=0.0), t),
            gradient(built(BetaVAE, beta=4.0)),
            rtol=1e-4,
            atol=1e-4,
        )


def test_capacity_is_a_function_of_the_step():
    m = built(AnnealedVAE, c_max=20.0, c_steps=100)
    assert [m.capacity(t) for t in (0, 25, 100, 10**6)] == [0, 5, 20, 20]
    q = m.encode(IMAGES)
    below, above = (m.penalty(q, None, PLAIN, t)['deviation'][1] for t in (0, 100))
    torch.testing.assert_close(below + above, torch.tensor(20.0))  # KL between 0 and 20: |KL - 0| + |KL - 20|


class Narrow(BetaVAE):
    "A posterior without width"

    def encode(self, x):
        return Posterior(super().encode(x).mu, torch.full((len(x), 4), -80.0))


def test_ae_is_a_gaussian_vae_without_noise_and_penalty():
    a, b = gradient_of_used(built(AE)), gradient_of_used(built(Narrow, beta=0.0, likelihood='gaussian'))
    torch.testing.assert_close(a, 2 * b, rtol=1e-4, atol=1e-4)  # squared error is twice the Gaussian's exponent


def gradient_of_used(m):
    torch.manual_seed(5)
    gs = torch.autograd.grad(weighted(m.loss(PLAIN, 0)), list(code_nets(m).parameters()), allow_unused=True)
    return torch.cat([g.flatten() for g in gs if g is not None])


# beta-TCVAE: its three parts against the whole and against the exact mixture


def whole_set():
    return Batch((IMAGES,), n_data=len(IMAGES))


@pytest.mark.parametrize('estimator', ['weighted', 'stratified'])
@pytest.mark.parametrize('weight', [1.0, 3.0])
def test_equal_weights_penalise_the_kl_sample_whatever_the_estimator(estimator, weight):
    m = built(BetaTCVAE, weight, weight, weight, estimator)
    q = m.encode(IMAGES)
    z = q.sample()
    found = sum(w * v for w, v in m.penalty(q, z, PLAIN, 0).values())
    wanted = weight * (q.log_prob(z) - Posterior(0 * z, 0 * z).log_prob(z)).sum(1)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_equal_weights_are_the_elbo_on_average():
    "With the exact mixture, the whole set being the batch: over the noise, the penalty is the VAE's KL in closed form"
    m, q = built(BetaTCVAE, 1.0, 1.0, 1.0, 'stratified'), encode(built(VAE), IMAGES)
    q = Posterior(q.mu * 3, q.log_var - 2)

    def penalty(k):
        return weighted(m.penalty(q, q.sample(torch.randn(8, 4, generator=generator(k))), whole_set(), 0))

    d = torch.stack([penalty(k) for k in range(2000)]) - q.kl().sum(1).mean()
    assert d.mean().abs() < 4 * d.std() / 2000**0.5 and d.std() > 0.1
    vae = built(VAE)
    torch.manual_seed(1)
    mine = m.loss(whole_set(), 0)['rec'][1]
    torch.manual_seed(1)
    assert torch.equal(mine, vae.loss(whole_set(), 0)['rec'][1])


def test_whole_set_as_batch_gives_the_exact_parts():
    m = built(BetaTCVAE, estimator='stratified')
    q = encode(m, IMAGES)
    z = q.sample()
    exact = exact_kl_decomposition(z, q)
    for k, (w, v) in m.penalty(q, z, whole_set(), 0).items():
        assert w == dict(mi=1.0, tc=6.0, dwkl=1.0)[k]
        torch.testing.assert_close(v, exact[k], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('size', [2, 4, 7])
def test_bias_of_the_estimators_by_enumeration(size):
    "All batches of a set of eight: the density behind `mi` is right on average for stratified, and low by a known amount for weighted; the logarithm makes `mi` high"
    q = Posterior(
        torch.randn(8, 3, generator=generator(0), dtype=torch.float64),
        torch.randn(8, 3, generator=generator(1), dtype=torch.float64) - 1,
    )
    z = q.sample(torch.randn(8, 3, generator=generator(2), dtype=torch.float64))
    exact, own = exact_kl_decomposition(z, q)['mi'], q.log_prob(z).sum(1)
    sets = torch.tensor(list(itertools.combinations(range(8), size)))
    for estimator in ('stratified', 'weighted'):
        m, density, mi, n = (
            built(BetaTCVAE, estimator=estimator),
            torch.zeros(8).double(),
            torch.zeros(8).double(),
            math.comb(7, size - 1),
        )
        for i in sets:
            found = m.penalty(q[i], z[i], Batch((IMAGES[:size],), n_data=8), 0)['mi'][1]
            density[i] += (own[i] - found).exp() / n
            mi[i] += found / n
        right = (own - exact).exp()
        if estimator == 'weighted':
            right = (own.exp() + (size - 1) * (8 * right - own.exp()) / 7) / (8 * size)
        torch.testing.assert_close(density, right)
        assert (mi >= exact - 1e-12).all() and (mi.mean() > exact.mean() + 0.001)


# FactorVAE


def test_losses_of_the_two_groups_reach_only_what_they_should():
    m = built(FactorVAE, gamma=9.0, width=16)
    updates = m.updates(PLAIN, 0)
    name, terms = next(updates)
    reach = lambda terms, module: [
        g is not None
        for g in torch.autograd.grad(weighted(terms), list(module.parameters()), allow_unused=True, retain_graph=True)
    ]
    assert name == 'vae' and all(reach(terms, code_nets(m)))
    name, terms = next(updates)
    assert name == 'discriminator' and all(reach(terms, m.discriminator)) and not any(reach(terms, code_nets(m)))


class Known(nn.Module):
    "Encoder whose codes are Gaussian with covariance `corr`, made from three pixels that are uniform"

    latents = 3

    def __init__(self, corr):
        super().__init__()
        self.register_buffer('root', torch.linalg.cholesky(corr))

    def forward(self, x):
        normal = torch.special.ndtri(x.flatten(1)[:, :3].clamp(1e-6, 1 - 1e-6))
        return normal @ self.root.T, torch.full((len(x), 3), -30.0)


class ThreeToImage(nn.Linear):
    latents = 3

    def forward(self, z):
        return super().forward(z).reshape(-1, 1, 2, 2)


@pytest.mark.parametrize('a, b, c', [(0.0, 0.0, 0.0), (0.8, 0.3, 0.5)])
def test_the_classifier_finds_the_total_correlation_of_a_gaussian(a, b, c):
    "Through the method's own updates: the mean logit of true codes is -1/2 log det R"
    corr = torch.tensor([[1, a, b], [a, 1, c], [b, c, 1]])
    known = -0.5 * torch.logdet(corr).item()
    seed_all(0)
    m = FactorVAE(Known(corr), ThreeToImage(3, 4), width=48)

    def sampled(n, *keys):
        return Batch((torch.rand(n, 1, 2, 2, generator=generator(*keys)),), n_data=10**6)

    for k, lr in enumerate((3e-3, 1e-3, 2e-4)):
        fit(m, lambda t: sampled(512, k, t), 100, dict(vae=adam(1e-3), discriminator=adam(lr, (0.5, 0.9))), 'cpu')
    with torch.no_grad():
        found = m.discriminator(m.encode(sampled(20_000, 9).x).mu).mean().item()
    assert abs(found - known) < 0.05 + 0.1 * known


# DIP-VAE


def test_dip_is_blind_to_the_shift_and_kind_two_sees_the_noise():
    mu, log_var = torch.randn(6, 4, generator=generator(0)), torch.randn(6, 4, generator=generator(1))

    def terms(kind, mu, log_var):
        return {
            k: v
            for k, (_, v) in built(DIPVAE, kind).penalty(Posterior(mu, log_var), None, PLAIN, 0).items()
            if k != 'kl'
        }

    for kind in ('I', 'II'):
        for k, v in terms(kind, mu, log_var).items():
            torch.testing.assert_close(v, terms(kind, mu + 3, log_var)[k], rtol=1e-4, atol=1e-4)
    assert (
        terms('I', mu, log_var) == terms('I', mu, log_var - 1)
        and terms('II', mu, log_var)['diagonal'] != terms('II', mu, log_var - 1)['diagonal']
    )
    torch.testing.assert_close(terms('I', mu, log_var)['off_diagonal'], terms('II', mu, log_var)['off_diagonal'])
