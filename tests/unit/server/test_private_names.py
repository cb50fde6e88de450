"""Every private name of Tornado that the server uses, so that an upgrade without one fails here and not at a request.

Why each is needed stands at its use. ``pyproject.toml`` pins Tornado's major version for the same reason.
"""

from __future__ import annotations

import private_names

#: Of the classes that the server's own classes inherit from.
INHERITED = {
    ("tornado.iostream.BaseIOStream", "_handle_write"),
    ("tornado.iostream.BaseIOStream", "_read_buffer_size"),
    ("tornado.iostream.BaseIOStream", "_write_buffer"),
    ("tornado.tcpserver.TCPServer", "_handlers"),
    ("tornado.tcpserver.TCPServer", "_sockets"),
    ("tornado.web.RequestHandler", "_finished"),
    ("tornado.web.RequestHandler", "_headers"),
    ("tornado.web.RequestHandler", "_headers_written"),
    ("tornado.web.RequestHandler", "_request_summary"),
    ("tornado.websocket.WebSocketProtocol", "_abort"),
    ("tornado.websocket.WebSocketProtocol", "_run_callback"),
    ("tornado.websocket.WebSocketProtocol13", "_frame_compressed"),
    ("tornado.websocket.WebSocketProtocol13", "_handle_message"),
    ("tornado.websocket.WebSocketProtocol13", "_message_bytes_in"),
    ("tornado.websocket.WebSocketProtocol13", "_receive_frame_loop"),
}
#: Of other objects.
ELSEWHERE = {
    ("tornado.http1connection.HTTP1Connection", "_read_finished"),
    ("tornado.util", "_websocket_mask"),
    ("tornado.web.RequestHandler", "_unimplemented_method"),
}


def test_the_installed_tornado_has_every_private_name_that_the_server_uses() -> None:
    assert private_names.missing(INHERITED | ELSEWHERE) == set()


def test_the_table_lists_exactly_the_private_names_of_tornado_that_the_server_uses() -> None:
    assert private_names.inherited("kernelsvc.server", "tornado") == INHERITED
    assert private_names.elsewhere("kernelsvc.server", "tornado") == {name for _, name in ELSEWHERE}
