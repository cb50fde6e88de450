"""The part of a rule that needs a request to be read: its methods and its paths.

A path in a rule is exact, or ends with ``*`` for any rest. Servers, proxies and frameworks do not agree on the meaning
of some spellings (``/a/../b``, ``//``, ``%2e``). A path in such a spelling is refused where a rule has paths, because
the server could read another path than the one that was checked.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

#: Most methods, and most paths, of one rule.
MAX_METHODS, MAX_PATHS = 16, 64
#: Most characters of a path in a rule.
_MAX_PATH = 512

# RFC 9110, section 9.1: a method is case-sensitive. All registered ones are in upper case.
_METHOD = re.compile(r"[A-Z][A-Z-]{0,31}")
#: RFC 9110, sections 9.3.6 and 9.3.8: CONNECT makes a tunnel, and TRACE returns the request with its secrets.
NEVER = frozenset({"CONNECT", "TRACE"})
# RFC 3986, section 3.3, without what has two readings.
_PATH = re.compile(r"/[A-Za-z0-9/._~!$&'()+,=:@%-]*")
# %c0 and %c1 begin no character of UTF-8, but overlong forms of ASCII ones (RFC 3629, section 3).
_AMBIGUOUS = re.compile(r"//|\\|;|%(?:2e|2f|5c|3b|25|00|c0|c1)|(?:^|/)\.\.?(?:/|$)", re.IGNORECASE)


class RequestConditions(NamedTuple):
    """Methods and paths of a rule. Empty ones allow all.

    Attributes:
        methods: The methods.
        paths: The paths, exact or with a final ``*``.
    """

    methods: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()

    def allow(self, method: str, path: str) -> bool:
        """Whether a request with this method and this path, without its query, fits."""
        if self.methods and method not in self.methods:
            return False
        return not self.paths or (is_plain_path(path) and any(_path_covers(one, path) for one in self.paths))

    def cover(self, other: RequestConditions) -> bool:
        """Whether each request that ``other`` allows is allowed here."""
        if self.methods and not (other.methods and set(other.methods) <= set(self.methods)):
            return False
        return not self.paths or (
            bool(other.paths) and all(any(_path_covers(own, path) for own in self.paths) for path in other.paths)
        )

    def __str__(self) -> str:
        parts = [", ".join(self.methods), ", ".join(self.paths)]
        return "; ".join(part for part in parts if part)


def _path_covers(own: str, path: str) -> bool:
    """Whether a rule's path covers a request's path, or another rule's path."""
    return path.startswith(own[:-1]) if own.endswith("*") else path == own


def is_plain_path(path: str) -> bool:
    """Whether all servers read a path in the same way."""
    return path.startswith("/") and _AMBIGUOUS.search(path) is None


def parse_conditions(methods: Sequence[str], paths: Sequence[str], rule: str) -> RequestConditions:
    """Check the methods and the paths of a rule.

    Args:
        methods: Its methods.
        paths: Its paths.
        rule: Its host, for messages.

    Raises:
        ValueError: One is not valid. The message says how to write one.
    """
    if len(methods) > MAX_METHODS or len(paths) > MAX_PATHS:
        raise ValueError(f"rule {rule!r} may have {MAX_METHODS} methods and {MAX_PATHS} paths")
    for method in methods:
        if not _METHOD.fullmatch(method):
            raise ValueError(f"rule {rule!r}: {method[:40]!r} is not a method. Write one in upper case, such as GET")
        if method in NEVER:
            raise ValueError(f"rule {rule!r}: {method} is never passed on. Write other methods, such as GET")
    for path in paths:
        text = path.removesuffix("*")
        if not _PATH.fullmatch(text) or not is_plain_path(text) or len(path) > _MAX_PATH:
            raise ValueError(
                f"rule {rule!r}: {path[:80]!r} is not a path. Write one such as /v1/models or /repos/acme/*, without a "
                "query, with * only at the end, and without '..', '//', ';' and encoded separators"
            )
    return RequestConditions(tuple(methods), tuple(paths))
