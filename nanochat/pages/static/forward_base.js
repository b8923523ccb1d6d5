// What the parts of the forward page share: the trace, numbers and tokens as people read them, heat maps.
//
// The forward page is several scripts that run in order and see each other's names: this one, forward_steps.js,
// forward_attention.js, forward_overviews.js, and forward.js, which starts them.
"use strict";

const { el } = page;
const models = page.data("models");
const pairs = page.data("pairs");
const differences = page.data("differences");
const COLOURS = ["--plot-1", "--plot-2"];
const isDouble = models.length > 1;
const byId = (id) => document.getElementById(id);
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

models.forEach((model, index) => {
  model.index = index;
  model.lensOf = new Map(model.lens.map((row) => [row.step, row]));
  model.residualOf = new Map(model.residual.map((row) => [row.step, row]));
  model.attentionOf = new Map(model.attention.map((row) => [row.step, row]));
  model.numLayers = model.config.n_layer;
});

// -- texts and numbers ---------------------------------------------------------------------------------------------------

// Four significant digits, so that a column can be read down: 0.01234, 12.34, 1.23e-7
function figure(value) {
  if (value === null || value === undefined) return "–";
  if (Number.isInteger(value) && Math.abs(value) < 1e6) return withMinus(String(value));
  const size = Math.abs(value);
  if (size < 1e-3 || size >= 1e6) return withMinus(value.toExponential(1));
  return withMinus(value.toFixed(clamp(3 - Math.floor(Math.log10(size)), 0, 5)));
}

// Three, without zeros at the end: for sentences and axes
const brief = (value) => withMinus(String(Number(value.toPrecision(3))));
const withMinus = (text) => text.replace(/^-/, "−");

const percent = (share) =>
  (share >= 0.9995 ? "100 %" : share >= 0.0995 ? `${Math.round(100 * share)} %` : share >= 0.001 ? `${(100 * share).toFixed(1)} %` : "< 0.1 %").replace(/ /g, "\u00a0");

// The blanks of a token are part of it, so they are shown: a faint dot each
const spelled = (text) => text.split(/( )/).filter((part) => part !== "").map((part) => (part === " " ? el("span", { class: "fw-blank" }, "·") : part));

// `code` between backticks
const rich = (text) => text.split("`").map((part, index) => (index % 2 ? el("code", {}, part) : part));

const tokenSign = (text, attributes = {}) =>
  el("span", { ...attributes, class: `fw-token ${/^<\|.*\|>$/.test(text) ? "is-special" : ""} ${attributes.class ?? ""}` }, spelled(text));

const word = (model, id) => model.vocabulary[id] ?? String(id);
const counted = (count, name) => `${count} ${name}${count === 1 ? "" : "s"}`;
const quoted = (text) => `“${text}”`;
const layerName = (layer) => (layer === null ? "embedding" : `block ${layer + 1}`);

function modelName(model) {
  return el("span", { class: "fw-model" }, el("i", { class: "fw-dot", style: `background: var(${COLOURS[model.index]})` }), model.name);
}

function setting(value) {
  return value === null ? "none" : value === true ? "yes" : value === false ? "no" : String(value);
}

const columns = (make) => models.map((model) => el("div", { class: "fw-column", "data-model": model.index }, isDouble ? el("h3", { class: "fw-column-title" }, modelName(model)) : null, make(model)));

// A caution where numbers are those of random weights
const caution = (model) => (model.is_trained ? null : el("p", { class: "fw-caution" }, "This model is untrained: its weights are as they were drawn. Code, shapes and sizes are real; what it says means nothing."));

// -- pictures ------------------------------------------------------------------------------------------------------------

const bytes = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));

function rgb(name) {
  const value = parseInt(page.colour(name).slice(1), 16);
  return [value >> 16, (value >> 8) & 255, value & 255];
}

// level -> colour: orange below zero, blue above it, the page's own colour at zero
function palette(signed) {
  const [zero, above, below, none] = ["--bg", "--plot-1", "--plot-2", "--line"].map(rgb);
  const mix = (colour, share) => colour.map((part, i) => Math.round(zero[i] + (part - zero[i]) * Math.pow(share, 0.7)));
  return Array.from({ length: 256 }, (_, level) => {
    if (level === 0) return none;
    const share = signed ? (level - 128) / 127 : (level - 1) / 254;
    return mix(share < 0 ? below : above, Math.abs(share));
  });
}

const drawings = new Set();
page.onTheme(() => {
  for (const drawing of [...drawings]) {
    if (drawing.canvas.isConnected) drawing.draw();
    else drawings.delete(drawing);
  }
});

// A canvas of columns x rows dots that CSS stretches; drawn again when the theme changes
function bitmap(columns, rows, level, signed, attributes) {
  const canvas = el("canvas", { width: columns, height: rows, role: "img", ...attributes });
  const draw = () => {
    const context = canvas.getContext("2d");
    const image = context.createImageData(columns, rows);
    const colours = palette(signed);
    for (let i = 0; i < columns * rows; i++) {
      const colour = colours[level(i)];
      image.data.set([colour[0], colour[1], colour[2], 255], 4 * i);
    }
    context.putImageData(image, 0, 0);
  };
  draw();
  drawings.add({ canvas, draw });
  return canvas;
}

// What a byte of a picture stands for
function valueOf(picture, level) {
  if (level === 0) return null;
  return picture.scale * (picture.signed ? (level - 128) / 127 : (level - 1) / 254);
}

// Calls `show` with the row and column under the pointer, and with nothing when it leaves
function followPointer(canvas, show) {
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    const at = (position, start, length, count) => clamp(Math.floor(((position - start) / length) * count), 0, count - 1);
    show(at(event.clientY, box.top, box.height, canvas.height), at(event.clientX, box.left, box.width, canvas.width));
  });
  canvas.addEventListener("pointerleave", () => show());
}

function heatMap(model, entry) {
  const picture = model.pictures[entry.picture];
  const levels = bytes(picture.data);
  const tokens = model.tokens.map((token) => token.text);
  const rowsAreTokens = picture.rows === tokens.length;
  const readout = el("p", { class: "fw-readout" });
  const rest = caption(picture, entry, rowsAreTokens || picture.rows * picture.row_step >= tokens.length);
  readout.textContent = rest;
  const say = (plane, row, column) => {
    if (row === undefined) {
      readout.textContent = rest;
      return;
    }
    const value = valueOf(picture, levels[(plane * picture.rows + row) * picture.columns + column]);
    const token = rowsAreTokens ? quoted(tokens[row]) : `row ${row * picture.row_step + 1}`;
    readout.textContent = `${token}, ${place(picture, tokens, plane, column, rowsAreTokens)}: ${value === null ? "masked" : figure(value)}`;
  };
  const pictures = Array.from({ length: picture.planes }, (_, plane) => {
    const canvas = bitmap(picture.columns, picture.rows, (i) => levels[plane * picture.rows * picture.columns + i], picture.signed, {
      "aria-label": `${entry.name}: ${rest}`,
    });
    followPointer(canvas, (row, column) => say(plane, row, column));
    return canvas;
  });
  if (picture.planes > 1) {
    const grid = el("div", { class: "fw-planes" }, pictures.map((canvas, plane) => el("figure", {}, canvas, el("figcaption", {}, `head ${plane + 1}`))));
    return el("div", { class: "fw-heat" }, grid, readout, scaleBar(picture));
  }
  const height = picture.rows === 1 ? 22 : clamp(Math.round(330 / picture.rows), 5, 17);
  const canvas = pictures[0];
  canvas.style.height = `${height * picture.rows}px`;
  const labels = rowsAreTokens && height >= 9 && tokens.length > 1
    ? el("div", { class: "fw-rows", "aria-hidden": "true", style: `line-height: ${height}px; font-size: ${Math.min(11, height - 1)}px` }, tokens.map((text) => el("span", {}, spelled(text))))
    : null;
  const frame = el("div", { class: "fw-frame" }, canvas, picture.heads > 1 ? el("i", { class: "fw-cuts", style: `background-size: calc(100% / ${picture.heads}) 100%` }) : null);
  return el("div", { class: "fw-heat" }, el("div", { class: "fw-labelled" }, labels, frame), readout, scaleBar(picture));
}

function caption(picture, entry, rowsAreTokens) {
  const count = picture.row_step > 1 || picture.column_step > 1 ? picture.row_step * picture.column_step : 1;
  const cell = count > 1 ? `; a cell shows the one furthest from zero of ${count}` : "";
  if (picture.planes > 1 || (entry.letters ?? "").endsWith("T, S")) return `A row looks, a column is looked at${cell}`;
  const width = entry.shape[entry.shape.length - 1];
  const across = picture.heads > 1 ? `${picture.heads} heads × ${width}` : `${width} numbers`;
  return `${rowsAreTokens ? "Down: tokens. " : ""}Across: ${across}${cell}`;
}

function place(picture, tokens, plane, column, rowsAreTokens) {
  if (picture.planes > 1) return `head ${plane + 1}, at ${picture.column_step === 1 ? quoted(tokens[column] ?? "") : `column ${column + 1}`}`;
  if (picture.columns === picture.rows && rowsAreTokens && picture.column_step === 1 && picture.heads === 1 && picture.columns === tokens.length) return `at ${quoted(tokens[column])}`;
  const each = picture.columns / picture.heads;
  const first = (column % each) * picture.column_step + 1;
  const numbers = picture.column_step > 1 ? `numbers ${first} to ${first + picture.column_step - 1}` : `number ${first}`;
  return picture.heads > 1 ? `head ${Math.floor(column / each) + 1}, ${numbers}` : numbers;
}

function scaleBar(picture, end = figure(picture.scale)) {
  return el("div", { class: `fw-scale ${picture.signed ? "is-signed" : ""}`, "aria-hidden": "true" },
    el("span", {}, picture.signed ? figure(-picture.scale) : "0"), el("i"), el("span", {}, end));
}

// Tokens with their chances as bars
function ranking(model, entries, note) {
  const largest = Math.max(...entries.map(([, chance]) => chance), 1e-9);
  return el("ol", { class: "fw-ranking", "aria-label": note },
    entries.map(([id, chance]) => el("li", {}, tokenSign(word(model, id)),
      el("span", { class: "fw-bar" }, el("i", { style: `width: ${(100 * chance) / largest}%; background: var(${COLOURS[model.index]})` })),
      el("span", { class: "num" }, percent(chance)))));
}
