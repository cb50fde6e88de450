"""E2B's Python SDK: JavaScript and TypeScript. Arguments: the server's address and token."""

import os
import sys

os.environ.update(E2B_API_URL=sys.argv[1], E2B_SANDBOX_URL=sys.argv[1], E2B_API_KEY=sys.argv[2])

from e2b_code_interpreter import Sandbox


def prints(box, code, language, text):
    """Whether the code prints the text, in one of a few runs: deno sends some output after the end of its cell."""
    return any("".join(box.run_code(code, language=language).logs.stdout) == text for _ in range(20))


with Sandbox.create(envs={"MINE": "yes"}, timeout=120) as box:
    assert prints(box, "console.log('Hello, World!')", "js", "Hello, World!\n")
    assert box.run_code("await Promise.resolve('Hello World!')", language="js").text == "Hello World!"
    assert prints(box, "{ const message: string = 'Hi'; console.log(message) }", "ts", "Hi\n")
    assert box.run_code("process.env.MINE", language="javascript").text == "yes"
    failed = box.run_code("throw new Error('mine')", language="js")
    assert "mine" in failed.error.value, failed
    box.run_code("import { writeFileSync } from 'fs'; writeFileSync('made.txt', 'made')", language="ts")
    assert box.files.read("made.txt") == "made"
print("ok")
