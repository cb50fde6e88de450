"""Calls while the server, the sockets of the client and the bridge die: 10,000, and fifty that wait for approval."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from call_storm import Fault, Storm
from mcp_shop import shop_settings
from served import QUICK, serving_on_one_port
from waiting import wait_for

from kernelsvc import Client
from kernelsvc.client.sync_client import SessionCall
from kernelsvc.model import events as ev

CALLS, FAULTS = 10_000, 12
APPROVALS = 50

# A fault may take the 120 s below, and the calls take half a minute on a machine that does nothing else.
pytestmark = pytest.mark.timeout(1800)


@pytest.mark.parametrize("seed", [1, 2])
def test_each_function_runs_once_and_each_result_arrives_once(place: Path, seed: int) -> None:
    kinds: list[Fault] = ["server", "socket", "bridge"]
    faults = [kinds[n % 3] for n in range(FAULTS)]
    random.Random(seed).shuffle(faults)
    # A bridge that is killed imports its libraries again, which takes longer than a client takes to connect again: the
    # offers of a provider end with its grace.
    env = {**QUICK, "KERNELSVC_TOOLS_ABSENT_SECONDS": "120", "KERNELSVC_TOOLS_GRACE_SECONDS": "120"}
    with serving_on_one_port(place, "--config", str(shop_settings(place)), env=env) as own:
        Storm(own, CALLS, faults, seed, bridged=True).run()


def test_fifty_calls_that_wait_for_approval_over_a_kill_run_once_each(place: Path) -> None:
    ran: list[int] = []
    with serving_on_one_port(place, env=QUICK) as own, Client(own.url, own.token, retry_seconds=300) as client:
        session = client.create_session(keep=True)

        @session.tool(approval="always", effects="write")
        def send_mail(n: int) -> int:
            ran.append(n)
            return n

        code = "open('lines', 'a').write('x')\nimport asyncio\n"
        code += f"r = await asyncio.gather(*(tools.send_mail(n=i) for i in range({APPROVALS})))\n"
        code += f"open('lines', 'a').write('y')\nprint(r == list(range({APPROVALS})), open('lines').read())"
        cell = session.run(code, wait="queued")

        def pending() -> list[SessionCall]:
            found = session.calls(state="pending")
            return found if len(found) == APPROVALS else []

        wait_for(pending, deadline=300, what="the pending calls")
        own.kill()
        own.start()
        calls = wait_for(pending, deadline=300, what="the calls, pending again")
        assert ran == []
        for each in calls:
            each.approve()
        wait_for(lambda: session.cell(cell.id).reason, deadline=300, what="the end of the cell")
        assert session.cell(cell.id).text == "True xy\n"
        assert sorted(ran) == [*range(APPROVALS)]
        ends = [each.status for each in session.events(follow=False) if isinstance(each, ev.ToolReturned)]
        assert ends == ["ok"] * APPROVALS
        session.close()
