"""Files of somebody else: none of them runs code, asks the network or is used in silence; each gives one line that
names it."""
import json
import os
import pickle
import random
import re
import shutil
import socket
import sys
from argparse import Namespace
from collections import OrderedDict
from copy import deepcopy
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from fastai.vision.all import nn
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from fastai_mix.callback.plc import ProgressiveLabelCorrection
from fastai_mix.checkpoint import learner_state, load_learner_state, load_state, resumable, save_state, write_atomic
from fastai_mix.cli import main, read_weights
from fastai_mix.crossval import CrossVal, Ensemble, blend, load_ensemble
from fastai_mix.files import check_tensors, load_weights, printable, read_json, read_network, write_json, write_network
from fastai_mix.vision.learner import create_timm_classifier, timm_learner

sys.path.insert(0, str(Path(__file__).parent.parent/'benchmarks'))
import tamper
from helpers import make_dls, one, tiny

pytestmark = pytest.mark.filterwarnings('ignore')

class Code:
    "Writes a file when it is unpickled"
    def __init__(self, marker): self.marker = marker
    def __reduce__(self): return Path.write_text, (self.marker, 'run')

def says(file, f, *args, **kwargs):
    "The one line of the ValueError of `f`, which names `file`"
    with pytest.raises(ValueError) as e: f(*args, **kwargs)
    assert type(e.value) is ValueError and '\n' not in str(e.value) and str(file) in str(e.value), repr(e.value)
    return str(e.value)

@pytest.fixture
def evil(tmp_path):
    "Puts pickles that run code into a file; then none of them may have run"
    marker = tmp_path/'marker'
    def put(file, wrap=lambda o: o, save=torch.save):
        save(wrap(Code(marker)), file)
        return file
    yield put
    assert not marker.exists()

@pytest.fixture(autouse=True)
def old_timm(monkeypatch):
    "timm before 1.0.26 reads files by torch without weights_only"
    import timm.models._builder as builder
    def read(file, *_, **__):
        file = next(file.iterdir()) if Path(file).is_dir() else file
        return torch.load(file, map_location='cpu', weights_only=False)
    for name in ('load_state_dict','load_state_dict_from_path'): monkeypatch.setattr(builder, name, read, raising=False)

def cli_weights(file, folder, capsys):
    "The command's error as a ValueError"
    for c in 'ab':
        (folder/'data'/c).mkdir(parents=True, exist_ok=True)
        for i in range(6): Image.new('RGB', (32,32), (i*9,ord(c),9)).save(folder/'data'/c/f'{i}.png')
    with pytest.raises(SystemExit):
        main(data=str(folder/'data'), arch='test_resnet', weights=str(file), size=32, bs=4, folds=2, fold=0, lr=.1,
            out=str(folder/'run'))
    raise ValueError(capsys.readouterr().err.strip())

readers = {
    'load_weights':  lambda file, *_: load_weights(file),
    'classifier':    lambda file, *_: create_timm_classifier('test_resnet', 2, weights=file),
    'learner':       lambda file, *_: timm_learner(make_dls(64, 8), 'test_resnet', weights=str(file)),
    'function':      lambda file, *_: create_timm_classifier(timm.models.test_resnet, 2, weights=file),
    'another pool':  lambda file, *_: create_timm_classifier('test_resnet', 2, weights=file, global_pool='catavgmax'),
    'command':       cli_weights,
}
pickled = {
    'alone':      (lambda o: o, torch.save),
    'among':      (lambda o: {'conv1.weight':torch.rand(2), 'x':o}, torch.save),
    'state_dict': (lambda o: {'state_dict':{'a':torch.rand(2)}, 'epoch':o}, torch.save),
    'old format': (lambda o: [o], partial(torch.save, _use_new_zipfile_serialization=False)),
    'pickle':     (lambda o: {'a':o}, lambda o, file: file.write_bytes(pickle.dumps(o))),
}

@pytest.mark.parametrize('reader', readers)
@pytest.mark.parametrize('kind', pickled)
def test_weights_run_no_code(reader, kind, evil, tmp_path, capsys):
    for ending in ('pth','bin','safetensors') if reader!='command' else ('pth',):
        file = evil(tmp_path/f'w.{ending}', *pickled[kind])
        assert 'weights_only=True' in says(file, readers[reader], file, tmp_path, capsys)

def test_a_local_folder_of_timm(tmp_path, evil):
    model = timm.create_model('test_resnet', num_classes=3)
    cfg = dict(architecture='test_resnet', num_classes=3,
        pretrained_cfg=dict(file=str(evil(tmp_path/'other.pth')), url='http://127.0.0.1:9/w.pth'))
    folder = tmp_path/'net'
    folder.mkdir()
    (folder/'config.json').write_text(json.dumps(cfg))
    arch = f'local-dir:{folder}'
    assert 'has no weights' in says(folder, create_timm_classifier, arch, 3)
    for name in ('x.pth','model.pth','pytorch_model.bin','model.safetensors'):
        says(evil(folder/name), create_timm_classifier, arch, 3)
    save_file(model.state_dict(), folder/'model.safetensors') # comes before the others, as for timm
    for n in (3,5):
        m = create_timm_classifier(arch, n)
        assert torch.equal(m.conv1[0].weight, model.conv1[0].weight) and m.num_classes==n and torch.equal(m.fc.weight,
            model.fc.weight)==(n==3)
    says('timm has no', create_timm_classifier, f' {arch}', 3)
    for k in ('pretrained_cfg_overlay','pretrained_cfg'):
        with pytest.raises(TypeError, match=f'no `file` in `{k}`: use `weights`'):
            create_timm_classifier('test_resnet', 3, **{k:dict(file=str(folder/'x.pth'))})

net = {'a.weight':torch.rand(2, 2), 'a.bias':torch.rand(2)}
odd = {
    'a list':       ([torch.rand(2)], 'list of length 1'),
    'nothing':      ({}, 'dict of length 0'),
    'a tensor':     (torch.rand(3), 'Tensor of length 3'),
    'a number':     (3, 'holds int'),
    'int keys':     ({1: torch.rand(2)}, '1: Tensor'),
    'no tensors':   ({'a': 3}, "'a': int"),
    'optimizer':    ({**net, 'opt': {'state':{}}}, "'opt': dict"),
    'inside':       ({'state_dict': [1]}, 'list of length 1'),
    'inside none':  ({'model': None}, 'NoneType'),
    'empty inside': ({'state_dict': {}}, 'dict of length 0'),
    'sparse':       ({'a': torch.eye(3).to_sparse()}, "'a': Tensor"),
    'no data':      ({'a': torch.empty(3, device='meta')}, "'a': Tensor"),
    'twice':        ({**net, 'module.a.bias':torch.rand(2)}, 'holds weights twice'),
}

@pytest.mark.parametrize('name', odd)
def test_weights_that_are_none(name, tmp_path):
    content,what = odd[name]
    torch.save(content, tmp_path/'w.pth')
    for reader in ('load_weights','classifier','learner'):
        assert what in says(tmp_path/'w.pth', readers[reader], tmp_path/'w.pth')
    assert what in says(tmp_path/'w.pth', read_weights, timm.create_model('test_resnet', num_classes=0),
        tmp_path/'w.pth')

def plain_opt():
    m = nn.Linear(2, 2)
    opt = torch.optim.AdamW(m.parameters())
    m(torch.rand(1, 2)).sum().backward()
    opt.step()
    return opt.state_dict()

wrapped = {
    'plain':     lambda s: s,
    'ordered':   OrderedDict,
    'parallel':  lambda s: {f'module.{k}':v for k,v in s.items()},
    'compiled':  lambda s: {f'_orig_mod.{k}':v for k,v in s.items()},
    'state':     lambda s: dict(state_dict=s, optimizer=plain_opt(), epoch=3, args=Namespace(lr=.1)), # as timm trains
    'model':     lambda s: dict(model={f'module.{k}':v for k,v in s.items()}, opt=plain_opt()),
    'averaged':  lambda s: dict(state_dict={k: v*0 for k,v in s.items()}, state_dict_ema=s, model=None),
    'average 2': lambda s: dict(model={}, model_ema=s, state_dict_ema=None),
}

@pytest.mark.parametrize('how', wrapped)
def test_weights_are_unwrapped_as_timm_does_it(how, tmp_path):
    source = timm.create_model('test_resnet', num_classes=3)
    torch.save(wrapped[how](source.state_dict()), tmp_path/'w.pth')
    m = create_timm_classifier('test_resnet', 3, weights=tmp_path/'w.pth')
    for k,v in m.state_dict().items(): assert torch.equal(v, source.state_dict()[k]), k
    body = timm.create_model('test_resnet', num_classes=0)
    read_weights(body, tmp_path/'w.pth')
    assert torch.equal(body.conv1[0].weight, source.conv1[0].weight)

def test_weights_are_kept_once(tmp_path):
    torch.save(timm.create_model('test_resnet').state_dict(), tmp_path/'w.pth')
    m = create_timm_classifier('test_resnet', 2, weights=tmp_path/'w.pth', n_in=1)
    assert m.num_classes==2 and m.conv1[0].weight.shape[1]==1
    assert 'state_dict' not in m.pretrained_cfg and 'state_dict' not in m.default_cfg # an export holds them, too

# what the package writes

@pytest.fixture(scope='module')
def written(tmp_path_factory):
    "An ensemble, labels and a checkpoint, in a folder each"
    d = tmp_path_factory.mktemp('written')
    for kind,(write,_) in tamper.kinds.items():
        (d/kind/'it').mkdir(parents=True)
        write(d/kind/'it')
    return d

@pytest.fixture
def copy_of(written, tmp_path):
    def copy(kind, name='it'):
        shutil.copytree(written/kind/'it', tmp_path/name)
        return tmp_path/name
    return copy

@pytest.fixture
def offline(monkeypatch):
    def ask(*_, **__): raise AssertionError('a request')
    for o,name in ((socket.socket,'connect'), (socket,'getaddrinfo')): monkeypatch.setattr(o, name, ask)

def test_tampered_files_are_refused_in_one_line(offline):
    counts,rows = tamper.tamper(12, seed=3)
    assert not list(filter(tamper.is_wrong, rows))
    assert counts['requests']==0 and not counts['code_run'] and counts['signed']['refused']>30 and counts['files']==108

def test_tampered_run_folders_are_refused_in_one_line(offline):
    rows = []
    for kind,n in (('crossval',18), ('command',3)):
        counts,of_kind = tamper.tamper(n, seed=3, kinds=[kind])
        assert counts['requests']==0 and not counts['code_run']
        rows += of_kind
    assert len(rows)==63 and sum(row['outcome']=='refused' for row in rows)>25
    assert not list(filter(tamper.is_wrong, rows))

def test_files_of_older_versions_are_read(copy_of):
    for kind,(_,read) in tamper.kinds.items():
        digest = read(copy_of(kind, kind))
        tamper.without_checksums(copy_of(kind, f'{kind}-older'))
        assert read(copy_of(kind, f'{kind}2'))==digest==read(copy_of(kind, f'{kind}3').parent/f'{kind}-older')

@pytest.mark.parametrize('kind', tamper.kinds)
def test_every_flipped_bit_counts(kind, copy_of):
    "Of the tensors and of the texts, at both ends and between"
    whole = copy_of(kind)
    for file in sorted(whole.rglob('*.safetensors')):
        data = file.read_bytes()
        n = 8+int.from_bytes(data[:8], 'little')
        for i,position in enumerate((n, (n+len(data))//2, len(data)-1, data.index(b'sha256')+12)):
            folder = copy_of(kind, f'{file.stem}-{i}') # reading a run goes on with it
            changed = folder/file.relative_to(whole)
            changed.write_bytes(tamper.flip_bit(data, random.Random(0), position)[0])
            says(changed, tamper.kinds[kind][1], folder)

def test_pickles_in_the_place_of_files(evil, copy_of, df, get_dls, tmp_path):
    for kind,(_,read) in tamper.kinds.items():
        for i,file in enumerate(tamper.files_in(copy_of(kind, kind))):
            if file.name=='table.csv': continue # nothing but a comparison of tables that differ reads it
            for how in ('alone','pickle') if kind in tamper.files else ('alone',):
                folder = copy_of(kind, f'{kind}-{i}-{how}')
                changed = folder/file.relative_to(tmp_path/kind)
                says(evil(changed, *pickled[how]), read, folder)
    says(evil(tmp_path/'s.safetensors'), load_state, tmp_path/'s.safetensors')
    cv = CrossVal(df.assign(fold=df.fold.clip(upper=1)), get_dls, tiny, tmp_path/'run').fit(one)
    kept = (tmp_path/'run'/'fold_0'/'model.safetensors').read_bytes()
    says(evil(tmp_path/'run'/'fold_0'/'model.safetensors'), cv.learner, 0)
    says(tmp_path/'run'/'fold_0'/'model.safetensors', cv.ensemble)
    (tmp_path/'run'/'fold_0'/'model.safetensors').write_bytes(
        tamper.flip_bit(kept, random.Random(0), len(kept)-1)[0])
    says(tmp_path/'run'/'fold_0'/'model.safetensors', cv.learner, 0)

def in_json(name, **kwargs):
    "A change of keys of a JSON file"
    def change(folder):
        content = json.loads((folder/name).read_text())
        (folder/name).write_text(json.dumps({**content, **kwargs}))
    return name,change

def in_text(name, pattern, new):
    "A change of the first match in a text file"
    def change(folder):
        text,n = re.subn(pattern, new, (folder/name).read_text(), count=1)
        assert n
        (folder/name).write_text(text)
    return name,change

def in_bytes(name, f): return name,lambda folder: (folder/name).write_bytes(f((folder/name).read_bytes()))

def zeros_at_the_end(data): return data[:len(data)//2]+bytes(len(data)-len(data)//2)

bad_runs = {
    'seed':             in_json('config.json', seed=7),
    'column':           in_json('config.json', label_col='x'),
    'digest':           in_json('config.json', digest='0'*64),
    'no list':          in_json('config.json', seed={}),
    'vocab is text':    in_json('fold_0/fold.json', vocab='ab'),
    'norm is a number': in_json('fold_0/fold.json', norm=3),
    'no epochs':        in_json('fold_0/fold.json', n_epoch=None),
    'cut':              in_bytes('fold_0/fold.json', lambda data: data[:-2]),
    'a row less':       in_text('fold_0/oof.csv', r'\n[^\n]+\n$', '\n'),
    'a row twice':      in_text('fold_0/oof.csv', r'(\n[^\n]+)\n', r'\1\1\n'),
    'no number':        in_text('fold_0/oof.csv', r'0\.\d+', 'x'),
    'another class':    in_text('fold_0/oof.csv', 'label,a,', 'label,x,'),
    'oof of zeros':     in_bytes('fold_0/oof.csv', zeros_at_the_end),
    'empty history':    in_bytes('fold_0/history.csv', lambda data: b''),
    'no epoch':         in_text('fold_0/history.csv', 'epoch', 'x'),
    'empty labels':     in_bytes('fold_0/labels.csv', lambda data: b''),
    'weights':          in_bytes('fold_0/model.safetensors', lambda data: data[:-1]+b'x'),
    'checkpoint':       in_bytes('fold_1/checkpoints/fit0.safetensors', lambda data: data[:-1]+b'x'),
    'other classes':    in_json('fold_0/fold.json', vocab=['a','x']),
    'more classes':     in_json('fold_0/fold.json', vocab=['a','b','b']),
    'other norm':       in_json('fold_0/fold.json', norm=[[.5]*3,[1.]*3]),
    'epochs of text':   in_json('fold_0/fold.json', n_epoch=['x']),
    'negative':         in_text('fold_0/oof.csv', r'0\.(\d+)', r'-0.\1'),
    'infinite':         in_text('fold_0/oof.csv', r'0\.\d+', 'inf'),
    'another number':   in_text('fold_0/oof.csv', r'0\.\d+', '0.25'),
    'history of zeros': in_bytes('fold_0/history.csv', zeros_at_the_end),
    'shorter history':  in_text('fold_0/history.csv', r'\n[^\n]+\n$', '\n'),
    'labels of zeros':  in_bytes('fold_0/labels.csv', zeros_at_the_end),
    'shorter labels':   in_text('fold_0/labels.csv', r'\n[^\n]+\n$', '\n'),
    'labels of a class that is none': in_text('fold_0/labels.csv', r',a,', ',x,'),
    'other seconds':    in_json('fold_0/fold.json', train_seconds=-1.),
}

@pytest.mark.parametrize('case', bad_runs)
def test_run_folders_of_somebody_else(case, copy_of, offline):
    (name,change),folder = bad_runs[case],copy_of('crossval')
    change(folder)
    says(folder if name=='config.json' else folder/name, tamper.read_crossval, folder)

bad_older_runs = {k:bad_runs[k] for k in ('other classes','more classes','other norm','epochs of text','negative',
    'infinite','other seconds','a row less','no epoch','empty labels')} | {
    'of another fold': in_json('fold_0/fold.json', fold=1),
    'other epochs':    in_json('fold_0/fold.json', n_epoch=[7]),
    'hidden class':    in_json('fold_0/fold.json', vocab=['a','\x1b[2J\n']),
    'no seconds':      in_json('fold_0/fold.json', predict_seconds=None),
    'rows of zeros':   in_text('fold_0/oof.csv', r'0\.\d+,0\.\d+', '0,0'),
}

@pytest.mark.parametrize('case', bad_older_runs)
def test_run_folders_of_older_versions(case, copy_of, offline):
    "Types and ranges are checked where there is no checksum"
    (name,change),folder = bad_older_runs[case],copy_of('crossval')
    tamper.without_checksums(folder)
    change(folder)
    assert says(folder/name, tamper.read_crossval, folder).isprintable()

def test_a_table_that_its_owner_changed(copy_of):
    folder = copy_of('crossval')
    file = folder/'fold_0'/'oof.csv'
    text = file.read_text()
    file.write_text(text.replace('\n', '\r\n'))
    what = says(file, tamper.read_crossval, folder)
    assert 'copy it again from the original, or remove' in what and '`fit` trains fold 0 again' in what
    shutil.rmtree(file.parent) # as the line says
    tamper.read_crossval(folder)
    assert file.read_text()==text

def test_labels_of_a_fold_that_has_none(df, get_dls, tmp_path):
    cv = CrossVal(df, get_dls, tiny, tmp_path/'run').fit(one)
    shutil.copy(cv.path/'fold_0'/'oof.csv', cv.path/'fold_0'/'labels.csv')
    with pytest.raises(ValueError, match='no callback of these folds keeps'): cv.labels

def in_group(k, v): return lambda o: o['groups'][0].update({k:v})
def in_net(**kwargs): return lambda o: o['groups'][0]['net'].update(kwargs)
def in_input(**kwargs): return lambda o: o['groups'][0]['input'].update(kwargs)
def put(**kwargs): return lambda o: o.update(kwargs)
two = ['group0_net0.safetensors','group0_net1.safetensors']
bad_ensembles = {
    'hub':             (in_net(name='hf-hub:timm/resnet18.a1_in1k'), "has the name 'hf-hub:"),
    'old hub':         (in_net(name='hf_hub:timm/resnet18.a1_in1k'), 'has the name'),
    'hub with vision': (in_net(name='hf-hub:x/y', kind='vision_learner'), 'has the name'),
    'blank':           (in_net(name=' hf-hub:x/y'), 'has the name'),
    'folder':          (in_net(name='local-dir:/tmp'), 'has the name'),
    'owner':           (in_net(name='timm/test_resnet'), 'has the name'),
    'unknown':         (in_net(name='resnet'), 'has the name'),
    'no function':     (in_net(name='nn', kind='torchvision'), "torchvision's own"),
    'hidden':          (in_net(name='__loader__', kind='torchvision'), "torchvision's own"),
    'name':            (in_net(name=3), 'has the name 3'),
    'kind':            (in_net(kind='pickle'), "the kind 'pickle'"),
    'listed kind':     (in_net(kind=['timm_learner']), 'the kind'),
    'outputs':         (in_net(n_out=10**9), 'n_out=1000000000'),
    'no outputs':      (in_net(n_out=0), 'n_out=0'),
    'true':            (in_net(n_out=True), 'n_out=True'),
    'more':            (in_net(pretrained=True), 'pretrained'),
    'scaled':          (in_input(scaled=[0,64]), 'input has scaled=[0, 64]: expected height and width'),
    'scaled by one':   (in_input(scaled=64), 'input has scaled=64'),
    'up':              (in_group('files', ['../'+two[0], two[1]]), 'file is'),
    'absolute':        (in_group('files', ['/etc/x.safetensors', two[1]]), 'file is'),
    'backslash':       (in_group('files', ['..\\x.safetensors', two[1]]), 'file is'),
    'twice':           (in_group('files', [two[0]]*2), 'each once'),
    'none':            (in_group('files', []), 'files are'),
    'numbers':         (in_group('files', [1,2]), 'files are'),
    'gone':            (in_group('files', ['a.safetensors', two[1]]), 'is not there'),
    'nul':             (in_group('files', ['a\0.safetensors', two[1]]), 'file is'),
    'negative':        (put(weights=[-1.,2.]), 'weights='),
    'infinite':        (put(weights=[1e999,.5]), 'weights='),
    'seven':           (put(weights=[3,4]), 'weights='),
    'one weight':      (put(weights=[1.]), 'weights='),
    'text':            (put(weights='ab'), 'weights='),
    'nested':          (put(weights=[[.5,.5],[.5]]), 'weights='),
    'class twice':     (put(vocab=['a','a']), 'each once'),
    'class as text':   (put(vocab=['1',1]), 'each once'),
    'class of none':   (put(vocab=['a',None]), 'vocab is'),
    'no classes':      (put(vocab=[]), 'vocab is'),
    'surrogate':       (put(vocab=['a','\ud800']), 'the class'),
    'three classes':   (put(vocab=['a','b','c']), 'n_out=2'),
    'how':             (put(how='max'), "how='max'"),
    'listed how':      (put(how=['mean']), 'how='),
    'key':             (put(path='/tmp'), 'path'),
    'no groups':       (put(groups=[]), 'groups are'),
    'size':            (in_input(size=[10**6,3]), 'size='),
    'float size':      (in_input(size=[32.,32.]), 'size='),
    'method':          (in_input(method='stretch'), 'method='),
    'norm':            (in_input(norm=[[0.,0,0],[1.,0,1]]), 'above 0'),
    'short norm':      (in_input(norm=[[0.,0],[1.,1]]), 'norm='),
    'activation':      (in_group('activation', 'eval'), 'activation is'),
    'group':           (in_group('x', 1), 'group holds'),
}

@pytest.mark.parametrize('name', bad_ensembles)
def test_ensembles_of_somebody_else(name, copy_of, offline):
    folder = copy_of('ensemble')
    tamper.without_checksums(folder)
    change,what = bad_ensembles[name]
    o = json.loads((folder/'ensemble.json').read_text())
    change(o)
    (folder/'ensemble.json').write_text(json.dumps(o).replace('Infinity', '1e999'))
    told = says(folder/'ensemble.json', load_ensemble, folder)
    assert what in told and told.isprintable()

def test_links_of_an_ensemble(copy_of, tmp_path):
    folder = copy_of('ensemble')
    (folder/two[0]).rename(tmp_path/'w.safetensors')
    (folder/two[0]).symlink_to(tmp_path/'w.safetensors')
    assert 'no link' in says(folder, load_ensemble, folder)
    (tmp_path/'through').symlink_to(folder) # the folder itself may be one
    (folder/two[0]).unlink(), (tmp_path/'w.safetensors').rename(folder/two[0])
    assert len(load_ensemble(tmp_path/'through'))==2

def test_shares_are_shares(copy_of):
    ens = load_ensemble(copy_of('ensemble'))
    for w in ([1.,1.], [-.5,1.5], [float('nan'),1.], [.5], 'ab'):
        for f in (lambda: Ensemble(ens.groups, ens.vocab, weights=w), lambda: blend(torch.rand(2, 3, 2), weights=w)):
            assert 'add to 1' in says('weights=', f)
    assert "how='max'" in says('how', blend, torch.rand(2, 3, 2), 'max')
    assert Ensemble(ens.groups, ens.vocab, weights=torch.tensor([.25,.75])).weights.tolist()==[.25,.75]

def changed_meta(file, change):
    "The file with other labels and no checksum"
    with safe_open(file, 'pt') as f: meta = json.loads(f.metadata()['labels'])
    tensors = load_file(file)
    change(meta, tensors)
    save_file(tensors, file, metadata={'labels':json.dumps(meta)})

bad_labels = {
    'theta':      lambda m, t: m.update(theta=.01),
    'most':       lambda m, t: m.update(most=99),
    'max_change': lambda m, t: m.update(max_change=1.),
    'learn':      lambda m, t: m.update(learn=None),
    'a key less': lambda m, t: m.pop('moved'),
    'epochs':     lambda m, t: m.update(epochs=-1),
    'moved':      lambda m, t: m.update(moved='1'),
    'infinite':   lambda m, t: m.update(epochs=float('inf')),
    'vocab':      lambda m, t: m.update(vocab=['a','a']),
    'no vocab':   lambda m, t: m.update(vocab=3),
    'classes':    lambda m, t: m.update(vocab=['a']),
    'keys':       lambda m, t: m.update(keys=m['keys'][1:]),
    'key twice':  lambda m, t: m.update(keys=[0]*len(m['keys'])),
    'key kind':   lambda m, t: m.update(keys=[{'kind':'eval','v':['1']}]*len(m['keys'])),
    'log':        lambda m, t: m['log'].append({'epoch':1}),
    'share':      lambda m, t: m['log'][0].update(share=7),
    'label':      lambda m, t: t['current'].fill_(5),
    'negative':   lambda m, t: t['given'].fill_(-1),
    'other kind': lambda m, t: t.update(current=t['current'].float()),
    'times':      lambda m, t: t['times'].fill_(-3),
    'gap':        lambda m, t: t['gap'].fill_(3),
    'infinite p': lambda m, t: t['p_given'].fill_(float('inf')),
    'shape':      lambda m, t: t.update(free=t['free'][:3].clone()),
    'free':       lambda m, t: t.update(free=t['free'].float()),
    'tensor':     lambda m, t: t.update(theta=torch.rand(1)),
    'a tensor less': lambda m, t: t.pop('moment'),
    'past':       lambda m, t: t.update(past=torch.rand(2)),
}

@pytest.mark.parametrize('name', bad_labels)
def test_labels_of_somebody_else(name, copy_of):
    file = copy_of('labels')/'labels.safetensors'
    changed_meta(file, lambda m, t: None)
    ProgressiveLabelCorrection().load(file)
    changed_meta(file, bad_labels[name])
    plc = ProgressiveLabelCorrection(theta=.6, most=2, max_change=.3)
    assert 'holds no labels' in says(file, plc.load, file)
    assert (plc.theta,plc.most,plc.max_change,plc.keys)==(.6,2,.3,None)

def with_state(change):
    def f(folder):
        s = load_state(folder/'fit0.safetensors')
        change(s)
        save_state(folder/'fit0.safetensors', s) # with a checksum that is right
    return f

def of_cb(name, **attrs):
    def change(s):
        plain = next(o for k,o in s['learner']['cbs'] if k==name)[0]
        plain.update(attrs)
    return change

bad_checkpoints = {
    'path':         lambda s: s['learner']['learn'].update(path='/tmp'),
    'model_dir':    lambda s: s['learner']['learn'].update(model_dir='/tmp'),
    'opt_func':     lambda s: s['learner']['learn'].update(opt_func=None, cbs=[]),
    'train_iter':   lambda s: s['learner']['learn'].update(train_iter='9'),
    'smooth_loss':  lambda s: s['learner']['learn'].update(smooth_loss=[1]),
    'event':        of_cb('cut_mix', before_batch=1),
    'hidden':       of_cb('cut_mix', __class__=1),
    'learn':        of_cb('cut_mix', learn=1),
    'made_with':    of_cb('cut_mix', made_with={}),
    'hides a path': of_cb('cut_mix', path='/tmp'),
    'hides a model':of_cb('cut_mix', model=3),
    'theta':        lambda s: dict(s['learner']['cbs'])['progressive_label_correction']['meta'].update(theta=.01),
    'done':         lambda s: s.update(done=9),
    'no epoch':     lambda s: s.update(done=0),
    'done of text': lambda s: s.update(done='1'),
    'ended':        lambda s: s.update(ended=1),
    'seconds':      lambda s: s.update(seconds=float('nan')),
    'more':         lambda s: s.update(x=1),
    'less':         lambda s: s.pop('rows'),
    'rows':         lambda s: s.update(rows=[{'fit':0}]),
    'row':          lambda s: s['rows'][0].update(epoch='x'),
    'rng':          lambda s: s['learner'].update(rng={'x':1}),
    'no rng':       lambda s: s['learner'].pop('rng'),
    'cbs':          lambda s: s['learner'].update(cbs=[1,2]),
    'model':        lambda s: s['learner']['model'].update({'0.weight':3}),
    'opt':          lambda s: s['learner']['opt'].update(state=[]),
    'hypers':       lambda s: s['learner']['opt'].update(hypers=[True]),
    'no hypers':    lambda s: s['learner']['opt']['hypers'][0].pop('mom'),
    'text hypers':  lambda s: s['learner']['opt']['hypers'][0].update(lr='x'),
    'frozen':       lambda s: s['learner'].update(trained=['x']*4),
    'loss':         lambda s: s['learner'].update(loss={'x':1}),
    'list':         lambda s: s['learner'].update(learn=[1]),
}

@pytest.mark.parametrize('name', bad_checkpoints)
def test_checkpoints_of_somebody_else(name, copy_of):
    folder = copy_of('checkpoint')
    with_state(bad_checkpoints[name])(folder)
    learn = tamper.small_learner()
    def go():
        with resumable(learn, folder): learn.fit(1)
    says(folder/'fit0.safetensors', go)
    assert 'path' not in vars(learn) or str(learn.path)!='/tmp'

def test_where_a_callback_writes_is_told_now(toy, tmp_path):
    "A name of a file is none of the state"
    from fastai.callback.tracker import SaveModelCallback
    learn = toy(cbs=SaveModelCallback(fname='best'), path=tmp_path)
    learn.fit(1)
    state = learner_state(learn)
    dict(state['cbs'])['save_model'][0]['fname'] = '../../elsewhere'
    again = toy(cbs=SaveModelCallback(fname='best'), path=tmp_path)
    again.fit(1)
    load_learner_state(again, state, same_settings=True)
    assert again.save_model.fname=='best'
    with pytest.raises(ValueError, match='sets learn.path'):
        load_learner_state(again, {**state, 'learn':{'path':'/tmp'}})

def test_json_that_is_not_as_it_was_written(tmp_path):
    file = tmp_path/'o.json'
    write_json(file, dict(a=[1,.1,'ä'], b=(1,2), c=None))
    text = file.read_text()
    assert read_json(file)==dict(a=[1,.1,'ä'], b=[1,2], c=None)
    file.write_text(json.dumps(json.loads(text))) # laid out otherwise
    assert read_json(file)['b']==[1,2]
    for bad in (text.replace('0.1', '0.2'), text.replace('"c"', '"d"'), '[1]', '{"a":NaN}', '{"a":1,"a":2}', '['*99999,
        '{"a":'+'9'*9999+'}', '', '\ufeff{}'):
        file.write_text(bad)
        says(file, read_json, file)
    file.write_bytes(b'\xff\xfe')
    says(file, read_json, file)
    says(tmp_path/'none', read_json, tmp_path/'none')
    says(tmp_path, read_json, tmp_path)

def test_a_network_of_another_kind(tmp_path):
    file = tmp_path/'n.safetensors'
    write_network(file, nn.Linear(2, 3))
    assert 'does not fit Linear' in says(file, read_network, file, nn.Linear(2, 4))
    assert 'does not fit Conv2d' in says(file, read_network, file, nn.Conv2d(2, 3, 1, bias=False))
    says(tmp_path/'none', read_network, tmp_path/'none', nn.Linear(2, 3))
    tied = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    tied[1].weight = tied[0].weight
    write_network(file, tied)
    other = deepcopy(tied)
    with torch.no_grad(): other[0].weight.zero_()
    assert read_network(file, other)==check_tensors(file)['sha256'] and torch.equal(other[1].weight, tied[0].weight)

# names of temporary files, and who may read

def test_two_writers_of_one_number_do_not_meet(tmp_path):
    "Containers that share a folder number their processes alike"
    def outer(part):
        part.write_text('outer')
        write_atomic(tmp_path/'f', lambda p: p.write_text('inner'))
        assert (tmp_path/'f').read_text()=='inner' and part.read_text()=='outer'
        assert part.name.startswith('.f.') and part.name.endswith('.part') # what a later run clears away
    write_atomic(tmp_path/'f', outer)
    assert (tmp_path/'f').read_text()=='outer' and [o.name for o in tmp_path.iterdir()]==['f']

@pytest.mark.skipif(os.name!='posix', reason='needs a umask')
@pytest.mark.parametrize('mask', [0o022, 0o027, 0o002, 0o077])
def test_files_follow_the_umask(mask, tmp_path, copy_of, toy):
    labels = ProgressiveLabelCorrection()
    labels.load(copy_of('labels')/'labels.safetensors')
    learn,out = toy(),tmp_path/'out'
    was = os.umask(mask)
    try:
        out.mkdir(mode=0o777)
        tamper.write_ensemble(out/'ensemble')
        save_state(out/'state.safetensors', dict(a=torch.rand(2)))
        labels.save(out/'labels.safetensors')
        with resumable(learn, out): learn.fit(1)
        write_atomic(out/'text.csv', lambda f: f.write_text('x'))
    finally: os.umask(was)
    modes = {o.name: oct(o.stat().st_mode & 0o777) for o in out.rglob('*.*')}
    assert {*two,'ensemble.json','state.safetensors','labels.safetensors','fit0.safetensors','text.csv'}<=modes.keys()
    assert {*modes.values()}=={oct(0o666 & ~mask)}, modes

def test_what_a_killed_process_left_is_cleared_away(df, get_dls, tmp_path):
    cv = CrossVal(df.assign(fold=df.fold.clip(upper=1)), get_dls, tiny, tmp_path/'run')
    left = tmp_path/'run'/'fold_0'/'checkpoints'
    left.mkdir(parents=True)
    # the last is safetensors' own
    for name in ('.fit0.safetensors.1234.part','.fit0.safetensors.0a1b2c3d.part','.tmpPis5Py'):
        for folder in (left,left.parent): (folder/name).write_text('x')
    cv.fit(one, [0])
    assert not [o for o in cv.path.rglob('.*') if o.name.startswith('.tmp') or o.name.endswith('.part')]

def test_names_are_printed_as_they_are_or_escaped():
    assert printable('Größe 大 ok')=='Größe 大 ok' and printable(3)=='3'
    for bad,want in (('\x1b[2J', r'\x1b[2J'), ('a\nb\r', r'a\nb\r'), ('\u202etxt', r'\u202etxt'), ('\ud800', r'\ud800'),
        ('\x9b', r'\x9b'), ('\u2028', r'\u2028')):
        assert printable(bad)==want and printable(bad).isprintable()
