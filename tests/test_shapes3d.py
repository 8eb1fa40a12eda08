"Shapes3D drawn on demand, against frames of the original and against its own geometry."
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from disent_nb.core import generator
from disent_nb.data.shapes3d import Shapes3D, look_at, render

REFERENCE = Path(__file__).resolve().parents[2]/'shared'/'references'/'3dshapes_original.gif'
ds = Shapes3D()


pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.mark.skipif(not REFERENCE.exists(), reason='the original frames are not on this machine')
def test_frames_of_the_original_are_matched():
    "Factors of the frames as seen in them: orientation, shape, scale, then hues"
    from PIL import Image
    frames = [(0, 6, 3, 0, 0, i) for i in range(15)] + [(0, 6, 3, 0, k, 14) for k in (1, 2, 3)] + [(0, 6, 3, k, 3, 14) for k in range(1, 8)]
    frames += [(0, 6, k % 10, 7, 3, 14) for k in range(4, 13)] + [(0, k % 10, 2, 7, 3, 14) for k in range(7, 12)] + [(0, 5, 2, 7, 3, 14)]
    gif, original = Image.open(REFERENCE), []
    for k in range(len(frames)):
        gif.seek(k)
        original.append(np.asarray(gif.convert('RGB').resize((64, 64), Image.BOX, box=(1.5, 1.5, 224.5, 225.5))))
    original = torch.from_numpy(np.stack(original)).permute(0, 3, 1, 2).float()[:, :, 1:-1, 1:-1]   # the frame around the picture is left out
    def error(y): return (ds.observe(y).float()[:, :, 1:-1, 1:-1] - original).abs().mean((1, 2, 3))
    ours = error(frames)
    print(f'{len(frames)} frames: mean absolute error {ours.mean():.2f}/255, worst frame {ours.max():.2f}')
    assert ours.mean() < 3.5 and ours.max() < 5
    for k, n in enumerate(ds.space.sizes):                                                          # any other value of a factor fits worse
        y = torch.tensor(frames)
        for step in (-1, 1):
            other = y.clone(); other[:, k] = (y[:, k] + step).clamp(0, n - 1) if k > 2 else (y[:, k] + step) % n
            moved = other[:, k] != y[:, k]
            assert (error(other) > ours)[moved].all()


def test_the_grid_is_that_of_the_file():
    assert len(ds) == 480_000 and ds.space.sizes == (10, 10, 10, 8, 4, 15) and ds.space.names == ('floor_hue', 'wall_hue', 'object_hue', 'scale', 'shape', 'orientation')
    assert ds.space.factors([1, 15, 60, 480, 4800, 48_000]).tolist() == np.eye(6, dtype=int)[::-1].tolist()
    v = ds.values([[0] * 6, [9, 9, 9, 7, 3, 14]])
    assert torch.allclose(v, torch.tensor([[0, 0, 0, .75, 0, -30], [.9, .9, .9, 1.25, 3, 30]]))


def test_every_access_gives_the_same_images_in_any_batch():
    y = ds.space.sample(40, generator(3))
    x = ds.observe(y)
    assert x.shape == (40, 3, 64, 64) and x.dtype == torch.uint8
    assert torch.equal(x, ds.images(ds.space.index(y))) and torch.equal(x, torch.cat([ds.observe(row[None]) for row in y]))
    assert torch.equal(x, render(ds.values(y))) and torch.equal(x, torch.cat([render(v[None]) for v in ds.values(y)]))
    assert torch.equal(ds[int(ds.space.index(y)[5])][0], x[5] / 255)


def test_no_view_has_a_hole():
    A = torch.cat([look_at(v) for v in torch.cartesian_prod(*ds.space.tables[3:]).split(16)])
    assert A.isfinite().all() and (A.sum((1, 2)) > .2).all()


def test_hues_change_what_they_name():
    y = torch.tensor([[0, 6, 3, 7, 2, 7]])
    x, changed = ds.observe(y), []
    for k in range(3):
        other = y.clone(); other[0, k] += 2
        changed.append((ds.observe(other) != x).any(1)[0])
    floor, wall, solid = changed
    assert floor[-1].all() and not floor[:30].any() and wall[25, 2] and not wall[:10].any() and not wall[-1].any()
    assert solid[40, 32] and not solid[40, 2] and not solid[:5].any()
    assert (floor & wall).sum() < 100 and (x[0, :, 0] == torch.tensor([153, 226, 249])[:, None]).all()       # the sky


def size(A): return (A[:, 0, 3:].sum(1) > 0).view(-1, 64, 64)               # where the solid is


def test_scale_and_shape():
    for kind, (wide, high) in enumerate([(2, 2), (2 * 1.03, 2 * 1.05), (2 * 1.195, 2 * 1.195), (2 * .909, 2 * 1.83)]):
        seen = size(look_at(torch.tensor([[.75, kind, 0.], [1.25, kind, 0.]])))
        w, h = seen.any(1).sum(1), seen.any(2).sum(1)
        unit = 64 / (2 * math.tan(math.radians(25)) * 6.98)                   # pixels per unit of length in the middle of the room
        assert abs(w[0] - .75 * wide * unit) < 3.5 and abs(h[0] - .75 * high * unit) < 4.5
        assert 1.55 < w[1] / w[0] < 1.9 and 1.55 < h[1] / h[0] < 1.9            # 5/3, and a little nearer


def test_round_solids_do_not_turn_and_the_room_does():
    A = look_at(torch.tensor([[1., 2., a] for a in (-30., 0., 30.)]))
    assert (size(A)[0] != size(A)[1]).sum() <= 2 and (size(A)[2] != size(A)[1]).sum() <= 2
    x = ds.observe([[0, 6, 3, 3, 2, 0], [0, 6, 3, 3, 2, 14]])[:, 2].float()    # blue of the walls: the dark side is right at -30, left at 30 degrees
    assert x[0, 28, 60] < x[0, 28, 20] and x[1, 28, 2] < x[1, 28, 40]


def test_a_shadow_lies_on_the_floor():
    lit = look_at(torch.tensor([[1.25, 3, 0.]]))[0, 0, 1].view(64, 64)[50:]
    assert lit.max() > 1 and ((lit > .25) & (lit < .5)).sum() > 60


@pytest.mark.parametrize('values', [[0.] * 6, np.zeros((0, 6)), np.zeros((2, 5)), [[0, 0, 0, 1, 4, 0]], [[0, 0, 0, 1, 1.5, 0]], [[0, 0, 0, 3, 1, 0]], [[0, 0, math.nan, 1, 1, 0]]])
def test_wrong_values_are_refused(values):
    with pytest.raises(ValueError, match='values: got .* expected'): render(values)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
def test_gpu_draws_where_the_indices_lie():
    y = ds.space.sample(500, generator(0))
    x = ds.observe(y.cuda())
    assert x.is_cuda and ((x.cpu().int() - ds.observe(y).int()).abs() > 40).float().mean() < 1e-3
