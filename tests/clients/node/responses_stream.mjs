// The helper that puts a response together from its events.
import assert from "node:assert/strict";
import { asked, client, tell } from "./asked.mjs";

const { model, messages, temperature } = asked;
const types = [];
const deltas = [];
const stream = client.responses
  .stream({ model, input: messages[0].content, temperature })
  .on("event", (event) => {
    assert.equal(event.sequence_number, types.length);
    types.push(event.type);
  })
  .on("response.output_text.delta", ({ delta, snapshot }) => {
    deltas.push(delta);
    assert.equal(snapshot, deltas.join(""));
  });
const response = await stream.finalResponse();

const began = ["response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"];
const ended = [
  "response.output_text.done",
  "response.content_part.done",
  "response.output_item.done",
  "response.completed",
];
assert.deepEqual(types, [...began, ...deltas.map(() => "response.output_text.delta"), ...ended]);
assert.equal(response.status, "completed");
assert.equal(response.output_text, deltas.join(""));
tell({ output_text: response.output_text });
