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

/** A function from value to pixel; what a `marked` scale clips has colours of its own, any other draws it at its end. */
function colours({ symmetric, vmin, vmax, marked: clips = false }) {
  const name = paletteOf({ symmetric });
  const ramp = RAMPS[name];
  const [nan, infinite, minus, above, below] = ["nan", "inf", "-inf", "above", "below"].map((word) => hexPixel(DATA.reserved[name][word]));
  const [low, high] = clips ? extent({ vmin, vmax }) : [-Infinity, Infinity];
  const last = ramp.length - 1;
  const factor = vmax > vmin ? last / (vmax - vmin) : 0;
  const flat = vmax > vmin ? 0 : symmetric ? last / 2 : 0;
  return (value) => {
    if (Number.isNaN(value)) return nan;
    if (value === Infinity) return infinite;
    if (value === -Infinity) return minus;
    if (value > high) return above;
    if (value < low) return below;
    return ramp[Math.min(last, Math.max(0, Math.round((value - vmin) * factor + flat)))];
  };
}

/** What is beyond these is clipped: the ends of a scale, and what float16 rounds. */
function extent({ vmin, vmax }) {
  const rounding = Math.max(Math.abs(vmin), Math.abs(vmax)) * 2 ** -10;
  return [vmin - rounding, vmax + rounding];
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

const HELD = 0.995; // of the values, at least
const ROOM = 0.75; // of the range is for these, or the rest are outliers
const NEAR = 0.25; // of the other end: so far from 0 an end is taken to be 0

/** A map's own scale: by its signs, and without outliers; it reaches at least `floor` from 0, unless all is 0. */
function ownScale(planes, floor) {
  const values = sortedFinite(planes);
  if (!values.length) return { symmetric: false, vmin: 0, vmax: 0, marked: true };
  const symmetric = values[0] < 0 && values.at(-1) > 0;
  let [vmin, vmax] = symmetric ? [0, farthest(values.map(Math.abs).sort())] : robust(values);
  if (vmin > 0 && vmin < NEAR * vmax) vmin = 0;
  if (vmax < 0 && vmax > NEAR * vmin) vmax = 0;
  const reach = Math.max(-vmin, vmax);
  if (reach > 0 && reach < floor) [vmin, vmax] = vmin < 0 ? [-floor, 0] : [0, floor];
  return { symmetric, vmin: symmetric ? -vmax : vmin, vmax: Math.max(vmax, vmin + reach * 2 ** -10), marked: true };
}

function sortedFinite(planes) {
  const parts = planes.map((plane) => plane.filter(Number.isFinite));
  const values = new Float32Array(parts.reduce((sum, { length }) => sum + length, 0));
  parts.reduce((at, part) => (values.set(part, at), at + part.length), 0);
  return values.sort();
}

/** So many of a number of values are a share of them. */
const rank = (share, total) => Math.max(1, Math.ceil(share * total - 1e-9));

/** The end of sorted sizes. */
function farthest(sizes) {
  const inner = sizes[rank(HELD, sizes.length) - 1];
  return inner > 0 && inner < ROOM * sizes.at(-1) ? inner : sizes.at(-1);
}

/** Both ends of sorted values. */
function robust(values) {
  const inside = rank((1 + HELD) / 2, values.length);
  const [low, high] = [values[values.length - inside], values[inside - 1]];
  return high > low && high - low < ROOM * (values.at(-1) - values[0]) ? [low, high] : [values[0], values.at(-1)];
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
  const words = { nan: "NaN", inf: "∞", "-inf": "-∞", above: "above its scale", below: "below its scale" };
  return h("span", {}, patch, `${number.toLocaleString("en")} ${words[word]}`);
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
