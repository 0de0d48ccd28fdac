"Settings compared on the same folds: intervals, what is refused, equal cost, kills."
import random
import time
from functools import partial

import numpy as np
import pandas as pd
import pytest
from fastai.vision.all import Callback
from scipy import stats
from fastai_mix.callback.mix import MixUp
from fastai_mix.callback.snapmix import SnapMix
from fastai_mix.cli import main
from fastai_mix.compare import Comparison, compare, compare_runs, difference_over_folds, difference_over_pictures
from fastai_mix.crossval import CrossVal
from fastai_mix.data.folds import add_folds
from kills import processes
from helpers import one, tiny

def test_the_interval_over_folds_holds_what_it_says():
    "Means of five folds that share four fifths of their data: the corrected interval covers the truth, the plain one not"
    rng,hit,naive = np.random.default_rng(0),0,0
    for _ in range(2000):
        # correlation of two folds' differences as Nadeau and Bengio take it, the share of a fold in the data
        d = rng.standard_normal(5)*.8**.5 + rng.standard_normal()*.2**.5
        mean,low,high = difference_over_folds(d, 1/4)
        hit += low<0<high
        naive += abs(mean)<stats.t.ppf(.975, 4)*stats.sem(d)
    assert .94<hit/2000<.97 and naive/2000<.90

def test_the_interval_over_pictures_is_that_of_paired_pictures():
    rng = np.random.default_rng(1)
    y = rng.integers(0, 3, 400)
    def predict(right): return np.eye(3)[np.where(right, y, (y+1)%3)]*.8 + .2/3
    a,b = rng.random(400)<.8,rng.random(400)<.7
    diff,low,high = difference_over_pictures(predict(a), predict(b), y)['accuracy']
    d = a.astype(float)-b
    assert diff==pytest.approx(d.mean()) and (high-low)/2==pytest.approx(1.96*stats.sem(d), rel=.15)
    loss = difference_over_pictures(predict(a), predict(b), y)['log_loss']
    assert loss[0]<0 and loss[1]<loss[0]<loss[2]

def table(**kwargs):
    row = {f'{m}{s}':0. for m in ('accuracy','macro_f1','log_loss') for s in ('','_diff','_low','_high')}
    return pd.DataFrame([dict(row, n=10, seconds=1), dict(row, n=10, seconds=1, **kwargs)], ['plain','x'])

def test_better_is_lower_for_log_loss():
    c = Comparison(table(accuracy_low=.1, accuracy_high=.2, log_loss_low=.1, log_loss_high=.2), 'plain', [0,1])
    assert [c.beyond(m).x for m in ('accuracy','macro_f1','log_loss')]==[1,0,-1] and c.beyond().plain==0
    assert str(c).count('*')==3 and '2 folds' in str(c) # two differences, and the legend
    with pytest.raises(ValueError, match='measure'): c.beyond('auc')

@pytest.fixture
def run(df, get_dls, tmp_path):
    def make(name, table=df, **kwargs): return CrossVal(table, get_dls, tiny, tmp_path/name, **kwargs)
    return make

def test_runs_that_cannot_be_compared(run, df):
    a = run('a').fit(one, [0])
    with pytest.raises(ValueError, match='a to compare: expected two runs or more'): compare_runs(dict(a=a))
    b = run('b', add_folds(df.drop(columns='fold'), 'label', n_splits=3, seed=1, id_col='image_id'))
    with pytest.raises(ValueError, match='b and a have other rows, labels or folds'): compare_runs(dict(a=a, b=b))
    with pytest.raises(ValueError, match='b and a have other rows'): compare_runs(dict(a=a, b=run('c', df[::-1])))
    c = run('d').fit(one, [0])
    with pytest.raises(ValueError, match='fold 1, 2 is not done'): compare_runs(dict(a=a, c=c))
    with pytest.raises(ValueError, match="reference='plain'"): compare_runs(dict(a=a, c=c), 'plain', [0])
    same = compare_runs(dict(a=a, c=c), folds=[0])
    assert same.reference=='a' and same.table.accuracy_diff.eq(0).all() and 'fold 0' in str(same)

class Count(Callback):
    n = 0
    def after_pred(self):
        if self.training: self.n += len(self.pred)

def test_all_settings_train_on_as_many_pictures(df, get_dls, tmp_path):
    seen = {}
    def fit(learn, epochs):
        count = Count()
        with learn.no_bar(), learn.no_logging(): learn.fit(epochs, 1e-2, cbs=count)
        seen[learn.path.parent.name] = count.n
    compare(df, partial(get_dls, bs=8), tiny, tmp_path, ['plain','mixup','mixup-echo','snapmix-echo'], epochs=4, fit=fit,
        folds=[0])
    # with echo the first step has no mixed pictures yet
    assert seen=={'plain':160, 'mixup':160, 'mixup-echo':156, 'snapmix-echo':156}

def test_settings_of_ones_own_and_wrong_ones(df, get_dls, tmp_path):
    args = dict(df=df, get_dls=get_dls, get_learner=tiny, path=tmp_path, fit=lambda learn, epochs: one(learn), folds=[0])
    res = compare(settings={'plain': list, 'weak': lambda: [MixUp(.1)], 'snap': lambda: [SnapMix(p=.5)]}, **args)
    assert list(res.table.index)==['plain','weak','snap']
    for wrong,message in (({'a':MixUp()}, "setting 'a'"), (['snap'], "setting 'snap'"), (['plain','mixup,cutmix'], 'setting')):
        with pytest.raises((ValueError,TypeError), match=message): compare(settings=wrong, **args)
    with pytest.raises(ValueError, match='reference'): compare(settings=['plain','mixup'], reference='cutmix', **args)
    with pytest.raises(ValueError, match='epochs'): compare(settings=['plain','mixup'], epochs=0, **args)

def compare_three(df, get_dls, path):
    def fit(learn, epochs):
        with learn.no_bar(), learn.no_logging(): learn.fit(epochs, 1e-2)
    res = compare(df, get_dls, tiny, path, ['plain','mixup','snapmix-echo'], epochs=4, fit=fit)
    res.table.drop(columns='seconds').to_csv(path.with_suffix('.csv'))

def test_a_killed_comparison_ends_with_the_same_table(df, get_dls, tmp_path):
    def start(name):
        p = processes.Process(target=compare_three, args=(df, get_dls, tmp_path/name))
        p.start()
        return p
    whole = start('whole')
    whole.join()
    assert whole.exitcode==0
    rng,kills = random.Random(0),0
    for _ in range(20):
        process,n = start('killed'),len(list(tmp_path.glob('killed/*/fold_*/fold.json')))
        # until another fold is done
        while process.is_alive() and len(list(tmp_path.glob('killed/*/fold_*/fold.json')))<n+3: time.sleep(.02)
        time.sleep(rng.random()*.1)
        process.kill()
        process.join()
        if process.exitcode==0: break
        kills += 1
    assert kills>=2 and (tmp_path/'killed.csv').read_text()==(tmp_path/'whole.csv').read_text()

def test_the_command_compares(leaves, tmp_path, capsys):
    args = dict(data=str(leaves/'train.csv'), label_col='labels', size=32, bs=8, epochs=2, lr=1e-3, fold=0, folds=3,
        arch='test_resnet', out=str(tmp_path/'run'))
    main(**args, mix='mixup', compare='plain,mixup')
    out,table = capsys.readouterr().out,pd.read_csv(tmp_path/'run'/'comparison.csv')
    assert 'training with mixup, learning rate 0.001' in out and 'Compared with plain' in out
    assert table.setting.tolist()==['mixup','plain'] and (tmp_path/'run'/'comparison.png').exists()
    # another setting later; what is there is not trained again
    main(**args, mix='mixup', compare='plain,snapmix-echo')
    again = pd.read_csv(tmp_path/'run'/'comparison.csv')
    assert again.setting.tolist()==['mixup','plain','snapmix-echo']
    assert again[:2].drop(columns='seconds').equals(table.drop(columns='seconds'))
    history = pd.read_csv(tmp_path/'run'/'compare'/'snapmix-echo'/'fold_0'/'history.csv')
    assert len(history)==1 # half of the epochs
    with pytest.raises(SystemExit): main(**args, mix='mixup', compare='plain,snap')
    assert "--compare plain,snap: setting 'snap'" in capsys.readouterr().err

def test_a_folder_takes_one_number_of_epochs(df, get_dls, tmp_path, capsys):
    args = dict(df=df, get_dls=get_dls, get_learner=tiny, path=tmp_path, fit=lambda learn, epochs: one(learn), folds=[0])
    table = compare(settings=['plain','ema'], epochs=1, **args).table
    with pytest.raises(ValueError, match='epochs=1 there, 6 here'): compare(settings=['plain','mixup'], epochs=6, **args)
    capsys.readouterr()
    pd.testing.assert_frame_equal(compare(settings=['plain','ema'], epochs=1, **args).table, table)
    assert capsys.readouterr().out.count('nothing to train, 1 fold done with 1 epochs')==2
    with pytest.raises(ValueError, match="setting 'recipe'"): compare(settings=['plain','recipe'], epochs=1, **args)
