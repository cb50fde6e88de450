"""Builtin values for a model: long lists, nested dictionaries, texts and bytes in few words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from kernelsvc.guest.model_view import texts

#: Longest ``repr`` that is shown in full, in characters.
SHORT = 1200
#: Most objects of a collection that are looked at.
MAX_LOOKED_AT = 20_000
#: Most characters of one element, and of a list of names.
_ELEMENT, _NAMES = 600, 6000
#: Elements from the start and from the end of a long flat collection.
_FIRST, _LAST = 20, 3
#: How many elements and levels are read for the structure of the elements.
_SAMPLE, _DEPTH = 50, 4
_ATOMS = frozenset((int, float, complex, bool, type(None), str, bytes))
_COLLECTIONS = frozenset((list, tuple, dict, set, frozenset))
KINDS = frozenset((str, bytes)) | _COLLECTIONS
_BRACKETS: dict[type, tuple[str, str]] = {list: ("[", "]"), tuple: ("(", ")")}
_MAGIC = {b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG", b"PK\x03\x04": "ZIP", b"%PDF": "PDF", b"\x1f\x8b": "gzip"}


def form(value: Any, plain: object) -> str | None:
    """Return the form of a builtin value for a model, or None if its plain text is the best one.

    Args:
        value: of a type in ``KINDS``.
        plain: its plain text by IPython.
    """
    kind = type(value)
    if kind is str:
        return f"str, {len(value)} characters: {_cut_repr(value)}" if len(value) > SHORT else None
    if kind is bytes:
        return _bytes(value) if len(value) > SHORT // 4 else None
    weight = _weight(value)
    if weight is None:
        return _with_objects(value, plain)
    if weight <= SHORT and (text := _short_repr(value)) is not None:
        return text if text != plain else None
    items = list(islice(value, MAX_LOOKED_AT)) if kind is not dict else []
    if kind is list and len(value) > 40 and all(map(_is_name, items)):
        return _names(items, len(value))
    return _large(value, kind)


def _short_repr(value: Any) -> str | None:
    text = repr(value)
    return text if len(text) <= SHORT else None


def _cut_repr(text: str | bytes, most: int = SHORT) -> str:
    head, tail = text[: most * 2 // 3], text[-(most // 3) :]
    left_out = len(text) - len(head) - len(tail)
    return repr(text) if left_out <= 0 else f"{head!r} … [… {left_out} characters …] … {tail!r}"


def _bytes(value: bytes) -> str:
    kind = next((name for start, name in _MAGIC.items() if value.startswith(start)), "")
    return f"bytes, {len(value)} long{f', {kind}' if kind else ''}: {value[:60]!r} …"


def _weight(value: Any) -> int | None:
    """Return a lower bound of the length of a value's ``repr``, or None if it has other objects than builtin ones.

    Of a very large value only the first objects are looked at.
    """
    waiting: list[Any] = [value]
    looked_at = weight = 0
    while waiting and looked_at < MAX_LOOKED_AT:
        one = waiting.pop()
        looked_at += 1
        weight += 1
        kind = type(one)
        if kind is str or kind is bytes:
            weight += len(one)
        elif kind is dict:
            waiting += islice(one.values(), MAX_LOOKED_AT - looked_at)
            waiting += islice(one, MAX_LOOKED_AT - looked_at)
        elif kind in _COLLECTIONS:
            waiting += islice(one, MAX_LOOKED_AT - looked_at)
        elif kind not in _ATOMS:
            return None
    return weight


def _with_objects(value: Any, plain: object) -> str | None:
    """Return IPython's text of a collection with other objects, without addresses and without its middle."""
    if type(plain) is not str:
        return None
    text = texts.mask_addresses(plain)
    if len(text) > 3 * SHORT:
        text = f"{_title(value, type(value))}: {texts.cut(text, 3 * SHORT)}"
    return text if text != plain else None


def _title(value: Any, kind: type) -> str:
    return f"{kind.__name__} of {len(value)}"


def _is_name(value: Any) -> bool:
    return type(value) is str and len(value) < 200 and value.isidentifier()


def _names(names: Sequence[str], count: int) -> str:
    public = [name for name in names if not name.startswith("_")]
    hidden = len(names) - len(public)
    without = f", without {hidden} that start with _" if hidden else ""
    return f"list of {count} names{without}: {texts.cut(', '.join(public), _NAMES)}"


def _large(value: Any, kind: type) -> str:
    title = _title(value, kind)
    if kind is dict:
        return _large_dict(value, title)
    items: Sequence[Any] = value if isinstance(value, list | tuple) else list(islice(value, MAX_LOOKED_AT))
    shape = shape_of(islice(items, _SAMPLE))
    if shape in ("int", "float", "str", "bool", "int | float") or (len(items) > 3 * _FIRST and "{" not in shape):
        head = ", ".join(_element(each, 60) for each in items[:_FIRST])
        tail = ", ".join(_element(each, 60) for each in items[max(_FIRST, len(items) - _LAST) :])
        left_out = len(items) - _FIRST - _LAST
        middle = (f", [… {left_out} more …], " if left_out > 0 else ", ") * bool(tail)
        opening, closing = _BRACKETS.get(kind, ("{", "}"))
        return f"{title} {shape}: {opening}{head}{middle}{tail}{closing}"
    first, last = _element(items[0], _ELEMENT), _element(items[-1], _ELEMENT)
    more = f"\nlast: {last}" if len(items) > 1 else ""
    return f"{title}, each {shape}\nfirst: {first}{more}"


def _large_dict(value: dict[Any, Any], title: str) -> str:
    keys = list(islice(value, MAX_LOOKED_AT))
    shape = shape_of(islice(value.values(), _SAMPLE))
    shown = [_element(key, 60) for key in (*keys[:_FIRST], *keys[max(_FIRST, len(keys) - _LAST) :])]
    if len(keys) > _FIRST + _LAST:
        shown.insert(_FIRST, f"[… {len(keys) - _FIRST - _LAST} more …]")
    lines = [f"{title}, each value {shape}", f"keys: {', '.join(shown)}"]
    lines += [f"first: {_element(keys[0], 60)}: {_element(value[keys[0]], _ELEMENT)}"]
    if len(keys) > 1:
        lines += [f"last: {_element(keys[-1], 60)}: {_element(value[keys[-1]], _ELEMENT)}"]
    return "\n".join(lines)


def _element(value: Any, most: int) -> str:
    return texts.cut(bounded_repr(value, most), most)


def bounded_repr(value: Any, most: int) -> str:
    """Return the start of a ``repr`` of builtin objects, without writing out a large one."""
    kind = type(value)
    if kind is str or kind is bytes:
        return repr(value) if len(value) <= most else _cut_repr(value, most)
    if kind not in _COLLECTIONS:
        return repr(value) if kind in _ATOMS else f"<{kind.__name__}>"
    if not value:
        return repr(value)
    parts: list[str] = []
    room = most
    for each in value:
        part = bounded_repr(each, room)
        if kind is dict:
            part = f"{part}: {bounded_repr(value[each], room)}"
        parts.append(part)
        room -= len(part) + 2
        if room <= 0:
            parts.append(f"… {len(value)} in all")
            break
    opening, closing = _BRACKETS.get(kind, ("{", "}"))
    return f"{opening}{', '.join(parts)}{closing}"


def shape_of(values: Iterable[Any], depth: int = _DEPTH) -> str:
    """Return the structure of values in a short notation, for example ``{id: int, tags: [str]}``."""
    found: list[str] = []
    for each in values:
        shape = _shape(each, depth)
        if shape not in found:
            found.append(shape)
        if len(found) > 4:
            return " | ".join([*found[:4], "…"])
    return " | ".join(found) or "nothing"


def _shape(value: Any, depth: int) -> str:
    kind = type(value)
    if kind is dict:
        if depth <= 0:
            return "{…}"
        if not all(type(key) is str for key in islice(value, 12)):
            return "dict"
        fields = [f"{key[:30]}: {_shape(value[key], depth - 1)}" for key in islice(value, 12)]
        return "{" + ", ".join(fields) + (", …" if len(value) > 12 else "") + "}"
    if kind in (list, set, frozenset):
        return f"[{shape_of(islice(value, 5), depth - 1)}]" if value and depth > 0 else "[]"
    if kind is tuple:
        inside = ", ".join(_shape(each, depth - 1) for each in value[:8])
        return f"({inside}{', …' if len(value) > 8 else ''})" if depth > 0 else "(…)"
    return "None" if value is None else kind.__name__
