"Schedules: edge values, pickle and export, arguments that make no sense."
import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch
from fastai.vision.all import Callback, L, load_learner, vision_learner
from fastai_mix.callback.mix import CutMix
from fastai_mix.callback.mix import off_last as off_last_of_mix, ramp as ramp_of_mix
from fastai_mix.data.leaves import leaf_data, leaf_dls
from fastai_mix.schedule import off_last, ramp

@pytest.mark.parametrize('start,end', [(0,1), (1,0), (.1,.7), (.5,.5), (0,0), (1,1)])
@pytest.mark.parametrize('until', [5e-324, .25, .8, 1, 1., np.float32(.5), Fraction(1, 3)])
def test_ramp(start, end, until):
    r = ramp(start, end, until)
    values = [float(r(t)) for t in (0, 1e-9, .1, .3, .5, .9, 1-1e-9, 1)]
    assert np.allclose([values[0],values[-1],r(until),r((float(until)+1)/2)], [start,end,end,end], atol=1e-6)
    assert ramp(start, end, float(until))(1)==end # exact
    low,high = sorted((start,end))
    assert all(low-1e-6<=v<=high+1e-6 for v in values) # a chance throughout
    assert np.allclose(values, sorted(values, reverse=end<start), atol=1e-6)
    if until>1e-9: assert abs(r(until/2)-(start+end)/2)<1e-6

@pytest.mark.parametrize('args,name', [((-.1,1),'start'), ((0,1.1),'end'), ((math.nan,1),'start'), ((0,None),'end'),
    ((0,'1'),'end'), ((0,1,0),'until'), ((0,1,-1),'until'), ((0,1,1.01),'until'), ((0,1,math.nan),'until')])
def test_wrong_ramps(args, name):
    with pytest.raises(ValueError, match=f'^{name}='): ramp(*args)

@pytest.mark.parametrize('share,p,t,want', [(.1,1.,0,1), (.1,1.,.89,1), (.1,1.,.9,0), (.1,1.,1,0), (0,.5,.999,.5),
    (0,.5,1,0),
    (1,.5,0,0), (1,.5,.5,0), (.25,.3,.7499,.3), (.25,.3,.75,0), (.5,0,.1,0)])
def test_off_last(share, p, t, want): assert off_last(share, p)(t)==want

@pytest.mark.parametrize('kwargs', [dict(share=-.1), dict(share=1.1), dict(share=None), dict(p=-1), dict(p=2),
    dict(p=math.nan)])
def test_wrong_off_last(kwargs):
    with pytest.raises(ValueError, match=f'^{next(iter(kwargs))}='): off_last(**kwargs)

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('p', [ramp(.1, .7, until=.5), off_last(.3, .6)], ids=repr)
def test_pickle_and_export(p, tmp_path):
    back = pickle.loads(pickle.dumps(p))
    assert repr(back)==repr(p) and [back(t) for t in (0,.2,.69,.7,1)]==[p(t) for t in (0,.2,.69,.7,1)]
    learn = vision_learner(leaf_dls(leaf_data(tmp_path/'data', n=40, size=64), size=32, bs=8), 'test_resnet',
        pretrained=False, cbs=CutMix(p=p), path=tmp_path)
    learn.export('e.pkl')
    loaded = load_learner(tmp_path/'e.pkl')
    assert repr(loaded.cut_mix.p)==repr(p) and loaded.cut_mix.p(0)==p(0)

def test_both_paths_give_the_same_classes(): assert ramp_of_mix is ramp and off_last_of_mix is off_last

class Rates(Callback):
    "The learning rates of every step, a list for each parameter group"
    order = 60
    def before_fit(self): self.all = []
    def before_step(self): self.all.append([h['lr'] for h in self.opt.hypers])

def rates(toy, lr=.1, n_epoch=5, **kwargs):
    learn = toy(cbs=Rates(), n=32, splitter=lambda m: L(m[:4], m[4:]).map(lambda o: list(o.parameters())))
    learn.fit_warmup_cos(n_epoch, lr, **kwargs)
    return learn,np.array(learn.rates.all)

def test_warm_up_along_a_power_then_a_cosine(toy):
    learn,r = rates(toy)
    n = len(r) # 20 steps, 2 of them warm up
    def by_hand(t):
        if t<.1: return .001+(.1-.001)*(t/.1)**2.5
        return 1e-6+(.1-1e-6)*(1+math.cos(math.pi*(t-.1)/.9))/2
    assert n==20 and np.allclose(r[:,0], [by_hand(i/n) for i in range(n)], rtol=1e-6)
    assert (r[:,0]==r[:,1]).all() and r.argmax()//2==2 and (np.diff(r[2:,0])<0).all()

@pytest.mark.parametrize('pct_warmup', [0, 1, 0., 1.])
def test_no_warm_up_and_nothing_else(pct_warmup, toy):
    _,r = rates(toy, pct_warmup=pct_warmup)
    steps = np.diff(r[:,0])
    assert np.isfinite(r).all() and ((steps<0).all() if pct_warmup==0 else (steps>0).all())
    assert abs(r[0,0]-(.1 if pct_warmup==0 else .001))<1e-9

def test_a_slice_of_rates(toy):
    _,r = rates(toy, slice(.01,.1))
    assert np.allclose(r[:,1]/r[:,0], 10)

def test_the_learners_own_rate(toy):
    learn,r = rates(toy, None)
    assert abs(r.max()-learn.lr)<1e-9

@pytest.mark.parametrize('value', [-.1, 1.1, None, math.nan, '.1'])
def test_wrong_warm_ups(value, toy):
    learn = toy()
    before = [p.detach().clone() for p in learn.model.parameters()]
    with pytest.raises(ValueError, match='^pct_warmup=.*expected a number from 0 to 1'):
        learn.fit_warmup_cos(1, pct_warmup=value)
    assert all(torch.equal(a, b) for a,b in zip(before, learn.model.parameters()))

def test_callbacks_of_one_fit_and_a_start_epoch(toy):
    learn,cb = toy(),Rates()
    learn.fit_warmup_cos(2, .1, cbs=cb, start_epoch=1)
    assert len(cb.all)==len(learn.dls.train) and cb not in learn.cbs
