"Files that earlier versions wrote are read and gone on with; names stay where they were. `make_saved.py` wrote them."
import inspect
import json
import pickle
import platform
import shutil
from importlib import import_module
from importlib.metadata import version
from operator import attrgetter

import numpy as np
import pandas as pd
import pytest
from fastai.vision import all as fastai
from fastai.vision.all import partial
from make_saved import (attributes, class_of, cycle, golden, losses, mixed, pickled, pictures, predictions, run, saved,
                        seeded, stop, table, tiny, tiny_model, tuned)
from fastai_mix.callback.plc import ProgressiveLabelCorrection
from fastai_mix.checkpoint import load_state, resumable, save_state
from fastai_mix.crossval import load_ensemble
from fastai_mix.data.leaves import leaf_data

def read_json(file): return json.loads(file.read_text())

def near(a, b, atol):
    assert list(a)==list(b) and len(a)==len(b)
    assert np.allclose(a.to_numpy(float), b.to_numpy(float), atol=atol, rtol=0)

names,methods = read_json(golden/'names.json'),read_json(golden/'methods.json')
told = read_json(saved/'pickled.json')
wrote = read_json(saved/'run'/'config.json')

@pytest.fixture(scope='module')
def leaves(tmp_path_factory): return leaf_data(tmp_path_factory.mktemp('leaves')/'data', n=40, size=64)

@pytest.fixture
def copy(tmp_path):
    def f(name): return (shutil.copytree if (saved/name).is_dir() else shutil.copy)(saved/name, tmp_path/name)
    return f

@pytest.fixture(params=['whole','older'])
def checkpoints(request):
    """Makes checkpoints like those of an older version, or leaves them as they are.

    They hold digests of fastai's byte code, so other versions of it and of Python refuse them. Older ones do not."""
    same = platform.python_version_tuple()[:2]==tuple(wrote['python'].split('.')[:2])
    same = same and all(version(k)==wrote['versions'][k] for k in ('fastai','torch'))
    if request.param=='whole' and not same: pytest.skip('written by another version of Python, fastai or PyTorch')
    def f(folder):
        files = sorted(folder.glob('*.safetensors'))
        assert files
        for file in files if request.param=='older' else []:
            s = load_state(file)
            del s['plan']['settings']
            save_state(file, s)
    return f

@pytest.mark.parametrize('module', names)
def test_names(module):
    m = import_module(module)
    for k in names[module]: assert getattr(m, k) is not None, k
    public = getattr(m, '__all__', None) or [o for o in vars(m) if not o.startswith('_')]
    assert set(names[module])<=set(public)

@pytest.mark.parametrize('module', methods)
def test_methods(module):
    m = import_module(module)
    for k in methods[module]: # a method may be patched into a class of fastai
        owner = m if hasattr(m, k.split('.')[0]) else fastai
        assert attrgetter(k)(owner) is not None, k

def test_finished_run(copy, leaves):
    def never(learn): raise AssertionError('a fold that is done is trained')
    cv = run(leaves, copy('run')).fit(never)
    was = pd.read_csv(saved/'run.csv', float_precision='round_trip').astype(np.float32)
    assert cv.oof.equals(was) and list(cv.oof)==cv.vocab
    labels = [pd.read_csv(saved/'run'/f'fold_{k}'/'labels.csv').assign(fold=k) for k in cv.folds]
    pd.testing.assert_frame_equal(cv.labels, pd.concat(labels, ignore_index=True))
    assert len(cv.history)==6 and (cv.timings>0).all().all() and cv.scores.n['pooled']==40
    for k in cv.folds:
        learn,own = cv.learner(k),cv.df.fold==k
        probs,_ = learn.get_preds(dl=learn.dls.test_dl(cv.df[own]))
        near(pd.DataFrame(probs, columns=cv.vocab), was[own], 1e-4)

def test_interrupted_run(copy, checkpoints, leaves):
    path = copy('run_stopped')
    checkpoints(path/'fold_1'/'checkpoints')
    cv = run(leaves, path)
    assert cv.done(0) and not cv.done(1)
    cv.fit(stop(tuned, 3)) # two batches are left
    near(cv.oof, pd.read_csv(saved/'run.csv'), 1e-4)
    whole = run(leaves, copy('run'))
    near(cv.history.drop(columns='time'), whole.history.drop(columns='time'), 1e-4)
    assert cv.labels[['row','given','current','times']].equals(whole.labels[['row','given','current','times']])
    assert not (path/'fold_1'/'checkpoints').exists()

@pytest.mark.parametrize('name,kwargs', [('ensemble', {}), ('ensemble_of_own', dict(get_model=tiny_model))])
def test_exported_ensemble(name, kwargs, copy, tmp_path):
    ens = load_ensemble(copy(name), **kwargs)
    assert len(ens)==2 and ens.how==('gmean' if name=='ensemble' else 'mean')
    near(predictions(ens, pictures(tmp_path)), pd.read_csv(saved/f'{name}.csv'), 1e-4)

def test_label_file(copy, leaves):
    was = pd.read_csv(saved/'labels.csv', index_col='row', float_precision='round_trip')
    plc = ProgressiveLabelCorrection(.02, warmup=1, id_col='image_id')
    plc.load(copy('labels.safetensors'))
    pd.testing.assert_frame_equal(plc.labels, was, check_dtype=False)
    assert len(plc.changed)==(was.given!=was.current).sum()>0 and plc.epochs==3
    df = plc.corrected(table(leaves), 'label').set_index('image_id')
    assert df.corrected[was.index].equals(was.current) and (df.corrected!=df.label).sum()==len(plc.changed)
    learn = seeded(partial(tiny, cbs=plc), leaves)
    learn.fit(1, 1e-2)
    assert plc.epochs==4 and plc.labels.given.equals(was.given) and (plc.labels.times>=was.times).all()

def test_interrupted_fit(copy, checkpoints, leaves):
    path = copy('checkpoints')
    checkpoints(path)
    with resumable(learn := seeded(mixed, leaves), path) as fits: stop(cycle, 3)(learn) # two batches are left
    near(losses(fits), pd.read_csv(saved/'checkpoints.csv'), 1e-4)
    was,now = pd.read_csv(saved/'labels.csv', index_col='row'),learn.progressive_label_correction.labels
    assert now[['given','current','times']].equals(was[['given','current','times']])
    near(now[['p_given','p_current']].fillna(-1), was[['p_given','p_current']].fillna(-1), 1e-4)

def moved(o):
    "`o` with each class under the name that its path leads to now"
    if isinstance(o, dict): return {k:moved(v) for k,v in o.items()}
    if isinstance(o, list): return [moved(v) for v in o]
    if not isinstance(o, str) or not o.startswith('fastai_mix.'): return o
    module,name = o.rsplit('.', 1)
    found = getattr(import_module(module), name)
    return f'{found.__module__}.{found.__qualname__}'

def load(name):
    o = pickle.loads((saved/'pickled'/f'{name}.pkl').read_bytes())
    kind,attrs = moved(told[name]['kind']),moved(told[name]['attrs'])
    # what else it holds may have other names by now
    arguments = [k for k in inspect.signature(type(o)).parameters if k in attrs]
    current = attributes(o)
    assert arguments and class_of(o)==kind and {k:current[k] for k in arguments}=={k:attrs[k] for k in arguments}
    assert current.get('made_with')==attrs.get('made_with')
    return o

def test_pickled_scores():
    pytest.importorskip('numpy', '1.26') # older ones do not know where an array's class is now
    s = load('scores')
    assert s.report()==told['scores']['report'] and s.accuracy==(s.preds==s.targs).mean()

@pytest.mark.parametrize('name', pickled)
def test_pickled_callback(name, leaves):
    cb,new = load(name),pickled[name]()
    # later versions may have more arguments
    assert type(cb) is type(new) and list(cb.made_with)==[k for k in new.made_with if k in cb.made_with]
    learn = seeded(partial(tiny, cbs=cb), leaves)
    learn.fit(1, 1e-2) # goes on
    assert len(learn.recorder.losses)==2
