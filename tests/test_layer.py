"Where features are found, and that maps there are no rounding errors."
from copy import deepcopy

import pytest
import timm
import torch
import torch.nn.functional as F
from fastai.vision.all import create_timm_model, default_split
from torch import nn
from torchvision.models import VisionTransformer
from fastai_mix.vision.cam import CleanPass, ClassActivation
from fastai_mix.vision.layer import find_layer, layouts

def spread(model):
    "Random classifiers, and linear weights that spread tokens as training does"
    for m in model.modules():
        if not isinstance(m, nn.Linear): continue
        if not m.weight.any(): nn.init.normal_(m.weight, std=m.in_features**-.5)
        m.weight.data *= 4
    return model.eval()

def correlation(a, b):
    a,b = (o.double().flatten(1) for o in (a,b))
    a,b = (o-o.mean(1, keepdim=True) for o in (a,b))
    return ((a*b).sum(1)/(a.norm(dim=1)*b.norm(dim=1))).min()

small = dict(depth=3, img_size=64)
one = dict(embed_dim=48, num_heads=3)
by_attention = {
    'vit': lambda: timm.create_model('vit_tiny_patch16_224', num_classes=5, **small),
    'registers': lambda: timm.create_model('vit_tiny_patch16_224', num_classes=5, reg_tokens=4, **small),
    'fewer places than a cell': lambda: timm.create_model(
        'vit_tiny_patch16_224', num_classes=5, reg_tokens=4, depth=3, img_size=(48,96)),
    'distilled': lambda: timm.create_model('deit_tiny_distilled_patch16_224', num_classes=5, **small),
    'deit3': lambda: timm.create_model('deit3_small_patch16_224', num_classes=5, **small, **one),
    'clip': lambda: timm.create_model('vit_base_patch16_clip_224', num_classes=5, **small, **one),
    'siglip': lambda: timm.create_model('vit_base_patch16_siglip_224', num_classes=5, **small, **one),
    'dinov2': lambda: timm.create_model('vit_small_patch14_dinov2', num_classes=5, depth=3, img_size=56, **one),
    'beit': lambda: timm.create_model('beit_base_patch16_224', num_classes=5, global_pool='token', **small, **one),
    'cait': lambda: timm.create_model('cait_xxs24_224', num_classes=5, **{**small, 'depth':2}, **one),
    'xcit': lambda: timm.create_model('xcit_nano_12_p16_224', num_classes=5, **{**small, 'depth':2}),
    'pit': lambda: timm.create_model('pit_ti_224', num_classes=5, img_size=64, depth=(1,1,1)),
    'coat': lambda: timm.create_model('coat_lite_tiny', num_classes=5, img_size=64),
    'torchvision': lambda: VisionTransformer(64, 16, 3, 4, 48, 96, num_classes=5)}

@pytest.mark.parametrize('kind', by_attention)
def test_maps_of_class_tokens_are_no_rounding_errors(kind):
    torch.manual_seed(0)
    model = spread(by_attention[kind]())
    if isinstance(model, VisionTransformer): nn.init.normal_(model.heads.head.weight)
    size = (48,96) if 'cell' in kind else (56,56) if kind=='dinov2' else (64,64)
    x,y = torch.randn(3,3,*size),torch.tensor([0,2,4])
    act,exact = ClassActivation(model),ClassActivation(deepcopy(model).double())
    clean = act.forward(x)
    cam = clean.cam(y)
    assert act.read=='abs' and cam.shape[1:]==((3,6) if 'cell' in kind else (2,2) if kind in ('coat','pit') else (4,4))
    assert correlation(cam, exact(x.double(), y)[0])>.99
    total = CleanPass(clean.features, clean.logits, clean.layout, model, 'sum').cam(y).abs().mean()
    assert total/cam.mean()>1e-4, 'even the plain sum does not vanish at this place'

def test_the_sum_vanishes_at_the_input_of_the_last_block():
    "Which is why it is not read there: a place that is given is read by absolute values"
    torch.manual_seed(0)
    model = spread(by_attention['vit']())
    x,y = torch.randn(3,3,64,64),torch.tensor([0,2,4])
    act,exact = (ClassActivation(m, 'blocks.1') for m in (model, deepcopy(model).double()))
    clean = act.forward(x)
    plain = CleanPass(clean.features, clean.logits, clean.layout, model, 'sum').cam(y)
    assert plain.abs().mean()/clean.cam(y).mean()<1e-5
    assert act.read=='abs' and correlation(clean.cam(y), exact.forward(x.double()).cam(y))>.99
    with pytest.raises(ValueError, match='do not depend on its output'): ClassActivation(model, 'blocks.2')(x, y)

@pytest.mark.parametrize('kind', ['vit','registers','distilled','cait','torchvision'])
def test_watching_and_a_forward_of_its_own_agree_on_tokens(kind):
    torch.manual_seed(0)
    model = spread(by_attention[kind]())
    if isinstance(model, VisionTransformer): nn.init.normal_(model.heads.head.weight)
    x,y = torch.randn(3,3,64,64),torch.tensor([0,2,4])
    act = ClassActivation(model)
    want = act.forward(x).cam(y)
    done = act.watch(x)
    got = done(model(x)).cam(y)
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-5*want.max().item())

def test_a_norm_that_is_no_module():
    "Nothing behind the last features is left to read: their absolute values are"
    class Net(nn.Module):
        def __init__(self): super().__init__(); self.conv,self.head = nn.Conv2d(3, 16, 4, 4),nn.Linear(16, 5)
        def forward(self, x): return self.head(F.layer_norm(self.conv(x).flatten(2).transpose(1, 2), [16]).mean(1))
    torch.manual_seed(0)
    model,x,y = Net(),torch.randn(3,3,32,32),torch.tensor([0,2,4])
    act = ClassActivation(model)
    cam = act(x, y)[0]
    assert act.read=='abs' and correlation(cam, ClassActivation(deepcopy(model).double())(x.double(), y)[0])>.99

def test_an_attention_pool_in_a_body_of_fastai():
    "The body is given the picture, which is no place to look"
    torch.manual_seed(0)
    arch = 'vit_base_patch16_siglip_224'
    model = create_timm_model(arch, 5, default_split, pretrained=False, **small, **one)[0].eval()
    at = find_layer(model, torch.randn(2,3,64,64))
    assert at['layout']==(0,4,4) and at['read']=='abs'

# several inputs

def encoder(c=8): return nn.Sequential(nn.Conv2d(3, c, 3, stride=4, padding=1), nn.ReLU())

def test_two_pictures_through_one_encoder():
    class Pair(nn.Module):
        def __init__(self): super().__init__(); self.encoder,self.head = encoder(),nn.Linear(16, 5)
        def forward(self, a, b): return self.head(torch.cat([self.encoder(o).mean((2,3)) for o in (a,b)], 1))
    torch.manual_seed(0)
    model,(a,b),y = Pair(),torch.randn(2,3,3,32,32),torch.tensor([0,2,4])
    cam = ClassActivation(model).forward(a, b).cam(y)
    f = model.encoder(a)
    want = torch.einsum('nchw,nc->nhw', f, model.head.weight[y,:8])/f[0,0].numel()
    torch.testing.assert_close(cam, want, atol=1e-6, rtol=1e-4)

def test_the_map_is_of_the_picture_that_is_mixed():
    "Another picture goes a longer way, through an encoder that is trained"
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.mine,self.head = encoder(),nn.Linear(16, 5)
            self.other = nn.Sequential(encoder(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        def forward(self, a, b): return self.head(torch.cat([self.mine(a).mean((2,3)), self.other(b).mean((2,3))], 1))
    model = Pair()
    assert find_layer(model, *torch.randn(2,2,3,32,32))['layer'] is model.mine

class Words(nn.Module):
    "Words attend to places, and are pooled with them"
    def __init__(self):
        super().__init__()
        self.encoder,self.word,self.read,self.head = encoder(16),nn.Linear(12, 16),nn.Linear(16, 16),nn.Linear(32, 5)
    def forward(self, x, words):
        places = self.encoder(x).flatten(2).transpose(1, 2)
        words = self.word(words)
        words = self.read(words + (words@places.transpose(1, 2)).softmax(2)@places)
        return self.head(torch.cat([places.mean(1), words.mean(1)], 1))

def test_words_are_no_map():
    torch.manual_seed(0)
    model,x,words = Words(),torch.randn(3,3,40,40),torch.randn(3,64,12)
    act = ClassActivation(model)
    assert act.forward(x, words).cam(torch.tensor([0,2,4])).shape[1:]==(10,10) and act.layer is model.encoder

# layouts

def test_channels_are_no_places():
    "The head of Swin as Microsoft wrote it: [n,1024,1] after the pooling"
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv,self.norm = nn.Conv2d(3, 1024, 8, 8),nn.LayerNorm(1024)
            self.pool,self.head = nn.AdaptiveAvgPool1d(1),nn.Linear(1024, 5)
        def forward(self, x):
            tokens = self.norm(self.conv(x).flatten(2).transpose(1, 2))
            return self.head(self.pool(tokens.transpose(1, 2)).flatten(1))
    model = Net()
    at = find_layer(model, torch.randn(2,3,32,32))
    assert at['layer'] is model.norm and at['layout']==(0,4,4) and at['read']=='sum'

def test_queries_of_a_decoder_are_no_places():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder,self.query = encoder(16),nn.Parameter(torch.randn(1,16,16))
            self.decoder,self.head = nn.TransformerDecoderLayer(16, 2, 32, 0., batch_first=True),nn.Linear(16, 5)
        def forward(self, x):
            places = self.encoder(x).flatten(2).transpose(1, 2)
            return self.head(self.decoder(self.query.expand(len(x), -1, -1), places).mean(1))
    torch.manual_seed(0)
    at = find_layer(Net(), torch.randn(2,3,40,40))
    assert at['layout'] in ('nchw',(0,10,10)) and at['read']=='abs'

def test_a_pyramid_of_pools_is_pooled():
    class Pyramid(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder,self.head = encoder(),nn.Linear(8*21, 5)
            self.pools = nn.ModuleList([nn.AdaptiveMaxPool2d(k) for k in (1,4,2)])
        def forward(self, x):
            f = self.encoder(x)
            return self.head(torch.cat([p(f).flatten(1) for p in self.pools], 1))
    model = Pyramid()
    assert find_layer(model, torch.randn(2,3,40,40))['layer'] is model.encoder

@pytest.mark.parametrize('late', [True,False])
def test_an_auxiliary_branch_does_not_win(late):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem,self.trunk = encoder(),nn.Sequential(*[nn.Conv2d(8, 8, 3, padding=1) for _ in range(3)])
            self.aux,self.head,self.aux_head = nn.Conv2d(8, 8, 1),nn.Linear(8, 5),nn.Linear(8, 5)
        def forward(self, x):
            f = self.stem(x)
            def side(): return .3*self.aux_head(self.aux(f).mean((2,3)))
            first = 0 if late else side()
            z = self.head(self.trunk(f).mean((2,3)))
            return z+side() if late else z+first
    model = Net()
    assert find_layer(model, torch.randn(2,3,32,32))['layer'] is model.trunk

class OwnViT(nn.Module):
    "Tokens behind `prefix` others that nothing tells of; `seq_first`: [N,n,c], as torch's attention has it by default"
    def __init__(self, prefix=5, seq_first=False, fixed=None):
        super().__init__()
        self.patch,self.extra,self.head = nn.Conv2d(3, 24, 4, 4),nn.Parameter(torch.randn(prefix,1,24)),nn.Linear(24, 5)
        self.blocks = nn.Sequential(*[
            nn.TransformerEncoderLayer(24, 2, 48, 0., batch_first=not seq_first, norm_first=True) for _ in range(2)])
        self.pos = None if fixed is None else nn.Parameter(torch.randn(prefix+fixed,1,24)*.02)
        self.seq_first = seq_first
    def forward(self, x):
        t = self.patch(x).flatten(2).permute(2,0,1)
        t = torch.cat([self.extra.expand(-1, len(x), -1), t])
        if self.pos is not None: t = t+self.pos
        t = self.blocks(t if self.seq_first else t.transpose(0, 1))
        return self.head(t[0] if self.seq_first else t[:,0])

@pytest.mark.parametrize('fixed', [False,True])
@pytest.mark.parametrize('prefix', [1,5,9])
def test_prefix_tokens_on_pictures_of_any_proportions(prefix, fixed):
    torch.manual_seed(0)
    for h,w in ((3,5), (4,7), (7,14), (5,6), (9,4), (8,8), (2,3)):
        model = OwnViT(prefix, fixed=h*w if fixed else None)
        at = find_layer(model, torch.randn(2,3,4*h,4*w))
        assert at['layout']==(prefix,h,w) and at['layer'] is model.blocks[1].norm1 and at['read']=='abs'

def test_sequence_first_tokens():
    torch.manual_seed(0)
    model = spread(OwnViT(1, seq_first=True))
    x,y = torch.randn(3,3,24,32),torch.tensor([0,2,4])
    act = ClassActivation(model)
    cam = act(x, y)[0]
    assert act.seq_first and act.layer is model.blocks[1].norm1 and cam.shape==(3,6,8)
    twin = OwnViT(1)
    twin.load_state_dict(model.state_dict())
    torch.testing.assert_close(cam, ClassActivation(twin.eval())(x, y)[0], rtol=1e-3, atol=1e-6*cam.max().item())
    got = act.watch(x)(model(x)).cam(y)
    torch.testing.assert_close(got, cam, rtol=1e-3, atol=1e-5*cam.max().item())

def test_a_model_that_brings_pictures_to_one_size():
    class Net(nn.Module):
        def __init__(self): super().__init__(); self.encoder,self.head = encoder(),nn.Linear(8, 5)
        def forward(self, x): return self.head(self.encoder(F.interpolate(x, (32,32))).mean((2,3)))
    model = Net()
    at = find_layer(model, torch.randn(2,3,64,64))
    assert at['layer'] is model.encoder and at['layout']=='nchw'

def test_a_single_channel_is_no_features():
    "A last layer of one channel is averaged to the logit; the features are before it"
    model = nn.Sequential(encoder(), nn.Conv2d(8, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    at = find_layer(model, torch.randn(2,3,32,32))
    assert at['layer'] is model[0]
    assert layouts(torch.rand(2,1,8,8), 2, (32,32))==layouts(torch.rand(2,64,1), 2, (32,32))==[]

def test_looking_leaves_the_model_as_it_was():
    model = timm.create_model('vit_tiny_patch16_224', num_classes=5, **small).train()
    for p in list(model.parameters())[::2]: p.requires_grad_(False)
    was = [p.requires_grad for p in model.parameters()]
    find_layer(model, torch.randn(2,3,64,64))
    assert [p.requires_grad for p in model.parameters()]==was and all(p.grad is None for p in model.parameters())
    assert all(m.training for m in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
