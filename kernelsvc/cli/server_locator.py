"""Which server a command talks to: the one that is named, your own running one, or one just for this command."""

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

READY_SECONDS = 60.0
STOP_SECONDS = 15.0


@contextlib.asynccontextmanager
async def client_of(args: argparse.Namespace) -> AsyncIterator[AsyncClient]:
    """A client of the server that the options, the environment or the running local server name.

    Raises:
        Unreachable: there is none.
    """
    async with AsyncClient(args.url, args.token, connect_seconds=0.0) as client:
        yield client


@contextlib.asynccontextmanager
async def client_or_own_server(args: argparse.Namespace, terminal: Terminal) -> AsyncIterator[AsyncClient]:
    """``client_of``, or a client of a server that lives as long as this block."""
    try:
        address = None if args.private else find(args.url, args.token)
    except Unreachable:
        address = None
    if address is not None:
        async with AsyncClient(
            _url(address), address.token, connect_seconds=0.0, on_state=_connection_messages(terminal)
        ) as client:
            yield client
        return
    async with private_server(terminal) as address, AsyncClient(_url(address), address.token) as client:
        if terminal.err.isatty():
            terminal.say("a server for this command alone; what you don't save goes with it", "dim")
        yield client


def _connection_messages(terminal: Terminal) -> Callable[[str], None]:
    """Says when the link breaks, and when it stands again."""
    broken = False

    def on_state(state: str) -> None:
        nonlocal broken
        if state == "lost":
            terminal.say("the link to the server broke; the session goes on, trying again …", "yellow")
        elif state == "connected" and broken:
            terminal.say("the link stands again", "dim")
        broken = state == "lost"

    return on_state


def _url(address: Address) -> str:
    return f"unix:{address.uds}" if address.uds else address.base


@contextlib.asynccontextmanager
async def private_server(
    terminal: Terminal, *options: str, data_dir: Path | None = None, tcp: bool = False, token: str | None = None
) -> AsyncIterator[Address]:
    """A server process of our own, ended with all its sessions at the end of the block.

    Args:
        terminal: where to say what is being waited for.
        options: more of ``kernelsvc serve``'s.
        data_dir: what stays after it; None leaves nothing.
        tcp: listen on a free port instead of a Unix socket that only we can open.
        token: to be known by, so that an earlier run's sessions are one's own; None makes a fresh one.

    Raises:
        Unreachable: it did not start; its own words say why.
    """
    # unix(7) allows 108 bytes for a socket's path, so not in whatever long TMPDIR there is.
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
        raise Unreachable("A server for this run started and was gone at once; try again.")
    return parse(info.url, token)


async def _spawn(command: list[str], log: Path, token: str, while_fd: int) -> asyncio.subprocess.Process:
    ready, ready_end = os.pipe()
    # In a session of its own, so that a Ctrl-C at the terminal reaches the cell through us and not the server.
    with log.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            *command,
            "--ready-fd",
            str(ready_end),
            # When we are killed, the pipe's other end closes and the server ends with us.
            "--while-fd",
            str(while_fd),
            env={**os.environ, "KERNELSVC_TOKEN": token},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            pass_fds=[ready_end, while_fd],
            start_new_session=True,
        )
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
        raise Unreachable(f"A server for this run did not start. It said:\n{_log_tail(log)}")
    return process


def _log_tail(log: Path) -> str:
    return log.read_text("utf-8", "replace").strip()[-2000:]


async def _first_byte(fd: int) -> bool:
    """Whether something readable before the other end closed; safe to cancel."""
    loop = asyncio.get_running_loop()
    readable: asyncio.Future[None] = loop.create_future()
    loop.add_reader(fd, _set_result, readable)
    try:
        async with asyncio.timeout(READY_SECONDS):
            await readable
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(fd)
    return bool(os.read(fd, 1))


def _set_result(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _stop(process: asyncio.subprocess.Process) -> None:
    """SIGTERM, time to end its sessions, then SIGKILL."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
