"""The E2B door: its control plane, interpreter, files and commands over the one service.

A sandbox of this door *is* a session, with the further contexts that belong to
it. E2B's clients speak to one address, and say by headers which sandbox and
which of its ports they mean (``protocol.e2b``).

``door`` is what all handlers share. Each other module has ``ROUTES``: pairs of a
path's pattern and its handler.
"""

from __future__ import annotations

from typing import Any

from kernelsvc.server.e2b import control_plane, filesystem, interpreter, process
from kernelsvc.server.e2b import files as transfer
from kernelsvc.server.e2b.directory_watch import WatcherRegistry

#: The modules whose routes this door has.
MODULES: tuple[Any, ...] = (control_plane, interpreter, process, filesystem, transfer)


def routes(shared: dict[str, Any]) -> list[Any]:
    """Tornado's routes of this door.

    Args:
        shared: what every handler is initialised with.
    """
    watchers = WatcherRegistry()
    shared["context"].closers.append(watchers.stop)
    shared = {**shared, "watchers": watchers}
    return [(path, handler, shared) for module in MODULES for path, handler in module.ROUTES]
