"""Which machines of Ray get a supervisor."""

from __future__ import annotations

import socket
import sys
from typing import Any

import pytest

from kernelsvc.engines.ray import RayCluster, RayMachine, check_answers, machines_of, without_supervisor
from kernelsvc.engines.supervisor import Plan
from kernelsvc.errors import BadRequest

PLAN = Plan(("http://f:1",), "k" * 16, "", "/data", cpus=2, memory=100)


def ray_node(name: str, alive: bool = True, **resources: float) -> dict[str, Any]:
    return {"NodeID": name, "NodeManagerAddress": f"10.0.0.{name}", "Alive": alive, "Resources": resources}


def test_machines_are_read() -> None:
    assert machines_of([ray_node("1", CPU=4.0, memory=200.0), ray_node("2", alive=False)]) == [
        RayMachine("1", "10.0.0.1", True, 4.0, 200.0),
        RayMachine("2", "10.0.0.2", False, 0.0, 0.0),
    ]


@pytest.mark.parametrize(
    ("node", "known", "wanted"),
    [
        (ray_node("1", CPU=2, memory=100), set(), True),
        (ray_node("1", CPU=2, memory=100), {"supervisor-1"}, False),
        (ray_node("1", CPU=1, memory=100), set(), False),
        (ray_node("1", CPU=2, memory=99), set(), False),
        (ray_node("1", alive=False, CPU=2, memory=100), set(), False),
        (ray_node("1"), set(), False),
    ],
)
def test_who_gets_a_supervisor(node: dict[str, Any], known: set[str], wanted: bool) -> None:
    assert bool(without_supervisor(machines_of([node]), known, PLAN)) is wanted


def test_a_machine_without_ray_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BadRequest, match=r"kernelsvc\[ray\]"):
        RayCluster(None)


def test_an_address_where_nothing_listens_is_refused_without_a_wait() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        check_answers(f"127.0.0.1:{port}")
    for wrong in (f"127.0.0.1:{port}", "127.0.0.1:99999"):
        with pytest.raises(BadRequest, match="no Ray cluster at"):
            check_answers(wrong)
    for left_to_ray in ("", "auto", "ray://host:1", "local"):
        check_answers(left_to_ray)
