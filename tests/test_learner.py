"timm_learner: parameter groups, freezing, normalisation, training with SnapMix, saving, errors."
import warnings
import pytest
import timm
import torch
from fastai.vision.all import Normalize, load_learner, models, nn, params, risinstance, vision_learner
from PIL import Image
from safetensors.torch import load_file, save_file
from fastai_mix.callback.snapmix import SnapMix
from fastai_mix.vision.learner import *
from helpers import make_dls

pytestmark = pytest.mark.filterwarnings('ignore')


def quiet(learn):
    learn.remove_cb(learn.progress)
    learn.logger = lambda *_: None
    return learn

@pytest.fixture
def dls(): return make_dls(64)

small = dict(test_resnet={}, test_efficientnet={}, test_convnext={}, test_vit=dict(img_size=64), test_mambaout={})

def normalize(dls): return dls.after_batch.fs.filter(risinstance(Normalize))

@pytest.mark.parametrize('arch', ['resnet18','test_efficientnet','test_convnext','test_vit','test_vit2','test_vit3',
    'test_nfnet','test_maxvit','test_mambaout',
    'densenet121','mobilenetv3_small_050','pvt_v2_b0','levit_128s','crossvit_9_240',
    'deit_tiny_distilled_patch16_224','coat_tiny','inception_v3','xcit_nano_12_p16_224',
    'swin_tiny_patch4_window7_224','hrnet_w18_small','efficientvit_m0','gmlp_ti16_224'])
def test_groups_hold_every_parameter_once(arch):
    if not timm.is_model(arch): pytest.skip('this timm has no such network')
    m = timm.create_model(arch, num_classes=3)
    groups = timm_split(m)
    unknown = arch=='levit_128s' and 'stages' not in str(m.group_matcher(coarse=True)) # to older timm
    assert len(groups)==(2 if unknown else 3) and all(len(g) for g in groups)
    ids = [id(p) for g in groups for p in g]
    assert len(ids)==len(set(ids)) and set(ids)=={id(p) for p in m.parameters()}
    head = m.get_classifier()
    head = [p for h in (head if isinstance(head, (tuple,list)) else [head]) for p in h.parameters()]
    assert {id(p) for p in groups[-1]}=={id(p) for p in head}

def test_resnet_border_is_that_of_fastai(dls):
    groups = timm_split(timm.create_model('resnet18', num_classes=2))
    theirs = vision_learner(dls, models.resnet18, pretrained=False, n_out=2).splitter
    body = vision_learner(dls, models.resnet18, pretrained=False, n_out=2).model
    assert [len(g) for g in groups[:2]]==[len(g) for g in theirs(body)[:2]]

def test_network_without_stages_has_two_groups():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.body,self.fc = nn.Conv2d(3, 4, 3),nn.Linear(4, 2)
        def get_classifier(self): return self.fc
    assert [len(g) for g in timm_split(Own())]==[2,2]
    with pytest.raises(ValueError, match='splitter='): timm_split(nn.Conv2d(3, 4, 3))
    with pytest.raises(ValueError, match='splitter='): timm_split(timm.create_model('test_resnet', num_classes=0))

@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    "Files of 'pretrained' weights of small networks"
    d,files = tmp_path_factory.mktemp('weights'),{}
    for arch in small:
        torch.manual_seed(1)
        save_file({k: v.contiguous() for k,v in timm.create_model(arch).state_dict().items()}, d/f'{arch}.safetensors')
        files[arch] = d/f'{arch}.safetensors'
    return files

@pytest.mark.parametrize('arch', small)
def test_pretrained_trains_the_classifier_only(dls, saved, arch):
    learn = quiet(timm_learner(dls, arch, weights=saved[arch], train_bn=False, cbs=SnapMix(), **small[arch]))
    cfg = learn.model.default_cfg
    norm, = normalize(dls)
    torch.testing.assert_close(norm.mean.flatten(), torch.tensor(cfg['mean']))
    torch.testing.assert_close(norm.std.flatten(), torch.tensor(cfg['std']))
    head = {id(p) for p in timm_split(learn.model)[-1]}
    assert {id(p) for p in learn.model.parameters() if p.requires_grad}==head
    before = {k: v.clone() for k,v in learn.model.named_parameters()}
    learn.fit(1, .1)
    moved = {k for k,v in learn.model.named_parameters() if not torch.equal(v, before[k])}
    assert moved and all(id(p) in head for k,p in learn.model.named_parameters() if k in moved)
    learn.unfreeze()
    assert all(p.requires_grad for p in learn.model.parameters())

@pytest.mark.parametrize('arch', small)
def test_fine_tune_with_snapmix(dls, arch):
    learn = quiet(timm_learner(dls, arch, pretrained=False, cbs=SnapMix(), **small[arch]))
    assert not normalize(dls) and all(p.requires_grad for p in learn.model.parameters())
    learn.fine_tune(1)
    assert torch.tensor(learn.recorder.losses).isfinite().all()

def test_swin_trains_where_vision_learner_cannot():
    dls = make_dls(224, n=6, bs=2)
    learn = quiet(timm_learner(dls, 'swin_tiny_patch4_window7_224', pretrained=False, cbs=SnapMix()))
    x,y = dls.one_batch()
    learn.snap_mix.before_fit()
    mixed = learn.snap_mix.change(x, y)
    assert mixed.shape==x.shape and learn.snap_mix.cam.shape==(2,7,7) and learn.snap_mix.cam.std()>0
    theirs = vision_learner(dls, 'swin_tiny_patch4_window7_224', pretrained=False)
    with pytest.raises(RuntimeError, match='running_mean'): theirs.model(x)

def test_norms_train_in_a_frozen_body(dls, saved):
    learn = timm_learner(dls, 'test_resnet', weights=saved['test_resnet'])
    assert learn.model.bn1.weight.requires_grad and not learn.model.layer1[0].conv1.weight.requires_grad

def test_weights_of_the_same_classes_come_back(tmp_path):
    source = create_timm_classifier('test_resnet', 3, pretrained=False)
    save_file(source.state_dict(), tmp_path/'w.safetensors')
    m = create_timm_classifier('test_resnet', 3, weights=tmp_path/'w.safetensors')
    for (k,a),b in zip(source.state_dict().items(), m.state_dict().values()): assert torch.equal(a, b), k
    with pytest.raises(RuntimeError, match='fc.weight'):
        create_timm_classifier('test_resnet', 4, weights=tmp_path/'w.safetensors')

@pytest.mark.parametrize('arch,pool', [('test_resnet','catavgmax'), ('test_vit','avg')])
def test_weights_under_another_pool(arch, pool, saved, tmp_path):
    m = create_timm_classifier(arch, 3, weights=saved[arch], global_pool=pool)
    body = load_file(saved[arch])
    same = [k for k,v in m.state_dict().items() if k in body and v.shape==body[k].shape and torch.equal(v, body[k])]
    assert len(same)>.8*len(body) and m.num_classes==3
    other = 'test_vit' if arch=='test_resnet' else 'test_resnet'
    with pytest.raises(RuntimeError): create_timm_classifier(arch, 3, weights=saved[other], global_pool=pool)

def test_weights_are_loaded_whole(dls, saved, tmp_path):
    torch.manual_seed(1)
    source = timm.create_model('test_vit')
    m = create_timm_classifier('test_vit', 2, weights=str(saved['test_vit']))
    assert m.head.out_features==2
    for k,v in m.state_dict().items():
        if not k.startswith('head.'): torch.testing.assert_close(v, source.state_dict()[k])
    whole = create_timm_classifier('test_vit', 1000, weights=saved['test_vit'])
    assert torch.equal(whole.head.weight, source.head.weight)
    with pytest.raises(RuntimeError): create_timm_classifier('test_vit', 2, weights=saved['test_resnet'])
    for bad in ('IMAGENET1K_V1', tmp_path, tmp_path/'no.safetensors', 3):
        with pytest.raises(ValueError, match='is no file'): create_timm_classifier('test_vit', 2, weights=bad)
    with pytest.raises(ValueError, match='leave one'): create_timm_classifier('test_vit', 2, False, saved['test_vit'])

def test_one_channel(saved):
    assert create_timm_classifier('test_resnet', 2, n_in=1, weights=saved['test_resnet']).conv1[0].weight.shape[1]==1

def test_normalize(saved):
    dls = make_dls(64, batch_tfms=[Normalize.from_stats([.1]*3, [.9]*3)])
    with pytest.warns(UserWarning, match='trained with'): timm_learner(dls, 'test_resnet', weights=saved['test_resnet'])
    assert len(normalize(dls))==1 and normalize(dls)[0].mean.flatten()[0]==.1
    dls = make_dls(64)
    timm_learner(dls, 'test_resnet', weights=saved['test_resnet'], normalize=False)
    assert not normalize(dls)
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        for _ in range(2): timm_learner(dls, 'test_resnet', weights=saved['test_resnet'])
    assert len(normalize(dls))==1

def test_arguments_reach_the_network_and_the_learner(dls, tmp_path):
    learn = timm_learner(dls, timm.models.test_vit, pretrained=False, n_out=7, n_in=4, drop_rate=.3, drop_path_rate=.1,
        img_size=64, lr=.5, wd=.2, path=tmp_path, model_dir='m', moms=(.9,.8,.9), train_bn=False, wd_bn_bias=True,
        splitter=lambda m: [params(m)])
    m = learn.model
    assert (m.head.out_features,m.patch_embed.proj.in_channels,m.head_drop.p,m.patch_embed.img_size)==(7,4,.3,(64,64))
    got = learn.lr,learn.wd,learn.path,learn.model_dir,learn.moms,learn.train_bn,learn.wd_bn_bias
    assert got==(.5,.2,tmp_path,'m',(.9,.8,.9),False,True)
    learn.create_opt()
    assert len(learn.opt.param_lists)==1 and (learn.arch,learn.n_out,learn.pretrained)==(timm.models.test_vit,7,False)

def test_same_arguments_as_vision_learner():
    import inspect
    ours,theirs = (inspect.signature(o).parameters for o in (timm_learner, vision_learner))
    shared = list(theirs)[:list(theirs).index('moms')+1]
    assert [k for k in ours if k in shared]==shared
    assert all(ours[k].default==theirs[k].default for k in shared)

def test_export_load_predict(dls, tmp_path, saved):
    learn = quiet(timm_learner(dls, 'test_vit', weights=saved['test_vit'], img_size=64, path=tmp_path, cbs=SnapMix()))
    learn.fit(1, 1e-2)
    im = Image.new('RGB', (64,64), (200,30,30))
    with learn.no_bar(): want = learn.predict(dict(x=im, y='a'))[2]
    learn.export()
    again = load_learner(tmp_path/'export.pkl')
    with again.no_bar(): got = again.predict(dict(x=im, y='a'))[2]
    torch.testing.assert_close(got, want)
    again.freeze(); again.unfreeze()

bad = dict(ps='drop_rate', concat_pool='global_pool', pool='global_pool', num_classes='n_out', in_chans='n_in',
           checkpoint_path='weights')
bad.update(dict.fromkeys('cut init custom_head lin_ftrs first_bn bn_final lin_first y_range'.split(), 'vision_learner'))

@pytest.mark.parametrize('k', bad)
def test_refused_arguments(dls, k):
    with pytest.raises(TypeError, match=f'no `{k}`.*{bad[k]}'): timm_learner(dls, 'test_vit', pretrained=False, **{k:1})

def test_refused_archs(dls):
    with pytest.raises(ValueError, match="did you mean resnet"): timm_learner(dls, 'ResNet-18', pretrained=False)
    with pytest.raises(ValueError, match='list_models'): timm_learner(dls, 'qqqqzzzz', pretrained=False)
    with pytest.raises(ValueError, match="'resnet18'"): timm_learner(dls, models.resnet18, pretrained=False)
    with pytest.raises(TypeError, match='Linear'): timm_learner(dls, nn.Linear(2, 2), pretrained=False)
    with pytest.raises(TypeError, match='int'): timm_learner(dls, 3)
    with pytest.raises(ValueError, match='n_out'): timm_learner(make_dls(64), 'test_vit', n_out=0, pretrained=False)

def test_an_error_leaves_the_data_as_they_were(dls, saved):
    with pytest.raises(ZeroDivisionError):
        timm_learner(dls, 'test_resnet', weights=saved['test_resnet'], splitter=lambda m: 1/0)
    assert not normalize(dls)

def test_a_network_whose_stages_timm_does_not_know():
    with torch.device('meta'): model = timm.create_model('rdnet_tiny', num_classes=3)
    groups = timm_split(model)
    assert len(groups)==2 and sum(map(len, groups))==len(list(model.parameters()))

def test_a_file_with_an_optimizer(dls, tmp_path):
    learn = timm_learner(dls, 'test_resnet', pretrained=False, path=tmp_path)
    learn.create_opt()
    file = learn.save('w')
    with pytest.raises(ValueError, match='with_opt=False'): create_timm_classifier('test_resnet', 3, weights=file)

def test_fixed_size_speaks_up(dls):
    learn = quiet(timm_learner(dls, 'vit_tiny_patch16_224', pretrained=False, depth=1))
    with pytest.raises(AssertionError, match="64.*doesn't match"): learn.fit(1)
