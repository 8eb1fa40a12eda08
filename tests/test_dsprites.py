"dSprites drawn on demand, against original frames and against its own symmetries."
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from disent_nb.core import generator
from disent_nb.data.dsprites import DSprites, ReducedDSprites, render

REFERENCE = Path(__file__).resolve().parents[2]/'shared'/'references'/'dsprites_original.npz'
needs_reference = pytest.mark.skipif(not REFERENCE.exists(), reason='the original frames are not on this machine')
ds, small = DSprites(), ReducedDSprites()


pytestmark = pytest.mark.usefixtures('one_thread')


def on(x): return x[:, 0] > 0


def centroid(mask): # (N,64,64) -> x, y of the centre of mass (N,2), pixels
    at = torch.arange(64) + .5
    return torch.stack([mask.float().sum(1) @ at, mask.float().sum(2) @ at], 1) / mask.sum((1, 2))[:, None]


def compare(frame, y): # IoU of a frame (64,64) with the images of y (N,5)
    image = on(ds.observe(y))
    return (image & frame).sum((1, 2)) / (image | frame).sum((1, 2))


@pytest.fixture(scope='module')
def matches(one_thread):
    """IoU and factors of the best match found for each original frame: at least the IoU of the best one on the full grid. Sprites with another number of pixels
    are left out, the centre of mass gives the position, and the neighbouring positions are tried for the best twenty."""
    frames = torch.from_numpy(np.load(REFERENCE)['images']) > 0
    sprites = torch.cartesian_prod(torch.arange(3), torch.arange(6), torch.arange(40), torch.tensor([0]), torch.tensor([0]))
    mask = on(ds.observe(sprites))
    offset, count, around = centroid(mask) - 16, mask.sum((1, 2)), torch.cartesian_prod(torch.arange(-1, 2), torch.arange(-1, 2))
    best = []
    for frame, place in zip(frames, centroid(frames)):
        near = (count / frame.sum() - 1).abs() < .12
        y = sprites[near]
        y[:, 3:] = ((place - offset[near] - 16) / 32 * 31).round().long().clamp(0, 31)
        y = y[compare(frame, y).topk(20).indices].repeat_interleave(9, 0)
        y[:, 3:] = (y[:, 3:] + around.repeat(20, 1)).clamp(0, 31)
        iou = compare(frame, y)
        best.append((iou.max().item(), y[iou.argmax()].tolist()))
    return best


@needs_reference
def test_original_frames_are_matched(matches):
    iou = np.array([i for i, _ in matches])
    print(f'IoU with {len(iou)} original frames: mean {iou.mean():.4f}, min {iou.min():.4f}, identical {np.mean(iou == 1):.1%}')
    assert len(iou) == 160 and iou.mean() > .995 and iou.min() > .97


@needs_reference
def test_matched_factors_move_smoothly(matches):
    "The frames show one factor change at a time, in small steps: so must the factors that match"
    y = np.array([y for _, y in matches])[30:93]                     # the part in which the large heart moves around
    assert (y[:, :2] == [2, 5]).all() and np.isin(y[:, 2], [0, 39]).all()
    step = np.abs(np.diff(y[:, 3:], axis=0))
    assert step.sum(1).min() >= 1 and step.sum(1).max() <= 3
    assert y[:, 3:].min(0).tolist() == [0, 0] and y[:, 3:].max(0).tolist() == [31, 31]


@pytest.mark.parametrize('shape,counts', [(0, [100, 144, 196, 256, 324, 400]), (1, [76, 104, 144, 184, 228, 288]), (2, [58, 84, 108, 140, 182, 222])])
def test_pixel_counts_of_the_original(shape, counts):
    for orientation in (0, 39):
        y = torch.tensor([[shape, s, orientation, 0, 0] for s in range(6)])
        assert on(ds.observe(y)).sum((1, 2)).tolist() == counts


def test_order_is_that_of_the_file():
    assert len(ds) == 737_280 and ds.space.names == ('shape', 'scale', 'orientation', 'posX', 'posY')
    assert ds.space.factors([1, 32, 1024, 40_960, 245_760]).tolist() == np.eye(5, dtype=int)[::-1].tolist()
    v = ds.values([[0, 0, 0, 0, 0], [2, 5, 39, 31, 31]])
    assert torch.allclose(v, torch.tensor([[1, .5, 0, 0, 0], [3, 1, 2 * math.pi, 1, 1]]))


def test_the_position_is_where_the_shape_is():
    y = ds.space.sample(300, generator(0), dict(shape=torch.arange(300) % 2))         # squares and ellipses: centred
    at = 16 + 32 * ds.values(y)[:, 3:]
    assert (centroid(on(ds.observe(y))) - at).abs().max() < .35


def test_orientation_turns_counter_clockwise():
    "The centre of mass of the heart lies above its centre; a quarter turn counter-clockwise brings it to the left, half a turn below"
    y = torch.tensor([[2, 5, o, 5, 5] for o in range(4)])
    dx, dy = (centroid(on(small.observe(y))) - 16 - 32 * small.values(y)[:, 3:]).T
    assert torch.allclose(dx, torch.tensor([0, -1.9, 0, 1.9]), atol=.3) and torch.allclose(dy, torch.tensor([-1.9, 0, 1.9, 0]), atol=.3)


poses = st.tuples(st.integers(1, 3), st.floats(.5, 1), st.floats(0, 6.28), st.floats(0, 1), st.floats(0, 1))


@given(poses)
@settings(max_examples=60, deadline=None)
def test_turning_and_mirroring_the_values_turns_and_mirrors_the_image(pose):
    kind, scale, angle, x, y = pose
    image = render([pose])[0, 0]
    turned = render([(kind, scale, angle + math.pi / 2, y, 1 - x)])[0, 0]
    mirrored = render([(kind, scale, -angle, 1 - x, y)])[0, 0]
    assert (turned != image.rot90()).sum() <= 4 and (mirrored != image.flip(1)).sum() <= 4   # a pixel centre may lie on the outline
    assert 50 < (image > 0).sum() < 420 and not image[:2].any() and not image[-1:].any()


def test_every_access_gives_the_same_images_in_any_batch():
    y = ds.space.sample(70, generator(3))
    x = ds.observe(y)
    assert x.shape == (70, 1, 64, 64) and x.dtype == torch.uint8 and x.unique().tolist() == [0, 255]
    assert torch.equal(x, ds.images(ds.space.index(y)))
    assert torch.equal(x, torch.cat([ds.observe(row[None]) for row in y]))
    assert torch.equal(x, ds.observe(y.to(torch.int32).numpy()))
    image, factors = ds[int(ds.space.index(y)[7])]
    assert torch.equal(image, x[7] / 255) and torch.equal(factors, y[7])


def test_reduced_set():
    x = small.images(torch.arange(7200))
    assert small.space.sizes == (3, 6, 4, 10, 10) and x.shape == (7200, 1, 64, 64)
    assert torch.allclose(small.space.tables[2], torch.tensor([0, .5, 1, 1.5]) * math.pi)
    assert len({row.tobytes() for row in np.packbits(x.flatten(1).numpy() > 0, axis=1)}) == 7 * 6 * 100
    same = small.space.sample(50, generator(0), dict(shape=0, orientation=0))
    other = same.clone(); other[:, 2] = torch.arange(50) % 4
    assert torch.equal(small.observe(same), small.observe(other))


def test_orientations_0_and_39_coincide():
    y = ds.space.sample(500, generator(0), dict(orientation=0))
    other = y.clone(); other[:, 2] = 39
    assert torch.equal(ds.observe(y), ds.observe(other))


@pytest.mark.parametrize('y', [np.zeros((0, 5), int), [[3, 0, 0, 0, 0]], [[0, 0, 40, 0, 0]], [[0, 0, 0, 0, -1]], [[0, 0, 0, 0]], [[0., 0., 0., 0., 0.]]])
def test_wrong_indices_are_refused(y):
    with pytest.raises(ValueError, match='y: got .* expected'): ds.observe(y)


@pytest.mark.parametrize('values', [[1, 1, 0, 0, 0], [[1.5, 1, 0, 0, 0]], [[4, 1, 0, 0, 0]], [[1, 0, 0, 0, 0]], [[1, 1.1, 0, 0, 0]], [[1, 1, 0, 2, 0]], [[1, 1, math.inf, 0, 0]],
                                    [[1, 1, 0, math.nan, 0]], [[1, 1, 0, 0]], np.zeros((0, 5))])
def test_wrong_values_are_refused(values):
    with pytest.raises(ValueError, match='values: got .* expected'): render(values)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
def test_gpu_draws_where_the_indices_lie():
    y = ds.space.sample(2000, generator(0))
    x = ds.observe(y.cuda())
    assert x.is_cuda and (x.cpu() != ds.observe(y)).sum() <= 5            # rounding may move a pixel centre across the outline
