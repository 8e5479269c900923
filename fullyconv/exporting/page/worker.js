// The network, away from the page: RGBA pixels in, labels out, in tiles where the image is large.
import * as ort from "./ort/ort.wasm.min.mjs";
import { label } from "./tiles.js";

const here = (name) => new URL(name, import.meta.url).href;
const about = await (await fetch(here("model.json"))).json();
ort.env.wasm.wasmPaths = { mjs: here("ort/ort-wasm-simd-threaded.mjs"), wasm: here("ort/ort-wasm-simd-threaded.wasm") };
// Threads need memory that is shared, which browsers give to pages served with COOP and COEP alone.
ort.env.wasm.numThreads = self.crossOriginIsolated ? navigator.hardwareConcurrency : 1;
ort.env.logLevel = "error";

async function load() {
  const answer = await fetch(here(about.file));
  if (!answer.ok) throw new Error(`${about.file} is not beside the page (${answer.status}); put the whole folder there.`);
  const bytes = await answer.arrayBuffer();
  if (self.crypto.subtle) {
    const digits = [...new Uint8Array(await self.crypto.subtle.digest("SHA-256", bytes))];
    const sha256 = digits.map((b) => b.toString(16).padStart(2, "0")).join("");
    if (sha256 !== about.sha256) throw new Error(`${about.file} is not as it was exported; export the page again.`);
  }
  return ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
}

async function answer(session, { id, pixels, height, width }) {
  const begun = performance.now();
  const run = async (rgb, h, w) => {
    const found = await session.run({ image: new ort.Tensor("uint8", rgb, [1, h, w, 3]) });
    return Object.fromEntries(session.outputNames.map((name) => [name, found[name].data]));
  };
  const { found, tiles } = await label(run, new Uint8Array(pixels), height, width, about);
  const held = Object.values(found).map((array) => array.buffer);
  self.postMessage({ id, found, tiles, threads: ort.env.wasm.numThreads, ms: performance.now() - begun }, held);
}

try {
  const session = await load();
  let last = Promise.resolve();
  self.addEventListener("message", ({ data }) => {
    last = last.then(() => answer(session, data)).catch((e) => self.postMessage({ id: data.id, failed: String(e.message || e) }));
  });
  self.postMessage({ ready: true, threads: ort.env.wasm.numThreads });
} catch (error) {
  self.postMessage({ failed: String(error.message || error) });
}
