"A folder belongs to one table; one process at a time trains a fold."
import os
import subprocess
import sys

import pandas as pd
import pytest
from filelock import FileLock
from fastai_mix.crossval import CrossVal
from helpers import one, tiny

def test_who_holds_a_fold(df, get_dls, tmp_path, capsys):
    run = CrossVal(df, get_dls, tiny, tmp_path/'run')
    (run.path/'fold_1').mkdir()
    with FileLock(run.path/'fold_1'/'.lock'):
        (run.path/'fold_1'/'holder.txt').write_text('process 7 on elsewhere, since noon')
        run.fit(one)
        assert 'fold 1 is not done: process 7 on elsewhere, since noon is training it' in capsys.readouterr().out
        with pytest.raises(ValueError, match='process 7 on elsewhere, since noon is training fold 1'): run.oof
    assert run.done(0) and run.done(2) and not run.done(1) and run.holder(1) is None
    assert run.fit(one).oof.notna().all().all()

changes = {
    'another label': (lambda d: d.assign(label=['rust',*d.label[1:]]), 'have another label|label'),
    'a row less':    (lambda d: d.iloc[1:], '1 rows are gone .Train_0'),
    'a row more':    (lambda d: pd.concat([d, d.iloc[:1].assign(image_id='new')]), '1 rows are new .new'),
    'other folds':   (lambda d: d.assign(fold=(d.fold+1)%3), '60 rows have another fold'),
}

@pytest.mark.parametrize('name', changes)
def test_another_table_is_refused(name, df, get_dls, tmp_path):
    CrossVal(df, get_dls, tiny, tmp_path/'run')
    change,match = changes[name]
    df.loc[0,'label'] = 'scab'
    (tmp_path/'run2').mkdir()
    CrossVal(df, get_dls, tiny, tmp_path/'run2')
    with pytest.raises(ValueError, match=match) as e: CrossVal(change(df), get_dls, tiny, tmp_path/'run2')
    assert 'is another run' in str(e.value) and '\n' not in str(e.value)
    with pytest.raises(ValueError, match='seed=0 there, 1 here'): CrossVal(df, get_dls, tiny, tmp_path/'run2', seed=1)
    CrossVal(df.assign(extra=1), get_dls, tiny, tmp_path/'run2')

def test_names_of_any_script_where_files_are_ascii_by_default(tmp_path):
    code = r'''
import sys, pandas as pd
from fastai_mix.crossval import CrossVal
ids,labels = [f'bl\u00e4tt_{i}' for i in range(9)],['K\u00e4fer','\u7532\u866b','c']*3
df = pd.DataFrame({'id': ids, 'label': labels, 'fold': [0,1,2]*3})
for _ in range(2): cv = CrossVal(df, min, min, sys.argv[1], label_col='label', id_col='id')
'''
    env = dict(os.environ, LC_ALL='C', PYTHONUTF8='0', PYTHONCOERCECLOCALE='0')
    subprocess.run([sys.executable, '-c', code, str(tmp_path/'run')], check=True, env=env)
    assert 'Käfer' in (tmp_path/'run'/'table.csv').read_text(encoding='utf-8')
