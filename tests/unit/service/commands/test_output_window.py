"""The output of a program between its writer and its reader, by positions."""

from __future__ import annotations

import asyncio

import pytest

from kernelsvc.service.commands.output_window import WINDOW_BYTES, OutputWindow


async def filled(*texts: str, drop: bool = False) -> OutputWindow:
    window = OutputWindow(drop=drop)
    for text in texts:
        await window.put(("stdout", text.encode()))
    return window


@pytest.mark.parametrize(
    ("after", "limit", "expected"),
    [
        (0, 100, ["abc", "de"]),
        (0, 4, ["abc", "d"]),
        (2, 100, ["c", "de"]),
        (3, 1, ["d"]),
        (5, 100, []),
    ],
)
async def test_a_read_returns_the_bytes_after_a_position(after: int, limit: int, expected: list[str]) -> None:
    window = await filled("abc", "de")
    found, position = window.read(after, limit)
    assert [data.decode() for _, data in found] == expected
    assert position == after
    # What lies before the position is acknowledged. The same read again returns the same.
    assert window.size == 5 - after
    assert window.read(after, limit) == (found, position)


async def test_a_full_window_stops_its_writer_until_output_is_acknowledged() -> None:
    window = await filled("x" * WINDOW_BYTES)
    waiting = asyncio.create_task(window.put(("stderr", b"more")))
    await asyncio.sleep(0)
    assert not waiting.done()
    window.read(10, 1)
    await asyncio.wait_for(waiting, 10)
    assert window.last == WINDOW_BYTES + 4


async def test_a_full_window_of_a_background_program_drops_its_oldest_output() -> None:
    window = await filled("x" * WINDOW_BYTES, "end", drop=True)
    assert window.size == WINDOW_BYTES
    found, position = window.read(0, 2 * WINDOW_BYTES)
    assert position == 3
    assert b"".join(data for _, data in found).endswith(b"end")


async def test_a_wait_ends_with_output_with_the_end_and_in_time() -> None:
    window = await filled("abc")
    await asyncio.wait_for(window.wait(2, 60), 10)
    waiting = asyncio.create_task(window.wait(3, 60))
    await asyncio.sleep(0)
    assert not waiting.done()
    window.end()
    await asyncio.wait_for(waiting, 10)
    await (await filled()).wait(0, 0.001)
