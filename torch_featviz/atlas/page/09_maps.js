// The maps of the chosen layer: a grid of maps, a list of units, or one matrix of tokens.

const MANY = 200; // units listed at once
const FIRST = 48; // maps that are made before anything is shown
const FAINT = 1e-3; // of the median map
const walk = { turn: 0, layer: null, loaded: [], room: 0, order: [], since: null, all: false, back: -1, ranges: [], floor: 0, scales: new Map() };

/** Mark how long it took until what is in sight of a layer was drawn. */
function afterDrawing() {
  if (walk.since === null) return;
  if (walk.since === 0) performance.mark("atlas-first-view");
  else performance.measure("atlas-layer", { start: walk.since });
  walk.since = null;
  afterwards(unpackNext);
}

/** The numbers of the layer that is likely to come next. */
function unpackNext() {
  const maps = DATA.layers[DATA.layers.indexOf(walk.layer) + 1]?.maps;
  if (maps) for (const image of imagesNow()) numbers(maps.blobs[image], maps.exponent);
}

/** When what was drawn is on the screen. */
const afterwards = (work) => requestAnimationFrame(() => setTimeout(work));

/** A layer's values of one image, and the highest of each map and where it is. */
async function load(layer, image) {
  const { maps } = layer;
  const values = await numbers(maps.blobs[image], maps.exponent);
  const size = maps.height * maps.width;
  const plane = (i) => values.subarray(i * size, (i + 1) * size);
  const peaks = maps.channels.map((_, i) => peakOf(plane(i)));
  return { image, values, plane, peaks };
}

/** The highest value of a map and its place; NaN where there is nothing else. */
function peakOf(plane) {
  let at = -1;
  for (let i = 0; i < plane.length; i++) if (at < 0 ? !Number.isNaN(plane[i]) : plane[i] > plane[at]) at = i;
  return { at: Math.max(0, at), value: at < 0 ? NaN : plane[at] };
}

/** Places of the maps in the order asked for; those that are NaN come last. */
function ordered(peaks) {
  const places = peaks.map((_, i) => i);
  const key = (i) => (Number.isNaN(peaks[i].value) ? -Infinity : peaks[i].value);
  return state.sort === "channel" ? places : places.sort((a, b) => key(b) - key(a) || a - b);
}

async function renderMaps() {
  const layer = layerNow();
  const turn = ++walk.turn;
  const loaded = layer.maps ? await Promise.all(imagesNow().map((image) => load(layer, image))) : [];
  if (turn !== walk.turn) return;
  const room = $("main").clientWidth; // read once, before anything changes: each reading lays out the page
  if (layer !== walk.layer) walk.back = -1; // the map that was open is none of this layer's
  Object.assign(walk, { layer, loaded, room, order: loaded.length ? ordered(loaded[0].peaks) : [] });
  measure(layer);
  renderFacts(layer);
  renderLegend(layer);
  const fill = { maps: fillGrid, units: fillUnits, tokens: fillTokens }[layer.maps?.form] ?? fillNothing;
  fill(layer);
  renderKernels();
  renderLarge();
  if (!$("maps").querySelector("canvas")) requestAnimationFrame(afterDrawing);
}

function renderFacts(layer) {
  $("layer-name").replaceChildren(named(layer.name));
  $("layer-says").textContent = layer.says ?? layer.kind;
  describe($("facts"), [
    ["shape", shapeOf(layer)],
    ["parameters", layer.parameters === null ? null : (layer.parameters ?? 0).toLocaleString("en")],
    ["compute", !layer.multiply_adds ? null : `${count(layer.multiply_adds)} multiply-adds${layer.share === null ? "" : `, ${percent(layer.share)} of all`}`],
    ["a unit sees", layer.field ? `${sight(layer.field)}${layer.field.stride && layer.field.kind !== "whole" ? `, every ${times(layer.field.stride.map(Math.abs))}` : ""}` : null],
    ["dead", layer.dead === null ? null : `${percent(layer.dead)} of channels: nothing above 0 in ${DATA.images.length > 1 ? "any image" : "this image"}`],
    ["channels from", layer.fed_by],
  ]);
  const rows = layer.stats.map((each, i) => [named(DATA.images[i].name),
    ...[each.mean, each.std, each.min, each.max].map(figure), percent(real(each.zero) || 0), String(each.nan), String(each.inf)]);
  const head = ["image", "mean", "std", "lowest", "highest", "zeros", "NaN", "infinite"];
  $("stats").replaceChildren(layer.stats.length ? table(head, rows) : h("p", { class: "quiet" }, "None."));
}

function oddCounts(planes) {
  const odd = { nan: 0, inf: 0, "-inf": 0 };
  for (const plane of planes)
    for (const value of plane) if (!Number.isFinite(value)) odd[Number.isNaN(value) ? "nan" : value > 0 ? "inf" : "-inf"] += 1;
  return odd;
}

/** What own scales rest on: the range of each map, and below what a map is faint beside the others. */
function measure({ maps }) {
  walk.scales.clear();
  walk.ranges = maps?.form === "maps" ? maps.channels.map((_, i) => range(walk.loaded.flatMap(({ plane }) => range(plane(i)) ?? [])) ?? [0, 0]) : [];
  const reaches = walk.ranges.map(([low, high]) => Math.max(-low, high)).sort((a, b) => a - b);
  walk.floor = FAINT * (reaches[(reaches.length - 1) >> 1] ?? 0);
}

/** Whether a map is not 0, but far below the others. */
function isFaint(i) {
  const reach = Math.max(-walk.ranges[i][0], walk.ranges[i][1]);
  return reach > 0 && reach < walk.floor;
}

const isOwn = (layer) => state.scale === "own" && layer.maps.form === "maps";

function renderLegend(layer) {
  $("scale-choice").hidden = layer.maps?.form !== "maps";
  if (!layer.maps) return $("legend").replaceChildren();
  const finite = layer.stats.every(({ nan, inf }) => !nan && !inf);
  const odd = finite ? {} : oddCounts(walk.loaded.map(({ values }) => values));
  if (!isOwn(layer)) $("legend").replaceChildren(...legend(layer.scale, `one scale for all ${layer.maps.form} and images of this layer`, odd));
  else {
    const symmetric = walk.ranges.map(([low, high]) => low < 0 && high > 0);
    const kinds = [false, true].filter((kind) => symmetric.includes(kind));
    const notes = { false: "values of one sign", true: "values of both signs" };
    const words = { false: ["min", "max"], true: ["−max", "0", "max"] };
    const bars = kinds.map((kind) => legend({ symmetric: kind, vmin: -1, vmax: 1, words: words[kind] }, notes[kind], kind === kinds.at(-1) ? odd : {}));
    $("legend").replaceChildren(...bars.flat(), h("span", {}, "each map on its own scale"));
  }
  const { turn } = walk;
  if (layer.maps.form === "maps") afterwards(() => turn === walk.turn && $("legend").append(...clippedOf(layer)));
}

/** How many values the scales clip, in which colours, and which share of all that is. */
function clippedOf(layer) {
  const odd = { signed: { above: 0, below: 0 }, positive: { above: 0, below: 0 } };
  let total = 0;
  layer.maps.channels.forEach((_, i) => {
    const scale = scaleOf(i);
    const [low, high] = extent(scale);
    const counts = odd[paletteOf(scale)];
    for (const { plane } of walk.loaded)
      for (const value of plane(i)) {
        total += 1;
        if (value > high && value < Infinity) counts.above += 1;
        if (value < low && value > -Infinity) counts.below += 1;
      }
  });
  const swatches = ["positive", "signed"].flatMap((name) =>
    Object.entries(odd[name]).filter(([, number]) => number).map(([word, number]) => swatch({ symmetric: name === "signed" }, word, number)));
  const beyond = Object.values(odd).reduce((sum, { above, below }) => sum + above + below, 0);
  return [...swatches, h("span", { class: "beyond" }, `clipped ${beyond ? shareOf(beyond, total) : "0 %"}`)];
}

const shareOf = (part, total) => (part / total < 1e-4 ? "< 0.01 %" : `${Number(((100 * part) / total).toPrecision(2))} %`);

function fillNothing(layer) {
  $("maps").className = "";
  titleMaps("Feature maps", layer.why_not ?? "There is nothing to show of this layer.");
  $("maps").replaceChildren();
}

function titleMaps(title, note) {
  $("maps-title").textContent = title;
  $("maps-note").textContent = note;
}

/** Scale of the map at place `i`. */
function scaleOf(i) {
  if (!isOwn(walk.layer)) return { ...walk.layer.scale, marked: true };
  if (!walk.scales.has(i)) walk.scales.set(i, ownScale(walk.loaded.map(({ plane }) => plane(i)), walk.floor));
  return walk.scales.get(i);
}

function fillGrid({ maps }) {
  const kept = maps.channels.length < maps.of ? `${maps.channels.length} of ${maps.of} kept: those that fire most. ` : "";
  const beside = walk.loaded.length > 1 ? `Left: ${DATA.images[walk.loaded[0].image].name}; right: ${DATA.images[walk.loaded[1].image].name}. ` : "";
  const dead = walk.loaded[0].peaks.some(({ value }) => !(value > 0)) ? " × : nothing above 0." : "";
  const faint = maps.channels.some((_, i) => isFaint(i)) ? " ≈ : below 0.1 % of the median map." : "";
  const tokens = maps.apart === undefined ? "" : `Tokens as ${maps.height}×${maps.width} places${maps.apart ? `; ${maps.apart}: not drawn` : ""}. `;
  titleMaps(`${maps.of} feature map${maps.of === 1 ? "" : "s"}`, `${tokens}${kept}${beside}Below each its number and its highest value.${dead}${faint}`);
  $("maps").className = "surround grid";
  $("maps").replaceChildren(...walk.order.slice(0, FIRST).map((i) => cellOf(maps, i)));
  rove();
  const { turn } = walk;
  if (walk.order.length > FIRST) afterwards(() => fillRest(maps, turn));
}

/** The maps below the first screenful, once that is drawn. */
function fillRest(maps, turn) {
  if (turn !== walk.turn) return;
  $("maps").append(...walk.order.slice(FIRST).map((i) => cellOf(maps, i)));
  rove();
}

function cellOf(maps, i) {
  const peaks = walk.loaded.map((shown) => shown.peaks[i].value);
  const dead = !(peaks[0] > 0);
  const label = `channel ${maps.channels[i]}, highest ${peaks.map(figure).join(" and ")}${dead ? ", nothing above 0" : ""}`;
  const factor = Math.min(16, zoom(maps.height, maps.width, 112));
  const canvases = walk.loaded.map((_, n) => {
    const canvas = h("canvas", { "data-n": n });
    resize(canvas, maps.height * factor, maps.width * factor);
    return canvas;
  });
  const text = `channel ${maps.channels[i]}${dead ? " ×" : ""}${isFaint(i) ? " ≈" : ""} · ${peaks.map(figure).join(" | ")}`;
  const cell = h("button", { type: "button", class: "map", "data-place": i, "aria-label": label, tabindex: "-1" },
    h("span", { class: "sides" }, ...canvases), h("span", { class: "caption" }, text));
  const draw = () => canvases.forEach((canvas, n) => paint(canvas, walk.loaded[n].plane(i), maps, scaleOf(i)));
  cell.style.containIntrinsicSize = `${canvases.length * (maps.width * factor + 3) + 1}px ${maps.height * factor + 22}px`;
  whenSeen(cell, draw);
  return cell;
}

function fillUnits({ maps, scale }) {
  const most = walk.all ? walk.order.length : MANY;
  const low = Math.min(0, scale.vmin);
  const span = Math.max(0, scale.vmax) - low || 1;
  const rows = walk.order.slice(0, most).map((i) => unitOf(maps, i, low, span));
  const more = h("button", { type: "button", class: "plain", onclick: () => ((walk.all = true), fillUnits(walk.layer)) }, `Show all ${walk.order.length}`);
  const names = walk.loaded.map(({ image }) => DATA.images[image].name).join("; below it: ");
  titleMaps(`${maps.of} unit${maps.of === 1 ? "" : "s"}`, walk.loaded.length > 1 ? `Above: ${names}.` : "Number and value of each.");
  $("maps").className = scale.symmetric ? "units signed" : "units";
  $("maps").replaceChildren(...rows, ...(most < walk.order.length ? [more] : []));
  rove();
}

function unitOf(maps, i, low, span) {
  const channel = maps.channels[i];
  const values = walk.loaded.map((shown) => shown.values[i]);
  const name = walk.layer.name === DATA.answered_by ? CLASSES.get(channel) : undefined;
  const bars = values.map((value, n) => {
    const bar = h("span", { class: value < 0 ? "share below" : "share" });
    const [from, to] = Number.isFinite(value) ? [Math.min(0, value), Math.max(0, value)] : [0, 0];
    bar.style.marginLeft = `${(100 * (from - low)) / span}%`;
    bar.style.width = `${(100 * (to - from)) / span}%`;
    return h("span", { class: "track", "data-n": n }, bar);
  });
  return h("button", { type: "button", class: "map unit", "data-place": i, tabindex: "-1" },
    h("span", { class: "number" }, `unit ${channel}`), name ? named(name) : h("span", {}),
    h("span", { class: "tracks" }, ...bars), h("span", { class: "number" }, values.map(figure).join(" | ")));
}

const CLASSES = new Map(DATA.classes.map((name, number) => [number, name]));

function fillTokens({ maps, scale }) {
  const kept = maps.width < maps.columns_of ? `, ${maps.width} of ${maps.columns_of} channels kept` : "";
  titleMaps("Tokens", `A row is a token, a column a channel: ${maps.height} tokens${kept}.`);
  const room = Math.max(160, walk.room - 40);
  const factor = Math.max(1, Math.floor(Math.min(room / maps.width, 480 / maps.height)));
  const blocks = walk.loaded.map(({ plane, image }, n) => {
    const label = `Tokens by channels for ${DATA.images[image].name}; arrow keys move`;
    const canvas = h("canvas", { "data-n": n, "data-place": 0, tabindex: "0", role: "application", "aria-label": label });
    resize(canvas, maps.height * factor, maps.width * factor);
    whenSeen(canvas, () => paint(canvas, plane(0), maps, scale));
    const { holder, mark } = marked(canvas);
    const show = () => mark(cursor.row * factor, cursor.column * factor, factor, factor);
    canvas.addEventListener("focus", () => canvas.matches(":focus-visible") && (readPeak(0, n), show()));
    canvas.addEventListener("keydown", (event) => moveCursor(event, 0, n, show));
    return holder;
  });
  $("maps").className = "surround scroll tokens";
  $("maps").replaceChildren(...blocks);
}
