"""``sys.stdout`` of a session, without a session."""

from __future__ import annotations

import asyncio
import contextvars
import threading

import pytest
from waiting import wait_for

from kernelsvc.guest.stdio import streams
from kernelsvc.guest.stdio.streams import OutputStream
from kernelsvc.guest.wire_frames import stream_prefix


class Outlet:
    def __init__(self) -> None:
        self.foreign = False
        self.said: list[tuple[bytes, str]] = []

    def text(self, prefix: bytes, text: str) -> None:
        self.said.append((prefix, text))


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process with one thread, whatever the test run has."""
    monkeypatch.setattr(streams, "_other_threads", lambda: 0)


@pytest.mark.usefixtures("alone")
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
    # A whole line: other tests of this process may have left a thread, and then the rest of a line waits for its end.
    first.run(stream.write, "a\n")
    thread = threading.Thread(target=stream.write, args=("b\n",))
    thread.start()
    thread.join()
    assert [p for p, _ in outlet.said] == [stream_prefix("stdout", "one"), stream_prefix("stdout", "two")]


async def test_a_task_keeps_the_parent_it_was_made_under() -> None:
    outlet = Outlet()
    stream = OutputStream("stdout", outlet)
    stream.set_parent({"msg_id": "one"})

    async def late() -> None:
        await asyncio.sleep(0)
        stream.write("late\n")

    task = asyncio.create_task(late())
    stream.set_parent({"msg_id": "two"})
    await task
    assert outlet.said == [(stream_prefix("stdout", "one"), "late\n")]


def test_bytes_are_decoded_as_they_come() -> None:
    outlet = Outlet()
    stream = OutputStream("stdout", outlet)
    for byte in "ä!".encode():
        assert stream.buffer.write(bytes([byte])) == 1
    stream.flush()
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
    stream = OutputStream("stderr", outlet)
    stream.write("abc")
    assert written == []  # as a script that writes to a pipe
    stream.flush()
    assert written == [(2, b"ab"), (2, b"c")]
    assert outlet.said == []


def test_it_stays_open_and_refuses_bytes() -> None:
    stream = OutputStream("stdout", Outlet())
    stream.close()
    stream.flush()
    assert not stream.closed
    with pytest.raises(TypeError, match="must be str"):
        stream.write(b"x")  # type: ignore[arg-type]


def test_lines_of_threads_stay_whole() -> None:
    outlet = Outlet()
    stream = OutputStream("stdout", outlet)
    barrier = threading.Barrier(4)

    def work(name: int) -> None:
        for number in range(50):
            barrier.wait()  # so that all write at the same time
            print(name, number, "of", "thread", file=stream)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(text for _, text in outlet.said) == sorted(
        f"{a} {b} of thread\n" for a in range(4) for b in range(50)
    )


def test_a_line_that_stays_incomplete_is_sent_all_the_same() -> None:
    outlet = Outlet()
    stream = OutputStream("stdout", outlet)
    release = threading.Event()

    def work() -> None:
        stream.write("working ...")
        release.wait(10)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        wait_for(lambda: outlet.said == [(stream_prefix("stdout", ""), "working ...")])
        wait_for(lambda: not [each for each in threading.enumerate() if each.name == "incomplete lines"])
    finally:
        release.set()
        thread.join()


def test_the_end_of_a_cell_sends_incomplete_lines_and_leaves_no_thread() -> None:
    outlet = Outlet()
    stream = OutputStream("stdout", outlet)
    thread = threading.Thread(target=stream.write, args=("half",))
    thread.start()
    thread.join()
    stream.settle()
    assert [text for _, text in outlet.said] == ["half"]
    assert not [each for each in threading.enumerate() if each.name == "incomplete lines"]


def test_a_thread_can_name_the_request_that_it_writes_for() -> None:
    outlet = Outlet()
    stream = OutputStream("stdout", outlet)
    stream.set_parent({"msg_id": "two"})

    def work() -> None:
        token = stream.set_thread_parent({"header": {"msg_id": "one"}})
        stream.write("a\n")
        stream.reset_thread_parent(token)
        stream.write("b\n")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert outlet.said == [(stream_prefix("stdout", "one"), "a\n"), (stream_prefix("stdout", "two"), "b\n")]
