"What CrossVal stores is of the fold's rows, by a network that was trained; all else is refused before a training."
from collections import namedtuple
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from fastai.vision.all import (BaseLoss, BCELossFlat, BCEWithLogitsLossFlat, Callback, CancelBatchException,
    CategoryBlock, ColReader, ConvLayer, CrossEntropyLossFlat, DataBlock, DataLoaders, Flatten, ImageBlock, Learner,
    MultiCategoryBlock, Resize, TfmdDL, default_split, nn, vision_learner)
from fastai_mix import crossval
from fastai_mix.crossval import CrossVal, load_ensemble
from helpers import block, tiny

def fit(n=1, lr=1e-2):
    def f(learn):
        with learn.no_bar(), learn.no_logging(): learn.fit(n, lr)
    return f

def refused(cv, fit_fn, match, done=()):
    "The error is one line, and no fold but those `done` is"
    with pytest.raises(ValueError, match=match) as e: cv.fit(fit_fn)
    assert '\n' not in str(e.value) and [k for k in cv.folds if cv.done(k)]==list(done)

def untouched(cv): return not list(cv.path.rglob('*.safetensors'))

def own_probs(cv, k, dl_of):
    "What the network of fold `k` says of its rows, by identity"
    learn = cv.learner(k)
    rows = cv.df[cv.df.fold==k]
    dl = dl_of(learn, rows)
    with learn.no_bar(): return pd.DataFrame(learn.get_preds(dl=dl)[0].numpy(), rows.image_id)

@pytest.mark.parametrize('change',
    [lambda d: d, lambda d: d.sample(frac=1, random_state=3),
        lambda d: d.sample(frac=1, random_state=3).reset_index(drop=True)])
def test_another_size_in_the_fit_is_predicted_row_by_row(change, df, get_dls, tmp_path):
    def grow(learn):
        fit()(learn)
        k = learn.dls.valid.items.fold.iloc[0]
        learn.dls = get_dls(change(df), k, item_tfms=Resize(48))
        fit()(learn)
    cv = CrossVal(df, get_dls, tiny, tmp_path/'run').fit(grow)
    for k in cv.folds:
        want = own_probs(cv, k, lambda learn, rows: get_dls(df, k, item_tfms=Resize(48)).test_dl(rows))
        assert np.abs(cv.oof.set_axis(df.image_id).loc[want.index].values-want.values).max()<1e-6

loaders = {
    'shuffled':  lambda dl: dl.new(shuffle=True),
    'drop_last': lambda dl: dl.new(drop_last=True),
    'backwards': lambda dl: dl.new(get_idxs=lambda: list(range(len(dl.dataset)))[::-1]),
    'n':         lambda dl: TfmdDL(dl.dataset, bs=8, n=5, after_item=dl.after_item, after_batch=dl.after_batch),
}

@pytest.mark.parametrize('how', loaders)
def test_a_validation_loader_of_any_order_is_predicted_row_by_row(how, df, get_dls, tmp_path):
    def other(learn): learn.dls.loaders[1] = loaders[how](learn.dls.valid)
    def before(dls):
        learn = tiny(dls)
        other(learn)
        return learn
    def after(learn): fit()(learn), other(learn)
    plain = CrossVal(df, get_dls, tiny, tmp_path/'plain').fit(fit(), folds=[0])
    for i,(g,f) in enumerate(((before,fit()), (tiny,after))):
        cv = CrossVal(df, get_dls, g, tmp_path/f'run{i}').fit(f, folds=[0])
        a,b = (pd.read_csv(o.path/'fold_0'/'oof.csv').set_index('id') for o in (plain,cv))
        assert set(a.index)==set(b.index)
        assert np.abs(a.drop(columns='label')-b.loc[a.index].drop(columns='label')).max().max()<1e-6

def with_block(leaves, df, valid, train=None, vocab=None, bs=8, **kwargs):
    rows = np.flatnonzero(valid)
    split = lambda _: ((np.flatnonzero(~valid) if train is None else train).tolist(), rows.tolist())
    return DataBlock((ImageBlock, CategoryBlock(vocab=vocab, sort=False)),
        get_x=ColReader('image_id', pref=leaves/'images', suff='.jpg'), get_y=ColReader('label'), splitter=split,
        item_tfms=Resize(32)).dataloaders(df, bs=bs, num_workers=0, device='cpu', **kwargs)

def files_of(df, leaves, held):
    "DataLoaders of the same pictures whose items are no table"
    files = [leaves/'images'/f'{o}.jpg' for o in df.image_id]
    labels = dict(zip(files, df.label))
    return DataBlock((ImageBlock, CategoryBlock), get_y=labels.get,
        splitter=lambda _: (np.flatnonzero(~held).tolist(), np.flatnonzero(held).tolist()),
        item_tfms=Resize(32)).dataloaders(files, bs=8, num_workers=0, device='cpu')

replaced = {
    'the rows of another fold': (lambda d, held, leaves: with_block(leaves, d, (d.fold==1).values),
        '20 are missing .*20 too many.*have get_learner use the DataLoaders it is given'),
    'a part of the rows':       (lambda d, held, leaves: with_block(leaves, d, held & (np.arange(60)>9)),
        'are missing .* 0 too many'),
    'a subset of the loader':   (lambda d, held, leaves: (lambda o: DataLoaders(o.train,
        o.valid.new(get_idxs=lambda: [0,1,2])))(with_block(leaves, d, held)), '17 are missing'),
    'its rows trained on':      (lambda d, held, leaves: with_block(leaves, d, held, np.arange(60)),
        'trains on 20 rows that it validates on'),
    'its rows in another loader': (lambda d, held, leaves: DataLoaders(
        with_block(leaves, d, held, np.arange(60)).train, with_block(leaves, d, held).valid),
        'trains on 20 rows that it validates on'),
    'another order of classes': (lambda d, held, leaves: with_block(leaves, d, held,
        vocab=['scab','rust','multiple_diseases','healthy']),
        'class 0 is scab in learn.dls of fold 0, and healthy in get_dls.df, 0.: .*CategoryBlock.vocab='),
    'more classes':             (lambda d, held, leaves: with_block(leaves, d, held,
        vocab=['healthy','multiple_diseases','rust','scab','spots']),
        'class 4 is spots in learn.dls of fold 0, and none in'),
    'other labels':             (lambda d, held, leaves: with_block(leaves, d.assign(label=np.roll(d.label, 1)),
        held), 'rows have another label'),
    'files':                    (lambda d, held, leaves: files_of(d, leaves, held),
        'which rows they are cannot be told'),
    'no identities':            (lambda d, held, leaves: renamed(d, held, leaves), "no column 'image_id'"),
    'no part to validate on':   (lambda d, held, leaves: DataLoaders(with_block(leaves, d, held).train),
        'to train and to validate on'),
    'no batch':                 (lambda d, held, leaves: with_block(leaves, d, held, bs=64),
        'no batch to train on.* bs=40 or less'),
}

def renamed(d, held, leaves):
    dls = with_block(leaves, d, held)
    for dl in dls.loaders:
        for tl in dl.dataset.tls: tl.items = tl.items.rename(columns={'image_id':'name'})
    return dls

@pytest.mark.parametrize('name', replaced)
def test_other_dataloaders_are_refused_whenever_they_come(name, df, get_dls, leaves, tmp_path):
    make,match = replaced[name]
    def change(learn):
        learn.dls = make(df, (df.fold==0).values, leaves)
        return learn
    def last(learn): fit()(learn), change(learn)
    def between(learn): # and back, as if nothing was
        was = learn.dls
        change(learn), fit()(learn)
        learn.dls = was
    first = CrossVal(df, get_dls, lambda dls: change(tiny(dls)), tmp_path/'first')
    refused(first, fit(), match)
    assert untouched(first)
    middle = CrossVal(df, get_dls, tiny, tmp_path/'middle')
    refused(middle, between, match)
    assert untouched(middle)
    refused(CrossVal(df, get_dls, tiny, tmp_path/'last'), last, match)

def test_a_learner_of_global_dataloaders(df, get_dls, tmp_path):
    dls = get_dls(df, 0)
    for name,get_learner in (('new', lambda _: tiny(dls)), ('same', lambda _, learn=tiny(dls): learn)):
        cv = CrossVal(df, get_dls, get_learner, tmp_path/name)
        refused(cv, fit(), 'learn.dls of fold 1 must validate on the 20 rows of fold 1', done=[0])
        assert not list((cv.path/'fold_1').rglob('*.safetensors'))

def test_a_learner_that_makes_its_own_dataloaders_of_the_fold(df, get_dls, tmp_path):
    def own(dls):
        return tiny(get_dls(df.sample(frac=1, random_state=1), dls.valid.items.fold.iloc[0], item_tfms=Resize(40)))
    cv = CrossVal(df, get_dls, own, tmp_path/'run').fit(fit())
    for k in cv.folds:
        want = own_probs(cv, k, lambda learn, rows: learn.dls.test_dl(rows))
        assert np.abs(cv.oof.set_axis(df.image_id).loc[want.index].values-want.values).max()<1e-6

def test_a_learner_of_a_fold_has_its_rows_and_classes(df, get_dls, leaves, tmp_path):
    path = tmp_path/'run'
    CrossVal(df, get_dls, tiny, path).fit(fit())
    dls = get_dls(df, 0)
    again = CrossVal(df, get_dls, lambda _: tiny(dls), path)
    assert set(again.learner(0).dls.valid.items.fold)=={0}
    with pytest.raises(ValueError, match='learn.dls of fold 2 must validate on the 20 rows of fold 2'): again.learner(2)
    other = CrossVal(df, lambda d, k: get_dls(d, (k+1)%3), tiny, path)
    for f in (other.ensemble, lambda: other.predict(df), lambda: other.learner(0)):
        with pytest.raises(ValueError, match='get_dls.df, 0. must validate on the 20 rows of fold 0'): f()
    turned = CrossVal(df,
        lambda d, k: with_block(leaves, d, (d.fold==k).values, vocab=sorted(d.label.unique())[::-1]), tiny, path)
    with pytest.raises(ValueError, match='class 0 is scab in get_dls.df, 1., and healthy in fold 1, which is done'):
        turned.learner(1)

def test_a_fold_with_its_classes_in_another_order_is_not_trained(df, leaves, tmp_path):
    vocab = sorted(df.label.unique())
    cv = CrossVal(df, lambda d, k: with_block(leaves, d, (d.fold==k).values, vocab=vocab[::-1] if k else vocab), tiny,
        tmp_path/'run')
    refused(cv, fit(), 'class 0 is scab in get_dls.df, 1., and healthy in fold 0, which is done', done=[0])
    assert not list((cv.path/'fold_1').rglob('*.safetensors'))

def test_a_network_that_has_seen_the_rows(df, get_dls, tmp_path):
    model = tiny(get_dls(df, 0)).model
    cv = CrossVal(df, get_dls, lambda dls: Learner(dls, model), tmp_path/'run')
    refused(cv, fit(), 'another fold was trained with.*make a new one in get_learner', done=[0])

def test_the_learner_may_be_exported_in_the_fit(df, get_dls, tmp_path):
    def f(learn):
        fit()(learn)
        learn.add_cb(Exports())
        fit()(learn)
    CrossVal(df, get_dls, tiny, tmp_path/'run').fit(f, folds=[0])
    assert (tmp_path/'run'/'fold_0'/'export.pkl').exists()

class Exports(Callback):
    def after_fit(self): self.learn.export()

def test_a_loader_without_a_batch(df, leaves, tmp_path):
    df = df.iloc[:45].assign(label=['a','b','c']*15, fold=np.arange(45)//15)
    cv = CrossVal(df, block(leaves), tiny, tmp_path/'run') # bs=64
    refused(cv, fit(),
        'get_dls.df, 0. gives no batch to train on: 30 rows do not fill one of bs=64.*give bs=30 or less')
    assert untouched(cv)
    assert CrossVal(df, block(leaves), tiny, tmp_path/'run', bs=30).fit(fit()).oof.notna().all().all()

class Cancels(Callback):
    def before_batch(self):
        if self.training: raise CancelBatchException

class CancelsLate(Callback):
    def after_pred(self):
        if self.training: raise CancelBatchException

class NoStep(Callback):
    def before_step(self): raise self.error
    def __init__(self):
        from fastai.callback.core import CancelStepException
        self.error = CancelStepException

untrained = {
    'nothing':    (tiny, lambda learn: None, 'which made 0 fits'),
    'no epoch':   (tiny, fit(0), 'which made 1 fits'),
    'rate 0':     (tiny, fit(lr=0.), 'which made 1 fits'),
    'cancelled':  (partial(tiny, cbs=Cancels), fit(2), 'which made 1 fits'),
    'cancelled after the forward': (partial(tiny, cbs=CancelsLate), fit(2), 'which made 1 fits'),
    'no step':    (partial(tiny, cbs=NoStep), fit(), 'which made 1 fits'),
    'validated':  (tiny, lambda learn: learn.validate(), 'which made 0 fits'),
    'another Learner': (tiny, lambda learn: fit()(tiny(learn.dls)), 'which made 0 fits'),
}

@pytest.mark.parametrize('name', untrained)
def test_a_network_that_was_not_trained_is_not_done(name, df, get_dls, tmp_path):
    get_learner,fit_fn,match = untrained[name]
    cv = CrossVal(df, get_dls, get_learner, tmp_path/'run')
    refused(cv, fit_fn, f'fold 0 was not trained: .*{match}')
    assert untouched(cv) # what was not trained is not gone on with
    assert CrossVal(df, get_dls, tiny, tmp_path/'run').fit(fit(2)).oof.notna().all().all()

def test_weights_that_are_only_loaded_count(df, get_dls, tmp_path):
    torch.manual_seed(5)
    state = tiny(get_dls(df, 0)).model.state_dict()
    cv = CrossVal(df, get_dls, tiny, tmp_path/'run').fit(lambda learn: learn.model.load_state_dict(state))
    assert all(torch.equal(v, state[n]) for k in cv.folds for n,v in cv.learner(k).model.state_dict().items())

def test_checks_draw_no_random_number(df, get_dls, tmp_path, monkeypatch):
    class Draws(Callback):
        drawn = []
        def before_fit(self): self.drawn.append(torch.rand(1).item()+np.random.rand())
    monkeypatch.setattr(crossval, 'check_output', lambda *_: None)
    plain = CrossVal(df, get_dls, partial(tiny, cbs=Draws), tmp_path/'plain').fit(fit())
    monkeypatch.undo()
    checked = CrossVal(df, get_dls, partial(tiny, cbs=Draws), tmp_path/'checked').fit(fit())
    assert Draws.drawn[:len(Draws.drawn)//2]==Draws.drawn[len(Draws.drawn)//2:] and plain.oof.equals(checked.oof)

@pytest.fixture
def two(df): return df.assign(label=np.where(df.label=='healthy', 'healthy', 'ill'))

class Net(nn.Module):
    "Returns what `wrap` makes of two heads with `c` and `more` outputs"
    def __init__(self, c, wrap, more=7):
        super().__init__()
        self.body = nn.Sequential(ConvLayer(3, 8, stride=2), nn.AdaptiveAvgPool2d(1), Flatten())
        self.head,self.aux,self.wrap = nn.Linear(8, c),nn.Linear(8, more),wrap
    def forward(self, x):
        x = self.body(x)
        return self.wrap(self.head(x), self.aux(x))

Pair = namedtuple('Pair', 'aux scores')

wraps = {
    'tuple':       (lambda a, b: (a, b), lambda o: o[0]),
    'second':      (lambda a, b: (b, a), lambda o: o[1]),
    'list':        (lambda a, b: [b, a], lambda o: o[1]),
    'dict':        (lambda a, b: {'features':b, 'out':a}, lambda o: o['out']),
    'named tuple': (lambda a, b: Pair(b, a), lambda o: o.scores),
    'logits':      (lambda a, b: SimpleNamespace(logits=a, hidden=None), lambda o: o.logits),
}

def heads(dls, wrap, c=None, loss=F.cross_entropy, **kwargs):
    make,pick = wraps[wrap]
    return Learner(dls, Net(c or dls.c, make), loss_func=lambda out, y: loss(pick(out), y), **kwargs)

@pytest.mark.parametrize('wrap', wraps)
def test_several_outputs(wrap, df, get_dls, tmp_path):
    cv = CrossVal(df, get_dls, partial(heads, wrap=wrap), tmp_path/'run').fit(fit())
    pick = wraps[wrap][1]
    for k in cv.folds:
        learn = cv.learner(k)
        x = torch.cat([b[0] for b in learn.dls.test_dl(df[df.fold==k])])
        with torch.no_grad(): want = pick(learn.model(x)).softmax(1).numpy()
        assert np.abs(cv.oof[df.fold==k].values-want).max()<1e-5
    assert cv.scores.n['pooled']==60 and np.abs(cv.oof.sum(axis=1)-1).max()<1e-5

def test_an_activation_of_several_outputs(df, get_dls, tmp_path):
    class Loss:
        def __call__(self, out, y): return F.cross_entropy(out[0], y)
        def activation(self, out): return (2*out[0]).softmax(-1)
    cv = CrossVal(df, get_dls, lambda dls: Learner(dls, Net(dls.c, wraps['tuple'][0]), loss_func=Loss()),
        tmp_path/'run').fit(fit())
    learn = cv.learner(0)
    x = torch.cat([b[0] for b in learn.dls.test_dl(df[df.fold==0])])
    with torch.no_grad(): want = (2*learn.model(x)[0]).softmax(1).numpy()
    assert np.abs(cv.oof[df.fold==0].values-want).max()<1e-5
    with pytest.raises(ValueError, match='the `activation` of Loss does not make probabilities of them'): cv.ensemble()

def bce(out, y): return F.binary_cross_entropy_with_logits(out.squeeze(1), y.float())

one_logit = {
    'flat':     lambda dls: Learner(dls,
        tiny(dls).model[:1].append(nn.Sequential(nn.AdaptiveAvgPool2d(1), Flatten(), nn.Linear(16, 1))),
                                    loss_func=BCEWithLogitsLossFlat(), splitter=default_split),
    'function': lambda dls: Learner(dls, Net(1, lambda a, b: a), loss_func=bce),
    'tuple':    lambda dls: Learner(dls, Net(1, lambda a, b: (b, a)), loss_func=lambda out, y: bce(out[1], y)),
    'probability': lambda dls: Learner(dls, nn.Sequential(Net(1, lambda a, b: a), nn.Sigmoid()),
        loss_func=BCELossFlat()),
}

@pytest.mark.parametrize('name', one_logit)
def test_one_logit_for_two_classes(name, two, get_dls, tmp_path):
    cv = CrossVal(two, get_dls, one_logit[name], tmp_path/'run').fit(fit(3, 1e-2))
    assert list(cv.oof.columns)==['healthy','ill'] and np.abs(cv.oof.sum(axis=1)-1).max()<1e-6
    for k in cv.folds:
        learn = cv.learner(k)
        x = torch.cat([b[0] for b in learn.dls.test_dl(two[two.fold==k])])
        with torch.no_grad(): out = learn.model(x)
        p = (out if name=='probability' else (out[1] if name=='tuple' else out).sigmoid())[:,0].numpy()
        assert np.abs(cv.oof.ill[two.fold==k].values-p).max()<1e-5
    assert cv.scores.accuracy['pooled']==((cv.oof.ill>.5)==(two.label=='ill')).mean() and cv.scores.auc.notna().all()
    assert 'healthy' in cv.report()

def test_an_ensemble_of_one_logit(two, get_dls, leaves, tmp_path):
    make = partial(vision_learner, arch='test_resnet', pretrained=False, n_out=1, loss_func=BCEWithLogitsLossFlat())
    for name,get_learner in (('named',make), ('function', one_logit['function'])):
        cv = CrossVal(two, get_dls, get_learner, tmp_path/name).fit(fit(2))
        preds = cv.predict(two.iloc[:9])
        each = []
        for k in cv.folds:
            learn = cv.learner(k)
            with torch.no_grad():
                each.append(torch.cat([learn.model(b[0]) for b in learn.dls.test_dl(two.iloc[:9])]).sigmoid())
        p = torch.stack(each).mean(0)[:,0].numpy()
        assert np.abs(preds.ill-p).max()<1e-5 and np.abs(preds.healthy-(1-p)).max()<1e-5
        cv.ensemble().export(tmp_path/f'{name}.out')
        loaded = load_ensemble(tmp_path/f'{name}.out',
            get_model=None if name=='named' else lambda: Net(1, lambda a, b: a))
        files = [leaves/'images'/f'{o}.jpg' for o in two.image_id[:9]]
        assert np.abs(loaded.predict(files).values-preds.values).max()<1e-5

@pytest.mark.parametrize('wrap', ['second','logits'])
def test_an_ensemble_of_several_outputs(wrap, df, get_dls, leaves, tmp_path):
    cv = CrossVal(df, get_dls, partial(heads, wrap=wrap), tmp_path/'run').fit(fit())
    test,pick = df.iloc[:9],wraps[wrap][1]
    preds,each = cv.predict(test),[]
    for k in cv.folds:
        learn = cv.learner(k)
        with torch.no_grad():
            each.append(torch.cat([pick(learn.model(b[0])) for b in learn.dls.test_dl(test)]).softmax(1))
    assert np.abs(preds.values-torch.stack(each).mean(0).numpy()).max()<1e-5
    cv.ensemble().export(tmp_path/'out')
    loaded = load_ensemble(tmp_path/'out', get_model=lambda: Net(4, wraps[wrap][0]))
    assert np.abs(loaded.predict([leaves/'images'/f'{o}.jpg' for o in test.image_id]).values-preds.values).max()<1e-5

def test_an_ensemble_of_one_logit_among_outputs(two, get_dls, tmp_path):
    cv = CrossVal(two, get_dls, one_logit['tuple'], tmp_path/'run').fit(fit())
    each = []
    for k in cv.folds:
        learn = cv.learner(k)
        with torch.no_grad(): each.append(torch.cat([learn.model(b[0])[1] for b in learn.dls.test_dl(two)]).sigmoid())
    assert np.abs(cv.predict(two).ill.values-torch.stack(each).mean(0)[:,0].numpy()).max()<1e-5

unreadable = {
    'too few columns':  (lambda dls: Learner(dls, Net(3, lambda a, b: a)),
        r'returns \[2, 3\] for 2 pictures of 4 classes.*expected \[2,4\]; give'),
    'too many columns': (lambda dls: Learner(dls, Net(5, lambda a, b: a), loss_func=F.cross_entropy),
        r'returns \[2, 5\] for 2 pictures of 4 classes'),
    'a row per pixel':  (lambda dls: Learner(dls, Net(4, lambda a, b: a.repeat(9, 1)),
        loss_func=lambda o, y: o.sum()), r'returns \[18, 4\] for 2 pictures'),
    'rows as columns':  (lambda dls: Learner(dls, Net(4, lambda a, b: a.T), loss_func=lambda o, y: o.sum()),
        r'returns \[4, 2\] for 2 pictures'),
    'a map':            (lambda dls: Learner(dls, nn.Conv2d(3, 4, 1), loss_func=lambda o, y: o.mean()),
        r'expected logits \[n,4\].* \[2, 4, 32, 32\]'),
    'numbers':          (lambda dls: Learner(dls, Net(1, lambda a, b: a[:,0]), loss_func=lambda o, y: o.mean()),
        r'expected logits \[n,4\]'),
    'no head of them':  (lambda dls: Learner(dls, Net(5, lambda a, b: (a, b)), loss_func=lambda o, y: o[0].mean()),
        r'expected logits \[n,4\].* 0 \[2, 5\], 1 \[2, 7\]'),
}

@pytest.mark.parametrize('name', unreadable)
def test_outputs_that_are_no_classes_are_refused_before_a_training(name, df, get_dls, tmp_path):
    get_learner,match = unreadable[name]
    cv = CrossVal(df, get_dls, get_learner, tmp_path/'run')
    refused(cv, fit(), match)
    assert untouched(cv)

@pytest.mark.parametrize('loss', [CrossEntropyLossFlat(), BaseLoss(nn.BCEWithLogitsLoss, floatify=True)])
def test_one_logit_of_a_loss_without_a_sigmoid(loss, two, get_dls, tmp_path):
    net = Net(1, lambda a, b: a)
    nn.init.constant_(net.head.bias, 9.) # no probability
    cv = CrossVal(two, get_dls, lambda dls: Learner(dls, net, loss_func=loss), tmp_path/'run')
    refused(cv, fit(), r'the activation of .*Loss.* of one logit: expected a probability of the second class, '
        r'as of BCEWithLogitsLossFlat\(\)')
    assert untouched(cv)

def test_saturated_logits_are_predictions(two, get_dls, tmp_path):
    def net():
        net = Net(1, lambda a, b: 1e4*a)
        nn.init.constant_(net.head.bias, 9.)
        return net
    cv = CrossVal(two, get_dls, lambda dls: Learner(dls, net(), loss_func=BCEWithLogitsLossFlat()),
        tmp_path/'run').fit(fit(lr=1e-6))
    assert (cv.oof.ill==1).all() and (cv.oof.healthy==0).all()

def test_callbacks_may_prepare_batches_and_outputs(df, get_dls, tmp_path):
    class Takes(nn.Module):
        def __init__(self, c):
            super().__init__()
            self.net = Net(2*c, lambda a, b: a)
        def forward(self, x, scale): return self.net(x*scale)
    class Prepares(Callback):
        def before_batch(self): self.learn.xb = (self.x, .5)
        def after_pred(self): self.learn.pred = self.pred.unflatten(1, (2,-1)).mean(1)
    cv = CrossVal(df, get_dls, lambda dls: Learner(dls, Takes(dls.c), cbs=Prepares), tmp_path/'run').fit(fit())
    assert np.abs(cv.oof.sum(axis=1)-1).max()<1e-5
    class Halves(Callback):
        def after_pred(self): self.learn.pred = self.pred.unflatten(1, (2,-1)).mean(1)
    cv = CrossVal(df, get_dls, lambda dls: Learner(dls, Net(2*dls.c, lambda a, b: a), cbs=Halves),
        tmp_path/'halves').fit(fit())
    assert np.abs(cv.oof.sum(axis=1)-1).max()<1e-5

several = {
    'several labels':      (dict(blocks=(ImageBlock, MultiCategoryBlock), get_y=ColReader('label', label_delim=' ')),
        'TensorMultiCategory'),
    'two targets':         (dict(blocks=(ImageBlock, CategoryBlock, CategoryBlock), n_inp=1,
        get_y=[ColReader('label'), ColReader('fold')]), '2 targets'),
    'two without n_inp':   (dict(blocks=(ImageBlock, CategoryBlock, CategoryBlock), get_y=[ColReader('fold')],
        get_x=[None, ColReader('label')]), '2 vocabs'),
}

@pytest.mark.parametrize('name', several)
def test_one_label_per_picture(name, df, leaves, tmp_path):
    kwargs,match = several[name]
    df = df.assign(label=df.label.replace('multiple_diseases', 'rust complex'))
    read = ColReader('image_id', pref=leaves/'images', suff='.jpg')
    get_x = [read if o is None else o for o in kwargs.get('get_x', [None])]
    b = DataBlock(**{**kwargs, 'get_x':get_x}, item_tfms=Resize(32))
    cv = CrossVal(df, b, tiny, tmp_path/'run', bs=8, num_workers=0, device='cpu')
    refused(cv, fit(), f'CrossVal is for one label per picture, but get_dls.df, 0. gives {match}: .*FoldSplitter')
    assert untouched(cv)

@pytest.mark.parametrize('change',
    [lambda d: (d, ['label','fold']), lambda d: (d.assign(label=d.label.str.split('_')), 'label'),
        lambda d: (d.assign(label=[{o} for o in d.label]), 'label'),
                                    lambda d: (d.assign(label=[(o,) for o in d.label]), 'label')])
def test_one_label_per_row(change, df, get_dls, tmp_path):
    d,label_col = change(df)
    with pytest.raises(ValueError, match='CrossVal is for one label per picture.*FoldSplitter') as e:
        CrossVal(d, get_dls, tiny, tmp_path/'run', label_col=label_col)
    assert '\n' not in str(e.value) and not (tmp_path/'run').exists()

def test_a_class_of_the_loaders_that_no_file_keeps(df, leaves, tmp_path):
    for more,match in (('a\r', 'does not come back'), ('label', 'as is a column')):
        vocab = [*sorted(df.label.unique()), more]
        cv = CrossVal(df, lambda d, k: with_block(leaves, d, (d.fold==k).values, vocab=vocab), tiny, tmp_path/'run')
        refused(cv, fit(), match)
        assert untouched(cv)
