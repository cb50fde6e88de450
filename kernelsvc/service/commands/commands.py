"""Start programs by ids that clients choose, and read their output from a position on.

A client that has lost its connection asks again: a start with a known id starts nothing, a read continues at the last
byte that arrived, a write with a position writes nothing twice. The programs themselves are those of
``service.programs``.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Mapping, Sequence

from kernelsvc.errors import Conflict, CursorUnknown, NotFound
from kernelsvc.linux.tasks import OwnedTasks
from kernelsvc.model.objects import OutputPage, OutputPiece, Principal, ProgramView, PtySize
from kernelsvc.service.api import ProgramInfo, ProgramOutput, ProgramViews
from kernelsvc.service.commands.output_window import WINDOW_BYTES, OutputWindow
from kernelsvc.service.programs import MAX_PROGRAMS, Programs
from kernelsvc.service.registry import SessionRegistry

#: Ended programs of a session that the server remembers, and bytes of their output that it keeps.
MAX_ENDED, MAX_ENDED_BYTES = MAX_PROGRAMS, 4 * WINDOW_BYTES


class Command:
    """A program with the id of a client.

    Attributes:
        number: its number in ``service.programs``.
        argv: the program and its arguments.
    """

    def __init__(self, id: str, session: str, info: ProgramInfo, output: ProgramOutput, *, drop: bool) -> None:
        self.number, self.argv = info.id, info.argv
        self._received = 0
        self._id, self._session, self._info = id, session, info
        self._output = output
        self._window = OutputWindow(drop=drop)

    @property
    def ended(self) -> bool:
        """Whether the program has ended and wrote all of its output."""
        return self._window.ended

    @property
    def kept(self) -> int:
        """Bytes of output that the server keeps for it."""
        return self._window.size

    async def collect(self) -> None:
        """Move the output into the window until the program ends. Cancelling ends the window."""
        try:
            while (piece := await self._output.next()) is not None:
                await self._window.put(piece)
        finally:
            self._output.close()
            self.end()

    def end(self) -> None:
        """Collect no more output."""
        self._window.end()

    async def read(self, after: int, limit: int, wait_seconds: float) -> OutputPage:
        """Wait for output after a position, or for the end. Safe to cancel: nothing is lost."""
        await self._window.wait(after, wait_seconds)
        if after > self._window.last:
            raise CursorUnknown(
                f"The program has written {self._window.last} bytes. Read from 'next' of the last page."
            )
        found, position = self._window.read(after, limit)
        pieces = [OutputPiece(stream=stream, data=data) for stream, data in found]
        end = position + sum(len(piece.data) for piece in pieces)
        return OutputPage(
            program=self.view(all_read=end == self._window.last), pieces=pieces, next=end, dropped=position - after
        )

    def missing_input(self, data: bytes, at: int | None) -> bytes:
        """Return the part of an input that the program has not got.

        Args:
            data: the input.
            at: position of its first byte. None is the position after all earlier input.

        Raises:
            Conflict: bytes before ``at`` are missing.
        """
        if at is not None and at > self._received:
            raise Conflict(f"The program has got {self._received} bytes of input. Send those from there on.")
        return data if at is None else data[self._received - at :]

    def note_input(self, count: int) -> None:
        """Count bytes of standard input."""
        self._received += count

    def view(self, *, all_read: bool = True) -> ProgramView:
        """Return the program as the API shows it.

        Args:
            all_read: whether the caller has got all of the output. A program ends after it.
        """
        ended, status = self._window.ended and all_read, self._output.status
        return ProgramView(
            id=self._id,
            session=self._session,
            pid=self._info.pid,
            argv=self.argv,
            cwd=self._info.cwd,
            state="ended" if ended else "running",
            exit_code=os.waitstatus_to_exitcode(status) if ended and status is not None else None,
            written=self._window.last,
            received=self._received,
        )


class Commands:
    """The programs of the native API. Implements ``CommandApi``.

    Args:
        registry: all sessions.
        programs: starts programs and sends them input and signals.
    """

    def __init__(self, registry: SessionRegistry, programs: Programs) -> None:
        self._registry, self._programs = registry, programs
        self._commands: dict[str, dict[str, asyncio.Task[Command]]] = {}
        self._tasks = OwnedTasks()

    async def start(
        self,
        who: Principal,
        session: str,
        *,
        argv: Sequence[str],
        program: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        stdin: bool = False,
        terminal: PtySize | None = None,
        background: bool = False,
    ) -> ProgramView:
        """Start a program, or return the one that this id has started. Safe to cancel: the program starts anyway.

        Args:
            who: the session's owner.
            session: the session's id.
            argv: the program and its arguments.
            program: the client's id for it. None for a random one.
            env: environment variables, added to the session's.
            cwd: a directory as seen inside the sandbox, or "" for the session's own.
            stdin: whether the program has a standard input.
            terminal: size of a terminal for the program. With None it gets pipes.
            background: drop the oldest unread output, instead of making the program wait.

        Raises:
            Conflict: the id names another program.
            BadRequest: there is no such program or directory.
            QuotaExceeded: too many programs of this session run.
            KernelDead, SessionClosed: the session has no sandbox now.
        """
        self._registry.find(who, session, "run")
        id = program or f"prog_{secrets.token_hex(8)}"
        known = self._commands.setdefault(session, {})
        if id not in known:
            size = None if terminal is None else (terminal.columns, terminal.rows)
            begin = self._begin(who, session, id, [*argv], dict(env or {}), cwd, stdin, size, background)
            known[id] = self._tasks.start(begin, name=f"program {id}")
        try:
            # Another request with the same id may wait for the same start.
            command = await asyncio.shield(known[id])
        except Exception:
            known.pop(id, None)
            raise
        if command.argv != [*argv]:
            raise Conflict(f"The id {id!r} names another program of this session. Choose a new id.")
        return command.view()

    async def _begin(
        self,
        who: Principal,
        session: str,
        id: str,
        argv: list[str],
        env: dict[str, str],
        cwd: str,
        stdin: bool,
        terminal: tuple[int, int] | None,
        background: bool,
    ) -> Command:
        info, output = await self._programs.start(
            who, session, argv, env=env, cwd=cwd, with_input=stdin or terminal is not None, terminal=terminal
        )
        command = Command(id, session, info, output, drop=background)
        self._tasks.start(self._collect(session, command), name=f"output of {id}")
        return command

    async def _collect(self, session: str, command: Command) -> None:
        try:
            await command.collect()
        finally:
            self._forget_old(session)

    def _forget_old(self, session: str) -> None:
        """Forget the oldest ended programs beyond the limits."""
        known = self._commands.get(session, {})
        ended = [(id, found.kept) for id, found in self._started(session) if found.ended]
        total = sum(size for _, size in ended)
        while len(ended) > MAX_ENDED or (len(ended) > 1 and total > MAX_ENDED_BYTES):
            id, size = ended.pop(0)
            known.pop(id, None)
            total -= size

    def _started(self, session: str) -> list[tuple[str, Command]]:
        tasks = self._commands.get(session, {}).items()
        return [
            (id, task.result()) for id, task in tasks if task.done() and not task.cancelled() and not task.exception()
        ]

    def _find(self, who: Principal, session: str, program: str) -> Command:
        self._registry.find(who, session, "run")
        found = dict(self._started(session)).get(program)
        if found is None:
            raise NotFound(f"There is no program {program!r} in this session. List those that there are.")
        return found

    async def read(
        self, who: Principal, session: str, program: str, after: int, limit: int, wait_seconds: float
    ) -> OutputPage:
        """Wait for output after a position, or for the end. Safe to cancel: nothing is lost.

        Raises:
            NotFound: there is no such program.
            CursorUnknown: it has written less.
        """
        return await self._find(who, session, program).read(after, limit, wait_seconds)

    def write(self, who: Principal, session: str, program: str, data: bytes, at: int | None, end: bool) -> ProgramView:
        """Write to a program's standard input.

        Args:
            who: the session's owner.
            session: the session's id.
            program: the program's id.
            data: bytes to write.
            at: position of the first of them. The program gets no byte twice.
            end: close the standard input after them.

        Raises:
            NotFound: there is no such program, it has ended, or its standard input is closed.
            Conflict: bytes before ``at`` are missing.
            TooLarge: too much data waits already.
        """
        command = self._find(who, session, program)
        if new := command.missing_input(data, at):
            self._programs.write(who, session, command.number, new)
            command.note_input(len(new))
        if end:
            self._programs.close_input(who, session, command.number)
        return command.view()

    def signal(self, who: Principal, session: str, program: str, number: int) -> None:
        """Send a signal to a program and its process group. Do nothing if it has ended.

        Raises:
            NotFound: there is no such program.
        """
        command = self._find(who, session, program)
        self._programs.signal(who, session, command.number, number)

    def resize(self, who: Principal, session: str, program: str, columns: int, rows: int) -> None:
        """Change the size of a program's terminal.

        Raises:
            NotFound: there is no such program, or it has ended.
        """
        command = self._find(who, session, program)
        self._programs.resize(who, session, command.number, columns, rows)

    def list(self, who: Principal, session: str) -> ProgramViews:
        """Return the programs that run and those that ended recently, in the order of their start."""
        self._registry.find(who, session)
        return [command.view() for _, command in self._started(session)]

    def end(self, session: str) -> None:
        """Forget the programs of a session that has ended."""
        for _, command in self._started(session):
            command.end()
        self._commands.pop(session, None)

    async def end_all(self) -> None:
        """Stop reading, because the server stops."""
        self._tasks.cancel()
        await self._tasks.wait()
