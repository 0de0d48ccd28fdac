"Pictures that repeat: the search for similar hashes finds what comparing all with all finds."
import io
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from fastai_mix.data import similar
from PIL import Image
from fastai_mix.data.leaves import draw_leaf
from fastai_mix.data.similar import (_close_pairs, _count_bits, _packed, _search_plan, nearest_hashes, picture_hash,
    repeated_pictures, similar_hashes, unsure_hashes)

bits = st.integers(1, 40).flatmap(lambda n: st.lists(st.integers(0, 5), min_size=n, max_size=n))

@given(bits, st.integers(0, 2**31), st.integers(0, 12))
@settings(max_examples=60, deadline=None)
def test_search_for_similar_hashes(which, seed, near):
    rng = np.random.default_rng(seed)
    base = rng.choice([-1,1], (6,64)).astype(np.int8)
    b = base[which]*np.where(rng.random((len(which),64))<.08, -1, 1).astype(np.int8)
    d = (b[:,None]!=b[None]).sum(-1)
    assert set(zip(*similar_hashes(b, near, chunk=7)))==set(zip(*np.nonzero(d<=near)))
    nearest,dist = nearest_hashes(b, b, earlier=True, chunk=7)
    assert dist[0]==np.inf and all(dist[i]==d[i,:i].min()==d[i,nearest[i]] and nearest[i]<i for i in range(1, len(b)))
    nearest,dist = nearest_hashes(b[:5], b[::-1], chunk=3)
    assert (dist==0).all()

def hashes(rng, n, few=.2):
    "Hashes of `n` pictures, half of them like an earlier one, some with frequencies"
    a = rng.choice([-1,1], (n,256)).astype(np.int8)
    freq = rng.normal(size=(n,256))
    for i in range(1, n):
        if rng.random()<.5:
            j = rng.integers(i)
            a[i] = a[j]*np.where(rng.random(256)<rng.random()*.3, -1, 1)
            freq[i] = freq[j]+rng.normal(size=256)*rng.random()
    freq *= 16/np.linalg.norm(freq, axis=1, keepdims=True)
    return [np.concatenate([o, f]) if rng.random()<few else o for o,f in zip(a, freq)]

@pytest.mark.parametrize('near,flips', [(0,0), (5,0), (5,1), (17,1), (16,2), (24,2), (32,2)])
@pytest.mark.parametrize('few', [0,.3,1])
def test_search_by_parts_finds_what_comparing_all_finds(near, flips, few):
    rng = np.random.default_rng(near)
    a,b = hashes(rng, 400, few),hashes(rng, 200, few)
    b[:50] = [o*np.where(np.arange(len(o))<rng.integers(20), -1, 1) for o in a[:50]]
    parts,search = near//(flips+1)+1,similar._close_pairs
    plan = parts,flips,min(256//parts, 14)
    with pytest.MonkeyPatch.context() as m:
        for x,y,earlier in ((a,a,True), (a,b,False), (b,a,False)):
            m.setattr(similar, '_close_pairs', lambda *_: None)
            nearest,dist = nearest_hashes(x, y, earlier)
            m.setattr(similar, '_close_pairs', lambda *args: search(*args, plan=plan))
            nearest2,dist2 = nearest_hashes(x, y, earlier, near=near)
            assert search(x, y, near, earlier, plan=plan) is not None
            close = dist<=near
            assert (close==(dist2<=near)).all() and (nearest[close]==nearest2[close]).all()
            assert np.allclose(dist[close], dist2[close], atol=2e-3)
        pairs = set(zip(*similar_hashes(a, near)))
        m.setattr(similar, '_close_pairs', lambda *_: None)
        assert pairs==set(zip(*similar_hashes(a, near)))|{(i,i) for i in range(400)}

@pytest.mark.parametrize('near', [0,8,20,32])
@pytest.mark.parametrize('few', [0,.3])
def test_hashes_that_a_small_error_would_decide(near, few, monkeypatch):
    h = hashes(np.random.default_rng(near), 300, few)
    def distance(a, b): return max((256-a[:256]@b[:256])/2, (256-a[256:]@b[256:])/2 if len(a)==len(b)>256 else 0)
    wide = [o.astype(float) for o in h]
    d = np.array([[distance(a, b) for b in wide] for a in wide])
    np.fill_diagonal(d, np.inf)
    want = np.flatnonzero((abs(d-near)<=8).any(1)).tolist()
    assert 0<len(want)<300 and unsure_hashes(h, near).tolist()==want
    monkeypatch.setattr(similar, '_close_pairs', lambda *_: None)
    assert unsure_hashes(h, near, chunk=70).tolist()==want

def test_the_hash_of_a_smaller_scale_differs_in_few_bits():
    for i in range(12):
        data = io.BytesIO()
        draw_leaf([2,i], size=160)[0].resize((1300,1100), Image.BICUBIC).save(data, 'jpeg', quality=90)
        whole,im = picture_hash(Image.open(data)),Image.open(data)
        im.draft(None, (256,256))
        scaled = picture_hash(im)
        assert im.size==(325,275) and len(scaled)==len(whole)==256 and (scaled!=whole).sum()<=8

@pytest.mark.parametrize('near', [0,1,31,32,33,40,128,32.5])
def test_every_plan_of_a_search_misses_nothing(near):
    for n in (100, 10**4, 10**6):
        plan = _search_plan(256, near, n, n)
        # so not all parts can differ in more than so many bits
        if plan: assert plan[0]*(plan[1]+1)>near and plan[0]<=256
    assert _search_plan(256, 32, 10**5, 10**5) and not _search_plan(256, 128, 10**5, 10**5)

def test_where_most_are_alike_all_are_compared():
    b = np.ones((3000,256), np.int8)
    b[np.arange(3000),np.arange(3000)%256] = -1
    assert _search_plan(256, 32, 3000, 3000) and _close_pairs(list(b), list(b), 32, True) is None
    nearest,dist = nearest_hashes(b, b, earlier=True, near=32)
    assert dist[1:].max()==2 and (dist[256:]==0).all() and nearest[300]==44
    assert len(similar_hashes(b, 32).T)==3000**2

def test_bits_are_counted_without_the_function_of_numpy_2(monkeypatch):
    a = np.random.default_rng(0).choice([-1,1], (50,200)).astype(np.int8)
    want = (a>0).sum(1).tolist()
    assert _count_bits(_packed(a)).sum(1).tolist()==want
    monkeypatch.delattr(np, 'bitwise_count', raising=False)
    assert _count_bits(_packed(a)).sum(1).tolist()==want

def slow_repeats(digests, labels):
    "Duplicates and conflicts as two loops over all pairs find them: (row, fault, other row)"
    rows = [i for i,o in enumerate(digests) if o is not None]
    for i in rows:
        same = [j for j in rows if digests[j]==digests[i]]
        if same[0]<i: yield i,'duplicate',same[0]
        unlike = [j for j in same if None not in (labels[i],labels[j]) and labels[j]!=labels[i]]
        if unlike: yield i,'conflicting labels',unlike[0]

@given(st.lists(st.tuples(st.sampled_from([None,b'a',b'b',b'c']), st.sampled_from([None,'x','y','z'])), max_size=12))
@settings(max_examples=100, deadline=None)
def test_rows_that_repeat_others(files):
    digests,labels = [o for o,_ in files],[o for _,o in files]
    found,names = [([], o, None) for o in digests],[f'{i}.jpg' for i in range(len(files))]
    rows = list(repeated_pictures(found, names, 32, labels))
    assert {(i,fault,j) for i,fault,_,j in rows}==set(slow_repeats(digests, labels))
    for i,fault,detail,j in rows:
        want = f'{labels[i]!r} here, {labels[j]!r} at {j}.jpg' if 'labels' in fault else f'same bytes as {j}.jpg'
        assert detail==want and type(i) is type(j) is int
    unlabelled = [o for o in repeated_pictures(found, names, None, None)]
    assert unlabelled==[o for o in rows if o[1]=='duplicate']

def test_a_near_duplicate_is_that_of_the_first_file():
    h = np.where(np.arange(256)%3, 1, -1).astype(np.int8)
    close,apart = np.where(np.arange(256)<9, -h, h),-h
    found = [([], digest, o) for digest,
        o in ((b'a',h), (b'b',close), (b'b',close), (b'c',apart), (None,None), (b'd',None))]
    def faults(labels): return list(repeated_pictures(found, list('ABCDEF'), 32, labels))
    assert faults(None)==[(2,'duplicate','same bytes as B',1), (1,'near duplicate','9 of 256 bits from A',0)]
    assert faults(['x','y']*3)[-1][2]=="9 of 256 bits from A, which is 'x' and this 'y'"

@pytest.mark.parametrize('length', [8,16,24,20])
def test_numbers_of_digests(length):
    rng = np.random.default_rng(length)
    pool = [rng.bytes(length) for _ in range(20)]
    pool += [pool[0][:-8]+pool[1][-8:], pool[1][:-8]+pool[0][-8:]] # parts are equal
    pool += [bytes(length), bytes(length-1)+b'\1']
    digests = [pool[i] for i in rng.integers(len(pool), size=300)]
    first = {d: i for i,d in enumerate(dict.fromkeys(digests))}
    assert similar._numbered(digests).tolist()==[first[d] for d in digests] and len(similar._numbered([]))==0
