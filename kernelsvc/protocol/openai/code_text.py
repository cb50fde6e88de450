"""The code in a tool call's arguments, while they arrive in pieces.

The arguments should be a JSON object, ``{"code": "..."}``. Models also send the code itself, a JSON string, or a fenced
block. The code is read from each of them. Nothing is guessed: JSON that is broken is not run.
"""

from __future__ import annotations

import json
import re
from typing import Literal

_OPENING = re.compile(r'\s*\{\s*"(?:code|input|source)"\s*:\s*"')
_END = re.compile(r"\s*\}\s*\Z")
_FENCE = re.compile(r"\A\s*```[a-zA-Z]*\n(.*?)\n?```\s*\Z", re.DOTALL)
#: RFC 8259, section 7.
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", '"': '"', "\\": "\\", "/": "/"}
#: Names of the argument. Models use those that they were trained with.
_NAMES = ("code", "input", "source")
#: Characters after which arguments that do not begin as expected are not read piece by piece any more.
_UNDECIDED = 64


class CodeText:
    """Reader of one call's arguments.

    Attributes:
        raw: The arguments so far.
        complete: Whether a whole JSON object with the code has arrived.
    """

    def __init__(self) -> None:
        self.raw = ""
        self.complete = False
        self._kind: Literal["undecided", "object", "raw", "late"] = "undecided"
        self._at = 0
        self._closed = False

    def feed(self, piece: str) -> str:
        """Take more of the arguments. Return the code that is new, without an escape that is not complete yet."""
        self.raw += piece
        if self._kind == "undecided":
            self._decide()
        if self._kind == "raw":
            new, self._at = self.raw[self._at :], len(self.raw)
            return new
        if self._kind != "object":
            return ""
        new = "" if self._closed else self._read()
        if self._closed:
            self.complete = _END.match(self.raw, self._at) is not None
        return new

    def _decide(self) -> None:
        if found := _OPENING.match(self.raw):
            self._kind, self._at = "object", found.end()
            return
        start = self.raw.lstrip()
        # A fence or a string may hold the code, and code may begin with a string. Only the end decides.
        if start and start[0] in '"`':
            self._kind = "late"
        elif start and start[0] != "{":
            self._kind = "raw"
        elif len(start) > _UNDECIDED:
            self._kind = "late"

    def _read(self) -> str:
        found: list[str] = []
        text = self.raw
        while self._at < len(text):
            here = text[self._at]
            if here == '"':
                self._closed = True
                self._at += 1
                break
            if here != "\\":
                end = _next_special(text, self._at)
                found.append(text[self._at : end])
                self._at = end
                continue
            character, length = _escape(text, self._at)
            if not length:
                break
            found.append(character)
            self._at += length
        return "".join(found)

    def end(self) -> tuple[str | None, str]:
        """Return the code of the complete arguments. Without code, return None and the reason for the model."""
        text = self.raw.strip()
        try:
            # strict=False (RFC 8259 forbids it): small models write line ends into strings as they are.
            value = json.loads(text, strict=False)
        except (ValueError, RecursionError) as error:
            if text.startswith("{") and _OPENING.match(text):
                why = f"the arguments were not JSON ({str(error)[:100]})"
                return None, why + '. Send {"code": "..."} with each " of the code written as \\" and line ends as \\n.'
            return (_unfenced(text), "") if text else (None, 'the call had no arguments. Send {"code": "..."}.')
        if isinstance(value, dict):
            for name in _NAMES:
                if isinstance(value.get(name), str):
                    return _unfenced(value[name]), ""
            return None, 'the arguments had no "code". Send {"code": "..."}.'
        return (_unfenced(value), "") if isinstance(value, str) else (_unfenced(text), "")


def _next_special(text: str, start: int) -> int:
    quote, escape = text.find('"', start), text.find("\\", start)
    ends = [each for each in (quote, escape) if each >= 0]
    return min(ends) if ends else len(text)


def _escape(text: str, at: int) -> tuple[str, int]:
    """Return the character of the escape at a position, and its length. The length is 0 if it is not complete."""
    kind = text[at + 1 : at + 2]
    if not kind:
        return "", 0
    if kind != "u":
        return _ESCAPES.get(kind, kind), 2
    value = _hex(text[at + 2 : at + 6])
    if value is None:
        return ("", 0) if len(text) < at + 6 else ("\ufffd", 6)
    if not 0xD800 <= value < 0xDC00:
        # A single low surrogate is no character (RFC 8259, section 8.2), and can't be encoded for the client.
        return ("\ufffd" if 0xDC00 <= value < 0xE000 else chr(value)), 6
    rest = text[at + 6 : at + 12]
    if len(rest) < 6 and "\\u".startswith(rest[:2]):
        return "", 0
    low = _hex(rest[2:6]) if rest.startswith("\\u") else None
    if low is None or not 0xDC00 <= low < 0xE000:
        return "\ufffd", 6
    return chr(0x10000 + ((value - 0xD800) << 10) + (low - 0xDC00)), 12


def _hex(digits: str) -> int | None:
    if len(digits) < 4:
        return None
    try:
        return int(digits, 16)
    except ValueError:
        return None


def _unfenced(code: str) -> str:
    found = _FENCE.match(code)
    code = found.group(1) if found else code
    return code.encode("utf-8", "replace").decode("utf-8") if _has_surrogates(code) else code


def _has_surrogates(text: str) -> bool:
    return any("\ud800" <= each <= "\udfff" for each in text)
