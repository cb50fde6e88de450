/** Checked by the compiler alone. Each line below `@ts-expect-error` must be an error. */
import { Client, type Event, type Methods, NotFound, type SessionInfo } from "../src/index.ts";

export async function right(client: Client, event: Event): Promise<string> {
  const session = await client.createSession({ limits: { memory_bytes: 2 ** 30, cell_seconds: 60 }, checkpoint: "every" });
  const info: SessionInfo = session.details;
  const { result }: Pick<Methods["session.cells"], "result"> = { result: { cells: [], next_offset: null } };
  if (event.type === "cell_finished") return event.reason;
  if (event.type === "stream") return event.text + info.state + result.cells.length;
  const error: unknown = new NotFound("no");
  return error instanceof NotFound ? error.code : "";
}

export async function wrong(client: Client, event: Event): Promise<void> {
  // @ts-expect-error the option is called limits
  await client.createSession({ limit: {} });
  // @ts-expect-error a limit is a number
  await client.createSession({ limits: { memory_bytes: "1 GB" } });
  // @ts-expect-error no such mode
  await client.createSession({ checkpoint: "sometimes" });
  const session = await client.session("s");
  // @ts-expect-error options of run are in camelCase
  await session.run("1", { max_text: 5 });
  // @ts-expect-error code is required
  await session.run();
  const cell = await session.run("1");
  // @ts-expect-error the error may be null
  cell.error.ename;
  // @ts-expect-error only a stream event has text
  event.text;
  // @ts-expect-error an upload needs a name
  await session.upload("content");
  // @ts-expect-error no such event
  if (event.type === "printed") return;
  // @ts-expect-error no such format
  await session.notebook("pdf");
}
