"""Other rules for a session that changes while the server waits for the proxy."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from kernelsvc.errors import Conflict, SessionClosed
from kernelsvc.model.limits import Limits
from kernelsvc.model.network.rules import NetworkRules
from kernelsvc.model.objects import Principal
from kernelsvc.service.egress.connector import EgressConnector
from kernelsvc.service.egress.network_updates import NetworkUpdates
from kernelsvc.service.registry import SessionRegistry
from kernelsvc.settings import Settings
from kernelsvc.store.sessions import SessionDirectories

ME = Principal(name="p")


class World:
    """One session, a proxy that starts when ``meanwhile`` has run, and the rules that were applied."""

    def __init__(self, meanwhile: Any) -> None:
        self._meanwhile = meanwhile
        self.session: Any = SimpleNamespace(
            id="s",
            limits=Limits(network=NetworkRules(allow=("a.test", "b.test"))),
            spec=SimpleNamespace(use_network=lambda rules: self.applied.append(rules.allow)),
            try_record=lambda _: None,
        )
        self.applied: list[Any] = []

    def find_open(self, who: Principal, session: str) -> Any:
        if self.session is None:
            raise SessionClosed("closed")
        return self.session

    async def require(self, limits: Limits) -> None:
        self._meanwhile(self)

    def family_of(self, session: Any) -> Any:
        return [session], None, False

    def updates(self) -> NetworkUpdates:
        registry = SimpleNamespace(find_open=self.find_open, describe=lambda session: session)
        directory = SimpleNamespace(write_about=lambda _: None)
        egress = SimpleNamespace(require=self.require, family_of=self.family_of, update=lambda *_: None)
        return NetworkUpdates(
            Settings(limits=Limits(network=NetworkRules(allow=("*",)))),
            cast("SessionRegistry", registry),
            cast("SessionDirectories", SimpleNamespace(directory=lambda _: directory)),
            cast("EgressConnector", egress),
        )


def end(world: World) -> None:
    world.session = None


def lose_rules(world: World) -> None:
    world.session.limits = Limits(network="host")


def reload(world: World) -> None:
    stale, world.session = world.session, SimpleNamespace(**vars(world.session))
    stale.spec = None  # a change of it would raise


@pytest.mark.parametrize(("meanwhile", "error"), [(end, SessionClosed), (lose_rules, Conflict)])
async def test_a_session_that_changes_meanwhile_gets_no_rules(meanwhile: Any, error: type[Exception]) -> None:
    world = World(meanwhile)
    with pytest.raises(error):
        await world.updates().update(ME, "s", network=NetworkRules(allow=("a.test",)))
    assert not world.applied


async def test_a_session_that_was_loaded_again_meanwhile_gets_the_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernelsvc.service.egress.network_updates.msgspec.to_builtins", lambda _: {})
    world = World(reload)
    assert await world.updates().update(ME, "s", network=NetworkRules(allow=("a.test",))) is world.session
    assert world.applied == [("a.test",)]
