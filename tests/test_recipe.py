"Names of settings, and the recipe."
import json
import sys
from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from fastai.vision.all import vision_learner
from fastai_mix.callback.choice import MixChoice
from fastai_mix.recipe import best_rate, best_setting, make_setting, read_setting, recipe, recipe_evidence, setting_name
from helpers import make_dls

bench = Path(__file__).parent.parent/'benchmarks'
sys.path.insert(0, str(bench))

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

@pytest.mark.parametrize('pretrained,epochs,regime', [(True,10,'pretrained'), (True,40,'pretrained'), (False,20,'scratch')])
def test_the_recipe_is_what_the_rule_picks(pretrained, epochs, regime):
    "From the results that the page shows, over the sets on which a mix was compared"
    from recipe import choose
    lines = [json.loads(o) for o in (bench/'results'/'recipe.jsonl').read_text().splitlines()]
    chosen, = [o for o in choose(lines) if (o['regime'],o['epochs'])==(regime,epochs)]
    assert best_setting(pretrained, epochs)==chosen['winner']
    n_sets = max(len(o['by_set']) for o in chosen['rows'] if o['mix']!='plain')
    assert f'over the {n_sets} sets measured' in recipe_evidence(pretrained, epochs)

def test_the_rates_are_those_that_lose_least():
    from recipe import rate_table, regimes
    lines = [json.loads(o) for o in (bench/'results'/'recipe.jsonl').read_text().splitlines()]
    for regime in ('pretrained','scratch'):
        tables = [t['accuracy'] for t in rate_table(lines) if t['regime']==regime]
        lost = {k: sum(max(t.values())-t[k] for t in tables) for k in tables[0]}
        assert len(tables)==5 and best_rate(regime=='pretrained')==float(min(lost, key=lost.get))==regimes[regime]['lr']
