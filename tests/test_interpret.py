"Titles and scores for targets of every kind."
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.vision.all import (CategoryBlock, ColReader, DataBlock, ImageBlock, MultiCategoryBlock, RandomSplitter,
    RegressionBlock, Learner, nn)
from PIL import Image
from fastai_mix.callback.choice import MixChoice
from fastai_mix.callback.gridmask import GridMask
from fastai_mix.callback.mix import CutMix, MixCallback, MixUp
from fastai_mix.callback.snapmix import SnapMix
import fastai_mix.interpret # patches Learner.show_mix
from helpers import toy_model, with_inputs

pytestmark = pytest.mark.filterwarnings('ignore')

@pytest.fixture(scope='module')
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp('pictures')
    for i in range(24): Image.fromarray(np.full((16,16,3), i*10, np.uint8)).save(path/f'{i}.png')
    return pd.DataFrame(dict(file=[f'{path}/{i}.png' for i in range(24)], animal=['cat','dog']*12,
        colour=['red','green','blue']*8, size=np.linspace(0, 1, 24), tags=['old new','old','']*8))

class Fixed(MixCallback):
    def mix(self, x, y, partner): return x,torch.full((len(x),), .75),torch.full((len(x),), .25)

class Heads(nn.Module):
    def __init__(self, *sizes):
        super().__init__()
        self.body,self.heads = toy_model()[:9],nn.ModuleList(nn.Linear(16, c) for c in sizes)
    def forward(self, x):
        x = self.body(x)
        return tuple(h(x) for h in self.heads)

def first_of(p, *ys, reduction='mean'): return nn.functional.cross_entropy(p[0], ys[0], reduction=reduction)

@pytest.fixture
def several(table):
    def make(*targets, cbs=None, sizes=(2,3), loss_func=first_of):
        block = dict(animal=CategoryBlock, colour=CategoryBlock, size=RegressionBlock, tags=MultiCategoryBlock)
        readers = [ColReader(t, label_delim=' ' if t=='tags' else None) for t in targets]
        dls = DataBlock((ImageBlock, *[block[t] for t in targets]), get_x=ColReader('file'),
            get_y=readers if len(readers)>1 else readers[0], n_inp=1, splitter=RandomSplitter(seed=0)
            ).dataloaders(table, bs=8, num_workers=0, device='cpu')
        return Learner(dls, Heads(*sizes), loss_func=loss_func, cbs=cbs)
    return make

def name(learn, j, y):
    "What target `j` is called, by hand"
    vocab = learn.dls.train_ds.tls[j+1]
    return vocab.vocab[int(y)]

def test_titles_of_two_classes(several):
    learn = several('animal', 'colour')
    mix,seen = Fixed(),[]
    change = mix.change
    mix.change = lambda x,y: (change(x, y), seen.append((y, mix.partner)))[0]
    batch = learn.dls.train.one_batch()
    learn.dls.train.one_batch = lambda: batch
    titles = [ax.get_title() for ax in learn.show_mix(4, mix=mix)]
    (_,partner),(_,a,b) = seen[0],batch
    for i,t in enumerate(titles):
        j = partner[i]
        own = f'{name(learn, 0, a[i])} 0.75, {name(learn, 1, b[i])} 0.75'
        assert t==f'{own} · {name(learn, 0, a[j])} 0.25, {name(learn, 1, b[j])} 0.25'
    plt.close('all')

@pytest.mark.parametrize('targets,parts',
    [(('animal','size'), ('animal','number')), (('size','animal'), ('number','animal')),
        (('animal','tags'), ('animal','tags')),
    (('colour','animal','size'), ('colour','animal','number'))], ids=str)
@pytest.mark.parametrize('mix', [Fixed, lambda: GridMask(p=1)], ids=['mix','gridmask'])
def test_each_target_has_its_own_names(targets, parts, mix, several):
    words = dict(animal=r'(cat|dog) \d\.\d\d', colour=r'(red|green|blue) \d\.\d\d', number=r'[\d.e-]+ × \d\.\d\d',
        tags=r'(none \d\.\d\d|(old|new) \d\.\d\d( · (old|new) \d\.\d\d)*)')
    one = ', '.join(words[p] for p in parts)
    for ax in several(*targets).show_mix(4, mix=mix()):
        assert re.fullmatch(f'{one} · {one}' if mix is Fixed else one, ax.get_title()), ax.get_title()
    plt.close('all')

@pytest.mark.parametrize('make', [SnapMix, lambda: SnapMix(echo=True), lambda: MixChoice([SnapMix(), CutMix()])],
    ids=range(3))
def test_two_targets_train_and_have_scores(make, several):
    "The map is for the first target, and so are the scores"
    learn = several('animal', 'colour', cbs=make())
    with learn.no_bar(), learn.no_logging(): learn.fit(2, 1e-2)
    scores,(p,t) = learn.scores(),learn.get_preds(act=lambda o: o)
    assert scores.vocab==['cat','dog'] and scores.accuracy==(p[0].argmax(1)==t[0]).float().mean()
    assert scores.probs.shape[1]==2

@pytest.mark.parametrize('y,vocab,title',
    [(torch.tensor([1,1]), ['a','b'], 'b 0.75 · b 0.25'), (torch.tensor([[1],[1]]), ['a','b'], 'b 0.75 · b 0.25'),
        (torch.tensor([-100,-100]), ['a','b'], 'ignored 0.75 · ignored 0.25'),
    (torch.tensor([255,255]), ['a','b'], 'ignored 0.75 · ignored 0.25'),
    (torch.tensor([[1.],[1.]]), ['a','b'], 'b 0.75 · b 0.25'), (torch.tensor([0.,0.]), ['a','b'], 'a 0.75 · a 0.25'),
    (torch.tensor([[1.],[1.]]), ['a'], 'a 0.75 · a 0.25'),
    (torch.tensor([[1.,0],[1,0]]), ['a','b'], 'a 0.75 · a 0.25')], ids=str)
def test_titles_of_one_target(y, vocab, title, toy):
    learn = with_inputs(toy, Fixed, lambda i: (torch.rand(3,16,16),))
    learn.dls.vocab,learn.loss_func = vocab,nn.MSELoss()
    learn.dls.train.one_batch = lambda: (torch.rand(2,3,8,8),y)
    assert learn.show_mix(1)[0].get_title()==title
    plt.close('all')

@pytest.mark.parametrize('mix', [SnapMix, MixUp, lambda: GridMask(p=1), lambda: MixChoice([SnapMix(), CutMix()])],
    ids=range(4))
def test_pictures_in_inference_mode(mix, toy):
    learn = toy(cbs=mix())
    learn.dls.train.decode = lambda b: b
    with torch.inference_mode(): assert len(learn.show_mix(2, maps=True))==2
    learn.fit(1)
    plt.close('all')

def test_top_losses(toy):
    learn = toy()
    axs = learn.plot_top_losses(3)
    titles = [o.get_title() for o in axs]
    losses = [float(o.split()[-1]) for o in titles[:3]]
    preds,y,each = learn.get_preds(with_loss=True)
    assert losses==sorted(losses, reverse=True) and abs(losses[0]-each.max().item())<.006 and titles[3:]==['']*3
    given,_,predicted,*_ = titles[0].split()
    i = int(each.argmax())
    assert (given,predicted)==(f'class{int(y[i])}',f'class{int(preds[i].argmax())}')
    assert [len(o.images) for o in axs]==[1]*3+[2]*3 and len(learn.plot_top_losses(2, maps=False))==2
    plt.close('all')

def test_top_losses_of_a_network_without_maps(toy):
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3*16*16, 3))
    axs = toy(model=flat).plot_top_losses(4)
    assert len(axs)==4 and all(len(o.images)==1 for o in axs)
    plt.close('all')
