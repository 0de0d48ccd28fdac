"""What only a GPU can show: `python -m pytest -n0 -m cuda`

Each test runs on the CPU too, so that it is known to work, but for what a CPU does not have: there, waits of the host
are counted by the names of operations, and no memory is measured."""
import time
import warnings
from contextlib import nullcontext

import pytest
import torch
from fastai.callback.fp16 import MixedPrecision
from fastai.vision.all import Callback, CrossEntropyLossFlat, DataLoaders, Learner, set_seed
from fastai_mix.callback.choice import MixChoice
from fastai_mix.callback.ema import EMA
from fastai_mix.callback.gridmask import GridMask, grid_mask
from fastai_mix.callback.manifold import ManifoldMixUp
from fastai_mix.callback.mix import CutMix, MixUp
from fastai_mix.callback.resize import ProgressiveResize
from fastai_mix.callback.snapmix import SnapMix, snapmix
from fastai_mix.losses import BalancedSoftmaxLossFlat, change_priors
from fastai_mix.vision.box import paste_box, rand_box
from fastai_mix.vision.cam import semantic_map, semantic_mass
from fastai_mix.vision.tta import d4
from helpers import Batches, CpuScaler, Syncs, toy_model

has_gpu = torch.cuda.is_available()
gpu = pytest.param('cuda', marks=[pytest.mark.cuda, pytest.mark.skipif(not has_gpu, reason='no GPU')])
on_both = pytest.mark.parametrize('device', ['cpu',gpu])

mixes = {'snapmix': lambda: SnapMix(), 'snapmix-echo': lambda: SnapMix(echo=True), 'cutmix': lambda: CutMix(),
    'mixup': lambda: MixUp(), 'mixup-echo': lambda: MixUp(echo=True), 'manifold': lambda: ManifoldMixUp(),
    'manifold-echo': lambda: ManifoldMixUp(echo=True), 'gridmask': lambda: GridMask(p=1),
    'choice': lambda: MixChoice([SnapMix(), CutMix()])}
each_mix = pytest.mark.parametrize('make', mixes.values(), ids=mixes)

def make_learner(device, cbs=None, model=None, n=48, bs=8, c=3, size=16, loss_func=None, **kwargs):
    "A Learner on pictures of noise, model and batches on `device`"
    set_seed(0)
    dls = DataLoaders.from_dsets(*[Batches(n, c, size, 'index')]*2, bs=bs, device=torch.device(device), num_workers=0)
    dls.vocab = [f'class{i}' for i in range(c)]
    learn = Learner(dls, (model or toy_model(c)).to(device), loss_func=loss_func or CrossEntropyLossFlat(), cbs=cbs,
        **kwargs)
    learn.remove_cb(learn.progress)
    learn.logger = lambda *_: None
    return learn

def half_precision(device): return MixedPrecision() if device=='cuda' else CpuScaler()

class Watch(Callback):
    "Keeps the loss of each training batch, on the device, and on which device it is"
    order,run_valid = 60,False
    def before_fit(self): self.losses,self.devices = [],set()
    def after_batch(self):
        self.losses.append(self.loss.detach().float().mean())
        self.devices |= {self.x.device.type,self.loss.device.type}

@on_both
@each_mix
def test_half_precision_with_a_scaler(make, device):
    learn = make_learner(device, [make(), half_precision(device), Watch()])
    learn.fit(3)
    assert torch.stack(learn.watch.losses).isfinite().all() and learn.watch.devices=={device}
    assert all(p.isfinite().all() and p.dtype==torch.float32 for p in learn.model.parameters())
    assert len(learn.watch.losses)==3*len(learn.dls.train)

class CudaWaits:
    "Counts how often the host waits for the GPU"
    def __enter__(self):
        self.mode,self.catch = torch.cuda.get_sync_debug_mode(),warnings.catch_warnings(record=True)
        self.found = self.catch.__enter__()
        warnings.simplefilter('always')
        torch.cuda.set_sync_debug_mode('warn')
        return self
    def __exit__(self, *args):
        torch.cuda.set_sync_debug_mode(self.mode)
        self.catch.__exit__(*args)
    def count(self): return sum('synchronizing' in str(o.message) for o in self.found)

class CpuWaits(Syncs):
    "The same by the names of operations that would wait"
    def count(self): return sum(self.n.values())

class CountWaits(Callback):
    "Waits of the host in each training step, from the loaded batch to the end of the step"
    order,run_valid = -50,False
    def __init__(self, waits): self.waits = waits
    def before_fit(self): self.in_step = []
    def before_batch(self): self.begin = self.waits.count()
    def after_step(self): self.in_step.append(self.waits.count()-self.begin)

def waits_of(device, cbs, half):
    "Waits in the steps of the second epoch: with the first batch of a fit, losses and pictures are checked"
    with (CudaWaits if device=='cuda' else CpuWaits)() as waits:
        learn = make_learner(device, [*cbs, CountWaits(waits), *([half_precision(device)] if half else [])])
        learn.fit(2)
    return learn.count_waits.in_step[len(learn.dls.train):]

@on_both
@pytest.mark.parametrize('half', [False,True], ids=['single','half'])
@each_mix
def test_the_host_waits_for_nothing(make, half, device):
    assert sum(waits_of(device, [make()], half))<=sum(waits_of(device, [], half))

@on_both
def test_waits_are_counted(device):
    class Wait(Callback):
        run_valid = False
        def after_pred(self): self.pred.sum().item()
    plain,waiting = (waits_of(device, cbs, False) for cbs in ([],[Wait()]))
    assert [b-a for a,b in zip(plain, waiting)]==[1]*6

def pictures(n=8, size=32, h=4):
    "Pictures, activation maps, partners and boxes, on the CPU"
    g = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    x,cam = torch.rand(n, 3, size, size, generator=g),torch.randn(n, h, h, generator=g)
    lam = torch.rand(n, generator=g)
    return x,cam,torch.randperm(n, generator=g),rand_box(lam, (size,size)),rand_box(lam.flip(0), (size,size))

functions = {
    'paste_box': lambda x,cam,partner,box,src: paste_box(x, x[partner], box, src),
    'semantic_map': lambda x,cam,partner,box,src: semantic_map(cam, x.shape[-2:]),
    'semantic_mass': lambda x,cam,partner,box,src: semantic_mass(cam, box, x.shape[-2:]),
    'snapmix': snapmix,
    'grid_mask': lambda x,cam,partner,box,src: grid_mask(x.shape[-2:], 8+cam[:,0,0].abs().round(), .6,
        cam[:,:2,1].abs(), cam[:,0,2]*90),
    'change_priors': lambda x,cam,partner,box,src: change_priors(cam.flatten(1).softmax(1), range(1, 17)),
    'balanced softmax': lambda x,cam,partner,box,src: BalancedSoftmaxLossFlat(range(1, 17))(cam.flatten(1), partner)}

@on_both
@pytest.mark.parametrize('f', functions.values(), ids=functions)
def test_functions_give_what_they_give_on_the_cpu(f, device):
    args = pictures()
    want,got = f(*args),f(*(o.to(device) for o in args))
    want,got = (o if isinstance(o, tuple) else (o,) for o in (want,got))
    for a,b in zip(want, got):
        assert b.device.type==device
        if a.dtype==torch.bool: assert (a!=b.cpu()).float().mean()<1e-3 # edges of strips are rounded
        else: torch.testing.assert_close(b.cpu(), a, rtol=1e-3, atol=1e-4)

@on_both
def test_views_in_one_pass(device):
    n_loaded = 0
    class Counted(Batches):
        def __getitem__(self, i):
            nonlocal n_loaded
            n_loaded += 1
            return super().__getitem__(i)
    learn = make_learner(device)
    dl = learn.dls.valid.new(Counted(20, 3, 16, 'index'))
    with learn.no_bar(): probs,targs = learn.tta_views(dl=dl, views=d4)
    assert n_loaded==20 and probs.shape==(20,3) and len(targs)==20
    assert torch.allclose(probs.sum(1).cpu(), torch.ones(20), atol=1e-4)
    other = make_learner('cpu', model=learn.model.cpu())
    with other.no_bar(): want,_ = other.tta_views(dl=other.dls.valid.new(Batches(20, 3, 16, 'index')), views=d4)
    torch.testing.assert_close(probs.cpu(), want, rtol=1e-2, atol=1e-3)

@on_both
def test_the_average_of_weights(device):
    learn = make_learner(device, [SnapMix(), EMA(.9), half_precision(device)])
    learn.fit(2)
    with learn.no_bar(): probs,_ = learn.get_preds()
    assert probs.isfinite().all() and {p.device.type for p in learn.model.parameters()}=={device}

@on_both
def test_sizes_that_grow_and_rare_classes(device):
    cbs = [ProgressiveResize(start=.5, multiple_of=8), CutMix(), half_precision(device), Watch()]
    learn = make_learner(device, cbs, loss_func=BalancedSoftmaxLossFlat([30,15,3]))
    learn.fit(2)
    assert torch.stack(learn.watch.losses).isfinite().all()

class Clock(Callback):
    "Seconds of each training step, and the peak memory of all after the first"
    order,run_valid = -60,False
    def __init__(self, device): self.device = device
    def wait(self): torch.cuda.synchronize() if self.device=='cuda' else None
    def before_fit(self): self.seconds = []
    def before_batch(self):
        self.wait()
        if self.device=='cuda' and len(self.seconds)==1: torch.cuda.reset_peak_memory_stats()
        self.start = time.perf_counter()
    def after_step(self):
        self.wait()
        self.seconds.append(time.perf_counter()-self.start)
    def after_fit(self): self.peak = torch.cuda.max_memory_allocated()/2**20 if self.device=='cuda' else None

def step_cost(device, make, half):
    "Median seconds of a step, and its peak memory in MiB"
    if device=='cuda':
        import timm
        sizes = dict(n=20*64, bs=64, size=224, c=3, model=timm.create_model('resnet50', num_classes=3))
    else: sizes = {}
    cbs = [*([make()] if make else []), Clock(device), *([half_precision(device)] if half else [])]
    learn = make_learner(device, cbs, **sizes)
    learn.fit(1)
    seconds = torch.tensor(learn.clock.seconds[2:])
    return seconds.median().item(),learn.clock.peak

@on_both
@pytest.mark.parametrize('half', [False,True], ids=['single','half'])
def test_what_a_step_costs(half, device, capsys):
    "Nothing is demanded: the figures are for the benchmarks page"
    rows = {name: step_cost(device, make, half) for name,make in {'plain': None, **mixes}.items()}
    base,base_peak = rows['plain']
    with capsys.disabled() if device=='cuda' else nullcontext():
        machine,precision = torch.cuda.get_device_name() if device=='cuda' else 'CPU','half' if half else 'single'
        print(f"\n{machine}, {precision} precision, plain step {base*1000:.1f} ms")
        for name,(seconds,peak) in rows.items():
            memory = f', peak {peak:.0f} MiB ({peak/base_peak:.2f})' if peak else ''
            print(f"  {name:14s} {seconds/base:.2f} of a plain step{memory}")
    assert all(seconds>0 for seconds,_ in rows.values())
