// The same words to two models, side by side: what the tuning has changed.

import { ask, call, readEvents } from "/assets/api.js";
import { h, newId, show } from "/assets/dom.js";
import { button, field, pageHead } from "/assets/parts.js";

const MOST_MODELS = 300;

export function chatPage({ query, signal }) {
  const names = h("datalist", { id: newId("models") });
  const left = pane("Base", query.get("base") ?? "", names.id);
  const right = pane("Tuned", query.get("model") ?? "", names.id);
  const panes = [left, right];
  const system = h("textarea", { rows: 2, placeholder: "None" });
  const temperature = h("input", { type: "number", min: 0, max: 2, step: 0.1, value: 0, class: "short" });
  const most = h("input", { type: "number", min: 1, value: 256, class: "short" });
  const words = h("textarea", { rows: 2, placeholder: "Ask both…", onkeydown: onKey });
  const send = h("button", { type: "submit", class: "button primary" }, "Send");
  const stop = button("Stop", () => stopping?.abort(), { disabled: true });
  let stopping = null;

  call("GET", "/models", { signal })
    .then(({ data }) => {
      const bases = data.filter((model) => model.owned_by === "system");
      const tuned = data
        .filter((model) => model.owned_by !== "system")
        .sort((one, other) => other.created - one.created);
      show(
        names,
        [...bases, ...tuned.slice(0, MOST_MODELS)].map((model) => h("option", { value: model.id })),
      );
      left.model.value ||= bases[0]?.id ?? "";
      right.model.value ||= (tuned.find((model) => !model.id.includes(":ckpt-step-")) ?? tuned[0])?.id ?? "";
    })
    .catch(() => {});

  function onKey(event) {
    if (event.key === "Enter" && !event.shiftKey) submit(event);
  }

  async function submit(event) {
    event.preventDefault();
    const said = words.value.trim();
    const asked = panes.filter((one) => one.model.value.trim());
    if (!said || stopping || !asked.length) return;
    words.value = "";
    stopping = new AbortController();
    const settings = {
      system: system.value.trim(),
      temperature: Number(temperature.value),
      max_completion_tokens: Number(most.value) || null,
      signal: AbortSignal.any([signal, stopping.signal]),
    };
    stop.disabled = false;
    send.disabled = true;
    await Promise.all(asked.map((one) => one.say(said, settings)));
    stopping = null;
    stop.disabled = true;
    send.disabled = false;
    words.focus();
  }

  const node = h(
    "div",
    { class: "chat" },
    pageHead(
      "Chat",
      "Both are asked the same, and answer side by side.",
      button("Start over", () => panes.forEach((one) => one.clear())),
    ),
    names,
    h(
      "details",
      {},
      h("summary", {}, "System prompt, temperature, length"),
      h(
        "div",
        { class: "grid" },
        field("System prompt", system),
        field("Temperature", temperature, "0: always the likeliest word."),
        field("Most tokens", most),
      ),
    ),
    h(
      "div",
      { class: "panes" },
      panes.map((one) => one.node),
    ),
    h("form", { class: "say", onsubmit: submit }, field("Your words", words), h("div", { class: "row" }, send, stop)),
  );
  return { node, title: "Chat" };
}

/** How fast an answer came. The wait for its first piece is told apart: a model may have to be loaded. */
class Meter {
  began = performance.now();
  first = null;
  tokens = null;

  see(piece, usage) {
    if (piece) this.first ??= performance.now();
    this.tokens = usage?.completion_tokens ?? this.tokens;
  }

  words() {
    const wait = ((this.first ?? performance.now()) - this.began) / 1000;
    const rest = (performance.now() - (this.first ?? this.began)) / 1000;
    const rate = this.tokens > 1 && rest > 0 ? `, ${Math.round((this.tokens - 1) / rest)} a second` : "";
    return `${this.tokens ?? 0} tokens${rate}, the first after ${wait.toFixed(1)} s`;
  }
}

function pane(title, name, list) {
  const model = h("input", {
    type: "text",
    list,
    value: name,
    placeholder: "None",
    autocomplete: "off",
    spellcheck: "false",
    onchange: () => clear(),
  });
  const turns = h("div", {
    class: "conversation",
    "aria-live": "polite",
    tabindex: "0",
    role: "log",
    "aria-label": `Conversation with ${title.toLowerCase()}`,
  });
  let messages = [];

  function clear() {
    messages = [];
    show(turns, h("p", { class: "sub" }, "Nothing said yet."));
  }

  async function say(words, { system, temperature, max_completion_tokens, signal }) {
    if (!messages.length) show(turns);
    messages.push({ role: "user", content: words });
    const answer = h("p", { class: "said is-model wrap" });
    const note = h("p", { class: "sub" }, "…");
    turns.append(h("p", { class: "said is-user wrap" }, words), answer, note);
    const meter = new Meter();
    let text = "";
    try {
      const told = system ? [{ role: "system", content: system }, ...messages] : messages;
      const body = {
        model: model.value.trim(),
        messages: told,
        temperature,
        max_completion_tokens,
        stream: true,
        stream_options: { include_usage: true },
      };
      for await (const group of readEvents(await ask("POST", "/chat/completions", { body, signal }))) {
        for (const { data } of group) {
          if (!data || data === "[DONE]") continue;
          const chunk = JSON.parse(data);
          if (chunk.error) throw new Error(chunk.error.message);
          const piece = chunk.choices[0]?.delta?.content ?? "";
          text += piece;
          meter.see(piece, chunk.usage);
        }
        answer.textContent = text;
        turns.scrollTop = turns.scrollHeight;
      }
      show(note, meter.words());
    } catch (error) {
      show(note, h("span", { class: "trouble" }, error.name === "AbortError" ? "Stopped." : error.message));
    }
    messages.push({ role: "assistant", content: text });
  }

  clear();
  return { node: h("section", { class: "card pane" }, field(title, model), turns), model, say, clear };
}
