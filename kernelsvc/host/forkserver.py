"""Template processes of a kernel host: started, watched, started again when they die.

The guest package is copied into the host's own directory and that directory put
on the template's path, so that an environment needs ipykernel and nothing of
ours, sees nothing else of ours, and runs one version for as long as the host does.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kernelsvc
from kernelsvc.errors import Internal, KernelsvcError, Timeout
from kernelsvc.host.protocol import ForkServerSettings
from kernelsvc.linux import seqpacket

log = logging.getLogger(__name__)

_BOOT = (
    "import sys; sys.path.insert(0, sys.argv[2]); "
    "from kernelsvc.guest.forking.forkserver import main; main(int(sys.argv[1]))"
)
#: Seconds between starts of a template that keeps dying: doubled each time, up to the most.
_PAUSE, _LONGEST_PAUSE = 0.1, 10.0
#: What a template may know of the host's environment.
_INHERITED = ("LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH")
#: Keeps libraries from starting threads at import, which no fork would have.
_ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "NUMBA_THREADING_LAYER": "workqueue",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONNODEBUGRANGES": "",
}


def install_guest(directory: Path) -> Path:
    """Copy the guest package below ``directory``; returns what to put on ``sys.path``."""
    target = directory / "guest"
    package = target / "kernelsvc"
    shutil.rmtree(target, ignore_errors=True)
    source = Path(kernelsvc.__file__).parent
    shutil.copytree(source / "guest", package / "guest", ignore=shutil.ignore_patterns("__pycache__"))
    (target / "home").mkdir(mode=0o700)
    (package / "__init__.py").write_text('"""The guest part of kernelsvc, alone."""\n')
    return target


class ForkServer:
    """One template process and its successors.

    Attributes:
        about: what it said of itself when it was ready: python, versions, prefixes, pid.
        state: ``starting``, ``ready`` or ``failed``.
        message: why it failed.
    """

    def __init__(
        self, name: str, settings: ForkServerSettings, guest: Path, changed: Callable[[ForkServer], None]
    ) -> None:
        self.name = name
        self.settings = settings
        self.python = settings.python or sys.executable
        self.about: dict[str, Any] = {}
        self.state = "starting"
        self.message = ""
        self._guest = guest
        self._changed = changed
        self._channel: seqpacket.SeqpacketChannel | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._settled = asyncio.Event()
        self._pause = _PAUSE
        self._again: asyncio.TimerHandle | None = None
        self._stopped = False

    def start(self) -> None:
        """Start the process; ``wait_ready`` says when it can fork."""
        self.state, self.message = "starting", ""
        self._settled.clear()
        ours, theirs = seqpacket.pair()
        home = str(self._guest / "home")  # caches of the libraries it imports; no session sees it
        env = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        try:
            self._process = subprocess.Popen(
                [self.python, "-P", "-c", _BOOT, str(theirs.fileno()), str(self._guest)],
                env={"LANG": "C.UTF-8"} | env | _ENVIRONMENT | {"HOME": home, "MPLCONFIGDIR": home, "IPYTHONDIR": home},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
            )
        except OSError as error:
            ours.close()
            self._fail(f"{self.python} can't be started: {error.strerror}")
            return
        finally:
            theirs.close()
        self._channel = seqpacket.SeqpacketChannel(ours, self._received, self._gone, fds=0)
        self._channel.send({"preload": self.settings.preload, "path": str(self._guest)})

    @property
    def pid(self) -> int:
        """Of the running process; 0 if there is none."""
        return self._process.pid if self._process and self._channel else 0

    def describe(self) -> dict[str, Any]:
        """As ``hello`` and ``GET /v1/templates`` show it."""
        return {
            "name": self.name,
            "state": self.state,
            "python": self.about.get("python", ""),
            "executable": self.python,
            "preload": self.settings.preload,
            "versions": self.about.get("versions", {}),
            **({"message": self.message} if self.message else {}),
        }

    def _received(self, body: dict[str, Any], fds: list[int]) -> None:
        for fd in fds:
            os.close(fd)
        if body.get("ready"):
            self.about, self.state, self._pause = body, "ready", _PAUSE
            self._settled.set()
            self._changed(self)
        elif "failed" in body:
            self.message = str(body["failed"])

    def _gone(self) -> None:
        self._channel = None
        if not self._stopped:
            self._fail(self.message or "the template's process died")

    def _fail(self, why: str) -> None:
        log.error("template %s: %s; it is started again in %.1f s", self.name, why, self._pause)
        self.state, self.message = "failed", why
        self._settled.set()
        self._changed(self)
        self._again = asyncio.get_running_loop().call_later(self._pause, self.start)
        self._pause = min(_LONGEST_PAUSE, self._pause * 2)

    async def wait_ready(self, seconds: float) -> None:
        """Wait until it can fork, also through one failed start. Safe to cancel.

        Raises:
            Internal: it can't be started; the message says why.
            Timeout: it takes longer than that.
        """
        try:
            async with asyncio.timeout(seconds):
                while self.state != "ready":
                    if self.state == "failed" and self._pause > _PAUSE * 4:
                        raise self._failure()
                    self._settled.clear()
                    await self._settled.wait()
        except TimeoutError:
            raise Timeout(f"The template {self.name!r} is still starting; try again in a moment.") from None

    def _failure(self) -> KernelsvcError:
        return Internal(f"The template {self.name!r} can't be started: {self.message}. Check its python and preload.")

    def fork(self, spawn_channel: socket.socket) -> bool:
        """Have a child forked that reads its plan from ``spawn_channel``; False if the template died just now."""
        if self._channel is not None:
            try:
                socket.send_fds(self._channel.sock, [b"F"], [spawn_channel.fileno()])
                return True
            except OSError:
                log.info("template %s: gone when asked to fork", self.name)
        return False

    def reaped(self, pid: int) -> bool:
        """Whether this pid was the template's process."""
        return self._process is not None and self._process.pid == pid

    def stop(self) -> None:
        """End it; its sessions live on."""
        self._stopped = True
        if self._again is not None:
            self._again.cancel()
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._process is not None and self._process.returncode is None:
            try:
                os.kill(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:
                return
