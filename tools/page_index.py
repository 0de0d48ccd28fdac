"The index of all public names, as Markdown: a heading for each page, a line for each name."
import inspect,re
from importlib import import_module

from fastai.learner import Learner

front = '''---
title: All names
description: Every function, class and constant that users may import, with the page that explains it
---
'''

def is_of(module, name):
    "Is a public name of a module defined there, not taken from another module?"
    o = getattr(module, name)
    if inspect.isclass(o) or inspect.isroutine(o): return o.__module__==module.__name__
    return re.search(rf'^([\w, ]+,)?{name}(,[\w, ]+)? *=', inspect.getsource(module), re.M) is not None

def names_of(module, syms):
    "What is behind each public name of a module, and behind each method that it adds to `Learner`"
    m = import_module(module)
    own = [k.removeprefix(f'{module}.') for k in syms]
    added = [o for o in own if o.startswith('Learner.') and not o.startswith('Learner._')]
    return {**{o: getattr(m, o) for o in m.__all__ if is_of(m, o)},
        **{o: getattr(Learner, o.removeprefix('Learner.')) for o in added}}

def first_line(o):
    "What a name stands for in a sentence, as Markdown"
    if not (inspect.isclass(o) or inspect.isroutine(o)): return f'A {type(o).__name__} of {len(o)}' if hasattr(o, '__len__') else f'`{o!r}`'
    text = (inspect.getdoc(o) or '').split('\n\n')[0]
    return re.sub(r'([<*\[\]])', r'\\\1', ' '.join(text.split()))

def link_to(name, o, module, syms, page):
    "The page that explains a name, and its entry there if it has one"
    url = syms.get(f'{module}.{name}', (page, None))[0].partition('#')
    has_entry = url[1] and type(o).__name__!='Function' # of fastai, to which a method is added
    source = url[0].removesuffix('.html')+'.ipynb'
    return f'{source}#{name}' if has_entry else source

def index_page(syms, titles):
    "Markdown with a line for each public name; `titles` are the pages in their order: address and title"
    modules = {o.removeprefix('fastai_mix.'): o for o in syms}
    parts = [front]
    for page,title in titles.items():
        module = modules.get(page.removesuffix('.html'))
        names = names_of(module, syms[module]) if module else {}
        if not names: continue
        parts.append(f"## [{title}]({page.removesuffix('.html')}.ipynb)\n")
        for name,o in sorted(names.items(), key=lambda kv: kv[0].lower()):
            parts.append(f'- [`{name}`]({link_to(name, o, module, syms[module], page)}): {first_line(o)}')
        parts.append('')
    return '\n'.join(parts)
