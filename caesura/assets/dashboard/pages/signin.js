// Who are you? A key says so.

import { call, session } from "/assets/api.js";
import { h, show, svg } from "/assets/dom.js";
import { field } from "/assets/parts.js";

/** `words`: why one is here, where there is a reason; `begin` is given the key once it has opened something. */
export function signInPage(words, begin) {
  const key = h("input", {
    type: "password",
    autocomplete: "off",
    spellcheck: "false",
    required: true,
    placeholder: "sk-…",
  });
  const project = h("input", { type: "text", autocomplete: "off", spellcheck: "false", placeholder: "proj_…" });
  const trouble = h("div", { role: "alert" }, words && h("p", { class: "trouble" }, words));
  const enter = h("button", { type: "submit", class: "button primary wide" }, "Sign in");

  async function signIn(event) {
    event.preventDefault();
    enter.disabled = true;
    session.begin(key.value.trim(), project.value.trim());
    try {
      await call("GET", "/fine_tuning/jobs", { query: { limit: 1 } });
      begin(key.value.trim(), project.value.trim());
    } catch (error) {
      // A key that was refused has brought up this page anew, with the server's words on it.
      if (session.key) session.end(error.message);
      show(trouble, h("p", { class: "trouble" }, error.message));
      enter.disabled = false;
    }
  }

  return h(
    "div",
    { class: "sign-in" },
    svg(
      "svg",
      { viewBox: "0 0 24 24", "aria-hidden": "true", class: "sign-in-mark" },
      svg("path", { d: "M7 20 11 4M13 20 17 4" }),
    ),
    h("h1", {}, "Sign in"),
    h(
      "p",
      { class: "lead" },
      "With a key of this server. It printed its first one at its first start, and keeps it in the file ",
      h("code", {}, "api_key"),
      " of its data folder.",
    ),
    h(
      "form",
      { onsubmit: signIn },
      trouble,
      field("Key", key, "Kept for this tab alone: when it closes, the key is forgotten."),
      h(
        "details",
        {},
        h("summary", {}, "Another project"),
        field("Project", project, "An admin's key opens every project of its organization."),
      ),
      enter,
    ),
  );
}
