"""Builds the documentation site from the notebooks: `python tools/build_docs.py [--out docs]`.

nbdev prepares the notebooks (`nbs` to `_proc`), exactly as `nbdev-docs` would for Quarto; smalldocs, which reads the
same project files, makes the pages; and what it leaves out is added here: KaTeX from the site itself, pictures in
files of their own, labels for readers of screens, each page as Markdown too. Nothing is downloaded."""
import base64,hashlib,io,json,os,re,sys
from importlib import import_module
from pathlib import Path
from shutil import copy2, copytree, rmtree

os.environ['PYTHONWARNINGS'] = 'ignore' # of the processes that nbdev starts
# where they find doc_renderer
os.environ['PYTHONPATH'] = os.pathsep.join([str(Path(__file__).parent), os.environ.get('PYTHONPATH', '')])

from bs4 import BeautifulSoup
from fastcore.nbio import nb2str, read_nb, write_nb
from fastcore.script import call_parse
from nbdev.config import get_config
from nbdev.doclinks import nbpath2html
from nbdev.quarto import refresh_quarto_yml
from nbdev.serve import proc_nbs
from markdownify import MarkdownConverter
from PIL import Image
from smalldocs import site as smalldocs
from smalldocs import layout

tools = Path(__file__).parent
sys.path.insert(0, str(tools))
import page_html
from page_code import lesson, label_cells, put_imports_on_top, top_names
from page_index import index_page

not_found = """---
title: No such page
description: The page may have moved
---

[All names](api.md), or [start here](index.ipynb).
"""

def bars_as_they_end(nb):
    "Leave of each line that a cell printed what was to be seen at last"
    for o in (o for c in nb.cells for o in c.get('outputs', ())):
        if o['output_type']=='stream':
            o['text'] = ''.join(line.rstrip('\n').split('\r')[-1].rstrip()+'\n'
                for line in ''.join(o['text']).splitlines(True) if line.strip('\r\n '))

def rename_in(files, names):
    "Write new names of files for the old ones"
    for f in files:
        text = f.read_text(encoding='utf-8')
        for old,new in names.items():
            if old!=new: text = text.replace(old, new)
        f.write_text(text, encoding='utf-8')

def module_of(nb):
    "The module that a notebook is exported to, if it is"
    found = [re.search(r'^#\| *default_exp +(\S+)', c.source, re.M) for c in nb.cells]
    return next((f'{get_config().lib_path.name}.{m[1]}' for m in found if m), None)

def stage(cfg):
    "Process the notebooks into `_proc`, under the names their pages will have; the notebook each page is made from"
    refresh_quarto_yml()
    proc = proc_nbs(force=True)
    names,sources,known = {},{},top_names()
    for nb in sorted(proc.rglob('*.ipynb')):
        to = nb.with_name(nbpath2html(Path(nb.name)).with_suffix('.ipynb').name)
        names[nb.name] = to.name
        source = cfg.nbs_path/nb.relative_to(proc)
        sources[str(to.relative_to(proc).with_suffix('.html'))] = source
        d,original = read_nb(nb),read_nb(source)
        bars_as_they_end(d)
        if module := module_of(original): put_imports_on_top(original, d, module, known)
        label_cells(d)
        write_nb(d, to)
        if to!=nb: nb.unlink()
    rename_in([proc/'_quarto.yml', proc/'sidebar.yml', *proc.rglob('*.ipynb')], names)
    return proc,sources

def title_of(nb): return re.search(r"""^title: *['"]?(.*?)['"]?$""", nb.cells[0].source, re.M)[1]

def add_pages(cfg, proc, sources):
    "Add to `_proc` the pages that no notebook makes: the changes, all names, and that for an unknown address"
    changes = sources['changelog.html'] = cfg.config_path/'CHANGELOG.md'
    copy2(changes, proc/'changelog.md')
    (proc/'404.md').write_text(not_found, encoding='utf-8')
    listed = re.findall(r'- (\S+)\.ipynb', (proc/'sidebar.yml').read_text(encoding='utf-8'))
    titles = {f'{o}.html': title_of(read_nb(proc/f'{o}.ipynb')) for o in listed if f'{o}.html' in sources}
    (proc/'api.md').write_text(index_page(modidx(cfg), titles), encoding='utf-8')

def modidx(cfg): return import_module(f'{cfg.lib_path.name}._modidx').d['syms']

def as_webp(im, **kwargs):
    buf = io.BytesIO()
    im.save(buf, 'webp', method=6, **kwargs)
    return buf.getvalue()

def save_picture(data, folder, known):
    "Write a picture to `folder`, as WebP where that is smaller; its name"
    raw = base64.b64decode(data)
    name = hashlib.sha256(raw).hexdigest()[:16]
    if name not in known:
        im = Image.open(io.BytesIO(raw))
        best = min(raw, as_webp(im, quality=85), as_webp(im, lossless=True), key=len)
        file = folder/f"{name}.{im.format.lower() if best is raw else 'webp'}"
        file.write_bytes(best)
        known[name] = (file.name, im.size)
    return known[name]

def place_pictures(soup, page, site, known, faults):
    "Move pictures of a page into files, each a link to itself, which a phone shows in full"
    up = page_html.up(page, site)
    for img in soup.select('main img'):
        m = re.match(r'data:image/(?:png|jpeg|gif);base64,(.*)', img.get('src', ''), re.S)
        if m:
            name,(w,h) = save_picture(m[1], site/'figures', known)
            img['src'] = f'{up}figures/{name}'
            img['width'],img['height'],img['loading'] = str(w),str(h),'lazy'
        if not img.get('alt'):
            faults.append(f"{page.relative_to(site)}: a picture without alt text "
                f"({img.find_parent(class_='cell')['id'] if img.find_parent(class_='cell') else img['src']})")
        if img.find_parent('a') is None: img.wrap(soup.new_tag('a', attrs={'class': 'figure-link', 'href': img['src']}))

def fix_links(soup, up, home):
    "Have links stay in the folder of the site, and those to a name lead to it, whatever its capitals"
    # a function and a class may differ in capitals alone, which headings' names lose
    for source in soup.select('a.source-link'):
        head = source.find_next(['h2','h3','h4'])
        name = head.get_text()
        if head['id']!=name: head.insert(0, soup.new_tag('span', id=name))
    for a in soup.select(f'a[href^="{home}"]'): a['href'] = up+a['href'].removeprefix(home)
    for a in soup.select('main a[href*="#"]'):
        path,_,frag = a['href'].partition('#')
        name = a.get_text().removesuffix('()')
        if name.lower()==frag and name!=frag and '://' not in path and a.code: a['href'] = f'{path}#{name}'

def links_about(page, sources, lessons, cfg):
    "Links that a page has about itself: to change it, and if it has code to take it along, and to run it"
    if page not in sources: return []
    path,docs = (o.relative_to(cfg.config_path).as_posix() for o in (sources[page], cfg.doc_path))
    repo = cfg.git_url.rstrip('/').removeprefix('https://github.com/')
    edit = ('Edit this page', f'https://github.com/{repo}/edit/{cfg.branch}/{path}')
    if page not in lessons: return [edit]
    nb = Path(page).with_suffix('.ipynb')
    return [edit, ('Download as a notebook', nb.name), ('Open in Colab',
        f'https://colab.research.google.com/github/{repo}/blob/{cfg.branch}/{docs}/{nb.as_posix()}')]

def finish_page(page, site, cfg, links, known, faults):
    "A page with what smalldocs leaves out"
    soup = BeautifulSoup(page.read_text(encoding='utf-8'), 'html.parser')
    name,up = page.relative_to(site).as_posix(),page_html.up(page, site)
    home = f'{cfg.doc_host}{cfg.doc_baseurl}/'
    place_pictures(soup, page, site, known, faults)
    page_html.wrap_code(soup)
    page_html.keep_options(soup)
    page_html.keep_intervals(soup)
    page_html.mark_slow(soup)
    for o in soup.select('main .math.display'): o['tabindex'] = '0'
    page_html.finish_tables(soup)
    page_html.drop_empty_headings(soup)
    for style in soup.select('main style'): style.decompose()
    page_html.name_icons(soup)
    page_html.lighten_sidebar(soup)
    if name!='api.html': page_html.unlink_words(soup)
    fix_links(soup, up, home)
    page_html.shorten_contents(soup)
    page_html.shorten_crumbs(soup)
    page_html.add_contents(soup)
    page_html.add_links(soup, links)
    page_html.add_skip_link(soup)
    page_html.add_meta(soup, home+name, cfg.version)
    if name=='404.html': page_html.root_links(soup, f'{cfg.doc_baseurl}/')
    return soup

def write_page(page, soup, site):
    text = str(soup).replace(layout.KATEX, f'{page_html.up(page, site)}site_libs/katex')
    page.write_text(text.replace('katex/contrib/', 'katex/'), encoding='utf-8')

def keep_names_without_docs(soups):
    "Take off links that were made of names in backticks which have no entry: what modules share, but users do not call"
    anchors = {page: {o['id'] for o in soup.select('[id]')} for page,soup in soups.items()}
    for page,soup in soups.items():
        links = [a for a in soup.select('main a[href*="#"]') if '://' not in a['href'] and [*a.children]==[a.code]]
        for a in links:
            path,_,anchor = a['href'].partition('#')
            target = (page.parent/path).resolve() if path else page
            if target in anchors and anchor not in anchors[target]: a.unwrap()

def write_markdown(page, soup):
    "Write a page once more as Markdown beside it, where module docstrings and llms.txt look for it; changes `soup`"
    main = soup.select_one('main')
    for o in main.select('nav, .quarto-page-breadcrumbs, .anchorjs-link, .contents, .page-links, .tests-button, '
        'style, script'): o.decompose()
    def language(pre):
        return 'python' if 'python' in ' '.join([*pre.get('class', []),
            *(pre.code.get('class', []) if pre.code else [])]).lower() else ''
    text = MarkdownConverter(heading_style='ATX', bullets='-', escape_underscores=False, escape_asterisks=False,
        code_language_callback=language).convert_soup(main)
    page.with_name(f'{page.name}.md').write_text(re.sub(r'\n{3,}', '\n\n', text).strip()+'\n', encoding='utf-8')

def fonts_of_the_reader(site):
    "Take the web fonts out of the themes, which then use the fonts that are there"
    for css in (site/'site_libs'/'themes').rglob('*.css'):
        css.write_text(re.sub(r'@import url\([^)]*\);?', '', css.read_text(encoding='utf-8')), encoding='utf-8')

def one_font_for_icons(site):
    "Take out the second file of the font of icons, for browsers of before 2016"
    icons = site/'site_libs'/'bootstrap-icons'
    css = icons/'bootstrap-icons.min.css'
    css.write_text(re.sub(r',url\("fonts/bootstrap-icons\.woff\?\w*"\) format\("woff"\)', '',
        css.read_text(encoding='utf-8')), encoding='utf-8')
    (icons/'fonts'/'bootstrap-icons.woff').unlink()

# what readers ask for, for pages that say it in other words
search_words = {'recipe.html': 'best settings default defaults', 'explain/recipe.html': 'best settings default',
    'howto/settings.html': 'best settings default hyperparameters', 'howto/choose.html': 'best settings mix',
    'howto/offline.html': 'kaggle internet off offline wheels', 'faq.html': 'faq questions',
    'data.sampling.html': 'imbalanced rare classes oversampling', 'callback.plc.html': 'noisy labels noise'}

def replace_once(text, old, new):
    if text.count(old)!=1:
        raise ValueError(f"smalldocs.js does not hold once what the site replaces: {old!r}. See tools/build_docs.py")
    return text.replace(old, new)

def finish_script(site):
    "Copy code without folded tests; search for all words; and load the index by a script, as folders need it"
    js = site/'site_libs'/'smalldocs.js'
    text = js.read_text(encoding='utf-8')
    text = replace_once(text, 'code.innerText', 'window.codeText(code)')
    text = replace_once(text, """const r = await fetch(offset + "search.json");
      index = await r.json();""", """await new Promise((done, fail) => {
        const s = document.createElement("script");
        [s.src, s.onload, s.onerror] = [offset + "search.js", done, fail];
        document.head.append(s);
      });
      index = window.searchIndex;""")
    text = replace_once(text, """fuse ? fuse.search(q, { limit }).map((h) => h.item)
        : index.filter((e) => (e.title + " " + e.section + " " + e.text).toLowerCase().includes(q.toLowerCase()))"""
        ".slice(0, limit)", 'window.searchPages(index, fuse, q, limit)')
    js.write_text(text+(tools/'site.js').read_text(encoding='utf-8'), encoding='utf-8')

def finish_index(site, soups):
    "The search index as a script, without the heads of tables of parameters, and without headings that were taken out"
    index = site/'search.json'
    names = {page.relative_to(site).as_posix(): soup for page,soup in soups.items()}
    there = {f'{name}#{o["id"]}' for name,soup in names.items() for o in soup.select('[id]')}
    entries = [o for o in json.loads(index.read_text(encoding='utf-8')) if '#' not in o['href'] or o['href'] in there]
    words = dict(search_words)
    for o in entries:
        del o['objectID'] # the same as its href
        o['text'] = o['text'].replace('Name Type Default What it is', '')
        if (page := o['href'].partition('#')[0]) in words: o['words'] = words.pop(page)
    if words: raise ValueError(f'search_words in tools/build_docs.py names pages that are not there: {[*words]}')
    text = json.dumps(entries, ensure_ascii=False)
    (site/'search.js').write_text(f'window.searchIndex = {text};\n', encoding='utf-8')
    index.unlink()

def llms(cfg, site, soups):
    "Write llms.txt: every page, as Markdown, with a line on it"
    out = [f"# {cfg.lib_name}\n", f"> {cfg.description}\n"]
    nav = soups[site/'index.html'].select('#quarto-sidebar a[href$=".html"]')
    base = f'{cfg.doc_host}{cfg.doc_baseurl}/'
    for href in dict.fromkeys(a['href'].removeprefix('./') for a in nav):
        soup = soups[site/href]
        what = soup.select_one('meta[name=description]')
        out.append(f"- [{soup.select_one('h1').get_text(strip=True)}]({base}{href}.md)"
            + (f": {what['content']}" if what else ''))
    (site/'llms.txt').write_text('\n'.join(out)+'\n', encoding='utf-8')

def write_lessons(proc, sources, home, repo):
    "Each page that has code as a notebook that runs, by its name in the site"
    made = {page: lesson(read_nb((proc/page).with_suffix('.ipynb')), page, home, repo) for page in sources}
    return {page: nb2str(nb) for page,nb in made.items() if nb}

def build(out):
    "Build the site into the folder `out`; its faults"
    cfg = get_config()
    home = f'{cfg.doc_host}{cfg.doc_baseurl}/'
    proc,sources = stage(cfg)
    try:
        lessons = write_lessons(proc, sources, home, cfg.git_url.rstrip('/'))
        add_pages(cfg, proc, sources)
        made = smalldocs.build(proc, quiet=True)
        site = made.out.resolve()
        (site/'figures').mkdir(exist_ok=True)
        copytree(tools/'katex', site/'site_libs'/'katex', dirs_exist_ok=True)
        known,faults = {},[o for o in made.warnings if not re.search('format-links|commonmark|output-file', o)]
        def links(page): return links_about(page.relative_to(site).as_posix(), sources, lessons, cfg)
        soups = {o: finish_page(o, site, cfg, links(o), known, faults) for o in sorted(site.rglob('*.html'))}
        keep_names_without_docs(soups)
        llms(cfg, site, soups)
        for page,soup in soups.items():
            write_page(page, soup, site)
            write_markdown(page, soup)
        for page,text in lessons.items(): (site/page).with_suffix('.ipynb').write_text(text, encoding='utf-8')
        fonts_of_the_reader(site)
        one_font_for_icons(site)
        finish_script(site)
        finish_index(site, soups)
        (site/'.nojekyll').touch()
        rmtree(out, ignore_errors=True)
        copytree(site, out)
    finally: rmtree(proc, ignore_errors=True)
    return faults

@call_parse
def main(
    out:Path=None, # Folder of the site; `docs` if left out
):
    "Build the documentation site"
    cfg = get_config()
    out = Path(out or cfg.doc_path)
    faults = build(out)
    print(f"{len(list(out.rglob('*.html')))} pages, "
        f"{sum(o.stat().st_size for o in out.rglob('*') if o.is_file())/1e6:.1f} MB in {out}")
    if faults: sys.exit('\n'.join(faults))
