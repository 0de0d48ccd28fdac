"What every callback that changes a batch refuses before training, and the forward that callbacks share."
import pickle
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from fastai.vision.all import CategoryMap, CrossEntropyLossFlat, DataLoaders, L, Learner, fastuple, nn
from fastai_mix.callback.base import BatchCallback, FitCallback, class_count
from fastai_mix.callback.choice import MixChoice
from fastai_mix.callback.gridmask import GridMask
from fastai_mix.callback.manifold import ManifoldMixUp
from fastai_mix.callback.mix import CutMix, MixUp, ResizeMix
from fastai_mix.callback.snapmix import SnapMix
import fastai_mix.interpret # adds show_mix
from fastai_mix.vision.forward import clean_logits
from helpers import Batches, CpuAutocast, raises, Record, toy_model, with_inputs

for name in [k for k in globals() if k.startswith('test')]: del globals()[name]

class Dark(BatchCallback):
    def change(self, x, y): return x*0

makers = {'mixup': MixUp, 'cutmix': CutMix, 'resizemix': ResizeMix, 'manifold': ManifoldMixUp, 'snapmix': SnapMix,
          'echo': lambda: CutMix(echo=True), 'gridmask': lambda: GridMask(p=1), 'dark': Dark,
          'choice': lambda: MixChoice([SnapMix(), GridMask(p=1), None]), 'now and then': lambda: SnapMix(p=1e-9),
          'ramp': GridMask}
every = pytest.mark.parametrize('make', makers.values(), ids=makers)

@every
def test_a_loader_without_a_batch_is_refused(make, toy):
    learn = toy(cbs=make(), n=45, bs=64)
    raises(learn, r'45 rows for batches of 64, .*drop_last=True.*bs=45 or less, or with drop_last=False')
    assert len(learn.validate())==1 and learn.get_preds()[0].shape==(45,3)
    learn.fit(0)
    learn.show_mix(2, dl=SimpleNamespace(one_batch=learn.dls.valid.one_batch, decode=lambda b: b))
    plt.close('all')

def test_a_loader_of_pytorch_without_a_batch_is_refused(toy):
    ds = Batches(5, 3, 16, 'index')
    def make(**kwargs):
        return DataLoaders(torch.utils.data.DataLoader(ds, **kwargs), torch.utils.data.DataLoader(ds, batch_size=5))
    learn = Learner(make(batch_size=8, drop_last=True), toy_model(), loss_func=CrossEntropyLossFlat(), cbs=CutMix())
    with learn.no_bar(), learn.no_logging():
        with pytest.raises(ValueError, match='5 rows for batches of 8'): learn.fit(1)
        learn.dls = make(batch_size=8)
        learn.fit(1)

def test_a_loader_without_rows_is_refused(toy):
    learn = toy(cbs=CutMix())
    learn.dls.train.dataset,learn.dls.train.n = [],0
    raises(learn, '0 rows .*give the training set some rows')

@every
def test_one_batch_is_enough(make, toy):
    learn = toy(cbs=[make(), Record()], n=45, bs=45)
    learn.fit(1)
    assert len(learn.record.losses)==1

def test_epochs_that_are_skipped_need_no_batch(toy):
    learn = toy(cbs=CutMix(), n=45, bs=64)
    learn.fit(2, start_epoch=2)

class Tuple(fastuple): pass
class Second(nn.Module):
    def __init__(self): super().__init__(); self.model = toy_model()
    def forward(self, table, x): return self.model(x)
class Pair(nn.Module):
    def __init__(self): super().__init__(); self.model = toy_model()
    def forward(self, x): return self.model(x[0])+self.model(x[1])
class Named(nn.Module):
    def __init__(self): super().__init__(); self.model = toy_model()
    def forward(self, x): return self.model(x['image'])
class Video(nn.Module):
    def __init__(self): super().__init__(); self.model = toy_model()
    def forward(self, x): return self.model(x.mean(2))

def picture(*size): return torch.rand(*(size or (3,16,16)))
inputs = {
    'a table first': (lambda i: (torch.rand(4),picture()), Second, 2, r'of shape \[8, 4\]'),
    'two pictures in one': (lambda i: (Tuple(picture(), picture()),), Pair, 1, '2 of them in a Tuple'),
    'a dictionary': (lambda i: (dict(image=picture()),), Named, 1, 'a dict'),
    'a video': (lambda i: (picture(3,4,16,16),), Video, 1, r'of shape \[8, 3, 4, 16, 16\]'),
}
@every
@pytest.mark.parametrize('name', inputs)
def test_what_is_no_picture_is_refused_before_training(make, name, toy):
    one,model,n_inp,message = inputs[name]
    learn = with_inputs(toy, make, one, model(), n_inp)
    before = [p.detach().clone() for p in learn.model.parameters()]
    raises(learn, f'{type(learn.cbs[-1]).__name__} changes pictures.*{message}.*forward')
    assert all(torch.equal(a, b) for a,b in zip(before, learn.model.parameters()))
    with pytest.raises(ValueError, match=message): learn.show_mix(2)
    assert np.isfinite(learn.validate()[0])

class Cast(nn.Module):
    "Casts its pictures itself"
    def __init__(self, channels=3, scale=1):
        super().__init__()
        self.model,self.scale = toy_model(),scale
        self.model[0] = nn.Conv2d(channels, 8, 3, padding=1)
    def forward(self, x): return self.model(x.float()/self.scale)

pictures = {'one channel': (lambda i: (picture(1,16,16),), lambda: Cast(1)),
    'four channels': (lambda i: (picture(4,16,16),), lambda: Cast(4)),
    'float64': (lambda i: (picture().double(),), lambda: toy_model().double()),
    'float16': (lambda i: (picture().half(),), Cast), 'bfloat16': (lambda i: (picture().bfloat16(),), Cast),
    'bytes': (lambda i: ((picture()*255).byte(),), lambda: Cast(scale=255))}
@every
@pytest.mark.parametrize('name', pictures)
def test_pictures_of_every_kind(make, name, toy):
    one,model = pictures[name]
    learn = with_inputs(toy, lambda: [make(), Record()], one, model())
    if name=='bytes' and isinstance(learn.cbs[-2], MixUp):
        return raises(learn, r'MixUp blends pictures, but these are uint8: .*IntToFloatTensor\(\)')
    learn.fit(2)
    assert np.isfinite(learn.record.losses).all()

@pytest.mark.parametrize('make', [lambda: MixUp(p=1e-9), lambda: MixUp(echo=True),
    lambda: MixChoice([CutMix(), MixUp()], [1,1e-9])], ids=range(3))
def test_bytes_are_refused_before_training(make, toy):
    learn = with_inputs(toy, make, *pictures['bytes'][:1], Cast(scale=255))
    before = [p.detach().clone() for p in learn.model.parameters()]
    raises(learn, 'IntToFloatTensor')
    assert all(torch.equal(a, b) for a,b in zip(before, learn.model.parameters()))

def test_nothing_is_refused_where_nothing_is_changed(toy):
    one,model,n_inp,_ = inputs['a table first']
    with_inputs(toy, lambda: MixUp(p=0), one, model(), n_inp).fit(1)

def test_the_number_of_classes():
    def dls(**kwargs): return SimpleNamespace(**kwargs)
    for want,o in ((3,dls(c=3)), (3,dls(c=3, vocab=['a'])), (2,dls(c=L(2,3))), (4,dls(c=[4,1], vocab=list('abcd'))),
                   (2,dls(vocab=['a','b'])), (2,dls(vocab=CategoryMap(['a','b']))),
                   (2,dls(vocab=L(CategoryMap(['a','b']), CategoryMap(list('xyz'))))), (None,dls()),
                   (None,dls(vocab=None)), (None,dls(vocab=[])), (None,dls(c=0, vocab=None))):
        assert class_count(o)==want

class Labels(FitCallback):
    "Asks for predictions, as label correction does"
    order,run_valid = 60,False
    def before_fit(self): self.given = []
    def relabel(self, changer):
        if not self.training: return
        self.given.append((changer.clean_logits(self.xb[0]), self.xb[0].clone()))

class Forwards(nn.Module):
    "Counts its calls in eval mode"
    def __init__(self): super().__init__(); self.model,self.n = toy_model(),0
    def forward(self, x):
        self.n += not self.training
        return self.model(x)

sharing = {
    'snapmix': (SnapMix, 0), 'choice': (lambda: MixChoice([SnapMix()]), 0),
    'smaller maps': (lambda: SnapMix(map_scale=.5), 4),
    'mixup': (MixUp, 4), 'choice of others': (lambda: MixChoice([CutMix(), GridMask(p=1)]), 4),
    'gridmask': (lambda: GridMask(p=1), 4), 'dark': (Dark, 4)}
@pytest.mark.parametrize('name', sharing)
def test_who_asks_for_clean_logits_shares_the_forward(name, toy):
    make,n_more = sharing[name]
    n = []
    for more in ([], [Labels()]):
        learn = toy(cbs=[make(), *more], model=Forwards(), n=32)
        learn.fit(1)
        n.append(learn.model.n)
    assert n[1]-n[0]==n_more and len(learn.labels.given)==4
    for logits,x in learn.labels.given: assert not logits.requires_grad and logits.shape==(len(x),3)

def test_clean_logits_are_those_of_the_pictures_as_loaded(toy):
    learn = toy(cbs=[Dark(), Labels()], lr=0.)
    learn.fit(1)
    for bn in (m for m in learn.model if isinstance(m, nn.BatchNorm2d)): bn.momentum = 0.
    learn.fit(1)
    for logits,x in learn.labels.given: torch.testing.assert_close(logits, clean_logits(learn.model, x))

def test_a_forward_is_not_used_for_other_pictures(toy):
    learn = toy(cbs=SnapMix())
    learn.snap_mix.before_fit()
    x,y = learn.dls.train.one_batch()
    learn.snap_mix.clean_logits(x*0)
    learn.snap_mix.clear()
    learn.snap_mix.change(x, y)
    torch.testing.assert_close(learn.snap_mix.logits, clean_logits(learn.model, x))

def test_clean_logits_under_autocast(toy):
    learn = toy(cbs=[Dark(), Labels(), CpuAutocast()])
    learn.fit(1)
    assert {o.dtype for o,_ in learn.labels.given}=={torch.bfloat16} and not torch.is_autocast_enabled('cpu')

class Renamed(BatchCallback):
    renamed = dict(old='new', gone='kept')
    def __init__(self, new=1, **kwargs): super().__init__(**kwargs); self.new = new
    def change(self, x, y): return x

def test_attributes_of_older_pickles():
    cb = Renamed(new=5)
    vars(cb)['old'] = vars(cb).pop('new')
    back = pickle.loads(pickle.dumps(cb))
    assert back.new==back.old==5 and not hasattr(back, 'kept') and back.made_with==dict(new=5, p=1.)
    assert pickle.loads(pickle.dumps(Renamed(new=6))).new==6

def test_made_with_keeps_arguments_by_name():
    assert Renamed(2, p=.5).made_with==dict(new=2, p=.5) and Renamed().made_with==dict(new=1, p=1.)
    assert CutMix(partner='other').made_with==dict(alpha=1., partner='other', p=1., echo=False)
    with pytest.raises(TypeError, match='unexpected keyword'): CutMix(size=3)
