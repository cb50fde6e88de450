/**
 * JSON-RPC over one WebSocket that reconnects by itself.
 *
 * Theory of operation. One loop, `#stayConnected`, owns the socket. It connects, sends pending calls, attaches to the
 * sessions with readers, waits until the socket closes, and reconnects after growing pauses. It gives up when no server
 * has answered for `retrySeconds`. Pending calls then fail with `Unreachable`, and the next call starts the loop again.
 *
 * A call is sent again on the next socket if its method is in `REPEATABLE`. Any other call that was sent when the socket
 * closed fails with `ConnectionLost`. Only the session's state shows whether the server executed it.
 *
 * For each session with readers, `#updateAttachment` attaches or detaches as its `EventFeed` demands, one request at a
 * time. An attach is sent only after the reply to the detach before it, so that no event of the older attachment can
 * belong to the newer one. The rules are those of `kernelsvc/client/connection.py`.
 */
import { ConnectionLost, type ErrorObject, KernelsvcError, Unreachable } from "./errors.ts";
import { EventFeed, FeedReader, SequenceGap } from "./feed.ts";
import { BadRequest, type Methods, REPEATABLE } from "./generated.ts";
import { type Address, base64UrlOf, type Event, errorOf, errorOfResponse, headersOf, unreachable } from "./values.ts";

/** Idle time after which the client asks the server for a sign of life, and the time for the answer. */
const SILENCE_SECONDS = 20;
const CONNECT_SECONDS = 20;
const CLOSE_SECONDS = 1;
/** The subprotocol of `/v1/ws`. */
const PROTOCOL = "kernelsvc.v1";

/** The state of a connection: `lost` while the client reconnects, `gone` after it has given up. */
export type ConnectionState = "connected" | "lost" | "gone";

/** Options of one call. */
export interface CallOptions {
  /** Ends the wait, not the work: the server still executes a call that it has accepted. */
  signal?: AbortSignal | undefined;
}

/** A receiver of the server's notifications about calls of offered functions. */
export interface NotificationHandler {
  /** Whether the client must stay connected. */
  readonly active: boolean;
  notified(method: string, params: Record<string, unknown>): void;
  connected(): void;
  close(): void;
}

interface Call {
  readonly method: string;
  readonly params: Record<string, unknown>;
  sent: boolean;
  resolve(value: unknown): void;
  reject(error: unknown): void;
}

interface Incoming {
  id?: number;
  method?: string;
  params?: Record<string, unknown>;
  result?: unknown;
  error?: { message?: string; data?: Partial<ErrorObject> };
}

interface NodeSocketOptions {
  headers: Record<string, string>;
}

/**
 * Return the time before the next connection attempt, in seconds.
 *
 * @param attempt 0 for the first attempt after a loss.
 * @param chance random number from 0 to 1, so that many clients do not reconnect at the same moment.
 */
export function backoff(attempt: number, chance: number): number {
  return Math.min(5, 0.05 * 2 ** Math.min(attempt, 10)) * (0.5 + 0.5 * chance);
}

/** Whether the WebSocket of this runtime can send headers: in Node, Deno and Bun it can, in browsers it can't. */
function socketHasHeaders(): boolean {
  const { process, navigator } = globalThis as {
    process?: { versions?: { node?: string } };
    navigator?: { userAgent?: string };
  };
  return typeof process?.versions?.node === "string" && navigator?.userAgent !== "Cloudflare-Workers";
}

function openSocket(address: Address): WebSocket {
  const url = `${address.base.replace(/^http/, "ws")}/v1/ws`;
  const { token, onBehalfOf } = address;
  if (!socketHasHeaders()) {
    // Without the header, the sessions would be those of the backend itself.
    if (onBehalfOf !== undefined) throw new BadRequest("The WebSocket of a browser can't act for a user. Use a backend.");
    // The token is in a subprotocol, in base64url without "=" (RFC 6455, section 4.1), because proxies log addresses.
    return new WebSocket(url, token === undefined ? [PROTOCOL] : [PROTOCOL, `kernelsvc.bearer.${base64UrlOf(token)}`]);
  }
  const Socket = WebSocket as unknown as new (url: string, options: NodeSocketOptions) => WebSocket;
  return new Socket(url, { headers: headersOf(address) });
}

function pause(seconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, seconds * 1000));
}

/** A JSON-RPC connection: see the module's comment. */
export class RpcConnection {
  readonly address: Address;
  /** How often the connection was lost. */
  reconnects = 0;
  /** Carries out calls of functions that this client offers. */
  provider: NotificationHandler | undefined;
  #giveUpSeconds: number;
  readonly #retrySeconds: number;
  readonly #onState: (state: ConnectionState) => void;
  #socket: WebSocket | undefined;
  #ended: (() => void) | undefined;
  #lastReceived = 0;
  readonly #calls = new Map<number, Call>();
  #nextId = 1;
  readonly #feeds = new Map<string, EventFeed>();
  readonly #updating = new Set<string>();
  readonly #readable = new Map<FeedReader, () => void>();
  #running = false;
  #closed = false;
  #interruptPause: (() => void) | undefined;

  constructor(
    address: Address,
    options: { connectSeconds: number; retrySeconds: number; onState?: ((state: ConnectionState) => void) | undefined },
  ) {
    this.address = address;
    this.#giveUpSeconds = options.connectSeconds;
    this.#retrySeconds = options.retrySeconds;
    this.#onState = options.onState ?? (() => {});
  }

  /** Whether `close` was called. */
  get closed(): boolean {
    return this.#closed;
  }

  // --- calls ------------------------------------------------------------------

  /**
   * Call a method and wait for its result, across reconnects.
   *
   * @throws KernelsvcError the server's error, `Unreachable` or `ConnectionLost`.
   */
  call<M extends keyof Methods>(
    method: M,
    params: Record<string, unknown>,
    { signal }: CallOptions = {},
  ): Promise<Methods[M]["result"]> {
    return new Promise<unknown>((resolve, reject) => {
      signal?.throwIfAborted();
      this.#start();
      const number = this.#nextId++;
      const abort = (): void => {
        this.#calls.delete(number);
        reject(signal?.reason);
      };
      const settle = (): void => {
        this.#calls.delete(number);
        signal?.removeEventListener("abort", abort);
      };
      const call: Call = {
        method,
        params,
        sent: false,
        resolve: (value) => {
          settle();
          resolve(value);
        },
        reject: (error) => {
          settle();
          reject(error);
        },
      };
      signal?.addEventListener("abort", abort, { once: true });
      this.#calls.set(number, call);
      if (this.#socket !== undefined) this.#send(this.#socket, number, call);
    }) as Promise<Methods[M]["result"]>;
  }

  #send(socket: WebSocket, number: number, call: Call): void {
    call.sent = true;
    // A socket that closes drops the message. #stayConnected then decides about this call.
    socket.send(JSON.stringify({ jsonrpc: "2.0", id: number, method: call.method, params: call.params }));
  }

  // --- readers ------------------------------------------------------------------

  /** Return a reader of the session's events after a position. End it with `unfollow`. */
  follow(session: string, after: number, cell?: string): FeedReader {
    const reader = new FeedReader(after, cell);
    let feed = this.#feeds.get(session);
    if (feed === undefined) this.#feeds.set(session, (feed = new EventFeed(session)));
    feed.readers.add(reader);
    this.#start();
    this.#startUpdate(session);
    return reader;
  }

  /**
   * Return the events since the last call, at least one. Return an empty list after the last event.
   *
   * @throws KernelsvcError the reason why the reader ended early.
   */
  async read(session: string, reader: FeedReader): Promise<Event[]> {
    while (reader.waiting === 0 && !reader.done) {
      await new Promise<void>((resolve) => this.#readable.set(reader, resolve));
    }
    const wasFull = reader.full;
    const events = reader.drain();
    if (wasFull) this.#startUpdate(session);
    if (events.length === 0 && reader.error !== undefined) throw reader.error;
    return events;
  }

  /** Move a reader back to an earlier position, before it has read any event. */
  rewind(session: string, reader: FeedReader, after: number): void {
    reader.rewind(after);
    this.#startUpdate(session);
  }

  /** End a reader. */
  unfollow(session: string, reader: FeedReader): void {
    reader.done = true;
    this.#notify(reader);
    const feed = this.#feeds.get(session);
    if (feed?.readers.delete(reader)) {
      this.#startUpdate(session);
      this.#removeIfUnused(feed);
    }
  }

  #startUpdate(session: string): void {
    if (this.#updating.has(session) || this.#socket === undefined || this.#closed) return;
    const feed = this.#feeds.get(session);
    if (feed?.step() === undefined) return;
    this.#updating.add(session);
    void this.#updateAttachment(feed);
  }

  async #updateAttachment(feed: EventFeed): Promise<void> {
    try {
      for (let step = feed.step(); step !== undefined && this.#socket !== undefined; step = feed.step()) {
        if (step.action === "attach") {
          // Before the request: the server may send events before its reply.
          feed.attached(step.after);
          await this.call("session.attach", { session: feed.session, after: step.after });
        } else {
          feed.lost();
          await this.call("session.detach", { session: feed.session });
        }
      }
    } catch (error) {
      // After a lost connection, #onSocketClosed has marked the feed as detached, and the next socket attaches again.
      if (!(error instanceof ConnectionLost || error instanceof Unreachable)) {
        this.#failReaders(feed, error instanceof KernelsvcError ? error : new Unreachable(String(error)));
      }
    } finally {
      this.#updating.delete(feed.session);
      this.#removeIfUnused(feed);
    }
    // The readers may have changed after the last step.
    this.#startUpdate(feed.session);
  }

  #removeIfUnused(feed: EventFeed): void {
    if (feed.readers.size === 0 && !feed.live && !this.#updating.has(feed.session)) this.#feeds.delete(feed.session);
  }

  #failReaders(feed: EventFeed, error: KernelsvcError): void {
    feed.lost();
    for (const reader of feed.readers) {
      reader.fail(error);
      this.#notify(reader);
    }
  }

  #notify(reader: FeedReader): void {
    const resolve = this.#readable.get(reader);
    this.#readable.delete(reader);
    resolve?.();
  }

  // --- the socket's life ----------------------------------------------------------

  #start(): void {
    if (this.#closed) throw new Unreachable("This client is closed. Create a new one.");
    if (!this.#running) {
      this.#running = true;
      void this.#stayConnected();
    }
  }

  get #needed(): boolean {
    return this.#calls.size > 0 || this.#feeds.size > 0 || this.provider?.active === true;
  }

  async #stayConnected(): Promise<void> {
    // A call that starts the loop is pending only after this function has returned once.
    await Promise.resolve();
    try {
      while (!this.#closed && this.#needed) {
        const socket = await this.#connect(this.#giveUpSeconds);
        if (socket === undefined) break;
        this.#giveUpSeconds = this.#retrySeconds;
        await this.#serve(socket);
        this.#onSocketClosed();
        if (this.#closed) break;
        this.reconnects += 1;
        this.#report("lost");
      }
    } catch (error) {
      this.#giveUp(error instanceof KernelsvcError ? error : unreachable(this.address.base, error));
    } finally {
      this.#running = false;
    }
  }

  async #connect(giveUpSeconds: number): Promise<WebSocket | undefined> {
    const deadline = performance.now() + giveUpSeconds * 1000;
    for (let attempt = 0; !this.#closed; attempt++) {
      const answer = await this.#connectOnce();
      if (answer instanceof WebSocket) return answer;
      if (answer instanceof KernelsvcError) throw answer;
      const seconds = backoff(attempt, Math.random());
      // A refusal, such as a wrong token, is final, unless the error says that a retry may succeed.
      const refused = await this.#refusal();
      if (refused !== undefined && !refused.retryable) throw refused;
      if (performance.now() + seconds * 1000 > deadline) throw refused ?? unreachable(this.address.base, answer);
      await this.#pauseBetweenAttempts(seconds);
    }
    return undefined;
  }

  /** Wait, but not longer than until the network of a browser is back, or `close`. */
  async #pauseBetweenAttempts(seconds: number): Promise<void> {
    const early = new Promise<void>((resolve) => {
      this.#interruptPause = resolve;
    });
    const wake = (): void => this.#interruptPause?.();
    globalThis.addEventListener?.("online", wake, { once: true });
    try {
      await Promise.race([pause(seconds), early]);
    } finally {
      globalThis.removeEventListener?.("online", wake);
    }
  }

  #connectOnce(): Promise<WebSocket | Error> {
    return new Promise((resolve) => {
      let socket: WebSocket;
      try {
        socket = openSocket(this.address);
      } catch (error) {
        resolve(error instanceof Error ? error : new Error(String(error)));
        return;
      }
      const timer = setTimeout(() => fail("it does not accept the connection"), CONNECT_SECONDS * 1000);
      const fail = (why: string): void => {
        clearTimeout(timer);
        socket.onopen = socket.onclose = socket.onerror = null;
        socket.close();
        resolve(new Error(why));
      };
      socket.onerror = (event) => fail("message" in event && event.message ? String(event.message) : "no connection");
      socket.onclose = () => fail("the connection was closed");
      socket.onopen = () => {
        clearTimeout(timer);
        socket.onopen = socket.onclose = socket.onerror = null;
        resolve(socket);
      };
    });
  }

  /** Ask by HTTP why the server refuses the WebSocket: JavaScript does not get the answer to the handshake. */
  async #refusal(): Promise<KernelsvcError | undefined> {
    try {
      const answer = await fetch(`${this.address.base}/v1/info`, {
        headers: headersOf(this.address),
        signal: AbortSignal.timeout(CONNECT_SECONDS * 1000),
      });
      const body = await answer.text();
      return answer.ok ? undefined : errorOfResponse(answer.status, body);
    } catch {
      return undefined;
    }
  }

  /** Send pending calls, attach to the sessions with readers, and read until the socket closes. */
  async #serve(socket: WebSocket): Promise<void> {
    const ended = new Promise<void>((resolve) => {
      this.#ended = resolve;
    });
    this.#socket = socket;
    this.#lastReceived = performance.now();
    socket.onmessage = (event) => this.#onMessage(socket, event.data);
    socket.onclose = socket.onerror = () => this.#ended?.();
    const watch = setInterval(() => this.#watch(socket), SILENCE_SECONDS * 1000);
    this.#report("connected");
    for (const [number, call] of [...this.#calls]) this.#send(socket, number, call);
    for (const session of [...this.#feeds.keys()]) this.#startUpdate(session);
    if (this.reconnects > 0) this.provider?.connected();
    if (socket.readyState !== WebSocket.OPEN || this.#closed) this.#ended?.();
    await ended;
    clearInterval(watch);
    socket.onmessage = socket.onclose = socket.onerror = null;
    socket.close();
  }

  /** Ask a silent server for a sign of life, because JavaScript's WebSocket can't ping. Close one that stays silent. */
  #watch(socket: WebSocket): void {
    const silent = performance.now() - this.#lastReceived;
    if (silent > 2 * SILENCE_SECONDS * 1000) this.#ended?.();
    else if (silent > SILENCE_SECONDS * 1000) socket.send('{"jsonrpc":"2.0","id":0,"method":"info","params":{}}');
  }

  #onMessage(socket: WebSocket, data: unknown): void {
    if (socket !== this.#socket || typeof data !== "string") return;
    this.#lastReceived = performance.now();
    let incoming: Incoming;
    try {
      incoming = JSON.parse(data) as Incoming;
      this.#handle(incoming, data.length);
    } catch (error) {
      if (!(error instanceof SequenceGap || error instanceof SyntaxError)) throw error;
      // Connect again, and attach after the last event that was received.
      this.#socket = undefined;
      this.#ended?.();
    }
  }

  #handle(incoming: Incoming, size: number): void {
    const { method, params = {} } = incoming;
    if (method === "event") {
      this.#dispatch(params as unknown as Event, size);
    } else if (method?.startsWith("tool.")) {
      this.provider?.notified(method, params);
    } else if (method === "detached") {
      // The server has stopped sending this session's events, because of an error.
      const feed = this.#feeds.get(String(params["session"]));
      if (feed) this.#failReaders(feed, errorOf(params["error"] as Partial<ErrorObject>));
    } else if (incoming.id !== undefined) {
      // The call of an unknown id was aborted.
      const call = this.#calls.get(incoming.id);
      if (incoming.error === undefined) call?.resolve(incoming.result);
      else call?.reject(errorOfCall(incoming.error));
    }
  }

  #dispatch(event: Event, size: number): void {
    // Events that the server sent before it handled the detach request have no feed.
    for (const reader of this.#feeds.get(event.session)?.take(event, size) ?? []) {
      this.#notify(reader);
      if (reader.full) this.#startUpdate(event.session);
    }
  }

  /** Mark all feeds as detached, and fail the sent calls that must not be sent twice. */
  #onSocketClosed(): void {
    this.#socket = undefined;
    for (const feed of this.#feeds.values()) feed.lost();
    for (const call of [...this.#calls.values()]) {
      if (call.sent && !REPEATABLE.has(call.method)) call.reject(new ConnectionLost(call.method));
    }
  }

  /** Call the caller's handler, whose errors become uncaught ones, as those of an event listener. They end no loop here. */
  #report(state: ConnectionState): void {
    queueMicrotask(() => this.#onState(state));
  }

  #giveUp(error: KernelsvcError): void {
    if (!this.#closed) this.#report("gone");
    for (const call of [...this.#calls.values()]) call.reject(error);
    for (const feed of this.#feeds.values()) this.#failReaders(feed, error);
    this.#feeds.clear();
  }

  /** Close the connection. Sessions stay open. Pending calls fail with `Unreachable`. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    this.provider?.close();
    const socket = this.#socket;
    this.#socket = undefined;
    this.#giveUp(new Unreachable("The client was closed before the call finished."));
    this.#interruptPause?.();
    if (socket !== undefined) {
      // RFC 6455, section 7.1.1: wait a moment for the close frame of the server.
      const closed = new Promise<void>((resolve) => socket.addEventListener("close", () => resolve(), { once: true }));
      this.#ended?.();
      socket.close();
      let timer: ReturnType<typeof setTimeout> | undefined;
      await Promise.race([closed, new Promise<void>((resolve) => (timer = setTimeout(resolve, CLOSE_SECONDS * 1000)))]);
      clearTimeout(timer);
    }
  }
}

/** The error of a JSON-RPC answer. */
export function errorOfCall(error: { message?: string; data?: Partial<ErrorObject> }): KernelsvcError {
  if (error.data?.code !== undefined) return errorOf(error.data);
  return new BadRequest(error.message ?? "The server refused the request without a reason.");
}
