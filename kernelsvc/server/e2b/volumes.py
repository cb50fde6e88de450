"""E2B's volumes: ``/volumes``, and their files below ``/volumecontent``.

A volume *is* a workspace of the caller. Its id holds the node, the owner and the name,
so that a front finds the node, and requests for files need no list of workspaces.
"""

from __future__ import annotations

import base64
import binascii
import posixpath
import re
from typing import Any

import msgspec

from kernelsvc.errors import BadRequest, Conflict, NotFound, NotSupported, TooLarge, Unauthenticated
from kernelsvc.model.files import FileStatus, iso_time
from kernelsvc.model.objects import Principal
from kernelsvc.model.storage.workspaces import WorkspaceInfo, parse_address
from kernelsvc.server import auth
from kernelsvc.server.e2b.handler import E2bHandler
from kernelsvc.server.native.files import WorkspaceFileHandler

#: Purpose of a volume's token (``service.access.session_tokens``).
PURPOSE = "volume"
#: Most entries of one listing, since E2B's has no pages.
MAX_ENTRIES = 10_000
#: The user and group that own all files, as in a sandbox's ``/etc/passwd``.
USER = 1000
_KINDS = {"file": "file", "directory": "directory", "link": "symlink"}
_ID = re.compile(r"vol-(?:[0-9a-f]{6}|local)-([A-Za-z0-9_-]{1,1024})")


class PathQuery(msgspec.Struct, kw_only=True):
    """The query of a request for files of a volume. ``mode`` is decimal, as E2B's clients send it."""

    path: str
    depth: int = 1
    uid: int | None = None
    gid: int | None = None
    mode: int | None = None
    force: bool = False


class Permissions(msgspec.Struct, kw_only=True):
    """The body of a change of permissions."""

    uid: int | None = None
    gid: int | None = None
    mode: int | None = None


def volume_id(node: str, owner: str, name: str) -> str:
    """Return the id of a volume.

    >>> volume_id("", "ann", "report")
    'vol-local-YW5uL3JlcG9ydA'

    Args:
        node: the name of the server in its cluster, or "".
        owner: the principal that owns the workspace.
        name: of the workspace.
    """
    coded = base64.urlsafe_b64encode(f"{owner}/{name}".encode("utf-8", "surrogatepass")).decode().rstrip("=")
    return f"vol-{node or 'local'}-{coded}"


def address_of(volume: str) -> str:
    """Return the address of the workspace, ``OWNER/NAME``, for a volume's id.

    Raises:
        NotFound: It is no volume's id.
    """
    found = _ID.fullmatch(volume)
    try:
        coded = found[1] if found else "!"
        address = base64.b64decode(coded + "=" * (-len(coded) % 4), b"-_", validate=True).decode(
            "utf-8", "surrogatepass"
        )
        parse_address(address, "")
    except (binascii.Error, UnicodeDecodeError, BadRequest):
        raise NotFound(f"Volume {volume[:64]!r} was not found. Volume.list() has those of this key.") from None
    return address


def plain_path(path: str) -> bytes:
    """Return a path of a volume as one below the workspace, b"" for the volume itself.

    >>> plain_path("/reports//2026/../q1.csv")
    b'reports/q1.csv'
    """
    return posixpath.normpath(f"/{path.strip()}").lstrip("/").encode("utf-8", "surrogateescape")


def entry_model(status: FileStatus) -> dict[str, Any]:
    """Return an entry of a volume in E2B's format."""
    path = "/" + status.path.decode("utf-8", "replace")
    found = {
        "name": path.rpartition("/")[2] or "/",
        "type": _KINDS.get(status.kind, "unknown"),
        "path": path,
        "size": status.size,
        "mode": status.mode & 0o7777,
        "uid": USER,
        "gid": USER,
        "atime": iso_time(status.atime_ns),
        "mtime": iso_time(status.mtime_ns),
        "ctime": iso_time(status.ctime_ns),
    }
    return found | ({} if status.target is None else {"target": status.target.decode("utf-8", "replace")})


def mode_of(asked: PathQuery | Permissions) -> int | None:
    """Return the permissions that a request asks for, or None.

    Raises:
        NotSupported: It asks for another user.
        BadRequest: They are no permissions of user, group and others.
    """
    if {asked.uid, asked.gid} - {None, USER}:
        raise NotSupported(
            f"The files of a volume belong to one user, {USER}, in all sandboxes. Leave uid and gid out."
        )
    if asked.mode is not None and not 0 <= asked.mode <= 0o777:
        raise BadRequest("mode must be from 0 to 0o777.")
    return asked.mode


class VolumeHandler(E2bHandler):
    """Base of the handlers of the caller's volumes."""

    route = "/volumes"

    def volume_id(self, info: WorkspaceInfo) -> str:
        """Return a volume's id."""
        return volume_id(self.context.settings.node, info.owner, info.name)

    def own(self) -> list[WorkspaceInfo]:
        """Return the caller's own workspaces. Those that others share have no volume."""
        return [each for each in self.context.service.workspaces.list(self.who) if each.owner == self.who.name]

    def find(self, volume: str) -> WorkspaceInfo:
        """Return a volume of the caller.

        Raises:
            NotFound: There is none.
        """
        address = address_of(volume)
        for each in self.own():
            if each.workspace == address:
                return each
        raise NotFound(f"Volume {volume[:64]!r} was not found. Volume.list() has those of this key.")

    def model(self, info: WorkspaceInfo) -> dict[str, Any]:
        """Return a volume with its token.

        Raises:
            Forbidden: The caller's token lacks the scope ``run``.
        """
        volume = self.volume_id(info)
        return {
            "volumeID": volume,
            "name": info.name,
            "token": self.context.service.access.secret(self.who, volume, PURPOSE),
        }


class VolumesHandler(VolumeHandler):
    """Handler of ``/volumes``."""

    async def get(self) -> None:
        """List the caller's volumes."""
        self.answer([{"volumeID": self.volume_id(each), "name": each.name} for each in self.own()])

    async def post(self) -> None:
        """Make a volume."""
        self.auth_scope("run")
        name = self.json_body().get("name")
        if not isinstance(name, str) or "/" in name:
            raise BadRequest("Name the volume: letters, digits, '.', '_' and '-'.")
        parse_address(name, self.who.name)
        if any(each.name == name for each in self.own()):
            raise Conflict(f"There is a volume {name!r}. Connect to it, or choose another name.")
        self.answer(self.model(self.context.service.workspaces.set(self.who, name)), 201)


class VolumeDetailHandler(VolumeHandler):
    """Handler of ``/volumes/{id}``."""

    async def get(self, volume: str) -> None:
        """Return a volume with its token."""
        self.answer(self.model(self.find(volume)))

    async def delete(self, volume: str) -> None:
        """Remove a volume with its files. 409 while a sandbox has it."""
        self.auth_scope("run")
        await self.context.service.workspaces.remove(self.who, self.find(volume).workspace)
        self.answer(None)


class VolumeContentHandler(E2bHandler):
    """Base of the handlers of a volume's files. The volume's token, or one of its owner's, authenticates them."""

    route = "/volumecontent"
    own_authentication = True
    scope = None

    def authenticate_request(self) -> None:
        """Check the origin, then the volume's token.

        Raises:
            Unauthenticated: It is not that volume's.
        """
        super().authenticate_request()
        if self.request.method != "OPTIONS":
            self.set_principal(self._holder())
            self.auth_scope("run")

    def _holder(self) -> Principal:
        volume: str = self.path_args[0]
        try:
            owner = address_of(volume).rpartition("/")[0]
        except NotFound:
            owner = ""
        given = auth.bearer(self.request.headers.get("Authorization"))
        if given is None or not owner:
            raise Unauthenticated("Send the token of this volume: Authorization: Bearer TOKEN.")
        return self.context.service.access.holder(volume, (PURPOSE,), given, owner=owner)

    @property
    def asked(self) -> PathQuery:
        """The query.

        Raises:
            BadRequest: A value has the wrong type.
        """
        return self.query(PathQuery)

    @property
    def address(self) -> str:
        """The address of the workspace."""
        return address_of(self.path_args[0])

    async def stat(self, path: bytes) -> FileStatus:
        """Describe an entry.

        Raises:
            NotFound: It does not exist.
        """
        return await self.context.service.workspaces.files.stat(self.who, self.address, path)

    async def present(self, path: bytes) -> FileStatus | None:
        """Describe an entry, or return None if it does not exist."""
        try:
            return await self.stat(path)
        except NotFound:
            return None

    async def require_parent(self, path: bytes) -> None:
        """Check that the directory of a new entry exists.

        Raises:
            NotFound, Conflict: It does not exist, or is a file.
        """
        parent = path.rpartition(b"/")[0]
        if (await self.stat(parent)).kind != "directory":
            raise Conflict(f"{parent.decode('utf-8', 'replace')} is a file. Choose another directory.")

    async def change_mode(self, path: bytes, mode: int | None) -> None:
        """Set the permissions of an entry, if the request asks for some."""
        if mode is not None:
            await self.context.service.workspaces.set_mode(self.who, self.address, path, mode)


class VolumePathHandler(VolumeContentHandler):
    """Handler of ``/volumecontent/{id}/path``."""

    async def get(self, volume: str) -> None:
        """Describe an entry."""
        self.answer(entry_model(await self.stat(plain_path(self.asked.path))))

    async def patch(self, volume: str) -> None:
        """Change an entry's permissions."""
        path = _below(self.asked)
        try:
            wanted = msgspec.convert(self.json_body(), Permissions)
        except msgspec.ValidationError as error:
            raise BadRequest(f"The permissions can't be read: {error}.") from None
        await self.change_mode(path, mode_of(wanted))
        self.answer(entry_model(await self.stat(path)))

    async def delete(self, volume: str) -> None:
        """Remove a file, or a directory with its content."""
        files = self.context.service.workspaces.files
        await self.while_connected(files.remove(self.who, self.address, _below(self.asked), recursive=True))
        self.answer(None)


class VolumeDirectoryHandler(VolumeContentHandler):
    """Handler of ``/volumecontent/{id}/dir``."""

    async def get(self, volume: str) -> None:
        """List a directory."""
        asked = self.asked
        files = self.context.service.workspaces.files
        async with self.context.turn_of(self.who, "files"):
            listing = files.list(
                self.who, self.address, plain_path(asked.path), depth=max(1, asked.depth), limit=MAX_ENTRIES
            )
            entries, more = await self.while_connected(listing)
            if more:
                raise TooLarge(f"More than {MAX_ENTRIES} entries. List a directory below it, or fewer levels.")
            self.answer([entry_model(each) for each in entries])

    async def post(self, volume: str) -> None:
        """Make a directory. With ``force`` also those above it, and one that exists is no error."""
        asked = self.asked
        path, mode = _below(asked), mode_of(asked)
        found = await self.present(path)
        if found is not None and not (asked.force and found.kind == "directory"):
            raise Conflict(f"{asked.path} exists. Choose another name, or use force for a directory.")
        if found is None:
            if not asked.force:
                await self.require_parent(path)
            await self.context.service.workspaces.files.make_directory(self.who, self.address, path)
            await self.change_mode(path, mode)
        self.answer(entry_model(await self.stat(path)), 201)


class VolumeFileHandler(VolumeContentHandler, WorkspaceFileHandler):
    """Handler of ``/volumecontent/{id}/file``. Transfers are those of a workspace."""

    def _session(self) -> str:
        return self.address

    def _path(self) -> bytes:
        return _below(self.asked)

    async def get(self, volume: str) -> None:  # type: ignore[override]
        """Send a file."""
        path = self._path()
        if (await self.stat(path)).kind == "directory":
            raise BadRequest("This is a directory. List it, or name a file in it.")
        await self.download(path)

    async def _begin_upload(self) -> None:
        mode_of(self.asked)
        await self.require_parent(self._path())
        await super()._begin_upload()

    def _check_conditions(self, present: FileStatus | None) -> None:
        if present is not None and (present.kind == "directory" or not self.asked.force):
            raise Conflict(f"{self.asked.path} exists. Choose another name, or use force for a file.")

    async def put(self, volume: str) -> None:  # type: ignore[override]
        """Rename the uploaded file to its final name."""
        if self._failure is not None:
            raise self._failure
        assert self._upload is not None
        await self._upload.commit()
        await self.change_mode(self._path(), mode_of(self.asked))
        self.answer(entry_model(await self.stat(self._path())), 201)


def _below(asked: PathQuery) -> bytes:
    path = plain_path(asked.path)
    if not path:
        raise BadRequest("The volume itself can't be changed. Name a file or directory in it.")
    return path


_VOLUME = r"/volumecontent/([^/]+)"
ROUTES: list[tuple[str, Any]] = [
    (r"/volumes", VolumesHandler),
    (r"/volumes/([^/]+)", VolumeDetailHandler),
    (rf"{_VOLUME}/path", VolumePathHandler),
    (rf"{_VOLUME}/dir", VolumeDirectoryHandler),
    (rf"{_VOLUME}/file", VolumeFileHandler),
]
