"""The front's application: the table of routes decides which handler serves a request."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from tornado.httputil import HTTPServerRequest
from tornado.web import Application, RequestHandler

from kernelsvc.front import gathering, own
from kernelsvc.front.locating import Cluster
from kernelsvc.front.members import JoinHandler, Members
from kernelsvc.front.placing import Placing
from kernelsvc.front.relay import FrontHandler, RecordHandler, RelayHandler
from kernelsvc.front.routes import PORT_BY_HOST, find
from kernelsvc.front.socket import FrontSocket
from kernelsvc.front.upstream import NodeHttp
from kernelsvc.model.cluster.reports import digest_of
from kernelsvc.model.tokens import present_name
from kernelsvc.server.app import log_request
from kernelsvc.server.handler import ServerContext, UnknownRoute
from kernelsvc.server.mcp import McpHandler, McpServiceHolder
from kernelsvc.server.ports.target import HostForm
from kernelsvc.service.access.principals import Principals
from kernelsvc.service.disposal.archiving import ArchivedRecords
from kernelsvc.settings import Settings
from kernelsvc.store.convert import ConverterQueue
from kernelsvc.store.record_archive import RecordArchive
from kernelsvc.telemetry.metrics import Metrics, Statistics

if TYPE_CHECKING:
    from kernelsvc.service.api import ServiceApi


class FrontMcpHandler(FrontHandler, McpHandler):
    """Handler of ``/mcp``. Its tools call the front itself, so sessions of all nodes have one list of names."""

    transport = "mcp"


class Front(Application):
    """The application of a front.

    Args:
        settings: Limits, origins and times.
        principals: Authenticates callers.
        key: The cluster's key.
        hold_seconds: For which requests wait for a node that is away.
        lost_seconds: Silence after which the sessions of a node count as lost.
    """

    def __init__(
        self, settings: Settings, principals: Principals, key: str, *, hold_seconds: float, lost_seconds: float
    ) -> None:
        def digest() -> str:
            return digest_of(each.token_sha256 for each in principals.callers())

        records = None
        if settings.archive_url:
            names = partial(present_name, records=settings.tokens)
            records = ArchivedRecords(RecordArchive(settings.archive_url), names, ConverterQueue())
        self._service = own.FrontService(principals, records)
        self._metrics = Metrics()
        self.members = Members(key, digest, hold_seconds, lost_seconds)
        self._upstream = NodeHttp()
        cluster = Cluster(self.members, self._upstream)
        placing = Placing(cluster, settings.max_sessions_per_principal)
        self._context = context = ServerContext(cast("ServiceApi", self._service), settings, self._metrics)
        # After the last response: a request ends with the connection of its node.
        context.closers.append(self.members.close)
        info = {"info": own.Info(cluster)}
        self._shared = {"context": context}
        self._parts = {"cluster": cluster, "placing": placing}
        mcp = {"holder": McpServiceHolder()}
        self._own: dict[str, tuple[type[RequestHandler], dict[str, Any]]] = {
            "health": (own.FrontHealthHandler, {}),
            "metrics": (own.FrontMetricsHandler, {}),
            "info": (own.InfoHandler, info),
            "nodes": (own.NodesHandler, {}),
            "drain": (own.DrainHandler, {}),
            "join": (JoinHandler, {"members": self.members}),
            "socket": (FrontSocket, info),
            "sessions": (gathering.SessionsHandler, {}),
            "objects": (gathering.ObjectsHandler, {}),
            "mcp": (FrontMcpHandler, mcp),
            "sandboxes": (gathering.SandboxListHandler, {}),
            "snapshots": (gathering.FrontSnapshotListHandler, {}),
            "usage": (gathering.UsageHandler, {}),
        }
        self._metrics.watch(self._statistics)
        super().__init__(
            log_function=log_request, websocket_max_message_size=settings.max_frame_bytes, compress_response=False
        )
        self.settings["context"] = context

    def _statistics(self) -> Statistics:
        states = Counter(str(each["state"]) for each in self.members.describe())
        return {"front_nodes": states, "front_sessions": sum(c.report.sessions for c in self.members.candidates())}

    def find_handler(self, request: HTTPServerRequest, **kwargs: Any) -> Any:
        """Tornado's hook: choose the handler of a request."""
        named = HostForm().match(request) is not None
        match = PORT_BY_HOST if named else find(request.method or "", request.path)
        if match is None:
            return self.get_handler_delegate(request, UnknownRoute, self._shared)
        archived = "part" in match.values and self._service.records is not None
        handler, more = self._own.get(match.row.own, (RecordHandler if archived else RelayHandler, {}))
        if handler is JoinHandler:
            return self.get_handler_delegate(request, handler, {**self._shared, **more})
        return self.get_handler_delegate(request, handler, {**self._shared, **self._parts, "match": match, **more})

    def serve_tools_at(self, url: str) -> None:
        """Serve MCP with a client of this address, the front's own."""
        backends = own.ToolBackends(self._service, url)
        self._context.tool_backend = backends.of
        self._context.closers.append(backends.stop)

    async def run(self) -> None:
        """Look after the nodes until cancelled."""
        try:
            await self.members.watch()
        finally:
            self._upstream.close()
