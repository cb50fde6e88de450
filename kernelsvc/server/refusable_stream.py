"""A client's end of HTTP to a server that may refuse a request before it has all of it."""

from __future__ import annotations

from tornado.iostream import IOStream


class RefusableStream(IOStream):
    """A connection to another server that can be read when it can't be written any more.

    A server that refuses a request may respond and close before it has the body (RFC 9112, section 9.6). Tornado closes
    a stream at the first failed write, and so would lose the response, which the socket still has.

    Attributes:
        broken: Whether the server takes no more.
    """

    broken = False

    def write_to_fd(self, data: memoryview) -> int:
        """Tornado's hook: discard once the server takes no more."""
        if not self.broken:
            try:
                return super().write_to_fd(data)
            except (BrokenPipeError, ConnectionResetError):
                self.broken = True
        return len(data)
