// The front over any two columns: points on one canvas, what moves (pointer, pins, zoom box) on another above it.

const view = { x: '', y: '', logX: false, logY: false, zoom: null, settled: false };  // zoom: [[x0, x1], [y0, y1]] in values

class Scatter {
  constructor(host) {
    this.host = host;
    this.stage = el('div', {
      class: 'stage', tabindex: '0', role: 'application', 'aria-roledescription': 'scatter plot',
      'aria-describedby': 'scatter-help',
    });
    this.tip = el('div', { class: 'tip', hidden: true });
    host.append(this.stage);
    this.canvas = canvasIn(this.stage, 460, () => this.draw());
    this.stage.append(this.tip);
    this.drag = null;
    this.focus = -1;
    this.redraw = onceAFrame(() => this.draw());
    this.overlay = onceAFrame(() => this.drawOver());
    for (const event of ['data', 'filter', 'theme', 'view']) on(event, this.redraw);
    for (const event of ['hover', 'pin']) on(event, this.overlay);
    this.listen();
    this.canvas.fit();
  }

  box() {
    const { width, height } = this.canvas.size;
    return { left: 74, right: width - 14, top: 12, bottom: height - 50 };
  }

  draw() {
    if (this.canvas.size.width && store.columns.has(view.x)) timed('scatter', () => this.paint());
  }

  paint() {
    const [x, y] = [store.columns.get(view.x), store.columns.get(view.y)];
    const box = this.box();
    const context = this.canvas.contexts[0];
    context.clearRect(0, 0, this.canvas.size.width, this.canvas.size.height);
    this.front = frontOf(x, y);
    this.scales = this.scalesFor(x, y, box);
    const count = store.id.length;
    this.px = new Float32Array(count);
    this.py = new Float32Array(count);
    this.inside = [];
    drawAxes(context, box, this.scales, [x.label, y.label]);
    for (let i = 0; i < count; i += 1) {
      this.px[i] = this.scales.x(x.values[i]);
      this.py[i] = this.scales.y(y.values[i]);
      const seen = this.px[i] >= box.left - 1 && this.px[i] <= box.right + 1 && this.py[i] >= box.top - 1 && this.py[i] <= box.bottom + 1;
      if (seen && store.shown[i]) this.inside.push(i);
    }
    context.save();
    context.beginPath();
    context.rect(box.left - 8, box.top - 8, box.right - box.left + 16, box.bottom - box.top + 16);
    context.clip();
    this.paintPoints(context);
    this.paintFront(context, box);
    context.restore();
    this.grid = new Grid(this.px, this.py, this.inside, this.canvas.size.width, this.canvas.size.height);
    this.stage.setAttribute('aria-label', `${y.label} over ${x.label}: ${this.inside.length} networks, ${this.front.length} on the front of these two.`);
    this.drawOver();
  }

  scalesFor(x, y, box) {
    const fitted = (column, log, zoom, pixels) => {
      const wanted = (i) => store.shown[i] && (!log || column.values[i] > 0);
      const ends = zoom || padded(extent(column.values, wanted) || [log ? 1 : 0, log ? 10 : 1], log);
      return makeScale(ends, pixels, log);
    };
    const zoom = view.zoom || [null, null];
    return {
      x: fitted(x, view.logX, zoom[0], [box.left, box.right]),
      y: fitted(y, view.logY, zoom[1], [box.bottom, box.top]),
    };
  }

  paintPoints(context) {
    const radius = this.inside.length > 4000 ? 2.2 : this.inside.length > 800 ? 3 : 4;
    const alpha = this.inside.length > 4000 ? 0.5 : 0.8;
    const shade = shadeIndices();
    const { width, height } = this.canvas.size;
    const shadeOf = (i) => (store.outside.has(i) ? -1 : shade[i]);
    context.drawImage(pointsPicture(width, height, this.inside, this.px, this.py, shadeOf, radius, alpha), 0, 0, width, height);
  }

  // The staircase that bounds what was reached in these two; diamonds are the front of the whole search.
  paintFront(context, box) {
    context.strokeStyle = FRONT;
    context.lineWidth = 1.8;
    context.beginPath();
    this.front.forEach((i, k) => {
      if (k === 0) context.moveTo(this.px[i], this.py[i]);
      else { context.lineTo(this.px[i], this.py[this.front[k - 1]]); context.lineTo(this.px[i], this.py[i]); }
    });
    context.stroke();
    context.lineWidth = 1.2;
    context.fillStyle = FRONT;
    context.strokeStyle = css('--card');
    const many = store.front.size > 150;
    for (const i of this.inside.filter((at) => store.front.has(at))) {
      diamond(context, this.px[i], this.py[i], many ? 3 : 6);
      context.fill();
      if (!many) context.stroke();
    }
    context.strokeStyle = css('--grid');
    context.strokeRect(box.left + 0.5, box.top + 0.5, box.right - box.left, box.bottom - box.top);
  }

  drawOver() {
    const context = this.canvas.contexts[1];
    context.clearRect(0, 0, this.canvas.size.width, this.canvas.size.height);
    if (!this.px) return;
    const ring = (i, radius, width) => {
      context.beginPath();
      context.arc(this.px[i], this.py[i], radius, 0, 2 * Math.PI);
      context.strokeStyle = css('--ink');
      context.lineWidth = width;
      context.stroke();
    };
    const box = this.box();
    const inFrame = (i) => i >= 0 && this.px[i] >= box.left - 1 && this.px[i] <= box.right + 1 && this.py[i] >= box.top - 1 && this.py[i] <= box.bottom + 1;
    chosen.pinned.forEach((i, k) => {
      if (!inFrame(i)) return;  // zoomed away, or without one of the two values
      ring(i, 9, 2.4);
      context.font = 'bold 14px system-ui, sans-serif';
      context.lineWidth = 4;
      context.strokeStyle = css('--card');
      const beside = this.px[i] + (this.px[i] > box.right - 24 ? -14 : 14);  // within the frame
      context.strokeText('AB'[k], beside, this.py[i] + 14);
      context.fillStyle = css('--ink');
      context.fillText('AB'[k], beside, this.py[i] + 14);
    });
    if (inFrame(chosen.hovered)) ring(chosen.hovered, 7, 1.6);
    for (const i of new Set([...chosen.pinned, chosen.hovered])) if (inFrame(i)) this.errorBars(context, i);
    if (this.drag?.moved) {
      const { x0, y0, x1, y1 } = this.drag;
      context.fillStyle = 'rgba(0,114,178,.15)';
      context.fillRect(x0, y0, x1 - x0, y1 - y0);
      context.strokeStyle = PALETTE[0];
      context.lineWidth = 1;
      context.strokeRect(x0, y0, x1 - x0, y1 - y0);
    }
    this.placeTip();
  }

  // One standard error either way, where the search stored it as <metric>_error.
  errorBars(context, i) {
    const error = (name) => store.metrics.get(`${name}_error`)?.[i] || 0;
    const [x, y] = [store.columns.get(view.x), store.columns.get(view.y)];
    const [ex, ey] = [error(view.x), error(view.y)];
    const bar = (x0, y0, x1, y1) => { context.moveTo(x0, y0); context.lineTo(x1, y1); };
    context.lineWidth = 1.2;
    context.beginPath();
    if (ey) bar(this.px[i], this.scales.y(y.values[i] - ey), this.px[i], this.scales.y(y.values[i] + ey));
    if (ex) bar(this.scales.x(x.values[i] - ex), this.py[i], this.scales.x(x.values[i] + ex), this.py[i]);
    context.stroke();
  }

  placeTip() {
    const i = chosen.hovered;
    this.tip.hidden = i < 0 || Boolean(this.drag?.moved) || !this.inside.includes(i);
    if (this.tip.hidden) return;
    const [x, y] = [store.columns.get(view.x), store.columns.get(view.y)];
    const row = (column) => el('span', {}, `${exact(column.values[i])} ${column.label}`);
    this.tip.replaceChildren(el('b', {}, store.id[i]), row(x), row(y));
    const below = this.py[i] < 90;
    const half = this.tip.offsetWidth / 2 + 4;
    this.tip.style.left = `${Math.max(half, Math.min(this.canvas.size.width - half, this.px[i]))}px`;
    this.tip.style.top = `${this.py[i] + (below ? 16 : -16)}px`;
    this.tip.classList.toggle('below', below);
  }

  listen() {
    const at = (event) => {
      const frame = this.stage.getBoundingClientRect();
      return [event.clientX - frame.left, event.clientY - frame.top];
    };
    const find = (x, y) => this.grid?.nearest(x, y, (i) => (store.front.has(i) ? 3 : 0)) ?? -1;
    this.stage.addEventListener('pointermove', (event) => {
      const [x, y] = at(event);
      if (this.drag) {
        Object.assign(this.drag, { x1: x, y1: y, moved: this.drag.moved || Math.hypot(x - this.drag.x0, y - this.drag.y0) > 6 });
        this.overlay();
      } else hover(find(x, y));
    });
    this.stage.addEventListener('pointerleave', () => { if (!this.drag) hover(-1); });
    this.stage.addEventListener('pointerdown', (event) => {
      if (event.button !== 0) return;
      const [x, y] = at(event);
      this.drag = { x0: x, y0: y, x1: x, y1: y, moved: false };
      this.stage.setPointerCapture(event.pointerId);
    });
    this.stage.addEventListener('pointerup', (event) => {
      const drag = this.drag;
      this.drag = null;
      if (!drag) return;
      if (drag.moved) this.zoomTo(drag);
      else {
        const i = find(...at(event));
        if (i >= 0) { this.focus = i; hover(i); pin(i); }
      }
      this.overlay();
    });
    this.stage.addEventListener('pointercancel', () => { this.drag = null; this.overlay(); });
    this.stage.addEventListener('dblclick', () => setZoom(null));
    this.stage.addEventListener('keydown', (event) => this.key(event));
    this.stage.addEventListener('blur', () => hover(-1));
  }

  zoomTo({ x0, y0, x1, y1 }) {
    if (Math.abs(x1 - x0) < 8 || Math.abs(y1 - y0) < 8) return;
    const ends = (scale, a, b) => [scale.value(a), scale.value(b)].sort((p, q) => p - q);
    setZoom([ends(this.scales.x, x0, x1), ends(this.scales.y, y0, y1)]);
  }

  zoomBy(factor) {
    const box = this.box();
    const i = this.focus >= 0 && this.inside.includes(this.focus) ? this.focus : -1;
    const [cx, cy] = i >= 0 ? [this.px[i], this.py[i]] : [(box.left + box.right) / 2, (box.top + box.bottom) / 2];
    const [w, h] = [(box.right - box.left) * factor / 2, (box.bottom - box.top) * factor / 2];
    this.zoomTo({ x0: cx - w, x1: cx + w, y0: cy - h, y1: cy + h });
  }

  key(event) {
    const moves = {
      ArrowRight: () => this.along(1), ArrowLeft: () => this.along(-1), Home: () => this.along(-Infinity), End: () => this.along(Infinity),
      ArrowUp: () => this.vertical(-1), ArrowDown: () => this.vertical(1),
      Enter: () => { if (this.focus >= 0) pin(this.focus); }, ' ': () => { if (this.focus >= 0) pin(this.focus); },
      Escape: unpinAll, '+': () => this.zoomBy(0.5), '=': () => this.zoomBy(0.5), '-': () => this.zoomBy(2), 0: () => setZoom(null),
    };
    if (!(event.key in moves) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    moves[event.key]();
  }

  // To the next point of the front, as it is drawn from left to right.
  along(step) {
    const line = this.front.filter((i) => this.inside.includes(i)).sort((a, b) => this.px[a] - this.px[b] || a - b);
    if (!line.length) return say('No front here.');
    const from = line.indexOf(this.focus);
    const to = Number.isFinite(step) ? (from < 0 ? (step > 0 ? 0 : line.length - 1) : from + step) : step;
    return this.goTo(line[Math.max(0, Math.min(line.length - 1, to))]);
  }

  vertical(step) {
    if (this.focus < 0 || !this.inside.includes(this.focus)) return this.along(1);
    let best = -1;
    let least = Infinity;
    for (const i of this.inside) {
      const [dx, dy] = [Math.abs(this.px[i] - this.px[this.focus]), step * (this.py[i] - this.py[this.focus])];
      if (dy > 0.01 && dy + 4 * dx < least) { least = dy + 4 * dx; best = i; }
    }
    return best >= 0 ? this.goTo(best) : say('No further point.');
  }

  goTo(i) {
    this.focus = i;
    hover(i);
    const [x, y] = [store.columns.get(view.x), store.columns.get(view.y)];
    say(`${store.id[i]}: ${x.label} ${exact(x.values[i])}, ${y.label} ${exact(y.values[i])}${store.front.has(i) ? ', on the front' : ''}.`);
  }
}

// A box around the front of the two axes, whatever lies beside it.
function zoomToFront() {
  const [x, y] = [store.columns.get(view.x), store.columns.get(view.y)];
  const best = new Set(frontOf(x, y));
  const ends = (column, log) => {
    const [low, high] = extent(column.values, (i) => best.has(i) && (!log || column.values[i] > 0)) ?? [0, 0];
    return low < high ? padded([low, high], log, 0.12) : null;
  };
  const [ex, ey] = [ends(x, view.logX), ends(y, view.logY)];
  if (ex && ey) setZoom([ex, ey]);
}

function setZoom(zoom) {
  view.zoom = zoom;
  emit('view');
}
