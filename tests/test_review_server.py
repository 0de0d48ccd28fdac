"Who has the key gets the page, nobody else gets anything; filters and pages leave no row out."
import asyncio,json
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
from helpers import noise
from fastai_mix.review_server import ReviewState, page_size, review_app
from fastai_mix.review_table import ReviewTable

def make_state(tmp_path, n=60, **cols):
    "Rows of `n` pictures, of which the first ten are there"
    (tmp_path/'p').mkdir(exist_ok=True)
    for i in range(min(n, 10)): noise(i).save(tmp_path/'p'/f'{i}.png')
    table = pd.DataFrame(dict(id=[f'{i}.png' for i in range(n)], label=[*'abc']*(n//3)))
    rows = table.rename(columns={'label':'given'}).assign(path=[tmp_path/'p'/o for o in table.id], predicted='b',
        score=np.linspace(0, 1, n), fold=[*'01']*(n//2), wrong=[True]+[False]*(n-1)).assign(**cols)
    return ReviewState(ReviewTable(rows, table), tmp_path/'out')

@pytest.fixture
def state(tmp_path):
    (tmp_path/'out').mkdir()
    return make_state(tmp_path)

def ask(app, method='GET', path='/', data=None, query='', **headers):
    "Status, body and headers of an answer"
    body = data if isinstance(data, bytes) else json.dumps(data).encode()
    own = {'host':'127.0.0.1:80', 'cookie':'review_80=key'}
    if method=='POST': own |= {'origin':'http://127.0.0.1:80', 'content-type':'application/json', 'content-length':len(body)}
    headers = {k.replace('_', '-'): v for k,v in {**own, **headers}.items() if v is not None}
    scope = dict(type='http', method=method, path=path, query_string=query.encode(), server=('127.0.0.1',80),
        headers=[(k.encode(),str(v).encode()) for k,v in headers.items()])
    sent = []
    async def receive(): return dict(type='http.request', body=body)
    async def send(message): sent.append(message)
    asyncio.run(app(scope, receive, send))
    heads = {k.decode(): v.decode() for k,v in sent[0]['headers']}
    return sent[0]['status'],b''.join(o.get('body', b'') for o in sent[1:]),heads

foreign = [dict(host='evil.com'), dict(host='127.0.0.1.evil.com'), dict(host='evil.com:80'), dict(host=None), dict(cookie=None),
    dict(cookie='review_80=kez'), dict(cookie='review_81=key'), dict(origin='http://evil.com'), dict(origin='null'),
    dict(origin='http://127.0.0.1:81'), dict(origin='https://127.0.0.1:80'), dict(sec_fetch_site='cross-site'),
    dict(sec_fetch_site='same-site', sec_fetch_mode='no-cors')]

@pytest.mark.parametrize('headers', foreign, ids=str)
def test_foreign_requests_get_and_change_nothing(state, headers):
    app = review_app(state, 'key')
    for path in ('/','/thumb/0','/picture/0','/row/0','/classes','/state','/static/review.js','/nowhere'):
        status,body,_ = ask(app, path=path, **headers)
        assert status==403 and b'.png' not in body and b'data-row' not in body
    for path,data in (('/decide',dict(row=0, decision='drop')), ('/corrected',{}), ('/check',{})):
        assert ask(app, 'POST', path, data, **headers)[0]==403
    assert not len(state.decisions) and not (state.folder/'corrected.csv').exists() and not state.checking

def test_post_needs_its_origin_and_json(state):
    app = review_app(state, 'key')
    data = dict(row=0, decision='drop')
    assert ask(app, 'POST', '/decide', data, origin=None)[0]==403
    assert ask(app, 'POST', '/decide', data, content_type='text/plain')[0]==415
    assert ask(app, 'POST', '/decide', data, content_length=2**17)[0]==413
    assert ask(app, 'POST', '/decide', b'{')[0]==400 and ask(app, 'POST', '/decide', b'[]')[0]==400
    assert ask(app, 'GET', '/decide')[0]==405 and not len(state.decisions)
    assert ask(app, 'POST', '/decide', data)[0]==200 and len(state.decisions)==1

def test_key_becomes_a_cookie(state):
    app = review_app(state, 'key')
    status,_,headers = ask(app, query='token=key', cookie=None)
    assert status==303 and headers['location']=='/'
    assert 'review_80=key' in headers['set-cookie'] and {'HttpOnly','SameSite=strict'}<=set(headers['set-cookie'].split('; '))
    assert ask(app, query='token=kez', cookie=None)[0]==403 and ask(app, path='/key/', cookie=None)[0]==403
    visit = dict(sec_fetch_site='cross-site', sec_fetch_mode='navigate', sec_fetch_dest='document')
    assert ask(app, query='token=key', cookie=None, **visit)[0]==303
    assert ask(app, query='token=key', cookie=None, **{**visit, 'sec_fetch_dest':'iframe'})[0]==403

def test_key_in_the_path_of_a_frame(state):
    app = review_app(state, 'key', framed=True)
    visit = dict(cookie=None, sec_fetch_site='cross-site', sec_fetch_mode='navigate', sec_fetch_dest='iframe')
    status,_,headers = ask(app, path='/key/', **visit)
    assert status==200 and 'frame-ancestors' not in headers['content-security-policy']
    assert ask(app, path='/key/thumb/0', cookie=None)[0]==200 and ask(app, path='/kez/', cookie=None)[0]==403
    assert ask(app, 'POST', '/key/decide', dict(row=0, decision='keep'), cookie=None)[0]==200

def test_headers(state):
    app = review_app(state, 'key')
    for path in ('/','/thumb/0','/nowhere'):
        headers = ask(app, path=path)[2]
        assert "default-src 'none'" in headers['content-security-policy'] and "'unsafe" not in headers['content-security-policy']
        assert "frame-ancestors 'none'" in headers['content-security-policy']
        assert headers['x-content-type-options']=='nosniff' and headers['cross-origin-resource-policy']=='same-origin'
    assert ask(app)[2]['cache-control']=='no-store'

def test_pictures_by_row_number_alone(state, tmp_path):
    app = review_app(state, 'key')
    assert ask(app, path='/thumb/0')[1][:3]==ask(app, path='/picture/0')[1][:3]==b'\xff\xd8\xff'
    for path in ('/thumb/60','/thumb/-1','/thumb/x','/thumb/../0','/thumb/%2e%2e','/picture/59','/static/../review.py',
        '/static/review.py','/map/0/given', '/row/60', '/picture/'+str(tmp_path/'p'/'0.png')):
        assert ask(app, path=path)[0]==404, path
    state.rows.loc[0,'path'] = Path('/etc/passwd')
    assert ask(review_app(state, 'key'), path='/picture/0')[0]==404

def test_wrong_decisions_are_refused_in_words(state):
    app = review_app(state, 'key')
    for data,word in ((dict(row=60, decision='keep'),'no row 60'), (dict(row='0', decision='keep'),'no row'), (dict(row=True,
        decision='keep'),'no row'), (dict(row=0, decision='burn'),'burn'), (dict(row=0, decision='other', label='z'),"no class 'z'"),
        (dict(row=0, decision='undo'),'no decision to undo')):
        status,body,_ = ask(app, 'POST', '/decide', data)
        assert status==400 and word in body.decode()
    assert ask(app, 'POST', '/decide', dict(row=0))[0]==400 and not len(state.decisions)

def test_disk_that_is_full(state, monkeypatch):
    import os
    write = os.write
    monkeypatch.setattr(os, 'write', lambda fd,data: write(fd, data[:3]) if data[:2] in (b'id',b'0.') else write(fd, data))
    status,body,_ = ask(review_app(state, 'key'), 'POST', '/decide', dict(row=0, decision='keep'))
    assert status==507 and b'Not saved' in body and not len(state.decisions)

def pages(state, **query):
    "Numbers of the rows of each page, and of all"
    begin,seen = 0,[]
    while begin is not None:
        html = state.page({**query, 'from':str(begin)})
        seen.append([int(o.split('"')[0]) for o in html.split('data-row="')[1:]])
        next_ = html.split('id="next"')[0].rsplit('from=', 1) if 'id="next"' in html else None
        begin = int(next_[1].split('"')[0]) if next_ else None
    return seen

def test_pages_hold_every_row_once(state):
    found = pages(state)
    assert sum(found, [])==[*range(60)] and [*map(len, found)]==[24,24,12]
    assert sum(pages(state, given='a', fold='1'), [])==[i for i in range(60) if i%3==0 and i%2==1]

def test_next_page_of_undecided_leaves_none_out(state):
    first = pages(state, show='undecided')[0]
    for i in first[:10]: state.decide(i, 'keep')
    rest = state.page({'show':'undecided', 'from':str(page_size)}) # what the link of the first page says
    assert f'data-row="{page_size}"' in rest and len(state.select({'show':'undecided'}))==50

def test_filters(state):
    for i,decision in enumerate(('predicted','keep','other','drop','unsure')): state.decide(i, decision, 'c' if i==2 else '')
    def rows(**query): return state.select(query).tolist()
    assert rows(show='decided')==[0,1,2,3,4] and rows(show='changed')==[0,2] and rows(show='dropped')==[3]
    assert rows(show='unsure')==[4] and rows(show='wrong')==[0] and rows(predicted='b')==[*range(60)] and rows(given='z')==[]
    assert rows(pair='0')==[i for i in range(60) if i%3==0] and rows(pair='99')==rows(show='nonsense')==[*range(60)]
    state.faults = pd.DataFrame(dict(row=[5,7], kind=['duplicate','unreadable'], detail=['like 1.png','']))
    assert rows(faults='duplicate')==[5] and rows(faults='unreadable')==[7] and state.faults_of(5)==['duplicate: like 1.png']
    for value in ('-1','x','9'*30,'²'): assert 'data-row="0"' in state.page({'from':value})

def test_rows_of_one_picture_and_label_share_a_decision(tmp_path):
    (tmp_path/'out').mkdir()
    state = make_state(tmp_path, id='same.png')
    made = state.decide(0, 'keep')
    assert made['rows']==[*range(0, 60, 3)] and state.n_looked==20

def test_decisions_are_there_after_a_start(state, tmp_path):
    state.decide(3, 'drop')
    state.decide(4, 'other', 'c')
    state.decide(4, 'undo')
    again = make_state(tmp_path)
    assert again.codes.tolist()==state.codes.tolist() and again.n_looked==1

def test_windows_see_each_other(state):
    app = review_app(state, 'key')
    ask(app, 'POST', '/decide', dict(row=2, decision='keep'))
    ask(app, 'POST', '/decide', dict(row=2, decision='drop'))
    answer = json.loads(ask(app, path='/state', query='rows=1,2,x,999')[1])
    assert answer['rows']==[[1,'',''],[2,'drop','']] and answer['looked']==1 and answer['total']==60

def test_corrected_csv(state):
    state.decide(0, 'predicted')
    state.decide(1, 'drop')
    answer = json.loads(ask(review_app(state, 'key'), 'POST', '/corrected', {})[1])
    table = pd.read_csv(state.folder/'corrected.csv')
    assert (answer['rows'],answer['changed'],answer['dropped'])==(59,1,1) and [*table]==['id','label','given_label']
    assert table.iloc[0].tolist()==['0.png','b','a'] and '1.png' not in set(table.id)

def test_faults_are_found_once(state, tmp_path):
    state.check_pictures()
    while state.checking: pass
    assert (state.faults.kind=='unreadable').sum()==50 and (state.folder/'faults.csv').is_file()
    assert make_state(tmp_path).faults.equals(state.faults)
    (state.folder/'faults.csv').write_text('row,kind,detail\n99,duplicate,\n') # of another table
    assert make_state(tmp_path).faults is None
