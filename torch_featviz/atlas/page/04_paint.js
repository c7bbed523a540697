// Numbers to pixels. One scale, one palette, and colours of their own for what is off the scale.

const pixelOf = (red, green, blue) => ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;

function palette(base64) {
  const bytes = bytesOf(base64);
  return Uint32Array.from({ length: bytes.length / 3 }, (_, i) => pixelOf(...bytes.subarray(3 * i, 3 * i + 3)));
}

function hexPixel(hex) {
  return pixelOf(...[1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));
}

const RAMPS = { signed: palette(DATA.palettes.signed), positive: palette(DATA.palettes.positive) };
const paletteOf = ({ symmetric }) => (symmetric ? "signed" : "positive");

/** A function from value to pixel. */
function colours({ symmetric, vmin, vmax }) {
  const name = paletteOf({ symmetric });
  const ramp = RAMPS[name];
  const [nan, above, below] = ["nan", "inf", "-inf"].map((word) => hexPixel(DATA.reserved[name][word]));
  const last = ramp.length - 1;
  const factor = vmax > vmin ? last / (vmax - vmin) : 0;
  const flat = vmax > vmin ? 0 : symmetric ? last / 2 : 0;
  return (value) => {
    if (Number.isNaN(value)) return nan;
    if (value === Infinity) return above;
    if (value === -Infinity) return below;
    return ramp[Math.min(last, Math.max(0, Math.round((value - vmin) * factor + flat)))];
  };
}

/** Draw a plane of `height` by `width` values. */
function paint(canvas, plane, { height, width }, scale) {
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d", { willReadFrequently: true }); // kept off the GPU: there are hundreds
  const image = context.createImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  const colour = colours(scale);
  for (let i = 0; i < pixels.length; i++) pixels[i] = colour(plane[i]);
  context.putImageData(image, 0, 0);
}

/** The lowest and highest finite value, or null where there is none. */
function range(values) {
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    if (value < low && value > -Infinity) low = value;
    if (value > high && value < Infinity) high = value;
  }
  return low <= high ? [low, high] : null;
}

/** A map's own scale, of the same kind as its layer's. */
function ownScale({ symmetric, vmin }, planes) {
  const ranges = planes.map(range).filter(Boolean);
  const low = Math.min(...ranges.map(([least]) => least));
  const high = Math.max(...ranges.map(([, most]) => most));
  if (!ranges.length) return { symmetric, vmin: 0, vmax: 0 };
  const end = Math.max(Math.abs(low), Math.abs(high));
  return symmetric ? { symmetric, vmin: -end, vmax: end } : { symmetric, vmin: vmin === 0 ? 0 : low, vmax: high };
}

/** Screen pixels for one value: a whole number, or one of a whole number of values where there are too many. */
function zoom(height, width, target, most = 2 * target) {
  const side = Math.max(height, width);
  return side > most ? 1 / Math.ceil(side / most) : Math.max(1, Math.floor(target / side));
}

function resize(element, height, width) {
  element.style.height = `${height}px`;
  element.style.width = `${width}px`;
}

function swatch(scale, word, number) {
  const patch = h("span", { class: "swatch" });
  patch.style.background = DATA.reserved[paletteOf(scale)][word];
  return h("span", {}, patch, `${number.toLocaleString("en")} ${{ nan: "NaN", inf: "∞", "-inf": "-∞" }[word]}`);
}

/** A colour bar with its numbers, and how many values are off it. */
function legend(scale, note, odd = {}) {
  const bar = h("canvas", { class: "bar", role: "img", "aria-label": `Colours from ${ends(scale).join(" to ")}` });
  const steps = Float32Array.from({ length: 255 }, (_, i) => i / 254);
  paint(bar, steps, { height: 1, width: 255 }, { symmetric: scale.symmetric, vmin: 0, vmax: 1 });
  const limits = h("span", { class: "ends" }, ...ends(scale).map((text) => h("span", {}, text)));
  const swatches = Object.entries(odd).filter(([, number]) => number > 0).map(([word, number]) => swatch(scale, word, number));
  const nothing = scale.vmin === 0 && scale.vmax === 0 ? ["All values are 0."] : [];
  return [h("span", { class: "ramp" }, bar, limits), h("span", {}, note), ...nothing.map((text) => h("span", { class: "mark" }, text)), ...swatches];
}

function ends({ symmetric, vmin, vmax, words }) {
  return words ?? (symmetric ? [figure(vmin), "0", figure(vmax)] : [figure(vmin), figure(vmax)]);
}
