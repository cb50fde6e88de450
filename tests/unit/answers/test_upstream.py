"""A model's server over a real connection."""

from __future__ import annotations

import asyncio
import gc
import socket
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import pytest
from waiting import wait_until

from kernelsvc.answers import upstream
from kernelsvc.answers.answers_share import AnswersShare
from kernelsvc.answers.scripted_model import ScriptedModel, delta, refusal, text
from kernelsvc.answers.upstream import ChatUpstream, UpstreamError
from kernelsvc.errors import TooLarge
from kernelsvc.model.answers.model_settings import ModelSettings

BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
async def model() -> AsyncIterator[ScriptedModel]:
    server = ScriptedModel()
    await server.start()
    yield server
    await server.stop()


def scripted(*turns: Any) -> Callable[[dict[str, Any]], Any]:
    waiting = iter(turns)
    return lambda body: next(waiting)


async def read(upstream: ChatUpstream) -> list[str]:
    return [data async for read in upstream.events(BODY) for data in read]


async def test_a_stream_cut_into_single_bytes_is_the_same(model: ScriptedModel) -> None:
    raw = b'data: {"a": "\xc3\xa9"}\r\n\r\ndata: [DONE]\n\n'
    model.script = lambda body: [raw[at : at + 1] for at in range(len(raw))]
    assert await read(ChatUpstream(ModelSettings(url=model.url), "")) == ['{"a": "é"}', "[DONE]"]


async def test_a_server_without_streams_sends_one_object(model: ScriptedModel) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n"
    model.script = lambda body: [head + b'{"a":"b"}']
    assert await read(ChatUpstream(ModelSettings(url=model.url), "")) == ['{"a":"b"}']


async def test_a_read_waits_for_the_principals_share_and_is_charged(
    model: ScriptedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    wait, charge = AnswersShare.wait, AnswersShare.charge

    async def waited(self: AnswersShare) -> None:
        done.append("wait")
        await wait(self)

    def charged(self: AnswersShare, seconds: float) -> None:
        done.append("charge")
        charge(self, seconds)

    monkeypatch.setattr(AnswersShare, "wait", waited)
    monkeypatch.setattr(AnswersShare, "charge", charged)
    model.script = lambda body: text("x" * 100_000)
    async with aclosing(ChatUpstream(ModelSettings(url=model.url), "").events(BODY)) as events:
        async for _ in events:
            done.append("data")
    assert done.count("wait") == done.count("charge") > 5
    assert done[done.index("data") - 1 : done.index("data") + 2] == ["wait", "data", "charge"]


async def test_an_object_without_end_is_refused(model: ScriptedModel) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"
    model.script = lambda body: [head, *[b" " * (1 << 20)] * 32]
    with pytest.raises(TooLarge):
        await read(ChatUpstream(ModelSettings(url=model.url), ""))


async def test_a_refusal_that_is_nested_too_deep_is_text(model: ScriptedModel) -> None:
    model.script = lambda body: [b"HTTP/1.1 400 Bad Request\r\n\r\n" + b"[" * 60_000]
    with pytest.raises(UpstreamError) as caught:
        await read(ChatUpstream(ModelSettings(url=model.url), ""))
    assert caught.value.fault.code == "invalid_prompt"


async def test_a_server_that_does_not_know_stream_options_is_asked_without(model: ScriptedModel) -> None:
    model.script = scripted(refusal(400, "unknown field stream_options"), text("a"), text("b"))
    upstream = ChatUpstream(ModelSettings(url=model.url, extra={"seed": 1}), "")
    await read(upstream)
    await read(upstream)
    assert ["stream_options" in each for each in model.requests] == [True, False, False]
    assert model.requests[0]["seed"] == 1


async def test_closing_the_generator_closes_the_connection(model: ScriptedModel) -> None:
    model.script = lambda body: [delta(content="word ")] * 1_000_000
    async with aclosing(ChatUpstream(ModelSettings(url=model.url), "").events(BODY)) as events:
        async for _ in events:
            break
    await wait_until(lambda: bool(model.requests))


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/v1", "http://nowhere.invalid/v1"])
async def test_an_address_that_does_not_answer_is_not_named(url: str) -> None:
    with pytest.raises(UpstreamError) as caught:
        await read(ChatUpstream(ModelSettings(url=url), ""))
    assert caught.value.fault.message == "The model's server can't be reached."


async def test_a_stream_without_its_end_is_a_fault(model: ScriptedModel) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 1000\r\n\r\n"
    model.script = lambda body: [head + b"data: {}\n\n"]
    with pytest.raises(UpstreamError):
        await read(ChatUpstream(ModelSettings(url=model.url), ""))


@pytest.mark.parametrize(
    "early", [b"HTTP/1.1 100 Continue\r\n\r\n" * 3, b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"]
)
async def test_responses_before_the_final_one_are_skipped(model: ScriptedModel, early: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n"
    model.script = lambda body: [early + head + b'{"a":"b"}']
    assert await read(ChatUpstream(ModelSettings(url=model.url), "")) == ['{"a":"b"}']


async def test_early_responses_without_end_are_a_fault(model: ScriptedModel, caplog: pytest.LogCaptureFixture) -> None:
    model.script = lambda body: [b"HTTP/1.1 100 Continue\r\n\r\n" * 5000]
    with pytest.raises(UpstreamError):
        await read(ChatUpstream(ModelSettings(url=model.url), ""))
    assert "exception" not in caplog.text


CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


async def test_a_chunked_stream_is_read_to_its_last_chunk(model: ScriptedModel) -> None:
    model.script = lambda body: [CHUNKED + b"6\r\ndata: \r\n6\r\n{}\n\nda\r\n", b"9\r\nta: [1]\n\n\r\n0\r\n\r\n"]
    assert await read(ChatUpstream(ModelSettings(url=model.url), "")) == ["{}", "[1]"]


@pytest.mark.parametrize("end", [b"", b"5\r\ndata", b"z\r\n"])
async def test_a_chunked_stream_without_its_last_chunk_is_a_fault(model: ScriptedModel, end: bytes) -> None:
    model.script = lambda body: [CHUNKED + b"a\r\ndata: {}\n\n\r\n" + end]
    with pytest.raises(UpstreamError) as caught:
        await read(ChatUpstream(ModelSettings(url=model.url), ""))
    assert "before the end" in caught.value.fault.message


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", b"HTTP/one\r\n\r\n"]
)
async def test_a_head_that_is_not_valid_is_a_fault(model: ScriptedModel, head: bytes) -> None:
    model.script = lambda body: [head]
    with pytest.raises(UpstreamError) as caught:
        await read(ChatUpstream(ModelSettings(url=model.url), ""))
    assert caught.value.fault.message == "The model's server can't be reached."


class Body(dict[str, Any]):
    """A request to which there are weak references."""


@pytest.mark.parametrize("way", ["refused", "too slow"])
async def test_a_request_to_a_server_that_can_t_be_reached_leaves_no_garbage(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=0)
    port = listener.getsockname()[1]
    waiting = []
    if way == "refused":
        listener.close()
    else:  # Linux answers no more connections while the queue is full
        monkeypatch.setattr(upstream, "CONNECT_SECONDS", 0.1)
        for _ in range(4):
            waiting.append(socket.socket())
            waiting[-1].setblocking(False)
            waiting[-1].connect_ex(("127.0.0.1", port))
    body = Body(BODY)
    seen = weakref.ref(body)
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(UpstreamError):
            async for _ in ChatUpstream(ModelSettings(url=f"http://127.0.0.1:{port}/v1"), "").events(body):
                pass
        del body
        await asyncio.sleep(0)
        assert seen() is None
    finally:
        gc.enable()
        for each in [*waiting, listener]:
            each.close()
