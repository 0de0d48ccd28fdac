"Each pair of a picture and a label is asked about, and whole sets of labels come back."
import numpy as np
import pandas as pd
import pytest
from fastai_mix.data.suspects import suspects
from fastai_mix.data.table import label_table
from fastai_mix.review import LabelReview, main, review
from fastai_mix.review_sets import SetReviewTable, frame_sets, read_sets
from fastai_mix.review_table import find_faults, frame_review
from helpers import noise

@pytest.fixture
def table(tmp_path):
    "A table of sets of labels with probabilities, and its pictures"
    (tmp_path/'p').mkdir()
    for i in range(5): noise(i%4).save(tmp_path/'p'/f'{i}.png') # 4 is a copy of 0
    table = pd.DataFrame(dict(pic=[f'{i}.png' for i in range(5)], tags=['b|a','','c','a|d','b'], note=list('vwxyz')))
    table[list('abcd')] = np.array([[.9,.8,.1,.2,.1],[.1,.2,.1,.1,.9],[.1,.1,.9,.7,.2],[.2,.1,.1,.9,.1]]).T
    table.to_csv(tmp_path/'t.csv', index=False)
    return table

def read(tmp_path): return read_sets(tmp_path/'t.csv', '|', tmp_path/'p', 'pic', 'tags')

def answers(review):
    "Picture, given and predicted answer where they differ"
    return {(i.removesuffix('.png'),g,p) for i,g,p in review.rows[['id','given','predicted']].values if g!=p}

def test_whole_way_in_the_page(table, tmp_path):
    sets = read(tmp_path)
    assert len(sets)==20 and answers(sets)=={('0','b','no b'),('1','no a','a'),('3','a','no a'),('3','no c','c')}
    assert {o[0] for o in sets.keys[:4]}=={'0.png','1.png','3.png'}
    page = LabelReview(sets, tmp_path/'out').start()
    for key,decision in {('0.png','b'):'predicted', ('1.png','no a'):'predicted', ('3.png','a'):'predicted',
        ('3.png','no c'):'predicted', ('0.png','a'):'keep', ('2.png','c'):'unsure', ('4.png','no d'):'drop'}.items():
        page.state.decide(sets.keys.index(key), decision)
    with pytest.raises(ValueError, match="there is no class 'c'"): page.state.decide(0, 'other', 'c')
    assert page.corrected.tags.tolist()==['a','a','c','d|c']
    assert page.corrected.given_label.tolist()==['b|a','','c','a|d']
    page.stop()
    again = LabelReview(read(tmp_path), tmp_path/'out') # what was decided is there again
    assert again.state.n_looked==7 and again.corrected.pic.tolist()==['0.png','1.png','2.png','3.png']
    again.state.decide(sets.keys.index(('3.png','a')), 'undo')
    assert again.corrected.tags.tolist()[-1]=='a|d|c' and list(again.corrected)[:3]==['pic','tags','given_label']
    again.stop()

def test_untouched_sets_stay_as_they_are(table, tmp_path):
    table.assign(tags=['b||a','','c|','a|d','b']).to_csv(tmp_path/'t.csv', index=False)
    sets = read(tmp_path)
    none = pd.DataFrame(columns=['id','given','decision','label'])
    assert sets.corrected(none).tags.tolist()==['b||a','','c|','a|d','b']

def test_a_copy_is_found_once_and_a_picture_is_no_copy_of_itself(table, tmp_path):
    sets = read(tmp_path)
    faults = find_faults(sets)
    assert sorted({sets.rows.id[o] for o in faults.row})==['0.png','4.png']
    assert set(faults.kind)=={'duplicate','conflicting labels'}

def test_in_a_notebook(table, tmp_path):
    df = table.assign(path=[tmp_path/'p'/o for o in table.pic]).set_index('pic')
    has = label_table(df, 'tags', '|')
    found = suspects(df[list('abcd')].to_numpy(), has, list('abcd'))
    page = review(found, df=df, label_col='tags', label_delim='|', path=tmp_path/'out')
    page.state.decide(page.state.keys.index(('1.png','no a')), 'predicted')
    assert page.corrected.set_index('id').tags['1.png']=='a'
    page.stop()
    with pytest.raises(ValueError, match='several labels per picture: give label_delim'): frame_review(found, df=df)
    with pytest.raises(ValueError, match='df is missing'): review(found, label_delim='|', path=tmp_path/'out')
    with pytest.raises(ValueError, match="row '4.png' of the suspects is not in df"):
        frame_sets(found, df[:4], label_col='tags', label_delim='|')

def test_wrong_tables(table, tmp_path, capsys):
    table.drop(columns='d').to_csv(tmp_path/'u.csv', index=False)
    args = dict(images=str(tmp_path/'p'), image_col='pic', label_col='tags', label_delim='|')
    for source,wrong in (('u.csv',"no column of probabilities of 'd'"), ('p','is no CSV'), ('none','is no CSV')):
        with pytest.raises(SystemExit) as e: main(str(tmp_path/source), **args)
        said = capsys.readouterr().err
        assert e.value.code==2 and wrong in said and said.count('\n')==1
    none = pd.DataFrame(dict(pic=['0.png','1.png'], tags=['a','b'], a=[1,None], b=[None,.5]))
    none.to_csv(tmp_path/'t.csv', index=False)
    with pytest.raises(ValueError, match='no row with probabilities'): read(tmp_path)
    none.assign(b=None).to_csv(tmp_path/'t.csv', index=False)
    with pytest.raises(ValueError, match="no column of probabilities of 'b'"): read(tmp_path)
    found = pd.DataFrame(dict(label=['a','no a'], given=[True,False], predicted=[True,True], score=[.5,.6]))
    with pytest.raises(ValueError, match="'no a' is a label"):
        SetReviewTable(found, ['x','y'], pd.DataFrame(dict(id=['x','y'], label=['a',''])))
