"""What the client hands out: cells, images, files, and the errors that only a client can meet."""

from __future__ import annotations

import base64
import binascii
import secrets
from typing import Any, TypeVar

import msgspec

from kernelsvc.errors import KernelsvcError
from kernelsvc.model import events as ev
from kernelsvc.model import objects

_T = TypeVar("_T")


def new_id(kind: str) -> str:
    """An id of the client's own making: what makes a request safe to send twice."""
    return f"{kind}-{secrets.token_hex(10)}"


def read(data: Any, kind: type[_T]) -> _T:
    """JSON from the server as a value; fields that we do not know are left out.

    Raises:
        msgspec.ValidationError: the server and we do not speak the same version.
    """
    return msgspec.convert(data, kind, strict=False)


class Unreachable(KernelsvcError):
    """No server answers; start one with 'kernelsvc serve', or give its address and token."""

    code, http_status, retryable = "unreachable", 503, True


class ConnectionLost(KernelsvcError):
    """The connection broke under a request that can't be sent twice; look at the session's state, then ask again."""

    code, http_status, retryable = "connection_lost", 503, False


class CellFailed(KernelsvcError):
    """The cell did not end well; its text and error say why.

    Attributes:
        cell: the cell.
    """

    code, http_status, fault = "cell_failed", 422, "kernel"

    def __init__(self, message: str | None = None, /, *, cell: Cell | None = None, **details: Any) -> None:
        super().__init__(message, **details)
        self.cell = cell


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """A picture that a cell showed.

    Attributes:
        mime: ``image/png``, ``image/jpeg``, ``image/gif``, ``image/webp`` or ``image/svg+xml``.
        data: the file's bytes.
    """

    mime: str
    data: bytes

    @property
    def suffix(self) -> str:
        """What a file's name should end in, with the dot."""
        kind = self.mime.removeprefix("image/")
        return {"jpeg": ".jpg", "svg+xml": ".svg"}.get(kind, f".{kind}")

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """Show itself in a notebook (IPython's display protocol)."""
        if self.mime == "image/svg+xml":
            return {self.mime: self.data.decode("utf-8", "replace")}
        return {self.mime: base64.b64encode(self.data).decode()}


_IMAGES = ("image/png", "image/jpeg", "image/gif", "image/webp", "image/svg+xml")


def images_of(bundle: dict[str, Any]) -> list[Image]:
    """The pictures in a MIME bundle, the best one first; what is not base64 is left out."""
    found = []
    for mime in _IMAGES:
        value = bundle.get(mime)
        if isinstance(value, list):
            value = "".join(str(part) for part in value)
        if not isinstance(value, str):
            continue
        if mime == "image/svg+xml":
            found.append(Image(mime=mime, data=value.encode()))
            continue
        try:
            found.append(Image(mime=mime, data=base64.b64decode(value)))
        except (binascii.Error, ValueError):
            continue
    return found


class Cell(objects.CellInfo, kw_only=True):
    """A cell as the server shows it (``kernelsvc.model.objects.CellInfo``), with what a caller wants to do with it.

    Attributes:
        value: what the function returned, for ``execute_once(function=...)``.
    """

    value: Any = None

    @property
    def ok(self) -> bool:
        """Whether it ran to its end without an error."""
        return self.reason is ev.Reason.OK

    @property
    def images(self) -> list[Image]:
        """One picture for each output that has any, in order."""
        bundles = (output.get("data") for output in self.outputs)
        found = (images_of(bundle) for bundle in bundles if isinstance(bundle, dict))
        return [images[0] for images in found if images]

    def raise_for_error(self) -> Cell:
        """The cell itself, for chaining.

        Raises:
            CellFailed: it ended with any reason but ``ok``; carries the cell.
        """
        if self.ok:
            return self
        cause = f"{self.error.ename}: {self.error.evalue}" if self.error else self.message or "see its text"
        raise CellFailed(f"The cell ended with {self.reason or self.state}: {cause}", cell=self, reason=self.reason)

    def __str__(self) -> str:
        return self.text


class FileInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A file in a session's working directory.

    Attributes:
        path: relative, with ``/``.
        size: bytes.
        kind: ``file``, ``directory``, ``link`` or ``other``.
        modified: when it was last written, UTC.
    """

    path: str
    size: int = 0
    kind: str = "file"
    modified: str = ""


class UnknownEvent(ev.Event):
    """An event of a type that this client's version does not know; ``data`` is its JSON."""

    data: dict[str, Any] = {}


def event_of(raw: bytes) -> ev.Event:
    """An event from its JSON; a type we do not know (a newer server's) becomes ``UnknownEvent``.

    Raises:
        msgspec.DecodeError: it is no event at all.
    """
    try:
        return ev.decode(raw)
    except msgspec.ValidationError:
        data = msgspec.json.decode(raw, type=dict[str, Any])
        envelope = msgspec.convert(data, _EventEnvelope)
        return UnknownEvent(session=envelope.session, seq=envelope.seq, at=envelope.at, cell=envelope.cell, data=data)


class _EventEnvelope(msgspec.Struct):
    session: str
    seq: int
    at: str = ""
    cell: str | msgspec.UnsetType = msgspec.UNSET
