"The large networks: sides, parameters, widths, options, and the printed table that cannot be built."

import pytest
import torch
from torch import nn

from disent_nb.core import Batch, fails, generator, seed_all
from disent_nb.methods.vae import VAE
from disent_nb.nets.large64 import large64
from disent_nb.train.checks import five_tests

pytestmark = pytest.mark.usefixtures('one_thread')
X = torch.rand(4, 3, 64, 64, generator=generator(0))


def count(net, *kinds):
    "Parameters in millions, those of layers of some kinds"
    return sum(p.numel() for m in net.modules() if isinstance(m, kinds) for p in m.parameters()) / 1e6


def on_paper(*args, **options):
    "Shapes alone, without memory"
    with torch.device('meta'):
        return large64(*args, **options)


def maps(net, x):
    found = []
    hooks = [
        m.register_forward_hook(lambda m, _, out: found.append(out.shape[-1]))
        for m in net.modules()
        if isinstance(m, (nn.LeakyReLU, nn.ConvTranspose2d)) and m is not net
    ]
    net(x)
    for hook in hooks:
        hook.remove()
    return found


def test_sides_of_the_code_of_the_thesis():
    encoder, decoder = large64(width=1, form='thesis')
    assert maps(encoder, X) == [31, 14, 7, 3]
    sides = maps(decoder, torch.zeros(4, 10))
    assert sides == [8, 8, 9, 9, 16, 16, 32, 32, 31, 31, 64]


def test_parameters_of_the_code_of_the_thesis():
    encoder, decoder = on_paper(3, 500, form='thesis')
    convs = (nn.Conv2d, nn.ConvTranspose2d)
    assert round(count(encoder, *convs), 2) == 0.79 and round(count(decoder, *convs), 2) == 4.07
    assert round(count(encoder.layers[-3], nn.Linear), 2) == 4.72
    assert round(count(decoder, nn.Linear), 1) == 8.9


@pytest.mark.parametrize('form', ['same', 'thesis'])
@pytest.mark.parametrize('width', [1, 8])
def test_every_width_and_option_gives_codes_and_images(form, width):
    for options in (dict(), dict(coordinates=True), dict(batch_norm=False), dict(last_leak=0.1)):
        encoder, decoder = large64(3, 5, width, form, **options)
        mu, log_var = encoder(X)
        assert mu.shape == log_var.shape == (4, 5) and decoder(mu).shape == X.shape
        norms = [m for m in encoder.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
        assert len(norms) == (0 if 'batch_norm' in options else 5)


def test_width_scales_every_layer():
    full, eighth = on_paper(3, 10, 64), on_paper(3, 10, 8)
    for net, small in zip(full, eighth):
        for a, b in zip(net.modules(), small.modules()):
            if isinstance(a, nn.Linear) and a.out_features != 20:
                assert a.out_features == 8 * b.out_features
            if isinstance(a, (nn.Conv2d, nn.ConvTranspose2d)) and a.out_channels != 3:
                assert a.out_channels == 8 * b.out_channels


def test_the_last_leak_squeezes_negative_outputs_alone():
    seed_all(0)
    plain = large64(3, 5, 2)[1].eval()
    seed_all(0)
    leaky = large64(3, 5, 2, last_leak=0.1)[1].eval()
    z = torch.randn(4, 5, generator=generator(1))
    torch.testing.assert_close(leaky(z), nn.functional.leaky_relu(plain(z), 0.1))
    assert (plain(z) < 0).any()


def test_coordinates_reach_the_encoder():
    seed_all(0)
    encoder = large64(3, 5, 2, coordinates=True)[0].eval()
    with torch.no_grad():
        encoder.layers[0].weight[:, 3:].zero_()
        blind = encoder(X)[0]
        seed_all(0)
        located = large64(3, 5, 2, coordinates=True)[0].eval()(X)[0]
    assert encoder.layers[0].in_channels == 5 and not torch.allclose(blind, located)


@pytest.mark.parametrize('padding', [0, 1])
def test_the_printed_table_gives_no_image_of_64_pixels(padding):
    x = torch.zeros(1, 512, 4, 4)
    for channels, kernel, stride in [(256, 4, 2), (256, 4, 1), (128, 4, 2), (64, 4, 1), (64, 3, 4)]:
        x = nn.ConvTranspose2d(x.shape[1], channels, kernel, stride, padding)(x)
    assert x.shape[1:] == (64, *[(123, 123), (73, 73)][padding])


def test_what_is_refused():
    fails(lambda: large64(form='valid'), 'form', 'valid', 'same')
    for name in ('channels', 'latents', 'width'):
        fails(lambda: large64(**{name: 0}), name, 0)
    encoder, decoder = large64(3, 5, 1)
    for x in (X[:, :1], X[..., :32], X[0]):
        fails(lambda: encoder(x), 'x: got', '(B,3,64,64)')
    fails(lambda: decoder(torch.zeros(4, 6)), 'z: got', '(B,5)')


def test_a_vae_without_batch_norm_passes_the_five_tests():
    def make(**options):
        return VAE(*large64(3, 4, 2, batch_norm=False), **options)

    five_tests(make, lambda t: Batch((X,)))
