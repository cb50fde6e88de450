"""Sessions as the containers of the code interpreter: found, made, renewed, and their files."""

from __future__ import annotations

import asyncio
import contextlib
import os
import posixpath
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kernelsvc.errors import BadRequest, Conflict, KernelsvcError, NotFound, NotSupported, SessionClosed, TooLarge
from kernelsvc.model.answers.values import Citation, MessageItem
from kernelsvc.model.cluster.ids import DIGITS
from kernelsvc.model.files import FileStatus
from kernelsvc.model.limits import LimitsRequest
from kernelsvc.model.objects import Principal, SessionInfo, SessionRequest, SessionState
from kernelsvc.protocol.openai.requests import CodeTool
from kernelsvc.protocol.openai.responses import container_id, file_id, path_of_file, session_id
from kernelsvc.service.api import ServiceApi

#: Most files of a container that are compared, and that an answer names. Bytes of files that a new container gets.
MAX_LISTED, MAX_NEW, MAX_COPIED = 1000, 100, 256 * 1024 * 1024
#: Most keys of containers that are remembered.
MAX_KEYS = 10_000
#: Name of the extended attribute of a file that the user gave.
SOURCE = "user.kernelsvc.source"
#: The label that marks a session as a container, and holds its idle minutes.
LABEL = "openai.idle_seconds"
EXPIRED = "Container is expired."
GONE = (
    "The earlier Python session has ended: its variables and imports are gone, and a new one starts. "
    "Files that are still there: {}."
)
_LINK = re.compile(r"sandbox:(?:/mnt/data/)?([^)\s\"'<>\]]+)")
_CONTAINER = re.compile(rf"cntr_{DIGITS}\Z")


class Containers:
    """Access to containers.

    Args:
        service: The sessions.
        idle_seconds: Idle time after which a container ends, if its request names none.
        pauses: Whether a container is paused at the end of its lease. Otherwise it is closed.
    """

    def __init__(self, service: ServiceApi, idle_seconds: float, *, pauses: bool) -> None:
        self._service, self._idle_seconds, self._pauses = service, idle_seconds, pauses
        # How often the container of a key has been replaced. It is found again after a restart.
        self._replaced: OrderedDict[tuple[str, str], int] = OrderedDict()

    async def find(self, who: Principal, container: str) -> SessionInfo:
        """Return the session of a container, open or ended.

        Raises:
            NotFound: The principal has no such container.
        """
        if _CONTAINER.fullmatch(container) is None:
            raise NotFound(f"There is no container {container[:100]!r}.")
        session = session_id(container)
        await self._service.ensure_loaded(session)
        try:
            found = self._service.get(who, session)
        except NotFound:
            raise NotFound(f"There is no container {container!r}.") from None
        if found.principal != who.name:
            raise NotFound(f"There is no container {container!r}.")
        return found

    async def need_open(self, who: Principal, container: str) -> SessionInfo:
        """Return the session of a container. A paused one continues.

        Raises:
            NotFound: The principal has no such container.
            BadRequest: It is expired.
        """
        found = await self.find(who, container)
        if found.state is SessionState.CLOSED:
            raise BadRequest(EXPIRED)
        self.renew(who, found)
        return found

    async def create(
        self,
        who: Principal,
        *,
        name: str | None = None,
        memory_bytes: int | None = None,
        no_network: bool = False,
        idle_seconds: float | None = None,
    ) -> SessionInfo:
        """Create a container.

        Raises:
            KernelsvcError: The service's own, for example of a quota.
        """
        made = await self._service.create(who, self._request(name, memory_bytes, no_network, idle_seconds, None))
        self.renew(who, made)
        return made

    async def named(
        self, who: Principal, key: str, *, memory_bytes: int | None = None, no_network: bool = False
    ) -> tuple[SessionInfo, str]:
        """Return the container of a key. If it has ended, make another one with its files.

        Args:
            who: The principal.
            key: The caller's name for the container.
            memory_bytes: As in ``create``.
            no_network: As in ``create``.

        Returns:
            The session, and a note for the model that its variables are gone, or "".
        """
        known = (who.name, key)
        number = self._replaced.pop(known, 0)
        ended = None
        while True:
            found = await self._service.create(
                who, self._request(None, memory_bytes, no_network, None, f"{key}-{number}")
            )
            if found.state is not SessionState.CLOSED:
                break
            ended, number = found, number + 1
        self._replaced[known] = number
        while len(self._replaced) > MAX_KEYS:
            self._replaced.popitem(last=False)
        self.renew(who, found)
        if ended is None:
            return found, ""
        copied = await self.copy_files(who, ended.id, found.id)
        return found, GONE.format(", ".join(copied) or "none")

    def _request(
        self, name: str | None, memory_bytes: int | None, no_network: bool, idle_seconds: float | None, key: str | None
    ) -> SessionRequest:
        idle = self._idle_seconds if idle_seconds is None else idle_seconds
        limits = LimitsRequest(memory_bytes=memory_bytes, network="none" if no_network else None)
        return SessionRequest(
            name=name or "code interpreter", labels={LABEL: f"{idle:.0f}"}, limits=limits, idempotency_key=key
        )

    def renew(self, who: Principal, session: SessionInfo) -> None:
        """Start a container's idle time again, and end its pause."""
        seconds = float(session.labels.get(LABEL) or self._idle_seconds)
        # The lifetime limit of the server may be shorter. It holds without a lease too.
        with contextlib.suppress(Conflict, BadRequest):
            self._service.leases.grant(who, session.id, seconds, then="pause" if self._pauses else "close")

    async def copy_files(self, who: Principal, source: str, target: str) -> list[str]:
        """Copy the files of an ended container into another one, within limits. Return their names."""
        copied: list[str] = []
        room = MAX_COPIED
        try:
            files = await self.files(who, source)
        except KernelsvcError:
            return copied
        for status in files.values():
            if status.size > room or len(copied) >= MAX_NEW:
                continue
            try:
                data = await self.read(who, source, status.path)
                await self._service.files.put(who, target, status.path, data)
            except KernelsvcError:
                continue
            room -= status.size
            copied += _texts([status.path])
        return copied

    # --- files ---------------------------------------------------------------------------

    async def files(self, who: Principal, session: str, *, attributes: bool = False) -> dict[bytes, FileStatus]:
        """Return the regular files of a container by path, without hidden ones."""
        found, _ = await self._service.files.list(
            who, session, b"", depth=None, limit=MAX_LISTED, attributes=attributes
        )
        return {
            each.path: each
            for each in found
            if each.kind == "file" and not any(part.startswith(b".") for part in each.path.split(b"/"))
        }

    async def find_file(self, who: Principal, session: str, given: str) -> FileStatus:
        """Return the description of a file.

        Raises:
            NotFound: The container has no such file.
        """
        path = path_of_file(given)
        if path is None:
            files = await self.files(who, session)
            path = next((each for each in files if file_id(each) == given), None)
        if not path:
            raise NotFound(f"The container has no file {given[:100]!r}.")
        try:
            found = await self._service.files.stat(who, session, path, attributes=True)
        except (NotSupported, OSError):
            found = await self._service.files.stat(who, session, path)
        if found.kind != "file":
            raise NotFound(f"The container has no file {given[:100]!r}.")
        return found

    async def put(self, who: Principal, session: str, name: str, data: bytes) -> bytes:
        """Write a file that the user gave. Return its path.

        Raises:
            BadRequest: The name is not valid.
        """
        path = file_name(name)
        try:
            writer = await self._service.files.write(who, session, path, attributes={SOURCE: b"user"})
        except (NotSupported, TooLarge):
            await self._service.files.put(who, session, path, data)
            return path
        try:
            await writer.write(data)
            await asyncio.shield(writer.commit())
        finally:
            writer.close()
        return path

    async def read(self, who: Principal, session: str, path: bytes) -> bytes:
        """Return the content of a file, at most ``MAX_COPIED`` bytes."""
        reader = await self._service.files.open(who, session, path)
        try:
            pieces: list[bytes] = []
            offset = 0
            while offset < MAX_COPIED and (piece := await reader.read(offset, 1024 * 1024)):
                pieces.append(piece)
                offset += len(piece)
            return b"".join(pieces)
        finally:
            reader.close()

    async def remove(self, who: Principal, session: str, path: bytes) -> None:
        """Remove a file."""
        await self._service.files.remove(who, session, path)


def file_name(name: str) -> bytes:
    """Return the path for the name of an uploaded file: its last part.

    Raises:
        BadRequest: The name is empty, too long, or a special one.
    """
    last = posixpath.basename(name.replace("\\", "/"))
    path = last.encode("utf-8", "surrogateescape")
    if last in ("", ".", "..") or "\0" in last or len(path) > 255:
        raise BadRequest("The name of a file has 1 to 255 bytes.", param="file")
    return path


def new_files(before: Mapping[bytes, FileStatus], after: Mapping[bytes, FileStatus]) -> list[str]:
    """Return the paths of files that are new or changed, at most ``MAX_NEW``."""
    found = [path for path, each in after.items() if path not in before or before[path].etag != each.etag]
    return _texts(sorted(found))[:MAX_NEW]


def _texts(paths: Iterable[bytes]) -> list[str]:
    """Return the paths that are text. Others have no form in JSON (RFC 8259, section 8.1), and are only listed."""
    found = []
    for path in paths:
        with contextlib.suppress(UnicodeDecodeError):
            found.append(path.decode())
    return found


def cite(message: MessageItem, made: list[str], known: Mapping[bytes, FileStatus]) -> list[Citation]:
    """Return the citations of a message: files that it links, and the other new ones without a position.

    Args:
        message: The message.
        made: Paths of the files that the answer's code made.
        known: All files of the container.
    """
    found: list[Citation] = []
    for link in _LINK.finditer(message.text):
        path = posixpath.normpath(link.group(1))
        if os.fsencode(path) in known:
            found.append(Citation(path=path, start=link.start(), end=link.end()))
    named = {each.path for each in found}
    return found + [Citation(path=path) for path in made if path not in named and os.fsencode(path) in known]


class AnswerContainer:
    """The container of one answer, opened when it is first needed.

    Args:
        containers: Access to containers.
        who: The principal.
        tool: The tool of the request.
        earlier: Id of the container of an earlier answer, or "".
        uploads: Files that the container gets, by name: functions that read one. All together may be large.
        key: Names a container that is to be found again, or None.

    Attributes:
        id: Its id, "" until it is open.
        session: The id of its session.
        notice: For the model, with its next result: the end of an earlier container. Else "".
    """

    def __init__(
        self,
        containers: Containers,
        who: Principal,
        tool: CodeTool,
        earlier: str,
        uploads: Mapping[str, Callable[[], bytes]],
        key: str | None = None,
    ) -> None:
        self.id = self.session = self.notice = ""
        self._containers, self._who, self._tool, self._uploads, self._key = containers, who, tool, uploads, key
        self._given = tool.container or ""
        self._earlier = "" if tool.container else earlier
        self._ended = ""
        self._lock = asyncio.Lock()
        self._before: dict[bytes, FileStatus] = {}
        self._info: SessionInfo | None = None

    async def check(self, *, new: bool) -> str:
        """Check the container that the request or an earlier answer names. Return a note for the model, or "".

        Args:
            new: Whether a new container takes the place of an earlier one that has ended.

        Raises:
            NotFound: There is no container with the given id.
            BadRequest: It is expired.
        """
        if self._given:
            await self._containers.need_open(self._who, self._given)
            return ""
        if not self._earlier:
            return ""
        try:
            found = await self._containers.find(self._who, self._earlier)
        except NotFound:
            found = None
        if found is not None and found.state is not SessionState.CLOSED:
            self._given = self._earlier
            return ""
        if not new:
            raise BadRequest(EXPIRED)
        self._ended = "" if found is None else found.id
        names: list[str] = []
        if found is not None:
            # Opened now, because the model must know its files.
            await self.open()
            names = _texts(self._before)
        return GONE.format(", ".join(names[:MAX_NEW]) or "none")

    async def open(self) -> str:
        """Open the container, and put the request's files into it. Return its id.

        Raises:
            KernelsvcError: It can't be opened.
        """
        async with self._lock:
            if not self.id:
                await self._open()
        return self.id

    async def _open(self) -> None:
        who, containers = self._who, self._containers
        if self._given:
            found = await containers.need_open(who, self._given)
        else:
            tool = self._tool
            limits: dict[str, Any] = {"memory_bytes": tool.memory_bytes, "no_network": tool.no_network}
            if self._key is None:
                found = await containers.create(who, **limits)
            else:
                found, self.notice = await containers.named(who, self._key, **limits)
            if self._ended:
                await containers.copy_files(who, self._ended, found.id)
        for name, read in self._uploads.items():
            await containers.put(who, found.id, name, await asyncio.to_thread(read))
        self._before = await containers.files(who, found.id)
        self._info = found
        self.session, self.id = found.id, container_id(found.id)

    async def changes(self) -> list[str]:
        """Return the files that are new or changed since the last call."""
        try:
            after = await self._containers.files(self._who, self.session)
        except (SessionClosed, NotFound):
            return []
        made, self._before = new_files(self._before, after), after
        return made

    def cite(self, message: MessageItem, made: list[str]) -> list[Citation]:
        """Return the citations of a message."""
        return cite(message, made, self._before)

    def renew(self) -> None:
        """Start the container's idle time again."""
        if self._info is not None:
            self._containers.renew(self._who, self._info)
