// The depth ladder: the loss at every depth, and which layers the best subset of that depth keeps.

const RUNG_LOSSES = [['loss', 'best subset'], ['first_layers', 'last layers dropped'], ['even_layers', 'evenly spaced'], ['alone', 'trained alone']];

// A loss, or the mean of one loss a seed; NaN where there is none.
function rungLoss(rung, name) {
  const values = [rung[name]].flat().filter(Number.isFinite);
  return values.length ? mean(values) : NaN;
}

function overAlone(rung) {
  const share = 100 * (rungLoss(rung, 'loss') / rungLoss(rung, 'alone') - 1);
  return Number.isFinite(share) ? `${signed(Number(share.toFixed(1)))} %` : '';
}

function drawLadder(rungs) {
  byId('ladder-section').hidden = !rungs.length;
  if (!rungs.length || !differs(byId('kept'), rungs, innerWidth)) return;
  const order = [...rungs].sort((a, b) => a.depth - b.depth);
  const series = RUNG_LOSSES.map(([name, label]) => {
    const some = order.filter((rung) => Number.isFinite(rungLoss(rung, name)));
    return { label, x: some.map((rung) => rung.depth), y: some.map((rung) => rungLoss(rung, name)) };
  }).filter((line) => line.x.length);
  lineChart(byId('ladder'), { series, xLabel: 'layers kept', yLabel: 'loss (nats/token)', summary: 'Loss at each depth.' });
  drawKept(byId('kept'), order.reverse());
}

// A row for each depth, the deepest on top, with a cell for each layer of the whole network.
function drawKept(host, rungs) {
  const layers = Math.max(...rungs.map((rung) => rung.layers));
  const width = Math.max(300, host.clientWidth || 420);
  const from = 44;
  const cell = Math.min(26, (width - from - 150) / layers);
  const tall = Math.max(14, cell);
  const gap = cell > 8 ? 3 : 1;
  const losses = from + layers * cell + 8;
  const height = 40 + rungs.length * (tall + 4);
  const words = rungs.map((rung) => `Depth ${rung.depth} keeps layers ${rung.kept.join(', ')}: loss ${exact(rung.loss)}${overAlone(rung) && `, ${overAlone(rung)} over trained alone`}.`);
  const picture = svg('svg', { viewBox: `0 0 ${width} ${height}`, width, height, role: 'img', class: 'kept', 'aria-label': words.join(' ') },
    svg('text', { x: 0, y: 14 }, 'depth'), svg('text', { x: from, y: 14 }, 'layers kept'), svg('text', { x: losses, y: 14 }, 'loss'),
    rungs.some(overAlone) ? svg('text', { x: losses + 62, y: 14 }, 'over alone') : null);
  rungs.forEach((rung, k) => {
    const y = 22 + k * (tall + 4);
    const line = y + tall / 2 + 3;
    const row = svg('g', { 'data-depth': rung.depth }, svg('text', { x: 28, y: line, 'text-anchor': 'end' }, rung.depth));
    const kept = new Set(rung.kept);
    for (let layer = 0; layer < rung.layers; layer += 1) {
      row.append(svg('rect', { class: kept.has(layer) ? 'there' : 'gone', x: from + layer * cell, y, width: cell - gap, height: tall - 3, rx: Math.min(3, cell / 4) }));
    }
    row.append(svg('text', { x: losses, y: line }, exact(rung.loss)), svg('text', { x: losses + 62, y: line }, overAlone(rung)));
    picture.append(row);
  });
  for (const layer of new Set([0, layers - 1])) {
    picture.append(svg('text', { x: from + (layer + 0.5) * cell - gap / 2, y: height - 4, 'text-anchor': 'middle' }, layer));
  }
  host.replaceChildren(picture);
}
