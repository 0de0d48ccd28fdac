"Stopped at any moment and started again: the same weights, to the bit."
import random
from collections import Counter, defaultdict
from contextlib import suppress

import numpy as np
import pytest
import torch
from fastai.callback.tracker import EarlyStoppingCallback, ReduceLROnPlateau, SaveModelCallback
from fastai.callback.training import GradientAccumulation
from fastai.vision.all import (Callback, CancelFitException, L, LabelSmoothingCrossEntropyFlat, OptimWrapper, SGD, accuracy, default_split, nn, params, partial, set_seed)
from fastai_mix.callback.choice import MixChoice
from fastai_mix.callback.mix import CutMix, ramp
from fastai_mix.callback.resize import ProgressiveResize
from fastai_mix.callback.snapmix import SnapMix
from fastai_mix.checkpoint import load_state, resumable, save_state, write_atomic

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
    def __init__(self): self.py,self.np,self.torch,self.table = random.Random(1),np.random.default_rng(1),torch.Generator().manual_seed(1),{frozenset([1]): 0.}
    def before_batch(self):
        if not self.training: return
        self.learn.xb = (self.x*(1+.1*self.py.random()) + .1*torch.rand(self.x.shape, generator=self.torch) + .01*self.table[frozenset([1])],)
        self.table[frozenset([1])] += self.np.random()
    def state_dict(self): return dict(t=self.table[frozenset([1])], py=self.py.getstate(), np=self.np.bit_generator.state, torch=self.torch.get_state())
    def load_state_dict(self, s):
        self.table[frozenset([1])] = s['t']
        self.py.setstate(s['py']); self.torch.set_state(s['torch']); self.np.bit_generator.state = s['np']

class Generators(Callback):
    "Generators as attributes"
    def __init__(self): self.py,self.np,self.torch = random.Random(1),np.random.default_rng(1),torch.Generator().manual_seed(1)
    def before_batch(self):
        if self.training: self.learn.xb = (self.x*(1+.1*self.py.random()+.1*self.np.random()) + .1*torch.rand(self.x.shape, generator=self.torch),)

class Running(Callback):
    "NumPy numbers and dictionaries of other kinds as attributes, which training depends on"
    def __init__(self): self.mean,self.spread,self.n,self.seen = np.float64(.5),np.float64(.2),Counter(),defaultdict(list)
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
    assert a.recorder.values==b.recorder.values and a.recorder.lrs==b.recorder.lrs and a.recorder.iters==b.recorder.iters

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
    refused("'weight': .1.0, 9.0, 1.0", make('sgd', loss_func=nn.CrossEntropyLoss(torch.tensor([1.,9,1]))), lambda l: l.fit_one_cycle(2, 1e-3))
    refused("'wd': .0.3", make('sgd'), lambda l: l.fit_one_cycle(2, 1e-3, wd=.3))
    refused('bs=8 then, bs=4 now', make('sgd', bs=4), lambda l: l.fit_one_cycle(2, 1e-3))
    refused('other callbacks', make('sgd', cbs=lambda: SnapMix(echo=True)), lambda l: l.fit_one_cycle(2, 1e-3))
    refused('another network.*none here', toy(cbs=Stop(), model=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3,3)), opt_func=partial(SGD, mom=.9)),
        lambda l: l.fit_one_cycle(2, 1e-3))

@pytest.mark.parametrize('was,now,says', [
    (lambda: CutMix(1.), lambda: CutMix(.2), 'cut_mix.alpha=1.0 then, cut_mix.alpha=0.2 now'),
    (lambda: SnapMix(same_label='sum'), lambda: SnapMix(same_label='published'), "same_label=sum then"),
    (lambda: MixChoice([CutMix(p=.5), SnapMix()]), lambda: MixChoice([CutMix(p=.4), SnapMix()]), 'mix_choice.0.cut_mix.p=0.5 then'),
    (lambda: CutMix(p=ramp(0,.5)), lambda: CutMix(p=ramp(0,.9)), r'cut_mix.p=ramp\(start=0, end=0.5'),
    (lambda: GradientAccumulation(16), lambda: GradientAccumulation(8), 'n_acc=16 then')], ids=['alpha','word','inside','schedule','fastai'])
def test_another_setting_of_a_callback_is_refused(was, now, says, make, tmp_path):
    with suppress(KeyboardInterrupt), resumable(make('sgd', at=6, cbs=was) , tmp_path) as fits: fits.learn.fit(3)
    with pytest.raises(ValueError, match=says), resumable(learn := make('sgd', cbs=now), tmp_path): learn.fit(3)
    with resumable(learn := make('sgd', cbs=was), tmp_path) as fits: learn.fit(3)
    assert len(fits.history)==3

def test_numbers_of_one_kind_are_not_confused(tmp_path):
    def some(k): return {'scalar': np.float64(k), 'list': [np.float64(k), np.float64(k+.5)], 'tensors': [torch.tensor(k), torch.tensor(k+.5)], 'array': np.array([k])}
    state = [some(float(k)) for k in range(50)]
    save_state(tmp_path/'s.safetensors', state)
    for o,k in zip(load_state(tmp_path/'s.safetensors'), range(50)):
        assert (o['scalar'],o['list'],[t.item() for t in o['tensors']],o['array'].tolist())==(k,[k,k+.5],[k,k+.5],[k])

def test_state_of_many_kinds(tmp_path):
    w = torch.rand(4, 3)
    state = dict(a=[1, 2.5, True, None, 'x', float('nan')], b=(1,(2,)), c=L(1,'2'), w=w, same=w, part=w[:,1], half=w.bfloat16(), empty=torch.zeros(0, 3),
        losses=L(torch.tensor(i/3) for i in range(5)), lrs=[np.float64(i/3) for i in range(5)], mixed=[np.float32(1), 2], u=np.arange(3, dtype=np.uint32), d={1:{2:3}, (1,2):4})
    save_state(tmp_path/'s.safetensors', state)
    back = load_state(tmp_path/'s.safetensors')
    assert back.keys()==state.keys() and back['b']==state['b'] and back['c']==state['c'] and back['d']==state['d'] and back['a'][:5]==state['a'][:5]
    assert isinstance(back['a'][5], float) and back['a'][5]!=back['a'][5] and isinstance(back['a'][2], bool) and isinstance(back['c'], L)
    for k in ('w','same','part','half','empty'): assert torch.equal(back[k], state[k]) and back[k].dtype==state[k].dtype
    assert [float(o) for o in back['losses']]==[float(o) for o in state['losses']] and back['lrs']==state['lrs'] and isinstance(back['lrs'][0], np.float64)
    assert isinstance(back['mixed'][0], np.float32) and back['u'].dtype==np.uint32 and back['u'].tolist()==[0,1,2]
    names = dict(one=np.unique(['a','b'])[0], several=list(np.unique(['a','b'])), counted=Counter(np.array(['a','b','a'])))
    save_state(tmp_path/'s.safetensors', names)
    assert load_state(tmp_path/'s.safetensors')==names
    with pytest.raises(TypeError): save_state(tmp_path/'s.safetensors', {'x': object()})
    assert [o.name for o in tmp_path.iterdir()]==['s.safetensors']

def test_a_broken_file_is_named(make, tmp_path):
    (tmp_path/'fit0.safetensors').write_bytes(b'broken')
    with pytest.raises(ValueError, match='fit0.safetensors is broken .*remove it'), resumable(learn := make('sgd'), tmp_path): learn.fit(1)

def test_failed_write_keeps_the_old_file(tmp_path):
    write_atomic(tmp_path/'f', lambda f: f.write_text('old'))
    def fails(f):
        f.write_text('ne')
        raise OSError('disk full')
    with pytest.raises(OSError): write_atomic(tmp_path/'f', fails)
    assert [o.name for o in tmp_path.iterdir()]==['f'] and (tmp_path/'f').read_text()=='old'
