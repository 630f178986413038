// The shell round every page: who is signed in, where one can go, and whether the server is there.

import { events, session } from "/assets/api.js";
import { h, show, svg } from "/assets/dom.js";
import { button } from "/assets/parts.js";
import { jobsPage } from "/assets/pages/jobs.js";

/** What comes after `#/`, by its first part: the page, and the place in the list of pages that it is under. */
const ROUTES = {
  jobs: { load: async () => jobsPage },
  job: { load: async () => (await import("/assets/pages/job.js")).jobPage, under: "jobs" },
  new: { load: async () => (await import("/assets/pages/create.js")).createPage },
  chat: { load: async () => (await import("/assets/pages/chat.js")).chatPage },
  files: { load: async () => (await import("/assets/pages/files.js")).filesPage },
  keys: { load: async () => (await import("/assets/pages/keys.js")).keysPage },
};
const PLACES = { jobs: "Jobs", new: "New job", chat: "Chat", files: "Files", keys: "Keys" };

const main = h("main", { id: "main", tabindex: "-1" });
const banner = h("div", { id: "banner", role: "status", "aria-live": "polite" });
const notes = h("div", { id: "notes", role: "status", "aria-live": "polite" });
let leaving = new AbortController();

/** `#/job/ftjob-1?tab=events` → `{name: "job", id: "ftjob-1", query}`. */
function readAddress() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  const [name, ...rest] = path.split("/");
  return { name: name || "jobs", id: decodeURIComponent(rest.join("/")), query: new URLSearchParams(query) };
}

async function showPage({ isFirst = false } = {}) {
  leaving.abort();
  leaving = new AbortController();
  const { signal } = leaving;
  if (!session.key) {
    const { signInPage } = await import("/assets/pages/signin.js");
    document.body.dataset.signedIn = "false";
    show(main, signInPage(lastWords, begin));
    document.title = "Sign in · Caesura";
    main.querySelector("input").focus();
    return;
  }
  document.body.dataset.signedIn = "true";
  const address = readAddress();
  const route = ROUTES[address.name];
  markPlace(route?.under ?? address.name);
  if (!route) {
    show(main, h("h1", { tabindex: "-1" }, "There is no such page"), h("a", { href: "#/jobs" }, "Go to the jobs"));
    return;
  }
  const page = await route.load();
  if (signal.aborted) return;
  const made = page({ ...address, signal });
  show(main, made.node);
  main.dataset.address = location.hash; // which page it is that is shown
  document.title = `${made.title} · Caesura`;
  window.scrollTo(0, 0);
  // Whoever goes by keyboard or listens begins at the page's head.
  if (!isFirst) main.querySelector("h1")?.focus({ preventScroll: true });
}

let lastWords = "";

function begin(key, project) {
  lastWords = "";
  session.begin(key, project);
  showPage();
}

function markPlace(name) {
  for (const link of document.querySelectorAll("nav a")) {
    if (link.dataset.place === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

function toggleTheme() {
  const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = theme;
  localStorage.setItem("theme", theme);
  show(themeButton, themeWords());
  events.dispatchEvent(new Event("theme"));
}

function themeWords() {
  return document.documentElement.dataset.theme === "dark" ? "Light colours" : "Dark colours";
}

const themeButton = button(themeWords(), toggleTheme, { kind: "quiet" });
const mark = svg("svg", { viewBox: "0 0 24 24", "aria-hidden": "true" }, svg("path", { d: "M7 20 11 4M13 20 17 4" }));

document.body.append(
  h("a", { class: "skip", href: "#main", onclick: skip }, "Skip to the page"),
  h(
    "div",
    { class: "side" },
    h("a", { class: "wordmark", href: "#/jobs" }, mark, "Caesura"),
    h(
      "nav",
      { "aria-label": "Pages" },
      Object.entries(PLACES).map(([name, title]) => h("a", { href: `#/${name}`, "data-place": name }, title)),
    ),
    h(
      "div",
      { class: "side-end" },
      themeButton,
      button("Sign out", () => session.end(), { kind: "quiet sign-out" }),
    ),
  ),
  h("div", { class: "content" }, banner, main),
  notes,
);

function skip(event) {
  event.preventDefault(); // the address says which page this is
  main.focus();
}

events.addEventListener("gone", () =>
  show(banner, h("p", {}, h("strong", {}, "The server does not answer. "), "Trying again; nothing here is lost.")),
);
events.addEventListener("back", () => show(banner));
events.addEventListener("out", (event) => {
  lastWords = event.detail;
  showPage();
});
window.addEventListener("hashchange", () => showPage());
showPage({ isFirst: true });
