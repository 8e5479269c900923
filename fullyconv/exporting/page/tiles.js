// An image in tiles: each read with the network's own context around it and on its grid, so that the cores together
// are the whole image's labels.

function cut(rgba, width, top, bottom, left, right) {
  const rgb = new Uint8Array((bottom - top) * (right - left) * 3);
  let to = 0;
  for (let y = top; y < bottom; y++) {
    for (let x = left; x < right; x++) {
      const from = 4 * (y * width + x);
      rgb[to++] = rgba[from];
      rgb[to++] = rgba[from + 1];
      rgb[to++] = rgba[from + 2];
    }
  }
  return rgb;
}

// run(rgb, height, width) -> {output: array}; {found: {output: array of the whole}, tiles}.
export async function label(run, rgba, height, width, about) {
  if (!about.core || height * width <= about.largest) {
    return { found: await run(cut(rgba, width, 0, height, 0, width), height, width), tiles: 1 };
  }
  const { core, context } = about, found = {};
  let tiles = 0;
  for (let top = 0; top < height; top += core) {
    for (let left = 0; left < width; left += core) {
      const bottom = Math.min(height, top + core), right = Math.min(width, left + core);
      const [t, b] = [Math.max(0, top - context), Math.min(height, bottom + context)];
      const [l, r] = [Math.max(0, left - context), Math.min(width, right + context)];
      const part = await run(cut(rgba, width, t, b, l, r), b - t, r - l);
      for (const [name, array] of Object.entries(part)) {
        found[name] ??= new array.constructor(height * width);
        for (let y = top; y < bottom; y++) {
          const from = (y - t) * (r - l) + left - l;
          found[name].set(array.subarray(from, from + right - left), y * width + left);
        }
      }
      tiles += 1;
    }
  }
  return { found, tiles };
}
