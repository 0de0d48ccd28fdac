"Passes what `settings.ini` says about the package on to setuptools; everything else is in `pyproject.toml`."
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup

cfg = ConfigParser(delimiters=['='])
cfg.read(Path(__file__).parent/'settings.ini', encoding='utf-8')
cfg = cfg['DEFAULT']

def lines(key): return cfg[key].strip().splitlines()

setup(
    author=cfg['author'],
    license=cfg['license'],
    keywords=cfg['keywords'].split(),
    classifiers=[f"Development Status :: {cfg['status']}", 'Framework :: Jupyter', 'Intended Audience :: Science/Research',
                 'Programming Language :: Python :: 3', 'Topic :: Scientific/Engineering :: Artificial Intelligence'],
    install_requires=lines('requirements'),
    extras_require={'dev': lines('dev_requirements')},
    entry_points={'console_scripts': ['fastai-mix=fastai_mix.launch:main','fastai-mix-predict=fastai_mix.launch:predict',
        'fastai-mix-review=fastai_mix.launch:review'], 'nbdev': ['fastai_mix=fastai_mix._modidx:d']},
)
