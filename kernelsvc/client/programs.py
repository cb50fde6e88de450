"""Programs in a session's sandbox: shell commands, servers, terminals.

The server keeps the newest output until the client has read it, and each request says from which byte on. So output and
input arrive once, across reconnects too.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import msgspec

from kernelsvc.client.address import without_none
from kernelsvc.client.streams import SessionRpc
from kernelsvc.client.values import new_id, read
from kernelsvc.model.objects import OutputPage, OutputPiece, ProgramView

#: Seconds that the server waits for output before it answers. The client then asks again.
WAIT_SECONDS = 60.0


class CommandResult(msgspec.Struct, frozen=True, kw_only=True):
    """A command that has ended.

    Attributes:
        stdout: its standard output, as UTF-8.
        stderr: its standard error, as UTF-8.
        exit_code: its exit code, or the negative number of the signal that ended it. None if its end is not known.
    """

    stdout: str
    stderr: str
    exit_code: int | None

    @property
    def ok(self) -> bool:
        """Whether the exit code is 0."""
        return self.exit_code == 0


class AsyncProgram:
    """A program in a session's sandbox. Iterate over it to read its output. Made by ``AsyncSession.start_program``.

    The program waits while its output is not read, unless it was started with ``background``.

    Attributes:
        id: its id.
        details: its last description from the server.
        dropped: bytes of output that the server had dropped before they were read.
    """

    def __init__(self, rpc: SessionRpc, details: ProgramView) -> None:
        self.id = details.id
        self.details = details
        self.dropped = 0
        self._rpc = rpc
        self._after = 0
        self._received = details.received
        self._ready: list[OutputPiece] = []

    async def _call(self, method: str, **params: Any) -> Any:
        params = {"session": self._rpc.session, "program": self.id, **params}
        return await self._rpc.connection.call(f"program.{method}", params)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> OutputPiece:
        """Return the next output of the program. Safe to cancel: no output is lost."""
        while not self._ready:
            if self.details.state == "ended" and self._after >= self.details.written:
                raise StopAsyncIteration
            page = read(await self._call("read", after=self._after, wait_seconds=WAIT_SECONDS), OutputPage)
            self._after, self.details = page.next, page.program
            self.dropped += page.dropped
            self._ready = page.pieces[::-1]
        return self._ready.pop()

    async def wait(self) -> int | None:
        """Wait for the program's end, drop its output, and return its exit code.

        A negative number is that of the signal that ended it. None: the end is not known.
        """
        async for _ in self:
            pass
        return self.details.exit_code

    async def write(self, data: str | bytes) -> None:
        """Write to the program's standard input, or its terminal.

        Raises:
            NotFound: it has ended, or its standard input is closed.
            TooLarge: too much data waits already.
        """
        data = data.encode() if isinstance(data, str) else data
        at, self._received = self._received, self._received + len(data)
        try:
            await self._call("write", data=data, at=at)
        except BaseException:
            self._received = at
            raise

    async def close_input(self) -> None:
        """Close the program's standard input."""
        await self._call("write", end=True)

    async def signal(self, number: int = signal.SIGTERM) -> None:
        """Send a signal to the program and its process group."""
        await self._call("signal", signal=int(number))

    async def resize(self, columns: int, rows: int) -> None:
        """Change the size of the program's terminal, in characters."""
        await self._call("resize", columns=columns, rows=rows)


async def start_program(
    rpc: SessionRpc,
    argv: str | Sequence[str],
    *,
    program: str | None,
    env: Mapping[str, str] | None,
    cwd: str | None,
    stdin: bool,
    terminal: tuple[int, int] | None,
    background: bool,
) -> AsyncProgram:
    """Start a program. See ``AsyncSession.start_program``."""
    size = None if terminal is None else {"columns": terminal[0], "rows": terminal[1]}
    params = without_none(env=dict(env or {}) or None, cwd=cwd, terminal=size)
    answer = await rpc.connection.call(
        "program.start",
        {
            "session": rpc.session,
            "argv": ["/bin/sh", "-c", argv] if isinstance(argv, str) else [*argv],
            "program": program or new_id("prog"),
            "stdin": stdin,
            "background": background,
            **params,
        },
    )
    return AsyncProgram(rpc, read(answer, ProgramView))


async def run_command(program: AsyncProgram, input: str | bytes | None) -> CommandResult:
    """Give a program its input, and collect its output until it ends."""
    if input is not None:
        if input:
            await program.write(input)
        await program.close_input()
    found: dict[Literal["stdout", "stderr", "pty"], list[bytes]] = {"stdout": [], "stderr": [], "pty": []}
    async for piece in program:
        found[piece.stream].append(piece.data)
    text = {stream: b"".join(pieces).decode("utf-8", "replace") for stream, pieces in found.items()}
    return CommandResult(
        stdout=text["stdout"] + text["pty"], stderr=text["stderr"], exit_code=program.details.exit_code
    )
