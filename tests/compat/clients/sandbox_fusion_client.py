"""SandboxFusion's client: programs and notebooks, several at once."""

from __future__ import annotations

import asyncio
import base64
import sys

from sandbox_fusion import (
    RunCodeRequest,
    RunJupyterRequest,
    RunStatus,
    run_code,
    run_code_async,
    run_jupyter,
    set_sandbox_endpoint,
)

URL, TOKEN = sys.argv[1:3]
set_sandbox_endpoint(f"{URL}/t/{TOKEN}")

answer = run_code(RunCodeRequest(code='print("Hello, world!")', language="python"))
assert answer.status == RunStatus.Success, answer
assert answer.run_result.stdout == "Hello, world!\n"
failed = run_code(RunCodeRequest(code="import pandas\n1/0", language="python"))
assert failed.status == RunStatus.Failed
assert "ZeroDivisionError" in failed.run_result.stderr
late = run_code(RunCodeRequest(code="while True: pass", language="python", run_timeout=0.5))
assert late.run_result.status == "TimeLimitExceeded", late
content = base64.b64encode(b"5").decode()
request = RunCodeRequest(
    code="print(int(open('in.txt').read()) + int(input())); open('out.txt', 'w').write('done')",
    language="python",
    stdin="6",
    files={"in.txt": content},
    fetch_files=["out.txt"],
)
files = run_code(request)
assert (files.run_result.stdout, base64.b64decode(files.files["out.txt"])) == ("11\n", b"done"), files
refused = ""
try:
    run_code(RunCodeRequest(code="int main() {}", language="cpp"), max_attempts=1)
except Exception as error:
    refused = str(error)
assert "Use 'python'" in refused, refused


async def many() -> None:
    requests = [RunCodeRequest(code=f"print({n} ** 2)", language="python") for n in range(8)]
    answers = await asyncio.gather(*[run_code_async(each) for each in requests])
    assert [each.run_result.stdout for each in answers] == [f"{n**2}\n" for n in range(8)]


asyncio.run(many())
cells = ["a = 123", "a", "print(a)", 'import sys; sys.stderr.write("se")', 'raise RuntimeError("error message")']
notebook = run_jupyter(RunJupyterRequest(cells=cells))
assert notebook.status == RunStatus.Success
assert [each.stdout for each in notebook.cells] == ["", "", "123\n", "", ""]
assert notebook.cells[1].display[0]["text/plain"] == "123"
assert notebook.cells[3].stderr == "se"
assert notebook.cells[4].error[0]["evalue"] == "error message"
print("ok")
