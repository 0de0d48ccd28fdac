"Scores are those of scikit-learn; what cannot be scored is refused."
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from fastai_mix.scores import Scores, score_probs, score_table

def test_scores():
    assert np.isnan(score_probs([[.9,.1],[.8,.2]], [0,0])['auc'])
    assert score_probs([[.9,.1],[.2,.8]], [0,1])=={'n':2, 'accuracy':1., 'macro_f1':1.,
        'log_loss':pytest.approx(-np.log([.9,.8]).mean()), 'auc':1.}
    t = score_table(np.eye(2)[[0,1,0,0]]*.8+.1, [0,1,0,1], [0,0,1,1])
    assert t.accuracy.tolist()==[1,.5,.75,.75,pytest.approx(.5/2**.5)]

@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(2, 9), st.integers(1, 60), st.sampled_from([1,2,None]))
def test_scores_are_those_of_scikit_learn(seed, c, n, digits):
    from sklearn.metrics import accuracy_score, f1_score, log_loss, roc_auc_score
    rng = np.random.default_rng(seed)
    p,y = rng.dirichlet(np.ones(c), n+c),np.r_[rng.permutation(c), rng.integers(c, size=n)]
    if digits: p = p.round(digits)+.1**digits # many ties
    p[::7] = np.eye(c)[y[::7]] # certain
    got,p = score_probs(p*4, y),p/p.sum(1, keepdims=True)
    auc = roc_auc_score(y, p[:,1]) if c==2 else roc_auc_score(y, p, multi_class='ovr')
    want = dict(n=n+c, accuracy=accuracy_score(y, p.argmax(1)), macro_f1=f1_score(y, p.argmax(1), average='macro'),
        log_loss=log_loss(y, p, labels=range(c)), auc=auc)
    assert got==pytest.approx(want, abs=1e-12, rel=1e-12)

def test_scores_of_many_classes_take_little_memory():
    import tracemalloc
    n,c = 3000,1000
    rng = np.random.default_rng(0)
    p,y = rng.random((n,c)),np.arange(n)%c
    p[np.arange(n),y] += .5
    tracemalloc.start()
    try:
        s = score_probs(p, y)
        peak = tracemalloc.get_traced_memory()[1]
    finally: tracemalloc.stop()
    assert peak<3*p.nbytes and .8<s['auc']<1

half = [[.5,.5],[.2,.8]]

@pytest.mark.parametrize('probs,y,message',
    [(half, [-1,0], 'y holds -1: expected class indices from 0 to 1'), (half, [0,2], 'y holds 2'),
        (half, [0,.5], 'y holds 0.5'),
    (half, [0,np.nan], 'y holds nan'), (half, ['a','b'], 'y holds a: expected class indices'),
    (half, [0], r'shape \[1\], but there are 2'), (half, [[0],[1]], r'shape \[2, 1\]'),
    (np.zeros((0,2)), [], 'there are no rows'), ([.5,.5], [0,1], r'probs are of shape \[2\]'),
    ([[1.],[1.]], [0,0], r'probs are of shape \[2, 1\]'),
    ([[.5,.5],[np.nan,1]], [0,1], 'probabilities of row 1 are nan, 1.0: expected'),
    ([[0,0],[0,1]], [0,1], 'of row 0 are 0.0, 0.0'), ([[2,-1],[0,1]], [0,1], 'of row 0 are 2.0, -1.0'),
    ([[np.inf,1],[0,1]], [0,1], 'of row 0 are inf')])
def test_what_cannot_be_scored(probs, y, message):
    with pytest.raises(ValueError, match=message): score_probs(probs, y)

@pytest.mark.parametrize('targs,message',
    [([0,-1], 'a target is -1: expected a class index from 0 to 1'), ([0,2], 'a target is 2'),
        ([0,-100], 'a target is -100'), ([0,.5], 'a target is 0.5'), ([0], '1 targets for 2 predictions')])
def test_targets_that_are_no_classes(targs, message):
    probs = torch.tensor([[.9,.1],[.2,.8]])
    with pytest.raises(ValueError, match=message): Scores(probs, targs, 'ab')
    assert Scores(probs, [0,1.], 'ab').accuracy==1
