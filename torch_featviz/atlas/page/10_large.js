// Looking closer: what is under the pointer, and one map large over its image.

const cursor = { row: 0, column: 0 }; // where the arrow keys are in a map

/** Row and column of a map under the pointer. */
function unitAt(event, canvas, { height, width }) {
  const { left, top, right, bottom } = canvas.getBoundingClientRect();
  const row = Math.floor(((event.clientY - top) / (bottom - top)) * height);
  const column = Math.floor(((event.clientX - left) / (right - left)) * width);
  return row >= 0 && row < height && column >= 0 && column < width ? [row, column] : null;
}

/** Read the value of the map at place `i` of the n-th image in sight. */
function readUnit(i, n, row, column, aloud) {
  const { layer, loaded } = walk;
  const { maps } = layer;
  const value = loaded[n].plane(i)[row * maps.width + column];
  const channel = maps.form === "tokens" ? maps.columns[column] : maps.channels[i];
  const place = maps.form === "tokens" ? `token ${row}, channel ${channel}`
    : maps.form === "units" ? `unit ${channel}` : `channel ${channel}, row ${row}, column ${column}`;
  const field = maps.form === "tokens" ? null : layer.field;
  const image = loaded[n].image;
  const where = DATA.images.length > 1 ? [" in ", named(DATA.images[image].name)] : [];
  read({ value, image, row, column, field, place: [`${place} of layer `, named(layer.name), ...where] });
  if (aloud) say(`${figure(value)}, ${place}`);
  return field ? seenBy(field, row, column) : null;
}

function listenToMaps() {
  const maps = $("maps");
  pointed(maps, (event) => {
    const cell = event.target.closest("[data-place]");
    if (!cell) return;
    const canvas = event.target.closest("[data-n]");
    const at = walk.layer.maps.form === "units" ? [0, 0] : canvas && unitAt(event, canvas, walk.layer.maps);
    if (at) readUnit(Number(cell.dataset.place), Number(canvas?.dataset.n ?? 0), ...at);
  });
  maps.addEventListener("focusin", ({ target }) => {
    if (!target.matches("button.map")) return;
    rove(target);
    if (target.matches(":focus-visible")) readPeak(Number(target.dataset.place), 0);
  });
  maps.addEventListener("click", ({ target }) => {
    const cell = target.closest("button.map");
    if (cell && settled()) go({ map: String(walk.layer.maps.channels[cell.dataset.place]) });
  });
}

function readPeak(i, n) {
  const { at } = walk.loaded[n].peaks[i];
  const { width } = walk.layer.maps;
  Object.assign(cursor, { row: Math.floor(at / width), column: at % width });
  return readUnit(i, n, cursor.row, cursor.column, true);
}

/** Let one cell of the grid, the chosen or the first, be reached by Tab. */
function rove(cell = $("maps").querySelector("button.map")) {
  for (const each of $("maps").querySelectorAll('button.map[tabindex="0"]')) each.tabIndex = -1;
  if (cell) cell.tabIndex = 0;
}

/** Whether the maps in sight are those of the chosen layer, and not still of the one before. */
const settled = () => walk.layer === layerNow();

/** Go `by` maps on: in the grid the focus, in the large view the map. */
function stepMap(by) {
  if (!settled()) return;
  if (state.map !== "") {
    const at = walk.order.indexOf(placeNow());
    const next = walk.order[at + by];
    if (next !== undefined) go({ map: String(walk.layer.maps.channels[next]) });
    return;
  }
  const cells = [...$("maps").querySelectorAll("button.map")];
  const at = cells.indexOf(document.activeElement);
  (cells[at < 0 ? 0 : Math.min(cells.length - 1, Math.max(0, at + by))] ?? $("maps").querySelector("canvas"))?.focus();
}

const placeNow = () => (state.map === "" || !walk.layer?.maps || walk.layer.maps.form === "tokens" ? -1 : walk.layer.maps.channels.indexOf(Number(state.map)));

function renderLarge() {
  const place = placeNow();
  if (place < 0) state.map = ""; // a link may ask for a map that there is not
  const opened = place >= 0 && $("large").hidden;
  const closed = place < 0 && !$("large").hidden;
  $("large").hidden = place < 0;
  $("looking").hidden = place >= 0;
  $("kernels").hidden = $("to-kernels").hidden = place >= 0 || !walk.layer?.kernels;
  if (place >= 0) fillLarge(place);
  if (opened) {
    $("large-title").focus({ preventScroll: true });
    const { top } = $("large").getBoundingClientRect();
    if (top < 0 || top > innerHeight / 2) $("large").scrollIntoView();
  }
  if (closed) focusCell(walk.back);
  walk.back = place;
}

function focusCell(place) {
  const cell = $("maps").querySelector(`button[data-place="${place}"]`);
  cell?.focus();
}

function fillLarge(place) {
  const { layer, loaded, order } = walk;
  const { maps } = layer;
  const channel = maps.channels[place];
  $("large-title").replaceChildren(`${maps.form === "units" ? "Unit" : "Channel"} ${channel} of layer `, named(layer.name));
  $("previous").disabled = order[0] === place;
  $("next").disabled = order.at(-1) === place;
  const flat = maps.form === "units";
  $("large-alpha").hidden = flat;
  $("stages").hidden = flat;
  $("stages").replaceChildren(...(flat ? [] : loaded.map((_, n) => stage(place, n))));
  $("stage-note").textContent = flat ? loaded.map(({ values, image }) => `${DATA.images[image].name}: ${figure(values[place])}`).join("; ") : stageNote(layer);
  $("histograms").replaceChildren(...(flat ? [] : loaded.map(({ plane, image }) => histogram(plane(place), DATA.images[image].name))));
  fillFilter(layer, channel);
  fillExemplars(layer, channel);
}

function stageNote(layer) {
  const place = (layer.field?.stride ? "laid where its units look" : "stretched over the image") + (lying(layer).turned ? ", turned as the image is" : "");
  return `The map is ${place}. Tab into it, and the arrow keys go from unit to unit.`;
}

/** How a map lies over the image, whose rows and columns the network may have swapped or flipped: its height and width
    there, the place in the map of each cell and the other way round, and what the cells see. */
function lying({ maps, field }) {
  const swapped = field?.along[0] === 1 || field?.along[1] === 0;
  const [height, width] = swapped ? [maps.width, maps.height] : [maps.height, maps.width];
  const sides = [field?.rows ?? [], field?.columns ?? []];
  const flipped = sides.map((spans) => {
    const seen = spans.filter(([low, high]) => high > low);
    return seen.length > 1 && seen[0][0] > seen.at(-1)[0];
  });
  const turn = ([row, column]) => [flipped[0] ? height - 1 - row : row, flipped[1] ? width - 1 - column : column];
  const placeOf = (cell) => (swapped ? turn(cell).toReversed() : turn(cell));
  const overOf = ([row, column]) => turn(swapped ? [column, row] : [row, column]);
  const spans = sides.map((seen, axis) => (flipped[axis] ? seen.toReversed() : seen));
  return { height, width, placeOf, overOf, spans, turned: swapped || flipped.some(Boolean) };
}

/** The values of a map in the order of the cells over the image. */
function overImage(plane, maps, { width, placeOf }) {
  return plane.map((_, i) => {
    const [row, column] = placeOf([Math.floor(i / width), i % width]);
    return plane[row * maps.width + column];
  });
}

/** Where along one side of the input the cells of a map lie, in input pixels: [start, size of a cell]. */
function laid(spans, size, stride, cells, whole) {
  const middle = spans.findIndex((span, i) => span && span[1] - span[0] === size && (i > 0 || spans.length === cells) && span[0] > 0 && span[1] < whole);
  if (!stride || middle < 0 || cells < 2) return [0, whole / cells];
  return [(spans[middle][0] + spans[middle][1]) / 2 - (middle + 0.5) * stride, stride];
}

function stage(place, n) {
  const { layer, loaded } = walk;
  const { maps, field } = layer;
  const { image, plane } = loaded[n];
  const lie = lying(layer);
  const { frame, box, size } = framed(image, Math.max(200, Math.min(480, (walk.room - 60) / loaded.length)));
  const canvas = h("canvas", { class: "over" });
  paint(canvas, overImage(plane(place), maps, lie), lie, scaleOf(place));
  const sides = [[lie.height, size[0], DATA.input.at(-2), lie.spans[0], 0], [lie.width, size[1], DATA.input.at(-1), lie.spans[1], 1]];
  const lay = sides.map(([cells, pixels, whole, spans, axis]) =>
    laid(spans, field?.size[axis], Math.abs(field?.stride?.[axis] ?? 0), cells, whole).map((length) => (length * pixels) / whole));
  canvas.style.top = `${lay[0][0]}px`;
  canvas.style.left = `${lay[1][0]}px`;
  resize(canvas, lay[0][1] * lie.height, lay[1][1] * lie.width);
  canvas.style.opacity = state.alpha;
  frame.insertBefore(canvas, box);
  const label = `Channel ${maps.channels[place]} over ${DATA.images[image].name}; arrow keys go from unit to unit`;
  Object.entries({ tabindex: "0", role: "application", "aria-label": label }).forEach((each) => frame.setAttribute(...each));
  const show = (seen) => drawBox(box, size, seen);
  const overUnit = (event) => {
    const cell = unitAt(event, canvas, lie);
    if (cell) show(readUnit(place, n, ...lie.placeOf(cell)));
  };
  pointed(frame, overUnit, () => (show(null), unread()));
  frame.addEventListener("focus", () => show(readPeak(place, n)));
  frame.addEventListener("keydown", (event) => moveCursor(event, place, n, show, lie));
  return h("figure", {}, frame, h("figcaption", {}, named(DATA.images[image].name)));
}

/** Where an arrow key leads from (row, column), if it is one; the key is used up. */
function moved(event, [row, column], { height, width }) {
  const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
  if (!move) return null;
  event.preventDefault();
  const within = (at, size) => Math.min(size - 1, Math.max(0, at));
  return [within(row + move[0], height), within(column + move[1], width)];
}

/** Arrow keys inside a map, which lies as it is, or over the image. */
function moveCursor(event, place, n, show, lie = lying({ maps: walk.layer.maps })) {
  const next = moved(event, lie.overOf([cursor.row, cursor.column]), lie);
  if (!next) return;
  [cursor.row, cursor.column] = lie.placeOf(next);
  show(readUnit(place, n, cursor.row, cursor.column, true));
}

/** The filter that made a map: the layer's own, or that of the layer before it whose channels these are. */
function fillFilter(layer, channel) {
  const maker = layer.kernels ? layer : LAYERS.get(layer.fed_by);
  const place = maker?.kernels ? maker.kernels.filters.indexOf(channel) : -1;
  $("filter-of").replaceChildren();
  if (place < 0) return;
  const [, channels, height, width] = maker.kernels.shape;
  $("filter-of").replaceChildren(h("h3", {}, `Filter ${channel} of layer `, named(maker.name)),
    h("p", { class: "quiet" }, inRgb(maker) ? `${height}×${width}, in red, green and blue.` : `${channels} kernel${channels === 1 ? "" : "s"} of ${height}×${width}, one for each input channel${ofGroup(maker.kernels)}, by number.`),
    h("div", { class: "legend" }, ...kernelLegend(maker)), kernelSheet(maker, place));
}

/** By what method a unit is projected back to the pixels, and how far that depends on the patch. */
function projected({ units }, { cosine }) {
  const alike = cosine === null ? "" : ` Cosine between these projections: ${cosine.toFixed(2)}; 1: the patch does not matter.`;
  const same = units.switches || units.projected_by !== "deconvnet" ? ""
    : " No max pool lies on the way: a deconvnet then shows what the channel looks for in any patch, and not what is in this one.";
  return `below each what in it moves the channel (its projection by ${units.projected_by}), and the value.${alike}${same}`;
}

/** The patches of a data set that move a channel most, beside what in them moves it. */
function fillExemplars(layer, channel) {
  const found = layer.units?.channels[channel];
  $("exemplars").replaceChildren();
  if (!found) return;
  const strip = (picture) => h("img", { src: pictureUrl(picture), alt: picture.alt, width: picture.width, height: picture.height });
  const values = h("ol", { class: "values" }, ...found.values.map((value) => h("li", {}, figure(value))));
  const wide = found.patches.width / found.values.length;
  for (const each of values.children) each.style.width = `${wide}px`;
  $("exemplars").replaceChildren(h("h3", {}, "What else moves it"),
    h("p", { class: "quiet" }, `The ${found.values.length} patches of ${layer.units.seen.toLocaleString("en")} images with the highest values; ${projected(layer, found)}`),
    h("div", { class: "surround scroll strips", tabindex: "0", role: "group", "aria-label": "Patches, projections and values" }, strip(found.patches), strip(found.projections), values), ...clippedWords(found.clipped));
}
