"Runs, tables and folders are read as what they are, and decisions go back into the user's own table."
import io,json,os,re,shlex,shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from helpers import noise
from fastai_mix.data.suspects import suspects
from fastai_mix.decisions import DecisionFile
from fastai_mix.review_table import find_faults, frame_review, read_review
from fastai_mix.run_folder import FoldFolder

@pytest.fixture
def run(tmp_path):
    "The folder of a run, by its files alone"
    (tmp_path/'p').mkdir()
    for i in range(6): noise(i).save(tmp_path/'p'/f'{i}.png')
    table = pd.DataFrame(dict(tree=list('uvwxyz'), pic=[f'{i}.png' for i in range(6)], kind=list('aabbab')))
    table.to_csv(tmp_path/'t.csv', index=False)
    run = tmp_path/'run'
    run.mkdir()
    config = dict(data=str(tmp_path/'t.csv'), images=str(tmp_path/'p'), image_col='pic', label_col='kind')
    (run/'config.json').write_text(json.dumps(config))
    p_a = np.array([.9,.2,.3,.6,.8,.1])
    pd.DataFrame(dict(id=table.pic, label=table.kind, fold=[0,1]*3, a=p_a, b=1-p_a)).to_csv(run/'oof.csv', index=False)
    return run

def ids(review): return [o.removesuffix('.png') for o in review.rows.id]

def test_run(run, tmp_path):
    review = read_review(run)
    assert ids(review)[0] in '13' and set(ids(review)[:2])=={'1','3'} and review.rows.score.is_monotonic_increasing
    first = review.rows.iloc[0]
    assert first.given!=first.predicted and first.path==tmp_path/'p'/first.id and first.fold=='1'
    assert review.likeliest(0)[0]==(first.predicted,pytest.approx(first.p_predicted)) and review.classes==['a','b']
    decisions = DecisionFile(tmp_path/'d.csv')
    decisions.add('1.png', 'a', 'predicted', 'b')
    decisions.add('2.png', 'b', 'drop')
    decisions.add('elsewhere.png', 'b', 'drop')
    table = review.corrected(decisions.table)
    assert [*table]==['tree','pic','kind','given_label'] and ''.join(table.tree)=='uvxyz' and ''.join(table.kind)=='abbab'
    assert f"--images {tmp_path/'p'} --image-col pic --label-col kind" in review.note

def test_command_of_folders_with_blanks(folders):
    folder = folders('rust','scab', root='my leaves')
    train,move = map(shlex.split, read_review(folder).note.splitlines())
    assert train==['fastai-mix','--data','CORRECTED','--images',str(folder),'--image-col','image_id','--label-col','label']
    assert move==['fastai-mix-review',str(folder),'--move']

def test_run_of_one_fold(run):
    oof = pd.read_csv(run/'oof.csv')
    oof[oof.fold==1].drop(columns='fold').to_csv(run/'predictions.csv', index=False)
    (run/'oof.csv').unlink()
    assert sorted(ids(read_review(run)))==['1','3','5']
    (run/'predictions.csv').unlink()
    with pytest.raises(ValueError, match='let the run end first'): read_review(run)

def test_run_elsewhere(run, tmp_path):
    (tmp_path/'t.csv').rename(tmp_path/'u.csv')
    with pytest.raises(ValueError, match='no such file or folder'): read_review(run)
    assert len(read_review(run, data=tmp_path/'u.csv'))==6
    pd.read_csv(tmp_path/'u.csv').iloc[1:].to_csv(tmp_path/'v.csv', index=False)
    with pytest.raises(ValueError, match="1 of 6 pictures .* the first '0.png'"): read_review(run, data=tmp_path/'v.csv')

def test_corrections_of_a_run(run):
    rows = dict(row=['0.png','1.png','1.png','2.png'], given=list('aaab'), current=list('abba'), p_given=[.9,.1,.2,.3],
        p_current=[.9,.9,.8,.7], gap=[0,.8,.6,.4], when=1, times=1, fold=[1,0,2,1])
    pd.DataFrame(rows).to_csv(run/'labels.csv', index=False)
    review = read_review(run/'labels.csv')
    assert ids(review)==['1','2'] and review.rows.predicted.tolist()==['b','a'] and review.rows.p_given.tolist()==[.1,.3]
    pd.DataFrame(rows).iloc[:1].to_csv(run/'labels.csv', index=False)
    with pytest.raises(ValueError, match='no corrected label'): read_review(run/'labels.csv')

def ledger(run, folds=()):
    "Corrected labels of a run, as its folds wrote them, and their decisions"
    rows = pd.DataFrame(dict(row=['0.png','1.png','1.png','2.png','3.png'], given=list('aaab')+['a,"'],
        current=list('abbab'), p_given=[.9,.1,.2,.3,.2], p_current=[.9,.9,.8,.7,.6], gap=[0,.8,.6,.4,.4], when=[np.nan,1,1,1,2], times=1))
    rows['fold'] = [1,0,1,1,0]
    rows.to_csv(run/'labels.csv', index=False)
    for k in folds:
        folder = FoldFolder(run/'folds', k)
        folder.path.mkdir(parents=True)
        info = dict(vocab=['a','b'], norm=[], n_epoch=[1], train_seconds=1, predict_seconds=1)
        folder.write(torch.nn.Linear(1,1), {'labels.csv': rows[rows.fold==k].drop(columns='fold')}, info)
    return rows,DecisionFile(run/'review.csv')

@pytest.mark.parametrize('folds', [(),(0,1)])
def test_decisions_come_into_the_labels_of_a_run(run, folds):
    rows,decisions = ledger(run, folds)
    review = read_review(run)
    written = (run/'labels.csv').read_bytes()
    assert review.write_labels(decisions.table)==0 and (run/'labels.csv').read_bytes()==written
    decisions.add('1.png', 'a', 'keep', 'a') # undoes the correction
    decisions.add('2.png', 'b', 'predicted', 'a')
    decisions.add('0.png', 'a', 'other', 'b') # no correction
    decisions.add('3.png', 'a,"', 'unsure')
    assert review.write_labels(decisions.table)==2
    table = pd.read_csv(run/'labels.csv', keep_default_na=False)
    assert table.current.tolist()==list('baaab') and table.trained.tolist()==list('abbab')
    text = dict(dtype=str, keep_default_na=False)
    left = pd.read_csv(run/'labels.csv', **text)
    as_before = left.drop(columns='current').rename(columns={'trained':'current'})
    pd.testing.assert_frame_equal(as_before[rows.columns], pd.read_csv(io.BytesIO(written), **text))
    assert len(read_review(run/'labels.csv'))==3 # what was kept can still be looked at
    for _ in range(2):
        decisions.add('1.png', 'a', 'undo')
        assert read_review(run/'labels.csv').write_labels(decisions.table)==1
        assert pd.read_csv(run/'labels.csv').current.tolist()==list('bbbab')
        decisions.add('1.png', 'a', 'keep', 'a')
    decisions.add('0.png', 'a', 'undo')
    decisions.add('1.png', 'a', 'undo')
    assert review.write_labels(decisions.table)==0 and (pd.read_csv(run/'labels.csv').current==table.trained).all()

def test_labels_that_training_did_not_write_are_refused(run):
    rows,decisions = ledger(run, (0,1))
    decisions.add('1.png', 'a', 'keep', 'a')
    review = read_review(run)
    rows.assign(current=list('bbbab')).to_csv(run/'labels.csv', index=False)
    changed = (run/'labels.csv').read_bytes()
    with pytest.raises(ValueError, match="says 'b' for '0.png', which no fold of its run wrote"):
        review.write_labels(decisions.table)
    assert (run/'labels.csv').read_bytes()==changed
    rows.to_csv(run/'labels.csv', index=False)
    file = run/'folds'/'fold_1'/'labels.csv'
    file.write_text(file.read_text().replace('0.png', '9.png'))
    with pytest.raises(ValueError, match='labels.csv is not as it was written'): review.write_labels(decisions.table)

def test_killed_while_labels_are_written(run, monkeypatch):
    rows,decisions = ledger(run)
    decisions.add('1.png', 'a', 'keep', 'a')
    written = (run/'labels.csv').read_bytes()
    def killed(*args): raise KeyboardInterrupt
    monkeypatch.setattr(os, 'replace', killed)
    with pytest.raises(KeyboardInterrupt): read_review(run).write_labels(decisions.table)
    assert (run/'labels.csv').read_bytes()==written and [o.name for o in run.glob('*labels*')]==['labels.csv']

def test_crossval_folder(run, tmp_path):
    oof,folder = pd.read_csv(run/'oof.csv'),tmp_path/'folds'
    for k in (0,1):
        (folder/f'fold_{k}').mkdir(parents=True)
        oof[oof.fold==k].drop(columns='fold').to_csv(folder/f'fold_{k}'/'oof.csv', index=False)
    (folder/'config.json').write_text(json.dumps(dict(digest='x')))
    with pytest.raises(ValueError, match='give --data'): read_review(folder)
    options = dict(data=tmp_path/'t.csv', images=tmp_path/'p', image_col='pic', label_col='kind')
    review,of_run = read_review(folder, **options),read_review(run)
    assert ids(review)==ids(of_run) and review.rows.score.tolist()==pytest.approx(of_run.rows.score.tolist())
    assert review.rows.fold.tolist()==of_run.rows.fold.tolist()

@pytest.mark.parametrize('header,order', [('image_id,label,score','210'), ('file,given_label,label_score','210'),
    ('path,labels,other','012')])
def test_csv(csv, header, order):
    names = [f'{i}.png' for i in range(3)]
    file = csv(header+'\n'+''.join(f'{o},{k},{s}\n' for o,k,s in zip(names, 'aab', (.9,.5,.1))), *names)
    review = read_review(file)
    assert ''.join(ids(review))==order and review.rows.predicted.tolist()==['']*3
    if 'given_label' in header:
        decisions = DecisionFile(file.parent/'d.csv')
        decisions.add('0.png', 'a', 'other', 'b')
        assert review.corrected(decisions.table).original_label.tolist()==list('aab')

def test_csv_of_probabilities(csv):
    names = [f'{i}.png' for i in range(3)]
    file = csv('image_id,label,a,b\n'+''.join(f'{o},{k},{p},{1-p}\n' for o,k,p in zip(names, 'aab', (.9,.2,.1))), *names)
    review = read_review(file)
    assert review.rows.id[0]=='1.png' and review.rows.predicted[0]=='b' and review.likeliest(0)[0][0]=='b'

def test_csv_options(csv):
    file = csv('x,y,z,w\n0.png,a,b,.5\n1.png,b,b,.2\n', '0.png', '1.png')
    with pytest.raises(ValueError, match='no column of images is known.*--image-col'): read_review(file)
    with pytest.raises(ValueError, match="no column 'v'"): read_review(file, image_col='v')
    review = read_review(file, image_col='x', label_col='y', predicted_col='z', score_col='w')
    assert review.rows.id.tolist()==['1.png','0.png'] and review.rows.predicted.tolist()==['b','b']

def test_class_folders(folders):
    review = read_review(folders('rust','scab'))
    assert len(review)==6 and review.rows.given.tolist()==['rust']*3+['scab']*3 and review.rows.id[0]=='rust/0.png'
    with pytest.raises(ValueError, match='no such file'): read_review('nowhere')

def test_table_of_suspects(tmp_path):
    probs,df = np.array([[.9,.1],[.2,.8],[.7,.3]]),pd.DataFrame(dict(file=list('xyz'), label=['a','a','b'], id=[7,8,9]))
    found = suspects(probs, df.label, ['a','b'])
    review = frame_review(found, 'file', df)
    assert review.id_col=='row' and review.rows.id.tolist()==[str(i) for i in found.index]
    assert frame_review(found, 'file', df, 'id').rows.id[0]==str(df.id[found.index[0]])
    with pytest.raises(ValueError, match="no column 'path'"): frame_review(found, df=df)
    with pytest.raises(ValueError, match='not in df'): frame_review(found, 'file', df[:1])
    several = suspects(probs, np.array([[1,0],[1,0],[0,1]]), ['a','b'])
    with pytest.raises(ValueError, match='several labels'): frame_review(several, 'file', df)

def test_faults(tmp_path, csv):
    file = csv('image_id,label\n0.png,a\n1.png,b\n2.png,a\n3.png,a\n', '0.png', '1.png', '2.png', '3.png')
    (tmp_path/'1.png').write_bytes((tmp_path/'0.png').read_bytes()) # another label
    Image.open(tmp_path/'2.png').save(tmp_path/'2.png', compress_level=1)
    (tmp_path/'3.png').write_text('no picture')
    review = read_review(file)
    found = find_faults(review)
    rows = {kind: {review.rows.id[i] for i in part.row} for kind,part in found.groupby('kind')}
    assert rows['unreadable']=={'3.png'} and {'0.png','1.png'}&rows['conflicting labels']

def test_a_run_on_the_drawn_leaves_is_found_where_the_command_draws_them(leaves, tmp_path, monkeypatch):
    "`data` of such a run is None, and both commands must draw the same"
    from fastai_mix.cli import main
    from fastai_mix.data import read
    monkeypatch.setattr(read, 'leaf_data', lambda **kwargs: leaves)
    main(epochs=1, size=32, bs=8, arch='test_resnet', fold=0, folds=3, lr=1e-3, out=str(tmp_path/'run'))
    table = read_review(tmp_path/'run')
    assert len(table.rows)==20 and all(Path(o).is_file() for o in table.rows.path)

@pytest.mark.parametrize('score', ['7','-.1','x','nan?'])
def test_scores_that_are_none(score, csv):
    file = csv(f'image_id,label,predicted,score\na.png,x,y,.5\nb.png,y,x,{score}\n', 'a.png', 'b.png')
    with pytest.raises(ValueError, match=f"'score' holds '{re.escape(score)}': expected scores from 0"): read_review(file)
    file.write_text('image_id,label,predicted,score\na.png,x,y,.5\nb.png,y,x,\n')
    assert read_review(file).rows.score.tolist()[0]==.5

def test_a_run_is_of_the_pictures_where_its_command_ran(run, tmp_path, monkeypatch):
    config = json.loads((run/'config.json').read_text())
    (run/'config.json').write_text(json.dumps(dict(config, data='t.csv', images='p', folder=str(tmp_path))))
    other = tmp_path/'elsewhere' # has files of the same names
    shutil.copytree(tmp_path/'p', other/'p')
    shutil.copy(tmp_path/'t.csv', other)
    monkeypatch.chdir(other)
    assert {o.parent for o in read_review(run).rows.path}=={tmp_path/'p'}
    shutil.rmtree(tmp_path/'p') # the project was moved
    assert {o.parent for o in read_review(run).rows.path}=={Path('p')}
