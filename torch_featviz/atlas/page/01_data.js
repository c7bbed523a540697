// The scripts of the page share one function scope, in the order of their names.
//
// This one: what the page was given, and how its numbers are unpacked.

const DATA = JSON.parse(document.getElementById("data").textContent);
const KEPT = 24; // unpacked blobs held at a time: a few layers of a few images
const unpacked = new Map();
let halves = null;

/** The value of each of the 65,536 float16 numbers. */
function halfTable() {
  const values = new Float32Array(65536);
  for (let bits = 0; bits < 65536; bits++) {
    const sign = bits & 0x8000 ? -1 : 1;
    const exponent = (bits >> 10) & 31;
    const fraction = bits & 1023;
    if (exponent === 31) values[bits] = fraction ? NaN : sign * Infinity;
    else if (exponent === 0) values[bits] = sign * fraction * 2 ** -24;
    else values[bits] = sign * (1024 + fraction) * 2 ** (exponent - 25);
  }
  return values;
}

function bytesOf(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

const blobText = (blob) => document.getElementById(`blob-${blob}`).textContent;

async function unpack(blob, exponent) {
  const { readable, writable } = new DecompressionStream("deflate");
  const writer = writable.getWriter();
  const written = writer.write(bytesOf(blobText(blob))).then(() => writer.close());
  const planes = new Uint8Array(await new Response(readable).arrayBuffer());
  await written;
  halves ??= halfTable();
  const values = new Float32Array(planes.length / 2);
  const unit = 2 ** exponent;
  for (let i = 0; i < values.length; i++) values[i] = halves[(planes[i] << 8) | planes[values.length + i]] * unit;
  return values;
}

/** Promise of the numbers of a blob; the last few stay unpacked. */
function numbers(blob, exponent) {
  const found = unpacked.get(blob) ?? unpack(blob, exponent);
  unpacked.delete(blob);
  unpacked.set(blob, found);
  if (unpacked.size > KEPT) unpacked.delete(unpacked.keys().next().value);
  return found;
}

const pictureUrl = (picture) => `data:${picture.type};base64,${blobText(picture.blob)}`;

/** JSON has no NaN and no infinities: they come as words. */
function real(value) {
  return { nan: NaN, inf: Infinity, "-inf": -Infinity }[value] ?? value;
}

/** A value as on the library's pictures: three digits and a true minus sign, as in 0.0123, −4.5, 1.2e6. */
function figure(value) {
  value = real(value);
  if (value === null || value === undefined) return "–";
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const [head, power] = value.toExponential(2).split("e").map(Number);
  const text = power < -4 || power > 2 ? `${head}e${power}` : String(Number(value.toPrecision(3)));
  return value === 0 ? "0" : text.replaceAll("-", "−");
}

/** A large count with its unit: 61.1 M. */
function count(value) {
  if (value === null || value === undefined) return "–";
  const power = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e4, "k"]].find(([size]) => value >= size);
  if (!power) return value.toLocaleString("en");
  return `${Number((value / (power[1] === "k" ? 1000 : power[0])).toPrecision(3))} ${power[1]}`;
}

/** A share with one digit after the point, so that those of a list stand below each other. */
function percent(share) {
  if (share > 0 && share < 0.0005) return "< 0.1 %";
  return Number.isFinite(share) ? `${(100 * share).toFixed(1)} %` : figure(share);
}

const times = (sizes) => sizes.join("×");
