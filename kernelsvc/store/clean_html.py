"""A sanitizer for untrusted HTML and SVG: allow-lists of elements and attributes, by nh3 (ammonia, html5ever).

nh3 parses a fragment as a browser does and writes out the elements and attributes of the allow-lists. This
module adds checks that nh3 has no options for: values of attributes, pictures and CSS. It also counts the dropped
parts. Style sheets never pass through nh3: a scanner takes their text from the source, ``clean_css`` cleans it, and
the page gets it in an element of its own. So it does not matter for safety where the scanner and a browser disagree
about the source.
"""

from __future__ import annotations

import base64
import binascii
import re
import urllib.parse
import xml.sax.saxutils
from collections import Counter
from dataclasses import dataclass, field
from xml.parsers import expat

import nh3

from kernelsvc.store.clean_css import clean_style, clean_stylesheet

#: Levels of nesting. Chrome stops at 512 too, and the parser's time grows with the square of the depth.
DEPTH = 512


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_HTML = _names(
    "a abbr acronym address article aside b bdi bdo big blockquote br caption center cite code col colgroup dd "
    "del details dfn div dl dt em figcaption figure font footer h1 h2 h3 h4 h5 h6 header hr i img input ins kbd "
    "label li mark meter nav ol p pre progress q rp rt ruby s samp section small span strike strong sub summary "
    "sup table tbody td tfoot th thead time tr tt u ul var wbr"
)
_SVG = _names(
    "svg circle clipPath defs ellipse g image line linearGradient marker mask path pattern polygon polyline "
    "radialGradient rect stop symbol text textPath tspan use"
)
#: Elements whose text means nothing without them.
_WITH_CONTENT = _names(
    "applet canvas embed foreignObject frameset iframe math metadata noembed noframes object option script select "
    "style template textarea title"
)
#: Presentation attributes of SVG: CSS to a browser, so that escapes and url() count there too.
_PRESENTATION = _names(
    "alignment-baseline baseline-shift clip-path clip-rule color display dominant-baseline fill fill-opacity "
    "fill-rule font-family font-size font-stretch font-style font-variant font-weight letter-spacing marker-end "
    "marker-mid marker-start mask opacity overflow paint-order shape-rendering stop-color stop-opacity stroke "
    "stroke-dasharray stroke-dashoffset stroke-linecap stroke-linejoin stroke-miterlimit stroke-opacity stroke- "
    "width text-anchor text-decoration vector-effect visibility word-spacing writing-mode"
)
_GEOMETRY = _names(
    "clipPathUnits cx cy d dx dy fx fy gradientTransform gradientUnits height lengthAdjust markerHeight "
    "markerUnits markerWidth maskContentUnits maskUnits offset orient pathLength patternContentUnits "
    "patternTransform patternUnits points preserveAspectRatio r refX refY rotate rx ry spreadMethod startOffset "
    "textLength transform viewBox width x x1 x2 y y1 y2"
)
_EVERYWHERE = "align aria-hidden aria-label bgcolor border class color dir height id lang role style title valign width"
_ATTRIBUTES: dict[str, set[str]] = {
    "*": set(_EVERYWHERE.split()),
    "a": {"href"},
    "col": {"span"},
    "colgroup": {"span"},
    "details": {"open"},
    "font": {"face", "size"},
    "img": {"alt", "src"},
    "input": {"checked"},
    "label": {"for"},
    "li": {"value"},
    "meter": {"max", "min", "value"},
    "ol": {"reversed", "start", "type"},
    "progress": {"max", "value"},
    "table": {"cellpadding", "cellspacing", "rules"},
    "td": {"colspan", "headers", "rowspan"},
    "th": {"colspan", "headers", "rowspan", "scope"},
    "time": {"datetime"},
    **{name: {"href", *_PRESENTATION, *_GEOMETRY} for name in _SVG},
}
#: Classes that the page's own style sheets give a meaning to.
_RESERVED = ("jp-", "lm-", "p-", "cm-", "bp3-", "kernelsvc-")
_NUMBER = re.compile(r"\s*[0-9]{1,7}(\.[0-9]{1,7})?\s*(%|px|pt|em|ex|rem|in|cm|mm)?\s*")
_LOCAL = re.compile(r"""\s*url\(\s*["']?#([\w.-]+)["']?\s*\)\s*""")
_PICTURE = re.compile(r"data:image/(png|jpeg|gif|webp|svg\+xml)\s*(?:;[^,;]*)*?(;\s*base64)?\s*,(.*)", re.I | re.S)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffe\uffff]|[\ud800-\udfff]")
_TAG = re.compile(r"<(?:(!--)|(/?)([a-zA-Z][^\s/>]*))")
_KINDS = {
    **dict.fromkeys(("script",), "script"),
    **dict.fromkeys(("iframe", "frame", "object", "embed", "applet"), "frame"),
    **dict.fromkeys(("audio", "video"), "sound or video"),
    **dict.fromkeys(("form", "textarea", "select"), "form"),
}
#: Elements without an end tag, and those that a parser ends by itself before the next one.
_NOT_NESTED = _names(
    "area base br col embed hr img input link meta param source track wbr caption colgroup dd dt li option p "
    "tbody td tfoot th thead tr"
)
_CONTENT = re.compile(r"<(?:table|img|svg|h[1-6]|p|pre|ul|ol|dl|details|figure|blockquote|label|progress|meter)\b")


class TooDeep(Exception):
    """The HTML is nested more than ``DEPTH`` levels deep."""


@dataclass
class Fragment:
    """A cleaned fragment of HTML."""

    #: Safe markup, in which every element is closed.
    html: str
    #: Safe style sheets, for one ``<style>`` element in front of the markup. They select elements in its box only.
    css: str
    #: Kinds of dropped parts ("script", "frame", "form", "picture from elsewhere" ...), and how many of each.
    dropped: Counter[str] = field(default_factory=Counter)

    @property
    def has_content(self) -> bool:
        """Whether there is content to display: a table, a picture, paragraphs. Empty boxes do not count."""
        return _CONTENT.search(self.html) is not None


class HtmlCleaner:
    """Clean fragments of HTML for one page. Use one for all fragments of a page. Not thread-safe."""

    def __init__(self) -> None:
        self._prefix = ""
        self._dropped: Counter[str] = Counter()
        self._nh3 = nh3.Cleaner(
            tags=set(_HTML | _SVG),
            clean_content_tags=set(_WITH_CONTENT),
            attributes=_ATTRIBUTES,
            attribute_filter=self._attribute,
            # Every input becomes a checkbox: xarray and scikit-learn fold their sections with checkboxes.
            set_tag_attribute_values={"input": {"type": "checkbox"}},
            url_schemes={"http", "https", "mailto", "data"},
            link_rel="noopener noreferrer",
        )

    def clean(self, source: str, *, scope: str, prefix: str) -> Fragment:
        """Clean a fragment of HTML.

        Args:
            source: Untrusted HTML.
            scope: Id of the page's element that contains the fragment.
            prefix: Prefix of each id of the fragment, so that fragments don't collide.

        Raises:
            TooDeep: The nesting would cost a browser or the parser too much.
        """
        sheets, dropped = _scan(source)
        self._prefix, self._dropped = prefix, dropped
        html = self._nh3.clean(_CONTROL.sub("\ufffd", source))
        css = "\n".join(clean_stylesheet(sheet, scope=scope, prefix=prefix) for sheet in sheets)
        return Fragment(html, css.strip(), dropped)

    def svg_address(self, source: str) -> str | None:
        """Clean an SVG document and return it as a ``data:`` URL for an ``<img>``, or None if it is no SVG.

        In an ``<img>`` a browser runs no script of an SVG, loads nothing for it, and keeps its ids and style sheets
        apart from the page's.

        Raises:
            TooDeep: the nesting would cost a browser or the parser too much.
        """
        start = source.find("<svg")
        if start < 0:
            return None
        sheets, _ = _scan(source[start:])
        before, self._prefix = self._prefix, ""
        try:
            markup = self._nh3.clean(_CONTROL.sub("\ufffd", source[start:]))
        finally:
            self._prefix = before
        if not markup.startswith("<svg"):
            return None
        css = "\n".join(clean_stylesheet(sheet) for sheet in sheets)
        head, end, body = markup.partition(">")
        document = (
            f'{head} xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"{end}'
            f"<style>{xml.sax.saxutils.escape(css)}</style>{body}"
        ).replace("&nbsp;", "&#160;")
        try:
            expat.ParserCreate().Parse(document.encode(), True)
        except expat.ExpatError:
            return None
        return "data:image/svg+xml;base64," + base64.b64encode(document.encode()).decode()

    def picture_address(self, value: str) -> str | None:
        """Return a picture's ``data:`` URL if it is one, with an SVG cleaned, else None."""
        parts = _PICTURE.fullmatch(value.strip())
        if not parts:
            return None
        kind, encoded, data = parts[1].lower(), parts[2], parts[3]
        try:
            content = base64.b64decode(data, validate=False) if encoded else urllib.parse.unquote_to_bytes(data)
        except binascii.Error:
            return None
        if kind == "svg+xml":
            try:
                return self.svg_address(content.decode("utf-8", "replace"))
            except TooDeep:
                return None
        return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"

    def _attribute(self, tag: str, name: str, value: str) -> str | None:
        # Called for each attribute before nh3's own allow-list: a name that is not on it goes whatever this returns.
        if name in ("id", "for"):
            return self._prefix + value
        if name == "headers":
            return " ".join(self._prefix + one for one in value.split())
        if name == "class":
            return " ".join(one for one in value.split() if not one.startswith(_RESERVED)) or None
        if name == "style":
            return clean_style(value, self._prefix) or None
        if name == "href":
            return self._address(tag, value)
        if name == "src" and tag == "img":
            address = self.picture_address(value)
            if address is None:
                self._dropped["picture from elsewhere"] += 1
            return address
        if name in ("width", "height", "border", "cellpadding", "cellspacing"):
            return value if _NUMBER.fullmatch(value) else None
        if name in _PRESENTATION and tag in _SVG:
            if local := _LOCAL.fullmatch(value):
                return f"url(#{self._prefix}{local[1]})"
            # A value with a function is CSS: image-set() and src() load without the word "url".
            loads = "url" in value.lower() or "\\" in value or ("(" in value and not clean_style(f"{name}: {value}"))
            return None if loads else value
        return value

    def _address(self, tag: str, value: str) -> str | None:
        if value.startswith("#"):
            return f"#{self._prefix}{value[1:]}"
        if tag == "image":
            return self.picture_address(value)
        if tag != "a":
            return None
        # As a browser reads it: without control characters and blanks.
        bare = re.sub(r"[\x00-\x20]+", "", value).lower()
        scheme, colon, _ = bare.partition(":")
        if colon and not re.search(r"[/?#]", scheme) and scheme not in ("http", "https", "mailto"):
            return None
        return value


def _scan(source: str) -> tuple[list[str], Counter[str]]:
    """Return the style sheets of a source, and the number of dropped parts. Linear in the source's length.

    Raises:
        TooDeep: Elements are nested too deeply. This is an upper estimate for HTML as programs write it. A hostile
            source can keep it too low, and then its own export hits the time limit.
    """
    sheets: list[str] = []
    dropped: Counter[str] = Counter()
    opened: Counter[str] = Counter()
    depth, drawing, at = 0, False, 0
    shapes = {name.lower() for name in _SVG}
    while tag := _TAG.search(source, at):
        at = tag.end()
        if tag[1]:
            at = source.find("-->", at)
            if at < 0:
                break
            continue
        name = tag[3].lower()
        drawing = name in shapes and (drawing or name == "svg") and not (name == "svg" and bool(tag[2]))
        if tag[2]:
            if opened[name]:
                opened[name] -= 1
                depth -= 1
            continue
        if name in _KINDS:
            dropped[_KINDS[name]] += 1
        if name in ("script", "style"):
            start = source.find(">", at)
            end = _find_end(source, name, start) if start >= 0 else -1
            if end < 0:
                break
            if name == "style":
                sheets.append(source[start + 1 : end].replace("<![CDATA[", "").replace("]]>", ""))
            at = source.find(">", end)
            if at < 0:
                break
            continue
        if drawing:
            at = source.find(">", at)
            if at < 0:
                break
        if name not in _NOT_NESTED and not (drawing and source[at - 1] == "/"):
            opened[name] += 1
            depth += 1
            if depth > DEPTH:
                raise TooDeep
    return sheets, dropped


def _find_end(source: str, name: str, start: int) -> int:
    end = re.compile(f"</{name}", re.I).search(source, start)
    return end.start() if end else -1
