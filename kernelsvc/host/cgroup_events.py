"""Counters of a container's cgroups, minus the counts that were already reported.

The host sees the end of a kernel. For a process that a kernel started, a counter is the only sign that Linux killed it
or refused to fork it. The host reads the counters once a second, in 30 microseconds for each cgroup.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from kernelsvc.sandbox.cgroup import Cgroup


@dataclass
class CgroupEvents:
    """The counters of one container. Reads nothing but the counters."""

    _refused_forks: dict[str, int] = field(default_factory=dict)
    _pending_kills: dict[str, int] = field(default_factory=dict)

    def set_baseline(self, name: str, group: Cgroup) -> None:
        """Take the current counts of a cgroup as reported: an earlier host did that."""
        self._refused_forks[name] = group.event_counts()[1]

    def poll(self, name: str, group: Cgroup, known: int) -> tuple[list[str], int]:
        """Return the names of limits that Linux enforced in a cgroup since the last call.

        Args:
            name: the cgroup's name within its container.
            group: the cgroup.
            known: OOM kills that were reported, or that ended a kernel.

        Returns:
            The names of the limits, and the number of OOM kills known now.
        """
        kills, refused_forks = group.event_counts()
        found = []
        # A killed kernel's own end is about to be reported with this cause. It has until the next call.
        if kills > known and self._pending_kills.get(name) == kills:
            found.append("memory_bytes")
            known = kills
        self._pending_kills[name] = kills
        if refused_forks > self._refused_forks.get(name, 0):
            found.append("processes")
        self._refused_forks[name] = refused_forks
        return found, known
