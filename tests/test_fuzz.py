"Functions without state, for every dtype, memory layout, batch size and number: valid results, same arguments after."
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from fastai.vision.all import nn
from hypothesis import HealthCheck, assume, given, settings, strategies as st
from fastai_mix.callback.gridmask import grid_mask
from fastai_mix.callback.mix import draw_beta, draw_partner, mix_loss
from fastai_mix.callback.plc import correct_labels, label_gap
from fastai_mix.callback.snapmix import snapmix
from fastai_mix.crossval import blend, fill_sample, fit_weights, score_probs, score_table
from fastai_mix.data.folds import add_folds, draw_rows
from fastai_mix.data.sampling import class_weights, sample_weights
from fastai_mix.data.soft import soft_accuracy, soft_labels
from fastai_mix.data.table import label_table, unsafe_names
from fastai_mix.vision.box import box_area, box_mask, paste_box, rand_box
from fastai_mix.vision.cam import semantic_map, semantic_mass

def fuzz(n=60):
    return settings(max_examples=n//3, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

seeds,batches,sides = st.integers(0, 2**31),st.sampled_from([0,1,2,3,7]),st.integers(1, 17)
floats = st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])
pixels = st.sampled_from([torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64])
whole = st.sampled_from([torch.uint8, torch.int16, torch.int32, torch.int64])
extremes = [0., -0., 1., -1., 1e-45, 1e-38, 3e38, -3e38, float('inf'), -float('inf'), float('nan'), 65504., .5]

def strided(t):
    "The same numbers, apart in memory"
    wide = torch.zeros(*t.shape[:-1], t.shape[-1]*2, dtype=t.dtype)
    wide[...,::2] = t
    return wide[...,::2]

def turned(t): return t.transpose(0, -1).contiguous().transpose(0, -1) if t.ndim>1 else strided(t)
def channels_last(t): return t.contiguous(memory_format=torch.channels_last) if t.ndim==4 else turned(t)
def spread(t): return t[:1].expand_as(t) if len(t) else t
layouts = st.sampled_from([strided, turned, channels_last])

def same(a, b):
    return torch.allclose(torch.as_tensor(a).double(), torch.as_tensor(b).double(), rtol=1e-5, atol=1e-6,
        equal_nan=True)

def unchanged(f, *args):
    "The result of `f`, which must not change its arguments"
    copies = [o.clone() for o in args]
    out = f(*args)
    for a,b in zip(args, copies):
        assert torch.equal(a.nan_to_num(7) if a.is_floating_point() else a,
            b.nan_to_num(7) if b.is_floating_point() else b)
    return out

@st.composite
def boxes(draw, n, size, far=True):
    "Boxes in the picture, beyond it, empty, or with bottom < top or right < left"
    def coordinate(side):
        around = st.integers(-side-3, 2*side+3)
        return st.one_of(around, st.sampled_from([-2**40, 2**40])) if far else around
    values = [[draw(coordinate(size[i%2])) for i in range(4)] for _ in range(n)]
    return torch.tensor(values, dtype=torch.int64).reshape(n, 4)

@fuzz(100)
@given(batches, sides, sides, st.lists(st.sampled_from(extremes), min_size=7, max_size=7), floats, seeds)
def test_rand_box(n, h, w, lam, dtype, seed):
    lam = torch.tensor(lam[:n], dtype=torch.float64).to(dtype)
    def draw(lam):
        torch.manual_seed(seed)
        return unchanged(lambda l: rand_box(l, (h,w)), lam)
    box = draw(lam)
    assert box.shape==(n,4) and box.dtype==torch.int64 and torch.equal(box, draw(strided(lam)))
    assert (box>=0).all() and (box[:,2:]>=box[:,:2]).all() and (box[:,2]<=h).all() and (box[:,3]<=w).all()
    assert (box_area(box)[(lam>=1)|lam.isnan()]==0).all()

@fuzz(100)
@given(st.data(), batches, sides, sides, layouts)
def test_area_is_what_the_mask_covers(data, n, h, w, layout):
    box = data.draw(boxes(n, (h,w)))
    mask = box_mask(box, (h,w))
    assert mask.shape==(n,h,w) and mask.dtype==torch.bool and mask.sum((1,2)).tolist()==box_area(box, (h,w)).tolist()
    assert torch.equal(mask, box_mask(layout(box), (h,w))) and torch.equal(box_area(box), box_area(layout(box)))

@fuzz(150)
@given(st.data(), batches, st.integers(1, 4), sides, sides, pixels, layouts, seeds, st.booleans())
def test_paste_box(data, n, c, h, w, dtype, layout, seed, resized):
    g = torch.Generator().manual_seed(seed)
    x,src = (torch.rand(n, c, h, w, generator=g).mul(255).to(dtype) for _ in range(2))
    box = data.draw(boxes(n, (h,w)))
    more = [data.draw(boxes(n, (h,w)))] if resized else []
    out = unchanged(paste_box, x, src, box, *more)
    assert out.shape==x.shape and out.dtype==dtype and out.data_ptr()!=x.data_ptr() or not n
    keep = ~box_mask(box, (h,w))
    if resized: keep |= (box_area(more[0], (h,w))==0)[:,None,None]
    keep = keep[:,None].expand_as(x)
    assert torch.equal(out[keep], x[keep]) and out.double().isfinite().all()
    if not resized: assert torch.equal(out[~keep], src[~keep])
    assert same(out, paste_box(layout(x), layout(src), layout(box), *map(layout, more)))
    if n: assert same(out[:1], paste_box(x[:1], src[:1], box[:1], *(o[:1] for o in more))) # each by itself

@fuzz(150)
@given(batches, st.integers(1, 5), st.integers(1, 5), sides, sides, floats, layouts, st.data())
def test_semantic_map(n, a, b, h, w, dtype, layout, data):
    wild = st.one_of(st.sampled_from(extremes), st.floats(-10, 10, width=32))
    numbers = wild if data.draw(st.booleans()) else st.floats(-1, 1, width=16)
    values = data.draw(st.lists(numbers, min_size=n*a*b, max_size=n*a*b))
    cam = torch.tensor(values, dtype=torch.float64).reshape(n, a, b).to(dtype)
    m = unchanged(lambda o: semantic_map(o, (h,w)), cam)
    assert m.shape==(n,h,w) and m.dtype==torch.float32 and (m>=0).all()
    torch.testing.assert_close(m.sum((1,2)), torch.ones(n), rtol=0, atol=1e-5)
    torch.testing.assert_close(semantic_map(layout(cam), (h,w)), m)
    box = data.draw(boxes(n, (h,w)))
    mass = semantic_mass(cam, box, (h,w))
    assert mass.shape==(n,) and (mass>=0).all() and (mass<=1).all() and (mass[box_area(box, (h,w))==0]==0).all()
    torch.testing.assert_close(mass, (m*box_mask(box, (h,w))).sum((1,2)).clamp(max=1), rtol=0, atol=1e-5)

@fuzz(100)
@given(st.data(), batches, sides, sides, pixels, layouts, seeds)
def test_snapmix(data, n, h, w, dtype, layout, seed):
    g = torch.Generator().manual_seed(seed)
    x,cam = torch.rand(n, 3, h, w, generator=g).mul(255).to(dtype),torch.randn(n, 2, 3, generator=g)
    partner = torch.randperm(n, generator=g)
    box,src_box = data.draw(boxes(n, (h,w))),data.draw(boxes(n, (h,w)))
    out,own,theirs = unchanged(snapmix, x, cam, partner, box, src_box)
    assert out.shape==x.shape and out.dtype==dtype
    assert all(o.shape==(n,) and (o>=0).all() and (o<=1).all() for o in (own,theirs))
    none = (box_area(box, (h,w))==0) | (box_area(src_box, (h,w))==0)
    assert torch.equal(out[none], x[none]) and (own[none]==1).all() and (theirs[none]==0).all()
    for a,b in zip((out,own,theirs), snapmix(*map(layout, (x,cam,partner,box,src_box)))): assert same(a, b)

@fuzz(100)
@given(batches, sides, sides, st.floats(1e-9, 1, exclude_max=True), st.booleans(), st.sampled_from(['grid','checker']),
    whole, layouts, st.data())
def test_grid_mask(n, h, w, ratio, invert, pattern, dtype, layout, data):
    d = torch.tensor(data.draw(st.lists(st.sampled_from([0,1,2,3,17,96,255]), min_size=n, max_size=n))).to(dtype)
    offset = torch.tensor(data.draw(st.lists(st.integers(0, 100), min_size=2*n, max_size=2*n)),
        dtype=torch.int64).reshape(n, 2)
    angle = torch.tensor(data.draw(st.lists(st.sampled_from([0,45,90,359,-7,3600]), min_size=n, max_size=n)),
        dtype=torch.int64)
    args = ((h,w), d, ratio, offset, angle)
    keep = grid_mask(*args, invert, pattern)
    assert keep.shape==(n,h,w) and keep.dtype==torch.bool and torch.equal(~keep, grid_mask(*args, not invert, pattern))
    assert torch.equal(keep, grid_mask((h,w), layout(d), ratio, layout(offset), layout(angle), invert, pattern))

@fuzz(100)
@given(batches, st.integers(2, 5), floats, whole, layouts, seeds, st.floats(.01, 1), st.sampled_from(['gap','ratio']),
    st.booleans())
def test_correct_labels(n, c, dtype, kind, layout, seed, theta, rule, several):
    g = torch.Generator().manual_seed(seed)
    p = (torch.rand(n, c, generator=g) if several else torch.randn(n, c, generator=g).mul(4).softmax(1)).to(dtype)
    y = torch.randint(2, (n,c), generator=g).to(kind) if several else torch.randint(c, (n,), generator=g).to(kind)
    best,top,own = label_gap(p, y)
    new = unchanged(lambda p,y: correct_labels(p, y, theta, rule), p, y)
    assert new.shape==y.shape and new.dtype==kind and ((new==y)|(new==best)).all() and (own<=top).all()
    assert torch.equal(new, correct_labels(layout(p), layout(y), theta, rule))

@fuzz(100)
@given(st.integers(1, 5), st.integers(2, 4), st.sampled_from([torch.float32, torch.float64]), layouts, seeds,
    st.sampled_from(['mean','sum','none']), st.booleans())
def test_mix_loss(n, c, dtype, layout, seed, reduction, several):
    g = torch.Generator().manual_seed(seed)
    pred = torch.randn(n, c, generator=g, dtype=dtype)
    def labels():
        return torch.randint(2, (n,c), generator=g).to(dtype) if several else torch.randint(c, (n,), generator=g)
    y,y2 = labels(),labels()
    w,w2 = torch.rand(2, n, generator=g, dtype=dtype)
    loss = nn.BCEWithLogitsLoss(reduction=reduction) if several else nn.CrossEntropyLoss(reduction=reduction)
    one = F.binary_cross_entropy_with_logits if several else F.cross_entropy
    at = lambda t: one(pred, t, reduction='none')
    k,k2 = (w[:,None],w2[:,None]) if several else (w,w2)
    want = k*at(y)+k2*at(y2)
    want = want if reduction=='none' else getattr(want, reduction)()
    torch.testing.assert_close(mix_loss(loss, pred, (y,), (y2,), w, w2), want, rtol=1e-5, atol=1e-6)
    got = mix_loss(loss, layout(pred), (layout(y),), (layout(y2),), strided(w), strided(w2))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)

@fuzz(60)
@given(st.integers(1, 9), st.sampled_from([1e-3, .2, 1, 5, 1e3]), seeds)
def test_draws(n, alpha, seed):
    torch.manual_seed(seed)
    lam = draw_beta(alpha, n, 'cpu')
    assert lam.shape==(n,) and (lam>=0).all() and (lam<=1).all()
    for how in ('any','other'):
        p = draw_partner(n, how, 'cpu')
        assert sorted(p.tolist())==list(range(n)) and (how=='any' or n<2 or (p!=torch.arange(n)).all())

# ---- tables

def simplex(rng, *size): return rng.dirichlet(np.ones(size[-1]), size[:-1])

def forms(a):
    "The same numbers as NumPy, PyTorch, lists and pandas have them"
    yield from (a, np.asfortranarray(a), np.repeat(a, 2, -1)[...,::2], torch.tensor(a))
    if a.size: yield a.tolist() # else the shape is lost
    if a.ndim==2: yield pd.DataFrame(a)

@fuzz(25)
@given(seeds, st.integers(1, 30), st.integers(2, 5), st.sampled_from([1,1e-9,1e9]), st.booleans())
def test_scores(seed, n, c, scale, certain):
    rng = np.random.default_rng(seed)
    p,y = simplex(rng, n, c),rng.integers(c, size=n)
    if certain: p = np.eye(c)[p.argmax(1)]
    s = score_probs(p*scale, y)
    assert s['n']==n and all(0<=s[k]<=1 for k in ('accuracy','macro_f1')) and 0<=s['log_loss']<40
    assert 0<=s['auc']<=1 if len(set(y))==c else np.isnan(s['auc'])
    for o,v in zip(forms(p*scale), (y, y.tolist(), y.astype(np.uint8), y.astype(float), torch.tensor(y), y)):
        assert score_probs(o, v)==pytest.approx(s, nan_ok=True)
    t = score_table(p, y, np.arange(n)%3)
    assert t.loc['pooled'].to_dict()==pytest.approx(score_probs(p, y), nan_ok=True) and len(t)==min(n, 3)+3

@fuzz(60)
@given(seeds, st.integers(1, 4), st.integers(0, 12), st.integers(1, 4),
    st.sampled_from(['mean','gmean','rank','weights']), st.booleans())
def test_blend(seed, k, n, c, how, certain):
    rng = np.random.default_rng(seed)
    p,w = simplex(rng, k, n, c),simplex(rng, k)
    if certain: p = np.eye(c)[p.argmax(2)]
    out = blend(p, how, w)
    assert out.shape==(n,c) and (out>=0).all() and (how=='rank' or np.allclose(out.sum(1), 1))
    assert np.isfinite(out).all()
    for o in forms(p): assert np.allclose(blend(o, how, list(w)), out)
    assert np.allclose(blend(p[:1], 'gmean'), p[0], atol=1e-9)
    if n:
        v = fit_weights(p, rng.integers(c, size=n))
        assert v.shape==(k,) and (v>=0).all() and np.isclose(v.sum(), 1)

names = st.one_of(st.text(max_size=5), st.integers(-5, 5), st.sampled_from(['a','b','=1','-3']))

@fuzz(60)
@given(st.lists(names, max_size=8))
def test_unsafe_names(values):
    bad = unsafe_names(values)
    assert set(bad)<=set(map(str, values)) and list(bad)==[o for o in dict.fromkeys(map(str, values)) if o in bad]
    assert all(o[0] in '=+-@' or any(ord(c)<32 or 127<=ord(c)<160 for c in o) for o in bad)
    assert not any(isinstance(o, int) and str(o) in bad for o in values)

kinds = {'str': str, 'int': int, 'bool': lambda k: k>0, 'float': float}

@fuzz(80)
@given(seeds, st.integers(2, 60), st.integers(2, 4), st.sampled_from(list(kinds)), st.booleans(), st.booleans())
def test_tables_of_labels(seed, n, c, kind, category, other_index):
    rng = np.random.default_rng(seed)
    df = pd.DataFrame({'label': pd.Series([kinds[kind](int(k)) for k in rng.integers(c, size=n)])})
    assume(df.label.nunique()>1)
    if category: df['label'] = df.label.astype('category')
    if other_index: df.index = rng.permutation(n)*3-7
    before = df.copy(deep=True)
    has = label_table(df, 'label')
    assert has.index.equals(df.index) and (has.sum(axis=1)==1).all() and has.idxmax(axis=1).tolist()==df.label.tolist()
    w,rows = class_weights(df.label),sample_weights(df.label)
    assert np.isclose((w*has.sum()).sum()/n, 1, atol=1e-5)
    assert np.allclose(rows, df.label.astype(object).map(w.to_dict()))
    pos = draw_rows(has, oversample='balance', seed=seed)
    counts = has.iloc[pos].sum()
    assert set(pos)==set(range(n)) and counts.max()-counts.min()<=1
    res = add_folds(df, 'label', 2, rare='train') if (df.label.value_counts()>1).sum()>1 else df.assign(fold=0)
    assert set(res.fold)<={-1,0,1} and res.index.equals(df.index)
    pd.testing.assert_frame_equal(df, before)

@fuzz(40)
@given(seeds, st.integers(2, 20), st.integers(2, 4), st.floats(0, 1), st.sampled_from(['all','disagree']),
    st.booleans())
def test_soft_labels(seed, n, c, a, where, hard):
    rng = np.random.default_rng(seed)
    classes = [f'k{i}' for i in range(c)]
    df = pd.DataFrame({'label': np.array(classes)[np.r_[0, 1, rng.integers(c, size=n-2)]]},
        index=[f'r{i}' for i in range(n)])
    oof = pd.DataFrame(simplex(rng, n, c), df.index, classes)
    soft = soft_labels(df, oof.sample(frac=1, random_state=0), 'label', a, where, hard)[classes].to_numpy()
    assert (soft>=-1e-9).all() and np.allclose(soft.sum(1), 1)
    got = soft_accuracy(torch.tensor(oof.to_numpy()), torch.tensor(soft))
    assert 0<=got<=1

@fuzz(40)
@given(seeds, st.integers(1, 12), st.integers(2, 4), st.booleans())
def test_fill_sample(seed, n, c, one):
    rng = np.random.default_rng(seed)
    classes = [f'k{i}' for i in range(c)]
    probs = pd.DataFrame(simplex(rng, n, c), [f'r{i}' for i in rng.permutation(n)], classes)
    cols = ['label'] if one else list(rng.permutation(classes))
    sample = pd.DataFrame({'id': rng.permutation(probs.index)}).assign(**dict.fromkeys(cols, 0))
    out = fill_sample(sample, probs)
    assert list(out)==['id',*cols] and out.id.tolist()==sample.id.tolist()
    if one: assert out.label.tolist()==probs.loc[out.id].idxmax(axis=1).tolist()
    else: assert np.allclose(out[classes], probs.loc[out.id])
