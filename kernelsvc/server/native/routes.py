"""The REST API as data: one row per verb and path.

Most rows are a method of the native API: path, query and body are merged into its
params, so that both APIs stay equal. The handlers, the OpenAPI document and the
reference page read this table.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from kernelsvc.errors import BadRequest
from kernelsvc.model.objects import CellInfo, Scope, SessionRequest
from kernelsvc.protocol import jsonrpc, method_params, methods

JSON = "application/json"
SSE = "text/event-stream"


class WaitQuery(Struct, kw_only=True, forbid_unknown_fields=True):
    """``queued`` responds 202 as soon as the cell is logged."""

    wait: Literal["finished", "queued"] = "finished"


class EventsQuery(Struct, kw_only=True, forbid_unknown_fields=True):
    """Selects events. With ``follow``, live events follow, as an event stream."""

    after: method_params.Position = 0
    limit: Annotated[int, Meta(ge=1, le=10_000)] = 1000
    follow: bool | None = None


class NotebookQuery(Struct, kw_only=True, forbid_unknown_fields=True):
    """The format of the export."""

    format: Literal["ipynb", "html", "py"] = "ipynb"


class ValueQuery(Struct, kw_only=True, forbid_unknown_fields=True):
    """The format and the part of a variable's data. ``columns`` are names with commas between them."""

    format: Literal["parquet", "arrow", "csv", "json"] = "json"
    from_row: method_params.Position = 0
    rows: Annotated[int, Meta(ge=1, le=2**53)] | None = None
    columns: Annotated[str, Meta(max_length=10_000)] | None = None


class ListFilesQuery(Struct, kw_only=True, forbid_unknown_fields=True):
    """The depth and size of a listing."""

    recursive: bool = False
    limit: Annotated[int, Meta(ge=1, le=10_000)] = 1000


class DeleteFileQuery(Struct, kw_only=True, forbid_unknown_fields=True):
    """Whether a directory is deleted with its content."""

    recursive: bool = False


class NoQuery(Struct, kw_only=True, forbid_unknown_fields=True):
    """No query parameters."""


class FileEntry(Struct, kw_only=True):
    """One name in a session's directory.

    Attributes:
        path: Relative to the session's directory. Bytes that are not UTF-8 are U+FFFD.
        url: The path, percent-encoded, to append to ``files/``.
        kind: Links and devices are listed, never followed.
        size: Bytes.
        modified: UTC.
    """

    path: str
    url: str
    kind: Literal["file", "directory", "link", "other"]
    size: int
    modified: str


class FileList(Struct, kw_only=True):
    """A directory's content. ``truncated``: it holds more than the limit."""

    path: str
    files: list[FileEntry]
    truncated: bool


class FileWritten(Struct, kw_only=True):
    """A written file."""

    path: str
    size: int
    sha256: str
    etag: str


class EventPage(Struct, kw_only=True):
    """A page of events. The next page begins after ``next_after``."""

    events: list[dict[str, Any]]
    next_after: int
    last_seq: int


class Health(Struct, kw_only=True):
    """The server responds."""

    status: str


class Route(Struct, frozen=True, kw_only=True):
    """One verb on one path.

    Attributes:
        verb: HTTP's.
        path: With ``{names}``.
        id: The operation's name in OpenAPI.
        summary: One sentence.
        scope: The scope that the token needs. None: no token is needed.
        query: The query's type.
        body: The JSON body's type. None: no body.
        result: The response's type.
        status: HTTP status of a good response.
        media: Media types of a good response. The first is the default.
        takes: Media type of a body that is not JSON.
        method: The native method.
    """

    verb: str
    path: str
    id: str
    summary: str
    scope: Scope | None
    query: type[Struct] = NoQuery
    body: Any = None
    result: Any = None
    status: int = 200
    media: tuple[str, ...] = (JSON,)
    takes: str | None = None
    method: str | None = None

    @property
    def names(self) -> list[str]:
        """The names in the path."""
        return re.findall(r"\{(\w+)\}", self.path)


_S = "/v1/sessions/{session}"
_W = "/v1/workspaces/{owner}/{name}"


def _native(verb: str, path: str, name: str, status: int = 200, **more: Any) -> Route:
    row = methods.METHODS[name]
    params = more.pop("params", row.params)
    where = {"body" if verb == "POST" else "query": params}
    return Route(
        verb=verb,
        path=path,
        id=name,
        summary=row.summary,
        scope=row.scope,
        result=row.result,
        status=status,
        method=name,
        **where,
        **more,
    )


def _file_routes(above: str, id: str, what: str) -> tuple[Route, ...]:
    """Return the routes of the files of a session or a workspace."""
    return (
        Route(
            verb="GET", path=f"{above}/files/", id=f"{id}.list", scope="read", query=ListFilesQuery, result=FileList,
            summary=f"The entries of {what}.",
        ),
        Route(
            verb="GET", path=f"{above}/files/{{path}}", id=f"{id}.get", scope="read", query=ListFilesQuery,
            summary="A file, or a part of it (Range). A directory is listed, or with "
            "Accept: application/octet-stream an error.", media=("application/octet-stream", JSON),
        ),
        Route(
            verb="HEAD", path=f"{above}/files/{{path}}", id=f"{id}.head", scope="read",
            summary="A file's size and ETag.", media=("application/octet-stream",),
        ),
        Route(
            verb="PUT", path=f"{above}/files/{{path}}", id=f"{id}.put", scope="run", result=FileWritten, status=201,
            summary="Write a file; directories on its way are made.", takes="application/octet-stream",
        ),
        Route(
            verb="DELETE", path=f"{above}/files/{{path}}", id=f"{id}.delete", scope="run", query=DeleteFileQuery,
            status=204, summary="Delete a file, or a directory.",
        ),
    )  # fmt: skip


ROUTES: tuple[Route, ...] = (
    Route(verb="GET", path="/healthz", id="healthz", summary="The server answers.", scope=None, result=Health),
    Route(verb="GET", path="/readyz", id="readyz", summary="Sessions can be created.", scope=None, result=Health),
    Route(
        verb="GET", path="/metrics", id="metrics", summary="Counters in Prometheus' text format; no session's data.",
        scope=None, media=("text/plain",),
    ),
    Route(
        verb="GET", path="/v1/openapi.json", id="openapi", summary="This document.", scope=None, result=dict[str, Any],
    ),
    Route(
        verb="GET", path="/v1/openrpc.json", id="openrpc", summary="The WebSocket's methods and every event.",
        scope=None, result=dict[str, Any],
    ),
    _native("GET", "/v1/info", "info"),
    _native("GET", "/v1/templates", "templates"),
    _native("POST", "/v1/execute", "call"),
    _native("POST", "/v1/sessions", "session.create", 201, params=SessionRequest),
    _native("GET", "/v1/sessions", "session.list"),
    _native("GET", "/v1/search", "session.search"),
    _native("GET", _S, "session.get"),
    _native("DELETE", _S, "session.close"),
    _native("POST", f"{_S}/purge", "session.purge"),
    _native("POST", f"{_S}/interrupt", "session.interrupt"),
    _native("POST", f"{_S}/restart", "session.restart"),
    _native("POST", f"{_S}/hibernate", "session.hibernate"),
    _native("POST", f"{_S}/network", "session.network"),
    Route(
        verb="POST", path=f"{_S}/cells", id="session.execute", scope="run", query=WaitQuery,
        summary="Run a cell, or several ('cells'); answers when they have ended, or streams their events.",
        body=method_params.ExecuteParams, result=CellInfo | list[CellInfo], media=(JSON, SSE),
    ),
    _native("GET", f"{_S}/cells", "session.cells"),
    _native("GET", f"{_S}/outline", "session.outline"),
    _native("GET", f"{_S}/usage", "session.usage"),
    _native("GET", f"{_S}/cells/{{cell}}", "session.cell"),
    _native("GET", f"{_S}/cells/{{cell}}/output", "session.output"),
    _native("GET", f"{_S}/cells/{{cell}}/view", "session.view"),
    _native("POST", f"{_S}/cells/{{cell}}/input", "session.input", 204),
    Route(
        verb="GET", path=f"{_S}/events", id="session.events", scope="read", query=EventsQuery, result=EventPage,
        summary="The log: a page of it, or from a position on as an event stream.", media=(JSON, SSE),
    ),
    _native("POST", f"{_S}/complete", "session.complete"),
    _native("POST", f"{_S}/inspect", "session.inspect"),
    _native("GET", f"{_S}/variables", "session.variables"),
    Route(
        verb="GET", path=f"{_S}/values/{{name}}", id="session.value", scope="run", query=ValueQuery,
        summary="The data of a variable. Without rows, all of it or an error.",
        media=("application/json", "text/csv", "application/vnd.apache.arrow.stream", "application/vnd.apache.parquet"),
    ),
    _native("GET", f"{_S}/tools", "session.tools"),
    _native("GET", f"{_S}/calls", "session.calls"),
    _native("POST", f"{_S}/calls", "session.decide"),
    _native("POST", f"{_S}/hold", "session.hold"),
    _native("POST", f"{_S}/hold/decisions", "session.decide_cells"),
    _native("GET", f"{_S}/calls/{{call}}", "session.call"),
    _native("POST", f"{_S}/calls/{{call}}/return", "tool.return", 204),
    _native("POST", f"{_S}/calls/{{call}}/progress", "tool.progress", 204),
    _native("POST", f"{_S}/programs", "program.start", 201),
    _native("GET", f"{_S}/programs", "session.programs"),
    _native("GET", f"{_S}/programs/{{program}}/output", "program.read"),
    _native("POST", f"{_S}/programs/{{program}}/input", "program.write"),
    _native("POST", f"{_S}/programs/{{program}}/signal", "program.signal", 204),
    _native("POST", f"{_S}/programs/{{program}}/resize", "program.resize", 204),
    _native("POST", f"{_S}/checkpoints", "session.checkpoint", 201),
    _native("GET", f"{_S}/checkpoints", "session.checkpoints"),
    _native("DELETE", f"{_S}/checkpoints/{{checkpoint}}", "session.drop_checkpoint", 204),
    _native("POST", f"{_S}/rollback", "session.rollback"),
    _native("POST", f"{_S}/branches", "session.branch", 201),
    Route(
        verb="GET", path=f"{_S}/notebook", id="session.notebook", scope="read", query=NotebookQuery,
        summary="The session as a notebook, at any time, also when it is closed.",
        media=("application/x-ipynb+json", "text/html", "text/x-python"),
    ),
    Route(
        verb="GET", path=f"{_S}/journal", id="session.journal", scope="read",
        summary="The log itself, one JSON object a line: what 'kernelsvc verify' checks.",
        media=("application/x-ndjson",),
    ),
    _native("GET", f"{_S}/ports", "session.ports"),
    _native("POST", f"{_S}/ports", "session.share_port", 201),
    _native("DELETE", f"{_S}/ports/{{port}}", "session.unshare_port", 204),
    _native("GET", "/v1/workspaces", "workspace.list"),
    _native("POST", "/v1/workspaces", "workspace.set"),
    _native("GET", _W, "workspace.get"),
    _native("DELETE", _W, "workspace.remove", 204),
    *_file_routes(_W, "workspace.files", "the workspace"),
    *_file_routes(_S, "files", "the session's directory"),
)  # fmt: skip


def pattern(path: str) -> str:
    """Convert a path with ``{names}`` into a regular expression. A file's path may contain slashes."""
    found = re.sub(r"\\{(\w+)\\}", lambda m: "(.+)" if m[1] == "path" else "([^/]+)", re.escape(path))
    return found + "?" if path.endswith("/") else found


_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")


def is_id(text: str) -> bool:
    """Return whether this text has the form of an id."""
    return _ID.fullmatch(text) is not None


def check_body(
    fields: dict[str, msgspec.Raw], kind: type[Struct], extra: dict[str, Any], bounds: jsonrpc.RequestLimits
) -> Any:
    """Merge a JSON body with the values of path, query and headers into params.

    Raises:
        BadRequest: The body repeats one of them, or doesn't fit the type.
        TooLarge: The code is over its limit.
    """
    doubled = sorted(fields.keys() & extra.keys())
    if doubled:
        raise BadRequest(f"{', '.join(doubled)} is in the path, the query or a header. Leave it out of the body.")
    merged = msgspec.json.encode({**fields, **extra})
    params = jsonrpc.decode_json(msgspec.json.Decoder(kind), merged, "body")
    jsonrpc.check(params, bounds)
    return params


def markdown() -> str:
    """Return the reference page's table: each verb and path, in the order of ``ROUTES``."""
    lines = ["| request | query | body | answer | scope | |", "|---|---|---|---|---|---|"]
    for route in ROUTES:
        query = ", ".join(f"`{name}`" for name in route.query.__struct_fields__ if name not in route.names)
        body = f"`{route.takes or route.body.__name__}`" if route.takes or route.body else ""
        answer = f"{route.status}" + ("" if route.status == 204 else f" {' or '.join(route.media)}")
        cells = (f"`{route.verb} {route.path}`", query, body, answer, route.scope or "open", route.summary)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
