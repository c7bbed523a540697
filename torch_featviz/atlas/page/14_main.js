// What is drawn again when the state changes, and the start.

const NEEDS = {
  side: ["image", "compare"],
  layers: ["layer"],
  maps: ["view", "layer", "image", "compare", "sort", "scale"],
  attention: ["view", "layer", "image"],
  large: ["map"],
  why: ["view", "image", "method", "class", "contour"],
  learning: ["view", "layer", "of", "step"],
};

function render(before) {
  const changed = (part) => !before || NEEDS[part].some((key) => state[key] !== before[key]);
  renderControls();
  if (changed("side")) renderSide();
  if (changed("layers")) renderLayers();
  if (state.view === "walk" && changed("maps")) {
    walk.since = before ? performance.now() : 0;
    walk.all = walk.all && state.layer === before?.layer;
    unread();
    renderMaps();
    if (changed("attention")) renderAttention();
  } else if (state.view === "walk" && changed("large") && settled()) renderLarge();
  if (state.view === "why" && changed("why")) renderWhy();
  if (state.view === "learning" && changed("learning")) renderLearning();
  if (before && before.alpha !== state.alpha) for (const map of document.querySelectorAll("canvas.over")) map.style.opacity = state.alpha;
  document.title = state.view === "walk" && layerNow() ? `${layerNow().name} – ${DATA.title}` : DATA.title;
}

/** Header, sections and controls say what the state is. */
function renderControls() {
  for (const view of VIEWS) {
    const tab = document.querySelector(`#views [data-view="${view}"]`);
    tab.hidden = false;
    tab.href = link({ ...state, view, map: "" });
    if (view === state.view) tab.setAttribute("aria-current", "page");
    else tab.removeAttribute("aria-current");
    $(view).hidden = view !== state.view;
  }
  $("page").dataset.view = state.view;
  $("layers").hidden = state.view !== "walk";
  for (const control of document.querySelectorAll("[data-state]")) {
    if (control.type === "checkbox") control.checked = state[control.dataset.state] === "1";
    else control.value = state[control.dataset.state];
  }
  for (const option of $("compare").options) option.hidden = option.value === state.image;
  $("map-controls").hidden = layerNow()?.maps?.form === "tokens" && DATA.images.length < 2;
}

function listenToControls() {
  for (const control of document.querySelectorAll("[data-state]"))
    control.addEventListener("input", () => go({ [control.dataset.state]: control.type === "checkbox" ? (control.checked ? "1" : "") : control.value }));
  $("views").addEventListener("click", (event) => {
    const tab = event.target.closest("a");
    if (!tab || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    go({ view: tab.dataset.view });
  });
  $("to-kernels").addEventListener("click", () => $("kernels").querySelector("h3").focus());
  narrow.addEventListener("change", renderSide);
  const strip = document.querySelector("aside"); // on narrow screens it stays at the top, and hides what would be there
  const stay = () => document.documentElement.style.setProperty("--strip", narrow.matches ? `${strip.offsetHeight}px` : "0px");
  new ResizeObserver(stay).observe(strip);
  addEventListener("hashchange", restore);
  addEventListener("beforeprint", () => {
    drawAll($("main"));
    $("left-out").open = true;
  });
}

function fillPage() {
  const compute = DATA.multiply_adds === null ? [] : [`${count(DATA.multiply_adds)} multiply-adds an image`];
  $("model").textContent = [`${count(DATA.parameters)} parameters`, ...compute, `input ${times(DATA.input)}`].join(" · ");
  fillImages();
  $("compare").append(h("option", { value: "" }, "nothing"), ...DATA.images.map(({ name }, i) => h("option", { value: i }, name)));
  $("compare-choice").hidden = DATA.images.length < 2;
  $("left-out").hidden = !DATA.left_out?.length;
  $("left-out").querySelector("ul").append(...(DATA.left_out ?? []).map((line) => h("li", {}, line)));
  $("made").textContent = `Made by torch_featviz ${DATA.version}. Values are kept as ${DATA.precision} times a power of two: to 11 bits, about ±0.05 %; those below a 500-millionth of the largest of their layer more coarsely.`;
  fillLayers();
  if (DATA.learning) fillLearning();
}

function main() {
  $("needs").hidden = typeof DecompressionStream === "function";
  if (!$("needs").hidden) return;
  $("page").hidden = false;
  fillPage();
  listenToControls();
  listenToMaps();
  listenToKeys();
  Object.assign(state, stateOf(location.hash));
  render(null);
}

main();
