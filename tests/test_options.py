"The text of options."
import pytest
from fastai_mix.options import read_oversample

@pytest.mark.parametrize('text,value', [(None,None), ('balance','balance'), ('sqrt','sqrt'), ('40',40),
    ('a=3',{'a':3.}), ('a=b=3,c=1.5',{'a=b':3.,'c':1.5})])
def test_oversample(text, value): assert read_oversample(text)==value

@pytest.mark.parametrize('text,value', [('a,b=3',{'a,b':3.}), ('a,b=3,c=2',{'a,b':3.,'c':2.}),
    ('c=2,a,b=3',{'a,b':3.,'c':2.}), ('x=1=1.5,c=2',{'x=1':1.5,'c':2.}), ('c=2',{'c':2.}), ('7',7)])
def test_oversample_of_classes_with_commas(text, value): assert read_oversample(text, ['a,b','c','x=1'])==value
