"Drawn leaves: the same seed gives the same picture, lesions follow the label, and labels have exact counts and noise."
import json
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from fastai_mix.data.leaves import draw_leaf, leaf_classes, leaf_data, leaf_dls, leaf_flips, leaf_labels

def pixels(seed, label='healthy', size=64): return np.asarray(draw_leaf(seed, label, size)[0])

# draw_leaf

@pytest.mark.parametrize('label', leaf_classes)
def test_a_leaf_has_the_size_asked_for_and_a_mask(label):
    im,mask = draw_leaf(0, label, 72)
    assert im.size==(72,72) and im.mode=='RGB' and mask.shape==(72,72) and mask.dtype==bool
    assert mask.any()==(label!='healthy')

def test_same_seed_same_leaf():
    assert np.array_equal(pixels([3,1], 'rust'), pixels([3,1], 'rust'))
    assert np.array_equal(pixels(5), pixels(np.random.default_rng(5)))
    assert not np.array_equal(pixels([3,1]), pixels([3,2])) and not np.array_equal(pixels([3,1]), pixels([4,1]))

# mean colour, and share of the picture that lesions cover; if they change, so must the version of the data
means = {'healthy': ([41.1,51.8,30.4], 0), 'multiple_diseases': ([87.7,106.2,43.1], .0676),
    'rust': ([95.7,90.5,46.4], .0469), 'scab': ([84.6,119.4,54.3], .0513)}

def test_pictures_of_a_version_never_change():
    for i,label in enumerate(leaf_classes):
        im,mask = draw_leaf([1,i], label, 64)
        rgb,area = means[label]
        assert np.abs(np.asarray(im).mean((0,1))-rgb).max()<.5 and abs(mask.mean()-area)<.001

@pytest.mark.parametrize('i', range(6))
def test_lesions_alone_tell_the_classes_apart(i):
    drawn = {o: draw_leaf([7,i], o, 96) for o in leaf_classes}
    well = np.asarray(drawn['healthy'][0]).astype(int)
    for label in leaf_classes[1:]:
        im,mask = drawn[label]
        change = np.abs(np.asarray(im).astype(int)-well).sum(-1)
        assert .02<mask.mean()<.08 and (change==0).mean()>.6
        assert change[mask].mean()>10*change[~mask].mean()

def test_wrong_arguments_of_a_leaf():
    with pytest.raises(ValueError, match="label='mildew': expected 'healthy', 'multiple_diseases', 'rust' or 'scab'"):
        draw_leaf(0, 'mildew')
    with pytest.raises(ValueError, match='size=63 is too small to see a lesion; use 64 or more'): draw_leaf(0, size=63)

# leaf_labels

@pytest.mark.parametrize('n', [40,41,97,600,1821])
def test_classes_have_the_shares_of_the_competition(n):
    true,given = leaf_labels(n)
    counts = pd.Series(true).value_counts()
    want = pd.Series(dict(healthy=516, multiple_diseases=91, rust=622, scab=592))*n/1821
    assert len(true)==n and (true==given).all() and (counts-want).abs().max()<1 and counts.min()>=2

@pytest.mark.parametrize('noise', [0,.1,.25,.5,1])
def test_the_number_of_wrong_labels_is_exact(noise):
    true,given = leaf_labels(200, noise, seed=3)
    assert (true!=given).sum()==round(200*noise) and set(given)<=set(leaf_classes)

def test_wrong_labels_follow_their_probabilities():
    true,given = leaf_labels(6000, 1.)
    shares = pd.crosstab(true, given, normalize='index').reindex(columns=leaf_classes)
    assert (shares-leaf_flips).abs().max().max()<.09 and np.allclose(leaf_flips.sum(axis=1), 1)
    assert (np.diag(leaf_flips)==0).all()

def test_the_seed_shuffles_and_the_noise_does_not():
    a,b = leaf_labels(100)[0],leaf_labels(100, seed=1)[0]
    assert (a!=b).any() and sorted(a)==sorted(b) and (leaf_labels(100, noise=.3)[0]==a).all()
    assert (leaf_labels(100, noise=.3)[1]==leaf_labels(100, noise=.3)[1]).all()

@pytest.mark.parametrize('kwargs,message', [
    (dict(n=39), 'use n=40 or more'), (dict(seed=-1), 'seed=-1: expected a whole'),
    (dict(noise=1.1), 'noise=1.1: expected a number'), (dict(noise=-.1), 'noise=-0.1'),
    (dict(noise=float('nan')), 'noise=nan')])
def test_wrong_arguments_of_labels(kwargs, message, tmp_path):
    with pytest.raises(ValueError, match=message): leaf_labels(**kwargs)
    with pytest.raises(ValueError, match=message): leaf_data(tmp_path/'leaves', **kwargs)
    assert not any(tmp_path.iterdir())

# leaf_data

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return leaf_data(tmp_path_factory.mktemp('leaves')/'data', n=40, noise=.25, seed=2, size=64)

def test_the_folder_holds_what_the_functions_give(folder):
    df = pd.read_csv(folder/'train.csv')
    true,given = leaf_labels(40, .25, 2)
    assert df.true_label.tolist()==true.tolist() and df.labels.tolist()==given.tolist()
    assert df[leaf_classes].idxmax(axis=1).tolist()==given.tolist() and (df[leaf_classes].sum(axis=1)==1).all()
    assert df.image_id.tolist()==[f'Train_{i}' for i in range(40)]
    for i in (0,39):
        im,mask = draw_leaf([2,i], true[i], 64)
        saved = Image.open(folder/'images'/f'Train_{i}.jpg')
        assert saved.size==(64,64) and np.abs(np.asarray(saved).astype(int)-np.asarray(im).astype(int)).mean()<6
        assert np.array_equal(np.asarray(Image.open(folder/'masks'/f'Train_{i}.png')), mask)
    assert json.loads((folder/'leaves.json').read_text())==dict(n=40, noise=.25, seed=2, size=64, version=1)

def test_a_complete_folder_is_not_drawn_again(folder):
    first = folder/'images'/'Train_0.jpg'
    written = first.stat().st_mtime_ns
    assert leaf_data(folder, n=40, noise=.25, seed=2, size=64)==folder and first.stat().st_mtime_ns==written

def test_other_folders_are_refused_and_left_alone(folder, tmp_path):
    for kwargs in (dict(seed=3), dict(noise=.2), dict(size=80)):
        with pytest.raises(ValueError, match='does not hold these leaves; remove it or give another folder'):
            leaf_data(folder, **{**dict(n=40, noise=.25, seed=2, size=64), **kwargs})
    (tmp_path/'note.txt').write_text('mine')
    with pytest.raises(ValueError, match='does not hold these leaves'): leaf_data(tmp_path, n=40, size=64)
    assert [o.name for o in tmp_path.iterdir()]==['note.txt']

def test_an_empty_folder_is_filled_and_an_interrupt_leaves_nothing(tmp_path, monkeypatch):
    def stop(rng, label, size):
        if rng[1]==3: raise KeyboardInterrupt
        return draw_leaf(rng, label, size)
    with monkeypatch.context() as m:
        m.setattr('fastai_mix.data.leaves.draw_leaf', stop)
        with pytest.raises(KeyboardInterrupt): leaf_data(tmp_path/'a', n=40, size=64)
    assert not any(tmp_path.iterdir())
    (tmp_path/'a').mkdir()
    assert len([*(leaf_data(tmp_path/'a', n=40, size=64)/'images').iterdir()])==40

def test_the_default_folder_is_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    path = leaf_data(n=40, size=64)
    assert path.parent==tmp_path/'fastai_mix' and path.name=='leaves-n40-noise0.0-seed0-size64-version1'

def test_dataloaders_validate_on_true_labels(folder):
    for clean in (True,False):
        dls = leaf_dls(folder, size=32, bs=8, clean_valid=clean, device='cpu')
        rows = dls.valid.items
        assert rows.y.tolist()==rows['true_label' if clean else 'labels'].tolist()
        assert dls.train.items.y.tolist()==dls.train.items.labels.tolist() and list(dls.vocab)==leaf_classes
        assert len(rows)==8 and set(rows.index).isdisjoint(dls.train.items.index)
