"""Serve any kernel behind ``kernels.port`` on Jupyter's own ZMQ sockets.

``kernels.zmq`` makes a Jupyter kernel look like a forked one. ``ZmqServer`` does the reverse, for applications that
start kernels through ``jupyter_client`` (``provisioner``).

Theory of operation
-------------------
The header of each request is stored by its ``msg_id``. Outputs of the kernel then carry the whole parent header, and
the reply finds its client ("Messaging in Jupyter", parent header and routing prefix). The kernel is read at the pace of
its clients. A send to a full iopub subscriber is refused (XPUB with ``XPUB_NODROP``, zmq_setsockopt(3)), the batch then
counts as not delivered, and the kernel soon blocks. A subscriber that is full for ``STALL_SECONDS`` loses messages, as
with any Jupyter kernel, so that it can't block the others.

Text is buffered for a short time, as ipykernel does: a ``print`` of two values is four writes, and clients such as
nbclient create one output per message.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import uuid
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from socket import SHUT_RDWR, create_server
from socket import socket as Socket
from typing import Any, Literal

import zmq
import zmq.asyncio

from kernelsvc.jupyter_app.usage import UsageMeter
from kernelsvc.kernels.port import Kernel, KernelMessage, Output, StreamText
from kernelsvc.kernels.zmq.messages import HmacKey, InvalidMessage, Packet, encode, unpack
from kernelsvc.linux.tasks import OwnedTasks
from kernelsvc.model.exit_status import Exit
from kernelsvc.protocol.kernel_messages import KernelRequest

log = logging.getLogger(__name__)

Channel = Literal["shell", "control", "stdin"]

#: Headers of requests that are stored. Outputs of older requests have an empty parent header.
MAX_HEADERS = 2000
#: Messages that wait for one subscriber of iopub.
IOPUB_MESSAGES = 10_000
#: Seconds between attempts to deliver when a subscriber is full.
RETRY_SECONDS = 0.02
#: Seconds after which a full subscriber loses messages.
STALL_SECONDS = 10.0
#: Seconds for which text is buffered, and the number of characters after which it is sent immediately.
BUFFER_SECONDS, BUFFER_TEXT = 0.02, 64 * 1024
#: Milliseconds for which a closed socket still sends its last messages.
LINGER_MS = 200
#: listen(2)'s backlog, that of libzmq (ZMQ_BACKLOG).
BACKLOG = 100

CHANNELS: tuple[Channel, ...] = ("shell", "control", "stdin")


class ZmqServer:
    """Serves one kernel and is its ``port.Sink``. Use it in one event loop.

    Args:
        info: Jupyter's connection info: transport, ip, five ports, key, signature_scheme.
        on_exit: Called once when the kernel has ended.
        on_shutdown: Called when a client sends ``shutdown_request``. The callee ends the kernel.
    """

    def __init__(
        self, info: dict[str, Any], *, on_exit: Callable[[Exit], None], on_shutdown: Callable[[], None]
    ) -> None:
        key = info["key"]
        self.kernel: Kernel | None = None
        self._key = HmacKey(_bytes(key), info["signature_scheme"])
        self._info = info
        self._on_exit, self._on_shutdown = on_exit, on_shutdown
        self._session = uuid.uuid4().hex
        self._headers: OrderedDict[str, tuple[dict[str, Any], list[bytes]]] = OrderedDict()
        self._running = ""
        #: Ids of cells that were sent to the kernel and have not ended.
        self._cells: set[str] = set()
        self._kernel_info: dict[str, Any] | None = None
        self._usage: UsageMeter | None = None
        self._early: list[Output] = []
        self._delivered = 0
        self._buffered: list[StreamText] = []
        self._buffered_size = 0
        self._flush_timer: asyncio.TimerHandle | None = None
        self._stalled_since: float | None = None
        self._loop = asyncio.get_running_loop()
        self._tasks = OwnedTasks(self._loop)
        self._context = zmq.asyncio.Context()
        self._sockets: dict[str, zmq.asyncio.Socket] = {}
        self._listeners: list[Socket] = []

    # -- start and end -----------------------------------------------------------------------

    def open(self) -> None:
        """Bind the sockets. Messages of clients wait in them until ``serve``.

        Raises:
            OSError, zmq.ZMQError: An address is in use.
        """
        kinds = {"shell": zmq.ROUTER, "control": zmq.ROUTER, "stdin": zmq.ROUTER, "hb": zmq.ROUTER, "iopub": zmq.XPUB}
        secret = self._info.get("curve_secretkey")
        for name, kind in kinds.items():
            socket = self._sockets[name] = self._context.socket(kind)
            socket.linger = LINGER_MS
            if secret:
                # Encryption and authentication of the server by CurveZMQ (zmq_curve(7)), if the application wants it.
                socket.curve_secretkey, socket.curve_server = _bytes(secret), True
            if name == "iopub":
                socket.sndhwm = IOPUB_MESSAGES
                # A send to a full subscriber fails with EAGAIN instead of dropping the message.
                socket.set(zmq.XPUB_NODROP, 1)
                # Reports every subscription, also a second one to the same topic, so that each subscriber is welcomed.
                socket.set(zmq.XPUB_VERBOSE, 1)
            if self._info["transport"] == "tcp":
                socket.set(zmq.USE_FD, self._listen(name))
            socket.bind(self._url(name))

    def _listen(self, name: str) -> int:
        """Listen on a channel's TCP port, and return a descriptor for libzmq, which closes it.

        A process that the application forks inherits the descriptors, and its copies alone would keep the port in use
        after ``close``. ``close`` ends the listening for all of them: shutdown(2) acts on the open file description.
        """
        listener = create_server((self._info["ip"].replace("*", ""), self._info[f"{name}_port"]), backlog=BACKLOG)
        listener.setblocking(False)
        self._listeners.append(listener)
        return os.dup(listener.fileno())

    def _url(self, name: str) -> str:
        info = self._info
        separator = "-" if info["transport"] == "ipc" else ":"
        return f"{info['transport']}://{info['ip']}{separator}{info[f'{name}_port']}"

    def serve(self, kernel: Kernel) -> None:
        """Start to pass messages between this kernel and the sockets."""
        self.kernel = kernel
        self._usage = UsageMeter(kernel.info.pid) if kernel.info.pid else None
        early, self._early = self._early, []
        self.deliver(early)
        for channel in CHANNELS:
            self._create_task(self._receive(channel), channel)
        self._create_task(self._echo(), "heartbeat")
        self._create_task(self._welcome(), "iopub")

    def _create_task(self, work: Coroutine[Any, Any, None], name: str) -> None:
        self._tasks.start(work, name=f"ZMQ server: {name}").add_done_callback(_task_ended)

    def close(self) -> None:
        """Close the sockets after ``LINGER_MS`` for the last messages. Idempotent."""
        self._tasks.cancel()
        if self._flush_timer is not None:
            self._flush_timer.cancel()
        for socket in self._sockets.values():
            socket.close()
        self._sockets.clear()
        if not self._context.closed:
            self._context.term()
        # Not before: libzmq aborts the process if accept(2) fails with EINVAL.
        for listener in self._listeners:
            listener.shutdown(SHUT_RDWR)
            listener.close()
        self._listeners.clear()

    # -- from the clients ----------------------------------------------------------------------

    async def _receive(self, channel: Channel) -> None:
        socket = self._sockets[channel]
        while True:
            parts = await socket.recv_multipart()
            try:
                packet = unpack(parts, self._key)
                self._handle(channel, packet)
            except InvalidMessage as error:
                log.warning("a client's message on %s was refused, and no reply was sent: %s", channel, error)

    async def _echo(self) -> None:
        socket = self._sockets["hb"]
        while True:
            await socket.send_multipart(await socket.recv_multipart())

    async def _welcome(self) -> None:
        """Send ``iopub_welcome`` to each new subscriber, as ipykernel does (JEP 65)."""
        socket = self._sockets["iopub"]
        while True:
            event = await socket.recv()
            if event[:1] == b"\x01":
                topic = event[1:].decode("utf-8", "replace")
                with contextlib.suppress(zmq.Again):
                    self._publish("iopub_welcome", {"subscription": topic}, {}, topic=event[1:])

    def _handle(self, channel: Channel, packet: Packet) -> None:
        kernel = self.kernel
        msg_type, msg_id = packet.header.get("msg_type"), packet.header.get("msg_id")
        if kernel is None or not isinstance(msg_type, str) or not isinstance(msg_id, str):
            return
        self._headers[msg_id] = (packet.header, packet.routing)
        while len(self._headers) > MAX_HEADERS:
            self._headers.popitem(last=False)
        if msg_type == "shutdown_request":
            self._reply("control" if channel == "control" else "shell", "shutdown_reply", packet)
            self._on_shutdown()
        elif msg_type == "interrupt_request":
            kernel.interrupt()
            self._reply(channel, "interrupt_reply", packet)
        elif not self._answer(channel, msg_type, packet):
            if msg_type == "execute_request":
                self._cells.add(msg_id)
            session = packet.header.get("session")
            kernel.send(
                KernelRequest(
                    msg_type,
                    packet.content,
                    msg_id,
                    channel,
                    packet.metadata,
                    packet.buffers,
                    session if isinstance(session, str) else "",
                )
            )

    def _answer(self, channel: Channel, msg_type: str, packet: Packet) -> bool:
        """Answer a request that needs no code in the kernel. Return False if the kernel must answer.

        The kernel has one thread, so it answers only between cells. Clients send these also while a cell runs. On the
        shell channel ``kernel_info_request`` goes to the kernel, since clients use it to wait for earlier requests.
        """
        content: dict[str, Any] | None = None
        if msg_type == "connect_request":
            content = {name: port for name, port in self._info.items() if name.endswith("_port")}
        elif msg_type == "kernel_info_request" and channel == "control" and self._cells:
            content = self._kernel_info
        elif msg_type == "usage_request" and self._usage is not None:
            content = self._usage.content()
        if content is None:
            return False
        with contextlib.suppress(zmq.Again):
            self._publish("status", {"execution_state": "busy"}, packet.header)
        self._reply(channel, msg_type.removesuffix("_request") + "_reply", packet, content)
        with contextlib.suppress(zmq.Again):
            self._publish("status", {"execution_state": "idle"}, packet.header)
        return True

    def _reply(self, channel: Channel, msg_type: str, packet: Packet, content: dict[str, Any] | None = None) -> None:
        """Answer a request that this server handles itself. The content is that of the request by default."""
        content = {"status": "ok"} | (packet.content if content is None else content)
        parts = encode(self._key, self._session, msg_type, content, msg_id=uuid.uuid4().hex, parent=packet.header)
        self._send(channel, [*packet.routing, *parts])

    # -- from the kernel (port.Sink) -------------------------------------------------------------

    def deliver(self, batch: Sequence[Output]) -> None:
        """See ``port.Sink``. ``_delivered`` is the number of messages of a refused batch that were sent already."""
        if self.kernel is None:
            self._early += batch
            return
        try:
            for index in range(self._delivered, len(batch)):
                self._forward(batch[index])
                self._delivered = index + 1
        except zmq.Again:
            self._stall()
            raise OSError("a subscriber of iopub is full") from None
        self._delivered = 0
        self._stalled_since = None

    def exited(self, exit: Exit) -> None:
        """See ``port.Sink``."""
        with contextlib.suppress(zmq.Again):
            self._flush()
        self._on_exit(exit)

    def _stall(self) -> None:
        now = self._loop.time()
        self._stalled_since = self._stalled_since or now
        if now - self._stalled_since > STALL_SECONDS and "iopub" in self._sockets:
            log.warning("a subscriber of iopub was full for %g s and now loses messages", STALL_SECONDS)
            # From now on messages to the full subscriber are dropped.
            self._sockets["iopub"].set(zmq.XPUB_NODROP, 0)
        self._loop.call_later(RETRY_SECONDS, self._resume_kernel)

    def _resume_kernel(self) -> None:
        if self.kernel is not None and self._sockets:
            self.kernel.resume()

    def _buffer(self, text: StreamText) -> None:
        first = self._buffered[0] if self._buffered else text
        if (first.name, first.parent) != (text.name, text.parent) or self._buffered_size > BUFFER_TEXT:
            self._flush()
        self._buffered.append(text)
        self._buffered_size += len(text.text)
        if self._flush_timer is None:
            self._flush_timer = self._loop.call_later(BUFFER_SECONDS, self._flush_later)

    def _flush(self) -> None:
        """Publish the buffered text. Raises ``zmq.Again`` and changes nothing if a subscriber is full."""
        if self._buffered:
            first = self._buffered[0]
            header, _ = self._headers.get(first.parent or self._running, ({}, []))
            content = {"name": first.name, "text": "".join(t.text for t in self._buffered)}
            self._publish("stream", content, header)
            self._buffered, self._buffered_size = [], 0

    def _flush_later(self) -> None:
        self._flush_timer = None
        try:
            self._flush()
        except zmq.Again:  # Later outputs are refused meanwhile, or join the buffer up to its limit.
            self._flush_timer = self._loop.call_later(BUFFER_SECONDS, self._flush_later)

    def _forward(self, output: Output) -> None:
        if isinstance(output, StreamText):
            self._buffer(output)
            return
        self._flush()
        header, routing = self._headers.get(output.parent, ({}, []))
        if output.channel == "iopub":
            state = output.content.get("execution_state") if output.msg_type == "status" else ""
            if state == "busy":
                self._running = output.parent
            elif state == "idle":
                self._cells.discard(output.parent)
            self._publish(output.msg_type, output.content, header, message=output)
        elif routing:
            if output.msg_type == "kernel_info_reply":
                self._kernel_info = output.content
            self._send(output.channel, [*routing, *self._encoded(output.msg_type, output.content, header, output)])

    def _encoded(
        self, msg_type: str, content: dict[str, Any], header: dict[str, Any], message: KernelMessage | None = None
    ) -> list[bytes]:
        return encode(
            self._key,
            self._session,
            msg_type,
            content,
            msg_id=(message.msg_id if message else "") or uuid.uuid4().hex,
            parent=header,
            metadata=message.metadata if message else None,
            buffers=message.buffers if message else (),
        )

    def _publish(
        self,
        msg_type: str,
        content: dict[str, Any],
        header: dict[str, Any],
        *,
        message: KernelMessage | None = None,
        topic: bytes = b"",
    ) -> None:
        topic = topic or f"kernel.{self._session}.{msg_type}".encode()
        self._send("iopub", [topic, *self._encoded(msg_type, content, header, message)])

    def _send(self, name: str, parts: list[bytes]) -> None:
        socket = self._sockets.get(name)
        if socket is None:
            return
        sent = socket.send_multipart(parts, zmq.NOBLOCK)
        assert isinstance(sent, asyncio.Future)
        error = sent.exception()  # NOBLOCK: the result is known immediately.
        if isinstance(error, zmq.Again) and name == "iopub":
            raise error
        if error is not None:
            log.warning("a reply to a client on %s was not sent: %s", name, error)


def _bytes(key: bytes | str) -> bytes:
    return key if isinstance(key, bytes) else str(key).encode()


def _task_ended(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()):
        log.error("%s failed", task.get_name(), exc_info=error)
