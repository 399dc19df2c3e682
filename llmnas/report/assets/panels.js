// The smaller charts: progress of the search, training, rank correlation, depth ladder; and the tables.

function drawPanels() {
  const { hypervolume, curves } = store.described;
  byId('hypervolume-section').hidden = !hypervolume.evaluations.length;
  lineChart(byId('hypervolume'), {
    series: [{ label: 'share of the box', x: hypervolume.evaluations, y: hypervolume.share }],
    xLabel: 'evaluations', yLabel: 'hypervolume (share)', summary: 'Hypervolume over evaluations.',
  });
  drawTraining(curves);
  drawCorrelation(store.described.correlation);
  drawLadder(store.described.ladder);
}

// Watched networks first, in one order of colours whatever was logged first; the noisy training loss thin and last.
function drawTraining(curves) {
  const noisy = (curve) => curve.label.endsWith('train loss');
  const series = [...curves.filter((c) => !noisy(c)), ...curves.filter(noisy)]
    .map((curve) => ({ label: curve.label, x: curve.steps, y: curve.values, thin: noisy(curve) && curve.steps.length > 40 }));
  byId('training-section').hidden = !series.length && !byId('no-curves');
  if (!series.length) return;
  byId('no-curves')?.remove();
  lineChart(byId('training'), {
    series, xLabel: 'optimizer step', yLabel: 'loss (nats/token)', summary: 'Loss of sub-networks over training.',
  });
}

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

function drawCorrelation(found) {
  byId('correlation-section').hidden = !found;
  if (!found || !differs(byId('correlation'), found, innerWidth)) return;
  const seeds = found.stand_alone_loss;
  const networks = found.supernet_loss.map((x, i) => {
    const values = seeds.map((row) => row[i]).filter(Number.isFinite);
    return { x, y: mean(values), low: Math.min(...values), high: Math.max(...values), params: found.params[i] };
  }).filter((one) => Number.isFinite(one.x) && Number.isFinite(one.y));
  if (!networks.length) return;
  const host = byId('correlation');
  const width = Math.max(320, host.clientWidth || 440);
  const height = 320;
  const box = { left: 62, right: width - 14, top: 14, bottom: height - 46 };
  const ends = (low, high) => padded([Math.min(...networks.map(low)), Math.max(...networks.map(high))], false, 0.08);
  const scales = {
    x: makeScale(ends((n) => n.x, (n) => n.x), [box.left, box.right], false),
    y: makeScale(ends((n) => n.low, (n) => n.high), [box.bottom, box.top], false),
  };
  const picture = svg('svg', {
    viewBox: `0 0 ${width} ${height}`, width, height, role: 'img',
    'aria-label': `Loss in the supernet against loss trained alone, ${networks.length} networks.`,
  }, svgAxes(box, scales, 'loss with the supernet’s weights (nats/token)', 'trained alone (nats/token)'));
  for (const one of networks) {
    const x = scales.x(one.x);
    picture.append(svg('g', { class: 'truth' },
      svg('title', {}, `${exact(one.params)} parameters: supernet ${exact(one.x)}, alone ${exact(one.y)}`),
      svg('line', { x1: x, x2: x, y1: scales.y(one.low), y2: scales.y(one.high), stroke: PALETTE[0], 'stroke-width': 1.5 }),
      svg('circle', { cx: x, cy: scales.y(one.y), r: 5, fill: PALETTE[0] })));
  }
  host.replaceChildren(picture);
  drawAgreement(found.agreement);
}

const SCORES = { supernet: 'supernet', params_only: 'parameters only', seed_to_seed: 'seed to seed' };

// A dot and an interval for each score, from -1 to 1.
function drawAgreement(agreement) {
  const host = byId('agreement');
  const width = Math.max(300, host.clientWidth || 420);
  const rows = Object.entries(agreement).filter(([, a]) => Number.isFinite(a.tau));
  const height = 60 + 56 * rows.length;
  const low = Math.min(0, ...rows.map(([, a]) => a.low ?? a.tau));
  const at = makeScale([Math.max(-1, low - 0.05), 1], [126, width - 52], false);
  const picture = svg('svg', {
    viewBox: `0 0 ${width} ${height}`, width, height, role: 'img',
    'aria-label': `Kendall's tau: ${rows.map(([name, a]) => `${SCORES[name] || name} ${exact(a.tau)} from ${exact(a.low)} to ${exact(a.high)}`).join('; ')}.`,
  });
  const group = svg('g', { class: 'axes' });
  for (const tick of at.ticks(5)) {
    group.append(svg('line', { class: tick === 0 ? 'zero' : 'grid', x1: at(tick), x2: at(tick), y1: 10, y2: height - 42 }),
      svg('text', { x: at(tick), y: height - 26, 'text-anchor': 'middle' }, short(tick)));
  }
  group.append(svg('text', { class: 'title', x: (126 + width - 52) / 2, y: height - 6, 'text-anchor': 'middle' }, 'Kendall’s tau, 95 % interval'));
  rows.forEach(([name, a], k) => {
    const y = 36 + 56 * k;
    group.append(svg('text', { x: 116, y: y + 4, 'text-anchor': 'end' }, SCORES[name] || name),
      svg('line', { x1: at(a.low), x2: at(a.high), y1: y, y2: y, stroke: PALETTE[k % 6], 'stroke-width': 3 }), marker(k, at(a.tau), y, 6),
      svg('text', { x: width - 46, y: y + 4 }, a.tau.toFixed(2)));
  });
  picture.append(group);
  host.replaceChildren(picture);
}

// Every number of a row but its depth is a loss, and gets a curve by its name.
function drawLadder(rows) {
  byId('ladder-section').hidden = !rows.length;
  if (!rows.length || !differs(byId('kept'), rows, innerWidth)) return;
  const order = [...rows].sort((a, b) => a.depth - b.depth);
  const names = [...new Set(order.flatMap((row) => Object.keys(row)))]
    .filter((name) => name !== 'depth' && order.some((row) => typeof row[name] === 'number'));
  const series = names.map((name) => {
    const some = order.filter((row) => Number.isFinite(row[name]));
    return { label: name === 'loss' ? 'best subset' : fieldLabel(name), x: some.map((row) => row.depth), y: some.map((row) => row[name]) };
  });
  lineChart(byId('ladder'), { series, xLabel: 'layers kept', yLabel: 'loss (nats/token)', summary: 'Loss at each depth.' });
  const kept = order.filter((row) => Array.isArray(row.kept));
  const layers = Math.max(0, ...kept.flatMap((row) => row.kept)) + 1;
  const width = Math.max(300, byId('kept').clientWidth || 420);
  const cell = Math.min(26, (width - 90) / layers);
  const picture = svg('svg', {
    viewBox: `0 0 ${width} ${kept.length * (cell + 4) + 30}`, width, height: kept.length * (cell + 4) + 30, role: 'img', class: 'kept',
    'aria-label': kept.map((row) => `Depth ${row.depth} keeps layers ${row.kept.join(', ')}.`).join(' '),
  }, svg('text', { x: 0, y: 14, class: 'number' }, 'depth'), svg('text', { x: 60, y: 14, class: 'number' }, 'layers kept'));
  [...kept].reverse().forEach((row, k) => {
    const y = 22 + k * (cell + 4);
    picture.append(svg('text', { x: 30, y: y + cell / 2 + 4, class: 'number' }, row.depth));
    for (let layer = 0; layer < layers; layer += 1) {
      const there = row.kept.includes(layer);
      picture.append(svg('rect', { class: there ? 'there' : 'gone', x: 60 + layer * cell, y, width: cell - 3, height: cell - 3, rx: 3 }));
    }
  });
  byId('kept').replaceChildren(picture);
}

function drawTables() {
  byId('tables').replaceChildren(...store.described.tables.map((table) => el('section', {}, el('h2', {}, table.title),
    el('div', { class: 'scroll' }, tableOf(table.columns, table.rows)), el('p', { class: 'note' }, table.note))));
}

function drawFacts() {
  byId('facts').replaceChildren(...store.described.summary.map(([name, value]) => el('div', {}, el('dt', {}, name), el('dd', {}, value))));
}
