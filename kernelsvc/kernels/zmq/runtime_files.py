"""The files of a kernelspec kernel, and its raw output.

::

    <runtime>/c<12 hex of the kernel's id>/     0700, the server's
        kernel.json     how to reach the kernel: the server's own copy, which the kernel can't change
        open            ids of execute requests that have not ended
        out, err        FIFOs behind descriptors 1 and 2
        k/              shared with the kernel: its connection file, its sockets, IPython's directory

The names are short: the path of a Unix socket has at most 107 bytes (unix(7)).

The kernel's descriptors 1 and 2 are FIFOs opened for reading *and* writing. So a reader exists while no server does:
output waits, and blocks when 64 KiB are full (pipe(7)), instead of raising SIGPIPE.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from kernelsvc.errors import Internal
from kernelsvc.kernels.read_budget import ReadBudget
from kernelsvc.kernels.zmq.channels import ChannelAddresses
from kernelsvc.kernels.zmq.messages import HmacKey
from kernelsvc.linux import atomic_file

#: Maximum bytes of a socket's path (unix(7)).
MAX_SOCKET_PATH = 107
#: Maximum bytes of one read from a FIFO: its capacity (pipe(7)).
RAW_SLICE = 64 * 1024
#: Bytes of the file of open requests, which is overwritten in place.
OPEN_BYTES = 8192

#: Configuration for every kernel that is built on ipykernel, in any language.
#:
#: ipykernel would capture descriptors 1 and 2, publish the output and echo it to the original descriptors, which the
#: server reads, too. Without its capture ``fileno()`` raises, as does ``subprocess.run(..., stdout=sys.stdout)``, so
#: it gets the real descriptors. Its iopub would drop output when the machine is busy and 1,000 messages wait
#: in the kernel. Without a high-water mark they wait in the kernel's own memory, which is limited.
IPYTHON_CONFIG = """\
c.IPKernelApp.capture_fd_output = False
c.HistoryManager.hist_file = ":memory:"
try:
    import zmq
    from ipykernel.iostream import OutStream
    from ipykernel.kernelapp import IPKernelApp

    def init_iopub(self, context, original=IPKernelApp.init_iopub):
        context.setsockopt(zmq.SNDHWM, 0)
        return original(self, context)
except (ImportError, AttributeError):
    pass
else:
    IPKernelApp.init_iopub = init_iopub
    OutStream.fileno = lambda self: 1 if self.name == "stdout" else 2
"""

StreamName = Literal["stdout", "stderr"]


class ZmqKernelRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The data that another server needs to continue with a kernel."""

    kernel: str
    key: str
    scheme: str
    ports: dict[str, int]
    identity: str
    interrupt_mode: str
    language: str
    python: str = ""


class KernelRuntimeDir:
    """The files of one kernel. ``make`` creates them."""

    def __init__(self, runtime: Path, kernel: str) -> None:
        self.root = runtime / ("c" + hashlib.sha256(kernel.encode()).hexdigest()[:12])
        self.share = self.root / "k"
        self.socket_prefix = str(self.share / "s")
        self.connection_file = str(self.share / "c.json")
        self.ipython = str(self.share / "i")
        self._open_fd = -1

    def make(self) -> None:
        """Make the directories and the FIFOs.

        Raises:
            Internal: the path of the runtime directory is too long, or the disk failed.
        """
        if len(os.fsencode(self.socket_prefix)) + len("-99") > MAX_SOCKET_PATH:
            raise Internal("The runtime directory's path is too long for a socket. Choose a shorter one.")
        self.remove()  # a kernel id is never used twice, so these files are those of a start that crashed
        try:
            self.root.mkdir(mode=0o700, parents=True)
            profile = Path(self.ipython) / "profile_default"
            for directory in (self.share, Path(self.ipython), profile):
                directory.mkdir(mode=0o700)
            (profile / "ipython_kernel_config.py").write_text(IPYTHON_CONFIG)
            for name in ("out", "err"):
                os.mkfifo(self.root / name, 0o600)
        except OSError as error:
            raise Internal(
                f"Making files in the runtime directory failed ({error.strerror}). Check its owner and the disk."
            ) from error

    def remove(self) -> None:
        """Remove all files. The kernel's part is hostile: links in it are removed, not followed."""
        self.close()
        shutil.rmtree(self.root, ignore_errors=True)

    def close(self) -> None:
        """Close the file of open requests."""
        if self._open_fd >= 0:
            os.close(self._open_fd)
            self._open_fd = -1

    def kernel_fd(self, name: StreamName) -> int:
        """Open the kernel's descriptor 1 or 2. The caller closes it."""
        return os.open(self.root / name.removeprefix("std"), os.O_RDWR | os.O_CLOEXEC)

    def reader_fd(self, name: StreamName) -> int:
        """Open the server's end of that FIFO. The caller closes it."""
        return os.open(self.root / name.removeprefix("std"), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    def write_record(self, record: ZmqKernelRecord) -> None:
        """Write the record for another server. It holds the key, so its mode is 0600."""
        atomic_file.replace_bytes(self.root / "kernel.json", msgspec.json.encode(record))

    def read_record(self) -> ZmqKernelRecord | None:
        """Return the record of an earlier server, or None."""
        try:
            return msgspec.json.decode((self.root / "kernel.json").read_bytes(), type=ZmqKernelRecord)
        except (OSError, msgspec.DecodeError):
            return None

    def write_open(self, ids: Sequence[str]) -> None:
        """Write the ids of requests that have not ended, in one write(2), so that a crash can't tear the file."""
        if self._open_fd < 0:
            flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
            self._open_fd = os.open(self.root / "open", flags, 0o600)
        ids = list(ids)
        while len(data := msgspec.json.encode(ids)) > OPEN_BYTES:
            ids.pop(0)
        os.pwrite(self._open_fd, data.ljust(OPEN_BYTES), 0)

    def read_open(self) -> list[str]:
        """Return the ids that an earlier server wrote."""
        try:
            return msgspec.json.decode((self.root / "open").read_bytes(), type=list[str])
        except (OSError, msgspec.DecodeError):
            return []


def addresses_of(runtime_dir: KernelRuntimeDir, record: ZmqKernelRecord, pid: int) -> tuple[ChannelAddresses, HmacKey]:
    """Return the addresses of the kernel's sockets, from the server's own record, and the key."""
    ports: dict[Any, int] = dict(record.ports)
    return (
        ChannelAddresses(path=runtime_dir.socket_prefix, ports=ports, identity=record.identity, pid=pid or None),
        HmacKey(record.key.encode(), record.scheme),
    )


class StdioFifos:
    """Reads the text that C code and subprocesses write to descriptors 1 and 2. Owns its descriptors.

    Args:
        runtime_dir: has the FIFOs.
        on_text: receives the text.
        budget: the kernel's share of the event loop, which the caller closes.
    """

    def __init__(
        self, runtime_dir: KernelRuntimeDir, on_text: Callable[[StreamName, str], None], budget: ReadBudget
    ) -> None:
        self._on_text = on_text
        self._budget = budget
        self._hold: asyncio.TimerHandle | None = None  # nothing is read until it fires
        self._paused = False
        self._loop = asyncio.get_running_loop()
        names: tuple[StreamName, ...] = ("stdout", "stderr")
        self._fds = {name: runtime_dir.reader_fd(name) for name in names}
        make = codecs.getincrementaldecoder("utf-8")
        self._decoders = {name: make("replace") for name in names}
        self.resume()

    def pause(self) -> None:
        """Stop reading. A full FIFO blocks the kernel."""
        self._paused = True
        self._unwatch()

    def _unwatch(self) -> None:
        for fd in self._fds.values():
            self._loop.remove_reader(fd)

    def resume(self) -> None:
        """Continue to read."""
        self._paused = False
        if self._hold is None:
            for name, fd in self._fds.items():
                self._loop.add_reader(fd, self._on_readable, name)

    def _on_readable(self, name: StreamName) -> None:
        started = self._loop.time()
        text = self._read(name)
        if text:
            self._on_text(name, text)
        now = self._loop.time()
        seconds = self._budget.charge(now - started, now)
        if seconds and self._hold is None:
            self._unwatch()
            self._hold = self._loop.call_later(seconds, self._end_hold)

    def _end_hold(self) -> None:
        self._hold = None
        if not self._paused:
            self.resume()

    def _read(self, name: StreamName) -> str:
        """Return one slice, decoded, or "" if there is none."""
        fd = self._fds.get(name)
        if fd is None:
            return ""
        try:
            data = os.read(fd, RAW_SLICE)
        except BlockingIOError:
            return ""
        if not data:  # no writer is left, and the descriptor stays readable
            self._loop.remove_reader(fd)
        return self._decoders[name].decode(data)

    def read_rest(self) -> list[tuple[StreamName, str]]:
        """Return the text in the FIFOs at this moment, without passing it to ``on_text``."""
        return [(name, text) for name in self._fds if (text := self._read(name))]

    def close(self) -> None:
        """Close the descriptors. Idempotent."""
        self.pause()
        if self._hold is not None:
            self._hold.cancel()
        fds, self._fds = self._fds, {}
        for fd in fds.values():
            with contextlib.suppress(OSError):
                os.close(fd)
