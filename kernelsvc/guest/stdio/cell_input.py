"""``input()`` of cells where no client is asked: a replaced ``sys.stdin``, and clients that do not answer."""

from __future__ import annotations

from typing import TextIO

from IPython.core.error import StdinNotImplementedError

NOTE = "input() was called, but the client answers no input requests. Put the value in the code."


class NoInputRequests(StdinNotImplementedError, EOFError):  # type: ignore[misc]
    """``input()`` without a client that answers: ipykernel's error, and for other code the end of the input."""


# As ipykernel names it.
NoInputRequests.__name__ = NoInputRequests.__qualname__ = StdinNotImplementedError.__name__


def read_line(stream: TextIO, prompt: object) -> str:
    """Print the prompt and return the next line, as Python's ``input`` does.

    Raises:
        EOFError: there is none.
    """
    print(prompt, end="", flush=True)  # noqa: T201
    line = stream.readline()
    if not line:
        raise EOFError("EOF when reading a line")
    return line.removesuffix("\n")
