"""What does it bring if a person looks at suspect labels?

    python benchmarks/looks.py --data cifar10n.zip --weights lite0.safetensors --out looks.json

The data are those of noise.py; each seed draws another 2,000 pictures to test on, with true labels, and other folds.
The person is simulated: a label that is looked at becomes the true one, right before or not. Looked at are the labels
that `suspects` puts first, by probabilities out of five folds, or labels at random. Beside these: training on the
given labels, on soft labels of the same probabilities (`soft_labels`, a half each), without the labels that `suspects`
flags, on the predicted labels in their place, and on true labels alone. Every method trains a logistic regression on
the first 128 principal components of the frozen network's features, which are as good as all of them. Its strength of
regularisation is the one of three that fits best the labels of a fifth of the pictures that it did not train on, as the
method has these labels: true ones are for scoring alone."""
import time,warnings
from json import dumps,loads
from pathlib import Path

warnings.filterwarnings('ignore')
import numpy as np
import pandas as pd
import torch
from fastcore.script import call_parse, store_true
from scipy.optimize import minimize
from sklearn.model_selection import StratifiedKFold, train_test_split
from cells import pick_seeds, record
from fastai_mix.data.soft import soft_labels
from fastai_mix.data.suspects import suspects
from noise import Data
from suspects import features

strengths = .0003,.001,.003

def components(x, rows, n=128):
    "The first `n` principal components of features `[pictures,f]`, each scaled to 1, as they are among `rows`"
    x = (x-x[rows].mean(0))/x[rows].std(0)
    return x@np.linalg.eigh(x[rows].T@x[rows])[1][:,:-n-1:-1]

def with_bias(x): return torch.from_numpy(np.c_[x, np.ones(len(x))]).float()

class Logistic:
    "A logistic regression on targets that may be shares of classes; as scikit-learn's where they are not"
    def __init__(self, x, targets, c):
        x,targets = with_bias(x),torch.as_tensor(targets, dtype=torch.float32)
        self.shape = x.shape[1],targets.shape[1]
        decay = 1/(c*len(x))
        def loss(v):
            w = torch.from_numpy(v).float().view(*self.shape)
            logits = x@w
            log_sum = logits.logsumexp(1)
            grad = x.T@((logits-log_sum[:,None]).exp()-targets)/len(x)
            grad[:-1] += decay*w[:-1] # the last is the bias
            value = (log_sum-(targets*logits).sum(1)).mean()+decay*(w[:-1]**2).sum()/2
            return value.item(),grad.flatten().double().numpy()
        options = dict(maxiter=200, gtol=3e-4, ftol=1e-7)
        best = minimize(loss, np.zeros(self.shape[0]*self.shape[1]), jac=True, method='L-BFGS-B', options=options)
        self.w = torch.from_numpy(best.x).float().view(*self.shape)

    def probs(self, x): return (with_bias(x)@self.w).softmax(1).numpy()

def out_of_fold(x, targets, labels, seed, strengths=strengths):
    "Probabilities `[n,c]` by the strength of regularisation that fits `labels` best"
    folds,best = [*StratifiedKFold(5, shuffle=True, random_state=seed).split(x, labels)],(-1,)
    for c in strengths:
        probs = np.zeros(targets.shape)
        for rows,others in folds: probs[others] = Logistic(x[rows], targets[rows], c).probs(x[others])
        best = max(best, ((probs.argmax(1)==labels).mean(), probs), key=lambda o: o[0])
    return best[1]

def train(x, targets, seed):
    "A regression with the strength of regularisation that fits best the labels of a fifth of the rows"
    labels = targets.argmax(1)
    rows,others = next(StratifiedKFold(5, shuffle=True, random_state=seed).split(x, labels))
    def agreement(c): return (Logistic(x[rows], targets[rows], c).probs(x[others]).argmax(1)==labels[others]).mean()
    return Logistic(x, targets, max(strengths, key=agreement))

def soften(probs, labels):
    classes = [str(k) for k in range(probs.shape[1])]
    df = pd.DataFrame({'label': labels.astype(str)})
    return soft_labels(df, pd.DataFrame(probs, columns=classes), 'label', hard=False, where='all')[classes].to_numpy()

def look(given, true, order, n):
    "Labels after a look at the first `n` of `order`"
    return np.where(np.isin(np.arange(len(given)), order[:n]), true, given)

def targets_of(probs, given, true, seed, counts):
    "Method, number of looks, rows and targets of each training"
    eye,found = np.eye(probs.shape[1]),suspects(probs, given)
    flagged,everything = found.wrong.sort_index().to_numpy(),np.arange(len(given))
    yield 'given labels',0,everything,eye[given]
    yield 'soft labels',0,everything,soften(probs, given)
    yield 'flagged left out',0,np.flatnonzero(~flagged),eye[given[~flagged]]
    yield 'flagged relabelled',0,everything,eye[np.where(flagged, probs.argmax(1), given)]
    orders = dict(suspects=found.index.to_numpy(), random=np.random.default_rng(seed).permutation(everything))
    for name,order in orders.items():
        for n in counts: yield f'{name} looked at',n,everything,eye[look(given, true, order, n)]
    soft,n = soften(probs, given),max(counts)
    soft[orders['suspects'][:n]] = eye[true[orders['suspects'][:n]]]
    yield 'suspects looked at, others soft',n,everything,soft
    yield 'true labels',len(given),everything,eye[true]

def run(x, data, noise, seed, counts):
    "Rows of one noise and seed"
    given,true = data.noisy[noise].numpy(),data.true.numpy()
    rows,test = train_test_split(np.arange(len(x)), test_size=2000, stratify=true, random_state=seed)
    x,given_rows,true_rows = components(x, rows),given[rows],true[rows]
    probs = out_of_fold(x[rows], np.eye(true.max()+1)[given_rows], given_rows, seed)
    for method,looks,kept,targets in targets_of(probs, given_rows, true_rows, seed, counts):
        accuracy = (train(x[rows][kept], targets, seed).probs(x[test]).argmax(1)==true[test]).mean()
        yield dict(noise=noise, seed=seed, method=method, looks=looks, accuracy=float(accuracy),
            labels_right=float((targets.argmax(1)==true_rows[kept]).mean()), n_train=len(kept))

def show(rows):
    table = pd.DataFrame(rows).groupby(['noise','method','looks'], sort=False)
    print(table[['accuracy','labels_right']].agg(['mean','std']).round(4).to_string())

keys = 'noise','seed','method','looks'
def write(out, rows):
    "Put `rows` into the file in place of those of the same trainings"
    new = {tuple(o[k] for k in keys) for o in rows}
    old = loads(out.read_text())['rows'] if out.exists() else []
    kept = [o for o in old if tuple(o[k] for k in keys) not in new]
    out.write_text(dumps(dict(rows=kept+rows, record=record()), indent=1)+'\n')

@call_parse
def main(
    data:str='cifar10n.zip', # Folder or zip with labels.csv, see noise.py
    weights:str='lite0.safetensors', # File of the network's trained weights, such as weights.py writes
    noise:str='aggre,random1,worst', # Noises, with commas between them
    looks:str='250,500,1000', # Numbers of labels looked at, with commas
    seeds:str='5', # How many seeds from 0 on, or a list with commas
    arch:str='tf_efficientnet_lite0', # Name of a timm model
    size:int=96, # Side of the pictures of which features are taken
    out:Path=None, # JSON file of rows; others in it stay
    json:store_true=False, # One JSON object on the last line
):
    "Let a simulated person look at labels, train, and count"
    noises,counts,start = noise.split(','),[int(o) for o in looks.split(',')],time.time()
    pictures = Data(data, noises, size)
    x,rows = features(pictures.x, arch, weights, size),[]
    for seed in pick_seeds(seeds):
        for k in noises:
            rows += run(x, pictures, k, seed, counts)
            print(f'{k}, seed {seed}: {time.time()-start:.0f} s', flush=True)
            if out: write(out, rows)
    show(rows)
    if json: print(dumps(dict(rows=rows, record=record())))
