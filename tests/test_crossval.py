"Every row once, by the model that has not seen it; what is refused."
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.vision.all import Callback, ColReader, IndexSplitter, nn
from fastprogress.fastprogress import progress_bar
from filelock import FileLock
from sklearn.metrics import log_loss
from fastai_mix import crossval
from fastai_mix.callback.plc import ProgressiveLabelCorrection
from fastai_mix.crossval import CrossVal, fill_sample
from fastai_mix.data.folds import FoldSplitter
from fastai_mix.data.suspects import suspects
from fastai_mix.interpret import Scores
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
    assert len(cv.history)==3 and set(cv.history.fold)=={0,1,2} and list(cv.timings.index)==[0,1,2]
    assert (cv.timings>0).all().all()

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
    assert list(cv.oof.columns)==[3,4,5,6] and cv.vocab==[3,4,5,6]
    assert cv.scores.accuracy['pooled']==(cv.oof.idxmax(axis=1)==df.label).mean()

def test_a_block_and_a_name(df, leaves, tmp_path):
    b = block(leaves, FoldSplitter(0, oversample={'multiple_diseases':3}, check=False))
    cv = CrossVal(df, b, 'resnet10t', tmp_path/'run', bs=5, num_workers=0)
    assert cv.get_dls(df, 1).bs==5
    train = cv.get_dls(df, 2).train.items
    assert set(train.fold)=={0,1}
    assert (train.label=='multiple_diseases').sum()==3*((df.label=='multiple_diseases')&(df.fold!=2)).sum()
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
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context('spawn'), initializer=torch.set_num_threads,
            initargs=(1,)) as ex:
        there = CrossVal(df, Data(leaves), small_learner,
            tmp_path/'there').fit(lambda learn: learn.fine_tune(2, 1e-2), folds=[1], executor=ex)
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
    assert not run.done(0)
    assert [o.name for o in (tmp_path/'stopped'/'fold_0'/'checkpoints').iterdir()]==['fit0.safetensors']
    with pytest.raises(ValueError, match='n_epoch=3 then, n_epoch=1 now'): run.fit(one)
    Stop.at = None
    run.fit(three)
    whole = CrossVal(df, get_dls, partial(tiny, cbs=Stop), tmp_path/'whole').fit(three)
    assert run.oof.equals(whole.oof) and run.history.drop(columns='time').equals(whole.history.drop(columns='time'))
    assert not list(tmp_path.rglob('checkpoints')) and not list(tmp_path.rglob('.*.part'))
    assert not list(tmp_path.rglob('holder.txt'))

def test_folds_must_be_trained_alike(df, get_dls, tmp_path):
    run = CrossVal(df, get_dls, tiny, tmp_path/'run').fit(one, folds=[0])
    def two(learn):
        with learn.no_bar(), learn.no_logging(): learn.fit(2, 1e-2)
    with pytest.raises(ValueError, match='fit 0 has 2 epochs, but others before had fits of 1'): run.fit(two)

def test_labels_of_a_correcting_callback_are_kept(df, get_dls, tmp_path):
    class Corrects(Callback):
        @property
        def labels(self): return pd.DataFrame({'label':['rust'], 'was':['scab']},
                index=pd.Index(['Train_3'], name='image_id'))
    run = CrossVal(df, get_dls, partial(tiny, cbs=Corrects), tmp_path/'run').fit(one)
    assert run.labels.to_dict('list')=={'image_id':['Train_3']*3, 'label':['rust']*3, 'was':['scab']*3, 'fold':[0,1,2]}

def test_labels_come_back_as_they_were(df, get_dls, leaves, tmp_path):
    class Corrects(Callback):
        @property
        def labels(self): return pd.DataFrame({'given':['NA','1'], 'current':['1','NA'], 'when':[np.nan,1.]},
                index=pd.Index(['003','004'], name='row'))
    df = df.assign(label=np.where(df.label=='healthy', 'NA', '1'),
        index=[f'{i:03}' for i in range(60)]).set_index('index')
    df.attrs = {}
    run = CrossVal(df, get_dls, partial(tiny, cbs=Corrects), tmp_path/'run').fit(one)
    t = run.labels
    assert t.row.tolist()==['003','004']*3 and t.given.tolist()==['NA','1']*3 and t.current.tolist()==['1','NA']*3
    assert t.when.isna().sum()==3
    run = CrossVal(df.assign(label=(df.label=='NA').astype(int)).reset_index(drop=True), get_dls,
        partial(tiny, cbs=Corrects), tmp_path/'ints').fit(one)
    assert run.vocab==[0,1] and {type(o) for o in run.vocab}=={int} and run.labels.current.tolist()==[1,'NA']*3

def test_corrected_rows_keep_their_names(df, leaves, tmp_path):
    df = df.assign(file=df.image_id, image_id=[f'{i:03}' for i in range(60)])
    b = block(leaves, get_x=ColReader('file', pref=leaves/'images', suff='.jpg'))
    for id_col in ('image_id',None):
        t = CrossVal(df, b, lambda dls: tiny(dls, cbs=ProgressiveLabelCorrection(id_col=id_col)),
            tmp_path/f'{id_col}', bs=8, num_workers=0).fit(one).labels
        for k in range(3):
            assert t.row[t.fold==k].tolist()==(df.image_id if id_col else df.index.to_series())[df.fold!=k].tolist()

def test_no_labels(cv):
    with pytest.raises(ValueError, match='no callback'): cv.labels

def test_a_loss_without_activation(df, get_dls, tmp_path):
    run = CrossVal(df, get_dls, partial(tiny, loss_func=nn.CrossEntropyLoss()), tmp_path/'run').fit(one)
    assert np.abs(run.oof.sum(axis=1)-1).max()<1e-5
    assert np.abs(run.predict(df[['image_id']]).sum(axis=1)-1).max()<1e-5

wrong = {
    'no label column': (dict(label_col='labels'), "no column 'labels'"),
    'no fold column':  (dict(fold_col='split'), "no column 'split'"),
    'no id column':    (dict(id_col='name'), "no column 'name'"),
    'ids twice':       (dict(id_col='label'), 'stands for several rows'),
    'text folds':      (dict(change=lambda d: d.assign(fold=d.fold.astype(str))), 'expected whole numbers'),
    'missing folds':   (dict(change=lambda d: d.assign(fold=d.fold.astype('Int64').where(d.fold>0))),
        "of 60 rows have no fold in 'fold'"),
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
    def split(splitter, change=lambda d: d, **kw):
        return lambda d, k: block(leaves, splitter(d, k), **kw).dataloaders(change(d), bs=8, num_workers=0,
            device='cpu')
    def held(d, k): return np.flatnonzero(d.fold==k)
    def refused(f, match):
        with pytest.raises(ValueError, match=match) as e: CrossVal(df, f, tiny, tmp_path/'run').fit(one)
        assert '\n' not in str(e.value) and not list((tmp_path/'run').rglob('checkpoints'))
    refused(split(lambda d, k: IndexSplitter(held(d, k)[:-2])), '2 are missing .*and 0 too many')
    refused(split(lambda d, k: IndexSplitter([*held(d, k), *held(d, k+1)[:3]])), '0 are missing .*and 3 too many')
    refused(split(lambda d, k: (lambda _: (list(range(len(d))), held(d, k).tolist()))),
        'trains on 20 rows that it validates on')
    refused(split(lambda d, k: IndexSplitter(held(d, k)), lambda d: d.assign(image_id=d.image_id.values[::-1])),
        'are missing')
    refused(split(lambda d, k: IndexSplitter(held(d, k)),
        lambda d: d.assign(label=d.label.replace('multiple_diseases','scab'))),
        "do not know the label multiple_diseases")
    refused(split(lambda d, k: IndexSplitter(held(d, k)), lambda d: d.assign(label=[*d.label[1:], d.label[0]])),
        'rows have another label in the DataLoaders')
    refused(lambda d, k: get_dls(d.assign(label=d.label.replace('rust','')), k),
        "a class is called '': give it another name")
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine'/'thesis.txt').write_text('')
    with pytest.raises(ValueError, match='not a run of CrossVal'): CrossVal(df, get_dls, tiny, tmp_path/'mine')
    run = CrossVal(df, get_dls, tiny, tmp_path/'run2')
    with pytest.raises(ValueError, match='no fold 3'): run.fit(one, folds=[3])
    with pytest.raises(ValueError, match='fit_fn is a int'): run.fit(5)
    with pytest.raises(ValueError, match='fold 0, 1, 2 is not done: call `fit`'): run.oof
    with pytest.raises(ValueError, match='fold 0 is not done'): run.learner(0)

def test_processes_of_one_model_do_not_part(df, get_dls, tmp_path, monkeypatch):
    run = CrossVal(df, get_dls, tiny, tmp_path/'run')
    (run.path/'fold_0').mkdir()
    monkeypatch.setattr(crossval, 'num_distrib', lambda: 2)
    with FileLock(run.path/'fold_0'/'.lock'), pytest.raises(ValueError, match='need the folder to themselves'):
        run.fit(one, folds=[0])

def test_a_network_that_diverged_is_not_done(df, get_dls, tmp_path):
    class Boom(Callback):
        def after_fit(self):
            with torch.no_grad(): next(self.learn.model.parameters()).fill_(float('nan'))
    run = CrossVal(df, get_dls, partial(tiny, cbs=Boom), tmp_path/'run')
    with pytest.raises(ValueError, match='fold_0 predicts NaN.*lower learning rate'): run.fit(one)
    assert not run.done(0)

def test_an_index_of_several_levels(df, get_dls, tmp_path):
    tall = df.set_axis(pd.MultiIndex.from_arrays([['a','b']*30, range(60)]))
    cv = CrossVal(tall, get_dls, lambda dls: tiny(dls, cbs=ProgressiveLabelCorrection()), tmp_path/'run').fit(one)
    assert cv.oof.index.equals(tall.index) and cv.oof.notna().all().all()
    for k in cv.folds: assert set(cv.labels.row[cv.labels.fold==k])==set(tall.index[tall.fold!=k])
    tall.attrs = {}
    with pytest.raises(ValueError, match='the index has 2 levels.*give id_col') as e:
        CrossVal(tall, get_dls, tiny, tmp_path/'other')
    assert '\n' not in str(e.value) and not (tmp_path/'other').exists()
    with pytest.raises(ValueError, match='the index has 2 levels'):
        fill_sample(pd.DataFrame({'id':['a'], 'x':0., 'y':0.}), pd.DataFrame(0., tall.index, ['x','y']))

lost = ['a\r','a\rb','\ra','bl\udce4tt.jpg']

@pytest.mark.parametrize('name', lost)
@pytest.mark.parametrize('at', [0,17,59])
def test_a_name_that_no_file_keeps(name, at, df, get_dls, tmp_path):
    row = df.index==at
    for d,what in ((df.assign(image_id=[name if o else i for o,i in zip(row, df.image_id)]), 'identity'),
            (df.assign(label=[name if o else i for o,i in zip(row, df.label)]), 'class')):
        with pytest.raises(ValueError, match=f'the {what} .* does not come back from a CSV file') as e:
            CrossVal(d, get_dls, tiny, tmp_path/'run')
        assert '\n' not in str(e.value) and '\r' not in str(e.value) and str(e.value).encode()
        assert repr(name) in str(e.value) and not (tmp_path/'run').exists()

kept = ['a ','a',' a','A','a\n','a\r\nb','"a"','a,b','','NA','nan','None','007','7','\ufeffa','ä','a\u2028','#a']

def test_names_that_are_much_alike_stay_apart(df, get_dls, leaves, tmp_path):
    ids = [*kept, *(f'row{i}' for i in range(60-len(kept)))]
    df = df.assign(file=df.image_id, image_id=ids,
        label=df.label.replace({'rust':'rust ', 'scab':'rust', 'healthy':'NA'}))
    b = block(leaves, get_x=ColReader('file', pref=leaves/'images', suff='.jpg'))
    cv = CrossVal(df, b, lambda dls: tiny(dls, cbs=ProgressiveLabelCorrection(id_col='image_id')), tmp_path/'run',
        bs=8, num_workers=0, device='cpu').fit(one)
    cv = CrossVal(df.sample(frac=1, random_state=0), b, tiny, tmp_path/'run', bs=8, num_workers=0, device='cpu')
    oof = cv.oof.set_axis(cv.df.image_id)
    assert set(cv.vocab)==set(df.label.unique()) and list(oof.columns)==cv.vocab
    for k in cv.folds:
        learn,rows = cv.learner(k),df[df.fold==k]
        with learn.no_bar(): want = learn.get_preds(dl=learn.dls.test_dl(rows))[0].numpy()
        assert np.abs(oof.loc[rows.image_id].values-want).max()<1e-6
        t = cv.labels[cv.labels.fold==k]
        assert set(t.row)==set(df.image_id[df.fold!=k])
        assert (df.set_index('image_id').label[t.row].values==t.given.values).all()
    sample = pd.DataFrame({'image_id':ids[::-1], **{c:0. for c in cv.vocab}})
    sub = cv.submission(sample, df, file=tmp_path/'sub.csv')
    preds = cv.predict(df).set_axis(ids)
    assert np.allclose(sub[cv.vocab].values, preds.loc[ids[::-1], cv.vocab].values)
    back = pd.read_csv(tmp_path/'sub.csv', keep_default_na=False, dtype={'image_id':str})
    assert back.image_id.tolist()==ids[::-1] and list(back)==list(sample)
    labels = cv.submission(sample[['image_id']].assign(what=''), df, file=None)
    assert labels.what.tolist()==preds.idxmax(axis=1)[ids[::-1]].tolist()

def test_labels_that_are_the_same_as_text(df, get_dls, tmp_path):
    with pytest.raises(ValueError, match="two classes are '1' as text"):
        CrossVal(df.assign(label=[1,'1','x']*20), get_dls, tiny, tmp_path/'run')

def test_suspects_are_those_of_the_out_of_fold_probabilities(tmp_path, df, get_dls):
    df = df.set_index(pd.Index([f'row{i}' for i in range(len(df))])).sample(frac=1, random_state=1)
    df.loc[df.index[:2], 'fold'] = -1
    cv = CrossVal(df, get_dls, tiny, tmp_path, id_col='image_id').fit(one)
    validated = df[df.fold>=0]
    expected = suspects(cv.oof.loc[validated.index].to_numpy(float), validated.label, cv.vocab)
    pd.testing.assert_frame_equal(cv.suspects(), expected)
    assert cv.suspects.__func__ is CrossVal.suspects
