"Class activation over many kinds of networks."
import pytest
import timm
import torch
from fastai.vision.all import create_timm_model, create_vision_model, default_split, nn
from torchvision import models
from fastai_mix.vision.cam import ClassActivation, semantic_map, semantic_mass

y = torch.tensor([0,2])

def build(kind, name):
    torch.manual_seed(0)
    if kind=='timm': return timm.create_model(name, num_classes=5)
    if kind=='torchvision': return getattr(models, name)(weights=None, num_classes=5)
    arch = getattr(models, name) if kind=='fastai-torchvision' else name
    if kind=='fastai-torchvision': return create_vision_model(arch, 5, pretrained=False)
    return create_timm_model(name, 5, default_split, pretrained=False)[0]

timm_names = ['resnet18','convnext_atto','tf_efficientnet_lite0','regnety_002','mobilenetv4_conv_small',
              'vit_tiny_patch16_224']
tv_names = 'resnet18 resnet50 densenet121 vgg16_bn efficientnet_b0'.split()
cases = [('timm',o,224 if 'vit' in o else 96) for o in timm_names]
cases += [('timm','swin_tiny_patch4_window7_224',224), ('timm','deit_tiny_distilled_patch16_224',224)]
cases += [('fastai-timm',o,224 if 'vit' in o else 96) for o in timm_names]
cases += [(k,o,96) for o in tv_names for k in ('torchvision','fastai-torchvision')]

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('kind,name,size', cases, ids=lambda o: str(o))
def test_map_of(kind, name, size):
    model = build(kind, name).train()
    torch.manual_seed(1)
    x = torch.randn(2,3,size,size)
    before = {k:v.clone() for k,v in model.state_dict().items()}
    act = ClassActivation(model)
    cam,logits = act(x, y)
    assert cam.ndim==3 and cam.shape[0]==2 and cam.shape[1]*cam.shape[2]>1
    assert cam.isfinite().all() and (cam.std((1,2))>1e-6*cam.abs().amax((1,2))).all(), 'the map says something'
    other = act(x, torch.tensor([1,4]))[0]
    assert not torch.allclose(cam/cam.abs().max(), other/other.abs().max(), atol=1e-4), 'the map depends on the class'
    model.eval()
    with torch.no_grad(): torch.testing.assert_close(logits, model(x), atol=1e-4, rtol=1e-4)
    after = model.state_dict()
    assert all(torch.equal(v, after[k]) for k,v in before.items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())

def pool_linear(width):
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, width, 3, stride=4), nn.ReLU())
    return body,nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5))

def test_is_cam_on_pool_and_linear():
    body,head = pool_linear(6)
    x = torch.randn(2,3,33,33)
    cam,_ = ClassActivation(nn.Sequential(body, head))(x, y)
    F = body(x)
    want = torch.einsum('nchw,nc->nhw', F, head[2].weight[y])/F[0,0].numel()
    torch.testing.assert_close(cam, want, atol=1e-5, rtol=0)

def test_is_cam_on_resnet18():
    m = timm.create_model('resnet18', num_classes=5)
    x = torch.randn(2,3,128,128)
    cam,_ = ClassActivation(m)(x, y)
    F = m.eval().forward_features(x)
    torch.testing.assert_close(cam, torch.einsum('nchw,nc->nhw', F, m.fc.weight[y])/16, atol=1e-5, rtol=0)

def test_frozen_body_and_wrapped_model():
    body,head = pool_linear(6)
    for p in body.parameters(): p.requires_grad_(False)
    model,x = nn.Sequential(body, head),torch.randn(2,3,32,32)
    cam = ClassActivation(model)(x, y)[0]
    for p in head.parameters(): p.requires_grad_(False)
    torch.testing.assert_close(ClassActivation(model)(x, y)[0], cam)
    torch.testing.assert_close(ClassActivation(nn.DataParallel(model))(x, y)[0], cam)
    torch.testing.assert_close(ClassActivation(torch.compile(model))(x, y)[0], cam)
    with torch.no_grad(): torch.testing.assert_close(ClassActivation(model)(x, y)[0], cam)

def test_own_module_with_a_layer_called_twice():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem,self.block = nn.Conv2d(3,8,3,padding=1,stride=2),nn.Conv2d(8,8,3,padding=1)
            self.head = nn.Linear(8,5)
        def forward(self, x):
            x = self.stem(x).relu_()
            x = self.block(self.block(x).relu()).relu()
            return self.head(x.mean((2,3)))
    torch.manual_seed(0)
    own,x = Own(),torch.randn(2,3,16,16)
    cam,_ = ClassActivation(own)(x, y)
    f = own.block(own.block(own.stem(x).relu()).relu()).relu()
    torch.testing.assert_close(cam, torch.einsum('nchw,nc->nhw', f, own.head.weight[y])/64, atol=1e-6, rtol=1e-4)

def test_classifier_that_starts_at_zero():
    vit = timm.create_model('vit_tiny_patch16_224', num_classes=5, img_size=64)
    nn.init.zeros_(vit.head.weight)
    act = ClassActivation(vit)
    assert (act(torch.randn(2,3,64,64), y)[0]==0).all()
    assert act.layer is vit.blocks[-1].norm1 and act.side is None

@pytest.mark.parametrize('norm_first', [True,False])
def test_what_the_attention_of_the_last_block_of_an_encoder_is_given(norm_first):
    class ViT(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch,self.cls = nn.Conv2d(3, 16, 4, 4),nn.Parameter(torch.randn(1,1,16))
            self.pos,self.head = nn.Parameter(torch.randn(1,17,16)),nn.Linear(16, 5)
            block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=norm_first)
            self.encoder = nn.TransformerEncoder(block, 4)
        def forward(self, x):
            x = self.patch(x).flatten(2).transpose(1, 2)
            return self.head(input=self.encoder(torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.pos)[:,0])
    vit = ViT()
    act = ClassActivation(vit)
    assert act(torch.randn(2,3,16,16), y)[0].shape==(2,4,4)
    assert (act.layer,act.side)==((vit.encoder.layers[3].norm1,None) if norm_first else (vit.encoder.layers[2],None))
    assert act.read=='abs'

def test_wrong_layer():
    m = timm.create_model('resnet18', num_classes=5)
    x = torch.randn(2,3,64,64)
    with pytest.raises(ValueError, match='no layer'): ClassActivation(m, 'layer9')
    for name in ('fc','global_pool.pool'):
        with pytest.raises(ValueError, match='no spatial features'): ClassActivation(m, name)(x, y)
    with pytest.raises(ValueError, match='logits'): ClassActivation(nn.Conv2d(3,4,3))(x, y)

def test_a_layer_that_is_not_called():
    m = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    m[0].spare = nn.Conv2d(3, 4, 3)
    with pytest.raises(ValueError, match='`layer` 0.spare was not called'):
        ClassActivation(m, '0.spare').forward(torch.rand(2,3,16,16))

def test_the_layer_follows_the_size():
    m = timm.create_model('resnet10t', num_classes=3)
    a = ClassActivation(m)
    small,full = (a.forward(torch.rand(2,3,s,s)).cam(torch.tensor([0,1])) for s in (32,64))
    assert small.shape==full.shape==(2,2,2)
    assert ClassActivation(m).forward(torch.rand(2,3,64,64)).cam(torch.tensor([0,1])).shape==full.shape

def test_exception_inside_restores():
    class Boom(nn.Module):
        def forward(self, x): raise RuntimeError('boom')
    body,head = pool_linear(6)
    model,x = nn.Sequential(body, head).train(),torch.randn(2,3,32,32)
    act = ClassActivation(model)
    act(x, y)
    model[1].append(Boom())
    with pytest.raises(RuntimeError): act(x, y)
    assert all(m.training for m in model.modules()) and torch.is_grad_enabled()
    assert not any(m._forward_hooks for m in model.modules())

@pytest.mark.parametrize('bad', [torch.zeros(1,3,3), torch.full((1,3,3), 7.3), torch.full((1,3,3), float('inf')),
    torch.tensor([[[0,float('nan')],[1,2]]]), torch.full((1,1,1), 5.)])
def test_maps_that_say_nothing_become_area(bad):
    torch.testing.assert_close(semantic_map(bad, (7,5)), torch.full((1,7,5), 1/35))
    torch.testing.assert_close(semantic_mass(bad, torch.tensor([[1,1,4,3]]), (7,5)), torch.tensor([6/35]))

@pytest.mark.parametrize('cam,size', [([[0.,1],[1,0]], (1,1)), ([[0.,1],[1,0]], (1,2)), ([[0.,1,0]]*3, (3,1)),
    ([[3.,5]], (1,1)), ([[.5,.5,.9,.1]], (4,2))])
def test_maps_that_are_constant_once_resized_become_area(cam, size):
    cam,n = torch.tensor([cam]),size[0]*size[1]
    torch.testing.assert_close(semantic_map(cam, size), torch.full((1,*size), 1/n))
    torch.testing.assert_close(semantic_mass(cam, torch.tensor([[0,0,*size]]), size), torch.ones(1))

def test_mass_is_at_most_1():
    cam = torch.rand(200, 7, 7, generator=torch.Generator().manual_seed(0))
    assert semantic_mass(cam, torch.tensor([[0,0,90,70]]).expand(200,4), (90,70)).max()<=1

def test_scale_and_shift_of_a_map_do_not_matter():
    cam = torch.randn(3,4,4, generator=torch.Generator().manual_seed(0))
    m = semantic_map(cam, (16,16))
    for c in (cam*1e30, cam*1e-30, cam*5+3):
        torch.testing.assert_close(semantic_map(c, (16,16)), m, atol=1e-6, rtol=1e-3)

@pytest.mark.parametrize('kind,name', [
    ('timm','test_resnet'), ('timm','test_convnext'), ('fastai-timm','test_resnet'), ('timm','test_vit')])
def test_watching_somebody_elses_forward(kind, name):
    "The head is run again in eval mode: its dropout does not show in the map"
    model = build(kind, name)
    size = model.default_cfg['input_size'][-1] if kind=='timm' else 64
    x = torch.randn(3,3,size,size)
    act = ClassActivation(model)
    want = act(x, torch.tensor([0,2,1]))
    model.eval() # so that what is before the head is the same
    for m in model.modules():
        if isinstance(m, nn.Dropout): m.train()
    done = act.watch(x)
    assert (act.head is None)==('vit' in name)
    model.training = True
    model(x.flip(0)) # in another mode: not the forward that is meant
    model.training = False
    got = done(model(x))
    torch.testing.assert_close(got.cam(torch.tensor([0,2,1])), want[0], atol=1e-5, rtol=1e-3)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())

def test_a_view_that_refuses_channels_last():
    class Viewed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv,self.fc = nn.Conv2d(3,8,3,padding=1,stride=4),nn.Linear(8*64, 5)
        def forward(self, x): return self.fc(self.conv(x).view(len(x), -1))
    model,x = Viewed(),torch.randn(2,3,32,32)
    cam,_ = ClassActivation(model)(x, y)
    f = model.conv(x)
    torch.testing.assert_close(cam, (f*model.fc.weight[y].view_as(f)).sum(1), atol=1e-6, rtol=1e-4)

@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64])
def test_precision_of_the_model(dtype):
    body,head = pool_linear(6)
    model,x = nn.Sequential(body, head),torch.randn(2,3,32,32)
    want = ClassActivation(model)(x, y)[0]
    got = ClassActivation(model.to(dtype))(x, y)[0]
    assert got.dtype==torch.float32
    torch.testing.assert_close(got, want, atol=.02*want.abs().max().item(), rtol=0)

def test_labels_of_any_whole_number_and_ignored_ones():
    body,head = pool_linear(6)
    act,x = ClassActivation(nn.Sequential(body, head)),torch.randn(2,3,32,32)
    want = act(x, y)[0]
    for dtype in (torch.uint8, torch.int16, torch.int32): torch.testing.assert_close(act(x, y.to(dtype))[0], want)
    got = act(x, torch.stack([y[0], torch.tensor(-100)]))[0]
    torch.testing.assert_close(got[0], want[0])
    assert got.isfinite().all()

def test_in_inference_mode():
    body,head = pool_linear(6)
    act,x = ClassActivation(nn.Sequential(body, head)),torch.randn(2,3,32,32)
    want = ClassActivation(act.model)(x, y)
    with torch.inference_mode():
        for got in (act(x.clone(), y.clone()), act(x.clone(), y.clone())):
            for a,b in zip(got, want): torch.testing.assert_close(a, b)

@pytest.mark.parametrize('label', [5, 255, -1, -100])
def test_labels_that_are_no_class_give_some_map(label):
    body,head = pool_linear(6)
    cam = ClassActivation(nn.Sequential(body, head))(torch.randn(2,3,32,32), torch.tensor([2,label]))[0]
    assert cam.isfinite().all()

def test_outputs_beside_the_logits():
    "The map is that of the logits, though features come first and have more columns"
    class Both(nn.Module):
        def __init__(self): super().__init__(); self.body,self.head = pool_linear(30)
        def forward(self, x):
            f = self.body(x)
            return f.mean((2,3)), self.head(f)
    model,x = Both(),torch.randn(2,3,32,32)
    want = ClassActivation(nn.Sequential(model.body, model.head))(x, y)[0]
    torch.testing.assert_close(ClassActivation(model, n_classes=5)(x, y)[0], want)
    with pytest.raises(ValueError, match=r'tuple of 0 \[2, 30\], 1 \[2, 5\]'): ClassActivation(model)(x, y)
