"Checks of arguments: edge values, kinds of numbers, wordings."
import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from fastai_mix.args import (bad_arg, check_callable, check_choice, check_count, check_positive, check_share,
    did_you_mean, in_words)

no_numbers = [math.nan, '1', 1j, None, [1], (1,), np.array([.5]), torch.tensor(.5), Decimal('.5')]

@pytest.mark.parametrize('value', [0, 0., 1, 1., .5, True, np.float32(.5), np.int64(1), Fraction(1, 3), 5e-324])
def test_shares(value): assert check_share('p', value) is value

@pytest.mark.parametrize('value', [-5e-324, math.nextafter(1, 2), -1, 2, math.inf, -math.inf, np.float64(1.5),
    *no_numbers])
def test_no_shares(value):
    with pytest.raises(ValueError, match='^p=.*: expected a number from 0 to 1$'): check_share('p', value)

@pytest.mark.parametrize('value', [0, 0., -0., False, np.float32(0), -1, math.nan])
def test_shares_above_zero(value):
    with pytest.raises(ValueError, match='^p=.*: expected a number above 0 and up to 1$'):
        check_share('p', value, above_zero=True)
    assert check_share('p', 1, above_zero=True)==1 and check_share('p', 5e-324, above_zero=True)>0

@pytest.mark.parametrize('value', [5e-324, 1, 1e308, 10**400, np.float16(2), Fraction(1, 3)])
def test_positive(value): assert check_positive('alpha', value) is value

@pytest.mark.parametrize('value', [0, -0., -1, math.inf, -math.inf, *no_numbers])
def test_not_positive(value):
    with pytest.raises(ValueError, match='^alpha=.*: expected a number above 0$'): check_positive('alpha', value)

@pytest.mark.parametrize('value,least', [(1,1), (0,0), (-3,-3), (np.int64(2),2), (np.uint8(255),1), (10**30,1)])
def test_counts(value, least): assert check_count('n', value, least) is value

@pytest.mark.parametrize('value', [0, -1, 1., True, False, np.float64(2), math.inf, np.bool_(True), *no_numbers])
def test_no_counts(value):
    with pytest.raises(ValueError, match='^n=.*: expected a whole number from 1 up$'): check_count('n', value)

def test_choices():
    options = ('any','other')
    assert all(check_choice('partner', o, options) is o for o in options)
    for value in ('all', '', None, 0, ['any'], ('any','other'), np.array(['any','other']), 'ANY'):
        with pytest.raises(ValueError, match="expected 'any' or 'other'$"): check_choice('partner', value, options)
    assert check_choice('n', 1, (1,2))==1 and check_choice('n', None, (None,1)) is None
    for value in (True, 1.): # equal, and something else
        with pytest.raises(ValueError, match='expected 1 or 2$'): check_choice('n', value, (1,2))

def test_words():
    assert in_words(['a'])=="'a'" and in_words(('a','b'))=="'a' or 'b'" and in_words('abc')=="'a', 'b' or 'c'"
    assert in_words([1,None,.5])=='1, None or 0.5'

def test_functions():
    for f in (len, int, lambda: 0, torch.nn.ReLU()): assert check_callable('f', f, 'f(x)') is f
    for value,kind in ((3,'int'), ('len','str'), (None,'NoneType')):
        with pytest.raises(ValueError, match=rf'^f is a {kind}: expected a function f\(x\)$'):
            check_callable('f', value, 'f(x)')

def test_messages():
    assert str(bad_arg('d', (1,'a'), 'two numbers'))=="d=(1, 'a'): expected two numbers"
    assert str(bad_arg('--lr', 'fast', 'a number'))=='--lr fast: expected a number'
    assert isinstance(bad_arg('p', 2, 'less'), ValueError)

def test_names_that_are_alike():
    names = ['resnet50','resnet34','vit_tiny']
    assert did_you_mean('resnet5', names)==': did you mean resnet50 or resnet34?'
    assert did_you_mean('vittiny', names)==': did you mean vit_tiny?'
    assert did_you_mean('swin', names)=='' and did_you_mean('swin', [], ': see timm')==': see timm'
