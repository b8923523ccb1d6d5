// The page of a recorded training step: text coloured by its losses, plots, pictures of matrices, and what lies behind each value.
"use strict";

(() => {
  const { el, plot } = page;
  const step = page.data("step");
  const byId = (id) => document.getElementById(id);

  // -- numbers ---------------------------------------------------------------------------------------------------------------

  // As in step_page.py: three digits, a real minus sign
  function short(value, digits = 3) {
    if (value === null || value === undefined) return "–";
    if (value === Math.trunc(value) && Math.abs(value) < 1e7) return value.toLocaleString("en").replace("-", "−");
    const size = Math.abs(value);
    if (size >= 1e-3 && size < 1e6) {
      const decimals = Math.max(0, digits - 1 - Math.floor(Math.log10(size)));
      return value.toLocaleString("en", { minimumFractionDigits: decimals, maximumFractionDigits: decimals }).replace("-", "−");
    }
    return value.toExponential(digits - 1).replace("e+", "e").replaceAll("-", "−");
  }

  const percent = (share) => (share < 0.001 ? `${short(100 * share, 2)} %` : `${(100 * share).toFixed(1)} %`);
  const plain = (name) => name.replace(/\.weight$/, "");
  // Blocks are counted from 1, as on the forward page; the code counts from 0
  const blockName = (block) => `block ${block + 1} of ${step.num_blocks} (blocks.${block})`;
  // As in step_page.py: attn.c_q, block 3 of 4 (blocks.2)
  const placed = (name) => plain(name).replace(/^blocks\.(\d+)\.(.+)$/, (_, block, inside) => `${inside}, ${blockName(Number(block))}`);

  // -- a text whose tokens have colours ----------------------------------------------------------------------------------------

  // shade(token): from 0 to 1 for the first colour, to -1 for the second, or null; details(token): elements for the box below
  function colouredText(text, detail, tokens, label, details, first) {
    let chosen = -1;
    const spans = tokens.map((token, index) =>
      el("span", { class: "st-t", role: "option", id: `${text.id}-${index}`, "aria-selected": "false", onpointerenter: () => choose(index), onclick: () => choose(index) },
        readable(token.text)));
    const box = el("div", { class: "st-tokens", role: "listbox", tabindex: "0", "aria-label": label, onkeydown: onKey });
    spans.forEach((span, index) => {
      box.append(span);
      if (tokens[index].text.endsWith("␊")) box.append(el("br"));
    });
    text.replaceChildren(box);

    function choose(index) {
      if (!tokens[index]) return;
      spans[chosen]?.setAttribute("aria-selected", "false");
      spans[index].setAttribute("aria-selected", "true");
      box.setAttribute("aria-activedescendant", spans[index].id);
      chosen = index;
      detail.replaceChildren(...(details(tokens[index]) ?? [el("p", {}, token(tokens[index].text), " was given, or does not count here: it costs nothing.")]));
    }

    function onKey(event) {
      const by = { ArrowLeft: -1, ArrowRight: 1, Home: -chosen, End: tokens.length - 1 - chosen }[event.key];
      if (by === undefined) return;
      event.preventDefault();
      choose(Math.min(tokens.length - 1, Math.max(0, chosen + by)));
      spans[chosen].scrollIntoView({ block: "nearest" });
    }

    function paint(shade) {
      spans.forEach((span, index) => {
        const value = shade(tokens[index]);
        span.classList.toggle("given", value === null);
        span.style.setProperty("--share", `${Math.round(62 * Math.min(1, Math.abs(value ?? 0)))}%`);
        span.classList.toggle("less", (value ?? 0) < 0);
      });
    }

    choose(Math.max(0, first));
    return paint;
  }

  // the sign of a line's end is in few fonts
  const readable = (text) => text.replaceAll("␊", "↵");
  const token = (text) => el("span", { class: "st-token" }, text.trim() === "" ? text.replaceAll(" ", "␣") : readable(text));

  function scale(element, ...marks) {
    element.replaceChildren(...marks.map(([label, share, isLess]) =>
      el("span", { class: "st-mark" }, el("i", { class: isLess ? "less" : null, style: `--share: ${Math.round(62 * share)}%` }), label)));
  }

  // buttons of which one is pressed
  function choice(element, labels, onChoose) {
    const buttons = labels.map((label, index) => el("button", { type: "button", "aria-pressed": "false", onclick: () => press(index) }, label));
    const press = (index) => {
      buttons.forEach((button, other) => button.setAttribute("aria-pressed", String(other === index)));
      onChoose(index);
    };
    element.replaceChildren(...(buttons.length > 1 ? buttons : []));
    press(0);
  }

  function showLosses() {
    const counted = step.tokens.filter((one) => one.loss !== undefined);
    const most = fullColour([0.5, 1, 2, 4, 6], counted.map((one) => one.loss));
    const far = fullColour([0.25, 0.5, 1, 2, 3], counted.map((one) => Math.abs(one.after - one.loss)));
    const nats = [["0 nats", 0], [short(most / 4), 0.25], [short(most / 2), 0.5], [`${most} and more`, 1]];
    const paint = colouredText(byId("loss-text"), byId("loss-detail"), step.tokens, "Text of the step", (one) => {
      if (one.loss === undefined) return null;
      const best = Math.max(one.p, ...one.preferred.map(([, share]) => share));
      const rows = one.preferred.some(([text]) => text === one.text) ? one.preferred : [...one.preferred, [one.text, one.p]];
      return [
        el("p", {}, token(one.text), " had a probability of ", el("b", {}, percent(one.p)), `, ${place(one.rank)}: `,
          el("b", {}, `${short(one.loss, 4)} nats`), " before the step, ", el("b", {}, `${short(one.after, 4)} nats`), " after it."),
        el("div", { class: "st-bars" }, rows.map(([text, share]) => [
          el("span", { class: "st-name" }, token(text)),
          el("span", { class: "st-bar" }, el("i", { class: text === one.text ? "hit" : null, style: `width: ${Math.max(0.4, (100 * share) / best)}%` })),
          el("span", { class: "num" }, percent(share)),
        ])),
      ];
    }, worst(step.tokens, (one) => one.loss));
    const ways = [
      ["loss before", (one) => one.loss / most, nats],
      ["loss after", (one) => one.after / most, nats],
      ["change", (one) => (one.after - one.loss) / far, [[`${far} nats better`, 1, true], [`${short(far / 2)} better`, 0.5, true], ["as before", 0], [`${short(far / 2)} worse`, 0.5], [`${far} worse`, 1]]],
    ];
    choice(byId("loss-choice"), ways.map(([label]) => label), (index) => {
      paint((one) => (one.loss === undefined ? null : ways[index][1](one)));
      scale(byId("loss-legend"), ...ways[index][2], ["given, not counted", 0]);
      byId("loss-legend").lastElementChild.classList.add("given");
    });
  }

  // the value at which a token has its full colour: the first of some round ones that all values stay below, or the last
  const fullColour = (marks, values) => marks.find((mark) => values.every((value) => value <= mark)) ?? marks[marks.length - 1];

  // the place of the token that costs most
  function worst(tokens, cost) {
    return tokens.reduce((best, one, index) => ((cost(one) ?? -1) > (cost(tokens[best]) ?? -1) ? index : best), 0);
  }

  const place = (rank) => (rank === 1 ? "the likeliest token" : `in place ${rank.toLocaleString("en")} of all tokens`);

  function showBits() {
    const bits = (one) => one.nats / Math.LN2;
    const most = fullColour([0.25, 0.5, 1, 2, 4], step.bpb.tokens.filter((one) => one.bytes).map((one) => bits(one) / one.bytes));
    const paint = colouredText(byId("bpb-text"), byId("bpb-detail"), step.bpb.tokens, "Validation text", (one) => {
      if (one.nats === undefined) return null;
      const parts = [token(one.text), ` costs ${short(one.nats, 4)} nats = ${short(bits(one), 4)} bits`];
      if (!one.bytes) return [el("p", {}, ...parts, ". It stands for no text, so it is left out.")];
      return [el("p", {}, ...parts, ` and is ${one.bytes} byte${one.bytes === 1 ? "" : "s"} long: `, el("b", {}, `${short(bits(one) / one.bytes, 4)} bits a byte`), ".")];
    }, worst(step.bpb.tokens, (one) => (one.bytes ? one.nats / one.bytes : undefined)));
    paint((one) => (one.bytes ? bits(one) / one.bytes / most : null));
    scale(byId("bpb-legend"), ["0 bits a byte", 0], [short(most / 4), 0.25], [short(most / 2), 0.5], [`${most} and more`, 1], ["not counted", 0]);
    byId("bpb-legend").lastElementChild.classList.add("given");
  }

  // -- pictures of matrices ------------------------------------------------------------------------------------------------------

  function rgb(name) {
    const canvas = rgb.canvas ??= document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    canvas.fillStyle = page.colour(name);
    canvas.fillRect(0, 0, 1, 1);
    return canvas.getImageData(0, 0, 1, 1).data;
  }

  // Bytes as in pictures.py: 0 is no number, 1..255 are -scale..scale
  function draw(canvas, picture) {
    const [ground, above, below, empty] = [rgb("--bg"), rgb("--plot-2"), rgb("--plot-1"), rgb("--line")];
    const bytes = atob(picture.data);
    const image = new ImageData(picture.columns, picture.rows);
    for (let i = 0; i < bytes.length; i++) {
      const byte = bytes.charCodeAt(i);
      const value = (byte - 128) / 127;
      const [from, to, share] = byte === 0 ? [empty, empty, 1] : [ground, value > 0 ? above : below, Math.sqrt(Math.abs(value))];
      for (let c = 0; c < 3; c++) image.data[4 * i + c] = from[c] + (to[c] - from[c]) * share;
      image.data[4 * i + 3] = 255;
    }
    [canvas.width, canvas.height] = [picture.columns, picture.rows];
    canvas.getContext("2d").putImageData(image, 0, 0);
  }

  const canvases = new Map();
  function matrixPicture(picture, title, explanation) {
    const canvas = el("canvas", { role: "img", "aria-label": [title, explanation].filter(Boolean).join(": ") || "Picture of its numbers" });
    canvases.set(canvas, picture);
    draw(canvas, picture);
    const every = picture.row_step === 1 && picture.column_step === 1 ? "" : `, every ${ordinal(picture.row_step)} row, ${ordinal(picture.column_step)} column`;
    return el("figure", { class: "st-picture" }, el("b", {}, title), canvas,
      el("figcaption", {}, `${explanation} Full colour: ±${short(picture.scale)}${every}.`));
  }

  const ordinal = (n) => (n === 1 ? "" : `${n}${["th", "st", "nd", "rd"][n % 10 > 3 || Math.floor((n % 100) / 10) === 1 ? 0 : n % 10]}`);

  // -- gradient ------------------------------------------------------------------------------------------------------------------

  // One line a kind of matrix over the blocks; what is outside of them stands before or behind
  function overBlocks(key, title, isPercent) {
    const kinds = [...new Set(step.components.filter((c) => c.block !== null).map((c) => c.kind))];
    const blocks = [...new Set(step.components.filter((c) => c.block !== null).map((c) => c.block))];
    const outside = step.components.filter((c) => c.block === null);
    const isBefore = (c) => ["wte", "wpe", "ln_emb"].includes(c.name);
    const names = [...outside.filter(isBefore).map((c) => c.name), ...blocks.map((b) => `block ${b + 1}`), ...outside.filter((c) => !isBefore(c)).map((c) => c.name)];
    const factor = isPercent ? 100 : 1;
    const value = (c) => (c[key] > 0 ? factor * c[key] : null); // a logarithmic axis has no zero
    const hover = `%{text}: %{y:.3~g}${isPercent ? " %" : ""}<extra></extra>`;
    const symbols = ["circle", "square", "diamond", "circle-open", "square-open", "diamond-open"];
    const traces = kinds.map((kind, index) => {
      const own = step.components.filter((c) => c.kind === kind && c.block !== null);
      return { name: kind, x: own.map((c) => `block ${c.block + 1}`), y: own.map(value), text: own.map((c) => placed(c.name)), mode: "lines+markers", marker: { symbol: symbols[index % 6], size: 8, color: `--plot-${(index % 8) + 1}` }, line: { color: `--plot-${(index % 8) + 1}`, width: 1.5 }, hovertemplate: hover };
    });
    traces.push({ name: "outside of the blocks", x: outside.map((c) => c.name), y: outside.map(value), text: outside.map((c) => c.name), mode: "markers", marker: { color: "--fg", size: 11 }, hovertemplate: hover });
    const values = step.components.map(value);
    return [traces, {
      height: 340,
      xaxis: { type: "category", categoryorder: "array", categoryarray: names, showgrid: false },
      yaxis: { type: "log", title: { text: title }, ...logTicks(values, isPercent ? " %" : "") },
    }];
  }

  // Ticks of a logarithmic axis written out: Plotly writes 0.5 as a small 5
  function logTicks(values, suffix = "") {
    const logs = values.filter((value) => value > 0).map(Math.log10);
    if (!logs.length) return {};
    const [low, high] = [Math.min(...logs), Math.max(...logs)];
    const marks = high - low < 2.5 ? [1, 2, 5] : [1];
    const powers = Array.from({ length: Math.ceil(high) - Math.floor(low) + 1 }, (_, i) => Math.floor(low) + i);
    const ticks = powers.flatMap((power) => marks.map((mark) => Number(`${mark}e${power}`)));
    return { tickmode: "array", tickvals: ticks, ticktext: ticks.map((tick) => (tick < 1e-6 ? short(tick, 1) : tick.toLocaleString("en", { maximumFractionDigits: 6 })) + suffix) };
  }

  // -- Muon ----------------------------------------------------------------------------------------------------------------------

  function showMuon() {
    choice(byId("muon-choice"), step.muon.map((matrix) => placed(matrix.name)), (index) => {
      const matrix = step.muon[index];
      const count = Math.min(...matrix.shape);
      const carriedBy = (name) => `Carried by ${short(matrix.stages.find((stage) => stage.stage === name).directions, 2)} of ${count} directions.`;
      byId("muon-pictures").replaceChildren(
        matrixPicture(matrix.pictures.gradient, "Gradient", carriedBy("gradient")),
        matrixPicture(matrix.pictures.update, "Update", carriedBy("update")),
        matrixPicture(matrix.pictures.weight, "Weights before", "What the training made."),
        matrixPicture(matrix.pictures.after, "Weights after", `Moved by ${matrix.relative === null ? "–" : percent(matrix.relative)} of their length.`),
      );
      const stages = matrix.stages.filter((stage) => stage.stage === "gradient" || stage.stage.startsWith("round"));
      const start = matrix.stages.find((stage) => stage.stage === "look-ahead");
      const curves = [["gradient", stages[0], stages[0].norm], ["look-ahead, scaled", start, start.norm], ...stages.slice(1).map((stage) => [stage.stage, stage, 1])];
      const traces = curves.map(([name, stage, length], number) => ({
        name,
        x: matrix.places,
        y: stage.singular.map((value) => (value > 0 && length > 0 ? value / length : null)),
        mode: "lines",
        line: number < 2 ? { color: number === 0 ? "--muted" : "--plot-1", dash: number === 0 ? "dot" : "solid", width: 2 } : { color: `--round-${number - 1}`, width: number === curves.length - 1 ? 3 : 1.5 },
        hovertemplate: `${name}, number %{x}: %{y:.3~g}<extra></extra>`,
      }));
      plot(byId("muon-plot"), traces, {
        height: 380,
        xaxis: { title: { text: "singular values, from the largest to the smallest" } },
        yaxis: { type: "log", title: { text: "singular value" }, exponentformat: "power", dtick: 1, range: [-4, 0.4] },
      });
      byId("muon-caption").textContent = `All ${count} singular values of ${placed(matrix.name)}: gradient and look-ahead divided by their lengths. ` +
        "Each round lifts the small ones and leaves the large ones near 1.";
    });
  }

  // -- AdamW ---------------------------------------------------------------------------------------------------------------------

  function showAdamW() {
    choice(byId("adamw-choice"), step.adamw.map((table) => plain(table.name)), (index) => {
      const table = step.adamw[index];
      const boxes = ["adamw-scatter", "adamw-histogram"].map(byId);
      boxes.forEach((box) => { box.hidden = table.sample === null; });
      if (table.sample !== null) scatter(table, ...boxes);
      byId("adamw-pictures").replaceChildren(
        matrixPicture(table.pictures.gradient, "Gradient of some rows", "Upper half: rows of tokens of this text; lower half: of others."),
        matrixPicture(table.pictures.moved, "How these rows moved", table.num_rows.moved_without_gradient ? "The same rows and columns. Some rows without a gradient move: their tokens occurred in the step before." : "The same rows and columns: every number goes about as far."),
      );
    });
  }

  function scatter(table, dots, bars) {
    const { gradient, moved } = table.sample;
    const rate = table.one.lr;
    const [low, high] = [Math.min(...gradient), Math.max(...gradient)];
    // plain gradient descent with a rate that would move the middle number as far
    const descent = table.spread.moved.middle / table.spread.gradient.middle;
    const traces = [{ name: "a number of the table", x: gradient, y: moved, mode: "markers", marker: { size: 4, opacity: 0.55, color: "--plot-1" }, hovertemplate: "gradient %{x:.2e}, moved %{y:.2e}<extra></extra>" }];
    if (rate) traces.push({ name: "the rate", x: [low, high], y: [rate, rate], mode: "lines", line: { color: "--plot-3", width: 2 }, hoverinfo: "skip" });
    traces.push({ name: "plain gradient descent", x: [low, high], y: [low * descent, high * descent], mode: "lines", line: { color: "--plot-2", dash: "dash", width: 2 }, hoverinfo: "skip" });
    const axis = { type: "log", exponentformat: "power", dtick: 1 };
    const top = Math.log10(Math.max(rate ?? 0, ...moved));
    plot(dots, traces, { height: 360, xaxis: { ...axis, title: { text: "size of the gradient" } }, yaxis: { ...axis, title: { text: "how far the number moved" }, range: [top - 3.5, top + 0.7] } });
    byId("adamw-scatter-caption").textContent = `${gradient.length} numbers of ${plain(table.name)}. Their gradients span ${short(table.spread.gradient.decades, 2)} powers of ten, their moves ${short(table.spread.moved.decades, 2)} (98 of 100 numbers).`;
    const { middles } = table.histogram;
    plot(bars, [
      { name: "gradients", type: "bar", x: middles, y: table.histogram.gradient.map((v) => 100 * v), marker: { color: "--plot-8" }, opacity: 0.65, hovertemplate: "%{y:.2~f} % of the gradients<extra></extra>" },
      { name: "moves", type: "bar", x: middles, y: table.histogram.moved.map((v) => 100 * v), marker: { color: "--plot-1" }, opacity: 0.65, hovertemplate: "%{y:.2~f} % of the moves<extra></extra>" },
    ], {
      height: 360, barmode: "overlay", bargap: 0,
      xaxis: { title: { text: "size, compared with the middle one" }, tickvals: powers(middles), ticktext: powers(middles).map(powerOfTen) },
      yaxis: { title: { text: "share of the numbers" }, ticksuffix: " %" },
    });
    byId("adamw-histogram-caption").textContent = "How far sizes are from the middle one, in powers of ten: gradients are spread wide, moves are nearly alike.";
  }

  const powerOfTen = (p) => (p === 0 ? "1" : `10${p < 0 ? "⁻" : ""}${[...String(Math.abs(p))].map((d) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[d]).join("")}`);

  function powers(middles) {
    const [first, last] = [Math.round(middles[0]), Math.round(middles[middles.length - 1])];
    return Array.from({ length: last - first + 1 }, (_, i) => first + i);
  }

  // -- the schedule --------------------------------------------------------------------------------------------------------------

  function showSchedule() {
    const { steps, scale: share, momentum, trained } = step.schedule;
    const now = step.setting.step;
    const mark = { type: "line", xref: "x", yref: "paper", x0: now, x1: now, y0: 0, y1: 1, line: { color: "--accent2", width: 2, dash: "dot" } };
    const layout = { height: 300, shapes: [mark], xaxis: { title: { text: "step of the training" }, range: [0, Math.max(1, step.setting.num_steps)] } };
    plot(byId("schedule-plot"), [
      { name: "share of the full rates", x: steps, y: share, mode: "lines", line: { color: "--plot-1", width: 2.5 }, hovertemplate: "step %{x:,}: %{y:.3~g} of the full rates<extra></extra>" },
      { name: "this step", x: [now], y: [step.setting.lr_scale], mode: "markers", marker: { color: "--plot-2", size: 11, symbol: "diamond" }, hovertemplate: "step %{x:,}: %{y:.3~g} of the full rates<extra></extra>" },
    ], { ...layout, yaxis: { rangemode: "tozero", title: { text: "share of the full rates" } } });
    plot(byId("momentum-plot"), [
      { name: "Muon's momentum", x: steps, y: momentum, mode: "lines", line: { color: "--plot-3", width: 2.5 }, hovertemplate: "step %{x:,}: momentum %{y:.4~g}<extra></extra>" },
      { name: "in the step shown", x: [now], y: [step.setting.momentum], mode: "markers", marker: { color: "--plot-2", size: 11, symbol: "diamond" }, hovertemplate: "momentum of the step shown, the second of a fresh optimizer: %{y:.4~g}<extra></extra>" },
    ], { ...layout, yaxis: { title: { text: "Muon's momentum" } } });
    if (!byId("trained-plot")) return;
    plot(byId("trained-plot"), [
      { name: "loss", x: trained.map((row) => row.step), y: trained.map((row) => row.loss), mode: "lines", line: { color: "--plot-1", width: 1.5 }, hovertemplate: "step %{x:,}: loss %{y:.4~g}<extra></extra>" },
      { name: "length of the gradient", x: trained.map((row) => row.step), y: trained.map((row) => row.grad_norm), mode: "lines", line: { color: "--plot-2", width: 1.5 }, hovertemplate: "step %{x:,}: gradient %{y:.3~g}<extra></extra>" },
    ], { ...layout, yaxis: { type: "log", title: { text: "nats a token; length" }, ...logTicks(trained.flatMap((row) => [row.loss, row.grad_norm])) } });
  }

  // -- the code ------------------------------------------------------------------------------------------------------------------

  function openValue(button) {
    const line = button.closest(".st-line");
    const isOpen = button.getAttribute("aria-expanded") === "true";
    button.setAttribute("aria-expanded", String(!isOpen));
    if (isOpen) {
      line.nextElementSibling.remove();
      return;
    }
    const events = step.code.find((code) => code.function === line.dataset.function).events.filter((event) => event.line === Number(line.dataset.line));
    const values = events.flatMap((event, round) => event.values.map((value) => valueBox(value, event.letters, events.length > 1 ? `round ${round + 1}: ` : "")));
    line.after(el("div", { class: "st-more", role: "row" }, el("div", { role: "cell", class: "st-values" }, values)));
  }

  function valueBox(value, letters, prefix) {
    const name = value.name === "return" ? "what it returns" : value.name;
    const shape = value.shape ? `${value.shape.map((n) => n.toLocaleString("en")).join(" × ")}${letters ? ` (${letters})` : ""}, ${value.dtype}` : value.text ?? short(value.number, 6);
    const rows = !/^b?float/.test(value.dtype ?? "") || value.mean === undefined ? [] : [["mean", value.mean], ["spread", value.std], ["smallest", value.min], ["largest", value.max]];
    const box = el("div", { class: "st-box" }, el("b", {}, prefix, el("code", {}, name)), " ", el("span", { class: "muted small" }, shape));
    if (value.place !== undefined) box.append(el("p", { class: "muted small" }, `Numbers and picture: matrix ${value.place + 1} of the ${value.shape[0]}.`));
    if (rows.length) box.append(el("dl", { class: "st-stats" }, rows.map(([key, v]) => [el("dt", {}, key), el("dd", { class: "num" }, short(v, 4))])));
    if (value.picture) box.append(matrixPicture(value.picture, "", ""));
    return box;
  }

  // -- all of it -----------------------------------------------------------------------------------------------------------------

  showLosses();
  showBits();
  plot(byId("gradient-plot"), ...overBlocks("gradient", "length of the gradient, not clipped", false));
  plot(byId("after-plot"), ...overBlocks("relative", "moved, share of its length", true));
  showMuon();
  showAdamW();
  showSchedule();
  document.querySelectorAll(".st-value button").forEach((button) => button.addEventListener("click", () => openValue(button)));
  page.onTheme(() => canvases.forEach((picture, canvas) => (canvas.isConnected ? draw(canvas, picture) : canvases.delete(canvas))));
})();
