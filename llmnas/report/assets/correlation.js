// Rank correlation: the loss in the supernet against the loss trained alone, and Kendall's tau of every score.

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

// The networks that have both losses, the best of the supernet first.
function comparedNetworks(found) {
  return found.supernet_loss.map((x, i) => {
    const seeds = found.stand_alone_loss.map((row) => row[i]).filter(Number.isFinite);
    return { id: found.id[i], x, y: mean(seeds), low: Math.min(...seeds), high: Math.max(...seeds), seeds: seeds.length, params: found.params[i] };
  }).filter((one) => Number.isFinite(one.x) && Number.isFinite(one.y)).sort((a, b) => a.x - b.x);
}

function networkReading(one) {
  const spread = one.seeds > 1 ? ` (${exact(one.low)} to ${exact(one.high)} over ${one.seeds} seeds)` : '';
  return `${one.id}: ${exact(one.params)} parameters, supernet ${exact(one.x)}, alone ${exact(one.y)}${spread}`;
}

function drawCorrelation(found) {
  byId('correlation-section').hidden = !found;
  const host = byId('correlation');
  if (!found || !differs(host, found, innerWidth)) return;
  const networks = comparedNetworks(found);
  if (networks.length) drawNetworks(host, networks);
  else host.replaceChildren(el('p', { class: 'note' }, 'No network has both losses.'));
  drawAgreement(found.agreement);
}

function drawNetworks(host, networks) {
  const open = Boolean(host.querySelector('details')?.open);
  const width = Math.max(320, host.clientWidth || 440);
  const height = 320;
  const box = { left: 62, right: width - 14, top: 14, bottom: height - 46 };
  const ends = (low, high) => padded([Math.min(...networks.map(low)), Math.max(...networks.map(high))], false, 0.08);
  const scales = {
    x: makeScale(ends((n) => n.x, (n) => n.x), [box.left, box.right], false),
    y: makeScale(ends((n) => n.low, (n) => n.high), [box.bottom, box.top], false),
  };
  const picture = svg('svg', {
    viewBox: `0 0 ${width} ${height}`, width, height, tabindex: '0', role: 'img',
    'aria-label': `Loss in the supernet against loss trained alone, ${networks.length} networks. Arrow keys read them, from the supernet’s best on.`,
  }, svgAxes(box, scales, 'in the supernet (nats/token)', 'trained alone (nats/token)'));
  const reading = el('p', { class: 'reading', 'aria-live': 'polite' }, 'Point at a network, or use the arrow keys, to read it.');
  const points = networks.map((one) => {
    const x = scales.x(one.x);
    const point = svg('g', { class: 'truth' },
      svg('line', { x1: x, x2: x, y1: scales.y(one.low), y2: scales.y(one.high), stroke: PALETTE[0], 'stroke-width': 1.5 }),
      svg('circle', { cx: x, cy: scales.y(one.y), r: 5, fill: PALETTE[0] }));
    picture.append(point);
    return point;
  });
  walkable(picture, points, (k) => { reading.textContent = networkReading(networks[k]); });
  host.replaceChildren(picture, reading, networksTable(networks, open));
}

// Arrow keys and the pointer choose one of the points at a time.
function walkable(picture, points, read) {
  let at = -1;
  const choose = (k) => {
    points[at]?.classList.remove('chosen');
    at = Math.max(0, Math.min(points.length - 1, k));
    points[at].classList.add('chosen');
    read(at);
  };
  points.forEach((point, k) => point.addEventListener('pointerenter', () => choose(k)));
  picture.addEventListener('keydown', (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    choose(at + step);
  });
}

function networksTable(networks, open) {
  const rows = networks.map((one) => [one.id, exact(one.params), exact(one.x), exact(one.y), exact(one.low), exact(one.high)]);
  const columns = ['architecture', 'parameters', 'supernet', 'alone, mean', 'least', 'greatest'];
  return el('details', { class: 'astable', open }, el('summary', {}, 'As a table'), el('div', { class: 'scroll' }, tableOf(columns, rows)));
}

const SCORES = {
  supernet: 'supernet', supernet_adapted: 'supernet, adapted', params_only: 'parameters only', flops_only: 'FLOPs only', seed_to_seed: 'seed to seed',
};
const scoreLabel = (name) => SCORES[name] || fieldLabel(name);

// A dot and an interval for each score, from -1 to 1.
function drawAgreement(agreement) {
  const host = byId('agreement');
  const width = Math.max(300, host.clientWidth || 420);
  const rows = Object.entries(agreement).filter(([, a]) => Number.isFinite(a.tau));
  const without = Object.keys(agreement).filter((name) => !Number.isFinite(agreement[name].tau));
  const height = 60 + 56 * rows.length;
  const low = Math.min(0, ...rows.map(([, a]) => a.low ?? a.tau));
  const at = makeScale([Math.max(-1, low - 0.05), 1], [126, width - 52], false);
  const words = rows.map(([name, a]) => `${scoreLabel(name)} ${exact(a.tau)} from ${exact(a.low)} to ${exact(a.high)}`);
  const picture = svg('svg', { viewBox: `0 0 ${width} ${height}`, width, height, role: 'img', 'aria-label': `Kendall's tau: ${words.join('; ')}.` });
  const group = svg('g', { class: 'axes' });
  for (const tick of at.ticks(5)) {
    group.append(svg('line', { class: tick === 0 ? 'zero' : 'grid', x1: at(tick), x2: at(tick), y1: 10, y2: height - 42 }),
      svg('text', { x: at(tick), y: height - 26, 'text-anchor': 'middle' }, short(tick)));
  }
  group.append(svg('text', { class: 'title', x: (126 + width - 52) / 2, y: height - 6, 'text-anchor': 'middle' }, 'Kendall’s tau, 95 % interval'));
  rows.forEach(([name, a], k) => {
    const y = 36 + 56 * k;
    group.append(svg('text', { x: 116, y: y + 4, 'text-anchor': 'end' }, scoreLabel(name)),
      svg('line', { x1: at(a.low ?? a.tau), x2: at(a.high ?? a.tau), y1: y, y2: y, stroke: PALETTE[k % 6], 'stroke-width': 3 }),
      marker(k, at(a.tau), y, 6), svg('text', { x: width - 46, y: y + 4 }, a.tau.toFixed(2)));
  });
  picture.append(group);
  const undefinedOnes = without.length ? el('p', { class: 'note' }, `No tau, all values alike: ${without.map(scoreLabel).join(', ')}.`) : '';
  host.replaceChildren(rows.length ? picture : '', undefinedOnes);
}
