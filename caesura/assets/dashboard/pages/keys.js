// Who may come in: what the API tells of that, and the commands for the rest.

import { ask, session } from "/assets/api.js";
import { h, show } from "/assets/dom.js";
import { copyButton, facts, fault, field, loading, pageHead } from "/assets/parts.js";

const COMMANDS = [
  ["Make a key for somebody, in a project", 'caesura keys create "nightly job" --project nightly --expires-in 30d'],
  ["Make one that may delete and share models", 'caesura keys create "owner" --role owner'],
  ["See all keys, their projects, roles and limits", "caesura keys list"],
  ["Have a key open nothing any more", "caesura keys revoke key_…"],
];

export function keysPage({ signal }) {
  const here = h("section", { class: "card" }, h("h2", {}, "This key"), loading());

  async function load() {
    try {
      const answer = await ask("GET", "/fine_tuning/jobs", { query: { limit: 1 }, signal });
      const left = answer.headers.get("x-ratelimit-remaining-requests");
      const most = answer.headers.get("x-ratelimit-limit-requests");
      show(
        here,
        h("h2", {}, "This key"),
        facts([
          ["Key", h("code", {}, `${session.key.slice(0, 5)}…${session.key.slice(-2)}`)],
          ["Organization", answer.headers.get("openai-organization")],
          ["Project", session.project || "the key's own"],
          ["Requests a minute", left && `${left} of ${most} left`],
          [
            "Address for clients",
            h("span", { class: "row" }, h("code", {}, `${location.origin}/v1`), copyButton(`${location.origin}/v1`)),
          ],
        ]),
        projectForm(),
      );
    } catch (error) {
      if (error.name !== "AbortError") show(here, h("h2", {}, "This key"), fault(error, load));
    }
  }

  function projectForm() {
    const project = h("input", {
      type: "text",
      value: session.project,
      placeholder: "proj_…",
      autocomplete: "off",
      spellcheck: "false",
    });
    function change(event) {
      event.preventDefault();
      session.begin(session.key, project.value.trim());
      load();
    }
    return h(
      "form",
      { class: "filters", onsubmit: change },
      field("Work in the project", project, "An admin's key opens every project of its organization."),
      h("button", { type: "submit", class: "button" }, "Change"),
    );
  }

  load();
  const commands = COMMANDS.map(([words, command]) =>
    h(
      "div",
      { class: "command" },
      h("p", {}, words),
      h("div", { class: "row" }, h("code", {}, command), copyButton(command)),
    ),
  );
  const node = h(
    "div",
    { class: "keys" },
    pageHead(
      "Keys and projects",
      "A key opens one project; files, jobs and models belong to it, and no other project sees them.",
    ),
    here,
    h(
      "section",
      { class: "card" },
      h("h2", {}, "On the server's machine"),
      h(
        "p",
        { class: "sub" },
        "Keys are made and revoked where the server runs, and not over HTTP: who holds a key can make no other.",
      ),
      commands,
    ),
  );
  return { node, title: "Keys" };
}
