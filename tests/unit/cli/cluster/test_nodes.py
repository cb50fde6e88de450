"""The table of ``kernelsvc nodes``."""

from __future__ import annotations

from kernelsvc.cli.cluster import nodes


def test_the_table_names_states_and_what_is_wrong() -> None:
    node = {
        "node": "a1b2c3", "url": "http://h:1", "state": "unreachable", "version": "1.0", "sessions": 3,
        "max_sessions": 9, "promised_bytes": 2**21, "memory_bytes": 2**22, "warnings": ["its tokens are others"],
    }  # fmt: skip
    shown = nodes.lines({"nodes": [node], "refused": ["why"]})
    assert shown[0].split() == ["NODE", "STATE", "SESSIONS", "MEMORY", "PROMISED", "VERSION", "ADDRESS"]
    assert shown[1].split() == ["a1b2c3", "unreachable", "3", "/", "9", "2", "/", "4", "MiB", "1.0", "http://h:1"]
    assert shown[2].strip() == "! its tokens are others"
    assert shown[3] == "refused: why"
