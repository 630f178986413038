// What a new job may be told of its training, method by method. The ranges are the server's to check.

import { h } from "/assets/dom.js";
import { field, select } from "/assets/parts.js";

const SHARED = [
  ["n_epochs", "Epochs", "auto", "How often each row is seen."],
  ["batch_size", "Batch size", "auto", "Rows of one step."],
  ["learning_rate_multiplier", "Learning rate multiplier", "auto", "Scales the base's own rate."],
];
const METHOD_FIELDS = {
  supervised: [
    ...SHARED,
    ["prompt_loss_weight", "Weight of the prompt's tokens", "0", "0: only answers are learned. 1: prompts as much."],
  ],
  dpo: [
    ...SHARED,
    ["beta", "Beta", "auto", "How strongly the base holds the model back."],
    ["loss_type", "Loss", ["sigmoid", "ipo"], "IPO aims at a margin instead of always pushing on."],
    ["label_smoothing", "Label smoothing", "0", "The share of pairs taken to be the wrong way round."],
    ["l2_multiplier", "Weight decay", "0", "Draws the adapter towards 0."],
  ],
  reinforcement: [
    ...SHARED,
    ["compute_multiplier", "Compute multiplier", "auto", "Answers to each prompt, 8 times this."],
    ["eval_interval", "Steps between validations", "auto", null],
    ["eval_samples", "Answers at a validation", "auto", "To each prompt of the validation file."],
    ["max_completion_tokens", "Tokens of an answer", "by the effort", null],
    ["reasoning_effort", "Reasoning effort", ["default", "low", "medium", "high"], "How long an answer may get."],
    ["kl_coefficient", "KL coefficient", "0", "How strongly the base holds the model back."],
    ["updates_per_batch", "Updates of a batch", "1", null],
  ],
};
export const JOB_FIELDS = {
  supervised: [
    ["checkpoint_every", "A checkpoint every … steps", "none between epochs", null],
    ["early_stopping", "Stop when validation gains nothing", "check", "Needs a validation file."],
    ["keep_best", "Keep the best model, not the last", "check", "By the full validation loss."],
  ],
  dpo: [
    ["checkpoint_every", "A checkpoint every … steps", "none between epochs", null],
    ["early_stopping", "Stop when validation gains nothing", "check", "Needs a validation file."],
    ["keep_best", "Keep the best model, not the last", "check", "By the full validation loss."],
  ],
  reinforcement: [],
};
const LIMITS = [
  ["max_minutes", "Pause after … minutes", "no limit", "The job pauses itself; resume it to go on."],
  ["max_tokens", "Pause after … tokens", "no limit", null],
];

/** `{node, read()}`: fields, and what stands in them, without what was left empty. */
function fieldset(fields, prefix, given) {
  const controls = fields.map(([name, label, kind, help]) => {
    const start = given?.[name];
    const path = prefix + name;
    if (Array.isArray(kind)) {
      const control = select(
        kind.map((value) => [value === kind[0] ? "" : value, value]),
        { name: path, value: start && start !== kind[0] ? start : "" },
      );
      return { name, node: field(label, control, help), read: () => control.value || undefined };
    }
    if (kind === "check") {
      const control = h("input", { type: "checkbox", name: path, checked: Boolean(start) });
      const node = h(
        "div",
        { class: "field" },
        h("label", { class: "check" }, control, label),
        help && h("p", { class: "help" }, help),
      );
      return { name, node, read: () => control.checked || undefined };
    }
    const control = h("input", {
      type: "text",
      inputmode: "decimal",
      name: path,
      placeholder: kind,
      value: start === undefined || start === "auto" ? "" : String(start),
      autocomplete: "off",
    });
    return { name, node: field(label, control, help), read: () => readNumber(control.value) };
  });
  const read = () =>
    Object.fromEntries(controls.map((one) => [one.name, one.read()]).filter(([, value]) => value !== undefined));
  return {
    node: h(
      "div",
      { class: "grid" },
      controls.map((one) => one.node),
    ),
    read,
  };
}

/** What is no number is sent as it stands: the server says what is wrong with it. */
function readNumber(text) {
  const trimmed = text.trim();
  if (trimmed === "") return undefined;
  const number = Number(trimmed.replace(",", "."));
  return Number.isNaN(number) ? trimmed : number;
}

export function hyperparametersOf(method, given) {
  return fieldset(METHOD_FIELDS[method], `method.${method}.hyperparameters.`, given);
}

export function jobFieldsOf(method, given) {
  return fieldset([...JOB_FIELDS[method], ...LIMITS], "", given);
}

export function adapterFields(given) {
  return fieldset(
    [
      [
        "type",
        "What is trained",
        ["lora", "qlora", "full"],
        "An adapter, one beside a base in 4 bits (GPU), or all weights (supervised).",
      ],
      ["rank", "Rank", "the base's", "How much an adapter can hold."],
      ["alpha", "Alpha", "the base's", null],
      ["dropout", "Dropout", "the base's", null],
    ],
    "adapter.",
    given,
  );
}
