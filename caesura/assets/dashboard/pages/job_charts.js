// What a job's steps measured, drawn; alone or with other jobs.

import { call, events } from "/assets/api.js";
import { Charts } from "/assets/charts.js";
import { h, show } from "/assets/dom.js";
import { follow } from "/assets/follow.js";
import { METHODS, methodOf, nameOf } from "/assets/format.js";
import { Steps } from "/assets/metrics.js";
import { button, empty, field, loading, select } from "/assets/parts.js";

const MAX_OTHERS = 5;

export function chartsPanel({ job, steps, signal }) {
  const canvas = h("div", { class: "charts" });
  const state = h("div", {}, loading("Reading what it measured…"));
  const others = h("div", { class: "chips" });
  const charts = new Charts(canvas);
  charts.runs = [{ name: nameOf(job), steps, id: job.id }];
  signal.addEventListener("abort", () => charts.close());
  events.addEventListener("theme", () => charts.rebuild(), { signal });

  const smoothness = h("input", { type: "range", min: 0, max: 0.98, step: 0.02, value: 0, oninput: onSmooth });
  const from = h("input", { type: "number", min: 1, class: "short", onchange: onSteps });
  const to = h("input", { type: "number", min: 1, class: "short", onchange: onSteps });
  const whole = button("Whole run", () => charts.zoom(null), { kind: "small", hidden: true });
  const compare = select([["", "Another job…"]], {
    onfocus: offerJobs,
    onpointerdown: offerJobs,
    onchange: onCompare,
  });

  function onSmooth() {
    charts.weight = Number(smoothness.value);
    charts.update();
  }

  function onSteps() {
    const [first, last] = charts.extent();
    const range = [Number(from.value) || first, Number(to.value) || last];
    charts.zoom(range[0] < range[1] ? range : null);
  }

  charts.onRange = (range) => {
    from.value = range?.[0] ?? "";
    to.value = range?.[1] ?? "";
    whole.hidden = range === null;
  };

  let areOffered = false;
  async function offerJobs() {
    if (areOffered) return;
    areOffered = true;
    const page = await call("GET", "/fine_tuning/jobs", {
      query: { limit: 100, method: methodOf(job) },
      signal,
    }).catch(() => ({ data: [] }));
    const options = page.data
      .filter((other) => other.id !== job.id)
      .map((other) =>
        h("option", { value: other.id }, `${nameOf(other)} (${METHODS[methodOf(other)]}, ${other.model})`),
      );
    compare.append(...options);
  }

  async function onCompare() {
    const id = compare.value;
    const name = compare.selectedOptions[0].textContent.split(" (")[0];
    compare.value = "";
    if (!id || charts.runs.some((run) => run.id === id) || charts.runs.length > MAX_OTHERS) return;
    const run = { id, name, steps: new Steps() };
    charts.runs.push(run);
    drawOthers();
    const onEvents = (told) => told.forEach((event) => event.type === "metrics" && run.steps.add(event.data));
    // Read once: it is there to be compared with, and a connection for each would leave none for the rest.
    await follow(id, { onEvents, signal, once: true }).catch(() => {});
    charts.rebuild();
  }

  function drawOthers() {
    show(
      others,
      charts.runs.slice(1).map((run) =>
        button(
          `${run.name} ×`,
          () => {
            charts.runs = charts.runs.filter((one) => one !== run);
            drawOthers();
            charts.rebuild();
          },
          { kind: "chip", "aria-label": `Compare with ${run.name} no more` },
        ),
      ),
    );
  }

  let hasCaughtUp = false;
  const redraw = () => {
    if (steps.steps.length) show(state);
    else if (hasCaughtUp) show(state, empty("Nothing measured yet", "The first numbers come with the first step."));
    if (canvas.offsetParent !== null) charts.update();
  };

  const node = h(
    "div",
    {},
    h(
      "div",
      { class: "chart-tools" },
      field("Smoothing", smoothness),
      h("div", { class: "field-pair" }, field("From step", from), field("To step", to), whole),
      h("div", { class: "compare" }, field("Compare with", compare), others),
    ),
    state,
    canvas,
    h("p", { class: "help chart-help" }, "Drag over a chart to look closer, double-click to see all again."),
  );
  return {
    node,
    onEvents: (told) => told.some((event) => event.type === "metrics") && hasCaughtUp && redraw(),
    onCaughtUp: () => {
      hasCaughtUp = true;
      redraw();
    },
    onShow: redraw,
  };
}
