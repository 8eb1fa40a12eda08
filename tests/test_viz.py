"Figures: their size in pixels, what stands in them, and what they refuse."

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from matplotlib.figure import Figure

from disent_nb.viz.curves import loss_curves
from disent_nb.viz.grids import image_grid, reconstructions
from disent_nb.viz.heatmaps import mi_heatmap
from disent_nb.viz.traversals import latent_traversals, traversal_range, traverse


def screen(fig):
    "The drawn figure `(height,width,3)` in 0..255"
    fig.canvas.draw()
    return np.asarray(fig.canvas.buffer_rgba())[..., :3]


def labels(fig):
    return [t.get_text() for t in fig.axes[0].texts]


def frames(fig, h, w, cols, left=0, top=0):
    "Whether each tile has the coloured frame"
    s, orange = screen(fig), np.array([255, 115, 0])
    middles = [s[top + y * h + 1, left + x * w + w // 2] for y in range((len(s) - top) // h) for x in range(cols)]
    return [bool(abs(m - orange).max() < 3) for m in middles]


# ---- grids


@settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 9),
    st.integers(1, 5),
    st.sampled_from([1, 3]),
    st.integers(4, 40),
    st.integers(4, 40),
    st.booleans(),
    st.data(),
)
def test_grid_shows_each_pixel(n, cols, channels, h, w, as_bytes, data):
    x = torch.randint(
        0,
        256,
        (n, channels, h, w),
        generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99))),
        dtype=torch.uint8,
    )
    s = screen(image_grid(x if as_bytes else x / 255, cols))
    scale, cols = max(1, round(64 / w)), min(cols, n)
    th, tw = h * scale + 6, w * scale + 6
    assert s.shape == (-(-n // cols) * th, cols * tw, 3)
    for i in range(n):
        top, left = i // cols * th + 3, i % cols * tw + 3
        tile = s[top : top + h * scale, left : left + w * scale]
        expected = x[i].expand(3, -1, -1).permute(1, 2, 0).numpy().repeat(scale, 0).repeat(scale, 1)
        assert abs(tile.astype(int) - expected).max() <= 1


def test_grid_texts_and_marks():
    x = torch.rand(5, 1, 64, 64)
    fig = image_grid(x, 3, titles=list('abcde'), rows=['first', 'second'], columns=['1', '2', '3'], marked=[1, 4])
    assert labels(fig) == [*'abcde', 'first', 'second', '1', '2', '3'] and len(fig.axes) == 1
    assert frames(image_grid(x, 3, marked=[1, 4]), 70, 70, 3) == [False, True, False, False, True, False]


def test_figures_are_not_kept_and_show_themselves():
    before = plt.get_fignums()
    figs = [
        image_grid(torch.rand(2, 1, 8, 8)),
        reconstructions(torch.rand(2, 1, 8, 8), torch.rand(2, 1, 8, 8)),
        mi_heatmap(np.eye(3)),
        loss_curves({'step': [1, 2], 'a/b': [1, 2]}),
        latent_traversals(lambda z: torch.zeros(len(z), 1, 8, 8), torch.zeros(1, 2)),
    ]
    for fig in figs:
        assert isinstance(fig, Figure) and fig.dpi == 70 and fig._repr_png_().startswith(b'\x89PNG')
    assert plt.get_fignums() == before


def test_figure_is_saved_sharp_at_twice_the_size(tmp_path):
    x = torch.rand(2, 1, 64, 64).round()
    image_grid(x).savefig(tmp_path / 'x.png', dpi=140)
    saved = plt.imread(tmp_path / 'x.png')
    assert saved.shape[:2] == (140, 280) and np.array_equal(
        saved[6:134, 6:134, 0], x[0, 0].numpy().repeat(2, 0).repeat(2, 1)
    )


def test_reconstructions_rows():
    x, x_hat = torch.rand(9, 3, 64, 64), torch.rand(9, 3, 64, 64)
    fig = reconstructions(x, (x_hat * 255).byte(), n=4)
    s = screen(fig) / 255
    left = s.shape[1] - 4 * 70
    assert s.shape[0] == 210 and left > 0 and labels(fig) == ['original', 'reconstruction', 'difference']
    for row, shown in enumerate((x, x_hat, (x - x_hat).abs())):
        tile = s[row * 70 + 3 : row * 70 + 67, left + 73 : left + 137]
        assert abs(tile - shown[1].permute(1, 2, 0).numpy()).max() < 3 / 255
    assert screen(reconstructions(x, x_hat, difference=False)).shape[0] == 140


image = torch.rand(2, 1, 8, 8)


@pytest.mark.parametrize(
    'call, word',
    [
        (lambda: image_grid(image * float('nan')), 'images'),
        (lambda: image_grid(image * 2), 'images'),
        (lambda: image_grid(image[0]), 'images'),
        (lambda: image_grid(image[:0]), 'images'),
        (lambda: image_grid(image.expand(2, 2, 8, 8)), 'images'),
        (lambda: image_grid([1, 2]), 'images'),
        (lambda: image_grid(image, cols=0), 'cols'),
        (lambda: image_grid(image, titles=['a']), 'titles'),
        (lambda: image_grid(image, rows=['a', 'b']), 'rows'),
        (lambda: reconstructions(image, image - 1), 'x_hat'),
        (lambda: reconstructions(image / 0, image), 'x'),
        (lambda: reconstructions(image, image[:1]), 'x_hat'),
    ],
)
def test_grids_refuse(call, word):
    with pytest.raises(ValueError, match=f'^{word}: got'):
        call()


# ---- curves

history = {
    'step': [10, 20, 30, 40],
    'vae/rec': [9.0, 5, 4, 3],
    'vae/kl': [0.0, float('nan'), 2, 3],
    'disc/loss': [1, 1, 1, 1],
}


@pytest.mark.parametrize('source', ['dict', 'frame', 'csv'])
def test_curves(source, tmp_path):
    pd.DataFrame(history).to_csv(tmp_path / 'history.csv', index=False)
    fig = loss_curves(dict(dict=history, frame=pd.DataFrame(history), csv=tmp_path / 'history.csv')[source])
    assert [a.get_title() for a in fig.axes] == ['vae/rec', 'vae/kl', 'disc/loss']
    assert fig.axes[0].lines[0].get_ydata().tolist() == history['vae/rec'] and fig.axes[1].lines[
        0
    ].get_xdata().tolist() == [10, 30, 40]
    assert [a.get_title() for a in loss_curves(history, ['vae/kl']).axes] == ['vae/kl']


@settings(deadline=None, max_examples=15)
@given(
    st.integers(1, 8),
    st.lists(st.one_of(st.floats(-1e8, 1e8), st.sampled_from([float('nan'), float('inf')])), min_size=1, max_size=60),
    st.integers(1, 99),
)
def test_curves_draw_anything(n_terms, values, window):
    fig = loss_curves({'step': range(len(values)), **{f'vae/{i}': values for i in range(n_terms)}}, window=window)
    assert len(fig.axes) == n_terms and screen(fig).std() > 0


@pytest.mark.parametrize(
    'call, word',
    [
        (lambda: loss_curves(history, ['vae/reg']), 'terms.*vae/rec'),
        (lambda: loss_curves({'step': [1]}), 'terms'),
        (lambda: loss_curves({'vae/rec': [1]}), 'history'),
        (lambda: loss_curves({'step': [], 'a': []}), 'history'),
        (lambda: loss_curves({'step': [1], 'a': [1, 2]}), 'history'),
        (lambda: loss_curves({'step': [1], 'a': ['x']}), 'history'),
        (lambda: loss_curves(history, window=0), 'window'),
    ],
)
def test_curves_refuse(call, word):
    with pytest.raises(ValueError, match=f'^{word}'):
        call()


# ---- heatmaps


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 30), st.integers(1, 6), st.booleans(), st.integers(0, 99))
def test_heatmap(d, k, shares, seed):
    r = np.random.default_rng(seed)
    mi, h = r.gamma(0.3, 0.3, (d, k)), r.uniform(2, 4, k)
    fig = mi_heatmap(torch.tensor(mi) if seed % 2 else mi, entropies=h if shares else None)
    m = mi / h if shares else mi
    assert labels(fig) == [f'{v:.2f}' for v in m.ravel()] and len(fig.axes) == 2
    corners = np.array([p.get_xy() for p in fig.axes[0].patches]).round().astype(int)
    order = np.argsort(-m, axis=0)[:2]
    assert [tuple(c) for c in corners] == [(c, row) for rows in order for c, row in enumerate(rows)]
    top = np.sort(np.vstack([m, 0 * m[:1]]), 0)
    if shares:
        assert [t.get_text().split()[-1] for t in fig.axes[0].get_xticklabels()] == [
            f'{g:.2f}' for g in top[-1] - top[-2]
        ]


@pytest.mark.parametrize(
    'call, word',
    [
        (lambda: mi_heatmap([[1.0, -1]]), 'mi'),
        (lambda: mi_heatmap([[1.0, float('nan')]]), 'mi'),
        (lambda: mi_heatmap([1.0, 2]), 'mi'),
        (lambda: mi_heatmap(np.eye(2), ['a']), 'factor_names'),
        (lambda: mi_heatmap(np.eye(2), latent_names='abc'), 'latent_names'),
        (lambda: mi_heatmap(np.eye(2), entropies=[1, 0]), 'entropies'),
        (lambda: mi_heatmap(np.eye(2), entropies=[1]), 'entropies'),
    ],
)
def test_heatmap_refuses(call, word):
    with pytest.raises(ValueError, match=f'^{word}: got'):
        call()


# ---- traversals


def decode(z):
    return (
        z.sigmoid()[:, None, :, None].expand(-1, 1, -1, 16).repeat_interleave(4, 2)
    )  # latent d is the grey of stripe d


def test_traverse_changes_one_latent():
    z, values = torch.randn(3, 4), torch.tensor([-1.0, 0.0, 3.0])
    images = traverse(decode, z, [2, 0], values)
    assert images.shape == (3, 2, 3, 1, 16, 16)
    stripes = images[..., 0, ::4, 0]
    for i, d in enumerate((2, 0)):
        assert torch.allclose(stripes[:, i, :, d], values.sigmoid().expand(3, -1))
        others = [j for j in range(4) if j != d]
        assert torch.allclose(stripes[:, i, :, others], z.sigmoid()[:, None, others].expand(-1, 3, -1))


def test_rows_are_ordered_by_kl():
    kl = torch.tensor([0.1, 2.5, 0.0, 1.25])
    fig = latent_traversals(decode, torch.zeros(1, 4), kl, steps=5)
    assert labels(fig) == [
        'z1\n2.50 nats',
        'z3\n1.25 nats',
        'z0\n0.10 nats',
        'z2\n0.00 nats',
        '-2.0',
        '-1.0',
        '+0.0',
        '+1.0',
        '+2.0',
    ]
    assert [t for t in labels(latent_traversals(decode, torch.zeros(1, 4), kl, dims=[0, 3])) if 'nats' in t] == [
        'z3\n1.25 nats',
        'z0\n0.10 nats',
    ]
    assert [t for t in labels(latent_traversals(decode, torch.zeros(1, 4))) if t[0] == 'z'] == ['z0', 'z1', 'z2', 'z3']


def test_anchor_is_marked():
    z = torch.tensor([[-1.1, 1.9, 0.0, 5.0]])
    fig = latent_traversals(decode, z, steps=5)
    s = screen(fig)
    got = np.reshape(frames(fig, 70, 70, 5, left=s.shape[1] - 350, top=s.shape[0] - 280), (4, 5))
    assert got.tolist() == [
        [False, True, False, False, False],
        [False] * 4 + [True],
        [False, False, True, False, False],
        [False] * 5,
    ]


def test_data_range_and_several_anchors():
    mu = torch.randn(5000, 4) * torch.tensor([3.0, 1.0, 0.01, 0.5])
    span = traversal_range(mu, 0.1)
    assert np.allclose(span, np.quantile(mu.numpy(), [0.1, 0.9], axis=0).T, atol=1e-6)
    seen = []

    def recording(z):
        seen.append(z)
        return decode(z)

    fig = latent_traversals(recording, mu[:2].numpy(), mu=mu, steps=4)
    z = torch.cat(seen).unflatten(0, (2, 4, 4))  # anchors, latents, steps
    for d in range(4):
        low, high = traversal_range(mu)[d]
        assert torch.allclose(z[:, d, :, d], torch.linspace(low, high, 4).expand(2, -1), atol=1e-5)
    s = screen(fig)
    assert s.shape[0] == 8 * 70 and labels(fig)[::2] == [
        'z{}\n{:.2g} to {:.2g}'.format(d, *traversal_range(mu)[d]) for d in range(4)
    ]


def test_no_gradient_is_kept():
    net = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.Sigmoid(), torch.nn.Unflatten(1, (1, 8, 8)))
    assert not traverse(net, torch.zeros(2, 4, requires_grad=True), [0], torch.zeros(3)).requires_grad


z = torch.zeros(1, 4)


@pytest.mark.parametrize(
    'call, word',
    [
        (lambda: latent_traversals(decode, z[0]), 'z'),
        (lambda: latent_traversals(decode, z / 0), 'z'),
        (lambda: latent_traversals(decode, z, lim=-1), 'lim'),
        (lambda: latent_traversals(decode, z, steps=1), 'steps'),
        (lambda: latent_traversals(decode, z, kl=[1.0]), 'kl'),
        (lambda: latent_traversals(decode, z, kl=[1.0, 2, 3, float('nan')]), 'kl'),
        (lambda: latent_traversals(decode, z, dims=[4]), 'dims'),
        (lambda: latent_traversals(decode, z, dims=[]), 'dims'),
        (lambda: latent_traversals(decode, z, mu=torch.zeros(9, 3)), 'mu'),
        (lambda: latent_traversals(decode, z, mu=torch.zeros(9, 4) / 0), 'mu'),
        (lambda: latent_traversals(lambda z: decode(z) * 9, z), 'decode'),
        (lambda: latent_traversals(lambda z: decode(z) / 0, z), 'decode'),
        (lambda: latent_traversals(lambda z: z, z), 'decode'),
        (lambda: latent_traversals(lambda z: decode(z)[1:], z), 'decode'),
        (lambda: traversal_range(torch.zeros(9, 3), 0.7), 'q'),
    ],
)
def test_traversals_refuse(call, word):
    with pytest.raises(ValueError, match=rf'^{word}(\(z\))?: got'):
        call()
