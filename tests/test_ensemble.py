"Blends and their weights, ensembles of folds, submissions, exports."
import json, os, time
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from fastai.vision.all import Dihedral, Normalize, imagenet_stats, resnet18, vision_learner
from hypothesis import given, settings, strategies as st
from sklearn.metrics import log_loss
from fastai_mix.crossval import CrossVal
from fastai_mix.ensemble import Ensemble, blend, fill_sample, fit_weights, load_ensemble
from fastai_mix.vision.learner import timm_learner
from fastai_mix.vision.tta import d4
from helpers import block, one, tiny

@pytest.fixture
def cv(df, get_dls, tmp_path): return CrossVal(df, get_dls, tiny, tmp_path/'run').fit(one)

@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(2, 4))
def test_blend_and_weights(seed, k, c):
    rng = np.random.default_rng(seed)
    p,y = rng.dirichlet(np.ones(c), (k,40)),rng.integers(c, size=40)
    for how in ('mean','gmean'): assert np.allclose(blend(p, how).sum(1), 1)
    assert np.allclose(blend(p), p.mean(0)) and np.allclose(blend(np.repeat(p[:1], 3, 0), 'gmean'), p[0])
    r = blend(p, 'rank')
    assert r.min()>0 and r.max()<=1 and np.allclose(r, blend(p**2, 'rank')) # ranks see only the order
    w = fit_weights(p, y)
    assert np.isclose(w.sum(), 1) and (w>=0).all()
    def loss(w): return -np.log(np.tensordot(w, p, 1)[np.arange(40),y]).mean()
    for other in [*np.eye(k), *rng.dirichlet(np.ones(k), 20)]: assert loss(w)<=loss(other)+1e-6

three = np.full((3,2,2), .5)

@pytest.mark.parametrize('kwargs,message',
    [(dict(how='median'), "how='median': expected 'mean', 'gmean', 'rank' or 'weights'"),
        (dict(how=None), 'how=None: expected'),
    *[(dict(weights=w), 'expected a share for each of 3 models, numbers from 0 up that add to 1')
        for w in ([3,4], [3,4,5], [.5,.5], [1.5,-.5,0], [np.nan,.5,.5], [np.inf,0,0], [.2]*3, [[.5,.25,.25]], 1., [])],
    (dict(probs=three[0]), r'probs are of shape \[2, 2\]: expected \[k, n, c\]'),
    (dict(probs=three[:0]), r'shape \[0, 2, 2\]: expected')])
def test_what_cannot_be_blended(kwargs, message):
    for how in ('mean','gmean','rank','weights'):
        with pytest.raises(ValueError, match=message): blend(**dict(probs=three, how=how)|kwargs)
    assert np.allclose(blend(three, 'weights', [.3333,.3333,.3334]).sum(1), 1)
    assert np.allclose(blend(three, 'weights'), .5)

def test_an_ensemble_knows_its_weights_before_it_predicts():
    learn = SimpleNamespace(model=None)
    for bad in ([3,4], [1.,0,0], [np.nan,1]):
        with pytest.raises(ValueError, match='expected a share for each of 2 models'):
            Ensemble([(learn, [None], None)], list('ab'), weights=bad)
    with pytest.raises(ValueError, match="how='median'"): Ensemble([(learn, [], None)], list('ab'), how='median')

@pytest.mark.parametrize('probs,y,message',
    [(three, [-1,0], 'y holds -1: expected class indices from 0 to 1'), (three, [0,2], 'y holds 2'),
        (three, [0], r'shape \[1\], but there are 2'),
    (three, [0.5,1], 'y holds 0.5'), (three[0], [0,1], r'expected \[k, n, c\]'), (three*np.nan, [0,1], 'not finite'),
    (three[:,:0], [], 'there are no rows')])
def test_what_weights_cannot_be_fitted_to(probs, y, message):
    with pytest.raises(ValueError, match=message): fit_weights(probs, y)
    assert np.allclose(fit_weights(three, [1.,0.]), 1/3) and np.allclose(fit_weights(three, [True,False]), 1/3)

def test_weights_by_hand():
    p = np.array([[[.8,.2],[.2,.8]], [[.2,.8],[.8,.2]]])
    assert np.allclose(fit_weights(p, [0,1]), [1,0], atol=1e-6)
    assert np.allclose(fit_weights(p, [0,0]), [.5,.5], atol=1e-6)

def test_ensemble_of_two(cv, df, get_dls, tmp_path):
    def longer(learn):
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(4, 2e-2)
    other = CrossVal(df.sample(frac=1, random_state=0), get_dls, partial(tiny, width=12), tmp_path/'other').fit(longer)
    ens,plain = cv.ensemble(other, how='weights'),cv.ensemble(other)
    y = plain.oof.columns.get_indexer(df.label)
    assert len(ens)==6 and np.isclose(sum(ens.weights), 1) and ens.oof.index.equals(df.index)
    best = log_loss(y, ens.oof.values, labels=range(4))
    assert all(best<=log_loss(y, o.values/o.values.sum(1, keepdims=True), labels=range(4))+1e-6
        for o in (plain.oof, cv.oof, other.oof.loc[df.index]))
    test = df[['image_id']].iloc[::3]
    preds = ens.predict(test)
    want = sum(w*g for w,g in zip((sum(ens.weights[:3]),sum(ens.weights[3:])),
        (cv.predict(test).values,other.predict(test).values)))
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
        assert np.allclose([sum(ens.weights[:3]),sum(ens.weights[3:])],
            fit_weights([o.oof.values[6:].astype(float) for o in (one_,two)], y))
    assert b.predict(df.iloc[:3]).shape==(3,4)

def test_ensemble_of_different_normalization_is_refused(df, leaves, tmp_path):
    b = block(leaves, batch_tfms=Normalize()) # statistics of one batch
    run = CrossVal(df, b, tiny, tmp_path/'run', bs=8, num_workers=0)
    with pytest.warns(UserWarning, match='normalize with different statistics'): run.fit(one)
    assert b.batch_tfms[-1].mean is None and len(run.oof)==60
    with pytest.raises(ValueError, match='normalize with different statistics'): run.ensemble()

def test_submission(cv, df, tmp_path):
    test = df[['image_id']].iloc[:9]
    preds = cv.predict(test)
    sample = pd.DataFrame({'image_id':test.image_id[::-1].values, 'scab':0., 'healthy':0., 'rust':0.,
        'multiple_diseases':0.})
    sample.to_csv(tmp_path/'sample.csv', index=False)
    sub = cv.submission(tmp_path/'sample.csv', test, file=tmp_path/'sub.csv')
    back = pd.read_csv(tmp_path/'sub.csv')
    assert list(back)==list(sample) and back.image_id.tolist()==sample.image_id.tolist()
    for c in preds: assert np.allclose(back[c], preds[c][::-1])
    # the sample's names are enough to find the pictures
    assert np.allclose(cv.submission(sample, file=None).scab, sub.scab)
    numbers = pd.DataFrame({'id': [1,0], 0: 0., 1: 0.})
    filled = fill_sample(numbers, pd.DataFrame([[.2,.8],[.4,.6]], [0,1], ['0','1']))
    assert filled.to_numpy().tolist()==[[1,.4,.6],[0,.2,.8]]
    for name in ('s.csv.gz','s.zip'):
        cv.submission(sample, test, file=tmp_path/name)
        pd.testing.assert_frame_equal(pd.read_csv(tmp_path/name), back)
    with pytest.raises(ValueError, match="prob_of='rust' puts its probability there"):
        cv.submission(sample[['image_id','rust']], test, file=None)
    one_col = sample[['image_id']].assign(label='')
    assert cv.submission(one_col, test, file=None).label.tolist()==preds.idxmax(axis=1).tolist()[::-1]
    assert np.allclose(cv.submission(one_col, test, file=None, prob_of='rust').label, preds.rust[::-1])
    for kwargs,match in ((dict(sample=sample.rename(columns={'rust':'rost'})), "columns rost are no classes"),
            (dict(sample=sample, test_df=test.iloc[1:]), 'lacks 1 rows of the sample'),
        (dict(sample=sample, test_df=pd.concat([test, test.iloc[:1]])), '1 rows more than once'),
        (dict(sample=sample, test_df=test.rename(columns={'image_id':'id'})), "no column 'image_id'"),
        (dict(sample=sample[['image_id']]), 'only the column'),
        (dict(sample=one_col, prob_of='none'), "prob_of='none'"),
        (dict(sample=one_col, how='rank'), 'ranks make no labels'),
        (dict(sample=sample, file=tmp_path/'none'/'x.csv'), 'no folder .*none')):
        with pytest.raises(ValueError, match=match) as e: cv.submission(**{**dict(test_df=test, file=None), **kwargs})
        assert '\n' not in str(e.value)

makers = {
    'vision_learner': partial(vision_learner, arch='resnet10t', pretrained=False),
    'torchvision':    partial(vision_learner, arch=resnet18, pretrained=False),
    'timm_learner':   partial(timm_learner, arch='resnet10t', pretrained=False),
}
@pytest.mark.parametrize('make', makers.values(), ids=makers)
def test_export_by_name(make, df, leaves, get_dls, tmp_path):
    df = df.assign(fold=df.fold.clip(upper=1))
    cv = CrossVal(df, partial(get_dls, batch_tfms=[Dihedral(), Normalize.from_stats(*imagenet_stats)]), make,
        tmp_path/'run').fit(one)
    ens = cv.ensemble(how='gmean')
    left = tmp_path/'out'/'.group0_net0.safetensors.0123abcd.part' # by a process that was killed two hours ago
    left.parent.mkdir()
    left.touch()
    os.utime(left, (time.time()-7200,)*2)
    ens.export(tmp_path/'out')
    names = ['ensemble.json','group0_net0.safetensors','group0_net1.safetensors']
    assert sorted(o.name for o in (tmp_path/'out').iterdir())==names
    loaded = load_ensemble(tmp_path/'out')
    files = [leaves/'images'/f'{o}.jpg' for o in df.image_id[:7]]
    assert np.abs(loaded.predict(files).values-ens.predict(df.iloc[:7]).values).max()<1e-5
    assert np.abs(loaded.predict(files, views=d4).values-ens.predict(df.iloc[:7], views=d4).values).max()<1e-5
    table = df.iloc[:7].assign(path=files)
    sample = pd.DataFrame({'image_id':table.image_id[::-1].values, **{c:0. for c in loaded.vocab}})
    sub = loaded.submission(sample, table, file=None)[loaded.vocab]
    assert np.abs(sub.values[::-1]-ens.predict(table).values).max()<1e-5
    with pytest.raises(ValueError, match="no column 'path'"): loaded.predict(df.iloc[:7])

def test_export_that_needs_functions(cv, df, get_dls, leaves, tmp_path):
    ens = cv.ensemble()
    ens.export(tmp_path/'out')
    with pytest.raises(ValueError, match='without get_model.*does not tell the name'): load_ensemble(tmp_path/'out')
    with pytest.raises(ValueError, match='no ensemble.json'): load_ensemble(tmp_path)
    loaded = load_ensemble(tmp_path/'out', get_model=lambda: tiny(get_dls(df, 0)).model)
    files = [leaves/'images'/f'{o}.jpg' for o in df.image_id[:7]]
    assert np.abs(loaded.predict(files).values-ens.predict(df.iloc[:7]).values).max()<1e-5
    odd = CrossVal(df, get_dls, partial(vision_learner, arch='resnet10t', pretrained=False, concat_pool=False),
        tmp_path/'odd')
    odd.fit(one)
    odd.ensemble().export(tmp_path/'out2')
    g = json.loads((tmp_path/'out2'/'ensemble.json').read_text())['groups'][0]
    assert 'is not this network' in g['net'] and g['input']['size']==[32,32]

def test_a_submission_that_no_file_keeps(df, get_dls, tmp_path):
    cv = CrossVal(df, get_dls, tiny, tmp_path/'run').fit(one)
    test = df.iloc[:3].assign(name=['a\r','b','c'])
    sample = test[['name']].assign(label='')
    with pytest.raises(ValueError, match=r"the identity 'a\\r' does not come back"):
        cv.submission(sample, test, file=tmp_path/'sub.csv')
    assert cv.submission(sample, test, file=None).name.tolist()==['a\r','b','c'] and not (tmp_path/'sub.csv').exists()

def test_samples_that_name_a_class_twice():
    for probs,sample,match in ((pd.DataFrame(0., ['a'], [1,'1']), pd.DataFrame({'id':['a'], '1':0., 'x':0.}),
            'the same as text'),
        (pd.DataFrame(0., ['a'], ['x','y']), pd.DataFrame([['a',0.,0.]], columns=['id','x','x']),
            "the column 'x' twice")):
        with pytest.raises(ValueError, match=match): fill_sample(sample, probs)

def test_a_sample_in_the_same_order():
    "No identity is looked up then, and the predictions stay as they were"
    probs = pd.DataFrame([[.2,.8],[.4,.6],[.9,.1]], ['a','b','c'], ['x','y'])
    before = probs.copy()
    for cols in (['x','y'],['y','x']):
        sample = pd.DataFrame({'id': ['a','b','c'], **dict.fromkeys(cols, 0.)})
        filled = fill_sample(sample, probs)
        turned = fill_sample(sample.iloc[::-1], probs)
        assert filled.equals(turned.iloc[::-1].reset_index(drop=True)) and (filled[['x','y']].values==probs.values).all()
        filled.loc[:,'x'] = 7.
    assert probs.equals(before)
    assert fill_sample(sample[['id']].assign(label=''), probs).label.tolist()==['y','y','x']
    with pytest.raises(ValueError, match='1 rows more than once'):
        fill_sample(pd.DataFrame({'id': ['a','a'], 'x': 0., 'y': 0.}), probs.set_axis(['a','a','c']).iloc[:2])

def test_tables_of_other_rows_or_columns_are_not_blended():
    a = pd.DataFrame([[.9,.1],[.2,.8]], ['x','y'], ['a','b'])
    assert np.allclose(blend([a, a]), a)
    for other in (a[['b','a']], a[::-1]):
        for f in (blend, lambda p: fit_weights(p, [0,1])):
            with pytest.raises(ValueError, match='table 1 has other rows or columns than table 0'): f([a, other])
        assert np.allclose(blend([a, other.reindex_like(a)]), a)
