"""Code in sessions calls tools of an MCP server, through the bridge that the server starts."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from mcp_shop import shop_settings
from served import QUICK, Served, serving_on_one_port
from waiting import wait_for

from kernelsvc import Client
from kernelsvc.model import events as ev


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("b")
    with serving_on_one_port(root, "--config", str(shop_settings(root)), env=QUICK) as instance:
        yield instance


@pytest.mark.timeout(120)
def test_tools_of_an_mcp_server(own: Served, tmp_path: Path) -> None:
    """The tools, the death of the MCP server in a call, and of the server in a call."""
    with Client(own.url, own.token) as client:
        session = client.create_session(keep=True)

        def result(code: str, **options: object) -> str:
            return session.run(code, timeout=60, **options).text.strip()  # type: ignore[arg-type]

        names = wait_for(lambda: [each["name"] for each in session.tools()], deadline=60, what="the tools")
        assert names == ["shop.add", "shop.buy", "shop.fail", "shop.held", "shop.where"]
        assert result("tools.shop.add(a=1)") == "3"
        assert result("tools.shop.add(3, 4)") == "7"
        assert "Add two numbers." in result("help(tools.shop.add)")
        assert "no such order" not in result("import os; str(os.environ)")
        assert "CANARY-88" not in result("str(os.environ)")
        assert result("try: tools.shop.fail()\nexcept tools.ToolFailed as e: print('failed')") == "failed"
        # No hint says that it only reads, so a person is asked.
        assert result("tools.shop.buy(n=2)", on_approval=lambda call: True) == "2"

        ran, go = tmp_path / "ran", tmp_path / "go"
        cell = session.run(f"tools.shop.held(ran={str(ran)!r}, go={str(go)!r})", wait="queued")
        wait_for(ran.exists, deadline=20, what="the call")
        os.kill(int(result_of(client, session.id, "tools.shop.where()[0]")), signal.SIGKILL)
        wait_for(lambda: session.cell(cell.id).reason, deadline=20, what="the end")
        assert "ToolLost" in session.cell(cell.id).text
        assert result("tools.shop.add(a=2)") == "4", "it was started again"

        ran.unlink()
        cell = session.run(f"tools.shop.held(ran={str(ran)!r}, go={str(go)!r})", wait="queued")
        wait_for(ran.exists, deadline=20, what="the call")
        own.kill()
        own.start()
        go.touch()
        wait_for(lambda: session.cell(cell.id).reason, deadline=60, what="the end")
        assert session.cell(cell.id).text.strip() == "'late'"
        assert ran.read_text() == "x"
        ends = [each.status for each in session.events(follow=False) if isinstance(each, ev.ToolReturned)]
        assert ends == ["ok", "ok", "error", "ok", "error", "ok", "ok"]
        session.close()


def result_of(client: Client, busy: str, code: str) -> str:
    """Return the result of code in another session than the busy one."""
    with client.create_session() as other:
        assert other.id != busy
        return other.run(code).text.strip().strip("'")
