"""E2B's Python SDK: JavaScript and TypeScript. Arguments: the server's address and token."""

import os
import sys

os.environ.update(E2B_API_URL=sys.argv[1], E2B_SANDBOX_URL=sys.argv[1], E2B_API_KEY=sys.argv[2])

from e2b_code_interpreter import Sandbox

with Sandbox.create(envs={"MINE": "yes"}, timeout=120) as box:
    assert "".join(box.run_code("console.log('Hello, World!')", language="js").logs.stdout) == "Hello, World!\n"
    assert box.run_code("await Promise.resolve('Hello World!')", language="js").text == "Hello World!"
    typed = box.run_code("const message: string = 'Hi'; console.log(message)", language="ts")
    assert "".join(typed.logs.stdout) == "Hi\n", typed
    assert box.run_code("process.env.MINE", language="javascript").text == "yes"
    failed = box.run_code("throw new Error('mine')", language="js")
    assert "mine" in failed.error.value, failed
    box.run_code("import { writeFileSync } from 'fs'; writeFileSync('made.txt', 'made')", language="ts")
    assert box.files.read("made.txt") == "made"
print("ok")
