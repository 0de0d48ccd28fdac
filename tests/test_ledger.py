"The ledger of labels, without a Learner."
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.vision.all import tensor
from safetensors import safe_open

import fastai_mix.data.ledger as ledger_module
from fastai_mix.checkpoint import load_state, save_state
from fastai_mix.data.ledger import LabelLedger, mean_of_copies
from helpers import Syncs

# changes

def make(n=6, vocab='abc', several=False):
    y = torch.arange(n)%3
    return LabelLedger([f'p{i}' for i in range(n)], torch.eye(3)[y] if several else y, list(vocab) if vocab else None)

def sure_of(y, p=.9):
    "Probabilities of a model that finds the classes `y` likely"
    return torch.where(torch.eye(3)[y]>0, torch.as_tensor(p).view(-1, 1), ((1-torch.as_tensor(p))/2).view(-1, 1))

def all_rows(ledger): return torch.arange(len(ledger))

def test_a_new_ledger():
    o = make()
    assert len(o)==6 and torch.equal(o.given, o.current) and not o.is_changed.any() and o.correctable.all()
    assert o.p_given.isnan().all() and o.when.isnan().all() and not len(o.changed)
    o.current[0] = 2
    assert o.given[0]==0

def test_change():
    o = make()
    want = tensor([0,1,2,1,1,0])
    assert o.change(all_rows(o), sure_of(want), .5, when=3.)==(2,2)
    assert o.current.tolist()==want.tolist() and o.given.tolist()==[0,1,2,0,1,2]
    df = o.changed
    assert df.index.tolist()==['p3','p5'] and df.given.tolist()==['a','c'] and df.current.tolist()==['b','a']
    assert (df.when==3).all() and (df.times==1).all() and np.allclose(df.gap, .85)
    assert np.allclose(df.p_given, .05) and np.allclose(df.p_current, .9) and o.table.when.isna().sum()==4
    assert o.change(all_rows(o), sure_of(o.given), .5)==(2,0) # at most one change
    assert o.change(all_rows(o), sure_of(o.given), .5, most=2)==(2,2) and not len(o.changed)
    assert o.times.tolist()==[0,0,0,2,0,2]

def test_without_a_threshold_only_probabilities_are_noted():
    o = make()
    rows = tensor([1,3])
    assert o.change(rows, sure_of(tensor([0,0])))==(1,0) and not o.is_changed.any()
    assert o.p_given.isnan().tolist()==[True,False,True,False,True,True]

def test_rows_that_may_not_be_changed():
    o = make()
    o.protect(['p0','p9'], ignore=['p9'])
    o.protect_classes('b')
    new = (o.given+1)%3
    assert o.change(all_rows(o), sure_of(new), .5, allowed=torch.arange(6)<5)==(6,2)
    assert o.changed.index.tolist()==['p2','p3']
    assert o.change(all_rows(o), sure_of(new), .5, allowed=tensor(False))[1]==0
    for wrong in ('p9', ['p1','p9']):
        with pytest.raises(ValueError, match="protect: no training row 'p9'.*such as 'p0'"): o.protect(wrong)
    with pytest.raises(ValueError, match="no class 'd'; there are a, b, c"): o.protect_classes(['a','d'])
    numbered = make(vocab=None)
    numbered.protect_classes([2])
    assert numbered.correctable.tolist()==[True,True,False]*2
    several = make(several=True)
    several.protect_classes('c')
    assert several.correctable.tolist()==[True,True,False]*2

@pytest.mark.parametrize('share,n', [(.5,3), (.34,2), (.33,1), (.1,0)])
def test_the_surest_go_first(share, n):
    o = make()
    gap = tensor([.9,.5,.95,.6,.8,.7])
    assert o.change(all_rows(o), sure_of((o.given+1)%3, gap), .1, max_change=share)[1]==n
    assert o.is_changed.nonzero().flatten().tolist()==sorted([2,0,4][:n])

def test_a_change_back_makes_room():
    o = make()
    change = partial(o.change, all_rows(o), most=9, max_change=.34, theta=.1)
    up = (o.given+1)%3
    wish = o.given.clone()
    wish[:2] = up[:2]
    assert change(sure_of(wish))==(2,2)
    wish[2] = up[2]
    assert change(sure_of(wish))==(1,0) # no room
    wish[0] = (o.given[0]+2)%3
    assert change(sure_of(wish))==(2,1) and o.current[0]==2 # one wrong label for another
    wish[0] = o.given[0]
    assert change(sure_of(wish))==(2,2) and o.is_changed.tolist()==[False,True,True,False,False,False]

def test_copies_of_a_row():
    rows = tensor([2,0,2,2])
    p,first = mean_of_copies(rows, tensor([[.9,.1],[.5,.5],[.3,.7],[.3,.7]]))
    assert torch.allclose(p, tensor([[.5,.5]]*4)) and first.tolist()==[0,1,0,0]
    o = make()
    rows = tensor([0,1,0,1,2])
    assert o.change(rows, sure_of(tensor([1,2,1,2,2])), .5, first_copy=tensor([0,1,0,1,4]), max_change=.2)==(2,1)
    assert o.current.tolist()==[1,1,2,0,1,2] and o.times.tolist()==[1,0,0,0,0,0]

def test_several_labels():
    o = make(several=True)
    p = o.given.clone()*.8+.1
    p[0] = tensor([.1,.9,.8])
    assert o.change(all_rows(o), p, .5)==(1,1)
    assert o.changed.given.tolist()==[('a',)] and o.changed.current.tolist()==[('b','c')]
    assert np.allclose(o.table.p_given.iloc[0], .1) and np.allclose(o.table.p_current.iloc[0], .8)

@pytest.mark.parametrize('several', [True,False])
def test_a_change_waits_for_nothing(several):
    o = make(several=several)
    p = torch.rand(6, 3)
    with Syncs() as s:
        probs,first = mean_of_copies(all_rows(o), p)
        o.change(all_rows(o), probs, .1, max_change=.5, first_copy=first, previous=o.clone(), allowed=~tensor(False))
    assert not s.n

# taking back

def test_undo():
    o = make()
    o.change(all_rows(o), sure_of((o.given+1)%3), .5, when=1.)
    o.undo('p0'), o.undo(['p1']), o.undo(o.table.index[[2]])
    assert o.changed.index.tolist()==['p3','p4','p5'] and o.correctable.tolist()==[False]*3+[True]*3
    assert o.table.when.isna().sum()==3 and o.p_current[0]==o.p_given[0]
    with pytest.raises(ValueError, match="undo: no training row 'p7'"): o.undo('p7')

def test_names_of_several_levels():
    o = LabelLedger([('a',0),('a',1)], tensor([0,1]))
    assert o.row_numbers(('a',1))==[1] and o.row_numbers([('a',1),('a',0)])==[1,0] and o.row_numbers(None)==[]
    assert o.row_numbers(o.table.index[[0]])==[0] and isinstance(o.table.index, pd.Index) and o.table.index.nlevels==1

def test_clones_are_apart():
    o = make()
    was = o.clone()
    o.change(all_rows(o), sure_of((o.given+1)%3), .5)
    assert not was.is_changed.any() and was.p_given.isnan().all() and o.is_changed.all() and was.keys==o.keys

# tables

def table(): return pd.DataFrame(dict(label=list('abcabcab')), index=[f'p{i}' for i in range(8)])

def test_corrected():
    o,df = make(),table()
    o.change(all_rows(o), sure_of(tensor([1,1,2,0,1,2])), .5)
    out = o.corrected(df.iloc[::-1], 'label')
    assert out.corrected.tolist()==list('bacbacbb') and 'corrected' not in df
    assert o.corrected(df.reset_index(names='id'), 'label', 'new', id_col='id').new.tolist()==list('bbcabcab')
    for other,message in ((df.drop('p3'), "'p3' is not in this table"),
        (df.assign(label='a'), "row 'p1' is labelled 'a'"),
        (df[['label']].rename(columns={'label':'y'}), "no column 'label'; it has 'y'")):
        with pytest.raises(ValueError, match=message): o.corrected(other, 'label')
    with pytest.raises(ValueError, match="no column 'id'"): o.corrected(df, 'label', id_col='id')

def test_numbers_stay_numbers():
    o = make(vocab=['10','20','30'])
    o.change(all_rows(o), sure_of(tensor([1,1,2,0,1,2])), .5)
    df = table().assign(label=lambda d: d.label.map(dict(a=10, b=20, c=30)))
    assert o.corrected(df, 'label').corrected.tolist()==[20,20,30,10,20,30,10,20]

def test_csv(tmp_path):
    o = LabelLedger(['a\r','b\udcff'], tensor([0,1]), ['x','y'])
    o.to_csv(tmp_path/'l.csv')
    back = pd.read_csv(tmp_path/'l.csv', encoding_errors='surrogateescape')
    assert back.row.tolist()==o.keys and back.current.tolist()==['x','y']

# between fits and processes

def test_rows_in_common_keep_their_entries():
    o = make()
    o.change(all_rows(o), sure_of((o.given+1)%3), .5, when=2.)
    o.undo('p5')
    o.log,o.n_epochs,o.n_theta_steps = [1],2,3
    more = LabelLedger(['p9','p5','p4'], tensor([0,2,1]), list('abc'))
    assert o.is_like(o.clone()) and not o.is_like(more)
    more.take_over(o)
    assert more.current.tolist()==[0,2,2] and more.times.tolist()==[0,0,1]
    assert more.correctable.tolist()==[True,False,True]
    assert (more.log,more.n_epochs,more.n_theta_steps)==([1],2,3)
    new = LabelLedger(['x'], tensor([0]), list('xyz'))
    new.take_over(o) # nothing in common
    assert not new.times.any()
    for y,vocab in ((tensor([0,1,1]),'abc'), (tensor([0,2,1]),'abd'), (torch.eye(3),'abc')):
        with pytest.raises(ValueError, match="row 'p5' has another label here|row 'p4' has another label here"):
            LabelLedger(['p9','p5','p4'], y, list(vocab)).take_over(o)

def test_merge(monkeypatch):
    "Each of two processes gets the other's changes and what it saw; where both changed a row, that of the first"
    start = make(4)
    start.change(all_rows(start), sure_of(start.given))
    both = [start.clone(), start.clone()]
    both[0].change(tensor([0,1]), sure_of(tensor([1,2])), .5, when=1.)
    both[1].change(tensor([1,2,3]), sure_of(tensor([0,0,0]), .8), .5, when=1.)
    local,parts,barrier = threading.local(),[None,None],threading.Barrier(2)
    def gather(t): # two threads stand for processes
        parts[local.rank] = t
        barrier.wait()
        res = torch.stack([o.to(torch.uint8) if o.dtype==torch.bool else o for o in parts])
        barrier.wait()
        return res
    def merge(rank):
        local.rank = rank
        both[rank].merge(start)
    monkeypatch.setattr(ledger_module, '_from_all_processes', gather)
    with ThreadPoolExecutor(2) as ex: list(ex.map(merge, range(2)))
    for o in both:
        assert o.current.tolist()==[1,2,0,0] and o.times.tolist()==[1,1,1,0]
        assert torch.allclose(o.p_current, tensor([.9,.9,.8,.8]))

def test_each_process_has_a_part_of_what_is_left(monkeypatch):
    monkeypatch.setattr(ledger_module, 'num_distrib', lambda: 2)
    o = make(10)
    o.change(tensor([0]), sure_of(tensor([1])), .5)
    previous = o.clone()
    new = sure_of((o.given+1)%3)
    assert o.change(all_rows(o), new, .5, max_change=.6, previous=previous)[1]==2 # five are left
    assert o.change(all_rows(o), new, .5, max_change=.6, previous=previous)[1]==0

# files

def full():
    o = make()
    o.change(all_rows(o), sure_of(tensor([1,1,2,0,1,2])), .5, when=1.)
    o.predictions,o.n_epochs,o.n_theta_steps,o.agreement = [torch.rand(6, 3) for _ in range(2)],2,1,[.5, 6]
    o.log = [dict(epoch=1., theta=float('nan'), candidates=1, corrected=1, share=1/6)]
    return o

def same(a, b):
    pd.testing.assert_frame_equal(a.table, b.table)
    assert a.keys==b.keys and a.vocab==b.vocab and torch.equal(a.correctable, b.correctable)
    assert (a.n_epochs,a.n_theta_steps,repr(a.log))==(b.n_epochs,b.n_theta_steps,repr(b.log))
    assert a.agreement==b.agreement
    assert all(torch.equal(*o) for o in zip(a.predictions, b.predictions)) and len(a.predictions)==len(b.predictions)

def test_files(tmp_path):
    o = full()
    o.save(tmp_path/'l.safetensors')
    with safe_open(tmp_path/'l.safetensors', 'pt') as f:
        assert set(f.keys())=={'given','current','times','moment','gap','p_given','p_current','free','past'}
    same(LabelLedger.load(tmp_path/'l.safetensors'), o)
    save_state(tmp_path/'c', o.state_dict())
    back = LabelLedger.from_state(load_state(tmp_path/'c'))
    same(back, o)
    back.change(all_rows(back), sure_of(tensor([1,0,0,0,0,0])), .5)
    same(LabelLedger.load(tmp_path/'l.safetensors'), o)
    o.predictions = []
    assert 'past' not in o.state_dict() and not LabelLedger.from_state(o.state_dict()).predictions
    older = o.state_dict()
    del older['meta']['agreement'] # older versions wrote none
    assert LabelLedger.from_state(older).agreement is None

wrong = {
    'keys': lambda s: s['meta']['keys'].__setitem__(0, 'p1'),
    'kind': lambda s: s['meta']['keys'].__setitem__(0, {'kind':'x'}),
    'vocab': lambda s: s['meta'].update(vocab=['a','b']),
    'vocab twice': lambda s: s['meta'].update(vocab=['a','a','b']),
    'epochs': lambda s: s['meta'].update(epochs=-1),
    'log': lambda s: s['meta'].update(log=[{}]),
    'agreement': lambda s: s['meta'].update(agreement=[1.5, 3]),
    'agreement of nothing': lambda s: s['meta'].update(agreement=[.5, 0]),
    'agreement of text': lambda s: s['meta'].update(agreement='half'),
    'more': lambda s: s['meta'].update(x=1),
    'given': lambda s: s['given'].fill_(3),
    'times': lambda s: s['times'].fill_(-1),
    'gap': lambda s: s['gap'].fill_(2),
    'dtype': lambda s: s.update(free=s['free'].float()),
    'tensor': lambda s: s.update(when=s['moment']),
    'rows': lambda s: s.update(gap=s['gap'][:2]),
    'past': lambda s: s.update(past=torch.rand(2)),
    'less': lambda s: s.pop('moment')}

@pytest.mark.parametrize('kind', wrong)
def test_states_of_something_else(kind):
    state = full().state_dict()
    LabelLedger.from_state(state)
    wrong[kind](state)
    with pytest.raises(ValueError, match='the labels cannot be taken up: ') as e: LabelLedger.from_state(state)
    assert '\n' not in str(e.value)

def test_files_of_something_else(tmp_path):
    (tmp_path/'x').write_text('no')
    save_state(tmp_path/'y', dict(a=1))
    for name,message in (('x','holds no labels'), ('y','holds no labels'), ('z','no such file')):
        with pytest.raises(ValueError, match=message): LabelLedger.load(tmp_path/name)
