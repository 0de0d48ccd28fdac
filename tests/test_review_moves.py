"Decided files come into their classes and back, whatever their names, wherever a process is killed."
import json,os,sys
from pathlib import Path

import pytest
from fastai_mix.decisions import DecisionFile
from fastai_mix.review import main
from fastai_mix.review_moves import FileMoves, MoveJournal, moved_in_words

@pytest.fixture
def moves(folders, tmp_path):
    "Class folders, decisions about them, and a maker of `FileMoves`"
    folder,out = folders('rust','scab', root='my leaves'),tmp_path/'my leaves-review'
    out.mkdir()
    decisions = DecisionFile(out/'decisions.csv')
    decisions.add('rust/0.png', 'rust', 'drop')
    decisions.add('rust/1.png', 'rust', 'keep', 'rust')
    decisions.add('scab/2.png', 'scab', 'unsure')
    return folder,out,decisions

def contents(*folders):
    "Bytes of each file by its path"
    files = [o for f in folders for o in f.rglob('*') if o.is_file()]
    return {str(o): o.read_bytes() for o in files if o.suffix!='.csv' and o.name not in ('moves.jsonl','.lock')}

def test_there_and_back(moves):
    folder,out,decisions = moves
    (folder/'rust'/'tree 1').mkdir()
    (folder/'rust'/'0.png').rename(folder/'rust'/'tree 1'/'x.png')
    (folder/'rust'/'1.png').rename(folder/'rust'/'0.png')
    before = contents(folder)
    decisions.add('rust/tree 1/x.png', 'rust', 'predicted', 'scab')
    made = FileMoves(folder, out).make(decisions.table)
    assert (made['moved'],made['dropped'],made['stays'])==(1,1,{})
    assert contents(folder, out/'dropped').keys()=={*map(str, (folder/'rust'/'2.png', folder/'scab'/'tree 1'/'x.png',
        out/'dropped'/'rust'/'0.png', *(folder/'scab'/f'{i}.png' for i in range(3))))}
    assert FileMoves(folder, out).take_back()==dict(moved=2, stays={})
    assert contents(folder)==before and not (out/'moves.jsonl').exists()

def test_nothing_is_overwritten(moves):
    folder,out,decisions = moves
    decisions.add('rust/2.png', 'rust', 'predicted', 'scab') # there is scab/2.png
    (out/'dropped'/'rust').mkdir(parents=True)
    (out/'dropped'/'rust'/'0.png').write_text('dropped earlier')
    before = contents(folder, out)
    made = FileMoves(folder, out).make(decisions.table)
    assert made['moved']==made['dropped']==0 and all(o.endswith('exists') for o in made['stays'].values())
    assert contents(folder, out)==before and not FileMoves(folder, out).journal.moves
    (folder/'scab'/'2.png').rename(folder/'scab'/'3.png')
    assert FileMoves(folder, out).make(decisions.table)['moved']==1
    (folder/'rust'/'2.png').write_text('new')
    back = FileMoves(folder, out).take_back()
    assert back['moved']==0 and list(back['stays'])==[str(folder/'scab'/'2.png')]
    assert (folder/'rust'/'2.png').read_text()=='new' and len(FileMoves(folder, out).journal.moves)==1
    (folder/'rust'/'2.png').unlink()
    assert FileMoves(folder, out).take_back()==dict(moved=1, stays={})

def test_two_files_of_one_name(moves):
    folder,out,decisions = moves
    (folder/'healthy').mkdir()
    (folder/'healthy'/'9.png').write_bytes((folder/'rust'/'0.png').read_bytes())
    decisions.add('rust/2.png', 'rust', 'other', 'healthy')
    decisions.add('scab/2.png', 'scab', 'other', 'healthy')
    made = FileMoves(folder, out).make(decisions.table)
    assert made['moved']==1 and list(made['stays'])==['rust/2.png'] # scab/2.png was decided first

def killed_at(monkeypatch, n):
    "Raise as a kill does in place of the `n`-th move"
    rename,left = os.rename,[n]
    def move(*args):
        left[0] -= 1
        if not left[0]: raise KeyboardInterrupt
        rename(*args)
    monkeypatch.setattr(os, 'rename', move)

@pytest.mark.parametrize('n', [1,2,3])
@pytest.mark.parametrize('finish', [False,True])
def test_killed_between_the_line_and_the_move(moves, monkeypatch, n, finish):
    folder,out,decisions = moves
    for i in range(3,6): (folder/'rust'/f'{i}.png').write_text(str(i))
    for i in range(3,5): decisions.add(f'rust/{i}.png', 'rust', 'predicted', 'scab')
    before = contents(folder)
    killed_at(monkeypatch, n)
    with pytest.raises(KeyboardInterrupt): FileMoves(folder, out).make(decisions.table)
    assert len(FileMoves(folder, out).journal.moves)==n
    monkeypatch.undo()
    if finish:
        made = FileMoves(folder, out).make(decisions.table)
        assert made['moved']+made['dropped']==4-n and not made['stays']
    with monkeypatch.context() as m: # and once more on the way back
        killed_at(m, 1)
        if n>1 or finish:
            with pytest.raises(KeyboardInterrupt): FileMoves(folder, out).take_back()
    assert not FileMoves(folder, out).take_back()['stays'] and contents(folder)==before

def test_part_of_a_line_is_of_no_move(moves):
    folder,out,decisions = moves
    FileMoves(folder, out).make(decisions.table)
    with open(out/'moves.jsonl', 'ab') as f: f.write(b'["rust/1.png", "sc')
    assert FileMoves(folder, out).journal.moves==[('rust/0.png',None)]
    decisions.add('rust/2.png', 'rust', 'predicted', 'scab')
    (folder/'scab'/'2.png').unlink()
    FileMoves(folder, out).make(decisions.table)
    assert MoveJournal(out/'moves.jsonl').moves==[('rust/0.png',None),('rust/2.png','scab/2.png')]

@pytest.mark.parametrize('line', ['["../x", "scab/y"]', '["/etc/passwd", null]', '["rust/a", "rust/../../b"]',
    '["rust/a"]', '7', '["a", null]', '{"from":"rust/a", "to":"b/c"}', '[["rust/a"], null]', 'nothing'])
def test_journal_of_other_places_is_refused(tmp_path, line):
    (tmp_path/'moves.jsonl').write_text(f'["rust/0.png", null]\n{line}\n')
    with pytest.raises(ValueError, match='moves.jsonl is broken at line 2'): MoveJournal(tmp_path/'moves.jsonl')

@pytest.mark.skipif(sys.platform!='linux', reason='such names')
def test_hostile_names_and_decisions(moves):
    folder,out,decisions = moves
    names = ['a\nb.png','"q\'.png','-rf.png',os.fsdecode(b'\xff.png'),' blank .png','scab.png']
    for o in names:
        (folder/'rust'/o).write_bytes(os.fsencode(o))
        decisions.add(f'rust/{o}', 'rust', 'predicted', 'scab')
    (folder/'rust'/'link.png').symlink_to('0.png')
    (folder/'rust'/'far.png').symlink_to((folder/'rust'/'1.png').resolve())
    before = contents(folder)
    for label in ('..','../up','.','/tmp','a/b','healthy',''):
        o = f"rust/{len(decisions)}.png"
        (folder/o).write_bytes(label.encode()+b'x')
        before[str(folder/o)] = (folder/o).read_bytes()
        if label: decisions.add(o, 'rust', 'other', label)
    made = FileMoves(folder, out).make(decisions.table)
    assert made['moved']==len(names) and made['dropped']==1
    assert [*made['stays'].values()]==[f'there is no class {o!r}' for o in ('..','../up','.','/tmp','a/b','healthy')]
    assert {o.name for o in (folder/'scab').iterdir()}>=set(names)
    said = moved_in_words(made, FileMoves(folder, out))
    assert 'moved 6 to the folders of their classes, 1 to' in said and '6 stay where they are:' in said
    assert FileMoves(folder, out).take_back()['moved']==7 and contents(folder)==before

@pytest.mark.skipif(sys.platform!='linux', reason='links')
def test_relative_link_stays(moves):
    folder,out,decisions = moves
    (folder/'rust'/'0.png').rename(out/'elsewhere.png')
    (folder/'rust'/'0.png').symlink_to('../../my leaves-review/elsewhere.png')
    made = FileMoves(folder, out).make(decisions.table)
    assert made['stays']=={'rust/0.png':'it is a link to a relative path'} and (folder/'rust'/'0.png').is_symlink()

def test_move_that_the_system_refuses_is_told(moves, monkeypatch):
    folder,out,decisions = moves
    def refuse(*args): raise OSError(18, 'Invalid cross-device link')
    with monkeypatch.context() as m:
        m.setattr(os, 'rename', refuse)
        assert FileMoves(folder, out).make(decisions.table)['stays']=={'rust/0.png':'Invalid cross-device link'}
    assert FileMoves(folder, out).make(decisions.table)['dropped']==1
    assert FileMoves(folder, out).take_back()==dict(moved=1, stays={})

def test_place_of_dropped_files(folders, tmp_path):
    folder = folders('rust','scab')
    with pytest.raises(ValueError, match='--out names another folder'): FileMoves(folder, folder/'review')

def run(capsys, *args):
    "Exit status and what the command prints"
    with pytest.raises(SystemExit) as e: main(*map(str, args[:1]), **dict(args[1:]))
    printed = capsys.readouterr()
    return e.value.code,printed.out+printed.err

def test_command(moves, capsys, tmp_path):
    folder,out,decisions = moves
    (out/'faults.csv').write_text('row,kind,detail\n1,duplicate,\n')
    code,said = run(capsys, folder, ('move',True))
    assert code==0 and said.startswith(f'moved 0 to the folders of their classes, 1 to {out}/dropped; --move-back')
    assert not (out/'faults.csv').exists() # its rows are others now
    for n in (1,0): assert run(capsys, folder, ('move_back',True))==(0,f'moved {n} back\n')
    decisions.add('rust/2.png', 'rust', 'predicted', 'scab')
    code,said = run(capsys, folder, ('move',True))
    assert code==1 and said.splitlines()[1:]==['1 stays where it is:',f'  rust/2.png: {folder}/scab/2.png exists']
    (tmp_path/'t.csv').write_text('image_id,label\n0.png,a\n')
    wrongs = {tmp_path/'t.csv':'no folder of class folders', tmp_path/'none':'no folder of class folders',
        tmp_path:'there are no decisions'}
    for source,wrong in wrongs.items():
        code,said = run(capsys, source, ('move',True))
        assert code==2 and wrong in said and said.count('\n')==1
    assert run(capsys, folder, ('move',True), ('move_back',True))[0]==2
    (out/'decisions.csv').write_text('nothing')
    assert run(capsys, folder, ('move',True))[0]==2
