"Names of settings, and the recipe."
import json
from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from fastai.vision.all import vision_learner
from fastai_mix.callback.choice import MixChoice
from fastai_mix.recipe import best_rate, best_setting, make_setting, read_setting, recipe, recipe_evidence, setting_name
from helpers import make_dls

names = 'snapmix','cutmix','mixup','resizemix','gridmask'

@given(st.lists(st.sampled_from(names), unique=True), st.booleans())
def test_a_name_is_read_as_it_is_written(mixes, echo):
    echo = echo and any(o!='gridmask' for o in mixes)
    mix = ','.join(mixes) or 'none'
    name = setting_name(mix, echo)
    assert read_setting(name)==(mix,echo)
    cbs = make_setting(name)
    assert any(getattr(o, 'echo', False) for o in cbs)==echo
    assert isinstance(cbs[0], MixChoice)==(len([o for o in mixes if o!='gridmask'])>1) if cbs else not mixes

@pytest.mark.parametrize('name', ['', 'none', 'echo', '-echo', 'plain-echo', 'snapmix,cutmix', 'mixup++cutmix', 'MixUp',
    'mixup-echo-echo', 'gridmask-echo', 'recipe-echo'])
def test_what_is_no_setting(name):
    with pytest.raises(ValueError, match='setting'): make_setting(name)

def test_new_callbacks_each_time():
    a,b = (make_setting('snapmix-echo') for _ in range(2))
    assert a[0] is not b[0]

def test_the_recipe_is_arguments_of_a_learner():
    for pretrained in (False,True):
        for epochs in (1,10,19,20,100):
            args = recipe(None, pretrained, epochs)
            assert [type(o) for o in args['cbs']]==[type(o) for o in make_setting(best_setting(pretrained, epochs))]
            assert args['lr']==best_rate(pretrained)
    with pytest.raises(ValueError, match='epochs'): recipe(None, epochs=0)
