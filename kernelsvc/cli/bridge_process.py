"""The server's bridge to MCP servers, as a process of its own: started, watched, and started again.

The bridge outlives a server that is killed, so that no call is lost with the server. It keeps a lock, and its token is
kept beside the lock, so that the next server accepts it and starts no other. A server that stops in order ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import secrets
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from kernelsvc import settings as conf
from kernelsvc.errors import Conflict
from kernelsvc.linux import atomic_file
from kernelsvc.model.tokens import TokenRecord, hash_token

#: Environment variable with the path of the lock.
LOCK_VARIABLE = "KERNELSVC_BRIDGE_LOCK"
#: Name of the bridge's principal.
PRINCIPAL = "kernelsvc-bridge"
#: Seconds between two starts, for the process to end, and between two looks at it.
PAUSE, END_SECONDS, POLL_SECONDS = 2.0, 5.0, 0.05


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a bridge, with this process's id in it.

    Raises:
        Conflict: another bridge holds it.
    """
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Conflict("A bridge of this server runs already. End it first.") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def holder(path: Path) -> int | None:
    """Return the process id of the bridge that holds a lock, or None."""
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            text = file.read()
            return int(text) if text.isdecimal() else None
    return None


def prepare(settings: conf.Settings) -> tuple[conf.Settings, BridgeProcess | None]:
    """Return the settings with the bridge's token, and the bridge. None if the settings name no MCP server."""
    if not settings.tools_mcp:
        return settings, None
    path = settings.runtime_path() / "bridge.token"
    try:
        token = path.read_text()
    except OSError:
        token = ""
    if not token:
        token = secrets.token_hex(32)
        atomic_file.replace_bytes(path, token.encode(), mode=0o600)
    record = TokenRecord(name=PRINCIPAL, sha256=hash_token(token), scopes=frozenset({"provide"}))
    settings = msgspec.structs.replace(settings, tokens=[*settings.tokens, record])
    return settings, BridgeProcess(settings.config_file, settings.runtime_path() / "bridge.lock", token)


class BridgeProcess:
    """The process ``kernelsvc bridge`` of a server.

    Args:
        config: path of the settings file. Empty if the environment has the settings.
        lock: path of the lock.
        token: the bridge's token.
    """

    def __init__(self, config: str, lock: Path, token: str) -> None:
        self._command = [sys.executable, "-m", "kernelsvc", "bridge", *(["--config", config] if config else [])]
        self._lock = lock
        self._token = token

    async def keep_running(self, url: str) -> None:
        """Start the bridge, and start it again whenever it ends. Cancelling leaves it running."""
        # The token is in the environment, because every user can read a command line (proc(5)).
        env = {**os.environ, "KERNELSVC_URL": url, "KERNELSVC_TOKEN": self._token, LOCK_VARIABLE: str(self._lock)}
        while True:
            if holder(self._lock) is None:
                # A session of its own: Ctrl-C at the server's terminal is the server's.
                process = await asyncio.create_subprocess_exec(*self._command, env=env, start_new_session=True)
                await process.wait()
            await asyncio.sleep(PAUSE)

    async def stop(self) -> None:
        """End the bridge, also one that an earlier server started."""
        end = asyncio.get_running_loop().time() + END_SECONDS
        signalled = signal.SIGTERM
        while (pid := holder(self._lock)) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signalled)
            await asyncio.sleep(POLL_SECONDS)
            if asyncio.get_running_loop().time() > end:
                signalled = signal.SIGKILL
