"""The code in a tool call's arguments, while they arrive in pieces.

The arguments should be a JSON object, ``{"code": "..."}``. Models also send the code itself, a JSON string, or a fenced
block. The code is read from each of them. Nothing is guessed: JSON that is broken is not run.
"""

from __future__ import annotations

import json
import re
from typing import Literal

_OPENING = re.compile(r'\s*\{\s*"(?:code|input|source)"\s*:\s*"')
_FENCE = re.compile(r"\A\s*```[a-zA-Z]*\n(.*?)\n?```\s*\Z", re.DOTALL)
#: RFC 8259, section 7. The escape of the backslash is apart.
_ESCAPES = {'\\"': '"', "\\n": "\n", "\\t": "\t", "\\r": "\r", "\\b": "\b", "\\f": "\f", "\\/": "/"}
#: Surrogates, which no text of a server has. They stand for an escaped backslash, and for the beginning of a number.
_BACKSLASH, _NUMBER = "\ud800", "\ud801"
_HEX = "[0-9a-fA-F]"
_NUMBERS = re.compile(
    rf"{_NUMBER}([dD][89abAB]{_HEX}{{2}}){_NUMBER}([dD][c-fC-F]{_HEX}{{2}})|{_NUMBER}({_HEX}{{4}}|.{{0,4}})", re.DOTALL
)
#: The end of a text that may be the beginning of an escape. A high surrogate may be followed by a low one.
_PARTIAL = re.compile(r"\\(?:u(?:[dD][89abAB]..(?:\\(?:u.{0,3})?)?|.{0,3}))?\Z", re.DOTALL)
_LONGEST_PARTIAL = 11
#: Names of the argument. Models use those that they were trained with.
_NAMES = ("code", "input", "source")
#: Characters after which arguments that do not begin as expected are not read piece by piece any more.
_UNDECIDED = 64


class CodeText:
    """Reader of one call's arguments. Its time is proportional to their length, however they are cut.

    Attributes:
        size: Characters so far.
        complete: Whether a whole JSON object with the code has arrived.
    """

    def __init__(self) -> None:
        self.size = 0
        self.complete = False
        self._pieces: list[str] = []
        self._kind: Literal["undecided", "object", "closed", "raw", "late"] = "undecided"
        # The end of the text so far, if what follows decides on its meaning.
        self._rest = ""

    @property
    def raw(self) -> str:
        """The arguments so far."""
        if len(self._pieces) > 1:
            self._pieces = ["".join(self._pieces)]
        return self._pieces[0] if self._pieces else ""

    @property
    def last(self) -> str:
        """The last piece."""
        return self._pieces[-1] if self._pieces else ""

    def add(self, piece: str) -> None:
        """Take more of arguments that are not read before their end."""
        self._pieces.append(piece)
        self.size += len(piece)

    def feed(self, piece: str) -> str:
        """Take more of the arguments. Return the code that is new, without an escape that is not complete yet."""
        self.add(piece)
        text, self._rest = self._rest + piece, ""
        if self._kind == "undecided":
            text = self._decide(text)
        match self._kind:
            case "raw":
                return text
            case "object":
                return self._read(text)
            case "closed":
                self._close(text)
        return ""

    def _decide(self, text: str) -> str:
        """Find out the form of the arguments. Return the text behind their opening."""
        if found := _OPENING.match(text):
            self._kind = "object"
            return text[found.end() :]
        start = text.lstrip()
        # A fence or a string may hold the code, and code may begin with a string. Only the end decides.
        if start and start[0] in '"`':
            self._kind = "late"
        elif start and start[0] != "{":
            self._kind = "raw"
        elif len(text) > _UNDECIDED:
            self._kind = "late"
        else:
            self._rest = text
        return text

    def _read(self, text: str) -> str:
        """Return the code in a part of the string. All loops over it are those of Python's built-in functions."""
        text = text.replace(_BACKSLASH, "\ufffd").replace(_NUMBER, "\ufffd").replace("\\\\", _BACKSLASH)
        end = text.replace('\\"', "  ").find('"')
        if end >= 0:
            self._kind = "closed"
            self._close(text[end + 1 :].replace(_BACKSLASH, "\\\\"))
            return _unescaped(text[:end])
        if partial := _PARTIAL.search(text, max(0, len(text) - _LONGEST_PARTIAL)):
            text, self._rest = text[: partial.start()], text[partial.start() :].replace(_BACKSLASH, "\\\\")
        return _unescaped(text)

    def _close(self, text: str) -> None:
        """Take what follows the string: the end of the object, or something of which only the end decides."""
        if text := text.lstrip():
            self.complete = text[0] == "}" and not text[1:].strip()
            self._kind = "late"

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


def _unescaped(text: str) -> str:
    """Return the characters of a part of a JSON string, in which ``_BACKSLASH`` stands for escaped backslashes."""
    if "\\" in text:
        for escape, character in _ESCAPES.items():
            text = text.replace(escape, character)
        # A backslash that is still there begins no escape of JSON. It is left out.
        text = _NUMBERS.sub(_character, text.replace("\\u", _NUMBER).replace("\\", ""))
    return text.replace(_BACKSLASH, "\\")


def _character(escape: re.Match[str]) -> str:
    high, low, single = escape.groups()
    if single is None:
        return chr(0x10000 + ((int(high, 16) - 0xD800) << 10) + (int(low, 16) - 0xDC00))
    # A single surrogate is no character (RFC 8259, section 8.2), and can't be encoded for the client.
    is_character = re.fullmatch(f"{_HEX}{{4}}", single) and not 0xD800 <= int(single, 16) < 0xE000
    return chr(int(single, 16)) if is_character else "\ufffd"


def _unfenced(code: str) -> str:
    found = _FENCE.match(code)
    code = found.group(1) if found else code
    return code.encode("utf-8", "replace").decode("utf-8")
