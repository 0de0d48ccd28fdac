"`fastai-mix-predict`: what it writes, what it refuses, and how it ends."
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from fastai_mix import cli, predict
from fastai_mix.data.leaves import leaf_data
from fastai_mix.predict import main
from helpers import noise

@pytest.fixture(scope='module')
def runs(tmp_path_factory, leaves):
    "A folder with a run of one fold and one of all folds"
    top = tmp_path_factory.mktemp('runs')
    args = dict(data=str(leaves/'train.csv'), label_col='labels', size=32, bs=8, epochs=1, lr=1e-3, arch='test_resnet',
        folds=2, mix='none')
    cli.main(**args, fold=0, out=str(top/'one'))
    cli.main(**args, out=str(top/'all'))
    return top

@pytest.fixture(scope='module')
def others(tmp_path_factory):
    "A folder of other leaves, one of them in a folder"
    folder = leaf_data(tmp_path_factory.mktemp('others')/'leaves', n=40, size=64, seed=5)/'images'
    (folder/'sub').mkdir()
    (folder/'Train_39.jpg').rename(folder/'sub'/'a.jpg')
    return folder

@pytest.fixture
def refused(capsys):
    "Checks that the command ends with one line that holds `message`"
    def check(message, *args, code=2, **kwargs):
        capsys.readouterr()
        with pytest.raises(SystemExit) as e: main(*map(str, args), **kwargs)
        err = capsys.readouterr().err
        assert e.value.code==code and message in err and err.count('\n')==1 and 'Traceback' not in err, err
    return check

@pytest.mark.parametrize('run,tta', [('one','none'), ('all','flips')])
def test_a_folder(runs, others, tmp_path, capsys, run, tta):
    main(str(runs/run), str(others), tta=tta, out=str(tmp_path/'p.csv'))
    table = pd.read_csv(tmp_path/'p.csv')
    vocab = json.loads((runs/run/'config.json').read_text())['vocab']
    assert list(table)==['id','predicted',*vocab] and len(table)==40 and 'sub/a.jpg' in set(table.id)
    assert np.allclose(table[vocab].sum(axis=1), 1, atol=1e-5) and (table[vocab].idxmax(axis=1)==table.predicted).all()
    assert f"written to {tmp_path/'p.csv'}: 40 pictures" in capsys.readouterr().out

def test_every_kind_of_pictures_has_the_same_predictions(runs, others, tmp_path):
    names = ['Train_3.jpg','Train_1.jpg']
    pd.DataFrame(dict(name=names)).to_csv(tmp_path/'t.csv', index=False)
    ways = [([str(others/o) for o in names],{}), ([str(tmp_path/'t.csv')],dict(images=str(others), image_col='name')),
        ([str(others)],{})]
    found = []
    for pictures,options in ways:
        main(str(runs/'one'/'ensemble'), *pictures, out=str(tmp_path/'p.csv'), **options)
        table = pd.read_csv(tmp_path/'p.csv')
        found.append(table.set_index(table.id.str.split('/').str[-1]).loc[names])
    for o in found[1:]: assert np.allclose(o.iloc[:,2:], found[0].iloc[:,2:], atol=1e-5)

def test_pictures_of_the_training_are_refused_under_any_name(runs, others, leaves, refused, tmp_path):
    held_out = pd.read_csv(runs/'one'/'predictions.csv').id
    trained = next(o for o in pd.read_csv(leaves/'train.csv').image_id if o not in set(held_out))
    (tmp_path/'p').mkdir()
    shutil.copy(others/'Train_1.jpg', tmp_path/'p')
    shutil.copy(leaves/'images'/f'{trained}.jpg', tmp_path/'p'/'other-name.jpg')
    out = dict(out=str(tmp_path/'x.csv'))
    refused('was trained on 1 of 2 pictures, the first', runs/'one', tmp_path/'p', **out)
    assert not (tmp_path/'x.csv').exists()
    main(str(runs/'one'), str(tmp_path/'p'), also_trained=True, **out)
    assert len(pd.read_csv(tmp_path/'x.csv'))==2
    new = leaves/'images'/f'{held_out[0]}.jpg' # held out of one fold, but trained on by others of all
    main(str(runs/'one'), str(new), **out)
    refused('was trained on 1 of 1 pictures', runs/'all', new, **out)

def test_an_ensemble_that_does_not_say_what_it_was_trained_on(runs, leaves, tmp_path, capsys):
    shutil.copytree(runs/'one'/'ensemble', tmp_path/'e')
    (tmp_path/'e'/'trained_on.csv').unlink()
    main(str(tmp_path/'e'), str(leaves/'images'/'Train_0.jpg'), out=str(tmp_path/'x.csv'))
    assert 'does not say which pictures it was trained on: none is refused' in capsys.readouterr().out

def test_pictures_that_cannot_be_read(runs, refused, tmp_path, capsys):
    (tmp_path/'p').mkdir()
    for i in range(3): noise(i).save(tmp_path/'p'/f'{i}.png')
    (tmp_path/'p'/'cut.png').write_bytes((tmp_path/'p'/'0.png').read_bytes()[:200])
    (tmp_path/'p'/'empty.jpg').write_bytes(b'')
    main(str(runs/'one'), str(tmp_path/'p'), out=str(tmp_path/'x.csv'))
    assert '2 of 5 pictures cannot be read, the first' in capsys.readouterr().out
    assert pd.read_csv(tmp_path/'x.csv').id.tolist()==['0.png','1.png','2.png']
    for i in range(3): (tmp_path/'p'/f'{i}.png').unlink()
    refused('2 of 2 pictures cannot be read', runs/'one', tmp_path/'p', out=str(tmp_path/'y.csv'))
    (tmp_path/'t.csv').write_text('image_id\nno\nneither\n')
    refused('2 of 2 pictures cannot be read', runs/'one', tmp_path/'t.csv', out=str(tmp_path/'y.csv'))
    assert not (tmp_path/'y.csv').exists()

def test_wrong_input(runs, others, refused, tmp_path):
    run,good = runs/'one',others/'Train_1.jpg'
    refused('no such folder: ', tmp_path/'none', good)
    (tmp_path/'empty').mkdir()
    refused('has no ensemble.json: RUN is a folder that fastai-mix wrote', tmp_path/'empty', good)
    (tmp_path/'empty'/'config.json').write_text('{}')
    refused('is a run that is not finished', tmp_path/'empty', good)
    refused('no such file or folder', run, tmp_path/'none')
    refused('no such file or folder', run, good, tmp_path/'none.jpg')
    refused('is no picture: PICTURES are one folder, one CSV, or any number', run, good, others)
    refused('no PICTURES', run)
    refused("--tta", run, good, tta='d5')
    refused('leave it out, or give the CSV', run, others, images=str(others))
    refused('is a folder: give a file', run, good, out=str(tmp_path))
    refused('there is no folder', run, good, out=str(tmp_path/'no'/'p.csv'))
    (tmp_path/'t.csv').write_text('name\nTrain_1\n')
    refused('is what is to be predicted', run, tmp_path/'t.csv', out=str(tmp_path/'t.csv'))
    refused("no column 'image_id'", run, tmp_path/'t.csv', out=str(tmp_path/'p.csv'))
    shutil.copytree(others, tmp_path/'test_images')
    refused(f"give --images {tmp_path/'test_images'}", run, tmp_path/'t.csv', image_col='name',
        out=str(tmp_path/'p.csv'))
    shutil.copytree(run/'ensemble', tmp_path/'e')
    (tmp_path/'e'/'ensemble.json').write_text('{"vocab": 3}')
    refused('ensemble.json', tmp_path/'e', good, out=str(tmp_path/'p.csv'))
    assert not (tmp_path/'p.csv').exists()

def test_files_that_are_no_predictions_are_not_written_over(runs, others, refused, tmp_path):
    shutil.copytree(runs/'one', tmp_path/'run')
    shutil.copy(others/'Train_1.jpg', tmp_path/'a.jpg')
    for file in (tmp_path/'a.jpg', tmp_path/'run'/'config.json', tmp_path/'run'/'predictions.csv'):
        before = file.read_bytes()
        refused('is there, and no table of this command', tmp_path/'run', others/'Train_2.jpg', out=str(file))
        assert file.read_bytes()==before
    for _ in range(2): main(str(runs/'one'), str(others/'Train_2.jpg'), out=str(tmp_path/'p.csv'))

def test_an_interrupt(runs, others, refused, tmp_path, monkeypatch):
    def interrupted(*args): raise KeyboardInterrupt
    monkeypatch.setattr(predict, 'load_ensemble', interrupted)
    refused(f"fastai-mix-predict: stopped; {tmp_path/'p.csv'} has not been written", runs/'one', others/'Train_1.jpg',
        code=130, out=str(tmp_path/'p.csv'))
