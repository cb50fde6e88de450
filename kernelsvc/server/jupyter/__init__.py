"""The Jupyter door: Kernel Gateway's REST and channels over the one service.

A kernel of this door *is* a session: its execute requests are cells, and what
clients are sent is rebuilt from the session's log, so that a socket that comes
back is sent what it missed, message by message the same.

``models`` and ``replay`` are functions of values; ``handlers`` and ``channels``
are the HTTP and the WebSocket side.
"""

from __future__ import annotations

from typing import Any

from kernelsvc.server.jupyter import handlers
from kernelsvc.server.jupyter.channels import ChannelsSocket, Cursors

#: A token may stand in front of the path, for clients that can send none in another way.
PREFIX = r"(?:/t/(?P<path_token>[^/]+))?"
KERNEL = r"(?P<kernel>[A-Za-z0-9_-]+)"


def routes(shared: dict[str, Any]) -> list[Any]:
    """Tornado's routes of this door.

    Args:
        shared: what every handler is initialised with.
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
