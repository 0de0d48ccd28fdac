"The report: what it shows, that it asks for nothing, and that names do no harm."
import json
import re
import shlex
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fastai.vision.all import (AttrDict, CategoryBlock, DataBlock, ImageBlock, RandomSplitter, Resize, get_image_files,
    nn, vision_learner)
from fastai_mix import cli, report
from fastai_mix.cli import main
from fastai_mix.crossval import CrossVal
from fastai_mix.data.leaves import leaf_dls
from fastai_mix.figures import reliability, thumbnail
from fastai_mix.launch import command_parser
from fastai_mix.options import check_options
from fastai_mix.sections import Results, cells_of, results_html, rows_to_show, share_interval
from helpers import axe_source, media, noise, tiny, violations

bs4 = pytest.importorskip('bs4')

def soup(file): return bs4.BeautifulSoup(file.read_text(encoding='utf-8'), 'html.parser')

def page_of(r): return bs4.BeautifulSoup(results_html(r), 'html.parser')

def headings(page): return [o.get_text() for o in page.select('main>section>h2')]

def below(page, heading, tag='pre'): return page.find('h3', string=heading).find_next_sibling(tag).get_text()

def run_pasted(code):
    "The value of the last line of `code`"
    *lines,last = code.splitlines()
    names = {}
    exec('\n'.join(lines), names)
    return eval(last, names)

def results(n=60, vocab=('a','b','c'), source=lambda i: noise(i%9), seed=0, **kwargs):
    "Predictions of which two in three are right"
    rng = np.random.default_rng(seed)
    c = len(vocab)
    y = rng.integers(0, c, n)
    probs = rng.dirichlet(np.ones(c), n)
    for i in np.flatnonzero(rng.random(n)<.6): probs[i] = .02; probs[i,y[i]] = 1-.02*(c-1)
    ids,probs = [f'picture {i}' for i in range(n)],probs/probs.sum(1, keepdims=True)
    return Results(ids, y, probs, list(vocab), source, **kwargs)

hostile = ['<script>alert(1)</script>','"><img src=x onerror=alert(2)>',"'$x$' & co",'a\x1b[2Jb\u202ec','</style><b>']

@pytest.fixture(scope='module')
def hostile_file(tmp_path_factory):
    "A report whose classes and pictures have names that do harm where they are not escaped"
    history = pd.DataFrame(dict(fit=0, epoch=[0,1]*3, train_loss=1., valid_loss=2., accuracy=.5, fold=[0,0,1,1,2,2]))
    labels = pd.DataFrame(dict(row=['1','2'], given=hostile[:2], current=hostile[1:3], fold=[0,1]))
    faults = pd.DataFrame(dict(id=hostile, fault='duplicate', detail=[f'same bytes as {o}' for o in hostile]))
    r = results(vocab=hostile, history=history, labels=labels, faults=faults, fold=np.arange(60)%3,
        source=lambda i: noise(i) if i%7 else 'no/such/file.jpg',
        repeat={'Repeat': hostile[1], 'versions': {'a': hostile[0]}})
    r.ids = [*r.ids[len(hostile):], *Results(hostile, [0]*5, np.eye(5), hostile).ids]
    r.maps = lambda rows: {i: (np.full((3,8,8), .5), np.eye(8)) for i in rows[1:]}
    file = tmp_path_factory.mktemp('report')/'report.html'
    file.write_text(results_html(r, f'Run {hostile[0]}', f'Of {hostile[1]}'), encoding='utf-8')
    return file

def test_hostile_names_are_text(hostile_file):
    page,text = soup(hostile_file),hostile_file.read_text(encoding='utf-8')
    assert not page.select('script, [onerror], b b, iframe, object, embed, form')
    assert '\x1b' not in text and '\u202e' not in text
    assert [o.get('src')[:11] for o in page.select('img') if not o['src'].startswith('data:image/webp')]==[]
    assert page.select('#classes td')[0].get_text()==hostile[0] and len(page.select('style'))==1
    assert {'Scores','Training','Folds','Classes','Confusions','Worst errors','Reliability','Suspect labels',
        'Corrected labels','Pictures','Predict and repeat'}=={*headings(page)}
    ids = [o['id'] for o in page.select('[id]')]
    assert len(ids)==len(set(ids)) and not [o['href'] for o in page.select('a') if o['href'][1:] not in ids]

@pytest.mark.parametrize('how', ['file','many classes'])
def test_in_a_browser(hostile_file, browser, tmp_path, how):
    file = hostile_file
    if how=='many classes':
        file = tmp_path/'many.html'
        file.write_text(results_html(results(400, [f'class {i}' for i in range(14)])), encoding='utf-8')
    browser.execute_cdp_cmd('Network.enable', {})
    for theme,bright in (('light',True),('dark',False)):
        media(browser, theme, 1100)
        browser.get_log('performance'), browser.get_log('browser')
        browser.get(file.as_uri())
        asked = [o['params']['request']['url'] for o in (json.loads(o['message'])['message'] for o in
            browser.get_log('performance')) if o['method']=='Network.requestWillBeSent']
        assert not [o for o in asked if not o.startswith((file.as_uri(),'data:'))]
        assert not [o['message'] for o in browser.get_log('browser')]
        paper = browser.execute_script('return getComputedStyle(document.body).backgroundColor')
        assert (sum(map(int, re.findall(r'\d+', paper)[:3]))>384)==bright
        browser.execute_script(axe_source())
        assert not violations(browser, {})
        media(browser, theme, 375)
        assert browser.execute_script('return document.documentElement.scrollWidth')<=375
        assert browser.execute_script("""return [...document.querySelectorAll('div:not(.scroll), table, pre')]
            .filter(o => o.scrollWidth>o.clientWidth+1).length""")==0

def test_words_of_tables_stay_whole_on_a_telephone(browser, tmp_path):
    compared = pd.DataFrame({'setting': ['plain','snapmix-early','mixup+ema']})
    for m in ('accuracy','macro_f1','log_loss'):
        for o in ('','_diff','_low','_high'): compared[m+o] = [.5,.6,.6] if not o else [0,.1,.1]
    file = tmp_path/'r.html'
    vocab = ['healthy','multiple_diseases','rust','scab','powdery_mildew','black_rot']
    faults = pd.DataFrame(dict(id='picture', fault='duplicate', detail=['same bytes as another picture']))
    r = results(vocab=vocab, comparison=compared, fold=np.arange(60)%3, faults=faults)
    file.write_text(results_html(r), encoding='utf-8')
    for width in (320,375):
        media(browser, 'light', width)
        browser.get(file.as_uri())
        assert browser.execute_script('return document.documentElement.scrollWidth')<=width
        assert not browser.execute_script("""
            const broken = [], words = document.createTreeWalker(document.querySelector('main'), NodeFilter.SHOW_TEXT)
            while (words.nextNode()) {
                const node = words.currentNode
                if (node.parentElement.closest('pre, svg')) continue
                for (const m of node.data.matchAll(/[^\\s-]+/g)) {
                    const range = document.createRange()
                    range.setStart(node, m.index)
                    range.setEnd(node, m.index+m[0].length)
                    if (new Set([...range.getClientRects()].map(o => Math.round(o.top))).size>1) broken.push(m[0])
                }
            }
            return broken""")
        assert browser.execute_script("""return [...document.querySelectorAll('.scroll')].filter(o =>
            o.getBoundingClientRect().right>innerWidth || o.scrollWidth>o.clientWidth && o.tabIndex<0).length""")==0
        overlaps = browser.execute_script("""return [...document.querySelectorAll('#scores td')].filter(o =>
            [...o.querySelectorAll('span')].some(s =>
                s.getBoundingClientRect().right>o.getBoundingClientRect().right+1)).length""")
        assert not overlaps

def test_a_cell_shows_its_pictures_by_click_and_by_key(hostile_file, browser):
    from selenium.webdriver.common.keys import Keys
    media(browser, 'light', 1100)
    browser.get(hostile_file.as_uri())
    def open_ids():
        panels = browser.find_elements('css selector', '.behind')
        return [o.get_attribute('id') for o in panels if o.is_displayed()]
    first,second = browser.find_elements('css selector', '.confusion a')[:2]
    assert open_ids()==[]
    first.click()
    assert open_ids()==[first.get_attribute('href').split('#')[1]]
    n_pictures = len(browser.find_elements('css selector', '.behind:target figure'))
    assert 0<n_pictures<=int(first.text)
    second.send_keys(Keys.ENTER)
    assert open_ids()==[second.get_attribute('href').split('#')[1]]
    browser.find_element('css selector', '.behind:target p a').send_keys(Keys.ENTER)
    assert open_ids()==[]

def test_ten_thousand_pictures_of_noise_are_less_than_5_mb():
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 255, (128,128,3), dtype=np.uint8) for _ in range(9)]
    r = results(10_000, [f'class {i}' for i in range(20)], lambda i: pictures[i%9])
    r.maps = lambda rows: {i: (rng.random((3,128,128)), rng.random((128,128))) for i in rows}
    text = results_html(r)
    assert 1e6<len(text.encode())<5e6

def test_cells_share_the_room():
    rng = np.random.default_rng(0)
    for c in (2,5,30,80):
        y,preds = rng.integers(0, c, (2,5000))
        cells = cells_of(y, preds, rng.random(5000))
        shown = rows_to_show(cells, 600)
        assert 0<sum(map(len, shown.values()))<=600 and max(map(len, shown.values()))<=12
        assert all(rows==cells[k][:len(rows)] for k,rows in shown.items())
        assert all(len(rows)<=4 for (g,p),rows in shown.items() if g==p)

def test_numbers():
    assert share_interval(0, 10)[0]==pytest.approx(0, abs=1e-9) and share_interval(10, 10)[1]==pytest.approx(1)
    mean,share,n,error = reliability(np.array([[.6,.4]]*5), np.array([0,0,0,1,1]))
    assert (mean[0],share[0],n[0])==pytest.approx((.6,.6,5)) and error==pytest.approx(0)
    assert reliability(np.array([[1.,0.]]*4), np.zeros(4, int))[3]==0

def test_what_is_missing_is_left_out():
    r = results(source=None)
    page = bs4.BeautifulSoup(results_html(r), 'html.parser')
    assert headings(page)==['Scores','Classes','Confusions','Reliability','Suspect labels']
    assert not page.select('img') and not page.select('.confusion a')
    right = Results(['x','y'], [0,1], np.array([[.9,.1],[.1,.9]]), ['a','b'], lambda i: noise(i))
    assert 'Worst errors' not in headings(bs4.BeautifulSoup(results_html(right), 'html.parser'))

def test_scores_are_set_against_the_commonest_class():
    r = Results(range(4), [0,0,0,1], np.array([[.9,.1],[.9,.1],[.1,.9],[.1,.9]]), ['rust','scab'])
    text = bs4.BeautifulSoup(results_html(r), 'html.parser').select_one('#scores').get_text()
    assert '3 of 4 predictions are right. Always naming the commonest class, rust, would be right for 75.0%' in text

def test_comparison_table():
    table = pd.DataFrame({'setting': ['plain','<b>'],
        'accuracy': [.5,.6], 'accuracy_diff': [0,.1], 'accuracy_low': [0,.02], 'accuracy_high': [0,.18],
        'log_loss': [1.,.9], 'log_loss_diff': [0,-.1], 'log_loss_low': [0,-.3], 'log_loss_high': [0,.1], 'n': 60})
    page = bs4.BeautifulSoup(results_html(results(comparison=table)), 'html.parser')
    assert [o.get_text() for o in page.select('#scores td')]==['plain','0.5000','1.0000',
        '<b>','0.6000+0.1000 [+0.0200, +0.1800]','0.9000-0.1000 [-0.3000, +0.1000]']
    assert [o.get_text() for o in page.select('#scores td b')]==['+0.1000 [+0.0200, +0.1800]'] # beyond noise
    text = page.select_one('#scores').get_text()
    assert 'difference to plain' in text and 'of the pictures held out' in text

def test_scores_have_one_name_and_say_what_they_are_of():
    table = pd.DataFrame({'setting': ['mixup','plain'], 'macro_f1': [.4,.5], 'macro_f1_diff': [-.1,0],
        'macro_f1_low': [-.2,0], 'macro_f1_high': [0,0], 'log_loss': 1.})
    history = pd.DataFrame(dict(fold=[0,1,2], epoch=0, train_loss=1., valid_loss=1., macro_f1=.5))
    page = page_of(results(comparison=table, fold=np.arange(60)%3, history=history))
    text = page.get_text()
    assert 'macro_f1' not in text and 'log_loss' not in text and 'means over the 3 folds' in text
    assert 'difference to plain' in text and 'mean over classes, all folds pooled' in text
    assert [o.get_text() for o in page.select('#scores th')]==['setting','macro-F1','log-loss']
    assert 'folds' not in page_of(results()).select_one('#scores').get_text()
    assert page.select_one('#training').get_text().startswith('Training1epoch') # no half epochs beside the one

def test_suspects_of_a_network_that_knows_nothing():
    y = np.arange(60)%3
    probs = np.tile([.4,.3,.3], (60,1)) + np.random.default_rng(0).random((60,3))*.02
    r = Results(range(60), y, probs/probs.sum(1, keepdims=True), list('abc'), lambda i: noise(i%9))
    words = 'does not clearly beat always naming the commonest class, which is right for 33.3%'
    assert words in page_of(r).select_one('#suspects').get_text()
    assert 'clearly beat' not in page_of(results()).get_text()

def test_what_was_looked_for_in_pictures(tmp_path):
    for i in range(4): noise(i, (90,90)).save(tmp_path/f'{i}.jpg', quality=95)
    noise(0, (90,90)).save(tmp_path/'near.jpg', quality=90)
    shutil.copyfile(tmp_path/'1.jpg', tmp_path/'twice.jpg')
    (tmp_path/'cut.jpg').write_bytes((tmp_path/'2.jpg').read_bytes()[:-500])
    (tmp_path/'text.jpg').write_text('no picture')
    paths = sorted(tmp_path.iterdir())
    args = [o.stem for o in paths],paths,['a']*len(paths)
    faults,words = report.find_faults(*args)
    assert {*faults.fault}=={'near duplicate','duplicate','truncated','not an image'}
    assert '8 pictures were decoded' in words
    faults,words = report.find_faults(*args, n_bytes=8*2**15-1)
    assert {*zip(faults.id, faults.fault)}=={('twice','duplicate'),('text','not an image')}
    assert 'cut off' in words and 'nearly the same were not looked for' in words
    none = faults[:0]
    text = page_of(results(faults=none, looked_for=words)).select_one('#pictures').get_text()
    assert words in text and 'No fault was found' in text and 'can be read' not in text

def test_thumbnails_of_what_can_be_read(tmp_path):
    noise(0, (300,200)).save(tmp_path/'a.jpg')
    (tmp_path/'b.jpg').write_bytes((tmp_path/'a.jpg').read_bytes()[:300])
    assert len(thumbnail(tmp_path/'a.jpg', 64))>100 and thumbnail(tmp_path/'b.jpg', 64) is None
    for o in (np.zeros((3,9,7)), np.zeros((9,7), np.uint8), np.zeros((1,9,7), np.float32), noise(0).convert('P')):
        assert thumbnail(o, 32).startswith('data:image/webp;base64,')

def test_a_learner_without_files_or_history(toy, tmp_path):
    learn = toy()
    file = learn.report(tmp_path/'r.html', title='Toy')
    page = soup(file)
    assert page.h1.get_text()=='Toy' and 'Training' not in headings(page) and len(page.select('.confusion td.right a'))
    learn.fit(1)
    page = soup(learn.report(file))
    assert 'Training' in headings(page) and 'where dl reads pictures' in below(page, 'Predict other pictures', 'p')
    assert 'batches of 8' in below(page, 'Trained with', 'p') and '1 epoch,' in below(page, 'Trained with', 'p')
    assert 'does not know its seed' in below(page, 'Repeat the training', 'p') and 'torch ' in page.get_text()
    learn.arch = partial(nn.Flatten)
    assert report._trained_with(learn).startswith('Sequential · CrossEntropyLossFlat · ')

def file_dls(leaves):
    block = DataBlock((ImageBlock, CategoryBlock), get_y=lambda o: int(o.stem.split('_')[1])%2,
        splitter=RandomSplitter(seed=0), item_tfms=Resize(32))
    return block.dataloaders(get_image_files(leaves/'images'), bs=8, num_workers=0)

@pytest.mark.parametrize('items', ['table','files'])
def test_a_learner_predicts_as_its_report_says(leaves, tmp_path, monkeypatch, items):
    monkeypatch.chdir(tmp_path)
    dls = leaf_dls(leaves, size=32, bs=8) if items=='table' else file_dls(leaves)
    learn = vision_learner(dls, 'test_resnet', pretrained=False)
    page = soup(learn.report())
    if items=='table': pd.read_csv(leaves/'train.csv')[:3].to_csv('pictures.csv', index=False)
    else: some_pictures(leaves, 'PICTURES')
    exec(below(page, 'Keep the Learner'), dict(learn=learn, Path=Path))
    probs = run_pasted(below(page, 'Predict other pictures')+'\nprobs')
    assert probs.shape==(3, dls.c) and 'check_leaks' in page.select_one('#pictures').get_text()

def test_a_network_without_maps(toy, tmp_path):
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3*16*16, 3))
    page = soup(toy(model=flat).report(tmp_path/'r.html'))
    assert len(page.select('#worst img'))==len(page.select('#worst figure'))>0

def some_pictures(leaves, folder):
    "A folder of three leaves"
    Path(folder).mkdir()
    for i in range(3): shutil.copy(leaves/'images'/f'Train_{i}.jpg', folder)

@pytest.fixture(scope='module')
def run5(tmp_path_factory, leaves):
    "A five-fold run of the command; one picture is there twice"
    out = tmp_path_factory.mktemp('runs')/'run5'
    df = pd.read_csv(leaves/'train.csv').replace('multiple_diseases', 'rust')
    again = df.iloc[[0]].assign(image_id='again')
    (leaves/'images'/'again.jpg').write_bytes((leaves/'images'/f'{df.image_id[0]}.jpg').read_bytes())
    pd.concat([df, again]).to_csv(leaves/'twice.csv', index=False)
    main(data=str(leaves/'twice.csv'), label_col='labels', size=32, bs=8, epochs=1, lr=1e-3, arch='test_resnet',
        folds=5, plc=True, out=str(out))
    return out

def test_five_folds_of_the_command(run5):
    page = soup(run5/'report.html')
    assert headings(page)==['Scores','Training','Folds','Classes','Confusions','Worst errors','Reliability',
        'Suspect labels','Corrected labels','Pictures','Predict and repeat']
    config = json.loads((run5/'config.json').read_text())
    assert f"{100*config['accuracy']:.1f}%" in page.select_one('#scores dd').get_text()
    assert [o.td.get_text() for o in page.select('#folds tbody tr')]==['0','1','2','3','4','pooled','mean','std']
    assert len(page.select('#worst .pair img'))==2*len(page.select('#worst figure'))==48
    assert sum(int(o.get_text()) for o in page.select('.confusion td:not(.none)'))==61
    pictures = page.select_one('#pictures').get_text()
    assert 'duplicate: 1' in pictures and 'again' in pictures
    again = page.select_one('#again').get_text()
    assert f'fastai-mix-predict {run5} PICTURES' in again and '--arch test_resnet' in again and '--folds 5' in again
    assert '--fold ' not in again and f"torch {config['versions']['torch']}" in again
    assert 'fold k of 5 is trained from 0 + k' in again
    assert (run5/'report.html').stat().st_size<5e6 and not page.select('script')
    assert below(page, 'Repeat the run').endswith(f'--out {run5}-again') and 'in its own all is done' in again

def test_the_python_of_a_report_runs_as_pasted(run5, leaves, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    some_pictures(leaves, 'PICTURES')
    probs = run_pasted(below(soup(run5/'report.html'), 'The same in Python'))
    assert len(probs)==3 and np.allclose(probs.sum(axis=1), 1)

def test_the_first_line_takes_any_name():
    config = dict(arch='resnet18', mix='none', size=32, epochs=1, data='pictures', fold=None, folds=3)
    line = report._run_summary(results(), config, pd.DataFrame(index=range(60)))
    assert line=='60 pictures, 3 classes, 3 folds; each picture is predicted by the network not trained on it. '\
        'Data: pictures. Training: resnet18, no mix, 32 pixels, 1 epoch.'

def test_one_fold_of_the_command_and_an_error_in_the_report(leaves, tmp_path, capsys, monkeypatch):
    args = dict(data=str(leaves/'train.csv'), label_col='labels', size=32, bs=8, epochs=1, lr=1e-3, arch='test_resnet',
        fold=0, folds=3, mix='none', out=str(tmp_path/'run'))
    main(**args)
    page = soup(tmp_path/'run'/'report.html')
    assert headings(page)==['Scores','Training','Classes','Confusions','Worst errors','Reliability','Suspect labels',
        'Pictures','Predict and repeat']
    assert '20 of them held out' in page.header.get_text() and '--fold 0' in page.select_one('#again').get_text()
    assert page.select('#confusion .behind img')
    capsys.readouterr()
    def broken(*args): raise RuntimeError('no\nroom')
    monkeypatch.setattr(report, 'results_html', broken)
    main(**args)
    out = capsys.readouterr().out
    assert 'report.html was not written: RuntimeError: no room\n' in out and 'written to' in out
    assert not (tmp_path/'run'/'report.html').exists()
    assert 'accuracy' in json.loads((tmp_path/'run'/'config.json').read_text())

def test_cross_validation(df, get_dls, tmp_path):
    cv = CrossVal(df, get_dls, tiny, tmp_path/'run').fit(lambda learn: learn.fit(1))
    file = cv.report_html(title='All folds')
    page = soup(file)
    assert file==cv.path/'report.html' and page.h1.get_text()=='All folds'
    assert 'Folds' in headings(page) and 'Corrected labels' not in headings(page) and page.select('#worst .pair img')
    assert sum(int(o.get_text()) for o in page.select('.confusion td:not(.none)'))==60
    axs = cv.plot_top_losses(3)
    losses = [float(o.get_title().split()[-1]) for o in axs[:3]]
    assert len(axs)==6 and losses==sorted(losses, reverse=True)
    y = cv.oof.columns.get_indexer(df.label)
    all_losses = -np.log(cv.oof.to_numpy()[np.arange(60),y])
    assert losses[0]==pytest.approx(all_losses.max(), abs=.006)

@pytest.mark.parametrize('given', [dict(split_col='a split', lr=.01), dict(folds=3, plc=True, no_cache=True),
    dict(fold=1, folds=3, mix='none', echo=False, data="it's here"), {}])
def test_the_command_that_repeats_a_run_has_its_options(given):
    parser = command_parser('cli', 'fastai-mix')
    words = [o for k,v in given.items() if v is not False for o in (f"--{k.replace('_', '-')}", v) if v is not True or o!=v]
    opts = AttrDict(vars(parser.parse_args(list(map(str, words)))))
    opts.out = Path(opts.out)
    check_options(opts)
    again = AttrDict(vars(parser.parse_args(shlex.split(cli._command_line(opts))[1:])))
    again.out = Path(again.out)
    check_options(again)
    assert {**again, 'from_recipe':None}=={**opts, 'from_recipe':None}
