"""The object ``tools`` in a session's namespace.

``tools.name(...)`` blocks in ordinary code, and is awaited in code that awaits. The flag of the calling frame decides.
A comprehension, a generator or a lambda counts as the code that made it. ``tools.call`` always blocks, and
``tools.start`` never does.

The object has no state. The server sends a definition when code first uses it. The names of arguments are checked
against it before anything is sent. Their types are checked by the client that carries out the call.
"""

from __future__ import annotations

import inspect
import sys
from typing import Any

from IPython.core.interactiveshell import InteractiveShell

from kernelsvc.guest.tools import tool_errors
from kernelsvc.guest.tools.calls import CallFuture, KernelCalls
from kernelsvc.guest.tools.tool_errors import ToolArgumentError

#: Code objects that have no form of their own: they run for the code that made them.
_INNER = frozenset({"<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>", "<lambda>"})
_AWAITS = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


def _calls() -> KernelCalls:
    calls: KernelCalls = InteractiveShell.instance().kernel.tool_calls
    return calls


def _awaits(frame: Any) -> bool:
    while frame is not None and frame.f_code.co_name in _INNER and not frame.f_code.co_flags & _AWAITS:
        frame = frame.f_back
    return frame is not None and bool(frame.f_code.co_flags & _AWAITS)


def _arguments(tool: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return arguments by name. One dictionary stands for all of them, unless the function's only argument is one.

    Raises:
        ToolArgumentError: An argument is too much, twice, unknown or missing.
    """
    definition = _calls().definition(tool)
    if not definition:
        return kwargs  # The server refuses the call, and names functions with similar names.
    names = definition.get("names") or []
    only = args[0] if len(args) == 1 and not kwargs else None
    if isinstance(only, dict) and (len(names) != 1 or names[0] in only):
        args, kwargs = (), only
    if why := _mismatch(definition, names, args, kwargs):
        raise ToolArgumentError(f"tools.{tool} {why}: {definition.get('signature', '')}.", tool=tool)
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _mismatch(
    definition: dict[str, Any], names: list[str], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> str | None:
    if len(args) > len(names):
        return f"takes {len(names)} arguments by position, not {len(args)}"
    given = {*names[: len(args)], *kwargs}
    if len(given) < len(args) + len(kwargs):
        return f"got {', '.join(name for name in names[: len(args)] if name in kwargs)} twice"
    schema = definition.get("parameters") or {}
    # JSON Schema: other properties are allowed unless this is false. A function of Python takes no others.
    unknown = sorted(given - set(names)) if schema.get("additionalProperties") is False else []
    if unknown:
        return f"has no argument {', '.join(unknown)}"
    missing = [name for name in schema.get("required") or [] if name not in given]
    return f"lacks the argument {', '.join(missing)}" if missing else None


class ToolFunction:
    """One function of a client, or a namespace of functions."""

    def __init__(self, name: str) -> None:
        self.__name__ = self.__qualname__ = name
        self.__module__ = "tools"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function. Awaited in code that awaits."""
        name = self.__name__
        call = _calls().begin(name, _arguments(name, args, kwargs))
        return call if _awaits(sys._getframe(1)) else call.result()

    def __getattr__(self, name: str) -> ToolFunction:
        if name.startswith("_"):
            raise AttributeError(name)
        return ToolFunction(f"{self.__name__}.{name}")

    # With this method, inspect takes the object for a routine, and help() shows its documentation.
    def __get__(self, instance: object, owner: type | None = None) -> ToolFunction:
        return self

    def __dir__(self) -> list[str]:
        return _names(f"{self.__name__}.")

    def __repr__(self) -> str:
        return f"<tools.{self.__name__}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ToolFunction) and other.__name__ == self.__name__

    def __hash__(self) -> int:
        return hash(self.__name__)

    def __reduce__(self) -> tuple[Any, ...]:
        return ToolFunction, (self.__name__,)

    def _described(self) -> str:
        found = _calls().definition(self.__name__)
        if not found:
            return f"No client offers tools.{self.__name__} now."
        return f"{found.get('signature', '')}\n\n{found.get('documentation', '')}"


# Set here, because the class statement takes a docstring of its own.
ToolFunction.__doc__ = property(ToolFunction._described)  # type: ignore[assignment]


def _names(prefix: str) -> list[str]:
    found = (str(each.get("identifier", "")) for each in _calls().ask(detail="brief"))
    return sorted({name[len(prefix) :].partition(".")[0] for name in found if name.startswith(prefix)})


class ToolNamespace:
    """Functions of the clients of this session.

    ``tools.name(...)`` calls one, ``help(tools.name)`` shows its documentation, ``tools.search("words")`` finds some.
    """

    ToolError = tool_errors.ToolError
    ToolFailed = tool_errors.ToolFailed
    ToolArgumentError = tool_errors.ToolArgumentError
    ToolDenied = tool_errors.ToolDenied
    ToolTimeout = tool_errors.ToolTimeout
    ToolUnavailable = tool_errors.ToolUnavailable
    ToolLost = tool_errors.ToolLost
    ToolLimit = tool_errors.ToolLimit
    ToolTooLarge = tool_errors.ToolTooLarge
    ToolRefused = tool_errors.ToolRefused

    def __getattr__(self, name: str) -> ToolFunction:
        if name.startswith("_"):
            raise AttributeError(name)
        return ToolFunction(name)

    def __getitem__(self, name: str) -> ToolFunction:
        return ToolFunction(str(name))

    def __dir__(self) -> list[str]:
        return ["call", "search", "start", "stubs", *_names("")]

    def __repr__(self) -> str:
        return "<tools: functions of the session's clients. tools.search('') lists them.>"

    def __reduce__(self) -> tuple[Any, ...]:
        return ToolNamespace, ()

    def call(self, name: str, arguments: dict[str, Any] | None = None) -> Any:
        """Call a function and wait for its result, also in code that awaits.

        Args:
            name: The function's name.
            arguments: Its arguments by name.

        Raises:
            ToolError: The call failed.
        """
        return self.start(name, arguments).result()

    def start(self, name: str, arguments: dict[str, Any] | None = None) -> CallFuture:
        """Send a call, and return it without waiting. Await it, or take its ``result()``."""
        return _calls().begin(name, dict(arguments or {}))

    def search(self, words: str = "", limit: int = 20) -> list[str]:
        """Return signatures of functions that match, each with the first line of its description."""
        found = _calls().ask(query=words, limit=limit, detail="brief")
        return [f"{each.get('signature', '')}  # {each.get('summary', '')}".rstrip(" #") for each in found]

    def stubs(self) -> str:
        """Return all functions as Python stubs, for an editor or a language model."""
        parts = []
        for each in _calls().ask(detail="full"):
            text = str(each.get("documentation", "")).replace("\\", "\\\\").replace('"""', "'''")
            indented = "\n".join(f"    {line}".rstrip() for line in text.splitlines())
            parts.append(f'def {each.get("signature", "")}:\n    """{indented.strip()}"""\n')
        return "\n\n".join(parts)
