"""Every error that a client can see, as one tree.

::

    KernelsvcError
    ├── BadRequest            the request itself is wrong; sending it again won't help
    │   ├── LimitTooHigh      a limit above the server's was asked for
    │   ├── TooLarge          a body, frame or file over its bound
    │   └── CursorUnknown     a position that the log never had
    ├── Unauthenticated       no token, or one that is not known
    ├── Forbidden             the token lacks the scope, or the origin is foreign
    ├── NotFound              no such thing, or it belongs to somebody else
    ├── Conflict              the request fits, but not in this state
    │   ├── CellExists        the cell id is taken by other code
    │   ├── SessionClosed     the session has ended; its record can still be read
    │   ├── KernelDead        the kernel is gone; ``restart`` gives a new one
    │   └── CannotFork        what the session holds would not survive a fork
    ├── CursorExpired         a position that retention has removed
    ├── QuotaExceeded         the principal's own quota is used up
    ├── AtCapacity            the server is full; try again later
    ├── Recovering            the session's log is being read back; try again in a moment
    ├── SandboxUnavailable    policy is ``required`` and this machine can't confine
    ├── NotSupported          this kind of kernel can't do that
    ├── Timeout               the time the caller gave is over
    └── Internal              our bug or this machine's; never shows internals

The first paragraph of a class's docstring is its default message, written to
whoever meets it and ending in the next step.
"""

from __future__ import annotations

import inspect
from typing import Any, ClassVar, Literal

Fault = Literal["caller", "server", "kernel"]


class KernelsvcError(Exception):
    """Something went wrong.

    Attributes:
        code: stable machine-readable name, part of the API.
        http_status: the status that REST answers with.
        retryable: whether the same request may succeed later, unchanged.
        fault: whose fault it is.
        details: JSON-ready facts about this occurrence.
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
        """The one shape that every transport carries."""
        return {
            "code": self.code,
            "message": self.message,
            "retryable": self.retryable,
            "details": self.details,
        }


class BadRequest(KernelsvcError):
    """The request is not well formed; see the API reference for its shape."""

    code, http_status, fault = "bad_request", 400, "caller"


class LimitTooHigh(BadRequest):
    """A limit may be lowered, not raised above the server's; ask for less."""

    code = "limit_too_high"


class TooLarge(BadRequest):
    """The request is larger than the server accepts; send less, or in parts."""

    code, http_status = "too_large", 413


class CursorUnknown(BadRequest):
    """The log has no such position; attach with after=0 to read it from the start."""

    code = "cursor_unknown"


class Unauthenticated(KernelsvcError):
    """No valid token was given; send it as 'Authorization: Bearer TOKEN'."""

    code, http_status, fault = "unauthenticated", 401, "caller"


class Forbidden(KernelsvcError):
    """The token does not allow this; use one with the scope that is named."""

    code, http_status, fault = "forbidden", 403, "caller"


class NotFound(KernelsvcError):
    """There is no such thing; list what exists and check the id."""

    code, http_status, fault = "not_found", 404, "caller"


class Conflict(KernelsvcError):
    """The request does not fit the present state; read the state and try again."""

    code, http_status = "conflict", 409
    fault: ClassVar[Fault] = "caller"


class CellExists(Conflict):
    """This cell id already names other code; choose a new id."""

    code = "cell_exists"


class SessionClosed(Conflict):
    """The session is closed; its notebook can be read, or create a new session."""

    code = "session_closed"


class KernelDead(Conflict):
    """The session's kernel is gone; call restart for a new one with empty variables."""

    code, fault = "kernel_dead", "kernel"


class CannotFork(Conflict):
    """The session holds something that a fork would break; end it, or use force.

    ``details["reasons"]`` lists each obstacle in words.
    """

    code, fault = "cannot_fork", "kernel"


class CursorExpired(KernelsvcError):
    """That part of the log was removed by retention; attach with a later cursor."""

    code, http_status, fault = "cursor_expired", 410, "caller"


class QuotaExceeded(KernelsvcError):
    """The token's quota is used up; close a session first."""

    code, http_status, retryable, fault = "quota_exceeded", 429, True, "caller"


class AtCapacity(KernelsvcError):
    """The server is full; close a session or try again later."""

    code, http_status, retryable = "at_capacity", 503, True


class Recovering(KernelsvcError):
    """The session's log is being read back after a restart; try again in a moment."""

    code, http_status, retryable = "recovering", 503, True


class SandboxUnavailable(KernelsvcError):
    """This machine can't confine a session as required; run 'kernelsvc doctor'."""

    code, http_status = "sandbox_unavailable", 503


class NotSupported(KernelsvcError):
    """This kind of kernel can't do that; use a forked template."""

    code, http_status, fault = "not_supported", 501, "caller"


class Timeout(KernelsvcError):
    """The time given is over; give more, or look at the session's state."""

    code, http_status, retryable = "timeout", 504, True


class Internal(KernelsvcError):
    """Something failed on the server; its log has the details."""

    code, retryable = "internal", True


def _tree(cls: type[KernelsvcError]) -> dict[str, type[KernelsvcError]]:
    found = {} if cls is KernelsvcError else {cls.code: cls}
    for sub in cls.__subclasses__():
        found |= _tree(sub)
    return found


#: Every error by its code, for clients that rebuild one from JSON.
BY_CODE: dict[str, type[KernelsvcError]] = _tree(KernelsvcError)


def from_json(data: dict[str, Any]) -> KernelsvcError:
    """Rebuild an error from ``to_json``'s shape; an unknown code gives ``Internal``."""
    cls = BY_CODE.get(str(data.get("code")), Internal)
    return cls(str(data.get("message") or ""), **(data.get("details") or {}))
