"use strict";
// What comes from files goes into the page as text or as pixels, never as markup.
const $ = (id) => document.getElementById(id);
const canvas = $("view"), context = canvas.getContext("2d");
const video = Object.assign(document.createElement("video"), { muted: true, playsInline: true });
let about = null, worker = null, shown = null, stream = null, turn = 0;
const waiting = new Map();

function say(text, bad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", bad);
}

async function begin() {
  if (location.protocol === "file:") return; // the page says what to do
  $("model").textContent = "The network is being loaded.";
  about = await (await fetch("model.json")).json();
  const size = (n) => `${(n / 1e6).toFixed(1)} MB`;
  $("model").textContent = `${about.name} (${size(about.bytes)}) and its engine (${size(about.engine_bytes)}) are being loaded.`;
  const heads = about.heads.map((h) => new Option(h.name, h.name));
  $("head").replaceChildren(...heads);
  $("heads").hidden = heads.length < 2;
  // A worker made of a blob has this page's policy, so that the engine, which others wrote, reaches nothing else either.
  const source = `import(${JSON.stringify(new URL("worker.js", location.href).href)}).catch((e) => self.postMessage({ failed: String(e) }));`;
  const url = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
  worker = new Worker(url, { type: "module" });
  worker.addEventListener("error", (e) => say(e.message || "The engine could not be loaded.", true));
  worker.addEventListener("message", ({ data }) => {
    if (data.ready) return ready(data.threads);
    const asked = waiting.get(data.id);
    waiting.delete(data.id);
    if (!asked) return say(data.failed, true);
    if (data.failed) asked.reject(new Error(data.failed));
    else asked.resolve(data);
  });
}

function ready(threads) {
  const classes = about.heads.map((h) => `${h.classes.length} classes`).join(", ");
  const many = `${threads} thread${threads > 1 ? "s" : ""}`;
  $("model").textContent = `${about.name}, ${classes}, in this browser by onnxruntime-web ${about.onnxruntime_web} on ${many}.`;
  $("file").disabled = false;
  $("camera").disabled = !(navigator.mediaDevices && navigator.mediaDevices.getUserMedia);
  if ($("camera").disabled) $("camera").title = "Browsers give the camera to https and localhost alone.";
}

function asked(pixels, height, width) {
  const id = ++turn;
  return new Promise((resolve, reject) => {
    waiting.set(id, { resolve, reject });
    worker.postMessage({ id, pixels: pixels.buffer, height, width }, [pixels.buffer]);
  });
}

function surface(height, width) {
  const made = document.createElement("canvas");
  [made.height, made.width] = [height, width];
  return made;
}

// Labels of what can be drawn; scaled where the whole is too large and the network cannot be read in tiles.
async function labelled(source, height, width, name) {
  const fits = about.core || height * width <= about.largest;
  const scale = fits ? 1 : Math.sqrt(about.largest / (height * width));
  const [h, w] = [Math.max(1, Math.floor(height * scale)), Math.max(1, Math.floor(width * scale))];
  const image = surface(h, w), paint = image.getContext("2d", { alpha: false, willReadFrequently: true });
  paint.drawImage(source, 0, 0, w, h);
  const answer = await asked(paint.getImageData(0, 0, w, h).data, h, w);
  return { ...answer, image, height: h, width: w, name, scaled: scale < 1 };
}

async function file(given) {
  stop();
  const mine = turn;
  say("Labelling ...");
  try {
    const how = { imageOrientation: "from-image", premultiplyAlpha: "none", colorSpaceConversion: "none" };
    const image = await createImageBitmap(given, how).catch(() => {
      throw new Error("This browser cannot read that file as an image; give a PNG, JPEG or WebP.");
    });
    const { height, width } = image;
    const answer = await labelled(image, height, width, given.name.replace(/\.[^.]*$/, ""));
    if (turn > mine + 1) return; // another was given meanwhile
    show(answer);
    const how_many = answer.tiles > 1 ? ` in ${answer.tiles} tiles` : "";
    const scaled = answer.scaled ? ` at ${answer.height} x ${answer.width}, since this network needs the whole of an image at once and that is too large` : "";
    say(`${height} x ${width} pixels (H x W) labelled${scaled}${how_many} in ${(answer.ms / 1000).toFixed(2)} s.`);
  } catch (error) {
    say(error.message, true);
  }
}

async function camera() {
  if (stream) return stop();
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { width: 640, height: 480, facingMode: "environment" } });
  } catch (error) {
    return say(`The camera cannot be used: ${error.message}`, true);
  }
  $("camera").textContent = "Stop the camera";
  video.srcObject = stream;
  await video.play();
  while (stream) {
    try {
      const answer = await labelled(video, video.videoHeight, video.videoWidth, "camera");
      if (!stream) return;
      show(answer);
      say(`Camera, ${answer.height} x ${answer.width} pixels: ${(1000 / answer.ms).toFixed(1)} images a second.`);
    } catch (error) {
      stop();
      return say(error.message, true);
    }
    await new Promise(requestAnimationFrame);
  }
}

function stop() {
  if (stream) for (const track of stream.getTracks()) track.stop();
  stream = null;
  $("camera").textContent = "Use the camera";
}

const head = () => about.heads.find((h) => h.name === $("head").value) || about.heads[0];

function show(answer) {
  const h = head(), labels = answer.found[h.labels], sure = h.confidence ? answer.found[h.confidence] : null;
  const counts = new Uint32Array(h.classes.length), colours = surface(answer.height, answer.width);
  const paint = colours.getContext("2d"), data = paint.createImageData(answer.width, answer.height);
  const words = new Uint32Array(data.data.buffer), palette = new Uint32Array(h.classes.length);
  h.classes.forEach((c, k) => new Uint8Array(palette.buffer, 4 * k, 4).set([...c.colour, 255]));
  for (let i = 0; i < labels.length; i++) {
    counts[labels[i]] += 1;
    words[i] = palette[labels[i]];
  }
  paint.putImageData(data, 0, 0);
  shown = { ...answer, labels, sure, colours, head: h };
  const order = [...counts.keys()].filter((k) => counts[k]).sort((a, b) => counts[b] - counts[a]);
  $("legend").replaceChildren(...order.map((k) => row(h.classes[k], k, counts[k], labels.length)));
  for (const id of ["stage", "tools", "classes"]) $(id).hidden = false;
  draw();
}

function row(c, k, count, pixels) {
  const made = document.createElement("tr");
  made.dataset.label = k;
  const swatch = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const square = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  for (const [key, v] of [["width", "100%"], ["height", "100%"], ["fill", `rgb(${c.colour.join(",")})`]]) square.setAttribute(key, v);
  swatch.setAttribute("aria-hidden", "true");
  swatch.append(square);
  for (const text of [c.name, `${((100 * count) / pixels).toFixed(1)} %`, count.toLocaleString("en")]) {
    const cell = document.createElement("td");
    cell.textContent = text;
    made.append(cell);
  }
  made.firstChild.prepend(swatch);
  return made;
}

function draw() {
  if (!shown) return;
  if (canvas.height !== shown.height || canvas.width !== shown.width) [canvas.height, canvas.width] = [shown.height, shown.width];
  context.globalAlpha = 1;
  context.drawImage(shown.image, 0, 0);
  context.globalAlpha = $("opacity").value / 100;
  context.drawImage(shown.colours, 0, 0);
}

function under(event) {
  if (!shown) return;
  const box = canvas.getBoundingClientRect();
  const x = Math.min(shown.width - 1, Math.max(0, Math.floor(((event.clientX - box.left) / box.width) * shown.width)));
  const y = Math.min(shown.height - 1, Math.max(0, Math.floor(((event.clientY - box.top) / box.height) * shown.height)));
  const at = y * shown.width + x, k = shown.labels[at];
  const sure = shown.sure ? `, ${(100 * shown.sure[at]).toFixed(0)} %` : "";
  $("under").textContent = `${shown.head.classes[k].name}${sure}`;
  for (const made of $("legend").children) made.classList.toggle("here", Number(made.dataset.label) === k);
}

function leave() {
  $("under").textContent = "";
  for (const made of $("legend").children) made.classList.remove("here");
}

async function save() {
  const { labels, height, width } = shown;
  const url = URL.createObjectURL(await png(labels, height, width, shown.head.classes.map((c) => c.colour)));
  const link = Object.assign(document.createElement("a"), { href: url, download: `${shown.name}.png` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
}

$("file").addEventListener("change", (event) => event.target.files[0] && file(event.target.files[0]));
$("camera").addEventListener("click", camera);
$("opacity").addEventListener("input", draw);
$("head").addEventListener("change", () => shown && show(shown));
$("save").addEventListener("click", save);
canvas.addEventListener("pointermove", under);
canvas.addEventListener("pointerleave", leave);
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop" && worker && event.dataTransfer.files[0]) file(event.dataTransfer.files[0]);
  });
}
document.addEventListener("paste", (event) => worker && event.clipboardData.files[0] && file(event.clipboardData.files[0]));
begin().catch((error) => say(`The network could not be loaded: ${error.message}`, true));
