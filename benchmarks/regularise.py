"""Does early-learning regularisation bring more than label correction?

    python benchmarks/regularise.py --data cifar10n.zip --weights lite0.safetensors --out regularise.json

Early-learning regularisation (ELR, arXiv 2007.00151) adds λ·log(1-<p,t>) to the loss, where t is a running mean, with
the factor β, of the predictions of a picture. The data are those of noise.py; each seed draws another 2,000 pictures
to test on, with true labels, and other weights. A perceptron with one hidden layer trains on the first principal
components of the frozen network's features (see looks.py) for so many epochs that it learns wrong labels by heart.
Label correction is that of the callback with when='epoch': by the mean of the predictions of the last five epochs. The
settings of both were chosen, one for all noises, by `--tune --seeds 100,`: by the accuracy on 1,000 pictures cut from
training, with true labels."""
import time,warnings
from itertools import product
from json import dumps
from pathlib import Path

warnings.filterwarnings('ignore')
import numpy as np
import pandas as pd
import torch
from fastcore.script import call_parse, store_true
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn.functional import cross_entropy, one_hot
from cells import pick_seeds, record
from fastai_mix.data.ledger import LabelLedger
from looks import components, out_of_fold, soften
from noise import Data
from suspects import features

tuned = dict(plc=dict(first=.2, last=.1, warmup=.2), elr=dict(factor=7., beta=.7))
tried = dict(
    plc=[dict(first=a, last=b, warmup=w) for (a,b),w in product([(.7,.3),(.3,.2),(.2,.1)], (.1,.2,.5))],
    elr=[dict(factor=k, beta=b) for k,b in product((1.,3.,7.,15.), (.5,.7,.9))], plain=[{}], soft=[{}])

class Trainer:
    "Trains a perceptron on features; keeps what the methods need of each row"
    def __init__(self, x, labels, c, epochs, seed):
        self.x,self.labels,self.c,self.epochs,self.seed = torch.from_numpy(x).float(),labels,c,epochs,seed
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(x.shape[1], 256), nn.ReLU(), nn.Linear(256, c))
        self.ledger = LabelLedger(list(range(len(x))), labels)
        self.targets = torch.zeros(len(x), c) # of the regularisation
        self.probs = torch.zeros(len(x), c) # of the running epoch

    def loss(self, rows, logits, soft, factor=None, beta=None, **_):
        p = logits.softmax(1)
        self.probs[rows] = p.detach()
        loss = cross_entropy(logits, self.ledger.current[rows] if soft is None else soft[rows])
        if factor is None: return loss
        p = p.clamp(1e-4, 1-1e-4)
        detached = p.detach()/p.detach().sum(1, keepdim=True)
        self.targets[rows] = beta*self.targets[rows]+(1-beta)*detached
        return loss+factor*(1-(self.targets[rows]*p).sum(1)).log().mean()

    def correct(self, done, first=None, last=None, warmup=None, **_):
        "After an epoch"
        self.ledger.predictions = [*self.ledger.predictions, self.probs.clone()][-5:]
        if first is None or done<warmup: return
        theta = first+(last-first)*(done-warmup)/(1-warmup)
        probs = torch.stack(self.ledger.predictions).mean(0)
        self.ledger.change(torch.arange(len(self.x)), probs, theta, max_change=.5)

    def fit(self, soft=None, bs=128, lr=.1, **settings):
        opt = torch.optim.SGD(self.model.parameters(), lr, momentum=.9, weight_decay=5e-4)
        g = torch.Generator().manual_seed(self.seed)
        n_steps = len(self.x)//bs
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, self.epochs*n_steps)
        for epoch in range(self.epochs):
            for rows in torch.randperm(len(self.x), generator=g)[:n_steps*bs].view(n_steps, bs):
                self.loss(rows, self.model(self.x[rows]), soft, **settings).backward()
                opt.step(), opt.zero_grad(), schedule.step()
            self.correct((epoch+1)/self.epochs, **settings)
        return self

    @torch.no_grad()
    def predict(self, x): return self.model(torch.from_numpy(x).float()).argmax(1)

def run(x, data, noise, seed, epochs, tune):
    "Rows of one noise and seed"
    given,true = data.noisy[noise],data.true
    rows,test = train_test_split(np.arange(len(x)), test_size=2000, stratify=true, random_state=seed)
    if tune: rows,test = train_test_split(rows, test_size=1000, stratify=true[rows], random_state=seed)
    x,c = components(x, rows),int(true.max())+1
    x /= x[rows].std() # one factor for all
    oof = out_of_fold(x[rows], one_hot(given[rows], c).numpy(), given[rows].numpy(), seed, [.001])
    soft = torch.from_numpy(soften(oof, given[rows].numpy())).float()
    for method,settings in tried.items():
        for o in settings if tune else [tuned.get(method, {})]:
            t = Trainer(x[rows], given[rows], c, epochs, seed).fit(soft if method=='soft' else None, **o)
            accuracy = (t.predict(x[test])==true[test]).float().mean().item()
            learned = (t.predict(x[rows])==given[rows])[given[rows]!=true[rows]].float().mean().item()
            yield dict(noise=noise, seed=seed, method=method, **o, accuracy=accuracy, wrong_learned=learned,
                labels_right=(t.ledger.current==true[rows]).float().mean().item())

def show(rows):
    df = pd.DataFrame(rows)
    settings = [k for k in ('first','last','warmup','factor','beta') if k in df]
    table = df.fillna({k:-1 for k in settings}).groupby(['method',*settings,'noise'], sort=False)
    print(table[['accuracy','wrong_learned','labels_right']].mean().unstack('noise').round(3).to_string())

@call_parse
def main(
    data:str='cifar10n.zip', # Folder or zip with labels.csv, see noise.py
    weights:str='lite0.safetensors', # File of the network's trained weights, such as weights.py writes
    noise:str='aggre,random1,worst', # Noises, with commas between them
    seeds:str='5', # How many seeds from 0 on, or a list with commas
    epochs:int=25, # Epochs of each training
    arch:str='tf_efficientnet_lite0', # Name of a timm model
    size:int=96, # Side of the pictures of which features are taken
    tune:store_true=False, # Try settings on 1,000 pictures cut from training
    out:Path=None, # JSON file of rows
    json:store_true=False, # One JSON object on the last line
):
    "Train by each method, and count"
    noises,rows,start = noise.split(','),[],time.time()
    pictures = Data(data, noises, size)
    x = features(pictures.x, arch, weights, size)
    for seed in pick_seeds(seeds):
        for k in noises:
            rows += run(x, pictures, k, seed, epochs, tune)
            print(f'{k}, seed {seed}: {time.time()-start:.0f} s', flush=True)
    show(rows)
    if out: out.write_text(dumps(dict(rows=rows, record=record()), indent=1)+'\n')
    if json: print(dumps(dict(rows=rows, record=record())))
