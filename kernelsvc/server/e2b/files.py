"""Upload and download of a sandbox's files: ``/files``.

Downloads work as in the native API (``native.files``). An upload is a form whose
parts named ``file`` are written, or a body that is the file. Data is written to the
disk as it arrives, and the file gets its name when it is complete.
"""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from kernelsvc.errors import BadRequest, Conflict, KernelsvcError, NotSupported
from kernelsvc.protocol import e2b, jsonrpc
from kernelsvc.protocol.multipart import Form, Part, PartEnd, Piece, boundary_of
from kernelsvc.server.e2b import metadata, paths
from kernelsvc.server.e2b.exec_files import ExecFiles, temporary_name
from kernelsvc.server.e2b.handler import SandboxHandler
from kernelsvc.server.e2b.links import HomeLinks
from kernelsvc.server.native.files import FileHandler

if TYPE_CHECKING:
    from kernelsvc.service.api import FileWriter

#: Most bytes of decompressed data at a time. A byte of gzip may become 1,032 (RFC 1951).
_UNPACKED = 1 << 20
#: zlib's window bits for gzip: 15, and 16 for the gzip format.
_GZIP = 31


class FilesHandler(SandboxHandler, FileHandler):
    """Handler of ``/files?path=``."""

    route = "/files"
    port = e2b.FILES_PORT
    signed = {"GET": "read", "HEAD": "read", "POST": "write"}
    _form: Form | None = None
    _unpack: Any = None
    _named = ""
    _target = b""
    _place: str | None = None
    _metadata: Mapping[str, str] = MappingProxyType({})

    # -- the way in ---------------------------------------------------------------------------

    async def prepare(self) -> None:
        """Tornado's hook: check an upload before the first byte of its body."""
        self._written: list[dict[str, Any]] = []
        self._carried: list[tuple[bytes, str]] = []
        await super().prepare()
        if self.request.method == "POST":
            await self._begin()

    def max_body(self) -> int:
        """Return the free space of the session's disk limit for an upload."""
        if self.request.method != "POST":
            return super().max_body()
        used = self.context.service.get(self.who, self.sandbox).usage.disk_bytes or 0
        return max(0, self._limit(self.sandbox) - used)

    async def _begin(self) -> None:
        self._bound = self.max_body()
        headers = self.request.headers
        self._metadata = metadata.from_headers(headers.get_all())
        packing = headers.get("Content-Encoding", "identity").strip().lower()
        if packing not in ("identity", "gzip"):
            raise BadRequest("The body's Content-Encoding must be gzip or none.")
        self._unpack = zlib.decompressobj(_GZIP) if packing == "gzip" else None
        boundary = boundary_of(headers.get("Content-Type", ""))
        if boundary is not None:
            self._form = Form(boundary)
        else:
            await self._open(self.argument("path"))

    def _session(self) -> str:
        return self.sandbox

    def _path(self) -> bytes:
        return paths.below_home(self._named)

    async def _resolve(self, path: str | None) -> str:
        """Return an absolute path without links below the home directory."""
        if not path:
            raise BadRequest("Name the file: /files?path=NAME.")
        return await HomeLinks(self.context.service.files, self.who, self.sandbox).resolve(path)

    # -- down ---------------------------------------------------------------------------------

    async def get(self, session: str = "", path: str = "") -> None:
        """Send a file."""
        self._named = await self._resolve(self.argument("path"))
        if paths.is_outside_home(self._named):
            await self._get_elsewhere(self._named)
            return
        home_path = self._path()
        if (await self.context.service.files.stat(self.who, self.sandbox, home_path)).kind == "directory":
            raise BadRequest("This is a directory. List it, or name a file in it.")
        await self.download(home_path)

    async def _get_elsewhere(self, path: str) -> None:
        copy = await self.while_connected(self._elsewhere().fetch(path))
        try:
            await self.download(copy)
        finally:
            await self._remove_copy(copy)

    async def _remove_copy(self, copy: bytes) -> None:
        with contextlib.suppress(KernelsvcError):
            await self.context.service.files.remove(self.who, self.sandbox, copy, record=False)

    def _elsewhere(self) -> ExecFiles:
        return ExecFiles(self.context.service, self.who, self.sandbox)

    async def head(self, session: str = "", path: str = "") -> None:
        """Send the headers of GET without the body."""
        self._named = await self._resolve(self.argument("path"))
        await super().head(self.sandbox, "file")

    # -- up -----------------------------------------------------------------------------------

    async def _open(self, path: str | None) -> None:
        # A file outside the home directory is uploaded into it, and moved when it is complete.
        named = await self._resolve(path)
        self._place = named if paths.is_outside_home(named) else None
        if self._place is not None and self._metadata:
            raise NotSupported(
                f"Only files below {paths.HOME} can have metadata. Leave it out, or write the file there."
            )
        self._target = temporary_name() if self._place is not None else paths.below_home(named)
        if not self._target:
            raise Conflict("The home directory can't be a file. Name a file in it.")
        self._upload = await self.context.service.files.write(
            self.who,
            self.sandbox,
            self._target,
            attributes=metadata.to_attributes(self._metadata),
            record=self._place is None,
        )

    async def data_received(self, chunk: bytes) -> None:
        """Tornado's hook: write a piece of the body to the disk. No more is read before it is written."""
        if self.request.method != "POST" or self._failure is not None:
            return
        if self._unpack is not None:
            await self._take_packed(chunk)
        else:
            await self._take_data(chunk)

    async def _take_packed(self, chunk: bytes) -> None:
        """Decompress in a thread, a MiB at a time. Other clients are served between two of them."""
        size = 0
        while chunk or (size == _UNPACKED and not self._unpack.eof):
            try:
                data, chunk = await asyncio.to_thread(self._decompress, chunk)
            except zlib.error:
                self._fail(BadRequest("The body is not valid gzip data."))
                return
            if self._failure is not None:  # the disk is full, or the client disconnected meanwhile
                return
            size = len(data)
            await self._take_data(data)

    def _decompress(self, data: bytes) -> tuple[bytes, bytes]:
        """Return at most a MiB of decompressed data, and the rest of ``data``."""
        if self._unpack.eof:  # RFC 1952: a file may consist of several members
            self._unpack = zlib.decompressobj(_GZIP)
        found = self._unpack.decompress(data, _UNPACKED)
        return found, self._unpack.unused_data if self._unpack.eof else self._unpack.unconsumed_tail

    async def _take_data(self, data: bytes) -> None:
        try:
            self._received += len(data)
            if self._received > self._bound:
                raise jsonrpc.too_large("The file", self._received, self._bound)
            for piece in self._form.feed(data) if self._form is not None else [data]:
                await self._take(piece)
        except KernelsvcError as error:
            self._fail(error)

    async def _take(self, piece: Piece) -> None:
        if isinstance(piece, Part):
            if piece.name == "file":
                await self._open(self.argument("path") or piece.filename)
        elif self._upload is None:
            return  # another field of the form
        elif isinstance(piece, PartEnd):
            await self._commit(self._upload)
        else:
            await self._upload.write(piece)

    def _fail(self, error: KernelsvcError) -> None:
        self._failure = error
        if self._upload is not None:
            self._upload.close()

    async def _commit(self, upload: FileWriter) -> None:
        await upload.commit()
        self._upload = None
        if self._place is not None:
            self._carried.append((self._target, self._place))
            self._written.append({"name": self._place.rpartition("/")[2], "type": "file", "path": self._place})
            return
        path = paths.path_of(self._target)
        written: dict[str, Any] = {"name": path.rpartition("/")[2], "type": "file", "path": path}
        self._written.append(written | ({"metadata": self._metadata} if self._metadata else {}))

    def on_connection_close(self) -> None:
        """Tornado's hook: the client disconnected. A piece that a thread decompresses is not written any more."""
        self._failure = self._failure or BadRequest("The client disconnected.")
        super().on_connection_close()

    def on_finish(self) -> None:
        """Tornado's hook: remove copies that were not moved to their path."""
        for copy, _ in getattr(self, "_carried", ()):
            self.context.background.start(self._remove_copy(copy))
        super().on_finish()

    async def post(self) -> None:
        """Rename the uploaded files to their final names."""
        if self._failure is not None:
            raise self._failure
        if self._unpack is not None and not self._unpack.eof:
            raise BadRequest("The gzip data is cut off. Send it again.")
        if self._form is None and self._upload is not None:
            await self._commit(self._upload)
        elif self._form is None or not self._form.complete:
            raise BadRequest("The form is cut off. Send it again.")
        if not self._written:
            raise BadRequest("The form has no part named 'file'.")
        while self._carried:
            await self.while_connected(self._elsewhere().put(*self._carried[0]))
            del self._carried[0]
        self.answer(self._written)


ROUTES: list[tuple[str, Any]] = [(r"/files", FilesHandler)]
