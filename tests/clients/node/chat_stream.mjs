// A stream, read as it comes.
import assert from "node:assert/strict";
import { asked, client, tell } from "./asked.mjs";

const stream = await client.chat.completions.create({
  ...asked,
  stream: true,
  stream_options: { include_usage: true },
});
const chunks = [];
for await (const chunk of stream) chunks.push(chunk);

const last = chunks.pop();
assert.deepEqual(last.choices, []);
assert.equal(last.usage.total_tokens, last.usage.prompt_tokens + last.usage.completion_tokens);
assert.equal(new Set(chunks.map((chunk) => chunk.id)).size, 1);
assert.equal(chunks[0].choices[0].delta.role, "assistant");
tell({
  content: chunks.map((chunk) => chunk.choices[0].delta.content ?? "").join(""),
  finish_reason: chunks.at(-1).choices[0].finish_reason,
});
