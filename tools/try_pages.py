"""Runs the code of pages of the built site as a reader does who copies it from the top, each page in an interpreter of
its own: `python tools/try_pages.py docs [PAGE ...] [--slow]`. Interpreters are forks of one that has imported the two
packages, so that a page costs its own time alone."""
import ast,asyncio,inspect,json,os,re,signal,sys,tempfile,time,traceback
from importlib import import_module
from pathlib import Path

import matplotlib
import torch
from bs4 import BeautifulSoup
from fastcore.script import call_parse, store_true

def page_cells(file, slow):
    "The cells of code that a page shows, from its top; those it says are not run are left out, slow ones if asked"
    soup = BeautifulSoup(file.read_text(encoding='utf-8'), 'html.parser')
    left_out = ('not-run',) if slow else ('not-run','slow')
    pres = soup.select('main pre.cell-code.python')
    return [o.get_text() for o in pres if not o.find_parent(class_='cell')['id'].startswith(left_out)]

def run_cells(cells, page):
    "Run cells as one program, except what only IPython understands; `await` may stand in them"
    program = {'__name__': '__main__'}
    for i,cell in enumerate(cells):
        source = re.sub(r'^[%!].*', '', cell, flags=re.M)
        code = compile(source, f'{page}, cell {i}', 'exec', ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        result = eval(code, program)
        if inspect.iscoroutine(result): asyncio.run(result)

def in_fork(f, *args):
    "Call a function in a fork of this process, in an empty folder, without what it prints; how it failed, or ''"
    read,write = os.pipe()
    with tempfile.TemporaryDirectory() as folder:
        if not (pid := os.fork()):
            os.chdir(folder)
            silent = os.open(os.devnull, os.O_WRONLY)
            for stream in (1, 2): os.dup2(silent, stream)
            try: f(*args)
            except BaseException: os.write(write, traceback.format_exc()[-2000:].encode())
            os._exit(0)
        os.close(write)
        _,status = os.waitpid(pid, 0)
        with os.fdopen(read, 'rb') as answer: text = answer.read().decode()
    return text or (f'ended by signal {status}' if status else '')

@call_parse
def main(
    site:Path, # Folder of the built site
    pages:str=None, # Pages, with commas; left out: those of all modules
    slow:store_true=False, # Run the cells that take minutes too
):
    "Run the code of pages; prints a JSON object of the seconds each took, and of failures"
    matplotlib.use('agg')
    torch.set_num_threads(1) # several threads beside other busy processes wait for each other
    signal.signal(signal.SIGINT, signal.default_int_handler) # what runs in the background ignores it
    import_module('fastai.vision.all'),import_module('fastai_mix.all')
    modules = import_module('fastai_mix._modidx').d['syms']
    named = pages.split(',') if pages else [f"{o.removeprefix('fastai_mix.')}.html" for o in modules]
    seconds,failures = {},{}
    for page in sorted(o for o in named if (site/o).is_file()):
        start = time.perf_counter()
        failure = in_fork(run_cells, page_cells(site/page, slow), page)
        seconds[page] = round(time.perf_counter()-start, 2)
        if failure: failures[page] = failure
        print(page, seconds[page], failure.strip().splitlines()[-1:] or 'ran', file=sys.stderr, flush=True)
    print(json.dumps(dict(seconds=seconds, failures=failures)))
