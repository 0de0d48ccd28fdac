"""By what does label correction know that a model is too bad to correct labels?

    python benchmarks/guard.py --out benchmarks/results/guard.json --json

A small network without trained weights trains for a few epochs on drawn leaves, whose true labels are known, with
SnapMix or without. After each epoch the mean of the predictions of the last epochs is asked which labels it would
change at each θ, and how many more of them would be right. Beside it stand three answers to whether the model is
better than always naming the commonest class: by the given labels that these predictions agree with (`agreement`, what
the callback uses), by the mean probability of the given class with all classes on equal terms (`soft`), and by the
accuracy on the validation set (`valid`); each by more than two standard errors."""
import time,warnings
from json import dumps
from pathlib import Path
from tempfile import TemporaryDirectory

warnings.filterwarnings('ignore')
import numpy as np
import pandas as pd
import torch
from fastai.vision.all import Callback, accuracy, set_seed
import fastai.callback.schedule
from fastcore.script import call_parse, store_true
from cells import record
from fastai_mix.callback.plc import ProgressiveLabelCorrection, correct_labels
from fastai_mix.callback.snapmix import SnapMix
from fastai_mix.data.correction import beats_commonest, commonest_agreement, label_agreement
from fastai_mix.data.leaves import leaf_data, leaf_dls
from fastai_mix.vision.learner import timm_learner

thetas = .7,.5,.3

def soft_figures(p, given):
    "Mean over the classes of the probability of the given class, and its standard error"
    own = [p[given==k,k] for k in given.unique()]
    return (torch.stack([o.mean() for o in own]).mean().item(),
        torch.stack([o.var()/len(o) for o in own]).sum().sqrt().item()/len(own))

def figures_of(p, given, true):
    "What predictions `[n,c]` know of the labels, and what they would change"
    n,commonest,agreement = len(given),commonest_agreement(given),label_agreement(p, given).mean().item()
    soft,soft_error = soft_figures(p, given)
    row = dict(agreement=agreement, commonest=commonest, by_agreement=beats_commonest(agreement, n, commonest),
        soft=soft, by_soft=soft>1/p.shape[1]+2*soft_error)
    for theta in thetas:
        labels = correct_labels(p, given, theta)
        row[f'changed {theta}'] = (labels!=given).float().mean().item()
        row[f'gain {theta}'] = ((labels==true).float().mean()-(given==true).float().mean()).item()
    return row

class Look(Callback):
    "Keep the figures of each epoch"
    order = ProgressiveLabelCorrection.order+5
    def __init__(self, true): self.true,self.rows = true,[]
    def after_epoch(self):
        plc = self.learn.progressive_label_correction
        p = torch.stack(plc.past).nanmean(0)
        known = ~p.isnan().any(1) # of a dropped last batch nothing is known
        true = torch.tensor([self.dls.vocab.o2i[o] for o in self.true[plc.labels.index]])
        valid,y = self.recorder.log[3],torch.stack([o[1] for o in self.dls.valid_ds])
        self.rows.append(dict(epoch=self.epoch+1, **figures_of(p[known], plc.given[known], true[known]), valid=valid,
            by_valid=beats_commonest(valid, len(y), commonest_agreement(y))))

def run(folder, true, noise, mix, epochs, seed, size):
    "A row for each epoch"
    set_seed(seed)
    plc,look = ProgressiveLabelCorrection(1., warmup=0, check_model=False),Look(true) # no gap is beyond 1
    learn = timm_learner(leaf_dls(folder, size=size), 'resnet10t', pretrained=False, metrics=accuracy,
        cbs=[plc, look, *([SnapMix(p=.5)] if mix else [])])
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, 3e-3)
    return [dict(noise=noise, snapmix=mix, epochs=epochs, seed=seed, **row) for row in look.rows]

def show(rows):
    df = pd.DataFrame(rows)
    for by in ('by_agreement','by_soft','by_valid'):
        print(df.groupby(['noise',by])[[f'gain {o}' for o in thetas]].agg(['count','mean','min']).round(3).to_string())

@call_parse
def main(
    noise:str='0', # Shares of wrong labels, with commas
    epochs:str='6', # Lengths of trainings, with commas
    seeds:int=1, # Trainings of each kind
    size:int=64, # Side of the pictures
    out:Path=None, # JSON file of rows
    json:store_true=False, # One JSON object on the last line
):
    "Train, look, and count"
    rows,start = [],time.time()
    for share in map(float, noise.split(',')):
        with TemporaryDirectory() as tmp:
            folder = leaf_data(Path(tmp)/'leaves', n=600, noise=share)
            df = pd.read_csv(folder/'train.csv')
            for mix in (True,False):
                for n in map(int, epochs.split(',')):
                    for seed in range(seeds):
                        rows += run(folder, df.true_label if share else df.labels, share, mix, n, seed, size)
                        name = f'{share} {"snapmix" if mix else "plain"} {n} {seed}'
                        print(f'{name}: {time.time()-start:.0f} s', flush=True)
    show(rows)
    if out: out.write_text(dumps(dict(rows=rows, record=record()), indent=1)+'\n')
    if json: print(dumps(dict(rows=rows, record=record())))
