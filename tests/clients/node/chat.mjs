// A whole answer, and what the client adds to it.
import assert from "node:assert/strict";
import { asked, client, tell } from "./asked.mjs";

const { data, response, request_id } = await client.chat.completions.create(asked).withResponse();

assert.equal(data.object, "chat.completion");
assert.match(data.id, /^chatcmpl-/);
assert.equal(data.model, asked.model);
assert.equal(data.choices.length, 1);
assert.equal(data.choices[0].message.role, "assistant");
assert.equal(data.usage.total_tokens, data.usage.prompt_tokens + data.usage.completion_tokens);
assert.match(request_id, /^req_[0-9a-f]{32}$/);
assert.equal(data._request_id, request_id);
assert.ok(Number(response.headers.get("x-ratelimit-limit-requests")) >= 1);
tell({ content: data.choices[0].message.content, finish_reason: data.choices[0].finish_reason });
