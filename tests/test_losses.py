"The loss of a mixed batch, for every kind of loss, against the sum written out in float64."
import pickle
from functools import partial, wraps

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from fastai.losses import (BaseLoss, BCEWithLogitsLossFlat, CrossEntropyLossFlat, DiceLoss, FocalLossFlat,
    LabelSmoothingCrossEntropy,
    LabelSmoothingCrossEntropyFlat)
from fastai.vision.all import Callback, DataLoader, DataLoaders
from torch import nn
from fastai_mix.callback.choice import MixChoice
from fastai_mix.callback.mix import CutMix, MixUp, ResizeMix, mix_loss
from fastai_mix.callback.snapmix import SnapMix
from fastai_mix.data.soft import SoftCrossEntropyLossFlat
from fastai_mix.losses import BalancedSoftmaxLoss, BalancedSoftmaxLossFlat, change_priors, loss_activation
from helpers import Syncs

n,c = 7,4
g = torch.Generator().manual_seed(0)
pred = torch.randn(n, c, generator=g)*2
y,y2 = torch.randint(c, (n,), generator=g),torch.randint(c, (n,), generator=g)
w,w2 = torch.rand(n, generator=g)*.6+.3,torch.rand(n, generator=g)*.9
w2[2],w[2] = 0,1
weight = torch.tensor([1.,.2,5,2])
hot,hot2 = (torch.rand(n, c, generator=g)>.5).float(),(torch.rand(n, c, generator=g)>.5).float()
soft,soft2 = torch.rand(n, c, generator=g).softmax(1),torch.rand(n, c, generator=g).softmax(1)

P,W,W2,C = pred.double(),w.double(),w2.double(),weight.double()
logp,i = P.log_softmax(1),torch.arange(n)

def nll(t): return -logp[i,t]
def smooth(t, eps): return (1-eps)*nll(t) - eps*logp.mean(1)
def focal(t, k): ce = k*nll(t); return (1-(-ce).exp())**2*ce
def bce(t, pos=1.): t = t.double(); return -(pos*t*F.logsigmoid(P) + (1-t)*F.logsigmoid(-P)).mean(1)
def both(f): return W*f(y) + W2*f(y2)
def share(f): return (W*f(y)+W2*f(y2))/(W+W2)

def my_loss(pred, y, reduction='mean'): return F.cross_entropy(pred, y, reduction=reduction)*3

index = {
    'CrossEntropyLossFlat': (CrossEntropyLossFlat(), lambda: both(nll).mean()),
    'nn.CrossEntropyLoss': (nn.CrossEntropyLoss(), lambda: both(nll).mean()),
    'sum': (nn.CrossEntropyLoss(reduction='sum'), lambda: both(nll).sum()),
    'weighted': (CrossEntropyLossFlat(weight=weight),
        lambda: both(lambda t: C[t]*nll(t)).sum()/share(lambda t: C[t]).sum()),
    'weighted sum': (nn.CrossEntropyLoss(weight, reduction='sum'), lambda: both(lambda t: C[t]*nll(t)).sum()),
    'smoothed': (nn.CrossEntropyLoss(label_smoothing=.1), lambda: both(lambda t: smooth(t, .1)).mean()),
    'smoothed flat': (LabelSmoothingCrossEntropyFlat(eps=.2), lambda: both(lambda t: smooth(t, .2)).mean()),
    'smoothed plain': (LabelSmoothingCrossEntropy(), lambda: both(lambda t: smooth(t, .1)).mean()),
    'smoothed weighted': (nn.CrossEntropyLoss(weight, label_smoothing=.1),
        lambda: both(lambda t: .9*C[t]*nll(t) - .1*(logp*C).mean(1)).sum()/share(lambda t: C[t]).sum()),
    'smoothed weighted flat': (LabelSmoothingCrossEntropyFlat(weight=weight),
        lambda: both(lambda t: .9*C[t]*nll(t)).sum()/share(lambda t: C[t]).sum() + ((W+W2)*-.1*logp.mean(1)).mean()),
    'focal': (FocalLossFlat(), lambda: both(lambda t: focal(t, 1)).mean()),
    'focal weighted': (FocalLossFlat(weight=weight), lambda: both(lambda t: focal(t, C[t])).mean()),
    'nll': (lambda p, t, reduction='mean': F.nll_loss(p.log_softmax(1), t, reduction=reduction),
        lambda: both(nll).mean()),
    'own function': (my_loss, lambda: 3*both(nll).mean()),
    'functional': (F.cross_entropy, lambda: both(nll).mean()),
}
rows = {
    'BCEWithLogitsLossFlat': (BCEWithLogitsLossFlat(), hot, hot2, lambda: (W*bce(hot)+W2*bce(hot2)).mean()),
    'nn.BCEWithLogitsLoss': (nn.BCEWithLogitsLoss(pos_weight=weight), hot, hot2,
        lambda: (W*bce(hot, C)+W2*bce(hot2, C)).mean()),
    'soft targets': (nn.CrossEntropyLoss(), soft, soft2,
        lambda: (-(W[:,None]*soft+W2[:,None]*soft2)*logp).sum(1).mean()),
}
cases = {**{k:(lf,y,y2,want) for k,(lf,want) in index.items()}, **rows}

@pytest.mark.parametrize('name', cases)
def test_mixed_is_the_sum_by_hand(name):
    lf,t,t2,want = cases[name]
    assert abs(mix_loss(lf, pred, (t,), (t2,), w, w2).item()-want().item())<1e-6*max(1, abs(want().item()))

@pytest.mark.parametrize('name', cases)
def test_unmixed_is_plain(name):
    lf,t,t2,_ = cases[name]
    plain = lf(pred, t).item()
    assert abs(mix_loss(lf, pred, (t,), (t2,), torch.ones(n), torch.zeros(n)).item()-plain)<1e-6*max(1, abs(plain))

@pytest.mark.parametrize('name', cases)
def test_reduction_is_put_back_and_gradients_flow(name):
    lf,t,t2,_ = cases[name]
    before = getattr(lf, 'reduction', None)
    p = pred.clone().requires_grad_()
    mix_loss(lf, p, (t,), (t2,), w, w2).backward()
    assert getattr(lf, 'reduction', None)==before and p.grad.isfinite().all() and (p.grad!=0).any()

@pytest.mark.parametrize('reduction', ['sum','none'])
@pytest.mark.parametrize('make', [nn.BCEWithLogitsLoss, BCEWithLogitsLossFlat, nn.CrossEntropyLoss],
    ids=lambda f: f.__name__)
def test_other_reductions_are_those_of_the_loss(make, reduction):
    lf = make(reduction=reduction)
    t,t2 = (y,y2) if make is nn.CrossEntropyLoss else torch.randint(2, (2,n,c)).float()
    plain = lf(pred, t)
    torch.testing.assert_close(mix_loss(lf, pred, (t,), (t2,), torch.ones(n), torch.zeros(n)), plain)
    torch.testing.assert_close(mix_loss(lf, pred, (t,), (t2,), torch.full((n,), .6), torch.full((n,), .4)),
        .6*plain + .4*lf(pred, t2))

def test_mean_over_samples_alone():
    lf,t,t2 = nn.KLDivLoss(reduction='batchmean'),*torch.rand(2,n,c).softmax(2)
    logp = pred.log_softmax(1)
    torch.testing.assert_close(mix_loss(lf, logp, (t,), (t2,), torch.ones(n), torch.zeros(n)), lf(logp, t))
    torch.testing.assert_close(mix_loss(lf, logp, (t,), (t2,), torch.full((n,), .6), torch.full((n,), .4)),
        .6*lf(logp, t) + .4*lf(logp, t2))

def test_ignored_targets_count_for_nothing():
    t = y.clone(); t[0] = -100
    want = F.cross_entropy(pred, t)
    torch.testing.assert_close(mix_loss(nn.CrossEntropyLoss(), pred, (t,), (t,), torch.ones(n), torch.zeros(n)), want)

def test_equal_class_weights_change_nothing():
    torch.testing.assert_close(mix_loss(nn.CrossEntropyLoss(torch.full((c,), 3.)), pred, (y,), (y2,), w, w2),
                               mix_loss(nn.CrossEntropyLoss(), pred, (y,), (y2,), w, w2))

@pytest.mark.parametrize('kwargs', [dict(), dict(weight=torch.rand(c)+.1), dict(ignore_index=1),
    dict(weight=torch.rand(c)+.1, label_smoothing=.2)], ids=['plain','weighted','ignoring','smoothed'])
def test_functions_are_weighted_like_modules(kwargs):
    module,function = nn.CrossEntropyLoss(**kwargs),partial(F.cross_entropy, **kwargs) if kwargs else F.cross_entropy
    torch.testing.assert_close(mix_loss(function, pred, (y,), (y2,), torch.ones(n), torch.zeros(n)), function(pred, y))
    torch.testing.assert_close(mix_loss(function, pred, (y,), (y2,), w, w2), mix_loss(module, pred, (y,), (y2,), w, w2))

def test_a_reduction_that_is_none_in_name_only():
    def loss(p, t, reduction='mean'): return F.cross_entropy(p, t)
    with pytest.raises(ValueError, match='one loss for the whole batch'): mix_loss(loss, pred, (y,), (y2,), w, w2)

def test_a_mean_only_loss_is_refused():
    with pytest.raises(ValueError, match="no `reduction`"): mix_loss(lambda p,t: p.mean(), pred, (y,), (y2,), w, w2)
    with pytest.raises(ValueError, match='the batch is empty'):
        mix_loss(nn.CrossEntropyLoss(), pred[:0], (y[:0],), (y2[:0],), w[:0], w2[:0])

maps = torch.randn(n, c, 3, 5, generator=g)*2
m,m2 = torch.randint(c, (n,3,5), generator=g),torch.randint(c, (n,3,5), generator=g)
some = m.masked_fill(torch.rand(n, 3, 5, generator=g)<.3, 255)
some2 = m2.masked_fill(torch.rand(n, 3, 5, generator=g)<.3, 255)
one,zero = torch.ones(n),torch.zeros(n)

def segmented(loss, t, t2, k):
    "Weighted mean over all pixels, in float64, for class weights `k` of which that of an ignored label is 0"
    l,w1,w_2 = -maps.double().log_softmax(1),W[:,None,None],W2[:,None,None]
    def nll(o): return l.gather(1, torch.where(o<c, o, 0)[:,None])[:,0]
    def weight(o): return torch.cat([k.double(), torch.zeros(256-c)])[o]
    own,partners = (loss(nll(o), l.mean(1))*weight(o) for o in (t,t2))
    return (w1*own+w_2*partners).sum()/((w1*weight(t)+w_2*weight(t2))/(w1+w_2)).sum()

pixels = {
    'weighted': (nn.CrossEntropyLoss(weight), m, m2, weight, 0.),
    'ignoring': (nn.CrossEntropyLoss(ignore_index=255), some, some2, one[:c], 0.),
    'both': (nn.CrossEntropyLoss(weight, ignore_index=255), some, some2, weight, 0.),
    'both flat': (CrossEntropyLossFlat(axis=1, weight=weight, ignore_index=255), some, some2, weight, 0.),
    'both partial': (partial(F.cross_entropy, weight=weight, ignore_index=255), some, some2, weight, 0.),
    'nll': (lambda p,t,reduction='mean': F.nll_loss(p.log_softmax(1), t, reduction=reduction), m, m2, one[:c], 0.),
    'smoothed': (nn.CrossEntropyLoss(ignore_index=255, label_smoothing=.2), some, some2, one[:c], .2),
}
@pytest.mark.parametrize('name', pixels)
def test_pixels_are_weighed_by_their_class(name):
    lf,t,t2,k,eps = pixels[name]
    want = segmented(lambda own,every: (1-eps)*own + eps*every, t, t2, k)
    assert abs(mix_loss(lf, maps, (t,), (t2,), w, w2)-want)<1e-5
    for o in (t,t2):
        torch.testing.assert_close(mix_loss(lf, maps, (o,), (t,), one, zero).as_subclass(torch.Tensor),
            lf(maps, o).as_subclass(torch.Tensor))

dense = [nn.CrossEntropyLoss(weight, label_smoothing=.1), LabelSmoothingCrossEntropy(weight=weight),
         LabelSmoothingCrossEntropyFlat(axis=1, weight=weight), FocalLossFlat(axis=1, weight=weight),
         nn.CrossEntropyLoss(weight, reduction='sum'), DiceLoss(), DiceLoss(reduction='mean')]
@pytest.mark.parametrize('lf', dense, ids=lambda o: type(o).__name__ if " at 0x" in str(o) else str(o))
def test_unmixed_pixels_are_plain(lf):
    torch.testing.assert_close(mix_loss(lf, maps, (m,), (m2,), one, zero).as_subclass(torch.Tensor),
        lf(maps, m).as_subclass(torch.Tensor))

@pytest.mark.parametrize('lf', [CrossEntropyLossFlat(weight=weight), CrossEntropyLossFlat(ignore_index=1),
    LabelSmoothingCrossEntropyFlat(weight=weight), FocalLossFlat(weight=weight)],
    ids=lambda o: type(o).__name__ if " at 0x" in str(o) else str(o))
def test_targets_of_one_column_are_like_those_of_none(lf):
    torch.testing.assert_close(mix_loss(lf, pred, (y[:,None],), (y2[:,None],), w, w2),
        mix_loss(lf, pred, (y,), (y2,), w, w2))
    assert abs(mix_loss(lf, pred, (y[:,None],), (y2[:,None],), one, zero)-lf(pred, y))<1e-6

@pytest.mark.parametrize('ignored', [-100, -1, 255, c])
def test_an_ignored_label_counts_for_nothing(ignored):
    lf = nn.CrossEntropyLoss(weight, ignore_index=ignored)
    t,t2 = y.clone(),y2.clone()
    t[:2],t2[1:3] = ignored,ignored # own, both, partner
    k,k2 = C[y]*(t==y),C[y2]*(t2==y2)
    want = (W*k*nll(y)+W2*k2*nll(y2)).sum()/((W*k+W2*k2)/(W+W2)).sum()
    assert abs(mix_loss(lf, pred, (t,), (t2,), w, w2)-want)<1e-6
    torch.testing.assert_close(mix_loss(LabelSmoothingCrossEntropy(), pred,
        (t.clamp(max=c-1) if ignored>=0 else torch.where(t<0, -100, t),), (t2,) if ignored==-100 else (y2,), one, zero),
        LabelSmoothingCrossEntropy()(pred, t.clamp(max=c-1) if ignored>=0 else torch.where(t<0, -100, t)))

def test_a_mean_over_what_was_flattened():
    lf,t,t2 = BaseLoss(nn.KLDivLoss, reduction='batchmean', is_2d=False),*torch.rand(2, n, c, generator=g).softmax(2)
    logp = pred.log_softmax(1)
    torch.testing.assert_close(mix_loss(lf, logp, (t,), (t2,), one*.6, one*.4).as_subclass(torch.Tensor),
        (.6*lf(logp, t) + .4*lf(logp, t2)).as_subclass(torch.Tensor))

linear = [nn.MSELoss(), nn.HuberLoss(), nn.PoissonNLLLoss(), nn.BCEWithLogitsLoss(weight=weight),
          nn.BCEWithLogitsLoss(weight=torch.rand(n,c), pos_weight=weight),
          BCEWithLogitsLossFlat(pos_weight=weight), nn.MultiLabelSoftMarginLoss(weight), nn.KLDivLoss(),
          SoftCrossEntropyLossFlat(weight=weight), nn.CrossEntropyLoss(weight)]
@pytest.mark.parametrize('lf', linear, ids=lambda o: type(o).__name__ if " at 0x" in str(o) else str(o))
def test_losses_of_rows_are_linear(lf):
    a,b = (lf(pred, t).as_subclass(torch.Tensor) for t in (soft,soft2))
    for k,k2 in ((1.,0.), (.6,.4), (.9,.7)):
        torch.testing.assert_close(mix_loss(lf, pred, (soft,), (soft2,), one*k, one*k2).as_subclass(torch.Tensor),
            k*a+k2*b)

def weighted(p, t, reduction='mean'): return F.cross_entropy(p, t, weight=weight, reduction=reduction)
def ignoring(p, t, reduction='mean'): return F.cross_entropy(p, t, ignore_index=1, reduction=reduction)
def regularised(p, t, reduction='mean'):
    return F.cross_entropy(p, t, reduction=reduction) + (p.square().mean() if reduction=='mean' else 0)
class Weighted(nn.Module):
    reduction = 'mean'
    def forward(self, p, t): return weighted(p, t, self.reduction)
class Half(nn.CrossEntropyLoss):
    def forward(self, p, t): return super().forward(p, t)*(.5 if self.reduction=='mean' else 1)
@wraps(F.cross_entropy)
def wrapped(*args, **kwargs): return F.cross_entropy(*args, weight=weight, **kwargs)
def hardest(k, values=True):
    def loss(p, t, reduction='mean'):
        l = F.cross_entropy(p, t, reduction='none')
        top = l.flatten().topk(int(k*l.numel())).values
        return top.mean() if reduction=='mean' else top if values else l
    return loss
def wrong_reduction(p, t, reduction='weighted'): return weighted(p, t, 'mean' if reduction=='weighted' else reduction)

other_scale = [weighted, ignoring, regularised, partial(weighted),
    lambda p,t,reduction='mean': weighted(p, t, reduction),
    Weighted(), Half(), wrapped, hardest(.5, False), wrong_reduction]
@pytest.mark.parametrize('lf', other_scale, ids=lambda o: getattr(o, '__name__', type(o).__name__))
def test_a_mean_that_is_not_that_of_its_losses_is_refused(lf):
    with pytest.raises(ValueError, match=r"is off by .*CrossEntropyLossFlat\(weight=") as e:
        mix_loss(lf, pred, (y,), (y2,), w, w2)
    assert '\n' not in str(e.value)

@pytest.mark.parametrize('lf,t,p,message', [(hardest(.5),y,pred,'losses of shape'),
    (hardest(.3),m,maps,'losses of shape'), (hardest(1),y,pred,'in another order'),
    (hardest(1),m,maps,'in another order'),
    (lambda p,t,reduction='mean': F.cross_entropy(p[t<2], t[t<2], reduction=reduction),y,pred,'losses of shape')],
    ids=range(5))
def test_losses_that_are_not_those_of_the_samples_are_refused(lf, t, p, message):
    with pytest.raises(ValueError, match=message): mix_loss(lf, p, (t,), (t.flip(0),), w, w2)

def test_a_wrapper_that_takes_no_reduction():
    @wraps(F.cross_entropy)
    def loss(p, t): return F.cross_entropy(p, t)
    with pytest.raises(ValueError, match='no `reduction`'): mix_loss(loss, pred, (y,), (y2,), w, w2)
    @wraps(F.cross_entropy)
    def loss(*args, **kwargs): return F.cross_entropy(*args, **kwargs)*2
    torch.testing.assert_close(mix_loss(loss, pred, (y,), (y2,), w, w2),
        2*mix_loss(nn.CrossEntropyLoss(), pred, (y,), (y2,), w, w2))

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_rounding_is_no_other_scale(dtype):
    def loss(p, t, reduction='mean'):
        l = -p.log_softmax(1).gather(1, t[:,None])[:,0]
        return l.mean() if reduction=='mean' else l
    for seed in range(20):
        p = torch.randn(64, c, generator=torch.Generator().manual_seed(seed)).to(dtype)
        t = torch.arange(64)%c
        assert abs(mix_loss(loss, p, (t,), (t,), torch.ones(64), torch.zeros(64))-loss(p, t))<.02

def test_all_ignored_is_what_the_loss_makes_of_it():
    t = torch.full((n,), -100)
    def loss(p, t, reduction='mean'): return F.cross_entropy(p, t, reduction=reduction)
    for lf in (nn.CrossEntropyLoss(), loss): assert mix_loss(lf, pred, (t,), (t,), one, zero).isnan()==(lf is not loss)

@pytest.mark.parametrize('cb', [MixUp, partial(CutMix, echo=True), SnapMix, lambda: MixChoice([CutMix(), None])],
    ids=range(4))
@pytest.mark.parametrize('lf', [weighted, Weighted(), hardest(.5), hardest(.5, False)], ids=range(4))
def test_a_fit_refuses_it_at_the_first_mixed_batch(cb, lf, toy):
    learn = toy(cbs=cb(), c=4, loss_func=lf)
    before = [p.detach().clone() for p in learn.model.parameters()]
    with pytest.raises(ValueError, match='is off by|losses of shape'): learn.fit(1)
    if not isinstance(learn.cbs[-1], MixChoice):
        assert all(torch.equal(a, b) for a,b in zip(before, learn.model.parameters()))

class Rare(Callback):
    "A label that counts differently, in the last batch of the epoch only"
    order,run_valid = -1,False
    def before_batch(self): self.learn.yb = (torch.where(self.y>1, 0, self.y) if self.iter<3 else self.y,)

@pytest.mark.parametrize('echo', [False,True])
def test_a_label_that_comes_late_is_refused_at_the_end_of_the_epoch(echo, toy):
    def loss(p, t, reduction='mean'): return F.cross_entropy(p, t, weight=torch.tensor([1.,1,3]), reduction=reduction)
    learn = toy(cbs=[MixUp(echo=echo), Rare()], loss_func=loss)
    with pytest.raises(ValueError, match='is off by'): learn.fit(1)
    assert learn.opt.state_dict()['state'][0]['step']==4
    toy(cbs=[MixUp(echo=echo), Rare()], loss_func=CrossEntropyLossFlat(weight=torch.tensor([1.,1,3]))).fit(1)

@pytest.mark.parametrize('echo', [False,True])
def test_checking_makes_no_device_wait(echo, toy):
    def loss(p, t, reduction='mean'): return F.cross_entropy(p, t, reduction=reduction)
    counts = []
    for cbs in ([], [CutMix(echo=echo)]):
        learn = toy(cbs=cbs, loss_func=loss)
        with Syncs() as s: learn.fit(1)
        counts.append(s.n)
    assert counts[0]==counts[1]

def test_a_loss_is_checked_again_in_the_next_fit(toy):
    learn = toy(cbs=MixUp(), c=4)
    learn.fit(1)
    learn.loss_func = weighted
    with pytest.raises(ValueError, match='is off by'): learn.fit(1)

def test_segmentation_trains_on_its_weighted_loss(toy):
    class Fixed(MixUp):
        def mix(self, x, y, partner): return x,torch.ones(len(x)),torch.zeros(len(x))
    class Masks:
        def __len__(self): return 16
        def __getitem__(self, i): return torch.rand(3,8,8),torch.randint(3, (8,8)).masked_fill(torch.rand(8,8)<.2, 255)
    class Same(Callback):
        order,run_valid = 60,False
        def after_loss(self): torch.testing.assert_close(self.loss, self.loss_func(self.pred, *self.yb))
    lf = nn.CrossEntropyLoss(torch.tensor([1.,5,.2]), ignore_index=255)
    learn = toy(model=nn.Conv2d(3, 3, 3, padding=1), loss_func=lf, cbs=[Fixed(), Same()])
    dl = DataLoader(Masks(), bs=8)
    learn.dls = DataLoaders(dl, dl)
    learn.fit(1)

counts = [60,30,10]
def balanced_by_hand(pred, y, weight=None, smoothing=0., ignore=-100):
    log_share = (torch.tensor(counts)/100).log()
    return F.cross_entropy(pred+log_share, y, weight=weight, label_smoothing=smoothing, ignore_index=ignore)

@pytest.mark.parametrize('kwargs', [
    {}, dict(weight=torch.tensor([1.,2,5])), dict(label_smoothing=.1), dict(ignore_index=1)], ids=str)
@pytest.mark.parametrize('kind', [counts, np.array(counts), torch.tensor(counts), [.6,.3,.1],
    pd.Series(dict(a=60, b=30, c=10))], ids=lambda o: type(o).__name__)
def test_balanced_softmax_by_hand(kind, kwargs):
    g = torch.Generator().manual_seed(0)
    pred,y = torch.randn(12, 3, generator=g),torch.arange(12)%3
    loss = BalancedSoftmaxLossFlat(kind, **kwargs)
    weight,smoothing = kwargs.get('weight'),kwargs.get('label_smoothing', 0.)
    expected = balanced_by_hand(pred, y, weight, smoothing, kwargs.get('ignore_index', -100))
    torch.testing.assert_close(loss(pred, y), expected)
    one = torch.ones(12)
    torch.testing.assert_close(mix_loss(loss, pred, (y,), (y.flip(0),), one, one*0), expected)

def test_balanced_softmax_of_mixed_labels():
    "Linear in the weights, as every loss"
    g = torch.Generator().manual_seed(0)
    pred,y,w = torch.randn(12, 3, generator=g),torch.arange(12)%3,torch.rand(12, generator=g)
    loss = BalancedSoftmaxLossFlat(counts)
    each = [F.cross_entropy(pred+(torch.tensor(counts)/100).log(), t, reduction='none') for t in (y, y.flip(0))]
    mixed = mix_loss(loss, pred, (y,), (y.flip(0),), w, 1-w)
    torch.testing.assert_close(mixed, (w*each[0]+(1-w)*each[1]).mean())

def test_balanced_softmax_of_pixels_and_shares():
    pred,mask = torch.randn(2, 3, 4, 4),torch.randint(0, 3, (2,4,4))
    log_share = (torch.tensor(counts)/100).log().view(3,1,1)
    expected = F.cross_entropy(pred+log_share, mask)
    torch.testing.assert_close(BalancedSoftmaxLossFlat(counts, axis=1)(pred, mask), expected)
    torch.testing.assert_close(BalancedSoftmaxLoss(counts)(pred, mask), expected)
    pred,shares = torch.randn(5, 3),torch.rand(5, 3).softmax(1)
    log_share = log_share.view(3)
    torch.testing.assert_close(BalancedSoftmaxLoss(counts)(pred, shares), F.cross_entropy(pred+log_share, shares))

def test_balanced_softmax_predicts_by_the_plain_softmax():
    pred = torch.randn(5, 3)
    again = pickle.loads(pickle.dumps(BalancedSoftmaxLossFlat(counts)))
    for loss in (BalancedSoftmaxLossFlat(counts), BalancedSoftmaxLoss(counts), again):
        torch.testing.assert_close(loss_activation(loss)(pred), pred.softmax(1))
    assert BalancedSoftmaxLossFlat(counts).decodes(pred).tolist()==pred.argmax(1).tolist()

@pytest.mark.parametrize('mix', [lambda: CutMix(), lambda: SnapMix(echo=True)])
def test_balanced_softmax_in_a_learner(toy, mix):
    learn = toy(cbs=mix(), loss_func=BalancedSoftmaxLossFlat(counts))
    learn.fit(1)
    assert np.isfinite(learn.recorder.log[1]) and learn.get_preds()[0].sum(1).allclose(torch.ones(32))

@pytest.mark.parametrize('bad', [[1,0], [1,-1], [1], [], [[1,2]], [1,float('nan')], [1,float('inf')]])
def test_wrong_counts(bad):
    for f in (BalancedSoftmaxLossFlat, lambda o: change_priors(torch.full((1,2), .5), o)):
        with pytest.raises(ValueError, match='expected a number above 0 for each'): f(bad)

def test_counts_of_other_classes():
    with pytest.raises(ValueError, match='3 outputs, but there are counts of 2'):
        BalancedSoftmaxLossFlat([1,2])(torch.zeros(1, 3), torch.tensor([0]))
    with pytest.raises(ValueError, match='a column for each of the 2 classes'): change_priors(torch.zeros(1, 3), [1,2])

@pytest.mark.parametrize('make', [lambda o: o, lambda o: o.numpy(), lambda o: o.double().numpy()])
def test_change_priors(make):
    "It takes back what the counts add to the scores, and leaves its input and its kind alone"
    scores = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    probs = make((scores+(torch.tensor(counts)/100).log()).softmax(1))
    copy = probs.copy() if isinstance(probs, np.ndarray) else probs.clone()
    changed = change_priors(probs, counts)
    assert type(changed) is type(probs) and changed.dtype==probs.dtype and (probs==copy).all()
    np.testing.assert_allclose(np.asarray(changed), scores.softmax(1), rtol=1e-4)
    np.testing.assert_allclose(np.asarray(change_priors(probs, counts, tau=0)), np.asarray(probs), rtol=1e-5)
    half = change_priors(change_priors(probs, counts, .5), counts, .5)
    np.testing.assert_allclose(np.asarray(half), np.asarray(changed), rtol=1e-4)
    for tau in (-1, float('nan'), 'a'):
        with pytest.raises(ValueError, match='tau=.*: expected a number from 0 up'): change_priors(probs, counts, tau)

def test_change_priors_of_a_table_goes_by_names():
    probs = pd.DataFrame([[.5,.5],[.9,.1]], ['x','y'], ['b','a'])
    want = change_priors(probs.to_numpy(), [9,1])
    for counts in ([9,1], pd.Series({'a':1, 'b':9}), pd.Series({'b':9, 'a':1})):
        found = change_priors(probs, counts)
        assert list(found)==['b','a'] and list(found.index)==['x','y'] and np.allclose(found, want)

@pytest.mark.parametrize('probs', [np.array([[1,0],[0,1]]), torch.tensor([[1,0],[0,1]])], ids=['numpy','torch'])
def test_change_priors_of_whole_numbers(probs):
    assert np.allclose(change_priors(probs, [9,1]), [[1,0],[0,1]])

@pytest.mark.parametrize('mix', [CutMix, ResizeMix, SnapMix])
def test_mixes_that_paste_take_no_targets_per_pixel(mix, toy):
    class Masks:
        def __len__(self): return 16
        def __getitem__(self, i): return torch.rand(3,8,8),torch.randint(3, (8,8))
    dl = DataLoader(Masks(), bs=8)
    learn = toy(model=nn.Conv2d(3, 3, 3, padding=1), loss_func=nn.CrossEntropyLoss(), cbs=mix())
    learn.dls = DataLoaders(dl, dl)
    with pytest.raises(ValueError, match=r'targets per pixel, of shape \(8, 8, 8\).*use MixUp'): learn.fit(1)
