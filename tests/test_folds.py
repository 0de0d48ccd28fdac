"Properties of folds and of balance: every row once, groups whole, order of no matter, validation untouched."
import warnings
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.vision.all import (CategoryBlock, ColReader, CrossEntropyLossFlat, DataBlock, ImageBlock, Learner,
    MultiCategoryBlock, Resize, WeightedDL,
                               get_image_files, load_learner, nn, tensor)
from hypothesis import assume, given, settings, strategies as st
from PIL import Image
from sklearn.model_selection import StratifiedGroupKFold
from helpers import peak_memory
from fastai_mix.data.folds import FoldSplitter, add_folds, draw_rows, show_folds
from fastai_mix.data.sampling import oversample, sample_weights, undersample
from fastai_mix.data.table import label_table

few = dict(max_examples=40, deadline=None)

@st.composite
def tables(draw, groups=False):
    "A table with classes of at least `k` rows, or groups, and `k`"
    k = draw(st.integers(2, 5))
    sizes = draw(st.lists(st.integers(k, 25), min_size=2, max_size=4))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    df = pd.DataFrame({'label': rng.permutation(np.repeat(list('wxyz')[:len(sizes)], sizes))})
    df['id'] = [f'id{i}' for i in rng.permutation(len(df))]
    if groups: df['group'] = rng.integers(0, draw(st.integers(k, 30)), len(df))
    return df,k

@given(tables(), st.integers(0, 1000))
@settings(**few)
def test_each_row_is_in_one_fold_and_classes_are_spread(t, seed):
    df,k = t
    res = add_folds(df, 'label', k, seed=seed, id_col='id')
    assert set(res.fold)==set(range(k)) and 'fold' not in df
    counts = pd.crosstab(res.label, res.fold)
    assert (counts.max(axis=1)-counts.min(axis=1)).max()<=1
    pd.testing.assert_frame_equal(res.drop(columns='fold'), df)
    assert res.fold.tolist()==add_folds(df, 'label', k, seed=seed, id_col='id').fold.tolist()

def folds_by_id(df, *args, **kwargs):
    res = add_folds(df, *args, id_col='id', **kwargs)
    return dict(zip(res.id, res.fold))

@given(tables(groups=True), st.randoms(use_true_random=False),
    st.sampled_from(['plain','group','multi','group multi','none']))
@settings(**few)
def test_order_of_rows_does_not_matter(t, random, how):
    df,k = t
    df['tags'] = df.label+' '+df.label.map({'w':'even','x':'odd','y':'even','z':'odd'})
    args = dict(label_col='tags' if 'multi' in how else None if how=='none' else 'label',
        label_delim=' ' if 'multi' in how else None,
                group_col='group' if 'group' in how else None, n_splits=k, rare='train')
    order = list(range(len(df)))
    random.shuffle(order)
    try: expected = folds_by_id(df, **args)
    except ValueError as e:
        with pytest.raises(ValueError, match=str(e)[:12]): folds_by_id(df.iloc[order], **args)
        return
    assert folds_by_id(df.iloc[order], **args)==expected
    assert folds_by_id(df.iloc[order].reset_index(drop=True), **args)==expected

def test_nothing_is_warned_of():
    df = pd.DataFrame({'label': list('ab')*50, 'tags': ['a b','a','b','']*25, 'tree': np.arange(100)//5})
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for kwargs in (dict(), dict(group_col='tree'), dict(label_col=None), dict(label_col='tags', label_delim=' '),
            dict(label_col='tags', label_delim=' ', group_col='tree')):
            kwargs = {'label_col': 'label', **kwargs}
            FoldSplitter(0, oversample=kwargs['label_col'] and 'sqrt')(add_folds(df, **kwargs))

def test_seed_matters_and_kind_of_id_does_not():
    df = pd.DataFrame({'label': list('ab')*50, 'id': range(100)})
    a,b = folds_by_id(df, 'label'),folds_by_id(df, 'label', seed=1)
    assert a!=b
    assert {str(k):v for k,v in a.items()}==folds_by_id(df.assign(id=df.id.astype(str)), 'label')

@given(tables(groups=True), st.integers(0, 9), st.booleans(), st.sampled_from(['label','tags',None]))
@settings(**few)
def test_groups_are_never_split(t, seed, train, label_col):
    df,k = t
    df['tags'] = df.label.replace('w', '')
    try:
        res = add_folds(df, label_col, k, group_col='group', seed=seed, label_delim=' ' if label_col=='tags' else None,
            rare='train' if train else 'error')
    except ValueError as e:
        assert 'group' in str(e)
        return
    assert (res.groupby('group').fold.nunique()==1).all()
    assert set(res.fold)-{-1}==set(range(k))
    assert train or (res.fold>=0).all()
    if label_col=='label' and (res.fold==-1).any(): # what is folded has enough groups of every class
        assert (res[res.fold>=0].groupby('label').group.nunique()>=k).all()

class ShufflesAtRandom(StratifiedGroupKFold):
    "The splitter before scikit-learn 1.8: its shuffle dealt each group the place of another"
    def split(self, X, y, groups):
        if not self.shuffle: return super().split(X, y, groups)
        numbers,of = np.unique(groups, return_inverse=True)
        other = np.random.RandomState(self.random_state).permutation(len(numbers))[of]
        folds = [set(other[valid]) for _,valid in StratifiedGroupKFold(self.n_splits).split(X, y, groups)]
        return [(None, np.flatnonzero([o in f for o in of])) for f in folds]

def trees(seed, n=60):
    "A table of `n` trees of 2 to 8 leaves, of which a fifth are sick"
    rng = np.random.default_rng(seed)
    tree = np.repeat(np.arange(n), rng.integers(2, 9, n))
    sick = np.arange(n)<n//5
    return pd.DataFrame({'tree': tree, 'label': np.where(rng.permutation(sick)[tree], 'rust', 'none')})

@pytest.mark.parametrize('splitter', [StratifiedGroupKFold, ShufflesAtRandom], ids=['installed','before 1.8'])
@pytest.mark.parametrize('rare', ['error','train'])
def test_groups_are_stratified(splitter, rare, monkeypatch):
    monkeypatch.setattr('sklearn.model_selection.StratifiedGroupKFold', splitter)
    for seed in range(8):
        df = trees(seed)
        if rare=='train': df = pd.concat([df, pd.DataFrame({'tree': [-1,30,99], 'label': 'mould'})], ignore_index=True)
        res = add_folds(df, 'label', 5, group_col='tree', seed=seed, rare=rare)
        res = res[res.fold>=0]
        sick = res.label.eq('rust').groupby(res.fold).mean()/res.label.eq('rust').mean()
        assert sick.between(.7, 1.4).all(), (seed, sick.tolist())
        assert res.fold.value_counts(normalize=True).between(.15, .25).all(), seed

def test_same_seed_same_folds_of_groups_whatever_the_version():
    expected = {0: [1,2,1,2,2,2,0,1,0,1,0,2,2,0,0,1,2,0,1,1], 7: [1,2,0,2,2,2,0,1,0,2,0,1,2,1,0,1,2,0,1,1]}
    for seed,folds in expected.items():
        res = add_folds(trees(1, 20), 'label', 3, group_col='tree', seed=seed)
        assert res.groupby('tree').fold.first().tolist()==folds

@given(st.integers(0, 2**31), st.integers(2, 5), st.booleans())
@settings(**few)
def test_several_labels_are_spread_each(seed, k, columns):
    rng = np.random.default_rng(seed)
    has = rng.random((120,4))<[.05,.2,.5,.7]
    assume(has.sum(0).min()>=k)
    names = list('abcd')
    df = pd.DataFrame(has.astype(int), columns=names).assign(tags=[' '.join(np.array(names)[o]) for o in has])
    res = add_folds(df, names, k) if columns else add_folds(df, 'tags', k, label_delim=' ')
    assert set(res.fold)==set(range(k))
    counts = pd.DataFrame(has).groupby(res.fold.to_numpy()).sum()
    assert counts[0].max()-counts[0].min()<=1 # the rarest first
    assert ((counts.max()-counts.min())/counts.mean()).iloc[1:].max()<.8
    other = add_folds(df, 'tags', k, label_delim=' ') if columns else add_folds(df, names, k)
    assert res.fold.tolist()==other.fold.tolist()

def test_columns_of_one_class_and_rows_without_label():
    df = pd.DataFrame({'sick': [1]*10+[0]*30})
    res = add_folds(df, ['sick'], 5)
    assert pd.crosstab(res.sick, res.fold).to_numpy().tolist()==[[6]*5,[2]*5]

def test_rare_classes():
    df = pd.DataFrame({'label': ['a']*20+['b']*20+['c']*2+['d']})
    with pytest.raises(ValueError, match="'c' has 2 rows, 'd' has 1 row, too few for 3 folds: merge or drop"):
        add_folds(df, 'label', 3)
    with pytest.raises(ValueError, match="'c' has 2 rows, too few for 3 folds: use n_splits=2, or rare='train'"):
        add_folds(df[:-1], 'label', 3)
    res = add_folds(df, 'label', 3, rare='train')
    assert res.fold[40:].tolist()==[-1]*3 and set(res.fold[:40])=={0,1,2}
    assert set(FoldSplitter(1)(res)[0])>={40,41,42}

def test_rare_class_takes_its_group_along_and_that_may_take_others():
    df = pd.DataFrame({'label': list('abbb')+list('bc')+list('bc')+list('cc')*4,
        'tree': [0]*4+[1]*2+[2]*2+[3,3,4,4,5,5,6,6]})
    # a takes tree 0; b is left with trees 1 and 2 and takes them; c has 4 more
    res = add_folds(df, 'label', 3, group_col='tree', rare='train')
    assert res.groupby('tree').fold.first().eq(-1).tolist()==[True]*3+[False]*4

def test_group_and_identity_may_be_one():
    df = pd.DataFrame({'label': list('ab')*20, 'id': np.arange(40)//2})
    with pytest.raises(ValueError, match="0 and 19 more identities of 'id' stand for several rows.*group_col='id'"):
        add_folds(df, 'label', 2, id_col='id')
    res = add_folds(df, 'label', 2, id_col='id', group_col='id')
    assert (res.groupby('id').fold.nunique()==1).all()
    train,valid = FoldSplitter(0)(res)
    assert sorted(train+valid)==list(range(40))

def test_strange_labels_and_indexes():
    y = pd.cut(np.arange(30), 3)
    res = add_folds(pd.DataFrame({'label': y}, index=[7]*30), 'label', 3)
    assert (pd.crosstab(res.label.astype(str), res.fold)>=3).all().all()
    assert res.index.tolist()==[7]*30
    assert set(add_folds(pd.DataFrame({0: [1.,2.]*9}), 0, 3).fold)=={0,1,2}
    with pytest.raises(ValueError, match='^3 has 2 rows, too few'):
        add_folds(pd.DataFrame({'label': [1]*9+[3]*2}), 'label', 4)
    with pytest.raises(ValueError, match="has a single class, 1: a classifier"):
        add_folds(pd.DataFrame({'label': [1]*9}), 'label', 4)
    lists = pd.DataFrame({'tags': [['a'],['a','b'],['b']]*6})
    assert set(add_folds(lists, 'tags', 3).fold)=={0,1,2}

@pytest.mark.parametrize('kwargs', [dict(), dict(label_col='list'), dict(label_col=None)])
def test_thousands_of_classes_and_a_long_identity_take_little_memory(kwargs):
    n,c = 20_000,4000
    df = pd.DataFrame({'label': np.arange(n)%c, 'id': [f'{i}' for i in range(n-1)]+['x'*5000]})
    if kwargs.get('label_col')=='list': df['list'] = [[o] for o in df.label]
    args = dict(label_col='label', id_col='id')|kwargs
    # less than a bit for each row and class; the identities as an array of text take 400 MB
    assert peak_memory(lambda: add_folds(df, n_splits=2, **args))<n*c/2
    res = add_folds(df, n_splits=2, **args)
    assert set(res.fold)=={0,1} and (kwargs or (pd.crosstab(res.label, res.fold)>0).all().all())

def test_drawing_takes_no_table_of_numbers():
    n,c = 20_000,500
    labels = label_table(pd.DataFrame({'label': np.arange(n)%c}), 'label')
    assert peak_memory(lambda: draw_rows(labels, oversample='balance'))<5*n*c

wrong = {
    'one fold':        (dict(n_splits=1), "n_splits=1: expected"),
    'part of a fold':  (dict(n_splits=2.5), "n_splits=2.5: expected"),
    'rare':            (dict(rare='drop'), "rare='drop': expected 'error' or 'train'"),
    'overwrite':       (dict(col='label'), "col='label' would overwrite"),
    'no label column': (dict(label_col='kind'), "no column 'kind'"),
    'no group column': (dict(group_col='tree'), "no column 'tree'"),
    'group missing':   (dict(group_col='gap'), "1 of 30 rows have no group in 'gap'"),
    'id missing':      (dict(id_col='gap'), "1 of 30 rows have no identity in 'gap'"),
    'id twice':        (dict(id_col='label'), "stand for several rows"),
    'regression':      (dict(label_col='area'), r"numbers on a scale, the first 0.5, .*pd.qcut\(df\['area'\]"),
    'columns of 0..3': (dict(label_col=['three']), "'three' holds 2: expected 0 or 1"),
    'more folds':      (dict(n_splits=40, label_col=None), "30 rows, too few for 40 folds"),
    'no columns':      (dict(label_col=[]), r"label_col=\[\]: expected a column of labels, or columns of 0 and 1"),
    'column twice':    (dict(label_col=['half','half']), r"label_col=\['half', 'half'\]: expected"),
    'split numbers':   (dict(label_col='three', label_delim=' '),
        "'three' holds 0, but label_delim=' ' splits text: leave it out, or make the labels text"),
    'split lists':     (dict(label_col='lists', label_delim=' '), r"'lists' holds \['a'\], but label_delim"),
    'split by number': (dict(label_delim=5), "label_delim=5: expected text"),
    'few groups':      (dict(group_col='half', label_col=None), "2 groups, too few for 5 folds"),
}

@pytest.mark.parametrize('name', wrong)
def test_wrong_arguments(name):
    df = pd.DataFrame({'label': list('ab')*15, 'lists': [['a']]*30, 'area': np.arange(30)+.5,
        'gap': [None]+[f'g{i}' for i in range(29)], 'three': np.arange(30)%3, 'half': np.arange(30)%2})
    kwargs,message = wrong[name]
    with pytest.raises(ValueError, match=message) as e: add_folds(**{'df': df, 'label_col': 'label', **kwargs})
    assert '\n' not in str(e.value)

# ---- balance

@given(st.lists(st.sampled_from('abc'), min_size=2, max_size=80), st.integers(0, 99),
    st.sampled_from(['balance','sqrt',1,7,30]), st.sampled_from([None,'balance','sqrt',1,7]))
@settings(max_examples=80, deadline=None)
def test_numbers_of_rows_drawn(labels, seed, over, under):
    assume(len(set(labels))>1)
    has = label_table(pd.DataFrame({'label': labels}), 'label')
    n = has.sum()
    if under=='sqrt': down = ((n*n.min())**.5).round()
    else: down = n if under is None else n.clip(upper=n.min() if under=='balance' else under)
    if over=='sqrt': up = (down*down.max())**.5
    else: up = down.clip(lower=down.max() if over=='balance' else over)
    pos = draw_rows(has, over, under, seed)
    assert (has.iloc[pos].sum()-up).abs().max()<=.5+1e-6
    assert (np.diff(pos)>=0).all() and pos.tolist()==draw_rows(has, over, under, seed).tolist()
    if under is None: # everybody comes, and nobody comes two times more often than another of the class
        times = np.bincount(pos, minlength=len(labels))
        assert times.min()>=1 and all(np.ptp(times[has[c]])<=1 for c in has)

def test_multiples_and_shares():
    has = label_table(pd.DataFrame({'label': ['a']*10+['b']*4}), 'label')
    def count(**kwargs): return has.iloc[draw_rows(has, **kwargs)].sum().tolist()
    assert count(oversample={'b': 3})==[10,12] and count(oversample={'b': 2.5, 'a': 1})==[10,10]
    assert count(undersample={'a': .5})==[5,4] and count(undersample={'a': .3}, oversample={'b': 2})==[3,8]
    assert count()==[10,4]
    assert draw_rows(has, undersample=3, seed=0).tolist()!=draw_rows(has, undersample=3, seed=1).tolist()

def test_several_labels_are_drawn_by_the_rarest():
    names = np.array(['common','mid','rare'])
    has = pd.DataFrame([[1,0,0]]*16+[[1,1,0]]*4+[[1,0,1]]+[[0,0,0]]*3, columns=names).astype(bool)
    times = np.bincount(draw_rows(has, 'balance'), minlength=24)
    assert times[20]==21 and times[16:20].sum()==21 and times[:16].tolist()==[1]*16 and times[21:].tolist()==[1]*3
    times = np.bincount(draw_rows(has, undersample=4), minlength=24)
    assert times[16:].tolist()==[1]*8 and times[:16].sum()==round(16*4/21)
    times = np.bincount(draw_rows(has, {'common': 2, 'rare': 5}), minlength=24)
    assert times.tolist()==[2]*20+[5]+[1]*3

bad_balance = [(dict(oversample={'z': 2}), "oversample names 'z', but the classes to train on are 'a', 'b'"),
    (dict(oversample={'a': .5}), "a multiple of 1 or more"),
    (dict(undersample={'a': 2}), "a share above 0 and up to 1"), (dict(oversample='square'), "oversample='square'"),
    (dict(undersample=.5), "undersample=0.5"),
    (dict(oversample=True), "oversample=True"), (dict(oversample=0), "oversample=0"),
    (dict(oversample={'a': None}), "None"), (dict(oversample={'a': float('inf')}), "inf")]

@pytest.mark.parametrize('kwargs,message', bad_balance)
def test_wrong_balance(kwargs, message):
    df = add_folds(pd.DataFrame({'label': list('ab')*10}), 'label', 2)
    with pytest.raises(ValueError, match=message): FoldSplitter(0, **kwargs)(df)

ways = st.sampled_from(['balance','sqrt',3,50,{'w': 3},{'w': 1.7, 'x': 2}])
lesser = st.sampled_from([None,'balance','sqrt',3,{'w': .5}])

@given(tables(), ways, lesser, st.integers(0, 99))
@settings(**few)
def test_validation_is_never_touched(t, over, under, seed):
    df,k = t
    df = add_folds(df, 'label', k)
    for fold in range(k):
        train,valid = FoldSplitter(fold, oversample=over, undersample=under, seed=seed)(df)
        assert valid==np.flatnonzero(df.fold==fold).tolist() and not set(train)&set(valid)
        assert under is not None or set(train)|set(valid)==set(range(len(df)))
        assert (train,valid)==FoldSplitter(fold, oversample=over, undersample=under, seed=seed)(df)
        for f,how in ((oversample,over), (undersample,under)):
            if how is None: continue
            table = f(df, how, fold=fold, seed=seed)
            pd.testing.assert_frame_equal(table[table.fold==fold], df[df.fold==fold])
            assert table.index.is_monotonic_increasing and table.index.isin(df.index).all()

# ---- FoldSplitter in fastai

@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(30):
        im = Image.fromarray(rng.integers(0, 255, (8,8,3), dtype=np.uint8)).resize((32,32), Image.BICUBIC)
        im.save(tmp_path/f'{i}.png')
    df = pd.DataFrame({'name': [str(i) for i in range(30)], 'label': ['a']*18+['b']*9+['c']*3})
    return tmp_path,add_folds(df, 'label', 3, id_col='name')

def block(path, splitter, **kwargs):
    return DataBlock(**{**dict(blocks=(ImageBlock, CategoryBlock), get_x=ColReader('name', pref=path, suff='.png'),
        get_y=ColReader('label'), splitter=splitter,
                               item_tfms=Resize(32)), **kwargs})

opts = dict(bs=4, num_workers=0, device='cpu')

def test_datablock(pictures):
    path,df = pictures
    dls = block(path, FoldSplitter(2, oversample='balance')).dataloaders(df, **opts)
    assert dls.train.items.label.value_counts().to_dict()==dict(a=12, b=12, c=12)
    assert dls.valid.items.name.tolist()==df.name[df.fold==2].tolist()
    rows = dls.train.items
    # copies keep the identity of their row
    assert rows.index.isin(df.index).all() and (rows.name==df.name[rows.index]).all()
    assert [dls.vocab[int(y)] for _,y in dls.train_ds]==rows.label.tolist()
    dls.show_batch()
    plt.close('all')

def test_weighted_dataloader(pictures):
    path,df = pictures
    b = block(path, FoldSplitter(0, oversample={'c': 4}))
    weights = sample_weights(df.label)
    dls = b.weighted_dataloaders(df, weights, **opts)
    assert isinstance(dls.train, WeightedDL) and len(dls.train.wgts)==len(dls.train.items)
    assert np.allclose(dls.train.wgts*weights[dls.train.items.index].sum(), weights[dls.train.items.index])
    dls.one_batch()

def test_labels_come_from_get_y_after_a_csv(pictures, tmp_path):
    path,df = pictures
    df.to_csv(tmp_path/'folds.csv', index=False)
    read = pd.read_csv(tmp_path/'folds.csv', dtype={'name': str})
    assert not read.attrs
    sp = FoldSplitter(1, oversample='balance')
    assert block(path, sp).datasets(read).splits==block(path, sp).datasets(df).splits
    assert FoldSplitter(1, oversample='balance', label_col='label')(read)==sp(df)
    with pytest.raises(ValueError, match='give label_col'): sp(read)
    assert FoldSplitter(1)(read)==FoldSplitter(1)(df)

def test_several_labels_in_a_block(pictures):
    path,df = pictures
    df['tags'] = df.label.map({'a': '', 'b': 'x', 'c': 'x y'})
    df = add_folds(df, 'tags', 3, label_delim=' ')
    for splitter in (FoldSplitter(0, oversample='balance'),
        FoldSplitter(0, oversample='balance', label_col='tags', label_delim=' ')):
        dls = block(path, splitter, blocks=(ImageBlock, MultiCategoryBlock),
            get_y=ColReader('tags', label_delim=' ')).dataloaders(df, **opts)
        n = dls.train.items.label.value_counts()
        assert (n['a'],n['b'],n['c'])==(12,6,8)

def test_columns_of_0_and_1_in_a_block_are_classes(pictures):
    path,df = pictures
    df = df.assign(x=(df.label=='a').astype(int), y=(df.label!='a').astype(int)) # and nothing that add_folds was told
    df.attrs = {}
    got = []
    for label_col in (None, ['x','y']):
        both = MultiCategoryBlock(encoded=True, vocab=['x','y'])
        dls = block(path, FoldSplitter(0, oversample='balance', label_col=label_col), blocks=(ImageBlock, both),
            get_y=ColReader(['x','y'])).dataloaders(df, **opts)
        got.append(dls.train.items.x.value_counts().to_dict())
    assert got[0]==got[1] and got[0][0]==got[0][1]
    with pytest.raises(ValueError, match='names a label twice: for columns of 0 and 1 give FoldSplitter label_col'):
        block(path, FoldSplitter(0, oversample='balance'), blocks=(ImageBlock, both),
            get_y=lambda o: [0,1,0]).dataloaders(df, **opts)

def test_leaks_are_found_through_the_block(pictures):
    path,df = pictures
    i,j = df.index[df.fold==0][0],df.index[df.fold==1][0]
    (path/f'{i}.png').write_bytes((path/f'{j}.png').read_bytes())
    with pytest.raises(ValueError, match='1 pictures are on both sides'): block(path, FoldSplitter(0)).dataloaders(df)
    with pytest.raises(ValueError, match='1 pictures are on both sides'):
        block(path, FoldSplitter(0, near=None)).dataloaders(df)
    with pytest.raises(ValueError, match='1 pictures are on both sides'):
        FoldSplitter(0, get_x=lambda r: path/f'{r["name"]}.png')(df)
    block(path, FoldSplitter(0, check=False)).dataloaders(df)
    FoldSplitter(0)(df) # the table alone tells nothing of pictures
    Image.open(path/f'{j}.png').resize((48,48)).save(path/f'{i}.png')
    with pytest.warns(UserWarning, match='1 of 10 pictures to validate on look like one to train on'):
        block(path, FoldSplitter(0)).dataloaders(df)
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        block(path, FoldSplitter(0, near=None)).dataloaders(df)
    (path/f'{i}.png').unlink()
    with pytest.raises(ValueError, match='1 of 30 pictures are missing'): block(path, FoldSplitter(0)).dataloaders(df)

def test_leaks_by_group_and_identity(pictures):
    path,df = pictures
    df['tree'] = df.index//2
    with pytest.raises(ValueError, match="groups of 'tree' are on both sides"): FoldSplitter(0, group_col='tree')(df)
    by_tree = add_folds(df, None, 3, group_col='tree')
    FoldSplitter(0)(by_tree)
    by_tree.loc[0,'fold'] = (by_tree.fold[1]+1)%3
    with pytest.raises(ValueError, match="1 groups of 'tree' are on both sides, the first 0"):
        FoldSplitter(by_tree.fold[0])(by_tree)
    FoldSplitter(by_tree.fold[0])(by_tree.drop(columns='tree')) # no column, nothing to check
    twice = pd.concat([df, df[df.label=='c'].assign(fold=(df.fold+1)%3)], ignore_index=True)
    with pytest.raises(ValueError, match="identities of 'name' are on both sides"):
        FoldSplitter(0, id_col='name')(twice)
    more = oversample(df, {'c': 2}, fold=0)
    FoldSplitter(0)(more)
    with pytest.raises(ValueError, match='there twice'): FoldSplitter(1)(more)

def test_splitter_refuses_what_is_no_table_of_folds(pictures):
    path,df = pictures
    files = DataBlock((ImageBlock, CategoryBlock), get_items=get_image_files, get_y=lambda o: 'a',
        splitter=FoldSplitter(0))
    with pytest.raises(ValueError, match='splits a DataFrame, but got a L'): files.dataloaders(path)
    with pytest.raises(ValueError, match="no column 'fold'"): FoldSplitter(0)(df.drop(columns='fold'))
    with pytest.raises(ValueError, match="fold=3 has no rows: 'fold' holds 0, 1, 2"): FoldSplitter(3)(df)
    with pytest.raises(ValueError, match="-1 is for training"): FoldSplitter(-1)(df)
    with pytest.raises(ValueError, match="1 of 30 rows have no fold"):
        FoldSplitter(0)(df.assign(fold=df.fold.where(df.index>0)))
    with pytest.raises(ValueError, match="none are left to train on"): FoldSplitter(0)(df.assign(fold=0))

def test_learner_with_it_exports(pictures, tmp_path):
    path,df = pictures
    dls = block(path, FoldSplitter(0, oversample='sqrt')).dataloaders(df, **opts)
    learn = Learner(dls, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3)),
        loss_func=CrossEntropyLossFlat())
    learn.export(tmp_path/'model.pkl')
    assert load_learner(tmp_path/'model.pkl').predict(path/'0.png')[0] in 'abc'

def test_folds_have_a_picture():
    df = add_folds(pd.DataFrame({'label': ['a']*9+['b']*6+['c']*2}), 'label', 3, rare='train')
    ax = show_folds(df)
    assert [t.get_text() for t in ax.texts]==list('033302222000')
    assert [t.get_text() for t in ax.get_xticklabels()]==['train\nonly','0','1','2']
    many = pd.DataFrame({'label': np.arange(600)%100, 'fold': np.arange(600)%5})
    show_folds(many, 'label')
    plt.close('all')
    with pytest.raises(ValueError, match='show_folds does not know'): show_folds(many)
    with pytest.raises(ValueError, match="no column 'part'"): show_folds(many, 'label', 'part')
