"""The command when it is killed, stopped, run twice at once, or given what is broken: one result, or one line that
says what to do."""
import errno
import json
import os
import shutil
import signal
import sys
import time
import warnings

import kills
import numpy as np
import pandas as pd
import pytest
import timm
import torch
from fastai_mix import cli, files
from fastai_mix.cli import main
from fastai_mix.command import in_a_line
from fastai_mix.crossval import CrossVal
from fastai_mix.data.leaves import leaf_data
from filelock import FileLock
from PIL import Image
from safetensors.torch import load_file, save_file

@pytest.fixture(scope='module')
def leaves(tmp_path_factory): return leaf_data(tmp_path_factory.mktemp('leaves')/'data', n=40, size=64)

@pytest.fixture
def args(leaves, tmp_path):
    return dict(data=str(leaves/'train.csv'), label_col='labels', arch='test_resnet', size=32, bs=8, epochs=1, lr=1e-3,
        fold=0, folds=2,
        mix='none', out=str(tmp_path/'run'))

@pytest.fixture
def refused(args, capsys):
    "Run the command, which must end with one line that has all of `words`"
    def run(*words, code=2, **kwargs):
        capsys.readouterr()
        with warnings.catch_warnings(), pytest.raises(SystemExit) as e:
            warnings.simplefilter('ignore')
            main(**{**args, **kwargs})
        lines = capsys.readouterr().err.splitlines()
        assert e.value.code==code and len(lines)==1 and lines[0].startswith('fastai-mix: '), lines
        for o in words: assert str(o) in lines[0], (o, lines[0])
    return run

@pytest.fixture
def untrained(monkeypatch): monkeypatch.setattr(cli, '_fit', lambda o, learn: pytest.fail('trained'))

def folder_of(tmp_path, *names, n=8):
    "Class folders of pictures that are all different"
    for i,name in enumerate(names):
        (tmp_path/'d'/name).mkdir(parents=True)
        for j in range(n):
            Image.fromarray(np.random.default_rng(n*i+j).integers(0, 255, (40,40,3), dtype=np.uint8)).save(
                tmp_path/'d'/name/f'{j}.png')
    return tmp_path/'d'

# ---- kills, and several at once

def test_killed_at_any_write_a_run_ends_with_the_same_files():
    res = kills.command_kills(6, seed=1, names=('one fold','choice','submission'))
    assert res['kills']>=6 and res['runs']==res['equal_to_unkilled']==6 and not res['left_behind'], res

def test_one_fold_is_the_fold_that_all_folds_have(args, tmp_path):
    main(**{**args, 'fold':1, 'mix':'snapmix'})
    main(**{**args, 'fold':None, 'mix':'snapmix', 'out':str(tmp_path/'all')})
    one,all = (load_file(o) for o in (tmp_path/'run'/'model.safetensors',
        tmp_path/'all'/'folds'/'fold_1'/'model.safetensors'))
    assert one.keys()==all.keys() and all and {k for k in one if not torch.equal(one[k], all[k])}==set()

def at_once(tmp_path, *names):
    kills.pictures(tmp_path)
    (tmp_path/'w').mkdir()
    ps = [kills.processes.Process(target=kills.call, args=(tmp_path/'w', o)) for o in names]
    for p in ps: p.start()
    for p in ps: p.join()
    return [p.exitcode for p in ps],kills.outputs(tmp_path/'w'/'run'),(tmp_path/'w'/'log').read_text()

def test_two_of_one_fold_at_once_make_one_result(tmp_path):
    (tmp_path/'a').mkdir(), (tmp_path/'b').mkdir()
    codes,files,_ = at_once(tmp_path/'a', 'echo', 'echo')
    _,want,_ = at_once(tmp_path/'b', 'echo')
    assert codes==[0,0] and kills.differing(files, want)==[] and not kills.left_behind(tmp_path/'a'/'w'/'run')

def test_one_fold_and_all_folds_at_once_do_not_mix(tmp_path):
    codes,files,log = at_once(tmp_path, 'submission', 'folds')
    assert sorted(codes)==[0,2] and 'Traceback' not in log and ('report.txt' in files)==(codes[1]==0)
    assert ('holds a run of all folds' in log)!=('holds a run of one fold' in log)

def test_another_command_is_refused_wherever_the_first_was_killed(args, refused, tmp_path, monkeypatch):
    def killed(self, *args): raise KeyboardInterrupt
    monkeypatch.setattr(CrossVal, '_predict_fold', killed)
    refused('stopped; the same command goes on with', code=130)
    assert {o.name for o in (tmp_path/'run').iterdir()}=={'.lock','config.json','folds','stopped.txt'}
    monkeypatch.undo()
    refused('--epochs 1 there, 2 here', epochs=2)
    refused('--fold 0 there, 1 here', fold=1)
    main(**args)
    assert json.loads((tmp_path/'run'/'config.json').read_text())['vocab']==['healthy','multiple_diseases','rust',
        'scab']

def test_what_was_left_behind_is_removed(args, tmp_path):
    main(**args)
    run = tmp_path/'run'
    left = [f/n for f in (run, run/'ensemble', run/'folds', run/'folds'/'fold_0')
        for n in ('.a.csv.7.part','.tmpAb3dEf')] + [run/'folds'/'fold_0'/'holder.txt']
    mine = run/'.notes'
    for f in (*left,mine): f.write_text('')
    (run/'folds'/'fold_0'/'checkpoints').mkdir()
    main(**args)
    assert [f for f in left if f.exists()]==[] and mine.exists() and not (run/'folds'/'fold_0'/'checkpoints').exists()

def test_the_weights_of_a_search_that_was_killed_are_removed(args, tmp_path):
    (tmp_path/'run'/'.lr_find').mkdir(parents=True)
    (tmp_path/'run'/'.lr_find'/'_tmp.pth').write_bytes(b'0'*100)
    main(**{**args, 'lr':'find'})
    assert not (tmp_path/'run'/'.lr_find').exists()

def test_rows_that_name_a_picture_again_are_predicted_each(args, leaves, tmp_path):
    df = pd.read_csv(leaves/'train.csv')[['image_id','labels']]
    df['split'] = ['train']*20+['test']*20
    pd.concat([df, df.iloc[-2:]]).to_csv(tmp_path/'t.csv', index=False)
    args.update(data=str(tmp_path/'t.csv'), images=str(leaves/'images'), split_col='split', fold=None, folds=None)
    for _ in range(2):
        main(**args)
        preds = pd.read_csv(tmp_path/'run'/'predictions.csv')
        assert preds.id.tolist()==[*df.image_id[20:], *df.image_id[-2:]]
        assert np.allclose(preds.iloc[-2:,2:], preds.iloc[-4:-2,2:], atol=1e-5)

# ---- what is going to be written

@pytest.mark.parametrize('name,shown', [('a\rb', "'a\\rb'"), (os.fsdecode(b'caf\xe9'), "'caf\\udce9'")])
def test_names_that_cannot_be_written_are_known_before_training(name, shown, refused, untrained, tmp_path):
    d = folder_of(tmp_path, name, 'dog')
    refused(f'the class {shown} does not come back from a CSV file', data=str(d), label_col='label')
    shutil.move(d/name, d/'cat')
    shutil.move(d/'cat'/'0.png', d/'cat'/f'{name}.png')
    refused(f"the picture name {shown[:-1].replace(chr(39), chr(39)+'cat/')}.png' does not come back", data=str(d),
        label_col='label')
    shutil.move(d/'cat'/f'{name}.png', d/'cat'/'0.png')
    (tmp_path/'test').mkdir()
    Image.new('RGB', (40,40)).save(tmp_path/'test'/f'{name}.png')
    refused(f'the picture name {shown[:-1]}.png', data=str(d), label_col='label', test=str(tmp_path/'test'))

def test_a_name_too_long_for_a_file(refused, untrained, tmp_path):
    (tmp_path/'t.csv').write_text('image_id,labels\n'+'x'*300+'/a,b\n')
    refused('File name too long', data=str(tmp_path/'t.csv'))
    refused('File name too long', out=str(tmp_path/('x'*300)))

def test_classes_with_dollars_are_no_formulas(args, tmp_path):
    main(**{**args, 'data':str(folder_of(tmp_path, '$\\frac$', '$^$')), 'label_col':'label', 'mix':'snapmix'})
    assert (tmp_path/'run'/'confusion.png').exists() and (tmp_path/'run'/'mix.png').exists()

def test_a_folder_called_tilde_is_that_folder(args, tmp_path, monkeypatch):
    (tmp_path/'home').mkdir(), (tmp_path/'here').mkdir()
    monkeypatch.setenv('HOME', str(tmp_path/'home'))
    monkeypatch.chdir(tmp_path/'here')
    main(**{**args, 'out':'./~/x'})
    assert (tmp_path/'here'/'~'/'x'/'predictions.csv').exists() and not list((tmp_path/'home').iterdir())

@pytest.mark.parametrize('fold', [None, 0])
def test_no_predictions_are_left_of_other_test_pictures(fold, args, tmp_path, capsys):
    kills.pictures(tmp_path)
    args['fold'] = fold
    main(**args, test=str(tmp_path/'leaves'/'test'), sample=str(tmp_path/'leaves'/'sample.csv'))
    assert (tmp_path/'run'/'submission.csv').exists()
    (tmp_path/'other').mkdir()
    shutil.copy(next((tmp_path/'leaves'/'test').iterdir()), tmp_path/'other'/'new.jpg')
    capsys.readouterr()
    main(**args, test=str(tmp_path/'other'))
    assert not (tmp_path/'run'/'submission.csv').exists() and 'submission.csv' not in capsys.readouterr().out
    assert pd.read_csv(tmp_path/'run'/'test_predictions.csv').id.tolist()==['new.jpg']

# ---- what is there

def test_a_picture_replaced_by_one_of_the_same_size(args, refused, tmp_path):
    d = folder_of(tmp_path, 'cat', 'dog')
    main(**{**args, 'data':str(d), 'label_col':'label'})
    shutil.copytree(d, tmp_path/'copy') # with other times
    copy = dict(data=str(tmp_path/'copy'), label_col='label')
    main(**{**args, **copy})
    file,was = tmp_path/'copy'/'cat'/'0.png',(d/'cat'/'0.png').stat()
    Image.open(file).save(file, dpi=(72,72))
    data = file.read_bytes()
    file.write_bytes(data+b'\0'*(was.st_size-len(data)) if len(data)<was.st_size
        else (d/'cat'/'0.png').read_bytes()[:-1]+b'\0')
    os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert file.stat().st_size==was.st_size
    refused('other pictures have the same names', **copy)

broken_configs = ['[]', '{}', '{"versions": 3}', '{"versions": {}}', '['*10000, '{"a":'*10000, 'not json', '', '\xff',
    '3', 'null',
    '{"versions": {"fastai_mix": "0"}, "lr": "x"}', '{"versions": {"fastai_mix": "0"}, "lr": 1, "mix": "none"}']

@pytest.mark.parametrize('text', broken_configs, ids=range(len(broken_configs)))
def test_a_broken_config_is_named(text, refused, untrained, tmp_path):
    (tmp_path/'run').mkdir()
    (tmp_path/'run'/'config.json').write_text(text, encoding='latin-1')
    refused(tmp_path/'run'/'config.json', 'holds something that is not a run of fastai-mix')

@pytest.mark.parametrize('key', ['mix','lr','fold','pictures','echo','plc'])
def test_a_config_without_a_key(key, args, refused, tmp_path):
    main(**args)
    file = tmp_path/'run'/'config.json'
    file.write_text(json.dumps({k:v for k,v in json.loads(file.read_text()).items() if k!=key}))
    if key=='echo': return main(**args) # of a time when there was none
    refused(*(['holds a run of all folds'] if key=='fold' else [file,repr(key)]))

@pytest.mark.parametrize('name', ['config.json','fold.json','oof.csv','history.csv','model.safetensors'])
@pytest.mark.parametrize('data', [None, b'', b'[]', b'\xff\xfe\0', b'{"digest": 3}', b'id,fit\n1,2\n', b'['*10000])
@pytest.mark.parametrize('fold', [None, 0])
def test_a_broken_file_of_a_fold_is_named(name, data, fold, args, refused, tmp_path, done):
    # trained again, begun again, not read
    if name=='fold.json' and data is None or name=='config.json' and data is None or name=='oof.csv' and fold==0: return
    shutil.copytree(done[fold], tmp_path/'run')
    file = tmp_path/'run'/'folds'/('config.json' if name=='config.json' else f'fold_0/{name}')
    file.unlink()
    if data is not None: file.write_bytes(data)
    refused(file, 'give another folder' if name=='config.json'
        else f'remove {file.parent}, and `fit` trains fold 0 again', fold=fold)

@pytest.fixture(scope='module')
def done(leaves, tmp_path_factory):
    "Runs of all folds and of one"
    out = tmp_path_factory.mktemp('done')
    for fold in (None,0):
        main(data=str(leaves/'train.csv'), label_col='labels', arch='test_resnet', size=32, bs=8, epochs=1, lr=1e-3,
            fold=fold, folds=2,
        mix='none', out=str(out/str(fold)))
    return {fold: out/str(fold) for fold in (None,0)}

def test_a_row_less_and_a_probability_that_is_none(args, refused, tmp_path, done):
    shutil.copytree(done[None], tmp_path/'run')
    file = tmp_path/'run'/'folds'/'fold_1'/'oof.csv'
    text = file.read_text()
    for bad in (text.rsplit('\n', 2)[0]+'\n', text+text.splitlines()[-1]+'\n', text.rsplit(',', 1)[0]+',nan\n',
        text.rsplit(',', 1)[0]+'\n'):
        file.write_text(bad)
        refused(file, 'is not as it was written', 'fold 1 again', fold=None)
    file.write_text(text)
    main(**{**args, 'fold':None})

def test_corrected_labels_that_are_gone(args, refused, tmp_path):
    main(**{**args, 'fold':None, 'plc':True})
    file = tmp_path/'run'/'folds'/'fold_1'/'labels.csv'
    file.unlink()
    refused(file, 'fold 1 again', fold=None, plc=True)

# ---- numbers

def test_training_that_diverges(refused, tmp_path):
    refused('--lr inf: expected a positive number, or find', lr=float('inf'))
    refused('--lr nan', lr=float('nan'))
    refused('predicts NaN, as its training diverged', lr=1e30)
    assert not (tmp_path/'run'/'predictions.csv').exists()

def test_numbers_beyond_reason(refused, untrained):
    refused('--size 100000', 'GB', size=100000)
    refused('--size', size=10**30)
    refused('--oversample scab=1e12', 'rows to train on', oversample='scab=1e12')
    refused('--oversample 1000000000000', oversample='1000000000000')
    refused('inf', oversample='scab=inf')
    refused('--seed -1', seed=-1)
    refused('--seed', seed=2**32-1)

weights = {'list': [1,2], 'int keys': {1: torch.ones(2)}, 'numbers': {'conv1.weight': 3}, 'tensor': torch.ones(2),
    'none': None}

@pytest.mark.parametrize('name', weights)
def test_weights_that_are_none(name, refused, untrained, tmp_path):
    torch.save(weights[name], tmp_path/'w.pth')
    refused(tmp_path/'w.pth', weights=str(tmp_path/'w.pth'))

@pytest.mark.parametrize('value', ['nan','inf'])
def test_weights_of_a_training_that_diverged(value, refused, untrained, tmp_path):
    body = timm.create_model('test_resnet').state_dict()
    name = next(iter(body))
    body[name][0] = float(value)
    save_file(body, tmp_path/'w.safetensors')
    refused(tmp_path/'w.safetensors', "NaN or infinity in 1 of", repr(name), weights=str(tmp_path/'w.safetensors'))

# ---- what ends a command

@pytest.fixture
def interruptible():
    "Signals do what they do by default, which processes that run tests, or nohup, may have changed"
    default = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}
    was = {o: signal.signal(o, f) for o,f in default.items()}
    yield
    for o,f in was.items(): signal.signal(o, f)

def test_signals(args, refused, tmp_path, monkeypatch, capsys, interruptible):
    was = [signal.getsignal(o) for o in (signal.SIGINT,signal.SIGTERM,signal.SIGHUP)]
    for name,code in (('SIGINT',130), ('SIGTERM',143), ('SIGHUP',129)):
        def stopped(o, learn):
            os.kill(os.getpid(), getattr(signal, name))
            time.sleep(5)
        monkeypatch.setattr(cli, '_fit', stopped)
        refused('stopped', '' if name=='SIGINT' else name, f"the same command goes on with {tmp_path/'run'}", code=code)
        assert not kills.left_behind(tmp_path/'run') or [o
            for o in kills.left_behind(tmp_path/'run')]==['folds/fold_0/checkpoints']
    assert [signal.getsignal(o) for o in (signal.SIGINT,signal.SIGTERM,signal.SIGHUP)]==was
    monkeypatch.setattr(cli, '_prepare', lambda o: os.kill(os.getpid(), signal.SIGTERM))
    refused('stopped by SIGTERM; nothing has been trained', code=143, out=str(tmp_path/'none'))

def test_a_signal_that_is_ignored_stays_so(args, tmp_path, monkeypatch):
    def hung_up(o, learn):
        os.kill(os.getpid(), signal.SIGHUP)
        learn.fit(1, 1e-3)
    monkeypatch.setattr(cli, '_fit', hung_up)
    was = signal.signal(signal.SIGHUP, signal.SIG_IGN) # as nohup does
    try: main(**args)
    finally: signal.signal(signal.SIGHUP, was)
    assert (tmp_path/'run'/'predictions.csv').exists()

@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS])
def test_a_disk_that_takes_no_more(number, refused, tmp_path, monkeypatch):
    def full(fd):
        if (tmp_path/'run'/'folds'/'fold_0').exists(): raise OSError(number, os.strerror(number))
    monkeypatch.setattr(os, 'fsync', full)
    refused(os.strerror(number), 'the same command goes on with')

@pytest.mark.parametrize('number', [errno.ENOLCK, errno.EIO, errno.EACCES, errno.EPERM])
def test_locks_that_cannot_be_had(number, refused, untrained, tmp_path, monkeypatch):
    def none(self, *args, **kwargs): raise OSError(number, os.strerror(number), self.lock_file)
    monkeypatch.setattr(FileLock, 'acquire', none)
    refused(tmp_path/'run'/'.lock', 'cannot be locked', os.strerror(number))

def denied(what, is_it):
    "`what`, but for the paths `is_it` is true for"
    def f(path, *args, **kwargs):
        if is_it(str(path)): raise PermissionError(errno.EACCES, 'Permission denied', str(path))
        return what(path, *args, **kwargs)
    return f

def test_a_class_folder_that_cannot_be_read_is_not_left_out(refused, untrained, tmp_path, monkeypatch):
    d = folder_of(tmp_path, 'cat', 'dog', 'eel')
    monkeypatch.setattr(os, 'scandir', denied(os.scandir, lambda o: o.endswith('eel')))
    refused(f"{d/'eel'}: Permission denied", data=str(d), label_col='label')
    refused(f"{d/'eel'}: Permission denied", test=str(d))

@pytest.mark.parametrize('what', ['data','sample','weights','test'])
def test_a_file_that_cannot_be_read(what, refused, untrained, leaves, tmp_path, monkeypatch):
    import builtins
    kills.pictures(tmp_path)
    own = tmp_path/'leaves'
    torch.save({}, own/'w.pth')
    shutil.copy(own/'sample.csv', own/'tests.csv')
    paths = dict(data=own/'train.csv', sample=own/'sample.csv', weights=own/'w.pth', test=own/'tests.csv')
    monkeypatch.setattr(builtins, 'open', denied(open, lambda o: o==str(paths[what])))
    kwargs = {k: str(paths[k]) for k in {'data',what}} | (dict(test=str(own/'test')) if what=='sample'
        else {}) | (dict(test_images=str(own/'test')) if what=='test' else {})
    refused(paths[what], 'Permission denied', **kwargs)

def test_a_parent_that_cannot_be_read(refused, untrained, tmp_path, monkeypatch):
    monkeypatch.setattr(os, 'stat', denied(os.stat, lambda o: '/secret/' in o))
    for k in ('data','out','weights','test'): refused('Permission denied', **{k: str(tmp_path/'secret'/'x')})

def test_a_picture_cut_off_while_it_is_trained_on(args, refused, tmp_path, monkeypatch):
    d,show = folder_of(tmp_path, 'cat', 'dog'),cli._show_data
    def cut(*args):
        show(*args)
        for f in d.rglob('*.png'): f.write_bytes(f.read_bytes()[:900])
    monkeypatch.setattr(cli, '_show_data', cut)
    refused(d, '.png cannot be read', data=str(d), label_col='label')

def hold(folder, away):
    "Have the lock of `folder` until there is `away`"
    with FileLock(folder/'.lock'):
        (folder/'.holder').write_bytes(b'process 7 on \xff\xfe, since noon')
        away.with_name('held').write_text('')
        while not away.exists(): time.sleep(.02)
        (folder/'.holder').unlink()

def test_a_lock_of_another_process_is_waited_for_and_told(args, tmp_path, monkeypatch):
    (tmp_path/'run').mkdir()
    p,told = kills.processes.Process(target=hold, args=(tmp_path/'run', tmp_path/'away')),[]
    p.start()
    while not (tmp_path/'held').exists(): time.sleep(.02)
    def tell(text, **kwargs):
        told.append(text)
        (tmp_path/'away').write_text('')
    monkeypatch.setattr(files, 'print', tell, raising=False)
    main(**args)
    p.join()
    assert told[0].startswith(f"process 7 on \ufffd\ufffd, since noon has {tmp_path/'run'}: waiting for it")
    assert (tmp_path/'run'/'predictions.csv').exists()

def test_a_fold_that_another_process_has_is_told(args, tmp_path, capsys):
    main(**args)
    fold = tmp_path/'run'/'folds'/'fold_0'
    (fold/'fold.json').unlink()
    with FileLock(fold/'.lock'):
        (fold/'holder.txt').write_bytes(b'process 7 on \xff\xfe, since noon')
        capsys.readouterr()
        main(**args)
    assert 'fold 0 is not done: process 7 on \ufffd\ufffd, since noon is training it' in capsys.readouterr().out

def piped(folder, leaves):
    "The command with nobody at the other end of its output"
    r,w = os.pipe()
    os.close(r)
    os.dup2(w, 1)
    os.dup2(os.open(folder/'err', os.O_WRONLY | os.O_CREAT), 2)
    sys.stdout = open(1, 'w', closefd=False)
    warnings.simplefilter('ignore')
    main(data=str(leaves/'train.csv'), label_col='labels', arch='test_resnet', size=32, bs=8, epochs=1, lr=1e-3, fold=0,
        folds=2, mix='none', out=str(folder/'run'))

def test_nobody_reads_the_output(leaves, tmp_path):
    p = kills.processes.Process(target=piped, args=(tmp_path, leaves))
    p.start()
    p.join()
    lines = [o for o in (tmp_path/'err').read_text().splitlines() if 'arning' not in o and not o.startswith('  ')]
    assert p.exitcode==2 and len(lines)==1 and 'nobody reads the output any more' in lines[0], lines

@pytest.mark.parametrize('name,is_file', [('folds',True), ('ensemble',True), ('mix.png',False),
    ('test_predictions.csv',False)])
def test_what_is_in_the_way_of_an_output_is_known_before_training(name, is_file, args, refused, untrained, tmp_path,
    done):
    shutil.copytree(done[0], tmp_path/'run')
    shutil.rmtree(tmp_path/'run'/'folds')
    shutil.rmtree(tmp_path/'run'/'ensemble')
    if is_file: (tmp_path/'run'/name).write_text('')
    else: (tmp_path/'run'/name).mkdir()
    refused(f"{tmp_path/'run'/name} is no {'folder' if is_file else 'file'}")

def test_what_a_process_of_a_loader_says_is_one_line():
    from torch._utils import ExceptionWrapper
    try: raise ValueError('/a: b.png cannot be read (truncated)')
    except ValueError: wrapped = ExceptionWrapper(where='in DataLoader worker process 0')
    with pytest.raises(ValueError) as e: wrapped.reraise()
    assert in_a_line(e.value)=='/a: b.png cannot be read (truncated)'
