"""Commands of the command line in this process: the imports of a new Python take most of the time of a command."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping
from unittest import mock

from kernelsvc.cli import main


def kernelsvc(*words: str, env: Mapping[str, str], input: str = "", code: int = 0) -> tuple[str, str]:
    """Run a command that must end with this status. Return its output and errors."""
    stdin, stdout, stderr = (io.TextIOWrapper(io.BytesIO(text), "utf-8") for text in (input.encode(), b"", b""))
    streams = mock.patch.multiple(sys, stdin=stdin, stdout=stdout, stderr=stderr)
    with mock.patch.dict(os.environ, env, clear=True), streams:
        try:
            status = main(words)
        except SystemExit as error:
            status = error.code
    stdout.flush()
    stderr.flush()
    out, err = stdout.buffer.getvalue().decode(), stderr.buffer.getvalue().decode()
    assert status == code, f"{words}: {status}\n{out}\n{err}"
    return out, err
