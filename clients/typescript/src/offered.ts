/**
 * Functions that this client offers to the code of sessions, and the calls of them.
 *
 * The server sends `tool.call` on the connection that offered, and the answer is the method `tool.return`. A call is
 * kept from its start until the server has acknowledged the answer, and is named in `holding` when the client connects
 * again: so no call starts twice in one process, and no answer is lost with a connection. The rules are those of
 * `kernelsvc/client/tool_provider.py`.
 */
import type { NotificationHandler, RpcConnection } from "./connection.ts";
import { KernelsvcError } from "./errors.ts";
import { Conflict, NotFound, type Offer, type ToolCallInfo } from "./generated.ts";
import { base64Of, given, newId } from "./values.ts";

/** One call of an offered function. */
export interface ToolCall {
  /** The call's id. Give it to `run` as `within`, if the function runs a cell in another session. */
  readonly id: string;
  readonly session: string;
  readonly cell: string | undefined;
  readonly tool: string;
  /** Unique for the call, also if it is repeated: pass it on as an idempotency key. */
  readonly key: string;
  /** How often the server has sent the call. Above 1 only for an idempotent function. */
  readonly attempt: number;
  /** Aborted when the result is not awaited any more. */
  readonly signal: AbortSignal;
  /** Report how far the call is. Returns immediately. */
  progress(progress: number, total?: number, message?: string): void;
}

/** A function with its offer: the fields of `Offer`, and the function. */
export interface OfferedFunction extends Offer {
  /** Gets the arguments by name. Returns a JSON value, or bytes. Async functions run at the same time. */
  execute(args: any, call: ToolCall): unknown;
}

/** Raise this in an offered function, to choose the exception that the code of the session gets. */
export class ToolError extends Error {
  readonly type: string;

  /** @param type a name such as `ValueError`: of one of Python's own exceptions, or any other. */
  constructor(type: string, message: string) {
    super(message);
    this.name = "ToolError";
    this.type = type;
  }
}

/** Python's exceptions that are nearest to JavaScript's. */
const PYTHON_ERRORS: Record<string, string> = { TypeError: "TypeError", RangeError: "ValueError", SyntaxError: "SyntaxError" };

/** Return a function's result as fields of `tool.return`. */
export function answerOf(value: unknown): Record<string, unknown> {
  if (value instanceof Uint8Array) return { status: "ok", content: [{ type: "blob", data: base64Of(value) }] };
  return { status: "ok", value: value === undefined ? null : value };
}

/** Return an exception of a function as fields of `tool.return`. */
export function failureOf(error: unknown): Record<string, unknown> {
  const message = error instanceof Error ? error.message : String(error);
  const name = error instanceof Error ? error.name : "Error";
  const type = error instanceof ToolError ? error.type : (PYTHON_ERRORS[name] ?? name);
  return { status: "error", error: { type: type.slice(0, 200), message: message.slice(0, 60_000) } };
}

function fullName(offer: Offer): string {
  return offer.namespace ? `${offer.namespace}.${offer.name}` : offer.name;
}

function offerOf({ execute: _, ...offer }: OfferedFunction): Offer {
  return { parameters: { type: "object" }, ...offer };
}

/** The functions that one client offers. */
export class ToolProvider implements NotificationHandler {
  readonly #connection: RpcConnection;
  readonly #id: { id: string; instance: string };
  /** By session, with "" for the functions that all sessions of the token may call. Then by name. */
  readonly #functions = new Map<string, Map<string, OfferedFunction>>();
  readonly #held = new Map<string, AbortController>();

  constructor(connection: RpcConnection, name?: string) {
    this.#connection = connection;
    this.#id = { id: name || newId("p"), instance: newId("i") };
  }

  get active(): boolean {
    return [...this.#functions.values()].some((functions) => functions.size > 0);
  }

  /**
   * Offer functions in addition to those offered before. A function of the same name is replaced.
   *
   * @throws KernelsvcError the server refused the offer. Nothing changed.
   */
  async offer(functions: readonly OfferedFunction[], session = ""): Promise<void> {
    const known = this.#functions.get(session) ?? new Map<string, OfferedFunction>();
    this.#functions.set(session, new Map([...known, ...functions.map((each) => [fullName(each), each] as const)]));
    try {
      await this.#send(session);
    } catch (error) {
      this.#functions.set(session, known);
      throw error;
    }
  }

  /** Withdraw functions, or all of a session. */
  async withdraw(names: readonly string[] | undefined, session = ""): Promise<void> {
    const known = this.#functions.get(session);
    for (const name of names ?? [...(known?.keys() ?? [])]) known?.delete(name);
    await this.#connection.call("tools.withdraw", given({ session: session || undefined, names }));
  }

  async #send(session: string): Promise<void> {
    const answer = await this.#connection.call("tools.offer", {
      offers: [...(this.#functions.get(session)?.values() ?? [])].map(offerOf),
      provider: this.#id,
      holding: [...this.#held.keys()],
      ...given({ session: session || undefined }),
    });
    for (const call of answer.cancelled) this.#held.get(call)?.abort();
  }

  /** Offer everything again: the connection is new, and perhaps the server. */
  connected(): void {
    for (const [session, functions] of this.#functions) {
      if (functions.size === 0) continue;
      this.#send(session).catch((error: unknown) => {
        // The session has ended. Other errors are those of the connection, which offers again when it is back.
        if (session && (error instanceof NotFound || error instanceof Conflict)) this.#functions.delete(session);
      });
    }
  }

  /** Take a notification of the server: `tool.call` or `tool.cancel`. */
  notified(method: string, params: Record<string, unknown>): void {
    const id = String(params["call"]);
    if (method === "tool.cancel") this.#held.get(id)?.abort();
    else if (method === "tool.call" && !this.#held.has(id)) void this.#carryOut(id, params);
  }

  async #carryOut(id: string, params: Record<string, unknown>): Promise<void> {
    const stop = new AbortController();
    this.#held.set(id, stop);
    const session = String(params["session"]);
    try {
      const answer = await this.#answer(id, session, stop.signal, params);
      await this.#connection.call("tool.return", { session, call: id, ...answer });
    } catch (error) {
      // The call has ended meanwhile, or the client is closed, or it has given up to connect.
      if (!(error instanceof KernelsvcError)) throw error;
    } finally {
      this.#held.delete(id);
    }
  }

  async #answer(
    id: string,
    session: string,
    signal: AbortSignal,
    params: Record<string, unknown>,
  ): Promise<Record<string, unknown>> {
    const tool = String(params["tool"]);
    // A branch calls the functions of the session that it was forked from. Without a session, they are for all.
    const origin = params["offered_in"] === undefined ? session : params["offered_in"];
    const offered = this.#functions.get(String(origin ?? ""))?.get(tool);
    if (offered === undefined) {
      return failureOf(new ToolError("NotImplementedError", `This client does not offer ${tool} any more.`));
    }
    const call: ToolCall = {
      id,
      session,
      cell: params["cell"] as string | undefined,
      tool,
      key: String(params["key"] ?? ""),
      attempt: Number(params["attempt"] ?? 1),
      signal,
      progress: (progress, total, message) => {
        const report = given({ session, call: id, progress, total, message });
        this.#connection.call("tool.progress", report).catch(() => {}); // the next report replaces it
      },
    };
    try {
      return answerOf(await offered.execute(params["arguments"], call));
    } catch (error) {
      return failureOf(error);
    }
  }

  /** Abort the calls that run. */
  close(): void {
    for (const call of this.#held.values()) call.abort();
  }
}

/** Return the provider of a connection, made at its first use. */
export function providerOf(connection: RpcConnection, name?: string): ToolProvider {
  connection.provider ??= new ToolProvider(connection, name);
  return connection.provider as ToolProvider;
}

/** A call of a session's code to a client's function, and the decision about it. */
export class SessionCall {
  readonly #connection: RpcConnection;
  /** The entries of the log about it. */
  info: ToolCallInfo;

  constructor(connection: RpcConnection, info: ToolCallInfo) {
    this.#connection = connection;
    this.info = info;
  }

  /**
   * Let the call be carried out. With `remember`, further calls of the function in the cell or session, too.
   *
   * @throws Conflict it waits for no decision. Forbidden the token lacks the scope `approve`.
   */
  approve(options: { remember?: "cell" | "session" } = {}): Promise<ToolCallInfo> {
    return this.#decide("approve", options);
  }

  /** Refuse the call. Code gets a `PermissionError` with the reason. */
  deny(reason?: string): Promise<ToolCallInfo> {
    return this.#decide("deny", { reason });
  }

  async #decide(decision: string, more: Record<string, unknown>): Promise<ToolCallInfo> {
    const { session, call } = this.info;
    const [info] = await this.#connection.call("session.decide", { session, calls: [call], decision, ...given(more) });
    if (info !== undefined) this.info = info;
    return this.info;
  }
}
