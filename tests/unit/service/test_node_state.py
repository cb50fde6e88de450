"""What a node reports."""

from __future__ import annotations

from pathlib import Path

from fleet import FleetNode

from kernelsvc.model.objects import Principal, SessionRequest
from kernelsvc.protocol import e2b
from kernelsvc.service.node_state import NodeState
from kernelsvc.settings import Settings

ALICE = Principal(name="alice")


async def test_a_report_has_the_sessions_and_limits(tmp_path: Path) -> None:
    server = FleetNode(Settings(port=0, data_dir=tmp_path, node="abcdef", max_sessions=7))
    await server.start()
    try:
        state = server.service.node_state()
        assert isinstance(state, NodeState)
        assert not state.knows_key("alice", "k")
        made = await server.service.create(ALICE, SessionRequest(idempotency_key="k"))
        assert made.id.startswith("s_abcdef")
        assert state.knows_key("alice", "k")
        report = state.report()
        assert (report.sessions, report.max_sessions, report.principals) == (1, 7, {"alice": 1})
        assert (report.ready, report.draining, report.guests) == (True, False, [])
        assert report.promised_bytes == made.limits.memory_bytes
        assert report.templates == ["python3"]
        unknown = e2b.SignedAddress("v1_" + "a" * 43, "/x", "read", "user", None)
        assert state.session_of_signed(e2b.ENVD, unknown) is None
        await server.service.drain(1.0)
        assert state.report().draining
    finally:
        await server.stop()
