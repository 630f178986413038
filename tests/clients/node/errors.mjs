// The class of each error, and what it says.
import assert from "node:assert/strict";
import OpenAI from "openai";
import { asked, client, tell } from "./asked.mjs";

async function fault(promise, kind) {
  const error = await promise.then(() => assert.fail("it was answered"), (error) => error);
  assert.ok(error instanceof kind, `${error}`);
  assert.match(error.requestID, /^req_[0-9a-f]{32}$/);
  return { status: error.status, type: error.type, code: error.code, param: error.param };
}

const long = { ...asked, messages: [{ role: "user", content: "caesura ".repeat(5000) }] };
const stranger = new OpenAI({ apiKey: "sk-of-somebody-else", maxRetries: 0 });
tell({
  too_long: await fault(client.chat.completions.create(long), OpenAI.BadRequestError),
  too_long_stream: await fault(client.chat.completions.create({ ...long, stream: true }), OpenAI.BadRequestError),
  unknown_model: await fault(client.chat.completions.create({ ...asked, model: "gpt-0" }), OpenAI.NotFoundError),
  wrong_key: await fault(stranger.chat.completions.create(asked), OpenAI.AuthenticationError),
});
