"""Where the maps of a trained network point, and how much they say beyond the area.

    python benchmarks/maps.py --data clothing.zip --weights lite0.safetensors --per-class 40 \\
        [--size 96 --seeds 3 --picture maps.png --json]

Trains plain cells of accuracy.py and takes pictures they were not trained on. `w` is the mass of the map in SnapMix's
boxes, against the share of the area. Then a quarter of each picture is greyed: where its map has most, where it has
least, anywhere, and where the map of another picture has most. What the first costs beyond the last is what a map
knows of its own picture; what the last costs beyond anywhere is that objects are where photographs have them."""
import warnings
from json import dumps
from pathlib import Path

warnings.filterwarnings('ignore')
import numpy as np
import torch
from fastcore.script import call_parse, store_true
from scipy import stats
from fastai_mix.callback.mix import draw_beta
from fastai_mix.vision.box import box_area, box_mask, rand_box
from fastai_mix.vision.cam import ClassActivation, semantic_map, semantic_mass
from accuracy import Data, fit, make_learner
from cells import normalize, record

def look(model, x, y, size, cfg, bs=64):
    "A row per picture: mass and area of a SnapMix box, hits whole and with a quarter greyed; and the size of the maps"
    act,a,side = ClassActivation(model),(x.shape[-1]-size)//2,size//2
    starts = torch.arange(0, size-side+1, side//4)
    quarters = torch.tensor([[t, l, t+side, l+side] for t in starts for l in starts])
    rows,g = [],torch.Generator().manual_seed(0)
    model.eval()
    for xb,yb in zip(x.split(bs), y.split(bs)):
        xb = normalize(xb[...,a:a+size,a:a+size], cfg)
        cam,logits = act(xb, yb)
        box = rand_box(draw_beta(5., len(xb)), (size,size))
        held = torch.stack([semantic_mass(cam, q.expand(len(xb), 4), (size,size)) for q in quarters], 1)
        which = {'most': held.argmax(1), 'least': held.argmin(1), 'other': held.argmax(1).roll(1),
            'anywhere': torch.randint(len(quarters), (len(xb),), generator=g)}
        row = {'mass': semantic_mass(cam, box, (size,size)), 'area': box_area(box)/size**2,
            'whole': logits.argmax(1)==yb}
        for k,i in which.items():
            # 0 is the mean colour
            with torch.no_grad(): out = model(torch.where(box_mask(quarters[i], (size,size))[:,None], 0, xb))
            row[k] = out.argmax(1)==yb
        rows.append(row)
    return {k: torch.cat([o[k] for o in rows]).double().numpy() for k in rows[0]},tuple(cam.shape[1:])

def draw(model, x, y, vocab, size, cfg, file):
    "Pictures and, below each, its map for its label"
    import matplotlib
    matplotlib.use('agg')
    import matplotlib.pyplot as plt
    a = (x.shape[-1]-size)//2
    x = x[...,a:a+size,a:a+size]
    maps = semantic_map(ClassActivation(model)(normalize(x, cfg), y)[0], (size,size))
    fig,axs = plt.subplots(2, len(x), figsize=(1.3*len(x),2.8), layout='constrained')
    for ax,im,m,k in zip(axs.T, x.permute(0,2,3,1), maps, y):
        for o in ax: o.imshow(im), o.set_axis_off()
        ax[1].imshow(m, alpha=.6, cmap='magma')
        ax[0].set_title(vocab[k], fontsize=9)
    fig.savefig(file, dpi=120)

@call_parse
def main(
    data:str='leaves', # As for accuracy.py
    arch:str='tf_efficientnet_lite0', # Name of a timm model
    weights:str=None, # File of its trained weights; None: from scratch
    size:int=96, # Side of the pictures
    per_class:int=0, # Pictures a class to train on, drawn by seed; 0: all
    share:float=1., # Share of the training part to train on
    images:int=16000, # Pictures trained on in a cell
    seeds:int=3, # Trainings
    lr:float=None, # Highest learning rate; None: .002 with weights, .004 without
    bs:int=32, # Pictures trained on in a step
    n:int=1024, # Pictures looked at
    threads:int=0, # Threads of torch; 0: as many as it takes by itself
    picture:Path=None, # File for a picture of eight of them with their maps
    json:store_true=False, # One JSON object on the last line
):
    "Train, then look at the maps"
    if threads: torch.set_num_threads(threads)
    pictures = Data(data, size)
    cell = dict(arch=arch, regime='pretrained' if weights else 'scratch', size=size, images=images, bs=bs,
        lr=lr or (.002 if weights else .004), mix='plain')
    rows = []
    for seed in range(seeds):
        train,test,rest = pictures.parts(seed, per_class, share, False)
        learn = make_learner(pictures, train, dict(cell, seed=seed), weights, lambda part: None)
        fit(learn, dict(cell, seed=seed))
        new = np.random.default_rng(seed).permutation(rest if len(rest) else test)[:n]
        cfg = learn.model.default_cfg
        o,places = look(learn.model, pictures.x[new], pictures.y[new], size, cfg)
        d = abs(o['mass']-o['area'])
        rows.append(dict(seed=seed, n=len(new), mean=d.mean(), p95=np.quantile(d, .95),
            **{k: o[k].mean() for k in ('whole','most','least','other','anywhere')}))
        print(f"seed {seed}: {places[0]}×{places[1]} places, "
            + ', '.join(f'{k} {v:.3f}' for k,v in rows[-1].items() if isinstance(v, float)), flush=True)
        if picture and not seed:
            first = [new[pictures.y[new]==k][0] for k in range(min(8, len(pictures.vocab)))]
            draw(learn.model, pictures.x[first], pictures.y[first], pictures.vocab, size, cfg, picture)
    for o in rows: o['own'] = o['other']-o['most']
    keys = 'mean','p95','whole','most','least','other','anywhere','own'
    res = {k: dict(mean=float(np.mean([o[k] for o in rows])),
        se=float(stats.sem([o[k] for o in rows])) if len(rows)>1 else None) for k in keys}
    print(f"{data}, {arch}, {size} px, {seeds} trainings: |w - area| {res['mean']['mean']:.3f}, 95% below "
        f"{res['p95']['mean']:.3f}; "
        f"accuracy whole {res['whole']['mean']:.3f}, a quarter greyed: "
        + ', '.join(f"{k} {res[k]['mean']:.3f}" for k in ('most','other','anywhere','least')))
    if json:
        print(dumps(dict(data=Path(data).stem, arch=arch, size=size, images=images, n=rows[0]['n'], seeds=seeds,
            places=places, record=record(), **res)))
