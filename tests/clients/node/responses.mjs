// Responses: whole, kept, gone on with, called back, and deleted.
import assert from "node:assert/strict";
import OpenAI from "openai";
import { asked, client, tell } from "./asked.mjs";

const { model, messages, temperature } = asked;
const input = messages[0].content;

const first = await client.responses.create({ model, input, temperature });
assert.equal(first.object, "response");
assert.match(first.id, /^resp_/);
assert.equal(first.status, "completed");
assert.equal(first.error, null);
assert.equal(first.output[0].type, "message");
assert.equal(first.usage.total_tokens, first.usage.input_tokens + first.usage.output_tokens);

const second = await client.responses.create({ model, input: "Why?", temperature, previous_response_id: first.id });
assert.equal(second.previous_response_id, first.id);
assert.ok(second.usage.input_tokens > first.usage.total_tokens);

const kept = await client.responses.retrieve(first.id);
assert.equal(kept.output_text ?? kept.output[0].content[0].text, first.output_text);
await client.responses.delete(first.id);
await assert.rejects(client.responses.retrieve(first.id), OpenAI.NotFoundError);
tell({ output_text: first.output_text });
