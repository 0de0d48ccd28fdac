"What a page needs beyond what smalldocs writes: code that wraps, tables that stack, names for what has none."
import re
from html import escape

from bs4 import BeautifulSoup

from page_code import tests_in

# words of prose that are names in some library as well
never_linked = {'run','test','maps','merge','splitter','Module','stop','predict','review','card','compare','oversample'}

def up(page, site): return '../'*(len(page.relative_to(site).parts)-1)

def nodes(html): return list(BeautifulSoup(html, 'html.parser').children)

def split_lines(code):
    "The lines of highlighted code; a span over several lines becomes one on each"
    lines,opened = [''],[]
    for part in re.split(r'(<[^>]+>|\n)', code):
        if part=='\n':
            lines[-1] += '</span>'*len(opened)
            lines.append(''.join(opened))
            continue
        if part.startswith('</'): opened.pop()
        elif part.startswith('<'): opened.append(part)
        lines[-1] += part
    return lines

def line_span(line, is_test):
    "A line of code, which wraps to its own indent and four characters more"
    text = re.sub('<[^>]+>', '', line)
    n = len(text)-len(text.lstrip(' '))
    indent = f' style="--indent:{n}ch"' if n else ''
    return f'<span class="line{" test" if is_test else ""}"{indent}>{line}\n</span>'

def fold_tests(outer, n, only_tests):
    "Fold `n` tests of a block of code, which a button shows"
    outer['class'] = [*outer['class'], 'folded', *(['only-tests'] if only_tests else [])]
    outer.extend(nodes('<button class="tests-button" type="button" aria-expanded="false">'
        f'{n} test{"s" if n>1 else ""}</button>'))

def keep_options(soup):
    "Have options of commands, such as `--sample`, stay on one line: browsers break them after their hyphens"
    for code in soup.select('main pre.sh > code, main :not(pre) > code'):
        html = code.decode_contents()
        kept = re.sub(r'(?<!\S)--[a-z][\w-]*', r'<span class="option">\g<0></span>', html)
        if kept==html: continue
        code.clear()
        code.extend([*nodes(f'<pre>{kept}</pre>')[0].children])

def keep_intervals(soup):
    "Have a figure with its error, or the two ends of an interval, stay on one line of a cell of a table"
    n = r'[-+−]?[\d.,]*\d%?'
    interval = rf'{n} ± {n}|\[{n}[,;–] ?{n}\]'
    for text in soup.select_one('main').find_all(string=re.compile(r' ± |\[')):
        if text.find_parent(['td','th']) is None or text.find_parent('code'): continue
        html = re.sub(interval, r'<span class="interval">\g<0></span>', escape(text))
        if '<span' in html: text.replace_with(*nodes(html))

def wrap_code(soup):
    "Put each line of code into a span, fold those that only test, and name the button that copies the rest"
    for code in soup.select('main pre.sourceCode > code'):
        pre,outer = code.parent,code.find_parent(class_='code-copy-outer-scaffold')
        tests = tests_in(code.get_text()) if {'cell-code','python'}<=set(pre['class']) else []
        tested = {i for span in tests for i in span}
        lines = split_lines(code.decode_contents().rstrip('\n'))
        code.clear()
        spans = ''.join(line_span(o, i in tested) for i,o in enumerate(lines))
        code.extend([*nodes(f'<pre>{spans}</pre>')[0].children]) # outside of it the parser would drop indents
        if outer is None: continue
        if pre.find_parent(class_='cell-output-markdown'): # a signature, which nobody runs
            pre['class'] = [*pre['class'], 'signature']
            outer.button.decompose()
        else: outer.button['aria-label'] = outer.button['title']
        if tests: fold_tests(outer, len(tests), not [o for i,o in enumerate(lines) if i not in tested and o.strip()])

def mark_slow(soup):
    "Say above a cell that takes long that it does"
    for cell in soup.select('main .cell[id^=slow-]'):
        cell['class'] = [*cell['class'], 'slow']
        cell.insert(0, nodes('<p class="slow-note">Takes minutes. The output is that of a run before.</p>')[0])

def narrowest(rows):
    "The width in characters below which a table of texts cannot shrink: the longest word of each column"
    columns = zip(*(row for row in rows if len(row)==max(map(len, rows))))
    return sum(max((len(w) for text in column for w in text.split()), default=0)+2 for column in columns)

def column_heads(table):
    "The text over each column, of all rows of the head"
    heads = []
    for row in table.select('thead tr'):
        texts = [o.get_text(' ', strip=True) for o in row(['td','th'], recursive=False)
            for _ in range(int(o.get('colspan', 1)))]
        heads += ['']*(len(texts)-len(heads))
        heads = [f'{head} {text}'.strip() for head,text in zip(heads, texts)]
    return heads

def label_table(table, is_params):
    "Give each cell the head of its column and its role, for narrow screens, where a row becomes a card"
    heads = column_heads(table)
    table['class'] = [*table.get('class', []), 'stack']
    table['role'] = 'table'
    for part in table.select('thead, tbody'): part['role'] = 'rowgroup'
    for row in table.select('tr'):
        row['role'] = 'row'
        for i,cell in enumerate(row(['td','th'], recursive=False)):
            in_head = cell.find_parent('thead') is not None
            cell['role'] = 'columnheader' if in_head else 'rowheader' if cell.name=='th' else 'cell'
            if not in_head and not is_params and i<len(heads) and heads[i]: cell['data-label'] = heads[i]

def finish_tables(soup):
    "Name the heads of tables for readers of screens, and prepare wide ones for phones; tables without rows go"
    for table in soup.select('main table'):
        if not table.select('td, tbody th'):
            table.decompose()
            continue
        for attr in ('border','style'): table.attrs.pop(attr, None)
        rows = [[o.get_text(' ', strip=True) for o in row(['td','th'], recursive=False)] for row in table('tr')]
        is_params = rows[0]==['Name','Type','Default','What it is']
        classes = [o for o in table.get('class', []) if o!='table']
        table['class'] = ['table', *classes, *(['params'] if is_params else [])]
        for th in table.select('thead th, tbody th'):
            if not th.get_text(strip=True): th.name = 'td'
            elif not th.get('scope'): th['scope'] = 'col' if th.find_parent('thead') else 'row'
        if narrowest(rows)>70: table['class'].append('wide')
        if is_params or narrowest(rows)>36: label_table(table, is_params)
        table.wrap(soup.new_tag('div', attrs={'class': 'table-scroll', 'tabindex': '0', 'role': 'group',
            'aria-label': 'Table'}))

def text_between(head, end):
    "What a page says after a heading and before `end`, or to its end; a picture or a table counts as text"
    text = ''
    for o in head.find_all_next(True):
        if o is end or 'page-navigation' in o.get('class', []): break
        if o.name in ('img','svg','pre','table'): return o.name
        if 'source-link' not in o.get('class', []): text += ''.join(o.find_all(string=True, recursive=False))
    return text.strip()

def drop_empty_headings(soup):
    "Take out headings without text, and those with nothing before the next heading of their rank or above"
    heads = soup.select('main h2, main h3, main h4')
    for head,following in zip(heads, [*heads[1:], None]):
        is_last = following is None or following.name<=head.name
        if not head.get_text(strip=True) or (is_last and not text_between(head, following)): drop_heading(soup, head)

def drop_heading(soup, head):
    "Take a heading out, with its line of the contents, and its section if nothing else is in it"
    section = head.find_parent('section')
    for a in soup.select('#TOC a'):
        if a['href'].removeprefix('#') in (head.get('id'), head.get('data-anchor-id')): a.find_parent('li').decompose()
    head.decompose()
    if section is not None and not section.find(True): section.decompose()

def unlink_words(soup):
    "Take off the links that were made of common words, and of the names of parameters"
    names = soup.select('table.params td:first-child a')
    words = [a for a in soup.select('main a[href]') if [*a.children]==[a.code] and a.get_text() in never_linked]
    for a in {id(a): a for a in (*names, *words)}.values(): a.unwrap()

def shorten_crumbs(soup):
    "Say the name of a section once above a page: 'Benchmarks', 'Time' and not 'Benchmarks', 'Benchmarks: time'"
    for last in soup.select('.breadcrumb-item:last-child a'):
        section = last.find_parent('li').find_previous_sibling('li')
        if section is None: continue
        name,title = section.get_text(),last.get_text()
        if title==name: section.decompose()
        elif title.startswith(f'{name}: '): last.string = title.removeprefix(f'{name}: ').capitalize()

def add_skip_link(soup):
    soup.body.insert(0, nodes('<a class="skip-link" href="#quarto-document-content">Skip to content</a>')[0])
    soup.select_one('main')['tabindex'] = '-1'

def shorten_contents(soup):
    "Name a method in the contents beside a page by its own name, which follows that of its class"
    for a in soup.select('#TOC a.nav-link'):
        if re.fullmatch(r'[A-Z]\w*\.\w+', a.get_text()): a.string = '.'+a.get_text().split('.')[1]

def add_contents(soup):
    "Repeat the contents of a page above its text, for screens without room beside it"
    listed,title = soup.select_one('#TOC > ul'),soup.select_one('#title-block-header')
    if listed is None or title is None: return
    text = re.sub(r' (id|class|data-scroll-target)="[^"]*"', '', str(listed))
    title.insert_after(nodes(f'<details class="contents"><summary>On this page</summary>{text}</details>')[0])

def add_links(soup, links):
    "Put links about the page itself, (text, address) each, under its title"
    title = soup.select_one('#title-block-header')
    if title is None or not links: return
    items = ''.join(f'<a href="{href}"{" download" if href.endswith(".ipynb") and "://" not in href else ""}>{text}</a>'
        for text,href in links)
    title.extend(nodes(f'<p class="page-links">{items}</p>'))

def name_icons(soup):
    "Icons stand beside words, or in buttons that have names; readers of screens skip them"
    for icon in soup.select('i[role=img]:not([aria-label])'):
        del icon['role']
        icon['aria-hidden'] = 'true'

def lighten_sidebar(soup):
    "Take out elements that wrap an entry of the sidebar and nothing else; the sidebar is on every page"
    for o in soup.select('#quarto-sidebar .sidebar-item:not(.sidebar-item-section) .sidebar-item-container'): o.unwrap()
    for o in soup.select('#quarto-sidebar .menu-text'): o.unwrap()

def add_meta(soup, address, version):
    "Say to those who link to the page where it is, and to readers for which version it is"
    soup.head.extend(nodes(f'<link rel="canonical" href="{address}"><meta property="og:url" content="{address}">'
        '<meta property="og:type" content="website">'))
    for brand in soup.select('.navbar-title'): brand.extend(nodes(f'<small class="version">{version}</small>'))

def root_links(soup, base):
    "Have a page that is shown at any address find what belongs to it"
    for o in soup.select('[href], [src]'):
        attr = 'href' if o.has_attr('href') else 'src'
        if not re.match(r'\w+:|#|/', o[attr]): o[attr] = base+o[attr]
    for o in soup.select('meta[name="smalldocs:offset"]'): o['content'] = base
