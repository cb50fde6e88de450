"""The output of a program that prints a few bytes, such as a key."""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Sequence


def output_of(words: Sequence[str], *, seconds: float, most_bytes: int) -> bytes:
    """Run a program, and return what it prints. One that prints without end does not fill the memory.

    Args:
        words: The program and its arguments.
        seconds: Time for it to end. It is killed then.
        most_bytes: Most bytes of output. It is killed when it prints more.

    Raises:
        OSError: It can't be started.
        ValueError: It prints more.
        subprocess.SubprocessError: It did not end in time, or failed.
    """
    end = time.monotonic() + seconds
    printed = bytearray()
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        fd, poll = process.stdout.fileno(), select.poll()
        poll.register(fd, select.POLLIN)
        try:
            while poll.poll(max(0.0, end - time.monotonic()) * 1000):
                if not (some := os.read(fd, most_bytes + 1)):
                    break
                printed += some
                if len(printed) > most_bytes:
                    raise ValueError(f"{words[0]} prints more than {most_bytes} bytes")
            process.wait(max(0.0, end - time.monotonic()))
        except BaseException:  # Also Ctrl-C: leaving the block waits for the program.
            process.kill()
            raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, words)
    return bytes(printed)
