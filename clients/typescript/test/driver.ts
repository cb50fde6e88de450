/**
 * Carries out the scenarios of `tests/clients`, in Node, Deno, Bun or a browser. `run(control)` asks the test for
 * scenarios until there is none left. The Python driver beside the scenarios does the same with the Python client.
 */
import {
  Client,
  ConnectionLost,
  type Event,
  KernelsvcError,
  type Program,
  type Session,
  type Stream,
  ToolError,
} from "../src/index.ts";

type Step = Record<string, any>;

/** `max_text` as `maxText`. */
function camel(options: Step = {}): Step {
  return Object.fromEntries(
    Object.entries(options).map(([name, value]) => [name.replace(/_(\w)/g, (_, letter: string) => letter.toUpperCase()), value]),
  );
}

/** Wait until a session has a state, for at most a minute. */
async function untilState(session: Session, wanted: string): Promise<void> {
  const deadline = performance.now() + 60_000;
  for (let state = ""; state !== wanted; { state } = await session.info()) {
    if (performance.now() > deadline) throw new Error(`The session is ${state}, not ${wanted}.`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** Answer `input()`. The client does not send an answer twice, because a second one would be the next line. */
async function answer(session: Session, request: Event, text: string): Promise<void> {
  const cell = request.cell ?? "";
  try {
    await session.input(cell, text);
  } catch (error) {
    if (!(error instanceof ConnectionLost)) throw error;
    for await (const event of session.events(request.seq, { follow: false })) if (event.type === "input_given") return;
    await session.input(cell, text);
  }
}

function numbersIn(text: string): unknown {
  const found = text.split(/\s+/).filter(Boolean).map(Number);
  // In order from 0, none missing, none twice: then their count says it all.
  return found.every((each, index) => each === index) ? found.length : { wrong: found.slice(0, 50), count: found.length };
}

function shape(value: unknown): unknown {
  if (value === null || typeof value !== "object") return value;
  const cell = value as Step;
  if ("outputs" in cell) {
    return { id: cell["id"], text: cell["text"], reason: cell["reason"], ename: cell["error"]?.ename, value: cell["value"] };
  }
  return value;
}

/** One scenario: its client, and everything that its steps name. */
class Driver {
  readonly #control: string;
  readonly #client: Client;
  readonly #sessions = new Map<string, Session>();
  readonly #programs = new Map<string, Program>();
  readonly #started = new Map<string, Promise<unknown>>();
  readonly #called: Record<string, number> = {};

  constructor(control: string, scenario: Step) {
    this.#control = control;
    this.#client = new Client({ url: scenario["url"], token: scenario["token"], ...camel(scenario["client"]) });
  }

  async run(steps: Step[]): Promise<unknown[]> {
    try {
      const results: unknown[] = [];
      for (const step of steps) {
        const result = (await this.#result(step)) as Step | null;
        results.push(result);
        // Later steps may wait without end for one that failed.
        if (result?.["error"] !== undefined && step["expect"]?.error === undefined) break;
      }
      return results;
    } finally {
      await this.#client.close();
    }
  }

  async #result(step: Step): Promise<unknown> {
    try {
      return shape(await this.#perform(step));
    } catch (error) {
      if (error instanceof KernelsvcError) return { error: error.code, message: error.message };
      throw error;
    }
  }

  async #fault(what: string, more: Step = {}): Promise<unknown> {
    return (await fetch(`${this.#control}/fault`, { method: "POST", body: JSON.stringify({ what, ...more }) })).json();
  }

  #session(step: Step): Session {
    const found = this.#sessions.get(step["in"]);
    if (found === undefined) throw new Error(`no session ${step["in"]}`);
    return found;
  }

  #program(step: Step): Program {
    const found = this.#programs.get(step["of"]);
    if (found === undefined) throw new Error(`no program ${step["of"]}`);
    return found;
  }

  #count(name: string): void {
    this.#called[name] = (this.#called[name] ?? 0) + 1;
  }

  async #perform(step: Step): Promise<unknown> {
    const { op, in: _in, as, expect: _expect, options, ...more } = step;
    switch (op) {
      case "create": {
        const session = await this.#client.createSession(camel(options));
        this.#sessions.set(as, session);
        return { state: session.details.state };
      }
      case "run": {
        const { decide } = step;
        const onApproval = decide === undefined ? {} : { onApproval: () => decide };
        return this.#session(step).run(step["code"], { ...camel(options), ...onApproval });
      }
      case "stream":
        return this.#stream(step);
      case "batch":
        return { reasons: (await this.#session(step).batch(step["cells"])).map((cell) => cell.reason) };
      case "view":
        return this.#session(step).view(step["cell"]);
      case "variables":
        return { names: (await this.#session(step).variables()).map((each) => each.name) };
      case "value":
        return { value: await this.#session(step).value(step["name"]) };
      case "once":
        return this.#client.executeOnce(camel(options));
      case "find":
        return { id: (await this.#client.session(step["id"])).id };
      case "cells":
        return { count: (await this.#session(step).cells()).length };
      case "events": {
        const events: Event[] = [];
        for await (const event of this.#session(step).events(0, { follow: false })) events.push(event);
        return this.#told(events);
      }
      case "start": {
        const work = this.#result(step["step"]);
        work.catch(() => {}); // "await" reports it
        this.#started.set(as, work);
        return null;
      }
      case "await":
        return this.#started.get(step["of"]);
      case "until":
        await untilState(this.#session(step), step["state"]);
        return null;
      case "fault":
        return this.#fault(step["what"], step["bytes"] === undefined ? {} : { bytes: step["bytes"] });
      case "reconnects":
        return { some: this.#client.reconnects > 0, count: this.#client.reconnects };
      case "interrupt":
        await this.#session(step).interrupt();
        return null;
      case "close":
        return { state: (await this.#session(step).close()).state };
      case "upload":
        return { name: await this.#session(step).upload(content(step["size"]), step["name"]) };
      case "download": {
        const data = await this.#session(step).download(step["name"]);
        return { size: data.length, whole: content(data.length).every((byte, index) => byte === data[index]) };
      }
      case "files":
        return { paths: (await this.#session(step).files("", { recursive: step["recursive"] })).map((each) => each.path).sort() };
      case "delete":
        await this.#session(step).delete(step["name"]);
        return null;
      case "notebook":
        return { text: new TextDecoder().decode(await this.#session(step).notebook()) };
      case "offer":
        await this.#offer(this.#session(step), step["names"], camel(options));
        return null;
      case "withdraw":
        await this.#session(step).withdraw();
        return null;
      case "calls":
        return { tools: (await this.#session(step).calls()).map((call) => call.info.tool) };
      case "called":
        return { ...this.#called };
      case "checkpoint":
        return { name: (await this.#session(step).checkpoint(step["name"])).name };
      case "rollback":
        await this.#session(step).rollback(step["to"]);
        return null;
      case "branch": {
        const made = await this.#session(step).branch({ count: as.length });
        made.forEach((session, index) => this.#sessions.set(as[index], session));
        return null;
      }
      case "command": {
        const { stdout, stderr, exitCode } = await this.#session(step).command(
          step["command"],
          step["input"] === undefined ? {} : { input: step["input"] },
        );
        return { stdout, stderr, exit_code: exitCode };
      }
      case "program": {
        const program = await this.#session(step).startProgram(step["command"], camel(options));
        this.#programs.set(as, program);
        return { id: program.id };
      }
      case "read":
        return this.#read(step);
      case "write":
        await this.#program(step).write(step["text"]);
        return null;
      case "close_input":
        await this.#program(step).closeInput();
        return null;
      case "signal":
        await this.#program(step).signal(step["signal"]);
        return null;
      default:
        throw new Error(`no such step: ${op} ${JSON.stringify(more)}`);
    }
  }

  #told(events: Event[]): Step {
    const text = events.map((event) => (event.type === "stream" ? event.text : "")).join("");
    const last = events.at(-1);
    return {
      text: text.length > 1000 ? undefined : text,
      numbers: text ? numbersIn(text) : undefined,
      rising: events.every((event, index) => index === 0 || event.seq > (events[index - 1]?.seq ?? 0)),
      first: events[0]?.type,
      last: last?.type,
      reason: last?.type === "cell_finished" ? last.reason : undefined,
    };
  }

  async #stream(step: Step): Promise<Step> {
    const session = this.#session(step);
    const stream: Stream = session.stream(step["code"], camel(step["options"]));
    const during: Step[] = [...(step["during"] ?? [])];
    const input: string[] = [...(step["input"] ?? [])];
    const events: Event[] = [];
    const result: Step = {};
    for await (const event of stream) {
      events.push(event);
      while (during[0] !== undefined && events.length >= during[0]["after"]) await this.#fault(during.shift()?.["fault"]);
      if (event.type === "input_requested") await answer(session, event, input.shift() ?? "");
      if (events.length === step["pause"]?.after) {
        const before = Number(await this.#fault("passed"));
        await untilState(session, step["pause"].until);
        result["passed_in_pause"] = Number(await this.#fault("passed")) - before;
      }
    }
    return { ...this.#told(events), ...result };
  }

  async #read(step: Step): Promise<Step> {
    const program = this.#program(step);
    const during: Step[] = [...(step["during"] ?? [])];
    const found: Uint8Array<ArrayBuffer>[] = [];
    for await (const { data } of program) {
      found.push(data);
      while (during[0] !== undefined && found.length >= during[0]["after"]) await this.#fault(during.shift()?.["fault"]);
    }
    const text = await new Blob(found).text();
    return { text, numbers: numbersIn(text), exit_code: program.details.exit_code, dropped: program.dropped };
  }

  async #offer(session: Session, names: string[], more: Step): Promise<void> {
    const functions: Record<string, (args: Step) => unknown> = {
      double: ({ x }) => 2 * x,
      refuse: () => {
        throw new ToolError("ValueError", "not this");
      },
      cut: async () => {
        await this.#fault("cut");
        return "cut";
      },
    };
    await session.offer(
      ...names.map((name) => ({
        name,
        parameters: { type: "object", properties: { x: { type: "integer" } } },
        ...more,
        execute: (args: Step) => {
          this.#count(name);
          return functions[name]?.(args);
        },
      })),
    );
  }
}

function content(size: number): Uint8Array<ArrayBuffer> {
  return Uint8Array.from({ length: size }, (_, index) => index % 251);
}

/** Carry out scenarios until the test has no more. */
export async function run(control: string): Promise<void> {
  for (;;) {
    const scenario = (await (await fetch(`${control}/next`)).json()) as Step | null;
    if (scenario === null) return;
    let result: unknown;
    try {
      result = await new Driver(control, scenario).run(scenario["steps"]);
    } catch (error) {
      result = { failed: String(error instanceof Error ? error.stack : error) };
    }
    await fetch(`${control}/result`, { method: "POST", body: JSON.stringify(result) });
  }
}
