"Exported graphs compute what the model computes, for any number of samples, or are not written."

import sys
from functools import partial

import numpy as np
import onnx
import pytest
import torch
from onnxruntime import InferenceSession
from torch import nn

from disent_nb.core import fails, generator, seed_all
from disent_nb.methods.betavae import BetaVAE
from disent_nb.methods.factor import FactorVAE
from disent_nb.methods.group import AdaGVAE
from disent_nb.nets.conv64 import burgess64, locatello64
from disent_nb.nets.ladder import ladder
from disent_nb.nets.large64 import large64
from disent_nb.nets.mlp import dense
from disent_nb.nets.resnet import resnet
from disent_nb.train.method import Model, decode, encode
from disent_nb.uses.onnx import export_onnx

pytestmark = pytest.mark.usefixtures('one_thread')
NETS = dict(
    burgess64=(burgess64, (64, 64)),
    locatello64=(locatello64, (64, 64)),
    resnet=(partial(resnet, size=16, width=8), (16, 16)),
    dense=(partial(dense, size=(5, 7), width=32), (5, 7)),
    large64=(partial(large64, width=1, coordinates=True), (64, 64)),
    ladder=(partial(ladder, levels=2, size=16, width=1), (16, 16)),
)


def made(net=NETS['resnet'][0], cls=BetaVAE, channels=1, **options):
    seed_all(0)
    return cls.from_net(net, channels, 4, **options).eval()


def run(path, x):
    session = InferenceSession(str(path), providers=['CPUExecutionProvider'])
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})


def check(model, files, size):
    "Sizes of a batch that the export has not tried, too"
    for n in (1, 2, 5, 33):
        x = torch.rand(n, *size, generator=generator(n))
        mu, log_var = run(files[0], x)
        q = encode(model, x)
        np.testing.assert_allclose(mu, q.mu, rtol=0, atol=1e-5)
        np.testing.assert_allclose(log_var, q.log_var, rtol=0, atol=1e-5)
        (images,) = run(files[1], torch.from_numpy(mu))
        np.testing.assert_allclose(images, decode(model, mu), rtol=0, atol=1e-5)


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('name', NETS)
def test_every_network(name, channels, tmp_path):
    net, size = NETS[name]
    model = made(net, channels=channels)
    files = export_onnx(model, tmp_path / 'model.onnx')
    assert [f.name for f in files] == ['model-encoder.onnx', 'model-decoder.onnx']
    check(model, files, (channels, *size))
    for f in files:
        onnx.checker.check_model(str(f))
        first = onnx.load(str(f)).graph.input[0].type.tensor_type.shape.dim[0]
        assert first.dim_param == 'batch' and not first.dim_value
    assert sorted(f.name for f in tmp_path.iterdir()) == sorted(f.name for f in files)  # no temporary file


@pytest.mark.parametrize(
    'cls, options', [(FactorVAE, dict(width=16)), (AdaGVAE, {}), (BetaVAE, dict(likelihood='gaussian'))]
)
def test_other_methods(cls, options, tmp_path):
    model = made(cls=cls, **options)
    check(model, export_onnx(model, tmp_path / 'model'), (1, 16, 16))


def test_the_model_is_left_as_it_is(tmp_path):
    "A double model in training mode and channels_last layout is exported in float32, and stays what it is"
    model = made().double().to(memory_format=torch.channels_last).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    files = export_onnx(model, tmp_path / 'model')
    assert model.training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    check(made(), files, (1, 16, 16))


class Generator(Model):
    "No encoder"

    n_latents = 3

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(3, 16)

    def decode(self, z):
        return self.net(z).sigmoid().unflatten(1, (1, 4, 4))


def test_a_model_without_encoder_has_one_file(tmp_path):
    model = Generator()
    (path,) = export_onnx(model, tmp_path / 'gan.onnx')
    z = model.sample_prior(7)
    np.testing.assert_allclose(run(path, z)[0], decode(model, z), rtol=0, atol=1e-6)


class Noisy(Generator):
    def decode(self, z):
        return super().decode(z + torch.randn_like(z))


class Counting(Generator):
    def decode(self, z):
        return super().decode(z * float(len(z)))


class ByRow(Generator):
    def decode(self, z):
        return super().decode(torch.stack([z[i] for i in range(len(z))]))


@pytest.mark.parametrize('cls', [Noisy, Counting, ByRow])
def test_what_a_graph_cannot_hold_is_refused_and_not_written(cls, tmp_path):
    fails(lambda: export_onnx(cls(), tmp_path / 'gan.onnx'), 'model', cls.__name__)
    assert not list(tmp_path.iterdir())


def test_what_is_refused(tmp_path, monkeypatch):
    fails(lambda: export_onnx(nn.Linear(1, 1), tmp_path / 'a'), 'model', 'Linear')
    fails(lambda: export_onnx(BetaVAE, tmp_path / 'a'), 'model')
    for name in ('onnx', 'onnxruntime'):
        with monkeypatch.context() as m:
            m.setitem(sys.modules, name, None)
            fails(lambda: export_onnx(made(), tmp_path / 'a'), name, "'disent_nb[onnx]'", error=ModuleNotFoundError)


def test_the_exporter_needs_no_onnxscript(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    assert len(export_onnx(made(), tmp_path / 'a')) == 2
