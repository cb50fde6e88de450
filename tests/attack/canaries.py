"""What a hostile cell would like to reach: planted on the host, so that "blocked" means something."""

from __future__ import annotations

import fcntl
import glob
import importlib.util
import os
import socket
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

VARIABLE = "KERNELSVC_CANARY"
#: A program on which this machine's processes hold a shared lock.
LOCKED = "/usr/bin/env"


def _machine() -> dict[str, Any]:
    """What there is here that an attack could reach at all, with all the rights of whoever runs this."""
    capabilities = int(Path("/proc/self/status").read_text().split("CapEff:")[1].split()[0], 16)
    return {
        "disk": next((path for path in sorted(glob.glob("/dev/[svn][dv]*")) if _opens(path)), None),
        "sysrq": os.path.exists("/proc/sysrq-trigger"),
        "resource": bool(capabilities >> 24 & 1),
        "usr_local_etc": os.path.isdir("/usr/local/etc"),
        # In place of a configuration: a file beside Python that nobody needs.
        "concealed": glob.glob(os.path.join(sysconfig.get_path("purelib"), "pytest-*.dist-info", "RECORD"))[0],
        "dnotify": os.path.exists("/proc/sys/fs/dir-notify-enable"),
        "overlayfs": "\toverlay\n" in Path("/proc/filesystems").read_text(),
        "udplite": _makes_socket(socket.AF_INET, socket.SOCK_DGRAM, 136),
        "unix_oob": _sends_out_of_band(),
        "joblib": importlib.util.find_spec("joblib") is not None,
    }


def _opens(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_RDONLY))
    except OSError:
        return False
    return True


def _makes_socket(family: int, kind: int, protocol: int) -> bool:
    try:
        socket.socket(family, kind, protocol).close()
    except OSError:
        return False
    return True


def _sends_out_of_band() -> bool:
    a, b = socket.socketpair()
    with a, b:
        try:
            a.send(b"x", socket.MSG_OOB)
        except OSError:
            return False
        return True


class Canaries:
    """Secrets, sockets, a neighbour's directory and a victim process; removed on exit."""

    def __init__(self, base: str) -> None:
        self.base = base
        self._sockets: list[socket.socket] = []
        self._locked = open(LOCKED, "rb")  # noqa: SIM115 - held until the end
        self._files: list[str] = []
        self._victim: subprocess.Popen[bytes] | None = None
        self.facts: dict[str, Any] = {}

    def __enter__(self) -> Canaries:
        fcntl.flock(self._locked, fcntl.LOCK_SH)
        secret = self._plant(os.path.join(self.base, "data", "secret"))
        self._plant(os.path.join(self.base, "neighbour", "theirs"))
        tcp = self._listen(socket.AF_INET, ("127.0.0.1", 0))
        name = os.path.join(self.base, "data", "server.sock")
        self._listen(socket.AF_UNIX, name)
        abstract = f"kernelsvc-canary-{os.getpid()}"
        self._listen(socket.AF_UNIX, "\0" + abstract)
        word = f"canary-{os.getpid()}"
        self._victim = subprocess.Popen(
            [sys.executable, "-S", "-c", "import sys; sys.stdin.read()", word],
            stdin=subprocess.PIPE,
            env={VARIABLE: "secret"},
        )
        self.facts = {
            "secret": secret,
            "neighbour": os.path.join(self.base, "neighbour"),
            "locked": LOCKED,
            "tmp": self._plant(tempfile.mkstemp(prefix="kernelsvc-canary-")[1]),
            "shm": self._plant(tempfile.mkstemp(prefix="kernelsvc-canary-", dir="/dev/shm")[1]),
            "prefix": sys.prefix,
            **_machine(),
            "victim": self._victim.pid,
            "cmdline": word,
            "variable": VARIABLE,
            "port": tcp.getsockname()[1],
            "socket": name,
            "abstract": abstract,
            "interfaces": len(socket.if_nameindex()) > 1,
        }
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for closable in (self._locked, *self._sockets):
            closable.close()
        for path in self._files:
            os.unlink(path)
        if self._victim is not None:
            self._victim.kill()
            self._victim.wait()
            if self._victim.stdin:
                self._victim.stdin.close()

    def victim_lives(self) -> bool:
        """Whether the process that cells try to end is still there."""
        return self._victim is not None and self._victim.poll() is None

    def _plant(self, path: str) -> str:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="ascii") as f:
            f.write("secret")
        self._files.append(path)
        return path

    def _listen(self, family: int, address: Any) -> socket.socket:
        s = socket.socket(family)
        s.bind(address)
        s.listen()
        self._sockets.append(s)
        return s
