"""WebSockets that belong to one session (Jupyter's channels): bytes pass both ways, from the opening on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tornado.iostream import StreamClosedError

from kernelsvc.errors import NodeUnreachable
from kernelsvc.front.members import Member
from kernelsvc.server.connections import connection_of
from kernelsvc.server.handler import BaseHandler
from kernelsvc.server.ws.client import open_socket
from kernelsvc.server.ws.socket_stream import SocketStream, take_over


async def splice(handler: BaseHandler, member: Member) -> None:
    """Join a client's connection with a new one to a node. Either end closes both.

    Args:
        handler: The request that opens the WebSocket.
        member: The node.

    Raises:
        NodeUnreachable: It does not accept connections.
    """
    request = handler.request
    try:
        node_socket = await open_socket(member.url)
    except (OSError, TimeoutError):
        raise NodeUnreachable(f"The node {member.name} does not accept connections. Try again soon.") from None
    connection = connection_of(getattr(request.connection, "stream", None))
    try:
        client_socket, early = await take_over(handler.detach())
    except StreamClosedError:
        node_socket.close()
        return
    finally:
        handler._finished = True
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
    ends.append(SocketStream(node_socket, passing_to(0), close_both))
    member.on_lost.add(close_both)
    lines = [f"{request.method} {request.uri} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in request.headers.get_all()]
    ends[0].set_nodelay(True)
    ends[1].write("\r\n".join((*lines, "", "")).encode("latin-1") + early)
    for end in ends:
        end.listen()
    await asyncio.sleep(0)
