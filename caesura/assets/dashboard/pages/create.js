// A new job, of any method.

import { Refused, call } from "/assets/api.js";
import { h, show } from "/assets/dom.js";
import { filePicker } from "/assets/files.js";
import { methodOf } from "/assets/format.js";
import { graderEditor } from "/assets/grader.js";
import { adapterFields, hyperparametersOf, jobFieldsOf } from "/assets/hyperparameters.js";
import { fault, field, loading, pageHead, select } from "/assets/parts.js";

const METHODS = {
  supervised: ["Supervised", "Learn from conversations with the answers that you want."],
  dpo: ["DPO", "Learn from pairs: of two answers, which is preferred."],
  reinforcement: ["Reinforcement", "The model answers; a grader of yours says what each answer is worth."],
};
const MOST_MODELS = 200;

export function createPage({ query, signal }) {
  const node = h("div", {}, loading());

  async function load() {
    try {
      const like =
        query.get("like") &&
        (await call("GET", `/fine_tuning/jobs/${encodeURIComponent(query.get("like"))}`, { signal }));
      const models = await call("GET", "/models", { signal });
      show(
        node,
        pageHead("New job", "What is left empty, the server chooses."),
        form({ models: models.data, like, query, signal }),
      );
    } catch (error) {
      show(node, pageHead("New job"), fault(error, load));
    }
  }

  load();
  return { node, title: "New job" };
}

function form({ models, like, query, signal }) {
  const kind = like ? methodOf(like) : "supervised";
  const asked = like?.method[kind] ?? {};
  const model = modelSelect(models, query.get("model") ?? like?.model);
  const training = filePicker({
    label: "Training file",
    name: "training_file",
    help: "JSONL: one row a line. A file can be dropped here.",
    signal,
  });
  const validation = filePicker({
    label: "Validation file",
    name: "validation_file",
    help: "Measured, never learned from. Reinforcement needs one.",
    signal,
  });
  training.setId(like?.training_file);
  validation.setId(like?.validation_file);
  const suffix = h("input", {
    type: "text",
    name: "suffix",
    maxlength: 64,
    autocomplete: "off",
    value: like?.user_provided_suffix ?? "",
  });
  const seed = h("input", {
    type: "text",
    inputmode: "numeric",
    name: "seed",
    placeholder: "a random one",
    autocomplete: "off",
  });
  const metadata = h("textarea", {
    name: "metadata",
    rows: 2,
    placeholder: "team=docs",
    value: Object.entries(like?.metadata ?? {})
      .map(([key, value]) => `${key}=${value}`)
      .join("\n"),
  });
  const radios = Object.entries(METHODS).map(([name, [title, words]]) =>
    methodCard(name, title, words, name === kind, () => choose(name)),
  );
  const ofMethod = h("div", { class: "sections" });
  const adapter = adapterFields(like?.adapter);
  const trouble = h("div", { role: "alert" });
  const submit = h("button", { type: "submit", class: "button primary" }, "Create the job");
  let chosen;

  function choose(name) {
    const given = name === kind ? asked : {};
    chosen = {
      name,
      hyperparameters: hyperparametersOf(name, given.hyperparameters),
      fields: jobFieldsOf(name, like),
      grader:
        name === "reinforcement"
          ? graderEditor({ readLine: training.readLine, model: () => model.value, given: given.grader, signal })
          : null,
    };
    show(
      ofMethod,
      chosen.grader && section("Grader", chosen.grader.node),
      section("Hyperparameters", chosen.hyperparameters.node),
      h(
        "details",
        { class: "card" },
        h("summary", {}, "Adapter, checkpoints, limits"),
        adapter.node,
        chosen.fields.node,
      ),
    );
  }

  async function create(event) {
    event.preventDefault();
    clearFaults(node);
    show(trouble);
    submit.disabled = true;
    try {
      const job = await call("POST", "/fine_tuning/jobs", { body: body(), signal });
      location.hash = `#/job/${encodeURIComponent(job.id)}`;
    } catch (error) {
      submit.disabled = false;
      if (error.name !== "AbortError") tellFault(error);
    }
  }

  function body() {
    if (!training.id()) throw new FieldFault("training_file", "Choose a training file, or upload one.");
    const adapterValues = adapter.read();
    const method = { hyperparameters: chosen.hyperparameters.read() };
    if (chosen.grader) method.grader = chosen.grader.read();
    return {
      model: model.value,
      training_file: training.id(),
      validation_file: validation.id(),
      method: { type: chosen.name, [chosen.name]: method },
      suffix: suffix.value.trim() || null,
      seed: seed.value.trim() === "" ? null : Number(seed.value),
      metadata: readPairs(metadata.value),
      adapter: Object.keys(adapterValues).length ? adapterValues : null,
      ...chosen.fields.read(),
    };
  }

  function tellFault(error) {
    const param = error instanceof Refused || error instanceof FieldFault ? error.param : null;
    const control = findControl(node, param);
    if (control) {
      control.setAttribute("aria-invalid", "true");
      control.closest(".field").append(h("p", { class: "trouble fault-of-field" }, error.message));
      control.closest("details")?.setAttribute("open", "");
      control.focus();
    } else {
      show(trouble, h("p", { class: "callout is-bad" }, error.message));
    }
  }

  choose(kind);
  const node = h(
    "form",
    { class: "create", onsubmit: create, novalidate: true },
    h("fieldset", { class: "methods" }, h("legend", {}, "Method"), radios),
    section("Model and data", field("Base model", model), training.node, validation.node),
    ofMethod,
    section(
      "Name",
      h(
        "div",
        { class: "grid" },
        field("Suffix", suffix, "Stands in the tuned model's name."),
        field("Seed", seed),
        field("Metadata", metadata, "One key=value a line; jobs can be found by it."),
      ),
    ),
    trouble,
    h("div", { class: "row" }, submit),
  );
  return node;
}

class FieldFault extends Error {
  constructor(param, message) {
    super(message);
    this.param = param;
  }
}

function section(title, ...content) {
  return h("section", { class: "card" }, h("h2", {}, title), content);
}

function methodCard(name, title, words, isChosen, onchange) {
  const radio = h("input", { type: "radio", name: "method", value: name, checked: isChosen, onchange });
  return h(
    "label",
    { class: "method" },
    radio,
    h("span", {}, h("strong", {}, title), h("span", { class: "sub" }, words)),
  );
}

function modelSelect(models, wanted) {
  const bases = models.filter((model) => model.owned_by === "system");
  const tuned = models
    .filter((model) => model.owned_by !== "system")
    .sort((one, other) => other.created - one.created);
  const shown = tuned.slice(0, MOST_MODELS);
  const option = (name) => h("option", { value: name }, name);
  const made = h(
    "select",
    { name: "model" },
    bases.map((model) => option(model.id)),
    shown.length > 0 &&
      h(
        "optgroup",
        { label: "Train on from a tuned model" },
        shown.map((model) => option(model.id)),
      ),
  );
  if (wanted) {
    if (![...made.options].some((one) => one.value === wanted)) made.append(option(wanted));
    made.value = wanted;
  }
  return made;
}

/** The control whose fault it is: of the parameter itself, or of what holds it. */
function findControl(node, param) {
  for (let path = param ?? ""; path; path = path.replace(/(\.|^)[^.]*$/, "")) {
    const control = node.querySelector(`[name="${CSS.escape(path)}"]`);
    if (control && control.type !== "radio") return control;
  }
  return null;
}

function clearFaults(node) {
  node.querySelectorAll("[aria-invalid]").forEach((one) => one.removeAttribute("aria-invalid"));
  node.querySelectorAll(".fault-of-field").forEach((one) => one.remove());
}

function readPairs(text) {
  const lines = text
    .split("\n")
    .map((line) => line.trim())
    .filter(Boolean);
  if (!lines.length) return null;
  return Object.fromEntries(
    lines.map((line) => {
      const place = line.indexOf("=");
      if (place < 1) throw new FieldFault("metadata", `'${line}' is no pair: write key=value.`);
      return [line.slice(0, place).trim(), line.slice(place + 1).trim()];
    }),
  );
}
