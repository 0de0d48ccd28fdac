"What a file of labels must hold; `test_ledger.py` changes whole states, `test_tamper.py` files."
import pytest
import torch
from fastai_mix.data.ledger import LabelLedger
from fastai_mix.data.ledger_checks import check_label_state, entries, log_columns

def state(several=False, vocab=('a','b','c')):
    y = torch.arange(4)%3
    ledger = LabelLedger([f'p{i}' for i in range(4)], torch.eye(3)[y] if several else y, list(vocab) if vocab else None)
    ledger.log,ledger.agreement = [dict(zip(log_columns, (1., float('nan'), 2, 0, .5)))],[.25, 4]
    return ledger.state_dict()

def test_the_entries_are_those_of_a_ledger(): assert {*entries}=={*LabelLedger.per_row}

@pytest.mark.parametrize('several', [False,True])
@pytest.mark.parametrize('vocab', [('a','b','c'),None])
def test_what_a_ledger_writes(several, vocab): assert check_label_state(state(several, vocab))==['p0','p1','p2','p3']

@pytest.mark.parametrize('agreement,fits', [(None,True), ([0,1],True), ([1.,9],True), ([.5],False), ([.5,0],False),
    ([.5,2.],False), ([-.1,2],False), ([float('nan'),2],False), ([True,2],False), ((.5,2),False), (.5,False)])
def test_agreement(agreement, fits):
    s = state()
    s['meta']['agreement'] = agreement
    if fits: return check_label_state(s)
    with pytest.raises(ValueError, match='agreement is no share of a number of rows'): check_label_state(s)

@pytest.mark.parametrize('several', [False,True])
@pytest.mark.parametrize('name', entries)
def test_an_entry_for_each_row(name, several):
    for bad in (lambda t: t[:2], lambda t: t[:,None], lambda t: t.to(torch.complex64)):
        s = state(several)
        s[name] = bad(s[name])
        with pytest.raises(ValueError, match=' is | holds '): check_label_state(s)
