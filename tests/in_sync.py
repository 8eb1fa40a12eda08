"Fails if the modules are not what the notebooks export, the notebooks are not clean, or the README is not what its notebook says."

import filecmp, shutil, subprocess, sys, tempfile
from pathlib import Path

root = Path(__file__).parents[1]
bin = Path(sys.executable).parent


def differing(a, b, pattern):
    "Files below two folders that match `pattern` and are not the same in both"
    names = {p.relative_to(d) for d in (a, b) for p in d.rglob(pattern) if '.ipynb_checkpoints' not in p.parts}
    return sorted(
        str(n)
        for n in names
        if not ((a / n).exists() and (b / n).exists() and filecmp.cmp(a / n, b / n, shallow=False))
    )


def regenerate(copy):
    "Export, clean and convert in a copy, so that this tree stays as it is"
    for part in ('nbs', 'disent_nb', 'settings.ini', 'setup.py', 'README.md', 'Makefile'):
        (shutil.copytree if (root / part).is_dir() else shutil.copy)(root / part, copy / part)
    for command in ('nbdev_export', 'nbdev_clean'):
        subprocess.run([bin / command], cwd=copy, check=True)
    (copy / '.venv').mkdir()
    (copy / '.venv' / 'bin').symlink_to(bin)
    for stamp in ('.runs', '.dev'):
        (copy / '.venv' / stamp).touch()
    subprocess.run(['make', '-s', '-o', '.venv/.dev', 'readme'], cwd=copy, check=True)


with tempfile.TemporaryDirectory() as tmp:
    copy = Path(tmp)
    regenerate(copy)
    stale = {
        'modules differ from the notebooks (make export)': differing(root / 'disent_nb', copy / 'disent_nb', '*.py'),
        'notebooks are not clean (make export)': differing(root / 'nbs', copy / 'nbs', '*.ipynb'),
        'README.md differs from nbs/index.ipynb (make readme)': ['README.md']
        * (not filecmp.cmp(root / 'README.md', copy / 'README.md', shallow=False))
        + differing(root / 'nbs', copy / 'nbs', '*.png'),
    }
for what, files in stale.items():
    if files:
        print(f'{what}:', *files)
if any(stale.values()):
    sys.exit(1)
print('modules, notebooks and README are in sync')
