/** The trace of a program's requests for cells: given by the caller, or that of OpenTelemetry's active span. */

/** `traceparent` and `tracestate` (W3C Trace Context), such as the headers of a request. Empty for no trace. */
export type Trace = Readonly<Record<string, string | undefined>>;

/** `@opentelemetry/api` registers its parts here, so that each of its copies finds them (`internal/global-utils`). */
const API = Symbol.for("opentelemetry.js.api.1");
/** The key of the span in a context (`trace/context-utils`). */
const SPAN = Symbol.for("OpenTelemetry Context Key SPAN");

interface SpanContext {
  traceId: string;
  spanId: string;
  traceFlags: number;
  traceState?: { serialize(): string };
}

interface Api {
  context?: { active(): { getValue(key: symbol): { spanContext?(): SpanContext } | undefined } };
}

/** Return the `_meta` of a request (SEP-414 of MCP), or undefined if the request belongs to no trace. */
export function requestMeta(trace: Trace | undefined): Record<string, string> | undefined {
  const { traceparent, tracestate } = trace ?? activeSpan() ?? {};
  if (!traceparent) return undefined;
  return tracestate ? { traceparent, tracestate } : { traceparent };
}

/** The active span of a program that has set OpenTelemetry up. Nothing is imported for it. */
function activeSpan(): Trace | undefined {
  const api = (globalThis as { [API]?: Api })[API];
  const span = api?.context?.active().getValue(SPAN)?.spanContext?.();
  // Without an SDK the ids are zeros, and the server ignores these. Not to send them is shorter.
  if (span === undefined || /^0*$/.test(span.traceId)) return undefined;
  const flags = (span.traceFlags & 1).toString().padStart(2, "0");
  return { traceparent: `00-${span.traceId}-${span.spanId}-${flags}`, tracestate: span.traceState?.serialize() };
}
