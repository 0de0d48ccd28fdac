"""How close cheaper maps come to the exact ones, on real pictures and a trained network.

    fastai-mix --data labels.csv --arch tf_efficientnet_lite0 --weights lite0.safetensors --mix none --out run
    python benchmarks/fidelity.py run [--n 512 --seed 0 --json]

takes the training pictures of a run of the command, draws SnapMix's boxes, and compares the mass that each way of
taking a map finds in them with that of the full-size map in eval mode: mean and 95th percentile of the difference,
and the correlation of (mass - share of the area), which is what a map knows beyond the area. `echo` is the map that a
training step leaves behind: features from its own forward, in training mode, and the head run again."""
import warnings
from json import dumps,loads
from pathlib import Path

warnings.filterwarnings('ignore')
import numpy as np
import torch
from fastai.vision.all import (CategoryBlock, ColReader, DataBlock, ImageBlock, Normalize, Resize, set_seed,
    vision_learner)
from fastcore.script import call_parse, store_true
from safetensors.torch import load_file
from fastai_mix.callback.mix import draw_beta
from fastai_mix.cli import fold_data, read_data
from fastai_mix.vision.box import box_area, rand_box
from fastai_mix.vision.cam import ClassActivation, semantic_mass
from cells import record

def scaled(x, scale):
    if scale==1: return x
    return torch.nn.functional.interpolate(x.as_subclass(torch.Tensor), scale_factor=scale, mode='bilinear',
        antialias=True)

def masses(model, batches):
    "The mass that each kind of map finds in a box of SnapMix, for each picture"
    act,mass = ClassActivation(model),{k:[] for k in ('exact','area','scale .75','scale .5','echo')}
    for x,y in batches:
        size = x.shape[-2:]
        box = rand_box(draw_beta(5., len(x), x.device), size)
        mass['area'].append(box_area(box)/(size[0]*size[1]))
        for k,scale in (('exact',1), ('scale .75',.75), ('scale .5',.5)):
            mass[k].append(semantic_mass(act(scaled(x, scale), y)[0], box, size))
        state = {k: v.clone() for k,v in model.state_dict().items()}
        model.train()
        done = act.watch(x)
        mass['echo'].append(semantic_mass(done(model(x)).cam(y), box, size))
        model.load_state_dict(state)
    return {k: torch.cat(v).double().numpy() for k,v in mass.items()}

@call_parse
def main(
    run:Path, # Folder that `fastai-mix` wrote
    n:int=512, # Pictures
    bs:int=32, # Batch size, which is what BatchNorm sees in a training step
    seed:int=0, # Of pictures and boxes
    json:store_true=False, # One JSON object on the last line
):
    "Compare cheaper maps with exact ones"
    config = loads((run/'config.json').read_text())
    df = read_data(*(config[k] for k in ('data','images','image_col','label_col','split_col')))
    df = fold_data(df, config['folds'], config['seed'])
    df = df[df.fold!=config['fold']].sample(n, random_state=seed).reset_index(drop=True)
    set_seed(seed)
    block = DataBlock((ImageBlock, CategoryBlock(vocab=config['vocab'])), get_x=ColReader('path'),
        get_y=ColReader('label'), splitter=lambda items: (list(range(len(items))), [0]),
        item_tfms=Resize(config['size']))
    dls = block.dataloaders(df, bs=bs, num_workers=0)
    learn = vision_learner(dls, config['arch'], pretrained=False)
    learn.model.load_state_dict(load_file(run/'model.safetensors'))
    body = learn.model[0].model
    if config['weights']:
        dls.add_tfms([Normalize.from_stats(body.default_cfg['mean'], body.default_cfg['std'])], 'after_batch')
    mass = masses(learn.model, dls.train)
    beyond,rows = mass['exact']-mass['area'],[]
    print(f"{len(beyond)} pictures, {config['arch']} at {config['size']} px, batches of {bs}, seed {seed}")
    for k in ('area','scale .5','scale .75','echo'):
        d = abs(mass[k]-mass['exact'])
        corr = None if k=='area' else float(np.corrcoef(beyond, mass[k]-mass['area'])[0,1])
        rows.append(dict(map=k, mean=float(d.mean()), p95=float(np.quantile(d, .95)), corr=corr))
        print(f"{k:10s} mean |Δw| {d.mean():.3f}   95% {np.quantile(d, .95):.3f}   correlation "
            f"{'-' if corr is None else f'{corr:.2f}'}")
    if json:
        print(dumps(dict(n=len(beyond), arch=config['arch'], size=config['size'], bs=bs, seed=seed, run=config,
            record=record(), rows=rows)))
