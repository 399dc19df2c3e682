// The evaluations as columns of numbers, what may be chosen for an axis, and which of them the filters leave.

const data = JSON.parse(byId('data').textContent);

const store = {
  described: data.described,
  total: 0,            // evaluations of the search, failed ones too
  last: '',            // the architecture of the last of them
  id: [], index: [], hidden: [], layers: [],
  specs: [],           // the different layers, as they came
  flat: [],            // the same with nested keys joined by a dot and q_heads added
  known: new Map(),    // a layer's JSON -> its place in specs
  metrics: new Map(),  // name -> numbers, NaN where there is none
  columns: new Map(),  // name -> {name, label, group, values, higher}
  front: new Set(), outside: new Set(),
  filters: new Map(),  // column -> [low, high]
  shown: new Uint8Array(0),
  shownCount: 0,
  color: 'depth',
};

const FIELD_LABELS = {
  q_heads: 'attention heads', kv_heads: 'KV heads', queries_per_group: 'queries per KV head', head_dim: 'head dimension',
  ffn_size: 'FFN width', hidden_size: 'hidden size',
};
const fieldLabel = (name) => FIELD_LABELS[name] || name.replaceAll('_', ' ').replaceAll('.', ' ');

// {ffn: {experts: 4}} -> {'ffn.experts': 4}; lists and flags become text, what is null is not there
function flattened(value, prefix = '', found = {}) {
  for (const [key, inner] of Object.entries(value)) {
    if (inner === null) continue;
    if (typeof inner === 'number') found[prefix + key] = inner;
    else if (typeof inner === 'object' && !Array.isArray(inner)) flattened(inner, `${prefix}${key}.`, found);
    else found[prefix + key] = Array.isArray(inner) ? inner.join(' ') : String(inner);
  }
  return found;
}

function drawable(spec, unused) {
  const flat = flattened(spec);
  for (const name of unused) delete flat[name];
  if (flat.kv_heads && flat.queries_per_group && !flat.q_heads) flat.q_heads = flat.kv_heads * flat.queries_per_group;
  return flat;
}

function addEvaluations(packed) {
  if (packed.after === 0) {
    Object.assign(store, { id: [], index: [], hidden: [], layers: [], specs: [], flat: [] });
    store.known.clear();
    store.metrics.clear();
  }
  const place = packed.specs.map((spec, k) => {
    const text = JSON.stringify(spec);
    if (!store.known.has(text)) {
      store.known.set(text, store.specs.length);
      store.specs.push(spec);
      store.flat.push(drawable(spec, packed.unused[k]));
    }
    return store.known.get(text);
  });
  const before = store.id.length;
  for (let i = 0; i < packed.id.length; i += 1) {
    store.id.push(packed.id[i]);
    store.index.push(packed.index[i]);
    store.hidden.push(packed.hidden_size[i]);
    store.layers.push(packed.layers[i].map((at) => (at < 0 ? -1 : place[at])));
  }
  for (const [name, values] of Object.entries(packed.metrics)) {
    if (!store.metrics.has(name)) store.metrics.set(name, new Array(before).fill(NaN));
    const column = store.metrics.get(name);
    for (const value of values) column.push(value === null ? NaN : value);
  }
  for (const values of store.metrics.values()) while (values.length < store.id.length) values.push(NaN);
  Object.assign(store, { total: packed.total, last: packed.last });
  digest();
}

function describe(described) {
  store.described = described;
  digest();
}

// Everything that follows from the evaluations and their description.
function digest() {
  const { metrics, number, front, outside } = store.described;
  const place = new Map(store.index.map((index, i) => [index, i]));
  const places = (indices) => new Set(indices.map((index) => place.get(index)).filter((i) => i !== undefined));
  store.front = places(front);
  store.outside = places(outside);
  store.columns.clear();
  const put = (name, label, group, values, higher = false) => {
    store.columns.set(name, { name, label, group, values, higher });
  };
  for (const [name, label, way] of metrics) {
    if (store.metrics.has(name)) put(name, label, 'measured', store.metrics.get(name), way === 'max');
  }
  put('#', number, 'search', store.index);
  put('hidden_size', fieldLabel('hidden_size'), 'architecture', store.hidden);
  put('depth', 'layers kept', 'architecture', store.layers.map((row) => row.reduce((n, at) => n + (at >= 0), 0)));
  for (const [name, label, value] of layerFeatures()) {
    put(name, label, 'architecture', store.layers.map((row) => meanOver(row, value)));
  }
  applyFilters();
  emit('data');
}

function meanOver(row, value) {
  let sum = 0;
  let count = 0;
  for (const at of row) {
    if (at >= 0 && Number.isFinite(value[at])) { sum += value[at]; count += 1; }
  }
  return count ? sum / count : NaN;
}

// [column, label, number for each spec]: sizes as they are, words as the share of layers that have them.
function layerFeatures() {
  const found = [];
  for (const key of fieldNames()) {
    const values = store.flat.map((flat) => flat[key]);
    const words = [...new Set(values.filter((value) => typeof value === 'string'))].sort();
    if (!words.length) {
      found.push([`mean ${key}`, `mean ${fieldLabel(key)}`, values.map((value) => (value === undefined ? NaN : value))]);
    }
    // of two words that share all layers one says it all
    const told = words.length === 2 && values.every((value) => value !== undefined) ? words.slice(1) : words;
    for (const word of words.length > 1 ? told : []) {
      found.push([`${key}=${word}`, `share of ${fieldLabel(key)} = ${word}`, values.map((value) => Number(value === word))]);
    }
  }
  return found;
}

// Every field that any layer has, the known ones first.
function fieldNames() {
  const names = new Set(Object.keys(FIELD_LABELS).filter((key) => store.flat.some((flat) => key in flat)));
  for (const flat of store.flat) for (const key of Object.keys(flat)) names.add(key);
  return [...names];
}

function extent(values, wanted = () => true) {
  let low = Infinity;
  let high = -Infinity;
  for (let i = 0; i < values.length; i += 1) {
    const value = values[i];
    if (Number.isFinite(value) && wanted(i)) {
      if (value < low) low = value;
      if (value > high) high = value;
    }
  }
  return low <= high ? [low, high] : null;
}

const varies = (column) => {
  const ends = extent(column.values);
  return ends !== null && ends[0] < ends[1];
};

function setFilter(name, range) {
  if (range === null) store.filters.delete(name);
  else store.filters.set(name, range);
  applyFilters();
  emit('filter');
}

function applyFilters() {
  const count = store.id.length;
  store.shown = new Uint8Array(count).fill(1);
  for (const [name, [low, high]] of store.filters) {
    const column = store.columns.get(name);
    if (!column) continue;
    for (let i = 0; i < count; i += 1) if (!(column.values[i] >= low && column.values[i] <= high)) store.shown[i] = 0;
  }
  store.shownCount = store.shown.reduce((n, one) => n + one, 0);
}

// What of the shown and permitted no other one beats in both columns, from the best x on; equal points stay together.
function frontOf(x, y) {
  const [sx, sy] = [x.higher ? -1 : 1, y.higher ? -1 : 1];
  const order = [];
  for (let i = 0; i < store.id.length; i += 1) {
    if (store.shown[i] && !store.outside.has(i) && Number.isFinite(x.values[i]) && Number.isFinite(y.values[i])) order.push(i);
  }
  order.sort((a, b) => sx * (x.values[a] - x.values[b]) || sy * (y.values[a] - y.values[b]) || a - b);
  const found = [];
  let best = Infinity;
  for (const i of order) {
    const last = found[found.length - 1];
    const same = last !== undefined && x.values[last] === x.values[i] && y.values[last] === y.values[i];
    if (sy * y.values[i] < best || same) found.push(i);
    best = Math.min(best, sy * y.values[i]);
  }
  return found;
}

// The shade of every point, by the column that colours them; -1 for none.
function shadeIndices() {
  const column = store.columns.get(store.color);
  const ends = column ? extent(column.values) : null;
  const result = new Int8Array(store.id.length).fill(-1);
  if (!ends) return result;
  const span = ends[1] - ends[0] || 1;
  for (let i = 0; i < result.length; i += 1) {
    const value = column.values[i];
    if (Number.isFinite(value)) result[i] = Math.round(((value - ends[0]) / span) * (SHADES - 1));
  }
  return result;
}
