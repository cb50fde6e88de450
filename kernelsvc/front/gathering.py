"""Lists of all nodes as one list."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

import msgspec

from kernelsvc import errors
from kernelsvc.errors import BadRequest, KernelsvcError
from kernelsvc.front.locating import Cluster
from kernelsvc.front.members import Member
from kernelsvc.front.relay import FrontHandler
from kernelsvc.front.upstream import NoAnswer, NotSent, Response
from kernelsvc.model.cluster import ids, paging
from kernelsvc.model.objects import SessionInfo, SessionState
from kernelsvc.protocol.method_params import ListParams
from kernelsvc.protocol.openai.lists import MAX_LIMIT, page_of
from kernelsvc.server.e2b import control_plane

#: Sessions of one page where all of a caller's are read, and most sessions of one state that are read.
_PAGE, MAX_LISTED = 1000, 10_000


class _RawPage(msgspec.Struct):
    sessions: list[msgspec.Raw]
    next_page: str | None = None


class _Key(msgspec.Struct):
    created_at: str
    id: str


_page = msgspec.json.Decoder(_RawPage).decode
_key = msgspec.json.Decoder(_Key).decode
_error = msgspec.json.Decoder(dict[str, Any]).decode


def error_of(response: Response) -> KernelsvcError:
    """Return the error in a node's answer."""
    try:
        return errors.from_json(_error(response.body))
    except (msgspec.MsgspecError, TypeError):
        return errors.Internal()


def _position(raw: msgspec.Raw) -> paging.Position:
    key = _key(raw)
    return key.created_at, key.id


async def list_sessions(cluster: Cluster, token: str, params: ListParams) -> dict[str, Any]:
    """Return one page of a caller's sessions on all nodes. Safe to cancel.

    Args:
        cluster: The nodes.
        token: The caller's.
        params: The request.

    Returns:
        The page, as ``session.list`` has it, and ``unreachable`` with the nodes that are missing.

    Raises:
        KernelsvcError: A node refuses the request.
    """
    await cluster.members.wait_for_any()
    members = cluster.members.reachable()
    missing = set(cluster.members.unreachable())
    asked: dict[str, Any] = {"state": params.state, "label": params.label, "principal": params.principal}
    asked |= {"limit": paging.share(params.limit, len(members))}
    headers = {"Authorization": f"Bearer {token}"}

    def source_of(member: Member) -> paging.Source[msgspec.Raw]:
        async def read(cursor: str | None) -> tuple[Sequence[msgspec.Raw], str | None]:
            query = urlencode({name: str(v) for name, v in {**asked, "page": cursor}.items() if v is not None})
            try:
                response = await cluster.upstream.fetch(member, "GET", f"/v1/sessions?{query}", headers)
            except (NotSent, NoAnswer, OSError):
                missing.add(member.name)
                return [], None
            if response.status != 200:
                raise error_of(response)
            page = _page(response.body)
            return page.sessions, page.next_page

        return paging.Source(read, cursor=params.page)

    sources = [source_of(member) for member in members]
    await asyncio.gather(*(source.fill() for source in sources))
    found, following = await paging.merge(sources, params.limit, _position)
    return {"sessions": found, "next_page": following, **({"unreachable": sorted(missing)} if missing else {})}


class SessionsHandler(FrontHandler):
    """Handler of ``GET /v1/sessions``."""

    route = "/v1/sessions"

    async def get(self, *_: str, **__: str) -> None:
        """List the caller's sessions."""
        query = {name: self.decode_argument(values[-1], name) for name, values in self.request.query_arguments.items()}
        query.pop("token", None)
        try:
            params = msgspec.convert(query, ListParams, strict=False)
        except (msgspec.ValidationError, ValueError) as error:
            raise BadRequest(f"The query can't be read: {error}.") from None
        self.set_header("Content-Type", "application/json")
        self.finish(msgspec.json.encode(await list_sessions(self.cluster, self.token() or "", params)))


class ObjectsHandler(FrontHandler):
    """Handler of ``GET /v1/containers`` and ``GET /v1/files``."""

    route = "/v1/files"

    async def get(self, *_: str, **__: str) -> None:
        """List the caller's objects, with the pages of OpenAI's API."""
        plain = {"limit", "order", "after", "token"}
        query = {n: self.decode_argument(v[-1], n) for n, v in self.request.query_arguments.items() if n not in plain}
        path = f"{self.request.path}?{urlencode({**query, 'limit': MAX_LIMIT, 'order': 'desc'})}"
        await self.cluster.members.wait_for_any()
        found: list[dict[str, Any]] = []
        gathered = await self.cluster.everywhere("GET", path, self.token() or "")
        for _member, response in gathered.answers:
            if response.status != 200:
                raise error_of(response)
            found += msgspec.json.decode(response.body)["data"]
        found.sort(key=lambda each: each["created_at"], reverse=True)
        defaults = {"limit": "20", "order": "desc", "after": ""}
        shown = page_of(found, {name: self.get_query_argument(name, value) for name, value in defaults.items()})
        if gathered.missing:
            shown["unreachable"] = gathered.missing
        self.set_header("Content-Type", "application/json")
        self.finish(msgspec.json.encode(shown))


class _ListsSandboxes(FrontHandler):
    """A handler of E2B's API whose answer follows from the caller's open sessions, as the server's own one."""

    cluster: Cluster
    _sessions: dict[str, SessionInfo] = {}

    async def prepare(self) -> None:
        """Tornado's hook: authenticate, then read the sessions of all nodes."""
        await super().prepare()
        if self.request.method == "OPTIONS":
            return
        found = await asyncio.gather(*(self._in_state(state) for state in SessionState if state != "closed"))
        # A session may change its state between two of the requests.
        self._sessions = {each.id: each for some in found for each in some if each.state != "closed"}

    async def _in_state(self, state: SessionState) -> list[SessionInfo]:
        found: list[SessionInfo] = []
        params = ListParams(limit=_PAGE, state=state)
        while len(found) < MAX_LISTED:
            page = await list_sessions(self.cluster, self.token() or "", params)
            found += [msgspec.json.decode(each, type=SessionInfo) for each in page["sessions"]]
            if page["next_page"] is None:
                break
            params.page = page["next_page"]
        return found

    def open_sessions(self) -> list[SessionInfo]:
        """Return the caller's open sessions on all nodes."""
        return [*self._sessions.values()]


class SandboxListHandler(_ListsSandboxes, control_plane.SandboxesHandler):
    """Handler of ``GET /sandboxes`` and ``GET /v2/sandboxes``."""


class FrontSnapshotListHandler(_ListsSandboxes, control_plane.SnapshotListHandler):
    """Handler of ``GET /snapshots``."""


class UsageHandler(FrontHandler):
    """Handler of ``GET /sandboxes/metrics``."""

    route = "/sandboxes/metrics"

    async def get(self, *_: str, **__: str) -> None:
        """Return the usage of several sandboxes, each from its node."""
        by_node: dict[str, list[str]] = {}
        for name in self.get_query_argument("sandbox_ids", "").split(","):
            owner = self.cluster.members.owner(ids.session_of(name) or "")
            if owner is not None:
                by_node.setdefault(owner, []).append(name)
        headers = {"Authorization": f"Bearer {self.token()}"}

        async def usage_at(node: str, names: list[str]) -> dict[str, Any]:
            member = self.cluster.members.get(node)
            if member is None or not member.reachable:
                return {}
            query = urlencode({"sandbox_ids": ",".join(names)})
            try:
                response = await self.cluster.upstream.fetch(member, "GET", f"/sandboxes/metrics?{query}", headers)
            except (NotSent, NoAnswer, OSError):
                return {}
            found: dict[str, Any] = msgspec.json.decode(response.body)["sandboxes"] if response.status == 200 else {}
            return found

        found = await asyncio.gather(*(usage_at(node, names) for node, names in by_node.items()))
        self.finish({"sandboxes": {name: usage for some in found for name, usage in some.items()}})
