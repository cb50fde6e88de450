"""10,000 calls while the server, the client's sockets and the bridge die again and again."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from call_storm import Fault, Storm
from mcp_shop import shop_settings
from served import QUICK, serving_on_one_port

CALLS, FAULTS = 10_000, 12


@pytest.mark.parametrize("seed", [1, 2])
def test_each_function_runs_once_and_each_result_arrives_once(short_tmp: Path, seed: int) -> None:
    kinds: list[Fault] = ["server", "socket", "bridge"]
    faults = [kinds[n % 3] for n in range(FAULTS)]
    random.Random(seed).shuffle(faults)
    # A bridge that is killed imports its libraries again, which takes longer than a client takes to connect again.
    env = {**QUICK, "KERNELSVC_TOOLS_ABSENT_SECONDS": "120"}
    root = short_tmp / "storm"
    root.mkdir()
    with serving_on_one_port(root, "--config", str(shop_settings(root)), env=env) as own:
        Storm(own, CALLS, faults, seed, bridged=True).run()
