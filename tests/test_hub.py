"A model is saved, loaded and uploaded with what is needed to have it back; nothing here asks a server."

import json
import sys
from functools import partial
from unittest.mock import patch

import pytest
import torch
from torch import nn

from disent_nb.core import fails, generator, seed_all
from disent_nb.methods.annealed import AnnealedVAE
from disent_nb.methods.betavae import BetaVAE
from disent_nb.methods.factor import FactorVAE
from disent_nb.nets.conv64 import burgess64
from disent_nb.nets.mlp import dense
from disent_nb.nets.resnet import resnet
from disent_nb.train.checkpoint import build_model, load_model, load_weights, read_about, save_weights
from disent_nb.train.method import Model, decode, image_shape, remember
from disent_nb.uses.hub import from_pretrained, push_to_hub, save_pretrained

pytestmark = pytest.mark.usefixtures('one_thread')
small = partial(resnet, size=16, width=8)
CASES = dict(
    conv=(BetaVAE, burgess64, dict(beta=3.0), (1, 64, 64)),
    resnet=(AnnealedVAE, small, dict(gamma=7.0, c_steps=5, likelihood='gaussian'), (1, 16, 16)),
    dense=(FactorVAE, partial(dense, size=(5, 7), depth=1), dict(width=16), (1, 5, 7)),
)
every = pytest.mark.parametrize('case', CASES)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)


def made(case='resnet'):
    cls, net, options, _ = CASES[case]
    seed_all(0)
    return cls.from_net(net, 1, 4, **options)


def same(a, b):
    z = torch.randn(5, 4, generator=generator(0))
    torch.testing.assert_close(decode(a, z), decode(b, z), rtol=0, atol=1e-5)
    assert type(a) is type(b) and repr(a) == repr(b) and a.about == b.about
    assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


# the header


@every
def test_the_header_says_how_the_model_was_made(case, tmp_path):
    cls, net, options, shape = CASES[case]
    save_weights(made(case), tmp_path / 'w')
    about = read_about(tmp_path / 'w')
    function = getattr(net, 'func', net)
    assert about['method'] == f'{cls.__module__}.{cls.__name__}' and about['method_options'] == options
    assert about['net'] == f'{function.__module__}.{function.__name__}'
    assert (about['channels'], about['latents'], about['shape']) == (1, 4, list(shape))
    assert json.loads(json.dumps(about)) == about


@every
def test_a_file_is_enough_to_have_the_model_back(case, tmp_path):
    model = made(case)
    save_weights(model, tmp_path / 'w')
    again = load_model(tmp_path / 'w')
    same(model, again)
    assert not any(part.training for part in again.modules())


def test_further_texts_and_models_that_know_nothing(tmp_path):
    save_weights(made(), tmp_path / 'w', dict(dataset='sprites', seed=torch.tensor(3)))
    assert {'dataset': 'sprites', 'seed': 3}.items() <= read_about(tmp_path / 'w').items()
    plain = BetaVAE(*small(1, 4))
    save_weights(plain, tmp_path / 'w')
    assert read_about(tmp_path / 'w') == dict(shape=[1, 16, 16])
    fails(lambda: load_model(tmp_path / 'w'), 'about', 'method')
    assert load_weights(BetaVAE(*small(1, 4)), tmp_path / 'w').n_latents == 4
    save_weights(nn.Linear(2, 2), tmp_path / 'w')
    assert read_about(tmp_path / 'w') == {}


class Own(BetaVAE):
    "Builds itself, so whoever calls it says how"

    @classmethod
    def from_net(cls, net, channels, latents, **options):
        return cls(*net(channels, latents), **options)


def test_whoever_builds_a_model_can_say_how(tmp_path):
    model = Own.from_net(small, 1, 4, beta=2.0)
    assert model.about == {}
    remember(model, small, 1, 4, dict(beta=2.0))
    save_weights(model, tmp_path / 'w')
    again = load_model(tmp_path / 'w')
    assert type(again) is Own and again.beta == 2.0


def test_the_shape_of_images_is_found_without_a_trace():
    model = made().train()
    model.encoder.eval()
    modes = [part.training for part in model.modules()]
    state = torch.get_rng_state()
    assert image_shape(model) == (1, 16, 16)
    assert modes == [part.training for part in model.modules()] and torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    'part, value',
    [
        ('method', 'subprocess.Popen'),
        ('method', 'disent_nb.train.method.Method'),
        ('method', 'antigravity.fly'),
        ('net', 'antigravity.fly'),
        ('net', 'os.system'),
        ('net', 'disent_nb.nets.conv64.Encoder64'),
        ('net_options', dict(depth=3)),
        ('method_options', dict(bta=3.0)),
        ('method_options', dict(beta=-3.0)),
        ('method_options', dict(decoder=None)),
        ('latents', 0),
        ('channels', '1'),
        ('method', None),
    ],
)
def test_a_header_makes_only_models_on_networks(part, value):
    "A file from a stranger imports and calls nothing else"
    about = made('conv').about
    before = set(sys.modules)
    fails(lambda: build_model(about | {part: value}))
    assert 'antigravity' not in set(sys.modules) - before


# the hub


@every
def test_saved_and_loaded(case, tmp_path):
    model = made(case)
    assert save_pretrained(model, tmp_path / 'new' / 'model') == tmp_path / 'new' / 'model'
    same(model, from_pretrained(tmp_path / 'new' / 'model'))
    same(model, from_pretrained(str(tmp_path / 'new' / 'model')))
    config = json.loads((tmp_path / 'new' / 'model' / 'config.json').read_text())
    assert config == read_about(tmp_path / 'new' / 'model' / 'model.safetensors')
    card = (tmp_path / 'new' / 'model' / 'README.md').read_text()
    assert 'library_name: disent_nb' in card and type(model).__name__ in card


def test_saved_again_in_the_same_folder(tmp_path):
    save_pretrained(made('conv'), tmp_path)
    save_pretrained(made('dense'), tmp_path, card='# Dense')
    same(made('dense'), from_pretrained(tmp_path))
    assert '# Dense' in (tmp_path / 'README.md').read_text()


@pytest.mark.parametrize('as_path', [str, lambda p: p])
def test_the_card_of_a_run_is_taken(tmp_path, as_path):
    (tmp_path / 'card.md').write_text('# Sprites, MIG 0.3\n')
    save_pretrained(made(), tmp_path / 'm', card=as_path(tmp_path / 'card.md'))
    card = (tmp_path / 'm' / 'README.md').read_text()
    assert card.startswith('---\nlibrary_name: disent_nb') and card.endswith('# Sprites, MIG 0.3\n')
    with_notes = '---\nlicense: mit\n---\n# Mine\n'
    save_pretrained(made(), tmp_path / 'm', card=with_notes)
    assert (tmp_path / 'm' / 'README.md').read_text() == with_notes


def test_an_upload_sends_what_can_be_loaded(tmp_path):
    "The Hub is a mock that keeps a copy of the folder it is sent"
    import shutil

    with patch('huggingface_hub.hub_mixin.HfApi') as api:
        api.return_value.create_repo.return_value.repo_id = 'user/model'

        def upload(folder_path, repo_id, **options):
            shutil.copytree(folder_path, tmp_path / 'hub')
            return f'https://hub/{repo_id}/commit/1'

        api.return_value.upload_folder.side_effect = upload
        model = made()
        assert push_to_hub(model, 'user/model', private=True, token='t') == 'https://hub/user/model/commit/1'
    api.assert_called_once_with(token='t')
    api.return_value.create_repo.assert_called_once_with(repo_id='user/model', private=True, exist_ok=True)
    same(model, from_pretrained(tmp_path / 'hub'))


def test_a_repository_is_downloaded(tmp_path):
    model = made()
    save_pretrained(model, tmp_path)
    asked = []

    def download(repo_id, filename, **options):
        asked.append((repo_id, filename, options['revision']))
        return str(tmp_path / filename)

    with (
        patch('huggingface_hub.hf_hub_download', download),
        patch('huggingface_hub.hub_mixin.hf_hub_download', download),
    ):
        same(model, from_pretrained('user/model', revision='v1'))
    assert ('user/model', 'model.safetensors', 'v1') in asked


def test_what_is_refused(tmp_path, monkeypatch):
    fails(lambda: save_pretrained(BetaVAE(*small(1, 4)), tmp_path / 'a'), 'model', 'from_net')
    fails(lambda: push_to_hub(nn.Linear(1, 1), 'user/model'), 'model', 'Linear')
    fails(lambda: save_pretrained(made(), tmp_path / 'a', card=tmp_path / 'no.md'), 'card', 'no.md')
    fails(lambda: from_pretrained(tmp_path), 'name', 'model.safetensors')
    fails(lambda: from_pretrained('user/no-such-model'), 'name')  # offline, and not downloaded before
    fails(lambda: from_pretrained('not a repository!'), 'name')
    save_pretrained(made(), tmp_path / 'b')
    (tmp_path / 'b' / 'model.safetensors').write_bytes(b'<html>quota exceeded</html>')
    fails(lambda: from_pretrained(tmp_path / 'b'), 'name', 'model.safetensors')
    from disent_nb.uses.hub import hub_model

    hub_model.cache_clear()
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    fails(lambda: from_pretrained('user/model'), "'disent_nb[hub]'", error=ModuleNotFoundError)
    fails(lambda: save_pretrained(made(), tmp_path), "'disent_nb[hub]'", error=ModuleNotFoundError)
