"What tells one setting from another, in any process. (`test_checkpoint.py` tests it on resumed fits.)"
import os
import subprocess
import sys
from enum import Enum
from pathlib import Path

import numpy as np
import pytest
import torch
from fastai.vision.all import L, nn, partial
from torch.distributions import Normal
from fastai_mix.callback.choice import MixChoice
from fastai_mix.callback.mix import CutMix, MixUp, ramp
from fastai_mix.describe import callback_arguments, describe, in_short, numbered, plain_settings

class Color(Enum): red = 1

class Empty: pass

class Holder:
    def __init__(self, **kwargs): vars(self).update(kwargs)

@pytest.mark.parametrize('value,text', [
    (float('nan'), 'nan'), (None, None), (True, True), (Path('a/b'), 'a/b'), (np.float64(.5), .5),
    (np.arange(3), [0,1,2]), (L(1,'a'), [1,'a']), ({'b','a'}, ['a','b']), ({1: (2,)}, {'1': [2]}),
    (Color.red, 'Color.red'), (Empty, 'Empty'),
    (Empty(), 'Empty'), (Holder(a=1, b=[2]), 'Holder(a=1, b=[2])'), (Normal(0., 1.), 'Normal(loc=0.0, scale=1.0)'),
    (torch.zeros(2), [0.,0.]), (nn.Parameter(torch.zeros(2)), 'Parameter [2]'), (CutMix(), 'cut_mix')], ids=lambda o: type(o).__name__)
def test_describe(value, text): assert describe(value)==text

def test_an_object_inside_itself():
    o = Holder(a=1)
    o.me = [o]
    assert describe(o)=="Holder(a=1, me=['Holder'])"

def test_large_tensors_by_all_their_numbers():
    a,b = torch.zeros(100),torch.zeros(100)
    b[50] = 1
    assert describe(a)==describe(a.clone())!=describe(b) and describe(a).startswith('[100] [')

def test_layers_by_their_names():
    layer = nn.Linear(2, 2)
    assert describe([layer], layers={layer: 'head.1'})==['head.1']

def test_another_process_says_the_same():
    "Order of sets and addresses do not count"
    code = """from fastai_mix.describe import describe
print(describe(lambda x: x in {'a','b','c','d'} or x.y), describe({'p','q','r'}))"""
    said = {subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, check=True,
        env=dict(os.environ, PYTHONHASHSEED=seed)).stdout for seed in '12'}
    assert len(said)==1 and next(iter(said)).startswith('<lambda> [')

def test_callbacks_inside_callbacks():
    cb = MixChoice([CutMix(alpha=.3), MixUp(p=ramp(0,.5))])
    args,plain = dict(callback_arguments(cb, 'choice', {})),dict(plain_settings(cb, 'choice'))
    assert args['choice.mixes']==['cut_mix','mix_up'] and args['choice.0.cut_mix.alpha']==.3
    assert args['choice.1.mix_up.p']=='ramp(start=0, end=0.5, until=1.0)'
    assert plain['choice.0.cut_mix.alpha']==.3 and 'ramp(start=0' in plain['choice.1.mix_up.p']

def test_partials_and_long_texts():
    assert describe(partial(max, 1, key=abs))==['<built-in function max>', [1], {'key': '<built-in function abs>'}]
    assert in_short('a'*200)=='a'*200 and len(in_short('a'*201))<100 and in_short('a'*201)!=in_short('a'*202)
    assert numbered([('a',1), ('a',2), ('a_2',3)])=={'a':1, 'a_2':2, 'a_2_2':3}
