import gc
import os
import shutil
import zlib
from functools import partial
from pathlib import Path
from textwrap import indent

workers = int(os.environ.get('PYTEST_XDIST_WORKER_COUNT', 1))
# read when torch is imported, here and in processes of tests
if workers>1: os.environ['OMP_NUM_THREADS'] = str(max(1, (os.cpu_count() or 1)//workers))

import matplotlib
import pandas as pd
import pytest
from IPython.core.interactiveshell import InteractiveShell
from fastai.vision.all import CrossEntropyLossFlat, DataLoaders, Learner, set_seed
from fastai_mix.data.folds import add_folds
from fastai_mix.data.leaves import leaf_data
from kills import processes
from helpers import Batches, fold_loaders, noise, run_script, toy_model

matplotlib.use('agg')
# what was imported is no garbage, which every collection would look through
gc.collect()
gc.freeze()
# nbdev leaves a shell for each notebook, and at the end each would collect once more
InteractiveShell.atexit_operations = lambda self: None

# files that take minutes; first, so that no process is left alone with them
slow_files = 'test_site.py','test_notebooks.py','test_slurm.py','test_compare.py','test_trust.py'

def pytest_collection_modifyitems(items):
    items.sort(key=lambda o: o.path.name not in slow_files)

@pytest.fixture
def toy():
    "A Learner on a small network and pictures of noise; arguments as for `Learner`"
    def make(cbs=None, model=None, n=32, bs=8, c=3, size=16, target='index', loss_func=None, seed=0, **kwargs):
        set_seed(seed)
        ds = Batches(n, c, size, target)
        dls = DataLoaders.from_dsets(ds, ds, bs=bs, device='cpu', num_workers=0)
        dls.vocab = [f'class{i}' for i in range(c)]
        learn = Learner(dls, model or toy_model(c), loss_func=loss_func or CrossEntropyLossFlat(), cbs=cbs, **kwargs)
        learn.remove_cb(learn.progress)
        learn.logger = lambda *_: None
        return learn
    return make

alone = '''
import os, sys, torch
import torch.distributed as dist
from fastai.vision.all import *
from fastai.distributed import *
from accelerate import debug_launcher
sys.path.insert(0, {tests!r})
from helpers import Batches, toy_model
from fastai_mix.all import *
from fastai_mix.callback.branch import *
import fastai_mix.callback.mix as mix

def broadcast(self, t, rank):
    t = torch.tensor(t)
    dist.broadcast(t, rank)
    return t.tolist()
DistributedDL._broadcast = broadcast # fastai's goes through a GPU

def fit(learn, n):
    "Fit on as many processes as there are"
    learn.remove_cb(ProgressCallback)
    learn.logger = noop
    if num_distrib()<2: return learn.fit(n)
    with learn.distrib_ctx(sync_bn=False): learn.fit(n)

def main():
    world = max(1, num_distrib())
    if world>1: os.environ['RANK'] = str(dist.get_rank()) # what fastai goes by; the launcher for CPUs leaves it out
    ds = Batches(32, 3, 16, 'index')
    if world==1: # each of two processes takes a half of the data, 8 at a time
        order = torch.arange(32).view(2,2,8).transpose(0, 1).flatten()
        ds.x,ds.t = ds.x[order],ds.t[order]
    dls = DataLoaders.from_dsets(ds, ds, bs=16//world, device='cpu', num_workers=0, shuffle=False,
        shuffle_train=False, drop_last=False)
    torch.manual_seed(0)
    model = toy_model()
    for i in (1,5,9): model[i] = nn.Identity() # norms see the part of one process, and dropout draws
{code}
if __name__=='__main__': main() if sys.argv[1]=='1' else debug_launcher(main, num_processes=int(sys.argv[1])) # gloo
'''

@pytest.fixture(scope='module')
def leaves(tmp_path_factory):
    "A folder of 60 drawn leaves"
    return leaf_data(tmp_path_factory.mktemp('leaves')/'data', n=60, size=64)

@pytest.fixture
def df(leaves):
    "The table of the leaves, with three folds"
    df = pd.read_csv(leaves/'train.csv').rename(columns={'labels':'label'})[['image_id','label']]
    return add_folds(df, 'label', n_splits=3, id_col='image_id')

@pytest.fixture
def get_dls(leaves):
    "A function `get_dls(df, fold)` for `CrossVal`; further arguments go to the DataBlock"
    return partial(fold_loaders, leaves)

@pytest.fixture
def in_processes(tmp_path):
    """What `code` prints as rows of values, run by one process and by several with the same global batch;
    `code` may use `dls`, `model`, `world` and `fit`"""
    def run(code, *ns):
        (tmp_path/'alone.py').write_text(alone.format(tests=str(Path(__file__).parent), code=indent(code, ' '*4)))
        res = []
        for n in ns:
            p = processes.Process(target=run_script, args=(tmp_path/'alone.py', n))
            p.start()
            p.join(300)
            p.kill()
            p.join()
            said = (tmp_path/'alone.log').read_text()
            assert p.exitcode==0, said
            res.append([row.split()[1:] for row in said.splitlines() if row.startswith('OUT ')])
        return res
    return run

@pytest.fixture
def folders(tmp_path):
    "Class folders with three pictures each, all different"
    def make(*names, root='d', n=3):
        for name in names:
            (tmp_path/root/name).mkdir(parents=True)
            for i in range(n): noise(zlib.crc32(f'{name} {i}'.encode())).save(tmp_path/root/name/f'{i}.png')
        return tmp_path/root
    return make

@pytest.fixture
def csv(tmp_path):
    "A CSV of given text, and pictures of given names, all different"
    def make(text, *names, file='t.csv'):
        (tmp_path/file).parent.mkdir(exist_ok=True)
        (tmp_path/file).write_text(text, encoding='utf-8')
        for i,n in enumerate(names):
            (tmp_path/n).parent.mkdir(parents=True, exist_ok=True)
            noise(i).save(tmp_path/n)
        return tmp_path/file
    return make

@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    "Chromium; the test is skipped where there is none"
    webdriver = pytest.importorskip('selenium.webdriver')
    chrome,driver = (next(filter(None, map(shutil.which, o)), None)
        for o in (('chromium','google-chrome','chrome'), ('chromedriver',)))
    if not (chrome and driver):
        pytest.skip('no Chromium and ChromeDriver: Debian has both, as chromium and chromium-driver')
    opts = webdriver.ChromeOptions()
    opts.binary_location = chrome
    for o in ('headless=new','no-sandbox','disable-gpu','disable-quic','no-first-run','disable-background-networking',
        'disable-component-update','disable-sync','disable-dev-shm-usage','blink-settings=lazyLoadEnabled=false',
        f"user-data-dir={tmp_path_factory.mktemp('profile')}"): opts.add_argument(f'--{o}')
    opts.set_capability('goog:loggingPrefs', {'browser': 'ALL', 'performance': 'ALL'})
    b = webdriver.Chrome(options=opts, service=webdriver.ChromeService(driver))
    yield b
    b.quit()
