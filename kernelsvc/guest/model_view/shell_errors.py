"""How the shell reports an exception: IPython's traceback for people, and the lines for a model beside it.

IPython prints an exception group to stderr and reports the traceback of an earlier error in its place. A deep recursion
takes it seconds to format. Both are formatted here.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from IPython.core.error import UsageError
from jupyter_client.jsonutil import json_clean

from kernelsvc.guest import exit_calls, tracebacks
from kernelsvc.guest.model_view import errors, hints
from kernelsvc.guest.private_modules import current_directory, os, threading


class ErrorReports:
    """The part of IPython's shell that shows exceptions. Mix it into a ``ZMQInteractiveShell``."""

    #: Whether the running cell belongs to a model, which makes IPython's slow and coloured form unnecessary.
    for_model = False
    #: The lines for a model about the exception that the cell showed last.
    model_lines: list[str] | None = None
    #: Whether an error has already named the missing network.
    _named_network = False
    kernel: Any

    def showtraceback(
        self,
        exc_tuple: Any = None,
        filename: str | None = None,
        tb_offset: int | None = None,
        exception_only: bool = False,
        running_compiled_code: bool = False,
    ) -> None:
        """See ``InteractiveShell.showtraceback``."""
        shell: Any = self
        base: Any = super()
        try:
            etype, value, traceback = self._get_exc_info(exc_tuple)
        except ValueError:
            etype = value = traceback = None
        if exception_only or traceback is None or issubclass(etype, SyntaxError | UsageError):
            base.showtraceback(exc_tuple, filename, tb_offset, exception_only, running_compiled_code)
        elif self.for_model and not hasattr(value, "_render_traceback_"):
            self._showtraceback(etype, value, self._model_lines(value))
            self._debug()
        elif tracebacks.contains_group(value) and not hasattr(value, "_render_traceback_"):
            self._showtraceback(
                etype, value, tracebacks.group_lines(value, getattr(shell.compile, "_filename_map", {}))
            )
            self._debug()
        else:
            tracebacks.skip_module_search(value, getattr(shell.compile, "_filename_map", {}))
            base.showtraceback((etype, value, traceback), filename, tb_offset, False, running_compiled_code)

    #: The exception that was cleaned last, and the number of frames that it lost.
    _counted: BaseException | None = None
    _frames_left_out = 0

    def _debug(self) -> None:
        shell: Any = self
        if shell.call_pdb:
            shell.debugger(force=True)

    def _get_exc_info(self, exc_tuple: Any = None) -> tuple[Any, Any, Any]:
        base: Any = super()
        etype, evalue, traceback = base._get_exc_info(exc_tuple)
        if isinstance(evalue, BaseException):
            if evalue is not self._counted:
                self._counted = evalue
                self._frames_left_out = max(0, tracebacks.length(traceback) - tracebacks.MAX_FRAMES - 1)
            tracebacks.clean(evalue)
        return etype, evalue, tracebacks.without_own_frames(traceback)

    def _showtraceback(self, etype: Any, evalue: Any, stb: list[str]) -> None:
        model: list[str] | None = None
        if self._frames_left_out and not self.for_model:
            note = f"[{self._frames_left_out:,} frames between the first and the last are left out]"
            stb = [*stb[:-1], note, *stb[-1:]]
        if etype is asyncio.CancelledError and self.kernel.gate.cancelled:
            etype, evalue = KeyboardInterrupt, "Interrupted"
            model = ["KeyboardInterrupt: the cell was interrupted while it waited"]
            stb = [*stb[:-1], *model]
        exited = isinstance(evalue, SystemExit)
        if self.kernel.foreign:
            text = exit_calls.status_of(evalue)[1] if exited else "\n".join(stb) + "\n"
            os.write(2, text.encode("utf-8", "replace"))
            return
        stb = exit_calls.in_session(evalue, stb) if exited else stb
        if model is None and isinstance(evalue, BaseException):
            model = stb if self.for_model and not exited else self._model_lines(evalue)
        if not self._named_network and isinstance(evalue, BaseException) and (fact := hints.no_network(evalue)):
            self._named_network = True
            stb = stb if self.for_model else [*stb, fact]
        # The streams of ``sys`` are flushed, whatever they are.
        with self.kernel.streams.in_place():
            self._send(etype, evalue, stb, model)

    def _send(self, etype: Any, evalue: Any, stb: list[str], model: list[str] | None) -> None:
        """Send the error as ``ZMQInteractiveShell._showtraceback`` does, with one more field."""
        shell: Any = self
        sys.stdout.flush()
        sys.stderr.flush()
        hook = shell.displayhook
        if getattr(hook, "msg", None) is not None:
            shell._last_traceback_during_displayhook = True
        content = {"traceback": stb, "ename": str(etype.__name__), "evalue": str(evalue)}
        self.model_lines = model
        if model:
            content["model"] = model
        topic = hook.topic.replace(b"execute_result", b"error") if hook.topic else None
        hook.session.send(hook.pub_socket, "error", json_clean(content), hook.parent_header, ident=topic)
        shell._last_traceback = stb

    def report_thread(self, args: Any) -> None:
        """Print the exception that ended a thread: for a model without the frames of ``threading``.

        Args:
            args: as ``threading.excepthook`` gets them.
        """
        if not self.for_model or args.exc_value is None or issubclass(args.exc_type, SystemExit):
            threading.__excepthook__(args)
            return
        name = args.thread.name if args.thread is not None else "?"
        lines = errors.lines_of(args.exc_value, errors.shell_places(self, current_directory()))
        sys.stderr.write("\n".join([f"Exception in thread {name}:", *lines, ""]))

    def _model_lines(self, error: BaseException) -> list[str]:
        lines = errors.lines_of(error, errors.shell_places(self, current_directory()), self._frames_left_out)
        fact = hints.hint(error)
        return lines if fact is None else [*lines, f"[hint] {fact}"]
