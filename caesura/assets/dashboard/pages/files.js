// The files of the project.

import { call } from "/assets/api.js";
import { h, show } from "/assets/dom.js";
import { filePicker } from "/assets/files.js";
import { formatAgo, formatBytes } from "/assets/format.js";
import { button, confirm, empty, fault, linkButton, loading, pageHead, tell } from "/assets/parts.js";
import { downloadButton } from "/assets/pages/job_details.js";

const PAGE = 50;

export function filesPage({ query, signal }) {
  const list = h("div", {}, loading());
  const add = filePicker({
    label: "Send a file",
    help: "JSONL for training or validation, up to 8 GiB unless the server says otherwise.",
    signal,
    onChange: () => load(),
  });
  add.node.querySelector("select").hidden = true;

  async function load() {
    try {
      const page = await call("GET", "/files", { query: { limit: PAGE, after: query.get("after") }, signal });
      const older = page.has_more && linkButton("Older", `#/files?after=${page.data.at(-1).id}`);
      show(
        list,
        page.data.length
          ? table(page.data)
          : empty("No files yet", "Data files are uploaded here or with a new job; results come with jobs."),
        h("div", { class: "pager" }, query.get("after") && linkButton("Newest", "#/files"), older),
      );
    } catch (error) {
      if (error.name !== "AbortError") show(list, fault(error, load));
    }
  }

  function table(files) {
    const heads = ["File", "Purpose", "Size", "Made", ""];
    return h(
      "div",
      { class: "scroll", tabindex: "0", role: "region", "aria-label": "Files" },
      h(
        "table",
        {},
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            heads.map((head) => (head ? h("th", { scope: "col" }, head) : h("td", {}))),
          ),
        ),
        h("tbody", {}, files.map(row)),
      ),
    );
  }

  function row(file) {
    return h(
      "tr",
      {},
      h(
        "th",
        { scope: "row" },
        h("span", { class: "wrap" }, file.filename),
        h("div", { class: "sub mono" }, file.id),
      ),
      h("td", {}, file.purpose),
      h("td", { class: "number" }, formatBytes(file.bytes)),
      h("td", {}, formatAgo(file.created_at)),
      h(
        "td",
        {},
        h(
          "div",
          { class: "row" },
          downloadButton(file.id, signal),
          button("Delete", () => ask(file), { kind: "small" }),
        ),
      ),
    );
  }

  function ask(file) {
    confirm({
      title: `Delete ${file.filename}?`,
      words: "Jobs that use it keep what they need until they have ended.",
      verb: "Delete the file",
      doIt: async () => {
        try {
          await call("DELETE", `/files/${file.id}`, { signal });
        } catch (error) {
          tell(error.message, "is-bad");
        }
        load();
      },
    });
  }

  load();
  return {
    node: h("div", {}, pageHead("Files"), h("section", { class: "card send" }, add.node), list),
    title: "Files",
  };
}
