"""Time that the server's event loop spends on the output of each kernel, and the pauses of kernels that take too much.

One thread serves all sessions, and it also parses and journals what their kernels send. A kernel that sends without
end must not take that thread from the others. Each read is charged with its time to its kernel: parsing, deciding,
journaling, the sync, also for messages that leave no trace in a log. A kernel over its share is not read for a while.
Its socket then fills, and its writes block.

This is a token bucket for each kernel, with two rules of deficit round robin (Shreedhar and Varghese, 1995): a read is
never cut off, and its excess is a debt that later turns pay. Debts count only while other kernels want the thread. A
kernel alone is read as fast as the machine can. Pure: the caller passes the time, and carries out the pauses.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

#: Share of the thread that one kernel gets while other kernels are active, and the share of all busy kernels together.
SHARE, TOTAL_SHARE = 0.25, 0.5
#: Share of the last second from which a kernel counts as busy, and seconds between two counts of the busy kernels.
BUSY_SHARE, COUNT_SECONDS = 0.05, 0.1
#: Seconds of the thread that a kernel may take at once, after it was quiet.
BURST_SECONDS = 0.1
#: Seconds since the last read of another kernel, after which a kernel counts as alone.
ALONE_SECONDS = 1.0
#: Seconds that one read should take at most. Reads that take longer become smaller, down to ``MIN_READ`` bytes.
QUANTUM_SECONDS = 0.005
MIN_READ, MAX_READ = 4096, 256 * 1024
#: Longest pause in seconds. The rest of a debt is kept, and the next read pays it.
MAX_PAUSE_SECONDS = 5.0
#: Seconds of pauses after which they are reported, and seconds between two reports of one kernel.
REPORT_AFTER, REPORT_EVERY = 5.0, 60.0


@dataclass(frozen=True)
class ReadPauses:
    """A report: one kernel took more than its share, so the server read it with pauses.

    Attributes:
        kernel: the kernel's id.
        busy_seconds: time of the reads that were over its share, since the last report.
        paused_seconds: length of the pauses after them.
        share: the share that it gets now.
    """

    kernel: str
    busy_seconds: float
    paused_seconds: float
    share: float


class ReadBudgets:
    """The budgets of all kernels of one server.

    Args:
        on_pauses: receives the reports.

    Attributes:
        busy_seconds: time charged to all kernels.
        paused_seconds: length of all pauses.
        pauses: number of all pauses.
    """

    def __init__(self, on_pauses: Callable[[ReadPauses], None] | None = None) -> None:
        self.on_pauses = on_pauses
        self.busy_seconds = self.paused_seconds = 0.0
        self.pauses = 0
        self._last: ReadBudget | None = None
        self._last_at = self._other_at = -math.inf  # reads of ``_last``, and of the kernel before it
        self._busy: dict[ReadBudget, float] = {}  # busy kernels, and the time until which each counts
        self._share = SHARE
        self._counted_at = -math.inf

    def open(self, kernel: str) -> ReadBudget:
        """Return a new budget for a kernel."""
        return ReadBudget(self, kernel)

    def alone(self, budget: ReadBudget, now: float) -> bool:
        """Note a read that began now, and return whether no other kernel was read for ``ALONE_SECONDS``."""
        if budget is not self._last:
            self._last, self._other_at = budget, self._last_at
        self._last_at = now
        return now - self._other_at > ALONE_SECONDS

    def share(self, budget: ReadBudget, now: float) -> float:
        """Return the share of a busy kernel. All busy kernels together get ``TOTAL_SHARE``."""
        self._busy[budget] = now + ALONE_SECONDS
        if now - self._counted_at > COUNT_SECONDS:
            self._counted_at = now
            self._busy = {each: until for each, until in self._busy.items() if until > now}
            self._share = min(SHARE, TOTAL_SHARE / len(self._busy))
        return self._share

    def pause(self, budget: ReadBudget, now: float, seconds: float) -> None:
        """Count a pause. The kernel counts as busy until shortly after it."""
        self.pauses += 1
        self.paused_seconds += seconds
        self._busy[budget] = now + seconds + ALONE_SECONDS

    def statistics(self) -> dict[str, float]:
        """Return the totals, by the names of the metrics."""
        return {
            "kernel_read_seconds": self.busy_seconds,
            "kernel_read_pauses": self.pauses,
            "kernel_read_paused_seconds": self.paused_seconds,
        }

    def close(self, budget: ReadBudget) -> None:
        """Forget a kernel that has ended."""
        self._busy.pop(budget, None)
        self._counted_at = -math.inf
        if self._last is budget:
            self._last = None


class ReadBudget:
    """The budget of one kernel. Made by ``ReadBudgets.open``.

    Attributes:
        kernel: the kernel's id.
        read_size: bytes that the next read may take.
    """

    __slots__ = (
        "_at",
        "_balance",
        "_budgets",
        "_busy",
        "_paused",
        "_recent",
        "_reported_at",
        "_share",
        "kernel",
        "read_size",
    )

    def __init__(self, budgets: ReadBudgets, kernel: str) -> None:
        self.kernel = kernel
        self.read_size = MAX_READ
        self._budgets = budgets
        self._balance = BURST_SECONDS
        self._at = 0.0
        self._share = SHARE
        self._recent = 0.0  # time of the last second, with older reads counting less
        self._busy = self._paused = 0.0  # since the last report, or since the first debt
        self._reported_at = -math.inf

    def charge(self, seconds: float, now: float) -> float:
        """Charge one read.

        Args:
            seconds: the time that it took.
            now: time on the event loop's clock.

        Returns:
            Seconds to wait before the next read, usually 0.
        """
        budgets = self._budgets
        budgets.busy_seconds += seconds
        alone = budgets.alone(self, now - seconds)  # during the read itself, no other kernel could be read
        elapsed = now - self._at
        self._balance = min(BURST_SECONDS, self._balance + elapsed * self._share) - seconds
        self._recent = self._recent * max(0.0, 1.0 - elapsed) + seconds
        self._share = budgets.share(self, now) if self._recent > BUSY_SHARE else SHARE
        self._at = now
        if seconds > QUANTUM_SECONDS:
            self.read_size = max(MIN_READ, self.read_size // 2)
        elif seconds < QUANTUM_SECONDS / 4 and self.read_size < MAX_READ:
            self.read_size *= 2
        if self._balance >= 0:
            return 0.0
        if alone:
            self._balance = 0.0
            return 0.0
        pause = min(MAX_PAUSE_SECONDS, -self._balance / self._share)
        budgets.pause(self, now, pause)
        self._note(seconds, pause, now)
        return pause

    def _note(self, seconds: float, pause: float, now: float) -> None:
        self._busy += seconds
        self._paused += pause
        if self._paused < REPORT_AFTER or now - self._reported_at < REPORT_EVERY:
            return
        report = ReadPauses(self.kernel, self._busy, self._paused, self._share)
        self._busy = self._paused = 0.0
        self._reported_at = now
        if self._budgets.on_pauses is not None:
            self._budgets.on_pauses(report)

    def close(self) -> None:
        """Forget the kernel, which has ended. Idempotent."""
        self._budgets.close(self)
