"""Watches of directories outside the home directory, for example ``/tmp``.

A program in the sandbox watches (``guest.agents.inotify_agent``), with the rights of a cell.
Its output is untrusted.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from functools import partial
from importlib import resources
from typing import TYPE_CHECKING, Any

import msgspec

from kernelsvc.errors import AtCapacity, BadRequest, Conflict, KernelsvcError, NotFound, Timeout
from kernelsvc.guest.agents.inotify_agent import MISSING, NO_DIRECTORY, NO_WATCHES
from kernelsvc.model.objects import Principal
from kernelsvc.server.e2b import paths
from kernelsvc.server.e2b.directory_watch import KINDS, PendingEvents
from kernelsvc.server.e2b.exec_files import INTERNAL_TAG

if TYPE_CHECKING:
    from kernelsvc.service.api import ProgramOutput, ServiceApi

#: Seconds for the program to start watching, and the longest line of its output in bytes.
BEGIN_SECONDS, MAX_LINE = 10.0, 64 * 1024


class _AgentEntry(msgspec.Struct):
    mode: int
    size: int
    modified: int
    target: str | None = None


class _AgentLine(msgspec.Struct):
    ready: bool = False
    type: str = ""
    name: str = ""
    entry: _AgentEntry | None = None


class ExecWatcher(PendingEvents):
    """Watcher of one directory from inside the sandbox. Made by ``watch_elsewhere``.

    Args:
        output: Output of the program that watches.
        kill: Ends the program.
        top: The directory.
    """

    def __init__(self, output: ProgramOutput, kill: Callable[[], None], top: str) -> None:
        super().__init__()
        self._output, self._kill, self._top = output, kill, top
        self._unparsed = b""
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._reading = asyncio.ensure_future(self._read())

    def close(self) -> None:
        """Stop watching."""
        self._reading.cancel()
        self._output.close()
        self._kill()
        self.news.set()

    async def _read(self) -> None:
        while (piece := await self._output.next()) is not None:
            if piece[0] == "stdout":
                self._on_data(piece[1])
        if not self.ready.done():
            self.ready.set_exception(_failure(self._output.status, self._top))
        self.news.set()

    def _on_data(self, data: bytes) -> None:
        *lines, self._unparsed = (self._unparsed + data).split(b"\n")
        self._unparsed = self._unparsed if len(self._unparsed) <= MAX_LINE else b""
        for line in lines:
            try:
                message = msgspec.json.decode(line, type=_AgentLine)
            except (msgspec.DecodeError, ValueError, RecursionError):
                continue
            if message.ready and not self.ready.done():
                self.ready.set_result(None)
            elif message.type in KINDS and message.name:
                self.happened(self._event(message))

    def _event(self, message: _AgentLine) -> dict[str, Any]:
        event: dict[str, Any] = {"name": message.name[:4096], "type": message.type}
        if message.entry is not None:
            found = message.entry
            path = f"{self._top.rstrip('/')}/{event['name']}"
            event["entry"] = paths.entry_of(path, found.mode, found.size, found.modified, found.target)
        return event


def _failure(status: int | None, top: str) -> KernelsvcError:
    code = status >> 8 if status is not None and not status & 0x7F else -1
    if code == MISSING:
        return NotFound(f"{top[:200]} does not exist. Make it first.")
    if code == NO_DIRECTORY:
        return BadRequest(f"{top[:200]} is not a directory. Watch its parent.")
    if code == NO_WATCHES:
        return AtCapacity(
            f"{top[:200]} can't be watched: it is not readable, or the limit of inotify watches is reached."
        )
    return Conflict(
        "The program that watches has ended. It needs a python3 in the sandbox. "
        "Watch a directory below the home directory."
    )


async def watch_elsewhere(
    service: ServiceApi, who: Principal, sandbox: str, path: str, *, recursive: bool, include_entry: bool
) -> ExecWatcher:
    """Watch a directory outside the home directory. Safe to cancel: the program ends.

    Args:
        service: Runs the program.
        who: The sandbox's owner.
        sandbox: Its id.
        path: The directory, absolute.
        recursive: Whether to watch directories below it.
        include_entry: Whether an event describes its file.

    Raises:
        NotFound, BadRequest, AtCapacity, Conflict, Timeout: It can't be watched.
    """
    argv = ["python3", "-I", "-S", "-", path, str(int(recursive)), str(int(include_entry))]
    program, output = await service.programs.start(who, sandbox, argv, tag=INTERNAL_TAG)
    kill = partial(service.programs.signal, who, sandbox, program.id, signal.SIGKILL)
    watcher = ExecWatcher(output, kill, path)
    try:
        agent = resources.files("kernelsvc.guest.agents").joinpath("inotify_agent.py").read_bytes()
        service.programs.write(who, sandbox, program.id, agent)
        service.programs.close_input(who, sandbox, program.id)
        async with asyncio.timeout(BEGIN_SECONDS):
            await asyncio.shield(watcher.ready)
    except TimeoutError:
        watcher.close()
        raise Timeout("The sandbox took too long to watch this directory. Try again.") from None
    except BaseException:
        watcher.close()
        raise
    return watcher
