"The loss of a mixed batch, for every kind of loss, against the sum written out in float64."
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from fastai.losses import (BCEWithLogitsLossFlat, CrossEntropyLossFlat, FocalLossFlat, LabelSmoothingCrossEntropy, LabelSmoothingCrossEntropyFlat)
from torch import nn
from fastai_mix.callback.mix import mix_loss

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
    'weighted': (CrossEntropyLossFlat(weight=weight), lambda: both(lambda t: C[t]*nll(t)).sum()/share(lambda t: C[t]).sum()),
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
    'nll': (lambda p, t, reduction='mean': F.nll_loss(p.log_softmax(1), t, reduction=reduction), lambda: both(nll).mean()),
    'own function': (my_loss, lambda: 3*both(nll).mean()),
    'functional': (F.cross_entropy, lambda: both(nll).mean()),
}
rows = {
    'BCEWithLogitsLossFlat': (BCEWithLogitsLossFlat(), hot, hot2, lambda: (W*bce(hot)+W2*bce(hot2)).mean()),
    'nn.BCEWithLogitsLoss': (nn.BCEWithLogitsLoss(pos_weight=weight), hot, hot2, lambda: (W*bce(hot, C)+W2*bce(hot2, C)).mean()),
    'soft targets': (nn.CrossEntropyLoss(), soft, soft2, lambda: (-(W[:,None]*soft+W2[:,None]*soft2)*logp).sum(1).mean()),
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
@pytest.mark.parametrize('make', [nn.BCEWithLogitsLoss, BCEWithLogitsLossFlat, nn.CrossEntropyLoss], ids=lambda f: f.__name__)
def test_other_reductions_are_those_of_the_loss(make, reduction):
    lf,t,t2 = make(reduction=reduction),*((y,y2) if make is nn.CrossEntropyLoss else (torch.randint(2, (2,n,c)).float()))
    plain = lf(pred, t)
    torch.testing.assert_close(mix_loss(lf, pred, (t,), (t2,), torch.ones(n), torch.zeros(n)), plain)
    torch.testing.assert_close(mix_loss(lf, pred, (t,), (t2,), torch.full((n,), .6), torch.full((n,), .4)), .6*plain + .4*lf(pred, t2))

def test_mean_over_samples_alone():
    lf,t,t2 = nn.KLDivLoss(reduction='batchmean'),*torch.rand(2,n,c).softmax(2)
    logp = pred.log_softmax(1)
    torch.testing.assert_close(mix_loss(lf, logp, (t,), (t2,), torch.ones(n), torch.zeros(n)), lf(logp, t))
    torch.testing.assert_close(mix_loss(lf, logp, (t,), (t2,), torch.full((n,), .6), torch.full((n,), .4)), .6*lf(logp, t) + .4*lf(logp, t2))

def test_ignored_targets_count_for_nothing():
    t = y.clone(); t[0] = -100
    want = F.cross_entropy(pred, t)
    torch.testing.assert_close(mix_loss(nn.CrossEntropyLoss(), pred, (t,), (t,), torch.ones(n), torch.zeros(n)), want)

def test_equal_class_weights_change_nothing():
    torch.testing.assert_close(mix_loss(nn.CrossEntropyLoss(torch.full((c,), 3.)), pred, (y,), (y2,), w, w2),
                               mix_loss(nn.CrossEntropyLoss(), pred, (y,), (y2,), w, w2))

@pytest.mark.parametrize('kwargs', [dict(), dict(weight=torch.rand(c)+.1), dict(ignore_index=1), dict(weight=torch.rand(c)+.1, label_smoothing=.2)], ids=['plain','weighted','ignoring','smoothed'])
def test_functions_are_weighted_like_modules(kwargs):
    module,function = nn.CrossEntropyLoss(**kwargs),partial(F.cross_entropy, **kwargs) if kwargs else F.cross_entropy
    torch.testing.assert_close(mix_loss(function, pred, (y,), (y2,), torch.ones(n), torch.zeros(n)), function(pred, y))
    torch.testing.assert_close(mix_loss(function, pred, (y,), (y2,), w, w2), mix_loss(module, pred, (y,), (y2,), w, w2))

def test_a_reduction_that_is_none_in_name_only():
    def loss(p, t, reduction='mean'): return F.cross_entropy(p, t)
    with pytest.raises(ValueError, match='one loss for the whole batch'): mix_loss(loss, pred, (y,), (y2,), w, w2)

def test_a_mean_only_loss_is_refused():
    with pytest.raises(ValueError, match="no `reduction`"): mix_loss(lambda p,t: p.mean(), pred, (y,), (y2,), w, w2)
