"""Do maps of networks that read their features by attention sit on the object?

    python benchmarks/tokens.py [--nets vit,registers] [--kinds shape] [--seeds 3] [--steps 800] \\
        [--out benchmarks/results/tokens.json] [--json]

Small transformers are trained on pictures of 32×32 pixels with an object of 8×8 at a random place, 6.25% of the
picture: a texture, a shape, or a colour. Then maps for the right class are read off them in several ways. A figure is
the mean part of the semantic map inside the object: .0625 is chance. `map` is what `ClassActivation` gives. The
others are read at the same block or by hand: `sum, block`: Σ gradient × feature over channels, at the input of the
last block; `sum, norm`: the same after that block's first norm; `abs, norm`: Σ |gradient × feature| there;
`attention`: the class token's attention over the patches, mean over heads; `attention × gradient`: times its
gradient, positive parts, mean over heads."""
import warnings
from collections import defaultdict
from json import dumps
from pathlib import Path

warnings.filterwarnings('ignore')
import torch
import torch.nn.functional as F
from fastcore.script import call_parse, store_true
from timm.models.cait import Cait
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from fastai_mix.vision.cam import CleanPass, ClassActivation, semantic_mass
from fastai_mix.vision.layer import hook_features
from cells import record

side,patch,part,n_classes,width,depth,heads = 32,4,8,4,48,3,3

def objects(kind):
    "Pictures of the four objects `[4,3,8,8]`"
    g = torch.Generator().manual_seed(7)
    if kind=='texture': return (torch.rand(n_classes, 3, part, part, generator=g)>.5).float()*2-1
    if kind=='colour':
        return torch.tensor([[1.,-1,-1],[-1,1,-1],[-1,-1,1],[1,1,-1]])[:,:,None,None].expand(-1, -1, part, part)
    y,x = torch.meshgrid(torch.arange(part)-3.5, torch.arange(part)-3.5, indexing='ij')
    r = y**2+x**2
    shapes = torch.stack([r<12, (y.abs()<1.1)|(x.abs()<1.1), (y-x).abs()<1.6, (r<15)&(r>5)]).float()
    return 2*shapes[:,None].expand(-1, 3, -1, -1)

def draw(n, kind, things, g):
    "Pictures `[n,3,32,32]`, classes `[n]` and boxes of the objects `[n,4]`"
    y,corner = torch.randint(n_classes, (n,), generator=g),torch.randint(side-part+1, (n,2), generator=g)
    x = torch.randn(n, 3, side, side, generator=g)*.5
    if kind=='colour': x = F.interpolate(torch.randn(n, 3, 4, 4, generator=g)*.5, side, mode='bilinear')
    for i,(a,b) in enumerate(corner.tolist()):
        place = x[i,:,a:a+part,b:b+part]
        if kind=='shape': place += things[y[i]]
        else: place.copy_(things[y[i]]+.3*torch.randn(3, part, part, generator=g))
    return x,y,torch.cat([corner, corner+part], 1)

class PostNorm(nn.Module):
    "A class token through torch's encoder, norms after its sums"
    def __init__(self):
        super().__init__()
        n = (side//patch)**2+1
        self.patch,self.head = nn.Conv2d(3, width, patch, patch),nn.Linear(width, n_classes)
        self.cls,self.pos = (nn.Parameter(torch.randn(1, k, width)*.02) for k in (1,n))
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(width, heads, 4*width, 0., batch_first=True,
            activation='gelu'), depth)
    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        return self.head(self.encoder(torch.cat([self.cls.expand(len(x), -1, -1), x], 1)+self.pos)[:,0])

common = dict(img_size=side, patch_size=patch, embed_dim=width, num_heads=heads, num_classes=n_classes)
nets = {
    'vit': lambda: VisionTransformer(depth=depth, **common),
    'registers': lambda: VisionTransformer(depth=depth, reg_tokens=4, **common),
    'class attention': lambda: Cait(depth=depth, depth_token_only=1, init_values=.1, **common),
    'attention pool': lambda: VisionTransformer(depth=depth, class_token=False, global_pool='map', **common),
    'post-norm': PostNorm,
    'average pool': lambda: VisionTransformer(depth=depth, class_token=False, global_pool='avg', **common)}

def train(net, kind, seed, steps, bs=64):
    torch.manual_seed(seed)
    model,things,g = nets[net](),objects(kind),torch.Generator().manual_seed(seed)
    opt = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=.05)
    lr = torch.optim.lr_scheduler.OneCycleLR(opt, 2e-3, steps)
    for _ in range(steps):
        x,y,_ = draw(bs, kind, things, g)
        loss = F.cross_entropy(model(x), y)
        opt.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.)
        opt.step()
        lr.step()
    return model.eval(),things

def features(model, place, x):
    "Features at `place` with their graph, and logits"
    kept = []
    def keep(t):
        kept.append(t.detach().requires_grad_())
        return kept[0].clone()
    handle = hook_features(model, place, keep)
    logits = model(x)
    handle.remove()
    return kept[0],logits

def by_attention(model, x, y):
    "Attention of the class token of a ViT over its patches, and times its gradient, each `[n,h,w]`"
    attn,skip = model.blocks[-1].attn,model.num_prefix_tokens
    qkv,logits = features(model, dict(layer=attn.qkv, side=None, call=0, seq_first=False), x)
    grad, = torch.autograd.grad(logits.gather(1, y[:,None]).sum(), qkv)
    q,k,v = qkv.detach().unflatten(2, (3,heads,-1)).permute(2,0,3,1,4)
    weights = (q[:,:,:1]@k.transpose(-1, -2)*q.shape[-1]**-.5).softmax(-1)[:,:,0]
    # the gradient at a value is its attention times the gradient of the sum of values,
    # so this is attention times its gradient
    times_grad = (v*grad.unflatten(2, (3,heads,-1)).permute(2,0,3,1,4)[2]).sum(3).clamp(min=0)
    return {k: o.mean(1)[:,skip:].unflatten(1, (side//patch,)*2)
        for k,o in (('attention',weights), ('attention × gradient',times_grad))}

def maps(net, model, x, y):
    act = ClassActivation(model)
    clean = act.forward(x)
    def read(how): return CleanPass(clean.features, clean.logits, clean.layout, model, how).cam(y)
    res = {'map': clean.cam(y), 'sum, norm': read('sum'), 'abs, norm': read('abs')}
    if net in ('vit','registers'):
        before = ClassActivation(model, f'blocks.{depth-2}')
        at = before.forward(x)
        res['sum, block'] = CleanPass(at.features, at.logits, at.layout, model, 'sum').cam(y)
        res.update(by_attention(model, x, y))
    return res,act.read

@call_parse
def main(
    nets:str='vit,registers,class attention,attention pool,post-norm,average pool', # Networks, comma-separated
    kinds:str='texture,shape,colour', # Kinds of objects, comma-separated
    seeds:int=3, # Trainings of each
    steps:int=800, # Steps of 64 pictures
    out:Path=None, # File to write, .json
    json:store_true=False, # One JSON object on the last line
):
    "Mass of maps inside the object"
    torch.set_num_threads(1)
    rows = []
    for net in nets.split(','):
        for kind in kinds.split(','):
            mass,hits = defaultdict(list),[]
            for seed in range(seeds):
                model,things = train(net, kind, seed, steps)
                x,y,box = draw(256, kind, things, torch.Generator().manual_seed(100+seed))
                with torch.no_grad(): hits.append((model(x).argmax(1)==y).float().mean().item())
                cams,read = maps(net, model, x, y)
                for k,cam in cams.items(): mass[k].append(semantic_mass(cam, box, (side,side)).mean().item())
            rows.append(dict(net=net, kind=kind, read=read, accuracy=hits, mass=dict(mass)))
            print(f"{net:16} {kind:8} accuracy {min(hits):.3f}  "
                + '  '.join(f"{k} {sum(v)/len(v):.3f}" for k,v in mass.items()), flush=True)
    res = dict(check='tokens', steps=steps, seeds=seeds, share=part**2/side**2, record=record(), rows=rows)
    if out: out.write_text(dumps(res, indent=1, ensure_ascii=False)+'\n')
    if json: print(dumps(res, ensure_ascii=False))
