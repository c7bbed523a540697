// Kernels: all filters of a layer, or the one of a chosen map.

/** Whether a layer looks at the pixels of a colour image. */
const inRgb = (layer) => DATA.input[0] === 3 && layer === DATA.layers.find(({ kernels }) => kernels) && layer.kernels.shape[1] === 3;

/** What the cells of a sheet are: filters in colour, planes of one filter, or a table of filters by channels. */
function sheetOf(layer, only) {
  const { shape: [, channels, height, width], filters } = layer.kernels;
  const size = height * width;
  const colour = inRgb(layer);
  const first = only === undefined ? 0 : only;
  const rows = only === undefined ? filters.length : 1;
  const cells = rows * (colour ? 1 : channels);
  const columns = only === undefined && !colour && channels > 1 ? channels : Math.ceil(Math.sqrt(cells * 1.6));
  const start = (cell) => (first * channels + cell * (colour ? 3 : 1)) * size;
  const perGroup = layer.kernels.shape[0] / layer.kernels.groups;
  const filterOf = (cell) => first + Math.floor(cell / (colour ? 1 : channels));
  const channelOf = (cell) => Math.floor(filters[filterOf(cell)] / perGroup) * channels + (cell % channels);
  return { height, width, size, colour, cells, columns, start, filterOf, channelOf };
}

const TALLEST = 16000; // pixels of a sheet; browsers have no canvas of more than 32,767

/** Screen pixels of a value, of the gap between cells, and of the whole sheet, in the room that there is. */
function measured(sheet, room) {
  const across = Math.min(sheet.columns, sheet.cells);
  const down = Math.ceil(sheet.cells / sheet.columns);
  const most = Math.min(room / across, Math.max(64, 320 / down)) - 2;
  const factor = Math.max(1, Math.min(24, Math.floor(most / Math.max(sheet.width, sheet.height)), Math.floor(TALLEST / down / sheet.height)));
  const gap = factor > 2 ? 2 : 1;
  const [stepX, stepY] = [sheet.width * factor + gap, sheet.height * factor + gap];
  return { factor, stepX, stepY, wide: across * stepX - gap, tall: down * stepY - gap };
}

/** Paint the cells, each value as a square; gaps are clear. */
function paintSheet(canvas, values, sheet, { factor, stepX, stepY, wide, tall }, scale) {
  canvas.width = wide;
  canvas.height = tall;
  const context = canvas.getContext("2d");
  const image = context.createImageData(wide, tall);
  const pixels = new Uint32Array(image.data.buffer);
  const pixel = sheet.colour ? inColour(values, sheet.size, scale) : alone(values, scale);
  for (let cell = 0; cell < sheet.cells; cell++)
    for (let i = 0; i < sheet.size; i++) {
      const left = (cell % sheet.columns) * stepX + (i % sheet.width) * factor;
      const top = Math.floor(cell / sheet.columns) * stepY + Math.floor(i / sheet.width) * factor;
      const colour = pixel(sheet.start(cell) + i);
      for (let y = top; y < top + factor; y++) pixels.fill(colour, y * wide + left, y * wide + left + factor);
    }
  context.putImageData(image, 0, 0);
}

function alone(values, scale) {
  const colour = colours(scale);
  return (i) => colour(values[i]);
}

/** Red, green and blue of a filter of 3 channels, 0 in the middle of each. */
function inColour(values, size, { vmax }) {
  const byte = (value) => Math.round(Math.min(1, Math.max(0, 0.5 + value / (2 * (vmax || 1)))) * 255) || 0;
  return (i) => pixelOf(byte(values[i]), byte(values[i + size]), byte(values[i + 2 * size]));
}

/** The sheet of a layer's kernels, read under the pointer; `only` is the place of one filter among those kept. */
function kernelSheet(layer, only) {
  const { kernels } = layer;
  const sheet = sheetOf(layer, only);
  const what = only === undefined ? `All filters of layer ${layer.name}` : `Filter ${kernels.filters[only]} of layer ${layer.name}`;
  const label = `${what}, values from ${figure(kernels.scale.vmin)} to ${figure(kernels.scale.vmax)}; arrow keys go from value to value`;
  const canvas = h("canvas");
  const { holder, mark } = marked(canvas);
  const pane = h("div", { class: "surround scroll", tabindex: "0", role: "application", "aria-label": label }, holder);
  const sizes = measured(sheet, Math.max(120, walk.room - 60));
  resize(canvas, sizes.tall, sizes.wide);
  let ready = null; // so that a printer, which does not wait, finds them
  afterwards(async () => (ready = pane.isConnected ? await numbers(kernels.blob, kernels.exponent) : null));
  whenSeen(canvas, async () => {
    const values = ready ?? (await numbers(kernels.blob, kernels.exponent));
    paintSheet(canvas, values, sheet, sizes, kernels.scale);
    pointed(canvas, (event) => readKernel(layer, values, sheet, cellAt(event, canvas, sheet, sizes)));
    pane.addEventListener("keydown", walkKernels(layer, values, sheet, sizes, mark));
  });
  return pane;
}

/** Arrow keys go over the values of a sheet as over those of one map. */
function walkKernels(layer, values, sheet, { factor, stepX, stepY }, mark) {
  const { height, width, columns, cells } = sheet;
  const across = Math.min(columns, cells);
  const whole = { height: Math.ceil(cells / columns) * height, width: across * width };
  let at = null; // nowhere yet: the first key leads to the first value
  return (event) => {
    const next = moved(event, at ?? [0, 0], whole);
    if (!next) return;
    const [down, right] = at ? next : [0, 0];
    const cell = Math.floor(down / height) * columns + Math.floor(right / width);
    if (cell >= cells) return; // the last row need not be full
    at = [down, right];
    const [row, column] = [down % height, right % width];
    mark(Math.floor(down / height) * stepY + row * factor, Math.floor(right / width) * stepX + column * factor, factor, factor);
    readKernel(layer, values, sheet, { cell, row, column }, true);
  };
}

function cellAt(event, canvas, { height, width, columns, cells }, { factor, stepX, stepY }) {
  const { left, top } = canvas.getBoundingClientRect();
  const [y, x] = [event.clientY - top, event.clientX - left];
  const cell = Math.floor(y / stepY) * columns + Math.floor(x / stepX);
  const [row, column] = [Math.floor((y % stepY) / factor), Math.floor((x % stepX) / factor)];
  return row >= 0 && column >= 0 && row < height && column < width && cell < cells ? { cell, row, column } : null;
}

function readKernel(layer, values, sheet, at, aloud) {
  if (!at) return unread();
  const { cell, row, column } = at;
  const start = sheet.start(cell) + row * sheet.width + column;
  const filter = layer.kernels.filters[sheet.filterOf(cell)];
  const parts = sheet.colour ? [0, 1, 2].map((channel) => figure(values[start + channel * sheet.size])) : [];
  const where = sheet.colour ? `red, green, blue: ${parts.join(", ")}` : `channel ${sheet.channelOf(cell)}`;
  const place = `filter ${filter}, ${where}, row ${row}, column ${column}`;
  read({ value: values[start], place: ["weight of layer ", named(layer.name), `: ${place}`] });
  if (aloud) say(`${figure(values[start])}, ${place}`);
}

const ofGroup = ({ groups }) => (groups > 1 ? " of its group" : "");

function renderKernels() {
  const { kernels } = layerNow();
  if (!kernels) return $("kernels").replaceChildren();
  const [out, channels, height, width] = kernels.shape;
  const kept = kernels.filters.length < out ? `, ${kernels.filters.length} of ${out} kept` : "";
  const how = inRgb(layerNow()) ? "each filter in red, green and blue, where mid-grey is 0"
    : channels === 1 ? "one plane each" : `a row is a filter, a column an input channel${ofGroup(kernels)}; open a map to see its filter alone`;
  const groups = kernels.groups > 1 ? `, in ${kernels.groups} groups` : "";
  const inIt = kernels.notes.map((note) => `, ${note}`).join("");
  $("kernels").replaceChildren(
    h("h3", { tabindex: "-1" }, "Kernels"),
    h("p", { class: "quiet" }, `${out} filters of ${channels}×${height}×${width}${groups}${kept}${inIt}: ${how}.`),
    h("div", { class: "legend" }, ...kernelLegend(layerNow())),
    kernelSheet(layerNow()),
  );
}

function kernelLegend(layer) {
  const { scale } = layer.kernels;
  if (!inRgb(layer)) return legend(scale, "one scale for all kernels of this layer");
  return [h("span", {}, `dark ${figure(scale.vmin)} · mid-grey 0 · bright ${figure(scale.vmax)}, one scale for all filters of this layer`)];
}
