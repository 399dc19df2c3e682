// Elements, numbers, colours, events: what every chart uses. Text reaches the page only as text nodes and attributes.

const SVG = 'http://www.w3.org/2000/svg';

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, '');
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, String(value));
  }
  for (const child of children.flat()) if (child !== null && child !== undefined) element.append(child);
  return element;
}

const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
const byId = (id) => document.getElementById(id);

// Okabe and Ito (2008), with the two that vanish on one of the backgrounds left to the style sheet.
const PALETTE = ['#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9'];
const DASHES = ['', '7 4', '2 3', '9 3 2 3', '4 2', '1 4'];
const FRONT = '#d55e00';
// Samples of viridis: in order of lightness, so that it reads without colours too.
const VIRIDIS = ['#440154', '#482878', '#3e4989', '#31688e', '#26828e', '#1f9e89', '#35b779', '#6ece58', '#b5de2b', '#fde725'];
const SHADES = 24;

function shades() {
  const channels = VIRIDIS.map((c) => [1, 3, 5].map((i) => parseInt(c.slice(i, i + 2), 16)));
  const [low, high] = isDark() ? [0.18, 1] : [0, 0.92];  // the ends that would melt into the background
  return Array.from({ length: SHADES }, (_, k) => {
    const at = (low + (high - low) * (k / (SHADES - 1))) * (channels.length - 1);
    const i = Math.min(Math.floor(at), channels.length - 2);
    return `rgb(${channels[i].map((c, j) => Math.round(c + (at - i) * (channels[i + 1][j] - c))).join(',')})`;
  });
}

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
}

// Numbers for people: 1.23M on an axis, 1,234,567 in a table, six digits of anything small.
const UNITS = [[1e12, 'T'], [1e9, 'G'], [1e6, 'M'], [1e3, 'k']];

function short(value) {
  if (!Number.isFinite(value)) return '–';
  const size = Math.abs(value);
  for (const [unit, letter] of UNITS) {
    if (size >= unit * 0.9999 && size >= 1e4) return trimmed((value / unit).toPrecision(4)) + letter;
  }
  if (size !== 0 && size < 1e-3) return value.toExponential(1);
  return trimmed(value.toPrecision(size >= 1000 ? 5 : 4));
}

function trimmed(text) {
  return text.includes('.') && !text.includes('e') ? text.replace(/0+$/, '').replace(/\.$/, '') : text;
}

function exact(value) {
  if (!Number.isFinite(value)) return '–';
  if (Number.isInteger(value)) return value.toLocaleString('en-US');
  return Math.abs(value) < 1e-4 ? value.toExponential(4) : trimmed(value.toPrecision(6));
}

const signed = (value) => (value > 0 ? '+' : value < 0 ? '−' : '±') + exact(Math.abs(value));

// A few events tie the parts together: data, filter, hover, pin, theme.
const listeners = new Map();

function on(event, callback) {
  if (!listeners.has(event)) listeners.set(event, []);
  listeners.get(event).push(callback);
}

function emit(event, ...values) {
  for (const callback of listeners.get(event) || []) callback(...values);
}

// A canvas as sharp as the screen; `draw` is called again when its size changes.
function canvasIn(host, height, draw) {
  const layers = [el('canvas', { 'aria-hidden': 'true' }), el('canvas', { 'aria-hidden': 'true', class: 'over' })];
  host.append(...layers);
  const size = { width: 0, height };
  const fit = () => {
    const width = Math.floor(host.clientWidth);
    if (!width || width === size.width) return;
    size.width = width;
    const sharp = window.devicePixelRatio || 1;
    for (const layer of layers) {
      layer.width = Math.round(width * sharp);
      layer.height = Math.round(height * sharp);
      layer.style.width = `${width}px`;
      layer.style.height = `${height}px`;
      layer.getContext('2d').setTransform(sharp, 0, 0, sharp, 0, 0);
    }
    draw();
  };
  host.style.height = `${height}px`;
  new ResizeObserver(fit).observe(host);
  return { size, fit, contexts: layers.map((layer) => layer.getContext('2d')) };
}

// At most one call a frame, however often it is asked for.
function onceAFrame(work) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => { asked = false; work(); });
  };
}

// How long a drawing took, for whoever looks at the browser's timeline; only the last of each name is kept.
function timed(name, work) {
  const start = performance.now();
  work();
  performance.clearMeasures(name);
  performance.measure(name, { start, end: performance.now() });
}

// Whether what an element shows differs from last time. A live page leaves the rest alone, so that focus, open menus and
// half-typed numbers survive the news.
const lastShown = new WeakMap();

function differs(host, ...values) {
  const text = JSON.stringify(values);
  if (lastShown.get(host) === text) return false;
  lastShown.set(host, text);
  return true;
}

// New children for an element. Whoever stands in it by keyboard stays at the control of the same name, or at `fallback`
// where that one is gone: without it the focus would fall back to the top of the page.
function renew(host, children, fallback = null) {
  const nameOf = (element) => element.getAttribute('aria-label') || element.textContent;
  const name = host.contains(document.activeElement) ? nameOf(document.activeElement) : null;
  host.replaceChildren(...children.filter((child) => child !== null));
  if (name === null) return;
  const controls = [...host.querySelectorAll('button, select, input, summary')];
  (controls.find((control) => nameOf(control) === name && !control.disabled) ?? fallback)?.focus({ preventScroll: true });
}

function tableOf(columns, rows) {
  return el('table', {},
    el('thead', {}, el('tr', {}, columns.map((name) => el('th', { scope: 'col' }, name)))),
    el('tbody', {}, rows.map((row) => el('tr', {}, row.map((cell) => el('td', {}, cell))))));
}

function selectOf(label, groups, chosen, changed) {
  const select = el('select', { 'aria-label': label, onchange: () => changed(select.value) },
    groups.filter(([, options]) => options.length).map(([group, options]) => el('optgroup', { label: group },
      options.map(([value, text]) => el('option', { value, selected: value === chosen }, text)))));
  return select;
}
