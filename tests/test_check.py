"Broken files of every kind, pictures that look alike, leaks, and the statistics of channels."
import io, os, socket, struct, threading, warnings, zlib
import numpy as np
import pandas as pd
import pytest
from fastai.vision.all import (CategoryBlock, ColReader, CropPad, DataBlock, DihedralItem, ImageBlock, IndexSplitter,
    Normalize, Path, PILImageBW, RandomResizedCrop, Resize, ResizeMethod, aug_transforms, imagenet_stats)
from PIL import Image, ImageFile
from fastai_mix.data import check
from fastai_mix.data.leaves import draw_leaf
from fastai_mix.data.check import (channel_stats, check_images, check_leaks, picture_groups, plot_faults,
    require_images,
    unusable_faults)

def noise(seed=0, size=(64,48), grid=8):
    "A picture with structure of its own"
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 255, (grid,grid,3), dtype=np.uint8)).resize(size, Image.BICUBIC)

def cut(path, share=.6):
    data = path.read_bytes()
    path.write_bytes(data[:int(len(data)*share)])

def chunk(kind, data): return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind+data))

def bomb(path, side):
    "A PNG of a few bytes that says it is `side` pixels wide and high"
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', side, side, 8, 2, 0, 0, 0))
                     + chunk(b'IDAT', zlib.compress(b'\0'*1000)) + chunk(b'IEND', b''))

def exif(turn):
    e = Image.Exif()
    e[0x0112] = turn
    return e

def save(name, im, **kwargs):
    def make(d): im.save(d/name, **kwargs); return d/name
    return make

def made(name, write):
    def make(d): write(d/name); return d/name
    return make

def both(name, im, share=.6, **kwargs):
    def make(d): p = save(name, im, **kwargs)(d); cut(p, share); return p
    return make

im = noise()
cases = {
    'jpeg':           (save('a.jpg', im), [], ''),
    'png as jpg':     (save('a.jpg', im, format='png'), [], ''),
    'grey':           (save('a.png', im.convert('L')), [], ''),
    'upright':        (save('a.jpg', im, exif=exif(1)), [], ''),
    'no such turn':   (save('a.jpg', im, exif=exif(0)), [], ''),
    'two shots, MPO': (save('a.mpo', im, save_all=True, append_images=[noise(1)]), [], ''),
    'gone':           (lambda d: d/'gone.jpg', ['missing'], 'No such file'),
    'folder':         (made('a.jpg', Path.mkdir), ['missing'], 'directory'),
    'zero bytes':     (made('a.jpg', lambda p: p.write_bytes(b'')), ['empty'], '0 bytes'),
    'text':           (made('a.jpg', lambda p: p.write_text('<html>not found</html>')), ['not an image'],
        '<html>not fo'),
    'zeros':          (made('a.jpg', lambda p: p.write_bytes(b'\0'*5000)), ['not an image'], ''),
    'cut jpeg':       (both('a.jpg', im), ['truncated'], 'truncated'),
    'cut png':        (both('a.png', im), ['truncated'], ''),
    'cut gif':        (both('a.gif', im), ['truncated'], ''),
    'cut webp':       (both('a.webp', im), None, ''), # Pillow sees it when opening or when decoding, by version
    'cut tiff':       (both('a.tif', im, .8), None, ''),
    'cut in header':  (both('a.png', im, .01), ['truncated'], ''),
    'bomb':           (made('a.png', lambda p: bomb(p, 20000)), ['huge'], '400000000 pixels'),
    'large':          (made('a.png', lambda p: bomb(p, 11000)), ['huge'], '11000×11000'),
    'CMYK':           (save('a.jpg', im.convert('CMYK')), ['mode'], 'CMYK'),
    '16 bits':        (save('a.png', Image.fromarray(np.asarray(im.convert('L')).astype(np.uint16)*200)),
        ['lost in RGB','mode'], 'mode I;16 with values'),
    '16 bits of 8':   (save('a.png', Image.fromarray(np.asarray(im.convert('L')).astype(np.uint16))), ['mode'],
        '16 bits'),
    'float':          (save('a.tif', Image.fromarray(np.asarray(im.convert('L'), np.float32))), ['mode'],
        '16 bits or more'),
    'palette':        (save('a.png', im.quantize(16)), ['mode'], 'palette'),
    'transparent':    (save('a.png', im.convert('RGBA')), ['mode'], 'transparency'),
    'bilevel':        (save('a.png', im.convert('1')), ['mode'], '1 bit'),
    'animated':       (save('a.gif', im, save_all=True, append_images=[noise(1), noise(2)]), ['mode'], '3 frames'),
    'pages':          (save('a.tif', im, save_all=True, append_images=[noise(1)]), ['mode'], '2 frames'),
    'tiny':           (save('a.jpg', im.resize((64,31))), ['tiny'], '64×31'),
    'turned CMYK':    (save('a.jpg', im.convert('CMYK'), exif=exif(8)), ['mode','rotated'], 'CMYK'),
    **{f'turn {k}':   (save('a.jpg', im, exif=exif(k)), ['rotated'], f'EXIF orientation {k}') for k in range(2, 9)},
}

def look(*args, **kwargs): return check_images(*args, progress=False, **kwargs)

@pytest.mark.parametrize('name', cases)
def test_one_file(name, tmp_path):
    make,expected,detail = cases[name]
    path = make(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        faults = look([path])
    if expected is None: assert len(faults)==1 and faults.fault[0] in ('truncated','not an image')
    else: assert faults.fault.tolist()==expected
    assert not len(faults) or detail in faults.detail[0]
    if set(faults.fault)&set(unusable_faults):
        with pytest.raises(ValueError, match='1 of 1 pictures cannot be used'): require_images([path])
    else: require_images([path])

def test_large_but_not_refused_by_pillow_may_be_used(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 2000) # Pillow warns above, and refuses above the double
    im.save(tmp_path/'a.png')
    assert look([tmp_path/'a.png']).fault.tolist()==['huge']
    with pytest.raises(ValueError, match=r'a.png huge \(64×48 pixels, the limit is 2,000\)'):
        require_images([tmp_path/'a.png'])
    assert look([tmp_path/'a.png'], max_pixels=4000).fault.tolist()==[]
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1000)
    with pytest.raises(ValueError, match='huge'): require_images([tmp_path/'a.png'])
    for lifted in (4000,None):
        monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', lifted)
        assert look([tmp_path/'a.png']).fault.tolist()==[]
        require_images([tmp_path/'a.png'])

def test_what_the_check_calls_huge_is_refused(tmp_path): # between Pillow's warning and its error
    bomb(tmp_path/'a.png', 13000)
    with pytest.raises(ValueError, match='a.png huge .13000×13000 pixels, the limit is 89,478,485'):
        require_images([tmp_path/'a.png'])

def test_a_file_of_too_many_bytes_is_not_read(tmp_path, monkeypatch):
    im.save(tmp_path/'a.png')
    with open(tmp_path/'a.png', 'r+b') as f: f.truncate(2**26) # a hole, which takes no space
    assert look([tmp_path/'a.png']).fault.tolist()==[] # what comes behind a picture is no fault
    with open(tmp_path/'a.png', 'r+b') as f: f.truncate(2**40)
    faults = look([tmp_path/'a.png'])
    assert faults.fault.tolist()==['huge'] and '1,099,511,627,776 bytes, the limit is 536,870,912' in faults.detail[0]
    with pytest.raises(ValueError, match='a.png huge'): require_images([tmp_path/'a.png'])
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 2000)
    # few pixels may have long notes: the limit in bytes does not fall
    assert look([tmp_path/'a.png']).fault.tolist()==['huge']

def in_time(f):
    "What `f` gives, or None if it hangs"
    out = []
    t = threading.Thread(target=lambda: out.append(f()), daemon=True)
    t.start()
    t.join(20)
    return out[0] if out else None

def pipe(p): os.mkfifo(p)
def listening(p):
    with socket.socket(socket.AF_UNIX) as s:
        was = os.getcwd()
        os.chdir(p.parent) # a socket's path is short
        try: s.bind(p.name)
        finally: os.chdir(was)
specials = {
    'pipe': (pipe, 'not an image', 'a named pipe, no regular file'),
    'link to a pipe': (lambda p: (pipe(p.parent/'pipe'), p.symlink_to(p.parent/'pipe')), 'not an image',
        'a named pipe'),
    'socket': (listening, 'not an image', 'a socket, no regular file'),
    'endless': (lambda p: p.symlink_to('/dev/zero'), 'not an image', 'a device, no regular file'),
    'null': (lambda p: p.symlink_to('/dev/null'), 'not an image', 'a device, no regular file'),
    'regular in name': (lambda p: p.symlink_to('/proc/self/maps'), 'empty', '0 bytes'),
    'loop': (lambda p: p.symlink_to(p), 'missing', 'symbolic links'),
    'link to nothing': (lambda p: p.symlink_to(p.parent/'gone'), 'missing', 'No such file'),
    'link to a folder': (lambda p: p.symlink_to(p.parent), 'missing', 'directory'),
}

@pytest.mark.skipif(not os.path.exists('/proc/self/maps'), reason='needs Linux')
@pytest.mark.parametrize('name', specials)
def test_only_regular_files_are_read(name, tmp_path):
    make,fault,detail = specials[name]
    make(tmp_path/'a.jpg')
    faults = in_time(lambda: look([tmp_path/'a.jpg']))
    assert faults is not None and faults.fault.tolist()==[fault] and detail in faults.detail[0]
    with pytest.raises(ValueError, match=f'1 of 1 pictures cannot be used: .*a.jpg {fault} '):
        require_images([tmp_path/'a.jpg'])

def test_a_name_with_a_zero_byte():
    assert look(['a\0.jpg']).fault.tolist()==['missing']

def test_pillow_told_to_load_truncated_files(tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFile, 'LOAD_TRUNCATED_IMAGES', True)
    assert look([cases['cut jpeg'][0](tmp_path)]).fault.tolist()==['truncated']
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True

grey = np.asarray(noise().convert('L'))
def shape(colour, alpha=grey):
    return Image.merge('RGBA', [*Image.new('RGB', (64,48), colour).split(), Image.fromarray(alpha)])
def palette(colours, alpha):
    "A picture of eight palette entries, each with its transparency"
    p = Image.fromarray(grey//32, 'P')
    p.putpalette(colours)
    return p,bytes(alpha)

lost = {
    '16 bits':              (Image.fromarray(grey.astype(np.uint16)*257), 'a.png',
        'mode I;16 with values 6682 to 60138'),
    '12 bits in 16':        (Image.fromarray(grey.astype(np.uint16)*16), 'a.tif', 'cut to 0 to 255'),
    'a little too large':   (Image.fromarray(grey.astype(np.uint16)*2), 'a.png', 'cut to 0 to 255'),
    '32 bits':              (Image.fromarray(grey.astype(np.int32)*1000), 'a.tif', 'mode I with values'),
    'negative':             (Image.fromarray(grey.astype(np.int32)-128), 'a.tif', 'mode I with values -1'),
    'floats to 1':          (Image.fromarray(grey.astype(np.float32)/255), 'a.tif', 'mode F with values 0.'),
    'floats around 0':      (Image.fromarray((grey.astype(np.float32)-128)/60), 'a.tif', 'cut to 0 to 255'),
    'floats to 5':          (Image.fromarray(grey.astype(np.float32)/50), 'a.tif', 'cut to whole numbers'),
    'not a number':         (Image.fromarray(np.where(grey<60, np.nan, grey).astype(np.float32)), 'a.tif',
        'values nan to nan'),
    'alpha on black':       (shape((0,0,0)), 'a.png', 'only its transparency draws'),
    'alpha on white':       (shape((255,255,255)), 'a.webp', 'only its transparency draws'),
    'alpha and grey':       (shape((90,90,90)).convert('LA'), 'a.png', 'mode LA'),
}
kept = {
    '16 bits of 0 to 255':  (Image.fromarray(grey.astype(np.uint16)), 'a.png'),
    '32 bits of 0 to 255':  (Image.fromarray(grey.astype(np.int32)), 'a.tif'),
    'floats to 255':        (Image.fromarray(grey.astype(np.float32)+.4), 'a.tif'),
    'a blank of 16 bits':   (Image.fromarray(np.full((48,64), 0, np.uint16)), 'a.png'),
    'RGBA':                 (im.convert('RGBA'), 'a.png'),
    'RGBA, cut out':        (Image.merge('RGBA', [*im.split(), Image.fromarray((grey>99)*np.uint8(255))]), 'a.png'),
    'blank RGBA':           (shape((9,9,9), np.full((48,64), 255, np.uint8)), 'a.png'),
    'LA':                   (im.convert('LA'), 'a.png'),
    'CMYK':                 (im.convert('CMYK'), 'a.jpg'),
    'palette':              (im.quantize(16), 'a.png'),
}

@pytest.mark.parametrize('name', lost)
def test_content_that_8_bits_of_rgb_lose(name, tmp_path):
    made,file,why = lost[name]
    made.save(tmp_path/file, **(dict(lossless=True) if file.endswith('webp') else {}))
    with pytest.raises(ValueError, match='1 of 1 pictures cannot be used') as e: require_images([tmp_path/file])
    assert f'{tmp_path/file} lost in RGB (mode {Image.open(tmp_path/file).mode} ' in str(e.value)
    assert why in str(e.value) and ': save it ' in str(e.value)
    faults = look([tmp_path/file])
    assert faults.fault.tolist()==['lost in RGB','mode'] and not len(look(faults[:1], drop=True))

@pytest.mark.parametrize('name', kept)
def test_content_that_8_bits_of_rgb_keep(name, tmp_path):
    made,file = kept[name]
    made.save(tmp_path/file)
    assert look([tmp_path/file], near=None).fault.tolist()==['mode']
    require_images([tmp_path/file])

@pytest.mark.parametrize('colours,expected', [([0]*24, ['lost in RGB','mode']), (list(range(0,240,10)), ['mode'])])
def test_a_palette_with_transparency(colours, expected, tmp_path):
    p,alpha = palette(colours, range(0, 256, 32))
    p.save(tmp_path/'a.png', transparency=alpha)
    assert look([tmp_path/'a.png']).fault.tolist()==expected

def flat(colour, noise=0, size=(320,240), seed=0):
    "A picture of one colour, with up to `noise` grey levels added or taken away"
    rng = np.random.default_rng(seed)
    change = rng.integers(-noise, noise+1, (size[1],size[0],1))+np.zeros(3)
    return Image.fromarray((np.array(colour)+change).astype(np.uint8))

def saved(folder, **ims):
    "Table of pictures saved as PNG, those whose name has q as JPEG"
    for k,o in ims.items(): o.convert('RGB').save(folder/(f'{k}.jpg' if 'q' in k else f'{k}.png'))
    return pd.DataFrame({'path': sorted(folder.iterdir())})

def near_pairs(t): return {(o.other.stem, o.path.stem) for o in look(t).itertuples() if o.fault=='near duplicate'}

def test_pictures_of_one_colour_are_near_to_nothing(tmp_path):
    t = saved(tmp_path, a=flat((200,30,30)), b=flat((20,90,200)), b2=flat((20,90,200)),
        c=flat((20,90,200), size=(100,80)), dq=flat((90,90,20)), eq=flat((10,20,30)),
        f=flat((99,99,99), 1), g=flat((120,130,140), 1), h=flat((50,60,70), 1, (64,64)),
        i=flat((80,90,100), 1, (64,64)), jq=flat((90,90,90), 2), k=noise(3, (320,240)), z=flat((0,0,0)))
    faults = look(t)
    assert [(o.fault, o.path.stem, o.other.stem) for o in faults.itertuples()]==[('duplicate','b2','b')]
    assert picture_groups(t).tolist()==[0,1,1,*range(2, 12)]
    assert leaks(t, [0,1,2,4,6,8])==[]

def test_pictures_of_one_colour_in_grey_and_16_bits(tmp_path):
    for i,k in enumerate((0,70,4000,65535)): Image.fromarray(np.full((48,64), k, np.uint16)).save(tmp_path/f'{i}.png')
    stripes = np.where(np.arange(64)//8%2, 90, 0)[None]+np.zeros((48,1), int) # red and green of one brightness
    channels = [Image.fromarray(o.astype(np.uint8)) for o in (stripes*587//299, 90-stripes, stripes*0)]
    Image.merge('RGB', channels).save(tmp_path/'z.png')
    assert 'near duplicate' not in set(look(sorted(tmp_path.iterdir())).fault)

def test_gradients_are_compared_by_their_frequencies(tmp_path):
    x = np.linspace(0, 255, 320)[None]+np.zeros((240,1))
    y = np.linspace(0, 255, 240)[:,None]+np.zeros((1,320))
    make = lambda a: Image.fromarray(a.astype(np.uint8))
    bars = (np.arange(320)//20%2*255)[None]+np.zeros((240,1))
    t = saved(tmp_path, across=make(x), acrossq=make(x), back=make(255-x), bars=make(bars), barsq=make(bars),
        down=make(y), downhalf=make(y).resize((160,120)), flat=flat((90,90,90)),
        photo=noise(0, (320,240)), up=make(255-y), wide=make(bars).resize((640,240)).crop((0,0,320,240)))
    assert near_pairs(t)=={('across','acrossq'), ('bars','barsq'), ('down','downhalf')}
    g = picture_groups(t)
    assert g.nunique()==8 and g[0]==g[1] and g[3]==g[4] and g[5]==g[6]

@pytest.fixture
def pictures(tmp_path):
    "Ten pictures; 3 is 2 again, 5 is 4 saved anew at half the size, 7 and 6 are equal with two labels"
    for i in range(10): noise(i).save(tmp_path/f'{i}.jpg')
    for new,old in ((3,2), (7,6)): (tmp_path/f'{new}.jpg').write_bytes((tmp_path/f'{old}.jpg').read_bytes())
    noise(4, (800,600)).save(tmp_path/'4.jpg')
    Image.open(tmp_path/'4.jpg').resize((120,90)).save(tmp_path/'5.jpg', quality=60)
    return pd.DataFrame({'id': list('abcdefghij'), 'path': [tmp_path/f'{i}.jpg' for i in range(10)],
        'label': ['x']*7+['y']+['x']*2})

def test_pictures_that_are_the_same(pictures):
    faults = look(pictures, label_col='label', id_col='id')
    others = [getattr(o, 'name', None) for o in faults.other]
    assert list(zip(faults.id, faults.fault, others))==[('d','duplicate','2.jpg'), ('h','duplicate','6.jpg'),
        ('g','conflicting labels','7.jpg'), ('h','conflicting labels','6.jpg'), ('f','near duplicate','4.jpg')]
    assert "'x' here, 'y' at" in faults.detail[2]
    assert look(pictures, near=None).fault.tolist()==['duplicate']*2
    again = look(pictures, label_col='label', near=32, id_col='id', n_workers=0)
    pd.testing.assert_frame_equal(again, faults)
    pd.testing.assert_frame_equal(look(pictures, lambda r: str(r.path), label_col='label', id_col='id'), faults)

def decode_in_full(im, size):
    im.load()
    return 1,1

def crop(im, share):
    dx,dy = (round(o*share) for o in im.size)
    return im.crop((dx, dy, im.width-dx, im.height-dy))

@pytest.fixture(scope='module')
def photographs(tmp_path_factory):
    "Leaves enlarged, and copies of them, some as far apart as near duplicates may be"
    folder,rng = tmp_path_factory.mktemp('photographs'),np.random.default_rng(0)
    for i in range(6):
        a = np.asarray(draw_leaf([3,i], size=200)[0].resize((1200,1100), Image.BICUBIC)).astype(int)
        a = Image.fromarray((a+rng.normal(0, 4, (1100,1200,1))).clip(0, 255).astype(np.uint8))
        copies = a.resize((600,550)),*(crop(a, o) for o in (.005,.01,.015,.02))
        for k,o in enumerate((a,*copies)): o.save(folder/f'{i}{k}.jpg', quality=90)
    return pd.DataFrame({'path': sorted(folder.iterdir()), 'label': list('ab')*18})

@pytest.fixture
def decoded_again(monkeypatch):
    "Files that are decoded in full after their hashes were compared"
    files = []
    check._known.clear()
    monkeypatch.setattr(check, '_whole_hash', lambda p, f=check._whole_hash: files.append(p) or f(p))
    return files

def test_what_is_near_is_what_the_full_decode_finds(photographs, decoded_again, monkeypatch):
    faults,groups = look(photographs),picture_groups(photographs).tolist()
    assert 0<len(set(decoded_again))<36
    check._known.clear()
    monkeypatch.setattr(check, 'scaled_decode', decode_in_full)
    names = ['path','fault']
    pd.testing.assert_frame_equal(faults[names], look(photographs)[names])
    assert groups==picture_groups(photographs).tolist() and len(faults)>6

def test_a_file_that_is_decoded_again_is_decoded_once(photographs, decoded_again):
    groups = picture_groups(photographs).tolist()
    n = len(decoded_again)
    assert n==len(set(decoded_again))>0
    assert picture_groups(photographs).tolist()==groups and len(decoded_again)==n

def test_a_file_that_vanishes_before_it_is_decoded_again(photographs, monkeypatch):
    def open_bytes(f, open=Image.open): return open(f if isinstance(f, io.BytesIO) else 'gone')
    monkeypatch.setattr(check.Image, 'open', open_bytes)
    assert set(look(photographs).fault)<={'near duplicate'}

@pytest.mark.parametrize('kind', [dict(), dict(progressive=True), dict(optimize=True, subsampling=0)])
def test_a_cut_is_found_at_a_smaller_scale(kind, tmp_path, monkeypatch):
    data,file = io.BytesIO(),tmp_path/'a.jpg'
    noise(1, (700,600), 60).save(data, 'jpeg', quality=90, **kind)
    data = data.getvalue()
    cuts = [*np.linspace(700, len(data)-20, 30).astype(int), *range(len(data)-20, len(data))]
    def found():
        for k in cuts:
            file.write_bytes(data[:k])
            faults = look([file]).fault.tolist()
            assert look([file], near=None).fault.tolist()==faults # at 1/8
            yield faults
    scaled = list(found())
    assert all(o==['truncated'] for o in scaled[:-2]) # the last two bytes say that the picture ends
    monkeypatch.setattr(check, 'scaled_decode', decode_in_full)
    assert scaled==list(found())

def test_near_duplicate_with_another_label_says_so(pictures):
    pictures.loc[5,'label'] = 'y'
    near = look(pictures, label_col='label').query("fault=='near duplicate'")
    assert "which is 'x' and this 'y'" in near.detail.item()

def test_conflicts_of_many_equal_files(tmp_path):
    noise().save(tmp_path/'a.png')
    t = pd.DataFrame({'path': tmp_path/'a.png', 'label': [None,'x','x','y','z','x','y']})
    for labels in (t.label, pd.Series(['x']*7), pd.Series([None]*7)):
        faults = look(t.assign(label=labels), label_col='label').query("fault=='conflicting labels'")
        own = labels.dropna().to_dict()
        want = {i: next((k for k in own.values() if k!=own[i]), None) for i in own} # the first row of another label
        assert dict(zip(faults.id, faults.detail.str.extract(", '(.)' at")[0]))=={k: v for k,v in want.items() if v}

def test_rows_with_unsafe_names(pictures):
    t = pictures.assign(id=['=1','b\x1b[2J',*'cdefghij'], label=['@x',*'xy'*4,'-1'],
        tags=['a @x','a','@x a','','a','a','a','a','a','a'], lists=[['a','=b']]+[['a']]*9)
    t['=c'] = [0,1]*5
    def found(t, **kwargs):
        return look(t, near=None, **kwargs).query("fault=='unsafe name'")[['id','detail']].to_numpy().tolist()
    ids = [['=1', "id '=1': a formula in a spreadsheet"], ['b\x1b[2J', "id 'b\\x1b[2J': control characters"]]
    before = t.copy(deep=True)
    assert found(t, id_col='id')==ids
    assert found(t, id_col='id', label_col='label')==[ids[0], ['=1', "class '@x': a formula in a spreadsheet"], ids[1]]
    assert found(t, label_col='tags', label_delim=' ')==[[i, "class '@x': a formula in a spreadsheet"] for i in (0,2)]
    assert found(t, label_col='lists')==[[0, "class '=b': a formula in a spreadsheet"]]
    assert found(t, label_col=['=c'])==[[i, "class '=c': a formula in a spreadsheet"] for i in range(1, 10, 2)]
    assert found(t.set_index('id'))==ids
    pd.testing.assert_frame_equal(t, before)
    assert look(t, id_col='id', near=None, drop='unsafe name').index.tolist()==list(range(2, 10))

def test_the_command_says_one_line_of_unsafe_names(capsys):
    from fastai_mix.cli import _show_unsafe
    df = pd.DataFrame({'id': ['a','=b','=b','-3'], 'label': ['x','x','y\x1b[2J','x']})
    _show_unsafe(df[:1], None)
    assert capsys.readouterr().out==''
    _show_unsafe(df, df[:2].assign(id=['a','@t']))
    assert capsys.readouterr().out==("3 names of pictures or classes unsafe in the tables this writes, "
        "the first '=b': a formula in a spreadsheet\n")

def test_drop(pictures):
    def kept(drop, **kwargs): return ''.join(look(pictures, label_col='label', drop=drop, **kwargs).id)
    assert kept(True)=='abcefij'
    assert kept('duplicate')=='abcefgij'
    assert kept(['near duplicate','conflicting labels'])=='abcdeij'
    assert ''.join(look(pictures, drop=True).id)=='abcefgij' # no labels, no conflicts
    pd.testing.assert_frame_equal(look(pictures[:3], drop=True), pictures[:3])
    twice = pictures.set_index(pd.Index([0]*10))
    assert ''.join(look(twice, drop='duplicate').id)=='abcefgij'
    with pytest.raises(ValueError, match="drop names 'blur'"): look(pictures, drop=['blur'])
    with pytest.raises(ValueError, match="give label_col"): look(pictures, drop=['conflicting labels'])

def test_one_file_in_two_rows(pictures):
    faults = look(pd.concat([pictures[:2]]*2, ignore_index=True))
    assert faults.fault.tolist()==['duplicate']*2 and faults.id.tolist()==[2,3]

def test_order_of_several_labels_is_no_conflict(pictures):
    t = pictures.iloc[[6,7]].assign(label=['x y','y x'])
    assert look(t, label_col='label', label_delim=' ').fault.tolist()==['duplicate']
    assert look(t, label_col='label').fault.tolist()==['duplicate']+['conflicting labels']*2
    t['label'] = pd.Series(['a',None], t.index[:2]).reindex(t.index) # to have no label contradicts nothing
    assert look(t, label_col='label').fault.tolist()==['duplicate']

def test_pictures_of_16_bits_are_compared_by_all_of_them(tmp_path):
    for i in range(2):
        Image.fromarray(np.asarray(noise(i).convert('L')).astype(np.uint16)*100+2000).save(tmp_path/f'{i}.png')
    assert look(sorted(tmp_path.iterdir())).fault.tolist()==['lost in RGB']*2+['mode']*2

def test_faults_have_a_picture(pictures, tmp_path):
    import matplotlib.pyplot as plt
    faults = look([*pictures.path, tmp_path/'gone.jpg'])
    plot_faults(faults)
    titles = [ax.get_title().split('\n')[0] for ax in plt.gcf().axes if ax.get_title()]
    assert titles==['missing','duplicate (2)','duplicate (2)','near duplicate']
    plt.close()
    plot_faults(faults[:0])

def test_wrong_arguments(pictures):
    with pytest.raises(ValueError, match="no column 'file'"): look(pictures, 'file')
    with pytest.raises(ValueError, match="no column 'name'"): look(pictures, id_col='name')
    with pytest.raises(ValueError, match="near=500"): look(pictures, near=500)
    assert look(pictures.assign(path=None)).fault.tolist()==['missing']*10
    assert len(look([]))==0

def test_groups_of_pictures(pictures):
    g = picture_groups(pictures)
    assert g.tolist()==[0,1,2,2,3,3,4,4,5,6]
    assert picture_groups(pictures, near=None).tolist()==[0,1,2,2,3,4,5,5,6,7]
    tree = pictures.assign(tree=[0,1,1,2,2,3,4,5,6,6])
    # 1-2 by tree, 2-3 by bytes, 3-4 by tree, 4-5 by look
    assert picture_groups(tree, group_col='tree').tolist()==[0,1,1,1,1,1,2,2,3,3]
    with pytest.raises(ValueError, match='1 of 11 pictures are missing'):
        picture_groups(pd.concat([pictures, pictures[:1].assign(path='/none.jpg')]))

def leaks(t, valid, **kwargs):
    held = t.index.isin(valid)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        check_leaks(t[~held], t[held], get_x='path', **kwargs)
    return [str(w.message) for w in said]

def test_leaks(pictures):
    assert leaks(pictures, [2,3,4,5,6,7], id_col='id')==[]
    with pytest.raises(ValueError, match=r'1 pictures are on both sides, the first \S*2.jpg and \S*3.jpg'):
        leaks(pictures, [3])
    with pytest.raises(ValueError, match='pictures are on both sides'): leaks(pictures, [3], near=None)
    said = leaks(pictures, [4])
    assert len(said)==1 and '1 of 1 pictures to validate on' in said[0] and '4.jpg and' in said[0]
    assert leaks(pictures, [4], near=None)==[]
    with pytest.raises(ValueError, match="2 identities of 'id' are on both sides, the first 'a'"):
        leaks(pictures.assign(id=list('abcdefghab')), [0,1], id_col='id')
    with pytest.raises(ValueError, match="1 groups of 'tree' are on both sides, the first 3"):
        leaks(pictures.assign(tree=[1,2,3,3,4,4,5,5,6,7]), [3], group_col='tree')
    with pytest.raises(ValueError, match="2 identities of the index are on both sides.*reset_index"):
        check_leaks(pictures[:5], pd.concat([pictures[3:]]))
    with pytest.raises(ValueError, match="1 rows to validate on are there twice by 'id', the first 'j'"):
        leaks(pictures.assign(id=list('abcdefghjj')), [8,9], id_col='id')
    with pytest.raises(ValueError, match="no column 'patient'"): leaks(pictures, [3], group_col='patient')

def test_picture_changed_on_disk_is_read_again(pictures):
    rest = pictures.drop(index=[3,7])
    assert leaks(rest, [4,5])==[]
    noise(0).save(rest.path[9])
    with pytest.raises(ValueError, match='both sides'): leaks(rest, [4,5,9])

def test_unreadable_pictures_do_not_stop_the_leak_check(pictures):
    cut(pictures.path[0])
    pictures.path[1].write_bytes(b'')
    assert leaks(pictures, [1,2,3,4,5,6,7])==[]

# ---- channel_stats

@pytest.fixture
def coloured(tmp_path):
    for i in range(13): noise(i, (50,40)).save(tmp_path/f'{i}.png')
    return pd.DataFrame({'path': [tmp_path/f'{i}.png' for i in range(13)], 'label': list('ab')*6+['a']})

def truth(df, mode='RGB'):
    x = np.concatenate([np.asarray(Image.open(p).convert(mode)).reshape(-1, len(mode)) for p in df.path])/255
    return x.mean(0),x.std(0)

@pytest.mark.parametrize('tfms', ['none','normalize','augmented'])
def test_channel_stats(coloured, tfms):
    batch = dict(none=None, normalize=[Normalize.from_stats(*imagenet_stats, cuda=False)],
        augmented=[*aug_transforms(do_flip=True, max_lighting=.9, p_lighting=1.),
                 Normalize.from_stats(*imagenet_stats, cuda=False)])[tfms]
    block = DataBlock((ImageBlock, CategoryBlock), splitter=IndexSplitter([0,5]), get_x=ColReader('path'),
        get_y=ColReader('label'),
                      item_tfms=[DihedralItem(), Resize((40,50))] if tfms=='augmented' else None, batch_tfms=batch)
    dls = block.dataloaders(coloured, bs=4, num_workers=0, device='cpu') # 11 pictures: the last batch is short
    mean,std = channel_stats(dls, progress=False)
    want = truth(coloured.drop(index=[0,5]))
    assert np.abs(np.subtract(mean, want[0])).max()<1e-6 and np.abs(np.subtract(std, want[1])).max()<1e-6
    assert channel_stats(dls, progress=False)==(mean,std)
    assert sum(isinstance(o, Normalize) for o in dls.train.after_batch.fs)==(tfms!='none')
    assert sum(isinstance(o, Normalize) for o in dls.valid.after_batch.fs)==(tfms!='none')

def test_channel_stats_of_one_channel(coloured):
    block = DataBlock((ImageBlock(PILImageBW), CategoryBlock), splitter=IndexSplitter([0]), get_x=ColReader('path'),
        get_y=ColReader('label'))
    mean,std = channel_stats(block.dataloaders(coloured, bs=4, num_workers=0, device='cpu'), progress=False)
    want = truth(coloured[1:], 'L')
    assert len(mean)==1 and abs(mean[0]-want[0][0])<1e-6 and abs(std[0]-want[1][0])<1e-6

@pytest.fixture
def sizes_read(monkeypatch):
    "Sizes that `channel_stats` asked for"
    sizes,decode = [],check.scaled_decode
    monkeypatch.setattr(check, 'scaled_decode', lambda im, size: sizes.append(size) or decode(im, size))
    return sizes

def stats_of(df, item_tfms, block=ImageBlock):
    dls = DataBlock((block, CategoryBlock), splitter=IndexSplitter([0]), get_x=ColReader('path'),
        get_y=ColReader('label'), item_tfms=item_tfms).dataloaders(df, bs=4, num_workers=0, device='cpu')
    transforms = [list(o.tls[0].tfms.fs) for o in (dls.train_ds,dls.valid_ds)]
    stats = np.array(channel_stats(dls, progress=False))
    assert transforms==[list(o.tls[0].tfms.fs) for o in (dls.train_ds,dls.valid_ds)]
    return stats

resizes = {'crop': Resize(48), 'oblong': Resize((40,64)), 'squish': Resize(48, ResizeMethod.Squish),
    'pad': Resize(48, ResizeMethod.Pad, pad_mode='zeros'), 'random': RandomResizedCrop(48)}

@pytest.mark.parametrize('name', resizes)
@pytest.mark.parametrize('block', [ImageBlock, ImageBlock(PILImageBW)])
def test_channel_stats_of_large_jpegs(name, block, photographs, sizes_read, monkeypatch):
    df = photographs[:9]
    stats = stats_of(df, resizes[name], block)
    assert sizes_read==[(64,64) if name=='oblong' else (48,48)]*8
    monkeypatch.setattr(check, 'scaled_decode', decode_in_full)
    assert abs(stats-stats_of(df, resizes[name], block)).max()<.002

@pytest.mark.parametrize('item_tfms', [CropPad(48), [DihedralItem(), Resize(48)]])
def test_channel_stats_reads_in_full_what_is_not_resized_first(item_tfms, photographs, sizes_read):
    stats_of(photographs[:9], item_tfms)
    assert not sizes_read

def test_channel_stats_needs_fastai_datasets(toy):
    with pytest.raises(ValueError, match='dls.train_ds is a Batches'): channel_stats(toy().dls)
