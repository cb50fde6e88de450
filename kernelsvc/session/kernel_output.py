"""A kernel's output: batches of messages become events, and stimuli about the running cell.

The server does not trust the kernel. A message is about the running cell only if it names that cell. Output that names
no cell that has begun belongs to the running cell: a cell that waits for a person, or that was refused, has none.

The kernel's adapter delivers a batch again if the journal could not write it. ``_handled`` counts the messages of the
batch that are in the journal, so none is written twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from msgspec import structs

from kernelsvc.kernels.port import KernelMessage, Output, StreamText
from kernelsvc.model import events as ev
from kernelsvc.model.events import Event
from kernelsvc.model.machine import Machine
from kernelsvc.model.objects import SessionState
from kernelsvc.model.state import LOG_SIZE, output_size
from kernelsvc.model.stimuli import (
    CellBegan,
    CheckOutputLimit,
    Decision,
    Interrupt,
    KernelIdle,
    KernelReplied,
    RecordEvents,
    Stimulus,
    ToolRequested,
)
from kernelsvc.protocol import kernel_messages
from kernelsvc.protocol.jupyter import TOOLS
from kernelsvc.session.kernel_requests import KernelRequests
from kernelsvc.session.ports import SessionPort
from kernelsvc.session.tool_calls import ToolCalls

#: Output that changes only byte counts in the machine.
_PLAIN = (ev.Stream, ev.Display, ev.Result)


class KernelOutput:
    """The output of one session's kernel. Called from the server's event loop.

    Args:
        session: applies the decisions.
        machine: decides, and is only read here.
        requests: open requests, which wait for messages other than output.
        calls: calls of clients' functions.
    """

    def __init__(self, session: SessionPort, machine: Machine, requests: KernelRequests, calls: ToolCalls) -> None:
        self._session = session
        self._requests = requests
        self._calls = calls
        self._machine = machine
        self._loop = asyncio.get_running_loop()
        self._early: list[Output] = []
        self._handled = 0
        self._dropping = ""  # the cell that was interrupted because the log is full
        self._repeated: set[str] = set()  # cells that got a second reply

    def new_kernel(self) -> None:
        """Prepare for another kernel's output: no message of its first batch is in the journal."""
        self._handled = 0

    def flush_early(self) -> None:
        """Journal output that came before the kernel was attached."""
        early, self._early = self._early, []
        if early:
            self.deliver(early)

    def deliver(self, batch: Sequence[Output]) -> None:
        """Journal a batch. See ``kernels.port.Sink``."""
        if self._machine.state is SessionState.CLOSED:
            return
        if self._session.kernel is None:
            self._early.extend(batch)
            return
        try:
            self._journal(batch)
        finally:
            self._session.flush()  # only once for each batch

    def _journal(self, batch: Sequence[Output]) -> None:
        pending: list[Event] = []
        full = self._session.log_full
        for index in range(self._handled, len(batch)):
            item = batch[index]
            stimulus = None if isinstance(item, StreamText) else self._stimulus(item)
            if stimulus is None:
                if not isinstance(item, StreamText) and item.channel == TOOLS:
                    continue  # handled
                if not full:
                    self._collect(item, pending)
                elif isinstance(item, StreamText) or not self._requests.on_message(item):
                    self._drop()
                continue
            if isinstance(stimulus, CellBegan) and not pending:  # one write for the start and the output that follows
                pending.extend(self._machine.decide(stimulus, self._loop.time()).events)
                continue
            if isinstance(stimulus, KernelReplied):
                pending += () if full else stimulus.outputs
                fits = self._fits_limits(pending)  # one write for the cell's last output and its end
                stimulus = structs.replace(stimulus, outputs=tuple(pending) if fits else ())
                pending = [] if fits else pending
            if pending:
                self._record(pending, index)
                pending = []
            self._handle(stimulus)
            self._handled = index + 1
            if isinstance(stimulus, ToolRequested):
                self._check_limit()
        if pending:
            self._record(pending, len(batch))
        self._handled = 0

    def _drop(self) -> None:
        """Drop output because the log is full. Record that and interrupt the running cell, once for each cell."""
        run, bound = self._machine.running, self._machine.policy.max_log_bytes
        cell = run.id if run is not None else "-"
        if cell == self._dropping:
            return
        self._dropping = cell
        text = f"{LOG_SIZE}: {bound} bytes of log reached; further output is dropped"
        reached = ev.LimitReached(limit=LOG_SIZE, bound=bound, enforced_by="server", message=text)
        if run is not None:
            reached.cell = run.id
        self._handle(RecordEvents((reached,)))
        if run is not None:
            self._handle(Interrupt(why=LOG_SIZE))

    def _handle(self, stimulus: Stimulus) -> None:
        now = self._loop.time()
        self._session.apply(self._machine.decide(stimulus, now), now)

    def _fits_limits(self, pending: list[Event]) -> bool:
        """Return whether these events are output within the limits: then they and the cell's end can be one write."""
        machine, run = self._machine, self._machine.running
        if run is None or not machine.ordered or not all(isinstance(event, _PLAIN) for event in pending):
            return False
        size, policy = sum(map(output_size, pending)), machine.policy
        if _beyond(run.output_bytes + size, policy.output_bytes):
            return False
        return not _beyond(machine.output_bytes + size, policy.max_cell_output_bytes)

    def _record(self, pending: list[Event], handled: int) -> None:
        self._session.apply(Decision(pending), self._loop.time())
        self._handled = handled
        run = self._machine.running
        if run is not None and run.dropped and not run.truncation_recorded:
            kept = run.output_bytes - run.dropped
            self._handle(RecordEvents((ev.OutputTruncated(cell=run.id, kept=kept, dropped=run.dropped),)))
        self._check_limit()

    def _check_limit(self) -> None:
        bound = self._machine.policy.max_cell_output_bytes
        if bound is not None and self._machine.output_bytes > bound:
            self._handle(CheckOutputLimit())

    def _stimulus(self, message: KernelMessage) -> Stimulus | None:
        """Return the stimulus for a message about the start or the end of the running cell, or None."""
        if message.channel == TOOLS:
            kernel = self._session.kernel
            return self._calls.stimulus(message, kernel.info.id) if kernel is not None else None
        run = self._machine.running
        if run is None or message.parent != run.id:
            return None
        kind = message.msg_type
        if kind == "execute_input":
            return CellBegan(run.id, kernel_messages.number(message.content.get("execution_count")), message.frame)
        if kind == "execute_reply" and message.channel == "shell":
            return kernel_messages.reply_of(run.id, message.content, message.metadata, message.frame)
        if kind == "status":
            status = message.content.get("execution_state")
            if status == "idle":
                return KernelIdle(run.id, message.frame)
            if status == "busy" and self._machine.queue[run.id].silent:
                return CellBegan(run.id, None, message.frame)
        return None

    def _collect(self, item: Output, pending: list[Event]) -> None:
        event: Event | None
        if isinstance(item, StreamText):
            event = ev.Stream(name=item.name, text=item.text)
        elif self._requests.on_message(item):
            return
        else:
            event = kernel_messages.event_of(item.msg_type, item.content, item.metadata, item.buffers)
        if event is None:
            if not isinstance(item, StreamText) and item.msg_type == "execute_reply":
                self._mark_repeated(item.parent, pending)
            return
        cell = self._cell_of(item.parent)
        if item.parent in self._requests.unhandled:
            event.request = item.parent
        elif cell is not None:
            event.cell = cell
        if item.frame is not None:
            event.frame = item.frame
        pending.append(event)

    def _mark_repeated(self, cell: str, pending: list[Event]) -> None:
        """Record a reply to a cell that has ended, once. Code in the kernel has forged this reply, or the first one."""
        record = self._machine.find_cell(cell)
        if record is not None and record.ran and cell not in self._repeated:
            self._repeated.add(cell)
            pending.append(ev.ReplyRepeated(cell=cell))

    def _cell_of(self, parent: str) -> str | None:
        """Return the cell that output belongs to: the one that it names if that has begun, else the running cell."""
        if self._machine.has_begun(parent):
            return parent
        return self._machine.running.id if self._machine.running else None


def _beyond(size: int, bound: int | None) -> bool:
    return bound is not None and size > bound
