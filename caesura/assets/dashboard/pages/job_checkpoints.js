// The models that a job has made on its way.

import { ask, callAll } from "/assets/api.js";
import { h, show } from "/assets/dom.js";
import { formatAgo, formatMeasure, statusOf } from "/assets/format.js";
import { button, copyButton, empty, fault, linkButton, loading, tell } from "/assets/parts.js";

const SHOWN = [
  "train_loss",
  "valid_loss",
  "full_valid_loss",
  "train_reward_accuracy",
  "train_reward_mean",
  "full_valid_mean_reward",
];

export function checkpointsPanel({ job, signal }) {
  const node = h("div", {}, loading("Reading the checkpoints…"));
  let isVisible = false;
  let current = job;

  async function load() {
    try {
      const { items } = await callAll(`/fine_tuning/jobs/${job.id}/checkpoints`, { signal });
      show(node, items.length ? items.map(card) : nothing());
    } catch (error) {
      if (error.name !== "AbortError") show(node, fault(error, load));
    }
  }

  function nothing() {
    const words = "One is made at the end of every epoch, at every pause, and at the end; each answers chat at once.";
    return empty(
      "No checkpoint yet",
      ["succeeded", "failed", "cancelled"].includes(statusOf(current)) ? "This job has none." : words,
    );
  }

  function card(checkpoint) {
    const name = checkpoint.fine_tuned_model_checkpoint;
    const measures = SHOWN.filter((measure) => measure in checkpoint.metrics);
    return h(
      "article",
      { class: "card checkpoint" },
      h(
        "div",
        {},
        h(
          "h3",
          {},
          name === current.fine_tuned_model
            ? `Step ${checkpoint.step_number}: the final model`
            : `Step ${checkpoint.step_number}`,
        ),
        h("p", { class: "mono wrap" }, name),
        h("p", { class: "sub" }, [
          `made ${formatAgo(checkpoint.created_at)}`,
          ...measures.map(
            (measure) => ` · ${measure.replaceAll("_", " ")} ${formatMeasure(checkpoint.metrics[measure])}`,
          ),
        ]),
      ),
      h(
        "div",
        { class: "row" },
        linkButton("Chat", `#/chat?model=${encodeURIComponent(name)}&base=${encodeURIComponent(job.model)}`, "small"),
        linkButton("Train on", `#/new?model=${encodeURIComponent(name)}`, "small"),
        copyButton(name, "Copy name"),
        exportButton(name, "peft", "Export adapter"),
        exportButton(name, "merged", "Export merged"),
      ),
    );
  }

  return {
    node,
    onShow: () => {
      isVisible = true;
      load();
    },
    onEvents: (told) => isVisible && told.some((event) => event.message.startsWith("Checkpoint created")) && load(),
    onJob: (fresh) => {
      current = fresh;
      if (isVisible) load();
    },
  };

  function exportButton(name, format, label) {
    const made = button(
      label,
      async () => {
        made.disabled = true;
        show(made, "Preparing…");
        try {
          const answer = await ask("GET", `/models/${encodeURIComponent(name)}/export`, {
            query: { format },
            signal,
          });
          await save(answer, (share) => show(made, `${Math.round(share * 100)} %`));
        } catch (error) {
          if (error.name !== "AbortError") tell(error.message, "is-bad");
        }
        made.disabled = false;
        show(made, label);
      },
      { kind: "small" },
    );
    return made;
  }
}

/** Puts an answer where the browser puts downloads. The key travels in a header, so no plain link can do it. */
export async function save(answer, onProgress = () => {}) {
  const total = Number(answer.headers.get("content-length"));
  const disposition = answer.headers.get("content-disposition") ?? "";
  const name =
    /filename\*=UTF-8''([^;]+)/.exec(disposition)?.[1] ?? /filename="([^"]+)"/.exec(disposition)?.[1] ?? "download";
  const pieces = [];
  let received = 0;
  const reader = answer.body.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    pieces.push(value);
    received += value.length;
    if (total) onProgress(received / total);
  }
  const url = URL.createObjectURL(new Blob(pieces));
  const link = h("a", { href: url, download: decodeURIComponent(name) });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
