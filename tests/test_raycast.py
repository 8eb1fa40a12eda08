"Rays against solids whose hit points, normals and silhouettes are known."

import math

import pytest
import torch
from hypothesis import example, given, settings, strategies as st

from disent_nb.core import generator
from disent_nb.rendered import raycast
from disent_nb.rendered.raycast import (
    Camera,
    box,
    capsule,
    capsule_normal,
    compose,
    corners,
    cylinder,
    cylinder_normal,
    direction,
    diffuse,
    dot,
    edge_rays,
    face_normal,
    hue,
    layers,
    look,
    paint,
    plane,
    room,
    sphere,
    turn,
)


pytestmark = pytest.mark.usefixtures('one_thread')


def rays(seed, n=500, reach=1.5, dtype=torch.float64):
    "Rays `(3,n)` from outside towards points near the origin"
    g = generator(seed)
    o = torch.nn.functional.normalize(torch.randn(3, n, generator=g, dtype=dtype), dim=0) * 5
    return o, reach * torch.randn(3, n, generator=g, dtype=dtype) - o


def distance(name, p, r, half):  # signed distance of points (3,n) to the surface, negative inside
    if name == 'sphere':
        return p.norm(dim=0) - r
    if name == 'capsule':
        return torch.stack([p[0], p[1], p[2] - p[2].clamp(-half, half)]).norm(dim=0) - r
    sides = (
        torch.stack([p[:2].norm(dim=0) - r, p[2].abs() - half])
        if name == 'cylinder'
        else p.abs() - torch.tensor([r, half, r])[:, None]
    )
    return sides.amax(0)


def meet(name, o, d, r, half):
    "t `(n,)` and normals at the hit points `(3,n)`"
    if name == 'box':
        t, axis = box(o, d, torch.tensor([r, half, r], dtype=o.dtype)[:, None])
        return t, face_normal(d, axis)
    t = dict(
        sphere=lambda: sphere(o, d, r), cylinder=lambda: cylinder(o, d, r, half), capsule=lambda: capsule(o, d, r, half)
    )[name]()
    p = o + t.nan_to_num(posinf=0) * d
    return t, cylinder_normal(p, r, half) if name == 'cylinder' else capsule_normal(
        p, r, half if name == 'capsule' else 0.0
    )


solids = pytest.mark.parametrize('name', ['sphere', 'box', 'cylinder', 'capsule'])
sizes = st.floats(0.2, 1.5)


@solids
@given(sizes, sizes, st.integers(0, 1000))
@example(1.0, 0.7939546578522654, 685)
@settings(max_examples=25, deadline=None)
def test_hit_points_lie_on_the_surface_and_nothing_is_met_before(name, r, half, seed):
    o, d = rays(seed)
    t, n = meet(name, o, d, r, half)
    hit = t.isfinite()
    walk = torch.linspace(0, 3, 200, dtype=torch.float64)
    inside = torch.stack([distance(name, o + s * d, r, half) for s in walk]) < -1e-6  # (200,n)
    assert not inside[:, ~hit].any()  # a miss is a miss
    assert not (inside & (walk[:, None] < t - 1e-9))[:, hit].any()  # the first hit
    p = (o + t.nan_to_num(posinf=0) * d)[:, hit]
    assert torch.allclose(distance(name, p, r, half), torch.zeros(1, dtype=torch.float64), atol=1e-6)
    n, d = n[:, hit], d[:, hit]
    if name == 'cylinder':  # on its rim, side and end meet: no normal there
        off = ((p[2].abs() - half).abs() > 2e-4 * half) | (p[:2].norm(dim=0) < r * (1 - 2e-4))
        p, n, d, hit = p[:, off], n[:, off], d[:, off], off
    assert torch.allclose(n.norm(dim=0), torch.ones(1, dtype=torch.float64), atol=1e-4) and (dot(n, d) < 1e-3).all()
    if hit.any():
        assert (distance(name, p + 1e-3 * n, r, half) > 0).all()  # it points outwards


def test_a_sphere_straight_ahead():
    o, d = torch.tensor([[7.0], [0.0], [0.0]]), torch.tensor([[-2.0], [0.0], [0.0]])
    assert (
        sphere(o, d, 1.0).tolist() == [3.0]
        and sphere(o, -d, 1.0).isinf().all()
        and sphere(o + torch.tensor([[0.0], [1.01], [0.0]]), d, 1.0).isinf().all()
    )
    assert capsule_normal(o + 3 * d, 1.0).flatten().tolist() == [1.0, 0.0, 0.0]


def test_a_capsule_without_a_core_is_a_sphere_and_a_ray_along_an_axis_has_no_hole():
    o, d = rays(3)
    assert torch.allclose(capsule(o, d, 0.8, 0.0).nan_to_num(posinf=-1), sphere(o, d, 0.8).nan_to_num(posinf=-1))
    eye, half = 4 * torch.eye(3), torch.full((3, 1), 0.5)
    for t in (box(eye, -eye, half)[0], cylinder(eye, -eye, 0.5, 0.5)):
        assert torch.allclose(t, torch.full((3,), 3.5 / 4))
    assert torch.allclose(capsule(eye, -eye, 0.5, 0.5), torch.tensor([3.5, 3.5, 3.0]) / 4)
    assert box(eye + 0.6 * (1 - torch.eye(3)), -eye, half)[0].isinf().all()  # beside it
    assert torch.allclose(room(torch.zeros(3, 3), eye, half)[0], torch.full((3,), 0.125))


@given(st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_a_room_is_left_through_the_face_that_is_named(seed):
    g = generator(seed)
    half = torch.rand(3, 1, generator=g, dtype=torch.float64) + 0.5
    o, d = (
        half * (2 * torch.rand(3, 300, generator=g, dtype=torch.float64) - 1),
        torch.randn(3, 300, generator=g, dtype=torch.float64),
    )
    t, axis = room(o, d, half)
    p = (o + t * d) / half
    assert (
        (t > 0).all()
        and torch.equal(p.abs().argmax(0), axis)
        and torch.allclose(p.abs().amax(0), torch.ones(1, dtype=torch.float64))
    )
    n = face_normal(d, axis)
    assert (dot(n, p) < 0).all() and (n.abs().sum(0) == 1).all()  # towards the inside


def test_planes_are_met_from_both_sides():
    o, d = rays(0)
    n = torch.tensor([[0.6], [0.0], [0.8]], dtype=torch.float64)
    t = plane(o, d, n, 0.3)
    hit = t.isfinite()
    assert torch.allclose(dot(n, o + t * d)[hit], torch.tensor(0.3, dtype=torch.float64)) and hit.any()
    assert ((dot(n, o)[~hit] - 0.3) * dot(n, d)[~hit] >= 0).all()  # misses go away from it


@pytest.mark.parametrize('r,angle', [(0.5, 30.0), (1.2, 30.0), (2.0, 45.0), (0.8, 20.0)])
def test_the_silhouette_of_a_sphere(r, angle):
    "A cone with sin b = r / D fills a disc of radius tan b / tan(angle/2) half pictures, if it is in the middle"
    camera = Camera((5.0, 3.0, 4.0), (0.0, 0.0, 0.0), angle)
    eye = torch.tensor(camera.eye)[:, None]
    A = layers(lambda g, d: (sphere(eye.expand_as(d), d, r).isfinite().long(), torch.ones_like(d[:1])), 1, 2, camera)
    exact = math.pi * (32 * math.tan(math.asin(r / math.sqrt(50))) / math.tan(math.radians(angle / 2))) ** 2
    assert abs(A[0, 0, 1].sum().item() - exact) < 0.003 * exact + 0.5
    assert torch.equal(A.sum(2), torch.ones(1, 1, 4096))
    ball = A[0, 0, 1].view(64, 64)
    assert torch.allclose(ball, ball.flip(1), atol=0.1) and torch.allclose(ball, ball.flip(0), atol=0.1)


def scenes(values):  # boxes of different heights on a floor, coloured light
    half = torch.stack([values * 0 + 0.8, values * 0 + 0.5, values])
    eye = torch.tensor(camera.eye)[:, None]
    lamps, lights = (
        torch.stack([direction(60, 20), direction(10, -60)]),
        torch.tensor([[0.7, 0.7, 0.5], [0.2, 0.3, 0.4]]),
    )

    def scene(g, d):
        o, up = eye.expand_as(d), torch.tensor([[0.0], [0.0], [1.0]])
        (t, axis), ground = box(o, d, half[:, g]), plane(o, d, up, -1.0)
        n = torch.where(t < ground, face_normal(d, axis), up)
        return torch.where(t < ground, 2, ground.isfinite().long()), 0.1 + diffuse(n, lamps, lights)

    return scene


camera = Camera((6.0, 3.0, 2.0), (0.0, 0.0, -0.2), 35.0)
heights = torch.tensor([0.4, 0.9, 0.7, 1.3])


def test_edges_are_all_that_needs_many_rays():
    "Against sixteen rays through every pixel"
    A = layers(scenes(heights), 4, 3, camera)
    g, u, v, pixel = edge_rays(torch.ones(4, 64, 64, dtype=bool), 4)
    material, light = look(scenes(heights), g, camera.rays(u, v))
    full = torch.zeros(4, 3, 3, 4096).view(-1)
    for c in range(3):
        full.index_add_(0, ((g * 3 + c) * 3 + material) * 4096 + pixel, light[c] / 16)
    off = (A - full.view_as(A)).abs()
    assert off.mean() < 2e-4 and (off.amax((1, 2)) > 1 / 32).float().mean() < 5e-3


def test_a_view_is_the_same_in_any_company():
    A, colours = layers(scenes(heights), 4, 3, camera), torch.rand(9, 3, 3, generator=generator(0))
    for i in range(4):
        assert torch.equal(A[i : i + 1], layers(scenes(heights[i : i + 1]), 1, 3, camera))
    which = torch.tensor([3, 1, 1, 0, 3, 2, 1, 0, 3])
    x = compose(A, which, colours)
    assert x.shape == (9, 3, 64, 64) and torch.equal(
        x, torch.cat([compose(A, w[None], c[None]) for w, c in zip(which, colours)])
    )
    look_at = lambda views: layers(scenes(views[:, 0]), len(views), 3, camera)
    for chunk in (1, 2, 16):
        assert torch.equal(x, paint(look_at, heights[which][:, None], colours, chunk))


def test_white_is_the_limit_and_black_the_ground():
    light = torch.tensor([0.0, 0.5, 1.0, 1.6]).view(1, 1, 1, 4)
    assert compose(light, torch.tensor([0]), torch.ones(1, 3, 1))[0, 0].flatten().tolist() == [0, 128, 255, 255]


def test_directions_turn_and_hues():
    assert torch.allclose(direction(90, 33), torch.tensor([0.0, 0.0, 1.0]), atol=1e-6) and torch.allclose(
        direction(0, 90), torch.tensor([0.0, 1.0, 0.0]), atol=1e-6
    )
    v = torch.randn(3, 20, generator=generator(0))
    back = turn(turn(v, math.cos(0.7), math.sin(0.7)), math.cos(0.7), -math.sin(0.7))
    assert torch.allclose(back, v, atol=1e-6) and torch.allclose(turn(v, 0.0, 1.0)[0], -v[1])
    assert hue(torch.tensor([0.0, 1 / 6, 1 / 3, 0.5, 2 / 3, 1.0])).round(decimals=5).tolist() == [
        [1, 0, 0],
        [1, 1, 0],
        [0, 1, 0],
        [0, 1, 1],
        [0, 0, 1],
        [1, 0, 0],
    ]
    assert [c.shape for c in corners(torch.zeros(2, 5, 5))] == [(2, 4, 4)] * 4


def test_views_are_kept_once():
    calls = []

    def look_at(views):
        calls.append(len(views))
        return views[:, None, :, None].float()

    for _ in range(2):
        kept = raycast.kept_layers(look_at, ((1.0, 2.0), (3.0, 4.0)), torch.device('cpu'))
    assert calls == [2] and kept.shape == (2, 1, 2, 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
def test_gpu_sees_the_same():
    eye = torch.tensor(camera.eye)[:, None]
    see = lambda device: layers(
        lambda g, d: (sphere(eye.to(device).expand_as(d), d, 1.0).isfinite().long(), torch.ones_like(d[:1])),
        1,
        2,
        camera,
        device=device,
    )
    assert (see('cuda').cpu() - see('cpu')).abs().max() <= 2 / 16  # a ray may fall on the other side of the edge
