"Ensembles on the Hugging Face Hub: the real client against a small hub on this machine."
import base64
import hashlib
import json
import re
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

import huggingface_hub
import numpy as np
import pandas as pd
import pytest
import yaml
from fastai.vision.all import Normalize, imagenet_stats
from fastai_mix.crossval import CrossVal
from fastai_mix.ensemble import Ensemble, load_ensemble
from fastai_mix.files import read_json, write_json
from fastai_mix.hub import model_card
from fastai_mix.scores import Scores
from fastai_mix.vision.learner import timm_learner
from helpers import one, tiny

class Hub(BaseHTTPRequestHandler):
    "What the client asks of the hub, with repositories in the dictionary `repos`: name -> path -> bytes"
    def log_message(self, *args): pass

    def reply(self, content, status=200, **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for k,v in {'Content-Length': len(body), **headers}.items(): self.send_header(k.replace('_', '-'), str(v))
        self.end_headers()
        if self.command!='HEAD': self.wfile.write(body)

    def missing(self): self.reply({'error': 'not found'}, 404, X_Error_Code='RepoNotFound')

    def do_POST(self):
        path,body = urlsplit(self.path).path,self.rfile.read(int(self.headers.get('Content-Length', 0)))
        self.server.tokens.add(self.headers.get('Authorization'))
        if path=='/api/repos/create': return self.create(json.loads(body))
        if path=='/api/validate-yaml': return self.reply({'errors': [], 'warnings': []})
        repo = re.fullmatch(r'/api/models/(.+)/(preupload|commit)/main', path)
        if repo[1] not in self.server.repos: return self.missing()
        if repo[2]=='commit': return self.commit(repo[1], [json.loads(line) for line in body.splitlines()])
        self.reply({'files': [dict(path=f['path'], uploadMode='regular', shouldIgnore=False)
            for f in json.loads(body)['files']]})

    def create(self, asked):
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        status = 409 if name in self.server.repos else 200
        self.server.repos.setdefault(name, {})
        self.server.asked.append(asked)
        self.reply({'url': f'{self.server.url}/{name}', 'name': name}, status)

    def commit(self, name, lines):
        files = self.server.repos[name]
        for line in lines:
            if line['key']=='file': files[line['value']['path']] = base64.b64decode(line['value']['content'])
            if line['key']=='deletedFile': del files[line['value']['path']]
        self.server.subjects.append(lines[0]['value']['summary'])
        self.reply({'commitUrl': f'{self.server.url}/{name}/commit/{self.sha(name)}', 'commitOid': self.sha(name)})

    def sha(self, name):
        return hashlib.sha1(b''.join(k.encode()+v for k,v in sorted(self.server.repos[name].items()))).hexdigest()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        api = re.fullmatch(r'/api/models/(.+?)(?:/(revision|tree)/(\w+))?(?:/)?', path)
        file = re.fullmatch(r'/(.+?)/resolve/(\w+)/(.+)', path)
        name = (api or file)[1]
        if name not in self.server.repos: return self.missing()
        files,sha = self.server.repos[name],self.sha(name)
        if api and api[2]=='tree':
            return self.reply([dict(type='file', path=k, size=len(v), oid=hashlib.sha1(v).hexdigest())
                for k,v in files.items()])
        if api: return self.reply({'id': name, 'sha': sha, 'siblings': [{'rfilename': k} for k in files]})
        self.server.downloads.append((self.command,file[3]))
        content = files[file[3]]
        self.reply(content, X_Repo_Commit=sha, ETag=f'"{hashlib.sha1(content).hexdigest()}"')

    do_HEAD = do_GET

@pytest.fixture
def hub(tmp_path, monkeypatch):
    "A hub on this machine, and an empty cache"
    server = ThreadingHTTPServer(('127.0.0.1',0), Hub)
    server.url = f'http://127.0.0.1:{server.server_port}'
    server.repos,server.asked,server.subjects,server.downloads,server.tokens = {},[],[],[],set()
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, 'ENDPOINT', server.url)
    for module in (constants,huggingface_hub.file_download): # older versions keep a copy
        monkeypatch.setattr(module, 'HUGGINGFACE_CO_URL_TEMPLATE',
            server.url+'/{repo_id}/resolve/{revision}/{filename}', raising=False)
    for name in ('HF_HUB_CACHE','HF_TOKEN_PATH'): monkeypatch.setattr(constants, name, str(tmp_path/name))
    monkeypatch.setenv('HF_TOKEN', 'a-token')
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()

@pytest.fixture
def cv(df, get_dls, tmp_path):
    "A cross-validation whose networks have names that timm knows"
    dls = partial(get_dls, batch_tfms=Normalize.from_stats(*imagenet_stats))
    return CrossVal(df, dls, partial(timm_learner, arch='test_resnet', pretrained=False), tmp_path/'run').fit(one)

@pytest.fixture
def files(df, leaves): return [leaves/'images'/f'{o}.jpg' for o in df.image_id[:5]]

def same(a, b): return np.abs(a.values-b.values).max()<1e-5

def test_there_and_back(cv, hub, df, files):
    ens = cv.ensemble()
    url = ens.push_to_hub('leaves', cv.scores, 'apache-2.0', private=True, message='Share it')
    assert url==f"{hub.url}/me/leaves/commit/{url.split('/')[-1]}" and hub.subjects==['Share it']
    assert hub.asked[0]['name']=='leaves' and 'Bearer a-token' in hub.tokens
    assert hub.asked[0].get('private') is True or hub.asked[0].get('visibility')=='private'
    there = hub.repos['me/leaves']
    assert sorted(there)==['README.md','ensemble.json',*[f'group0_net{i}.safetensors' for i in range(3)]]
    back = Ensemble.from_hub('me/leaves')
    assert len(back)==3 and same(back.predict(files), ens.predict(df.iloc[:5]))
    assert 'README.md' not in {name for _,name in hub.downloads}
    hub.downloads.clear()
    assert same(Ensemble.from_hub('me/leaves').predict(files), back.predict(files))
    assert not [name for method,name in hub.downloads if method=='GET'] # all is in the cache

def test_a_second_push(cv, hub, files):
    ens = cv.ensemble()
    ens.push_to_hub('me/leaves')
    hub.repos['me/leaves'] |= {'README.md': b'mine', 'notes.txt': b'kept'}
    back = Ensemble.from_hub('me/leaves')
    # one network fewer, from an ensemble that was loaded; its card stays
    (learn,nets,get_dl), = back.groups
    Ensemble([(learn, nets[:1], get_dl)], back.vocab).push_to_hub('me/leaves', card=False)
    there = hub.repos['me/leaves']
    assert there['README.md']==b'mine' and there['notes.txt']==b'kept'
    assert sorted(there)==['README.md','ensemble.json','group0_net0.safetensors','group0_net1.safetensors','notes.txt']
    again = Ensemble.from_hub('me/leaves')
    fewer = Ensemble([(learn, nets[:1], get_dl)], back.vocab)
    assert len(again)==2 and same(again.predict(files), fewer.predict(files))

def test_without_a_connection(cv, hub, files, monkeypatch):
    cv.ensemble().push_to_hub('me/leaves')
    preds = Ensemble.from_hub('me/leaves').predict(files)
    monkeypatch.setattr(huggingface_hub.constants, 'ENDPOINT', 'http://127.0.0.1:9')
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    assert same(Ensemble.from_hub('me/leaves').predict(files), preds)

def changed(hub, **entries):
    "The description in the hub with other entries, as its owner can write it"
    content = json.loads(hub.repos['me/leaves']['ensemble.json'])
    content.pop('sha256')
    group = content['groups'][0]
    hub.repos['me/leaves']['ensemble.json'] = json.dumps(
        {**content, 'groups': [{**group, **entries}]}).encode()

@pytest.mark.parametrize('entries,match', [
    (dict(files=['../../../secret.safetensors']*3), 'no link, each once'),
    (dict(files=['/etc/passwd']*3), 'no link, each once'),
    (dict(net=dict(kind='timm_learner', name='hf-hub:you/evil')), "network of timm's own"),
    (dict(net=dict(kind='os.system', name='resnet18')), "has the kind 'os.system'"),
    (dict(activation='__import__'), "activation is '__import__'"),
    (dict(sha256=['0'*64]*3), 'is not the network that ensemble.json describes')])
def test_hostile_descriptions_are_refused(entries, match, cv, hub):
    cv.ensemble().push_to_hub('me/leaves')
    changed(hub, **entries)
    with pytest.raises(ValueError, match=match) as e: Ensemble.from_hub('me/leaves')
    assert 'me/leaves/' in str(e.value).replace('\\', '/') and '\n' not in str(e.value)

def test_nothing_else_is_downloaded(cv, hub, files):
    cv.ensemble().push_to_hub('me/leaves')
    hub.repos['me/leaves'] |= {'evil.pkl': b'x', 'sub/a.safetensors': b'x', 'sub/ensemble.json': b'x', 'run.py': b'x'}
    assert len(Ensemble.from_hub('me/leaves').predict(files))==5
    assert {name for _,name in hub.downloads}=={'ensemble.json',*[f'group0_net{i}.safetensors' for i in range(3)]}

def test_broken_weights_are_refused(cv, hub):
    cv.ensemble().push_to_hub('me/leaves')
    content = bytearray(hub.repos['me/leaves']['group0_net1.safetensors'])
    content[-5] ^= 1
    hub.repos['me/leaves']['group0_net1.safetensors'] = bytes(content)
    with pytest.raises(ValueError, match='group0_net1.safetensors is broken'): Ensemble.from_hub('me/leaves')

def test_what_is_not_there(hub):
    hub.repos['me/other'] = {'README.md': b'x'}
    with pytest.raises(ValueError, match='me/other has no ensemble.json'): Ensemble.from_hub('me/other')
    with pytest.raises(huggingface_hub.errors.RepositoryNotFoundError): Ensemble.from_hub('me/none')
    for name in ('../../etc','a/b/c','me/..'):
        with pytest.raises(ValueError): Ensemble.from_hub(name)

def test_nothing_is_made_if_the_card_cannot_be_written(cv, hub):
    for kwargs,match in ((dict(scores=.9), "scores is a float: expected `cv.scores`"),
        (dict(license='x\ny: z'), "expected an identifier, such as 'apache-2.0'")):
        with pytest.raises(ValueError, match=match): cv.ensemble().push_to_hub('me/leaves', **kwargs)
    assert not hub.repos and not hub.asked

def test_own_networks_need_a_function(df, get_dls, tmp_path, hub, files):
    ens = CrossVal(df, get_dls, tiny, tmp_path/'run').fit(one).ensemble()
    ens.push_to_hub('me/own')
    card = hub.repos['me/own']['README.md'].decode()
    assert "Ensemble.from_hub('me/own', get_model=get_model)" in card and 'It needs `get\\_model`' not in card
    with pytest.raises(ValueError, match='me/own cannot be loaded without get_model'): Ensemble.from_hub('me/own')
    back = Ensemble.from_hub('me/own', get_model=lambda: tiny(get_dls(df, 0)).model)
    assert same(back.predict(files), ens.predict(df.iloc[:5]))
    back.push_to_hub('me/again') # a function was needed, and still is
    with pytest.raises(ValueError, match='me/again cannot be loaded without get_model'): Ensemble.from_hub('me/again')

def test_the_card(cv, tmp_path):
    cv.ensemble().export(tmp_path/'out')
    front,card = model_card(tmp_path/'out', 'me/leaves', cv.scores, 'mit').split('---\n')[1:]
    meta = yaml.safe_load(front)
    assert meta['license']=='mit' and meta['pipeline_tag']=='image-classification' and 'fastai_mix' in meta['tags']
    assert '3 networks that tell 4 classes' in card and '`test_resnet` as of `timm_learner`' in card
    assert '32×32' in card and f"{cv.scores.loc['pooled','accuracy']:.4g}" in card and 'fastai ' in card
    probs,y,_ = cv.validated()
    scores = Scores(probs.values, y, cv.vocab)
    assert f'accuracy {scores.accuracy:.4f}' in model_card(tmp_path/'out', 'me/leaves', scores)
    assert 'None were given' in model_card(tmp_path/'out', 'me/leaves')

def test_names_of_classes_are_text(cv, tmp_path):
    cv.ensemble().export(tmp_path/'out')
    content = read_json(tmp_path/'out'/'ensemble.json')
    names = ['<script>x</script>','a|b\n# c','![i](http://e.vil)','---\nlicense: evil']
    write_json(tmp_path/'out'/'ensemble.json', {**content, 'vocab': names})
    card = model_card(tmp_path/'out', 'me/leaves', pd.DataFrame({'a|b': [.5]}, ['<i>']))
    for bad in ('<script>','\n# c','![i]','\nlicense: evil','<i>'): assert bad not in card
    assert r'a\|b' in card and r'\<script\>' in card
    many = [f'c{i}' for i in range(300)]
    write_json(tmp_path/'out'/'ensemble.json', {**content, 'vocab': many})
    assert 'c99, and 200 more' in model_card(tmp_path/'out', 'me/leaves')

def test_a_loaded_ensemble_is_exported_again(cv, tmp_path, files):
    cv.ensemble().export(tmp_path/'a')
    loaded = load_ensemble(tmp_path/'a')
    loaded.export(tmp_path/'b')
    assert read_json(tmp_path/'a'/'ensemble.json')==read_json(tmp_path/'b'/'ensemble.json')
    assert same(load_ensemble(tmp_path/'b').predict(files), loaded.predict(files))
