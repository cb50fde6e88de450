"""On which node a request makes a session: by the names in its body, by its key, else by the load of the nodes."""

from __future__ import annotations

import asyncio
import random
from urllib.parse import quote

from kernelsvc.errors import AtCapacity, BadRequest, NotFound, QuotaExceeded
from kernelsvc.front.locating import Cluster
from kernelsvc.front.members import Member, ask
from kernelsvc.front.routes import Wanted
from kernelsvc.model.cluster import ids, placing
from kernelsvc.model.identity.fair_cache import FairCache
from kernelsvc.model.objects import Principal
from kernelsvc.model.storage.workspaces import parse_address
from kernelsvc.server.e2b import models

#: Keys whose node is remembered, of one principal and in all. See ``FairCache``.
MAX_KEYS, MAX_ALL_KEYS = 10_000, 50_000


class Placing:
    """Chooses nodes for creations.

    Args:
        cluster: The nodes.
        max_sessions: Most open sessions of one principal, unless its token says another number.
    """

    def __init__(self, cluster: Cluster, max_sessions: int) -> None:
        self._cluster = cluster
        self._members = cluster.members
        self._max_sessions = max_sessions
        self._keys: FairCache[tuple[str, str], str] = FairCache(MAX_KEYS, MAX_ALL_KEYS)
        self._random = random.Random()

    async def choose(self, who: Principal, token: str, wanted: Wanted) -> list[Member]:
        """Return the nodes to try, the best first: at least one. Safe to cancel.

        Args:
            who: The caller.
            token: Its token.
            wanted: The fields of the request's body.

        Raises:
            QuotaExceeded: The caller has as many sessions as it may have.
            AtCapacity, NodeUnreachable, SessionLost: No node can take it now.
        """
        cluster = self._cluster
        if wanted.session is not None:
            return [await cluster.node_of(wanted.session, token)]
        if wanted.node is not None and self._members.get(wanted.node) is not None:
            return [await self._members.wait_for(wanted.node, "what the request names")]
        await self._members.wait_for_any()
        if wanted.makes:
            self._check_quota(who, wanted)
        if wanted.workspace is not None and (address := _workspace(wanted.workspace, who)) is not None:
            return [await cluster.node_of_workspace(address, token)]
        if wanted.snapshot is not None and (found := await self.node_of_snapshot(wanted.snapshot, token)):
            return [found]
        if wanted.key is not None:
            tries = await self._by_key(who, wanted)
        else:
            tries = placing.choose(self._members.candidates(), self._template(wanted), self._random)
        found_members = [member for each in tries if (member := self._members.get(each.node)) is not None]
        # A template that no node has is refused by a node, which says so.
        return found_members or [self._ready()]

    def _ready(self) -> Member:
        ready = [each for each in self._members.reachable() if each.candidate.report.ready]
        taking = [each for each in ready if not each.candidate.report.draining]
        if not taking:
            raise AtCapacity(
                "No node of this cluster can create sessions now. Try again in a few seconds. 'kernelsvc nodes' shows "
                "their states."
            )
        return min(taking, key=lambda each: each.candidate.load)

    def _template(self, wanted: Wanted) -> str | None:
        """Return the template that the node must have, if one of the nodes has a template of that name."""
        known = {name for each in self._members.reachable() for name in _templates(each)}
        return wanted.template if wanted.template in known else None

    def _check_quota(self, who: Principal, wanted: Wanted) -> None:
        """Check the quota of a principal over all nodes. It is soft: each front counts its own creations."""
        most = who.max_sessions or self._max_sessions
        if placing.sessions_of(self._members.candidates(), who.name) < most:
            return
        if wanted.key is not None and (who.name, wanted.key) in self._keys:
            return
        raise QuotaExceeded(
            f"{who.name!r} has {most} open sessions on the nodes of this cluster, which is the limit. Close some.",
            limit=most,
        )

    async def _by_key(self, who: Principal, wanted: Wanted) -> list[placing.Candidate]:
        key = who.name, wanted.key or ""
        candidates = placing.choose_for_key(self._members.candidates(), self._template(wanted), *key)
        known = self._keys.get(key)
        if known is None and len(candidates) > 1:
            known = await self._ask_for_key(key)
        if known is not None:
            candidates.sort(key=lambda each: each.node != known)
            if not candidates or candidates[0].node != known:
                holder = self._members.get(known)
                candidates = [holder.candidate] if holder is not None and holder.reachable else candidates
        if candidates:
            self._keys.put(who.name, key, candidates[0].node)  # for a repeat that comes before the node has answered
        return candidates

    def note_answered(self, who: Principal, wanted: Wanted, member: Member) -> None:
        """Remember the node that has answered a creation. Others before it may have had no room."""
        if wanted.key is not None:
            self._keys.put(who.name, (who.name, wanted.key), member.name)

    @staticmethod
    def note_sent(who: Principal, wanted: Wanted, member: Member) -> None:
        """Count a creation that is sent to a node, until the node's next report counts it."""
        if wanted.makes:
            member.candidate.note_sent(who.name)

    async def _ask_for_key(self, key: tuple[str, str]) -> str | None:
        """Ask the nodes that this key may have gone to, by whatever front."""
        ranked = placing.rank(self._members.candidates(), "\0".join(key))[: placing.MAX_TRIES]
        members = [member for each in ranked if (member := self._members.get(each.node)) is not None]
        answers = await asyncio.gather(*(ask(member, key=key) for member in members))
        return next((member.name for member, found in zip(members, answers, strict=True) if found), None)

    async def node_of_snapshot(self, name: str, token: str) -> Member | None:
        """Return the node of a template or snapshot of E2B's API, or None if any node has it.

        Args:
            name: Its id, or its name.
            token: The caller's.

        Raises:
            NodeUnreachable, SessionLost: Its node does not answer.
        """
        if session := ids.session_of(name):
            return await self._cluster.node_of(session, token)
        await self._members.wait_for_any()
        plain = name.partition(":")[0]
        if plain in models.DEFAULT_TEMPLATES:
            return None
        gathered = await self._cluster.everywhere("GET", f"/templates/aliases/{quote(name, safe='')}", token)
        found = [member for member, response in gathered.answers if response.status == 200]
        if not found:
            gathered.must_be_complete(name)
            return None
        if len(found) == 1:
            return found[0]
        try:
            models.template_of(name, {each for member in found for each in _templates(member)})
        except NotFound:  # Several snapshots of one name: the newest one counts.
            return await self._cluster.node_of_label(f"{models.SNAPSHOT}={plain}", token)
        # Some nodes may lack an environment of this name.
        return min(found, key=lambda each: each.candidate.load) if len(found) < len(gathered.answers) else None


def _workspace(named: str, who: Principal) -> str | None:
    """Return the address of a workspace. None: it is no name of one, which the node says."""
    try:
        return "/".join(parse_address(named, who.name))
    except BadRequest:
        return None


def _templates(member: Member) -> list[str]:
    return member.candidate.report.templates
