"""How long do photographs take to be read, and does it matter to training how they are read?

    python benchmarks/input.py [--data clothing.zip] [--n 40] [--n-training 160] [--parts reading,epoch] [--json]

Photographs of 0.5, 3 and 12 megapixels are drawn: pictures of `--data` (a folder or zip with labels.csv; empty:
drawn leaves), enlarged, with the noise of a sensor (`--noise`; the more, the longer all ways to decode them
take), saved as JPEGs of quality 90. They are read through fastai's `ImageBlock`, through `FastImageBlock`, and
from the folder of `cache_images`:

- `decoding`, only if asked for: milliseconds a picture of 12 megapixels in Pillow's decoder alone, at each scale
- `reading`: milliseconds a picture in an epoch at 128 and 224 pixels, with 0 and 2 workers. `cache, first
  epoch` shrinks all and reads them; `cache, later epochs` reads them. Also the mean absolute difference to
  `ImageBlock`, of 255, where validation cuts the pictures
- `epoch`: an epoch of training resnet18 at 128 pixels and validating it, with 0 and 2 workers
- `folds`: five folds of five epochs, training and validation, on 12 megapixels, with 2 workers; the time to
  fill the cache is counted
- `accuracy`: photographs of 3 megapixels, tf_efficientnet_lite0 with ImageNet weights (see weights.py), only
  its last layer trained, with each seed through each way to read

All ways are measured in each round, in an order that moves on by one from round to round. A ratio is how many
times faster than `ImageBlock` a way was in the same round (in the same fold): median and quartiles. From
`reading` the time to start the workers is taken away, which is measured in each round with a single picture: in
an epoch of thousands it does not count. In `epoch` and `folds`, of `--n-training` photographs, it is counted. The
system keeps files that were read in memory, so the disk does not count."""
import io,os,shutil,time,warnings
from contextlib import redirect_stdout
from itertools import product
from json import dumps,loads
from pathlib import Path
from tempfile import TemporaryDirectory

warnings.filterwarnings('ignore')
import numpy as np,pandas as pd,PIL,timm,torch
from cells import read_table, record
from fastai.vision.all import (CategoryBlock, ColReader, DataBlock, ImageBlock, IndexSplitter, Learner, Normalize,
    ProgressCallback, Resize, accuracy, params, set_seed)
from fastcore.script import call_parse, store_true
from fastai_mix.data.pictures import FastImageBlock, cache_images
from PIL import Image

shapes = {.5: (816,612), 3: (2048,1536), 12: (4032,3024)}
ways = 'ImageBlock','FastImageBlock','cache, first epoch','cache, later epochs'

def draw(root, names, shape, folder, seed, sigma):
    "JPEGs of the pictures `names`, cut to `shape` or its transpose, enlarged, with noise; their paths"
    folder.mkdir(parents=True)
    rng,paths = np.random.default_rng(seed),[]
    for i,o in enumerate(names):
        im = Image.open(io.BytesIO((root/o).read_bytes())).convert('RGB')
        w,h = shape if im.width>=im.height else shape[::-1]
        scale = min(im.width/w, im.height/h)
        left,top = (im.width-w*scale)/2,(im.height-h*scale)/2
        box = max(0, left),max(0, top),min(left+w*scale, im.width),min(top+h*scale, im.height)
        a = np.asarray(im.resize((w,h), Image.Resampling.BICUBIC, box=box), np.float32)
        a = (a+sigma*rng.standard_normal(a.shape, np.float32)).clip(0, 255).astype(np.uint8)
        paths.append(str(folder/f'{i:05}.jpg'))
        Image.fromarray(a).save(paths[-1], quality=90)
    return paths

class Way:
    "One way to read the table `df`: its block, and its `get_x`, which `begin` makes anew"
    def __init__(self, name, df, size, tmp):
        self.name,self.df,self.size,self.folder = name,df,size,Path(tmp)/f'cache-{name[-5:]}-{size}'
        self.cached = name.startswith('cache')
        self.begin()

    def begin(self):
        "Fill the cache, from nothing for the first epoch"
        if self.name==ways[2]: shutil.rmtree(self.folder, ignore_errors=True)
        self.get_x = ColReader('path')
        if not self.cached: return
        with redirect_stdout(io.StringIO()): self.get_x = cache_images(self.df, 'path', self.folder, self.size)

    def block(self, splitter, batch_tfms=None):
        image = ImageBlock if self.name==ways[0] else FastImageBlock(self.size)
        labels = CategoryBlock(vocab=sorted(set(self.df.label)))
        return DataBlock((image, labels), get_x=self.get_x, get_y=ColReader('label'), splitter=splitter,
            item_tfms=Resize(self.size), batch_tfms=batch_tfms)

    def dls(self, workers, bs=8, splitter=None, times=1):
        "DataLoaders of all pictures, repeated, and of as many to validate"
        df = pd.concat([self.df]*times, ignore_index=True)
        every = list(range(len(df)))
        block = self.block(splitter or (lambda o: (every,every)))
        return block.dataloaders(df, bs=bs, num_workers=workers, device='cpu')

def seconds(f):
    start = time.perf_counter()
    f()
    return time.perf_counter()-start

def interleaved(rounds, methods):
    "Seconds of each method in each round, after one to warm up"
    secs = {k:[] for k in methods}
    for i in range(rounds+1):
        names = list(methods)
        for k in names[i%len(names):]+names[:i%len(names)]:
            s = methods[k]()
            if i: secs[k].append(s)
    return secs

def rows_of(secs, n_pictures, **settings):
    "A row for each way: milliseconds a picture, and how many times faster than the first way"
    base = np.array(secs[ways[0]])
    rows = []
    for k,s in secs.items():
        q1,q2,q3 = np.quantile(base/s, [.25,.5,.75])
        ms = 1e3*float(np.median(s))/n_pictures
        rows.append(dict(settings, way=k, ms=ms, ratio=float(q2), q1=float(q1), q3=float(q3)))
    return rows

def differences(a, b):
    "Mean and worst picture's mean absolute difference of two batches, of 255"
    d = 255*(a-b).abs().flatten(1).mean(1)
    return dict(difference=d.mean().item(), worst=d.max().item())

def reading(df, megapixels, size, workers, rounds, tmp):
    "Rows of one setting"
    all_ways = [Way(k, df, size, tmp) for k in ways]
    times = dict(zip(ways, (1,2,1,16))) # what is quick is read more often, or the start of workers would be most of it
    def epoch(way):
        dls = way.dls(workers, times=times[way.name])
        def go():
            if way.name==ways[2]: way.begin()
            for _ in dls.valid: pass
        return seconds(go)
    one = Way(ways[3], df[:1], size, tmp)
    methods = {o.name: (lambda o=o: epoch(o)) for o in all_ways}
    if workers: methods['start'] = lambda: seconds(lambda: [*one.dls(workers).valid])
    secs = interleaved(rounds, methods)
    start = secs.pop('start', 0)
    secs = {k: np.subtract(s, start)/times[k] for k,s in secs.items()}
    rows = rows_of(secs, len(df), part='reading', megapixels=megapixels, size=size, workers=workers)
    xs = [o.dls(0, bs=len(df)).valid.one_batch()[0] for o in all_ways]
    return [{**r, **differences(xs[0], x)} for r,x in zip(rows, xs)]

def decoding(paths, megapixels, rounds):
    "Rows of milliseconds at each scale"
    def decode(scale):
        for path in paths:
            with Image.open(path) as im:
                im.draft(None, (im.width//scale,im.height//scale))
                im.load()
    secs = interleaved(rounds, {k: lambda k=k: seconds(lambda: decode(k)) for k in (1,2,4,8)})
    rows = [dict(part='decoding', megapixels=megapixels, scale=k, ms=1e3*float(np.median(o))/len(paths))
        for k,o in secs.items()]
    for r in rows: print('decoding {megapixels:4} MP at 1/{scale} scale {ms:7.1f} ms'.format(**r), flush=True)
    return rows

def learner(dls):
    set_seed(0)
    learn = Learner(dls, timm.create_model('resnet18', num_classes=dls.c), metrics=accuracy)
    learn.remove_cb(ProgressCallback)
    learn.logger = lambda *_: None
    return learn

def epoch_of_training(df, megapixels, workers, rounds, tmp, size=128):
    "Rows of one setting"
    used = [Way(k, df, size, tmp) for k in ways if k!=ways[2]]
    every = list(range(len(df)))
    def fit(way):
        learn = learner(way.dls(workers, splitter=lambda o: (every,every[::4])))
        return seconds(lambda: learn.fit(1, 1e-3))
    secs = interleaved(rounds, {o.name: (lambda o=o: fit(o)) for o in used})
    return rows_of(secs, len(df), part='epoch', megapixels=megapixels, size=size, workers=workers)

def folds(df, megapixels, tmp, size=128, workers=2, n_folds=5, n_epochs=5):
    "Rows of five folds of five epochs; a round is a fold"
    start = time.perf_counter()
    used = [Way(k, df, size, Path(tmp)/'folds') for k in ways if k!=ways[2]] # nothing but the cache takes time
    fill = time.perf_counter()-start
    secs = {o.name:[] for o in used}
    for k in range(n_folds):
        for way in used[k%3:]+used[:k%3]:
            splitter = IndexSplitter(list(range(k, len(df), n_folds)))
            def fit(): learner(way.dls(workers, splitter=splitter)).fit(n_epochs, 1e-3)
            secs[way.name].append(seconds(fit)+(fill/n_folds if way.cached else 0))
    return rows_of(secs, n_epochs*len(df), part='folds', megapixels=megapixels, size=size, workers=workers)

def accuracies(df, seeds, tmp, size=128, n_epochs=3):
    "Rows of accuracy: a way and a seed"
    from weights import lite0_weights
    rows,half = [],list(range(0, len(df), 2))
    for way in [Way(k, df, size, tmp) for k in ways if k!=ways[2]]:
        for seed in range(seeds):
            set_seed(seed)
            model = lite0_weights()[1]
            model.reset_classifier(df.label.nunique())
            block = way.block(IndexSplitter(half), Normalize.from_stats([.5]*3, [.5]*3))
            set_seed(seed)
            dls = block.dataloaders(df, bs=32, num_workers=2, device='cpu', seed=seed)
            def split(m): return [[o for k,o in m.named_parameters() if 'classifier' not in k],params(m.classifier)]
            learn = Learner(dls, model, splitter=split, metrics=accuracy)
            learn.freeze()
            with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(n_epochs, 1e-2)
            rows.append(dict(part='accuracy', way=way.name, seed=seed, accuracy=learn.recorder.values[-1][-1]))
            print('accuracy  {way:20s} seed {seed} {accuracy:.3f}'.format(**rows[-1]), flush=True)
    return rows

def show(rows):
    for r in rows:
        more = f" difference {r['difference']:.2f}, worst {r['worst']:.2f}" if 'difference' in r else ''
        print('{part:8s} {megapixels:4} MP {size} px, {workers} workers  {way:20s} {ms:7.1f} ms {ratio:6.2f} '
            '({q1:.2f}-{q3:.2f})'.format(**r)+more, flush=True)
    return rows

@call_parse
def main(
    data:str='', # Folder or zip of pictures, with labels.csv; empty: drawn leaves
    n:int=40, # Photographs of each size
    n_training:int=160, # Photographs of each size to train on, for `epoch` and `folds`
    n_accuracy:int=400, # Photographs to train on and to validate on, together
    noise:float=4., # Standard deviation of the noise, of 255
    rounds:int=5, # Rounds after one to warm up; `epoch` has half as many
    seeds:int=3, # Seeds for the accuracies
    parts:str='reading,epoch,folds,accuracy', # What to measure, comma-separated
    out:str='', # File to write, .json
    json:store_true=False, # One JSON object on the last line
):
    "Measure each way to read, interleaved"
    table,root = read_table(data or 'leaves')
    table = table.sample(frac=1, random_state=0)
    todo,rows,megabytes = parts.split(','),[],{}
    with TemporaryDirectory() as tmp:
        def photographs(k, shape, name, seed=0):
            paths = draw(root, table.image_id[:k], shape, Path(tmp)/name, seed, noise)
            megabytes[name] = sum(map(os.path.getsize, paths))/k/1e6
            return pd.DataFrame({'path': paths, 'label': table.label[:k].tolist()}),Path(tmp)/f'{name}-cache'
        for mp,shape in shapes.items():
            df,cache = photographs(n, shape, f'{mp}')
            if mp==12 and 'decoding' in todo: rows += decoding(df.path, mp, rounds)
            for size,workers in product((128,224), (0,2)):
                if 'reading' in todo: rows += show(reading(df, mp, size, workers, rounds, cache))
            if {'epoch','folds'} & set(todo): df,cache = photographs(n_training, shape, f'{mp}-training')
            for workers in (0,2):
                if 'epoch' in todo: rows += show(epoch_of_training(df, mp, workers, (rounds+1)//2, cache))
            if mp==12 and 'folds' in todo: rows += show(folds(df, mp, cache))
        if 'accuracy' in todo:
            df,cache = photographs(n_accuracy, shapes[3], 'accuracy', 1)
            rows += accuracies(df, seeds, cache)
    res = dict(data=Path(data).name or 'leaves', n=n, n_training=n_training, rounds=rounds, noise=noise,
        megabytes=megabytes, rows=rows, pillow=PIL.__version__, record=record(),
        load=os.getloadavg()[0] if hasattr(os, 'getloadavg') else None)
    if out:
        old = loads(Path(out).read_text()) if Path(out).exists() else {}
        Path(out).write_text(dumps({**old, parts: res}, indent=1)+'\n')
    if json: print(dumps(res))
