"Stopped at any moment and started again: the same weights, to the bit."
import inspect
import math
import pickle
import random
from collections import Counter, defaultdict
from contextlib import suppress
from copy import deepcopy

import cloudpickle
import numpy as np
import pytest
import torch
from fastai.callback.mixup import MixUp as FastaiMixUp
from fastai.callback.tracker import EarlyStoppingCallback, ReduceLROnPlateau, SaveModelCallback
from fastai.callback.training import GradientAccumulation, ShortEpochCallback
from fastai.optimizer import Lamb, Lookahead
from fastai.vision.all import (Adam, Callback, CrossEntropyLossFlat, F, FocalLossFlat, L,
    LabelSmoothingCrossEntropyFlat, OptimWrapper, RMSProp, SGD, accuracy,
    delegates, error_rate, nn, params, partial)
from torch.distributions import Beta, Normal
from fastai_mix.callback.branch import MidLevelBranch
from fastai_mix.callback.choice import MixChoice
from fastai_mix.callback.gridmask import GridMask
from fastai_mix.callback.manifold import ManifoldMixUp
from fastai_mix.callback.mix import CutMix, ramp
from fastai_mix.callback.plc import ProgressiveLabelCorrection
from fastai_mix.callback.resize import ProgressiveResize
from fastai_mix.callback.snapmix import SnapMix
from fastai_mix.checkpoint import learner_state, load_learner_state, load_state, resumable, save_state

class Stop(Callback):
    "Raise at the `at`th training batch of all fits, counted from where the process began"
    order = 100
    def __init__(self, at=None): self.at,self.seen = lambda: at,lambda: 0 # no plain data: not part of the state
    def before_batch(self):
        if not self.training or hasattr(self.learn, 'lr_finder'): return
        n = self.seen()+1
        self.seen = lambda: n
        if n==self.at(): raise KeyboardInterrupt

class Noise(Callback):
    "Generators of its own, and a state that is no plain data"
    def __init__(self):
        self.py,self.np,self.torch = random.Random(1),np.random.default_rng(1),torch.Generator().manual_seed(1)
        self.table = {frozenset([1]): 0.}
    def before_batch(self):
        if not self.training: return
        self.learn.xb = (self.x*(1+.1*self.py.random()) + .1*torch.rand(self.x.shape, generator=self.torch)
            + .01*self.table[frozenset([1])],)
        self.table[frozenset([1])] += self.np.random()
    def state_dict(self):
        return dict(t=self.table[frozenset([1])], py=self.py.getstate(), np=self.np.bit_generator.state,
            torch=self.torch.get_state())
    def load_state_dict(self, s):
        self.table[frozenset([1])] = s['t']
        self.py.setstate(s['py']); self.torch.set_state(s['torch']); self.np.bit_generator.state = s['np']

class Generators(Callback):
    "Generators as attributes"
    def __init__(self):
        self.py,self.np,self.torch = random.Random(1),np.random.default_rng(1),torch.Generator().manual_seed(1)
    def before_batch(self):
        if self.training:
            self.learn.xb = (self.x*(1+.1*self.py.random()+.1*self.np.random())
                + .1*torch.rand(self.x.shape, generator=self.torch),)

class Running(Callback):
    "NumPy numbers and dictionaries of other kinds as attributes, which training depends on"
    def __init__(self):
        self.mean,self.spread,self.n,self.seen = np.float64(.5),np.float64(.2),Counter(),defaultdict(list)
    def before_batch(self):
        if not self.training: return
        self.n[self.epoch] += 1
        self.seen[self.epoch].append(len(self.x))
        self.mean = np.float64(.9*self.mean+.1*self.x.mean().item()*self.n[self.epoch])
        self.spread = np.float64(.9*self.spread+.1*self.x.std().item())
        self.learn.xb = ((self.x-self.mean)/self.spread,)

class Thaw(Callback):
    "Train the body from the second epoch on"
    def before_epoch(self):
        if self.epoch==1: self.learn.unfreeze()

def thawed(learn):
    learn.freeze()
    learn.fit_one_cycle(3)

def lr_between(learn):
    learn.fit_one_cycle(2)
    with learn.no_bar(): lr = learn.lr_find(num_it=12, show_plot=False).valley
    learn.validate()
    learn.get_preds()
    learn.fit_flat_cos(2, lr)

def frozen_later(learn):
    learn.fit_one_cycle(2)
    learn.freeze() # gradients of the body are zero, but there: weight decay goes on
    learn.fit_one_cycle(2)

split = lambda m: L(m[:6],m[6:]).map(params)
cases = {
    'fine_tune':    (dict(splitter=split), lambda l: l.fine_tune(3)),
    'echo':         (dict(cbs=lambda: SnapMix(p=.7, echo=True)), lambda l: l.fit_one_cycle(3)),
    'resize':       (dict(cbs=lambda: [SnapMix(), ProgressiveResize(multiple_of=4)]), lambda l: l.fit_one_cycle(3)),
    'accumulate':   (dict(cbs=lambda: GradientAccumulation(20)), lambda l: l.fit_one_cycle(3)),
    'plateau':      (dict(cbs=lambda: ReduceLROnPlateau(patience=1, min_delta=1.)), lambda l: l.fit(4, 1e-2)),
    'early stop':   (dict(cbs=lambda: EarlyStoppingCallback(min_delta=1., patience=2)), lambda l: (l.fit(5), l.fit(2))),
    'best model':   (dict(cbs=lambda: SaveModelCallback('accuracy')), lambda l: (l.fit(3, 5e-2), l.fit(1))),
    'search':       (dict(), lr_between),
    'frozen later': (dict(splitter=split, wd=.1), frozen_later),
    'thaw':         (dict(splitter=split, cbs=Thaw), thawed),
    'torch AdamW':  (dict(opt_func=partial(OptimWrapper, opt=torch.optim.AdamW)), lambda l: l.fit_one_cycle(3)),
    'sgd':          (dict(opt_func=partial(SGD, mom=.9)), lambda l: l.fit_one_cycle(3)),
    'state_dict':   (dict(cbs=Noise), lambda l: l.fit_one_cycle(3)),
    'generators':   (dict(cbs=Generators), lambda l: l.fit_one_cycle(3)),
    'choice':       (dict(cbs=lambda: MixChoice([SnapMix(), CutMix(), None])), lambda l: l.fit_one_cycle(3)),
    'manifold':     (dict(cbs=ManifoldMixUp), lambda l: l.fit_one_cycle(3)),
    'manifold echo': (dict(cbs=lambda: MixChoice([ManifoldMixUp(), CutMix()], echo=True)),
        lambda l: l.fit_one_cycle(3)),
    'running':      (dict(cbs=Running), lambda l: l.fit_one_cycle(3)),
}

@pytest.fixture
def make(toy, tmp_path):
    def f(name, at=None, **more):
        kwargs = dict(cases[name][0], **more)
        cbs = kwargs.pop('cbs', lambda: [])
        return toy(cbs=[*L(cbs()), Stop(at)], metrics=accuracy, path=tmp_path/f'learner{at}', **kwargs)
    return f

def same(a, b):
    for k,v in a.model.state_dict().items(): assert torch.equal(v, b.model.state_dict()[k]), k
    assert [float(o) for o in a.recorder.losses]==[float(o) for o in b.recorder.losses]
    assert a.recorder.values==b.recorder.values and a.recorder.lrs==b.recorder.lrs
    assert a.recorder.iters==b.recorder.iters

@pytest.mark.parametrize('name', cases)
def test_resumed_equals_whole(name, make, tmp_path):
    fit = cases[name][1]
    whole = make(name)
    fit(whole)
    after = torch.rand(2),random.random(),np.random.rand()
    for at in (1, 4, 6, 10, 13):
        learn,ckpt = make(name, at),tmp_path/f'ckpt{at}'
        with suppress(KeyboardInterrupt), resumable(learn, ckpt): fit(learn)
        learn = make(name)
        learn.path = tmp_path/f'learner{at}' # where a best model was kept
        with resumable(learn, ckpt) as fits: fit(learn)
        same(whole, learn)
        assert torch.equal(after[0], torch.rand(2)) and after[1:]==(random.random(),np.random.rand())
        with resumable(again := make(name), ckpt) as more: fit(again) # nothing left to do
        assert [{**r, 'time':0} for r in more.rows]==[{**r, 'time':0} for r in fits.rows]

def test_workers(toy, tmp_path):
    def run(at=None, ckpt=None):
        learn = toy(cbs=Stop(at))
        learn.dls.loaders = [dl.new(num_workers=2) for dl in learn.dls.loaders]
        with suppress(KeyboardInterrupt), resumable(learn, ckpt): learn.fit(2)
        return learn
    whole = run(ckpt=tmp_path/'whole')
    run(at=6, ckpt=tmp_path/'cut')
    same(whole, run(ckpt=tmp_path/'cut'))

def test_stopped_twice_and_at_the_seam(make, tmp_path):
    fit = cases['fine_tune'][1]
    whole = make('fine_tune')
    fit(whole)
    for at in (3,4,5,2,1):
        with suppress(KeyboardInterrupt), resumable(learn := make('fine_tune', at), tmp_path/'ckpt'): fit(learn)
    with resumable(learn := make('fine_tune'), tmp_path/'ckpt'): fit(learn)
    same(whole, learn)

def test_another_training_is_refused(make, toy, tmp_path):
    with resumable(learn := make('sgd'), tmp_path): learn.fit_one_cycle(2, 1e-3)
    def refused(match, learn, fit):
        with pytest.raises(ValueError, match=match) as e, resumable(learn, tmp_path): fit(learn)
        assert '\n' not in str(e.value)
        assert '_do_fit' not in vars(learn)
    refused('n_epoch=2 then, n_epoch=3 now', make('sgd'), lambda l: l.fit_one_cycle(3, 1e-3))
    refused('scheds=', make('sgd'), lambda l: l.fit_one_cycle(2, 1e-2))
    refused("'eps': 0.3", make('sgd', loss_func=LabelSmoothingCrossEntropyFlat(.3)), lambda l: l.fit_one_cycle(2, 1e-3))
    refused("'weight': .1.0, 9.0, 1.0", make('sgd', loss_func=nn.CrossEntropyLoss(torch.tensor([1.,9,1]))),
        lambda l: l.fit_one_cycle(2, 1e-3))
    refused("'wd': .0.3", make('sgd'), lambda l: l.fit_one_cycle(2, 1e-3, wd=.3))
    refused('bs=8 then, bs=4 now', make('sgd', bs=4), lambda l: l.fit_one_cycle(2, 1e-3))
    refused('other callbacks', make('sgd', cbs=lambda: SnapMix(echo=True)), lambda l: l.fit_one_cycle(2, 1e-3))
    small = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3,3))
    refused('another network.*none here', toy(cbs=Stop(), model=small, opt_func=partial(SGD, mom=.9)),
        lambda l: l.fit_one_cycle(2, 1e-3))

@pytest.mark.parametrize('was,now,says', [
        (lambda: CutMix(1.), lambda: CutMix(.2), 'cut_mix.alpha=1.0 then, cut_mix.alpha=0.2 now'),
        (lambda: SnapMix(same_label='sum'), lambda: SnapMix(same_label='published'), "same_label=sum then"),
        (lambda: MixChoice([CutMix(p=.5), SnapMix()]), lambda: MixChoice([CutMix(p=.4), SnapMix()]),
        'mix_choice.0.cut_mix.p=0.5 then'),
        (lambda: CutMix(p=ramp(0,.5)), lambda: CutMix(p=ramp(0,.9)), r'cut_mix.p=\S*ramp\(start=0, end=0.5'),
        (lambda: GradientAccumulation(16), lambda: GradientAccumulation(8), 'n_acc=16 then')],
    ids=['alpha','word','inside','schedule','fastai'])
def test_another_setting_of_a_callback_is_refused(was, now, says, make, tmp_path):
    with suppress(KeyboardInterrupt), resumable(make('sgd', at=6, cbs=was) , tmp_path) as fits: fits.learn.fit(3)
    with pytest.raises(ValueError, match=says), resumable(learn := make('sgd', cbs=now), tmp_path): learn.fit(3)
    with resumable(learn := make('sgd', cbs=was), tmp_path) as fits: learn.fit(3)
    assert len(fits.history)==3

def goes_on(was, now, make, folder, **kwargs):
    "Two epochs of a training, and the third with other settings"
    old = {k: v[0] for k,v in kwargs.items()}
    new = {k: v[-1] for k,v in kwargs.items()}
    with suppress(KeyboardInterrupt), resumable(learn := make('sgd', at=10, cbs=was, **old), folder): learn.fit(3)
    with resumable(learn := make('sgd', cbs=now, **new), folder) as fits: learn.fit(3)
    return fits

class Curve:
    def __init__(self, top): self._top = top
    def __call__(self, t): return self._top*t

class Strong(CutMix):
    "A subclass that keeps an argument under another name, and passes others on"
    def __init__(self, strength=1., **kwargs):
        super().__init__(**kwargs)
        self.much = strength/2

@delegates()
class Chosen(MixChoice):
    def __init__(self, mixes, **kwargs): super().__init__(mixes, **kwargs)

class Own(Callback):
    def __init__(self, value=None): self.value = value

high = .5
def ramped(t): return high*t
def doubled(t): return 2*lowered(t)
def lowered(t): return .4*t
def until(top): return lambda t, least=.1: max(least, top*t)
noisy = lambda *p: lambda: Own(p[0])
three = np.arange(1000)
others = {
    'partner':         (lambda: CutMix(partner='any'), lambda: CutMix(partner='other'),
        'cut_mix.partner=any then, cut_mix.partner=other now'),
    'box':             (lambda: SnapMix(box=Normal(.5, .1)), lambda: SnapMix(box=Normal(.5, .2)),
        r'snap_mix.box=Normal\(loc=0.5, scale=0.10'),
    'box None':        (lambda: SnapMix(), lambda: SnapMix(box=Beta(1., 1.)),
        r'snap_mix.box=None then, snap_mix.box=Beta\(concentration1=1.0'),
    'no box':          (lambda: SnapMix(box=torch.rand), lambda: SnapMix(),
        'snap_mix.box=rand then, snap_mix.box=None now'),
    'box function':    (lambda: SnapMix(box=torch.rand), lambda: SnapMix(box=torch.ones),
        'snap_mix.box=rand then, snap_mix.box=ones now'),
    'layer':           (lambda: SnapMix(layer='3'), lambda: SnapMix(layer='6'),
        'snap_mix.layer=3 then, snap_mix.layer=6 now'),
    'layer None':      (lambda: SnapMix(), lambda: SnapMix(layer='6'), 'snap_mix.layer=None then'),
    'lambda':          (lambda: CutMix(p=lambda t: .5*t), lambda: CutMix(p=lambda t: .6*t), r'cut_mix.p=<lambda> \['),
    'bytecode':        (lambda: CutMix(p=lambda t: .5*t), lambda: CutMix(p=lambda t: t-.5*t), r'cut_mix.p=<lambda> \['),
    'names':           (lambda: CutMix(p=lambda t: math.sin(t)), lambda: CutMix(p=lambda t: math.cos(t)),
        r'cut_mix.p=<lambda> \['),
    'closure':         (lambda: CutMix(p=until(.5)), lambda: CutMix(p=until(.7)), r'cut_mix.p=<lambda> \['),
    'default':         (lambda: CutMix(p=lambda t, a=.1: a), lambda: CutMix(p=lambda t, a=.2: a),
        r'cut_mix.p=<lambda> \['),
    'partial':         (lambda: CutMix(p=partial(min, .5)), lambda: CutMix(p=partial(min, .7)),
        'cut_mix.p=.*0.5.* then, cut_mix.p=.*0.7'),
    'object':          (lambda: CutMix(p=Curve(.5)), lambda: CutMix(p=Curve(.6)), r'cut_mix.p=Curve\(_top=0.5'),
    'method':          (lambda: CutMix(p=Curve(.5).__call__), lambda: CutMix(p=Curve(.6).__call__),
        r'cut_mix.p=.*Curve\(_top=0.5'),
    'schedule':        (lambda: CutMix(p=.5), lambda: CutMix(p=ramp(0,.5)),
        r'cut_mix.p=0.5 then, cut_mix.p=ramp\(start=0, end=0.5'),
    'choice p':        (lambda: MixChoice([CutMix(), SnapMix()], p=[1,2]),
        lambda: MixChoice([CutMix(), SnapMix()], p=[2,1]), r'mix_choice.p=\[1, 2\] then'),
    'choice p None':   (lambda: MixChoice([CutMix(), SnapMix()]), lambda: MixChoice([CutMix(), SnapMix()], p=[1,1]),
        'mix_choice.p=None then'),
    'choice lambda':   (lambda: MixChoice([CutMix(), SnapMix()], p=[1, lambda t: t]),
        lambda: MixChoice([CutMix(), SnapMix()], p=[1, lambda t: 1-t]), 'mix_choice.p='),
    'order':           (lambda: MixChoice([CutMix(), SnapMix()]), lambda: MixChoice([SnapMix(), CutMix()]),
        "mixes=.'cut_mix', 'snap_mix'. then"),
    'order of a generator': (lambda: MixChoice(m() for m in (CutMix,SnapMix)),
        lambda: MixChoice(m() for m in (SnapMix,CutMix)), "mixes=.'cut_mix', 'snap_mix'. then"),
    'inside':          (lambda: MixChoice([CutMix(p=lambda t: t), None]),
        lambda: MixChoice([CutMix(p=lambda t: 1-t), None]), r'mix_choice.0.cut_mix.p=<lambda> \['),
    'subclass':        (lambda: Strong(1.), lambda: Strong(2.), 'strong.strength=1.0 then, strong.strength=2.0 now'),
    'passed on':       (lambda: Strong(), lambda: Strong(partner='other'),
        'strong.partner=any then, strong.partner=other now'),
    'delegated':       (lambda: Chosen([CutMix(), None]), lambda: Chosen([CutMix(), None], p=(1,3)),
        'chosen.p=None then'),
    'grid':            (lambda: GridMask(d=(.2,.5)), lambda: GridMask(d=(.2,.4)), r'grid_mask.d=\[0.2, 0.5\] then'),
    'branch':          (lambda: MidLevelBranch(layer='3'), lambda: MidLevelBranch(layer='6'),
        'mid_level_branch.layer=3 then'),
    'branch None':     (lambda: MidLevelBranch(layer='3'), lambda: MidLevelBranch(layer='3', hidden=4),
        'mid_level_branch.hidden=None then'),
    'correction':      (lambda: ProgressiveLabelCorrection(lambda t: .5),
        lambda: ProgressiveLabelCorrection(lambda t: .4), 'progressive_label_correction.theta='),
    'protected':       (lambda: ProgressiveLabelCorrection(protect=[1,2]),
        lambda: ProgressiveLabelCorrection(protect=[1,3]), r'progressive_label_correction.protect=\[1, 2\]'),
    'protected None':  (lambda: ProgressiveLabelCorrection(),
        lambda: ProgressiveLabelCorrection(protect_classes=['class1']),
        'progressive_label_correction.protect_classes=None'),
    'sizes':           (lambda: ProgressiveResize(multiple_of=4),
        lambda: ProgressiveResize(multiple_of=4, sizes=[8,12]), 'progressive_resize.sizes=None'),
    "fastai's mix":    (lambda: FastaiMixUp(.4), lambda: FastaiMixUp(.3), r'mix_up.distrib=Beta\(concentration1=0.4'),
    "fastai's None":   (lambda: ShortEpochCallback(.9), lambda: ShortEpochCallback(.9, None),
        'short_epoch.short_valid=True then, short_epoch.short_valid=None now'),
    'foreign None':    (noisy(None), noisy(.5), 'own.value=None then, own.value=0.5 now'),
    'foreign to None': (noisy('word'), noisy(None), 'own.value=word then, own.value=None now'),
    'foreign list':    (noisy([None,.5]), noisy([None,.6]), r'own.value=\[None, 0.5\] then'),
    'foreign tensor':  (noisy(torch.tensor([1.,2])), noisy(torch.tensor([1.,3])), r'own.value=\[1.0, 2.0\] then'),
    'foreign array':   (noisy(three), noisy(three+(three==999)), r'own.value=\[0, 1, 2.*… \['),
    'foreign lambda':  (noisy(lambda t: t), noisy(lambda t: 1-t), r'own.value=<lambda> \['),
    'foreign object':  (noisy(Curve(1)), noisy(random.Random(1)), r'own.value=Curve then, own.value=Random now'),
}

@pytest.mark.parametrize('name', others)
def test_every_argument_counts(name, make, tmp_path):
    was,now,says = others[name]
    with pytest.raises(ValueError, match=says) as e: goes_on(was, now, make, tmp_path)
    assert '\n' not in str(e.value) and str(e.value).count('is of another fit')==1
    assert len(goes_on(was, was, make, tmp_path/'same').history)==3

def test_globals_of_a_schedule_count(make, tmp_path, monkeypatch):
    for p,change in ((ramped, dict(high=.6)), (lambda t: high, dict(high=.7)), (doubled, dict(lowered=lambda t: .3*t))):
        folder = tmp_path/p.__name__
        with suppress(KeyboardInterrupt), resumable(learn := make('sgd', at=10, cbs=lambda: CutMix(p=p)), folder):
            learn.fit(3)
        with monkeypatch.context() as m:
            for k,v in change.items(): m.setitem(globals(), k, v)
            learn = make('sgd', cbs=lambda: CutMix(p=p))
            with pytest.raises(ValueError, match=r'cut_mix.p=.* \['), resumable(learn, folder): learn.fit(3)
        with resumable(learn := make('sgd', cbs=lambda: CutMix(p=p)), folder): learn.fit(3)

same_settings = {
    'classes':  (lambda: MixChoice([CutMix, None]), lambda: MixChoice([CutMix(), None])),
    'one':      (lambda: MixChoice(CutMix()), lambda: MixChoice([CutMix()])),
    'numbers':  (lambda: MixChoice([CutMix(), None], p=(1,3)), lambda: MixChoice([CutMix(), None], p=np.array([1.,3]))),
    'default':  (lambda: CutMix(), lambda: CutMix(1., p=1., partner='any', echo=False)),
    'passed on':(lambda: Strong(), lambda: Strong(1., partner='any', alpha=1.)),
    'place':    (noisy('a/1.csv'), noisy('b/2.csv')), # a path may be another one
    'inside':   (lambda: Own((lambda at: lambda: at)(3)), lambda: Own((lambda at: lambda: at)(4))),
    # which need not be a setting
    'moved':    (lambda: CutMix(p=until(.5)), lambda: CutMix(p=(lambda up: lambda x, least=.1: max(least, up*x))(.5))),
}

@pytest.mark.parametrize('name', same_settings)
def test_the_same_settings_written_otherwise(name, make, tmp_path):
    assert len(goes_on(*same_settings[name], make, tmp_path).history)==3

def test_a_layer_is_known_by_its_name(make, toy, tmp_path):
    def run(at, layer):
        learn = make('sgd', at)
        learn.add_cb(SnapMix(layer=layer(learn.model)))
        with resumable(learn, tmp_path): learn.fit(3)
    with suppress(KeyboardInterrupt): run(6, lambda m: m[3])
    with pytest.raises(ValueError, match='snap_mix.layer=3 then, snap_mix.layer=6 now'): run(None, lambda m: m[6])
    run(None, lambda m: '3')

class Weighed(nn.Module):
    "A loss that holds others, a buffer and a learned number"
    def __init__(self, inner, share=(.5,.5), mass=None):
        super().__init__()
        self.inner,self.share,self.scale = inner,share,nn.Parameter(torch.ones(()))
        self.register_buffer('mass', mass)
    reduction = 'mean'
    def forward(self, p, y): return self.inner(p, y)*self.share[0]

def smooth(eps): return lambda p, y: F.cross_entropy(p, y, label_smoothing=eps)

losses = {
    'partial':  (lambda: partial(F.cross_entropy, label_smoothing=.1),
        lambda: partial(F.cross_entropy, label_smoothing=.2)),
    'weight':   (lambda: partial(F.cross_entropy, weight=torch.tensor([1.,2,3])),
        lambda: partial(F.cross_entropy, weight=torch.tensor([1.,2,4]))),
    'closure':  (lambda: smooth(.1), lambda: smooth(.2)),
    'function': (lambda: lambda p, y: F.cross_entropy(p, y), lambda: lambda p, y: F.cross_entropy(2*p, y)),
    'gamma':    (lambda: FocalLossFlat(gamma=2.), lambda: FocalLossFlat(gamma=3.)),
    'nested':   (lambda: Weighed(nn.CrossEntropyLoss(label_smoothing=.1)),
        lambda: Weighed(nn.CrossEntropyLoss(label_smoothing=.2))),
    'list':     (lambda: Weighed(F.cross_entropy, [.5,.5]), lambda: Weighed(F.cross_entropy, [.5,.6])),
    'buffer':   (lambda: Weighed(F.cross_entropy, mass=torch.ones(3)),
        lambda: Weighed(F.cross_entropy, mass=torch.zeros(3))),
    'kind':     (lambda: Weighed(CrossEntropyLossFlat()), lambda: Weighed(FocalLossFlat())),
}

@pytest.mark.parametrize('name', losses)
def test_every_setting_of_the_loss_counts(name, make, tmp_path):
    was,now = losses[name]
    none = lambda: []
    with pytest.raises(ValueError, match='is of another fit, .*loss'):
        goes_on(none, none, make, tmp_path, loss_func=(was(),now()))
    assert len(goes_on(none, none, make, tmp_path/'same', loss_func=(was(),was())).history)==3

halves,body = (lambda m: L(m[:6],m[6:]).map(params)),(lambda m: L(m[:3],m[3:]).map(params))
class OtherAdam(torch.optim.Adam): pass
def lookahead(ps, lr, k=6): return Lookahead(SGD(ps, lr), k=k)
trainings = {
    'decay':     (dict(opt_func=(Adam, partial(Adam, decouple_wd=False))),
        r"optimizer=.*weight_decay.* then, .*l2_reg"),
    'class':     (dict(opt_func=(RMSProp, partial(RMSProp, mom=.9))), 'another fit'),
    'alike':     (dict(opt_func=(Adam, partial(Lamb, wd=.01))), r"optimizer=.*adam_step.* then, .*lamb_step"),
    'torch':     (dict(opt_func=(partial(OptimWrapper, opt=torch.optim.Adam), partial(OptimWrapper, opt=OtherAdam))),
        "'Adam'.* then, .*'OtherAdam'"),
    'lookahead': (dict(opt_func=(lookahead, partial(lookahead, k=5))), "'k': 6.* then, .*'k': 5"),
    'eps':       (dict(opt_func=(Adam, partial(Adam, eps=1e-3))), "'eps': .1e-05. *.* then"),
    'groups':    (dict(splitter=(halves, body)), 'groups=.* then'),
    'metrics':   (dict(metrics=(accuracy, [accuracy,error_rate])),
        "metrics=.'accuracy'. then, metrics=.'accuracy', 'error_rate'. now"),
}

@pytest.mark.parametrize('name', trainings)
def test_what_else_makes_a_training(name, toy, tmp_path):
    kwargs,says = trainings[name]
    def run(i, folder, at=None):
        learn = toy(cbs=Stop(at), path=tmp_path, **{k: v[i] for k,v in kwargs.items()})
        with resumable(learn, folder) as fits: learn.fit(3)
        return fits
    with suppress(KeyboardInterrupt): run(0, tmp_path/'c', 10)
    with pytest.raises(ValueError, match=says): run(1, tmp_path/'c')
    assert len(run(0, tmp_path/'c').history)==3

def test_frozen_groups_count(make, tmp_path):
    def run(at, freeze, sched=.99):
        learn = make('sgd', at, splitter=halves)
        if freeze: learn.freeze()
        with resumable(learn, tmp_path) as fits: learn.fit_flat_cos(3, pct_start=sched)
        return fits
    with suppress(KeyboardInterrupt): run(10, True)
    with pytest.raises(ValueError, match=r"frozen=\['0.weight'.* then, frozen=\[\] now"): run(None, False)
    with pytest.raises(ValueError, match="schedule of lr="): run(None, True, .95)
    assert len(run(None, True).history)==3

def test_settings_that_move_while_training_are_as_they_began(make, tmp_path):
    "A schedule that counts, a parameter that is a running mean, and one that is set later"
    class Runs(Callback):
        def __init__(self, mean=.5, late=None): self.mean,self.late = mean,late
        def before_batch(self):
            self.mean = .9*self.mean+.1*float(self.x.mean())
            if self.late is None: self.late = {frozenset([1]): 0}
            self.learn.xb = (self.x-self.mean,)
    def counts():
        n = 0
        def p(t):
            nonlocal n
            n += 1
            return .5
        return p
    def train(learn):
        learn.fit(2)
        learn.cut_mix.p = .3 # between two fits
        learn.fit(2)
    cbs = lambda: [CutMix(p=counts()), Runs()]
    train(whole := make('sgd', cbs=cbs))
    for at in (6, 14):
        with suppress(KeyboardInterrupt), resumable(learn := make('sgd', at, cbs=cbs), tmp_path/f'c{at}'): train(learn)
        with resumable(learn := make('sgd', cbs=cbs), tmp_path/f'c{at}'): train(learn)
        same(whole, learn)

def old_file(file):
    "A checkpoint as written before the settings were in it"
    s = load_state(file)
    s['plan'].pop('settings')
    save_state(file, s)

def test_a_file_without_settings_leaves_arguments_alone(make, tmp_path):
    "It goes on, and what callbacks were made with is what it is made with now"
    with suppress(KeyboardInterrupt), resumable(learn := make('sgd', 10, cbs=lambda: Strong(partner='any')), tmp_path):
        learn.fit(3)
    old_file(tmp_path/'fit0.safetensors')
    with resumable(learn := make('sgd', cbs=lambda: Strong(partner='other')), tmp_path) as fits: learn.fit(3)
    assert learn.strong.partner_rule=='other' and len(fits.history)==3
    state = learner_state(make_fitted(make, lambda: MixChoice([CutMix(), None], p=[1,2])))
    load_learner_state(learn := make_fitted(make, lambda: MixChoice([CutMix(), None], p=[3,4])), state)
    assert learn.mix_choice.weights==[3,4]

def make_fitted(make, cbs):
    learn = make('sgd', cbs=cbs)
    learn.fit(1)
    return learn

def test_arguments_are_kept_by_copies(make, tmp_path):
    cb = Strong(2., partner='other', p=until(.5))
    assert cb.made_with['strength']==2. and cb.made_with['partner']=='other' and cb.made_with['echo'] is False
    assert cb.made_with['alpha']==1.
    for other in (deepcopy(cb), cloudpickle.loads(cloudpickle.dumps(cb))):
        assert list(other.made_with)==list(cb.made_with) and other.made_with['partner']=='other'
    assert pickle.loads(pickle.dumps(SnapMix(layer='3'))).made_with['layer']=='3'
    assert list(inspect.signature(Strong).parameters)==['strength','kwargs']
    assert 'partner' in inspect.signature(CutMix).parameters
    class Plain(CutMix): pass
    assert inspect.signature(Plain)==inspect.signature(CutMix)
    with pytest.raises(TypeError, match='unexpected'): CutMix(beta=1)
    for again in (deepcopy(cb), cloudpickle.loads(cloudpickle.dumps(cb))):
        with suppress(KeyboardInterrupt), resumable(learn := make('sgd', 6, cbs=lambda: cb), tmp_path/'c'): learn.fit(3)
        with resumable(learn := make('sgd', cbs=lambda: again), tmp_path/'c'): learn.fit(3)

def test_a_broken_file_is_named(make, tmp_path):
    (tmp_path/'fit0.safetensors').write_bytes(b'broken')
    learn = make('sgd')
    with pytest.raises(ValueError, match='fit0.safetensors is broken .*remove it'), resumable(learn, tmp_path):
        learn.fit(1)

def test_attributes_under_earlier_names(toy):
    "A checkpoint of a version that had another name for an attribute gives it back under the name of today"
    learn = toy(cbs=CutMix(echo=True))
    learn.fit(1)
    state = learner_state(learn)
    plain,parts = dict(state['cbs'])['cut_mix']
    batch = ((torch.rand(2,3,4,4),), (torch.tensor([0,1]),), torch.tensor([1,0]), torch.ones(2), torch.zeros(2))
    plain['before'] = batch
    plain.pop('previous')
    load_learner_state(learn, state)
    assert torch.equal(learn.cut_mix.previous[0][0], batch[0][0]) and 'before' not in vars(learn.cut_mix)
