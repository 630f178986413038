// Choosing a data file: one that is on the server, or a new one, sent with its progress shown.

import { ask, call } from "/assets/api.js";
import { h, show } from "/assets/dom.js";
import { formatBytes } from "/assets/format.js";
import { button, field, select } from "/assets/parts.js";
import { upload } from "/assets/upload.js";

/** Enough of a file for its first rows. */
const HEAD_BYTES = 262_144;

/** `{node, id(), readLine(number)}`; `onChange` is called when another file is chosen. */
export function filePicker({ label, help, name, signal, onChange = () => {} }) {
  const chosen = select([["", "None"]], { name, onchange: () => choose() });
  const input = h("input", {
    type: "file",
    accept: ".jsonl,application/jsonl",
    class: "visually-hidden",
    tabindex: "-1",
    "aria-hidden": "true",
    onchange: () => input.files[0] && send(input.files[0]),
  });
  const state = h("div", { class: "upload", role: "status" });
  const preview = h("div");
  const locals = new Map();
  let sending = null;

  call("GET", "/files", { query: { purpose: "fine-tune", limit: 100 }, signal }).then(
    (page) =>
      page.data.forEach((file) => (find(file.id) ? show(find(file.id), titleOf(file)) : chosen.append(option(file)))),
    () => {},
  );

  function find(id) {
    return [...chosen.options].find((one) => one.value === id);
  }

  function option(file) {
    return h("option", { value: file.id }, titleOf(file));
  }

  async function send(file) {
    sending?.abort();
    sending = new AbortController();
    signal.addEventListener("abort", () => sending.abort());
    const bar = h("progress", { max: 1, value: 0, "aria-label": `Sending ${file.name}` });
    const words = h("span", { class: "sub" }, "0 %");
    const stop = button("Stop", () => sending.abort(), { kind: "small" });
    show(state, h("span", { class: "wrap" }, file.name), bar, words, stop);
    const onProgress = (share) => {
      bar.value = share;
      show(words, share < 1 ? `${Math.floor(share * 100)} % of ${formatBytes(file.size)}` : "Being stored…");
    };
    try {
      const made = await upload(file, { onProgress, signal: sending.signal });
      locals.set(made.id, file);
      chosen.append(option(made));
      chosen.value = made.id;
      show(state, h("span", { class: "fine" }, `${made.filename} is uploaded, ${formatBytes(made.bytes)}.`));
      choose();
    } catch (error) {
      show(
        state,
        h(
          "span",
          { class: "trouble", role: "alert" },
          error.name === "AbortError" ? "The upload was stopped; nothing was kept." : error.message,
        ),
      );
    }
    input.value = "";
  }

  async function choose() {
    show(preview);
    const id = chosen.value;
    onChange(id);
    if (!id) return;
    try {
      const line = await readLine(1);
      if (chosen.value !== id) return;
      show(preview, h("details", {}, h("summary", {}, "Its first row"), h("pre", {}, pretty(line))));
    } catch (error) {
      if (error.name !== "AbortError") show(preview, h("p", { class: "help" }, error.message));
    }
  }

  /** The text of line `number`, from 1, where it is within the file's beginning. */
  async function readLine(number) {
    const local = locals.get(chosen.value);
    const head = local ? await local.slice(0, HEAD_BYTES).text() : await readHead(chosen.value, signal);
    const line = head.split("\n")[number - 1];
    if (!line) throw new Error(`The beginning of the file has no line ${number}.`);
    return line;
  }

  const picker = h(
    "div",
    { class: "picker" },
    chosen,
    button("Upload…", () => input.click()),
    input,
  );
  const node = field(label, picker, help, [state, preview]);
  node.addEventListener("dragover", (event) => event.preventDefault());
  node.addEventListener("drop", (event) => {
    event.preventDefault();
    if (event.dataTransfer.files[0]) send(event.dataTransfer.files[0]);
  });
  function setId(id) {
    if (!id) return;
    if (!find(id)) chosen.append(h("option", { value: id }, id));
    chosen.value = id;
    choose();
  }
  return { node, id: () => chosen.value || null, readLine, setId };
}

function titleOf(file) {
  return `${file.filename} (${formatBytes(file.bytes)}, ${file.id.slice(-6)})`;
}

async function readHead(id, signal) {
  const leaving = new AbortController();
  const answer = await ask("GET", `/files/${id}/content`, { signal: AbortSignal.any([signal, leaving.signal]) });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  while (text.length < HEAD_BYTES) {
    const { done, value } = await reader.read();
    if (done) break;
    text += value;
  }
  leaving.abort(); // the rest is not wanted
  return text;
}

export function pretty(line) {
  try {
    return JSON.stringify(JSON.parse(line), null, 2);
  } catch {
    return line;
  }
}
