// The forward page: which token looks at which, head by head.
"use strict";

// -- attention -----------------------------------------------------------------------------------------------------------

const looking = { layer: 0, heads: models.map(() => 0), query: models.map((model) => model.tokens.length - 1) };

// Weights of a layer, all heads: weights[head][row * T + column]
function attentionOf(model, layer) {
  const entry = model.attention.find((candidate) => candidate.layer === layer);
  if (!entry) return null;
  if (!entry.decoded) {
    const T = model.tokens.length;
    const levels = bytes(entry.weights);
    let next = 0;
    entry.decoded = Array.from({ length: entry.heads }, () => {
      const weights = new Float32Array(T * T);
      for (let row = 0; row < T; row++) {
        for (let column = 0; column < (entry.is_causal ? row + 1 : T); column++) weights[row * T + column] = (levels[next++] / 255) ** 2;
      }
      return weights;
    });
  }
  return entry;
}

// Where a head looks most, over all tokens but the first two, which have little choice
function habit(weights, T) {
  if (T < 4) return "";
  const mean = (column) => {
    let sum = 0;
    for (let row = 2; row < T; row++) sum += weights[row * T + column(row)];
    return sum / (T - 2);
  };
  const habits = [["the first token", mean(() => 0)], ["the token before", mean((row) => row - 1)], ["itself", mean((row) => row)]];
  const [name, share] = habits.sort((one, other) => other[1] - one[1])[0];
  return share >= 0.35 ? `${name} ${percent(share)}` : "spread out";
}

// Where a head looks most from one token
function favourite(model, weights, query) {
  const T = model.tokens.length;
  const row = [...weights.slice(query * T, (query + 1) * T)];
  const share = Math.max(...row);
  return [...spelled(model.tokens[row.indexOf(share)].text), ` ${percent(share)}`];
}

function showLayer(layer) {
  looking.layer = clamp(layer, 0, Math.max(...models.map((model) => model.numLayers)) - 1);
  drawAttention();
}

function startAttention() {
  if (!models.some((model) => model.attention.length)) {
    byId("fw-attention").append(el("p", { class: "muted" }, "The trace holds no attention weights: no line of naive_attention made any."));
    return;
  }
  const numLayers = Math.max(...models.map((model) => model.numLayers));
  looking.output = el("output", { class: "fw-count" });
  looking.slider = el("input", { type: "range", min: 0, max: numLayers - 1, value: 0, "aria-label": "Block", oninput: () => showLayer(Number(looking.slider.value)) });
  looking.columns = columns((model) => el("div", { id: `fw-attention-${model.index}` }));
  byId("fw-attention").append(el("div", { class: "fw-slide fw-layer" }, looking.slider, looking.output), el("div", { class: "fw-columns" }, looking.columns));
  looking.numLayers = numLayers;
  drawAttention();
}

function drawAttention() {
  looking.slider.value = looking.layer;
  looking.output.textContent = `block ${looking.layer + 1} of ${looking.numLayers}`;
  models.forEach(drawHeads);
}

const attentionPicture = (weights, T, isCausal, attributes) => bitmap(T, T, (i) => (isCausal && i % T > Math.floor(i / T) ? 0 : 1 + Math.round(254 * weights[i])), false, attributes);

// The heads side by side, with a line that tells what is under the pointer
function smallHeads(model, entry) {
  const T = model.tokens.length;
  const rest = "A row looks, a column is looked at";
  const readout = el("p", { class: "fw-readout" }, rest);
  const figures = entry.decoded.map((weights, head) => {
    const canvas = attentionPicture(weights, T, entry.is_causal, { "aria-label": `Attention weights of head ${head + 1}` });
    followPointer(canvas, (row, column) => {
      readout.textContent = row === undefined ? rest : `head ${head + 1}: ${quoted(model.tokens[row].text)} looks at ${quoted(model.tokens[column].text)} with ${entry.is_causal && column > row ? "nothing: it comes later" : percent(weights[row * T + column])}`;
    });
    return el("figure", {}, canvas, el("figcaption", {}, `head ${head + 1}`));
  });
  return el("div", { class: "fw-heat" }, el("div", { class: "fw-planes" }, figures), readout, scaleBar({ signed: false, scale: 1 }, percent(1)));
}

function drawHeads(model) {
  const box = byId(`fw-attention-${model.index}`);
  const entry = attentionOf(model, looking.layer);
  if (!entry) {
    box.replaceChildren(el("p", { class: "muted" }, `This model has no block ${looking.layer + 1}.`));
    return;
  }
  const T = model.tokens.length;
  const head = Math.min(looking.heads[model.index], entry.heads - 1);
  const choose = (wanted) => {
    looking.heads[model.index] = wanted;
    drawHeads(model);
    box.querySelectorAll(".fw-heads button")[wanted].focus();
  };
  const heads = entry.decoded.map((weights, index) => el("button", { type: "button", "aria-pressed": String(index === head), title: `Head ${index + 1} in large`, onclick: () => choose(index) },
    attentionPicture(weights, T, entry.is_causal, { "aria-hidden": "true" }), el("span", {}, `head ${index + 1}`), el("small", {}, habit(weights, T)),
    el("small", { class: "fw-last" }, "last token: ", favourite(model, weights, T - 1))));
  const large = el("div", { class: "fw-large" });
  box.replaceChildren(el("div", { class: "fw-heads", role: "group", "aria-label": "Heads" }, heads), large);
  drawHead(model, entry, head, large);
}

function drawHead(model, entry, head, box) {
  const T = model.tokens.length;
  const weights = entry.decoded[head];
  const tokens = model.tokens.map((token) => token.text);
  const room = Math.min(box.clientWidth || 480, 560) - 90;
  const size = clamp(Math.floor(room / T), 3, 26);
  const readout = el("p", { class: "fw-readout", "aria-live": "polite" });
  const row = el("div", { class: "fw-strip", role: "group", "aria-label": "Choose the token that looks" });
  const cursor = el("i", { class: "fw-cursor" });
  const canvas = attentionPicture(weights, T, entry.is_causal, { style: `width: ${size * T}px; height: ${size * T}px`, "aria-label": `Attention weights of head ${head + 1}, ${T} by ${T}` });
  let column = null;
  const select = (query, key) => {
    looking.query[model.index] = query;
    column = key;
    Object.assign(cursor.style, { top: `${size * query}px`, height: `${size}px`, width: `${size * T}px` });
    const best = [...Array(T).keys()].sort((one, other) => weights[query * T + other] - weights[query * T + one]);
    readout.replaceChildren(...(key === null || key === undefined
      ? [tokenSign(tokens[query]), " looks most at ", ...best.slice(0, 3).flatMap((index, i) => [i ? ", " : "", tokenSign(tokens[index]), ` ${percent(weights[query * T + index])}`])]
      : entry.is_causal && key > query
        ? [tokenSign(tokens[query]), " may not see ", tokenSign(tokens[key]), ": it comes later"]
        : [tokenSign(tokens[query]), " looks at ", tokenSign(tokens[key]), " with ", el("b", {}, percent(weights[query * T + key])), " of its attention"]));
    [...row.children].forEach((chip, index) => {
      chip.style.setProperty("--share", `${100 * Math.sqrt(weights[query * T + index])}%`);
      chip.classList.toggle("is-query", index === query);
      chip.classList.toggle("is-later", entry.is_causal && index > query);
    });
  };
  row.append(...tokens.map((text, index) => el("button", { type: "button", onclick: () => select(index, null) }, spelled(text))));
  const grid = el("div", { class: "fw-matrix", tabindex: 0, "data-keys": "", role: "application", "aria-label": "Attention weights: arrow keys choose who looks (up, down) and at whom (left, right)" },
    canvas, cursor);
  grid.addEventListener("keydown", (event) => {
    const [down, right] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] ?? [0, 0];
    if (!down && !right) return;
    event.preventDefault();
    select(clamp(looking.query[model.index] + down, 0, T - 1), clamp((column ?? looking.query[model.index]) + right, 0, T - 1));
  });
  followPointer(canvas, (y, x) => (y === undefined ? select(looking.query[model.index], null) : select(y, x)));
  const hasLabels = size >= 9;
  const style = `font-size: ${clamp(size - 3, 8, 12)}px`;
  box.replaceChildren(
    el("h4", {}, `Head ${head + 1} of block ${looking.layer + 1}`),
    el("div", { class: "scroll" }, el("div", { class: "fw-axes" },
      hasLabels ? el("div", { class: "fw-across", "aria-hidden": "true", style }, tokens.map((text) => el("span", { style: `width: ${size}px` }, spelled(text)))) : null,
      hasLabels ? el("div", { class: "fw-down", "aria-hidden": "true", style: `${style}; line-height: ${size}px` }, tokens.map((text) => el("span", {}, spelled(text)))) : null,
      grid)),
    readout, row, scaleBar({ signed: false, scale: 1 }, percent(1)));
  select(Math.min(looking.query[model.index], T - 1), null);
}
