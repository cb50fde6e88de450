"""``input()`` of cells where no client is asked: a replaced ``sys.stdin``, and nobody who answers."""

from __future__ import annotations

from typing import TextIO

from IPython.core.error import StdinNotImplementedError

NOTE = "input() was called, but the client answers no input requests. Put the value in the code."


class NobodyToAsk(StdinNotImplementedError, EOFError):  # type: ignore[misc]
    """``input()`` without a client that answers: ipykernel's error, and for other code the end of the input."""


# As ipykernel names it.
NobodyToAsk.__name__ = NobodyToAsk.__qualname__ = StdinNotImplementedError.__name__


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
