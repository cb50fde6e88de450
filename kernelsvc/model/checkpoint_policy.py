"""When an automatic copy of a kernel is made: pure; time enters as an argument. Seconds everywhere.

A copy costs about as much processor time as a dozen trivial cells, most of it
after the fork: pages that the kernel writes again are copied, and server and host
keep the books. For someone who thinks between two cells that is nothing. For a
hundred programs that send cell after cell it would be most of what the machine
does. So:

* **Worth.** What a copy saves is the time that its session's cells took since the
  last one. Worth ``WORTH`` times its cost, a copy is made at once: those can't
  come to more than a tenth of what cells use.
* **Streams.** Cell after cell without a pause is a program. After ``STREAK`` such
  cells, fewer on a crowded machine, its copies wait for a rest.
* **Credit.** All copies of a server draw on one account, into which ``SHARE`` of
  the processors' time is paid. Whoever finds it empty books a turn, in order, and
  gives it back when another cell comes first.

``CheckpointBudget`` is shared by a server's sessions; ``CheckpointSchedule`` is one session's own.
"""

from __future__ import annotations

from collections import OrderedDict

#: The share of all processors' time that copies may take.
SHARE = 0.25
#: Seconds of that share that can be saved up: a burst of first cells is copied at once.
SAVED_UP = 2.0
#: Processor time of a copy beside what its fork takes: faults after it, and the books of server and host.
COST = 0.015
#: How many times its cost the unsaved work must be worth for a copy that does not wait.
WORTH = 10.0
#: Cells in a row, each sent within ``PAUSE`` of the last one's end, that make a stream on a machine that is free:
#: nobody who reads the answers is that quick, a program is.
STREAK, PAUSE = 20, 0.05
#: In a stream: the rest after which a copy is made.
REST = 0.1
#: On a crowded machine everything takes longer, pauses too: how many times at most.
STRETCH = 10.0
#: A cell that takes less waits for nothing that is worth saving.
SHORT = 0.05
#: A session that sent a cell within so many seconds makes the crowd.
LATELY = 1.0


class CheckpointBudget:
    """What a server's copies may cost, and how crowded it is.

    Args:
        cores: processors.
        now: monotonic seconds.
    """

    def __init__(self, cores: int, now: float) -> None:
        self._cores = max(1, cores)
        self._rate = SHARE * self._cores
        self._most = self._rate * SAVED_UP
        self._credit = self._most
        self._at = now
        self._active: OrderedDict[str, float] = OrderedDict()

    # -- crowds --------------------------------------------------------------------

    def sent(self, session: str, now: float) -> None:
        """A cell of this session goes to its kernel."""
        self._active[session] = now
        self._active.move_to_end(session)

    def load(self, now: float) -> float:
        """How many sessions for each processor had cells lately, at least 1: how much longer everything takes."""
        while self._active and next(iter(self._active.values())) < now - LATELY:
            self._active.popitem(last=False)
        return max(1.0, len(self._active) / self._cores)

    # -- credit --------------------------------------------------------------------

    def credit(self, now: float) -> float:
        """What may be spent; below zero it is promised already."""
        self._credit = min(self._most, self._credit + self._rate * max(0.0, now - self._at))
        self._at = max(self._at, now)
        return self._credit

    def reserve(self, now: float, cost: float) -> float:
        """Take ``cost`` from the account, and say how long to wait until it is there; 0 if it is."""
        left = self.credit(now) - cost
        self._credit = left
        return max(0.0, -left / self._rate)

    def refund(self, cost: float) -> None:
        """A turn that was booked is not taken."""
        self._credit = min(self._most, self._credit + cost)

    def try_spend(self, now: float, cost: float) -> bool:
        """Take what is worth it even when the account is empty, as long as it is not far below. False: book a turn."""
        if self.credit(now) - cost < -self._most:
            return False
        self._credit -= cost
        return True


class CheckpointSchedule:
    """How one session's cells follow each other, and what of their work is unsaved."""

    def __init__(self) -> None:
        self.streak = 0
        self.unsaved = 0.0
        self.cost = COST
        self._ended = float("-inf")

    def sent(self, now: float, crowd: float) -> None:
        """A cell goes to the kernel."""
        soon = now - self._ended < PAUSE * min(crowd, STRETCH)
        self.streak = self.streak + 1 if soon else 0

    def ended(self, now: float, wall: float, cpu: float | None, crowd: float) -> None:
        """A cell has ended.

        What it is worth is the processor time that it says it took, or its share of
        the time that passed, whichever is more; the kernel is not believed beyond
        that time. Of a short cell, what passed is mostly the way there and back.
        """
        self._ended = now
        waited = 0.0 if wall < SHORT and cpu is not None else wall / crowd
        self.unsaved += min(max(cpu or 0.0, waited), wall)

    def saved(self, fork: float) -> None:
        """A copy was made, and its fork took so long."""
        self.unsaved, self.cost = 0.0, COST + max(0.0, fork)

    @property
    def worth_it(self) -> bool:
        """Whether a copy would save many times what it costs."""
        return self.unsaved >= WORTH * self.cost

    def idle_delay(self, crowd: float) -> float:
        """Seconds without a cell before the next copy is due; 0 outside of a stream."""
        return REST * min(crowd, STRETCH) if self.streak >= max(1.0, STREAK / crowd) else 0.0
