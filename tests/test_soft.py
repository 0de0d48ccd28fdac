"Soft labels: the table, the block, the loss, the metrics, and a Learner's life with them."
from functools import partial

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics as skm
import torch
import torch.nn.functional as F
from fastai.callback.mixup import CutMix as FastaiCutMix, MixUp as FastaiMixUp
from fastai.vision.all import (Callback, ClassificationInterpretation, ColReader, CrossEntropyLossFlat, DataBlock,
    F1Score, ImageBlock, IndexSplitter, Resize,
    RocAuc, TensorImage, accuracy, load_learner, nn, plt, show_results, skm_to_fastai, top_k_accuracy, vision_learner)
from hypothesis import given, settings, strategies as st
from fastai_mix.callback.choice import MixChoice
from fastai_mix.callback.gridmask import GridMask
from fastai_mix.callback.manifold import ManifoldMixUp
from fastai_mix.callback.mix import CutMix, MixUp, ResizeMix, mix_loss
from fastai_mix.callback.snapmix import SnapMix
from fastai_mix.data.leaves import leaf_classes, leaf_data
from fastai_mix.data.sampling import class_weights
from fastai_mix.data.soft import (SoftCategorize, SoftCategoryBlock, SoftCrossEntropyLossFlat, TensorSoftCategory,
    soft_accuracy,
    soft_labels, soft_metric)
from fastai_mix.interpret import Scores
from fastai_mix.vision.cam import ClassActivation

V = ['a','b','c']

def table(n=30, c=3, seed=0):
    rng = np.random.default_rng(seed)
    df = pd.DataFrame({'id': [f'r{i}' for i in range(n)], 'label': rng.choice(V[:c], n), 'other': rng.random(n)})
    df.loc[:c-1, 'label'] = V[:c]
    return df, pd.DataFrame(rng.dirichlet(np.ones(c)*.5, n), df.index, V[:c])

# the table

@pytest.mark.parametrize('hard', [True,False])
@pytest.mark.parametrize('where', ['disagree','all'])
@pytest.mark.parametrize('a', [0,.3,.5,1])
def test_every_row_by_hand(a, where, hard):
    df,oof = table()
    before = df.copy()
    got = soft_labels(df, oof, 'label', a, where, hard)
    for i in df.index:
        p,y = oof.loc[i].to_numpy(),V.index(df.label[i])
        top = int(p.argmax())
        want = np.eye(3)[y]
        if where=='all' or top!=y: want = a*np.eye(3)[y] + (1-a)*(np.eye(3)[top] if hard else p)
        np.testing.assert_allclose(got.loc[i, V].to_numpy(float), want, atol=1e-12)
    assert df.equals(before) and got[df.columns].equals(df) and (got.index==df.index).all()

@given(st.integers(0, 10**6), st.floats(0, 1), st.booleans(), st.sampled_from(['disagree','all']))
@settings(deadline=None, max_examples=30)
def test_shares_add_to_one_and_order_does_not_matter(seed, a, hard, where):
    df,oof = table(12, seed=seed)
    soft = soft_labels(df, oof, 'label', a, where, hard)
    assert np.allclose(soft[V].sum(1), 1) and (soft[V]>=0).all(axis=None)
    assert soft_labels(df, oof.sample(frac=1, random_state=seed), 'label', a, where, hard).equals(soft)
    turned = soft_labels(df, oof[V[::-1]], 'label', a, where, hard)
    assert np.allclose(turned[V], soft[V])

def test_rows_are_found_by_column_or_index():
    df,oof = table()
    want = soft_labels(df, oof, 'label')
    by_col = oof.assign(id=df.id).sample(frac=1, random_state=1).reset_index(drop=True)
    assert soft_labels(df, by_col, 'label', id_col='id').equals(want)
    assert soft_labels(df, by_col.set_index('id'), 'label', id_col='id').equals(want)
    part = df[df.label!='c'].iloc[3:9] # further rows of the predictions are nobody's business
    assert soft_labels(part, oof, 'label').equals(want.loc[part.index])

def test_a_tie_of_the_given_class_agrees():
    df = pd.DataFrame({'label': ['b','a']})
    soft = soft_labels(df, pd.DataFrame({'a': [.5,.5], 'b': [.5,.5]}), 'label')
    assert soft[['a','b']].to_numpy().tolist()==[[0,1],[1,0]]

def test_classes_that_are_numbers_get_columns_of_text():
    df,oof = table()
    df['label'] = df.label.map(V.index)
    oof.columns = range(3)
    soft = soft_labels(df, oof, 'label')
    assert list(soft.columns)==[*df.columns, '0', '1', '2']
    assert list(soft_labels(df, oof, 'label', prefix='p').columns[-3:])==['p0','p1','p2']

def test_categorical_labels_and_rounded_probabilities():
    df,oof = table()
    want = soft_labels(df, oof, 'label', hard=False)
    got = soft_labels(df.assign(label=df.label.astype('category')), oof.round(3).astype('float32'), 'label', hard=False)
    assert np.allclose(got[V], want[V], atol=2e-3) and np.allclose(got[V].sum(1), 1, atol=1e-12)

def test_the_label_one_hot_is_replaced_in_place_and_other_columns_are_not():
    df,oof = table()
    hot = pd.concat([pd.get_dummies(df.label, dtype=int), df], axis=1)
    soft = soft_labels(hot, oof, 'label')
    assert list(soft.columns)==list(hot.columns) and soft[V].equals(soft_labels(df, oof, 'label')[V])
    with pytest.raises(ValueError, match="column 'b' that is not the label one-hot: pass prefix='soft_'"):
        soft_labels(df.assign(b=1), oof, 'label')
    with pytest.raises(ValueError, match="column 'a'"): soft_labels(df.rename(columns={'label':'a'}), oof, 'a')
    assert 'soft_b' in soft_labels(df.assign(b=1), oof, 'label', prefix='soft_')

def _nan(o, i, c): o = o.copy(); o.loc[i, c] = np.nan; return o
bad = {
    'no prediction': (lambda d,o: (d, o.drop([3,7])), "2 of 30 rows have no out-of-fold prediction, the first 3, 7"),
    'NaN': (lambda d,o: (d, _nan(o, 5, 'b')), "1 of 30 rows have no out-of-fold prediction, the first 5"),
    'unknown label': (lambda d,o: (d.replace({'label': {'c': 'd'}}), o),
        "no column for the label 'd' of 'label': it has 'a', 'b', 'c'"),
    'class lacks': (lambda d,o: (d, o[['a','b']]), "no column for the label 'c'"),
    'sum': (lambda d,o: (d, o*.9), "expected numbers from 0 up that add to 1"),
    'further number': (lambda d,o: (d, o.assign(fold=1)), "with a column per class and no others"),
    'logits': (lambda d,o: (d, o.assign(a=-1., b=1., c=1.)), "row 0 in `oof` are -1, 1, 1"),
    'text': (lambda d,o: (d, o.assign(id=d.id)), r"`oof` has 'id': .*or id_col='id'"),
    'double column': (lambda d,o: (d, pd.concat([o, o.a], axis=1)), "`oof` has 'a'"),
    'double row': (lambda d,o: (d, pd.concat([o, o.loc[[4]]])), "`oof` has 4 more than once in the index"),
    'double row of the table': (lambda d,o: (pd.concat([d, d.loc[[4]]]), o),
        "the table has 4 more than once in the index"),
    'label of text': (lambda d,o: (d, o.assign(label=d.label)), "`oof` has 'label': .*pass `oof.classes.`$"),
    'array': (lambda d,o: (d, o.to_numpy()), "`oof` is a ndarray: expected a table"),
    'named index': (lambda d,o: (d, o.set_axis(pd.Index(d.id, name='id'))),
        "30 of 30 rows have no .*: pass id_col='id'"),
    'no label': (lambda d,o: (_nan(d, 2, 'label'), o), "1 of 30 rows have no label in 'label', the first at row 2"),
    'no column': (lambda d,o: (d.drop(columns='label'), o), "no column 'label'"),
}
@pytest.mark.parametrize('case', bad)
def test_a_wrong_table_is_refused(case):
    change,message = bad[case]
    with pytest.raises(ValueError, match=message): soft_labels(*change(*table()), 'label')

@pytest.mark.parametrize('kwargs,message',
    [(dict(a=1.5), "a=1.5"), (dict(a=-.1), "a=-0.1"), (dict(a=float('nan')), "a=nan"), (dict(a='.5'), "a='.5'"),
    (dict(where='some'), "where='some': expected 'disagree' or 'all'"),
    (dict(id_col='nr'), "the table has no column 'nr'"),
    (dict(id_col='id'), "`oof` has no column 'id'")])
def test_wrong_arguments_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message): soft_labels(*table(), 'label', **kwargs)

def test_ids_by_column_are_named_in_errors():
    df,oof = table()
    oof = oof.assign(id=df.id)
    with pytest.raises(ValueError, match="the first r3 "): soft_labels(df, oof.drop(3), 'label', id_col='id')
    with pytest.raises(ValueError, match="`oof` has r4 more than once in 'id'"):
        soft_labels(df, pd.concat([oof, oof.loc[[4]]]), 'label', id_col='id')

# the block

def test_targets_of_every_kind():
    tfm = SoftCategorize(V)
    for o in ([.2,.3,.5], np.array([.2,.3,.5]), pd.Series([.2,.3,.5]), torch.tensor([.2,.3,.5]),
        pd.Series([.2,.3,.5], dtype=object)):
        t = tfm(o)
        assert type(t) is TensorSoftCategory and t.dtype==torch.float32
        assert torch.allclose(t.as_subclass(torch.Tensor), torch.tensor([.2,.3,.5]))
    assert tfm('b').tolist()==[0,1,0] and SoftCategorize([3,5])(5).tolist()==[0,1]
    assert SoftCategorize([3,5])(np.int64(5)).tolist()==[0,1]

@pytest.mark.parametrize('o,message',
    [('d', "'d' is no class of .'a', 'b', 'c'."), (.5, "0.5 is no class .*not a tuple"),
        ([.5,.5], 'expected 3 numbers'),
    ([.5,.5,.5], 'that add to 1'), ([-.5,1,.5], 'from 0 up'), ([float('nan'),.5,.5], 'expected 3 numbers'),
    ([[.2,.3,.5]], 'expected 3 numbers')])
def test_wrong_targets_are_refused(o, message):
    with pytest.raises(ValueError, match=message): SoftCategorize(V)(o)

@pytest.mark.parametrize('vocab', [['a'], ['a','b','a'], [], 'abc'])
def test_a_wrong_vocab_is_refused(vocab):
    with pytest.raises(ValueError, match='two or more class names, each once'): SoftCategoryBlock(vocab)

@pytest.mark.parametrize('o,text,top',
    [([0,.5,.5], 'b .5 · c .5', V[1:]), ([1,0,0], 'a', ['a']), ([.05,.9,.05], 'b .9 · a .05 · c .05', ['b']),
    ([.999,.001,0], 'a', ['a']), ([.33,.33,.34], 'c .34 · a .33 · b .33', ['c'])])
def test_what_is_shown(o, text, top):
    d = SoftCategorize(V).decode(TensorSoftCategory(o))
    assert d==text and d.top==top

def test_an_index_is_shown_by_its_name_and_four_shares_by_three():
    assert SoftCategorize(V).decode(torch.tensor(1))=='b'
    assert SoftCategorize(list(range(300))).decode(TensorSoftCategory([1/300]*300))
    assert SoftCategorize([*V,'d']).decode(TensorSoftCategory([.1,.2,.3,.4]))=='d .4 · c .3 · b .2'

# the loss

n,c = 7,4
g = torch.Generator().manual_seed(0)
pred = torch.randn(n, c, generator=g)*2
soft,soft2 = (torch.rand(n, c, generator=g)*3).softmax(1),(torch.rand(n, c, generator=g)*3).softmax(1)
y = torch.randint(c, (n,), generator=g)
weight = torch.tensor([1.,.2,5,2])
w,w2 = torch.rand(n, generator=g)*.6+.3,torch.rand(n, generator=g)*.9

@pytest.mark.parametrize('reduction', ['mean','sum','none'])
@pytest.mark.parametrize('eps', [0.,.1])
@pytest.mark.parametrize('k', [None,weight])
def test_equals_torch(k, eps, reduction):
    got = SoftCrossEntropyLossFlat(k, eps, reduction)(pred, soft)
    want = nn.CrossEntropyLoss(k, label_smoothing=eps, reduction=reduction)(pred, soft)
    assert got.shape==want.shape and (got-want).abs().max()<1e-6
    t = (1-eps)*soft.double() + eps/c
    hand = -(t*pred.double().log_softmax(1)*(1 if k is None else k.double())).sum(1)
    hand = dict(mean=hand.mean(), sum=hand.sum(), none=hand)[reduction]
    assert (got-hand).abs().max()<1e-5

@pytest.mark.parametrize('eps', [0.,.1])
@pytest.mark.parametrize('k', [None,weight])
def test_one_hot_equals_indices(k, eps):
    hot = F.one_hot(y, c).float()
    def both(reduction): return (SoftCrossEntropyLossFlat(k, eps, reduction)(pred, hot),
        CrossEntropyLossFlat(weight=k, label_smoothing=eps, reduction=reduction)(pred, y))
    for reduction in ('none','sum') + (('mean',) if k is None else ()): torch.testing.assert_close(*both(reduction))
    if k is not None: # the mean divides by n, not by the sum of the weights
        own,flat = both('mean')
        torch.testing.assert_close(own*n, flat*k[y].sum())

def test_axis_reduction_and_decoding():
    lf = SoftCrossEntropyLossFlat(axis=1)
    x,t = torch.randn(2, 3, 4, 5, generator=g),torch.rand(2, 3, 4, 5, generator=g).softmax(1)
    torch.testing.assert_close(lf(x, t).as_subclass(torch.Tensor), F.cross_entropy(x, t))
    assert lf.decodes(x).shape==(2,4,5) and torch.allclose(lf.activation(x).sum(1), torch.ones(2,4,5))
    lf.reduction = 'none'
    assert lf(x, t).shape==(40,) and lf.func.reduction=='none' and not lf.y_int

def test_half_precision():
    for dtype in (torch.float16, torch.bfloat16):
        loss = SoftCrossEntropyLossFlat()(pred.to(dtype), soft)
        assert abs(loss.item()-SoftCrossEntropyLossFlat()(pred, soft).item())<.05

def test_targets_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="targets are \\[7\\] .*CrossEntropyLossFlat"):
        SoftCrossEntropyLossFlat()(pred, y)
    with pytest.raises(ValueError, match="targets are \\[7, 3\\]"): SoftCrossEntropyLossFlat()(pred, soft[:,:3])

@pytest.mark.parametrize('eps', [0.,.1])
@pytest.mark.parametrize('k', [None,weight])
def test_mixed_is_the_sum_by_hand(k, eps):
    lf = SoftCrossEntropyLossFlat(k, eps)
    t = (1-eps)*(w[:,None]*soft + w2[:,None]*soft2).double() + eps/c*(w+w2)[:,None].double()
    want = -(t*pred.double().log_softmax(1)*(1 if k is None else k.double())).sum(1).mean()
    assert abs(mix_loss(lf, pred, (soft,), (soft2,), w, w2).item()-want.item())<1e-5
    unmixed = mix_loss(lf, pred, (soft,), (soft2,), torch.ones(n), torch.zeros(n))
    torch.testing.assert_close(unmixed.as_subclass(torch.Tensor), lf(pred, soft).as_subclass(torch.Tensor))
    assert lf.reduction=='mean'

# mixes in a Learner

def softly(learn, a=.7):
    "Make the targets of a toy Learner soft, with the part `a` of the class"
    t = learn.dls.train.dataset.t
    other = torch.rand(t.shape, generator=torch.Generator().manual_seed(0)).softmax(1)
    learn.dls.train.dataset.t = TensorSoftCategory(a*t + (1-a)*other)
    return learn

mixes = dict(plain=lambda: None, mixup=MixUp, cutmix=CutMix, resizemix=ResizeMix, manifold=ManifoldMixUp, snapmix=SnapMix,
    echo=lambda: SnapMix(echo=True),
    published=lambda: SnapMix(same_label='published'), gridmask=lambda: GridMask(p=1.),
    choice=lambda: MixChoice([SnapMix(), CutMix(), MixUp(), None]),
    choice_echo=lambda: MixChoice([SnapMix(), CutMix()], echo=True),
    fastai_mixup=FastaiMixUp, fastai_cutmix=FastaiCutMix)

@pytest.mark.parametrize('mix', mixes)
def test_every_mix_trains(mix, toy):
    learn = softly(toy(cbs=mixes[mix](), n=64, target='hot', loss_func=SoftCrossEntropyLossFlat(),
        metrics=soft_accuracy, lr=3e-3))
    before = learn.validate()[0]
    learn.fit(4)
    assert learn.validate()[0]<before and type(learn.dls.one_batch()[1]) is TensorSoftCategory

@pytest.mark.parametrize('mix', [MixUp,CutMix,SnapMix])
@pytest.mark.parametrize('k', [None,torch.tensor([1.,.2,5])])
def test_the_loss_of_a_mixed_step_by_hand(mix, k, toy):
    learn = softly(toy(cbs=mix(), target='hot', loss_func=SoftCrossEntropyLossFlat(k, .1)))
    cb,seen = learn.cbs[-1],[]
    def look(_):
        t = cb.w[:,None]*learn.y + cb.w2[:,None]*learn.y[cb.partner]
        t = .9*t.double() + .1/3*(cb.w+cb.w2)[:,None]
        want = -(t*learn.pred.detach().double().log_softmax(1)*(1 if k is None else k.double())).sum(1).mean()
        seen.append(abs(want.item()-learn.loss.item()))
    learn.add_cb(Callback(before_backward=look))
    learn.fit(1)
    assert len(seen)==4 and max(seen)<1e-5

def test_snapmix_maps_follow_the_shares(toy):
    learn = softly(toy(target='hot', loss_func=SoftCrossEntropyLossFlat()))
    xb,yb = learn.dls.one_batch()
    activation = ClassActivation(learn.model)
    cam,_ = activation(xb, yb)
    parts = sum(yb[:,j,None,None].as_subclass(torch.Tensor)*activation(xb, torch.full((len(xb),), j))[0]
        for j in range(3))
    torch.testing.assert_close(cam, parts, atol=1e-5, rtol=1e-4)

# metrics

class Fixed(nn.Module):
    "A model that has read the predictions off the pictures"
    def __init__(self): super().__init__(); self.k = nn.Parameter(torch.ones(1))
    def forward(self, x): return x.mean((2,3))*self.k

def _low(inp, targ): return (inp.argmax(-1)<targ).float().mean()
metrics = {'accuracy': accuracy, 'partial': partial(top_k_accuracy, k=2), 'own': _low, 'f1': F1Score(average='macro'),
    'auc': RocAuc(),
    'recall': skm_to_fastai(skm.recall_score, average='macro', name='recall'),
    'class': F1Score(average=None, labels=[0])}
names = dict(accuracy='accuracy', partial='top_k_accuracy', own='_low', f1='f1_score', auc='roc_auc_score',
    recall='recall', **{'class':'f1_score'})

@pytest.mark.parametrize('name', metrics)
def test_a_metric_reads_the_largest_share(name, toy):
    soft = softly(toy(model=Fixed(), n=30, target='hot', loss_func=SoftCrossEntropyLossFlat(),
        metrics=soft_metric(metrics[name])), a=.1)
    hard = toy(model=Fixed(), n=30, metrics=metrics[name])
    hard.dls.train.dataset.t = soft.dls.train.dataset.t.argmax(1).as_subclass(torch.Tensor)
    got,want = soft.validate()[1],hard.validate()[1]
    np.testing.assert_allclose(got, want, atol=1e-7)
    assert ((np.array(want)>0) & (np.array(want)<1)).all()
    assert names[name] in soft.recorder.metric_names
    kept = toy(model=Fixed(), n=30, metrics=soft_metric(metrics[name])) # class indices are taken as they are
    kept.dls.train.dataset.t = hard.dls.train.dataset.t
    np.testing.assert_allclose(kept.validate()[1], want, atol=1e-7)

def test_soft_accuracy_and_calls_without_a_learner():
    want = (pred.argmax(1)==soft.argmax(1)).float().mean()
    assert soft_accuracy(pred, soft)==want==soft_metric(accuracy)(pred, soft)==soft_accuracy(pred, soft.argmax(1))
    macro_f1 = soft_metric(F1Score(average='macro'))
    assert macro_f1(pred.argmax(1), soft)==skm.f1_score(soft.argmax(1), pred.argmax(1), average='macro')

def test_a_metric_that_averages_weighs_batches_by_size(toy):
    learn = softly(toy(model=Fixed(), n=30, bs=8, target='hot', loss_func=SoftCrossEntropyLossFlat(),
        metrics=[soft_metric(accuracy), soft_accuracy]), a=.1)
    x,t = learn.dls.train.dataset.x,learn.dls.train.dataset.t
    want = (x.mean((2,3)).argmax(1)==t.argmax(1)).float().mean().item()
    assert 0<want<1 and list(learn.validate()[1:])==pytest.approx([want,want], abs=1e-6)

# a Learner's life

@pytest.fixture(scope='module')
def life(tmp_path_factory):
    path = leaf_data(tmp_path_factory.mktemp('leaves')/'data', n=48, size=64, noise=.2)
    df = pd.read_csv(path/'train.csv')
    oof = pd.DataFrame(np.random.default_rng(0).dirichlet(np.ones(4)*.3, len(df)), df.index, leaf_classes)
    soft = soft_labels(df, oof, 'labels', hard=False)
    block = DataBlock((ImageBlock, SoftCategoryBlock(leaf_classes)), splitter=IndexSplitter(range(16)),
        get_y=ColReader(leaf_classes),
        get_x=ColReader('image_id', pref=f'{path}/images/', suff='.jpg'), item_tfms=Resize(32))
    dls = block.dataloaders(soft, bs=8, num_workers=0)
    learn = vision_learner(dls, 'test_resnet', pretrained=False, path=path, cbs=SnapMix(),
        metrics=[soft_accuracy, soft_metric(accuracy), soft_metric(F1Score(average='macro'))])
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    learn.remove_cb(learn.progress)
    return learn,soft

def test_weights_as_class_weights_gives_them():
    w,p,y = class_weights(['a','b','b']),torch.randn(4, 2),torch.rand(4, 2).softmax(1)
    torch.testing.assert_close(SoftCrossEntropyLossFlat(weight=w)(p, y),
        SoftCrossEntropyLossFlat(weight=w.tolist())(p, y))

def test_dataloaders_bring_vocab_classes_and_loss(life):
    learn,soft = life
    assert list(learn.dls.vocab)==leaf_classes and learn.dls.c==4 and type(learn.loss_func) is SoftCrossEntropyLossFlat
    assert learn.model(torch.rand(2, 3, 32, 32)).shape==(2,4)
    y = torch.stack([o[1] for o in learn.dls.valid_ds])
    np.testing.assert_allclose(y, soft[leaf_classes][:16], atol=1e-6)

def test_predictions(life):
    learn,soft = life
    preds,targs,losses = learn.get_preds(with_loss=True)
    assert torch.allclose(preds.sum(1), torch.ones(16)) and targs.shape==(16,4) and losses.shape==(16,)
    want = -(targs*preds.log()).sum(1)
    np.testing.assert_allclose(losses, want, atol=1e-4)
    loss,acc,acc2,f1 = learn.validate()
    assert loss==pytest.approx(want.mean().item(), abs=1e-4)
    assert acc==acc2==pytest.approx((preds.argmax(1)==targs.argmax(1)).float().mean().item())
    assert f1==pytest.approx(skm.f1_score(targs.argmax(1), preds.argmax(1), average='macro'))
    probs,t = learn.tta(n=2)
    assert probs.shape==t.shape==(16,4) and torch.allclose(probs.sum(1), torch.ones(16))

def test_pictures(life):
    learn,soft = life
    learn.dls.valid.show_batch(max_n=4)
    titles = [ax.get_title() for ax in plt.gcf().axes]
    tfm = SoftCategorize(leaf_classes)
    want = [str(tfm.decode(tfm(soft.loc[i, leaf_classes].tolist()))) for i in range(4)]
    assert [t.replace('\n', ' · ') for t in titles]==want and any('·' in t for t in want)
    learn.show_results(max_n=4, shuffle=False)
    preds = learn.get_preds()[0].argmax(1)[:4]
    for ax,t,p in zip(plt.gcf().axes, want, preds):
        *target,pred = ax.get_title().split('\n')
        assert ' · '.join(target)==t and pred==leaf_classes[p]
    plt.close('all')

@pytest.mark.parametrize('share,color',
    [([0,0,.5,.5],'green'), ([0,1,0,0],'red'), ([0,.6,0,.4],'red'), ([0,0,0,1],'green')])
def test_a_right_prediction_is_green(share, color):
    tfm = SoftCategorize(leaf_classes)
    samples = [(TensorImage(torch.zeros(3,4,4)), tfm.decode(tfm(share)))]
    ax, = show_results(TensorImage(torch.zeros(1,3,4,4)), TensorSoftCategory([share]), samples,
        [(tfm.decode(torch.tensor(3)),)])
    assert ax.title.get_color()==color
    plt.close('all')

def test_export_and_predict(life, tmp_path):
    learn,soft = life
    learn.export(tmp_path/'x.pkl')
    again = load_learner(tmp_path/'x.pkl')
    name,i,probs = learn.predict(soft.iloc[20])
    name2,i2,probs2 = again.predict(soft.iloc[20])
    assert name==name2==leaf_classes[i] and i==i2 and torch.allclose(probs, probs2) and probs.sum()==pytest.approx(1)
    dl = again.dls.test_dl(soft.iloc[:16], with_labels=True)
    torch.testing.assert_close(again.get_preds(dl=dl)[0], learn.get_preds()[0])

def test_interpretation(life):
    learn,_ = life
    preds,targs = learn.get_preds()
    interp = ClassificationInterpretation.from_learner(learn)
    losses,idx = interp.top_losses(3)
    np.testing.assert_allclose(losses, (-(targs*preds.log()).sum(1)).topk(3)[0], atol=1e-4)
    interp.plot_top_losses(2)
    names = [ax.get_title().split()[0] for ax in plt.gcf().axes]
    assert names==[leaf_classes[i] for i in preds.argmax(1)[idx[:2]]]
    plt.close('all')

def test_scores(life):
    learn,_ = life
    s,(preds,targs) = learn.scores(),learn.get_preds()
    assert s.accuracy==pytest.approx(learn.validate()[1])
    assert s.macro_f1==pytest.approx(learn.validate()[3]) and 'rust' in s.report()
    assert len(s.plot_confusion().texts)==len(s.vocab)**2
    many = Scores(np.eye(50)[np.arange(100)%50], np.arange(100)%50, range(50)).plot_confusion()
    assert not many.texts and not len(many.get_xticks())
    plt.close('all')
    with pytest.raises(ValueError, match='no labels: use test_dl'):
        learn.scores(dl=learn.dls.test_dl(learn.dls.valid.items))
    with pytest.raises(ValueError, match='add to 1'): Scores(preds, torch.ones(16,4), leaf_classes)

def test_a_class_name_will_do_for_a_row(life):
    learn,soft = life
    block = DataBlock((ImageBlock, SoftCategoryBlock(leaf_classes)), splitter=IndexSplitter(range(16)),
        item_tfms=Resize(32),
        get_x=ColReader('image_id', pref=f'{learn.path}/images/', suff='.jpg'),
        get_y=lambda r: r.true_label if r.name<16 else r[leaf_classes])
    dls = block.dataloaders(soft, bs=8, num_workers=0)
    assert [leaf_classes[o[1].argmax()] for o in dls.valid_ds]==soft.true_label[:16].tolist()
    np.testing.assert_allclose(dls.train_ds[0][1], soft.loc[16, leaf_classes].tolist(), atol=1e-6)

def test_macro_f1_is_that_of_the_report():
    s = Scores(np.eye(3)[[0,0,1,1]], [0,0,1,0], 'abc')
    assert f'{s.macro_f1:.2f}' in next(o for o in s.report().splitlines() if 'macro avg' in o)
    assert ' c ' not in s.report()

@pytest.mark.parametrize('hard', [True,False])
def test_more_rows_than_are_softened_at_a_time(hard):
    rng,n = np.random.default_rng(0),2**14+5
    y = rng.integers(3, size=n)
    df = pd.DataFrame({'label': [f'c{k}' for k in y]})
    oof = pd.DataFrame(rng.dirichlet(np.ones(3), n), df.index, ['c0','c1','c2'])
    got = soft_labels(df, oof, 'label', a=.7, hard=hard)[['c0','c1','c2']].to_numpy()
    given,top = np.eye(3)[y],oof.to_numpy().argmax(1)
    want = np.where((top==y)[:,None], given, .7*given+.3*(np.eye(3)[top] if hard else oof.to_numpy()))
    assert np.allclose(got, want, atol=1e-12)
