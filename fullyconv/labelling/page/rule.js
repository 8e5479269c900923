// Which pixels a stroke covers: fullyconv/labelling/strokes.py is the definition, and a test holds this to it. All numbers
// are whole and below 2^53, so nothing is rounded. A tile of level L holds every 2^L-th pixel of every 2^L-th row.

function root(n) {
  let m = Math.floor(Math.sqrt(n));
  while (m * m > n) m--;
  while ((m + 1) * (m + 1) <= n) m++;
  return m;
}

// tile: {x, y, width, height, step}, where its first pixel lies in the image. set(i) is called for each covered pixel.
function segment(tile, a, b, diameter, set) {
  const [ax, ay] = a, dx = b[0] - ax, dy = b[1] - ay, reach = Math.floor(diameter / 2) + 1, { step } = tile;
  const first = (low, from) => Math.max(0, Math.ceil((low - reach - from) / step));
  const last = (high, from, count) => Math.min(count - 1, Math.floor((high + reach - from) / step));
  const left = first(Math.min(ax, b[0]), tile.x), right = last(Math.max(ax, b[0]), tile.x, tile.width);
  const top = first(Math.min(ay, b[1]), tile.y), bottom = last(Math.max(ay, b[1]), tile.y, tile.height);
  const near = diameter * diameter, square = dx * dx + dy * dy, most = root(near * square);
  for (let j = top; j <= bottom; j++) {
    const v = tile.y + j * step - ay;
    for (let i = left; i <= right; i++) {
      const u = tile.x + i * step - ax;
      let covered = 4 * (u * u + v * v) <= near || 4 * ((u - dx) ** 2 + (v - dy) ** 2) <= near;
      if (!covered) {
        const along = u * dx + v * dy;
        covered = along > 0 && along < square && 2 * Math.abs(u * dy - v * dx) <= most;
      }
      if (covered) set(j * tile.width + i);
    }
  }
}

export function brush(tile, points, diameter, set) {
  if (points.length === 1) segment(tile, points[0], points[0], diameter, set);
  for (let k = 1; k < points.length; k++) segment(tile, points[k - 1], points[k], diameter, set);
}

export function polygon(tile, points, set) {
  for (let j = 0; j < tile.height; j++) {
    const row = tile.y + j * tile.step, turns = [];
    for (let k = 0; k < points.length; k++) {
      let [x1, y1] = points[k], [x2, y2] = points[(k + 1) % points.length];
      if (y1 > y2) [x1, y1, x2, y2] = [x2, y2, x1, y1];
      if (row < y1 || row >= y2) continue;
      turns.push(Math.ceil(Math.floor((2 * x1 * (y2 - y1) + (2 * row + 1 - 2 * y1) * (x2 - x1)) / (y2 - y1)) / 2));
    }
    turns.sort((p, q) => p - q);
    for (let t = 0; t + 1 < turns.length; t += 2) {
      const from = Math.max(0, Math.ceil((turns[t] - tile.x) / tile.step));
      const to = Math.min(tile.width, Math.ceil((turns[t + 1] - tile.x) / tile.step));
      for (let i = from; i < to; i++) set(j * tile.width + i);
    }
  }
}

// The pixels of an edit, where they can be told without the server.
export function cover(tile, edit, set) {
  if (edit.op === "brush") brush(tile, edit.points, edit.diameter, set);
  if (edit.op === "polygon") polygon(tile, edit.points, set);
}
