"""A server with two models behind a scripted model's server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from kernelsvc.answers.scripted_model import Script, ScriptedModel
from kernelsvc.model.answers.model_settings import AnswerSettings, ModelSettings

CODE = {"type": "code_interpreter", "container": {"type": "auto"}}
KEY = "canary-key-of-the-upstream"


class Lab:
    """A server, its scripted model, and calls of its API."""

    def __init__(self, server: Any, model: ScriptedModel) -> None:
        self.server, self.model = server, model

    async def create(self, prompt: Any = "python: 6 * 7", status: int = 200, **more: Any) -> Any:
        """One response, not streamed."""
        body = {"model": "qwen", "input": prompt, "tools": [CODE], **more}
        return await self.server.json("POST", "/v1/responses", body, status, token=more.pop("token", "alice-token"))

    async def stream(self, prompt: Any = "python: 6 * 7", **more: Any) -> list[dict[str, Any]]:
        """The events of one response."""
        body = {"model": "qwen", "input": prompt, "tools": [CODE], "stream": True, **more}
        return events_of((await self.server.fetch("POST", "/v1/responses", body)).body)

    async def send(self, path: str, body: Any) -> asyncio.StreamWriter:
        """Send a request on a connection of its own, which the test closes before its response."""
        host, _, port = self.server.url.removeprefix("http://").partition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer alice-token\r\n"
        writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        return writer

    async def read(self, path: str, status: int = 200, token: str = "alice-token") -> Any:
        return await self.server.json("GET", path, status=status, token=token)


def events_of(data: bytes) -> list[dict[str, Any]]:
    """The events of a stream, which must end as OpenAI's do."""
    frames = [each for each in data.decode().split("\n\n") if each and not each.startswith(":")]
    assert frames[-1] == "data: [DONE]"
    found = []
    for each in frames[:-1]:
        kind, _, payload = each.partition("\n")
        event = json.loads(payload.removeprefix("data: "))
        assert kind == f"event: {event['type']}"
        found.append(event)
    return found


@pytest.fixture
async def make_lab(open_http_server: Any) -> Any:
    models: list[ScriptedModel] = []

    async def make(
        script: Script | Sequence[Sequence[Any]] | None = None, rules: dict[str, Any] | None = None, **settings: Any
    ) -> Lab:
        model = ScriptedModel()
        models.append(model)
        if callable(script):
            model.script = script
        elif script is not None:
            turns = iter(script)
            model.script = lambda body: list(next(turns))
        url = await model.start()
        named = {
            "qwen": ModelSettings(url=url, **settings),
            "only-bob": ModelSettings(url=url, principals=["bob"]),
        }
        server = await open_http_server(
            keys={"qwen": KEY, "only-bob": KEY}, models=named, answers=AnswerSettings(**(rules or {}))
        )
        return Lab(server, model)

    yield make
    for model in models:
        await model.stop()


@pytest.fixture
async def lab(make_lab: Any) -> Lab:
    found: Lab = await make_lab()
    return found
