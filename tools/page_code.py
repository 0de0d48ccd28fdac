"The code that a page shows: it runs when copied from the top of the page, and lines that only test are known."
import ast,builtins,posixpath,re
from importlib import import_module

from fastcore.nbio import dict2nb, mk_cell

top_imports = 'from fastai.vision.all import *\nfrom fastai_mix.all import *'
test_functions = {'test','test_close','test_eq','test_eq_type','test_fail','test_fig_exists','test_is','test_ne',
    'test_shuffled','test_stdout','test_warns'}

def parse(source):
    "The statements of a cell; a line that IPython alone understands is none"
    return ast.parse(re.sub(r'^[%!].*', '', source, flags=re.M)).body

def is_import(node): return isinstance(node, (ast.Import, ast.ImportFrom))

def is_test(node):
    "Is a statement an `assert`, or a call such as `test_eq(a, b)`?"
    call = getattr(node, 'value', None)
    return isinstance(node, ast.Assert) or (isinstance(node, ast.Expr) and isinstance(call, ast.Call)
        and getattr(call.func, 'id', None) in test_functions)

def tests_in(source):
    "The lines of each statement of a cell that only tests, counted from 0; of those that share a line with none"
    body = parse(source)
    spans = [range(o.lineno-1, o.end_lineno) for o in body]
    others = {i for o,span in zip(body, spans) if not is_test(o) for i in span}
    return [span for o,span in zip(body, spans) if is_test(o) and others.isdisjoint(span)]

def has_option(cell, option): return re.search(rf'^#\| *{option}', cell.source, re.M)

def shown_cells(nb):
    "The code cells of a processed notebook whose source is shown"
    return [c for c in nb.cells if c.cell_type=='code' and not has_option(c, 'echo: *false')]

def runs(cell): return not has_option(cell, 'eval: *false')

def only_imports(cell):
    body = parse(cell.source)
    return bool(body) and all(map(is_import, body))

def bound_by(node):
    "The names that a node of the syntax tree binds"
    if isinstance(node, ast.Name): return [] if isinstance(node.ctx, ast.Load) else [node.id]
    if isinstance(node, ast.arg): return [node.arg]
    if is_import(node): return [(o.asname or o.name).split('.')[0] for o in node.names]
    name = getattr(node, 'name', None) # of functions, classes, exceptions
    return [name] if isinstance(name, str) else []

def free_names(cells):
    "Names that cells use and do not bind themselves, in order"
    nodes = [o for c in cells for o in ast.walk(ast.Module(parse(c.source), []))]
    bound = {name for o in nodes for name in bound_by(o)}
    used = dict.fromkeys(o.id for o in nodes if isinstance(o, ast.Name) and isinstance(o.ctx, ast.Load))
    return [o for o in used if o not in bound and not hasattr(builtins, o)]

def bindings(nb, module):
    "For each name that an import of a notebook binds: the module it is taken from, and as what; later ones win"
    found = {}
    cells = [c for c in nb.cells if c.cell_type=='code' and '%%' not in c.source]
    for node in (o for c in cells for o in parse(c.source) if is_import(o)):
        if isinstance(node, ast.Import):
            found |= {(o.asname or o.name).split('.')[0]: (None, ast.unparse(ast.Import([o]))) for o in node.names}
            continue
        origin = '.'.join([*module.split('.')[:-node.level], node.module]) if node.level else node.module
        for o in node.names:
            if o.name!='*': found[o.asname or o.name] = (origin, ast.unparse(o))
            else:
                m = import_module(origin)
                found |= {k: (origin, k) for k in getattr(m, '__all__', vars(m))}
    return found

def top_names():
    "What the two imports at the top of a page bring, by name"
    known = {}
    exec(top_imports, known)
    return {k: v for k,v in known.items() if k!='__builtins__'}

def imports_of(source_nb, nb, module, known):
    "The imports that the shown cells of a page need beside those at its top"
    found,own,lines,parts = bindings(source_nb, module),vars(import_module(module)),[],{}
    for name in free_names([c for c in shown_cells(nb) if runs(c) and not only_imports(c)]):
        if name in own and getattr(own[name], '__module__', None)==module: origin,what = module,name
        elif name in found: origin,what = found[name]
        elif name in own: origin,what = module,name
        elif name in known: continue
        else: raise ValueError(f"{module}: the page uses {name}, which nothing on it defines or imports")
        if origin is None and name not in known: lines.append(what)
        if origin is None: continue
        value = getattr(import_module(origin), what.split(' as ')[0])
        if name not in known or known[name] is not value: parts.setdefault(origin, []).append(what)
    return [*sorted(lines), *(wrapped(f'from {k} import ', sorted(v)) for k,v in sorted(parts.items()))]

def wrapped(head, names, width=72):
    "An import of `names`, in brackets over several lines if it is longer than `width`"
    if len(head)+len(', '.join(names))<=width: return head+', '.join(names)
    lines = ['    ']
    for name in names:
        if len(lines[-1])+len(name)+1>width: lines.append('    ')
        lines[-1] += f'{name}, ' if name!=names[-1] else name
    return f'{head}(\n' + '\n'.join(o.rstrip() for o in lines) + ')'

def put_imports_on_top(source_nb, nb, module, known):
    "Have the first cell that a page shows import all that the others need; cells that only import go"
    running = [c for c in shown_cells(nb) if runs(c)]
    imports = [c for c in running if only_imports(c)]
    if len(imports)==len(running): return
    code = '\n'.join([top_imports, *imports_of(source_nb, nb, module, known)])
    nb.cells.insert(nb.cells.index(running[0]), mk_cell(code))
    nb.cells[:] = [c for c in nb.cells if c not in imports]

def label_cells(nb):
    "Give the cells that take long, and those that are not run at all, an id which the page keeps"
    for i,c in enumerate(nb.cells):
        if c.cell_type!='code': continue
        kind = 'slow' if has_option(c, 'slow') else None if runs(c) else 'not-run'
        if kind: c.source = f'#| label: {kind}-{i}\n{c.source}'

def lesson_cell(c, page, home):
    "A cell of a page as one that runs anywhere: links lead to the site at `home`, code that is not run becomes text"
    folder = posixpath.dirname(page)
    def link(m): return f"]({home}{posixpath.normpath(posixpath.join(folder, m[1]))}.html{m[2] or ''})"
    if c.cell_type=='markdown':
        return mk_cell(re.sub(r'\]\((?!https?:)([^)#\s]+)\.ipynb(#[^)]*)?\)', link, c.source), 'markdown')
    code = re.sub(r'^#\|.*\n?', '', c.source, flags=re.M)
    return mk_cell(code) if runs(c) else mk_cell(f'```python\n{code.strip()}\n```', 'markdown')

def lesson(nb, page, home, repo):
    "A notebook of what a page shows, without outputs; its first code installs the package on Colab; None without code"
    title = re.search(r"""^title: *['"]?(.*?)['"]?$""", nb.cells[0].source, re.M)
    shown = shown_cells(nb)
    kept = [c for c in nb.cells if c in shown or (c.cell_type=='markdown' and not c.source.startswith('<!-- WARN'))]
    if not any(c.cell_type=='code' and runs(c) for c in kept): return
    cells = [mk_cell(f'# {title[1] if title else "fastai_mix"}', 'markdown'),
        mk_cell(f'! [ -e /content ] && pip install -Uqq git+{repo} # on Colab, which lacks the package')]
    cells += [lesson_cell(c, page, home) for c in kept]
    for i,c in enumerate(cells): c['id'] = f'cell-{i}' # or each build would draw others
    kernel = dict(display_name='Python 3', language='python', name='python3')
    return dict2nb(dict(cells=cells, metadata=dict(kernelspec=kernel), nbformat=4, nbformat_minor=5))
