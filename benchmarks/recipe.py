"""Which training is the best to get without choosing? Candidates are compared on several sets, and a rule picks one.

    python benchmarks/recipe.py --root DIR --weights lite0.safetensors --phase rates
    python benchmarks/recipe.py --root DIR --weights lite0.safetensors --phase choose
    python benchmarks/recipe.py --root DIR --weights lite0.safetensors --phase again
    python benchmarks/recipe.py --root DIR --weights lite0.safetensors --phase test
    python benchmarks/recipe.py --root DIR --weights lite0.safetensors --phase twice
    python benchmarks/recipe.py --report [--json]

DIR holds the sets as folders or zip files with `labels.csv`: clothing, apple, grocery, cifar10n; the leaves are drawn.

Parts. A set has a test part: its own (of clothing with the split that is called validation), or 40% drawn once. From
the rest each seed draws the pictures to train on: `per_class` of each class, or a share that keeps the proportions of
the classes. What is left of the training part is the validation part, at most 1,500 pictures of it.

Regimes. `pretrained`: lite0 with ImageNet weights at 96 px, `fine_tune`, which trains the head alone for an epoch and
then all, for 10 and for 40 epochs. For 20 epochs the winner of 40 alone is compared with plain training, to see from
where on it serves. `scratch`: resnet18 at 64 px, `fit_one_cycle` for 20 epochs. 32 pictures a step.

Cost. A cell trains on as many pictures as plain training: with `echo` 16 pictures are loaded a step, each is trained on
clean and mixed, and the epochs are halved. In the epoch of the head alone `echo` trains on twice as many, at a third of
the price of a picture. All of it is in `cpu_seconds`.

`rates` trains plainly with seed 10 at several learning rates and validates, and lets `lr_find` suggest one with three
seeds: what is lost by a rate that is found, and by a fixed one? Fine-tuning has two of them, `lr` of the head and
`lr/lr_mult` of the first layers. The rates that lose least on average over the sets are those of the regime in the
other phases.

The rule, written before any cell of a test part was run. For each regime and length all candidates are trained on the
draws of seed 10 and scored on the validation part; plain training and the two best of them on those of seed 11 as well.
The score of a candidate is the mean of its accuracy beyond that of plain training over seeds and sets; each set weighs
the same. Out are candidates that were trained on fewer than three sets (added later; it changed no winner at the rates
above; at 40 epochs the settings `-early` were added when others had been validated), and those whose log-loss is higher
than plain training's on average over the sets. The highest score wins; of those within .002 of it the one that stands
first in the list below, as it is the simpler one; plain training if no score is above 0. Then fastai's default rates
with nothing else, plain training and the winner, both at the rates above, are trained with the seeds 0 to 4 and scored
on the test parts, once.

`twice` asks what of `echo` is its mix, and what that each picture is trained on twice in a step. It trains plainly on
batches of 16 pictures, each of them twice and augmented anew each time (batch augmentation, Hoffer et al., CVPR 2020),
in half of the epochs, as many steps and pictures as with `echo`; seeds 10 and 11, validation parts."""
import time,warnings
from functools import partial
from json import dumps
from pathlib import Path
from tempfile import TemporaryDirectory

warnings.filterwarnings('ignore')
import numpy as np
import pandas as pd
import torch
from fastai.vision.all import (Callback, DataLoaders, LabelSmoothingCrossEntropyFlat, Recorder, minimum, slide, steep,
    valley)
import fastai.callback.schedule
from fastcore.script import call_parse, store_true
from sklearn.model_selection import train_test_split
from fastai_mix.recipe import make_setting
from accuracy import compare, verdict
from cells import (Batches, Results, bare_learner, decode, figures, normalize, plan, predict, read_table, record,
    run_cells)

# settings of the package, and label smoothing; simpler ones first
candidates = ('plain','smooth','ema','mixup','mixup-echo','cutmix-echo','manifold','manifold-echo','mixup-early',
    'cutmix-early','snapmix-early','snapmix-echo')
compared = {('pretrained',10): [o for o in candidates if o not in ('manifold-echo','mixup-early','cutmix-early')],
    ('pretrained',20): ['plain','snapmix-early'],
    ('pretrained',40): ['plain','ema','mixup','manifold','mixup-early','cutmix-early','snapmix-early','snapmix-echo'],
    ('scratch',20): ['plain','ema','mixup','mixup-echo','manifold','manifold-echo','snapmix-echo']}
of_echo = ['plain','twice','mixup-echo','cutmix-echo','snapmix-echo']
# what is drawn from the training part: pictures a class, or a share of all
sets = {'clothing': dict(per_class=40), 'apple': dict(share=.25), 'grocery': dict(per_class=5),
    'leaves': dict(share=400/1200), 'cifar10n': dict(per_class=40)}
regimes = {'pretrained': dict(arch='tf_efficientnet_lite0', size=96, lengths=(10,20,40), lr=.004, lr_mult=5),
    'scratch': dict(arch='resnet18', size=64, lengths=(20,), lr=.004)}
# what `fine_tune` and `fit_one_cycle` take when nothing is given
defaults = {'pretrained': dict(lr=.002, lr_mult=100), 'scratch': dict(lr=.001)}
rates = {'pretrained': [dict(lr=o, lr_mult=100) for o in (.001,.002,.004,.008,.016)]
    + [dict(lr=lr, lr_mult=m) for lr,m in ((.002,3),(.002,10),(.004,2),(.004,5),(.004,10),(.004,30),(.008,30))],
    'scratch': [dict(lr=o) for o in (.001,.002,.004,.008,.016)]}
suggestions = dict(valley=valley, minimum=minimum, steep=steep, slide=slide)

class Data:
    "The pictures of a set in memory, and their parts"
    def __init__(self, name, root, side):
        if name=='leaves':
            from fastai_mix.data.leaves import leaf_data
            folder = leaf_data(n=2000)
            df = pd.read_csv(folder/'train.csv').assign(label=lambda d: d.labels)
            df['image_id'] = 'images/'+df.image_id+'.jpg'
        else:
            path = root/name if (root/name).is_dir() else root/f'{name}.zip'
            df,folder = read_table(path, need=('image_id',))
            if 'clean' in df: df = df.assign(label=df.clean)
        self.df,self.vocab = df,sorted(df.label.unique())
        self.y = torch.tensor([self.vocab.index(o) for o in df.label])
        self.x = decode(folder, df.image_id, side)

    def cut(self, i, n, seed):
        "`i` without `n` of them (a number or a share), and these; both with all classes in proportion"
        return train_test_split(i, test_size=n, stratify=self.y[i], random_state=seed)

    def parts(self, seed, per_class=None, share=None):
        "Indices to train on, to validate on and to test on"
        i = np.arange(len(self.df))
        if 'split' in self.df: pool,test = i[self.df.split=='train'],i[self.df.split!='train']
        else: pool,test = self.cut(i, .4, 0)
        n_train = per_class*len(self.vocab) if per_class else round(share*len(pool))
        if per_class:
            drawn = pd.Series(pool).sample(frac=1, random_state=seed)
            train = np.sort(drawn.groupby(self.y[drawn.to_numpy()].numpy()).head(per_class).to_numpy())
        else: train = self.cut(pool, n_train, seed)[1]
        valid = np.setdiff1d(pool, train)
        return train,valid if len(valid)<=1500 else self.cut(valid, 1500, seed)[1],test

class Epochs(Batches):
    "Epochs of batches that go on where the one before ended; each picture is `repeats` times in a batch"
    repeats = 1
    def __iter__(self):
        if not hasattr(self, 'generators'):
            self.generators = [torch.Generator().manual_seed(2*self.seed+i) for i in range(2)]
            self.drawn = self.order(self.generators[0])
        for _ in range(self.steps):
            i = [next(self.drawn) for _ in range(self.bs)]*self.repeats
            yield normalize(self.augment(self.x[i], self.generators[1]), self.cfg),self.y[i]

class Tell(Callback):
    "Report progress and count the pictures trained on"
    def __init__(self, tell, total): self.tell,self.total,self.n = tell,total,0
    def after_batch(self):
        if not self.training: return
        self.n += len(self.pred)
        self.tell(min(1., self.n/self.total))

def make_learner(cell, data, train, weights, device, tell=lambda part: None, keep=()):
    "Learner of `cell`; its weights are the same for all candidates of a seed"
    cbs = [] if cell['mix'] in ('smooth','twice') else make_setting(cell['mix'])
    halved = cell['mix']=='twice' or any(getattr(cb, 'echo', False) for cb in cbs)
    bs,n_epochs = (16,cell['epochs']//2) if halved else (32,cell['epochs'])
    batches = Epochs(data.x[train], data.y[train], bs, len(train)//bs, cell['size'], cell['seed'], None)
    if cell['mix']=='twice': batches.repeats = 2
    total = len(train)*(cell['epochs']+(cell['regime']=='pretrained'))
    learn = bare_learner(DataLoaders(batches, [], device=device), batches, cell,
        weights if cell['regime']=='pretrained' else None, len(data.vocab), [Tell(tell, total), *cbs], keep,
        LabelSmoothingCrossEntropyFlat() if cell['mix']=='smooth' else None)
    if device!='cpu': learn.model.to(device)
    return learn,n_epochs

def run(cell, tell, load, weights, device, rec):
    "Train and score one cell"
    data = load(cell['data'], cell['size'])
    train,valid,test = data.parts(cell['seed'], **sets[cell['data']])
    scored = test if cell['part']=='test' else valid
    learn,n_epochs = make_learner(cell, data, train, weights, device, tell)
    start,cpu = time.time(),time.process_time()
    if cell['regime']=='pretrained': learn.fine_tune(n_epochs, cell['lr'], lr_mult=cell['lr_mult'])
    else: learn.fit_one_cycle(n_epochs, cell['lr'])
    seconds,cpu = time.time()-start,time.process_time()-cpu
    score = figures(predict(learn.model, data.x[scored], cell['size'], learn.model.default_cfg), data.y[scored])
    return dict(score, seconds=seconds, cpu_seconds=cpu, trained=learn.tell.n, n_train=len(train),
        n_scored=len(scored), date=time.strftime('%Y-%m-%d'), record=rec)

def find_rates(cell, tell, load, weights, device, rec):
    "What `lr_find` suggests for one cell, by each way of reading it"
    data = load(cell['data'], cell['size'])
    train,_,_ = data.parts(cell['seed'], **sets[cell['data']])
    learn,_ = make_learner(cell, data, train, weights, device, keep=(Recorder,))
    if cell['regime']=='pretrained': learn.freeze() # as vision_learner hands it over
    with TemporaryDirectory() as tmp:
        learn.path = Path(tmp)
        found = learn.lr_find(num_it=80, show_plot=False, suggest_funcs=tuple(suggestions.values()))
    return dict({f'found_{k}': float(v) for k,v in zip(suggestions, found)}, date=time.strftime('%Y-%m-%d'), record=rec)

def make_cells(phase, names, regime, length, winners):
    "The cells of a phase, seed by seed: what stops early can be compared"
    def cell(data, regime, epochs, mix, seed, part, lr=rate(regime)):
        r = regimes[regime]
        return dict(data=data, arch=r['arch'], regime=regime, size=r['size'], epochs=epochs, part=part,
            **lr, mix=mix, seed=seed)
    if phase=='rates':
        yield from (cell(d, regime, length, 'plain', 10, 'valid', o) for d in names for o in rates[regime])
        yield from (cell(d, regime, length, 'plain', s, 'find', dict(lr=1.)) for d in names for s in (10,11,12))
        return
    if phase=='test':
        arms = [('plain',defaults[regime]), *((m,rate(regime)) for m in ('plain',*winners))]
        yield from (cell(d, regime, length, m, s, 'test', lr) for s in range(5) for d in names for m,lr in arms)
        return
    if phase=='twice':
        yield from (cell(d, regime, length, m, s, 'valid') for s in (10,11) for d in names for m in of_echo)
        return
    seed,mixes = (10,compared[regime,length]) if phase=='choose' else (11,['plain',*winners])
    yield from (cell(d, regime, length, m, seed, 'valid') for d in names for m in mixes)

def rate(regime): return {k: v for k,v in regimes[regime].items() if k in ('lr','lr_mult')}

def beyond_plain(d, mixes):
    "Means over sets of what each of `mixes` scores beyond plain training with the same pictures and seed"
    scores,at,rows = ['accuracy','macro_f1','log_loss'],['data','seed'],[]
    plain = d[d['mix']=='plain'].set_index(at)
    for mix in (o for o in mixes if o in set(d['mix'])):
        diff = (d[d['mix']==mix].set_index(at)[scores]-plain[scores]).dropna()
        by_set = diff.groupby('data').mean()
        if len(by_set)>=3: rows.append(dict(mix=mix, n=len(diff), **by_set.mean(), by_set=by_set.accuracy.to_dict()))
    return rows

def choose(lines):
    "Scores of all candidates of each regime, length and rate on the validation parts, and the winner by the rule"
    df = pd.DataFrame([o for o in lines if o['part']=='valid']).fillna({'lr_mult': 0})
    res = []
    for (regime,length,lr,mult),d in df.groupby(['regime','epochs','lr','lr_mult'], sort=False):
        rows = beyond_plain(d[d.seed==10], compared[regime,length])
        if len(rows)<2: continue
        able = [o for o in rows if o['log_loss']<=0 and o['mix']!='plain']
        best = [o['mix'] for o in sorted(able, key=lambda o: -o['accuracy'])[:2]]
        final = beyond_plain(d, [o['mix'] for o in rows if o['mix'] in ('plain',*best)]) # in the order of the list
        again = {o['mix']: o for o in final}
        top = max(o['accuracy'] for o in final)
        own = dict(lr=lr, lr_mult=mult) if mult else dict(lr=lr)
        res.append(dict(regime=regime, epochs=length, rate=own, of_recipe=own==rate(regime),
            rows=[again.get(o['mix'], o) for o in rows], best=best,
            winner=next(o['mix'] for o in final if o['accuracy']>=top-.002)))
    return res

def test_table(lines):
    "Scores of each arm on the test parts, and paired differences to fastai's default rates and to plain training"
    df,res = pd.DataFrame([o for o in lines if o['part']=='test']),[]
    if df.empty: return res
    for (regime,length,data),d in df.groupby(['regime','epochs','data'], sort=False):
        arm = d['mix'].where(d.lr!=defaults[regime]['lr'], 'default')
        by = {m: o.set_index('seed') for m,o in d.groupby(arm, sort=False)}
        for arm,o in by.items():
            row = dict(regime=regime, epochs=length, data=data, arm=arm, n=len(o), seconds=float(o.seconds.mean()))
            for k in ('accuracy','macro_f1','log_loss','ece'):
                row[k] = dict(mean=float(o[k].mean()), se=float(o[k].sem()))
                for to in ('default','plain'):
                    if arm!=to and to in by: row[k][f'to_{to}'] = compare(o[k], by[to][k])
            res.append(row)
    return res

def twice_table(lines):
    "`echo`, and plain training on batches with each picture twice: paired differences to plain training, and to that"
    df = pd.DataFrame([o for o in lines if o['part']=='valid' and o['mix'] in of_echo])
    res = []
    for (regime,length),d in df.groupby(['regime','epochs'], sort=False):
        d = d[(d[list(rate(regime))]==rate(regime)).all(axis=1)]
        by = {m: o.set_index(['data','seed']).sort_index() for m,o in d.groupby('mix', sort=False)}
        if 'twice' not in by: continue
        cells = by['twice'].index
        for mix in (o for o in of_echo[1:] if o in by and cells.isin(by[o].index).all()):
            own,row = by[mix].loc[cells],dict(regime=regime, epochs=length, mix=mix, n=len(cells))
            for k in ('accuracy','log_loss'):
                row[k] = {f'to_{to}': compare(own[k], by[to].loc[cells, k]) for to in ('plain','twice') if to!=mix}
            diff = own.accuracy-by['plain'].loc[cells].accuracy
            res.append(dict(row, by_set=diff.groupby('data').mean().to_dict()))
    return res

def rate_name(cell):
    "The learning rate of the head and, if it is not fastai's 100, by how much that of the first layers is below it"
    mult = getattr(cell, 'lr_mult', 100)
    return f'{cell.lr:g}' if mult!=mult or mult==100 else f'{cell.lr:g}/{mult:g}'

def rate_table(lines):
    "Accuracy at each rate, what `lr_find` found, and what either loses to the best rate of the set"
    df = pd.DataFrame([o for o in lines if o['part'] in ('valid','find') and o['mix']=='plain'])
    res = []
    if 'found_valley' not in df: return res
    for (regime,data),d in df.groupby(['regime','data'], sort=False):
        length = regimes[regime]['lengths'][0]
        own = d[(d.part=='valid') & (d.seed==10) & (d.epochs==length)]
        tried = own[(own.lr_mult==100) | own.lr_mult.isna()].set_index('lr').accuracy.sort_index()
        found = d[d.part=='find']
        if len(tried)<2 or found.empty: continue
        def at(lr): return float(np.interp(np.log(lr), np.log(tried.index), tried))
        res.append(dict(regime=regime, data=data, accuracy={rate_name(o): o.accuracy for o in own.itertuples()},
            found={k: found[f'found_{k}'].tolist() for k in suggestions},
            lost={k: [float(tried.max()-at(o)) for o in found[f'found_{k}']] for k in suggestions}))
    return res

def in_words(rate): return ', '.join(f'{k} {v:g}' for k,v in rate.items())

def show(chosen, tests, tried, twice):
    for t in tried:
        print(f"{t['regime']:10s} {t['data']:9s} accuracy at "
            + ' '.join(f'{k}: {v:.3f}' for k,v in t['accuracy'].items()))
        for k in suggestions:
            print(f"    {k:8s} found {' '.join(f'{o:.2g}' for o in t['found'][k])}, "
                f"loses {' '.join(f'{o:.3f}' for o in t['lost'][k])}")
    for c in chosen:
        print(f"\n{c['regime']}, {c['epochs']} epochs, {in_words(c['rate'])}: accuracy, macro-F1 and log-loss "
            f"beyond plain on the validation parts; winner {c['winner']}")
        for o in c['rows']:
            print(f"  {o['mix']:18s} {o['accuracy']:+.4f} {o['macro_f1']:+.4f} {o['log_loss']:+.4f}  n={o['n']}  "
                + ' '.join(f'{k} {v:+.3f}' for k,v in o['by_set'].items()))
    for r in tests:
        print(f"\n{r['regime']} {r['data']} {r['epochs']} epochs {r['arm']} n={r['n']} {r['seconds']:.0f} s: "
            + ', '.join(f"{k} {r[k]['mean']:.4f}" for k in ('accuracy','macro_f1','log_loss','ece')))
        for to in ('default','plain'):
            for k in ('accuracy','macro_f1','log_loss','ece'):
                if 'se' in (c := r[k].get(f'to_{to}', {})):
                    print(f"  {k:9s} beyond {to} {c['diff']:+.4f} [{c['low']:+.4f}, {c['high']:+.4f}] {verdict(c, k)}")

    for o in twice:
        print(f"\n{o['regime']} {o['epochs']} epochs {o['mix']} n={o['n']}, accuracy beyond plain by set: "
            + ' '.join(f'{k} {v:+.3f}' for k,v in o['by_set'].items()))
        for k in ('accuracy','log_loss'):
            for to,c in o[k].items():
                print(f"  {k:9s} beyond {to[3:]} {c['diff']:+.4f} [{c['low']:+.4f}, {c['high']:+.4f}] {verdict(c, k)}")

def loader(root):
    "A function that returns the pictures of a set, and keeps the last ones"
    kept = {}
    def load(name, size):
        if (name,size) not in kept:
            kept.clear()
            kept[name,size] = Data(name, root, round(size*1.15))
        return kept[name,size]
    return load

@call_parse
def main(
    root:Path=Path('.'), # Folder with the sets
    weights:str=None, # File of ImageNet weights of lite0, such as weights.py writes
    phase:str='choose', # rates, choose, again (the two best once more), test or twice
    data:str=','.join(sets), # Sets, with commas between them
    regime:str='pretrained', # pretrained or scratch
    epochs:int=None, # Length of the cells; None: the shortest of the regime
    threads:int=0, # Threads of torch; 0: as many as it takes by itself
    device:str='cpu', # Device to train on
    results:Path=Path('benchmarks/results/recipe.jsonl'), # File of finished cells
    report:store_true=False, # Only the tables of what is in `results`
    json:store_true=False, # One JSON object on the last line
):
    "Train the candidates of a phase; then compare"
    out = Results(results)
    if not report:
        if threads: torch.set_num_threads(threads)
        load,length = loader(root),epochs or regimes[regime]['lengths'][0]
        chosen = next((o for o in choose(out.lines()) if o['of_recipe'] and (o['regime'],o['epochs'])==(regime,length)),
            None)
        def cells_of(phase):
            picked = [] if chosen is None else chosen['best'] if phase=='again' else [chosen['winner']]
            return list(make_cells(phase, data.split(','), regime, length, [o for o in picked if o!='plain']))
        if phase=='test' and any(out.find(o) is None for o in cells_of('again')):
            raise SystemExit('--phase test: the winner is known when --phase again is done for these sets')
        cells = cells_of(phase)
        def cost(c): return 20 if c['part']=='find' else 400*c['epochs']/(110 if c['regime']=='pretrained' else 160)
        plan(cells, out, cost, 110, ('regime','data','epochs','mix','seed'))
        def work(cell, tell):
            return (find_rates if cell['part']=='find' else run)(cell, tell, load, weights, device, record())
        run_cells(cells, work, out, cost, ('regime','data','epochs','mix','lr','seed'))
    lines = out.lines()
    valid = [o for o in lines if o['part']=='valid']
    chosen,tests,tried = choose(lines) if valid else [],test_table(lines),rate_table(lines)
    twice = twice_table(lines)
    show(chosen, tests, tried, twice)
    if json: print(dumps(dict(chosen=chosen, tests=tests, rates=tried, twice=twice, record=record())))
