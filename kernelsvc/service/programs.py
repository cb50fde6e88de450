"""Programs that a session's owner runs beside its kernel: shell commands, servers, terminals.

A program lives in the session's sandbox and ends with the session, or with this
server: unlike a kernel, it is not taken over by the next one. The log says which
programs ran and how they ended; what they wrote goes to whoever watches, and is
only counted in the log. Whoever watches and does not read slows the program;
when nobody watches, what it writes is read and dropped.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence

from kernelsvc.errors import KernelDead, NotFound, QuotaExceeded
from kernelsvc.host.client import HostClient
from kernelsvc.kernels import exec_process
from kernelsvc.kernels.exec_process import ExecProcess, Stream
from kernelsvc.model import events as ev
from kernelsvc.model.objects import Principal
from kernelsvc.service.environment import SessionEnvironment
from kernelsvc.service.leases import Find
from kernelsvc.session import Session

#: Programs of one session at once.
MAX_PROGRAMS = 64
#: Pieces of output that wait for one watcher; then the program waits too.
BACKLOG = 16
#: Seconds that output is waited for when a program has ended and something it started still holds its pipes.
LINGER = 0.2
#: Arguments, and characters of each, that the log keeps.
MAX_LOGGED, MAX_LOGGED_TEXT = 64, 4096

Piece = tuple[Stream, bytes]


class ProgramOutput:
    """A reader of what a program writes from now on."""

    def __init__(self) -> None:
        self._pieces: asyncio.Queue[Piece | None] = asyncio.Queue()
        self._room = asyncio.Semaphore(BACKLOG)
        self.closed = False

    @property
    def behind(self) -> bool:
        """Whether there is no room for a further piece."""
        return self._room.locked() and not self.closed

    async def put(self, piece: Piece) -> None:
        """Hand over the next piece; waits for room."""
        await self._room.acquire()
        self._pieces.put_nowait(piece)

    def end(self) -> None:
        """There is no further piece."""
        self._pieces.put_nowait(None)

    async def next(self) -> Piece | None:
        """The next piece, None at the end. Safe to cancel: nothing is lost."""
        piece = await self._pieces.get()
        self._room.release()
        return piece

    def close(self) -> None:
        """Watch no more; whoever waits for room goes on."""
        self.closed = True
        self._room.release()


class Program:
    """One that runs, or ran.

    Attributes:
        pid: as seen inside the sandbox.
        argv: the program and its arguments.
        env: what its caller added to the environment.
        cwd: where it started; empty for the session's directory.
        tag: its caller's own name for it.
        status: its wait status, as soon as it is known; None if nobody saw it.
        over: set when it has ended and all was handed to who watches.
    """

    def __init__(
        self, process: ExecProcess, argv: Sequence[str], env: Mapping[str, str], cwd: str, tag: str | None
    ) -> None:
        self.process = process
        self.pid, self.argv, self.env, self.cwd, self.tag = process.pid, [*argv], {**env}, cwd, tag
        self.status: int | None = None
        self.over = asyncio.Event()
        self.written = 0
        self._watchers: list[ProgramOutput] = []

    def watch(self) -> ProgramOutput:
        """Watch it from now on."""
        watcher = ProgramOutput()
        self._watchers.append(watcher)
        if self.over.is_set():
            watcher.end()
        return watcher

    def leave(self, watcher: ProgramOutput) -> None:
        """Watch it no more."""
        watcher.close()
        if watcher in self._watchers:
            self._watchers.remove(watcher)

    async def run(self) -> None:
        """Hand on what it writes until it has ended. Whoever cancels this ends the program."""
        pumps = [asyncio.ensure_future(self._pump(stream)) for stream in self.process.streams]
        try:
            self.status = await asyncio.shield(self.process.ended)
            await asyncio.wait(pumps, timeout=LINGER)
            while any(not pump.done() for pump in pumps) and any(one.behind for one in self._watchers):
                await asyncio.wait(pumps, timeout=LINGER)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            self.process.close()
            self.over.set()
            for watcher in [*self._watchers]:
                watcher.end()

    async def _pump(self, stream: Stream) -> None:
        while data := await self.process.read(stream):
            self.written += len(data)
            for watcher in [*self._watchers]:
                await watcher.put((stream, data))


class Programs:
    """Starts them, finds them, ends them with their session.

    Args:
        find: a session of a principal, for a scope.
        surroundings: wakes a session that sleeps.
        host: the kernel host.
    """

    def __init__(self, find: Find, surroundings: SessionEnvironment, host: HostClient) -> None:
        self._find, self._surroundings, self._host = find, surroundings, host
        self._running: dict[str, dict[int, Program]] = {}
        self._tasks: dict[asyncio.Task[None], str] = {}

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
    ) -> tuple[Program, ProgramOutput]:
        """Start a program in a session's sandbox, and watch it. Safe to cancel: it is killed.

        Args:
            who: the session's owner.
            session: its id.
            argv: the program and its arguments.
            env: on top of the session's environment.
            cwd: a directory as seen inside; empty for the session's own.
            tag: the caller's own name for it.
            with_input: whether it has a standard input.
            terminal: columns and rows of a terminal for it.

        Raises:
            BadRequest: there is no such program or directory.
            QuotaExceeded: too many of this session run.
            KernelDead, SessionClosed: the session has no sandbox now.
        """
        found = self._find(who, session, "run")
        await found.settled()  # it may be on its way to sleep
        await self._surroundings.wake(found)
        if len(self._running.get(session, ())) >= MAX_PROGRAMS:
            raise QuotaExceeded(f"{MAX_PROGRAMS} programs of this session run; end one of them.")
        if found.info is None:
            raise KernelDead("The session has no kernel now; restart it, then run the program.")
        with found.starting_program():
            process = await exec_process.start(
                self._host,
                found.info.id,
                argv,
                env={**found.about.env, **(env or {})},
                cwd=cwd,
                with_input=with_input,
                terminal=terminal,
            )
            program = Program(process, argv, env or {}, cwd, tag)
            watcher = program.watch()
            self._running.setdefault(session, {})[program.pid] = program
            logged = [argument[:MAX_LOGGED_TEXT] for argument in program.argv[:MAX_LOGGED]]
            found.try_record(ev.ProgramStarted(program=program.pid, argv=logged, cwd=cwd))
        task = asyncio.get_running_loop().create_task(self._attend(found, program))
        self._tasks[task] = session
        task.add_done_callback(lambda done: self._tasks.pop(done, None))
        return program, watcher

    async def _attend(self, session: Session, program: Program) -> None:
        try:
            await program.run()
        finally:
            self._running[session.id].pop(program.pid, None)
            if not self._running[session.id]:
                del self._running[session.id]
            session.try_record(_ended(program))

    def running(self, who: Principal, session: str) -> list[Program]:
        """Those that run in a session, in the order of their start."""
        self._find(who, session, "read")
        return [*self._running.get(session, {}).values()]

    def find(self, who: Principal, session: str, *, pid: int | None = None, tag: str | None = None) -> Program:
        """One that runs.

        Raises:
            NotFound: none does of this pid, or tag.
        """
        for program in self.running(who, session):
            if program.pid == pid or (tag is not None and program.tag == tag):
                return program
        raise NotFound(f"No program {tag if pid is None else pid} runs in this session; list those that do.")

    def end(self, session: str) -> None:
        """A session has ended: so do its programs."""
        for task, of in [*self._tasks.items()]:
            if of == session:
                task.cancel()

    async def end_all(self) -> None:
        """This server ends: so do they."""
        for task in [*self._tasks]:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _ended(program: Program) -> ev.ProgramEnded:
    status = program.status
    code = None if status is None else os.waitstatus_to_exitcode(status)
    return ev.ProgramEnded(program=program.pid, exit_code=code, output_bytes=program.written)
