// OpenAI's package for JavaScript, unmodified: openai_javascript.mjs URL TOKEN
import assert from "node:assert/strict";
import OpenAI from "openai";

const [url, token] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: token });
const tools = [{ type: "code_interpreter", container: { type: "auto" } }];
const include = ["code_interpreter_call.outputs"];

const first = await client.responses.create({ model: "qwen", input: "python: x = 6 * 7\npython: x", tools, include });
assert.deepEqual(first.output.map((item) => item.type), ["code_interpreter_call", "code_interpreter_call", "message"]);
assert.deepEqual(first.output[1].outputs, [{ type: "logs", logs: "42\n" }]);
assert.match(first.output_text, /42/);

const stream = client.responses.stream({ model: "qwen", input: "python: x + 1", tools, previous_response_id: first.id });
let code = "";
for await (const event of stream) {
  if (event.type === "response.code_interpreter_call_code.delta") code += event.delta;
}
assert.equal(code, "x + 1");
assert.match((await stream.finalResponse()).output_text, /43/);

const conversation = await client.conversations.create({ metadata: { topic: "sums" } });
await client.responses.create({ model: "qwen", input: "python: y = 1", tools, conversation: conversation.id });
const items = [];
for await (const item of client.conversations.items.list(conversation.id, { order: "asc" })) items.push(item.type);
assert.deepEqual(items, ["message", "code_interpreter_call", "message"]);
await assert.rejects(client.responses.retrieve("resp_x"), OpenAI.NotFoundError);
console.log("ok");
