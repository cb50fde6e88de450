"""SandboxAI's client: what its own tests do, then state, errors and names."""

from __future__ import annotations

import sys

from sandboxai import Sandbox
from sandboxai.api.v1 import CreateSandboxRequest, RunIPythonCellRequest, RunShellCommandRequest, SandboxSpec
from sandboxai.client.v1 import HttpClient, SandboxNotFoundError

URL, TOKEN = sys.argv[1:3]
BASE = f"{URL}/t/{TOKEN}/v1"

client = HttpClient(BASE)
assert client.check_health()
made = client.create_sandbox("default", CreateSandboxRequest(spec=SandboxSpec(image="box:1")))
assert client.get_sandbox("default", made.name).model_dump() == made.model_dump()
split = RunIPythonCellRequest(code="import sys; print('o'); print('e', file=sys.stderr)", split_output=True)
ran = client.run_ipython_cell("default", made.name, split)
assert (ran.output, ran.stdout, ran.stderr) == (None, "o\n", "e\n"), ran
told = client.run_shell_command("default", made.name, RunShellCommandRequest(command="echo hi", split_output=True))
assert (told.stdout, told.stderr) == ("hi\n", ""), told
client.delete_sandbox("default", made.name)
try:
    client.get_sandbox("default", made.name)
    raise AssertionError("it is still there")
except SandboxNotFoundError:
    pass

with Sandbox(base_url=BASE, name="compat", env={"WHO": "me"}) as sandbox:
    assert sandbox.run_ipython_cell("print(123)").output == "123\n"
    assert sandbox.run_ipython_cell("x = 41").output == ""
    assert sandbox.run_ipython_cell("x + 1").output == "42\n"
    assert "name 'foo' is not defined" in sandbox.run_ipython_cell("foo").output
    assert sandbox.run_ipython_cell("!echo $WHO").output.split() == ["me"]
    assert "error" in sandbox.run_shell_command(">&2 echo 'error'").output
    lines = sandbox.run_ipython_cell("for i in range(20_000): print(i)").output
    assert lines.endswith("19999\n")
print("ok")
