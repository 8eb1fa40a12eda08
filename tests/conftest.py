"What several test files share."

import os
import signal
from collections import Counter

import pytest
from hypothesis import settings

signal.signal(
    signal.SIGINT, signal.default_int_handler
)  # a shell lets what it starts in the background ignore Ctrl-C, and children inherit that


# hypothesis tries the same cases in every run; HYPOTHESIS_PROFILE=explore tries others each time, and more in the fuzz
settings.register_profile('same', derandomize=True)
settings.register_profile('explore', derandomize=False, max_examples=1000, print_blob=True)
settings.load_profile(os.environ.get('HYPOTHESIS_PROFILE', 'same'))


@pytest.fixture(scope='module')
def one_thread():
    "Torch computes with one thread: threads that wait for each other are slow while other work runs on the machine"
    import torch

    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)


# ---- a test that is skipped proves nothing, so each reason is agreed on here

MAY_SKIP = (
    'no GPU',
    'looks into /proc',
    'git is not installed',
)
NOT_AGREED = pytest.StashKey[Counter]()


def pytest_configure(config):
    config.stash[NOT_AGREED] = Counter()
    config.pluginmanager.register(Skips(config.stash[NOT_AGREED]))
    if config.pluginmanager.hasplugin('dsession'):
        config.pluginmanager.register(SkipsOfWorkers(config.stash[NOT_AGREED]))


class Skips:
    "Counts the skipped tests and files of this process whose reason is not in `MAY_SKIP`"

    def __init__(self, found):
        self.found = found

    def count(self, report):
        if report.skipped and not hasattr(report, 'wasxfail'):
            reason = str(report.longrepr[2]).removeprefix('Skipped: ')
            if reason not in MAY_SKIP:
                self.found[f'{report.nodeid}: {reason}'] += 1

    pytest_collectreport = pytest_runtest_logreport = count


class SkipsOfWorkers:
    "Under xdist the files are collected by the workers, whose counts arrive when they end"

    def __init__(self, found):
        self.found = found

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node):
        for where in getattr(node, 'workeroutput', {}).get('not_agreed', ()):
            self.found[where] += 1


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session):
    found = session.config.stash[NOT_AGREED]
    if hasattr(session.config, 'workeroutput'):
        session.config.workeroutput['not_agreed'] = list(found)
    elif found and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config):
    found = config.stash[NOT_AGREED]
    if found:
        terminalreporter.section('skipped for a reason that tests/conftest.py does not list', red=True)
        for where in sorted(found):
            terminalreporter.line(where)
