"""What a terminal shows of text with carriage returns, backspaces and control sequences (ECMA-48)."""

from __future__ import annotations

import re

#: Columns in which text is overwritten. In a longer line a carriage return starts a new line, so that the cost of a
#: hostile text stays linear.
WIDTH = 4096
#: Lines above the last one that the cursor reaches, as on a tall screen.
HEIGHT = 200
#: Characters at the start and at the end of a text in which the cursor is followed. Between them only the part of a
#: line after its last carriage return is taken.
FOLLOWED = 2 * 1024 * 1024
#: Most spaces that moves of the cursor add to one text. Ten bytes could add four thousand.
PADDING = 1024 * 1024
_CONTROL = re.compile(r"[\x08\r\x1b]")
_PIECE = re.compile(
    r"(?P<csi>\x1b\[(?P<args>[0-9;?]{0,32})[ -/]{0,4}(?P<final>[@-~]))"
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[@-Z\\-_]?"
    r"|(?P<back>\x08)|(?P<return>\r+)|(?P<newline>\n)|(?P<text>[^\x08\r\n\x1b]+)"
)
_OVERWRITTEN = re.compile(r"^[^\n]*\r", re.MULTILINE)
_SEQUENCE = re.compile(r"\x1b(?:\[[0-9;?]{0,32}[ -/]{0,4}[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_]?)|\x08")


def screen_text(text: str) -> str:
    """Return the text as a terminal without a lower edge shows it, without colours.

    Carriage return, backspace, cursor up, down, right, left and column, and erasing in a line and below it work.
    Other sequences are removed.
    """
    if _CONTROL.search(text) is None:
        return text
    # In most text with control characters they are only those of "\r\n".
    text = text.replace("\r\n", "\n")
    first = _CONTROL.search(text)
    if first is None:
        return text
    start = text.rfind("\n", 0, first.start()) + 1
    if len(text) - start <= 2 * FOLLOWED:
        return text[:start] + _followed(text, start, len(text))
    head = text.find("\n", start + FOLLOWED)
    tail = text.rfind("\n", 0, len(text) - FOLLOWED)
    if not start < head < tail:
        return text[:start] + _SEQUENCE.sub("", text[start:].rpartition("\r")[2])
    middle = _OVERWRITTEN.sub("", _SEQUENCE.sub("", text[head + 1 : tail]))
    return "\n".join([text[:start] + _followed(text, start, head), middle, _followed(text, tail + 1, len(text))])


def _followed(text: str, start: int, end: int) -> str:
    screen = _Screen()
    for piece in _PIECE.finditer(text, start, end):
        kind = piece.lastgroup
        if kind == "text":
            screen.write(piece[0])
        elif kind == "newline":
            screen.newline()
        elif kind == "return":
            screen.column = 0
        elif kind == "back":
            screen.column = max(0, screen.column - 1)
        elif piece["csi"] is not None:
            screen.control(piece["final"], piece["args"])
    return screen.text()


class _Screen:
    """Rows of text and a cursor.

    Only the first ``WIDTH`` columns of a row are ever copied to change it.
    """

    def __init__(self) -> None:
        self._rows = [""]
        self._row = 0
        self.column = 0
        self._padding = PADDING
        #: More text at the end of a long row.
        self._more: list[str] = []

    def text(self) -> str:
        """Return all rows."""
        self._leave_row()
        return "\n".join(self._rows)

    def write(self, text: str) -> None:
        """Write text without control characters at the cursor."""
        line = self._rows[self._row]
        if len(line) >= WIDTH:
            if self.column >= WIDTH:
                self._more.append(text)
                self.column += len(text)
                return
            self._leave_row()
            self._row += 1
            self._rows.insert(self._row, "")
            line, self.column = "", 0
        after = line[self.column + len(text) :] if self.column < len(line) else ""
        self._padding -= (pad := max(0, self.column - len(line)))
        if pad and self._padding < 0:
            self.column, pad = len(line), 0
        line = line[: self.column] + " " * pad
        self._rows[self._row] = line + text + after
        self.column += len(text)

    def newline(self) -> None:
        """Start a new row below the cursor's, or go down to the one there."""
        self._leave_row()
        self._row, self.column = self._row + 1, 0
        if self._row == len(self._rows):
            self._rows.append("")

    def _leave_row(self) -> None:
        if self._more:
            self._rows[self._row] += "".join(self._more)
            self._more.clear()

    def control(self, final: str, args: str) -> None:
        """Follow one control sequence."""
        number = int(args[:4]) if args[:4].isdecimal() else 0
        count = max(1, number)
        if final in "AB":
            self._leave_row()
            # A long row is not continued later.
            self.column = min(self.column, WIDTH - 1)
            lowest = max(0, len(self._rows) - HEIGHT)
            if final == "A":
                self._row = min(self._row, max(lowest, self._row - count))
            else:
                self._row = min(len(self._rows) - 1, self._row + count)
        elif final == "C":
            self.column = min(WIDTH - 1, self.column + count)
        elif final == "D":
            self.column = max(0, self.column - count)
        elif final == "G":
            self.column = min(WIDTH - 1, count - 1)
        elif final in "KJ":
            self._erase(number)
            if final == "J" and number == 0:
                del self._rows[self._row + 1 :]

    def _erase(self, number: int) -> None:
        line = self._rows[self._row]
        if number == 0 and (self.column >= WIDTH or self.column >= len(line)):
            return
        self._more.clear()
        if number == 0:
            self._rows[self._row] = line[: self.column]
        elif number == 1 and len(line) <= WIDTH:
            self._rows[self._row] = " " * min(self.column, len(line)) + line[self.column :]
        else:
            self._rows[self._row] = ""
