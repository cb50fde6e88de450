"""Parts of the MCP API that need no server: prompts, and what is kept for broken streams."""

from __future__ import annotations

import pytest
from mcp_types import JSONRPCNotification

from kernelsvc.errors import BadRequest, NotFound
from kernelsvc.server.mcp.event_store import McpSession, MemoryEventStore, current_session
from kernelsvc.server.mcp.prompts import PROMPTS, render_prompt


def note(text: str) -> JSONRPCNotification:
    return JSONRPCNotification(jsonrpc="2.0", method="m", params={"text": text})


async def replayed(backlog: MemoryEventStore, after: str) -> tuple[str | None, list[str]]:
    found: list[str] = []

    async def send(event) -> None:
        found.append(event.message.params["text"])

    return await backlog.replay_events_after(after, send), found


@pytest.fixture
def line():
    line = McpSession()
    token = current_session.set(line)
    yield line
    current_session.reset(token)


async def test_what_followed_on_the_same_stream_is_sent_again(line):
    backlog = MemoryEventStore()
    first = await backlog.store_event("1", None)
    for stream, text in (("1", "a"), ("2", "other"), ("1", "b")):
        await backlog.store_event(stream, note(text))
    assert await replayed(backlog, first) == ("1", ["a", "b"])


async def test_another_session_with_the_same_request_id_gets_nothing(line):
    backlog = MemoryEventStore()
    first = await backlog.store_event("1", None)
    await backlog.store_event("1", note("secret"))
    current_session.set(McpSession())
    await backlog.store_event("1", note("mine"))
    assert await replayed(backlog, first) == (None, [])


@pytest.mark.parametrize("id", ["", "x", "-1", "9" * 30, "7"])
async def test_an_unknown_event_gets_nothing(line, id):
    assert await replayed(MemoryEventStore(), id) == (None, [])


async def test_it_is_bounded_and_forgets_who_left(line):
    backlog = MemoryEventStore(max_bytes_of_one=10_000)
    for _ in range(100):
        last = await backlog.store_event("1", note("x" * 50))
    assert 5 < len(backlog._kept) < 20
    backlog.forget(line)
    assert len(backlog._kept) == 0
    assert await replayed(backlog, last) == (None, [])


@pytest.mark.parametrize("limits", [(10_000, 100_000), (100_000, 20_000)], ids=["of one", "of all"])
async def test_no_principal_evicts_the_events_of_another(line, limits):
    backlog = MemoryEventStore(*limits)
    first = await backlog.store_event("1", None)
    await backlog.store_event("1", note("mine"))
    current_session.set(McpSession("mallory"))
    for _ in range(100):
        await backlog.store_event("1", note("x" * 50))
    current_session.set(line)
    assert await replayed(backlog, first) == ("1", ["mine"])


def test_a_prompt_leaves_out_lines_whose_gap_is_empty():
    with_question = render_prompt("analyse", {"path": "x.csv", "question": "why {path}?"})
    assert "The question: why {path}?" in with_question
    assert "The question" not in render_prompt("analyse", {"path": "x.csv"})


@pytest.mark.parametrize("name", PROMPTS)
def test_every_gap_of_a_prompt_is_an_argument(name):
    prompt = PROMPTS[name]
    assert "{" not in render_prompt(name, dict.fromkeys(prompt.arguments, "value"))
    with pytest.raises(BadRequest, match=prompt.required[0]):
        render_prompt(name, {})
    with pytest.raises(BadRequest, match="no argument"):
        render_prompt(name, {**dict.fromkeys(prompt.required, "v"), "more": "v"})


def test_an_unknown_prompt_says_which_there_are():
    with pytest.raises(NotFound, match="analyse"):
        render_prompt("nope", {})
