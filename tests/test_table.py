"Columns, labels and names of tables: every form of labels gives one table, and errors name the place."
import numpy as np
import pandas as pd
import pytest
from fastai.vision.all import ColReader, Path
from helpers import peak_memory
from fastai_mix.data.table import (check_columns, check_filled, check_labels, label_matrix, label_table, picture_paths,
    unsafe_names)

def test_groups_of_thousands_of_classes_take_little_memory():
    n,c = 20_000,2000
    df = pd.DataFrame({'label': np.arange(n)%c, 'tree': np.arange(n)//4})
    assert peak_memory(lambda: label_matrix(df, 'label'))<n*c/8
    assert np.array_equal(label_matrix(df, 'label')[0].toarray(), label_table(df, 'label').to_numpy())

names = {
    'formula': ['=1+1', '+cmd|x', '-leaf', '@sum', '=', '-', '-1-1', '+1 a', '--1', '-1_000', '-inf'],
    'control': ['a\x1b[2J', 'a\x07', 'a\x9b1m', 'a\x7f', 'a\0', '\x1b]0;x\x07', 'a\nb', 'a\tb', 'a\rb'],
    'both': ['\tx', '\r=x'],
    'safe': ['rust', 'a=b', 'a-b', "don't", 'é', '', ' ', '-3', '+3.5', '-.5', '-1e5', '-1.', 3, -3, -3.5, None, 'x@y',
        'übel', 'İ', '病'],
}

@pytest.mark.parametrize('kind', names)
def test_unsafe_names(kind):
    bad = unsafe_names(names[kind]*2)
    assert list(bad)==([] if kind=='safe' else names[kind])
    if kind in ('formula','both'): assert set(bad.values())=={'a formula in a spreadsheet'}
    if kind=='control': assert set(bad.values())=={'control characters'}

def test_label_table_forms_agree():
    t = pd.DataFrame({'s': ['a b','b','','c'], 'l': [['a','b'],['b'],[],['c']], 'a': [1,0,0,0],
        'b': [True,True,False,False], 'c': [0.,0,0,1]})
    want = [[1,1,0],[0,1,0],[0,0,0],[0,0,1]]
    for got in (label_table(t, 's', ' '), label_table(t, 'l'), label_table(t, ['a','b','c'])):
        assert got.astype(int).to_numpy().tolist()==want and list(got.columns)==['a','b','c']
        assert got.dtypes.eq(bool).all()
    assert label_table(t.assign(n=[3,1,3,2]), 'n').columns.tolist()==[1,2,3]
    spaced = pd.DataFrame({'l':['early blight | rust','rust','early blight']})
    assert label_table(spaced, 'l', ' | ').columns.tolist()==['early blight','rust']
    with pytest.raises(ValueError, match="'a' holds nan"): label_table(t.assign(a=[1,None,0,0]), ['a','b'])
    with pytest.raises(ValueError, match="no label in 's'"): label_table(t.assign(s=['a',None,'','c']), 's', ' ')

def test_forms_that_contradict_themselves():
    t = pd.DataFrame({'a': [0,1], 'b': [1,2], 'label': ['x','y'], 'n': [1,2]})
    with pytest.raises(ValueError, match="'b' holds 2: expected 0 or 1"): label_table(t, ['a','b'])
    with pytest.raises(ValueError, match=r"label_col=\['a', 'a'\]: expected a column of labels"):
        label_table(t, ['a','a'])
    with pytest.raises(ValueError, match="'n' holds 1, but label_delim=' ' splits text"): label_table(t, 'n', ' ')
    with pytest.raises(ValueError, match="label_delim=3: expected text, such as ' '"): label_table(t, 'label', 3)
    with pytest.raises(ValueError, match='the table is empty'): label_table(t[:0], 'label', ' ')

def test_lacking_columns_cells_and_classes_are_named():
    t = pd.DataFrame({'label': ['x',None,'x'], 'one': ['x']*3})
    with pytest.raises(ValueError, match="the table has no column 'k' or 'm': it has 'label', 'one'"):
        check_columns(t, 'one', 'k', 'm')
    with pytest.raises(ValueError, match="`oof` has no column 'k'"): check_columns(t, 'k', table='`oof`')
    with pytest.raises(ValueError, match="1 of 3 rows have no group in 'label', the first at row 1: fill them in"):
        check_filled(t, 'label', 'group')
    with pytest.raises(ValueError, match="'one' has a single class, 'x': a classifier needs two"):
        check_labels(t, 'one')
    with pytest.raises(ValueError, match="the table is empty"): check_labels(t[:0], 'one')
    check_columns(t, 'label', 'one')
    check_filled(t, 'one')
    check_labels(t.assign(one=[1,2,2]), 'one')

def test_paths_come_from_a_column_or_a_function():
    t = pd.DataFrame({'id': ['a','b'], 'path': ['d/a.jpg',Path('d/b.jpg')]}, index=[5,5])
    want = [Path('d/a.jpg'),Path('d/b.jpg')]
    for get_x in ('path', ColReader('id', pref='d/', suff='.jpg'), lambda row: row.path):
        assert picture_paths(t, get_x)==want
    with pytest.raises(ValueError, match="no column 'file'"): picture_paths(t, 'file')

def test_names_have_not_moved_for_those_who_import_them_from_check():
    from fastai_mix.data import check, table
    for name in ('check_columns','check_filled','check_labels','label_table','picture_paths','unsafe_names'):
        assert name in check.__all__ and getattr(check, name) is getattr(table, name)
