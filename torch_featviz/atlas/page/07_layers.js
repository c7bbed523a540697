// The list of layers, in the order in which they run.

function layerRow(layer) {
  const share = h("span", { class: "share" });
  share.style.width = `${100 * Math.min(1, layer.share ?? 0)}%`;
  const facts = [layer.parameters ? `${count(layer.parameters)} par.` : null,
    layer.field ? `sees ${sight(layer.field)}` : null, layer.dead ? `${percent(layer.dead)} dead` : null, layer.attention ? "attention" : null];
  const row = h("a", { href: link({ ...DEFAULTS, layer: layer.name }), "data-layer": layer.name, tabindex: "-1" },
    named(layer.name),
    h("span", { class: "pair" }, h("span", { class: "cut" }, layer.kind), h("span", { class: "number" }, shapeOf(layer))),
    h("span", { class: "pair" }, facts.filter(Boolean).join(" · ")),
    layer.share ? h("span", { class: "compute", title: "share of the compute" }, h("span", { class: "track" }, share), percent(layer.share)) : null);
  return h("li", {}, row);
}

const shapeOf = (layer) => (layer.shape ? times(layer.shape) || "one number" : "–");
const sight = (field) => (field.kind === "whole" ? "the whole image" : `${times(field.size)}${field.kind === "hull" ? " at most" : ""}`);

function fillLayers() {
  $("list").replaceChildren(...DATA.layers.map(layerRow));
  $("list").addEventListener("click", (event) => {
    const row = event.target.closest("a");
    if (!row || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    go({ layer: row.dataset.layer });
  });
  $("filter").addEventListener("input", filterLayers);
  $("filter").addEventListener("keydown", leaveFilter);
}

/** Layers that the filter leaves, as links. */
const matches = () => [...$("list").querySelectorAll("li:not([hidden]) a")];

/** Enter opens the first match; Down does, too, and goes on into the list. */
function leaveFilter(event) {
  const first = matches()[0];
  if (event.isComposing || !["Enter", "ArrowDown"].includes(event.key) || !first) return;
  event.preventDefault(); // other keys are the field's
  go({ layer: first.dataset.layer });
  (event.key === "Enter" ? $("layer-name") : first).focus({ preventScroll: true });
}

function clearFilter() {
  $("filter").value = "";
  filterLayers();
}

function filterLayers() {
  const words = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = [...$("list").children];
  rows.forEach((row, i) => {
    const text = `${DATA.layers[i].name} ${DATA.layers[i].kind}`.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
  });
  const left = rows.filter((row) => !row.hidden).length;
  const hint = left ? "; Enter opens the first" : "";
  $("found").textContent = words.length ? `${left} of ${rows.length} layers${hint}` : "";
}

function renderLayers() {
  const name = layerNow()?.name;
  for (const row of $("list").querySelectorAll("a")) {
    const chosen = row.dataset.layer === name;
    row.tabIndex = chosen ? 0 : -1;
    if (chosen) row.setAttribute("aria-current", "true");
    else row.removeAttribute("aria-current");
    if (chosen) requestAnimationFrame(() => keepInSight(row, 5)); // when the page is laid out anyway
  }
}

/** Scroll the list alone, and never the page; again while rows that were never laid out turn out larger than thought. */
function keepInSight(row, tries) {
  const list = $("list");
  const [seen, own] = [list.getBoundingClientRect(), row.getBoundingClientRect()];
  const by = own.top < seen.top ? own.top - own.height - seen.top : own.bottom > seen.bottom ? own.bottom + own.height - seen.bottom : 0;
  if (!by || !tries) return;
  list.scrollTop += by;
  requestAnimationFrame(() => keepInSight(row, tries - 1));
}

/** Go `by` layers on, among those that the filter leaves. */
function stepLayer(by) {
  const rows = matches();
  const at = rows.findIndex((row) => row.dataset.layer === layerNow().name);
  const next = rows[at < 0 ? 0 : at + by];
  const inList = $("list").contains(document.activeElement);
  if (inList && at === 0 && by < 0 && $("filter").value) $("filter").focus(); // back to where the matches came from
  if (!next) return;
  go({ layer: next.dataset.layer });
  if (inList) next.focus({ preventScroll: true });
  else $("layer-name").focus({ preventScroll: true });
}
