// The card of one network, and two pinned ones side by side.

const chosen = { hovered: -1, pinned: [] };  // places in the store; they move when a new search replaces the old one

function metricColumns() {
  return [...store.columns.values()].filter((column) => column.group === 'measured');
}

function card(i, { title = '', unlike = new Set(), unpin = null, numbered = true } = {}) {
  const onFront = store.front.has(i) ? el('span', { class: 'tag front' }, '◆ front') : null;
  const outside = store.outside.has(i) ? el('span', { class: 'tag' }, 'outside the constraints') : null;
  const head = el('div', { class: 'card-head' }, title ? el('span', { class: 'tag letter' }, title) : null,
    el('h3', {}, store.id[i]), onFront, outside,
    unpin ? el('button', { type: 'button', onclick: unpin, 'aria-label': `Unpin ${store.id[i]}` }, '×') : null);
  const numbers = (numbered ? metricColumns() : []).map((column) => el('div', {}, el('dt', {}, column.label), el('dd', {}, exact(column.values[i]))));
  const kept = store.layers[i].filter((at) => at >= 0).length;
  return el('article', { class: 'network', 'data-id': store.id[i] }, head,
    el('p', { class: 'sizes' }, `hidden ${store.hidden[i]} · ${kept} of ${store.layers[i].length} layers · evaluation ${store.index[i]}`),
    diagram(i, unlike), el('dl', { class: 'numbers' }, numbers), asJson(i));
}

// The architecture as llmnas reads it; made only when someone opens it.
function asJson(i) {
  const text = el('pre', { tabindex: '0' });
  const folded = el('details', { class: 'json' }, el('summary', {}, 'Architecture as JSON'), text);
  const value = { hidden_size: store.hidden[i], layers: store.layers[i].map((at) => (at < 0 ? null : store.specs[at])) };
  folded.addEventListener('toggle', () => { text.textContent = JSON.stringify(value); }, { once: true });
  return folded;
}

function showPreview() {
  const i = chosen.hovered >= 0 ? chosen.hovered : [...store.front][0] ?? -1;
  const host = byId('preview');
  if (i < 0 || i >= store.id.length) {
    lastShown.delete(host);
    host.replaceChildren(el('p', { class: 'note' }, store.id.length ? 'Point at a network.' : 'No evaluation yet.'));
    return;
  }
  if (differs(host, i, store.id[i], store.front.has(i), store.specs.length, [...store.metrics.keys()])) {
    timed('preview', () => host.replaceChildren(card(i)));
  }
}

function hover(i) {
  if (i === chosen.hovered) return;
  chosen.hovered = i;
  emit('hover');
}

// The first click pins A, the second B; another one takes B's place, and a pinned one is let go.
function pin(i) {
  const at = chosen.pinned.indexOf(i);
  if (at >= 0) chosen.pinned.splice(at, 1);
  else if (chosen.pinned.length < 2) chosen.pinned.push(i);
  else chosen.pinned[1] = i;
  say(at >= 0 ? `${store.id[i]} unpinned.` : `${store.id[i]} pinned as ${'AB'[chosen.pinned.indexOf(i)]}.`);
  emit('pin');
}

function unpinAll() {
  if (!chosen.pinned.length) return;
  chosen.pinned = [];
  say('Nothing pinned.');
  emit('pin');
}

const say = (text) => { byId('spoken').textContent = text; };

function differingLayers(a, b) {
  const [first, second] = [store.layers[a], store.layers[b]];
  const found = new Set();
  for (let k = 0; k < Math.max(first.length, second.length); k += 1) if (first[k] !== second[k]) found.add(k);
  return found;
}

function showCompare() {
  const host = byId('compare');
  const [a, b] = chosen.pinned;
  const state = chosen.pinned.map((i) => [store.id[i], i, store.front.has(i)]);
  if (!differs(host, state, store.specs.length, [...store.metrics.keys()])) return undefined;
  host.hidden = a === undefined;
  const chart = document.querySelector('#scatter .stage');
  if (a === undefined) return renew(host, [], chart);
  const single = b === undefined;
  const unlike = single ? new Set() : differingLayers(a, b);
  const cards = chosen.pinned.map((i, k) => card(i, { title: 'AB'[k], unlike, unpin: () => pin(i), numbered: single }));
  const beside = single ? el('p', { class: 'note hint' }, 'Click a second network to compare it with this one.') : null;
  return renew(host, [el('h3', {}, single ? 'Pinned' : 'Compared'),
    el('div', { class: 'cards' }, cards, beside), single ? null : differences(a, b, unlike)], chart);
}

function differences(a, b, unlike) {
  const shape = [...store.columns.values()].filter((column) => column.group === 'architecture');
  const rows = [...metricColumns(), ...shape].filter((column) => column.group === 'measured' || column.values[a] !== column.values[b])
    .filter((column) => Number.isFinite(column.values[a]) || Number.isFinite(column.values[b]))
    .map((column) => {
      const [va, vb] = [column.values[a], column.values[b]];
      const share = va && Number.isFinite(vb - va) ? `${signed(Number((100 * (vb - va) / Math.abs(va)).toFixed(2)))} %` : '–';
      return [column.label, exact(va), exact(vb), Number.isFinite(vb - va) ? signed(Number((vb - va).toPrecision(6))) : '–', share];
    });
  const total = store.layers[a].length;
  return el('div', {}, el('p', { class: 'note' }, `${unlike.size} of ${total} layers differ (shaded).`),
    el('div', { class: 'scroll' }, tableOf(['', 'A', 'B', 'B − A', 'relative'], rows)));
}
