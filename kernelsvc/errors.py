"""The errors that a client can get, as one tree.

::

    KernelsvcError
    ├── BadRequest            the request is wrong, and wrong again when repeated
    │   ├── LimitTooHigh      the request asks for more than a limit of the server
    │   ├── TooLarge          a body, frame or file exceeds its maximum size
    │   └── CursorUnknown     the log has never reached this position
    ├── Unauthenticated       the token is missing or unknown
    ├── Forbidden             the token lacks the scope, or the web origin is not allowed
    ├── NotFound              the object does not exist, or another principal owns it
    ├── Conflict              the request is valid, but not in the present state
    │   ├── CellExists        the cell id already names other code
    │   ├── SessionClosed     the session has ended, and its record can still be read
    │   ├── KernelDead        the kernel has ended, and ``restart`` starts a new one
    │   └── CannotFork        the session has objects that a fork would break
    ├── CursorExpired         retention has removed this part of the log
    ├── QuotaExceeded         the principal has used up its quota
    ├── AtCapacity            the server has no room for another session
    ├── Recovering            the server is still reading the session's log
    ├── NodeUnreachable       the session's node does not answer
    ├── SessionLost           the session's node has not answered for long, or does not belong to the cluster
    ├── TemplateFailed        the template's fork server can't start
    ├── MountUnavailable      a directory that the session asked for can't be shown to it
    ├── PortUnreachable       the session's own server does not accept a connection, or sends no HTTP
    ├── SandboxUnavailable    the policy is ``required``, and this machine can't confine
    ├── NotSupported          this kind of kernel lacks the feature
    ├── Timeout               the client's deadline has passed
    └── Internal              a fault of the server or its machine. Details are in its log only

The first paragraph of a class's docstring is its default message. Clients and users read it, so it ends with the next
step.
"""

from __future__ import annotations

import inspect
from typing import Any, ClassVar, Literal

Fault = Literal["caller", "server", "kernel"]


class KernelsvcError(Exception):
    """Something went wrong.

    Attributes:
        code: machine-readable name, a stable part of the API.
        http_status: status of a REST response.
        retryable: whether the same request may succeed later.
        fault: the party at fault.
        details: facts about this occurrence, as JSON values.
    """

    code: ClassVar[str] = "internal"
    http_status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False
    fault: ClassVar[Fault] = "server"

    def __init__(self, message: str | None = None, /, **details: Any) -> None:
        doc = inspect.getdoc(type(self)) or ""
        self.message = message or " ".join(doc.split("\n\n")[0].split())
        self.details: dict[str, Any] = details
        super().__init__(self.message)

    def to_json(self) -> dict[str, Any]:
        """Return the error object that every API sends."""
        return {
            "code": self.code,
            "message": self.message,
            "retryable": self.retryable,
            "details": self.details,
        }


class BadRequest(KernelsvcError):
    """The request is not valid. Compare it with the API reference."""

    code, http_status, fault = "bad_request", 400, "caller"


class LimitTooHigh(BadRequest):
    """The limit is higher than the server allows. Ask for a lower one."""

    code = "limit_too_high"


class TooLarge(BadRequest):
    """The request is larger than the server accepts. Send less, or send it in parts."""

    code, http_status = "too_large", 413


class CursorUnknown(BadRequest):
    """The log has no such position. Attach with after=0 to read it from the start."""

    code = "cursor_unknown"


class Unauthenticated(KernelsvcError):
    """The request has no valid token. Send it as 'Authorization: Bearer TOKEN'."""

    code, http_status, fault = "unauthenticated", 401, "caller"


class Forbidden(KernelsvcError):
    """The token does not allow this request. Use a token with the scope it needs."""

    code, http_status, fault = "forbidden", 403, "caller"


class NotFound(KernelsvcError):
    """There is no such object. Check the id against a list of existing ones."""

    code, http_status, fault = "not_found", 404, "caller"


class Conflict(KernelsvcError):
    """The request does not fit the present state. Read the state, then try again."""

    code, http_status = "conflict", 409
    fault: ClassVar[Fault] = "caller"


class CellExists(Conflict):
    """This cell id already names other code. Choose a new id."""

    code = "cell_exists"


class SessionClosed(Conflict):
    """The session is closed. Its notebook and files can still be read. Create a new session to run code."""

    code = "session_closed"


class KernelDead(Conflict):
    """The session's kernel has ended. Call restart for a new one with empty variables."""

    code, fault = "kernel_dead", "kernel"


class CannotFork(Conflict):
    """The session has objects that a fork would break. End them, or use force.

    ``details["reasons"]`` describes each of them.
    """

    code, fault = "cannot_fork", "kernel"


class CursorExpired(KernelsvcError):
    """Retention has removed this part of the log. Attach with a later cursor."""

    code, http_status, fault = "cursor_expired", 410, "caller"


class QuotaExceeded(KernelsvcError):
    """The token's quota is used up. Close a session first."""

    code, http_status, retryable, fault = "quota_exceeded", 429, True, "caller"


class AtCapacity(KernelsvcError):
    """The server is full. Close a session, or try again later."""

    code, http_status, retryable = "at_capacity", 503, True


class Recovering(KernelsvcError):
    """The server has restarted and is still reading this session's log. Try again in a few seconds."""

    code, http_status, retryable = "recovering", 503, True


class NodeUnreachable(KernelsvcError):
    """The node that has this does not answer. Nothing is lost. Try again in a few seconds."""

    code, http_status, retryable = "node_unreachable", 503, True


class SessionLost(KernelsvcError):
    """The node that has this session is gone. Create a new session, or start the node's server again."""

    code, http_status = "session_lost", 410


class TemplateFailed(KernelsvcError):
    """The template can't start. Correct its settings, or choose another template."""

    code, http_status = "template_failed", 503


class MountUnavailable(KernelsvcError):
    """A mount can't be shown to the session. Correct its settings, or leave it out."""

    code, http_status = "mount_unavailable", 503


class PortUnreachable(KernelsvcError):
    """Nothing in the session answers on this port. Start its server on 127.0.0.1, then try again."""

    code, http_status, retryable, fault = "port_unreachable", 502, True, "kernel"


class SandboxUnavailable(KernelsvcError):
    """This machine can't confine a session as required. Run 'kernelsvc doctor' to see the reason."""

    code, http_status = "sandbox_unavailable", 503


class NotSupported(KernelsvcError):
    """This kind of kernel can't do that. Use a forked template."""

    code, http_status, fault = "not_supported", 501, "caller"


class Timeout(KernelsvcError):
    """The request did not finish in time. Allow more time, or read the session's state."""

    code, http_status, retryable = "timeout", 504, True


class Internal(KernelsvcError):
    """The server failed to handle the request. Its log has the details."""

    code, retryable = "internal", True


def _tree(cls: type[KernelsvcError]) -> dict[str, type[KernelsvcError]]:
    found = {} if cls is KernelsvcError else {cls.code: cls}
    for sub in cls.__subclasses__():
        found |= _tree(sub)
    return found


#: Error classes by code, for clients that rebuild an error from JSON.
BY_CODE: dict[str, type[KernelsvcError]] = _tree(KernelsvcError)


def from_json(data: dict[str, Any]) -> KernelsvcError:
    """Rebuild an error from the object that ``to_json`` returns. An unknown code becomes ``Internal``."""
    cls = BY_CODE.get(str(data.get("code")), Internal)
    return cls(str(data.get("message") or ""), **(data.get("details") or {}))
