"""Counts of requests for a session's log."""

from __future__ import annotations

from typing import Any

from kernelsvc.model import events as ev
from kernelsvc.service.ports import session_ports
from kernelsvc.service.ports.session_ports import SessionPorts


class Log:
    """The part of a session that counts are written to."""

    def __init__(self) -> None:
        self.events: list[ev.PortUsed] = []

    def try_record(self, event: ev.PortUsed) -> None:
        self.events.append(event)


async def test_a_visitor_of_many_ports_gets_few_entries() -> None:
    log: Any = Log()
    ports = SessionPorts(log, launchers=None)  # type: ignore[arg-type]
    for port in range(1, 1001):
        ports.use((port, "public")).add(requests=1, failed=1)
    ports.use((80, "token")).add(requests=1)
    ports.record()
    ports.close()
    named = [event for event in log.events if event.port]
    assert [(event.port, event.requests) for event in named] == [(n + 1, 1) for n in range(session_ports.MAX_NAMED)]
    others = {event.access: event.requests for event in log.events if not event.port}
    assert others == {"public": 1000 - session_ports.MAX_NAMED, "token": 1}
