"""The limit column: what the same machine could do at best. ``python -m benchmarks.floor`` prints JSON.

Each figure is in the unit of the measure that it stands beside. Run in a
process of its own, because one of them forks and another loads half a
scientific stack.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable

from benchmarks.figures import percentile


def timed(action: Callable[[], object], times: int) -> float:
    """Median milliseconds of one call."""
    samples = []
    for _ in range(times):
        begun = time.perf_counter()
        action()
        samples.append((time.perf_counter() - begun) * 1e3)
    return percentile(samples, 0.5)


def run_cell() -> float:
    """``1+1`` in IPython's own shell, in process."""
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    shell = InteractiveShell.instance()
    with capture_output():
        shell.run_cell("1+1")
        return timed(lambda: shell.run_cell("1+1"), 300)


def bare_fork() -> float:
    """From the fork of a process that has the imports to a byte from the child."""
    import matplotlib.pyplot  # noqa: F401
    import numpy  # noqa: F401
    import pandas  # noqa: F401

    def fork() -> None:
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.write(writer, b"x")
            os._exit(0)
        os.close(writer)
        os.read(reader, 1)
        os.close(reader)
        os.waitpid(pid, 0)

    return timed(fork, 50)


def socket_echo() -> float:
    """A byte to another process over a Unix socket and back."""
    here, there = socket.socketpair()
    if os.fork() == 0:
        here.close()
        while there.recv(64):
            there.send(b"x")
        os._exit(0)
    there.close()

    def ping() -> None:
        here.send(b"x")
        here.recv(64)

    median = timed(ping, 2000)
    here.close()
    os.wait()
    return median


def sync() -> float:
    """Append a journal line's worth and ``fdatasync`` it, where the benchmark's data lies."""
    with tempfile.NamedTemporaryFile(dir=sys.argv[1] if len(sys.argv) > 1 else None) as file:

        def append() -> None:
            os.write(file.fileno(), b"x" * 300)
            os.fdatasync(file.fileno())

        return timed(append, 300)


def pipe_lines(count: int = 100_000) -> float:
    """Milliseconds for so many printed lines through a bare pipe to a reader that parses nothing."""
    code = f"for i in range({count}): print(i, flush=True)"

    def stream() -> None:
        import subprocess

        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            while process.stdout.read1(65536):
                pass

    return timed(stream, 3)


def main() -> None:
    """Measure all of them; fork before anything may have started a thread."""
    echo, fork, cell = socket_echo(), bare_fork(), run_cell()
    cores = os.cpu_count() or 1
    found = {
        "socket_echo": echo,
        "delay": echo,
        "fdatasync": sync(),
        **dict.fromkeys(("create", "checkpoint", "branch"), fork),
        "prints": (prints := pipe_lines()),
        "lines": 100_000 / prints * 1e3,
        "cell": cell,
        **dict.fromkeys(("busy_10", "busy_100"), cores * 1e3 / cell),
    }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
