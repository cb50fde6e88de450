"""A Ray cluster whose machines are addresses of loopback. Runs with Ray's Python, until its standard input ends.

It prints Ray's address. A line ``add ADDRESS`` on its standard input adds a machine.
"""

import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from ray._private import services
from ray.cluster_utils import Cluster

#: Bytes of Ray's object store on each machine: its smallest.
STORE = 80 << 20


#: Ports that Ray waits for otherwise, for 15 s: too short for a busy machine.
PORTS = ("metrics_agent_port", "metrics_export_port", "runtime_env_agent_port", "dashboard_agent_listen_port")


def machine(address: str) -> dict[str, Any]:
    """The arguments of one machine."""
    probes = [socket.create_server((address, 0)) for _ in PORTS]
    ports = {name: probe.getsockname()[1] for name, probe in zip(PORTS, probes, strict=True)}
    for probe in probes:
        probe.close()
    return {"node_ip_address": address, "object_store_memory": STORE, **ports}


def patient(ask: Callable[..., Any]) -> Callable[..., Any]:
    """Ray gives a machine 30 s to be known. A busy one needs longer."""

    def asked(*args: Any) -> Any:
        end = time.monotonic() + 100
        while True:
            try:
                return ask(*args)
            except RuntimeError:
                if time.monotonic() > end:
                    raise

    return asked


def main() -> None:
    services.get_node = patient(services.get_node)
    head = {"num_cpus": 0, "include_dashboard": False, **machine(sys.argv[1])}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for address in sys.argv[2:]:
            cluster.add_node(num_cpus=4, memory=16 << 30, **machine(address))
        print(f"address {cluster.address}", flush=True)
        for line in sys.stdin:
            cluster.add_node(num_cpus=4, memory=16 << 30, **machine(line.split()[1]))
            print("added", flush=True)
    finally:
        cluster.shutdown()


main()
