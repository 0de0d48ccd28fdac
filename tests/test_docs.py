"Every public name says what its parameters are."
import inspect
from importlib import import_module

import pytest
from fastai.learner import Learner
from fastcore.docments import docments
from fastcore.nbio import read_nb
from nbdev.doclinks import nbglob
from fastai_mix import _modidx

def public():
    "Functions and classes of the modules' `__all__`, their own methods, and those added to `Learner`"
    for mod,syms in _modidx.d['syms'].items():
        m = import_module(mod)
        for full in syms:
            name,*rest = full[len(mod)+1:].split('.')
            if name=='Learner' and rest and not rest[0].startswith('_'): yield full,getattr(Learner, rest[0])
            if name not in m.__all__ or any(o.startswith('_') for o in rest): continue
            o = getattr(m, name)
            if type(o).__name__=='Function': continue # added to a function of fastai
            # fastai's events and hooks
            if rest and (rest[-1].startswith(('before_','after_')) or rest[-1] in ('encodes','decodes','show')):
                continue
            if rest and any(rest[-1] in vars(b) for b in o.__mro__[1:]): continue
            yield full,getattr(o, rest[0]) if rest else o

def own(o):
    "Whether the parameters of `o` are written in this package"
    return getattr(o.__init__ if inspect.isclass(o) else o, '__module__', '').startswith('fastai_mix')

@pytest.mark.parametrize('name,o', [pytest.param(*o, id=o[0]) for o in public()])
def test_parameters_are_told(name, o):
    assert inspect.getdoc(o), f'{name} has no docstring'
    if isinstance(o, property) or not callable(o) or not own(o): return
    stars = {k for k,v in inspect.signature(o).parameters.items() if v.kind in (v.VAR_POSITIONAL, v.VAR_KEYWORD)}
    missing = [k for k,v in docments(o, full=True, returns=False).items()
        if k not in ('self', *stars) and not v['docment']]
    assert not missing, f'{name}: no docment for {missing}'

def test_first_cells_hold_the_title_alone():
    "nbdev makes front matter of the first cell, and of anything else in it nothing"
    bad = []
    for p in nbglob(as_path=True):
        c = next(c for c in read_nb(p).cells if c.cell_type=='markdown')
        if [o for o in c.source.splitlines() if o.strip() and not o.startswith(('# ','>'))]: bad.append(p.name)
    assert not bad
