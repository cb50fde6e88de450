"""``kernelsvc front``: one address for the nodes of a cluster. It keeps no session and no file of its own."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
from collections.abc import Callable, Coroutine
from typing import Any

from kernelsvc import logs
from kernelsvc import settings as conf
from kernelsvc.cli.terminal import Terminal
from kernelsvc.errors import BadRequest
from kernelsvc.front.app import Front
from kernelsvc.front.members import HOLD_SECONDS, LOST_SECONDS
from kernelsvc.linux.acceptor import raise_descriptor_limit
from kernelsvc.linux.systemd import Systemd, ready_fd
from kernelsvc.linux.tasks import OwnedTasks
from kernelsvc.server.app import Server
from kernelsvc.service.access.principals import Principals
from kernelsvc.service.directories import cluster_key, unlock_data_directory
from kernelsvc.settings import Settings
from kernelsvc.store.token_file import TokenFile


def main(args: argparse.Namespace, terminal: Terminal) -> int:
    """Serve until a signal stops the front."""
    settings = conf.load(vars(args), os.environ)
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(args.verbose, 2)]
    logs.configure(level, operator_level=logging.WARNING if terminal.tty else logging.INFO, form=settings.log_format)
    key = cluster_key(settings, os.environ)
    unlock_data_directory(settings)
    file = TokenFile(settings.data_path() / "keys")
    if not settings.tokens and not file.read() and not settings.oidc.issuer:
        raise BadRequest("A front needs the tokens of its cluster. Give it the settings file of the nodes (--config).")
    raise_descriptor_limit()

    def on_listening(front: Front, addresses: list[str]) -> None:
        terminal.line(f"kernelsvc front listens on {' and '.join(addresses)}")
        ready_fd(args.ready_fd)

    return asyncio.run(
        serve(
            settings,
            Principals(settings.tokens, file, settings.oidc),
            key,
            on_listening,
            hold_seconds=args.hold_seconds,
            lost_seconds=args.lost_seconds,
        )
    )


async def serve(
    settings: Settings,
    principals: Principals,
    key: str,
    on_listening: Callable[[Front, list[str]], None],
    *,
    beside: Callable[[Front, list[str], asyncio.Event], Coroutine[Any, Any, int]] | None = None,
    hold_seconds: float = HOLD_SECONDS,
    lost_seconds: float = LOST_SECONDS,
) -> int:
    """Run a front until it is stopped.

    Args:
        settings: Where to listen, and limits.
        principals: Authenticates callers.
        key: The cluster's key.
        on_listening: Called with the front and its addresses.
        beside: Runs together with the front, until the event is set. Its result is the exit code. None: until a signal.
        hold_seconds: For which requests wait for a node that is away.
        lost_seconds: Silence after which the sessions of a node count as lost.

    Returns:
        The exit code.
    """
    stopping = asyncio.Event()
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(name, stopping.set)
    front = Front(settings, principals, key, hold_seconds=hold_seconds, lost_seconds=lost_seconds)
    server = Server(front, settings, os.environ)
    addresses = server.bind()
    front.serve_tools_at(own_address(addresses[0]))
    systemd, tasks = Systemd(os.environ), OwnedTasks()
    try:
        server.start()
        on_listening(front, addresses)
        systemd.tell("READY=1", "STATUS=listening")
        for work in (front.run(), principals.follow_issuer(), systemd.feed_watchdog(), logs.flush_regularly()):
            tasks.start(work)
        if beside is not None:
            return await beside(front, addresses, stopping)
        await stopping.wait()
        return 0
    finally:
        systemd.tell("STOPPING=1")
        await server.stop()
        tasks.cancel()
        await tasks.wait()


def own_address(address: str) -> str:
    """Return an address under which this machine reaches a server that listens on all of its addresses."""
    return address.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
