// What the programs here share. The server's address and key are in the environment, where the client looks for them.
import OpenAI from "openai";

/** What to ask, the same that the Python client asks: `model`, `messages` and how to sample. */
export const asked = JSON.parse(process.argv[2]);

export const client = new OpenAI({ maxRetries: 0 });

const FORECASTS = { Paris: "sunny", Rome: "rainy" };

/** A function for the model to call. `calls` holds the arguments of each call. */
export function weather() {
  const calls = [];
  const parameters = {
    type: "object",
    properties: { city: { type: "string", enum: Object.keys(FORECASTS) } },
    required: ["city"],
    additionalProperties: false,
  };
  const definition = { name: "get_weather", description: "The weather in a city.", parameters };
  const run = ({ city }) => {
    calls.push({ city });
    return FORECASTS[city];
  };
  return { calls, definition, run };
}

/** Where the test reads what came of it. */
export function tell(value) {
  console.log(JSON.stringify(value));
}
