/** Runs the scenarios in Node, Deno or Bun: `node main.ts CONTROL`. */
import { run } from "./driver.ts";

await run(process.argv[2] ?? "");
