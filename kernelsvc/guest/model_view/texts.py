"""Text of bounded length: cut strings, addresses without digits, HTML as text."""

from __future__ import annotations

import re
from html.parser import HTMLParser

#: Most characters of HTML that are parsed. Rows of a table that are only counted are not among them.
MAX_HTML = 100_000
#: Most characters of an SVG drawing that are read.
MAX_SVG = 400_000
#: Most rows of an HTML table.
MAX_ROWS = 40
_STEP = 20_000
_ADDRESS = re.compile(r"\bat 0x[0-9a-fA-F]{6,16}\b")
_LIBRARY = re.compile(r"(?:/[\w.+@-]+)+/(?:site|dist)-packages/|(?:/[\w.+@-]+)+/lib/python3\.\d+/")
_BLOCKS = frozenset(("p", "div", "br", "tr", "table", "ul", "ol", "li", "section", "pre", "h1", "h2", "h3", "h4", "h5"))
_SKIPPED = frozenset(("style", "script", "template", "noscript"))


def cut(text: str, most: int) -> str:
    """Return a text of about ``most`` characters at most: two thirds from the start, a third from the end."""
    if len(text) <= most:
        return text
    head, tail = most * 2 // 3, most // 3
    return f"{text[:head]} … [… {len(text) - head - tail} characters …] … {text[len(text) - tail :]}"


def mask_addresses(text: str) -> str:
    """Return a text without the digits of object addresses, which differ in each run."""
    return _ADDRESS.sub("at 0x…", text) if " 0x" in text else text


def without_prefixes(text: str) -> str:
    """Return a text in which paths of installed libraries start at the library's name."""
    return _LIBRARY.sub("", text) if "/" in text else text


def csv_field(text: str) -> str:
    """Return a field of a CSV line (RFC 4180), without line breaks."""
    if "\n" in text or "\r" in text:
        text = text.replace("\r", "").replace("\n", "\\n")
    return '"' + text.replace('"', '""') + '"' if "," in text or '"' in text else text


def short_float(value: float) -> str:
    """Return a float with six significant digits."""
    return f"{value:.6g}"


class _TextOfHtml(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.lines: list[str] = []
        self._line: list[str] = []
        self._row: list[str] | None = None
        self._hidden = 0
        self.rows = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _SKIPPED:
            self._hidden += 1
        elif tag in ("td", "th"):
            self._end_cell()
        elif tag in _BLOCKS:
            self.end_line()
            self._row = [] if tag == "tr" else self._row
        if tag == "li":
            self._line.append("* ")

    def handle_endtag(self, tag: str) -> None:
        if tag in _SKIPPED:
            self._hidden = max(0, self._hidden - 1)
        elif tag in ("td", "th"):
            self._end_cell(also_empty=True)
        elif tag in _BLOCKS:
            self.end_line()

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self._line.append(data)

    def _end_cell(self, *, also_empty: bool = False) -> None:
        text = " ".join("".join(self._line).split())
        self._line.clear()
        if self._row is not None and (text or also_empty):
            self._row.append(text)

    def end_line(self) -> None:
        row, self._row = self._row, None
        text = " ".join("".join(self._line).split())
        self._line.clear()
        if row is not None and (row or text):
            self.rows += 1
            if self.rows <= MAX_ROWS:
                self.lines.append(" | ".join([*row, text] if text else row))
        elif text:
            self.lines.append(text)

    def result(self) -> str:
        self.end_line()
        if self.rows > MAX_ROWS:
            self.lines.append(f"[… {self.rows - MAX_ROWS} more rows …]")
        return "\n".join(self.lines)


def text_of_html(html: str) -> str:
    """Return the words of an HTML text: a line for each block, and table cells with `` | `` between them."""
    reader = _TextOfHtml()
    at = parsed = 0
    while at < len(html) and parsed < MAX_HTML:
        reader.feed(html[at : at + _STEP])
        at, parsed = at + _STEP, parsed + _STEP
        end = html.find("</table", at) if reader.rows > MAX_ROWS else -1
        if end > 0:  # The rows up to the table's end are only counted, because the parser is slow.
            at -= len(reader.rawdata)
            reader.rawdata = ""
            reader.rows += html.count("<tr", at, end)
            at = end
    reader.close()
    return reader.result()


def words_of_svg(svg: str) -> str:
    """Return the text elements of an SVG drawing in one line."""
    found = re.findall(r"<(?:text|tspan|title|desc)\b[^>]*>([^<]{1,200})", svg[:MAX_SVG])
    return cut(" ".join(word.strip() for word in found if word.strip()), 300)
