/** Models that make scripted calls, in place of a provider's. */
import { simulateReadableStream } from "ai";
import { MockLanguageModelV4 } from "ai/test";

const usage = {
  inputTokens: { total: 1, noCache: 1, cacheRead: 0, cacheWrite: 0 },
  outputTokens: { total: 1, text: 1, reasoning: 0 },
};
const CALLS = { unified: "tool-calls", raw: undefined } as const;
const STOP = { unified: "stop", raw: undefined } as const;

/** A tool's name, its arguments, and the id of the call. Default: a new one. */
export type Call = [name: string, args: Record<string, unknown>, id?: string];
let numbers = 0;

/** A model that makes these calls, one a step, and then says "done". */
export function scripted(...calls: Call[]): MockLanguageModelV4 {
  const steps = calls.map(([toolName, args, id]) => ({
    type: "tool-call" as const,
    toolCallId: id ?? `call-${numbers++}`,
    toolName,
    input: JSON.stringify(args),
  }));
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
