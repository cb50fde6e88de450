/** Find the session of a tool call by id, by a name, or the caller's default session. */
import type { Client } from "../client.ts";
import { NotFound } from "../generated.ts";
import type { Session } from "../session.ts";

/** The label with a session's name: the one by which MCP and function calling find sessions. */
const LABEL = "tool-session";
/** Form of a session's id, on a server or on a node of a cluster. A name of this form counts as an id. */
const ID = /^s_(?:[0-9a-f]{6})?[0-9a-f]{16}$/;

/** The sessions of one set of tools. Another process with the same names uses the same sessions. */
export class Sessions {
  readonly #client: Client;
  readonly #default: string | Session;
  readonly #opening = new Map<string, Promise<Session>>();

  constructor(client: Client, session: string | Session) {
    this.#client = client;
    this.#default = session;
  }

  /**
   * Find an existing session.
   *
   * @throws NotFound there is none.
   */
  async find(wanted?: string): Promise<Session> {
    const name = wanted ?? this.#default;
    if (typeof name !== "string") return name;
    const found = ID.test(name) ? await this.#client.session(name) : await this.#named(name);
    if (found === undefined) throw new NotFound(`There is no open session '${name}'. run_code creates it.`);
    return found;
  }

  /** Find an open session, or create it. Concurrent calls create one. */
  async open(wanted?: string): Promise<Session> {
    const name = wanted ?? this.#default;
    if (typeof name !== "string") return name;
    if (ID.test(name)) return this.#client.session(name);
    let opening = this.#opening.get(name);
    if (opening === undefined) {
      opening = this.#named(name).then((found) => found ?? this.#create(name));
      this.#opening.set(name, opening);
      opening.catch(() => {}).finally(() => this.#opening.delete(name));
    }
    return opening;
  }

  async #named(name: string): Promise<Session | undefined> {
    const found = await this.#client.sessions({ label: `${LABEL}=${name}`, limit: 20 });
    const open = found.find((each) => each.state !== "closed");
    return open && this.#client.session(open.id);
  }

  #create(name: string): Promise<Session> {
    return this.#client.createSession({ name, labels: { [LABEL]: name }, keep: true });
  }

  /** Return open sessions, newest first. */
  async list(): Promise<{ session: string; name: string | null; state: string; cells: number }[]> {
    const found = await this.#client.sessions({ limit: 100 });
    return found
      .filter((each) => each.state !== "closed")
      .map(({ id, name, state, execution_count }) => ({ session: id, name, state, cells: execution_count }));
  }
}
