"GridMask against the published code, and what it must leave alone."
import math
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from fastai.vision.all import Callback, GradientAccumulation, Normalize, TensorImage, aug_transforms, set_seed
from hypothesis import given, settings, strategies as st
from PIL import Image
from fastai_mix.callback.gridmask import GridMask, GridMaskTfm, GridPattern, grid_mask
from fastai_mix.callback.mix import CutMix, MixUp, ramp
from fastai_mix.callback.snapmix import SnapMix
from fastai_mix.data.leaves import leaf_data, leaf_dls
from fastai_mix.vision.cam import ClassActivation
from helpers import Record, Syncs, weights

golden = np.load(Path(__file__).parent/'golden'/'gridmask.npz')

def one(size, d, ratio, offset, angle, **kwargs):
    return grid_mask(size, torch.tensor([d]), ratio, torch.tensor([offset]), torch.tensor([angle]), **kwargs)[0]

def drawn(size, d, ratio, offset, angle, invert=False, pattern='grid'):
    "A mask as the published code makes it: strips on a square, turned by PIL, cropped"
    side,l = math.ceil(math.hypot(*size)),math.ceil(d*ratio)
    rows,cols = np.zeros((2,side,side), np.uint8)
    for i in range(-1, side//d+1):
        for strip,o in ((rows,offset[0]), (cols.T,offset[1])): strip[max(0,d*i+o):max(0,d*i+o+l)] = 1
    m = rows|cols if pattern=='grid' else rows^cols
    top,left = ((side-n)//2 for n in size)
    m = np.asarray(Image.fromarray(m).rotate(angle))[top:top+size[0],left:left+size[1]]
    return torch.from_numpy(m==invert)

@pytest.mark.parametrize('i', range(10))
def test_published(i):
    h,w,d,ratio,st_h,st_w,angle,mode = (golden[f'{i}/{k}'].item() for k in 'h w d ratio st_h st_w angle mode'.split())
    m = one((h,w), d, ratio, (st_h,st_w), angle, invert=mode==1)
    assert m.dtype==torch.bool and torch.equal(m, torch.from_numpy(golden[f'{i}/mask']).bool())

@pytest.mark.parametrize('size', [(8,4), (64,64), (61,90)])
def test_every_angle(size):
    "Right angles, and those whose pixels fall on the line between two, among them"
    angle = torch.arange(-5, 366)
    n = len(angle)
    m = grid_mask(size, torch.full((n,), 17), .4, torch.tensor([[3,11]]).expand(n,2), angle)
    for a,o in zip(angle.tolist(), m): assert torch.equal(o, drawn(size, 17, .4, (3,11), a)), a

@settings(max_examples=150, deadline=None, derandomize=True)
@given(h=st.integers(1,150), w=st.integers(1,150), d=st.integers(2,200), ratio=st.floats(.01,.99),
       seed=st.integers(0,10**6),
       invert=st.booleans(), pattern=st.sampled_from(['grid','checker']))
def test_one_picture_at_a_time(h, w, d, ratio, seed, invert, pattern):
    rng = random.Random(seed)
    d = torch.tensor([d, *(rng.randint(2,300) for _ in range(3))])
    offset = torch.tensor([[rng.randrange(int(o)) for _ in range(2)] for o in d])
    angle = torch.tensor([rng.randrange(360) for _ in d])
    m = grid_mask((h,w), d, ratio, offset, angle, invert, pattern)
    by_hand = [drawn((h,w), *o, invert, pattern) for o in zip(d.tolist(), [ratio]*4, offset.tolist(), angle.tolist())]
    assert torch.equal(m, torch.stack(by_hand))
    assert torch.equal(~m, grid_mask((h,w), d, ratio, offset, angle, not invert, pattern))

@pytest.mark.parametrize('d,size', [(2,(7,5)), (16384,(300,200)), (9001,(2000,3))])
def test_extreme_periods(d, size):
    for ratio in (.01,.5,.99):
        for angle in (0,45,201):
            assert torch.equal(one(size, d, ratio, (1,d-1), angle), drawn(size, d, ratio, (1,d-1), angle))

def test_a_period_below_1_hides_all():
    for d in (0,-3,1): assert not one((5,4), d, .5, (0,0), 30).any() and one((5,4), d, .5, (0,0), 30, invert=True).all()

@pytest.mark.parametrize('change,message', [(dict(ratio=0), 'ratio=0: expected'),
    (dict(ratio=float('nan')), 'ratio=nan'), (dict(ratio=1.), 'ratio=1.0'),
    (dict(pattern='stripes'), "pattern='stripes': expected"),
    (dict(offset=torch.zeros(3,2)), r'shape \[2\], \[3, 2\], \[2\]: expected \[n\], \[n, 2\] and \[n\]'),
    (dict(angle=torch.zeros(2,1)), 'expected'), (dict(offset=torch.zeros(2)), 'expected')])
def test_wrong_masks(change, message):
    args = dict(size=(6,5), d=torch.tensor([3,4]), ratio=.5, offset=torch.zeros(2,2), angle=torch.zeros(2))
    assert grid_mask(**args).shape==(2,6,5)
    with pytest.raises(ValueError, match=message): grid_mask(**(args|change))

@pytest.mark.parametrize('kwargs,share', [(dict(invert=False), lambda r: (1-r)**2), (dict(), lambda r: 1-(1-r)**2)])
@pytest.mark.parametrize('ratio', [.3,.6])
def test_share_kept(kwargs, share, ratio):
    set_seed(0)
    cb,x = GridMask(d=(.2,.6), ratio=ratio, **kwargs),torch.ones(400,1,64,64)
    p = cb.make_params(x)
    want = share((p['d']*ratio).ceil()/p['d']).mean()
    assert abs(cb.change(x, None).mean()-want)<.02

def test_checker_keeps_half_in_equal_cells():
    cb,x = GridMask(pattern='checker', d=(24,25)),torch.ones(64,1,96,96)
    m = cb.change(x, None)[:,0].bool()
    assert (m.sum((1,2))==96*96//2).all()
    for axis in (1,2): # one cell on, in either direction, the other colour
        a,b = m.narrow(axis, 0, 84),m.narrow(axis, 12, 84)
        assert torch.equal(a, ~b)

def test_period_is_a_share_of_the_shorter_side():
    for size,d,want in (((224,224),(.43,1.),(96,224)), ((100,300),(.2,.5),(20,50)), ((100,300),(30,31),(30,31)),
                         ((4,4),(.1,.2),(2,3)),
                         ((90,90),(.5,.5),(45,46))):
        p = GridPattern(d=d).make_params(torch.empty(3000,1,1,1).expand(-1,-1,*size))
        assert (p['d'].min(),p['d'].max()+1)==want
        assert p['offset'].min()==0 and (p['offset']<p['d'][:,None]).all() and p['offset'].shape==(3000,2)

def test_angles():
    x = torch.empty(3000,1,8,8)
    for rotate,pattern,want in ((360,'grid',range(360)), (30,'grid',range(30)), (0,'grid',[0]), (1,'grid',[0]),
                                 (360,'checker',[0,90,180,270]), (90,'checker',[0])):
        assert set(GridPattern(rotate=rotate, pattern=pattern).make_params(x)['angle'].tolist())==set(want)

@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16, torch.uint8])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('fill', [0., .5, 7])
def test_only_hidden_pixels_change(dtype, layout, fill):
    x = TensorImage((torch.rand(4,3,20,30)*200).to(dtype).contiguous(memory_format=layout))
    cb,x0 = GridMask(fill=fill),x.clone()
    p = cb.make_params(x)
    out = cb.hide(x, **p)
    keep = grid_mask((20,30), p['d'], .6, p['offset'], p['angle'], True)[:,None].expand(x.shape)
    assert torch.equal(x, x0) and type(out)==TensorImage
    assert out.dtype==dtype and out.is_contiguous(memory_format=layout)
    assert torch.equal(out[keep], x[keep]) and (out[~keep]==torch.tensor(fill).to(dtype)).all()

def test_p0_is_plain_training(toy):
    runs = []
    for cbs in ([], [GridMask(p=0)], [GridMask(p=lambda t: 0)], [GridMask(p=1)]):
        learn = toy(cbs=[*cbs, Record()], n=40)
        learn.fit(1)
        runs.append((learn.record.losses, weights(learn)))
    for losses,w in runs[1:3]: assert losses==runs[0][0] and torch.equal(w, runs[0][1])
    assert runs[3][0]!=runs[0][0]

class Steps(Callback):
    "Pictures, labels and whether something was hidden, of every batch"
    order = 59
    def before_fit(self): self.seen = []
    def after_pred(self):
        self.seen.append((self.learn.training, self.x.clone(), self.y.clone(), bool((self.x==-9).any())))

def test_labels_and_validation_are_left_alone(toy):
    learn = toy(cbs=[GridMask(p=1, fill=-9), Steps()])
    learn.dls.train.shuffle = False
    learn.fit(1)
    ys = torch.cat([y for training,_,y,_ in learn.steps.seen if training])
    assert sorted(ys.tolist())==sorted(learn.dls.train_ds.y.tolist())
    assert {(training,hidden) for training,*_,hidden in learn.steps.seen}=={(True,True), (False,False)}

def test_default_chance_grows(toy):
    learn = toy(cbs=[GridMask(fill=-9), Steps()], n=160, bs=4)
    learn.fit(10) # 400 steps
    hit = torch.tensor([hidden for training,*_,hidden in learn.steps.seen if training]).float()
    assert not hit[0] and hit[:80].mean()<.25 and abs(hit[:320].mean()-.4)<.1 and abs(hit[320:].mean()-.8)<.15

def test_ramp():
    r = ramp(.1, .7, until=.5)
    assert (r(0),r(.5),r(1))==(.1,.7,.7) and abs(r(.25)-.4)<1e-9
    back = pickle.loads(pickle.dumps(r))
    assert repr(back)==repr(r) and repr(r).endswith('ramp(start=0.1, end=0.7, until=0.5)') and back(.3)==r(.3)
    for until in (0,1.1,'x'):
        with pytest.raises(ValueError, match='until='): ramp(0, 1, until)

@pytest.mark.parametrize('cb', [GridMask(p=1), GridMask(p=1, invert=False, rotate=0, fill=.5),
    GridMask(p=1, pattern='checker'), GridMask()],
                         ids=['grid','fill','checker','ramp'])
def test_no_host_syncs(toy, cb):
    counts = []
    for cbs in ([], [cb]):
        learn = toy(cbs=cbs)
        with Syncs() as s: learn.fit(1)
        counts.append(s.n)
    assert counts[0]==counts[1]

def test_order():
    assert SnapMix.order<GridMask.order<GradientAccumulation.order

def test_snapmix_sees_whole_pictures(toy):
    class Whole(Callback):
        "The map and the logits of the batch as it comes"
        order,run_valid = 4,False
        def before_batch(self):
            self.want = ClassActivation(self.learn.model)(self.x, self.y)
    class Between(Callback):
        order,run_valid = 5.2,False
        def before_batch(self): self.mixed = self.x.clone()
    class Check(Callback):
        order,run_valid = 5.8,False
        n = 0
        def before_batch(self):
            cam,logits = self.learn.whole.want
            torch.testing.assert_close(self.learn.snap_mix.cam, cam)
            torch.testing.assert_close(self.learn.snap_mix.logits, logits)
            hidden = (self.x==-9).all(1, keepdim=True)
            assert hidden.any() and torch.equal(self.x, torch.where(hidden, -9, self.learn.between.mixed))
            self.n += 1
    # given in the other order
    learn = toy(cbs=[GridMask(p=1, fill=-9), SnapMix(), Whole(), Between(), Check(), Record()])
    learn.fit(2)
    assert learn.check.n==8 and len(learn.record.seen)==8 # two labels and their weights in every step

@pytest.mark.parametrize('mix', [MixUp, CutMix])
def test_composes_with_other_mixes(toy, mix):
    learn = toy(cbs=[mix(), GridMask(p=.5), Record()])
    learn.fit(2)
    assert all(math.isfinite(o) for o in learn.record.losses)

def test_training_improves(toy):
    learn = toy(cbs=GridMask(), n=96, lr=1e-2)
    first = learn.validate()[0]
    learn.fit(8)
    assert learn.validate()[0]<.5*first

@pytest.mark.parametrize('stats', [False,True])
def test_transform(tmp_path, stats):
    tfms = [GridMaskTfm(p=1, fill=-9), *aug_transforms(size=64)] + [Normalize.from_stats([.5]*3, [.25]*3)]*stats
    dls = leaf_dls(leaf_data(tmp_path/'leaves', n=40, size=64), size=64, bs=8, batch_tfms=tfms)
    assert isinstance(dls.train.after_batch.fs[-1], GridMaskTfm)
    for _ in range(2):
        x,y = dls.train.one_batch()
        assert .02<(x==-9).all(1).float().mean()<.5 and type(x)==TensorImage and y.shape==(8,)
        assert not (dls.valid.one_batch()[0]==-9).any()
    assert not (dls.test_dl(dls.valid_ds.items).one_batch()[0]==-9).any()
    dls.show_batch(max_n=2)

def test_transform_chance():
    random.seed(0)
    tfm,x = GridMaskTfm(p=.3, fill=-9),TensorImage(torch.rand(2,3,16,16))
    hit = [bool((tfm((x,torch.zeros(2)), split_idx=0)[0]==-9).any()) for _ in range(400)]
    assert abs(np.mean(hit)-.3)<.08
    assert not (tfm(x, split_idx=1)==-9).any()
    back = pickle.loads(pickle.dumps(tfm))
    assert (back.p,back.d,back.pattern)==(.3,(.43,1.),'grid')

wrong = [(dict(p=1.2), 'p=1.2'), (dict(d=(1.,.4)), r'd=\(1.0, 0.4\)'), (dict(d=(0,.4)), r'd=\(0, 0.4\)'),
         (dict(d=(-.1,.4)), 'd='),
         (dict(d=(.4,224)), 'both shares'), (dict(d=.5), 'd=0.5'), (dict(d=(.1,.2,.3)), 'd='), (dict(d=('a',1)), 'd='),
         (dict(d=(.1,float('nan'))), 'd='),
         (dict(ratio=0), 'ratio=0'), (dict(ratio=1), 'ratio=1'), (dict(ratio='x'), "ratio='x'"),
         (dict(rotate=-1), 'rotate=-1'),
         (dict(pattern='dots'), "pattern='dots'.*'grid' or 'checker'"), (dict(fill=None), 'fill=None')]
@pytest.mark.parametrize('cls', [GridMask, GridMaskTfm])
@pytest.mark.parametrize('kwargs,message', wrong, ids=str)
def test_wrong_arguments(cls, kwargs, message):
    with pytest.raises(ValueError, match=message) as e: cls(**kwargs)
    assert '\n' not in str(e.value)
