"The command: what it writes, and what it says to wrong input."
import json

import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from fastai_mix.cli import main
from fastai_mix.data.leaves import leaf_data

@pytest.fixture(scope='module')
def leaves(tmp_path_factory): return leaf_data(tmp_path_factory.mktemp('leaves')/'data', n=60, size=64)

@pytest.fixture
def table(leaves, tmp_path):
    df = pd.read_csv(leaves/'train.csv')[['image_id','labels']].rename(columns={'labels':'label'})
    df.loc[df.label=='multiple_diseases','label'] = 'rust'
    df['split'] = ['train']*40+['test']*20
    def write(change=None):
        t = df.copy()
        if change is not None: t = change(t)
        t.to_csv(tmp_path/'t.csv', index=False)
        return dict(data=str(tmp_path/'t.csv'), images=str(leaves/'images'), size=32, bs=8, epochs=1, lr=1e-3, folds=3, out=str(tmp_path/'run'))
    return write

def test_csv_with_split_from_weights(table, tmp_path, capsys):
    torch.manual_seed(0)
    body = timm.create_model('resnet10t').state_dict()
    save_file(body, tmp_path/'w.safetensors')
    main(**table(), split_col='split', arch='resnet10t', weights=str(tmp_path/'w.safetensors'))
    run = tmp_path/'run'
    assert sorted(o.name for o in run.iterdir()) == ['config.json','confusion.png','history.csv','mix.png','model.safetensors','predictions.csv']
    preds,config,history = pd.read_csv(run/'predictions.csv'),json.loads((run/'config.json').read_text()),pd.read_csv(run/'history.csv')
    df = pd.read_csv(tmp_path/'t.csv')
    assert preds.id.tolist()==df.image_id[40:].tolist() and preds.label.tolist()==df.label[40:].tolist()
    probs = preds[config['vocab']]
    assert ((probs.sum(axis=1)-1).abs()<1e-5).all()
    assert abs((probs.idxmax(axis=1)==preds.label).mean()-config['accuracy'])<1e-9
    assert history.fit.tolist()==[0,1] and abs(history.accuracy.iloc[-1]-config['accuracy'])<1e-6
    kept = load_file(run/'model.safetensors')
    assert torch.isfinite(kept['0.model.conv1.0.weight']).all()
    assert min(Image.open(run/'mix.png').size)>100
    out = capsys.readouterr().out
    assert 'macro avg' in out and '60 pictures of 64×64' in out
    main(**table(), split_col='split', mix='none', arch='resnet10t') # over an earlier run
    assert not (run/'mix.png').exists() and json.loads((run/'config.json').read_text())['mix']=='none'

def test_folder_of_classes(leaves, tmp_path):
    df = pd.read_csv(leaves/'train.csv')
    for i,label in zip(df.image_id, df.labels):
        if label=='multiple_diseases': continue
        (tmp_path/'d'/label).mkdir(parents=True, exist_ok=True)
        (tmp_path/'d'/label/f'{i}.jpg').write_bytes((leaves/'images'/f'{i}.jpg').read_bytes())
    main(data=str(tmp_path/'d'), size=32, bs=8, epochs=1, folds=3, fold=2, arch='resnet10t', out=str(tmp_path/'run'))
    preds = pd.read_csv(tmp_path/'run'/'predictions.csv')
    assert (preds.id.str.split('/').str[0]==preds.label).all()

def without(col): return lambda t: t.drop(columns=col)
def setting(col, v, rows=slice(0,3)):
    def f(t): t.loc[t.index[rows], col] = v; return t
    return f

wrong = {
    'no file':            (dict(data='/none/here.csv'), None, 'no such file or folder'),
    'no image folder':    (dict(images='/none'), None, 'no folder /none'),
    'no label column':    (dict(), without('label'), "no column 'label'"),
    'no image column':    (dict(image_col='file'), None, "no column 'file'"),
    'labels missing':     (dict(), setting('label', None), '3 of 60 rows have no label'),
    'images missing':     (dict(), lambda t: t.assign(image_id=[f'gone{i}' if i<7 else o for i,o in enumerate(t.image_id)]), '7 of 60 pictures cannot be used'),
    'image names missing':(dict(), setting('image_id', None), '3 rows'),
    'one class':          (dict(), setting('label', 'rust', slice(None)), 'single class'),
    'few of a class':     (dict(), setting('label', 'rare', slice(0,2)), "'rare' has 2 rows, too few for 3 folds"),
    'arch':               (dict(arch='resnet19'), None, "no model 'resnet19': did you mean resnet1"),
    'batch of one':       (dict(bs=1), None, '--bs 1'),
    'batch too large':    (dict(bs=64), None, '--bs 64'),
    'alpha':              (dict(alpha=0.), None, 'alpha=0'),
    'p':                  (dict(p=1.5), None, 'p=1.5'),
    'mix':                (dict(mix='snap'), None, '--mix snap'),
    'fold':               (dict(fold=3), None, '--fold 3'),
    'lr':                 (dict(lr=0.), None, '--lr 0'),
    'epochs':             (dict(epochs=0), None, '--epochs 0'),
    'no weights':         (dict(weights='/none.safetensors'), None, 'no such file'),
    'split column':       (dict(split_col='part'), None, "no column 'part'"),
    'split values':       (dict(split_col='label'), None, "must say 'train' and 'test'"),
    'class only in test': (dict(split_col='split'), setting('label', 'new', slice(50,52)), 'never in train'),
}

@pytest.mark.parametrize('name', wrong)
def test_wrong_input(name, table, tmp_path, capsys):
    kwargs,change,message = wrong[name]
    with pytest.raises(SystemExit) as e: main(**{'arch':'resnet10t', **table(change), **kwargs})
    err = capsys.readouterr().err.strip().splitlines()
    assert e.value.code==2 and len(err)==1 and err[0].startswith('fastai-mix: ') and message in err[0], err
    assert not (tmp_path/'run').exists()

def test_unreadable_images_are_counted_and_named(leaves, table, tmp_path, capsys):
    (tmp_path/'images').mkdir()
    for f in (leaves/'images').iterdir(): (tmp_path/'images'/f.name).write_bytes(f.read_bytes())
    for i in range(8): (tmp_path/'images'/f'Train_{i}.jpg').write_bytes(b'\xff\xd8 cut')
    with pytest.raises(SystemExit): main(**{**table(), 'images': str(tmp_path/'images')})
    err = capsys.readouterr().err
    assert '8 of 60 pictures cannot be used' in err and 'Train_4.jpg' in err and 'Train_5.jpg' not in err and 'and 3 more' in err

def test_foreign_folder_is_not_written_to(table, tmp_path, capsys):
    (tmp_path/'run').mkdir()
    (tmp_path/'run'/'thesis.txt').write_text('mine')
    with pytest.raises(SystemExit): main(**table())
    assert 'not a run of fastai-mix' in capsys.readouterr().err
    assert [o.name for o in (tmp_path/'run').iterdir()]==['thesis.txt']

def test_weights_that_do_not_fit(table, tmp_path, capsys):
    save_file(timm.create_model('resnet18').state_dict(), tmp_path/'w.safetensors')
    with pytest.raises(SystemExit): main(**table(), arch='resnet10t', weights=str(tmp_path/'w.safetensors'))
    assert 'does not fit resnet10t' in capsys.readouterr().err
    (tmp_path/'w.pth').write_bytes(b'not weights')
    with pytest.raises(SystemExit): main(**table(), arch='resnet10t', weights=str(tmp_path/'w.pth'))
    assert 'neither safetensors' in capsys.readouterr().err
