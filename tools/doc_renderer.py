"How the docs show a function or class: its signature, what it is for, and a table of its parameters."
import ast,inspect,re,types
from functools import cached_property
from inspect import Parameter
from typing import Union, get_args, get_origin

from fastcore.docments import DocmentText
from IPython.core.interactiveshell import InteractiveShell
from nbdev.config import get_config
from nbdev.doclinks import NbdevLookup
from nbdev.process import Processor
from nbdev import showdoc

# nbdev keeps a shell for each notebook; at the end of a process each would collect all garbage anew
InteractiveShell.atexit_operations = lambda self: None

top = get_config().config_path

def type_name(anno):
    "Markdown for a type: names in backticks, which nbdev makes links of, with ' or ' between those of a union"
    if anno is Parameter.empty or anno is None: return ''
    if get_origin(anno) in (Union, types.UnionType): return ' or '.join(type_name(o) for o in get_args(anno))
    if anno is type(None): return '`None`'
    if isinstance(anno, str): return ' or '.join(f'`{o.strip()}`' for o in anno.split('|'))
    name = inspect.formatannotation(anno) if get_origin(anno) else getattr(anno, '__name__', str(anno))
    return f"`{name.replace('typing.', '').replace('collections.abc.', '')}`"

def default_name(o, known):
    "A default value as its author wrote it: a function or a constant of the module by its name"
    if isinstance(o, (list,dict)) or callable(o):
        return next((k for k,v in known.items() if v is o), None) or getattr(o, '__name__', None) or repr(o)
    return repr(o)

def cell(s): return ' '.join(str(s or '').split()).replace('|', r'\|')

def stars(kind): return {Parameter.VAR_POSITIONAL: '*', Parameter.VAR_KEYWORD: '**'}.get(kind, '')

def signature(name, params, defaults, width=76):
    "`name(a, b=1)`, broken into lines of at most `width`"
    args = [stars(v.get('kind'))+k+(f'={defaults[k]}' if k in defaults else '') for k,v in params.items()]
    lines,pre = [f'{name}('],' '*(len(name)+1)
    for i,a in enumerate(args):
        a += ', ' if i<len(args)-1 else ''
        if len(lines[-1]+a.rstrip())>width and lines[-1].strip(): lines.append(pre if len(pre)<20 else '    ')
        lines[-1] += a
    return '\n'.join(o.rstrip() for o in lines)+')'

def kwargs_doc(fn):
    "The comment on `**kwargs`, which docments leave out"
    try: m = re.search(r'\*\*\w+\s*#\s*(.*)', inspect.getsource(inspect.unwrap(fn)))
    except (OSError, TypeError): return None
    return m and m[1]

def definition_line(source, name):
    "The line of `source` at which a function, class, method or patched method `name` begins, with its decorators"
    *owner,name = name.split('.')
    def named(body): return [o for o in body if getattr(o, 'name', None)==name]
    body = ast.parse(source).body
    found = named(body)
    if owner:
        inside = [m for o in body if isinstance(o, ast.ClassDef) and o.name==owner[0] for m in named(o.body)]
        found = inside or [o for o in found if isinstance(o, ast.FunctionDef) and o.args.args
            and (a := o.args.args[0].annotation) and owner[0] in re.findall(r'\w+', ast.unparse(a))]
    return min((o.lineno for o in (*found[0].decorator_list,found[0])), default=None) if found else None

class TableRenderer(showdoc.BasicMarkdownRenderer):
    "A heading, the source, the signature, the docstring, and a row for each parameter and for what is returned"
    def __init__(self, sym, *args, **kwargs):
        super().__init__(sym, *args, **kwargs)
        self.is_property = isinstance(sym, (property,cached_property)) # `self.sym` is the function behind it

    def source(self):
        "Link to the lines of the module that the notebook is exported to"
        url = NbdevLookup().code(self.fn)
        if not url: return ''
        url = url.split('#')[0]
        line = definition_line((top/url.split('/blob/')[1].split('/', 1)[1]).read_text(encoding='utf-8'), self.nm)
        url += f'#L{line}' if line else ''
        return f'[source]({url}){{.source-link aria-label="Source of {self.nm}"}}\n\n'

    def _repr_markdown_(self):
        # events, which a Learner calls; an empty text would be shown as None
        if re.search(r'\.(before|after)_\w+$', self.nm): return '<!-- -->'
        head = f"---\n\n{self.source()}{'#'*self.title_level} {self.nm}\n\n"
        doc = self.docs or ''
        if not isinstance(self.dm, DocmentText): return f'{head}{doc}'
        params = {k: v for k,v in self.dm.dm.items() if k not in ('return','self') and (k!='cls' or v.get('docment'))}
        ret = self.dm.dm.get('return') or {}
        fn = self.sym.__init__ if inspect.isclass(self.sym) else self.sym
        known = getattr(inspect.unwrap(fn), '__globals__', {})
        defaults = {k: default_name(v['default'], known) for k,v in params.items()
            if v['default'] is not Parameter.empty}
        call = self.nm if self.is_property else signature(self.nm, params, defaults)
        head += f'```python\n{call}\n```\n\n{doc}\n\n'
        rows = [(f'`{stars(v.get("kind"))}{k}`', type_name(v.get('anno', Parameter.empty)),
            f'`{defaults[k]}`' if k in defaults else '',
            v.get('docment') or (kwargs_doc(fn) if v.get('kind')==Parameter.VAR_KEYWORD else None))
            for k,v in params.items()]
        # what a class takes that is written in C, `*args` and `**kwargs`, says nothing
        rows = [o for o in rows if o[-1] or not o[0].startswith('`*')]
        anno = ret.get('anno', Parameter.empty)
        if ret.get('docment') or anno not in (Parameter.empty, None):
            rows.append(('**returns**', type_name(anno), '', ret.get('docment')))
        if not rows: return head
        lines = ['| Name | Type | Default | What it is |','|---|---|---|---|']
        lines += ['| '+' | '.join(map(cell, row))+' |' for row in rows]
        return head + '\n'.join(lines) + '\n\n'

class tables(Processor):
    "Have `show_doc` use `TableRenderer` while the docs are made; a notebook that somebody runs needs nothing of this"
    def __init__(self, nb):
        super().__init__(nb)
        showdoc.BasicMarkdownRenderer = TableRenderer
