// Learning: kernels and maps over the steps of a training, its curves, and what was found.

const playing = { timer: null };

const framesNow = () => {
  const layers = DATA.learning.layers;
  const layer = layers.find(({ name }) => name === state.layer)?.name ?? layers[0]?.name;
  const kinds = layers.filter(({ name }) => name === layer);
  return { layer, kinds, film: kinds.find(({ of }) => of === state.of) ?? kinds[0] };
};

/** Place of the step among those kept; the last where none is asked for. */
function stepNow() {
  const at = DATA.learning.steps.map(String).indexOf(state.step);
  return at < 0 ? DATA.learning.steps.length - 1 : at;
}

function options(select, pairs, chosen) {
  const same = [...select.options].map((option) => option.value).join("\n") === pairs.map(([value]) => value).join("\n");
  if (!same) select.replaceChildren(...pairs.map(([value, text]) => h("option", { value }, text)));
  select.value = chosen;
}

function fillLearning() {
  const { steps, findings, report } = DATA.learning;
  $("step").max = steps.length - 1;
  $("findings-title").textContent = findings.length ? "What was found" : "Nothing was found that goes wrong";
  const goTo = (step) => () => go({ step: String(steps.reduce((best, each) => (Math.abs(each - step) < Math.abs(best - step) ? each : best), steps[0])) });
  $("findings").replaceChildren(...findings.map(({ step, kind, text }) => h("li", {}, h("button", { type: "button", class: "plain", onclick: goTo(step) }, h("b", {}, `Step ${step.toLocaleString("en")}, ${kind}`)), h("span", {}, text))));
  $("step").addEventListener("input", () => go({ step: String(steps[$("step").value]) }));
  $("play").addEventListener("click", play);
  $("report").replaceChildren(...(report ? [h("h3", {}, "The report"), h("img", { src: pictureUrl(report), alt: report.alt, class: "report" })] : []));
}

function renderLearning() {
  const { steps, layers } = DATA.learning;
  const { layer, kinds, film } = framesNow();
  const at = stepNow();
  options($("learning-layer"), unique(layers, "name").map(({ name }) => [name, name]), layer);
  options($("learning-of"), kinds.map(({ of }) => [of, of === "why" ? "heatmaps" : of]), film?.of);
  const [now, last] = [steps[at], steps.at(-1)].map((step) => step.toLocaleString("en"));
  $("step").value = at;
  $("step").setAttribute("aria-valuetext", `step ${now}`);
  $("step-now").textContent = `${now} of ${last}`;
  renderFrame(film?.frames[at], `${film?.of} of ${layer} at step ${now}`);
  const figures = unique(DATA.learning.curves, "what").map(({ what }) => what);
  $("curves").replaceChildren(...figures.map((what) => curves(what, DATA.learning.curves.filter((each) => each.what === what), layer, at)));
}

function renderFrame(picture, words) {
  if (!picture) return $("frame").replaceChildren(h("figcaption", {}, "No picture of this step."));
  const factor = zoom(picture.height, picture.width, Math.max(200, Math.min(720, $("main").clientWidth - 40)));
  const img = h("img", { src: pictureUrl(picture), alt: picture.alt || words });
  resize(img, picture.height * factor, picture.width * factor);
  $("frame").replaceChildren(h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": words }, img), h("figcaption", {}, words));
}

function play() {
  const on = playing.timer === null;
  clearInterval(playing.timer);
  playing.timer = on ? setInterval(() => stepTime(1, true), 500) : null;
  $("play").setAttribute("aria-pressed", String(on));
  $("play").textContent = on ? "Stop" : "Play";
}

function stepTime(by, round) {
  const { steps } = DATA.learning;
  if (state.view !== "learning") return play();
  const at = stepNow() + by;
  go({ step: String(steps[round ? at % steps.length : Math.min(steps.length - 1, Math.max(0, at))]) });
}
