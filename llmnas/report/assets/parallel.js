// Parallel coordinates: one line a network, an axis for each size that differs and for each metric.
// Lines are drawn a slice a frame, so that twenty thousand of them never hold up the page.

const SLICE = 1500;  // lines a frame
const MOST_AXES = 14;
const TOP = 62;  // pixels above the axes: three lines of a label, and the greatest value

class Parallel {
  constructor(host) {
    this.stage = el('div', { class: 'stage', role: 'img' });
    host.append(this.stage);
    this.round = 0;
    this.drag = null;
    this.canvas = canvasIn(this.stage, 356, () => this.draw());
    this.redraw = onceAFrame(() => this.draw());
    for (const event of ['data', 'filter', 'theme', 'view']) on(event, this.redraw);
    for (const event of ['hover', 'pin']) on(event, onceAFrame(() => this.drawOver()));
    this.listen();
    this.canvas.fit();
  }

  // Sizes first, then what they led to; what is the same for all says nothing.
  axes() {
    const columns = [...store.columns.values()].filter((column) => column.name !== '#' && varies(column));
    const sizes = columns.filter((column) => column.group === 'architecture');
    const measured = distinct(columns.filter((column) => column.group === 'measured' && !column.name.endsWith('_error')));
    return [...sizes.slice(0, Math.max(MOST_AXES - measured.length, 4)), ...measured].slice(0, MOST_AXES);
  }

  draw() {
    const { width, height } = this.canvas.size;
    if (!width) return;
    const context = this.canvas.contexts[0];
    context.clearRect(0, 0, width, height);
    this.columns = this.axes();
    this.stage.style.minWidth = `${this.columns.length * 74}px`;
    const room = this.columns.length > 1 ? (width - 110) / (this.columns.length - 1) : 0;
    this.x = this.columns.map((_, k) => 50 + k * room);
    this.scales = this.columns.map((column) => makeScale(extent(column.values), [height - 34, TOP], false));
    this.stage.setAttribute('aria-label', `Parallel coordinates of ${store.shownCount} networks over ${this.columns.map((c) => c.label).join(', ')}.`);
    this.round += 1;
    this.lines(context, this.round);
    this.drawOver();
  }

  lines(context, round) {
    const palette = shades();
    const shade = shadeIndices();
    const some = [];
    for (let i = 0; i < store.id.length; i += 1) if (store.shown[i] && !store.front.has(i)) some.push(i);
    const front = [...store.front].filter((i) => store.shown[i]);
    const alpha = Math.max(0.035, Math.min(0.6, 60 / (some.length + 1)));
    context.lineJoin = 'round';
    const slice = (from) => {
      if (round !== this.round) return;
      context.lineWidth = 1;
      for (const i of some.slice(from, from + SLICE)) {
        context.globalAlpha = alpha;
        context.strokeStyle = shade[i] < 0 ? css('--soft') : palette[shade[i]];
        this.path(context, i);
      }
      context.globalAlpha = 1;
      if (from + SLICE < some.length) { requestAnimationFrame(() => slice(from + SLICE)); return; }
      context.strokeStyle = FRONT;
      context.lineWidth = 1.5;
      context.globalAlpha = Math.max(0.05, Math.min(0.6, 25 / (front.length + 1)));
      for (const i of front) this.path(context, i);
      context.globalAlpha = 1;
      this.stage.dataset.drawn = String(some.length + front.length);
    };
    slice(0);
  }

  path(context, i) {
    context.beginPath();
    let pen = false;
    for (let k = 0; k < this.columns.length; k += 1) {
      const value = this.columns[k].values[i];
      if (!Number.isFinite(value)) { pen = false; continue; }
      if (pen) context.lineTo(this.x[k], this.scales[k](value));
      else context.moveTo(this.x[k], this.scales[k](value));
      pen = true;
    }
    context.stroke();
  }

  drawOver() {
    if (!this.columns) return;
    const context = this.canvas.contexts[1];
    const { width, height } = this.canvas.size;
    context.clearRect(0, 0, width, height);
    for (const i of new Set([...chosen.pinned, chosen.hovered])) {
      if (i < 0 || i >= store.id.length) continue;
      context.strokeStyle = css('--ink');
      context.lineWidth = 2.4;
      context.setLineDash(i === chosen.pinned[1] ? [7, 4] : []);
      this.path(context, i);
    }
    context.setLineDash([]);
    this.columns.forEach((column, k) => this.axis(context, column, k, height));
  }

  axis(context, column, k, height) {
    const x = this.x[k];
    const scale = this.scales[k];
    context.strokeStyle = css('--soft');
    context.lineWidth = 1;
    context.beginPath();
    context.moveTo(x, TOP);
    context.lineTo(x, height - 34);
    context.stroke();
    context.fillStyle = css('--ink');
    context.font = '12px system-ui, sans-serif';
    context.textAlign = 'center';
    const room = this.x.length > 1 ? this.x[1] - this.x[0] - 8 : 200;
    wrapped(context, column.label, room).forEach((line, n) => context.fillText(line, x, 14 + 14 * n));
    context.fillStyle = css('--soft');
    const [low, high] = extent(column.values);
    context.fillText(short(high), x, TOP - 4);
    context.fillText(short(low), x, height - 18);
    const range = (this.drag?.column === column && this.drag.range) || store.filters.get(column.name);
    if (!range) return;
    const [top, bottom] = [scale(Math.min(range[1], high)), scale(Math.max(range[0], low))];
    context.fillStyle = 'rgba(0,114,178,.28)';
    context.strokeStyle = PALETTE[0];
    context.fillRect(x - 8, top, 16, bottom - top);
    context.strokeRect(x - 8, top, 16, bottom - top);
  }

  listen() {
    const at = (event) => {
      const frame = this.stage.getBoundingClientRect();
      return [event.clientX - frame.left, Math.max(TOP, Math.min(this.canvas.size.height - 34, event.clientY - frame.top))];
    };
    this.stage.addEventListener('pointerdown', (event) => {
      const [x, y] = at(event);
      const k = this.x ? this.x.findIndex((place) => Math.abs(place - x) < 22) : -1;
      if (k < 0 || event.button !== 0) return;
      this.drag = { column: this.columns[k], scale: this.scales[k], from: y, range: null };
      this.stage.setPointerCapture(event.pointerId);
    });
    this.stage.addEventListener('pointermove', (event) => {
      const [x, y] = at(event);
      this.stage.classList.toggle('brush', Boolean(this.x?.some((place) => Math.abs(place - x) < 22)));
      if (!this.drag || Math.abs(y - this.drag.from) < 4) return;
      const ends = [this.drag.scale.value(this.drag.from), this.drag.scale.value(y)].sort((a, b) => a - b);
      this.drag.range = ends;
      this.drawOver();
    });
    const done = () => {
      const drag = this.drag;
      this.drag = null;
      if (drag) setFilter(drag.column.name, drag.range);
    };
    this.stage.addEventListener('pointerup', done);
    this.stage.addEventListener('pointercancel', () => { this.drag = null; this.drawOver(); });
  }
}

// Without those that put the networks in the same order as an earlier one, as perplexity does after the loss.
function distinct(columns) {
  const orders = [];
  return columns.filter((column) => {
    const same = orders.some((order) => order.every((i, k) => !k || column.values[i] >= column.values[order[k - 1]]));
    if (!same) orders.push(Array.from(column.values.keys()).sort((a, b) => column.values[a] - column.values[b]));
    return !same;
  });
}

// At most three lines of words that fit into so many pixels.
function wrapped(context, text, room) {
  const lines = [''];
  for (const word of text.split(' ')) {
    const longer = lines[lines.length - 1] ? `${lines[lines.length - 1]} ${word}` : word;
    if (context.measureText(longer).width <= room || lines[lines.length - 1] === '') lines[lines.length - 1] = longer;
    else lines.push(word);
  }
  const cut = (line) => {
    let shown = line;
    while (shown.length > 3 && context.measureText(`${shown}…`).width > room) shown = shown.slice(0, -1);
    return shown === line ? line : `${shown}…`;
  };
  return (lines.length > 3 ? [lines[0], lines[1], `${lines[2]}…`] : lines).map((line) => (context.measureText(line).width > room ? cut(line) : line));
}
