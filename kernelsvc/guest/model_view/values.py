"""A value as a model reads it, beside its ``text/plain``: all that matters of it, in few words.

``form`` returns None where ``text/plain`` is good as it is, so that most values cost one look at their type. An empty
text means that nothing of the value needs to be shown: the picture that follows says more.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

from kernelsvc.guest.model_view import charts, collections, frames, texts
from kernelsvc.guest.variables import module_of

#: The MIME type of a value's form for a model.
MIME = "text/vnd.kernelsvc.model"
#: Most characters of a form.
MAX_FORM = 24_000
#: A text that only names an object.
_PLACEHOLDER = re.compile(r"^<[\w.]+ (?:object|at 0x)[^\n]*>$|^alt\.[A-Z]\w*\(\.\.\.\)$|^<IPython\.[\w.]+ object>$")
_PLOTLY = "application/vnd.plotly.v1+json"
_VEGA = re.compile(r"application/vnd\.vega(?:lite)?\.v\d+(?:\.\d+)*\+json")
_WIDGET = "application/vnd.jupyter.widget-view+json"
_PLOT_RESULT = re.compile(r"<(?:matplotlib\.|Axes|BarContainer|Figure|Text\()|\bText\(|\bAxes: ")


def form(value: Any, data: Mapping[str, Any]) -> str | None:
    """Return the form of a value for a model, or None if its plain text is the best one.

    Args:
        value: the object. Only exact types of known libraries are read.
        data: its MIME bundle.
    """
    try:
        found = _by_type(value, data)
        if found is None:
            found = of_bundle(data)
    except Exception:  # A value of an unusual kind has its plain text.
        return None
    return None if found is None else texts.cut(found, MAX_FORM)


def form_of_bundle(data: Mapping[str, Any]) -> str | None:
    """Return the form of a MIME bundle that a library has made, or None if its plain text is the best one."""
    try:
        found = of_bundle(data)
    except Exception:  # A library's JSON may have any form. Then its plain text is shown.
        return None
    return None if found is None else texts.cut(found, MAX_FORM)


def _by_type(value: Any, data: Mapping[str, Any]) -> str | None:
    kind = type(value)
    plain = data.get("text/plain")
    if kind in collections.KINDS:
        return "" if _is_plot_result(plain) else collections.form(value, plain)
    module = module_of(kind)
    reader = _READERS.get((module.partition(".")[0], kind.__name__ if module else ""))
    if reader is None:
        return "" if module.startswith("matplotlib.") and _is_plot_result(plain) else None
    library, path, read = reader
    # The class must be the library's own, since a subclass may redefine any method.
    return read(value, plain) if kind is _attribute(library, path) else None


def _attribute(library: str, path: str) -> Any:
    found: Any = sys.modules.get(library)
    for name in path.split("."):
        found = getattr(found, name, None)
    return found


def _is_plot_result(plain: Any) -> bool:
    """Whether a text shows the value of a plotting function whose figure is about to be shown."""
    if type(plain) is not str or len(plain) > 20_000 or not _PLOT_RESULT.search(plain):
        return False
    pylab = sys.modules.get("matplotlib._pylab_helpers")
    return pylab is not None and bool(pylab.Gcf.figs)


def of_bundle(data: Mapping[str, Any]) -> str | None:
    """Return the form that a MIME bundle has for a model, or None if its plain text is the best one."""
    plain = data.get("text/plain")
    if _PLOTLY in data:
        return charts.plotly(data[_PLOTLY])
    vega = next((mime for mime in data if mime.startswith("application/vnd.vega") and _VEGA.fullmatch(mime)), None)
    if vega is not None:
        return charts.vega(data[vega])
    if type(plain) is not str:
        plain = ""
    if _WIDGET in data:
        return f"{texts.mask_addresses(plain)}\n[a widget, which can't be operated here]"
    latex = data.get("text/latex")
    if type(latex) is str and "image/png" in data:
        return latex
    if plain and not _PLACEHOLDER.match(plain):
        masked = texts.mask_addresses(plain)
        return masked if masked != plain else None
    return _rich_text(data, latex) or (texts.mask_addresses(plain) if " 0x" in plain else None)


def _rich_text(data: Mapping[str, Any], latex: Any) -> str | None:
    """Return the text of a bundle whose plain text only names the object."""
    markdown, html, svg = (data.get(mime) for mime in ("text/markdown", "text/html", "image/svg+xml"))
    if type(markdown) is str:
        return markdown
    if type(latex) is str:
        return latex
    if type(html) is str and "<audio" in html[:2000]:
        return "[audio]"
    if type(html) is str and "<video" in html[:2000]:
        return "[video]"
    if type(html) is str:
        return texts.text_of_html(html) or charts.vega_of_html(html) or "[HTML without text]"
    if type(svg) is str:
        words = texts.words_of_svg(svg)
        return f"[SVG drawing: {words}]" if words else "[SVG drawing]"
    return None


#: Readers by the first part of the class's module and its name: the library, the path of the class in it, the function.
_READERS: dict[tuple[str, str], tuple[str, str, Callable[[Any, Any], str | None]]] = {
    ("pandas", "DataFrame"): ("pandas", "DataFrame", frames.data_frame),
    ("pandas", "Series"): ("pandas", "Series", frames.series),
    ("polars", "DataFrame"): ("polars", "DataFrame", frames.polars_frame),
    ("numpy", "ndarray"): ("numpy", "ndarray", frames.array),
    ("matplotlib", "Figure"): ("matplotlib.figure", "Figure", charts.figure),
}
