"Modules load no more packages than fastai does: heavy ones are imported by the functions that use them."
import subprocess
import sys
import pytest

heavy = ('imagehash','iterstrat','cloudpickle','scipy','sklearn')

def loaded(module):
    "Names of the modules of heavy packages that a fresh process has after it imported `module`"
    code = f"import sys, {module}; print(*(m for m in sys.modules if m.split('.')[0] in {heavy!r}))"
    out = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, timeout=300)
    assert not out.returncode, out.stderr
    return set(out.stdout.splitlines()[-1].split())

@pytest.fixture(scope='module')
def of_fastai(): return loaded('fastai.vision.all')

@pytest.mark.parametrize('module', ['callback.snapmix','data.folds','data.sampling','data.soft','data.leaves'])
def test_imports_no_heavy_package(module, of_fastai):
    assert loaded(f'fastai_mix.{module}')<=of_fastai
