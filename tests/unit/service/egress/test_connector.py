"""Whose connection it was: reports of the proxy go to the session whose cell runs in the container."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from kernelsvc.egress.client import EgressClient
from kernelsvc.egress.protocol import Report
from kernelsvc.kernels.launchers import KernelLaunchers
from kernelsvc.service.egress.connector import EgressConnector
from kernelsvc.service.registry import SessionRegistry
from kernelsvc.settings import Settings


class World:
    """Open sessions, a proxy that reports, and how often all sessions were looked through."""

    def __init__(self) -> None:
        self.version = self.walks = 0
        self.sessions: list[Any] = []
        self.reported: list[str] = []
        self._connector = EgressConnector(
            Settings(), cast("SessionRegistry", self), cast("KernelLaunchers", SimpleNamespace(on_listeners=self._keep))
        )

    def _keep(self, on_listeners: Any) -> None:
        self._on_listeners = on_listeners

    def open_sessions(self) -> list[Any]:
        self.walks += 1
        return self.sessions

    def kernel(self, kernel: str) -> None:
        self._on_listeners({"container": "c", "kernel": kernel, "rules": {"allow": []}}, [])

    def session(self, name: str, kernel: str, *, running: str | None = None) -> Any:
        made = SimpleNamespace(
            running=running,
            spec=SimpleNamespace(kernel=kernel),
            limits=SimpleNamespace(network="none"),
            try_record=lambda event: self.reported.append(name),
        )
        self.sessions.append(made)
        self.version += 1
        return made

    def report(self) -> list[str]:
        """Report a connection. Return the sessions that recorded it."""
        self.reported.clear()
        fields = {"rule": "a.test", "host": "a.test", "address": "", "port": 80, "sent": 0, "received": 0}
        report = Report(container="c", kind="connection", fields={**fields, "seconds": 0.0, "end": "closed"})
        self._connector._on_report(report)
        return [*self.reported]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(EgressClient, "open", lambda *_: None)
    return World()


def test_reports_do_not_look_through_all_sessions_each_time(world: World) -> None:
    world.kernel("k")
    world.session("other", "elsewhere", running="cell")
    world.session("s", "k")
    assert world.report() == ["s"]
    before = world.walks
    assert [world.report() for _ in range(10)] == [["s"]] * 10
    assert world.walks == before


def test_a_branch_whose_cell_runs_gets_its_reports(world: World) -> None:
    world.kernel("k")
    parent = world.session("parent", "k")
    assert world.report() == ["parent"]
    world.kernel("b")
    branch = world.session("branch", "b", running="cell")
    assert world.report() == ["branch"]
    branch.running, parent.running = None, "cell"
    assert world.report() == ["parent"]
    world.sessions.remove(parent)
    world.version += 1
    assert world.report() == ["branch"]


def test_a_session_that_comes_back_to_a_container_is_found(world: World) -> None:
    world.kernel("k")
    session = world.session("s", "k")
    assert world.report() == ["s"]
    session.spec.kernel = "fresh, in another container"
    assert world.report() == []
    world.kernel("checkpoint")
    assert world.report() == []  # a program in the container connects before the session uses the checkpoint
    session.spec.kernel = "checkpoint"
    assert world.report() == ["s"]


def test_a_found_kernel_has_its_present_rules_and_the_trust_of_its_first_ones(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Any] = []
    monkeypatch.setattr(EgressClient, "open", lambda _, name, rules, fds: opened.append(rules))
    monkeypatch.setattr(EgressClient, "ports", lambda *_: {443})
    first = {"allow": [{"host": "a.test", "methods": ["GET"]}]}
    world._on_listeners({"container": "c", "kernel": "k", "rules": first, "present": {"allow": []}}, [])
    assert opened == [{"allow": []}]
    session = world.session("s", "k")
    assert world._connector.family_of(session) == ([session], {443}, True)
