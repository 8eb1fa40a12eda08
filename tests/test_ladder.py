"The ladder: which latents see and move what, whom it equals with one level, and what is refused."

import pytest
import torch

from disent_nb.core import fails, generator
from disent_nb.nets.ladder import ladder

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
