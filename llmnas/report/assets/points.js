// Many points: stamped from small pictures made once, found again through a grid of cells.

const CELL = 24;  // pixels; a point is found from at most this far

class Grid {
  // x and y in pixels, of the points whose places are `members`; one counting sort fills the cells.
  constructor(x, y, members, width, height) {
    Object.assign(this, { x, y, columns: Math.ceil(width / CELL) + 1, rows: Math.ceil(height / CELL) + 1 });
    this.start = new Int32Array(this.columns * this.rows + 1);
    const cells = new Int32Array(members.length);
    members.forEach((i, k) => {
      cells[k] = this.cell(x[i], y[i]);
      this.start[cells[k] + 1] += 1;
    });
    for (let c = 0; c < this.start.length - 1; c += 1) this.start[c + 1] += this.start[c];
    const next = this.start.slice();
    this.items = new Int32Array(members.length);
    members.forEach((i, k) => { this.items[next[cells[k]]++] = i; });
  }

  cell(x, y) {
    const column = Math.max(0, Math.min(this.columns - 1, Math.floor(x / CELL)));
    return Math.max(0, Math.min(this.rows - 1, Math.floor(y / CELL))) * this.columns + column;
  }

  // The nearest point within one cell's size, -1 where there is none; `bonus` pixels make a point nearer than it is.
  nearest(px, py, bonus = () => 0) {
    let best = -1;
    let least = CELL;
    for (let dy = -1; dy <= 1; dy += 1) {
      for (let dx = -1; dx <= 1; dx += 1) {
        const [column, row] = [Math.floor(px / CELL) + dx, Math.floor(py / CELL) + dy];
        if (column < 0 || row < 0 || column >= this.columns || row >= this.rows) continue;
        const c = row * this.columns + column;
        for (let k = this.start[c]; k < this.start[c + 1]; k += 1) {
          const i = this.items[k];
          const distance = Math.hypot(this.x[i] - px, this.y[i] - py) - bonus(i);
          if (distance < least) { least = distance; best = i; }
        }
      }
    }
    return best;
  }
}

// Small pictures of a point, one for each shade, at the sharpness of the screen.
function stamps(radius, alpha) {
  const sharp = window.devicePixelRatio || 1;
  const size = Math.ceil(2 * radius + 2);
  const plain = css('--point');
  const made = [...shades(), plain].map((color, k, all) => {
    const canvas = el('canvas', { width: Math.ceil(size * sharp), height: Math.ceil(size * sharp) });
    const context = canvas.getContext('2d');
    context.scale(sharp, sharp);
    context.globalAlpha = alpha;
    context.fillStyle = color;
    context.beginPath();
    context.arc(size / 2, size / 2, radius, 0, 2 * Math.PI);
    if (k === all.length - 1) { context.strokeStyle = color; context.stroke(); } else context.fill();
    return canvas;
  });
  return { made, size, at: (shade) => made[shade < 0 ? made.length - 1 : shade] };
}

function diamond(context, x, y, radius) {
  context.beginPath();
  context.moveTo(x, y - radius);
  context.lineTo(x + radius, y);
  context.lineTo(x, y + radius);
  context.lineTo(x - radius, y);
  context.closePath();
}

// Frame, grid lines, ticks and labels around a plot.
function drawAxes(context, box, scales, labels) {
  const { left, right, top, bottom } = box;
  context.font = '12px system-ui, sans-serif';
  context.lineWidth = 1;
  context.strokeStyle = css('--grid');
  context.fillStyle = css('--soft');
  const ticks = [scales.x.ticks((right - left) / 90), scales.y.ticks((bottom - top) / 55)];
  const texts = ticks.map(tickLabels);
  context.textAlign = 'center';
  context.textBaseline = 'top';
  ticks[0].forEach((tick, k) => {
    const x = Math.round(scales.x(tick)) + 0.5;
    context.beginPath();
    context.moveTo(x, top);
    context.lineTo(x, bottom);
    context.stroke();
    context.fillText(texts[0][k], x, bottom + 7);
  });
  context.textAlign = 'right';
  context.textBaseline = 'middle';
  ticks[1].forEach((tick, k) => {
    const y = Math.round(scales.y(tick)) + 0.5;
    context.beginPath();
    context.moveTo(left, y);
    context.lineTo(right, y);
    context.stroke();
    context.fillText(texts[1][k], left - 8, y);
  });
  context.fillStyle = css('--ink');
  context.font = '13px system-ui, sans-serif';
  context.textAlign = 'center';
  context.fillText(labels[0], (left + right) / 2, bottom + 34);
  context.save();
  context.translate(14, (top + bottom) / 2);
  context.rotate(-Math.PI / 2);
  context.fillText(labels[1], 0, 0);
  context.restore();
}
