"Modules load no more packages than fastai does, and of this one those above them: heavy ones are imported where used."
import ast
import json
import re
import subprocess
import sys
from pathlib import Path

from fastai_mix import _modidx

root = Path(__file__).parent.parent

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

def test_a_module_imports_those_above_it_in_the_map():
    text = (root/'CONTRIBUTING.md').read_text(encoding='utf-8')
    order = re.findall(r'^\| `([\w.]+)` \| \[', text, re.M)
    assert {f'fastai_mix.{o}' for o in order}=={*modules}
    for i,module in enumerate(order):
        tree = ast.parse((root/'fastai_mix'/f"{module.replace('.', '/')}.py").read_text(encoding='utf-8'))
        package = module.split('.')[:-1]
        own = [o for o in tree.body if isinstance(o, ast.ImportFrom) and o.level]
        names = ['.'.join([*(package if o.level==1 else []), o.module or '']) for o in own]
        assert not [o for o in names if o in order[i:]], module
