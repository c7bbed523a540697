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
  const filterOf = (cell) => first + Math.floor(cell / (colour ? 1 : channels));
  return { height, width, size, colour, cells, columns, start, filterOf, channelOf: (cell) => cell % channels };
}

/** Paint the cells with a gap of one between them; gaps are clear. */
function paintSheet(canvas, values, sheet, scale) {
  const { height, width, size, columns, cells } = sheet;
  canvas.width = Math.min(columns, cells) * (width + 1) - 1;
  canvas.height = Math.ceil(cells / columns) * (height + 1) - 1;
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  const pixels = new Uint32Array(image.data.buffer);
  const pixel = sheet.colour ? inColour(values, size, scale) : alone(values, scale);
  for (let cell = 0; cell < cells; cell++) {
    const corner = Math.floor(cell / columns) * (height + 1) * canvas.width + (cell % columns) * (width + 1);
    for (let i = 0; i < size; i++)
      pixels[corner + Math.floor(i / width) * canvas.width + (i % width)] = pixel(sheet.start(cell) + i);
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
  const label = only === undefined ? `All filters of ${layer.name}` : `Filter ${kernels.filters[only]} of ${layer.name}`;
  const canvas = h("canvas", { role: "img", "aria-label": `${label}, values from ${figure(kernels.scale.vmin)} to ${figure(kernels.scale.vmax)}` });
  const across = Math.min(sheet.columns, sheet.cells);
  const down = Math.ceil(sheet.cells / sheet.columns);
  const room = Math.max(120, $("main").clientWidth - 40);
  const factor = Math.max(1, Math.floor(Math.min(room / (across * (sheet.width + 1)), Math.max(...[72, 320 / down]) / (sheet.height + 1))));
  resize(canvas, (down * (sheet.height + 1) - 1) * factor, (across * (sheet.width + 1) - 1) * factor);
  whenSeen(canvas, async () => {
    const values = await numbers(kernels.blob, kernels.exponent);
    paintSheet(canvas, values, sheet, kernels.scale);
    canvas.addEventListener("pointermove", (event) => readKernel(layer, values, sheet, cellAt(event, canvas, sheet, factor)));
    canvas.addEventListener("pointerleave", unread);
  });
  return h("div", { class: "surround scroll", tabindex: "0", role: "group", "aria-label": label }, canvas);
}

function cellAt(event, canvas, { height, width, columns, cells }, factor) {
  const { left, top } = canvas.getBoundingClientRect();
  const [y, x] = [Math.floor((event.clientY - top) / factor), Math.floor((event.clientX - left) / factor)];
  const cell = Math.floor(y / (height + 1)) * columns + Math.floor(x / (width + 1));
  const [row, column] = [y % (height + 1), x % (width + 1)];
  return row < height && column < width && cell < cells ? { cell, row, column } : null;
}

function readKernel(layer, values, sheet, at) {
  if (!at) return unread();
  const { cell, row, column } = at;
  const start = sheet.start(cell) + row * sheet.width + column;
  const filter = layer.kernels.filters[sheet.filterOf(cell)];
  const parts = sheet.colour ? [0, 1, 2].map((channel) => figure(values[start + channel * sheet.size])) : [];
  const where = sheet.colour ? `red, green, blue: ${parts.join(", ")}` : `channel ${sheet.channelOf(cell)}`;
  read({ value: values[start], place: ["weight of ", named(layer.name), `: filter ${filter}, ${where}, row ${row}, column ${column}`] });
}

function renderKernels() {
  const { kernels } = layerNow();
  $("kernels").hidden = $("to-kernels").hidden = !kernels;
  if (!kernels) return $("kernels").replaceChildren();
  const [out, channels, height, width] = kernels.shape;
  const kept = kernels.filters.length < out ? `, ${kernels.filters.length} of ${out} kept` : "";
  const how = inRgb(layerNow()) ? "each filter in red, green and blue, where mid-grey is 0"
    : channels === 1 ? "one plane each" : "a row is a filter, a column an input channel; open a map to see its filter alone";
  const groups = kernels.groups > 1 ? `, in ${kernels.groups} groups` : "";
  $("kernels").replaceChildren(
    h("h3", { tabindex: "-1" }, "Kernels"),
    h("p", { class: "quiet" }, `${out} filters of ${channels}×${height}×${width}${groups}${kept}: ${how}.`),
    h("div", { class: "legend" }, ...kernelLegend(layerNow())),
    kernelSheet(layerNow()),
  );
}

function kernelLegend(layer) {
  const { scale } = layer.kernels;
  if (!inRgb(layer)) return legend(scale, "one scale for all kernels of this layer");
  return [h("span", {}, `dark ${figure(scale.vmin)} · mid-grey 0 · bright ${figure(scale.vmax)}, one scale for all filters of this layer`)];
}
