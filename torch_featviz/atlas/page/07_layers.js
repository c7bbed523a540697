// The list of layers, in the order in which they run.

function layerRow(layer) {
  const share = h("span", { class: "share" });
  share.style.width = `${100 * Math.min(1, layer.share ?? 0)}%`;
  const facts = [layer.parameters ? `${count(layer.parameters)} par.` : null,
    layer.field ? `sees ${sight(layer.field)}` : null, layer.dead ? `${percent(layer.dead)} dead` : null];
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
}

function filterLayers() {
  const words = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = [...$("list").children];
  rows.forEach((row, i) => {
    const text = `${DATA.layers[i].name} ${DATA.layers[i].kind}`.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
  });
  const left = rows.filter((row) => !row.hidden).length;
  $("found").textContent = words.length ? `${left} of ${rows.length} layers` : "";
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
  const rows = [...$("list").querySelectorAll("li:not([hidden]) a")];
  const at = rows.findIndex((row) => row.dataset.layer === layerNow().name);
  const next = rows[at < 0 ? 0 : at + by];
  if (!next) return;
  const inList = $("list").contains(document.activeElement);
  go({ layer: next.dataset.layer });
  if (inList) next.focus({ preventScroll: true });
  else $("layer-name").focus({ preventScroll: true });
}
