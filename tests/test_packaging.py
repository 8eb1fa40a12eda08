"What is built: the sdist holds what a wheel is made from, and the metadata say what a package index shows."

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from email import message_from_string
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

root = Path(__file__).parents[1]
config = ConfigParser(delimiters=['='], interpolation=None)
config.read(root / 'settings.ini', encoding='utf-8')
groups = {k: v.split() for k, v in config['DEFAULT'].items() if k.endswith('requirements')}
users = {k: list(map(Requirement, v)) for k, v in groups.items() if k != 'dev_requirements'}


def build(source, out, *kinds):
    words = [sys.executable, '-m', 'build', '--no-isolation', '--outdir', out, *kinds, source]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def contents(wheel):
    "`{name: bytes}`"
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    "A wheel from the checkout, an sdist, and a wheel from the sdist; without a network"
    folder = tmp_path_factory.mktemp('build')
    checkout = folder / 'checkout'
    checkout.mkdir()
    for path in root.iterdir():
        if path.is_file():
            shutil.copy(path, checkout)
    for part in ('nbs', 'disent_nb', 'tests'):
        ignored = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints')
        shutil.copytree(root / part, checkout / part, ignore=ignored)
    build(checkout, folder / 'two')  # the wheel is made from the sdist
    build(checkout, folder / 'one', '--wheel')
    (sdist,) = (folder / 'two').glob('*.tar.gz')
    wheels = [next((folder / part).glob('*.whl')) for part in ('one', 'two')]
    return sdist, *map(contents, wheels)


@pytest.fixture(scope='module')
def metadata(built):
    text = next(data for name, data in built[1].items() if name.endswith('.dist-info/METADATA'))
    return message_from_string(text.decode())


def test_a_wheel_from_the_sdist_holds_the_same_as_one_from_the_checkout(built):
    _, of_checkout, of_sdist = built
    assert sorted(of_sdist) == sorted(of_checkout)
    assert [name for name in of_checkout if of_sdist[name] != of_checkout[name]] == []
    modules = {str(p.relative_to(root)) for p in (root / 'disent_nb').rglob('*.py')}
    notebooks = {f'disent_nb/experiments/{p.name}' for p in (root / 'nbs' / '90_experiments').glob('*.ipynb')}
    parts = {'disent_nb/py.typed', 'disent_nb/experiments/presets/quickstart.yaml'}
    assert modules | notebooks | parts <= set(of_sdist)
    assert any(name.startswith('disent_nb/experiments/sweeps/') for name in of_sdist)


def test_the_sdist_holds_what_a_reader_and_a_packager_need(built):
    with tarfile.open(built[0]) as archive:
        names = {name.partition('/')[2] for name in archive.getnames()}
    files = 'settings.ini setup.py pyproject.toml LICENSE README.md CHANGELOG.md CONTRIBUTING.md constraints.txt'
    assert set(files.split()) <= names
    for folder, pattern in (('nbs', '*.ipynb'), ('nbs', '*.yaml'), ('tests', '*.py')):
        wanted = {
            str(p.relative_to(root)) for p in (root / folder).rglob(pattern) if '.ipynb_checkpoints' not in p.parts
        }
        assert wanted <= names
    assert not [name for name in names if '__pycache__' in name or '.ipynb_checkpoints' in name]


def test_the_built_package_finds_its_experiments(built, tmp_path):
    for name, data in built[2].items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    code = 'import disent_nb.runs.cli as c; print(c.disent_nb.__file__, *c.file_names("*.ipynb"))'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=tmp_path)
    where, *names = done.stdout.split()
    assert Path(where).is_relative_to(tmp_path) and 'quickstart' in names, done.stderr
    words = [sys.executable, '-m', 'disent_nb', '--version']
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.split() == ['disent_nb', config['DEFAULT']['version']]


def links(markdown):
    "Targets of links and pictures outside of code"
    text = re.sub(r'```.*?```|`[^`\n]*`', '', markdown, flags=re.DOTALL)
    return re.findall(r'\]\(([^)\s]+)', text) + re.findall(r'(?:src|href)="([^"]+)"', text)


def test_the_description_has_no_relative_link(metadata):
    found, before = links(metadata.get_payload()), links((root / 'README.md').read_text(encoding='utf-8'))
    relative = [target for target in before if not re.match(r'https://|#', target)]
    assert relative and len(found) == len(before)  # else this tests nothing
    assert [target for target in found if not re.match(r'https://|#', target)] == []
    for target in relative:
        assert (root / target.partition('#')[0]).exists(), target
    pictures = [target for target in found if target.endswith('.png')]
    assert pictures and all('/raw/' in target for target in pictures)  # a page around a picture is no picture


def test_the_metadata_say_where_things_are(metadata):
    urls = dict(line.split(', ') for line in metadata.get_all('Project-URL'))
    assert {'Source', 'Documentation', 'Issues', 'Changelog'} <= set(urls)
    assert all(url.startswith('https://') for url in urls.values())
    assert metadata['License-Expression'] == 'Apache-2.0' and metadata['License-File'] == 'LICENSE'
    assert not [c for c in metadata.get_all('Classifier') if c.startswith('License ::')]  # refused beside an expression


def test_every_python_that_is_claimed_is_tested_at_its_ends(metadata):
    claimed = re.findall(r':: (3\.\d+)$', '\n'.join(metadata.get_all('Classifier')), re.M)
    workflow = (root / '.github' / 'workflows' / 'test.yml').read_text(encoding='utf-8')
    tested = re.findall(r"'(3\.\d+)'", workflow)
    assert claimed[0] == config['DEFAULT']['min_python'] == metadata['Requires-Python'].removeprefix('>=')
    assert {claimed[0], claimed[-1]} <= set(tested) <= set(claimed)


def pins(file):
    "`{distribution: version}` of a file of constraints"
    lines = [line.partition('#')[0].strip() for line in (root / file).read_text(encoding='utf-8').splitlines()]
    found = [line.split('==') for line in lines if line]
    assert len({canonicalize_name(name) for name, _ in found}) == len(found)
    return {canonicalize_name(name): version for name, version in found}


def test_everything_that_is_required_is_pinned():
    pinned = pins('constraints.txt')
    for requirement in (Requirement(text) for texts in groups.values() for text in texts):
        assert canonicalize_name(requirement.name) in pinned, requirement
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement


def test_the_lowest_versions_are_those_that_settings_claim():
    "The workflow tests with constraints-lowest.txt"
    lower = {}
    for requirement in (r for group in users.values() for r in group):
        bounds = [s.version for s in requirement.specifier if s.operator == '>=']
        assert len(bounds) == 1, f'{requirement} has no lower bound'
        lower[canonicalize_name(requirement.name)] = bounds[0]
    assert pins('constraints-lowest.txt') == lower
    workflow = (root / '.github' / 'workflows' / 'test.yml').read_text(encoding='utf-8')
    assert 'constraints-lowest.txt' in workflow


def test_a_missing_module_names_the_extra_that_brings_it():
    "For every requirement of every extra, by the modules that its distribution installs"
    from importlib.metadata import packages_distributions

    from disent_nb.runs.commands import EXTRAS, install_hint

    brought = {}
    for module, distributions in packages_distributions().items():
        for distribution in distributions:
            brought.setdefault(canonicalize_name(distribution), []).append(module)
    extras = {name.removesuffix('_requirements'): group for name, group in users.items() if '_' in name}
    assert set(extras) == set(EXTRAS)
    for extra, group in extras.items():
        for requirement in group:
            modules = brought[canonicalize_name(requirement.name)]
            assert any(install_hint(module).endswith(f"'disent_nb[{extra}]'") for module in modules), requirement
    assert install_hint('numpy') == install_hint(None) == ''
