"Files of somebody else: none of them runs code, asks the network or is used in silence; each gives one line that names it."
import json
import pickle
from argparse import Namespace
from collections import OrderedDict
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from fastai.vision.all import nn
from PIL import Image
from safetensors.torch import save_file
from fastai_mix.cli import main, read_weights
from fastai_mix.files import load_weights
from fastai_mix.vision.learner import create_timm_classifier, timm_learner
from test_learner import make_dls

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
    with pytest.raises(SystemExit): main(data=str(folder/'data'), arch='test_resnet', weights=str(file), size=32, bs=4, folds=2, fold=0, lr=.1, out=str(folder/'run'))
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
    cfg = dict(architecture='test_resnet', num_classes=3, pretrained_cfg=dict(file=str(evil(tmp_path/'other.pth')), url='http://127.0.0.1:9/w.pth'))
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
        assert torch.equal(m.conv1[0].weight, model.conv1[0].weight) and m.num_classes==n and torch.equal(m.fc.weight, model.fc.weight)==(n==3)
    says('timm has no', create_timm_classifier, f' {arch}', 3)
    for k in ('pretrained_cfg_overlay','pretrained_cfg'):
        with pytest.raises(TypeError, match=f'no `file` in `{k}`: use `weights`'): create_timm_classifier('test_resnet', 3, **{k:dict(file=str(folder/'x.pth'))})

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
    for reader in ('load_weights','classifier','learner'): assert what in says(tmp_path/'w.pth', readers[reader], tmp_path/'w.pth')
    assert what in says(tmp_path/'w.pth', read_weights, timm.create_model('test_resnet', num_classes=0), tmp_path/'w.pth')

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
