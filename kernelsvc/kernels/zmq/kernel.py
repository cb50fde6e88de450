"""A running kernelspec kernel: messages, readiness, adoption, end.

Theory of operation
-------------------
``Channels`` reads its sockets and ``StdioFifos`` its descriptors 1 and 2. ``ReplyOrdering`` puts both ends of a request
after its outputs. ``Processes`` runs its process.

Jupyter's messaging protocol has no acknowledgement. So a kernelspec kernel lacks these properties of a forked one:

* Its frames have no numbers. Output that it publishes while no server is connected is lost. After an adoption a note on
  stderr says so in the cell that ran. If the cell ended meanwhile, it gets an end that says so: the kernel answers a
  probe on the shell channel only after every request before it, which shows that the cell has ended.
* It can't be blocked by not reading, because a PUB socket drops output. When the sink refuses a batch, or this process
  lags behind, the kernel is stopped with SIGSTOP until that is over.
* It can't be forked: it has no branches and no checkpoints.

A cell that calls ``exit()`` is answered before the kernel's process ends, with an ``ask_exit`` payload in the reply.
The server withholds that reply. The cell ends when the process does, with the cause, and no cell is sent to a kernel
that is about to end.

The pidfd reports the end of the process (pidfd_open(2)). A heartbeat would also be answered by a kernel that hangs.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import re
import signal
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import zmq

from kernelsvc.errors import NotSupported
from kernelsvc.kernels.port import ForkResult, KernelMessage, Output, SaveResult, Sink, StartRequest, StreamText
from kernelsvc.kernels.read_budget import ReadBudget, ReadBudgets
from kernelsvc.kernels.zmq.channels import Channels, Sending
from kernelsvc.kernels.zmq.messages import ReplyOrdering, encode, merge_texts
from kernelsvc.kernels.zmq.processes import Processes, Started
from kernelsvc.kernels.zmq.runtime_files import KernelRuntimeDir, StdioFifos, ZmqKernelRecord, addresses_of
from kernelsvc.linux.tasks import OwnedTasks
from kernelsvc.model.events import KernelInfo
from kernelsvc.model.exit_status import Cause, Exit
from kernelsvc.protocol.kernel_messages import ExecuteRequest, KernelRequest

log = logging.getLogger(__name__)

#: Maximum bytes of a message. A larger one ends the kernel's connection, and the kernel.
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
#: Lines of a failed kernel's output in the error, and most characters of them.
MAX_QUOTED_LINES, MAX_QUOTED = 10, 600
#: Seconds after the end of a process for its connections to end. A child that
#: inherited them keeps them open. Then the output so far is all.
DRAIN_SECONDS = 1.0
#: Seconds for the host to report how the process ended.
EXIT_SECONDS = 5.0
#: Seconds that a running process may have an ended connection, as it has while it exits.
DISCONNECT_SECONDS = 0.8
#: Seconds that iopub may lag behind shell after an adoption.
IOPUB_LAG_SECONDS = 0.5
#: Maximum ZMQ sockets of all kernels: four and two monitors each.
MAX_SOCKETS = 16384
#: Prefix of the ids of the server's own requests. A cell's id begins with a letter or digit.
INTERNAL_PREFIX = "_"

LOST_OUTPUT = (
    "kernelsvc: the server was away. The output of this cell meanwhile is lost: kernelspec kernels keep none.\n"
)
#: Error of a cell whose end was lost: name and text.
LOST_END = (
    "OutcomeLost",
    "The cell ended while the server was away. How it ended and what it printed meanwhile is lost.",
)
#: Seconds for a kernel to end after a cell has called ``exit()``.
EXIT_CELL_SECONDS = 5.0
EXIT_MESSAGE = "The cell asked for the end of the kernel, as exit() does in a kernel started from a kernelspec"
INTERRUPTED = ("KeyboardInterrupt", "The cell was interrupted before the kernel had begun it or as it ended.")


class ZmqKernel:
    """A running kernelspec kernel (``port.Kernel``).

    Args:
        runtime_dir: its files.
        record: the data with which a server connects to it.
        started: its process. The pidfd belongs to this object.
        processes: runs its process.
        sink: receives the output and the end.
        max_message_bytes: a larger message ends the kernel.
        budget: the kernel's share of the event loop, which this object closes. None for a kernel alone.
    """

    forkable = False
    ordered = False
    home = "/home/user"

    def __init__(
        self,
        runtime_dir: KernelRuntimeDir,
        record: ZmqKernelRecord,
        started: Started,
        processes: Processes,
        sink: Sink,
        *,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        budget: ReadBudget | None = None,
    ) -> None:
        self._budget = budget or ReadBudgets().open(record.kernel)
        self.info = KernelInfo(
            kind="cold", pid=started.pid, id=record.kernel, language=record.language, python=record.python
        )
        self.sandbox = started.sandbox
        self._runtime_dir, self._record, self._pidfd = runtime_dir, record, started.pidfd
        self._processes, self._sink = processes, sink
        self._max = max_message_bytes
        self._loop = asyncio.get_running_loop()
        self._order = ReplyOrdering()
        self._seen: set[str] = set()
        self._counter = itertools.count()
        self._ready = False
        self._iopub_ready = asyncio.Event()
        self._answers: dict[str, asyncio.Future[KernelMessage]] = {}
        self._startup_output = ""
        self._refused: list[Output] | None = None
        self._queued: list[Output] = []
        self._delivering = asyncio.Event()
        self._delivering.set()
        self._stop_reasons: set[str] = set()
        self._broken_rule: str | None = None
        self._disconnect_timer: asyncio.TimerHandle | None = None
        self._exit_cell: str | None = None
        self._exit_timer: asyncio.TimerHandle | None = None
        self._tasks = OwnedTasks(self._loop)
        self._ending: asyncio.Task[None] | None = None
        self._written_ids: list[str] = []
        addresses, self._key = addresses_of(runtime_dir, record, started.pid)
        self._channels = Channels(
            _context(),
            addresses,
            self._key,
            max_message_bytes=max_message_bytes,
            budget=self._budget,
            on_messages=self._on_messages,
            on_invalid=self._violation,
            on_lag=lambda lags: self._stop("lag", lags),
            on_disconnect=self._on_disconnect,
        )
        self._raw = StdioFifos(runtime_dir, self._on_raw, self._budget)

    # -- requests --------------------------------------------------------------------------

    def execute(self, request: ExecuteRequest) -> None:
        """See ``port.Kernel``."""
        # The server owns the queue. With True, ipykernel also aborts requests that come shortly after an error.
        content = request.content(stop_on_error=False)
        self.send(KernelRequest("execute_request", content, request.msg_id, metadata=request.metadata))

    def send(self, request: KernelRequest) -> None:
        """See ``port.Kernel``."""
        if request.channel == "tools":
            return  # a kernelspec kernel has no such channel, and so makes no calls
        if request.msg_type == "execute_request":
            self._order.track(request.msg_id)
            self._seen.add(request.msg_id)
            self._write_open()
        parts = encode(
            self._key,
            self._record.identity,
            request.msg_type,
            request.content,
            msg_id=request.msg_id,
            metadata=request.metadata,
            buffers=request.buffers,
        )
        if not self._channels.send(request.channel, parts) and self._ending is None:
            self._violation("did not read its requests")

    def has_received(self, msg_id: str) -> bool:
        """See ``port.Kernel``. Here: whether the request was passed to its socket."""
        return msg_id in self._seen

    def interrupt(self, seconds: float = 0.0) -> None:
        """See ``port.Kernel``."""
        if self._record.interrupt_mode == "message":
            self._request("control", "interrupt_request", f"{INTERNAL_PREFIX}interrupt")
        else:
            self._signal(signal.SIGINT)
        if self._order.open:
            self._tasks.start(self._end_unfinished(self._order.open, INTERRUPTED))

    def _signal(self, signum: int) -> None:
        """Signal the kernel's process directly.

        A signal through the host would be later, and could interrupt the next cell.
        """
        if self._pidfd < 0:
            return
        try:
            signal.pidfd_send_signal(self._pidfd, signum)
        except ProcessLookupError:
            return
        except PermissionError:  # the kernel has a user of its own
            self._processes.signal(self._record.kernel, signum)

    def kill(self, *, everything: bool = False) -> None:
        """See ``port.Kernel``."""
        self._signal(signal.SIGKILL)  # works without a host, too
        self._processes.signal(self._record.kernel, signal.SIGKILL, everyone=True)

    def _request(self, channel: Sending, msg_type: str, prefix: str) -> asyncio.Future[KernelMessage]:
        """Send a request of the server's own. Its reply is the result of the future."""
        msg_id = f"{prefix}-{next(self._counter)}"
        answer = self._answers[msg_id] = self._loop.create_future()
        answer.add_done_callback(lambda _: self._answers.pop(msg_id, None))
        self.send(KernelRequest(msg_type, {}, msg_id, channel))
        return answer

    # -- what the kernel sends ---------------------------------------------------------------

    def _on_messages(self, messages: list[KernelMessage]) -> None:
        for message in messages:
            if message.channel == "iopub" and (message.msg_type == "iopub_welcome" or message.parent in self._answers):
                self._iopub_ready.set()
            elif message.channel != "iopub" and (answer := self._answers.get(message.parent)) and not answer.done():
                answer.set_result(message)
        if not self._ready:
            return
        visible = (m for m in messages if not m.parent.startswith(INTERNAL_PREFIX) and not _is_startup_message(m))
        out = [o for o in self._order.arrange(visible) if not self._is_end_of_exit_cell(o)]
        end = next(
            (i for i, m in enumerate(out) if isinstance(m, KernelMessage) and m.msg_type == "execute_reply"), None
        )
        if end is not None:  # text written before the reply is in the FIFOs already
            out[end:end] = [StreamText(name=name, text=text) for name, text in self._raw.read_rest()]
        self._deliver(merge_texts(out))

    def _is_end_of_exit_cell(self, output: Output) -> bool:
        """Return whether this ends the cell that called ``exit()``, which ends with the process instead."""
        if not isinstance(output, KernelMessage):
            return False
        if self._exit_cell is None and output.msg_type == "execute_reply" and _requests_exit(output.content):
            self._exit_cell = output.parent
            self._exit_timer = self._loop.call_later(EXIT_CELL_SECONDS, self.kill)
        idle = output.msg_type == "status" and output.content.get("execution_state") == "idle"
        return output.parent == self._exit_cell and (idle or output.msg_type == "execute_reply")

    def _on_raw(self, name: Literal["stdout", "stderr"], text: str) -> None:
        if self._ready:
            self._deliver([StreamText(name=name, text=text)])
        else:
            self._startup_output = (self._startup_output + text)[-2000:]

    def _deliver(self, batch: list[Output]) -> bool:
        """Pass a batch to the sink, after batches that it refused. Return whether the sink has everything."""
        if self._refused is not None:
            self._queued += batch
            return False
        if not batch:
            return True
        try:
            self._sink.deliver(batch)
        except OSError:
            self._refused = batch
            self._pause()
            return False
        self._write_open()
        return True

    def _pause(self) -> None:
        self._delivering.clear()
        self._channels.pause()
        self._raw.pause()
        self._stop("sink", True)

    @property
    def unsent_bytes(self) -> int:
        """See ``port.Kernel``."""
        return 0

    @property
    def kept_bytes(self) -> int:
        """See ``port.Kernel``."""
        return 0

    def resume(self) -> None:
        """See ``port.Kernel``."""
        if self._refused is None:
            return
        refused, queued, self._refused, self._queued = self._refused, self._queued, None, []
        self._deliver(refused)
        if not self._deliver(queued):  # queued after the first if that was refused again
            return
        self._delivering.set()
        self._stop("sink", False)
        self._raw.resume()
        self._channels.resume()

    def _stop(self, why: str, on: bool) -> None:
        """Stop or continue the kernel. It runs when there is no reason left to stop it."""
        before = bool(self._stop_reasons)
        (self._stop_reasons.add if on else self._stop_reasons.discard)(why)
        if bool(self._stop_reasons) != before:
            signum = signal.SIGSTOP if on else signal.SIGCONT
            self._processes.signal(self._record.kernel, signum, everyone=True)

    def _write_open(self) -> None:
        """Write the ids of open requests to disk. An ended request is removed only after its end is in the journal."""
        ids = self._order.open
        if ids == self._written_ids:
            return
        self._written_ids = ids
        try:
            self._runtime_dir.write_open(ids)
        except OSError as error:
            log.warning("kernel %s: writing its open requests failed: %s", self._record.kernel, error)

    # -- the start ---------------------------------------------------------------------------

    async def wait_ready(self) -> None:
        """Wait until it answers on shell and publishes on iopub. Safe to cancel.

        A SUB socket that connects late misses earlier messages, so an answer on shell alone proves nothing. A kernel
        whose iopub sends a welcome message proves it by that, other kernels by the status messages of the probe.
        """
        while True:
            answer = await self._request("shell", "kernel_info_request", f"{INTERNAL_PREFIX}ready")
            try:
                async with asyncio.timeout(0.25):
                    await self._iopub_ready.wait()
            except TimeoutError:
                continue
            break
        self._note_info(answer.content)
        self._begin()

    def _note_info(self, content: dict[str, Any]) -> None:
        language_info = content.get("language_info")
        language_info = language_info if isinstance(language_info, dict) else {}
        name, version = _short_word(language_info.get("name")), _short_word(language_info.get("version"))
        language = name or self.info.language
        python = version if language == "python" else ""
        self.info = KernelInfo(kind="cold", pid=self.info.pid, id=self.info.id, language=language, python=python)

    def _begin(self) -> None:
        """Pass everything to the sink from now on, and report the end of the process."""
        self._ready = True
        self._loop.add_reader(self._pidfd, self._on_death)

    def last_lines(self) -> str:
        """Return the end of its output before it was ready. The last line alone may hold a version and no cause."""
        self._startup_output += "".join(text for _name, text in self._raw.read_rest())
        lines = self._startup_output.strip().splitlines()
        return " / ".join(line.strip() for line in lines[-MAX_QUOTED_LINES:] if line.strip())[-MAX_QUOTED:]

    # -- adoption ----------------------------------------------------------------------------

    def continue_adopted(self) -> None:
        """Continue with a kernel that an earlier server started."""
        left_open = self._runtime_dir.read_open()
        self._written_ids = left_open
        for msg_id in left_open:
            self._order.track(msg_id)
            self._seen.add(msg_id)
        # The earlier server may have ended while the kernel was stopped.
        self._processes.signal(self._record.kernel, signal.SIGCONT, everyone=True)
        self._begin()
        if left_open:
            notes: list[Output] = [StreamText(name="stderr", text=LOST_OUTPUT, parent=i) for i in left_open]
            self._loop.call_soon(self._deliver, notes)
            self._tasks.start(self._end_unfinished(left_open, LOST_END))

    async def _end_unfinished(self, left_open: Iterable[str], ending: tuple[str, str]) -> None:
        """End cells whose end was lost, when the kernel has proved that it is past them.

        After an adoption the end was published while no server was connected. After an interrupt the kernel may never
        send it: ipykernel forgets a request if the signal arrives between two of its own steps.
        """
        await self._request("shell", "kernel_info_request", f"{INTERNAL_PREFIX}settle")
        await asyncio.sleep(IOPUB_LAG_SECONDS)
        for msg_id in left_open:
            if msg_id not in self._order.open:
                continue
            ends = {m.msg_type: m for m in self._order.close(msg_id)}
            reply, idle = _lost_end(msg_id, *ending)
            self._deliver([ends.get("execute_reply", reply), ends.get("status", idle)])

    # -- the end -----------------------------------------------------------------------------

    def _violation(self, reason: str) -> None:
        if self._broken_rule is None:
            self._broken_rule = reason
            log.warning("kernel %s broke the protocol: %s", self._record.kernel, reason)
            self.kill()

    def _on_disconnect(self) -> None:
        if self._disconnect_timer is None and self._exit_cell is None:
            what = f"closed a connection, or sent a message above {self._max} bytes"
            self._disconnect_timer = self._loop.call_later(DISCONNECT_SECONDS, self._violation, what)

    def _on_death(self) -> None:
        self._loop.remove_reader(self._pidfd)
        if self._disconnect_timer is not None:
            self._disconnect_timer.cancel()
        self._tasks.start(self._finish())

    async def _finish(self) -> None:
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                await self._channels.disconnected.wait()
        except TimeoutError:
            pass
        while True:
            await self._delivering.wait()
            await self._channels.read_rest()
            rest: list[Output] = [StreamText(name=name, text=text) for name, text in self._raw.read_rest()]
            self._deliver(rest + [o for o in self._order.flush() if not self._is_end_of_exit_cell(o)])
            if self._delivering.is_set():
                break
        ended = await self._exit()
        self._close()
        self._sink.exited(ended)

    async def _exit(self) -> Exit:
        try:
            async with asyncio.timeout(EXIT_SECONDS):
                ended = await self._processes.wait_exit(self._record.kernel)
        except TimeoutError:
            ended = Exit(cause=Cause.LOST, message="The kernel has ended, and its host did not report how.")
        if self._broken_rule is None and self._exit_cell is not None:
            return Exit(cause=ended.cause, message=EXIT_MESSAGE, signal=ended.signal, exit_code=ended.exit_code)
        if self._broken_rule is None:
            return ended
        message = f"The kernel broke the protocol ({self._broken_rule}) and was ended."
        return Exit(cause=Cause.PROTOCOL, message=message, signal=ended.signal, exit_code=ended.exit_code)

    def detach(self) -> None:
        """See ``port.Kernel``."""
        self._tasks.cancel()
        self._close()
        self._runtime_dir.close()

    async def end(self) -> None:
        """See ``port.Kernel``."""
        if self._ending is None:
            self.detach()
            self._ending = self._loop.create_task(self._end(), name=f"end {self._record.kernel}")
        await asyncio.shield(self._ending)

    async def _end(self) -> None:
        try:
            await self._processes.end(self._record.kernel)
        finally:
            self._runtime_dir.remove()

    def _close(self) -> None:
        """Close every descriptor. Idempotent."""
        for timer in (self._disconnect_timer, self._exit_timer):
            if timer is not None:
                timer.cancel()
        for answer in list(self._answers.values()):
            answer.cancel()
        self._channels.close()
        self._raw.close()
        self._budget.close()
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    async def restrict_writes(self, write: Sequence[str]) -> str:
        """See ``port.Kernel``. A kernelspec kernel has no branches."""
        return ""

    async def fork(
        self, copy: StartRequest, *, mode: Literal["checkpoint", "branch"], force: bool = False
    ) -> ForkResult:
        """Raise ``NotSupported``: a kernelspec kernel can't be forked."""
        raise NotSupported("A kernelspec kernel can't be forked. Use a forked template for checkpoints and branches.")

    async def save(self, fd: int) -> SaveResult:
        """Raise ``NotSupported``: the variables of a kernelspec kernel can't be saved."""
        raise NotSupported("A kernelspec kernel's variables can't be saved. Use a forked template to hibernate.")

    async def continue_history(self, execution_count: int, ran: Mapping[int, str]) -> None:
        """Raise ``NotSupported``: a kernelspec kernel replaces no other."""
        raise NotSupported("A kernelspec kernel can't continue another's history.")

    async def load(self, fd: int, *, execution_count: int) -> SaveResult:
        """Raise ``NotSupported``: the variables of a kernelspec kernel can't be loaded."""
        raise NotSupported("A kernelspec kernel's variables can't be loaded. Use a forked template to hibernate.")


def _is_startup_message(message: KernelMessage) -> bool:
    """Return whether the message concerns the kernel's own start."""
    return message.msg_type == "iopub_welcome" or (message.msg_type == "status" and not message.parent)


def _requests_exit(content: dict[str, Any]) -> bool:
    """Return whether a reply asks for the end of the kernel ("Payloads" in Jupyter's messaging protocol)."""
    payload = content.get("payload")
    found = [p for p in payload if isinstance(p, dict)] if isinstance(payload, list) else []
    return any(p.get("source") == "ask_exit" and not p.get("keepkernel") for p in found)


def _short_word(value: object) -> str:
    """Return ``value`` if it is a short word, else ""."""
    return value if isinstance(value, str) and re.fullmatch(r"[\w.+#-]{1,64}", value) else ""


def _lost_end(msg_id: str, name: str, text: str) -> tuple[KernelMessage, KernelMessage]:
    failed = {"status": "error", "ename": name, "evalue": text, "traceback": [f"{name}: {text}"]}
    return (
        KernelMessage(channel="shell", msg_type="execute_reply", parent=msg_id, content=failed),
        KernelMessage(channel="iopub", msg_type="status", parent=msg_id, content={"execution_state": "idle"}),
    )


def _context() -> zmq.Context[zmq.Socket[bytes]]:
    """Return the ZMQ context of this process. Set its size if it is new."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
    context.set(zmq.MAX_SOCKETS, MAX_SOCKETS)
    return context
