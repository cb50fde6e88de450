"""The front's own routes: health, a description of the cluster, its nodes, metrics, and MCP."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import msgspec

from kernelsvc import __version__
from kernelsvc.client.async_client import AsyncClient
from kernelsvc.client.tool_backend import ClientToolBackend
from kernelsvc.errors import AtCapacity, BadRequest, NotSupported
from kernelsvc.front.gathering import error_of
from kernelsvc.front.locating import Cluster
from kernelsvc.front.merged_metrics import merge
from kernelsvc.front.relay import FrontHandler
from kernelsvc.linux.tasks import OwnedTasks
from kernelsvc.model.objects import Principal
from kernelsvc.server.native import handlers
from kernelsvc.service.access.principals import Principals
from kernelsvc.service.api import RecordsApi
from kernelsvc.telemetry.metrics import CONTENT_TYPE

#: Tokens whose text is remembered for requests of the front's own, and clients for them. The oldest is forgotten first.
MAX_TOKENS = 1000


class FrontService:
    """The part of ``ServiceApi`` that a front has itself: who calls.

    Args:
        principals: Authenticates callers.
        records: The archive of closed sessions, or None.
    """

    def __init__(self, principals: Principals, records: RecordsApi | None = None) -> None:
        self._principals, self.records = principals, records
        self._tokens: OrderedDict[str, str] = OrderedDict()

    def authenticate(self, token: str | None, user: str | None = None) -> Principal:
        """Return the principal of a token.

        Raises:
            Unauthenticated: No principal has this token.
            NotSupported: The request is for a user of the principal. The front's own requests to nodes would not name
                the user, and so reach the principal's sessions.
        """
        if user is not None:
            raise NotSupported("A front does not take X-On-Behalf-Of. Use a token for each user, or one server.")
        who = self._principals.authenticate(token)
        self._tokens[who.token_sha256] = token or ""
        self._tokens.move_to_end(who.token_sha256)
        while len(self._tokens) > MAX_TOKENS:
            self._tokens.popitem(last=False)
        return who

    def token_of(self, who: Principal) -> str:
        """Return the token that a caller has shown."""
        return self._tokens.get(who.token_sha256, "")

    def void_tokens(self, hashes: frozenset[str]) -> frozenset[str]:
        """Return those of these tokens' hashes that are not valid any more."""
        return self._principals.void(hashes)

    def client_gone(self, client: object) -> None:
        """Do nothing: the nodes notice that their connections end."""

    async def ensure_loaded(self, named: str) -> None:
        """Do nothing: the nodes load their sessions."""


class Info:
    """Describes the cluster as ``GET /v1/info`` does a server.

    Args:
        cluster: The nodes.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def show(self, token: str) -> dict[str, Any]:
        """Return the answer of a node, with what differs in a cluster. Safe to cancel.

        The sandbox is the report of the node whose sessions are confined least.

        Args:
            token: The caller's.

        Raises:
            AtCapacity: No node answers.
        """
        cluster = self._cluster
        await cluster.members.wait_for_any()
        found: list[dict[str, Any]] = []
        for _member, response in (await cluster.everywhere("GET", "/v1/info", token)).answers:
            if response.status != 200:
                raise error_of(response)
            found.append(msgspec.json.decode(response.body))
        if not found:
            raise AtCapacity("No node of this cluster answers now. Try again in a few seconds.")
        weakest = max(found, key=lambda each: len(each["sandbox"].get("not_enforced") or ()))
        members = cluster.members.known()
        keys = {member.name: member.hello.public_key for member in members if member.hello.public_key}
        return {**weakest, "public_keys": keys, "nodes": len(members), "front": __version__}


class FrontHealthHandler(FrontHandler):
    """Handler of ``/healthz`` and ``/readyz``."""

    scope = None
    route = "/healthz"

    async def get(self, *_: str, **__: str) -> None:
        """Answer. ``/readyz`` answers 503 until a node can create sessions."""
        self.route = self.request.path
        ready = any(each.candidate.report.ready for each in self.cluster.members.reachable())
        if self.request.path == "/readyz" and not ready:
            raise AtCapacity("No node of this cluster can create sessions yet. Try again in a few seconds.")
        self.finish({"status": "ok"})

    head = get


class InfoHandler(FrontHandler):
    """Handler of ``/v1/info``."""

    route = "/v1/info"
    info: Info

    async def get(self, *_: str, **__: str) -> None:
        """Describe the cluster."""
        self.set_header("Content-Type", "application/json")
        self.finish(msgspec.json.encode(await self.info.show(self.token() or "")))


class NodesHandler(FrontHandler):
    """Handler of ``/v1/nodes``."""

    scope = "audit"
    route = "/v1/nodes"

    async def get(self, *_: str, **__: str) -> None:
        """List the nodes, and why others were refused."""
        self.auth_scope("audit")
        members = self.cluster.members
        self.finish({"nodes": members.describe(), "refused": members.refusals(), "version": __version__})


class DrainHandler(FrontHandler):
    """Handler of ``/v1/nodes/{node}/drain``."""

    route = "/v1/nodes/{node}/drain"

    async def post(self, *_: str, **__: str) -> None:
        """Ask a node to create no more sessions, to wait for its cells, and to stop.

        With ``?move=true`` it gives its sessions to the other nodes then.
        """
        self.auth_scope("operate")
        move = self.get_query_argument("move", "false")
        if move not in ("true", "false"):
            raise BadRequest("'move' in the query is true or false.")
        await self.cluster.drain(self.match.values["node"], move=move == "true")
        self.set_status(202)
        self.finish({"node": self.match.values["node"], "state": "draining"})


class FrontMetricsHandler(FrontHandler, handlers.MetricsHandler):
    """Handler of ``/metrics``. Nodes that are workers of one machine have no address from which they could be read."""

    async def get(self, *_: str, **__: str) -> None:  # type: ignore[override]
        """Write the metrics of the front, and of each node with its name as a label."""
        if self.scope is not None:
            self.auth_scope(self.scope)
        gathered = await self.cluster.everywhere("GET", "/metrics", self.token() or "")
        texts = {member.name: each.body.decode() for member, each in gathered.answers if each.status == 200}
        self.set_header("Content-Type", CONTENT_TYPE)
        self.finish(merge(self.context.metrics.exposition().decode(), texts))


class ToolBackends:
    """Backends of the tools of MCP clients: clients of the front itself, one for each token.

    Args:
        service: Knows the tokens of callers.
        url: The front's own address.
    """

    def __init__(self, service: FrontService, url: str) -> None:
        self._service, self._url = service, url
        self._clients: OrderedDict[str, AsyncClient] = OrderedDict()
        self._closing = OwnedTasks()

    def of(self, who: Principal) -> ClientToolBackend:
        """Return the backend of a caller."""
        found = self._clients.get(who.token_sha256)
        if found is None:
            found = self._clients[who.token_sha256] = AsyncClient(self._url, self._service.token_of(who))
        self._clients.move_to_end(who.token_sha256)
        while len(self._clients) > MAX_TOKENS:
            self._closing.start(self._clients.popitem(last=False)[1].close())
        return ClientToolBackend(found)

    async def stop(self) -> None:
        """Close the clients."""
        for each in self._clients.values():
            await each.close()
        self._clients.clear()
