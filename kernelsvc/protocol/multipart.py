"""Forms with files (RFC 7578), taken apart as they come: a part is never held whole."""

from __future__ import annotations

import re
from email.message import Message as Headers
from email.parser import BytesParser

import msgspec

from kernelsvc.errors import BadRequest

#: Most bytes of a part's headers, and parts of one form.
MAX_HEADERS, MAX_PARTS = 16 * 1024, 1000


class Part(msgspec.Struct, frozen=True):
    """A part begins: the field's name, and the file's where it has one."""

    name: str
    filename: str | None


class Ended(msgspec.Struct, frozen=True):
    """The part has ended."""


Piece = Part | bytes | Ended


def boundary_of(content_type: str) -> bytes | None:
    """The boundary of a form; None if it is none."""
    headers = Headers()
    headers["Content-Type"] = content_type
    boundary = headers.get_boundary()
    if headers.get_content_type() != "multipart/form-data" or not boundary or len(boundary) > 200:
        return None
    return boundary.encode("utf-8", "surrogateescape")


class Form:
    """Takes a form apart.

    Args:
        boundary: what stands between its parts.
    """

    def __init__(self, boundary: bytes) -> None:
        self._mark = b"\r\n--" + boundary
        self._held = bytearray(b"\r\n")  # so that the first boundary looks like every other one
        self._state = "preamble"
        self._parts = 0

    @property
    def complete(self) -> bool:
        """Whether the form's end has come."""
        return self._state == "over"

    def feed(self, data: bytes) -> list[Piece]:
        """What is known now, in order.

        Raises:
            BadRequest: it is no form.
        """
        self._held += data
        found: list[Piece] = []
        while self._step(found):
            pass
        return found

    def _step(self, found: list[Piece]) -> bool:
        """One step further; False when more data is needed."""
        if self._state == "headers":
            return self._headers(found)
        if self._state == "boundary":
            return self._boundary()
        if self._state == "over":
            self._held.clear()
            return False
        return self._content(found)

    def _content(self, found: list[Piece]) -> bool:
        at = self._held.find(self._mark)
        whole = len(self._held) - len(self._mark) if at < 0 else at
        if self._state == "data" and whole > 0:
            found.append(bytes(self._held[:whole]))
        if whole > 0:
            del self._held[:whole]
        if at < 0:
            return False
        del self._held[: len(self._mark)]
        if self._state == "data":
            found.append(Ended())
        self._state = "boundary"
        return True

    def _boundary(self) -> bool:
        if len(self._held) < 2:
            return False
        if self._held.startswith(b"--"):
            self._state = "over"
            return True
        line, newline, _ = bytes(self._held[:256]).partition(b"\r\n")
        if not newline:
            if len(self._held) >= 256:
                raise BadRequest("The form can't be read: a boundary is followed by something else.")
            return False
        del self._held[: len(line)]  # the newline stays, so that a part without headers looks like every other one
        self._parts += 1
        if line.strip(b" \t") or self._parts > MAX_PARTS:
            raise BadRequest(f"The form can't be read, or has more than {MAX_PARTS} parts.")
        self._state = "headers"
        return True

    def _headers(self, found: list[Piece]) -> bool:
        at = self._held.find(b"\r\n\r\n")
        if at > MAX_HEADERS or (at < 0 and len(self._held) > MAX_HEADERS):
            raise BadRequest("The form can't be read: the headers of a part are too long.")
        if at < 0:
            return False
        found.append(_part(bytes(self._held[:at]).lstrip(b"\r\n")))
        del self._held[: at + 4]
        # The boundary may follow at once, with the newline that ended the headers as its own.
        self._state = "data"
        return True


_QUOTED = re.compile(rb';\s*(name|filename)="((?:[^"\\]|\\.)*)"', re.IGNORECASE)
_PERCENT = re.compile(rb"%(22|0[Dd]|0[Aa])")


def _part(headers: bytes) -> Part:
    """Names as browsers write them (the HTML standard): UTF-8 in quotes, with three characters escaped by a percent."""
    given = {name.lower(): value for name, value in _QUOTED.findall(headers.replace(b"\r\n ", b" "))}
    name, filename = given.get(b"name"), given.get(b"filename")
    if name is None:
        disposition = BytesParser().parsebytes(headers + b"\r\n\r\n", headersonly=True)
        plain = disposition.get_param("name", header="Content-Disposition")
        if not isinstance(plain, str):
            raise BadRequest("The form can't be read: a part has no name.")
        name = plain.encode("utf-8", "surrogateescape")
    return Part(_text(name), None if filename is None else _text(filename))


def _text(value: bytes) -> str:
    plain = _PERCENT.sub(lambda found: bytes.fromhex(found[1].decode()), value.replace(b'\\"', b'"'))
    return plain.decode("utf-8", "surrogateescape")
