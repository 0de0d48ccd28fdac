"Mixed batches in Weights & Biases: with a stand-in of wandb, and with wandb itself where it is installed."
import json
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from fastai.vision.all import Callback
from fastai_mix.callback.gridmask import GridMask
from fastai_mix.callback.mix import CutMix, MixUp
from fastai_mix.callback.snapmix import SnapMix
from fastai_mix.interpret import WandbMix
from helpers import raises

class Run:
    "The part of wandb that fastai's callback and `WandbMix` use; what is logged at one step is one row"
    def __init__(self): self.step,self.rows,self.summary,self.config = 0,{},{},SimpleNamespace(update=lambda *_,**__: 0)
    def log(self, values, step=None):
        assert step is None or step>=self.step, 'wandb drops what is logged at an earlier step'
        if step is not None: self.step = step
        self.rows.setdefault(self.step, {}).update(values)
        self.summary.update(values)

class Image:
    def __init__(self, pixels, caption=None): self.pixels,self.caption = pixels,caption

@pytest.fixture
def wandb(monkeypatch):
    "A stand-in for the module wandb, and fastai's callback on it"
    module,run = ModuleType('wandb'),Run()
    module.run,module.log,module.Image,module.config = run,run.log,Image,run.config
    monkeypatch.setitem(sys.modules, 'wandb', module)
    monkeypatch.delitem(sys.modules, 'fastai.callback.wandb', raising=False)
    of_fastai = import_module('fastai.callback.wandb')
    module.Callback = of_fastai.WandbCallback
    # that of fastai 2.8.12 fails at the first number
    monkeypatch.setattr(of_fastai, '_format_config', lambda config: config)
    yield module
    sys.modules.pop('fastai.callback.wandb')

class Seen(Callback):
    "Pictures of each batch that was changed, by its number in the fit"
    order,run_valid = 60,False
    def before_fit(self): self.pictures = {}
    def before_batch(self):
        if any(getattr(cb, 'changed', False) for cb in self.learn.cbs):
            self.pictures[self.train_iter] = self.x.as_subclass(torch.Tensor)[-4:].clone()

mixes = {'snapmix': lambda: SnapMix(), 'cutmix': lambda: CutMix(p=.5), 'mixup-echo': lambda: MixUp(echo=True),
    'gridmask': lambda: GridMask(p=1)}

@pytest.mark.parametrize('make', mixes.values(), ids=mixes)
def test_the_mixed_batch_is_logged(make, toy, wandb):
    learn = toy(cbs=[make(), WandbMix(4), wandb.Callback(log_preds=False), Seen()])
    learn.fit(3)
    seen,per_epoch = learn.seen.pictures,len(learn.dls.train)
    firsts = sorted({min(k for k in seen if k//per_epoch==i//per_epoch) for i in seen})
    rows = {step:row for step,row in wandb.run.rows.items() if 'mix' in row}
    assert sorted(rows)==firsts and len(firsts)>=2
    for step,row in rows.items():
        assert 'raw_loss' in row and len(row['mix'])==4 # in one row with the loss of the batch
        want = (seen[step].clamp(0,1)*255).round().byte().permute(0,2,3,1).numpy()
        assert all((im.pixels==o).all() and im.pixels.dtype==np.uint8 for im,o in zip(row['mix'], want))
        assert all('class' in im.caption for im in row['mix'])
    assert learn.wandb_mix.board is None

def test_not_in_lr_find(toy, wandb):
    learn = toy(cbs=[SnapMix(), WandbMix(4), wandb.Callback(log_preds=False)])
    learn.lr_find(num_it=6, show_plot=False)
    assert not any('mix' in row for row in wandb.run.rows.values())
    learn.fit(1)
    assert sum('mix' in row for row in wandb.run.rows.values())==1

def test_without_the_callback(toy, wandb):
    toy(cbs=[SnapMix(), WandbMix(2)]).fit(3)
    assert len(wandb.run.rows)==1 and len(wandb.run.rows[0]['mix'])==2

def test_without_a_run(toy, wandb):
    wandb.run = None
    raises(toy(cbs=[SnapMix(), WandbMix()]), 'none has begun: `wandb.init')
    toy(cbs=[SnapMix(), WandbMix()]).lr_find(num_it=6, show_plot=False)

def test_without_wandb(toy, monkeypatch):
    monkeypatch.delitem(sys.modules, 'fastai.callback.wandb', raising=False)
    monkeypatch.setitem(sys.modules, 'wandb', None) # as if it was not installed
    with pytest.raises(ModuleNotFoundError, match='WandbMix needs the package wandb: `pip install wandb`'):
        toy(cbs=[SnapMix(), WandbMix()]).fit(1)

offline = '''
import json, sys
import wandb
sys.path.insert(0, {tests!r})
from fastai.vision.all import *
import fastai.callback.wandb
from fastai.callback.wandb import WandbCallback
from fastai_mix.all import *
from helpers import Batches, toy_model

fastai.callback.wandb._format_config = noop # that of fastai 2.8.12 fails at the first number
logged = []
original = wandb.sdk.wandb_run.Run.log
def log(self, data, step=None, **kwargs):
    logged.append([step, sorted(data), [im._caption for im in data.get('mix', [])]])
    return original(self, data, step=step, **kwargs)
wandb.sdk.wandb_run.Run.log = log
run = wandb.init(project='mixes', mode='offline', dir={folder!r})
ds = Batches(32, 3, 16, 'index')
dls = DataLoaders.from_dsets(ds, ds, bs=8, device='cpu', num_workers=0)
dls.vocab = ['class0','class1','class2']
cbs = [SnapMix(), WandbCallback(log_preds=False), WandbMix(4)]
learn = Learner(dls, toy_model(3), loss_func=CrossEntropyLossFlat(), cbs=cbs)
learn.remove_cb(ProgressCallback)
with learn.no_logging(): learn.fit(2)
images = sorted(o.name for o in Path(run.dir).rglob('*.png'))
run.finish()
print(json.dumps(dict(logged=logged, images=images)))
'''

@pytest.mark.skipif(find_spec('wandb') is None, reason='wandb is not installed')
def test_with_wandb_itself(tmp_path):
    code = offline.format(tests=str(import_module('helpers').__file__.rsplit('/', 1)[0]), folder=str(tmp_path))
    env = {**import_module('os').environ, 'WANDB_MODE': 'offline', 'WANDB_SILENT': 'true'}
    out = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, timeout=300,
        cwd=tmp_path, env=env)
    assert not out.returncode, out.stderr[-3000:]
    res = json.loads(out.stdout.splitlines()[-1])
    mixed = [(step,captions) for step,keys,captions in res['logged'] if keys==['mix']]
    assert [step for step,_ in mixed]==[0,4] and all(len(o)==4 and 'class' in o[0] for _,o in mixed)
    assert len(res['images'])==8
