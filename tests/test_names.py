"Names of the package: `fastai_mix.NAME`, and fastai's names that hide ours."
import pickle
import subprocess
import sys
import warnings

import pytest
from fastai.callback import mixup as of_fastai
from fastai.vision.all import *
import fastai_mix
import fastai_mix.all as ours
from fastai_mix.callback import base
from fastai_mix.callback.gridmask import GridMask

for name in [k for k in globals() if k.startswith('test')]: del globals()[name] # fastcore's, which pytest would collect

def in_new_process(code):
    out = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, timeout=300)
    assert not out.returncode, out.stderr
    return out.stdout.split()

def test_every_public_name_is_there():
    modules = {'review','recipe','compare'} # a module wins over a function of its name
    public = {k for k in vars(ours) if not k.startswith('_')}
    assert len(public)>100 and public<=set(dir(fastai_mix))
    for k in public-modules: assert getattr(fastai_mix, k) is getattr(ours, k)
    for k in modules: assert getattr(fastai_mix, k).__name__==f'fastai_mix.{k}'

def test_the_package_is_imported_when_it_is_needed():
    code = """import sys, fastai_mix
print('torch' in sys.modules, fastai_mix.__version__)
{}
print('torch' in sys.modules)"""
    assert in_new_process(code.format('hasattr(fastai_mix, "__wrapped__")'))==['False',fastai_mix.__version__,'False']
    assert in_new_process(code.format('fastai_mix.args'))[-1]=='False' # one module is imported alone
    assert in_new_process('from fastai_mix import MixUp; print(MixUp.__module__)')==['fastai_mix.callback.mix']

def test_a_module_without_an_import():
    assert in_new_process('import fastai_mix; print(fastai_mix.schedule.__name__)')==['fastai_mix.schedule']

@pytest.mark.parametrize('name', ['Mixup','nothing','_hidden','__wrapped__'])
def test_a_name_that_is_not_there(name):
    with pytest.raises(AttributeError, match=f"module 'fastai_mix' has no attribute {name!r}"):
        getattr(fastai_mix, name)
    with pytest.raises(ImportError): exec(f'from fastai_mix import {name}', {})

@pytest.fixture
def user(monkeypatch):
    "Names of the script that runs, after both packages were imported, fastai last"
    monkeypatch.setattr(base, '_warned', set())
    # a notebook that ran in this process may have set its own
    monkeypatch.setattr(of_fastai.MixHandler, 'before_fit', base.before_fit_of_mix)
    main = sys.modules['__main__']
    for k in ('SnapMix','MixUp','CutMix'): monkeypatch.setattr(main, k, getattr(ours, k), raising=False)
    def give(**names):
        for k,v in names.items(): monkeypatch.setattr(main, k, v)
    give(MixUp=of_fastai.MixUp, CutMix=of_fastai.CutMix)
    return give

def warned(learn):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter('always')
        learn.fit(1)
    return [str(o.message) for o in found if 'fastai_mix' in str(o.message)]

def test_a_hidden_mix_is_named_once(toy, user):
    message, = warned(toy(cbs=of_fastai.MixUp())) # with no callback of this package
    assert message.startswith("MixUp of this Learner is fastai's") and '`fastai_mix.MixUp`' in message
    assert not warned(toy(cbs=[of_fastai.MixUp(), GridMask()]))
    message, = warned(toy(cbs=[of_fastai.CutMix(), GridMask()]))
    assert '`fastai_mix.CutMix`' in message

def test_a_mix_of_fastai_that_hides_nothing(toy, user):
    both = lambda: toy(cbs=[of_fastai.MixUp(), GridMask()])
    user(MixUp=ours.MixUp) # imported in the right order; fastai's was given another name
    assert not warned(both())
    user(MixUp=of_fastai.MixUp, SnapMix=None) # names of this package were not imported
    assert not warned(both())
    user(SnapMix=ours.SnapMix)
    assert not warned(toy(cbs=[GridMask()])) and len(warned(both()))==1

def test_a_mix_of_fastai_is_pickled_without_this_package():
    assert b'fastai_mix' not in pickle.dumps(of_fastai.MixUp())

def test_without_the_import_of_all(toy, user, monkeypatch):
    monkeypatch.delitem(sys.modules, 'fastai_mix.all')
    assert not warned(toy(cbs=[of_fastai.MixUp(), GridMask()]))
