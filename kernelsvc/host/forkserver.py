"""Fork servers of a kernel host: started, watched, restarted when they end.

The guest package is copied into the host's runtime directory, and that directory is put on the fork server's path. So
an environment needs ipykernel and nothing of kernelsvc, sees nothing else of kernelsvc, and runs one version of the
guest for as long as the host runs.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
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
from kernelsvc.errors import KernelsvcError, TemplateFailed, Timeout
from kernelsvc.host.protocol import ForkServerSettings
from kernelsvc.linux import seqpacket
from kernelsvc.sandbox.environment_paths import EnvironmentPaths, environment_paths

log = logging.getLogger(__name__)

_BOOT = (
    "import sys; sys.path.insert(0, sys.argv[2]); "
    "from kernelsvc.guest.forking.forkserver import main; main(int(sys.argv[1]))"
)
#: Runs ``_BOOT`` in a namespace with other paths of Python, or without them if that is not possible.
_BOOT_WITH_PATHS = (
    "import json, sys; sys.path.insert(0, sys.argv[2]); plan = json.loads(sys.argv.pop(3)); "
    "from kernelsvc.guest.confine.neutral_paths import start; "
    "start(plan, ['-P', '-c', plan['boot'], *sys.argv[1:]]); exec(plan['boot'])"
)
#: A compiled module that another process is just writing: ``importlib`` renames it when it is complete.
_UNFINISHED = "*.pyc.*"
#: Seconds before a restart: doubled after each failure, up to the maximum.
_RETRY_PAUSE, _MAX_RETRY_PAUSE = 0.1, 10.0
#: Variables of the host's environment that a fork server gets.
_INHERITED_VARIABLES = ("LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH")
#: Keeps libraries from starting threads at import. fork(2): "The child process is created with a single thread".
VARIABLES = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "NUMBA_THREADING_LAYER": "workqueue",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONNODEBUGRANGES": "",
}


def install_guest(directory: Path) -> Path:
    """Copy the guest package below ``directory``. Return the directory to put on ``sys.path``.

    Its compiled modules are copied too. No fork server may write them (``PYTHONDONTWRITEBYTECODE``), so each would
    compile the whole package. Python compares them with the source's size and time, which the copy keeps.
    """
    target = directory / "guest"
    package = target / "kernelsvc"
    shutil.rmtree(target, ignore_errors=True)
    source = Path(kernelsvc.__file__).parent
    shutil.copytree(source / "guest", package / "guest", ignore=shutil.ignore_patterns(_UNFINISHED))
    (target / "home").mkdir(mode=0o700)
    (package / "__init__.py").write_text('"""The guest part of kernelsvc, alone."""\n')
    return target


class ForkServer:
    """One template's fork server process and its successors.

    Args:
        name: name of the template.
        settings: its settings.
        guest: directory that holds the guest package.
        changed: called when ``state`` changes.
        neutral: whether to run Python below ``/opt``, so that sessions show no path of this machine.

    Attributes:
        info: the fork server's report when it was ready: python, versions, prefixes, pid.
        state: ``starting``, ``ready`` or ``failed``.
        message: why it failed.
    """

    def __init__(
        self,
        name: str,
        settings: ForkServerSettings,
        guest: Path,
        changed: Callable[[ForkServer], None],
        *,
        neutral: bool = False,
    ) -> None:
        self.name = name
        self.settings = settings
        self.python = settings.python or sys.executable
        self.info: dict[str, Any] = {}
        self.state = "starting"
        self.message = ""
        self._guest = guest
        self._neutral = neutral
        self._paths: EnvironmentPaths | None = None
        self._changed = changed
        self._channel: seqpacket.SeqpacketChannel | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._state_known = asyncio.Event()
        self._retry_pause = _RETRY_PAUSE
        self._restart: asyncio.TimerHandle | None = None
        self._stopped = False

    def start(self) -> None:
        """Start the process. ``wait_ready`` waits until it can fork."""
        self.state, self.message = "starting", ""
        self._state_known.clear()
        host_end, server_end = seqpacket.pair()
        self._paths = self._choose_paths()
        home = str(self._guest / "home")  # for the imported libraries. Sessions can't open it (``guest.home_paths``)
        env = {name: os.environ[name] for name in _INHERITED_VARIABLES if name in os.environ}
        try:
            self._process = subprocess.Popen(
                [self.python, "-P", "-c", *self._boot(server_end.fileno())],
                env={"LANG": "C.UTF-8"} | env | VARIABLES | {"HOME": home},
                pass_fds=[server_end.fileno()],
                stdin=subprocess.DEVNULL,
                # The Ctrl-C of a terminal signals the foreground process group (credentials(7)), and must not end this.
                start_new_session=True,
                # daemon(7): in another directory it would keep a filesystem from being unmounted.
                cwd="/",
            )
        except OSError as error:
            host_end.close()
            self._fail(f"{self.python} can't be started: {error.strerror}")
            return
        finally:
            # Otherwise the host never reads the end of the connection: it comes with the last copy of this descriptor.
            server_end.close()
        self._channel = seqpacket.SeqpacketChannel(host_end, self._received, self._exited, fds=0)
        self._channel.send({"preload": self.settings.preload, "binds": self._paths.binds if self._paths else {}})

    def _choose_paths(self) -> EnvironmentPaths | None:
        config = self._guest / f"{hashlib.sha256(self.name.encode()).hexdigest()[:16]}.cfg"
        try:
            return environment_paths(self.python, str(self._guest), config) if self._neutral else None
        except (OSError, ValueError):
            # The start of the interpreter reports what is wrong with it.
            return None

    def _boot(self, channel: int) -> list[str]:
        arguments = [str(channel), str(self._guest)]
        if self._paths is None:
            return [_BOOT, *arguments]
        plan = {"binds": self._paths.binds, "python": self._paths.python, "guest": self._paths.guest, "boot": _BOOT}
        return [_BOOT_WITH_PATHS, *arguments, json.dumps(plan)]

    @property
    def moves(self) -> dict[str, str]:
        """New path by path of the environment, where its sessions show other paths than the machine's."""
        if self._paths is None or not self.info.get("neutral"):
            return {}
        return {source: target for source, target in self._paths.binds.items() if target != self._paths.guest}

    @property
    def pid(self) -> int:
        """Pid of the running process, or 0 if there is none."""
        return self._process.pid if self._process and self._channel else 0

    def describe(self) -> dict[str, Any]:
        """Return the description in ``hello`` and in ``GET /v1/templates``."""
        return {
            "name": self.name,
            "state": self.state,
            "python": self.info.get("python", ""),
            "executable": self.python,
            "preload": self.settings.preload,
            "versions": self.info.get("versions", {}),
            **({"message": self.message} if self.message else {}),
        }

    def _received(self, body: dict[str, Any], fds: list[int]) -> None:
        for fd in fds:
            os.close(fd)
        if body.get("ready"):
            self.info, self.state, self._retry_pause = body, "ready", _RETRY_PAUSE
            self._state_known.set()
            self._changed(self)
        elif "failed" in body:
            self.message = str(body["failed"])

    def _exited(self) -> None:
        self._channel = None
        if not self._stopped:
            self._fail(self.message or "the fork server's process ended")

    def _fail(self, why: str) -> None:
        log.error(
            "the fork server of template %s failed: %s. It is restarted in %.1f s.", self.name, why, self._retry_pause
        )
        self.state, self.message = "failed", why
        self._state_known.set()
        self._changed(self)
        self._restart = asyncio.get_running_loop().call_later(self._retry_pause, self.start)
        self._retry_pause = min(_MAX_RETRY_PAUSE, self._retry_pause * 2)

    async def wait_ready(self, seconds: float) -> None:
        """Wait until it can fork, also through one failed start. Safe to cancel.

        Args:
            seconds: at the longest.

        Raises:
            TemplateFailed: it can't be started; the message has the reason.
            Timeout: it took longer.
        """
        try:
            async with asyncio.timeout(seconds):
                while self.state != "ready":
                    if self.state == "failed" and self._retry_pause > _RETRY_PAUSE * 4:
                        raise self._failure()
                    self._state_known.clear()
                    await self._state_known.wait()
        except TimeoutError:
            raise Timeout(f"The template {self.name!r} is still starting. Try again in a moment.") from None

    def _failure(self) -> KernelsvcError:
        return TemplateFailed(
            f"The template {self.name!r} can't be started: {self.message.rstrip('.')}. Check its python and preload."
        )

    def fork(self, spawn_channel: socket.socket) -> bool:
        """Fork a child that reads its plan from ``spawn_channel``. Return False if the fork server has just ended."""
        if self._channel is not None:
            try:
                socket.send_fds(self._channel.sock, [b"F"], [spawn_channel.fileno()])
                return True
            except OSError:
                log.info("the fork server of template %s ended before it could fork", self.name)
        return False

    def is_process(self, pid: int) -> bool:
        """Return whether this is the pid of its process."""
        return self._process is not None and self._process.pid == pid

    def stop(self) -> None:
        """End the process. Its sessions continue."""
        self._stopped = True
        if self._restart is not None:
            self._restart.cancel()
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._process is not None and self._process.returncode is None:
            try:
                os.kill(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:
                return
