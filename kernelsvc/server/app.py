"""The Tornado application, and the server that listens for it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import grp
import importlib
import ipaddress
import logging
import os
import socket
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tornado.web import Application, RequestHandler

from kernelsvc.errors import BadRequest, Conflict
from kernelsvc.server import console, e2b, jupyter, mcp, ports, sandboxai, sandboxfusion
from kernelsvc.server.connections import ConnectionLimiter, LimitedServer
from kernelsvc.server.e2b.unsupported import StrayHandler
from kernelsvc.server.handler import ApiHandler, ServerContext, without_token
from kernelsvc.server.native import handlers
from kernelsvc.server.native import routes as rest
from kernelsvc.server.native.files import FileHandler, WorkspaceFileHandler
from kernelsvc.server.native.websocket import ApiSocket
from kernelsvc.settings import Settings
from kernelsvc.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from kernelsvc.service.api import ServiceApi

log = logging.getLogger(__name__)

#: sd_listen_fds(3): the first descriptor that systemd passes.
LISTEN_FDS_START = 3
#: Seconds between two checks for open requests during a stop, and most seconds for closing the rest.
LOOK_SECONDS, CLOSE_SECONDS = 0.01, 5.0
#: listen(2)'s backlog. After a restart, hundreds of clients may reconnect at the same time.
BACKLOG = 1024
#: Seconds that a connection may wait between two requests.
IDLE_SECONDS = 600.0
#: Largest body, in bytes, where no handler sets a limit of its own.
MAX_STRAY_BODY = 64 * 1024


def make_app(
    service: ServiceApi, settings: Settings, metrics: Metrics | None = None, keys: Mapping[str, str] | None = None
) -> Application:
    """Make the Tornado application with all routes over this service.

    Args:
        service: The service that the routes call.
        settings: Limits, origins and times.
        metrics: The counters of ``/metrics``. None: new ones.
        keys: The keys of the models' servers, by the name of the model.
    """
    context = ServerContext(service, settings, metrics or Metrics())
    shared = {"context": context}
    app = Application(
        [
            *ports.routes(shared),
            (r"/v1/ws", ApiSocket, shared),
            *_model_routes(context, keys or {}),
            *_rest_routes(shared),
            *_compatibility_routes(shared),
        ],
        default_handler_class=StrayHandler,
        default_handler_args=shared,
        log_function=log_request,
        websocket_max_message_size=settings.max_frame_bytes,
        compress_response=False,
    )
    app.settings["context"] = context
    return app


#: Handlers of the routes that are not a method of the native API.
_SPECIAL: dict[str, tuple[type[ApiHandler], dict[str, Any]]] = {
    "healthz": (handlers.HealthHandler, {}),
    "readyz": (handlers.ReadyHandler, {}),
    "metrics": (handlers.MetricsHandler, {}),
    "openapi": (handlers.DocumentHandler, {"kind": "openapi", "route": "/v1/openapi.json"}),
    "openrpc": (handlers.DocumentHandler, {"kind": "openrpc", "route": "/v1/openrpc.json"}),
    "session.events": (handlers.EventsHandler, {}),
    "session.notebook": (handlers.NotebookHandler, {}),
    "session.journal": (handlers.JournalHandler, {}),
    "session.value": (handlers.ValueHandler, {}),
    "files.list": (FileHandler, {}),
    "files.get": (FileHandler, {}),
    "workspace.files.list": (WorkspaceFileHandler, {}),
    "workspace.files.get": (WorkspaceFileHandler, {}),
}


def _compatibility_routes(shared: dict[str, Any]) -> list[Any]:
    """Return the routes of the APIs of other products."""
    return [route for api in (console, jupyter, mcp, sandboxai, sandboxfusion, e2b) for route in api.routes(shared)]


def _model_routes(context: ServerContext, keys: Mapping[str, str]) -> list[Any]:
    """Return the routes of OpenAI's API. A server without models imports nothing for them."""
    if not context.settings.models:
        return []
    return list(importlib.import_module("kernelsvc.server.openai").routes(context, keys))


def _rest_routes(shared: dict[str, Any]) -> list[Any]:
    """Return one Tornado route for each path of the table."""
    paths: dict[str, dict[str, rest.Route]] = {}
    for route in rest.ROUTES:
        paths.setdefault(route.path, {})[route.verb] = route
    routes = []
    for path, verbs in paths.items():
        first = next(iter(verbs.values()))
        if first.id in _SPECIAL:
            handler, more = _SPECIAL[first.id]
        else:
            handler = handlers.CellsHandler if path.endswith("/cells") else handlers.MethodHandler
            more = {"routes": verbs}
        routes.append((rest.pattern(path), handler, {**shared, **more}))
    return routes


def log_request(handler: RequestHandler) -> None:
    """Log one line for each request at debug level, without the query, which may hold a token."""
    request = handler.request
    log.debug(
        "%s %s %d",
        request.method,
        without_token(request.path),
        handler.get_status(),
        extra={"action": "request", "status": handler.get_status(), "seconds": request.request_time()},
    )


class _HideQuotedInput(logging.Filter):
    """Filter of Tornado's line on a malformed request. The line quotes the request, which may hold a token."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep the line, drop the quote."""
        if isinstance(record.args, tuple) and str(record.msg).startswith("Malformed HTTP message"):
            record.msg, record.args = "Malformed HTTP message from %s", record.args[:1]
        return True


_WITHOUT_VALUES = _HideQuotedInput()


class Server:
    """The HTTP server: listens, serves and stops. ``addresses`` lists where it listens."""

    def __init__(self, app: Application, settings: Settings, env: Mapping[str, str] | None = None) -> None:
        self.addresses: list[str] = []
        self._settings = settings
        self._env = env or {}
        self._context: ServerContext = app.settings["context"]
        self._unlink: Path | None = None
        self._sockets: list[socket.socket] = []
        logging.getLogger("tornado.general").addFilter(_WITHOUT_VALUES)
        self._http = LimitedServer(
            app,
            max_body_size=MAX_STRAY_BODY,
            max_header_size=64 * 1024,
            idle_connection_timeout=IDLE_SECONDS,
            chunk_size=256 * 1024,
        )

    def bind(self) -> list[str]:
        """Listen on the sockets from systemd, else on the Unix socket, else on TCP. Clients wait until ``start``.

        Returns:
            The addresses, as clients write them.

        Raises:
            Conflict: The address is in use or is not this machine's.
        """
        self._sockets = activated_sockets(self._env)
        if not self._sockets:
            self._sockets = (
                [self._bind_uds(self._settings.uds, self._settings.uds_group)]
                if self._settings.uds
                else self._bind_tcp()
            )
        self.addresses = [address_of(each) for each in self._sockets]
        # A Unix socket beside TCP, for nodes of a front, is no way for a page in a browser.
        tcp = [each for each in self._sockets if each.family != socket.AF_UNIX]
        self._context.on_loopback = bool(tcp) and all(_is_loopback(each) for each in tcp)
        for each in self._sockets:
            if each.family != socket.AF_UNIX and not _is_loopback(each):
                log.warning(
                    "Other machines can reach %s, and the connection is not encrypted: tokens can be read on the way. "
                    "Listen on 127.0.0.1 behind a proxy with TLS (docs/howto/deploy.md).",
                    address_of(each),
                )
        return self.addresses

    def start(self) -> list[str]:
        """Serve, after ``bind`` if that was not called.

        Returns:
            The addresses, as clients write them.

        Raises:
            Conflict: The address is in use or is not this machine's.
        """
        if not self._sockets:
            self.bind()
        for open_ in self._context.openers:
            open_()
        limiter = ConnectionLimiter.of(self._settings, self._context.service.void_tokens)
        self._http.listen_within(limiter, self._sockets)
        return self.addresses

    def _bind_tcp(self) -> list[socket.socket]:
        host, port = self._settings.host, self._settings.port
        try:
            return bind_tcp(host, port)
        except OSError as error:
            raise Conflict(f"Can't listen on {host}:{port}: {error.strerror}. Choose another with --port.") from None

    def _bind_uds(self, path: Path, group: str | None) -> socket.socket:
        try:
            bound = bind_private(path, group=None if group is None else _group_id(group))
        except OSError as error:
            raise Conflict(f"Can't listen on {path}: {error.strerror}. Choose another with --uds.") from None
        self._unlink = path
        return bound

    async def stop(self) -> None:
        """Accept nothing new, let open requests end within ``shutdown_seconds``, then close the rest.

        Event streams and WebSockets end immediately. Their clients resume by cursor.
        """
        self._context.stopping = True
        self._http.stop()
        for handler in list(self._context.sockets):
            handler.close(1001, "the server stops")
        deadline = asyncio.get_running_loop().time() + self._settings.shutdown_seconds
        while self._context.requests and asyncio.get_running_loop().time() < deadline:
            # In each turn, because a request that was still arriving may start a stream only now.
            for task in list(self._context.streams):
                task.cancel()
            await asyncio.sleep(LOOK_SECONDS)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                for close in self._context.closers:
                    await close()
                await self._http.close_all_connections()
        if self._http.connections is not None:
            self._http.connections.stop()
        if self._unlink is not None:
            with contextlib.suppress(OSError):
                self._unlink.unlink()


def activated_sockets(env: Mapping[str, str]) -> list[socket.socket]:
    """Return the listening sockets that systemd passed to this process (sd_listen_fds(3))."""
    if env.get("LISTEN_PID") != str(os.getpid()):
        return []
    found = []
    for fd in range(LISTEN_FDS_START, LISTEN_FDS_START + int(env.get("LISTEN_FDS", "0"))):
        passed = socket.socket(fileno=fd)
        passed.setblocking(False)
        os.set_inheritable(fd, False)
        found.append(passed)
    return found


def bind_tcp(host: str, port: int) -> list[socket.socket]:
    """Open listening sockets for each address of a host, all on one port (0: a free one).

    Raises:
        OSError: An address is in use or is not this machine's. No socket stays open.
    """
    found: list[socket.socket] = []
    infos = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    try:
        for family, _, _, _, address in sorted(set(infos)):
            listener = socket.socket(family, socket.SOCK_STREAM)
            found.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind((address[0], port, *address[2:]))
            port = listener.getsockname()[1]
            listener.listen(BACKLOG)
            listener.setblocking(False)
    except OSError:
        for listener in found:
            listener.close()
        raise
    return found


def _group_id(group: str) -> int:
    try:
        return int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
    except KeyError:
        raise BadRequest(f"This machine has no group {group!r}. Choose another with --uds-group.") from None


def bind_private(path: Path, *, group: int | None = None) -> socket.socket:
    """Open a listening Unix socket that has mode 0600 from the start. A dead server's socket is replaced.

    Args:
        path: The socket's file.
        group: Id of a group that may connect too (mode 0660).

    Raises:
        OSError: A server listens there, another file has the name, or this process may not give a file to the group.
    """
    if path.exists() or path.is_symlink():
        _remove_dead(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # unix(7): the file gets the socket's mode at bind. A chmod after bind would leave a gap.
    os.fchmod(listener.fileno(), 0o600)
    try:
        listener.bind(str(path))
        if group is not None:
            # Before listen(2), so that no client connects in between.
            os.chown(path, -1, group)
            path.chmod(0o660)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def _remove_dead(path: Path) -> None:
    if not stat.S_ISSOCK(path.lstat().st_mode):
        raise FileExistsError(errno.EEXIST, "another file has this name, and it is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
    raise OSError(errno.EADDRINUSE, "a server listens there")


def _is_loopback(listener: socket.socket) -> bool:
    """Return whether only this machine's own clients reach a listener by a name. No name leads to a Unix socket."""
    if listener.family == socket.AF_UNIX:
        return False
    return ipaddress.ip_address(str(listener.getsockname()[0]).partition("%")[0]).is_loopback


def address_of(listener: socket.socket) -> str:
    """Return ``http://127.0.0.1:8888`` or ``unix:/path``."""
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix:{os.fsdecode(name)}"
    host = f"[{name[0]}]" if listener.family == socket.AF_INET6 else name[0]
    return f"http://{host}:{name[1]}"
