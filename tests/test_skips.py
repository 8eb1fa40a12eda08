"A skipped test ends the session as a failure, unless tests/conftest.py lists the reason."

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SESSION = """
import pytest

@pytest.mark.skipif(True, reason={reason!r})
def test_marked(): ...

def test_inside():
    pytest.skip({reason!r})

@pytest.mark.xfail
def test_expected():
    assert False

def test_passes(): ...
"""


def run(folder, text, *options):
    "Exit status and output of a session with one test file"
    shutil.copy(Path(__file__).with_name('conftest.py'), folder)
    (folder / 'test_it.py').write_text(text)
    command = [sys.executable, '-m', 'pytest', '-p', 'no:cacheprovider', f'--rootdir={folder}', *options, str(folder)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout


@pytest.mark.parametrize('options', [(), ('-n', '2')], ids=['one process', 'xdist'])
class TestSession:
    def test_an_agreed_reason_passes(self, tmp_path, options):
        status, told = run(tmp_path, SESSION.format(reason='no GPU'), *options)
        assert status == 0, told
        assert '1 passed, 2 skipped, 1 xfailed' in told
        assert 'conftest.py does not list' not in told

    def test_another_reason_fails_and_is_printed(self, tmp_path, options):
        status, told = run(tmp_path, SESSION.format(reason='no data'), *options)
        assert status == 1, told
        assert '1 passed, 2 skipped, 1 xfailed' in told
        listed = told.partition('conftest.py does not list')[2]
        assert 'test_it.py::test_marked: no data' in listed
        assert 'test_it.py::test_inside: no data' in listed

    def test_a_file_that_is_not_collected_fails_too(self, tmp_path, options):
        (tmp_path / 'test_other.py').write_text('def test_passes(): ...')
        status, told = run(tmp_path, "import pytest\npytest.importorskip('no_such_module')", *options)
        assert status == 1, told
        assert 'test_it.py: could not import' in told.partition('conftest.py does not list')[2]
