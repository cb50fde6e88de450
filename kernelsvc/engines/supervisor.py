"""Starts, adopts and watches one machine's server, in an actor of Ray.

Ray sends this module by value (``ray.cloudpickle``), so it imports the standard library only, and kernelsvc may be
installed for another Python than Ray's. The server is no child of the actor: the end of the actor, or of Ray, leaves
the server and its sessions alone, and the next supervisor adopts them by the lock of the data directory.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: Seconds between two looks at the server, for its start, and the longest wait after a failed start.
WATCH_SECONDS, START_SECONDS, LONGEST_WAIT = 0.25, 60.0, 30.0
#: Ray sets these for its workers. ``OMP_NUM_THREADS=1`` would slow down every cell, and an empty list hides the GPUs.
OF_RAY = ("RAY_", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "GLOO_SOCKET_IFNAME", "PYTHONBREAKPOINT")
#: Runs a command that is no child of Ray's worker and in no process group that Ray ends (setsid(2)), and prints its
#: process id. The standard output is the supervisor's, so the command writes to the log instead.
#: Ray's workers block SIGINT, which interrupts cells. They are the first victims of the OOM killer (proc(5),
#: oom_score_adj), and their niceness is Ray's and 15 more. Children inherit all of it (signal(7), setpriority(2)). Only
#: a privileged user can lower the niceness again.
_APART = """
import contextlib, os, signal, sys
signal.pthread_sigmask(signal.SIG_SETMASK, [])
with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
    file.write("0")
with contextlib.suppress(OSError):
    os.setpriority(os.PRIO_PROCESS, 0, int(sys.argv[1]))
os.setsid()
if pid := os.fork():
    print(pid, flush=True)
    os._exit(0)
os.dup2(2, 1)
os.execvp(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True)
class Plan:
    """The server that each machine runs.

    Attributes:
        join: Addresses of the fronts.
        cluster_key: The cluster's key.
        config: The text of the settings file.
        data: Directory for the server. ``{ip}`` is replaced by the machine's address.
        cpus: Processors that Ray reserves for the server on each machine.
        memory: Bytes that Ray reserves, and that the server promises to sessions at most.
        port: TCP port of the server. 0: a free one.
        command: Words that start kernelsvc. Empty: the supervisor's Python has it, or it is on the path.
    """

    join: tuple[str, ...]
    cluster_key: str = field(repr=False)
    config: str = field(repr=False)
    data: str
    cpus: float
    memory: int
    port: int = 0
    command: tuple[str, ...] = ()


def server_env(env: dict[str, str]) -> dict[str, str]:
    """Return the environment of a server: that of Ray's worker without Ray's own variables."""
    return {name: value for name, value in env.items() if not name.startswith(OF_RAY)}


def server_command(plan: Plan, root: Path, host: str) -> list[str]:
    """Return the command that starts the server.

    Args:
        plan: The server that each machine runs.
        root: The machine's directory.
        host: The machine's address.

    Raises:
        FileNotFoundError: kernelsvc is not installed on this machine.
    """
    words = [*plan.command]
    if not words and importlib.util.find_spec("kernelsvc") is not None:
        words = [sys.executable, "-m", "kernelsvc"]
    elif not words and (found := shutil.which("kernelsvc")) is not None:
        words = [found]
    if not words:
        raise FileNotFoundError("kernelsvc is not installed here. Install it, or name it with --command.")
    joins = [word for front in plan.join for word in ("--join", front)]
    return [
        *words, "serve", "--config", f"{root / 'kernelsvc.toml'}", "--host", host, "--port", str(plan.port),
        "--data-dir", f"{root / 'data'}", "--runtime-dir", f"{root / 'run'}", "--on-stop", "hibernate",
        "--max-total-memory-bytes", str(plan.memory), "--cluster-key-file", f"{root / 'cluster-key'}", *joins,
    ]  # fmt: skip


def is_locked(path: Path) -> bool:
    """Return whether a process holds this lock: a server works with the data directory."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


class Supervisor:
    """Keeps the server of one machine running. Ray's actor for this machine.

    Args:
        plan: The server that each machine runs.
        host: The machine's address.
    """

    def __init__(self, plan: Plan, host: str) -> None:
        self._plan, self._host = plan, host
        self._root = Path(plan.data.replace("{ip}", host)).expanduser()
        self._started = self._adopted = 0
        self._problem = ""
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def look(self) -> dict[str, Any]:
        """Return the state of this machine's server."""
        info = self._info()
        name = self._root / "data" / "node"
        return {
            "host": self._host,
            "node": name.read_text("utf-8").strip() if name.exists() else "",
            "url": info["url"] if info else "",
            "pid": info["pid"] if info else 0,
            "supervisor": os.getpid(),
            "started": self._started,
            "adopted": self._adopted,
            "problem": self._problem,
        }

    def stop(self, end_sessions: bool, seconds: float) -> bool:
        """Stop the server. Its sessions are saved to disk, or end.

        Args:
            end_sessions: Whether they end.
            seconds: For the server to stop.

        Returns:
            Whether it has stopped.
        """
        self._stopping.set()
        self._watcher.join()  # A start that has begun is waited for. Its server would come up after this.
        end, signalled = time.monotonic() + seconds, 0
        while self._served() and time.monotonic() < end:
            info = self._info()
            if info is not None and info["pid"] != signalled:
                signalled = info["pid"]
                os.kill(signalled, signal.SIGINT if end_sessions else signal.SIGTERM)
            time.sleep(0.05)
        return not self._served()

    def _served(self) -> bool:
        """Return whether a server works here. Not while one starts: a look at a free lock holds it for a moment."""
        return is_locked(self._root / "data" / "server.lock")

    def _info(self) -> dict[str, Any] | None:
        """Return the running server's address and process, from its file.

        A killed server leaves its file, and its process id may be another's by now. So the command line is compared.
        """
        try:
            found: dict[str, Any] = json.loads((self._root / "run" / "server.json").read_text("utf-8"))
            command = Path(f"/proc/{found['pid']}/cmdline").read_bytes()
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return found if os.fsencode(self._root / "run") in command.split(b"\0") else None

    def _watch(self) -> None:
        wait = WATCH_SECONDS
        if self._served():
            self._adopted += 1
        while not self._stopping.is_set():
            try:
                if not self._served():
                    self._start()
                wait, self._problem = WATCH_SECONDS, ""
            except Exception as error:
                # Whatever the reason, the next attempt may succeed: a full disk, a package that is being upgraded.
                wait, self._problem = min(LONGEST_WAIT, max(1.0, wait * 2)), str(error)
            self._stopping.wait(wait)

    def _start(self) -> None:
        """Start the server, and wait until it says where it listens.

        Raises:
            OSError: A write failed, or this machine has no kernelsvc.
            RuntimeError: The server ended, or does not become ready.
        """
        for directory in (self._root, self._root / "run"):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, text in (("kernelsvc.toml", self._plan.config), ("cluster-key", self._plan.cluster_key)):
            with open(os.open(self._root / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                file.write(text)
        command = server_command(self._plan, self._root, self._host)
        niceness = str(os.getpriority(os.PRIO_PROCESS, os.getppid()))  # Ray's own, which started this process
        log = self._root / "serve.log"
        with open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as output:
            begun = subprocess.run(
                [sys.executable, "-c", _APART, niceness, *command], env=server_env({**os.environ}), cwd="/", check=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=output,
            )  # fmt: skip
        self._started += 1
        process, end = Path(f"/proc/{int(begun.stdout)}"), time.monotonic() + START_SECONDS
        while self._info() is None:
            if not process.exists() or time.monotonic() > end:
                raise RuntimeError(f"The server does not start. Its log {log} ends with: {_tail(log)}")
            time.sleep(0.05)


def _tail(log: Path) -> str:
    """Return the last bytes of a log."""
    return log.read_bytes()[-500:].decode("utf-8", "replace").strip()
