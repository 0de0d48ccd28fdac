"Networks, data and callbacks that several tests share."
import json
import os
import runpy
import sys
import tracemalloc
from collections import Counter
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.fp16 import MixedPrecision
from fastai.vision.all import (Callback, CategoryBlock, ColReader, ConvLayer, DataBlock, DataLoader, DataLoaders,
    Dihedral,
    Flatten, ImageBlock, Learner, Resize, SkipItemException, accuracy, default_split, nn)
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from fastai_mix.callback.mix import MixCallback
from fastai_mix.data.folds import FoldSplitter

def run_script(path, *args):
    "Run a script in this process, in its folder; what is printed goes to a file beside it, of suffix .log"
    os.chdir(path.parent)
    log = os.open(path.with_suffix('.log'), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for fd in (1,2): os.dup2(log, fd)
    sys.argv = [str(path), *map(str, args)]
    runpy.run_path(str(path), run_name='__main__')

class Batches:
    "Samples of noise with their class painted into one corner, as a data set"
    def __init__(self, n, c, size, target):
        g = torch.Generator().manual_seed(0)
        self.x,self.y = torch.rand(n, 3, size, size, generator=g),torch.arange(n)%c
        for i,k in enumerate(self.y): self.x[i,k%3,:size//2,:size//2] += 1
        self.t = self.y if target=='index' else torch.eye(c)[self.y]
    def __len__(self): return len(self.y)
    def __getitem__(self, i): return self.x[i],self.t[i]

def toy_model(c=3):
    "A network of two convolutions, with BatchNorm and dropout"
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(.1), nn.Linear(16, c))

class Record(Callback):
    "Keeps the loss of every training batch; of mixed ones also predictions, labels and weights"
    order,run_valid = 60,False
    def before_fit(self): self.losses,self.seen = [],[]
    def after_batch(self):
        self.losses.append(self.learn.loss.item())
        cb = next((o for o in self.learn.cbs if isinstance(o, MixCallback)), None)
        if cb is not None and cb.w is not None:
            self.seen.append((self.learn.pred.detach().clone(), self.learn.yb[0], cb.w.clone(), cb.w2.clone(),
                cb.y2.clone()))

def weights(learn):
    "All parameters and buffers of the network as one vector"
    return torch.cat([p.detach().reshape(-1).double() for p in learn.model.state_dict().values()])

def peak_memory(f):
    "Bytes that `f` has at most at a time"
    tracemalloc.start()
    try:
        f()
        return tracemalloc.get_traced_memory()[1]
    finally: tracemalloc.stop()

class Syncs(TorchDispatchMode):
    "Counts the operations that make a host wait for its GPU"
    names = {'_local_scalar_dense','nonzero','masked_select','is_nonzero','equal','_unique2','unique_dim','bincount',
        'repeat_interleave'}
    def __init__(self): super().__init__(); self.n = Counter()
    def __enter__(self):
        res = super().__enter__()
        try: torch.ones(1).as_subclass(torch.Tensor)
        except RuntimeError:
            super().__exit__(None, None, None)
            pytest.skip('this PyTorch cannot cast to a plain tensor under a dispatch mode, as fastai does')
        return res
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.split('::')[1]
        by_mask = name in ('index','index_put','index_put_') and any(o is not None
            and o.dtype in (torch.bool,torch.uint8) for o in args[1])
        if name in self.names or by_mask: self.n[name] += 1
        return func(*args, **(kwargs or {}))

def state(learn):
    "What a mix must leave as it was: loss function, training modes, data set, number of hooks, callbacks"
    return (learn.loss_func, learn.loss_func.reduction, [m.training for m in learn.model.modules()],
        dict(vars(learn.dls.train_ds)),
            sum(len(m._forward_hooks)+len(m._forward_pre_hooks) for m in learn.model.modules()),
            [type(cb) for cb in learn.cbs])

class Stop(Callback):
    "Raises `ex` in the second training batch, at `event`"
    run_valid = False
    def __init__(self, event, ex, order=0): self.order,self.ex = order,ex; setattr(self, event, self.stop)
    def stop(self):
        if self.learn.training and self.learn.iter==1: raise self.ex('stop')

class CpuAutocast(MixedPrecision):
    "What `to_bf16` does on a GPU, on a CPU"
    def before_fit(self): self.autocast = torch.autocast('cpu', dtype=torch.bfloat16)
    def before_backward(self): pass
    def before_step(self): pass
    def after_step(self): pass
    def after_fit(self): pass

class CpuScaler(MixedPrecision):
    "`to_fp16` with all its parts, on a CPU"
    def before_fit(self):
        self.autocast,self.learn.scaler,self.scales = torch.autocast('cpu',
            dtype=torch.float16),torch.amp.GradScaler('cpu', **self.kwargs),[]

def raises(learn, message):
    "A fit of `learn` raises a ValueError that matches `message`, in one line"
    with pytest.raises(ValueError, match=message) as e: learn.fit(1)
    assert str(e.value).count('\n')==1 # fastai's own line on the callback and the event, then ours

def block(leaves, splitter=None, **kwargs):
    "A DataBlock for tables of the leaves in a folder"
    return DataBlock((ImageBlock, CategoryBlock), get_y=ColReader('label'), splitter=splitter,
        **{'get_x':ColReader('image_id', pref=leaves/'images', suff='.jpg'), 'item_tfms':Resize(32),
        'batch_tfms':Dihedral(), **kwargs})

def fold_loaders(leaves, df, fold, bs=8, **kwargs):
    "DataLoaders of a fold of the leaves in a folder; further arguments go to the DataBlock"
    return block(leaves, FoldSplitter(fold, check=False), **kwargs).dataloaders(df, bs=bs, num_workers=0, device='cpu')

def tiny(dls, cbs=None, width=8, loss_func=None):
    "A Learner on two convolutions as body, and a head"
    body,head = nn.Sequential(ConvLayer(3, width, stride=2),
        ConvLayer(width, 2*width, stride=2)),nn.Sequential(nn.AdaptiveAvgPool2d(1), Flatten(),
        nn.Linear(2*width, dls.c))
    return Learner(dls, nn.Sequential(body, head), metrics=accuracy, splitter=default_split, cbs=cbs,
        loss_func=loss_func)

def one(learn):
    "Train one epoch without output; a `fit_fn` of CrossVal"
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1, 1e-2)

class Rows:
    "A data set whose pictures hold their row number and true class as pixel values"
    def __init__(self, n=40, c=3, wrong=(), skip=()):
        self.true = torch.arange(n)*7%c
        self.y,self.skip = self.true.clone(),skip
        for i in wrong: self.y[i] = (self.y[i]+1)%c
    def __len__(self): return len(self.y)
    def __getitem__(self, i):
        if i in self.skip and self.reading: raise SkipItemException
        x = torch.zeros(3, 8, 8)
        x[0],x[1] = i/1024,self.true[i]
        return x,self.y[i]
    reading = True

class Oracle(nn.Module):
    "A network that predicts the true class of pictures of `Rows`; `scale` is the logit"
    def __init__(self, c=3, scale=20.):
        super().__init__(); self.c,self.scale,self.bias = c,scale,nn.Parameter(torch.zeros(c))
    def forward(self, x):
        return F.one_hot(x[:,1].mean((1,2)).round().long().clamp(0, self.c-1), self.c)*self.scale+self.bias

def with_inputs(toy, make, inputs, model=None, n_inp=1, n=16):
    "A Learner whose samples have `inputs(i)` and a label"
    class Data:
        def __len__(self): return n
        def __getitem__(self, i): return (*inputs(i), torch.tensor(i%3))
    learn = toy(cbs=make(), model=model)
    dl = DataLoader(Data(), bs=8, num_workers=0)
    learn.dls = DataLoaders(dl, dl)
    learn.dls.n_inp,learn.dls.vocab,dl.decode = n_inp,list('abc'),lambda b: b
    return learn

def item_picture(item): return item['x']
def item_label(item): return item['y']

def make_dls(size, n=16, bs=4, **kwargs):
    "DataLoaders of pictures of one colour, red or blue, as their class"
    items = [dict(x=Image.new('RGB', (size,size), [(200,30,30),(30,30,200)][i%2]), y='ab'[i%2]) for i in range(n)]
    split = lambda o: (list(range(bs, len(o))), list(range(bs)))
    block = DataBlock((ImageBlock, CategoryBlock), get_x=item_picture, get_y=item_label, splitter=split, **kwargs)
    return block.dataloaders(items, bs=bs, device='cpu', num_workers=0)

def noise(seed=0, size=(48,40)):
    "A picture with structure of its own"
    pixels = np.random.default_rng(seed).integers(0, 255, (6,6,3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.BICUBIC)

def media(browser, theme, width):
    "Have the browser show pages in a theme, `width` pixels wide"
    browser.execute_cdp_cmd('Emulation.setEmulatedMedia',
        {'features': [{'name': 'prefers-color-scheme', 'value': theme},
        {'name': 'prefers-reduced-motion', 'value': 'reduce'}]})
    browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride',
        dict(width=width, height=900, deviceScaleFactor=1, mobile=False))

def axe_source():
    "The script of axe, which checks whether a page is accessible"
    folder = Path(import_module('selenium_axe_python').__file__).parent
    return (folder/'axe-core'/'axe.min.js').read_text(encoding='utf-8')

def violations(browser, run):
    "What axe, run in the browser already, finds serious"
    found = browser.execute_async_script(
        f"axe.run({json.dumps({**run, 'resultTypes': ['violations']})}).then(arguments[0])")['violations']
    return [f"{v['id']}: {v['nodes'][0]['html'][:150]} {v['nodes'][0]['failureSummary'][:200]}" for v in found
        if v['impact'] in ('serious','critical')]

# Contrast follows from the colours of a text and of what is behind it. Texts of a look that axe passed on an earlier
# page of the same site are left out, as are those it does not judge, hidden or beside the page. The looks are kept in
# the browser.
contrast = """
const done = arguments[0], passed = new Set(JSON.parse(localStorage.getItem('looks') || '[]')), looks = new Map()
function compare(o, behind) {
    const s = getComputedStyle(o), own = [s.backgroundColor, s.backgroundImage, s.opacity, s.filter, s.mixBlendMode]
    behind += own.join()=='rgba(0, 0, 0, 0),none,1,none,normal' ? '' : own+';'
    looks.set(o, [behind, s.color, s.fontSize, s.fontWeight, s.textShadow].join())
    const isText = o.checkVisibility({visibilityProperty: true}) && o.getBoundingClientRect().right>0
        && [...o.childNodes].some(c => c.nodeType==3 && c.data.trim())
    const known = [...o.children].map(c => compare(c, behind)).every(Boolean) && (!isText || passed.has(looks.get(o)))
    o.toggleAttribute('data-known', known)
    return known
}
if (compare(document.documentElement, '')) done([])
else axe.run({exclude: ['[data-known]']}, {runOnly: ['color-contrast'], elementRef: true}).then(r => {
    for (const node of r.passes.flatMap(o => o.nodes)) passed.add(looks.get(node.element))
    localStorage.setItem('looks', JSON.stringify([...passed]))
    done(r.violations.flatMap(o => o.nodes).map(o => `${o.html.slice(0, 150)} ${o.failureSummary.slice(0, 200)}`))
})"""
