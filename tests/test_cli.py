"The command: what it writes, and what it says to wrong input."
import json
import os
import shutil
import unicodedata
import zipfile
import zlib

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from fastai_mix import cli
from fastai_mix.cli import fold_data, main, read_data, read_oversample, read_test
from fastai_mix.crossval import CrossVal, load_ensemble
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
        return dict(data=str(tmp_path/'t.csv'), images=str(leaves/'images'), size=32, bs=8, epochs=1, lr=1e-3, out=str(tmp_path/'run'))
    return write

def shown(folder): return sorted(o.name for o in folder.iterdir() if o.name[0]!='.')

def test_csv_with_split_from_weights(leaves, table, tmp_path, capsys):
    torch.manual_seed(0)
    body = timm.create_model('resnet10t').state_dict()
    save_file(body, tmp_path/'w.safetensors')
    main(**table(), split_col='split', arch='resnet10t', weights=str(tmp_path/'w.safetensors'))
    run = tmp_path/'run'
    assert shown(run)==['config.json','confusion.png','ensemble','folds','history.csv','mix.png','model.safetensors','predictions.csv']
    preds,config,history = pd.read_csv(run/'predictions.csv'),json.loads((run/'config.json').read_text()),pd.read_csv(run/'history.csv')
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
    main(**table(), split_col='split', arch='resnet10t', weights=str(tmp_path/'w.safetensors')) # nothing is left to train
    assert stamps(run/'folds')==trained
    capsys.readouterr()
    with pytest.raises(SystemExit): main(**table(), split_col='split', mix='none', arch='resnet10t')
    assert '--mix snapmix there, none here' in capsys.readouterr().err and (run/'mix.png').exists()

def test_names_and_labels_as_they_are_written(leaves, tmp_path):
    d,jpg = tmp_path/'d',(leaves/'images'/'Train_0.jpg').read_bytes()
    (d/'images'/'sub').mkdir(parents=True)
    for n in ('leaf_1.jpg','leaf_1.2.jpg','img[1].jpg','NA.jpg','sub/a.png'): (d/'images'/n).write_bytes(jpg)
    (d/'t.csv').write_text('image_id,label\nleaf_1,01\nleaf_1.2,None\nimg[1],01\nNA,None\nsub/a,1\nleaf_1.2.jpg,1\n')
    df = read_data(d/'t.csv')
    assert [str(o.relative_to(d/'images')) for o in df.path]==['leaf_1.jpg','leaf_1.2.jpg','img[1].jpg','NA.jpg','sub/a.png','leaf_1.2.jpg']
    assert df.label.tolist()==['01','None','01','None','1','1']
    (d/'t.csv').write_text(f'image_id,label\nleaf_1,a\n{tmp_path}/no.jpg,b\n')
    with pytest.raises(ValueError, match='no.jpg'): read_data(d/'t.csv')

def test_a_folder_that_cannot_be_made_is_known_before_training(table, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli, '_fit', lambda o, learn: pytest.fail('trained'))
    (tmp_path/'file').write_text('')
    with pytest.raises(SystemExit): main(**{**table(), 'arch':'resnet10t', 'out':str(tmp_path/'file'/'run')})
    assert 'cannot be made: Not a directory' in capsys.readouterr().err

def test_folder_of_classes(leaves, tmp_path):
    df = pd.read_csv(leaves/'train.csv')
    for i,label in zip(df.image_id, df.labels):
        if label=='multiple_diseases': continue
        (tmp_path/'d'/label).mkdir(parents=True, exist_ok=True)
        (tmp_path/'d'/label/f'{i}.jpg').write_bytes((leaves/'images'/f'{i}.jpg').read_bytes())
    main(data=str(tmp_path/'d'), size=32, bs=8, epochs=1, folds=3, fold=2, arch='resnet10t', out=str(tmp_path/'run'))
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
        with pytest.raises(Enough): main(**table(), arch='resnet10t', mix=mix)

def test_a_model_may_have_a_tag(table, monkeypatch):
    class Enough(Exception): pass
    def stop(o): raise Enough
    monkeypatch.setattr(cli, '_make_out', stop)
    with pytest.raises(Enough): main(**table(), arch='resnet18.a1_in1k')

def test_folders_of_a_split_are_no_classes(leaves, tmp_path):
    for k in ('train','valid'):
        (tmp_path/'d'/k/'rust').mkdir(parents=True)
        shutil.copy(leaves/'images'/'Train_0.jpg', tmp_path/'d'/k/'rust')
    with pytest.raises(ValueError, match='are train, valid and no classes: give --data .*train'): read_data(tmp_path/'d')

def barely(o, learn):
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)

def test_the_search_for_a_rate_writes_nothing_elsewhere(table, tmp_path, monkeypatch):
    (tmp_path/'here').mkdir()
    (tmp_path/'here'/'models').write_text('a file where fastai would have its folder')
    monkeypatch.chdir(tmp_path/'here')
    monkeypatch.setattr(cli, '_fit', barely)
    args = dict(table(), lr=None, arch='resnet10t', mix='none', fold=0, folds=3)
    main(**args)
    assert [o.name for o in (tmp_path/'here').iterdir()]==['models'] and {o.name for o in (tmp_path/'run').iterdir() if o.name[0]=='.'}<={'.lock'}

# ---- what could be read in two ways

def noise(seed=0, size=(48,40)):
    "A picture with structure of its own"
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (6,6,3), dtype=np.uint8)).resize(size, Image.BICUBIC)

@pytest.fixture
def folders(tmp_path):
    "Class folders with three pictures each, all different"
    def make(*names, root='d', n=3):
        for name in names:
            (tmp_path/root/name).mkdir(parents=True)
            for i in range(n): noise(zlib.crc32(f'{name} {i}'.encode())).save(tmp_path/root/name/f'{i}.png')
        return tmp_path/root
    return make

@pytest.fixture
def csv(tmp_path):
    "A CSV of given text, and pictures of given names, all different"
    def make(text, *names, file='t.csv'):
        (tmp_path/file).parent.mkdir(exist_ok=True)
        (tmp_path/file).write_text(text, encoding='utf-8')
        for i,n in enumerate(names):
            (tmp_path/n).parent.mkdir(parents=True, exist_ok=True)
            noise(i).save(tmp_path/n)
        return tmp_path/file
    return make

@pytest.mark.parametrize('names', [('Training','Testing'), ('Train','Val'), ('TRAIN','test'), ('train_set','test_set'), ('trn','tst'), ('trainset','hold-out'),
    ('images_train','images_val'), ('train2017','val2017'), ('train','dev','eval'), ('Train Data','Validation Data')])
def test_folders_of_a_split_in_any_spelling_are_no_classes(folders, names):
    d = folders(*names)
    train = next(o for o in names if 'tr' in o.lower())
    with pytest.raises(ValueError, match=f'and no classes: give --data {d/train}'): read_data(d)

@pytest.mark.parametrize('names', [('train','bus'), ('trainer','tester'), ('test','val'), ('train','testament')])
def test_classes_whose_names_are_like_parts_of_a_split(folders, names): assert set(read_data(folders(*names)).label)==set(names)

def test_folders_of_runs_are_no_classes(folders, tmp_path, capsys):
    d = folders('cat','dog','mine','.cache','run')
    (d/'mine'/'config.json').write_text(json.dumps(dict(size=32, versions=dict(fastai_mix='0.1'))))
    (d/'cat'/'config.json').write_text(json.dumps(dict(versions=1)))
    (d/'dog'/'config.json').write_text('[]')
    df = read_data(d, out=d/'run')
    assert set(df.label)=={'cat','dog'} and len(df)==6
    assert {o.split(' ')[0] for o in capsys.readouterr().out.splitlines()}=={str(d/'mine'),str(d/'run')}
    assert len(read_test(d, out=d/'run'))==6

def test_the_same_command_again_in_the_folder_of_the_pictures(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(folders('cat','dog', n=8))
    monkeypatch.setattr(cli, '_fit', barely)
    for _ in range(2):
        main(data='.', size=32, bs=4, epochs=1, lr=1e-3, folds=2, fold=0, arch='resnet10t', mix='none')
        assert len(pd.read_csv('fastai-mix-run/predictions.csv'))==8 and json.loads(open('fastai-mix-run/config.json').read())['vocab']==['cat','dog']

def test_another_config_is_not_of_a_run(table, tmp_path, capsys):
    (tmp_path/'run').mkdir()
    for text in ('{"versions": 3}', '[]', 'not json'):
        (tmp_path/'run'/'config.json').write_text(text)
        with pytest.raises(SystemExit): main(**table())
        assert 'holds something that is not a run of fastai-mix' in capsys.readouterr().err

def test_pictures_beside_class_folders(folders):
    d = folders('cat','dog')
    noise().save(d/'a.png')
    with pytest.raises(ValueError, match="1 of 7 pictures in .* are in no class folder, the first 'a.png'"): read_data(d)

def test_links_lead_to_each_file_once(folders, tmp_path):
    d = folders('cat','dog')
    other,more = folders('x', root='other'),folders('y', root='more')
    def link(at, to): (d/at).symlink_to(to, target_is_directory=to.is_dir())
    link('cat/up', d)                    # to what is around it
    link('cat/self', d/'cat')
    link('cat/far', d.parent)
    link('cat/dogs', d/'dog')            # to another class, and back
    link('dog/cats', d/'cat')
    link('cat/out', other/'x')           # outside, twice, with a loop of its own
    link('cat/out2', other/'x')
    (other/'x'/'loop').symlink_to(other, target_is_directory=True)
    (other/'x'/'back').symlink_to(d/'dog', target_is_directory=True)
    link('cat/a.png', d/'cat'/'0.png')   # one more name
    link('bird', more/'y')               # a class of its own
    df = read_data(d)
    assert df.label.value_counts().to_dict()==dict(cat=6, dog=3, bird=3)
    assert [o for o in df.id if o.startswith('cat')]==[f'cat/{i}.png' for i in range(3)]+[f'cat/out/{i}.png' for i in range(3)]
    assert len(read_test(d))==12 and len({os.path.realpath(o) for o in df.path})==12

def test_a_file_linked_into_two_classes_is_said(folders, capsys):
    d = folders('cat','dog')
    (d/'dog'/'z.png').symlink_to(d/'cat'/'1.png')
    df = read_data(d)
    assert df.label.tolist()==['cat']*3+['dog']*4
    cli._show_conflicts(df)
    out = capsys.readouterr().out
    assert out.startswith('1 pictures have several labels') and f"{d/'cat'/'1.png'} 'cat' and {d/'dog'/'z.png'} 'dog'" in out

@pytest.mark.parametrize('a,b,shown', [('cat','cat ',"'cat' and 'cat '"), (' cat','cat',"' cat' and 'cat'"), ('cat','cat\u200b',r"'cat' and 'cat\\u200b'"),
    ('caf\u00e9','cafe\u0301',r"'cafe\\u0301' and 'caf\\xe9'"), ('a b','a\u00a0b',r"'a b' and 'a\\xa0b'"), ('a  b','a b',"'a  b' and 'a b'")])
def test_classes_that_look_the_same(csv, folders, a, b, shown):
    file = csv(f'image_id,label\np0,"{a}"\np1,"{b}"\np2,dog\n', 'p0.png', 'p1.png', 'p2.png')
    for data in (file, folders(a, b, 'dog')):
        with pytest.raises(ValueError, match=f'{shown} are two classes that look the same: '): read_data(data)

def test_classes_that_differ_in_case(csv, capsys):
    assert read_data(csv('image_id,label\np0,A\np1,a\n', 'p0.png', 'p1.png')).label.tolist()==['A','a']
    assert capsys.readouterr().out=="'A' and 'a' are two classes, though only the case of letters differs\n"

def test_one_name_for_two_files(csv):
    file = csv('image_id,label\ns1,a\ns2,b\n', 's1.tif', 's1.png', 's2.png')
    with pytest.raises(ValueError, match="'s1' may be s1.png or s1.tif: write the ending"): read_data(file)
    csv('image_id,label\ns1.tif,a\ns2,b\n')
    assert [o.name for o in read_data(file).path]==['s1.tif','s2.png']
    csv('image_id,label\ns2,a\ns1.tif,b\n', 'images/s2.jpg')
    with pytest.raises(ValueError, match="'s2' may be s2.png or images/s2.jpg"): read_data(file)
    csv(f'image_id,label\n{file.parent}/s1,a\ns1.tif,b\n')
    with pytest.raises(ValueError, match="may be s1.png or s1.tif"): read_data(file)

def test_names_in_either_normal_form(csv, tmp_path):
    nfc,nfd = (unicodedata.normalize(o, 'caf\u00e9') for o in ('NFC','NFD'))
    file = csv(f'image_id,label\n{nfc},a\n{nfd}2.png,b\n{nfd}/3,a\n', f'{nfd}.png', f'{nfc}2.png', f'{nfc}/3.png')
    assert [o.relative_to(tmp_path).as_posix() for o in read_data(file).path]==[f'{nfd}.png',f'{nfc}2.png',f'{nfc}/3.png']
    sample = csv(f'file,a,b\n{nfc},0,0\n', f'test/{nfd}.png', file='sample.csv')
    assert read_test(tmp_path/'test', sample=sample).id.tolist()==[nfc]

@pytest.mark.parametrize('name,shown', [('p0 ',"'p0 '"), ('p0.png ',"'p0.png '"), (' p0.png',"' p0.png'"), ('p0 .png',"'p0 .png'"), ('P0',"'P0'"),
    ('p0.jpg',"'p0.jpg'"), ('p0\u200b',r"'p0\\u200b'")])
def test_a_name_that_looks_like_that_of_a_file(csv, name, shown):
    file = csv(f'image_id,label\n{name},a\np1,b\n', 'p0.png', 'p1.png')
    with pytest.raises(ValueError, match=f"1 of 2 pictures in .*t.csv are not there; {shown} looks like 'p0.png'"): read_data(file)

def test_absolute_names_and_home(csv, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    file = csv(f'image_id,label\n{tmp_path}/p0.png,a\n{tmp_path}/p1,b\n~/in/p2,a\n', 'p0.png', 'p1.png', 'in/p2.png', file='in/t.csv')
    assert [o.name for o in read_data(file).path]==['p0.png','p1.png','p2.png']
    csv('image_id,label\n~p2,a\n'+'x'*300+',b\n', 'in/~p2.png', file='in/t.csv')
    with pytest.raises(ValueError, match='1 of 2 pictures cannot be used.*missing .File name too long'): read_data(file)

def test_home_in_options(folders, tmp_path, monkeypatch):
    class Enough(Exception): pass
    def stop(o): raise Enough(o)
    folders('cat','dog', n=8)
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setattr(cli, '_make_out', stop)
    with pytest.raises(Enough) as e: main(data='~/d', size=32, bs=4, folds=2, fold=0, arch='resnet10t', out='~/run')
    assert e.value.args[0].out==tmp_path/'run'

tables = {
    'empty':            ('', 't.csv is empty'),
    'blank lines':      ('\n\n', 't.csv is empty'),
    'header only':      ('image_id,label\n', 't.csv has a header, but no rows'),
    'no header':        (',,\np0,a\n', 'has no names of columns'),
    'ragged':           ('image_id,label\np0,a\np1,b,c\n', "1 rows of .*t.csv have more cells than its header has columns, the first 'p1,b,c'"),
    'commas in labels': ('image_id,label\np0,a, b\np1,b, c\n', "2 rows of .*t.csv have more cells .* the first 'p0,a, b': put cells with commas into quotes"),
    'open quote':       ('image_id,label\np0,"a\np1,b\n', 't.csv is no CSV with commas'),
    'semicolons':       ('image_id;label\np0;a\np1;b\n', "t.csv has ';' between its columns: save it with commas"),
    'tabs':             ('image_id\tlabel\np0\ta\np1\tb\n', r"t.csv has '\\t' between its columns: save it with commas"),
    'column twice':     ('image_id,label,label\np0,a,b\np1,b,a\n', "t.csv has 2 columns 'label': give them different names"),
    'no such column':   ('file,label\np0,a\n', "t.csv has no column 'image_id': it has 'file', 'label'; --image-col"),
    'blank label':      ('image_id,label\np0,a\np1, \n', "1 of 2 rows have no label in 'label'"),
}

@pytest.mark.parametrize('name', tables)
def test_a_csv_that_is_none(name, csv):
    text,message = tables[name]
    with pytest.raises(ValueError, match=message) as e: read_data(csv(text, 'p0.png', 'p1.png'))
    assert '\n' not in str(e.value)

@pytest.mark.parametrize('text', ['image_id,label,\np0,a,\np1,b,\n', 'image_id,label\np0,a,\np1,b,\n', 'image_id,label\np0,a,, \np1,b\n', '\ufeffimage_id,label\np0,a\np1,b\n',
    ',image_id,label\n0,p0,a\n1,p1,b\n', 'x,x,image_id,label\n1,2,p0,a\n1,2,p1,b\n', '"image_id","label","a;b"\r\n"p0","a","x\ny"\r\n"p1","b"\r\n'])
def test_a_csv_that_is_one(text, csv):
    df = read_data(csv(text, 'p0.png', 'p1.png'))
    assert df.id.tolist()==['p0','p1'] and df.label.tolist()==['a','b']

def test_data_of_another_kind(csv, folders, tmp_path, capsys):
    file = csv('image_id,label\np0,a\n', 'p0.png', 'p1.png')
    for name,names in (('pictures.zip',('p0.png','p1.png')), ('one.zip',('p0.png',))):
        with zipfile.ZipFile(tmp_path/name, 'w') as z:
            for o in names: z.write(tmp_path/o, o)
    (tmp_path/'t.tar.gz').write_bytes(b'\x1f\x8b cut')
    (tmp_path/'t.txt').write_text('a/1.png 0\na/2.png 1\n')
    (tmp_path/'t.xlsx').write_bytes(b'PK\x03\x04\xff\xfe')
    for data,message in (('pictures.zip','is an archive: unpack it'), ('one.zip','is an archive: unpack it'), ('t.tar.gz','is an archive: unpack it'), ('p0.png','is a picture'),
                         ('t.txt',"has no column 'image_id' or 'label'"), ('t.xlsx','is not in UTF-8')):
        for args in (dict(data=str(tmp_path/data)), dict(data=str(folders('cat','dog', root=data+'d')), test=str(tmp_path/data))):
            with pytest.raises(SystemExit) as e: main(**args, size=32, bs=2, folds=2, fold=0, arch='resnet10t', out=str(tmp_path/'run'))
            err = capsys.readouterr().err.strip().splitlines()
            assert e.value.code==2 and len(err)==1 and (message if 'test' not in args else message.split(' or ')[0]) in err[0] and data in err[0], err

def test_a_sample_that_is_no_csv(table, test_folder, tmp_path, capsys):
    args = dict(table(), folds=3, arch='resnet10t', **test_folder())
    for text,message in (('', 'sample.csv is empty'), ('file;scab;rust\nTrain_3;0;0\n', "sample.csv has ';' between its columns"), ('file,rust,rust\nTrain_3,0,0\n', "2 columns 'rust'"),
                         ('file,scab,rust,healthy\nTrain_3,0,0,0,1\n', 'more cells than its header')):
        (tmp_path/'sample.csv').write_text(text)
        with pytest.raises(SystemExit) as e: main(**args)
        err = capsys.readouterr().err.strip().splitlines()
        assert e.value.code==2 and len(err)==1 and message in err[0] and not (tmp_path/'run').exists(), err

def split_of(values): return pd.DataFrame({'label': list('ab')*(len(values)//2), 'split': values})

def test_values_of_a_split_in_any_spelling(capsys):
    df = fold_data(split_of(['Train','train ','TRAIN','training','trn','train','Test',' test ','TESTING','tst','test','test-set']))
    assert df.fold.tolist()==[-1]*6+[0]*6 and capsys.readouterr().out==''

def test_rows_of_a_third_part_are_counted(capsys):
    df = fold_data(split_of(['train']*4+['valid','Valid']+[np.nan]*2+['test']*4))
    assert df.index.tolist()==[0,1,2,3,8,9,10,11] and df.fold.tolist()==[-1]*4+[0]*4
    assert capsys.readouterr().out=="4 of 12 rows are neither 'train' nor 'test' and left out: 'valid', 'Valid', nothing\n"
    assert fold_data(split_of(['train']*2+['validation']*2)).fold.tolist()==[-1,-1,0,0]

def test_a_split_that_says_what_it_cannot_mean():
    with pytest.raises(ValueError, match="says 'tarin' in 2 of 10 rows: expected 'train' and 'test', or nothing"): fold_data(split_of(['train']*4+['tarin']*2+['test']*4))

def test_pictures_whose_content_is_lost_are_refused(folders, tmp_path, capsys):
    d = folders('cat','dog', n=4)
    deep = np.asarray(noise().convert('L')).astype(np.uint16)*200+300
    Image.fromarray(deep).save(d/'dog'/'1.png')
    args = dict(data=str(d), size=32, bs=2, folds=2, fold=0, epochs=1, lr=1e-3, arch='resnet10t', mix='none', out=str(tmp_path/'run'))
    with pytest.raises(SystemExit) as e: main(**args)
    err = capsys.readouterr().err.strip().splitlines()
    assert e.value.code==2 and len(err)==1 and not (tmp_path/'run').exists()
    assert f"1 of 8 pictures cannot be used: {d/'dog'/'1.png'} lost in RGB (mode I;16 with values" in err[0] and 'save it with 8 bits' in err[0]

def test_a_picture_with_two_labels_is_said(leaves, table, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli, '_fit', barely)
    shutil.copytree(leaves/'images', tmp_path/'images')
    labels = pd.read_csv(leaves/'train.csv').labels.replace('multiple_diseases', 'rust')
    i,j = labels[labels=='rust'].index[0],labels[labels=='scab'].index[0]
    shutil.copy(tmp_path/'images'/f'Train_{i}.jpg', tmp_path/'images'/f'Train_{j}.jpg')
    args = dict(table(lambda t: pd.concat([t, t[t.label=='healthy'][:1].assign(label='scab')])), arch='resnet10t', fold=0, folds=3, mix='none')
    main(**{**args, 'images': str(tmp_path/'images')})
    out = capsys.readouterr().out.splitlines()
    said = [o for o in out if 'several labels' in o]
    assert len(said)==1 and said[0].startswith('2 pictures have several labels, the first ')

def test_images_without_a_csv(folders, leaves, tmp_path, capsys):
    d = folders('cat','dog', n=4)
    for more,message in ((dict(images=str(leaves/'images')), '--images names the folder'), (dict(test_images=str(d)), '--test-images names the folder'),
                         (dict(test_images=str(d), test=str(d)), '--test-images names the folder')):
        with pytest.raises(SystemExit): main(data=str(d), size=32, bs=2, folds=2, fold=0, arch='resnet10t', out=str(tmp_path/'run'), **more)
        assert message in capsys.readouterr().err

@pytest.mark.parametrize('text,value', [('a,b=3',{'a,b':3.}), ('a,b=3,c=2',{'a,b':3.,'c':2.}), ('c=2,a,b=3',{'a,b':3.,'c':2.}), ('x=1=1.5,c=2',{'x=1':1.5,'c':2.}), ('c=2',{'c':2.}), ('7',7)])
def test_oversample_of_classes_with_commas(text, value): assert read_oversample(text, ['a,b','c','x=1'])==value

def test_oversample_of_what_is_no_class(table, capsys):
    with pytest.raises(ValueError, match="expected class=3.*; the classes are 'c', 'd'"): read_oversample('a,b=3', ['c','d'])
    with pytest.raises(ValueError, match='may be .* or .*: rename a class'): read_oversample('a=3,b=2', ['a','b','a=3,b'])
    with pytest.raises(SystemExit): main(**table(), arch='resnet10t', fold=0, folds=3, oversample='rost=3')
    assert "oversample names 'rost', but the classes to train on are 'healthy', 'rust', 'scab'" in capsys.readouterr().err

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
    'few of a class':     (dict(fold=0, folds=3), setting('label', 'rare', slice(0,2)), "'rare' has 2 rows, too few for 3 folds: use --folds 2"),
    'class named id':     (dict(), setting('label', 'id', slice(0,20)), "a class is called 'id', as is a column"),
    'arch':               (dict(arch='resnet19'), None, "no model 'resnet19': did you mean resnet1"),
    'batch of one':       (dict(bs=1), None, '--bs 1'),
    'batch too large':    (dict(bs=64), None, '--bs 64'),
    'alpha':              (dict(alpha=0.), None, 'alpha=0'),
    'p':                  (dict(p=1.5), None, 'p=1.5'),
    'mix':                (dict(mix='snap'), None, '--mix snap'),
    'echo of none':       (dict(echo=True, mix='none'), None, '--echo with --mix none: expected a mix'),
    'echo of gridmask':   (dict(echo=True, mix='gridmask'), None, '--echo with --mix gridmask: expected a mix'),
    'fold':               (dict(fold=3, folds=3), None, '--fold 3: with --folds 3 it is 0 to 2'),
    'fold of five':       (dict(fold=5), None, 'it is 0 to 4'),
    'one fold':           (dict(folds=1), None, '--folds 1'),
    'folds and split':    (dict(folds=3, split_col='split'), None, 'leave out --fold and --folds'),
    'a name twice':       (dict(folds=3), lambda t: pd.concat([t, t.iloc[:2]]), '2 rows name a picture again'),
    'oversample':         (dict(oversample='rust:3'), None, '--oversample rust:3'),
    'oversample class':   (dict(oversample='rost=3', folds=3), None, "oversample names 'rost'"),
    'oversample less':    (dict(oversample='rust=.5'), None, 'a multiple of 1 or more'),
    'tta':                (dict(tta='d8'), None, '--tta d8: expected none, flips, d4'),
    'sample alone':       (dict(sample='sample.csv'), None, 'give these with --test'),
    'no test':            (dict(test='/none'), None, 'no such file or folder: /none; --test'),
    'lr':                 (dict(lr=0.), None, '--lr 0'),
    'epochs':             (dict(epochs=0), None, '--epochs 0'),
    'two sources':        (dict(pretrained=True, weights='w.safetensors'), None, 'give one of them'),
    'size of the network':(dict(arch='swin_tiny_patch4_window7_224', mix='cutmix'), None, 'does not run on pictures of 32×32'),
    'no weights':         (dict(weights='/none.safetensors'), None, 'no such file'),
    'split column':       (dict(split_col='part'), None, "no column 'part'"),
    'split of no table':  (dict(data=None, split_col='split'), None, 'give it with --data'),
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

def test_a_csv_in_another_encoding(table, test_folder, tmp_path, capsys):
    args = dict(table(lambda t: t.replace('rust', 'Käfer')), arch='resnet10t', **test_folder(label='ä'))
    for name in ('sample.csv','t.csv'):
        (tmp_path/name).write_text((tmp_path/name).read_text(encoding='utf-8').replace('label', 'läbel'), encoding='latin-1')
        with pytest.raises(SystemExit): main(**args)
        assert f'{tmp_path/name} is not in UTF-8: save it as UTF-8' in capsys.readouterr().err

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

@pytest.fixture
def test_folder(leaves, tmp_path):
    "Five pictures in a folder, and a sample of four in another order"
    (tmp_path/'test').mkdir()
    for i in range(5): shutil.copy(leaves/'images'/f'Train_{i}.jpg', tmp_path/'test')
    def write(ids=(3,0,4,1), suff='', **cols):
        pd.DataFrame({'file': [f'Train_{i}{suff}' for i in ids], **(cols or dict(scab=0., rust=0., healthy=0.))}).to_csv(tmp_path/'sample.csv', index=False)
        return dict(test=str(tmp_path/'test'), sample=str(tmp_path/'sample.csv'))
    return write

def stamps(folder): return {f: f.stat().st_mtime_ns for f in folder.rglob('*') if f.name in ('model.safetensors','fold.json','oof.csv')}

def test_all_folds_to_a_submission(leaves, table, test_folder, tmp_path, capsys):
    run,args = tmp_path/'run',dict(table(), folds=3, arch='resnet10t', mix='snapmix,gridmask', oversample='rust=2', plc=True, tta='d4', **test_folder())
    main(**args)
    assert sorted(o.name for o in run.iterdir() if o.name[0]!='.') == ['config.json','confusion.png','ensemble','folds','history.csv','labels.csv','mix.png','oof.csv',
        'report.txt','submission.csv','test_predictions.csv']
    df,oof,preds,sub,labels = (pd.read_csv(o) for o in (tmp_path/'t.csv', run/'oof.csv', run/'test_predictions.csv', run/'submission.csv', run/'labels.csv'))
    assert oof.id.tolist()==df.image_id.tolist() and oof.label.tolist()==df.label.tolist()
    each = pd.concat([pd.read_csv(run/'folds'/f'fold_{k}'/'oof.csv').assign(fold=k) for k in range(3)]).set_index('id').loc[oof.id]
    assert np.allclose(each[['healthy','rust','scab']], oof[['healthy','rust','scab']]) and each.fold.tolist()==oof.fold.tolist()
    assert preds.id.tolist()==[f'Train_{i}' for i in range(5)] and np.allclose(preds[['healthy','rust','scab']].sum(axis=1), 1)
    assert list(sub)==['file','scab','rust','healthy'] and sub.file.tolist()==['Train_3','Train_0','Train_4','Train_1']
    assert np.allclose(sub[['healthy','rust','scab']], preds.set_index('id').loc[sub.file, ['healthy','rust','scab']])
    for k in range(3): assert set(labels.row[labels.fold==k])==set(oof.id[oof.fold!=k])
    assert (run/'report.txt').read_text() in capsys.readouterr().out
    trained = stamps(run/'folds')
    main(**{**args, 'tta':'none', **test_folder(suff='.jpg', label='')})
    assert stamps(run/'folds')==trained
    plain,sub = pd.read_csv(run/'test_predictions.csv').set_index('id'),pd.read_csv(run/'submission.csv')
    assert sub.file.tolist()==[f'Train_{i}.jpg' for i in (3,0,4,1)] and sub.label.tolist()==plain.loc[sub.file].idxmax(axis=1).tolist()
    assert not np.allclose(plain, preds.set_index('id'), atol=1e-5) # views were averaged over
    for other,message in ((dict(mix='snapmix'), '--mix snapmix,gridmask there, snapmix here'), (dict(lr=2e-3), '--lr 0.001 there, 0.002 here'),
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
    args,train = dict(table(), folds=3, arch='resnet10t', mix='none'),CrossVal._train
    monkeypatch.setattr(CrossVal, '_train', lambda self, fit, k, bar=True: k!=1 and train(self, fit, k, bar))
    main(**args)
    run = tmp_path/'run'
    assert 'done last writes the report' in capsys.readouterr().out and not (run/'oof.csv').exists()
    trained = stamps(run/'folds')
    monkeypatch.undo()
    main(**args)
    assert trained.items()<=stamps(run/'folds').items() and len(pd.read_csv(run/'oof.csv'))==60

def test_echo(table, tmp_path, capsys, monkeypatch):
    made,run,args = [],tmp_path/'run',dict(table(), folds=3, arch='resnet10t', mix='snapmix,cutmix,gridmask')
    monkeypatch.setattr(CrossVal, '_train', lambda self, fit, k, bar=True: made.append(self.get_learner(self.get_dls(self.df, k))))
    def refused(message, **kwargs):
        with pytest.raises(SystemExit): main(**args, **kwargs)
        assert message in capsys.readouterr().err
    main(**args, echo=True)
    choice = made[0].mix_choice
    assert choice.echo and [(o.p,o.echo) for o in choice.mixes]==[(1.,False)]*2 and cli.make_mixes('mixup', echo=True)[0].echo
    config = json.loads((run/'config.json').read_text())
    assert config['p']==1. and config['echo'] is True
    refused('--p 1.0 there, 0.5 here; --echo True there, False here')
    (run/'config.json').write_text(json.dumps({k:v for k,v in {**config, 'p':.5}.items() if k!='echo'})) # of an earlier version
    main(**args)
    refused('--echo False there, True here', echo=True, p=.5)

def test_one_fold_to_a_submission(table, test_folder, tmp_path, capsys):
    args,run = dict(table(), fold=2, folds=3, arch='resnet10t', mix='none', tta='flips', plc=True),tmp_path/'run'
    main(**args, **test_folder(label=''))
    sub,preds = pd.read_csv(run/'submission.csv'),pd.read_csv(run/'test_predictions.csv').set_index('id')
    assert sub.label.tolist()==preds.loc[sub.file].idxmax(axis=1).tolist()
    valid,labels = pd.read_csv(run/'predictions.csv'),pd.read_csv(run/'labels.csv')
    assert len(valid)==20 and not set(valid.id)&set(labels.row) and len(labels)==40
    both = preds.index.intersection(valid.id)
    assert len(both) and np.allclose(preds.loc[both], valid.set_index('id').loc[both, preds.columns], atol=1e-5) # the same views
    with pytest.raises(SystemExit): main(**{**args, 'fold':None})
    assert 'holds a run of one fold' in capsys.readouterr().err
    with pytest.raises(SystemExit): main(**{**args, 'plc':False})
    assert '--plc True there, False here' in capsys.readouterr().err
    main(**args, test=str(tmp_path/'test')) # others, as far as can be told
    assert not (run/'submission.csv').exists() and (run/'test_predictions.csv').exists() and 'submission.csv' not in capsys.readouterr().out
    main(**args)
    assert not (run/'test_predictions.csv').exists() and (run/'labels.csv').exists()

def test_a_table_of_test_pictures(leaves, table, tmp_path, capsys):
    pd.DataFrame({'image_id': ['Train_7','Train_2']}).to_csv(tmp_path/'test.csv', index=False)
    args = dict(table(), fold=0, folds=3, arch='resnet10t', mix='none', test=str(tmp_path/'test.csv'))
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
    'unknown picture': (dict(ids=(3,9)), '1 rows of the sample not (Train_9)'),
    'other classes':   (dict(scab=0., rost=0.), 'columns rost are no classes'),
}

@pytest.mark.parametrize('name', wrong_samples)
def test_wrong_sample(name, table, test_folder, tmp_path, capsys):
    kwargs,message = wrong_samples[name]
    with pytest.raises(SystemExit) as e: main(**table(), folds=3, arch='resnet10t', **test_folder(**kwargs))
    err = capsys.readouterr().err.strip().splitlines()
    assert e.value.code==2 and len(err)==1 and message in err[0] and not (tmp_path/'run').exists()

def test_wrong_test_pictures(table, test_folder, tmp_path, capsys):
    args = dict(table(), **test_folder())
    for change,message in ((lambda: (tmp_path/'sample.csv').unlink(), 'no such file: --sample'),
                           (lambda: (tmp_path/'test'/'Train_0.jpg').write_bytes(b'cut'), '1 of 5 pictures cannot be used'),
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
    main(**{**table(), 'images':str(tmp_path/'images')}, folds=3, arch='resnet10t', mix='none')
    fold = pd.read_csv(tmp_path/'run'/'oof.csv').fold
    assert all(fold[i]==fold[j] for i,j in zip(a[:4], a[4:8]))

def test_equal_pictures_of_a_rare_class_count_once(leaves, table, tmp_path, capsys):
    shutil.copytree(leaves/'images', tmp_path/'images')
    for i in (1,2): shutil.copy(tmp_path/'images'/'Train_0.jpg', tmp_path/'images'/f'Train_{i}.jpg')
    with pytest.raises(SystemExit): main(**{**table(setting('label', 'rare', slice(0,4))), 'images':str(tmp_path/'images')}, folds=3)
    assert "'rare' has 2 different pictures, too few for 3 folds: use --folds 2, or merge or drop that class" in capsys.readouterr().err

@pytest.mark.parametrize('text,value', [(None,None), ('balance','balance'), ('sqrt','sqrt'), ('40',40), ('a=3',{'a':3.}), ('a=b=3,c=1.5',{'a=b':3.,'c':1.5})])
def test_oversample(text, value): assert read_oversample(text)==value

def test_rows_are_repeated_in_training_only(table, monkeypatch):
    class Seen(Exception): pass
    def see(o, learn): raise Seen(*((dl.items.id, dl.items.label) for dl in learn.dls))
    monkeypatch.setattr(cli, '_fit', see)
    with pytest.raises(Seen) as e: main(**table(), fold=0, folds=3, arch='resnet10t', oversample='rust=3')
    (ids,labels),(valid,_) = e.value.args
    assert set(ids[labels=='rust'].value_counts())=={3} and set(ids[labels!='rust'].value_counts())=={1}
    assert not valid.duplicated().any() and not set(ids)&set(valid) and len(valid)==20

def test_names_that_a_terminal_would_obey(tmp_path, capsys):
    "A class or picture name is shown escaped, and in one piece"
    Image.fromarray(np.zeros((8,8,3), np.uint8)).save(tmp_path/'a.png')
    df = pd.DataFrame({'id': ['a','b'], 'path': [tmp_path/'a.png']*2, 'label': ['red\x1b[31m','green\x1b]0;title\x07'], 'fold': [0,1]})
    cli._show_data(df, 0)
    with pytest.raises(SystemExit): cli._end('no such file: x\x1b[2J', 2)
    shown = ''.join(capsys.readouterr())
    assert '\x1b' not in shown and '\x07' not in shown and 'red\\x1b[31m' in shown and 'x\\x1b[2J' in shown
