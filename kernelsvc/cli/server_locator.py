"""Find the server of a command: the named one, the user's running one, or a private one for this command."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from kernelsvc.cli.terminal import Terminal
from kernelsvc.client import AsyncClient, Unreachable
from kernelsvc.client.address import Address, find, parse, read_info
from kernelsvc.linux.readable import wait_readable

READY_SECONDS = 60.0
STOP_SECONDS = 15.0


@contextlib.asynccontextmanager
async def client_of(args: argparse.Namespace) -> AsyncIterator[AsyncClient]:
    """Yield a client of the server that the options or the environment name, else of the user's running server.

    Raises:
        Unreachable: there is none.
    """
    async with AsyncClient(args.url, args.token, connect_seconds=0.0) as client:
        yield client


@contextlib.asynccontextmanager
async def client_or_own_server(args: argparse.Namespace, terminal: Terminal) -> AsyncIterator[AsyncClient]:
    """Yield ``client_of`` or, if there is no server, a client of a private one that ends with this block."""
    try:
        address = None if args.private else find(args.url, args.token)
    except Unreachable:
        address = None
    if address is not None:
        async with AsyncClient(
            address.shown, address.token, connect_seconds=0.0, on_state=_connection_messages(terminal)
        ) as client:
            yield client
        return
    async with private_server(terminal) as address, AsyncClient(address.shown, address.token) as client:
        if terminal.err.isatty():
            terminal.message(
                "started a server for this command only. It ends with the command: save what you need", "dim"
            )
        yield client


def _connection_messages(terminal: Terminal) -> Callable[[str], None]:
    """Return a callback that reports when the connection is lost and restored."""
    broken = False

    def on_state(state: str) -> None:
        nonlocal broken
        if state == "lost":
            terminal.message("lost the connection to the server. The session continues. Reconnecting …", "yellow")
        elif state == "connected" and broken:
            terminal.message("reconnected", "dim")
        broken = state == "lost"

    return on_state


@contextlib.asynccontextmanager
async def private_server(
    terminal: Terminal, *options: str, data_dir: Path | None = None, tcp: bool = False, token: str | None = None
) -> AsyncIterator[Address]:
    """Start a server process, yield its address, and end it with all its sessions.

    Args:
        terminal: shows progress.
        options: other options of ``kernelsvc serve``.
        data_dir: its data directory. The default is a temporary directory.
        tcp: listen on a free port instead of a Unix socket that only this user can open.
        token: its token. The token of an earlier run owns the sessions of that run. The default is a new token.

    Raises:
        Unreachable: the server did not start. The message has the end of its log.
    """
    # unix(7): a socket's path has at most 108 bytes. $TMPDIR may be long, so this does not use it.
    home = Path(tempfile.mkdtemp(prefix="kernelsvc-", dir="/tmp"))
    token = token or secrets.token_urlsafe(24)
    listen = ["--port", "0"] if tcp else ["--uds", str(home / "s")]
    command = [
        *(sys.executable, "-m", "kernelsvc", "serve", *listen),
        *("--runtime-dir", str(home / "run"), "--data-dir", str(data_dir or home / "data"), *options),
    ]
    while_fd, while_fd_writer = os.pipe()
    try:
        terminal.progress("starting a server …")
        process = await _spawn(command, home / "log", token, while_fd)
        terminal.progress("")
        try:
            yield _address(home, token)
        finally:
            await _stop(process)
    finally:
        os.close(while_fd_writer)
        shutil.rmtree(home, ignore_errors=True)


def _address(home: Path, token: str) -> Address:
    info = read_info(home / "run")
    if info is None:
        raise Unreachable("The private server exited directly after its start. Try again.")
    return parse(info.url, token)


async def _spawn(command: list[str], log: Path, token: str, while_fd: int) -> asyncio.subprocess.Process:
    ready, ready_end = os.pipe()
    # In another process session (setsid(2)), so that a terminal's SIGINT does not reach the server. This process turns
    # it into an interrupt of the cell.
    with log.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            *command,
            "--ready-fd",
            str(ready_end),
            # If this process is killed, the kernel closes its end of the pipe, and the server stops.
            "--while-fd",
            str(while_fd),
            env={**os.environ, "KERNELSVC_TOKEN": token},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            pass_fds=[ready_end, while_fd],
            start_new_session=True,
        )
    # Only the server has these ends now. Closing the last copy of an end signals the other side.
    os.close(ready_end)
    os.close(while_fd)
    try:
        is_ready = await _first_byte(ready)
    except BaseException:
        await _stop(process)
        raise
    finally:
        os.close(ready)
    if not is_ready:
        await _stop(process)
        raise Unreachable(f"The private server did not start. Its log:\n{_log_tail(log)}")
    return process


def _log_tail(log: Path) -> str:
    return log.read_text("utf-8", "replace").strip()[-2000:]


async def _first_byte(fd: int) -> bool:
    """Wait for a byte. Return False on a timeout, or if the writer closed its end without one. Safe to cancel."""
    try:
        async with asyncio.timeout(READY_SECONDS):
            await wait_readable(fd)  # not a thread in os.read: it could not be cancelled
    except TimeoutError:
        return False
    return bool(os.read(fd, 1))


async def _stop(process: asyncio.subprocess.Process) -> None:
    """Send SIGTERM, wait until it has ended its sessions, then send SIGKILL."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
