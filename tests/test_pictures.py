"Pictures decoded at the size needed and shrunk once: every format, every way to read them, and what can go wrong with a folder."
import errno, io, os, pickle, shutil, signal, subprocess, sys, time, warnings
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.vision.all import (BBoxBlock, BBoxLblBlock, CategoryBlock, ColReader, DataBlock, ImageBlock, MaskBlock, PILImage, PILImageBW,
    PILMask, PointBlock, RandomResizedCrop, Resize, ResizeMethod, aug_transforms, get_image_files, load_learner, noop)
from hypothesis import given, settings, strategies as st
from PIL import Image, ImageOps
from fastai_mix.data import pictures
from fastai_mix.data.pictures import (CachedPath, FastImageBlock, PictureOpener, cache_images, scaled_decode, shrink,
    shrunk_file, worth_caching)
from helpers import tiny

def photo(size=(640,480), seed=0, grid=7):
    "A picture with structure of its own, and smooth"
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(60, 200, (grid,grid,3), dtype=np.uint8)).resize(size, Image.BICUBIC)

def exif(turn):
    e = Image.Exif()
    e[0x0112] = turn
    return e

def array(im): return np.asarray(im).astype(int)

def difference(a, b): return abs(array(a)-array(b)).mean()

def cropped(im, size, method=ResizeMethod.Crop): return Resize(size, method=method)(PILImage.create(im), split_idx=1)

def upright(file): return ImageOps.exif_transpose(Image.open(file)).convert('RGB')

@pytest.fixture
def photos(tmp_path):
    "Eight photographs in a folder, and their table"
    folder = tmp_path/'photos'
    folder.mkdir()
    for i in range(8): photo(seed=i).save(folder/f'{i}.jpg', quality=95)
    return folder,pd.DataFrame({'name': [f'{i}.jpg' for i in range(8)], 'label': list('ab')*4})

def get_dls(photos, block, get_x=None, size=64, **kwargs):
    folder,df = photos
    return DataBlock((block, CategoryBlock), get_x=get_x or ColReader('name', pref=folder), get_y=ColReader('label'),
        splitter=lambda o: (list(range(8)), list(range(8))), item_tfms=kwargs.pop('item_tfms', Resize(size)),
        batch_tfms=kwargs.pop('batch_tfms', None)).dataloaders(df, bs=4, device='cpu', **{'num_workers':0, **kwargs})

# scaled decoding

@settings(deadline=None, max_examples=60)
@given(st.integers(1, 700), st.integers(1, 700), st.integers(1, 120), st.integers(1, 120), st.integers(1, 8))
def test_scale_is_the_smallest_that_leaves_twice_the_size(w, h, size_h, size_w, turn):
    data = io.BytesIO()
    Image.new('RGB', (w,h)).save(data, 'jpeg', exif=exif(turn))
    im = Image.open(data)
    scale,found = scaled_decode(im, (size_h,size_w))
    assert found==turn
    if turn>4: size_h,size_w = size_w,size_h
    def enough(k): return w//k>=2*size_w and h//k>=2*size_h
    assert scale==1 or enough(scale)
    assert scale==8 or not enough(2*scale)
    assert im.size==(-(-w//scale),-(-h//scale))

@pytest.mark.parametrize('shape', [(640,480), (480,640), (641,479), (1001,667), (667,1001), (999,999), (333,250), (500,375), (64,64)])
@pytest.mark.parametrize('size', [32, 56, 100])
def test_read_as_from_the_full_decode(tmp_path, shape, size):
    photo(shape).save(tmp_path/'a.jpg', quality=95)
    fast,full = PictureOpener((size,size))(tmp_path/'a.jpg'),PILImage.create(tmp_path/'a.jpg')
    assert min(fast.size)>=min(2*size, *full.size)
    assert difference(cropped(fast, size), cropped(full, size))<1
    small = tmp_path/f"small{shrunk_file(tmp_path/'a.jpg', (size,size))[0]}"
    small.write_bytes(shrunk_file(tmp_path/'a.jpg', (size,size))[1])
    if small.suffix=='.same': assert min(shape)<=size
    else:
        assert min(Image.open(small).size)==size
        assert difference(cropped(small, size), cropped(full, size))<1

@pytest.mark.parametrize('turn', range(1, 9))
@pytest.mark.parametrize('suffix', ['jpg','png','tif','webp'])
def test_turned_as_the_exif_says(tmp_path, turn, suffix):
    file,size = tmp_path/f'a.{suffix}',(40,90)
    photo((640,300)).save(file, exif=exif(turn), **{'quality':95} if suffix=='jpg' else {})
    im = PictureOpener(size)(file)
    assert im.size[0]>im.size[1] if turn<5 else im.size[0]<im.size[1]
    assert difference(im.resize((90,40), Image.BILINEAR), upright(file).resize((90,40), Image.BILINEAR))<1
    kind,data = shrunk_file(file, size)
    assert kind==('.jpg' if suffix in ('jpg','webp') else '.png')
    small = Image.open(io.BytesIO(data))
    assert difference(small, shrink(upright(file), size))<1.5 and not small.getexif()

def test_exif_that_makes_no_sense(tmp_path):
    photo().save(tmp_path/'a.jpg', exif=exif(77))
    photo().save(tmp_path/'b.jpg', exif=b'Exif\0\0II*\0\xff\xff\xff\xffnothing')
    for o in 'ab': assert PictureOpener((64,64))(tmp_path/f'{o}.jpg').size==(320,240)

modes = {
    'grey.jpg': lambda im: im.convert('L'), 'cmyk.jpg': lambda im: im.convert('CMYK'), 'rgb.png': noop, 'grey.png': lambda im: im.convert('L'),
    'alpha.png': lambda im: Image.merge('RGBA', [*im.split(), im.getchannel(0)]), 'palette.png': lambda im: im.quantize(16), 'bit.png': lambda im: im.convert('1'),
    '16.png': lambda im: Image.fromarray(np.asarray(im.convert('L')).astype(np.uint16)), 'float.tif': lambda im: im.convert('F'),
    'int.tif': lambda im: im.convert('I'), 'cmyk.tif': lambda im: im.convert('CMYK'), 'rgb.bmp': noop, 'grey-alpha.png': lambda im: im.convert('LA'),
    'palette.gif': lambda im: im.quantize(16), 'clear.png': lambda im: im.quantize(16), 'a.webp': noop}

@pytest.fixture
def files(tmp_path):
    for name,make in modes.items():
        make(photo((300,200))).save(tmp_path/name, **{'transparency':3} if name=='clear.png' else {})
    return [tmp_path/o for o in modes]

@pytest.mark.parametrize('cls', [PILImage, PILImageBW])
def test_other_formats_and_small_jpegs_are_read_as_ever(files, cls):
    for f in files:
        a,b = PictureOpener((100,100), cls)(f),cls.create(f)
        assert type(a) is type(b) is cls and (array(a)==array(b)).all(), f

def test_grey_and_cmyk_jpegs_are_scaled(files):
    for f in files[:2]:
        assert PictureOpener((40,40))(f).size==(150,100)
        assert difference(cropped(PictureOpener((40,40))(f), 40), cropped(f, 40))<1

def test_what_is_kept_of_each_mode(files):
    suffixes = {'jpg':'.jpg', 'webp':'.jpg', 'png':'.png', 'gif':'.png', 'bmp':'.png', 'tif':'.tif'}
    for f in files:
        suffix,data = shrunk_file(f, (60,60))
        assert suffix==suffixes[f.suffix[1:]], f
        small,lossless = Image.open(io.BytesIO(data)),suffix!='.jpg'
        assert small.size[1]==60 and not small.info.get('icc_profile')
        full = Image.open(f)
        if full.mode not in ('P','1'): assert small.mode==full.mode, f
        # fastai makes RGB of both; to round before or after that is all that may differ
        assert difference(cropped(small, 60), cropped(f, 60))<(.6 if lossless else 1), f

def test_webp_with_and_without_loss(tmp_path):
    photo().save(tmp_path/'a.webp', quality=90)
    photo().save(tmp_path/'b.webp', lossless=True)
    photo().save(tmp_path/'c.webp', lossless=True, icc_profile=b'x'*1001)
    photo().save(tmp_path/'d.webp', quality=90, icc_profile=b'x'*1001)
    assert [shrunk_file(tmp_path/f'{o}.webp', (64,64))[0] for o in 'abcd']==['.jpg','.png','.png','.jpg']

def test_profiles_of_colours_are_not_kept(tmp_path):
    photo().save(tmp_path/'a.png', icc_profile=b'x'*100_000)
    assert len(shrunk_file(tmp_path/'a.png', (32,32))[1])<6000

# the block

def test_wherever_an_image_block_works(photos, tmp_path):
    folder,df = photos
    for get_x in (None, cache_images(df, ColReader('name', pref=folder), tmp_path/'small', 64)):
        dls,full = get_dls(photos, FastImageBlock(64), get_x),get_dls(photos, ImageBlock)
        assert 255*(dls.valid.one_batch()[0]-full.valid.one_batch()[0]).abs().mean()<1
        dls.show_batch(max_n=2)
        learn = tiny(dls)
        with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
        learn.export(tmp_path/'a.pkl')
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            loaded = load_learner(tmp_path/'a.pkl')
        file = folder/'3.jpg'
        expected = learn.get_preds(dl=dls.test_dl(df[3:4]))[0][0]
        for o in (learn,loaded):
            with o.no_bar():
                for item in (df.iloc[3], file, str(file), file.read_bytes(), PILImage.create(file), np.asarray(PILImage.create(file)),
                             Image.open(file)):
                    torch.testing.assert_close(o.predict(item)[2], expected, atol=.02, rtol=0)
                preds = o.get_preds(dl=o.dls.test_dl(df))[0]
                torch.testing.assert_close(preds[3], expected, atol=1e-5, rtol=0)
                torch.testing.assert_close(o.get_preds(dl=o.dls.test_dl([file]))[0][0], expected, atol=.02, rtol=0)

def test_workers(photos, tmp_path):
    folder,df = photos
    get_x = cache_images(df, ColReader('name', pref=folder), tmp_path/'small', 64)
    for o in (None,get_x):
        a,b = (get_dls(photos, FastImageBlock(64), o, num_workers=n).valid.one_batch()[0] for n in (0,2))
        assert torch.equal(a, b)

@pytest.mark.parametrize('tfms,size,cached', [(dict(item_tfms=Resize(100), batch_tfms=aug_transforms(size=64)), 100, 100),
    (dict(item_tfms=Resize((60,80))), (60,80), (60,80)), (dict(item_tfms=RandomResizedCrop(64, min_scale=.35)), 64, 128),
    (dict(item_tfms=Resize(64, method='pad')), 64, 128), (dict(item_tfms=Resize(64, method='squish')), 64, 128)])
def test_item_transforms(photos, tmp_path, tfms, size, cached):
    folder,df = photos
    full = get_dls(photos, ImageBlock, **tfms).valid.one_batch()[0]
    get_x = cache_images(df, ColReader('name', pref=folder), tmp_path/'small', cached)
    for o in (None,get_x):
        x = get_dls(photos, FastImageBlock(size), o, **tfms).valid.one_batch()[0]
        assert x.shape==full.shape and 255*(x-full).abs().mean()<1

def test_a_class_with_its_own_create_reads_as_it_does(photos):
    class Own(PILImage):
        @classmethod
        def create(cls, fn, **kwargs): return cls(Image.new('RGB', (32,32), 'red'))
    assert get_dls(photos, FastImageBlock(64, Own)).one_batch()[0][:,0].min()==1
    assert get_dls(photos, FastImageBlock(64, PILImageBW)).one_batch()[0].shape==(4,1,64,64)

def mask_of(o): return Path(o).with_suffix('.png')

def test_masks_are_left_alone_and_beside_them_nothing_is_turned(tmp_path):
    a = np.zeros((480,640), np.uint8)
    a[:240,:160] = 1
    for i in range(4):
        Image.fromarray(a*200).convert('RGB').save(tmp_path/f'{i}.jpg', exif=exif(6), quality=99)
        Image.fromarray(a).save(tmp_path/f'{i}.png')
    items = sorted(tmp_path.glob('*.jpg'))
    block = DataBlock((FastImageBlock(48), MaskBlock(['no','yes'])), get_y=mask_of, item_tfms=Resize(48, method=ResizeMethod.Squish),
        splitter=lambda o: (range(4), range(4)))
    for n in (0,2):
        dls = block.dataloaders(items, bs=4, num_workers=n, device='cpu')
        x,y = dls.valid.one_batch()
        assert ((x[:,0]>.4).long()==y).float().mean()>.98
        test = dls.test_dl(items, num_workers=n).one_batch()[0] # without masks it is read as with them
        assert (test-x).abs().mean()<.01
    alone = DataBlock(FastImageBlock(48), item_tfms=Resize(48, method=ResizeMethod.Squish), splitter=lambda o: (range(4), range(4)))
    turned = alone.dataloaders(items, bs=4, num_workers=0, device='cpu').valid.one_batch()[0]
    assert (torch.rot90(turned, 1, (2,3))-x).abs().mean()<.02

def corner(o): return torch.tensor([[160.,240.]])
def box(o): return [[0.,0.,160.,240.]]
def name(o): return ['thing']

def test_points_and_boxes_stay_where_they_are(tmp_path):
    for i in range(4): photo(seed=i).save(tmp_path/f'{i}.jpg', exif=exif(8))
    items = sorted(tmp_path.glob('*.jpg'))
    both = []
    for block in (ImageBlock, FastImageBlock(48)):
        kwargs = dict(item_tfms=Resize(48, method=ResizeMethod.Squish), splitter=lambda o: (range(4), range(4)))
        points = DataBlock((block, PointBlock), get_y=corner, **kwargs).dataloaders(items, bs=4, num_workers=0, device='cpu')
        boxes = DataBlock((block, BBoxBlock, BBoxLblBlock), get_y=[box,name], n_inp=1, **kwargs)
        boxes = boxes.dataloaders(items, bs=4, num_workers=0, device='cpu')
        both.append([*points.valid.one_batch(), *boxes.valid.one_batch()])
    for a,b in zip(*both): torch.testing.assert_close(a.float(), b.float(), atol=.02, rtol=0)

def test_two_pictures_in_a_sample(photos):
    folder,df = photos
    block = DataBlock((FastImageBlock(64), FastImageBlock(64), CategoryBlock), n_inp=2, get_y=ColReader('label'), item_tfms=Resize(64),
        get_x=[ColReader('name', pref=folder)]*2)
    a,b,_ = block.dataloaders(df, bs=4, num_workers=0).one_batch()
    assert a.shape==b.shape and a.sub(b).abs().mean()<.1 # each is cut at random

def test_broken_files_are_named(photos):
    folder,_ = photos
    (folder/'0.jpg').write_bytes((folder/'0.jpg').read_bytes()[:3000])
    (folder/'1.jpg').write_text('no picture')
    for size in (16,4000):
        read = PictureOpener((size,size))
        with pytest.raises(OSError, match=r'0.jpg cannot be read \(.*truncated.*: check_images finds all such'): read(folder/'0.jpg')
        with pytest.raises(OSError, match=r'1.jpg cannot be read \(cannot identify'): read(folder/'1.jpg')
        with pytest.raises(FileNotFoundError, match=r'gone.jpg cannot be read \(No such file'): read(folder/'gone.jpg')
        with pytest.raises(OSError, match='truncated'): read((folder/'0.jpg').read_bytes())

@pytest.mark.parametrize('size', [0, -1, 224., '224', None, True, (224,), (224,224,3), (224,'a'), (0,224), [], np.nan])
def test_sizes_that_make_no_sense(photos, tmp_path, size):
    folder,df = photos
    for call in (FastImageBlock, partial(cache_images, df, ColReader('name', pref=folder), tmp_path/'small')):
        with pytest.raises(ValueError, match='size=.*: expected a whole number from 1 up'): call(size)
    assert not (tmp_path/'small').exists()

def test_sizes_that_do():
    for size in (64, np.int64(64), (64,64), [64,64]): assert FastImageBlock(size).type_tfms[0].size==(64,64)

def test_classes_that_are_none_of_pictures():
    for cls in (Path, 'PILImage', None, Image.Image):
        with pytest.raises(ValueError, match='expected a class of pictures'): FastImageBlock(64, cls)
    assert FastImageBlock(64, PILMask).type_tfms[0]==PILMask.create # an index is no colour
