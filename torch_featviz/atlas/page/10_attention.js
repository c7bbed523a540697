// Who attends to whom: point at a place, or choose a token without one, and see what it attends to, head by head.

const attending = { turn: 0, attention: null, image: 0, token: 0, values: null };

async function renderAttention() {
  const { attention } = layerNow();
  const turn = ++attending.turn;
  $("attention").hidden = !attention;
  if (!attention) return;
  const [image] = imagesNow();
  const values = await numbers(attention.blobs[image], attention.exponent);
  if (turn !== attending.turn) return;
  Object.assign(attending, { attention, image, values, token: Math.min(attending.token, attention.tokens - 1) });
  const without = attention.tokens - attention.rows * attention.columns;
  const apart = without ? ` Apart: the share of the ${without === 1 ? "token" : `${without} tokens`} without a place.` : "";
  $("attention-note").replaceChildren("Attention of ", named(attention.of),
    `, ${attention.heads} head${attention.heads === 1 ? "" : "s"}: point at one of ${attention.rows}×${attention.columns} places${attention.before.length ? ", or choose a token" : ""}.${apart}`);
  $("attention-legend").replaceChildren(...legend({ symmetric: false, vmin: 0, vmax: 1, words: ["0", "max"] }, "the weight that the token gives to each place; each head on its own scale"));
  fillAsking();
  fillHeads();
  attendFrom(attending.token);
}

/** The image, on which a place is chosen, and the tokens without a place before it. */
function fillAsking() {
  const { attention, image } = attending;
  const { frame, box, size } = framed(image, 240);
  const sides = { height: attention.rows, width: attention.columns };
  const first = attention.before.length;
  const label = `Places of ${DATA.images[image].name}; arrow keys go from place to place`;
  Object.entries({ tabindex: "0", role: "application", "aria-label": label }).forEach((each) => frame.setAttribute(...each));
  attending.mark = (at) => {
    const [high, wide] = [size[0] / attention.rows, size[1] / attention.columns];
    if (at) putBox(box, at[0] * high, at[1] * wide, high, wide);
    else box.hidden = true;
  };
  const choose = ([row, column], aloud) => attendFrom(first + row * attention.columns + column, aloud);
  pointed(frame, (event) => {
    const at = unitAt(event, frame, sides);
    if (at) choose(at);
  }, () => {});
  frame.addEventListener("keydown", (event) => {
    const next = moved(event, onGrid(attending.token) ?? [0, 0], sides);
    if (next) choose(next, true);
  });
  const buttons = attention.before.map((name, token) => h("button", { type: "button", class: "plain", "data-token": token, onclick: () => attendFrom(token, true) }, name));
  $("attention-asks").replaceChildren(frame, h("div", { class: "controls" }, ...buttons));
}

/** Row and column of a token, or null where it has no place. */
function onGrid(token) {
  const { before, rows, columns } = attending.attention;
  const at = token - before.length;
  return at >= 0 && at < rows * columns ? [Math.floor(at / columns), at % columns] : null;
}

function fillHeads() {
  const { attention } = attending;
  const factor = zoom(attention.rows, attention.columns, 112);
  $("attention-heads").replaceChildren(...Array.from({ length: attention.heads }, (_, head) => {
    const canvas = h("canvas", { role: "img" });
    resize(canvas, attention.rows * factor, attention.columns * factor);
    return h("figure", { "data-head": head }, canvas, h("figcaption", {}, ...Array.from({ length: 3 }, () => h("div"))));
  }));
}

/** Show what a token attends to. */
function attendFrom(token, aloud) {
  const { attention, values } = attending;
  const { tokens, rows, columns, before } = attention;
  attending.token = token;
  const at = onGrid(token);
  const name = at ? `place ${at[0]}, ${at[1]}` : before[token] ?? `token ${token}`;
  attending.mark(at);
  $("attention-title").textContent = `What ${at ? "" : "the "}${name} attends to`;
  for (const button of $("attention-asks").querySelectorAll("button")) button.setAttribute("aria-pressed", String(Number(button.dataset.token) === token));
  [...$("attention-heads").children].forEach((figureOf, head) => {
    const start = (head * tokens + token) * tokens;
    const row = values.subarray(start, start + tokens);
    const places = row.subarray(before.length, before.length + rows * columns);
    const [, top] = range(places) ?? [0, 0];
    const rest = row.reduce((sum, value) => sum + value, 0) - places.reduce((sum, value) => sum + value, 0);
    const [canvas, caption] = figureOf.children;
    paint(canvas, places, { height: rows, width: columns }, { symmetric: false, vmin: 0, vmax: top, marked: true });
    const words = [`head ${head}`, `up to ${figure(top)}`, tokens > rows * columns ? `${percent(Math.max(0, rest))} apart` : ""];
    words.forEach((text, line) => (caption.children[line].textContent = text));
    canvas.setAttribute("aria-label", `Attention of ${name}: ${words.filter(Boolean).join(", ")}`);
  });
  if (aloud) say(name);
}
