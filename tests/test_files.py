"What is written comes back, whole or not at all."
import os
from collections import Counter
from threading import Event, Thread

import numpy as np
import pytest
import torch
from fastai.vision.all import L
from fastai_mix import files
from fastai_mix.files import check_tensors, load_state, read_network, save_state, write_atomic

def test_numbers_of_one_kind_are_not_confused(tmp_path):
    def some(k):
        return {'scalar': np.float64(k), 'list': [np.float64(k), np.float64(k+.5)],
            'tensors': [torch.tensor(k), torch.tensor(k+.5)], 'array': np.array([k])}
    state = [some(float(k)) for k in range(50)]
    save_state(tmp_path/'s.safetensors', state)
    for o,k in zip(load_state(tmp_path/'s.safetensors'), range(50)):
        assert (o['scalar'],o['list'],[t.item() for t in o['tensors']],o['array'].tolist())==(k,[k,k+.5],[k,k+.5],[k])

def test_state_of_many_kinds(tmp_path):
    w = torch.rand(4, 3)
    state = dict(a=[1, 2.5, True, None, 'x', float('nan')], b=(1,(2,)), c=L(1,'2'), w=w, same=w, part=w[:,1],
        half=w.bfloat16(), empty=torch.zeros(0, 3),
        losses=L(torch.tensor(i/3) for i in range(5)), lrs=[np.float64(i/3) for i in range(5)],
        mixed=[np.float32(1), 2], u=np.arange(3, dtype=np.uint32), d={1:{2:3}, (1,2):4})
    save_state(tmp_path/'s.safetensors', state)
    back = load_state(tmp_path/'s.safetensors')
    assert back.keys()==state.keys() and back['b']==state['b'] and back['c']==state['c'] and back['d']==state['d']
    assert back['a'][:5]==state['a'][:5]
    assert isinstance(back['a'][5], float) and back['a'][5]!=back['a'][5] and isinstance(back['a'][2], bool)
    assert isinstance(back['c'], L)
    for k in ('w','same','part','half','empty'): assert torch.equal(back[k], state[k]) and back[k].dtype==state[k].dtype
    assert [float(o) for o in back['losses']]==[float(o) for o in state['losses']] and back['lrs']==state['lrs']
    assert isinstance(back['lrs'][0], np.float64)
    assert isinstance(back['mixed'][0], np.float32) and back['u'].dtype==np.uint32 and back['u'].tolist()==[0,1,2]
    names = dict(one=np.unique(['a','b'])[0], several=list(np.unique(['a','b'])),
        counted=Counter(np.array(['a','b','a'])))
    save_state(tmp_path/'s.safetensors', names)
    assert load_state(tmp_path/'s.safetensors')==names
    with pytest.raises(TypeError): save_state(tmp_path/'s.safetensors', {'x': object()})
    assert [o.name for o in tmp_path.iterdir()]==['s.safetensors']

def test_failed_write_keeps_the_old_file(tmp_path):
    write_atomic(tmp_path/'f', lambda f: f.write_text('old'))
    def fails(f):
        f.write_text('ne')
        raise OSError('disk full')
    with pytest.raises(OSError): write_atomic(tmp_path/'f', fails)
    assert [o.name for o in tmp_path.iterdir()]==['f'] and (tmp_path/'f').read_text()=='old'

@pytest.fixture
def replaced(tmp_path):
    "A file that a thread replaces all the time by one of two others, and the checksums of these"
    file,others,stop = tmp_path/'net.safetensors',[tmp_path/f'{i}.safetensors' for i in range(2)],Event()
    for i,other in enumerate(others): save_state(other, {'version':i, 'weight':torch.full((1000,), float(i))})
    contents,checksums = zip(*((other.read_bytes(), check_tensors(other)['sha256']) for other in others))
    def replace():
        while not stop.is_set():
            for other,content in zip(others, contents):
                other.write_bytes(content)
                os.replace(other, file)
    file.write_bytes(contents[0])
    thread = Thread(target=replace)
    thread.start()
    yield file,checksums
    stop.set()
    thread.join()

def test_a_file_that_is_replaced_while_it_is_read(replaced):
    (file,checksums),versions = replaced,set()
    net = torch.nn.ParameterDict({'t0':torch.nn.Parameter(torch.zeros(1000))})
    for _ in range(200):
        state = load_state(file)
        versions.add(state['version'])
        assert (state['weight']==state['version']).all()
        assert read_network(file, net)==checksums[int(net['t0'][0])]
        assert check_tensors(file)['sha256'] in checksums
    assert versions=={0,1}

def test_a_file_that_is_gone_while_it_is_read(tmp_path, monkeypatch):
    file,digest = tmp_path/'s.safetensors',files._file_digest
    save_state(file, {'a':1})
    def gone(path, checksum):
        path.unlink()
        return digest(path, checksum)
    monkeypatch.setattr(files, '_file_digest', gone)
    with pytest.raises(FileNotFoundError): load_state(file)
