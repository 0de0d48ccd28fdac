"Pictures decoded at the size needed and shrunk once: formats, ways to read them, folders that will not do."
import errno, io, multiprocessing, os, pickle, shutil, time, warnings
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.vision.all import (BBoxBlock, BBoxLblBlock, CategoryBlock, ColReader, DataBlock, ImageBlock, MaskBlock,
    PILImage, PILImageBW, PILMask, PointBlock, RandomResizedCrop, Resize, ResizeMethod, aug_transforms, get_image_files,
    load_learner, noop)
from hypothesis import given, settings, strategies as st
from PIL import Image, ImageOps
from fastai_mix.data import pictures
from fastai_mix.data.check import check_images
from fastai_mix.data.pictures import (CachedPath, CachedReader, FastImageBlock, PictureOpener, cache_images,
    reading_in_words, scaled_decode, shrink, shrunk_file, worth_caching)
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

shapes = [(640,480), (480,640), (641,479), (1001,667), (667,1001), (999,999), (333,250), (500,375), (64,64)]

@pytest.mark.parametrize('shape', shapes)
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

def grey(im): return im.convert('L')

modes = {
    'grey.jpg': grey, 'cmyk.jpg': lambda im: im.convert('CMYK'), 'rgb.png': noop, 'grey.png': grey, 'rgb.bmp': noop,
    'alpha.png': lambda im: Image.merge('RGBA', [*im.split(), im.getchannel(0)]),
    'grey-alpha.png': lambda im: im.convert('LA'), 'palette.gif': lambda im: im.quantize(16),
    'palette.png': lambda im: im.quantize(16), 'clear.png': lambda im: im.quantize(16),
    '16.png': lambda im: Image.fromarray(np.asarray(grey(im)).astype(np.uint16)), 'bit.png': lambda im: im.convert('1'),
    'float.tif': lambda im: im.convert('F'), 'int.tif': lambda im: im.convert('I'),
    'cmyk.tif': lambda im: im.convert('CMYK'), 'a.webp': noop}

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
        assert difference(cropped(data, 60), cropped(f, 60))<(.6 if lossless else 1), f

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
                for item in (df.iloc[3], file, str(file), file.read_bytes(), PILImage.create(file),
                             np.asarray(PILImage.create(file)), Image.open(file)):
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

@pytest.mark.parametrize('tfms,size,cached', [
    (dict(item_tfms=Resize(100), batch_tfms=aug_transforms(size=64)), 100, 100),
    (dict(item_tfms=Resize((60,80))), (60,80), (60,80)),
    (dict(item_tfms=RandomResizedCrop(64, min_scale=.35)), 64, 128),
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
    kwargs = dict(item_tfms=Resize(48, method='squish'), splitter=lambda o: (range(4), range(4)))
    block = DataBlock((FastImageBlock(48), MaskBlock(['no','yes'])), get_y=mask_of, **kwargs)
    for n in (0,2):
        dls = block.dataloaders(items, bs=4, num_workers=n, device='cpu')
        x,y = dls.valid.one_batch()
        assert ((x[:,0]>.4).long()==y).float().mean()>.98
        test = dls.test_dl(items, num_workers=n).one_batch()[0] # without masks it is read as with them
        assert (test-x).abs().mean()<.01
    dls = DataBlock(FastImageBlock(48), **kwargs).dataloaders(items, bs=4, num_workers=0, device='cpu')
    turned = dls.valid.one_batch()[0]
    assert (torch.rot90(turned, 1, (2,3))-x).abs().mean()<.02

def corner(o): return torch.tensor([[160.,240.]])
def box(o): return [[0.,0.,160.,240.]]
def name(o): return ['thing']

def test_points_and_boxes_stay_where_they_are(tmp_path):
    for i in range(4): photo(seed=i).save(tmp_path/f'{i}.jpg', exif=exif(8))
    items = sorted(tmp_path.glob('*.jpg'))
    both = []
    for block in (ImageBlock, FastImageBlock(48)):
        kwargs = dict(item_tfms=Resize(48, method='squish'), splitter=lambda o: (range(4), range(4)))
        points = DataBlock((block, PointBlock), get_y=corner, **kwargs)
        boxes = DataBlock((block, BBoxBlock, BBoxLblBlock), get_y=[box,name], n_inp=1, **kwargs)
        dls = [o.dataloaders(items, bs=4, num_workers=0, device='cpu') for o in (points,boxes)]
        both.append([*dls[0].valid.one_batch(), *dls[1].valid.one_batch()])
    for a,b in zip(*both): torch.testing.assert_close(a.float(), b.float(), atol=.02, rtol=0)

def test_two_pictures_in_a_sample(photos):
    folder,df = photos
    block = DataBlock((FastImageBlock(64), FastImageBlock(64), CategoryBlock), n_inp=2, get_y=ColReader('label'),
        get_x=[ColReader('name', pref=folder)]*2, item_tfms=Resize(64))
    a,b,_ = block.dataloaders(df, bs=4, num_workers=0).one_batch()
    assert a.shape==b.shape and a.sub(b).abs().mean()<.1 # each is cut at random

def test_broken_files_are_named(photos):
    folder,_ = photos
    (folder/'0.jpg').write_bytes((folder/'0.jpg').read_bytes()[:3000])
    (folder/'1.jpg').write_text('no picture')
    for size in (16,4000):
        read = PictureOpener((size,size))
        with pytest.raises(OSError, match=r'0.jpg cannot be read \(.*truncated.*; check_images'): read(folder/'0.jpg')
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

# the cache

@pytest.fixture
def reader(photos, tmp_path):
    folder,df = photos
    return partial(cache_images, df, ColReader('name', pref=folder), tmp_path/'small', 64)

def kept(folder): return sorted(o for o in Path(folder).rglob('*') if o.suffix in ('.jpg','.png','.tif','.same'))

def no_decoding(monkeypatch):
    def fail(*args): raise AssertionError('a picture was read')
    monkeypatch.setattr(pictures, 'shrunk_file', fail)

def test_a_second_call_does_nothing(reader, photos, monkeypatch, capsys):
    get_x = reader()
    assert '8 pictures, about' in capsys.readouterr().out
    before = {o:o.stat().st_mtime_ns for o in kept(get_x.folder)}
    assert len(before)==8
    no_decoding(monkeypatch)
    monkeypatch.setattr(pictures, 'open_cache', None)
    again = reader()
    assert {o:o.stat().st_mtime_ns for o in kept(get_x.folder)}==before and not capsys.readouterr().out
    for _,row in photos[1].iterrows(): assert get_x(row)==again(row) and Path(get_x(row)) in before

def test_changed_and_new_sources_are_read_anew(reader, photos):
    folder,df = photos
    get_x = reader()
    old = get_x(df.iloc[0])
    photo(seed=99).save(folder/'0.jpg', quality=95)
    assert get_x(df.iloc[0])==f"{folder}{os.sep}0.jpg" # not the picture that was
    new = reader()(df.iloc[0])
    assert new!=old and difference(PILImage.create(new), shrink(photo(seed=99), (64,64)))<2
    more = pd.DataFrame({'name': ['new.jpg']})
    photo(seed=100).save(folder/'new.jpg')
    assert get_x(more.iloc[0])==f"{folder}{os.sep}new.jpg"
    get_x = cache_images(more, ColReader('name', pref=folder), get_x.folder, 64)
    assert isinstance(get_x(more.iloc[0]), CachedPath) and len(kept(get_x.folder))==10

def test_a_source_of_as_many_bytes_is_read_anew(reader, photos):
    "Its time of change tells that it is another picture"
    folder,df = photos
    file,other = folder/'0.jpg',folder.parent/'other.jpg'
    photo(seed=99).save(other, quality=60)
    n_bytes = max(file.stat().st_size, other.stat().st_size)
    def pad(o): o.write_bytes(o.read_bytes().ljust(n_bytes, b'\0')) # a decoder stops before them
    pad(file), os.utime(file, (1e9,1e9))
    old = reader()(df.iloc[0])
    pad(other), shutil.copyfile(other, file), os.utime(file, (2e9,2e9))
    new = reader()(df.iloc[0])
    assert file.stat().st_size==n_bytes and new!=old
    assert difference(PILImage.create(new), shrink(Image.open(other), (64,64)))<2

def test_sizes_share_a_folder(reader, photos, tmp_path):
    folder,df = photos
    a,b = (cache_images(df, ColReader('name', pref=folder), tmp_path/'small', o) for o in (64,(40,80)))
    assert Image.open(a(df.iloc[0])).size[1]==64 and Image.open(b(df.iloc[0])).size==(80,60)
    assert len(kept(tmp_path/'small'))==16

def test_the_folder_may_be_deleted(reader, photos):
    folder,df = photos
    get_x = reader()
    path = get_x(df.iloc[2])
    shutil.rmtree(get_x.folder)
    read = PictureOpener((64,64))
    assert difference(read(path), read(folder/'2.jpg'))==0 # deleted between the look and the reading
    assert get_x(df.iloc[2])==f"{folder}{os.sep}2.jpg"
    x = get_dls(photos, FastImageBlock(64), get_x).valid.one_batch()[0]
    reader()
    y = get_dls(photos, FastImageBlock(64), get_x).valid.one_batch()[0]
    assert isinstance(get_x(df.iloc[2]), CachedPath) and 255*(x-y).abs().mean()<1

def test_deleted_while_it_is_filled(reader, photos, monkeypatch):
    made,n = pictures.shrunk_file,[]
    def shrunk(*args):
        n.append(1)
        if len(n)==5: shutil.rmtree(reader.args[2], ignore_errors=True)
        return made(*args)
    monkeypatch.setattr(pictures, 'shrunk_file', shrunk)
    monkeypatch.setattr(pictures.defaults, 'cpus', 1)
    get_x = reader()
    assert 4<=len(kept(get_x.folder))<8 and (get_x.folder/'CACHEDIR.TAG').exists()
    assert len(kept(reader().folder))==8

def test_a_damaged_small_picture_is_passed_over(reader, photos):
    folder,df = photos
    get_x,read = reader(),PictureOpener((64,64))
    file = Path(get_x(df.iloc[1]))
    for data in (b'', file.read_bytes()[:500]):
        file.write_bytes(data)
        assert difference(read(get_x(df.iloc[1])), read(folder/'1.jpg'))==0

def test_pictures_that_are_small_are_not_copied(photos, tmp_path, monkeypatch):
    folder,df = photos
    photo((64,90)).save(folder/'0.jpg')
    photo((60,90)).save(folder/'1.jpg', exif=exif(6))
    get_x = cache_images(df, ColReader('name', pref=folder), tmp_path/'small', 64)
    assert get_x(df.iloc[0])==f"{folder}{os.sep}0.jpg"
    assert Image.open(get_x(df.iloc[1])).size==(90,60) # but turned
    no_decoding(monkeypatch)
    cache_images(df, ColReader('name', pref=folder), tmp_path/'small', 64)

def by_function(row): return Path(row['folder'])/row['name']
def itself(o): return o

def test_every_kind_of_get_x(photos, tmp_path):
    folder,df = photos
    df = df.assign(path=[str(folder/o) for o in df.name], folder=str(folder))
    readers = ColReader('path'),ColReader('name', pref=folder),ColReader(0, pref=f'{folder}/')
    for get_x in ('path', *readers, by_function):
        cached = cache_images(df, get_x, tmp_path/'small', 64)
        assert Path(cached(df.iloc[1])) in kept(tmp_path/'small') and Path(cached(df.iloc[1]).source)==folder/'1.jpg'
    assert len(kept(tmp_path/'small'))==8
    items = get_image_files(folder)
    cache_images([dict(x=o) for o in items], lambda o: o['x'], tmp_path/'small', 64)
    cached = cache_images(items, itself, tmp_path/'small', 64)
    assert len(kept(tmp_path/'small'))==8
    block = DataBlock((FastImageBlock(64), CategoryBlock), get_x=cached, get_y=lambda o: o.name[0],
        item_tfms=Resize(64))
    dls = block.dataloaders(items, bs=4, num_workers=0)
    assert dls.one_batch()[0].shape==(4,3,64,64)

def test_relative_paths_and_odd_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ['ü ñ.jpg', "a'b\n.jpg", '-x.jpg', 'no suffix']
    for o in names: photo().save(tmp_path/o, 'jpeg')
    df = pd.DataFrame({'path': [*names, 'a\0b.jpg']})
    with pytest.warns(UserWarning, match='1 of 5 pictures were not shrunk: a.x00b.jpg'):
        get_x = cache_images(df, 'path', 'small', 32)
    found = [get_x(df.iloc[i]) for i in range(4)]
    monkeypatch.chdir('/')
    assert [Image.open(o).size for o in found]==[(42,32)]*4

def test_export_and_load_where_there_is_no_cache(reader, photos, tmp_path):
    folder,df = photos
    get_x = pickle.loads(pickle.dumps(reader()))
    assert get_x(df.iloc[0])==reader()(df.iloc[0]) and len(pickle.dumps(get_x))<2000
    path = pickle.loads(pickle.dumps(get_x(df.iloc[0])))
    assert path==get_x(df.iloc[0]) and path.source==f"{folder}{os.sep}0.jpg"
    learn = tiny(get_dls(photos, FastImageBlock(64), get_x))
    learn.export(tmp_path/'a.pkl')
    shutil.rmtree(get_x.folder)
    loaded = load_learner(tmp_path/'a.pkl')
    with loaded.no_bar(): assert loaded.get_preds(dl=loaded.dls.test_dl(df))[0].shape==(8,2)

@pytest.mark.parametrize('n', [8, 40])
def test_broken_pictures_are_named_each_time_and_end_nothing(photos, tmp_path, n):
    folder,df = photos
    df = pd.concat([df]*(n//8), ignore_index=True)
    df['name'] = [shutil.copy(folder/o, folder/f'{i}-{o}').name for i,o in enumerate(df.name)]
    files = [folder/o for o in df.name]
    files[0].write_bytes(files[0].read_bytes()[:3000])
    files[1].write_text('no picture')
    files[2].unlink()
    files[3].write_bytes(b'')
    call = partial(cache_images, df, ColReader('name', pref=folder), tmp_path/'small', 64)
    for _ in range(2):
        with pytest.warns(UserWarning, match=f'4 of {n} pictures were not shrunk') as said: get_x = call()
        text = str(said[0].message)
        for i,o in enumerate(['truncated: ', 'not an image: ', 'missing: No such', 'empty: 0 bytes)']):
            assert f'{i}-{i}.jpg ({o}' in text
        assert '\n' not in text and 'Fix the files or drop their rows' in text
    assert [get_x(df.iloc[i]) for i in range(4)]==list(map(str, files[:4])) and len(kept(tmp_path/'small'))==n-4
    photo().save(files[1], 'jpeg')
    with pytest.warns(UserWarning, match=f'3 of {n} pictures'): call()

def test_all_broken(photos, tmp_path, capsys):
    folder,df = photos
    for o in df.name: (folder/o).unlink()
    with pytest.warns(UserWarning, match='8 of 8 pictures were not shrunk.*; and 3 more'):
        cache_images(df, ColReader('name', pref=folder), tmp_path/'small', 64)
    assert not capsys.readouterr().out

def test_nothing_to_shrink(tmp_path):
    cache_images(pd.DataFrame({'path': []}), 'path', tmp_path/'small', 64)
    assert not (tmp_path/'small').exists()

# folders that will not do

def fails(reader, match):
    with pytest.raises(ValueError, match=match) as e: reader()
    assert '\n' not in str(e.value)

def test_a_folder_that_holds_something_else(reader, tmp_path):
    (tmp_path/'small').mkdir()
    (tmp_path/'small'/'thesis.txt').write_text('years of work')
    fails(reader, 'small is no cache of pictures, it holds thesis.txt: give an empty folder')
    (tmp_path/'small'/'thesis.txt').rename(tmp_path/'small'/'CACHEDIR.TAG')
    fails(reader, 'it holds CACHEDIR.TAG')
    assert (tmp_path/'small'/'CACHEDIR.TAG').read_text()=='years of work'
    (tmp_path/'small'/'CACHEDIR.TAG').unlink()
    (tmp_path/'small'/'.hidden').touch()
    assert len(kept(reader().folder))==8

def test_a_file_in_place_of_the_folder(reader, tmp_path):
    (tmp_path/'small').touch()
    fails(reader, r'small cannot be written \(File exists\): give a folder that can')

def test_a_folder_under_a_file(photos, tmp_path):
    folder,df = photos
    fails(partial(cache_images, df, ColReader('name', pref=folder), folder/'0.jpg'/'small', 64), 'cannot be written')

@pytest.mark.parametrize('number', [errno.EACCES, errno.EROFS])
def test_a_folder_that_is_not_writable(reader, monkeypatch, number):
    def write(*args): raise OSError(number, os.strerror(number))
    monkeypatch.setattr(pictures, 'write_atomic', write)
    fails(reader, f'small cannot be written .{os.strerror(number)}.: give a folder that can')

def test_a_disk_that_is_full_in_the_middle(reader, photos, monkeypatch):
    write,n = pictures.write_atomic,[]
    def full(path, fill):
        def half(part):
            fill(part)
            n.append(1)
            if len(n)<6: return
            part.write_bytes(part.read_bytes()[:1000])
            raise OSError(errno.ENOSPC, 'No space left on device')
        write(path, half)
    monkeypatch.setattr(pictures, 'write_atomic', full)
    fails(reader, 'the disk of .*small is full: free some and call again, or give a folder on another disk')
    files = kept(reader.args[2])
    assert 1<=len(files)<=5 and not [o for o in reader.args[2].rglob('*') if o.suffix=='.part']
    for o in files: Image.open(o).load()
    monkeypatch.setattr(pictures, 'write_atomic', write)
    no_copies = {o:o.stat().st_mtime_ns for o in files}
    assert len(kept(reader().folder))==8 and all(o.stat().st_mtime_ns==t for o,t in no_copies.items())

def test_a_disk_with_too_little_room(reader, monkeypatch):
    monkeypatch.setattr(pictures.shutil, 'disk_usage', lambda o: shutil._ntuple_diskusage(10,9,20_000))
    fails(reader, r'8 pictures need about \d+ kB, and the disk of .*small has 20 kB: free some of it')

@pytest.mark.parametrize('get_x,match', [
    (['name'], 'get_x is a list: expected a function get_x.row.'), (None, 'get_x is a NoneType'),
    (lambda o: 3, "returns '3' .int."),
    (lambda o: Image.new('RGB', (8,8)), "get_x returns .* .Image. for the first row: expected a path")])
def test_get_x_that_gives_no_path(photos, tmp_path, get_x, match):
    fails(partial(cache_images, photos[1], get_x, tmp_path/'small', 64), match)
    assert not (tmp_path/'small').exists()

def test_tables_that_are_none(photos, tmp_path):
    for o in ('train.csv', Path('train.csv'), None, 3):
        fails(partial(cache_images, o, itself, tmp_path/'small', 64), 'df is a .*: expected a table')
    fails(partial(cache_images, photos[1], 'file', tmp_path/'small', 64), "no column 'file': it has 'name', 'label'")

# several processes, and killed ones

fork = pytest.mark.skipif('fork' not in multiprocessing.get_all_start_methods(), reason='needs fork')

def fill(folder):
    df = pd.DataFrame({'path': sorted(map(str, (folder/'photos').glob('*.jpg')))})
    return df,cache_images(df, 'path', folder/'small', 200)

@pytest.fixture
def large(tmp_path):
    "Forty photographs in a folder"
    (tmp_path/'photos').mkdir()
    photo((1600,1200), grid=40).save(tmp_path/'photos'/'0.jpg', quality=95)
    for i in range(1, 40): shutil.copy(tmp_path/'photos'/'0.jpg', tmp_path/'photos'/f'{i}.jpg')
    return tmp_path

def fill_by_two(folder):
    pictures.defaults.cpus = 2
    fill(folder)

def start(folder):
    "A process, forked since importing torch again takes seconds, that fills the folder"
    p = multiprocessing.get_context('fork').Process(target=fill_by_two, args=(folder,))
    p.start()
    return p

def whole(folder):
    files = kept(folder)
    for o in files:
        assert o.stat().st_size>1000
        im = Image.open(o)
        im.load()
        assert min(im.size)==200
    return len(files)

@fork
def test_killed_in_the_middle(large):
    n_kept = []
    for n in (3,12,25):
        p = start(large)
        while p.is_alive() and len(kept(large/'small'))<n: time.sleep(.002)
        p.kill(), p.join()
        n_kept.append(whole(large/'small'))
    assert n_kept[0]<40 and n_kept==sorted(n_kept) # the next goes on
    df,get_x = fill(large)
    assert whole(large/'small')==40 and all(isinstance(get_x(df.iloc[i]), CachedPath) for i in range(40))

@fork
def test_two_processes_fill_one_folder(large):
    ps = [start(large) for _ in range(2)]
    for p in ps: p.join(120)
    assert [p.exitcode for p in ps]==[0,0]
    assert whole(large/'small')==40 and not list((large/'small').rglob('*.part'))

# how others see it

def test_checks_name_the_sources(photos, reader):
    folder,df = photos
    get_x = reader()
    shutil.copy(folder/'0.jpg', folder/'1.jpg')
    faults = check_images(df, get_x)
    assert faults.path.tolist()==[folder/'1.jpg'] and faults.other.tolist()==[folder/'0.jpg']
    assert get_x(df.iloc[0])!=str(folder/'0.jpg')

def test_reading_in_words(photos, reader):
    folder,df = photos
    files,size = [folder/o for o in df.name],(64,64)
    assert reading_in_words(files, size)=='reading photographs of 0.3 megapixels at 1/2 scale'
    assert reading_in_words(files, (600,600))==reading_in_words([], size)==reading_in_words([folder/'no.jpg'], size)==''
    assert reading_in_words(files, size, CachedReader(ColReader('name'), folder/'none', size)).endswith('1/2 scale')
    photo((3000,2000)).save(folder/'large.jpg')
    assert reading_in_words([*files, folder/'large.jpg'], size).endswith('at scales of 1/8 to 1/2')
    words = reading_in_words(files, size, reader())
    assert words.startswith(f'reading from 8 small pictures in {reader().folder} (') and words.endswith('kB)')

# when it pays

def test_worth_caching(photos, tmp_path):
    files = sorted(photos[0].glob('*.jpg'))
    assert worth_caching(files, 200, 2) and worth_caching(files, (200,300), 2) and not worth_caching(files, 300, 100)
    assert not worth_caching(files, 200, 1)
    assert not worth_caching([], 200, 9) and not worth_caching([tmp_path/'gone.jpg'], 200, 9)
    assert worth_caching([tmp_path/'gone.jpg', *files], 200, 9)
    with pytest.raises(ValueError, match='size='): worth_caching(files, 0, 2)

def test_what_a_killed_process_left_in_the_cache_goes_later(photos, tmp_path):
    "An hour later, as until then another process may be writing"
    source,df = photos
    df,folder = df.assign(path=[str(source/o) for o in df.name]),tmp_path/'cache'
    cache_images(df[:2], 'path', folder, 64)
    sub = next(o for o in folder.iterdir() if o.is_dir())
    old,new = sub/'.a.jpg.0123abcd.part',sub/'.b.jpg.0123abcd.part'
    for o in (old,new): o.write_bytes(b'half')
    os.utime(old, (time.time()-7200,)*2)
    cache_images(df, 'path', folder, 64)
    assert not old.exists() and new.exists()
