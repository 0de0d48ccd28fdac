"MixUp of hidden features: where, the exact values, and nothing left behind."
from contextlib import suppress

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from fastai.vision.all import (Callback, CancelBatchException, CancelEpochException, CancelFitException,
    CancelTrainException, GradientAccumulation, accuracy, load_learner, nn, set_seed, vision_learner)
from fastai_mix.callback.branch import MidLevelBranch
from fastai_mix.callback.choice import MixChoice
from fastai_mix.callback.gridmask import GridMask
from fastai_mix.callback.manifold import ManifoldMixUp, entrance_of, find_entrances
from fastai_mix.callback.mix import blend, CutMix, MixUp
from fastai_mix.callback.plc import ProgressiveLabelCorrection
from fastai_mix.callback.resize import ProgressiveResize
from fastai_mix.callback.snapmix import SnapMix
from fastai_mix.checkpoint import resumable
from fastai_mix.data.leaves import leaf_data, leaf_dls
import fastai_mix.interpret # adds show_mix
from fastai_mix.vision.forward import clean_logits
from fastai_mix.vision.learner import timm_learner
from helpers import CpuAutocast, CpuScaler, raises, Record, state, Stop, Syncs, toy_model, weights

def staged():
    "A network of three stages without BatchNorm and dropout, whose logits can be computed by hand"
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(),
        nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, padding=1)),
        nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(6, 8, 3, padding=1)),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))

class Look(Callback):
    "Keeps each step: what the network was given, predictions, labels, weights, partners and the layer"
    order,run_valid = 60,False
    def before_fit(self): self.steps = []
    def after_loss(self):
        cb = next(o for o in self.learn.cbs if isinstance(o, (MixUp,MixChoice)))
        self.steps.append((self.x.clone(), self.pred.detach().clone(), self.y, cb.w, cb.w2, cb.partner, cb.place,
            self.learn.loss.item()))

def by_hand(model, x, partner, w, place):
    "Logits of a `staged` network whose features are blended at `place`"
    k = 0 if place is None else int(place['layer'].split('.')[0])
    h = model[:k](x)
    h = w.view(-1,1,1,1)*h + (1-w).view(-1,1,1,1)*h[partner]
    return model[k:](h)

@pytest.mark.parametrize('layers,places', [(None,[None,'2']), ('input',[None]), ('',[None]), (['2'],['2']),
    (['3'],['3']), (['input','2','3','6'],[None,'2','3','6'])], ids=str)
def test_logits_and_loss_by_hand(toy, layers, places):
    learn = toy(cbs=[ManifoldMixUp(layers=layers), Look()], model=staged(), n=96, lr=0.)
    x0 = learn.dls.train.dataset.x.clone()
    learn.fit(1)
    seen = [p and p['layer'] for *_,p,_ in learn.look.steps]
    assert set(seen)==set(places) and len(seen)==12
    for x,pred,y,w,w2,partner,place,loss in learn.look.steps:
        if place is None: want = learn.model(x) # mixed already
        elif place['layer']=='6':
            h = learn.model[:6](x)
            want = learn.model[6](torch.lerp(h[partner], h, w[:,None]))
        else: want = by_hand(learn.model, x, partner, w, place)
        torch.testing.assert_close(pred, want.detach(), atol=1e-6, rtol=1e-5)
        logp,i = want.double().log_softmax(1),torch.arange(len(y))
        assert abs((-(w*logp[i,y]+w2*logp[i,y[partner]])).mean().item()-loss)<1e-6
        torch.testing.assert_close(w+w2, torch.ones(8))
        assert w.min()>=.5 and len(w.unique())==8, 'one weight per sample'
        rows = (x[:,None]==x0[None]).flatten(2).all(2)
        assert rows.any(1).all()==(place is not None), 'pictures are as loaded if features are mixed'
    assert torch.equal(learn.dls.train.dataset.x, x0)

def test_gradients_are_those_of_the_blend(toy):
    "The gradient of the permuted rows, which has a backward of its own"
    grads = []
    for layers in (['2'], None):
        model = staged()
        cb = ManifoldMixUp(layers=['2'])
        if layers:
            class Keep(Callback):
                order,run_valid = 60,False
                def after_backward(self):
                    grads.append(weightsgrads(self.learn.model))
                    kept.append((self.x.clone(), self.y, cb.w, cb.partner))
                    raise CancelFitException
            kept = []
            toy(cbs=[cb, Keep()], model=model).fit(1)
        else:
            x,y,w,partner = kept[0]
            logits = by_hand(model, x, partner, w, dict(layer='2'))
            own,other = (F.cross_entropy(logits, t, reduction='none') for t in (y, y[partner]))
            (w*own+(1-w)*other).mean().backward()
            grads.append(weightsgrads(model))
    for a,b in zip(*grads): torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-5)

def weightsgrads(model): return [p.grad.clone() for p in model.parameters()]

def test_alpha_2_is_the_distribution_of_the_weights(toy):
    cb = ManifoldMixUp()
    set_seed(0)
    w = cb.draw_weights(torch.rand(20000, 1))
    want = torch.distributions.Beta(2., 2.).sample((20000,))
    assert abs(w.mean()-torch.maximum(want, 1-want).mean())<.005 and cb.alpha==2

@pytest.mark.parametrize('choice', [False,True], ids=['alone','choice'])
def test_echo_blends_the_mixed_half_alone(toy, choice):
    batches = []
    class Keep(Callback):
        order,run_valid = 4,False
        def before_batch(self): batches.append((self.x.clone(), self.y.clone()))
    layers = ['input','2','3']
    cb = MixChoice([ManifoldMixUp(layers=layers)], echo=True) if choice else ManifoldMixUp(layers=layers, echo=True)
    learn = toy(cbs=[Keep(), cb, Look()], model=staged(), n=96, lr=0.)
    learn.fit(1)
    names = set()
    for t,(x,pred,y,w,w2,partner,place,loss) in enumerate(learn.look.steps):
        if t==0:
            assert w is None and place is None and len(x)==8
            continue
        names.add(place and place['layer'])
        assert torch.equal(x[:8], batches[t][0]) and torch.equal(y, torch.cat([batches[t][1], batches[t-1][1]]))
        assert torch.equal(w[:8], torch.ones(8)) and torch.equal(x[8:], batches[t-1][0])==(place is not None)
        with torch.no_grad():
            torch.testing.assert_close(pred[:8], learn.model(x[:8]))
            want = learn.model(x[8:]) if place is None else by_hand(learn.model, x[8:], partner[8:]-8, w[8:], place)
        torch.testing.assert_close(pred[8:], want, atol=1e-6, rtol=1e-5)
        logp,i = pred.double().log_softmax(1),torch.arange(16)
        assert abs((-(w*logp[i,y]+w2*logp[i,y[partner]])).mean().item()-loss)<1e-6
    assert names=={None,'2','3'} and cb.previous is None and state(learn)[4]==0

def test_clean_half_of_an_echo_is_to_the_bit_what_it_was(toy):
    h = torch.randn(16, 3, 4, 4)
    partner,w = torch.cat([torch.arange(8), 8+torch.randperm(8)]),torch.cat([torch.ones(8), torch.rand(8)])
    assert torch.equal(blend(h, partner, w)[:8], h[:8])

@pytest.mark.parametrize('event', ['after_pred','after_loss','before_step','before_batch'])
@pytest.mark.parametrize('ex', [RuntimeError, KeyboardInterrupt, CancelFitException, CancelBatchException,
    CancelEpochException, CancelTrainException])
@pytest.mark.parametrize('echo', [False,True])
@pytest.mark.parametrize('choice', [False,True], ids=['alone','choice'])
def test_nothing_leaks(toy, event, ex, echo, choice):
    cb = MixChoice([ManifoldMixUp(layers='2')], echo=echo) if choice else ManifoldMixUp(layers='2', echo=echo)
    learn = toy(cbs=cb, model=staged())
    learn.fit(1)
    want = state(learn)
    try: learn.fit(1, cbs=Stop(event, ex, order=30))
    except (RuntimeError,KeyboardInterrupt): pass
    # nobody is told of an error between the beginning of a batch and the forward
    if event=='before_batch' and ex in (RuntimeError,KeyboardInterrupt): learn.fit(0)
    assert state(learn)[0] is want[0] and state(learn)[1]==want[1] and state(learn)[4:]==want[4:]
    before = learn.validate()
    assert learn.validate()==before
    learn.fit(1)
    assert state(learn)[4]==0

@pytest.mark.parametrize('ex', [RuntimeError, KeyboardInterrupt])
def test_a_forward_that_fails_leaves_no_hooks(toy, ex):
    class Boom(nn.Module):
        n = 0
        def forward(self, x):
            self.n += self.training
            if self.n==2 and self.training: raise ex('boom')
            return x
    learn = toy(cbs=ManifoldMixUp(layers='2'), model=staged().append(Boom()))
    with pytest.raises(ex): learn.fit(1)
    if ex is RuntimeError: assert state(learn)[4]==0
    learn.fit(1)
    assert state(learn)[4]==0

def test_hooks_of_an_interrupted_fit_mix_nothing_once_the_callback_is_gone(toy):
    learn = toy(cbs=ManifoldMixUp(layers='2'), model=staged())
    with suppress(KeyboardInterrupt): learn.fit(1, cbs=Stop('before_batch', KeyboardInterrupt, order=30))
    assert state(learn)[4]>0
    learn.remove_cb(learn.manifold_mix_up)
    x = learn.dls.train.dataset.x[:8]
    want = learn.model.eval()(x)
    assert torch.equal(learn.model.train()(x), want) and state(learn)[4]==0

def test_validation_predictions_and_lr_find_are_not_mixed(toy, tmp_path):
    learn = toy(cbs=ManifoldMixUp(layers='2'), model=staged(), path=tmp_path)
    learn.lr_find(num_it=6, show_plot=False)
    learn.fit(1)
    x = learn.dls.train.dataset.x
    with torch.no_grad(): want = learn.model.eval()(x)
    torch.testing.assert_close(learn.get_preds(act=lambda o: o)[0], want)
    assert learn.validate()[0]==pytest.approx(F.cross_entropy(want, learn.dls.train.dataset.y).item(), abs=1e-5)
    assert state(learn)[4]==0 and learn.manifold_mix_up.places is None

def test_clean_forwards_are_not_mixed(toy):
    class Compare(Callback):
        "A clean forward of its own after the batch was begun, as another callback may make it"
        order,run_valid = 30,False
        def before_fit(self): self.checked = 0
        def before_batch(self): self.logits = clean_logits(self.learn.model, self.x)
        def after_pred(self):
            with torch.no_grad(): want = self.learn.model.eval()(self.x)
            self.learn.model.train()
            assert torch.equal(self.logits, want) and not torch.equal(self.pred, want)
            self.checked += 1
    learn = toy(cbs=[ManifoldMixUp(layers='2'), Compare()], model=staged())
    learn.fit(1)
    assert learn.compare.checked==4

@pytest.mark.parametrize('make', [lambda: ManifoldMixUp(), lambda: ManifoldMixUp(echo=True),
    lambda: MixChoice([ManifoldMixUp(), SnapMix()]), lambda: MixChoice([SnapMix(), ManifoldMixUp()], echo=True)],
    ids=range(4))
def test_no_host_syncs(toy, make):
    counts = []
    for cbs in ([], [make()]):
        learn = toy(cbs=cbs, model=toy_model())
        with Syncs() as s: learn.fit(1)
        counts.append(s.n)
    assert counts[0]==counts[1]

@pytest.mark.parametrize('cast', [CpuAutocast, CpuScaler])
@pytest.mark.parametrize('echo', [False,True])
def test_autocast_blends_in_the_precision_of_the_features(toy, cast, echo):
    seen = []
    learn = toy(cbs=[ManifoldMixUp(layers='2', echo=echo), cast(), Record()], model=staged())
    learn.model[2].register_forward_pre_hook(lambda m,i: seen.append((m.training, i[0].dtype)))
    learn.fit(2)
    assert np.isfinite(learn.record.losses).all() and {d for t,d in seen if t} in ({torch.bfloat16}, {torch.float16})

def test_channels_last_is_kept(toy):
    seen = []
    learn = toy(cbs=ManifoldMixUp(layers='2'), model=staged())
    learn.to_channelslast(use_amp=False)
    class After(nn.Module):
        def forward(self, x):
            if self.training: seen.append(x.is_contiguous(memory_format=torch.channels_last))
            return x
    learn.model[2].insert(0, After())
    learn.fit(1)
    assert seen and all(seen)

# where

class Residual(nn.Module):
    "A block with a path around its layers"
    def __init__(self, c, c2):
        super().__init__()
        self.conv,self.short = nn.Conv2d(c, c2, 3, 2, 1),nn.Conv2d(c, c2, 1, 2)
        self.conv2 = nn.Conv2d(c2, c2, 3, padding=1)
    def forward(self, x): return self.conv2(self.conv(x).relu())+self.short(x)

class Around(nn.Module):
    "Features of the stem reach the head beside the blocks"
    def __init__(self):
        super().__init__()
        self.stem,self.head = nn.Conv2d(3, 4, 3, padding=1),nn.Linear(12, 3)
        self.a,self.b,self.c = Residual(4, 8),Residual(8, 8),Residual(8, 8)
    def forward(self, x):
        x = self.stem(x)
        return self.head(torch.cat([self.c(self.b(self.a(x))).mean((2,3)), x.mean((2,3))], 1))

def names(places): return [p['layer'] for p in places]

def test_entrances_are_where_all_features_pass():
    x = torch.rand(2, 3, 64, 64)
    blocks = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), Residual(4, 8), Residual(8, 8), Residual(8, 8),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    assert names(find_entrances(blocks, x))==['1','2']
    assert find_entrances(Around(), x)==[]
    with pytest.raises(ValueError, match='`layers` 1.conv2: a part of the features passes by it'):
        entrance_of(blocks, '1.conv2', x)
    assert entrance_of(blocks, blocks[1], x)==dict(layer='1', side=0, call=0, seq_first=False)

def test_an_entrance_with_two_stages_and_without(toy):
    x = torch.rand(2, 3, 16, 16)
    assert names(find_entrances(toy_model(), x))==['3']
    flat = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, 3))
    assert find_entrances(flat, x)==[]
    raises(toy(cbs=ManifoldMixUp(), model=flat),
        r'Sequential has no stage or block .* 16×16: pass `layers=`.*MixUp\(\)')
    toy(cbs=ManifoldMixUp(layers='input'), model=flat).fit(1)

archs = {'resnet18': (['maxpool','layer2','layer3'], {}), 'convnext_atto': (['stages.1','stages.2'], {}),
    'efficientnet_lite0': (['blocks.1','blocks.2','blocks.3'], {}),
    'vit_tiny_patch16_224': (['blocks.3','blocks.6'], dict(img_size=64))}
@pytest.mark.parametrize('arch', archs)
def test_entrances_of_timm(arch):
    want,kwargs = archs[arch]
    model = timm.create_model(arch, num_classes=3, **kwargs).train()
    before,modes = {k:v.clone() for k,v in model.state_dict().items()},[m.training for m in model.modules()]
    assert names(find_entrances(model, torch.rand(4, 3, 64, 64)))==want
    assert all(torch.equal(v, before[k]) for k,v in model.state_dict().items())
    assert modes==[m.training for m in model.modules()]
    assert not sum(len(m._forward_hooks)+len(m._forward_pre_hooks) for m in model.modules())

class SequenceFirst(nn.Module):
    "A transformer whose tokens come before the batch"
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.blocks = nn.Sequential(*(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.) for _ in range(4)))
        self.head = nn.Linear(8, 3)
    def forward(self, x): return self.head(self.blocks(self.patches(x).flatten(2).permute(2,0,1)).mean(0))

def test_tokens_before_the_batch(toy):
    torch.manual_seed(0)
    learn = toy(cbs=[ManifoldMixUp(layers=['blocks.1']), Look()], model=SequenceFirst(), lr=0.)
    learn.fit(1)
    for x,pred,y,w,_,partner,place,_ in learn.look.steps:
        m = learn.model.train()
        with torch.no_grad():
            h = m.blocks[0](m.patches(x).flatten(2).permute(2,0,1))
            h = torch.lerp(h[:,partner], h, w[None,:,None])
            want = m.head(m.blocks[1:](h).mean(0))
        assert place['seq_first']
        torch.testing.assert_close(pred, want, atol=1e-5, rtol=1e-4)
    assert [p['seq_first'] for p in find_entrances(learn.model, x)]==[True,True]

class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.a,self.b,self.head = nn.Conv2d(3, 3, 3, padding=1),nn.Conv2d(3, 3, 3, padding=1),nn.Linear(3, 3)
        self.spare,self.keyword = nn.ReLU(),nn.ReLU()
    def forward(self, x):
        x = self.a(self.a(x))
        if len(x)==8 and self.training and self.skips: return self.head(x.mean((2,3)))
        return self.head(self.keyword(input=self.b(x)).mean((2,3)))
    skips = False

wrong = {
    'unknown': ('c', "no layer 'c' in Twice"), 'not called': ('spare', '`layers` spare was not called in a forward'),
    'twice': ('a', '`layers` a is called 2 times in a forward: pass a module that is called once'),
    'of another model': (nn.Conv2d(3, 3, 1), '`layers`: this Conv2d is no module of the Twice'),
    'keyword': ('keyword', r'`layers` keyword: expected a module whose first input is a tensor .* given a NoneType')}
@pytest.mark.parametrize('name', wrong)
def test_layers_that_cannot_be_mixed_are_refused_before_training(toy, name):
    layer,message = wrong[name]
    learn = toy(cbs=ManifoldMixUp(p=1e-9, layers=['b',layer]), model=Twice())
    before = weights(learn)
    raises(learn, message)
    assert torch.equal(weights(learn), before) and state(learn)[4]==0
    learn.remove_cb(learn.manifold_mix_up)
    learn.fit(1, cbs=ManifoldMixUp(layers=['b',learn.model]))

def test_a_layer_that_a_training_forward_does_not_reach(toy):
    learn = toy(cbs=ManifoldMixUp(layers='b'), model=Twice())
    learn.model.skips = True
    raises(learn, 'this forward did not call b, so nothing was mixed')
    assert state(learn)[4]==0

def test_features_that_are_no_rows_of_the_batch(toy):
    class Windows(nn.Module):
        "Cuts pictures into four, as window attention does"
        def __init__(self):
            super().__init__()
            self.a,self.b,self.head = nn.Conv2d(3, 4, 3, padding=1),nn.Conv2d(4, 4, 3, padding=1),nn.Linear(4, 3)
        def forward(self, x):
            h = torch.cat([o for half in self.a(x).chunk(2, 2) for o in half.chunk(2, 3)])
            return self.head(self.b(h).mean((2,3)).view(4, len(x), 4).mean(0))
    raises(toy(cbs=ManifoldMixUp(layers='b'), model=Windows()),
        r'`layers` b: expected .* of shape \[8, 4, 8, 8\] for 2 pictures')

@pytest.mark.parametrize('layers', [[], 3, [3], {'a':1}], ids=str)
def test_arguments(layers):
    with pytest.raises(ValueError, match='layers=.*expected modules of the network or their names'):
        ManifoldMixUp(layers=layers)

def test_other_arguments():
    with pytest.raises(ValueError, match='above 0'): ManifoldMixUp(alpha=0)
    cb = ManifoldMixUp(p=.5, partner='other', echo=True)
    assert cb.made_with==dict(alpha=2., layers=None, p=.5, partner='other', echo=True)

@pytest.mark.parametrize('compiled', [lambda m: torch.compile(m, backend='eager'),
    lambda m: (m.compile(backend='eager'), m)[1]], ids=['wrapped','in place'])
def test_compiled_models_are_refused(toy, compiled):
    raises(toy(cbs=ManifoldMixUp(), model=compiled(toy_model())), 'which a compiled model does not call')
    toy(cbs=ManifoldMixUp(layers='input'), model=compiled(toy_model())).fit(1)

def test_gradient_checkpointing_is_refused(toy):
    model = timm.create_model('test_resnet', num_classes=3)
    model.set_grad_checkpointing(True)
    raises(toy(cbs=ManifoldMixUp(), model=model, size=64, n=8, bs=4), 'gradient checkpointing would compute them again')
    model.set_grad_checkpointing(False)
    toy(cbs=ManifoldMixUp(), model=model, size=64, n=8, bs=4).fit(1)

def test_data_parallel(toy):
    learn = toy(cbs=[ManifoldMixUp(layers='2'), Look()], model=nn.DataParallel(staged()), lr=0.)
    learn.fit(1)
    for x,pred,y,w,_,partner,place,_ in learn.look.steps:
        want = by_hand(learn.model.module, x, partner, w, place).detach()
        torch.testing.assert_close(pred, want, atol=1e-6, rtol=1e-5)

def test_two_processes(in_processes):
    "Each process blends its own part of the batch; the loss is that of one process"
    one,two = in_processes("""
class Fixed(ManifoldMixUp):
    def draw_weights(self, x): return torch.full((len(x),), .75)
mix.draw_partner = lambda n, how, device: torch.arange(n).view(-1,2).flip(1).reshape(-1)
class Out(Callback):
    order,run_valid = 70,False
    def after_batch(self):
        if self.learn.iter: return
        n,loss = torch.tensor(float(len(self.x))),self.learn.loss.detach()*len(self.x)
        if world>1: dist.all_reduce(n); dist.all_reduce(loss)
        sys.stdout.write(f"OUT {world} {n.item()} {(loss/n).item():.8f}\\n")
fit(Learner(dls, model, loss_func=CrossEntropyLossFlat(), cbs=[Fixed(layers='4'), Out()]), 1)
""", 1, 2)
    assert [o[:2] for o in one+two]==[['1','16.0'],['2','16.0'],['2','16.0']]
    assert all(abs(float(one[0][2])-float(o[2]))<1e-5 for o in two)

# with companions

def test_random_draws_choose_the_layer(toy):
    def run(seed):
        learn = toy(cbs=[ManifoldMixUp(layers=['input','2','3']), Look()], model=staged(), n=64)
        set_seed(seed)
        learn.fit(1)
        return [p and p['layer'] for *_,p,_ in learn.look.steps],[loss for *_,loss in learn.look.steps]
    assert run(1)==run(1) and run(1)[0]!=run(2)[0]

def test_a_resumed_fit_with_other_layers_is_refused(toy, tmp_path):
    with resumable(toy(cbs=ManifoldMixUp(layers='2'), model=staged()), tmp_path) as fits: fits.learn.fit(1)
    learn = toy(cbs=ManifoldMixUp(layers='3'), model=staged())
    with pytest.raises(ValueError, match='layers'), resumable(learn, tmp_path): learn.fit(1)

def test_an_echo_of_an_older_checkpoint_has_no_place(toy):
    cb = CutMix(echo=True)
    learn = toy(cbs=cb)
    class Older(Callback):
        order,run_valid = 60,False
        def after_batch(self):
            if cb.previous: cb.previous = cb.previous[:5]
    learn.add_cb(Older())
    learn.fit(1)

@pytest.mark.parametrize('cbs', [lambda: [GradientAccumulation(16)], lambda: [MidLevelBranch()],
    lambda: [ProgressiveResize(multiple_of=4)], lambda: [ProgressiveLabelCorrection(warmup=0)],
    lambda: [GridMask(p=1)]], ids=range(5))
@pytest.mark.parametrize('echo', [False,True])
def test_companions_see_no_difference(toy, cbs, echo):
    learn = toy(cbs=[ManifoldMixUp(layers=['input','2'], echo=echo), *cbs(), Record()], model=staged(), n=64)
    learn.fit(2)
    assert np.isfinite(learn.record.losses).all() and state(learn)[4]==0

def test_small_pictures_first_find_the_layers_of_full_size(toy):
    seen = []
    class Places(Callback):
        order,run_valid = 60,False
        def after_batch(self): seen.append((self.x.shape[-1], [p and p['layer'] for p in self.manifold_mix_up.places]))
    learn = toy(cbs=[ManifoldMixUp(), ProgressiveResize(start=.25, multiple_of=4), Places()], model=staged())
    learn.fit(3)
    assert seen[0][0]==4 and all(places==[None,'2'] for _,places in seen)

def test_a_second_mix_is_refused(toy):
    raises(toy(cbs=[ManifoldMixUp(), MixUp()]), 'would mix the same batch twice')
    raises(toy(cbs=[SnapMix(), ManifoldMixUp()]), 'would mix the same batch twice')

def test_frozen_body(toy):
    learn = toy(cbs=[ManifoldMixUp(layers=['2']), Record()], model=staged(), lr=1e-2)
    for p in learn.model[:6].parameters(): p.requires_grad_(False)
    learn.fit(2)
    assert np.isfinite(learn.record.losses).all()

@pytest.fixture(scope='module')
def leaves(tmp_path_factory): return leaf_data(tmp_path_factory.mktemp('leaves')/'data', n=40, size=64)

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('learner,arch,n_places,kwargs', [
    (vision_learner,'test_resnet',4,{}), (vision_learner,'test_convnext',3,{}),
    (timm_learner,'test_efficientnet',4,{}), (timm_learner,'test_vit',3,dict(img_size=64))],
    ids=['resnet','convnext','efficientnet','vit'])
def test_learners(learner, arch, n_places, kwargs, leaves, tmp_path):
    places = []
    class Places(Callback):
        order,run_valid = 60,False
        def after_batch(self): places.extend(self.manifold_mix_up.places)
    learn = learner(leaf_dls(leaves, size=64, bs=8), arch, pretrained=False, metrics=accuracy, path=tmp_path,
        cbs=[ManifoldMixUp(), Places()], **kwargs)
    keys,structure = list(learn.model.state_dict()),[type(m) for m in learn.model.modules()]
    with learn.no_bar(), learn.no_logging():
        learn.fine_tune(1)
        assert len(set(map(str, places)))==n_places, places
        assert list(learn.model.state_dict())==keys and state(learn)[4]==0
        assert [type(m) for m in learn.model.modules()]==structure
        learn.remove_cb(Places)
        learn.export('e.pkl')
        loaded = load_learner(tmp_path/'e.pkl')
        image = leaves/'images'/'Train_0.jpg'
        torch.testing.assert_close(loaded.predict(image)[2], learn.predict(image)[2])

def test_show_mix_names_the_layer(toy):
    learn = toy(model=staged())
    learn.dls.train.decode = lambda b: b
    title = learn.show_mix(2, mix=ManifoldMixUp(layers='2'))[0].get_title()
    assert title.endswith(' at 2') and ' · ' in title and state(learn)[4]==0
    assert ' at ' not in learn.show_mix(2, mix=ManifoldMixUp(layers='input'))[0].get_title()
