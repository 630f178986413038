// Tools: the helper runs the functions that the model calls and brings back what they return, whole and in streams.
import assert from "node:assert/strict";
import { asked, client, tell, weather } from "./asked.mjs";

for (const stream of [false, true]) {
  const { calls, definition, run } = weather();
  const runner = client.chat.completions.runTools(
    {
      ...asked,
      stream,
      tools: [{ type: "function", function: { ...definition, parse: JSON.parse, function: run } }],
      tool_choice: "required",
      parallel_tool_calls: false,
    },
    { maxChatCompletions: 2 },
  );
  await runner.done();
  const roles = runner.messages.map((message) => message.role);
  assert.deepEqual(roles, ["user", "assistant", "tool", "assistant", "tool"]);
  const [call] = runner.messages[1].tool_calls;
  assert.match(call.id, /^call_/);
  assert.equal(call.type, "function");
  assert.equal(call.function.name, "get_weather");
  assert.equal(runner.messages[2].tool_call_id, call.id);
  assert.deepEqual(JSON.parse(call.function.arguments), calls[0]);
  assert.equal(calls.length, 2);
  const completions = runner.allChatCompletions();
  assert.deepEqual(completions.map((completion) => completion.choices[0].finish_reason), ["tool_calls", "tool_calls"]);
  tell({ stream, calls });
}
