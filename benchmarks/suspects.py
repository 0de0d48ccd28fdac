"""How well wrong labels are found, beside cleanlab on the same probabilities.

    pip install cleanlab
    python benchmarks/suspects.py --data cifar10n.zip --weights lite0.safetensors --noise aggre,random1,worst
    python benchmarks/suspects.py --data /usr/share/datasets/fashion-mnist --weights lite0.safetensors \\
        --noise type1,type2,type3 --out suspects.json --json
    python benchmarks/suspects.py --data cifar10n.zip --weights lite0.safetensors --trained 1500 --size 64 \\
        --out suspects.json

The data and the noises are those of noise.py. A logistic regression on the features of the frozen network gives
probabilities out of five folds, `--seeds` times with other folds. Its strength of regularisation is the one with the
best accuracy on the given labels, of four: true labels are for scoring alone. `ap` is the average precision and `auc`
the area under the ROC curve of the order in which labels are looked at; precision, recall and F1 are those of the
flags. cleanlab's three scores stand beside it, each with the flags of its default filter, and its other filters.

With `--trained N` the probabilities are those of `CrossVal`, as a user gets them: the network itself is trained
further on the noisy labels of N pictures, in three folds, by `fine_tune` at the rates of `best_rates`; each seed draws
other pictures and folds. Rows of it have `trained`, N, and `epochs`.

What was tried for the score on the networks of the seeds 0 to 2, whose other seeds came after that: no calibration; a
temperature fitted to the given labels, before or after classes are put on equal terms; division by the entropy to the
power of 1/4, 1/2 and 1, with and without it; subtraction of the entropy. The temperature won: it gained up to .019 of
AP on the human noises, and where it lost it was .002 at most, on the frozen regression as well. Division by the root of
the entropy gained more on some networks, but lost .007 to .013 on the regression with the human noises."""
import time,warnings
from json import dumps,loads
from pathlib import Path

warnings.filterwarnings('ignore')
import numpy as np
import pandas as pd
import torch
from fastai.vision.all import CategoryBlock, ColReader, DataBlock, Flip, ImageBlock, Resize, accuracy
from fastcore.script import call_parse, store_true
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, precision_recall_fscore_support, roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from cells import centre, normalize, pick_seeds, record
from fastai_mix.crossval import CrossVal
from fastai_mix.data.folds import FoldSplitter, add_folds
from fastai_mix.data.suspects import suspects
from fastai_mix.files import load_weights
from fastai_mix.recipe import best_rates
from fastai_mix.vision.learner import timm_learner
from noise import Data

strengths = .0001,.0003,.001,.003
scores = 'self_confidence','normalized_margin','confidence_weighted_entropy'
filters = 'prune_by_noise_rate','prune_by_class','both','confident_learning','predicted_neq_given'

def features(x, arch, weights, size):
    "Pooled features of the frozen network `[n,f]`"
    import timm
    model = timm.create_model(arch)
    model.load_state_dict(load_weights(weights))
    model.eval().reset_classifier(0)
    model.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        return torch.cat([model(normalize(centre(o, size), model.default_cfg)) for o in x.split(64)]).numpy()

def out_of_fold(f, y, seed):
    "Probabilities `[n,c]` by the strength of regularisation that fits the given labels best, and that strength"
    folds,best = StratifiedKFold(5, shuffle=True, random_state=seed),(-1,)
    for c in strengths:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=200))
        probs = cross_val_predict(model, f, y, cv=folds, method='predict_proba')
        best = max(best, ((probs.argmax(1)==y).mean(), probs, c), key=lambda o: o[0])
    return best[1:]

def order_figures(score, is_wrong):
    "Figures of an order in which low scores come first"
    return dict(ap=float(average_precision_score(is_wrong, -score)), auc=float(roc_auc_score(is_wrong, -score)))

def flag_figures(flags, is_wrong):
    p,r,f1,_ = precision_recall_fscore_support(is_wrong, flags, average='binary', zero_division=0)
    return dict(precision=float(p), recall=float(r), f1=float(f1), flags=int(flags.sum()))

def ours(probs, y, is_wrong):
    found = suspects(probs, y).sort_index()
    return dict(method='suspects', **order_figures(found.score.to_numpy(), is_wrong),
        **flag_figures(found.wrong.to_numpy(), is_wrong))

def cleanlabs(probs, y, is_wrong):
    "A row for each score, with the flags of the default filter, and for each other filter"
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores
    def flags(k): return flag_figures(find_label_issues(y, probs, filter_by=k, n_jobs=1), is_wrong)
    by_default = flags(filters[0])
    for k in scores:
        order = order_figures(get_label_quality_scores(y, probs, method=k), is_wrong)
        yield dict(method=f'cleanlab: {k}', **order, **by_default)
    for k in filters[1:]: yield dict(method=f'cleanlab: {k}', **flags(k))

def compare(probs, y, true, **common):
    "A row for each method"
    common |= dict(share_wrong=float((y!=true).mean()), accuracy=float((probs.argmax(1)==true).mean()))
    return [dict(common, **row) for row in (ours(probs, y, y!=true), *cleanlabs(probs, y, y!=true))]

def run(f, data, noise, seed):
    "Rows of one noise and seed, by a regression on features"
    y,true = data.noisy[noise].numpy(),data.true.numpy()
    probs,c = out_of_fold(f, y, seed)
    return compare(probs, y, true, noise=noise, seed=seed, c=c)

def save_pictures(x, folder):
    "Paths of the pictures `x` `[n,3,h,w]` in a folder"
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder/f'{i}.png' for i in range(len(x))]
    for a,path in zip(x, paths): Image.fromarray(a.permute(1, 2, 0).numpy()).save(path)
    return list(map(str, paths))

def cross_val(df, path, arch, weights, size, seed, epochs):
    "Out-of-fold predictions of networks that are trained on the noisy labels of `df`; a killed one goes on in `path`"
    block = DataBlock((ImageBlock,CategoryBlock), get_x=ColReader('path'), get_y=ColReader('label'),
        splitter=FoldSplitter(0), item_tfms=Resize(size), batch_tfms=Flip())
    def learner(dls): return timm_learner(dls, arch, weights=weights, metrics=accuracy)
    def fit(learn):
        with learn.no_bar(), learn.no_logging(): learn.fine_tune(epochs-1, **best_rates())
    df = add_folds(df, 'label', n_splits=3, seed=seed)
    return CrossVal(df, block, learner, path, seed=10*seed, bs=32, num_workers=0).fit(fit).oof

def run_trained(data, noise, seed, n, folder, arch, weights, size, epochs):
    "Rows of one noise and seed, by networks that are trained in folds"
    true,y = data.true.numpy(),data.noisy[noise].numpy()
    i,_ = train_test_split(np.arange(len(y)), train_size=n, stratify=true, random_state=seed)
    true,y,path = true[i],y[i],Path(folder)/f'{noise}-{seed}-{n}-{size}-{epochs}'
    df = pd.DataFrame(dict(path=save_pictures(data.x[i], path/'pictures'), label=[data.vocab[k] for k in y]))
    oof = cross_val(df, path/'run', arch, weights, size, seed, epochs)
    return compare(oof[data.vocab].to_numpy(), y, true, noise=noise, seed=seed, trained=n, epochs=epochs, size=size)

def show(rows):
    print(f"{'noise':8s} seed wrong  accuracy  {'method':38s} AP     AUC    precision recall F1")
    for r in rows:
        order = f"{r['ap']:.4f} {r['auc']:.4f}" if 'ap' in r else ' '*13
        print(f"{r['noise']:8s} {r['seed']:4d} {r['share_wrong']:.3f} {r['accuracy']:9.3f}  {r['method']:38s} "
            f"{order} {r['precision']:9.3f} {r['recall']:6.3f} {r['f1']:.3f}")

def _setting(row): return [row.get(k, 0) for k in ('noise','seed','trained','epochs','size')]

def write(out, rows):
    "Put `rows` into the file in place of those of the same settings"
    new,old = [*map(_setting, rows)],loads(out.read_text()) if out.exists() else dict(rows=[])
    kept = [o for o in old['rows'] if _setting(o) not in new]
    key = 'record_trained' if 'trained' in rows[0] else 'record'
    lines = ',\n'.join(map(dumps, kept+rows))
    others = ',\n'.join(f'"{k}": {dumps(v)}' for k,v in {**old, key:record()}.items() if k!='rows')
    out.write_text(f'{{"rows": [\n{lines}],\n{others}}}\n')

@call_parse
def main(
    data:str='cifar10n.zip', # Folder or zip with labels.csv, or Fashion-MNIST's folder, see noise.py
    weights:str='lite0.safetensors', # File of the network's trained weights, such as weights.py writes
    noise:str='aggre,random1,worst', # Noises, with commas between them
    seeds:str='3', # How many divisions into folds, or a list of seeds with commas
    arch:str='tf_efficientnet_lite0', # Name of a timm model
    size:int=96, # Side of the pictures
    trained:int=0, # Train networks on so many pictures, in folds; 0: a regression on features
    epochs:int=3, # Of each network, the first with a frozen body
    folder:Path='suspects-folds', # Where such networks are kept, so that a killed run goes on
    out:Path=None, # JSON file of rows; those of other settings in it stay
    json:store_true=False, # One JSON object on the last line
):
    "Find wrong labels, and count"
    noises,start,rows = noise.split(','),time.time(),[]
    pictures = Data(data, noises, size)
    if not trained: f = features(pictures.x, arch, weights, size)
    for k in noises:
        for seed in pick_seeds(seeds):
            rows += run_trained(pictures, k, seed, trained, folder, arch, weights, size, epochs) if trained else \
                run(f, pictures, k, seed)
            if out: write(out, rows)
    show(rows)
    print(f'{time.time()-start:.0f} s')
    if json: print(dumps(dict(rows=rows, record=record())))
