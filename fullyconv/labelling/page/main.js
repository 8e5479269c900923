// Everything that comes from the server goes into the page as text or as pixels, never as markup.
import { Outbox, follow, identity, json, post } from "./talk.js";
import { Tiles } from "./tiles.js";
import { Stage } from "./tools.js";
import * as rule from "./rule.js";

const $ = (id) => document.getElementById(id);
const state = { classes: [], images: [], order: [], photo: null, turn: 0 };
const LISTED = 300; // images that are listed at once

function say(text, bad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", bad);
}

// Seconds of work: time with the page in sight in which something was done within the last half minute.
const clock = { last: performance.now(), spent: 0 };
function worked() {
  const now = performance.now();
  if (document.visibilityState === "visible") clock.spent += Math.min(30, (now - clock.last) / 1000);
  clock.last = now;
}
for (const name of ["pointermove", "pointerdown", "keydown", "wheel"]) document.addEventListener(name, worked, { passive: true });
document.addEventListener("visibilitychange", () => (clock.last = performance.now()));

const tiles = new Tiles(512, (error) => {
  if (error) say(error.message, true);
  stage.draw();
});
const outbox = new Outbox(acknowledged, refused, (count, why) => {
  document.body.dataset.pending = count;
  if (why) say(`${why} ${count} stroke${count > 1 ? "s are" : " is"} not saved yet and will be sent again.`, true);
});
tiles.pending = () => outbox.pending;
const stage = new Stage($("view"), tiles, { edit, under, say });

function edit(what) {
  worked();
  const spent = Math.min(600, Math.round(clock.spent * 10) / 10);
  clock.spent = 0;
  outbox.send({ image: state.photo.image, id: identity(), spent, ...what });
}

function acknowledged(sent, said) {
  if (sent.op === "accept") say(`Accepted. ${state.images[sent.image].name} is done.`);
  told(sent.image, said);
}

function refused(sent, error) {
  say(error.message, true);
  if (state.photo && sent.image === state.photo.image) tiles.stale();
}

function told(image, said) {
  state.images[image].state = said.state;
  state.images[image].seconds = said.seconds;
  if (state.photo && image === state.photo.image) {
    Object.assign(state.photo, said);
    $("undo").disabled = !said.undo;
    $("redo").disabled = !said.redo;
  }
  list();
}

// The open image

async function open(index) {
  const mine = ++state.turn;
  if (stage.line) stage.end();
  try {
    const photo = await json(`/v1/image?image=${index}`);
    if (mine !== state.turn) return;
    state.photo = photo;
    sessionStorage.setItem("image", index);
    tiles.open(photo);
    stage.open(photo);
    told(index, photo);
    const reason = state.order.find(([i]) => i === index);
    $("why").textContent = reason ? `Shown: ${reason[1]}.` : "";
    const size = `${photo.width} x ${photo.height} pixels`;
    const begins = photo.fault ? `No proposal: ${photo.fault}` : "";
    say(`${state.images[index].name}, ${size}. ${begins}`, Boolean(photo.fault));
  } catch (error) {
    if (mine === state.turn) say(error.message, true);
  }
}

const unfinished = (i) => ["new", "begun"].includes(state.images[i].state);

function following() {
  const here = state.photo ? state.photo.image : -1;
  const ranked = state.order.map(([i]) => i);
  const every = [...ranked, ...state.images.keys()];
  const left = every.find((i) => i !== here && state.images[i].state === "new");
  return left ?? every.find((i) => i !== here && unfinished(i)) ?? (here + 1) % state.images.length;
}

function accept() {
  if (!state.photo) return;
  if (stage.line) stage.end();
  edit({ op: "accept" });
  state.images[state.photo.image].state = "done";
  open(following());
}

function under(pixel) {
  if (!pixel || !state.photo || !stage.inside(pixel)) return void ($("under").textContent = "");
  const code = tiles.at(...pixel);
  const name = code < 0 ? "" : code === 0 ? "nothing yet" : code === tiles.ignored ? "ignored" : state.classes[code - 1];
  $("under").textContent = `${pixel[0]}, ${pixel[1]} ${name}`;
}

// Tools

function choose(tool) {
  stage.escape();
  stage.tool = tool;
  for (const b of document.querySelectorAll("[data-tool]")) b.setAttribute("aria-pressed", String(b.dataset.tool === tool));
  stage.draw();
}

function paint(what) {
  stage.paint = what;
  for (const b of $("classes").querySelectorAll("button")) b.setAttribute("aria-pressed", String(b.dataset.paint === String(what)));
  if (stage.tool === "eraser" || stage.tool === "hand") choose("brush");
  say(what === "ignore" ? "Painting what is ignored." : `Painting ${state.classes[what]}.`);
}

function wide(diameter) {
  stage.diameter = Math.max(1, Math.min(200, diameter));
  $("diameter").value = stage.diameter;
  $("wide").textContent = stage.diameter;
  stage.draw();
}

function opaque(percent) {
  stage.opacity = Math.max(0, Math.min(100, percent)) / 100;
  $("opacity").value = Math.round(100 * stage.opacity);
  stage.draw();
}

async function learn() {
  try {
    status(await post("/v1/learn", {}));
  } catch (error) {
    say(error.message, true);
  }
}

function neighbour(by) {
  const now = stage.paint === "ignore" ? state.classes.length : stage.paint, count = state.classes.length + 1;
  const next = (now + by + count) % count;
  paint(next === state.classes.length ? "ignore" : next);
}

const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const KEYS = {
  " ": () => stage.press(), Escape: () => stage.escape(), Home: () => stage.fit(),
  Enter: () => (stage.outline.length ? stage.close() : accept()),
  b: () => choose("brush"), e: () => choose("eraser"), f: () => choose("fill"), p: () => choose("polygon"), m: () => choose("hand"),
  z: () => edit({ op: "undo" }), y: () => edit({ op: "redo" }), n: () => open(following()),
  N: () => open((state.photo.image - 1 + state.images.length) % state.images.length), l: learn,
  h: () => { stage.hidden = !stage.hidden; stage.draw(); }, "[": () => wide(stage.diameter - Math.ceil(stage.diameter / 10)),
  "]": () => wide(stage.diameter + Math.ceil(stage.diameter / 10)), o: () => opaque(100 * stage.opacity - 10),
  O: () => opaque(100 * stage.opacity + 10), "+": () => stage.zoom(1.5, at()), "=": () => stage.zoom(1.5, at()),
  "-": () => stage.zoom(1 / 1.5, at()), ",": () => neighbour(-1), ".": () => neighbour(1), 0: () => paint("ignore"),
};

function at() {
  return [(stage.cursor[0] + 0.5 - stage.left) * stage.scale, (stage.cursor[1] + 0.5 - stage.top) * stage.scale];
}

$("view").addEventListener("keydown", (event) => {
  if (!state.photo || event.metaKey) return;
  let act = null;
  if (event.key in STEPS) {
    const [x, y] = STEPS[event.key], by = event.shiftKey ? 10 : 1;
    act = event.altKey ? () => stage.pan(-60 * x, -60 * y) : () => stage.step(by * x, by * y);
  } else if (event.ctrlKey) {
    const name = event.key.toLowerCase();
    act = name === "z" ? (event.shiftKey ? KEYS.y : KEYS.z) : name === "y" ? KEYS.y : null;
  } else if (/^[1-9]$/.test(event.key)) {
    const k = Number(event.key) - 1;
    act = k < state.classes.length ? () => paint(k) : null;
  } else act = event.altKey ? null : KEYS[event.key];
  if (!act) return;
  event.preventDefault();
  act();
});

// A click by mouse gives the image its keys back; by keyboard the focus stays where it is.
function press(button, act) {
  button.addEventListener("click", (event) => {
    act();
    if (event.detail > 0) $("view").focus({ preventScroll: true });
  });
}
for (const b of document.querySelectorAll("[data-tool]")) press(b, () => choose(b.dataset.tool));
press($("undo"), () => edit({ op: "undo" }));
press($("redo"), () => edit({ op: "redo" }));
press($("closer"), () => stage.zoom(1.5));
press($("farther"), () => stage.zoom(1 / 1.5));
press($("fit"), () => stage.fit());
press($("accept"), accept);
press($("next"), () => open(following()));
press($("learn"), learn);
$("diameter").addEventListener("input", () => wide(Number($("diameter").value)));
$("opacity").addEventListener("input", () => opaque(Number($("opacity").value)));

// Lists

function swatch(colour) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const square = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  for (const [k, v] of [["width", "100%"], ["height", "100%"], ["fill", colour]]) square.setAttribute(k, v);
  svg.setAttribute("aria-hidden", "true");
  svg.append(square);
  return svg;
}

function row(...parts) {
  const item = document.createElement("li"), button = document.createElement("button");
  button.type = "button";
  button.append(...parts);
  item.append(button);
  return [item, button];
}

function text(tag, content, name) {
  const found = document.createElement(tag);
  found.textContent = content;
  if (name) found.className = name;
  return found;
}

function classes(palette) {
  const rows = [...state.classes, "ignored"].map((name, k) => {
    const ignored = k === state.classes.length, key = ignored ? "0" : k < 9 ? String(k + 1) : "";
    const colour = ignored ? "#808080" : `rgb(${palette[k].join(",")})`;
    const [item, button] = row(swatch(colour), text("span", name, "name"), ...(key ? [text("kbd", key)] : []));
    button.dataset.paint = ignored ? "ignore" : k;
    button.setAttribute("aria-pressed", String(k === 0));
    press(button, () => paint(ignored ? "ignore" : k));
    return item;
  });
  $("classes").replaceChildren(...rows);
}

const WORDS = { new: "", existing: "labelled", begun: "begun", done: "done" };
let listing = false;
function list() {
  if (listing) return;
  listing = true;
  requestAnimationFrame(() => {
    listing = false;
    const ranked = state.order.map(([i]) => i), known = new Set(ranked);
    const every = [...ranked, ...[...state.images.keys()].filter((i) => !known.has(i))];
    const here = state.photo ? state.photo.image : -1;
    const shown = every.slice(0, LISTED);
    if (here >= 0 && !shown.includes(here)) shown.unshift(here);
    const rows = shown.map((i) => {
      const photo = state.images[i], spent = photo.seconds ? `, ${Math.round(photo.seconds)} s` : "";
      const [item, button] = row(text("span", photo.name, "name"), text("span", `${WORDS[photo.state]}${spent}`, "state"));
      if (i === here) button.setAttribute("aria-current", "true");
      button.dataset.image = i;
      press(button, () => open(i));
      return item;
    });
    const focused = document.activeElement && document.activeElement.dataset ? document.activeElement.dataset.image : undefined;
    $("images").replaceChildren(...rows);
    if (focused !== undefined) $("images").querySelector(`[data-image="${Number(focused)}"]`)?.focus();
    const done = state.images.filter((p) => p.state === "done" || p.state === "existing").length;
    $("count").textContent = `${done} of ${state.images.length} done`;
  });
}

// What the networks do

function status(s) {
  const { learning, training, model } = s;
  $("learn").disabled = learning.state === "running";
  const words = [];
  if (s.fault) words.push(s.fault);
  else if (!model.name) words.push("The network is being loaded.");
  else if (!model.untrained) words.push(`Proposals by ${s.source} (${model.name}).`);
  else words.push(learning.state === "done" ? "What was learned is being loaded." : `${model.name} has learned nothing yet: label a little, then Learn.`);
  if (learning.state === "running") words.push(`Learning: ${learning.what} ${Math.round(100 * (learning.share || 0))} %.`);
  if (learning.state === "done") words.push(`Learned from ${learning.images} images in ${learning.seconds} s.`);
  if (learning.state === "failed") words.push(`Not learned: ${learning.why}`);
  if (training.state === "running") words.push(`A whole training of ${training.minutes} minutes goes on in ${training.run}.`);
  if (training.state === "done") words.push(`Trained for ${training.minutes} minutes: ${training.run}.`);
  if (training.state === "failed") words.push(`The training in ${training.run} ended: ${training.why}`);
  $("model").textContent = words.join(" ");
  document.body.dataset.learning = learning.state;
  document.body.dataset.training = training.state;
  document.body.dataset.model = model.sha256 || "";
}

function happened(event) {
  const here = state.photo && event.image === state.photo.image;
  if (event.kind === "edit") {
    told(event.image, event);
    if (here) tiles.stale(event.box);
  } else if (event.kind === "proposal" && here) {
    if (event.fault) say(`No proposal: ${event.fault}`, true);
    tiles.stale();
  } else if (event.kind === "model" && state.photo) {
    json(`/v1/image?image=${state.photo.image}`).then((photo) => told(photo.image, photo), () => {});
  } else if (event.kind === "order") {
    state.order = event.order;
    list();
  } else if (event.kind === "status") status(event);
  else if (event.kind === "trouble") say(event.why, true);
}

async function load() {
  const said = await json("/v1/project");
  state.classes = said.classes;
  state.images = said.images;
  state.order = said.order;
  tiles.palette = said.palette.map(([r, g, b]) => r | (g << 8) | (b << 16));
  tiles.ignored = said.ignored;
  $("title").textContent = `Label ${said.folder}`;
  document.title = `${said.folder}: label`;
  if (!state.photo) classes(said.palette);
  list();
  status(said.status);
  if (state.photo) { // the server was started again, or this page slept: what is seen stays where it is
    told(state.photo.image, await json(`/v1/image?image=${state.photo.image}`));
    tiles.stale();
    return said;
  }
  const last = Number(sessionStorage.getItem("image") ?? -1);
  await open(last >= 0 && last < state.images.length ? last : following());
  return said;
}

async function begin() {
  try {
    follow(await load(), happened, load, (why) => why && say(why, true));
  } catch (error) {
    say(error.message, true);
    if (error.status !== 401) setTimeout(begin, 2000);
  }
}
begin();

// For the tests: what the page shows, and its rule.
globalThis.labelling = { rule, stage, tiles, state, outbox };
