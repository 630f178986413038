// The helper that puts a stream together while it tells of it.
import assert from "node:assert/strict";
import { asked, client, tell } from "./asked.mjs";

const deltas = [];
const told = [];
const stream = client.chat.completions
  .stream({ ...asked, stream_options: { include_usage: true } })
  .on("content", (delta, snapshot) => {
    deltas.push(delta);
    assert.equal(snapshot, deltas.join(""));
  })
  .on("content.done", ({ content }) => told.push(["content.done", content]))
  .on("finalContent", (content) => told.push(["finalContent", content]))
  .on("end", () => told.push(["end"]));
const content = await stream.finalContent();
const completion = await stream.finalChatCompletion();
const usage = await stream.totalUsage();
await stream.done();

assert.ok(deltas.length > 1);
assert.equal(deltas.join(""), content);
assert.deepEqual(told, [["content.done", content], ["finalContent", content], ["end"]]);
assert.equal(usage.completion_tokens, completion.usage.completion_tokens);
tell({ content, finish_reason: completion.choices[0].finish_reason });
