/** The client of kernelsvc: `Client`, `Session`, and the types of everything that they return. */
export { Client, type ClientOptions, type CreateOptions, type OnceOptions } from "./client.ts";
export type { CallOptions, ConnectionState } from "./connection.ts";
export { ConnectionLost, type ErrorObject, KernelsvcError, Unreachable } from "./errors.ts";
export * from "./generated.ts";
export type { Content } from "./http.ts";
export { type OfferedFunction, SessionCall, type ToolCall, ToolError } from "./offered.ts";
export { type CommandOptions, type CommandResult, Program, type ProgramOptions, type ProgramOutput } from "./programs.ts";
export {
  type BranchOptions,
  type CellOptions,
  type Decision,
  type RunOptions,
  Session,
  type StreamOptions,
  type ViewOptions,
} from "./session.ts";
export { Events, Stream } from "./streams.ts";
export type { Trace } from "./trace.ts";
export { type Address, Cell, CellFailed, type Event, type FileInfo, type Image } from "./values.ts";
