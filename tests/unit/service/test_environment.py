"""What a session's cells find around them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from kernelsvc.errors import BadRequest, NotSupported
from kernelsvc.model.objects import Principal
from kernelsvc.service.environment import REQUEST, SessionEnvironment

ME = Principal(name="p")


class Scripted:
    """A session that answers what the test says."""

    def __init__(self, **reply: Any) -> None:
        self.reply, self.asked = reply, []
        self.kernel: Any = object()
        self.info = SimpleNamespace(kind="forked")
        self.hibernated = False

    async def settled(self) -> None:
        """No kernel is being started."""

    async def request(self, kind: str, content: dict[str, Any], *, timeout: float) -> dict[str, Any]:
        self.asked.append((kind, content))
        return self.reply

    def submit(self, requests: Any) -> list[str]:
        self.kernel = object()
        return ["woken"]

    async def wait(self, cell: str) -> None:
        assert cell == "woken"


def over(session: Scripted) -> SessionEnvironment:
    registry: Any = SimpleNamespace(find=lambda who, name, scope: session)
    return SessionEnvironment(registry)


async def test_what_was_before_comes_back() -> None:
    session = Scripted(status="ok", before={"A": "old", "B": None, "forged": "x"})
    assert await over(session).change(ME, "s", {"A": "1", "B": None}, "/tmp") == {"A": "old", "B": None}
    assert session.asked == [(REQUEST, {"environ": {"A": "1", "B": None}, "directory": "/tmp"})]


async def test_a_kernel_that_lies_is_not_believed() -> None:
    assert await over(Scripted(status="ok", before=[1])).change(ME, "s", {"A": "1"}) == {"A": None}
    with pytest.raises(BadRequest, match="x" * 500):
        await over(Scripted(status="error", evalue="x" * 10_000)).change(ME, "s", {})


@pytest.mark.parametrize("environ", [{"": "x"}, {"a=b": "x"}, {"a\0": "x"}, {"a": "x\0"}])
async def test_what_no_environment_holds_is_refused(environ: dict[str, str]) -> None:
    with pytest.raises(BadRequest):
        await over(Scripted(status="ok")).change(ME, "s", environ)


async def test_a_session_that_sleeps_is_woken_and_a_cold_one_refused() -> None:
    session = Scripted(status="ok", before={})
    session.kernel, session.hibernated = None, True
    await over(session).change(ME, "s", {})
    assert session.kernel is not None
    session.info.kind = "cold"
    with pytest.raises(NotSupported):
        await over(session).change(ME, "s", {})
