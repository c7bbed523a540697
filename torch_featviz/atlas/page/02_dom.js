// Making elements. Names are given by anybody: they become text nodes, and never markup.

const $ = (id) => document.getElementById(id);

/** A new element; attributes that are null or false are left out, "on…" are listeners. */
function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** The same for SVG. */
function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** A name that may be of any length and direction: broken after its dots, cut with an ellipsis, whole in its title. */
function named(text) {
  const parts = text.split(/(?<=[._/])/).flatMap((part) => [part, h("wbr")]);
  return h("bdi", { class: "name", title: text }, ...parts);
}

/** Terms and their descriptions; a pair whose description is null is left out. */
function describe(list, pairs) {
  const rows = pairs.filter(([, value]) => value !== null);
  list.replaceChildren(...rows.map(([term, value]) => h("div", {}, h("dt", {}, term), h("dd", {}, value))));
}

function table(head, rows) {
  const top = h("tr", {}, ...head.map((text) => h("th", { scope: "col" }, text)));
  const body = rows.map(([first, ...rest]) =>
    h("tr", {}, h("th", { scope: "row" }, first), ...rest.map((text) => h("td", {}, text))),
  );
  return h("table", {}, h("thead", {}, top), h("tbody", {}, ...body));
}

const drawings = new WeakMap();
const onlooker = new IntersectionObserver(
  (entries) => {
    for (const { isIntersecting, target } of entries) if (isIntersecting) drawNow(target);
    afterDrawing();
  },
  { rootMargin: "100px" },
);

function drawNow(element) {
  const draw = drawings.get(element);
  drawings.delete(element);
  onlooker.unobserve(element);
  draw?.();
}

/** Call `draw` once, when the element comes into sight. */
function whenSeen(element, draw) {
  drawings.set(element, draw);
  onlooker.observe(element);
}

/** Printers see all of the page. */
function drawAll(root) {
  for (const element of root.querySelectorAll("*")) if (drawings.has(element)) drawNow(element);
}

/** Call `at` with what the pointer does over an element; what a finger touched stays when it is lifted. */
function pointed(element, at, left = unread) {
  element.addEventListener("pointermove", at);
  element.addEventListener("pointerdown", at);
  element.addEventListener("pointerleave", ({ pointerType }) => pointerType === "touch" || left());
}

function putBox(box, top, left, height, width) {
  box.hidden = false;
  box.style.top = `${top}px`;
  box.style.left = `${left}px`;
  resize(box, height, width);
}

/** A canvas in a frame of its own, where `mark(top, left, height, width)` marks a place and brings it into sight. */
function marked(canvas) {
  const box = h("div", { class: "box", hidden: true });
  const mark = (...place) => {
    putBox(box, ...place);
    box.scrollIntoView({ block: "nearest", inline: "nearest" });
  };
  return { holder: h("div", { class: "marked" }, canvas, box), mark };
}

function say(text) {
  $("say").textContent = text;
}
