"""The REST handlers. ``routes`` is their table. ``files`` has the handlers of files."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Coroutine
from typing import Any

import msgspec
from tornado.web import HTTPError

from kernelsvc import __version__
from kernelsvc.errors import AtCapacity, BadRequest, NotFound, TemplateFailed
from kernelsvc.model.objects import CellInfo, ValueRequest
from kernelsvc.protocol import jsonrpc, method_params, methods
from kernelsvc.server.handler import ApiHandler, ServerContext, invoke
from kernelsvc.server.native import openapi, sse
from kernelsvc.server.native import routes as rest
from kernelsvc.service.api import ByteStream, FileReader, RecordPart
from kernelsvc.telemetry.metrics import CONTENT_TYPE

#: Bytes after which a page of events ends before its limit.
PAGE_BYTES = 8 * 1024 * 1024
CHUNK_BYTES = 256 * 1024

#: Content Security Policy for content from a kernel: no scripts, no forms, not this server's origin.
INERT = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; font-src data:; frame-ancestors 'none'"

_RECORD_TYPES = {
    "jsonl": "application/x-ndjson",
    "ipynb": "application/x-ipynb+json",
    "html": "text/html; charset=utf-8",
    "py": "text/x-python; charset=utf-8",
}
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])


class MethodHandler(ApiHandler):
    """Handler of one path whose verbs are methods of the native API."""

    routes: dict[str, rest.Route]

    def initialize(self, context: ServerContext, **more: Any) -> None:
        """Tornado's hook: name the route for metrics."""
        super().initialize(context, **more)
        self.route = next(iter(self.routes.values())).path

    def allowed(self) -> list[str]:
        """Return the verbs of this path."""
        return [*self.routes, "OPTIONS"]

    def get(self, *path: str) -> Coroutine[Any, Any, None]:
        """Serve GET."""
        return self._serve(path)

    def post(self, *path: str) -> Coroutine[Any, Any, None]:
        """Serve POST."""
        return self._serve(path)

    def delete(self, *path: str) -> Coroutine[Any, Any, None]:
        """Serve DELETE."""
        return self._serve(path)

    async def _serve(self, path: tuple[str, ...]) -> None:
        route = self.routes.get(self.request.method or "")
        if route is None:
            raise HTTPError(405)
        await self.serve(route, self.named(route, path))

    def named(self, route: rest.Route, path: tuple[str, ...]) -> dict[str, str]:
        """Return the values in the path by name.

        Raises:
            NotFound: A value can't be an id.
        """
        found = dict(zip(route.names, path, strict=True))
        for name, value in found.items():
            if not rest.is_id(value):
                raise NotFound(f"There is no such {name}. List what exists and check the id.")
        return found

    async def serve(self, route: rest.Route, path: dict[str, str]) -> None:
        """Call the method and write its result."""
        method = methods.METHODS[route.method or ""]
        if route.verb == "POST":
            self.query(rest.NoQuery)
            params = rest.check_body(
                self.fields(), route.body, {**path, **self._key(route)}, self.context.request_limits
            )
        else:
            params = self.query(route.query, **path)
        value = await self.while_connected(invoke(self.context, self.who, method, params, self))
        if route.id == "session.create":
            self.set_header("Location", f"/v1/sessions/{value.id}")
        self.answer(None if route.status == 204 else value, route.status)

    def _key(self, route: rest.Route) -> dict[str, str]:
        key = self.request.headers.get("Idempotency-Key")
        return {"idempotency_key": key} if key and route.id == "session.create" else {}

    def fields(self) -> dict[str, msgspec.Raw]:
        """Decode the body into an object of undecoded values. An empty body is an empty object."""
        body = self.body()
        found: dict[str, msgspec.Raw] = jsonrpc.decode_json(_fields, body, "body") if body.strip() else {}
        return found


class CellsHandler(MethodHandler):
    """Handler of ``/v1/sessions/{id}/cells``: run cells in three forms, or list them."""

    async def serve(self, route: rest.Route, path: dict[str, str]) -> None:
        """List for GET, run for POST."""
        if route.verb == "GET":
            await super().serve(route, path)
            return
        streaming = accepts_stream(self.request.headers.get("Accept", ""))
        wait = "queued" if streaming else self.query(rest.WaitQuery).wait
        fields = self.fields()
        several = "cells" in fields
        kind = method_params.BatchParams if several else method_params.ExecuteParams
        params = rest.check_body(fields, kind, {**path, "wait": wait}, self.context.request_limits)
        if key := self.request.headers.get("Idempotency-Key"):
            name_cells(params, key)
        method = methods.METHODS["session.batch" if several else "session.execute"]
        value = await self.while_connected(invoke(self.context, self.who, method, params, self))
        if streaming:
            await self._stream(path["session"], value if several else [value])
        else:
            self.answer(value, 202 if wait == "queued" else 200)

    async def _stream(self, session: str, cells: list[CellInfo]) -> None:
        after = min(cell.seq.first for cell in cells) - 1
        subscription = self.context.service.attach(self.who, session, after=after)
        selection = sse.Selection(cells={cell.id for cell in cells})
        await self.while_connected(sse.stream(self, subscription, after, selection))


def name_cells(params: method_params.ExecuteParams | method_params.BatchParams, key: str) -> None:
    """Derive ids for cells without one from the idempotency key, so that a repeated request runs nothing."""
    stem = "key-" + hashlib.sha256(key.encode()).hexdigest()[:32]
    if isinstance(params, method_params.ExecuteParams):
        params.cell = params.cell or stem
        return
    for number, cell in enumerate(params.cells):
        cell.cell = cell.cell or f"{stem}-{number}"


def accepts_stream(accept: str) -> bool:
    """Return whether ``Accept`` names an event stream before JSON."""
    kinds = [part.split(";")[0].strip().lower() for part in accept.split(",")]
    return rest.SSE in kinds and not (rest.JSON in kinds and kinds.index(rest.JSON) < kinds.index(rest.SSE))


class SessionPathHandler(ApiHandler):
    """Base of the handlers of one path below a session.

    Attributes:
        part: The part of the archive's records that this path shows. None: none.
    """

    part: RecordPart | None = None

    async def get(self, session: str) -> None:
        """Serve GET. The archive has the records of sessions that retention has removed."""
        self.auth_scope("read")
        if not rest.is_id(session):
            raise NotFound
        try:
            await self.show(session)
        except NotFound:
            archived = None
            if self.part is not None and self.context.service.records is not None:
                async with self.context.turn_of(self.who, "archive"):
                    archived = await self.context.service.records.open(self.who, session, self.part)
            if archived is None or self.part is None:
                raise
            await self.while_connected(send_record(self, session, self.part, archived))

    async def show(self, session: str) -> None:
        """Write the response for this session."""
        raise NotImplementedError


class EventsHandler(SessionPathHandler):
    """Handler of ``/v1/sessions/{id}/events``: a page, or a stream."""

    route = "/v1/sessions/{session}/events"

    async def show(self, session: str) -> None:
        """Write JSON, or an event stream if the client asks for one."""
        query = self.query(rest.EventsQuery)
        after = self._last_event_id(query.after)
        if query.follow or accepts_stream(self.request.headers.get("Accept", "")):
            last = self.context.service.get(self.who, session).last_seq
            subscription = self.context.service.attach(self.who, session, after=after)
            selection = sse.Selection(until=last if query.follow is False else None)
            await self.while_connected(sse.stream(self, subscription, after, selection))
        else:
            async with self.context.turn_of(self.who):
                await self._page(session, after, query.limit)

    def _last_event_id(self, after: int) -> int:
        given = self.request.headers.get("Last-Event-ID")
        if given is None:
            return after
        if not given.isascii() or not given.isdecimal() or len(given) > 15:
            raise BadRequest("Last-Event-ID is not the number of an event. Send the id of the last one you got.")
        return int(given)

    async def _page(self, session: str, after: int, limit: int) -> None:
        last = self.context.service.get(self.who, session).last_seq
        subscription = self.context.service.attach(self.who, session, after=after)
        lines: list[bytes] = []
        size = 0
        try:
            while len(lines) < limit and size < PAGE_BYTES and (more := subscription.next_nowait()):
                lines += more[: limit - len(lines)]
                size += sum(map(len, more))
                await asyncio.sleep(0)
        finally:
            subscription.close()
        self.set_header("Content-Type", "application/json")
        tail = b'],"next_after":%d,"last_seq":%d}' % (after + len(lines), max(last, after + len(lines)))
        self.write(b'{"events":[' + b",".join(lines) + tail)


class NotebookHandler(SessionPathHandler):
    """Handler of ``/v1/sessions/{id}/notebook``."""

    route = "/v1/sessions/{session}/notebook"
    part = "notebook"

    async def show(self, session: str) -> None:
        """Write the export, with headers that stop a browser from running its content."""
        form, service = self.query(rest.NotebookQuery).format, self.context.service
        async with self.context.turn_of(self.who, f"notebook.{form}"):
            file = None
            if form == "ipynb":
                file = await self.while_connected(service.notebook_file(self.who, session))
            if file is None:
                data = await self.while_connected(service.notebook(self.who, session, form))
        if file is not None:
            await send_open_record(self, session, "notebook", file)
            return
        set_record_headers(self, session, form)
        self.write(data)


class ValueHandler(ApiHandler):
    """Handler of ``/v1/sessions/{id}/values/{name}``: the data of a variable."""

    route = "/v1/sessions/{session}/values/{name}"
    _types = {
        "json": "application/json",
        "csv": "text/csv; charset=utf-8",
        "arrow": "application/vnd.apache.arrow.stream",
        "parquet": "application/vnd.apache.parquet",
    }

    async def get(self, session: str, name: str) -> None:
        """Serve GET. The headers name the rows of the data and of the whole value."""
        self.auth_scope("run")
        query = self.query(rest.ValueQuery)
        columns = None if query.columns is None else query.columns.split(",")
        if not rest.is_id(session):
            raise NotFound
        wanted = ValueRequest(name=name, format=query.format, from_row=query.from_row, rows=query.rows, columns=columns)
        work = self.context.service.value(self.who, session, wanted, whole=True)
        found = await self.while_connected(work)
        self.set_header("Content-Type", self._types[found.format])
        self.set_header("Content-Security-Policy", INERT)
        self.set_header("Content-Disposition", "attachment")
        self.set_header("Kernelsvc-Rows", f"{found.from_row}-{found.from_row + found.rows}/{found.total}")
        self.write(found.data)


class JournalHandler(SessionPathHandler):
    """Handler of ``/v1/sessions/{id}/journal``: the journal file."""

    route = "/v1/sessions/{session}/journal"
    part = "journal"

    async def show(self, session: str) -> None:
        """Write all whole lines that the file has now."""
        self.query(rest.NoQuery)
        await send_open_record(self, session, "journal", self.context.service.journal(self.who, session))


def set_record_headers(handler: ApiHandler, session: str, form: str) -> None:
    """Set headers that stop a browser from running the content of a record.

    Args:
        handler: The request.
        session: The session's id.
        form: The format: ``jsonl`` for a journal, or that of a notebook.
    """
    handler.set_header("Content-Type", _RECORD_TYPES[form])
    if form != "jsonl":
        handler.set_header("Content-Security-Policy", INERT)
    where = "inline" if form == "html" else "attachment"
    handler.set_header("Content-Disposition", f'{where}; filename="{session}.{form}"')


async def send_record(handler: ApiHandler, session: str, part: RecordPart, stream: ByteStream) -> None:
    """Send a part of a record at the client's speed. Safe to cancel.

    Raises:
        BrokenPipeError: The part became shorter than promised. The response is cut off.
        KernelsvcError: The archive's notebook can't be converted to the format that the client asks for.
    """
    form = handler.query(rest.NotebookQuery).format if part == "notebook" else "jsonl"
    if form in ("html", "py"):
        records = handler.context.service.records
        assert records is not None
        data = await records.convert(handler.who, stream, form)
        set_record_headers(handler, session, form)
        handler.write(data)
        return
    set_record_headers(handler, session, form)
    handler.set_header("Content-Length", str(stream.size))
    while piece := await stream.next():
        handler.write(piece)
        await handler.flush()


async def send_open_record(handler: ApiHandler, session: str, part: RecordPart, stream: ByteStream) -> None:
    """Send a part of a record as ``send_record``, until the client disconnects, and close the stream."""
    try:
        await handler.while_connected(send_record(handler, session, part, stream))
    finally:
        stream.close()


async def send_file(handler: ApiHandler, reader: FileReader, start: int, size: int) -> None:
    """Send a part of a file at the client's speed. Safe to cancel.

    Raises:
        StreamClosedError: The client disconnected.
        BrokenPipeError: The file became shorter than promised. The response is cut off.
    """
    end = start + size
    while start < end:
        piece = await reader.read(start, min(CHUNK_BYTES, end - start))
        if not piece:
            raise BrokenPipeError("the file became shorter while it was being sent")
        start += len(piece)
        handler.write(piece)
        await handler.flush()


class HealthHandler(ApiHandler):
    """Handler of ``/healthz``."""

    scope = None
    route = "/healthz"

    def get(self) -> None:
        """Respond, which shows that the event loop runs."""
        self.answer(rest.Health(status="ok"))

    head = get


class ReadyHandler(ApiHandler):
    """Handler of ``/readyz``."""

    scope = None
    route = "/readyz"

    def get(self) -> None:
        """Respond 200 if sessions of every template can be created, else 503 with the reason."""
        if self.context.stopping or not self.context.service.ready():
            if failed := [each for each in self.context.service.templates() if each.get("state") == "failed"]:
                one = failed[0]
                raise TemplateFailed(f"The template {one['name']!r} can't be started: {one.get('message', '')}")
            raise AtCapacity("The server is starting or stopping. Try again in a moment.")
        self.answer(rest.Health(status="ready"))

    head = get


class MetricsHandler(ApiHandler):
    """Handler of ``/metrics``."""

    route = "/metrics"

    def initialize(self, context: ServerContext, **more: Any) -> None:
        """Tornado's hook: require the scope of the settings."""
        super().initialize(context, **more)
        self.scope = context.settings.metrics_scope

    def get(self) -> None:
        """Write the metrics in Prometheus' text format."""
        if self.scope is not None:
            self.auth_scope(self.scope)
        self.set_header("Content-Type", CONTENT_TYPE)
        self.write(self.context.metrics.exposition())


class DocumentHandler(ApiHandler):
    """Handler of ``/v1/openapi.json`` and ``/v1/openrpc.json``."""

    scope = None
    kind: str

    def get(self) -> None:
        """Write the document that is generated from the tables."""
        self.set_header("Content-Type", "application/json")
        make = openapi.openapi_json if self.kind == "openapi" else openapi.openrpc_json
        self.write(make(__version__))
