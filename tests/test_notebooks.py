"The notebooks keep the rules that readers and importers rely on."

import ast
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

root = Path(__file__).parents[1]
notebooks = sorted(p for p in (root / 'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
modules = sorted(p for p in (root / 'disent_nb').rglob('*.py') if p.name not in ('__init__.py', '_modidx.py'))
may_import = dict(
    core='',
    prob='core',
    data='core',
    rendered='core data',
    files='core data',
    nets='core',
    train='core prob',
    methods='core prob nets train',
    metrics='core prob data.factors data.table',
    edit='core prob data rendered nets train methods metrics',
    uses='core prob data nets train methods metrics',
    viz='core',
    __main__='runs',
    runs='core prob data rendered files nets train methods metrics uses viz',
)

LONG_LINES = {'nbs/14_files/00_containers.ipynb': 1}  # a file name and its checksum


def cells(path, kind='code'):
    return [c for c in json.loads(path.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == kind]


def source(cell):
    return ''.join(cell['source'])


def is_export(cell):
    return bool(re.search(r'^#\|\s*export', source(cell), re.M))


def name(path):
    return str(path.relative_to(root))


def texts(cell):
    "The text of every output of a cell"
    for o in cell.get('outputs', []):
        yield (
            ''.join(o.get('text', ''))
            + ''.join(o.get('data', {}).get('text/plain', ''))
            + ''.join(o.get('data', {}).get('text/html', ''))
        )


@pytest.mark.parametrize('path', notebooks, ids=name)
def test_a_notebook_is_fit_to_be_read(path):
    first = source(cells(path, 'markdown')[0])
    assert first.startswith('# ') and '\n> ' in first, 'no title and claim'
    assert path.stat().st_size < 300_000
    for i, c in enumerate(cells(path)):
        for o in c.get('outputs', []):
            assert o['output_type'] != 'error' and o.get('name') != 'stderr', (
                f'code cell {i} has an error or a warning in its output'
            )
        for text in texts(c):
            assert not re.search(r'/(root|home|Users|work|tmp|private)/', text), (
                f'code cell {i} shows a path of a machine'
            )


@pytest.mark.parametrize('path', [p for p in notebooks if any(map(is_export, cells(p)))], ids=name)
def test_exports_come_with_evidence(path):
    shown = [c for c in cells(path) if not is_export(c)]
    assert any('assert ' in source(c) for c in shown), 'no assert'
    assert any(c.get('outputs') for c in shown), 'no output: a reader on the web sees nothing'
    every = json.loads(path.read_text(encoding='utf-8'))['cells']
    for a, b in zip(every, every[1:]):
        assert not (a['cell_type'] == b['cell_type'] == 'code' and is_export(a) and is_export(b)), (
            'two exports in a row'
        )
    for c in filter(is_export, cells(path)):
        is_list = '__all__ = [' in source(c)  # what a package offers, in the open
        assert is_list or source(c).count('\n') < 70, 'an exported cell is too long'
        for function in filter(is_function, ast.walk(ast.parse(source(c)))):
            body = function.end_lineno - function.body[0].lineno
            assert body < 40, f'{function.name} has too many lines'


def is_function(node):
    return isinstance(node, ast.FunctionDef)


@pytest.mark.parametrize('path', sorted((root / 'nbs' / '90_experiments').glob('*.ipynb')), ids=name)
def test_an_experiment_has_its_parameters_tag_and_presets(path):
    from disent_nb.runs.run import parameters, presets, resolve

    assert 'out' in parameters(path) and 'smoke' in presets(path)
    for preset in presets(path):
        resolve(path, preset)
    if 'cpu' in presets(path):
        assert resolve(path, 'cpu') == resolve(path), (
            'the notebook stores the outputs of its cpu preset, so both must say the same'
        )


def test_the_readme_lists_every_notebook():
    links = set(re.findall(r'\]\((nbs/\S+\.ipynb)\)', (root / 'README.md').read_text(encoding='utf-8')))
    assert links == {name(p) for p in notebooks} - {'nbs/index.ipynb'}


def imported(path):
    "Modules of the package that a module imports, without the package's name"
    package = path.relative_to(root / 'disent_nb').parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield '.'.join([*package[: len(package) - node.level + 1], node.module or ''])
        elif isinstance(node, ast.ImportFrom) and (node.module or '').startswith('disent_nb.'):
            yield node.module.removeprefix('disent_nb.')


@pytest.mark.parametrize('path', modules, ids=name)
def test_layers(path):
    layer = path.relative_to(root / 'disent_nb').with_suffix('').parts[0]
    for module in imported(path):
        allowed = [layer, *may_import[layer].split()]
        fine = module == '' or any(module == a or module.startswith(a + '.') for a in allowed)  # '': the version
        assert fine, f'{layer} imports {module}'


@pytest.mark.parametrize('path', modules, ids=name)
def test_public_names_have_docstrings(path):
    for node in ast.parse(path.read_text(encoding='utf-8')).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            assert ast.get_docstring(node), node.name


BLOCK = """
import importlib.abc, sys
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split('.')[0] in {names}: raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Block())
import {module}
"""


def test_modules_import_without_notebook_tooling():
    tooling = 'IPython ipykernel ipywidgets jupyter jupyter_client jupyter_core nbformat nbconvert nbclient nbdev execnb fastcore papermill yaml traitlets'.split()
    every = ', '.join('.'.join(p.relative_to(root).with_suffix('').parts) for p in modules)
    done = subprocess.run(
        [sys.executable, '-c', BLOCK.format(names=set(tooling), module=every)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_block_blocks():
    done = subprocess.run(
        [sys.executable, '-c', BLOCK.format(names={'json'}, module='json.decoder')], capture_output=True, text=True
    )
    assert 'ModuleNotFoundError' in done.stderr


def test_density():
    "Syntax-tree nodes per line of a function's body: `python tests/density.py` prints what is dense"
    from density import densities

    table = densities()
    medians = {module: statistics.median(found.values()) for module, found in table.items()}
    assert not {module: value for module, value in medians.items() if value > 15}
    assert not {f'{m}:{f}': round(v) for m, found in table.items() for f, v in found.items() if v > 30}


@pytest.mark.parametrize('path', notebooks, ids=name)
def test_lines_of_code_fit_the_page(path):
    "At most 120 characters, but for the lines that are listed"
    long = sum(len(line) > 120 for c in cells(path) for line in source(c).split('\n'))
    assert long <= LONG_LINES.get(name(path), 0), f'{long} lines over 120 characters'


def untyped(body, prefix=''):
    "Names of public functions and methods with a parameter or a result that carries no type"
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from untyped(node.body, f'{node.name}.')
        if not is_function(node) or (node.name.startswith('_') and node.name not in ('__init__', '__call__')):
            continue
        every = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
        bare = [a.arg for a in every if a.annotation is None and a.arg not in ('self', 'cls')]
        if bare or (node.returns is None and node.name != '__init__'):
            yield f'{prefix}{node.name}({", ".join(bare)})'


@pytest.mark.parametrize('path', modules, ids=name)
def test_public_functions_are_typed(path):
    assert not list(untyped(ast.parse(path.read_text(encoding='utf-8')).body))
