"use strict";
// Everything that comes from the server goes into the page as text or as pixels, never as markup.
const $ = (id) => document.getElementById(id);
const canvas = $("view"), context = canvas.getContext("2d");
let key = "", image = null, labels = null, names = new Map(), pixels = null, saved = "", turn = 0;

function say(text, bad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", bad);
}

async function ask(path, options = {}) {
  const headers = { ...(options.headers || {}), ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  const answer = await fetch(path, { ...options, headers });
  if (answer.ok) return answer;
  const problem = await answer.json().catch(() => ({}));
  if (answer.status === 401) $("key").hidden = false;
  const error = new Error(problem.detail || `The server answered ${answer.status}.`);
  error.again = answer.status === 503 || answer.status === 429 ? Number(answer.headers.get("Retry-After")) || 1 : 0;
  throw error;
}

async function about() {
  try {
    const model = await (await ask("/v1/model")).json();
    $("key").hidden = true;
    const heads = model.heads.map((h) => `${h.classes.length} classes`).join(", ");
    $("model").textContent = `${model.name}, ${heads}, on ${model.device}.`;
  } catch (error) {
    $("model").textContent = error.message;
    if (error.again) setTimeout(about, 1000 * error.again);
  }
}

async function label(file) {
  const mine = ++turn;
  const types = ["image/png", "image/jpeg", "image/webp"];
  if (!types.includes(file.type)) return say("Give a PNG, JPEG or WebP image.", true);
  say("Labelling ...");
  const begun = performance.now();
  try {
    const send = { method: "POST", headers: { "Content-Type": file.type }, body: file };
    const found = await (await ask("/v1/predict?output=json&labels=1", send)).json();
    const png = Uint8Array.from(atob(found.labels), (c) => c.charCodeAt(0));
    const map = new Blob([png], { type: "image/png" });
    const both = await Promise.all([createImageBitmap(file), createImageBitmap(map, { colorSpaceConversion: "none" })]);
    if (mine !== turn) return;
    [image, labels] = both;
    if (saved) URL.revokeObjectURL(saved);
    saved = URL.createObjectURL(map);
    $("save").href = saved;
    $("save").download = file.name.replace(/\.[^.]*$/, "") + ".png";
    show(found);
    say(`${found.size[0]} x ${found.size[1]} pixels (H x W) labelled in ${((performance.now() - begun) / 1000).toFixed(1)} s.`);
  } catch (error) {
    if (mine !== turn) return;
    say(error.message, true);
    if (error.again) setTimeout(() => mine === turn && label(file), 1000 * error.again);
  }
}

function show(found) {
  [canvas.height, canvas.width] = found.size;
  context.drawImage(labels, 0, 0);
  pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
  names = new Map();
  const rows = found.classes.map((c) => {
    const colour = c.colour.join(",");
    names.set(colour, names.has(colour) ? `${names.get(colour)} or ${c.name}` : c.name);
    const row = document.createElement("tr");
    row.dataset.colour = colour;
    const swatch = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const square = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    for (const [k, v] of [["width", "100%"], ["height", "100%"], ["fill", `rgb(${colour})`]]) square.setAttribute(k, v);
    swatch.setAttribute("aria-hidden", "true");
    swatch.append(square);
    const cells = [c.name, `${(100 * c.share).toFixed(1)} %`, c.pixels.toLocaleString("en")].map((text) => {
      const cell = document.createElement("td");
      cell.textContent = text;
      return cell;
    });
    cells[0].prepend(swatch);
    row.append(...cells);
    return row;
  });
  $("legend").replaceChildren(...rows);
  for (const id of ["stage", "tools", "classes"]) $(id).hidden = false;
  draw();
}

function draw() {
  context.globalAlpha = 1;
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  context.globalAlpha = $("opacity").value / 100;
  context.drawImage(labels, 0, 0);
  context.globalAlpha = 1;
}

function under(event) {
  const box = canvas.getBoundingClientRect();
  const x = Math.floor(((event.clientX - box.left) / box.width) * canvas.width);
  const y = Math.floor(((event.clientY - box.top) / box.height) * canvas.height);
  const at = 4 * (y * canvas.width + x);
  const colour = pixels && pixels.slice(at, at + 3).join(",");
  $("under").textContent = names.get(colour) || "";
  for (const row of $("legend").children) row.classList.toggle("here", row.dataset.colour === colour);
}

function leave() {
  $("under").textContent = "";
  for (const row of $("legend").children) row.classList.remove("here");
}

$("file").addEventListener("change", (event) => event.target.files[0] && label(event.target.files[0]));
$("opacity").addEventListener("input", draw);
canvas.addEventListener("pointermove", under);
canvas.addEventListener("pointerleave", leave);
$("key").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("secret").value;
  $("secret").value = "";
  about();
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files[0]) label(event.dataTransfer.files[0]);
  });
}
document.addEventListener("paste", (event) => event.clipboardData.files[0] && label(event.clipboardData.files[0]));
about();
