"""``/v1/sessions/{id}/files/...``: upload, download, list and delete in a session's directory.

A cell may put links and special files into the directory at any time. All access
is therefore through ``linux.rooted_dir``. Downloads and uploads are limited by the
session's ``disk_bytes`` (a sparse file can have any size).
"""

from __future__ import annotations

import asyncio
import os
from typing import Any
from urllib.parse import quote_from_bytes, unquote_to_bytes

import msgspec
from tornado.web import HTTPError

from kernelsvc.errors import BadRequest, Conflict, KernelsvcError, NotFound, SessionClosed, TooLarge
from kernelsvc.linux.rooted_dir import RootedDirectory, Upload, etag_of, parse_path
from kernelsvc.model.objects import SessionState
from kernelsvc.protocol import jsonrpc
from kernelsvc.server.handler import ApiHandler
from kernelsvc.server.native import routes
from kernelsvc.server.native.handlers import INERT, send_file

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
    _upload: Upload | None = None
    _failure: Exception | None = None
    _received = 0
    _bound = 0

    # --- the way in ----------------------------------------------------------------------

    async def prepare(self) -> None:
        """Tornado's hook: check an upload before the first byte of its body."""
        await super().prepare()
        if self.request.method == "PUT":
            self._begin_upload()

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

    def _parts(self) -> tuple[bytes, ...]:
        """Return the path below ``files/`` from the raw URL. Names may be any bytes."""
        raw = self.request.path.partition("/files/")[2]
        return parse_path(unquote_to_bytes(raw).removesuffix(b"/"))

    def _directory(self) -> RootedDirectory:
        return RootedDirectory(self.context.service.files_dir(self.who, self._session()))

    # --- down -----------------------------------------------------------------------------

    async def get(self, session: str, path: str = "") -> None:
        """Send a file, or list a directory."""
        query = self.query(routes.ListFilesQuery)
        if path == "":
            await self._list((), query)
            return
        parts = self._parts()
        with self._directory() as directory:
            if path.endswith("/") or directory.is_directory(parts):
                await self._list(parts, query)
                return
        await self.download(parts)

    async def download(self, parts: tuple[bytes, ...]) -> None:
        """Send a file."""
        with self._directory() as directory:
            fd, info = directory.open_file(parts)
        try:
            if (span := self._head(parts, info)) is not None:
                await self.while_connected(send_file(self, fd, span.start, span.size))
        finally:
            os.close(fd)

    async def head(self, session: str, path: str = "") -> None:
        """Send the headers of GET without the body."""
        with self._directory() as directory:
            fd, info = directory.open_file(self._parts())
        os.close(fd)
        self._head(self._parts(), info)

    def _head(self, parts: tuple[bytes, ...], info: os.stat_result) -> ByteRange | None:
        """Set status and headers. Return the bytes to send, None for none."""
        etag = etag_of(info)
        self.set_header("ETag", etag)
        self.set_header("Accept-Ranges", "bytes")
        if matches(self.request.headers.get("If-None-Match"), etag):
            self.set_status(304)
            return None
        span = self._span(info.st_size, etag)
        bound = self._limit(self._session())
        if span.size > bound:
            advice = f"This file says that it has {info.st_size} bytes and the bound is {bound}; read it by Range."
            raise TooLarge(advice, size=info.st_size, bound=bound)
        self.set_header("Content-Type", "application/octet-stream")
        # Content from a cell must never become a page of this server's origin.
        self.set_header("Content-Security-Policy", INERT)
        self.set_header("Content-Disposition", f"attachment; filename*=UTF-8''{quote_from_bytes(parts[-1], safe='')}")
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

    async def _list(self, parts: tuple[bytes, ...], query: routes.ListFilesQuery) -> None:
        directory = self._directory()

        def collect() -> Any:
            with directory:
                return directory.list(parts, recursive=query.recursive, limit=query.limit)

        entries, truncated = await self.while_connected(asyncio.to_thread(collect))
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
        self.answer(routes.FileList(path=shown(b"/".join(parts)), files=files, truncated=truncated))

    # --- up ---------------------------------------------------------------------------------

    def _begin_upload(self) -> None:
        session = self._session()
        self.auth_scope("run")
        if self.context.service.get(self.who, session).state is SessionState.CLOSED:
            raise SessionClosed
        with self._directory() as directory:
            upload = directory.upload(self._parts())
        try:
            self._check_conditions(upload)
        except BaseException:
            upload.abort()
            raise
        self._upload, self._bound = upload, self.max_body()

    def _check_conditions(self, upload: Upload) -> None:
        current = upload.current()
        etag = etag_of(current) if current else ""
        wanted, unwanted = self.request.headers.get("If-Match"), self.request.headers.get("If-None-Match")
        if wanted is not None and not (current and matches(wanted, etag)):
            raise Conflict("The file is not the one that If-Match names. Read it again before you replace it.")
        if unwanted is not None and current and matches(unwanted, etag):
            raise Conflict("The file exists already, and If-None-Match forbids to replace it.")

    def data_received(self, chunk: bytes) -> None:
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
            self._upload.write(chunk)
        except KernelsvcError as error:
            self._failure = error
            self._upload.abort()

    async def put(self, session: str, path: str = "") -> None:
        """Rename the uploaded file to its final name."""
        upload = self._upload
        if upload is None:
            raise BadRequest("Name the file to write: PUT /v1/sessions/ID/files/NAME.")
        if self._failure is not None:
            raise self._failure
        existed = upload.current() is not None
        sha256, etag = upload.commit()
        name = shown(b"/".join(self._parts()))
        change = {"op": "put", "path": name, "size": upload.size, "sha256": sha256}
        self.context.service.files_changed(self.who, session, [change])
        self.set_header("ETag", etag)
        written = routes.FileWritten(path=name, size=upload.size, sha256=sha256, etag=etag)
        self.answer(written, 200 if existed else 201)

    async def delete(self, session: str, path: str = "") -> None:
        """Delete a file or a directory."""
        self.auth_scope("run")
        query = self.query(routes.DeleteFileQuery)
        parts = self._parts() if path else ()
        if not parts:
            raise BadRequest("The session's directory itself can't be deleted. Close the session instead.")
        if self.context.service.get(self.who, session).state is SessionState.CLOSED:
            raise SessionClosed

        directory = self._directory()

        def remove() -> None:
            with directory:
                directory.delete(parts, recursive=query.recursive)

        await self.while_connected(asyncio.to_thread(remove))
        change = {"op": "delete", "path": shown(b"/".join(parts))}
        self.context.service.files_changed(self.who, session, [change])
        self.set_status(204)

    # --- the end ------------------------------------------------------------------------------

    def on_finish(self) -> None:
        """Tornado's hook: remove an incomplete upload."""
        if self._upload is not None:
            self._upload.abort()
        super().on_finish()

    def on_connection_close(self) -> None:
        """Tornado's hook: the client disconnected during an upload."""
        if self._upload is not None:
            self._upload.abort()
        super().on_connection_close()


def shown(path: bytes) -> str:
    """Decode a path for JSON. Bytes that are not UTF-8 become U+FFFD."""
    return path.decode("utf-8", "replace")
