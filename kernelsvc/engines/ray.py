"""``kernelsvc ray``: a node on each machine of a Ray cluster.

Ray starts nodes and reserves a share of each machine for them. It holds no session. A detached reconciler actor makes
one supervisor actor for each machine that has room, and both live without the program that made them.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass
from typing import Any

from kernelsvc.engines import supervisor
from kernelsvc.engines.supervisor import Plan, Supervisor
from kernelsvc.errors import BadRequest

log = logging.getLogger(__name__)

#: Ray's namespace for the actors, the reconciler's name, and how supervisors' names begin.
NAMESPACE, RECONCILER, PREFIX = "kernelsvc", "reconciler", "supervisor-"
#: Seconds between two looks at Ray's machines, for an actor to answer, to start, and to stop its server.
LOOK_SECONDS, ANSWER_SECONDS, START_SECONDS, STOP_SECONDS = 1.0, 10.0, 60.0, 120.0
#: Seconds for a connection to Ray.
CONNECT_SECONDS = 5.0


@dataclass(frozen=True)
class RayMachine:
    """A machine of Ray's.

    Attributes:
        id: Ray's id of it.
        host: Its address.
        alive: Whether Ray believes that it lives.
        cpus, memory: Its whole size, in processors and bytes.
    """

    id: str
    host: str
    alive: bool
    cpus: float
    memory: float

    @property
    def actor(self) -> str:
        """The name of its supervisor."""
        return f"{PREFIX}{self.id}"


def machines_of(nodes: list[dict[str, Any]]) -> list[RayMachine]:
    """Read the answer of ``ray.nodes()``."""
    return [
        RayMachine(
            id=each["NodeID"],
            host=each["NodeManagerAddress"],
            alive=bool(each["Alive"]),
            cpus=each.get("Resources", {}).get("CPU", 0.0),
            memory=each.get("Resources", {}).get("memory", 0.0),
        )
        for each in nodes
    ]


def without_supervisor(machines: list[RayMachine], known: set[str], plan: Plan) -> list[RayMachine]:
    """Return the machines that get a supervisor now: those that live, have the size, and have none."""
    return [
        each
        for each in machines
        if each.alive and each.cpus >= plan.cpus and each.memory >= plan.memory and each.actor not in known
    ]


def check_answers(address: str) -> None:
    """Check that a program listens at Ray's address. Ray itself tries for minutes.

    Args:
        address: ``HOST:PORT``. Ray reads any other form.

    Raises:
        BadRequest: None does.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise BadRequest(f"There is no Ray cluster at {address}: {error}. Start one with 'ray start --head'.") from None


class Reconciler:
    """Makes the supervisors. One detached actor in a cluster, which needs no processor.

    Args:
        plan: The server that each machine runs.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        threading.Thread(target=self._run, daemon=True).start()

    def plan(self) -> dict[str, Any]:
        """Return the plan's fields. A class that is sent by value is another one at each end."""
        return asdict(self._plan)

    def _run(self) -> None:
        while True:
            try:
                self._step()
            except Exception as error:
                # A machine may end in the middle of this. Ray keeps the log of each actor.
                log.warning("Can't make supervisors now: %s", error)
            time.sleep(LOOK_SECONDS)

    def _step(self) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        known = {*ray.util.list_named_actors()}  # those that live, restart or wait for room
        for each in without_supervisor(machines_of(ray.nodes()), known, self._plan):
            here = NodeAffinitySchedulingStrategy(each.id, soft=False)
            options = {"name": each.actor, "namespace": NAMESPACE, "get_if_exists": True, "lifetime": "detached"}
            share = {"num_cpus": self._plan.cpus, "memory": self._plan.memory, "scheduling_strategy": here}
            actor = ray.remote(Supervisor).options(**options, **share, max_restarts=-1, max_task_retries=-1)
            actor.remote(self._plan, each.host)


class RayCluster:
    """The actors of a Ray cluster, for the commands.

    Args:
        address: Ray's address. None: ``RAY_ADDRESS``, or the cluster of this machine.

    Raises:
        BadRequest: Ray is not installed, or there is no cluster.
    """

    def __init__(self, address: str | None) -> None:
        try:
            import ray
        except ImportError:
            raise BadRequest("This needs Ray: pip install 'kernelsvc[ray]', with the release of the cluster.") from None
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        check_answers(address or os.environ.get("RAY_ADDRESS", ""))
        try:
            ray.init(address=address or "auto", namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR")
        except Exception as error:  # ConnectionError, RuntimeError, ValueError and Ray's own
            raise BadRequest(
                f"There is no Ray cluster: {error} Start one with 'ray start --head', or name it with --address."
            ) from None
        self._ray = ray

    def close(self) -> None:
        """Leave the cluster. Its actors stay."""
        self._ray.shutdown()

    def up(self, plan: Plan) -> None:
        """Make the reconciler, if none runs.

        Raises:
            BadRequest: One with another plan runs, or it does not answer.
        """
        ray = self._ray
        # The workers' Python may have no kernelsvc, or another release.
        for module in (supervisor, sys.modules[__name__]):
            ray.cloudpickle.register_pickle_by_value(module)
        options = {"name": RECONCILER, "namespace": NAMESPACE, "get_if_exists": True, "lifetime": "detached"}
        actor = ray.remote(Reconciler).options(**options, num_cpus=0, max_restarts=-1, max_task_retries=-1)
        try:
            running = ray.get(actor.remote(plan).plan.remote(), timeout=START_SECONDS)
        except Exception as error:  # Ray has a dozen
            raise BadRequest(f"Ray does not run the reconciler: {_first_line(error)} See Ray's logs.") from None
        if running != asdict(plan):
            raise BadRequest("Nodes with other settings run in this cluster. Stop them first: kernelsvc ray down.")

    def status(self) -> list[dict[str, Any]]:
        """Return the state of each machine that Ray believes to live: ``Supervisor.look`` and ``state``."""
        ray = self._ray
        machines = [each for each in machines_of(ray.nodes()) if each.alive]
        actors = {each.actor: self._actor(each.actor) for each in machines}
        asked = {name: actor.look.remote() for name, actor in actors.items() if actor is not None}
        if asked:
            ray.wait([*asked.values()], num_returns=len(asked), timeout=ANSWER_SECONDS)
        return [self._state(each, asked.get(each.actor)) for each in sorted(machines, key=lambda each: each.host)]

    def _state(self, machine: RayMachine, asked: Any) -> dict[str, Any]:
        nothing = {"host": machine.host, "node": "", "url": ""}
        if asked is None:
            size = f"It gives Ray {machine.cpus:g} processors and {machine.memory / 2**30:.1f} GiB"
            return {**nothing, "state": "no node", "problem": size}
        try:
            found: dict[str, Any] = self._ray.get(asked, timeout=0)
        except Exception as error:  # the actor waits for room, restarts, or its machine is gone
            waits = isinstance(error, TimeoutError)
            problem = "Its supervisor does not answer, or waits until Ray has enough left there" if waits else error
            return {**nothing, "state": "waits", "problem": _first_line(problem)}
        return {**found, "state": "serves" if found["url"] else "starts"}

    def down(self, end_sessions: bool) -> list[dict[str, Any]]:
        """Stop all servers, and remove the actors.

        Args:
            end_sessions: Whether sessions end. Else they are saved to disk for the next ``up``.

        Returns:
            ``host`` and ``stopped`` for each machine that had a supervisor.
        """
        ray, done = self._ray, []
        if (reconciler := self._actor(RECONCILER)) is not None:
            ray.kill(reconciler, no_restart=True)
        asked = []
        for machine in machines_of(ray.nodes()):
            if machine.alive and (actor := self._actor(machine.actor)) is not None:
                asked.append((machine, actor, actor.stop.remote(end_sessions, STOP_SECONDS)))
        if asked:
            answers = [answer for _, _, answer in asked]
            ray.wait(answers, num_returns=len(answers), timeout=STOP_SECONDS + ANSWER_SECONDS)
        for machine, actor, answer in asked:
            try:
                stopped = bool(ray.get(answer, timeout=0))
            except Exception:  # its machine is gone, or it waits for room
                stopped = False
            done.append({"host": machine.host, "stopped": stopped})
            ray.kill(actor, no_restart=True)
        return done

    def _actor(self, name: str) -> Any:
        try:
            return self._ray.get_actor(name, namespace=NAMESPACE)
        except ValueError:
            return None


def _first_line(problem: object) -> str:
    """Return the first line. Ray's errors have a traceback."""
    return str(problem).partition("\n")[0]
