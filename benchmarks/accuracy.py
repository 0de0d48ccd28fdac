"""What each mix brings on real pictures, at equal numbers of trained pictures.

    python benchmarks/accuracy.py --data leaves --images 2000 --seeds 1 --mixes plain,snapmix
    python benchmarks/accuracy.py --data clothing.zip --weights lite0.safetensors --per-class 40 --images 16000 \\
        --seeds 5 --mixes plain,cutmix,snapmix-.5
    python benchmarks/accuracy.py --report [--results results.jsonl --json]

A cell is a data set, a model, a regime, a mix and a seed. When it ends it appends a line to `--results`; what has a
line is not run again, and several processes may share the file. Every mix of a seed has the same split, the same
drawn training pictures, the same initial weights, order of pictures, crops and flips. The weights scored are the last
ones, on the test part, once. `echo` loads bs/2 pictures per step and trains on them and on their mixed versions: as
many a step as the others. `seconds` are those of training, `cpu_seconds` the processor's, which other work on the
machine moves less. Both depend on the machine, which `record` names: compare them within one. So do the last digits
of the rest, and with them the whole training: the same cell on another processor moves about as much as with another
seed. `rest_*` are the same figures on those pictures of the training part that `--per-class` or `--share` left out.
The ablations change one thing of snapmix-.5 each, except where their names say another p or echo."""
import time,warnings
from difflib import get_close_matches
from functools import partial
from json import dumps
from pathlib import Path

warnings.filterwarnings('ignore')
import numpy as np
import pandas as pd
import torch
from fastai.vision.all import Callback, DataLoaders
import fastai.callback.schedule
from fastcore.script import call_parse, store_true
from sklearn.model_selection import train_test_split
from fastai_mix.callback.choice import MixChoice
from fastai_mix.callback.gridmask import GridMask
from fastai_mix.callback.mix import CutMix, MixUp, ResizeMix
from fastai_mix.callback.snapmix import SnapMix, snapmix
from cells import (Batches, Results, bare_learner, decode, figures, pick_seeds, plan, predict, read_table, record,
    run_cells)

class AreaMix(SnapMix):
    "SnapMix's boxes with labels weighted by area: a map that is the same everywhere"
    def watch(self, x): pass
    def mix(self, x, y, partner):
        self.box,self.src_box = self.make_params(x)
        return snapmix(x, torch.ones(len(x), 1, 1, device=x.device), partner, self.box, self.src_box)

class EqualBoxes(SnapMix):
    "SnapMix that cuts where it pastes"
    def make_params(self, x): return (super().make_params(x)[0],)*2

class TrainMap(SnapMix):
    "SnapMix with maps from a forward in training mode, which moves BatchNorm's statistics as well; as published"
    def mix(self, x, y, partner):
        self.box,self.src_box = self.make_params(x)
        m = self.learn.model
        with torch.no_grad(): cam = torch.einsum('nchw,nc->nhw', m.forward_features(x), m.get_classifier().weight[y])
        return snapmix(x, cam, partner, self.box, self.src_box)

mixes = {'plain': lambda: [], 'mixup': lambda: [MixUp()], 'cutmix': lambda: [CutMix()],
    'resizemix': lambda: [ResizeMix()],
    'gridmask': lambda: [GridMask()], 'snapmix': lambda: [SnapMix()], 'snapmix-.5': lambda: [SnapMix(p=.5)],
    'snapmix-echo': lambda: [SnapMix(echo=True)], 'choice': lambda: [MixChoice([SnapMix(), GridMask(p=1.)])],
    'snapmix-.25': lambda: [SnapMix(p=.25)], 'area-.5': lambda: [AreaMix(p=.5)],
    'area-echo': lambda: [AreaMix(echo=True)],
    'cutmix-.5': lambda: [CutMix(p=.5)], 'mixup-.5': lambda: [MixUp(p=.5)], 'cutmix-echo': lambda: [CutMix(echo=True)],
    'mixup-echo': lambda: [MixUp(echo=True)], 'snapmix-equal': lambda: [EqualBoxes(p=.5)],
    'snapmix-a1': lambda: [SnapMix(1., p=.5)],
    'snapmix-a3': lambda: [SnapMix(3., p=.5)], 'snapmix-published': lambda: [SnapMix(p=.5, same_label='published')],
    'snapmix-train': lambda: [TrainMap(p=.5)], 'snapmix-other': lambda: [SnapMix(p=.5, partner='other')]}

def extra(mix):
    "A guess at what the clean forwards of `mix` add to the time of plain training"
    cb = next((o for o in mixes[mix]() if isinstance(o, (SnapMix,MixChoice)) and not isinstance(o, AreaMix)), None)
    return 0 if cb is None else .03 if cb.echo else .3*(.5 if isinstance(cb, MixChoice) else cb.p)

class Tell(Callback):
    "Report progress and count the pictures trained on"
    def __init__(self, tell): self.tell,self.n = tell,0
    def after_batch(self):
        self.n += len(self.pred)
        self.tell((self.iter+1)/self.n_iter)

class Data:
    "The pictures of a data set in memory, and the parts of a seed"
    def __init__(self, data, size):
        self.df,root = read_table(data)
        self.vocab = sorted(self.df.label.unique())
        self.y = torch.tensor([self.vocab.index(o) for o in self.df.label])
        self.x = decode(root, self.df.image_id, round(size*1.15))

    def parts(self, seed, per_class, share, tune):
        "Indices to train on, to score, and of what was left out of the training part"
        def cut(i, n): return train_test_split(i, test_size=n, stratify=self.y[i], random_state=seed)
        i = np.arange(len(self.df))
        if 'split' in self.df: train,test = (i[self.df.split==o] for o in ('train','test'))
        else: train,test = cut(i, .2)
        if tune: # the test part is out of reach
            if 'split' in self.df and (self.df.split=='validation').any(): test = i[self.df.split=='validation']
            else: train,test = cut(train, .2)
        rest = train[:0]
        if per_class:
            keep = pd.Series(train).groupby(self.y[train].numpy()).sample(frac=1, random_state=seed)
            keep = keep.groupby(self.y[keep.to_numpy()].numpy()).head(per_class).to_numpy()
            train,rest = np.sort(keep),np.setdiff1d(train, keep)
        elif share<1: train,rest = cut(train, 1-share)
        return train,test,rest

def make_learner(data, train, cell, weights, tell, steps=None):
    "Learner of `cell`; its weights are the same for every mix of a seed"
    cbs = mixes[cell['mix']]()
    bs = cell['bs']//2 if any(getattr(o, 'echo', False) for o in cbs) else cell['bs']
    batches = Batches(data.x[train], data.y[train], bs, steps or cell['images']//cell['bs'], cell['size'], cell['seed'],
        None)
    return bare_learner(DataLoaders(batches, [], device='cpu'), batches, cell, weights, len(data.vocab),
        [Tell(tell), *cbs])

def fit(learn, cell):
    lr = cell['lr']
    learn.fit_one_cycle(1, slice(lr/10, lr) if cell['regime']=='pretrained' else lr)

def run(cell, tell, data, weights, rec, tune):
    "Train and score one cell"
    train,test,rest = data.parts(cell['seed'], cell['per_class'], cell['share'], tune)
    learn = make_learner(data, train, cell, weights, tell)
    start,cpu = time.time(),time.process_time()
    fit(learn, cell)
    seconds,cpu,cfg = time.time()-start,time.process_time()-cpu,learn.model.default_cfg
    def score(i): return figures(predict(learn.model, data.x[i], cell['size'], cfg), data.y[i])
    res = dict(score(test), seconds=seconds, cpu_seconds=cpu, trained=learn.tell.n, n_train=len(train),
        n_test=len(test))
    if len(rest) and not tune: res.update({f'rest_{k}':v for k,v in score(rest).items()}, n_rest=len(rest))
    return dict(res, date=time.strftime('%Y-%m-%d'), record=rec)

def speed(data, cell, weights, n=6):
    "Pictures a second of plain training"
    cell,times = dict(cell, mix='plain'),[]
    learn = make_learner(data, np.arange(len(data.x)), cell, weights, lambda part: times.append(time.perf_counter()),
        steps=n)
    fit(learn, cell)
    return cell['bs']/np.median(np.diff(times)[1:])

settings = ['data','arch','regime','size','per_class','share','images','bs','lr']

def compare(a, b):
    "Paired difference of `a` to `b`, each by seed: mean, standard error, 95% t-interval, Wilcoxon's p"
    from scipy import stats
    d = (a-b).dropna()
    n,mean = len(d),float(d.mean())
    if n<2: return dict(n=n, diff=mean)
    se = float(stats.sem(d))
    half = float(stats.t.ppf(.975, n-1))*se
    p = float(stats.wilcoxon(d).pvalue) if d.any() else 1.
    # more than two standard errors at any n
    return dict(n=n, diff=mean, se=se, low=mean-half, high=mean+half, p=p, beyond=abs(mean)>half)

def tables(lines):
    "One dict a set of settings, with a row per mix"
    df,res = pd.DataFrame(lines),[]
    df = df[df.part=='test']
    for key,d in df.groupby(settings, sort=False):
        figs = [k for k in ('accuracy','macro_f1','log_loss','ece','rest_accuracy','rest_macro_f1','rest_log_loss',
            'rest_ece') if k in d and d[k].notna().any()]
        by,rows = {m: o.set_index('seed') for m,o in d.groupby('mix', sort=False)},[]
        for m,o in by.items():
            row = dict(mix=m, n=len(o), seconds=float(o.seconds.mean()), trained=int(o.trained.median()))
            for k in figs:
                row[k] = dict(mean=float(o[k].mean()), se=float(o[k].sem()) if len(o)>1 else None)
                row[k].update({f'to_{r}': compare(o[k], by[r][k]) for r in ('plain','cutmix') if r in by and r!=m})
            rows.append(row)
        res.append(dict(zip(settings, key), n_train=int(d.n_train.iloc[0]), n_test=int(d.n_test.iloc[0]), rows=rows))
    return res

def verdict(c, k):
    return '' if not c.get('beyond') else 'better' if (c['diff']>0)==(not k.endswith(('loss','ece'))) else 'worse'

def show(tabs):
    for t in tabs:
        print(f"\n{t['data']}, {t['arch']} {t['regime']}, {t['size']} px, {t['n_train']} pictures to train on, "
            f"{t['n_test']} to test, {t['images']} trained a cell, lr {t['lr']:g}")
        figs = [k for k,v in t['rows'][0].items() if isinstance(v, dict)]
        print(f"{'mix':18s} seeds  seconds " + ' '.join(f'{k:>19s}' for k in figs))
        for r in t['rows']:
            print(f"{r['mix']:18s} {r['n']:5d} {r['seconds']:8.0f} "
                + ' '.join(f"{r[k]['mean']:10.4f} ±{r[k]['se'] or float('nan'):7.4f}" for k in figs))
        for k in figs:
            for ref in ('plain','cutmix'):
                rows = [(r['mix'],c) for r in t['rows'] if (c := r[k].get(f'to_{ref}')) and 'se' in c]
                if rows: print(f"{k} - that of {ref}, pairs of a seed: mean, 95% interval, p of Wilcoxon")
                for m,c in rows:
                    print(f"  {m:18s} {c['diff']:+.4f}  [{c['low']:+.4f}, {c['high']:+.4f}]  p={c['p']:.3f}  "
                        f"n={c['n']}  {verdict(c, k)}")

def plot(tabs, file):
    "Accuracy beyond plain, a panel a set"
    import matplotlib
    matplotlib.use('agg')
    import matplotlib.pyplot as plt
    def kept(t, k): return [(r['mix'],c) for r in t['rows'] if 'se' in (c := r.get(k, {}).get('to_plain', {}))]
    tabs = [(t,k) for t in tabs for k in ('accuracy','rest_accuracy') if kept(t, k)]
    if not tabs: return
    fig,axs = plt.subplots(len(tabs), 1, figsize=(7, sum(1.1+.27*len(kept(*o)) for o in tabs)), squeeze=False,
        layout='constrained',
        height_ratios=[1.1+.27*len(kept(*o)) for o in tabs])
    for ax,(t,k) in zip(axs[:,0], tabs):
        rows = kept(t, k)[::-1]
        for i,(_,c) in enumerate(rows):
            ax.plot([100*c['low'], 100*c['high']], [i,i], color='C0' if c['beyond'] else '.6')
            ax.plot(100*c['diff'], i, 'o', color='C0' if c['beyond'] else '.6')
        ax.axvline(0, color='k', lw=.8)
        ax.set_yticks(range(len(rows)), [f"{m} ({c['n']})" for m,c in rows])
        ax.set_title(f"{t['data']}, {t['arch']} {t['regime']}, {t['size']} px, {t['images']} trained pictures",
            fontsize=9)
        ax.set_xlabel(('accuracy' if k=='accuracy' else 'accuracy on what was left out of training')
            +' beyond plain, points, 95% interval (seeds)', fontsize=8)
    fig.savefig(file, dpi=120)
    print(f'\nplot: {file}')

@call_parse
def main(
    data:str='leaves', # 'leaves', or a folder or zip with labels.csv (columns image_id, label and maybe split)
    arch:str='tf_efficientnet_lite0', # Name of a timm model
    weights:str=None, # File of its trained weights, such as weights.py writes; None: from scratch
    size:int=96, # Side of the pictures trained on
    per_class:int=0, # Pictures a class to train on, drawn by seed; 0: all
    share:float=1., # Share of the training part to train on, drawn by seed
    mixes:str='plain,snapmix', # Names, with commas between them
    images:int=16000, # Pictures trained on in a cell
    seeds:str='5', # How many seeds from 0 on, or a list with commas
    lr:float=None, # Highest learning rate; None: .002 with weights, .004 without
    bs:int=32, # Pictures trained on in a step
    threads:int=0, # Threads of torch; 0: as many as it takes by itself
    results:Path='results.jsonl', # File of finished cells
    tune:store_true=False, # Score on a validation part, to choose settings; `--report` leaves such cells out
    report:store_true=False, # Only the table of what is in `results`
    json:store_true=False, # One JSON object on the last line
):
    "Train every mix with every seed; then compare"
    names,made = mixes.split(','),globals()['mixes']
    for o in names:
        if o not in made:
            raise SystemExit(f"no mix {o!r}: expected {', '.join(get_close_matches(o, made, 3, .4) or made)}")
    out = Results(results)
    if not report:
        if threads: torch.set_num_threads(threads)
        common = dict(data=Path(data).stem, arch=arch, regime='pretrained' if weights else 'scratch',
            part='valid' if tune else 'test', size=size,
            per_class=per_class, share=share, images=images, bs=bs, lr=lr or (.002 if weights else .004))
        # seed by seed: what stops early can be compared
        cells = [dict(common, mix=m, seed=s) for s in pick_seeds(seeds) for m in names]
        pictures = Data(data, size)
        print(f"{data}: {len(pictures.x)} pictures, {len(pictures.vocab)} classes, parts "
            f"{[len(o) for o in pictures.parts(cells[0]['seed'], per_class, share, tune)]}")
        rate = speed(pictures, cells[0], weights)
        def cost(c): return c['images']/rate*(1+extra(c['mix']))
        plan(cells, out, cost, rate)
        run_cells(cells, partial(run, data=pictures, weights=weights, rec=record(), tune=tune), out, cost)
    tabs = tables(out.lines()) if any(o['part']=='test' for o in out.lines()) else []
    if report and not tabs: raise SystemExit(f"no finished cell in {results}")
    show(tabs)
    if report: plot(tabs, results.with_suffix('.png'))
    if json: print(dumps(dict(tables=tabs, record=record())))
