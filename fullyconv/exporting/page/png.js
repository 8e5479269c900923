"use strict";
// A label map as PNG: one number a pixel, with the classes' colours as palette; 16 bits above 255 classes, without.
const CRC = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

function chunk(name, data) {
  const bytes = new Uint8Array(12 + data.length), view = new DataView(bytes.buffer);
  view.setUint32(0, data.length);
  for (let i = 0; i < 4; i++) bytes[4 + i] = name.charCodeAt(i);
  bytes.set(data, 8);
  let crc = ~0;
  for (let i = 4; i < 8 + data.length; i++) crc = CRC[(crc ^ bytes[i]) & 255] ^ (crc >>> 8);
  view.setUint32(8 + data.length, ~crc);
  return bytes;
}

async function png(labels, height, width, colours) {
  const wide = labels.BYTES_PER_ELEMENT === 2, row = 1 + width * labels.BYTES_PER_ELEMENT;
  const raw = new Uint8Array(height * row); // each row begins with its filter: 0, none
  for (let y = 0; y < height; y++) {
    if (!wide) raw.set(labels.subarray(y * width, (y + 1) * width), y * row + 1);
    else for (let x = 0; x < width; x++) {
      const k = labels[y * width + x], at = y * row + 1 + 2 * x;
      raw[at] = k >> 8;
      raw[at + 1] = k & 255;
    }
  }
  const header = new Uint8Array(13), view = new DataView(header.buffer);
  view.setUint32(0, width);
  view.setUint32(4, height);
  header.set(wide ? [16, 0, 0, 0, 0] : [8, 3, 0, 0, 0], 8);
  const deflated = new Response(new Blob([raw]).stream().pipeThrough(new CompressionStream("deflate")));
  const palette = new Uint8Array(768).fill(255);
  colours.slice(0, 256).forEach((c, k) => palette.set(c, 3 * k));
  const parts = [Uint8Array.of(137, 80, 78, 71, 13, 10, 26, 10), chunk("IHDR", header)];
  if (!wide) parts.push(chunk("PLTE", palette));
  parts.push(chunk("IDAT", new Uint8Array(await deflated.arrayBuffer())), chunk("IEND", new Uint8Array(0)));
  return new Blob(parts, { type: "image/png" });
}
