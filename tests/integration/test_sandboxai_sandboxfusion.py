"""SandboxAI's and SandboxFusion's APIs on a real server, by plain HTTP."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from typing import Any

import pytest
from served import Served


def post(served: Served, path: str, body: Any = None, *, verb: str = "POST", token: str | None = "") -> tuple[int, Any]:
    """Status and JSON; the token stands in the path, as these clients must have it."""
    prefix = f"/t/{token or served.token}" if token is not None else ""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        served.url + prefix + path, data, {"Content-Type": "application/json"}, method=verb
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            data = answer.read()
            return answer.status, json.loads(data) if data else None
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def coded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


# --- SandboxAI --------------------------------------------------------------------------------


@pytest.fixture
def sandbox(served: Served):
    status, made = post(served, "/v1/spaces/default/sandboxes", {"spec": {"image": "box:1", "env": {"A": "b"}}})
    assert status == 201
    yield f"/v1/spaces/default/sandboxes/{made['name']}"
    post(served, f"/v1/spaces/default/sandboxes/{made['name']}", verb="DELETE")


def test_files_that_are_too_large_together_are_refused(served: Served) -> None:
    # Sparse files cost the session nothing, and would cost the server their whole size.
    code = "for n in range(5):\n    open(f'f{n}', 'wb').truncate(8 << 20)"
    asked = {"code": code, "language": "python", "fetch_files": [f"f{n}" for n in range(5)]}
    status, refused = post(served, "/run_code", asked)
    assert (status, refused["status"], refused["files"]) == (200, "SandboxError", {})
    assert "Fetch fewer" in refused["message"]
    status, answer = post(served, "/run_code", {**asked, "fetch_files": ["f0", "f1"]})
    assert (answer["status"], sorted(answer["files"])) == ("Success", ["f0", "f1"])


def test_a_sandbox_is_a_session(served: Served, sandbox: str):
    status, found = post(served, sandbox, verb="GET")
    assert status == 200
    assert found["spec"]["image"] == "box:1"
    assert served.call("GET", f"/v1/sessions/{found['uid']}")["name"] == found["name"]
    assert post(served, "/v1/spaces/other/sandboxes/" + found["name"], verb="GET")[0] == 404
    assert post(served, "/v1/spaces/default/sandboxes", {"name": found["name"], "spec": {}})[0] == 409
    assert post(served, sandbox, verb="DELETE") == (204, None)
    status, refused = post(served, sandbox, verb="GET")
    assert (status, refused["code"]) == (404, "not_found")


def test_cells_keep_their_state_and_their_errors_are_output(served: Served, sandbox: str):
    def run(code: str, split: bool = False) -> Any:
        return post(served, f"{sandbox}/tools:run_ipython_cell", {"code": code, "split_output": split})[1]

    assert run("x = 41\nprint('hi')\nx + 1") == {"output": "hi\n42\n"}
    assert run("import os\nos.environ['A']") == {"output": "'b'\n"}
    assert "name 'foo' is not defined" in run("foo")["output"]
    assert run("import sys\nprint('out')\nprint('err', file=sys.stderr)\nx", split=True) == {
        "stdout": "out\n41\n", "stderr": "err\n",
    }  # fmt: skip


def test_shell_commands(served: Served, sandbox: str):
    def run(command: str, split: bool = False) -> Any:
        return post(served, f"{sandbox}/tools:run_shell_command", {"command": command, "split_output": split})[1]

    assert run("echo one; echo two | wc -c") == {"output": "one\n4\n"}
    assert run("echo out; echo err >&2; exit 3", split=True) == {"stdout": "out\n", "stderr": "err\n"}
    assert "error" in run(">&2 echo 'error'")["output"]


# --- SandboxFusion ----------------------------------------------------------------------------


def run_code(served: Served, code: str, **more: Any) -> Any:
    return post(served, "/run_code", {"code": code, "language": "python", **more})[1]


def test_a_program(served: Served):
    answer = run_code(served, "import sys\nprint(input())\nprint('e', file=sys.stderr)", stdin="said\n")
    assert answer["status"] == "Success"
    ended = answer["run_result"]
    assert (ended["status"], ended["return_code"]) == ("Finished", 0)
    assert (ended["stdout"], ended["stderr"]) == ("said\n", "e\n")
    session = served.call("GET", f"/v1/sessions/{answer['executor_pod_name']}")
    assert session["state"] == "closed"


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        ("raise SystemExit(3)", 3, ""),
        ("import sys; sys.exit('no')", 1, "no\n"),
        ("def f():\n    1/0\nf()", 1, 'File "main.py", line 2, in f'),
        ("if __name__ == '__main__': exit(0)", 0, ""),
        ("x = (", 1, "SyntaxError"),
        ("import os; os.kill(os.getpid(), 9)", 1, "SIGKILL"),
    ],
)
def test_how_a_program_ends(served: Served, code: str, status: int, said: str):
    answer = run_code(served, code)
    assert answer["status"] == ("Failed" if status else "Success")
    assert answer["run_result"]["return_code"] == status
    assert said in answer["run_result"]["stderr"]
    assert "runpy" not in answer["run_result"]["stderr"]


def test_a_programs_time_and_files(served: Served):
    late = run_code(served, "print('began', flush=True)\nwhile True: pass", run_timeout=0.5)
    assert late["status"] == "Failed"
    assert late["run_result"]["status"] == "TimeLimitExceeded"
    assert late["run_result"]["stdout"] == "began\n"
    code = "open('out.txt', 'w').write(open('d/in.txt').read().upper())"
    answer = run_code(served, code, files={"d/in.txt": coded("abc"), "none": None}, fetch_files=["out.txt", "missing"])
    assert answer["files"] == {"out.txt": coded("ABC")}


def test_what_is_not_served_says_so(served: Served):
    assert "python" in post(served, "/run_code", {"code": "", "language": "cpp"})[1]["message"]
    for more in ({"files": {"../x": coded("")}}, {"files": {"a": "é"}}, {"run_timeout": -1}):
        assert run_code(served, "1", **more)["status"] == "SandboxError"


def test_a_notebook(served: Served):
    cells = ["a = 123", "a", "print(a)", "import sys; sys.stderr.write('se')", "raise RuntimeError('no')", "a + 1"]
    _, answer = post(served, "/run_jupyter", {"cells": cells, "fetch_files": []})
    assert answer["status"] == "Success"
    shown = answer["cells"]
    assert [each["stdout"] for each in shown] == ["", "", "123\n", "", "", ""]
    assert shown[1]["display"][0]["text/plain"] == "123"
    assert shown[3]["stderr"] == "se"
    assert (shown[4]["error"][0]["ename"], shown[4]["error"][0]["evalue"]) == ("RuntimeError", "no")
    assert shown[5]["display"][0]["text/plain"] == "124"


def test_a_notebooks_time(served: Served):
    cells = ["print(1)", "import time; time.sleep(60)", "print(3)"]
    _, answer = post(served, "/run_jupyter", {"cells": cells, "total_timeout": 1.5})
    assert answer["status"] == "Failed"
    assert answer["driver"]["status"] == "TimeLimitExceeded"
    assert answer["cells"][1]["error"][0]["ename"]


@pytest.mark.parametrize(
    ("verb", "path"),
    [
        ("POST", "/run_code"),
        ("POST", "/run_jupyter"),
        ("POST", "/v1/spaces/default/sandboxes"),
        ("GET", "/v1/spaces/default/sandboxes/x"),
        ("DELETE", "/v1/spaces/default/sandboxes/x"),
        ("POST", "/v1/spaces/default/sandboxes/x/tools:run_ipython_cell"),
        ("POST", "/v1/spaces/default/sandboxes/x/tools:run_shell_command"),
    ],
)
def test_every_route_is_closed_without_a_token(served: Served, verb: str, path: str):
    for token in (None, "wrong"):
        assert post(served, path, {} if verb == "POST" else None, verb=verb, token=token)[0] == 401
