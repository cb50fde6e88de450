"""Convert a notebook to HTML or to a script, by nbconvert in a confined process of its own.

nbconvert takes a second to import and blocks the interpreter while it works. So each conversion runs in a new child
process: the event loop does not stall, and the server's memory does not grow. The child gets the notebook on stdin and
none of the server's environment.

A notebook's outputs come from untrusted code, and the parsers of HTML, CSS, Markdown and source code are large. So the
child confines itself after its imports and before it reads the first byte (``_confine``): rlimits, Landlock (it reads
the Python environment and the system's libraries, nothing of the data directory), and a seccomp filter without sockets,
exec, new processes and opening files for writing. At most one conversion for each core runs, each principal has at most
one that waits, and all others are refused (``ConverterQueue``).

``html_export`` cleans each part of the page. In addition, the page has a content security policy (CSP Level 3) under
which no script runs and nothing is loaded.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import platform
import resource
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

from kernelsvc.errors import AtCapacity, Internal, Timeout, TooLarge
from kernelsvc.guest.confine import linux
from kernelsvc.sandbox.seccomp import converter_program
from kernelsvc.sandbox.syscall_table import AUDIT_ARCH

Format = Literal["html", "py"]

#: Seconds that one conversion may take.
SECONDS = 120.0
#: Bytes of address space of one conversion. A notebook of 64 MiB takes about 1 GiB.
MEMORY_BYTES = 2 << 30
#: Most bytes of a converted notebook.
OUTPUT_BYTES = 512 << 20
#: Bytes of the child's error messages that are read.
_ERROR_BYTES = 64 * 1024
#: Conversions of all principals that wait at one time.
MAX_WAITING = 32


class ConverterQueue:
    """Limits conversions: at most one for each core runs, and each principal has at most one that waits.

    Args:
        running: Most conversions at one time. Default: the cores that this process may use.
    """

    def __init__(self, running: int | None = None) -> None:
        self._turns = asyncio.Semaphore(running or len(os.sched_getaffinity(0)))
        self._waiting: set[str] = set()

    @contextlib.asynccontextmanager
    async def turn(self, principal: str) -> AsyncIterator[None]:
        """Wait for a turn, and hold it. Safe to cancel.

        Raises:
            AtCapacity: A conversion of this principal waits already, or too many wait.
        """
        if self._turns.locked() and (principal in self._waiting or len(self._waiting) >= MAX_WAITING):
            raise AtCapacity("Other notebooks are being converted. Wait for yours, or export this one as ipynb.")
        self._waiting.add(principal)
        try:
            await self._turns.acquire()
        finally:
            self._waiting.discard(principal)
        try:
            yield
        finally:
            self._turns.release()


def _command(format: Format) -> list[str]:
    # -I: the child ignores PYTHON* variables, the user's site directory and the working directory.
    return [sys.executable, "-I", "-m", "kernelsvc.store.convert", format]


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TZ", "SYSTEMROOT") if name in os.environ}
    return {**kept, "JUPYTER_PREFER_ENV_PATH": "1", "HOME": "/nonexistent", "PYTHONUTF8": "1"}


async def convert(notebook: bytes, format: Format) -> bytes:
    """Convert ``.ipynb`` bytes. Safe to cancel: the child is killed.

    Raises:
        Timeout: It took longer than ``SECONDS``.
        TooLarge: It took more than ``MEMORY_BYTES``, or its result is larger than ``OUTPUT_BYTES``.
        Internal: nbconvert failed.
    """
    child = await asyncio.create_subprocess_exec(
        *_command(format),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=_environment(),
        # Nothing of the server's directory is open through it.
        cwd="/",
    )
    try:
        async with asyncio.timeout(SECONDS):
            out, err, _ = await asyncio.gather(
                _read(child.stdout), _read_end(child.stderr), _feed(child.stdin, notebook)
            )
            await child.wait()
    except TimeoutError:
        raise Timeout(f"Converting the notebook took longer than {SECONDS:g} s. Export it as ipynb instead.") from None
    finally:
        if child.returncode is None:
            child.kill()
            # ``wait`` returns after both pipes have ended, and a pipe that is full is not read by itself.
            await asyncio.gather(_discard(child.stdout), _discard(child.stderr))
            await child.wait()
    return _result(child.returncode, out, err, format)


async def _read(stream: asyncio.StreamReader | None) -> bytes:
    """Return what the child wrote, which may be under an attacker's control.

    Raises:
        TooLarge: It wrote more than ``OUTPUT_BYTES``.
    """
    assert stream is not None
    parts: list[bytes] = []
    size = 0
    while part := await stream.read(1 << 16):
        parts.append(part)
        size += len(part)
        if size > OUTPUT_BYTES:
            raise TooLarge(f"The converted notebook is larger than {OUTPUT_BYTES >> 20} MiB. Export it as ipynb.")
    return b"".join(parts)


async def _read_end(stream: asyncio.StreamReader | None) -> bytes:
    """Return the end of what the child wrote to a stream, at most ``_ERROR_BYTES``."""
    assert stream is not None
    end = b""
    while part := await stream.read(1 << 16):
        end = (end + part)[-_ERROR_BYTES:]
    return end


async def _discard(stream: asyncio.StreamReader | None) -> None:
    assert stream is not None
    with contextlib.suppress(RuntimeError):  # Another task still reads it.
        while await stream.read(1 << 16):
            pass


async def _feed(stream: asyncio.StreamWriter | None, data: bytes) -> None:
    assert stream is not None
    # A child that ended early closes the pipe. Its exit status says why.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        stream.write(data)
        await stream.drain()
    stream.close()


def _result(status: int | None, out: bytes, err: bytes, format: Format) -> bytes:
    if status != 0:
        last = err.decode("utf-8", "replace").strip().splitlines()[-1:] or [f"exit status {status}"]
        if last[0].startswith("MemoryError"):
            raise TooLarge(f"Converting the notebook takes more than {MEMORY_BYTES >> 20} MiB. Export it as ipynb.")
        raise Internal(f"The notebook could not be converted to {format}. Export it as ipynb.", reason=last[0][:500])
    return out


def to_script(notebook: bytes) -> str:
    """Return the notebook as a script with translated magics. Imports nbconvert, so call it in the child."""
    import nbformat
    from nbconvert import PythonExporter, ScriptExporter

    nb = nbformat.reads(notebook.decode(), as_version=4)
    python = json.loads(notebook)["metadata"].get("language_info", {}).get("name") == "python"
    script, _ = (PythonExporter() if python else ScriptExporter()).from_notebook_node(nb)
    return str(script)


def _confine() -> None:
    """Give up what a conversion does not need. Call it after the imports and before the notebook is read.

    What Linux does not offer is left out, except the rlimits: the notebook's cleaning does not depend on this.

    Raises:
        OSError: A layer that Linux offers could not be applied.
    """
    seconds = round(SECONDS)
    limits = {
        resource.RLIMIT_AS: MEMORY_BYTES,
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
    }
    for limit, most in limits.items():
        _, hard = resource.getrlimit(limit)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(limit, (most, most))
    # Without it, any process of the same user could attach to it, and it to them (prctl(2)).
    linux.prctl(linux.PR_SET_DUMPABLE, 0)
    linux.prctl(linux.PR_SET_PDEATHSIG, 9)
    if linux.landlock_abi():
        linux.landlock([(path, "read") for path in _readable()], scope=True)
    else:
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    if platform.machine() in AUDIT_ARCH:
        linux.install_filter(converter_program(platform.machine()))


def _readable() -> list[str]:
    """Return the directories that a conversion reads: libraries, templates, the time zone and the MIME types."""
    package = str(Path(__file__).parents[1])
    wanted = {sys.prefix, sys.base_prefix, *sys.path, package, "/usr", "/lib", "/lib64", "/etc/mime.types"}
    wanted |= {"/etc/localtime", "/dev/urandom"}
    return sorted(path for path in wanted if path and os.path.exists(path) and path != "/")


def _main() -> None:
    # Imported first: Landlock and the filter would refuse parts of an import.
    if sys.argv[1] == "html":
        from kernelsvc.store.html_export import to_html as to_text
    else:
        import nbconvert  # noqa: F401

        to_text = to_script
    _confine()
    text = to_text(sys.stdin.buffer.read())
    sys.stdout.buffer.write(text.encode("utf-8", "replace"))


if __name__ == "__main__":
    _main()
