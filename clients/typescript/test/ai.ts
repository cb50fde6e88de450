/** The AI SDK itself with our tools and a scripted model: `node ai.ts URL TOKEN`. Prints "ok" at the end. */
import assert from "node:assert/strict";
import { generateText, isStepCount, simulateReadableStream, streamText } from "ai";
import { MockLanguageModelV4 } from "ai/test";
import { kernelsvcTools, type ToolAnswer } from "../src/ai/index.ts";
import { Client } from "../src/index.ts";

const [url = "", token = ""] = process.argv.slice(2);

const usage = {
  inputTokens: { total: 1, noCache: 1, cacheRead: 0, cacheWrite: 0 },
  outputTokens: { total: 1, text: 1, reasoning: 0 },
};
const CALLS = { unified: "tool-calls", raw: undefined } as const;
const STOP = { unified: "stop", raw: undefined } as const;

type Call = [name: string, args: Record<string, unknown>];
let numbers = 0;

function content(call: Call, id = `call-${numbers++}`) {
  return { type: "tool-call" as const, toolCallId: id, toolName: call[0], input: JSON.stringify(call[1]) };
}

/** A model that makes these calls, one a step, and then says "done". */
function scripted(...calls: Call[]): MockLanguageModelV4 {
  const steps = calls.map((call) => content(call));
  let generated = 0;
  let streamed = 0;
  return new MockLanguageModelV4({
    doGenerate: async () => {
      const step = steps[generated++];
      const parts = step ? [step] : [{ type: "text" as const, text: "done" }];
      return { content: parts, finishReason: step ? CALLS : STOP, usage, warnings: [] };
    },
    doStream: async () => {
      const step = steps[streamed++];
      const text = [
        { type: "text-start" as const, id: "1" },
        { type: "text-delta" as const, id: "1", delta: "done" },
        { type: "text-end" as const, id: "1" },
      ];
      const finish = { type: "finish" as const, usage, finishReason: step ? CALLS : STOP };
      return { stream: simulateReadableStream({ chunks: [...(step ? [step] : text), finish] }) };
    },
  });
}

await using client = new Client({ url, token });
await using session = await client.createSession({ name: "ai" });
const tools = kernelsvcTools({ client, session });
const stopWhen = isStepCount(10);

function answers(result: { steps: readonly { toolResults: readonly { output: unknown }[] }[] }): ToolAnswer[] {
  return result.steps.flatMap((step) => step.toolResults.map((each) => each.output as ToolAnswer));
}

async function ranTimes(code: string): Promise<number> {
  return (await session.cells()).filter((cell) => cell.code === code).length;
}

{
  // State from step to step, errors that the model reads, files, and the words of the other tools.
  const model = scripted(
    ["run_code", { code: "x = 6 * 7" }],
    ["run_code", { code: "print(x)" }],
    ["run_code", { code: "1/0" }],
    ["variables", {}],
    ["write_file", { path: "a.txt", text: "one\ntwo\n" }],
    ["read_file", { path: "a.txt", find: "tw" }],
    ["read_file", { path: "missing.txt" }],
    ["keep", { name: "now" }],
  );
  const result = await generateText({ model, tools, stopWhen, prompt: "go" });
  const [, printed, failed, variables, , file, missing] = answers(result);
  assert.equal(result.text, "done");
  assert.match(printed?.text ?? "", /42/);
  assert.match(failed?.text ?? "", /ZeroDivisionError/);
  assert.equal(failed?.failed, true);
  assert.match(variables?.text ?? "", /x: int = 42/);
  assert.match(file?.text ?? "", /^2: two/);
  assert.match(missing?.text ?? "", /not_found/);
  // What the model reads, not only what the program gets.
  const prompt = JSON.stringify(model.doGenerateCalls.at(-1)?.prompt);
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

{
  // A picture reaches the model as a file.
  const code = "import base64\nfrom IPython.display import Image, display\ndisplay(Image(base64.b64decode('iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==')))";
  const model = scripted(["run_code", { code }]);
  const result = await generateText({ model, tools, stopWhen, prompt: "draw" });
  assert.equal(answers(result)[0]?.pictures?.[0]?.mediaType, "image/png");
  const message = model.doGenerateCalls.at(-1)?.prompt.at(-1);
  assert.match(JSON.stringify(message), /"type":"file".*"mediaType":"image\/png"|"mediaType":"image\/png".*"type":"file"/);
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

{
  // A step that is replayed, in this process or in another one, runs nothing twice.
  const code = "runs = globals().get('runs', 0) + 1; print(runs)";
  const replayed = (): Promise<unknown> => {
    let step = 0;
    const call = content(["run_code", { code }], "call-replayed");
    const model = new MockLanguageModelV4({
      doGenerate: async () => {
        const first = step++ === 0;
        const parts = first ? [call] : [{ type: "text" as const, text: "done" }];
        return { content: parts, finishReason: first ? CALLS : STOP, usage, warnings: [] };
      },
    });
    return generateText({ model, tools: kernelsvcTools({ client, session: session.id }), stopWhen, prompt: "go" });
  };
  await replayed();
  await session.run("later = True");
  await replayed();
  await Promise.all([replayed(), replayed()]);
  assert.equal(await ranTimes(code), 1);
  assert.match((await session.run("print(runs)")).text, /^1$/m);
}

{
  // An abort of the model's run interrupts the cell, and the variables stay.
  const stop = new AbortController();
  const code = "waiting = 1\nwhile True: pass";
  const run = generateText({
    model: scripted(["run_code", { code }]),
    tools,
    stopWhen,
    prompt: "go",
    abortSignal: stop.signal,
  });
  run.catch(() => {});
  while ((await session.info()).state !== "busy") await new Promise((resolve) => setTimeout(resolve, 20));
  stop.abort();
  await run.then(
    () => {},
    (error: Error) => assert.equal(error.name, "AbortError"),
  );
  while ((await session.info()).state !== "idle") await new Promise((resolve) => setTimeout(resolve, 20));
  const cell = (await session.cells()).find((each) => each.code === code);
  assert.equal(cell?.reason, "interrupted");
  assert.match((await session.run("print(waiting)")).text, /^1$/m);
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
