// Calls the methods that it reads from its standard input, and tells what came of each.
import OpenAI, { AzureOpenAI, toFile } from "openai";
import { readFileSync } from "node:fs";

const { calls, azure } = JSON.parse(readFileSync(0, "utf8"));
const client = azure ? new AzureOpenAI({ ...azure, maxRetries: 0 }) : new OpenAI({ maxRetries: 0 });

/** Files come as `{"$file": [name, text]}`. */
async function revive(value) {
  if (value && typeof value === "object" && value.$file) {
    return toFile(Buffer.from(value.$file[1]), value.$file[0]);
  }
  return value;
}

for (const { name, args, body } of calls) {
  let outcome;
  try {
    const path = name.split(".");
    const method = path.pop();
    const resource = path.reduce((found, part) => found[part], client);
    const revived = Object.fromEntries(
      await Promise.all(Object.entries(body).map(async ([key, value]) => [key, await revive(value)])),
    );
    let answer = await resource[method](...args, ...(Object.keys(revived).length ? [revived] : []));
    if (answer instanceof Response) {
      answer = { text: await answer.text() };
    }
    outcome = { answer: Array.isArray(answer?.data) ? answer.data[0] : (answer ?? {}) };
  } catch (error) {
    outcome = { error: `${error.constructor.name}: ${error.message}` };
  }
  console.log(JSON.stringify(outcome));
}
