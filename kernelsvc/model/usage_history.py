"""What a session used over its life, in a bounded number of samples: pure; time enters as an argument. Seconds.

Samples are taken a few seconds apart. When there are as many as are kept, every
other one is forgotten and the next ones come half as often: so they always reach
back to the session's beginning, and a long life is told as evenly as a short one.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator

import msgspec

from kernelsvc.model.limits import Usage

#: Samples of one session, and seconds between the first ones.
MAX_SAMPLES, FIRST_SECONDS = 64, 5.0
_FIELDS = 4


class UsageSample(msgspec.Struct, frozen=True):
    """What a session used at a moment (Unix time); processor time is that of its kernel until then."""

    at: float
    cpu_seconds: float
    memory_bytes: int
    disk_bytes: int


def sample_of(at: float, usage: Usage) -> UsageSample:
    """What was measured at a moment, as a sample."""
    return UsageSample(at, usage.cpu_seconds or 0.0, usage.memory_bytes or 0, usage.disk_bytes or 0)


class UsageHistory:
    """The samples of one session."""

    def __init__(self) -> None:
        self._seconds = FIRST_SECONDS
        self._kept = array("d")  # four numbers for each: 32 bytes, where an object would take 200

    def __len__(self) -> int:
        return len(self._kept) // _FIELDS

    def __iter__(self) -> Iterator[UsageSample]:
        """The oldest first."""
        for n in range(0, len(self._kept), _FIELDS):
            at, cpu, memory, disk = self._kept[n : n + _FIELDS]
            yield UsageSample(at, cpu, int(memory), int(disk))

    def add(self, at: float, usage: Usage) -> None:
        """Keep what was measured at a moment, if it is time for a sample."""
        if self._kept and 0 <= at - self._kept[-_FIELDS] < self._seconds:
            return
        if len(self) == MAX_SAMPLES:
            self._thin()
        taken = sample_of(at, usage)
        self._kept.extend((taken.at, taken.cpu_seconds, taken.memory_bytes, taken.disk_bytes))

    def _thin(self) -> None:
        self._seconds *= 2
        stay = array("d")
        for n in range(0, len(self._kept), 2 * _FIELDS):
            stay.extend(self._kept[n : n + _FIELDS])
        self._kept = stay
