"""Does the page of suspect labels lose a decision when its server is killed? And how long does a page of 100,000 rows
take, and a decision?"""
import argparse,http.client,json,os,random,shutil,sys,tempfile,threading,time
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from fastai_mix.decisions import DecisionFile, decision_kinds, read_decisions
from fastai_mix.files import write_atomic
from kills import processes

def make_table(folder, n_rows, n_pictures=50, side=256, seed=0):
    "A CSV of `n_rows` scored labels, and a JPEG for each, of `n_pictures` different ones"
    rng,images = np.random.default_rng(seed),Path(folder)/'images'
    images.mkdir(parents=True)
    for i in range(n_rows):
        if i>=n_pictures: os.link(images/f'{i%n_pictures}.jpg', images/f'{i}.jpg')
        else:
            pixels = rng.integers(0, 255, (8,8,3), dtype=np.uint8)
            Image.fromarray(pixels).resize((side,side), Image.Resampling.BICUBIC).save(images/f'{i}.jpg')
    classes = np.array([f'class{i}' for i in range(10)])
    table = pd.DataFrame(dict(image_id=[f'{i}.jpg' for i in range(n_rows)], label=classes[np.arange(n_rows)%10],
        predicted=classes[rng.integers(0, 10, n_rows)], score=rng.random(n_rows)))
    table.to_csv(Path(folder)/'table.csv', index=False)
    return Path(folder)/'table.csv'

def serve(file, images, out, slow=0.):
    "Serve the page, and write its address into `out`; each sync to the disk takes up to `slow` seconds more"
    from fastai_mix.review import LabelReview
    from fastai_mix.review_table import read_review
    if slow:
        fsync,rng = os.fsync,random.Random(os.getpid())
        os.fsync = lambda fd: (fsync(fd), time.sleep(slow*rng.random()))
    start = time.perf_counter()
    review = LabelReview(read_review(file, images=images), out)
    said = dict(url=review.url, read_seconds=time.perf_counter()-start)
    write_atomic(Path(out)/'said.json', lambda f: f.write_text(json.dumps(said)))
    review.run()

class Client:
    "A window: one connection, with the key as its cookie"
    def __init__(self, url):
        address,token = url.split('/?token=')
        self.host = address.removeprefix('http://')
        self.headers = {'Cookie': f"review_{self.host.split(':')[1]}={token}", 'Origin':address}
        self.connection = http.client.HTTPConnection(self.host, timeout=60)

    def ask(self, path, data=None):
        "Body of the answer; ConnectionError if the server is gone"
        headers = {**self.headers, **({'Content-Type':'application/json'} if data is not None else {})}
        body = None if data is None else json.dumps(data)
        try:
            self.connection.request('GET' if data is None else 'POST', path, body, headers)
            answer = self.connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException) as e: raise ConnectionError(str(e)) from None
        if answer.status!=200: raise RuntimeError(f'{answer.status}: {content[:200]}')
        return content

def start(file, images, out, slow=0.):
    "A process that serves, and what it said"
    said = Path(out)/'said.json'
    said.unlink(missing_ok=True)
    p = processes.Process(target=serve, args=(file, images, out, slow), daemon=True)
    p.start()
    while not said.exists():
        assert p.is_alive(), 'the server ended'
        time.sleep(.005)
    return p,json.loads(said.read_text())

def stream(url, rows, seed, confirmed):
    "Decide until the server is gone; `confirmed` gets the row and the decision of each answer"
    rng,client = random.Random(seed),Client(url) # a connection per window
    while True:
        row,decision = rng.choice(rows),rng.choice(decision_kinds)
        data = dict(row=row, decision=decision, label='class0' if decision=='other' else '')
        try: made = json.loads(client.ask('/decide', data))
        except ConnectionError: return
        confirmed.append((row, made['decision'], made['label']))

def kills(n=50, windows=2, seed=0, longest=.5, n_rows=500):
    "Kill the server `n` times while windows stream decisions; count confirmed decisions that are not in the file"
    rng,tmp = random.Random(seed),Path(tempfile.mkdtemp())
    try:
        file,out = make_table(tmp, n_rows),tmp/'out'
        from fastai_mix.review_table import read_review
        keys,confirmed = read_review(file, images=tmp/'images').keys,Counter()
        res = dict(kills=0, windows=windows, confirmed=0, lost=0, unreadable=0, unfinished_lines=0)
        while res['kills']<n:
            p,said = start(file, tmp/'images', out, .02)
            answers = [[] for _ in range(windows)]
            threads = [threading.Thread(target=stream, args=(said['url'], range(i, n_rows, windows), rng.random(), o))
                for i,o in enumerate(answers)]
            for t in threads: t.start()
            while not any(answers): time.sleep(.005)
            time.sleep(rng.uniform(0, longest))
            p.kill()
            p.join()
            for t in threads: t.join()
            confirmed.update((*keys[row],decision,label) for window in answers for row,decision,label in window)
            res['kills'],res['confirmed'] = res['kills']+1,confirmed.total()
            if not (out/'decisions.csv').exists(): continue
            # a disk that lost its power may keep a part of a line
            with open(out/'decisions.csv', 'ab') as f: f.write(b'"half of a line\n,'[:rng.randrange(17)])
            try:
                read_decisions(out/'decisions.csv')
                res['unfinished_lines'] += DecisionFile(out/'decisions.csv').n_removed>0
            except ValueError:
                res['unreadable'] += 1
                continue
            lines = pd.read_csv(out/'decisions.csv', dtype=str, keep_default_na=False)
            res['lost'] = (confirmed-Counter(lines[['id','given','decision','label']].itertuples(index=False, name=None))).total()
        return res
    finally: shutil.rmtree(tmp)

def speed(n_rows=100_000, n_decisions=200, n_pictures=1000):
    "Seconds of the first page, of its small pictures, and of decisions"
    tmp = Path(tempfile.mkdtemp())
    try:
        file,out = make_table(tmp, n_rows, n_pictures),tmp/'out'
        p,said = start(file, tmp/'images', out)
        client,begin = Client(said['url']),time.perf_counter()
        page = client.ask('/').decode()
        first_page = time.perf_counter()-begin
        numbers = [int(o.split('"')[0]) for o in page.split('data-row="')[1:]]
        for i in numbers: client.ask(f'/thumb/{i}')
        with_pictures = time.perf_counter()-begin
        times = []
        for row in range(n_decisions):
            begin = time.perf_counter()
            client.ask('/decide', dict(row=row, decision='keep'))
            times.append(time.perf_counter()-begin)
        begin = time.perf_counter()
        client.ask('/?show=undecided&given=class3')
        filtered = time.perf_counter()-begin
        p.kill()
        p.join()
        return dict(rows=n_rows, read_seconds=said['read_seconds'], first_page_seconds=first_page,
            first_page_with_pictures_seconds=with_pictures, filtered_page_seconds=filtered, decisions=n_decisions,
            decision_median_seconds=float(np.median(times)), decision_p95_seconds=float(np.quantile(times, .95)),
            decision_max_seconds=max(times))
    finally: shutil.rmtree(tmp)

if __name__=='__main__':
    sys.path.insert(0, str(Path(__file__).parent))
    import review as this # children find the functions by this name
    from cells import record
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--kills', type=int, default=50)
    p.add_argument('--rows', type=int, default=100_000)
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--json', action='store_true', help='end with one JSON object')
    p.add_argument('--out', help='file to write the JSON object to')
    opts = p.parse_args()
    res = dict(record=record(), kills=this.kills(opts.kills, seed=opts.seed), speed=this.speed(opts.rows))
    for part in ('kills','speed'):
        for k,v in res[part].items(): print(f'{k:34} {v:.3g}' if isinstance(v, float) else f'{k:34} {v}')
    if opts.out: Path(opts.out).write_text(json.dumps(res, indent=1)+'\n')
    if opts.json: print(json.dumps(res))
