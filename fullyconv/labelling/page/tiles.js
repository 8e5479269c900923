// Tiles of the open image: pixels as bitmaps, labels as two planes of codes that are drawn in colour.
import { ask } from "./talk.js";
import { cover } from "./rule.js";

const MOST = 160; // tiles that are kept

export class Tiles {
  constructor(size, changed) {
    Object.assign(this, { size, changed, photo: null, kept: new Map(), palette: [], ignored: 65535, pending: () => [] });
  }

  open(photo) {
    this.photo = photo;
    this.kept.clear();
  }

  get levels() {
    return this.photo ? this.photo.levels : 1;
  }

  place(level, x, y) {
    const step = 2 ** level, width = Math.ceil(this.photo.width / step), height = Math.ceil(this.photo.height / step);
    const left = x * this.size, top = y * this.size;
    if (left >= width || top >= height || x < 0 || y < 0) return null;
    return {
      x: left * step, y: top * step, step,
      width: Math.min(this.size, width - left), height: Math.min(this.size, height - top),
    };
  }

  // The tile, asked for where it is not there.
  get(level, x, y, load = true) {
    const name = `${level}/${x}/${y}`;
    let tile = this.kept.get(name);
    if (tile) {
      this.kept.delete(name);
      this.kept.set(name, tile);
      return tile;
    }
    const place = load && this.place(level, x, y);
    if (!place) return null;
    tile = { ...place, level, at: [x, y], bitmap: null, painted: null, base: null, canvas: null, loading: 0, again: false };
    this.kept.set(name, tile);
    for (const [old, other] of this.kept) {
      if (this.kept.size <= MOST) break;
      if (!other.loading && other.level !== this.levels - 1) this.kept.delete(old);
    }
    this.pixels(tile);
    this.labels(tile);
    return tile;
  }

  address(tile, what) {
    return `/v1/${what}?image=${this.photo.image}&level=${tile.level}&x=${tile.at[0]}&y=${tile.at[1]}`;
  }

  async pixels(tile) {
    const photo = this.photo;
    try {
      const blob = await (await ask(this.address(tile, "tile"))).blob();
      tile.bitmap = await createImageBitmap(blob);
      if (photo === this.photo) this.changed();
    } catch (error) {
      if (photo === this.photo) this.changed(error);
    }
  }

  async labels(tile) {
    if (tile.loading) {
      tile.again = true;
      return;
    }
    const photo = this.photo;
    tile.loading = 1;
    try {
      do {
        tile.again = false;
        const answer = await ask(this.address(tile, "labels"));
        const plain = answer.body.pipeThrough(new DecompressionStream("deflate"));
        const both = new Uint16Array(await new Response(plain).arrayBuffer());
        if (photo !== this.photo) return;
        const count = tile.width * tile.height;
        tile.painted = both.slice(0, count);
        tile.base = both.slice(count);
        for (const edit of this.pending()) if (edit.image === photo.image) this.paint(tile, edit, false);
        this.colour(tile);
      } while (tile.again);
      this.changed();
    } catch (error) {
      if (photo === this.photo) this.changed(error);
    } finally {
      tile.loading = 0;
    }
  }

  code(paint) {
    return paint === "erase" ? 0 : paint === "ignore" ? this.ignored : paint + 1;
  }

  paint(tile, edit, show = true) {
    if (!tile.painted || !("paint" in edit)) return;
    const code = this.code(edit.paint);
    let any = false;
    cover(tile, edit, (i) => {
      tile.painted[i] = code;
      any = true;
    });
    if (any && show) this.colour(tile);
  }

  // Show an edit before the server has answered.
  preview(edit) {
    for (const tile of this.kept.values()) this.paint(tile, edit);
    this.changed();
  }

  // Labels inside a box [top, left, bottom, right] are others now.
  stale(box = null) {
    for (const tile of this.kept.values()) {
      const right = tile.x + tile.width * tile.step, bottom = tile.y + tile.height * tile.step;
      if (!box || (box[0] < bottom && tile.y < box[2] && box[1] < right && tile.x < box[3])) this.labels(tile);
    }
  }

  colour(tile) {
    if (!tile.canvas) {
      tile.canvas = document.createElement("canvas");
      tile.canvas.width = tile.width;
      tile.canvas.height = tile.height;
    }
    const pixels = new ImageData(tile.width, tile.height), words = new Uint32Array(pixels.data.buffer);
    for (let i = 0; i < words.length; i++) {
      const painted = tile.painted[i], code = painted || tile.base[i];
      if (!code) continue;
      if (code === this.ignored) {
        const stripe = (i % tile.width + Math.floor(i / tile.width)) % 6 < 3;
        words[i] = stripe ? 0xff909090 : 0xff404040;
      } else words[i] = this.palette[code - 1] | (painted ? 0xff000000 : 0xc0000000);
    }
    tile.canvas.getContext("2d").putImageData(pixels, 0, 0);
  }

  // The code that is shown at a pixel; -1 where it is not known yet.
  at(x, y) {
    for (let level = 0; level < this.levels; level++) {
      const span = this.size * 2 ** level, tile = this.get(level, Math.floor(x / span), Math.floor(y / span), false);
      if (!tile || !tile.painted) continue;
      const i = Math.floor((y - tile.y) / tile.step) * tile.width + Math.floor((x - tile.x) / tile.step);
      return tile.painted[i] || tile.base[i];
    }
    return -1;
  }
}
