// An answer that the client parses, whole and in a stream.
import assert from "node:assert/strict";
import { asked, client, tell } from "./asked.mjs";

const schema = {
  type: "object",
  properties: { verdict: { type: "string", enum: ["good", "bad"] }, stars: { type: "integer", minimum: 0, maximum: 5 } },
  required: ["verdict", "stars"],
  additionalProperties: false,
};
const body = { ...asked, response_format: { type: "json_schema", json_schema: { name: "review", schema, strict: true } } };

const whole = await client.chat.completions.parse(body);
const streamed = await client.chat.completions.stream(body).finalChatCompletion();

const review = JSON.parse(whole.choices[0].message.content);
assert.ok(["good", "bad"].includes(review.verdict));
assert.ok(Number.isInteger(review.stars) && review.stars >= 0 && review.stars <= 5);
assert.equal(streamed.choices[0].message.content, whole.choices[0].message.content);
tell(review);
