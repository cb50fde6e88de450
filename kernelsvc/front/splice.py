"""WebSockets that belong to one session: Jupyter's channels, and those of servers in sessions.

The node answers the opening handshake. Only after it has agreed do bytes pass in both directions, unread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from tornado.http1connection import HTTP1Connection
from tornado.httputil import HTTPHeaders, HTTPMessageDelegate, RequestStartLine, ResponseStartLine
from tornado.iostream import IOStream, StreamClosedError

from kernelsvc.errors import NodeUnreachable
from kernelsvc.front.members import Member
from kernelsvc.front.upstream import PARAMETERS, WatchedResponse, stream_of
from kernelsvc.protocol.port_headers import end_to_end
from kernelsvc.server.connections import connection_of
from kernelsvc.server.handler import BaseHandler
from kernelsvc.server.ws.client import open_socket
from kernelsvc.server.ws.socket_stream import SocketStream, take_over


class _Opening(WatchedResponse):
    """The node's response to an opening handshake."""

    def __init__(self, inner: HTTPMessageDelegate, stream: IOStream, connection: HTTP1Connection) -> None:
        super().__init__(inner, stream)
        self._connection = connection
        self.agreed: HTTPHeaders | None = None

    def headers_received(self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders) -> Any:
        if isinstance(start_line, ResponseStartLine) and start_line.code == 101:
            self.agreed = headers
            self._connection.detach()
            return None
        return super().headers_received(start_line, headers)


async def splice(
    handler: BaseHandler, member: Member, start: RequestStartLine, headers: HTTPHeaders, refusal: HTTPMessageDelegate
) -> None:
    """Join a client's connection with a new one to a node. Either end closes both. Safe to cancel.

    Args:
        handler: The request that opens the WebSocket. It is detached if the node agrees.
        member: The node.
        start: Method and path of the opening handshake.
        headers: Its headers, without those of one hop.
        refusal: Gets a response that is no agreement.

    Raises:
        NodeUnreachable: The node does not accept connections, or does not answer. Nothing was sent to the client.
        StreamClosedError: A refusal broke off, or the client disconnected.
    """
    unreachable = NodeUnreachable(f"The node {member.name} does not accept connections. Try again soon.")
    try:
        connected = await open_socket(member.url)
    except (OSError, TimeoutError):
        raise unreachable from None
    stream = stream_of(connected)
    http = HTTP1Connection(stream, True, PARAMETERS)
    opening = _Opening(refusal, stream, http)
    headers["Connection"], headers["Upgrade"] = "Upgrade", "websocket"
    member.on_lost.add(stream.close)
    try:
        await http.write_headers(start, headers)
        http.finish()
        await http.read_response(opening)
    except StreamClosedError:
        if not handler._headers_written:
            raise unreachable from None
        raise
    finally:
        member.on_lost.discard(stream.close)
        if opening.agreed is None:
            stream.close()
    if opening.agreed is not None:
        await _join(handler, member, stream, opening.agreed)
    elif opening.began and not opening.whole:
        raise StreamClosedError
    elif not opening.whole:
        raise unreachable


async def _join(handler: BaseHandler, member: Member, stream: IOStream, agreed: HTTPHeaders) -> None:
    """Pass bytes both ways from now on."""
    connection = connection_of(getattr(handler.request.connection, "stream", None))
    node_socket, first = await take_over(stream)
    try:
        client_socket, early = await take_over(handler.detach())
    except StreamClosedError:
        node_socket.close()
        return
    finally:
        handler.on_finish()
    ends: list[SocketStream] = []

    def passing_to(other: int) -> Callable[[bytes], None]:
        def on_data(data: bytes) -> None:
            try:
                written = ends[other].write(data)
            except StreamClosedError:
                ends[1 - other].close()
                return
            if not written.done():
                ends[1 - other].pause()
                written.add_done_callback(lambda done: ends[1 - other].listen())

        return on_data

    def close_both() -> None:
        member.on_lost.discard(close_both)
        for end in ends:
            end.close()

    released = connection.release if connection is not None else lambda: None
    ends.append(SocketStream(client_socket, passing_to(1), close_both, released))
    if connection is not None:
        connection.restore(ends[0])
        connection.await_relay()
    ends.append(SocketStream(node_socket, passing_to(0), close_both))
    member.on_lost.add(close_both)
    if early:
        # RFC 6455, section 4.1: a client sends nothing before it has the response. This may be another request.
        close_both()
        return
    lines = [f"{name}: {value}" for name, value in end_to_end(agreed.get_all())]
    head = ("HTTP/1.1 101 Switching Protocols", "Connection: Upgrade", "Upgrade: websocket", *lines, "", "")
    ends[0].set_nodelay(True)
    ends[0].write("\r\n".join(head).encode("latin-1") + first)
    for end in ends:
        end.listen()
    await asyncio.sleep(0)
