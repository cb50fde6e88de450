"""Export a notebook as one HTML page: nbconvert's template, with each untrusted part cleaned before it is inserted.

The page itself is trusted: nbconvert's templates and style sheets, without its scripts. Content of cells and clients
goes through ``HtmlCleaner`` (HTML, Markdown, SVG) or nbconvert's escaping (text with ANSI colours, tracebacks, code),
or is a number or a picture in base64. The notebook's metadata, which nbconvert inserts into attributes, is not used. No
step parses the page as a whole, and nothing changes a part after it is cleaned.

Imports nbconvert, so import it in the child process of ``convert``.
"""

from __future__ import annotations

import html
import re
from collections import Counter
from pathlib import Path
from typing import Any

import nbformat
from nbconvert import HTMLExporter, TemplateExporter
from nbconvert.filters import Highlight2HTML, strip_files_prefix
from nbconvert.filters.ansi import ansi2html
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from kernelsvc.store.clean_html import DEPTH, HtmlCleaner, TooDeep

#: No script runs and nothing is loaded. Pictures and styles are in the page.
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; font-src data:; base-uri 'none'; form-action 'none'"
)

_TEMPLATES = Path(__file__).with_name("templates")
_PICTURES = ("image/png", "image/jpeg", "image/gif", "image/webp")
#: Outputs that need a program in the page.
_PROGRAMS = {
    "application/javascript": "script",
    "text/javascript": "script",
    "application/vnd.jupyter.widget-view+json": "widget",
}
_KNOWN = {"text/html", "text/markdown", "text/latex", "text/plain", "image/svg+xml", *_PICTURES, *_PROGRAMS}
_PLURALS = {
    "script": "scripts",
    "frame": "frames",
    "form": "forms",
    "widget": "widgets",
    "sound or video": "sounds or videos",
    "picture from elsewhere": "pictures from elsewhere",
}
_TOO_DEEP = f"HTML of more than {DEPTH} levels"
#: Lines and characters of a chart's text. plotly's repr of a figure is the figure's data.
_LINES, _CHARACTERS = 20, 2000
_BASE64 = re.compile(r"[A-Za-z0-9+/=\s]*")
_LANGUAGE = re.compile(r"[\w+#.-]{1,40}")


def to_html(notebook: bytes) -> str:
    """Return a notebook as an HTML page that is safe to open.

    Args:
        notebook: an ``.ipynb``, hostile or not.
    """
    nb = nbformat.reads(notebook.decode(), as_version=4)
    exporter = _Exporter(template_name="kernelsvc", extra_template_basedirs=[str(_TEMPLATES)])
    page, _ = exporter.from_notebook_node(_without_metadata(nb))
    return str(page)


def _without_metadata(nb: Any) -> Any:
    """Return a copy with only the parts that the page shows, each of the type that the template expects."""
    named = nb.metadata.get("language_info", {})
    language = {k: named[k] for k in ("name", "pygments_lexer") if _LANGUAGE.fullmatch(str(named.get(k, "")))}
    cells = []
    for n, cell in enumerate(nb.cells):
        kept = {"cell_type": cell.cell_type, "id": f"{n}", "metadata": {}, "source": _string(cell.source)}
        if cell.cell_type == "code":
            kept |= {"execution_count": _number(cell.get("execution_count")), "outputs": _outputs(cell)}
        elif cell.cell_type == "markdown":
            kept["attachments"] = cell.get("attachments", {})
        elif cell.cell_type != "raw" or cell.metadata.get("raw_mimetype", "") not in ("", "text/html"):
            continue
        cells.append(kept)
    metadata = {"language_info": language} if "name" in language else {}
    return nbformat.from_dict({"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5})


def _outputs(cell: Any) -> list[dict[str, Any]]:
    kept: list[dict[str, Any]] = []
    for output in cell.outputs:
        kind = output.output_type
        if kind == "stream":
            name = "stderr" if output.get("name") == "stderr" else "stdout"
            kept.append({"output_type": kind, "name": name, "text": _string(output.get("text"))})
        elif kind == "error":
            lines = output.get("traceback") or [f"{output.get('ename')}: {output.get('evalue')}"]
            lines = [_string(line) for line in lines]
            kept.append({"output_type": kind, "ename": "", "evalue": "", "traceback": lines})
        elif kind in ("display_data", "execute_result"):
            metadata = {mime: about for mime, about in output.get("metadata", {}).items() if isinstance(about, dict)}
            data = {mime: _string(value) for mime, value in output.get("data", {}).items()}
            count = {"execution_count": None} if kind == "execute_result" else {}
            kept.append({"output_type": kind, "data": data, "metadata": metadata, **count})
    return kept


def _string(value: Any) -> str:
    return "".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


class _Exporter(HTMLExporter):  # type: ignore[misc]  # nbconvert has no types
    """nbconvert's exporter with the filters of ``_Parts``."""

    def default_filters(self) -> Any:
        yield from super().default_filters()
        parts = _Parts()
        yield "show_output", parts.output
        yield "show_markdown", parts.markdown
        yield "show_raw", parts.raw

    def from_notebook_node(self, nb: Any, resources: Any = None, **kw: Any) -> Any:
        # HTMLExporter's own without its last step, which parses the whole page with another parser and writes it again.
        language = nb.metadata.get("language_info", {})
        lexer = language.get("pygments_lexer", language.get("name"))
        self.register_filter("highlight_code", Highlight2HTML(pygments_lexer=lexer, parent=self))
        resources = {**self._init_resources(resources), "policy": POLICY}
        return TemplateExporter.from_notebook_node(self, nb, resources, **kw)


class _Parts:
    """The template's filters: the parts of one page as safe HTML."""

    def __init__(self) -> None:
        self._cleaner = HtmlCleaner()
        self._boxes = 0

    def output(self, output: Any) -> str:
        """Return a bundle's best form that needs no program, and a note about dropped parts."""
        data = output.data
        left_out = Counter(kind for mime, kind in _PROGRAMS.items() if mime in data)
        # nbconvert's class: its style sheet has rules for each kind of output.
        kind, body = "jp-RenderedHTMLCommon jp-RenderedHTML", None
        if "text/html" in data:
            body, empty = self._box(data["text/html"], left_out)
            if left_out["script"] or left_out["frame"]:
                # A chart: its picture shows more than the HTML around its script.
                if picture := self._picture(output):
                    kind, body = "jp-RenderedImage", picture
                elif empty:
                    body = None
        if body is None and "text/markdown" in data:
            kind = "jp-RenderedHTMLCommon jp-RenderedMarkdown"
            body, _ = self._box(_markdown(data["text/markdown"], {}), left_out)
        if body is None:
            kind, body = "jp-RenderedImage", self._picture(output)
        if body is None and "text/latex" in data:
            kind, body = "jp-RenderedLatex", html.escape(data["text/latex"])
        if body is None:
            if not left_out:
                left_out.update(mime[:80] for mime in data if mime not in _KNOWN)
            text = data.get("text/plain", "")
            kind = "jp-RenderedText"
            body = f"<pre>{ansi2html(_short(text) if left_out else text)}</pre>" if text else ""
        extra = " jp-OutputArea-executeResult" if output.output_type == "execute_result" else ""
        return f'<div class="{kind} jp-OutputArea-output{extra}" tabindex="0">{body}{_note(left_out)}</div>'

    def markdown(self, cell: Any) -> str:
        """Return a Markdown cell."""
        left_out: Counter[str] = Counter()
        body, _ = self._box(_markdown(cell.source, cell.attachments), left_out, prefix="text-")
        return body + _note(left_out)

    def raw(self, cell: Any) -> str:
        """Return a raw cell, which is HTML to nbconvert."""
        left_out: Counter[str] = Counter()
        body, _ = self._box(cell.source, left_out, prefix="text-")
        return body + _note(left_out)

    def _box(self, source: str, left_out: Counter[str], *, prefix: str = "") -> tuple[str, bool]:
        """Return cleaned HTML in a box of its own, and whether it has nothing to look at.

        Text cells share one prefix, so that a table of contents in one finds the headings of others.
        """
        self._boxes += 1
        name = f"box-{self._boxes}"
        try:
            fragment = self._cleaner.clean(source, scope=name, prefix=prefix or f"{name}-")
        except TooDeep:
            left_out[_TOO_DEEP] += 1
            return "", True
        left_out.update(fragment.dropped)
        style = f"<style>{fragment.css}</style>" if fragment.css else ""
        box = f'<div class="kernelsvc-box" id="{name}">{style}{fragment.html}</div>'
        return box, not fragment.has_content

    def _picture(self, output: Any) -> str | None:
        data = output.data
        alternative = html.escape(_short(data.get("text/plain", ""))[:200].strip() or "a picture without a description")
        if "image/svg+xml" in data:
            try:
                address = self._cleaner.svg_address(data["image/svg+xml"])
            except TooDeep:
                address = None
            if address:
                return f'<img src="{address}" alt="{alternative}">'
        for mime in _PICTURES:
            if mime in data and _BASE64.fullmatch(data[mime]):
                about = output.metadata.get(mime, {})
                sizes = {name: about.get(name) for name in ("width", "height")}
                size = "".join(f' {k}="{v}"' for k, v in sizes.items() if type(v) in (int, float) and 0 < v < 100_000)
                ground = about.get("needs_background")
                classes = f' class="jp-needs-{ground}-background"' if ground in ("light", "dark") else ""
                content = "".join(data[mime].split())
                return f'<img src="data:{mime};base64,{content}"{size}{classes} alt="{alternative}">'
        return None


def _markdown(source: str, attachments: dict[str, dict[str, str]]) -> str:
    """Return Markdown as unsafe HTML, as nbconvert makes it."""
    renderer = IPythonRenderer(escape=False, attachments=attachments, embed_images=False, anchor_link_text="¶")
    try:
        return str(strip_files_prefix(MarkdownWithMath(renderer=renderer).render(source)))
    except Exception:
        # A missing attachment, or brackets nested beyond Python's recursion: the text is better than no page.
        return f"<pre>{html.escape(source)}</pre>"


def _short(text: str) -> str:
    lines = text[:_CHARACTERS].split("\n")[:_LINES]
    kept = "\n".join(lines)
    return kept if len(kept) == len(text) else f"{kept}\n…"


def _note(left_out: Counter[str]) -> str:
    named = [
        f"{n} {_PLURALS[kind]}" if n > 1 and kind in _PLURALS else f"a {kind}" for kind, n in left_out.items() if n
    ]
    if not named:
        return ""
    were = "was" if sum(left_out.values()) == 1 else "were"
    text = f"{', '.join(named)} {were} left out: an exported page runs nothing and loads nothing."
    return f'<p class="kernelsvc-note">{html.escape(text[0].upper() + text[1:])}</p>'
