"""The test's side of a driver: a relay that causes faults, and an HTTP server by which a driver asks for them.

A driver is a program in any language. It reads the URL of this server, asks it for scenarios (``GET /next``), carries
their steps out, asks for faults (``POST /fault``), and reports (``POST /result``).
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from faulty_proxy import FaultyProxy
from served import Served
from waiting import wait_until

#: For one scenario.
SECONDS = 100


class Relay:
    """A proxy in front of a server, and the server that drivers talk to. Runs on a thread with a loop of its own.

    Attributes:
        control: the URL for drivers.
        url: the URL of the relayed server.
        on_hang: called when a scenario has no result in time.
    """

    on_hang: Callable[[], None] | None = None

    def __init__(self, served: Served, files: Path | None = None) -> None:
        self.served, self.files = served, files
        self.control = self.url = ""
        self._loop = asyncio.new_event_loop()
        self._scenarios: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._results: asyncio.Queue[Any] = asyncio.Queue()
        self._proxy = FaultyProxy(urlsplit(served.url).port or 0)
        self._marks: dict[str, int] = {}

    async def _open(self) -> None:
        await self._proxy.__aenter__()
        self.url = self._proxy.url
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.control = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _close(self) -> None:
        self._server.close()
        await self._proxy.__aexit__()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            method, path = head.split(" ", 2)[:2]
            sizes = [line for line in head.lower().splitlines() if line.startswith("content-length:")]
            body = await reader.readexactly(int(sizes[0].split(":")[1]) if sizes else 0)
            answer, kind = await self._answer(method, path, body), "application/json"
            if isinstance(answer, Path):
                kind = "text/html" if answer.suffix == ".html" else "text/javascript"
                data = answer.read_bytes()
            else:
                data = json.dumps(answer).encode()
            fields = f"Content-Type: {kind}\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n"
            writer.write(b"HTTP/1.1 200 OK\r\n" + fields.encode())
            writer.write(data)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _answer(self, method: str, path: str, body: bytes) -> Any:
        if path == "/next":
            scenario = await self._scenarios.get()
            return scenario and {"url": self.url, "token": self.served.token, **scenario}
        if path == "/result":
            self._results.put_nowait(json.loads(body))
            return None
        if path == "/fault":
            return await self._fault(**json.loads(body))
        return self.files / path.partition("?")[0].lstrip("/") if self.files else None

    async def _fault(self, what: str, **more: Any) -> Any:
        proxy = self._proxy
        if what == "cut":
            proxy.cut()
        elif what == "cut_after":
            proxy.cut_after = more["bytes"]
        elif what in ("silence", "speak"):
            proxy.silent = what == "silence"
        elif what == "held":
            await wait_until(lambda: proxy.held, deadline=60, what="data that the relay holds back")
        elif what == "passed":
            return proxy.passed
        elif what == "kill":
            await asyncio.to_thread(self.served.kill)
        elif what == "serve":
            await asyncio.to_thread(self.served.start)
        return None

    def run(self, scenario: dict[str, Any]) -> list[Any]:
        """Give a scenario to the driver and return the results of its steps."""
        asyncio.run_coroutine_threadsafe(self._scenarios.put(scenario), self._loop).result()
        try:
            waiting = asyncio.run_coroutine_threadsafe(self._results.get(), self._loop)
            result = waiting.result(SECONDS)
        except TimeoutError:
            # The next scenario would get this one's result.
            waiting.cancel()
            if self.on_hang is not None:
                self.on_hang()
            raise
        finally:
            self._loop.call_soon_threadsafe(self._restore)
        assert isinstance(result, list), result
        return result

    def _restore(self) -> None:
        self._proxy.cut_after, self._proxy.silent, self._proxy.held = [], False, 0

    def quit(self) -> None:
        """Let the driver end."""
        asyncio.run_coroutine_threadsafe(self._scenarios.put(None), self._loop).result()

    @contextmanager
    def open(self) -> Iterator[Relay]:
        """Run the relay for the length of a ``with``."""
        thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        thread.start()

        def wait(make: Callable[[], Any]) -> None:
            asyncio.run_coroutine_threadsafe(make(), self._loop).result(30)

        wait(self._open)
        try:
            yield self
        finally:
            wait(self._close)
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join()
            self._loop.close()


def differences(expected: Any, found: Any, where: str = "") -> list[str]:
    """Return what of the expected values is missing: each field of an object, or an equal value."""
    if isinstance(expected, dict) and isinstance(found, dict):
        return [each for name, value in expected.items() for each in _of_field(name, value, found, where)]
    return [] if expected == found else [f"{where}: expected {expected!r}, found {found!r}"]


def _of_field(name: str, value: Any, found: dict[str, Any], where: str) -> list[str]:
    if name.endswith("_at_most"):
        number = found.get(name.removesuffix("_at_most"))
        return [] if number is not None and number <= value else [f"{where}.{name}: {number!r} is more than {value}"]
    if name == "has":
        return [] if value in found.get("text", "") else [f"{where}: {value!r} is not in {found!r}"]
    return differences(value, found.get(name), f"{where}.{name}")
