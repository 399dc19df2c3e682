// Curves as SVG: colour, dash and end label tell them apart; pointer or arrow keys read them off.

function lineChart(host, { series, xLabel, yLabel, summary }) {
  const width = Math.max(320, Math.floor(host.clientWidth) || 460);
  if (!differs(host, series, width)) return;
  const open = Boolean(host.querySelector('details')?.open);
  const height = 300;
  const box = { left: 62, right: width - 14, top: 14, bottom: height - 46 };
  const all = (pick) => extent(series.flatMap(pick));
  const xs = all((line) => line.x);
  const ys = all((line) => line.y);
  if (!xs || !ys) { host.replaceChildren(); return; }
  const scales = { x: makeScale(xs, [box.left, box.right], false), y: makeScale(padded(ys, false, 0.06), [box.bottom, box.top], false) };
  const picture = svg('svg', {
    viewBox: `0 0 ${width} ${height}`, width, height, tabindex: '0', role: 'img', 'aria-label': `${summary} Arrow keys read the values.`,
  });
  const whole = series.every((line) => line.x.every(Number.isInteger));  // depths, steps: nothing lies between
  picture.append(svgAxes(box, scales, xLabel, yLabel, whole));
  series.forEach((line, k) => picture.append(curve(line, k, scales)));
  const cursor = svg('g', { class: 'cursor' });
  picture.append(cursor);
  const reading = el('p', { class: 'reading', 'aria-live': 'polite' }, 'Point at the curve, or use the arrow keys on it, to read its values.');
  readable(picture, cursor, reading, { series, scales, box, width, xLabel });
  const legend = el('p', { class: 'legend' }, series.map((line, k) => el('span', {}, swatch(k), line.label)));
  host.replaceChildren(series.length > 1 ? legend : '', picture, reading, asTable(series, xLabel, open));
}

function svgAxes(box, scales, xLabel, yLabel, whole) {
  const group = svg('g', { class: 'axes' });
  const xTicks = scales.x.ticks((box.right - box.left) / 80).filter((tick) => !whole || Number.isInteger(tick));
  const yTicks = scales.y.ticks((box.bottom - box.top) / 45);
  tickLabels(xTicks).forEach((text, k) => group.append(
    svg('line', { class: 'grid', x1: scales.x(xTicks[k]), x2: scales.x(xTicks[k]), y1: box.top, y2: box.bottom }),
    svg('text', { x: scales.x(xTicks[k]), y: box.bottom + 17, 'text-anchor': 'middle' }, text)));
  tickLabels(yTicks).forEach((text, k) => group.append(
    svg('line', { class: 'grid', x1: box.left, x2: box.right, y1: scales.y(yTicks[k]), y2: scales.y(yTicks[k]) }),
    svg('text', { x: box.left - 7, y: scales.y(yTicks[k]) + 4, 'text-anchor': 'end' }, text)));
  const middle = (box.top + box.bottom) / 2;
  group.append(svg('text', { class: 'title', x: (box.left + box.right) / 2, y: box.bottom + 38, 'text-anchor': 'middle' }, xLabel),
    svg('text', { class: 'title', x: 13, y: middle, transform: `rotate(-90 13 ${middle})`, 'text-anchor': 'middle' }, yLabel));
  return group;
}

function curve(line, k, scales) {
  const points = line.x.map((x, i) => [scales.x(x), scales.y(line.y[i])]).filter(([, y]) => Number.isFinite(y));
  const path = points.map(([x, y], i) => `${i ? 'L' : 'M'}${x.toFixed(1)} ${y.toFixed(1)}`).join('');
  const group = svg('g', {}, svg('path', {
    d: path, fill: 'none', stroke: PALETTE[k % 6], 'stroke-width': line.thin ? 1 : 2, 'stroke-opacity': line.thin ? 0.55 : 1,
    'stroke-dasharray': DASHES[k % 6], 'stroke-linejoin': 'round',
  }));
  if (points.length <= 40) for (const [x, y] of points) group.append(marker(k, x, y, 3.2));
  return group;
}

// A shape for each curve, so that they stay apart without colour.
function marker(k, x, y, r) {
  const style = { fill: PALETTE[k % 6] };
  const polygon = (corners) => svg('polygon', { ...style, points: corners.map(([dx, dy]) => `${x + dx * r},${y + dy * r}`).join(' ') });
  return [
    () => svg('circle', { ...style, cx: x, cy: y, r }),
    () => svg('rect', { ...style, x: x - r, y: y - r, width: 2 * r, height: 2 * r }),
    () => polygon([[0, -1.3], [1.2, 0.9], [-1.2, 0.9]]),
    () => polygon([[0, -1.4], [1.4, 0], [0, 1.4], [-1.4, 0]]),
    () => polygon([[0, 1.3], [1.2, -0.9], [-1.2, -0.9]]),
    () => svg('circle', { cx: x, cy: y, r, fill: 'none', stroke: PALETTE[k % 6], 'stroke-width': 2 }),
  ][k % 6]();
}

function swatch(k) {
  return svg('svg', { width: 34, height: 12, 'aria-hidden': 'true' },
    svg('line', { x1: 1, x2: 33, y1: 6, y2: 6, stroke: PALETTE[k % 6], 'stroke-width': 2, 'stroke-dasharray': DASHES[k % 6] }),
    marker(k, 17, 6, 3.2));
}

function readable(picture, cursor, reading, { series, scales, box, width, xLabel }) {
  const places = [...new Set(series.flatMap((line) => line.x))].sort((a, b) => a - b);
  let at = -1;
  const read = (k) => {
    at = Math.max(0, Math.min(places.length - 1, k));
    const x = places[at];
    cursor.replaceChildren(svg('line', { x1: scales.x(x), x2: scales.x(x), y1: box.top, y2: box.bottom }));
    const found = series.map((line) => [line.label, line.y[line.x.indexOf(x)]]).filter(([, y]) => Number.isFinite(y));
    for (const [, y] of found) cursor.append(svg('circle', { cx: scales.x(x), cy: scales.y(y), r: 4 }));
    reading.textContent = `${xLabel} ${exact(x)}: ${found.map(([label, y]) => (series.length > 1 ? `${label} ${exact(y)}` : exact(y))).join(', ')}`;
  };
  picture.addEventListener('pointermove', (event) => {
    const frame = picture.getBoundingClientRect();
    const value = scales.x.value(((event.clientX - frame.left) / frame.width) * width);
    let nearest = 0;
    places.forEach((x, k) => { if (Math.abs(x - value) < Math.abs(places[nearest] - value)) nearest = k; });
    read(nearest);
  });
  const clear = () => cursor.replaceChildren();  // the words stay: a text that goes would move what is below it
  picture.addEventListener('pointerleave', clear);
  picture.addEventListener('blur', clear);
  picture.addEventListener('keydown', (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    read(at + step);
  });
}

// The same numbers as a table, made when someone opens it; of long curves every n-th row.
function asTable(series, xLabel, open) {
  const host = el('div', { class: 'scroll' });
  const folded = el('details', { class: 'astable', open }, el('summary', {}, 'As a table'), host);
  const fillIn = () => {
    const places = [...new Set(series.flatMap((line) => line.x))].sort((a, b) => a - b);
    const every = Math.ceil(places.length / 200);
    const rows = places.filter((_, k) => k % every === 0 || k === places.length - 1)
      .map((x) => [exact(x), ...series.map((line) => exact(line.y[line.x.indexOf(x)] ?? NaN))]);
    host.replaceChildren(tableOf([xLabel, ...series.map((line) => line.label)], rows));
  };
  folded.addEventListener('toggle', fillIn, { once: true });
  return folded;
}
