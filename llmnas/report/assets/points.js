// Many points: blended into one picture, found again through a grid of cells.

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

// Points as pixels: a disc's coverage is worked out once and blended into one picture, which is much faster than twenty
// thousand calls of the canvas. `shadeOf` gives the shade of a point, -1 for a ring in grey.
function pointsPicture(width, height, members, x, y, shadeOf, radius, alpha) {
  const sharp = window.devicePixelRatio || 1;
  const canvas = el('canvas', { width: Math.round(width * sharp), height: Math.round(height * sharp) });
  const context = canvas.getContext('2d');
  const picture = context.createImageData(canvas.width, canvas.height);
  const colors = [...shades(), css('--point')].map(channels);
  const [disc, ring] = [coverage(radius * sharp, 0), coverage(radius * sharp, radius * sharp - 1.2 * sharp)];
  for (const i of members) {
    const shade = shadeOf(i);
    blend(picture, shade < 0 ? ring : disc, colors[shade < 0 ? colors.length - 1 : shade], alpha, x[i] * sharp, y[i] * sharp);
  }
  context.putImageData(picture, 0, 0);
  return canvas;
}

// 'rgb(1,2,3)' or '#010203' -> [1, 2, 3]
function channels(color) {
  if (color.startsWith('#')) return [1, 3, 5].map((i) => parseInt(color.slice(i, i + 2), 16));
  return color.match(/\d+/g).map(Number);
}

// How much of each pixel around the middle a disc (or a ring with this hole) covers, from 0 to 1.
function coverage(radius, hole) {
  const reach = Math.ceil(radius + 0.5);
  const side = 2 * reach + 1;
  const part = new Float32Array(side * side);
  const soft = (distance, edge) => Math.max(0, Math.min(1, edge - distance + 0.5));
  for (let k = 0; k < part.length; k += 1) {
    const distance = Math.hypot((k % side) - reach, Math.floor(k / side) - reach);
    part[k] = soft(distance, radius) - (hole > 0 ? soft(distance, hole) : 0);
  }
  return { part, side, reach };
}

// Porter and Duff's "over" on pixels whose colour is not multiplied by their alpha.
function blend({ data: pixels, width, height }, { part, side, reach }, [red, green, blue], alpha, cx, cy) {
  const [left, top] = [Math.round(cx) - reach, Math.round(cy) - reach];
  for (let k = 0; k < part.length; k += 1) {
    const [px, py] = [left + (k % side), top + ((k / side) | 0)];
    const above = part[k] * alpha;
    if (above <= 0 || px < 0 || py < 0 || px >= width || py >= height) continue;
    const at = 4 * (py * width + px);
    const below = (pixels[at + 3] / 255) * (1 - above);
    const sum = above + below;
    pixels[at] = (red * above + pixels[at] * below) / sum;
    pixels[at + 1] = (green * above + pixels[at + 1] * below) / sum;
    pixels[at + 2] = (blue * above + pixels[at + 2] * below) / sum;
    pixels[at + 3] = 255 * sum;
  }
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
