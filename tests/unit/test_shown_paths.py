"""The search of logs for answers with paths of the server."""

from __future__ import annotations

from pathlib import Path

import pytest
from shown_paths import answers_with_paths

from kernelsvc.model import events as ev
from kernelsvc.model.hash_chain import Head, stamp


@pytest.mark.parametrize(
    ("code", "text", "isolation", "found"),
    [
        ("f()", "File /srv/.venv/lib/x.py", "full", 1),
        ("f()", "File /opt/environment/lib/x.py", "full", 0),
        ("print('/.venv/')", "/.venv/", "full", 0),  # the code's own words
        ("f()", "File /srv/.venv/lib/x.py", "none", 0),  # it sees the machine's places
    ],
)
def test_a_path_that_only_the_server_can_have_said(
    tmp_path: Path, code: str, text: str, isolation: str, found: int
) -> None:
    place = tmp_path / "sessions" / "s_1"
    place.mkdir(parents=True)
    events = [
        ev.SessionStarted(kernel=ev.KernelInfo(kind="forked"), sandbox=ev.SandboxReport(isolation=isolation)),
        ev.CellQueued(cell="c", code=code),
        ev.CellStarted(cell="c", execution_count=1),
        ev.Stream(cell="c", text=text),
        ev.CellFinished(cell="c", execution_count=1),
    ]
    lines, _ = stamp(events, "s_1", Head(), "2026-01-01T00:00:00.000000Z")
    (place / "journal.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    assert len(answers_with_paths(tmp_path)) == found
