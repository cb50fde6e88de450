"""A real server over fake kernels, and plain clients for it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import websockets
from tornado.httpclient import AsyncHTTPClient, HTTPResponse

from kernelsvc.kernels.fake import FakeLauncher
from kernelsvc.model import events as ev
from kernelsvc.model.objects import Principal
from kernelsvc.model.tokens import TokenRecord, hash_token
from kernelsvc.settings import Settings
from kernelsvc.store.sessions import SessionDirectories
from kernelsvc.testing import InProcessServer

#: A cell that an interrupt ends.
SLEEP = "import asyncio\nawait asyncio.sleep(60)"
ALICE = Principal(name="alice")
TOKENS = [
    TokenRecord(name="alice", sha256=hash_token("alice-token")),
    TokenRecord(name="bob", sha256=hash_token("bob-token")),
    TokenRecord(name="alice", sha256=hash_token("reader-token"), scopes=frozenset({"read"})),
]


@dataclass
class Rpc:
    """A plain JSON-RPC client that keeps everything in the order in which it came."""

    socket: Any
    number: int = 0
    heard: list[dict[str, Any]] = field(default_factory=list)

    async def send(self, method: str, params: dict[str, Any] | None = None) -> int:
        self.number += 1
        await self.socket.send(
            json.dumps({"jsonrpc": "2.0", "id": self.number, "method": method, "params": params or {}})
        )
        return self.number

    async def answer(self, number: int) -> dict[str, Any]:
        for message in self.heard:
            if message.get("id") == number and "method" not in message:
                return message
        while True:
            message = await self.hear()
            if message.get("id") == number:
                return message

    async def hear(self) -> dict[str, Any]:
        message = json.loads(await self.socket.recv())
        self.heard.append(message)
        return message

    async def call(self, method: str, **params: Any) -> Any:
        message = await self.answer(await self.send(method, params))
        assert "error" not in message, message
        return message["result"]

    async def refused(self, method: str, **params: Any) -> dict[str, Any]:
        message = await self.answer(await self.send(method, params))
        return message["error"]["data"]

    def events(self, session: str) -> list[dict[str, Any]]:
        return [m["params"] for m in self.heard if m.get("method") == "event" and m["params"]["session"] == session]


class HttpServer:
    """A server, its service and clients for it."""

    def __init__(
        self, settings: Settings, kernels: FakeLauncher | None = None, keys: dict[str, str] | None = None
    ) -> None:
        settings = msgspec.structs.replace(settings, tokens=settings.tokens or TOKENS, journal_sync="off")
        self.inner = InProcessServer(settings, kernels=kernels, keys=keys)
        self.service, self.settings, self.app = self.inner.service, self.inner.settings, self.inner.app
        self.server, self.kernels = self.inner.server, self.inner.kernels
        self.url = ""
        self.http = AsyncHTTPClient(force_instance=True)

    async def start(self) -> HttpServer:
        self.url = await self.inner.start()
        return self

    def state(self, session: str) -> str:
        """The state of one of Alice's sessions."""
        return self.service.get(ALICE, session).state

    def files(self, session: str) -> Path:
        """The working directory of one of Alice's sessions."""
        return SessionDirectories(self.settings.data_path()).directory(session).working()

    def changes(self, session: str) -> list[list[dict[str, Any]]]:
        """The changes of files that the journal of one of Alice's sessions holds."""
        events = map(ev.decode, self.service.events(ALICE, session))
        return [event.files for event in events if isinstance(event, ev.FilesChanged)]

    def losses(self) -> list[object]:
        """A list that gets each connection which is reported as lost from now on."""
        lost: list[object] = []
        report = self.service.client_gone

        def client_gone(client: object) -> None:
            lost.append(client)
            report(client)

        self.service.client_gone = client_gone
        return lost

    async def fetch(
        self, verb: str, path: str, body: Any = None, token: str | None = "alice-token", **more: Any
    ) -> HTTPResponse:
        headers = dict(more.pop("headers", {}))
        if token:
            headers.setdefault("Authorization", f"Bearer {token}")
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        return await self.http.fetch(
            self.url + path, method=verb, body=body, headers=headers, raise_error=False, allow_nonstandard_methods=True,
            follow_redirects=False, **more,
        )  # fmt: skip

    async def json(self, verb: str, path: str, body: Any = None, status: int | None = None, **more: Any) -> Any:
        response = await self.fetch(verb, path, body, **more)
        assert status is None or response.code == status, (response.code, response.body)
        return json.loads(response.body) if response.body else None

    async def refused(self, verb: str, path: str, body: Any = None, **more: Any) -> tuple[int, str]:
        """Status and code of a refusal, which must have the one shape."""
        response = await self.fetch(verb, path, body, **more)
        data = json.loads(response.body)
        assert set(data) == {"code", "message", "retryable", "details"}, data
        assert data["message"]
        return response.code, data["code"]

    def socket(self, token: str | None = "alice-token", query: str = "", **more: Any) -> Any:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        headers |= more.pop("headers", {})
        url = self.url.replace("http", "ws") + "/v1/ws" + query
        return websockets.connect(
            url, additional_headers=headers, compression=None, max_size=None, close_timeout=1, **more
        )

    async def stop(self) -> None:
        self.http.close()
        await self.inner.stop()
