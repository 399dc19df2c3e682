// From numbers to pixels: linear and logarithmic axes with round ticks.

function makeScale(domain, pixels, log) {
  const way = log ? Math.log10 : (value) => value;
  const back = log ? (value) => 10 ** value : (value) => value;
  let [low, high] = domain.map(way);
  if (low === high) { low -= log ? 0.3 : Math.abs(low) * 0.05 || 1; high += log ? 0.3 : Math.abs(high) * 0.05 || 1; }
  const factor = (pixels[1] - pixels[0]) / (high - low);
  const at = (value) => pixels[0] + (way(value) - low) * factor;
  at.value = (pixel) => back(low + (pixel - pixels[0]) / factor);
  at.ticks = (count) => (log ? logTicks(low, high, count) : linearTicks(low, high, count));
  at.domain = [back(low), back(high)];
  return at;
}

function linearTicks(low, high, count) {
  const rough = (high - low) / Math.max(count, 3);  // fewer would not say where the values lie
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999);
  const ticks = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k += 1) ticks.push(Number((k * step).toPrecision(12)));
  return ticks;
}

function logTicks(low, high, count) {
  if (high - low < 0.7) return linearTicks(10 ** low, 10 ** high, count);
  for (const factors of [[1, 2, 3, 5, 7], [1, 2, 5], [1, 3], [1]]) {
    const ticks = [];
    for (let power = Math.floor(low); power <= Math.ceil(high); power += 1) {
      for (const factor of factors) {
        const value = factor * 10 ** power;
        if (Math.log10(value) >= low - 1e-9 && Math.log10(value) <= high + 1e-9) ticks.push(value);
      }
    }
    if (ticks.length <= count * 1.4 || factors.length === 1) return ticks;
  }
  return [];
}

// A little room around the outermost points, so that none sits on the frame.
function padded([low, high], log, share = 0.04) {
  if (log) {
    const room = (Math.log10(high) - Math.log10(low)) * share;
    return [low / 10 ** room, high * 10 ** room];
  }
  const room = (high - low) * share;
  return [low - room, high + room];
}

function tickLabels(ticks) {
  const labels = ticks.map(short);
  return new Set(labels).size === labels.length ? labels : ticks.map((tick) => trimmed(tick.toPrecision(7)));
}
