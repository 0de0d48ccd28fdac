"""Writes `golden/saved`, `golden/names.json` and `golden/methods.json`: `python tests/make_saved.py`

No test runs it, but `test_saved.py` trains as it does. Files that are there stay: later versions must read them."""
import json,pickle
from contextlib import suppress
from functools import partial
from importlib import import_module
from itertools import count
from pathlib import Path
from pkgutil import walk_packages
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch
from fastai.vision import all as fastai
from fastai.vision.all import (CategoryBlock, ColReader, ConvLayer, CrossEntropyLossFlat, DataBlock, Flatten, 
                               ImageBlock, Learner, Normalize, Resize, accuracy, default_split, imagenet_stats, nn,
                               set_seed)

import fastai_mix
from fastai_mix.callback.branch import MidLevelBranch
from fastai_mix.callback.choice import MixChoice
from fastai_mix.callback.gridmask import GridMask
from fastai_mix.callback.mix import CutMix, ramp
from fastai_mix.callback.plc import ProgressiveLabelCorrection
from fastai_mix.callback.snapmix import SnapMix
from fastai_mix.checkpoint import resumable
from fastai_mix.crossval import CrossVal, load_ensemble
from fastai_mix.data.folds import FoldSplitter
from fastai_mix.data.leaves import draw_leaf, leaf_classes, leaf_data
from fastai_mix.interpret import Scores
from fastai_mix.vision.learner import timm_learner
from fastai_mix.vision.tta import d4

# the files that are there
written_by = 'fastai_mix 0.0.1, commit dfbbd3a, Python 3.11.7, fastai 2.8.12, torch 2.14.1, timm 1.0.31, numpy 2.4.6'
golden = Path(__file__).parent/'golden'
saved = golden/'saved'

def table(leaves):
    df = pd.read_csv(leaves/'train.csv').rename(columns={'labels':'label'})[['image_id','label']]
    return df.assign(fold=df.groupby('label').cumcount()%2)

class Data:
    "DataLoaders of the leaves in a folder"
    def __init__(self, leaves): self.leaves = leaves
    def __call__(self, df, fold):
        block = DataBlock((ImageBlock, CategoryBlock(vocab=leaf_classes)), splitter=FoldSplitter(fold, check=False),
            get_x=ColReader('image_id', pref=self.leaves/'images', suff='.jpg'), get_y=ColReader('label'),
            item_tfms=Resize(32), batch_tfms=Normalize.from_stats(*imagenet_stats))
        return block.dataloaders(df, bs=8, num_workers=0, device='cpu')

def tiny_model(c=4): return nn.Sequential(
    nn.Sequential(ConvLayer(3, 4, stride=2), ConvLayer(4, 8, stride=2)),
    nn.Sequential(nn.AdaptiveAvgPool2d(1), Flatten(), nn.Linear(8, c)))

def quiet(learn):
    learn.remove_cb(learn.progress)
    learn.logger = lambda *_: None
    return learn

kwargs = dict(loss_func=CrossEntropyLossFlat(), metrics=accuracy)

def tiny(dls, cbs=None): return quiet(Learner(dls, tiny_model(dls.c), splitter=default_split, cbs=cbs, **kwargs))

# the version that wrote the files corrected labels by models of any quality
def correction(): return ProgressiveLabelCorrection(.02, warmup=1, id_col='image_id', check_model=False)

def mixed(dls): return tiny(dls, [SnapMix(p=ramp(.2, .8)), correction()])

def seeded(make, leaves):
    "A Learner as `make` makes it every time"
    set_seed(0)
    return make(Data(leaves)(table(leaves), 0))

def run(leaves, path): return CrossVal(table(leaves), Data(leaves), mixed, path, id_col='image_id')

def by_name(leaves, path):
    make = lambda dls: quiet(timm_learner(dls, 'test_efficientnet', pretrained=False, **kwargs))
    return CrossVal(table(leaves), Data(leaves), make, path, id_col='image_id')

def tuned(learn): learn.fine_tune(2, 1e-2)

def cycle(learn): learn.fit_one_cycle(3, 1e-2)

def stop(fit, at):
    "`fit`, which a KeyboardInterrupt ends at the batch number `at`"
    def f(learn):
        n,step = count(1),learn.one_batch # a callback would be a part of the checkpoint
        def one_batch(i, b):
            if learn.training and next(n)==at: raise KeyboardInterrupt
            step(i, b)
        learn.one_batch = one_batch
        fit(learn)
    return f

def pictures(folder, n=6):
    "Files of `n` leaves; no packing loses anything"
    files = [Path(folder)/f'{i}.png' for i in range(n)]
    for i,f in enumerate(files): draw_leaf([1, i], leaf_classes[i%4], 64)[0].save(f)
    return files

pickled = dict(
    snapmix=lambda: SnapMix(alpha=2., p=ramp(.2, .8), same_label='published', partner='other'),
    choice=lambda: MixChoice([CutMix(), SnapMix()], p=[1, 2]),
    plc=correction,
    gridmask=lambda: GridMask(p=.7),
    branch=lambda: MidLevelBranch(hidden=4, weight=.5))

def class_of(o): return f'{type(o).__module__}.{type(o).__qualname__}'

def attributes(o):
    "Plain attributes of `o` as they are, shape and sum of a tensor, and the class of any other"
    def told(v):
        if isinstance(v, (np.ndarray,torch.Tensor)): return [list(v.shape), round(float(v[v==v].sum()), 4)]
        if isinstance(v, dict): return {str(k):told(w) for k,w in v.items()}
        if isinstance(v, (list,tuple)): return [told(w) for w in v]
        return v if v is None or isinstance(v, (bool,int,str)) or isinstance(v, float) and v==v else class_of(v)
    return {k:told(v) for k,v in vars(o).items()}

def names():
    "`__all__` of every module of the package; of `fastai_mix.all`, which has none, what is the package's own"
    found = [o.name for o in walk_packages(fastai_mix.__path__, 'fastai_mix.') if '_modidx' not in o.name]
    res = {o: sorted(import_module(o).__all__) for o in found if hasattr(import_module(o), '__all__')}
    own = {o for v in res.values() for o in v}
    return {**res, 'fastai_mix.all': sorted(o for o in vars(import_module('fastai_mix.all')) if o in own)}

def methods():
    "Public methods of public classes by where they are made, those patched into classes of fastai, too; without events"
    def public(m, k):
        owner,*name = k.split('.')
        known = owner in m.__all__ or hasattr(fastai, owner)
        return known and name and not name[0].startswith(('_','before_','after_'))
    syms = import_module('fastai_mix._modidx').d['syms']
    res = {m: sorted(k for o in v if public(import_module(m), k := o[len(m)+1:])) for m,v in syms.items()}
    return {m:v for m,v in res.items() if v}

def write_json(file, o): file.write_text(json.dumps(o, indent=1)+'\n')

def predictions(ens, files):
    "Of the pictures as they are, then of eight views"
    return pd.concat([ens.predict(pd.DataFrame({'path':files}), views) for views in (None, d4)], ignore_index=True)

def losses(fits): return fits.history.drop(columns='time')

def main(tmp):
    leaves,files = leaf_data(tmp/'leaves', n=40, size=64),pictures(tmp)
    saved.mkdir(parents=True)

    done = run(leaves, saved/'run').fit(tuned)
    assert done.labels.times.sum()
    done.oof.to_csv(saved/'run.csv', index=False)
    stopped = run(leaves, saved/'run_stopped').fit(tuned, folds=[0])
    with suppress(KeyboardInterrupt): stopped.fit(stop(tuned, 6), folds=[1])
    assert len((saved/'run_stopped'/'fold_1'/'checkpoints').ls())==2

    ens = by_name(leaves, tmp/'named').fit(lambda learn: learn.fit_one_cycle(1, 1e-2)).ensemble(how='gmean')
    ens.export(saved/'ensemble')
    predictions(load_ensemble(saved/'ensemble'), files).to_csv(saved/'ensemble.csv', index=False)
    done.ensemble().export(saved/'ensemble_of_own')
    own = load_ensemble(saved/'ensemble_of_own', get_model=tiny_model)
    predictions(own, files).to_csv(saved/'ensemble_of_own.csv', index=False)

    with resumable(whole := seeded(mixed, leaves), tmp/'whole') as fits: cycle(whole)
    losses(fits).to_csv(saved/'checkpoints.csv', index=False)
    learn = seeded(mixed, leaves)
    with suppress(KeyboardInterrupt), resumable(learn, saved/'checkpoints'): stop(cycle, 5)(learn)

    plc = whole.progressive_label_correction
    assert len(plc.changed)
    plc.save(saved/'labels.safetensors')
    plc.labels.to_csv(saved/'labels.csv')

    (saved/'pickled').mkdir()
    scores = Scores(done.oof.values, table(leaves).label.map(done.vocab.index), done.vocab)
    (saved/'pickled'/'scores.pkl').write_bytes(pickle.dumps(scores))
    told = {'scores': dict(kind=class_of(scores), attrs=attributes(scores), report=scores.report())}
    for k,make in pickled.items():
        learn = seeded(partial(tiny, cbs=(cb := make())), leaves)
        learn.fit(2, 1e-2)
        learn.remove_cb(cb)
        (saved/'pickled'/f'{k}.pkl').write_bytes(pickle.dumps(cb))
        told[k] = dict(kind=class_of(cb), attrs=attributes(cb))
    write_json(saved/'pickled.json', told)
    for lock in [*saved.rglob('.lock')]: lock.unlink()
    write_json(golden/'names.json', names())
    write_json(golden/'methods.json', methods())

if __name__=='__main__':
    with TemporaryDirectory() as tmp: main(Path(tmp))
