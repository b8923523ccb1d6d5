// The plots of a report or a comparison, and its table of contents.
"use strict";

(() => {
  const charts = page.data("charts");
  const phone = matchMedia("(max-width: 40rem)");

  // A chart is drawn as it is; one that has variants, as the reader chose in its figure
  function draw(figure) {
    const pressed = figure.querySelector("button[data-variant][aria-pressed=true]");
    for (const element of figure.querySelectorAll("[data-plot]")) {
      const found = charts[element.dataset.plot];
      const chart = found?.variants ? found.variants[pressed?.dataset.variant] : found;
      element.parentElement.querySelector(".plot-note")?.remove();
      if (chart?.note) element.after(page.el("p", { class: "plot-note" }, chart.note));
      if (chart?.traces) page.plot(element, chart.traces, phone.matches ? narrow(chart.layout) : chart.layout);
      else element.replaceChildren(page.el("p", { class: "plot-empty" }, found?.empty ?? "Nothing to show yet."));
    }
  }

  // Long names would leave a phone no room for the numbers; the tables have them in full
  function narrow(layout) {
    const short = (text) => (text.length > 15 ? `${text.slice(0, 14)}…` : text);
    const ticks = layout.yaxis?.ticktext;
    return ticks ? { ...layout, yaxis: { ...layout.yaxis, ticktext: ticks.map(short) } } : layout;
  }

  const figures = [...document.querySelectorAll("figure.figure")];
  for (const figure of figures) {
    const buttons = [...figure.querySelectorAll("button[data-variant]")];
    for (const button of buttons) {
      button.addEventListener("click", () => {
        buttons.forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
        draw(figure);
      });
    }
    draw(figure);
  }
  phone.addEventListener("change", () => figures.forEach(draw));

  // -- contents ----------------------------------------------------------------------------------------------------------

  const contents = document.querySelector(".toc details");
  const beside = matchMedia("(min-width: 64.01rem)");
  const fold = () => { contents.open = beside.matches; };
  fold();
  beside.addEventListener("change", fold);

  const links = new Map([...contents.querySelectorAll("a")].map((link) => [link.hash.slice(1), link]));
  const headings = [...document.querySelectorAll("article h2[id]")];
  function mark() {
    const passed = headings.filter((heading) => heading.getBoundingClientRect().top < innerHeight / 3);
    const current = (passed.at(-1) ?? headings[0])?.id;
    links.forEach((link, id) => (id === current ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current")));
  }
  addEventListener("scroll", mark, { passive: true });
  mark();

  // a link to something folded away, and paper, unfold it
  const unfold = () => {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    for (let box = target; box; box = box.parentElement) if (box.tagName === "DETAILS") box.open = true;
  };
  addEventListener("hashchange", unfold);
  unfold();
  addEventListener("beforeprint", () => document.querySelectorAll("details.folded").forEach((box) => { box.open = true; }));
})();
