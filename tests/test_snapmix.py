"SnapMix against the published code, and what it must leave alone."
from collections import Counter
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fastai.callback.mixup import CutMix as FastaiCutMix, MixUp as FastaiMixUp
from fastai.vision.all import (BCEWithLogitsLossFlat, Callback, CancelBatchException, CancelEpochException,
    CancelFitException, CancelTrainException,
    CrossEntropyLossFlat, GradientAccumulation, L1LossFlat, MSELossFlat, nn, set_seed)
from torch.distributions import Normal
from fastai_mix.callback.choice import MixChoice
from fastai_mix.callback.manifold import ManifoldMixUp
from fastai_mix.callback.mix import CutMix, MixCallback, MixUp, ResizeMix
from fastai_mix.callback.snapmix import SnapMix, snapmix
from fastai_mix.vision.box import box_area
from fastai_mix.vision.cam import ClassActivation
from helpers import CpuAutocast, CpuScaler, raises, Record, state, Stop, Syncs, toy_model, weights

golden = np.load(Path(__file__).parent/'golden'/'snapmix.npz')

class Case:
    def __init__(self, i): self.i = i
    def __getattr__(self, k): return torch.from_numpy(golden[f'{self.i}/{k}'])
    def cam(self):
        head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(*self.weight.T.shape))
        head[2].weight.data,head[2].bias.data = self.weight,self.bias
        return ClassActivation(nn.Sequential(nn.ReLU(), head))(self.features, self.y)[0]

def close(a, b): torch.testing.assert_close(a, b, atol=1e-4, rtol=0)

@pytest.mark.parametrize('i', range(4))
def test_published(i):
    c = Case(i)
    n = len(c.x)
    mixed,w,w2 = snapmix(c.x, c.cam(), c.perm, c.box_target.expand(n,4), c.box_source.expand(n,4))
    close(mixed, c.mixed), close(w, c.rho_a), close(w2, c.rho_b)

@pytest.mark.parametrize('i', range(4))
def test_published_same_label(i, toy, monkeypatch):
    c = Case(i)
    cb = SnapMix(same_label='published')
    learn = toy(cbs=cb)
    cb.before_fit()
    monkeypatch.setattr(cb, 'clean', lambda x: SimpleNamespace(cam=lambda y: c.cam(), logits=torch.zeros(len(x), 1)))
    monkeypatch.setattr(cb, 'make_params', lambda x: (c.box_target.expand(len(x),4), c.box_source.expand(len(x),4)))
    mixed,w,w2 = cb.mix(c.x, c.y, c.perm)
    close(mixed, c.mixed), close(w, c.weight_a), close(w2, c.weight_b)

def test_p0_is_plain_training(toy):
    runs = []
    for cbs in ([], [SnapMix(p=0)], [SnapMix(p=lambda t: 0)]):
        learn = toy(cbs=[*cbs, Record()], n=40)
        learn.fit(1) # 5 steps
        runs.append((learn.record.losses, weights(learn)))
    for losses,w in runs[1:]: assert losses==runs[0][0] and torch.equal(w, runs[0][1])
    learn = toy(cbs=[SnapMix(), Record()], n=40)
    learn.fit(1)
    assert learn.record.losses!=runs[0][0]

def test_loss_is_the_sum_written_out(toy):
    learn = toy(cbs=[SnapMix(), Record()])
    learn.fit(1)
    assert len(learn.record.seen)==4
    for (pred,y,w,w2,y2),loss in zip(learn.record.seen, learn.record.losses):
        logp,i = pred.double().log_softmax(1),torch.arange(len(y))
        assert abs((-(w*logp[i,y]+w2*logp[i,y2])).mean().item()-loss)<1e-6

def test_multi_label(toy):
    learn = toy(cbs=[SnapMix(), Record()], target='onehot', loss_func=BCEWithLogitsLossFlat())
    learn.fit(1)
    for (pred,y,w,w2,y2),loss in zip(learn.record.seen, learn.record.losses):
        def bce(t):
            return nn.functional.binary_cross_entropy_with_logits(pred.double(), t.double(), reduction='none').mean(1)
        assert abs((w*bce(y)+w2*bce(y2)).mean().item()-loss)<1e-6

@pytest.mark.parametrize('mix', [SnapMix(), SnapMix(partner='other', same_label='published'),
    SnapMix(box=Normal(.5,.1)), CutMix(), MixUp(), ResizeMix(), ManifoldMixUp()], ids=str)
def test_no_host_syncs(toy, mix):
    counts = []
    for cbs in ([], [mix]):
        learn = toy(cbs=cbs)
        with Syncs() as s: learn.fit(1)
        counts.append(s.n)
    assert counts[0]==counts[1]

def test_sync_counter_counts():
    with Syncs() as s:
        x = torch.arange(4.)
        x[x>1], x.sum().item(), bool(x.sum()>0), x.nonzero()
    assert s.n==Counter(index=1, _local_scalar_dense=2, nonzero=1)

@pytest.mark.parametrize('event', ['after_pred','after_loss','before_step','before_batch'])
@pytest.mark.parametrize('ex', [RuntimeError, KeyboardInterrupt, CancelFitException, CancelBatchException])
def test_nothing_leaks(toy, event, ex):
    learn = toy(cbs=SnapMix())
    learn.fit(1)
    want = state(learn)
    stop = Stop(event, ex, order=30)
    try: learn.fit(1, cbs=stop)
    except (RuntimeError,KeyboardInterrupt): pass
    assert state(learn)[0] is want[0] and state(learn)[1]==want[1] and state(learn)[4:]==want[4:]
    assert set(state(learn)[2])<={True} or set(state(learn)[2])<={False}
    before = learn.validate()
    assert learn.validate()==before
    learn.fit(1) # a fit after it is like any other

@pytest.mark.parametrize('where', ['head','body'])
def test_exception_inside_the_clean_forward(toy, where):
    class Boom(nn.Module):
        on = False
        def forward(self, x):
            if self.on and not self.training: raise RuntimeError('boom')
            return x
    learn = toy(cbs=SnapMix())
    boom = Boom()
    learn.model.insert(2 if where=='body' else 9, boom)
    learn.fit(1)
    boom.on = True
    with pytest.raises(RuntimeError, match='boom'): learn.fit(1)
    assert all(m.training for m in learn.model.modules()) and state(learn)[4]==0 and torch.is_grad_enabled()

def test_batchnorm_sees_only_training_batches(toy):
    seen = []
    for cbs in ([], [SnapMix()]):
        learn = toy(cbs=cbs)
        learn.fit(1)
        seen.append(learn.model[1].num_batches_tracked.item())
    assert seen==[4,4]
    cb = SnapMix()
    learn = toy(cbs=cb)
    cb.before_fit()
    learn.model.train()
    before = {k:v.clone() for k,v in learn.model.state_dict().items()}
    x,y = learn.dls.train.one_batch()
    cb.change(x, y)
    assert all(torch.equal(v, before[k]) for k,v in learn.model.state_dict().items())

def test_validation_draws_nothing(toy):
    learn = toy(cbs=SnapMix())
    learn.fit(1)
    state0 = torch.get_rng_state()
    learn.validate(), learn.get_preds()
    plain = toy()
    torch.set_rng_state(state0)
    plain.validate(), plain.get_preds()
    after_plain = torch.get_rng_state()
    torch.set_rng_state(state0)
    learn.validate(), learn.get_preds()
    assert torch.equal(torch.get_rng_state(), after_plain)

def test_lr_find_changes_nothing(toy):
    runs = []
    for find in (False,True):
        learn = toy(cbs=[SnapMix(), Record()])
        if find: learn.lr_find(num_it=6, show_plot=False)
        set_seed(1)
        learn.dls.train.rng.seed(1) # a DataLoader has its own, which every epoch moves
        learn.fit(1, 1e-2)
        runs.append((learn.record.losses, weights(learn)))
    assert runs[0][0]==runs[1][0] and torch.equal(runs[0][1], runs[1][1])

def test_training_improves(toy):
    learn = toy(cbs=[SnapMix(p=.5), Record()], n=96, lr=1e-2)
    first = learn.validate()[0]
    learn.fit(8)
    assert learn.validate()[0]<.5*first

def test_empty_box_keeps_the_sample():
    x,cam = torch.rand(3,3,8,8),torch.rand(3,2,2)
    full,empty = torch.tensor([[0,0,8,8]]),torch.tensor([[3,3,3,7]])
    mixed,w,w2 = snapmix(x, cam, torch.tensor([1,2,0]), torch.cat([full,empty,full]), torch.cat([full,full,empty]))
    torch.testing.assert_close(mixed[0], x[1])
    assert torch.equal(mixed[1:], x[1:])
    torch.testing.assert_close(w, torch.tensor([0.,1,1])), torch.testing.assert_close(w2, torch.tensor([1.,0,0]))

@pytest.mark.parametrize('out', [[-9,0,-3,8], [0,-9,8,0], [8,0,12,8], [0,8,8,99]])
def test_a_box_outside_the_picture_keeps_the_sample(out):
    x,cam = torch.rand(3,3,8,8),torch.rand(3,2,2)
    inside,out = torch.tensor([[1,1,6,6]]),torch.tensor([out])
    mixed,w,w2 = snapmix(x, cam, torch.tensor([1,2,0]), torch.cat([out,inside,out]), torch.cat([inside,out,out]))
    assert torch.equal(mixed, x) and w.tolist()==[1]*3 and w2.tolist()==[0]*3

def test_inputs_are_not_written_to(toy):
    cb = SnapMix()
    learn = toy(cbs=cb)
    cb.before_fit()
    x,y = learn.dls.train.one_batch()
    x0,y0 = x.clone(),y.clone()
    mixed = cb.change(x, y)
    assert torch.equal(x, x0) and torch.equal(y, y0) and not torch.equal(mixed, x)

def test_box_sizes_from_anywhere(toy):
    for box in (Normal(.5,.1), lambda n: torch.full((n,), .75), lambda n: [.75]*n):
        cb = SnapMix(box=box)
        learn = toy(cbs=cb)
        cb.before_fit()
        cb.change(*learn.dls.train.one_batch())
        assert (box_area(cb.box)<=(64 if not isinstance(box, Normal) else 256)).all()

def test_map_scale(toy):
    cb = SnapMix(map_scale=.5)
    learn = toy(cbs=cb)
    cb.before_fit()
    cb.change(*learn.dls.train.one_batch())
    assert cb.cam.shape[1:]==(4,4) # 16 pixels, half of them, one pooling

@pytest.mark.parametrize('precision,dtype', [(CpuAutocast,torch.bfloat16), (CpuScaler,torch.float16)])
def test_clean_forward_runs_under_the_autocast_of_the_step(precision, dtype, toy):
    seen = []
    learn = toy(cbs=[SnapMix(), precision()])
    learn.model[4].register_forward_hook(lambda m,i,o: seen.append((m.training, o.dtype)))
    learn.fit(1)
    assert set(seen)>={(True,dtype), (False,dtype)}
    assert not torch.is_autocast_enabled('cpu')

def test_gradient_accumulation_divides_the_mixed_loss(toy):
    grads = []
    for cbs in ([], [GradientAccumulation(16)]):
        class Grads(Callback):
            order,run_valid = 50,False
            def before_step(self):
                self.learn.g = torch.cat([p.grad.reshape(-1).clone() for p in self.learn.model.parameters()])
        set_seed(0)
        learn = toy(cbs=[SnapMix(), Grads(), Record(), *cbs], n=8, bs=8)
        learn.model.eval()
        learn.fit(1)
        grads.append(learn.record.losses[0])
    assert abs(grads[0]-grads[1])<1e-6

wrong = [(dict(alpha=0), 'alpha=0'), (dict(alpha=-1), 'alpha=-1'), (dict(p=1.2), 'p=1.2'), (dict(p=-.1), 'p=-0.1'),
         (dict(p='x'), "p='x'"),
         (dict(partner='me'), "'any' or 'other'"), (dict(same_label='x'), "'sum' or 'published'"),
         (dict(map_scale=0), 'map_scale=0'), (dict(box=3), 'box=3')]
@pytest.mark.parametrize('kwargs,message', wrong, ids=str)
def test_wrong_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message) as e: SnapMix(**kwargs)
    assert '\n' not in str(e.value)

def test_wrong_learners(toy):
    raises(toy(cbs=SnapMix(), bs=1), 'batch size of 2')
    raises(toy(cbs=SnapMix(), target='onehot'), 'takes class indices')
    raises(toy(cbs=[SnapMix(), FastaiMixUp()]), 'would mix the same batch twice')
    raises(toy(cbs=[SnapMix(), FastaiCutMix()]), 'would mix the same batch twice')
    raises(toy(cbs=[SnapMix(), MixUp()]), 'would mix the same batch twice')
    raises(toy(cbs=SnapMix(), model=nn.Sequential(nn.Flatten(), nn.Linear(3*16*16, 3))), 'no spatial features')
    numbers = toy(cbs=SnapMix(), model=toy_model(1), loss_func=MSELossFlat())
    numbers.dls.train.dataset.t = torch.rand(32)
    raises(numbers, 'MSELoss regresses: use MixUp or CutMix')
    raises(toy(cbs=SnapMix(layer='9x')), "no layer '9x'")
    raises(toy(cbs=SnapMix(p=lambda t: 2)), 'p=2')
    raises(toy(cbs=SnapMix(), loss_func=lambda p,y: nn.functional.cross_entropy(p,y)), 'no `reduction`')

echoes = [SnapMix, CutMix, MixUp, ResizeMix]

@pytest.mark.parametrize('mix', echoes)
def test_echo_trains_on_each_batch_clean_and_mixed(toy, mix):
    batches = []
    class Keep(Callback):
        order,run_valid = 4,False
        def before_batch(self): batches.append((self.learn.xb[0].clone(), self.learn.yb[0].clone()))
    class Look(Callback):
        order,run_valid = 60,False
        def before_fit(self): self.seen = []
        def after_loss(self):
            self.seen.append((self.learn.xb[0], self.learn.pred.detach(), self.learn.yb[0], cb.w, cb.w2, cb.y2,
                self.learn.loss.item()))
    cb = mix(echo=True)
    learn = toy(cbs=[Keep(), cb, Look()], n=40)
    plain_loss = learn.loss_func
    learn.fit(2)
    seen = learn.look.seen
    assert len(seen)==10 and len(seen[0][0])==8 and seen[0][3] is None
    for t in range(1, 10):
        x,pred,y,w,w2,y2,loss = seen[t]
        assert len(x)==16 and torch.equal(x[:8], batches[t][0]), 'the running batch, clean'
        assert torch.equal(y, torch.cat([batches[t][1], batches[t-1][1]]))
        assert torch.equal(w[:8], torch.ones(8)) and torch.equal(w2[:8], torch.zeros(8))
        assert not torch.equal(x[8:], batches[t-1][0])
        logp,i = pred.double().log_softmax(1),torch.arange(16)
        assert abs((-(w*logp[i,y]+w2*logp[i,y2])).mean().item()-loss)<1e-6
    assert learn.loss_func is plain_loss and cb.previous is None and state(learn)[4]==0

def test_echo_makes_no_forward_of_its_own(toy):
    calls = []
    learn = toy(cbs=SnapMix(echo=True))
    learn.model.register_forward_hook(lambda m,i,o: calls.append((m.training, len(o))))
    learn.fit(1)
    assert [c for c in calls if c[0]]==[(True,8),(True,16),(True,16),(True,16)]
    # looks at two pictures for layer, reading, layout and head, at three of another size, then validation
    assert sorted(n for t,n in calls if not t)==[2,2,2,2,3,8,8,8,8]

def test_echo_maps_are_those_of_the_clean_pictures(toy):
    "The head is run again in eval mode, so its dropout does not show; BatchNorm before it would, and is taken out"
    learn = toy(cbs=SnapMix(echo=True), n=16)
    for i in (1,5): learn.model[i] = nn.Identity()
    cb,maps = learn.snap_mix,[]
    class Compare(Callback):
        order,run_valid = 60,False
        def before_batch(self): self.x,self.y = cb.loaded,self.learn.y[:len(cb.loaded)]
        def after_loss(self):
            cam,logits = ClassActivation(self.learn.model, '6')(self.x, self.y)
            maps.append((cam, logits))
    got = []
    mix = cb.mix
    def spy(x, y, partner):
        out = mix(x, y, partner)
        got.append((cb.cam.clone(), cb.logits.clone()))
        return out
    cb.mix = spy
    learn.add_cb(Compare())
    learn.fit(1)
    for (cam,logits),(cam2,logits2) in zip(got, maps):
        torch.testing.assert_close(cam, cam2, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(logits, logits2, atol=1e-5, rtol=1e-4)

@pytest.mark.parametrize('ex', [RuntimeError, KeyboardInterrupt])
def test_echo_leaves_no_hooks(toy, ex):
    class Boom(nn.Module):
        n = 0
        def forward(self, x):
            self.n += self.training
            if self.n==2 and self.training: raise ex('boom')
            return x
    learn = toy(cbs=SnapMix(echo=True))
    learn.model.append(Boom())
    with pytest.raises(ex): learn.fit(1)
    if ex is RuntimeError: assert state(learn)[4]==0
    learn.fit(1)
    assert state(learn)[4]==0

@pytest.mark.parametrize('ex', [CancelBatchException, CancelEpochException, CancelTrainException, CancelFitException,
    KeyboardInterrupt])
@pytest.mark.parametrize('mix', [SnapMix, lambda echo: MixChoice([SnapMix()], echo=echo)])
def test_echo_of_a_batch_that_is_stopped_leaves_no_hooks(toy, mix, ex):
    class Boom(Callback):
        order,run_valid = 20,False
        def before_batch(self):
            if self.iter==2: raise ex()
    learn = toy(cbs=mix(echo=True))
    with pytest.raises(KeyboardInterrupt) if ex is KeyboardInterrupt else nullcontext(): learn.fit(1, cbs=Boom())
    if ex is KeyboardInterrupt: learn.fit(0) # nobody is told of an interrupt
    assert state(learn)[4]==0

def test_echo_without_syncs_frozen_and_with_p(toy):
    counts = []
    for cbs in ([], [SnapMix(echo=True)]):
        learn = toy(cbs=cbs)
        with Syncs() as s: learn.fit(1)
        counts.append(s.n)
    assert counts[0]==counts[1]
    learn = toy(cbs=[SnapMix(echo=True, p=.5), Record()], n=64)
    for p in learn.model[:8].parameters(): p.requires_grad_(False)
    learn.fit(2)
    assert np.isfinite(learn.record.losses).all()
    learn = toy(cbs=[SnapMix(echo=True, p=0), Record()], n=40)
    learn.fit(1)
    plain = toy(cbs=Record(), n=40)
    plain.fit(1)
    assert learn.record.losses==plain.record.losses and torch.equal(weights(learn), weights(plain))

def with_targets(toy, t, loss_func, cbs=SnapMix, c=1, vocab=True, **kwargs):
    learn = toy(cbs=cbs(), model=toy_model(c), loss_func=loss_func, **kwargs)
    for dl in learn.dls.loaders: dl.dataset.t = t
    if not vocab: del learn.dls.vocab
    return learn

def squared(p, t, reduction='mean'): return nn.functional.mse_loss(p.reshape(t.shape), t.float(), reduction=reduction)
numbers,few,counts = torch.linspace(-2, 3, 32),torch.arange(32.)%2,torch.arange(32)%51
regressions = {
    'MSELossFlat': (numbers, MSELossFlat()), 'L1LossFlat': (numbers, L1LossFlat()),
    'a column': (numbers[:,None], MSELossFlat()), '0 and 1': (few, MSELossFlat()),
    'class indices': (torch.arange(32)%3, L1LossFlat()),
    'nn.MSELoss': (numbers[:,None], nn.MSELoss()), 'nn.PoissonNLLLoss': (counts[:,None].float(), nn.PoissonNLLLoss()),
    'nn.HuberLoss': (numbers[:,None], nn.HuberLoss()),
    'F.mse_loss': (numbers[:,None], nn.functional.mse_loss),
    'partial': (numbers[:,None], partial(nn.functional.smooth_l1_loss, beta=.5)),
    'PoissonNLL of integers': (counts[:,None], nn.PoissonNLLLoss()),
    'own': (numbers, squared), 'own, from 0 to 1': (torch.linspace(0, 1, 32), squared),
    'own, of integers': (counts, squared), 'own, of few integers': (torch.arange(32)%3, squared),
    'own partial': (counts, partial(squared)),
}
@pytest.mark.parametrize('cbs', [SnapMix, lambda: SnapMix(echo=True),
    lambda: MixChoice([CutMix(), SnapMix()], [1,1e-9])], ids=['snapmix','echo','choice'])
@pytest.mark.parametrize('name', regressions)
def test_regression_is_refused_before_training(name, cbs, toy):
    t,lf = regressions[name]
    learn = with_targets(toy, t, lf, cbs, vocab=False)
    before = [p.detach().clone() for p in learn.model.parameters()]
    with pytest.raises(ValueError, match='SnapMix looks for a class, but the targets are .*MixUp or CutMix') as e:
        learn.fit(1)
    assert str(e.value).count('\n')==1 and all(torch.equal(a, b) for a,b in zip(before, learn.model.parameters()))
    learn.remove_cbs(learn.cbs.filter(lambda cb: isinstance(cb, MixCallback)))
    learn.fit(1, cbs=CutMix())

rows = torch.rand(32, 3, generator=torch.Generator().manual_seed(0))
several = {
    'coordinates': (rows*2-1, squared), 'counts': ((rows*9).round(), nn.PoissonNLLLoss()),
    'shares that do not add to 1': (rows, nn.MSELoss()),
    'no number': (rows.where(rows>.5, float('nan')), squared),
}
@pytest.mark.parametrize('name', several)
def test_regression_of_several_numbers_is_refused(name, toy):
    t,lf = several[name]
    with pytest.raises(ValueError, match='SnapMix looks for a class'): with_targets(toy, t, lf, c=3).fit(1)

def own_bce(p, t, reduction='mean'):
    return nn.functional.binary_cross_entropy_with_logits(p.reshape(t.shape), t.float(), reduction=reduction)
fine = {
    'one logit': (torch.arange(32)%2, BCEWithLogitsLossFlat(), 1), 'one logit, floats': (few, own_bce, 1),
    'a column': (few[:,None], nn.BCEWithLogitsLoss(), 1),
    'shares of two': (torch.linspace(0, 1, 32), BCEWithLogitsLossFlat(), 1),
    'index column': (torch.arange(32)[:,None]%3, CrossEntropyLossFlat(), 3),
    'bytes': ((torch.arange(32)%3).to(torch.uint8), CrossEntropyLossFlat(), 3),
    'soft': (rows.softmax(1), nn.CrossEntropyLoss(), 3), 'Brier': (rows.softmax(1), nn.MSELoss(), 3),
    'Brier of labels': (torch.eye(3)[torch.arange(32)%3], MSELossFlat(), 3),
    'several labels': ((rows>.5).float(), nn.MSELoss(), 3),
    'smoothed labels': (rows*.8+.1, BCEWithLogitsLossFlat(), 3),
}
@pytest.mark.parametrize('name', fine)
def test_classes_in_any_form_are_trained_on(name, toy):
    t,lf,c = fine[name]
    learn = with_targets(toy, t, lf, lambda: [SnapMix(), Record()], c=c, vocab=False)
    learn.fit(1)
    assert np.isfinite(learn.record.losses).all()

def test_rows_that_are_not_one_for_each_output(toy):
    with pytest.raises(ValueError, match=r"each of the model's 3 outputs, .*\[8, 2\]"):
        with_targets(toy, rows[:,:2], lambda p,t,reduction='mean': squared(p[:,:2], t, reduction), c=3).fit(1)

def test_a_column_of_indices_is_like_none(toy):
    maps = []
    for t in (torch.arange(32)%3, torch.arange(32)[:,None]%3):
        learn = with_targets(toy, t, CrossEntropyLossFlat(), c=3)
        learn.snap_mix.before_fit()
        x,y = next(iter(learn.dls.valid))
        learn.snap_mix.change(x, y)
        maps.append(learn.snap_mix.cam)
    assert torch.equal(*maps) and maps[0].std()>0

@pytest.mark.parametrize('echo', [False,True])
@pytest.mark.parametrize('ignored', [-100, -1, 3, 255])
def test_ignored_labels(ignored, echo, toy):
    "Any finite map, and they count for nothing in the mixed loss"
    t = torch.where(torch.arange(32)%4==0, ignored, torch.arange(32)%3)
    learn = with_targets(toy, t, CrossEntropyLossFlat(ignore_index=ignored), lambda: [SnapMix(echo=echo), Record()],
        c=3)
    learn.fit(1)
    assert len(learn.record.seen)==(3 if echo else 4)
    for (pred,y,w,w2,y2),loss in zip(learn.record.seen, learn.record.losses[echo:]):
        assert (y==ignored).any() and (y2==ignored).any() and w.isfinite().all() and w2.isfinite().all()
        logp,i = pred.double().log_softmax(1),torch.arange(len(y))
        def part(o, k): return (k*-logp[i,o.clamp(0, 2)])[o!=ignored].sum()
        counts = ((w*(y!=ignored)+w2*(y2!=ignored))/(w+w2)).nan_to_num(0).sum() + ((w+w2==0) & (y!=ignored)).sum()
        assert abs((part(y, w)+part(y2, w2))/counts-loss)<1e-5
