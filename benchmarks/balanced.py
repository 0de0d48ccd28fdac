"""What do `BalancedSoftmaxLossFlat` and `change_priors` bring where classes are rare?

    python benchmarks/balanced.py --root DIR --weights lite0.safetensors
    python benchmarks/balanced.py --report [--json]

DIR holds the set clothing as a folder or zip file with `labels.csv`; the leaves are drawn. The parts are those of
recipe.py: the test part is the same for all seeds, with its own shares of the classes. The training part is thinned to
a long tail: with the classes in the order of their size, class k of c has n·ratio^(-k/(c-1)) pictures, so the largest
has `ratio` times as many as the smallest. Each seed draws other pictures and has other weights of the head.

Two regimes. `tuned`: a network with ImageNet weights is fine-tuned as in recipe.py, at its rates. `head`: the network
stays as it is, and a linear classifier is trained on its features, without augmentation; that takes a second.

The loss is cross entropy (plain) or the balanced softmax with the counts of the training part (balanced). The third
row is no training of its own: the predictions of the plain network, with `change_priors` applied."""
import time,warnings
from functools import partial
from json import dumps
from pathlib import Path

warnings.filterwarnings('ignore')
import numpy as np
import pandas as pd
import torch
from fastai.vision.all import CrossEntropyLossFlat, DataLoaders, set_seed
import fastai.callback.schedule
from fastcore.script import call_parse, store_true
from sklearn.metrics import balanced_accuracy_score
from accuracy import compare, verdict
from cells import Results, bare_learner, figures, pick_seeds, plan, predict, record, run_cells
from fastai_mix.losses import BalancedSoftmaxLossFlat, change_priors
from recipe import Epochs, Tell, loader, rate
from suspects import features

sizes = {'clothing': 180, 'leaves': 293} # pictures of the largest class: 500 and 400 pictures in all
regimes = {'tuned': dict(epochs=10, **rate('pretrained')), 'head': dict(epochs=200, lr=.01)}
measures = ('macro_f1','balanced_accuracy','accuracy','log_loss')
settings = 'data','arch','size','regime','epochs','lr','ratio'

def long_tail(y, pool, n, ratio, seed):
    "Positions out of `pool`, so many of each class of `y` that the largest has `n` and the smallest `n/ratio`"
    drawn = pd.Series(np.random.default_rng(seed).permutation(pool))
    classes = y[drawn.to_numpy()].numpy()
    order = pd.Series(classes).value_counts(sort=False).sort_index().sort_values(ascending=False, kind='stable').index
    wanted = {k: max(1, round(n*ratio**(-i/(len(order)-1)))) for i,k in enumerate(order)}
    return np.sort(np.concatenate([o.head(wanted[k]) for k,o in drawn.groupby(classes)]))

def scores(probs, y):
    "What is measured of probabilities `[n,c]`, given true labels `[n]`"
    probs,y = probs.numpy(),y.numpy()
    return {**figures(probs, y), 'balanced_accuracy': float(balanced_accuracy_score(y, probs.argmax(1)))}

def parts(data, cell):
    "Positions to train on, and to test on"
    _,_,test = data.parts(0, share=.5)
    pool = np.setdiff1d(np.arange(len(data.df)), test)
    return long_tail(data.y, pool, sizes[cell['data']], cell['ratio'], cell['seed']),test

def tuned_probs(cell, data, train, test, loss, tell, weights):
    "Probabilities of a network that is fine-tuned"
    batches = Epochs(data.x[train], data.y[train], 32, len(train)//32, cell['size'], cell['seed'], None)
    learn = bare_learner(DataLoaders(batches, [], device='cpu'), batches, cell, weights, len(data.vocab),
        [Tell(tell, len(train)*(cell['epochs']+1))], loss=loss)
    learn.fine_tune(cell['epochs'], cell['lr'], lr_mult=cell['lr_mult'])
    return predict(learn.model, data.x[test], cell['size'], learn.model.default_cfg)

def head_probs(cell, data, train, test, loss, weights):
    "Probabilities of a linear classifier on the features of the network, which are kept with the pictures"
    if not hasattr(data, 'features'):
        x = torch.from_numpy(features(data.x, cell['arch'], weights, cell['size'])).float()
        data.features = (x-x.mean(0))/x.std(0).clamp(min=1e-3)
    set_seed(cell['seed'])
    head = torch.nn.Linear(data.features.shape[1], len(data.vocab))
    opt = torch.optim.AdamW(head.parameters(), cell['lr'], weight_decay=.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, cell['epochs'])
    for _ in range(cell['epochs']): # of one batch
        loss(head(data.features[train]), data.y[train]).backward()
        opt.step(), opt.zero_grad(), schedule.step()
    with torch.no_grad(): return head(data.features[test]).softmax(1)

def run(cell, tell, load, weights, rec):
    "Train and score one cell"
    data = load(cell['data'], cell['size'])
    train,test = parts(data, cell)
    counts,y = torch.bincount(data.y[train], minlength=len(data.vocab)),data.y[test]
    loss,start = BalancedSoftmaxLossFlat(counts) if cell['loss']=='balanced' else CrossEntropyLossFlat(),time.time()
    if cell['regime']=='tuned': probs = tuned_probs(cell, data, train, test, loss, tell, weights)
    else: probs = head_probs(cell, data, train, test, loss, weights)
    res = dict(scores(probs, y), seconds=time.time()-start, counts=counts.tolist(), n_scored=len(test),
        date=time.strftime('%Y-%m-%d'), record=rec)
    return res if cell['loss']=='balanced' else dict(res, priors=scores(change_priors(probs, counts), y))

def table(lines):
    "A row for each set and method: means, and paired differences to plain training"
    rows = [dict(o, method=m, **values) for o in lines
        for m,values in ((o['loss'],{}), *([('change_priors',o['priors'])] if 'priors' in o else []))]
    res = []
    for key,d in pd.DataFrame(rows).groupby([*settings], sort=False):
        by = {m: d[d.method==m].set_index('seed') for m in ('plain','balanced','change_priors')}
        for m,o in by.items():
            row = dict(zip(settings, key), method=m, n=len(o), seconds=float(o.seconds.mean()))
            for k in measures:
                row[k] = dict(mean=float(o[k].mean()), se=float(o[k].sem()))
                if m!='plain': row[k]['to_plain'] = compare(o[k], by['plain'][k])
            res.append(row)
    return res

def show(rows):
    for r in rows:
        print(f"\n{r['data']} {r['regime']} 1:{r['ratio']:g} {r['method']} n={r['n']} {r['seconds']:.0f} s: "
            + ', '.join(f"{k} {r[k]['mean']:.4f}" for k in measures))
        for k in measures:
            if 'se' in (c := r[k].get('to_plain', {})):
                print(f"  {k:17s} {c['diff']:+.4f} [{c['low']:+.4f}, {c['high']:+.4f}] {verdict(c, k)}")

@call_parse
def main(
    root:Path=Path('.'), # Folder with the sets
    weights:str=None, # File of ImageNet weights, such as weights.py writes
    data:str=','.join(sizes), # Sets, with commas between them
    arch:str='tf_efficientnet_lite0', # Name of a timm model
    size:int=96, # Side of the pictures
    regime:str='tuned', # tuned or head
    ratio:float=50., # Pictures of the largest class for one of the smallest
    losses:str='plain,balanced', # Losses to train with, with commas between them
    seeds:str='5', # How many seeds from 0 on, or a list with commas
    threads:int=0, # Threads of torch; 0: as many as it takes by itself
    results:Path=Path('benchmarks/results/balanced.jsonl'), # File of finished cells
    report:store_true=False, # Only the table of what is in `results`
    json:store_true=False, # One JSON object on the last line
):
    "Train by both losses; then compare"
    out = Results(results)
    if not report:
        if threads: torch.set_num_threads(threads)
        cells = [dict(data=d, arch=arch, size=size, regime=regime, **regimes[regime], ratio=ratio, loss=o, seed=s)
            for d in data.split(',') for s in pick_seeds(seeds) for o in losses.split(',')]
        def cost(cell): return 50 if regime=='tuned' else 1
        plan(cells, out, cost, 110, ('data','loss','seed'))
        run_cells(cells, partial(run, load=loader(root), weights=weights, rec=record()), out, cost,
            ('data','loss','seed'))
    rows = table(out.lines())
    show(rows)
    if json: print(dumps(dict(rows=rows, record=record())))
