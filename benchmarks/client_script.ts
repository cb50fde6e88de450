/** The TypeScript client's part of `python -m benchmarks.clients`: one JSON object on a line asks, one answers. */
import { createInterface } from "node:readline";
import { Client } from "../clients/typescript/src/index.ts";

await using client = new Client();
await using session = await client.createSession();
const work: Record<string, (count: number) => Promise<number[]>> = {
  async cell(count) {
    const found: number[] = [];
    for (let n = 0; n < count; n++) {
      const began = performance.now();
      await session.run("1+1");
      found.push(performance.now() - began);
    }
    return found;
  },
  async lines(count) {
    const began = performance.now();
    let seen = 0;
    for await (const event of session.stream(`for n in range(${count}): print(n)`)) {
      if (event.type === "stream") seen += event.text.split("\n").length - 1;
    }
    if (seen !== count) throw new Error(`${seen} lines of ${count}`);
    return [performance.now() - began];
  },
};
for await (const line of createInterface({ input: process.stdin })) {
  const [name, count] = JSON.parse(line) as [string, number];
  console.log(JSON.stringify(await work[name]?.(count)));
}
