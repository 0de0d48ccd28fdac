"""What label correction and soft labels bring where labels are wrong.

    python benchmarks/noise.py --data cifar10n.zip --weights lite0.safetensors --noise aggre,random1,worst --seeds 3
    python benchmarks/noise.py --data /usr/share/datasets/fashion-mnist --weights lite0.safetensors \\
        --noise type1,type2,type3 --seeds 3
    python benchmarks/noise.py --report [--results noise.jsonl --json]

`--data` is a folder or zip with labels.csv (image_id, the true label in `clean`, and a column for each noise), or a
folder with Fashion-MNIST's files, of which the first 10,000 training pictures get noise that depends on the picture:
types I to III of arXiv 2103.07756, section 5, at 35%, from the out-of-fold posterior of a logistic regression.

2,000 pictures with true labels are the test part, the same for every method and seed; the others have the labels of
the noise. Every method trains on the same number of pictures in all. Soft labels spend a half of them on three folds
(two thirds of the pictures each) and the other half on the network that is scored. The weights scored are the last
ones. A cell is a noise, a method and a seed; see accuracy.py for how cells are stored and gone on with. `--tune`
scores on 1,000 pictures cut from training instead of the test part, with their true labels, to choose θ and warm-up.
`--watch` trains plainly on the same part and looks, after each epoch, at what every θ would have changed: from that
epoch's predictions, from the mean of all until then, and from the mean of clean passes."""
import gzip,time,warnings
from contextlib import contextmanager
from functools import partial
from json import dumps
from pathlib import Path

warnings.filterwarnings('ignore')
import numpy as np
import pandas as pd
import torch
from fastai.vision.all import Callback, DataLoader, DataLoaders, LabelSmoothingCrossEntropyFlat, Recorder, set_seed
import fastai.callback.schedule
from fastcore.script import call_parse, store_true
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict, train_test_split
from timm.models import group_parameters
from accuracy import compare, verdict
from cells import (Batches, Results, bare_learner, centre, decode, figures, normalize, pick_seeds, plan, predict,
    read_table, record, run_cells)
from fastai_mix.callback.plc import ProgressiveLabelCorrection, correct_labels
from fastai_mix.callback.snapmix import SnapMix
from fastai_mix.data.soft import SoftCrossEntropyLossFlat, soft_labels

methods = {'plain': [], 'smooth': [], 'soft': [], 'plc-batch': ['batch'], 'plc-epoch': ['epoch'], 'plc-pass': ['pass'],
           'snapmix': ['mix'], 'plc-snapmix': ['epoch','mix']}

def type_noise(post, y, kind, level=.35, seed=0):
    "Labels `y`, the share `level` of them changed to the likeliest other class of `post`, mostly where both are close"
    other = np.where(np.eye(post.shape[1], dtype=bool)[y], -1, post)
    s = other.argmax(1)
    gap = np.clip(post[np.arange(len(y)),y]-other.max(1), 0, 1)
    tau = {'type1': .5-gap**2/2, 'type2': 1-gap**3, 'type3': 1-(gap**3+gap**2+gap)/3}[kind]
    low,high = 0.,1e3
    for _ in range(60): # the factor at which the mean is `level`
        mid = (low+high)/2
        low,high = (mid,high) if np.clip(mid*tau, 0, 1).mean()<level else (low,mid)
    return np.where(np.random.default_rng(seed).random(len(y))<np.clip(low*tau, 0, 1), s, y)

def idx(file):
    "An array out of one of Fashion-MNIST's files"
    b = (gzip.open if file.suffix=='.gz' else open)(file, 'rb').read()
    n = b[3]
    return np.frombuffer(b, np.uint8, offset=4+4*n).reshape(*np.frombuffer(b, '>i4', n, 4))

class Data:
    "Pictures, true labels, and the labels of each noise"
    def __init__(self, data, noises, side, n=10_000):
        root = Path(data)
        files = [next(iter(sorted(root.glob(f'train-{o}*'))), None)
            for o in ('images','labels')] if root.is_dir() else [None]
        if all(files):
            x,y = (idx(o)[:n] for o in files)
            x = torch.from_numpy(x.copy())[:,None].expand(-1, 3, -1, -1).float()
            self.x = torch.nn.functional.interpolate(x, (side,side), mode='bicubic').round().clamp(0, 255).byte()
            self.true,self.vocab = torch.from_numpy(y.astype(np.int64)),[str(i) for i in range(10)]
            flat = idx(files[0])[:n].reshape(n, -1)/255.
            post = cross_val_predict(LogisticRegression(max_iter=200), flat, y, cv=3, method='predict_proba')
            self.noisy = {k: torch.from_numpy(type_noise(post, y, k)).long() for k in noises}
        else:
            df,root = read_table(data, ('image_id','clean',*noises))
            self.vocab = sorted(df.clean.unique())
            def num(c): return torch.tensor([self.vocab.index(o) for o in df[c]])
            self.x,self.true,self.noisy = decode(root, df.image_id, side),num('clean'),{k: num(k) for k in noises}

    def parts(self, tune):
        "Indices to train on and to score; the same for every seed"
        i,test = train_test_split(np.arange(len(self.x)), test_size=2000, stratify=self.true, random_state=0)
        return train_test_split(i, test_size=1000, stratify=self.true[i], random_state=1) if tune else (i,test)

class Tell(Callback):
    "Report progress over all epochs and count the pictures trained on"
    order = 70
    def __init__(self, tell): self.tell,self.n = tell,0
    def after_batch(self):
        if not self.training: return
        self.n += len(self.pred)
        self.tell((self.learn.epoch+(self.learn.iter+1)/self.n_iter)/self.n_epoch)

class Numbers:
    "A dataset of positions with their targets, whose pictures are augmented unless its split is 1"
    def __init__(self, y): self.y,self.split_idx = y,0
    def __len__(self): return len(self.y)
    def __getitem__(self, i): return i,self.y[i]
    @contextmanager
    def set_split_idx(self, i):
        old,self.split_idx = self.split_idx,i
        try: yield self
        finally: self.split_idx = old

def make_learner(data, i, y, cell, weights, cbs, tell, loss=None):
    "Learner on pictures `i` with targets `y`; its weights depend on the seed alone"
    set_seed(cell['seed'])
    aug = Batches(data.x[i], y, cell['bs'], 0, cell['size'], cell['seed'], None)
    g = torch.Generator().manual_seed(2*cell['seed']+1)
    numbers = Numbers(y)
    def batch(items):
        x = aug.x[torch.tensor([o[0] for o in items])]
        x = aug.augment(x, g) if numbers.split_idx==0 else centre(x, cell['size'])
        return normalize(x, aug.cfg),torch.stack([o[1] for o in items])
    dl = DataLoader(numbers, bs=cell['bs'], shuffle=True, drop_last=True, num_workers=0, create_batch=batch)
    dls = DataLoaders(dl, DataLoader(Numbers(y[:0]), bs=cell['bs'], num_workers=0), device='cpu')
    dls.vocab = data.vocab
    learn = bare_learner(dls, aug, cell, weights, len(data.vocab), [Tell(tell), *cbs], keep=[Recorder], loss=loss)
    learn.logger = lambda *_: None
    groups = group_parameters(learn.model, learn.model.group_matcher(coarse=True))
    for k in sorted(groups)[:cell['frozen']]:
        for n in groups[k]: learn.model.get_parameter(n).requires_grad_(False)
    return learn

def fit(learn, cell, epochs): learn.fit_one_cycle(epochs, slice(cell['lr']/10, cell['lr']))

def quality(given, now, true):
    "How right labels are before and after, and how right the changes"
    changed,wrong = now!=given,given!=true
    return dict(label_before=float((~wrong).float().mean()), label_after=float((now==true).float().mean()),
        changed=float(changed.float().mean()),
        precision=float((now==true)[changed].float().mean()) if changed.any() else None,
        recall=float((now==true)[wrong].float().mean()) if wrong.any() else None)

def run(cell, tell, data, weights, rec, tune):
    "Train and score one cell"
    train,test = data.parts(tune)
    given,true,m = data.noisy[cell['noise']][train],data.true[train],cell['method']
    start,res,n = time.time(),{},0
    if m=='soft':
        oof,third = torch.zeros(len(train), len(data.vocab)),cell['epochs']/4
        for k,(a,b) in enumerate(StratifiedKFold(3, shuffle=True, random_state=cell['seed']).split(train, given)):
            learn = make_learner(data, train[a], given[a], cell, weights, [], lambda p: None)
            fit(learn, cell, max(1, round(third)))
            n += learn.tell.n
            oof[b] = predict(learn.model, data.x[train[b]], cell['size'], learn.model.default_cfg)
        df = pd.DataFrame({'label': [data.vocab[j] for j in given]})
        soft = soft_labels(df, pd.DataFrame(oof.numpy(), columns=data.vocab), 'label', hard=False, where='all')
        y = torch.tensor(soft[data.vocab].to_numpy(), dtype=torch.float32)
        learn = make_learner(data, train, y, cell, weights, [], tell, SoftCrossEntropyLossFlat())
        fit(learn, cell, cell['epochs']//2)
        res = quality(given, y.argmax(1), true)
    else:
        parts = methods[m]
        cbs = [SnapMix(p=.5)]*('mix' in parts)
        when = next((o for o in parts if o!='mix'), None)
        if when:
            theta = tuple(cell['theta'])
            cbs.append(ProgressiveLabelCorrection(theta if len(theta)>1 else theta[0], warmup=cell['warmup'], when=when,
                rule=cell['rule']))
        learn = make_learner(data, train, given, cell, weights, cbs, tell,
            LabelSmoothingCrossEntropyFlat() if m=='smooth' else None)
        fit(learn, cell, cell['epochs'])
        if when: res = quality(given, learn.progressive_label_correction.current, true)
    seconds,cfg = time.time()-start,learn.model.default_cfg
    res.update(figures(predict(learn.model, data.x[test], cell['size'], cfg), data.true[test]))
    return dict(res, seconds=seconds, trained=n+learn.tell.n, n_train=len(train), n_test=len(test),
        date=time.strftime('%Y-%m-%d'), record=rec)

class Passes(Callback):
    "Keep the probabilities of a clean pass after each epoch"
    order = ProgressiveLabelCorrection.order+5
    def __init__(self): self.all = []
    def after_train(self):
        self.all.append(self.learn.progressive_label_correction._clean_pass())
        self.model.train()

def look(cell, data, weights):
    "What every θ would change after each epoch of a plain training, by three ways to look at the predictions"
    train,_ = data.parts(True)
    given,true = data.noisy[cell['noise']][train],data.true[train]
    plc,passes = ProgressiveLabelCorrection(1., warmup=0, window=cell['epochs']),Passes() # no gap is beyond 1
    learn = make_learner(data, train, given, cell, weights, [plc,passes], lambda p: None)
    fit(learn, cell, cell['epochs'])
    rows = []
    for e in range(cell['epochs']):
        for way,p in (('one epoch', plc.past[e]), ('mean of epochs', torch.stack(plc.past[:e+1]).nanmean(0)),
            ('mean of passes', torch.stack(passes.all[:e+1]).mean(0))):
            p = p.nan_to_num(1/p.shape[1]) # of a dropped last batch nothing is known
            rows += [dict(epoch=e+1, way=way, theta=t/20, **quality(given, correct_labels(p, given, t/20), true))
                for t in range(1, 15)]
    return dict({k: v for k,v in cell.items() if k!='method'}, rows=rows, date=time.strftime('%Y-%m-%d'),
        record=record())

settings = ['data','arch','part','size','frozen','epochs','bs','lr']

def tables(lines, part):
    df = pd.DataFrame(lines)
    df,res = df[df.part==part],[]
    df['name'] = [f"{o.method} θ={'–'.join(map(str, o.theta))} {o.warmup} {o.rule}" if isinstance(o.theta, list)
        else o.method for o in df.itertuples()]
    for key,d in df.groupby(settings+['noise'], sort=False):
        by = {m: o.set_index('seed') for m,o in d.groupby('name', sort=False)}
        rows = []
        for m,o in by.items():
            row = dict(method=m, n=len(o), trained=int(o.trained.median()))
            for k in ('accuracy','log_loss','ece','label_before','label_after','changed','precision','recall'):
                if k in o and o[k].notna().any():
                    row[k] = dict(mean=float(o[k].mean()), se=float(o[k].sem()) if len(o)>1 else None)
            if 'plain' in by and m!='plain': row['to_plain'] = compare(o.accuracy, by['plain'].accuracy)
            rows.append(row)
        res.append(dict(zip(settings+['noise'], key), rows=rows))
    return res

def show(tabs):
    cols = 'accuracy','log_loss','ece','label_before','label_after','changed','precision','recall'
    for t in tabs:
        print(f"\n{t['data']} {t['noise']}, {t['arch']}, {t['size']} px, {t['frozen']} stages frozen, {t['epochs']} "
            f"epochs, lr {t['lr']:g}")
        print(f"{'method':34s} seeds " + ' '.join(f'{k:>13s}' for k in cols))
        for r in t['rows']:
            c = r.get('to_plain', {})
            print(f"{r['method']:34s} {r['n']:5d} " + ' '.join(f"{r[k]['mean']:6.3f} ±{r[k]['se'] or float('nan'):.3f}"
                if k in r else ' '*13 for k in cols)
                  + (f"  {c['diff']:+.4f} to plain" + (f" [{c['low']:+.4f}, {c['high']:+.4f}] {verdict(c, 'accuracy')}"
                  if 'se' in c else '') if c else ''))

@call_parse
def main(
    data:str=None, # Folder or zip with labels.csv, or a folder with Fashion-MNIST's files
    arch:str='tf_efficientnet_lite0', # Name of a timm model
    weights:str=None, # File of its trained weights, such as weights.py writes
    size:int=64, # Side of the pictures trained on
    noise:str='worst', # Columns of labels.csv, or type1, type2, type3, with commas
    method:str='plain,smooth,soft,plc-batch,plc-epoch,snapmix,plc-snapmix', # With commas; also plc-pass
    theta:str='.7,.3', # First and last threshold of the label corrections, or one
    warmup:str='.5', # Their warm-up: a fraction, or whole epochs
    rule:str='gap', # Their rule
    epochs:int=8, # A multiple of 4: soft labels spend a quarter of them on each fold
    seeds:str='3', # How many seeds from 0 on, or a list with commas
    lr:float=.002, # Highest learning rate
    bs:int=32, # Pictures a step
    frozen:int=0, # The stem and stages that stay as they were trained, counted from the pictures
    threads:int=0, # Threads of torch; 0: as many as it takes by itself
    results:Path='noise.jsonl', # File of finished cells
    tune:store_true=False, # Score on 1,000 pictures cut from training
    watch:store_true=False, # Print what every θ would change, as one JSON object for each noise and seed
    report:store_true=False, # Only the table of what is in `results`
    json:store_true=False, # One JSON object on the last line
):
    "Train every method on every noise with every seed; then compare"
    noises,names,out,part = noise.split(','),method.split(','),Results(results),'valid' if tune or watch else 'test'
    bad = [o for o in names if o not in methods]
    if bad: raise SystemExit(f"no method {bad[0]!r}: expected {', '.join(methods)}")
    if epochs%4:
        raise SystemExit(f"--epochs {epochs}: expected a multiple of 4, since soft labels spend a quarter of them on "
            f"each fold")
    if not report:
        if data is None:
            raise SystemExit("--data is missing: a folder or zip with labels.csv, or a folder with Fashion-MNIST's "
                "files")
        if threads: torch.set_num_threads(threads)
        common = dict(data=Path(data).stem, arch=arch, part=part, size=size, frozen=frozen, epochs=epochs, bs=bs, lr=lr)
        plc = dict(theta=[float(o) for o in theta.split(',')],
            warmup=int(warmup) if warmup.isdigit() else float(warmup), rule=rule)
        cells = [dict(common, noise=k, method=m, seed=s, **(plc if m.startswith('plc') else {}))
            for s in pick_seeds(seeds) for k in noises for m in names]
        pictures = Data(data, noises, round(size*1.15))
        train,_ = pictures.parts(tune or watch)
        for k in noises:
            print(f"{k}: {float((pictures.noisy[k]!=pictures.true)[train].float().mean()):.3f} of {len(train)} labels "
                f"wrong")
        if watch:
            for s in pick_seeds(seeds):
                for k in noises: print(dumps(look(dict(common, noise=k, seed=s), pictures, weights)), flush=True)
            return
        seen = []
        learn = make_learner(pictures, train[:8*bs], pictures.true[train[:8*bs]], dict(common, seed=0), weights, [],
            lambda p: seen.append(time.perf_counter()))
        fit(learn, common, 1)
        rate = bs/np.median(np.diff(seen)[1:])
        def cost(c): return epochs*len(train)/rate*(1+.3*(c['method'] in ('snapmix','plc-snapmix')))
        keys = 'noise','method','seed'
        plan(cells, out, cost, rate, keys)
        run_cells(cells, partial(run, data=pictures, weights=weights, rec=record(), tune=tune), out, cost, keys)
    lines = [o for o in out.lines() if o['part']==part]
    if report and not lines: raise SystemExit(f"no finished cell in {results}")
    tabs = tables(lines, part) if lines else []
    show(tabs)
    if json: print(dumps(dict(tables=tabs, record=record())))
