"""Secrets of the operator that the proxy adds to requests, so that a session uses a key without having it.

A rule names secrets in two ways. ``inject`` sets a header to a text with ``${NAME}``. ``secrets`` lets the session's
code write the placeholder ``kernelsvc-secret-NAME`` into a header, where the value takes its place. Both are for exact
hosts over TLS. In answers the values are replaced by stars. All functions are pure. Values are bytes, because headers
are.
"""

from __future__ import annotations

import base64
import binascii
import html
import json
import re
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated

import msgspec

from kernelsvc.model.network.hosts import clean_name

SecretName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$(?!\n)")]
Headers = Sequence[tuple[bytes, bytes]]

#: Fewest and most bytes of a value. Stars for a shorter one would spoil unrelated text in answers.
MIN_VALUE, MAX_VALUE = 8, 8192
#: Most headers that a rule may set, and the length of one.
MAX_INJECTED, MAX_TEMPLATE = 16, 1024
_PLACEHOLDER = b"kernelsvc-secret-"
_REFERENCE = re.compile(r"\$\{([^}]*)\}")
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")
_TEXT = re.compile(r"[\x20-\x7e]+")
#: Fields that frame a message or name its receiver.
_RESERVED = frozenset(
    (
        *("accept-encoding", "connection", "content-length", "expect", "host", "if-range", "keep-alive"),
        *("proxy-authorization", "proxy-connection", "range", "te", "trailer", "transfer-encoding", "upgrade"),
    )
)
#: Fields with which code could bring an account of its own to an API, where a rule has the operator's.
_CREDENTIALS = frozenset(
    (b"api-key", b"authorization", b"cookie", b"private-token", b"x-api-key", b"x-auth-token", b"x-goog-api-key")
)
#: Browsers can't set headers of a WebSocket, so some APIs take a key as the name of a subprotocol.
_SUBPROTOCOLS = b"sec-websocket-protocol"
_CREDENTIAL = re.compile(rb"key|token|bearer|auth", re.IGNORECASE)
#: Fields that servers repeat in answers and logs. No placeholder is replaced there.
_REFLECTED = frozenset(
    (
        *(b"accept", b"accept-language", b"content-type", b"forwarded", b"from", b"host", b"if-none-match", b"origin"),
        *(b"referer", b"traceparent", b"tracestate", b"user-agent", b"via", b"x-correlation-id", b"x-forwarded-for"),
        *(b"x-forwarded-host", b"x-request-id"),
    )
)
#: An answer in another coding can't be searched for values, and parts of one could be asked for byte by byte.
_READABLE = [(b"accept-encoding", b"identity")]
_PARTS = frozenset((b"accept-encoding", b"range", b"if-range"))


class SecretSource(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Where the proxy reads a secret, and for which hosts it may be used. The value is in no setting.

    Attributes:
        hosts: exact names of hosts. No rule can send the secret to another one.
        file: path of a file with the value. The value has no newline at its end.
        command: a program and its arguments, which prints the value.
        env: an environment variable of the server, or of the proxy if that has its own unit.
    """

    hosts: tuple[str, ...]
    file: str | None = None
    command: tuple[str, ...] | None = None
    env: str | None = None

    def __post_init__(self) -> None:
        """Check the hosts, and that there is one source.

        Raises:
            ValueError: One is not valid.
        """
        if not self.hosts:
            raise ValueError("a secret needs 'hosts', the exact names to which it may be sent")
        for host in self.hosts:
            if clean_name(host) != host:
                raise ValueError(f"hosts: write {clean_name(host)} for {host}")
        if sum(bool(source) for source in (self.file, self.command, self.env)) != 1:
            raise ValueError("a secret needs one of 'file', 'command' and 'env'")


def as_variable(field: bytes) -> bytes:
    """Return the name by which some servers know a header's name, to compare names.

    Servers that pass fields on as variables of the environment read "_" as "-" (RFC 3875, section 4.1.18).
    """
    return field.replace(b"_", b"-")


def references(template: str) -> list[str]:
    """Return the names of secrets in the text of a header."""
    return _REFERENCE.findall(template)


def check_injected(inject: Mapping[str, str], rule: str) -> None:
    """Check the headers that a rule sets.

    Args:
        inject: Texts by name.
        rule: The rule, for messages.

    Raises:
        ValueError: One is not valid. The message says how to write one.
    """
    if len(inject) > MAX_INJECTED:
        raise ValueError(f"rule {rule!r} sets {len(inject)} headers and may set {MAX_INJECTED}")
    for name, text in inject.items():
        if not _TOKEN.fullmatch(name) or as_variable(name.lower().encode()).decode() in _RESERVED:
            raise ValueError(f"rule {rule!r}: {name[:64]!r} is not a header that a rule may set")
        if not _TEXT.fullmatch(text) or len(text) > MAX_TEMPLATE or not all(map(_TOKEN.fullmatch, references(text))):
            raise ValueError(f"rule {rule!r}: header {name}: write ASCII text such as Bearer ${{NAME}}")


def with_secrets(
    headers: Headers, values: Mapping[str, bytes], inject: Mapping[str, str], placeholders: Sequence[str]
) -> tuple[list[tuple[bytes, bytes]], list[bytes]]:
    """Return the headers of a request with secrets, and the texts that must not be in its answer.

    Args:
        headers: From h11: names in lower case.
        values: Values of the rule's secrets.
        inject: Texts of headers to set.
        placeholders: Names of the secrets whose placeholders are replaced.
    """
    injected = {
        name.lower().encode(): _REFERENCE.sub(lambda match: values[match[1]].decode("latin-1"), text).encode("latin-1")
        for name, text in inject.items()
    }
    dropped = {as_variable(name) for name in injected} | (_CREDENTIALS if injected else set())
    # Longest first: one name may begin with another.
    swaps = {_PLACEHOLDER + name.encode(): values[name] for name in sorted(placeholders, key=len, reverse=True)}
    made: list[tuple[bytes, bytes]] = []
    hidden = [*values.values()]
    for field, value in headers:
        plain = as_variable(field)
        if plain in dropped or plain in _PARTS:
            continue
        if injected and plain == _SUBPROTOCOLS:
            value = b",".join(name for name in value.split(b",") if not _CREDENTIAL.search(name))
            if not value:
                continue
        if plain not in _REFLECTED and (swapped := _swap(value, swaps)) != value:
            hidden += [swapped.partition(b" ")[2]] if swapped[:6].lower() == b"basic " else []
            value = swapped
        made.append((field, value))
    return [*made, *injected.items(), *_READABLE], hidden


def _swap(value: bytes, swaps: Mapping[bytes, bytes]) -> bytes:
    scheme, _, encoded = value.partition(b" ")
    if scheme.lower() == b"basic":
        try:
            inner = base64.b64decode(encoded.strip(), validate=True)
        except binascii.Error:
            return value
        swapped = _replace(inner, swaps)
        return value if swapped == inner else scheme + b" " + base64.b64encode(swapped)
    return _replace(value, swaps)


def _replace(value: bytes, swaps: Mapping[bytes, bytes]) -> bytes:
    if _PLACEHOLDER not in value:
        return value
    pattern = b"|".join(map(re.escape, swaps))
    return re.sub(pattern, lambda match: swaps[match[0]], value) if pattern else value


class Redactor:
    """Replaces values in a stream by stars of the same length. It holds back bytes only if they may begin a value.

    A server that writes a value in another form than these defeats it. See ``_forms``.

    Args:
        values: The values.
    """

    def __init__(self, values: Iterable[bytes]) -> None:
        forms = {form for value in values for form in _forms(value) if len(form) >= MIN_VALUE}
        self._words = sorted(forms, key=len, reverse=True)
        self._firsts = {word[0] for word in self._words}
        self._kept = b""

    def fields(self, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """Return the fields of an answer with stars. The case of a name has no meaning, so it hides no value."""
        return [(self._name(name), self.text(value)) for name, value in headers]

    def _name(self, name: bytes) -> bytes:
        found, lower = bytearray(name), name.lower()
        for word in map(bytes.lower, self._words):
            at = lower.find(word)
            while at >= 0:
                found[at : at + len(word)] = b"*" * len(word)
                at = lower.find(word, at + 1)
        return bytes(found)

    def text(self, data: bytes) -> bytes:
        """Return a complete text, such as a header, with stars."""
        # One pattern of all words takes seconds to compile if a value has some KiB.
        for word in self._words:
            data = data.replace(word, b"*" * len(word))
        return data

    def feed(self, data: bytes) -> bytes:
        """Return the next bytes of a stream that can be passed on."""
        if not self._words:
            return data
        data = self.text(self._kept + data)
        longest = min(len(self._words[0]) - 1, len(data))
        kept = next((n for n in range(longest, 0, -1) if data[-n] in self._firsts and self._begins(data[-n:])), 0)
        self._kept = data[len(data) - kept :]
        return data[: len(data) - kept]

    def flush(self) -> bytes:
        """Return the bytes that ``feed`` has kept, at the end of the stream."""
        kept, self._kept = self._kept, b""
        return kept

    def _begins(self, tail: bytes) -> bool:
        return any(word.startswith(tail) for word in self._words)


def _forms(value: bytes) -> set[bytes]:
    """Return the texts that usual encoders make of a value: as it is, percent-encoded, JSON, HTML and Base64."""
    text = value.decode("latin-1")
    quoted = {urllib.parse.quote_from_bytes(value, safe=safe) for safe in _UNQUOTED} | {urllib.parse.quote_plus(value)}
    # PHP writes "\/" for "/", and Go, Ruby and Java write "\u003c" for "<" and the like.
    escaped = {json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]}
    escaped |= {each.translate(table) for each in escaped for table in _UNICODE_ESCAPES}
    escaped |= {each.replace("/", "\\/") for each in escaped}
    marked = {html.escape(text, quote=False), html.escape(text)}
    marked |= {each.replace("&#x27;", "&#39;").replace("&quot;", mark) for each in marked for mark in _QUOTES}
    texts = quoted | {each.lower() for each in quoted} | escaped | marked
    # Base64 of a text in which the value begins at any of three offsets. The digits at its ends depend on the
    # neighbours, so they are left out.
    coded = [base64.b64encode(b"\0" * offset + value)[(0, 2, 3)[offset] :] for offset in range(3)]
    coded = [code[: len(code) - (0, 3, 2)[(len(value) + offset) % 3]] for offset, code in enumerate(coded)]
    return {value, *(each.encode("latin-1") for each in texts), *coded, *(code.translate(_URL_SAFE) for code in coded)}


#: Characters that encoders of URLs leave as they are: none, those of a path, of JavaScript's encodeURIComponent and of
#: its encodeURI (ECMA-262, section 19.2.6).
_UNQUOTED = ("", "/", "!*'()", ";,/?:@&=+$!*'()#")
_UNICODE_ESCAPES = [
    {ord(each): f"\\u{ord(each):{form}}" for each in marks}
    for marks in ("<>&", "<>&'", "<>&'=")
    for form in ("04x", "04X")
]
_QUOTES = ("&quot;", "&#34;")
_URL_SAFE = bytes.maketrans(b"+/", b"-_")
