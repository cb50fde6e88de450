"""Report readiness to the parent process through a descriptor, and to systemd (sd_notify(3))."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Mapping


def ready_fd(fd: int | None) -> None:
    """Write one line to a descriptor that the caller passed, and close it."""
    if fd is None:
        return
    with contextlib.suppress(OSError):
        os.write(fd, b"ready\n")
        os.close(fd)


class Systemd:
    """Notifications to systemd. Does nothing without ``NOTIFY_SOCKET``.

    Args:
        env: the environment.
    """

    def __init__(self, env: Mapping[str, str]) -> None:
        self._path = env.get("NOTIFY_SOCKET", "")
        self.watchdog_seconds = int(env.get("WATCHDOG_USEC", "0")) / 1e6

    def tell(self, *lines: str) -> None:
        """Send lines such as ``READY=1``."""
        if not self._path:
            return
        address = "\0" + self._path[1:] if self._path.startswith("@") else self._path
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto("\n".join(lines).encode(), address)

    async def feed_watchdog(self) -> None:
        """Notify systemd's watchdog at half of its interval, until cancelled."""
        if not self.watchdog_seconds:
            return
        while True:
            self.tell("WATCHDOG=1")
            await asyncio.sleep(self.watchdog_seconds / 2)
