"""A real server over fake kernels, with faults on order: for tests of the client and the command line.

The faults lie in the service's port: a subscription that cuts its connection, leaves an event out or fails, and
methods that never answer. Cells are the scripts of ``kernelsvc.kernels.fake``.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kernelsvc.errors import CursorExpired
from kernelsvc.kernels.fake import FakeLauncher
from kernelsvc.model import events as ev
from kernelsvc.model.objects import CellInfo, Principal, SessionInfo
from kernelsvc.model.tokens import record_for
from kernelsvc.settings import Settings
from kernelsvc.testing import TOKEN, InProcessServer

ME = Principal(name="me")


class FaultySubscription:
    """A subscription of the service, with the faults that its server is told to have."""

    def __init__(self, server: FaultyServer, real: Any) -> None:
        self._server, self._real = server, real

    def next_nowait(self) -> list[bytes]:
        return [line for line in self._real.next_nowait() if not self._server.is_left_out(ev.decode(line))]

    async def next(self) -> list[bytes]:
        return [line for line in await self._real.next() if not self._server.is_left_out(ev.decode(line))]

    def close(self) -> None:
        self._server.calls.append("session.detach")
        self._real.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class FaultyServer:
    """See the module.

    Attributes:
        calls: methods that were called, by their names on the wire.
        mute: methods that never answer.
        drop_after: all connections are cut after that many events.
        skip: the number of an event that is left out once.
        refuse_at: the number of an event at which a subscription fails.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.mute: set[str] = set()
        self.drop_after: int | None = None
        self.skip: int | None = None
        self.refuse_at: int | None = None
        self.kernels = FakeLauncher()
        self.inner: InProcessServer | None = None
        self.url = ""
        self._data = Path(tempfile.mkdtemp(prefix="kernelsvc-test-"))

    async def start(self, port: int = 0, uds: str | None = None) -> str:
        """Start, again after ``pause``: the sessions are adopted."""
        settings = Settings(
            port=port, uds=Path(uds) if uds else None, tokens=[record_for(TOKEN, "me")], data_dir=self._data,
            journal_sync="off", checkpoints=0, shutdown_seconds=0.2,
        )  # fmt: skip
        self.inner = InProcessServer(settings, kernels=self.kernels)
        service: Any = self.inner.service
        attach = service.attach
        service.attach = lambda *args, **more: FaultySubscription(self, attach(*args, **more))
        for name, methods in {"create": ["create"], "execute": ["execute", "execute_then"]}.items():
            for method in methods:
                self._record(f"session.{name}", method)
        self._record("session.interrupt", "interrupt")
        self.url = await self.inner.start()
        return self.url

    def _record(self, name: str, method: str) -> None:
        service: Any = self.service
        real = getattr(service, method)

        def call(*args: Any, **more: Any) -> Any:
            self.calls.append(name)
            return asyncio.Event().wait() if name in self.mute else real(*args, **more)

        setattr(service, method, call)

    async def pause(self) -> None:
        """Stop the server and leave the kernels to the next one."""
        if self.inner is not None:
            await self.inner.server.stop()
            await self.inner.service.stop(end_sessions=False)
            self.inner = None

    async def stop(self) -> None:
        """Stop and end everything."""
        if self.inner is not None:
            await self.inner.stop()
        self.kernels.close()
        shutil.rmtree(self._data, ignore_errors=True)

    @property
    def service(self) -> Any:
        assert self.inner is not None
        return self.inner.service

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 0

    def cut(self) -> None:
        """Cut all connections, as a broken network does."""
        assert self.inner is not None
        for handler in list(self.inner.app.settings["context"].sockets):
            handler.ws_connection.stream.close()

    def is_left_out(self, event: ev.Event) -> bool:
        """Apply the faults to an event that is about to be sent."""
        if event.seq == self.refuse_at:
            raise CursorExpired()
        if self.drop_after is not None:
            self.drop_after -= 1
            if self.drop_after == 0:
                self.drop_after = None
                asyncio.get_running_loop().call_soon(self.cut)
        if event.seq == self.skip:
            self.skip = None
            return True
        return False

    # -- what there is ---------------------------------------------------------------------

    def info(self, session: str) -> SessionInfo:
        return self.service.get(ME, session)

    def events(self, session: str) -> list[ev.Event]:
        return [ev.decode(line) for line in self.service.events(ME, session, limit=1_000_000)]

    def runs(self, session: str) -> int:
        """How many cells have begun."""
        return sum(isinstance(event, ev.CellStarted) for event in self.events(session))

    def asks(self, session: str) -> bool:
        """Whether the last event is a question of a cell."""
        return isinstance(self.events(session)[-1], ev.InputRequested)

    def cells(self, session: str) -> list[CellInfo]:
        return self.service.cells(ME, session)[0]

    def count(self) -> int:
        return len(self.service.list(ME)[0])
