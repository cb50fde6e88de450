"""E2B's headers, signatures and errors: functions of values.

E2B's clients name the sandbox of a request by two headers, or by the host name
where a wildcard name leads to this server: the sandbox's id, and a port inside the
sandbox. Two ports have a meaning: one for files and commands, one for the interpreter.
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
from kernelsvc.model.cluster.ids import DIGITS

#: Ports inside a sandbox that E2B's clients speak to.
FILES_PORT, INTERPRETER_PORT = 49983, 49999
#: Purposes of a sandbox's secrets: files, commands and code, or code alone.
ENVD, TRAFFIC = "envd", "traffic"
#: User of files and commands if the request names none.
DEFAULT_USER = "user"

_HOST = re.compile(r"(?P<port>\d{1,5})-(?P<sandbox>[A-Za-z0-9_-]{1,64})\.")
#: A sandbox's id, made from a session's (``s_`` and hexadecimal digits). Host names may come in capitals.
_SHOWN = re.compile(rf"s-{DIGITS}")
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")

#: Characters of a signature: "v1_" and a SHA-256 in base64 without padding.
_SIGNATURE = 46

Operation = Literal["read", "write"]


def shown_id(session: str) -> str:
    """Return a session's id as a sandbox's, which works in host names: RFC 952 has no underscore in them."""
    return session.replace("_", "-", 1)


def session_id(sandbox: str) -> str:
    """Return the session's id for a sandbox's, in either form."""
    return sandbox.replace("-", "_", 1) if _SHOWN.fullmatch(sandbox) else sandbox


def address(headers: Mapping[str, str]) -> tuple[str | None, int | None]:
    """Read from a request the session of its sandbox, and the sandbox's port. None where it does not say.

    Args:
        headers: The request's, by name in any case (as Tornado's are).
    """
    sandbox, port = headers.get("E2b-Sandbox-Id"), headers.get("E2b-Sandbox-Port")
    host = _HOST.match(headers.get("Host") or "")
    if sandbox is None and host is not None:
        sandbox, port = host["sandbox"].lower(), host["port"]
    if sandbox is not None and not _ID.fullmatch(sandbox):
        sandbox = None
    return sandbox and session_id(sandbox), int(port) if port and port.isdecimal() and len(port) <= 5 else None


def user_of(authorization: str | None) -> str:
    """Return the user that a request names. E2B's clients send it as the name of basic authentication."""
    scheme, _, rest = (authorization or "").strip().partition(" ")
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(rest.strip(), validate=True).decode().partition(":")[0]
    except (binascii.Error, UnicodeDecodeError):
        return ""


def signature(path: str, operation: Operation, user: str, secret: str, expires: int | None = None) -> str:
    """Compute the signature of a file's URL, as E2B's clients do.

    Args:
        path: The file's, as in the URL.
        operation: The operation that the URL allows.
        user: The name in the URL, empty for none.
        secret: The sandbox's secret for files.
        expires: Unix time after which the URL is invalid. None: never.
    """
    fields = [path, operation, user, secret, *([] if expires is None else [str(expires)])]
    digest = hashlib.sha256(":".join(fields).encode("utf-8", "surrogatepass")).digest()
    return "v1_" + base64.b64encode(digest).rstrip(b"=").decode()


class SignedAddress(msgspec.Struct, frozen=True):
    """The URL of a file with its signature. The fields are those of ``signature``."""

    given: str
    path: str
    operation: Operation
    user: str
    expires: int | None

    def is_signed_with(self, secret: str) -> bool:
        """Return whether this secret made the signature. The comparison takes constant time.

        E2B's clients join the fields by colons, and a path may hold colons. As no user does, only one choice of the
        fields gives a signed text: operation, user, secret and expiry are the last ones.
        """
        if len(self.given) != _SIGNATURE or ":" in self.user:
            return False
        made = signature(self.path, self.operation, self.user, secret, self.expires)
        return hmac.compare_digest(made.encode(), self.given.encode("utf-8", "surrogatepass"))


def expiry_of(text: str | None, now: float) -> int | None:
    """Parse the expiry of a signed URL, as Unix time. None: it never expires.

    Raises:
        Unauthenticated: It has expired, or is not a time.
    """
    if not text:
        return None
    if not text.isdecimal() or len(text) > 12:
        raise Unauthenticated("The URL's signature_expiration is not a Unix time. Ask for a new URL.")
    if now > int(text):
        raise Unauthenticated("signature is already expired")  # E2B's words, which its clients compare
    return int(text)


def gone(sandbox: str) -> dict[str, Any]:
    """Return the body of a 502 for a sandbox that does not exist or has ended."""
    return {"sandboxId": shown_id(sandbox), "message": "The sandbox was not found", "code": 502}


def closed_port(sandbox: str, port: int) -> dict[str, Any]:
    """Return the body of a 502 for a port that is neither of this API's two."""
    # E2B's clients look for "port is not open".
    message = "The port is not open: requests to a sandbox's own servers are not forwarded here."
    return {"sandboxId": shown_id(sandbox), "message": message, "port": port, "code": 502}
