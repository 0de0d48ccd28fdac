"Names of settings, and the recipe."
import inspect
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, strategies as st
from fastai.vision.all import Learner, vision_learner
from fastai_mix.callback.choice import MixChoice
from fastai_mix.callback.ema import EMA
from fastai_mix.callback.snapmix import SnapMix
from fastai_mix.recipe import (best_rates, best_setting, changes_pictures, has_mix, make_mixes, make_setting,
    read_setting, recipe, recipe_evidence, setting_name)
from helpers import make_dls

bench = Path(__file__).parent.parent/'benchmarks'
sys.path.insert(0, str(bench))

mixing = 'snapmix','cutmix','mixup','resizemix','snapmix-early','manifold-early'
names = *mixing,'gridmask','ema'

@given(st.lists(st.sampled_from(names), unique=True), st.booleans())
def test_a_name_is_read_as_it_is_written(mixes, echo):
    echo = echo and any(o in mixing for o in mixes)
    mix = ','.join(mixes) or 'none'
    name = setting_name(mix, echo)
    assert read_setting(name)==(mix,echo)
    cbs = make_setting(name)
    assert any(getattr(o, 'echo', False) for o in cbs)==echo and any(isinstance(o, EMA) for o in cbs)==('ema' in mixes)
    assert changes_pictures(mix)==bool({*mixes}-{'ema'})
    assert isinstance(cbs[0], MixChoice)==(len([o for o in mixes if o in mixing])>1) if cbs else not mixes

@pytest.mark.parametrize('name', ['', 'none', 'echo', '-echo', 'plain-echo', 'snapmix,cutmix', 'mixup++cutmix', 'MixUp',
    'mixup-echo-echo', 'mixup-echo-early', 'early', '-early', 'plain-early', 'gridmask-early', 'gridmask-echo',
    'recipe-echo'])
def test_what_is_no_setting(name):
    with pytest.raises(ValueError, match='setting'): make_setting(name)

def test_early_mixes_in_the_first_half():
    mix,ema = make_setting('snapmix-early+ema')
    assert isinstance(mix, SnapMix) and isinstance(ema, EMA) and not mix.echo
    assert [mix.p(t) for t in (0,.25,.5,1)]==[1,1,0,0]
    cut, = make_mixes('cutmix-early', p=.3, echo=True)
    assert (cut.p(.1),cut.p(.9),cut.echo)==(.3,0,True)
    choice, = make_mixes('snapmix-early,mixup', alpha=3)
    assert choice.mixes[0].alpha==3 and choice.mixes[0].p(.6)==0 and choice.mixes[1].p==1
    assert has_mix('ema,mixup-early') and not has_mix('gridmask,ema') and changes_pictures('cutmix-early')

def test_new_callbacks_each_time():
    a,b = (make_setting('snapmix-echo') for _ in range(2))
    assert a[0] is not b[0]

def test_the_recipe_is_arguments_of_a_learner():
    for pretrained in (False,True):
        for epochs in (1,10,19,20,100):
            args = recipe(None, pretrained, epochs)
            assert [type(o) for o in args['cbs']]==[type(o) for o in make_setting(best_setting(pretrained, epochs))]
            assert args['lr']==best_rates(pretrained)['base_lr' if pretrained else 'lr_max']
    with pytest.raises(ValueError, match='epochs'): recipe(None, epochs=0)

@pytest.mark.parametrize('pretrained,epochs,regime', [(True,10,'pretrained'), (True,20,'pretrained'),
    (True,40,'pretrained'), (False,20,'scratch')])
def test_the_recipe_is_what_the_rule_picks(pretrained, epochs, regime):
    "From the results that the page shows, over the sets on which a mix was compared"
    from recipe import choose
    lines = [json.loads(o) for o in (bench/'results'/'recipe.jsonl').read_text().splitlines()]
    def count_sets(choice): return max(len(o['by_set']) for o in choice['rows'] if o['mix']!='plain')
    chosen = [o for o in choose(lines) if (o['regime'],o['epochs'])==(regime,epochs)]
    chosen = max(chosen, key=lambda o: (count_sets(o),o['of_recipe']))
    assert best_setting(pretrained, epochs)==chosen['winner']
    n_sets = count_sets(chosen)
    assert f'over the {n_sets} sets measured' in recipe_evidence(pretrained, epochs)

def test_the_rates_are_those_that_lose_least():
    from recipe import rate, rate_name, rate_table
    lines = [json.loads(o) for o in (bench/'results'/'recipe.jsonl').read_text().splitlines()]
    for regime in ('pretrained','scratch'):
        tables = [t['accuracy'] for t in rate_table(lines) if t['regime']==regime]
        lost = {k: sum(max(t.values())-t[k] for t in tables) for k in set.intersection(*map(set, tables))}
        lowest = min(lost, key=lost.get)
        assert len(tables)==5 and rate_name(SimpleNamespace(**rate(regime)))==lowest
        assert list(best_rates(regime=='pretrained').values())==list(rate(regime).values())

def test_the_rates_are_arguments_of_fastai():
    for pretrained,fit in ((True,Learner.fine_tune), (False,Learner.fit_one_cycle)):
        inspect.signature(fit).bind(None, 3, **best_rates(pretrained))
    best_rates()['base_lr'] = 1. # a dict of one's own
    assert best_rates()['base_lr']<1
