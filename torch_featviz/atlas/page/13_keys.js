// Keys, and the list of them.

const HELP = [
  ["← →", "maps; in Why classes, in Learning steps; inside a large map or kernels, their values"],
  ["↑ ↓ or k j", "layers; in Why methods; inside a large map or kernels, their values"],
  ["Enter", "open a map"],
  ["Esc", "back"],
  ["/", "find a layer: Enter or ↓ opens the first match, ↑ ↓ go through them, Esc clears"],
  ["1 2 3", "Walk, Why, Learning"],
  ["?", "these keys"],
];

function stepReason(by, key) {
  const here = unique(reasons(), key);
  const chosen = reasonNow();
  const next = here[here.findIndex((each) => each[key] === chosen?.[key]) + by];
  if (next) go({ method: chosen.method, class: String(chosen.class), [key]: String(next[key]) });
}

function sideways(by) {
  if (state.view === "walk") stepMap(by);
  else if (state.view === "why") stepReason(by, "class");
  else stepTime(by);
}

function updown(by) {
  if (state.view === "walk") stepLayer(by);
  else if (state.view === "why") stepReason(by, "method");
  else {
    const names = unique(DATA.learning.layers, "name").map(({ name }) => name);
    const next = names[names.indexOf(framesNow().layer) + by];
    if (next) go({ layer: next });
  }
}

function findLayer() {
  if (state.view !== "walk") go({ view: "walk" });
  $("filter").focus();
  $("filter").select();
}

function leave() {
  const finding = document.activeElement === $("filter");
  if (finding || ($("filter").value && $("list").contains(document.activeElement))) {
    clearFilter();
    if (finding) $("filter").blur();
    else keepInSight(document.activeElement, 5);
  } else if (state.map !== "") go({ map: "" });
}

const ACTIONS = {
  ArrowLeft: () => sideways(-1),
  ArrowRight: () => sideways(1),
  ArrowUp: () => updown(-1),
  ArrowDown: () => updown(1),
  k: () => updown(-1),
  j: () => updown(1),
  Escape: leave,
  "/": findLayer,
  "?": () => $("help").showModal(),
  ...Object.fromEntries(VIEWS.map((view) => [String(["walk", "why", "learning"].indexOf(view) + 1), () => go({ view })])),
};

/** Whether an element is a pane of which a part is out of sight: there the arrows scroll. */
const scrolls = (pane) => pane.matches(".scroll") && (pane.scrollWidth > pane.clientWidth || pane.scrollHeight > pane.clientHeight);

function onKey(event) {
  if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || $("help").open) return;
  const busy = event.target.closest("input, select, textarea"); // their keys are theirs
  if (busy && event.key !== "Escape") return;
  if (event.key.length === 1 && !$("letters").checked) return;
  if (event.key.startsWith("Arrow") && scrolls(event.target)) return;
  const action = ACTIONS[event.key];
  if (!action) return;
  event.preventDefault();
  action();
}

function listenToKeys() {
  document.addEventListener("keydown", onKey);
  $("keys").addEventListener("click", ACTIONS["?"]);
  $("back").addEventListener("click", leave);
  $("previous").addEventListener("click", () => stepMap(-1));
  $("next").addEventListener("click", () => stepMap(1));
  describe($("help-keys"), HELP);
}
