// What a job was asked for, what became of that, its files, and what is known of its data.

import { ask, call } from "/assets/api.js";
import { h, show } from "/assets/dom.js";
import { formatBytes, formatCount, formatDate, formatMeasure, methodOf, statusOf } from "/assets/format.js";
import { button, copyButton, facts, loading, tell } from "/assets/parts.js";
import { save } from "/assets/pages/job_checkpoints.js";

const EXTRAS = ["adapter", "checkpoint_every", "keep_best", "early_stopping", "max_minutes", "max_tokens"];
const NOTES = {
  cut: "cut at the end of the context",
  teach_nothing: "teach nothing",
  without_user: "have no message of the user",
  repeated: "repeat an earlier one",
  in_training_file: "stand in the training file too",
};

export function detailsPanel({ job, signal }) {
  const node = h("div", { class: "details" });
  let current = job;
  let isVisible = false;

  function draw() {
    const report = h("section", { class: "card wide" }, h("h2", {}, "The data"), loading("Reading the report…"));
    show(node, report, parameters(), files(), asked());
    drawReport(report);
  }

  function parameters() {
    const method = current.method[methodOf(current)];
    return h(
      "section",
      { class: "card" },
      h("h2", {}, "Hyperparameters"),
      facts(
        Object.entries(method.hyperparameters).map(([name, value]) => [
          name,
          typeof value === "number" ? formatMeasure(value) : String(value),
        ]),
      ),
      Object.values(method.hyperparameters).includes("auto") &&
        h("p", { class: "help" }, "auto becomes a number when the job first runs."),
    );
  }

  function files() {
    const section = h("section", { class: "card" }, h("h2", {}, "Files"));
    const named = [
      ["Training", current.training_file],
      ["Validation", current.validation_file],
      ...current.result_files.map((id) => ["Result", id]),
    ];
    for (const [title, id] of named.filter(([, id]) => id)) section.append(fileRow(title, id));
    return section;
  }

  function fileRow(title, id) {
    const name = h("span", { class: "wrap" }, id);
    const row = h("div", { class: "file-row" }, h("span", { class: "sub" }, title), name, downloadButton(id, signal));
    call("GET", `/files/${id}`, { signal }).then(
      (file) => show(name, file.filename, h("span", { class: "sub" }, ` ${formatBytes(file.bytes)}`)),
      () => show(name, `${id} (no longer there)`),
    );
    return row;
  }

  function asked() {
    const { hyperparameters: _, ...rest } = current.method[methodOf(current)];
    const extras = EXTRAS.filter((name) => current[name] !== undefined && current[name] !== null).map((name) => [
      name,
      JSON.stringify(current[name]),
    ]);
    const metadata = Object.entries(current.metadata ?? {}).map(([name, value]) => [`metadata.${name}`, value]);
    return h(
      "section",
      { class: "card wide" },
      h("h2", {}, "The request"),
      facts([
        ["Job", h("span", { class: "row" }, h("code", {}, current.id), copyButton(current.id))],
        ["Base", current.model],
        ["Seed", String(current.seed)],
        ["Created", formatDate(current.created_at)],
        ["Finished", current.finished_at && formatDate(current.finished_at)],
        ["Trained tokens", current.trained_tokens && formatCount(current.trained_tokens)],
        ...extras,
        ...metadata,
      ]),
      Object.keys(rest).length > 0 &&
        h(
          "details",
          {},
          h("summary", {}, "Grader and all else of the method"),
          h("pre", {}, JSON.stringify(rest, null, 2)),
        ),
    );
  }

  async function drawReport(section) {
    const words =
      { validating_files: "The files are being read." }[statusOf(current)] ??
      "There is no report of this job's files.";
    if (!current.validation_report) {
      show(section, h("h2", {}, "The data"), h("p", { class: "sub" }, words));
      return;
    }
    try {
      const report = await call("GET", `/files/${current.validation_report}/content`, { signal });
      show(section, h("h2", {}, "The data"), report.files.map(reportOf));
    } catch (error) {
      if (error.name !== "AbortError")
        show(section, h("h2", {}, "The data"), h("p", { class: "sub" }, error.message));
    }
  }

  return {
    node,
    onShow: () => {
      if (!isVisible) draw();
      isVisible = true;
    },
    onJob: (fresh) => {
      current = fresh;
      if (isVisible) draw();
    },
  };
}

/** What `caesura check` says of a file, for people. */
function reportOf(file) {
  const notes = Object.entries(NOTES).filter(([name]) => file[name]?.rows);
  return h(
    "div",
    { class: "report" },
    h("h3", {}, file.param === "validation_file" ? "Validation file" : "Training file"),
    !file.error &&
      h("p", {}, [
        `${formatCount(file.rows)} rows`,
        file.tokens &&
          `, ${formatCount(file.tokens.total)} tokens, of which ${formatCount(file.tokens.learned)} are learned; ` +
            `${file.tokens.min} to ${file.tokens.max} a row.`,
        !notes.length && file.tokens && " Nothing to note.",
      ]),
    file.problems.length > 0 ? problems(file) : file.error && h("p", { class: "trouble" }, file.error.message),
    notes.length > 0 &&
      h(
        "ul",
        {},
        notes.map(([name, words]) =>
          h(
            "li",
            {},
            `${formatCount(file[name].rows)} ${words}: line ${file[name].lines.join(", ")}`,
            file[name].rows > file[name].lines.length && ", …",
          ),
        ),
      ),
  );
}

function problems(file) {
  const rest = file.num_problems - file.problems.length;
  return h(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": "Faulty lines" },
    h(
      "table",
      {},
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          ["Line", "What is wrong", "To mend it"].map((head) => h("th", { scope: "col" }, head)),
        ),
      ),
      h(
        "tbody",
        {},
        file.problems.map((one) =>
          h("tr", {}, h("td", {}, one.line), h("td", {}, one.message), h("td", {}, one.remedy)),
        ),
      ),
    ),
    rest > 0 && h("p", { class: "sub" }, `and ${formatCount(rest)} more.`),
  );
}

export function downloadButton(id, signal) {
  const made = button(
    "Download",
    async () => {
      made.disabled = true;
      try {
        await save(await ask("GET", `/files/${id}/content`, { headers: { accept: "text/csv" }, signal }));
      } catch (error) {
        if (error.name !== "AbortError") tell(error.message, "is-bad");
      }
      made.disabled = false;
    },
    { kind: "small" },
  );
  return made;
}
