"""A form with files (RFC 7578), parsed while it arrives. No part is in memory as a whole.

``python-multipart`` parses. This module adds the limits, and returns pieces in place of callbacks.
"""

from __future__ import annotations

import logging
import re

import msgspec
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from kernelsvc.errors import BadRequest

#: Most bytes of one part's headers, and most parts of one form.
MAX_HEADERS, MAX_PARTS = 16 * 1024, 1000
#: RFC 2046, section 5.1.1 allows 70 characters. Some clients send more.
MAX_BOUNDARY = 200

# The library logs a warning for each malformed form. The client gets the same text in its error, and must not be able
# to fill the server's log.
logging.getLogger("python_multipart").setLevel(logging.ERROR)


class Part(msgspec.Struct, frozen=True):
    """The start of a part: the field's name, and the file's name if the field is a file."""

    name: str
    filename: str | None


class PartEnd(msgspec.Struct, frozen=True):
    """The end of a part."""


Piece = Part | bytes | PartEnd


def boundary_of(content_type: str) -> bytes | None:
    """Return the boundary of a form from its ``Content-Type``. Return None for any other content."""
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    return boundary if kind == b"multipart/form-data" and 0 < len(boundary) <= MAX_BOUNDARY else None


class Form:
    """Parser of one form.

    Args:
        boundary: The delimiter of its parts, from ``boundary_of``.

    Attributes:
        complete: Whether the closing delimiter was read.
    """

    def __init__(self, boundary: bytes) -> None:
        self.complete = False
        self._found: list[Piece] = []
        self._parts = self._header_bytes = 0
        self._field, self._value = bytearray(), bytearray()
        self._disposition = b""
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._part_begins,
                "on_header_field": lambda data, start, end: self._add(self._field, data[start:end]),
                "on_header_value": lambda data, start, end: self._add(self._value, data[start:end]),
                "on_header_end": self._header_ends,
                "on_headers_finished": self._headers_end,
                "on_part_data": lambda data, start, end: self._found.append(data[start:end]),
                "on_part_end": lambda: self._found.append(PartEnd()),
                "on_end": self._form_ends,
            },
            max_header_size=MAX_HEADERS,
        )

    def feed(self, data: bytes) -> list[Piece]:
        """Parse more bytes and return the pieces that they complete, in order.

        Raises:
            BadRequest: The bytes are not a form, or the form is over a limit. Feed nothing more.
        """
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise BadRequest(f"The form can't be read: {str(error).rstrip('.')}.") from None
        found, self._found = self._found, []
        return found

    def _part_begins(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise FormParserError(f"it has more than {MAX_PARTS} parts")
        self._header_bytes, self._disposition = 0, b""

    def _add(self, text: bytearray, data: bytes) -> None:
        self._header_bytes += len(data)
        if self._header_bytes > MAX_HEADERS:
            raise FormParserError(f"the headers of a part have more than {MAX_HEADERS} bytes")
        text += data

    def _header_ends(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._field.clear()
        self._value.clear()

    def _headers_end(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"name" not in options:
            raise FormParserError("a part has no name")
        filename = options.get(b"filename")
        self._found.append(Part(_text(options[b"name"]), None if filename is None else _text(filename)))

    def _form_ends(self) -> None:
        self.complete = True


_PERCENT = re.compile(rb"%(22|0[Dd]|0[Aa])")


def _text(value: bytes) -> str:
    # The HTML standard ("multipart/form-data encoding algorithm"): browsers send UTF-8 and escape a quote, CR and LF.
    plain = _PERCENT.sub(lambda found: bytes.fromhex(found[1].decode()), value)
    return plain.decode("utf-8", "surrogateescape")
