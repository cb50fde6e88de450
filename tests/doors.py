"""A server over the fake service, and plain clients for it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import websockets
from fake_service import FakeService
from tornado.httpclient import AsyncHTTPClient, HTTPResponse

from kernelsvc.server.app import Server, make_app
from kernelsvc.settings import Settings
from kernelsvc.telemetry.metrics import Metrics


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


class Doors:
    """A server, its service and clients for it."""

    def __init__(self, service: FakeService, settings: Settings) -> None:
        self.service, self.settings, self.metrics = service, settings, Metrics()
        self.app = make_app(service, settings, self.metrics)
        self.server = Server(self.app, settings)
        self.url = self.server.start()[0]
        self.http = AsyncHTTPClient(force_instance=True)

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
        await self.server.stop()
        await self.service.aclose()
