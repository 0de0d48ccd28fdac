"A folder or a CSV as one table, and what could be read in two ways."
import json
import os
import re
import shutil
import unicodedata

import numpy as np
import pandas as pd
import pytest
from fastai_mix.data.read import fold_data, read_data, read_test
from helpers import noise

def test_names_and_labels_as_they_are_written(leaves, tmp_path):
    d,jpg = tmp_path/'d',(leaves/'images'/'Train_0.jpg').read_bytes()
    (d/'images'/'sub').mkdir(parents=True)
    for n in ('leaf_1.jpg','leaf_1.2.jpg','img[1].jpg','NA.jpg','sub/a.png'): (d/'images'/n).write_bytes(jpg)
    (d/'t.csv').write_text('image_id,label\nleaf_1,01\nleaf_1.2,None\nimg[1],01\nNA,None\nsub/a,1\nleaf_1.2.jpg,1\n')
    df = read_data(d/'t.csv')
    assert [str(o.relative_to(d/'images')) for o in df.path]==['leaf_1.jpg','leaf_1.2.jpg','img[1].jpg','NA.jpg',
        'sub/a.png','leaf_1.2.jpg']
    assert df.label.tolist()==['01','None','01','None','1','1']
    (d/'t.csv').write_text(f'image_id,label\nleaf_1,a\n{tmp_path}/no.jpg,b\n')
    with pytest.raises(ValueError, match='no.jpg'): read_data(d/'t.csv')

def test_folders_of_a_split_are_no_classes(leaves, tmp_path):
    for k in ('train','valid'):
        (tmp_path/'d'/k/'rust').mkdir(parents=True)
        shutil.copy(leaves/'images'/'Train_0.jpg', tmp_path/'d'/k/'rust')
    with pytest.raises(ValueError, match='are train, valid and no classes: give --data .*train'):
        read_data(tmp_path/'d')

@pytest.mark.parametrize('names', [('Training','Testing'), ('Train','Val'), ('TRAIN','test'),
    ('train_set','test_set'), ('trn','tst'), ('trainset','hold-out'),
    ('images_train','images_val'), ('train2017','val2017'), ('train','dev','eval'), ('Train Data','Validation Data')])
def test_folders_of_a_split_in_any_spelling_are_no_classes(folders, names):
    d = folders(*names)
    train = next(o for o in names if 'tr' in o.lower())
    with pytest.raises(ValueError, match=f'and no classes: give --data {d/train}'): read_data(d)

@pytest.mark.parametrize('names', [('train','bus'), ('trainer','tester'), ('test','val'), ('train','testament')])
def test_classes_whose_names_are_like_parts_of_a_split(folders, names):
    assert set(read_data(folders(*names)).label)==set(names)

def test_folders_of_runs_are_no_classes(folders, tmp_path, capsys):
    d = folders('cat','dog','mine','.cache','run')
    (d/'mine'/'config.json').write_text(json.dumps(dict(size=32, versions=dict(fastai_mix='0.1'))))
    (d/'cat'/'config.json').write_text(json.dumps(dict(versions=1)))
    (d/'dog'/'config.json').write_text('[]')
    df = read_data(d, out=d/'run')
    assert set(df.label)=={'cat','dog'} and len(df)==6
    assert {o.split(' ')[0] for o in capsys.readouterr().out.splitlines()}=={str(d/'mine'),str(d/'run')}
    assert len(read_test(d, out=d/'run'))==6

def test_pictures_beside_class_folders(folders):
    d = folders('cat','dog')
    noise().save(d/'a.png')
    with pytest.raises(ValueError, match="1 of 7 pictures in .* are in no class folder, the first 'a.png'"):
        read_data(d)

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
    assert [o for o in df.id if o.startswith('cat')]==[f'cat/{i}.png' for i in range(3)]+[f'cat/out/{i}.png'
        for i in range(3)]
    assert len(read_test(d))==12 and len({os.path.realpath(o) for o in df.path})==12

@pytest.mark.parametrize('a,b,shown', [('cat','cat ',"'cat' and 'cat '"), (' cat','cat',"' cat' and 'cat'"),
    ('cat','cat\u200b',r"'cat' and 'cat\\u200b'"),
    ('caf\u00e9','cafe\u0301',r"'cafe\\u0301' and 'caf\\xe9'"), ('a b','a\u00a0b',r"'a b' and 'a\\xa0b'"),
    ('a  b','a b',"'a  b' and 'a b'")])
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
    assert [o.relative_to(tmp_path).as_posix() for o in read_data(file).path]==[f'{nfd}.png',f'{nfc}2.png',
        f'{nfc}/3.png']
    sample = csv(f'file,a,b\n{nfc},0,0\n', f'test/{nfd}.png', file='sample.csv')
    assert read_test(tmp_path/'test', sample=sample).id.tolist()==[nfc]

@pytest.mark.parametrize('name,shown', [('p0 ',"'p0 '"), ('p0.png ',"'p0.png '"), (' p0.png',"' p0.png'"),
    ('p0 .png',"'p0 .png'"), ('P0',"'P0'"),
    ('p0.jpg',"'p0.jpg'"), ('p0\u200b',r"'p0\\u200b'")])
def test_a_name_that_looks_like_that_of_a_file(csv, name, shown):
    file = csv(f'image_id,label\n{name},a\np1,b\n', 'p0.png', 'p1.png')
    with pytest.raises(ValueError, match=f"1 of 2 pictures in .*t.csv are not there; {shown} looks like 'p0.png'"):
        read_data(file)

def test_absolute_names_and_home(csv, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    file = csv(f'image_id,label\n{tmp_path}/p0.png,a\n{tmp_path}/p1,b\n~/in/p2,a\n', 'p0.png', 'p1.png', 'in/p2.png',
        file='in/t.csv')
    assert [o.name for o in read_data(file).path]==['p0.png','p1.png','p2.png']
    csv('image_id,label\n~p2,a\n'+'x'*300+',b\n', 'in/~p2.png', file='in/t.csv')
    with pytest.raises(ValueError, match='1 of 2 pictures cannot be used.*missing .File name too long'): read_data(file)

tables = {
    'empty':            ('', 't.csv is empty'),
    'blank lines':      ('\n\n', 't.csv is empty'),
    'header only':      ('image_id,label\n', 't.csv has a header, but no rows'),
    'no header':        (',,\np0,a\n', 'has no names of columns'),
    'ragged':           ('image_id,label\np0,a\np1,b,c\n',
                         "1 rows of .*t.csv have more cells than its header has columns, the first 'p1,b,c'"),
    'commas in labels': ('image_id,label\np0,a, b\np1,b, c\n',
                         "2 rows of .*t.csv have more cells .* the first 'p0,a, b': put cells with commas into quotes"),
    'open quote':       ('image_id,label\np0,"a\np1,b\n', 't.csv is no CSV with commas'),
    'semicolons':       ('image_id;label\np0;a\np1;b\n', "t.csv has ';' between its columns: save it with commas"),
    'tabs':             ('image_id\tlabel\np0\ta\np1\tb\n',
                         r"t.csv has '\\t' between its columns: save it with commas"),
    'column twice':     ('image_id,label,label\np0,a,b\np1,b,a\n',
                         "t.csv has 2 columns 'label': give them different names"),
    'no such column':   ('file,label\np0,a\n', "t.csv has no column 'image_id': it has 'file', 'label'; --image-col"),
    'blank label':      ('image_id,label\np0,a\np1, \n', "1 of 2 rows have no label in 'label'"),
}

@pytest.mark.parametrize('name', tables)
def test_a_csv_that_is_none(name, csv):
    text,message = tables[name]
    with pytest.raises(ValueError, match=message) as e: read_data(csv(text, 'p0.png', 'p1.png'))
    assert '\n' not in str(e.value)

@pytest.mark.parametrize('text', ['image_id,label,\np0,a,\np1,b,\n', 'image_id,label\np0,a,\np1,b,\n',
    'image_id,label\np0,a,, \np1,b\n', '\ufeffimage_id,label\np0,a\np1,b\n',
    ',image_id,label\n0,p0,a\n1,p1,b\n', 'x,x,image_id,label\n1,2,p0,a\n1,2,p1,b\n',
    '"image_id","label","a;b"\r\n"p0","a","x\ny"\r\n"p1","b"\r\n'])
def test_a_csv_that_is_one(text, csv):
    df = read_data(csv(text, 'p0.png', 'p1.png'))
    assert df.id.tolist()==['p0','p1'] and df.label.tolist()==['a','b']

def split_of(values): return pd.DataFrame({'label': list('ab')*(len(values)//2), 'split': values})

def test_values_of_a_split_in_any_spelling(capsys):
    df = fold_data(split_of(['Train','train ','TRAIN','training','trn','train','Test',' test ','TESTING','tst','test',
        'test-set']))
    assert df.fold.tolist()==[-1]*6+[0]*6 and capsys.readouterr().out==''

def test_rows_of_a_third_part_are_counted(capsys):
    df = fold_data(split_of(['train']*4+['valid','Valid']+[np.nan]*2+['test']*4))
    assert df.index.tolist()==[0,1,2,3,8,9,10,11] and df.fold.tolist()==[-1]*4+[0]*4
    said = capsys.readouterr().out
    assert said=="4 of 12 rows are neither 'train' nor 'test' and left out: 'valid', 'Valid', nothing\n"
    assert fold_data(split_of(['train']*2+['validation']*2)).fold.tolist()==[-1,-1,0,0]

def test_a_split_that_says_what_it_cannot_mean():
    with pytest.raises(ValueError, match="says 'tarin' in 2 of 10 rows: expected 'train' and 'test', or nothing"):
        fold_data(split_of(['train']*4+['tarin']*2+['test']*4))

def grouped(groups, labels, copies=()):
    "A table of as many pictures, of which pairs `copies` are equal, with groups"
    def write(tmp_path):
        for i in range(len(groups)): noise(i).save(tmp_path/f'{i}.png')
        for i,j in copies: shutil.copy(tmp_path/f'{i}.png', tmp_path/f'{j}.png')
        paths = [tmp_path/f'{i}.png' for i in range(len(groups))]
        return pd.DataFrame(dict(id=[str(i) for i in range(len(groups))], path=paths, label=labels, group=groups))
    return write

def test_groups_stay_in_one_fold(tmp_path, capsys):
    df = grouped([i//3 for i in range(36)], ['ab'[i//3%2] for i in range(36)], [(0,18),(18,30)])(tmp_path)
    for seed in range(3):
        fold = fold_data(df, 3, seed).fold
        assert fold.groupby(df.group).nunique().max()==1 and set(fold)=={0,1,2}
        assert fold[0]==fold[18]==fold[30], 'equal pictures join the groups they are in'
    assert '2 groups have a picture of another group' in capsys.readouterr().out
    assert fold_data(df.drop(columns='group'), 3).groupby(df.group).fold.nunique().max()>1

def test_groups_that_cannot_be_folded(tmp_path):
    write = grouped([0,0,1,1,2,2,3,3], list('aabbaabb'))
    with pytest.raises(ValueError, match="'a' has 2 groups, too few for 3 folds: use --folds 2, .* leave out --group"):
        fold_data(write(tmp_path), 3)
    assert sorted(fold_data(write(tmp_path), 2).fold.value_counts())==[4,4]
    one = grouped([0,0,0,0,1,1,1,2], list('aaaabbba'), [(3,4)])(tmp_path) # equal pictures make one of two groups
    with pytest.raises(ValueError, match="has 1 group, too few for 2 folds: merge or drop"): fold_data(one, 2)

def test_a_class_that_one_fold_would_have_alone(tmp_path, monkeypatch):
    import fastai_mix.data.read as read
    df = grouped([0,1,2,3], list('abab'))(tmp_path)
    monkeypatch.setattr(read, 'add_folds', lambda df, *_, **__: df.assign(fold=[0,1,0,1]))
    with pytest.raises(ValueError, match="all groups with pictures of 'a' came into one fold"): fold_data(df, 2)

def test_columns_of_groups(leaves, tmp_path):
    df = pd.read_csv(leaves/'train.csv').assign(plant=[f'p{i//4}' for i in range(60)])
    df.to_csv(tmp_path/'t.csv', index=False)
    read = lambda **kwargs: read_data(tmp_path/'t.csv', leaves/'images', label_col='labels', **kwargs)
    assert read(group_col='plant').group.tolist()==df.plant.tolist() and 'group' not in read()
    df.assign(plant=df.plant.where(df.index>1)).to_csv(tmp_path/'t.csv', index=False)
    with pytest.raises(ValueError, match="2 rows of .* have no group in 'plant', the first 'Train_0'"):
        read(group_col='plant')
    with pytest.raises(ValueError, match='--group-col names a column of a CSV, but --data is a folder'):
        read_data(leaves, group_col='plant')
    with pytest.raises(ValueError, match='--group-col names a column of a CSV: give it with --data'):
        read_data(group_col='plant')

def test_pictures_in_a_folder_beside_the_csv(csv, tmp_path):
    file = csv('image_id,label\na,x\nb,y\n', 'train images/a.png', 'train images/b.png', 'other/a.png')
    hint = f"'a', is in train images: give --images '{tmp_path/'train images'}'"
    with pytest.raises(ValueError, match=re.escape(hint)): read_data(file)
    with pytest.raises(ValueError, match='give --test-images'): read_test(file)
    assert len(read_data(file, tmp_path/'train images'))==2
    with pytest.raises(ValueError, match='2 of 2 pictures cannot be used'): read_data(file, tmp_path/'other'/'..')
    (tmp_path/'train images').rename(tmp_path/'.hidden')
    (tmp_path/'other'/'a.png').unlink()
    with pytest.raises(ValueError, match='2 of 2 pictures cannot be used'): read_data(file)

def test_a_column_that_holds_no_classes(csv):
    names = [f'{i}.png' for i in range(6)]
    file = csv('image_id,label\n'+''.join(f'{o},{i/7}\n' for i,o in enumerate(names)), *names)
    with pytest.raises(ValueError, match='6 pictures with 6 different labels: name the column of classes'): fold_data(read_data(file), 2)

def test_classes_of_the_same_number_are_said(csv, capsys):
    names = [f'{i}.png' for i in range(4)]
    read_data(csv('image_id,label\n'+''.join(f'{o},{k}\n' for o,k in zip(names, ['1','1.0','a','01'])), *names))
    assert capsys.readouterr().out.splitlines()==["'01' and '1' are two classes, though they are the same number",
        "'01' and '1.0' are two classes, though they are the same number"]
