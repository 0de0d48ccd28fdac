"The documentation site: built once, its files checked, then opened in a browser where there is one."
import json,os,re,subprocess,sys,threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import fastai.learner
import pytest
from fastcore.nbio import read_nb
from helpers import axe_source, contrast, media, violations

bs4 = pytest.importorskip('bs4')
pytest.importorskip('smalldocs')

top = Path(__file__).parent.parent
sys.path.insert(0, str(top/'tools'))
base = '/fastai_mix/'

@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "The site, built now; BUILT_SITE names a folder in which it has just been built"
    if os.environ.get('BUILT_SITE'): return Path(os.environ['BUILT_SITE'])
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
        for o in nbglob(as_path=True)}|{'changelog.html','api.html','404.html'}==set(pages)

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
    assert all(o['href'].startswith((base,'#','http')) for o in pages['404.html'].select('a[href], link[href]'))
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
            if {'args','kwargs'}==params: continue # of a class written in C
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

def code_of(soup): return [o.get_text() for o in soup.select('main pre.cell-code.python')]

def is_api(page): return f"fastai_mix.{page.removesuffix('.html')}" in import_module('fastai_mix._modidx').d['syms']

def test_code_of_a_page_runs_from_its_top(site):
    "All cells but those that the page says are slow or not run, each page in a fork of its own"
    done = subprocess.run([sys.executable, 'tools/try_pages.py', str(site)], cwd=top, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert len(told['seconds'])>50 and not told['failures'], '\n\n'.join(told['failures'].values())

def test_code_that_needs_a_hidden_name_is_reported(tmp_path):
    cell = '<div class="cell" id="cell-0"><pre class="cell-code python">print(hidden)</pre></div>'
    slow = '<div class="cell" id="slow-1"><pre class="cell-code python">1/0</pre></div>'
    (tmp_path/'args.html').write_text(f'<main>{cell}{slow}</main>')
    (tmp_path/'files.html').write_text(f'<main>{slow}</main>')
    done = subprocess.run([sys.executable, 'tools/try_pages.py', str(tmp_path)], cwd=top, capture_output=True,
        text=True)
    failures = json.loads(done.stdout.splitlines()[-1])['failures']
    assert list(failures)==['args.html'] and "name 'hidden' is not defined" in failures['args.html']

def test_api_pages_begin_with_both_imports(pages):
    both = 'from fastai.vision.all import *\nfrom fastai_mix.all import *\n'
    begins = {k: code_of(v)[0] for k,v in pages.items() if is_api(k) and code_of(v)}
    assert len(begins)>50 and not [k for k,v in begins.items() if not v.startswith(both)]
    text = '\n'.join(o for v in pages.values() for o in code_of(v))
    assert 'nbdev.showdoc' not in text and not re.search(r'^from \.', text, re.M)

def test_lines_that_test_are_folded(pages):
    soup = pages['callback.snapmix.html']
    block = next(o for o in soup.select('.code-copy-outer-scaffold') if 'mixed,w,w2 = snapmix' in o.get_text())
    assert 'folded' in block['class'] and block.select_one('.tests-button').get_text()=='3 tests'
    assert [o.get_text().strip() for o in block.select('.line:not(.test)')][-1]=='w,w2'
    lines = [o.get_text() for v in pages.values() for o in v.select('pre.cell-code .line:not(.test)')]
    assert not [o for o in lines if o.startswith(('test_eq(','test_close(','assert '))]

def test_properties_are_no_calls(pages):
    signatures = [o.get_text().strip() for o in pages['data.ledger.html'].select('pre.signature')]
    assert 'LabelLedger.changed' in signatures and 'LabelLedger.undo(' in ' '.join(signatures)
    assert not [o for v in pages.values() for o in v.select('pre.signature ~ .code-copy-button')]

def test_common_words_are_no_links(pages):
    words = {'run','test','maps','merge','splitter','Module','predict','review','card','compare','oversample'}
    linked = [(k,a.get_text()) for k,v in pages.items() for a in v.select('main a') if [*a.children]==[a.code]]
    assert len(linked)>500 and not [o for o in linked if o[1] in words and o[0]!='api.html']

def test_parameters_are_told_and_their_names_are_no_links(pages):
    tables = [(k,o) for k,v in pages.items() for o in v.select('table.params')]
    rows = [(k,[o.get_text(strip=True) for o in row('td')]) for k,table in tables for row in table.select('tbody tr')]
    assert len(rows)>500 and not [(k,row) for k,row in rows if not row[-1] and row[0]!='returns']
    assert not [(k,o) for k,table in tables for o in table.select('tbody td:first-child a')]

def test_intervals_stay_on_one_line(pages):
    interval = re.compile(r'\d ± \d|\[[-+]?[\d.]+, [-+]?[\d.]+\]')
    texts = [o for v in pages.values() for cell in v.select('main td') for o in cell(string=interval)]
    assert len(texts)>500 and not [o for o in texts if o.parent.get('class')!=['interval'] and o.parent.name!='code']

def test_a_name_has_one_entry_and_a_line_in_the_index(pages):
    entries = [o.find_next(['h2','h3','h4']).get_text() for v in pages.values() for o in v.select('a.source-link')]
    assert {k for k in entries if entries.count(k)>1}<={'main','predict','review'} # commands, and functions named so
    nav = [a['href'] for a in pages['index.html'].select('.navbar a.nav-link') if a.get_text(strip=True)=='API']
    assert nav==['api.html']
    listed = [a.get_text() for a in pages['api.html'].select('main li > a:first-child') if a.code]
    modules = map(import_module, import_module('fastai_mix._modidx').d['syms'])
    missing = [o for m in modules for o in m.__all__ if o not in listed and type(getattr(m, o)).__name__!='Function']
    assert not missing and {'SnapMix','Learner.show_mix','d4'}<=set(listed)
    assert {k for k in listed if listed.count(k)>1}<={'main','predict','review'}

def test_headings_and_tables_hold_something(pages):
    for page,soup in pages.items():
        heads = soup.select('main h2, main h3, main h4')
        end = soup.select_one('main .page-navigation')
        assert not heads or end is None or heads[-1].find_next(['p','pre','table','li','img','nav']) is not end, page
        for o,following in zip(heads, heads[1:]):
            if following.name>o.name: continue
            said = [e for e in o.find_all_next(['p','pre','table','li','img',following.name])
                if e.get_text(strip=True)!='source']
            assert said[0] is not following, (page, o.get_text())
        assert all(o.select('tbody tr, tr td') for o in soup.select('main table')), page
        assert all(o.get_text(strip=True) for o in soup.select('main section')), page
        listed = [soup.find(id=a['href'][1:]) for a in soup.select('#TOC a, .contents a')]
        assert all(o is not None and o.get_text(strip=True) for o in listed), page

def test_pages_say_where_they_come_from(pages, site):
    from fastai_mix import __version__
    repo = 'fastai-mix/fastai_mix'
    made = {k: v for k,v in pages.items() if k not in ('api.html','404.html')}
    for page,soup in made.items():
        links = {a.get_text(): a['href'] for a in soup.select('.page-links a')}
        file = links['Edit this page'].removeprefix(f'https://github.com/{repo}/edit/main/')
        assert (top/file).is_file() and file.startswith('CHANGELOG.md' if page=='changelog.html' else 'nbs/')
        nb = Path(page).with_suffix('.ipynb')
        in_colab = f'https://colab.research.google.com/github/{repo}/blob/main/docs/{nb}'
        named = {'Download as a notebook': nb.name, 'Open in Colab': in_colab} if (site/nb).is_file() else {}
        assert {**links, **named}==links and len(links)==1+len(named), page
    for page,soup in pages.items():
        assert soup.select_one('.navbar-title .version').get_text()==__version__
        about = {o['property']: o['content'] for o in soup.select('meta[property]')}
        assert about['og:url'].endswith(f'{base}{page}') and about['og:title'] and about['og:image'], page
        assert all(o.get('aria-label') for o in soup.select('.code-copy-button'))

def star_names(module):
    exec(f'from {module} import *', names := {})
    return names

def test_notebooks_of_pages_install_the_package_and_run_alone(site):
    from page_code import free_names, is_import, parse
    files = sorted(site.rglob('*.ipynb'))
    assert len(files)>70
    for file in files:
        nb = read_nb(file)
        install,*code = [c for c in nb.cells if c.cell_type=='code']
        assert install.source.startswith(
            '! [ -e /content ] && pip install -Uqq git+https://github.com/fastai-mix/fastai_mix'), file
        assert code and not [c for c in code if c.get('outputs') or re.search(r'nbdev|^#\|', c.source, re.M)], file
        stars = [o.module for c in code for o in parse(c.source) if is_import(o) and o.names[0].name=='*']
        found = {k for o in stars for k in star_names(o)}
        assert not [o for o in free_names(code) if o not in found], file

def test_sections_are_named_once_above_a_page(pages):
    crumbs = {k: [o.get_text() for o in v.select('main .breadcrumb-item')] for k,v in pages.items()}
    assert crumbs['benchmarks_labels.html']==['Benchmarks','Wrong labels']
    assert not [k for k,v in crumbs.items() if len({*v})<len(v)]

def test_benchmarks_begin_with_what_they_found(pages):
    pages = [v for k,v in pages.items() if k.startswith('benchmarks')]
    begins = [o.select_one('main header ~ p, main header ~ section p') for o in pages]
    assert len(begins)==4 and all(o.get_text().startswith('In short.') for o in begins)

def test_formulas_are_no_raw_tex(pages):
    for page,soup in pages.items():
        prose = [o for o in soup.main.find_all(string=True)
            if not o.find_parent(['pre','code']) and not o.find_parent(class_='math')]
        assert not [o for o in prose if re.search(r'\$\\\w|\\(sqrt|max|lambda|theta|frac)\b', o)], page

def test_links_are_no_raw_markdown(pages):
    found = [(k,o) for k,v in pages.items() for o in v.main.find_all(string=re.compile(r'\]\('))]
    assert not [(k,o) for k,o in found if not o.find_parent('code')]

def test_pictures_have_words(pages):
    assert not [f'{k}: {o}' for k,v in pages.items() for o in v.select('img') if not o.get('alt')]
    assert sum(len(v.select('main img')) for v in pages.values())>40

def test_options_stay_on_one_line(pages):
    shell = [o for soup in pages.values() for o in soup.select('main pre.sh > code')]
    assert len(shell)>20
    texts = [o for code in shell for o in code(string=re.compile(r'(?<!\S)--[a-z]'))]
    assert not [o for o in texts if 'option' not in o.parent.get('class', [])]
    assert pages['faq.html'].select('main p code .option')

def test_a_lesson_has_the_same_cells_in_each_build():
    from page_code import lesson
    args = 'schedule.html','https://x/','https://y'
    a,b = (lesson(read_nb(top/'nbs'/'30_schedule.ipynb'), *args) for _ in range(2))
    assert a==b and len({c.id for c in a.cells})==len(a.cells)>5

def test_small_enough(site):
    assert sum(o.stat().st_size for o in site.rglob('*') if o.is_file())<14e6 and not [*site.rglob('*.woff')]

def test_llms_names_every_page(site, pages):
    text = (site/'llms.txt').read_text(encoding='utf-8')
    assert not [o for o in pages if o not in text and o!='404.html']

class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args): pass

@pytest.fixture(scope='module')
def url(site):
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=str(site.parent)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}{base}'
    server.shutdown()

# what is wider than its own box, and so is cut or has to be scrolled
cut = """return [...document.querySelectorAll('main pre, main .table-scroll, main .math.display')]
    .filter(o => o.scrollWidth>o.clientWidth+1).map(o => `${o.tagName} ${o.className}: ${o.scrollWidth} px`)"""

# names of parameters that are broken over lines
broken_names = """return [...document.querySelectorAll('table.params td:first-child code')]
    .filter(o => o.getClientRects().length>1).map(o => o.textContent)"""

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
        r['faults'] = violations(browser, {'rules': {'color-contrast': {'enabled': False}}})
        for theme in ('light','dark'):
            if theme=='dark':
                media(browser, theme, 1280)
                browser.refresh()
                browser.execute_script(axe)
            r['faults'] += [f'{theme} {o}' for o in browser.execute_async_script(contrast)]
            bg = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
            r[theme] = sum(map(int, re.findall(r'\d+', bg)[:3]))/3
            media(browser, theme, 375)
            r[f'{theme} width'] = browser.execute_script("return document.documentElement.scrollWidth")
        r['cut on a phone'] = browser.execute_script(cut)
        media(browser, theme, 1400)
        r['cut'] = browser.execute_script(cut)
        r['broken names'] = browser.execute_script(broken_names)
        r['split'] = browser.execute_script(
            "return [...document.querySelectorAll('.interval')].filter(o => o.getClientRects().length>1).length")
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

def test_nothing_is_cut(looks):
    assert not {k: v['cut'] for k,v in looks.items() if v['cut']}
    assert not {k: v['cut on a phone'] for k,v in looks.items() if v['cut on a phone']}
    assert not {k: v['broken names'] for k,v in looks.items() if v['broken names']}
    assert not {k: v['split'] for k,v in looks.items() if v['split']}

def test_accessible(looks):
    faults = [f'{k}: {o}' for k,v in looks.items() for o in v['faults']]
    assert not faults, '\n'.join(faults)

@pytest.mark.parametrize('style,where,n', [('', 'main section p', 0), ('background: #999', 'main section p', 1),
    ('color: #444', '.sidebar a', 1), ('opacity: .4', 'main .breadcrumb-item', 1)])
def test_contrast_of_a_new_look_is_judged(looks, browser, url, style, where, n):
    media(browser, 'dark', 1280)
    browser.get(url+'callback.snapmix.html')
    browser.execute_script(axe_source())
    browser.execute_script(f"document.querySelector('{where}').style.cssText = '{style}'")
    assert len(browser.execute_async_script(contrast))==n

@pytest.mark.parametrize('where', ['server','folder'])
@pytest.mark.parametrize('word,page', [('SnapMix','callback.snapmix.html'), ('oversample','data.sampling.html'),
    ('theta','callback.plc.html'), ('best settings','recipe.html'), ('default','recipe.html'),
    ('how to predict','predict.html')])
def test_search(browser, url, site, word, page, where):
    from selenium.webdriver.support.ui import WebDriverWait
    media(browser, 'light', 1280)
    browser.get((url if where=='server' else site.as_uri()+'/')+'index.html')
    box = browser.find_element('css selector', '.smalldocs-search input')
    box.send_keys(word)
    WebDriverWait(browser, 10).until(lambda b: b.find_elements('css selector', 'a.search-result'))
    hits = [o.get_attribute('href') for o in browser.find_elements('css selector', 'a.search-result')]
    assert any(page in o for o in hits[:4]), hits
    browser.find_element('css selector', f'a.search-result[href*="{page}"]').click()
    WebDriverWait(browser, 10).until(lambda b: page in b.current_url)

def test_copy_leaves_out_folded_tests(browser, url):
    media(browser, 'light', 1280)
    browser.get(url+'callback.snapmix.html')
    block = browser.find_element('xpath', '//div[contains(@class, "folded")][contains(., "mixed,w,w2 = snapmix")]')
    button = block.find_element('css selector', '.tests-button')
    def copied(): return browser.execute_script("return codeText(arguments[0].querySelector('code'))", block)
    assert copied().endswith('w,w2') and 'test_close' not in copied() and 'test_close' not in block.text
    button.click()
    assert 'test_close(w2' in copied() and 'test_close(w2' in block.text
    assert button.get_attribute('aria-expanded')=='true'

def test_skip_link_and_contents_on_a_phone(browser, url):
    from selenium.webdriver.common.keys import Keys
    media(browser, 'light', 375)
    browser.get(url+'callback.snapmix.html')
    browser.find_element('css selector', 'body').send_keys(Keys.TAB)
    link = browser.switch_to.active_element
    assert link.text=='Skip to content' and link.location['x']>=0
    link.send_keys(Keys.ENTER)
    assert browser.switch_to.active_element.tag_name=='main'
    contents = browser.find_element('css selector', 'details.contents')
    contents.find_element('css selector', 'summary').click()
    assert 'The method' in contents.text
    table = browser.find_element('css selector', 'table.params')
    assert browser.execute_script("return getComputedStyle(arguments[0].rows[1]).display", table)=='block'

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
