/** For Node, Deno and Bun: find the server that this user runs on this machine. */
import { readdirSync, readFileSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Unreachable } from "./errors.ts";

/** What `server.json` says about a running server. */
export interface LocalServer {
  url: string;
  token: string;
}

function alive(pid: number): boolean {
  try {
    // kill(2): with signal 0 no signal is sent, but existence and permission checks are still performed.
    process.kill(pid, 0);
    return true;
  } catch (error) {
    // EPERM: the process exists, and belongs to another user.
    return (error as NodeJS.ErrnoException).code === "EPERM";
  }
}

function read(directory: string): LocalServer | undefined {
  try {
    // Those of this user only: another user's file could name any server.
    if (statSync(directory).uid !== process.getuid?.()) return undefined;
    const found = JSON.parse(readFileSync(join(directory, "server.json"), "utf8")) as LocalServer & { pid?: number };
    return found.pid === undefined || alive(found.pid) ? { url: found.url, token: found.token } : undefined;
  } catch {
    return undefined;
  }
}

/**
 * Return the address and the token of the server that this user runs on this machine: `new Client(localServer())`.
 *
 * @throws Unreachable none runs, or more than one. The environment variables `KERNELSVC_URL` and `KERNELSVC_TOKEN`,
 * which `Client` reads itself, choose one.
 */
export function localServer(environment: Record<string, string | undefined> = process.env): LocalServer {
  const runtime = environment["XDG_RUNTIME_DIR"];
  // The directories that the server's settings choose when nobody names one.
  const places = [
    ...(runtime ? [join(runtime, "kernelsvc")] : []),
    join(environment["TMPDIR"] ?? tmpdir(), `kernelsvc-${process.getuid?.() ?? 0}`),
  ];
  const found = places.flatMap((place) => {
    try {
      return readdirSync(place).flatMap((name) => read(join(place, name)) ?? []);
    } catch {
      return [];
    }
  });
  const [first, ...more] = found;
  if (first === undefined) {
    throw new Unreachable("No server of yours is running here. Start one with 'kernelsvc serve', or set KERNELSVC_URL.");
  }
  if (more.length > 0) {
    const urls = found.map((each) => each.url).sort();
    throw new Unreachable(`Several servers of yours are running here: ${urls.join(", ")}. Choose one with KERNELSVC_URL.`);
  }
  return first;
}
