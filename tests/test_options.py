"The text of options, and which of them make sense together."
import pytest
import torch
from fastai.vision.all import AttrDict, Path
from fastai_mix.callback.manifold import ManifoldMixUp
from fastai_mix.data.folds import FoldSplitter
from fastai_mix.losses import BalancedSoftmaxLossFlat
from fastai_mix.options import check_options, make_loss, make_mixes, read_oversample
from fastai_mix.recipe import best_setting, setting_name
from helpers import block

def options(**kwargs):
    "What the command has if only `kwargs` are given"
    nothing = dict.fromkeys(('mix','p','compare','lr','weights','sample','prob_of','test','test_images',
        'split_col','group_col','fold','folds','cache','size'))
    return AttrDict({**nothing, **dict(data='pictures', echo=False, bs=32, epochs=10, seed=0, alpha=5., tta='none',
        loss='ce', pretrained=False, no_cache=False, rare='error', out=Path('run')), **kwargs})

@pytest.mark.parametrize('given,fold,folds', [(dict(),0,5), (dict(fold=2),2,5), (dict(folds=3),None,3),
    (dict(fold=1, folds=3),1,3), (dict(split_col='split'),0,None)])
def test_folds(given, fold, folds):
    opts = options(**given)
    check_options(opts)
    assert (opts.fold,opts.folds)==(fold,folds)

@pytest.mark.parametrize('given,message', [(dict(cache='small', no_cache=True),'give one of them'),
    (dict(cache='run'),'--cache run is the folder of the run: give another, such as run/pictures'),
    (dict(cache='run/../run'),'is the folder of the run'), (dict(cache='run/pictures'),None),
    (dict(cache='small'),None), (dict(loss='balance'),"--loss balance: expected 'ce', 'smooth' or 'balanced'"),
    (dict(loss='balanced'),None), (dict(group_col='plant'),None),
    (dict(group_col='plant', split_col='split'),'--split-col .* --group-col .*leave one of them out'),
    (dict(rare='drop'),"--rare drop: expected 'error' or 'train'"), (dict(prob_of='a'),'--prob-of says .*give that too'),
    (dict(mix='none', compare='plain'),'--compare plain names only what is trained anyway'),
    (dict(mix='mixup', compare='mixup,plain'),None), (dict(mix='mixup', p=.5, compare='mixup'),None),
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

@pytest.mark.parametrize('given,mix,echo,p', [(dict(mix='mixup'),'mixup',False,1.),
    (dict(mix='snapmix', p=.5),'snapmix',False,.5), (dict(mix='snapmix', echo=True),'snapmix',True,1.), (dict(mix='none'),'none',False,1.)])
def test_a_mix_is_as_it_is_named(given, mix, echo, p):
    opts = options(**given)
    check_options(opts)
    assert (opts.mix,opts.echo,opts.p,opts.from_recipe,opts.compare)==(mix,echo,p,False,None)

@pytest.mark.parametrize('given', [{}, dict(epochs=40), dict(pretrained=True), dict(weights='w', epochs=40)])
def test_without_a_mix_the_recipe_is_trained(given):
    opts = options(**given)
    check_options(opts)
    name = best_setting(bool(opts.pretrained or opts.weights), opts.epochs)
    assert setting_name(opts.mix, opts.echo)==name and opts.from_recipe and opts.size==128

def test_the_leaves_show_a_comparison():
    opts = options(data=None)
    check_options(opts)
    assert opts.size==64 and 'plain' in opts.compare.split(',')
    for given in (dict(folds=5), dict(compare='')):
        opts = options(data=None, **given)
        check_options(opts)
        assert not opts.compare

@pytest.mark.parametrize('given,message', [(dict(echo=True),'--echo is about a mix'), (dict(p=.5),'--p is about a mix'),
    (dict(compare='plain,snap'),"--compare plain,snap: setting 'snap'"), (dict(compare='plain,,mixup'),"setting ''"),
    (dict(lr='fast'),'--lr fast: expected a positive number, or find'), (dict(lr='nan'),'--lr'), (dict(lr=-1),'--lr'),
    (dict(epochs=0),'--epochs 0'), (dict(p=0.),'--p is about a mix')])
def test_mixes_rates_and_comparisons_that_make_no_sense(given, message):
    with pytest.raises(ValueError, match=message): check_options(options(**given))

def test_a_rate_is_a_number_or_found():
    for lr,read in ((None,None), ('find','find'), ('2e-3',2e-3), (.01,.01)):
        opts = options(lr=lr)
        check_options(opts)
        assert opts.lr==read

def test_a_balanced_loss_counts_the_rows_that_are_trained_on(df, leaves):
    df = df.assign(label=df.label.replace('multiple_diseases', 'rust'))
    for oversample in (None, {'rust':3}, 'balance'):
        splitter = FoldSplitter(0, oversample=oversample, label_col='label', check=False)
        dls = block(leaves, splitter).dataloaders(df, bs=8, num_workers=0, device='cpu')
        want = torch.tensor([(df.label[df.fold!=0]==c).sum()*(3 if oversample=={'rust':3} and c=='rust' else 1)
            for c in dls.vocab]).float()
        loss = make_loss('balanced', dls)
        share = loss.func.log_share.exp()
        if oversample=='balance': torch.testing.assert_close(share, torch.full((3,), 1/3))
        else: torch.testing.assert_close(share, want/want.sum())
    assert type(loss) is BalancedSoftmaxLossFlat and make_loss('ce', dls) is None
    assert make_loss('smooth', dls).func.eps==.1
    with pytest.raises(ValueError, match='--loss focal'): make_loss('focal', dls)

def test_mixes_by_name():
    cb, = make_mixes('manifold', p=.5, echo=True)
    assert type(cb) is ManifoldMixUp and (cb.alpha,cb.p,cb.echo)==(2.,.5,True)
    choice, = make_mixes('manifold,cutmix')
    assert [type(o).__name__ for o in choice.mixes]==['ManifoldMixUp','CutMix']
    with pytest.raises(ValueError, match='--mix manifolds: expected .*manifold'): make_mixes('manifolds')
