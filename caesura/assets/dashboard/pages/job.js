// One job: how it does, what can be done about it, and all that it has told and made.

import { Refused, call, events, sleep } from "/assets/api.js";
import { h, show } from "/assets/dom.js";
import { follow } from "/assets/follow.js";
import { METHODS, formatAgo, formatCount, formatDuration, methodOf, nameOf, statusOf } from "/assets/format.js";
import { Steps } from "/assets/metrics.js";
import {
  badge,
  confirm,
  copyButton,
  fault,
  isOver,
  linkButton,
  loading,
  pageHead,
  progressBar,
  button,
  tabs,
  tell,
  timeLeft,
} from "/assets/parts.js";
import { chartsPanel } from "/assets/pages/job_charts.js";
import { checkpointsPanel } from "/assets/pages/job_checkpoints.js";
import { detailsPanel } from "/assets/pages/job_details.js";
import { eventsPanel } from "/assets/pages/job_events.js";
import { rolloutsPanel } from "/assets/pages/job_rollouts.js";

const REFRESH_MS = 5000;
/** What each move does, in the words of the page, and what the job then is. */
const MOVES = {
  pause: {
    from: ["validating_files", "queued", "running"],
    verb: "Pause",
    words:
      "Stops after the step in hand and keeps everything; the machine is free for others. " +
      "Resume goes on to the same bytes, as if nothing had happened.",
    done: {
      paused: "Paused. Nothing is lost: resume goes on from here.",
      pausing: "Pausing: the step in hand is being finished.",
    },
  },
  resume: {
    from: ["paused", "pausing"],
    verb: "Resume",
    words: "Puts the job back in the queue; it goes on exactly where it stopped.",
    done: {
      queued: "Resumed: it goes on as soon as a slot is free.",
      validating_files: "Resumed.",
      running: "The pause is taken back; it goes on.",
    },
  },
  cancel: {
    from: ["validating_files", "queued", "running", "pausing", "paused"],
    verb: "Cancel",
    words: "Ends the job for good. Checkpoints that it has made stay and answer.",
    done: { cancelled: "Cancelled. Its checkpoints stay." },
  },
};

export function jobPage({ id, query, signal }) {
  const node = h("div", {}, loading("Loading the job…"));
  const steps = new Steps();
  let job = null;
  let views = [];
  const head = h("div", { class: "job-head" });

  async function load() {
    try {
      take(await call("GET", `/fine_tuning/jobs/${encodeURIComponent(id)}`, { signal }));
    } catch (error) {
      if (error.name === "AbortError") return;
      if (job && error instanceof Refused) tell(error.message, "is-bad");
      if (!job) show(node, pageHead("Job"), fault(error, load), linkButton("All jobs", "#/jobs"));
    }
  }

  function take(fresh) {
    const isFirst = job === null;
    const before = job && statusOf(job);
    job = fresh;
    if (isFirst) build();
    drawHead();
    if (before !== statusOf(job)) views.forEach((view) => view.onJob?.(job));
  }

  function build() {
    const given = { job, steps, signal };
    const panels = {
      charts: ["Charts", chartsPanel],
      ...(methodOf(job) === "reinforcement" && { rollouts: ["Rollouts", rolloutsPanel] }),
      events: ["Events", eventsPanel],
      checkpoints: ["Checkpoints", checkpointsPanel],
      details: ["Details", detailsPanel],
    };
    const made = Object.entries(panels).map(([name, [title, panel]]) => [name, title, panel(given)]);
    views = made.map(([, , view]) => view);
    const nodes = Object.fromEntries(made.map(([name, title, view]) => [name, [title, view.node]]));
    const onChoose = (chosen) => {
      made.find(([name]) => name === chosen)[2].onShow?.();
      if (readTab() !== chosen) history.replaceState(null, "", `#/job/${encodeURIComponent(id)}?tab=${chosen}`);
    };
    const wanted = query.get("tab") ?? (statusOf(job) === "failed" ? "details" : "charts");
    show(node, head, tabs("Parts of the job", nodes, { chosen: wanted, onChoose }).node);
    document.title = `${nameOf(job)} · Caesura`;
    run();
  }

  function run() {
    const onEvents = (told) => {
      const news = told.filter((event) => event.type === "metrics" && steps.add(event.data));
      views.forEach((view) => view.onEvents?.(told));
      if (news.length) drawProgress();
      if (told.some((event) => event.type !== "metrics")) load();
    };
    const onCaughtUp = () => views.forEach((view) => view.onCaughtUp?.());
    follow(id, { onEvents, onCaughtUp, onFault: (error) => tell(error.message, "is-bad"), signal }).catch(() => {});
    keepFresh().catch(() => {});
  }

  async function keepFresh() {
    while (!isOver(statusOf(job))) {
      await sleep(REFRESH_MS, signal);
      if (!document.hidden) await load();
    }
  }

  const progress = h("div", { class: "job-progress" });
  const numSteps = h("span");

  function drawProgress() {
    const status = statusOf(job);
    const { last, total } = steps;
    progress.hidden = isOver(status);
    if (progress.hidden) {
      show(numSteps, last > 0 && ` · ${formatCount(last)} of ${formatCount(total)} steps`);
      return;
    }
    const waiting = { queued: "Waits for a free slot.", validating_files: "The files are being read." }[status];
    const words = `step ${formatCount(last)} of ${formatCount(total ?? 0)}`;
    const note = h("span", { class: "sub" }, timeLeft(job, status) ?? waiting);
    show(progress, total && progressBar(last / total, words, "Steps"), note);
  }

  function drawHead() {
    const status = statusOf(job);
    const allowed = Object.entries(MOVES).filter(([, move]) => move.from.includes(status));
    const signature = JSON.stringify([status, job.fine_tuned_model, job.error]);
    if (head.dataset.signature !== signature) {
      head.dataset.signature = signature;
      const focused = head.contains(document.activeElement) ? document.activeElement.textContent : null;
      show(
        head,
        h("a", { class: "crumb", href: "#/jobs" }, "Jobs"),
        h("div", { class: "job-title" }, h("h1", { tabindex: "-1" }, nameOf(job)), badge(status)),
        h("p", { class: "lead" }, [
          METHODS[methodOf(job)] ?? methodOf(job),
          ", from ",
          h("span", { class: "mono" }, job.model),
          ` · created ${formatAgo(job.created_at)}`,
          job.finished_at && ` · took ${formatDuration(job.finished_at - job.created_at)}`,
          numSteps,
        ]),
        h(
          "p",
          { class: "row id-row" },
          h("code", {}, job.id),
          copyButton(job.id, "Copy id"),
          linkButton("Create one like it", `#/new?like=${encodeURIComponent(job.id)}`, "small"),
        ),
        progress,
        job.error &&
          h(
            "div",
            { class: "callout is-bad", role: "alert" },
            h("strong", {}, "Why it failed"),
            h("p", {}, job.error.message),
          ),
        job.fine_tuned_model && ready(),
        allowed.length > 0 &&
          h(
            "div",
            { class: "moves" },
            allowed.map(([name, move]) => moveRow(name, move)),
          ),
      );
      if (focused)
        (
          [...head.querySelectorAll("button")].find((one) => one.textContent === focused) ?? head.querySelector("h1")
        ).focus();
    }
    drawProgress();
  }

  function ready() {
    const name = job.fine_tuned_model;
    return h(
      "div",
      { class: "callout is-good" },
      h("div", {}, h("strong", {}, "The model is ready"), h("p", { class: "mono wrap" }, name)),
      h(
        "div",
        { class: "row" },
        linkButton(
          "Chat with it",
          `#/chat?model=${encodeURIComponent(name)}&base=${encodeURIComponent(job.model)}`,
          "primary",
        ),
        copyButton(name, "Copy name"),
      ),
    );
  }

  function moveRow(name, move) {
    const kind = { pause: "primary", resume: "primary", cancel: "danger-quiet" }[name];
    const onclick = () => (name === "cancel" ? confirmCancel(move) : make(name, move));
    return h("div", { class: "move" }, button(move.verb, onclick, { kind }), h("p", { class: "help" }, move.words));
  }

  function confirmCancel(move) {
    confirm({
      title: `Cancel ${nameOf(job)}?`,
      words:
        "It ends for good, and cannot be resumed. Checkpoints that it has made stay. To stop for a while, pause it.",
      verb: "Cancel the job",
      doIt: () => make("cancel", move),
    });
  }

  /** Somebody else may have been first: then the job as it is now says so, and nothing is done. */
  async function make(name, move) {
    head.querySelectorAll("button").forEach((one) => (one.disabled = true));
    const path = `/fine_tuning/jobs/${encodeURIComponent(id)}`;
    try {
      const now = await call("GET", path, { signal });
      if (statusOf(now) !== statusOf(job) && !move.from.includes(statusOf(now))) {
        take(now);
        tell(`Nothing to do: meanwhile the job is ${statusWord(now)}.`);
        return;
      }
      const moved = await call("POST", `${path}/${name}`, { signal });
      take(moved);
      tell(move.done[statusOf(moved)] ?? `The job is ${statusWord(moved)}.`);
    } catch (error) {
      if (error.name === "AbortError") return;
      if (error instanceof Refused) await load();
      tell(error.message, "is-bad");
    } finally {
      head.querySelectorAll("button").forEach((one) => (one.disabled = false));
    }
  }

  events.addEventListener("back", load, { signal });
  load();
  return { node, title: "Job" };
}

function readTab() {
  return new URLSearchParams(location.hash.split("?")[1]).get("tab");
}

function statusWord(job) {
  return statusOf(job).replaceAll("_", " ");
}
