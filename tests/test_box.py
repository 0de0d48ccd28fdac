"Properties of random boxes and pasting."
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from fastai_mix.vision.box import box_area, box_mask, paste_box, rand_box

sizes = st.tuples(st.integers(1,40), st.integers(1,40))
settings.register_profile('tests', deadline=None, max_examples=60)
settings.load_profile('tests')

@given(sizes, st.floats(0,1), st.integers(0,2**31))
def test_rand_box(size, lam, seed):
    torch.manual_seed(seed)
    box = rand_box(torch.full((5,), lam), size)
    assert box.dtype==torch.int64 and box.shape==(5,4)
    (t,l,b,r),(H,W) = box.T,size
    assert (0<=t).all() and (t<=b).all() and (b<=H).all() and (0<=l).all() and (l<=r).all() and (r<=W).all()
    frac = (1-lam)**.5
    assert ((b-t)<=round(frac*H)+1).all() and ((r-l)<=round(frac*W)+1).all()

def test_unclipped_side_is_root_of_share():
    torch.manual_seed(0)
    box = rand_box(torch.full((4000,), .75), (100,60))
    inner = (box[:,0]>0) & (box[:,2]<100) & (box[:,1]>0) & (box[:,3]<60)
    assert inner.sum()>500
    assert (box[inner,2]-box[inner,0]==50).all() and (box[inner,3]-box[inner,1]==30).all()

def test_centre_is_uniform():
    torch.manual_seed(0)
    box = rand_box(torch.full((20000,), .99), (50,50)) # sides of 5
    centre = box[:,0]+2
    inner = (box[:,0]>0) & (box[:,2]<50)
    counts = torch.bincount(centre[inner], minlength=50)[3:47].float()
    assert ((counts-400).abs()<5*400**.5).all() # expected 20000/50 at each row, to five standard deviations

@st.composite
def two_boxes(draw):
    H,W = draw(sizes)
    def box():
        t,b = sorted(draw(st.tuples(st.integers(0,H), st.integers(0,H))))
        l,r = sorted(draw(st.tuples(st.integers(0,W), st.integers(0,W))))
        return torch.tensor([[t,l,b,r]])
    return (H,W),box(),box()

@given(two_boxes())
def test_paste_is_cut_resize_paste(case):
    (H,W),to,frm = case
    x,src = torch.randn(1,2,H,W),torch.randn(1,2,H,W)
    want = x.clone()
    (t,l,b,r),(st_,sl,sb,sr) = to[0].tolist(),frm[0].tolist()
    if b>t and r>l and sb>st_ and sr>sl:
        want[:,:,t:b,l:r] = F.interpolate(src[:,:,st_:sb,sl:sr], (b-t,r-l), mode='bilinear', align_corners=True)
    x0,src0 = x.clone(),src.clone()
    torch.testing.assert_close(paste_box(x, src, to, frm), want, atol=2e-4, rtol=0)
    assert torch.equal(x, x0) and torch.equal(src, src0)
    torch.testing.assert_close(paste_box(x, src, to, to), paste_box(x, src, to), atol=2e-4, rtol=0)

@given(two_boxes())
def test_area_is_mask(case):
    size,a,b = case
    box = torch.cat([a,b])
    assert torch.equal(box_mask(box, size).sum((1,2)), box_area(box))

def test_layout_and_dtype_are_kept():
    x = torch.rand(2,3,8,8).to(memory_format=torch.channels_last)
    box = torch.tensor([[1,1,5,5]]*2)
    for src_box in (None, box-1):
        out = paste_box(x, x.flip(0).contiguous(memory_format=torch.channels_last), box, src_box)
        assert out.is_contiguous(memory_format=torch.channels_last)
        assert paste_box(x.bfloat16(), x.bfloat16(), box, src_box).dtype==torch.bfloat16

def test_a_share_that_is_no_number_is_an_empty_box():
    lam = torch.tensor([float('nan'), float('inf'), -float('inf'), 2., -1.])
    box = rand_box(lam, (9,7))
    assert box_area(box)[[0,1,3]].tolist()==[0]*3 and (box>=0).all() and (box<=torch.tensor([9,7,9,7])).all()
    assert (box_area(box)[[2,4]]>0).all()

outside = [[-9,0,-3,8], [0,-9,8,0], [8,0,12,8], [0,8,8,99], [-5,-5,0,0]]

def test_area_in_the_picture():
    box = torch.tensor([*outside, [-2,-3,4,99], [2,3,4,5], [5,5,2,9]])
    assert box_area(box, (8,6)).tolist()==[0]*5+[24,4,0]==box_mask(box, (8,6)).sum((1,2)).tolist()
    assert box_area(box.int()).dtype==box_area(box.int(), (8,6)).dtype==torch.int64

def test_a_box_outside_the_picture_pastes_nothing():
    box = torch.tensor(outside)
    x,src,inside = torch.rand(5,2,8,8),torch.rand(5,2,8,8),torch.tensor([[1,1,5,5]]*5)
    for args in ((box,), (box,inside), (inside,box)): assert torch.equal(paste_box(x, src, *args), x)
    assert not torch.equal(paste_box(x, src, inside, inside), x)
