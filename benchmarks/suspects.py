"""How well wrong labels are found, beside cleanlab on the same probabilities.

    pip install cleanlab
    python benchmarks/suspects.py --data cifar10n.zip --weights lite0.safetensors --noise aggre,random1,worst
    python benchmarks/suspects.py --data /usr/share/datasets/fashion-mnist --weights lite0.safetensors \\
        --noise type1,type2,type3 --out suspects.json --json

The data and the noises are those of noise.py. A logistic regression on the features of the frozen network gives
probabilities out of five folds, `--seeds` times with other folds. Its strength of regularisation is the one with the
best accuracy on the given labels, of four: true labels are for scoring alone. `ap` is the average precision and `auc`
the area under the ROC curve of the order in which labels are looked at; precision, recall and F1 are those of the
flags. Of cleanlab's scores the best on each noise is shown, and its flags by default and by the best of its filters:
best by the true labels, which no user has."""
import time,warnings
from json import dumps,loads
from pathlib import Path

warnings.filterwarnings('ignore')
import numpy as np
import torch
from fastcore.script import call_parse, store_true
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, precision_recall_fscore_support, roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from cells import centre, normalize, record
from fastai_mix.data.suspects import suspects
from fastai_mix.files import load_weights
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
    "The best score with the flags of the default filter, and with those of the best filter"
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores
    orders = {k: order_figures(get_label_quality_scores(y, probs, method=k), is_wrong) for k in scores}
    flags = {k: flag_figures(find_label_issues(y, probs, filter_by=k, n_jobs=1), is_wrong) for k in filters}
    score = max(orders, key=lambda k: orders[k]['ap'])
    best = max(flags, key=lambda k: flags[k]['f1'])
    yield dict(method=f'cleanlab: {score}, {filters[0]}', **orders[score], **flags[filters[0]])
    yield dict(method=f'cleanlab: {score}, {best}', **orders[score], **flags[best])

def run(f, data, noise, seed):
    "Rows of one noise and seed"
    y,true = data.noisy[noise].numpy(),data.true.numpy()
    probs,c = out_of_fold(f, y, seed)
    common = dict(noise=noise, seed=seed, share_wrong=float((y!=true).mean()), c=c,
        accuracy=float((probs.argmax(1)==true).mean()))
    return [dict(common, **row) for row in (ours(probs, y, y!=true), *cleanlabs(probs, y, y!=true))]

def show(rows):
    print(f"{'noise':8s} seed wrong  accuracy  {'method':58s} AP     AUC    precision recall F1")
    for r in rows:
        print(f"{r['noise']:8s} {r['seed']:4d} {r['share_wrong']:.3f} {r['accuracy']:9.3f}  {r['method']:58s} "
            f"{r['ap']:.4f} {r['auc']:.4f} {r['precision']:9.3f} {r['recall']:6.3f} {r['f1']:.3f}")

@call_parse
def main(
    data:str='cifar10n.zip', # Folder or zip with labels.csv, or Fashion-MNIST's folder, see noise.py
    weights:str='lite0.safetensors', # File of the network's trained weights, such as weights.py writes
    noise:str='aggre,random1,worst', # Noises, with commas between them
    seeds:int=3, # Divisions into folds
    arch:str='tf_efficientnet_lite0', # Name of a timm model
    size:int=96, # Side of the pictures
    out:Path=None, # JSON file of rows; those of other noises in it stay
    json:store_true=False, # One JSON object on the last line
):
    "Find wrong labels, and count"
    noises,start = noise.split(','),time.time()
    pictures = Data(data, noises, size)
    f = features(pictures.x, arch, weights, size)
    rows = [row for k in noises for seed in range(seeds) for row in run(f, pictures, k, seed)]
    show(rows)
    print(f'{time.time()-start:.0f} s')
    if out:
        kept = [o for o in loads(out.read_text())['rows'] if o['noise'] not in noises] if out.exists() else []
        out.write_text(dumps(dict(rows=kept+rows, record=record()), indent=1)+'\n')
    if json: print(dumps(dict(rows=rows, record=record())))
