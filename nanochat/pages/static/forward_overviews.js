// The forward page at a glance: the prompt and the next token, the residual stream, what each block would say, differences.
"use strict";

// -- overview ------------------------------------------------------------------------------------------------------------

const pairOf = models.map((model) => new Map(pairs.map((pair, number) => [pair[model.index], number]).filter(([step]) => step !== null)));
const stepAddress = (number) => `#step-${number + 1}`;
const firstPair = (model, matches) => pairOf[model.index].get(model.steps.findIndex(matches));

function promptPanel(model) {
  const inPiece = new Map();
  model.pieces.forEach((piece, index) => {
    for (let i = piece.start; i < piece.end; i++) inPiece.set(i, index);
  });
  const groups = [];
  model.tokens.forEach((token, i) => {
    const piece = inPiece.get(i);
    const sign = el("span", { class: "fw-chip", title: token.is_special ? "special token: no text stands for it" : `bytes ${token.bytes}` }, tokenSign(token.text), el("small", {}, token.id));
    const last = groups[groups.length - 1];
    if (last && piece !== undefined && last.piece === piece) last.signs.push(sign);
    else groups.push({ piece, signs: [sign] });
  });
  return [
    el("p", { class: "fw-chips" }, groups.map((group) => el("span", { class: `fw-piece ${group.signs.length > 1 ? "is-cut" : ""}` }, group.signs))),
    el("p", { class: "muted small" }, `${model.tokens.length} tokens with their ids; a dot is a blank. ${model.is_chat ? "The prompt is put into a conversation. " : ""}A frame holds the tokens of one piece of text: the tokenizer cuts a text into pieces first, and no token reaches over two.`),
  ];
}

function wayPanel(model) {
  const T = model.tokens.length;
  const config = model.config;
  const stations = [
    ["encode", `${T} token ids`, (step) => /tokenizer\.py$/.test(step.file)],
    ["embed", `${T} × ${config.n_embd}`, (step) => step.function === "GPT.embed"],
    ...Array.from({ length: config.n_layer }, (_, layer) => [`block ${layer + 1}`, null, (step) => step.layer === layer]),
    ["ln_f", `${T} × ${config.n_embd}`, (step) => step.module === "ln_f"],
    ["lm_head", `${T} × ${config.vocab_size.toLocaleString("en")}`, (step) => step.module === "lm_head"],
    ["choose", "softmax, one token", (step) => /engine\.py$/.test(step.file)],
  ];
  return el("ol", { class: "fw-way", "aria-label": "The way through the code" }, stations.map(([name, shape, matches]) => {
    const number = firstPair(model, matches);
    const inner = [el("code", {}, name), shape ? el("small", {}, shape) : null];
    return el("li", { class: shape ? "" : "is-block" }, number === undefined ? el("span", {}, inner) : el("a", { href: stepAddress(number) }, inner));
  }));
}

function nextPanel(model) {
  const last = model.lens[model.lens.length - 1];
  const { token, temperature, top_k: topK, draw } = model.choice;
  return [
    caution(model),
    el("p", {}, "After ", tokenSign(model.tokens[model.tokens.length - 1].text), " the likeliest next tokens are:"),
    last ? ranking(model, last.top, "Likeliest next tokens") : null,
    el("p", { class: "muted small" }, `${model.num_parameters.toLocaleString("en")} parameters, ${counted(model.config.n_layer, "block")} of ${counted(model.config.n_head, "head")}. `,
      `With temperature ${temperature}, the ${topK} likeliest tokens and the random number ${draw}, `, el("code", {}, "choose"), " takes ", tokenSign(word(model, token)), "."),
  ];
}

function drawOverview() {
  const ids = (model) => model.tokens.map((token) => token.id).join();
  const areSame = models.every((model) => ids(model) === ids(models[0]));
  byId("fw-prompt").append(...(areSame ? promptPanel(models[0]) : columns(promptPanel)));
  byId("fw-way").append(wayPanel(models[0]));
  byId("fw-next").append(...columns(nextPanel));
}

// -- residual stream -----------------------------------------------------------------------------------------------------

const HALVES = { attn: ["attention", "--plot-3"], mlp: ["MLP", "--plot-6"] };
const mean = (list) => list.reduce((sum, value) => sum + value, 0) / list.length;

function residualPanel(model) {
  const box = el("div", { class: "fw-chart" });
  const readout = el("p", { class: "fw-readout" });
  const rows = model.residual;
  if (!rows.length) return el("p", { class: "muted" }, "The trace holds no residual stream.");
  const rest = `From ${brief(mean(rows[0].rms))} after the embedding to ${brief(mean(rows[rows.length - 1].rms))} after the last block (mean over the tokens). Point at the plot for each half of a block.`;
  new ResizeObserver(() => {
    if (box.clientWidth && box.dataset.width !== String(box.clientWidth)) {
      box.dataset.width = box.clientWidth;
      box.replaceChildren(residualChart(model, box.clientWidth, (text) => { readout.textContent = text ?? rest; }));
    }
  }).observe(box);
  readout.textContent = rest;
  const legend = el("p", { class: "fw-legend" },
    [["the stream, mean", "--fg", "is-line"], ["each token", "--muted", "is-line is-thin"], ["added by attention", "--plot-3", ""], ["added by the MLP", "--plot-6", ""]].map(([name, colour, shape]) => el("span", {}, el("i", { class: shape, style: `background: var(${colour})` }), name)));
  return [legend, box, readout];
}

function residualChart(model, width, say) {
  const rows = model.residual;
  const [left, right, top, bottom, height] = [44, 8, 26, 40, 290];
  const largest = Math.max(...rows.flatMap((row) => row.rms), 1e-9);
  const x = (index) => left + ((index + 0.5) * (width - left - right)) / rows.length;
  const y = (value) => height - bottom - (value / ticksEnd) * (height - top - bottom);
  const step = niceStep(largest / 4);
  const ticksEnd = step * Math.ceil((largest * 1.02) / step);
  const svg = (tag, attributes, ...children) => el(`svg:${tag}`, attributes, ...children);
  const chart = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Size of the residual stream of ${model.name} after each half of each block` });
  for (let value = 0; value <= ticksEnd + step / 2; value += step) {
    chart.append(svg("line", { x1: left, x2: width - right, y1: y(value), y2: y(value), class: "fw-grid-line" }), svg("text", { x: left - 6, y: y(value) + 4, class: "fw-tick is-y" }, brief(value)));
  }
  const each = (width - left - right) / rows.length;
  rows.forEach((row, index) => {
    if (row.added) chart.append(svg("rect", { x: x(index) - Math.min(each * 0.32, 14), width: Math.min(each * 0.64, 28), y: y(mean(row.added)), height: Math.max(0, y(0) - y(mean(row.added))), style: `fill: var(${HALVES[row.half]?.[1] ?? "--plot-8"})`, class: "fw-added" }));
  });
  const path = (list) => list.map((value, index) => `${index ? "L" : "M"}${x(index).toFixed(1)} ${y(value).toFixed(1)}`).join("");
  model.tokens.forEach((_, token) => chart.append(svg("path", { d: path(rows.map((row) => row.rms[token])), class: "fw-token-line" })));
  chart.append(svg("path", { d: path(rows.map((row) => mean(row.rms))), class: "fw-mean-line" }));
  const layers = rows.map((row, index) => [row, index]).filter(([row], i, all) => row.layer !== null && all.findIndex(([other]) => other.layer === row.layer) === i);
  const every = Math.ceil(layers.length / Math.max(1, Math.floor((width - left) / 34)));
  layers.forEach(([row, index], i) => {
    const span = rows.filter((other) => other.layer === row.layer).length;
    chart.append(svg("line", { x1: x(index) - each / 2, x2: x(index) - each / 2, y1: top, y2: height - bottom, class: "fw-grid-line is-block" }));
    if (i % every === 0) chart.append(svg("text", { x: x(index) + ((span - 1) * each) / 2, y: height - bottom + 16, class: "fw-tick" }, row.layer + 1));
  });
  chart.append(svg("text", { x: left + (width - left - right) / 2, y: height - 6, class: "fw-tick" }, "block"), svg("text", { x: 0, y: 12, class: "fw-tick is-title" }, "size (root mean square)"));
  const guide = svg("line", { y1: top, y2: height - bottom, class: "fw-guide", visibility: "hidden" });
  chart.append(guide);
  chart.addEventListener("pointermove", (event) => {
    const index = clamp(Math.floor((event.clientX - chart.getBoundingClientRect().left - left) / each), 0, rows.length - 1);
    const row = rows[index];
    guide.setAttribute("visibility", "visible");
    guide.setAttribute("x1", x(index));
    guide.setAttribute("x2", x(index));
    const furthest = row.rms.indexOf(Math.max(...row.rms));
    const where = row.layer === null ? "After the embedding" : `After the ${HALVES[row.half]?.[0] ?? row.half} of block ${row.layer + 1}`;
    say(`${where}: size ${brief(mean(row.rms))}${row.added ? `, of which ${brief(mean(row.added))} was added` : ""}; the largest is ${quoted(model.tokens[furthest].text)} with ${brief(row.rms[furthest])}`);
  });
  chart.addEventListener("pointerleave", () => {
    guide.setAttribute("visibility", "hidden");
    say();
  });
  return chart;
}

function niceStep(rough) {
  const power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 5, 10].map((factor) => factor * power).find((step) => step >= rough);
}

// -- what each block would say -------------------------------------------------------------------------------------------

function lensPanel(model) {
  const rowName = (row) => el("a", { href: stepAddress(pairOf[model.index].get(row.step)) }, layerName(row.layer));
  const final = model.lens[model.lens.length - 1];
  if (!final) return el("p", { class: "muted" }, "The trace holds no blocks.");
  const table = el("table", { class: "fw-lens" },
    el("caption", { class: "sr-only" }, "Likeliest next tokens after the last token of the prompt"),
    el("thead", {}, el("tr", {}, el("th", {}, "after"), el("th", {}, "likeliest next tokens"), el("th", { class: "num", title: "How undecided: 0 bits is certain" }, "entropy, bits"),
      el("th", { class: "num", title: "Place of the token that the whole model finds likeliest" }, "rank of ", tokenSign(word(model, final.top[0][0]))), el("th", { class: "num" }, "its chance"))),
    el("tbody", {}, model.lens.map((row) => el("tr", {}, el("th", { scope: "row" }, rowName(row)),
      el("td", {}, row.top.slice(0, 4).map(([id, chance]) => el("span", { class: "fw-guess", style: `--share: ${100 * Math.sqrt(chance)}%; --colour: var(${COLOURS[model.index]})` }, tokenSign(word(model, id)), el("small", {}, percent(chance))))),
      el("td", { class: "num" }, row.entropy.toFixed(1)), el("td", { class: "num" }, row.rank.toLocaleString("en")), el("td", { class: "num" }, percent(row.chance))))));
  const readout = el("p", { class: "fw-readout" });
  const rest = "A cell is the likeliest token to follow the token of its column; the stronger the colour, the surer. Point at a cell for its numbers.";
  readout.textContent = rest;
  const describe = (row, i) => {
    const { top, chance, entropy, rank, following } = row.positions;
    const next = model.tokens[i + 1];
    return `After ${layerName(row.layer)}, ${quoted(model.tokens[i].text)} is followed by ${quoted(word(model, top[i]))} with ${percent(chance[i])}; entropy ${entropy[i].toFixed(1)} bits; the final choice has rank ${rank[i].toLocaleString("en")}${next ? `; what really follows, ${quoted(next.text)}, gets ${percent(following[i])}` : ""}`;
  };
  const last = final.positions.top;
  const cells = el("table", { class: "fw-grid" },
    el("thead", {}, el("tr", {}, el("th", {}, "after"), model.tokens.map((token) => el("th", {}, tokenSign(token.text))))),
    el("tbody", {}, model.lens.map((row) => el("tr", {}, el("th", { scope: "row" }, rowName(row)), row.positions.top.map((id, i) => el("td", {
      style: `--share: ${100 * Math.sqrt(row.positions.chance[i])}%; --colour: var(${COLOURS[model.index]})`, class: id === last[i] ? "is-final" : "",
      onpointerenter: () => { readout.textContent = describe(row, i); }, onpointerleave: () => { readout.textContent = rest; },
    }, spelled(word(model, id))))))));
  const surprise = model.lens[model.lens.length - 1].positions.following;
  return [el("div", { class: "scroll" }, table), el("h4", {}, "At every token of the prompt"), el("div", { class: "scroll" }, cells), readout,
    surprise.length ? el("p", { class: "muted small" }, `Tokens in bold are what the whole model says there. It gives the tokens that really follow a chance of ${percent(Math.exp(mean(surprise.map((chance) => Math.log(Math.max(chance ?? 0, 1e-12))))))} (geometric mean over the prompt).`) : null];
}

// -- differences ---------------------------------------------------------------------------------------------------------

function drawDifferences() {
  if (!byId("fw-differences")) return;
  byId("fw-differences").append(differences.length ? el("div", { class: "scroll" }, el("table", { class: "fw-differing" },
    el("thead", {}, el("tr", {}, el("th", {}, "component"), models.map((model) => el("th", {}, modelName(model))), el("th", {}, "what it changes"), el("th", {}, "seen at"))),
    el("tbody", {}, differences.map((difference) => el("tr", {}, el("th", { scope: "row" }, difference.title, el("br"), el("code", {}, difference.component)),
      models.map((model, index) => el("td", { "data-label": model.name }, el("code", {}, setting(index ? difference.that : difference.this)))), el("td", { class: "fw-wide" }, rich(difference.explanation)),
      el("td", {}, difference.pairs.length ? difference.pairs.map((number) => {
        const step = stepsAt(number).find(Boolean);
        return el("a", { class: "fw-seen", href: stepAddress(number) }, `${step.function}, line ${step.line}`);
      }) : el("span", { class: "muted" }, "not in a forward pass"))))))) : el("p", {}, "They are made of the same components."));
}
