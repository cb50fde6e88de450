"""Offers: functions of a client that code in a session may call. Pure.

An *offer* describes a function by JSON schemas. Its *provider* is the client that carries it out, and a *call* is one
use. This module has the values and decisions that need no session: names, redaction, and the text that describes an
offer to code. Arguments are checked by the provider: the server does not compile schemas of strangers.
"""

from __future__ import annotations

import fnmatch
import functools
import hashlib
import heapq
import keyword
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from kernelsvc.errors import BadRequest

#: Largest offer as JSON, in bytes, and the most offers that one provider may have for a session.
MAX_OFFER_BYTES, MAX_OFFERS = 64 * 1024, 1000
#: Most names that are compared with one that does not exist, and from which likeness one is named.
MAX_COMPARED, LEAST_LIKENESS = 1000, 0.3
#: Characters of a description, and words of a query, that a search looks at.
SEARCHED, MAX_WORDS = 4096, 16
#: Most patterns with a wildcard of a session's filters: each list of functions compares all names with them.
MAX_WILDCARDS = 64
#: Deepest schema that is read. A deeper part counts as any value.
MAX_SCHEMA_DEPTH = 16
#: Most characters of the JSON pointers that one offer keeps out of the log, and most parts of a call's arguments that
#: are looked at for them. The arguments of a call that needs more are left out of the log as a whole.
MAX_REDACTION_CHARS, MAX_REDACTION_STEPS = 64 * 1024, 200_000
#: Attributes of ``tools`` itself. An offer with such a name gets an underscore.
RESERVED = frozenset({"call", "search", "start", "stubs"})

Approval = Literal["never", "always", "once_per_cell", "once_per_session"]
Effects = Literal["read", "write", "unknown"]
Count = Annotated[int, Meta(ge=1, le=1_000_000)]
Seconds = Annotated[float, Meta(gt=0, le=7 * 24 * 3600)]
ToolName = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_.\-/]+$(?!\n)")]
ToolPattern = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_.\-/*?]+$(?!\n)")]
ToolPatterns = Annotated[list[ToolPattern], Meta(max_length=MAX_OFFERS)]

CallStatus = Literal[
    "ok",
    "error",
    "denied",
    "expired",
    "timeout",
    "cancelled",
    "unavailable",
    "lost",
    "too_large",
    "limit",
    "refused",
]


class OfferedTool(msgspec.Struct, frozen=True, kw_only=True):
    """An offer in the log. The digest names its whole definition."""

    name: str = ""
    digest: str = ""
    approval: str = "never"
    effects: str = "unknown"


class Offer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A function that code in a session may call.

    Attributes:
        name: The name by which it is called. ``.`` separates namespaces.
        namespace: Put before the name, with ``.``.
        description: Its purpose, for the reader of its documentation.
        parameters: JSON schema of the arguments, an object.
        returns: JSON schema of the result.
        effects: Whether it changes something outside of the session. ``unknown`` counts as ``write``.
        idempotent: Whether it may be carried out twice. After the loss of its provider, a call is then repeated.
        approval: When a person must approve a call before the provider gets it.
        approval_seconds: Time to decide, after which the call is ``expired``.
        timeout_seconds: Time for one call from its approval on, waiting in the queue included.
        max_calls_per_cell: Calls that one cell may make. None for no limit.
        max_calls_per_session: Calls that a session may make. None for no limit.
        per_second: Calls a second that the provider gets. More calls wait.
        max_in_flight: Calls that the provider gets at the same time. More calls wait.
        redact: JSON pointers or names of arguments that no log may contain.
        redact_result: Whether no log may contain the result.
        listed: Whether searches list it.
        inherit: Whether branches of the session may call it, too.
        examples: Arguments of example calls, for its documentation.
        revert: Reserved: whether the provider can undo a call.
    """

    name: ToolName
    namespace: ToolName | None = None
    description: Annotated[str, Meta(max_length=32 * 1024)] = ""
    parameters: dict[str, Any] = msgspec.field(default_factory=lambda: {"type": "object"})
    returns: dict[str, Any] | None = None
    effects: Effects = "unknown"
    idempotent: bool = False
    approval: Approval = "never"
    approval_seconds: Seconds = 3600.0
    timeout_seconds: Seconds = 60.0
    max_calls_per_cell: Count | None = None
    max_calls_per_session: Count | None = None
    per_second: Annotated[float, Meta(gt=0, le=1e6)] | None = None
    max_in_flight: Annotated[int, Meta(ge=1, le=1000)] = 32
    redact: Annotated[list[Annotated[str, Meta(min_length=1, max_length=256)]], Meta(max_length=100)] = []
    redact_result: bool = False
    listed: bool = True
    inherit: bool = True
    examples: Annotated[list[Any], Meta(max_length=20)] = []
    revert: bool = False

    @property
    def tool(self) -> str:
        """Its full name, with the namespace."""
        return f"{self.namespace}.{self.name}" if self.namespace else self.name

    @property
    def digest(self) -> str:
        """A hash of all fields: another digest means another definition."""
        return digest_of(encoded(self))


def encoded(offer: Offer) -> bytes:
    """Return an offer as JSON, the same for equal offers."""
    return msgspec.json.encode(offer, order="deterministic")


def digest_of(data: bytes) -> str:
    """Return the digest of an encoded offer."""
    return hashlib.sha256(data).hexdigest()[:16]


class ProviderId(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The identity of a provider.

    Attributes:
        id: Chosen by the client.
        instance: Another one for each start of the client's process.
    """

    id: ToolName
    instance: ToolName


class ToolFilter(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The functions that a session may call, of those that clients offer to it.

    Attributes:
        allow: Names. ``*`` stands for any characters, ``?`` for one. None allows all.
        deny: Names that may not be called although ``allow`` has them.
    """

    allow: ToolPatterns | None = None
    deny: ToolPatterns = []

    def permits(self, tool: str) -> bool:
        """Return whether a function of this full name may be called."""
        return (self.allow is None or matches(tool, self.allow)) and not matches(tool, self.deny)


def matches(tool: str, patterns: Iterable[str]) -> bool:
    """Return whether a function's full name matches one of the patterns."""
    return any(pattern == tool or (_is_wild(pattern) and fnmatch.fnmatchcase(tool, pattern)) for pattern in patterns)


def _is_wild(pattern: str) -> bool:
    return "*" in pattern or "?" in pattern


def narrowed(filters: Sequence[ToolFilter], more: ToolFilter | None) -> list[ToolFilter]:
    """Return the filters of a session with one more.

    Raises:
        BadRequest: together they have too many patterns.
    """
    found = [*filters, *([more] if more is not None else ())]
    count = sum(map(_is_wild, (name for each in found for name in (*(each.allow or ()), *each.deny))))
    if more is not None and count > MAX_WILDCARDS:
        raise BadRequest(
            f"The filters of functions have {count} patterns with a wildcard and may have {MAX_WILDCARDS}. Name the "
            "functions."
        )
    return found


@functools.lru_cache(maxsize=4096)
def identifier(tool: str) -> str:
    """Return the Python expression below ``tools`` that names a tool: identifiers, joined by ``.``."""
    return ".".join(_identifier(part, first=number == 0) for number, part in enumerate(tool.split(".")))


def _identifier(part: str, *, first: bool) -> str:
    # ASCII only (re.ASCII would do the same): the pattern of names allows nothing else.
    name = re.sub(r"\W", "_", part) or "_"
    if name[0].isdigit():
        name = f"_{name}"
    return f"{name}_" if keyword.iskeyword(name) or (first and name in RESERVED) else name


def check(offers: Sequence[Offer], others: Iterable[str] = ()) -> None:
    """Check the offers of one provider for one session.

    Args:
        offers: All offers that it has there.
        others: Names of offers that other providers have there. The same name is allowed: the newest offer counts.

    Raises:
        BadRequest: Two names have the same identifier, an offer is too large, or there are too many.
    """
    if len(offers) > MAX_OFFERS:
        raise BadRequest(f"A provider may have {MAX_OFFERS} offers in a session, not {len(offers)}. Offer fewer.")
    names = {identifier(other): other for other in others}
    for offer in offers:
        size = len(msgspec.json.encode(offer))
        if size > MAX_OFFER_BYTES:
            raise BadRequest(
                f"The offer {offer.tool!r} has {size} bytes and may have {MAX_OFFER_BYTES}. Shorten its description "
                "or its schema."
            )
        name = identifier(offer.tool)
        if names.setdefault(name, offer.tool) != offer.tool:
            raise BadRequest(
                f"The tools {names[name]!r} and {offer.tool!r} are both tools.{name} in code. Rename one of them.",
                identifier=name,
            )


def nearest(tool: str, names: Iterable[str]) -> list[str]:
    """Return at most ten names that resemble ``tool``, the nearest first. Of many names, the first are compared.

    Names are compared by their pairs of characters (Dice 1945): difflib takes 10 ms for two long ones.
    """
    wanted = _pairs(tool)
    scored = ((_likeness(wanted, _pairs(name)), name) for name in islice(names, MAX_COMPARED))
    return [name for score, name in heapq.nlargest(10, scored, key=lambda each: each[0]) if score >= LEAST_LIKENESS]


def _pairs(name: str) -> set[str]:
    text = name[:128].lower()
    return {text[at : at + 2] for at in range(max(1, len(text) - 1))}


def _likeness(one: set[str], other: set[str]) -> float:
    return 2 * len(one & other) / (len(one) + len(other))


# --- redaction --------------------------------------------------------------------------


def redactions(offer: Offer) -> list[str]:
    """Return the JSON pointers (RFC 6901) of the arguments that no log may contain.

    They are those of ``redact``, and the parts of the schema with ``writeOnly`` or the format ``password``.

    Raises:
        BadRequest: The pointers are too long together.
    """
    found = {each if each.startswith("/") else f"/{_escape(each)}": None for each in offer.redact}
    size = sum(map(len, found))
    for names in _secret(offer.parameters, ()):
        pointer = "".join(f"/{_escape(name)}" for name in names)
        size += len(pointer)
        if size > MAX_REDACTION_CHARS:
            raise BadRequest(
                f"The JSON pointers to the secret arguments of {offer.tool!r} may have {MAX_REDACTION_CHARS} "
                "characters together. Mark the object that holds them as secret."
            )
        found[pointer] = None
    return [*found]


def _escape(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _secret(schema: Any, at: tuple[str, ...]) -> Iterable[tuple[str, ...]]:
    # Names are joined for secret parts only: together the paths of all parts can be very long.
    if not isinstance(schema, dict) or len(at) > MAX_SCHEMA_DEPTH:
        return
    if at and (schema.get("writeOnly") is True or schema.get("format") == "password"):
        yield at
        return
    properties = schema.get("properties")
    if isinstance(properties, dict):
        for name, part in properties.items():
            yield from _secret(part, (*at, str(name)))


def redact(value: Any, pointers: Sequence[str]) -> tuple[Any, list[str]]:
    """Return a copy of a JSON value without the parts at these pointers, and the pointers that it has.

    A removed part becomes ``{"$redacted": n}``, with its size as JSON in bytes. Values are replaced, never text, so
    that the rest stays valid JSON. If that takes more than ``MAX_REDACTION_STEPS``, the whole value is removed.
    """
    found, given, steps = [], value, _Steps()
    try:
        for pointer in pointers:
            value, hit = _redacted(value, pointer.split("/")[1:], steps)
            if hit:
                found.append(pointer)
    except _TooManySteps:
        return hidden(given), [""]
    return value, found


class _TooManySteps(Exception):
    """A redaction looks at too many parts of a value."""


class _Steps:
    """Counts the parts of a value that a redaction has looked at."""

    def __init__(self) -> None:
        self._left = MAX_REDACTION_STEPS

    def take(self, copied: int) -> None:
        """Count one part, of which ``copied`` entries are copied. Eight entries count as one part."""
        self._left -= 1 + copied // 8
        if self._left < 0:
            raise _TooManySteps


def hidden(value: Any) -> dict[str, int]:
    """Return the log's substitute for a value."""
    return {"$redacted": len(msgspec.json.encode(value))}


def _redacted(value: Any, path: list[str], steps: _Steps) -> tuple[Any, bool]:
    if not path:
        steps.take(0)
        return hidden(value), True
    name = path[0].replace("~1", "/").replace("~0", "~")
    if isinstance(value, dict) and name in value:
        steps.take(len(value))
        inner, hit = _redacted(value[name], path[1:], steps)
        return ({**value, name: inner}, True) if hit else (value, False)
    if isinstance(value, list) and (name == "*" or name.isdecimal()):
        places = range(len(value)) if name == "*" else range(int(name), min(int(name) + 1, len(value)))
        steps.take(len(value))
        copy, any_hit = [*value], False
        for place in places:
            copy[place], hit = _redacted(value[place], path[1:], steps)
            any_hit = any_hit or hit
        return copy, any_hit
    steps.take(0)
    return value, False


# --- text for code -----------------------------------------------------------------------

_TYPES = {
    "string": "str",
    "integer": "int",
    "number": "float",
    "boolean": "bool",
    "array": "list",
    "object": "dict",
    "null": "None",
}


def type_text(schema: Any, depth: int = 0) -> str:
    """Return a JSON schema as a Python annotation, for people. A schema that is not understood is ``Any``."""
    if not isinstance(schema, Mapping) or depth > MAX_SCHEMA_DEPTH:
        return "Any"
    if isinstance(schema.get("enum"), list) and len(schema["enum"]) <= 20:
        return f"Literal[{', '.join(map(repr, schema['enum']))}]"
    if "const" in schema:
        return f"Literal[{schema['const']!r}]"
    for choice in ("anyOf", "oneOf"):
        if isinstance(schema.get(choice), list) and schema[choice]:
            return " | ".join(dict.fromkeys(type_text(each, depth + 1) for each in schema[choice]))
    if isinstance(schema.get("$ref"), str):
        return re.sub(r"\W", "_", schema["$ref"].rpartition("/")[2]) or "Any"
    kind = schema.get("type")
    if isinstance(kind, list):
        return " | ".join(_TYPES.get(str(each), "Any") for each in kind)
    if kind == "string" and schema.get("contentEncoding") == "base64":
        return "bytes"
    if kind == "array" and schema.get("items"):
        return f"list[{type_text(schema['items'], depth + 1)}]"
    if kind == "object" and isinstance(schema.get("additionalProperties"), Mapping) and not schema.get("properties"):
        return f"dict[str, {type_text(schema['additionalProperties'], depth + 1)}]"
    return _TYPES.get(str(kind), "Any")


def parameter_names(offer: Offer) -> list[str]:
    """Return the names of the arguments, in the schema's order."""
    properties = offer.parameters.get("properties")
    return [str(name) for name in properties] if isinstance(properties, dict) else []


def signature(offer: Offer) -> str:
    """Return an offer as a Python signature, such as ``search_orders(customer: int, limit: int = 50) -> list``."""
    properties = offer.parameters.get("properties")
    required = offer.parameters.get("required")
    needed = {each for each in required if isinstance(each, str)} if isinstance(required, list) else set()
    first, then = [], []
    for name, part in (properties if isinstance(properties, dict) else {}).items():
        text = f"{name}: {type_text(part)}"
        if name in needed:
            first.append(text)
        else:
            default = part["default"] if isinstance(part, dict) and "default" in part else None
            then.append(f"{text} = {default!r}" if default is not None else f"{text} = ...")
    # Parameters without a default come first in a Python signature. ``*`` says that the rest has no order.
    parts = [*first, *then]
    returns = f" -> {type_text(offer.returns)}" if offer.returns is not None else ""
    return f"{identifier(offer.tool)}({', '.join(parts)}){returns}"


def docstring(offer: Offer) -> str:
    """Return the documentation of an offer: its description, its arguments, and facts about its calls."""
    lines = [offer.description.strip()] if offer.description.strip() else []
    properties = offer.parameters.get("properties")
    described = [
        f"    {name}: {part['description']}"
        for name, part in (properties if isinstance(properties, dict) else {}).items()
        if isinstance(part, dict) and isinstance(part.get("description"), str)
    ]
    if described:
        lines += ["", "Args:", *described]
    facts = [f"Time-out: {offer.timeout_seconds:g} s."]
    if offer.approval != "never":
        facts.append("A person approves it before it is carried out.")
    if offer.effects == "write":
        facts.append("It changes something outside of the session.")
    lines += ["", " ".join(facts)]
    if offer.examples:
        lines += ["", "Examples:", *(f"    {msgspec.json.encode(each).decode()}" for each in offer.examples)]
    return "\n".join(lines).strip()


def rank(offer: Offer, words: Sequence[str]) -> int:
    """Return how well an offer matches the words of a search: 0 for not at all."""
    name, text = offer.tool.lower(), offer.description[:SEARCHED].lower()
    return sum(3 * (word in name) + (word in text) for word in words[:MAX_WORDS])
