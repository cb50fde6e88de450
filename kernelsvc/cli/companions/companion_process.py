"""A process of its own beside the server, which the server starts, watches, and starts again.

It outlives a server that is killed. It keeps a lock, so that the next server starts no other. A server that stops in
order ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import signal
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from kernelsvc.errors import Conflict, Forbidden
from kernelsvc.service.directories import KEY_ENV
from kernelsvc.settings import Settings

#: Seconds between two starts, for the process to end, and between two looks at it.
PAUSE, END_SECONDS, POLL_SECONDS = 2.0, 5.0, 0.05
#: Locks of a data directory: of the parent of several workers, and of each server.
LOCKS = ("workers.lock", "server.lock")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock, with this process's id in it. Linux releases it when the process ends, also by a kill (flock(2)).

    Raises:
        Conflict: another process holds it.
    """
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise Conflict(
                f"Process {file.read(20) or '?'} holds {path}: it does the same work for this server. End it first."
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def holder(path: Path) -> int | None:
    """Return the id of the process that holds a lock, or None."""
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            text = file.read()
            return int(text) if text.isdecimal() else None
    return None


def secret_variables(settings: Settings) -> set[str]:
    """Return the environment variables with secrets that only the server and its egress proxy need."""
    secrets = {source.env for source in settings.secrets.values() if source.env}
    keys = {model.key_env for model in settings.models.values() if model.key_env}
    return {"KERNELSVC_TOKEN", KEY_ENV} | secrets | keys


def server_of(data: Path) -> int | None:
    """Return the id of the process that serves a data directory, or None. Several workers have one parent.

    Raises:
        Forbidden: the directory is another user's.
    """
    try:
        paths = [path for name in LOCKS if (path := data / name).exists()]
        return next((found for path in paths if (found := holder(path)) is not None), None)
    except OSError as error:
        if error.errno == errno.ENOKEY:  # The key of an encrypted directory was removed. A held lock could be opened.
            return None
        if not isinstance(error, PermissionError):
            raise
        raise Forbidden(f"The server of {data} is another user's. Run this command as that user.") from None


def is_holder(pid: int, data: Path) -> bool:
    """Return whether a process of this pid namespace holds a lock of a data directory.

    The lock's file may have an id of another namespace, a container's for example, which is another process here.
    proc_locks(5) lists the locks of processes of this namespace, and needs no rights on them.
    """
    inodes = {path.stat().st_ino for name in LOCKS if (path := data / name).exists()}
    try:
        lines = [line.split() for line in Path("/proc/locks").read_text("ascii").splitlines()]
    except FileNotFoundError:
        return True  # gVisor does not have it
    # 1: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE 0 EOF. Some file systems have another device number in stat(2).
    held = {line[5].rpartition(":")[2] for line in lines if line[1] == "FLOCK" and line[4] == str(pid)}
    return any(str(inode) in held for inode in inodes)


class CompanionProcess:
    """A command of ``kernelsvc`` that runs beside the server.

    Args:
        words: the command and its options.
        lock: path of the lock that the command keeps.
        env: more environment variables. Secrets belong here, because every user can read a command line (proc(5)).
        without: variables of this process that the command does not get.
    """

    def __init__(
        self, words: Sequence[str], lock: Path, env: Mapping[str, str], *, without: Collection[str] = ()
    ) -> None:
        self._command = [sys.executable, "-m", "kernelsvc", *words]
        self._lock = lock
        self._env = env
        self._without = frozenset(without)

    async def keep_running(self, url: str) -> None:
        """Start the process, and start it again whenever it ends. Cancelling leaves it running.

        Args:
            url: address of the server.
        """
        inherited = {name: value for name, value in os.environ.items() if name not in self._without}
        env = {**inherited, **self._env, "KERNELSVC_URL": url}
        while True:
            if holder(self._lock) is None:
                # A session of its own: Ctrl-C at the server's terminal is the server's.
                process = await asyncio.create_subprocess_exec(*self._command, env=env, start_new_session=True)
                await process.wait()
            await asyncio.sleep(PAUSE)

    async def stop(self) -> None:
        """End the process, also one that an earlier server started."""
        end = asyncio.get_running_loop().time() + END_SECONDS
        signalled = signal.SIGTERM
        while (pid := holder(self._lock)) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signalled)
            await asyncio.sleep(POLL_SECONDS)
            if asyncio.get_running_loop().time() > end:
                signalled = signal.SIGKILL
