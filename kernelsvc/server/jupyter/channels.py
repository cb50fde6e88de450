"""``WS /api/kernels/{id}/channels``: one socket of a Jupyter client on one session.

Messages from the client are decoded (in either framing) and passed to the service:
an ``execute_request`` is a cell, other requests are sent to the kernel, comm messages
are forwarded. Messages to the client come from a cursor in the session's log
(``event_translator``), except replies to the client's own requests.

A batch of events is followed by a ping that carries the last event's number. The
pong returns the number, which shows that the events have arrived. The number is stored
under the client's ``session_id``. A socket that reconnects with this id continues there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from msgspec import ValidationError, convert

from kernelsvc.errors import BadRequest, Conflict, KernelsvcError, QuotaExceeded
from kernelsvc.model import events
from kernelsvc.model.hash_chain import timestamp
from kernelsvc.model.identity.fair_cache import FairCache
from kernelsvc.model.objects import MAX_EXPRESSIONS, CellRequest, Expressions, SessionState
from kernelsvc.model.tracing.context import RequestMeta
from kernelsvc.protocol import jsonrpc, jupyter
from kernelsvc.protocol.jupyter import JupyterMessage
from kernelsvc.protocol.kernel_messages import KEPT, KernelRequest
from kernelsvc.server.handler import LARGE_ENTRIES, as_error
from kernelsvc.server.jupyter.event_translator import (
    EventTranslator,
    failure,
    joined,
    kept_header,
    make,
    portions,
)
from kernelsvc.server.jupyter.handlers import find, token_of
from kernelsvc.server.native.websocket import CHUNK_BYTES, ApiSocket, ConnectionGone
from kernelsvc.service.api import Subscription

log = logging.getLogger(__name__)

#: Most clients whose position is stored, of one principal and in all. See ``FairCache``.
MAX_CURSORS_OF_ONE, MAX_CURSORS = 5000, 10_000
#: Most unanswered pings stored per client. Beyond it, repeated batches may end at other events.
MAX_UNANSWERED = 256
#: Seconds that a request may wait for a running cell.
ASK_SECONDS = 600.0
#: Most bytes of a stored ``kernel_info_reply``. The kernel may send anything, and its session may end soon.
MAX_INFO = 64 * 1024
#: Most client session ids of one socket (jupyter_server has one socket per browser).
MAX_CLIENT_IDS = 64
#: Most bytes of a request's metadata that are kept with its cell and reach the kernel.
MAX_METADATA_BYTES = 4096
#: Seconds for which text waits for more text, as in ipykernel's buffer: clients show an output for each message.
GATHER_SECONDS = 0.02
_CELL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_SEQ_BYTES = 8


def _trace_of(metadata: dict[str, Any]) -> RequestMeta | None:
    """Return the trace that a client put into the metadata of its request."""
    parent = metadata.get("traceparent")
    return None if parent is None else RequestMeta(traceparent=parent, tracestate=metadata.get("tracestate"))


class Cursors:
    """The position of each client in each log, as far as pongs confirm it."""

    def __init__(self) -> None:
        limits = MAX_CURSORS_OF_ONE, MAX_CURSORS
        self._at: FairCache[tuple[str, str], int] = FairCache(*limits)
        self._sent: FairCache[tuple[str, str], deque[int]] = FairCache(*limits)
        #: Replies to ``kernel_info_request`` by session. They never change.
        self.infos: FairCache[str, dict[str, Any]] = FairCache(*limits)

    def get(self, session: str, client: str) -> int | None:
        """Return the last event that arrived. None for an unknown client."""
        return self._at.get((session, client))

    def put(self, owner: str, session: str, client: str, seq: int) -> None:
        """Note that all events up to ``seq`` have arrived."""
        if client:
            name = session, client
            self._at.put(owner, name, max(seq, self._at.get(name) or 0))
            unanswered = self._sent.get(name) or deque()
            while unanswered and unanswered[0] <= seq:
                unanswered.popleft()

    def sent(self, owner: str, session: str, client: str, seq: int) -> None:
        """Note that a ping with ``seq`` was sent."""
        if client:
            unanswered = self._sent.get((session, client))
            if unanswered is None:
                unanswered = deque[int](maxlen=MAX_UNANSWERED)
                self._sent.put(owner, (session, client), unanswered)
            unanswered.append(seq)

    def unanswered(self, session: str, client: str) -> frozenset[int]:
        """Return the pings to this client without a pong."""
        return frozenset(self._sent.get((session, client)) or ())

    def put_info(self, owner: str, session: str, info: dict[str, Any]) -> None:
        """Store a kernel's ``kernel_info_reply``, unless it is large."""
        if len(jupyter.encode_part(info)) <= MAX_INFO:
            self.infos.put(owner, session, info)


def frame(message: JupyterMessage, v1: bool) -> bytes:
    """Encode a message as a whole WebSocket frame."""
    if v1:
        return binary_frame(jupyter.encode_v1(message))
    data = jupyter.encode_json(message)
    return jsonrpc.text_frame(data.encode()) if isinstance(data, str) else binary_frame(data)


def binary_frame(payload: bytes) -> bytes:
    """Return a whole binary frame from a server (RFC 6455, section 5.2): a text frame with opcode 2."""
    return b"\x82" + jsonrpc.text_frame(payload)[1:]


def ping_frame(seq: int) -> bytes:
    """Return a ping whose pong confirms ``seq``."""
    return b"\x89" + bytes([_SEQ_BYTES]) + seq.to_bytes(_SEQ_BYTES, "big")


def expressions_of(value: object) -> dict[str, str]:
    """Decode a request's ``user_expressions``.

    Raises:
        BadRequest: They are not names with code, or there are too many.
    """
    try:
        return convert(value or {}, Expressions)
    except ValidationError as error:
        raise BadRequest(f"'user_expressions' must map at most {MAX_EXPRESSIONS} names to code: {error}.") from None


class ChannelsSocket(ApiSocket):
    """The handler of one connection to one session."""

    cursors: Cursors
    transport = "jupyter"
    route = "/api/kernels/{id}/channels"
    text_as_bytes = False  # text and binary frames differ here
    session = ""

    # --- opening and closing -------------------------------------------------------------

    def token(self) -> str | None:
        """Return the token that the request carries."""
        return token_of(self)

    async def prepare(self) -> None:
        """Tornado's hook: check token and session before the upgrade."""
        await super().prepare()
        self.session = find(self, self.path_kwargs["kernel"]).id

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        """Tornado's hook: choose v1 if it is offered."""
        self._v1 = jupyter.SUBPROTOCOL in subprotocols
        return jupyter.SUBPROTOCOL if self._v1 else None

    def open(self, *args: str, **kwargs: str) -> None:
        """Tornado's hook: begin to send, from this client's position or from now."""
        self._v1 = self.selected_subprotocol == jupyter.SUBPROTOCOL
        self._client = self.get_query_argument("session_id", "")[:256]
        self._client_ids: OrderedDict[str, None] = OrderedDict({self._client: None} if self._client else {})
        self._pumping: asyncio.Task[None] | None = None
        self._sent_seq = 0
        self._sent_changed = asyncio.Condition()
        super().open(*args, **kwargs)
        try:
            last = self.context.service.get(self.who, self.session).last_seq
            after = self.cursors.get(self.session, self._client)
            start = last if after is None else min(after, last)
            self.cursors.put(self.who.account, self.session, self._client, start)
            self._breaks = self.cursors.unanswered(self.session, self._client)
            self._sent_seq = start
            subscription = self.context.service.attach(self.who, self.session, after=start)
        except KernelsvcError as error:
            self.close(1011, error.message[:100])
            return
        self._pumping = asyncio.create_task(self._pump(subscription), name=f"channels of {self.session}")

    def on_close(self) -> None:
        """Tornado's hook: the WebSocket is closed, by either side."""
        if self._pumping is not None:
            self._pumping.cancel()
        super().on_close()

    def on_pong(self, data: bytes) -> None:
        """Tornado's hook: all events before the ping have arrived."""
        super().on_pong(data)
        if len(data) == _SEQ_BYTES:
            self.cursors.put(self.who.account, self.session, self._client, int.from_bytes(data, "big"))

    # --- what the log says -----------------------------------------------------------------

    async def _pump(self, subscription: Subscription) -> None:
        service = self.context.service
        translator = EventTranslator(self.session, lambda cell: service.cell(self.who, self.session, cell))
        try:
            while await self._send_next(subscription, translator):
                async with self._sent_changed:
                    self._sent_seq = subscription.last_seq
                    self._sent_changed.notify_all()
            self.close(1000, "the session is closed")
        except ConnectionGone:
            pass
        except Exception as error:
            if not isinstance(error, KernelsvcError):
                log.error(
                    "Session %s: reading its events failed. The socket is closed",
                    self.session,
                    exc_info=error,
                    extra={"action": "pump_failed", "session": self.session},
                )
            self.close(1011, as_error(error).message[:100])
        finally:
            subscription.close()

    async def _gather(self, subscription: Subscription, lines: list[bytes]) -> None:
        """Add events to ``lines`` for a short time if they end with text: a ``print`` may be several events."""
        end = asyncio.get_running_loop().time() + GATHER_SECONDS
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(end):
                while sum(map(len, lines)) < CHUNK_BYTES and type(events.decode(lines[-1])) is events.Stream:
                    if not 0 < await subscription.wait() <= LARGE_ENTRIES:
                        return  # the log is closed, or what follows is large
                    lines += subscription.next_nowait()

    async def _send_next(self, subscription: Subscription, translator: EventTranslator) -> bool:
        """Send the next entries. Return False at the end of the log."""
        async with self.context.entries(self.who, subscription) as lines:
            if not lines:
                return False
            await self._gather(subscription, lines)
            if data := self._frames(translator, lines):
                self.queue_raw(data)
        await self.wait_for_room()
        return True

    def _frames(self, translator: EventTranslator, lines: Iterable[bytes]) -> bytes:
        frames: list[bytes] = []
        for portion in portions(lines, CHUNK_BYTES, self._breaks):
            before, seq = len(frames), portion[-1].seq
            frames += [
                frame(message, self._v1)
                for event in joined(portion)
                for message in translator.messages(event)
                if self._is_for_this_socket(message)
            ]
            if len(frames) > before:
                self.cursors.sent(self.who.account, self.session, self._client, seq)
                frames.append(ping_frame(seq))
        return b"".join(frames)

    async def _wait_until_sent_all(self) -> None:
        """Wait until all events that the log has now are sent to this socket. Safe to cancel."""
        last = self.context.service.get(self.who, self.session).last_seq
        async with self._sent_changed:
            await self._sent_changed.wait_for(lambda: self._sent_seq >= last)

    def _is_for_this_socket(self, message: JupyterMessage) -> bool:
        """Return whether to send a message: iopub goes to all clients, replies to the client that asked."""
        return message.channel == "iopub" or jupyter.text_field(message.parent_header, "session") in self._client_ids

    # --- what the client says -----------------------------------------------------------------

    async def on_message(self, message: str | bytes) -> None:
        """Tornado's hook: a whole frame arrived. The next one is read when this returns."""
        try:
            decoded = self._decoded(message)
            if len(self._requests) >= self.context.settings.max_requests:
                raise QuotaExceeded(
                    f"{len(self._requests)} requests are unanswered here. Wait for some of the replies first."
                )
        except KernelsvcError as error:
            # An invalid message gets no reply. JupyterLab shows an error without a parent in its log.
            await self._send_message("iopub", "error", failure(error.code, error.message), {})
            return
        self._remember_client_id(jupyter.text_field(decoded.header, "session"))
        self.count_until_done(self._requests.start(self._handle(decoded), name=decoded.msg_type), len(message))
        if self._unsent > CHUNK_BYTES:
            await self._may_read.wait()

    def _decoded(self, data: str | bytes) -> JupyterMessage:
        message = jupyter.decode_v1(data) if self._v1 and isinstance(data, bytes) else jupyter.decode_json(data)
        if not message.msg_type:
            raise BadRequest("A message needs a header with msg_type.")
        return message

    def _remember_client_id(self, client_id: str) -> None:
        if client_id:
            self._client_ids[client_id] = None
            self._client_ids.move_to_end(client_id)
        while len(self._client_ids) > MAX_CLIENT_IDS:
            self._client_ids.popitem(last=False)

    async def _handle(self, message: JupyterMessage) -> None:
        kind = message.msg_type
        code = "ok"
        try:
            await self._handler_of(kind)(message)
        except ConnectionGone:
            return
        except Exception as error:
            if not isinstance(error, KernelsvcError):
                log.error("%s failed", kind[:64], exc_info=error, extra={"action": "request_failed"})
            # No variable has the error, which holds this frame: both would be garbage, with the message.
            code = as_error(error).code
            await self._refuse_message(message, as_error(error))
        finally:
            self.context.metrics.request(self.transport, "channels", code, 0.0)

    def _handler_of(self, kind: str) -> Callable[[JupyterMessage], Awaitable[None]]:
        known: dict[str, Callable[[JupyterMessage], Awaitable[None]]] = {
            "execute_request": self._run,
            "input_reply": self._input,
            "interrupt_request": self._interrupt,
            "shutdown_request": self._shutdown,
            "kernel_info_request": self._kernel_info,
        }
        return known.get(kind, self._comm if kind.startswith("comm_") and not kind.endswith("_request") else self._ask)

    async def _refuse_message(self, message: JupyterMessage, error: KernelsvcError) -> None:
        content = failure(error.code, error.message)
        try:
            if message.msg_type == "execute_request":
                shown = {name: content[name] for name in ("ename", "evalue", "traceback")}
                await self._send_message("iopub", "error", shown, message.header)
                content |= {"execution_count": None}
            if message.msg_type.endswith("_request"):
                await self._reply_to(message, content)
            else:
                await self._send_message("iopub", "status", {"execution_state": "idle"}, message.header)
        except ConnectionGone:
            return

    async def _send_message(self, channel: str, msg_type: str, content: dict[str, Any], parent: dict[str, Any]) -> None:
        self._sent_count = getattr(self, "_sent_count", 0) + 1
        name = f"{self.session}_{id(self):x}_{self._sent_count}"
        message = make(self.session, name, timestamp(time.time()), channel, msg_type, content, kept_header(parent))
        payload = frame(message, self._v1)
        self._unsent += len(payload)
        self._may_read.clear()
        try:
            await self.send_raw(payload)
        finally:
            self._unsent -= len(payload)
            if self._unsent <= CHUNK_BYTES:
                self._may_read.set()

    async def _reply_to(self, message: JupyterMessage, content: dict[str, Any]) -> None:
        channel = message.channel if message.channel in ("shell", "control") else "shell"
        kind = message.msg_type.removesuffix("_request") + "_reply"
        await self._send_message("iopub", "status", {"execution_state": "busy"}, message.header)
        await self._send_message(channel, kind, content, message.header)
        await self._send_message("iopub", "status", {"execution_state": "idle"}, message.header)

    async def _run(self, message: JupyterMessage) -> None:
        content = message.content
        code = content.get("code")
        if not isinstance(code, str):
            raise BadRequest("An execute_request needs 'code', a string.")
        self.auth_scope("run")
        kept: dict[str, Any] = {"header": kept_header(message.header)}
        if message.metadata and len(jupyter.encode_part(message.metadata)) <= MAX_METADATA_BYTES:
            kept["metadata"] = message.metadata
        silent = content.get("silent") is True
        if silent:
            kept["silent"] = True
        request = CellRequest(
            code=code,
            cell=message.msg_id if _CELL_ID.fullmatch(message.msg_id) else None,
            on_error="continue" if content.get("stop_on_error") is False else "stop",
            silent=silent,
            allow_stdin=content.get("allow_stdin") is True,
            store_history=content.get("store_history") is not False,
            user_expressions=expressions_of(content.get("user_expressions")),
            metadata={KEPT: kept},
            meta=_trace_of(message.metadata),
        )
        await self.context.service.execute(self.who, self.session, request, wait="queued", client=self)

    async def _input(self, message: JupyterMessage) -> None:
        cell = self.context.service.get(self.who, self.session).running
        value = message.content.get("value")
        if cell is None:
            raise Conflict("No cell waits for input.")
        await self.context.service.input(self.who, self.session, cell, value if isinstance(value, str) else "")

    async def _interrupt(self, message: JupyterMessage) -> None:
        await self.context.service.interrupt(self.who, self.session)
        await self._reply_to(message, {"status": "ok"})

    async def _shutdown(self, message: JupyterMessage) -> None:
        again = message.content.get("restart") is True
        if again:
            await self.context.service.restart(self.who, self.session)
        await self._reply_to(message, {"status": "ok", "restart": again})
        if not again:
            await self.context.service.close(self.who, self.session)

    async def _kernel_info(self, message: JupyterMessage) -> None:
        info = self.cursors.infos.get(self.session)
        if info is None:
            self.auth_scope("run")
            info = await self.context.service.request_kernel(
                self.who, self.session, message.msg_type, {}, timeout=ASK_SECONDS
            )
            self.cursors.put_info(self.who.account, self.session, info)
        state = self.context.service.get(self.who, self.session).state
        await self._reply_to(message, info)
        if state is SessionState.BUSY:
            await self._send_message("iopub", "status", {"execution_state": "busy"}, {})

    async def _ask(self, message: JupyterMessage) -> None:
        answer = await self.context.service.request_kernel(
            self.who, self.session, message.msg_type, message.content, timeout=ASK_SECONDS
        )
        await self._reply_to(message, answer)

    async def _comm(self, message: JupyterMessage) -> None:
        if not _CELL_ID.fullmatch(message.msg_id):
            raise BadRequest("A comm message needs a msg_id of letters, digits and ._:-")
        await self._send_message("iopub", "status", {"execution_state": "busy"}, message.header)
        request = KernelRequest(
            message.msg_type, message.content, message.msg_id, metadata=message.metadata, buffers=message.buffers
        )
        await self.context.service.send_comm(self.who, self.session, request)
        await self._wait_until_sent_all()  # its output must precede its idle status
        await self._send_message("iopub", "status", {"execution_state": "idle"}, message.header)
