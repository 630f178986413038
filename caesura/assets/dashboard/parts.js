// What several pages are put together from.

import { h, newId, show, svg } from "/assets/dom.js";
import { FINAL, STATUSES, formatDuration } from "/assets/format.js";
import { Refused, Unreachable } from "/assets/api.js";

export function badge(status) {
  return h("span", { class: `badge is-${status}` }, STATUSES[status] ?? status);
}

/** A bar, and beside it the same in words. `share` is 0 to 1. */
export function progressBar(share, words, label) {
  const percent = Math.round(share * 100);
  const bar = svg(
    "svg",
    { class: "bar", viewBox: "0 0 100 6", preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("rect", { class: "bar-rest", width: 100, height: 6 }),
    svg("rect", { class: "bar-done", width: percent, height: 6 }),
  );
  const attributes = { role: "progressbar", "aria-valuenow": percent, "aria-valuemin": 0, "aria-valuemax": 100 };
  return h(
    "span",
    { class: "progress", ...attributes, "aria-label": label, "aria-valuetext": words },
    bar,
    h("span", {}, words),
  );
}

export function timeLeft(job, status) {
  if (status !== "running" || !job.estimated_finish) return null;
  return `${formatDuration(job.estimated_finish - Date.now() / 1000)} left`;
}

export function button(text, onclick, { kind = "", ...attributes } = {}) {
  return h("button", { type: "button", class: `button ${kind}`.trim(), onclick, ...attributes }, text);
}

/** A link that looks like a button. */
export function linkButton(text, href, kind = "") {
  return h("a", { class: `button ${kind}`.trim(), href }, text);
}

/** Copies `text`, and says so. */
export function copyButton(text, label = "Copy") {
  const made = button(
    label,
    async () => {
      await copy(text);
      show(made, "Copied");
      setTimeout(() => show(made, label), 1500);
    },
    { kind: "small" },
  );
  return made;
}

async function copy(text) {
  if (navigator.clipboard && window.isSecureContext) {
    await navigator.clipboard.writeText(text);
    return;
  }
  // Over plain HTTP from another machine there is no clipboard but this one.
  const area = h("textarea", { value: text, class: "visually-hidden" });
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

export function loading(words = "Loading…") {
  return h(
    "div",
    { class: "state is-loading", role: "status" },
    h("span", { class: "pulse", "aria-hidden": "true" }),
    words,
  );
}

export function empty(title, words, ...actions) {
  return h(
    "div",
    { class: "state" },
    h("strong", {}, title),
    h("p", {}, words),
    actions.length > 0 && h("div", { class: "row" }, actions),
  );
}

/** What went wrong, and the way on: again, where that can help. */
export function fault(error, retry) {
  if (error.name === "AbortError") return null;
  if (!(error instanceof Refused || error instanceof Unreachable)) console.error(error);
  return h(
    "div",
    { class: "state is-fault", role: "alert" },
    h("strong", {}, error instanceof Unreachable ? "The server does not answer" : "That did not work"),
    h("p", {}, error instanceof Unreachable ? "The page goes on by itself as soon as it does." : error.message),
    retry && button("Try again", retry),
  );
}

/** A short word at the edge of the page, read aloud too. */
export function tell(words, kind = "") {
  const note = h("div", { class: `note ${kind}`.trim() }, words);
  document.getElementById("notes").append(note);
  setTimeout(() => note.remove(), 6000);
}

/** Asks before something is done that cannot be undone; `doIt` runs when it is wanted. */
export function confirm({ title, words, verb, kind = "danger", doIt }) {
  const dialog = h(
    "dialog",
    { "aria-labelledby": "confirm-title", onclose: () => dialog.remove() },
    h("h2", { id: "confirm-title" }, title),
    h("p", {}, words),
    h(
      "div",
      { class: "row end" },
      button("Leave it", () => dialog.close(), { autofocus: true }),
      button(
        verb,
        () => {
          dialog.close();
          doIt();
        },
        { kind },
      ),
    ),
  );
  document.body.append(dialog);
  dialog.showModal();
}

/** A label over what it names, with a word of help under it. */
export function field(label, control, help, extra) {
  const target = control.matches("input, select, textarea")
    ? control
    : control.querySelector("input, select, textarea");
  target.id ||= newId("field");
  const helpId = help ? newId("help") : null;
  if (helpId) target.setAttribute("aria-describedby", helpId);
  return h(
    "div",
    { class: "field" },
    h("label", { for: target.id }, label),
    control,
    help && h("p", { class: "help", id: helpId }, help),
    extra,
  );
}

export function select(options, attributes) {
  const made = options.map(([value, text]) => h("option", { value }, text));
  return h("select", attributes, made);
}

/** Names and values, one below the other. Pairs without a value are left out. */
export function facts(pairs) {
  const known = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return h(
    "dl",
    { class: "facts" },
    known.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]),
  );
}

/** Tabs over panels: `{id: [title, panel]}`. Arrow keys move between them. */
export function tabs(label, panels, { chosen, onChoose }) {
  const ids = Object.keys(panels);
  const heads = ids.map((id) =>
    h(
      "button",
      { type: "button", role: "tab", id: `tab-${id}`, "aria-controls": `panel-${id}`, onclick: () => choose(id) },
      panels[id][0],
    ),
  );
  const bodies = ids.map((id) =>
    h("div", { role: "tabpanel", id: `panel-${id}`, "aria-labelledby": `tab-${id}`, class: "panel" }, panels[id][1]),
  );
  function choose(id, isByKey) {
    ids.forEach((other, index) => {
      heads[index].setAttribute("aria-selected", String(other === id));
      heads[index].tabIndex = other === id ? 0 : -1;
      bodies[index].hidden = other !== id;
    });
    if (isByKey) heads[ids.indexOf(id)].focus();
    onChoose?.(id);
  }
  function move(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    choose(ids[(heads.indexOf(event.target) + step + ids.length) % ids.length], true);
  }
  const node = h(
    "div",
    { class: "tabs" },
    h("div", { role: "tablist", "aria-label": label, onkeydown: move }, heads),
    bodies,
  );
  choose(ids.includes(chosen) ? chosen : ids[0]);
  return { node, choose };
}

export function isOver(status) {
  return FINAL.has(status);
}

/** The head of a page. */
export function pageHead(title, lead, ...actions) {
  return h(
    "header",
    { class: "page-head" },
    h("div", {}, h("h1", { tabindex: "-1" }, title), lead && h("p", { class: "lead" }, lead)),
    actions.length > 0 && h("div", { class: "row" }, actions),
  );
}
