"""What the benchmarks that train share: a file of finished cells that processes may fill together, pictures in
memory, figures.

A cell is a dict of settings. Its line in the results file holds the settings and what came out; a cell with a line is
never run again. A process claims a cell by a lock file that the system frees when the process ends, however it
ends."""
import contextlib,hashlib,io,json,os,platform,re,shlex,sys,time,zipfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from fastai.vision.all import CrossEntropyLossFlat, TrainEvalCallback, set_seed
from filelock import FileLock, Timeout
from PIL import Image
from fastai_mix.vision.learner import timm_learner

class Results:
    "A file of JSON lines, one a finished cell; a line is whole or absent"
    def __init__(self, path):
        self.path = Path(path)
        self.locks = self.path.with_name(f'.{self.path.name}.locks')

    def lines(self):
        "All whole lines; a last one without its end, which a killed process left, is not there"
        text = self.path.read_bytes() if self.path.exists() else b''
        res = []
        for i,o in enumerate(text.split(b'\n')[:-1]):
            try: res.append(json.loads(o))
            except ValueError:
                raise ValueError(f"{self.path}:{i+1} is no JSON: remove the line, its cell will be run again") from None
        return res

    def find(self, cell):
        "The line of `cell`, or None"
        return next((o for o in self.lines() if all(k in o and o[k]==v for k,v in cell.items())), None)

    def add(self, line):
        "Append `line`; an unfinished last line, which a killed process left, is replaced"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.locks.mkdir(exist_ok=True)
        with FileLock(self.locks/'append'), open(self.path, 'a+b') as f:
            f.seek(0)
            text = f.read()
            if text and not text.endswith(b'\n'): f.truncate(text.rfind(b'\n')+1)
            os.write(f.fileno(), json.dumps(line).encode()+b'\n')
            os.fsync(f.fileno())

    @contextlib.contextmanager
    def claim(self, cell):
        "Whether `cell` is to be run in the body of the `with`: not if it has a line, or another process runs it"
        self.locks.mkdir(parents=True, exist_ok=True)
        file = self.locks/hashlib.sha256(json.dumps(cell, sort_keys=True).encode()).hexdigest()[:16]
        lock = FileLock(file, timeout=0)
        try: lock.acquire()
        except Timeout:
            yield False
            return
        try:
            todo = self.find(cell) is None # only now: the one who had the lock may have finished the cell
            yield todo
            if self.find(cell): file.unlink(missing_ok=True) # who still waits for this file finds the line
        finally: lock.release()

def clock(s):
    "Seconds for people"
    return f'{s:.0f} s' if s<100 else f'{s/60:.0f} min' if s<6000 else f'{s/3600:.1f} h'

def name(cell, *keys): return ' '.join(str(cell[k]) for k in keys)

def run_cells(cells, work, results, cost, keys=('mix','seed')):
    "Run `work(cell, tell)` for each of `cells` without a line and append what it returns; `cost(cell)` guesses seconds"
    measured = {}
    def left(cells):
        return sum(measured[k] if (k := name(c, *keys[:-1])) in measured else cost(c) for c in cells
            if results.find(c) is None)
    for i,cell in enumerate(cells):
        with results.claim(cell) as todo:
            if not todo: continue
            start,last_print,tag = time.time(),time.time(),f'[{i+1}/{len(cells)}] {name(cell, *keys)}'
            print(f'{tag}: begins; at most {clock(left(cells))} left', flush=True)
            def tell(part):
                "Say, once a minute, that `part` (0 to 1) of the cell is done"
                nonlocal last_print
                if time.time()-last_print<60: return
                last_print = time.time()
                print(f'{tag}: {part:.0%}, {clock((last_print-start)*(1-part)/part)} left of it', flush=True)
            res = work(cell, tell)
            results.add({**cell, **res})
            measured[name(cell, *keys[:-1])] = time.time()-start
            print(f"{tag}: {clock(time.time()-start)}, "
                + ', '.join(f'{k} {v:.4g}' for k,v in res.items() if isinstance(v, float)), flush=True)

def plan(cells, results, cost, rate, keys=('mix','seed')):
    "Print what is to be run and about how long it takes in one process"
    rows = [dict(cell=name(c, *keys[:-1]), done=results.find(c) is not None, s=cost(c)) for c in cells]
    print(f"{len(rows)} cells, {sum(o['done'] for o in rows)} done; {rate:.0f} plain pictures a second, "
        f"{torch.get_num_threads()} threads")
    for k,d in pd.DataFrame(rows).groupby('cell', sort=False):
        print(f"  {k:24s} {len(d)} cells, {int(d.done.sum())} done, about {clock(d.s.mean())} each")
    print(f"  about {clock(sum(o['s'] for o in rows if not o['done']))} to go in one process", flush=True)

def pick_seeds(s):
    "'3' is 0, 1, 2; '3,4' is 3 and 4"
    return [int(o) for o in s.split(',') if o] if ',' in s else list(range(int(s)))

def record():
    "Machine, versions and command"
    cpuinfo = Path('/proc/cpuinfo')
    info = dict(re.findall(r'(.*?)\s*: (.*)', cpuinfo.read_text().split('\n\n')[0])) if cpuinfo.exists() else {}
    cpu = ' '.join(f'{k} {info[k]}'.removeprefix('model name ') for k in ('model name','cpu family','model')
        if k in info)
    return dict(machine=platform.machine(), cpu=cpu or platform.processor(), cores=os.cpu_count(),
        threads=torch.get_num_threads(),
        python=platform.python_version(), **{k: version(k) for k in ('torch','timm','fastai','fastai_mix')},
        command=shlex.join(['python', f'benchmarks/{Path(sys.argv[0]).name}',
        *(Path(o).name if os.path.isabs(o) else o for o in sys.argv[1:])]))

def read_table(data, need=('image_id','label')):
    "Table with the columns `need`, and where its pictures are; from a folder or a zip with labels.csv, or 'leaves'"
    if data=='leaves':
        from fastai_mix.data.leaves import leaf_data
        root = leaf_data()
        df = pd.read_csv(root/'train.csv')
        return pd.DataFrame({'image_id': 'images/'+df.image_id+'.jpg', 'label': df.labels}),root
    root = Path(data)
    if root.is_file() and zipfile.is_zipfile(root):
        root = zipfile.Path(root)
        if not (root/'labels.csv').exists(): root = next((o for o in root.iterdir() if (o/'labels.csv').exists()), root)
    if not (root/'labels.csv').exists():
        raise ValueError(f"--data {data}: expected 'leaves', or a folder or zip with labels.csv")
    df = pd.read_csv(io.BytesIO((root/'labels.csv').read_bytes()))
    miss = set(need)-set(df)
    if miss: raise ValueError(f"labels.csv of {data} has no column {', '.join(sorted(miss))}: it has {', '.join(df)}")
    return df,root

def decode(root, names, side):
    "uint8 `[n,3,side,side]`: shorter side resized to `side`, centre cut out"
    out = torch.empty(len(names), 3, side, side, dtype=torch.uint8)
    for i,o in enumerate(names):
        im = Image.open(io.BytesIO((root/o).read_bytes()))
        im.draft('RGB', (2*side,2*side))
        im = im.convert('RGB')
        s = min(im.size)
        l,t = (im.width-s)/2,(im.height-s)/2
        im = im.resize((side,side), Image.Resampling.BICUBIC, box=(l, t, l+s, t+s))
        out[i] = torch.from_numpy(np.array(im)).permute(2,0,1)
    return out

def normalize(x, cfg):
    "uint8 pictures as `cfg` of a timm model wants them, in channels-last, which is faster on a CPU"
    mean,std = (torch.tensor(cfg[k])[:,None,None] for k in ('mean','std'))
    return ((x/255-mean)/std).contiguous(memory_format=torch.channels_last)

class Batches:
    "`steps` batches out of pictures `x` with labels `y`, cut, flipped and in an order that `seed` alone decides"
    def __init__(self, x, y, bs, steps, size, seed, cfg, scale=(.5,1.), ratio=4/3): vars(self).update(locals())
    def __len__(self): return self.steps

    def order(self, g):
        "Indices, epoch after epoch without an end"
        while True: yield from torch.randperm(len(self.x), generator=g).tolist()

    def augment(self, x, g):
        "A random box of each picture, resized, and every other picture flipped"
        u = torch.rand(len(x), 5, generator=g)
        area = self.scale[0]+(self.scale[1]-self.scale[0])*u[:,0]
        aspect = self.ratio**(u[:,1]-.5)
        h,w = (area*aspect).sqrt().clamp(max=1),(area/aspect).sqrt().clamp(max=1)
        cy,cx = (1-h)*(2*u[:,2]-1),(1-w)*(2*u[:,3]-1)
        flip,zero = torch.where(u[:,4]<.5, -1., 1.),torch.zeros(len(x))
        theta = torch.stack([torch.stack([w*flip, zero, cx], 1), torch.stack([zero, h, cy], 1)], 1)
        grid = F.affine_grid(theta, (len(x), 3, self.size, self.size), align_corners=False)
        return F.grid_sample(x.float(), grid, padding_mode='reflection', align_corners=False)

    def __iter__(self):
        g,g2 = (torch.Generator().manual_seed(2*self.seed+i) for i in range(2)) # no mix draws from these
        order = self.order(g)
        for _ in range(self.steps):
            i = [next(order) for _ in range(self.bs)]
            yield normalize(self.augment(self.x[i], g2), self.cfg),self.y[i]

def bare_learner(dls, batches, cell, weights, n_out, cbs, keep=(), loss=None):
    """A Learner with `cbs`, TrainEvalCallback and the classes `keep` alone. Its weights depend on the seed;
    `batches` gets the model's configuration"""
    set_seed(cell['seed'])
    learn = timm_learner(dls, cell['arch'], normalize=False, n_out=n_out, pretrained=bool(weights), weights=weights,
        loss_func=loss or CrossEntropyLossFlat())
    learn.remove_cbs(learn.cbs.filter(lambda o: not isinstance(o, (TrainEvalCallback,*keep))))
    learn.add_cbs(cbs)
    learn.unfreeze()
    learn.model.to(memory_format=torch.channels_last)
    batches.cfg = learn.model.default_cfg
    set_seed(cell['seed'])
    return learn

def centre(x, size):
    "The square of side `size` in the middle of each picture"
    a = (x.shape[-1]-size)//2
    return x[...,a:a+size,a:a+size]

def predict(model, x, size, cfg, bs=64):
    "Probabilities `[n,c]` for the centres of pictures `x`"
    model.eval()
    with torch.no_grad(): return torch.cat([model(normalize(centre(o, size), cfg)).softmax(1) for o in x.split(bs)])

def ece(probs, y, bins=15):
    "Expected calibration error: how far confidence is from accuracy, in `bins` equal bins of confidence"
    conf,hit = probs.max(1),probs.argmax(1)==y
    b = np.minimum((conf*bins).astype(int), bins-1)
    return float(sum(abs(hit[b==i].mean()-conf[b==i].mean())*(b==i).mean() for i in np.unique(b)))

def figures(probs, y):
    "What is measured of probabilities `[n,c]`, given true labels `[n]`"
    from sklearn.metrics import f1_score, log_loss
    probs,y = np.asarray(probs, dtype=np.float64),np.asarray(y)
    pred = probs.argmax(1)
    return dict(accuracy=float((pred==y).mean()), macro_f1=float(f1_score(y, pred, average='macro')),
        log_loss=float(log_loss(y, probs/probs.sum(1, keepdims=True), labels=range(probs.shape[1]))), ece=ece(probs, y))
