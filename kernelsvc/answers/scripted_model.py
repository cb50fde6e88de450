"""A model's server with a script, for tests, examples and benchmarks: ``python -m kernelsvc.answers.scripted_model``.

It speaks chat completions. Without a script of its own it makes one call for each line of the last user's message that
begins with ``python:``, and then answers with the last result. A request that forces a call, and has no such line, gets
one of its last function. A request for reasoning gets some.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

Chunk = dict[str, Any]
#: A function from the request's body to the events of the stream: objects, or bytes that are sent as they are.
Script = Callable[[dict[str, Any]], Sequence[Chunk | bytes]]


def delta(finish: str | None = None, **fields: Any) -> Chunk:
    """Return a chunk."""
    return {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": fields, "finish_reason": finish}]}


def text(*words: str) -> list[Chunk]:
    """Return the chunks of a text."""
    return [*(delta(content=word) for word in words), delta("stop")]


def call(code: str, number: int = 0, pieces: int = 4, name: str = "python") -> list[Chunk]:
    """Return the chunks of a call, whose arguments come in pieces."""
    arguments = json.dumps({"code": code})
    size = max(1, len(arguments) // pieces)
    first = {"index": number, "id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": ""}}
    found = [delta(tool_calls=[first])]
    for at in range(0, len(arguments), size):
        piece = {"index": number, "function": {"arguments": arguments[at : at + size]}}
        found.append(delta(tool_calls=[piece]))
    return found


def forced(function: dict[str, Any]) -> list[Chunk]:
    """Return the chunks of a call of a function, whose parameters all are the text "x"."""
    names = (function.get("parameters") or {}).get("properties", {})
    about = {"name": function["name"], "arguments": json.dumps(dict.fromkeys(names, "x"))}
    return [delta(tool_calls=[{"index": 0, "id": "call_0", "type": "function", "function": about}])]


def usage(given: int = 100, made: int = 10) -> Chunk:
    """Return the last chunk, with numbers of tokens."""
    return {"choices": [], "usage": {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made}}


def from_prompt(body: dict[str, Any]) -> list[Chunk | bytes]:
    """The script without a script of its own: it runs the lines of the last user's message that begin ``python:``."""
    messages = body["messages"]
    last = max(number for number, each in enumerate(messages) if each["role"] == "user")
    asked = messages[last]["content"]
    lines = (asked if isinstance(asked, str) else asked[0]["text"]).splitlines()
    codes = [line.removeprefix("python:").strip() for line in lines if line.startswith("python:")]
    results = [each["content"] for each in messages[last:] if each["role"] == "tool"]
    if len(results) < len(codes) and body.get("tools") and body.get("tool_choice") != "none":
        return [*call(codes[len(results)]), delta("tool_calls"), usage()]
    if body.get("tool_choice") == "required" and body.get("tools"):
        return [*forced(body["tools"][-1]["function"]), delta("tool_calls"), usage()]
    thought = [delta(reasoning_content="I read the request.")] if body.get("reasoning_effort") else []
    answer = f"The result is: {results[-1]}" if results else "I have no code to run."
    return [*thought, *text(*[word + " " for word in answer.split(" ")]), usage()]


class ScriptedModel:
    """A server on loopback, in the running event loop.

    Args:
        script: Makes the answers.
        think: Seconds before the first event.
        delay: Seconds before each further event.

    Attributes:
        requests: The bodies that arrived.
        headers: The headers that arrived, in lower case.
        closed: Number of requests whose client closed the connection before the end.
        url: The server's address, with ``/v1``.
    """

    def __init__(self, script: Script = from_prompt, *, think: float = 0.0, delay: float = 0.0) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.closed = 0
        self.url = ""
        self.script = script
        self._think, self._delay = think, delay
        self._server: asyncio.Server | None = None

    async def start(self, port: int = 0) -> str:
        """Listen. Return the address."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        return self.url

    async def stop(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            lines = [line.partition(":") for line in head.split("\r\n")[1:] if line]
            headers = {name.lower(): value.strip() for name, _, value in lines}
            body = json.loads(await reader.readexactly(int(headers.get("content-length", "0"))) or b"{}")
            self.requests.append(body)
            self.headers.append(headers)
            await self._respond(body, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _respond(self, body: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        events = self.script(body)
        gone = asyncio.ensure_future(reader.read(1))  # the end of the client's side, because it sends no more
        try:
            for number, event in enumerate(_encoded(events)):
                seconds = self._delay if number else self._think
                if seconds:
                    await asyncio.wait([gone], timeout=seconds)
                if gone.done():
                    self.closed += 1
                    return
                writer.write(event)
                await writer.drain()
        finally:
            gone.cancel()


def _encoded(events: Sequence[Chunk | bytes]) -> Iterator[bytes]:
    """Encode a response. One whose first event is bytes is sent as it is, its head included."""
    raw = bool(events) and isinstance(events[0], bytes) and events[0].startswith(b"HTTP/")
    if not raw:
        yield b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    for event in events:
        yield event if isinstance(event, bytes) else b"data: " + json.dumps(event).encode() + b"\n\n"
    if not raw:
        yield b"data: [DONE]\n\n"


def refusal(status: int, message: str, **headers: str) -> list[Chunk | bytes]:
    """Return a response with an error."""
    body = json.dumps({"error": {"message": message}}).encode()
    more = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    head = f"HTTP/1.1 {status} No\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n{more}\r\n"
    return [head.encode() + body]


async def _main(port: int, think: float, delay: float) -> None:
    model = ScriptedModel(think=think, delay=delay)
    sys.stdout.write(f"listens on {await model.start(port)}\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--port", type=int, default=9100)
    parser.add_argument("--think", type=float, default=0.0, help="seconds before the first event")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before each further event")
    options = parser.parse_args()
    asyncio.run(_main(options.port, options.think, options.delay))
