"""Builds the documentation site from the notebooks: `python tools/build_docs.py [--out docs]`.

nbdev prepares the notebooks (`nbs` to `_proc`), exactly as `nbdev-docs` would for Quarto; smalldocs, which reads the
same project files, makes the pages; and what it leaves out is added here: KaTeX from the site itself, pictures in
files of their own, labels for readers of screens, each page as Markdown too. Nothing is downloaded."""
import base64,hashlib,io,json,os,re,sys
from pathlib import Path
from shutil import copy2, copytree, rmtree

os.environ['PYTHONWARNINGS'] = 'ignore' # of the processes that nbdev starts
# where they find doc_renderer
os.environ['PYTHONPATH'] = os.pathsep.join([str(Path(__file__).parent), os.environ.get('PYTHONPATH', '')])

from bs4 import BeautifulSoup
from fastcore.nbio import read_nb, write_nb
from fastcore.script import call_parse
from nbdev.config import get_config
from nbdev.doclinks import nbpath2html
from nbdev.quarto import refresh_quarto_yml
from nbdev.serve import proc_nbs
from markdownify import markdownify
from PIL import Image
from smalldocs import site as smalldocs
from smalldocs import layout

tools = Path(__file__).parent

def stage(cfg):
    "Process the notebooks into `_proc`, under the names their pages will have"
    refresh_quarto_yml()
    proc = proc_nbs(force=True)
    copy2(cfg.config_path/'CHANGELOG.md', proc/'changelog.md')
    names = {}
    for nb in sorted(proc.rglob('*.ipynb')):
        to = nb.with_name(nbpath2html(Path(nb.name)).with_suffix('.ipynb').name)
        names[nb.name] = to.name
        d = read_nb(nb)
        for o in (o for c in d.cells for o in c.get('outputs', ())):
            # bars as they end
            if o['output_type']=='stream':
                o['text'] = ''.join(line.rstrip('\n').split('\r')[-1].rstrip()+'\n'
                    for line in ''.join(o['text']).splitlines(True) if line.strip('\r\n '))
        write_nb(d, to)
        if to!=nb: nb.unlink()
    for f in [proc/'_quarto.yml', proc/'sidebar.yml', *proc.rglob('*.ipynb')]:
        text = f.read_text(encoding='utf-8')
        for old,new in names.items():
            if old!=new: text = text.replace(old, new)
        f.write_text(text, encoding='utf-8')
    return proc

def save_picture(data, folder, known):
    "Write a picture to `folder`, as WebP where that is smaller; its name"
    raw = base64.b64decode(data)
    name = hashlib.sha256(raw).hexdigest()[:16]
    if name not in known:
        im,buf = Image.open(io.BytesIO(raw)),io.BytesIO()
        im.save(buf, 'webp', quality=85, method=6)
        small = buf.tell()<len(raw)
        file = folder/f"{name}.{'webp' if small else im.format.lower()}"
        file.write_bytes(buf.getvalue() if small else raw)
        known[name] = (file.name, im.size)
    return known[name]

def finish_page(page, site, home, known, faults):
    "Move pictures of a page into files, let the tab key reach tables and code that scroll, and name what has no name"
    soup = BeautifulSoup(page.read_text(encoding='utf-8'), 'html.parser')
    up = '../'*(len(page.relative_to(site).parts)-1)
    for img in soup.select('main img'):
        m = re.match(r'data:image/(?:png|jpeg|gif);base64,(.*)', img.get('src', ''), re.S)
        if m:
            name,(w,h) = save_picture(m[1], site/'figures', known)
            img['src'] = f'{up}figures/{name}'
            img['width'],img['height'],img['loading'] = str(w),str(h),'lazy'
        if not img.get('alt'):
            faults.append(f"{page.relative_to(site)}: a picture without alt text "
                f"({img.find_parent(class_='cell')['id'] if img.find_parent(class_='cell') else img['src']})")
    for pre in soup.select('main pre, main .math.display'): pre['tabindex'] = '0'
    for table in soup.select('main table'):
        for attr in ('border','style'): table.attrs.pop(attr, None)
        heads = [o.get_text() for o in table.select('thead th')]
        table['class'] = ['table', *[o for o in table.get('class', []) if o!='table'],
            *(['params'] if heads==['Name','Type','Default','What it is'] else [])]
        for th in table.select('thead th, tbody th'):
            if not th.get_text(strip=True): th.name = 'td'
            elif not th.get('scope'): th['scope'] = 'col' if th.find_parent('thead') else 'row'
        table.wrap(soup.new_tag('div', attrs={'class': 'table-scroll', 'tabindex': '0', 'role': 'group',
            'aria-label': 'Table'}))
    for style in soup.select('main style'): style.decompose()
    for icon in soup.select('i[role=img]:not([aria-label])'):
        del icon['role']
        icon['aria-hidden'] = 'true'
    # a function and a class may differ in capitals alone, which headings' names lose
    for source in soup.select('a.source-link'):
        head = source.find_next(['h2','h3','h4'])
        name = head.get_text()
        if head['id']!=name: head.insert(0, soup.new_tag('span', id=name))
    for a in soup.select(f'a[href^="{home}"]'): a['href'] = up+a['href'].removeprefix(home) # the site may be a folder
    for a in soup.select('main a[href*="#"]'):
        path,_,frag = a['href'].partition('#')
        name = a.get_text().removesuffix('()')
        if name.lower()==frag and name!=frag and '://' not in path and a.code: a['href'] = f'{path}#{name}'
    page.write_text(str(soup).replace(layout.KATEX, f'{up}site_libs/katex').replace('katex/contrib/', 'katex/'),
        encoding='utf-8')

def keep_names_without_docs(site):
    "Take off links that were made of names in backticks which have no entry: what modules share, but users do not call"
    soups = {page: BeautifulSoup(page.read_text(encoding='utf-8'), 'html.parser') for page in site.rglob('*.html')}
    anchors = {page: {o['id'] for o in soup.select('[id]')} for page,soup in soups.items()}
    for page,soup in soups.items():
        links = [a for a in soup.select('main a[href*="#"]') if '://' not in a['href'] and [*a.children]==[a.code]]
        dead = []
        for a in links:
            path,_,anchor = a['href'].partition('#')
            target = (page.parent/path).resolve() if path else page
            if target in anchors and anchor not in anchors[target]: dead.append(a)
        for a in dead: a.unwrap()
        if dead: page.write_text(str(soup), encoding='utf-8')

def as_markdown(page):
    "Write a page once more as Markdown beside it, where module docstrings and llms.txt look for it"
    main = BeautifulSoup(page.read_text(encoding='utf-8'), 'html.parser').select_one('main')
    for o in main.select('nav, .quarto-page-breadcrumbs, .anchorjs-link, style, script'): o.decompose()
    def language(pre):
        return 'python' if 'python' in ' '.join([*pre.get('class', []),
            *(pre.code.get('class', []) if pre.code else [])]).lower() else ''
    text = markdownify(str(main), heading_style='ATX', bullets='-', escape_underscores=False, escape_asterisks=False,
        code_language_callback=language)
    page.with_name(f'{page.name}.md').write_text(re.sub(r'\n{3,}', '\n\n', text).strip()+'\n', encoding='utf-8')

def fonts_of_the_reader(site):
    "Take the web fonts out of the themes, which then use the fonts that are there"
    for css in (site/'site_libs'/'themes').rglob('*.css'):
        css.write_text(re.sub(r'@import url\([^)]*\);?', '', css.read_text(encoding='utf-8')), encoding='utf-8')

def search_from_a_folder(site):
    "Load the search index by a script: a browser fetches nothing for a page that it opened from a folder"
    js = site/'site_libs'/'smalldocs.js'
    text,old = js.read_text(encoding='utf-8'),re.compile(
        r'const r = await fetch\(offset \+ "search.json"\);\s*index = await r.json\(\);')
    new = ('await new Promise((done, fail) => { const s = document.createElement("script"); s.src = offset + '
        '"search.js"; '
           's.onload = done; s.onerror = fail; document.head.append(s); }); index = window.searchIndex;')
    if len(old.findall(text))!=1:
        raise ValueError("smalldocs.js does not load its search index as expected: see search_from_a_folder in "
            "tools/build_docs.py")
    js.write_text(old.sub(lambda _: new, text), encoding='utf-8')
    index = site/'search.json'
    (site/'search.js').write_text(f"window.searchIndex = {index.read_text(encoding='utf-8')};\n", encoding='utf-8')
    index.unlink()

def llms(cfg, site):
    "Write llms.txt: every page, as Markdown, with a line on it"
    out = [f"# {cfg.lib_name}\n", f"> {cfg.description}\n"]
    nav = BeautifulSoup((site/'index.html').read_text(encoding='utf-8'),
        'html.parser').select('#quarto-sidebar a[href$=".html"]')
    base = f'{cfg.doc_host}{cfg.doc_baseurl}/'
    for href in dict.fromkeys(a['href'].removeprefix('./') for a in nav):
        soup = BeautifulSoup((site/href).read_text(encoding='utf-8'), 'html.parser')
        what = soup.select_one('meta[name=description]')
        out.append(f"- [{soup.select_one('h1').get_text(strip=True)}]({base}{href}.md)"
            + (f": {what['content']}" if what else ''))
    (site/'llms.txt').write_text('\n'.join(out)+'\n', encoding='utf-8')

def build(out):
    "Build the site into the folder `out`; its faults"
    cfg = get_config()
    proc = stage(cfg)
    try:
        made = smalldocs.build(proc, quiet=True)
        site = made.out
        (site/'figures').mkdir(exist_ok=True)
        copytree(tools/'katex', site/'site_libs'/'katex', dirs_exist_ok=True)
        known,faults = {},[o for o in made.warnings if not re.search('format-links|commonmark|output-file', o)]
        home = f'{cfg.doc_host}{cfg.doc_baseurl}/'
        for page in sorted(site.rglob('*.html')): finish_page(page, site, home, known, faults)
        keep_names_without_docs(site.resolve())
        for page in sorted(site.rglob('*.html')): as_markdown(page)
        fonts_of_the_reader(site)
        search_from_a_folder(site)
        llms(cfg, site)
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
