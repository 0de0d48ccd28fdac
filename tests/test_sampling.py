"Rare classes repeated in a table, weighted in the loss, and drawn more often."
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.vision.all import CrossEntropyLossFlat, tensor
from fastai_mix.data.folds import add_folds
from fastai_mix.data.sampling import class_weights, oversample, sample_weights, undersample

def test_tables_without_folds():
    df = pd.DataFrame({'label': ['a']*6+['b']*2})
    assert oversample(df, 'balance', label_col='label').label.value_counts().to_dict()=={'a':6,'b':6}
    assert undersample(df, 'balance', label_col='label').label.value_counts().to_dict()=={'a':2,'b':2}
    with pytest.raises(ValueError, match='oversample does not know which column holds the labels: give label_col'):
        oversample(df, 'balance')
    with pytest.raises(ValueError, match='say which fold validates'): undersample(add_folds(df, 'label', 2), 'balance')
    for fold in (5,-1):
        with pytest.raises(ValueError, match=f'fold={fold} has no rows to validate on'):
            oversample(add_folds(df, 'label', 2), 'balance', fold=fold)
    valid = df.assign(valid=[False,True]*4)
    more = oversample(valid, 'balance', fold=True, col='valid', label_col='label')
    assert more.groupby('valid').label.value_counts().to_dict()=={
        (False,'a'):3, (False,'b'):3, (True,'a'):3, (True,'b'):1}

def test_class_weights():
    y = ['b']*8+['a']*2
    assert np.allclose(class_weights(y), [2.5,.625])
    assert class_weights(torch.tensor([0,1,1])).to_dict()==class_weights([0,1,1]).to_dict()=={0: 1.5, 1: .75}
    assert np.allclose(class_weights(y, 'sqrt')['a']/class_weights(y, 'sqrt')['b'], 2)
    assert np.allclose(class_weights(y, 'effective', beta=0), 1)
    w = class_weights(y, 'effective', beta=.9)
    assert np.isclose(w['a']/w['b'], (1-.9**8)/(1-.9**2)) and np.isclose((w*[2,8]).sum(), 10)
    assert class_weights(y, vocab=['b','a']).index.tolist()==['b','a']
    bools = [o=='a' for o in y]
    assert np.allclose(class_weights(bools, vocab=[False,True]), class_weights(y, vocab=['b','a']))
    assert np.allclose(sample_weights(bools), sample_weights(y))
    assert oversample(pd.DataFrame({'label':bools}), 'balance', label_col='label').label.mean()==.5
    assert np.allclose(class_weights(y, 'effective', beta=1-1e-9), class_weights(y), rtol=1e-5)
    with pytest.raises(ValueError, match="no rows have label 'c'"): class_weights(y, vocab=['a','b','c'])
    with pytest.raises(ValueError, match="scheme='linear'"): class_weights(y, 'linear')
    with pytest.raises(ValueError, match="beta=1"): class_weights(y, 'effective', beta=1)
    loss_func = CrossEntropyLossFlat(weight=tensor(class_weights(y)))
    assert loss_func(torch.zeros(4, 2), tensor(0,1,1,0)).item()==pytest.approx(np.log(2))

def test_weights_of_several_labels():
    tags = [['a'],['a','b'],['a'],[],['a']]
    w = class_weights(tags)
    assert w['b']/w['a']==4
    frame = pd.DataFrame({'a': [1,1,1,0,1], 'b': [0,1,0,0,0]})
    assert class_weights(frame).tolist()==w.tolist()
    assert np.allclose(sample_weights(tags), [w['a'],w['b'],w['a'],1,w['a']])
    assert np.allclose(sample_weights(frame), sample_weights(tags))
    assert np.allclose(sample_weights(list('aab')), [.75,.75,1.5])
