"""E2B's routes for building templates (``template_builds``), and the question whether a template exists."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, unquote

from kernelsvc.errors import BadRequest, Conflict, NotFound, Unauthenticated
from kernelsvc.protocol import e2b_templates as recipes
from kernelsvc.server.e2b import models
from kernelsvc.server.e2b.control_plane import ControlPlaneHandler
from kernelsvc.server.e2b.handler import E2bHandler
from kernelsvc.server.e2b.template_builds import TemplateBuilds, files_path
from kernelsvc.server.native.files import WorkspaceFileHandler

#: Purpose of the secret in the address of an upload (``service.access.session_tokens``).
PURPOSE = "template"
#: Most lines of a log in one answer, as in E2B.
MAX_LINES = 100


class TemplateHandler(ControlPlaneHandler):
    """Base of the handlers of templates. ``builds`` is set by the routes."""

    route = "/templates"
    builds: TemplateBuilds


class TemplateAliasHandler(TemplateHandler):
    """Handler of ``/templates/aliases/{alias}``, by which E2B's clients ask whether a template exists."""

    async def get(self, alias: str) -> None:
        """Return the template of this name, or 404."""
        name = unquote(alias)
        try:
            found = models.template_of(name, self.builds.server_templates())
        except NotFound:
            plain = name.partition(":")[0]
            if self.find_snapshot(name) is None and await self.builds.read(self.who, plain) is None:
                raise
            found = plain
        self.answer({"templateID": found or name, "public": True})


class BuildRequestHandler(TemplateHandler):
    """Handler of ``/v3/templates``: the first request of a build."""

    async def post(self) -> None:
        """Give a build its id."""
        self.auth_scope("run")
        asked = self.json_body()
        name = recipes.template_name(asked.get("name") or asked.get("alias"))
        build = await self.builds.request(self.who, name)
        shown = {"templateID": name, "buildID": build.id, "public": False}
        self.answer(shown | {"names": [name], "aliases": [name], "tags": asked.get("tags") or []}, 202)


class BuildStartHandler(TemplateHandler):
    """Handler of ``/v2/templates/{id}/builds/{id}``: the recipe."""

    async def post(self, template: str, build: str) -> None:
        """Begin a build."""
        self.auth_scope("run")
        self.builds.start(
            self.who, await self.builds.find(self.who, unquote(template), build), recipes.decode(self.json_body())
        )
        self.set_status(202)


class BuildStatusHandler(TemplateHandler):
    """Handler of ``/templates/{id}/builds/{id}/status``."""

    async def get(self, template: str, build: str) -> None:
        """Return the status of a build, and a page of its log."""
        found = await self.builds.find(self.who, unquote(template), build)
        start = models.moment(self.query_fields(), "logsOffset", 0)
        lines = found.lines[start : start + MAX_LINES]
        shown = {"templateID": found.name, "buildID": found.id, "status": found.status, "logEntries": lines}
        shown["logs"] = [each.message for each in lines]
        self.answer(shown | ({"reason": found.reason} if found.reason else {}))


class UploadAddressHandler(TemplateHandler):
    """Handler of ``GET /templates/{id}/files/{hash}``: where to upload the files of a step."""

    async def get(self, template: str, digest: str) -> None:
        """Return an address with a secret of its own, since E2B's clients send no key there."""
        self.auth_scope("run")
        recipes.check_upload(template, digest)
        secret = self.context.service.access.secret(self.who, f"{template}.{digest}", PURPOSE)
        node = self.context.settings.node  # By its name a front finds the node of a request without a token.
        place = f"{node}-{digest}" if node else digest
        base = f"{self.request.protocol}://{self.request.host}/templates/{template}/uploads/{place}"
        self.answer({"present": False, "url": f"{base}?owner={quote(self.who.name, safe='')}&secret={secret}"}, 201)


class UploadHandler(E2bHandler, WorkspaceFileHandler):
    """Handler of ``PUT /templates/{id}/uploads/{hash}``: the files of a step, as a tar archive."""

    route = "/templates/uploads"
    own_authentication = True
    scope = None

    def authenticate_request(self) -> None:
        """Check the origin, then the secret of the address.

        Raises:
            Unauthenticated: It is not that of this upload.
        """
        super().authenticate_request()
        if self.request.method == "OPTIONS":
            return
        template, digest = self.path_args
        given, owner = (self.get_query_argument(name, "") for name in ("secret", "owner"))
        if not given or not owner:
            raise Unauthenticated("Ask for the address of the upload first: GET /templates/NAME/files/HASH.")
        recipes.check_upload(template, digest)
        self.set_principal(self.context.service.access.holder(f"{template}.{digest}", (PURPOSE,), given, owner=owner))

    def _session(self) -> str:
        return models.templates_address(self.who.name)

    def _path(self) -> bytes:
        return files_path(self.path_args[1])

    async def put(self, template: str, digest: str) -> None:  # type: ignore[override]
        """Keep the archive for the build."""
        if self._failure is not None:
            raise self._failure
        if self._upload is None:
            raise BadRequest("The archive is missing.")
        await self._upload.commit()
        self.set_status(200)

    def _refuse(self, *_: str, **__: str) -> None:
        raise Conflict("An address of an upload takes PUT only.")

    get = head = delete = _refuse  # type: ignore[assignment]


_NAME = _BUILD = r"([^/]+)"
_HASH = r"([^/-]+)"
ROUTES: list[tuple[str, Any]] = [
    (r"/templates/aliases/(?P<alias>[^/]+)", TemplateAliasHandler),
    (r"/v3/templates", BuildRequestHandler),
    (rf"/templates/{_NAME}/files/{_HASH}", UploadAddressHandler),
    (rf"/templates/{_NAME}/uploads/(?:[0-9a-f]{{6}}-)?{_HASH}", UploadHandler),
    (rf"/v2/templates/{_NAME}/builds/{_BUILD}", BuildStartHandler),
    (rf"/templates/{_NAME}/builds/{_BUILD}/status", BuildStatusHandler),
]
