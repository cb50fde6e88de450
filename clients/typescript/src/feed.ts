/**
 * Deliver a session's events to its readers. Pure: no socket, no clock.
 *
 * A connection can attach to a session once, so all readers of one session share one `EventFeed`. Each reader has its
 * own cursor, and gets each event above it exactly once, also when the server sends events again after a reconnect. A
 * reader that does not read fills its buffer, whose size is limited. The feed then asks the connection to detach and,
 * when there is room again, to attach after the lowest cursor. The server's log is therefore the queue, and memory
 * grows on neither side. The rules are those of `kernelsvc/client/event_feed.py`, and the scenarios of
 * `tests/clients` run both.
 */
import type { KernelsvcError } from "./errors.ts";
import type { Event } from "./values.ts";

/** Buffered characters of a reader above which its feed detaches: half of the kernel wire's buffer. */
export const MAX_CHARACTERS: number = 4 * 1024 * 1024;
export const MAX_EVENTS: number = 10_000;

/** The server left out an event. */
export class SequenceGap extends Error {}

/** One consumer of one session's events. */
export class FeedReader {
  /** The cursor. The reader has received or skipped each event up to it. */
  lastSeq: number;
  /** If set, the reader gets only this cell's events, and ends with the cell. */
  readonly cell: string | undefined;
  /** No event follows those in the buffer. */
  done = false;
  /** The reason, if the reader ended early. */
  error: KernelsvcError | undefined;
  #buffer: Event[] = [];
  #characters = 0;

  constructor(after: number, cell?: string) {
    this.lastSeq = after;
    this.cell = cell;
  }

  /** Whether the buffer exceeds its limit. */
  get full(): boolean {
    return !this.done && (this.#characters > MAX_CHARACTERS || this.#buffer.length > MAX_EVENTS);
  }

  /** Number of events in the buffer. */
  get waiting(): number {
    return this.#buffer.length;
  }

  /** Take the event that follows the cursor. Return true if there is something new to read. */
  take(event: Event, size: number): boolean {
    this.lastSeq = event.seq;
    const wanted = this.cell === undefined || event.cell === this.cell;
    if (wanted) {
      this.#buffer.push(event);
      this.#characters += size;
    }
    const finished = this.cell !== undefined && wanted && event.type === "cell_finished";
    this.done = event.type === "session_closed" || finished;
    return wanted || this.done;
  }

  /** Remove and return all events in the buffer. */
  drain(): Event[] {
    const events = this.#buffer;
    this.#buffer = [];
    this.#characters = 0;
    return events;
  }

  /** Move the cursor back. The reader must not have received any event after the new position. */
  rewind(after: number): void {
    this.lastSeq = Math.min(this.lastSeq, after);
  }

  /** End the reader with an error, after the events in its buffer. */
  fail(error: KernelsvcError): void {
    if (!this.done) {
      this.done = true;
      this.error = error;
    }
  }
}

/** The next request to the server about a feed. */
export type Step = { action: "attach"; after: number } | { action: "detach" };

/** The readers of one session on one connection. */
export class EventFeed {
  readonly session: string;
  readonly readers: Set<FeedReader> = new Set();
  /** Whether the connection is attached, or has sent an attach request. */
  live = false;
  /** Sequence number of the last event that the feed dispatched. */
  position = 0;

  constructor(session: string) {
    this.session = session;
  }

  /** Return the cursor to attach after. Return undefined if there is no reader, or if a reader's buffer is full. */
  wants(): number | undefined {
    let lowest: number | undefined;
    for (const reader of this.readers) {
      if (reader.done) continue;
      if (reader.full) return undefined;
      if (lowest === undefined || reader.lastSeq < lowest) lowest = reader.lastSeq;
    }
    return lowest;
  }

  /** Return the next request to the server, or undefined. */
  step(): Step | undefined {
    const cursor = this.wants();
    if (this.live) {
      // A connection attaches to a session once, so that a lower cursor needs a detach first.
      return cursor === undefined || cursor < this.position ? { action: "detach" } : undefined;
    }
    return cursor === undefined ? undefined : { action: "attach", after: cursor };
  }

  /** Note that the attach request was sent. The events from now on belong to it. */
  attached(after: number): void {
    this.live = true;
    this.position = after;
  }

  /** Note that the feed is detached, by a request or by a lost connection. `take` ignores events from now on. */
  lost(): void {
    this.live = false;
  }

  /**
   * Deliver an event to each reader whose cursor is directly before it. Return the readers with something new.
   *
   * A reader with a lower cursor waits until `step` has attached the feed again, at that cursor.
   *
   * @throws SequenceGap the server left out an event.
   */
  take(event: Event, size: number): FeedReader[] {
    if (!this.live || event.seq <= this.position) return [];
    if (event.seq !== this.position + 1) {
      throw new SequenceGap(`session ${this.session}: expected event ${this.position + 1}, got ${event.seq}`);
    }
    const before = this.position;
    this.position = event.seq;
    const changed: FeedReader[] = [];
    for (const reader of this.readers) {
      // A reader with a lower cursor must not skip events: it waits for the next attachment.
      if (!reader.done && reader.lastSeq === before && reader.take(event, size)) changed.push(reader);
    }
    return changed;
  }
}
