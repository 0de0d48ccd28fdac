"Views of pictures: what they show, and what they keep."
import itertools

import numpy as np
import pytest
import torch
from fastai.vision.all import TensorImage, TensorMask, compose
from hypothesis import given, settings, strategies as st
from fastai_mix.vision.views import (antitranspose, d4, five_crop, flips, hflip, identity, map_pictures, rot180, rot270,
                                     rot90, scales, transpose, vflip)

settings.register_profile('tests', deadline=None, max_examples=40)
settings.load_profile('tests')

images = st.builds(lambda n,c,h,w,seed: torch.rand(n,c,h,w, generator=torch.Generator().manual_seed(seed)),
    st.integers(1,3), st.integers(1,4), st.integers(1,9), st.integers(1,9), st.integers(0,2**31))

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
        assert torch.equal(tl, x[...,:h,:w]) and torch.equal(tr, x[...,:h,-w:])
        assert torch.equal(bl, x[...,-h:,:w]) and torch.equal(br, x[...,-h:,-w:])
        assert crops[4].shape==(*x.shape[:2],h,w)

def test_crop_in_pixels_and_centre():
    x = torch.arange(64.).view(1,1,8,8)
    assert torch.equal(five_crop(4)[4](x), x[...,2:6,2:6])
    assert torch.equal(five_crop(1)[2](x), x) and torch.equal(five_crop(1.)[2](x), x)

@pytest.mark.parametrize('f', [
    lambda: five_crop(0), lambda: five_crop(1.5), lambda: five_crop('a'), lambda: scales(0), lambda: scales(-1.),
    lambda: scales(1, 'a'), lambda: scales(100), lambda: five_crop(9)[0](torch.rand(1,3,8,8)),
    lambda: five_crop(.1)[0](torch.rand(1,3,4,4))])
def test_sizes_that_cannot_be(f):
    with pytest.raises(ValueError, match='expected'): f()

def test_masks_are_turned_with_their_pictures():
    x,mask = TensorImage(torch.rand(2,3,8,6)),TensorMask(torch.arange(2*8*6).view(2,8,6))
    for v in [*d4, *five_crop(.5), *five_crop(.5, resize=True), *scales(.5, 2)]:
        got,m,m4 = map_pictures(v, (x, mask, mask[:,None]))
        assert torch.equal(got, v(x)) and type(m) is type(m4) is TensorMask and m.dtype==m4.dtype==torch.int64
        assert m.shape[-2:]==got.shape[-2:] and torch.equal(m, m4[:,0]) and torch.isin(m, mask).all()
    assert torch.equal(map_pictures(rot90, mask), mask.rot90(1, (1,2)))
