"""A running cold kernel: messages to and from it, readiness, adoption, death.

Theory of operation
-------------------
``Channels`` reads its sockets, ``StdioFifos`` its descriptors 1 and 2;
``ReplyOrdering`` puts both ends of a request after its outputs. ``Processes`` has
its process.

What a cold kernel can't do, since Jupyter's protocol has no acknowledgement:

* Its frames have no numbers. What it publishes while no server is connected is
  lost. After an adoption the cell that ran is told so on stderr, and if it
  ended meanwhile it gets an end that says so: a probe on the shell channel is
  answered only after every request before it, which shows that it has ended.
* It can't be blocked by not reading: a PUB socket drops instead. When the sink
  refuses a batch, or this process lags behind, the kernel is stopped with
  SIGSTOP until that is over.
* It can't be forked: no branch, no checkpoint.

A cell that calls ``exit()`` is answered before the kernel's process ends; the
reply's ``ask_exit`` payload says that it will. That reply is held back: the cell
ends when the process does, with the cause, and no cell is sent to a kernel
that is about to end.

Its death is seen by pidfd, never by heartbeat, which answers for a kernel that
is stuck for ever.
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
from kernelsvc.kernels.zmq.channels import Channels, Sending
from kernelsvc.kernels.zmq.messages import ReplyOrdering, encode, joined
from kernelsvc.kernels.zmq.processes import Processes, Started
from kernelsvc.kernels.zmq.runtime_files import KernelRuntimeDir, StdioFifos, ZmqKernelRecord, connection_of
from kernelsvc.linux.tasks import OwnedTasks
from kernelsvc.model.events import KernelInfo
from kernelsvc.model.exit_status import Cause, Exit

log = logging.getLogger(__name__)

#: Largest part of a message. A kernel that sends more loses its connection, and is ended.
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
#: Seconds after a death in which the connections must have broken too. A child that
#: inherited them keeps them open; then what has arrived by now is all.
LAST_WORDS_SECONDS = 1.0
#: Seconds for the one who reaps to say how the process ended.
EXIT_SECONDS = 5.0
#: Seconds that a live process may have a broken connection, which it has while it exits.
HANGUP_SECONDS = 0.8
#: Seconds that iopub may lag behind shell after an adoption.
SETTLE_SECONDS = 0.5
#: ZMQ sockets of all kernels: four and two monitors each.
MAX_SOCKETS = 16384
#: Begins the ids of requests of ours. A cell's id begins with a letter or digit, so none can look like it.
OURS = "_"

LOST_OUTPUT = "kernelsvc: the server was away; what this cell printed meanwhile is lost (cold kernels keep nothing).\n"
#: How a cell ended whose end was not heard: name and text of its error.
LOST_END = (
    "OutcomeLost",
    "The cell ended while the server was away. How it ended and what it printed meanwhile is lost.",
)
#: Seconds that a kernel may take to end after a cell asked for it (``exit()``).
LEAVING_SECONDS = 5.0
LEFT = "The cell asked for the end of the kernel, as exit() does in a kernel started from a kernelspec"
INTERRUPTED = ("KeyboardInterrupt", "The cell was interrupted before the kernel had begun it or as it ended.")


class ZmqKernel:
    """A running cold kernel (``port.Kernel``)."""

    forkable = False
    ordered = False
    home = "/home/user"

    def __init__(
        self,
        place: KernelRuntimeDir,
        record: ZmqKernelRecord,
        started: Started,
        processes: Processes,
        sink: Sink,
        *,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        self.info = KernelInfo(
            kind="cold", pid=started.pid, id=record.kernel, language=record.language, python=record.python
        )
        self.sandbox = started.sandbox
        self._place, self._record, self._pidfd = place, record, started.pidfd
        self._processes, self._sink = processes, sink
        self._max = max_message_bytes
        self._loop = asyncio.get_running_loop()
        self._order = ReplyOrdering()
        self._seen: set[str] = set()
        self._counter = itertools.count()
        self._ready = False
        self._audible = asyncio.Event()
        self._answers: dict[str, asyncio.Future[KernelMessage]] = {}
        self._tail = ""
        self._refused: list[Output] | None = None
        self._later: list[Output] = []
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._stops: set[str] = set()
        self._broken: str | None = None
        self._hangup: asyncio.TimerHandle | None = None
        self._leaving: str | None = None
        self._leaving_ends: asyncio.TimerHandle | None = None
        self._tasks = OwnedTasks(self._loop)
        self._ending: asyncio.Task[None] | None = None
        self._written: list[str] = []
        connection, self._key = connection_of(place, record)
        self._channels = Channels(
            _context(),
            connection,
            self._key,
            max_message_bytes=max_message_bytes,
            on_messages=self._on_messages,
            on_garbled=self._violation,
            on_lag=lambda lags: self._stop("lag", lags),
            on_hangup=self._on_hangup,
        )
        self._raw = StdioFifos(place, self._on_raw)

    # -- requests --------------------------------------------------------------------------

    def execute(
        self,
        msg_id: str,
        code: str,
        *,
        silent: bool = False,
        allow_stdin: bool = False,
        store_history: bool = True,
        user_expressions: Mapping[str, str] | None = None,
    ) -> None:
        """See ``port.Kernel``."""
        content = {
            "code": code,
            "silent": silent,
            "store_history": store_history,
            "user_expressions": dict(user_expressions or {}),
            "allow_stdin": allow_stdin,
            # The server owns the queue. With True, ipykernel also aborts requests that come shortly after an error.
            "stop_on_error": False,
        }
        self.send("shell", "execute_request", content, msg_id=msg_id)

    def send(
        self,
        channel: Sending,
        msg_type: str,
        content: dict[str, Any],
        *,
        msg_id: str,
        metadata: dict[str, Any] | None = None,
        buffers: Sequence[bytes] = (),
    ) -> None:
        """See ``port.Kernel``."""
        if msg_type == "execute_request":
            self._order.sent(msg_id)
            self._seen.add(msg_id)
            self._write_open()
        parts = encode(
            self._key,
            self._record.identity,
            msg_type,
            content,
            msg_id=msg_id,
            metadata=metadata,
            buffers=buffers,
        )
        if not self._channels.send(channel, parts) and self._ending is None:
            self._violation("did not read its requests")

    def has_received(self, msg_id: str) -> bool:
        """See ``port.Kernel``. For a cold kernel: whether the request was handed to its socket."""
        return msg_id in self._seen

    def interrupt(self) -> None:
        """See ``port.Kernel``."""
        if self._record.interrupt_mode == "message":
            self._ask("control", "interrupt_request", f"{OURS}interrupt")
        else:
            self._signal(signal.SIGINT)
        if self._order.open:
            self._tasks.start(self._settle(self._order.open, INTERRUPTED))

    def _signal(self, signum: int) -> None:
        """Signal the kernel's process, at once: a signal that comes by way of the host may strike the next cell."""
        if self._pidfd < 0:
            return
        try:
            signal.pidfd_send_signal(self._pidfd, signum)
        except ProcessLookupError:
            return
        except PermissionError:  # it runs as another user
            self._processes.signal(self._record.kernel, signum)

    def kill(self) -> None:
        """See ``port.Kernel``."""
        self._signal(signal.SIGKILL)  # even if there is no host now
        self._processes.signal(self._record.kernel, signal.SIGKILL, everyone=True)

    def _ask(self, channel: Sending, msg_type: str, prefix: str) -> asyncio.Future[KernelMessage]:
        """Send a request of ours; its reply is the result."""
        msg_id = f"{prefix}-{next(self._counter)}"
        answer = self._answers[msg_id] = self._loop.create_future()
        answer.add_done_callback(lambda _: self._answers.pop(msg_id, None))
        self.send(channel, msg_type, {}, msg_id=msg_id)
        return answer

    # -- what the kernel sends ---------------------------------------------------------------

    def _on_messages(self, messages: list[KernelMessage]) -> None:
        for message in messages:
            if message.channel == "iopub" and (message.msg_type == "iopub_welcome" or message.parent in self._answers):
                self._audible.set()
            elif message.channel != "iopub" and (answer := self._answers.get(message.parent)) and not answer.done():
                answer.set_result(message)
        if not self._ready:
            return
        theirs = (m for m in messages if not m.parent.startswith(OURS) and not _is_noise(m))
        out = [o for o in self._order.arrange(theirs) if not self._is_end_of_leaving(o)]
        end = next(
            (i for i, m in enumerate(out) if isinstance(m, KernelMessage) and m.msg_type == "execute_reply"), None
        )
        if end is not None:  # what was written before the reply is in the FIFOs by now
            out[end:end] = [StreamText(name=name, text=text) for name, text in self._raw.read_rest()]
        self._deliver(joined(out))

    def _is_end_of_leaving(self, output: Output) -> bool:
        """Whether this is an end of the cell that asked for the kernel's end, which is the process's to tell."""
        if not isinstance(output, KernelMessage):
            return False
        if self._leaving is None and output.msg_type == "execute_reply" and _asks_exit(output.content):
            self._leaving = output.parent
            self._leaving_ends = self._loop.call_later(LEAVING_SECONDS, self.kill)
        idle = output.msg_type == "status" and output.content.get("execution_state") == "idle"
        return output.parent == self._leaving and (idle or output.msg_type == "execute_reply")

    def _on_raw(self, name: Literal["stdout", "stderr"], text: str) -> None:
        if self._ready:
            self._deliver([StreamText(name=name, text=text)])
        else:
            self._tail = (self._tail + text)[-2000:]

    def _deliver(self, batch: list[Output]) -> bool:
        """Give a batch to the sink, behind what it refused; whether nothing is left that it has not."""
        if self._refused is not None:
            self._later += batch
            return False
        if not batch:
            return True
        try:
            self._sink.deliver(batch)
        except OSError:
            self._refused = batch
            self._hold()
            return False
        self._write_open()
        return True

    def _hold(self) -> None:
        self._flowing.clear()
        self._channels.pause()
        self._raw.pause()
        self._stop("sink", True)

    def resume(self) -> None:
        """See ``port.Kernel``."""
        if self._refused is None:
            return
        refused, later, self._refused, self._later = self._refused, self._later, None, []
        self._deliver(refused)
        if not self._deliver(later):  # goes behind the first if that was refused again
            return
        self._flowing.set()
        self._stop("sink", False)
        self._raw.resume()
        self._channels.resume()

    def _stop(self, why: str, on: bool) -> None:
        """Stop or continue the kernel; it goes on when nothing wants it stopped."""
        before = bool(self._stops)
        (self._stops.add if on else self._stops.discard)(why)
        if bool(self._stops) != before:
            signum = signal.SIGSTOP if on else signal.SIGCONT
            self._processes.signal(self._record.kernel, signum, everyone=True)

    def _write_open(self) -> None:
        """Keep which requests are open. Those that ended are struck off only after their end is in the journal."""
        ids = self._order.open
        if ids == self._written:
            return
        self._written = ids
        try:
            self._place.write_open(ids)
        except OSError as error:
            log.warning("kernel %s: the runtime directory can't be written: %s", self._record.kernel, error)

    # -- the start ---------------------------------------------------------------------------

    async def wait_ready(self) -> None:
        """Wait until it answers on shell and is heard on iopub. Safe to cancel.

        A SUB socket that connects late misses what was published before, so an
        answer on shell alone proves nothing. Kernels whose iopub says welcome
        prove it by that, others by publishing the status of the probe.
        """
        while True:
            answer = await self._ask("shell", "kernel_info_request", f"{OURS}ready")
            try:
                async with asyncio.timeout(0.25):
                    await self._audible.wait()
            except TimeoutError:
                continue
            break
        self._note_info(answer.content)
        self._begin()

    def _note_info(self, content: dict[str, Any]) -> None:
        told = content.get("language_info")
        told = told if isinstance(told, dict) else {}
        name, version = _word(told.get("name")), _word(told.get("version"))
        language = name or self.info.language
        python = version if language == "python" else ""
        self.info = KernelInfo(kind="cold", pid=self.info.pid, id=self.info.id, language=language, python=python)

    def _begin(self) -> None:
        """From here on all that it sends goes to the sink, and its death is told."""
        self._ready = True
        self._loop.add_reader(self._pidfd, self._on_death)

    def last_line(self) -> str:
        """The last line that it wrote before it was ready, for the error that says why it is not."""
        self._tail += "".join(text for _name, text in self._raw.read_rest())
        lines = self._tail.strip().splitlines()
        return lines[-1][:300] if lines else ""

    # -- adoption ----------------------------------------------------------------------------

    def adopted(self) -> None:
        """Go on with a kernel that an earlier server started."""
        left_open = self._place.read_open()
        self._written = left_open
        for msg_id in left_open:
            self._order.sent(msg_id)
            self._seen.add(msg_id)
        # The earlier server may have died while it held the kernel stopped.
        self._processes.signal(self._record.kernel, signal.SIGCONT, everyone=True)
        self._begin()
        if left_open:
            notes: list[Output] = [StreamText(name="stderr", text=LOST_OUTPUT, parent=i) for i in left_open]
            self._loop.call_soon(self._deliver, notes)
            self._tasks.start(self._settle(left_open, LOST_END))

    async def _settle(self, left_open: Iterable[str], ending: tuple[str, str]) -> None:
        """End the cells whose end is not heard, once the kernel shows that it is past them.

        After an adoption it was said while nobody was there. After an interrupt it
        may never be said: ipykernel forgets a request that the signal strikes
        between two steps of its own.
        """
        await self._ask("shell", "kernel_info_request", f"{OURS}settle")
        await asyncio.sleep(SETTLE_SECONDS)
        for msg_id in left_open:
            if msg_id not in self._order.open:
                continue
            ends = {m.msg_type: m for m in self._order.close(msg_id)}
            reply, idle = _unheard_end(msg_id, *ending)
            self._deliver([ends.get("execute_reply", reply), ends.get("status", idle)])

    # -- the end -----------------------------------------------------------------------------

    def _violation(self, reason: str) -> None:
        if self._broken is None:
            self._broken = reason
            log.warning("kernel %s broke the protocol: %s", self._record.kernel, reason)
            self.kill()

    def _on_hangup(self) -> None:
        if self._hangup is None and self._leaving is None:
            what = f"closed a connection, or sent a message above {self._max} bytes"
            self._hangup = self._loop.call_later(HANGUP_SECONDS, self._violation, what)

    def _on_death(self) -> None:
        self._loop.remove_reader(self._pidfd)
        if self._hangup is not None:
            self._hangup.cancel()
        self._tasks.start(self._last_words())

    async def _last_words(self) -> None:
        try:
            async with asyncio.timeout(LAST_WORDS_SECONDS):
                await self._channels.gone.wait()
        except TimeoutError:
            pass
        while True:
            await self._flowing.wait()
            await self._channels.read_rest()
            rest: list[Output] = [StreamText(name=name, text=text) for name, text in self._raw.read_rest()]
            self._deliver(rest + [o for o in self._order.flush() if not self._is_end_of_leaving(o)])
            if self._flowing.is_set():
                break
        ended = await self._how_it_ended()
        self._let_go()
        self._sink.exited(ended)

    async def _how_it_ended(self) -> Exit:
        try:
            async with asyncio.timeout(EXIT_SECONDS):
                ended = await self._processes.wait_exit(self._record.kernel)
        except TimeoutError:
            ended = Exit(cause=Cause.LOST, message="The kernel is gone and nobody can say how.")
        if self._broken is None and self._leaving is not None:
            return Exit(cause=ended.cause, message=LEFT, signal=ended.signal, exit_code=ended.exit_code)
        if self._broken is None:
            return ended
        message = f"The kernel broke the protocol ({self._broken}) and was ended."
        return Exit(cause=Cause.PROTOCOL, message=message, signal=ended.signal, exit_code=ended.exit_code)

    def detach(self) -> None:
        """See ``port.Kernel``."""
        self._tasks.cancel()
        self._let_go()
        self._place.close()

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
            self._place.remove()

    def _let_go(self) -> None:
        """Close every descriptor. May be called twice."""
        for timer in (self._hangup, self._leaving_ends):
            if timer is not None:
                timer.cancel()
        for answer in list(self._answers.values()):
            answer.cancel()
        self._channels.close()
        self._raw.close()
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    async def restrict_writes(self, write: Sequence[str]) -> str:
        """See ``port.Kernel``; it has no branches."""
        return ""

    async def fork(
        self, copy: StartRequest, *, mode: Literal["checkpoint", "branch"], force: bool = False
    ) -> ForkResult:
        """Not for cold kernels."""
        raise NotSupported("A cold kernel can't be forked. Use a forked template for checkpoints and branches.")

    async def save(self, fd: int) -> SaveResult:
        """Not for cold kernels."""
        raise NotSupported("A cold kernel's variables can't be saved. Use a forked template to hibernate.")

    async def load(self, fd: int, *, execution_count: int) -> SaveResult:
        """Not for cold kernels."""
        raise NotSupported("A cold kernel's variables can't be loaded. Use a forked template to hibernate.")


def _is_noise(message: KernelMessage) -> bool:
    """Whether it is about the kernel's own start."""
    return message.msg_type == "iopub_welcome" or (message.msg_type == "status" and not message.parent)


def _asks_exit(content: dict[str, Any]) -> bool:
    """Whether a reply says that the kernel is to end ("Payloads" in Jupyter's messaging protocol)."""
    payload = content.get("payload")
    found = [p for p in payload if isinstance(p, dict)] if isinstance(payload, list) else []
    return any(p.get("source") == "ask_exit" and not p.get("keepkernel") for p in found)


def _word(value: object) -> str:
    """``value`` if it is a short plain word, else ""."""
    return value if isinstance(value, str) and re.fullmatch(r"[\w.+#-]{1,64}", value) else ""


def _unheard_end(msg_id: str, name: str, text: str) -> tuple[KernelMessage, KernelMessage]:
    failed = {"status": "error", "ename": name, "evalue": text, "traceback": [f"{name}: {text}"]}
    return (
        KernelMessage(channel="shell", msg_type="execute_reply", parent=msg_id, content=failed),
        KernelMessage(channel="iopub", msg_type="status", parent=msg_id, content={"execution_state": "idle"}),
    )


def _context() -> zmq.Context[zmq.Socket[bytes]]:
    """The one ZMQ context of this process, made large enough if nobody has used it yet."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
    context.set(zmq.MAX_SOCKETS, MAX_SOCKETS)
    return context
