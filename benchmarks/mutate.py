"How files of a run are changed at random: JSON, CSV, safetensors with and without their checksum, and folders."
import csv,hashlib,io,json,pickle,shutil
from copy import deepcopy
from pathlib import Path

from fastai.basics import L

from fastai_mix.checkpoint import load_state, save_state
from fastai_mix.files import write_json

suffixes = ('.json','.csv','.safetensors')

odd_values = [None, True, False, -1, 0, 1, 7, 2**70, 10**30, -1e308, float('nan'), float('inf'), '', 'x', [], {}, [1],
    {'a':1}, [[]], '\ud800', '\x1b[2J\n', 'hf-hub:timm/resnet18', 'local-dir:/tmp', '../group0_net0.safetensors',
    '/etc/passwd', 'path', '__class__', '=1+1']

# JSON

def node_paths(tree, path=()):
    "The path of keys and indices to each node of a tree of JSON"
    yield path
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key,child in children: yield from node_paths(child, (*path,key))

def change_tree(tree, rng):
    "Drop, rename, repeat or replace a node; returns the changed tree and what was done"
    tree = deepcopy(tree)
    paths = [p for p in node_paths(tree) if p]
    depth = rng.choice(sorted({len(p) for p in paths})) # few nodes are near the root
    path = rng.choice([p for p in paths if len(p)==depth])
    parent = tree
    for key in path[:-1]: parent = parent[key]
    key,action = path[-1],rng.choice(['drop','rename','repeat','value','value','value','number'])
    if action=='drop': del parent[key]
    elif action=='rename' and isinstance(parent, dict):
        parent[rng.choice(['x', f'{key}_', 'theta', 'path', 'most', 'learn'])] = parent.pop(key)
    elif action=='repeat' and isinstance(parent, list): parent.insert(key, parent[key])
    elif action=='number' and type(parent[key]) in (int,float):
        parent[key] = rng.choice([-parent[key]-1, parent[key]+1, parent[key]*1000+.5])
    else: parent[key] = rng.choice(odd_values)
    return tree,f"{action} {'/'.join(map(str, path))[:60]}"

def nested_lists(depth=20_000): return '['*depth+']'*depth

def change_text(text, rng):
    "Cut, nest, repeat a name, or write in another encoding"
    action,data = rng.choice(['cut','nest','twin','utf-16','latin','bom','empty','more']),text.encode()
    if action=='cut': data = data[:rng.randrange(len(data))]
    elif action=='nest': data = nested_lists().encode()
    elif action=='twin': data = b'{"vocab": ["x"], "x": 1, "x": 2, '+data[1:]
    elif action=='utf-16': data = text.encode('utf-16')
    elif action=='latin': data = data.replace(b'a', 'ä'.encode('latin-1'), 1)
    elif action=='bom': data = b'\xef\xbb\xbf'+data
    elif action=='empty': data = b''
    elif action=='more': data += b' {}'
    return data,action

def flip_bit(data, rng, position=None):
    data = bytearray(data)
    i = rng.randrange(len(data)) if position is None else position
    data[i] ^= 1<<rng.randrange(8)
    return bytes(data),f'bit of byte {i}'

def change_json(text, rng, form):
    "The changed bytes of a JSON file, and what was done"
    if rng.random()<.25: return change_text(text, rng)
    if form=='signed' and rng.random()<.3: return flip_bit(text.encode(), rng)
    tree,action = change_tree(json.loads(text), rng)
    if form=='signed anew' and isinstance(tree, dict) and 'sha256' in tree:
        del tree['sha256']
        try: tree['sha256'] = hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()
        except (TypeError,RecursionError): pass
    return json.dumps(tree, indent=1).encode(),action

# CSV

def change_cells(rows, rng):
    "Drop, repeat, rename or replace a row, a column or a cell of a table"
    rows = [list(row) for row in rows]
    i,j = rng.randrange(1, len(rows)),rng.randrange(len(rows[0]))
    action = rng.choice(['drop row','repeat row','swap rows','drop column','rename column','long row','cell','cell',
        'cell'])
    if action=='drop row': del rows[i]
    elif action=='repeat row': rows.insert(i, rows[i])
    elif action=='swap rows': rows[i],rows[1] = rows[1],rows[i]
    elif action=='drop column': rows = [row[:j]+row[j+1:] for row in rows]
    elif action=='rename column': rows[0][j] = rng.choice(['x', 'id', rows[0][-1], ''])
    elif action=='long row': rows[i] += ['1','2']
    else: rows[i][j] = rng.choice(['', 'x', 'nan', 'inf', '-1', '1e999', '=1+1', '9'*400, 'a\nb', '\x1b[2J'])
    return rows,f'{action} {i},{j}'

def change_csv(data, rng):
    "The changed bytes of a CSV file, and what was done"
    action = rng.choice(['bit','cut','empty','utf-16','latin','bom','zeros','quote']+['cells']*8)
    if action=='bit': return flip_bit(data, rng)
    if action=='cut': return data[:rng.randrange(len(data))],action
    if action=='empty': return b'',action
    if action=='utf-16': return data.decode().encode('utf-16'),action
    if action=='latin': return data.replace(b'a', 'ä'.encode('latin-1'), 1),action
    if action=='bom': return b'\xef\xbb\xbf'+data,action
    # as a disk that lost power leaves it
    if action=='zeros': return data[:len(data)//2]+bytes(len(data)-len(data)//2),action
    if action=='quote': return data[:len(data)//2]+b'"'+data[len(data)//2:],action
    rows,action = change_cells(list(csv.reader(io.StringIO(data.decode()))), rng)
    text = io.StringIO()
    csv.writer(text, lineterminator='\n').writerows(rows)
    return text.getvalue().encode(),action

# safetensors

class Code:
    "Writes a file when it is unpickled"
    def __init__(self, marker): self.marker = marker
    def __reduce__(self): return Path.write_text, (self.marker, 'run')

def split_tensors(data):
    "Header and body of a safetensors file"
    n = int.from_bytes(data[:8], 'little')
    return json.loads(data[8:8+n]),data[8+n:]

def join_tensors(head, body, sign=False):
    "A safetensors file; with `sign` its checksum is made anew"
    meta = head.get('__metadata__')
    if sign and isinstance(meta, dict): head = {**head, '__metadata__': {**meta, 'sha256':'0'*64}}
    text = json.dumps(head, separators=(',',':')).encode()
    data = len(text).to_bytes(8, 'little')+text+body
    if not sign: return data
    return data.replace(b'"sha256":"'+b'0'*64, b'"sha256":"'+hashlib.sha256(data).hexdigest().encode(), 1)

def change_header(head, rng):
    "Change the header of a safetensors file, or a text in it"
    texts = [k for k in head.get('__metadata__', {}) if k!='sha256']
    if not texts or rng.random()<.33: return change_tree(head, rng)
    key = rng.choice(texts)
    if rng.random()<.2:
        data,action = change_text(head['__metadata__'][key], rng)
        head['__metadata__'][key] = data.decode('latin-1')
    else:
        tree,action = change_tree(json.loads(head['__metadata__'][key]), rng)
        head['__metadata__'][key] = json.dumps(tree)
    return head,f'text: {action}'

def change_tensors(data, rng, form, marker):
    "The changed bytes of a safetensors file, and what was done"
    head,body = split_tensors(data)
    actions = ['bit','bit','cut','more','header','header','length','pickle','empty','data']
    action = rng.choice(actions + ['header']*4*(len(head.get('__metadata__', {}))>1))
    if action=='bit': return flip_bit(data, rng)
    if action=='cut': return data[:rng.randrange(len(data))],action
    if action=='more': return data+b'\0'*rng.randrange(1, 99),action
    if action=='length':
        return rng.choice([0, 1, 2**31, 2**63-1, 2**64-1]).to_bytes(8, 'little')+data[8:],action
    if action=='pickle': return pickle.dumps({'a':Code(marker)}),action
    if action=='empty': return b'',action
    if action=='data': body = bytes(rng.randrange(256) for _ in body)
    else: head,action = change_header(head, rng)
    return join_tensors(head, body, form=='signed anew'),action

def as_lists(o):
    "`o` with lists in the place of tuples and `L`"
    if isinstance(o, dict): return {k: as_lists(v) for k,v in o.items()}
    return [as_lists(v) for v in o] if isinstance(o, (list,tuple,L)) else o

def change_state(file, rng):
    "Change what a checkpoint holds, and write it as the package does"
    state = load_state(file)
    learner = state['learner']
    parents = [(state,k) for k in state if k!='learner']
    parent,key = rng.choice(parents + 2*[(learner,k) for k in ('learn','cbs','opt','trained','grads','model')])
    if rng.random()<.2:
        key,parent[key] = rng.choice([('theta',.9), ('path','/tmp'), ('x',1)])
        action = f'more {key}'
    else:
        tree,action = change_tree({key:as_lists(parent[key])}, rng)
        del parent[key]
        parent.update(tree)
    save_state(file, state)
    return action

# folders

def change_ensemble_folder(folder, rng):
    "A network that is gone, a link, a folder, or another one"
    first,second = sorted(folder.glob('group0_net*.safetensors'))
    action = rng.choice(['gone','link','folder','another','linked folder'])
    if action=='another': shutil.copy(second, first)
    else:
        first.rename(folder.parent/'elsewhere')
        if action=='link': first.symlink_to(folder.parent/'elsewhere')
        if action=='folder': first.mkdir()
        if action=='linked folder':
            (folder/'x').symlink_to(folder.parent)
            ensemble = json.loads((folder/'ensemble.json').read_text())
            ensemble['groups'][0]['files'][0] = 'x/elsewhere'
            del ensemble['sha256']
            (folder/'ensemble.json').write_text(json.dumps(ensemble))
    return first,action

def change_run_folder(folder, rng):
    "A file that is gone, a link to nothing, a folder, or a file of the same kind"
    file = rng.choice(files_in(folder))
    action = rng.choice(['gone','dead link','folder','another'])
    others = [f for f in files_in(folder) if f.suffix==file.suffix and f!=file]
    if action=='another' and others: shutil.copy(rng.choice(others), file)
    else:
        file.unlink()
        if action=='dead link': file.symlink_to(folder.parent/'nowhere')
        if action=='folder': file.mkdir()
    return file,action

def files_in(folder): return sorted(f for f in folder.rglob('*') if f.suffix in suffixes)

def without_checksums(folder):
    "Take the checksums out, as older versions wrote files"
    for file in folder.rglob('*.safetensors'):
        head,body = split_tensors(file.read_bytes())
        head['__metadata__'].pop('sha256')
        file.write_bytes(join_tensors(head, body))
    for file in folder.rglob('*.json'):
        o = json.loads(file.read_text())
        for k in ('sha256','checksums'): o.pop(k, None)
        for group in o.get('groups', []): group.pop('sha256')
        file.write_text(json.dumps(o))

def has_checksum(file):
    "Is there a checksum in the file, or in the `fold.json` beside it?"
    fold = file.parent/'fold.json'
    return b'"sha256"' in file.read_bytes() or fold.exists() and f'"{file.name}": "' in fold.read_text()

def sign_fold(folder):
    "Make the checksums of a fold anew"
    fold = json.loads((folder/'fold.json').read_text())
    for name in fold.get('checksums', {}):
        if name.endswith('.csv'): fold['checksums'][name] = hashlib.sha256((folder/name).read_bytes()).hexdigest()
    fold.pop('sha256')
    write_json(folder/'fold.json', fold)

def change_file(file, form, rng, marker):
    "Change one file; returns what was done"
    if file.name.startswith('fit') and form=='signed anew' and rng.random()<.7: return change_state(file, rng)
    if file.suffix=='.json': data,action = change_json(file.read_text(), rng, form)
    elif file.suffix=='.csv': data,action = change_csv(file.read_bytes(), rng)
    else: data,action = change_tensors(file.read_bytes(), rng, form, marker)
    file.write_bytes(data)
    if form=='signed anew' and file.suffix=='.csv': sign_fold(file.parent)
    return action
