"""Each route of each API, called by each kind of caller: no caller reaches an operation that its own token lacks.

A secret that was derived from a token counts as that token. The table is checked against the application's routes,
so that a new route without a row fails here.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx2
import pytest
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client
from served import Served, source_address
from tornado.web import Application, RequestHandler
from websockets.sync.client import connect

from kernelsvc.model.answers.model_settings import ModelSettings
from kernelsvc.protocol import e2b, methods
from kernelsvc.server.e2b.handler import SandboxHandler
from kernelsvc.server.e2b.templates import TemplateAliasHandler
from kernelsvc.server.e2b.unsupported import UnsupportedHandler
from kernelsvc.server.native import routes
from kernelsvc.server.ports.target import HostForm
from kernelsvc.settings import Settings
from kernelsvc.testing import InProcessServer
from kernelsvc.tools import TOOLS

#: Token to principal and scope. The token "leaving" is removed before the last test.
TOKENS = {
    "alice-run": ("alice", "run"),
    "alice-read": ("alice", "read"),
    "leaving": ("alice", "run"),
    "bob-run": ("bob", "run"),
    "bob-read": ("bob", "read"),
    "carol-audit": ("carol", "audit"),
}
#: A model whose server does not exist.
MODELS = '{"m": {"url": "http://127.0.0.1:9/v1"}}'
REFUSED = {401, 403, 404, 502}
S, CELL = "{session}", "nothing"
V = "/volumecontent/vol-local-YS93"


@dataclass(frozen=True, eq=False)
class Row:
    """One operation.

    Attributes:
        verb: the HTTP method.
        path: with ``{session}`` in place of the session's id.
        scope: what a caller's token must allow; None if the route is open to all.
        body: one that the route accepts.
        sandbox: whether the request goes to a sandbox, which its headers name.
    """

    verb: str
    path: str
    scope: str | None
    body: Any = None
    sandbox: bool = False


BODIES: dict[str, Any] = {
    "call": {"code": "open('harm', 'w')"},
    "session.execute": {"code": "open('harm', 'w')"},
    "session.input": {"text": "x"},
    "session.complete": {"code": "x"},
    "session.inspect": {"code": "x"},
    "files.put": "x",
    "workspace.files.put": "x",
    "workspace.set": {"name": "harm"},
    "session.decide": {"calls": ["k.1"], "decision": "approve"},
    "session.decide_cells": {"cells": ["c_none"], "decision": "approve"},
    "tool.return": {"status": "ok"},
    "tool.progress": {"progress": 1},
    "session.share_port": {"port": 3000},
    "program.start": {"argv": ["touch", "harm"]},
    "program.resize": {"rows": 1, "columns": 1},
}


def _native_rows() -> list[Row]:
    values = {"cell": CELL, "call": "k.1", "checkpoint": "c_none", "path": "harm", "owner": "alice", "name": "harm"}
    values["port"] = "3000"
    found = [
        Row(
            route.verb,
            re.sub(r"\{(\w+)\}", lambda m: values.get(m[1], S), route.path),
            route.scope,
            BODIES.get(route.id, {} if route.verb == "POST" else None),
        )
        for route in routes.ROUTES
    ]
    # What their handlers have beyond the table.
    found += [Row("HEAD", "/healthz", None), Row("HEAD", "/readyz", None)]
    for listing in (f"/v1/sessions/{S}/files/", "/v1/workspaces/alice/harm/files/"):
        found += [Row("HEAD", listing, "read"), Row("PUT", listing, "run", "x"), Row("DELETE", listing, "run")]
    for verb in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"):
        body = "x" if verb in ("POST", "PUT", "PATCH") else None
        found += [Row(verb, path, "run", body) for path in (f"/v1/sessions/{S}/ports/3000/", "/v1/ports/ticket/")]
    return found


def _sandbox_rows() -> list[Row]:
    code = {"code": "open('harm', 'w')"}
    start = {"process": {"cmd": "/bin/touch", "args": ["harm"]}}
    process = {"process": {"pid": 1}}
    rows = [
        Row("POST", "/execute", "run", code),
        Row("GET", "/contexts", "run"),
        Row("POST", "/contexts", "run", {}),
        Row("DELETE", f"/contexts/{S}", "run"),
        Row("POST", f"/contexts/{S}/restart", "run", {}),
        Row("GET", "/files?path=harm", "run"),
        Row("HEAD", "/files?path=harm", "run"),
        Row("POST", "/files?path=harm", "run", "x"),
        Row("GET", "/health", "run"),
    ]
    for name in ("Start", "Connect", "List", "SendInput", "StreamInput", "SendSignal", "CloseStdin", "Update"):
        rows.append(Row("POST", f"/process.Process/{name}", "run", start if name == "Start" else process))
    for name in ("Stat", "ListDir", "MakeDir", "Remove", "CreateWatcher", "WatchDir"):
        rows.append(Row("POST", f"/filesystem.Filesystem/{name}", "run", {"path": "harm"}))
    rows.append(Row("POST", "/filesystem.Filesystem/Move", "run", {"source": "a", "destination": "harm"}))
    for name in ("GetWatcherEvents", "RemoveWatcher"):
        rows.append(Row("POST", f"/filesystem.Filesystem/{name}", "run", {"watcherId": "w"}))
    # Inherited from the handler of the native API's files.
    rows += [Row("PUT", "/files?path=harm", "run", "x"), Row("DELETE", "/files?path=harm", "run")]
    return [replace(row, sandbox=True) for row in rows]


ROWS = [
    *_native_rows(),
    # Jupyter
    Row("GET", "/api", None),
    Row("GET", "/api/kernelspecs", "read"),
    Row("GET", "/api/kernelspecs/python3", "read"),
    Row("GET", "/kernelspecs/python3/kernel.json", "read"),
    Row("GET", "/api/kernels", "read"),
    Row("POST", "/api/kernels", "run", {}),
    Row("GET", f"/api/kernels/{S}", "read"),
    Row("DELETE", f"/api/kernels/{S}", "run"),
    Row("POST", f"/api/kernels/{S}/interrupt", "run"),
    Row("POST", f"/api/kernels/{S}/restart", "run"),
    Row("GET", "/api/sessions", "read"),
    Row("POST", "/api/sessions", "run", {"path": "x.ipynb", "kernel": {"name": "python3"}}),
    Row("GET", f"/api/sessions/{S}", "read"),
    Row("DELETE", f"/api/sessions/{S}", "run"),
    # E2B's control plane
    Row("GET", "/sandboxes", "read"),
    Row("POST", "/sandboxes", "run", {}),
    Row("GET", "/sandboxes/metrics", "read"),
    Row("GET", f"/sandboxes/{S}", "read"),
    Row("DELETE", f"/sandboxes/{S}", "run"),
    Row("POST", f"/sandboxes/{S}/timeout", "run", {"timeout": 60}),
    Row("POST", f"/sandboxes/{S}/refreshes", "run", {}),
    Row("POST", f"/sandboxes/{S}/pause", "run", {}),
    Row("POST", f"/sandboxes/{S}/connect", "run", {}),
    Row("POST", f"/sandboxes/{S}/resume", "run", {}),
    Row("POST", f"/sandboxes/{S}/fork", "run", {}),
    Row("POST", f"/sandboxes/{S}/snapshots", "run", {}),
    Row("GET", f"/sandboxes/{S}/metrics", "read"),
    Row("PUT", f"/sandboxes/{S}/network", "run", {}),
    Row("GET", "/snapshots", "read"),
    Row("DELETE", f"/templates/{S}", "run"),
    Row("POST", "/v3/templates", "run", {"name": "harm"}),
    Row("GET", "/templates/harm/files/0a", "run"),
    Row("POST", "/v2/templates/harm/builds/b", "run", {}),
    Row("GET", "/templates/harm/builds/b/status", "read"),
    *(Row(verb, "/templates/harm/uploads/0a", "run", "x") for verb in ("GET", "HEAD", "PUT", "DELETE")),
    Row("GET", "/secrets", "read"),
    Row("GET", "/secrets/models", "read"),
    Row("POST", "/secrets", "read", {}),
    *(Row(verb, "/secrets/models", "read", "{}") for verb in ("POST", "DELETE")),
    Row("GET", "/volumes", "read"),
    Row("POST", "/volumes", "run", {"name": "harm"}),
    Row("GET", "/volumes/vol-local-YS93", "run"),
    Row("DELETE", "/volumes/vol-local-YS93", "run"),
    *(Row(verb, f"{V}/path?path=/a", "run", "{}") for verb in ("GET", "PATCH", "DELETE")),
    *(Row(verb, f"{V}/dir?path=/a", "run", "{}") for verb in ("GET", "POST")),
    *(Row(verb, f"{V}/file?path=/a", "run", "x") for verb in ("GET", "HEAD", "PUT", "DELETE")),
    *_sandbox_rows(),
    # SandboxAI and SandboxFusion
    Row("GET", "/v1/healthz", None),
    Row("POST", "/v1/spaces/a/sandboxes", "run", {"name": "b", "spec": {}}),
    Row("GET", "/v1/spaces/a/sandboxes/b", "read"),
    Row("DELETE", "/v1/spaces/a/sandboxes/b", "run"),
    Row("POST", "/v1/spaces/a/sandboxes/b/tools:run_ipython_cell", "run", {"code": "1"}),
    Row("POST", "/v1/spaces/a/sandboxes/b/tools:run_shell_command", "run", {"command": "true"}),
    Row("POST", "/run_code", "run", {"code": "1", "language": "python"}),
    Row("POST", "/run_jupyter", "run", {"cells": ["1"]}),
    # OpenAI's API over models, which exists only with a model
    Row("POST", "/v1/responses", "run", {"model": "m", "input": "x"}),
    Row("GET", f"/v1/responses/{S}", "read"),
    Row("POST", f"/v1/responses/{S}", "run", {}),
    Row("DELETE", f"/v1/responses/{S}", "run"),
    Row("POST", f"/v1/responses/{S}/cancel", "run", {}),
    Row("GET", f"/v1/responses/{S}/input_items", "read"),
    Row("POST", "/v1/chat/completions", "run", {"model": "m", "messages": []}),
    Row("GET", "/v1/containers", "read"),
    Row("POST", "/v1/containers", "run", {"name": "harm"}),
    Row("GET", f"/v1/containers/{S}", "read"),
    Row("DELETE", f"/v1/containers/{S}", "run"),
    Row("GET", f"/v1/containers/{S}/files", "read"),
    Row("POST", f"/v1/containers/{S}/files", "run", {"file_id": "harm"}),
    Row("GET", f"/v1/containers/{S}/files/cfile_pYQ", "read"),
    Row("DELETE", f"/v1/containers/{S}/files/cfile_pYQ", "run"),
    Row("GET", f"/v1/containers/{S}/files/cfile_pYQ/content", "read"),
    Row("GET", "/v1/files", "read"),
    Row("POST", "/v1/files", "run", {}),
    Row("GET", "/v1/files/file-1", "read"),
    Row("DELETE", "/v1/files/file-1", "run"),
    Row("GET", "/v1/files/file-1/content", "read"),
    Row("POST", "/v1/conversations", "run", {}),
    Row("GET", "/v1/conversations/conv_1", "read"),
    Row("POST", "/v1/conversations/conv_1", "run", {"metadata": {}}),
    Row("DELETE", "/v1/conversations/conv_1", "run"),
    Row("GET", "/v1/conversations/conv_1/items", "read"),
    Row("POST", "/v1/conversations/conv_1/items", "run", {"items": []}),
    Row("GET", "/v1/conversations/conv_1/items/msg_1", "read"),
    Row("DELETE", "/v1/conversations/conv_1/items/msg_1", "run"),
    Row("POST", "/v1/messages", "run", {"model": "m", "max_tokens": 1, "messages": []}),
    Row("GET", "/v1/models", "read"),
    Row("GET", "/v1/models/m", "read"),
    # The console's page, which everybody may load
    Row("GET", "/console", None),
    *(Row(verb, path, None) for verb in ("GET", "HEAD") for path in ("/console/", "/console/app.js")),
    Row("GET", "/console/frame/still", None),
    Row("POST", "/console/tickets", "read", {}),
    Row("POST", "/console/tickets/redeem", None, {"ticket": "unknown"}),
    Row("GET", "/console/me", "read"),
    # MCP and WebSockets are tried message by message below
    Row("GET", "/mcp", "read"),
    Row("POST", "/mcp", "read", {}),
    Row("DELETE", "/mcp", "read"),
    Row("GET", "/python/mcp", "read"),
    Row("POST", "/python/mcp", "read", {}),
    Row("DELETE", "/python/mcp", "read"),
    Row("GET", "/v1/ws", "read"),
    Row("GET", f"/api/kernels/{S}/channels", "read"),
]
IDS = [f"{row.verb} {row.path}" for row in ROWS]


class Lab(NamedTuple):
    """A server with five tokens, and a sandbox of alice's with the secrets that two of her tokens got."""

    served: Served
    session: str
    kept: dict[str, Any]
    left: dict[str, Any]

    def ask(self, row: Row, headers: dict[str, str]) -> tuple[int, str]:
        """Status and body of the answer."""
        where = {"E2b-Sandbox-Id": self.session} if row.sandbox else {}
        if row.path.endswith(("/ws", "/channels")):
            where = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
            where["Sec-WebSocket-Key"] = "AAAAAAAAAAAAAAAAAAAAAA=="
        body = row.body if isinstance(row.body, str | None) else json.dumps(row.body)
        connection = http.client.HTTPConnection(
            self.served.url.removeprefix("http://"), timeout=60, source_address=source_address()
        )
        try:
            connection.request(row.verb, row.path.replace(S, self.session), body, headers | where)
            answer = connection.getresponse()
            return answer.status, answer.read().decode("utf-8", "replace")
        finally:
            connection.close()

    def signed(self, row: Row, secret: str) -> Row:
        """The same row, with a signature in its path that was made with this secret."""
        operation = "write" if row.verb == "POST" else "read"
        signature = e2b.signature("harm", operation, "", secret)  # type: ignore[arg-type]
        return replace(row, path=f"{row.path}&signature={quote(signature)}")

    def state(self) -> dict[str, Any]:
        """What an operation with the scope ``run`` would change."""
        found = json.loads(self.ask(Row("GET", f"/v1/sessions/{S}", "read"), bearer("alice-read"))[1])
        files = json.loads(self.ask(Row("GET", f"/v1/sessions/{S}/files/", "read"), bearer("alice-read"))[1])
        everyone = self.ask(Row("GET", "/v1/sessions?principal=*", "read"), bearer("carol-audit"))[1]
        return {
            "state": found["state"],
            "cells": found["execution_count"],
            "kernel": found["kernel"]["pid"],
            "ends": found["expires_at"][:19],  # computed from a monotonic clock: the microseconds vary
            "files": files,
            "sessions": sorted(each["id"] for each in json.loads(everyone)["sessions"]),
        }


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def env(tokens: dict[str, tuple[str, str]]) -> dict[str, str]:
    records = [
        {"name": name, "sha256": hashlib.sha256(token.encode()).hexdigest(), "scopes": [scope]}
        for token, (name, scope) in tokens.items()
    ]
    return {"KERNELSVC_TOKENS": json.dumps(records)}


@pytest.fixture(scope="module")
def lab(short_tmp: Path) -> Iterator[Lab]:
    served = Served(short_tmp / "scopes", env={**env(TOKENS), "KERNELSVC_MODELS": MODELS})
    served.start()
    try:
        made = json.loads(Lab(served, "", {}, {}).ask(Row("POST", "/sandboxes", "run", {}), bearer("alice-run"))[1])
        lab = Lab(served, made["sandboxID"], made, {})
        connected = json.loads(lab.ask(Row("POST", f"/sandboxes/{S}/connect", "run", {}), bearer("leaving"))[1])
        yield lab._replace(left=connected)
    finally:
        served.stop()


async def test_the_table_names_every_route_and_method(tmp_path: Path) -> None:
    settings = Settings(port=0, models={"m": ModelSettings(url="http://127.0.0.1:9/v1")})
    async with InProcessServer(settings, data_dir=tmp_path) as server:
        app: Application = server.app
    lacking = []
    unset = RequestHandler._unimplemented_method
    for rule in app.wildcard_router.rules:
        handler, more = rule.target, rule.target_kwargs
        if isinstance(rule.matcher, HostForm):
            continue  # the same handler as for the paths of ports
        if issubclass(handler, UnsupportedHandler | TemplateAliasHandler):
            continue  # does nothing; test_e2b.py tries all of these without a key
        verbs = set(more["routes"]) if "routes" in more else set()
        for verb in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE") if not verbs else sorted(verbs):
            if not verbs and getattr(handler, verb.lower()) is unset:
                continue
            paths = {row: row.path.partition("?")[0].replace(S, "s_1") for row in ROWS if row.verb == verb}
            rows = [row for row, path in paths.items() if rule.matcher.regex.match(path)]
            if not rows:
                lacking.append(f"{verb} {rule.matcher.regex.pattern}")
            if issubclass(handler, SandboxHandler):
                assert all(row.sandbox for row in rows), rule
    assert not lacking, "\n".join(lacking)


def callers(lab: Lab, row: Row) -> Iterator[tuple[str, Row, dict[str, str], set[str]]]:
    """Name, request, headers, and the scopes of the token behind them on the session of ``lab``."""
    yield "none", row, {}, set()
    yield "wrong", row, bearer("wrong"), set()
    for token, (name, scope) in TOKENS.items():
        scopes = {"run", "read"} if scope == "run" else {"read"}
        foreign = name != "alice" and scope != "audit" and (S in row.path or row.sandbox)
        if foreign and row.verb == "DELETE" and row.path.endswith("/files/"):
            continue  # 400 for any session: the directory itself can't be deleted
        for header in (bearer(token), {"X-API-KEY": token}):
            if row.sandbox or "Authorization" in header:
                yield f"{token} by {next(iter(header))}", row, header, set() if foreign else scopes
    if row.sandbox:
        for name in ("X-Access-Token", "E2B-Traffic-Access-Token"):
            yield f"a token as {name}", row, {name: "alice-read"}, set()
        if row.path.startswith("/files?"):
            yield "signed with a token", lab.signed(row, "alice-read"), {}, set()


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_no_caller_reaches_what_its_token_lacks(lab: Lab, row: Row) -> None:
    before = lab.state()
    for name, request, headers, scopes in callers(lab, row):
        if row.scope is not None and row.scope not in scopes:
            status, said = lab.ask(request, headers)
            assert status in REFUSED, (name, status, said)
    assert lab.state() == before


@pytest.mark.parametrize("row", [row for row in ROWS if row.verb == "GET"], ids=lambda row: row.path)
def test_what_a_read_token_is_shown_opens_nothing(lab: Lab, row: Row) -> None:
    if row.path.endswith(("/events", "/channels", "/ws", "/mcp")) or row.scope != "read":
        return  # a stream, or not for a read token
    said = lab.ask(row, bearer("alice-read"))[1]
    secrets = {lab.kept["envdAccessToken"], lab.kept["trafficAccessToken"], *lab.left.values()} - {None}
    shown = {each for each in secrets if len(str(each)) == 64 and each in said}
    assert not shown
    execute = Row("POST", "/execute", "run", {"code": "1"}, sandbox=True)
    upload = Row("POST", "/files?path=harm", "run", "x", sandbox=True)
    for found in set(re.findall(r"[0-9a-f]{64}", said)):
        for header in ("X-Access-Token", "E2B-Traffic-Access-Token"):
            assert lab.ask(execute, {header: found})[0] == 401
        assert lab.ask(lab.signed(upload, found), {})[0] == 401


def test_an_own_run_token_and_its_secret_reach_the_sandbox(lab: Lab) -> None:
    """The positive control: the refusals above are not those of a closed API."""
    code = Row("POST", "/execute", "run", {"code": "6 * 7"}, sandbox=True)
    stat = Row("GET", "/health", "run", sandbox=True)
    for headers in (
        bearer("alice-run"),
        {"X-Access-Token": lab.kept["envdAccessToken"]},
        {"E2B-Traffic-Access-Token": lab.kept["trafficAccessToken"]},
        {"X-Access-Token": lab.left["envdAccessToken"]},
    ):
        status, said = lab.ask(code, headers)
        assert status == 200
        assert "42" in said
    assert lab.ask(stat, {"X-Access-Token": lab.kept["envdAccessToken"]})[0] == 204
    assert lab.kept["envdAccessToken"] != lab.left["envdAccessToken"]
    shown = json.loads(lab.ask(Row("GET", f"/sandboxes/{S}", "read"), bearer("alice-run"))[1])
    assert shown["envdAccessToken"] == lab.kept["envdAccessToken"], "the same token gets the same secret again"
    assert "envdAccessToken" not in json.loads(lab.ask(Row("GET", f"/sandboxes/{S}", "read"), bearer("alice-read"))[1])


def test_an_auditor_reads_the_sessions_of_others_and_uses_none(lab: Lab) -> None:
    """What the table above refuses to an auditor is not all that there is."""
    listed = lab.ask(Row("GET", "/v1/sessions?principal=*", "read"), bearer("carol-audit"))
    native = lab.session.replace("-", "_")  # E2B's clients see ids that work in host names
    assert native in [each["id"] for each in json.loads(listed[1])["sessions"]]
    assert (
        json.loads(lab.ask(Row("GET", f"/v1/sessions/{S}", "read"), bearer("carol-audit"))[1])["principal"] == "alice"
    )
    assert lab.ask(Row("GET", f"/v1/sessions/{S}/notebook", "read"), bearer("carol-audit"))[0] == 200
    own = json.loads(lab.ask(Row("GET", "/v1/sessions", "read"), bearer("carol-audit"))[1])
    assert own["sessions"] == []
    for whose in ("*", "alice"):
        assert lab.ask(Row("GET", f"/v1/sessions?principal={whose}", "read"), bearer("bob-run"))[0] == 403


@pytest.mark.timeout(300)  # the server answers wrong tokens more and more slowly
def test_a_secret_opens_no_route_but_those_of_its_sandbox(lab: Lab) -> None:
    before = lab.state()
    for row in ROWS:
        if row.scope is not None and not row.sandbox:
            for headers in (bearer(lab.kept["envdAccessToken"]), {"X-API-KEY": lab.kept["envdAccessToken"]}):
                # An address of a port is a secret of its own, and this one does not exist.
                expected = 404 if row.path.startswith("/v1/ports/") else 401
                assert lab.ask(row, headers)[0] == expected, row
    assert lab.state() == before


PARAMS: dict[str, dict[str, Any]] = {
    "program.start": {"argv": ["touch", "harm"]},
    "program.read": {"program": "p"},
    "program.write": {"program": "p"},
    "program.signal": {"program": "p"},
    "program.resize": {"program": "p", "rows": 1, "columns": 1},
    "workspace.set": {"name": "harm"},
    "workspace.remove": {"name": "harm"},
    "session.share_port": {"port": 3000},
    "session.unshare_port": {"port": 3000},
    "session.execute": {"code": "open('harm', 'w')"},
    "session.batch": {"cells": [{"code": "1"}]},
    "session.input": {"cell": CELL, "text": "x"},
    "session.complete": {"code": "x"},
    "session.inspect": {"code": "x"},
    "session.value": {"name": "x"},
    "tools.offer": {"provider": {"id": "p", "instance": "i"}, "offers": []},
    "tool.return": {"call": "k.1", "status": "ok"},
    "tool.progress": {"call": "k.1", "progress": 1.0},
}


@pytest.mark.parametrize("name", [name for name, row in methods.METHODS.items() if row.scope == "run"])
def test_no_websocket_method_goes_beyond_a_read_token(lab: Lab, name: str) -> None:
    before = lab.state()
    with connect(lab.served.url.replace("http", "ws") + "/v1/ws?token=alice-read") as socket:
        alone = name in ("call", "session.create") or name.startswith("workspace.")
        where = {} if alone else {"session": lab.session}
        params = where | PARAMS.get(name, {"code": "1"} if name == "call" else {})
        socket.send(json.dumps({"jsonrpc": "2.0", "id": 1, "method": name, "params": params}))
        assert json.loads(socket.recv(30))["error"]["data"]["code"] == "forbidden"
    assert lab.state() == before


CHANNELS = {
    "execute_request": ("shell", {"code": "open('harm', 'w')"}),
    "complete_request": ("shell", {"code": "x", "cursor_pos": 1}),
    "comm_open": ("shell", {"comm_id": "c", "target_name": "t", "data": {}}),
    "interrupt_request": ("control", {}),
    "shutdown_request": ("control", {"restart": False}),
}


@pytest.mark.parametrize("kind", CHANNELS)
def test_no_jupyter_message_goes_beyond_a_read_token(lab: Lab, kind: str) -> None:
    before = lab.state()
    channel, content = CHANNELS[kind]
    header = {"msg_id": "m1", "msg_type": kind, "session": "s", "username": "u", "date": "", "version": "5.3"}
    message = {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": channel}
    url = f"{lab.served.url.replace('http', 'ws')}/api/kernels/{lab.session}/channels?token=alice-read"
    with connect(url) as socket:
        socket.send(json.dumps(message))
        # The server handles a connection's messages in order: an answer to a later request means that it is done.
        socket.send(json.dumps(message | {"header": header | {"msg_id": "m2", "msg_type": "history_request"}}))
        for _ in range(20):
            if json.loads(socket.recv(30)).get("parent_header", {}).get("msg_id") == "m2":
                break
    assert lab.state() == before


#: ``export_notebook`` needs the scope ``read`` alone.
RUN_TOOLS = [tool.name for tool in TOOLS.values() if not tool.reads and tool.name != "export_notebook"]


@pytest.mark.parametrize("tool", RUN_TOOLS)
async def test_no_mcp_tool_goes_beyond_a_read_token(lab: Lab, tool: str) -> None:
    before = lab.state()
    arguments = {"session": lab.session, "code": "1", "path": "harm", "text": "x", "name": "x", "cell": CELL}
    wanted = {name: value for name, value in arguments.items() if name in TOOLS[tool].arguments.__struct_fields__}
    if tool == "sessions":  # without this it lists the sessions
        wanted = {"close": lab.session}
    async with (
        httpx2.AsyncClient(headers=bearer("alice-read"), timeout=60) as web,
        Client(streamable_http_client(lab.served.url + "/mcp", http_client=web)) as client,
    ):
        try:
            outcome: Any = await client.call_tool(tool, wanted)
        except MCPError as error:
            outcome = SimpleNamespace(is_error=True, content=[SimpleNamespace(text=str(error))])
    assert outcome.is_error, outcome
    assert "run" in "".join(part.text for part in outcome.content), outcome
    assert lab.state() == before


def test_a_token_that_was_removed_takes_its_secrets_with_it(lab: Lab) -> None:
    """The last test here: it restarts the server, whose sessions go on."""
    lab.served.kill()
    lab.served.env |= env({token: who for token, who in TOKENS.items() if token != "leaving"})
    lab.served.start()
    code = Row("POST", "/execute", "run", {"code": "6 * 7"}, sandbox=True)
    assert lab.ask(code, {"X-Access-Token": lab.kept["envdAccessToken"]})[0] == 200, (
        "another token's secret still holds"
    )
    before = lab.state()
    for row in ROWS:
        if not row.sandbox:
            continue
        requests = [
            (row, {"X-Access-Token": lab.left["envdAccessToken"]}),
            (row, {"E2B-Traffic-Access-Token": lab.left["trafficAccessToken"]}),
            (row, bearer("leaving")),
        ]
        if row.path.startswith("/files?"):
            requests.append((lab.signed(row, lab.left["envdAccessToken"]), {}))
        for request, headers in requests:
            assert lab.ask(request, headers)[0] == 401, (row, headers)
    assert lab.state() == before
