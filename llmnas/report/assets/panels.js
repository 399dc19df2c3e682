// The smaller charts: progress of the search and training; and the tables.

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

function drawTables() {
  byId('tables').replaceChildren(...store.described.tables.map((table) => el('section', {}, el('h2', {}, table.title),
    el('div', { class: 'scroll' }, tableOf(table.columns, table.rows)), el('p', { class: 'note' }, table.note))));
}

function drawFacts() {
  byId('facts').replaceChildren(...store.described.summary.map(([name, value]) => el('div', {}, el('dt', {}, name), el('dd', {}, value))));
}
