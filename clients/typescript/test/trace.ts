/**
 * OpenTelemetry's SDK and the AI SDK's spans, with our client and tools: `node trace.ts URL TOKEN`. Prints "ok" at the end.
 *
 * Each cell, and the programs that it starts, belong to the span that was active at the call.
 */
import assert from "node:assert/strict";
import { OpenTelemetry } from "@ai-sdk/otel";
import { trace } from "@opentelemetry/api";
import { InMemorySpanExporter, NodeTracerProvider, SimpleSpanProcessor } from "@opentelemetry/sdk-trace-node";
import { generateText, isStepCount, registerTelemetry, streamText } from "ai";
import { kernelsvcTools } from "../src/ai/index.ts";
import { type Cell, Client, type Session } from "../src/index.ts";
import { scripted } from "./models.ts";

const [url = "", token = ""] = process.argv.slice(2);
const SHOW = "!echo $TRACEPARENT $TRACESTATE";

await using client = new Client({ url, token });
await using session = await client.createSession();

/** The spans of the log's last cell: that of its request, and that of its process. */
async function parents(session: Session, cell: Cell): Promise<string[]> {
  const events = new TextDecoder().decode(await session.journal()).trimEnd().split("\n");
  const queued = events.map((each) => JSON.parse(each)).filter((each) => each.type === "cell_queued" && each.cell === cell.id);
  return [queued[0]?.trace?.parent ?? "", cell.text.trim()];
}

// Before the program sets OpenTelemetry up, with its API imported.
assert.deepEqual(await parents(session, await session.run(SHOW)), ["", ""]);

const exporter = new InMemorySpanExporter();
const provider = new NodeTracerProvider({ spanProcessors: [new SimpleSpanProcessor(exporter)] });
provider.register();
const tracer = provider.getTracer("test");

await tracer.startActiveSpan("handler", async (span) => {
  const { traceId, spanId } = span.spanContext();
  const own = `00-${traceId}-${spanId}-01`;
  assert.deepEqual(await parents(session, await session.run(SHOW)), [own, own]);
  const stream = session.stream(SHOW);
  for await (const _ of stream);
  assert.deepEqual(await parents(session, await stream.cell()), [own, own]);
  const [first] = await session.batch([SHOW]);
  assert.ok(first);
  assert.deepEqual(await parents(session, first), [own, own]);
  assert.equal((await client.executeOnce({ code: SHOW })).text.trim(), own);
  const given = own.replace(traceId, "1".repeat(32));
  assert.deepEqual(await parents(session, await session.run(SHOW, { trace: { traceparent: given } })), [given, given]);
  assert.deepEqual(await parents(session, await session.run(SHOW, { trace: {} })), ["", ""]);
  span.end();
});
// Two handlers at the same time don't mix.
await Promise.all(
  Array.from({ length: 8 }, () =>
    tracer.startActiveSpan("one of many", async (span) => {
      const cell = await session.run(SHOW);
      assert.match(cell.text, new RegExp(span.spanContext().spanId));
      span.end();
    }),
  ),
);

// The AI SDK's span of a tool's call is the parent of the cell.
registerTelemetry(new OpenTelemetry());
const tools = kernelsvcTools({ client, session, only: ["run_code"] });
for (const ask of [generateText, streamText]) {
  exporter.reset();
  const asked = ask({
    model: scripted(["run_code", { code: `${SHOW} ${ask.name}` }]),
    tools,
    stopWhen: isStepCount(3),
    prompt: "go",
    telemetry: { isEnabled: true },
  });
  assert.equal(await (await asked).text, "done");
  await provider.forceFlush();
  const call = exporter.getFinishedSpans().find((each) => each.name === "execute_tool run_code");
  assert.ok(call, exporter.getFinishedSpans().map((each) => each.name).join());
  const { traceId, spanId } = call.spanContext();
  const cell = (await session.cells()).at(-1);
  assert.ok(cell);
  assert.deepEqual(await parents(session, cell), [`00-${traceId}-${spanId}-01`, `00-${traceId}-${spanId}-01 ${ask.name}`]);
}

trace.disable();
console.log("ok");
