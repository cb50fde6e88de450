"""Values that the client returns: cells, images, files. Errors that only a client raises."""

from __future__ import annotations

import base64
import binascii
import secrets
import ssl
from typing import Any, TypeVar

import msgspec

from kernelsvc.errors import KernelsvcError
from kernelsvc.model import events as ev
from kernelsvc.model import objects

_T = TypeVar("_T")


def new_id(kind: str) -> str:
    """Return a new random id. It makes a request safe to send twice."""
    return f"{kind}-{secrets.token_hex(10)}"


def read(data: Any, kind: type[_T]) -> _T:
    """Convert JSON from the server to a type. Ignore unknown fields: a newer server may send them.

    Raises:
        msgspec.ValidationError: the JSON has another type. Client and server have incompatible versions.
    """
    return msgspec.convert(data, kind, strict=False)


class Unreachable(KernelsvcError):
    """No server answers. Start one with 'kernelsvc serve', or give its address and token."""

    code, http_status, retryable = "unreachable", 503, True


def unreachable(address: str, error: BaseException) -> Unreachable:
    """Return the error of a client that could not connect, with the next step."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return Unreachable(
            f"The certificate of {address} is not trusted: {error.verify_message}. "
            "Set SSL_CERT_FILE to the file with its certificate authority."
        )
    shown = error if str(error) else type(error).__name__
    return Unreachable(
        f"No server answers at {address} ({shown}). Start one with 'kernelsvc serve', or give its address."
    )


class ConnectionLost(KernelsvcError):
    """The connection was lost during a request that can't be sent twice. Read the session's state, then decide."""

    code, http_status, retryable = "connection_lost", 503, False


class CellFailed(KernelsvcError):
    """The cell failed. Its text and error have the reason.

    Attributes:
        cell: the cell.
    """

    code, http_status, fault = "cell_failed", 422, "kernel"

    def __init__(self, message: str | None = None, /, *, cell: Cell | None = None, **details: Any) -> None:
        super().__init__(message, **details)
        self.cell = cell


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """An image that a cell displayed.

    Attributes:
        mime: ``image/png``, ``image/jpeg``, ``image/gif``, ``image/webp`` or ``image/svg+xml``.
        data: the file's bytes.
    """

    mime: str
    data: bytes

    @property
    def suffix(self) -> str:
        """The suffix for a file's name, with the dot."""
        kind = self.mime.removeprefix("image/")
        return {"jpeg": ".jpg", "svg+xml": ".svg"}.get(kind, f".{kind}")

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """Return the image as a MIME bundle: IPython's display protocol calls this to show it in a notebook."""
        if self.mime == "image/svg+xml":
            return {self.mime: self.data.decode("utf-8", "replace")}
        return {self.mime: base64.b64encode(self.data).decode()}


_IMAGES = ("image/png", "image/jpeg", "image/gif", "image/webp", "image/svg+xml")


def images_of(bundle: dict[str, Any]) -> list[Image]:
    """Return the images of a MIME bundle, the best format first. Values that are not base64 are ignored."""
    found = []
    for mime in _IMAGES:
        value = bundle.get(mime)
        if isinstance(value, list):
            # nbformat allows a list of lines.
            value = "".join(str(part) for part in value)
        if not isinstance(value, str):
            continue
        # SVG is text. The other formats are base64.
        if mime == "image/svg+xml":
            found.append(Image(mime=mime, data=value.encode()))
            continue
        try:
            found.append(Image(mime=mime, data=base64.b64decode(value)))
        except (binascii.Error, ValueError):
            continue
    return found


class Cell(objects.CellInfo, kw_only=True):
    """A cell: the fields of ``kernelsvc.model.objects.CellInfo``, with images and an exception.

    Attributes:
        value: return value of the function, for ``execute_once(function=...)``.
        calls: its calls of clients' functions. Iterate over the first 100, or read ``counts``.
    """

    value: Any = None
    calls: objects.CellCalls = msgspec.field(default_factory=objects.CellCalls)

    @property
    def ok(self) -> bool:
        """Whether the cell ended without an error."""
        return self.reason is ev.Reason.OK

    @property
    def images(self) -> list[Image]:
        """The images of the cell, one for each output that has any, in order."""
        bundles = (output.get("data") for output in self.outputs)
        found = (images_of(bundle) for bundle in bundles if isinstance(bundle, dict))
        return [images[0] for images in found if images]

    def raise_for_error(self) -> Cell:
        """Return the cell, or raise an exception if it failed.

        Raises:
            CellFailed: the cell ended with another reason than ``ok``.
        """
        if self.ok:
            return self
        cause = f"{self.error.ename}: {self.error.evalue}" if self.error else self.message or "see the cell's text"
        raise CellFailed(f"The cell ended with {self.reason or self.state}: {cause}", cell=self, reason=self.reason)

    def __str__(self) -> str:
        return self.text


class FileInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A file in a session's working directory.

    Attributes:
        path: path relative to the working directory, with ``/``.
        size: size in bytes.
        kind: ``file``, ``directory``, ``link`` or ``other``.
        modified: time of the last change, UTC.
    """

    path: str
    size: int = 0
    kind: str = "file"
    modified: str = ""


class UnknownEvent(ev.Event):
    """An event of an unknown type, from a newer server.

    Attributes:
        data: the event's JSON.
    """

    data: dict[str, Any] = {}


def event_of(raw: bytes) -> ev.Event:
    """Decode an event. An unknown type, from a newer server, becomes ``UnknownEvent``.

    Raises:
        msgspec.DecodeError: the JSON is not an event.
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
