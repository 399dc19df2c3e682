// The choices above the chart, the filter's rows, and the front as a table.

function columnGroups() {
  const groups = new Map([['measured', []], ['search', []], ['architecture', []]]);
  for (const column of store.columns.values()) groups.get(column.group).push([column.name, column.label]);
  return [...groups];
}

// What the axes show first: the first objective over the second; with one, over the number of the evaluation.
// It is decided anew until there is a first evaluation, and then left to the reader.
function firstView() {
  if (!view.settled) Object.assign(view, { x: '', y: '', settled: store.id.length > 0 });
  const objectives = store.described.metrics.filter(([, , way]) => way !== null).map(([name]) => name);
  const there = (name) => store.columns.has(name);
  if (!there(view.y)) view.y = objectives.find(there) ?? [...store.columns.keys()][0];
  if (!there(view.x)) view.x = objectives.find((name) => there(name) && name !== view.y) ?? '#';
}

function drawControls() {
  const names = columnGroups();
  const ramped = store.columns.has(store.color) ? extent(store.columns.get(store.color).values) : null;
  const positive = ['x', 'y'].map((which) => (extent(store.columns.get(view[which])?.values ?? []) ?? [0])[0] > 0);
  if (!differs(byId('axes'), names, view.x, view.y, store.color, ramped, positive, isDark())) return;
  const changed = () => { view.zoom = null; emit('view'); };
  const axis = (k, which, log, label) => {
    if (!positive[k]) view[log] = false;
    return el('div', { class: 'control' },
      el('label', {}, el('span', {}, label), selectOf(label, names, view[which], (value) => { view[which] = value; drawControls(); changed(); })),
      el('label', { class: 'check' }, el('input', {
        type: 'checkbox', 'aria-label': `${label}: logarithmic`, checked: view[log], disabled: !positive[k],
        onchange: (event) => { view[log] = event.target.checked; changed(); },
      }), 'log'));
  };
  const color = el('div', { class: 'control' }, el('label', {}, el('span', {}, 'Colour'),
    selectOf('Colour', names, store.color, (value) => { store.color = value; drawControls(); emit('view'); })), ramp());
  renew(byId('axes'), [axis(0, 'x', 'logX', 'Horizontal'), axis(1, 'y', 'logY', 'Vertical'), color, el('div', { class: 'control row' },
    el('button', { type: 'button', onclick: zoomToFront }, 'Zoom to the front'),
    el('button', { type: 'button', onclick: () => setZoom(null) }, 'Reset zoom'),
    el('span', { class: 'legend' }, el('span', { class: 'diamond', 'aria-hidden': 'true' }, '◆'), 'front of the search ',
      el('span', { class: 'stair', 'aria-hidden': 'true' }), 'best of these two axes'))]);
}

function ramp() {
  const column = store.columns.get(store.color);
  const ends = column ? extent(column.values) : null;
  if (!ends) return null;
  const stops = shades().map((color, k) => svg('rect', { x: k * 3, y: 0, width: 3.2, height: 10, fill: color }));
  return el('span', { class: 'ramp' }, short(ends[0]), svg('svg', { width: SHADES * 3, height: 10, 'aria-hidden': 'true' }, stops), short(ends[1]));
}

function drawFilters() {
  byId('filter-count').textContent = store.filters.size ? `· ${store.shownCount.toLocaleString('en-US')} of ${store.id.length.toLocaleString('en-US')} shown` : '';
  const host = byId('filter-rows');
  if (!differs(host, [...store.filters], columnGroups())) return;
  const rows = [...store.filters].filter(([name]) => store.columns.has(name)).map(([name, range]) => filterRow(store.columns.get(name), range));
  const free = columnGroups().map(([group, options]) => [group, options.filter(([name]) => !store.filters.has(name))]);
  const add = selectOf('Filter by', [['', [['', 'add a filter …']]], ...free], '', (name) => {
    if (name) setFilter(name, extent(store.columns.get(name).values));
  });
  const clear = el('button', { type: 'button', onclick: () => { store.filters.clear(); applyFilters(); emit('filter'); } }, 'Clear all');
  renew(host, [...rows, el('div', { class: 'control' }, add, store.filters.size ? clear : null)], add);
}

function filterRow(column, range) {
  const input = (k, label) => el('input', {
    type: 'number', step: 'any', value: Number(range[k].toPrecision(7)), 'aria-label': `${column.label}: ${label}`,
    onchange: (event) => {
      const ends = [...store.filters.get(column.name)];
      const value = event.target.value === '' ? [-Infinity, Infinity][k] : Number(event.target.value);
      ends[k] = value;
      setFilter(column.name, ends);
    },
  });
  return el('div', { class: 'control filter-row', 'data-column': column.name }, el('span', { class: 'name' }, column.label), input(0, 'at least'), 'to', input(1, 'at most'),
    el('button', { type: 'button', 'aria-label': `Remove the filter on ${column.label}`, onclick: () => setFilter(column.name, null) }, '×'));
}

// The alternative to the picture: rows of the front, each with a button that pins.
function drawFrontTable() {
  const folded = byId('front-table');
  if (!folded.open || !differs(folded, [...store.front].map((i) => [store.id[i], store.shown[i]]), view.y, [...store.metrics.keys()])) return;
  const columns = metricColumns();
  const y = store.columns.get(view.y);
  const rows = [...store.front].filter((i) => store.shown[i]).sort((a, b) => (y ? y.values[a] - y.values[b] : 0))
    .map((i) => [el('button', { type: 'button', onclick: () => pin(i) }, `Pin ${store.id[i]}`), String(store.hidden[i]),
      String(store.columns.get('depth').values[i]), ...columns.map((column) => exact(column.values[i]))]);
  folded.querySelector('.scroll').replaceChildren(tableOf(['network', 'hidden size', 'layers', ...columns.map((c) => c.label)], rows));
}
