"""HTTP requests to the server: files, notebooks, pages of events."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import urlencode

import msgspec
from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest, HTTPResponse
from tornado.iostream import StreamClosedError
from tornado.netutil import Resolver

from kernelsvc import errors
from kernelsvc.client.address import Address
from kernelsvc.client.values import ConnectionLost, unreachable
from kernelsvc.errors import KernelsvcError

CONNECT_SECONDS = 10.0
#: Tornado refuses larger bodies. A download is passed on in chunks, and may be as large as the disk.
_NO_LIMIT = 1 << 50

Body = bytes | Callable[[], AsyncIterator[bytes]]


class UnixResolver(Resolver):
    """Resolves each host name to one Unix socket."""

    def initialize(self, path: str) -> None:
        """Set the socket's path. Tornado calls this instead of ``__init__``."""
        self.path = path

    async def resolve(self, host: str, port: int, family: int = 0) -> list[tuple[int, Any]]:
        """Return the socket's address."""
        return [(socket.AF_UNIX, self.path)]


def error_of(status: int, body: bytes) -> KernelsvcError:
    """Return the error object of a response. A response without one gives an error by its HTTP status."""
    try:
        data = msgspec.json.decode(body)
    except msgspec.DecodeError:
        data = None
    if isinstance(data, dict):
        # REST wraps the error object: {"error": {...}}.
        data = data.get("error", data)
        if isinstance(data, dict) and "code" in data:
            return errors.from_json(data)
    nearest = next((cls for cls in errors.BY_CODE.values() if cls.http_status == status), errors.Internal)
    return nearest(
        f"The server answered with status {status} and no error object. Check that this address is a kernelsvc server."
    )


class Rest:
    """HTTP requests to one address. Use it on the event loop that created it."""

    def __init__(self, address: Address, *, connect_seconds: float, retry_seconds: float) -> None:
        self.address = address
        self._give_up_seconds = connect_seconds
        self._retry_seconds = retry_seconds
        options: dict[str, Any] = {"resolver": UnixResolver(address.uds)} if address.uds else {}
        # force_instance: otherwise Tornado shares one client in a loop, with the resolver and limits of the first one.
        self._http = AsyncHTTPClient(
            force_instance=True, max_clients=16, max_body_size=_NO_LIMIT, max_buffer_size=64 * 1024 * 1024, **options
        )

    async def json(self, method: str, path: str, body: Any = None, *, repeat: bool | None = None) -> Any:
        """Send a request with a JSON body, or without one, and return the JSON of the response.

        Args:
            method: GET, POST, …
            path: path and query, below the address.
            body: JSON values. None sends no body.
            repeat: whether the server may get the request twice. Default: only GET.

        Raises:
            KernelsvcError: the server's error, ``Unreachable`` or ``ConnectionLost``.
        """
        headers = {"Accept": "application/json"}
        payload = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            payload = msgspec.json.encode(body)
        answer = await self.raw(method, path, payload, headers=headers, repeat=repeat)
        return msgspec.json.decode(answer) if answer else None

    async def raw(
        self,
        method: str,
        path: str,
        body: Body | None = None,
        *,
        headers: dict[str, str] | None = None,
        repeat: bool | None = None,
        sink: Callable[[bytes], None] | None = None,
        on_restart: Callable[[], None] | None = None,
        response_headers: dict[str, str] | None = None,
    ) -> bytes:
        """Send a request and return the body of the response.

        Args:
            method: GET, PUT, …
            path: path and query, below the address.
            body: bytes, or a function that returns the chunks, called again for each attempt.
            headers: headers besides the token's.
            repeat: whether the server may get the request twice. Default: only GET and HEAD.
            sink: called with each chunk of a successful response. The returned body is then empty.
            on_restart: called before another attempt, to discard the chunks that ``sink`` got.
            response_headers: filled with the headers of a successful response, names in lower case.

        Raises:
            KernelsvcError: as ``json``.
        """
        repeat = method in ("GET", "HEAD") if repeat is None else repeat
        deadline = asyncio.get_running_loop().time() + self._give_up_seconds
        pause = 0.05
        while True:
            try:
                answer = await self._request_once(method, path, body, headers or {}, sink, response_headers)
                self._give_up_seconds = self._retry_seconds
                return answer
            except (OSError, StreamClosedError, HTTPClientError) as error:
                # The connect failed, so that the server has not got the request. Any request may be sent again.
                never_sent = isinstance(error, ConnectionRefusedError | FileNotFoundError)
                if asyncio.get_running_loop().time() + pause > deadline or not (repeat or never_sent):
                    raise self._failure(error, method, path, never_sent=never_sent or repeat)
            if on_restart is not None:
                on_restart()
            await asyncio.sleep(pause)
            pause = min(5.0, pause * 2)

    def _failure(self, error: BaseException, method: str, path: str, *, never_sent: bool) -> KernelsvcError:
        if never_sent:
            return unreachable(self.address.shown, error)
        return ConnectionLost(method=f"{method} {path}")

    async def _request_once(
        self,
        method: str,
        path: str,
        body: Body | None,
        headers: dict[str, str],
        sink: Callable[[bytes], None] | None,
        response_headers: dict[str, str] | None,
    ) -> bytes:
        answer = _ResponseBody(sink)
        request = HTTPRequest(
            self.address.base + path,
            method=method,
            headers={**self.address.headers(), **headers},
            connect_timeout=CONNECT_SECONDS,
            request_timeout=0,  # A cell or a download takes as long as it takes.
            header_callback=answer.header,
            streaming_callback=answer.piece,
            allow_nonstandard_methods=True,  # Otherwise Tornado refuses a POST without a body.
            decompress_response=sink is None,
            **_body_options(body),
        )
        response: HTTPResponse = await self._http.fetch(request, raise_error=False)
        # Tornado's code 599: there was no response.
        if response.code == 599 or (response.error and not isinstance(response.error, HTTPClientError)):
            raise response.error or OSError("no answer")
        if response.code >= 400:
            raise error_of(response.code, answer.content())
        if response_headers is not None:
            response_headers.update((name.lower(), value) for name, value in response.headers.get_all())
        return answer.content()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()


def _body_options(body: Body | None) -> dict[str, Any]:
    if body is None or isinstance(body, bytes):
        return {"body": body}

    async def produce(write: Callable[[bytes], Any]) -> None:
        async for piece in body():
            await write(piece)

    return {"body_producer": produce}


class _ResponseBody:
    """Collects the body of a response, or passes the body of a successful one to a sink."""

    def __init__(self, sink: Callable[[bytes], None] | None) -> None:
        self._sink = sink
        self._status = 0
        self._pieces: list[bytes] = []

    def header(self, line: str) -> None:
        if line.startswith("HTTP/"):
            self._status = int(line.split()[1])

    def piece(self, piece: bytes) -> None:
        if self._sink is not None and self._status < 400:
            self._sink(piece)
        else:
            self._pieces.append(piece)

    def content(self) -> bytes:
        return b"".join(self._pieces)


def query(path: str, **params: Any) -> str:
    """Return a path with a query string of the parameters that are not None."""
    pairs = {name: str(value) for name, value in params.items() if value is not None}
    if not pairs:
        return path
    return f"{path}?{urlencode(pairs)}"
