/**
 * Programs in a session's sandbox: shell commands, servers, terminals.
 *
 * The server keeps the newest output until the client has read it, and each request says from which byte on. So output
 * and input arrive once, across reconnects too.
 */
import type { Methods, ProgramView } from "./generated.ts";
import type { SessionRpc } from "./streams.ts";
import { base64Of, bytesOf, given, newId } from "./values.ts";

/** Seconds that the server waits for output before it answers. The client then asks again. */
const WAIT_SECONDS = 60;

/** Options of `Session.command`. */
export interface CommandOptions {
  /** Its standard input. Without one it reads an empty one. */
  input?: string | Uint8Array;
  /** Environment variables, added to the session's. */
  env?: Record<string, string>;
  /** The directory to start in. Default: the session's. */
  cwd?: string;
  /** Ends the program with SIGKILL. */
  signal?: AbortSignal;
}

/** Options of `Session.startProgram`. */
export interface ProgramOptions {
  /** An id of your choice. A repeated id returns the same program and starts nothing. */
  program?: string;
  env?: Record<string, string>;
  cwd?: string;
  /** Whether it has a standard input. Otherwise it reads an empty one. */
  stdin?: boolean;
  /** Size of a terminal for it, in characters. Without one it gets pipes. */
  terminal?: { columns: number; rows: number };
  /** Drop the oldest unread output, instead of making the program wait. */
  background?: boolean;
}

/** Bytes that a program wrote. `pty` is its terminal. */
export interface ProgramOutput {
  stream: "stdout" | "stderr" | "pty";
  data: Uint8Array<ArrayBuffer>;
}

/** A command that has ended, with its output as UTF-8. */
export interface CommandResult {
  stdout: string;
  stderr: string;
  /** Its exit code, or the negative number of the signal that ended it. Null if its end is not known. */
  exitCode: number | null;
  /** Whether the exit code is 0. */
  ok: boolean;
}

type ProgramMethod = Exclude<Extract<keyof Methods, `program.${string}`>, "program.start">;

/**
 * A program in a session's sandbox. Iterate over it to read its output. Made by `Session.startProgram`.
 *
 * The program waits while its output is not read, unless it was started with `background`.
 */
export class Program implements AsyncIterableIterator<ProgramOutput, undefined, undefined> {
  readonly id: string;
  /** Its last description from the server. */
  details: ProgramView;
  /** Bytes of output that the server had dropped before they were read. */
  dropped = 0;
  readonly #rpc: SessionRpc;
  #after = 0;
  #received: number;
  #ready: ProgramOutput[] = [];

  constructor(rpc: SessionRpc, details: ProgramView) {
    this.#rpc = rpc;
    this.id = details.id;
    this.details = details;
    this.#received = details.received;
  }

  #call<M extends ProgramMethod>(method: M, params: Record<string, unknown>): Promise<Methods[M]["result"]> {
    return this.#rpc.connection.call(method, { session: this.#rpc.session, program: this.id, ...params });
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  async next(): Promise<IteratorResult<ProgramOutput, undefined>> {
    while (this.#ready.length === 0) {
      if (this.details.state === "ended" && this.#after >= this.details.written) return { done: true, value: undefined };
      const page = await this.#call("program.read", { after: this.#after, wait_seconds: WAIT_SECONDS });
      this.#after = page.next;
      this.details = page.program;
      this.dropped += page.dropped;
      this.#ready = page.pieces.map(({ stream, data }) => ({ stream, data: bytesOf(data) })).reverse();
    }
    const value = this.#ready.pop();
    return value === undefined ? { done: true, value } : { done: false, value };
  }

  /** Wait for the program's end, drop its output, and return its exit code: negative for a signal, null if not known. */
  async wait(): Promise<number | null> {
    for await (const _ of this);
    return this.details.exit_code;
  }

  /**
   * Write to the program's standard input, or its terminal.
   *
   * @throws NotFound it has ended, or its standard input is closed. TooLarge too much data waits already.
   */
  async write(data: string | Uint8Array): Promise<void> {
    const bytes = typeof data === "string" ? new TextEncoder().encode(data) : data;
    const at = this.#received;
    this.#received += bytes.length;
    try {
      await this.#call("program.write", { data: base64Of(bytes), at });
    } catch (error) {
      this.#received = at;
      throw error;
    }
  }

  /** Close the program's standard input. */
  async closeInput(): Promise<void> {
    await this.#call("program.write", { end: true });
  }

  /** Send a signal to the program and its process group: 15 is SIGTERM, 9 is SIGKILL. */
  async signal(number = 15): Promise<void> {
    await this.#call("program.signal", { signal: number });
  }

  /** Change the size of the program's terminal, in characters. */
  async resize(columns: number, rows: number): Promise<void> {
    await this.#call("program.resize", { columns, rows });
  }
}

/** Start a program. See `Session.startProgram`. */
export async function startProgram(
  rpc: SessionRpc,
  command: string | readonly string[],
  options: ProgramOptions,
): Promise<Program> {
  const { program = newId("prog"), ...more } = options;
  const argv = typeof command === "string" ? ["/bin/sh", "-c", command] : command;
  const params = { session: rpc.session, argv, program, ...given({ ...more }) };
  return new Program(rpc, await rpc.connection.call("program.start", params));
}

/** Give a program its input, and collect its output until it ends. */
export async function runCommand(program: Program, { input, signal }: CommandOptions): Promise<CommandResult> {
  const kill = (): void => void program.signal(9).catch(() => {});
  signal?.addEventListener("abort", kill, { once: true });
  if (signal?.aborted) kill();
  try {
    if (input !== undefined) {
      if (input.length > 0) await program.write(input);
      await program.closeInput();
    }
    const found: Record<ProgramOutput["stream"], Uint8Array<ArrayBuffer>[]> = { stdout: [], stderr: [], pty: [] };
    for await (const { stream, data } of program) found[stream].push(data);
    signal?.throwIfAborted();
    const [stdout, stderr] = await Promise.all([new Blob(found.stdout).text(), new Blob(found.stderr).text()]);
    const exitCode = program.details.exit_code;
    return { stdout, stderr, exitCode, ok: exitCode === 0 };
  } finally {
    signal?.removeEventListener("abort", kill);
  }
}
