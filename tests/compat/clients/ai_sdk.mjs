// Vercel's AI SDK, unmodified, with OpenAI's hosted code interpreter: ai_sdk.mjs URL TOKEN
import assert from "node:assert/strict";
import { createOpenAI } from "@ai-sdk/openai";
import { generateText, streamText } from "ai";

const [url, token] = process.argv.slice(2);
const openai = createOpenAI({ baseURL: `${url}/v1`, apiKey: token });
const tools = { code_interpreter: openai.tools.codeInterpreter({}) };

const first = await generateText({ model: openai.responses("qwen"), prompt: "python: x = 6 * 7\npython: x", tools });
assert.match(first.text, /42/);
assert.equal(first.toolResults.length, 2);
assert.deepEqual(first.toolResults[1].output.outputs, [{ type: "logs", logs: "42\n" }]);

// It sends the items of the first answer as references.
const messages = [
  { role: "user", content: "python: x = 6 * 7\npython: x" },
  ...first.response.messages,
  { role: "user", content: "python: x + 1" },
];
const second = streamText({ model: openai.responses("qwen"), messages, tools });
let text = "";
for await (const part of second.fullStream) {
  assert.notEqual(part.type, "error", JSON.stringify(part));
  if (part.type === "text-delta") text += part.text;
}
assert.match(text, /43/);
console.log("ok");
