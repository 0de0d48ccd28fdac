"""Files of a run are changed at random and read again. Does each give one line that names it? Does any run code,
reach for the network, or change a result in silence?

Files come in three forms: as they are written, with a checksum; as older versions wrote them, without one; and with a
checksum made anew by the person who changed them. A change to the first must be found, or be without effect. In the
others a number may be replaced by another possible one, and that is counted apart. The tables of a fold have their
checksums in its `fold.json`. Files without one are counted apart as well: those of older versions, the table that a
run was begun with, and what the command writes for people.

Whole run folders of `CrossVal` and of the command are among them, one fold done and one in the middle of training:
reading such a folder means going on with it."""
import argparse,hashlib,io,json,random,shutil,socket,tempfile,warnings
from collections import Counter
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from copy import deepcopy
from functools import cache
from itertools import count
from pathlib import Path
from unittest import mock

import matplotlib
import numpy as np
import pandas as pd
import torch
from fastai.vision.all import (CategoryBlock, ColReader, CrossEntropyLossFlat, DataBlock, DataLoaders, ImageBlock,
    Learner, Normalize, Resize, default_split, imagenet_stats, nn, set_seed)
from PIL import Image
from safetensors.torch import load_file

from fastai_mix.callback.mix import CutMix
from fastai_mix.callback.plc import ProgressiveLabelCorrection
from fastai_mix.checkpoint import resumable
from fastai_mix.cli import main
from fastai_mix.crossval import CrossVal, Ensemble, load_ensemble
from fastai_mix.data.folds import FoldSplitter
from fastai_mix.files import read_json
from fastai_mix.vision.learner import timm_learner
from mutate import (change_ensemble_folder, change_file, change_run_folder, files_in, flip_bit, has_checksum,
    without_checksums)

forms = ('signed','older','signed anew')

def content_digest(*parts):
    "What tells one content from another"
    digest = hashlib.sha256()
    for part in parts:
        if hasattr(part, 'numpy'): part = part.detach().cpu().contiguous().numpy().tobytes()
        digest.update(part if isinstance(part, bytes) else repr(part).encode())
    return digest.hexdigest()

# what is written, and how it is read: each reader returns the digest of all it has read

class Noise:
    "Pictures of noise and their classes"
    def __init__(self, n=16):
        self.x = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        self.y = torch.arange(n)%2
    def __len__(self): return len(self.y)
    def __getitem__(self, i): return self.x[i],self.y[i]

def quiet(learn):
    learn.remove_cb(learn.progress)
    learn.logger = lambda *_: None
    return learn

def small_network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))

def label_correction(): return ProgressiveLabelCorrection(theta=.1, warmup=0., check_model=False)

def small_learner():
    set_seed(0)
    dls = DataLoaders.from_dsets(Noise(), Noise(8), bs=8, device='cpu', num_workers=0)
    dls.vocab = ['a','b']
    cbs = [CutMix(), label_correction()]
    return quiet(Learner(dls, small_network(), loss_func=CrossEntropyLossFlat(), cbs=cbs))

def write_ensemble(folder):
    pictures = []
    for i in range(6):
        Image.new('RGB', (40,40), (i*30,90,120)).save(folder.parent/f'{i}.png')
        pictures.append(dict(path=str(folder.parent/f'{i}.png'), label='ab'[i%2]))
    block = DataBlock((ImageBlock, CategoryBlock), get_x=ColReader('path'), get_y=ColReader('label'),
        splitter=lambda items: (list(range(2,6)),[0,1]), item_tfms=Resize(32),
        batch_tfms=[Normalize.from_stats(*imagenet_stats)])
    dls = block.dataloaders(pd.DataFrame(pictures), bs=2, num_workers=0, device='cpu')
    learn = timm_learner(dls, 'test_resnet', pretrained=False)
    other = deepcopy(learn.model)
    with torch.no_grad(): next(other.parameters()).mul_(2)
    Ensemble([(learn, [other], learn.dls.test_dl)], ['a','b'], 'weights', [.4,.6]).export(folder)
    assert isinstance(read_json(folder/'ensemble.json')['groups'][0]['input'], dict)

def read_ensemble(folder):
    ensemble = load_ensemble(folder)
    (learn,nets,get_dl), = ensemble.groups
    weights = [v for net in (learn.model, *nets) for v in net.state_dict().values()]
    loss = type(learn.loss_func).__name__
    return content_digest(*weights, (ensemble.vocab, ensemble.how, ensemble.weights, loss, get_dl.args))

def write_labels(folder):
    learn = small_learner()
    learn.fit(2)
    learn.progressive_label_correction.save(folder/'labels.safetensors')

def read_labels(folder):
    plc = ProgressiveLabelCorrection()
    plc.load(folder/'labels.safetensors')
    state = plc.state_dict()
    settings = [plc.theta, plc.most, plc.max_change, plc.rule]
    return content_digest(json.dumps(state.pop('meta')), *(state[k] for k in sorted(state)), settings)

def write_checkpoint(folder):
    learn = small_learner()
    with resumable(learn, folder): learn.fit(1)

def read_checkpoint(folder):
    learn = small_learner()
    paths = learn.path,learn.model_dir
    with resumable(learn, folder) as fits: learn.fit(1)
    assert paths==(learn.path,learn.model_dir)
    hypers = [dict(group) for group in learn.opt.hypers]
    rows = [{k:v for k,v in row.items() if k!='time'} for row in fits.rows]
    cbs = [{k:v for k,v in vars(cb).items() if isinstance(v, (int,float,str))} for cb in learn.cbs]
    drawn = torch.rand(3),random.random(),np.random.rand()
    return content_digest(*learn.model.state_dict().values(), hypers, rows, fits.seconds, cbs, *drawn)

@cache
def class_folders():
    "A folder of 12 pictures of noise in the folders of two classes, and what deletes it at exit"
    temporary = tempfile.TemporaryDirectory()
    rng = np.random.default_rng(0)
    for i in range(12):
        file = Path(temporary.name)/'data'/'ab'[i%2]/f'{i}.png'
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32,32,3), 'uint8')).save(file)
    return Path(temporary.name)/'data',temporary

@contextmanager
def stopped_in_epoch(n):
    "Training is interrupted in its epoch `n`, counted over all fits"
    epochs,train = count(1),Learner._do_epoch_train
    def train_or_stop(learn):
        if next(epochs)==n: raise KeyboardInterrupt
        return train(learn)
    with mock.patch.object(Learner, '_do_epoch_train', train_or_stop), suppress(KeyboardInterrupt,SystemExit): yield

def cross_validation(path):
    folder,_ = class_folders()
    files = sorted(folder.rglob('*.png'), key=lambda file: int(file.stem))
    df = pd.DataFrame(dict(id=[f.name for f in files], path=list(map(str, files)), label=[f.parent.name for f in files],
        fold=[i//2%2 for i in range(len(files))]))
    block = DataBlock((ImageBlock, CategoryBlock), get_x=ColReader('path'), get_y=ColReader('label'),
        splitter=FoldSplitter(0, check=False), item_tfms=Resize(8), batch_tfms=Normalize.from_stats(*imagenet_stats))
    def get_learner(dls):
        cbs = [CutMix(), label_correction()]
        return quiet(Learner(dls, small_network(), loss_func=CrossEntropyLossFlat(), cbs=cbs, splitter=default_split))
    return CrossVal(df, block, get_learner, path, id_col='id', bs=4, num_workers=0, device='cpu')

def write_crossval(folder):
    with stopped_in_epoch(4), redirect_stdout(io.StringIO()):
        cross_validation(folder).fit(lambda learn: learn.fit(2, .01))

def read_crossval(folder):
    with redirect_stdout(io.StringIO()): cv = cross_validation(folder).fit(lambda learn: learn.fit(2, .01))
    tables = cv.oof,cv.labels,cv.history.drop(columns='time'),cv.scores,cv.timings.train_seconds.iloc[:1]
    (learn,nets,_), = cv.ensemble().groups
    weights = [v for net in (learn.model, *nets) for v in net.state_dict().values()]
    return content_digest(*weights, cv.vocab, cv.report(), *(table.to_csv() for table in tables))

def run_command(folder):
    "Run `fastai-mix`; the line that it ends with, if it does, as a ValueError"
    out,err = io.StringIO(),io.StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main(data=str(class_folders()[0]), mix='cutmix', plc=True, arch='test_resnet', size=32, bs=4, epochs=2,
                lr=.01, folds=2, out=str(folder))
    except SystemExit as e:
        line = err.getvalue().strip()
        if e.code==130: raise # `stopped_in_epoch`
        if e.code!=2 or not line.startswith('fastai-mix: '): raise RuntimeError(f'exit {e.code}: {line}') from None
        raise ValueError(line) from None

def write_command(folder):
    with stopped_in_epoch(4):
        run_command(folder)

def read_command(folder):
    run_command(folder)
    config = json.loads((folder/'config.json').read_text())
    del config['out']
    texts = [(folder/name).read_bytes() for name in ('oof.csv','labels.csv','report.txt')]
    history = pd.read_csv(folder/'history.csv').drop(columns='time').to_csv()
    nets = [v for file in sorted((folder/'ensemble').glob('*.safetensors')) for v in load_file(file).values()]
    return content_digest(config, *texts, history, *nets)

files = dict(ensemble=(write_ensemble,read_ensemble), labels=(write_labels,read_labels),
    checkpoint=(write_checkpoint,read_checkpoint))
runs = dict(crossval=(write_crossval,read_crossval), command=(write_command,read_command))
kinds = {**files, **runs}

# a change, and what comes of it

def change(kind, folder, form, rng, marker):
    "Change a folder; returns the file, its form, and what was done"
    all_files = files_in(folder)
    if kind in runs:
        if rng.random()<.1:
            file,action = change_run_folder(folder, rng)
            return file,'no checksum',action
        name = rng.choice(sorted({f.name for f in all_files})) # as often the one table as one of many networks
        file = rng.choice([f for f in all_files if f.name==name])
        if file.suffix!='.safetensors' and not has_checksum(file): form = 'no checksum'
    else:
        jsons = [f for f in all_files if f.suffix=='.json']
        if jsons and rng.random()<.1:
            file,action = change_ensemble_folder(folder, rng)
            return file,form,action
        file = rng.choice(all_files+jsons*3)
    return file,form,change_file(file, form, rng, marker)

@contextmanager
def no_network(requests):
    "Attempts to reach the network are counted, and fail"
    def refuse(*args, **kwargs):
        requests.append(args)
        raise OSError('no network')
    with mock.patch.object(socket.socket, 'connect', refuse), mock.patch.object(socket, 'getaddrinfo', refuse): yield

def outcome(read, folder, digest):
    "What came of reading a changed folder, and the text of the error; 'refused' is one line that names the folder"
    try: same = read(folder)==digest
    except ValueError as e:
        text = str(e)
        if type(e) is not ValueError or not text.isprintable(): return 'other traceback',repr(e)[:300]
        return ('refused' if str(folder) in text else 'unnamed'),text
    except Exception as e: return 'other traceback',repr(e)[:300]
    return ('same' if same else 'used'),''

def is_wrong(row):
    "Whether a row of `tamper` is what must not be"
    return row['outcome'] in ('other traceback','unnamed') or row['outcome']=='used' and row['form']=='signed'

def tamper_kind(kind, n, rng, tmp, requests, forms=forms):
    "Change `n` folders of one kind in each form; a row for each"
    write,read = kinds[kind]
    whole,older,marker = tmp/kind/'whole',tmp/kind/'older',tmp/'marker'
    whole.mkdir(parents=True)
    write(whole)
    shutil.copytree(whole, older)
    without_checksums(older)
    def read_copy(source):
        shutil.copytree(source, tmp/kind/'copy'/'it')
        try: return read(tmp/kind/'copy'/'it')
        finally: shutil.rmtree(tmp/kind/'copy')
    digest = read_copy(whole)
    assert digest==read_copy(older)
    for form in forms:
        for i in range(n):
            folder = tmp/kind/f'{form}{i}'/'it'
            shutil.copytree(older if form=='older' else whole, folder)
            file,file_form,action = change(kind, folder, form, rng, marker)
            with no_network(requests), warnings.catch_warnings():
                warnings.simplefilter('ignore')
                result,text = outcome(read, folder, digest)
            yield dict(kind=kind, form=file_form, file=str(file.relative_to(folder)), change=action, outcome=result,
                named=str(file) in text, text=text)
            shutil.rmtree(folder.parent)

def tamper(n=100, seed=0, kinds=files, verbose=False):
    "Change `n` folders of each kind and form; counts of the outcomes, and a row for each"
    rng,tmp,requests,rows = random.Random(seed),Path(tempfile.mkdtemp()),[],[]
    try:
        for kind in kinds:
            for row in tamper_kind(kind, n, rng, tmp, requests):
                rows.append(row)
                if verbose and is_wrong(row): print(row, flush=True)
        counts = {form: dict(Counter(r['outcome'] for r in rows if r['form']==form)) for form in (*forms,'no checksum')}
        counts = {form: outcomes for form,outcomes in counts.items() if outcomes}
        return dict(files=len(rows), **counts, requests=len(requests), code_run=(tmp/'marker').exists()), rows
    finally: shutil.rmtree(tmp)

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--n', type=int, default=100, help='files of each kind and form')
    p.add_argument('--runs', type=int, default=40, help='run folders of each kind and form')
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--json', action='store_true', help='print the counts as one line of JSON at the end')
    p.add_argument('--out', type=Path, help='JSON file to write the counts to')
    opts = p.parse_args()
    matplotlib.use('agg')
    result = dict(n=opts.n, seed=opts.seed, **tamper(opts.n, opts.seed, verbose=True)[0])
    of_runs = dict(n=opts.runs, **tamper(opts.runs, opts.seed, runs, verbose=True)[0])
    for k,v in {**result, **{f"runs: {k}": v for k,v in of_runs.items()}}.items(): print(f"{k:18} {v}")
    result["runs"] = of_runs
    if opts.json: print(json.dumps(result))
    if opts.out: opts.out.write_text(json.dumps(result, indent=1)+'\n')
