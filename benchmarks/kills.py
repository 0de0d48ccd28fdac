"Does a cross-validation that is killed again and again end as if nothing had happened? And do processes on one folder share the folds?"
import argparse,json,multiprocessing,os,random,shutil,sys,tempfile,time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from fastai.vision.all import (Callback, CategoryBlock, ColReader, ConvLayer, DataBlock, Dihedral, Flatten, ImageBlock, Learner, Resize, accuracy,
                               default_split, nn)
from safetensors.torch import load_file

from fastai_mix.callback.snapmix import SnapMix
from fastai_mix.checkpoint import load_state
from fastai_mix.crossval import CrossVal
from fastai_mix.data.folds import FoldSplitter, add_folds
from fastai_mix.data.leaves import leaf_data

processes = multiprocessing.get_context('forkserver')
processes.set_forkserver_preload(['fastai.vision.all','fastai_mix.crossval','fastai_mix.callback.snapmix','fastai_mix.data.leaves'])

def table(leaves):
    df = pd.read_csv(leaves/'train.csv').rename(columns={'labels':'label'})[['image_id','label']]
    return add_folds(df, 'label', n_splits=3, id_col='image_id')

class Data:
    "DataLoaders of the leaves in a folder"
    def __init__(self, leaves): self.leaves = leaves
    def __call__(self, df, fold):
        block = DataBlock((ImageBlock, CategoryBlock), get_x=ColReader('image_id', pref=self.leaves/'images', suff='.jpg'), get_y=ColReader('label'),
            splitter=FoldSplitter(fold, oversample={'multiple_diseases':3}, check=False), item_tfms=Resize(32), batch_tfms=Dihedral())
        return block.dataloaders(df, bs=8, num_workers=0, device='cpu')

def small_learner(dls):
    model = nn.Sequential(nn.Sequential(ConvLayer(3, 8, stride=2), ConvLayer(8, 16, stride=2)), nn.Sequential(nn.AdaptiveAvgPool2d(1), Flatten(), nn.Linear(16, dls.c)))
    return Learner(dls, model, metrics=accuracy, splitter=default_split, cbs=SnapMix(p=.5))

class Slow(Callback):
    "Make each epoch take a while, so that processes overlap"
    def after_epoch(self): time.sleep(.05)

class logged:
    "`small_learner`, and a line in a file for each that is made"
    def __init__(self, log): self.log = log
    def __call__(self, dls):
        with open(self.log, 'a') as f: f.write(f'{os.getpid()} {sorted(dls.valid.items.fold.unique())[0]}\n')
        return small_learner(dls).add_cb(Slow())

def fine_tune(learn): learn.fine_tune(2, 1e-2)

def child(leaves, run, learner=small_learner, slow=0.):
    "Fit all folds, silently; each sync to the disk takes up to `slow` seconds more"
    torch.set_num_threads(1)
    sys.stdout = open(os.devnull, 'w')
    if slow:
        fsync,rng = os.fsync,random.Random(os.getpid())
        os.fsync = lambda fd: (time.sleep(slow*rng.random()), fsync(fd))
    CrossVal(table(leaves), Data(leaves), learner, run).fit(fine_tune)

def read_all(run):
    "Read every file that has its name; an unreadable one raises"
    n = 0
    for f in [o for o in run.rglob('*') if o.is_file() and not o.name.startswith('.')]:
        try:
            if f.suffix=='.json': json.loads(f.read_text())
            elif f.suffix=='.csv': assert len(pd.read_csv(f))>0
            elif f.name=='model.safetensors': load_file(f)
            elif f.suffix=='.safetensors': assert load_state(f)['done']>0
            n += 1
        except Exception: # not every reader says so by FileNotFoundError
            if f.exists(): raise
    return n

def result(leaves, run):
    "What a run ends with: probabilities as they are in the files, weights, history without times"
    cv = CrossVal(table(leaves), Data(leaves), small_learner, run)
    weights = [v for k in cv.folds for v in load_file(run/f'fold_{k}'/'model.safetensors').values()]
    return [(run/f'fold_{k}'/'oof.csv').read_bytes() for k in cv.folds],weights,cv.history.drop(columns='time')

def equal(a, b): return a[0]==b[0] and all(torch.equal(x, y) for x,y in zip(a[1], b[1])) and a[2].equals(b[2])

def start(*args):
    p = processes.Process(target=child, args=args)
    p.start()
    return p

def kills(n=50, seed=0, longest=4.):
    "Kill runs `n` times, at random moments; compare each that ends with one that was never killed"
    rng,tmp = random.Random(seed),Path(tempfile.mkdtemp())
    try:
        leaves = leaf_data(tmp/'leaves', n=60, size=64)
        t = time.perf_counter()
        start(leaves, tmp/'whole').join()
        secs,whole = time.perf_counter()-t,result(leaves, tmp/'whole')
        done,in_write,runs,reads,same = 0,0,0,0,0
        while done<n:
            run = tmp/f'run{runs}'
            while True:
                p,end = start(leaves, run, small_learner, .2),time.perf_counter()+(rng.uniform(.1, longest) if done<n else 1e9)
                while p.is_alive() and time.perf_counter()<end:
                    reads += read_all(run)
                    time.sleep(.01)
                if not p.is_alive(): break
                p.kill()
                p.join()
                done += 1
                in_write += any(run.rglob('.*.part'))
                reads += read_all(run)
            p.join()
            assert p.exitcode==0, f'a run ended with {p.exitcode}'
            runs += 1
            same += equal(whole, result(leaves, run))
            assert not list(run.rglob('.*.part')) and not list(run.rglob('checkpoints'))
        return dict(kills=done, inside_a_write=in_write, runs=runs, equal_to_unkilled=same, files_read=reads, unkilled_seconds=round(secs, 1))
    finally: shutil.rmtree(tmp)

def rounds(n=20, workers=2):
    "Start `workers` processes at once on one folder; count how often a fold was trained"
    tmp = Path(tempfile.mkdtemp())
    try:
        leaves,twice,lost,shared = leaf_data(tmp/'leaves', n=60, size=64),0,0,0
        for i in range(n):
            run,log = tmp/f'run{i}',tmp/f'log{i}'
            ps = [start(leaves, run, logged(log)) for _ in range(workers)]
            for p in ps: p.join()
            assert all(p.exitcode==0 for p in ps)
            lines = [o.split() for o in log.read_text().splitlines()]
            folds = [f for _,f in lines]
            twice,lost,shared = twice+len(folds)-len(set(folds)),lost+3-len(set(folds)),shared+(len({p for p,_ in lines})>1)
            CrossVal(table(leaves), Data(leaves), small_learner, run).oof
        return dict(rounds=n, workers=workers, folds_trained_twice=twice, folds_lost=lost, rounds_shared=shared)
    finally: shutil.rmtree(tmp)

if __name__=='__main__':
    sys.path.insert(0, str(Path(__file__).parent))
    import kills as this # children find the functions by this name
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--kills', type=int, default=50)
    p.add_argument('--rounds', type=int, default=20)
    p.add_argument('--json', action='store_true', help='end with one JSON object')
    o = p.parse_args()
    res = {**this.kills(o.kills), **this.rounds(o.rounds)}
    for k,v in res.items(): print(f'{k:20} {v}')
    if o.json: print(json.dumps(res))
