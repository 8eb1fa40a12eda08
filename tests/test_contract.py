"Three models that are no plain VAE, each in a few lines, go through everything that is written around models."

import inspect

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from disent_nb.core import Batch, discover, generator, seed_all
from disent_nb.data.views import Views
from disent_nb.methods.betavae import BetaVAE
from disent_nb.nets.conv64 import burgess64
from disent_nb.prob import Posterior, bernoulli_nll
from disent_nb.runs.study import load_run, study
from disent_nb.runs.tables import table
from disent_nb.train.callbacks import History
from disent_nb.train.checkpoint import Checkpoint, load_weights, save_weights
from disent_nb.train.checks import check_isolation, check_resume, five_tests
from disent_nb.train.fit import adam, fit
from disent_nb.train.method import Method, Model, decode, encode
from disent_nb.viz.traversals import latent_traversals

pytestmark = pytest.mark.usefixtures('one_thread')
IMAGES = torch.rand(24, 1, 64, 64, generator=generator(0))


def batches(t):
    rows = torch.randint(24, (6,), generator=generator(1, t))
    return Batch((IMAGES[rows],), rows[:, None] % 3 - 1, 24)


class GAN(Model):
    "Two networks, a lazy R1 penalty, and a moving average of the generator (Goodfellow et al. 2014; Mescheder et al. 2018)"

    def __init__(self, generator, discriminator, latents, gamma=1.0, interval=4, decay=0.9):
        super().__init__()
        self.generator, self.discriminator = generator, discriminator
        self.n_latents, self.gamma, self.interval, self.decay = latents, gamma, interval, decay
        self.average = type(self).copy_of(generator)

    @staticmethod
    def copy_of(net):
        import copy

        return copy.deepcopy(net).requires_grad_(False)

    @classmethod
    def from_net(cls, net, channels, latents, **options):
        return cls(net(channels, latents)[1], net(channels, 1)[0], latents, **options)

    def groups(self):
        return dict(discriminator=self.discriminator, generator=self.generator)

    def opts(self, opt):
        return dict(discriminator=adam(1e-3, (0.0, 0.99), lazy=self.interval), generator=adam(1e-3, (0.0, 0.99)))

    def judge(self, x):
        return self.discriminator(x)[0].flatten()

    def fake(self, n):
        return self.generator(self.sample_prior(n)).sigmoid()

    def updates(self, b, t):
        terms = dict(fake=(1.0, F.softplus(self.judge(self.fake(len(b)).detach()))))
        x = b.x.detach().requires_grad_(t % self.interval == 0)
        logits = self.judge(x)
        terms['real'] = (1.0, F.softplus(-logits))
        if t % self.interval == 0:
            (slope,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
            terms['r1'] = (self.gamma / 2 * self.interval, slope.square().flatten(1).sum(1))
        yield 'discriminator', terms
        yield 'generator', dict(non_saturating=(1.0, F.softplus(-self.judge(self.fake(len(b))))))
        with torch.no_grad():
            for mean, p in zip(self.average.parameters(), self.generator.parameters()):
                mean.lerp_(p, 1 - self.decay)

    def decode(self, z):
        return self.average(z).sigmoid()


class Layered(Model):
    "A chain of posteriors, each read from the parameters of the one above, and a decoder for each level"

    def __init__(self, encoder, decoders, sizes, beta=1.0):
        super().__init__()
        self.encoder, self.decoders, self.beta = encoder, nn.ModuleList(decoders), beta
        pairs = zip(sizes, sizes[1:])
        self.between_levels = nn.ModuleList([nn.Linear(2 * a, 2 * b) for a, b in pairs])
        self.n_latents = sizes[-1]

    @classmethod
    def from_net(cls, net, channels, latents, levels=2, **options):
        sizes = [latents * 2**i for i in reversed(range(levels))]
        return cls(net(channels, sizes[0])[0], [net(channels, d)[1] for d in sizes], sizes, **options)

    def levels(self, x):
        q = Posterior(*self.encoder(x))
        yield q
        for layer in self.between_levels:
            q = Posterior(*layer(torch.cat([q.mu, q.log_var], 1)).chunk(2, 1))
            yield q

    def encode(self, x):
        *_, deepest = self.levels(x)
        return deepest

    def decode(self, z):
        return self.decoders[-1](z).sigmoid()

    def updates(self, b, t):
        terms = {}
        for i, (q, decoder) in enumerate(zip(self.levels(b.x), self.decoders), 1):
            terms[f'rec{i}'] = (1.0, bernoulli_nll(decoder(q.sample()), b.x))
            if i > 1:
                terms[f'kl{i}'] = (self.beta, q.kl().sum(1))
        yield 'vae', terms


class LabelViews(Views):
    "Images with a label of two classes, unknown (-1) for a third of them"

    def __init__(self, ds, batch_size=64, seed=0, device='cpu'):
        self.ds, self.batch_size, self.seed = ds, batch_size, seed

    def __call__(self, t):
        rows = torch.randint(len(self.ds), (self.batch_size,), generator=generator(self.seed, t))
        return Batch((self.ds.images(rows).float() / 255,), rows[:, None] % 3 - 1, len(self.ds))

    def __repr__(self):
        return f'LabelViews({self.ds!r}, {self.batch_size}, {self.seed})'


class M2(Model):
    "A label y of two classes beside the code z; an unknown label is summed over (Kingma et al. 2014, model M2)"

    views = f'{__name__}.LabelViews'

    def __init__(self, encoder, decoder, classifier, alpha=1.0):
        super().__init__()
        self.encoder, self.decoder, self.classifier, self.alpha = encoder, decoder, classifier, alpha
        self.n_latents = decoder.latents

    @classmethod
    def from_net(cls, net, channels, latents, **options):
        return cls(net(channels, latents - 2)[0], net(channels, latents)[1], net(channels, 2)[0], **options)

    @property
    def latent_names(self):
        return ('y0', 'y1', *(f'z{d}' for d in range(self.n_latents - 2)))

    def encode(self, x):
        p, q = self.classifier(x)[0].softmax(1), Posterior(*self.encoder(x))
        return Posterior(torch.cat([p, q.mu], 1), torch.cat([torch.full_like(p, -20), q.log_var], 1))

    def sample_prior(self, n, generator=None):
        y = torch.randint(2, (n,), generator=generator)
        return torch.cat([F.one_hot(y, 2).float(), torch.randn(n, self.n_latents - 2, generator=generator)], 1)

    def decode(self, z):
        return self.decoder(z).sigmoid()

    def cost(self, x, q, y):
        z = torch.cat([F.one_hot(torch.full((len(x),), y), 2).float(), q.sample()], 1)
        return bernoulli_nll(self.decoder(z), x) + q.kl().sum(1) + torch.tensor(2.0).log()

    def updates(self, b, t):
        q, log_p, y = Posterior(*self.encoder(b.x)), self.classifier(b.x)[0].log_softmax(1), b.y[:, 0]
        costs, known = torch.stack([self.cost(b.x, q, k) for k in (0, 1)], 1), y >= 0
        labelled = costs.gather(1, y.clamp(min=0)[:, None])[:, 0]
        unlabelled = (log_p.exp() * (costs + log_p)).sum(1)
        right = -log_p.gather(1, y.clamp(min=0)[:, None])[:, 0].where(known, 0.0)
        yield 'vae', dict(elbo=(1.0, labelled.where(known, unlabelled)), label=(self.alpha, right))


MODELS = [GAN, Layered, M2]
every = pytest.mark.parametrize('cls', MODELS)


def make(cls, **options):
    return cls.from_net(burgess64, 1, 4, **options)


@every
def test_each_is_short(cls):
    source = [line for line in inspect.getsource(cls).split('\n') if line.strip()]
    assert len(source) < 60


def test_a_layered_vae_and_a_label_vae_pass_the_five_tests():
    one_level = dict(levels=1)
    five_tests(lambda **o: make(Layered, **{**one_level, **o}), batches)
    five_tests(lambda **o: make(M2, **o), batches)


def test_a_gan_keeps_its_updates_apart_and_resumes():
    "The moving average is moved between the updates, by hand; everything else belongs to one optimizer"
    check_isolation(lambda: make(NoAverage), batches)
    check_resume(lambda: make(GAN), batches)


class NoAverage(GAN):
    decay = 1.0

    def __init__(self, *args, **options):
        super().__init__(*args, **{**options, 'decay': 1.0})


def test_the_moving_average_follows_and_the_lazy_penalty_leaves_gaps():
    seed_all(0)
    gan, history = make(GAN, decay=0.5), History(every=2)
    before = [p.clone() for p in gan.average.parameters()]
    fit(gan, batches, 8, device='cpu', cbs=[history])
    moved = [not torch.equal(a, b) for a, b in zip(before, gan.average.parameters())]
    assert all(moved) and all(p.grad is None for p in gan.average.parameters())
    r1 = torch.tensor(history.rows['discriminator/r1'])
    assert r1.isnan().tolist() == [False, True, False, True]  # at steps 0 and 4, in windows of two
    assert len({len(v) for v in history.rows.values()}) == 1


@every
def test_each_resumes_bit_for_bit_through_files(cls, tmp_path):
    def train(n, path):
        seed_all(0)
        model = make(cls)
        fit(model, batches, n, adam(1e-3), 'cpu', cbs=[Checkpoint(path)])
        return model

    train(3, tmp_path / 'a')
    resumed, straight = train(6, tmp_path / 'a'), train(6, tmp_path / 'b')
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    save_weights(straight, tmp_path / 'w.safetensors')
    loaded = load_weights(make(cls), tmp_path / 'w.safetensors')
    for name, value in straight.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    z = straight.sample_prior(3, generator(0))
    # training leaves weights in another memory layout, for which some processors sum in another order
    torch.testing.assert_close(decode(loaded, z), decode(straight, z), rtol=0, atol=1e-5)


@every
def test_each_decodes_with_a_gradient_and_samples(cls):
    seed_all(0)
    model = make(cls)
    z = model.sample_prior(5, generator(3))
    assert z.shape == (5, model.n_latents) == (5, len(model.latent_names))
    assert torch.equal(z, model.sample_prior(5, generator(3)))
    z.requires_grad_()
    x = model.decode(z)
    assert 0 <= x.min() and x.max() <= 1
    (slope,) = torch.autograd.grad(x.sum(), z)
    assert (slope != 0).any(0).all()
    if model.has_encoder:
        assert encode(model, IMAGES).mu.shape == (24, model.n_latents)
        assert model(IMAGES[:2]).shape == IMAGES[:2].shape
    else:
        with pytest.raises(TypeError, match='GAN has no encoder'):
            encode(model, IMAGES)
    fig = latent_traversals(lambda codes: decode(model, codes), z.detach()[:1], steps=3)
    assert fig.get_axes() or fig.images


@every
def test_each_goes_through_study_and_table(cls, tmp_path):
    spec = dict(label=cls.__name__, method=f'{__name__}.{cls.__name__}', latents=4, steps=4, batch_size=8, device='cpu')
    scored = dict(metrics=['mig'], n_train=200, n_test=100) if cls is not GAN else dict(metrics=())
    rows = study([spec | scored | dict(seed=s) for s in (0, 1)], tmp_path, show=lambda line: None)
    assert rows.error.tolist() == ['', ''], rows.error.tolist()
    assert ('mig' in rows) == (cls is not GAN)
    ds, model = load_run(rows.folder[0])
    assert isinstance(model, cls) and decode(model, model.sample_prior(2)).shape == (2, *ds.shape)
    cells = table(tmp_path, rows='method', metrics=['seconds'])
    assert cells['n'].tolist() == [2]


def test_tied_weights_and_a_module_registered_twice_save_and_load(tmp_path):
    class Tied(BetaVAE):
        def __init__(self, encoder, decoder, **options):
            super().__init__(encoder, decoder, **options)
            self.again = self.encoder

    seed_all(0)
    model = make(Tied)
    save_weights(model, tmp_path / 'w')
    other = load_weights(make(Tied), tmp_path / 'w')
    assert other.again is other.encoder
    assert torch.equal(encode(model, IMAGES).mu, encode(other, IMAGES).mu)


def test_every_method_of_the_package_is_a_model_with_a_small_instance():
    methods = discover('disent_nb.methods', lambda o: inspect.isclass(o) and issubclass(o, Method))
    assert len(methods) >= 16
    for path, cls in methods.items():
        assert issubclass(cls, Model), path
        model = cls.small()
        assert model.n_latents == 4 and model(torch.rand(2, 1, 16, 16)).shape == (2, 1, 16, 16), path
