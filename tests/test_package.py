"What is released: the sdist and the wheel that is built of it."
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
import fastai_mix

root = Path(__file__).parent.parent
builds = int(version('setuptools').split('.')[0])>=77 if shutil.which('git') else False

def call(code, cwd):
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=cwd, timeout=300)
    assert not out.returncode, out.stderr[-2000:]
    return out.stdout.split()[-1]

@pytest.fixture(scope='module')
def built(tmp_path_factory):
    "Folder of the sdist, and of the wheel built of what is in it"
    if not builds: pytest.skip('needs git and setuptools 77')
    folder = tmp_path_factory.mktemp('built')
    tracked = subprocess.run(['git', 'ls-files', '-z', '--', ':!docs', ':!nbs', ':!benchmarks', ':!tests'],
        capture_output=True, text=True, cwd=root, check=True).stdout
    for name in filter(None, tracked.split('\0')):
        if not (root/name).is_file(): continue
        (folder/'project'/name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root/name, folder/'project'/name)
    build = 'from setuptools import build_meta as b; print(b.build_{}({!r}))'
    sdist = call(build.format('sdist', str(folder)), folder/'project')
    with tarfile.open(folder/sdist) as f: f.extractall(folder/'unpacked', filter='data')
    call(build.format('wheel', str(folder)), next((folder/'unpacked').iterdir()))
    return folder

def names_in(built):
    wheel, = built.glob('*.whl')
    with zipfile.ZipFile(wheel) as f: return wheel,f.namelist()

def test_what_the_wheel_holds(built):
    wheel,names = names_in(built)
    assert wheel.name.startswith(f'fastai_mix-{fastai_mix.__version__}-py3')
    modules = {str(f.relative_to(root)).replace('\\', '/') for f in (root/'fastai_mix').rglob('*.py')}
    static = {f'fastai_mix/static/{f.name}' for f in (root/'fastai_mix'/'static').iterdir()}
    assert {*modules,*static,'fastai_mix/py.typed'}<={*names}
    others = {o.split('/')[0] for o in names}-{'fastai_mix'}
    assert len(others)==1 and others.pop().endswith('.dist-info')

def test_what_the_sdist_holds(built):
    sdist, = built.glob('*.tar.gz')
    with tarfile.open(sdist) as f: names = {o.split('/', 1)[1] for o in f.getnames() if '/' in o}
    assert {'fastai_mix/py.typed','settings.ini','setup.py','pyproject.toml','LICENSE','README.md'}<=names
    assert not any(o.startswith('tests/') for o in names)

def test_the_wheel_is_imported_where_nothing_else_is(built, tmp_path):
    wheel,_ = names_in(built)
    with zipfile.ZipFile(wheel) as f: f.extractall(tmp_path/'site')
    code = f"""import sys; sys.path.insert(0, {str(tmp_path/'site')!r}); import fastai_mix, fastai_mix.args
from pathlib import Path; print(Path(fastai_mix.__file__).with_name('py.typed').is_file() and fastai_mix.__file__)"""
    assert Path(call(code, tmp_path)).parent.resolve()==(tmp_path/'site'/'fastai_mix').resolve()

def test_the_release_has_no_token():
    flow = yaml.safe_load((root/'.github'/'workflows'/'release.yml').read_text(encoding='utf-8'))
    assert flow[True]=={'push': {'tags': ['v*']}} # YAML reads `on` as true
    build,publish = flow['jobs']['build'],flow['jobs']['publish']
    assert flow['permissions']=={'contents': 'read'} and 'permissions' not in build
    assert publish['permissions']=={'id-token': 'write'} and publish['needs']=='build'
    uses = [step.get('uses', '') for step in publish['steps']]
    assert any(o.startswith('pypa/gh-action-pypi-publish@') for o in uses) and not any('checkout' in o for o in uses)
    assert not re.search(r'secrets\.|password', (root/'.github'/'workflows'/'release.yml').read_text(encoding='utf-8'))

def test_the_changelog_has_the_version():
    heads = re.findall(r'^## (.+)$', (root/'CHANGELOG.md').read_text(encoding='utf-8'), re.M)
    assert heads[0]=='Unreleased' or heads[0].split()[0].strip('[]v')==fastai_mix.__version__

def test_type_checkers_allow_methods_that_are_patched_on():
    import fastai_mix.all as public
    code = '\n'.join(f.read_text(encoding='utf-8') for f in (root/'fastai_mix').rglob('*.py'))
    patched = set(re.findall(r'^@patch.*\ndef \w+\((?:self|cls):(\w+)', code, re.M)) & {*vars(public)}
    assert {'CrossVal','Ensemble','LabelLedger'}<=patched
    assert not [name for name in patched if re.search(rf'^class {name}:', code, re.M)], 'make it a Patched'
