"""``input()`` without a client."""

from __future__ import annotations

import io

import pytest

from kernelsvc.guest.stdio.cell_input import NoInputRequests, read_line


def test_lines_until_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO("3\n\nlast")
    assert [read_line(stream, "? ") for _ in range(3)] == ["3", "", "last"]
    assert capsys.readouterr().out == "? ? ? "
    with pytest.raises(EOFError):
        read_line(stream, "")


def test_nobody_to_ask_is_the_end_of_the_input_too() -> None:
    assert issubclass(NoInputRequests, EOFError)
    assert NoInputRequests.__name__ == "StdinNotImplementedError"
