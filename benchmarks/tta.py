"""What do eight views cost, in one pass and in nine?

    python benchmarks/tta.py [--data FOLDER] [--arch resnet18] [--size 128] [--source-size 2048] \\
        [--out benchmarks/results/tta.json] [--json]

Every method predicts the same JPEGs in each round, in an order that moves on by one from round to round:

- `get_preds`: one forward, for comparison
- `learn.tta(n=8)`: fastai's, 9 forwards: 8 of pictures changed at random, and one plain
- `tta_views, same 9`: one plain view and 8 by the same random transforms
- `tta_views d4`: 8 forwards
- `tta_views d4, whole batches`: the same, with `max_bs` the batch size: on a CPU smaller pieces are the default,
  since large ones are slow
- `ttach d4`: the network wrapped by ttach (if installed), 8 forwards, under `get_preds`
- `tta_views d4, k networks` and `k times tta_views d4`: 8·k forwards

The ratio is that of a round's speed to `learn.tta`'s in the same round: median and quartiles. `decodes` is how often
a picture was opened. Pictures are those of a folder (any depth) or drawn leaves; `--source-size` resizes their longer
side first and saves them as JPEGs, quality 92. Weights are random: they do not change the speed. Also measured, on
the first pictures: how far `tta_views` is from `get_preds` on each view in turn, and from ttach."""
import os,platform,random,sys,time,warnings
from importlib.util import find_spec
from json import dumps,loads
from pathlib import Path
from tempfile import TemporaryDirectory

warnings.filterwarnings('ignore')
import fastai,numpy as np,PIL,timm,torch
from fastai.vision.all import (CategoryBlock, CrossEntropyLossFlat, DataBlock, ImageBlock, Learner, Normalize, PILImage,
    ProgressCallback, Resize,
    TensorImage, Transform, aug_transforms, get_image_files, nn)
from fastcore.script import call_parse, store_true
from fastai_mix.data.leaves import leaf_data
from fastai_mix.vision.tta import d4, identity, view_preds
from PIL import Image

class Opened:
    "How many pictures were opened"
    def __init__(self):
        self.n,create = 0,PILImage.create.__func__
        def counted(cls, fn, **kwargs):
            self.n += 1
            return create(cls, fn, **kwargs)
        PILImage.create = classmethod(counted)

class AsView(Transform):
    order = 1000
    def __init__(self, view): self.view = view
    def encodes(self, x:TensorImage): return self.view(x)

def pictures(data, n, source_size, seed, tmp):
    "`n` JPEGs, resized if wanted"
    files = sorted(get_image_files(data)) if data else sorted(
        get_image_files(leaf_data(n=max(n,40), size=256)/'images'))
    files = random.Random(seed).sample(files, n)
    if not source_size: return files
    for i,f in enumerate(files):
        im = Image.open(f).convert('RGB')
        r = source_size/max(im.size)
        im.resize([round(o*r) for o in im.size], Image.Resampling.BICUBIC).save(Path(tmp)/f'{i:05}.jpg', quality=92)
    return sorted(Path(tmp).glob('*.jpg'))

def learner(files, arch, size, bs, seed, wrap=lambda m: m):
    torch.manual_seed(seed)
    block = DataBlock((ImageBlock, CategoryBlock(vocab=['a','b'])), get_y=lambda o: 'a',
        splitter=lambda o: ([0], list(range(len(o)))),
        item_tfms=Resize(size), batch_tfms=[*aug_transforms(), Normalize.from_stats([.5]*3, [.5]*3)])
    dls = block.dataloaders(files, bs=bs, num_workers=0)
    model = timm.create_model(arch, num_classes=10)
    # or all views have nearly the same probabilities, and nothing is compared
    nn.init.normal_(model.get_classifier().weight)
    learn = Learner(dls, wrap(model), loss_func=CrossEntropyLossFlat())
    learn.remove_cb(ProgressCallback)
    return learn

def difference(learn, ttach_learn):
    "Largest difference of `tta_views` to each view through `get_preds`, to ttach, and of the views to one another"
    dl = learn.dls.valid
    each = [learn.get_preds(dl=dl.new(after_batch=[*dl.after_batch.fs, AsView(v)]))[0] for v in d4]
    each = torch.stack(each)
    to_views = (learn.tta_views()[0]-each.mean(0)).abs().max().item()
    spread = (each.amax(0)-each.amin(0)).max().item()
    if ttach_learn is None: return to_views,None,spread
    return to_views,(learn.tta_views(on='logits')[0]-ttach_learn.get_preds()[0]).abs().max().item(),spread

def make_methods(learn, wrapped, nets, bs):
    "For each method how many forwards it makes, and a function that predicts"
    methods = {'get_preds': (1, learn.get_preds), 'learn.tta(n=8)': (9, lambda: learn.tta(n=8)),
        'tta_views, same 9': (9, lambda: learn.tta_views(views=[identity], n_random=8)),
        'tta_views d4': (8, learn.tta_views),
        'tta_views d4, whole batches': (8, lambda: learn.tta_views(max_bs=bs))}
    if wrapped: methods['ttach d4'] = 8,wrapped.get_preds
    k = len(nets)
    if k>1:
        methods[f'tta_views d4, {k} networks'] = 8*k,lambda: view_preds(nets, learn.dls.valid)
        methods[f'{k} times tta_views d4'] = 8*k,lambda: [learn.tta_views() for _ in range(k)]
    return methods

def time_rounds(methods, rounds, opened, n):
    "Seconds of each method in each round, and how often it opens a picture"
    secs,decodes,names = {m:[] for m in methods},{},list(methods)
    for i in range(rounds+1):
        for m in names[i%len(names):]+names[:i%len(names)]:
            opened.n,start = 0,time.perf_counter()
            methods[m][1]()
            if i: secs[m].append(time.perf_counter()-start)
            decodes[m] = opened.n/n
    return secs,decodes

@call_parse
def main(
    data:str='', # Folder of pictures; empty: drawn leaves
    arch:str='resnet18', # Name of a timm model
    size:int=128, # Side of the pictures in a batch
    source_size:int=0, # Longer side of the JPEGs; 0: as they are
    n:int=64, # Pictures
    bs:int=64, # Batch size; 64 is fastai's default
    k:int=5, # Networks of an ensemble
    rounds:int=5, # Rounds after one to warm up
    seed:int=0, # Of the choice of pictures and of the weights
    out:str='', # File to write, .json; each setting has its own key in it
    json:store_true=False, # One JSON object on the last line
):
    "Time every method, interleaved"
    with TemporaryDirectory() as tmp:
        opened,files = Opened(),pictures(data, n, source_size, seed, tmp)
        n,mean_mp = len(files),float(np.mean([np.prod(Image.open(f).size) for f in files]))/1e6
        learn,wrapped = learner(files, arch, size, bs, seed),None
        nets = [learn, *(timm.create_model(arch, num_classes=10) for _ in range(k-1))]
        if find_spec('ttach'):
            import ttach
            wrapped = learner(files, arch, size, bs, seed,
                lambda m: ttach.ClassificationTTAWrapper(m, ttach.aliases.d4_transform()))
        methods = make_methods(learn, wrapped, nets, bs)
        secs,decodes = time_rounds(methods, rounds, opened, n)
        views_diff,ttach_diff,spread = difference(learn, wrapped)
    print(f'{arch} at {size}, {n} JPEGs of {mean_mp:.2f} megapixels, batches of {bs}, {rounds} rounds, '
        f'{torch.get_num_threads()} threads')
    base,rows = np.array(secs['learn.tta(n=8)']),[]
    print(f"{'method':28s} {'forwards':>8s} {'decodes':>7s} {'images/s':>8s} {'ratio':>6s} {'quartiles':>13s}")
    for m,(forwards,_) in methods.items():
        q1,q2,q3 = np.quantile(base/secs[m], [.25,.5,.75])
        rows.append(dict(method=m, forwards=forwards, decodes=decodes[m], images_per_s=n/float(np.median(secs[m])),
            ratio=float(q2), q1=float(q1), q3=float(q3)))
        print(f"{m:28s} {forwards:8d} {decodes[m]:7.2f} {rows[-1]['images_per_s']:8.1f} {q2:6.2f} {q1:6.2f}-{q3:6.2f}")
    print(f'largest difference to each view by get_preds: {views_diff:.1e}'
        + ('' if ttach_diff is None else f', to ttach (mean of logits): {ttach_diff:.1e}')
        + f', of the views to one another: {spread:.1e}')
    res = dict(arch=arch, size=size, source_size=source_size, data='folder' if data else 'leaves', n=n,
        megapixels=mean_mp, bs=bs, rounds=rounds, seed=seed,
        threads=torch.get_num_threads(), load=os.getloadavg()[0] if hasattr(os, 'getloadavg') else None,
        device=str(learn.dls.device), machine=platform.machine(), processors=os.cpu_count(),
        python=platform.python_version(), torch=torch.__version__, fastai=fastai.__version__, timm=timm.__version__,
        pillow=PIL.__version__,
        command=' '.join(['python benchmarks/tta.py', *('FOLDER' if data and o==data else o for o in sys.argv[1:])]),
        difference_get_preds=views_diff, difference_ttach=ttach_diff, spread=spread, rows=rows)
    if out:
        old = loads(Path(out).read_text()) if Path(out).exists() else {}
        Path(out).write_text(dumps({**old, f'{arch} {size} source {source_size}': res}, indent=1)+'\n')
    if json: print(dumps(res))
