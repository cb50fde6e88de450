"""Rules for names, in words: msgspec reports a name that breaks one with a regular expression. Pure."""

from __future__ import annotations

import re

_REPORT = re.compile(r"matching regex '(?P<pattern>.*?)'(?P<rest> - at `.*`)?$")
#: ``^[first][rest]{0,N}$``, ``^[rest]+$`` and the like.
_NAME = re.compile(
    r"\^(\[(?P<first>[^\]]+)\])?\[(?P<rest>[^\]]+)\](?P<count>\*|\+|\{\d+,(?P<most>\d+)\})\$(\(\?!\\+n\))?"
)
#: How the name of another principal's workspace begins.
_OWNER = "^(.{1,128}/)?"
_RANGES = {"A-Za-z": "letters", "a-z": "lower-case letters", "A-Z": "capitals", "0-9": "digits"}


def in_words(report: str) -> str:
    """Return a report of msgspec with the rule for a name in words, and every other report as it is.

    >>> in_words("Expected `str` matching regex '^[a-z0-9_-]{0,31}$' - at `$.name`")
    "Expected `str` of lower-case letters, digits, '_' and '-', at most 31 long - at `$.name`"
    """
    found = _REPORT.search(report)
    pattern = found["pattern"] if found is not None else ""
    owned = pattern.startswith(_OWNER)
    name = _NAME.fullmatch("^" + pattern.removeprefix(_OWNER) if owned else pattern)
    if found is None or name is None:
        return report
    words = f"{'NAME or OWNER/NAME, NAME ' if owned else ''}of {_class(name['rest'])}"
    if name["first"] and _class(name["first"]) != _class(name["rest"]):
        words += f", beginning with {_class(name['first'])}"
    if name["most"]:
        words += f", at most {int(name['most']) + bool(name['first'])} long"
    return f"{report[: found.start()]}{words}{found['rest'] or ''}"


def _class(text: str) -> str:
    """Return the characters of a class, for example of ``A-Za-z0-9._-``."""
    parts = []
    for characters, word in _RANGES.items():
        if characters in text:
            text = text.replace(characters, "")
            parts.append(word)
    parts += [f"'{each}'" for each in text.replace("\\", "")]
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
