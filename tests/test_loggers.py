"What a training logs reaches TensorBoard, csv files and anything with lightning-fabric's interface, each step once."

import csv
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning_fabric.loggers import CSVLogger, Logger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from disent_nb.core import Batch, fails
from disent_nb.train.callbacks import History
from disent_nb.train.checkpoint import Checkpoint
from disent_nb.train.fit import Callback, adam, fit
from disent_nb.train.loggers import LoggerCallback, make_logger
from disent_nb.train.method import Method


class Toy(Method):
    "A lazy term at every 16th step beside one at each"

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, 2.0]))

    def updates(self, b, t):
        lazy = dict(lazy=(16.0, self.w.square())) if t % 16 == 0 else {}
        yield 'vae', dict(a=(1.0, self.w.square() + 0.1 * torch.randn(5, 2).mean() * self.w)) | lazy


def batches(t):
    return Batch((torch.zeros(5, 1, 4, 4),))


class Remote(Logger):
    "As the adapters of W&B and MLflow are: a subclass of lightning's Logger that sends to a server"

    def __init__(self, save_dir='.', project=None):
        super().__init__()
        self.save_dir, self.sent, self.ended = save_dir, [], []

    name = property(lambda self: 'remote')
    version = property(lambda self: 'a1b2')

    def log_hyperparams(self, params, *args, **kwargs):
        raise AssertionError('not called')

    def log_metrics(self, metrics, step=None):
        assert all(type(v) is float for v in metrics.values()) and type(step) is int
        self.sent.append((step, dict(metrics)))

    def finalize(self, status):
        self.ended.append(status)


class Stop(Callback):
    def __init__(self, at, error=KeyboardInterrupt):
        self.at, self.error = at, error

    def step_end(self, loop):
        if loop.t == self.at:
            raise self.error('stopped')


def train(*cbs, n=60):
    torch.manual_seed(0)
    return fit(Toy(), batches, n, adam(0.05), 'cpu', cbs=cbs)


def scalars(folder, tag='vae/loss'):
    events = EventAccumulator(str(folder)).Reload().Scalars(tag)
    return {e.step: e.value for e in events}, [e.step for e in events]


def rows_of(path):
    with open(path, newline='') as f:
        return list(csv.DictReader(f))


def test_tensorboard_holds_what_the_history_holds(tmp_path):
    history = History()
    train(history, LoggerCallback(TensorBoardLogger(tmp_path, 'runs', 'one')))
    for tag in ('vae/loss', 'vae/a'):
        found, steps = scalars(tmp_path / 'runs' / 'one', tag)
        assert steps == history.rows['step'] == [10, 20, 30, 40, 50, 60]
        torch.testing.assert_close(torch.tensor(list(found.values())), torch.tensor(history.rows[tag]))


def test_a_term_that_a_window_has_not_seen_is_not_logged(tmp_path):
    "Steps 0, 16, 32 and 48 lie in the windows 1, 2, 4 and 5; the history has NaN there, a logger has no point"
    train(LoggerCallback(make_logger('tensorboard', tmp_path)))
    assert scalars(tmp_path / 'tensorboard', 'vae/lazy')[1] == [10, 20, 40, 50]


def test_csv_holds_what_the_history_holds(tmp_path):
    history = History(every=7)
    train(history, LoggerCallback(CSVLogger(tmp_path, 'runs'), every=7))
    rows = rows_of(tmp_path / 'runs' / 'version_0' / 'metrics.csv')
    assert [int(row['step']) for row in rows] == history.rows['step'] == [7, 14, 21, 28, 35, 42, 49, 56, 60]
    found = torch.tensor([float(row['vae/a']) for row in rows])
    torch.testing.assert_close(found, torch.tensor(history.rows['vae/a']))


@pytest.mark.parametrize('first', [True, False])
@pytest.mark.parametrize('every_s', [0.0, 1000.0])
def test_no_step_is_logged_twice_after_interruptions(tmp_path, first, every_s):
    "Whether the checkpoint is of the last step or far behind, and stands before or after the logger"
    quiet, disturbed = Remote(), Remote()
    train(LoggerCallback(quiet))

    def go(stop):
        cbs = [LoggerCallback(disturbed), Checkpoint(tmp_path / 'c.pt', every_s)]
        train(*(cbs[::-1] if first else cbs), Stop(stop))

    for at in (5, 25, 31, 40):
        with pytest.raises(KeyboardInterrupt):
            go(at)
        assert disturbed.ended[-1] == 'failed'
    go(-1)
    assert disturbed.sent == quiet.sent and disturbed.ended[-1] == 'success'


def test_a_training_that_goes_on_with_more_steps_goes_on_logging(tmp_path):
    logger = Remote()
    for n in (30, 50):
        train(LoggerCallback(logger), Checkpoint(tmp_path / 'c.pt'), n=n)
    assert [step for step, _ in logger.sent] == [10, 20, 30, 40, 50] and logger.ended == ['success'] * 2


def test_a_window_of_a_training_that_broke_off_is_forgotten():
    "The same callback in a second training: its first window is that of the second training alone"
    quiet, history, logger = History(), History(), Remote()
    train(quiet)
    callback = LoggerCallback(logger)
    with pytest.raises(KeyboardInterrupt):
        train(history, callback, Stop(5))
    train(history, callback)
    assert history.rows == quiet.rows
    assert [m['vae/loss'] for _, m in logger.sent] == quiet.rows['vae/loss']


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from test_loggers import *

class Say(Callback):
    def step_end(self, loop):
        print(loop.t, flush=True)

to_the_end(Path(sys.argv[2]), Say())
"""


def to_the_end(out, *cbs):
    train(LoggerCallback(make_logger('tensorboard', out)), Checkpoint(out / 'c.pt', every_s=0.0), *cbs, n=150)


class Say(Callback):
    "Of the same name as that of the script: callbacks are part of what a checkpoint belongs to"


def test_a_killed_process_and_the_next_one_log_no_step_twice(tmp_path):
    command = [sys.executable, '-c', SCRIPT, str(Path(__file__).parent), str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if int(line) >= 33:
            break
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    to_the_end(tmp_path, Say())
    _, steps = scalars(tmp_path / 'tensorboard')
    assert len(list((tmp_path / 'tensorboard').glob('events*'))) == 2
    assert len(steps) == len(set(steps)), 'a step was logged twice'
    lost = set(range(10, 151, 10)) - set(steps)
    assert len(lost) <= 1, 'a kill costs at most the window between a file and the logger'


def test_loggers_by_name(tmp_path):
    assert isinstance(make_logger('csv', tmp_path), CSVLogger)
    assert isinstance(make_logger('tensorboard', tmp_path), TensorBoardLogger)
    other = make_logger(f'{__name__}.Remote', tmp_path)
    assert isinstance(other, Logger) and other.save_dir == str(tmp_path)
    for wrong in ('tensorbord', '', None, 3):
        print(fails(lambda: make_logger(wrong, tmp_path), 'logger', wrong, 'tensorboard'))
    print(fails(lambda: make_logger('lightning_fabric.loggers.NoSuchLogger', tmp_path), 'logger', 'NoSuchLogger'))
    print(fails(lambda: make_logger('subprocess.Popen', tmp_path), 'logger', 'Logger'))


def test_a_missing_tensorboard_is_named(tmp_path, monkeypatch):
    def missing(*args, **kwargs):
        raise ModuleNotFoundError('Neither tensorboard nor tensorboardX is available')

    monkeypatch.setattr('lightning_fabric.loggers.tensorboard.TensorBoardLogger', missing)
    fails(lambda: make_logger('tensorboard', tmp_path), "'disent_nb[tensorboard]'", error=ModuleNotFoundError)


@pytest.mark.parametrize('wrong', [CSVLogger, 'tensorboard', None, [Remote()]])
def test_what_is_no_logger_is_refused(wrong):
    fails(lambda: LoggerCallback(wrong), 'logger', 'log_metrics')
    fails(lambda: LoggerCallback(Remote(), every=0), 'every', 0)


def test_the_modules_of_training_import_neither_lightning_nor_tensorboard():
    code = 'import sys, disent_nb.train.fit, disent_nb.train.loggers, disent_nb.train.checkpoint\n'
    code += "print([m for m in ('lightning_fabric', 'tensorboard', 'onnx', 'huggingface_hub') if m in sys.modules])"
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == '[]'
