"""A connection as a stream of bytes, plain or over TLS."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from typing import Any, Protocol

#: Seconds for a handshake, and for the end of a connection over TLS.
HANDSHAKE_SECONDS, CLOSE_SECONDS = 10.0, 1.0
_BUFFER_BYTES = 64 * 1024


class ByteChannel(Protocol):
    """One connection."""

    async def receive(self, size: int) -> bytes:
        """Return at most ``size`` bytes, none at the end. Safe to cancel."""

    async def send(self, data: bytes) -> None:
        """Send all bytes."""

    def finish(self) -> None:
        """Send the end after all bytes. The other direction ends, too, if the connection is over TLS."""

    def abort(self) -> None:
        """End the connection now. A task that receives gets the end."""

    def close(self) -> None:
        """End the connection. No task may be receiving."""


class PlainChannel:
    """A connection without TLS.

    Args:
        sock: its socket, not blocking.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._loop = asyncio.get_running_loop()

    async def receive(self, size: int) -> bytes:
        """See ``ByteChannel``."""
        return await self._loop.sock_recv(self._sock, size)

    async def send(self, data: bytes) -> None:
        """See ``ByteChannel``."""
        await self._loop.sock_sendall(self._sock, data)

    def finish(self) -> None:
        """See ``ByteChannel``."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def abort(self) -> None:
        """See ``ByteChannel``."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """See ``ByteChannel``."""
        self._sock.close()


class TlsChannel:
    """A connection over TLS. Made by ``accept`` and ``connect``."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def accept(cls, sock: socket.socket, context: ssl.SSLContext) -> TlsChannel:
        """Make the handshake of a server. The caller keeps the socket, and the channel has a copy.

        Raises:
            OSError: the client does not complete it, for example because it does not trust the certificate.
        """
        return await cls._make(sock.dup(), context, None)

    @classmethod
    async def connect(cls, sock: socket.socket, context: ssl.SSLContext, name: str) -> TlsChannel:
        """Make the handshake of a client. It owns the socket.

        Args:
            sock: a connected socket.
            context: verifies the certificate.
            name: the server's name, which the certificate must have.

        Raises:
            OSError: the certificate is not valid for the name, or the server does not complete it.
        """
        return await cls._make(sock, context, name)

    @classmethod
    async def _make(cls, sock: socket.socket, context: ssl.SSLContext, name: str | None) -> TlsChannel:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=_BUFFER_BYTES, loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        times: dict[str, Any] = {"ssl_handshake_timeout": HANDSHAKE_SECONDS, "ssl_shutdown_timeout": CLOSE_SECONDS}
        try:
            if name is None:
                transport, _ = await loop.connect_accepted_socket(lambda: protocol, sock, ssl=context, **times)
            else:
                transport, _ = await loop.create_connection(
                    lambda: protocol, sock=sock, ssl=context, server_hostname=name, **times
                )
        except BaseException:
            sock.close()
            raise
        return cls(reader, asyncio.StreamWriter(transport, protocol, reader, loop))

    async def receive(self, size: int) -> bytes:
        """See ``ByteChannel``."""
        return await self._reader.read(size)

    async def send(self, data: bytes) -> None:
        """See ``ByteChannel``."""
        self._writer.write(data)
        await self._writer.drain()

    def finish(self) -> None:
        """See ``ByteChannel``. Python's TLS has no end of one direction alone (``StreamWriter.can_write_eof``)."""
        self._writer.close()

    def abort(self) -> None:
        """See ``ByteChannel``."""
        self._writer.transport.abort()

    def close(self) -> None:
        """See ``ByteChannel``. The peer has ``CLOSE_SECONDS`` to answer."""
        self._writer.close()
