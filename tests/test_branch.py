"The mid-level branch: what it adds, and what it must leave alone."
import copy

import numpy as np
import pytest
import timm
import torch
from fastai.callback.mixup import MixUp as FastaiMixUp
from fastai.vision.all import (BCEWithLogitsLossFlat, Callback, CancelBatchException, CancelFitException,
                               CancelStepException, CrossEntropyLossFlat, GradientAccumulation,
                               LabelSmoothingCrossEntropyFlat, OptimWrapper, get_image_files, load_learner, nn, partial,
                               ranger, tensor, vision_learner)
from fastai_mix.callback.branch import BranchPred, MidLevelBranch, find_stage
from fastai_mix.callback.choice import MixChoice
from fastai_mix.callback.gridmask import GridMask
from fastai_mix.callback.mix import CutMix, MixUp, mix_loss
from fastai_mix.callback.resize import ProgressiveResize
from fastai_mix.callback.snapmix import SnapMix
from fastai_mix.checkpoint import resumable
from fastai_mix.data.leaves import leaf_data, leaf_dls
from helpers import CpuAutocast, CpuScaler, Record, state, Stop, toy_model, weights

@pytest.fixture
def run(toy):
    "A toy Learner after a fit"
    def make(*cbs, epochs=2, **kwargs):
        learn = toy(cbs=[*cbs, Record()], **kwargs)
        learn.fit(epochs)
        return learn
    return make

mixes = {'none': lambda: [], 'snapmix': lambda: [SnapMix()], 'echo': lambda: [SnapMix(echo=True)],
         'choice': lambda: [MixChoice([SnapMix(), GridMask(p=1), None])],
         'choice-echo': lambda: [MixChoice([CutMix(), GridMask(p=1)], echo=True)], 'fastai': lambda: [FastaiMixUp()]}

@pytest.mark.parametrize('mix', mixes)
@pytest.mark.parametrize('accumulate', [False,True])
def test_detached_changes_nothing(mix, accumulate, run):
    extra = (lambda: [GradientAccumulation(16)]) if accumulate else (lambda: [])
    a,b = run(*mixes[mix](), *extra()),run(*mixes[mix](), *extra(), MidLevelBranch())
    assert a.record.losses==b.record.losses and torch.equal(weights(a), weights(b))
    assert list(a.validate())==list(b.validate())

def test_it_learns_and_reads(run):
    learn = run(CutMix(), MidLevelBranch(), epochs=12, lr=1e-2, metrics=lambda p,y: (p.argmax(1)==y).float().mean())
    own,branch,both = (learn.get_preds(cbs=cbs, reorder=False)[0] for cbs in ([], BranchPred(), BranchPred(add=True)))
    assert learn.validate(cbs=BranchPred())[1]>.9
    x = torch.cat([b[0] for b in learn.dls.valid])
    with torch.no_grad():
        body,cb = learn.model.eval(),learn.mid_level_branch
        conv,lin = cb.branch[0],cb.branch[4]
        F = body[:3](x)
        z = torch.einsum('nchw,dc->nhwd', F, conv.weight[:,:,0,0]) + conv.bias
        z = z.relu().flatten(1,2).amax(1)@lin.weight.T + lin.bias
        scores = body(x)
    torch.testing.assert_close(branch, z.softmax(1))
    torch.testing.assert_close(both, (z+scores).softmax(1))
    torch.testing.assert_close(own, scores.softmax(1))

@pytest.mark.parametrize('target,loss', [
    ('index',CrossEntropyLossFlat(weight=tensor([1.,2,5]))), ('index',LabelSmoothingCrossEntropyFlat()),
    ('onehot',BCEWithLogitsLossFlat()), ('onehot',nn.CrossEntropyLoss())], ids=str)
@pytest.mark.parametrize('mix', [MixUp, partial(SnapMix, echo=True), None])
def test_its_loss_is_mixed_as_the_batch_is(target, loss, mix, toy):
    "Gradient of the branch's own parameters against the mixed loss of its own scores"
    class Grads(Callback):
        order,run_valid = 60,False
        def before_backward(self):
            cb,m = self.mid_level_branch,next((c for c in self.learn.cbs if hasattr(c, 'partner')), None)
            pred = cb.branch(self.feats)
            if m is None or m.w is None: want = self.loss_func(pred, *self.yb)
            else: want = mix_loss(self.loss_func, pred, self.yb, tuple(y[m.partner] for y in self.yb), m.w, m.w2)
            self.want = torch.autograd.grad(.3*want, list(cb.branch.parameters()))
        def before_step(self):
            for p,g in zip(self.mid_level_branch.branch.parameters(), self.want): torch.testing.assert_close(p.grad, g)
            self.learn.checked = getattr(self.learn, 'checked', 0)+1
    learn = toy(cbs=[*([mix()] if mix else []), MidLevelBranch(weight=.3), Grads()], target=target, loss_func=loss)
    def keep(m, inputs):
        if m.training: learn.grads.feats = inputs[0].detach()
    learn.model[3].register_forward_pre_hook(keep)
    learn.fit(1)
    assert learn.checked==4

def test_undetached_changes_the_body_by_the_gradient_of_both(toy):
    grads = {}
    for k,cb in dict(plain=[], detached=[MidLevelBranch()], deep=[MidLevelBranch(detach=False)]).items():
        class Keep(Callback):
            order,run_valid = 60,False
            def before_step(self):
                if not grads.get(k): grads[k] = [p.grad.clone() for p in self.learn.model.parameters()]
        toy(cbs=[*cb, Keep()]).fit(1)
    same = [[torch.equal(a, b) for a,b in zip(grads['plain'], grads[k])] for k in ('detached','deep')]
    # convolution and norm before the pooling; what comes after
    assert all(same[0]) and not any(same[1][:4]) and all(same[1][4:])

def test_it_steps_when_the_learner_does(toy):
    "With accumulation as with one batch of all of it; not where the step was cancelled"
    branches = []
    for bs,cbs in ((8,[GradientAccumulation(32)]), (32,[])):
        def is_plain(m): return not isinstance(m, (nn.BatchNorm2d,nn.Dropout))
        model = nn.Sequential(*[m if is_plain(m) else nn.Identity() for m in toy_model()])
        torch.manual_seed(1)
        for p in model.parameters(): nn.init.normal_(p, std=.1)
        learn = toy(cbs=[MidLevelBranch(), *cbs], bs=bs, model=model, n=32)
        learn.fit(2)
        branches.append(learn.mid_level_branch.branch.state_dict())
    for a,b in zip(*(o.values() for o in branches)): torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)
    class Never(Callback):
        order = 50
        def before_step(self): raise CancelStepException()
    learn = toy(cbs=[MidLevelBranch(), Never()])
    class First(Callback):
        order,run_valid = 60,False
        def after_loss(self):
            if not hasattr(self, 'was'): self.was = copy.deepcopy(self.learn.mid_level_branch.branch)
    learn.add_cb(First())
    learn.fit(1)
    for a,b in zip(learn.first.was.parameters(), learn.mid_level_branch.branch.parameters()): assert torch.equal(a, b)

@pytest.mark.parametrize('precision', [CpuAutocast, CpuScaler])
@pytest.mark.parametrize('detach', [True,False])
def test_half_precision(precision, detach, run):
    learn = run(SnapMix(), MidLevelBranch(detach=detach), precision(), epochs=8, n=64, lr=1e-2)
    assert np.isfinite(learn.record.losses).all() and learn.mid_level_branch.branch[0].weight.dtype==torch.float32
    assert learn.validate(cbs=BranchPred())[0]<.9

def test_a_step_that_overflows_is_skipped_by_both(run):
    learn = run(SnapMix(), MidLevelBranch(), CpuScaler(init_scale=2.**40), epochs=8, n=64, lr=1e-2)
    assert all(p.isfinite().all() for p in [*learn.model.parameters(), *learn.mid_level_branch.branch.parameters()])
    assert learn.validate(cbs=BranchPred())[0]<1

def test_scaled_gradients_are_unscaled_for_the_branch(run):
    "Adam does not mind a scale, plain SGD does"
    sgd = partial(OptimWrapper, opt=torch.optim.SGD)
    got = [run(MidLevelBranch(), *cbs, epochs=1, opt_func=sgd, lr=.05).mid_level_branch.branch
           for cbs in ([], [CpuScaler()])]
    for a,b in zip(*(o.parameters() for o in got)): torch.testing.assert_close(a, b, atol=3e-3, rtol=0)

@pytest.mark.parametrize('opt_func', [ranger, partial(OptimWrapper, opt=torch.optim.AdamW)])
def test_other_optimizers(opt_func, run):
    learn = run(MidLevelBranch(), opt_func=opt_func, epochs=8, lr=2e-2)
    assert learn.validate(cbs=BranchPred())[0]<1.05 # log(3) is 1.10

def test_an_optimizer_of_the_users_own(toy):
    model = toy_model()
    opt = OptimWrapper(opt=torch.optim.SGD(model.parameters(), lr=.1, momentum=.9))
    learn = toy(cbs=MidLevelBranch(), model=model, opt_func=opt)
    learn.fit(1)
    assert learn.mid_level_branch.branch is not None

@pytest.mark.parametrize('event', ['after_pred','after_loss','before_step','before_batch','after_backward'])
@pytest.mark.parametrize('order', [0,20])
@pytest.mark.parametrize('ex', [RuntimeError, KeyboardInterrupt, CancelFitException, CancelBatchException])
def test_nothing_leaks(event, order, ex, toy):
    learn = toy(cbs=[SnapMix(), MidLevelBranch(), Stop(event, ex, order)])
    keys,want = list(learn.model.state_dict()),state(learn)
    try: learn.fit(1)
    except (RuntimeError, KeyboardInterrupt): pass
    learn.remove_cb(learn.stop)
    # otherwise the next forward takes it off
    if (event,order,ex) not in [('before_batch',20,RuntimeError),('before_batch',20,KeyboardInterrupt)]:
        assert state(learn)[4]==want[4]
    learn.fit(1)
    after = state(learn)
    assert after[0] is want[0] and after[1]==want[1] and after[3:5]==want[3:5] and list(learn.model.state_dict())==keys

def test_a_forward_that_fails_leaves_no_hook(toy):
    learn = toy(cbs=MidLevelBranch())
    learn.fit(1)
    class Bad(Callback):
        order = 50
        def before_batch(self): self.learn.xb = (self.x[:,:2],)
    learn.add_cb(Bad())
    want = state(learn)[4]
    with pytest.raises(RuntimeError): learn.fit(1)
    assert state(learn)[4]==want

def test_lr_find_and_more_fits(toy, tmp_path):
    body,head = nn.Sequential(*list(toy_model())[:7]),nn.Sequential(*list(toy_model())[7:])
    learn = toy(cbs=[SnapMix(), MidLevelBranch()], model=nn.Sequential(body, head), path=tmp_path, lr=1e-2,
                splitter=lambda m: [list(m[0].parameters()), list(m[1].parameters())])
    learn.lr_find(num_it=6, show_plot=False)
    cb = learn.mid_level_branch
    assert cb.branch is None
    learn.freeze()
    learn.fit(1)
    was = copy.deepcopy(cb.branch.state_dict())
    learn.lr_find(num_it=6, show_plot=False)
    for a,b in zip(was.values(), cb.branch.state_dict().values()): assert torch.equal(a, b)
    learn.unfreeze()
    learn.fit(4)
    first = learn.validate(cbs=BranchPred())[0]
    learn.fine_tune(4)
    learn.save('w'), learn.load('w')
    assert learn.validate(cbs=BranchPred())[0]<first+.1

def test_it_follows_the_last_group(toy):
    class See(Callback):
        order,run_valid = 70,False
        def before_fit(self): self.of = []
        def after_batch(self):
            last,branch = self.opt.hypers[-1],self.mid_level_branch.stepper.hypers[0]
            self.of.append((last['lr'], branch['lr'], last['mom'], branch['mom']))
    learn = toy(cbs=[MidLevelBranch(), See()], splitter=lambda m: [list(m[:7].parameters()), list(m[7:].parameters())])
    learn.fit_one_cycle(1, slice(1e-5,1e-2))
    assert all(a==b and c==d for a,b,c,d in learn.see.of) and max(a for a,*_ in learn.see.of)>5e-3

def test_goes_on_after_a_kill(toy, tmp_path):
    class Stop(Callback):
        at = [] # of the class: no state
        def before_batch(self):
            if self.training and self.epoch in self.at and self.iter==2: raise KeyboardInterrupt
    def make(*at):
        Stop.at = at
        return toy(cbs=[CutMix(), MidLevelBranch(), Stop()])
    with resumable(whole := make(), tmp_path/'whole'): whole.fit(3, 1e-2)
    for at in (0,1): # without a branch yet, and with one
        with pytest.raises(KeyboardInterrupt), resumable(learn := make(at), tmp_path/f'run{at}'): learn.fit(3, 1e-2)
        with resumable(learn := make(), tmp_path/f'run{at}'): learn.fit(3, 1e-2)
        for a,b in zip(learn.mid_level_branch.branch.parameters(), whole.mid_level_branch.branch.parameters()):
            assert torch.equal(a, b)

def test_a_validation_in_between_keeps_its_optimizer(toy):
    class Between(Callback):
        order = 56
        def after_epoch(self):
            if not self.learn.lock.locked(): self.learn.validate()
    class Seen(Callback):
        order,run_valid = 70,False
        def before_fit(self):
            if not self.learn.lock.locked(): self.steppers = set()
        def after_batch(self): self.steppers.add(self.mid_level_branch.stepper)
    learn = toy(cbs=[MidLevelBranch(), Between(), Seen()])
    learn.fit(2, 1e-2)
    assert len(learn.seen.steppers)==1

def test_growing_pictures_have_one_branch(toy):
    model = timm.create_model('resnet10t', num_classes=3) # one place less than a map at 32 pixels
    learn = toy(cbs=[MidLevelBranch(), ProgressiveResize(until=.9)], model=model, size=64, n=8, bs=4)
    learn.fit(2, 1e-3)
    branch = learn.mid_level_branch.branch
    assert learn.validate(cbs=BranchPred())[0]>0
    learn.remove_cb(ProgressiveResize)
    learn.fit(1, 1e-3)
    # the stage of full size
    assert learn.mid_level_branch.branch is branch and branch[0].in_channels==model.layer4[0].conv1.in_channels
    learn.model = toy_model()
    with pytest.raises(ValueError, match='trained on .* channels for 3 classes'): learn.fit(1)

@pytest.mark.filterwarnings('ignore')
def test_export_takes_it_along(tmp_path):
    path = leaf_data(tmp_path/'data', n=40, size=64)
    learn = vision_learner(leaf_dls(path, size=32, bs=8), 'test_resnet', pretrained=False,
        cbs=[CutMix(), MidLevelBranch()], path=tmp_path)
    keys = list(learn.model.state_dict())
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
        files = get_image_files(path)[:3]
        want = learn.get_preds(dl=learn.dls.test_dl(files), cbs=BranchPred())[0]
        learn.export('e.pkl')
        loaded = load_learner(tmp_path/'e.pkl')
        assert list(loaded.model.state_dict())==keys
        with loaded.no_bar():
            torch.testing.assert_close(loaded.get_preds(dl=loaded.dls.test_dl(files), cbs=BranchPred())[0], want)
        torch.testing.assert_close(loaded.predict(files[0])[2], learn.predict(files[0])[2])

def test_layers(toy):
    swin = timm.models.SwinTransformer(img_size=64, window_size=2, embed_dim=16, depths=(1,1,1), num_heads=(1,1,1),
                                       num_classes=3) # [n,h,w,c]
    vit = timm.create_model('test_vit', img_size=64, num_classes=3) # [n,tokens,c], one of them no place
    convnext = timm.create_model('test_convnext', num_classes=3)
    for model,layer,channels in [(vit,'blocks.1',64), (convnext,None,48), (swin,None,32)]:
        cb = MidLevelBranch(layer)
        learn = toy(cbs=cb, model=model, size=64, n=4, bs=2)
        learn.fit(1)
        assert cb.branch[0].in_channels==channels and learn.validate(cbs=BranchPred())[0]>0
    learn = toy(cbs=MidLevelBranch(layer=(model := toy_model())[4], hidden=5), model=model)
    learn.fit(1)
    assert [p.shape for p in learn.mid_level_branch.branch.parameters()]==[(5,16,1,1),(5,),(3,5),(3,)]

def test_errors(toy):
    for kw in (dict(hidden=0), dict(hidden=2.), dict(weight=0), dict(weight='1')):
        with pytest.raises(ValueError, match='expected a (whole )?number'): MidLevelBranch(**kw)
    with pytest.raises(ValueError, match=r"no layer 'lyer4'"): toy(cbs=MidLevelBranch('lyer4')).fit(1)
    with pytest.raises(ValueError, match=r'saw \(8, 3\)'): toy(cbs=MidLevelBranch('10')).fit(1)
    with pytest.raises(ValueError, match='needs a branch that has been trained'):
        toy(cbs=MidLevelBranch()).validate(cbs=BranchPred())
    with pytest.raises(ValueError, match='needs a branch that has been trained'): toy().validate(cbs=BranchPred())
    with pytest.raises(ValueError, match='one resolution only'):
        find_stage(timm.create_model('test_vit'), torch.rand(2,3,160,160))

def test_two_processes_train_one_branch(in_processes):
    one,two = in_processes('''
class Seed(Callback):
    def before_batch(self):
        if not self.mid_level_branch.branch: torch.manual_seed(rank_distrib()) # each process begins with another branch
learn = Learner(dls, model, loss_func=CrossEntropyLossFlat(), cbs=[MidLevelBranch(), Seed()], opt_func=SGD, lr=.1)
fit(learn, 2)
total = sum(p.double().abs().sum() for p in learn.mid_level_branch.branch.parameters()).item()
sys.stdout.write(f"OUT {world} {total:.7f}\\n")
''', 1, 2)
    assert [o[0] for o in one+two]==['1','2','2'] and two[0]==two[1] and abs(float(one[0][1])-float(two[0][1]))<1e-4
