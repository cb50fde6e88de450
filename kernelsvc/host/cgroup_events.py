"""What the cgroups of a sandbox have counted, less what was told already.

A kernel that Linux ends is seen by its own end (``ward``). What it started may be
ended, or not be started at all, without any sign but a counter: this finds it, once a
second, at 30 microseconds for each cgroup.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from kernelsvc.sandbox.cgroup import Cgroup


@dataclass
class CgroupEvents:
    """One sandbox's. Decides on counters; reads nothing else."""

    _refused: dict[str, int] = field(default_factory=dict)
    _waiting: dict[str, int] = field(default_factory=dict)

    def settle(self, place: str, group: Cgroup) -> None:
        """Take what was counted so far for told: an earlier host did."""
        self._refused[place] = group.event_counts()[1]

    def look(self, place: str, group: Cgroup, known: int) -> tuple[list[str], int]:
        """Names of limits that struck in this cgroup since the last look.

        Args:
            place: the cgroup's name within its sandbox.
            group: the cgroup.
            known: OOM kills that were told, or put down to a kernel's end.

        Returns:
            The names, and how many OOM kills are known now.
        """
        kills, refused = group.event_counts()
        found = []
        # A kernel that is among the killed is about to say so itself: it has until the next look.
        if kills > known and self._waiting.get(place) == kills:
            found.append("memory_bytes")
            known = kills
        self._waiting[place] = kills
        if refused > self._refused.get(place, 0):
            found.append("processes")
        self._refused[place] = refused
        return found, known
