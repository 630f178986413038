// Writing a grader, and trying it on an answer before a job learns by it.

import { Refused, call } from "/assets/api.js";
import { h, show } from "/assets/dom.js";
import { formatMeasure } from "/assets/format.js";
import { button, field, select } from "/assets/parts.js";

const OUTPUT = "{{ sample.output_text }}";
const SOURCE = `def grade(sample, item):
    # 0 to 1: what the answer is worth. item is the row.
    return 1.0 if item["answer"] in sample["output_text"] else 0.0
`;
const TEMPLATES = {
  string_check: {
    type: "string_check",
    name: "exact",
    input: OUTPUT,
    reference: "{{ item.answer }}",
    operation: "ilike",
  },
  text_similarity: {
    type: "text_similarity",
    name: "close",
    input: OUTPUT,
    reference: "{{ item.answer }}",
    evaluation_metric: "fuzzy_match",
  },
  python: { type: "python", name: "own", source: SOURCE },
  score_model: {
    type: "score_model",
    name: "judge",
    model: "caesura-tiny",
    input: [
      { role: "system", content: "Score how good the answer is, from 0 to 10." },
      { role: "user", content: OUTPUT },
    ],
    range: [0, 10],
  },
  label_model: {
    type: "label_model",
    name: "tone",
    model: "caesura-tiny",
    input: [{ role: "user", content: `What is the tone of this? ${OUTPUT}` }],
    labels: ["kind", "rude"],
    passing_labels: ["kind"],
  },
  endpoint: { type: "endpoint", name: "service", url: "https://grader.example.com/score" },
  multi: {
    type: "multi",
    name: "both",
    graders: {
      right: { type: "string_check", input: OUTPUT, reference: "{{ item.answer }}", operation: "ilike" },
      short: {
        type: "python",
        source: 'def grade(sample, item):\n    return 1.0 if len(sample["output_text"]) < 80 else 0.0\n',
      },
    },
    calculate_output: "0.8 * right + 0.2 * short",
  },
};
const TITLES = {
  string_check: "String check: one text against another",
  text_similarity: "Text similarity",
  python: "Python of your own",
  score_model: "A model gives a number",
  label_model: "A model gives a label",
  endpoint: "A web service of yours",
  multi: "Several, and a formula",
};

/** `{node, read()}`; `readLine(number)` gives a row to try it on, `model()` the base whose answer may be tried. */
export function graderEditor({ readLine, model, given, signal }) {
  const type = select(Object.entries(TITLES), { onchange: () => fillIn(TEMPLATES[type.value]) });
  const text = h("textarea", { class: "code", rows: 9, spellcheck: "false", name: "method.reinforcement.grader" });
  const source = h("textarea", { class: "code", rows: 9, spellcheck: "false" });
  const sourceField = field("Its Python", source, "grade(sample, item) returns a number; it runs in a sandbox.");
  const checked = h("div", { role: "status" });

  function fillIn(grader) {
    const { source: code, ...rest } = grader;
    const isPython = grader.type === "python";
    text.value = JSON.stringify(isPython ? rest : grader, null, 2);
    source.value = code ?? "";
    sourceField.hidden = !isPython;
    if (grader.type in TITLES) type.value = grader.type;
    show(checked);
  }

  /** Raises an Error in plain words where the text is no JSON. */
  function read() {
    let grader;
    try {
      grader = JSON.parse(text.value);
    } catch (error) {
      throw new Error(`The grader is not JSON: ${error.message}`);
    }
    return sourceField.hidden ? grader : { ...grader, source: source.value };
  }

  async function check() {
    try {
      await call("POST", "/fine_tuning/alpha/graders/validate", { body: { grader: read() }, signal });
      show(checked, h("p", { class: "fine" }, "This grader can grade."));
    } catch (error) {
      tellFault(checked, error);
    }
  }

  fillIn(given ?? TEMPLATES.string_check);
  const node = h(
    "div",
    { class: "grader" },
    field("Kind", type),
    field("Grader", text, "{{ item.key }} is a key of the row, {{ sample.output_text }} the answer."),
    sourceField,
    h("div", { class: "row" }, button("Check", check)),
    checked,
    tryIt({ read, readLine, model, signal }),
  );
  return { node, read };
}

function tryIt({ read, readLine, model, signal }) {
  const line = h("input", { type: "number", min: 1, value: 1, class: "short" });
  const row = h("textarea", { class: "code", rows: 5, spellcheck: "false", placeholder: '{"answer": "Oslo"}' });
  const answer = h("textarea", { rows: 3, placeholder: "An answer to be graded" });
  const result = h("div", { role: "status" });

  async function take() {
    try {
      row.value = JSON.stringify(JSON.parse(await readLine(Number(line.value))), null, 2);
      show(result);
    } catch (error) {
      tellFault(result, error);
    }
  }

  async function sample() {
    try {
      const { messages } = readRow();
      const made = await call("POST", "/chat/completions", {
        body: { model: model(), messages, max_completion_tokens: 200 },
        signal,
      });
      answer.value = made.choices[0].message.content ?? "";
      show(result);
    } catch (error) {
      tellFault(result, error);
    }
  }

  function readRow() {
    try {
      return row.value.trim() ? JSON.parse(row.value) : {};
    } catch (error) {
      throw new Error(`The row is not JSON: ${error.message}`);
    }
  }

  async function run() {
    try {
      const { messages: _, ...item } = readRow();
      show(
        result,
        verdict(
          await call("POST", "/fine_tuning/alpha/graders/run", {
            body: { grader: read(), item, model_sample: answer.value },
            signal,
          }),
        ),
      );
    } catch (error) {
      tellFault(result, error);
    }
  }

  return h(
    "fieldset",
    { class: "try" },
    h("legend", {}, "Try it on a row"),
    h("div", { class: "row bottom" }, field("Line of the training file", line), button("Take it", take)),
    field("Row", row),
    field("Answer", answer),
    h("div", { class: "row" }, button("Grade it", run, { kind: "primary" }), button("Let the base answer", sample)),
    result,
  );
}

function verdict(run) {
  const parts = Object.entries(run.sub_rewards);
  return h(
    "div",
    { class: "verdict" },
    h("p", {}, h("strong", { class: "reward" }, formatMeasure(run.reward)), h("span", { class: "sub" }, " reward")),
    parts.length > 0 &&
      h("p", { class: "sub" }, parts.map(([name, value]) => `${name} ${formatMeasure(value)}`).join(" · ")),
    run.metadata.error_details && h("p", { class: "trouble" }, run.metadata.error_details),
  );
}

function tellFault(node, error) {
  if (error.name === "AbortError") return;
  show(
    node,
    h(
      "p",
      { class: "trouble" },
      error instanceof Refused && error.param ? `${error.message} (${error.param})` : error.message,
    ),
  );
}
