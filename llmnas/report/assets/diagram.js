// One network as a drawing: a row for each layer, sizes to scale over the whole search.
// It is drawn from the fields a layer has: attention heads and FFN width have shapes of their own, any further number
// becomes pips or a bar and any further word a patterned chip, so a new dimension shows up without a line of code here.

const OWN_SHAPE = ['q_heads', 'kv_heads', 'queries_per_group', 'head_dim', 'ffn_size'];

// What differs between layers of the search gets a column; what is the same everywhere is one line of text.
function extraFields() {
  const columns = [];
  const constants = [];
  const partial = [];  // one value, but not every layer has the field
  for (const key of fieldNames().filter((name) => !OWN_SHAPE.includes(name))) {
    const values = new Set(store.flat.map((flat) => flat[key]).filter((value) => value !== undefined));
    if (values.size > 1) columns.push(key);
    else if (store.flat.every((flat) => key in flat)) constants.push(`${fieldLabel(key)} ${[...values][0]}`);
    else if (!values.has(0)) partial.push(`${fieldLabel(key)} ${[...values][0]}`);
  }
  return { columns, constants, partial };
}

const greatestOf = new Map();  // field -> its greatest number in the search, at least 1
on('data', () => greatestOf.clear());

function greatest(key) {
  if (!greatestOf.has(key)) {
    greatestOf.set(key, store.flat.reduce((most, flat) => (typeof flat[key] === 'number' ? Math.max(most, flat[key]) : most), 1));
  }
  return greatestOf.get(key);
}

function layerWords(flat) {
  if (!flat) return 'skipped';
  const parts = [];
  if (flat.q_heads) parts.push(`${flat.q_heads} heads, ${flat.kv_heads} KV, dimension ${flat.head_dim}`);
  if (flat.ffn_size) parts.push(`FFN ${flat.ffn_size}`);
  for (const key of Object.keys(flat)) if (!OWN_SHAPE.includes(key)) parts.push(`${fieldLabel(key)} ${flat[key]}`);
  return parts.join('; ');
}

function networkWords(i) {
  const rows = store.layers[i];
  const kept = rows.filter((at) => at >= 0).length;
  const lines = [`${store.id[i]}: hidden size ${store.hidden[i]}, ${kept} of ${rows.length} layers.`];
  for (let from = 0; from < rows.length;) {
    let to = from;
    while (to + 1 < rows.length && rows[to + 1] === rows[from]) to += 1;
    lines.push(`Layer ${from === to ? from : `${from} to ${to}`}: ${layerWords(store.flat[rows[from]])}.`);
    from = to + 1;
  }
  return lines.join(' ');
}

function diagram(i, unlike = new Set()) {
  const rows = store.layers[i];
  const height = Math.max(7, Math.min(22, Math.floor(620 / rows.length)));
  const { columns, constants, partial } = extraFields();
  const wide = columns.length < 2 ? { label: 22, heads: 128, gap: 10, ffn: 110 } : { label: 20, heads: 92, gap: 8, ffn: 78 };
  const extras = columns.map(extraRoom);
  const widths = wide.label + wide.heads + wide.gap + wide.ffn + extras.reduce((sum, room) => sum + room + wide.gap, 0);
  const picture = svg('svg', {
    class: 'diagram', viewBox: `0 0 ${widths} ${rows.length * height + 18}`, role: 'img', 'aria-label': networkWords(i),
  });
  const headings = [[wide.label, 'heads'], [wide.label + wide.heads + wide.gap, 'FFN']];
  const places = extras.map((_, k) => extras.slice(0, k).reduce((sum, room) => sum + room + wide.gap, wide.label + wide.heads + wide.ffn + 2 * wide.gap));
  columns.forEach((key, k) => headings.push([places[k], fieldLabel(key)]));
  for (const [x, text] of headings) picture.append(svg('text', { x, y: 10, class: 'heading' }, text));
  rows.forEach((at, layer) => {
    const row = svg('g', { transform: `translate(0 ${layer * height + 16})`, 'data-layer': layer });
    if (unlike.has(layer)) row.append(svg('rect', { class: 'differs', width: widths, height, rx: 3 }));
    if (height >= 11) row.append(svg('text', { x: 16, y: height / 2 + 3.5, class: 'number' }, layer));
    if (at < 0) drawSkip(row, wide.label, widths, height);
    else drawLayer(row, store.flat[at], wide, columns.map((key, k) => [key, places[k], extras[k]]), height);
    picture.append(row);
  });
  const said = (where, words) => (words.length ? el('p', { class: 'note' }, `${where}: ${words.join(', ')}.`) : null);
  return el('div', {}, el('div', { class: 'scroll' }, picture), said('In every layer', constants), said('Wherever there are any', partial));
}

// What a further field needs: pips for small whole numbers, the words themselves, else a bar.
function extraRoom(key) {
  const words = store.flat.map((flat) => flat[key]).filter((value) => typeof value === 'string');
  const heading = 5.6 * fieldLabel(key).length;
  if (words.length) return Math.max(heading, words.reduce((most, word) => Math.max(most, Math.min(word.length, 9)), 0) * 5.6 + 16);
  return Math.max(heading, greatest(key) <= 8 ? greatest(key) * 7.5 : 62);
}

function drawSkip(row, from, to, height) {
  const words = height >= 11;
  row.append(svg('line', { x1: words ? from + 56 : from, x2: to, y1: height / 2, y2: height / 2, class: 'skip-line' }));
  if (words) row.append(svg('text', { x: from + 2, y: height / 2 + 3.5, class: 'skipped' }, 'skipped'));
}

function drawLayer(row, flat, wide, columns, height) {
  if (flat.q_heads) drawHeads(row, flat, wide, height);
  if (flat.ffn_size) drawBar(row, wide.label + wide.heads + wide.gap, wide.ffn, flat.ffn_size, greatest('ffn_size'), height, 'ffn');
  columns.forEach(([key, x, room]) => {
    const value = flat[key];
    if (value === undefined) return;
    if (typeof value === 'string') drawWord(row, x, room, key, value, height);
    else if (Number.isInteger(value) && value >= 0 && greatest(key) <= 8) drawPips(row, x, value, greatest(key), height);
    else drawBar(row, x, room, value, greatest(key), height, 'extra');
  });
}

// A square for each query head, as tall as its head dimension; a bar below joins those that share a KV head.
function drawHeads(row, flat, wide, height) {
  const cell = Math.min(15, (wide.heads - 2 * greatest('kv_heads')) / greatest('q_heads'));
  const tall = Math.max(3, (height - 7) * (0.4 + 0.6 * (flat.head_dim / greatest('head_dim'))));
  const bottom = height - 4;
  const each = flat.q_heads / flat.kv_heads;
  let x = wide.label;
  for (let group = 0; group < flat.kv_heads; group += 1) {
    for (let head = 0; head < each; head += 1) {
      row.append(svg('rect', { class: 'head', x: x + head * cell, y: bottom - tall, width: Math.max(cell - 1.2, 0.8), height: tall, rx: 1 }));
    }
    row.append(svg('rect', { class: 'kv', x, y: bottom + 0.8, width: Math.max(each * cell - 1.2, 0.8), height: 2, rx: 1 }));
    x += each * cell + 2;
  }
  if (height >= 14 && x < wide.label + wide.heads - 20) {
    row.append(svg('text', { x: x + 3, y: height / 2 + 3.5, class: 'size' }, `${flat.q_heads}×${flat.head_dim}`));
  }
}

function drawBar(row, x, room, value, most, height, kind) {
  const width = Math.max(1, (room - 30) * (value / most));
  row.append(svg('rect', { class: 'track', x, y: 3, width: room - 30, height: height - 6, rx: 2 }));
  row.append(svg('rect', { class: kind, x, y: 3, width, height: height - 6, rx: 2 }));
  if (height >= 11) row.append(svg('text', { x: x + room - 27, y: height / 2 + 3.5, class: 'size' }, short(value)));
}

function drawPips(row, x, value, most, height) {
  for (let k = 0; k < most; k += 1) {
    row.append(svg('circle', { class: k < value ? 'extra' : 'track', cx: x + 3.5 + k * 7.5, cy: height / 2, r: Math.min(3, height / 3) }));
  }
}

// A word: its place among the words of the field decides colour and pattern, and it is written out where there is room.
function drawWord(row, x, room, key, value, height) {
  const words = [...new Set(store.flat.map((flat) => flat[key]).filter((word) => typeof word === 'string'))].sort();
  const k = words.indexOf(value);
  row.append(svg('rect', { class: 'chip', x, y: 2, width: room, height: height - 4, rx: 3, stroke: PALETTE[k % 6] }));
  for (let stripe = 0; stripe < k % 6; stripe += 1) {
    row.append(svg('rect', { x: x + 2 + stripe * 3, y: 3, width: 1.5, height: height - 6, fill: PALETTE[k % 6] }));
  }
  if (height >= 11) {
    const text = value.length > 9 ? `${value.slice(0, 8)}…` : value;
    row.append(svg('text', { x: x + 5 + (k % 6) * 3, y: height / 2 + 3.5, class: 'size' }, text));
  }
}
