"What every callback that changes a batch refuses before training, and what models may return."
from collections import namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from fastai.vision.all import Callback, CategoryMap, CrossEntropyLossFlat, DataLoaders, L, Learner, accuracy, fastuple, nn
from fastai_mix.callback.branch import MidLevelBranch
from fastai_mix.callback.choice import MixChoice
from fastai_mix.callback.gridmask import GridMask
from fastai_mix.callback.base import BatchCallback, class_count
from fastai_mix.callback.mix import CutMix, MixUp, ResizeMix
from fastai_mix.callback.snapmix import SnapMix
from helpers import Batches, raises, Record, toy_model, with_inputs

for name in [k for k in globals() if k.startswith('test')]: del globals()[name]

class Dark(BatchCallback):
    def change(self, x, y): return x*0

makers = {'mixup': MixUp, 'cutmix': CutMix, 'resizemix': ResizeMix, 'snapmix': SnapMix, 'echo': lambda: CutMix(echo=True), 'gridmask': lambda: GridMask(p=1), 'dark': Dark,
          'choice': lambda: MixChoice([SnapMix(), GridMask(p=1), None]), 'now and then': lambda: SnapMix(p=1e-9), 'ramp': GridMask}
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
    def make(**kwargs): return DataLoaders(torch.utils.data.DataLoader(ds, **kwargs), torch.utils.data.DataLoader(ds, batch_size=5))
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

pictures = {'one channel': (lambda i: (picture(1,16,16),), lambda: Cast(1)), 'four channels': (lambda i: (picture(4,16,16),), lambda: Cast(4)),
    'float64': (lambda i: (picture().double(),), lambda: toy_model().double()), 'float16': (lambda i: (picture().half(),), Cast), 'bfloat16': (lambda i: (picture().bfloat16(),), Cast),
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

@pytest.mark.parametrize('make', [lambda: MixUp(p=1e-9), lambda: MixUp(echo=True), lambda: MixChoice([CutMix(), MixUp()], [1,1e-9])], ids=range(3))
def test_bytes_are_refused_before_training(make, toy):
    learn = with_inputs(toy, make, *pictures['bytes'][:1], Cast(scale=255))
    before = [p.detach().clone() for p in learn.model.parameters()]
    raises(learn, 'IntToFloatTensor')
    assert all(torch.equal(a, b) for a,b in zip(before, learn.model.parameters()))

def test_nothing_is_refused_where_nothing_is_changed(toy):
    one,model,n_inp,_ = inputs['a table first']
    with_inputs(toy, lambda: MixUp(p=0), one, model(), n_inp).fit(1)

Several = namedtuple('Several', 'features logits')
@dataclass
class Output:
    features:object
    logits:object

def last(out): return out[-1]
def named(out): return out['logits']
def field(out): return out.logits
outputs = {'features first': (lambda f,z: (f,z), last), 'features last': (lambda f,z: (z,f), lambda o: o[0]), 'list': (lambda f,z: [f,z], last), 'nested': (lambda f,z: (f,[f,z]), lambda o: o[1][1]),
           'dict': (lambda f,z: dict(features=f, logits=z), named), 'named tuple': (Several, field), 'object': (Output, field)}

class More(nn.Module):
    "Logits, and the features they come from"
    def __init__(self, put):
        super().__init__()
        self.body,self.head,self.put = toy_model()[:9],nn.Linear(16, 3),put
    def forward(self, x):
        f = self.body(x)
        return self.put(f, self.head(f))

@pytest.mark.parametrize('make', [MixUp, lambda: CutMix(echo=True), SnapMix, lambda: SnapMix(echo=True), lambda: MixChoice([SnapMix(), CutMix()]), lambda: MixChoice([SnapMix(), CutMix()], echo=True)],
    ids=['mixup','cutmix-echo','snapmix','snapmix-echo','choice','choice-echo'])
@pytest.mark.parametrize('name', outputs)
def test_models_that_return_more_train_as_those_that_do_not(make, name, toy):
    put,get = outputs[name]
    def loss(out, y, reduction='mean'): return nn.functional.cross_entropy(get(out), y, reduction=reduction)
    def right(out, y): return accuracy(get(out), y)
    class Seen(Callback):
        order,run_valid = 60,False
        def before_fit(self): self.all = []
        def after_batch(self): self.all.append(self.learn.loss.item())
    def run(model, **kwargs):
        torch.manual_seed(0)
        learn = toy(cbs=[make(), Seen()], model=model(), lr=1e-2, **kwargs)
        learn.dls.train.decode = learn.dls.valid.decode = lambda b: b
        learn.fit(4)
        return learn
    more = run(lambda: More(put), loss_func=loss, metrics=right)
    alone = run(lambda: More(lambda f,z: z), metrics=accuracy)
    assert more.seen.all==alone.seen.all
    was,scores = list(more.recorder.values),more.scores()
    assert more.recorder.values==was and len(was)==4 and more.recorder.run
    assert scores.accuracy==alone.scores().accuracy==more.validate()[1]>.6
    assert 'class' in more.show_mix(2)[0].get_title()
    plt.close('all')

@pytest.mark.parametrize('name', outputs)
def test_a_branch_says_what_the_model_returns(name, toy):
    put,get = outputs[name]
    def loss(out, y, reduction='mean'): return nn.functional.cross_entropy(get(out), y, reduction=reduction)
    with pytest.raises(ValueError, match=f'More returns a {type(put(0, 0)).__name__}: have the model return its logits'):
        toy(cbs=[SnapMix(), MidLevelBranch()], model=More(put), loss_func=loss).fit(1)

def test_the_number_of_classes():
    def dls(**kwargs): return SimpleNamespace(**kwargs)
    for want,o in ((3,dls(c=3)), (3,dls(c=3, vocab=['a'])), (2,dls(c=L(2,3))), (4,dls(c=[4,1], vocab=list('abcd'))), (2,dls(vocab=['a','b'])), (2,dls(vocab=CategoryMap(['a','b']))),
                   (2,dls(vocab=L(CategoryMap(['a','b']), CategoryMap(list('xyz'))))), (None,dls()), (None,dls(vocab=None)), (None,dls(vocab=[])), (None,dls(c=0, vocab=None))):
        assert class_count(o)==want
