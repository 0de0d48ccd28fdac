"Which rows a data set and the running batch of its loader hold."
import json

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.data import PartialDL, WeightedDL
from fastai.vision.all import Categorize, ColReader, DataLoader, Datasets, Path, TfmdDL, noop, tensor
from helpers import Rows

from fastai_mix.data.rows import (EpochRows, ItemRows, SkippedItem, check_row_name, check_rows_known, in_order,
    inner_dl, item_names, item_table, item_targets, items_dl, name_from_json, name_to_json, row_names, target_lists)

stamp = pd.Timestamp('2024-03-30 01:02:03')
names = {
    'text': 'a/p1.jpg', 'odd text': 'ü,"\t\n\u2028\x00\r', 'bytes of a file name': 'a\udcff.jpg', 'bool': True,
    'number': 7, 'float': 1/7, 'NaN': float('nan'), 'None': None, 'NumPy': np.int64(3), 'float32': np.float32(.1),
    'path': Path('a/p1'), 'date': stamp.date(), 'datetime': stamp.to_pydatetime(), 'stamp': stamp,
    'seconds': stamp.as_unit('s'), 'zone': stamp.tz_localize('UTC').tz_convert('Europe/Berlin'), 'NaT': pd.NaT,
    'datetime64': np.datetime64('2024-03-30T01:00:00'), 'timedelta64': np.timedelta64(1001, 'ns'),
    'duration': pd.Timedelta(1001), 'period': pd.Period('2019Q1'), 'interval': pd.Interval(0, 1.5),
    'interval of dates': pd.Interval(stamp, stamp+pd.Timedelta('1h'), closed='left'), 'tuple': ('a', 3),
    'nested': (stamp, (Path('x'), np.float64(.5)), float('nan'))}

@pytest.mark.parametrize('kind', names)
def test_names_come_back_from_json(kind):
    value = names[kind]
    index = pd.Series([value], dtype=object).values
    [name] = row_names(pd.DataFrame(dict(name=index)), 'name')
    check_row_name(name)
    back = name_from_json(json.loads(json.dumps(name_to_json(name))))
    assert {name:1}[back]==1 and type(back) is type(name) and repr(back)==repr(name) # a NaN is found as well

@pytest.mark.parametrize('value', [1j, frozenset([1]), pd.NA, object(), (1, {2:3})], ids=lambda o: type(o).__name__)
def test_names_that_no_file_can_hold(value):
    with pytest.raises(ValueError, match='could not be saved: expected text, numbers, dates.*pass id_col=') as e:
        check_row_name(value)
    assert '\n' not in str(e.value)

def datasets(table): return Datasets(table, [[ColReader('label')], [ColReader('label'), Categorize()]], n_inp=1)

def table(index=('p0','p1','p2','p1'), label=('a','b','a','b'), **kwargs):
    return pd.DataFrame(dict(label=list(label), **kwargs), index=list(index))

def test_names_of_items():
    ds = datasets(table(id=[3,4,5,4]))
    assert item_names(ds)==['p0','p1','p2','p1'] and item_names(ds, 'id')==[3,4,5,4] and item_table(ds).equals(ds.items)
    files = Datasets([Path('a/1.jpg'), Path('a/2.jpg')], [[noop]])
    assert item_names(files)==['a/1.jpg','a/2.jpg'] and item_table(files) is None
    assert item_names(Datasets([.5, .25], [[noop]]))==[0,1] and item_names(Rows(3))==[0,1,2]
    for other in (ds, files, Rows(3)):
        with pytest.raises(ValueError, match="id_col='row': expected a column of the table"): item_names(other, 'row')

def test_rows_of_items():
    rows = ItemRows(datasets(table()))
    assert rows.names==['p0','p1','p2'] and len(rows)==3
    assert rows.row_of_item.tolist()==[0,1,2,1] and rows.item_of_row.tolist()==[0,1,2]
    assert ItemRows(datasets(table([float('nan'), 1., 2., 1.]))).names[1:]==[1.,2.]

def test_index_that_names_different_rows_alike():
    with pytest.raises(ValueError, match='names different rows alike: use df.reset_index.*id_col='):
        ItemRows(datasets(table(picture=range(4))))
    assert len(ItemRows(datasets(table(picture=range(4))), 'picture'))==4
    levels = pd.MultiIndex.from_arrays([[0]*4, [0,0,1,1]])
    with pytest.raises(ValueError, match='names different rows alike'): ItemRows(datasets(table().set_axis(levels)))

def test_targets():
    ds = datasets(table())
    y = item_targets(ds)
    assert y.tolist()==[0,1,0,1] and type(y) is torch.Tensor and len(target_lists(ds))==1
    rows = ItemRows(ds)
    assert rows.targets(y).tolist()==[0,1,0]
    with pytest.raises(ValueError, match="'p1' comes with two different labels"): rows.targets(tensor([0,1,0,0]))
    several = tensor([[1.,0],[0,1],[1,1],[0,1]])
    assert rows.targets(several).tolist()==[[1,0],[0,1],[1,1]]
    two = Datasets(table(), [[noop]]*3, n_inp=1)
    with pytest.raises(ValueError, match='one target per picture, but the data set has 2'): item_targets(two)
    assert target_lists(Rows(4)) is None and item_targets(Rows(4)).tolist()==Rows(4).y.tolist()
    with pytest.raises(SkippedItem, match='left out of a batch'): item_targets(Rows(4, skip=[2]))

loaders = {
    'shuffled': dict(), 'short last batch': dict(bs=7), 'drop_last': dict(drop_last=True, bs=7),
    'workers': dict(num_workers=2, bs=6), 'workers, drop_last': dict(num_workers=2, bs=6, drop_last=True),
    'in order': dict(shuffle=False)}

def check_epoch(dl, rows, leave_out=()):
    "The row that each picture tells is that of its place"
    epoch = None
    for i,(x,_) in enumerate(dl):
        if epoch is None: epoch = EpochRows(dl, rows)
        if i in leave_out: epoch.count(len(x))
        else: assert epoch.batch(i, len(x)).tolist()==(x[:,0,0,0]*1024).round().tolist()
    epoch.check_complete()

@pytest.mark.parametrize('kind', loaders)
def test_rows_of_batches(kind):
    ds = Rows()
    dl,rows = DataLoader(ds, **{'bs':8, 'shuffle':True, 'num_workers':0, **loaders[kind]}),ItemRows(ds)
    for leave_out in ((), (), (0,2)): check_epoch(dl, rows, leave_out)

@pytest.mark.parametrize('make', [lambda ds: WeightedDL(ds, bs=8, shuffle=True, wgts=np.arange(1, 41), num_workers=0),
    lambda ds: PartialDL(ds, bs=8, partial_n=24, shuffle=True, num_workers=0)], ids=['weighted','partial'])
def test_other_loaders(make): check_epoch(make(ds := Rows()), ItemRows(ds))

@pytest.mark.parametrize('kwargs', [o for o in loaders.values() if 'drop_last' not in o], ids=str)
@pytest.mark.parametrize('skip', [(0,), (4,13), (39,)], ids=str)
def test_skipped_items(skip, kwargs):
    ds = Rows(skip=skip)
    dl = DataLoader(ds, **{'bs':8, 'shuffle':True, 'num_workers':0, **kwargs})
    def run():
        epoch = None
        for i,(x,_) in enumerate(dl):
            if epoch is None: epoch = EpochRows(dl, ItemRows(Rows()))
            epoch.batch(i, len(x))
        epoch.check_complete()
    with pytest.raises(SkippedItem, match='left out of a batch') as e: run()
    assert isinstance(e.value, ValueError) and '\n' not in str(e.value)

class Stream(torch.utils.data.IterableDataset):
    def __iter__(self): yield from range(9)

def test_loaders_that_do_not_tell():
    check_rows_known(DataLoader(Rows(), bs=4))
    for dl,kind in ((DataLoader(Stream(), bs=4, n=9), 'DataLoader'), (DataLoader(Rows()), 'DataLoader'),
        (torch.utils.data.DataLoader(Rows(), batch_size=4), 'DataLoader'), ([1], 'list')):
        with pytest.raises(ValueError, match=f'this {kind} does not tell'): check_rows_known(dl)

def test_loaders_in_a_given_order():
    dl = TfmdDL(datasets(table()), bs=3, shuffle=True, drop_last=True, num_workers=0)
    fixed,items = in_order(dl)
    assert items==[0,1,2,3] and [y.tolist() for _,y in fixed]==[[0,1,0],[1]]
    two = items_dl(dl, tensor([3,0]).tolist(), bs=1)
    assert [y.tolist() for _,y in two]==[[1],[0]] and len(two)==2
    class Share(TfmdDL):
        def __init__(self, dl): self.dl = dl
    assert inner_dl(Share(dl)) is dl and inner_dl(dl) is dl
    assert [y.tolist() for _,y in in_order(Share(dl))[0]]==[[0,1,0],[1]]
