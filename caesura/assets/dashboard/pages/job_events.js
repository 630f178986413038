// What a job has told, the newest on top.

import { h, show } from "/assets/dom.js";
import { formatClock, formatDate } from "/assets/format.js";
import { button, empty, field, loading, select } from "/assets/parts.js";

/** So many are in the page at once, and as many more whenever they are asked for. */
const SHOWN = 200;

export function eventsPanel() {
  const told = [];
  const list = h("ol", { class: "events" });
  const state = h("div", {}, loading("Reading the events…"));
  const more = h("div", { class: "pager" });
  let limit = SHOWN;
  let isVisible = false;
  let hasCaughtUp = false;
  let frame = null;
  const which = select(
    [
      ["", "All events"],
      ["message", "Without the steps"],
      ["warn", "Warnings and errors"],
    ],
    { onchange: () => draw() },
  );

  function isWanted(event) {
    if (which.value === "message") return event.type !== "metrics";
    return which.value !== "warn" || event.level !== "info";
  }

  function draw() {
    frame = null;
    const shown = [];
    let index = told.length;
    while (index > 0 && shown.length < limit) {
      index -= 1;
      if (isWanted(told[index])) shown.push(told[index]);
    }
    show(state, hasCaughtUp && !shown.length && empty("Nothing of that kind", "No event is like that."));
    show(list, shown.map(row));
    show(
      more,
      index > 0 &&
        shown.length === limit &&
        button("Earlier ones", () => {
          limit += SHOWN;
          draw();
        }),
    );
  }

  function update() {
    if (isVisible && !frame) frame = requestAnimationFrame(draw);
  }

  return {
    node: h("div", {}, h("div", { class: "filters" }, field("Show", which)), state, list, more),
    onEvents: (events) => {
      told.push(...events);
      update();
    },
    onCaughtUp: () => {
      hasCaughtUp = true;
      update();
    },
    onShow: () => {
      isVisible = true;
      update();
    },
  };
}

function row(event) {
  return h(
    "li",
    { class: `is-${event.level}` },
    h("time", { title: formatDate(event.created_at) }, formatClock(event.created_at)),
    event.level !== "info" && h("span", { class: "level" }, event.level),
    h("span", { class: "wrap" }, event.message),
  );
}
