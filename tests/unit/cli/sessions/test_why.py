"""``kernelsvc why``: the end of a session and its causes. test_actions.py runs commands."""

import argparse

import pytest

from kernelsvc.cli.sessions.why import MAX_CAUSES, explain, why
from kernelsvc.cli.terminal import Terminal
from kernelsvc.errors import BadRequest
from kernelsvc.model import events as ev


def at(second, event):
    event.at = f"2026-01-01T00:00:{second:02d}Z"
    return event


def test_an_open_session():
    assert explain("s_1", [ev.CellFinished(reason=ev.Reason.OK, message="not a cause")]) == ["s_1 is open."]


@pytest.mark.parametrize(("reason", "sentence"), [("idle", "idle_seconds"), ("server stopped", "Ctrl-C"), ("mine", "")])
def test_the_end_comes_first_in_words(reason, sentence):
    [line] = explain("s_1", [at(5, ev.SessionClosed(reason=reason))])
    assert line.startswith(f"s_1 was closed at 2026-01-01T00:00:05Z: {reason}.")
    assert sentence in line


def test_causes_follow_the_last_one_first():
    told = explain(
        "s_1",
        [
            at(1, ev.LimitReached(limit="memory_bytes", message="512 MiB")),
            at(2, ev.KernelDied(cause="oom", message="out of memory")),
            at(3, ev.KernelRestored(checkpoint="c_1")),
            at(4, ev.SessionClosed(reason="closed")),
        ],
    )
    assert [line.split("Z  ")[-1] for line in told[1:]] == [
        "the session went on from checkpoint c_1",
        "the kernel died (oom): out of memory",
        "limit memory_bytes: 512 MiB",
    ]


async def test_a_file_that_is_no_log_is_refused(tmp_path):
    for name, text in (("a.jsonl", "{}"), ("b.jsonl", ""), ("c.jsonl", '{"type":"stream","text":1}\n')):
        (tmp_path / name).write_text(text)
        with pytest.raises(BadRequest, match="not a session's log"):
            await why(argparse.Namespace(id=str(tmp_path / name)), Terminal())
    with pytest.raises(BadRequest):
        await why(argparse.Namespace(id=str(tmp_path / "missing.jsonl")), Terminal())


async def test_a_file_needs_no_ending(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "log").write_text("")
    with pytest.raises(BadRequest, match="is not a session's log"):
        await why(argparse.Namespace(id="log"), Terminal())


def test_it_is_bounded():
    assert len(explain("s_1", [ev.Interrupted() for _ in range(1000)])) == 1 + MAX_CAUSES
