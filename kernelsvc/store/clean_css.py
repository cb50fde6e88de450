"""A sanitizer for the CSS of untrusted HTML: allow-lists of properties and functions, by tinycss2's parser.

A rule keeps its plain properties. It loses each declaration that could load something (``url()``, ``image-set()``),
run something (``expression()``, ``behavior``) or paint outside its own box (``position``). Selectors are limited to
the elements inside one box of the page, and ids get the prefix that ``clean_html`` gives them in the HTML.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

import tinycss2


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Families of properties: ``border`` stands for ``border`` and for all that start with ``border-``.
_FAMILIES = (
    "align", "background", "border", "box", "column", "columns", "fill", "flex", "font", "grid", "justify", "line",
    "list-style", "margin", "marker", "outline", "overflow", "padding", "place", "row", "stop", "stroke", "text",
    "word", "break", "max", "min",
)  # fmt: skip
_PROPERTIES = _names(
    "accent-color alignment-baseline aspect-ratio baseline-shift caption-side clear clip-path clip-rule color "
    "color-scheme content counter-increment counter-reset counter-set cursor direction display dominant-baseline "
    "empty-cells float gap height hyphens inline-size letter-spacing mask opacity order orphans paint-order "
    "quotes rotate rx ry r cx cy x y d scale shape-rendering tab-size table-layout transform transform-origin "
    "translate unicode-bidi vector-effect vertical-align visibility white-space widows width"
)
_FUNCTIONS = _names(
    "attr calc clamp color color-mix conic-gradient counter counters cubic-bezier fit-content hsl hsla hwb lab "
    "lch linear-gradient matrix max min minmax oklab oklch radial-gradient repeat repeating-conic-gradient "
    "repeating-linear-gradient repeating-radial-gradient rgb rgba rotate scale scalex scaley skew skewx skewy "
    "translate translatex translatey var"
)
#: Properties of SVG that may name a gradient, a clip path or a marker of the same fragment.
_REFERRING = frozenset(["clip-path", "fill", "marker-end", "marker-mid", "marker-start", "mask", "stroke"])
_VALUES = frozenset(("ident", "number", "percentage", "dimension", "hash", "string", "whitespace"))
_SELECTORS = frozenset(("ident", "hash", "whitespace", "string", "number", "dimension"))
_ROOTS = frozenset((":root", ":host", "html", "body"))
_DEPTH = 12
_NAME = re.compile(r"[\w.-]+")


@lru_cache(maxsize=4096)
def clean_style(text: str, prefix: str = "") -> str:
    """Return the safe declarations of a ``style`` attribute.

    Args:
        text: The attribute's value.
        prefix: Prefix of each id of the fragment.
    """
    return _declarations(tinycss2.parse_blocks_contents(text, skip_comments=True, skip_whitespace=True), prefix)


def clean_stylesheet(text: str, *, scope: str = "", prefix: str = "") -> str:
    """Return the safe rules of a style sheet.

    Args:
        text: The content of a ``<style>`` element.
        scope: Id of the element whose descendants the rules may select. Empty for a document of its own.
        prefix: Prefix of each id of the fragment.
    """
    parsed = tinycss2.parse_stylesheet(text, skip_comments=True, skip_whitespace=True)
    return "\n".join(_rules(parsed, scope, prefix, nested=False))


def _rules(parsed: Iterable[Any], scope: str, prefix: str, *, nested: bool) -> Iterator[str]:
    for rule in parsed:
        if rule.type == "at-rule":
            # Only "@media" is allowed. "@import" and "@font-face" load files, "@keyframes" and "@property" define names
            # for the page.
            if nested or rule.lower_at_keyword != "media" or rule.content is None or not _is_query(rule.prelude):
                continue
            inside = tinycss2.parse_rule_list(rule.content, skip_comments=True, skip_whitespace=True)
            if kept := "\n".join(_rules(inside, scope, prefix, nested=True)):
                yield f"@media {_text(rule.prelude)} {{\n{kept}\n}}"
        elif rule.type == "qualified-rule":
            body = tinycss2.parse_blocks_contents(rule.content, skip_comments=True, skip_whitespace=True)
            inner, root = _selectors(rule.prelude, scope, prefix)
            if inner and (kept := _declarations(body, prefix)):
                yield f"{', '.join(inner)} {{{kept}}}"
            # The box itself takes variables and nothing else: its size and place are the page's.
            if root and (kept := _declarations([d for d in body if getattr(d, "name", "").startswith("--")], prefix)):
                yield f"#{scope} {{{kept}}}"


def _selectors(prelude: list[Any], scope: str, prefix: str) -> tuple[list[str], bool]:
    inner, root, one = [], False, []
    for token in [*prelude, None]:
        if token is not None and token != ",":
            one.append(token)
            continue
        text = _text(one).strip() if _is_selector(one, prefix) else ""
        if scope and text.lower() in _ROOTS:
            root = True
        elif text and text[0] not in ">+~|":
            # A selector that starts with a combinator would reach the box's siblings. ":where" adds no specificity.
            inner.append(f":where(#{scope}) {text}" if scope else text)
        one = []
    return inner, root


def _is_selector(tokens: Iterable[Any], prefix: str, depth: int = 0) -> bool:
    for token in tokens:
        if token.type == "hash":
            token.value = prefix + token.value
        elif token.type == "function":
            if depth > _DEPTH or not _is_selector(token.arguments, prefix, depth + 1):
                return False
        elif token.type == "[] block":
            if depth > _DEPTH or not _is_selector(token.content, prefix, depth + 1):
                return False
        elif token.type == "literal":
            if token.value not in (".", ":", "::", ">", "+", "~", "*", ",", "=", "~=", "|=", "^=", "$=", "*="):
                return False
        elif token.type not in _SELECTORS:
            return False
    return True


def _is_query(tokens: Iterable[Any], depth: int = 0) -> bool:
    for token in tokens:
        if token.type == "() block":
            if depth > _DEPTH or not _is_query(token.content, depth + 1):
                return False
        elif token.type == "literal":
            if token.value not in (",", ":", "/", "=", ">"):
                return False
        elif token.type not in ("ident", "number", "dimension", "whitespace"):
            return False
    return True


def _declarations(parsed: Iterable[Any], prefix: str) -> str:
    kept = []
    for one in parsed:
        if one.type == "declaration" and _is_property(one.lower_name):
            name = one.name if one.name.startswith("--") else one.lower_name
            if _is_value(one.value, prefix, refers=name in _REFERRING):
                kept.append(f"{name}: {_text(one.value).strip()}{' !important' if one.important else ''}")
    return "; ".join(kept)


def _is_property(name: str) -> bool:
    if name.startswith("--"):
        return _NAME.fullmatch(name) is not None
    return name in _PROPERTIES or name in _FAMILIES or name.startswith(tuple(f"{family}-" for family in _FAMILIES))


def _is_value(tokens: Iterable[Any], prefix: str, *, refers: bool, depth: int = 0) -> bool:
    for token in tokens:
        if token.type in ("() block", "[] block", "function"):
            if depth > _DEPTH or (token.type == "function" and token.lower_name not in _FUNCTIONS):
                return False
            inside = token.arguments if token.type == "function" else token.content
            if not _is_value(inside, prefix, refers=False, depth=depth + 1):
                return False
        elif token.type == "url":
            name = token.value[1:]
            if not refers or not token.value.startswith("#") or not _NAME.fullmatch(name):
                return False
            token.representation = f"url(#{prefix}{name})"
        elif token.type == "literal":
            if token.value not in (",", "/", "+", "-", "*"):
                return False
        elif token.type not in _VALUES:
            return False
    return True


def _text(tokens: Iterable[Any]) -> str:
    # HTML ends a style element at "</style" even in a CSS string. The escape means the same in CSS.
    return str(tinycss2.serialize(tokens)).replace("<", "\\3c ")
