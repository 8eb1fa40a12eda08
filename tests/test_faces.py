"Procedural faces: exact edits, visible attributes, known dependence."

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from disent_nb.core import generator
from disent_nb.rendered.faces import (
    COLOURS,
    EXCLUDES,
    RULES,
    Faces,
    FaceSpace,
    chance,
    draw_attributes,
    edit,
    extent,
    render,
    settle,
    visible,
)
from disent_nb.rendered.faces_draw import paint
from disent_nb.rendered.faces_parts import ATTRIBUTES, COLUMN, FEATURES, NAMES, PARTS

REQUIRED = """
Eyeglasses Bald Blond_Hair Black_Hair Bangs Mustache Goatee No_Beard Smiling Mouth_Slightly_Open Rosy_Cheeks
Pointy_Nose Pale_Skin Narrow_Eyes Bushy_Eyebrows Wearing_Hat Wearing_Lipstick Oval_Face
""".split()
PAINTS = dict(
    Arched_Eyebrows='brows',
    Big_Nose='nose',
    Bushy_Eyebrows='brows',
    Eyeglasses='glasses',
    Mouth_Slightly_Open='mouth',
    Mustache='mustache',
    Narrow_Eyes='eyes',
    Pointy_Nose='nose',
    Rosy_Cheeks='blush',
    Smiling='mouth',
    Wearing_Earrings='earrings',
    Wearing_Lipstick='mouth',
    Wearing_Necktie='tie',
    Young='wrinkles',
    Bangs='bangs',
    Wavy_Hair='hair back_hair',
    Goatee='beard',
    No_Beard='beard',
    Bald='hair back_hair bangs shine',
    Wearing_Hat='hat hat_shadow hair back_hair bangs',
    Black_Hair='hair back_hair bangs',
    Blond_Hair='hair back_hair bangs',
    Brown_Hair='hair back_hair bangs',
    Gray_Hair='hair back_hair bangs',
)
ds = Faces(500, seed=1)


pytestmark = pytest.mark.usefixtures('one_thread')


def differ(a, b):
    return (a.int() - b.int()).abs().amax(1)  # largest difference over the channels (N,H,W)


def test_attributes_of_the_seeds_are_there():
    assert set(REQUIRED) <= set(ATTRIBUTES) and len(ATTRIBUTES) >= 17 and len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize('name', PAINTS)
def test_an_edit_changes_its_parts_and_nothing_else(name):
    y = ds.space.sample(40, generator(1, COLUMN[name]), {} if name in ('Bald', *COLOURS) else dict(Bald=0))
    off, on = ds.values(edit(y, name, 0)), ds.values(edit(y, name, 1))
    allowed = extent(off, *PAINTS[name].split()) | extent(on, *PAINTS[name].split())
    assert not (render(off) != render(on)).any(1)[~allowed].any()


def parted(name, n=60):
    "Values of n faces without and with an attribute, all else equal but what it excludes"
    of_the_head = ('Bald', *COLOURS)
    fixed = dict.fromkeys(of_the_head, 0) if name in of_the_head else dict(Bald=0)
    y = ds.space.sample(n, generator(2, COLUMN[name]), fixed)
    return ds.values(edit(y, name, 0)), ds.values(edit(y, name, 1))


@pytest.mark.parametrize('name', ATTRIBUTES)
def test_every_attribute_is_visible_in_every_face(name):
    "Whatever else a face shows: at least three pixels change by more than a tenth of the range, and eight in nearly all faces"
    off, on = parted(name)
    strong = (differ(render(off), render(on)) > 25).sum((1, 2))
    assert strong.min() >= 3 and (strong >= 8).float().mean() > 0.9, strong.sort().values[:10]


@pytest.mark.parametrize('name', FEATURES)
def test_every_feature_changes_the_faces_that_show_it_and_no_others(name):
    f = FEATURES[name]
    base = ds.values(ds.space.factors(torch.arange(80)))
    base = edit(base, 'Wearing_Hat', float(name.startswith('hat')))  # a hat covers the shine of a bald head
    far = (f.low + f.high) / 2 if name.endswith('_hue') else f.high
    low, high = edit(base, name, f.low), edit(base, name, far)
    seen, changed = visible(low)[:, COLUMN[name]], differ(render(low), render(high)).amax((1, 2)) > 0
    assert not changed[~seen].any() and changed[seen].float().mean() > 0.9 and len(changed[seen])


def test_windows_hold_what_their_parts_paint():
    y = ds.space.sample(60, generator(3))
    g = generator(4)
    for name in FEATURES:
        y[:, COLUMN[name]] = 15 * torch.randint(2, (60,), generator=g)  # the ends of all ranges
    whole = paint(ds.values(y), COLUMN, [p._replace(box=(-40, 40, -40, 40)) for p in PARTS], 64)
    assert differ(whole, render(ds.values(y))).max() <= 1


def test_a_face_is_the_same_in_any_batch_and_by_any_access():
    index = torch.tensor([3, 499, 0, 77])
    x, y = ds.images(index), ds.space.factors(index)
    assert x.shape == (4, 3, 64, 64) and x.dtype == torch.uint8 and ds.shape == (3, 64, 64)
    assert torch.equal(x, ds.observe(y))
    assert torch.equal(x, render(ds.values(y)))
    assert torch.equal(x, torch.cat([ds.images(i[None]) for i in index]))
    assert torch.equal(x, render(ds.values(y), chunk=1)) and torch.equal(x, Faces(5000, seed=1).images(index))
    image, factors = ds[499]
    assert torch.equal(image, x[1] / 255) and torch.equal(factors, y[1])
    assert torch.equal(ds.labels([499])[0], 2 * factors[:27] - 1)
    assert not torch.equal(x, Faces(500, seed=2).images(index))
    others = (Faces(500), Faces(500, correlation=1), Faces(500, size=128), Faces(500, levels=4))
    assert len({repr(d) for d in (ds, *others)}) == 5
    batch, _ = next(iter(torch.utils.data.DataLoader(ds, batch_size=8)))
    assert batch.shape == (8, 3, 64, 64) and 0 <= batch.min() < 0.2 and 0.8 < batch.max() <= 1


def test_sizes_show_the_same_face():
    y = ds.space.factors(torch.arange(20))
    small, large = render(ds.values(y)).float(), render(ds.values(y), size=128).float()
    assert large.shape == (20, 3, 128, 128) and (torch.nn.functional.avg_pool2d(large, 2) - small).abs().mean() < 3


@given(st.lists(st.tuples(st.sampled_from(ATTRIBUTES), st.booleans()), min_size=1, max_size=12))
@settings(max_examples=100, deadline=None)
def test_edits_never_contradict(edits):
    v = settle(torch.zeros(1, len(NAMES)))
    for name, value in edits:
        v = edit(v, name, float(value))
        assert v[0, COLUMN[name]] == value and torch.equal(settle(v), v)
        for a, others in EXCLUDES.items():
            assert not (v[0, COLUMN[a]] and any(v[0, COLUMN[o]] for o in others))


@pytest.mark.parametrize('c', [0.0, 0.3, 1.0])
def test_dependence_is_as_documented(c):
    y = FaceSpace(60_000, correlation=c, seed=7).faces
    hair = y[:, COLUMN['Bald']] == 0
    for rule in RULES:
        for name in rule.group:
            for s in (0, 1):
                rows = y[:, COLUMN[rule.parent]] == s if rule.parent else torch.ones(len(y), dtype=torch.bool)
                if name in ('Bangs', 'Wavy_Hair'):
                    rows = rows & hair
                p, n = chance(name, c)[s], rows.sum().item()
                assert abs(y[rows, COLUMN[name]].double().mean() - p) < 4.5 * math.sqrt(p * (1 - p) / n)


def test_dependence_grows_from_none():
    "Without correlation, attributes that do not exclude each other are independent; with it, each depends on its parent more and more"
    r0, rh, r1 = (np.corrcoef(FaceSpace(40_000, correlation=c).faces[:, :27].numpy().T) for c in (0.0, 0.5, 1.0))
    bound = {(a, b) for a in EXCLUDES for b in EXCLUDES}  # hair and beard: dependent by exclusion
    for i, a in enumerate(ATTRIBUTES):
        for j, b in enumerate(ATTRIBUTES):
            assert i == j or (a, b) in bound or abs(r0[i, j]) < 0.025
    for rule in RULES:
        if rule.parent and rule.group[0] not in EXCLUDES:
            i, j = ATTRIBUTES.index(rule.parent), ATTRIBUTES.index(rule.group[0])
            assert 0.1 < abs(rh[i, j]) < abs(r1[i, j])


def test_interventions_hold_and_are_followed():
    space = FaceSpace(10, correlation=1.0)
    y = space.sample(4000, generator(0), dict(Bald=torch.arange(4000) % 2, skin_tone=3))
    assert torch.equal(y[:, COLUMN['Bald']], torch.arange(4000) % 2) and (y[:, COLUMN['skin_tone']] == 3).all()
    clean = [y[s::2, COLUMN['No_Beard']].double().mean().item() for s in (0, 1)]
    assert abs(clean[0] - 0.75) < 0.05 and abs(clean[1] - 0.05) < 0.03  # what depends on it follows
    assert abs(y[1::2, COLUMN['Young']].double().mean() - 0.5) < 0.05  # what it depends on does not


@pytest.mark.parametrize('name', sorted(EXCLUDES))
def test_fixing_an_attribute_is_what_an_edit_does_afterwards(name):
    "The value holds in every face, and nothing that it excludes is on"
    y = FaceSpace(10).sample(200, generator(6), {name: 1})
    assert (y[:, COLUMN[name]] == 1).all() and torch.equal(edit(y, name, 1), y)


def test_a_set_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    Faces(100).images([0])
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    'f,words',
    [
        (lambda: Faces(0), 'n: got 0'),
        (lambda: Faces(10, correlation=-1), 'correlation: got'),
        (lambda: Faces(10, levels=1), 'levels: got'),
        (lambda: Faces(10, levels=256), 'levels: got'),
        (lambda: Faces(10, size=64.0)[0], 'size: got'),
        (lambda: ds.images([500]), 'index: got'),
        (lambda: ds.observe(torch.full((1, 84), 2)), 'y: got'),
        (lambda: render(torch.zeros(2, 83)), 'values: got shape'),
        (lambda: render(torch.zeros(0, 84)), 'values: got shape'),
        (lambda: render(edit(torch.zeros(1, 84), 'glasses_tint', 1.5)), 'glasses_tint = 1.5'),
        (lambda: render(edit(torch.zeros(1, 84), 'Male', 0.5)), 'Male = 0.5'),
        (lambda: render(torch.ones(1, 84)), 'exclude each other'),
        (lambda: render(torch.full((1, 84), float('nan'))), 'Arched_Eyebrows = nan'),
        (lambda: edit(torch.zeros(1, 84), 'Eyeglass', 1), 'Eyeglasses'),
        (lambda: extent(torch.zeros(1, 84), 'hats'), "mean 'hat'"),
        (lambda: chance('Balt'), 'Bald'),
        (lambda: ds.space.sample(3, generator(0), dict(Bald=1, Bangs=1)), 'excludes'),
        (lambda: ds.space.sample(3, generator(0), dict(Bald=2)), 'fixed'),
    ],
)
def test_wrong_input_is_refused(f, words):
    with pytest.raises(ValueError) as e:
        f()
    assert words in str(e.value) and 'expected' in str(e.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
def test_gpu_draws_the_same_faces():
    y = ds.space.factors(torch.arange(200))
    x = ds.observe(y.cuda())
    assert x.is_cuda and differ(x.cpu(), ds.observe(y)).max() <= 2
