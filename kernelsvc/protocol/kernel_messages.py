"""Requests to a kernel, as the session gives them to a kernel's adapter: values only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

#: The channels of Jupyter's messaging protocol that requests go by.
RequestChannel = Literal["shell", "control", "stdin"]


class ExecuteRequest(msgspec.Struct, frozen=True):
    """One cell for the kernel: Jupyter's ``execute_request``.

    Attributes:
        msg_id: the cell's id.
    """

    msg_id: str
    code: str
    silent: bool = False
    allow_stdin: bool = False
    store_history: bool = True
    user_expressions: Mapping[str, str] = {}

    def content(self, *, stop_on_error: bool) -> dict[str, Any]:
        """Return the message's content.

        Args:
            stop_on_error: whether the kernel aborts requests that it has received behind a cell that fails.
        """
        return {
            "code": self.code,
            "silent": self.silent,
            "store_history": self.store_history,
            "user_expressions": dict(self.user_expressions),
            "allow_stdin": self.allow_stdin,
            "stop_on_error": stop_on_error,
        }


class KernelRequest(msgspec.Struct, frozen=True):
    """Any other message for the kernel.

    Attributes:
        msg_id: replies name it as their parent.
        buffers: binary parts, which follow the JSON.
        session: the client's session id, for code in the kernel that reads the header of its request.
    """

    msg_type: str
    content: dict[str, Any]
    msg_id: str
    channel: RequestChannel = "shell"
    metadata: dict[str, Any] | None = None
    buffers: Sequence[bytes] = ()
    session: str = ""
