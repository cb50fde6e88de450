"""Ports of a session: the journal that it needs, and the methods that its parts may call.

The parts (``KernelLifecycle``, ``Checkpoints``, ``KernelOutput``, ``LimitEnforcer``) read the machine and act by a
``SessionPort``. They change the session and each other only by these methods, and don't import ``session.session``.
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
        """Wait for lines after the cursor and return them. Return none at the end of a closed log. Safe to cancel."""

    def next_nowait(self) -> list[bytes]:
        """Return the lines that ``next`` would return without waiting."""

    async def wait(self) -> int:
        """Wait for lines after the cursor. Return at most how many bytes they have, 0 at the end. Safe to cancel."""

    def on_lines(self, news: Callable[[bytes], None]) -> None:
        """Call ``news`` when lines are appended. It must only record that. See ``store.journal``."""

    @property
    def exhausted(self) -> bool:
        """Whether the log is closed and all its lines were returned."""

    def close(self) -> None:
        """Close the cursor."""


class Log(Protocol):
    """A session's journal (``store.journal.Journal``). Session and store don't import each other."""

    @property
    def last_seq(self) -> int:
        """The last entry's position."""

    @property
    def size(self) -> int:
        """Bytes of the journal."""

    def append(self, events: Sequence[Event]) -> None:
        """Set the envelope of all events and write them, or raise OSError and write none."""

    def sync(self) -> None:
        """Make the written entries durable, or raise OSError."""

    def recover(self) -> object:
        """Make a journal writable again after a failed write, or raise OSError."""

    def lines(self, first: int, last: int) -> Iterable[bytes]:
        """Return entries ``first`` to ``last``, inclusive."""

    def reader(self, after: int) -> LogReader:
        """Return a cursor that starts after entry ``after``."""

    def close(self) -> None:
        """Close the journal. Readers end after its last entry."""


class SessionPort(Sink, Protocol):
    """The methods of a session that its parts may call."""

    @property
    def kernel(self) -> Kernel | None:
        """The kernel that cells are sent to, or None."""

    @property
    def log_full(self) -> bool:
        """Whether the log has reached its limit."""

    def handle(self, stimulus: Stimulus) -> Decision:
        """Decide on a stimulus, then journal, commit and carry out the decision.

        Raises:
            KernelsvcError: an illegal move. Nothing changed.
            OSError: the journal is not writable. Nothing changed.
        """

    def apply(self, decision: Decision, now: float) -> None:
        """Journal a decision, commit it and carry it out. The caller must call ``flush`` afterwards.

        Raises:
            OSError: the journal is not writable. Nothing changed.
        """

    def flush(self) -> None:
        """Pass applied events to the observer, and set the timer to the next deadline."""

    def require_writable(self) -> None:
        """Raise an error if the journal is not writable.

        Raises:
            AtCapacity: the last write failed.
        """

    def record(self, *events: Event) -> None:
        """Journal events that need no decision.

        Raises:
            SessionClosed: the session is closed, so its log is complete.
            AtCapacity, OSError: the journal is not writable.
        """

    def try_record(self, event: Event) -> None:
        """Journal an event, or drop it if the session is closed or the journal is not writable."""

    def attach_kernel(self, kernel: Kernel, event: Event) -> None:
        """Send cells to this kernel from now on. ``event`` records how it was started or resumed."""

    def release_kernel(self, why: KernelsvcError) -> Kernel | None:
        """Stop sending to the current kernel and return it. Fail its open requests with ``why``."""

    def next_start_request(self) -> StartRequest:
        """Return the start request for this session's next fresh kernel, with a new kernel id."""

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run ``work`` as a task of the session. The session logs its failure, and cancels it when the server stops."""

    async def settled(self) -> None:
        """Wait until no kernel is being started, saved or resumed. Safe to cancel."""


class _NoLauncher:
    """The launcher of a session that has ended and can only be read."""

    def __getattr__(self, name: str) -> Any:
        raise SessionClosed()


def launcher_or_closed(launcher: Launcher | None) -> Launcher:
    """Return the launcher, or one that raises ``SessionClosed`` for every use."""
    return launcher if launcher is not None else cast("Launcher", _NoLauncher())
