"""schemathesis against a real server over fake kernels."""

from __future__ import annotations

import asyncio
import threading

import pytest
import rest_fuzz
from http_server import HttpServer

from kernelsvc.kernels.fake import FakeLauncher
from kernelsvc.server.native import openapi
from kernelsvc.settings import Settings

DOCUMENT = openapi.openapi("1")


@pytest.fixture(scope="module")
def served_fake():
    """A server whose loop runs in a thread, because schemathesis waits for each answer. Its kernels run no Python."""
    ready, box = threading.Event(), {}

    async def serve():
        settings = Settings(port=0, shutdown_seconds=1.0, checkpoints=0, max_sessions=500)
        http_server = await HttpServer(settings, FakeLauncher()).start()
        box.update(url=http_server.url, loop=asyncio.get_running_loop(), stop=asyncio.Event())
        box["session"] = (await http_server.json("POST", "/v1/sessions", {}))["id"]
        ready.set()
        await box["stop"].wait()
        await http_server.stop()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(10)
    yield box["url"], box["session"]
    box["loop"].call_soon_threadsafe(box["stop"].set)
    thread.join(10)


@pytest.mark.parametrize("operation", rest_fuzz.operations(DOCUMENT))
def test_answers_are_what_the_document_promises(served_fake, operation):
    url, session = served_fake
    rest_fuzz.drive(url, "alice-token", DOCUMENT, operation, session, examples=rest_fuzz.EXAMPLES)
