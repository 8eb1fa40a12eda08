"Studies: damaged folders, other processes, scripts, data of one's own, and what a stranger's folder may do."

import json, os, signal, subprocess, sys, textwrap, threading, time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from filelock import FileLock
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from disent_nb.core import fails, write_json
from disent_nb.data.table import ImageTable
from disent_nb.runs.study import build, load_run, plan_study, scores, study, train, udr_of
from disent_nb.runs.sweep import plan, read_spec, sweep

pytestmark = pytest.mark.usefixtures('one_thread')

SPEC = dict(
    net='disent_nb.nets.mlp.dense',
    net_options=dict(size=8, width=8, depth=1),
    latents=2,
    steps=2,
    batch_size=4,
    device='cpu',
    n_train=20,
    n_test=10,
)
FACTORS = dict(place=np.arange(32) % 4, kind=np.arange(32) // 8)
PIXELS = np.random.default_rng(0).integers(0, 256, (32, 8, 8), np.uint8)


@pytest.fixture
def three(tmp_path):
    "Specs of three trainings, all complete in `tmp_path`"
    specs = [SPEC | dict(label='a', seed=s, dataset=ImageTable(PIXELS, FACTORS)) for s in range(3)]
    for item in plan_study(specs, tmp_path):
        train(**item)
    return specs


def silent(line):
    "Instead of print"


# ---- damaged folders


@pytest.mark.parametrize('file', ['config.json', 'metrics.json'])
@pytest.mark.parametrize('text', [None, '', '{"a', '[1]', '{}', 'null', '[' * 100_000, '\x00'])
def test_one_damaged_training_is_an_error_of_its_row_and_not_the_end_of_the_study(three, tmp_path, file, text):
    path = tmp_path / 'a-seed1' / file
    path.unlink() if text is None else path.write_text(text)
    table = study(three, tmp_path, show=silent)
    assert table.error.astype(bool).tolist() == [False, True, False]
    assert file in table.error[1] or 'is damaged' in table.error[1]
    for word in ('a-seed1', f'delete {tmp_path / "a-seed1"}'):
        assert word in table.error[1]
    assert table.mig.notna().tolist() == [True, False, True]


def test_parameters_that_are_no_dict_are_an_error_of_the_row(three, tmp_path):
    path = tmp_path / 'a-seed2' / 'config.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | dict(parameters=3)))
    assert study(three, tmp_path, show=silent).error.astype(bool).tolist() == [False, False, True]
    fails(lambda: load_run(tmp_path / 'a-seed2'), 'folder', 'a-seed2')


def test_an_empty_folder_is_not_a_complete_training(three, tmp_path):
    for path in (tmp_path / 'a-seed0').iterdir():
        path.unlink()
    table = study(three, tmp_path, show=silent)
    assert 'no readable config.json' in table.error[0] and not any(table.error[1:])
    fails(lambda: load_run(tmp_path / 'a-seed0'), 'config.json')
    fails(lambda: train(tmp_path / 'a-seed0', 'a', dataset=PIXELS), 'config.json', 'delete')


def test_one_damaged_run_is_an_error_of_its_row_and_not_the_end_of_the_sweep(tmp_path, capsys):
    (first, second, third) = plan('quickstart', [dict(seed=s) for s in range(3)], 'smoke', tmp_path)
    first['folder'].mkdir(parents=True)
    (first['folder'] / 'run.ipynb').touch()
    second['folder'].mkdir()
    third['folder'].mkdir()
    (second['folder'] / 'config.json').write_text('{')
    planned = sweep('quickstart', [dict(seed=s) for s in range(2)], 'smoke', tmp_path)
    assert not any(p['done'] for p in planned)
    for p in planned:
        assert 'config.json' in p['error'] and 'delete the folder' in p['error'] and p['folder'].name in p['error']
    assert '2 of 2 runs failed or cannot be used' in capsys.readouterr().out
    (empty,) = plan('quickstart', [dict(seed=2)], 'smoke', tmp_path)
    assert not empty['done']


def test_a_training_recorded_before_a_parameter_was_added_is_still_read(three, tmp_path):
    path = tmp_path / 'a-seed0' / 'config.json'
    config = json.loads(path.read_text())
    del config['parameters']['checkpoint_s']
    path.write_text(json.dumps(config))
    assert not any(study(three, tmp_path, show=silent).error)
    three[0]['checkpoint_s'] = 3.0
    fails(lambda: study(three, tmp_path, show=silent), 'checkpoint_s', '10.0', '3.0')


# ---- other processes

ENDS = """
import signal
from disent_nb.methods.vae import VAE

class Ends(VAE):
    "Its process gets a signal that has no name"
    def penalty(self, q, z, b, t):
        signal.raise_signal(signal.SIGRTMIN + 6)
"""


def test_a_study_leaves_to_others_what_they_write_and_a_signal_is_the_error_of_one_row(tmp_path, monkeypatch):
    "Another process has the second training and gives it up after a while"
    (tmp_path / 'study_ends.py').write_text(ENDS)
    monkeypatch.syspath_prepend(tmp_path)
    specs = [SPEC | dict(label='ends', method='study_ends.Ends'), SPEC | dict(label='taken')]
    out, lines = tmp_path / 'out', []
    out.mkdir()
    other = FileLock(out / '.taken-seed0.lock', thread_local=False)
    other.acquire()

    def show(line):
        lines.append(line)
        if 'waiting' in line:
            threading.Timer(1, other.release).start()

    table = study(specs, out, 2, show, data=ImageTable(PIXELS, FACTORS))
    assert f'signal {signal.SIGRTMIN + 6}' in table.error[0] and table.error[1] == '' and table.mig.notna()[1]
    assert 'waiting for other processes, runs: 1' in lines and 'given up by another process: taken, seed 0' in lines
    assert not any('taken' in line and 'error' in line for line in lines)


def test_a_row_that_another_study_completed_is_read(three, tmp_path, monkeypatch):
    "It was being written when this study tried, and was complete when the wait was over"
    hidden = tmp_path / 'a-seed1'
    hidden.rename(tmp_path / 'elsewhere')
    tries = []

    def jobs(f, items, workers):
        tries.append(len(items))
        if items:
            (tmp_path / 'elsewhere').rename(hidden)
        return ((n, None, None) for n in range(len(items)))

    monkeypatch.setattr('disent_nb.runs.study.run_jobs', jobs)
    lines = []
    table = study(three, tmp_path, show=lines.append)
    assert not any(table.error) and table.mig.notna().all() and lines[-1] == 'done by another process: a, seed 1'


SCRIPT = """
import sys
sys.path[:0] = {path!r}
print('begins', flush=True)
from disent_nb.runs.study import study
from disent_nb.runs.sweep import sweep
def begin(f, *args):
    f(*args, workers=2)
try:
    begin(study, [dict(label='a', steps=1)], 'out')
except RuntimeError as e:
    print(e)
sweep('quickstart', [{{}}], 'smoke', workers=2)
"""


def test_a_script_without_main_guard_is_told_so_before_anything_starts(tmp_path):
    (tmp_path / 'script.py').write_text(SCRIPT.format(path=sys.path))
    words = [sys.executable, 'script.py']
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and done.stdout.count('begins') == 1, done.stdout + done.stderr
    assert "study: script.py, line 10 starts" in done.stdout and "if __name__ == '__main__':" in done.stdout
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith('RuntimeError: sweep: script.py, line 13') and "if __name__ == '__main__':" in last
    assert [p.name for p in tmp_path.iterdir()] == ['script.py']


# ---- a stranger's files

EVIL = """
from pathlib import Path
from disent_nb.methods.vae import VAE
Path(__file__).with_suffix('.imported').touch()

class Mine(VAE):
    "Somebody's method"
"""


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    "A module that can be imported, and leaves a file when it is"
    (tmp_path / 'study_stranger.py').write_text(EVIL)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / 'study_stranger.imported'
    sys.modules.pop('study_stranger', None)


def change(folder, **parameters):
    path = folder / 'config.json'
    config = json.loads(path.read_text())
    config['parameters'] |= parameters
    write_json(path, config)


def test_loading_imports_only_what_is_ours_or_imported_already(stranger, tmp_path):
    train(tmp_path / 'run', 'a', **SPEC | dict(dataset=ImageTable(PIXELS)))
    path = 'study_stranger.Mine'
    for name in ('method', 'net'):
        change(tmp_path / 'run', **{name: path})
        fails(lambda: load_run(tmp_path / 'run', PIXELS), name, path, 'import study_stranger first')
    change(tmp_path / 'run', dataset=path)
    fails(lambda: load_run(tmp_path / 'run'), path)
    change(tmp_path / 'run', method='disent_nb.methods.vae.VAE', net='disent_nb.nets.mlp.dense')
    fails(lambda: load_run(tmp_path / 'run'), 'dataset', path)
    assert not stranger.exists() and 'study_stranger' not in sys.modules
    __import__('study_stranger')
    change(tmp_path / 'run', method=path)
    assert type(load_run(tmp_path / 'run', PIXELS)[1]).__name__ == 'Mine'


@pytest.mark.parametrize('path', ['os.system', 'builtins.exec', 'subprocess.Popen', 'disent_nb.core.write_json', 'x'])
def test_loading_calls_nothing_but_datasets_networks_and_models(tmp_path, path):
    train(tmp_path / 'run', 'a', **SPEC | dict(dataset=ImageTable(PIXELS)))
    for name in ('dataset', 'net', 'method'):
        whole = (tmp_path / 'run' / 'config.json').read_text()
        change(tmp_path / 'run', dataset='disent_nb.rendered.dsprites.ReducedDSprites')
        change(tmp_path / 'run', **{name: path, f'{name}_options': {}})
        fails(lambda: load_run(tmp_path / 'run'), name, path)
        (tmp_path / 'run' / 'config.json').write_text(whole)


def test_a_sweep_file_imports_no_modules_that_are_not_ours(stranger, tmp_path):
    for name in ('method', 'dataset', 'net', 'views'):
        (tmp_path / 'spec.yaml').write_text(
            f'experiment: quickstart\npreset: smoke\ngrid: {{{name}: study_stranger.Mine}}'
        )
        fails(lambda: sweep(**read_spec(tmp_path / 'spec.yaml'), dry=True), name, 'study_stranger')
    assert not stranger.exists()
    fails(lambda: plan('quickstart', [dict(dataset='study_stranger.Mine')], 'smoke'), 'FactorDataset')
    assert stranger.exists()  # in python the caller named it


# ---- data of one's own


class Items(Dataset):
    "A map-style dataset, of images and labels, whose class other processes cannot import: it is changed here"

    def __len__(self):
        return len(PIXELS)

    def __getitem__(self, i):
        if i >= len(self):
            raise IndexError
        return torch.from_numpy(PIXELS[i][None]), i % 4


DATA = dict(
    array=lambda: PIXELS,
    floats=lambda: PIXELS / np.float32(255),
    tensor=lambda: torch.from_numpy(PIXELS[:, None]),
    tensors=lambda: TensorDataset(torch.from_numpy(PIXELS[:, None]), torch.arange(32)),
    part=lambda: Subset(TensorDataset(torch.from_numpy(PIXELS[:, None])), range(4, 20)),
    items=lambda: Items(),
    table=lambda: ImageTable(PIXELS),
)


@pytest.mark.parametrize('kind', DATA)
def test_images_of_ones_own_are_trained_on_recorded_and_loaded(tmp_path, kind):
    data, n = DATA[kind](), 16 if kind == 'part' else 32
    (item,) = plan_study([SPEC | dict(label='a')], tmp_path, data)
    row = train(**item)
    assert 'mig' not in row and row['kl'] >= 0
    recorded = json.loads((tmp_path / 'a-seed0' / 'config.json').read_text())['parameters']['dataset']
    assert recorded['set'] == f'ImageTable({n} images 1x8x8 without factors)' and len(recorded['digest']) == 16
    ds, model = load_run(tmp_path / 'a-seed0', data)
    assert len(ds) == n and set(scores(model, data, ['mig'])) == {'kl', 'active'}
    table = study([SPEC | dict(label='a', dataset=data)], tmp_path, show=silent)  # it is complete, by either name
    assert table.error.tolist() == [''] and table.kl[0] == row['kl']
    assert udr_of([model, model], data).shape == (2,)
    assert build(SPEC | dict(seed=0, method='disent_nb.methods.vae.VAE', method_options={}), data)[0].shape == (1, 8, 8)


def test_other_data_are_refused_where_a_training_is_complete_or_was_begun(tmp_path):
    "Also where the first batch is the same: only one pixel or one factor of one image differs"
    data = ImageTable(PIXELS, FACTORS)
    pixels, factors = PIXELS.copy(), {k: v.copy() for k, v in FACTORS.items()}
    pixels[9, 0, 0] ^= 1
    factors['kind'][9] = 3
    others = [ImageTable(pixels, FACTORS), ImageTable(PIXELS, factors), ImageTable(PIXELS), ImageTable(PIXELS[::-1])]
    train(tmp_path / 'a', 'a', **SPEC, dataset=data)
    begun = tmp_path / 'b.part'
    begun.mkdir()
    (begun / 'config.json').write_text((tmp_path / 'a' / 'config.json').read_text())
    for other in others:
        fails(lambda: train(tmp_path / 'a', 'a', **SPEC, dataset=other), 'dataset', 'digest')
        fails(lambda: train(tmp_path / 'b', 'a', **SPEC, dataset=other), 'dataset', 'digest', 'b.part')
        fails(lambda: load_run(tmp_path / 'a', other), 'data', 'digest')
    fails(lambda: train(tmp_path / 'a', 'a', **SPEC), 'dataset', 'ReducedDSprites')
    fails(lambda: load_run(tmp_path / 'a'), 'data: got None', 'place 4')
    assert train(tmp_path / 'b', 'a', **SPEC, dataset=ImageTable(PIXELS, FACTORS))['mig'] >= 0


def test_images_with_factors_are_scored_by_path_or_as_an_object(tmp_path):
    folder = tmp_path / 'images'
    folder.mkdir()
    for i, x in enumerate(PIXELS):
        Image.fromarray(x).resize((20, 24)).save(folder / f'{i:02}.png')
    frame = pd.DataFrame(dict(file=[f'{i:02}.png' for i in range(32)], **FACTORS))
    frame.to_csv(tmp_path / 'table.csv', index=False)
    options = dict(images=str(folder), factors=str(tmp_path / 'table.csv'), size=8)
    by_path = SPEC | dict(label='a', dataset='disent_nb.data.table.ImageTable', dataset_options=options)
    by_object = SPEC | dict(label='b', dataset=ImageTable(**options))
    first, second = (train(**item) for item in plan_study([by_path, by_object], tmp_path / 'out'))
    assert first['mig'] == second['mig'] and first['kl'] == second['kl'] and 0 <= first['mig'] <= 1
    assert len(load_run(tmp_path / 'out' / 'a-seed0')[0]) == 32  # the path is in the folder


def test_a_loader_and_what_holds_no_images_are_refused_with_a_sentence_that_helps(tmp_path):
    spec = SPEC | dict(label='a')
    loader = DataLoader(TensorDataset(torch.zeros(4, 1, 8, 8)))
    for call in (
        lambda: study([spec], tmp_path, data=loader),
        lambda: study([spec | dict(dataset=loader)], tmp_path),
        lambda: train(tmp_path / 'a', 'a', dataset=loader),
    ):
        fails(call, 'DataLoader', 'pass loader.dataset')
    fails(lambda: study([spec], tmp_path, data=3), 'images', 'int')
    fails(lambda: study([spec | dict(dataset=PIXELS)], tmp_path, data=PIXELS), 'specs[0]', 'data')
    fails(lambda: study([spec | dict(dataset_options=dict(size=8))], tmp_path, data=PIXELS), 'dataset_options')
    fails(lambda: study([spec | dict(metrics=['z_min'])], tmp_path, data=ImageTable(PIXELS, FACTORS)), 'z_min')
    assert not list(tmp_path.iterdir())


def test_a_broken_image_is_found_before_the_first_training(tmp_path):
    pixels = PIXELS / np.float32(255)
    pixels[17, 3, 3] = np.nan
    fails(lambda: study([SPEC | dict(label='a')], tmp_path, data=pixels), 'image 17')


# ---- code of one's own


@pytest.fixture
def own_method(tmp_path, monkeypatch):
    "A function that writes a module with a model of one's own, whose loss is multiplied by a number"

    def write(factor):
        text = f"""
            from disent_nb.methods.vae import VAE

            class Mine(VAE):
                def loss(self, *args):
                    terms = super().loss(*args)
                    return {{k: {factor} * v for k, v in terms.items()}}
        """
        (tmp_path / 'mine_of_study.py').write_text(textwrap.dedent(text))

    monkeypatch.syspath_prepend(str(tmp_path))
    yield write
    sys.modules.pop('mine_of_study', None)


def test_a_training_with_a_module_that_was_edited_is_not_taken_for_the_new_one(tmp_path, own_method):
    "Complete or unfinished, in train and in study; a module put back gives the old row"
    own_method(1)
    spec = SPEC | dict(label='a', method='mine_of_study.Mine', dataset=ImageTable(PIXELS, FACTORS))
    row = train(tmp_path / 'a-seed0', **spec)
    begun = tmp_path / 'b.part'
    begun.mkdir()
    (begun / 'config.json').write_text((tmp_path / 'a-seed0' / 'config.json').read_text())
    own_method(2)
    fails(lambda: train(tmp_path / 'a-seed0', **spec), 'a-seed0', 'other code')
    fails(lambda: train(tmp_path / 'b', **spec), 'b.part', 'other code')
    fails(lambda: study([spec], tmp_path, show=silent), 'a-seed0', 'other code')
    own_method(1)
    assert train(tmp_path / 'a-seed0', **spec) == row
