"""A program that connects a kernel which listens on TCP ports to the Unix sockets that the server connects to.

Some kernels (most of those for JavaScript and TypeScript) can't listen on Unix sockets. The server can't reach the TCP
ports of a sandbox with a network of its own (network_namespaces(7)). So this program starts in the sandbox in place of
the kernel: it listens on the Unix sockets of the connection file, replaces them in the file by ports on the loopback
interface, leaves a relay behind, and becomes the kernel by execv(2). So the kernel's process is the one that the
server started.

An interpreter in the sandbox gets it as text, since kernelsvc need not be installed there. So it uses the standard
library only and imports no other module of kernelsvc. Arguments: the connection file, the kernel's command.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable

LOOPBACK = "127.0.0.1"
#: Bytes of one read, and seconds between attempts to connect to a kernel that is starting.
CHUNK, RETRY_SECONDS = 1 << 16, 0.02

Route = tuple[socket.socket, int]
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def open_routes(connection_file: str) -> list[Route]:
    """Listen on the file's Unix sockets, and write TCP ports into the file. Return each listener with its port."""
    with open(connection_file) as file:
        info = json.load(file)
    names = [name for name in info if name.endswith("_port")]
    held = [socket.create_server((LOOPBACK, 0)) for _ in names]
    routes = []
    for name, taken in zip(names, held, strict=True):
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(f"{info['ip']}-{info[name]}")
        listener.listen(8)
        info[name] = taken.getsockname()[1]
        routes.append((listener, info[name]))
    for taken in held:  # only now, so that all ports differ
        taken.close()
    with open(connection_file, "w") as file:
        json.dump(info | {"transport": "tcp", "ip": LOOPBACK}, file)
    return routes


async def relay(routes: list[Route]) -> None:
    """Relay connections until the sandbox ends."""
    servers = [await asyncio.start_unix_server(_serve_to(port), sock=listener) for listener, port in routes]
    await asyncio.gather(*(server.serve_forever() for server in servers))


def _serve_to(port: int) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        kernel_reader, kernel_writer = await _connect(port)
        pumps = [
            asyncio.ensure_future(_pump(reader, kernel_writer)),
            asyncio.ensure_future(_pump(kernel_reader, writer)),
        ]
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for pump in pumps:
            pump.cancel()
        for each in (writer, kernel_writer):
            each.close()

    return serve


async def _connect(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    while True:
        try:
            return await asyncio.open_connection(LOOPBACK, port)
        except OSError:
            await asyncio.sleep(RETRY_SECONDS)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass  # one side has ended


def _leave_behind(routes: list[Route]) -> None:
    """Run the relay in a grandchild, whose parent is the sandbox's init: the kernel must not have to reap it."""
    if os.fork():
        os.wait()
        return
    if os.fork():
        os._exit(0)
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is for the kernel
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    try:
        asyncio.run(relay(routes))
    finally:
        os._exit(1)


if __name__ == "__main__":
    _leave_behind(open_routes(sys.argv[1]))
    os.execv(sys.argv[2], sys.argv[2:])
