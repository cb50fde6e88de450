"""One DNS question and its answer (RFC 1035). The proxy answers by itself and passes no query on."""

from __future__ import annotations

import ipaddress
import struct
from typing import NamedTuple

TYPE_A, TYPE_PTR = 1, 12
CLASS_IN = 1
NO_ERROR, NAME_ERROR = 0, 3
#: Seconds for which a program may keep an answer. The proxy keeps it for as long as the session lives.
TTL_SECONDS = 30

_HEADER = struct.Struct("!HHHHHH")
# RFC 1035, section 4.1.1. QR, opcode and the bits that an answer sets: QR, RD (copied) and RA.
_IS_RESPONSE, _OPCODE, _RECURSION_DESIRED, _ANSWER_FLAGS = 0x8000, 0x7800, 0x0100, 0x8080
_MAX_LABEL = 63
#: An answer repeats the name of the question by a pointer to it (RFC 1035, section 4.1.4).
_POINTER_TO_QUESTION = 0xC00C


class InvalidQuery(Exception):
    """The datagram is not one plain question. It gets no answer."""


class Question(NamedTuple):
    """The question of a query.

    Attributes:
        id: The query's id.
        recursion: The bit RD of the query.
        name: Labels with dots between, bytes as Latin-1. Not checked: a label may hold any byte.
        kind: The type, such as 1 for A.
        raw: The question section, which an answer repeats.
    """

    id: int
    recursion: int
    name: str
    kind: int
    raw: bytes


def parse_query(data: bytes) -> Question:
    """Parse a query with one question. Further sections (EDNS) are ignored.

    Raises:
        InvalidQuery: It is something else.
    """
    if len(data) < _HEADER.size:
        raise InvalidQuery("shorter than a header")
    number, flags, questions, *_ = _HEADER.unpack_from(data)
    if flags & (_IS_RESPONSE | _OPCODE) or questions != 1:
        raise InvalidQuery("not one standard query")
    labels: list[str] = []
    at = _HEADER.size
    while at < len(data) and data[at]:
        end = at + 1 + data[at]
        # A longer length is a pointer, which has no place in a first name.
        if data[at] > _MAX_LABEL or end > len(data):
            raise InvalidQuery("a label is too long")
        labels.append(data[at + 1 : end].decode("latin-1"))
        at = end
    end = at + 5
    if len(data) < end:
        raise InvalidQuery("the question ends early")
    kind, group = struct.unpack_from("!HH", data, at + 1)
    if group != CLASS_IN:
        raise InvalidQuery("not a question about the Internet")
    # A dot inside of a label would make two labels of one.
    if any("." in label for label in labels):
        labels = ["\0".join(labels)]
    return Question(number, flags & _RECURSION_DESIRED, ".".join(labels), kind, data[_HEADER.size : end])


def build_answer(question: Question, code: int, record: bytes = b"") -> bytes:
    """Return an answer.

    Args:
        question: The question.
        code: ``NO_ERROR`` or ``NAME_ERROR``. REFUSED would make glibc ask again and report a temporary failure.
        record: Data of one record of the question's type. Empty means that there is none.
    """
    flags = _IS_RESPONSE | _ANSWER_FLAGS | question.recursion | code
    head = _HEADER.pack(question.id, flags, 1, 1 if record else 0, 0, 0) + question.raw
    if not record:
        return head
    fields = (_POINTER_TO_QUESTION, question.kind, CLASS_IN, TTL_SECONDS, len(record))
    return head + struct.pack("!HHHIH", *fields) + record


def encode_name(name: str) -> bytes:
    """Return a host name as the data of a PTR record."""
    return b"".join(bytes([len(label)]) + label.encode("ascii") for label in name.split(".")) + b"\0"


def reverse_address(name: str) -> str | None:
    """Return the IPv4 address that a name below ``in-addr.arpa`` asks for, or None."""
    labels = name.lower().removesuffix(".in-addr.arpa").split(".")
    if not name.lower().endswith(".in-addr.arpa") or len(labels) != 4:
        return None
    try:
        return str(ipaddress.IPv4Address(".".join(reversed(labels))))
    except ValueError:
        return None
