"""A connection whose other end takes no more."""

from __future__ import annotations

import socket

import pytest
from tornado.iostream import IOStream, StreamClosedError

from kernelsvc.server.refusable_stream import RefusableStream


@pytest.mark.parametrize("kind", [RefusableStream, IOStream])
async def test_a_response_is_read_after_a_failed_write(kind: type[IOStream]) -> None:
    ours, theirs = socket.socketpair()
    theirs.sendall(b"refused")
    theirs.close()
    stream = kind(ours)
    if kind is IOStream:
        with pytest.raises(StreamClosedError):
            await stream.write(b"body")
    else:
        await stream.write(b"body")
        await stream.write(b"more")
        assert await stream.read_until_close() == b"refused"
    stream.close()
