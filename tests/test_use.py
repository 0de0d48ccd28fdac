"The package as its user writes it."
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from fastai.vision.all import *
from fastai_mix.all import *

for name in [k for k in globals() if k.startswith('test')]: del globals()[name] # fastcore's, which pytest would collect

pytestmark = pytest.mark.filterwarnings('ignore')

@pytest.fixture(scope='module')
def leaves(tmp_path_factory): return leaf_data(tmp_path_factory.mktemp('leaves')/'data', n=40, size=64)

def trained(learn, n=1):
    with learn.no_bar(), learn.no_logging(): learn.fit(n, 1e-3)
    assert all(np.isfinite(learn.recorder.values[-1]))
    return learn

@pytest.mark.parametrize('make', [cnn_learner, vision_learner])
@pytest.mark.parametrize('arch', ['resnet18', models.resnet18, models.xresnet.xresnet18],
    ids=lambda o: getattr(o, '__name__', o))
def test_learners(make, arch, leaves):
    trained(make(leaf_dls(leaves, size=32, bs=8), arch, pretrained=False, metrics=accuracy, cbs=SnapMix()))

class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.a,self.b,self.fc = ConvLayer(3, 8, stride=2),ConvLayer(8, 16, stride=2),nn.Linear(16, 4)
    def forward(self, x): return self.fc(self.b(self.a(x)).amax((2,3)))

@pytest.mark.parametrize('model', [Own, lambda: nn.Sequential(nn.Conv2d(3,8,3), nn.ReLU(), nn.AdaptiveMaxPool2d(1),
    nn.Flatten(), nn.Linear(8,4))])
def test_own_models(model, leaves):
    trained(Learner(leaf_dls(leaves, size=32, bs=8), model(), metrics=accuracy, cbs=SnapMix(p=.5)), 2)

def test_class_as_callback(leaves): trained(Learner(leaf_dls(leaves, size=32, bs=8), Own(), cbs=SnapMix))

@pytest.fixture
def several(leaves):
    df = pd.read_csv(leaves/'train.csv')
    df['tags'] = df.labels.map({'multiple_diseases':'rust scab'}).fillna(df.labels)
    block = DataBlock((ImageBlock, MultiCategoryBlock), get_x=ColReader('image_id', pref=f'{leaves}/images/',
        suff='.jpg'),
                      get_y=ColReader('tags', label_delim=' '), splitter=RandomSplitter(seed=0), item_tfms=Resize(32))
    return block.dataloaders(df, bs=16, num_workers=0)

def test_multi_label(several):
    learn = trained(vision_learner(several, 'resnet18', pretrained=False, metrics=accuracy_multi, cbs=SnapMix()))
    axs = learn.show_mix(4)
    assert len(axs)==4 and any(o in axs[0].get_title() for o in several.vocab)
    plt.close('all')

@pytest.mark.parametrize('mix', [SnapMix(), CutMix(), MixUp(), ResizeMix(), ManifoldMixUp(), GridMask(),
    MixChoice([SnapMix(), GridMask()])], ids=lambda m: type(m).__name__)
def test_show_mix(mix, leaves):
    learn = vision_learner(leaf_dls(leaves, size=64, bs=8), 'resnet18', pretrained=False)
    before = list(learn.cbs)
    axs = learn.show_mix(6, mix=mix, maps=True)
    im = axs[0].images[0].get_array()
    assert len(axs)==6 and np.asarray(im).std()>.03 and list(learn.cbs)==before and not learn.model[0].training==False
    assert any(o in axs[0].get_title() for o in learn.dls.vocab)
    plt.close('all')

def test_show_mix_shows_all_that_change_a_batch(leaves):
    class Dark(BatchCallback):
        def change(self, x, y): return x*0
    for cbs in ([SnapMix(), Dark()], [Dark(), SnapMix()]):
        learn = vision_learner(leaf_dls(leaves, size=64, bs=8), 'test_resnet', pretrained=False, cbs=cbs)
        ax = learn.show_mix(2)[0]
        assert np.asarray(ax.images[0].get_array()).std((0,1)).max()<1e-6 and ' · ' in ax.get_title()
        assert len(ax.patches)==1
        assert np.asarray(learn.show_mix(2, mix=SnapMix())[0].images[0].get_array()).std((0,1)).max()>.03
    plt.close('all')

@pytest.mark.parametrize('make', [SnapMix, lambda: SnapMix(echo=True), lambda: MixChoice([SnapMix(), CutMix()])],
    ids=['snapmix','echo','choice'])
def test_show_mix_during_a_fit(make, leaves):
    class Draw(Callback):
        order = 60
        def after_epoch(self): self.learn.show_mix(2)
    trained(vision_learner(leaf_dls(leaves, bs=8), 'test_resnet', pretrained=False, cbs=[make(), Draw()]), 2)

def test_show_mix_without_a_mix(leaves):
    with pytest.raises(ValueError, match='no mix to show'):
        vision_learner(leaf_dls(leaves, bs=8), 'resnet18', pretrained=False).show_mix()

def test_names_are_ours():
    "`fastai_mix.all` behind `fastai.vision.all` hides fastai's MixUp and CutMix"
    for o in (SnapMix, CutMix, MixUp, ResizeMix, ManifoldMixUp, GridMask, MixChoice, ProgressiveResize):
        assert o.__module__.startswith('fastai_mix')
