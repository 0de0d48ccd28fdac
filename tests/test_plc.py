import json
import os
from contextlib import suppress
from copy import deepcopy
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.core import FetchPredsCallback
from fastai.callback.data import PartialDL, WeightedDL
from fastai.callback.mixup import MixUp as FastaiMixUp
from fastai.vision.all import (Callback, CancelBatchException, CancelEpochException, CancelFitException,
    CancelTrainException, CategoryBlock, ColReader, CrossEntropyLossFlat, DataBlock, DataLoader, DataLoaders, F,
    Learner, MSELossFlat, MultiCategoryBlock, Path, RandTransform, SaveModelCallback, ShortEpochCallback, TensorImage,
    TransformBlock, accuracy, load_learner, nn, set_seed, tensor)
from safetensors import safe_open

from fastai_mix.all import (CutMix, GridMask, MixCallback, MixChoice, MixUp, ProgressiveLabelCorrection,
    ProgressiveResize, SnapMix, class_logits, load_state, resumable, save_state)
import fastai_mix.callback.plc as plc_module
from fastai_mix.data.ledger import correct_labels, label_gap
from helpers import Oracle, Rows, state, Syncs

# what a model must know to be asked is tested below, all else with models of any kind
Unchecked = partial(ProgressiveLabelCorrection, check_model=False)
Batchwise = partial(Unchecked, when='batch')

def test_the_rule_is_where_it_was():
    assert plc_module.correct_labels is correct_labels and plc_module.label_gap is label_gap

class Watch(Callback):
    "Compare the rows a label correction sees with those the pictures tell, and what is trained on with its labels"
    order,run_valid = 56,False
    def before_fit(self): self.n = 0
    def before_batch(self):
        plc = self.learn.progressive_label_correction
        told = (self.x[:,0,0,0]*1024).round().long()
        assert [plc.keys[i] for i in plc.rows.tolist()]==told.tolist()
        self.n += len(told)
    def after_loss(self):
        plc = self.learn.progressive_label_correction
        assert torch.equal(self.y, plc.current[plc.rows])

def rows_learner(plc, ds=None, dl=None, cbs=(), bs=8, **kwargs):
    ds = Rows(wrong=(3,10,11,30)) if ds is None else ds
    dl = dl or DataLoader(ds, bs=bs, **{'shuffle':True, 'num_workers':0, **kwargs})
    dls = DataLoaders(dl, DataLoader(Rows(), bs=bs, num_workers=0), device='cpu')
    learn = Learner(dls, Oracle(), loss_func=CrossEntropyLossFlat(), cbs=[plc,*cbs], lr=0.)
    learn.remove_cb(learn.progress)
    learn.logger = lambda *_: None
    return learn

@pytest.mark.parametrize('when', ['batch','epoch','pass'])
@pytest.mark.parametrize('kwargs', [{}, dict(drop_last=True, bs=7), dict(num_workers=2, bs=7),
    dict(num_workers=2, bs=6, drop_last=True), dict(shuffle=False)], ids=str)
def test_corrects_the_right_rows(when, kwargs):
    ds = Rows(wrong=(3,10,11,30))
    learn = rows_learner(Unchecked(.5, warmup=1, when=when), ds, cbs=[Watch()], **kwargs)
    learn.fit(4 if when=='batch' else 2)
    df = learn.progressive_label_correction.labels
    assert (df.given==ds.y.numpy()).all() and torch.equal(ds.y, Rows(wrong=(3,10,11,30)).y)
    right = df.current==ds.true.numpy()
    # a row may be among those dropped, each time
    if when=='epoch' and kwargs.get('drop_last'): right = right[df.p_given.notna()]
    if when!='batch' or not kwargs.get('drop_last'): assert right.all() and len(right)>30
    assert set(df.index[df.times>0])<={3,10,11,30} and df.times.max()==1 and learn.watch.n>0

@pytest.mark.parametrize('make', [lambda ds: WeightedDL(ds, bs=8, shuffle=True, wgts=np.arange(1, 41), num_workers=0),
    lambda ds: PartialDL(ds, bs=8, partial_n=24, shuffle=True, num_workers=0)], ids=['weighted','partial'])
def test_other_loaders(make):
    ds = Rows(wrong=(3,10,11,30))
    learn = rows_learner(Batchwise(.5, warmup=0), ds, make(ds), cbs=[Watch()])
    learn.fit(6)
    df = learn.progressive_label_correction.labels
    seen = df.p_given.notna()
    assert (df.current==ds.true.numpy())[seen].all() and seen.sum()>30

def split(idxs, n, _): return list(range(n-8)) if idxs is None else idxs, list(range(n-8, n))

def table_learner(df, plc, idxs=None, vocab='abc', cbs=(), model=None, bs=8, multi=False, **kwargs):
    "A Learner on a table whose column `x` is the picture"
    y = MultiCategoryBlock(vocab=list(vocab)) if multi else CategoryBlock(vocab=list(vocab))
    n = len(df)
    get_y = ColReader('label', label_delim=' ' if multi else None)
    block = DataBlock((TransformBlock, y), get_x=RowPicture(), get_y=get_y, splitter=partial(split, idxs, n))
    dls = block.dataloaders(df, bs=bs, num_workers=0, device='cpu', **kwargs)
    loss_func = None if multi else CrossEntropyLossFlat()
    learn = Learner(dls, model or Oracle(), cbs=[plc,*cbs], lr=0., loss_func=loss_func)
    learn.remove_cb(learn.progress)
    learn.logger = lambda *_: None
    return learn

def table(n=48, wrong=(5,17,18)):
    true = np.arange(n)*7%3
    label = [('abc'[(t+1)%3] if i in wrong else 'abc'[t]) for i,t in enumerate(true)]
    return pd.DataFrame(dict(row=range(n), true=true, label=label), index=[f'p{i}' for i in range(n)])

def test_table_and_oversampling():
    df = table()
    before = df.copy()
    idxs = list(range(40))+[5,5,5,17,17,20]
    plc = Batchwise(.5, warmup=0)
    learn = table_learner(df, plc, idxs)
    learn.fit(2)
    pd.testing.assert_frame_equal(df, before)
    assert list(plc.changed.index.sort_values())==['p17','p18','p5'] and len(plc.labels)==40
    assert plc.history.corrected.sum()==3 and plc.history.share.iloc[-1]==3/40
    out = plc.corrected(df, 'label')
    assert out.corrected.tolist()==['abc'[t] for t in df.true] and 'corrected' not in df
    assert list(plc.labels.columns)==['given','current','p_given','p_current','gap','when','times']

def test_copies_in_one_batch_get_one_label():
    "Random predictions: without an average the copies would disagree"
    class Coin(nn.Module):
        def __init__(self): super().__init__(); self.b = nn.Parameter(torch.zeros(3))
        def forward(self, x): return torch.randn(len(x), 3)*9+self.b
    idxs = [i for i in range(10) for _ in range(4)]
    plc = Batchwise(.05, warmup=0, most=9, max_change=1.)
    class Same(Callback):
        order,run_valid = 56,False
        def after_pred(self):
            for r in set(plc.rows.tolist()): assert len(set(self.y[plc.rows==r].tolist()))==1
    learn = table_learner(table(), plc, idxs, model=Coin(), cbs=[Same()], bs=20)
    learn.fit(5)
    assert plc.history.corrected.sum()>10 and plc.labels.times.max()>1

def test_index_that_names_rows_alike():
    df = table()
    df.index = [0]*len(df)
    with pytest.raises(ValueError, match='reset_index'): table_learner(df, Batchwise(.5)).fit(1)
    plc = Batchwise(.5, warmup=0, id_col='row')
    table_learner(df, plc).fit(1)
    assert set(plc.changed.index)=={5,17,18}
    assert plc.corrected(df, 'label').corrected.tolist()[:40]==['abc'[t] for t in df.true[:40]]
    with pytest.raises(ValueError, match='id_col'): table_learner(table(), Batchwise(.5, id_col='id')).fit(1)

def plain_net(): return nn.Sequential(
    nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))

@pytest.mark.parametrize('when', ['batch','epoch'])
def test_same_logits_with_and_without_a_mix(toy, when):
    "On a network that is the same in training and eval mode, standing still"
    seen = {}
    ways = dict(plain=[], snapmix=[SnapMix()], half=[SnapMix(p=.5)], cutmix=[CutMix()], mixup=[MixUp()],
        gridmask=[GridMask(p=1.)], both=[SnapMix(), GridMask(p=1.)], echo=[SnapMix(echo=True)],
        choice=[MixChoice([SnapMix(), GridMask(p=1.), None])], small=[SnapMix(map_scale=.5)],
        grown=[CutMix(), ProgressiveResize(sizes=[16])])
    for name,cbs in ways.items():
        plc = Unchecked(.99, warmup=0, when=when)
        set_seed(1)
        learn = toy(model=plain_net(), cbs=[plc,*cbs], lr=0., seed=1)
        set_seed(2)
        for m in learn.model.modules():
            if hasattr(m, 'reset_parameters'): m.reset_parameters()
        got = torch.zeros(32, 3)
        use = plc._use_predictions
        def watch(logits):
            got.index_copy_(0, plc.rows, logits.as_subclass(torch.Tensor).float())
            use(logits)
        plc._use_predictions = watch
        learn.fit(1)
        seen[name] = got
    for name,got in seen.items(): torch.testing.assert_close(got, seen['plain'], atol=1e-5, rtol=1e-5, msg=name)

def forwards(toy, *cbs):
    learn,calls = toy(cbs=list(cbs)),[]
    learn.model.register_forward_hook(lambda m,i,o: calls.append((m.training, len(o))))
    learn.fit(1)
    return sorted(calls)

def test_snapmix_shares_its_forward(toy):
    assert forwards(toy, SnapMix())==forwards(toy, SnapMix(), Batchwise(.9))
    assert forwards(toy, SnapMix(echo=True))==forwards(toy, SnapMix(echo=True), Batchwise(.9))
    assert forwards(toy)==forwards(toy, Batchwise(.9))
    assert len(forwards(toy, CutMix(), Batchwise(.9)))==len(forwards(toy))+4
    assert len(forwards(toy, MixChoice([SnapMix()]), Batchwise(.9)))==len(forwards(toy, MixChoice([SnapMix()])))

@pytest.mark.parametrize('mix', [None, CutMix(), SnapMix(), CutMix(echo=True), GridMask(p=1.)], ids=str)
def test_corrected_labels_are_what_is_mixed_and_trained_on(toy, mix):
    "A certain, wrong model: after the first batch every label is the predicted one, and so are the labels in the loss"
    learn = toy(cbs=[Batchwise(.5, warmup=0, max_change=1.), *([mix] if mix else [])], lr=0.)
    learn.model[-1].weight.data.zero_()
    learn.model[-1].bias.data = tensor([9.,0,0])
    class Zero(Callback):
        order,run_valid = 60,False
        def after_loss(self):
            assert (self.y==0).all()
            if isinstance(mix, MixCallback) and mix.w is not None and not mix.echo: assert (mix.y2==0).all()
            assert self.loss_grad<.1
    learn.add_cb(Zero())
    learn.fit(2)
    assert (learn.progressive_label_correction.labels.current=='class0').all()

def test_fits_and_searches(toy):
    plc = Batchwise(.3, warmup=2, most=3)
    learn = toy(cbs=plc, splitter=lambda m: [list(m[:8].parameters()), list(m[8:].parameters())])
    learn.freeze()
    learn.fit(1)
    assert plc.history.corrected.tolist()==[0] and not len(plc.changed)
    learn.unfreeze()
    learn.fit(2)
    assert plc.history.epoch.tolist()==[1,2,3] and plc.history.theta.isna().tolist()==[True,True,False]
    labels = plc.labels
    learn.lr_find(num_it=5, show_plot=False)
    learn.validate(), learn.get_preds()
    pd.testing.assert_frame_equal(plc.labels, labels)
    assert len(plc.history)==3 and len(learn.validate())==1
    learn.fit(1)
    assert len(plc.history)==4

def test_epoch_table(toy):
    lines = []
    learn = toy(cbs=[Batchwise(.2, warmup=0), SaveModelCallback(monitor='accuracy', comp=np.greater)], metrics=accuracy)
    learn.path = Path(os.environ.get('TMPDIR', '/tmp'))/'plc_table'
    learn.logger = lines.append
    learn.fit(2)
    plc = learn.progressive_label_correction
    assert learn.recorder.metric_names==['epoch','train_loss','valid_loss','accuracy','corrected','time']
    assert lines[-1][-2]==round(plc.history.share.iloc[-1]*32) and len(learn.recorder.values[0])==4

class Between(Callback):
    order = 56
    def after_epoch(self):
        if not self.learn.lock.locked(): self.learn.validate()

class Early(Callback):
    "Validates or predicts before other callbacks have ended the training part of the epoch"
    def __init__(self, inner): self.inner = lambda: inner
    def after_train(self):
        if self.learn.lock.locked(): return
        if self.inner(): self.learn.get_preds(ds_idx=0, inner=True)
        else: self.learn.validate()

@pytest.mark.parametrize('inner', [True,False])
def test_a_short_last_batch_and_another_loader_in_between(inner, toy):
    learns = [toy(cbs=[*cbs, Unchecked(warmup=0.)], n=30) for cbs in ([], [Early(inner)])]
    for learn in learns: learn.fit(3, 1e-2)
    thetas = [o.progressive_label_correction.history.theta.tolist() for o in learns]
    assert np.allclose(*thetas, equal_nan=True)

@pytest.mark.parametrize('cbs', [FetchPredsCallback, Between])
def test_a_validation_in_between(cbs, toy):
    lines = []
    learn = toy(cbs=[cbs(), Unchecked(.05, warmup=0)], metrics=accuracy)
    learn.logger = lines.append
    learn.fit(3, 1e-2)
    plc = learn.progressive_label_correction
    assert len(plc.history)==3 and plc.labels.p_given.notna().all()
    assert [len(o) for o in lines]==[6]*3 and [o[4] for o in lines]==[round(s*32) for s in plc.history.share]

@pytest.mark.parametrize('when', ['batch','epoch'])
@pytest.mark.parametrize('k', [0,2])
def test_batches_that_others_leave_out(when, k, toy):
    class Skip(Callback):
        order,run_valid = 0,False
        def before_batch(self):
            if self.learn.iter==k: raise CancelBatchException
    plc = Unchecked(.05, warmup=0, when=when)
    toy(cbs=[Skip(), plc], metrics=accuracy).fit(3, 1e-2)
    assert len(plc.history)==3

@pytest.mark.parametrize('kwargs', [dict(shuffle=True), dict(shuffle=False), dict(shuffle=True, drop_last=True),
    dict(shuffle=False, drop_last=True, num_workers=2)], ids=str)
def test_skipped_items(kwargs):
    ds = Rows(wrong=(3,), skip=(4,13))
    ds.reading = False
    plc = Batchwise(.5, warmup=0, most=5)
    learn = rows_learner(plc, ds, **kwargs)
    class Reads(Callback):
        order = 99 # from the second epoch on
        def after_train(self): ds.reading = True
    learn.add_cb(Reads())
    plc.theta = lambda t: 1. if t<.5 else .5
    with pytest.raises(ValueError, match='left out of a batch'): learn.fit(2)
    assert not len(plc.changed)
    learn = rows_learner(Unchecked(.5), ds, **kwargs)
    with pytest.raises(ValueError, match='left out of a batch'): learn.fit(1)

def test_short_epochs_are_no_skipped_items(toy):
    learn = toy(cbs=[Batchwise(.2, warmup=0), ShortEpochCallback(.5)])
    learn.fit(2)
    assert len(learn.progressive_label_correction.history)==2

def test_rows_that_were_not_drawn_are_told_nothing_of():
    df = table()
    plc = Unchecked(.5, warmup=0, window=1)
    learn = table_learner(df, plc, bs=16) # 40 rows to train on
    learn.fit(1)
    unseen = plc.labels.p_given.isna()
    assert unseen.sum()==8 and plc.history.candidates.iloc[-1]<=32
    learn.fit(1)
    again = plc.labels.p_given.isna()
    assert not (again & ~unseen).any()

def test_a_trusted_set_may_have_rows_to_validate_on():
    df = table()
    plc = Unchecked(.1, warmup=0, protect=['p5','p47']) # p40 on are validated
    table_learner(df, plc).fit(1)
    assert sorted(plc.changed.index)==['p17','p18']
    learn = table_learner(df, Unchecked(.1, protect=['p47','p99']))
    with pytest.raises(ValueError, match="no training row 'p99'"): learn.fit(1)

def test_protection_and_limits(toy):
    def run(**kwargs):
        plc = Unchecked(.5, warmup=0, **kwargs)
        learn = toy(cbs=plc, lr=0.)
        learn.model[-1].weight.data.zero_()
        learn.model[-1].bias.data = tensor([9.,0,0])
        learn.fit(2)
        return plc
    assert len(run(max_change=1.).changed)==21 and len(run().changed)==16
    assert not run(protect=[1,4]).changed.index.isin([1,4]).any()
    assert set(run(protect_classes=['class1']).changed.given)=={'class2'}
    for when in ('batch','epoch','pass'): assert len(run(max_change=.25, when=when).changed)==8
    plc = run(max_change=1.)
    plc.undo([1,4]), plc.undo(2)
    assert set(plc.labels.index[plc.labels.given==plc.labels.current])>={1,2,4}
    plc.learn.fit(1)
    assert not plc.changed.index.isin([1,2,4]).any() and len(plc.changed)==18

def test_largest_gaps_go_first():
    class Graded(Oracle):
        def forward(self, x): return super().forward(x)*(x[:,0].mean((1,2))*1024/80)[:,None]
    plc = Batchwise(.01, warmup=0, max_change=.05)
    learn = rows_learner(plc, Rows(wrong=(3,10,11,30)), bs=40, shuffle=False)
    learn.model = Graded()
    learn.fit(1)
    assert set(plc.changed.index)=={11,30}

@pytest.mark.parametrize('when', ['batch','epoch'])
def test_goes_on_after_a_kill(toy, tmp_path, when):
    "Two epochs, a file, a new process's Learner: the same labels as without the break"
    def make():
        plc = Unchecked((.05,.01), warmup=0., when=when, most=2)
        learn = toy(cbs=[plc, SaveModelCallback(every_epoch=True, with_opt=True)], path=tmp_path)
        learn.dls.train.shuffle = False
        learn.dls.train.dataset.t[::3] = (learn.dls.train.dataset.y[::3]+1)%3
        learn.model[9] = nn.Identity()
        return learn,plc
    whole,plc = make()
    whole.fit(4, lr=.01)
    learn,again = make()
    learn.create_opt()
    learn.load('model_1', with_opt=True)
    again.load(tmp_path/'models'/'model_1.labels.safetensors')
    assert again.history.equals(plc.history[:2])
    learn.fit(4, lr=.01, start_epoch=2)
    pd.testing.assert_frame_equal(again.labels, plc.labels)
    pd.testing.assert_frame_equal(again.history, plc.history)
    assert plc.labels.times.sum()>5, plc.history

@pytest.mark.parametrize('when', ['batch','epoch','pass'])
def test_resumable_trainings_keep_corrections(toy, tmp_path, when):
    "Interrupted in the third of four epochs and run again: labels, history and weights of the training that was not"
    class Stop(Callback):
        order,epochs = 90,[] # of the class: no state
        def after_loss(self):
            if self.training and self.learn.epoch in self.epochs and self.learn.iter==2: raise KeyboardInterrupt
    def make(*stop):
        Stop.epochs = stop
        learn = toy(cbs=[Unchecked((.05,.01), warmup=0., when=when, most=2), SnapMix(p=.5), Stop()])
        learn.dls.train.dataset.t[::3] = (learn.dls.train.dataset.y[::3]+1)%3
        return learn
    whole = make()
    with resumable(whole, tmp_path/'whole'): whole.fit(4, .01)
    with pytest.raises(KeyboardInterrupt), resumable(learn := make(2), tmp_path/'run'): learn.fit(4, .01)
    with resumable(learn := make(), tmp_path/'run'): learn.fit(4, .01)
    want,got = whole.progressive_label_correction,learn.progressive_label_correction
    pd.testing.assert_frame_equal(got.labels, want.labels)
    pd.testing.assert_frame_equal(got.history, want.history)
    same = map(torch.equal, learn.model.state_dict().values(), whole.model.state_dict().values())
    assert want.labels.times.sum() and all(same)

@pytest.mark.parametrize('kwargs,names', [(dict(), {'model'}), (dict(at_end=True), {'model'}),
    (dict(every_epoch=2), {'model_0','model_2'})], ids=['best','end','every'])
def test_saved_beside_checkpoints(toy, tmp_path, kwargs, names):
    learn = toy(cbs=[Unchecked(.3), SaveModelCallback(**kwargs)], path=tmp_path)
    learn.fit(3)
    files = {o.name for o in (tmp_path/'models').iterdir()}
    assert files=={f'{n}.pth' for n in names}|{f'{n}.labels.safetensors' for n in names}
    with safe_open(tmp_path/'models'/f'{min(names)}.labels.safetensors', 'pt') as f: meta = f.metadata()
    assert json.loads(meta['labels'])['keys']==list(range(32))

def test_other_tables_are_refused(tmp_path):
    df,plc = table(),Batchwise(.5, warmup=0)
    table_learner(df, plc).fit(1)
    with pytest.raises(ValueError, match="'p3' is not in this table"): plc.corrected(df.drop('p3'), 'label')
    other = df.assign(label=df.label.where(df.index!='p7', 'c'))
    assert df.label['p7']!='c'
    with pytest.raises(ValueError, match='belong to another table'): plc.corrected(other, 'label')
    with pytest.raises(ValueError, match="no column 'labels'"): plc.corrected(df, 'labels')
    with pytest.raises(ValueError, match="'p7' has another label"): table_learner(other, plc).fit(1)
    plc.to_csv(tmp_path/'labels.csv')
    assert pd.read_csv(tmp_path/'labels.csv', index_col=0).current.tolist()==plc.labels.current.tolist()
    (tmp_path/'x').write_text('no')
    for f in ('x','y'):
        with pytest.raises(ValueError, match='no such file|holds no labels'): plc.load(tmp_path/f)

def test_another_fold_keeps_what_is_known():
    df,plc = table(),Batchwise(.5, warmup=0)
    table_learner(df, plc, list(range(30))).fit(1)
    learn = table_learner(df, plc, list(range(15,40)))
    plc.theta = 1.
    learn.fit(1)
    assert set(plc.changed.index)=={'p17','p18'} and len(plc.labels)==25

def test_labels_of_numbers_stay_numbers():
    df = table().assign(label=lambda d: d.label.map({'a':10,'b':20,'c':30}))
    plc = Batchwise(.5, warmup=0)
    table_learner(df, plc, vocab=[10,20,30]).fit(1)
    assert plc.corrected(df, 'label').corrected.tolist()==[[10,20,30][t] for t in df.true]

def test_several_labels_a_picture():
    df = table().assign(label=lambda d: [' '.join(sorted({o,'c'})) for o in d.label])
    class Multi(nn.Module):
        def __init__(self): super().__init__(); self.b = nn.Parameter(torch.zeros(3))
        def forward(self, x):
            y = F.one_hot(x[:,1].mean((1,2)).round().long(), 3).float()
            y[:,2] = 1
            return (y*2-1)*9+self.b
    plc = Batchwise(.5, warmup=0)
    learn = table_learner(df, plc, multi=True, model=Multi(), cbs=[CutMix()])
    learn.fit(1)
    assert set(plc.changed.index)=={'p5','p17','p18'} and plc.changed.given.map(type).eq(tuple).all()
    assert plc.corrected(df, 'label').corrected.tolist()[:40]==[' '.join(sorted({'abc'[t],'c'})) for t in df.true[:40]]
    plc.plot()

@pytest.mark.parametrize('theta_rule', ['line','paper'])
def test_theta_over_time(theta_rule):
    plc = Batchwise((.9,.5), warmup=2, theta_rule=theta_rule, step=.3)
    rows_learner(plc, Rows()).fit(6) # nothing to correct
    want = [.9,.9,.6,.5] if theta_rule=='paper' else [.9+(.5-.9)*(k-1/5)/4 for k in (1,2,3,4)]
    theta = plc.history.theta.tolist()
    assert np.isnan(theta[:2]).all()
    if theta_rule=='line': assert np.allclose(theta[2:], want)
    else: assert np.allclose(theta[2:], [.9,.6,.5,.5])
    up = Unchecked((.3,.9), rule='ratio', theta_rule='paper', warmup=0, when='epoch')
    rows_learner(up, Rows()).fit(9)
    assert np.allclose(up.history.theta, [.3,.4,.5,.6,.7,.8,.9,.9,.9])

def test_paper_rule_waits_while_labels_are_corrected():
    plc = Batchwise((.9,.5), warmup=0, theta_rule='paper', least=.05)
    rows_learner(plc, Rows(wrong=(3,10,11,30))).fit(3)
    assert np.allclose(plc.history.theta, [.9,.9,.8]) and plc.history.corrected.tolist()==[4,0,0]

def test_history_by_iterations(toy):
    plc = Batchwise(.2, warmup=0, every=2)
    toy(cbs=plc).fit(2)
    h = plc.history
    n = len(plc.changed)
    assert h.epoch.tolist()==[.5,1,1.5,2] and h.share.iloc[-1]==n/32 and h.corrected.sum()==n

@pytest.mark.parametrize('when', ['epoch','pass'])
def test_a_first_epoch_alone_corrects_nothing(when, toy):
    for warmup,first in ((.5,False), (0.,True), (0,True)):
        learn = toy(cbs=Unchecked(.01, warmup=warmup, when=when))
        learn.fit(1)
        plc = learn.progressive_label_correction
        assert bool(len(plc.changed))==first and np.isnan(plc.history.theta[0])!=first
        learn.fit(1)
        assert len(plc.changed) and plc.history.theta[1]==.01

def test_window_averages_epochs(toy):
    plc = Unchecked(.99, warmup=0, when='epoch', window=2)
    learn,ps = toy(cbs=plc),[]
    use = plc._use_predictions
    got = torch.zeros(3, 32, 3)
    def watch(logits):
        got[learn.epoch].index_copy_(0, plc.rows, logits.as_subclass(torch.Tensor).softmax(1))
        use(logits)
    plc._use_predictions = watch
    learn.fit(3)
    p = got[1:].mean(0)
    assert np.allclose(plc.labels.p_given, p.gather(1, plc.given[:,None])[:,0], atol=1e-6) and len(plc.past)==2

def test_a_clean_pass_is_without_augmentation():
    class Shift(RandTransform):
        def encodes(self, x:TensorImage): return x+5
    df,plc = table(),Unchecked(.5, warmup=0, when='pass')
    learn = table_learner(df, plc, batch_tfms=None)
    learn.dls.train.after_batch.add(Shift(p=1.))
    xs = []
    learn.model.register_forward_pre_hook(lambda m,i: xs.append((m.training, i[0].mean().item())))
    learn.fit(1)
    assert set(plc.changed.index)=={'p5','p17','p18'}
    assert min(o for t,o in xs if t)>5>max(o for t,o in xs if not t)

def test_passes_are_averaged(toy):
    plc = Unchecked(.99, warmup=0, when='pass', window=2)
    learn,passes = toy(cbs=plc),[]
    one = plc._clean_pass
    plc._clean_pass = lambda: passes.append(one()) or passes[-1]
    learn.fit(3)
    p = torch.stack(passes[1:]).mean(0)
    assert not torch.allclose(*passes[1:]) and len(plc.past)==2
    assert np.allclose(plc.labels.p_given, p.gather(1, plc.given[:,None])[:,0], atol=1e-6)

@pytest.mark.parametrize('when', ['batch','epoch'])
@pytest.mark.parametrize('mix', [None, SnapMix], ids=str)
def test_host_waits_once_an_epoch_not_a_step(toy, when, mix):
    def count(n, plc):
        cbs = [mix()] if mix else []
        if plc: cbs.insert(0, Unchecked(.5, when=when, warmup=0, max_change=.5))
        learn = toy(cbs=cbs, n=n)
        with Syncs() as s: learn.fit(1)
        return sum(s.n.values())
    assert count(32, True)-count(32, False)==count(64, True)-count(64, False)

@pytest.mark.parametrize('ex', [RuntimeError, KeyboardInterrupt, CancelTrainException, CancelBatchException,
    CancelEpochException, CancelFitException])
def test_nothing_leaks(toy, ex):
    class Boom(Callback):
        order,run_valid = 90,False
        def after_loss(self):
            if self.learn.iter==2 and self.on: raise ex('boom')
        on = True
    learn = toy(cbs=[Batchwise(.3, warmup=0), Boom()])
    learn.boom.on = False
    learn.fit(1)
    learn.boom.on = True
    before,names = state(learn),len(learn.cbs)
    try: learn.fit(2)
    except (RuntimeError,KeyboardInterrupt): pass
    same = lambda s: s[:2]+s[3:] # an interrupt leaves the model in training, as it does without callbacks
    assert same(state(learn))==same(before) and len(learn.cbs)==names and not learn.metrics
    learn.boom.on = False
    learn.fit(1)
    assert len(learn.progressive_label_correction.history)

class RowPicture:
    def __call__(self, r):
        return TensorImage(torch.stack([torch.full((8,8), float(v)) for v in (r.row/1024, r.true, 0)]))

def test_pictures_export_and_state(tmp_path):
    df,plc = table(),Batchwise(.5, warmup=0)
    learn = table_learner(df, plc)
    learn.path = tmp_path
    learn.fit(1)
    axs = plc.show(2)
    titles = [f'{o.given} → {o.current}' for o in plc.changed.head(2).itertuples()]
    assert [ax.get_title().split(chr(10))[0] for ax in axs]==titles
    learn.export('learn.pkl')
    again = load_learner(tmp_path/'learn.pkl')
    for other in (again.progressive_label_correction, deepcopy(plc)):
        assert other.labels.equals(plc.labels)
        other.save(tmp_path/'state')
        back = Batchwise(.5, warmup=0)
        back.load(tmp_path/'state')
        assert back.labels.equals(plc.labels)
        more = table_learner(df, other)
        more.fit(1)
        assert len(other.history)==2*len(plc.history)

@pytest.mark.parametrize('when', ['epoch','batch','pass'])
def test_epochs_without_a_batch(toy, when):
    plc = Unchecked(.3, warmup=0, when=when)
    learn = toy(cbs=plc, n=16, bs=32) # the only batch is a short one, and left out
    learn.fit(2)
    assert learn.recorder.metric_names[-2]=='corrected' and learn.recorder.values and len(plc.labels)==16
    class Stop(Callback):
        order,run_valid = 70,False
        def before_batch(self): raise CancelTrainException()
    learn = toy(cbs=[Unchecked(.3, warmup=0, when=when), Stop()])
    learn.fit(2)
    assert not len(learn.progressive_label_correction.changed)

wrong_arguments = [(dict(theta=0.), 'theta=0.0'), (dict(theta=1.5), 'theta=1.5'), (dict(theta=(.9,0)), 'theta=0'),
    (dict(theta=(.9,.8,.7)), 'first, last'), (dict(theta='high'), 'theta'), (dict(warmup=1.), 'warmup=1.0'),
    (dict(warmup=-1), 'warmup'), (dict(when='step'), "'batch', 'epoch' or 'pass'"),
    (dict(rule='diff'), "'gap' or 'ratio'"), (dict(theta=.5, theta_rule='paper'), 'needs .first, last.'),
    (dict(window=0), 'window=0'), (dict(most=0), 'most=0'),
    (dict(max_change=0), 'max_change=0')]

@pytest.mark.parametrize('kwargs,says', wrong_arguments, ids=str)
def test_wrong_arguments(kwargs, says):
    with pytest.raises(ValueError, match=says) as e: Unchecked(**kwargs)
    assert '\n' not in str(e.value)

def test_a_model_of_half_precision(toy):
    class Late(Callback):
        order = 10
        def before_batch(self): self.learn.xb = tuple(o.bfloat16() for o in self.xb)
        def after_pred(self): self.learn.pred = self.pred.float()
    by_pass = Unchecked(warmup=0., when='pass')
    for cbs in ([Unchecked(warmup=0.), CutMix()], [by_pass]):
        learn = toy(cbs=[Late(), *cbs])
        learn.model.bfloat16()
        learn.fit(1, 1e-3)
        assert learn.progressive_label_correction.labels.p_given.notna().all()

def test_wrong_use(toy):
    def says(text, learn, n=1):
        with pytest.raises(ValueError, match=text): learn.fit(n)
    says('warmup=3 epochs, but training ends after 2', toy(cbs=Unchecked(.5, warmup=3)), 2)
    says('above 0 and up to 1', toy(cbs=Unchecked(lambda t: 2., warmup=0)))
    says("no training row 99", toy(cbs=Unchecked(.5, protect=[99])))
    learn = toy(cbs=Unchecked(.5, protect_classes=[20]))
    learn.dls.vocab = [10,20,30]
    learn.fit(1)
    says("no class 'cat'", toy(cbs=Unchecked(.5, protect_classes=['cat'])))
    says('use the one of fastai_mix', toy(cbs=[Unchecked(.5), FastaiMixUp()]))
    learn = toy(cbs=Unchecked(.5))
    learn.dls.train.dataset.t = learn.dls.train.dataset.t.clone()
    learn.dls.train.dataset.t[5] = -100
    says('row 5 has the label -100', learn)
    says('soft', toy(cbs=Unchecked(.5), target='onehot', loss_func=nn.CrossEntropyLoss()))
    learn = toy(cbs=Unchecked(.5), loss_func=MSELossFlat())
    learn.dls.train.dataset.t = torch.rand(32)
    says('regress', learn)
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self): yield from ((torch.rand(3,16,16), tensor(0)) for _ in range(16))
    learn = toy(cbs=Unchecked(.5))
    learn.dls.loaders[0] = DataLoader(Stream(), bs=8, num_workers=0, n=16)
    says('iterable', learn)
    learn = toy(cbs=Unchecked(.5))
    learn.dls.loaders[0] = torch.utils.data.DataLoader(learn.dls.train.dataset, batch_size=8)
    says("torch's own loader", learn)
    plc = Unchecked(.001, warmup=0)
    toy().fit(2, cbs=plc)
    with pytest.raises(ValueError, match=r'learn.add_cb\(plc\)'): plc.show()
    plc = Unchecked(.5)
    for f in (lambda: plc.labels, lambda: plc.plot(), lambda: plc.undo(1), plc.state_dict):
        with pytest.raises(ValueError, match='no labels yet'): f()

def test_one_and_two_processes(in_processes):
    "Two hold the same labels; by epochs and passes each corrects all rows, as one does, and the limit is not divided"
    code = '''
import fastai_mix.callback.plc as plc_module
from fastai_mix.data.ledger import correct_labels, label_gap
from helpers import Oracle, Rows
def correct(ds, n, model=None, **kwargs):
    model = model or Oracle()
    train = DataLoader(ds, bs=8//world, shuffle=True, num_workers=0)
    dls = DataLoaders(train, DataLoader(Rows(), bs=8, num_workers=0), device='cpu')
    plc = ProgressiveLabelCorrection(.5, warmup=0, **kwargs)
    fit(Learner(dls, model, loss_func=CrossEntropyLossFlat(), cbs=plc, lr=0.), n)
    now = ''.join(map(str, plc.labels.current))
    right,n_corrected = now==''.join(map(str, ds.true.tolist())),plc.history.corrected.astype(int).tolist()
    out = 'OUT', rank_distrib(), now, right, n_corrected, list(plc.changed.index)
    os.write(1, (' '.join(str(o).replace(' ', '') for o in out)+chr(10)).encode()) # at once, since two processes write
for when,most in (('batch',1.), ('epoch',1.), ('pass',1.), ('batch',.05)):
    correct(Rows(n=41, wrong=(3,10,11,30,40)), 2, when=when, max_change=most, check_model=when!='batch')
for when,most in (('epoch',.3), ('pass',.3), ('epoch',.05)):
    correct(Rows(n=41, wrong=range(0,40,2)), 4, when=when, max_change=most, check_model=False)
for model in (Oracle(), Oracle(scale=0.)): # the second knows nothing
    for when in ('batch','epoch'): correct(Rows(n=41, wrong=(3,10,11,30,40)), 2, model=model, when=when)
'''
    one,two = in_processes(code, 1, 2)
    assert len(one)==11 and len(two)==22
    first,second = ([o[1:] for o in two if o[0]==r] for r in '01')
    assert first==second
    one = [o[1:] for o in one]
    for o in one[:3]+first[:3]: assert o[1:]==['True','[5,0]','[3,10,11,30,40]']
    assert one[3][2]=='[2,0]' and first[3][2] in ('[1,0]','[1,1]','[2,0]')
    assert first[4:]==one[4:] and [o[2] for o in one[4:7]]==['[12,0,0,0]','[12,0,0,0]','[2,0,0,0]']
    assert [o[2] for o in one[7:]]==['[0,5]','[5,0]','[0,0]','[0,0]']

class Told(nn.Module):
    "Predicts what `learn.tells` says of each row"
    def __init__(self, tells): super().__init__(); self.tells,self.bias = tells,nn.Parameter(torch.zeros(3))
    def forward(self, x):
        told = [self.tells.get(int(i), (0,9.)) for i in (x[:,0,0,0]*1024).round()]
        y,sure = map(torch.tensor, zip(*told))
        return F.one_hot(y, 3)*sure[:,None]+self.bias

@pytest.mark.parametrize('when', ['epoch','batch','pass'])
def test_the_cap_counts_rows_that_differ(when):
    "Four of ten rows may differ: a change back makes room, one from a wrong label to another takes none"
    ds = Rows(n=10)
    given,tells = ds.y.tolist(),{}
    plc = Unchecked(.05, warmup=0, when=when, max_change=.4, most=9, window=1)
    learn = rows_learner(plc, ds, bs=10, shuffle=False)
    learn.model = Told(tells)
    def epoch(**now):
        tells.update({i: (given[i], 9.) for i in range(10)})
        tells.update({int(k[1:]): (y, sure) for k,(y,sure) in now.items()})
        learn.fit(1)
        return {i: plc.labels.current[i] for i in plc.changed.index},int(plc.history.corrected.iloc[-1])
    up = lambda i, by=1: (given[i]+by)%3
    full = epoch(r0=(up(0),3.), r1=(up(1),4.), r2=(up(2),5.), r3=(up(3),6.), r4=(up(4),7.)) # the largest gaps
    assert full==({i: up(i) for i in (1,2,3,4)},4)
    still = {f'r{i}': (up(i),9.) for i in (1,2,3,4)}
    assert epoch(**still, r0=(up(0),9.))==({i: up(i) for i in (1,2,3,4)},0) # none left
    still['r1'] = up(1,2),9. # one wrong label to another
    assert epoch(**still, r0=(up(0),9.))==({1: up(1,2), **{i: up(i) for i in (2,3,4)}},1)
    back = {k:v for k,v in still.items() if k!='r2'}
    assert epoch(**back)==({1: up(1,2), 3: up(3), 4: up(4)},1) # back, when the cap is full
    del back['r3'], still['r2'], still['r3']
    now,n = epoch(**back, r5=(up(5),3.), r6=(up(6),4.), r7=(up(7),5.)) # one back and one free: two of three
    assert now=={1: up(1,2), 4: up(4), 6: up(6), 7: up(7)} and n==3
    assert (plc.history.share<=.4).all()

def test_the_cap_with_copies_and_several_labels():
    df = table(wrong=range(0,40,2))
    plc = Unchecked(.5, warmup=0, max_change=.29) # 11.6 of 40 rows
    table_learner(df, plc, [i for i in range(40) for _ in range(2)]).fit(2)
    assert len(plc.changed)==11
    labels = df.assign(label=lambda d: [' '.join(sorted({o,'c'})) for o in d.label])
    class Multi(nn.Module):
        def __init__(self): super().__init__(); self.b = nn.Parameter(torch.zeros(3))
        def forward(self, x): return (F.one_hot(x[:,1].mean((1,2)).round().long(), 3).float()*2-1)*9+self.b
    plc = Unchecked(.5, warmup=0, max_change=.1)
    table_learner(labels, plc, multi=True, model=Multi()).fit(2)
    assert len(plc.changed)==4
    for n,share,most in ((100,.29,29), (10,.7,7), (10,.1,1)): # products that come out below a whole number
        plc = Unchecked(.5, warmup=0, max_change=share)
        rows_learner(plc, Rows(n=n, wrong=range(n))).fit(1)
        assert len(plc.changed)==most

class TwoLosses(nn.Module):
    def __init__(self, k): super().__init__(); self.ce = nn.CrossEntropyLoss(ignore_index=k)
    def forward(self, p, y): return self.ce(p, y)

ignoring = {
    'flat': lambda k: CrossEntropyLossFlat(ignore_index=k), 'torch': lambda k: nn.CrossEntropyLoss(ignore_index=k),
    'nll': lambda k: nn.NLLLoss(ignore_index=k), 'partial': lambda k: partial(F.cross_entropy, ignore_index=k),
    'partial of a partial': lambda k: partial(partial(F.nll_loss, ignore_index=k), reduction='mean'),
    'inside': TwoLosses, 'default': lambda k: {255: loss_255, 3: loss_3, 2: loss_2, -1: loss_m1}[k]}
def loss_255(p, y, ignore_index=255): return F.cross_entropy(p, y, ignore_index=ignore_index)
def loss_3(p, y, ignore_index=3): return F.cross_entropy(p, y, ignore_index=ignore_index)
def loss_2(p, y, ignore_index=2): return F.cross_entropy(p, y, ignore_index=ignore_index)
def loss_m1(p, y, ignore_index=-1): return F.cross_entropy(p, y, ignore_index=ignore_index)

@pytest.mark.parametrize('k', [255,3,2,-1])
@pytest.mark.parametrize('loss', ignoring)
def test_labels_that_the_loss_ignores_are_refused(loss, k, toy):
    learn = toy(cbs=Unchecked(.5), loss_func=ignoring[loss](k))
    learn.dls.train.dataset.t = learn.dls.train.dataset.t.clamp(max=1)
    learn.dls.train.dataset.t[5] = k
    seen = []
    learn.model.register_forward_hook(lambda *_: seen.append(1))
    message = f'row 5 has the label {k}: rows whose label the loss ignores have none to correct; take them out'
    with pytest.raises(ValueError, match=message) as e: learn.fit(1)
    assert not seen and str(e.value).count('\n')<3

@pytest.mark.parametrize('known', [True,False])
def test_labels_that_are_no_class_are_refused(known, toy):
    learn = toy(cbs=Unchecked(.5))
    learn.dls.train.dataset.t = learn.dls.train.dataset.t.clone()
    learn.dls.train.dataset.t[7] = 3
    if not known: del learn.dls.vocab
    before = deepcopy(learn.model.state_dict())
    message = 'row 7 has the label 3, but there are 3 classes'
    if not known: message = 'labels up to 3, but the model tells 3 classes apart'
    with pytest.raises(ValueError, match=message): learn.fit(1)
    after = learn.model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before if 'running' not in k and 'num' not in k)

def test_what_the_loss_ignores_may_be_missing(toy):
    learn = toy(cbs=Unchecked(.05, warmup=0), loss_func=CrossEntropyLossFlat(ignore_index=255))
    learn.fit(1)
    assert len(learn.progressive_label_correction.labels)==32

days = pd.date_range('2024-03-30', periods=48, freq='h')
texts = [f'p{i}' for i in range(48)]
def objects(names): return pd.Index(names, dtype=object)
indexes = {
    'text': texts, 'odd text': [f'{i} ü,"\t\n\u2028\x00\r' for i in range(48)],
    'bytes of a file name': [f'{i}\udcff.jpg' for i in range(48)], 'numbers': range(48), 'floats': np.arange(48)/7,
    'NaN': [np.nan, *np.arange(47)/7], 'numpy': objects([np.int64(i) for i in range(48)]),
    'None': objects([None, *texts[:47]]), 'None and numbers': objects([None, *range(47)]),
    'bool and text': objects([True, *texts[:47]]), 'dates': days, 'nanoseconds': pd.DatetimeIndex(np.arange(48)*1001),
    'seconds': days.as_unit('s'), 'zone': days.tz_localize('UTC').tz_convert('Europe/Berlin'),
    'NaT': pd.DatetimeIndex([pd.NaT, *days[1:]]), 'durations': pd.to_timedelta(np.arange(48)*1001),
    'days': pd.Index([o.date()+pd.Timedelta(days=i).to_pytimedelta() for i,o in enumerate(days)]),
    'datetimes': objects([o.to_pydatetime() for o in days]),
    'periods': pd.period_range('2019Q1', periods=48, freq='Q'),
    'weeks': pd.period_range('2019-01-01', periods=48, freq='W'), 'intervals': pd.interval_range(0, 48),
    'intervals of dates': pd.interval_range(days[0], freq='h', periods=48), 'categories': pd.CategoricalIndex(texts),
    'paths': objects([Path(f'a/p{i}') for i in range(48)]),
    'levels': pd.MultiIndex.from_product([['a','b'], range(24)]),
    'levels of dates': pd.MultiIndex.from_arrays([days, [Path(f'{i}') for i in range(48)], np.arange(48)/7])}

@pytest.mark.parametrize('way', ['index','column'])
@pytest.mark.parametrize('kind', indexes)
def test_rows_of_any_name_come_back(kind, way, tmp_path):
    df,id_col = table(),None
    names = pd.Index(indexes[kind], tupleize_cols=True)
    if way=='index': df.index = names
    else:
        column = names.tolist() if kind in ('levels','levels of dates') else names
        df,id_col = df.assign(name=column).reset_index(drop=True),'name'
    if kind=='None and numbers' and way=='column': df['name'] = df.name.astype(object).where(np.arange(48)>0, None)
    plc = Unchecked(.5, warmup=0, id_col=id_col)
    table_learner(df, plc).fit(1)
    plc.save(tmp_path/'l')
    save_state(tmp_path/'c', plc.state_dict())
    for load in (lambda o: o.load(tmp_path/'l'), lambda o: o.load_state_dict(load_state(tmp_path/'c'))):
        back = Unchecked(.5, warmup=0, id_col=id_col)
        load(back)
        pd.testing.assert_frame_equal(back.labels, plc.labels)
        assert [type(o) for o in back.keys]==[type(o) for o in plc.keys] and len(back.changed)==3
        assert back.corrected(df, 'label').corrected.tolist()[:40]==['abc'[t] for t in df.true[:40]]
        table_learner(df, back).fit(1) # the same rows
        assert len(back.changed)==3 and len(back.history)==2
        assert (back.labels.times.to_numpy()==plc.labels.times.to_numpy()).all()
        some = back.changed.index
        back.undo(some[0]), back.undo(some[1:])
        assert not len(back.changed)
    own = (df.index if way=='index' else df.name)
    trusted = [own[i] for i in (5,17)]
    of_numpy = [] if kind=='zone' else [back.labels.index[[5,17]].values] # NumPy has no time zones
    for rows in (trusted, back.labels.index[[5,17]], *of_numpy):
        guarded = Unchecked(.5, warmup=0, id_col=id_col, protect=rows)
        table_learner(df, guarded).fit(1)
        assert len(guarded.changed)==1
    plc.to_csv(tmp_path/'labels.csv')
    if kind in ('text','odd text','bytes of a file name','paths'):
        read = pd.read_csv(tmp_path/'labels.csv', dtype=str, keep_default_na=False, quotechar='"',
            encoding_errors='surrogateescape')
        assert read.row.tolist()==plc.keys and read.current.tolist()==plc.labels.current.tolist()

def test_labels_with_a_carriage_return(tmp_path):
    vocab = ['a\r','b','c']
    df = table().assign(label=lambda d: d.label.replace('a', 'a\r'))
    plc = Unchecked(.5, warmup=0)
    table_learner(df, plc, vocab=vocab).fit(1)
    plc.to_csv(tmp_path/'labels.csv')
    read = pd.read_csv(tmp_path/'labels.csv', index_col=0)
    assert read.current.tolist()==plc.labels.current.tolist()==[vocab[t] for t in df.true[:40]]

def test_names_that_cannot_be_saved_are_refused_at_the_start():
    df = table()
    expected = 'could not be saved: expected text, numbers, dates or tuples of them as its name, not'
    for names,what in (([complex(i) for i in range(48)], 'complex'),
        ([frozenset([i]) for i in range(48)], 'frozenset'), ([pd.NA, *range(47)], 'NAType')):
        df.index = pd.Index(names, dtype=object)
        with pytest.raises(ValueError, match=f'{expected} {what}') as e:
            table_learner(df, Unchecked(.5, warmup=0)).fit(1)
        assert len(str(e.value).strip().splitlines())<4

def test_repeated_rows_of_several_levels():
    df = table()
    df.index = pd.MultiIndex.from_product([['a','b'], range(24)])
    plc = Unchecked(.5, warmup=0)
    table_learner(df, plc, [*range(40),5,5,17]).fit(1)
    assert len(plc.labels)==40 and set(plc.changed.index)=={('a',5),('a',17),('a',18)}
    df.index = pd.MultiIndex.from_arrays([[0]*48, [i//2 for i in range(48)]])
    learn = table_learner(df, Unchecked(.5))
    with pytest.raises(ValueError, match='names different rows alike'): learn.fit(1)

def test_thetas_of_numpy_can_be_saved(tmp_path):
    plc = Unchecked(lambda t: np.float32(.5), warmup=0)
    rows_learner(plc).fit(1)
    plc.save(tmp_path/'l')
    assert plc.history.theta.tolist()==[.5]

class Answers(nn.Module):
    "Logits among other outputs"
    def __init__(self, form, c=3, one=False): super().__init__(); self.net,self.form,self.one = Oracle(c),form,one
    def forward(self, x):
        f = self.net(x)
        more,f = f.mean(1),f[:,1:]-f[:,:1] if self.one else f
        return {
            'tuple': lambda: (more, x.flatten(1), f), 'dict': lambda: {'features': x.flatten(1), 'scores': f},
            'object': lambda: SimpleNamespace(loss=None, features=x.flatten(1), logits=f),
            'nested': lambda: (x, {'aux': (more, f)})}[self.form]()

def loss_of(c, one):
    def loss(pred, y, reduction='mean'):
        f = class_logits(pred, c)
        if one: return F.binary_cross_entropy_with_logits(f[:,0], y.float(), reduction=reduction)
        return F.cross_entropy(f, y, reduction=reduction)
    return loss

@pytest.mark.parametrize('when', ['epoch','batch','pass'])
@pytest.mark.parametrize('form', ['tuple','dict','object','nested'])
@pytest.mark.parametrize('mix',
    [None, CutMix, partial(MixUp, echo=True), lambda: MixChoice([CutMix(), None]), lambda: GridMask(p=1.)],
    ids=['none','cutmix','echo','choice','gridmask'])
@pytest.mark.parametrize('c,one', [(3,False), (2,True)], ids=['three','one logit'])
def test_outputs_of_many_forms(when, form, mix, c, one):
    ds = Rows(n=40, c=c, wrong=(3,10,11,30))
    train = DataLoader(ds, bs=8, shuffle=True, num_workers=0)
    dls = DataLoaders(train, DataLoader(Rows(c=c), bs=8, num_workers=0), device='cpu')
    dls.vocab = [f'class{i}' for i in range(c)]
    plc = Unchecked(.5, warmup=0, when=when)
    learn = Learner(dls, Answers(form, c, one), loss_func=loss_of(c, one), cbs=[plc, *([mix()] if mix else [])], lr=0.)
    with learn.no_bar(), learn.no_logging(), suppress(CancelFitException): learn.fit(1, cbs=NoValidation())
    assert set(plc.changed.index)=={3,10,11,30} and [int(o[-1]) for o in plc.labels.current]==ds.true.tolist()

class NoValidation(Callback):
    def before_validate(self): raise CancelFitException

@pytest.mark.parametrize('c', [None,0,[3,4],np.int64(3)], ids=str)
@pytest.mark.parametrize('mix', [None,CutMix], ids=str)
def test_numbers_of_classes_of_any_kind(c, mix):
    "One that is not known, or of several targets, leaves it to the name of the output"
    for when in ('epoch','batch','pass'):
        plc = Unchecked(.5, warmup=0, when=when)
        learn = rows_learner(plc, cbs=[mix()] if mix else [])
        learn.model,learn.loss_func = Answers('object'),loss_of(3, False)
        if c is not None: learn.dls.c = c
        with suppress(CancelFitException): learn.fit(1, cbs=NoValidation())
        assert set(plc.changed.index)=={3,10,11,30}

class Both(nn.Module):
    def __init__(self, net): super().__init__(); self.net = net
    def forward(self, x):
        f = self.net[:-1](x)
        return dict(features=f, scores=self.net[-1](f))

@pytest.mark.parametrize('when', ['batch','epoch','pass'])
@pytest.mark.parametrize('kwargs', [{}, dict(echo=True), dict(map_scale=.5)], ids=str)
def test_snapmix_of_a_model_with_several_outputs(when, kwargs, toy):
    "The model finds the labels as likely as it does when it returns its logits alone"
    seen = []
    for wrap in (nn.Identity(), Both):
        plc = Unchecked(.05, warmup=0, when=when)
        loss = loss_of(3, False)
        learn = toy(cbs=[plc, SnapMix(layer='6' if not seen else 'net.6', **kwargs)], loss_func=loss, lr=0.)
        learn.model = wrap(learn.model)
        for m in learn.model.modules():
            if isinstance(m, (nn.BatchNorm2d,nn.Dropout)): m.eval(); m.train = lambda *_: None
        with suppress(CancelFitException): learn.fit(1, cbs=NoValidation())
        seen.append(plc.labels)
    assert seen[0].p_given.notna().all()
    pd.testing.assert_frame_equal(*seen)

class OneClass(nn.Module):
    "Is sure of class 0 whatever it sees"
    def __init__(self): super().__init__(); self.bias = nn.Parameter(tensor([9.,0,0]))
    def forward(self, x): return torch.zeros(len(x), 3)+self.bias

@pytest.mark.parametrize('when', ['epoch','batch','pass'])
@pytest.mark.parametrize('mix', [None,CutMix], ids=str)
@pytest.mark.parametrize('kwargs', [{}, dict(drop_last=True, bs=7)], ids=str)
def test_a_model_that_names_one_class_corrects_nothing(when, mix, kwargs):
    plc = ProgressiveLabelCorrection(.5, warmup=0, when=when)
    learn = rows_learner(plc, Rows(n=42), cbs=[mix()] if mix else [], **kwargs)
    learn.model = OneClass()
    said = r'no label was corrected in epoch \d: the model predicts \d\d% of the given labels, always naming .* 33%'
    with pytest.warns(UserWarning, match=said) as w: learn.fit(4)
    assert len([o for o in w if 'no label was corrected' in str(o.message)])==1 and '\n' not in str(w[0].message)
    assert not len(plc.changed) and plc.history.theta.isna().all() and plc.labels.p_given.notna().any()
    unchecked = Unchecked(.5, warmup=0, when=when)
    learn = rows_learner(unchecked, Rows(n=42), cbs=[mix()] if mix else [], **kwargs)
    learn.model = OneClass()
    with pytest.warns(UserWarning, match='21 of 42 labels differ .* max_change=0.5') as w: learn.fit(4)
    assert len(unchecked.changed)==21 and len([o for o in w if 'max_change' in str(o.message)])==1

def test_several_labels_of_a_model_that_always_says_no():
    df = table().assign(label=lambda d: np.where(d.true==0, 'a', ''))
    class No(nn.Module):
        def __init__(self): super().__init__(); self.b = nn.Parameter(torch.zeros(3))
        def forward(self, x): return torch.full((len(x),3), -9.)+self.b
    plc = ProgressiveLabelCorrection(.5, warmup=0)
    learn = table_learner(df, plc, multi=True, model=No())
    with pytest.warns(UserWarning, match='predicts 88% of the given labels, always naming the commonest class 88%'):
        learn.fit(2)
    assert not len(plc.changed)

@pytest.mark.parametrize('when', ['epoch','batch','pass'])
@pytest.mark.parametrize('mix', [None,SnapMix], ids=str)
@pytest.mark.parametrize('copies', [1,2])
def test_a_good_model_corrects_as_without_a_check(when, mix, copies, recwarn):
    learns = []
    for check in (True,False):
        plc = ProgressiveLabelCorrection((.7,.3), warmup=1, when=when, check_model=check)
        learn = table_learner(table(wrong=range(0,48,5)), plc, [*range(40)]+[5,17]*(copies-1),
            cbs=[mix()] if mix else [], model=PixelModel())
        set_seed(0)
        learn.fit(3)
        learns.append(plc)
    a,b = learns
    assert len(a.changed)==8 and not [o for o in recwarn if 'correct' in str(o.message)]
    pd.testing.assert_frame_equal(a.labels, b.labels)
    pd.testing.assert_frame_equal(a.history, b.history)

class PixelModel(nn.Module):
    "Predicts the true class that pictures hold; with spatial features"
    def __init__(self):
        super().__init__()
        self.conv,self.pool,self.head = nn.Conv2d(3, 3, 1),nn.AdaptiveAvgPool2d(1),nn.Linear(3, 3)
        with torch.no_grad():
            # a peak for each class at its own value
            self.conv.weight.zero_(), self.conv.bias.zero_()
            for k in range(3): self.conv.weight[k,1],self.conv.bias[k] = 2.*k,-1.*k*k
            self.head.weight.copy_(torch.eye(3)*9), self.head.bias.zero_()
    def forward(self, x): return self.head(self.pool(self.conv(x)).flatten(1))

def test_a_batchwise_correction_waits_for_an_epoch_that_shows_what_the_model_knows():
    plc = ProgressiveLabelCorrection(.5, warmup=0, when='batch')
    learn = rows_learner(plc)
    learn.fit(2)
    assert plc.history.corrected.tolist()==[0,4] and plc.history.theta.isna().tolist()==[True,False]
    learn.fit(1) # what is known stays from fit to fit
    assert plc.history.theta.tolist()[2]==.5
    learn.model = OneClass() # its last epoch was good
    with pytest.warns(UserWarning, match='no label was corrected in epoch 5'): learn.fit(2)
    assert plc.history.theta.isna().tolist()==[True,False,False,False,True]

@pytest.mark.parametrize('when', ['epoch','batch'])
def test_what_is_known_of_the_model_is_kept(when, tmp_path):
    "Killed in the second epoch and run again: as without the break; and by a file"
    class Stop(Callback):
        order,on = 90,False
        def after_loss(self):
            if self.on and self.training and self.learn.epoch==1: raise KeyboardInterrupt
    def make(on=False):
        Stop.on = on
        set_seed(0)
        return rows_learner(ProgressiveLabelCorrection(.5, warmup=0, when=when), cbs=[Stop()])
    whole = make()
    with resumable(whole, tmp_path/'whole'): whole.fit(3)
    with pytest.raises(KeyboardInterrupt), resumable(learn := make(True), tmp_path/'run'): learn.fit(3)
    first = learn.progressive_label_correction
    first.save(tmp_path/'labels')
    with resumable(learn := make(), tmp_path/'run'): learn.fit(3)
    want,got = whole.progressive_label_correction,learn.progressive_label_correction
    pd.testing.assert_frame_equal(got.labels, want.labels)
    pd.testing.assert_frame_equal(got.history, want.history)
    assert got.ledger.agreement==want.ledger.agreement
    again = ProgressiveLabelCorrection(.5, warmup=0, when=when)
    again.load(tmp_path/'labels')
    assert again.ledger.agreement==first.ledger.agreement and again.ledger.beats_commonest

def test_predictions_that_are_no_numbers(recwarn):
    "A network that has diverged says nothing of the labels"
    plc = ProgressiveLabelCorrection(.5, warmup=0)
    learn = rows_learner(plc)
    learn.model = OneClass()
    learn.model.bias.data.fill_(torch.nan)
    learn.fit(2)
    assert not len(plc.changed) and plc.ledger.agreement is None and plc.history.theta.isna().all()

def test_the_cap_is_told_once_in_a_fit(recwarn):
    def told(): return [str(o.message) for o in recwarn if 'max_change' in str(o.message)]
    plc = ProgressiveLabelCorrection(.5, warmup=0, max_change=.1)
    learn = rows_learner(plc, Rows(wrong=range(0,40,4)))
    learn.fit(3)
    assert len(plc.changed)==4 and len(told())==1 and told()[0].startswith('4 of 40 labels differ')
    with pytest.warns(UserWarning, match='4 of 40 labels differ'): learn.fit(1)
    rows_learner(ProgressiveLabelCorrection(.5, warmup=0, max_change=.3), Rows(wrong=range(0,40,4))).fit(3)
    rows_learner(Unchecked(.5, warmup=0, max_change=1.), Rows(wrong=range(40))).fit(1)
    assert len(told())==1
