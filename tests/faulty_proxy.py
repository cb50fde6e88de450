"""A TCP proxy that cuts connections: after so many bytes, on demand, or by going silent."""

import asyncio
import contextlib


class FaultyProxy:
    """Stands between a client and a server.

    Attributes:
        cut_after: bytes from the server after which a connection is cut; taken from the front, one a connection.
        cuts: how many were cut.
        silent: while set, nothing passes and nothing is closed: a half-open link.
        held: bytes that a silent proxy has got and not passed on.
    """

    def __init__(self, port: int, cut_after: list[int] | None = None) -> None:
        self.target = port
        self.cut_after = cut_after or []
        self.cuts = 0
        self.passed = 0
        self.silent = False
        self.held = 0
        self._pairs: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *exc):
        self._server.close()
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def cut(self) -> None:
        """Cut every connection now, without a goodbye."""
        for pair in list(self._pairs):
            for writer in pair:
                writer.transport.abort()

    async def _accept(self, reader, writer):
        self._tasks.add(asyncio.current_task())
        asyncio.current_task().add_done_callback(self._tasks.discard)
        try:
            there, to = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        pair = (writer, to)
        self._pairs.add(pair)
        budget = self.cut_after.pop(0) if self.cut_after else None
        up = asyncio.ensure_future(self._pass(reader, to, None))
        down = asyncio.ensure_future(self._pass(there, writer, budget))
        try:
            await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            up.cancel()
            down.cancel()
            await asyncio.gather(up, down, return_exceptions=True)
            self._pairs.discard(pair)
            for end in pair:
                end.transport.abort()

    async def _pass(self, reader, writer, budget):
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                self.held += len(data) if self.silent else 0
                while self.silent:
                    await asyncio.sleep(0.01)
                if budget is not None and len(data) >= budget:
                    writer.write(data[:budget])  # mid-frame, as a real cut would
                    await writer.drain()
                    self.cuts += 1
                    return
                budget = budget if budget is None else budget - len(data)
                self.passed += len(data)
                writer.write(data)
                await writer.drain()
