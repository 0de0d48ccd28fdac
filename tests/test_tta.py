"Views and test-time augmentation in one pass."
import itertools
import warnings

import numpy as np
import pytest
import timm
import torch
from fastai.vision.all import (Callback, ColReader, CSVLogger, DataBlock, F, ImageBlock, Learner, MultiCategoryBlock, Normalize, PILImage, ProgressCallback, RandomSplitter,
    Resize, SaveModelCallback, TensorImage, Transform, accuracy, aug_transforms, compose, get_image_files, load_learner, nn, noop, partial, pd, set_seed, vision_learner)
from hypothesis import given, settings, strategies as st
from scipy.stats import gmean
from conftest import toy_model
from test_snapmix import CpuAutocast
from fastai_mix.callback.gridmask import GridMask
from fastai_mix.callback.snapmix import SnapMix
from fastai_mix.data.leaves import leaf_data, leaf_dls
from fastai_mix.interpret import History
from fastai_mix.vision.tta import (antitranspose, d4, five_crop, flips, hflip, identity, rot180, rot270, rot90, scales, transpose,
    vflip, view_preds)

settings.register_profile('tests', deadline=None, max_examples=40)
settings.load_profile('tests')
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
    return torch.stack([learn.get_preds(dl=dl.new(after_batch=[*dl.after_batch.fs, AsView(v)]), **kw)[0] for v in views])

def close(a, b): torch.testing.assert_close(a, b, atol=1e-5, rtol=0)

# ---- views

images = st.builds(lambda n,c,h,w,seed: torch.rand(n,c,h,w, generator=torch.Generator().manual_seed(seed)), st.integers(1,3), st.integers(1,4),
    st.integers(1,9), st.integers(1,9), st.integers(0,2**31))

def same(f, g, x): return f(x).shape==g(x).shape and torch.equal(f(x), g(x))

@settings(max_examples=10)
@given(st.integers(0,2**31), st.integers(2,9))
def test_d4_and_flips_are_groups(seed, s):
    x = torch.rand(1,2,s,s, generator=torch.Generator().manual_seed(seed))
    for group in (d4, flips):
        for a,b in itertools.product(group, group): assert sum(same(compose(a, b), c, x) for c in group)==1
        for a in group: assert any(same(compose(a, b), identity, x) and same(compose(b, a), identity, x) for b in group)
    assert len(d4)==8 and all(not same(a, b, x) for a,b in itertools.combinations(d4, 2))

@given(images)
def test_views_by_hand(x):
    before = x.clone()
    for view,by_numpy in ((identity, lambda a: a), (hflip, lambda a: a[...,::-1]), (vflip, lambda a: a[...,::-1,:]),
            (transpose, lambda a: a.swapaxes(2,3)), (antitranspose, lambda a: a[...,::-1,::-1].swapaxes(2,3)),
            *((f, lambda a,k=k: np.rot90(a, k, (2,3))) for f,k in ((rot90,1),(rot180,2),(rot270,3)))):
        assert torch.equal(view(x), torch.from_numpy(by_numpy(x.numpy()).copy()))
        assert view(x).is_contiguous() and torch.equal(x, before)

@pytest.mark.parametrize('view', [*d4, *five_crop(.5), *five_crop(.5, resize=True), *scales(.5)])
def test_views_keep_type_layout_and_dtype(view):
    x = TensorImage(torch.rand(2,3,8,8)).contiguous(memory_format=torch.channels_last)
    out = view(x)
    assert type(out) is TensorImage and out.is_contiguous(memory_format=torch.channels_last)
    assert view(x.bfloat16()).dtype==torch.bfloat16
    assert view(x.contiguous()).is_contiguous()

@given(images.filter(lambda x: min(x.shape[-2:])>1), st.floats(.3, 1), st.booleans())
def test_five_crop(x, share, resize):
    h,w = (round(o*share) for o in x.shape[-2:])
    crops = [v(x) for v in five_crop(share, resize)]
    if resize: assert all(o.shape==x.shape for o in crops)
    else:
        tl,tr,bl,br,_ = crops
        assert torch.equal(tl, x[...,:h,:w]) and torch.equal(tr, x[...,:h,-w:]) and torch.equal(bl, x[...,-h:,:w]) and torch.equal(br, x[...,-h:,-w:])
        assert crops[4].shape==(*x.shape[:2],h,w)

def test_crop_in_pixels_and_centre():
    x = torch.arange(64.).view(1,1,8,8)
    assert torch.equal(five_crop(4)[4](x), x[...,2:6,2:6])
    assert torch.equal(five_crop(1)[2](x), x) and torch.equal(five_crop(1.)[2](x), x)

@pytest.mark.parametrize('f', [lambda: five_crop(0), lambda: five_crop(1.5), lambda: five_crop('a'), lambda: scales(0), lambda: scales(-1.),
    lambda: scales(1, 'a'), lambda: scales(100), lambda: five_crop(9)[0](torch.rand(1,3,8,8)), lambda: five_crop(.1)[0](torch.rand(1,3,4,4))])
def test_sizes_that_cannot_be(f):
    with pytest.raises(ValueError, match='expected'): f()

# ---- equality with get_preds

@pytest.mark.parametrize('views', [d4, flips, [hflip], five_crop(.75), scales(.5,1,1.5), [*d4, *five_crop(.75), *scales(.75)],
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
    dls = DataBlock((ImageBlock, MultiCategoryBlock), get_x=ColReader('image_id', pref=f'{leaves}/images/', suff='.jpg'), get_y=ColReader('tags', label_delim=' '),
                    splitter=RandomSplitter(seed=0), item_tfms=Resize(32)).dataloaders(df, bs=16, num_workers=0, device='cpu')
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
    for dl in (learn.dls.valid.new(shuffle=True), learn.dls.valid.new(shuffle=True, drop_last=True), learn.dls.valid.new(bs=3), learn.dls.valid.new(num_workers=2)):
        got,t = learn.tta_views(dl=dl)
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
    monkeypatch.setattr(PILImage, 'create', classmethod(lambda cls, fn, **kw: names.append(str(fn)) or create(cls, fn, **kw)))
    return names

def test_each_picture_is_decoded_once(leaves, opened):
    learn = make(leaves, batch_tfms=[*aug_transforms(), *norm])
    files = sorted(map(str, learn.dls.valid_ds.items.image_id.map(lambda o: f'{leaves}/images/{o}.jpg')))
    opened.clear()
    for run in (lambda: learn.tta_views(), lambda: learn.tta_views(n_random=3), lambda: learn.tta_views(models=[learn.model]*4),
                lambda: view_preds([learn]*5, learn.dls.valid, five_crop()), lambda: learn.tta_views(dl=learn.dls.valid.new(shuffle=True), max_bs=1)):
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
    for merge,want in (('max', each_view.amax(0)), ('gmean', each_view.log().mean(0).exp())): close(a.tta_views(models=[b,c], merge=merge, **kw)[0], want)
    close(a.tta_views(models=[b,c], with_std=True, **kw)[2], each_view.std(0, correction=0))
    close(view_preds([a,b,c], a.dls.valid.new(shuffle=True), max_bs=3, **kw)[0], alone)

def test_networks_of_other_classes(leaves):
    a = make(leaves)
    with pytest.raises(ValueError, match=r'\[8, 4\] and \[8, 7\]: expected the same classes'): a.tta_views(models=timm.create_model('test_resnet', num_classes=7))
    with pytest.raises(ValueError, match='starts with ResNet'): view_preds([timm.create_model('test_resnet')], a.dls.valid)
    with pytest.raises(ValueError, match='models has str'): a.tta_views(models=['test_resnet'])

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
    return (dict(vars(learn)), [m.training for m in learn.model.modules()], [(cb, cb.run) for cb in learn.cbs], {k:v for k,v in vars(learn.recorder).items() if k!='loss'},
        list(learn.recorder.losses), list(learn.recorder.values), learn.lock.locked(), torch.is_autocast_enabled('cpu'), torch.is_grad_enabled(),
        sum(len(m._forward_hooks)+len(m._forward_pre_hooks) for m in learn.model.modules()), getattr(learn.dls.valid.dataset, 'split_idx', None))

@pytest.mark.parametrize('mode', [True, False])
def test_nothing_changes(mode, toy, tmp_path):
    learn = toy(cbs=[SnapMix(), History(), CSVLogger(), SaveModelCallback(), CpuAutocast()], metrics=accuracy, path=tmp_path)
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
    learn = toy(model=Fails(ex, {'model':0, 'last':31}.get(where, 1000)), cbs=[CpuAutocast(), *([Bad()] if where=='callback' else [])])
    learn.fit(0)
    was = everything(learn)
    with pytest.raises(ex, match='failed'): learn.tta_views(views=[*d4, bad] if where=='view' else d4, models=Fails(ex, 9 if where=='other' else 1000))
    assert everything(learn)==was
    if where in ('view','other'): learn.tta_views()

def test_loaded_learner(leaves, tmp_path):
    learn = make(leaves, path=tmp_path, cbs=SnapMix())
    learn.export('e.pkl')
    loaded = load_learner(tmp_path/'e.pkl')
    files = get_image_files(leaves/'images')[:5]
    with loaded.no_bar(): close(loaded.tta_views(dl=loaded.dls.test_dl(files))[0], learn.tta_views(dl=learn.dls.test_dl(files))[0])

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
    (dict(views='d4'), "views has 'd4'"), (dict(views=[]), 'no views'), (dict(views=[identity, None]), 'views has None'),
    (dict(merge='median'), "expected 'mean', 'gmean' or 'max'"), (dict(on='scores'), "expected 'probs' or 'logits'"),
    (dict(merge='gmean', on='logits'), "use merge='mean', on='logits'"), (dict(n_random=-1), '0 or more'), (dict(n_random=.5), '0 or more'),
    (dict(max_bs=0), '1 or more'), (dict(views=[lambda x: x[:1]]), r'made \[1, 3, 16, 16\] of \[8, 3, 16, 16\]'), (dict(views=[lambda x: x[0]]), 'as many pictures'),
    (dict(views=[lambda x: None]), 'made NoneType')])
def test_wrong_input(kw, text, toy):
    with pytest.raises(ValueError, match=text): toy().tta_views(**kw)

class OneSize(nn.Module):
    def __init__(self): super().__init__(); self.fc = nn.Linear(3*16*16, 3)
    def forward(self, x): return self.fc(x.flatten(1))

def test_networks_of_one_size(toy):
    learn = toy(model=OneSize())
    learn.tta_views(views=d4+five_crop(.5, resize=True))
    for view,text in ((scales(1.5)[0], r'view scale\(factor=1.5\), which makes 24×24 of 16×16: .*five_crop\(resize=True\)'), (five_crop(8)[1], 'makes 8×8 of 16×16')):
        with pytest.raises(ValueError, match=text): learn.tta_views(views=[identity, view])
        with pytest.raises(ValueError, match='makes'): toy(model=nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48,3))).tta_views(views=[view], models=OneSize())
    vit = vision_learner(learn.dls, 'test_vit', n_out=3, loss_func=learn.loss_func, pretrained=False)
    with vit.no_bar(), pytest.raises(ValueError, match='the network failed on view'): vit.tta_views(views=scales(1.5))

def test_large_pictures_go_in_pieces(toy, monkeypatch):
    learn,seen = toy(),[]
    want = learn.tta_views()[0]
    learn.model.register_forward_hook(lambda m,i,o: seen.append(len(o)))
    for kw,pixels,sizes in (({},3*16*16,[3,3,2]), ({},1,[1]*8), (dict(max_bs=5),1,[5,3]), ({},2**18,[8])):
        monkeypatch.setitem(learn.tta_views.__func__.__globals__, '_cpu_pixels', pixels) # the notebook that was run may have patched the Learner anew
        seen.clear()
        close(learn.tta_views(**kw)[0], want)
        assert seen==sizes*32

@pytest.mark.parametrize('views', [scales(.8,1,1.25), scales(1,.8), scales(1,2), [identity, *five_crop()]], ids=range(4))
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

@pytest.mark.parametrize('model,text', [(nn.Conv2d(3,3,1), r'returned \[8, 3, 16, 16\]'), (type('Two', (Fails,), dict(forward=lambda s,x: (x.mean((2,3))*s.p,)*2))(None, 0), 'returned tuple')])
def test_other_outputs(model, text, toy):
    with pytest.raises(ValueError, match=text): toy(model=model, loss_func=lambda p,y: torch.zeros(())).tta_views()

@pytest.mark.parametrize('loss,act', [(nn.CrossEntropyLoss(), partial(torch.softmax, dim=1)), (partial(F.cross_entropy, label_smoothing=.1), partial(torch.softmax, dim=1)),
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
