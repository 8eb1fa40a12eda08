"Package metadata, read from settings.ini; the experiment notebooks travel inside the package."
import shutil
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

root = Path(__file__).parent
config = ConfigParser(delimiters=['='], interpolation=None)
config.read(root/'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']
extras = {k.removesuffix('_requirements'): v.split() for k, v in cfg.items() if k.endswith('_requirements')}
extras['dev'] += extras['runs'] + extras['download']


class BuildWithExperiments(build_py):
    "Copies nbs/90_experiments to disent_nb/experiments in the built package, so that `disent-nb run` works without a checkout."

    def run(self):
        super().run()
        if self.editable_mode: return
        target = Path(self.build_lib)/cfg['lib_path']/'experiments'
        shutil.copytree(root/cfg['nbs_path']/'90_experiments', target, dirs_exist_ok=True,
                        ignore=shutil.ignore_patterns('.*'))


setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'],
    author=cfg['author'], author_email=cfg['author_email'], url=cfg['git_url'], license='Apache-2.0',
    long_description=(root/'README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    packages=find_packages(include=[cfg['lib_path'], cfg['lib_path'] + '.*']),
    python_requires='>=' + cfg['min_python'], install_requires=cfg['requirements'].split(), extras_require=extras,
    entry_points=dict(console_scripts=cfg['console_scripts'].split()), cmdclass=dict(build_py=BuildWithExperiments),
    classifiers=['Programming Language :: Python :: 3', 'Topic :: Scientific/Engineering :: Artificial Intelligence'],
    zip_safe=False,
)
