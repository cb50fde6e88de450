"""E2B's wire, as functions of values: headers, signatures, errors.

What E2B's clients send to one sandbox names it by two headers (or by the host
name, where a wildcard name leads here): its id, and the port inside the sandbox
that is meant. Two ports have a meaning: files and commands, and the interpreter.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from kernelsvc.errors import Unauthenticated

#: Ports inside a sandbox that E2B's clients speak to.
FILES_PORT, INTERPRETER_PORT = 49983, 49999
#: What the secrets of a sandbox are for: files, commands and code; or code alone.
ENVD, TRAFFIC = "envd", "traffic"
#: Whom files and commands belong to when nobody is named.
DEFAULT_USER = "user"

_HOST = re.compile(r"(?P<port>\d{1,5})-(?P<sandbox>[A-Za-z0-9_-]{1,64})\.")
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")

#: Characters of a signature: "v1_" and a SHA-256 in base64 without padding.
_SIGNATURE = 46

Operation = Literal["read", "write"]


def address(headers: Mapping[str, str]) -> tuple[str | None, int | None]:
    """Which sandbox and which of its ports a request is for; None for what it does not say.

    Args:
        headers: the request's, by name in any case (as Tornado's are).
    """
    sandbox, port = headers.get("E2b-Sandbox-Id"), headers.get("E2b-Sandbox-Port")
    host = _HOST.match(headers.get("Host") or "")
    if sandbox is None and host is not None:
        sandbox, port = host["sandbox"], host["port"]
    if sandbox is not None and not _ID.fullmatch(sandbox):
        sandbox = None
    return sandbox, int(port) if port and port.isdecimal() and len(port) <= 5 else None


def user_of(authorization: str | None) -> str:
    """The user that a request wants to be: E2B's clients write it as the name of basic authentication."""
    scheme, _, rest = (authorization or "").strip().partition(" ")
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(rest.strip(), validate=True).decode().partition(":")[0]
    except (binascii.Error, UnicodeDecodeError):
        return ""


def signature(path: str, operation: Operation, user: str, secret: str, expires: int | None = None) -> str:
    """The signature of a file's address, as E2B's clients make it.

    Args:
        path: the file's, as it stands in the address.
        operation: what the address allows.
        user: the name in the address, empty for none.
        secret: the sandbox's for files.
        expires: Unix time after which the address is void; None for never.
    """
    fields = [path, operation, user, secret, *([] if expires is None else [str(expires)])]
    digest = hashlib.sha256(":".join(fields).encode("utf-8", "surrogatepass")).digest()
    return "v1_" + base64.b64encode(digest).rstrip(b"=").decode()


class SignedAddress(msgspec.Struct, frozen=True):
    """The address of a file with its signature; the fields are those of ``signature``."""

    given: str
    path: str
    operation: Operation
    user: str
    expires: int | None

    def is_signed_with(self, secret: str) -> bool:
        """Whether this secret made the signature; compared in constant time."""
        if len(self.given) != _SIGNATURE:
            return False
        made = signature(self.path, self.operation, self.user, secret, self.expires)
        return hmac.compare_digest(made.encode(), self.given.encode("utf-8", "surrogatepass"))


def expiry_of(text: str | None, now: float) -> int | None:
    """The time at which a signed address ends; None for one that has no end.

    Raises:
        Unauthenticated: it has ended, or can't be read.
    """
    if not text:
        return None
    if not text.isdecimal() or len(text) > 12:
        raise Unauthenticated("The address's signature_expiration is no Unix time; ask for a new address.")
    if now > int(text):
        raise Unauthenticated("The address has expired; ask for a new one.")
    return int(text)


def gone(sandbox: str) -> dict[str, Any]:
    """What is said of a sandbox that is not there (or not any more), with the status 502."""
    return {"sandboxId": sandbox, "message": "The sandbox was not found", "code": 502}


def closed_port(sandbox: str, port: int) -> dict[str, Any]:
    """What is said of a port on which nothing listens, with the status 502."""
    message = f"The sandbox is running but port {port} is not open"
    return {"sandboxId": sandbox, "message": message, "port": port, "code": 502}
