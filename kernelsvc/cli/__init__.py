"""The command line. ``parser`` lists the commands. The module of a command is imported when the command runs.

Exit codes:

* 0: success.
* 1: a cell failed, a record is not as it was written, a replay differs, or a layer of confinement is missing.
* 2: the command line is not valid.
* 3: the server or this machine refused, or a record is not proven. The message gives the reason.
* 4: no server answers.
* 130: stopped by Ctrl-C.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import io
import os
import sys
from collections.abc import Sequence

from kernelsvc.cli.parser import build_parser
from kernelsvc.cli.terminal import Terminal
from kernelsvc.errors import KernelsvcError

OK, FAILED, USAGE, REFUSED, UNREACHABLE, INTERRUPTED = 0, 1, 2, 3, 4, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments after ``kernelsvc``. None means those of the process.

    Returns:
        the exit code.
    """
    parser = build_parser()
    args, unknown = parser.parse_known_args(argv)
    if unknown:  # argparse would print the usage of the whole program, which lists no options
        parser.exit(USAGE, f"kernelsvc: Unknown: {' '.join(unknown)}. '{args.words} --help' lists the options.\n")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A kernel may print characters that the terminal's encoding lacks. Escape them instead of failing.
            stream.reconfigure(errors="backslashreplace")
    terminal = Terminal()
    try:
        command = getattr(importlib.import_module(args.module), args.function)
        result = command(args, terminal)
        return int(asyncio.run(result) if inspect.iscoroutine(result) else result)
    except KernelsvcError as error:
        return _report_error(error, terminal)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of the output has exited ("| head"). Python also flushes stdout at exit, and would report the same
        # error again: docs.python.org/3/library/signal.html#note-on-sigpipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK


def _report_error(error: KernelsvcError, terminal: Terminal) -> int:
    terminal.progress("")
    terminal.message(f"kernelsvc: {error.message}", "red")
    for reason in error.details.get("reasons", []):
        terminal.message(f"  {reason}", "red")
    return {"unreachable": UNREACHABLE, "bad_request": USAGE}.get(error.code, REFUSED)
