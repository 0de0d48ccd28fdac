"No decision that was confirmed is lost, whatever a name is and wherever a write ends; tables are corrected exactly."
import os,threading
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from fastai_mix.decisions import DecisionFile, apply_decisions, count_decisions, read_decisions, trusted_ids

@pytest.fixture(autouse=True)
def quick_disk(request, monkeypatch):
    "No waiting for the disk, where a test does not ask about it"
    if 'monkeypatch' not in request.node.function.__code__.co_varnames: monkeypatch.setattr(os, 'fsync', lambda fd: None)

names = st.text(st.characters(codec='utf-8', exclude_characters='\0'), min_size=1, max_size=8)
made = st.lists(st.tuples(st.sampled_from(['a','b,"','c\n']), st.sampled_from(['predicted','drop','unsure','undo'])), max_size=12)

def replay(steps):
    "The decision in force for each name, by a plain list of them"
    stacks = {}
    for name,decision in steps:
        if decision!='undo': stacks.setdefault(name, []).append(decision)
        elif stacks.get(name): stacks[name].pop()
    return {k: v[-1] for k,v in stacks.items() if v}

def fill(file, steps):
    decisions = DecisionFile(file)
    for name,decision in steps:
        if decision=='undo' and not decisions.get(name, 'g'): continue
        decisions.add(name, 'g', decision, 'new' if decision=='predicted' else '')
    return decisions

def in_force(table): return dict(zip(table.id, table.decision))

@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(made)
def test_last_decision_counts_and_undo_takes_it_back(tmp_path_factory, steps):
    file = tmp_path_factory.mktemp('d')/'decisions.csv'
    decisions = fill(file, steps)
    assert in_force(decisions.table)==replay(steps) and len(decisions)==len(replay(steps))
    assert in_force(DecisionFile(file).table)==replay(steps)
    if file.exists(): assert in_force(read_decisions(file))==replay(steps)

@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names, names, names)
def test_any_name_comes_back(tmp_path_factory, id, label, new):
    file = tmp_path_factory.mktemp('d')/'decisions.csv'
    DecisionFile(file).add(id, label, 'predicted', new)
    row = DecisionFile(file).get(id, label)
    assert (row['id'],row['given'],row['label'])==(id,label,new)

def test_bytes_that_are_no_text(tmp_path):
    name = os.fsdecode(b'leaf\xff.jpg')
    DecisionFile(tmp_path/'d.csv').add(name, 'rust', 'drop')
    assert DecisionFile(tmp_path/'d.csv').get(name, 'rust')['decision']=='drop'

@pytest.mark.parametrize('last', ['d','d\n"',',,"\n'])
def test_file_cut_at_any_byte(tmp_path, last):
    file = tmp_path/'d.csv'
    decisions,ends = DecisionFile(file),[]
    for i,name in enumerate(['a','b\n,"',last]):
        decisions.add(name, 'g', 'drop')
        ends.append(file.stat().st_size)
    whole = file.read_bytes()
    for n in range(len(whole)+1):
        file.write_bytes(whole[:n])
        cut = DecisionFile(file)
        assert len(cut)==sum(end<=n for end in ends)
        cut.add('again', 'g', 'unsure')
        assert len(DecisionFile(file))==len(cut)==sum(end<=n for end in ends)+1

def test_other_files_are_left_alone(tmp_path):
    for text in ('id,label\na,b\n','words','id,given,decision,label,time\na,b,burn,,\n','id,given,decision,label,time\na,b\n'):
        (tmp_path/'d.csv').write_text(text)
        with pytest.raises(ValueError, match='d.csv is'): DecisionFile(tmp_path/'d.csv')
        assert (tmp_path/'d.csv').read_text()==text
    with pytest.raises(ValueError, match='no such file'): read_decisions(tmp_path/'none.csv')

def test_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    decisions = DecisionFile(tmp_path/'d.csv')
    decisions.add('a', 'g', 'drop')
    before,write = (tmp_path/'d.csv').read_bytes(),os.write
    monkeypatch.setattr(os, 'write', lambda fd,data: write(fd, data[:5]))
    with pytest.raises(OSError, match='full'): decisions.add('b', 'g', 'drop')
    monkeypatch.undo()
    monkeypatch.setattr(os, 'fsync', lambda fd: (_ for _ in ()).throw(OSError('no')))
    with pytest.raises(OSError, match='no'): decisions.add('b', 'g', 'drop')
    monkeypatch.undo()
    assert (tmp_path/'d.csv').read_bytes()==before and decisions.get('b', 'g') is None

def test_synced_before_it_is_told(tmp_path, monkeypatch):
    decisions,synced,fsync = DecisionFile(tmp_path/'d.csv'),[],os.fsync
    decisions.add('first', 'g', 'drop') # a new file has its folder synced too
    monkeypatch.setattr(os, 'fsync', lambda fd: (fsync(fd), synced.append(decisions.get('a', 'g'))))
    decisions.add('a', 'g', 'drop')
    assert synced and synced[0] is None and decisions.get('a', 'g')

def test_threads(tmp_path):
    decisions = DecisionFile(tmp_path/'d.csv')
    def work(k):
        for i in range(20): decisions.add(f'{k} {i}', 'g', 'drop')
    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for o in threads: o.start()
    for o in threads: o.join()
    assert len(read_decisions(tmp_path/'d.csv'))==80

@pytest.mark.parametrize('args,message', [(('a','g','burn'),"'predicted', 'keep'"), (('a','g','other'),'a class'),
    (('a','g','keep','h'),"the given one"), (('a','g','drop','h'),'none'), (('a','g','undo'),'no decision to undo')])
def test_wrong_decisions(tmp_path, args, message):
    with pytest.raises(ValueError, match=message): DecisionFile(tmp_path/'d.csv').add(*args)
    assert not (tmp_path/'d.csv').exists()

def table(*rows): return pd.DataFrame(rows, columns=['id','given','decision','label','time'])

def test_corrected_table():
    df = pd.DataFrame(dict(x=[1,2,3,4], image=['a','b','a','d'], kind=[0,1,1,0]), index=[5,6,7,8])
    decisions = table(('a','0','predicted','1',''), ('a','1','drop','',''), ('d','0','other','2',''), ('b','1','unsure','',''))
    copy = df.copy()
    res = apply_decisions(df, decisions, 'image', 'kind')
    assert df.equals(copy) and [*res]==['x','image','kind','given_label'] and [*res.index]==[5,6,8]
    assert [*map(str, res.kind)]==['1','1','2'] and [*res.given_label]==[0,1,0] and res.kind.tolist()[:2]==[1,1]
    again = apply_decisions(res, decisions[decisions.id!='a'], 'image', 'kind')
    assert again.equals(res)

def test_corrected_table_of_another_table():
    df = pd.DataFrame(dict(id=['a','b'], label=['x','y']))
    for row in (('c','x','keep','x',''), ('a','y','predicted','z',''), ('a','z','drop','','')):
        with pytest.raises(ValueError, match='1 of 1 decisions are about rows'): apply_decisions(df, table(row))
    with pytest.raises(ValueError, match="no column 'kind'"): apply_decisions(df, table(), label_col='kind')
    assert apply_decisions(df, table()).label.tolist()==['x','y']

def test_trusted():
    decisions = table(('a','x','keep','x',''), ('b','x','drop','',''), ('c','x','unsure','',''), ('d','x','other','y',''))
    assert trusted_ids(decisions)==['a','d'] and count_decisions(decisions)=='1 keep, 1 other, 1 drop, 1 unsure'
