// Streams that are left in the middle; the server answers the next.
import assert from "node:assert/strict";
import OpenAI from "openai";
import { asked, client, tell } from "./asked.mjs";

const { max_tokens: _, ...endless } = asked;

const stream = await client.chat.completions.create({ ...endless, stream: true });
let numChunks = 0;
for await (const _chunk of stream) {
  numChunks += 1;
  stream.controller.abort();
}
assert.ok(numChunks >= 1);
assert.ok(stream.controller.signal.aborted);

const helper = client.chat.completions.stream(endless);
helper.on("content", () => helper.abort());
await assert.rejects(helper.finalContent(), OpenAI.APIUserAbortError);
assert.ok(helper.aborted);

const answer = await client.chat.completions.create(asked);
tell({ content: answer.choices[0].message.content, finish_reason: answer.choices[0].finish_reason });
