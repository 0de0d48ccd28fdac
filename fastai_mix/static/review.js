'use strict'
// The page of suspect labels: a decision is shown as made only when the server says that it is on the disk.
const $ = (selector, root = document) => root.querySelector(selector)
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)]
const view = $('#view'), picker = $('#picker'), keys = $('#keys'), written = $('#written'), search = $('#search'), options = $('#options')
const words = {predicted: '', keep: '', other: '', drop: 'dropped', unsure: 'unsure', undo: 'undone'}
let current = null, classes = null, shown = [], active = 0, picked = null

const cards = () => $$('.card')
const card = row => $(`.card[data-row="${Number(row)}"]`)
const say = text => { $('#said').textContent = text; clearTimeout(say.timer); say.timer = setTimeout(() => $('#said').textContent = '', 5000) }
const complain = text => $('#alert').textContent = text
const visible = () => view.open ? $('.detail', view) : current

// ---- the server

async function ask(path, body) {
  const how = body ? {method: 'POST', headers: {'Content-Type': 'application/json'}, body: JSON.stringify(body)} : {}
  let answer
  try { answer = await fetch(path, how) } catch {
    throw Error('Not saved: the server does not answer. What is shown as decided is on the disk. Start fastai-mix-review again ' +
      'and open the address that it prints.')
  }
  if (!answer.ok) throw Error((await answer.text()).slice(0, 300))
  complain('')
  return answer
}

function progress(o) {
  $('#looked').textContent = o.looked.toLocaleString('en')
  $('#total').textContent = o.total.toLocaleString('en')
  $('progress').value = o.looked
}

function show(row, decision, label) {
  for (const o of $$(`:is(.card, .detail)[data-row="${Number(row)}"]`)) {
    o.classList.toggle('decided', Boolean(decision))
    o.dataset.decided = decision || ''
    for (const b of $$('.choice', o)) {
      const chosen = b.dataset.decision === decision
      b.classList.toggle('chosen', chosen)
      b.setAttribute('aria-pressed', chosen)
    }
    $('.what', o).textContent = decision ? words[decision] || label : ''
  }
}

// of this window; a browser may refuse a frame its storage
let decided = []
const history = {
  read: () => { try { return JSON.parse(sessionStorage.getItem('decided') || '[]') } catch { return [...decided] } },
  write: rows => {
    decided = rows.slice(-1000)
    try { sessionStorage.setItem('decided', JSON.stringify(decided)) } catch {}
  },
}

async function decide(row, decision, label = '') {
  const o = card(row)
  o?.classList.add('saving')
  try {
    const made = await (await ask('decide', {row, decision, label})).json()
    for (const k of made.rows) show(k, made.decision, made.label)
    progress(made)
    const rows = history.read()
    if (decision === 'undo') { const i = rows.lastIndexOf(row); if (i >= 0) rows.splice(i, 1) } else rows.push(row)
    history.write(rows)
    say(`${made.name}: ${decision === 'undo' ? 'undone' : words[decision] || made.label}`)
    return true
  } catch (e) { complain(e.message); return false } finally { o?.classList.remove('saving') }
}

async function refresh() {
  const rows = cards().map(o => o.dataset.row)
  try {
    const state = await (await ask('state?rows=' + rows)).json()
    for (const [row, decision, label] of state.rows) show(row, decision, label)
    progress(state)
    return state
  } catch (e) { complain(e.message.replace('Not saved: t', 'T')) }
}

// ---- which picture is meant

function select(o, focus = true) {
  current?.classList.remove('current')
  current = o
  for (const k of cards()) k.tabIndex = k === o ? 0 : -1
  if (!o) return
  o.classList.add('current')
  if (!focus) return
  o.focus({preventScroll: true})
  o.scrollIntoView({block: 'nearest'}) // not while a mouse button is down: it would be released elsewhere
}

const columns = () => { const all = cards(); return Math.max(1, all.filter(o => o.offsetTop === all[0]?.offsetTop).length) }

function move(n) {
  const all = cards(), to = all[all.indexOf(current) + n]
  if (!to) return false
  select(to, !view.open)
  if (view.open) enlarge(to)
  return true
}

function advance() {
  const all = cards(), next = all.slice(all.indexOf(current) + 1).find(o => !o.dataset.decided)
  if (next) { select(next, !view.open); if (view.open) enlarge(next); return }
  if (view.open) view.close()
  const link = $('#next')
  if (link) link.focus()
  else say('All of this page is decided')
}

async function act(decision, row = Number(current?.dataset.row), label = '') {
  const o = card(row)
  if (!o || o.classList.contains('saving')) return
  if (decision === 'other' && !label) return pick(row)
  if (decision === 'predicted' && !o.dataset.predicted) return say('There is no prediction for this picture')
  if (o !== current) select(o, false)
  if (await decide(row, decision, label) && decision !== 'undo') advance()
}

async function takeBack(row) {
  if (!await decide(row, 'undo') || !card(row)) return
  select(card(row), !view.open)
  if (view.open) enlarge(card(row))
}

function undo() {
  const row = history.read().at(-1)
  if (row === undefined) say('Nothing was decided in this window')
  else takeBack(row)
}

// ---- the large view

async function enlarge(o) {
  try {
    const html = await (await ask('row/' + o.dataset.row)).text()
    if (o !== current) return
    $('#detail').innerHTML = html
    if (!view.open) view.showModal()
    $('.choice', view).focus()
  } catch (e) { complain(e.message) }
}

function map() {
  const o = $('.detail', view), im = o && $('.shown img', o)
  if (!view.open || !o.dataset.maps) return
  const order = ['', ...o.dataset.maps.split(' ')], now = order[(order.indexOf(o.dataset.map || '') + 1) % order.length]
  o.dataset.map = now
  im.src = now ? `map/${o.dataset.row}/${now}` : `picture/${o.dataset.row}`
  im.alt = now ? `What speaks for the ${now === 'given' ? 'given' : 'predicted'} class` : 'The picture'
  $('.map', o).textContent = now ? `Map of the ${now === 'given' ? 'given' : 'predicted'} class` : 'Show the map'
}

// ---- another class

async function pick(row) {
  try { classes ||= await (await ask('classes')).json() } catch (e) { return complain(e.message) }
  picked = row
  search.value = ''
  list()
  picker.showModal()
  search.focus()
}

function list() {
  const text = search.value.trim().toLowerCase(), has = classes.filter(o => o.toLowerCase().includes(text))
  shown = [...has.filter(o => o.toLowerCase().startsWith(text)), ...has.filter(o => !o.toLowerCase().startsWith(text))].slice(0, 60)
  options.replaceChildren(...shown.map((o, i) => {
    const li = document.createElement('li')
    li.id = 'option-' + i
    li.setAttribute('role', 'option')
    li.textContent = o
    return li
  }))
  $('#none').hidden = shown.length > 0
  options.hidden = !shown.length
  activate(0)
}

function activate(i) {
  active = Math.max(0, Math.min(i, shown.length - 1))
  $$('li', options).forEach((o, k) => o.setAttribute('aria-selected', k === active))
  if (shown.length) { search.setAttribute('aria-activedescendant', 'option-' + active); options.children[active].scrollIntoView({block: 'nearest'}) }
  else search.removeAttribute('aria-activedescendant')
}

function take(i) {
  if (shown[i] === undefined) return
  const row = picked, o = card(row), label = shown[i]
  picker.close()
  const decision = label === o.dataset.given ? 'keep' : label === o.dataset.predicted ? 'predicted' : 'other'
  act(decision, row, decision === 'other' ? label : '')
}

// ---- buttons of the page

async function write() {
  try {
    const o = await (await ask('corrected', {})).json()
    $('#written-text').textContent = `${o.path} has ${o.rows.toLocaleString('en')} rows; ${o.changed.toLocaleString('en')} have another label, ` +
      `${o.dropped.toLocaleString('en')} are left out.` +
      (o.labels ? ` labels.csv of the run has ${o.labels.toLocaleString('en')} as decided.` : '')
    $('#written-command').textContent = o.note
    $('#written-command').hidden = !o.note
    written.showModal()
  } catch (e) { complain(e.message) }
}

async function check() {
  try { await ask('check', {}) } catch (e) { return complain(e.message) }
  watch()
}

async function watch() {
  const button = $('#check')
  button.disabled = true
  button.textContent = 'Checking the pictures …'
  const state = await refresh()
  if (!state) { button.disabled = false; button.textContent = 'Check the pictures'; return }
  if (state.checking) return setTimeout(watch, 1000)
  location.reload()
}

// ---- events

document.addEventListener('click', e => {
  const button = e.target.closest('button'), o = e.target.closest('[data-row]')
  if (e.target.closest('#options li')) return take($$('li', options).indexOf(e.target.closest('li')))
  if (!button) { if (o?.classList.contains('card')) select(o); return }
  if (button.dataset.decision) return act(button.dataset.decision, Number(o.dataset.row))
  if (button.classList.contains('undo')) return takeBack(Number(o.dataset.row))
  if (button.classList.contains('picture')) { select(o, false); return enlarge(o) }
  if (button.classList.contains('close')) return button.closest('dialog').close()
  if (button.classList.contains('map')) return map()
  const by = {'show-keys': () => keys.showModal(), 'write': write, 'check': check}[button.id]
  if (by) by()
})

document.addEventListener('focusin', e => { const o = e.target.closest('.card'); if (o && o !== current) select(o, false) })
document.addEventListener('error', e => { if (e.target.tagName === 'IMG') e.target.parentElement.classList.add('unreadable') }, true)
document.addEventListener('change', e => { if (e.target.closest('.filters')) e.target.form.requestSubmit() })
document.addEventListener('visibilitychange', () => { if (!document.hidden) refresh() })
search.addEventListener('input', list)
view.addEventListener('close', () => { if (current) current.focus({preventScroll: true}) })

const commands = {
  p: () => act('predicted'), k: () => act('keep'), o: () => act('other'), d: () => act('drop'), u: () => act('unsure'), z: undo,
  n: () => $('#next')?.click(), b: () => $('#previous')?.click(), m: map, '?': () => keys.showModal(),
  ArrowRight: () => move(1), ArrowLeft: () => move(-1), ArrowDown: () => move(view.open ? 1 : columns()), ArrowUp: () => move(view.open ? -1 : -columns()),
}

document.addEventListener('keydown', e => {
  if (e.ctrlKey || e.metaKey || e.altKey) return
  if (picker.open) {
    const by = {ArrowDown: () => activate(active + 1), ArrowUp: () => activate(active - 1), Enter: () => take(active)}[e.key]
    if (by) { e.preventDefault(); by() }
    return
  }
  if (keys.open || written.open || /^(INPUT|SELECT|TEXTAREA)$/.test(e.target.tagName)) return
  if (e.key === 'Enter' && e.target === current) { e.preventDefault(); return enlarge(current) }
  const by = commands[e.key.length === 1 ? e.key.toLowerCase() : e.key]
  if (!by) return
  e.preventDefault()
  if (!current) select(cards()[0])
  by()
})

select(cards().find(o => !o.dataset.decided) || cards()[0] || null)
if ($('#check').dataset.checking) watch()
