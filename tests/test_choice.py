"How a choice draws among its mixes, and what it refuses."
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fastai.callback.mixup import MixUp as FastaiMixUp
from fastai_mix.callback.choice import MixChoice
from fastai_mix.callback.gridmask import GridMask
from fastai_mix.callback.mix import CutMix, MixUp, off_last
from fastai_mix.callback.snapmix import SnapMix
from helpers import Record

def test_chances_of_a_choice_that_run_out(toy):
    learn = toy(cbs=[MixChoice([CutMix(),MixUp()], [off_last(.5), off_last(.5)]), Record()])
    learn.fit(2)
    assert len(learn.record.losses)==8 and len(learn.record.seen)==4
    learn = toy(cbs=MixChoice([CutMix(),None], [lambda t: -1, 2]))
    with pytest.raises(ValueError, match='p gives .-1, 2. when 0% of training is done'): learn.fit(1)

def test_a_choice_of_one_and_a_p_that_is_none(toy):
    toy(cbs=MixChoice(CutMix())).fit(1)
    with pytest.raises(ValueError, match='a number or function for each mix, such as .1, 1.'):
        MixChoice([CutMix(),MixUp()], p=.5)
    assert MixChoice([CutMix(),MixUp()], np.array([1,2])).weights==[1,2]

def test_a_choice_inside_a_choice():
    with pytest.raises(ValueError, match='list its mixes in the outer one'):
        MixChoice([MixChoice([SnapMix(), CutMix()]), None])

wrong = {
    'a mix of fastai': (lambda: MixChoice([CutMix(), FastaiMixUp()]),
    'fastai.callback.mixup.MixUp is no callback of fastai_mix'),
    'a number': (lambda: MixChoice([CutMix(), 3]), 'builtins.int is no callback'),
    'nothing but None': (lambda: MixChoice([None, None]), 'at least one that changes a batch'),
    'no mix': (lambda: MixChoice([]), 'at least one that changes a batch'),
    'too few weights': (lambda: MixChoice([CutMix(), None], p=[1]), 'p has 1 values for 2 mixes'),
    'below 0': (lambda: MixChoice([CutMix(), None], p=[2,-1]), r'p=\[2, -1\]: expected numbers from 0 up'),
    'all 0': (lambda: MixChoice([CutMix(), None], p=[0,0]), 'one of them above 0'),
    'no numbers': (lambda: MixChoice([CutMix(), None], p=['a','b']), 'expected numbers from 0 up'),
    'NaN': (lambda: MixChoice([CutMix(), None], p=[1,float('nan')]), 'expected numbers from 0 up'),
    'an echo inside': (lambda: MixChoice([SnapMix(echo=True), None]), r'use MixChoice\(..., echo=True\)'),
}
@pytest.mark.parametrize('name', wrong)
def test_wrong_arguments(name):
    make,message = wrong[name]
    with pytest.raises(ValueError, match=message): make()

def test_a_weight_of_0_is_never_chosen_and_functions_may_be():
    choice = MixChoice([CutMix(), MixUp(), GridMask(p=1)], p=[1, 0, lambda t: t])
    for t,wanted in ((0., {0}), (1., {0,2})):
        choice.learn = SimpleNamespace(pct_train=t)
        chosen = set()
        for _ in range(60): chosen |= {choice.chosen_index} if choice.draw() else set()
        assert chosen==wanted

def test_a_new_batch_clears_all_mixes(toy):
    "What describes a batch is never that of an earlier one"
    learn = toy(cbs=MixChoice([CutMix(), SnapMix()]))
    choice = learn.mix_choice
    choice.before_fit()
    x,y = learn.dls.train.one_batch()
    for i,m in enumerate(choice.mixes):
        choice.clear()
        choice.chosen_index = i
        choice.change(x, y)
        assert choice.chosen is m and torch.equal(choice.w, m.w) and torch.equal(choice.box, m.box)
        assert all(o.w is None for o in choice.mixes if o is not m)
    choice.clear()
    assert choice.chosen is None and choice.w is None and all(o.w is None for o in choice.mixes)
