"""Filter a kernel's output for a terminal, and format values as text. Pure.

A model writes a cell's code, and an attacker may have written the data in its output. Terminals obey escape sequences
that set the clipboard, the window's title or the answer-back string. Only colours pass the filter, and in a live stream
also cursor movement, which progress bars need. The filter removes other movement. Other sequences become visible text.
"""

from __future__ import annotations

import re

#: Sequences that never become visible text (ECMA-48): SGR (colour), EL and ED (erase), CUU, CUD, CUF, CUB and CHA
#: (cursor movement). All but SGR can repaint the lines above.
_KNOWN = re.compile(r"\x1b\[[0-9;:]*[mKJABCDG]")
_RESET = "\x1b[0m"
#: The beginning of an allowed sequence, at the end of a chunk.
_UNFINISHED = re.compile(r"\x1b(\[[0-9;:]*)?\Z")
_MAX_SEQUENCE = 64
#: C0 except BS, TAB, LF, CR and ESC. DEL. C1, which some terminals obey like ESC sequences.
_CONTROL_CHARACTERS = {
    code: f"\\x{code:02x}" for code in [*range(8), *range(11, 13), *range(14, 27), *range(28, 32), *range(127, 160)]
}
_CONTROL_CHARACTERS[7] = ""
#: Unicode's direction overrides can make code look like other code ("Trojan Source", CVE-2021-42574).
_CONTROL_CHARACTERS |= {code: f"\\u{code:04x}" for code in [*range(0x202A, 0x202F), *range(0x2066, 0x206A)]}
#: RFC 8259 lets these stand in a string as they are.
_JSON_ESCAPES = {code: f"\\u{code:04x}" for code in _CONTROL_CHARACTERS if code >= 127}


class EscapeFilter:
    """Filters a stream of text, chunk by chunk. A sequence may span chunks.

    Args:
        colour: Whether colours pass. Otherwise they are removed.
        movement: Whether cursor movement and erasure pass with them. Only for output that appears while the code runs.
    """

    def __init__(self, *, colour: bool, movement: bool = False) -> None:
        self._passing = ("mKJABCDG" if movement else "m") if colour else ""
        self._pending = ""

    def feed(self, text: str) -> str:
        """Return the text that can be printed now. The beginning of a sequence waits for the next chunk."""
        text = self._pending + text
        self._pending = ""
        if (tail := _UNFINISHED.search(text)) and len(tail[0]) < _MAX_SEQUENCE:
            text, self._pending = text[: tail.start()], tail[0]
        return _clean(text, self._passing)

    def flush(self) -> str:
        """Return the waiting rest of the stream, at its end."""
        pending, self._pending = self._pending, ""
        return _clean(pending, self._passing)


def _clean(text: str, passing: str) -> str:
    if "\x1b" not in text:
        return text.translate(_CONTROL_CHARACTERS)
    parts = []
    position = 0
    for match in _KNOWN.finditer(text):
        parts.append(_visible(text[position : match.start()]))
        parts.append(match[0] if match[0][-1] in passing else "")
        position = match.end()
    parts.append(_visible(text[position:]))
    return "".join(parts)


def _visible(text: str) -> str:
    return text.replace("\x1b", "\\x1b").translate(_CONTROL_CHARACTERS)


def safe(text: str, *, colour: bool = False) -> str:
    """Filter a whole text. Only colours pass, and they end with the text."""
    escape_filter = EscapeFilter(colour=colour)
    filtered = escape_filter.feed(text) + escape_filter.flush()
    # Without a reset, "conceal" (SGR 8) would hide the lines that follow.
    return filtered if "\x1b" not in filtered or filtered.endswith(_RESET) else filtered + _RESET


def still(text: str) -> str:
    """Filter a text in which nothing may move the cursor: code, names and labels. Line ends stay."""
    return safe(text).replace("\r\n", "\n").replace("\r", "\\x0d").replace("\b", "\\x08")


def json_text(encoded: bytes) -> str:
    """Return JSON for a terminal: control characters and direction overrides that JSON permits are escaped."""
    return encoded.decode().translate(_JSON_ESCAPES)


def one_line(text: str, width: int = 80) -> str:
    """Return the beginning of a text on one line of at most ``width`` characters, without colours."""
    flat = " ".join(still(text).split())
    return flat if len(flat) <= width else flat[: max(1, width - 1)] + "…"


def seconds(value: float) -> str:
    """Format a duration in seconds for people."""
    if value < 0.1:
        return f"{value * 1000:.1f} ms"
    if value < 60:
        return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def size(value: float) -> str:
    """Format a number of bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def table(rows: list[list[str]], header: list[str]) -> list[str]:
    """Return the lines of a table. Each column but the last is padded to its longest cell."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(row: list[str]) -> str:
        cells = [cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=False)]
        return "  ".join([*cells, row[-1]]).rstrip()

    return [line(header), *(line(row) for row in rows)]
