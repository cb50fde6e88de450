"""The table of a front: every real route has a row, and each row finds the right node."""

from __future__ import annotations

import re
from typing import Any
from unittest.mock import MagicMock

import pytest
from tornado.web import RequestHandler

from kernelsvc.front import routes
from kernelsvc.front.routes import Action, Wanted, find, sandbox_in, session_in, wanted
from kernelsvc.model.answers.model_settings import ModelSettings
from kernelsvc.model.cluster import ids
from kernelsvc.protocol import jupyter
from kernelsvc.server.app import make_app
from kernelsvc.settings import Settings

PLAIN, OF_NODE = "s_0123456789abcdef", "s_a1b2c30123456789abcdef"
KERNEL = ids.kernel_id(OF_NODE)
RESPONSE = "resp_a1b2c3" + "0" * 26
#: What stands for a group of a route's pattern, by its name.
_SAMPLES = {"kernel": KERNEL, "sandbox": OF_NODE, "path_token": "TOKEN", "action": None, "ticket": f"{OF_NODE}.80.1.ab"}


def real_routes() -> list[tuple[str, type[RequestHandler]]]:
    settings = Settings(models={"m": ModelSettings(url="http://localhost:1")})
    application = make_app(MagicMock(), settings)
    rules = application.default_router.rules[0].target.rules
    return [(rule.matcher.regex.pattern, rule.target) for rule in rules if hasattr(rule.matcher, "regex")]


def sample(pattern: str) -> str:
    """A path that a route's pattern matches."""
    text = pattern.removesuffix("$").replace(r"(?P<rest>/.*)", "/rest").replace("[0-9]{1,5}", "8080")
    text = text.replace(r"([a-z0-9_]+\.(?:js|css|svg))?", "app.js").replace("(?P<port>8080)", "8080")
    text = re.sub(r"\(\?:/t/[^)]*\)(?:[^)]*\))?\?", "", text)
    text = re.sub(r"\((?:\?P<(\w+)>|\?:)?([^()]*)\)\??", lambda found: one_of(found[1], found[2]), text)
    return re.sub(r"\\(.)", r"\1", text).replace("/?", "").replace("(", "").replace(")", "")


def one_of(name: str | None, group: str) -> str:
    given = _SAMPLES.get(name or "")
    if given:
        return given
    return group.split("|")[0] if re.fullmatch(r"[\w/|]+", group) else "x1"


def verbs_of(handler: type[RequestHandler]) -> list[str]:
    unset = RequestHandler._unimplemented_method
    return [verb for verb in handler.SUPPORTED_METHODS if getattr(handler, verb.lower()) is not unset]


@pytest.mark.parametrize(("pattern", "handler"), real_routes(), ids=lambda value: getattr(value, "__name__", value))
def test_every_route_of_the_server_has_a_row(pattern: str, handler: type[RequestHandler]) -> None:
    path = sample(pattern)
    assert re.fullmatch(pattern, path), f"the test makes no path for {pattern}"
    for verb in verbs_of(handler):
        assert find(verb, path), f"{verb} {pattern} has no row in front/routes.py"
        if pattern.startswith("(?:/t/"):
            prefixed = f"/t/TOKEN{path}"
            assert re.fullmatch(pattern, prefixed)
            assert find(verb, prefixed), f"{verb} {pattern} has no row that takes a token in the path"


def test_a_route_without_a_row_is_noticed() -> None:
    assert find("GET", "/v1/surprise") is None
    assert find("GET", "/t/TOKEN/v1/sessions") is None


@pytest.mark.parametrize(
    ("verb", "path", "action"),
    [
        ("GET", "/v1/sessions", Action.OWN),
        ("POST", "/v1/sessions", Action.PLACE),
        ("GET", f"/v1/sessions/{OF_NODE}/events", Action.SESSION),
        ("OPTIONS", f"/v1/sessions/{OF_NODE}/ports/8080/", Action.PORT),
        ("DELETE", f"/v1/sessions/{OF_NODE}/ports/8080", Action.SESSION),
        ("GET", f"/v1/ports/{OF_NODE}.80.1.ab/x", Action.PORT),
        ("PUT", f"/v1/sessions/{OF_NODE}/files/a/b.txt", Action.SESSION),
        ("POST", "/v1/workspaces", Action.PLACE),
        ("GET", f"/v1/workspaces/alice/w/files/{OF_NODE}", Action.WORKSPACE),
        ("POST", "/v1/responses", Action.PLACE),
        ("GET", f"/v1/responses/{RESPONSE}", Action.OBJECT),
        ("POST", "/v1/files", Action.HOME),
        ("GET", f"/t/TOKEN/api/kernels/{KERNEL}/channels", Action.SESSION),
        ("POST", "/sandboxes", Action.PLACE),
        ("GET", "/sandboxes/metrics", Action.OWN),
        ("GET", "/v2/sandboxes", Action.OWN),
        ("POST", f"/v2/sandboxes/{OF_NODE}/connect", Action.SESSION),
        ("DELETE", "/templates/name", Action.SNAPSHOT),
        ("GET", "/templates", Action.ANY),
        ("POST", "/v3/templates", Action.BUILDS),
        ("POST", "/v2/templates/shop/builds/0-1", Action.BUILDS),
        ("GET", "/templates/shop/builds/0-1/status", Action.BUILDS),
        ("GET", "/templates/shop/files/00ff", Action.BUILDS),
        ("PUT", "/templates/shop/uploads/a1b2c3-00ff", Action.NODE),
        ("POST", "/process.Process/Start", Action.SANDBOX),
        ("GET", "/health", Action.SANDBOX),
        ("GET", "/t/TOKEN/v1/spaces/s/sandboxes/n", Action.NAMED),
        ("POST", "/t/TOKEN/mcp", Action.OWN),
        ("GET", "/console/", Action.ANY),
        ("GET", "/volumes", Action.GATHER),
        ("POST", "/volumes", Action.ANY),
        ("GET", "/volumes/vol-a1b2c3-YS93", Action.NODE),
        ("PUT", "/volumecontent/vol-a1b2c3-YS93/file", Action.NODE),
    ],
)
def test_what_is_done(verb: str, path: str, action: Action) -> None:
    match = find(verb, path)
    assert match is not None
    assert match.row.action is action


@pytest.mark.parametrize(("volume", "node"), [("vol-a1b2c3-YS93", "a1b2c3"), ("vol-local-YS93", None), ("v", None)])
def test_a_volume_names_its_node(volume: str, node: str | None) -> None:
    match = find("GET", f"/volumes/{volume}")
    assert match is not None
    assert match.values.get("node") == node


@pytest.mark.parametrize(
    ("path", "session"),
    [
        (f"/v1/sessions/{OF_NODE}", OF_NODE),
        (f"/v1/sessions/{PLAIN}/cells", PLAIN),
        ("/v1/sessions/nonsense/cells", None),
        (f"/api/kernels/{KERNEL}", OF_NODE),
        (f"/api/sessions/{ids.kernel_id(PLAIN)}", PLAIN),
        (f"/sandboxes/{OF_NODE.replace('_', '-')}/fork", OF_NODE),
    ],
)
def test_the_session_of_a_path(path: str, session: str | None) -> None:
    match = find("POST", path)
    assert match is not None
    assert session_in(match) == session


def test_the_sandbox_of_headers_and_host_names() -> None:
    assert sandbox_in({"E2b-Sandbox-Id": "s-a1b2c30123456789abcdef"}) == OF_NODE
    assert sandbox_in({"Host": "49999-S-A1B2C30123456789ABCDEF.example.org"}) == OF_NODE
    assert sandbox_in({"Host": "localhost:8888"}) is None


def test_only_jupyters_routes_take_a_token_in_the_query() -> None:
    assert all(("/api" in row.path.pattern or "kernelspecs" in row.path.pattern) == row.query for row in routes.ROWS)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", Wanted()),
        (b"no json", Wanted()),
        (b"[1]", Wanted()),
        (b'{"template":"t","idempotency_key":"k","name":"n"}', Wanted(template="t", key="k", name="n")),
        (b'{"sidecar_of":"%s"}' % OF_NODE.encode(), Wanted(session=OF_NODE)),
        (b'{"kernel":{"id":"%s"}}' % KERNEL.encode(), Wanted(session=OF_NODE)),
        (b'{"templateID":"%s"}' % OF_NODE.encode(), Wanted(session=OF_NODE, snapshot=OF_NODE)),
        (b'{"templateID":"base"}', Wanted(snapshot="base")),
        (b'{"previous_response_id":"%s"}' % RESPONSE.encode(), Wanted(node="a1b2c3")),
        (b'{"conversation":{"id":"conv_a1b2c3%s"}}' % (b"0" * 26), Wanted(node="a1b2c3")),
        (b'{"tools":[{"container":"cntr_0123456789abcdef"}]}', Wanted(session=PLAIN)),
        (b'{"input":[{"file_id":"file-a1b2c3%s"}]}' % (b"0" * 26), Wanted(node="a1b2c3")),
        (b'{"input":[{"source":{"file_id":"file_a1b2c3%s"}}]}' % (b"0" * 26), Wanted(node="a1b2c3")),
        (
            b'{"input":[{"container_id":"cntr_%s"},{"container_id":"cntr_a1b2c3%s"}]}' % (b"0" * 22, b"0" * 16),
            Wanted(node="a1b2c3"),
        ),
        (b'{"input":"\\"cntr_a1b2c3%s\\""}' % (b"0" * 16), Wanted()),
        (b'{"workspace":"w"}', Wanted(workspace="w")),
        (b'{"volumeMounts":[{"name":"w","path":"/mnt/w"}]}', Wanted(workspace="w")),
        (b'{"kernel":7,"tools":[1],"container":["x"],"template":null}', Wanted()),
    ],
    ids=str,
)
def test_what_a_body_says_about_its_node(body: bytes, expected: Wanted) -> None:
    assert wanted(body, None) == expected


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/v1/workspaces", b'{"name":"w"}', Wanted(workspace="w", makes=False)),
        ("/v1/workspaces", b'{"name":"w","owner":"bob"}', Wanted(workspace="bob/w", makes=False)),
        ("/v1/workspaces", b"{}", Wanted(makes=False)),
        ("/v1/responses", b'{"input":"hi"}', Wanted(makes=False)),
        ("/v1/messages", b'{"tools":[]}', Wanted(makes=False)),
        ("/v1/chat/completions", b'{"tools":[{"type":"code_interpreter"}]}', Wanted()),
        ("/v1/conversations", b"{}", Wanted(makes=False)),
        ("/v1/containers", b'{"name":"n"}', Wanted(name="n")),
    ],
)
def test_a_body_is_read_as_its_route_does(path: str, body: bytes, expected: Wanted) -> None:
    assert wanted(body, None, path) == expected


def test_a_body_with_more_values_than_a_node_decodes_is_not_decoded() -> None:
    """64 MiB of empty lists would be 1.7 GB of objects in the process that serves all clients."""
    body = b'{"template":"t","tools":[' + b"[]," * jupyter.MAX_CONTAINERS + b"[]]}"
    assert wanted(body, None) == Wanted()


def test_a_key_in_the_header_counts() -> None:
    assert wanted(b'{"idempotency_key":"body"}', "header").key == "header"


def test_only_rows_that_let_the_node_authenticate_are_open() -> None:
    """An open row passes requests of strangers to nodes. Each one is named here for a reason."""
    opened = {row.path.pattern for row in routes.ROWS if row.open}
    assert opened == {
        r"/healthz|/readyz",
        r"/metrics",
        r"/v1/cluster/join",
        r"/v1/openapi\.json|/v1/openrpc\.json",
        r"/console/tickets/redeem",
        r"/console(?:/.*)?",
        # Secrets, signed addresses and public ports, which only the session's node knows.
        r"/v1/ports/(?P<session>[^/.]+)\.[^/]*(?:/.*)?",
        r"/v1/sessions/(?P<session>[^/]+)/ports/[0-9]{1,5}/.*",
        r"/api/?",
        r"/v1/healthz",
        r"/volumecontent/(?:vol-(?P<node>[0-9a-f]{6})-)?[^/]+/(?:path|dir|file)",  # the volume's token
        r"/templates/[^/]+/uploads/(?:(?P<node>[0-9a-f]{6})-)?[^/-]+",  # the secret in the address
        r"/files|/health|/execute|/contexts(?:/.*)?|/(?:process\.Process|filesystem\.Filesystem)/.*",
    }


def test_rows_of_own_handlers_name_one() -> None:
    rows: list[Any] = [row for row in routes.ROWS if (row.action is Action.OWN) != bool(row.own)]
    assert rows == []
