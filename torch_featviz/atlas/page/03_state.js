// One object of strings says what is shown; the address says the same, so that a link leads here.

const LAYERS = new Map(DATA.layers.map((layer) => [layer.name, layer]));
const TRAINED = new Set((DATA.learning?.layers ?? []).map((layer) => layer.name));
const VIEWS = ["walk", ...(DATA.why?.length ? ["why"] : []), ...(DATA.learning ? ["learning"] : [])];
const DEFAULTS = {
  view: "walk",
  image: "0",
  layer: (DATA.layers.find(({ kernels }) => kernels) ?? DATA.layers[1] ?? DATA.layers[0])?.name ?? "",
  map: "",
  sort: "strength",
  scale: "own",
  compare: "",
  alpha: "0.6",
  method: "",
  class: "",
  contour: "",
  of: "",
  step: "",
};
const isImage = (text) => text in DATA.images && /^\d+$/.test(text);
const KNOWN = {
  view: (text) => VIEWS.includes(text),
  image: isImage,
  layer: (text) => LAYERS.has(text) || TRAINED.has(text),
  map: (text) => /^\d+$/.test(text),
  sort: (text) => ["strength", "channel"].includes(text),
  scale: (text) => ["one", "own"].includes(text),
  compare: isImage,
  alpha: (text) => Number(text) >= 0 && Number(text) <= 1,
  method: (text) => (DATA.why ?? []).some((entry) => entry.method === text),
  class: (text) => (DATA.why ?? []).some((entry) => String(entry.class) === text),
  contour: (text) => text === "1",
  of: (text) => (DATA.learning?.layers ?? []).some((layer) => layer.of === text),
  step: (text) => (DATA.learning?.steps ?? []).map(String).includes(text),
};
const PLACES = ["view", "layer", "map"]; // the back button goes between these
const state = { ...DEFAULTS };

/** The address of a state: what differs from the default. */
function link(of) {
  const parts = Object.keys(DEFAULTS).filter((key) => of[key] !== DEFAULTS[key]);
  return `#${parts.map((key) => `${key}=${encodeURIComponent(of[key])}`).join("&")}`;
}

/** The state that an address means; what is not known is passed over. */
function stateOf(hash) {
  const asked = Object.fromEntries(new URLSearchParams(hash.slice(1)));
  const known = Object.keys(DEFAULTS).filter((key) => key in asked && asked[key] && KNOWN[key](asked[key]));
  return { ...DEFAULTS, ...Object.fromEntries(known.map((key) => [key, asked[key]])) };
}

/** Change what is shown. */
function go(change) {
  const before = { ...state };
  Object.assign(state, change);
  if (state.layer !== before.layer && !("map" in change)) state.map = "";
  const place = PLACES.some((key) => state[key] !== before[key]);
  try {
    history[place ? "pushState" : "replaceState"](null, "", link(state));
  } catch {
    // A frame without an address of its own (a notebook), or more changes a second than the browser writes down.
  }
  render(before);
}

function restore() {
  const before = { ...state };
  Object.assign(state, stateOf(location.hash));
  render(before);
}

const layerNow = () => LAYERS.get(state.layer) ?? LAYERS.get(DEFAULTS.layer);

/** Numbers of the images whose maps are in sight. */
function imagesNow() {
  const chosen = Number(state.image);
  return state.compare !== "" && state.compare !== state.image ? [chosen, Number(state.compare)] : [chosen];
}
