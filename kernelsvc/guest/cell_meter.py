"""The resources of one cell, measured from inside the kernel: for information, not for enforcement."""

from __future__ import annotations

import resource
from typing import Any

from kernelsvc.guest.private_modules import open_file, os


def _peak_rss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _resident_bytes() -> int:
    try:
        with open_file("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return _peak_rss()


class CellMeter:
    """Measures the resources of one cell, from inside the kernel: for information, not for enforcement."""

    def __init__(self) -> None:
        self._cpu = 0.0
        self._reset: int | None = None
        self._peak_before = 0
        self._resident_before = 0

    def reopen(self) -> None:
        """In a new process, open the file that resets the peak memory (proc(5), ``/proc/pid/clear_refs``)."""
        if self._reset is not None:
            os.close(self._reset)
        try:
            self._reset = os.open("/proc/self/clear_refs", os.O_WRONLY | os.O_CLOEXEC)
        except OSError:
            self._reset = None

    def fds(self) -> set[int]:
        """Return the meter's own descriptors."""
        return set() if self._reset is None else {self._reset}

    def begin(self) -> None:
        """Start to measure a cell."""
        self._cpu = self._spent(resource.getrusage(resource.RUSAGE_SELF))
        if self._reset is not None:
            try:
                os.write(self._reset, b"5")  # 5 resets the peak resident set size (proc(5), since Linux 4.0)
            except OSError:
                self._reset = None
        if self._reset is None:
            self._peak_before, self._resident_before = _peak_rss(), _resident_bytes()

    def end(self) -> dict[str, Any]:
        """Return the processor time of the cell and its ended children, and the peak memory of the process."""
        own = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "cpu_ms": round((self._spent(own) - self._cpu) * 1000, 3),
            "peak_rss_bytes": self._peak(own.ru_maxrss * 1024),
        }

    def _peak(self, peak: int) -> int:
        """Return the cell's peak memory.

        Landlock forbids a fork to reset the peak, which then counts from the fork. If the cell did not raise it, the
        larger of the memory before and after is the best lower bound.
        """
        if self._reset is not None or peak > self._peak_before:
            return peak
        return max(self._resident_before, _resident_bytes())

    @staticmethod
    def _spent(own: resource.struct_rusage) -> float:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
