// Embeddings. The client asks for base64 unless it is told otherwise, and decodes it.
import assert from "node:assert/strict";
import { asked, client, tell } from "./asked.mjs";

const input = ["The sun rose over the sea.", "Bread"];
const { data, usage } = await client.embeddings.create({ model: asked.model, input });
const plain = await client.embeddings.create({ model: asked.model, input, encoding_format: "float" });

assert.deepEqual(data.map((item) => item.index), [0, 1]);
assert.equal(usage.total_tokens, usage.prompt_tokens);
for (const [place, { embedding }] of data.entries()) {
  assert.ok(Math.abs(Math.hypot(...embedding) - 1) < 1e-5);
  embedding.forEach((value, at) => assert.ok(Math.abs(value - plain.data[place].embedding[at]) < 1e-6));
}
tell({ embedding: data[0].embedding });
