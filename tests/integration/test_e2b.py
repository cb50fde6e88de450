"""The E2B API over a real server, by plain HTTP: what its clients rely on, and what an attacker tries."""

from __future__ import annotations

import http.client
import json
import re
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from served import Served, serving, source_address
from waiting import wait_for

from kernelsvc.protocol import connect
from kernelsvc.server import e2b as api

Answer = tuple[int, Any]


@pytest.fixture(scope="session")
def served(preloaded_server: Served) -> Served:
    return preloaded_server


class Box:
    """One sandbox and what E2B's clients know of it."""

    def __init__(self, api: E2bApi, shown: dict[str, Any]) -> None:
        self.api, self.id = api, shown["sandboxID"]
        self.envd, self.traffic = shown["envdAccessToken"], shown["trafficAccessToken"]

    def headers(self, port: int = 49999, **more: str) -> dict[str, str]:
        secret = {"E2B-Traffic-Access-Token": self.traffic} if port == 49999 else {"X-Access-Token": self.envd}
        return {"E2b-Sandbox-Id": self.id, "E2b-Sandbox-Port": str(port), **secret, **more}

    def ask(self, method: str, path: str, body: Any = None, port: int = 49999) -> Answer:
        return self.api.ask(method, path, body, self.headers(port))

    def run(self, code: str, **more: Any) -> list[dict[str, Any]]:
        status, text = self.api.raw("POST", "/execute", {"code": code, **more}, self.headers())
        assert status == 200, text
        return [json.loads(line) for line in text.splitlines()]

    def text(self, code: str, **more: Any) -> str | None:
        lines = self.run(code, **more)
        assert not [line for line in lines if line["type"] == "error"], lines
        return next((line["text"] for line in lines if line.get("is_main_result")), None)


class E2bApi:
    """A plain client."""

    def __init__(self, served: Served) -> None:
        self.served = served

    def raw(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, str]:
        connection = http.client.HTTPConnection(
            self.served.url.removeprefix("http://"), timeout=60, source_address=source_address()
        )
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers or {})
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        status, text = self.raw(method, path, body, {"X-API-KEY": self.served.token} if headers is None else headers)
        return status, json.loads(text) if text[:1] in ("{", "[") else text

    def create(self, **asked: Any) -> Box:
        status, shown = self.ask("POST", "/v2/sandboxes", {"templateID": "base", **asked})
        assert status == 201, shown
        return Box(self, shown)


@pytest.fixture(scope="module")
def e2b(served: Served) -> E2bApi:
    return E2bApi(served)


@pytest.fixture
def box(e2b: E2bApi) -> Iterator[Box]:
    made = e2b.create()
    yield made
    e2b.ask("DELETE", f"/sandboxes/{made.id}")


def kinds(lines: list[dict[str, Any]]) -> list[str]:
    return [line["type"] for line in lines if line["type"] != "keepalive"]


# --- who may ------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [{}, {"X-API-KEY": "wrong"}, {"Authorization": "Bearer wrong"}])
def test_every_route_is_closed_without_a_key(e2b: E2bApi, box: Box, headers: dict[str, str]) -> None:
    where = {"E2b-Sandbox-Id": box.id, "E2b-Sandbox-Port": "49999"} | headers
    paths = [_example(pattern, box.id) for module in api.MODULES for pattern, _ in module.ROUTES]
    for path in paths:
        for method in ("GET", "POST", "PUT", "DELETE"):
            status, said = e2b.ask(method, path, {} if method == "POST" else None, where)
            assert status == 401, (method, path, status, said)
            assert said["message"]
    assert len(paths) > 15
    assert box.text("1") == "1"


def _example(pattern: str, id: str) -> str:
    """A path that a route's pattern matches."""

    def filled(group: re.Match[str]) -> str:
        if re.fullmatch(r"[\w|]+", group[1]):
            return group[1].partition("|")[0]
        return id if re.fullmatch(group[1], id) else "00"

    path = re.sub(r"\((?:\?P<\w+>)?((?!\?)[^()]*)\)", filled, re.sub(r"\(\?:[^()]*\)\?", "", pattern)).replace("\\", "")
    assert re.fullmatch(pattern, path), pattern
    return path


def test_a_principal_can_not_find_the_sandbox_of_another(e2b: E2bApi) -> None:
    mine = e2b.create()
    theirs = {"X-API-KEY": "other-token"}
    for method, path in (
        ("GET", ""), ("DELETE", ""), ("POST", "/timeout"), ("POST", "/pause"), ("POST", "/connect"),
        ("POST", "/fork"), ("POST", "/snapshots"), ("GET", "/metrics"),
    ):  # fmt: skip
        status, said = mine.api.ask(method, f"/sandboxes/{mine.id}{path}", {"timeout": 1}, theirs)
        assert (status, said["code"]) == (404, 404), (method, path, said)
    assert mine.api.ask("GET", "/v2/sandboxes", None, theirs) == (200, [])
    where = {"E2b-Sandbox-Id": mine.id, "E2b-Sandbox-Port": "49999"} | theirs
    for method, path in (("POST", "/execute"), ("GET", "/contexts"), ("GET", "/health")):
        assert mine.api.ask(method, path, {"code": "1"}, where)[0] == 502
    assert mine.text("1") == "1"


def test_the_secret_for_code_opens_no_files(e2b: E2bApi, box: Box) -> None:
    headers = {"E2b-Sandbox-Id": box.id, "E2b-Sandbox-Port": "49983", "X-Access-Token": box.traffic}
    assert e2b.ask("GET", "/files?path=x", None, headers)[0] in (401, 404)
    assert box.ask("GET", "/contexts")[0] == 200


# --- the control plane ----------------------------------------------------------------------


def test_a_sandbox_from_beginning_to_end(e2b: E2bApi) -> None:
    box = e2b.create(metadata={"user": "me", "a b": "c&d"}, envVars={"MINE": "it's"}, timeout=100)
    status, shown = e2b.ask("GET", f"/sandboxes/{box.id}")
    assert status == 200
    assert (shown["state"], shown["metadata"]) == ("running", {"user": "me", "a b": "c&d"})
    assert box.text("import os; os.environ['MINE'] + os.environ['E2B_SANDBOX']") == "it'strue"
    metrics = f"/sandboxes/{box.id}/metrics"
    wait_for(lambda: len(e2b.ask("GET", metrics)[1]) >= 2, deadline=60, what="a sample that was kept")
    _, kept = e2b.ask("GET", metrics)
    assert kept[-1]["memTotal"] > 0
    assert sorted(kept, key=lambda each: each["timestampUnix"]) == kept
    assert e2b.ask("GET", f"{metrics}?start={kept[-1]['timestampUnix'] + 1000}") == (200, [])
    assert e2b.ask("GET", f"{metrics}?start=x")[0] == 400
    assert e2b.ask("GET", f"/sandboxes/metrics?sandbox_ids={box.id},s_none")[1]["sandboxes"].keys() == {box.id}
    assert e2b.ask("DELETE", f"/sandboxes/{box.id}") == (204, "")
    assert e2b.ask("DELETE", f"/sandboxes/{box.id}")[0] == 404
    assert e2b.ask("GET", f"/sandboxes/{box.id}")[0] == 404
    for port in (49983, 49999):
        assert box.ask("GET", "/health", port=port)[0] == 502
    status, said = box.ask("POST", "/execute", {"code": "1"})
    assert (status, said["message"]) == (502, "The sandbox was not found")


def test_a_listing_in_pages_by_metadata(e2b: E2bApi) -> None:
    boxes = [e2b.create(metadata={"listed": "y s", "n": str(n)}) for n in range(3)]
    query = f"/v2/sandboxes?limit=2&metadata={quote('listed=y%20s')}"
    connection = http.client.HTTPConnection(e2b.served.url.removeprefix("http://"))
    seen, token = [], ""
    while token is not None:
        connection.request("GET", query + (f"&nextToken={token}" if token else ""), None, {"X-API-KEY": "test-token"})
        response = connection.getresponse()
        seen += [each["sandboxID"] for each in json.loads(response.read())]
        token = response.getheader("x-next-token")
    connection.close()
    assert sorted(seen) == sorted(box.id for box in boxes)
    e2b.ask("POST", f"/sandboxes/{boxes[0].id}/pause")
    asked = f"/v2/sandboxes?state=paused&metadata={quote('listed=y%20s')}"
    assert [each["sandboxID"] for each in e2b.ask("GET", asked)[1]] == [boxes[0].id]
    older = [each["sandboxID"] for each in e2b.ask("GET", f"/sandboxes?metadata={quote('listed=y%20s')}")[1]]
    assert sorted(older) == sorted(box.id for box in boxes[1:])
    for box in boxes:
        e2b.ask("DELETE", f"/sandboxes/{box.id}")


def test_a_sandbox_ends_at_its_time_and_renewing_puts_it_off(e2b: E2bApi) -> None:
    box = e2b.create(timeout=0.3)
    assert e2b.ask("POST", f"/sandboxes/{box.id}/timeout", {"timeout": 60})[0] == 204
    time.sleep(0.5)  # the point is that it does not end in this time
    assert box.text("1") == "1"
    e2b.ask("POST", f"/sandboxes/{box.id}/timeout", {"timeout": 0})
    wait_for(lambda: box.ask("GET", "/health")[0] == 502, what="its end")
    assert e2b.ask("POST", f"/sandboxes/{box.id}/timeout", {"timeout": 60})[0] == 404
    status, said = e2b.ask("POST", "/v2/sandboxes", {"timeout": 10**8})
    assert (status, "above this server's" in said["message"]) == (400, True)


def test_at_its_time_a_sandbox_may_be_paused(e2b: E2bApi) -> None:
    box = e2b.create(timeout=60, autoPause=True)
    box.run("kept = 7")
    e2b.ask("POST", f"/sandboxes/{box.id}/timeout", {"timeout": 0})
    wait_for(lambda: e2b.ask("GET", f"/sandboxes/{box.id}")[1]["state"] == "paused", what="the pause")
    assert box.ask("GET", "/health")[0] == 502
    assert e2b.ask("POST", f"/sandboxes/{box.id}/connect", {"timeout": 60})[0] == 201
    assert box.text("kept") == "7"
    assert e2b.ask("POST", f"/v2/sandboxes/{box.id}/connect", {"timeout": 1})[0] == 200
    e2b.ask("DELETE", f"/sandboxes/{box.id}")


def test_a_request_resumes_a_paused_sandbox(e2b: E2bApi) -> None:
    box = e2b.create(autoResume={"enabled": True}, autoPause=True)
    box.run("kept = 8")
    assert e2b.ask("POST", f"/sandboxes/{box.id}/pause")[0] == 204
    assert e2b.ask("POST", f"/sandboxes/{box.id}/pause")[0] == 409
    assert box.text("kept") == "8"
    e2b.ask("DELETE", f"/sandboxes/{box.id}")


def test_a_fork_has_the_live_state_and_is_its_own(e2b: E2bApi, box: Box) -> None:
    box.run("x = [1]; open('f', 'w').write('before')")
    status, found = e2b.ask("POST", f"/sandboxes/{box.id}/fork", {"count": 2})
    assert status == 201
    one, two = (Box(e2b, each["sandbox"]) for each in found)
    assert one.text("x.append(2); x, open('f').read()") == "([1, 2], 'before')"
    assert (two.text("x"), box.text("x")) == ("[1]", "[1]")
    for fork in (one, two):
        e2b.ask("DELETE", f"/sandboxes/{fork.id}")
    assert e2b.ask("POST", f"/sandboxes/{box.id}/fork", {"count": 21})[0] == 400


def test_a_refused_fork_reports_the_reason(e2b: E2bApi, box: Box) -> None:
    box.run("import threading, time; threading.Thread(target=time.sleep, args=(60,), daemon=True).start()")
    _, (found,) = e2b.ask("POST", f"/sandboxes/{box.id}/fork", {})
    assert found["error"]["code"] == 409
    assert "thread" in found["error"]["message"].lower()


def test_a_snapshot_survives_its_sandbox(e2b: E2bApi) -> None:
    box = e2b.create()
    box.run("x = 1; open('f', 'w').write('then')")
    status, taken = e2b.ask("POST", f"/sandboxes/{box.id}/snapshots", {"name": "checked"})
    assert (status, taken["names"]) == (201, ["checked"])
    box.run("x = 2; open('f', 'w').write('now')")
    assert e2b.ask("GET", f"/snapshots?sandboxID={box.id}")[1] == [taken]
    assert box.id in [each["sandboxID"] for each in e2b.ask("GET", "/v2/sandboxes")[1]]
    assert taken["snapshotID"] not in [each["sandboxID"] for each in e2b.ask("GET", "/v2/sandboxes")[1]]
    e2b.ask("DELETE", f"/sandboxes/{box.id}")
    again = e2b.create(templateID=taken["snapshotID"], envVars={"FRESH": "1"})
    assert again.text("import os; x, open('f').read(), os.environ['FRESH']") == "(1, 'then', '1')"
    named = e2b.create(templateID="checked")
    assert named.text("x") == "1"
    assert e2b.ask("DELETE", f"/templates/{taken['snapshotID']}")[0] == 204
    assert e2b.ask("DELETE", f"/templates/{taken['snapshotID']}")[0] == 404
    assert again.text("x") == "1"
    for each in (again, named):
        e2b.ask("DELETE", f"/sandboxes/{each.id}")


def test_unsupported_operations_get_an_error(e2b: E2bApi, box: Box) -> None:
    assert e2b.ask("POST", "/v2/sandboxes", {"templateID": "nothing-of-mine"})[0] == 404
    assert e2b.ask("POST", "/v2/sandboxes", {"mcp": {"x": {}}})[0] == 501
    assert e2b.ask("PUT", f"/sandboxes/{box.id}/network", {})[0] == 409  # it began without rules
    assert e2b.ask("POST", "/v2/sandboxes", [1])[0] == 400
    assert e2b.raw("POST", "/v2/sandboxes", None, {"X-API-KEY": "test-token"})[0] == 201


def test_the_same_key_makes_one_sandbox(e2b: E2bApi) -> None:
    headers = {"X-API-KEY": "test-token", "Idempotency-Key": "one"}
    found = {e2b.ask("POST", "/v2/sandboxes", {}, headers)[1]["sandboxID"] for _ in range(2)}
    assert len(found) == 1


# --- the interpreter --------------------------------------------------------------------------


def test_output_of_a_cell_is_streamed_by_line(box: Box) -> None:
    lines = box.run("import sys\nprint('a')\nprint('b', file=sys.stderr)\n'text'")
    assert kinds(lines) == ["cell", "number_of_executions", "stdout", "stderr", "result", "end_of_execution"]
    assert [line.get("text") for line in lines[2:5]] == ["a\n", "b\n", "text"]
    lines = box.run("1/0")
    assert kinds(lines) == ["cell", "number_of_executions", "error", "end_of_execution"]
    assert (lines[2]["name"], "ZeroDivisionError" in lines[2]["traceback"]) == ("ZeroDivisionError", True)


def test_output_is_sent_immediately_and_keepalives_follow(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = http.client.HTTPConnection(box.api.served.url.removeprefix("http://"), timeout=30)
    code = "print('now'); import time; time.sleep(5.6)"
    connection.request("POST", "/execute", json.dumps({"code": code}), box.headers())
    began = time.monotonic()
    response = connection.getresponse()
    when = {}
    for line in response:
        when[json.loads(line)["type"]] = time.monotonic() - began
    connection.close()
    assert when["stdout"] < 4 < when["keepalive"] < when["end_of_execution"]


def test_a_disconnect_interrupts_the_code(box: Box) -> None:
    connection = http.client.HTTPConnection(box.api.served.url.removeprefix("http://"), timeout=30)
    code = "n = 0\nwhile True:\n    n += 1\n    if n == 1: print('on')\n    __import__('time').sleep(0.01)"
    connection.request("POST", "/execute", json.dumps({"code": code}), box.headers())
    response = connection.getresponse()
    while json.loads(response.readline())["type"] != "stdout":
        pass
    connection.close()
    assert int(box.text("n") or 0) >= 1


def test_cells_wait_for_each_other(box: Box) -> None:
    order: list[str] = []

    def run(name: str, code: str) -> None:
        box.run(code)
        order.append(name)

    first = threading.Thread(target=run, args=("first", "import time; time.sleep(1); x = 1"))
    first.start()
    wait_for(lambda: box.api.served.call("GET", f"/v1/sessions/{box.id}")["state"] == "busy", what="the first cell")
    assert box.text("x") == "1"
    order.append("second")
    first.join()
    assert order == ["first", "second"] or order == ["second", "first"]


def test_environment_variables_of_a_run_are_neither_kept_nor_journaled(box: Box) -> None:
    value = "sec'ret\"\n$(x)"
    assert box.text("import os; os.environ['ONE'] == " + repr(value), env_vars={"ONE": value}) == "True"
    wait_for(lambda: box.text("'ONE' in os.environ") == "False", what="their end")
    (journal,) = box.api.served.data_dir.glob(f"**/sessions/{box.id.replace('-', '_')}/journal.jsonl")
    assert 'ret\\"\\n$(x)"}' not in journal.read_text()
    assert box.ask("POST", "/execute", {"code": "1", "env_vars": {"a=b": "x"}})[0] == 400


def test_a_crash_reports_its_cause_and_keeps_the_variables(box: Box) -> None:
    box.run("kept = 1")
    lines = box.run("import os; os._exit(3)")
    error = next(line for line in lines if line["type"] == "error")
    assert error["name"] == "KernelDied"
    assert kinds(lines)[-1] == "end_of_execution"
    assert box.text("kept") == "1"


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("from IPython.display import HTML; HTML('<b>x</b>')", "html"),
        ("from IPython.display import Markdown; Markdown('*x*')", "markdown"),
        ("from IPython.display import SVG; SVG('<svg xmlns=\"http://www.w3.org/2000/svg\"/>')", "svg"),
        ("from IPython.display import Latex; Latex('$x$')", "latex"),
        ("from IPython.display import JSON; JSON({'a': 1})", "json"),
        ("from IPython.display import Javascript; Javascript('1')", "javascript"),
        ("from IPython.display import display; display({'application/pdf': 'JVBERi0='}, raw=True)", "pdf"),
        ("from IPython.display import display; display({'image/jpeg': '/9j/'}, raw=True)", "jpeg"),
        ("import pandas as pd; pd.DataFrame({'a': [1]})", "data"),
        ("import matplotlib.pyplot as plt; plt.plot([1, 2]); plt.show()", "png"),
        ("import matplotlib.pyplot as plt; plt.plot([1, 2]); plt.show()", "chart"),
    ],
)
def test_results_in_every_format(box: Box, code: str, name: str) -> None:
    (found,) = [line for line in box.run(code) if line["type"] == "result"]
    assert found[name]


def test_results_for_other_apis_have_no_e2b_data(served: Served) -> None:
    session = served.call("POST", "/v1/sessions", {})["id"]
    cell = served.call("POST", f"/v1/sessions/{session}/cells", {"code": "import pandas; pandas.DataFrame({'a': [1]})"})
    assert set(cell["outputs"][0]["data"]) == {"text/plain", "text/html", "text/vnd.kernelsvc.model"}
    served.call("DELETE", f"/v1/sessions/{session}")


def test_notebooks_of_sandboxes_are_valid(box: Box) -> None:
    import nbformat

    box.run("import pandas as pd, matplotlib.pyplot as plt\nplt.plot([1]); plt.show()\npd.DataFrame({'a': [1]})")
    notebook = box.api.served.call("GET", f"/v1/sessions/{box.id}/notebook")
    nbformat.validate(notebook)
    kept = [data for cell in notebook["cells"] for out in cell.get("outputs", []) for data in out.get("data", {})]
    assert "application/vnd.e2b.chart+json" in kept


# --- contexts -------------------------------------------------------------------------------------


def test_contexts_share_files_and_nothing_else(box: Box) -> None:
    box.run("x = 1; import os; os.mkdir('sub'); open('f', 'w').write('shared')")
    status, made = box.ask("POST", "/contexts", {"cwd": "/home/user/sub"})
    assert (status, made["cwd"], made["language"]) == (200, "/home/user/sub", "python")
    context = made["id"]
    code = "import os; ('x' in globals(), open('../f').read(), os.getcwd())"
    assert box.text(code, context_id=context) == "(False, 'shared', '/home/user/sub')"
    box.run("open('g', 'w').write('too')", context_id=context)
    assert box.text("open('sub/g').read()") == "too"
    assert [each["id"] for each in box.ask("GET", "/contexts")[1]] == [box.id, context]
    assert box.ask("POST", f"/contexts/{context}/restart")[0] == 200
    assert box.text("import os; os.getcwd()", context_id=context) == "/home/user/sub"
    assert box.ask("DELETE", f"/contexts/{context}")[0] == 204
    assert box.ask("DELETE", f"/contexts/{context}")[0] == 404
    status, said = box.ask("POST", "/execute", {"code": "1", "context_id": context})
    assert (status, context in said["message"]) == (404, True)
    assert box.ask("DELETE", f"/contexts/{box.id}")[0] == 400


def test_contexts_end_with_their_sandbox_and_are_none_themselves(e2b: E2bApi) -> None:
    box = e2b.create()
    context = box.ask("POST", "/contexts", {})[1]["id"]
    assert context not in [each["sandboxID"] for each in e2b.ask("GET", "/v2/sandboxes")[1]]
    assert e2b.ask("GET", f"/sandboxes/{context}")[0] == 404
    for headers in ({"X-API-KEY": "test-token"}, {"X-Access-Token": box.envd}):
        where = {"E2b-Sandbox-Id": context, "E2b-Sandbox-Port": "49999", **headers}
        assert e2b.ask("GET", "/health", None, where)[0] in (401, 502)
    e2b.ask("DELETE", f"/sandboxes/{box.id}")
    wait_for(lambda: e2b.served.call("GET", f"/v1/sessions/{context}")["state"] == "closed", what="its end")


def test_what_a_context_cannot_be(box: Box) -> None:
    assert box.ask("POST", "/contexts", {"cwd": "/nowhere"})[0] == 400
    assert len(box.ask("GET", "/contexts")[1]) == 1
    status, said = box.ask("POST", "/contexts", {"language": "cobol"})
    assert (status, "cobol" in said["message"]) == (501, True)
    assert box.ask("POST", "/execute", {"code": "1", "language": "cobol"})[0] == 501
    assert box.ask("POST", "/execute", {"code": "1", "language": "python", "context_id": box.id})[0] == 400
    assert box.text("1", language="python") == "1"
    for body in ({}, {"code": 1}, {"code": "1", "env_vars": {"A": 1}}):
        assert box.ask("POST", "/execute", body)[0] == 400


def test_a_sandbox_is_a_session_in_the_other_apis(box: Box) -> None:
    box.run("x = 41")
    cell = box.api.served.call("POST", f"/v1/sessions/{box.id}/cells", {"code": "x + 1"})
    assert cell["text"].strip() == "42"
    line = box.run("print('again')")[0]
    again = box.api.served.call("GET", f"/v1/sessions/{line['session']}/cells/{line['id']}")
    assert again["text"] == "again\n"


def test_a_sandbox_survives_its_server(short_tmp: Any) -> None:
    with serving(short_tmp / "restarted") as served:
        box = E2bApi(served).create(timeout=500, metadata={"k": "v"})
        box.run("x = 1; open('f', 'w').write('y')")
        context = box.ask("POST", "/contexts", {})[1]["id"]
        box.text("z = 2; z", context_id=context)
        paused = E2bApi(served).create()
        paused.run("x = 3")
        box.api.ask("POST", f"/sandboxes/{paused.id}/pause")
        assert served.call("GET", f"/v1/sessions/{paused.id}")["state"] == "paused", "saved before the answer"
        ends = box.api.ask("GET", f"/sandboxes/{box.id}")[1]["endAt"]
        served.kill()
        served.start()
        assert box.text("x, open('f').read()") == "(1, 'y')"
        assert box.text("z", context_id=context) == "2"
        shown = box.api.ask("GET", f"/sandboxes/{box.id}")[1]
        assert (shown["metadata"], shown["endAt"][:18]) == ({"k": "v"}, ends[:18])
        assert paused.ask("GET", "/health")[0] == 502
        assert box.api.ask("GET", f"/sandboxes/{paused.id}")[1]["state"] == "paused"
        box.api.ask("POST", f"/sandboxes/{paused.id}/connect", {})
        assert paused.text("x") == "3"


def test_another_language_is_a_kernel_that_is_installed(short_tmp: Any) -> None:
    spec = short_tmp / "jupyter" / "kernels" / "other"
    spec.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec.joinpath("kernel.json").write_text(json.dumps({"argv": command, "display_name": "S", "language": "snake"}))
    with serving(short_tmp / "languages", env={"JUPYTER_PATH": str(short_tmp / "jupyter")}) as served:
        box = E2bApi(served).create()
        box.run("open('f', 'w').write('shared')")
        assert box.text("x = open('f').read(); x", language="snake") == "shared"
        assert box.text("x", language="snake") == "shared"
        languages = [each["language"] for each in box.ask("GET", "/contexts")[1]]
        assert languages == ["python", "snake"]
        assert box.ask("POST", "/execute", {"code": "1", "language": "snake", "env_vars": {"A": "1"}})[0] == 501


def test_sandboxes_of_one_family_are_isolated(e2b: E2bApi) -> None:
    box = e2b.create()
    box.run("open('f', 'w').write('main')")
    fork = Box(e2b, e2b.ask("POST", f"/sandboxes/{box.id}/fork", {})[1][0]["sandbox"])
    fork.run("open('f', 'w').write('fork')")
    contexts = [each.ask("POST", "/contexts", {})[1]["id"] for each in (box, fork)]
    e2b.served.call("POST", f"/v1/sessions/{box.id}/restart", {})
    trying = (
        "import glob\ndef wrote(path):\n    try:\n        open(path, 'a').close()\n        return path.split('/')[-2]\n"
        "    except OSError:\n        return '-'\n"
        "[wrote(path) for path in ['/home/user/f', *glob.glob('/home/user.d/*/f')]]"
    )
    assert [box.text(trying), box.text(trying, context_id=contexts[0])] == ["['user', '-']"] * 2
    assert [fork.text(trying), fork.text(trying, context_id=contexts[1])] == [
        f"['-', '{fork.id.replace('-', '_')}']"
    ] * 2
    for each in (box, fork):
        e2b.ask("DELETE", f"/sandboxes/{each.id}")


# --- what E2B's clients compare or wait for -----------------------------------------------------


@pytest.mark.parametrize(
    ("port", "path", "body"),
    [
        (49999, "/execute", b'{"code": "import time; print(1, flush=True); time.sleep(300)"}'),
        (49983, "/process.Process/Start", connect.envelope({"process": {"cmd": "/bin/sleep", "args": ["300"]}})),
    ],
)
def test_a_kill_breaks_off_the_streams_of_the_sandbox(e2b: E2bApi, box: Box, port: int, path: str, body: bytes) -> None:
    """Clients take a stream without its end and a 502 of /health as "the sandbox was killed"."""
    connection = http.client.HTTPConnection(e2b.served.url.removeprefix("http://"), timeout=60)
    kind = "application/json" if port == 49999 else connect.STREAM
    connection.request("POST", path, body, box.headers(port, **{"Content-Type": kind}))
    response = connection.getresponse()
    assert response.read(8)
    assert e2b.ask("DELETE", f"/sandboxes/{box.id}")[0] == 204
    with pytest.raises(http.client.IncompleteRead):
        response.read()
    connection.close()
    assert box.ask("GET", "/health", port=port)[0] == 502


def test_the_end_of_a_sandbox_is_one_moment(e2b: E2bApi, box: Box) -> None:
    ends = {e2b.ask("GET", f"/sandboxes/{box.id}")[1]["endAt"] for _ in range(50)}
    assert len(ends) == 1


def test_a_template_can_be_asked_for(e2b: E2bApi) -> None:
    assert e2b.ask("GET", "/templates/aliases/base")[0] == 200
    assert e2b.ask("GET", "/templates/aliases/python3")[1]["templateID"] == "python3"
    assert e2b.ask("GET", "/templates/aliases/nothing")[0] == 404


@pytest.mark.parametrize(
    ("method", "path", "step"),
    [
        ("GET", "/templates", "templates"),
        ("POST", "/templates/tags", "Template.build"),
        ("POST", "/secrets", "envs"),
        ("DELETE", "/secrets/models", "operator"),
        ("GET", "/v2/sandboxes/s_1/logs", "/v1/sessions"),
    ],
)
def test_a_feature_that_is_not_here_says_what_is(e2b: E2bApi, method: str, path: str, step: str) -> None:
    status, said = e2b.ask(method, path, {} if method == "POST" else None)
    assert status == 501
    assert step in said["message"]


def test_public_traffic_may_be_refused(e2b: E2bApi) -> None:
    made = e2b.create(network={"allowPublicTraffic": False})
    assert made.text("1") == "1"
    assert e2b.ask("DELETE", f"/sandboxes/{made.id}")[0] == 204


@pytest.mark.parametrize("id", ["s-0123456789abcdef", None])
def test_a_port_of_a_sandbox_s_own_server_gets_e2bs_502(e2b: E2bApi, box: Box, id: str | None) -> None:
    where = {"Host": f"8080-{id or box.id}.sandboxes.example.org"}
    status, said = e2b.ask("GET", "/index.html", None, where | {"E2B-Traffic-Access-Token": box.traffic})
    assert status == (401 if id else 502)
    assert id or "port is not open" in said["message"]
    assert e2b.ask("GET", "/index.html", None, where)[0] == 401


def test_a_host_name_alone_names_the_sandbox(e2b: E2bApi, box: Box) -> None:
    """With E2B_DOMAIN clients send no headers that name the sandbox."""
    host = f"49999-{box.id}.sandboxes.example.org"
    status, text = e2b.raw("POST", "/execute", {"code": "6 * 7"}, {"Host": host, "X-Access-Token": box.envd})
    assert status == 200
    assert '"42"' in text


def test_both_forms_of_an_id_name_the_sandbox(e2b: E2bApi, box: Box) -> None:
    # A host name (RFC 952) has no underscore. The id of a node's session has the node's six digits, too.
    assert re.fullmatch("s-(?:[0-9a-f]{6})?[0-9a-f]{16}", box.id)
    session = box.id.replace("-", "_")
    for id in (box.id, session):
        host = {"Host": f"49999-{id.upper()}.sandboxes.example.org", "X-Access-Token": box.envd}
        header = {"E2b-Sandbox-Id": id, "E2b-Sandbox-Port": "49999", "X-Access-Token": box.envd}
        for headers in (host, header):
            assert '"42"' in e2b.raw("POST", "/execute", {"code": "6 * 7"}, headers)[1]
        assert e2b.ask("GET", f"/sandboxes/{id}")[1]["sandboxID"] == box.id
        assert e2b.served.call("GET", f"/v1/sessions/{id}")["id"] == session


def test_pillow_displays_an_image_that_it_saves_or_shows(box: Box) -> None:
    made = "from PIL import Image\nimage = Image.new('RGB', (2, 2))\n"
    for code, results in (("image.save('x.png')", 1), ("image.show()", 1), ("image.save(open('y.png', 'wb'))", 0)):
        lines = box.run(made + code)
        assert [line["type"] for line in lines if line["type"] == "error"] == [], lines
        assert [bool(line.get("png")) for line in lines if line["type"] == "result"] == [True] * results, code
    saved = box.run("import matplotlib.pyplot as plt; plt.plot([1, 2]); plt.savefig('z.png'); plt.show()")
    assert len([line for line in saved if line["type"] == "result" and line.get("png")]) == 1
