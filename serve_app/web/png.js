/** The texts that a PNG file carries, such as the record of its edit. */

const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];
const HEAD = 8; // the length and the type of a chunk
const CHECKSUM = 4;
// The longest text that is read (bytes): a record has some KB.
const MAX_TEXT = 4_000_000;

/**
 * The texts of a PNG file by their keys, none for another file.
 * @param {Blob} blob
 * @returns {Promise<Record<string, string>>}
 */
export async function textsOf(blob) {
  const texts = Object.create(null);
  for (const { type, data } of chunksOf(new Uint8Array(await blob.arrayBuffer()))) {
    if (data.length > MAX_TEXT) continue;
    const found = await textOf(type, data);
    if (found) texts[found.key] = found.text;
  }
  return texts;
}

/** A copy of a PNG file that also carries these texts. Other characters than ASCII must be escaped in them. */
export async function withTexts(blob, texts) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  const chunks = [...chunksOf(bytes)];
  if (!chunks.length) throw new Error("this is no PNG file");
  const [head] = chunks;
  const added = Object.entries(texts).map(([key, text]) => chunk("tEXt", new TextEncoder().encode(`${key}\0${text}`)));
  return new Blob([bytes.subarray(0, head.end), ...added, bytes.subarray(head.end)], { type: "image/png" });
}

/** The chunks of a PNG file; those before the damage of a damaged one. */
function* chunksOf(bytes) {
  if (SIGNATURE.some((byte, index) => bytes[index] !== byte)) return;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let start = SIGNATURE.length; start + HEAD + CHECKSUM <= bytes.length; ) {
    const length = view.getUint32(start);
    const end = start + HEAD + length + CHECKSUM;
    if (end > bytes.length) return;
    const type = String.fromCharCode(...bytes.subarray(start + 4, start + HEAD));
    yield { type, data: bytes.subarray(start + HEAD, start + HEAD + length), end };
    start = end;
  }
}

/** The key and the text of a chunk, null if it has none. */
async function textOf(type, data) {
  const [key, rest] = splitAtZero(data);
  if (rest === null) return null;
  if (type === "tEXt") return { key: latin1(key), text: latin1(rest) };
  if (type === "zTXt") return { key: latin1(key), text: latin1(await inflated(rest.subarray(1))) };
  if (type !== "iTXt") return null;
  const isCompressed = rest[0] === 1;
  const [, afterLanguage] = splitAtZero(rest.subarray(2));
  const [, text] = splitAtZero(afterLanguage ?? new Uint8Array());
  if (text === null) return null;
  return { key: latin1(key), text: new TextDecoder().decode(isCompressed ? await inflated(text) : text) };
}

function splitAtZero(data) {
  const zero = data.indexOf(0);
  return zero < 0 ? [data, null] : [data.subarray(0, zero), data.subarray(zero + 1)];
}

// "latin1" names windows-1252 in browsers, which differs in the characters from 0x80 to 0x9f.
function latin1(bytes) {
  let text = "";
  for (const byte of bytes) text += String.fromCharCode(byte);
  return text;
}

/** What zlib has compressed; nothing if it is damaged or becomes too long. */
async function inflated(bytes) {
  const parts = [];
  let size = 0;
  try {
    const reader = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate")).getReader();
    for (let part; !(part = await reader.read()).done; ) {
      size += part.value.length;
      if (size > MAX_TEXT) return new Uint8Array();
      parts.push(part.value);
    }
  } catch {
    return new Uint8Array();
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

function chunk(type, data) {
  const bytes = new Uint8Array(HEAD + data.length + CHECKSUM);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, data.length);
  bytes.set(new TextEncoder().encode(type), 4);
  bytes.set(data, HEAD);
  view.setUint32(HEAD + data.length, crc32(bytes.subarray(4, HEAD + data.length)));
  return bytes;
}

function crc32(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0xedb88320 : crc >>> 1;
  }
  return (crc ^ 0xffffffff) >>> 0;
}
