/** Values that the client returns: events, cells, images. */
import { type ErrorObject, KernelsvcError, Unreachable } from "./errors.ts";
import { BadRequest, type CellInfo, ERRORS, type FileEntry, Internal, type KnownEvent, type Reason } from "./generated.ts";

/**
 * One entry of a session's log. `event.type` says which: `if (event.type === "stream") event.text`.
 *
 * A newer server may send types that are not in this union: ignore them.
 */
export type Event = KnownEvent;

/** A file in a session's working directory. */
export type FileInfo = FileEntry;

/** Return a new random id. It makes a request safe to send twice. */
export function newId(kind: string): string {
  const bytes = crypto.getRandomValues(new Uint8Array(10));
  return `${kind}-${Array.from(bytes, (each) => each.toString(16).padStart(2, "0")).join("")}`;
}

/** Rebuild an error from the object that the server sent. An unknown code becomes `Internal`. */
export function errorOf(data: Partial<ErrorObject>): KernelsvcError {
  const kind = ERRORS[String(data.code)] ?? Internal;
  return new kind(String(data.message ?? ""), data.details ?? {});
}

/** Return the error of an HTTP answer. An answer without an error object gives an error by its status. */
export function errorOfResponse(status: number, body: string): KernelsvcError {
  let data: unknown;
  try {
    data = JSON.parse(body);
  } catch {
    data = undefined;
  }
  if (typeof data === "object" && data !== null) {
    const inner: unknown = "error" in data ? data.error : data;
    if (typeof inner === "object" && inner !== null && "code" in inner) return errorOf(inner as Partial<ErrorObject>);
  }
  const nearest = Object.values(ERRORS).find((kind) => kind.status === status) ?? Internal;
  return new nearest(
    `The server answered with status ${status} and no error object. Check that this address is a kernelsvc server.`,
  );
}

/** Return the error of a client that could not connect, with the next step. */
export function unreachable(address: string, cause: unknown): Unreachable {
  const shown = cause instanceof Error && cause.message ? cause.message : String(cause);
  const next = "Start one with 'kernelsvc serve', or give its address.";
  return new Unreachable(`No server answers at ${address} (${shown}). ${next}`, {}, { cause });
}

/** The cell failed. Its text and error have the reason. */
export class CellFailed extends KernelsvcError {
  static override readonly code: string = "cell_failed";
  static override readonly status: number = 422;
  readonly cell: Cell;

  constructor(message: string, cell: Cell) {
    super(message, { reason: cell.reason });
    this.cell = cell;
  }
}

/** An image that a cell displayed: its MIME type and the file's bytes. */
export interface Image {
  mime: string;
  data: Uint8Array<ArrayBuffer>;
}

const IMAGES = ["image/png", "image/jpeg", "image/gif", "image/webp", "image/svg+xml"];

/** Decode base64. */
export function bytesOf(base64: string): Uint8Array<ArrayBuffer> {
  return Uint8Array.from(atob(base64), (each) => each.charCodeAt(0));
}

/** Encode bytes as base64. */
export function base64Of(data: Uint8Array): string {
  let text = "";
  // String.fromCharCode takes its arguments from the stack, which has a limit.
  for (let at = 0; at < data.length; at += 32768) text += String.fromCharCode(...data.subarray(at, at + 32768));
  return btoa(text);
}

/** Encode a text as base64url (RFC 4648, section 5) without padding. */
export function base64UrlOf(text: string): string {
  const plain = base64Of(new TextEncoder().encode(text));
  return plain.replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

/** Return the images of a MIME bundle, the best format first. Values that are not base64 are ignored. */
export function imagesOf(bundle: Record<string, unknown>): Image[] {
  const found: Image[] = [];
  for (const mime of IMAGES) {
    const given = bundle[mime];
    // nbformat allows a list of lines.
    const value = Array.isArray(given) ? given.join("") : given;
    if (typeof value !== "string") continue;
    try {
      found.push({ mime, data: mime === "image/svg+xml" ? new TextEncoder().encode(value) : bytesOf(value) });
    } catch {
      // The kernel's data are not trusted.
    }
  }
  return found;
}

/** The fields of a cell, as the server sends them. */
export interface Cell extends CellInfo {
  /** Return value of the function, for `executeOnce({ function })`. */
  value?: unknown;
}

/** A cell: the fields of `CellInfo`, with images and an exception. */
export class Cell {
  constructor(info: CellInfo) {
    Object.assign(this, info);
  }

  /** Whether the cell ended without an error. */
  get ok(): boolean {
    return this.reason === ("ok" satisfies Reason);
  }

  /** The images of the cell, one for each output that has any, in order. */
  get images(): Image[] {
    return this.outputs.flatMap((output) => {
      const bundle = output["data"];
      return typeof bundle === "object" && bundle !== null ? imagesOf(bundle as Record<string, unknown>).slice(0, 1) : [];
    });
  }

  /**
   * Return the cell, or throw if it failed.
   *
   * @throws CellFailed the cell ended with another reason than `ok`.
   */
  raiseForError(): this {
    if (this.ok) return this;
    const { error } = this;
    const cause = error ? `${error.ename}: ${error.evalue}` : (this.message ?? "see the cell's text");
    throw new CellFailed(`The cell ended with ${this.reason ?? this.state}: ${cause}`, this);
  }

  toString(): string {
    return this.text;
  }
}

/** Remove the parameters that are undefined or null: the server has defaults for them. */
export function given(params: Record<string, unknown>): Record<string, unknown> {
  return Object.fromEntries(Object.entries(params).filter(([, value]) => value !== undefined && value !== null));
}

/** The address of a server, and a token for it. */
export interface Address {
  /** `http://host:port` or `https://...`, without a slash at the end. */
  readonly base: string;
  readonly token: string | undefined;
  /** The user of a backend, for whom the requests are. */
  readonly onBehalfOf?: string | undefined;
}

/**
 * Parse a URL: `http(s)://` or `ws(s)://`. The token may be in it as `?token=`, and is removed from it.
 *
 * @throws BadRequest the URL has another form, or the token has characters that no header can carry.
 */
export function parseAddress(url: string, token?: string): Address {
  let parts: URL;
  try {
    parts = new URL(url.trim());
  } catch {
    throw new BadRequest(`The address '${url}' is not valid. Write http://HOST:PORT.`);
  }
  if (parts.protocol === "unix:" || parts.protocol === "http+unix:") {
    throw new BadRequest(
      `'${url}' is a Unix socket, to which JavaScript's WebSocket can't connect. Start the server with --host 127.0.0.1.`,
    );
  }
  const scheme = parts.protocol.replace(/^ws/, "http");
  if (scheme !== "http:" && scheme !== "https:") {
    throw new BadRequest(`The address '${url}' is not valid. Write http://HOST:PORT.`);
  }
  const clean = (token ?? parts.searchParams.get("token") ?? "").trim();
  // RFC 9110, section 5.5: CR, LF and NUL are invalid in a field value, and text beyond ASCII has no defined form.
  if (!/^[\x20-\x7e]*$/.test(clean)) {
    throw new BadRequest("The token has a control character or a letter beyond ASCII. Check where you copied it from.");
  }
  const path = parts.pathname.replace(/\/+$/, "").replace(/\/v1\/ws$/, "");
  return { base: `${scheme}//${parts.host}${path}`, token: clean || undefined };
}

/** Return the headers of each request. */
export function headersOf(address: Address): Record<string, string> {
  const { token, onBehalfOf } = address;
  return {
    ...(token === undefined ? {} : { Authorization: `Bearer ${token}` }),
    ...(onBehalfOf === undefined ? {} : { "X-On-Behalf-Of": onBehalfOf }),
  };
}

/** Percent-encode a file's path for a URL. */
export function quoted(path: string): string {
  return path.split("/").map(encodeURIComponent).join("/");
}

/** Return a path with a query string of the parameters that are given. */
export function query(path: string, params: Record<string, unknown>): string {
  const pairs = Object.entries(given(params)).map(([name, value]): [string, string] => [name, String(value)]);
  return pairs.length === 0 ? path : `${path}?${new URLSearchParams(pairs)}`;
}
