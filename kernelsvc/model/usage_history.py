"""Resource usage over a session's life, in a limited number of samples. Pure: time is an argument, in seconds.

Samples are taken a few seconds apart. When the maximum is reached, every other sample is dropped and the interval
doubles. So they always cover the whole life of the session evenly.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator

import msgspec

from kernelsvc.model.limits import Usage

#: Most samples of one session, and seconds between the first ones.
MAX_SAMPLES, FIRST_SECONDS = 64, 5.0
_FIELDS = 4


class UsageSample(msgspec.Struct, frozen=True):
    """Usage at a moment (Unix time). Processor time is that of the present kernel."""

    at: float
    cpu_seconds: float
    memory_bytes: int
    disk_bytes: int


def sample_of(at: float, usage: Usage) -> UsageSample:
    """Return a measurement as a sample."""
    return UsageSample(at, usage.cpu_seconds or 0.0, usage.memory_bytes or 0, usage.disk_bytes or 0)


class UsageHistory:
    """The samples of one session."""

    def __init__(self) -> None:
        self._seconds = FIRST_SECONDS
        self._samples = array("d")  # Four numbers each: 32 bytes, where an object would take 200.

    def __len__(self) -> int:
        return len(self._samples) // _FIELDS

    def __iter__(self) -> Iterator[UsageSample]:
        """Yield the samples, oldest first."""
        for n in range(0, len(self._samples), _FIELDS):
            at, cpu, memory, disk = self._samples[n : n + _FIELDS]
            yield UsageSample(at, cpu, int(memory), int(disk))

    def add(self, at: float, usage: Usage) -> None:
        """Add a measurement if a sample is due."""
        if self._samples and 0 <= at - self._samples[-_FIELDS] < self._seconds:
            return
        if len(self) == MAX_SAMPLES:
            self._thin()
        sample = sample_of(at, usage)
        self._samples.extend((sample.at, sample.cpu_seconds, sample.memory_bytes, sample.disk_bytes))

    def _thin(self) -> None:
        self._seconds *= 2
        thinned = array("d")
        for n in range(0, len(self._samples), 2 * _FIELDS):
            thinned.extend(self._samples[n : n + _FIELDS])
        self._samples = thinned
