"Names and labels come out as text, and each button says what it does."
import numpy as np
import pytest
from fastcore.xml import to_xml
from fastai_mix.review_page import ReviewRow, card, detail, filters, in_percent, page, show_kinds

bs4 = pytest.importorskip('bs4')

hostile = ['<script>alert(1)</script>', '../../etc/passwd', '"><img src=x onerror=alert(1)>', "a'b\"c", 'a\nb', '&lt;b&gt;', ' ', '=1+1']

def soup(html): return bs4.BeautifulSoup(html if isinstance(html, str) else to_xml(html), 'html.parser')

@pytest.mark.parametrize('name', hostile)
def test_names_are_text(name):
    row = ReviewRow(3, name, name, name+'x', .1, .8, faults=[name], fold=name)
    form = filters({'given': [('',''),(name,name)], 'show': list(show_kinds.items())}, {'given':name})
    whole = soup(page(name, [row], (0,1,1,0), form, next='?given=x'))
    for part in (whole, soup(card(row)), soup(detail(row, [(name,.5)]))):
        assert not part.find('img', src='x') and not part.find(onerror=True)
        assert all(o.get('src')=='static/review.js' and not o.string for o in part.find_all('script'))
        assert part.find(attrs={'data-row':'3'})['data-given']==name
        assert name.strip() in part.find(class_='class', title=name+'x').get_text()

def test_no_script_and_no_style_within():
    html = soup(page('x', [ReviewRow(0, 'a', 'b', 'c', .1, .2)], (0,1,1,0), filters({}, {})))
    assert not html.find_all(style=True) and not html.find_all('style')
    assert not [o for o in html.find_all(True) if any(k.startswith('on') for k in o.attrs)]
    links = [o.get('href') or o.get('src') for o in html.find_all(['a','link','script','img'])]
    assert links and not [o for o in links if ':' in o or o.startswith('/')]

def test_buttons():
    def decisions(row): return [o['data-decision'] for o in soup(card(row)).find_all('button', attrs={'data-decision':True})]
    assert decisions(ReviewRow(0, 'a', 'b', 'c'))==['predicted','keep','other','drop','unsure']
    assert decisions(ReviewRow(0, 'a', 'b'))==['keep','other','drop','unsure']
    pressed = soup(card(ReviewRow(0, 'a', 'b', 'c', decision='keep', label='b'))).find_all(attrs={'aria-pressed':'true'})
    assert [o['data-decision'] for o in pressed]==['keep']
    assert soup(card(ReviewRow(0, 'a', 'b', 'c', decision='drop'))).find(class_='what').get_text()=='dropped'

def test_map_only_with_a_network():
    assert not soup(detail(ReviewRow(0, 'a', 'b', 'c'))).find(class_='map')
    assert soup(detail(ReviewRow(0, 'a', 'b', 'c', maps=True))).find(attrs={'data-maps':'predicted given'})
    assert soup(detail(ReviewRow(0, 'a', 'b', 'b', maps=True))).find(attrs={'data-maps':'given'})

def test_percent():
    assert [in_percent(o) for o in (np.nan,0,.001,.094,1)]==['','0 %','<1 %','9 %','100 %']

def test_empty_page():
    html = soup(page('x', [], (3,10,0,0), filters({}, {})))
    assert 'No label is left' in html.get_text() and not html.find(class_='card') and html.find(id='looked').get_text()=='3'
