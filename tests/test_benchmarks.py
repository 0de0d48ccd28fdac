import json,multiprocessing,sys,time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

bench = Path(__file__).parent.parent/'benchmarks'
sys.path.insert(0, str(bench))
import cells

def test_torn_last_line_is_absent_and_replaced(tmp_path):
    r = cells.Results(tmp_path/'r.jsonl')
    r.add(dict(seed=0, mix='plain', v=1))
    with open(r.path, 'a') as f: f.write('{"seed": 1, "mi')
    assert len(r.lines())==1 and r.find(dict(seed=1)) is None
    r.add(dict(seed=1, mix='plain', v=2))
    assert [json.loads(o)['seed'] for o in r.path.read_text().splitlines()]==[0,1]
    with open(r.path, 'a') as f: f.write('{"seed": 2}') # whole but for its end: not there either, so not twice later
    r.add(dict(seed=2))
    assert [o['seed'] for o in r.lines()]==[0,1,2]

def test_torn_only_line(tmp_path):
    r = cells.Results(tmp_path/'r.jsonl')
    r.path.write_text('{"a"')
    assert r.lines()==[]
    r.add(dict(a=1))
    assert r.path.read_text()=='{"a": 1}\n'

def test_broken_line_in_the_middle_is_named(tmp_path):
    (tmp_path/'r.jsonl').write_text('{"a": 1}\nnothing\n{"a": 2}\n')
    with pytest.raises(ValueError, match='r.jsonl:2 is no JSON'): cells.Results(tmp_path/'r.jsonl').lines()

fork = pytest.mark.skipif('fork' not in multiprocessing.get_all_start_methods(), reason='needs fork')

def work(cell, tell, log, sleep):
    with open(log, 'a') as f: f.write(f"{cell['seed']}\n")
    time.sleep(sleep)
    return dict(v=1.)

def start(tmp_path, sleep, n=6):
    "A process, forked since importing torch again takes seconds, that runs `n` cells"
    args = [dict(mix='m', seed=s) for s in range(n)],partial(work, log=tmp_path/'log',
        sleep=sleep),cells.Results(tmp_path/'r.jsonl'),lambda c: 1
    p = multiprocessing.get_context('fork').Process(target=cells.run_cells, args=args)
    p.start()
    return p

@fork
def test_killed_cell_is_free_again_and_no_cell_is_there_twice(tmp_path):
    r,p = cells.Results(tmp_path/'r.jsonl'),start(tmp_path, 60)
    while not (tmp_path/'log').exists(): time.sleep(.01)
    with r.claim(dict(mix='m', seed=0)) as todo: assert not todo
    p.kill(), p.join()
    with r.claim(dict(mix='m', seed=0)) as todo: assert todo
    (tmp_path/'log').unlink()
    ps = [start(tmp_path, .2) for _ in range(3)] # they share the file
    for p in ps: p.join(30)
    assert [p.exitcode for p in ps]==[0]*3
    assert sorted(o['seed'] for o in r.lines())==list(range(6))
    assert sorted((tmp_path/'log').read_text().split())==list('012345')
    assert [o.name for o in r.locks.iterdir()]==['append']

def batches(bs, steps):
    x = torch.randint(256, (10,3,20,20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return list(cells.Batches(x, torch.arange(10), bs, steps, 16, 3, dict(mean=(.5,)*3, std=(.5,)*3)))

def test_batches_depend_on_the_seed_alone():
    a = batches(8, 5)
    torch.rand(7)
    b,c = batches(8, 5),batches(4, 10)
    assert all(torch.equal(x,x2) and torch.equal(y,y2) for (x,y),(x2,y2) in zip(a, b))
    # batches of half the size: the same pictures
    assert torch.equal(torch.cat([y for _,y in a]), torch.cat([y for _,y in c]))
    torch.testing.assert_close(torch.cat([x for x,_ in a]), torch.cat([x for x,_ in c]))
    assert sorted(torch.cat([y for _,y in a])[:10].tolist())==list(range(10)) # an epoch has each picture once

def test_augmentation_without_a_cut_is_the_picture_or_its_mirror():
    x = torch.randint(256, (64,3,16,16), dtype=torch.uint8)
    b = cells.Batches(x, None, 1, 1, 16, 0, None, scale=(1.,1.), ratio=1.)
    out = b.augment(x, torch.Generator().manual_seed(0))
    same,mirror = [torch.isclose(out, o.float(), atol=.01).flatten(1).all(1) for o in (x,x.flip(3))]
    assert (same|mirror).all() and 10<same.sum()<54

def test_ece():
    assert cells.ece(np.array([[1.,0]]*4), np.array([0,0,1,1]))==.5
    assert cells.ece(np.array([[.75,.25]]*4), np.array([0,0,0,1]))==0

@pytest.mark.parametrize('kind', ['type1','type2','type3'])
def test_noise_that_depends_on_the_picture(kind):
    import noise
    rng = np.random.default_rng(0)
    post = rng.dirichlet(np.full(10, .3), 8000)
    y = post.argmax(1)
    new = noise.type_noise(post, y, kind)
    second = np.where(np.eye(10, dtype=bool)[y], -1, post).argmax(1)
    flipped = new!=y
    assert abs(flipped.mean()-.35)<.02 and (new[flipped]==second[flipped]).all()
    gap = post.max(1)-np.sort(post)[:,-2]
    assert gap[flipped].mean()<gap[~flipped].mean()-.02

def test_quality_of_labels():
    import noise
    given,now,true = torch.tensor([0,0,1,1,2]),torch.tensor([1,0,1,2,2]),torch.tensor([1,1,1,1,2])
    q = noise.quality(given, now, true)
    assert q==pytest.approx(dict(label_before=.6, label_after=.6, changed=.4, precision=.5, recall=.5))
    assert noise.quality(given, given, true)['precision'] is None

def test_passes_see_no_augmentation():
    import cells,noise
    from types import SimpleNamespace
    from fastai_mix.callback.plc import ProgressiveLabelCorrection
    x = torch.randint(256, (40,3,37,37), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data,cell,watch = SimpleNamespace(x=x, vocab=['a','b']),dict(seed=0, bs=16, size=32, arch='resnet10t', frozen=0,
        lr=.003),noise.Passes()
    learn = noise.make_learner(data, torch.arange(40), torch.arange(40)%2, cell, None,
        [ProgressiveLabelCorrection(when='pass'),watch], lambda part: None)
    noise.fit(learn, cell, 1)
    torch.testing.assert_close(watch.all[-1], cells.predict(learn.model, x, 32, learn.model.default_cfg), rtol=1e-4,
        atol=1e-5)

def test_maps_that_point_at_the_object_cost_more():
    import maps
    g = torch.Generator().manual_seed(0)
    x,y = torch.full((64,3,64,64), 128, dtype=torch.uint8),torch.randint(2, (64,), generator=g)
    for i,(k,t,l) in enumerate(zip(y, *torch.randint(48, (2,64), generator=g))): x[i,k,t:t+16,l:l+16] = 255
    body = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 8, 8, bias=False), torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(), torch.nn.Linear(2, 2))
    with torch.no_grad():
        body[0].weight.zero_(), body[3].weight.copy_(torch.eye(2)), body[3].bias.copy_(torch.tensor([.01,0]))
        for k in range(2): body[0].weight[k,k] = 1
    o,places = maps.look(body, x, y, 64, dict(mean=(128/255,)*3, std=(1.,)*3))
    assert places==(8,8) and o['whole'].mean()==1 and o['least'].mean()==1
    assert o['most'].mean()<.7<o['anywhere'].mean() # all blobs hidden, so what is left is class 0
    assert o['other'].mean()>.7 # blobs are anywhere, so the map of another picture finds no more than chance does
    assert abs(o['mass']-o['area']).mean()>.1

def test_logistic_regression_is_that_of_scikit_learn():
    import looks
    from sklearn.linear_model import LogisticRegression
    rng = np.random.default_rng(0)
    y = np.arange(300)%3
    x = rng.normal(size=(300,5))+np.eye(3,5)[y]
    want = LogisticRegression(C=.1, tol=1e-8, max_iter=999).fit(x, y).predict_proba(x)
    assert abs(looks.Logistic(x, np.eye(3)[y], .1).probs(x)-want).max()<.01
    half = np.where(rng.random(300)<.5, y, (y+1)%3) # shares of classes: as rows of both classes
    both = LogisticRegression(C=.05, tol=1e-8, max_iter=999).fit(np.r_[x,x], np.r_[y,half]).predict_proba(x)
    assert abs(looks.Logistic(x, (np.eye(3)[y]+np.eye(3)[half])/2, .1).probs(x)-both).max()<.01

def test_looks():
    import looks
    from fastai_mix.data.suspects import suspects
    rng = np.random.default_rng(0)
    true = np.arange(60)%3
    given = np.where(np.arange(60)<9, (true+1)%3, true)
    probs = rng.dirichlet(np.ones(3), 60)*.1+.9*np.eye(3)[true]
    assert looks.look(given, true, np.array([3,1,2]), 2).tolist()==np.where(np.isin(np.arange(60), [3,1]), true,
        given).tolist()
    ways = {(m,n): (rows,targets) for m,n,rows,targets in looks.targets_of(probs, given, true, 0, [5,20])}
    right = {k: (t.argmax(1)==true[rows]).sum() for k,(rows,t) in ways.items()}
    assert right['given labels',0]==51 and right['true labels',60]==60 and right['flagged relabelled',0]==60
    assert right['suspects looked at',5]==56 and right['suspects looked at',20]==60
    assert 51<=right['random looked at',5]<=56
    assert len(ways['flagged left out',0][0])==60-suspects(probs, given).wrong.sum()
    soft = ways['suspects looked at, others soft',20][1]
    assert np.allclose(soft.sum(1), 1) and (soft.max(1)==1).sum()==20

def test_suspects_are_written_beside_those_of_other_settings(tmp_path):
    import suspects
    out = tmp_path/'r.json'
    frozen = [dict(noise=noise, seed=seed, method=m, ap=1) for noise in ('aggre','worst') for seed in (0,1) for m in 'ab']
    short,long = ([dict(noise='worst', seed=0, method=m, trained=1500, epochs=n, ap=2) for m in 'ab'] for n in (3,10))
    suspects.write(out, frozen)
    for rows in (short,long,short,long): suspects.write(out, rows)
    assert json.loads(out.read_text())['rows']==frozen+short+long
    suspects.write(out, [dict(frozen[0], ap=3)])
    assert json.loads(out.read_text())['rows']==[*frozen[2:],*short,*long,dict(frozen[0], ap=3)]

def test_what_a_model_of_one_class_would_change():
    import guard
    given = torch.arange(40)%2
    row = guard.figures_of(torch.tensor([[.9,.1]]).repeat(40, 1), given, given)
    assert not row['by_agreement'] and not row['by_soft'] and row['agreement']==row['commonest']==.5==row['soft']
    assert row['changed 0.7']==.5 and row['gain 0.7']==-.5
    row = guard.figures_of(torch.eye(2)[given]*.8+.1, 1-given, given)
    assert not row['by_agreement'] and row['gain 0.7']==1

def test_trainings_with_a_regularisation_and_a_correction():
    import regularise
    rng = np.random.default_rng(0)
    true = torch.arange(200)%2
    x = rng.normal(size=(200,4))+4*np.eye(2,4)[true]
    given = torch.where(torch.arange(200)<20, 1-true, true)
    for settings in ({}, regularise.tuned['elr'], regularise.tuned['plc']):
        t = regularise.Trainer(x, given, 2, 5, 0).fit(bs=20, **settings)
        assert (t.predict(x)==true).float().mean()>.9 and bool(t.targets.any())==('beta' in settings)
        assert ((t.ledger.current==true).sum()>180)==('first' in settings)

def test_a_long_tail():
    import balanced
    y = torch.arange(3000)%4
    y[:1200] = 2 # the largest class
    pool = np.arange(0, 3000, 3)
    train = balanced.long_tail(y, pool, 200, 50., 0)
    counts = np.bincount(y[train])
    assert set(train)<=set(pool) and len(set(train))==len(train) and counts.max()==counts[2]==200 and counts.min()==4
    assert sorted(counts)[1:3]==[round(200*50**(-2/3)),round(200*50**(-1/3))]
    assert (train==balanced.long_tail(y, pool, 200, 50., 0)).all()
    other = balanced.long_tail(y, pool, 200, 50., 1)
    assert (np.bincount(y[other])==counts).all() and set(other)!=set(train)

def test_rows_of_the_balanced_losses():
    import balanced
    score = {k:.5 for k in balanced.measures}
    cell = dict(data='a', arch='b', size=1, regime='head', epochs=1, lr=1., ratio=50., seconds=1.)
    lines = [dict(cell, loss=o, seed=s, **{k: v+.1*(o=='balanced')+.01*s for k,v in score.items()},
        **({'priors': {k: v+.05+.01*s for k,v in score.items()}} if o=='plain' else {}))
        for o in ('plain','balanced') for s in range(3)]
    rows = {o['method']: o for o in balanced.table(lines)}
    assert list(rows)==['plain','balanced','change_priors'] and rows['plain']['n']==3
    assert rows['balanced']['accuracy']['to_plain']['diff']==pytest.approx(.1)
    assert rows['change_priors']['accuracy']['to_plain']['diff']==pytest.approx(.05)
    without = balanced.table([o for o in lines if o['loss']=='plain']) # a regime of which half is done
    assert [o['n'] for o in without]==[3,0,3]
