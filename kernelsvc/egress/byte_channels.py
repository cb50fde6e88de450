"""A connection as a stream of bytes, plain or over TLS.

asyncio's streams would do. Their TLS takes twice the processor time of these, and 0.4 MB for each connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from typing import Protocol

#: Seconds for a handshake.
HANDSHAKE_SECONDS = 10.0
_READ_BYTES = 64 * 1024


class ByteChannel(Protocol):
    """One connection."""

    async def receive(self, size: int) -> bytes:
        """Return at most ``size`` bytes, none at the end. Safe to cancel, if nothing is received after that."""

    def is_cut(self) -> bool:
        """Whether the end that was received may be that of an attacker in the network."""

    async def send(self, data: bytes) -> None:
        """Send all bytes."""

    async def finish(self) -> None:
        """Send the end after all bytes."""

    def abort(self) -> None:
        """End the connection now. A task that receives gets the end."""

    def close(self) -> None:
        """Close the socket. No task may be receiving."""


class PlainChannel:
    """A connection without TLS.

    Args:
        sock: its socket, not blocking. The channel owns it.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._waiting: asyncio.Future[bytes] | None = None
        self._size = 0
        self._watched = False

    async def receive(self, size: int) -> bytes:
        """See ``ByteChannel``. It takes a turn of the loop, so that one busy connection does not delay all others."""
        self._size = size
        self._waiting = self._loop.create_future()
        # ``loop.sock_recv`` would add and remove the socket at each call.
        if not self._watched:
            self._watched = True
            self._loop.add_reader(self._sock, self._readable)
        return await self._waiting

    def is_cut(self) -> bool:
        """See ``ByteChannel``. Without TLS there is no difference."""
        return False

    def _readable(self) -> None:
        waiting = self._waiting
        if waiting is None or waiting.done():
            self._unwatch()
            return
        try:
            waiting.set_result(self._sock.recv(self._size))
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            waiting.set_exception(error)

    def _unwatch(self) -> None:
        if self._watched:
            self._watched = False
            self._loop.remove_reader(self._sock)

    async def send(self, data: bytes) -> None:
        """See ``ByteChannel``."""
        await self._loop.sock_sendall(self._sock, data)

    async def finish(self) -> None:
        """See ``ByteChannel``."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def abort(self) -> None:
        """See ``ByteChannel``."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self, last: bytes = b"") -> None:
        """See ``ByteChannel``. Idempotent.

        Args:
            last: bytes that are lost if Linux does not take them now.
        """
        with contextlib.suppress(OSError):
            if last:
                self._sock.send(last)
        self._unwatch()
        self._sock.close()


class TlsChannel:
    """A connection over TLS. Made by ``accept`` and ``connect``.

    Args:
        plain: the connection, which the channel owns.
        context: the context of TLS, which must not renegotiate.
        name: the name of the server, or None if this end is the server.
    """

    def __init__(self, plain: PlainChannel, context: ssl.SSLContext, name: str | None) -> None:
        self._plain = plain
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=name is None, server_hostname=name)
        self._sending = asyncio.Lock()
        self._cut = False

    @classmethod
    async def accept(cls, plain: PlainChannel, context: ssl.SSLContext) -> TlsChannel:
        """Make the handshake of a server. The caller closes ``plain`` if it fails.

        Raises:
            OSError: the client does not complete it, for example because it does not trust the certificate.
        """
        channel = cls(plain, context, None)
        await channel._make_handshake()
        return channel

    @classmethod
    async def connect(cls, plain: PlainChannel, context: ssl.SSLContext, name: str) -> TlsChannel:
        """Make the handshake of a client. The caller closes ``plain`` if it fails.

        Args:
            plain: a new connection.
            context: verifies the certificate.
            name: the server's name, which the certificate must have.

        Raises:
            OSError: the certificate is not valid for the name, or the server does not complete it.
        """
        channel = cls(plain, context, name)
        await channel._make_handshake()
        return channel

    async def _make_handshake(self) -> None:
        async with asyncio.timeout(HANDSHAKE_SECONDS):
            while True:
                try:
                    self._tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    await self._flush()
                except ssl.SSLError:
                    with contextlib.suppress(OSError):
                        await self._flush()  # the alert
                    raise
                if not await self._read_more():
                    raise ConnectionResetError("the peer closed the connection during the handshake")
            if self._outgoing.pending:
                await self._flush()

    async def _read_more(self) -> bool:
        """Wait for bytes of the peer. Return whether there are any."""
        data = await self._plain.receive(_READ_BYTES)
        self._incoming.write(data)
        return bool(data)

    async def _flush(self) -> None:
        """Send the bytes of OpenSSL. A task that receives may have some, too, and records must not be mixed."""
        async with self._sending:
            await self._plain.send(self._outgoing.read())

    async def receive(self, size: int) -> bytes:
        """See ``ByteChannel``."""
        while True:
            try:
                return self._tls.read(size)
            except ssl.SSLZeroReturnError:
                return b""
            except ssl.SSLWantReadError:
                if self._outgoing.pending:  # the answer to a KeyUpdate (RFC 8446, section 4.6.3)
                    await self._flush()
            if not await self._read_more():
                self._cut = True
                return b""

    def is_cut(self) -> bool:
        """See ``ByteChannel``: no ``close_notify`` came (RFC 8446, section 6.1)."""
        return self._cut

    async def send(self, data: bytes) -> None:
        """See ``ByteChannel``."""
        rest = memoryview(data)
        while rest:
            rest = rest[self._tls.write(rest) :]  # one record
        await self._flush()

    async def finish(self) -> None:
        """See ``ByteChannel``. The peer should end its direction, too (RFC 8446, section 6.1)."""
        with contextlib.suppress(OSError):
            with contextlib.suppress(ssl.SSLError):  # the peer has not answered yet
                self._tls.unwrap()
            await self._flush()
        await self._plain.finish()

    def abort(self) -> None:
        """See ``ByteChannel``."""
        self._plain.abort()

    def close(self) -> None:
        """See ``ByteChannel``. Some clients take a connection without the end of TLS for a truncated answer."""
        with contextlib.suppress(OSError):  # the peer has not answered yet
            self._tls.unwrap()
        self._plain.close(self._outgoing.read())
