/** The tools for models, as functions of a session. `index.ts` makes tools of the AI SDK of them. */
import { KernelsvcError } from "../errors.ts";
import { BadRequest, type CellView, NotFound } from "../generated.ts";
import type { Session } from "../session.ts";
import type { Stream } from "../streams.ts";
import { base64Of, bytesOf, type Cell } from "../values.ts";
import type { ToolName } from "./generated.ts";
import type { Sessions } from "./sessions.ts";

/** A picture for the model, as base64. */
export interface Picture {
  mediaType: string;
  data: string;
}

/** The answer of a tool: text and pictures for the model, and facts for the program. */
export interface ToolAnswer {
  /** What the model reads. */
  text: string;
  pictures?: Picture[];
  /** Whether the call, or the cell, failed. */
  failed?: boolean;
  /** Seconds since the call, in the answers while a cell runs. */
  elapsed?: number;
  session?: string;
  cell?: string;
  state?: string;
  reason?: string | null;
  variables_kept?: boolean | null;
  facts?: Record<string, unknown>;
}

/** What a call gets from the AI SDK. */
export interface CallContext {
  toolCallId: string;
  abortSignal?: AbortSignal | undefined;
}

/** Settings of the tools. */
export interface ToolSettings {
  sessions: Sessions;
  /** Seconds after which `run_code` answers while its cell runs on. */
  waitSeconds: number;
  onAbort: "interrupt" | "keep";
}

type Arguments = any;
type Handler = (args: Arguments, settings: ToolSettings, context: CallContext) => AsyncIterable<ToolAnswer> | Promise<ToolAnswer>;

/** Milliseconds between two answers while a cell runs. */
const TICK = 250;
/** Characters of output in an answer while a cell runs: the newest. */
const MAX_PROGRESS = 4000;
/** Characters of a file in an answer. */
const MAX_FILE = 20_000;
const PICTURE_TYPES: Record<string, string> = {
  png: "image/png",
  jpg: "image/jpeg",
  jpeg: "image/jpeg",
  gif: "image/gif",
  webp: "image/webp",
};

/** The id of the cell of a call: the same call again finds the same cell, in another process too. */
export async function cellId(session: string, toolCallId: string, code: string): Promise<string> {
  const text = new TextEncoder().encode(JSON.stringify([session, toolCallId, code]));
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", text));
  return `ai-${Array.from(digest.subarray(0, 16), (each) => each.toString(16).padStart(2, "0")).join("")}`;
}

function picturesOf(view: CellView): { pictures?: Picture[] } {
  const pictures = view.pictures.map(({ mime, data }) => ({ mediaType: mime, data }));
  return pictures.length > 0 ? { pictures } : {};
}

async function answerOfCell(session: Session, cell: Cell, options: { budget?: number; afterLine?: number }): Promise<ToolAnswer> {
  const view = await session.view(cell, options);
  const { id, state, reason, variables_kept } = cell;
  return {
    text: view.text,
    ...picturesOf(view),
    ...(state === "finished" && reason !== "ok" ? { failed: true } : {}),
    ...{ session: session.id, cell: id, state, reason, variables_kept },
    facts: { number: view.number, execution_count: cell.execution_count, error: cell.error },
  };
}

/** Follow a cell, answer about four times a second while it prints, and stop at its end or after some seconds. */
async function* follow(stream: Stream, seconds: number): AsyncGenerator<ToolAnswer, void, undefined> {
  const began = performance.now();
  const until = began + seconds * 1000;
  let text = "";
  let shown = "";
  let tickAt = began + TICK;
  let next = stream.next();
  for (let now = began; now < until; now = performance.now()) {
    if (now >= tickAt) {
      if (text !== shown) yield { text, elapsed: (now - began) / 1000, cell: stream.id, state: "running" };
      shown = text;
      tickAt = now + TICK;
    }
    let timer: ReturnType<typeof setTimeout> | undefined;
    const left = Math.max(1, Math.min(until, tickAt) - now);
    const tick = new Promise<undefined>((resolve) => (timer = setTimeout(resolve, left, undefined)));
    const found = await Promise.race([next, tick]);
    clearTimeout(timer);
    if (found?.done) return;
    if (found === undefined) continue;
    if (found.value.type === "stream") text = (text + found.value.text).slice(-MAX_PROGRESS);
    next = stream.next();
  }
  next.catch(() => {}); // the wait is over
  await stream.return();
}

async function* runCode(args: Arguments, settings: ToolSettings, context: CallContext): AsyncGenerator<ToolAnswer, void, undefined> {
  const session = await settings.sessions.open(args.session);
  const cell = await cellId(session.id, context.toolCallId, args.code);
  const abort = { signal: context.abortSignal, onAbort: settings.onAbort };
  yield* follow(session.stream(args.code, { cell, timeout: args.seconds, changes: true, ...abort }), settings.waitSeconds);
  const state = await session.cell(cell);
  const answer = await answerOfCell(session, state, { budget: args.budget });
  yield state.state === "finished" ? answer : { ...answer, text: `${answer.text}\nThe cell still runs: call wait, or interrupt.` };
}

async function* wait(args: Arguments, settings: ToolSettings): AsyncGenerator<ToolAnswer, void, undefined> {
  const session = await settings.sessions.find(args.session);
  const { cell: id } = await session.view(args.cell, { budget: 200 });
  const before = await session.cell(id);
  if (before.state !== "finished") {
    // The same id again runs nothing, and follows the cell from its start.
    yield* follow(session.stream(before.code, { cell: id }), args.seconds ?? settings.waitSeconds);
  }
  yield answerOfCell(session, await session.cell(id), {});
}

async function readOutput(args: Arguments, { sessions }: ToolSettings): Promise<ToolAnswer> {
  const session = await sessions.find(args.session);
  const { from_line, lines, find, picture } = args;
  const fromLine = from_line ?? (lines === undefined ? undefined : 1);
  const view = await session.view(args.cell, { fromLine, lines, find, picture });
  return { text: view.text, ...picturesOf(view), session: session.id, cell: view.cell, facts: { lines: view.lines } };
}

async function undo(args: Arguments, { sessions }: ToolSettings): Promise<ToolAnswer> {
  const session = await sessions.find(args.session);
  const to = args.to ?? (args.cell === undefined ? undefined : (await session.view(args.cell, { budget: 200 })).cell);
  await session.rollback(to);
  return { text: "The variables are restored. The files are unchanged.", session: session.id };
}

async function fork(args: Arguments, { sessions }: ToolSettings): Promise<ToolAnswer> {
  const session = await sessions.find(args.session);
  const made = await session.branch({ count: args.count ?? 1, ...(args.from_kept ? { at: args.from_kept } : {}) });
  const ids = made.map((each) => each.id);
  return { text: `Copies of ${session.id}. Use run_code with one of these sessions:\n${ids.join("\n")}`, facts: { sessions: ids } };
}

async function writeFile(args: Arguments, { sessions }: ToolSettings): Promise<ToolAnswer> {
  if ((args.text === undefined) === (args.base64 === undefined)) throw new BadRequest("Give either text or base64.");
  const session = await sessions.open(args.session);
  const data = args.base64 === undefined ? new TextEncoder().encode(args.text) : bytesOf(args.base64);
  await session.upload(data, args.path);
  return { text: `Wrote ${data.length} bytes to ${args.path}.`, session: session.id, facts: { path: args.path, size: data.length } };
}

async function readFile(args: Arguments, { sessions }: ToolSettings): Promise<ToolAnswer> {
  const session = await sessions.find(args.session);
  const path: string = args.path ?? "";
  const listed = await listing(session, path);
  if (listed !== undefined) return listed;
  const data = await session.download(path);
  const mediaType = PICTURE_TYPES[path.split(".").at(-1)?.toLowerCase() ?? ""];
  const facts = { path, size: data.length };
  if (mediaType !== undefined && data.length <= 4 * 1024 * 1024) {
    return { text: `${path}: ${data.length} bytes`, pictures: [{ mediaType, data: base64Of(data) }], session: session.id, facts };
  }
  let lines = new TextDecoder().decode(data).split("\n");
  const total = lines.length;
  if (args.find !== undefined) {
    const pattern = new RegExp(args.find);
    lines = lines.map((line, index) => `${index + 1}: ${line}`).filter((line) => pattern.test(line.replace(/^\d+: /, "")));
  } else {
    const first = (args.from_line ?? 1) - 1;
    lines = lines.slice(first, args.lines === undefined ? undefined : first + args.lines);
  }
  const text = lines.join("\n");
  const cut = text.length > MAX_FILE ? `${text.slice(0, MAX_FILE)}\n[more: read it with from_line and lines]` : text;
  return { text: `${cut}\n[${total} lines]`, session: session.id, facts };
}

/** The content of a directory, or undefined if the path is a file. */
async function listing(session: Session, path: string): Promise<ToolAnswer | undefined> {
  const clean = path.replace(/^[./]+|\/+$/g, "");
  const parent = clean.split("/").slice(0, -1).join("/");
  if (clean !== "") {
    const entry = (await session.files(parent)).find((each) => each.path === clean);
    if (entry === undefined) throw new NotFound(`There is no file '${path}'. read_file without a path lists them.`);
    if (entry.kind !== "directory") return undefined;
  }
  const files = await session.files(clean);
  const lines = files.map(({ path: name, kind, size }) => `${name}${kind === "directory" ? "/" : ""}  ${size}`);
  return { text: lines.join("\n") || "The directory is empty.", session: session.id, facts: { path, size: 0 } };
}

async function manageSessions(args: Arguments, { sessions }: ToolSettings): Promise<ToolAnswer> {
  if (args.restart !== undefined) {
    const { id } = await (await sessions.find(args.restart)).restart();
    return { text: "Restarted without variables. The files and the notebook are kept.", session: id };
  }
  if (args.close !== undefined) {
    const { id } = await (await sessions.find(args.close)).close();
    return { text: "Closed. export_notebook and read_file still work.", session: id };
  }
  const found = await sessions.list();
  const lines = found.map(({ session, name, state, cells }) => `${session}  ${state}  ${name ?? ""}  ${cells} cells`);
  return { text: lines.join("\n") || "No session yet. run_code creates one.", facts: { sessions: found } };
}

async function exportNotebook(args: Arguments, { sessions }: ToolSettings): Promise<ToolAnswer> {
  const session = await sessions.find(args.session);
  const format = args.format ?? "ipynb";
  const data = await session.notebook(format);
  const path = args.path ?? `${session.id}.${format}`;
  await session.upload(data, path);
  return { text: `Wrote the notebook to ${path} (${data.length} bytes).`, session: session.id, facts: { path, size: data.length } };
}

async function interrupt(args: Arguments, { sessions }: ToolSettings): Promise<ToolAnswer> {
  const { id } = await (await sessions.find(args.session)).interrupt();
  return { text: "Interrupted. wait returns the cell's result.", session: id };
}

async function keep(args: Arguments, { sessions }: ToolSettings): Promise<ToolAnswer> {
  const session = await sessions.find(args.session);
  await session.checkpoint(args.name);
  return { text: `Saved as '${args.name}'. undo with to='${args.name}' restores it.`, session: session.id };
}

async function variables(args: Arguments, { sessions }: ToolSettings): Promise<ToolAnswer> {
  const session = await sessions.find(args.session);
  const found = await session.variables();
  const lines = found.map(({ name, type, summary }) => `${name}: ${type} = ${summary}`);
  return { text: lines.join("\n") || "No variables yet.", session: session.id, facts: { variables: found } };
}

const HANDLERS: Record<ToolName, Handler> = {
  run_code: runCode,
  wait,
  read_output: readOutput,
  interrupt,
  undo,
  write_file: writeFile,
  read_file: readFile,
  keep,
  fork,
  variables,
  sessions: manageSessions,
  export_notebook: exportNotebook,
};

/** Run a call. Its last answer is the result. An error of the server is an answer too, so that the model reads it. */
export async function* callTool(
  name: ToolName,
  args: Record<string, unknown>,
  settings: ToolSettings,
  context: CallContext,
): AsyncGenerator<ToolAnswer, void, undefined> {
  try {
    const answer = HANDLERS[name](args, settings, context);
    if (answer instanceof Promise) yield await answer;
    else yield* answer;
  } catch (error) {
    if (!(error instanceof KernelsvcError)) throw error;
    yield { text: `${error.code}: ${error.message}`, failed: true, facts: { error: error.toJSON() } };
  }
}
