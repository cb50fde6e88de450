"""Ids that name the node where an object was made.

A *node* is a server of a cluster. Its name has six hexadecimal digits, which its data directory keeps. A session's id
is ``s_`` and 16 random digits. On a node, the node's name comes before the random digits. A front therefore finds the
node of a session without a table, and ids of both lengths stay valid everywhere.

Ids of OpenAI's API keep their length: their first digits are the node's name. They can't be told from random ones, so
such a name is only a hint.
"""

from __future__ import annotations

import re

#: Digits of a node's name, of a session's random part, and of both.
NODE_DIGITS, RANDOM_DIGITS = 6, 16
#: The digits of a session's id, as a regular expression.
DIGITS = rf"(?:[0-9a-f]{{{NODE_DIGITS}}})?[0-9a-f]{{{RANDOM_DIGITS}}}"

_NODE = re.compile(rf"[0-9a-f]{{{NODE_DIGITS}}}")
_SESSION = re.compile(rf"s[-_]({DIGITS})", re.IGNORECASE)
_KERNEL_PREFIXES = {RANDOM_DIGITS: "6b73766300008000", NODE_DIGITS + RANDOM_DIGITS: "6b73766301"}
_CONTAINER = re.compile(rf"(?:cntr_|file_(?={DIGITS}_cfile_))({DIGITS})(?![0-9a-f])")
_OPENAI = re.compile(rf"(?:resp|conv|file|msg)[-_]({_NODE.pattern})[0-9a-f]{{26}}(?![0-9a-f])")


def is_node(name: str) -> bool:
    """Return whether this text has the form of a node's name."""
    return _NODE.fullmatch(name) is not None


def session_of(text: str) -> str | None:
    """Return the session's id for an id of any form of the native and E2B's API. None if it is no session's."""
    found = _SESSION.fullmatch(text)
    return f"s_{found[1].lower()}" if found else None


def node_of(session: str) -> str | None:
    """Return the node where a session was made. None if its id does not name one."""
    digits = session.removeprefix("s_")
    return digits[:NODE_DIGITS] if len(digits) == NODE_DIGITS + RANDOM_DIGITS else None


def node_hint(text: str) -> str | None:
    """Return the likely node of an object of OpenAI's API: the first digits of its id."""
    found = _OPENAI.match(text)
    return found[1] if found else None


def session_of_container(text: str) -> str | None:
    """Return the session behind the id of a container of OpenAI's API, or of a file in one, in either API's form."""
    found = _CONTAINER.match(text)
    return f"s_{found[1]}" if found else None


def kernel_id(session: str) -> str:
    """Return a session's id in the form of a UUID, which Jupyter's routes require.

    The UUID has "ksvc" in hexadecimal, then a mark of the length, then the digits of the session's id.
    """
    digits = session.removeprefix("s_")
    if digits == session or len(digits) not in _KERNEL_PREFIXES:
        return session
    whole = _KERNEL_PREFIXES[len(digits)] + digits
    return "-".join((whole[:8], whole[8:12], whole[12:16], whole[16:20], whole[20:]))


def session_of_kernel(kernel: str) -> str:
    """Return the session's id for a kernel's id. Any other text is returned unchanged."""
    whole = kernel.replace("-", "")
    for size, prefix in _KERNEL_PREFIXES.items():
        if whole.startswith(prefix) and len(whole) == len(prefix) + size:
            return f"s_{whole[-size:]}"
    return kernel
