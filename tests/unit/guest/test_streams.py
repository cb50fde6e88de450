"""``sys.stdout`` of a session, without a session."""

from __future__ import annotations

import asyncio
import contextvars
import threading

import pytest

from kernelsvc.guest import streams
from kernelsvc.guest.streams import OutputStream
from kernelsvc.guest.wire_frames import stream_prefix


class Outlet:
    def __init__(self) -> None:
        self.foreign = False
        self.said: list[tuple[bytes, str]] = []

    def text(self, prefix: bytes, text: str) -> None:
        self.said.append((prefix, text))


def test_each_write_goes_out_at_once_with_its_parent() -> None:
    outlet = Outlet()
    stream = OutputStream("stderr", outlet)
    assert stream.write("a") == 1
    stream.set_parent({"header": {"msg_id": "m"}})
    stream.write("")
    print("b", file=stream)
    assert outlet.said == [
        (stream_prefix("stderr", ""), "a"),
        (stream_prefix("stderr", "m"), "b"),
        (stream_prefix("stderr", "m"), "\n"),
    ]


def test_a_context_keeps_its_parent_and_a_thread_takes_the_last() -> None:
    outlet = Outlet()
    stream = OutputStream("stdout", outlet)
    first = contextvars.copy_context()
    first.run(stream.set_parent, {"msg_id": "one"})
    contextvars.copy_context().run(stream.set_parent, {"msg_id": "two"})
    first.run(stream.write, "a")
    thread = threading.Thread(target=stream.write, args=("b",))
    thread.start()
    thread.join()
    assert [p for p, _ in outlet.said] == [stream_prefix("stdout", "one"), stream_prefix("stdout", "two")]


async def test_a_task_keeps_the_parent_it_was_made_under() -> None:
    outlet = Outlet()
    stream = OutputStream("stdout", outlet)
    stream.set_parent({"msg_id": "one"})

    async def late() -> None:
        await asyncio.sleep(0)
        stream.write("late")

    task = asyncio.create_task(late())
    stream.set_parent({"msg_id": "two"})
    await task
    assert outlet.said == [(stream_prefix("stdout", "one"), "late")]


def test_bytes_are_decoded_as_they_come() -> None:
    outlet = Outlet()
    stream = OutputStream("stdout", outlet)
    for byte in "ä!".encode():
        assert stream.buffer.write(bytes([byte])) == 1
    assert "".join(text for _, text in outlet.said) == "ä!"
    assert stream.buffer.writable()
    assert stream.buffer.fileno() == 1


def test_in_a_forked_process_text_takes_the_raw_way(monkeypatch: pytest.MonkeyPatch) -> None:
    outlet = Outlet()
    outlet.foreign = True
    written = []
    monkeypatch.setattr(
        streams.os, "write", lambda fd, data: written.append((fd, bytes(data[:2]))) or len(bytes(data[:2]))
    )
    OutputStream("stderr", outlet).write("abc")
    assert written == [(2, b"ab"), (2, b"c")]
    assert outlet.said == []


def test_it_stays_open_and_refuses_bytes() -> None:
    stream = OutputStream("stdout", Outlet())
    stream.close()
    stream.flush()
    assert not stream.closed
    with pytest.raises(TypeError, match="must be str"):
        stream.write(b"x")  # type: ignore[arg-type]
