// What all pages share: the theme, data, elements without innerHTML, plots in the page's colours.
//
//   page.data("rows")                                  the parsed JSON of write_page(data={"rows": ...})
//   page.el("p", { class: "muted", title: "x" }, "text", page.el("b", {}, "bold"))    strings become text, never HTML;
//       "svg:rect" makes an SVG element; a function under "onclick" becomes a listener
//   page.onTheme((theme) => ...)                       now, and after each change: "light" or "dark"
//   page.colour("--accent")                            what a colour variable is in the theme of the moment
//   page.plot(element, traces, layout)                 Plotly; "--accent" in place of any colour follows the theme.
//       A legend of buttons replaces Plotly's (layout.showlegend: false leaves it out). Returns a promise of the drawing
"use strict";

const page = (() => {
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const listeners = [];

  // -- theme -------------------------------------------------------------------------------------------------------------

  const CHOICES = ["auto", "light", "dark"];

  // Browsers refuse storage to pages in a sandbox or opened from a disk: the choice then lasts as long as the page
  function remembered() {
    try {
      return CHOICES.includes(localStorage.getItem("theme")) ? localStorage.getItem("theme") : "auto";
    } catch {
      return "auto";
    }
  }

  function remember(value) {
    try {
      localStorage.setItem("theme", value);
    } catch {
      return false;
    }
    return true;
  }

  let choice = remembered();
  const theme = () => (choice === "auto" ? (dark.matches ? "dark" : "light") : choice);

  function applyTheme() {
    const changed = root.dataset.theme !== theme();
    root.dataset.theme = theme();
    const button = document.getElementById("theme");
    if (button) {
      button.textContent = `Theme: ${choice}`;
      button.title = "Switch between the system's colours, light and dark";
    }
    if (changed) listeners.forEach((callback) => callback(theme()));
  }

  function onTheme(callback) {
    listeners.push(callback);
    callback(theme());
  }

  function colour(name) {
    return getComputedStyle(root).getPropertyValue(name).trim();
  }

  // -- elements ----------------------------------------------------------------------------------------------------------

  const SVG = "http://www.w3.org/2000/svg";

  function el(tag, attributes = {}, ...children) {
    const element = tag.startsWith("svg:") ? document.createElementNS(SVG, tag.slice(4)) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes ?? {})) {
      if (typeof value === "function" && name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (/^on|^srcdoc$/i.test(name)) throw new Error(`page.el: ${name} takes a function`);
      else if (/^(xlink:)?href$|^src$|^action$/i.test(name) && !isHarmless(value)) throw new Error(`page.el: ${name}=${value}`);
      else if (value === true) element.setAttribute(name, "");
      else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
    }
    element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
    return element;
  }

  function isHarmless(address) {
    const scheme = /^\s*([^/?#]*?):/.exec(String(address));
    return scheme === null || ["http", "https", "data", "blob"].includes(scheme[1].toLowerCase());
  }

  function data(key) {
    return JSON.parse(document.getElementById(`data-${key}`).textContent);
  }

  // -- plots -------------------------------------------------------------------------------------------------------------

  const NAMES = [1, 2, 3, 4, 5, 6, 7, 8].map((number) => `--plot-${number}`);

  // "--accent" -> "#0067a3" everywhere in a trace or layout; arrays of numbers as they are
  function coloured(value) {
    if (typeof value === "string") return /^--[a-z][a-z0-9-]*$/.test(value) ? colour(value) : value;
    if (Array.isArray(value)) return typeof value[0] === "number" && typeof value.at(-1) === "number" ? value : value.map(coloured);
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, coloured(inner)]));
  }

  function themed() {
    const axis = {
      gridcolor: colour("--line"), linecolor: colour("--line"), zerolinecolor: colour("--muted"), zerolinewidth: 1,
      tickcolor: colour("--line"), automargin: true, title: { standoff: 8, font: { size: 12.5 } },
    };
    return {
      colorway: NAMES.map(colour),
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: colour("--sans"), size: 12.5, color: colour("--fg") },
      hoverlabel: { bgcolor: colour("--bg"), bordercolor: colour("--line"), font: { color: colour("--fg"), size: 12.5 }, align: "left" },
      modebar: { color: colour("--muted"), activecolor: colour("--accent"), bgcolor: "rgba(0,0,0,0)" },
      margin: { l: 12, r: 12, t: 12, b: 12 },
      // on a phone a finger scrolls the page; the buttons zoom
      dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
      xaxis: axis,
      yaxis: axis,
    };
  }

  const CONFIG = {
    responsive: true,
    displaylogo: false,
    // named one by one, since Plotly has buttons that send data away, and gets new ones
    modeBarButtons: [["toImage"], ["zoom2d", "pan2d"], ["zoomIn2d", "zoomOut2d", "resetScale2d"]],
  };

  // Plotly reads <b> and <a href> in its texts. What may be foreign is escaped here: names, ticks, categories, texts, customdata.
  // Hover templates and titles are our own, and may have <br>
  const FOREIGN = new Set(["name", "text", "hovertext", "ticktext", "customdata", "x", "y", "labels", "categoryarray"]);

  function plain(value) {
    if (typeof value === "string") return value.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
    return Array.isArray(value) ? value.map(plain) : value;
  }

  function escaped(part) {
    if (part === null || typeof part !== "object" || Array.isArray(part)) return part;
    return Object.fromEntries(Object.entries(part).map(([key, value]) => [key, FOREIGN.has(key) ? plain(value) : escaped(value)]));
  }

  const plots = new Map(); // element -> what draws it again

  async function plot(element, traces, layout = {}) {
    element.classList.add("plot");
    const own = structuredClone(traces);
    own.forEach((trace, index) => {
      // a colour for good, so that one trace keeps its colour when another is hidden
      const isScatter = trace.type === undefined || trace.type.startsWith("scatter");
      if (isScatter) trace.line = { color: trace.marker?.color ?? NAMES[index % 8], ...trace.line };
      if (isScatter || trace.type === "bar") trace.marker = { color: trace.line?.color ?? NAMES[index % 8], ...trace.marker };
    });
    const drawing = el("div", { class: "plot-drawing" });
    const named = own.filter((trace) => trace.name && trace.showlegend !== false);
    const hasLegend = layout.showlegend ?? named.length > 1;
    const draw = () => Plotly.react(drawing, escaped(coloured(own)), themedLayout(escaped(layout)), CONFIG);
    element.replaceChildren(...(hasLegend ? [legend(named, own, draw)] : []), drawing);
    plots.set(element, draw);
    await draw();
    return drawing;
  }

  onTheme(() => {
    for (const [element, draw] of plots) {
      if (element.isConnected) draw();
      else plots.delete(element);
    }
  });

  function themedLayout(layout) {
    const below = themed();
    const above = coloured(layout);
    const merged = mergedDeep({ ...below, hovermode: "closest" }, above);
    for (const key of Object.keys(above)) {
      if (/^[xy]axis\d+$/.test(key)) merged[key] = mergedDeep(below.xaxis, above[key]);
    }
    return { ...merged, showlegend: false };
  }

  function mergedDeep(below, above) {
    if (above === null || typeof above !== "object" || Array.isArray(above)) return above;
    const merged = { ...below };
    for (const [key, value] of Object.entries(above)) merged[key] = key in merged && typeof merged[key] === "object" ? mergedDeep(merged[key], value) : value;
    return merged;
  }

  // One button a name; all traces of a legendgroup are shown and hidden together
  function legend(named, traces, draw) {
    const seen = new Set();
    const items = [];
    for (const trace of named) {
      const group = trace.legendgroup ?? trace.name;
      if (seen.has(group)) continue;
      seen.add(group);
      const members = traces.filter((other) => (other.legendgroup ?? other.name) === group);
      const isShown = () => trace.visible !== "legendonly";
      const button = el("button", {
        type: "button",
        "aria-pressed": String(isShown()),
        title: "Show or hide",
        onclick: () => {
          const visible = isShown() ? "legendonly" : true;
          members.forEach((member) => { member.visible = visible; });
          button.setAttribute("aria-pressed", String(isShown()));
          draw();
        },
      }, sign(trace), trace.name);
      items.push(el("li", {}, button));
    }
    return el("ul", { class: "plot-legend", "aria-label": "Shown in the plot" }, items);
  }

  function sign(trace) {
    const name = trace.line?.color ?? (Array.isArray(trace.marker?.color) ? NAMES[0] : trace.marker?.color) ?? NAMES[0];
    const paint = name.startsWith("--") ? `var(${name})` : name;
    const svg = el("svg:svg", { width: 18, height: 10, viewBox: "0 0 18 10", "aria-hidden": "true", opacity: trace.opacity });
    const lines = (trace.mode ?? "lines").includes("lines") && trace.type !== "bar";
    const dash = { dot: "2 3", dash: "5 3", dashdot: "5 2 1 2" }[trace.line?.dash];
    if (lines) svg.append(el("svg:line", { x1: 0, y1: 5, x2: 18, y2: 5, "stroke-width": 2, "stroke-dasharray": dash, style: `stroke: ${paint}` }));
    if (trace.type === "bar") svg.append(el("svg:rect", { x: 3, y: 0, width: 12, height: 10, rx: 2, style: `fill: ${paint}` }));
    else if ((trace.mode ?? "").includes("markers")) svg.append(marker(trace.marker?.symbol ?? "circle", paint));
    return svg;
  }

  function marker(symbol, paint) {
    const style = symbol.endsWith("-open") ? `fill: none; stroke: ${paint}; stroke-width: 1.5` : `fill: ${paint}; stroke: ${paint}`;
    if (symbol.startsWith("line-ns")) return el("svg:line", { x1: 9, y1: 0, x2: 9, y2: 10, "stroke-width": 2, style });
    if (symbol.startsWith("square")) return el("svg:rect", { x: 5.5, y: 1.5, width: 7, height: 7, style });
    if (symbol.startsWith("diamond")) return el("svg:path", { d: "M9 0.5 L13.5 5 L9 9.5 L4.5 5 Z", style });
    return el("svg:circle", { cx: 9, cy: 5, r: 3.8, style });
  }

  // -- the page ----------------------------------------------------------------------------------------------------------

  // Boxes that scroll are reached with the keyboard as long as there is something to scroll
  function watchScrollers() {
    const look = (box) => {
      const scrolls = box.scrollWidth > box.clientWidth + 1;
      if (scrolls === box.hasAttribute("tabindex")) return;
      if (scrolls) {
        box.tabIndex = 0;
        box.setAttribute("role", "region");
        box.setAttribute("aria-label", box.dataset.label ?? (box.tagName === "PRE" ? "Text, scrolls sideways" : "Table, scrolls sideways"));
      } else ["tabindex", "role", "aria-label"].forEach((name) => box.removeAttribute(name));
    };
    const observer = new ResizeObserver((entries) => entries.forEach((entry) => look(entry.target)));
    document.querySelectorAll(".scroll, pre").forEach((box) => observer.observe(box));
  }

  applyTheme();
  dark.addEventListener("change", applyTheme);
  document.addEventListener("DOMContentLoaded", () => {
    applyTheme();
    document.getElementById("theme").addEventListener("click", () => {
      choice = CHOICES[(CHOICES.indexOf(choice) + 1) % CHOICES.length];
      remember(choice);
      applyTheme();
    });
    watchScrollers();
  });

  return { data, el, onTheme, colour, plot, theme };
})();
