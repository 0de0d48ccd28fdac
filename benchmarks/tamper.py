"""Files of a run are changed at random and read again: does each give one line that names it, and is nothing run, asked or used in silence?

Files come in three forms: as they are written, with a checksum; as older versions wrote them, without one; and with a checksum made anew by whoever changed them.
What is changed in the first must be found, or be without effect. In the others a number may be another one that is possible, and that is counted apart."""
import argparse,hashlib,json,os,pickle,random,shutil,socket,tempfile,warnings
from collections import Counter
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from fastai.vision.all import (CategoryBlock, ColReader, CrossEntropyLossFlat, DataBlock, DataLoaders, ImageBlock, L, Learner, Normalize, Resize, imagenet_stats,
                               nn, set_seed)
from PIL import Image

from fastai_mix.callback.mix import CutMix
from fastai_mix.callback.plc import ProgressiveLabelCorrection
from fastai_mix.checkpoint import load_state, resumable, save_state
from fastai_mix.crossval import Ensemble, load_ensemble
from fastai_mix.files import read_json
from fastai_mix.vision.learner import timm_learner

class Noise:
    "Pictures of noise and their classes"
    def __init__(self, n=16):
        self.x,self.y = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(0)),torch.arange(n)%2
    def __len__(self): return len(self.y)
    def __getitem__(self, i): return self.x[i],self.y[i]

def small_learner():
    set_seed(0)
    dls = DataLoaders.from_dsets(Noise(), Noise(8), bs=8, device='cpu', num_workers=0)
    dls.vocab = ['a','b']
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    cbs = [CutMix(), ProgressiveLabelCorrection(theta=.1, warmup=0.)]
    learn = Learner(dls, net, loss_func=CrossEntropyLossFlat(), cbs=cbs)
    learn.remove_cb(learn.progress)
    learn.logger = lambda *_: None
    return learn

def sha(*arrays):
    h = hashlib.sha256()
    for o in arrays: h.update(o if isinstance(o, bytes) else repr(o).encode() if not hasattr(o, 'numpy') else o.detach().cpu().contiguous().numpy().tobytes())
    return h.hexdigest()

# what is written, and how it is read: each reader returns what tells one content from another

def write_ensemble(folder):
    pictures = []
    for i in range(6):
        Image.new('RGB', (40,40), (i*30,90,120)).save(folder.parent/f'{i}.png')
        pictures.append(dict(path=str(folder.parent/f'{i}.png'), label='ab'[i%2]))
    norm = Normalize.from_stats(*imagenet_stats)
    block = DataBlock((ImageBlock, CategoryBlock), get_x=ColReader('path'), get_y=ColReader('label'), splitter=lambda o: (list(range(2,6)),[0,1]),
        item_tfms=Resize(32), batch_tfms=[norm])
    learn = timm_learner(block.dataloaders(pd.DataFrame(pictures), bs=2, num_workers=0, device='cpu'), 'test_resnet', pretrained=False)
    other = deepcopy(learn.model)
    with torch.no_grad(): next(other.parameters()).mul_(2)
    Ensemble([(learn, [other], learn.dls.test_dl)], ['a','b'], 'weights', [.4,.6]).export(folder)
    assert isinstance(read_json(folder/'ensemble.json')['groups'][0]['input'], dict)

def read_ensemble(folder):
    e = load_ensemble(folder)
    (learn,nets,get_dl), = e.groups
    states = [v for net in (learn.model, *nets) for v in net.state_dict().values()]
    return sha(*states, (e.vocab, e.how, e.weights, type(learn.loss_func).__name__, get_dl.args))

def write_labels(folder):
    learn = small_learner()
    learn.fit(2)
    learn.progressive_label_correction.save(folder/'labels.safetensors')

def read_labels(folder):
    plc = ProgressiveLabelCorrection()
    plc.load(folder/'labels.safetensors')
    state = plc.state_dict()
    settings = [plc.theta, plc.most, plc.max_change, plc.rule]
    return sha(json.dumps(state.pop('meta')), *(state[k] for k in sorted(state)), settings)

def write_checkpoint(folder):
    learn = small_learner()
    with resumable(learn, folder): learn.fit(1)

def read_checkpoint(folder):
    learn = small_learner()
    was = learn.path,learn.model_dir
    with resumable(learn, folder) as fits: learn.fit(1)
    assert was==(learn.path,learn.model_dir)
    hypers,rows = [dict(o) for o in learn.opt.hypers],[{k:v for k,v in r.items() if k!='time'} for r in fits.rows]
    cbs = [{k:v for k,v in vars(cb).items() if isinstance(v, (int,float,str))} for cb in learn.cbs]
    return sha(*learn.model.state_dict().values(), hypers, rows, fits.seconds, cbs, torch.rand(3), random.random(), np.random.rand())

kinds = dict(ensemble=(write_ensemble,read_ensemble), labels=(write_labels,read_labels), checkpoint=(write_checkpoint,read_checkpoint))

# how a file is changed

def nested(n=20_000): return '['*n+']'*n

values = [None, True, False, -1, 0, 1, 7, 2**70, 10**30, -1e308, float('nan'), float('inf'), '', 'x', [], {}, [1], {'a':1}, [[]], '\ud800', '\x1b[2J\n',
    'hf-hub:timm/resnet18', 'local-dir:/tmp', '../group0_net0.safetensors', '/etc/passwd', 'path', '__class__', '=1+1']

def places(o, at=()):
    "Ways to all nodes of a tree of JSON"
    yield at
    for k,v in o.items() if isinstance(o, dict) else enumerate(o) if isinstance(o, list) else (): yield from places(v, (*at,k))

def change_tree(o, rng):
    "Drop, rename, repeat or replace a node; returns the tree and what was done"
    o = deepcopy(o)
    all = [p for p in places(o) if p]
    deep = rng.choice(sorted({len(p) for p in all})) # few nodes are near the root
    at = rng.choice([p for p in all if len(p)==deep])
    up = o
    for k in at[:-1]: up = up[k]
    k,how = at[-1],rng.choice(['drop','rename','repeat','value','value','value','number'])
    if how=='drop': del up[k]
    elif how=='rename' and isinstance(up, dict): up[rng.choice(['x', f'{k}_', 'theta', 'path', 'most', 'learn'])] = up.pop(k)
    elif how=='repeat' and isinstance(up, list): up.insert(k, up[k])
    elif how=='number' and type(up[k]) in (int,float): up[k] = rng.choice([-up[k]-1, up[k]+1, up[k]*1000+.5])
    else: up[k] = rng.choice(values)
    return o,f"{how} {'/'.join(map(str, at))[:60]}"

def change_text(text, rng):
    "Cut, nest, repeat a name, or write in another encoding"
    how = rng.choice(['cut','nest','twin','utf-16','latin','bom','empty','more'])
    data = text.encode()
    if how=='cut': data = data[:rng.randrange(len(data))]
    elif how=='nest': data = nested().encode()
    elif how=='twin': data = b'{"vocab": ["x"], "x": 1, "x": 2, '+data[1:]
    elif how=='utf-16': data = text.encode('utf-16')
    elif how=='latin': data = data.replace(b'a', 'ä'.encode('latin-1'), 1)
    elif how=='bom': data = b'\xef\xbb\xbf'+data
    elif how=='empty': data = b''
    elif how=='more': data += b' {}'
    return data,how

def flip(data, rng, at=None):
    data = bytearray(data)
    i = rng.randrange(len(data)) if at is None else at
    data[i] ^= 1<<rng.randrange(8)
    return bytes(data),f'bit of byte {i}'

class Code:
    def __init__(self, marker): self.marker = marker
    def __reduce__(self): return Path.write_text, (self.marker, 'run')

def parts(data):
    n = int.from_bytes(data[:8], 'little')
    return json.loads(data[8:8+n]),data[8+n:]

def whole(head, body, sign=False):
    "A safetensors file; with `sign` its checksum is made anew"
    meta = head.get('__metadata__')
    if sign and isinstance(meta, dict): head = {**head, '__metadata__': {**meta, 'sha256':'0'*64}}
    text = json.dumps(head, separators=(',',':')).encode()
    data = len(text).to_bytes(8, 'little')+text+body
    return data.replace(b'"sha256":"'+b'0'*64, b'"sha256":"'+hashlib.sha256(data).hexdigest().encode(), 1) if sign else data

def change_tensors(data, rng, form, marker):
    "A changed safetensors file, and what was done"
    head,body = parts(data)
    texts = [k for k in head.get('__metadata__', {}) if k!='sha256']
    how = rng.choice(['bit','bit','cut','more','header','header','length','pickle','empty','data'] + ['text']*4*bool(texts))
    if how=='bit': return flip(data, rng)
    if how=='cut': return data[:rng.randrange(len(data))],how
    if how=='more': return data+b'\0'*rng.randrange(1, 99),how
    if how=='length': return rng.choice([0, 1, 2**31, 2**63-1, 2**64-1]).to_bytes(8, 'little')+data[8:],how
    if how=='pickle': return pickle.dumps({'a':Code(marker)}),how
    if how=='empty': return b'',how
    if how=='data': return whole(head, bytes(rng.randrange(256) for _ in body), form=='signed anew'),how
    if how=='header': head,told = change_tree(head, rng)
    elif rng.random()<.2:
        k = rng.choice(texts)
        data,told = change_text(head['__metadata__'][k], rng)
        head['__metadata__'][k] = data.decode('latin-1')
    else:
        k = rng.choice(texts)
        tree,told = change_tree(json.loads(head['__metadata__'][k]), rng)
        head['__metadata__'][k] = json.dumps(tree)
    return whole(head, body, form=='signed anew'),f'{how}: {told}'

def thawed(o):
    if isinstance(o, dict): return {k: thawed(v) for k,v in o.items()}
    return [thawed(v) for v in o] if isinstance(o, (list,tuple,L)) else o

def change_state(file, rng):
    "Change what a checkpoint holds, and write it as the package does"
    s = load_state(file)
    up,k = rng.choice([(s,k) for k in s if k!='learner'] + 2*[(s['learner'],k) for k in ('learn','cbs','opt','trained','grads','model')])
    if rng.random()<.2:
        k,up[k] = rng.choice([('theta',.9), ('path','/tmp'), ('x',1)])
        told = f'more {k}'
    else:
        tree,told = change_tree({k:thawed(up[k])}, rng)
        del up[k]
        up.update(tree)
    save_state(file, s)
    return told

def change_json(text, rng, form):
    if rng.random()<.25: return change_text(text, rng)
    if form=='signed' and rng.random()<.3: return flip(text.encode(), rng)
    o,told = change_tree(json.loads(text), rng)
    if form=='signed anew' and isinstance(o, dict):
        o.pop('sha256', None)
        try: o['sha256'] = hashlib.sha256(json.dumps(o, sort_keys=True).encode()).hexdigest()
        except (TypeError,RecursionError): pass
    return json.dumps(o, indent=1).encode(),told

def change_folder(folder, rng):
    "A network that is gone, a link, a folder, or another one"
    a,b = sorted(folder.glob('group0_net*.safetensors'))
    how = rng.choice(['gone','link','folder','another','linked folder'])
    if how=='another': shutil.copy(b, a)
    else:
        a.rename(folder.parent/'elsewhere')
        if how=='link': a.symlink_to(folder.parent/'elsewhere')
        if how=='folder': a.mkdir()
        if how=='linked folder':
            (folder/'x').symlink_to(folder.parent)
            o = json.loads((folder/'ensemble.json').read_text())
            o['groups'][0]['files'][0] = 'x/elsewhere'
            (folder/'ensemble.json').write_text(json.dumps({k:v for k,v in o.items() if k!='sha256'}))
    return a.name,how

def as_older(folder):
    "Take the checksums out"
    for f in folder.rglob('*.safetensors'):
        head,body = parts(f.read_bytes())
        head['__metadata__'].pop('sha256')
        f.write_bytes(whole(head, body))
    for f in folder.rglob('*.json'):
        o = json.loads(f.read_text())
        o.pop('sha256')
        for g in o['groups']: g.pop('sha256')
        f.write_text(json.dumps(o))

def change(folder, form, rng, marker):
    "Change one file of a folder; returns its name and what was done"
    files = sorted(o for o in folder.rglob('*') if o.suffix in ('.json','.safetensors'))
    jsons = [o for o in files if o.suffix=='.json']
    if jsons and rng.random()<.1: return change_folder(folder, rng)
    f = rng.choice(files+jsons*3)
    if f.name=='fit0.safetensors' and form=='signed anew' and rng.random()<.7: return f.name,change_state(f, rng)
    data,told = change_json(f.read_text(), rng, form) if f.suffix=='.json' else change_tensors(f.read_bytes(), rng, form, marker)
    f.write_bytes(data)
    return f.name,told

@contextmanager
def no_network(asked):
    "Attempts to reach the network are counted, and fail"
    def ask(*args, **kwargs):
        asked.append(args)
        raise OSError('no network')
    kept = socket.socket.connect,socket.getaddrinfo
    socket.socket.connect,socket.getaddrinfo = ask,ask
    try: yield
    finally: socket.socket.connect,socket.getaddrinfo = kept

def outcome(read, folder, was):
    "What came of reading a changed file"
    try: now = read(folder)
    except ValueError as e:
        text = str(e)
        return ('refused',text) if type(e) is ValueError and '\n' not in text and str(folder) in text and text.isprintable() else ('other traceback',repr(e))
    except Exception as e: return 'other traceback',repr(e)[:300]
    return ('same' if now==was else 'used','')

def tamper(n=100, seed=0, verbose=False):
    "Change `n` files of each kind and form"
    rng,tmp,rows,asked = random.Random(seed),Path(tempfile.mkdtemp()),[],[]
    marker = tmp/'marker'
    try:
        for kind,(write,read) in kinds.items():
            (tmp/kind/'whole').mkdir(parents=True)
            write(tmp/kind/'whole')
            shutil.copytree(tmp/kind/'whole', tmp/kind/'older')
            as_older(tmp/kind/'older')
            was = read(tmp/kind/'whole')
            assert was==read(tmp/kind/'older')
            for form in ('signed','older','signed anew'):
                for i in range(n):
                    at = tmp/kind/f'{form}{i}'/'it'
                    shutil.copytree(tmp/kind/('older' if form=='older' else 'whole'), at)
                    name,told = change(at, form, rng, marker)
                    with no_network(asked), warnings.catch_warnings():
                        warnings.simplefilter('ignore')
                        what,text = outcome(read, at, was)
                    rows.append(dict(kind=kind, form=form, file=name, change=told, outcome=what, text=text))
                    if verbose and (what=='other traceback' or what=='used' and form=='signed'): print(rows[-1])
                    shutil.rmtree(at.parent)
        counts = {form: dict(Counter(r['outcome'] for r in rows if r['form']==form)) for form in ('signed','older','signed anew')}
        return dict(files=len(rows), **counts, requests=len(asked), code_run=marker.exists()), rows
    finally: shutil.rmtree(tmp)

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--n', type=int, default=100, help='files of each kind and form')
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--out', type=Path, help='JSON file to write the counts to')
    o = p.parse_args()
    res,_ = tamper(o.n, o.seed, verbose=True)
    for k,v in res.items(): print(f'{k:12} {v}')
    if o.out: o.out.write_text(json.dumps(dict(n=o.n, seed=o.seed, **res), indent=1)+'\n')
