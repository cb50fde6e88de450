"""Sessions that move between the nodes of a cluster: which ones can, and their arrival.

Sessions at rest move, hibernated or closed: their whole state is in their directories. A session, its branches and its
sidecars share a directory, so they are a *family* and move together.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from kernelsvc.errors import AtCapacity, Conflict
from kernelsvc.linux.remove_tree import remove_tree
from kernelsvc.model.hash_chain import Head
from kernelsvc.service.host_settings import fork_server_settings
from kernelsvc.service.loading.adoption import Adoption
from kernelsvc.service.registry import SessionRegistry
from kernelsvc.settings import Settings
from kernelsvc.store.backups.restore import unpack_sessions
from kernelsvc.store.sessions import SessionDirectories, SessionDirectory

log = logging.getLogger(__name__)


def families(abouts: Mapping[str, dict[str, Any]], data: Path, awake: Collection[str]) -> list[frozenset[str]]:
    """Return the families that can move. Pure.

    A family stays if a member is awake, or if a member sees another directory of the data directory: a workspace.

    Args:
        abouts: By session, its settings (``session.json``).
        data: The data directory, resolved.
        awake: Sessions with a kernel.
    """
    sessions, found, staying = data / "sessions", defaultdict(set), set()
    for session, about in abouts.items():
        workdir = Path(str(about.get("workdir", "")))
        owner = workdir.relative_to(sessions).parts[0] if workdir.is_relative_to(sessions) else session
        found[owner].add(session)
        binds = [Path(str(bind["source"])) for bind in about.get("binds") or []]
        if session in awake or not about or any(bind.is_relative_to(data) for bind in binds):
            staying.add(owner)
    return [frozenset(members) for owner, members in sorted(found.items()) if owner not in staying and owner in members]


class Moves:
    """The moves of one server's sessions.

    Args:
        settings: Limits and templates.
        store: The directories of sessions.
        registry: All sessions.
        adoption: Adopts those that arrive.
    """

    def __init__(
        self, settings: Settings, store: SessionDirectories, registry: SessionRegistry, adoption: Adoption
    ) -> None:
        self._settings, self._store, self._registry, self._adoption = settings, store, registry, adoption
        self._one_at_a_time = asyncio.Lock()

    def movable(self) -> list[frozenset[str]]:
        """Return the families that can move now. What stays is logged."""
        awake = {each.id for each in self._registry.open_sessions() if not each.hibernated}
        abouts = {each.id: each.read_about() for each in self._store.scan()}
        found = families(abouts, self._store.data.resolve(), awake)
        for session in sorted(abouts.keys() - set().union(*found)):
            log.warning("session %s stays: it is not at rest, or it has a workspace", session)
        return found

    async def take(self, archive: Path, public_key: str) -> list[str]:
        """Take the sessions of an archive, and serve them.

        A repeat of a move that was completed changes nothing.

        Args:
            archive: The archive.
            public_key: The key of the server that gives them.

        Returns:
            Their ids.

        Raises:
            AtCapacity: They are more than this server may have.
            BadRequest: The archive is not valid.
            Conflict: A template is missing, or some of them are here already.
            OSError: The disk refuses.
        """
        async with self._one_at_a_time:
            stage, heads = await asyncio.to_thread(unpack_sessions, archive, self._store.data, public_key)
            try:
                taken = self._admit(stage, heads)
            finally:
                await asyncio.to_thread(remove_tree, stage)
            await self._adoption.take_in(taken)
        return sorted(heads)

    def _admit(self, stage: Path, heads: Mapping[str, Head]) -> list[SessionDirectory]:
        if all((self._store.sessions / session).exists() for session in heads):
            return []
        if len(self._registry.open_sessions()) + len(heads) > self._settings.max_sessions:
            raise AtCapacity("This node has no room for these sessions.")
        templates = fork_server_settings(self._settings)
        for session in heads:
            template = SessionDirectory(stage / "sessions" / session).read_about().get("template")
            if template not in templates:
                raise Conflict(f"This node has no template {template!r}, which {session} needs.")
        return self._store.take_in(stage, heads)
