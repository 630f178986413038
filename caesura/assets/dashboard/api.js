// What the dashboard knows of the server: its API, asked as any client asks it.

// The key is kept for this tab and no longer. Another tab has to be told it anew; nothing of it lies on the disk of a
// machine that others use too, and closing the tab forgets it.
const KEY = "caesura.key";
const PROJECT = "caesura.project";

/** Events: `out`, the key opens nothing (any more); `gone` and `back`, of the server. */
export const events = new EventTarget();

export const session = {
  get key() {
    return sessionStorage.getItem(KEY);
  },
  get project() {
    return sessionStorage.getItem(PROJECT) ?? "";
  },
  /** Of the last answer. */
  organization: "",
  begin(key, project) {
    sessionStorage.setItem(KEY, key);
    if (project) sessionStorage.setItem(PROJECT, project);
    else sessionStorage.removeItem(PROJECT);
  },
  end(reason) {
    sessionStorage.removeItem(KEY);
    sessionStorage.removeItem(PROJECT);
    events.dispatchEvent(new CustomEvent("out", { detail: reason ?? "" }));
  },
};

/** The server has answered that it will not. `param` is the field at fault, where there is one. */
export class Refused extends Error {
  constructor(status, error) {
    super(error?.message ?? `The server answered with the status ${status}.`);
    this.status = status;
    this.code = error?.code ?? null;
    this.param = error?.param ?? null;
  }
}

/** Nobody has answered. */
export class Unreachable extends Error {
  constructor() {
    super("The server does not answer.");
  }
}

export function headersFor(extra) {
  const headers = { authorization: `Bearer ${session.key}`, ...extra };
  if (session.project) headers["openai-project"] = session.project;
  return headers;
}

function address(path, query) {
  const parameters = new URLSearchParams();
  for (const [name, value] of Object.entries(query ?? {})) {
    for (const one of Array.isArray(value) ? value : [value]) {
      if (one !== null && one !== undefined && one !== "") parameters.append(name, one);
    }
  }
  const text = parameters.toString();
  return `/v1${path}${text ? `?${text}` : ""}`;
}

/** Asks, and gives the answer as it comes. Raises Refused, Unreachable, or AbortError when `signal` says so. */
export async function ask(method, path, { query, body, headers, signal } = {}) {
  const given = { method, headers: headersFor(headers), signal, cache: "no-store" };
  if (body !== undefined) {
    given.headers["content-type"] = "application/json";
    given.body = JSON.stringify(body);
  }
  let answer;
  try {
    answer = await fetch(address(path, query), given);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    watch();
    throw new Unreachable();
  }
  session.organization = answer.headers.get("openai-organization") ?? session.organization;
  if (!answer.ok) throw refusal(answer.status, await answer.text());
  return answer;
}

/** The error of an answer that is no success. */
export function refusal(status, text) {
  let error = null;
  try {
    error = JSON.parse(text).error;
  } catch {
    // Not the server's own answer: a proxy's, say. The status says what there is to say.
  }
  const refused = new Refused(status, error);
  if (status === 401) session.end(refused.message);
  return refused;
}

/** Asks, and gives the answer's JSON. */
export async function call(method, path, options) {
  const answer = await ask(method, path, options);
  try {
    return await answer.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    watch();
    throw new Unreachable(); // it went away in the middle of its answer
  }
}

/** All items of a list, page by page, up to `most`. */
export async function callAll(path, { query, signal, most = 1000 } = {}) {
  const items = [];
  let after;
  for (;;) {
    const page = await call("GET", path, { query: { limit: 100, ...query, after }, signal });
    items.push(...page.data);
    if (!page.has_more || items.length >= most || !page.data.length) return { items, hasMore: page.has_more };
    after = page.data.at(-1).id;
  }
}

/** The server-sent events of an answer, in the groups they arrive in: `{id, data}`, or `{comment}`. */
export async function* readEvents(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let piece;
    try {
      piece = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Unreachable();
    }
    if (piece.done) return;
    const blocks = (rest + piece.value).split("\n\n");
    rest = blocks.pop();
    if (blocks.length) yield blocks.map(parseEvent);
  }
}

function parseEvent(block) {
  const event = {};
  for (const line of block.split("\n")) {
    if (line.startsWith(":")) event.comment = line.slice(1).trim();
    else if (line.startsWith("id: ")) event.id = line.slice(4);
    else if (line.startsWith("data: ")) event.data = line.slice(6);
  }
  return event;
}

let isWatching = false;

/** Asks until the server answers again. */
export async function watch() {
  if (isWatching) return;
  isWatching = true;
  events.dispatchEvent(new Event("gone"));
  for (let wait = 500; ; wait = Math.min(5000, wait * 1.5)) {
    await sleep(wait);
    const isBack = await fetch("/healthz", { cache: "no-store" }).then(
      (answer) => answer.ok,
      () => false,
    );
    if (isBack) break;
  }
  isWatching = false;
  events.dispatchEvent(new Event("back"));
}

/** Resolves after so many milliseconds, or rejects when the signal says so. */
export function sleep(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("Left.", "AbortError"));
    });
  });
}
