"The rule of a correction, and whether a model knows enough to be asked."
from functools import partial

import numpy as np
import pytest
import torch
from fastai.vision.all import Path, tensor
from hypothesis import given, settings, strategies as st

import fastai_mix.data.ledger as ledger_module
from fastai_mix.data.correction import (beats_commonest, commonest_agreement, correct_labels, label_agreement,
    label_gap)
from helpers import Syncs

def test_the_rule_is_where_it_was():
    assert ledger_module.correct_labels is correct_labels and ledger_module.label_gap is label_gap

golden = Path(__file__).parent/'golden'/'plc.npz'

@pytest.mark.parametrize('i', range(3))
def test_reference_vectors(i):
    d = np.load(golden)
    got = correct_labels(tensor(d[f'{i}/probs']), tensor(d[f'{i}/y']), float(d[f'{i}/delta']), rule='ratio')
    assert np.array_equal(got.numpy(), d[f'{i}/corrected'])

@settings(max_examples=60, deadline=None)
@given(st.integers(0, 9999), st.integers(1, 40), st.integers(2, 6), st.floats(.05, 1), st.sampled_from(['gap','ratio']))
def test_rule(seed, n, c, theta, rule):
    g = torch.Generator().manual_seed(seed)
    p,y = torch.randn(n, c, generator=g).mul(3).softmax(1),torch.randint(c, (n,), generator=g)
    new = correct_labels(p, y, theta, rule)
    for i in range(n):
        best,own = p[i].max(),p[i,y[i]]
        far = best-own>theta if rule=='gap' else own/best<theta
        assert new[i]==(p[i].argmax() if far else y[i])

def test_several_labels_follow_the_rule_of_two_classes():
    p,y = torch.rand(50, 4),torch.randint(2, (50,4)).float()
    for rule,theta in (('gap',.4), ('ratio',.4)):
        two = correct_labels(torch.stack([1-p, p], -1).view(-1, 2), y.long().view(-1), theta, rule).view(50, 4)
        assert torch.equal(correct_labels(p, y, theta, rule), two.float())
    assert torch.equal(correct_labels(p, y, .4), torch.where(((p-.5).abs()*2>.4) & ((p>.5)!=(y>.5)), 1-y, y))

@pytest.mark.parametrize('y,message', [([-1,0], 'a label is -1: expected classes from 0 to 2'),
    ([0,-100], 'a label is -100'), ([3,0], 'a label is 3'), ([.5,0], 'a label is 0.5'),
    ([float('nan'),0], 'a label is nan'), ([[0,1,2],[0,0,0]], 'a label is 2: expected 0 or 1 for each'),
    ([[-1.,0,0]]*2, 'a label is -1: expected 0 or 1'), ([0], r'shape \[2, 3\] and labels of shape \[1\]'),
    ([[0,1]]*2, r'labels of shape \[2, 2\]: expected'), (0, r'labels of shape \[\]')])
def test_labels_that_cannot_be_corrected(y, message):
    p = torch.tensor([[.2,.3,.5],[.6,.3,.1]])
    for f in (label_gap, partial(correct_labels, theta=.4)):
        with pytest.raises(ValueError, match=message): f(p, torch.tensor(y))
    assert correct_labels(p[:0], torch.zeros(0, dtype=torch.long), .4).shape==(0,)
    for theta in (0, 1.1, float('nan'), '.4'):
        with pytest.raises(ValueError, match='theta=.*: expected a number above 0'):
            correct_labels(p, torch.tensor([0,1]), theta)

@settings(max_examples=60, deadline=None)
@given(st.integers(0, 9999), st.integers(1, 40), st.integers(2, 6))
def test_agreement(seed, n, c):
    g = torch.Generator().manual_seed(seed)
    p,y = torch.rand(n, c, generator=g),torch.randint(c, (n,), generator=g)
    assert label_agreement(p, y).tolist()==[float(p[i].argmax()==y[i]) for i in range(n)]
    assert commonest_agreement(y)==max((y==k).sum().item() for k in range(c))/n
    several = torch.randint(2, (n,c), generator=g).float()
    right = [[(p[i,k]>.5)==(several[i,k]>.5) for k in range(c)] for i in range(n)]
    assert np.allclose(label_agreement(p, several), np.mean(right, 1))
    always = (several.mean(0)>.5).float()
    assert np.isclose(commonest_agreement(several), (several==always).float().mean())

@pytest.mark.parametrize('c,n', [(2,50), (4,480), (10,8000)])
def test_guesses_seldom_beat_the_commonest_class(c, n):
    "A model that guesses like the labels are, or always names the commonest class"
    g = torch.Generator().manual_seed(0)
    shares = torch.arange(1, c+1).float()
    lucky = 0
    for _ in range(200):
        y,guess = (torch.multinomial(shares, n, True, generator=g) for _ in range(2))
        commonest = commonest_agreement(y)
        assert not beats_commonest(commonest, n, commonest)
        lucky += beats_commonest((guess==y).float().mean().item(), n, commonest)
    assert lucky<=10

def test_a_model_that_is_right_on_wrong_labels():
    "40% of the labels are wrong in any way: the true class still beats the commonest one"
    g = torch.Generator().manual_seed(0)
    true = torch.arange(480)%4
    y = torch.where(torch.rand(480, generator=g)<.4, torch.randint(4, (480,), generator=g), true)
    agreement = label_agreement(torch.eye(4)[true], y).mean().item()
    assert agreement<.75 and beats_commonest(agreement, 480, commonest_agreement(y))

def test_one_class_alone_is_never_beaten():
    assert not beats_commonest(1., 10, commonest_agreement(tensor([0]*10)))

def test_agreement_waits_for_nothing():
    p,y = torch.rand(9, 3),torch.arange(9)%3
    with Syncs() as s: label_agreement(p, y), label_agreement(p, torch.eye(3)[y])
    assert not s.n
