"""The limit column: the best possible figures of the machine. ``python -m benchmarks.floor`` prints JSON.

Each figure has the unit of its row. The module runs in a process of its own, because one measurement forks, and another
one imports IPython, numpy and pandas.
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
    """Return the median milliseconds of a call."""
    samples = []
    for _ in range(times):
        begun = time.perf_counter()
        action()
        samples.append((time.perf_counter() - begun) * 1e3)
    return percentile(samples, 0.5)


def run_cell() -> float:
    """Measure ``1+1`` in IPython's shell, in this process."""
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    shell = InteractiveShell.instance()
    with capture_output():
        shell.run_cell("1+1")
        return timed(lambda: shell.run_cell("1+1"), 300)


def bare_fork() -> float:
    """Measure from the fork of a process with the imports to a byte from the child."""
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
    """Measure the round trip of a byte to another process, over a Unix socket."""
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
    """Measure an append of the size of a journal line with ``fdatasync``, on the disk of the benchmark's data."""
    with tempfile.NamedTemporaryFile(dir=sys.argv[1] if len(sys.argv) > 1 else None) as file:

        def append() -> None:
            os.write(file.fileno(), b"x" * 300)
            os.fdatasync(file.fileno())

        return timed(append, 300)


def pipe_lines(count: int = 100_000) -> float:
    """Return the milliseconds for a number of printed lines through a pipe, to a reader without a parser."""
    code = f"for i in range({count}): print(i, flush=True)"

    def stream() -> None:
        import subprocess

        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            while process.stdout.read1(65536):
                pass

    return timed(stream, 3)


def main() -> None:
    """Measure all of them. The fork comes first, before a library can start a thread."""
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
