"Pictures are made upright, small and anew; what is none is refused; maps are those of the network of the fold."
import os
from io import BytesIO
import numpy as np
import pytest
from PIL import Image
from fastai.vision.all import Path, torch
from helpers import noise, one
from fastai_mix.crossval import CrossVal
from fastai_mix.vision.learner import timm_learner
from fastai_mix.review_pictures import SemanticMaps, Thumbnails, find_maps, small_jpeg

def opened(data): return Image.open(BytesIO(data))

@pytest.mark.parametrize('mode', ['RGB','L','P','RGBA','LA','1','CMYK','I;16'])
def test_any_mode(tmp_path, mode):
    file = tmp_path/('x.tif' if mode in ('CMYK','I;16') else 'x.png')
    im = noise(0, (200,100))
    (Image.fromarray(np.asarray(im.convert('L')).astype(np.uint16)*100) if mode=='I;16' else im.convert(mode)).save(file)
    small = opened(small_jpeg(file, 50))
    assert small.size==(50,25) and small.mode=='RGB' and small.format=='JPEG'
    want = np.asarray(im.convert('L').resize((50,25), Image.Resampling.BILINEAR), float)
    assert mode in ('1','P') or np.corrcoef(want.ravel(), np.asarray(small.convert('L'), float).ravel())[0,1]>.9

def test_turned_as_exif_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(0, (300,100)).save(tmp_path/'x.jpg', exif=exif)
    small = opened(small_jpeg(tmp_path/'x.jpg', 60))
    assert small.size==(20,60) and 0x0112 not in small.getexif()

def test_never_enlarged(tmp_path):
    noise(0, (30,20)).save(tmp_path/'x.png')
    assert opened(small_jpeg(tmp_path/'x.png', 480)).size==(30,20)

@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='needs named pipes')
def test_what_is_no_picture(tmp_path):
    os.mkfifo(tmp_path/'pipe')
    (tmp_path/'text').write_text('root:x:0:0')
    for name in ('pipe','text','none','.'):
        with pytest.raises(Exception): small_jpeg(tmp_path/name, 50)

def test_made_once_and_again_after_a_change(tmp_path, monkeypatch):
    noise(0).save(tmp_path/'x.png')
    small = Thumbnails(tmp_path/'small', 32)
    first = small(tmp_path/'x.png')
    with monkeypatch.context() as m:
        m.setattr('fastai_mix.review_pictures.small_jpeg', lambda *args: 1/0)
        assert small(tmp_path/'x.png')==first
    noise(1).save(tmp_path/'x.png')
    os.utime(tmp_path/'x.png', ns=(1,1))
    assert small(tmp_path/'x.png')!=first
    with pytest.raises(OSError): small(tmp_path/'none.png')

def small_learner(dls): return timm_learner(dls, 'test_resnet', pretrained=False, normalize=False)

def test_maps_of_folds(df, get_dls, leaves, tmp_path):
    assert find_maps(tmp_path) is None
    cv = CrossVal(df, get_dls, small_learner, tmp_path/'cv', id_col='image_id').fit(one)
    maps = SemanticMaps(cv)
    by_fold = [opened(maps(df.iloc[[0]], str(k), cv.vocab[0])) for k in (0,1)]
    assert by_fold[0].size==(512,512) and np.abs(np.subtract(*map(np.float32, by_fold))).mean()>.5
    with pytest.raises(ValueError, match='knows no class'): maps(df.iloc[[0]], '0', 'rot')
    cv.ensemble().export(tmp_path/'ensemble')
    of_run = find_maps(tmp_path)
    file = leaves/'images'/f'{df.image_id.iloc[0]}.jpg'
    assert np.abs(np.float32(opened(of_run(file, '1', cv.vocab[0])))-np.float32(by_fold[1])).mean()<1
