"""Text for outputs whose plain text is only a placeholder such as ``<IPython.core.display.Markdown object>``. Pure."""

from __future__ import annotations

import html
import re
from typing import Any

#: MIME type of a value's form for language models, which the kernel makes.
MODEL_MIME = "text/vnd.kernelsvc.model"
#: Most characters of HTML or SVG that are read.
MAX_SOURCE = 200_000
_PLACEHOLDER = re.compile(r"<[\w.]+ (?:object|at 0x)[^<>\n]*>|<[\w.]+\.(?:HTML|Styler|Markdown|SVG)[^<>\n]*>")
_HIDDEN = re.compile(r"<(script|style|head|title)\b", re.IGNORECASE)
_CELLS = re.compile(r"</t[dh]>\s{0,200}<t[dh]\b[^<>]*>", re.IGNORECASE)
_BREAK = re.compile(r"</?(?:p|div|tr|table|ul|ol|h[1-6]|br|pre|section|caption|thead|tbody)\b[^<>]*>", re.IGNORECASE)
_ITEM = re.compile(r"<li\b[^<>]*>", re.IGNORECASE)
_TAG = re.compile(r"<[^<>]*>")
_WORDS = re.compile(r"<(?:text|title|desc)\b[^<>]*>([^<>]*)", re.IGNORECASE)


def is_placeholder(text: str) -> bool:
    """Return whether a plain text names only the type of an object."""
    return len(text) < 300 and _PLACEHOLDER.fullmatch(text.strip()) is not None


def text_form(data: dict[str, Any]) -> str:
    """Return the text of a MIME bundle: text/plain, or where that is a placeholder, the text of a richer form."""
    plain = data.get("text/plain")
    if plain is not None and not (isinstance(plain, str) and is_placeholder(plain)):
        return str(plain)
    for mime in ("text/markdown", "text/latex"):
        if isinstance(value := data.get(mime), str) and value.strip():
            return value
    if isinstance(value := data.get("text/html"), str):
        if "<audio" in value:
            return "[audio]"
        if "<video" in value:
            return "[video]"
        if found := html_text(value):
            return found
    if isinstance(value := data.get("image/svg+xml"), str):
        words = " ".join(found.strip() for found in _WORDS.findall(value[:MAX_SOURCE]) if found.strip())
        return f"[SVG drawing: {html.unescape(words)[:300]}]" if words else "[SVG drawing]"
    if plain is not None:
        return str(plain)
    return str(data.get(MODEL_MIME) or (f"[{', '.join(sorted(data))}]" if data else ""))


def html_text(source: str) -> str:
    """Return the words of HTML: a line a block, cells of tables separated by `` | ``, no scripts and styles."""
    source = without_hidden(source[:MAX_SOURCE])
    # Line ends of the source mean nothing in HTML.
    source = _ITEM.sub("\n* ", _BREAK.sub("\n", _CELLS.sub(" | ", " ".join(source.split()))))
    lines = (" ".join(line.split()) for line in html.unescape(_TAG.sub("", source)).split("\n"))
    return "\n".join(line for line in lines if line and set(line) != {"|"})


def without_hidden(source: str) -> str:
    """Return HTML without its scripts, styles, heads and titles. Linear in its length, for any text.

    A regular expression with ``.*?`` would search the whole rest for each ``<script>`` that has no end.
    """
    kept, at = [], 0
    while (found := _HIDDEN.search(source, at)) is not None:
        kept.append(source[at : found.start()])
        end = source.find(f"</{found[1]}", found.end())
        at = len(source) if end < 0 else source.find(">", end) + 1 or len(source)
    return "".join([*kept, source[at:]])
