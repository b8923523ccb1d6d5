// The forward page, line by line: the controls, the code, and what the line of the moment made.
//
// A step of the page is a pair of steps, one of each model; null where a model does not run the line.
"use strict";

// -- steps ---------------------------------------------------------------------------------------------------------------

// on a phone one model at a time
const state = { number: -1, view: isDouble && !matchMedia("(max-width: 40rem)").matches ? "both" : "0", playing: null };
const stepsAt = (number) => models.map((model) => (pairs[number][model.index] === null ? null : model.steps[pairs[number][model.index]]));
const shownModels = () => (state.view === "both" ? models : [models[Number(state.view)]]);
// Steps of a model that is not shown are passed over
const isShown = (number) => shownModels().some((model) => pairs[number][model.index] !== null);
const mainModel = (number) => shownModels().find((model) => pairs[number][model.index] !== null) ?? models.find((model) => pairs[number][model.index] !== null);
const mainStep = (number) => stepsAt(number)[mainModel(number).index];
const depth = (step) => step.callers.length;

function neighbour(number, direction, matches = () => true) {
  for (let next = number + direction; next >= 0 && next < pairs.length; next += direction) {
    if (isShown(next) && matches(mainStep(next))) return next;
  }
  return null;
}

const over = (direction) => neighbour(state.number, direction, (step) => depth(step) <= depth(mainStep(state.number)));

// The same line of the same function in the next block, where there is one; else the next block's first line
function inLayer(layer) {
  const here = mainStep(state.number);
  const numbers = [...pairs.keys()].filter((number) => isShown(number) && mainStep(number).layer === layer);
  const inside = (module) => module.replace(/^blocks\.\d+/, "");
  const same = numbers.find((number) => {
    const step = mainStep(number);
    return step.function === here.function && step.line === here.line && inside(step.module) === inside(here.module);
  });
  return same ?? numbers[0] ?? null;
}

function goTo(number, { remember = true } = {}) {
  if (number === null || number === undefined) return;
  state.number = clamp(number, 0, pairs.length - 1);
  drawControls();
  drawCode();
  drawValues();
  if (remember) rememberStep();
}

let remembering = null;
function rememberStep() {
  clearTimeout(remembering); // browsers refuse many changes of the address in a short time
  remembering = setTimeout(() => history.replaceState(null, "", stepAddress(state.number)), 250);
}

function fromAddress() {
  const match = /^#step-(\d+)$/.exec(location.hash);
  return match ? clamp(Number(match[1]) - 1, 0, pairs.length - 1) : null;
}

function play(on) {
  clearInterval(state.playing);
  state.playing = null;
  if (on) {
    state.playing = setInterval(() => {
      const next = neighbour(state.number, 1);
      if (next === null) play(false);
      else goTo(next);
    }, 1100);
  }
  controls.play.textContent = on ? "❚❚ Pause" : "▶ Play";
  controls.play.setAttribute("aria-pressed", String(on));
}

// A person's move ends the playing
function move(number) {
  play(false);
  goTo(number);
}

const controls = {};

function makeControls() {
  const button = (key, text, title, action) => (controls[key] = el("button", { type: "button", title, onclick: action }, text));
  const select = (key, label, onchange) => {
    controls[key] = el("select", { onchange });
    return el("label", {}, el("span", {}, label), controls[key]);
  };
  const buttons = [
    button("back", "‹ Back", "The line before (←)", () => move(neighbour(state.number, -1))),
    button("next", "Next ›", "The next line (→)", () => move(neighbour(state.number, 1))),
    button("over", "Over »", "The next line of this function, over what it calls (Shift + →)", () => move(over(1))),
    button("play", "▶ Play", "A line a second", () => play(state.playing === null)),
  ];
  controls.slider = el("input", { type: "range", min: 0, max: pairs.length - 1, "aria-label": "Step", oninput: () => move(nearestShown(Number(controls.slider.value))) });
  controls.count = el("output", { class: "num fw-count" });
  const jumps = [
    select("function", "Function", () => {
      const name = controls.function.value;
      const layer = mainStep(state.number).layer;
      const numbers = [...pairs.keys()].filter((number) => isShown(number) && mainStep(number).function === name);
      move(numbers.find((number) => mainStep(number).layer === layer) ?? numbers[0]);
    }),
    select("layer", "Block", () => move(inLayer(controls.layer.value === "" ? null : Number(controls.layer.value)))),
  ];
  const files = new Map();
  models.forEach((model) => Object.entries(model.functions).forEach(([name, entry]) => {
    if (!files.has(entry.file)) files.set(entry.file, new Set());
    if (model.steps.some((step) => step.function === name)) files.get(entry.file).add(name);
  }));
  controls.function.append(...[...files].map(([file, names]) => el("optgroup", { label: file }, [...names].map((name) => el("option", { value: name }, name)))));
  const numLayers = Math.max(...models.map((model) => model.numLayers));
  controls.layer.append(el("option", { value: "" }, "outside the blocks"), ...Array.from({ length: numLayers }, (_, layer) => el("option", { value: layer }, `${layer + 1} of ${numLayers}`)));
  const views = isDouble
    ? el("div", { class: "fw-views", role: "group", "aria-label": "Models shown" }, [["both", "Both"], ...models.map((model) => [String(model.index), model.name])].map(([view, name]) =>
        (controls[`view-${view}`] = el("button", { type: "button", "aria-pressed": String(view === state.view), onclick: () => setView(view) }, name))))
    : null;
  byId("fw-controls").append(el("div", { class: "row" }, buttons), el("div", { class: "fw-slide" }, controls.slider, controls.count), el("div", { class: "row" }, jumps, views));
}

function setView(view) {
  state.view = view;
  for (const key of ["both", ...models.map((model) => String(model.index))]) controls[`view-${key}`].setAttribute("aria-pressed", String(key === view));
  goTo(nearestShown(state.number));
}

const nearestShown = (number) => (isShown(number) ? number : neighbour(number, 1) ?? neighbour(number, -1));

function drawControls() {
  const step = mainStep(state.number);
  controls.slider.value = state.number;
  controls.slider.setAttribute("aria-valuetext", `step ${state.number + 1}: ${step.function}, line ${step.line}`);
  controls.count.textContent = `${state.number + 1} / ${pairs.length}`;
  controls.back.disabled = neighbour(state.number, -1) === null;
  controls.next.disabled = neighbour(state.number, 1) === null;
  controls.over.disabled = over(1) === null;
  controls.function.value = step.function;
  controls.layer.value = step.layer ?? "";
}

// -- steps: the code -----------------------------------------------------------------------------------------------------

const files = new Map([...document.querySelectorAll(".fw-file")].map((file) => [file.dataset.file, file]));
const lineOf = (file, line) => files.get(file)?.children[line - 1];

function prepareCode() {
  for (const name of files.keys()) {
    byId("fw-files").append(el("button", { type: "button", "data-file": name, onclick: () => showFile(name) }, name.split("/").pop()));
  }
  models.forEach((model) => {
    for (const step of model.steps) {
      for (let line = step.line; line <= step.end_line; line++) lineOf(step.file, line)?.classList.add("ran", `ran-${model.index}`);
    }
  });
  byId("fw-code").addEventListener("click", (event) => {
    const line = event.target.closest(".ln.ran");
    if (!line || String(getSelection()) !== "") return;
    const [file, at] = [line.parentElement.dataset.file, Number(line.dataset.line)];
    const isHere = (step) => step.file === file && step.line <= at && at <= step.end_line;
    move(neighbour(state.number, 1, isHere) ?? neighbour(-1, 1, isHere));
  });
}

function showFile(name) {
  for (const [file, element] of files) element.hidden = file !== name;
  for (const button of byId("fw-files").children) button.setAttribute("aria-pressed", String(button.dataset.file === name));
}

let marked = [];
function drawCode() {
  for (const line of marked) {
    line.classList.remove("now", "waits", "in-function");
    line.querySelector(".fw-made")?.remove();
  }
  marked = [];
  const mark = (line, ...classes) => {
    if (!line) return;
    line.classList.add(...classes);
    marked.push(line);
  };
  const model = mainModel(state.number);
  const step = mainStep(state.number);
  showFile(step.file);
  const whole = model.functions[step.function];
  for (let line = whole.line; line <= whole.end_line; line++) mark(lineOf(step.file, line), "in-function");
  for (const [name, line] of callerLines(model, step)) mark(lineOf(name, line), "waits");
  for (let line = step.line; line <= step.end_line; line++) mark(lineOf(step.file, line), "now");
  annotate(model, step, mark);
  const now = lineOf(step.file, step.line);
  const box = byId("fw-code");
  if (now) {
    const top = now.offsetTop; // the box is what lines are placed in
    const isVisible = top > box.scrollTop + 24 && top + now.offsetHeight < box.scrollTop + box.clientHeight - 60;
    if (!isVisible) box.scrollTop = Math.max(0, top - box.clientHeight / 3);
  }
}

const callerLines = (model, step) => step.callers.map(([call, line]) => [model.functions[nameOfCall(model, call)]?.file, line]);

// Behind the lines that this call and its callers have run: what each made
function annotate(model, step, mark) {
  const calls = new Set([step.call, ...step.callers.map(([call]) => call)]);
  const latest = new Map();
  const end = pairs[state.number][model.index];
  for (let index = 0; index <= end; index++) {
    const done = model.steps[index];
    if (calls.has(done.call) && done.file === step.file) latest.set(done.end_line, done);
  }
  for (const [line, done] of latest) {
    const text = made(done);
    const target = lineOf(done.file, line);
    if (!text || !target) continue;
    target.append(el("span", { class: "fw-made" }, text));
    mark(target);
  }
}

function made(step) {
  if (step.taken !== undefined) return step.taken ? "yes" : "no";
  return step.values.map((value) => {
    const what = value.shape ? `(${value.shape.join(", ")})` : value.text.length > 28 ? `${value.text.slice(0, 27)}…` : value.text;
    return step.values.length > 1 ? `${value.name}: ${what}` : what;
  }).join("   ");
}

// -- steps: the values ---------------------------------------------------------------------------------------------------

function drawValues() {
  const step = mainStep(state.number);
  const model = mainModel(state.number);
  const here = differences.filter((difference) => difference.pairs.includes(state.number));
  byId("fw-values").replaceChildren(
    el("div", { class: "fw-where" },
      el("p", { class: "fw-path" }, [...step.callers.map(([call]) => nameOfCall(model, call)), step.function].map((name, index, all) => [index ? " › " : "", index === all.length - 1 ? el("b", {}, name) : name])),
      el("p", { class: "fw-explained" }, rich(model.functions[step.function]?.explanation ?? "")),
      el("p", { class: "muted small" }, [`${step.file.split("/").pop()}, line ${step.line}`, step.layer === null ? null : `block ${step.layer + 1} of ${model.numLayers}`, step.module ? `module ${step.module}` : null].filter(Boolean).join(" · "))),
    ...here.map(differenceBox),
    el("div", { class: "fw-columns" }, shownModels().map((shown) => el("div", { class: "fw-column" }, isDouble ? el("h3", { class: "fw-column-title" }, modelName(shown)) : null, modelValues(shown)))));
  byId("fw-values").scrollTop = 0;
}

const nameOfCall = (model, call) => model.callNames[call] ?? "";

function differenceBox(difference) {
  return el("div", { class: "fw-difference" }, el("b", {}, `Here the two differ: ${difference.title}. `),
    el("span", { class: "fw-settings" }, models.map((model, index) => [index ? " · " : "", modelName(model), ": ", el("code", {}, setting(index ? difference.that : difference.this))])),
    el("p", {}, rich(difference.explanation)));
}

// Why a model does not run this line: the component that decides about it, or about the call that it is part of
function absence() {
  const [model, step] = [mainModel(state.number), mainStep(state.number)];
  const textOf = (file, line) => lineOf(file, line)?.querySelector("code").textContent ?? "";
  const passed = [[step.function, step.code], ...step.callers.map(([call, line]) => [nameOfCall(model, call), textOf(model.functions[nameOfCall(model, call)]?.file, line)])];
  const reason = differences.find((difference) => difference.places.some((place) => passed.some(([name, code]) => name === place.function && code.includes(place.code))));
  return el("p", { class: "fw-absent" }, "does not run this line", reason ? [": the two differ in ", el("a", { href: "#differences" }, reason.title.toLowerCase())] : "", ".");
}

function modelValues(model) {
  const index = pairs[state.number][model.index];
  if (index === null) return absence();
  const step = model.steps[index];
  const parts = [];
  if (step.taken !== undefined) parts.push(el("p", { class: "fw-taken" }, step.taken ? "The condition holds: the lines inside run." : "The condition does not hold: the lines inside are passed over."));
  if (step.parameters) {
    parts.push(el("p", { class: "fw-parameters" }, "with the learned ", Object.entries(step.parameters).map(([name, shape], i) => [i ? ", " : "", el("code", {}, name), ` (${shape.join(", ")})`]), ` of ${step.module}`));
  }
  const isPlain = (value) => value.shape === undefined && !value.ids;
  const plain = step.values.filter(isPlain);
  if (plain.length) parts.push(el("dl", { class: "fw-plain" }, plain.map((value) => el("div", {}, el("dt", {}, shownName(value)), el("dd", {}, value.text)))));
  parts.push(...step.values.filter((value) => !isPlain(value)).map((value) => valueCard(model, step, value)));
  if (!step.values.length && step.taken === undefined) parts.push(el("p", { class: "muted" }, "This line makes no value of its own."));
  parts.push(...extras(model, index));
  return parts;
}

const shownName = (value) => value.name.replace(/^return(?=$|\[)/, "returned");

function valueCard(model, step, value) {
  const head = el("div", { class: "fw-head" }, el("code", { class: "fw-name" }, shownName(value)));
  if (value.shape === undefined) {
    const areTokens = !/mask/.test(value.name);
    const texts = new Map(model.tokens.map((token) => [token.id, token.text]));
    head.append(el("span", { class: "muted small" }, `${value.type} of ${value.ids.length}`));
    return el("section", { class: "fw-value" }, head, areTokens
      ? el("p", { class: "fw-chips is-small" }, value.ids.map((id) => el("span", { class: "fw-chip" }, tokenSign(texts.get(id) ?? word(model, id)), el("small", {}, id))))
      : el("p", { class: "fw-items" }, value.ids.map((id) => el("span", { class: "num" }, id))));
  }
  const letters = value.letters ? value.letters.split(", ") : [];
  head.append(el("span", { class: "fw-shape", "aria-label": `shape ${value.shape.join(" by ")}` }, value.shape.map((size, i) => el("span", { title: letters.length === value.shape.length ? model.letters[letters[i]]?.meaning : null }, el("b", {}, size), letters.length === value.shape.length ? el("i", {}, letters[i]) : null))), el("span", { class: "muted small" }, value.dtype));
  const stats = value.mean === undefined || value.dtype === "bool" || value.items?.length === 1 ? null : el("dl", { class: "fw-stats" },
    [["mean", value.mean], ["spread", value.std, "standard deviation"], ["smallest", value.min], ["largest", value.max]].map(([label, number, title]) => el("div", {}, el("dt", { title }, label), el("dd", { class: "num" }, figure(number)))));
  const masked = value.num_infinite ? el("p", { class: "muted small" }, `${value.num_infinite.toLocaleString("en")} of these are masked (minus infinity).`) : null;
  return el("section", { class: "fw-value" }, head, stats, value.items ? itemList(model, step, value) : null, value.picture === undefined ? null : heatMap(model, value), masked);
}

function itemList(model, step, value) {
  const areTokens = /engine\.py$/.test(step.file) && value.name === "tokens";
  return el("p", { class: "fw-items" }, value.items.map((item) => el("span", { class: "num" }, areTokens ? tokenSign(word(model, item)) : figure(item))));
}

// What the overviews know of this very step
function extras(model, index) {
  const parts = [];
  const row = model.residualOf.get(index);
  if (row) {
    parts.push(el("p", { class: "fw-extra" }, "Residual stream: size ", el("b", {}, brief(mean(row.rms))), row.added ? [", after adding an answer of size ", el("b", {}, brief(mean(row.added)))] : "", " (mean over the tokens). ", el("a", { href: "#residual" }, "See it grow")));
  }
  const attention = model.attentionOf.get(index);
  if (attention) {
    parts.push(smallHeads(model, attentionOf(model, attention.layer)));
    parts.push(el("p", { class: "fw-extra" }, el("a", { href: "#attention", onclick: () => showLayer(attention.layer) }, `All heads of block ${attention.layer + 1}, token by token`)));
  }
  const lens = model.lensOf.get(index);
  if (lens) parts.push(el("div", { class: "fw-extra" }, el("p", {}, `If the model ended ${lens.layer === null ? "before its blocks" : `after block ${lens.layer + 1}`}, it would say next:`), ranking(model, lens.top.slice(0, 5), "Likeliest next tokens here")));
  const step = model.steps[index];
  if (step.function === "GPT.forward" && step.values.some((value) => value.name === "return") && model.lens.length) {
    parts.push(el("div", { class: "fw-extra" }, el("p", {}, "The last row of these scores, through a softmax:"), ranking(model, model.lens[model.lens.length - 1].top, "Likeliest next tokens")));
  }
  return parts;
}

function drawLetters() {
  const names = Object.keys(models[0].letters);
  byId("fw-letters").append(el("table", {}, el("thead", {}, el("tr", {}, el("th", {}, "letter"), el("th", {}, "meaning"), models.map((model) => el("th", { class: "num" }, isDouble ? model.name : "here")))),
    el("tbody", {}, names.map((letter) => el("tr", {}, el("td", {}, el("code", {}, letter)), el("td", {}, models[0].letters[letter].meaning), models.map((model) => el("td", { class: "num" }, model.letters[letter].size.toLocaleString("en"))))))));
}

function onKey(event) {
  if (event.altKey || event.ctrlKey || event.metaKey || event.defaultPrevented) return;
  if (event.target.closest("input, select, textarea, [data-keys]") || !isStageVisible()) return;
  const action = {
    ArrowRight: () => (event.shiftKey ? over(1) : neighbour(state.number, 1)),
    ArrowLeft: () => (event.shiftKey ? over(-1) : neighbour(state.number, -1)),
    "]": () => stepLayer(1),
    "[": () => stepLayer(-1),
  }[event.key];
  if (!action) return;
  event.preventDefault();
  move(action());
}

function stepLayer(direction) {
  const layer = mainStep(state.number).layer;
  return layer === null ? inLayer(0) : layer + direction < 0 ? null : inLayer(layer + direction);
}

function isStageVisible() {
  const box = byId("fw-stage").getBoundingClientRect();
  return box.top < innerHeight && box.bottom > 0;
}

const toStage = (behavior) => byId("fw-stage").scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion)").matches ? "instant" : behavior });

function startSteps() {
  models.forEach((model) => {
    model.callNames = {};
    model.steps.forEach((step) => { model.callNames[step.call] = step.function; });
  });
  makeControls();
  prepareCode();
  drawLetters();
  goTo(fromAddress() ?? nearestShown(0), { remember: false });
  document.addEventListener("keydown", onKey);
  const follow = () => {
    const number = fromAddress();
    if (number === null) return;
    play(false);
    goTo(number, { remember: false });
    toStage("smooth");
  };
  addEventListener("hashchange", follow);
  // a link to the step that the address names already changes nothing, and still should lead there
  document.addEventListener("click", (event) => {
    const link = event.target.closest('a[href^="#step-"]');
    if (link && link.getAttribute("href") === location.hash) follow();
  });
  if (fromAddress() !== null) toStage("instant");
}
