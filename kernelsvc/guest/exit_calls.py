"""``exit()`` and similar calls in a session: they end the code that calls them, and not the kernel.

``exit()``, ``quit()``, ``sys.exit()``, ``raise SystemExit``, ``ask_exit`` and ``do_shutdown`` all raise ``SystemExit``.
IPython would set a flag for some of them, and ipykernel would end the process at the next request, which loses all
variables and that request.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from typing import Any, NoReturn

from ipykernel.zmqshell import ZMQExitAutocall
from IPython.core import interactiveshell
from IPython.core.events import EventManager

NOTE = "An exit ends the code that calls it, not the session: all variables are kept. To end the session, close it."
#: IPython's advice about a SystemExit. It names commands that do the same as the one that was used.
_ADVICE = "To exit: use"
#: The first line of IPython's short traceback. ``NOTE`` takes its place.
_HEADING = "An exception has occurred, use %tb"


class Exiter(ZMQExitAutocall):  # type: ignore[misc]
    """``exit`` and ``quit`` of a session. IPython calls it when it is named without parentheses."""

    def __call__(self, code: object = None, keep_kernel: bool = False) -> NoReturn:
        """Raise SystemExit, as Python's own does.

        Args:
            code: the exit status, or a text.
            keep_kernel: ignored, accepted because ipykernel's function has it. The kernel always continues.

        Raises:
            SystemExit: always.
        """
        raise SystemExit if code is None else SystemExit(code)

    def __repr__(self) -> str:
        return f"exit(). {NOTE}"


class SessionHooks(EventManager):  # type: ignore[misc]
    """IPython's events, with one difference: a hook that exits fails as one that raises any other exception.

    IPython lets a ``SystemExit`` through. A ``pre_run_cell`` hook that exits would then end every later cell before
    its code runs, also the cell that would unregister the hook.
    """

    def trigger(self, event: str, *args: Any, **kwargs: Any) -> None:
        """Call the hooks of an event. See ``EventManager.trigger``."""
        for hook in self.callbacks[event][:]:
            try:
                hook(*args, **kwargs)
            except (Exception, KeyboardInterrupt, SystemExit):
                print(f"Error in callback {hook} (for {event}):")  # noqa: T201  as IPython does
                self.shell.showtraceback()


#: The SystemExit that a cell has shown last.
_shown: BaseException | None = None


def in_session(error: SystemExit, lines: list[str]) -> list[str]:
    """The traceback of a SystemExit, with ``NOTE`` in the place of IPython's heading."""
    global _shown
    _shown = error
    return [NOTE, *(line for line in lines if not line.startswith(_HEADING))]


def report_exit(error: BaseException, where: str) -> None:
    """Write to stderr that code which no cell waits for has exited. Other exceptions have reports of their own.

    A task that exits raises its SystemExit in the event loop and in the cell that awaits it. The cell's error suffices.
    """
    if isinstance(error, SystemExit) and error is not _shown:
        with contextlib.suppress(Exception):
            print(f"SystemExit in {where}: {error}\n{NOTE}", file=sys.stderr)  # noqa: T201  stderr may be None


def status_of(error: SystemExit) -> tuple[int, str]:
    """The status and the text with which Python would end a process (``sys.exit`` in Python's library reference)."""
    if error.code is None or isinstance(error.code, int):
        return (error.code or 0) & 0xFF, ""
    return 1, f"{error.code}\n"


def without_advice() -> None:
    """Have IPython raise no warning at a SystemExit.

    A filter would not do: user code may reset the filters, and turns warnings into errors with them.
    """
    # The module's global, which IPython looks up at each call.
    interactiveshell.warn = _warn


def _warn(message: Any, category: type[Warning] | None = None, stacklevel: int = 1, **more: Any) -> None:
    if not str(message).startswith(_ADVICE):
        warnings.warn(message, category, stacklevel + 1, **more)
