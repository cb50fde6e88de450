"""Sessions of principals that were named after a token's hash belong to ``local`` (``tokens.present_name``)."""

from __future__ import annotations

import logging
from collections.abc import Callable

from kernelsvc.errors import NotFound
from kernelsvc.store.index import Index
from kernelsvc.store.sessions import SessionDirectories

log = logging.getLogger(__name__)


def update_principal_names(store: SessionDirectories, index: Index, present_name: Callable[[str], str]) -> int:
    """Write the present principal into ``session.json`` and the index of each session that has an old name.

    The journals keep the old name: they are signed, and they say who ran a cell at that time.

    Returns:
        The number of sessions that got another principal.
    """
    changed = 0
    for session, principal in index.owners().items():
        name = present_name(principal)
        if name == principal:
            continue
        try:
            directory = store.directory(session)
            directory.write_about({**directory.read_about(), "principal": name})
        except (NotFound, OSError) as error:
            log.warning("session %s keeps its principal %s: %s", session, principal, error)
            continue
        index.set_owner(session, name)
        changed += 1
    if changed:
        log.info("%d sessions of earlier tokens belong to the principal local now", changed)
    return changed
