"""Programs that run in a session's sandbox next to its kernel: shell commands, servers, terminals.

A program ends with its session or with this server. Unlike a kernel, it is not
adopted by the next server. The journal records which programs ran and how they
ended, and counts their output without keeping it. Readers get the output. A
slow reader slows the program down. Without a reader, the server reads and drops the
output.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections.abc import Mapping, Sequence

from kernelsvc.errors import BadRequest, KernelDead, NotFound, QuotaExceeded
from kernelsvc.kernels.exec_process import ExecProcess
from kernelsvc.kernels.launchers import KernelLaunchers
from kernelsvc.model import events as ev
from kernelsvc.model.objects import Principal
from kernelsvc.service.api import ProgramInfo, ProgramPiece, ProgramStream
from kernelsvc.service.environment import SessionEnvironment, require_texts
from kernelsvc.service.registry import SessionRegistry
from kernelsvc.session import Session

#: Programs of one session at the same time.
MAX_PROGRAMS = 64
#: Pieces of output that wait for one reader. If there are more, the program waits too.
BACKLOG = 16
#: Seconds to wait for output after the end of a program whose pipes are still held by a process that it started.
LINGER = 0.2
#: Most characters of a program's tag, which the server keeps while it runs.
MAX_TAG = 1024
#: Arguments, and characters of each, that the journal keeps.
MAX_LOGGED, MAX_LOGGED_TEXT = 64, 4096


class OutputReader:
    """Read the output of a program from now on. Implements ``ProgramOutput``."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._pieces: asyncio.Queue[ProgramPiece | None] = asyncio.Queue()
        self._room = asyncio.Semaphore(BACKLOG)
        self._closed = False

    @property
    def status(self) -> int | None:
        """The wait status of a program that has ended, or None if it is not known."""
        return self._program.status

    @property
    def behind(self) -> bool:
        """Whether there is no room for a further piece."""
        return self._room.locked() and not self._closed

    async def put(self, piece: ProgramPiece) -> None:
        """Wait for room and add a piece."""
        await self._room.acquire()
        self._pieces.put_nowait(piece)

    def end(self) -> None:
        """Mark the end of the output."""
        self._pieces.put_nowait(None)

    async def next(self) -> ProgramPiece | None:
        """Wait for a piece and return it, or None at the end. Safe to cancel: nothing is lost."""
        piece = await self._pieces.get()
        self._room.release()
        return piece

    def close(self) -> None:
        """Stop reading. A program that waits for this reader continues."""
        self._closed = True
        self._room.release()
        self._program.forget(self)


class Program:
    """One program.

    Attributes:
        info: its description in the API.
        process: its streams and signals.
        status: its wait status after the end, or None if it is not known.
        written: bytes of output.
    """

    def __init__(self, process: ExecProcess, info: ProgramInfo) -> None:
        self.process, self.info = process, info
        self.status: int | None = None
        self.written = 0
        self._ended = False
        self._readers: list[OutputReader] = []

    def read(self) -> OutputReader:
        """Return a reader of the output from now on."""
        reader = OutputReader(self)
        self._readers.append(reader)
        if self._ended:
            reader.end()
        return reader

    def forget(self, reader: OutputReader) -> None:
        """Give no more output to a reader."""
        if reader in self._readers:
            self._readers.remove(reader)

    async def run(self) -> None:
        """Pass the output to the readers until the program has ended. Cancelling this ends the program."""
        pumps = [asyncio.ensure_future(self._pump(stream)) for stream in self.process.streams]
        try:
            self.status = await asyncio.shield(self.process.ended)
            await asyncio.wait(pumps, timeout=LINGER)
            while any(not pump.done() for pump in pumps) and any(reader.behind for reader in self._readers):
                await asyncio.wait(pumps, timeout=LINGER)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            self.process.close()
            self._ended = True
            for reader in [*self._readers]:
                reader.end()

    async def _pump(self, stream: ProgramStream) -> None:
        while data := await self.process.read(stream):
            self.written += len(data)
            for reader in [*self._readers]:
                await reader.put((stream, data))


class Programs:
    """Start programs, find them, and end them with their session. Implements ``ProgramApi``.

    Args:
        registry: all sessions.
        environment: resumes a hibernated session.
        launchers: start a program in a kernel's sandbox.
    """

    def __init__(self, registry: SessionRegistry, environment: SessionEnvironment, launchers: KernelLaunchers) -> None:
        self._registry, self._environment, self._launchers = registry, environment, launchers
        self._running: dict[str, dict[int, Program]] = {}
        self._tasks: dict[asyncio.Task[None], str] = {}
        self._numbers = itertools.count(1)

    async def start(
        self,
        who: Principal,
        session: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        tag: str | None = None,
        with_input: bool = True,
        terminal: tuple[int, int] | None = None,
    ) -> tuple[ProgramInfo, OutputReader]:
        """Start a program in a session's sandbox and read its output. Safe to cancel: the program is killed.

        Args:
            who: the session's owner.
            session: the session's id.
            argv: the program and its arguments.
            env: environment variables, added to the session's.
            cwd: a directory as seen inside the sandbox, or "" for the session's own.
            tag: the caller's own name for the program.
            with_input: whether the program has a standard input.
            terminal: columns and rows of a terminal for the program. With None it gets pipes.

        Raises:
            BadRequest: there is no such program or directory.
            QuotaExceeded: too many programs of this session run.
            KernelDead, SessionClosed: the session has no sandbox now.
        """
        found = self._registry.find(who, session, "run")
        require_texts((*argv, *(env or {}).values(), cwd))
        if not argv[0]:
            raise BadRequest("The name of the program is empty.")
        if len(tag or "") > MAX_TAG:
            raise BadRequest(f"The tag of a program has at most {MAX_TAG} characters. Use a shorter one.")
        await found.settled()  # a hibernation may be under way
        await self._environment.resume(found)
        if len(self._running.get(session, ())) >= MAX_PROGRAMS:
            raise QuotaExceeded(f"{MAX_PROGRAMS} programs of this session run. End one of them.")
        if found.info is None:
            raise KernelDead("The session has no kernel now. Restart it, then run the program.")
        with found.starting_program():
            process = await self._launchers.exec(
                found.info.id,
                argv,
                env={**found.spec.env, **(env or {})},
                cwd=cwd,
                with_input=with_input,
                terminal=terminal,
            )
            number = next(self._numbers)
            info = ProgramInfo(id=number, pid=process.pid, argv=[*argv], env={**(env or {})}, cwd=cwd, tag=tag)
            program = Program(process, info)
            reader = program.read()
            self._running.setdefault(session, {})[number] = program
            logged = [argument[:MAX_LOGGED_TEXT] for argument in argv[:MAX_LOGGED]]
            found.try_record(ev.ProgramStarted(program=info.pid, argv=logged, cwd=cwd, by=who.name))
            if found.lease is not None and found.lease.paused:  # since the program was asked for
                self.pause(session, paused=True)
        task = asyncio.get_running_loop().create_task(self._attend(found, program))
        self._tasks[task] = session
        task.add_done_callback(lambda done: self._tasks.pop(done, None))
        return info, reader

    async def _attend(self, session: Session, program: Program) -> None:
        try:
            await program.run()
        finally:
            self._running[session.id].pop(program.info.id, None)
            if not self._running[session.id]:
                del self._running[session.id]
            session.try_record(_ended(program))

    def running(self, who: Principal, session: str) -> list[ProgramInfo]:
        """Return the programs that run in a session, in the order of their start."""
        self._registry.find(who, session)
        return [program.info for program in self._running.get(session, {}).values()]

    def find(self, who: Principal, session: str, *, pid: int | None = None, tag: str | None = None) -> ProgramInfo:
        """Return the running program with this process id, or with this tag.

        Raises:
            NotFound: there is none.
        """
        for info in self.running(who, session):
            if info.pid == pid or (tag is not None and info.tag == tag):
                return info
        raise NotFound(f"No program {tag if pid is None else pid} runs in this session. List those that do.")

    def watch(self, who: Principal, session: str, program: int) -> OutputReader:
        """Read the output of a running program from now on.

        Raises:
            NotFound: it has ended.
        """
        self._registry.find(who, session)
        return self._require(session, program).read()

    def write(self, who: Principal, session: str, program: int, data: bytes) -> None:
        """Write to a program's standard input. Data that it does not read yet waits.

        Raises:
            NotFound: the program has ended, or its standard input is closed.
            TooLarge: too much data waits already.
        """
        self._registry.find(who, session, "run")
        self._require(session, program).process.write(data)

    def close_input(self, who: Principal, session: str, program: int) -> None:
        """Close a program's standard input after the data that waits.

        Raises:
            NotFound: the program has ended.
        """
        self._registry.find(who, session, "run")
        self._require(session, program).process.close_input()

    def signal(self, who: Principal, session: str, program: int, number: int) -> None:
        """Send a signal to a program and its process group. Do nothing if the program has ended."""
        if (found := self._running.get(session, {}).get(program)) is not None:
            self._registry.find(who, session, "run")
            found.process.signal(number)

    def resize(self, who: Principal, session: str, program: int, columns: int, rows: int) -> None:
        """Change the size of a program's terminal. Do nothing if it has none.

        Raises:
            NotFound: the program has ended.
        """
        self._registry.find(who, session, "run")
        self._require(session, program).process.resize(columns, rows)

    def _require(self, session: str, program: int) -> Program:
        found = self._running.get(session, {}).get(program)
        if found is None:
            raise NotFound("The program has ended. List those that run.")
        return found

    def pause(self, session: str, *, paused: bool) -> None:
        """Stop the programs of a session that is paused, and continue those of one that is not any more.

        A program's process group gets SIGSTOP or SIGCONT, which it can't block (signal(7)). A process that left the
        group keeps running. A session with programs does not hibernate, because they would end with its kernel.
        """
        for program in self._running.get(session, {}).values():
            program.process.signal(signal.SIGSTOP if paused else signal.SIGCONT)

    def end(self, session: str) -> None:
        """End the programs of a session that has ended."""
        for task, of in [*self._tasks.items()]:
            if of == session:
                task.cancel()

    async def end_all(self) -> None:
        """End all programs, because the server stops."""
        for task in [*self._tasks]:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _ended(program: Program) -> ev.ProgramEnded:
    status = program.status
    code = None if status is None else os.waitstatus_to_exitcode(status)
    return ev.ProgramEnded(program=program.info.pid, exit_code=code, output_bytes=program.written)
