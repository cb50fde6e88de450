/** HTTP requests to the server: files, notebooks, pages of events. */
import { backoff } from "./connection.ts";
import { ConnectionLost } from "./errors.ts";
import { type Address, errorOfResponse, headersOf, unreachable } from "./values.ts";

/** Content to upload. A stream is none of these, because the client repeats an upload after a lost connection. */
export type Content = string | Uint8Array<ArrayBuffer> | ArrayBuffer | Blob;

/** Headers of a request for a file's content: a directory is then an error, and its listing is no file. */
export const CONTENT = { Accept: "application/octet-stream" };

/** Options of one request. */
export interface RequestOptions {
  body?: Content | undefined;
  headers?: Record<string, string>;
  /** Whether the server may get the request twice. Default: only GET and HEAD. */
  repeat?: boolean;
  signal?: AbortSignal | undefined;
}

/** An answer, read to its end. */
export interface HttpAnswer {
  data: Uint8Array<ArrayBuffer>;
  headers: Headers;
}

/** HTTP requests to one address. */
export class Rest {
  readonly address: Address;
  #giveUpSeconds: number;
  readonly #retrySeconds: number;

  constructor(address: Address, options: { connectSeconds: number; retrySeconds: number }) {
    this.address = address;
    this.#giveUpSeconds = options.connectSeconds;
    this.#retrySeconds = options.retrySeconds;
  }

  /** Send a request and return the JSON of the answer. */
  async json<T>(method: string, path: string, options: RequestOptions = {}): Promise<T> {
    const { data } = await this.raw(method, path, { ...options, headers: { Accept: "application/json" } });
    return JSON.parse(new TextDecoder().decode(data)) as T;
  }

  /**
   * Send a request and return the answer.
   *
   * @throws KernelsvcError the server's error, `Unreachable` or `ConnectionLost`.
   */
  async raw(method: string, path: string, options: RequestOptions = {}): Promise<HttpAnswer> {
    const { body, headers, signal, repeat = method === "GET" || method === "HEAD" } = options;
    const deadline = performance.now() + this.#giveUpSeconds * 1000;
    for (let attempt = 0; ; attempt++) {
      let response: Response;
      let data: Uint8Array<ArrayBuffer>;
      try {
        response = await fetch(this.address.base + path, {
          method,
          headers: { ...headersOf(this.address), ...headers },
          body: body ?? null,
          signal: signal ?? null,
        });
        data = new Uint8Array(await response.arrayBuffer());
      } catch (error) {
        if (signal?.aborted) throw error;
        const seconds = backoff(attempt, Math.random());
        const again = repeat || neverSent(error);
        if (!again) throw new ConnectionLost(`${method} ${path}`);
        if (performance.now() + seconds * 1000 > deadline) throw unreachable(this.address.base, error);
        await new Promise((resolve) => setTimeout(resolve, seconds * 1000));
        continue;
      }
      this.#giveUpSeconds = this.#retrySeconds;
      if (!response.ok) throw errorOfResponse(response.status, new TextDecoder().decode(data));
      return { data, headers: response.headers };
    }
  }
}

/** Whether the connection failed before the request: the server has not got it. Only Node and Bun say so. */
function neverSent(error: unknown): boolean {
  const { code, cause } = error as { code?: string; cause?: { code?: string } };
  return [code, cause?.code].some((each) => each === "ECONNREFUSED" || each === "ConnectionRefused");
}
