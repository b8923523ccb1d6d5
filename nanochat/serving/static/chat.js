// The chat page: asks the server that it came from, and shows what the model says, only ever as text.
//
// The conversation lives in this tab: in `exchanges`, and in sessionStorage, so that a reload keeps it. An exchange is
//   { question, parts: [{type, text}], state: "none" | "running" | "done" | "stopped" | "broken", note, figures }
// and everything on the screen is drawn from it.
"use strict";

(() => {
  const el = page.el;
  const $ = (id) => document.getElementById(id);
  const SECONDS_BETWEEN_LOOKS = 3;
  const MOST_BYTES = 60_000; // of a conversation that is sent; the server takes 64 KiB
  const MOST_MESSAGES = 120;

  const EXAMPLES = {
    chat: ["Who are you?", "What can you do?", "Anna has 7 stamps and gets 5 more. How many stamps does Anna have now?"],
    base: ["The capital of France is", "Once upon a time", "The red house is next to the"],
  };

  let model = null; // what the server says about it
  let exchanges = [];
  let previous = []; // before "New"
  let running = null; // AbortController of the answer that is being made
  let isEditing = false;
  let looking = null; // timer, while the server does not answer

  // -- what the tab keeps ------------------------------------------------------------------------------------------------

  // Some browsers refuse storage; the conversation then lasts until the page is closed or loaded again
  function keep(name, value) {
    try {
      sessionStorage.setItem(`nanochat-${name}`, JSON.stringify(value));
    } catch {
      return false;
    }
    return true;
  }

  function kept(name) {
    try {
      return JSON.parse(sessionStorage.getItem(`nanochat-${name}`));
    } catch {
      return null;
    }
  }

  // The key comes in the address once, behind the #, which browsers do not send to anybody
  function takeKey() {
    const found = /^#key=([\w-]+)$/.exec(location.hash);
    if (!found) return kept("key");
    keep("key", found[1]);
    history.replaceState(null, "", location.pathname);
    return found[1];
  }

  let key = takeKey();

  function keepConversation() {
    keep("conversation", { model: model?.id, exchanges });
  }

  function restoreConversation() {
    const found = kept("conversation");
    const isWhole = (e) => typeof e?.question === "string" && Array.isArray(e.parts) && e.parts.every((p) => typeof p?.text === "string");
    if (found?.model !== model.id || !Array.isArray(found.exchanges) || !found.exchanges.every(isWhole)) return;
    exchanges = found.exchanges.map((e) => (e.state === "running" ? { ...e, state: "stopped" } : e));
  }

  // -- the server --------------------------------------------------------------------------------------------------------

  class Trouble extends Error {
    constructor(message, { isGone = false, canRetry = true } = {}) {
      super(message);
      Object.assign(this, { isGone, canRetry });
    }
  }

  async function ask(path, options = {}) {
    const headers = { ...(key ? { Authorization: `Bearer ${key}` } : {}), ...options.headers };
    let response;
    try {
      response = await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit", redirect: "error" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Trouble("The server does not answer. It may have ended, or the connection to it is down.", { isGone: true });
    }
    if (response.ok) return response;
    const said = (await response.json().catch(() => null))?.error?.message;
    if (response.status === 401) {
      throw new Trouble("This server wants its key: open the address that it printed when it was started, with all that stands behind the #.");
    }
    if (response.status === 503) throw new Trouble("The server is busy with other answers.");
    throw new Trouble(said ? `The server says: ${said}.` : `The server answers with an error (${response.status}).`);
  }

  async function meet() {
    try {
      const list = await (await ask("v1/models")).json();
      model = list.data[0];
    } catch (error) {
      return showTrouble(error, meet);
    }
    clearTrouble();
    showModel();
    restoreConversation();
    drawAll();
    toEnd();
    return undefined;
  }

  // -- asking and answering ----------------------------------------------------------------------------------------------

  async function send(question) {
    if (running || !question.trim()) return;
    if (isEditing) exchanges.pop();
    stopEditing();
    exchanges.push({ question, parts: [], state: "none" });
    $("question").value = "";
    fitQuestion();
    await answerLast();
  }

  async function answerLast() {
    const exchange = exchanges.at(-1);
    if (running || !exchange) return;
    Object.assign(exchange, { parts: [], state: "running", note: "", figures: "" });
    clearTrouble();
    const own = new AbortController();
    running = own;
    drawAll();
    toEnd();
    announce("Answering");
    try {
      await stream(exchange, own.signal);
      exchange.state = "done";
      announce(plainText(exchange) || "The answer is empty");
    } catch (error) {
      exchange.state = exchange.parts.length ? "broken" : "none";
      if (error.name === "AbortError") {
        exchange.state = "stopped";
        announce("Stopped");
      } else {
        showTrouble(error, answerLast);
      }
    } finally {
      if (running === own) running = null; // else this conversation was left, and another may have begun
      keepConversation();
      const wasAtEnd = isAtEnd();
      drawAll();
      if (wasAtEnd) toEnd();
      returnFocus();
    }
  }

  async function stream(exchange, signal) {
    const settings = readSettings();
    const seed = settings.seed ?? Math.floor(Math.random() * 2 ** 31);
    const body = { model: model.id, messages: messages(), stream: true, stream_options: { include_usage: true }, ...settings, seed };
    const response = await ask("v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
      signal,
    });
    let began = null;
    let isWhole = false;
    for await (const data of events(response.body)) {
      if (data === "[DONE]") {
        isWhole = true;
        break;
      }
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Trouble(`The server says: ${chunk.error.message}.`);
      if (chunk.note) exchange.note = [exchange.note, chunk.note].filter(Boolean).join("; ");
      const choice = chunk.choices[0];
      if (choice?.finish_reason === "length" && !chunk.note) {
        exchange.note = [exchange.note, `cut after ${settings.max_tokens} tokens; the settings allow more`].filter(Boolean).join("; ");
      }
      for (const part of partsOf(choice?.delta)) {
        began ??= performance.now();
        add(exchange, part);
      }
      if (chunk.usage) exchange.figures = figures(chunk.usage, began, seed);
    }
    if (!isWhole) throw new Trouble("The answer broke off: the connection was lost, or the server ended.");
  }

  // The data lines of a stream of server-sent events
  async function* events(body) {
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    let waiting = "";
    try {
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return;
        const lines = (waiting + value).split("\n");
        waiting = lines.pop();
        for (const line of lines) if (line.startsWith("data: ")) yield line.slice(6);
      }
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Trouble("The answer broke off: the connection was lost, or the server ended.");
    } finally {
      reader.cancel().catch(() => undefined);
    }
  }

  function partsOf(delta) {
    if (delta?.parts) return delta.parts;
    return delta?.content ? [{ type: "text", text: delta.content }] : [];
  }

  function figures(usage, began, seed) {
    const seconds = began === null ? 0 : (performance.now() - began) / 1000;
    const tokens = usage.completion_tokens;
    const speed = seconds > 0.05 && tokens > 1 ? `${Math.round((tokens - 1) / seconds).toLocaleString("en")} tokens/s` : "";
    return [`${tokens} ${tokens === 1 ? "token" : "tokens"}`, speed, `seed ${seed}`].filter(Boolean).join(" · ");
  }

  // What the server is sent: the end of the conversation, which is all that the model can read
  function messages() {
    const answered = exchanges.slice(0, -1).filter((exchange) => exchange.state !== "none");
    const pairs = answered.map((exchange) => [
      { role: "user", content: exchange.question },
      { role: "assistant", content: exchange.parts.every((part) => part.type === "text") ? plainText(exchange) : exchange.parts },
    ]);
    const last = [{ role: "user", content: exchanges.at(-1).question }];
    const size = (list) => new TextEncoder().encode(JSON.stringify(list)).length;
    while (pairs.length && (pairs.length > MOST_MESSAGES / 2 || size([...pairs.flat(), ...last]) > MOST_BYTES)) pairs.shift();
    return [...pairs.flat(), ...last];
  }

  function plainText(exchange) {
    return exchange.parts.filter((part) => part.type === "text").map((part) => part.text).join("");
  }

  // -- drawing -----------------------------------------------------------------------------------------------------------

  function add(exchange, part) {
    const last = exchange.parts.at(-1);
    if (last?.type === "text" && part.type === "text") last.text += part.text;
    else exchange.parts.push({ type: part.type, text: part.text });
    if (exchange !== exchanges.at(-1)) return;
    const element = $("conversation").lastElementChild.querySelector(".said");
    const wasAtEnd = isAtEnd();
    if (last?.type === "text" && part.type === "text" && element.lastChild?.nodeType === Node.TEXT_NODE) element.lastChild.appendData(part.text);
    else drawParts(element, exchange);
    if (wasAtEnd) toEnd();
  }

  function drawAll() {
    document.body.classList.toggle("is-base", model?.nanochat.kind === "base");
    $("conversation").replaceChildren(...exchanges.map(drawExchange));
    $("welcome").hidden = exchanges.length > 0 || !model;
    $("bring-back").hidden = previous.length === 0;
    $("new").disabled = exchanges.length === 0;
    $("send").hidden = Boolean(running);
    $("send").disabled = !model;
    $("stop").hidden = !running;
  }

  function drawExchange(exchange, index) {
    const isLast = index === exchanges.length - 1;
    const said = el("p", { class: "said", dir: "auto", "aria-busy": String(exchange.state === "running") });
    drawParts(said, exchange);
    const state = { stopped: "stopped", broken: "broken off" }[exchange.state];
    const note = [state, exchange.note].filter(Boolean).join("; ");
    return el("li", {},
      el("p", { class: "asked", dir: "auto" }, el("span", { class: "sr-only" }, "You: "), exchange.question),
      exchange.state === "none" ? null : el("div", { role: "group", "aria-label": "Answer" }, said, note ? el("p", { class: "note" }, `(${note})`) : null),
      exchange.state === "running" || running ? null : drawButtons(exchange, isLast),
    );
  }

  function drawParts(element, exchange) {
    if (!exchange.parts.length && exchange.state === "running") {
      element.replaceChildren(el("span", { class: "waiting", role: "img", "aria-label": "Waiting for the first word" }, el("i"), el("i"), el("i")));
      return;
    }
    const children = [];
    for (const part of exchange.parts) {
      const before = children.at(-1);
      if (part.type === "text") children.push(document.createTextNode(part.text));
      else if (part.type === "python_output" && before?.className === "calc") before.append(" = ", el("b", {}, part.text));
      else children.push(el("span", { class: "calc", title: "The model used its calculator" }, el("span", { class: "sr-only" }, "calculator: "), part.text));
    }
    element.replaceChildren(...children);
  }

  function drawButtons(exchange, isLast) {
    const isAnswered = exchange.state !== "none";
    return el("div", { class: "under" },
      isAnswered ? el("button", { type: "button", class: "copy", title: "Copy the answer", onclick: (event) => copy(exchange, event.currentTarget) }, "Copy") : null,
      isLast && isAnswered ? el("button", { type: "button", class: "again", title: "Another answer to this question", onclick: answerLast }, "Regenerate") : null,
      isLast ? el("button", { type: "button", class: "edit", title: "Change this question and ask again", onclick: startEditing }, "Edit question") : null,
      exchange.figures ? el("span", { class: "figures" }, exchange.figures) : null,
    );
  }

  function showModel() {
    const about = model.nanochat;
    const millions = about.parameters / 1e6;
    $("model").textContent = model.id;
    $("facts").textContent = `${millions >= 100 ? Math.round(millions) : millions.toFixed(1)} M parameters, ${about.context.toLocaleString("en")} tokens of context`;
    document.title = `${model.id} · nanochat`;
    const isBase = about.kind === "base";
    $("welcome-title").textContent = isBase ? "Begin a text" : "Say something";
    $("welcome-text").textContent = isBase
      ? "This is a base model: it continues what you write. It has not learned to answer; mid_train and sft teach it."
      : "A small language model, trained from scratch. What it says may be wrong, and stays in this tab.";
    $("question").placeholder = isBase ? "A text to be continued" : "Your message";
    $("examples").replaceChildren(...EXAMPLES[isBase ? "base" : "chat"].map((text) => el("li", {}, el("button", { type: "button", onclick: () => send(text) }, text))));
    $("max-tokens").max = about.context;
    showSettings({ ...about.defaults, ...kept("settings") });
  }

  const isAtEnd = () => $("scroller").scrollHeight - $("scroller").scrollTop - $("scroller").clientHeight < 60;

  function toEnd() {
    $("scroller").scrollTop = $("scroller").scrollHeight;
  }

  function announce(text) {
    $("announcer").textContent = text;
  }

  // -- trouble -----------------------------------------------------------------------------------------------------------

  function showTrouble(error, retry) {
    const message = error instanceof Trouble ? error.message : `Something in this page failed: ${error.message}`;
    const button = el("button", { type: "button", onclick: retry }, "Try again");
    $("trouble").replaceChildren(el("p", {}, message), button);
    toEnd();
    if (error.isGone) lookForServer();
  }

  function clearTrouble() {
    clearTimeout(looking);
    $("trouble").replaceChildren();
  }

  // Until it is there again; nothing is sent to it but this question
  function lookForServer() {
    clearTimeout(looking);
    looking = setTimeout(async () => {
      try {
        await ask("health");
      } catch {
        return lookForServer();
      }
      if (!model) return meet();
      $("trouble").firstElementChild?.replaceChildren("The server is there again.");
      return undefined;
    }, SECONDS_BETWEEN_LOOKS * 1000);
  }

  // -- settings ----------------------------------------------------------------------------------------------------------

  function showSettings(values) {
    $("temperature").max = Math.max(2, values.temperature);
    $("temperature").value = values.temperature;
    $("top-k").value = values.top_k;
    $("max-tokens").value = values.max_tokens;
    $("seed").value = values.seed ?? "";
    showTemperature();
  }

  function showTemperature() {
    $("temperature-shown").textContent = Number($("temperature").value).toFixed(2);
  }

  // A field that does not hold a number in its range counts as its default
  function readSettings() {
    const defaults = model.nanochat.defaults;
    const number = (id, otherwise) => ($(id).value !== "" && $(id).validity.valid ? Number($(id).value) : otherwise);
    return {
      temperature: number("temperature", defaults.temperature),
      top_k: number("top-k", defaults.top_k),
      max_tokens: number("max-tokens", defaults.max_tokens),
      ...($("seed").value !== "" && $("seed").validity.valid ? { seed: Number($("seed").value) } : {}),
    };
  }

  function openSettings(isOpen) {
    $("settings").hidden = !isOpen;
    $("settings-button").setAttribute("aria-expanded", String(isOpen));
    if (isOpen) $("temperature").focus();
    else $("settings-button").focus();
  }

  // -- small deeds -------------------------------------------------------------------------------------------------------

  async function copy(exchange, button) {
    const text = plainText(exchange);
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      copyTheOldWay(text); // on an address without encryption other than localhost
    }
    button.textContent = "Copied";
    announce("Copied");
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  }

  function copyTheOldWay(text) {
    const area = el("textarea", { class: "sr-only", "aria-hidden": "true" });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }

  function startEditing() {
    isEditing = true;
    $("editing").hidden = false;
    $("question").value = exchanges.at(-1).question;
    fitQuestion();
    $("question").focus();
  }

  function stopEditing() {
    isEditing = false;
    $("editing").hidden = true;
  }

  function cancelEditing() {
    stopEditing();
    $("question").value = "";
    fitQuestion();
    $("question").focus();
  }

  function fitQuestion() {
    if (CSS.supports("field-sizing", "content")) return;
    $("question").style.height = "auto";
    $("question").style.height = `${$("question").scrollHeight}px`;
  }

  // What had the focus may have been drawn anew. Not on a phone, where it would bring up the keyboard
  function returnFocus() {
    if (document.activeElement === document.body && !matchMedia("(pointer: coarse)").matches) $("question").focus();
  }

  function begin() {
    running?.abort();
    running = null;
    previous = exchanges;
    exchanges = [];
    stopEditing();
    clearTrouble();
    keepConversation();
    drawAll();
    $("question").focus();
  }

  // -- the page ----------------------------------------------------------------------------------------------------------

  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    if (model) send($("question").value);
  });
  $("question").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    $("composer").requestSubmit();
  });
  $("question").addEventListener("input", fitQuestion);
  $("stop").addEventListener("click", () => {
    running?.abort();
    $("question").focus();
  });
  $("new").addEventListener("click", begin);
  $("bring-back").addEventListener("click", () => {
    exchanges = previous;
    previous = [];
    keepConversation();
    drawAll();
    toEnd();
  });
  $("cancel-editing").addEventListener("click", cancelEditing);
  $("settings-button").addEventListener("click", () => openSettings($("settings").hidden));
  $("close-settings").addEventListener("click", () => openSettings(false));
  $("defaults").addEventListener("click", () => {
    showSettings(model?.nanochat.defaults ?? {});
    keep("settings", null);
  });
  $("settings").addEventListener("input", () => {
    showTemperature();
    if (model) keep("settings", readSettings());
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      if (running) running.abort();
      else if (!$("settings").hidden) openSettings(false);
      else if (isEditing) cancelEditing();
    } else if (event.key === "/" && !event.target.closest("input, textarea, select") && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      $("question").focus();
    }
  });
  addEventListener("hashchange", () => {
    key = takeKey();
    meet();
  });

  drawAll();
  $("question").focus();
  meet();
})();
