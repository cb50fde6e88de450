// Written by docs/generate_ts.py from the code of the server. Run `make docs` to update it.

import { KernelsvcError } from "./errors.ts";

/** `session.attach` is accepted. Events up to `last_seq` are old, later ones are live. */
export interface Attached {
  session: string;
  last_seq: number;
}

/** The principal `by` forked new sessions from this one. */
export interface BranchedEvent {
  type: "branched";
  sessions: string[];
  checkpoint: string | null;
  warnings: string[];
  by: string;
  session: string;
  seq: number;
  at: string;
  cell?: string;
  frame?: number;
  request?: string;
  prev: string;
}

/** The directory is being copied for new branches. Sent once a second until the copy is done. */
export interface BranchingEvent {
  type: "branching";
  /** The ids of the branches. */
  sessions: string[];
  /** Bytes copied so far, for all branches. */
  copied_bytes: number;
  /** Bytes to copy, for all branches. */
  total_bytes: number;
  session: string;
  seq: number;
  at: string;
  cell?: string;
  frame?: number;
  request?: string;
  prev: string;
}

/** A page of calls, the oldest first, and the offset of the next page. */
export interface CallPage {
  calls: ToolCallInfo[];
  next_offset: number | null;
}

/** A call of a cell to a client's function, as the cell and the notebook show it. */
export interface CallSummary {
  call: string;
  tool: string;
  /** Those that the log has, if they are short. */
  arguments: unknown;
  /** How it ended. None while it is open. */
  status: "cancelled" | "denied" | "error" | "expired" | "limit" | "lost" | "ok" | "refused" | "timeout" | "too_large" | "unavailable" | null;
  /** Time of the provider, in milliseconds. */
  ms: number | null;
  /** Who approved or denied it. */
  decided_by: string | null;
  /** Size of the result as JSON. */
  bytes: number;
}

/** The calls of a cell: how many by tool and status, and the first 100. */
export interface CellCalls {
  /** By `tool`, then by status. `open` counts those without an end. */
  counts: Record<string, Record<string, number>>;
  first: CallSummary[];
}

/** The principal `by` decided whether a held cell runs. Empty: its time was over, and the server decided. */
export interface CellDecidedEvent {
  type: "cell_decided";
  decision: "approve" | "refuse";
  reason: string | null;
  by: string;
  session: string;
  seq: number;
  at: string;
  cell?: string;
  frame?: number;
  request?: string;
  prev: string;
}

/** The exception of a cell. */
export interface CellError {
  ename: string;
  evalue: string;
  traceback: string[];
}

/** The only end of the cell, on disk before any client gets it. */
export interface CellFinishedEvent {
  type: "cell_finished";
  /** Why it ended. */
  reason: Reason;
  execution_count: number | null;
  usage: CellUsage;
  /** The cause in words, if the outputs don't show it. */
  message: string | null;
  /** False if the kernel was lost with its variables. None if they were not affected. */
  variables_kept: boolean | null;
  /** Results of the request's expressions, as in Jupyter's `execute_reply`: a MIME bundle each, or the error. */
  user_expressions: Record<string, unknown>;
  /** Names of variables and files by the kind of change: `new`, `changed`, `gone` and `files`, a list of descriptions each. None if the kernel did not compare. */
  changes: Record<string, string[]> | null;
  session: string;
  seq: number;
  at: string;
  cell?: string;
  frame?: number;
  request?: string;
  prev: string;
}

/** The cell waits for a person's decision before it runs. */
export interface CellHeldEvent {
  type: "cell_held";
  session: string;
  seq: number;
  at: string;
  cell?: string;
  frame?: number;
  request?: string;
  prev: string;
}

/** A cell as the API shows it. */
export interface CellInfo {
  id: string;
  session: string;
  code: string;
  state: CellState;
  reason: Reason | null;
  execution_count: number | null;
  outputs: Record<string, unknown>[];
  text: string;
  error: CellError | null;
  usage: CellUsage;
  seq: SeqRange;
  metadata: Record<string, unknown>;
  message: string | null;
  variables_kept: boolean | null;
  /** Its calls of clients' functions. Left out if it made none. */
  calls?: CellCalls;
  /** Whether it has a call that waits for a person or a provider. Left out if it has none. */
  waits_for?: "approval" | "tool";
}

/** A cell whose code matches a search, with the part of the code that matches. */
export interface CellMatch {
  session: string;
  cell: string;
  seq: number;
  snippet: string;
}

/** One line about a cell, for a list of many. */
export interface CellOutline {
  id: string;
  state: CellState;
  reason: Reason | null;
  execution_count: number | null;
  /** of its code, at most 200 characters. */
  first_line: string;
  /** of its code. */
  lines: number;
  /** when it was accepted. */
  at: string;
  /** who sent it. */
  principal: string;
  /** how long it ran. None if it has not ended. */
  wall_ms: number | null;
  /** whether a rollback undid it. */
  undone: boolean;
  first: number;
  /** position of its last entry in the log. */
  last: number;
}

/** A page of cells, the oldest first, and the offset of the next page. */
export interface CellPage {
  cells: CellInfo[];
  next_offset: number | null;
}

/** A cell was accepted. Written before its code runs. */
export interface CellQueuedEvent {
  type: "cell_queued";
  code: string;
  timeout_seconds: number | null;
  on_error: "continue" | "stop";
  on_disconnect: "interrupt" | "keep";
  silent: boolean;
  allow_stdin: boolean;
  store_history: boolean;
  user_expressions: Record<string, string>;
  metadata: Record<string, unknown>;
  principal: string;
  checkpoint: "auto" | "every" | null;
  changes: boolean;
  /** Whether it may call functions of clients, or which of them. Absent: all that the session may call. */
  tools?: boolean | string[];
  /** The cell whose recorded results its calls get. Absent if there is none. */
  reuse_calls?: string;
  /** The call whose function runs this cell. Absent if there is none. */
  within?: string;
  /** The trace that its request carried. Absent if it carried none. */
  trace?: CellTrace;
  session: string;
  seq: number;
  at: string;
  cell?: string;
  frame?: number;
  request?: string;
  prev: string;
}

/** One cell of `session.execute` or `session.batch`. */
export interface CellRequest {
  /** Source text as in a Jupyter cell. */
  code: string;
  cell?: string | null;
  timeout_seconds?: number | null;
  on_error?: "continue" | "stop";
  silent?: boolean;
  allow_stdin?: boolean;
  store_history?: boolean;
  /** Evaluated after the cell, if it did not fail. */
  user_expressions?: Record<string, string>;
  on_disconnect?: "interrupt" | "keep";
  metadata?: Record<string, unknown>;
  checkpoint?: "auto" | "every" | null;
  /** The cell is a model's: `cell_finished` has the changes of variables and files, and the traceback has the short form only. Forked kernels. */
  changes?: boolean;
  max_text?: number | null;
  tools?: boolean | string[] | null;
  reuse_calls?: string | null;
  within?: string | null;
  _meta?: RequestMeta | null;
}

/** The cell went to the kernel. For a kernelspec kernel: the kernel reports that it runs the cell. */
export interface CellStartedEvent {
  type: "cell_started";
  execution_count: number | null;
  session: string;
  seq: number;
  at: string;
  cell?: string;
  frame?: number;
  request?: string;
  prev: string;
}

/** State of a cell. */
export type CellState = "finished" | "queued" | "running";

/** The trace that the request for a cell carried, in the log. */
export interface CellTrace {
  /** the caller's span (`traceparent`). */
  parent: string;
  /** `tracestate`. Left out if it is empty. */
  state?: string;
}

/** Resources that one cell used. */
export interface CellUsage {
  wall_ms: number;
  cpu_ms: number | null;
  peak_rss_bytes: number | null;
  output_bytes: number;
}

/** What a language model reads of a cell. */
export interface CellView {
  session: string;
  cell: string;
  /** the cell's place among the session's cells, from 1. */
  number: number;
  state: CellState;
  reason: Reason | null;
  /** the part of the output that was asked for, and a last line with the cell's number and its end. */
  text: string;
  /** how many lines the whole output has. */
  lines: number;
  /** `after_line` of a later request that wants only what is new. */
  next_line: number;
  /** the first ones, or the one that was asked for. */
  pictures: ViewPicture[];
}

/** A checkpoint: a parked fork of a session's kernel. */
export interface Checkpoint {
  /** Remains when the checkpoint is used and replaced. */
  id: string;
  /** The name that the client gave. Automatic ones have none. */
  name: string | null;
  /** Made after a cell by the server. */
  auto: boolean;
  /** The last cell before it. None if there is none. */
  after_cell: string | null;
  /** Position of its last event. */
  seq: number;
  /** How long the kernel was blocked. */
  cost_ms: number;
  /** Memory that the fork did not share at the start, from its page faults. It grows with the kernel's later writes. */
  private_bytes: number | null;
  /** Resources that both processes use, or that `force` lost. */
  warnings: string[];
}

/** A checkpoint no longer exists. `by` is the principal who dropped it, or empty. */
export interface CheckpointDroppedEvent {
  type: "checkpoint_dropped";
  checkpoint: string;
  why: string;
  by: string;
  session: string;
  seq: number;
  at: string;
  cell?: string;
  frame?: number;
  request?: string;
  prev: string;
}

/** A checkpoint exists: a parked fork of the kernel. */
export interface CheckpointMadeEvent {
  type: "checkpoint_made";
  /** Its id, which remains when it is used and replaced. */
  checkpoint: string;
  /** The id of the fork. */
  kernel: string;
  /** The name that the client gave. */
  name: string | null;
  /** Made after a cell by the server. */
  auto: boolean;
  /** The last cell before it. */
  after_cell: string | null;
  /** How long the kernel was blocked. */
  cost_ms: number;
  /** Memory that the fork did not share at the start, from its page faults. */
  private_bytes: number | null;
  /** Resources that both processes use, or that `force` lost. */
  warnings: string[];
  /** The name of the principal who requested it, or empty. */
  by: string;
  session: string;
  seq: number;
  at: string;
  cell?: string;
  frame?: number;
  request?: string;
  prev: string;
}

/** The server skipped an automatic checkpoint, and why. */
export interface CheckpointSkippedEvent {
  type: "checkpoint_skipped";
  why: string[];
  session: string;
  seq: number;
  at: string;
  cell?: string;
  frame?: number;
  request?: string;
  prev: string;
}

/** A reader attached. */
export interface ClientAttachedEvent {
  type: "client_attached";
  client: string;
  after: number;
  session: string;
  seq: number;
  at: string;
  cell?: string;
  frame?: number;
  request?: string;
  prev: string;
}

/** A reader detached. */
export interface ClientDetachedEvent {
  type: "client_detached";
  client: string;
  session: string;
  seq: number;
  at: string;
  cell?: string;
  frame?: number;
  request?: string;
  prev: string;
}

/** A comm message from the kernel. `buffers` are base64. */
export interface CommEvent {
  type: "comm";
  msg_type: "comm_close" | "comm_msg" | "comm_open";
  content: Record<string, unknown>;
  metadata: Record<string, unknown>;
  buffers: string[];
  session: string;
  seq: number;
  at: string;
  cell?: string;
  frame?: number;
  request?: string;
  prev: string;
}

/** An event of the debugger, for example that a cell is stopped at a breakpoint. */
export interface DebugEvent {
  type: "debug_event";
  /** An event of the Debug Adapter Protocol. */
  content: Record<string, unknown>;
  session: string;
  seq: number;
  at: string;
  cell?: string;
  frame?: number;
  request?: string;
  prev: string;
}

/** The signed record of a session that was deleted for good. It holds nothing of the session's content. */
export interface Deletion {
  /** The session's id. */
  session: string;
  /** When. */
  at: string;
  /** The principal that deleted it. */
  by: string;
  /** The principal that owned it. */
  principal: string;
  /** Position of its log's last entry. 0 if the log was missing. */
  seq: number;
  /** SHA-256 of that entry, with which a copy of the log can be recognized. */
  head: string;
  key: string;
  signature: string;
}

/** A MIME bundle that the cell displayed. */
export interface DisplayEvent {
  type: "display";
  data: Record<string, unknown>;
  metadata: Record<string, unknown>;
  display_id: string | null;
  session: string;
  seq: number;
  at: string;
  cell?: string;
  frame?: number;
  request?: string;
  prev: string;
}

/** New content of all outputs that have this display id. */
export interface DisplayUpdatedEvent {
  type: "display_updated";
  data: Record<string, unknown>;
  metadata: Record<string, unknown>;
  display_id: string | null;
  session: string;
  seq: number;
  at: string;
  cell?: string;
  frame?: number;
  request?: string;
  prev: string;
}

/** A connection, or a request that the proxy has read, that the network's rules allowed. Recorded at its end. */
export interface EgressEvent {
  type: "egress";
  /** The rule that allowed it. */
  rule: string;
  /** The name that the session looked up, or the address that its code wrote. */
  host: string;
  /** The address that the proxy connected to. Empty if there was none. */
  address: string;
  /** The port. */
  port: number;
  /** For a request: its method. */
  method?: string;
  /** For a request: its path, without its query. */
  path?: string;
  /** For a request: the status of the answer. */
  status?: number;
  /** For a request: names of the secrets that its rule allows. */
  secrets?: string[];
  /** Bytes that the session sent. */
  sent: number;
  /** Bytes that it received. */
  received: number;
  /** Time since the connection began. */
  seconds: number;
  /** Why it ended: closed, idle, quota, or failed with the error. */
  end: string;
  session: string;
  seq: number;
  at: string;
  cell?: string;
  frame?: number;
  request?: string;
  prev: string;
}

/**
 * The network's rules refused a look-up, a connection or a request.
 *
 * A repeat in the same cell is recorded when it is the 10th, the 100th and so on.
 */
export interface EgressDeniedEvent {
  type: "egress_denied";
  /** Kind of the refused request: dns (a look-up), tls, http or tcp. */
  via: string;
  /** The name or the address. */
  host: string;
  /** The port, which a look-up does not have. */
  port: number | null;
  /** The reason. */
  why: string;
  /** How often this was refused in the cell so far. */
  count: number;
  /** The same for people and models, with the allowed hosts. */
  message: string;
  session: string;
  seq: number;
  at: string;
  cell?: string;
  frame?: number;
  request?: string;
  prev: string;
}

/** The cell raised an exception. */
export interface ErrorEvent {
  type: "error";
  ename: string;
  evalue: string;
  traceback: string[];
  /** The traceback in the short form for language models, a line each. None if the kernel made none. */
  model: string[] | null;
  session: string;
  seq: number;
  at: string;
  cell?: string;
  frame?: number;
  request?: string;
  prev: string;
}

/** A page of events. The next page begins after `next_after`. */
export interface EventPage {
  events: Record<string, unknown>[];
  next_after: number;
  last_seq: number;
}

/** One name in a session's directory. */
export interface FileEntry {
  /** Relative to the session's directory. Bytes that are not UTF-8 are U+FFFD. */
  path: string;
  /** The path, percent-encoded, to append to `files/`. */
  url: string;
  /** Links and devices are listed, never followed. */
  kind: "directory" | "file" | "link" | "other";
  /** Bytes. */
  size: number;
  /** UTC. */
  modified: string;
}

/** A directory's content. `truncated`: it holds more than the limit. */
export interface FileList {
  path: string;
  files: FileEntry[];
  truncated: boolean;
}

/** The principal `by` wrote or deleted files through the API. */
export interface FilesChangedEvent {
  type: "files_changed";
  files: Record<string, unknown>[];
  by: string;
  session: string;
  seq: number;
  at: string;
  cell?: string;
  frame?: number;
  request?: string;
  prev: string;
}

/** The variables are on disk and the kernel has ended. The next cell resumes it. */
export interface HibernatedEvent {
  type: "hibernated";
  saved: number;
  bytes: number;
  lost: Record<string, string>;
  session: string;
  seq: number;
  at: string;
  cell?: string;
  frame?: number;
  request?: string;
  prev: string;
}

/** Cells of a session wait for a person. */
export interface HoldInfo {
  /** who holds them. */
  by: string;
  /** when that began. */
  since: string;
  /** time that each held cell waits. */
  seconds: number;
  /** what happens to a cell that is still undecided by then. */
  then: "approve" | "refuse";
  /** ids of those that wait, the oldest first. */
  cells: string[];
}

/** The principal `by` answered. The text of a password is not recorded. */
export interface InputGivenEvent {
  type: "input_given";
  text: string | null;
  by: string;
  session: string;
  seq: number;
  at: string;
  cell?: string;
  frame?: number;
  request?: string;
  prev: string;
}

/** The cell waits in `input()` or `getpass`, until a client answers or the cell ends. */
export interface InputRequestedEvent {
  type: "input_requested";
  prompt: string;
  password: boolean;
  session: string;
  seq: number;
  at: string;
  cell?: string;
  frame?: number;
  request?: string;
  prev: string;
}

/** An interrupt was sent to the running cell, requested by the principal `by`. Empty: the server decided it. */
export interface InterruptedEvent {
  type: "interrupted";
  why: string;
  by: string;
  session: string;
  seq: number;
  at: string;
  cell?: string;
  frame?: number;
  request?: string;
  prev: string;
}

/** The head of the chain up to here, signed (Ed25519, base64). */
export interface JournalSignedEvent {
  type: "journal_signed";
  head: string;
  key: string;
  signature: string;
  session: string;
  seq: number;
  at: string;
  cell?: string;
  frame?: number;
  request?: string;
  prev: string;
}

/** The kernel's process ended without a request. */
export interface KernelDiedEvent {
  type: "kernel_died";
  cause: string;
  message: string;
  signal: number | null;
  exit_code: number | null;
  session: string;
  seq: number;
  at: string;
  cell?: string;
  frame?: number;
  request?: string;
  prev: string;
}

/** The process of a session's kernel. */
export interface KernelInfo {
  kind: "cold" | "forked";
  pid: number;
  python: string;
  id: string;
  language: string;
}

/** A new kernel with empty variables. The log continues. */
export interface KernelRestartedEvent {
  type: "kernel_restarted";
  why: string;
  kernel: KernelInfo;
  session: string;
  seq: number;
  at: string;
  cell?: string;
  frame?: number;
  request?: string;
  prev: string;
}

/** A checkpoint took the place of a kernel that died. */
export interface KernelRestoredEvent {
  type: "kernel_restored";
  checkpoint: string;
  after_cell: string | null;
  kernel: KernelInfo;
  session: string;
  seq: number;
  at: string;
  cell?: string;
  frame?: number;
  request?: string;
  prev: string;
}

/** The owner set the session's remaining time, its end and whether it is paused. */
export interface LeasedEvent {
  type: "leased";
  /** Time from now. The session's own lifetime and idle limits no longer count. */
  seconds: number;
  /** "close" ends the session. "pause" writes its variables to disk. */
  then: "close" | "pause";
  /** The API that paused the session refuses cells until it gets more time. */
  paused: boolean;
  session: string;
  seq: number;
  at: string;
  cell?: string;
  frame?: number;
  request?: string;
  prev: string;
}

/** A limit was reached. `value` and `bound` have the limit's own unit. */
export interface LimitReachedEvent {
  type: "limit_reached";
  limit: string;
  value: number | null;
  bound: number | null;
  enforced_by: string;
  message: string;
  session: string;
  seq: number;
  at: string;
  cell?: string;
  frame?: number;
  request?: string;
  prev: string;
}

/** The limits of one session. A request may lower the server's limits, never raise them. */
export interface Limits {
  memory_bytes: number | null;
  cpu_cores: number | null;
  cell_seconds: number | null;
  cpu_seconds: number | null;
  processes: number | null;
  open_files: number | null;
  disk_bytes: number | null;
  files: number | null;
  output_bytes: number | null;
  idle_seconds: number | null;
  lifetime_seconds: number | null;
  network: "host" | "none" | NetworkRules;
}

/** Limits that a client asks for. Missing ones are the server's. */
export interface LimitsRequest {
  memory_bytes?: number | null;
  cpu_cores?: number | null;
  cell_seconds?: number | null;
  cpu_seconds?: number | null;
  processes?: number | null;
  open_files?: number | null;
  disk_bytes?: number | null;
  files?: number | null;
  output_bytes?: number | null;
  idle_seconds?: number | null;
  lifetime_seconds?: number | null;
  network?: "host" | "none" | NetworkRules | null;
}

/** An answer of a model, whose code ran in this session, has ended. Its texts are not in the log, their digests are. */
export interface ModelAnsweredEvent {
  type: "model_answered";
  /** Id of the response. */
  response: string;
  /** Name of the model in the request. */
  model: string;
  /** How the answer ended, in the words of the Responses API. */
  status: string;
  /** Calls of the model. */
  turns: number;
  /** Cells. */
  calls: number;
  /** Tokens that the model has read, in all turns. */
  input_tokens: number;
  /** Tokens that it has written. */
  output_tokens: number;
  /** From the request to the end. */
  seconds: number;
  /** Digest (hex) of the request's input as JSON. */
  input_sha256: string;
  /** Digest (hex) of the answer's items as JSON. */
  output_sha256: string;
  session: string;
  seq: number;
  at: string;
  cell?: string;
  frame?: number;
  request?: string;
  prev: string;
}

/** The owner replaced the rules of the session's network. */
export interface NetworkChangedEvent {
  type: "network_changed";
  /** The rules from now on. */
  network: NetworkRules;
  session: string;
  seq: number;
  at: string;
  cell?: string;
  frame?: number;
  request?: string;
  prev: string;
}

/** One entry of an allow-list, in its long form. */
export interface NetworkRule {
  /** An exact name, `*.name`, or a network. */
  host: string;
  /** The ports. If empty, 80 and 443, or with secrets 443. */
  ports?: number[];
  /** Methods of HTTP that are allowed. All if empty. */
  methods?: string[];
  /** Paths of HTTP that are allowed, exact or with a final `*`. All if empty. */
  paths?: string[];
  /** Names of secrets whose placeholders in headers are replaced, see `model.network.secrets`. */
  secrets?: string[];
  /** Headers that each request gets, by name, with `${NAME}` for the value of a secret. */
  inject?: Record<string, string>;
}

/** The destinations that a session may reach. Anything else is refused. */
export interface NetworkRules {
  /** Rules. The first that fits decides. */
  allow: (string | NetworkRule)[];
  /** Hosts that are refused although a rule allows them. */
  deny?: string[];
  /** Networks that are not public and may be reached by rules. Only the server's own limits add some. */
  private?: string[];
  /** Open connections at a time. More wait. */
  connections?: number;
  /** Bytes sent and received in all. None means no limit. */
  bytes?: number | null;
}

/** The server found entries that it can't vouch for. If `refused`, the log is never signed. */
export interface NotAsWrittenEvent {
  type: "not_as_written";
  first: number;
  last: number;
  refused: boolean;
  message: string;
  session: string;
  seq: number;
  at: string;
  cell?: string;
  frame?: number;
  request?: string;
  prev: string;
}

/** A layer of confinement that is missing, and why. */
export interface NotEnforced {
  layer: string;
  why: string;
}

/** A function that code in a session may call. */
export interface Offer {
  /** The name by which it is called. `.` separates namespaces. */
  name: string;
  /** Put before the name, with `.`. */
  namespace?: string | null;
  /** Its purpose, for the reader of its documentation. */
  description?: string;
  /** JSON schema of the arguments, an object. */
  parameters?: Record<string, unknown>;
  /** JSON schema of the result. */
  returns?: Record<string, unknown> | null;
  /** Whether it changes something outside of the session. `unknown` counts as `write`. */
  effects?: "read" | "unknown" | "write";
  /** Whether it may be carried out twice. After the loss of its provider, a call is then repeated. */
  idempotent?: boolean;
  /** When a person must approve a call before the provider gets it. */
  approval?: "always" | "never" | "once_per_cell" | "once_per_session";
  /** Time to decide, after which the call is `expired`. */
  approval_seconds?: number;
  /** Time for one call from its approval on, waiting in the queue included. */
  timeout_seconds?: number;
  /** Calls that one cell may make. None for no limit. */
  max_calls_per_cell?: number | null;
  /** Calls that a session may make. None for no limit. */
  max_calls_per_session?: number | null;
  /** Calls a second that the provider gets. More calls wait. */
  per_second?: number | null;
  /** Calls that the provider gets at the same time. More calls wait. */
  max_in_flight?: number;
  /** JSON pointers or names of arguments that no log may contain. */
  redact?: string[];
  /** Whether no log may contain the result. */
  redact_result?: boolean;
  /** Whether searches list it. */
  listed?: boolean;
  /** Whether branches of the session may call it, too. */
  inherit?: boolean;
  /** Arguments of example calls, for its documentation. */
  examples?: unknown[];
  /** Reserved: whether the provider can undo a call. */
  revert?: boolean;
}

/** `tools.offer` is accepted. */
export interface Offered {
  /** Name, identifier in code and digest of each function. */
  offered: Record<string, string>[];
  /** Calls of `holding` that have ended. */
  cancelled: string[];
}

/** An offer in the log. The digest names its whole definition. */
export interface OfferedTool {
  name: string;
  digest: string;
  approval: string;
  effects: string;
}

/** A page of lines about cells, and how many cells the session has. */
export interface OutlinePage {
  cells: CellOutline[];
  total: number;
}

/** A piece of a cell's text, in characters. `next_offset` is None at the end. */
export interface Output {
  name: string;
  offset: number;
  text: string;
  next_offset: number | null;
  total: number;
}

/** Clients must remove the cell's outputs, immediately or when the next output arrives (`wait`). */
export interface OutputClearedEvent {
  type: "output_cleared";
  wait: boolean;
  session: string;
  seq: number;
  at: string;
  cell?: string;
  frame?: number;
  request?: string;
  prev: string;
}

/** The next output of a program. */
export interface OutputPage {
  /** The program as it is now. It is `ended` only after its last output. */
  program: ProgramView;
  pieces: OutputPiece[];
  /** Position after these pieces, in bytes of all streams together. */
  next: number;
  /** Bytes from the requested position on that the server no longer has. */
  dropped: number;
}

/** Bytes that a program wrote (base64), and to which stream. `pty` is its terminal. */
export interface OutputPiece {
  stream: "pty" | "stderr" | "stdout";
  data: string;
}

/**
 * The cell's output exceeded its budget. The journal still has all of it.
 *
 * The first such event of a cell is sent when the output exceeds the budget. The last one, with the final figures,
 * comes just before `cell_finished`.
 */
export interface OutputTruncatedEvent {
  type: "output_truncated";
  kept: number;
  dropped: number;
  session: string;
  seq: number;
  at: string;
  cell?: string;
  frame?: number;
  request?: string;
  prev: string;
}

/** The address of a port. */
export interface PortAddress {
  port: number;
  public: boolean;
  /** the address on this server. It holds a signature, unless the port is public. */
  path: string;
  /** the address on a host name of the port's own, if the setting `port_domain` is set. */
  url: string | null;
  /** when the signature ends, or None for a public port. */
  expires_at: string | null;
}

/** A port of a session that was shared. */
export interface PortInfo {
  /** the number. */
  port: number;
  /** whether requests need no token. */
  public: boolean;
}

/** The owner gave out the address of a port of the session, or made it public. */
export interface PortSharedEvent {
  type: "port_shared";
  /** The port. 0 stands for every port. */
  port: number;
  /** Whether requests need no token and no signature. */
  public: boolean;
  /** For a signed address: how long it is valid. */
  seconds: number;
  session: string;
  seq: number;
  at: string;
  cell?: string;
  frame?: number;
  request?: string;
  prev: string;
}

/** The owner closed a port: no address of it is valid any more. Requests with a token are still answered. */
export interface PortUnsharedEvent {
  type: "port_unshared";
  port: number;
  session: string;
  seq: number;
  at: string;
  cell?: string;
  frame?: number;
  request?: string;
  prev: string;
}

/** Requests to a server in the session. Recorded some seconds after the first one, for all of them together. */
export interface PortUsedEvent {
  type: "port_used";
  /** The port. 0 stands for the further ports if there were many. */
  port: number;
  /** How they were allowed: token, signed or public. */
  access: string;
  /** Requests, and WebSockets that were opened. */
  requests: number;
  /** Those of them that the session's server did not accept. */
  failed: number;
  /** Bytes that the session sent. */
  sent: number;
  /** Bytes that it received. */
  received: number;
  session: string;
  seq: number;
  at: string;
  cell?: string;
  frame?: number;
  request?: string;
  prev: string;
}

/** The program ended. `exit_code` is the negative number of a signal that ended it, or null if it is unknown. */
export interface ProgramEndedEvent {
  type: "program_ended";
  program: number;
  exit_code: number | null;
  output_bytes: number;
  session: string;
  seq: number;
  at: string;
  cell?: string;
  frame?: number;
  request?: string;
  prev: string;
}

/** The principal `by` started a program in the sandbox. `program` is its pid as seen inside. */
export interface ProgramStartedEvent {
  type: "program_started";
  program: number;
  argv: string[];
  cwd: string;
  by: string;
  session: string;
  seq: number;
  at: string;
  cell?: string;
  frame?: number;
  request?: string;
  prev: string;
}

/** A program in a session's sandbox, next to its kernel. */
export interface ProgramView {
  /** The id that the client chose, or the server. */
  id: string;
  session: string;
  /** As seen inside the sandbox. */
  pid: number;
  argv: string[];
  /** The directory where it started. Empty for the session's directory. */
  cwd: string;
  state: "ended" | "running";
  /** Its exit code, or the negative number of the signal that ended it. None while it runs, and if its end is not known. */
  exit_code: number | null;
  /** Bytes of output so far. */
  written: number;
  /** Bytes of standard input so far. */
  received: number;
}

/** The identity of a provider. */
export interface ProviderId {
  /** Chosen by the client. */
  id: string;
  /** Another one for each start of the client's process. */
  instance: string;
}

/** The size of a terminal, in characters. */
export interface PtySize {
  columns?: number;
  rows?: number;
}

/** Why a cell ended. Every accepted cell ends with exactly one of these. */
export type Reason = "cancelled" | "error" | "interrupted" | "kernel_died" | "memory" | "ok" | "session_closed" | "timeout";

/**
 * The kernel replied again to a cell that had ended. Code in the kernel forged one of the two replies.
 *
 * The cell's end in the log may be too early, and output after it may be the cell's.
 */
export interface ReplyRepeatedEvent {
  type: "reply_repeated";
  session: string;
  seq: number;
  at: string;
  cell?: string;
  frame?: number;
  request?: string;
  prev: string;
}

/** The exception of a function. Code gets the traceback only if there is one here. */
export interface ReportedError {
  type?: string;
  message?: string;
  data?: unknown;
  traceback?: string | null;
}

/** `_meta` of a request, as in MCP (SEP-414). Other fields, and values of another form, are ignored. */
export interface RequestMeta {
  /** The caller's span, as in W3C Trace Context. */
  traceparent?: unknown;
  /** Further state of the caller's trace. */
  tracestate?: unknown;
}

/** The value of the cell's last expression. */
export interface ResultEvent {
  type: "result";
  data: Record<string, unknown>;
  metadata: Record<string, unknown>;
  execution_count: number | null;
  display_id: string | null;
  session: string;
  seq: number;
  at: string;
  cell?: string;
  frame?: number;
  request?: string;
  prev: string;
}

/** The variables are those of an earlier moment. The log keeps the `undone` cells. */
export interface RolledBackEvent {
  type: "rolled_back";
  /** The checkpoint that was used. "" for the moment before the first cell, for which a new kernel is started. */
  to: string;
  /** The last cell whose effects remain. */
  after_cell: string | null;
  /** Cells whose effects are gone. */
  undone: string[];
  /** Cells that were undone before and whose effects are in the checkpoint. */
  redone: string[];
  /** Cells that ran again, because the state had no checkpoint. Their effects outside of the kernel happened again. */
  replayed: string[];
  /** The kernel that continues. */
  kernel: KernelInfo;
  /** The name of the principal who requested it. */
  by: string;
  session: string;
  seq: number;
  at: string;
  cell?: string;
  frame?: number;
  request?: string;
  prev: string;
}

/** The confinement that a session actually has. */
export interface SandboxReport {
  policy: "best-effort" | "off" | "required";
  isolation: string;
  enforced: string[];
  not_enforced: NotEnforced[];
  limits: Record<string, string>;
}

/** Range of log positions that contains the events of a cell. */
export interface SeqRange {
  first: number;
  last: number;
}

/** A restarted server found the session again. */
export interface SessionAdoptedEvent {
  type: "session_adopted";
  kernel: KernelInfo;
  session: string;
  seq: number;
  at: string;
  cell?: string;
  frame?: number;
  request?: string;
  prev: string;
}

/** Last event before the signature. `by` is the principal who closed the session, or empty. */
export interface SessionClosedEvent {
  type: "session_closed";
  reason: string;
  by: string;
  session: string;
  seq: number;
  at: string;
  cell?: string;
  frame?: number;
  request?: string;
  prev: string;
}

/** From now on cells wait for a person's decision (`mode` is `ask`), or no longer (`off`). */
export interface SessionHeldEvent {
  type: "session_held";
  mode: "ask" | "off";
  /** Time that a held cell waits. */
  seconds: number;
  /** What happens to a cell that is still undecided by then. */
  then: "approve" | "refuse";
  /** The name of the principal who wants it. */
  by: string;
  session: string;
  seq: number;
  at: string;
  cell?: string;
  frame?: number;
  request?: string;
  prev: string;
}

/** A session as the API shows it. `input_cell` waits for input. It is left out if no cell does. */
export interface SessionInfo {
  id: string;
  name: string | null;
  template: string;
  state: SessionState;
  created_at: string;
  last_activity_at: string;
  expires_at: string | null;
  principal: string;
  labels: Record<string, string>;
  limits: Limits;
  usage: Usage;
  last_seq: number;
  execution_count: number;
  parent: Record<string, unknown> | null;
  kernel: KernelInfo | null;
  sandbox: SandboxReport;
  checkpoints: Checkpoint[];
  queued: number;
  running: string | null;
  sidecar_of: string | null;
  beside: string | null;
  paused: boolean;
  calls_open?: number;
  approvals_pending?: number;
  mounts?: string[];
  workspace?: string;
  input_cell?: string;
  hold?: HoldInfo;
}

/** A page of sessions, and the name of the next page (None: this is the last). */
export interface SessionPage {
  sessions: SessionInfo[];
  next_page: string | null;
}

/** First event: the session's settings. `mounts` and `workspace` are left out if it has none. */
export interface SessionStartedEvent {
  type: "session_started";
  schema: number;
  principal: string;
  template: string;
  name: string | null;
  labels: Record<string, string>;
  limits: Limits;
  env_names: string[];
  kernel: KernelInfo;
  sandbox: SandboxReport;
  versions: Record<string, string>;
  parent: Record<string, unknown> | null;
  mounts?: string[];
  workspace?: string;
  session: string;
  seq: number;
  at: string;
  cell?: string;
  frame?: number;
  request?: string;
  prev: string;
}

/** State of a session. */
export type SessionState = "busy" | "closed" | "dead" | "hibernated" | "idle" | "paused" | "restoring" | "starting";

/** Text on stdout or stderr. */
export interface StreamEvent {
  type: "stream";
  name: "stderr" | "stdout";
  text: string;
  session: string;
  seq: number;
  at: string;
  cell?: string;
  frame?: number;
  request?: string;
  prev: string;
}

/** A call with everything that the log has about it. */
export interface ToolCallInfo {
  call: string;
  tool: string;
  arguments: unknown;
  status: "cancelled" | "denied" | "error" | "expired" | "limit" | "lost" | "ok" | "refused" | "timeout" | "too_large" | "unavailable" | null;
  ms: number | null;
  decided_by: string | null;
  bytes: number;
  session: string;
  cell: string | null;
  /** Whether it waits for a person, runs, or has ended. */
  state: "ended" | "pending" | "running";
  provider: string;
  redacted: string[];
  approval: string;
  deadline_seconds: number;
  parent_call: string | null;
  called_at: string;
  ended_at: string | null;
  reason: string | null;
  /** The result, or what the log has in its place. */
  value: unknown;
  error: Record<string, unknown> | null;
  delivered: boolean | null;
  waited_ms: number;
  form: string;
}

/** Code called a function of a client. Written before the provider gets the call. */
export interface ToolCalledEvent {
  type: "tool_called";
  /** Its id, which is unique in the session. */
  call: string;
  tool: string;
  /** Without the redacted parts. */
  arguments: unknown;
  /** Reserved for a file that holds the arguments. Always null. */
  arguments_ref: string | null;
  /** JSON pointers of the parts that are left out. */
  redacted: string[];
  /** Size of all arguments as JSON. */
  bytes: number;
  /** The client that carries it out. Empty if none is connected. */
  provider: string;
  /** Whether a person must decide (`pending`), or has decided for this tool before (`remembered`). */
  approval: "none" | "pending" | "remembered";
  /** Time for the provider, from the approval on. */
  deadline_seconds: number;
  /** The call whose function runs this cell. */
  parent_call: string | null;
  /** Those of the offer. Rolled-back calls that are not `read` stay in effect. */
  effects: string;
  /** Whether it may be carried out twice. */
  idempotent: boolean;
  /** Time to decide. Null if no approval is needed. */
  approval_seconds: number | null;
  /** Whether the result stays out of the log. */
  redact_result: boolean;
  /** The earlier call whose recorded result this one gets. Absent if the function is carried out. */
  reused?: string;
  session: string;
  seq: number;
  at: string;
  cell?: string;
  frame?: number;
  request?: string;
  prev: string;
}

/** A person decided whether a call is carried out. */
export interface ToolDecidedEvent {
  type: "tool_decided";
  call: string;
  decision: "approved" | "denied";
  /** The name of the principal who decided. */
  by: string;
  reason: string | null;
  /** Further calls of this tool that the decision holds for. */
  remembered: "cell" | "session" | null;
  session: string;
  seq: number;
  at: string;
  cell?: string;
  frame?: number;
  request?: string;
  prev: string;
}

/** The functions that a session may call, of those that clients offer to it. */
export interface ToolFilter {
  /** Names. `*` stands for any characters, `?` for one. None allows all. */
  allow?: string[] | null;
  /** Names that may not be called although `allow` has them. */
  deny?: string[];
}

/** Functions that code may call, and how many there are. */
export interface ToolList {
  tools: ToolView[];
  total: number;
}

/** The provider reports how far a call is. At most one a second for each call. */
export interface ToolProgressEvent {
  type: "tool_progress";
  call: string;
  progress: number;
  total: number | null;
  message: string | null;
  session: string;
  seq: number;
  at: string;
  cell?: string;
  frame?: number;
  request?: string;
  prev: string;
}

/** The only end of a call. In the log before any code gets the result. */
export interface ToolReturnedEvent {
  type: "tool_returned";
  call: string;
  status: "cancelled" | "denied" | "error" | "expired" | "limit" | "lost" | "ok" | "refused" | "timeout" | "too_large" | "unavailable";
  /** The result, or its size (`$redacted`) if the offer keeps it out of the log. */
  value: unknown;
  /** Reserved for a file that holds the value. Always null. */
  value_ref: string | null;
  /** Size of the value as JSON. */
  bytes: number;
  /** `{type, message}`, and perhaps `data` and `traceback`. */
  error: Record<string, unknown> | null;
  /** Time since the call went to the provider, in milliseconds. */
  ms: number;
  /** Time until a person had decided, in milliseconds. */
  waited_ms: number;
  /** Whether code waited for the result. */
  delivered: boolean;
  /** `content` if the value is a list of content blocks, `rows` if it is a list of objects. */
  form: "" | "content" | "rows";
  session: string;
  seq: number;
  at: string;
  cell?: string;
  frame?: number;
  request?: string;
  prev: string;
}

/** A function that code may call. The fields after `summary` are only in full detail. */
export interface ToolView {
  name: string;
  identifier: string;
  signature: string;
  summary: string;
  documentation: string;
  parameters: Record<string, unknown>;
  returns: Record<string, unknown> | null;
  effects: string;
  approval: string;
  timeout_seconds: number;
  idempotent: boolean;
}

/** The functions that code may call have changed. */
export interface ToolsOfferedEvent {
  type: "tools_offered";
  /** The client that carries them out. */
  provider: string;
  /** The name of its principal. */
  by: string;
  /** New or changed offers. */
  tools: OfferedTool[];
  /** Names of functions that can't be called any more. */
  withdrawn: string[];
  session: string;
  seq: number;
  at: string;
  cell?: string;
  frame?: number;
  request?: string;
  prev: string;
}

/** Resources that a session uses now. `None` if not measured yet. */
export interface Usage {
  memory_bytes: number | null;
  cpu_seconds: number | null;
  processes: number | null;
  disk_bytes: number | null;
  files: number | null;
  output_bytes: number;
}

/** Usage at a moment (Unix time). Processor time is that of the present kernel. */
export interface UsageSample {
  at: number;
  cpu_seconds: number;
  memory_bytes: number;
  disk_bytes: number;
}

/** Rows of a variable's data. */
export interface ValueData {
  name: string;
  /** the value's type in the session. */
  type: string;
  /** of the data. */
  format: "arrow" | "csv" | "json" | "parquet";
  /** the first row, from 0. */
  from_row: number;
  /** how many. A value that is no table and no list is one row. */
  rows: number;
  /** rows of the whole value now. */
  total: number;
  /** where the rest begins, or None at the end. */
  next_row: number | null;
  /** base64 text. */
  data: string;
}

/** One name in the session's namespace. */
export interface Variable {
  name: string;
  type: string;
  summary: string;
  size_bytes: number | null;
}

/** A picture of a cell. */
export interface ViewPicture {
  /** its place among the cell's pictures, from 1. */
  number: number;
  mime: string;
  /** base64. */
  data: string;
}

/** The variables were loaded from disk into a new kernel. */
export interface WokenEvent {
  type: "woken";
  kernel: KernelInfo;
  lost: Record<string, string>;
  session: string;
  seq: number;
  at: string;
  cell?: string;
  frame?: number;
  request?: string;
  prev: string;
}

/** A workspace as the API shows it. */
export interface WorkspaceInfo {
  /** `OWNER/NAME`, which every principal that may use it can give. */
  workspace: string;
  owner: string;
  name: string;
  created_at: string;
  shared_with: string[];
  /** Quota. None means no limit. */
  max_bytes: number | null;
  /** Number of open sessions that have it. */
  sessions: number;
  /** Size of its files. Only in the answer about one workspace. */
  used_bytes?: number;
}

/** The names of the events in this release. */
export type EventType =
  | "session_started"
  | "kernel_died"
  | "kernel_restored"
  | "kernel_restarted"
  | "session_adopted"
  | "limit_reached"
  | "egress"
  | "egress_denied"
  | "network_changed"
  | "port_shared"
  | "port_unshared"
  | "port_used"
  | "client_attached"
  | "client_detached"
  | "files_changed"
  | "program_started"
  | "program_ended"
  | "session_closed"
  | "journal_signed"
  | "not_as_written"
  | "cell_queued"
  | "cell_started"
  | "stream"
  | "display"
  | "display_updated"
  | "output_cleared"
  | "result"
  | "error"
  | "comm"
  | "debug_event"
  | "output_truncated"
  | "reply_repeated"
  | "input_requested"
  | "input_given"
  | "interrupted"
  | "cell_finished"
  | "session_held"
  | "cell_held"
  | "cell_decided"
  | "checkpoint_made"
  | "checkpoint_skipped"
  | "checkpoint_dropped"
  | "rolled_back"
  | "branching"
  | "branched"
  | "hibernated"
  | "woken"
  | "leased"
  | "model_answered"
  | "tools_offered"
  | "tool_called"
  | "tool_decided"
  | "tool_returned"
  | "tool_progress";

/** An event whose type this release knows: check `event.type`. */
export type KnownEvent =
  | SessionStartedEvent
  | KernelDiedEvent
  | KernelRestoredEvent
  | KernelRestartedEvent
  | SessionAdoptedEvent
  | LimitReachedEvent
  | EgressEvent
  | EgressDeniedEvent
  | NetworkChangedEvent
  | PortSharedEvent
  | PortUnsharedEvent
  | PortUsedEvent
  | ClientAttachedEvent
  | ClientDetachedEvent
  | FilesChangedEvent
  | ProgramStartedEvent
  | ProgramEndedEvent
  | SessionClosedEvent
  | JournalSignedEvent
  | NotAsWrittenEvent
  | CellQueuedEvent
  | CellStartedEvent
  | StreamEvent
  | DisplayEvent
  | DisplayUpdatedEvent
  | OutputClearedEvent
  | ResultEvent
  | ErrorEvent
  | CommEvent
  | DebugEvent
  | OutputTruncatedEvent
  | ReplyRepeatedEvent
  | InputRequestedEvent
  | InputGivenEvent
  | InterruptedEvent
  | CellFinishedEvent
  | SessionHeldEvent
  | CellHeldEvent
  | CellDecidedEvent
  | CheckpointMadeEvent
  | CheckpointSkippedEvent
  | CheckpointDroppedEvent
  | RolledBackEvent
  | BranchingEvent
  | BranchedEvent
  | HibernatedEvent
  | WokenEvent
  | LeasedEvent
  | ModelAnsweredEvent
  | ToolsOfferedEvent
  | ToolCalledEvent
  | ToolDecidedEvent
  | ToolReturnedEvent
  | ToolProgressEvent;

/** The methods of the WebSocket, by name. */
export interface Methods {
  /** Version, limits, and what the sandbox enforces. */
  "info": { params: Record<string, never>; result: Record<string, unknown> };
  /** Environments that a session can start from. */
  "templates": { params: Record<string, never>; result: Record<string, unknown>[] };
  /** One shot: code, or a function with arguments. */
  "call": { params: { code?: string | null; function?: string | null; args?: unknown[]; kwargs?: Record<string, unknown>; template?: string | null; files?: Record<string, string>; limits?: LimitsRequest; timeout_seconds?: number | null; _meta?: RequestMeta | null }; result: Record<string, unknown> };
  /** A new session, ready for a cell. */
  "session.create": { params: { template?: string | null; name?: string | null; labels?: Record<string, string>; limits?: LimitsRequest; env?: Record<string, string>; idempotency_key?: string | null; sidecar_of?: string | null; beside?: string | null; checkpoint?: "auto" | "every"; tools?: ToolFilter | null; mounts?: string[]; workspace?: string | null; workspace_path?: string | null; attach?: boolean }; result: SessionInfo };
  /** Every event after a position, old ones first, then live. */
  "session.attach": { params: { session: string; after?: number }; result: Attached };
  /** No more events of this session on this connection. */
  "session.detach": { params: { session: string }; result: null };
  /** A session as it is now. */
  "session.get": { params: { session: string }; result: SessionInfo };
  /** The principal's sessions, newest first. */
  "session.list": { params: { state?: SessionState | null; label?: string | null; limit?: number; page?: string | null; principal?: string | null }; result: SessionPage };
  /** End a session; its record stays. */
  "session.close": { params: { session: string; reason?: string }; result: SessionInfo };
  /** Delete a closed session for good: log, notebook, files; a signed record without content stays. */
  "session.purge": { params: { session: string; force?: boolean }; result: Deletion };
  /** Interrupt the running cell. */
  "session.interrupt": { params: { session: string }; result: SessionInfo };
  /** A new kernel with empty variables; the log goes on. */
  "session.restart": { params: { session: string }; result: SessionInfo };
  /** Run a cell; the same cell id again runs nothing. */
  "session.execute": { params: { code: string; cell?: string | null; timeout_seconds?: number | null; on_error?: "continue" | "stop"; silent?: boolean; allow_stdin?: boolean; store_history?: boolean; user_expressions?: Record<string, string>; on_disconnect?: "interrupt" | "keep"; metadata?: Record<string, unknown>; checkpoint?: "auto" | "every" | null; changes?: boolean; max_text?: number | null; tools?: boolean | string[] | null; reuse_calls?: string | null; within?: string | null; _meta?: RequestMeta | null; session: string; wait?: "finished" | "queued" }; result: CellInfo };
  /** Run several cells in one trip. */
  "session.batch": { params: { session: string; cells: CellRequest[]; on_error?: "continue" | "stop"; wait?: "finished" | "queued"; _meta?: RequestMeta | null }; result: CellInfo[] };
  /** One cell. */
  "session.cell": { params: { session: string; cell: string }; result: CellInfo };
  /** The cells of a session. */
  "session.cells": { params: { session: string; limit?: number; offset?: number }; result: CellPage };
  /** One line about each cell of a session. */
  "session.outline": { params: { session: string; limit?: number; offset?: number }; result: OutlinePage };
  /** Cells by the words of their code, best first. */
  "session.search": { params: { text?: string; limit?: number; principal?: string | null }; result: CellMatch[] };
  /** Samples of a session's use over its life. */
  "session.usage": { params: { session: string }; result: UsageSample[] };
  /** A cell's whole text, a piece at a time. */
  "session.output": { params: { session: string; cell: string; name?: "stderr" | "stdout"; offset?: number; limit?: number }; result: Output };
  /** A cell as a language model reads it. */
  "session.view": { params: { session: string; cell?: string | null; budget?: number; from_line?: number | null; lines?: number | null; find?: string | null; picture?: number | null; after_line?: number }; result: CellView };
  /** Answer a cell that waits for input. */
  "session.input": { params: { session: string; cell: string; text: string }; result: null };
  /** Completions. */
  "session.complete": { params: { session: string; code: string; cursor_pos?: number | null }; result: Record<string, unknown> };
  /** Documentation of a name. */
  "session.inspect": { params: { session: string; code: string; cursor_pos?: number | null; detail_level?: 0 | 1 }; result: Record<string, unknown> };
  /** The names that the user's code has set. */
  "session.variables": { params: { session: string }; result: Variable[] };
  /** The data of a variable. */
  "session.value": { params: { session: string; name: string; format?: "arrow" | "best" | "csv" | "json" | "parquet"; from_row?: number; rows?: number | null; columns?: string[] | null }; result: ValueData };
  /** Park a copy of the kernel. */
  "session.checkpoint": { params: { session: string; name?: string | null }; result: Checkpoint };
  /** The parked copies. */
  "session.checkpoints": { params: { session: string }; result: Checkpoint[] };
  /** Let a parked copy go. */
  "session.drop_checkpoint": { params: { session: string; checkpoint?: string | null; name?: string | null }; result: null };
  /** Back to an earlier state; the record keeps both. */
  "session.rollback": { params: { session: string; to?: string | null; replay?: boolean }; result: SessionInfo };
  /** New sessions from this one's live state. */
  "session.branch": { params: { session: string; at?: string | null; count?: number; labels?: Record<string, string> | null; limits?: LimitsRequest | null; force?: boolean; isolate?: boolean; tools?: ToolFilter | null }; result: SessionInfo[] };
  /** Let code call functions of this client. */
  "tools.offer": { params: { offers: Offer[]; provider: ProviderId; session?: string | null; holding?: string[]; replace?: boolean }; result: Offered };
  /** End offers of this connection. */
  "tools.withdraw": { params: { names?: string[] | null; session?: string | null }; result: null };
  /** Functions that code may call. */
  "session.tools": { params: { session: string; search?: string | null; detail?: "brief" | "full"; limit?: number }; result: ToolList };
  /** The result of a call; the same again changes nothing. */
  "tool.return": { params: { session: string; call: string; status: "error" | "ok"; value?: unknown; content?: Record<string, unknown>[] | null; error?: ReportedError | null }; result: null };
  /** How far a call is. */
  "tool.progress": { params: { session: string; call: string; progress: number; total?: number | null; message?: string | null }; result: null };
  /** Approve or deny calls that wait for a person. */
  "session.decide": { params: { session: string; calls: string[]; decision: "approve" | "deny"; reason?: string | null; remember?: "cell" | "session" | null }; result: ToolCallInfo[] };
  /** Hold cells until a person decides, or let go. */
  "session.hold": { params: { session: string; mode?: "ask" | "off"; seconds?: number; then?: "approve" | "refuse" }; result: SessionInfo };
  /** Approve or refuse held cells. */
  "session.decide_cells": { params: { session: string; cells: string[]; decision: "approve" | "refuse"; reason?: string | null }; result: CellInfo[] };
  /** Calls of clients' functions. */
  "session.calls": { params: { session: string; cell?: string | null; state?: "ended" | "pending" | "running" | null; limit?: number; offset?: number }; result: CallPage };
  /** One call with its result. */
  "session.call": { params: { session: string; call: string }; result: ToolCallInfo };
  /** Start a program next to the kernel. */
  "program.start": { params: { session: string; argv: string[]; program?: string | null; env?: Record<string, string>; cwd?: string; stdin?: boolean; terminal?: PtySize | null; background?: boolean }; result: ProgramView };
  /** Wait for a program's output, or for its end. */
  "program.read": { params: { session: string; program: string; after?: number; limit?: number; wait_seconds?: number }; result: OutputPage };
  /** Write to a program's standard input. */
  "program.write": { params: { session: string; program: string; data?: string; at?: number | null; end?: boolean }; result: ProgramView };
  /** Send a signal to a program. */
  "program.signal": { params: { session: string; program: string; signal?: number }; result: null };
  /** Change the size of a program's terminal. */
  "program.resize": { params: { session: string; program: string; columns: number; rows: number }; result: null };
  /** The programs that run, and recently ended ones. */
  "session.programs": { params: { session: string }; result: ProgramView[] };
  /** The workspaces that you may use. */
  "workspace.list": { params: Record<string, never>; result: WorkspaceInfo[] };
  /** A workspace and its size. */
  "workspace.get": { params: { name: string; owner?: string | null }; result: WorkspaceInfo };
  /** Make a workspace, share it, limit its size. */
  "workspace.set": { params: { name: string; owner?: string | null; shared_with?: string[] | null; max_bytes?: number | null }; result: WorkspaceInfo };
  /** Remove a workspace with its files. */
  "workspace.remove": { params: { name: string; owner?: string | null }; result: null };
  /** Replace the rules of the session's network, within the server's; open connections that they refuse end. */
  "session.network": { params: { session: string; network?: "host" | "none" | NetworkRules | null }; result: SessionInfo };
  /** The ports that were shared. */
  "session.ports": { params: { session: string }; result: PortInfo[] };
  /** An address of a port that needs no token. */
  "session.share_port": { params: { session: string; port: number; public?: boolean; seconds?: number }; result: PortAddress };
  /** End every address of a port. */
  "session.unshare_port": { params: { session: string; port: number }; result: null };
  /** Give the memory back; the next cell wakes it. */
  "session.hibernate": { params: { session: string }; result: SessionInfo };
}

/** Methods that a client may send again on another connection. */
export const REPEATABLE: ReadonlySet<string> = new Set([
  "info",
  "templates",
  "session.create",
  "session.get",
  "session.list",
  "session.close",
  "session.execute",
  "session.batch",
  "session.cell",
  "session.cells",
  "session.outline",
  "session.search",
  "session.usage",
  "session.output",
  "session.view",
  "session.complete",
  "session.inspect",
  "session.variables",
  "session.value",
  "session.checkpoints",
  "tools.offer",
  "tools.withdraw",
  "session.tools",
  "tool.return",
  "tool.progress",
  "session.calls",
  "session.call",
  "program.start",
  "program.read",
  "program.write",
  "program.resize",
  "session.programs",
  "workspace.list",
  "workspace.get",
  "workspace.set",
  "session.ports",
]);

/** The request is not valid. Compare it with the API reference. */
export class BadRequest extends KernelsvcError {
  static override readonly code: string = "bad_request";
  static override readonly status: number = 400;
  static override readonly retryable: boolean = false;
}

/** The limit is higher than the server allows. Ask for a lower one. */
export class LimitTooHigh extends BadRequest {
  static override readonly code: string = "limit_too_high";
  static override readonly status: number = 400;
  static override readonly retryable: boolean = false;
}

/** The request is larger than the server accepts. Send less, or send it in parts. */
export class TooLarge extends BadRequest {
  static override readonly code: string = "too_large";
  static override readonly status: number = 413;
  static override readonly retryable: boolean = false;
}

/** The log has no such position. Attach with after=0 to read it from the start. */
export class CursorUnknown extends BadRequest {
  static override readonly code: string = "cursor_unknown";
  static override readonly status: number = 400;
  static override readonly retryable: boolean = false;
}

/** The request has no valid token. Send it as 'Authorization: Bearer TOKEN'. */
export class Unauthenticated extends KernelsvcError {
  static override readonly code: string = "unauthenticated";
  static override readonly status: number = 401;
  static override readonly retryable: boolean = false;
}

/** The token does not allow this request. Use a token with the scope it needs. */
export class Forbidden extends KernelsvcError {
  static override readonly code: string = "forbidden";
  static override readonly status: number = 403;
  static override readonly retryable: boolean = false;
}

/** There is no such object. Check the id against a list of existing ones. */
export class NotFound extends KernelsvcError {
  static override readonly code: string = "not_found";
  static override readonly status: number = 404;
  static override readonly retryable: boolean = false;
}

/** The request does not fit the present state. Read the state, then try again. */
export class Conflict extends KernelsvcError {
  static override readonly code: string = "conflict";
  static override readonly status: number = 409;
  static override readonly retryable: boolean = false;
}

/** This cell id already names other code. Choose a new id. */
export class CellExists extends Conflict {
  static override readonly code: string = "cell_exists";
  static override readonly status: number = 409;
  static override readonly retryable: boolean = false;
}

/** The session is closed. Its notebook and files can still be read. Create a new session to run code. */
export class SessionClosed extends Conflict {
  static override readonly code: string = "session_closed";
  static override readonly status: number = 409;
  static override readonly retryable: boolean = false;
}

/** The session's kernel has ended. Call restart for a new one with empty variables. */
export class KernelDead extends Conflict {
  static override readonly code: string = "kernel_dead";
  static override readonly status: number = 409;
  static override readonly retryable: boolean = false;
}

/** The session has objects that a fork would break. End them, or use force. */
export class CannotFork extends Conflict {
  static override readonly code: string = "cannot_fork";
  static override readonly status: number = 409;
  static override readonly retryable: boolean = false;
}

/** Retention has removed this part of the log. Attach with a later cursor. */
export class CursorExpired extends KernelsvcError {
  static override readonly code: string = "cursor_expired";
  static override readonly status: number = 410;
  static override readonly retryable: boolean = false;
}

/** The token's quota is used up. Close a session first. */
export class QuotaExceeded extends KernelsvcError {
  static override readonly code: string = "quota_exceeded";
  static override readonly status: number = 429;
  static override readonly retryable: boolean = true;
}

/** The server is full. Close a session, or try again later. */
export class AtCapacity extends KernelsvcError {
  static override readonly code: string = "at_capacity";
  static override readonly status: number = 503;
  static override readonly retryable: boolean = true;
}

/** The server has restarted and is still reading this session's log. Try again in a few seconds. */
export class Recovering extends KernelsvcError {
  static override readonly code: string = "recovering";
  static override readonly status: number = 503;
  static override readonly retryable: boolean = true;
}

/** The node that has this does not answer. Nothing is lost. Try again in a few seconds. */
export class NodeUnreachable extends KernelsvcError {
  static override readonly code: string = "node_unreachable";
  static override readonly status: number = 503;
  static override readonly retryable: boolean = true;
}

/** The node that has this session is gone. Create a new session, or start the node's server again. */
export class SessionLost extends KernelsvcError {
  static override readonly code: string = "session_lost";
  static override readonly status: number = 410;
  static override readonly retryable: boolean = false;
}

/** The template can't start. Correct its settings, or choose another template. */
export class TemplateFailed extends KernelsvcError {
  static override readonly code: string = "template_failed";
  static override readonly status: number = 503;
  static override readonly retryable: boolean = false;
}

/** A mount can't be shown to the session. Correct its settings, or leave it out. */
export class MountUnavailable extends KernelsvcError {
  static override readonly code: string = "mount_unavailable";
  static override readonly status: number = 503;
  static override readonly retryable: boolean = false;
}

/** Nothing in the session answers on this port. Start its server on 127.0.0.1, then try again. */
export class PortUnreachable extends KernelsvcError {
  static override readonly code: string = "port_unreachable";
  static override readonly status: number = 502;
  static override readonly retryable: boolean = true;
}

/** This machine can't confine a session as required. Run 'kernelsvc doctor' to see the reason. */
export class SandboxUnavailable extends KernelsvcError {
  static override readonly code: string = "sandbox_unavailable";
  static override readonly status: number = 503;
  static override readonly retryable: boolean = false;
}

/** This kind of kernel can't do that. Use a forked template. */
export class NotSupported extends KernelsvcError {
  static override readonly code: string = "not_supported";
  static override readonly status: number = 501;
  static override readonly retryable: boolean = false;
}

/** The request did not finish in time. Allow more time, or read the session's state. */
export class Timeout extends KernelsvcError {
  static override readonly code: string = "timeout";
  static override readonly status: number = 504;
  static override readonly retryable: boolean = true;
}

/** The server failed to handle the request. Its log has the details. */
export class Internal extends KernelsvcError {
  static override readonly code: string = "internal";
  static override readonly status: number = 500;
  static override readonly retryable: boolean = true;
}

/** The classes of errors by their codes. */
export const ERRORS: Readonly<Record<string, typeof KernelsvcError>> = {
  bad_request: BadRequest,
  limit_too_high: LimitTooHigh,
  too_large: TooLarge,
  cursor_unknown: CursorUnknown,
  unauthenticated: Unauthenticated,
  forbidden: Forbidden,
  not_found: NotFound,
  conflict: Conflict,
  cell_exists: CellExists,
  session_closed: SessionClosed,
  kernel_dead: KernelDead,
  cannot_fork: CannotFork,
  cursor_expired: CursorExpired,
  quota_exceeded: QuotaExceeded,
  at_capacity: AtCapacity,
  recovering: Recovering,
  node_unreachable: NodeUnreachable,
  session_lost: SessionLost,
  template_failed: TemplateFailed,
  mount_unavailable: MountUnavailable,
  port_unreachable: PortUnreachable,
  sandbox_unavailable: SandboxUnavailable,
  not_supported: NotSupported,
  timeout: Timeout,
  internal: Internal,
};
