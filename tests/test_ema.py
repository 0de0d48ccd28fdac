"The average is the one of the formula, validation and files have it, and training does not notice it."
import pickle
from contextlib import suppress
from copy import deepcopy

import pytest
import torch
from fastai.callback.tracker import SaveModelCallback
from fastai.learner import load_learner
from fastai.vision.all import (SGD, Callback, CancelFitException, GradientAccumulation, Learner, get_model, load_model,
    nn)
from fastai_mix.callback.base import in_lr_find
from fastai_mix.callback.ema import EMA
from fastai_mix.callback.snapmix import SnapMix
from fastai_mix.checkpoint import resumable
from fastai_mix.vision.tta import d4
from helpers import CpuAutocast, CpuScaler, Record, Syncs, make_dls, toy_model

def values(model):
    "All weights and buffers that are no counts"
    return {k:v.detach().clone() for k,v in get_model(model).state_dict().items() if v.is_floating_point()}

def assert_equal(a, b):
    assert a.keys()==b.keys()
    for k in a: assert torch.equal(a[k], b[k]), k

def assert_near(a, b):
    assert a.keys()==b.keys()
    for k in a: torch.testing.assert_close(a[k], b[k], rtol=1e-4, atol=1e-6)

class Watch(Callback):
    "Keep all values after each step, and those of each validation"
    order = 90
    def __init__(self): self.raw,self.validated = [],[]
    def after_step(self):
        if not in_lr_find(self.learn): self.raw.append(values(self.learn.model))
    def before_validate(self): self.validated.append(values(self.learn.model))

def average(raw, decay):
    "The moving average with the warm-up of the decay, by hand"
    res = raw[0]
    for t,w in enumerate(raw, 1):
        d = min(decay, (1+t)/(10+t))
        res = {k: d*res[k]+(1-d)*w[k] for k in w}
    return res

@pytest.mark.parametrize('decay', [.2,.9,.999])
def test_average_by_hand(toy, decay):
    "Weights, and mean and variance of BatchNorm"
    learn = toy(cbs=[EMA(decay), watch := Watch()], lr=.05)
    learn.fit(3)
    steps = len(watch.raw)//3
    for i,found in enumerate(watch.validated, 1): assert_near(found, average(watch.raw[:i*steps], decay))
    assert_equal(values(learn.model), watch.validated[-1])

def find(learn): learn.lr_find(show_plot=False, num_it=12)

@pytest.mark.parametrize('fits', [
    lambda learn: learn.fit(3), lambda learn: (learn.fit(1), learn.fit(2)), lambda learn: (find(learn), learn.fit(2)),
    lambda learn: (learn.fit(1), find(learn), learn.fit(1)),
    lambda learn: (learn.fit(1), learn.validate(), learn.get_preds(), learn.fit(1)),
    lambda learn: learn.fine_tune(2)], ids=['one','two','find','find between','validate between','fine_tune'])
@pytest.mark.parametrize('cb', [None,SnapMix], ids=['plain','snapmix'])
def test_training_does_not_notice(toy, fits, cb):
    "Losses and raw weights are those of a training without it"
    both = []
    for ema in ([],[EMA(.9)]):
        learn = toy(cbs=[*([cb()] if cb else []), *ema, record := Record(), watch := Watch()], lr=.05, opt_func=SGD)
        with learn.no_bar(): fits(learn)
        both.append((record.losses[-4:], watch.raw))
    assert both[0][0]==both[1][0] and len(both[0][1])==len(both[1][1])
    for a,b in zip(*(o[1] for o in both)): assert_equal(a, b)

def test_files_and_predictions_have_the_average(toy, tmp_path):
    "SaveModelCallback, `save`, `export`, predictions over views"
    cbs = [EMA(.9), watch := Watch(), SaveModelCallback(every_epoch=True)]
    learn = Learner(make_dls(16), toy_model(2), cbs=cbs, path=tmp_path, lr=.05)
    with learn.no_bar(), learn.no_logging(): learn.fit(2)
    for i in range(2):
        saved = toy_model(2)
        load_model(tmp_path/'models'/f'model_{i}.pth', saved, None)
        assert_equal(values(saved), watch.validated[i])
    learn.remove_cbs([watch, learn.save_model])
    with learn.no_bar(): preds = learn.get_preds()[0]
    learn.export('net.pkl')
    loaded = load_learner(tmp_path/'net.pkl')
    assert_equal(values(loaded.model), watch.validated[-1])
    assert loaded.ema.spare is None
    with loaded.no_bar(): torch.testing.assert_close(loaded.get_preds(dl=learn.dls.valid)[0], preds)
    with learn.no_bar(): views = learn.tta_views(views=d4)[0]
    assert_equal(values(learn.model), watch.validated[-1])
    with torch.no_grad(): by_hand = learn.model.eval()(next(iter(learn.dls.valid))[0]).softmax(1)
    torch.testing.assert_close(preds[:len(by_hand)], by_hand)
    assert views.shape==preds.shape

def test_start(toy):
    "Nothing is averaged before it; each fit has an average of its own"
    learn = toy(cbs=[EMA(.9, start=.5), watch := Watch()], lr=.05)
    learn.fit(4)
    steps = len(watch.raw)//4
    assert_equal(watch.validated[1], watch.raw[2*steps-1])
    assert_near(watch.validated[3], average(watch.raw[2*steps:], .9))
    watch.raw.clear(), watch.validated.clear()
    learn.fit(2)
    assert_equal(watch.validated[0], watch.raw[steps-1])
    assert_near(watch.validated[1], average(watch.raw[steps:], .9))
    learn = toy(cbs=[EMA(start=1.), watch := Watch()])
    learn.fit(1)
    assert_equal(values(learn.model), watch.raw[-1])

def test_changed_between_fits(toy, tmp_path):
    "After `load` both begin anew"
    learn = toy(cbs=[EMA(.9), watch := Watch()], path=tmp_path, lr=.05, opt_func=SGD)
    learn.save('first')
    learn.fit(2)
    watch.raw.clear(), watch.validated.clear()
    learn.load('first')
    first = values(learn.model)
    seen = []
    class Begin(Callback):
        def before_batch(self): seen.append(values(self.learn.model))
    learn.fit(1, cbs=Begin())
    assert_equal(seen[0], first)
    assert_near(watch.validated[0], average(watch.raw, .9))

class Interrupt(Callback):
    "Raise in the third batch"
    order,run_valid = 95,False
    def __init__(self, ex): self.ex = ex
    def after_batch(self):
        if self.iter==2: raise self.ex

def test_interrupted(toy, tmp_path):
    "The model has its raw weights, and a fit goes on with both; after `load` nothing old comes back"
    learn = toy(cbs=[EMA(.9), watch := Watch()], path=tmp_path, lr=.05)
    learn.save('first')
    first = values(learn.model)
    with suppress(KeyboardInterrupt): learn.fit(1, cbs=Interrupt(KeyboardInterrupt))
    assert len(watch.raw)==3
    assert_equal(values(learn.model), watch.raw[-1])
    copy = deepcopy(watch.raw)
    learn.validate()
    assert_near(watch.validated[-1], average(copy, .9))
    assert_equal(values(learn.model), copy[-1])
    for cb in [*learn.cbs.filter(lambda o: isinstance(o, Interrupt))]: learn.remove_cb(cb)
    learn.fit(1)
    assert_near(values(learn.model), average(watch.raw, .9))
    with suppress(KeyboardInterrupt): learn.fit(1, cbs=Interrupt(KeyboardInterrupt))
    learn.load('first')
    learn.validate()
    assert_equal(watch.validated[-1], first)
    assert_equal(values(learn.model), first)

def test_cancelled_fit_ends_with_the_average(toy):
    learn = toy(cbs=[EMA(.9), watch := Watch(), Interrupt(CancelFitException)], lr=.05)
    learn.fit(1)
    assert_near(values(learn.model), average(watch.raw, .9))

def test_validation_within_an_epoch(toy):
    "It has the average, and the next batch the raw weights"
    class Inner(Callback):
        run_valid,order = False,92
        def after_batch(self):
            if self.iter==1:
                old = self.learn.pred,self.learn.loss,self.learn.iter,self.learn.dl,self.learn.xb,self.learn.yb
                self.learn.get_preds(inner=True)
                self.learn.pred,self.learn.loss,self.learn.iter,self.learn.dl,self.learn.xb,self.learn.yb = old
                self.model.train()
                found.append(values(self.learn.model))
    found = []
    learn = toy(cbs=[EMA(.9), watch := Watch(), Inner()], lr=.05)
    learn.fit(1)
    assert_near(watch.validated[0], average(watch.raw[:2], .9))
    weights,raw = ({k:v for k,v in o.items() if 'running' not in k} for o in (found[0],watch.raw[1]))
    assert_equal(weights, raw)

def test_only_steps_count(toy):
    learn = toy(cbs=[EMA(.9), GradientAccumulation(16)], bs=8, n=32)
    learn.fit(1)
    assert learn.ema.n_steps==2

def test_half_precision_weights(toy):
    "The average of bfloat16 weights is kept in float32"
    learn = toy(cbs=[EMA(.99)], model=toy_model().bfloat16(), lr=.05, opt_func=SGD)
    class Cast(Callback):
        def before_batch(self): self.learn.xb = (self.x.bfloat16(),)
        def after_pred(self): self.learn.pred = self.pred.float()
    learn.fit(2, cbs=Cast())
    assert {t.dtype for t in learn.ema.spare}=={torch.float32} and next(learn.model.parameters()).dtype==torch.bfloat16

@pytest.mark.parametrize('precision', [CpuAutocast,CpuScaler])
def test_mixed_precision(toy, precision):
    learn = toy(cbs=[EMA(.9), watch := Watch(), precision()], lr=.05)
    learn.fit(1)
    assert_near(values(learn.model), average(watch.raw, .9))

def test_host_waits_for_nothing(toy):
    learn = toy(cbs=EMA())
    learn.fit(1)
    with Syncs() as s: learn.ema.after_step()
    assert not s.n

@pytest.mark.parametrize('start', [0.,.4])
def test_resumed_to_the_bit(toy, tmp_path, start):
    class Kill(Callback):
        order,run_valid = 95,False
        def before_batch(self):
            if killed and self.epoch==1 and self.iter==1: raise KeyboardInterrupt
    def make(): return toy(cbs=[EMA(.9, start), Kill()], lr=.05, seed=1)
    killed = []
    def fit(learn):
        with resumable(learn, tmp_path/'ckpt'): learn.fine_tune(3)
    whole = make()
    whole.fine_tune(3)
    killed.append(True)
    with suppress(KeyboardInterrupt): fit(make())
    killed.clear()
    fit(learn := make())
    assert_equal(values(learn.model), values(whole.model))
    assert learn.ema.in_model and all(torch.equal(a, b) for a,b in zip(learn.ema.spare, whole.ema.spare))
    assert learn.ema.n_steps==whole.ema.n_steps

def test_state_of_another_network(toy):
    learn,other = toy(cbs=EMA()),toy(cbs=EMA(), model=nn.Sequential(nn.Flatten(), nn.Linear(3*16*16, 3)))
    learn.fit(1)
    with pytest.raises(ValueError, match='another network'): other.ema.load_state_dict(learn.ema.state_dict())

def test_one_and_two_processes(in_processes):
    "Both average what one process does"
    one,two = in_processes('''
from fastai_mix.callback.ema import EMA
learn = Learner(dls, model, loss_func=CrossEntropyLossFlat(), cbs=EMA(.9), opt_func=SGD, lr=.1)
fit(learn, 1)
fit(learn, 1)
total = sum(p.double().abs().sum() for p in model.parameters()).item()
raw = sum(p.double().abs().sum() for p in learn.ema.spare).item()
os.write(1, f"OUT {world} {total:.6f} {raw:.6f} {learn.ema.n_steps}\\n".encode())
''', 1, 2)
    assert [o[0] for o in one+two]==['1','2','2'] and two[0]==two[1] and two[0][3]==one[0][3]
    assert all(abs(float(a)-float(b))<1e-3 for a,b in zip(one[0][1:3], two[0][1:3]))

def test_pickled(toy):
    learn = toy(cbs=EMA(.9))
    learn.fit(1)
    learn.remove_cb(cb := learn.ema)
    cb = pickle.loads(pickle.dumps(cb))
    assert (cb.decay,cb.start,cb.spare,cb.in_model)==(.9,0.,None,False)

@pytest.mark.parametrize('kwargs', [
    dict(decay=0), dict(decay=1.), dict(decay=float('nan')), dict(decay='a'), dict(start=-1), dict(start=2)])
def test_wrong_arguments(kwargs):
    with pytest.raises(ValueError, match=f'{next(iter(kwargs))}=.*: expected a number'): EMA(**kwargs)
