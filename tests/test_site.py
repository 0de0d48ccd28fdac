"The documentation site: built once, its files checked, then opened in a browser where there is one."
import json,re,subprocess,sys,threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import fastai.learner
import pytest
from helpers import axe_source, media, violations

bs4 = pytest.importorskip('bs4')
pytest.importorskip('smalldocs')

top = Path(__file__).parent.parent
base = '/fastai_mix/'

@pytest.fixture(scope='module')
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp('site')/base.strip('/')
    done = subprocess.run([sys.executable, 'tools/build_docs.py', '--out', str(out)], cwd=top, capture_output=True,
        text=True)
    assert not done.returncode, done.stdout+done.stderr
    return out

@pytest.fixture(scope='module')
def pages(site):
    return {str(o.relative_to(site)): bs4.BeautifulSoup(o.read_text(encoding='utf-8'), 'html.parser')
        for o in sorted(site.rglob('*.html'))}

def test_every_notebook_has_a_page(pages):
    from nbdev.doclinks import nbglob, nbpath2html
    from nbdev.config import get_config
    nbs = get_config().nbs_path
    assert {str(nbpath2html(Path(o.name)) if o.parent==nbs else o.relative_to(nbs).with_suffix('.html'))
        for o in nbglob(as_path=True)}|{'changelog.html'}==set(pages)

def test_committed_site_has_the_same_pages(pages):
    assert {str(o.relative_to(top/'docs')) for o in (top/'docs').rglob('*.html')}==set(
        pages), 'run python tools/build_docs.py'

def test_links_and_anchors(pages, site):
    bad,ids = [],{k: {o['id'] for o in v.select('[id]')} for k,v in pages.items()}
    for page,soup in pages.items():
        for a in soup.select('[href], [src]'):
            url = urlsplit(urljoin(f'http://x{base}{page}', a.get('href') or a.get('src')))
            if url.netloc!='x' or url.scheme!='http': continue
            path = unquote(url.path).removeprefix(base) or 'index.html'
            if not (site/path).is_file(): bad.append(f'{page}: {url.path}')
            elif url.fragment and path in ids and unquote(url.fragment) not in ids[path]:
                bad.append(f'{page}: {path}#{url.fragment}')
    assert not bad, bad

def test_links_stay_in_the_folder(pages):
    assert not [(k,a['href']) for k,v in pages.items() for a in v.select('a[href^="https://fastai-mix.github.io"]')]
    # names of fastai lead to its docs
    assert sum(len(v.select('main a[href*="docs.fast.ai"]')) for v in pages.values())>20

def test_source_links_lead_to_the_definition(site):
    links = [o for p in site.rglob('*.html.md')
        for o in re.findall(r'\[source\]\(\S+?/blob/main/([\w/]+\.py)(?:#L(\d+))?\)\n\n#+ (\S+)',
        p.read_text(encoding='utf-8'))]
    assert len(links)>100
    for file,line,name in links:
        source = (top/file).read_text(encoding='utf-8').splitlines()
        begins = next(o for o in source[int(line)-1:] if not o.lstrip().startswith('@'))
        assert re.match(rf"\s*(def|class) {name.split('.')[-1]}\b", begins), (file, line, name, begins)

def test_every_public_name_has_its_table(pages):
    from fastai_mix import _modidx
    from fastcore.docments import docments
    missing = []
    for mod,syms in _modidx.d['syms'].items():
        m = import_module(mod)
        added = [k.removeprefix(f'{mod}.') for k in syms
            if k.startswith(f'{mod}.Learner.') and not k.startswith(f'{mod}.Learner._')]
        for name in [*m.__all__, *added]:
            o,(url,_) = attrgetter(name)(m if name in m.__all__ else fastai.learner),syms.get(f'{mod}.{name}',
                (None,None))
            # constants, and what is added to fastai's own functions
            if url is None or not callable(o) or type(o).__name__=='Function': continue
            soup,anchor = pages[url.split('#')[0]],url.split('#')[1]
            head = soup.find(id=name) or soup.find(id=anchor)
            if head is None: missing.append(url); continue
            params = set(docments(o, returns=False))-{'self'}
            rows = set()
            for el in head.find_all_next(['h2','h3','table']):
                if el.name!='table': break
                if 'params' in el.get('class', []):
                    rows = {td.get_text().strip('*') for td in el.select('tbody td:first-child')}
                    break
            if params-rows: missing.append(f'{url}: {params-rows}')
    assert not missing, missing

def test_pages_that_docstrings_name_are_there_as_markdown(site):
    from fastai_mix import _modidx
    docs = {m: re.search(r'Docs: https://[^/]+/fastai_mix/(\S+)', import_module(m).__doc__)[1]
        for m in _modidx.d['syms'] if import_module(m).__all__}
    assert len(docs)>15 and not [o for o in docs.values() if not (site/o).is_file()]
    text = (site/'callback.snapmix.html.md').read_text(encoding='utf-8')
    assert text.startswith('# SnapMix') and '| `alpha` |' in text and '```python' in text and '<div' not in text

def test_pictures_have_words(pages):
    assert not [f'{k}: {o}' for k,v in pages.items() for o in v.select('img') if not o.get('alt')]
    assert sum(len(v.select('main img')) for v in pages.values())>40

def test_small_enough(site): assert sum(o.stat().st_size for o in site.rglob('*') if o.is_file())<14e6

def test_llms_names_every_page(site, pages):
    text = (site/'llms.txt').read_text(encoding='utf-8')
    assert not [o for o in pages if o not in text]

class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args): pass

@pytest.fixture(scope='module')
def url(site):
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=str(site.parent)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}{base}'
    server.shutdown()

def settle(browser):
    "Wait for fonts and pictures"
    browser.execute_async_script("""const done = arguments[0], ims = [...document.images], end = Date.now()+9000;
        const wait = () => ims.some(i => i.offsetParent && !i.naturalWidth) && Date.now()<end ? setTimeout(wait, 30)
            : requestAnimationFrame(() => setTimeout(done, 30));
        document.fonts.ready.then(wait)""")

@pytest.fixture(scope='module')
def looks(browser, url, pages):
    "What is seen on every page, in both themes and two widths"
    axe = axe_source()
    browser.execute_cdp_cmd('Network.enable', {})
    browser.execute_cdp_cmd('Network.setCacheDisabled', {'cacheDisabled': True})
    res = {}
    for page in pages:
        media(browser, 'light', 1280)
        browser.get_log('performance'), browser.get_log('browser')
        browser.get(url+page)
        settle(browser)
        events = [json.loads(o['message'])['message'] for o in browser.get_log('performance')]
        r = res[page] = dict(said=[o['message'] for o in browser.get_log('browser')
            if o['level'] in ('SEVERE','WARNING')],
            # not those of a new tab
            asked=[o['params']['request']['url'] for o in events
            if o['method']=='Network.requestWillBeSent' and o['params']['documentURL'].startswith(url)],
            weight=sum(o['params']['encodedDataLength'] for o in events if o['method']=='Network.loadingFinished'))
        r['broken'] = browser.execute_script(
            "return [...document.images].filter(i => i.offsetParent && !i.naturalWidth).map(i => i.src)")
        r['katex'],r['wrong'] = browser.execute_script(
            "return ['.katex','.katex-error'].map(o => document.querySelectorAll(o).length)")
        browser.execute_script(axe)
        r['faults'] = violations(browser, {})
        for theme in ('light','dark'):
            if theme=='dark':
                media(browser, theme, 1280)
                browser.refresh()
                browser.execute_script(axe)
                r['faults'] += [f'{theme} {o}' for o in violations(browser, {'runOnly': ['color-contrast']})]
            bg = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
            r[theme] = sum(map(int, re.findall(r'\d+', bg)[:3]))/3
            media(browser, theme, 375)
            r[f'{theme} width'] = browser.execute_script("return document.documentElement.scrollWidth")
    browser.execute_cdp_cmd('Network.setCacheDisabled', {'cacheDisabled': False})
    return res

def test_pages_load_from_here_alone(looks, url):
    assert not [(k,v['said']) for k,v in looks.items() if v['said']]
    assert not [(k,o) for k,v in looks.items() for o in v['asked'] if not o.startswith((url,'data:'))]
    assert not [(k,v['broken']) for k,v in looks.items() if v['broken']]

def test_pages_are_light(looks): assert not {k: v['weight'] for k,v in looks.items() if not 1e4<v['weight']<1.5e6}

def test_mathematics(looks, pages):
    assert not [k for k,v in looks.items() if v['wrong']]
    assert [k for k,v in looks.items() if v['katex']]==[k for k,v in pages.items() if v.select('main .math')]!=[]

def test_themes_follow_the_reader(looks): assert not [k for k,v in looks.items() if not v['dark']<64<192<v['light']]

def test_fits_a_phone(looks):
    assert not [(k,o) for k,v in looks.items() for o in ('dark width','light width') if v[o]>375]

def test_accessible(looks):
    faults = [f'{k}: {o}' for k,v in looks.items() for o in v['faults']]
    assert not faults, '\n'.join(faults)

@pytest.mark.parametrize('where', ['server','folder'])
@pytest.mark.parametrize('word,page', [('SnapMix','callback.snapmix.html'), ('oversample','data.sampling.html'),
    ('theta','callback.plc.html')])
def test_search(browser, url, site, word, page, where):
    from selenium.webdriver.support.ui import WebDriverWait
    media(browser, 'light', 1280)
    browser.get((url if where=='server' else site.as_uri()+'/')+'index.html')
    box = browser.find_element('css selector', '.smalldocs-search input')
    box.send_keys(word)
    WebDriverWait(browser, 10).until(lambda b: b.find_elements('css selector', 'a.search-result'))
    hits = [o.get_attribute('href') for o in browser.find_elements('css selector', 'a.search-result')]
    assert any(page in o for o in hits[:5]), hits
    browser.find_element('css selector', f'a.search-result[href*="{page}"]').click()
    WebDriverWait(browser, 10).until(lambda b: page in b.current_url)

def test_theme_switch_is_kept(browser, url):
    media(browser, 'light', 1280)
    browser.get(url+'index.html')
    def bg(): return browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    light = bg()
    browser.find_element('css selector', '.quarto-color-scheme-toggle').click()
    assert bg()!=light
    browser.get(url+'changelog.html')
    assert bg()!=light
    browser.execute_script('localStorage.clear()')
