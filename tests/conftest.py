import matplotlib
import pytest
import torch
from fastai.vision.all import CrossEntropyLossFlat, DataLoaders, Learner, nn, set_seed

matplotlib.use('agg')

class Batches:
    "Samples of noise with their class painted into one corner, as a data set"
    def __init__(self, n, c, size, target):
        g = torch.Generator().manual_seed(0)
        self.x,self.y = torch.rand(n, 3, size, size, generator=g),torch.arange(n)%c
        for i,k in enumerate(self.y): self.x[i,k%3,:size//2,:size//2] += 1
        self.t = self.y if target=='index' else torch.eye(c)[self.y]
    def __len__(self): return len(self.y)
    def __getitem__(self, i): return self.x[i],self.t[i]

def toy_model(c=3): return nn.Sequential(
    nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1),
    nn.BatchNorm2d(16), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(.1), nn.Linear(16, c))

@pytest.fixture
def toy():
    "A Learner on a small network and pictures of noise; arguments as for `Learner`"
    def make(cbs=None, model=None, n=32, bs=8, c=3, size=16, target='index', loss_func=None, seed=0, **kwargs):
        set_seed(seed)
        ds = Batches(n, c, size, target)
        dls = DataLoaders.from_dsets(ds, ds, bs=bs, device='cpu', num_workers=0)
        dls.vocab = [f'class{i}' for i in range(c)]
        learn = Learner(dls, model or toy_model(c), loss_func=loss_func or CrossEntropyLossFlat(), cbs=cbs, **kwargs)
        learn.remove_cb(learn.progress)
        learn.logger = lambda *_: None
        return learn
    return make
