"Small pictures first: every picture of a sample, however it comes, and masks by their values."
import pytest
import torch
from fastai.vision.all import DataLoader, DataLoaders, TensorImage, TensorMask, fastuple, nn
from fastai_mix.callback.resize import ProgressiveResize
from helpers import toy_model

class ImageTuple(fastuple): "Two pictures, as in a siamese network"

class Samples:
    "Samples of 64x64 and 64x32 pictures, and a mask of the classes 3 and 9, in the shape that `pack` gives them"
    def __init__(self, pack): self.pack = pack
    def __len__(self): return 16
    def __getitem__(self, i):
        a,b = TensorImage(torch.rand(3,64,64)),TensorImage(torch.rand(3,64,32))
        return *self.pack(a, b, TensorMask(torch.where(a[0]<.5, 3, 9).as_subclass(torch.Tensor))),torch.tensor(i%3)

nested = {
    'ImageTuple': (lambda a,b,m: (ImageTuple(a,b),m), lambda x,m: (*x,m)),
    'tuple':      (lambda a,b,m: ((a,b,m),), lambda x: x),
    'list':       (lambda a,b,m: ([a,b],m), lambda x,m: (*x,m)),
    'dict':       (lambda a,b,m: (dict(left=a, right=b, mask=m),), lambda x: (x['left'],x['right'],x['mask'])),
    'deep':       (lambda a,b,m: ((a,(b,m,torch.ones(4))),), lambda x: (x[0],*x[1][:2])),
    'beside':     (lambda a,b,m: (a,b,m), lambda *x: x)}

@pytest.mark.parametrize('kind', nested)
def test_all_pictures_of_a_sample_grow(kind, toy):
    pack,parts = nested[kind]
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.model,self.seen,self.values = toy_model(),[],set()
        def forward(self, *xb):
            a,b,mask = parts(*xb)
            if self.training: self.seen.append([tuple(o.shape[-2:]) for o in (a,b,mask)])
            self.values |= set(mask.unique().tolist())
            assert mask.dtype==torch.int64 and mask.ndim==3
            return self.model(a)+self.model(b)
    learn = toy(model=Net(), cbs=ProgressiveResize(multiple_of=8))
    dl = DataLoader(Samples(pack), bs=8, num_workers=0)
    learn.dls = DataLoaders(dl, dl)
    learn.dls.n_inp = len(pack(0, 0, 0))
    learn.fit(4)
    sides = [32,32,40,48,48,56,64,64]
    assert learn.model.seen==[[(s,s), (s,s//2//8*8), (s,s)] for s in sides] and learn.model.values=={3,9}
    assert learn.progressive_resize.full==(64,64)

def test_types_and_plain_tensors_stay(toy):
    learn = toy(cbs=ProgressiveResize(multiple_of=4))
    cb = learn.progressive_resize
    cb.pct_train,mask = 0.,TensorMask(torch.randint(0, 9, (2,16,16)))
    learn.xb = (ImageTuple(TensorImage(torch.rand(2,3,16,16)), mask), torch.rand(2,16,16), 'a leaf', [torch.rand(2,5)])
    cb.before_batch()
    (x,m),volume,name,(vector,) = learn.xb
    assert [type(o) for o in (learn.xb[0],x,m)]==[ImageTuple,TensorImage,TensorMask]
    assert volume.shape==(2,16,16) and vector.shape==(2,5) and name=='a leaf'
    assert x.shape==(2,3,8,8) and m.shape==(2,8,8) and torch.isin(m, mask).all()
