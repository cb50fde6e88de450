"""``/v1/sessions/{id}/files/...``: upload, download, list and delete in a session's directory.

All access is through the service's port for files (``FilesApi``). Downloads and uploads are limited by the session's
``disk_bytes`` (a sparse file can have any size).
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any
from urllib.parse import quote_from_bytes, unquote_to_bytes

import msgspec
from tornado.web import HTTPError

from kernelsvc.errors import BadRequest, Conflict, KernelsvcError, NotFound, TooLarge
from kernelsvc.model.files import FileStatus
from kernelsvc.protocol import jsonrpc
from kernelsvc.server.handler import ApiHandler
from kernelsvc.server.native import routes
from kernelsvc.server.native.handlers import INERT, send_file

if TYPE_CHECKING:
    from kernelsvc.service.api import FilesApi, FileWriter

#: Limit of one transfer, in bytes, in a session without ``disk_bytes``.
UNBOUNDED = 1 << 40


class ByteRange(msgspec.Struct, frozen=True):
    """``size`` bytes from ``start``."""

    start: int
    size: int


def parse_range(header: str | None, size: int) -> ByteRange | None:
    """Parse a ``Range`` header (RFC 9110, section 14.1.2). None: the whole file.

    Several ranges, and units other than bytes, are ignored, as the RFC allows.

    Raises:
        ValueError: The range begins after the end of the file (416).
    """
    unit, _, spec = (header or "").strip().partition("=")
    if unit.strip().lower() != "bytes" or "," in spec:
        return None
    first, dash, last = spec.strip().partition("-")
    if not dash or not all(part == "" or (part.isascii() and part.isdecimal()) for part in (first, last)):
        return None
    if first == "":
        return _suffix(last, size)
    start, end = int(first[:18]), min(int(last[:18]) if last else size - 1, size - 1)
    if last and int(last[:18]) < start:
        return None
    if start >= size:
        raise ValueError("the range lies behind the end")
    return ByteRange(start, end - start + 1)


def _suffix(last: str, size: int) -> ByteRange | None:
    if last == "":
        return None
    wanted = min(int(last[:18]), size)
    if wanted == 0:
        raise ValueError("the range is empty")
    return ByteRange(size - wanted, wanted)


def matches(header: str | None, etag: str) -> bool:
    """Return whether an ``If-Match`` or ``If-None-Match`` header names this ETag."""
    if header is None:
        return False
    named = [part.strip().removeprefix("W/") for part in header.split(",")]
    return "*" in named or etag in named


class FileHandler(ApiHandler):
    """Handler of one path below ``files/``."""

    route = "/v1/sessions/{session}/files/{path}"
    #: What holds the files, for messages.
    place = "session's directory"
    _upload: FileWriter | None = None
    _failure: Exception | None = None
    _received = 0
    _bound = 0

    # --- the way in ----------------------------------------------------------------------

    async def prepare(self) -> None:
        """Tornado's hook: check an upload before the first byte of its body."""
        await super().prepare()
        if self.request.method == "PUT":
            await self._begin_upload()

    def max_body(self) -> int:
        """Return the free space of the session's disk limit for an upload."""
        if self.request.method != "PUT":
            return super().max_body()
        session = self._session()
        limit = self._limit(session)
        used = self.context.service.get(self.who, session).usage.disk_bytes or 0
        return max(0, limit - used)

    def decode_argument(self, value: bytes, name: str | None = None) -> str:
        """Tornado's hook. A file's name may be any bytes, which ``_parts`` reads from the raw URL."""
        return value.decode("utf-8", "surrogateescape") if name is None else super().decode_argument(value, name)

    def _session(self) -> str:
        session: str = self.path_args[0]
        if not routes.is_id(session):
            raise NotFound
        return session

    def _limit(self, session: str) -> int:
        return self.context.service.get(self.who, session).limits.disk_bytes or UNBOUNDED

    def _files(self) -> FilesApi:
        return self.context.service.files

    def _path(self) -> bytes:
        """Return the path below ``files/`` from the raw URL. Names may be any bytes."""
        raw = self.request.path.partition("/files/")[2]
        return unquote_to_bytes(raw).removesuffix(b"/")

    # --- down -----------------------------------------------------------------------------

    async def get(self, session: str, path: str = "") -> None:
        """Send a file, or list a directory."""
        query = self.query(routes.ListFilesQuery)
        if path == "":
            await self._list(b"", query)
            return
        named, session = self._path(), self._session()
        files = self._files()
        if path.endswith("/") or (await files.stat(self.who, session, named)).kind == "directory":
            if self.request.headers.get("Accept") == "application/octet-stream":
                raise BadRequest(f"{shown(named)!r} is a directory. Name a file in it.")
            await self._list(named, query)
        else:
            await self.download(named)

    async def download(self, path: bytes) -> None:
        """Send a file."""
        reader = await self._files().open(self.who, self._session(), path)
        try:
            if (span := self._head(reader.status)) is not None:
                await self.while_connected(send_file(self, reader, span.start, span.size))
        finally:
            reader.close()

    async def head(self, session: str, path: str = "") -> None:
        """Send the headers of GET without the body."""
        reader = await self._files().open(self.who, self._session(), self._path())
        reader.close()
        self._head(reader.status)

    def _head(self, status: FileStatus) -> ByteRange | None:
        """Set status and headers. Return the bytes to send, None for none."""
        etag = status.etag
        self.set_header("ETag", etag)
        self.set_header("Accept-Ranges", "bytes")
        if matches(self.request.headers.get("If-None-Match"), etag):
            self.set_status(304)
            return None
        span = self._span(status.size, etag)
        bound = self._limit(self._session())
        if span.size > bound:
            advice = f"This file says that it has {status.size} bytes and the bound is {bound}; read it by Range."
            raise TooLarge(advice, size=status.size, bound=bound)
        self.set_header("Content-Type", "application/octet-stream")
        # Content from a cell must never become a page of this server's origin.
        self.set_header("Content-Security-Policy", INERT)
        name = status.path.rpartition(b"/")[2]
        self.set_header("Content-Disposition", f"attachment; filename*=UTF-8''{quote_from_bytes(name, safe='')}")
        self.set_header("Content-Length", str(span.size))
        return span if self.request.method == "GET" else None

    def _span(self, size: int, etag: str) -> ByteRange:
        header = self.request.headers.get("Range")
        condition = self.request.headers.get("If-Range")
        if condition is not None and condition != etag:
            header = None
        try:
            span = parse_range(header, size)
        except ValueError:
            self.keep_headers(Content_Range=f"bytes */{size}")
            raise HTTPError(416) from None
        if span is None:
            return ByteRange(0, size)
        self.set_status(206)
        self.set_header("Content-Range", f"bytes {span.start}-{span.start + span.size - 1}/{size}")
        return span

    async def _list(self, path: bytes, query: routes.ListFilesQuery) -> None:
        depth = None if query.recursive else 1
        # The turn also holds for what takes the event loop's time: the description of all entries.
        async with self.context.turn_of(self.who, "files"):
            listing = self._files().list(self.who, self._session(), path, depth=depth, limit=query.limit)
            entries, truncated = await self.while_connected(listing)
            files = [
                routes.FileEntry(
                    path=shown(entry.path),
                    url=quote_from_bytes(entry.path),
                    kind=entry.kind,
                    size=entry.size,
                    modified=entry.modified,
                )
                for entry in entries
            ]
            self.answer(routes.FileList(path=shown(path), files=files, truncated=truncated))

    # --- up ---------------------------------------------------------------------------------

    async def _begin_upload(self) -> None:
        session = self._session()
        self.auth_scope("run")
        self._upload = await self._files().write(self.who, session, self._path())
        self._check_conditions(self._upload.replaces)
        self._bound = self.max_body()

    def _check_conditions(self, present: FileStatus | None) -> None:
        wanted, unwanted = self.request.headers.get("If-Match"), self.request.headers.get("If-None-Match")
        if wanted is not None and not (present and matches(wanted, present.etag)):
            raise Conflict("The file is not the one that If-Match names. Read it again before you replace it.")
        if unwanted is not None and present and matches(unwanted, present.etag):
            raise Conflict("The file exists already, and If-None-Match forbids to replace it.")

    async def data_received(self, chunk: bytes) -> None:
        """Tornado's hook: write a piece of the body to the disk."""
        if self._upload is None:
            super().data_received(chunk)
            return
        self._received += len(chunk)
        if self._failure is not None:
            return
        try:
            if self._received > self._bound:
                raise jsonrpc.too_large("The file", self._received, self._bound)
            await self._upload.write(chunk)
        except KernelsvcError as error:
            self._failure = error
            self._upload.close()

    async def put(self, session: str, path: str = "") -> None:
        """Rename the uploaded file to its final name."""
        upload = self._upload
        if upload is None:
            raise BadRequest("Name the file to write: PUT /v1/sessions/ID/files/NAME.")
        if self._failure is not None:
            raise self._failure
        stored = await upload.commit()
        self.set_header("ETag", stored.etag)
        written = routes.FileWritten(path=shown(self._path()), size=stored.size, sha256=stored.sha256, etag=stored.etag)
        self.answer(written, 201 if upload.replaces is None else 200)

    async def delete(self, session: str, path: str = "") -> None:
        """Delete a file or a directory."""
        self.auth_scope("run")
        query = self.query(routes.DeleteFileQuery)
        if not path:
            raise BadRequest(f"The {self.place} itself can't be deleted. Name a file in it.")
        files = self._files()
        removal = files.remove(self.who, self._session(), self._path(), recursive=query.recursive)
        await self.while_connected(removal)
        self.set_status(204)

    # --- the end ------------------------------------------------------------------------------

    def on_finish(self) -> None:
        """Tornado's hook: remove an incomplete upload."""
        if self._upload is not None:
            self._upload.close()
        super().on_finish()

    def on_connection_close(self) -> None:
        """Tornado's hook: the client disconnected during an upload."""
        if self._upload is not None:
            self._upload.close()
        super().on_connection_close()


class WorkspaceFileHandler(FileHandler):
    """Handler of one path below the files of a workspace. An upload is limited by the free space of its quota."""

    route = "/v1/workspaces/{owner}/{name}/files/{path}"
    place = "workspace"
    _most = UNBOUNDED
    _free = 0

    async def prepare(self) -> None:
        """Tornado's hook: read the quota before an upload is checked against it."""
        if self.request.method == "PUT":
            await self.admit_request()
            self.auth_scope("run")
            info = await self.context.service.workspaces.get(self.who, self._session())
            self._most = UNBOUNDED if info.max_bytes is None else info.max_bytes
            self._free = max(0, self._most - (info.used_bytes or 0))
        await super().prepare()

    def max_body(self) -> int:
        """Return the free space of the workspace for an upload."""
        return self._free if self.request.method == "PUT" else ApiHandler.max_body(self)

    def _session(self) -> str:
        owner, name = self.path_args[:2]
        return f"{owner}/{name}"

    def _limit(self, session: str) -> int:
        return self._most

    def _files(self) -> FilesApi:
        return self.context.service.workspaces.files

    def _path(self) -> bytes:
        # "/v1/workspaces/OWNER/NAME/files/PATH", of which owner and name may be "files".
        return unquote_to_bytes(self.request.path.split("/", 6)[6]).removesuffix(b"/")

    def get(self, owner: str, name: str, path: str = "") -> Coroutine[Any, Any, None]:  # type: ignore[override]
        """Send a file, or list a directory."""
        return super().get(self._session(), path)

    def head(self, owner: str, name: str, path: str = "") -> Coroutine[Any, Any, None]:  # type: ignore[override]
        """Send the headers of GET without the body."""
        return super().head(self._session(), path)

    def put(self, owner: str, name: str, path: str = "") -> Coroutine[Any, Any, None]:  # type: ignore[override]
        """Rename the uploaded file to its final name."""
        return super().put(self._session(), path)

    def delete(self, owner: str, name: str, path: str = "") -> Coroutine[Any, Any, None]:  # type: ignore[override]
        """Delete a file or a directory."""
        return super().delete(self._session(), path)


def shown(path: bytes) -> str:
    """Decode a path for JSON. Bytes that are not UTF-8 become U+FFFD."""
    return path.decode("utf-8", "replace")
