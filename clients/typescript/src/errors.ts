/** The base of all errors, and the errors that only a client raises. `generated.ts` has those of the server. */

/** The object that every API of the server sends for an error. */
export interface ErrorObject {
  code: string;
  message: string;
  retryable: boolean;
  details: Record<string, unknown>;
}

/** An error of the server or of the connection to it. The message ends with the next step. */
export class KernelsvcError extends Error {
  static readonly code: string = "internal";
  static readonly status: number = 500;
  static readonly retryable: boolean = false;

  /** Facts about this occurrence. */
  readonly details: Record<string, unknown>;

  constructor(message: string, details: Record<string, unknown> = {}, options?: ErrorOptions) {
    super(message, options);
    this.name = new.target.name;
    this.details = details;
  }

  /** A stable name of the kind of error. */
  get code(): string {
    return (this.constructor as typeof KernelsvcError).code;
  }

  /** The HTTP status of a REST answer with this error. */
  get status(): number {
    return (this.constructor as typeof KernelsvcError).status;
  }

  /** Whether the same request may succeed later. */
  get retryable(): boolean {
    return (this.constructor as typeof KernelsvcError).retryable;
  }

  toJSON(): ErrorObject {
    return { code: this.code, message: this.message, retryable: this.retryable, details: this.details };
  }
}

/** No server answers. Start one with 'kernelsvc serve', or give its address and token. */
export class Unreachable extends KernelsvcError {
  static override readonly code: string = "unreachable";
  static override readonly status: number = 503;
  static override readonly retryable: boolean = true;
}

/** The connection was lost during a request that can't be sent twice. Read the session's state, then decide. */
export class ConnectionLost extends KernelsvcError {
  static override readonly code: string = "connection_lost";
  static override readonly status: number = 503;

  constructor(method: string) {
    super(
      `The connection was lost during ${method}, which can't be sent twice. Read the session's state, then decide.`,
      { method },
    );
  }
}
