/** `Client`: operations on the server as methods. */
import { type CallOptions, type ConnectionState, RpcConnection } from "./connection.ts";
import { Unreachable } from "./errors.ts";
import type { Deletion, FileList, LimitsRequest, SessionInfo, SessionState, ToolFilter, WorkspaceInfo } from "./generated.ts";
import { CONTENT, type Content, Rest } from "./http.ts";
import { type OfferedFunction, providerOf } from "./offered.ts";
import { Session } from "./session.ts";
import { requestMeta, type Trace } from "./trace.ts";
import { type Address, Cell, type FileInfo, given, newId, parseAddress, query, quoted } from "./values.ts";

/** Maximum page size of the server. */
const PAGE = 1000;

/** Options of `Client`. */
export interface ClientOptions {
  /** `http://HOST:PORT`. Default: the environment variable `KERNELSVC_URL`. */
  url?: string;
  /** Default: the environment variable `KERNELSVC_TOKEN`. */
  token?: string;
  /** For a backend: its name for the user who is served. The token needs the scope `delegate`. Not in browsers. */
  onBehalfOf?: string;
  /** Time to try the first connection, in seconds. */
  connectSeconds?: number;
  /** Time to reconnect, in seconds, after which pending calls fail with `Unreachable`. */
  retrySeconds?: number;
  /** Name of this program as the provider of its functions, if it needs one that stays the same. */
  provider?: string;
  /** Called with `connected`, `lost` (reconnecting) or `gone` (given up) when the state of the connection changes. */
  onState?: (state: ConnectionState) => void;
}

/** Options of `Client.createSession`. */
export interface CreateOptions {
  /** Environment to fork, or the name of a Jupyter kernelspec. */
  template?: string;
  name?: string;
  labels?: Record<string, string>;
  /** Limits such as `{ memory_bytes: 2 ** 30, cell_seconds: 60 }`, at most the server's. */
  limits?: LimitsRequest;
  /** Environment variables of the kernel. */
  env?: Record<string, string>;
  /** Id of another session. The new session uses the same working directory, and ends with it. */
  sidecarOf?: string;
  /** `every` makes a checkpoint after each cell, before the next one. */
  checkpoint?: "auto" | "every";
  /** The functions of clients that its code may call. Default: all that are offered. */
  tools?: ToolFilter;
  /** Names of the server's mounts to show at `/data/NAME`, read-only. */
  mounts?: readonly string[];
  /** A folder that outlives the session, at `/workspace`: `NAME`, or another principal's as `OWNER/NAME`. */
  workspace?: string;
  /** A repeated key returns the session that the first request created. Default: a random one. */
  idempotencyKey?: string;
  /** Leave the session open at the end of its `await using` block. */
  keep?: boolean;
}

/** Options of `Client.executeOnce`. */
export interface OnceOptions extends CallOptions {
  /** Source text to run. */
  code?: string;
  /** Instead of code, the source of a lambda or a def. Its return value is the cell's `value`. */
  function?: string;
  args?: readonly unknown[];
  kwargs?: Record<string, unknown>;
  template?: string;
  /** Files to create first in the working directory, name to text. */
  files?: Record<string, string>;
  limits?: LimitsRequest;
  /** Maximum wall time of the cell, in seconds. */
  timeout?: number;
  /** The trace that the cell and its processes belong to. Default: that of OpenTelemetry's active span. */
  trace?: Trace | undefined;
}

function environment(name: string): string | undefined {
  const { process } = globalThis as { process?: { env?: Record<string, string | undefined> } };
  return process?.env?.[name];
}

/**
 * A connection to one kernelsvc server.
 *
 * The client reconnects by itself when the connection is lost or the server restarts. Pending calls continue, each
 * event arrives once, and no cell runs twice.
 */
export class Client implements AsyncDisposable {
  readonly address: Address;
  readonly #rpc: RpcConnection;
  readonly #rest: Rest;
  readonly #provider: string | undefined;

  /** @throws Unreachable there is no `url`. */
  constructor(options: ClientOptions = {}) {
    const url = options.url ?? environment("KERNELSVC_URL");
    if (!url) {
      throw new Unreachable(
        "No address is set. Give 'url' and 'token', set KERNELSVC_URL and KERNELSVC_TOKEN, or use localServer() of 'kernelsvc/node'.",
      );
    }
    const address = parseAddress(url, options.token ?? environment("KERNELSVC_TOKEN"));
    this.address = { ...address, onBehalfOf: options.onBehalfOf };
    const { connectSeconds = 5, retrySeconds = 60, onState } = options;
    this.#rpc = new RpcConnection(this.address, { connectSeconds, retrySeconds, onState });
    this.#rest = new Rest(this.address, { connectSeconds, retrySeconds });
    this.#provider = options.provider;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /** Close the connection. Sessions stay open until they are closed or expire. */
  close(): Promise<void> {
    return this.#rpc.close();
  }

  /** How often the client has lost the connection. */
  get reconnects(): number {
    return this.#rpc.reconnects;
  }

  // --- the server ---------------------------------------------------------------

  /** Return the server's version, limits and confinement. */
  info(): Promise<Record<string, unknown>> {
    return this.#rpc.call("info", {});
  }

  /** Return the environments that sessions can use. */
  templates(): Promise<Record<string, unknown>[]> {
    return this.#rpc.call("templates", {});
  }

  /**
   * Run code, or call a function, in a new session, and close the session.
   *
   * @throws KernelsvcError the server refused the request. A failed cell does not throw: see `Cell.raiseForError`.
   */
  async executeOnce({ timeout, signal, trace, ...request }: OnceOptions): Promise<Cell> {
    const params = given({ ...request, timeout_seconds: timeout, _meta: requestMeta(trace) });
    return new Cell((await this.#rpc.call("call", params, { signal })) as unknown as Cell);
  }

  /** Let the code of all sessions of this token call functions of this program. See `Session.offer`. */
  offer(...functions: OfferedFunction[]): Promise<void> {
    return providerOf(this.#rpc, this.#provider).offer(functions);
  }

  /** Withdraw functions that this program offers to all sessions of the token. Without names: all. */
  withdraw(...names: string[]): Promise<void> {
    return providerOf(this.#rpc, this.#provider).withdraw(names.length > 0 ? names : undefined);
  }

  // --- sessions -------------------------------------------------------------------

  /**
   * Create a session, ready for its first cell.
   *
   * @throws KernelsvcError `at_capacity`, `quota_exceeded`, `limit_too_high`, `sandbox_unavailable`, …
   */
  async createSession(options: CreateOptions = {}): Promise<Session> {
    const { sidecarOf, keep = false, idempotencyKey = newId("create"), ...request } = options;
    const params = given({ ...request, sidecar_of: sidecarOf, idempotency_key: idempotencyKey, attach: false });
    return new Session(this.#rpc, this.#rest, await this.#rpc.call("session.create", params), keep);
  }

  /**
   * Get a session by its id.
   *
   * @param options `keep: false` closes it at the end of its `await using` block.
   * @throws NotFound there is no such session, or another principal owns it.
   */
  async session(id: string, options: { keep?: boolean } = {}): Promise<Session> {
    const info = await this.#rpc.call("session.get", { session: id });
    return new Session(this.#rpc, this.#rest, info, options.keep ?? true);
  }

  /** List your sessions, newest first, open and closed. `principal` needs the scope `audit`. */
  async sessions(
    options: { state?: SessionState; label?: string; limit?: number; principal?: string } = {},
  ): Promise<SessionInfo[]> {
    const { limit = Number.POSITIVE_INFINITY, ...filter } = options;
    const found: SessionInfo[] = [];
    for (let page: string | null = ""; page !== null && found.length < limit; ) {
      const size = Math.min(PAGE, limit - found.length);
      const params = given({ ...filter, limit: size, page: page || undefined });
      const answer: { sessions: SessionInfo[]; next_page: string | null } = await this.#rpc.call("session.list", params);
      found.push(...answer.sessions);
      page = answer.next_page;
    }
    return found;
  }

  /** Return a session as a notebook, also if only the server's archive has it. */
  async notebook(id: string, format: "ipynb" | "html" | "py" = "ipynb"): Promise<Uint8Array<ArrayBuffer>> {
    return (await this.#rest.raw("GET", query(`/v1/sessions/${quoted(id)}/notebook`, { format }))).data;
  }

  /** Return the log of a session, also if only the server's archive has it. */
  async journal(id: string): Promise<Uint8Array<ArrayBuffer>> {
    return (await this.#rest.raw("GET", `/v1/sessions/${quoted(id)}/journal`)).data;
  }

  /**
   * Delete a session for good: its log, notebook and files. Return the record that the server keeps, without content.
   *
   * @param options `force: true` ends an open session first.
   */
  purge(id: string, options: { force?: boolean } = {}): Promise<Deletion> {
    return this.#rpc.call("session.purge", { session: id, force: options.force ?? false });
  }

  // --- workspaces -----------------------------------------------------------------

  /** List the workspaces that you may use. */
  workspaces(): Promise<WorkspaceInfo[]> {
    return this.#rpc.call("workspace.list", {});
  }

  /** Get a workspace, `NAME` or `OWNER/NAME`, with its size. */
  workspace(workspace: string): Promise<WorkspaceInfo> {
    return this.#rpc.call("workspace.get", workspaceParams(workspace));
  }

  /** Make a workspace, or change one of yours. An option that is left out changes nothing. */
  setWorkspace(
    workspace: string,
    options: { sharedWith?: readonly string[]; maxBytes?: number } = {},
  ): Promise<WorkspaceInfo> {
    const change = given({ shared_with: options.sharedWith, max_bytes: options.maxBytes });
    return this.#rpc.call("workspace.set", { ...workspaceParams(workspace), ...change });
  }

  /** Remove a workspace with its files. */
  async removeWorkspace(workspace: string): Promise<void> {
    await this.#rpc.call("workspace.remove", workspaceParams(workspace));
  }

  /** List the files of a workspace. */
  async workspaceFiles(workspace: string, directory = "", options: { recursive?: boolean } = {}): Promise<FileInfo[]> {
    const where = query(await this.#workspaceFile(workspace, directory), { recursive: options.recursive ?? false });
    return (await this.#rest.json<FileList>("GET", where)).files;
  }

  /** Return the content of a file of a workspace. */
  async downloadFrom(workspace: string, name: string): Promise<Uint8Array<ArrayBuffer>> {
    return (await this.#rest.raw("GET", await this.#workspaceFile(workspace, name), { headers: CONTENT })).data;
  }

  /** Write a file of a workspace. Return its path there. */
  async uploadTo(workspace: string, content: Content, name: string): Promise<string> {
    await this.#rest.raw("PUT", await this.#workspaceFile(workspace, name), { body: content, repeat: true });
    return name;
  }

  async #workspaceFile(workspace: string, name: string): Promise<string> {
    const info = await this.workspace(workspace);
    return `/v1/workspaces/${quoted(info.owner)}/${info.name}/files/${quoted(name)}`;
  }
}

/** The parameters that name a workspace. */
function workspaceParams(address: string): Record<string, unknown> {
  const slash = address.lastIndexOf("/");
  return slash < 0 ? { name: address } : { name: address.slice(slash + 1), owner: address.slice(0, slash) };
}
