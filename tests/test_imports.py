"Modules load no more packages than fastai does: heavy ones are imported by the functions that use them."
import json
import subprocess
import sys

from fastai_mix import _modidx

heavy = 'imagehash','iterstrat','cloudpickle','scipy','sklearn','huggingface_hub','submitit','wandb','selenium'
modules = list(_modidx.d['syms'])
code = f'''
import json, sys
from importlib import import_module
loaded = {{}}
for module in {['fastai.vision.all','timm',*modules]!r}:
    import_module(module)
    loaded[module] = sorted(m for m in sys.modules if m.split('.')[0] in {heavy!r})
print(json.dumps(loaded))
'''

def test_imports_no_heavy_package():
    "What each module loads after those before it"
    out = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, timeout=300)
    assert not out.returncode, out.stderr
    loaded = json.loads(out.stdout.splitlines()[-1])
    needed = {*loaded.pop('fastai.vision.all'),*loaded.pop('timm')}
    assert len(loaded)==len(modules)>50
    assert not {k: new for k,v in loaded.items() if (new := {*v}-needed)}
