// The side column: the images, what the model says of them, and what is under the pointer.

const side = { figures: new Map() }; // by image: its picture and the box drawn on it

const LISTED = 8; // images that are listed by name; more of them are small pictures, as many in a row as there is room

function imageChoice(image, i) {
  const radio = h("input", { type: "radio", name: "image", value: i, onchange: () => go({ image: String(i) }) });
  return h("label", {}, radio, named(image.name));
}

/** The same as a small picture; its name is read aloud, and shown where the pointer rests. */
function thumbnail(image, i) {
  const label = imageChoice(image, i);
  const img = h("img", { alt: "", draggable: "false", width: 32, height: 32 });
  label.title = image.name;
  label.querySelector(".name").classList.add("unseen");
  label.append(img);
  whenSeen(img, () => (img.src = pictureUrl(image.picture)));
  return label;
}

function fillImages() {
  const few = DATA.images.length <= LISTED;
  const choices = DATA.images.map(few ? imageChoice : thumbnail);
  $("images").append(...(few ? choices : [h("div", { class: "thumbnails" }, ...choices)]));
}

/** Scroll the small pictures, and nothing else, to the chosen one. */
function showChosen() {
  const strip = $("images").querySelector(".thumbnails");
  const chosen = strip?.querySelector("input:checked")?.parentElement;
  if (!chosen) return;
  const [top, bottom] = [chosen.offsetTop - strip.offsetTop, chosen.offsetTop - strip.offsetTop + chosen.offsetHeight];
  strip.scrollTop = Math.min(Math.max(strip.scrollTop, bottom - strip.clientHeight + 4), top - 4);
}

/** A picture at a whole zoom, in a frame that other things are laid over. */
function framed(image, target) {
  const { picture, name } = DATA.images[image];
  const factor = zoom(picture.height, picture.width, target, target);
  const size = [picture.height * factor, picture.width * factor];
  const img = h("img", { src: pictureUrl(picture), alt: picture.alt || name, draggable: "false" });
  const box = h("div", { class: "box", hidden: true });
  const frame = h("div", { class: "frame" }, img, box);
  resize(frame, ...size);
  return { frame, img, box, size };
}

/** How many pixels of a picture are drawn in the colours reserved for what is beyond its range. */
function clippedWords(clipped = []) {
  return clipped.map(({ color, words }) => {
    const patch = h("span", { class: "swatch" });
    patch.style.background = color;
    return h("div", { class: "clipped" }, patch, words);
  });
}

function renderSide() {
  const shown = imagesNow();
  $("images").hidden = DATA.images.length < 2;
  for (const radio of $("images").querySelectorAll("input")) radio.checked = radio.value === state.image;
  showChosen();
  side.figures = new Map(shown.map((image) => [image, framed(image, narrow.matches ? 112 : 240)]));
  $("pictures").replaceChildren(
    ...shown.map((image) => {
      const { name, clipped } = DATA.images[image];
      return h("figure", {}, side.figures.get(image).frame, h("figcaption", {}, named(name)), ...clippedWords(clipped));
    }),
  );
  $("range").hidden = !DATA.range?.length;
  $("range").textContent = (DATA.range ?? []).join(" ");
  $("top").replaceChildren(...shown.flatMap(answerRows));
  const squashed = DATA.softmax ? "softmax of what it returned" : DATA.sigmoid ? "sigmoid of what it returned" : DATA.pixels ? "share of the pixels of each class" : null;
  $("softmax").hidden = !squashed;
  $("softmax").textContent = squashed;
  $("answer").hidden = !shown.some((image) => DATA.images[image].top?.length);
  unread();
}

const narrow = matchMedia("(max-width: 62rem)");

function answerRows(image, _, shown) {
  const { name, top } = DATA.images[image];
  const most = Math.max(...top.map(({ probability }) => Math.abs(real(probability))));
  const heading = shown.length > 1 ? [h("li", { class: "of" }, named(name))] : [];
  return heading.concat(top.map((each) => answerRow(each, DATA.answer === "probability" ? 1 : most)));
}

function answerRow({ name, probability }, whole) {
  const value = real(probability);
  const bar = h("span", { class: "share" });
  bar.style.width = `${(100 * Math.max(0, value || 0)) / (whole || 1)}%`;
  const text = DATA.answer === "probability" ? percent(value) : figure(value);
  return h("li", {}, named(name), h("span", { class: "number" }, text), h("span", { class: "track" }, bar));
}

/** The part of the image that the unit at (row, column) of a map sees: [[top, bottom], [left, right]], or null. */
function seenBy(field, row, column) {
  if (!field) return null;
  const pick = (spans, axis) => spans[spans.length === 1 ? 0 : [row, column][field.along[axis]]];
  const box = [pick(field.rows, 0), pick(field.columns, 1)];
  return box.every(Boolean) ? box : null;
}

/** Show a value, where it is, and what it sees. `at`: {layer, image, row, column, value, place}. */
function read(at) {
  $("reading").hidden = false;
  $("value").textContent = figure(at.value);
  $("place").replaceChildren(...at.place);
  const seen = at.image === undefined ? null : seenBy(at.field, at.row, at.column);
  $("seen").hidden = !seen;
  for (const [image, { box, size }] of side.figures) drawBox(box, size, image === at.image ? seen : null);
  if (seen) drawPatch(at.image, at.field, seen);
}

function unread() {
  $("reading").hidden = true;
  for (const { box } of side.figures.values()) box.hidden = true;
}

/** Lay the box over a picture drawn `size` high and wide. */
function drawBox(box, size, seen) {
  box.hidden = !seen;
  if (!seen) return;
  const [[top, bottom], [left, right]] = seen;
  const [down, across] = [size[0] / DATA.input.at(-2), size[1] / DATA.input.at(-1)];
  putBox(box, top * down, left * across, Math.max(1, (bottom - top) * down), Math.max(1, (right - left) * across));
}

function drawPatch(image, field, [[top, bottom], [left, right]]) {
  const { picture } = DATA.images[image];
  const { img } = side.figures.get(image) ?? {};
  const canvas = $("patch");
  const [down, across] = [picture.height / DATA.input.at(-2), picture.width / DATA.input.at(-1)];
  canvas.height = Math.max(1, Math.round((bottom - top) * down));
  canvas.width = Math.max(1, Math.round((right - left) * across));
  const factor = zoom(canvas.height, canvas.width, 176, 260);
  resize(canvas, canvas.height * factor, canvas.width * factor);
  if (img?.complete)
    canvas.getContext("2d").drawImage(img, left * across, top * down, canvas.width, canvas.height, 0, 0, canvas.width, canvas.height);
  const text = bottom > top && right > left
    ? `sees rows ${top}–${bottom - 1}, columns ${left}–${right - 1} of the image${field.kind === "hull" ? " at most" : ""}`
    : "sees nothing of the image but its border";
  canvas.setAttribute("aria-label", `The patch that it ${text}`);
  $("sees").textContent = text;
}
