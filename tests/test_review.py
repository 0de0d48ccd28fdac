"The page in a browser: by keys and by clicks, with hostile names, on a phone; and its server, killed and started again."
import json,re,shutil,threading,time
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import numpy as np
import pandas as pd
import pytest
from helpers import axe_source, noise
from fastai_mix.decisions import DecisionFile
from fastai_mix.review import LabelReview, main, review
from fastai_mix.review_table import ReviewTable

hostile = ['<script>document.title="bad"</script>.png', '../../up.png', '"quoted" \'too\'.png', 'line\nfeed.png', 'a & b <b>.png']

def make_table(folder, n=1000, n_pictures=20):
    "Rows of `n` labels that share pictures; the most suspect have hostile names"
    folder.mkdir(exist_ok=True)
    for i in range(n_pictures): noise(i, (80,60)).save(folder/f'{i}.png')
    ids = hostile+[f'leaf {i}.png' for i in range(len(hostile), n)]
    given = ['<i>rust</i>','scab','healthy','x" onfocus="y']*(n//4)
    table = pd.DataFrame(dict(id=ids, label=given))
    rows = table.rename(columns={'label':'given'}).assign(path=[folder/f'{i%n_pictures}.png' for i in range(n)],
        predicted=['scab','healthy']*(n//2), p_given=.1, p_predicted=.8, score=np.linspace(0, 1, n), fold='0')
    rows.loc[7,'path'] = folder/'none.png'
    return ReviewTable(rows, table, name='leaves <1>', note='fastai-mix --data CORRECTED')

@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    webdriver = pytest.importorskip('selenium.webdriver')
    chrome,driver = (next(filter(None, map(shutil.which, o)), None)
        for o in (('chromium','google-chrome','chrome'), ('chromedriver',)))
    if not (chrome and driver):
        pytest.skip('no Chromium and ChromeDriver: Debian has both, as chromium and chromium-driver')
    opts = webdriver.ChromeOptions()
    opts.binary_location = chrome
    for o in ('headless=new','no-sandbox','disable-gpu','no-first-run','disable-background-networking','disable-sync',
        'disable-component-update','disable-dev-shm-usage',f"user-data-dir={tmp_path_factory.mktemp('profile')}"):
        opts.add_argument(f'--{o}')
    opts.set_capability('goog:loggingPrefs', {'browser':'ALL', 'performance':'ALL'})
    b = webdriver.Chrome(options=opts, service=webdriver.ChromeService(driver))
    b.set_script_timeout(60)
    yield b
    b.quit()

@pytest.fixture
def shown(tmp_path, browser):
    "A page that is shown, and opened in the browser"
    page = LabelReview(make_table(tmp_path/'p'), tmp_path/'out').start()
    media(browser, 'light', 1280)
    browser.get(page.url)
    browser.execute_script('sessionStorage.clear()')
    yield page
    page.stop()

def media(browser, theme, width):
    browser.execute_cdp_cmd('Emulation.setEmulatedMedia',
        {'features': [{'name': 'prefers-color-scheme', 'value': theme}, {'name': 'prefers-reduced-motion', 'value': 'reduce'}]})
    browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', dict(width=width, height=900, deviceScaleFactor=1,
        mobile=False))

def until(condition, seconds=20):
    "Wait for a condition that comes true"
    end = time.time()+seconds
    while not condition():
        assert time.time()<end, 'it did not come true'
        time.sleep(.02)

def press(browser, *keys):
    from selenium.webdriver.common.action_chains import ActionChains
    for key in keys: ActionChains(browser).send_keys(key).perform()

def one(browser, css): return browser.find_element('css selector', css)

def text(browser, css): return one(browser, css).get_attribute('textContent')

def decided(browser, row): return browser.execute_script(
    f"return document.querySelector('.card[data-row=\"{row}\"]').dataset.decided")

def made(page): return [(page.state.keys.index((o.id,o.given)), o.decision, o.label) for o in page.decisions.itertuples()]

def test_by_keys(shown, browser):
    from selenium.webdriver.common.keys import Keys
    for i,(key,decision) in enumerate(dict(p='predicted', k='keep', d='drop', u='unsure').items()):
        press(browser, key)
        until(lambda: decided(browser, i)==decision)
    assert text(browser, '#looked')=='4' and len(DecisionFile(shown.folder/'decisions.csv'))==4
    press(browser, 'o')
    until(lambda: one(browser, '#picker').get_attribute('open') and browser.execute_script(
        "return document.activeElement.id")=='search')
    press(browser, 'onfo', Keys.ENTER)
    until(lambda: decided(browser, 4)=='other')
    press(browser, Keys.ARROW_RIGHT, Keys.ENTER)
    until(lambda: one(browser, '#view').get_attribute('open'))
    assert text(browser, '#view-title')=='leaf 6.png'
    press(browser, 'k')
    until(lambda: decided(browser, 6)=='keep' and text(browser, '#view-title')=='leaf 7.png')
    press(browser, 'z')
    until(lambda: not decided(browser, 6) and text(browser, '#view-title')=='leaf 6.png')
    press(browser, Keys.ESCAPE)
    until(lambda: not one(browser, '#view').get_attribute('open'))
    assert made(shown)==[(0,'predicted','scab'), (1,'keep','scab'), (2,'drop',''), (3,'unsure',''), (4,'other','x" onfocus="y')]
    press(browser, 'n')
    until(lambda: browser.execute_script("return document.querySelector('.card').dataset.row")=='24')
    press(browser, 'z')
    until(lambda: text(browser, '#looked')=='4')
    press(browser, 'b')
    until(lambda: browser.execute_script("return document.querySelector('.card').dataset.row")=='0')
    assert not decided(browser, 4) and decided(browser, 2)=='drop'

def test_by_clicks_reload_and_another_window(shown, browser):
    one(browser, '.card[data-row="1"] [data-decision=keep]').click()
    until(lambda: decided(browser, 1)=='keep')
    one(browser, '.card[data-row="2"] [data-decision=other]').click()
    until(lambda: browser.find_elements('css selector', '#options li'))
    browser.find_elements('css selector', '#options li')[-1].click()
    until(lambda: decided(browser, 2))
    shown.state.decide(3, 'drop') # another window
    browser.execute_script("document.dispatchEvent(new Event('visibilitychange'))")
    until(lambda: decided(browser, 3)=='drop' and text(browser, '#looked')=='3')
    browser.refresh()
    assert decided(browser, 1)=='keep' and decided(browser, 3)=='drop' and text(browser, '#looked')=='3'
    one(browser, '.card[data-row="3"] .undo').click()
    until(lambda: not decided(browser, 3))
    one(browser, '#write').click()
    until(lambda: one(browser, '#written').get_attribute('open'))
    assert '1,000 rows' in text(browser, '#written-text') and (shown.folder/'corrected.csv').is_file()

def test_filters_leave_what_is_asked_for(shown, browser):
    from selenium.webdriver.support.ui import Select
    shown.state.decide(0, 'keep')
    Select(one(browser, 'select[name=show]')).select_by_value('undecided')
    until(lambda: 'show=undecided' in browser.current_url and '999' in text(browser, '.bar-line'))
    Select(one(browser, 'select[name=given]')).select_by_value('<i>rust</i>')
    until(lambda: 'given=' in browser.current_url and '249' in text(browser, '.bar-line'))

def test_hostile_names_are_text_and_nothing_leaves_the_machine(shown, browser):
    assert browser.title=='Suspect labels, leaves <1>'
    names = browser.execute_script("return [...document.querySelectorAll('.card .name')].slice(0,5).map(o => o.textContent)")
    assert [' '.join(o.split()) for o in names]==[' '.join(o.split()) for o in hostile]
    assert not browser.find_elements('css selector', '.card i, .card b, main script')
    until(lambda: browser.find_elements('css selector', '.card[data-row="7"] .unreadable'))
    events = [json.loads(o['message'])['message'] for o in browser.get_log('performance')]
    own = shown.url.split('?')[0]
    asked = [o['params']['request']['url'] for o in events if o['method']=='Network.requestWillBeSent'
        and o['params']['documentURL'].startswith(own)] # not those of a new tab
    assert len(asked)>20 and not [o for o in asked if not o.startswith(own)]
    said = [o['message'] for o in browser.get_log('browser') if own in o['message'] and '/thumb/7' not in o['message']]
    assert not said, said

def violations(browser):
    found = browser.execute_async_script(
        "axe.run({resultTypes: ['violations']}).then(arguments[0])")['violations']
    return [f"{v['id']}: {v['nodes'][0]['html'][:150]} {v['nodes'][0]['failureSummary'][:200]}" for v in found]

def test_accessible_and_fits_a_phone(shown, browser):
    shown.state.decide(0, 'predicted')
    shown.state.decide(2, 'drop')
    faults = []
    for theme,width in (('light',1280), ('dark',375)):
        media(browser, theme, width)
        browser.get(shown.url)
        browser.execute_cdp_cmd('Runtime.evaluate', dict(expression=axe_source())) # the page's policy forbids scripts of others
        faults += [f'{theme} {o}' for o in violations(browser)]
        for opened in ('', "document.querySelector('.card .picture').click()", "document.querySelector('#keys').showModal()"):
            browser.execute_script(opened)
            if 'click' in opened: until(lambda: one(browser, '#view').get_attribute('open'))
            if opened: faults += [f'{theme} {opened}: {o}' for o in violations(browser)]
            media(browser, theme, 375)
            wide = browser.execute_script("return [document.documentElement.scrollWidth, ...[...document.querySelectorAll("
                "'dialog[open]')].map(o => o.scrollWidth)]")
            assert max(wide)<=375, (opened, wide)
            media(browser, theme, width)
            browser.execute_script("document.querySelectorAll('dialog[open]').forEach(o => o.close())")
        colour = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r'\d+', colour)[:3]))/3>192)==(theme=='light')
    assert not faults, '\n'.join(faults)

def test_other_pages_of_the_browser_get_nothing(shown, browser, tmp_path):
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    class Evil(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'<title>evil</title>')
        def log_message(self, *args): pass
    server = ThreadingHTTPServer(('127.0.0.1', 0), Evil)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        own = shown.url.split('?')[0]
        for host in ('127.0.0.1','localhost'): # another port of this computer, and another site
            browser.get(f'http://{host}:{server.server_port}/')
            result = browser.execute_async_script("""const [url, done] = arguments
                const body = JSON.stringify({row: 0, decision: 'drop'}), im = new Image()
                const tries = [fetch(url, {credentials: 'include'}), fetch(url + 'decide', {method: 'POST', credentials: 'include', body}),
                    fetch(url + 'decide', {method: 'POST', mode: 'no-cors', credentials: 'include', body}),
                    new Promise((ok, no) => { im.onload = ok; im.onerror = no; im.src = url + 'thumb/0' })]
                Promise.allSettled(tries).then(o => done(o.map((k, i) => k.status === 'fulfilled' && i !== 2)))""", own)
            assert result==[False]*4
        assert not len(shown.decisions)
    finally: server.shutdown()

def test_killed_server_is_named_and_the_next_one_goes_on(tmp_path, browser):
    table = make_table(tmp_path/'p')
    page = LabelReview(table, tmp_path/'out').start()
    media(browser, 'light', 1280)
    browser.get(page.url)
    press(browser, 'k')
    until(lambda: decided(browser, 0)=='keep')
    page.stop()
    press(browser, 'd')
    until(lambda: 'Not saved' in text(browser, '#alert'))
    assert not decided(browser, 1)
    page = LabelReview(table, tmp_path/'out').start()
    browser.get(page.url)
    assert decided(browser, 0)=='keep' and not decided(browser, 1) and text(browser, '#looked')=='1'
    press(browser, 'd')
    until(lambda: decided(browser, 1)=='drop')
    page.stop()

def test_second_server_is_refused(tmp_path):
    table = make_table(tmp_path/'p', 8)
    page = LabelReview(table, tmp_path/'out').start()
    with pytest.raises(ValueError, match=r'process \d+ on .* has .*out: end it'): LabelReview(table, tmp_path/'out')
    port = page.sock.getsockname()[1]
    with pytest.raises(ValueError, match=f'--port {port} cannot be used'): LabelReview(table, tmp_path/'other', port)
    LabelReview(table, tmp_path/'other').stop() # the failed one left no lock
    page.stop()
    LabelReview(table, tmp_path/'out').stop()

def test_in_a_notebook(tmp_path):
    table = make_table(tmp_path/'p', 8)
    found = table.rows.set_index('id')
    page = review(found, df=table.table.set_index('id'), path=tmp_path/'out')
    assert f'src="{page.url}"' in page._repr_html_() and page.token in page.url
    assert urlopen(page.url).status==200 and urlopen(page.url+'thumb/0').headers['content-type']=='image/jpeg'
    with pytest.raises(HTTPError): urlopen(page.url.replace(page.token, 'key'))
    page.state.decide(0, 'predicted')
    assert page.decisions.label.tolist()==['scab'] and page.corrected.label.iloc[0]=='scab'
    page.stop()

@pytest.fixture
def serve():
    "A server of one page, such as that of a notebook"
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    servers = []
    def make(html):
        class Page(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.send_header('Content-Type', 'text/html')
                self.send_header('Content-Security-Policy', "frame-ancestors 'self'") # as Jupyter does
                self.end_headers()
                self.wfile.write(html.encode())
            def log_message(self, *args): pass
        servers.append(ThreadingHTTPServer(('127.0.0.1', 0), Page))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return servers[-1].server_port
    yield make
    for o in servers: o.shutdown()

@pytest.mark.parametrize('host', ['127.0.0.1','localhost']) # of the same site as the frame, and of another
def test_frame_in_a_page_of_another_port(tmp_path, browser, serve, host):
    table = make_table(tmp_path/'p', 8)
    page = review(table.rows.set_index('id'), df=table.table.set_index('id'), path=tmp_path/'out')
    media(browser, 'light', 1280)
    browser.get(f'http://{host}:{serve(page._repr_html_())}/')
    browser.switch_to.frame(one(browser, 'iframe'))
    until(lambda: len(browser.find_elements('css selector', '.card'))==8)
    until(lambda: browser.execute_script("return document.querySelector('.card img').naturalWidth"))
    one(browser, '.card[data-row="0"] [data-decision=predicted]').click()
    until(lambda: decided(browser, 0)=='predicted')
    press(browser, 'k')
    until(lambda: decided(browser, 1)=='keep')
    press(browser, 'z')
    until(lambda: not decided(browser, 1))
    assert made(page)==[(0,'predicted','scab')]
    browser.switch_to.default_content()
    page.stop()

def test_killed_again_and_again():
    import review as benchmark # of the folder of benchmarks
    res = benchmark.kills(3, longest=.3, n_rows=40)
    assert res['kills']==3 and res['confirmed'] and not res['lost'] and not res['unreadable'], res

def test_command_says_what_is_wrong(tmp_path, capsys):
    for source in (tmp_path/'none', tmp_path):
        with pytest.raises(SystemExit) as e: main(str(source))
        assert e.value.code==2
        assert capsys.readouterr().err.startswith('fastai-mix-review: no ')

def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path/'out').write_text('')
    with pytest.raises(ValueError, match='out is a file: give a folder'): LabelReview(make_table(tmp_path/'p'), tmp_path/'out')
