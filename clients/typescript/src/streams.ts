/** A session's events as async iterators, and the requests about one session. */
import type { CallOptions, RpcConnection } from "./connection.ts";
import type { FeedReader } from "./feed.ts";
import type { CellInfo, EventPage, Methods } from "./generated.ts";
import type { Rest } from "./http.ts";
import { Cell, type Event, given, query, quoted } from "./values.ts";

/** A method of one session, without its prefix. */
type SessionMethod = Extract<keyof Methods, `session.${string}`>;

/** Requests about one session. */
export class SessionRpc {
  readonly connection: RpcConnection;
  readonly session: string;
  /** Highest known sequence number of its log. The events of a new cell come after it. */
  seen: number;

  constructor(connection: RpcConnection, session: string, seen: number) {
    this.connection = connection;
    this.session = session;
    this.seen = seen;
  }

  /** Call a method of the session, without the parameters that are undefined. */
  call<M extends SessionMethod>(
    method: M,
    params: Record<string, unknown> = {},
    options?: CallOptions,
  ): Promise<Methods[M]["result"]> {
    return this.connection.call(method, { session: this.session, ...given(params) }, options);
  }

  /** Wrap a cell of an answer. */
  cell(info: CellInfo): Cell {
    this.seen = Math.max(this.seen, info.seq.last);
    return new Cell(info);
  }
}

interface Followed {
  connection: RpcConnection;
  session: string;
  reader: FeedReader;
}

// A caller may drop the iterator without ending it. The reader then ends with the iterator.
const abandoned = new FinalizationRegistry<Followed>(({ connection, session, reader }) =>
  connection.unfollow(session, reader),
);

/** An async iterator over a session's events after a position. The end of a `for await` loop ends it early. */
export class Events implements AsyncIterableIterator<Event, undefined, undefined> {
  protected readonly rpc: SessionRpc;
  protected readonly signal: AbortSignal | undefined;
  protected after: number;
  readonly #cell: string | undefined;
  #reader: Promise<FeedReader> | undefined;
  #following: FeedReader | undefined;
  #ready: Event[] = [];
  #ended = false;

  constructor(rpc: SessionRpc, after: number, cell?: string, signal?: AbortSignal) {
    this.rpc = rpc;
    this.after = after;
    this.#cell = cell;
    this.signal = signal;
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  async next(): Promise<IteratorResult<Event, undefined>> {
    if (this.#ready.length === 0 && !this.#ended) this.#ready = (await this.nextBatch()).reverse();
    const value = this.#ready.pop();
    return value === undefined ? { done: true, value: undefined } : { done: false, value };
  }

  /** Wait for events and return all that have arrived. Empty at the end. */
  async nextBatch(): Promise<Event[]> {
    if (this.#ended) return [];
    this.signal?.throwIfAborted();
    const stop = (): void => this.#end();
    this.signal?.addEventListener("abort", stop, { once: true });
    try {
      const reader = await (this.#reader ??= this.begin());
      const events = await this.rpc.connection.read(this.rpc.session, reader);
      this.signal?.throwIfAborted();
      const last = events.at(-1);
      if (last === undefined) this.#end();
      else this.rpc.seen = Math.max(this.rpc.seen, last.seq);
      return events;
    } catch (error) {
      this.#end();
      throw error;
    } finally {
      this.signal?.removeEventListener("abort", stop);
    }
  }

  /** Start to follow the log. */
  protected async begin(): Promise<FeedReader> {
    const { connection, session } = this.rpc;
    const reader = connection.follow(session, this.after, this.#cell);
    this.#following = reader;
    abandoned.register(this, { connection, session, reader }, this);
    return reader;
  }

  #end(): void {
    this.#ended = true;
    if (this.#following === undefined) return;
    abandoned.unregister(this);
    this.rpc.connection.unfollow(this.rpc.session, this.#following);
  }

  /** Stop reading. A running cell continues. */
  async return(): Promise<IteratorResult<Event, undefined>> {
    this.#end();
    this.#ready = [];
    return { done: true, value: undefined };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.return();
  }
}

/** An async iterator over the events that are in a session's log now, a page at a time. */
export class EventPages extends Events {
  readonly #rest: Rest;

  constructor(rpc: SessionRpc, rest: Rest, after: number, signal?: AbortSignal) {
    super(rpc, after, undefined, signal);
    this.#rest = rest;
  }

  override async nextBatch(): Promise<Event[]> {
    const path = query(`/v1/sessions/${quoted(this.rpc.session)}/events`, { after: this.after });
    const page = await this.#rest.json<EventPage>("GET", path, { signal: this.signal });
    this.after = page.next_after;
    return page.events as unknown as Event[];
  }
}

/** An async iterator over the events of one cell. Made by `Session.stream`. */
export class Stream extends Events {
  /** The cell's id, for `input`. */
  readonly id: string;
  readonly #request: Record<string, unknown>;
  readonly #onAbort: "keep" | "interrupt";
  #forgetSignal: (() => void) | undefined;

  constructor(rpc: SessionRpc, request: Record<string, unknown>, signal?: AbortSignal, onAbort: "keep" | "interrupt" = "keep") {
    super(rpc, rpc.seen, String(request["cell"]), signal);
    this.id = String(request["cell"]);
    this.#request = request;
    this.#onAbort = onAbort;
  }

  protected override async begin(): Promise<FeedReader> {
    // Attach first, and send the cell without waiting for the reply: one round trip, and no event is missed.
    const reader = await super.begin();
    if (this.#onAbort === "interrupt") this.#forgetSignal = interruptOnAbort(this.rpc, this.id, this.signal);
    const accepted = await this.rpc.call("session.execute", { ...this.#request, wait: "queued" });
    const { first } = accepted.seq;
    // The id was used before, and the cell's events are older.
    if (first <= this.after) this.rpc.connection.rewind(this.rpc.session, reader, first - 1);
    return reader;
  }

  override async nextBatch(): Promise<Event[]> {
    const events = await super.nextBatch();
    if (events.length === 0) this.#forgetSignal?.();
    return events;
  }

  /** Stop reading. A running cell continues, also when the signal is aborted later. */
  override return(): Promise<IteratorResult<Event, undefined>> {
    this.#forgetSignal?.();
    return super.return();
  }

  /** Wait for the end of the cell and return it. */
  async cell(options?: CallOptions): Promise<Cell> {
    return this.rpc.cell(await this.rpc.call("session.execute", { ...this.#request, wait: "finished" }, options));
  }
}

/** Interrupt a cell when the signal is aborted while the cell runs. Return a function that ends this. */
export function interruptOnAbort(rpc: SessionRpc, cell: string, signal: AbortSignal | undefined): () => void {
  const interrupt = async (): Promise<void> => {
    // An interrupt for a cell that has ended would hit the next one.
    if ((await rpc.call("session.get")).running === cell) await rpc.call("session.interrupt");
  };
  const listener = (): void => void interrupt().catch(() => {}); // without a server there is nothing to interrupt
  signal?.addEventListener("abort", listener, { once: true });
  return () => signal?.removeEventListener("abort", listener);
}
