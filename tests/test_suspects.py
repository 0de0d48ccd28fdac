"The order, the score and the flags are those of the formulas, whatever the labels are given as."
from math import exp, log

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from fastai_mix.data.suspects import suspects, table_suspects

def drawn(seed, n, c):
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.full(c, .5), n)
    return probs,rng.integers(0, c, n)

def temperature(probs, y):
    "That of the least log-loss, .5 to 20, by ever finer grids"
    def loss(t): return np.mean([-o[k]/t+log(sum(exp(l/t) for l in o)) for o,k in zip(np.log(probs), y)])
    low,high = .05,2.
    for _ in range(8):
        grid = np.linspace(low, high, 9)
        i = min(range(9), key=lambda i: loss(1/grid[i]))
        low,high = grid[max(i-1, 0)],grid[min(i+1, 8)]
    return 2/(low+high)

def scores_by_hand(probs, y):
    n,c = probs.shape
    at = temperature(probs, y)
    powers = [[o**(1/at) for o in row] for row in probs]
    cal = [[o/sum(row) for o in row] for row in powers]
    mean = [sum(row[k] for row in cal)/n for k in range(c)]
    return np.array([row[k]/mean[k]/sum(o/m for o,m in zip(row, mean)) for row,k in zip(cal, y)])

def flags_by_hand(probs, y, score):
    n,c = probs.shape
    threshold = {k: np.mean([probs[i,k] for i in range(n) if y[i]==k]) for k in set(y)}
    joint = np.zeros((c,c))
    for i in range(n):
        reached = [k for k in threshold if probs[i,k]>=threshold[k]]
        if reached: joint[y[i], max(reached, key=lambda k: probs[i,k])] += 1
    wrong = np.zeros(n, bool)
    for k in range(c):
        rows = [i for i in range(n) if y[i]==k]
        if not joint[k].sum(): continue
        n_wrong = round((1-joint[k,k]/joint[k].sum())*len(rows))
        for i in sorted(rows, key=lambda i: score[i])[:n_wrong]: wrong[i] = probs[i].argmax()!=k
    return wrong

@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(2, 5))
def test_by_hand(seed, n, c):
    probs,y = drawn(seed, n, c)
    copy = probs.copy()
    found = suspects(probs, y)
    assert (probs==copy).all() and found.score.is_monotonic_increasing and found.score.between(0, 1).all()
    found = found.sort_index()
    np.testing.assert_allclose(found.score, scores_by_hand(probs, y), rtol=2e-3)
    wrong = flags_by_hand(probs, y, found.score.to_numpy()) # the temperature is found to five digits
    assert found.wrong.tolist()==wrong.tolist() and found.given.tolist()==y.tolist()
    assert found.predicted.tolist()==probs.argmax(1).tolist()
    np.testing.assert_allclose(found.p_given, probs[np.arange(n),y])
    np.testing.assert_allclose(found.p_predicted, probs.max(1))

def test_changed_labels_come_first():
    rng = np.random.default_rng(0)
    true = np.arange(300)%3
    probs = (np.eye(3)[true]*4+rng.random((300,3)))
    probs /= probs.sum(1, keepdims=True)
    y = true.copy()
    y[:15] = (y[:15]+1)%3
    found = suspects(probs, y)
    assert set(found.index[:15])==set(range(15))
    assert 10<=found.wrong.sum()<=15 and found.wrong[:10].all()

@pytest.mark.parametrize('kind', ['list','array','tensor','series','names','floats'])
def test_kinds_of_labels(kind):
    probs,y = drawn(1, 20, 3)
    vocab = list('abc')
    kinds = dict(list=y.tolist(), array=y, tensor=torch.tensor(y), series=pd.Series(y), floats=y.astype(float),
        names=[vocab[i] for i in y])
    labels = kinds[kind]
    expected = suspects(probs, y, vocab)
    pd.testing.assert_frame_equal(suspects(torch.tensor(probs), labels, vocab), expected)
    assert set(expected.given)<=set(vocab)

def test_index_is_that_of_the_labels():
    probs,y = drawn(2, 10, 3)
    labels = pd.Series(y, index=[f'row{i}' for i in range(10)])
    assert suspects(probs, labels).index.tolist()==[f'row{i}' for i in suspects(probs, y).index]

def test_half_precision():
    probs,y = drawn(3, 10, 3)
    assert len(suspects(torch.tensor(probs).bfloat16().requires_grad_(), y))==10

def test_classes_without_labels_or_probability():
    "Neither warns, nor is there a NaN"
    probs = np.array([[.9,.1,0,0],[.2,.8,0,0],[.7,.3,0,0]])
    found = suspects(probs, [0,0,2])
    assert found.notna().all().all() and found.index[0]==2 and found.score.iloc[0]==0
    nothing = suspects(np.array([[.9,.1],[0,0],[.2,.8]]), [0,1,1])
    assert nothing.score.notna().all() and nothing.index[0]==1

def test_classes_of_other_sizes():
    "Right labels of a rare class, which all get low probabilities, do not come before wrong ones of a common class"
    probs = np.array([[.9,.1]]*90 + [[.02,.98]]*3 + [[.6,.4]]*7)
    y = np.array([0]*93 + [1]*7)
    assert set(suspects(probs, y).index[:3])=={90,91,92}

def test_several_labels():
    "Each class as if it were alone"
    rng = np.random.default_rng(4)
    probs,y = rng.random((30,4)),rng.integers(0, 2, (30,4))
    found = suspects(probs, y, list('wxyz'))
    columns = ['label','given','predicted','p_given','p_predicted','score','wrong']
    assert len(found)==120 and found.columns.tolist()==columns
    for k,name in enumerate('wxyz'):
        alone = suspects(np.c_[1-probs[:,k], probs[:,k]], y[:,k])
        own = found[found.label==name]
        assert own.index.tolist()==alone.index.tolist() and own.wrong.tolist()==alone.wrong.tolist()
        assert own.given.astype(int).tolist()==alone.given.tolist()

two = np.array([[.5,.5],[.4,.6]])
@pytest.mark.parametrize('probs,labels,vocab,match', [
    (two[0], [0], None, 'are of shape'), (two[:0], [], None, 'are of shape'), (two[:,:1], [0,0], None, 'are of shape'),
    (two*np.nan, [0,1], None, 'expected probabilities'), (two*3, [0,1], None, 'expected probabilities'),
    (-two, [0,1], None, 'expected probabilities'), (two, [0], None, 'labels are of shape'),
    (two, [0,2], None, 'from 0 to 1'), (two, [0,-1], None, 'from 0 to 1'), (two, [0,.5], None, 'from 0 to 1'),
    (two, ['a','b'], None, 'names and `vocab`'), (two, ['a','c'], ['a','b'], "label 'c' is not in vocab"),
    (two, [0,1], ['a'], 'vocab has 1 names'), (two, two, None, 'labels are soft')])
def test_refused(probs, labels, vocab, match):
    with pytest.raises(ValueError, match=match) as e: suspects(probs, labels, vocab)
    assert '\n' not in str(e.value)

def test_table(tmp_path):
    "As it is, and from a file; rows without predictions are left out; names stay text"
    probs,y = drawn(5, 12, 2)
    ids,labels = [f'00{i}' for i in range(12)],np.array(['1','NA'])[y]
    oof = pd.DataFrame({'id':ids, 'label':labels, 'fold':0, '1':probs[:,0], 'NA':probs[:,1]})
    oof.loc[3, ['1','NA']] = np.nan
    found = table_suspects(oof)
    kept = np.arange(12)!=3
    assert found.index.tolist()==[f'00{i}' for i in np.arange(12)[kept][suspects(probs[kept], y[kept]).index]]
    oof.to_csv(tmp_path/'oof.csv', index=False)
    pd.testing.assert_frame_equal(table_suspects(tmp_path/'oof.csv'), found)
    with pytest.raises(ValueError, match="no column 'label'"): table_suspects(oof.drop(columns='label'))
    with pytest.raises(ValueError, match='no predictions'): table_suspects(oof.assign(**{'1':np.nan}))

def test_tables_go_by_their_names():
    probs = pd.DataFrame([[.9,.1],[.2,.8],[.7,.3]], list('xyz'), ['a','b'])
    labels = pd.Series(['a','b','b'], list('xyz'))
    want = suspects(probs, labels, ['a','b'])
    pd.testing.assert_frame_equal(suspects(probs[['b','a']], labels, ['a','b']), want)
    pd.testing.assert_frame_equal(suspects(probs[::-1], labels, ['a','b']), want)
    plain = suspects(probs.to_numpy(), labels, ['a','b'])
    pd.testing.assert_frame_equal(plain, want)

def test_a_label_that_is_as_likely_as_any_is_not_flagged():
    assert not suspects(np.full((4,2), .5), [0,1,0,1]).wrong.any()
