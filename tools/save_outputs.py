"""Runs notebooks in a Jupyter kernel, where fastai's tables and plots come out as readers know them, and keeps the
outputs: `python tools/save_outputs.py nbs/start.ipynb [--slow]`. Cells under `#| slow` keep what they have unless
`--slow` is given."""
import base64,io,os,re

os.environ['PYTHONWARNINGS'] = 'ignore'

import nbformat
from fastcore.script import call_parse, store_true
from nbclient import NotebookClient
from PIL import Image

def small(png):
    "The picture in at most 256 colours, if that is smaller"
    buf,im = io.BytesIO(),Image.open(io.BytesIO(base64.b64decode(png))).convert('RGB')
    im.quantize(256, kmeans=2, dither=Image.Dither.NONE).save(buf, 'png', optimize=True)
    return min(png, base64.b64encode(buf.getvalue()).decode(), key=len)

def joined(outputs):
    "What a cell printed without a break, in one piece; nbclient's own way moves it before the tables in between"
    res = []
    for o in outputs:
        if res and o.output_type==res[-1].output_type=='stream' and o.name==res[-1].name: res[-1].text += o.text
        else: res.append(o)
    return res

def wanted(o):
    "Whether a reader gains by an output: not by a progress bar that is gone, nor by warnings"
    if o.output_type=='stream' and o.name=='stderr': return False
    html = o.get('data', {}).get('text/html')
    if html is None or '<table' in html: return True
    return '<progress' not in html and bool(re.sub(r'<style>.*?</style>|<[^>]*>|\s', '', html, flags=re.S))

@call_parse
def main(
    path:str, # A notebook
    slow:store_true=False, # Run cells under `#| slow` too
):
    "Run a notebook and keep its outputs"
    nb = nbformat.read(path, 4)
    folder = os.path.dirname(os.path.abspath(path)) # where Jupyter would run it
    client = NotebookClient(nb, timeout=None, kernel_name='python3', resources={'metadata': {'path': folder}})
    with client.setup_kernel():
        client.kc.execute("%config InlineBackend.rc = {'figure.dpi': 144}", silent=True) # crisp where the screen is
        for i,c in enumerate(nb.cells):
            skipped = r'^#\| *(eval: *false|notest)' if slow else r'^#\| *(eval: *false|notest|slow)'
            if c.cell_type!='code' or re.search(skipped, c.source, re.M): continue
            client.execute_cell(c, i)
            c.outputs = joined(o for o in c.outputs if wanted(o))
            for o in c.outputs:
                if 'image/png' in o.get('data', {}): o.data['image/png'] = small(o.data['image/png'])
    nbformat.write(nb, path)
    print(f"{path}: {os.path.getsize(path)/1e3:.0f} kB")
