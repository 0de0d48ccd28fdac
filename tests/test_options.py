"The text of options, and which of them make sense together."
import pytest
from fastai.vision.all import AttrDict, Path
from fastai_mix.options import check_options, read_oversample

def options(**kwargs):
    "What the command has if only `kwargs` are given"
    nothing = dict.fromkeys(('lr','weights','sample','test','test_images','split_col','fold','folds','cache'))
    return AttrDict({**nothing, **dict(size=128, bs=32, epochs=10, seed=0, tta='none', pretrained=False,
        no_cache=False, out=Path('run')), **kwargs})

@pytest.mark.parametrize('given,fold,folds', [(dict(),0,5), (dict(fold=2),2,5), (dict(folds=3),None,3),
    (dict(fold=1, folds=3),1,3), (dict(split_col='split'),0,None)])
def test_folds(given, fold, folds):
    opts = options(**given)
    check_options(opts)
    assert (opts.fold,opts.folds)==(fold,folds)

@pytest.mark.parametrize('given,message', [(dict(cache='small', no_cache=True),'give one of them'),
    (dict(cache='run'),'--cache run is the folder of the run: give another, such as run/pictures'),
    (dict(cache='run/../run'),'is the folder of the run'), (dict(cache='run/pictures'),None),
    (dict(cache='small'),None),
    (dict(size=8),'--size 8'), (dict(seed=-1),'--seed -1'), (dict(folds=1),'--folds 1')])
def test_options_that_make_no_sense(given, message):
    if message is None: return check_options(options(**given))
    with pytest.raises(ValueError, match=message): check_options(options(**given))

@pytest.mark.parametrize('text,value', [(None,None), ('balance','balance'), ('sqrt','sqrt'), ('40',40),
    ('a=3',{'a':3.}), ('a=b=3,c=1.5',{'a=b':3.,'c':1.5})])
def test_oversample(text, value): assert read_oversample(text)==value

@pytest.mark.parametrize('text,value', [('a,b=3',{'a,b':3.}), ('a,b=3,c=2',{'a,b':3.,'c':2.}),
    ('c=2,a,b=3',{'a,b':3.,'c':2.}), ('x=1=1.5,c=2',{'x=1':1.5,'c':2.}), ('c=2',{'c':2.}), ('7',7)])
def test_oversample_of_classes_with_commas(text, value): assert read_oversample(text, ['a,b','c','x=1'])==value
