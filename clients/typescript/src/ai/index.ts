/** Tools for the Vercel AI SDK: code that keeps its state, pictures, output while it runs, and no cell twice. */
import { jsonSchema, type Tool, tool } from "ai";
import type { Client } from "../client.ts";
import type { Session } from "../session.ts";
import { TOOLS, type ToolName } from "./generated.ts";
import { Sessions } from "./sessions.ts";
import { callTool, type ToolAnswer } from "./tools.ts";

export { TOOLS, type ToolDefinition, type ToolName } from "./generated.ts";
export type { Picture, ToolAnswer } from "./tools.ts";

/** Options of `kernelsvcTools`. */
export interface KernelsvcToolsOptions {
  client: Client;
  /**
   * The session of calls that name none: an id, a `Session`, or a name. A name finds the open session of that name, or
   * creates it, also from another process. Default: `default`.
   */
  session?: string | Session;
  /** The tools to give to the model. Default: all. */
  only?: readonly ToolName[];
  /** Seconds after which `run_code` answers while its cell runs on. Default: 50. */
  waitSeconds?: number;
  /** Whether an abort of the model's run interrupts the cell. Default: `interrupt`. */
  onAbort?: "interrupt" | "keep";
}

type Output = Awaited<ReturnType<NonNullable<Tool["toModelOutput"]>>>;

/** What the model gets of an answer: text, then pictures as files. */
function modelOutput(answer: ToolAnswer): Output {
  const { text, pictures = [], failed, cell } = answer;
  // A cell that failed has output to read. A call that failed has only an error.
  if (failed && cell === undefined) return { type: "error-text", value: text };
  const files = pictures.map(({ mediaType, data }) => ({
    type: "file" as const,
    data: { type: "data" as const, data },
    mediaType,
  }));
  return { type: "content", value: [{ type: "text", text: text || "[no output]" }, ...files] };
}

/**
 * Return the tools for `generateText`, `streamText` and agents.
 *
 * The id of a cell follows from the session, the id of the model's call and the code. So a retried step, a replayed
 * workflow and a lost connection find the cell that ran, and run nothing twice.
 */
export function kernelsvcTools(options: KernelsvcToolsOptions): Partial<Record<ToolName, Tool>> {
  const { client, session = "default", only, waitSeconds = 50, onAbort = "interrupt" } = options;
  const settings = { sessions: new Sessions(client, session), waitSeconds, onAbort };
  const chosen = TOOLS.filter(({ name }) => only === undefined || only.includes(name));
  return Object.fromEntries(
    chosen.map(({ name, title, description, inputSchema }) => [
      name,
      tool({
        title,
        description,
        inputSchema: jsonSchema<Record<string, unknown>>(inputSchema),
        execute: (args, { toolCallId, abortSignal }) => callTool(name, args, settings, { toolCallId, abortSignal }),
        toModelOutput: ({ output }) => modelOutput(output as ToolAnswer),
      }),
    ]),
  );
}
