"""What a mix costs: the time of a training step as a ratio to plain training, ours beside those of other packages.

    pip install kornia    # optional
    python benchmarks/step.py [--arch resnet18 --size 128 --bs 32 --rounds 9 --json]

Every method has a Learner and a copy of the model of its own. One round runs one step of each, in turn and from
another beginning each time, so that whatever else the machine does falls on all; a ratio is the median over rounds of
method / plain of the same round, the spread its quartiles. `echo` gets batches of bs/2 and trains on as many pictures
per step as the others. `own` is the part of a step that a callback spends outside the clean forward. With `--memory`
it measures no time but the peak memory of three steps of each method, above what the imports take: the median of
three processes (on Linux; on a GPU, what torch allocated)."""
import copy,subprocess,sys,time,warnings
from json import dumps
from pathlib import Path

warnings.filterwarnings('ignore')
import numpy as np
import timm
import torch
import torch.nn.functional as F
from fastai.vision.all import Callback, CrossEntropyLossFlat, DataLoaders, Learner, TrainEvalCallback, nn
from fastai.callback.mixup import CutMix as FastaiCutMix, MixUp as FastaiMixUp
from fastcore.script import call_parse, store_true
from fastai_mix.callback.choice import MixChoice
from fastai_mix.callback.gridmask import GridMask
from fastai_mix.callback.manifold import ManifoldMixUp
from fastai_mix.callback.mix import BatchCallback, CutMix, MixUp, ResizeMix
from fastai_mix.callback.snapmix import SnapMix
from cells import record

class Soft(Callback):
    "Mixing by a function of a batch that returns pictures and rows of class shares"
    run_valid = False
    def __init__(self, f): self.f = f
    def before_batch(self):
        x,y = self.f(self.learn.xb[0], self.learn.yb[0])
        self.learn.xb,self.learn.yb = (x,),(y,)

class Published(Callback):
    "SnapMix as published: a forward in training mode at full size, one pair of boxes per batch; written from the paper"
    run_valid = False
    def before_batch(self):
        x,y,m = self.learn.xb[0],self.learn.yb[0],self.learn.model
        n,_,H,W = x.shape
        with torch.no_grad():
            f = m.forward_features(x)
            m.forward_head(f)
            cam = torch.einsum('nchw,nc->nhw', f, m.get_classifier().weight[y])
            cam = F.interpolate(cam[:,None], (H,W), mode='bilinear', align_corners=False)[:,0]
            cam = cam-cam.amin((1,2), keepdim=True)
            cam = cam/(cam.sum((1,2), keepdim=True)+1e-8)
        def box():
            cut = np.sqrt(1-np.random.beta(5,5))
            h,w,cy,cx = int(H*cut),int(W*cut),np.random.randint(H),np.random.randint(W)
            return max(cy-h//2,0),min(cy+h//2,H),max(cx-w//2,0),min(cx+w//2,W)
        (t,b,l,r),(t2,b2,l2,r2) = box(),box()
        perm,x2 = torch.randperm(n),x.clone()
        self.y2,self.w,self.w2 = y[perm],torch.ones(n),torch.zeros(n)
        if b>t and r>l and b2>t2 and r2>l2:
            x2[:,:,t:b,l:r] = F.interpolate(x[perm,:,t2:b2,l2:r2], (b-t,r-l), mode='bilinear', align_corners=True)
            self.w,self.w2 = 1-cam[:,t:b,l:r].sum((1,2)),cam[perm][:,t2:b2,l2:r2].sum((1,2))
        self.learn.xb = (x2,)
    def after_loss(self):
        def ce(y): return F.cross_entropy(self.learn.pred, y, reduction='none')
        self.learn.loss_grad = (self.w*ce(self.learn.yb[0]) + self.w2*ce(self.y2)).mean()

def methods(classes):
    "Name: (how many pictures of the batch a loader gives, callbacks made anew, loss)"
    from timm.data import Mixup
    from torchvision.transforms import v2
    hard,soft = CrossEntropyLossFlat,nn.CrossEntropyLoss
    res = {'plain': (1, lambda: [], hard)}
    ours = {'SnapMix': SnapMix, 'SnapMix echo': lambda: SnapMix(echo=True), 'CutMix': CutMix, 'MixUp': MixUp,
            'ResizeMix': ResizeMix, 'ManifoldMixUp': ManifoldMixUp, 'GridMask': lambda: GridMask(p=1),
            'MixChoice': lambda: MixChoice([SnapMix(), CutMix(), GridMask(p=1)])}
    for k,f in ours.items(): res[k] = .5 if 'echo' in k else 1,lambda f=f: [f()],hard
    res['SnapMix published'] = 1,lambda: [Published()],hard
    res['fastai CutMix'],res['fastai MixUp'] = (1,lambda: [FastaiCutMix()],hard),(1,lambda: [FastaiMixUp()],hard)
    for mode in ('batch','elem'):
        for k,kw in (('CutMix',dict(mixup_alpha=0., cutmix_alpha=1.)), ('MixUp',dict(mixup_alpha=.4, cutmix_alpha=0.))):
            mix = Mixup(**kw, mode=mode, num_classes=classes, label_smoothing=0.)
            def run(x, y, mix=mix):
                mix_on_device = x.clone(),y
                return mix(*mix_on_device)
            res[f'timm {k} {mode}'] = 1,lambda run=run: [Soft(run)],soft
    for k,t in (('CutMix',v2.CutMix(num_classes=classes)), ('MixUp',v2.MixUp(num_classes=classes, alpha=.4))):
        res[f'torchvision {k}'] = 1,lambda t=t: [Soft(lambda x,y: t(x, y))],soft
    try: from kornia.augmentation import RandomCutMixV2, RandomMixUpV2
    except ImportError: return res
    def shares(y, lab): # kornia gives both labels and λ; the rows they stand for
        lab = lab[0] if lab.ndim==3 else lab
        hot = lambda i: F.one_hot(i.long(), classes).float()
        return torch.lerp(hot(lab[:,0]), hot(lab[:,1]), lab[:,2:3].float())
    for k,t in (('CutMix',RandomCutMixV2(data_keys=['input','class'])),
        ('MixUp',RandomMixUpV2(data_keys=['input','class']))):
        def run(x, y, t=t):
            x,lab = t(x, y)
            return x,shares(y, lab)
        res[f'kornia {k}'] = 1,lambda run=run: [Soft(run)],soft
    return res

class Own(Callback):
    "Time between the callbacks around ours"
    def __init__(self, order, log, sign): self.order,self.log,self.sign = order,log,sign
    def before_batch(self): self.log.append(self.sign*time.perf_counter())
    def after_loss(self): self.log.append(self.sign*time.perf_counter())

class Stepper:
    "One step of training at a time, as `Learner.fit` makes it"
    def __init__(self, name, method, model, x, y):
        part,cbs,loss = method
        n = int(len(x)*part)
        self.x,self.y,self.i,self.own = x[:n],y[:n],0,[]
        dls = DataLoaders([(x,y)]*100, [], device=x.device)
        cbs = cbs()
        extra = [Own(4.9, self.own, -1), Own(5.6, self.own, 1)] if any(isinstance(c, BatchCallback)
            for c in cbs) else []
        self.learn = l = Learner(dls, model, loss_func=loss(), cbs=[TrainEvalCallback(), *cbs, *extra],
            default_cbs=False, lr=1e-4)
        l.create_opt()
        l.n_epoch,l.epoch,l.n_iter,l.dl = 1,0,100,dls.train
        for e in ('before_fit','before_epoch','before_train'): l(e)
        self.forward = 0
        act = next((getattr(m, 'activation', None) for c in cbs for m in [c,*getattr(c, 'mixes', [])]
            if hasattr(m, 'activation')), None)
        if act is not None:
            f = act.forward
            def timed(x): t = time.perf_counter(); out = f(x); self.forward += time.perf_counter()-t; return out
            act.forward = timed

    def step(self):
        "Seconds, and the seconds of it that are a callback's own"
        self.own.clear(); self.forward = 0
        t = time.perf_counter()
        self.learn.one_batch(self.i, (self.x,self.y))
        if self.x.is_cuda: torch.cuda.synchronize()
        self.i += 1
        return time.perf_counter()-t, sum(self.own)-self.forward if self.own else float('nan')

def used():
    "Peak memory of this process so far, in MB"
    if torch.cuda.is_available(): return torch.cuda.max_memory_allocated()/2**20
    # Linux's; getrusage would tell the peak of the process that started this one
    status = Path('/proc/self/status').read_text()
    return int(next(l.split()[1] for l in status.splitlines() if l.startswith('VmHWM')))/1024

def peak(args, name):
    "MB that three steps of a method take in a process of its own"
    out = subprocess.run([sys.executable, __file__, *args, '--only', name], capture_output=True, text=True)
    if out.returncode: raise RuntimeError(f"{name}: {out.stderr}")
    return float(out.stdout.splitlines()[-1])

def measure_memory(args, names):
    "Print and return the peak memory of each method, the median of three processes"
    print(f"{'method':22s} {'MB':>6s} {'least-most':>13s} {'ratio':>6s}")
    rows = []
    for name in names:
        low,median,high = sorted(peak(args, name) for _ in range(3))
        rows.append(dict(method=name, mb=median, low=low, high=high))
        rows[-1]['ratio'] = median/rows[0]['mb']
        print(f"{name:22s} {median:6.0f} {low:6.0f}-{high:6.0f} {rows[-1]['ratio']:6.3f}", flush=True)
    return rows

def time_rounds(steppers, rounds):
    "Seconds of a step of each method in each round, and the part that its callback takes"
    times,own = {k:[] for k in steppers},{k:[] for k in steppers}
    names = list(steppers)
    for i in range(rounds+2):
        # the first of a round finds other data in the caches
        for k in names[i%len(names):]+names[:i%len(names)]:
            seconds,own_seconds = steppers[k].step()
            if i>1: times[k].append(seconds), own[k].append(own_seconds)
    return times,own

@call_parse
def main(
    arch:str='resnet18', # Name of a timm model
    size:int=128, # Side of the pictures
    bs:int=32, # Pictures trained on in a step
    rounds:int=9, # Rounds after two to warm up
    classes:int=10, # Number of classes
    seed:int=0, # Of pictures and weights
    methods_like:str='', # Only methods whose name holds this, beside plain
    memory:store_true=False, # Peak memory instead of time
    only:str=None, # One method, for its memory alone
    json:store_true=False, # One JSON object on the last line
):
    "Time one step of every method, interleaved"
    torch.manual_seed(seed); np.random.seed(seed)
    before = used()
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    x,y = torch.randn(bs, 3, size, size, device=device),torch.randint(classes, (bs,), device=device)
    model = timm.create_model(arch, num_classes=classes).to(device)
    todo = methods(classes)
    if only:
        s = Stepper(only, todo[only], model, x, y)
        for _ in range(3): s.step()
        print(used()-before)
        return
    todo = {k:v for k,v in todo.items() if k=='plain' or methods_like in k}
    facts = dict(arch=arch, size=size, bs=bs, seed=seed, device=device, threads=torch.get_num_threads(),
        record=record())
    args = ['--arch',arch,'--size',str(size),'--bs',str(bs),'--classes',str(classes)]
    if memory:
        print(f'{arch}, {bs} pictures of {size}×{size}, {device}, torch {torch.__version__}')
        rows = measure_memory(args, todo)
        if json: print(dumps(dict(facts, rows=rows)))
        return
    steppers = {k: Stepper(k, v, copy.deepcopy(model), x, y) for k,v in todo.items()}
    times,own = time_rounds(steppers, rounds)
    plain = np.array(times['plain'])
    rows = []
    print(f"{arch}, {bs} pictures of {size}×{size}, {rounds} rounds, {device}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}")
    print(f"{'method':22s} {'ms':>8s} {'ratio':>6s} {'quartiles':>13s} {'own':>6s}")
    for k in todo:
        r = np.array(times[k])/plain
        q1,q2,q3 = np.quantile(r, [.25,.5,.75])
        row = dict(method=k, ms=1000*float(np.median(times[k])), ratio=float(q2), q1=float(q1), q3=float(q3),
            own=None if np.isnan(own[k]).all() else float(np.median(np.array(own[k])/plain)))
        rows.append(row)
        print(f"{k:22s} {row['ms']:8.1f} {q2:6.3f} {q1:6.3f}-{q3:6.3f} {row['own'] or float('nan'):6.3f}", flush=True)
    if json: print(dumps(dict(facts, rounds=rounds, rows=rows)))
