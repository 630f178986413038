// The list of jobs.

import { call, events, sleep } from "/assets/api.js";
import { h, show } from "/assets/dom.js";
import {
  METHODS,
  STATUSES,
  formatAgo,
  formatDate,
  formatDuration,
  methodOf,
  nameOf,
  statusOf,
} from "/assets/format.js";
import {
  badge,
  button,
  empty,
  fault,
  field,
  isOver,
  linkButton,
  loading,
  pageHead,
  progressBar,
  select,
  timeLeft,
} from "/assets/parts.js";

const PAGE = 25;
const REFRESH_MS = 3000;
/** Of jobs that have begun and not ended: the newest step that was told, and the job's status when it was read. */
const steps = new Map();

export function jobsPage({ query, signal }) {
  const list = h("div", { class: "list" }, loading());
  const pager = h("div", { class: "pager" });
  const trouble = h("div");
  const rows = new Map();
  const node = h(
    "div",
    {},
    pageHead("Jobs", null, linkButton("New job", "#/new", "primary")),
    filterForm(query),
    trouble,
    list,
    pager,
  );

  async function refresh() {
    try {
      const page = await call("GET", "/fine_tuning/jobs", { query: toQuery(query), signal });
      await readSteps(page.data, signal);
      show(trouble);
      draw(page);
    } catch (error) {
      // What was read before stays: it is older, and still true of then.
      show(trouble, fault(error, refresh));
      if (!rows.size) show(list);
    }
  }

  function draw(page) {
    show(pager, pagerLinks(query, page));
    if (!page.data.length) {
      rows.clear();
      show(list, nothing(query));
      return;
    }
    if (!rows.size) show(list, table());
    const body = list.querySelector("tbody");
    const known = new Set(page.data.map((job) => job.id));
    for (const [id, row] of rows) {
      if (!known.has(id)) {
        row.node.remove();
        rows.delete(id);
      }
    }
    page.data.forEach((job, index) => {
      const content = JSON.stringify([
        job,
        steps.get(job.id),
        timeLeft(job, statusOf(job)),
        formatAgo(job.created_at),
      ]);
      const before = rows.get(job.id);
      if (before?.content === content) {
        if (body.children[index] !== before.node) body.insertBefore(before.node, body.children[index] ?? null);
        return;
      }
      const made = jobRow(job);
      const hadFocus = before?.node.contains(document.activeElement);
      before?.node.remove();
      body.insertBefore(made, body.children[index] ?? null);
      if (hadFocus) made.querySelector("a").focus({ preventScroll: true });
      rows.set(job.id, { node: made, content });
    });
  }

  async function keepFresh() {
    for (;;) {
      if (!document.hidden) await refresh();
      await sleep(REFRESH_MS, signal);
    }
  }

  events.addEventListener("back", refresh, { signal });
  keepFresh().catch(() => {}); // left
  return { node, title: "Jobs" };
}

function toQuery(query) {
  const asked = { limit: PAGE, after: query.get("after"), status: query.get("status"), method: query.get("method") };
  const [key, ...value] = (query.get("metadata") ?? "").split("=");
  if (key) asked[`metadata[${key.trim()}]`] = value.join("=").trim();
  return asked;
}

/** The newest step of each job that is under way: two or three, however long the list is. */
async function readSteps(jobs, signal) {
  const begun = jobs.filter((job) => ["running", "pausing", "paused"].includes(statusOf(job)));
  const due = begun.filter((job) => statusOf(job) !== "paused" || steps.get(job.id)?.status !== "paused");
  await Promise.all(
    due.map(async (job) => {
      const told = await call("GET", `/fine_tuning/jobs/${job.id}/events`, { query: { limit: 20 }, signal });
      const newest = told.data.find((event) => event.type === "metrics")?.data;
      steps.set(job.id, { status: statusOf(job), step: newest?.step ?? 0, total: newest?.total_steps ?? null });
    }),
  );
}

function filterForm(query) {
  const status = select([["", "Any status"], ...Object.entries(STATUSES)], {
    name: "status",
    value: query.get("status") ?? "",
  });
  const method = select([["", "Any method"], ...Object.entries(METHODS)], {
    name: "method",
    value: query.get("method") ?? "",
  });
  const metadata = h("input", {
    type: "text",
    name: "metadata",
    placeholder: "team=docs",
    value: query.get("metadata") ?? "",
  });
  const id = h("input", {
    type: "text",
    name: "id",
    placeholder: "ftjob-…",
    autocomplete: "off",
    spellcheck: "false",
  });
  function apply(event) {
    event?.preventDefault();
    if (id.value.trim()) {
      location.hash = `#/job/${encodeURIComponent(id.value.trim())}`;
      return;
    }
    location.hash = address({ status: status.value, method: method.value, metadata: metadata.value.trim() });
  }
  status.addEventListener("change", () => apply());
  method.addEventListener("change", () => apply());
  return h(
    "form",
    { class: "filters", onsubmit: apply, role: "search", "aria-label": "Filter jobs" },
    field("Status", status),
    field("Method", method),
    field("Metadata", metadata),
    field("Go to a job", id),
    h("button", { type: "submit", class: "button" }, "Apply"),
  );
}

function address(parts) {
  const known = Object.entries(parts).filter(([, value]) => value);
  const text = new URLSearchParams(known).toString();
  return `#/jobs${text ? `?${text}` : ""}`;
}

function pagerLinks(query, page) {
  const filters = { status: query.get("status"), method: query.get("method"), metadata: query.get("metadata") };
  const isFirst = !query.get("after");
  if (isFirst && !page.has_more) return [];
  return [
    !isFirst && linkButton("Newest", address(filters)),
    !isFirst && button("Newer", () => history.back()),
    page.has_more && linkButton("Older", address({ ...filters, after: page.data.at(-1).id })),
  ];
}

function nothing(query) {
  if ([...query.keys()].length) {
    return empty("No job is like that", "Other filters may find some.", linkButton("Show all jobs", "#/jobs"));
  }
  return empty(
    "No jobs yet",
    "A job takes a base model and a file of examples, and makes a model of your own.",
    linkButton("Create the first job", "#/new", "primary"),
  );
}

function table() {
  const heads = ["Job", "Status", "Progress", "Method", "Base", "Created"];
  return h(
    "table",
    { class: "jobs" },
    h(
      "thead",
      {},
      h(
        "tr",
        {},
        heads.map((head) => h("th", { scope: "col" }, head)),
      ),
    ),
    h("tbody"),
  );
}

function jobRow(job) {
  const status = statusOf(job);
  const cell = (name, ...content) => h("td", { class: `is-${name}` }, content);
  return h(
    "tr",
    {},
    h(
      "th",
      { scope: "row" },
      h("a", { href: `#/job/${encodeURIComponent(job.id)}` }, nameOf(job)),
      h("span", { class: "sub mono" }, job.id),
    ),
    cell("status", badge(status)),
    cell("progress", progressOf(job, status)),
    cell("method", METHODS[methodOf(job)] ?? methodOf(job)),
    cell("base", h("span", { class: "clip" }, job.model)),
    cell("created", h("time", { title: formatDate(job.created_at) }, formatAgo(job.created_at))),
  );
}

function progressOf(job, status) {
  if (isOver(status)) {
    const took = job.finished_at && `took ${formatDuration(job.finished_at - job.created_at)}`;
    return h("span", { class: "sub" }, status === "failed" ? (job.error?.message ?? "failed") : took);
  }
  const { step, total } = steps.get(job.id) ?? {};
  if (!total) return h("span", { class: "sub" }, status === "queued" ? "waits for a free slot" : "–");
  return [
    progressBar(step / total, `${step} / ${total}`, `Steps of ${nameOf(job)}`),
    h("span", { class: "sub" }, timeLeft(job, status)),
  ];
}
