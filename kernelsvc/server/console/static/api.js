// The native API: REST for calls, one WebSocket for the events of a session. The token is in memory and in
// sessionStorage, and leaves this page only in a header or a subprotocol, never in an address.

const KEY = "kernelsvc.token";
/** Characters of output in one turn from which on the next turns wait longer. */
const FLOOD = 50_000;

/** An error of the server, or "unreachable". */
class ApiError extends Error {
  /** @param {string} code @param {string} message @param {number} status */
  constructor(code, message, status = 0) {
    super(message);
    this.code = code;
    this.status = status;
  }
}

/** @type {{ token: string, principal: string, scopes: string[], console: string, scripts: boolean }} */
export const me = { token: sessionStorage.getItem(KEY) ?? "", principal: "", scopes: [], console: "on", scripts: true };

/** Whether the page may offer an action. @param {string} scope */
export const may = (scope) => me.console === "on" && me.scopes.includes(scope);

/** @type {(why: string) => Promise<void>} */
let askForToken = () => Promise.reject(new ApiError("unauthenticated", "No token."));
/** Set the function that asks for a token and ends when there is a good one. @param {typeof askForToken} ask */
export const onUnauthenticated = (ask) => { askForToken = ask; };

/** @param {string} path @param {RequestInit} init */
async function request(path, init) {
  const headers = new Headers(init.headers);
  if (me.token) headers.set("Authorization", `Bearer ${me.token}`);
  let answer;
  try {
    answer = await fetch(path, { ...init, headers, credentials: "omit", cache: "no-store" });
  } catch {
    throw new ApiError("unreachable", "The server does not answer.");
  }
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => ({}));
  const error = body.error ?? body;
  throw new ApiError(error.code ?? "internal", error.message ?? `The server answered with ${answer.status}.`, answer.status);
}

/**
 * Send a request. If the token is refused, the page asks for another one and sends the request again.
 * @param {string} method @param {string} path @param {any} [body] JSON, or a Blob that is sent as it is
 */
export async function send(method, path, body) {
  const init = /** @type {RequestInit} */ ({ method });
  if (body instanceof Blob) init.body = body;
  else if (body !== undefined) {
    init.body = JSON.stringify(body);
    init.headers = { "Content-Type": "application/json" };
  }
  for (;;) {
    try {
      return await request(path, init);
    } catch (error) {
      if (!(error instanceof ApiError) || error.code !== "unauthenticated" || path.startsWith("/console/tickets")) throw error;
      await askForToken(me.token ? error.message : "");
    }
  }
}

/** Send a request and return the JSON of its answer. @param {string} method @param {string} path @param {any} [body] */
export async function call(method, path, body) {
  const answer = await send(method, path, body);
  return answer.status === 204 ? null : answer.json();
}

/** @param {string} path @param {Record<string, any>} [query] */
export function get(path, query = {}) {
  const pairs = Object.entries(query).filter(([, value]) => value !== undefined && value !== null && value !== "");
  return call("GET", pairs.length ? `${path}?${new URLSearchParams(pairs)}` : path);
}

/** @param {string} id @param {string} [rest] */
export const session = (id, rest = "") => `/v1/sessions/${encodeURIComponent(id)}${rest}`;

/** Try a token, and keep it if the server knows it. @param {string} token */
export async function signIn(token) {
  const before = me.token;
  me.token = token;
  try {
    Object.assign(me, await (await request("/console/me", {})).json());
  } catch (error) {
    me.token = before;
    throw error;
  }
  sessionStorage.setItem(KEY, token);
}

/** Forget the token. */
export function signOut() {
  sessionStorage.removeItem(KEY);
  me.token = "";
  me.scopes = [];
}

/** Exchange the ticket in the address for a token. The address is cleared before anything else happens. */
export async function redeemTicket() {
  const found = /^#ticket=([\w-]+)/.exec(location.hash);
  if (!found) return;
  const rest = /[&?]to=([^&]*)/.exec(location.hash);
  history.replaceState(null, "", rest ? `#${rest[1]}` : "#/");
  const answer = await call("POST", "/console/tickets/redeem", { ticket: found[1] });
  await signIn(answer.token);
}

/** @param {string} text */
const base64url = (text) =>
  btoa(String.fromCharCode(...new TextEncoder().encode(text))).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");

/** @typedef {{ state: "live" | "lost" | "recovering" | "forbidden" | "gone", retry?: number, message?: string }} LinkState */

/**
 * The events of one session, each once and in order, over as many connections as it takes.
 * `onEvents` gets those that arrived in one turn, at most 60 times a second.
 */
export class EventStream {
  /**
   * @param {string} id @param {number} after
   * @param {(events: any[]) => void} onEvents @param {(state: LinkState) => void} onState
   */
  constructor(id, after, onEvents, onState) {
    this.id = id; this.last = after; this.onEvents = onEvents; this.onState = onState;
    this.pause = 500;
    this.closed = false;
    this.characters = 0; // of output in `waiting`
    this.flood = false;
    this.waiting = /** @type {any[]} */ ([]);
    this.timer = /** @type {any} */ (0);
    this.retry = /** @type {any} */ (0);
    this.connect();
  }

  connect() {
    clearTimeout(this.retry);
    if (this.closed) return;
    this.socket?.close();
    const socket = new WebSocket(new URL("/v1/ws", location.href.replace(/^http/, "ws")),
      ["kernelsvc.v1", `kernelsvc.bearer.${base64url(me.token)}`]);
    this.socket = socket;
    socket.onopen = () => socket.send(JSON.stringify(
      { jsonrpc: "2.0", id: 1, method: "session.attach", params: { session: this.id, after: this.last } }));
    socket.onmessage = (message) => { if (socket === this.socket) this.take(JSON.parse(message.data)); };
    socket.onclose = () => { if (socket === this.socket) this.lost(); };
  }

  /** @param {any} frame */
  take(frame) {
    if (frame.id === 1) {
      if (frame.error) return this.refused(frame.error.data ?? frame.error);
      this.pause = 500;
      this.onState({ state: "live" });
    } else if (frame.method === "event") {
      const event = frame.params;
      if (event.seq <= this.last) return;
      this.last = event.seq;
      this.waiting.push(event);
      this.characters += event.text?.length ?? 0;
      // A flood is shown ten times a second: laying out its lines takes longer than a frame.
      if (!this.timer) this.timer = setTimeout(() => this.flush(), this.flood ? 100 : 16);
    } else if (frame.method === "detached") this.lost();
  }

  flush() {
    this.timer = 0;
    const events = this.waiting;
    this.waiting = [];
    this.flood = this.characters > FLOOD;
    this.characters = 0;
    if (!this.closed) this.onEvents(events);
  }

  /** @param {{ code: string, message: string }} error */
  refused(error) {
    if (error.code === "recovering") return this.lost("recovering", error.message);
    this.socket?.close();
    this.socket = undefined;
    this.onState({ state: error.code === "forbidden" ? "forbidden" : "gone", message: error.message });
  }

  /** @param {"lost" | "recovering"} [state] @param {string} [message] */
  lost(state = "lost", message = "") {
    // After "detached" and a refusal the socket is still open.
    const before = this.socket;
    this.socket = undefined;
    before?.close();
    clearTimeout(this.retry);
    if (this.closed) return;
    this.onState({ state, retry: this.pause, message });
    this.retry = setTimeout(() => this.again(), this.pause);
    this.pause = Math.min(8000, this.pause * 2);
  }

  /** Connect now. The first request tells whether the token is still good: a failed upgrade has no status for a page. */
  async again() {
    clearTimeout(this.retry);
    try {
      await get("/console/me");
    } catch {
      return this.lost();
    }
    this.connect();
  }

  close() {
    this.closed = true;
    clearTimeout(this.retry);
    this.socket?.close();
  }
}
