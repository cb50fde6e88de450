"""Which node a request is for: by ids where they say it, else by asking the nodes."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import msgspec

from kernelsvc.errors import AtCapacity, NodeUnreachable, NotFound, SessionLost
from kernelsvc.front.members import Member, Members, ask
from kernelsvc.front.upstream import NoAnswer, NodeHttp, NotSent, Response
from kernelsvc.model.cluster import ids, placing
from kernelsvc.model.cluster.reports import MAX_TARGETS

_PAGE = 100


class _Found(msgspec.Struct):
    id: str
    state: str
    created_at: str


class _SessionIds(msgspec.Struct):
    sessions: list[_Found]


_page = msgspec.json.Decoder(_SessionIds).decode


@dataclass(frozen=True)
class Gathered:
    """The responses of all nodes to one request.

    Attributes:
        answers: The nodes that answered.
        missing: The names of the others: they are not reachable, or failed.
    """

    answers: list[tuple[Member, Response]]
    missing: list[str]

    def must_be_complete(self, named: str) -> None:
        """Check that all nodes answered: another one may have what these do not have.

        Raises:
            NodeUnreachable: Some did not.
        """
        must_be_complete(named, self.missing)


def must_be_complete(named: str, missing: list[str]) -> None:
    """Check that no node is missing where something was not found."""
    if missing:
        raise NodeUnreachable(
            f"No node that answers has {named!r}, and these do not answer: {', '.join(missing)}. Try again later.",
            nodes=missing,
        )


@dataclass
class Cluster:
    """The nodes, and connections to them. The handlers of a front share it.

    Attributes:
        members: The nodes.
        upstream: HTTP to them.
    """

    members: Members
    upstream: NodeHttp

    # --- sessions ---------------------------------------------------------------------------

    async def node_of(self, session: str, token: str | None) -> Member:
        """Return the node of a session. Waits for one that is away for a moment. Safe to cancel.

        Args:
            session: Its id.
            token: The caller's, to ask nodes about an id that names none.

        Raises:
            NodeUnreachable, SessionLost: Its node does not answer.
            AtCapacity: No node does.
        """
        members = self.members
        owner = members.owner(session)
        if owner is None:
            await members.wait_for_any()
            owner = members.owner(session)
        if owner is None and token is not None:
            owner = await self._ask_for(f"/v1/sessions/{quote(session, safe='')}", token, session)
            if owner is not None:
                members.remember(session, owner)
        if owner is None:
            must_be_complete(session, members.unreachable())
            return members.any()
        try:
            return await members.wait_for(owner, session)
        except (NodeUnreachable, SessionLost):
            # A closed session that has moved is in no node's report.
            found = await self._find_anywhere(session, token)
            if found is None:
                raise
            members.remember(session, found.name)
            return found

    async def _find_anywhere(self, session: str, token: str | None) -> Member | None:
        """Return the node among those that answer which has a session, whatever its id says."""
        if token is None:
            return None
        gathered = await self.everywhere("GET", f"/v1/sessions/{quote(session, safe='')}", token)
        return next((member for member, response in gathered.answers if response.status == 200), None)

    async def node_of_object(self, name: str, path: str, token: str) -> Member:
        """Return the node of an object of OpenAI's API.

        Args:
            name: Its id, which may hint at the node.
            path: Where the object can be read.
            token: The caller's.
        """
        if session := ids.session_of_container(name):
            return await self.node_of(session, token)
        hint = ids.node_hint(name)
        if hint is not None and self.members.get(hint) is not None:
            return await self.members.wait_for(hint, name)
        await self.members.wait_for_any()
        return self.members.any(await self._ask_for(path, token, name))

    async def node_of_workspace(self, address: str, token: str) -> Member:
        """Return the node that has a workspace. One that does not exist yet has the node that its address decides.

        Args:
            address: ``OWNER/NAME``.
            token: The caller's.

        Raises:
            NodeUnreachable: No node has it, and one that may have it does not answer.
        """
        await self.members.wait_for_any()
        gathered = await self.everywhere("GET", "/v1/workspaces", token)
        for member, response in gathered.answers:
            for each in _json_list(response):
                if isinstance(each, dict) and each.get("workspace") == address:
                    return member
        gathered.must_be_complete(address)
        return self._ranked(address)

    def _ranked(self, key: str) -> Member:
        found = placing.rank(self.members.candidates(), key)
        return self.members.any(found[0].node if found else None)

    async def home_of(self, principal: str) -> Member:
        """Return the node that a principal always gets, while the same nodes answer."""
        await self.members.wait_for_any()
        return self._ranked(principal)

    async def node_of_label(self, label: str, token: str) -> Member | None:
        """Return the node of the newest open session with a label, or None.

        Raises:
            NodeUnreachable: There is none, and a node that may have it does not answer.
        """
        await self.members.wait_for_any()
        path = f"/v1/sessions?limit={_PAGE}&label={quote(label, safe='')}"
        found: list[tuple[str, Member]] = []
        gathered = await self.everywhere("GET", path, token)
        for member, response in gathered.answers:
            try:
                sessions = _page(response.body).sessions if response.status == 200 else []
            except msgspec.MsgspecError:
                continue
            found += [(each.created_at, member) for each in sessions if each.state != "closed"]
        if found:
            return max(found, key=lambda pair: pair[0])[1]
        gathered.must_be_complete(label)
        return None

    async def node_of_signed(self, signed: tuple[str, str, str, str, int | None]) -> tuple[Member, str] | None:
        """Return the node and the session of a signed address, or None."""
        await self.members.wait_for_any()
        members = self.members.reachable()
        answers = await asyncio.gather(*(ask(each, signed=signed) for each in members))
        return next(((each, found) for each, found in zip(members, answers, strict=True) if found), None)

    async def _ask_for(self, path: str, token: str, named: str) -> str | None:
        gathered = await self.everywhere("GET", path, token)
        found = [member.name for member, response in gathered.answers if response.status == 200]
        if not found:
            gathered.must_be_complete(named)
        return found[0] if found else None

    async def everywhere(self, verb: str, path: str, token: str) -> Gathered:
        """Send one request to all nodes, with a caller's token. Safe to cancel."""
        members = self.members.reachable()
        missing = self.members.unreachable()
        headers = {"Authorization": f"Bearer {token}"}

        async def one(member: Member) -> tuple[Member, Response] | None:
            try:
                response = await self.upstream.fetch(member, verb, path, headers)
            except (NotSent, NoAnswer, OSError):
                response = Response(status=503)
            if response.status < 500:
                return member, response
            missing.append(member.name)
            return None

        answers = await asyncio.gather(*(one(each) for each in members))
        return Gathered([each for each in answers if each is not None], sorted(missing))

    # --- drain ------------------------------------------------------------------------------

    async def drain(self, node: str, *, move: bool = False) -> None:
        """Ask a node to drain.

        Args:
            node: Its name.
            move: Whether it gives its sessions to the other nodes.

        Raises:
            NotFound: It has never joined.
            NodeUnreachable: It does not answer.
            AtCapacity: No other node is ready.
        """
        member = self.members.get(node)
        if member is None:
            raise NotFound(f"No node {node!r} has joined this front. 'kernelsvc nodes' lists the nodes.", node=node)
        ready = [each for each in self.members.reachable() if each.candidate.report.ready and each.name != node]
        targets = sorted((each.name, each.url) for each in ready if not each.candidate.report.draining)
        if move and not targets:
            raise AtCapacity("No other node is ready to take the sessions. 'kernelsvc nodes' lists the nodes.")
        if await ask(member, drain=True, targets=targets[:MAX_TARGETS] if move else []) is None:
            raise NodeUnreachable(f"The node {node} does not answer. 'kernelsvc nodes' shows its state.", node=node)


def _json_list(response: Response) -> list[Any]:
    try:
        found = msgspec.json.decode(response.body) if response.status == 200 else []
    except msgspec.MsgspecError:
        return []
    return found if isinstance(found, list) else []
