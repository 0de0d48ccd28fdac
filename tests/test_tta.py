"Views and test-time augmentation in one pass."
import itertools
import warnings
from copy import deepcopy
from types import SimpleNamespace

import pytest
import timm
import torch
from fastai.vision.all import (BCEWithLogitsLossFlat, Callback, CategoryBlock, ColReader, CrossEntropyLossFlat,
                               CSVLogger, DataBlock, DataLoaders, F, ImageBlock, IntToFloatTensor,
                               LabelSmoothingCrossEntropyFlat, Learner, MSELossFlat, MultiCategoryBlock, Normalize,
                               PILImage, ProgressCallback, RandomSplitter, Resize, SaveModelCallback, TensorCategory,
                               TensorImage, TfmdLists, Transform, accuracy, aug_transforms, compose, fastuple,
                               get_image_files, load_learner, nn, noop, partial, pd, set_seed, vision_learner)
from scipy.stats import gmean
from fastai_mix.callback.gridmask import GridMask
from fastai_mix.callback.snapmix import SnapMix
from fastai_mix.data.leaves import leaf_data, leaf_dls
from fastai_mix.interpret import History
from fastai_mix.vision.tta import d4, five_crop, flips, hflip, identity, scales, view_preds
from helpers import CpuAutocast, toy_model

pytestmark = pytest.mark.filterwarnings('ignore')

@pytest.fixture(scope='module')
def leaves(tmp_path_factory): return leaf_data(tmp_path_factory.mktemp('leaves')/'data', n=40, size=64)

norm = [Normalize.from_stats([.5]*3, [.2]*3, cuda=False)]

def make(leaves, arch='test_resnet', batch_tfms=norm, bs=8, size=32, seed=0, **kw):
    "A Learner whose validation set does not fill its last batch"
    set_seed(seed)
    dls = leaf_dls(leaves, size=size, bs=bs, valid_pct=.5, batch_tfms=batch_tfms, device='cpu')
    learn = vision_learner(dls, arch, pretrained=False, **kw)
    for p in learn.model.parameters():
        if p.ndim>1: torch.nn.init.kaiming_normal_(p)
    learn.remove_cb(learn.progress)
    return learn

class AsView(Transform):
    order = 1000
    def __init__(self, view): self.view = view
    def encodes(self, x:TensorImage): return self.view(x)

def each(learn, views, dl=None, **kw):
    "What `get_preds` says of each view, as a transform behind all others"
    dl = dl or learn.dls.valid
    dls = [dl.new(after_batch=[*dl.after_batch.fs, AsView(v)]) for v in views]
    return torch.stack([learn.get_preds(dl=o, **kw)[0] for o in dls])

def close(a, b): torch.testing.assert_close(a, b, atol=1e-5, rtol=0)

# ---- equality with get_preds

@pytest.mark.parametrize('views', [
    d4, flips, [hflip], five_crop(.75), scales(.5,1,1.5), [*d4, *five_crop(.75), *scales(.75)],
    [compose(v, hflip) for v in five_crop()]], ids='d4 flips hflip crops scales all ten'.split())
@pytest.mark.parametrize('max_bs', [None, 3])
def test_views_are_those_of_get_preds(views, max_bs, leaves):
    learn = make(leaves)
    want,targs = each(learn, views),learn.get_preds()[1]
    assert len(targs)%8 and (len(views)==1 or (want[0]-want[1]).abs().max()>1e-3) # the test could not fail otherwise
    p = want.double().numpy()
    for merge,by_hand in (('mean', p.mean(0)), ('gmean', gmean(p, axis=0)), ('max', p.max(0))):
        preds,t,std = learn.tta_views(views=views, merge=merge, with_std=True, max_bs=max_bs)
        close(preds, torch.tensor(by_hand).float())
        close(std, torch.tensor(p.std(0)).float())
        assert torch.equal(t, targs) and type(t) is type(targs) and type(preds) is type(learn.get_preds()[0])

def test_on_logits(leaves):
    learn = make(leaves)
    logits = each(learn, d4, act=lambda x: x)
    close(learn.tta_views(on='logits')[0], logits.mean(0).softmax(1))
    close(learn.tta_views(on='logits', merge='max')[0], logits.amax(0).softmax(1))
    g = learn.tta_views(merge='gmean')[0]
    close(learn.tta_views(on='logits')[0], g/g.sum(1, keepdim=True))

def test_without_labels(leaves):
    learn = make(leaves)
    files = get_image_files(leaves/'images')[:11]
    dl = learn.dls.test_dl(files)
    preds,targs = learn.tta_views(dl=dl)
    assert targs is None
    close(preds, each(learn, d4, dl).mean(0))
    close(preds[[3]], learn.tta_views(dl=learn.dls.test_dl(files[3:4]))[0])

def test_several_labels(leaves):
    df = pd.read_csv(leaves/'train.csv')
    df['tags'] = df.labels.map({'multiple_diseases':'rust scab'}).fillna(df.labels)
    block = DataBlock((ImageBlock, MultiCategoryBlock),
        get_x=ColReader('image_id', pref=f'{leaves}/images/', suff='.jpg'), get_y=ColReader('tags', label_delim=' '),
        splitter=RandomSplitter(seed=0), item_tfms=Resize(32))
    dls = block.dataloaders(df, bs=16, num_workers=0, device='cpu')
    learn = vision_learner(dls, 'test_resnet', pretrained=False)
    with learn.no_bar():
        preds,targs = learn.tta_views()
        want = each(learn, d4)
        close(preds, want.mean(0))
        close(learn.tta_views(merge='gmean')[0], want.log().mean(0).exp())
        assert torch.equal(targs, learn.get_preds()[1]) and (preds.sum(1)-1).abs().max()>.1

def test_order_is_that_of_the_table(leaves):
    learn = make(leaves)
    preds,targs = learn.tta_views()
    for kw in (dict(shuffle=True), dict(shuffle=True, drop_last=True), dict(bs=3), dict(num_workers=2)):
        got,t = learn.tta_views(dl=learn.dls.valid.new(**kw))
        close(got, preds)
        assert torch.equal(t, targs)

def test_training_set_is_seen_as_validation_sees_it(leaves):
    learn = make(leaves, batch_tfms=[*aug_transforms(), *norm])
    preds,targs = learn.tta_views(ds_idx=0)
    assert torch.equal(preds, learn.tta_views(ds_idx=0)[0]) and len(preds)==len(learn.dls.train_ds)
    plain = learn.dls.test_dl(learn.dls.train_ds.items, with_labels=True)
    close(preds, learn.tta_views(dl=plain)[0])
    assert torch.equal(targs, learn.tta_views(dl=plain)[1])
    assert learn.dls.train_ds.split_idx==0

def test_other_loaders(toy):
    learn = toy()
    want = torch.stack([learn.get_preds(dl=[(v(x),y) for x,y in learn.dls.valid])[0] for v in d4]).mean(0)
    close(learn.tta_views()[0], want)
    close(learn.tta_views(dl=list(learn.dls.valid))[0], want)
    close(learn.tta_views(dl=[(x,) for x,_ in learn.dls.valid])[0], want)
    close(learn.tta_views(dl=torch.utils.data.DataLoader(learn.dls.valid_ds, batch_size=5), max_bs=2)[0], want)
    with pytest.raises(ValueError, match='no pictures'): learn.tta_views(dl=[])

# ---- each picture is decoded once

@pytest.fixture
def opened(monkeypatch):
    "Names of the files PILImage.create opened"
    names,create = [],PILImage.create.__func__
    def counted(cls, fn, **kw):
        names.append(str(fn))
        return create(cls, fn, **kw)
    monkeypatch.setattr(PILImage, 'create', classmethod(counted))
    return names

def test_each_picture_is_decoded_once(leaves, opened):
    learn = make(leaves, batch_tfms=[*aug_transforms(), *norm])
    files = sorted(map(str, learn.dls.valid_ds.items.image_id.map(lambda o: f'{leaves}/images/{o}.jpg')))
    opened.clear()
    for run in (lambda: learn.tta_views(), lambda: learn.tta_views(n_random=3),
                lambda: learn.tta_views(models=[learn.model]*4),
                lambda: view_preds([learn]*5, learn.dls.valid, five_crop()),
                lambda: learn.tta_views(dl=learn.dls.valid.new(shuffle=True), max_bs=1)):
        run()
        assert sorted(opened)==files
        opened.clear()
    learn.tta(n=2)
    assert sorted(opened)==sorted(files*3) # fastai's, so the count counts

# ---- random views

def test_random_views_are_fastais(leaves):
    learn = make(leaves, batch_tfms=[*aug_transforms(), *norm])
    dl,views = learn.dls.valid,[identity,hflip]
    was = dl.after_batch.split_idx
    set_seed(3)
    got = learn.tta_views(views=views, n_random=3)[0]
    plain = each(learn, views)
    set_seed(3)
    want = []
    dl.new().new() # each new loader draws once
    with torch.no_grad():
        for b in dl.new(after_batch=None):
            dl.after_batch.split_idx = 1
            dl.after_batch(b)
            dl.after_batch.split_idx = 0
            want.append(torch.stack([learn.model.eval()(dl.after_batch(b)[0]).softmax(1) for _ in range(3)]))
    want = torch.cat([plain, torch.cat(want, 1)])
    close(got, want.mean(0))
    assert (want[2]-want[3]).abs().max()>1e-3
    dl.after_batch.split_idx = was
    learn.tta_views(n_random=1)
    assert dl.after_batch.split_idx==was
    close(learn.get_preds()[0], plain[0])

def test_random_views_do_not_touch_the_others(leaves):
    "IntToFloatTensor divides a float batch in place"
    learn = make(leaves, batch_tfms=aug_transforms(mult=2))
    set_seed(0)
    a = learn.tta_views(views=d4, n_random=2, with_std=True)
    raw = learn.dls.valid.new(after_batch=None)
    b = next(iter(raw))
    assert (b[0]>1).any()
    alone = learn.tta_views(views=d4)[0]
    set_seed(0)
    rand = learn.tta_views(views=[], n_random=2)[0]
    close(a[0], (alone*8+rand*2)/10)

def test_no_random_transforms(leaves, toy):
    for learn in (make(leaves), toy()):
        with pytest.raises(ValueError, match='no random batch transforms'): learn.tta_views(n_random=2)

# ---- several networks

def test_several_networks(leaves):
    a,b,c = (make(leaves, seed=i) for i in range(3))
    kw = dict(views=flips)
    alone = torch.stack([o.tta_views(**kw)[0] for o in (a,b,c)])
    assert (alone[0]-alone[1]).abs().max()>1e-3
    preds,targs,std = view_preds([a,b,c.model], a.dls.valid, with_std=True, **kw)
    close(preds, alone)
    assert std.shape==preds.shape and torch.equal(targs, a.get_preds()[1])
    close(a.tta_views(models=[b,c], **kw)[0], alone.mean(0))
    close(a.tta_views(models=b.model, **kw)[0], alone[:2].mean(0))
    close(view_preds(a, a.dls.valid, **kw)[0], alone[:1])
    each_view = torch.stack([each(o, flips) for o in (a,b,c)]).flatten(0,1)
    for merge,want in (('max', each_view.amax(0)), ('gmean', each_view.log().mean(0).exp())):
        close(a.tta_views(models=[b,c], merge=merge, **kw)[0], want)
    close(a.tta_views(models=[b,c], with_std=True, **kw)[2], each_view.std(0, correction=0))
    close(view_preds([a,b,c], a.dls.valid.new(shuffle=True), max_bs=3, **kw)[0], alone)

def test_networks_of_other_classes(leaves):
    a = make(leaves)
    with pytest.raises(ValueError, match=r'\[8, 4\] and \[8, 7\]: expected the same classes'):
        a.tta_views(models=timm.create_model('test_resnet', num_classes=7))
    with pytest.raises(ValueError, match='starts with ResNet'):
        view_preds([timm.create_model('test_resnet')], a.dls.valid)
    with pytest.raises(ValueError, match='models has str'): a.tta_views(models=['test_resnet'])

leaf_names = ['healthy','multiple_diseases','rust','scab']

def learner_of(leaves, vocab=leaf_names, model=None, tfms=None, size=32, loss_func=None, several=False):
    "A Learner on half of the leaves, whose classes are in the order of `vocab`"
    df = pd.read_csv(leaves/'train.csv')
    df = df[df.labels.isin(vocab)]
    category = MultiCategoryBlock(vocab=vocab) if several else CategoryBlock(vocab=vocab, sort=False)
    block = DataBlock((ImageBlock, category), get_x=ColReader('image_id', pref=f'{leaves}/images/', suff='.jpg'),
        get_y=ColReader('labels', label_delim=' ' if several else None), splitter=RandomSplitter(.5, seed=0),
        item_tfms=Resize(size), batch_tfms=tfms)
    learn = Learner(block.dataloaders(df, bs=8, num_workers=0, device='cpu'), model or net(len(vocab)),
        loss_func=loss_func)
    learn.remove_cb(learn.progress)
    return learn

def net(c=4, n_in=3, seed=0):
    set_seed(seed)
    model = timm.create_model('test_resnet', num_classes=c, in_chans=n_in)
    for p in model.parameters():
        if p.ndim>1: nn.init.kaiming_normal_(p)
    return model

@pytest.mark.parametrize('order', list(itertools.permutations(range(4)))[1::9])
@pytest.mark.parametrize('several', [False, True])
def test_learners_of_classes_in_another_order(order, several, leaves):
    a = learner_of(leaves, several=several)
    model = deepcopy(a.model)
    fc = model.get_classifier()
    fc.weight.data,fc.bias.data = fc.weight.data[list(order)],fc.bias.data[list(order)]
    b = learner_of(leaves, [leaf_names[i] for i in order], model, several=several)
    alone,targs = a.tta_views(views=flips)
    assert (b.tta_views(views=flips)[0]-alone).abs().max()>.01
    for merge in (dict(), dict(on='logits'), dict(merge='max')):
        alone = a.tta_views(views=flips, **merge)[0]
        close(a.tta_views(models=[b], views=flips, **merge)[0], alone)
        # a network as it is
        close(a.tta_views(models=[b.model,b], views=flips, merge='max')[0],
            a.tta_views(models=b.model, views=flips, merge='max')[0])
        probs,t = view_preds([a,b], a.dls.valid, views=flips, **merge)
        close(probs[1], alone)
        assert torch.equal(t, targs)
    with pytest.raises(ValueError, match='labels are of the classes'): view_preds([a,b], b.dls.valid)

@pytest.mark.parametrize('vocab,text', [(leaf_names[:3], r"3, without \['scab'\] and with \[\]"),
    (leaf_names[:3]+['mould'], r"4, without \['scab'\] and with \['mould'\]"),
    (leaf_names+['mould'], r"5, without \[\] and with \['mould'\]")])
def test_learners_of_other_classes(vocab, text, leaves):
    a,b = learner_of(leaves),learner_of(leaves, vocab)
    for f in (lambda: a.tta_views(models=[a,b]), lambda: view_preds([a,b], a.dls.valid)):
        with pytest.raises(ValueError, match=text+': expected the 4 of the first Learner'): f()

norms = [None, norm, [Normalize.from_stats([.3,.4,.5], [.1,.2,.3], cuda=False)]]

@pytest.mark.parametrize('first,second', list(itertools.permutations(range(3), 2)))
def test_learners_with_another_normalisation(first, second, leaves):
    a,b = learner_of(leaves, model=net(), tfms=norms[first]),learner_of(leaves, model=net(), tfms=norms[second])
    views = [*flips, *scales(.75)]
    want = torch.stack([a.tta_views(views=views)[0], b.tta_views(views=views)[0]])
    assert (want[0]-want[1]).abs().max()>.01
    close(view_preds([a,b,a], a.dls.valid, views=views, max_bs=3)[0], want[[0,1,0]])
    close(a.tta_views(models=b, views=views)[0], want.mean(0))
    # a network as it is
    close(view_preds([a,b.model], a.dls.valid, views=[identity])[0][1],
        view_preds([a,a], a.dls.valid, views=[identity])[0][1])
    with pytest.raises(ValueError, match='normalizes differently from the first'): view_preds([a,b], b.dls.valid)

def test_normalisation_that_cannot_be_told(leaves, toy):
    a = learner_of(leaves, leaf_names[:3], tfms=norm)
    plain = toy()
    plain.dls.vocab = leaf_names[:3]
    for models in ([a,plain], [plain,a]):
        with pytest.raises(ValueError, match='give its network, `other.model`'): view_preds(models, models[0].dls.valid)
    view_preds([a,plain.model], a.dls.valid)
    close(view_preds([toy(),toy(seed=1)], plain.dls.valid.new())[0],
        torch.stack([toy(seed=i).tta_views()[0] for i in range(2)]))

def test_learners_of_another_activation(toy):
    def own(p, y): return F.cross_entropy(p, y)
    ce,bce = CrossEntropyLossFlat(),BCEWithLogitsLossFlat()
    for a,b in ((ce,bce), (bce,ce), (nn.CrossEntropyLoss(),bce), (ce,nn.BCEWithLogitsLoss()),
                (F.cross_entropy,F.binary_cross_entropy_with_logits), (ce,MSELossFlat())):
        with pytest.raises(ValueError, match='expected one activation'):
            toy(loss_func=a).tta_views(models=toy(loss_func=b))
    want = toy().tta_views(models=toy(seed=1))[0]
    for other in (LabelSmoothingCrossEntropyFlat(), nn.CrossEntropyLoss(),
                  partial(F.cross_entropy, label_smoothing=.1), own):
        close(toy().tta_views(models=toy(seed=1, loss_func=other))[0], want)

def test_one_logit_and_two(leaves):
    two = leaf_names[2:]
    class OneLogit(BCEWithLogitsLossFlat):
        def __call__(self, p, y): return super().__call__(p, y[:,None].float())
    a = learner_of(leaves, two, net(2))
    b,c = (learner_of(leaves, vocab, net(1), loss_func=OneLogit()) for vocab in (two,two[::-1]))
    with pytest.raises(ValueError, match='expected one activation'): a.tta_views(models=b)
    with pytest.raises(ValueError, match=r'\[8, 2\] and \[8, 1\]: expected the same classes'):
        a.tta_views(models=b.model)
    with pytest.raises(ValueError, match=r'in another order than the first one, but returns \[8, 1\]'):
        b.tta_views(models=c)
    close(b.tta_views(models=b)[0], b.tta_views()[0])

def test_learners_that_read_pictures_otherwise(leaves):
    a,b,gray = learner_of(leaves),learner_of(leaves, size=48),learner_of(leaves, model=net(n_in=1))
    text = 'pictures of 48×48, but all are read as the first Learner reads them, at 32×32'
    with pytest.warns(UserWarning, match=text):
        probs = view_preds([a,b], a.dls.valid)[0]
    close(probs[1], a.tta_views()[0])
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        a.tta_views(models=[learner_of(leaves), b.model])
    with pytest.raises(ValueError, match='failed on pictures that the first Learner.s loader reads: .*channels'):
        a.tta_views(models=gray)

# ---- a Learner with all its callbacks

class Shift(Callback):
    "A callback that changes what the network sees, in validation too"
    def before_batch(self): self.learn.xb = (self.x*2-self.y.reshape(-1,1,1,1),)
    def after_pred(self): self.learn.pred = self.pred+1

def test_callbacks_see_what_get_preds_shows_them(toy):
    learn = toy(cbs=Shift())
    want = torch.stack([learn.get_preds(dl=[(v(x),y) for x,y in learn.dls.valid])[0] for v in d4]).mean(0)
    close(learn.tta_views()[0], want)
    assert (want-toy().tta_views()[0]).abs().max()>1e-3

@pytest.mark.parametrize('max_bs', [None, 5])
def test_autocast(toy, max_bs):
    learn = toy(cbs=CpuAutocast())
    kinds = []
    learn.model[4].register_forward_hook(lambda m,i,o: kinds.append(o.dtype))
    other = toy(seed=1).model
    other[4].register_forward_hook(lambda m,i,o: kinds.append(o.dtype))
    preds,_ = learn.tta_views(models=other, max_bs=max_bs)
    assert set(kinds)=={torch.bfloat16} and preds.dtype==torch.float32 and not torch.is_autocast_enabled('cpu')
    learn = toy(cbs=[])
    learn.to_fp16()
    close(learn.tta_views()[0], toy().tta_views()[0])

def test_mixes_do_not_mix(toy):
    class Spy(SnapMix):
        def change(self, x, y): raise AssertionError
    learn = toy(cbs=[Spy(), GridMask(p=1)])
    close(learn.tta_views()[0], toy().tta_views()[0])

def test_layouts_and_wrappers(toy):
    want = toy().tta_views()[0]
    learn = toy()
    learn.to_channelslast(use_amp=False)
    close(learn.tta_views()[0], want)
    for wrap in (nn.DataParallel, lambda m: torch.compile(m, backend='eager')):
        wrapped = toy(model=wrap(toy().model))
        close(wrapped.tta_views()[0], want)
        close(wrapped.tta_views(views=scales(.5,1))[0], learn.tta_views(views=scales(.5,1))[0])
    x = learn.dls.valid.one_batch()[0].contiguous(memory_format=torch.channels_last)
    close(learn.tta_views(dl=[(x,)])[0], want[:len(x)])

def everything(learn):
    "Whatever a prediction could have changed"
    return (dict(vars(learn)), [m.training for m in learn.model.modules()], [(cb, cb.run) for cb in learn.cbs],
        {k:v for k,v in vars(learn.recorder).items() if k!='loss'},
        list(learn.recorder.losses), list(learn.recorder.values), learn.lock.locked(),
        torch.is_autocast_enabled('cpu'), torch.is_grad_enabled(),
        sum(len(m._forward_hooks)+len(m._forward_pre_hooks) for m in learn.model.modules()),
        getattr(learn.dls.valid.dataset, 'split_idx', None))

@pytest.mark.parametrize('mode', [True, False])
def test_nothing_changes(mode, toy, tmp_path):
    learn = toy(cbs=[SnapMix(), History(), CSVLogger(), SaveModelCallback(), CpuAutocast()], metrics=accuracy,
        path=tmp_path)
    learn.fit(2)
    learn.model.train(mode)
    learn.model[1].eval() # as in a frozen body
    was,rows,log = everything(learn),list(learn.history.rows),(tmp_path/'history.csv').read_text()
    assert len(learn.recorder.losses)==8
    learn.tta_views(models=toy_model(), with_std=True)
    assert everything(learn)==was and learn.history.rows==rows and (tmp_path/'history.csv').read_text()==log
    learn.fit(1)
    assert len(learn.history.rows)==3

class Fails(nn.Module):
    def __init__(self, ex, after): super().__init__(); self.ex,self.after,self.p = ex,after,nn.Parameter(torch.ones(1))
    def forward(self, x):
        self.after -= 1
        if self.after<0: raise self.ex('failed')
        return x.mean((2,3))*self.p

@pytest.mark.parametrize('ex', [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize('where', ['model', 'other', 'view', 'callback', 'last'])
def test_exceptions_leave_nothing(ex, where, toy):
    def bad(x): raise ex('failed')
    class Bad(Callback):
        def after_pred(self): raise ex('failed')
    learn = toy(model=Fails(ex, {'model':0, 'last':31}.get(where, 1000)),
        cbs=[CpuAutocast(), *([Bad()] if where=='callback' else [])])
    learn.fit(0)
    was = everything(learn)
    with pytest.raises(ex, match='failed'):
        learn.tta_views(views=[*d4, bad] if where=='view' else d4, models=Fails(ex, 9 if where=='other' else 1000))
    assert everything(learn)==was
    if where in ('view','other'): learn.tta_views()

def test_loaded_learner(leaves, tmp_path):
    learn = make(leaves, path=tmp_path, cbs=SnapMix())
    learn.export('e.pkl')
    loaded = load_learner(tmp_path/'e.pkl')
    files = get_image_files(leaves/'images')[:5]
    with loaded.no_bar():
        close(loaded.tta_views(dl=loaded.dls.test_dl(files))[0], learn.tta_views(dl=learn.dls.test_dl(files))[0])

def test_with_a_bar(toy):
    learn = toy(n=20)
    learn.add_cb(ProgressCallback())
    seen = []
    class Watch(Callback):
        order = 100
        def after_batch(self): seen.append((self.learn.progress.pbar.total, self.iter+1))
    for kw,n in (({},24), (dict(max_bs=3),24)):
        seen.clear()
        with learn.added_cbs(Watch()): learn.tta_views(**kw)
        assert {t for t,_ in seen}=={n} and seen[-1][1]==n and len(seen)==(24 if not kw else 64)
    with learn.no_bar(): learn.tta_views()

def test_every_process_predicts_all_when_distributed(toy):
    accelerate = pytest.importorskip('accelerate')
    from fastai.distributed import DistributedTrainer
    learn = toy(cbs=DistributedTrainer(cpu=True))
    close(learn.tta_views()[0], toy().tta_views()[0])
    assert learn.distributed_trainer.run

# ---- wrong input

@pytest.mark.parametrize('kw,text', [
    (dict(views='d4'), "views has 'd4'"), (dict(views=[]), 'no views'),
    (dict(views=[identity, None]), 'views has None'),
    (dict(merge='median'), "expected 'mean', 'gmean' or 'max'"), (dict(on='scores'), "expected 'probs' or 'logits'"),
    (dict(merge='gmean', on='logits'), "use merge='mean', on='logits'"),
    (dict(n_random=-1), 'from 0 up'), (dict(n_random=.5), 'from 0 up'), (dict(max_bs=0), 'from 1 up'),
    (dict(views=[lambda x: x[:1]]), r'made \[1, 3, 16, 16\] of \[8, 3, 16, 16\]'),
    (dict(views=[lambda x: x[0]]), 'as many pictures'),
    (dict(views=[lambda x: None]), 'made NoneType')])
def test_wrong_input(kw, text, toy):
    with pytest.raises(ValueError, match=text): toy().tta_views(**kw)

class OneSize(nn.Module):
    def __init__(self): super().__init__(); self.fc = nn.Linear(3*16*16, 3)
    def forward(self, x): return self.fc(x.flatten(1))

def test_networks_of_one_size(toy):
    learn = toy(model=OneSize())
    learn.tta_views(views=d4+five_crop(.5, resize=True))
    text = r'view scale\(factor=1.5\), which makes 24×24 of 16×16: .*five_crop\(resize=True\)'
    for view,text in ((scales(1.5)[0], text), (five_crop(8)[1], 'makes 8×8 of 16×16')):
        with pytest.raises(ValueError, match=text): learn.tta_views(views=[identity, view])
        any_size = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48,3))
        with pytest.raises(ValueError, match='makes'):
            toy(model=any_size).tta_views(views=[view], models=OneSize())
    vit = vision_learner(learn.dls, 'test_vit', n_out=3, loss_func=learn.loss_func, pretrained=False)
    with vit.no_bar(), pytest.raises(ValueError, match='the network failed on view'): vit.tta_views(views=scales(1.5))

def test_large_pictures_go_in_pieces(toy, monkeypatch):
    learn,seen = toy(),[]
    want = learn.tta_views()[0]
    learn.model.register_forward_hook(lambda m,i,o: seen.append(len(o)))
    for kw,pixels,sizes in (({},3*16*16,[3,3,2]), ({},1,[1]*8), (dict(max_bs=5),1,[5,3]), ({},2**18,[8])):
        # the notebook that was run may have patched the Learner anew
        monkeypatch.setitem(learn.tta_views.__func__.__globals__, '_cpu_pixels', pixels)
        seen.clear()
        close(learn.tta_views(**kw)[0], want)
        assert seen==sizes*32

@pytest.mark.parametrize('views', [scales(.8,1,1.25), scales(1,.8), scales(1,2), [identity, *five_crop()]],
    ids=range(4))
def test_targets_when_views_come_in_other_pieces(views, toy, monkeypatch):
    learn = toy()
    monkeypatch.setitem(learn.tta_views.__func__.__globals__, '_cpu_pixels', 3*16*16)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        preds,targs = learn.tta_views(views=views)
    assert torch.equal(targs, learn.dls.valid.dataset.y)
    close(preds, learn.tta_views(views=views, max_bs=99)[0])

def test_not_square(toy):
    learn = toy()
    x = torch.rand(4, 3, 12, 20)
    learn.model.eval()
    with torch.no_grad(): want = torch.stack([learn.model(v(x)).softmax(1) for v in d4]).mean(0)
    close(learn.tta_views(dl=[(x,)])[0], want)

class Returns(nn.Module):
    "A toy network that returns what `out` makes of its logits"
    def __init__(self, out, seed=0):
        super().__init__()
        set_seed(seed)
        self.model,self.out = toy_model(),out
    def forward(self, x): return self.out(self.model(x))

outputs = {
    'features first': (lambda z: (torch.zeros(len(z), 7), z), lambda o: o[1]),
    'aux behind':     (lambda z: [z, z*2], lambda o: o[0]),
    'dict':           (lambda z: dict(map=torch.zeros(len(z), 3, 2, 2), logits=z), lambda o: o['logits']),
    'object':         (lambda z: SimpleNamespace(hidden=torch.zeros(len(z), 5), logits=z), lambda o: o.logits)}

@pytest.mark.parametrize('kind', outputs)
@pytest.mark.parametrize('max_bs', [None, 3])
def test_networks_that_return_more_than_logits(kind, max_bs, toy):
    out,logits = outputs[kind]
    class Loss(CrossEntropyLossFlat):
        def __call__(self, p, y): return super().__call__(logits(p), y)
    learn,plain = toy(model=Returns(out), loss_func=Loss()),toy(model=Returns(noop))
    close(learn.tta_views(max_bs=max_bs)[0], plain.tta_views()[0])
    both = plain.tta_views(models=toy(model=Returns(noop, seed=1)))[0]
    assert (both-plain.tta_views()[0]).abs().max()>1e-3
    for other in (Returns(out, seed=1), toy(model=Returns(out, seed=1), loss_func=Loss())):
        close(learn.tta_views(models=other, max_bs=max_bs)[0], both)

def test_outputs_without_logits(toy):
    for out,text in ((lambda z: z[:,:,None], r'\[n,3\].* returns \[8, 3, 1\]'),
                     (lambda z: (z[:,:2],z[:,1:]), r'tuple of 0 \[8, 2\], 1 \[8, 2\]')):
        with pytest.raises(ValueError, match=text):
            toy(model=Returns(out), loss_func=lambda p,y: torch.zeros(())).tta_views()
        with pytest.raises(ValueError, match=text): toy().tta_views(models=Returns(out))

def test_an_activation_that_takes_the_whole_output(toy):
    class Loss(CrossEntropyLossFlat):
        def __call__(self, p, y): return super().__call__(p[1], y)
        def activation(self, p): return p[1].softmax(-1)
    with pytest.raises(ValueError, match=r'activation made \[3\] of scores \[64, 3\]'):
        toy(model=Returns(lambda z: (z.new_zeros(len(z), 7), z)), loss_func=Loss()).tta_views()

def test_one_logit_for_two_classes_stays_one(toy):
    class OneLogit(BCEWithLogitsLossFlat):
        def __call__(self, p, y): return super().__call__(p, y[:,None].float())
    learn = toy(model=toy_model(1), c=2, loss_func=OneLogit())
    want = torch.stack([learn.get_preds(dl=[(v(x),y) for x,y in learn.dls.valid])[0] for v in d4]).mean(0)
    assert want.shape==(32,1)
    close(learn.tta_views()[0], want)

@pytest.mark.parametrize('loss,act', [(nn.CrossEntropyLoss(), partial(torch.softmax, dim=1)),
    (partial(F.cross_entropy, label_smoothing=.1), partial(torch.softmax, dim=1)),
    (nn.BCEWithLogitsLoss(), torch.sigmoid), (nn.MSELoss(), noop),
    (lambda p,y: F.cross_entropy(p, y), noop)], ids=['cross','function','sigmoid','regression','unknown'])
def test_a_loss_without_activation(loss, act, toy):
    learn = toy(loss_func=loss, target='index' if 'ross' in str(loss) else 'onehot')
    want = act(learn.get_preds()[0])
    close(learn.tta_views(views=[identity])[0], want)
    close(torch.tensor(learn.scores().probs), want)
    if isinstance(loss, nn.MSELoss):
        with pytest.raises(ValueError, match='MSELoss has no `activation`'): learn.tta_views(merge='gmean')

def test_two_pictures_a_sample(toy):
    learn = toy()
    class Pair(nn.Module):
        def __init__(self, m): super().__init__(); self.m = m
        def forward(self, a, b, t): return self.m(a)-self.m(b)*t
    model = Pair(learn.model).eval()
    pair = Learner(learn.dls, model, loss_func=learn.loss_func)
    pair.dls.n_inp = 3
    a,b,t,y = torch.rand(8,3,16,16),torch.rand(8,3,16,16),torch.rand(8,1),torch.zeros(8).long()
    with torch.no_grad(): want = torch.stack([model(v(a),v(b),t).softmax(1) for v in d4]).mean(0)
    with pair.no_bar(): close(pair.tta_views(dl=[(a,b,t,y)], max_bs=3)[0], want)

class ImageTuple(fastuple): "Two pictures, as in a siamese network"

class Nested(nn.Module):
    "A network that takes two pictures, however they come"
    def __init__(self, parts):
        super().__init__()
        self.model,self.parts = toy_model(),parts
    def forward(self, *xb):
        a,b = self.parts(*xb)
        return self.model(a)-2*self.model(b)

nested = {
    'ImageTuple': (lambda a,b: (ImageTuple(a,b),), lambda x: x),
    'tuple':      (lambda a,b: ((a,b),), lambda x: x),
    'list':       (lambda a,b: ([a,b],), lambda x: x),
    'dict':       (lambda a,b: (dict(left=a, right=b),), lambda x: (x['left'],x['right'])),
    'deep':       (lambda a,b: ((a,(b,torch.ones(len(a)))),), lambda x: (x[0],x[1][0])),
    'beside':     (lambda a,b: (a,[b]), lambda a,x: (a,x[0]))}

@pytest.mark.parametrize('kind', nested)
@pytest.mark.parametrize('max_bs', [None, 3])
def test_pictures_in_tuples(kind, max_bs, toy):
    pack,parts = nested[kind]
    learn,seen = toy(model=Nested(parts)),[]
    a,b,y = TensorImage(torch.rand(8,3,16,16)),TensorImage(torch.rand(8,3,16,16)),torch.zeros(8).long()
    inputs = pack(a, b)
    learn.dls.n_inp = len(inputs)
    learn.model.eval()
    with torch.no_grad():
        want = torch.stack([learn.model(*pack(v(a),v(b))).softmax(1) for v in d4]).as_subclass(torch.Tensor)
    assert want.std(0).max()>.001
    learn.model.model.register_forward_pre_hook(lambda m,x: seen.append(len(x[0])))
    preds,targs,std = learn.tta_views(dl=[(*inputs,y)], max_bs=max_bs, with_std=True)
    close(preds.as_subclass(torch.Tensor), want.mean(0))
    close(std.as_subclass(torch.Tensor), want.std(0, correction=0))
    assert torch.equal(targs, y) and seen==([3,3,3,3,2,2] if max_bs else [8,8])*8

def test_pieces_of_tuples_are_small_on_a_cpu(toy, monkeypatch):
    learn,seen = toy(model=Nested(nested['tuple'][1])),[]
    monkeypatch.setitem(learn.tta_views.__func__.__globals__, '_cpu_pixels', 3*16*16)
    learn.model.model.register_forward_hook(lambda m,i,o: seen.append(len(o)))
    learn.tta_views(dl=[((torch.rand(8,3,16,16),torch.rand(8,3,16,16)), torch.zeros(8).long())], views=[identity])
    assert seen==[3,3,3,3,2,2]

def test_tuples_from_a_loader_of_fastai(leaves):
    files = get_image_files(leaves/'images')[:10]
    class Pair(Transform):
        def encodes(self, i:int):
            pictures = (TensorImage(PILImage.create(files[(i+k)%10])).permute(2,0,1) for k in (0,1))
            return ImageTuple(*pictures),TensorCategory(i%3)
    dls = DataLoaders.from_dsets(*[TfmdLists(range(10), Pair())]*2, bs=4, device='cpu', num_workers=0,
        after_batch=[IntToFloatTensor(), *norm])
    learn = Learner(dls, Nested(nested['ImageTuple'][1]), loss_func=CrossEntropyLossFlat())
    with learn.no_bar(), torch.no_grad():
        preds,targs,std = learn.tta_views(with_std=True, max_bs=3)
        def probs(v): return torch.cat([learn.model.eval()((v(a),v(b))).softmax(1) for (a,b),_ in dls.valid])
        want = torch.stack([probs(v) for v in d4]).as_subclass(torch.Tensor)
    close(preds, want.mean(0))
    assert std.min()>0 and targs.tolist()==[i%3 for i in range(10)]
