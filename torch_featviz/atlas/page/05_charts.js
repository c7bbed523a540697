// A histogram and a curve, drawn as SVG with their numbers beside them.

const CHART = { width: 360, height: 150, left: 8, right: 8, top: 18, bottom: 22 };

function chartFrame(label, children) {
  const box = `0 0 ${CHART.width} ${CHART.height}`;
  return svg("svg", { viewBox: box, class: "chart", role: "img", "aria-label": label }, ...children);
}

function chartText(x, y, anchor, text) {
  return svg("text", { x, y, "text-anchor": anchor }, text);
}

/** How many of the finite values lie in each of `bins` equal steps. */
function binned(values, [low, high], bins) {
  const counts = new Array(bins).fill(0);
  const factor = high > low ? bins / (high - low) : 0;
  for (const value of values)
    if (Number.isFinite(value)) counts[Math.min(bins - 1, Math.floor((value - low) * factor))] += 1;
  return counts;
}

function histogram(values, name) {
  const limits = range(values);
  if (!limits) return h("p", { class: "quiet" }, `${name}: no finite value.`);
  const counts = binned(values, limits, limits[1] > limits[0] ? 40 : 1);
  const most = Math.max(...counts);
  const { width, height, left, right, top, bottom } = CHART;
  const step = (width - left - right) / counts.length;
  const floor = height - bottom;
  const bars = counts.map((number, i) => {
    const tall = ((floor - top) * number) / most;
    const middle = limits[0] + ((i + 0.5) * (limits[1] - limits[0])) / counts.length;
    const side = limits[0] >= 0 ? "" : middle < 0 ? "below" : "above";
    return svg("rect", { x: left + i * step, y: floor - tall, width: Math.max(1, step - 1), height: tall, class: side });
  });
  const zero = left + ((0 - limits[0]) / (limits[1] - limits[0])) * (width - left - right);
  const clear = zero > 70 && zero < width - 70; // of the numbers at the ends
  const marks = limits[0] < 0 && limits[1] > 0 ? [svg("line", { x1: zero, x2: zero, y1: top, y2: floor, class: "zero" }),
    chartText(zero, height - 6, "middle", clear ? "0" : "")] : [];
  const texts = [chartText(left, height - 6, "start", figure(limits[0])), chartText(width - right, height - 6, "end", figure(limits[1])),
    chartText(left, 11, "start", `highest bar: ${most.toLocaleString("en")} of ${values.length.toLocaleString("en")} values`)];
  const label = `Histogram of ${name}: ${values.length} values from ${figure(limits[0])} to ${figure(limits[1])}`;
  return h("figure", {}, chartFrame(label, [...bars, ...marks, ...texts]), h("figcaption", {}, named(name)));
}

/** Where values go up the chart; by powers of ten where they span more than two. */
function heights(series) {
  const all = series.flatMap(({ values }) => values.map(real)).filter((value) => Number.isFinite(value));
  const limits = range(all) ?? [0, 1];
  const log = limits[0] > 0 && limits[1] / limits[0] > 100;
  const [low, high] = log ? limits.map(Math.log10) : limits;
  const place = (value) => (high > low ? ((log ? Math.log10(value) : value) - low) / (high - low) : 0.5);
  return { limits, log, place };
}

function linePath(values, x, y) {
  let path = "";
  let pen = "M";
  values.map(real).forEach((value, i) => {
    const here = Number.isFinite(value);
    if (here) path += `${pen}${x(i).toFixed(1)} ${y(value).toFixed(1)}`;
    pen = here ? "L" : "M";
  });
  return path;
}

/** Lines over the steps, the chosen layer's on top, and a cursor at the step. */
function curves(what, series, chosen, at) {
  const { width, height, left, right, top, bottom } = CHART;
  const { limits, log, place } = heights(series);
  const steps = DATA.learning.steps;
  const span = steps.at(-1) - steps[0] || 1;
  const x = (i) => left + ((steps[i] - steps[0]) / span) * (width - left - right);
  const y = (value) => height - bottom - place(value) * (height - bottom - top);
  const lines = [...series]
    .sort((a, b) => (a.layer === chosen) - (b.layer === chosen))
    .map(({ layer, values }) => svg("path", { d: linePath(values, x, y), class: layer === chosen ? "line chosen" : "line" }));
  const now = real(series.find(({ layer }) => layer === chosen)?.values[at] ?? null);
  const cursor = svg("line", { x1: x(at), x2: x(at), y1: top, y2: height - bottom, class: "cursor" });
  const texts = [chartText(left, 11, "start", `${figure(limits[1])}${log ? " (powers of ten)" : ""}`),
    chartText(left, height - 6, "start", figure(limits[0])), chartText(width - right, height - 6, "end", `step ${steps.at(-1).toLocaleString("en")}`)];
  const caption = h("figcaption", {}, `${what}: `, h("b", {}, figure(now)), ` at step ${steps[at].toLocaleString("en")}`);
  return h("figure", {}, chartFrame(`${what} of ${series.length} layers over the steps`, [...lines, cursor, ...texts]), caption);
}
