// The stage: what is seen of the image, and strokes by pointer and by keyboard.
const AROUND = 1100; // pixels that a stroke may leave the image

export class Stage {
  constructor(canvas, tiles, act) {
    Object.assign(this, { canvas, tiles, act, scale: 1, left: 0, top: 0, opacity: 0.55, hidden: false });
    Object.assign(this, { tool: "brush", diameter: 15, paint: 0, cursor: [0, 0], line: null, outline: [], keyed: false });
    this.context = canvas.getContext("2d");
    this.fingers = new Map();
    this.due = false;
    new ResizeObserver(() => this.resize()).observe(canvas);
    const on = (name, take) => canvas.addEventListener(name, take, { passive: false });
    on("pointerdown", (e) => this.down(e));
    on("pointermove", (e) => this.move(e));
    on("pointerup", (e) => this.up(e));
    on("pointercancel", (e) => this.cancel(e));
    on("pointerleave", () => this.act.under(null));
    on("wheel", (e) => this.wheel(e));
    on("contextmenu", (e) => e.preventDefault());
    on("dblclick", (e) => e.preventDefault());
    on("focus", () => this.draw());
    on("blur", () => this.draw());
  }

  // Image -> screen: (x - left) * scale, in CSS pixels.
  open(photo) {
    this.photo = photo;
    this.line = null;
    this.outline = [];
    this.cursor = [Math.floor(photo.width / 2), Math.floor(photo.height / 2)];
    this.fit();
  }

  resize() {
    const ratio = devicePixelRatio || 1, box = this.canvas.getBoundingClientRect();
    const width = Math.max(1, Math.round(box.width * ratio)), height = Math.max(1, Math.round(box.height * ratio));
    if (width !== this.canvas.width || height !== this.canvas.height) {
      this.canvas.width = width;
      this.canvas.height = height;
      if (this.photo && this.fitted) this.fit();
    }
    this.draw();
  }

  get view() {
    return [this.canvas.clientWidth || 1, this.canvas.clientHeight || 1];
  }

  fit() {
    const [width, height] = this.view;
    this.scale = Math.min(width / this.photo.width, height / this.photo.height);
    this.left = (this.photo.width - width / this.scale) / 2;
    this.top = (this.photo.height - height / this.scale) / 2;
    this.fitted = true;
    this.draw();
  }

  zoom(factor, at = null) {
    const [width, height] = this.view, [x, y] = at || [width / 2, height / 2];
    const fit = Math.min(width / this.photo.width, height / this.photo.height);
    const scale = Math.min(64, Math.max(Math.min(1, fit) / 2, this.scale * factor));
    this.left += x / this.scale - x / scale;
    this.top += y / this.scale - y / scale;
    this.scale = scale;
    this.fitted = false;
    this.draw();
  }

  pan(dx, dy) {
    this.left -= dx / this.scale;
    this.top -= dy / this.scale;
    this.fitted = false;
    this.draw();
  }

  point(event) {
    const box = this.canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  pixel([x, y]) {
    const keep = (v, side) => Math.max(-AROUND, Math.min(side + AROUND, v));
    return [
      keep(Math.floor(this.left + x / this.scale), this.photo.width),
      keep(Math.floor(this.top + y / this.scale), this.photo.height),
    ];
  }

  corner([x, y]) {
    const keep = (v, side) => Math.max(0, Math.min(side, v));
    return [
      keep(Math.round(this.left + x / this.scale), this.photo.width),
      keep(Math.round(this.top + y / this.scale), this.photo.height),
    ];
  }

  inside([x, y]) {
    return x >= 0 && y >= 0 && x < this.photo.width && y < this.photo.height;
  }

  // Pointer

  down(event) {
    if (!this.photo) return;
    this.canvas.focus({ preventScroll: true });
    event.preventDefault();
    this.canvas.setPointerCapture(event.pointerId);
    const at = this.point(event);
    this.fingers.set(event.pointerId, at);
    this.keyed = false;
    if (this.fingers.size === 2) {
      if (this.line) this.drop();
      this.panning = true;
      return;
    }
    if (event.button !== 0 || this.tool === "hand") {
      this.panning = true;
      return;
    }
    this.cursor = this.pixel(at);
    if (this.tool === "brush" || this.tool === "eraser") this.begin();
    else if (this.tool === "fill") this.fill();
    else this.vertex(this.corner(at));
  }

  move(event) {
    if (!this.photo) return;
    const at = this.point(event), before = this.fingers.get(event.pointerId);
    if (before && this.panning) {
      if (this.fingers.size === 2) this.pinch(event.pointerId, at);
      else this.pan(at[0] - before[0], at[1] - before[1]);
      this.fingers.set(event.pointerId, at);
      return;
    }
    const every = event.getCoalescedEvents ? event.getCoalescedEvents() : [];
    for (const e of every.length ? every : [event]) {
      this.cursor = this.pixel(this.point(e));
      if (this.line && !this.keyed) this.extend();
    }
    this.hover = this.tool === "polygon" ? this.corner(at) : null;
    this.act.under(this.cursor);
    this.draw();
  }

  pinch(id, at) {
    const other = [...this.fingers].find(([k]) => k !== id)[1], before = this.fingers.get(id);
    const span = (p) => Math.hypot(p[0] - other[0], p[1] - other[1]) || 1;
    const middle = [(at[0] + other[0]) / 2, (at[1] + other[1]) / 2];
    this.zoom(span(at) / span(before), middle);
    this.pan((at[0] - before[0]) / 2, (at[1] - before[1]) / 2);
  }

  up(event) {
    this.fingers.delete(event.pointerId);
    if (!this.fingers.size) this.panning = false;
    if (this.line && !this.keyed) this.end();
  }

  cancel(event) {
    this.fingers.delete(event.pointerId);
    this.panning = false;
    if (this.line && !this.keyed) this.end();
  }

  wheel(event) {
    if (!this.photo) return;
    event.preventDefault();
    if (event.shiftKey) this.pan(-event.deltaY, 0);
    else this.zoom(2 ** (-Math.max(-200, Math.min(200, event.deltaY)) / 250), this.point(event));
  }

  // Strokes

  get what() {
    return this.tool === "eraser" ? "erase" : this.paint;
  }

  begin() {
    this.line = { op: "brush", points: [[...this.cursor]], diameter: this.diameter, paint: this.what };
    this.tiles.preview({ ...this.line });
  }

  extend() {
    const points = this.line.points, last = points[points.length - 1];
    if (last[0] === this.cursor[0] && last[1] === this.cursor[1]) return;
    points.push([...this.cursor]);
    this.tiles.preview({ ...this.line, points: [last, [...this.cursor]] });
    if (points.length >= 4000) {
      this.end();
      this.begin();
    }
  }

  end() {
    const line = this.line;
    this.line = null;
    this.act.edit(line);
  }

  // A stroke that was not finished is as if it had not been begun.
  drop() {
    this.line = null;
    this.tiles.stale();
  }

  fill() {
    if (this.inside(this.cursor)) this.act.edit({ op: "region", point: [...this.cursor], paint: this.paint });
  }

  vertex(corner) {
    const first = this.outline[0];
    const near = first && Math.hypot(first[0] - corner[0], first[1] - corner[1]) * this.scale < 9;
    if (near && this.outline.length >= 3) return this.close();
    this.outline.push(corner);
    this.act.say(`Corner ${this.outline.length} of the polygon.`);
    return this.draw();
  }

  close() {
    if (this.outline.length < 3) return this.act.say("A polygon needs three corners.");
    const edit = { op: "polygon", points: this.outline, paint: this.paint };
    this.outline = [];
    this.tiles.preview(edit);
    return this.act.edit(edit);
  }

  // Keyboard

  step(dx, dy) {
    this.keyed = true;
    const keep = (v, side) => Math.max(0, Math.min(side - 1, v));
    this.cursor = [keep(this.cursor[0] + dx, this.photo.width), keep(this.cursor[1] + dy, this.photo.height)];
    if (this.line) this.extend();
    this.reveal();
    this.act.under(this.cursor);
    this.draw();
  }

  reveal() {
    const [width, height] = this.view, edge = 40;
    const x = (this.cursor[0] + 0.5 - this.left) * this.scale, y = (this.cursor[1] + 0.5 - this.top) * this.scale;
    this.pan(
      x < edge ? edge - x : x > width - edge ? width - edge - x : 0,
      y < edge ? edge - y : y > height - edge ? height - edge - y : 0,
    );
  }

  // Space: the pen down or up, a fill, a corner.
  press() {
    this.keyed = true;
    if (this.tool === "fill") return this.fill();
    if (this.tool === "polygon") return this.vertex([...this.cursor]);
    if (this.tool === "hand") return this.act.say("The hand moves by Alt and the arrows.");
    if (this.line) {
      this.end();
      return this.act.say("Pen up.");
    }
    this.begin();
    return this.act.say("Pen down: move by the arrows, Space lifts it.");
  }

  escape() {
    if (this.line) this.drop();
    this.outline = [];
    this.draw();
  }

  // Drawing

  draw() {
    if (this.due) return;
    this.due = true;
    requestAnimationFrame(() => {
      this.due = false;
      this.paintAll();
    });
  }

  paintAll() {
    const { context, canvas, photo, tiles } = this, ratio = devicePixelRatio || 1;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    if (!photo || photo !== tiles.photo) return;
    const scale = this.scale * ratio;
    const level = Math.max(0, Math.min(photo.levels - 1, Math.floor(-Math.log2(scale))));
    context.setTransform(scale, 0, 0, scale, -this.left * scale, -this.top * scale);
    this.layer(photo.levels - 1, false);
    if (level !== photo.levels - 1) this.layer(level, true);
    this.marks(scale);
  }

  // Tiles of one level; a finer one lies over the coarsest, which is always there.
  layer(level, fine) {
    const { context, photo, tiles } = this, step = 2 ** level, span = tiles.size * step, [width, height] = this.view;
    const from = (v) => Math.max(0, Math.floor(v / span));
    const right = Math.min(photo.width, this.left + width / this.scale);
    const bottom = Math.min(photo.height, this.top + height / this.scale);
    context.imageSmoothingEnabled = this.scale * step * (devicePixelRatio || 1) < 2;
    for (let y = from(this.top); y * span < bottom; y++) {
      for (let x = from(this.left); x * span < right; x++) {
        const tile = tiles.get(level, x, y);
        if (!tile || !tile.bitmap || (fine && !tile.canvas)) continue;
        const box = [tile.x, tile.y, tile.width * step, tile.height * step];
        context.drawImage(tile.bitmap, ...box);
        if (!tile.canvas || this.hidden) continue;
        context.globalAlpha = this.opacity;
        context.imageSmoothingEnabled = false;
        context.drawImage(tile.canvas, ...box);
        context.globalAlpha = 1;
        context.imageSmoothingEnabled = this.scale * step * (devicePixelRatio || 1) < 2;
      }
    }
  }

  marks(scale) {
    const { context, cursor } = this, thin = 1.5 / this.scale;
    const twice = (path) => {
      for (const [width, colour] of [[3.5, "#000"], [1.5, "#fff"]]) {
        context.lineWidth = width / this.scale;
        context.strokeStyle = colour;
        context.beginPath();
        path();
        context.stroke();
      }
    };
    if (this.outline.length) {
      const path = this.keyed ? [...this.outline, cursor] : this.hover ? [...this.outline, this.hover] : this.outline;
      twice(() => path.forEach(([x, y], k) => (k ? context.lineTo(x, y) : context.moveTo(x, y))));
      for (const [x, y] of this.outline) twice(() => context.rect(x - 3 * thin, y - 3 * thin, 6 * thin, 6 * thin));
    }
    if (document.activeElement !== this.canvas) return;
    const x = cursor[0] + (this.tool === "polygon" ? 0 : 0.5), y = cursor[1] + (this.tool === "polygon" ? 0 : 0.5);
    if (this.tool === "brush" || this.tool === "eraser") twice(() => context.arc(x, y, this.diameter / 2, 0, 7));
    if (this.keyed) {
      const arm = 9 / this.scale;
      twice(() => {
        context.moveTo(x - arm, y);
        context.lineTo(x + arm, y);
        context.moveTo(x, y - arm);
        context.lineTo(x, y + arm);
      });
    }
  }
}
