"""Ports of a session: what it needs of its journal, and what its parts may use of it.

The parts (``KernelLifecycle``, ``Checkpoints``, ``KernelOutput``, ``LimitEnforcer``) are given the machine to read, and
a ``SessionPort`` to act. They change nothing of the session or of each other but by these methods, and they don't
import ``session.session``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Protocol, cast

from kernelsvc.errors import KernelsvcError, SessionClosed
from kernelsvc.kernels.port import Kernel, Launcher, Sink, StartRequest
from kernelsvc.model.events import Event
from kernelsvc.model.stimuli import Decision, Stimulus


class LogReader(Protocol):
    """A cursor in a log. See ``service.api.Subscription``."""

    last_seq: int

    async def next(self) -> list[bytes]:
        """Wait for lines after the cursor and return them; none when the log is closed and read. Safe to cancel."""

    def next_nowait(self) -> list[bytes]:
        """Return the lines that ``next`` would return without waiting."""

    def on_lines(self, news: Callable[[bytes], None]) -> None:
        """Have ``news`` called when there are more lines."""

    @property
    def exhausted(self) -> bool:
        """Whether the log is closed and read to its end."""

    def close(self) -> None:
        """Read no more."""


class Log(Protocol):
    """A session's journal (``store.journal.Journal``); here, because session and store don't import each other."""

    @property
    def last_seq(self) -> int:
        """The last entry's position."""

    def append(self, events: Sequence[Event]) -> None:
        """Stamp and write all, or raise OSError and write none."""

    def sync(self) -> None:
        """Make the written entries durable, or raise OSError."""

    def recover(self) -> object:
        """Make a journal writable again after a failed write, or raise OSError."""

    def lines(self, first: int, last: int) -> Iterable[bytes]:
        """Return entries ``first`` to ``last``, inclusive."""

    def reader(self, after: int) -> LogReader:
        """Return a cursor behind entry ``after``."""

    def close(self) -> None:
        """Take no more entries; readers come to an end."""


class SessionPort(Sink, Protocol):
    """The methods of a session that its parts may call."""

    @property
    def kernel(self) -> Kernel | None:
        """The kernel that cells go to, None while there is none."""

    def handle(self, stimulus: Stimulus) -> Decision:
        """Decide on a stimulus, journal, commit and carry out.

        Raises:
            KernelsvcError: an illegal move. Nothing changed.
            OSError: the journal can't be written. Nothing changed.
        """

    def apply(self, decision: Decision, now: float) -> None:
        """Journal a decision, commit it and carry it out. A ``flush`` must follow.

        Raises:
            OSError: the journal can't be written. Nothing changed.
        """

    def flush(self) -> None:
        """Pass applied events to the observer, and set the timer to the next deadline."""

    def require_writable(self) -> None:
        """Do nothing if the journal can be written.

        Raises:
            AtCapacity: it can't now.
        """

    def record(self, *events: Event) -> None:
        """Journal events that decide nothing.

        Raises:
            SessionClosed: the log is complete.
            AtCapacity, OSError: the journal can't be written.
        """

    def try_record(self, event: Event) -> None:
        """Journal an event, or leave it out if that is not possible now."""

    def attach_kernel(self, kernel: Kernel, event: Event) -> None:
        """Send cells to this kernel from now on. ``event`` says how it came to be."""

    def release_kernel(self, why: KernelsvcError) -> Kernel | None:
        """Send no more to the current kernel and return it. Open requests to it fail with ``why``."""

    def next_start_request(self) -> StartRequest:
        """Return the request for this session's next fresh kernel, under a new id."""

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run ``work`` as a task of the session, which logs its failure and cancels it when the server stops."""

    async def settled(self) -> None:
        """Wait until no kernel is being started, saved or resumed. Safe to cancel."""


class _NoLauncher:
    """The launcher of a session that has ended and is only read."""

    def __getattr__(self, name: str) -> Any:
        raise SessionClosed()


def launcher_or_closed(launcher: Launcher | None) -> Launcher:
    """Return the launcher, or one that raises ``SessionClosed`` for every use."""
    return launcher if launcher is not None else cast("Launcher", _NoLauncher())
