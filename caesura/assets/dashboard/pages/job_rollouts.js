// Every answer that a job of reinforcement sampled, and what its grader said of it.

import { callAll } from "/assets/api.js";
import { h, show } from "/assets/dom.js";
import { formatCount, formatMeasure } from "/assets/format.js";
import { empty, fault, field, loading, select } from "/assets/parts.js";

/** Of one step so many are read and sorted. */
const MOST = 2000;
const SHOWN = 50;
const ORDERS = {
  best: ["Best first", (one, other) => other.reward - one.reward],
  worst: ["Worst first", (one, other) => one.reward - other.reward],
  made: ["By row", (one, other) => one.line - other.line || one.sample_index - other.sample_index],
};

export function rolloutsPanel({ job, steps, signal }) {
  const list = h("div", {}, loading("Reading the answers…"));
  const step = h("input", { type: "number", min: 1, class: "short", onchange: load });
  const split = select(
    [
      ["train", "Training"],
      ["valid", "Validation"],
    ],
    { onchange: load },
  );
  const order = select(
    Object.entries(ORDERS).map(([name, [title]]) => [name, title]),
    { onchange: () => draw() },
  );
  let rollouts = [];
  let hasMore = false;
  let isVisible = false;
  let loaded = null;

  async function load() {
    if (!step.value && !steps.last) {
      show(list, empty("No answers yet", "They come with the first step."));
      return;
    }
    step.value ||= steps.last;
    const asked = { step: step.value, split: split.value };
    loaded = JSON.stringify(asked);
    show(list, loading("Reading the answers…"));
    try {
      const { items, hasMore: more } = await callAll(`/fine_tuning/jobs/${job.id}/rollouts`, {
        query: asked,
        signal,
        most: MOST,
      });
      if (loaded !== JSON.stringify(asked)) return;
      rollouts = items;
      hasMore = more;
      draw();
    } catch (error) {
      if (error.name !== "AbortError") show(list, fault(error, load));
    }
  }

  function draw(limit = SHOWN) {
    if (!rollouts.length) {
      const words =
        split.value === "valid"
          ? "Not every step is validated: look at the last one, or at a step with a checkpoint."
          : "Choose another step.";
      show(list, empty("No answers of this step", words));
      return;
    }
    const sorted = [...rollouts].sort(ORDERS[order.value][1]);
    const mean = rollouts.reduce((sum, one) => sum + one.reward, 0) / rollouts.length;
    show(
      list,
      h(
        "p",
        { class: "sub" },
        `${formatCount(rollouts.length)}${hasMore ? "+" : ""} answers, mean reward ${formatMeasure(mean)}`,
      ),
      sorted.slice(0, limit).map(card),
      sorted.length > limit &&
        h(
          "div",
          { class: "pager" },
          h("button", { type: "button", class: "button", onclick: () => draw(limit + SHOWN) }, "More"),
        ),
    );
  }

  return {
    node: h(
      "div",
      {},
      h("div", { class: "filters" }, field("Step", step), field("File", split), field("Order", order)),
      list,
    ),
    onShow: () => {
      isVisible = true;
      if (!loaded) load();
    },
    onEvents: () => isVisible && !loaded && steps.last && load(),
  };
}

function card(rollout) {
  const parts = Object.entries(rollout.sub_rewards);
  const faults = Object.entries(rollout.errors);
  return h(
    "article",
    { class: "card rollout" },
    h(
      "div",
      { class: "rollout-score" },
      h("strong", { class: "reward" }, formatMeasure(rollout.reward)),
      h("span", { class: "sub" }, "reward"),
      rollout.advantage !== null && h("span", { class: "sub" }, `advantage ${formatMeasure(rollout.advantage)}`),
      h("span", { class: "sub" }, `row ${rollout.line}, answer ${rollout.sample_index + 1}`),
      h(
        "span",
        { class: "sub" },
        `${rollout.completion_tokens} tokens${rollout.finish_reason === "length" ? ", cut off" : ""}`,
      ),
    ),
    h(
      "div",
      { class: "rollout-text" },
      h("div", { class: "turns" }, rollout.messages.map(turn)),
      h("div", { class: "turns is-answer" }, rollout.output.map(turn)),
      parts.length > 0 &&
        h(
          "ul",
          { class: "sub-rewards" },
          parts.map(([name, value]) =>
            h(
              "li",
              {},
              h("span", {}, name),
              h("meter", {
                min: 0,
                max: 1,
                value: Math.max(0, Math.min(1, value)),
                "aria-label": `${name}: ${formatMeasure(value)}`,
              }),
              h("span", {}, formatMeasure(value)),
            ),
          ),
        ),
      faults.length > 0 &&
        h(
          "div",
          { class: "callout is-bad" },
          faults.map(([flag, words]) => h("p", {}, h("code", {}, flag), ` ${words}`)),
        ),
      h(
        "details",
        {},
        h("summary", {}, "Grader"),
        h(
          "pre",
          {},
          JSON.stringify(
            {
              grading_time: rollout.grading_time,
              grader_token_usage: rollout.grader_token_usage,
              errors: rollout.errors,
              sub_rewards: rollout.sub_rewards,
            },
            null,
            2,
          ),
        ),
      ),
    ),
  );
}

function turn(message) {
  const content =
    typeof message.content === "string" ? message.content : message.content ? JSON.stringify(message.content) : "";
  const calls = (message.tool_calls ?? []).map((one) => `${one.function.name}(${one.function.arguments})`);
  return h(
    "p",
    { class: "turn" },
    h("span", { class: "role" }, message.role),
    h("span", { class: "wrap" }, [content, ...calls].filter(Boolean).join("\n")),
  );
}
