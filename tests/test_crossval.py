"Every row once, by the model that has not seen it; what is refused; ensembles and submissions."
import json
import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.vision.all import (Callback, ColReader, Dihedral, IndexSplitter, Normalize, imagenet_stats, nn, resnet18, vision_learner)
from fastprogress.fastprogress import progress_bar
from filelock import FileLock
from hypothesis import given, settings, strategies as st
from sklearn.metrics import log_loss
from fastai_mix import crossval
from fastai_mix.callback.plc import ProgressiveLabelCorrection
from fastai_mix.crossval import CrossVal, Ensemble, blend, fill_sample, fit_weights, load_ensemble, score_probs, score_table
from fastai_mix.data.folds import FoldSplitter
from fastai_mix.interpret import Scores
from fastai_mix.vision.learner import timm_learner
from fastai_mix.vision.tta import d4
from helpers import block, one, tiny

@pytest.fixture
def cv(df, get_dls, tmp_path): return CrossVal(df, get_dls, tiny, tmp_path/'run').fit(one)

def test_every_row_once_by_a_model_that_has_not_seen_it(cv, df):
    oof = cv.oof
    assert oof.index.equals(df.index) and list(oof.columns)==sorted(df.label.unique()) and oof.notna().all().all()
    for k in cv.folds:
        learn = cv.learner(k)
        assert not set(learn.dls.train.items.image_id) & set(df.image_id[df.fold==k])
        with learn.no_bar(): own = learn.get_preds(dl=learn.dls.test_dl(df[df.fold==k]))[0]
        assert np.abs(oof[df.fold==k].values-own.numpy()).max()<1e-6
    s = cv.scores
    assert list(s.index)==[0,1,2,'pooled','mean','std'] and s.n.tolist()[:4]==[*df.fold.value_counts().sort_index(),60]
    assert abs(s.accuracy['pooled']-(oof.idxmax(axis=1)==df.label).mean())<1e-9
    assert abs(s.log_loss['pooled']-log_loss(df.label, oof/oof.sum(axis=1).values[:,None], labels=list(oof)))<1e-6
    assert Scores(oof.values, df.label.map(cv.vocab.index), cv.vocab).report() in cv.report()
    assert '60 rows' in cv.report() and f"{s.accuracy['mean']:.4f} ± {s.accuracy['std']:.4f}" in cv.report()
    assert len(cv.history)==3 and set(cv.history.fold)=={0,1,2} and list(cv.timings.index)==[0,1,2] and (cv.timings>0).all().all()

def test_order_of_rows_does_not_matter_to_where_they_go(cv, df, get_dls, tmp_path):
    for seed in range(3):
        other = df.sample(frac=1, random_state=seed).reset_index(drop=True)
        oof = CrossVal(other, get_dls, tiny, tmp_path/'run').oof
        assert np.array_equal(oof.set_axis(other.image_id).loc[df.image_id].values, cv.oof.values)
    # and trained on a table in another order, each row still gets its own probabilities
    new = CrossVal(other, get_dls, tiny, tmp_path/'new').fit(one)
    for k in new.folds:
        learn = new.learner(k)
        with learn.no_bar(): own = learn.get_preds(dl=learn.dls.test_dl(other))[0].numpy()
        assert np.abs(own-new.oof.values)[other.fold==k].max()<1e-6

def test_the_callers_table_may_change(df, get_dls, tmp_path):
    cv = CrossVal(df, get_dls, tiny, tmp_path/'run').fit(one)
    was = cv.oof
    df.sort_values('label', inplace=True)
    assert cv.oof.equals(was) and (cv.df.image_id==cv.ids).all()

def test_index_as_identity_and_rows_for_training_only(df, get_dls, tmp_path):
    df = pd.DataFrame(df.drop(columns='fold').assign(fold=df.fold), copy=True)
    df.attrs = {}
    df.index = [f'row{i}' for i in range(60)]
    df.loc[df.index[:5],'fold'] = -1
    cv = CrossVal(df, get_dls, tiny, tmp_path/'run').fit(one)
    assert cv.oof.index.equals(df.index) and cv.oof.isna().all(axis=1).tolist()==[True]*5+[False]*55
    assert cv.scores.n['pooled']==55 and '55 rows' in cv.report()

def test_labels_that_are_numbers(df, get_dls, tmp_path):
    df = df.assign(label=df.label.map({k:i+3 for i,k in enumerate(sorted(df.label.unique()))}))
    cv = CrossVal(df, get_dls, tiny, tmp_path/'run').fit(one)
    assert list(cv.oof.columns)==[3,4,5,6] and cv.vocab==[3,4,5,6] and cv.scores.accuracy['pooled']==(cv.oof.idxmax(axis=1)==df.label).mean()

def test_a_block_and_a_name(df, leaves, tmp_path):
    b = block(leaves, FoldSplitter(0, oversample={'multiple_diseases':3}, check=False))
    cv = CrossVal(df, b, 'resnet10t', tmp_path/'run', bs=5, num_workers=0)
    assert cv.get_dls(df, 1).bs==5
    train = cv.get_dls(df, 2).train.items
    assert set(train.fold)=={0,1} and (train.label=='multiple_diseases').sum()==3*((df.label=='multiple_diseases')&(df.fold!=2)).sum()
    assert cv.get_learner.keywords['arch']=='resnet10t' and b.splitter.__func__.keywords['fold']==0
    plain = CrossVal(df, block(leaves), 'resnet10t', tmp_path/'run2').get_dls(df, 1)
    assert set(plain.valid.items.fold)=={1}

def test_same_in_processes_and_one_after_the_other(cv, df, leaves, tmp_path, monkeypatch):
    from kills import Data, fine_tune, small_learner
    bars = []
    monkeypatch.setattr(crossval, 'progress_bar', lambda *a, **k: bars.append(progress_bar(*a, **k)) or bars[0])
    here = CrossVal(df, Data(leaves), small_learner, tmp_path/'here')
    threads = torch.get_num_threads()
    torch.set_num_threads(1) # sums in another order differ in the last bit
    here.fit(lambda learn: fine_tune(learn.remove_cb(learn.progress)), folds=[1])
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context('spawn'), initializer=torch.set_num_threads, initargs=(1,)) as ex:
        there = CrossVal(df, Data(leaves), small_learner, tmp_path/'there').fit(lambda learn: learn.fine_tune(2, 1e-2), folds=[1], executor=ex)
    torch.set_num_threads(threads)
    assert (here.path/'fold_1'/'oof.csv').read_bytes()==(there.path/'fold_1'/'oof.csv').read_bytes()
    assert bars[0].pred_t and bars[0].last_v is None # begun, and come to its end
    assert not there.done(0)
    with pytest.raises(ValueError, match='fold 0, 2 is not done'): there.oof
    with pytest.raises(ValueError, match='ProcessPoolExecutor'), ThreadPoolExecutor() as ex: there.fit(one, executor=ex)

def test_the_callers_random_state_is_left_alone(df, get_dls, tmp_path):
    torch.manual_seed(7); a = torch.rand(1)
    torch.manual_seed(7); CrossVal(df, get_dls, tiny, tmp_path/'run').fit(one, folds=[0]); b = torch.rand(1)
    assert a==b

def test_interrupted_and_gone_on_with(cv, df, get_dls, tmp_path):
    class Stop(Callback):
        at = 2
        def before_epoch(self):
            if self.epoch==self.at: raise KeyboardInterrupt
    def three(learn):
        with learn.no_bar(), learn.no_logging(): learn.fit(3, 1e-2)
    run = CrossVal(df, get_dls, partial(tiny, cbs=Stop), tmp_path/'stopped')
    with pytest.raises(KeyboardInterrupt): run.fit(three)
    assert not run.done(0) and [o.name for o in (tmp_path/'stopped'/'fold_0'/'checkpoints').iterdir()]==['fit0.safetensors']
    with pytest.raises(ValueError, match='n_epoch=3 then, n_epoch=1 now'): run.fit(one)
    Stop.at = None
    run.fit(three)
    whole = CrossVal(df, get_dls, partial(tiny, cbs=Stop), tmp_path/'whole').fit(three)
    assert run.oof.equals(whole.oof) and run.history.drop(columns='time').equals(whole.history.drop(columns='time'))
    assert not list(tmp_path.rglob('checkpoints')) and not list(tmp_path.rglob('.*.part')) and not list(tmp_path.rglob('holder.txt'))

def test_folds_must_be_trained_alike(df, get_dls, tmp_path):
    run = CrossVal(df, get_dls, tiny, tmp_path/'run').fit(one, folds=[0])
    def two(learn):
        with learn.no_bar(), learn.no_logging(): learn.fit(2, 1e-2)
    with pytest.raises(ValueError, match='fit 0 has 2 epochs, but others before had fits of 1'): run.fit(two)

def test_who_holds_a_fold(df, get_dls, tmp_path, capsys):
    run = CrossVal(df, get_dls, tiny, tmp_path/'run')
    (run.path/'fold_1').mkdir()
    with FileLock(run.path/'fold_1'/'.lock'):
        (run.path/'fold_1'/'holder.txt').write_text('process 7 on elsewhere, since noon')
        run.fit(one)
        assert 'fold 1 is not done: process 7 on elsewhere, since noon is training it' in capsys.readouterr().out
        with pytest.raises(ValueError, match='process 7 on elsewhere, since noon is training fold 1'): run.oof
    assert run.done(0) and run.done(2) and not run.done(1) and run.holder(1) is None
    assert run.fit(one).oof.notna().all().all()

def test_labels_of_a_correcting_callback_are_kept(df, get_dls, tmp_path):
    class Corrects(Callback):
        @property
        def labels(self): return pd.DataFrame({'label':['rust'], 'was':['scab']}, index=pd.Index(['Train_3'], name='image_id'))
    run = CrossVal(df, get_dls, partial(tiny, cbs=Corrects), tmp_path/'run').fit(one)
    assert run.labels.to_dict('list')=={'image_id':['Train_3']*3, 'label':['rust']*3, 'was':['scab']*3, 'fold':[0,1,2]}

def test_labels_come_back_as_they_were(df, get_dls, leaves, tmp_path):
    class Corrects(Callback):
        @property
        def labels(self): return pd.DataFrame({'given':['NA','1'], 'current':['1','NA'], 'when':[np.nan,1.]}, index=pd.Index(['003','004'], name='row'))
    df = df.assign(label=np.where(df.label=='healthy', 'NA', '1'), index=[f'{i:03}' for i in range(60)]).set_index('index')
    df.attrs = {}
    run = CrossVal(df, get_dls, partial(tiny, cbs=Corrects), tmp_path/'run').fit(one)
    t = run.labels
    assert t.row.tolist()==['003','004']*3 and t.given.tolist()==['NA','1']*3 and t.current.tolist()==['1','NA']*3 and t.when.isna().sum()==3
    run = CrossVal(df.assign(label=(df.label=='NA').astype(int)).reset_index(drop=True), get_dls, partial(tiny, cbs=Corrects), tmp_path/'ints').fit(one)
    assert run.vocab==[0,1] and {type(o) for o in run.vocab}=={int} and run.labels.current.tolist()==[1,'NA']*3

def test_corrected_rows_keep_their_names(df, leaves, tmp_path):
    df = df.assign(file=df.image_id, image_id=[f'{i:03}' for i in range(60)])
    b = block(leaves, get_x=ColReader('file', pref=leaves/'images', suff='.jpg'))
    for id_col in ('image_id',None):
        t = CrossVal(df, b, lambda dls: tiny(dls, cbs=ProgressiveLabelCorrection(id_col=id_col)), tmp_path/f'{id_col}', bs=8, num_workers=0).fit(one).labels
        for k in range(3): assert t.row[t.fold==k].tolist()==(df.image_id if id_col else df.index.to_series())[df.fold!=k].tolist()

def test_no_labels(cv):
    with pytest.raises(ValueError, match='no callback'): cv.labels

def test_a_loss_without_activation(df, get_dls, tmp_path):
    run = CrossVal(df, get_dls, partial(tiny, loss_func=nn.CrossEntropyLoss()), tmp_path/'run').fit(one)
    assert np.abs(run.oof.sum(axis=1)-1).max()<1e-5
    assert np.abs(run.predict(df[['image_id']]).sum(axis=1)-1).max()<1e-5

changes = {
    'another label': (lambda d: d.assign(label=['rust',*d.label[1:]]), 'have another label|label'),
    'a row less':    (lambda d: d.iloc[1:], '1 rows are gone .Train_0'),
    'a row more':    (lambda d: pd.concat([d, d.iloc[:1].assign(image_id='new')]), '1 rows are new .new'),
    'other folds':   (lambda d: d.assign(fold=(d.fold+1)%3), '60 rows have another fold'),
}
@pytest.mark.parametrize('name', changes)
def test_another_table_is_refused(name, df, get_dls, tmp_path):
    CrossVal(df, get_dls, tiny, tmp_path/'run')
    change,match = changes[name]
    df.loc[0,'label'] = 'scab'
    (tmp_path/'run2').mkdir()
    run = CrossVal(df, get_dls, tiny, tmp_path/'run2')
    with pytest.raises(ValueError, match=match) as e: CrossVal(change(df), get_dls, tiny, tmp_path/'run2')
    assert 'is another run' in str(e.value) and '\n' not in str(e.value)
    with pytest.raises(ValueError, match='seed=0 there, 1 here'): CrossVal(df, get_dls, tiny, tmp_path/'run2', seed=1)
    CrossVal(df.assign(extra=1), get_dls, tiny, tmp_path/'run2')

wrong = {
    'no label column': (dict(label_col='labels'), "no column 'labels'"),
    'no fold column':  (dict(fold_col='split'), "no column 'split'"),
    'no id column':    (dict(id_col='name'), "no column 'name'"),
    'ids twice':       (dict(id_col='label'), 'stands for several rows'),
    'text folds':      (dict(change=lambda d: d.assign(fold=d.fold.astype(str))), 'expected whole numbers'),
    'missing folds':   (dict(change=lambda d: d.assign(fold=d.fold.astype('Int64').where(d.fold>0))), "of 60 rows have no fold in 'fold'"),
    'one fold':        (dict(change=lambda d: d.assign(fold=0)), 'two or more'),
    'negative folds':  (dict(change=lambda d: d.assign(fold=d.fold-3)), 'numbered from 0'),
    'no function':     (dict(get_dls=3), 'get_dls is a int: expected a function get_dls'),
    'unknown':         (dict(bs=8), 'bs: unknown'),
    'a model':         (dict(get_learner=None), 'get_learner is a NoneType'),
}
@pytest.mark.parametrize('name', wrong)
def test_wrong_arguments(name, df, get_dls, tmp_path):
    kwargs,match = dict(wrong[name][0]),wrong[name][1]
    args = {**dict(get_dls=get_dls, get_learner=tiny, path=tmp_path/'run'), **kwargs}
    change = args.pop('change', lambda d: d)
    with pytest.raises(ValueError, match=match) as e: CrossVal(change(df), **args)
    assert '\n' not in str(e.value) and not (tmp_path/'run').exists()

def test_wrong_dls_and_folders(df, leaves, get_dls, tmp_path):
    def split(splitter, change=lambda d: d, **kw): return lambda d, k: block(leaves, splitter(d, k), **kw).dataloaders(change(d), bs=8, num_workers=0, device='cpu')
    def held(d, k): return np.flatnonzero(d.fold==k)
    def refused(f, match):
        with pytest.raises(ValueError, match=match) as e: CrossVal(df, f, tiny, tmp_path/'run').fit(one)
        assert '\n' not in str(e.value) and not list((tmp_path/'run').rglob('checkpoints'))
    refused(split(lambda d, k: IndexSplitter(held(d, k)[:-2])), '2 are missing .*and 0 too many')
    refused(split(lambda d, k: IndexSplitter([*held(d, k), *held(d, k+1)[:3]])), '0 are missing .*and 3 too many')
    refused(split(lambda d, k: (lambda _: (list(range(len(d))), held(d, k).tolist()))), 'trains on 20 rows that it validates on')
    refused(split(lambda d, k: IndexSplitter(held(d, k)), lambda d: d.assign(image_id=d.image_id.values[::-1])), 'are missing')
    refused(split(lambda d, k: IndexSplitter(held(d, k)), lambda d: d.assign(label=d.label.replace('multiple_diseases','scab'))), "do not know the label multiple_diseases")
    refused(split(lambda d, k: IndexSplitter(held(d, k)), lambda d: d.assign(label=[*d.label[1:], d.label[0]])), 'rows have another label in the DataLoaders')
    refused(lambda d, k: get_dls(d.assign(label=d.label.replace('rust','')), k), "a class is called '': give it another name")
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine'/'thesis.txt').write_text('')
    with pytest.raises(ValueError, match='not a run of CrossVal'): CrossVal(df, get_dls, tiny, tmp_path/'mine')
    run = CrossVal(df, get_dls, tiny, tmp_path/'run2')
    with pytest.raises(ValueError, match='no fold 3'): run.fit(one, folds=[3])
    with pytest.raises(ValueError, match='fit_fn is a int'): run.fit(5)
    with pytest.raises(ValueError, match='fold 0, 1, 2 is not done: call `fit`'): run.oof
    with pytest.raises(ValueError, match='fold 0 is not done'): run.learner(0)

def test_scores():
    assert np.isnan(score_probs([[.9,.1],[.8,.2]], [0,0])['auc'])
    assert score_probs([[.9,.1],[.2,.8]], [0,1])=={'n':2, 'accuracy':1., 'macro_f1':1., 'log_loss':pytest.approx(-np.log([.9,.8]).mean()), 'auc':1.}
    t = score_table(np.eye(2)[[0,1,0,0]]*.8+.1, [0,1,0,1], [0,0,1,1])
    assert t.accuracy.tolist()==[1,.5,.75,.75,pytest.approx(.5/2**.5)]

# ensembles

def simplex(rng, *size): return rng.dirichlet(np.ones(size[-1]), size[:-1])

@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(2, 4))
def test_blend_and_weights(seed, k, c):
    rng = np.random.default_rng(seed)
    p,y = simplex(rng, k, 40, c),rng.integers(c, size=40)
    for how in ('mean','gmean'): assert np.allclose(blend(p, how).sum(1), 1)
    assert np.allclose(blend(p), p.mean(0)) and np.allclose(blend(np.repeat(p[:1], 3, 0), 'gmean'), p[0])
    r = blend(p, 'rank')
    assert r.min()>0 and r.max()<=1 and np.allclose(r, blend(p**2, 'rank')) # ranks see only the order
    w = fit_weights(p, y)
    assert np.isclose(w.sum(), 1) and (w>=0).all()
    def loss(w): return -np.log(np.tensordot(w, p, 1)[np.arange(40),y]).mean()
    for other in [*np.eye(k), *rng.dirichlet(np.ones(k), 20)]: assert loss(w)<=loss(other)+1e-6

@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(2, 9), st.integers(1, 60), st.sampled_from([1,2,None]))
def test_scores_are_those_of_scikit_learn(seed, c, n, digits):
    from sklearn.metrics import accuracy_score, f1_score, log_loss, roc_auc_score
    rng = np.random.default_rng(seed)
    p,y = simplex(rng, n+c, c),np.r_[rng.permutation(c), rng.integers(c, size=n)]
    if digits: p = p.round(digits)+.1**digits # many ties
    p[::7] = np.eye(c)[y[::7]] # certain
    got,p = score_probs(p*4, y),p/p.sum(1, keepdims=True)
    auc = roc_auc_score(y, p[:,1]) if c==2 else roc_auc_score(y, p, multi_class='ovr')
    want = dict(n=n+c, accuracy=accuracy_score(y, p.argmax(1)), macro_f1=f1_score(y, p.argmax(1), average='macro'), log_loss=log_loss(y, p, labels=range(c)), auc=auc)
    assert got==pytest.approx(want, abs=1e-12, rel=1e-12)

def test_scores_of_many_classes_take_little_memory():
    import tracemalloc
    n,c = 3000,1000
    rng = np.random.default_rng(0)
    p,y = rng.random((n,c)),np.arange(n)%c
    p[np.arange(n),y] += .5
    tracemalloc.start()
    try:
        s = score_probs(p, y)
        peak = tracemalloc.get_traced_memory()[1]
    finally: tracemalloc.stop()
    assert peak<3*p.nbytes and .8<s['auc']<1

half = [[.5,.5],[.2,.8]]
@pytest.mark.parametrize('probs,y,message', [(half, [-1,0], 'y holds -1: expected class indices from 0 to 1'), (half, [0,2], 'y holds 2'), (half, [0,.5], 'y holds 0.5'),
    (half, [0,np.nan], 'y holds nan'), (half, ['a','b'], 'y holds a: expected class indices'), (half, [0], r'shape \[1\], but there are 2'), (half, [[0],[1]], r'shape \[2, 1\]'),
    (np.zeros((0,2)), [], 'there are no rows'), ([.5,.5], [0,1], r'probs are of shape \[2\]'), ([[1.],[1.]], [0,0], r'probs are of shape \[2, 1\]'),
    ([[.5,.5],[np.nan,1]], [0,1], 'probabilities of row 1 are nan, 1.0: expected'), ([[0,0],[0,1]], [0,1], 'of row 0 are 0.0, 0.0'), ([[2,-1],[0,1]], [0,1], 'of row 0 are 2.0, -1.0'),
    ([[np.inf,1],[0,1]], [0,1], 'of row 0 are inf')])
def test_what_cannot_be_scored(probs, y, message):
    with pytest.raises(ValueError, match=message): score_probs(probs, y)

three = np.full((3,2,2), .5)
@pytest.mark.parametrize('kwargs,message', [(dict(how='median'), "how='median': expected 'mean', 'gmean', 'rank' or 'weights'"), (dict(how=None), 'how=None: expected'),
    *[(dict(weights=w), 'expected a share for each of 3 models, numbers from 0 up that add to 1') for w in ([3,4], [3,4,5], [.5,.5], [1.5,-.5,0], [np.nan,.5,.5], [np.inf,0,0], [.2]*3, [[.5,.25,.25]], 1., [])],
    (dict(probs=three[0]), r'probs are of shape \[2, 2\]: expected \[k, n, c\]'), (dict(probs=three[:0]), r'shape \[0, 2, 2\]: expected')])
def test_what_cannot_be_blended(kwargs, message):
    for how in ('mean','gmean','rank','weights'):
        with pytest.raises(ValueError, match=message): blend(**dict(probs=three, how=how)|kwargs)
    assert np.allclose(blend(three, 'weights', [.3333,.3333,.3334]).sum(1), 1) and np.allclose(blend(three, 'weights'), .5)

def test_an_ensemble_knows_its_weights_before_it_predicts():
    learn = SimpleNamespace(model=None)
    for bad in ([3,4], [1.,0,0], [np.nan,1]):
        with pytest.raises(ValueError, match='expected a share for each of 2 models'): Ensemble([(learn, [None], None)], list('ab'), weights=bad)
    with pytest.raises(ValueError, match="how='median'"): Ensemble([(learn, [], None)], list('ab'), how='median')

@pytest.mark.parametrize('probs,y,message', [(three, [-1,0], 'y holds -1: expected class indices from 0 to 1'), (three, [0,2], 'y holds 2'), (three, [0], r'shape \[1\], but there are 2'),
    (three, [0.5,1], 'y holds 0.5'), (three[0], [0,1], r'expected \[k, n, c\]'), (three*np.nan, [0,1], 'not finite'), (three[:,:0], [], 'there are no rows')])
def test_what_weights_cannot_be_fitted_to(probs, y, message):
    with pytest.raises(ValueError, match=message): fit_weights(probs, y)
    assert np.allclose(fit_weights(three, [1.,0.]), 1/3) and np.allclose(fit_weights(three, [True,False]), 1/3)

def test_weights_by_hand():
    p = np.array([[[.8,.2],[.2,.8]], [[.2,.8],[.8,.2]]])
    assert np.allclose(fit_weights(p, [0,1]), [1,0], atol=1e-6) and np.allclose(fit_weights(p, [0,0]), [.5,.5], atol=1e-6)

def test_ensemble_of_two(cv, df, get_dls, tmp_path):
    def longer(learn):
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(4, 2e-2)
    other = CrossVal(df.sample(frac=1, random_state=0), get_dls, partial(tiny, width=12), tmp_path/'other').fit(longer)
    ens,plain = cv.ensemble(other, how='weights'),cv.ensemble(other)
    y = plain.oof.columns.get_indexer(df.label)
    assert len(ens)==6 and np.isclose(sum(ens.weights), 1) and ens.oof.index.equals(df.index)
    best = log_loss(y, ens.oof.values, labels=range(4))
    assert all(best<=log_loss(y, o.values/o.values.sum(1, keepdims=True), labels=range(4))+1e-6 for o in (plain.oof, cv.oof, other.oof.loc[df.index]))
    test = df[['image_id']].iloc[::3]
    preds = ens.predict(test)
    want = sum(w*g for w,g in zip((sum(ens.weights[:3]),sum(ens.weights[3:])), (cv.predict(test).values,other.predict(test).values)))
    assert np.abs(preds.values-want).max()<1e-5 and preds.index.equals(test.index)
    assert np.abs(cv.predict(test, views=d4).sum(axis=1)-1).max()<1e-5
    with pytest.raises(ValueError, match="pass others"): cv.ensemble(how='weights')
    with pytest.raises(ValueError, match="how='best'"): cv.ensemble(how='best')
    few = CrossVal(df.iloc[:50], get_dls, tiny, tmp_path/'few').fit(one)
    with pytest.raises(ValueError, match='other rows'): cv.ensemble(few)

def test_ensemble_of_what_all_have_validated(df, get_dls, tmp_path):
    df = df.set_axis([*range(30)]*2) # as of two tables, one after the other
    some = df.assign(fold=[-1]*6+df.fold.tolist()[6:])
    a,b = (CrossVal(d, get_dls, tiny, tmp_path/n).fit(one) for n,d in (('a',df), ('b',some)))
    for one_,two in ((a,b), (b,a)):
        ens = one_.ensemble(two, how='weights')
        assert ens.oof.isna().all(axis=1).tolist()==[True]*6+[False]*54 and np.isclose(sum(ens.weights), 1)
        y = ens.oof.columns.get_indexer(df.label[6:])
        assert np.allclose([sum(ens.weights[:3]),sum(ens.weights[3:])], fit_weights([o.oof.values[6:].astype(float) for o in (one_,two)], y))
    assert b.predict(df.iloc[:3]).shape==(3,4)

def test_names_of_any_script_where_files_are_ascii_by_default(tmp_path):
    code = r'''
import sys, pandas as pd
from fastai_mix.crossval import CrossVal
df = pd.DataFrame({'id': [f'bl\u00e4tt_{i}' for i in range(9)], 'label': ['K\u00e4fer','\u7532\u866b','c']*3, 'fold': [0,1,2]*3})
for _ in range(2): cv = CrossVal(df, min, min, sys.argv[1], label_col='label', id_col='id')
'''
    env = dict(os.environ, LC_ALL='C', PYTHONUTF8='0', PYTHONCOERCECLOCALE='0')
    subprocess.run([sys.executable, '-c', code, str(tmp_path/'run')], check=True, env=env)
    assert 'Käfer' in (tmp_path/'run'/'table.csv').read_text(encoding='utf-8')

def test_processes_of_one_model_do_not_part(df, get_dls, tmp_path, monkeypatch):
    run = CrossVal(df, get_dls, tiny, tmp_path/'run')
    (run.path/'fold_0').mkdir()
    monkeypatch.setattr(crossval, 'num_distrib', lambda: 2)
    with FileLock((run.path/'fold_0')/'.lock'), pytest.raises(ValueError, match='need the folder to themselves'): run.fit(one, folds=[0])

def test_a_network_that_diverged_is_not_done(df, get_dls, tmp_path):
    class Boom(Callback):
        def after_fit(self):
            with torch.no_grad(): next(self.learn.model.parameters()).fill_(float('nan'))
    run = CrossVal(df, get_dls, partial(tiny, cbs=Boom), tmp_path/'run')
    with pytest.raises(ValueError, match='fold_0 predicts NaN.*lower learning rate'): run.fit(one)
    assert not run.done(0)

def test_ensemble_of_different_normalization_is_refused(df, leaves, tmp_path):
    b = block(leaves, batch_tfms=Normalize()) # statistics of one batch
    run = CrossVal(df, b, tiny, tmp_path/'run', bs=8, num_workers=0)
    with pytest.warns(UserWarning, match='normalize with different statistics'): run.fit(one)
    assert b.batch_tfms[-1].mean is None and len(run.oof)==60
    with pytest.raises(ValueError, match='normalize with different statistics'): run.ensemble()

def test_submission(cv, df, tmp_path):
    test = df[['image_id']].iloc[:9]
    preds = cv.predict(test)
    sample = pd.DataFrame({'image_id':test.image_id[::-1].values, 'scab':0., 'healthy':0., 'rust':0., 'multiple_diseases':0.})
    sample.to_csv(tmp_path/'sample.csv', index=False)
    sub = cv.submission(tmp_path/'sample.csv', test, file=tmp_path/'sub.csv')
    back = pd.read_csv(tmp_path/'sub.csv')
    assert list(back)==list(sample) and back.image_id.tolist()==sample.image_id.tolist()
    for c in preds: assert np.allclose(back[c], preds[c][::-1])
    assert np.allclose(cv.submission(sample, file=None).scab, sub.scab) # the sample's names are enough to find the pictures
    numbers = pd.DataFrame({'id': [1,0], 0: 0., 1: 0.})
    assert fill_sample(numbers, pd.DataFrame([[.2,.8],[.4,.6]], [0,1], ['0','1'])).to_numpy().tolist()==[[1,.4,.6],[0,.2,.8]]
    for name in ('s.csv.gz','s.zip'):
        cv.submission(sample, test, file=tmp_path/name)
        pd.testing.assert_frame_equal(pd.read_csv(tmp_path/name), back)
    with pytest.raises(ValueError, match="prob_of='rust' puts its probability there"): cv.submission(sample[['image_id','rust']], test, file=None)
    one_col = sample[['image_id']].assign(label='')
    assert cv.submission(one_col, test, file=None).label.tolist()==preds.idxmax(axis=1).tolist()[::-1]
    assert np.allclose(cv.submission(one_col, test, file=None, prob_of='rust').label, preds.rust[::-1])
    for kwargs,match in ((dict(sample=sample.rename(columns={'rust':'rost'})), "columns rost are no classes"), (dict(sample=sample, test_df=test.iloc[1:]), 'lacks 1 rows of the sample'),
        (dict(sample=sample, test_df=pd.concat([test, test.iloc[:1]])), '1 twice'), (dict(sample=sample, test_df=test.rename(columns={'image_id':'id'})), "no column 'image_id'"),
        (dict(sample=sample[['image_id']]), 'only the column'), (dict(sample=one_col, prob_of='none'), "prob_of='none'"), (dict(sample=one_col, how='rank'), 'ranks make no labels'),
        (dict(sample=sample, file=tmp_path/'none'/'x.csv'), 'no folder .*none')):
        with pytest.raises(ValueError, match=match) as e: cv.submission(**{**dict(test_df=test, file=None), **kwargs})
        assert '\n' not in str(e.value)

@pytest.mark.parametrize('make', [partial(vision_learner, arch='resnet10t', pretrained=False), partial(vision_learner, arch=resnet18, pretrained=False),
                                  partial(timm_learner, arch='resnet10t', pretrained=False)], ids=['vision_learner','torchvision','timm_learner'])
def test_export_by_name(make, df, leaves, get_dls, tmp_path):
    df = df.assign(fold=df.fold.clip(upper=1))
    cv = CrossVal(df, partial(get_dls, batch_tfms=[Dihedral(), Normalize.from_stats(*imagenet_stats)]), make, tmp_path/'run').fit(one)
    ens = cv.ensemble(how='gmean')
    ens.export(tmp_path/'out')
    assert sorted(o.name for o in (tmp_path/'out').iterdir())==['ensemble.json','group0_net0.safetensors','group0_net1.safetensors']
    loaded = load_ensemble(tmp_path/'out')
    files = [leaves/'images'/f'{o}.jpg' for o in df.image_id[:7]]
    assert np.abs(loaded.predict(files).values-ens.predict(df.iloc[:7]).values).max()<1e-5
    assert np.abs(loaded.predict(files, views=d4).values-ens.predict(df.iloc[:7], views=d4).values).max()<1e-5
    table = df.iloc[:7].assign(path=files)
    sample = pd.DataFrame({'image_id':table.image_id[::-1].values, **{c:0. for c in loaded.vocab}})
    assert np.abs(loaded.submission(sample, table, file=None)[loaded.vocab].values[::-1]-ens.predict(table).values).max()<1e-5
    with pytest.raises(ValueError, match="no column 'path'"): loaded.predict(df.iloc[:7])

def test_export_that_needs_functions(cv, df, get_dls, leaves, tmp_path):
    ens = cv.ensemble()
    ens.export(tmp_path/'out')
    with pytest.raises(ValueError, match='without get_model.*does not tell the name'): load_ensemble(tmp_path/'out')
    with pytest.raises(ValueError, match='no ensemble.json'): load_ensemble(tmp_path)
    loaded = load_ensemble(tmp_path/'out', get_model=lambda: tiny(get_dls(df, 0)).model)
    files = [leaves/'images'/f'{o}.jpg' for o in df.image_id[:7]]
    assert np.abs(loaded.predict(files).values-ens.predict(df.iloc[:7]).values).max()<1e-5
    odd = CrossVal(df, get_dls, partial(vision_learner, arch='resnet10t', pretrained=False, concat_pool=False), tmp_path/'odd')
    odd.fit(one)
    odd.ensemble().export(tmp_path/'out2')
    g = json.loads((tmp_path/'out2'/'ensemble.json').read_text())['groups'][0]
    assert 'is not this network' in g['net'] and g['input']['size']==[32,32]
