/** `Session`: the operations on one session as methods. */
import type { CallOptions, RpcConnection } from "./connection.ts";
import type {
  CellView,
  Checkpoint,
  FileList,
  LimitsRequest,
  Methods,
  SessionInfo,
  ToolFilter,
  ToolView,
  ValueData,
  Variable,
} from "./generated.ts";
import { CONTENT, type Content, type Rest } from "./http.ts";
import { type OfferedFunction, providerOf, SessionCall } from "./offered.ts";
import {
  type CommandOptions,
  type CommandResult,
  Program,
  type ProgramOptions,
  runCommand,
  startProgram,
} from "./programs.ts";
import { EventPages, Events, interruptOnAbort, SessionRpc, Stream } from "./streams.ts";
import { requestMeta, type Trace } from "./trace.ts";
import { bytesOf, type Cell, type FileInfo, given, newId, query, quoted } from "./values.ts";

/** Maximum page size of the server. */
const PAGE = 1000;

/** A decision about a call: true approves it, false or a reason denies it, undefined leaves it to another client. */
export type Decision = boolean | string | undefined;

/** Options of a cell. */
export interface CellOptions {
  /** An id of your choice. A repeated id returns the same cell and runs nothing. */
  cell?: string;
  /** Maximum wall time in seconds, after which the cell is interrupted. */
  timeout?: number;
  /** Leave the cell out of history and execution count. */
  silent?: boolean;
  /** `stop` cancels the queued cells if this one fails. */
  onError?: "stop" | "continue";
  /** `interrupt` interrupts the cell when its last client disconnects. */
  onDisconnect?: "keep" | "interrupt";
  /** Stored with the cell in the log and the notebook. */
  metadata?: Record<string, unknown>;
  /** `every` makes a checkpoint after this cell, before any later one. Default: the session's mode. */
  checkpoint?: "auto" | "every";
  /** The cell is a model's: `cell_finished` has the changes of variables and files. */
  changes?: boolean;
  /** The trace that the cell and its processes belong to. Default: that of OpenTelemetry's active span. */
  trace?: Trace | undefined;
  /** Ends the wait. The cell continues, unless `onAbort` is `interrupt`. */
  signal?: AbortSignal | undefined;
  /** Whether an abort of `signal` also interrupts the cell. */
  onAbort?: "keep" | "interrupt";
}

/** Options of `Session.run`. */
export interface RunOptions extends CellOptions {
  /** Most characters of `text`, which keeps its head and its tail. The log has all of it (`output`). */
  maxText?: number;
  /** `queued` returns when the server has accepted the cell. */
  wait?: "finished" | "queued";
  /** False forbids the cell to call functions of clients. Names allow these only. `*` is any text. */
  tools?: boolean | readonly string[];
  /** An earlier cell, whose recorded results equal calls of this cell get. */
  reuseCalls?: Cell | string;
  /** The call (`ToolCall.id`) whose function runs this cell. */
  within?: string;
  /** Called with each call of the cell that waits for approval. */
  onApproval?: (call: SessionCall) => Decision | Promise<Decision>;
}

/** Options of `Session.stream`. */
export interface StreamOptions extends CellOptions {
  /** Let the cell's `input()` wait for the method `input`. Otherwise it fails. */
  allowStdin?: boolean;
}

/** Options of `Session.view`. */
export interface ViewOptions {
  /** About how many tokens the text may have, 200 to 20,000. */
  budget?: number;
  fromLine?: number;
  lines?: number;
  find?: string;
  picture?: number;
  afterLine?: number;
}

/** Options of `Session.branch`. */
export interface BranchOptions {
  /** A checkpoint to start from, instead of the present state. */
  at?: string;
  count?: number;
  labels?: Record<string, string>;
  limits?: LimitsRequest;
  /** Branch even if some objects will be lost. */
  force?: boolean;
  /** Give each new session a sandbox of its own. It gets the variables that pickle can copy. */
  isolate?: boolean;
  tools?: ToolFilter;
}

function cellParams(code: string, options: RunOptions & StreamOptions): Record<string, unknown> {
  const { reuseCalls } = options;
  return {
    code,
    cell: options.cell ?? newId("cell"),
    timeout_seconds: options.timeout,
    silent: options.silent,
    on_error: options.onError,
    on_disconnect: options.onDisconnect,
    metadata: options.metadata,
    checkpoint: options.checkpoint,
    changes: options.changes,
    max_text: options.maxText,
    tools: options.tools,
    reuse_calls: typeof reuseCalls === "object" ? reuseCalls.id : reuseCalls,
    within: options.within,
    allow_stdin: options.allowStdin,
    _meta: requestMeta(options.trace),
  };
}

/**
 * One session: a kernel that keeps its variables from cell to cell, a log, a notebook.
 *
 * Get one from `Client.createSession` or `Client.session`. With `await using`, a session from `createSession` or
 * `branch` is closed at the end of the block.
 */
export class Session implements AsyncDisposable {
  readonly id: string;
  /** The last description of the session from the server. */
  details: SessionInfo;
  readonly #rpc: SessionRpc;
  readonly #rest: Rest;
  readonly #keep: boolean;

  constructor(connection: RpcConnection, rest: Rest, details: SessionInfo, keep: boolean) {
    this.id = details.id;
    this.details = details;
    this.#rpc = new SessionRpc(connection, details.id, details.last_seq);
    this.#rest = rest;
    this.#keep = keep;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.#keep) await this.close();
  }

  async #described(answer: Promise<SessionInfo>): Promise<SessionInfo> {
    this.details = await answer;
    return this.details;
  }

  /** Return the present description of the session. */
  info(): Promise<SessionInfo> {
    return this.#described(this.#rpc.call("session.get"));
  }

  // --- cells ------------------------------------------------------------------------

  /**
   * Run a cell and wait for its end.
   *
   * The wait survives a lost connection. The request has the cell's id, so that the client can repeat it and the cell
   * runs once. A failed cell does not throw: see `Cell.raiseForError`.
   *
   * @throws KernelsvcError the server refused the cell.
   */
  async run(code: string, options: RunOptions = {}): Promise<Cell> {
    const { signal, wait = "finished" } = options;
    const request = cellParams(code, options);
    if (options.onApproval !== undefined) return this.#runWithApprovals(request, options.onApproval, signal);
    const watched = options.onAbort === "interrupt" ? signal : undefined;
    const forgetSignal = interruptOnAbort(this.#rpc, String(request["cell"]), watched);
    try {
      return this.#rpc.cell(await this.#rpc.call("session.execute", { ...request, wait }, { signal }));
    } finally {
      forgetSignal();
    }
  }

  async #runWithApprovals(
    request: Record<string, unknown>,
    onApproval: NonNullable<RunOptions["onApproval"]>,
    signal: AbortSignal | undefined,
  ): Promise<Cell> {
    const stream = new Stream(this.#rpc, request, signal);
    const deciding: Promise<void>[] = [];
    for await (const event of stream) {
      if (event.type === "tool_called" && event.approval === "pending") deciding.push(this.#ask(event.call, onApproval));
    }
    await Promise.all(deciding);
    return stream.cell({ signal });
  }

  async #ask(id: string, onApproval: NonNullable<RunOptions["onApproval"]>): Promise<void> {
    const call = await this.call(id);
    const decision = await onApproval(call);
    if (decision === true) await call.approve();
    else if (decision !== undefined) await call.deny(typeof decision === "string" ? decision : undefined);
  }

  /**
   * Run a cell and iterate over its events as they happen. The last one is `cell_finished`.
   *
   * The first iteration sends the cell. Each event arrives exactly once, across reconnects too. With `allowStdin` the
   * cell's `input()` sends an `input_requested` event, which the method `input` answers.
   */
  stream(code: string, options: StreamOptions = {}): Stream {
    return new Stream(this.#rpc, cellParams(code, options), options.signal, options.onAbort);
  }

  /**
   * Run several cells in one request, and wait for their ends.
   *
   * @param cells source texts, or parameters of the API's `session.execute`.
   */
  async batch(
    cells: readonly (string | ({ code: string } & Record<string, unknown>))[],
    options: { onError?: "stop" | "continue"; trace?: Trace | undefined } & CallOptions = {},
  ): Promise<Cell[]> {
    // With their own ids the cells run once, even if the client sends the batch twice.
    const requests = cells.map((each) => ({ cell: newId("cell"), ...(typeof each === "string" ? { code: each } : each) }));
    const { onError, signal, trace } = options;
    const params = { cells: requests, on_error: onError, _meta: requestMeta(trace) };
    const found = await this.#rpc.call("session.batch", params, { signal });
    return found.map((info) => this.#rpc.cell(info));
  }

  /** Return the present state of a cell. */
  async cell(id: string): Promise<Cell> {
    return this.#rpc.cell(await this.#rpc.call("session.cell", { cell: id }));
  }

  /**
   * Read a cell as a language model does: text within a budget of tokens, and pictures.
   *
   * @param cell a cell, its id, or its number from 1. Default: the last one.
   */
  view(cell?: Cell | string | number, options: ViewOptions = {}): Promise<CellView> {
    return this.#rpc.call("session.view", {
      cell: typeof cell === "object" ? cell.id : cell === undefined ? undefined : String(cell),
      budget: options.budget,
      from_line: options.fromLine,
      lines: options.lines,
      find: options.find,
      picture: options.picture,
      after_line: options.afterLine,
    });
  }

  /** Return all cells of the session, in order. */
  async cells(): Promise<Cell[]> {
    const found: Cell[] = [];
    for (let offset: number | null = 0; offset !== null; ) {
      const page: { cells: Cell[]; next: number | null } = await this.#page(offset);
      found.push(...page.cells);
      offset = page.next;
    }
    return found;
  }

  async #page(offset: number): Promise<{ cells: Cell[]; next: number | null }> {
    const { cells, next_offset } = await this.#rpc.call("session.cells", { limit: PAGE, offset });
    return { cells: cells.map((info) => this.#rpc.cell(info)), next: next_offset };
  }

  /** Read a cell's output from the log, also beyond `output_bytes`. Offsets and limits are in characters. */
  output(
    cell: string,
    options: { name?: "stdout" | "stderr"; offset?: number; limit?: number } = {},
  ): Promise<{ text: string; next_offset: number | null; total: number }> {
    return this.#rpc.call("session.output", { cell, limit: 1 << 20, ...options });
  }

  /**
   * Iterate over the session's events after a position: first the logged ones, then live ones.
   *
   * @param after `seq` of the last event that the caller has already.
   * @param options `follow: false` ends with the last logged event.
   */
  events(after = 0, options: { follow?: boolean; signal?: AbortSignal } = {}): Events {
    const { follow = true, signal } = options;
    return follow ? new Events(this.#rpc, after, undefined, signal) : new EventPages(this.#rpc, this.#rest, after, signal);
  }

  /** Answer a cell that waits in `input()`. */
  async input(cell: string, text: string): Promise<void> {
    await this.#rpc.call("session.input", { cell, text });
  }

  /** Interrupt the running cell, as Ctrl-C would. */
  interrupt(): Promise<SessionInfo> {
    return this.#described(this.#rpc.call("session.interrupt"));
  }

  /**
   * Take over: cells of every client wait for `decide`, also those that are queued. `info.hold` lists them.
   *
   * @param options `seconds` that each cell waits, and what follows `then` if it is still undecided.
   */
  hold(options: { seconds?: number; then?: "approve" | "refuse" } = {}): Promise<SessionInfo> {
    return this.#described(this.#rpc.call("session.hold", { mode: "ask", ...options }));
  }

  /** End `hold`: the cells that wait run. */
  letGo(): Promise<SessionInfo> {
    return this.#described(this.#rpc.call("session.hold", { mode: "off" }));
  }

  /** Approve or refuse held cells, all or none. A refused one ends as `cancelled`, with the reason. */
  async decide(cells: readonly string[], decision: "approve" | "refuse", reason?: string): Promise<Cell[]> {
    const found = await this.#rpc.call("session.decide_cells", { cells: [...cells], decision, reason });
    return found.map((info) => this.#rpc.cell(info));
  }

  /** Start a new kernel with empty variables. The log continues. */
  restart(): Promise<SessionInfo> {
    return this.#described(this.#rpc.call("session.restart"));
  }

  /**
   * Replace the rules of the session's network. Open connections that the new rules refuse end.
   *
   * @param network the rules, such as `{ allow: ["pypi.org"] }`, or `none`. Without rules: those of the server.
   * @throws LimitTooHigh a rule is more than the server allows.
   */
  updateNetwork(network?: NonNullable<Methods["session.network"]["params"]["network"]>): Promise<SessionInfo> {
    return this.#described(this.#rpc.call("session.network", { network }));
  }

  /** Complete code: Jupyter's `complete_reply`. */
  complete(code: string, cursorPos?: number): Promise<Record<string, unknown>> {
    return this.#rpc.call("session.complete", { code, cursor_pos: cursorPos });
  }

  /** Inspect the object at the cursor: Jupyter's `inspect_reply`. */
  inspect(code: string, cursorPos?: number, detailLevel: 0 | 1 = 0): Promise<Record<string, unknown>> {
    return this.#rpc.call("session.inspect", { code, cursor_pos: cursorPos, detail_level: detailLevel });
  }

  /** Return the variables that the session's cells have defined. */
  variables(): Promise<Variable[]> {
    return this.#rpc.call("session.variables");
  }

  /**
   * Return a variable. With `json`, the default, it is a JSON value, and a table is a list of records. With `csv`,
   * `arrow` and `parquet` it is the bytes of each part, because these formats can't be joined without a library.
   */
  async value(
    name: string,
    options: { format?: "json" | "csv" | "arrow" | "parquet"; columns?: readonly string[]; rows?: number } = {},
  ): Promise<unknown> {
    const { format = "json", columns, rows } = options;
    const parts: Uint8Array[] = [];
    for (let start: number | null = 0; start !== null; ) {
      const left = rows === undefined ? undefined : rows - start;
      const part: ValueData = await this.#rpc.call("session.value", { name, format, columns, rows: left, from_row: start });
      parts.push(bytesOf(part.data));
      start = part.next_row;
    }
    if (format !== "json") return parts;
    const values = parts.map((part) => JSON.parse(new TextDecoder().decode(part)) as unknown);
    return values.length === 1 ? values[0] : values.flat(1);
  }

  // --- functions that code may call -------------------------------------------------

  /**
   * Let the session's code call functions of this program, as `tools.NAME(...)`.
   *
   * @throws BadRequest an offer is not valid, or two names are the same in code.
   */
  offer(...functions: OfferedFunction[]): Promise<void> {
    return providerOf(this.#rpc.connection).offer(functions, this.id);
  }

  /** Withdraw functions that this program offers to the session. Without names: all. */
  withdraw(...names: string[]): Promise<void> {
    return providerOf(this.#rpc.connection).withdraw(names.length > 0 ? names : undefined, this.id);
  }

  /** Return the functions that the session's code may call. */
  async tools(search?: string, options: { full?: boolean } = {}): Promise<ToolView[]> {
    const detail = options.full ? "full" : "brief";
    return (await this.#rpc.call("session.tools", { search, detail, limit: PAGE })).tools;
  }

  /** Return calls of the session's code, oldest first, without their results. `pending` ones wait for a decision. */
  async calls(options: { state?: "pending" | "running" | "ended"; cell?: string } = {}): Promise<SessionCall[]> {
    const found: SessionCall[] = [];
    for (let offset: number | null = 0; offset !== null; ) {
      const page: { calls: SessionCall["info"][]; next_offset: number | null } = await this.#rpc.call("session.calls", {
        ...options,
        limit: PAGE,
        offset,
      });
      found.push(...page.calls.map((info) => new SessionCall(this.#rpc.connection, info)));
      offset = page.next_offset;
    }
    return found;
  }

  /** Return a call with its result. */
  async call(id: string): Promise<SessionCall> {
    return new SessionCall(this.#rpc.connection, await this.#rpc.call("session.call", { call: id }));
  }

  // --- programs -----------------------------------------------------------------------

  /**
   * Run a program in the session's sandbox, and wait for its end.
   *
   * @param command a line for the shell, or the program and its arguments.
   * @throws BadRequest there is no such program or directory.
   */
  async command(command: string | readonly string[], options: CommandOptions = {}): Promise<CommandResult> {
    options.signal?.throwIfAborted();
    const { env, cwd, input } = options;
    const started = given({ env, cwd, stdin: input !== undefined });
    return runCommand(await startProgram(this.#rpc, command, started), options);
  }

  /**
   * Start a program in the session's sandbox. It ends with the session.
   *
   * @param command a line for the shell, or the program and its arguments.
   * @throws BadRequest there is no such program or directory. QuotaExceeded too many programs of this session run.
   */
  startProgram(command: string | readonly string[], options: ProgramOptions = {}): Promise<Program> {
    return startProgram(this.#rpc, command, options);
  }

  /** Return the programs that run or have ended recently. Iterating over one begins with its first output. */
  async programs(): Promise<Program[]> {
    return (await this.#rpc.call("session.programs")).map((info) => new Program(this.#rpc, info));
  }

  /**
   * Return an address at which a browser reaches a server that runs in the session, without a token.
   *
   * @param port the port on which the server listens in the session.
   * @param options `public`: everybody may use the port, until `unsharePort`. Otherwise the address is signed, and valid
   * for `seconds` (3600).
   */
  async sharePort(port: number, options: { public?: boolean; seconds?: number } = {}): Promise<string> {
    const { url, path } = await this.#rpc.call("session.share_port", { port, ...options });
    return url ?? `${this.#rest.address.base}${path}`;
  }

  /** End every address of a port, and the connections that use one. */
  async unsharePort(port: number): Promise<void> {
    await this.#rpc.call("session.unshare_port", { port });
  }

  // --- time travel --------------------------------------------------------------------

  /** Save the present state, for `rollback` or `branch`. */
  checkpoint(name?: string): Promise<Checkpoint> {
    return this.#rpc.call("session.checkpoint", { name });
  }

  /** Return the session's checkpoints. */
  checkpoints(): Promise<Checkpoint[]> {
    return this.#rpc.call("session.checkpoints");
  }

  /** Remove a checkpoint and free its memory. */
  async dropCheckpoint(checkpoint: string): Promise<void> {
    await this.#rpc.call("session.drop_checkpoint", { checkpoint });
  }

  /**
   * Restore the variables to an earlier state. The log and the notebook keep the undone cells, and mark them.
   *
   * @param to a checkpoint's name or id, or a cell's id for the state before it. Default: before the last cell.
   * @param options `replay: false`: a state without a checkpoint is an error, instead of running cells again.
   */
  rollback(to?: string, options: { replay?: boolean } = {}): Promise<SessionInfo> {
    return this.#described(this.#rpc.call("session.rollback", { to, ...options }));
  }

  /**
   * Create sessions that start with this one's live state, and are independent from then on.
   *
   * @throws CannotFork the session has objects that a fork would break. `details.reasons` lists them.
   */
  async branch(options: BranchOptions = {}): Promise<Session[]> {
    const found = await this.#rpc.call("session.branch", { ...options });
    return found.map((info) => new Session(this.#rpc.connection, this.#rest, info, false));
  }

  /** Save the variables to disk and free the memory. The next cell resumes the session. */
  hibernate(): Promise<SessionInfo> {
    return this.#described(this.#rpc.call("session.hibernate"));
  }

  /** End the session. Its log, notebook and files stay readable. */
  close(): Promise<SessionInfo> {
    return this.#described(this.#rpc.call("session.close"));
  }

  // --- files and records -------------------------------------------------------------

  #file(name: string): string {
    return `/v1/sessions/${quoted(this.id)}/files/${quoted(name)}`;
  }

  /**
   * Upload a file to the session's working directory.
   *
   * @param content its content. For a file of Node's machine, `await fs.openAsBlob(path)` reads it while it is sent.
   * @param name its path in the working directory.
   */
  async upload(content: Content, name: string, options: CallOptions = {}): Promise<string> {
    const headers = { "Content-Type": "application/octet-stream" };
    await this.#rest.raw("PUT", this.#file(name), { ...options, body: content, headers, repeat: true });
    return name;
  }

  /** Return a file's content. */
  async download(name: string, options: CallOptions = {}): Promise<Uint8Array<ArrayBuffer>> {
    return (await this.#rest.raw("GET", this.#file(name), { ...options, headers: CONTENT })).data;
  }

  /** Remove a file from the session's working directory. */
  async delete(name: string): Promise<void> {
    await this.#rest.raw("DELETE", this.#file(name), { repeat: true });
  }

  /** List a directory of the session's working directory. Returns at most 10,000 files. */
  async files(path = "", options: { recursive?: boolean } = {}): Promise<FileInfo[]> {
    const where = query(this.#file(path), { limit: 10_000, recursive: options.recursive || undefined });
    return (await this.#rest.json<FileList>("GET", where)).files;
  }

  /** Return the session as a notebook, also while it runs and after it is closed. */
  async notebook(format: "ipynb" | "html" | "py" = "ipynb"): Promise<Uint8Array<ArrayBuffer>> {
    return (await this.#rest.raw("GET", query(`/v1/sessions/${quoted(this.id)}/notebook`, { format }))).data;
  }

  /** Return the log, one JSON object a line, for `kernelsvc verify`. */
  async journal(): Promise<Uint8Array<ArrayBuffer>> {
    return (await this.#rest.raw("GET", `/v1/sessions/${quoted(this.id)}/journal`)).data;
  }
}
