"""Does a cross-validation, or the command, that is killed again and again end as if nothing had happened? And do
processes on one folder share the folds?"""
import argparse,json,multiprocessing,os,random,shutil,signal,sys,tempfile,time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from fastai.vision.all import (Callback, CategoryBlock, ColReader, ConvLayer, DataBlock, Dihedral, Flatten, ImageBlock,
    Learner, Resize, accuracy, default_split, nn)
from safetensors.torch import load_file

from fastai_mix.callback.snapmix import SnapMix
from fastai_mix.checkpoint import load_state
from fastai_mix.crossval import CrossVal
from fastai_mix.data.folds import FoldSplitter, add_folds
from fastai_mix.data.leaves import leaf_data
from fastai_mix.files import read_json

# they begin with all imports done, which take seconds
processes = multiprocessing.get_context('forkserver')
processes.set_forkserver_preload(['fastai.vision.all','fastai_mix.cli','fastai_mix.crossval',
    'fastai_mix.callback.snapmix','fastai_mix.data.leaves','fastai_mix.review'])

def table(leaves):
    df = pd.read_csv(leaves/'train.csv').rename(columns={'labels':'label'})[['image_id','label']]
    return add_folds(df, 'label', n_splits=3, id_col='image_id')

class Data:
    "DataLoaders of the leaves in a folder"
    def __init__(self, leaves): self.leaves = leaves
    def __call__(self, df, fold):
        block = DataBlock((ImageBlock, CategoryBlock),
            get_x=ColReader('image_id', pref=self.leaves/'images', suff='.jpg'), get_y=ColReader('label'),
            splitter=FoldSplitter(fold, oversample={'multiple_diseases':3}, check=False), item_tfms=Resize(32),
            batch_tfms=Dihedral())
        return block.dataloaders(df, bs=8, num_workers=0, device='cpu')

def small_learner(dls):
    model = nn.Sequential(nn.Sequential(ConvLayer(3, 8, stride=2), ConvLayer(8, 16, stride=2)),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), Flatten(), nn.Linear(16, dls.c)))
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
    # folders may go meanwhile
    files = [Path(folder)/o for folder,_,names in os.walk(run) for o in names if not o.startswith('.')]
    for f in files:
        try:
            if f.suffix=='.json': read_json(f)
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
                p,end = start(leaves, run, small_learner,
                    .2),time.perf_counter()+(rng.uniform(.1, longest) if done<n else 1e9)
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
        return dict(kills=done, inside_a_write=in_write, runs=runs, equal_to_unkilled=same, files_read=reads,
            unkilled_seconds=round(secs, 1))
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
            twice,lost,shared = twice+len(folds)-len(set(folds)),lost+3-len(set(folds)),shared+(
                len({p for p,_ in lines})>1)
            CrossVal(table(leaves), Data(leaves), small_learner, run).oof
        return dict(rounds=n, workers=workers, folds_trained_twice=twice, folds_lost=lost, rounds_shared=shared)
    finally: shutil.rmtree(tmp)

# ---- the command, killed at each of its writes

commands = {
    'one fold':   dict(fold=1, folds=2, mix='snapmix', lr='find'),
    'folds':      dict(folds=2, mix='cutmix', lr=1e-3),
    'echo':       dict(fold=0, folds=2, mix='snapmix', echo=True, lr=1e-3),
    'choice':     dict(folds=2, mix='snapmix,cutmix,gridmask', plc=True, oversample='multiple_diseases=2', lr=1e-3),
    'submission': dict(fold=0, folds=2, mix='none', tta='flips', lr=1e-3, test='../leaves/test',
    sample='../leaves/sample.csv')}

def pictures(tmp):
    "Leaves to train on, a few to predict, and a sample submission"
    leaves = leaf_data(tmp/'leaves', n=40, size=64)
    (leaves/'test').mkdir()
    others = sorted((leaf_data(tmp/'others', n=40, size=64, seed=1)/'images').iterdir())[:6]
    for f in others: shutil.copy(f, leaves/'test')
    classes = dict.fromkeys(sorted(set(pd.read_csv(leaves/'train.csv').labels)), 0.)
    pd.DataFrame({'image_id':[f.stem for f in others[::-1]], **classes}).to_csv(leaves/'sample.csv', index=False)

def kill_at(at):
    "Have this process kill itself at write number `at`; returns the list of writes"
    import safetensors.torch
    seen = []
    def event(name):
        seen.append(name)
        if len(seen)-1==at: os.kill(os.getpid(), signal.SIGKILL)
    def after(f, name):
        def wrapped(*args, **kwargs):
            res = f(*args, **kwargs)
            event(name)
            return res
        return wrapped
    def halfway(f): # safetensors has a file of its own until it is done
        def wrapped(tensors, path, *args, **kwargs):
            own = Path(path).parent/'.tmpAb3dEf'
            own.write_bytes(b'half')
            event('half')
            own.unlink()
            return f(tensors, path, *args, **kwargs)
        return wrapped
    fsync = os.fsync
    def synced(fd):
        event('written')
        fsync(fd)
    os.fsync = synced
    for name in ('replace','mkdir','unlink','rmdir'): setattr(os, name, after(getattr(os, name), name))
    safetensors.torch.serialize_file = halfway(safetensors.torch.serialize_file)
    torch.save = after(torch.save, 'save')
    return seen

def call(folder, name, write=None):
    "Run a command in `folder`; killed at write number `write`"
    os.chdir(folder)
    for fd in (1,2): os.dup2(os.open('log', os.O_WRONLY | os.O_CREAT | os.O_APPEND), fd)
    torch.set_num_threads(1)
    from fastai.vision.all import defaults,plt
    from fastai_mix.cli import main
    defaults.use_cuda = False # one device for all, to the bit
    plt.switch_backend('agg')
    n = kill_at(write)
    main(**{**dict(data='../leaves/train.csv', label_col='labels', arch='test_resnet', size=32, bs=8, epochs=2,
        out='run'), **commands[name]})
    if write is None: (Path(folder)/'writes').write_text(str(len(n)))

def ran(*args):
    "Exit code of `call`"
    p = processes.Process(target=call, args=args)
    p.start()
    p.join()
    return p.exitcode

def outputs(run):
    "All files of a run, without times"
    def read(f):
        if f==run/'config.json': return {k:v for k,v in read_json(f).items() if k!='folder'} # where the command ran
        if f.name=='fold.json': # the checksums are also of times
            return {k:v for k,v in read_json(f).items() if k!='checksums' and not k.endswith('seconds')}
        if f.name=='history.csv': return pd.read_csv(f, dtype=str).drop(columns='time', errors='ignore').to_csv()
        return f.read_bytes()
    return {str(f.relative_to(run)): read(f) for f in sorted(run.rglob('*')) if f.is_file() and f.name!='.lock'}

def differing(a, b): return sorted(k for k in a.keys()|b.keys() if a.get(k)!=b.get(k))

def left_behind(run):
    "What is of use to a process that runs, and to nobody else"
    return [str(f.relative_to(run)) for f in run.rglob('*')
        if f.name in ('checkpoints','holder.txt') or f.name[0]=='.' and f.name!='.lock']

def command_kills(n=200, seed=0, names=tuple(commands), again=.3):
    "Kill each of the commands `names` at `n` writes spread over it, and compare what the next run ends with"
    rng,tmp,res = random.Random(seed),Path(tempfile.mkdtemp()),dict(kills=0, runs=0, equal_to_unkilled=0, left_behind=0,
        differ=[])
    try:
        pictures(tmp)
        for i,name in enumerate(names):
            whole = tmp/f'whole{i}'
            whole.mkdir()
            assert ran(whole, name)==0, (whole/'log').read_text()
            want,writes,share = outputs(whole/'run'),int((whole/'writes').read_text()),n//len(names)
            points = [int((j+rng.random())*writes/share) for j in range(share)]
            for write in points:
                folder = tmp/'killed'
                folder.mkdir()
                while write is not None:
                    code = ran(folder, name, write)
                    assert code in (0,-9), (folder/'log').read_text()
                    res['kills'] += code!=0
                    write = rng.randrange(writes) if code and rng.random()<again else None
                assert ran(folder, name)==0, (folder/'log').read_text()
                bad,left = differing(want, outputs(folder/'run')),left_behind(folder/'run')
                res['runs'],res['left_behind'] = res['runs']+1,res['left_behind']+len(left)
                res['equal_to_unkilled'] += not bad
                if bad or left: res['differ'].append([name, points, bad, left])
                shutil.rmtree(folder)
        return res
    finally: shutil.rmtree(tmp)

if __name__=='__main__':
    sys.path.insert(0, str(Path(__file__).parent))
    import kills as this # children find the functions by this name
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--kills', type=int, default=50)
    p.add_argument('--rounds', type=int, default=20)
    p.add_argument('--command', type=int, default=200, help='kills of the command')
    p.add_argument('--json', action='store_true', help='end with one JSON object')
    opts = p.parse_args()
    res = {}
    if opts.kills: res.update(this.kills(opts.kills))
    if opts.rounds: res.update(this.rounds(opts.rounds))
    if opts.command: res['command'] = this.command_kills(opts.command)
    for k,v in res.items(): print(f'{k:20} {v}')
    if opts.json: print(json.dumps(res))
