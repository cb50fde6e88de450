"""Kernel Gateway's REST API: ``/api/kernels``, ``/api/sessions``, ``/api/kernelspecs``."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote

import msgspec
from tornado.web import RequestHandler

from kernelsvc import __version__
from kernelsvc.errors import BadRequest, NotFound
from kernelsvc.model.cluster.ids import kernel_id, session_of_kernel
from kernelsvc.model.objects import SessionInfo, SessionRequest, SessionState
from kernelsvc.protocol.jupyter import parse_json
from kernelsvc.server.handler import ApiHandler, BaseHandler
from kernelsvc.server.jupyter import models

#: Most sessions of one listing.
MAX_LISTED = 1000
_PAGE = 100
_OPEN = [state for state in SessionState if state is not SessionState.CLOSED]


def token_of(handler: RequestHandler, *, query: bool = True) -> str | None:
    """Return a client's token: from the path's prefix, else from a header of either scheme, else from ``?token=``.

    Args:
        handler: The request's.
        query: Whether ``?token=`` is accepted, as Jupyter Server does. Addresses end up in logs of proxies.
    """
    if found := re.match(r"/t/([^/]+)/", handler.request.path):
        return unquote(found.group(1))
    scheme, _, token = (handler.request.headers.get("Authorization") or "").strip().partition(" ")
    if scheme.lower() in ("token", "bearer") and token.strip():
        return token.strip()
    if not query:
        return None
    given = handler.request.query_arguments.get("token")
    return given[-1].decode("utf-8", "replace") if given else None


def connections(handler: BaseHandler, session: str) -> int:
    """Return the number of this API's WebSockets on a session."""
    return sum(getattr(socket, "session", None) == session for socket in handler.context.sockets)


def find(handler: BaseHandler, kernel: str) -> SessionInfo:
    """Return the open session of a kernel's id.

    Raises:
        NotFound: The caller has no such session, or it is closed.
    """
    found = handler.context.service.get(handler.who, session_of_kernel(kernel))
    if found.state is SessionState.CLOSED:
        raise NotFound(f"The kernel {kernel!r} has ended. Start another.")
    return found


class JupyterHandler(ApiHandler):
    """Base of Jupyter's REST handlers: authentication, and creating sessions."""

    transport = "jupyter"
    route = "/api"

    def token(self) -> str | None:
        """Return the token that the request carries."""
        return token_of(self)

    @property
    def prefix(self) -> str:
        """The prefix of this API's paths in the client's URLs."""
        found = re.match(r"/t/[^/]+(?=/)", self.request.path)
        return found.group(0) if found else ""

    def json_body(self) -> dict[str, Any]:
        """Decode the body, a JSON object. An empty body is an empty object.

        Raises:
            BadRequest: It is not a JSON object.
        """
        data = self.body().strip()
        value = parse_json(data) if data else {}
        if value is not None and not isinstance(value, dict):
            raise BadRequest("The body must be a JSON object.")
        return value or {}

    def open_sessions(self) -> list[SessionInfo]:
        """Return the caller's open sessions, the newest first."""
        found: dict[str, SessionInfo] = {}
        for state in _OPEN:
            page: str | None = None
            while len(found) < MAX_LISTED:
                some, page = self.context.service.list(self.who, state=state, limit=_PAGE, page=page)
                found |= {each.id: each for each in some if each.state is not SessionState.CLOSED}
                if page is None:
                    break
        return sorted(found.values(), key=lambda each: each.created_at, reverse=True)

    async def create(self, template: object, env: object, **more: Any) -> SessionInfo:
        """Create a session for a client that asks for a kernel.

        Raises:
            BadRequest: The name or the environment is invalid.
        """
        if template == "python" and template not in {each["name"] for each in self.context.service.templates()}:
            template = "python3"  # As jupyter_client does for notebooks of old (``KernelSpecManager.get_kernel_spec``).
        wanted = {"template": template or None, "env": env or {}, **more}
        try:
            request = msgspec.convert(wanted, SessionRequest)
        except msgspec.ValidationError as error:
            raise BadRequest(f"The kernel can't be started: {error}.") from None
        return await self.while_connected(self.context.service.create(self.who, request))


class RootHandler(JupyterHandler):
    """Handler of ``/api``."""

    scope = None

    async def get(self, **_: str) -> None:
        """Return the version. Clients accept any."""
        self.answer({"version": "2.0.0", "kernelsvc": __version__})


class SpecsHandler(JupyterHandler):
    """Handler of ``/api/kernelspecs``."""

    async def get(self, **_: str) -> None:
        """List the templates as kernelspecs."""
        service = self.context.service
        self.answer(models.specs_model(service.templates(), service.info()["default_template"], self.prefix))


class SpecHandler(JupyterHandler):
    """Handler of ``/api/kernelspecs/{name}``."""

    async def get(self, name: str, **_: str) -> None:
        """Return one kernelspec."""
        self.answer(models.spec_model(self.template(unquote(name)), self.prefix))

    def template(self, name: str) -> dict[str, Any]:
        """Return a template by name.

        Raises:
            NotFound: There is none.
        """
        for template in self.context.service.templates():
            if template["name"] == name:
                return template
        raise NotFound(f"There is no kernelspec {name!r}. GET /api/kernelspecs lists them.")


class SpecFileHandler(SpecHandler):
    """Handler of ``/kernelspecs/{name}/{file}``."""

    async def get(self, name: str, file: str = "", **_: str) -> None:
        """Return the logo, or ``kernel.json``."""
        template = self.template(unquote(name))
        if file == "kernel.json":
            self.answer(models.spec_model(template)["spec"])
        elif file == "logo-svg.svg":
            self.set_header("Content-Type", "image/svg+xml")
            self.write(models.LOGO)
        else:
            raise NotFound("A kernelspec has kernel.json and logo-svg.svg.")


class KernelsHandler(JupyterHandler):
    """Handler of ``/api/kernels``."""

    async def get(self, **_: str) -> None:
        """List the caller's sessions, whichever API created them."""
        async with self.context.turn_of(self.who):
            self.answer([models.kernel_model(each, connections(self, each.id)) for each in self.open_sessions()])

    async def post(self, **_: str) -> None:
        """Create a session."""
        asked = self.json_body()
        made = await self.create(asked.get("name"), asked.get("env"), labels=models.labels(asked))
        self.set_header("Location", f"{self.prefix}/api/kernels/{kernel_id(made.id)}")
        self.answer(models.kernel_model(made), 201)


class KernelHandler(JupyterHandler):
    """Handler of ``/api/kernels/{id}``."""

    async def get(self, kernel: str, **_: str) -> None:
        """Return one kernel."""
        found = find(self, kernel)
        self.answer(models.kernel_model(found, connections(self, found.id)))

    async def delete(self, kernel: str, **_: str) -> None:
        """Close the session. Its log stays."""
        await self.context.service.close(self.who, find(self, kernel).id)
        self.answer(None)


class KernelActionHandler(JupyterHandler):
    """Handler of ``/api/kernels/{id}/interrupt`` and ``/restart``."""

    async def post(self, kernel: str, action: str, **_: str) -> None:
        """Respond 204 to an interrupt, with the kernel to a restart."""
        found = find(self, kernel)
        if action == "interrupt":
            await self.context.service.interrupt(self.who, found.id)
            self.answer(None)
            return
        again = await self.context.service.restart(self.who, found.id)
        self.answer(models.kernel_model(again, connections(self, found.id)))


class JupyterSessionsHandler(JupyterHandler):
    """Handler of ``/api/sessions``: kernels with the path of a notebook."""

    async def get(self, **_: str) -> None:
        """List the sessions that were created with a path."""
        async with self.context.turn_of(self.who):
            named = [each for each in self.open_sessions() if models.PATH in each.labels]
            self.answer([models.session_model(each, connections(self, each.id)) for each in named])

    async def post(self, **_: str) -> None:
        """Create a session with its kernel, or use the named kernel."""
        asked = self.json_body()
        kernel = asked.get("kernel") or {}
        if not isinstance(kernel, dict):
            raise BadRequest("'kernel' must be an object with a name or an id.")
        if isinstance(kernel.get("id"), str):
            made = find(self, kernel["id"])
        else:
            made = await self.create(
                kernel.get("name"), {}, name=asked.get("name") or None, labels=models.labels(asked)
            )
        self.answer(models.session_model(made), 201)


class JupyterSessionHandler(JupyterHandler):
    """Handler of ``/api/sessions/{id}``."""

    async def get(self, kernel: str, **_: str) -> None:
        """Return one session."""
        self.answer(models.session_model(find(self, kernel)))

    async def delete(self, kernel: str, **_: str) -> None:
        """Close the session."""
        await self.context.service.close(self.who, find(self, kernel).id)
        self.answer(None)
