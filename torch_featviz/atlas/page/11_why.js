// Why: heatmaps by method and class, and one of them large over the image.

const EMPTY = "All values are 0: by this method, nothing in the image speaks for or against this answer.";
const MEANINGS = {
  "✓": "Its figures are better than those of the same heatmap at six other places, by more than these differ among themselves.",
  "=": "Its figures are about those of the same heatmap at six other places.",
  "✗": "Its figures are worse than those of the same heatmap at six other places: do not trust it.",
};
const HELD_BACK = {
  "alike with random weights": "Its figures are better than those of the same heatmap at six other places, but the same model with random weights has nearly the same heatmap.",
  "little to explain": "Its figures are better than those of the same heatmap at six other places, but the class has less than 5 %, or the answer is as high when the pixels are shuffled.",
};
const SMALLEST = 84; // pixels of a heatmap in the table
const LARGEST = 280;
const LINES = [0.5, 0.75]; // of the end of the scale

const reasons = () => DATA.why.filter(({ image }) => image === Number(state.image));

/** The heatmap that is shown large: the one asked for, or the nearest to it that there is. */
function reasonNow() {
  const here = reasons();
  const method = here.some((each) => each.method === state.method) ? state.method : here[0]?.method;
  const row = here.filter((each) => each.method === method);
  return row.find((each) => String(each.class) === state.class) ?? row[0];
}

function unique(entries, key) {
  return [...new Map(entries.map((each) => [each[key], each])).values()];
}

async function renderWhy() {
  const here = reasons();
  const chosen = reasonNow();
  for (const id of ["why-name", "why-mark", "why-stage", "why-says", "why-legend"]) $(id).hidden = !chosen;
  fillReasons(unique(here, "method"), unique(here, "class"), here, chosen);
  if (!chosen) return;
  const probability = chosen.probability === null ? "" : ` (${percent(chosen.probability)})`;
  $("why-name").replaceChildren(`${chosen.title} for `, named(chosen.name), probability, chosen.layer ? " at layer " : "", chosen.layer ? named(chosen.layer) : "");
  $("why-mark").hidden = !chosen.faithfulness?.unmoved;
  const values = await numbers(chosen.blob, chosen.exponent);
  if (chosen !== reasonNow() || state.view !== "why") return;
  const empty = values.every((value) => value === 0);
  const note = chosen.note ? [h("p", { class: "mark" }, `${chosen.note}.`)] : [];
  $("why-says").replaceChildren(...note, ...(empty ? [h("p", { class: "mark" }, EMPTY)] : [...placeWords(chosen), ...faithfulnessWords(chosen.faithfulness)]));
  const odd = oddCounts([values]);
  $("why-legend").replaceChildren(...legend(chosen.scale, `${chosen.title}: red speaks for ${DATA.answer === "value" ? "a higher value" : "the class"}, blue against it; one scale for all ${DATA.boxes ? "boxes" : "classes"} and images${chosen.mask ? `; the white line with black rims is ${DATA.boxes ? "the box" : "the edge of the mask of the class"}` : ""}`, odd));
  $("why-stage").replaceChildren(reasonStage(chosen, values));
}

function fillReasons(methods, classes, here, chosen) {
  if (!here.length) return $("why-grid").replaceChildren(h("caption", {}, DATA.boxes ? "No box was found in this image." : "No heatmap was made for this image."));
  const size = reasonSize(methods.length, classes.length);
  const head = h("tr", {}, h("td"), ...classes.map((each) => h("th", { scope: "col" }, named(each.name), each.probability === null ? "" : h("span", { class: "quiet" }, ` ${percent(each.probability)}`))));
  const rows = methods.map(({ method, title }) => {
    const cells = classes.map((each) => here.find((one) => one.method === method && one.class === each.class));
    return h("tr", {}, h("th", { scope: "row" }, title), ...cells.map((each) => h("td", {}, each ? reasonCell(each, each === chosen, size) : "–")));
  });
  const focused = document.activeElement?.closest("#why-grid") !== null && document.activeElement;
  const none = here.every((each) => each.faithfulness && each.faithfulness.mark !== "✓");
  const caption = none ? [h("caption", { class: "mark" }, "No heatmap of this image is better than chance.")] : [];
  $("why-grid").replaceChildren(...caption, h("thead", {}, head), h("tbody", {}, ...rows));
  if (focused) $("why-grid").querySelector('[aria-pressed="true"]')?.focus({ preventScroll: true });
}

/** Pixels of a heatmap in the table: as large as the page is wide, while all methods can be seen at once.
 *
 * Images are shown at whole multiples of their size, rather a little too large than half as large. */
function reasonSize(methods, classes) {
  const wide = ($("main").clientWidth - 220) / classes - 36;
  const high = (window.innerHeight * 0.75) / methods - 48;
  const room = Math.round(Math.max(SMALLEST, Math.min(LARGEST, wide, high)));
  const { height, width } = DATA.images[Number(state.image)].picture;
  const whole = Math.max(height, width);
  const larger = whole * Math.ceil(room / whole);
  return larger <= Math.min(wide, 1.4 * room) ? larger : room;
}

function reasonCell(entry, chosen, pixels) {
  const { frame, box, size } = framed(entry.image, pixels);
  const canvas = h("canvas", { class: "over" });
  resize(canvas, ...size);
  canvas.style.opacity = state.alpha;
  let ready = null; // as for kernels
  afterwards(async () => (ready = await numbers(entry.blob, entry.exponent)));
  whenSeen(frame, async () => {
    paint(canvas, ready ?? (await numbers(entry.blob, entry.exponent)), entry, entry.scale);
    addEdge(frame, entry.mask, size);
  });
  box.replaceWith(canvas);
  const said = [entry.faithfulness?.verdict, entry.mask ? withinWords(entry) : null].filter(Boolean);
  const label = [`${entry.title} for ${entry.name}`, said.join(", ")].filter(Boolean).join(": ");
  const choose = () => go({ method: entry.method, class: String(entry.class) });
  const words = said.map((each) => h("span", { class: "verdict" }, each));
  return h("button", { type: "button", class: "reason surround", "aria-label": label, "aria-pressed": String(chosen), onclick: choose }, frame, ...words);
}

function reasonStage(entry, values) {
  const { frame, box, size } = framed(entry.image, Math.max(200, Math.min(480, $("main").clientWidth - 40)));
  const canvas = h("canvas", { class: "over" });
  paint(canvas, values, entry, entry.scale);
  resize(canvas, ...size);
  canvas.style.opacity = state.alpha;
  box.before(canvas, ...(state.contour ? [contours(values, entry, size)] : []));
  addEdge(frame, entry.mask, size);
  const label = `${entry.title} for ${entry.name} over ${DATA.images[entry.image].name}; arrow keys go from place to place`;
  Object.entries({ tabindex: "0", role: "application", "aria-label": label }).forEach((each) => frame.setAttribute(...each));
  const show = ([row, column], aloud) => {
    const value = values[row * entry.width + column];
    const [down, across] = [size[0] / entry.height, size[1] / entry.width];
    if (aloud) putBox(box, row * down, column * across, down, across);
    else box.hidden = true; // the pointer itself marks the place
    read({ value, place: [`${entry.title}, row ${row}, column ${column}`] });
    if (aloud) say(`${figure(value)}, row ${row}, column ${column}`);
  };
  let at = [Math.floor(entry.height / 2), Math.floor(entry.width / 2)];
  pointed(frame, (event) => {
    const here = unitAt(event, canvas, entry);
    if (here) show(here);
  });
  frame.addEventListener("focus", () => show(at, true));
  frame.addEventListener("keydown", (event) => {
    const next = moved(event, at, entry);
    if (!next) return;
    at = next;
    show(at, true);
  });
  return h("figure", {}, frame);
}

/** Ends of the lines at which a map crosses `level`, between the middles of its values. */
function crossings(values, { height, width }, level) {
  const segments = [];
  const between = (a, b) => (level - a) / (b - a);
  for (let y = 0; y + 1 < height; y++)
    for (let x = 0; x + 1 < width; x++) {
      const at = y * width + x;
      const corners = [values[at], values[at + 1], values[at + width + 1], values[at + width]];
      const points = [];
      corners.forEach((a, i) => {
        const b = corners[(i + 1) % 4];
        if (a >= level === b >= level || !Number.isFinite(a - b)) return;
        const t = between(a, b);
        points.push([[x + t, y], [x + 1, y + t], [x + 1 - t, y + 1], [x, y + 1 - t]][i]);
      });
      for (let i = 0; i + 1 < points.length; i += 2) segments.push([points[i], points[i + 1]]);
    }
  return segments;
}

const pathOf = (segments) => segments.map((points) => points.map(([x, y], i) => `${i ? "L" : "M"}${(x + 0.5).toFixed(2)} ${(y + 0.5).toFixed(2)}`).join("")).join("");

/** Lines over a picture of this size, whose places are those of a map. */
function drawn(lines, { height, width }, size, name) {
  const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, class: name, preserveAspectRatio: "none", "aria-hidden": "true" }, ...lines);
  resize(drawing, ...size);
  return drawing;
}

/** The path between the pixels of a mask and all others. */
function edgeOf(mask, { height, width }) {
  let path = "";
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++) {
      const at = y * width + x;
      if (x + 1 < width && mask[at] !== mask[at + 1]) path += `M${x + 1} ${y}v1`;
      if (y + 1 < height && mask[at] !== mask[at + width]) path += `M${x} ${y + 1}h1`;
    }
  return path;
}

const edges = new Map(); // paths, by the mask's number

/** The edge of the mask that a heatmap is for: white within two black rims, so that it is seen on any colour. */
async function addEdge(frame, mask, size) {
  if (!mask) return;
  if (!edges.has(mask.blob)) edges.set(mask.blob, edgeOf(await numbers(mask.blob, 0), mask));
  const lines = ["rim", "core"].map((name) => svg("path", { d: edges.get(mask.blob), class: name }));
  frame.querySelector("canvas").after(drawn(lines, mask, size, "edge"));
}

/** Contour lines: whole where the heatmap speaks for the class, dashed where against it. */
function contours(values, entry, size) {
  const lines = LINES.flatMap((share) => [share, -share]).map((share) => {
    const segments = crossings(values, entry, share * entry.scale.vmax);
    return ["halo", share > 0 ? "for" : "against"].map((name) => svg("path", { d: pathOf(segments), class: name }));
  });
  return drawn(lines.flat(), entry, size, "contours");
}

/** What an area by which a heatmap is better than chance means; what two digits do not show is no difference. */
function sooner(by) {
  if (Math.abs(by) < 0.005) return "no sooner and no later than at other places";
  return by > 0 ? "sooner than the same heatmap at other places, as they should" : "later than the same heatmap at other places, which speaks against the heatmap";
}

/** How much of what speaks for an answer lies within its box or mask. */
function withinWords({ within }) {
  return Number.isNaN(real(within)) ? "– within" : `${percent(within)} within`;
}

/** The same in a sentence, beside what the place alone would have. */
function placeWords(entry) {
  if (!entry.mask) return [];
  const what = DATA.boxes ? "box" : "mask";
  const list = h("dl", { class: "says" });
  const share = Number.isNaN(real(entry.within)) ? `– of the red within the ${what}: nothing is red, or not all is finite` : `${percent(entry.within)} of the red within the ${what}`;
  describe(list, [[share, `The ${what} covers ${percent(entry.area)} of the image. A heatmap that knows nothing of the place would have about as much of its red there.`]]);
  return [h("h3", {}, "Where it lies"), list];
}

/** The figures, and what each of them means. */
function faithfulnessWords(given) {
  if (!given) return [];
  const [insertion, byChance, deletion, withoutChance] = [given.insertion, given.random_insertion, given.deletion, given.random_deletion].map(real);
  const two = (value) => value.toFixed(2);
  const rows = [
    [`insertion ${two(insertion)}, at other places ${two(byChance)}`, `Pixels put into an empty image, the highest first, bring the answer back ${sooner(insertion - byChance)}.`],
    [`deletion ${two(deletion)}, at other places ${two(withoutChance)}`, `Pixels taken away, the highest first, make the answer fall ${sooner(withoutChance - deletion)}.`],
  ];
  if (given.similarity !== null && given.similarity !== undefined)
    rows.push([`likeness ${two(real(given.similarity))}`, `How much the heatmap is like the one of the same model with random weights; 1 is the same, and then it shows the image, not what was learnt.`]);
  const list = h("dl", { class: "says" });
  describe(list, rows);
  const verdict = h("p", { class: "verdict" }, h("strong", {}, given.verdict), h("span", {}, (HELD_BACK[given.held_back] ?? MEANINGS[given.mark]) + (given.lacking ? ` Here: ${given.lacking}.` : "")));
  return [h("h3", {}, "How faithful it is"), verdict, list];
}
