"""The actions of a front for requests: a table, and decisions on paths, headers and bodies. Pure.

``find`` returns the row of a request. A route of the server without a row is an error of a test, so a new API needs one
here. Rows are tried in order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any
from urllib.parse import unquote

import msgspec

from kernelsvc.errors import BadRequest
from kernelsvc.model.cluster import ids
from kernelsvc.protocol import e2b
from kernelsvc.protocol.jupyter import check_json


class Action(Enum):
    """An action for a request."""

    SESSION = "to the node of the session in the path"
    SANDBOX = "to the node of the sandbox in a header or the host name"
    PORT = "to the node of the session whose server the path, a header or the host name names. The node authenticates"
    OBJECT = "to the node of an object of OpenAI's API in the path"
    WORKSPACE = "to the node that has the workspace"
    NODE = "to the node that the path names, or to any"
    NAMED = "to the node of the session with this label"
    SNAPSHOT = "to the node of the snapshot or template in the path"
    BUILDS = "to the node that has the caller's templates of E2B's API"
    PLACE = "to a node with room, or to the one that the body names"
    HOME = "to the node that a principal always gets"
    TICKET = "to the node that has the tickets of the console"
    ANY = "to any node"
    GATHER = "to all nodes: their JSON lists are joined"
    OWN = "the front answers itself"


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        verbs: The HTTP methods. Empty means any.
        path: Regular expression of the path, without a token's prefix.
        action: The action.
        open: Whether the node authenticates, because the request may carry something else than a token, or nothing.
        prefix: Whether a token may stand before the path (``/t/TOKEN``).
        query: Whether a token may be in the query (``?token=``). Addresses end up in logs of proxies, so only where
            the API's clients need it.
        form: The format of errors: ``native`` or ``e2b``.
        own: For OWN, the name of the front's handler (``app``).
    """

    path: re.Pattern[str]
    action: Action
    verbs: frozenset[str]
    open: bool = False
    prefix: bool = False
    query: bool = False
    form: str = "native"
    own: str = ""


@dataclass(frozen=True)
class Match:
    """A request's row, and the values in its path by name, unquoted."""

    row: Row
    values: Mapping[str, str]


def _row(verbs: str, path: str, action: Action, **more: Any) -> Row:
    return Row(re.compile(path), action, frozenset(verbs.split()), **more)


_S = r"/v1/sessions/(?P<session>[^/]+)"
_W = r"/v1/workspaces/(?P<owner>[^/]+)/(?P<name>[^/]+)"
_SPACE = r"/v1/spaces/(?P<space>[^/]+)/sandboxes"
_KERNEL = r"(?P<kernel>[^/]+)"
_UPLOAD = r"(?:(?P<node>[0-9a-f]{6})-)?[^/-]+"
_VOLUME = r"(?:vol-(?P<node>[0-9a-f]{6})-)?[^/]+"
_ANSWERS = r"/v1/(?:responses|conversations|containers|files)"

ROWS: tuple[Row, ...] = (
    # The front itself, and documents that are the same everywhere.
    _row("", r"/healthz|/readyz", Action.OWN, open=True, own="health"),
    _row("", r"/metrics", Action.OWN, open=True, own="metrics"),
    _row("", r"/v1/info", Action.OWN, own="info"),
    _row("", r"/v1/nodes", Action.OWN, own="nodes"),
    _row("", r"/v1/nodes/(?P<node>[^/]+)/drain", Action.OWN, own="drain"),
    _row("", r"/v1/cluster/join", Action.OWN, open=True, own="join"),
    _row("", r"/v1/openapi\.json|/v1/openrpc\.json", Action.ANY, open=True),
    _row("", r"/console/tickets", Action.TICKET),
    _row("", r"/console/tickets/redeem", Action.TICKET, open=True),
    _row("", r"/console(?:/.*)?", Action.ANY, open=True),
    _row("", r"/v1/templates", Action.ANY),
    # The native API.
    _row("", r"/v1/ws", Action.OWN, own="socket"),
    _row("GET", r"/v1/sessions", Action.OWN, own="sessions"),
    _row("", r"/v1/sessions|/v1/execute", Action.PLACE),
    _row("", rf"{_S}/ports/[0-9]{{1,5}}/.*", Action.PORT, open=True),
    _row("", r"/v1/ports/(?P<session>[^/.]+)\.[^/]*(?:/.*)?", Action.PORT, open=True),
    _row("GET", rf"{_S}/(?P<part>notebook|journal)", Action.SESSION),
    _row("", rf"{_S}(?:/.*)?", Action.SESSION),
    _row("GET", r"/v1/workspaces", Action.GATHER),
    _row("", r"/v1/search", Action.ANY),
    _row("", r"/v1/workspaces", Action.PLACE),
    _row("", rf"{_W}(?:/.*)?", Action.WORKSPACE),
    # Models.
    _row("GET", r"/v1/(?:containers|files)", Action.OWN, own="objects"),
    _row("POST", r"/v1/files", Action.HOME),
    _row("", rf"{_ANSWERS}|/v1/messages|/v1/chat/completions", Action.PLACE),
    _row("", rf"{_ANSWERS}/(?P<object>[^/]+)(?:/.*)?", Action.OBJECT),
    _row("", r"/v1/models(?:/.*)?", Action.ANY),
    # Jupyter.
    _row("", r"/api/?", Action.ANY, open=True, prefix=True, query=True),
    _row("", r"/api/kernelspecs(?:/.*)?|/kernelspecs/.*", Action.ANY, prefix=True, query=True),
    _row("GET", r"/api/kernels|/api/sessions", Action.GATHER, prefix=True, query=True),
    _row("", r"/api/kernels|/api/sessions", Action.PLACE, prefix=True, query=True),
    _row("", rf"/api/(?:kernels|sessions)/{_KERNEL}(?:/.*)?", Action.SESSION, prefix=True, query=True),
    # MCP.
    _row("", r"/mcp/?", Action.OWN, prefix=True, own="mcp"),
    _row("", r"/python/(?:sse|messages|mcp)/?", Action.HOME, prefix=True),
    # SandboxAI, SandboxFusion.
    _row("", r"/v1/healthz", Action.ANY, open=True, prefix=True),
    _row("", _SPACE, Action.PLACE, prefix=True),
    _row("", rf"{_SPACE}/(?P<name>[^/]+)(?:/.*)?", Action.NAMED, prefix=True),
    _row("", r"/run_code|/run_jupyter", Action.PLACE, prefix=True),
    # E2B: the control plane, then one sandbox.
    _row("GET", r"/(?:v2/)?sandboxes", Action.OWN, form="e2b", own="sandboxes"),
    _row("GET", r"/snapshots", Action.OWN, form="e2b", own="snapshots"),
    _row("GET", r"/sandboxes/metrics", Action.OWN, form="e2b", own="usage"),
    _row("", r"/sandboxes/metrics|/snapshots", Action.ANY, form="e2b"),
    _row("", r"/(?:v2/)?sandboxes", Action.PLACE, form="e2b"),
    _row("", r"/(?:v2/)?sandboxes/(?P<session>[^/]+)(?:/.*)?", Action.SESSION, form="e2b"),
    _row("", r"/templates/aliases/(?P<snapshot>[^/]+)|/templates/(?P<template>[^/]+)", Action.SNAPSHOT, form="e2b"),
    _row("", rf"/templates/[^/]+/uploads/{_UPLOAD}", Action.NODE, open=True, form="e2b"),
    _row("", r"/v3/templates|/templates/[^/]+/files/.*|/(?:v2/)?templates/[^/]+/builds/.*", Action.BUILDS, form="e2b"),
    _row("", r"/(?:v[23]/)?templates(?:/.*)?|/secrets(?:/.*)?", Action.ANY, form="e2b"),
    _row("GET", r"/volumes", Action.GATHER, form="e2b"),
    _row("", r"/volumes", Action.ANY, form="e2b"),
    _row("", rf"/volumes/{_VOLUME}", Action.NODE, form="e2b"),
    _row("", rf"/volumecontent/{_VOLUME}/(?:path|dir|file)", Action.NODE, open=True, form="e2b"),
    _row(
        "", r"/files|/health|/execute|/contexts(?:/.*)?|/(?:process\.Process|filesystem\.Filesystem)/.*",
        Action.SANDBOX, open=True, form="e2b",
    ),
)  # fmt: skip

_PREFIX = re.compile(r"/t/([^/]+)(?=/)")


#: The match of a request that names a session's own server by host name, whatever its path.
PORT_BY_HOST = Match(_row("", ".*", Action.PORT, open=True), {})


def find(verb: str, path: str) -> Match | None:
    """Return the row of a request. None: the server has no such route."""
    prefix = _PREFIX.match(path)
    plain = path[prefix.end() :] if prefix else path
    for row in ROWS:
        if (row.verbs and verb not in row.verbs) or (prefix and not row.prefix):
            continue
        if found := row.path.fullmatch(plain):
            return Match(row, {name: unquote(value) for name, value in found.groupdict().items() if value is not None})
    return None


def session_in(match: Match) -> str | None:
    """Return the session that the path names. None if its id can't be one."""
    values = match.values
    if "kernel" in values:
        return ids.session_of(ids.session_of_kernel(values["kernel"]))
    return ids.session_of(values.get("session", ""))


def sandbox_in(headers: Mapping[str, str]) -> str | None:
    """Return the session of the sandbox that a request to a sandbox names."""
    return ids.session_of(e2b.address(headers)[0] or "")


# --- bodies ------------------------------------------------------------------------------------


class _Spec(msgspec.Struct):
    kernel: Any = None
    sidecar_of: Any = None
    workspace: Any = None
    template: Any = None
    idempotency_key: Any = None
    templateID: Any = None
    previous_response_id: Any = None
    conversation: Any = None
    container: Any = None
    tools: Any = None
    name: Any = None
    volumeMounts: Any = None
    owner: Any = None


@dataclass(frozen=True)
class Wanted:
    """The fields of a creation's body that decide on its node.

    Attributes:
        session: A session whose node it is.
        node: Perhaps the name of the node, from an object that the body names.
        workspace: A workspace, ``NAME`` or ``OWNER/NAME``, whose node it is.
        template: The template that the node must have.
        snapshot: The name of a template or snapshot of E2B's API.
        key: The idempotency key.
        name: The name of a sandbox of SandboxAI's API.
        makes: Whether the request makes a session, as far as its path and body say.
    """

    session: str | None = None
    node: str | None = None
    workspace: str | None = None
    template: str | None = None
    snapshot: str | None = None
    key: str | None = None
    name: str | None = None
    makes: bool = True


#: Routes that make a session only for the code interpreter, which is a tool.
_MODELS = frozenset({"/v1/responses", "/v1/messages", "/v1/chat/completions"})
_FILE = re.compile(rb'"(file[-_][0-9a-f]{32})"')
_CONTAINER = re.compile(rf'"(cntr_{ids.DIGITS})"'.encode())
_decode = msgspec.json.Decoder(_Spec).decode


def wanted(body: bytes, key: str | None, path: str = "/v1/sessions") -> Wanted:
    """Read the fields of a creation's body that decide on its node.

    A body says nothing that is no JSON object, or holds more than a node would decode. A node refuses it.

    Args:
        body: The request's body.
        key: The value of the header ``Idempotency-Key``.
        path: The request's path.
    """
    try:
        check_json(body)
        spec = _decode(body) if body.strip() else _Spec()
    except (msgspec.DecodeError, ValueError, RecursionError, BadRequest):
        spec = _Spec()
    if path == "/v1/workspaces":
        return Wanted(workspace="/".join(filter(None, (_text(spec.owner), _text(spec.name)))) or None, makes=False)
    kernel = spec.kernel.get("id") if isinstance(spec.kernel, dict) else None
    template_id = _text(spec.templateID)
    named = [_text(spec.sidecar_of), ids.session_of_kernel(kernel) if isinstance(kernel, str) else None, template_id]
    found = [ids.session_of(each or "") for each in named]
    found += [ids.session_of_container(each) for each in _objects(spec)]
    return Wanted(
        session=next((each for each in found if each), None),
        node=_node_hint(spec, body),
        workspace=_workspace(spec.workspace) or _workspace(next(iter(_list(spec.volumeMounts)), None)),
        template=_text(spec.template),
        snapshot=template_id,
        key=key or _text(spec.idempotency_key),
        name=_text(spec.name),
        makes=path != "/v1/conversations" and (path not in _MODELS or bool(spec.tools)),
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _workspace(value: Any) -> str | None:
    """Return the workspace of a creation, in either form."""
    return _text(value.get("name") if isinstance(value, dict) else value)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _objects(spec: _Spec) -> list[str]:
    """Return the ids of the objects of OpenAI's API that a body continues."""
    named = [spec.previous_response_id, spec.conversation, spec.container]
    named += [tool.get("container") for tool in _list(spec.tools) if isinstance(tool, dict)]
    texts = [each.get("id") if isinstance(each, dict) else each for each in named]
    return [each for each in texts if isinstance(each, str)]


def _node_hint(spec: _Spec, body: bytes) -> str | None:
    """Return the node of the object that a body continues, of the last container in its items, or of the first file."""
    hints = [ids.node_hint(each) for each in _objects(spec)]
    for container in _CONTAINER.findall(body)[-1:]:
        hints.append(ids.node_of(ids.session_of_container(container.decode()) or ""))
    if file := _FILE.search(body):
        hints.append(ids.node_hint(file[1].decode()))
    return next((each for each in hints if each), None)
