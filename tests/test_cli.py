"The command: what it writes, and what it says to wrong input."
import errno
import hashlib
import json
import os
import re
import shutil
import zipfile
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from fastai_mix import cli
from fastai_mix.cli import main, read_data, read_oversample
from fastai_mix.command import end_command
from fastai_mix.crossval import CrossVal, load_ensemble
from fastai_mix.data import pictures
from fastai_mix.data.leaves import draw_leaf
from fastai_mix.decisions import DecisionFile
from fastai_mix.recipe import best_rates
from helpers import noise

@pytest.fixture
def table(leaves, tmp_path):
    df = pd.read_csv(leaves/'train.csv')[['image_id','labels']].rename(columns={'labels':'label'})
    df.loc[df.label=='multiple_diseases','label'] = 'rust'
    df['split'] = ['train']*40+['test']*20
    def write(change=None):
        t = df.copy()
        if change is not None: t = change(t)
        t.to_csv(tmp_path/'t.csv', index=False)
        return dict(data=str(tmp_path/'t.csv'), images=str(leaves/'images'), size=32, bs=8, epochs=1, lr=1e-3,
            out=str(tmp_path/'run'))
    return write

def shown(folder): return sorted(o.name for o in folder.iterdir() if o.name[0]!='.')

def test_csv_with_split_from_weights(leaves, table, tmp_path, capsys):
    torch.manual_seed(0)
    body = timm.create_model('test_resnet').state_dict()
    save_file(body, tmp_path/'w.safetensors')
    main(**table(), split_col='split', arch='test_resnet', weights=str(tmp_path/'w.safetensors'), mix='snapmix')
    run = tmp_path/'run'
    assert shown(run)==['config.json','confusion.png','ensemble','folds','history.csv','mix.png','model.safetensors',
        'predictions.csv','report.html']
    preds,history = pd.read_csv(run/'predictions.csv'),pd.read_csv(run/'history.csv')
    config = json.loads((run/'config.json').read_text())
    df = pd.read_csv(tmp_path/'t.csv')
    assert preds.id.tolist()==df.image_id[40:].tolist() and preds.label.tolist()==df.label[40:].tolist()
    probs = preds[config['vocab']]
    assert ((probs.sum(axis=1)-1).abs()<1e-5).all()
    assert abs((probs.idxmax(axis=1)==preds.label).mean()-config['accuracy'])<1e-9
    assert history.fit.tolist()==[0,1] and abs(history.accuracy.iloc[-1]-config['accuracy'])<1e-6
    again = load_ensemble(run/'ensemble').predict([leaves/'images'/f'{o}.jpg' for o in preds.id[:4]])
    assert np.allclose(again, probs[:4], atol=1e-4)
    kept = load_file(run/'model.safetensors')
    assert torch.isfinite(kept['0.model.conv1.0.weight']).all()
    assert min(Image.open(run/'mix.png').size)>100
    out = capsys.readouterr().out
    assert 'macro avg' in out and '60 pictures of 64×64' in out
    trained = stamps(run/'folds')
    # nothing is left to train
    main(**table(), split_col='split', arch='test_resnet', weights=str(tmp_path/'w.safetensors'), mix='snapmix')
    assert stamps(run/'folds')==trained
    capsys.readouterr()
    with pytest.raises(SystemExit): main(**table(), split_col='split', mix='none', arch='test_resnet')
    assert '--mix snapmix there, none here' in capsys.readouterr().err and (run/'mix.png').exists()

def test_a_folder_that_cannot_be_made_is_known_before_training(table, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli, '_fit', lambda o, learn: pytest.fail('trained'))
    (tmp_path/'file').write_text('')
    with pytest.raises(SystemExit): main(**{**table(), 'arch':'test_resnet', 'out':str(tmp_path/'file'/'run')})
    assert 'cannot be made: Not a directory' in capsys.readouterr().err

def test_folder_of_classes(leaves, tmp_path):
    df = pd.read_csv(leaves/'train.csv')
    for i,label in zip(df.image_id, df.labels):
        if label=='multiple_diseases': continue
        (tmp_path/'d'/label).mkdir(parents=True, exist_ok=True)
        (tmp_path/'d'/label/f'{i}.jpg').write_bytes((leaves/'images'/f'{i}.jpg').read_bytes())
    main(data=str(tmp_path/'d'), size=32, bs=8, epochs=1, folds=3, fold=2, arch='test_resnet', out=str(tmp_path/'run'))
    preds = pd.read_csv(tmp_path/'run'/'predictions.csv')
    assert (preds.id.str.split('/').str[0]==preds.label).all()

def test_the_device_of_the_loaders_is_not_yet_that_of_the_network(table, monkeypatch):
    class Enough(Exception): pass
    def stop(o): raise Enough
    make = cli._make_dls
    def elsewhere(*args):
        dls = make(*args)
        dls.device = torch.device('meta') # stands for a GPU
        return dls
    monkeypatch.setattr(cli, '_make_dls', elsewhere)
    monkeypatch.setattr(cli, '_make_out', stop)
    for mix in ('snapmix','none'):
        with pytest.raises(Enough): main(**table(), arch='test_resnet', mix=mix)

def test_a_model_may_have_a_tag(table, monkeypatch):
    class Enough(Exception): pass
    def stop(o): raise Enough
    monkeypatch.setattr(cli, '_make_out', stop)
    with pytest.raises(Enough): main(**table(), arch='resnet18.a1_in1k')

def barely(o, learn):
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)

def test_the_search_for_a_rate_writes_nothing_elsewhere(table, tmp_path, monkeypatch):
    (tmp_path/'here').mkdir()
    (tmp_path/'here'/'models').write_text('a file where fastai would have its folder')
    monkeypatch.chdir(tmp_path/'here')
    monkeypatch.setattr(cli, '_fit', barely)
    args = dict(table(), lr=None, arch='test_resnet', mix='none', fold=0, folds=3)
    main(**args)
    assert [o.name for o in (tmp_path/'here').iterdir()]==['models']
    assert {o.name for o in (tmp_path/'run').iterdir() if o.name[0]=='.'}<={'.lock'}

def test_the_same_command_again_in_the_folder_of_the_pictures(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(folders('cat','dog', n=8))
    monkeypatch.setattr(cli, '_fit', barely)
    for _ in range(2):
        main(data='.', size=32, bs=4, epochs=1, lr=1e-3, folds=2, fold=0, arch='test_resnet', mix='none')
        assert len(pd.read_csv('fastai-mix-run/predictions.csv'))==8
        assert json.loads(open('fastai-mix-run/config.json').read())['vocab']==['cat','dog']

def test_another_config_is_not_of_a_run(table, tmp_path, capsys):
    (tmp_path/'run').mkdir()
    for text in ('{"versions": 3}', '[]', 'not json'):
        (tmp_path/'run'/'config.json').write_text(text)
        with pytest.raises(SystemExit): main(**table())
        assert 'holds something that is not a run of fastai-mix' in capsys.readouterr().err

def test_a_file_linked_into_two_classes_is_said(folders, capsys):
    d = folders('cat','dog')
    (d/'dog'/'z.png').symlink_to(d/'cat'/'1.png')
    df = read_data(d)
    assert df.label.tolist()==['cat']*3+['dog']*4
    cli._show_conflicts(df)
    out = capsys.readouterr().out
    assert out.startswith('1 picture with several labels')
    assert f"{d/'cat'/'1.png'} 'cat' and {d/'dog'/'z.png'} 'dog'" in out

def test_home_in_options(folders, tmp_path, monkeypatch):
    class Enough(Exception): pass
    def stop(o): raise Enough(o)
    folders('cat','dog', n=8)
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setattr(cli, '_make_out', stop)
    with pytest.raises(Enough) as e: main(data='~/d', size=32, bs=4, folds=2, fold=0, arch='test_resnet', out='~/run')
    assert e.value.args[0].out==tmp_path/'run'

def test_data_of_another_kind(csv, folders, tmp_path, capsys):
    csv('image_id,label\np0,a\n', 'p0.png', 'p1.png')
    for name,names in (('pictures.zip',('p0.png','p1.png')), ('one.zip',('p0.png',))):
        with zipfile.ZipFile(tmp_path/name, 'w') as z:
            for o in names: z.write(tmp_path/o, o)
    (tmp_path/'t.tar.gz').write_bytes(b'\x1f\x8b cut')
    (tmp_path/'t.txt').write_text('a/1.png 0\na/2.png 1\n')
    (tmp_path/'t.xlsx').write_bytes(b'PK\x03\x04\xff\xfe')
    for data,message in (('pictures.zip','is an archive: unpack it'), ('one.zip','is an archive: unpack it'),
                         ('t.tar.gz','is an archive: unpack it'), ('p0.png','is a picture'),
                         ('t.txt',"has no column 'image_id' or 'label'"), ('t.xlsx','is not in UTF-8')):
        own = str(folders('cat','dog', root=data+'d'))
        for args in (dict(data=str(tmp_path/data)), dict(data=own, test=str(tmp_path/data))):
            with pytest.raises(SystemExit) as e:
                main(**args, size=32, bs=2, folds=2, fold=0, arch='test_resnet', out=str(tmp_path/'run'))
            err = capsys.readouterr().err.strip().splitlines()
            expected = message if 'test' not in args else message.split(' or ')[0]
            assert e.value.code==2 and len(err)==1 and expected in err[0] and data in err[0], err

def test_a_sample_that_is_no_csv(table, test_folder, tmp_path, capsys):
    args = dict(table(), folds=3, arch='test_resnet', **test_folder())
    for text,message in (('', 'sample.csv is empty'),
                         ('file;scab;rust\nTrain_3;0;0\n', "sample.csv has ';' between its columns"),
                         ('file,rust,rust\nTrain_3,0,0\n', "2 columns 'rust'"),
                         ('file,scab,rust,healthy\nTrain_3,0,0,0,1\n', 'more cells than its header')):
        (tmp_path/'sample.csv').write_text(text)
        with pytest.raises(SystemExit) as e: main(**args)
        err = capsys.readouterr().err.strip().splitlines()
        assert e.value.code==2 and len(err)==1 and message in err[0] and not (tmp_path/'run').exists(), err

def test_pictures_whose_content_is_lost_are_refused(folders, tmp_path, capsys):
    d = folders('cat','dog', n=4)
    deep = np.asarray(noise().convert('L')).astype(np.uint16)*200+300
    Image.fromarray(deep).save(d/'dog'/'1.png')
    args = dict(data=str(d), size=32, bs=2, folds=2, fold=0, epochs=1, lr=1e-3, arch='test_resnet', mix='none',
        out=str(tmp_path/'run'))
    with pytest.raises(SystemExit) as e: main(**args)
    err = capsys.readouterr().err.strip().splitlines()
    assert e.value.code==2 and len(err)==1 and not (tmp_path/'run').exists()
    assert f"1 of 8 pictures cannot be used: {d/'dog'/'1.png'} lost in RGB (mode I;16 with values" in err[0]
    assert 'save it with 8 bits' in err[0]

def test_a_picture_with_two_labels_is_said(leaves, table, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli, '_fit', barely)
    shutil.copytree(leaves/'images', tmp_path/'images')
    labels = pd.read_csv(leaves/'train.csv').labels.replace('multiple_diseases', 'rust')
    i,j = labels[labels=='rust'].index[0],labels[labels=='scab'].index[0]
    shutil.copy(tmp_path/'images'/f'Train_{i}.jpg', tmp_path/'images'/f'Train_{j}.jpg')
    args = dict(table(lambda t: pd.concat([t, t[t.label=='healthy'][:1].assign(label='scab')])), arch='test_resnet',
        fold=0, folds=3, mix='none')
    main(**{**args, 'images': str(tmp_path/'images')})
    out = capsys.readouterr().out.splitlines()
    said = [o for o in out if 'several labels' in o]
    assert len(said)==1 and said[0].startswith('2 pictures with several labels, the first ')

def test_images_without_a_csv(folders, leaves, tmp_path, capsys):
    d = folders('cat','dog', n=4)
    for more,message in ((dict(images=str(leaves/'images')), '--images names the folder'),
                         (dict(test_images=str(d)), '--test-images names the folder'),
                         (dict(test_images=str(d), test=str(d)), '--test-images names the folder')):
        with pytest.raises(SystemExit):
            main(data=str(d), size=32, bs=2, folds=2, fold=0, arch='test_resnet', out=str(tmp_path/'run'), **more)
        assert message in capsys.readouterr().err

def test_oversample_of_what_is_no_class(table, capsys):
    with pytest.raises(ValueError, match="expected class=3.*; the classes are 'c', 'd'"):
        read_oversample('a,b=3', ['c','d'])
    with pytest.raises(ValueError, match='may be .* or .*: rename a class'):
        read_oversample('a=3,b=2', ['a','b','a=3,b'])
    with pytest.raises(SystemExit): main(**table(), arch='test_resnet', fold=0, folds=3, oversample='rost=3')
    err = capsys.readouterr().err
    assert "oversample names 'rost', but the classes to train on are 'healthy', 'rust', 'scab'" in err

def without(col): return lambda t: t.drop(columns=col)
def setting(col, v, rows=slice(0,3)):
    def f(t): t.loc[t.index[rows], col] = v; return t
    return f

def by_plant(t): return t.assign(plant=[f'plant {i//4}' for i in range(len(t))])

wrong = {
    'no file':            (dict(data='/none/here.csv'), None, 'no such file or folder'),
    'no image folder':    (dict(images='/none'), None, 'no folder /none'),
    'no label column':    (dict(), without('label'), "no column 'label'"),
    'no image column':    (dict(image_col='file'), None, "no column 'file'"),
    'labels missing':     (dict(), setting('label', None), '3 of 60 rows have no label'),
    'images missing':     (dict(), lambda t: t.assign(image_id=[*(f'gone{i}' for i in range(7)), *t.image_id[7:]]),
                           '7 of 60 pictures cannot be used'),
    'image names missing':(dict(), setting('image_id', None), '3 rows'),
    'one class':          (dict(), setting('label', 'rust', slice(None)), 'single class'),
    'few of a class':     (dict(fold=0, folds=3), setting('label', 'rare', slice(0,2)),
                           "'rare' has 2 rows, too few for 3 folds: use --folds 2"),
    'class named id':     (dict(), setting('label', 'id', slice(0,20)), "a class is called 'id', as is a column"),
    'arch':               (dict(arch='resnet19'), None, "no model 'resnet19': did you mean resnet1"),
    'batch of one':       (dict(bs=1), None, '--bs 1'),
    'batch too large':    (dict(bs=64), None, '--bs 64'),
    'alpha':              (dict(alpha=0., mix='snapmix'), None, 'alpha=0'),
    'p':                  (dict(p=1.5, mix='mixup'), None, 'p=1.5'),
    'p without a mix':    (dict(p=1.5, mix='ema'), None, 'p=1.5'),
    'alpha without a mix':(dict(alpha=-1., mix='gridmask'), None, 'alpha=-1.0'),
    'p of no mix':        (dict(p=.5, mix='ema,gridmask'), None, '--mix ema,gridmask mixes none: leave it out'),
    'alpha of another':   (dict(alpha=2., mix='mixup'), None, '--alpha is that of SnapMix, and --mix is mixup'),
    'alpha alone':        (dict(alpha=2.), None, '--alpha is that of SnapMix'),
    'mix':                (dict(mix='snap'), None, '--mix snap'),
    'echo of none':       (dict(echo=True, mix='none'), None, '--echo with --mix none: expected a mix'),
    'echo of gridmask':   (dict(echo=True, mix='gridmask'), None, '--echo with --mix gridmask: expected a mix'),
    'fold':               (dict(fold=3, folds=3), None, '--fold 3: with --folds 3 it is 0 to 2'),
    'fold of five':       (dict(fold=5), None, 'it is 0 to 4'),
    'one fold':           (dict(folds=1), None, '--folds 1'),
    'folds and split':    (dict(folds=3, split_col='split'), None, 'leave out --fold and --folds'),
    'a name twice':       (dict(folds=3), lambda t: pd.concat([t, t.iloc[:2]]),
                           '2 rows of --data with a picture that an earlier row names'),
    'a row twice':        (dict(fold=0, folds=3), lambda t: pd.concat([t, t.iloc[:1]]),
                           '1 row of --data with a picture that an earlier row names'),
    'protect alone':      (dict(protect='t.csv'), None, 'names pictures whose labels --plc leaves alone: give that too'),
    'oversample':         (dict(oversample='rust:3'), None, '--oversample rust:3'),
    'oversample class':   (dict(oversample='rost=3', folds=3), None, "oversample names 'rost'"),
    'oversample less':    (dict(oversample='rust=.5'), None, 'a multiple of 1 or more'),
    'tta':                (dict(tta='d8'), None, "--tta d8: expected 'none', 'flips' or 'd4'"),
    'sample alone':       (dict(sample='sample.csv'), None, 'give these with --test'),
    'no test':            (dict(test='/none'), None, 'no such file or folder: /none; --test'),
    'lr':                 (dict(lr=0.), None, '--lr 0'),
    'epochs':             (dict(epochs=0), None, '--epochs 0'),
    'two sources':        (dict(pretrained=True, weights='w.safetensors'), None, 'give one of them'),
    'size of the network':(dict(arch='swin_tiny_patch4_window7_224', mix='cutmix'), None,
                           'does not run on pictures of 32×32'),
    'no weights':         (dict(weights='/none.safetensors'), None, 'no such file'),
    'split column':       (dict(split_col='part'), None, "no column 'part'"),
    'split of no table':  (dict(data=None, split_col='split'), None, 'give it with --data'),
    'split values':       (dict(split_col='label'), None, "must say 'train' and 'test'"),
    'loss':               (dict(loss='focal'), None, "--loss focal: expected 'ce', 'smooth' or 'balanced'"),
    'group column':       (dict(group_col='plant'), None, "no column 'plant'"),
    'group of no table':  (dict(data=None, images=None, group_col='plant'), None, 'give it with --data'),
    'groups and split':   (dict(group_col='plant', split_col='split'), by_plant, 'leave one of them out'),
    'rows of no group':   (dict(group_col='plant', folds=3), lambda t: setting('plant', None)(by_plant(t)),
                           "3 rows of"),
    'one group':          (dict(group_col='plant', folds=3), lambda t: t.assign(plant='a'),
                           "have the group 'a' in 'plant'"),
    'few groups':         (dict(group_col='plant', folds=3), lambda t: t.assign(plant=t.index%2),
                           'has 2 groups, too few for 3 folds: use --folds 2, or merge or drop that class, or leave '
                           'out --group-col'),
    'group is the class': (dict(group_col='label', folds=3), None, 'has 1 group, too few for 3 folds: merge or drop'),
    'class only in test': (dict(split_col='split'), setting('label', 'new', slice(50,52)), 'never in train'),
}

@pytest.mark.parametrize('name', wrong)
def test_wrong_input(name, table, tmp_path, capsys):
    kwargs,change,message = wrong[name]
    with pytest.raises(SystemExit) as e: main(**{'arch':'test_resnet', **table(change), **kwargs})
    err = capsys.readouterr().err.strip().splitlines()
    assert e.value.code==2 and len(err)==1 and err[0].startswith('fastai-mix: ') and message in err[0], err
    assert not (tmp_path/'run').exists()

def test_a_csv_in_another_encoding(table, test_folder, tmp_path, capsys):
    args = dict(table(lambda t: t.replace('rust', 'Käfer')), arch='test_resnet', **test_folder(label='ä'))
    for name in ('sample.csv','t.csv'):
        (tmp_path/name).write_text((tmp_path/name).read_text(encoding='utf-8').replace('label', 'läbel'),
            encoding='latin-1')
        with pytest.raises(SystemExit): main(**args)
        assert f'{tmp_path/name} is not in UTF-8: save it as UTF-8' in capsys.readouterr().err

def test_unreadable_images_are_counted_and_named(leaves, table, tmp_path, capsys):
    (tmp_path/'images').mkdir()
    for f in (leaves/'images').iterdir(): (tmp_path/'images'/f.name).write_bytes(f.read_bytes())
    for i in range(8): (tmp_path/'images'/f'Train_{i}.jpg').write_bytes(b'\xff\xd8 cut')
    with pytest.raises(SystemExit): main(**{**table(), 'images': str(tmp_path/'images')})
    err = capsys.readouterr().err
    assert '8 of 60 pictures cannot be used' in err and 'Train_4.jpg' in err and 'Train_5.jpg' not in err
    assert 'and 3 more' in err

def test_foreign_folder_is_not_written_to(table, tmp_path, capsys):
    (tmp_path/'run').mkdir()
    (tmp_path/'run'/'thesis.txt').write_text('mine')
    with pytest.raises(SystemExit): main(**table())
    assert 'not a run of fastai-mix' in capsys.readouterr().err
    assert [o.name for o in (tmp_path/'run').iterdir()]==['thesis.txt']

def test_weights_that_do_not_fit(table, tmp_path, capsys):
    save_file(timm.create_model('resnet18').state_dict(), tmp_path/'w.safetensors')
    with pytest.raises(SystemExit): main(**table(), arch='test_resnet', weights=str(tmp_path/'w.safetensors'))
    assert 'does not fit test_resnet' in capsys.readouterr().err
    (tmp_path/'w.pth').write_bytes(b'not weights')
    with pytest.raises(SystemExit): main(**table(), arch='test_resnet', weights=str(tmp_path/'w.pth'))
    assert 'neither safetensors' in capsys.readouterr().err

def test_weights_that_were_changed_since(table, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli, '_fit', barely)
    file,config = tmp_path/'w.safetensors',tmp_path/'run'/'config.json'
    args = dict(table(), arch='test_resnet', mix='none', fold=0, folds=3, weights=str(file))
    save_file(timm.create_model('test_resnet').state_dict(), file)
    main(**args)
    told = json.loads(config.read_text())
    assert told['weights']==str(file) and told['weights_file']['size']==file.stat().st_size
    assert told['weights_file']['blake2b']==hashlib.blake2b(file.read_bytes(), digest_size=32).hexdigest()
    trained = stamps(tmp_path/'run'/'folds')
    main(**args)
    save_file(timm.create_model('test_resnet').state_dict(), file) # others of the same size
    capsys.readouterr()
    with pytest.raises(SystemExit) as e: main(**args)
    err = capsys.readouterr().err.splitlines()
    assert e.value.code==2 and len(err)==1 and f'--weights {file} is not the file it was begun with' in err[0]
    assert json.loads(config.read_text())==told
    config.write_text(json.dumps({k:v for k,v in told.items() if k!='weights_file'})) # of an earlier version
    main(**args)
    assert 'weights_file' not in json.loads(config.read_text()) and stamps(tmp_path/'run'/'folds')==trained

@pytest.fixture
def test_folder(leaves, tmp_path):
    "Five pictures in a folder, and a sample of four in another order"
    (tmp_path/'test').mkdir()
    for i in range(5): shutil.copy(leaves/'images'/f'Train_{i}.jpg', tmp_path/'test')
    def write(ids=(3,0,4,1), suff='', **cols):
        cols = cols or dict(scab=0., rust=0., healthy=0.)
        sample = pd.DataFrame({'file': [f'Train_{i}{suff}' for i in ids], **cols})
        sample.to_csv(tmp_path/'sample.csv', index=False)
        return dict(test=str(tmp_path/'test'), sample=str(tmp_path/'sample.csv'))
    return write

def stamps(folder):
    return {f: f.stat().st_mtime_ns for f in folder.rglob('*') if f.name in ('model.safetensors','fold.json','oof.csv')}

def test_all_folds_to_a_submission(leaves, table, test_folder, tmp_path, capsys):
    run,args = tmp_path/'run',dict(table(), folds=3, arch='test_resnet', mix='snapmix,gridmask', oversample='rust=2',
        plc=True, tta='d4', **test_folder())
    main(**args)
    assert sorted(o.name for o in run.iterdir() if o.name[0]!='.') == ['config.json','confusion.png','ensemble',
        'folds','history.csv','labels.csv','mix.png','oof.csv',
        'report.html','report.txt','submission.csv','test_predictions.csv']
    df,oof,preds,sub,labels = (pd.read_csv(o) for o in (tmp_path/'t.csv', run/'oof.csv', run/'test_predictions.csv',
        run/'submission.csv', run/'labels.csv'))
    assert oof.id.tolist()==df.image_id.tolist() and oof.label.tolist()==df.label.tolist()
    each = pd.concat([pd.read_csv(run/'folds'/f'fold_{k}'/'oof.csv').assign(fold=k)
        for k in range(3)]).set_index('id').loc[oof.id]
    assert np.allclose(each[['healthy','rust','scab']], oof[['healthy','rust','scab']])
    assert each.fold.tolist()==oof.fold.tolist()
    assert preds.id.tolist()==[f'Train_{i}' for i in range(5)]
    assert np.allclose(preds[['healthy','rust','scab']].sum(axis=1), 1)
    assert list(sub)==['file','scab','rust','healthy'] and sub.file.tolist()==['Train_3','Train_0','Train_4','Train_1']
    assert np.allclose(sub[['healthy','rust','scab']], preds.set_index('id').loc[sub.file, ['healthy','rust','scab']])
    for k in range(3): assert set(labels.row[labels.fold==k])==set(oof.id[oof.fold!=k])
    assert (run/'report.txt').read_text() in capsys.readouterr().out
    trained = stamps(run/'folds')
    main(**{**args, 'tta':'none', **test_folder(suff='.jpg', label='')})
    assert stamps(run/'folds')==trained
    plain,sub = pd.read_csv(run/'test_predictions.csv').set_index('id'),pd.read_csv(run/'submission.csv')
    assert sub.file.tolist()==[f'Train_{i}.jpg' for i in (3,0,4,1)]
    assert sub.label.tolist()==plain.loc[sub.file].idxmax(axis=1).tolist()
    assert not np.allclose(plain, preds.set_index('id'), atol=1e-5) # views were averaged over
    for other,message in ((dict(mix='snapmix'), '--mix snapmix,gridmask there, snapmix here'),
                          (dict(lr=2e-3), '--lr 0.001 there, 0.002 here'),
                          (dict(fold=0), 'holds a run of all folds'), (dict(folds=4), '--folds 3 there, 4 here')):
        with pytest.raises(SystemExit): main(**{**args, **other})
        assert message in capsys.readouterr().err
    again = load_ensemble(run/'ensemble').predict([tmp_path/'test'/f'Train_{i}.jpg' for i in range(5)])
    assert np.allclose(again, plain.loc[[f'Train_{i}.jpg' for i in range(5)]], atol=1e-4)
    shutil.copytree(leaves/'images', tmp_path/'moved')
    main(**{**args, 'images': str(tmp_path/'moved')}) # the same pictures elsewhere
    Image.new('RGB', (80,80)).save(tmp_path/'moved'/'Train_0.jpg')
    with pytest.raises(SystemExit): main(**{**args, 'images': str(tmp_path/'moved')})
    assert 'other pictures have the same names' in capsys.readouterr().err
    with pytest.raises(SystemExit): main(**{**args, **table(lambda t: t.iloc[::-1])})
    assert 'have another fold' in capsys.readouterr().err
    assert stamps(run/'folds')==trained

def test_folds_another_process_has_are_left_to_it(table, tmp_path, capsys, monkeypatch):
    args,train = dict(table(), folds=3, arch='test_resnet', mix='none'),CrossVal._train
    monkeypatch.setattr(CrossVal, '_train', lambda self, fit, k, bar=True: k!=1 and train(self, fit, k, bar))
    main(**args)
    run = tmp_path/'run'
    assert 'done last writes the report' in capsys.readouterr().out and not (run/'oof.csv').exists()
    trained = stamps(run/'folds')
    monkeypatch.undo()
    main(**args)
    assert trained.items()<=stamps(run/'folds').items() and len(pd.read_csv(run/'oof.csv'))==60

def test_echo(table, tmp_path, capsys, monkeypatch):
    made,run,args = [],tmp_path/'run',dict(table(), folds=3, arch='test_resnet', mix='snapmix,cutmix,gridmask')
    def make(self, fit, k, bar=True): made.append(self.get_learner(self.get_dls(self.df, k)))
    monkeypatch.setattr(CrossVal, '_train', make)
    def refused(message, **kwargs):
        with pytest.raises(SystemExit): main(**args, **kwargs)
        assert message in capsys.readouterr().err
    main(**args, echo=True)
    choice = made[0].mix_choice
    assert choice.echo and [(o.p,o.echo) for o in choice.mixes]==[(1.,False)]*2
    assert cli.make_mixes('mixup', echo=True)[0].echo
    config = json.loads((run/'config.json').read_text())
    assert config['p']==1. and config['echo'] is True
    refused('--echo True there, False here')
    # of an earlier version
    (run/'config.json').write_text(json.dumps({k:v for k,v in {**config, 'p':.5}.items() if k!='echo'}))
    main(**args, p=.5)
    refused('--echo False there, True here', echo=True, p=.5)

def test_echo_costs_what_plain_training_does(table, tmp_path, monkeypatch):
    seen,args = [],dict(table(), epochs=5, folds=3, arch='test_resnet', mix='mixup')
    def train(self, fit, k, bar=True):
        dls = self.get_dls(self.df, k)
        class Fit:
            def fit_one_cycle(self, n, lr): seen.append((dls.train.bs,n))
        fit(Fit())
    monkeypatch.setattr(CrossVal, '_train', train)
    main(**args, echo=True)
    # a run that an earlier version began goes on with the batches and epochs it was given
    config = json.loads((tmp_path/'run'/'config.json').read_text())
    (tmp_path/'run'/'config.json').write_text(json.dumps({k:v for k,v in config.items() if k!='halved'}))
    main(**args, echo=True)
    main(**{**args, 'out':str(tmp_path/'other')})
    assert seen[::3]==[(4,3),(8,5),(8,5)]

def test_a_run_goes_on_with_the_rates_it_was_begun_with(table, tmp_path, monkeypatch):
    seen,run = [],tmp_path/'run'
    save_file(timm.create_model('test_resnet', num_classes=7).state_dict(), tmp_path/'w.safetensors')
    args = dict(table(), fold=0, folds=3, arch='test_resnet', weights=str(tmp_path/'w.safetensors'))
    def train(self, fit, k, bar=True): fit(SimpleNamespace(fine_tune=lambda n, lr, lr_mult: seen.append((lr,lr_mult))))
    monkeypatch.setattr(CrossVal, '_train', train)
    main(**args)
    config = json.loads((run/'config.json').read_text()) # earlier versions had fastai's `lr_mult`
    (run/'config.json').write_text(json.dumps({k: v for k,v in config.items() if k!='lr_mult'}))
    main(**args)
    assert [o[1] for o in seen]==[best_rates()['lr_mult'],100] and {o[0] for o in seen}=={config['lr']}

def test_a_run_without_a_mix_goes_on_as_it_was_begun(table, tmp_path, capsys, monkeypatch):
    made,args,run = [],dict(table(), fold=0, folds=3, arch='test_resnet'),tmp_path/'run'
    def make(self, fit, k, bar=True): made.append(self.get_learner(self.get_dls(self.df, k)))
    monkeypatch.setattr(CrossVal, '_train', make)
    main(**args)
    config = json.loads((run/'config.json').read_text())
    assert config['from_recipe']
    # an earlier version mixed every other batch by SnapMix
    older = {k:v for k,v in config.items() if k!='from_recipe'} | dict(mix='snapmix', p=.5)
    (run/'config.json').write_text(json.dumps(older))
    main(**args)
    assert made[-1].snap_mix.p==.5
    (run/'config.json').write_text(json.dumps(older | dict(mix='mixup')))
    with pytest.raises(SystemExit): main(**args)
    assert '--mix mixup there' in capsys.readouterr().err

def test_a_balanced_loss_by_plant(leaves, table, tmp_path, capsys, monkeypatch):
    "The loss counts what is trained on, its softmax is what is written, and a run goes on with its own loss and groups"
    losses,run = [],tmp_path/'run'
    def fit(o, learn):
        losses.append(learn.loss_func)
        barely(o, learn)
    monkeypatch.setattr(cli, '_fit', fit)
    args = dict(table(by_plant), folds=3, arch='test_resnet', mix='manifold', oversample='rust=2', plc=True)
    main(**args, loss='balanced', group_col='plant')
    oof,df = pd.read_csv(run/'oof.csv'),pd.read_csv(tmp_path/'t.csv')
    assert oof.groupby(df.plant).fold.nunique().max()==1 and set(oof.fold)=={0,1,2}
    vocab = json.loads((run/'config.json').read_text())['vocab']
    for k,loss in enumerate(losses):
        counts = df.label[oof.fold!=k].value_counts()[vocab].to_numpy()*np.where(np.array(vocab)=='rust', 2, 1)
        assert np.allclose(loss.func.log_share.exp(), counts/counts.sum())
    ensemble = load_ensemble(run/'ensemble')
    net,paths = ensemble.groups[0][0],[leaves/'images'/f'{o}.jpg' for o in oof.id[:8]]
    x = torch.cat([b[0] for b in ensemble.groups[0][2](paths)])
    with torch.no_grad():
        want = torch.stack([m.eval()(x).softmax(1) for m in (net.model, *ensemble.groups[0][1])]).mean(0)
    assert np.allclose(ensemble.predict(paths), want, atol=1e-4)
    config,trained = json.loads((run/'config.json').read_text()),stamps(run/'folds')
    assert (config['loss'],config['group_col'])==('balanced','plant')
    def refused(message, **kwargs):
        capsys.readouterr()
        with pytest.raises(SystemExit): main(**args, **kwargs)
        assert message in capsys.readouterr().err
    refused('--loss balanced there, ce here', group_col='plant')
    refused('--group-col plant there, None here', loss='balanced')
    main(**args, loss='balanced', group_col='plant')
    assert stamps(run/'folds')==trained

def test_a_run_of_an_earlier_version_has_cross_entropy_and_no_groups(table, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli, '_fit', barely)
    args,config = dict(table(by_plant), fold=0, folds=3, arch='test_resnet', mix='none'),tmp_path/'run'/'config.json'
    main(**args)
    said = json.loads(config.read_text())
    assert (said['loss'],said['group_col'])==('ce',None)
    config.write_text(json.dumps({k:v for k,v in said.items() if k not in ('loss','group_col')}))
    trained = stamps(tmp_path/'run'/'folds')
    main(**args)
    assert stamps(tmp_path/'run'/'folds')==trained
    with pytest.raises(SystemExit): main(**args, loss='smooth')
    assert '--loss ce there, smooth here' in capsys.readouterr().err

def test_one_fold_to_a_submission(table, test_folder, tmp_path, capsys):
    args,run = dict(table(), fold=2, folds=3, arch='test_resnet', mix='none', tta='flips', plc=True),tmp_path/'run'
    main(**args, **test_folder(label=''))
    sub,preds = pd.read_csv(run/'submission.csv'),pd.read_csv(run/'test_predictions.csv').set_index('id')
    assert sub.label.tolist()==preds.loc[sub.file].idxmax(axis=1).tolist()
    valid,labels = pd.read_csv(run/'predictions.csv'),pd.read_csv(run/'labels.csv')
    assert len(valid)==20 and not set(valid.id)&set(labels.row) and len(labels)==40
    both = preds.index.intersection(valid.id)
    # the same views
    assert len(both) and np.allclose(preds.loc[both], valid.set_index('id').loc[both, preds.columns], atol=1e-5)
    with pytest.raises(SystemExit): main(**{**args, 'fold':None})
    assert 'holds a run of one fold' in capsys.readouterr().err
    with pytest.raises(SystemExit): main(**{**args, 'plc':False})
    assert '--plc True there, False here' in capsys.readouterr().err
    main(**args, test=str(tmp_path/'test')) # others, as far as can be told
    assert not (run/'submission.csv').exists() and (run/'test_predictions.csv').exists()
    assert 'submission.csv' not in capsys.readouterr().out
    main(**args)
    assert not (run/'test_predictions.csv').exists() and (run/'labels.csv').exists()

def test_a_table_of_test_pictures(leaves, table, tmp_path, capsys):
    pd.DataFrame({'image_id': ['Train_7','Train_2']}).to_csv(tmp_path/'test.csv', index=False)
    args = dict(table(), fold=0, folds=3, arch='test_resnet', mix='none', test=str(tmp_path/'test.csv'))
    def refused(message):
        with pytest.raises(SystemExit) as e: main(**args)
        err = capsys.readouterr().err.strip().splitlines()
        assert e.value.code==2 and len(err)==1 and message in err[0] and not (tmp_path/'run').exists(), err
    refused('2 of 2 pictures of --test are pictures of --data, the first')
    (tmp_path/'links').mkdir()
    (tmp_path/'links'/'Train_7.jpg').symlink_to(leaves/'images'/'Train_7.jpg')
    shutil.copy(leaves/'images'/'Train_2.jpg', tmp_path/'links')
    args['test_images'] = str(tmp_path/'links')
    refused('1 of 2 pictures of --test are pictures of --data, the first')
    (tmp_path/'links'/'Train_7.jpg').unlink()
    noise(7).save(tmp_path/'links'/'Train_7.jpg')
    main(**args)
    assert pd.read_csv(tmp_path/'run'/'test_predictions.csv').id.tolist()==['Train_7','Train_2']
    assert '1 of 2 pictures of --test have the bytes of one of --data, the first' in capsys.readouterr().out

wrong_samples = {
    'unknown picture': (dict(ids=(3,9)), 'lacks 1 rows of the sample: Train_9'),
    'other classes':   (dict(scab=0., rost=0.), 'columns rost are no classes'),
    'one class':       (dict(rust=0.), "column 'rust' is a class: --prob-of 'rust' puts its probability there"),
    'a probability':   (dict(target=.5), "column 'target' holds 0.5, which is no class: --prob-of 'healthy' puts"),
}

@pytest.mark.parametrize('name', wrong_samples)
def test_wrong_sample(name, table, test_folder, tmp_path, capsys):
    kwargs,message = wrong_samples[name]
    with pytest.raises(SystemExit) as e: main(**table(), folds=3, arch='test_resnet', **test_folder(**kwargs))
    err = capsys.readouterr().err.strip().splitlines()
    assert e.value.code==2 and len(err)==1 and message in err[0] and not (tmp_path/'run').exists()

def test_wrong_test_pictures(table, test_folder, tmp_path, capsys):
    args = dict(table(), **test_folder())
    for change,message in ((lambda: (tmp_path/'sample.csv').unlink(), 'no such file: --sample'),
                           (lambda: (tmp_path/'test'/'Train_0.jpg').write_bytes(b'cut'),
                               '1 of 5 pictures cannot be used'),
                           (lambda: [o.unlink() for o in (tmp_path/'test').iterdir()], 'no pictures in')):
        change()
        with pytest.raises(SystemExit): main(**args)
        assert message in capsys.readouterr().err and not (tmp_path/'run').exists()
        args.pop('sample', None)

def test_equal_pictures_come_into_one_fold(leaves, table, tmp_path, capsys):
    (tmp_path/'images').mkdir()
    for i in range(60): shutil.copy(leaves/'images'/f'Train_{i}.jpg', tmp_path/'images')
    labels = pd.read_csv(leaves/'train.csv').labels.replace('multiple_diseases', 'rust')
    a = labels[labels=='rust'].index
    for i,j in zip(a[:4], a[4:8]): shutil.copy(tmp_path/'images'/f'Train_{i}.jpg', tmp_path/'images'/f'Train_{j}.jpg')
    main(**{**table(), 'images':str(tmp_path/'images')}, folds=3, arch='test_resnet', mix='none')
    fold = pd.read_csv(tmp_path/'run'/'oof.csv').fold
    assert all(fold[i]==fold[j] for i,j in zip(a[:4], a[4:8]))

def test_equal_pictures_of_a_rare_class_count_once(leaves, table, tmp_path, capsys):
    shutil.copytree(leaves/'images', tmp_path/'images')
    for i in (1,2): shutil.copy(tmp_path/'images'/'Train_0.jpg', tmp_path/'images'/f'Train_{i}.jpg')
    with pytest.raises(SystemExit):
        main(**{**table(setting('label', 'rare', slice(0,4))), 'images':str(tmp_path/'images')}, folds=3)
    err = capsys.readouterr().err
    assert "'rare' has 2 different pictures, too few for 3 folds: use --folds 2, or merge or drop that class" in err

def test_rows_are_repeated_in_training_only(table, monkeypatch):
    class Seen(Exception): pass
    def see(o, learn): raise Seen(*((dl.items.id, dl.items.label) for dl in learn.dls))
    monkeypatch.setattr(cli, '_fit', see)
    with pytest.raises(Seen) as e: main(**table(), fold=0, folds=3, arch='test_resnet', oversample='rust=3')
    (ids,labels),(valid,_) = e.value.args
    assert set(ids[labels=='rust'].value_counts())=={3} and set(ids[labels!='rust'].value_counts())=={1}
    assert not valid.duplicated().any() and not set(ids)&set(valid) and len(valid)==20

def test_names_that_a_terminal_would_obey(tmp_path, capsys):
    "A class or picture name is shown escaped, and in one piece"
    Image.fromarray(np.zeros((8,8,3), np.uint8)).save(tmp_path/'a.png')
    df = pd.DataFrame({'id': ['a','b'], 'path': [tmp_path/'a.png']*2,
        'label': ['red\x1b[31m','green\x1b]0;title\x07'], 'fold': [0,1]})
    cli._show_data(df, 0)
    with pytest.raises(SystemExit): end_command('no such file: x\x1b[2J', 2)
    shown = ''.join(capsys.readouterr())
    assert '\x1b' not in shown and '\x07' not in shown and 'red\\x1b[31m' in shown and 'x\\x1b[2J' in shown

# photographs

@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    "Drawn leaves, enlarged to 3 megapixels: two class folders, and two pictures to predict"
    root = tmp_path_factory.mktemp('drawn')
    for folder,label,numbers in (('d/rust','rust',range(5)), ('d/scab','scab',range(5, 10)), ('new','scab',(10,11))):
        (root/folder).mkdir(parents=True)
        for i in numbers:
            shape = (2048,1536) if i%2 else (1536,2048)
            draw_leaf(i, label)[0].resize(shape, Image.BILINEAR).save(root/folder/f'{i}.jpg', quality=85)
    return root

@pytest.fixture
def photos(drawn, tmp_path):
    "Arguments of a run on a copy of the photographs"
    shutil.copytree(drawn, tmp_path/'p')
    return dict(data=str(tmp_path/'p'/'d'), size=32, bs=4, epochs=2, lr=1e-3, folds=2, arch='test_resnet', mix='none',
        out=str(tmp_path/'run'))

def small_files(folder): return {f: f.stat().st_mtime_ns for f in folder.rglob('*.jpg')}

def reading(capsys): return [o for o in capsys.readouterr().out.splitlines() if o.startswith('reading')]

def test_large_photographs_are_shrunk_once(photos, tmp_path, capsys):
    run,new = tmp_path/'run',tmp_path/'p'/'new'
    main(**photos, test=str(new))
    small = small_files(run/'pictures')
    said = reading(capsys)
    assert len(small)==10 and len(said)==1 and said[0].startswith(
        f"reading from 10 small pictures in {run/'pictures'} (")
    trained,preds = stamps(run/'folds'),pd.read_csv(run/'test_predictions.csv').set_index('id')
    again = load_ensemble(run/'ensemble').predict(sorted(new.iterdir()))
    assert np.allclose(again, preds.loc[['10.jpg','11.jpg']], atol=1e-5)
    main(**photos)
    assert small_files(run/'pictures')==small and len(reading(capsys))==1
    shutil.rmtree(run/'pictures')
    main(**photos, test=str(new)) # no fold is left to train, for which to shrink pictures
    assert stamps(run/'folds')==trained and not (run/'pictures').exists()
    assert reading(capsys)==['reading photographs of 3.1 megapixels at 1/8 scale']
    assert np.allclose(pd.read_csv(run/'test_predictions.csv').set_index('id'), preds, atol=1e-5)

def test_without_a_cache_the_networks_are_much_the_same(photos, tmp_path, capsys):
    main(**photos)
    capsys.readouterr()
    main(**{**photos, 'out':str(tmp_path/'other')}, no_cache=True)
    assert reading(capsys)==['reading photographs of 3.1 megapixels at 1/8 scale']
    assert 'pictures' not in shown(tmp_path/'other')
    a,b = (pd.read_csv(tmp_path/o/'oof.csv')[['rust','scab']] for o in ('run','other'))
    assert 0<abs(a-b).max().max()<.1
    trained = stamps(tmp_path/'other')
    main(**{**photos, 'out':str(tmp_path/'other')}) # the cache is no other run
    assert stamps(tmp_path/'other'/'folds').items()<=trained.items()

def test_one_pass_is_not_worth_a_cache(photos, tmp_path, capsys):
    main(**{**photos, 'epochs':1, 'fold':0})
    assert reading(capsys)==['reading photographs of 3.1 megapixels at 1/8 scale']
    assert not (tmp_path/'run'/'pictures').exists()

def test_a_cache_among_the_pictures_is_no_class(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli, '_fit', barely)
    cache = tmp_path/'p'/'d'/'small'
    main(**photos, cache=str(cache))
    small = small_files(cache)
    main(**{**photos, 'out':str(tmp_path/'other')}, cache=str(cache))
    assert len(small)==10 and small_files(cache)==small
    assert json.loads((tmp_path/'other'/'config.json').read_text())['vocab']==['rust','scab']
    assert 'pictures' not in shown(tmp_path/'run')+shown(tmp_path/'other')

@pytest.fixture
def refused(photos, capsys):
    "The command ends with one line that has `message`, and nothing else on standard error"
    def run(message, **kwargs):
        capsys.readouterr()
        with pytest.raises(SystemExit) as e: main(**{**photos, **kwargs})
        err = capsys.readouterr().err.strip().splitlines()
        assert e.value.code==2 and len(err)==1 and message in err[0], err
        return err[0]
    return run

def test_caches_that_will_not_do(photos, refused, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, '_fit', lambda o, learn: pytest.fail('trained'))
    (tmp_path/'file').write_text('')
    for cache,message in ((tmp_path/'file','file cannot be written (File exists)'),
                          (tmp_path/'file'/'x','x cannot be written (Not a directory)'),
                          (tmp_path/'p'/'new','new is no cache of pictures, it holds 1')):
        assert '--cache names the folder, --no-cache does without' in refused(message, cache=str(cache))
    refused('give one of them', cache=str(tmp_path/'x'), no_cache=True)
    refused('is the folder of the run: give another', cache=photos['out'])
    assert not (tmp_path/'run').exists()
    mkdir = pictures.Path.mkdir
    def denied(self, *args, **kwargs):
        if self.name=='secret': raise PermissionError(errno.EACCES, 'Permission denied', str(self))
        return mkdir(self, *args, **kwargs)
    monkeypatch.setattr(pictures.Path, 'mkdir', denied)
    refused('secret cannot be written (Permission denied)', cache=str(tmp_path/'secret'))
    assert not (tmp_path/'run').exists()

def test_a_disk_that_is_full_while_pictures_are_shrunk(photos, refused, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, '_fit', barely)
    fsync,run = os.fsync,tmp_path/'run'
    def full(fd):
        if len(small_files(run))==4: raise OSError(errno.ENOSPC, 'No space left on device')
        fsync(fd)
    monkeypatch.setattr(os, 'fsync', full)
    refused(f"the disk of {run/'pictures'} is full: free some and call again, or give a folder on another disk; --c")
    monkeypatch.setattr(os, 'fsync', fsync)
    small = small_files(run)
    assert 4<=len(small)<10 and shown(run)==['pictures']
    main(**photos)
    assert small.items()<small_files(run).items() and (run/'oof.csv').exists()

def test_interrupted_while_pictures_are_shrunk(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli, '_fit', barely)
    def interrupted(*args): raise KeyboardInterrupt
    for name in ('_write','write_atomic'): # between two pictures, and before the folder is marked as a cache
        shutil.rmtree(tmp_path/'run', ignore_errors=True)
        with monkeypatch.context() as m, pytest.raises(SystemExit) as e:
            m.setattr(pictures, name, interrupted)
            main(**photos)
        assert e.value.code==130 and 'nothing has been trained' in capsys.readouterr().err
        assert shown(tmp_path/'run')==['pictures']
        main(**photos)
        assert len(small_files(tmp_path/'run'))==10 and (tmp_path/'run'/'oof.csv').exists()

@pytest.mark.parametrize('no_cache', [False,True])
def test_photographs_that_vanish(photos, refused, tmp_path, monkeypatch, no_cache):
    file,(owner,name) = tmp_path/'p'/'d'/'rust'/'1.jpg',(cli,'_fit') if no_cache else (pictures,'_fill')
    todo = barely if no_cache else pictures._fill
    def gone(*args, **kwargs):
        file.unlink()
        return todo(*args, **kwargs)
    monkeypatch.setattr(owner, name, gone)
    refused(f'{file} cannot be read (No such file or directory)' if no_cache
        else f'1 of 10 pictures cannot be used: {file} missing', no_cache=no_cache)

def test_a_run_of_an_earlier_version_goes_on_with_whole_pictures(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli, '_fit', barely)
    main(**photos, no_cache=True)
    config = tmp_path/'run'/'config.json'
    old = {k:v for k,v in json.loads(config.read_text()).items() if k not in ('scaled','cache','no_cache')}
    config.write_text(json.dumps(old))
    shutil.rmtree(tmp_path/'run'/'folds'/'fold_1')
    opened,create = [],cli.PILImage.create
    monkeypatch.setattr(cli.PILImage, 'create', lambda f: opened.append(str(f)) or create(f))
    capsys.readouterr()
    for _ in range(2):
        main(**photos)
        assert not reading(capsys) and len(set(opened))==10 and json.loads(config.read_text())['scaled'] is False
    assert not (tmp_path/'run'/'pictures').exists()

def test_a_log_has_a_line_for_each_epoch_and_no_bars(table, tmp_path, capsys):
    main(**{**table(), 'epochs':6}, split_col='split', arch='test_resnet', mix='none')
    out = capsys.readouterr().out
    assert '█' not in out and '%' not in out and '\r' not in out and len(out)<4096
    assert len([o for o in out.splitlines() if re.match(r'\d+ +\d+\.\d+ +\d+\.\d+ ', o)])==6
    assert out.count('train_loss')==1

def test_epochs_and_scores_have_the_same_names(table, tmp_path, capsys):
    main(**table(), split_col='split', arch='test_resnet', mix='none')
    epochs,said = pd.read_csv(tmp_path/'run'/'history.csv'),json.loads((tmp_path/'run'/'config.json').read_text())
    assert [epochs[k].iloc[-1] for k in ('accuracy','macro_f1')]==pytest.approx([said['accuracy'],said['macro_f1']])
    assert 'accuracy  macro_f1' in capsys.readouterr().out and 'f1_score' not in epochs

def test_decisions_are_trained_on_and_trusted(table, tmp_path, capsys, monkeypatch):
    args,made,make = dict(table(), folds=2, arch='test_resnet', mix='none', plc=True),[],cli.make_learner
    df,decisions = pd.read_csv(tmp_path/'t.csv', dtype=str),DecisionFile(tmp_path/'decisions.csv')
    (changed,given),(dropped,_),(kept,label) = df[['image_id','label']].iloc[:3].itertuples(index=False)
    other = next(o for o in df.label if o!=given)
    decisions.add(changed, given, 'other', other)
    decisions.add(dropped, df.label[1], 'drop')
    decisions.add(kept, label, 'keep', label)
    monkeypatch.setattr(cli, 'make_learner', lambda *a, **k: made.append(make(*a, **k)) or made[-1])
    main(**args, decisions=str(tmp_path/'decisions.csv'))
    assert '1 label changed, 1 row dropped' in capsys.readouterr().out
    oof = pd.read_csv(tmp_path/'run'/'oof.csv', dtype={'id':str}).set_index('id')
    assert len(oof)==59 and dropped not in oof.index and oof.label[changed]==other and oof.label[kept]==label
    assert made and all(o.progressive_label_correction.protect==[changed,kept] for o in made)
    for wrong in ('none.csv','t.csv'):
        with pytest.raises(SystemExit): main(**args, decisions=str(tmp_path/wrong))
        assert f'{wrong}' in capsys.readouterr().err.splitlines()[-1]

def test_a_run_that_is_stopped_says_what_is_there(table, tmp_path, capsys, monkeypatch):
    args,fit = dict(table(), folds=3, arch='test_resnet', mix='none'),cli._fit
    def stop(opts, learn):
        if learn.path.name=='fold_1': raise KeyboardInterrupt
        fit(opts, learn)
    monkeypatch.setattr(cli, '_fit', stop)
    with pytest.raises(SystemExit) as e: main(**args)
    text = (tmp_path/'run'/'stopped.txt').read_text()
    assert e.value.code==130 and 'folds trained: 0\nfolds begun: 1\n' in text
    assert f"fastai-mix --data {tmp_path/'t.csv'}" in text.splitlines()[-1]
    monkeypatch.setattr(cli, '_fit', fit)
    main(**args)
    assert not (tmp_path/'run'/'stopped.txt').exists()

def test_weights_are_on_the_disk_once(table, tmp_path):
    main(**table(), fold=0, folds=3, arch='test_resnet', mix='none')
    run,read = tmp_path/'run',lambda: load_ensemble(tmp_path/'run'/'ensemble').groups[0][0].model.state_dict()
    fold,*others = (run/'folds'/'fold_0'/'model.safetensors'),(run/'model.safetensors'),*(run/'ensemble').glob('*.safetensors')
    assert len(others)==2 and all(o.samefile(fold) for o in others)
    shutil.copytree(run, tmp_path/'copy') # where each has a file of its own
    weights = read()
    (run/'folds'/'fold_0'/'model.safetensors').unlink()
    assert all(torch.equal(v, read()[k]) for k,v in weights.items())

def test_a_rare_class_is_trained_on_and_predicted_in_no_fold(table, test_folder, tmp_path, capsys):
    change = setting('label', 'rare', slice(0,2))
    main(**table(change), folds=3, arch='test_resnet', mix='none', rare='train', test=test_folder()['test'])
    oof = pd.read_csv(tmp_path/'run'/'oof.csv')
    assert (oof.fold==-1).sum()==2 and oof.rare[oof.fold==-1].isna().all() and oof.rare[oof.fold>=0].notna().all()
    assert 'rare' in pd.read_csv(tmp_path/'run'/'test_predictions.csv') and 'train only' in capsys.readouterr().out
    assert (tmp_path/'run'/'report.html').exists()

def test_protected_labels_are_not_corrected(table, tmp_path, capsys, monkeypatch):
    args,made,make = dict(table(), folds=2, arch='test_resnet', mix='none', plc=True),[],cli.make_learner
    monkeypatch.setattr(cli, 'make_learner', lambda *a, **k: made.append(make(*a, **k)) or made[-1])
    ids = pd.read_csv(tmp_path/'t.csv', dtype=str).image_id[:7]
    ids.to_frame().to_csv(tmp_path/'trusted.csv', index=False)
    main(**args, protect=str(tmp_path/'trusted.csv'))
    assert made and all(o.progressive_label_correction.protect==ids.tolist() for o in made)
    labels = pd.read_csv(tmp_path/'run'/'labels.csv', index_col=0)
    assert (labels.loc[ids].times==0).all()
    pd.DataFrame(dict(image_id=['none'])).to_csv(tmp_path/'other.csv', index=False)
    with pytest.raises(SystemExit): main(**dict(args, out=str(tmp_path/'run2')), protect=str(tmp_path/'other.csv'))
    assert "names 1 picture that --data does not have, the first 'none'" in capsys.readouterr().err

def test_a_sample_of_one_probability(table, test_folder, tmp_path):
    args = dict(table(), fold=0, folds=3, arch='test_resnet', mix='none', prob_of='rust')
    main(**args, **test_folder(target=.5))
    sub,probs = (pd.read_csv(tmp_path/'run'/f'{o}.csv') for o in ('submission','test_predictions'))
    assert np.allclose(sub.target, probs.set_index('id').rust[sub.file])

def test_views_of_one_fold_are_named(table, capsys):
    main(**table(), fold=0, folds=3, arch='test_resnet', mix='none', tta='flips', compare='ema')
    out = capsys.readouterr().out
    assert 'averaged over the views of --tta flips' in out and 'without the views of --tta flips' in out

def test_a_command_that_is_stopped_before_its_run_says_nothing_in_that_of_another(table, tmp_path, monkeypatch):
    args = dict(table(), fold=0, folds=3, arch='test_resnet', mix='none')
    main(**args)
    def stop(*args): raise KeyboardInterrupt
    monkeypatch.setattr(cli, '_check_out', stop)
    with pytest.raises(SystemExit) as e: main(**dict(args, bs=4))
    assert e.value.code==130 and not (tmp_path/'run'/'stopped.txt').exists()
    monkeypatch.setattr(cli, 'check_options', stop)
    with pytest.raises(SystemExit) as e: main(**dict(args, mix=None, bs=4))
    assert e.value.code==130 and not (tmp_path/'run'/'stopped.txt').exists()
