"What a user can hand to a training by mistake, what breaks on the way, and what lies in damaged files: an error that helps."

import copy
import inspect
import os
import random
import resource

import numpy as np
import pytest
import torch
from torch import nn

from disent_nb.core import Batch, discover, fails, generator, load_object, seed_all
from disent_nb.methods.betavae import BetaVAE
from disent_nb.methods.factor import FactorVAE
from disent_nb.train.callbacks import ClipGradients, History, StopOnNaN
from disent_nb.train.checkpoint import (
    Checkpoint,
    from_bytes,
    layout,
    load_weights,
    read_about,
    read_weights,
    save_weights,
    to_bytes,
)
from disent_nb.train.fit import Callback, adam, fit
from disent_nb.train.method import Method, Model

pytestmark = pytest.mark.usefixtures('one_thread')
IMAGES = torch.rand(8, 1, 16, 16, generator=generator(0))
CPU = torch.device('cpu')


def batches(t):
    return Batch((IMAGES.roll(t, 0),), n_data=8)


def make(cls=BetaVAE, **options):
    seed_all(0)
    return cls.small(**options)


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


# arguments of `fit`


def own(t):
    return IMAGES


ARGUMENTS = [
    (dict(method=nn.Linear(1, 1)), 'method', 'Linear'),
    (dict(method=BetaVAE), 'method', 'the class BetaVAE'),
    (dict(method=None), 'method', 'None'),
    (dict(batches=IMAGES), 'batches', 'Tensor'),
    (dict(batches=[1]), 'batches', 'list'),
    (dict(batches=own), 'batches(0)', 'Tensor'),
    (dict(batches=lambda t: None), 'batches(0)', 'NoneType'),
    (dict(batches=lambda t: Batch(IMAGES)), 'batches(0)', 'tuple'),
    (dict(batches=lambda t: Batch(())), 'batches(0)', 'tuple'),
    (dict(batches=lambda t: Batch((IMAGES.numpy(),))), 'batches(0)', 'ndarray'),
    (dict(batches=lambda t: Batch((IMAGES[:, 0],))), 'batches(0)', '(8, 16, 16)'),
    (dict(batches=lambda t: Batch((IMAGES[:0],))), 'batches(0)', 'zero'),
    (dict(batches=lambda t: Batch((IMAGES, IMAGES[:3]))), 'batches(0)', '[8, 3]'),
    (dict(batches=lambda t: Batch((IMAGES / 0,))), 'batches(0)', 'NaN'),
    (dict(batches=lambda t: Batch((IMAGES.byte(),))), 'batches(0)', 'uint8'),
    (dict(n_steps=-1), 'n_steps', '-1'),
    (dict(n_steps=2.5), 'n_steps', '2.5'),
    (dict(n_steps='10'), 'n_steps', "'10'"),
    (dict(n_steps=True), 'n_steps', 'True'),
    (dict(n_steps=None), 'n_steps', 'None'),
    (dict(opt=1e-3), 'opt', '0.001'),
    (dict(opt='adam'), 'opt', "'adam'"),
    (dict(opt=None), 'opt', 'None'),
    (dict(opt=torch.optim.Adam([nn.Parameter(torch.ones(1))])), 'opt', 'Adam'),
    (dict(opt=dict(vae=1e-3)), 'opt', '0.001'),
    (dict(opt=dict(vee=adam())), 'opt', 'vee'),
    (dict(opt={}), 'opt', 'vae'),
    (dict(opt=nn.Linear), 'opt', 'the class Linear'),
    (dict(opt=lambda p: p), 'opt', 'list'),
    (dict(opt=lambda: None), 'opt', 'function'),
    (dict(device='tpu'), 'device', 'tpu'),
    (dict(device=3), 'device', '3'),
    (dict(device='cuda:99'), 'device', 'cuda:99'),
    (dict(device=None), 'device', 'None'),
    (dict(seed=-1), 'seed', '-1'),
    (dict(seed=0.5), 'seed', '0.5'),
    (dict(seed='a'), 'seed', "'a'"),
    (dict(cbs=History()), 'cbs', 'History'),
    (dict(cbs=[History]), 'cbs', 'the class History'),
    (dict(cbs='History'), 'cbs', 'History'),
    (dict(cbs=[print]), 'cbs', 'builtin_function_or_method'),
    (dict(cbs=None), 'cbs', 'None'),
    (dict(precision='bf16'), 'precision', 'bf16-mixed'),
    (dict(precision=16), 'precision', '16'),
    (dict(precision=None), 'precision', 'None'),
    (dict(fabric='cpu'), 'fabric', 'cpu'),
    (dict(fabric=CPU), 'fabric', 'device'),
]


@pytest.mark.parametrize('wrong, name, came', ARGUMENTS, ids=lambda p: p if isinstance(p, str) else ','.join(p))
def test_a_wrong_argument_is_named(wrong, name, came):
    given = dict(method=make(), batches=batches, n_steps=1, opt=adam(), device='cpu') | wrong
    if 'fabric' in wrong:
        given['device'] = 'auto'
    message = fails(lambda: fit(**given), came)
    assert message.startswith((name, f'{name}:')), message


def test_numpy_integers_are_integers():
    loop = fit(make(), batches, np.int64(2), device='cpu', seed=np.int32(1))
    assert loop.t == 2 and type(loop.n_steps) is int and type(loop.seed) is int


LATER = dict(
    tensor=lambda: IMAGES,
    eight_bits=lambda: Batch(((IMAGES * 255).byte(),)),
    range=lambda: Batch((IMAGES * 2,)),
    nan=lambda: Batch((IMAGES * float('nan'),)),
    axes=lambda: Batch((IMAGES[0],)),
    views=lambda: Batch((IMAGES, IMAGES[1:])),
    none=lambda: None,
)


@pytest.mark.parametrize('kind', LATER)
def test_batches_after_the_first_are_checked(kind):
    fails(lambda: fit(make(), lambda t: LATER[kind]() if t == 3 else batches(t), 5, device='cpu'), 'batches(3)')


class Yields(BetaVAE):
    what: object = None

    def updates(self, b, t):
        yield type(self).what


@pytest.mark.parametrize(
    'what',
    [
        dict(rec=(1.0, torch.ones(2))),
        ('vae', dict(rec=(1.0, torch.ones(2))), 3),
        ('decoder', dict(rec=(1.0, torch.ones(2)))),
        ('vae', dict(rec=torch.ones(2))),
        ('vae', {}),
        ('vae', dict(rec=(1.0, torch.ones(2, 2)))),
        ('vae', dict(rec=(1.0, torch.ones(2)))),  # no gradient
    ],
    ids=lambda what: str(what)[:40],
)
def test_a_method_that_yields_something_else_is_told_what(what, monkeypatch):
    monkeypatch.setattr(Yields, 'what', what)
    message = fails(lambda: fit(make(Yields), batches, 1, device='cpu'))
    assert message.startswith(('updates: ', 'terms: '))


# frozen, tied and following weights


METHODS = list(discover('disent_nb.methods', lambda o: inspect.isclass(o) and issubclass(o, Method)))


def views_of(path):
    "Batches that the method takes"
    two = (IMAGES, IMAGES.flip(0))
    mask = torch.tensor([[True, False, True, False]]).expand(8, 4)
    labels = torch.arange(32).reshape(8, 4) % 3 - 1
    for b in (batches(0), Batch(two, n_data=8), Batch(two, mask, 8), Batch((IMAGES,), labels, 8)):
        try:
            list(make(load_object(path)).updates(b, 0))
        except ValueError:
            continue
        return lambda t: b
    raise AssertionError(path)


@pytest.mark.parametrize('path', METHODS)
def test_a_frozen_encoder_stays_and_the_rest_learns(path, tmp_path):
    "Trains, saves, loads and resumes bit for bit, in every method"
    given = views_of(path)

    def train(n, name):
        model = make(load_object(path))
        model.encoder.requires_grad_(False)
        fit(model, given, n, adam(1e-3), 'cpu', cbs=[Checkpoint(tmp_path / name)])
        return model

    fresh, straight = make(load_object(path)), train(3, 'straight')
    train(2, 'resumed')
    assert same(train(3, 'resumed'), straight)
    before, after = (getattr(m, 'decoders', None) or m.decoder for m in (fresh, straight))  # one, or one for each level
    assert same(fresh.encoder, straight.encoder) and not same(before, after)
    assert all(p.grad is None for p in straight.encoder.parameters())
    save_weights(straight, tmp_path / 'w')
    assert same(load_weights(make(load_object(path)), tmp_path / 'w'), straight)


def test_a_frozen_group_is_left_out_and_the_others_train():
    model = make(FactorVAE, width=16)
    name = next(k for k in model.groups() if k != 'vae')
    model.groups()[name].requires_grad_(False)
    before = copy.deepcopy(model)
    fit(model, batches, 2, adam(1e-2), 'cpu')
    assert same(before.groups()[name], model.groups()[name]) and not same(before.encoder, model.encoder)
    fails(lambda: fit(make().requires_grad_(False), batches, 1, device='cpu'), 'method', 'gradient')


def test_resuming_with_other_frozen_parts_is_refused(tmp_path):
    "Two layers with as many weights: the optimizer's state would fit"

    def train(n, part):
        model = make(TwoLayers)
        getattr(model, part).requires_grad_(False)
        fit(model, batches, n, device='cpu', cbs=[Checkpoint(tmp_path / 'c')])

    train(2, 'a')
    fails(lambda: train(3, 'b'), 'another training', 'trained')


class TwoLayers(Model):
    n_latents = 1

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(256, 256), nn.Linear(256, 256)

    @classmethod
    def small(cls):
        return cls()

    def decode(self, z):
        return self.b(self.a(z.expand(-1, 256))).sigmoid().unflatten(1, (1, 16, 16))

    def updates(self, b, t):
        yield 'vae', dict(rec=(1.0, (self.b(self.a(b.x.flatten(1))) - b.x.flatten(1)).square().sum(1)))


class Tied(TwoLayers):
    "One weight in both layers, another one transposed, a view of a third, and a copy that follows"

    def __init__(self):
        super().__init__()
        self.b.weight = self.a.weight
        self.turned = nn.Linear(256, 256, bias=False)
        self.turned.weight = nn.Parameter(self.a.weight.detach().t(), requires_grad=False)
        self.register_buffer('part', self.b.bias.detach()[:5])
        self.average = copy.deepcopy(self.b).requires_grad_(False)
        self.again = nn.ModuleList([self.average])

    def groups(self):
        return dict(vae=nn.ModuleList([self.a, self.b]))

    def updates(self, b, t):
        yield from super().updates(b, t)
        with torch.no_grad():
            for mean, p in zip(self.average.parameters(), self.b.parameters()):
                mean.lerp_(p, 0.5)


def test_tied_viewed_and_following_weights_train_save_load_and_resume(tmp_path):
    def train(n, name):
        model = make(Tied)
        fit(model, batches, n, adam(1e-3), 'cpu', cbs=[Checkpoint(tmp_path / name)])
        return model

    straight = train(4, 'a')
    train(2, 'b')
    assert same(train(4, 'b'), straight)
    assert straight.a.weight is straight.b.weight and not same(straight.average, make(Tied).average)
    assert all(p.grad is None for p in straight.average.parameters())
    save_weights(straight, tmp_path / 'w')
    assert sorted(read_weights(tmp_path / 'w')) == sorted(straight.state_dict())
    loaded = load_weights(make(Tied), tmp_path / 'w')
    assert same(loaded, straight) and loaded.a.weight is loaded.b.weight and loaded.again[0] is loaded.average


def test_a_state_that_is_no_tensor_is_refused_by_name(tmp_path):
    class Extra(TwoLayers):
        def get_extra_state(self):
            return dict(note='mine')

        def set_extra_state(self, state):
            pass

    fails(lambda: save_weights(make(Extra), tmp_path / 'w'), 'method', '_extra_state')
    assert not list(tmp_path.iterdir())


# a checkpoint of something else


def train(path, n=4, model=None, cbs=(), given=batches, **options):
    model = make() if model is None else model
    fit(model, given, n, **dict(dict(opt=adam(1e-3), device='cpu', cbs=[*cbs, Checkpoint(path)]) | options))
    return model


OTHERS = dict(
    images=dict(given=lambda t: Batch((1 - IMAGES.roll(t, 0),), n_data=8)),
    number_of_images=dict(given=lambda t: Batch((IMAGES.roll(t, 0),), n_data=9)),
    labels=dict(given=lambda t: Batch((IMAGES.roll(t, 0),), torch.zeros(8, 1).long(), 8)),
    option=dict(model=lambda: make(beta=5.0)),
    method=dict(model=lambda: make(FactorVAE, width=16)),
    precision=dict(precision='64-true'),
    seed=dict(seed=1),
    learning_rate=dict(opt=adam(1e-2)),
    optimizer=dict(opt=torch.optim.SGD),
    fewer_steps=dict(n=3),
    callbacks=dict(cbs=[History(), StopOnNaN()]),
    window=dict(cbs=[History(every=3)]),
    clipping=dict(cbs=[ClipGradients(1.0)]),
)


@pytest.mark.parametrize('other', OTHERS)
def test_resuming_goes_on_with_nothing_else(other, tmp_path):
    mine = [History()] if other == 'window' else [ClipGradients(2.0)] if other == 'clipping' else []
    train(tmp_path / 'c', cbs=mine)
    before = (tmp_path / 'c').read_bytes()
    changed = {k: v() if k == 'model' else v for k, v in OTHERS[other].items()}
    fails(
        lambda: train(tmp_path / 'c', **dict(dict(n=6, cbs=mine) | changed)),
        'path',
        'c is no checkpoint of this training',
    )
    assert (tmp_path / 'c').read_bytes() == before
    train(tmp_path / 'c', 6, cbs=mine)


# damaged files


@pytest.fixture(scope='module')
def stored(tmp_path_factory):
    "A checkpoint and weights"
    folder = tmp_path_factory.mktemp('stored')
    model = train(folder / 'c', cbs=[History(every=3)])
    save_weights(model, folder / 'w', dict(dataset='noise'))
    return folder


def resume(path, n=6):
    train(path, n, cbs=[History(every=3)])


def flips(data, n, seed):
    rng = random.Random(seed)
    for _ in range(n):
        changed = bytearray(data)
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        yield bytes(changed)


def test_every_flipped_bit_of_a_checkpoint_is_noticed(stored):
    data = (stored / 'c').read_bytes()
    assert from_bytes(data, CPU)['t'] == 4
    for changed in flips(data, 200, 0):
        fails(lambda: from_bytes(changed, CPU))


def test_a_checkpoint_with_a_flipped_bit_or_cut_short_is_not_resumed(stored, tmp_path):
    data = (stored / 'c').read_bytes()
    cut = [data[: len(data) * i // 7] for i in range(7)]
    for changed in [*flips(data, 10, 1), *cut, data + b'x', b'<html>', bytes(1000)]:
        (tmp_path / 'c').write_bytes(changed)
        fails(lambda: resume(tmp_path / 'c'), 'path', 'c is no checkpoint of this training')
        assert (tmp_path / 'c').read_bytes() == changed  # what is there is not destroyed


def test_every_flipped_bit_of_weights_is_noticed(stored, tmp_path):
    "Half of them in the header, which is small beside the tensors"
    data = (stored / 'w').read_bytes()
    assert read_about(stored / 'w')['dataset'] == 'noise'
    end = 8 + int.from_bytes(data[:8], 'little')
    changed = [head + data[end:] for head in flips(data[:end], 200, 2)] + list(flips(data, 200, 3))
    for bad in changed:
        (tmp_path / 'w').write_bytes(bad)
        fails(lambda: read_weights(tmp_path / 'w'), 'path', 'w')
    for cut in range(0, len(data), len(data) // 9):
        (tmp_path / 'w').write_bytes(data[:cut])
        fails(lambda: load_weights(make(), tmp_path / 'w'), 'path', 'w')


def places(o, at=()):
    "The way to every key and entry of nested dicts and lists"
    for key in o if isinstance(o, dict) else range(len(o)) if isinstance(o, list) else ():
        yield (*at, key)
        yield from places(o[key], (*at, key))


def changed_states(state, n, seed):
    "One entry removed, or replaced by something of another type or shape"
    rng = random.Random(seed)
    every = list(places(state))
    shallow = [at for at in every if len(at) <= 2]
    for at in shallow + rng.sample(every, n):
        changed = copy.deepcopy(state)
        inner = changed
        for key in at[:-1]:
            inner = inner[key]
        kind = rng.randrange(4)
        if kind < 2:
            del inner[at[-1]]
        else:
            inner[at[-1]] = [None, 'x', torch.zeros(2, 7), [], {}, b''][rng.randrange(6)]
        yield at, changed


def test_a_checkpoint_that_is_readable_but_not_whole_is_not_resumed(stored, tmp_path):
    state = from_bytes((stored / 'c').read_bytes(), CPU)
    assert len(state) == 6
    for at, changed in changed_states(state, 30, 4):
        (tmp_path / 'c').write_bytes(to_bytes(changed))
        message = fails(lambda: resume(tmp_path / 'c'), 'path', 'c is no checkpoint of this training')
        assert 'delete it' in message, at


def test_nor_is_one_whose_layout_was_made_to_fit(stored, tmp_path):
    "Whatever a callback, an optimizer or torch raise, the answer is a ValueError with the name of the file"
    state = from_bytes((stored / 'c').read_bytes(), CPU)
    rest = {k: v for k, v in state.items() if k != 'layout'}
    for name, value in dict(
        opts=dict(vae=dict(state={0: dict(step=1)}, param_groups=[])),
        cbs=[dict(rows=3), {}],
        method={k: v[:1] for k, v in state['method'].items()},
        t=-1,
        fingerprint={},
    ).items():
        other = rest | {name: value}
        (tmp_path / 'c').write_bytes(to_bytes(dict(other, layout=layout(other))))
        fails(lambda: resume(tmp_path / 'c'), 'path', 'c is no checkpoint of this training')


def test_objects_in_a_checkpoint_are_not_made(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, ('touch ' + str(tmp_path / 'made'),)

    (tmp_path / 'c').write_bytes(to_bytes(dict(t=Evil())))
    fails(lambda: resume(tmp_path / 'c'), 'path', 'c')
    assert not (tmp_path / 'made').exists()


# a full disk, and errors on the way out


@pytest.fixture
def full_disk():
    "No file may grow beyond 2 kB"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_names_the_file_and_leaves_the_last_one(tmp_path, full_disk):
    (tmp_path / 'w').write_bytes(b'before')
    for write in (lambda: save_weights(make(), tmp_path / 'w'), lambda: train(tmp_path / 'c')):
        with pytest.raises(OSError) as caught:
            write()
        assert caught.value.filename in (str(tmp_path / 'w'), str(tmp_path / 'c')) and caught.value.errno
    assert [f.name for f in tmp_path.iterdir()] == ['w'] and (tmp_path / 'w').read_bytes() == b'before'


class Fails(Callback):
    def __init__(self, hook, error, text):
        setattr(self, hook, lambda *args: self.fail(error, text))

    def fail(self, error, text):
        raise error(text)


class Left(Callback):
    n = 0

    def on_exit(self, loop):
        self.n += 1


@pytest.mark.parametrize(
    'hook', ['before_fit', 'after_backward', 'after_update', 'after_step', 'step_end', 'after_fit']
)
def test_an_error_on_the_way_out_does_not_hide_the_first_one(hook):
    left = Left()
    cbs = [Fails(hook, KeyboardInterrupt, 'first'), Fails('on_exit', OSError, 'second'), left]
    with pytest.raises(KeyboardInterrupt, match='first'):
        fit(make(), batches, 2, device='cpu', cbs=cbs)
    assert left.n == 1


def test_an_error_on_the_way_out_alone_is_raised_after_all_have_left():
    left = Left()
    cbs = [Fails('on_exit', OSError, 'one'), Fails('on_exit', ValueError, 'two'), left]
    with pytest.raises(OSError, match='one'):
        fit(make(), batches, 2, device='cpu', cbs=cbs)
    assert left.n == 1


def test_a_full_disk_at_the_end_of_a_history_does_not_hide_a_nan(tmp_path, full_disk):
    "The history cannot be written on the way out; what the user sees is why the training stopped"

    class Breaks(BetaVAE):
        def updates(self, b, t):
            for name, terms in super().updates(b, t):
                yield name, {f'{"long" * 100}{i}': (w, v / (t != 1)) for i, (w, v) in enumerate(terms.values())}

    history = History(tmp_path / 'history.csv', every=1)
    fails(
        lambda: fit(make(Breaks), batches, 3, device='cpu', cbs=[history, StopOnNaN()]),
        'step 1',
        error=FloatingPointError,
    )


def test_temporary_files_of_killed_saves_go_at_the_next_start(tmp_path):
    names = ['c', 'c[1].pt']
    for name in names:
        (tmp_path / f'.{name}.0123456789abcdef.tmp').write_bytes(b'half')
    (tmp_path / '.other.0123456789abcdef.tmp').write_bytes(b'half')
    for name in names:
        train(tmp_path / name)
    assert sorted(f.name for f in tmp_path.iterdir()) == ['.other.0123456789abcdef.tmp', *names]
