"""The Jupyter API: Kernel Gateway's REST and channels.

A kernel of this API *is* a session: its execute requests are cells. Messages for
clients are rebuilt from the session's log, so that a client that reconnects gets
the same messages that it missed.

``models`` and ``event_translator`` are functions of values, ``handlers`` has the REST
handlers and ``channels`` the WebSocket handler.
"""

from __future__ import annotations

from typing import Any

from kernelsvc.server.jupyter import handlers
from kernelsvc.server.jupyter.channels import ChannelsSocket, Cursors

#: Prefix with a token, for clients that can't send one in another way.
PREFIX = r"(?:/t/(?P<path_token>[^/]+))?"
KERNEL = r"(?P<kernel>[A-Za-z0-9_-]+)"


def routes(shared: dict[str, Any]) -> list[Any]:
    """Return Tornado's routes of the Jupyter API.

    Args:
        shared: Passed to each handler's ``initialize``.
    """
    table: list[tuple[str, type[Any], dict[str, Any]]] = [
        (r"/api/?", handlers.RootHandler, {}),
        (r"/api/kernelspecs", handlers.SpecsHandler, {}),
        (r"/api/kernelspecs/(?P<name>[^/]+)", handlers.SpecHandler, {}),
        (r"/kernelspecs/(?P<name>[^/]+)/(?P<file>[^/]+)", handlers.SpecFileHandler, {}),
        (r"/api/kernels", handlers.KernelsHandler, {}),
        (rf"/api/kernels/{KERNEL}", handlers.KernelHandler, {}),
        (rf"/api/kernels/{KERNEL}/(?P<action>interrupt|restart)", handlers.KernelActionHandler, {}),
        (rf"/api/kernels/{KERNEL}/channels", ChannelsSocket, {"cursors": Cursors()}),
        (r"/api/sessions", handlers.JupyterSessionsHandler, {}),
        (rf"/api/sessions/{KERNEL}", handlers.JupyterSessionHandler, {}),
    ]
    return [(PREFIX + path, handler, {**shared, **more}) for path, handler, more in table]
