"""Commands of the E2B API: how places, ends and listings are written."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from kernelsvc.server.e2b import process


def ended(status: int | None) -> Any:
    return process._end(status)


@pytest.mark.parametrize(
    ("path", "place"),
    [
        (None, ""),
        ("", ""),
        ("/home/user", ""),
        ("~", ""),
        ("/home/user/a/b", "a/b"),
        ("~/a", "a"),
        ("/home/username", "/home/username"),
        ("/tmp", "/tmp"),
    ],
)
def test_the_sandbox_s_own_directory_is_relative(path: str | None, place: str) -> None:
    assert process.working_directory(path) == place


def test_an_end_says_how() -> None:
    assert ended(3 << 8) == {"exitCode": 3, "exited": True, "status": "exit status 3"}
    killed = ended(signal.SIGKILL)
    assert (killed["exitCode"], killed["exited"], killed["error"]) == (-1, False, "signal: killed")
    assert ended(None)["exited"] is False


def test_signals_are_named_or_numbered() -> None:
    assert process._SIGNALS["SIGNAL_SIGKILL"] == process._SIGNALS[9] == signal.SIGKILL
