"""What the functions of tables cost, and how that grows: seconds, memory and the exponent of growth for 10,000 to a
million rows.

    python benchmarks/tables.py [--rows 10000 100000 1000000 --only NAME ... --json --out FILE]

Each function runs in a process of its own on a table of ten classes, or of so many as its name says; the table is
made before the clock starts. Memory is the peak of the process while it runs, above what it held before. The exponents
are those of rows between the smallest and the largest size, and between the last two: 1 is linear. What takes a time in
proportion to the rows has a larger last exponent where a million of them no longer fit into the processor's cache.
`similar pictures` has hashes as different as those of
photographs, a tenth of them like another one."""
if __name__!='__main__': raise ImportError('this is a script and not PyTables, which fastai imports where there is one')
import argparse,json,math,os,platform,sys,time,warnings
from multiprocessing import get_context
from pathlib import Path

warnings.filterwarnings('ignore')
import numpy as np
import pandas as pd
import fastai_mix.all

def table(n, c=10):
    rng = np.random.default_rng(0)
    y = rng.permutation(np.arange(n)%c)
    return rng,y,pd.DataFrame({'label': [f'class {k}' for k in y], 'id': [f'row{i}' for i in range(n)],
        'group': np.arange(n)//4})

def folded(n, **kwargs):
    from fastai_mix.data.folds import add_folds
    _,_,df = table(n, kwargs.pop('c', 10))
    return lambda: add_folds(df, 'label', **kwargs)

def long_id(n):
    from fastai_mix.data.folds import add_folds
    _,_,df = table(n)
    df.loc[0,'id'] = 'x'*2000
    return lambda: add_folds(df, 'label', id_col='id')

def split(n):
    from fastai_mix.data.folds import FoldSplitter, add_folds
    df = add_folds(table(n)[2], 'label', id_col='id')
    return lambda: FoldSplitter(0, oversample='balance', undersample='sqrt')(df)

def drawn(n):
    from fastai_mix.data.check import label_table
    from fastai_mix.data.folds import draw_rows
    has = label_table(table(n)[2], 'label')
    return lambda: draw_rows(has, oversample='balance')

def labels(n):
    from fastai_mix.data.check import label_table
    df = table(n)[2]
    return lambda: label_table(df, 'label')

def tags(n):
    from fastai_mix.data.check import label_table
    df = table(n)[2].assign(tags=lambda o: o.label.str[-1]+' any')
    return lambda: label_table(df, 'tags', ' ')

def weights(n):
    from fastai_mix.data.sampling import class_weights
    y = table(n)[2].label
    return lambda: class_weights(y)

def soft(n):
    from fastai_mix.data.soft import soft_labels
    rng,_,df = table(n)
    oof = pd.DataFrame(rng.dirichlet(np.ones(10), n), df.index, sorted(df.label.unique()))
    return lambda: soft_labels(df, oof, 'label')

def scores(n):
    from fastai_mix.crossval import score_table
    rng,y,_ = table(n)
    p = rng.dirichlet(np.ones(10), n)
    return lambda: score_table(p, y, np.arange(n)%5)

def blended(n, how='gmean'):
    from fastai_mix.crossval import blend, fit_weights
    rng,y,_ = table(n)
    p = np.stack([rng.dirichlet(np.ones(10), n) for _ in range(3)])
    return (lambda: blend(p, how)) if how else lambda: fit_weights(p, y)

def sampled(n):
    from fastai_mix.crossval import fill_sample
    rng,_,df = table(n)
    probs = pd.DataFrame(rng.random((n,10)), df.id, [f'c{i}' for i in range(10)])
    sample = pd.DataFrame({'id': rng.permutation(df.id)}).assign(**dict.fromkeys(probs, 0.))
    return lambda: fill_sample(sample, probs)

def corrected(n, wrong=False):
    import torch
    from fastai_mix.data.ledger import LabelLedger
    _,y,df = table(n)
    ledger = LabelLedger(list(range(n)), torch.tensor(y), [f'class {i}' for i in range(10)])
    if wrong: df.index = df.index+1
    def run():
        try: ledger.corrected(df, 'label')
        except ValueError:
            if not wrong: raise
    return run

def twins(n, near=None, copies=2):
    from fastai_mix.data.similar import repeated_pictures
    rng,y,_ = table(n)
    content = rng.integers(max(n//copies, 1), size=n)
    bits = [None]*n
    if near:
        content,a = np.arange(n),rng.choice([-1,1], (n,256)).astype(np.int8)
        for i in rng.choice(n, n//10, replace=False):
            a[i] = a[rng.integers(n)]*np.where(rng.random(256)<.15*rng.random(), -1, 1)
        bits = list(a)
    found = [([], int(k).to_bytes(8, 'big'), b) for k,b in zip(content, bits)]
    names,classes = [f'{i}.jpg' for i in range(n)],[str(k) for k in y]
    return lambda: sum(1 for _ in repeated_pictures(found, names, near, classes))

cases = {
    'add_folds': folded, 'add_folds by identity, one of 2,000 characters': long_id,
    'label_table': labels, 'label_table, cells of several': tags, 'draw_rows': drawn,
    'FoldSplitter': split, 'class_weights': weights, 'soft_labels': soft, 'score_table': scores, 'blend': blended,
    'fit_weights': lambda n: blended(n, None),
    'fill_sample': sampled, 'corrected': corrected, 'corrected, another table': lambda n: corrected(n, True),
    'equal pictures': twins, 'equal pictures, all of them': lambda n: twins(n, copies=n),
    'similar pictures': lambda n: twins(n, near=32),
    'add_folds, 4,000 classes': lambda n: folded(n, c=4000, n_splits=2)}

def one(name, n):
    "Seconds and bytes of one function on `n` rows"
    f = cases[name](n)
    Path('/proc/self/clear_refs').write_text('5') # the peak begins anew
    def peak(key):
        return next(int(o.split()[1])*1024 for o in Path('/proc/self/status').read_text().splitlines()
            if o.startswith(key))
    before,t = peak('VmRSS'),time.perf_counter()
    f()
    return dict(seconds=time.perf_counter()-t, bytes=max(peak('VmHWM')-before, 0), total=peak('VmHWM'))

def main():
    p = argparse.ArgumentParser()
    p.add_argument('--rows', type=int, nargs='+', default=[10**4, 10**5, 10**6])
    p.add_argument('--only', nargs='+', default=list(cases))
    p.add_argument('--json', action='store_true', help='print the results as JSON')
    p.add_argument('--out', type=Path, help='write them there')
    opts = p.parse_args()
    rows = []
    for name in opts.only:
        sizes = {}
        for n in opts.rows:
            # forked, since the imports take seconds
            with get_context('fork').Pool(1) as pool: sizes[n] = pool.apply(one, (name, n))
        ns = sorted(sizes)
        def growth(a, b): return math.log(sizes[b]['seconds']/sizes[a]['seconds'])/math.log(b/a)
        exponents = {} if len(ns)<2 else dict(exponent=growth(ns[0], ns[-1]), last_exponent=growth(*ns[-2:]))
        rows.append(dict(name=name, sizes=sizes, **exponents))
        if not opts.json:
            print(f'{name:50s}', *(f"{v['seconds']:8.2f} s {v['bytes']/2**20:6.0f} MB" for v in sizes.values()),
                f"  rows^{exponents['exponent']:.2f}, last rows^{exponents['last_exponent']:.2f}" if exponents else '',
                flush=True)
        res = dict(rows=rows, machine=platform.machine(), processors=os.cpu_count(), load=os.getloadavg()[0],
            python=platform.python_version(), numpy=np.__version__, pandas=pd.__version__,
            command=' '.join(['python benchmarks/tables.py', *sys.argv[1:]]))
        if opts.out: opts.out.write_text(json.dumps(res, indent=1)+'\n') # what is done so far
    if opts.json: print(json.dumps(res))

if __name__=='__main__': main()
