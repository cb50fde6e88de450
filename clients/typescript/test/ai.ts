/** The AI SDK itself with our tools and a scripted model: `node ai.ts URL TOKEN`. Prints "ok" at the end. */
import assert from "node:assert/strict";
import { generateText, isStepCount, streamText } from "ai";
import { kernelsvcTools, type ToolAnswer } from "../src/ai/index.ts";
import { Client } from "../src/index.ts";
import { type Call, scripted } from "./models.ts";

const [url = "", token = ""] = process.argv.slice(2);

await using client = new Client({ url, token });
await using session = await client.createSession({ name: "ai" });
const tools = kernelsvcTools({ client, session });
const stopWhen = isStepCount(10);

function answers(result: { steps: readonly { toolResults: readonly { output: unknown }[] }[] }): ToolAnswer[] {
  return result.steps.flatMap((step) => step.toolResults.map((each) => each.output as ToolAnswer));
}

/** The same loop of a model and our tools, with each of the AI SDK's two functions. */
const LOOPS = {
  generateText: async (model: ReturnType<typeof scripted>, abortSignal?: AbortSignal) => {
    const result = await generateText({ model, tools, stopWhen, prompt: "go", ...(abortSignal && { abortSignal }) });
    return { text: result.text, answers: answers(result), prompt: model.doGenerateCalls.at(-1)?.prompt };
  },
  streamText: async (model: ReturnType<typeof scripted>, abortSignal?: AbortSignal) => {
    const result = streamText({ model, tools, stopWhen, prompt: "go", ...(abortSignal && { abortSignal }) });
    const steps = await result.steps;
    return { text: await result.text, answers: answers({ steps }), prompt: model.doStreamCalls.at(-1)?.prompt };
  },
};

async function ranTimes(code: string): Promise<number> {
  return (await session.cells()).filter((cell) => cell.code === code).length;
}

for (const [name, loop] of Object.entries(LOOPS)) {
  // State from step to step, errors that the model reads, files, and the words of the other tools.
  const found = await loop(
    scripted(
      ["run_code", { code: "x = 6 * 7" }],
      ["run_code", { code: "print(x)" }],
      ["run_code", { code: "1/0" }],
      ["variables", {}],
      ["write_file", { path: "a.txt", text: "one\ntwo\n" }],
      ["read_file", { path: "a.txt", find: "tw" }],
      ["read_file", { path: "missing.txt" }],
      ["keep", { name }],
    ),
  );
  const [, printed, failed, variables, , file, missing] = found.answers;
  assert.equal(found.text, "done");
  assert.match(printed?.text ?? "", /42/);
  assert.match(failed?.text ?? "", /ZeroDivisionError/);
  assert.equal(failed?.failed, true);
  assert.match(variables?.text ?? "", /x: int = 42/);
  assert.match(file?.text ?? "", /^2: two/);
  assert.match(missing?.text ?? "", /not_found/);
  // What the model reads, not only what the program gets.
  const prompt = JSON.stringify(found.prompt);
  assert.match(prompt, /ZeroDivisionError/);
  assert.match(prompt, /"error-text"/);
}

{
  // Undo and fork.
  const made = await generateText({
    model: scripted(["run_code", { code: "x = 0" }], ["undo", {}], ["run_code", { code: "print(x)" }], ["fork", { count: 2 }]),
    tools,
    stopWhen,
    prompt: "go",
  });
  const [, , printed, forked] = answers(made);
  assert.match(printed?.text ?? "", /42/);
  for (const id of forked?.facts?.["sessions"] as string[]) await (await client.session(id)).close();
}

for (const loop of Object.values(LOOPS)) {
  // A picture reaches the model as a file.
  const code = "import base64\nfrom IPython.display import Image, display\ndisplay(Image(base64.b64decode('iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==')))";
  const found = await loop(scripted(["run_code", { code }]));
  assert.equal(found.answers[0]?.pictures?.[0]?.mediaType, "image/png");
  const message = JSON.stringify(found.prompt?.at(-1));
  assert.match(message, /"type":"file".*"mediaType":"image\/png"|"mediaType":"image\/png".*"type":"file"/);
}

{
  // Output streams while the cell runs.
  const code = "import time\nfor n in range(8):\n    print('line', n, flush=True)\n    time.sleep(0.2)";
  const result = streamText({ model: scripted(["run_code", { code }]), tools, stopWhen, prompt: "go" });
  const shown: ToolAnswer[] = [];
  for await (const part of result.fullStream) {
    if (part.type === "error") throw part.error;
    if (part.type === "tool-result") shown.push(part.output as ToolAnswer);
  }
  const running = shown.filter((each) => each.state === "running");
  assert.ok(running.length >= 2, JSON.stringify(shown));
  assert.match(running[0]?.text ?? "", /^line 0/);
  assert.equal(shown.at(-1)?.state, "finished");
  assert.match(shown.at(-1)?.text ?? "", /line 7/);
}

for (const [name, loop] of Object.entries(LOOPS)) {
  // A step that is replayed, in this process or in another one, runs nothing twice.
  const code = `${name} = globals().get('${name}', 0) + 1; print(${name})`;
  const call: Call = ["run_code", { code }, `call-replayed-${name}`];
  const first = await loop(scripted(call));
  await session.run("later = True");
  const again = await loop(scripted(call));
  await Promise.all([loop(scripted(call)), loop(scripted(call))]);
  await generateText({
    model: scripted(call),
    tools: kernelsvcTools({ client, session: session.id }),
    stopWhen,
    prompt: "go",
  });
  assert.equal(again.answers.at(-1)?.text, first.answers.at(-1)?.text);
  assert.equal(await ranTimes(code), 1);
  assert.match((await session.run(`print(${name})`)).text, /^1$/m);
}

for (const [name, loop] of Object.entries(LOOPS)) {
  // An abort of the model's run interrupts the cell, and the variables stay.
  const stop = new AbortController();
  const code = `waiting = '${name}'\nwhile True: pass`;
  const run = loop(scripted(["run_code", { code }]), stop.signal);
  run.catch(() => {});
  while ((await session.info()).state !== "busy") await new Promise((resolve) => setTimeout(resolve, 20));
  stop.abort();
  // streamText may end with what it has, or fail as generateText does.
  await run.then(
    () => {},
    (error: Error) => assert.match(error.name, /^(AbortError|AI_NoOutputGeneratedError)$/),
  );
  while ((await session.info()).state !== "idle") await new Promise((resolve) => setTimeout(resolve, 20));
  const cell = (await session.cells()).find((each) => each.code === code);
  assert.equal(cell?.reason, "interrupted");
  assert.match((await session.run("print(waiting)")).text, new RegExp(`^${name}$`, "m"));
}

{
  // A long cell answers before its end, wait follows it, and interrupt stops it.
  const brief = kernelsvcTools({ client, session, waitSeconds: 0.3 });
  const result = await generateText({
    model: scripted(
      ["run_code", { code: "import time\nprint('begun', flush=True)\ntime.sleep(60)" }],
      ["interrupt", {}],
      ["wait", { seconds: 20 }],
    ),
    tools: brief,
    stopWhen,
    prompt: "go",
  });
  const [first, , last] = answers(result);
  assert.equal(first?.state, "running");
  assert.match(first?.text ?? "", /call wait/);
  assert.equal(last?.reason, "interrupted");
}

{
  // A name finds the same session again, from other tools too, and concurrent calls create one.
  const name = `named-${session.id}`;
  const named = kernelsvcTools({ client, session: name, only: ["run_code"] });
  assert.deepEqual(Object.keys(named), ["run_code"]);
  const [one, two] = await Promise.all(
    ["a = 1", "b = 2"].map((code) =>
      generateText({ model: scripted(["run_code", { code }]), tools: named, stopWhen, prompt: "go" }),
    ),
  );
  const third = await generateText({
    model: scripted(["run_code", { code: "c = 3" }]),
    tools: kernelsvcTools({ client, session: name }),
    stopWhen,
    prompt: "go",
  });
  const ids = new Set([one, two, third].map((each) => each && answers(each)[0]?.session));
  assert.equal(ids.size, 1);
  for (const id of ids) await (await client.session(id ?? "")).close();
}

console.log("ok");
