"What a model may return beside its logits."
from collections import namedtuple
from dataclasses import dataclass

import matplotlib.pyplot as plt
import pytest
import torch
from fastai.vision.all import Callback, accuracy, nn
from fastai_mix.callback.branch import MidLevelBranch
from fastai_mix.callback.choice import MixChoice
from fastai_mix.callback.manifold import ManifoldMixUp
from fastai_mix.callback.mix import CutMix, MixUp
from fastai_mix.callback.snapmix import SnapMix
import fastai_mix.interpret # adds show_mix and scores
from helpers import toy_model

Several = namedtuple('Several', 'features logits')
@dataclass
class Output:
    features:object
    logits:object

def last(out): return out[-1]
def named(out): return out['logits']
def field(out): return out.logits
outputs = {'features first': (lambda f,z: (f,z), last), 'features last': (lambda f,z: (z,f), lambda o: o[0]),
           'list': (lambda f,z: [f,z], last), 'nested': (lambda f,z: (f,[f,z]), lambda o: o[1][1]),
           'dict': (lambda f,z: dict(features=f, logits=z), named), 'named tuple': (Several, field),
           'object': (Output, field)}

class More(nn.Module):
    "Logits, and the features they come from"
    def __init__(self, put):
        super().__init__()
        self.body,self.head,self.put = toy_model()[:9],nn.Linear(16, 3),put
    def forward(self, x):
        f = self.body(x)
        return self.put(f, self.head(f))

@pytest.mark.parametrize('make', [MixUp, lambda: CutMix(echo=True), SnapMix, lambda: SnapMix(echo=True), ManifoldMixUp,
    lambda: MixChoice([SnapMix(), CutMix()]), lambda: MixChoice([SnapMix(), CutMix()], echo=True)],
    ids=['mixup','cutmix-echo','snapmix','snapmix-echo','manifold','choice','choice-echo'])
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
    with pytest.raises(ValueError,
        match=f'More returns a {type(put(0, 0)).__name__}: have the model return its logits'):
        toy(cbs=[SnapMix(), MidLevelBranch()], model=More(put), loss_func=loss).fit(1)
