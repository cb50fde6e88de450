"""The exceptions that a call of a client's function raises in code.

Each has a built-in base class, so that ``except`` clauses for ordinary functions catch it: a denied call is a
``PermissionError``, a late one a ``TimeoutError``.
"""

from __future__ import annotations

import builtins
from typing import Any


class ToolError(Exception):
    """A call of a client's function failed.

    Attributes:
        tool: The function's name.
        call: The call's id in the log.
        status: How the call ended, for example ``denied``.
        type: The name of the exception in the client.
        message: The cause.
        data: More facts from the client, or None.
    """

    status = ""

    def __init__(
        self, message: str, *, tool: str = "", call: str = "", status: str = "", type: str = "", data: Any = None
    ) -> None:
        super().__init__(message)
        self.message, self.tool, self.call, self.type, self.data = message, tool, call, type, data
        self.status = status or self.status

    def __str__(self) -> str:
        # KeyError's own __str__ would quote it.
        return self.message


class ToolFailed(ToolError):
    """The function raised an exception. If that was a built-in one, this exception is of that class, too."""

    status = "error"


class ToolArgumentError(ToolError, TypeError):
    """The arguments do not fit the function."""


class ToolDenied(ToolError, PermissionError):
    """A person denied the call, or the time to decide is over."""


class ToolTimeout(ToolError, TimeoutError):
    """The client did not answer in the time of the function. The call may have been carried out."""


class ToolUnavailable(ToolError, ConnectionError):
    """No client that offers the function is connected. The call was not carried out."""


class ToolLost(ToolError, ConnectionError):
    """The client went away during the call. The call may have been carried out."""


class ToolLimit(ToolError):
    """The cell or the session may not call the function again."""


class ToolTooLarge(ToolError, ValueError):
    """The arguments or the result are too large. Pass a file's name instead."""


class ToolRefused(ToolError, NameError):
    """There is no such function, or the cell may not call it."""


class ToolCancelled(ToolError):
    """The call was cancelled."""


_BY_STATUS: dict[str, type[ToolError]] = {
    "error": ToolFailed,
    "denied": ToolDenied,
    "expired": ToolDenied,
    "timeout": ToolTimeout,
    "unavailable": ToolUnavailable,
    "lost": ToolLost,
    "limit": ToolLimit,
    "too_large": ToolTooLarge,
    "refused": ToolRefused,
    "cancelled": ToolCancelled,
}
#: A client may raise these by their names, for example to repeat a recorded call.
_BY_NAME: dict[str, type[ToolError]] = {"ToolArgumentError": ToolArgumentError}
_BY_NAME.update((each.__name__, each) for each in _BY_STATUS.values())
#: Exceptions of a client that code can catch by their own names. Others need arguments that are no text, or end code.
_BUILT_IN = frozenset({
    "ArithmeticError", "AssertionError", "AttributeError", "BufferError", "ConnectionAbortedError", "ConnectionError",
    "ConnectionRefusedError", "ConnectionResetError", "EOFError", "FileExistsError", "FileNotFoundError", "ImportError",
    "IndexError", "InterruptedError", "IsADirectoryError", "KeyError", "LookupError", "ModuleNotFoundError",
    "NotADirectoryError", "NotImplementedError", "OSError", "OverflowError", "PermissionError", "RuntimeError",
    "TimeoutError", "TypeError", "ValueError", "ZeroDivisionError",
})  # fmt: skip
_made: dict[str, type[ToolError]] = {}


def error_of(tool: str, call: str, status: str, error: Any) -> ToolError:
    """Return the exception for the end of a call.

    Args:
        tool: The function's name.
        call: The call's id.
        status: How it ended. Not ``ok``.
        error: ``type``, ``message`` and perhaps ``data``, from the server.
    """
    facts = error if isinstance(error, dict) else {}
    kind, message = str(facts.get("type", "")), str(facts.get("message", "")) or f"The call ended: {status}."
    traceback = facts.get("traceback")
    if isinstance(traceback, str):
        message += f"\n\n{traceback}"
    made = _BY_STATUS.get(status, ToolError)
    if status == "error":
        made = _BY_NAME.get(kind) or _class_for(kind)
    return made(message, tool=tool, call=call, status=status, type=kind, data=facts.get("data"))


def _class_for(name: str) -> type[ToolError]:
    """Return a class that is ``ToolFailed`` and the built-in exception of this name, made once."""
    if name not in _BUILT_IN:
        return ToolFailed
    if name not in _made:
        # ``builtins`` may have been changed by user code: then only ToolFailed is left.
        built_in = getattr(builtins, name, None)
        if not (isinstance(built_in, type) and issubclass(built_in, Exception)):
            return ToolFailed
        _made[name] = type(f"Tool{name}", (ToolFailed, built_in), {"__module__": __name__, "__doc__": built_in.__doc__})
    return _made[name]
