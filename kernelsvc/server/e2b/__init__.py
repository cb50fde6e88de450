"""The E2B API: control plane, interpreter, files and commands.

A sandbox of this API *is* a session, with the further contexts that belong to
it. E2B's clients use one address. Headers name the sandbox and the port in it
(``protocol.e2b``).

``handler`` has the common base. Each other module has ``ROUTES``: pairs of a
path's pattern and its handler.
"""

from __future__ import annotations

from typing import Any

from kernelsvc.server.e2b import (
    control_plane,
    filesystem,
    interpreter,
    process,
    secrets,
    templates,
    unsupported,
    volumes,
)
from kernelsvc.server.e2b import files as transfer
from kernelsvc.server.e2b.directory_watch import WatcherRegistry
from kernelsvc.server.e2b.template_builds import TemplateBuilds

#: The modules with this API's routes. The first route that fits counts, such as /templates/tags before /templates/ID.
MODULES: tuple[Any, ...] = (
    *(volumes, secrets, templates, unsupported, control_plane, interpreter, process, filesystem, transfer),
)


def routes(shared: dict[str, Any]) -> list[Any]:
    """Return Tornado's routes of the E2B API.

    Args:
        shared: Passed to each handler's ``initialize``.
    """
    watchers, builds = WatcherRegistry(), TemplateBuilds(shared["context"])
    shared["context"].closers += [watchers.stop, builds.stop]
    shared = {**shared, "watchers": watchers, "builds": builds}
    return [(path, handler, shared) for module in MODULES for path, handler in module.ROUTES]
