// Puts the page together; a page that comes from `llmnas report --serve` asks its server for news.

function drawCounts() {
  const { failed, front } = store.described;
  const lost = failed.count ? `, and ${failed.count.toLocaleString('en-US')} that failed and are not drawn` : '';
  byId('counts').textContent = `${store.id.length.toLocaleString('en-US')} evaluations${lost}; ${front.length} on the Pareto front.`;
}

function drawDescribed() {
  drawCounts();
  drawPanels();
}

function start() {
  const dark = byId('theme');
  dark.addEventListener('click', () => {
    document.documentElement.dataset.theme = isDark() ? 'light' : 'dark';
    emit('theme');
  });
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => emit('theme'));
  store.described = data.described;
  on('data', firstView);
  addEvaluations(data.evaluations);
  new Scatter(byId('scatter'));
  new Parallel(byId('parallel'));
  drawControls();
  drawDescribed();
  // a frame later: a number is taken over while the focus is on its way to the next field
  for (const event of ['data', 'filter']) on(event, onceAFrame(drawFilters));
  for (const event of ['data', 'filter', 'view']) on(event, drawFrontTable);
  for (const event of ['data', 'theme']) on(event, drawControls);
  on('data', drawDescribed);
  for (const event of ['hover', 'data']) on(event, onceAFrame(showPreview));
  for (const event of ['pin', 'data']) on(event, onceAFrame(showCompare));
  byId('front-table').addEventListener('toggle', drawFrontTable);
  let width = innerWidth;
  addEventListener('resize', onceAFrame(() => { if (innerWidth !== width) { width = innerWidth; drawPanels(); } }));
  drawFilters();
  showPreview();
  if (document.querySelector('script[data-live]')) follow();
}

// Asks for what is new, once a second; a search that began anew replaces the old one.
async function follow() {
  const badge = byId('live');
  let seen = '';
  const show = (text, good) => { badge.textContent = text; badge.classList.toggle('bad', !good); };
  const ask = async () => {
    const answer = await fetch(`data?after=${store.total}&last=${store.last}&seen=${seen}`);
    const news = await answer.json();
    if (!answer.ok) throw new Error(news.error);
    take(news);
    seen = news.seen;
    show(`live · ${store.total.toLocaleString('en-US')} evaluations`, true);
  };
  for (;;) {
    try {
      await ask();
    } catch (error) {
      show(error instanceof TypeError ? 'the server is gone' : error.message, false);
    }
    await new Promise((done) => { setTimeout(done, 1000); });
  }
}

function take(news) {
  if (news.evaluations.after === 0 && store.total > 0) {
    Object.assign(chosen, { hovered: -1, pinned: [] });
    emit('pin');
  }
  if (news.described) {
    store.described = news.described;
    drawFacts();
    drawTables();
  }
  if (news.described || news.evaluations.total !== store.total) addEvaluations(news.evaluations);
}

start();
