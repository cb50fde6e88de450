"""The server's end of the kernel wire (``docs/reference/wire.md``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from kernelsvc.kernels.port import Output

Deliver = Callable[[Sequence[Output]], None]
Lost = Callable[["WireLoss"], None]


class WireLoss(Exception):
    """Why a wire ended.

    Attributes:
        violation: True when the kernel broke the protocol (end it with cause
            ``protocol``), False when its end of the socket is simply gone.
    """

    def __init__(self, message: str, *, violation: bool) -> None:
        super().__init__(message)
        self.violation = violation


class Wire:
    """One connection to one kernel. Every method is called from the event loop that connected it."""

    welcome: dict[str, Any]
    """What the kernel said of itself: ``version, kernel, python, ipykernel, seen, busy``. Not to be trusted."""
    peer_pid: int
    """The kernel's pid as Linux vouches for it (``SO_PEERCRED``), in the server's pid namespace."""
    last_frame: int
    """The highest frame that was delivered."""

    @classmethod
    async def connect(
        cls, path: str, *, last_frame: int = 0, deadline: float = 10.0, identity: dict[str, Any] | None = None
    ) -> Wire:
        """Connect to a kernel's listener, say HELLO, await WELCOME. A HELLO wakes a parked checkpoint.

        Args:
            path: the listener's socket.
            last_frame: the highest frame that the journal holds.
            deadline: seconds from now; until then a refused connection is tried again.
            identity: for a parked checkpoint only: who it is from now on (``kernel``,
                ``session``, ``workdir``, ``env``); None keeps what the fork request said.

        Raises:
            Timeout: nobody answered in time.
            WireLoss: it answered, but not as the protocol says.
        """
        raise NotImplementedError

    def start(self, deliver: Deliver, lost: Lost) -> None:
        """Begin to read. ``deliver`` as in ``port.Sink``; ``lost`` is called once, with the reason, after the last
        batch (raw pipes included), and not after ``close``."""
        raise NotImplementedError

    def send_message(
        self,
        channel: Literal["shell", "control", "stdin"],
        msg_type: str,
        content: dict[str, Any],
        *,
        msg_id: str,
        metadata: dict[str, Any] | None = None,
        buffers: Sequence[bytes] = (),
    ) -> None:
        """Send a Jupyter message. What the socket does not take at once is kept, and sent when it does."""
        raise NotImplementedError

    async def control(self, op: str, fds: Sequence[int] = (), *, timeout: float = 10.0, **fields: Any) -> dict[str, Any]:
        """Send a CONTROL request and await its REPLY. ``fds`` are duplicated to the kernel; the caller closes its own.

        Ops: ``survey``; ``fork`` (``mode="checkpoint"|"branch", force: bool, identity: {kernel, session, workdir,
        env}``, ``fds`` = bound listener, stdout read, stdout write, stderr read, stderr write).

        Raises:
            Timeout: no reply in time.
            KernelDead: the wire was lost meanwhile.
        """
        raise NotImplementedError

    def resume(self) -> None:
        """Deliver again what ``deliver`` refused, and read on."""
        raise NotImplementedError

    def seen(self, msg_id: str) -> bool:
        """Whether the kernel said, when it was connected, that it had received this request."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of the kernel; it lives on, and keeps what was not acknowledged."""
        raise NotImplementedError
