"Package metadata, read from settings.ini; the experiment notebooks travel inside the package."

import re
import shutil
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

root = Path(__file__).parent
config = ConfigParser(delimiters=['='], interpolation=None)
config.read(root / 'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']
extras = {k.removesuffix('_requirements'): v.split() for k, v in cfg.items() if k.endswith('_requirements')}
extras['dev'] += [package for name, extra in extras.items() if name != 'dev' for package in extra]
pages = {kind: f'{cfg["git_url"]}/{kind}/{cfg["branch"]}/' for kind in ('blob', 'raw')}


class BuildWithExperiments(build_py):
    "Copies nbs/90_experiments to disent_nb/experiments in the built package, so that `disent-nb run` works without a checkout."

    def run(self):
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / cfg['lib_path'] / 'experiments'
        shutil.copytree(
            root / cfg['nbs_path'] / '90_experiments', target, dirs_exist_ok=True, ignore=shutil.ignore_patterns('.*')
        )


def absolute_links(markdown):
    "Links and pictures that are relative to the repository work on a package index too; code stays as it is"
    relative = r'(?!\w+:|#|/)'
    parts = re.split(r'(```.*?```|`[^`\n]*`)', markdown, flags=re.DOTALL)
    for i in range(0, len(parts), 2):
        text = re.sub(rf'(!\[[^]]*\]\(){relative}', rf'\g<1>{pages["raw"]}', parts[i])
        parts[i] = re.sub(rf'(\]\(){relative}', rf'\g<1>{pages["blob"]}', text)
    return ''.join(parts)


setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    keywords=cfg['keywords'].split(),
    author=cfg['author'],
    author_email=cfg['author_email'],
    url=cfg['git_url'],
    project_urls={
        'Source': cfg['git_url'],
        'Documentation': cfg['doc_host'] + cfg['doc_baseurl'],
        'Issues': f'{cfg["git_url"]}/issues',
        'Changelog': f'{pages["blob"]}CHANGELOG.md',
    },
    license_expression='Apache-2.0',
    license_files=['LICENSE'],
    long_description=absolute_links((root / 'README.md').read_text(encoding='utf-8')),
    long_description_content_type='text/markdown',
    packages=find_packages(include=[cfg['lib_path'], cfg['lib_path'] + '.*']),
    python_requires='>=' + cfg['min_python'],
    install_requires=cfg['requirements'].split(),
    extras_require=extras,
    entry_points=dict(console_scripts=cfg['console_scripts'].split()),
    package_data={cfg['lib_name']: ['py.typed', 'edit/*.safetensors']},
    cmdclass=dict(build_py=BuildWithExperiments),
    classifiers=[
        'Development Status :: 3 - Alpha',
        'Intended Audience :: Science/Research',
        'Operating System :: OS Independent',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3 :: Only',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Typing :: Typed',
    ],
    zip_safe=False,
)
