"""Decide when to make an automatic checkpoint of a kernel. Pure: time is an argument, in seconds.

A checkpoint costs about as much processor time as a dozen trivial cells, most of it after the fork: pages that the
kernel writes again are copied, and server and host record it. A person who thinks between two cells does not notice. A
hundred programs that send cell after cell would spend most of the machine on it. So:

* **Worth.** A checkpoint saves the time that the session's cells took since the last one. If that is ``WORTH`` times
  its cost, it comes immediately: such checkpoints take at most a tenth of the time of cells.
* **Streams.** Cells without pauses come from a program. After ``STREAK`` such cells, fewer on a loaded machine, its
  checkpoints wait for a pause.
* **Credit.** All checkpoints of a server draw on one account, which gains ``SHARE`` of the processors' time. If it is
  empty, a session reserves a later time, in order, and returns it when another cell comes first.

The sessions of a server share one ``CheckpointBudget``. Each has its own ``CheckpointSchedule``.
"""

from __future__ import annotations

from collections import OrderedDict

#: Share of all processors' time that checkpoints may take.
SHARE = 0.25
#: Seconds of that share that can be saved up, so that a burst of first cells gets checkpoints immediately.
BURST_SECONDS = 2.0
#: Processor time of a checkpoint in addition to its fork: page faults after it, and records of server and host.
COST = 0.015
#: How many times its cost the unsaved work must be worth for an immediate checkpoint.
WORTH = 10.0
#: Number of cells, each sent within ``PAUSE`` of the last one's end, that make a stream on an idle machine. No person
#: reads results that fast, but a program does.
STREAK, PAUSE = 20, 0.05
#: In a stream: the pause after which a checkpoint is made.
REST = 0.1
#: On a loaded machine pauses take longer too. They are multiplied by the load, but at most by this.
MAX_STRETCH = 10.0
#: The wall time of a shorter cell is mostly its way to the kernel and back, and counts no work.
SHORT_CELL = 0.05
#: A session that sent a cell within so many seconds counts for the load.
ACTIVE_SECONDS = 1.0


class CheckpointBudget:
    """The cost that a server's checkpoints may have, and the server's load.

    Args:
        cores: Number of processors.
        now: Monotonic seconds.
    """

    def __init__(self, cores: int, now: float) -> None:
        self._cores = max(1, cores)
        self._rate = SHARE * self._cores
        self._max_credit = self._rate * BURST_SECONDS
        self._credit = self._max_credit
        self._at = now
        self._active: OrderedDict[str, float] = OrderedDict()

    # -- load ------------------------------------------------------------------------

    def sent(self, session: str, now: float) -> None:
        """Record that a cell of this session goes to its kernel."""
        self._active[session] = now
        self._active.move_to_end(session)

    def load(self, now: float) -> float:
        """Return the number of recently active sessions for each processor, at least 1."""
        while self._active and next(iter(self._active.values())) < now - ACTIVE_SECONDS:
            self._active.popitem(last=False)
        return max(1.0, len(self._active) / self._cores)

    # -- credit --------------------------------------------------------------------

    def credit(self, now: float) -> float:
        """Return the seconds that may be spent. Below zero they are reserved already."""
        self._credit = min(self._max_credit, self._credit + self._rate * max(0.0, now - self._at))
        self._at = max(self._at, now)
        return self._credit

    def reserve(self, now: float, cost: float) -> float:
        """Take ``cost`` from the account. Return the seconds until it is covered, 0 if it is now."""
        left = self.credit(now) - cost
        self._credit = left
        return max(0.0, -left / self._rate)

    def refund(self, cost: float) -> None:
        """Return the cost of a reservation that is not used."""
        self._credit = min(self._max_credit, self._credit + cost)

    def try_spend(self, now: float, cost: float) -> bool:
        """Take ``cost`` even if the account is empty, unless it is far below zero. Return False for ``reserve``."""
        if self.credit(now) - cost < -self._max_credit:
            return False
        self._credit -= cost
        return True


class CheckpointSchedule:
    """The pace of one session's cells, and their unsaved work."""

    def __init__(self) -> None:
        self.streak = 0
        self.unsaved = 0.0
        self.cost = COST
        self._ended = float("-inf")

    def sent(self, now: float, load: float) -> None:
        """Record that a cell goes to the kernel."""
        soon = now - self._ended < PAUSE * min(load, MAX_STRETCH)
        self.streak = self.streak + 1 if soon else 0

    def ended(self, now: float, wall: float, cpu: float | None, load: float) -> None:
        """Record the end of a cell.

        Its worth is the processor time that it reports or its share of the wall time, whichever is more, but at most
        the wall time, since the kernel is not trusted. For a short cell only the reported time counts.
        """
        self._ended = now
        waited = 0.0 if wall < SHORT_CELL and cpu is not None else wall / load
        self.unsaved += min(max(cpu or 0.0, waited), wall)

    def saved(self, fork: float) -> None:
        """Record a checkpoint whose fork took ``fork`` seconds of processor time.

        Not of wall time: on a loaded machine the scheduler would make each checkpoint look expensive, and a session
        would get none just when cells take long.
        """
        self.unsaved, self.cost = 0.0, COST + max(0.0, fork)

    @property
    def worth_it(self) -> bool:
        """Whether a checkpoint would save many times its cost."""
        return self.unsaved >= WORTH * self.cost

    def idle_delay(self, load: float) -> float:
        """Return the seconds without a cell until the next checkpoint is due. 0 outside of a stream."""
        return REST * min(load, MAX_STRETCH) if self.streak >= max(1.0, STREAK / load) else 0.0
