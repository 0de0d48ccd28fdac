"Every mix with every companion: it trains, the loss falls, nothing leaks, a second fit is like a first."
import io

import numpy as np
import pytest
import timm
import torch
from fastai.vision.all import (BCEWithLogitsLossFlat, Callback, CSVLogger, DataLoaders, DataLoader,
    EarlyStoppingCallback, F1Score, GradientAccumulation, GradientClip, L, Normalize,
    ProgressCallback, SaveModelCallback, ShowGraphCallback, accuracy, load_learner, nn, vision_learner)
from fastai.callback.fp16 import MixedPrecision
from fastai_mix.callback.branch import MidLevelBranch
from fastai_mix.callback.choice import MixChoice
from fastai_mix.callback.gridmask import GridMask
from fastai_mix.callback.manifold import ManifoldMixUp
from fastai_mix.callback.mix import CutMix, MixUp, ramp
from fastai_mix.callback.plc import ProgressiveLabelCorrection
from fastai_mix.callback.resize import ProgressiveResize
from fastai_mix.callback.snapmix import SnapMix
from fastai_mix.checkpoint import resumable
from fastai_mix.data.leaves import leaf_data, leaf_dls
from fastai_mix.interpret import History, Scores, TensorBoardMix
from fastai_mix.vision.cam import ClassActivation
from fastai_mix.vision.tta import flips
from helpers import CpuAutocast, CpuScaler, Record, state, toy_model

mixes = {
    'snapmix': lambda: [SnapMix()],
    'snapmix-echo': lambda: [SnapMix(echo=True)],
    'cutmix': lambda: [CutMix()],
    'mixup': lambda: [MixUp()],
    'manifold': lambda: [ManifoldMixUp()],
    'manifold-echo': lambda: [ManifoldMixUp(echo=True)],
    'gridmask': lambda: [GridMask(p=.5)],
    'choice': lambda: [MixChoice([SnapMix(), CutMix(), GridMask(p=1), None])],
    'choice-echo': lambda: [MixChoice([SnapMix(), GridMask(p=1), ManifoldMixUp()], echo=True)],
    'snapmix+gridmask': lambda: [SnapMix(), GridMask(p=.5)],
}
companions = {
    'alone': lambda: [],
    'bf16': lambda: [CpuAutocast()],
    'accumulation': lambda: [GradientAccumulation(16)],
    'clip': lambda: [GradientClip(.5)],
    'save': lambda: [SaveModelCallback()],
    'early': lambda: [EarlyStoppingCallback(patience=3)],
    'csv': lambda: [CSVLogger()],
    'history': lambda: [History()],
    'resize': lambda: [ProgressiveResize(multiple_of=4)],
    'branch': lambda: [MidLevelBranch()],
    'plc': lambda: [ProgressiveLabelCorrection()],
    'fp16': lambda: [CpuScaler()],
    'fp16+all': lambda: [CpuScaler(), GradientAccumulation(16), GradientClip(.5), MidLevelBranch(),
        ProgressiveResize(multiple_of=4),
        ProgressiveLabelCorrection(when='epoch')],
}

@pytest.mark.parametrize('companion', companions)
@pytest.mark.parametrize('mix', mixes)
def test_with(mix, companion, toy, tmp_path):
    learn = toy(cbs=mixes[mix]()+companions[companion]()+[Record()], n=64, metrics=accuracy, lr=3e-3, path=tmp_path)
    before,want = learn.validate()[0],state(learn)
    learn.fit(3)
    first = learn.validate()[0]
    learn.fit(3)
    assert np.isfinite(learn.record.losses).all() and learn.validate()[0]<before and learn.validate()[0]<first+.1
    after = state(learn)
    assert after[0] is want[0] and after[1]==want[1] and after[4:]==want[4:] and not torch.is_autocast_enabled('cpu')

@pytest.mark.parametrize('mix', mixes)
def test_life_of_a_learner(mix, toy, tmp_path):
    "channels-last, freezing, fine_tune, lr_find, prediction, TTA-like repeats, export"
    body = nn.Sequential(*list(toy_model())[:7])
    head = nn.Sequential(*list(toy_model())[7:])
    learn = toy(cbs=mixes[mix](), model=nn.Sequential(body, head), path=tmp_path, n=32,
                splitter=lambda m: [list(m[0].parameters()), list(m[1].parameters())])
    learn.to_channelslast(use_amp=False)
    learn.lr_find(num_it=6, show_plot=False)
    learn.freeze()
    learn.fit(1)
    learn.unfreeze()
    learn.fine_tune(1)
    preds,_ = learn.get_preds(reorder=False)
    with torch.no_grad(): want = torch.cat([learn.model.eval()(x) for x,_ in learn.dls.valid])
    torch.testing.assert_close(preds, want.softmax(1), atol=1e-5, rtol=1e-4)
    learn.save('w'), learn.load('w')

@pytest.fixture(scope='module')
def leaves(tmp_path_factory): return leaf_data(tmp_path_factory.mktemp('leaves')/'data', n=40, size=64)

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('mix', [*mixes, 'scheduled'])
def test_export_predict_and_tta(mix, leaves, tmp_path):
    cbs = mixes[mix]() if mix in mixes else [SnapMix(p=ramp(0, .8, until=.8)), GridMask()]
    learn = vision_learner(leaf_dls(leaves, size=32, bs=8), 'test_resnet', pretrained=False, cbs=cbs, path=tmp_path)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
        learn.export('e.pkl')
        loaded = load_learner(tmp_path/'e.pkl')
        image = leaves/'images'/'Train_0.jpg'
        torch.testing.assert_close(loaded.predict(image)[2], learn.predict(image)[2])
        assert [type(cb) for cb in loaded.cbs]==[type(cb) for cb in learn.cbs]
        if mix=='scheduled': assert loaded.snap_mix.p(1)==.8
        plain,_ = learn.get_preds()
        preds,targs = learn.tta(n=2)
        assert preds.shape==plain.shape and torch.equal(targs, learn.get_preds()[1])

@pytest.mark.parametrize('mix', ['snapmix','snapmix-echo','cutmix'])
def test_wrapped_models(mix, toy):
    for wrap in (nn.DataParallel, lambda m: torch.compile(m, backend='eager')):
        learn = toy(cbs=[*mixes[mix](), Record()], model=wrap(toy_model()))
        learn.fit(2)
        assert np.isfinite(learn.record.losses).all()

def test_a_mix_may_be_tried_before_mixed_precision_has_begun(toy):
    learn = toy(cbs=[SnapMix(), MixedPrecision()])
    learn.snap_mix.before_fit()
    x,y = learn.dls.train.one_batch()
    assert learn.snap_mix.change(x, y).shape==x.shape and learn.snap_mix.w is not None

class Two(nn.Module):
    "Logits, and something beside them"
    def __init__(self):
        super().__init__()
        self.model,self.other = toy_model(),nn.Linear(3, 2)
    def forward(self, x):
        z = self.model(x)
        return z,self.other(z)

def first_loss(p, y, reduction='mean'): return nn.functional.cross_entropy(p[0], y, reduction=reduction)

@pytest.mark.parametrize('cbs', [lambda: [MixUp()], lambda: [CutMix(echo=True)], lambda: [SnapMix()],
    lambda: [SnapMix(echo=True)], lambda: [ProgressiveLabelCorrection(warmup=0)],
    lambda: [SnapMix(), ProgressiveLabelCorrection(warmup=0)]],
    ids=['mixup','cutmix-echo','snapmix','snapmix-echo','plc','snapmix+plc'])
def test_a_model_that_returns_more_than_logits(cbs, toy):
    class First(Callback):
        order,run_valid = -5,True
        def after_pred(self): self.learn.pred = self.pred[0]
    losses = []
    for loss,more in ((first_loss,[]), (None,[First()])):
        torch.manual_seed(0)
        learn = toy(cbs=[*cbs(), *more], model=Two(), loss_func=loss)
        learn.add_cb(Losses())
        learn.fit(2)
        losses.append(learn.losses.all)
    assert losses[0]==losses[1]

class Losses(Callback):
    run_valid = False
    def before_fit(self): self.all = []
    def after_batch(self): self.all.append(self.learn.loss.item())

def test_a_branch_names_what_the_model_returns(toy):
    with pytest.raises(ValueError, match='Two returns a tuple'):
        toy(cbs=MidLevelBranch(), model=Two(), loss_func=first_loss).fit(1)

@pytest.mark.parametrize('cbs', [lambda: [SnapMix()], lambda: [SnapMix(echo=True)], lambda: [CutMix(echo=True, p=.5)],
    lambda: [CutMix(), ProgressiveLabelCorrection(warmup=0)],
    lambda: [GridMask(p=1), ProgressiveLabelCorrection(warmup=0)]],
    ids=['snapmix','snapmix-echo','cutmix-echo','cutmix+plc','gridmask+plc'])
def test_a_model_that_begins_in_place(cbs, toy):
    "It trains as its twin that makes new pictures"
    class Norm(nn.Module):
        def __init__(self, inplace):
            super().__init__()
            self.inplace,self.model = inplace,toy_model()
        def forward(self, x): return self.model(x.sub_(.5).div_(.25) if self.inplace else (x-.5)/.25)
    losses = []
    for inplace in (False,True):
        torch.manual_seed(0)
        learn = toy(cbs=[*cbs(), Losses()], model=Norm(inplace))
        learn.dls.train.dataset.x = learn.dls.train.dataset.x.clone()
        learn.fit(2)
        losses.append(learn.losses.all)
    assert losses[0]==losses[1]

def test_a_model_with_attributes_named_like_a_mix_has(toy):
    class Cosine(nn.Module):
        def __init__(self):
            super().__init__()
            self.body,self.w,self.box = toy_model()[:9],nn.Parameter(torch.randn(3,16)),None
        def forward(self, x):
            return 16*nn.functional.linear(nn.functional.normalize(self.body(x)), nn.functional.normalize(self.w))
    for cb in (MixChoice([SnapMix(),GridMask(p=1)]), GridMask(p=1)):
        learn = toy(cbs=cb, model=Cosine(), n=64)
        learn.fit(2)
        assert cb.w is None
        learn.dls.train.vocab,learn.dls.train.decode = learn.dls.vocab,lambda b: b
        assert len(learn.show_mix(2))==2

def test_compiled_maps_are_the_eager_ones(toy):
    maps = []
    for compiled in (False,True):
        learn = toy(cbs=SnapMix())
        if compiled: learn.model = torch.compile(learn.model, backend='eager')
        learn.snap_mix.before_fit()
        learn.model.train()
        learn.snap_mix.change(*learn.dls.train.one_batch())
        maps.append(learn.snap_mix.cam)
    torch.testing.assert_close(*maps)

class Nested(Callback):
    "Predicts or validates in the middle of a fit"
    order = 60
    def __init__(self, f): self.f = f
    def after_epoch(self):
        if not self.learn.lock.locked(): self.f(self.learn)

@pytest.mark.parametrize('f', [lambda l: l.get_preds(), lambda l: l.tta_views(views=flips), lambda l: l.validate()],
    ids=['get_preds','tta_views','validate'])
def test_history_and_pictures_survive_a_prediction_in_between(f, toy, tmp_path):
    from fastai.callback.tensorboard import TensorBoardCallback
    board = TensorBoardCallback(tmp_path/'tb', trace_model=False, log_preds=False)
    learn = toy(cbs=[CutMix(), History(), board, TensorBoardMix(2), Nested(f)], metrics=accuracy)
    learn.fit(3)
    assert learn.history.df[['fit','epoch']].to_numpy().tolist()==[[0,0],[0,1],[0,2]]

def test_scores_of_one_logit(toy):
    learn = toy(model=toy_model(1), c=2, loss_func=BCEWithLogitsLossFlat(), lr=1e-2)
    learn.fit(8)
    scores,(p,y) = learn.scores(),learn.get_preds()
    assert scores.accuracy==((p[:,0]>.5)==y.bool()).float().mean() and scores.accuracy>.8 and len(scores.report())
    with pytest.raises(ValueError, match='3 columns of predictions for 2 classes'):
        Scores(torch.rand(4,3), torch.zeros(4), ['a','b'])

def test_pictures_of_loaders_without_names(toy):
    learn = toy(cbs=MixUp())
    learn.dls.train.decode = lambda b: b
    assert 'class' in learn.show_mix(2)[0].get_title()
    del learn.dls.vocab
    assert ' × ' in learn.show_mix(2)[0].get_title()

def test_sizes_of_all_pictures_grow(toy):
    class Pairs:
        def __len__(self): return 16
        def __getitem__(self, i): return torch.rand(4),torch.rand(3,64,64),torch.rand(3,64,32),torch.tensor(i%3)
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.model,self.seen = toy_model(),set()
        def forward(self, v, a, b):
            if self.training: self.seen.add((tuple(v.shape), tuple(a.shape[-2:]), tuple(b.shape[-2:])))
            return self.model(a)+self.model(b)
    learn = toy(model=Both(), cbs=ProgressiveResize(multiple_of=8))
    dl = DataLoader(Pairs(), bs=8, num_workers=0)
    learn.dls = DataLoaders(dl, dl)
    learn.dls.n_inp = 3
    learn.fit(4)
    assert ((8,4),(64,64),(64,32)) in learn.model.seen and ((8,4),(32,32),(32,16)) in learn.model.seen
    assert all(v==(8,4) and b==(a[0],a[1]//2//8*8) for v,a,b in learn.model.seen)

def test_history_is_of_trained_epochs(toy):
    learn = toy(cbs=History(), metrics=accuracy)
    learn.validate()
    learn.fit(2)
    learn.validate(), learn.get_preds(), learn.tta_views(views=flips)
    learn.fit(1)
    df = learn.history.df
    assert df[['fit','epoch']].to_numpy().tolist()==[[0,0],[0,1],[1,0]]
    assert df.valid_loss.iloc[:2].tolist()!=df.accuracy.iloc[:2].tolist()
    assert df.train_loss.notna().all() and df.accuracy.between(0, 1).all()

def test_metrics_of_one_name(toy, tmp_path):
    learn = toy(cbs=History(), metrics=[F1Score(average='macro'), F1Score(average='micro'), accuracy])
    with resumable(learn, tmp_path/'r') as fits: learn.fit(1)
    want = dict(zip(('epoch','train_loss','valid_loss','f1_score','f1_score_2','accuracy'), learn.recorder.log))
    assert learn.history.df.drop(columns='fit').to_dict('records')==[want]
    assert fits.history.drop(columns=['fit','time']).to_dict('records')==[want]
    assert want['f1_score']!=want['f1_score_2']==pytest.approx(want['accuracy'])

def test_show_graph(toy):
    learn = toy(cbs=[SnapMix(), ShowGraphCallback()])
    learn.add_cb(ProgressCallback())
    learn.fit(2)

def test_training_metrics_see_the_labels_as_they_came(toy):
    "A metric over training batches counts each prediction against its own label"
    for cbs,n in ((mixes['snapmix'](),32), (mixes['snapmix-echo'](),32+24)):
        got = []
        class Seen(Callback):
            order,run_valid = 60,False
            def after_batch(self): got.append((len(self.learn.pred), len(self.learn.y)))
        learn = toy(cbs=[*cbs, Seen()])
        learn.fit(1)
        assert all(a==b for a,b in got) and sum(a for a,_ in got)==n

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('mix', [*mixes, 'multi-label', 'half of the time'])
def test_tensorboard_writes_the_mixed_batch(mix, toy, leaves, tmp_path):
    from fastai.callback.tensorboard import TensorBoardCallback
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from PIL import Image
    class Seen(Callback):
        "Pictures of each batch that was changed, decoded by hand"
        order,run_valid = 60,False
        def before_fit(self): self.of = {}
        def before_batch(self):
            if not any(getattr(cb, 'changed', False) for cb in self.learn.cbs): return
            x = self.x.as_subclass(torch.Tensor)[-4:]
            if mix!='multi-label': x = x*torch.tensor([.2,.3,.4])[:,None,None]+torch.tensor([.4,.5,.6])[:,None,None]
            cb = next((c for c in self.learn.cbs if getattr(c, 'w', None) is not None), None)
            self.of[self.train_iter] = x,[f'{v:.2f}' for v in (cb.w[-4:].tolist() if cb else [1.]*4)]
    cbs = [*mixes[mix]()] if mix in mixes else [SnapMix(p=.5 if mix.startswith('half') else 1)]
    for cb in cbs:
        if isinstance(cb, GridMask): cb.p = 1
    cbs += [TensorBoardMix(4), Seen(), TensorBoardCallback(tmp_path/'tb', trace_model=False, log_preds=False)]
    if mix=='multi-label': learn = toy(cbs=cbs, target='onehot', loss_func=BCEWithLogitsLossFlat())
    else:
        tfms = [Normalize.from_stats([.4,.5,.6], [.2,.3,.4])]
        learn = vision_learner(leaf_dls(leaves, size=32, bs=8, batch_tfms=tfms), 'test_resnet', pretrained=False,
            cbs=cbs)
    with learn.no_bar(), learn.no_logging(): learn.fit(3)
    seen = dict(learn.seen.of)
    events = EventAccumulator(str(tmp_path/'tb')).Reload()
    per_epoch = len(learn.dls.train)
    firsts = sorted({min(k for k in seen if k//per_epoch==i//per_epoch) for i in seen})
    assert [e.step for e in events.Images('mix')]==firsts and len(firsts)>=2
    for e,text in zip(events.Images('mix'), events.Tensors('mix/text_summary')):
        x,w = seen[e.step]
        got = np.asarray(Image.open(io.BytesIO(e.encoded_image_string))).astype(int)
        want = (x.clamp(0,1)*255).permute(2,0,3,1).flatten(1,2).numpy()
        assert got.shape==want.shape and abs(got-want).max()<=1.01 # decoded to bytes, then written as bytes
        lines = text.tensor_proto.string_val[0].decode().splitlines()
        assert len(lines)==4 and all(v in l for v,l in zip(w, lines)) or mix=='multi-label'
    with learn.no_bar(), learn.no_logging(): learn.lr_find(num_it=6, show_plot=False)
    assert len(EventAccumulator(str(tmp_path/'tb')).Reload().Images('mix'))==len(firsts)

def test_tensorboard_mix_alone_names_the_fix(toy):
    with pytest.raises(ValueError, match=r'learn.add_cb\(TensorBoardCallback\(log_dir\)\)'):
        toy(cbs=[SnapMix(), TensorBoardMix()]).fit(1)

def test_two_processes_are_one(in_processes):
    "The loss of the first step of two processes is that of one with the same global batch"
    one,two = in_processes('''
class Fixed(SnapMix):
    "Boxes and partners that do not depend on how the batch is spread"
    def make_params(self, x):
        box = torch.tensor([[2,2,9,9]]).expand(len(x),4)
        return box,box+3
mix.draw_partner = lambda n, how, device: torch.arange(n).view(-1,2).flip(1).reshape(-1)
class Out(Callback):
    order,run_valid = 70,False
    def after_batch(self):
        if self.learn.iter: return
        n,loss = torch.tensor(float(len(self.x))),self.learn.loss.detach()*len(self.x)
        if world>1: dist.all_reduce(n); dist.all_reduce(loss)
        sys.stdout.write(f"OUT {world} {n.item()} {(loss/n).item():.8f}\\n")
fit(Learner(dls, model, loss_func=CrossEntropyLossFlat(), cbs=[Fixed(), Out()]), 1)
''', 1, 2)
    assert [o[:2] for o in one+two]==[['1','16.0'],['2','16.0'],['2','16.0']]
    assert all(abs(float(one[0][2])-float(o[2]))<1e-5 for o in two)

class TwoInputs(nn.Module):
    "A picture and a number beside it"
    def __init__(self, c=3):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 3, padding=1))
        self.head = nn.Linear(9, c)
    def forward(self, x, meta): return self.head(torch.cat([self.body(x).mean((2,3)), meta], 1))

@pytest.fixture
def several(toy):
    "A Learner whose model has two inputs"
    def make(cbs):
        learn = toy(model=TwoInputs(), cbs=cbs)
        for dl in learn.dls.loaders:
            dl.dataset = [(x, torch.full((1,), float(i)), y) for i,(x,y) in enumerate(dl.dataset)]
            dl.n = len(dl.dataset)
        learn.dls.n_inp = 2
        return learn
    return make

@pytest.mark.parametrize('cbs', [lambda: MixUp(), lambda: CutMix(echo=True), lambda: SnapMix(),
    lambda: SnapMix(echo=True), lambda: GridMask(p=1.), lambda: ManifoldMixUp(layers='body.3'),
    lambda: ManifoldMixUp(layers='body.3', echo=True),
    lambda: [MixChoice([SnapMix(), CutMix()]), ProgressiveResize(multiple_of=4)],
    lambda: [SnapMix(), ProgressiveLabelCorrection(.1, warmup=0, when='batch')],
    lambda: [CutMix(), ProgressiveLabelCorrection(.1, warmup=0)],
    lambda: ProgressiveLabelCorrection(.1, warmup=0, when='pass'),
    lambda: [MidLevelBranch(layer='body.3'), SnapMix()]], ids=range(12))
def test_a_model_of_two_inputs(cbs, several):
    class Look(Callback):
        order,run_valid = 60,False
        def before_batch(self):
            x,meta = self.xb
            assert len(x)==len(meta)==len(self.yb[0])
            if not hasattr(self.learn, 'progressive_label_correction'):
                assert (meta[:,0].long()%3==self.yb[0]).all() # as the toy labels its rows
    learn = several([*L(cbs()), Look()])
    learn.fit(2, 1e-2)
    assert np.isfinite(learn.recorder.values[-1]).all()

@pytest.mark.parametrize('cbs', [SnapMix, lambda: SnapMix(echo=True), lambda: MixChoice([SnapMix(), None]),
    lambda: CutMix(echo=True)], ids=range(4))
def test_a_validation_in_the_middle_of_a_fit(cbs, toy):
    class Between(Callback):
        order,n = 56,0
        def after_batch(self): self.n += self.training
        def after_epoch(self):
            if not self.learn.lock.locked(): self.learn.validate(), self.learn.get_preds()
    learn = toy(cbs=[cbs(), Between()])
    learn.fit(2, 1e-2)
    assert learn.between.n==8

def test_what_is_switched_off_for_a_fit_is_off(toy):
    pairs = [(ProgressiveLabelCorrection(), SnapMix()), (SnapMix(), ProgressiveLabelCorrection(warmup=0)),
             (SnapMix(), CutMix()), (SnapMix(), MidLevelBranch())]
    for off,on in pairs:
        learn = toy(cbs=[off,on])
        off.run = False
        learn.fit(2, 1e-2)
        assert np.isfinite(learn.recorder.values[-1]).all()

def test_one_logit_for_two_classes(toy):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.body,self.head = nn.Conv2d(3, 8, 3, padding=1),nn.Linear(8, 1)
        def forward(self, x): return self.head(self.body(x).relu().mean((2,3)))
    m = Model()
    x,y = torch.rand(4,3,16,16),torch.tensor([0,1,0,1])
    cam = ClassActivation(m).forward(x).cam(y)
    own = torch.einsum('nchw,c->nhw', m.body(x).relu(), m.head.weight[0])/16**2
    assert torch.allclose(cam, own*(2*y-1)[:,None,None], atol=1e-5)
    plc = ProgressiveLabelCorrection(.01, warmup=0)
    learn = toy(cbs=[SnapMix(), plc], model=m, c=2, loss_func=BCEWithLogitsLossFlat())
    learn.fit(3, 1e-2)
    assert plc.labels[['p_given','p_current']].max().max()<1 and len(plc.history)==3

@pytest.mark.parametrize('cbs', [lambda: SnapMix(), lambda: SnapMix(echo=True), lambda: MidLevelBranch(),
    lambda: SnapMix(layer='layer3.0')], ids=range(4))
def test_gradient_checkpointing(cbs, toy):
    model = timm.create_model('test_resnet', num_classes=3)
    model.set_grad_checkpointing(True)
    learn = toy(cbs=cbs(), model=model, size=64, n=8, bs=4)
    learn.fit(1, 1e-3)
    plain = timm.create_model('test_resnet', num_classes=3)
    plain.load_state_dict(model.state_dict())
    x,y = torch.rand(2,3,64,64),torch.tensor([0,1])
    maps = [ClassActivation(m.train()).forward(x).cam(y) for m in (model,plain)]
    assert torch.allclose(*maps, atol=1e-6)
