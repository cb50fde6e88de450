"""What E2B's clients write on a file: metadata, kept as extended attributes that its owner's code sees too.

It comes in headers of the upload (``X-Metadata-NAME``) and is shown with the
file. A cell may set and remove the same attributes (``os.setxattr``), so what is
read is judged like everything of a sandbox's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kernelsvc.errors import BadRequest, TooLarge

#: Of a header that carries metadata, and of an attribute that keeps them. E2B's own.
HEADER, ATTRIBUTE = "x-metadata-", "user.e2b."
#: Names and values of one file together, in bytes, and their number: what ext4 keeps in one block, less its own.
MAX_BYTES, MAX_NAMES = 3072, 64
#: Linux's bound on an attribute's name.
_MAX_NAME = 255 - len(ATTRIBUTE)


def from_headers(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The metadata that an upload's headers carry, by its name in small letters.

    Raises:
        BadRequest: a name or a value that can't be kept.
        TooLarge: it is too much.
    """
    found = {name[len(HEADER) :].lower(): value for name, value in headers if name[: len(HEADER)].lower() == HEADER}
    for name, value in found.items():
        if not 0 < len(name) <= _MAX_NAME:
            raise BadRequest(f"The name of metadata must have 1 to {_MAX_NAME} characters.")
        if not value.isascii() or not value.isprintable():
            raise BadRequest(f"The metadata {name[:64]!r} is not printable ASCII; encode it first.")
    if len(found) > MAX_NAMES or sum(len(name) + len(value) for name, value in found.items()) > MAX_BYTES:
        raise TooLarge(f"A file's metadata are at most {MAX_NAMES} names and {MAX_BYTES} bytes; send less.")
    return found


def to_attributes(metadata: Mapping[str, str]) -> dict[str, bytes]:
    """Metadata as extended attributes."""
    return {ATTRIBUTE + name: value.encode() for name, value in metadata.items()}


def from_attributes(attributes: Mapping[str, bytes]) -> dict[str, str]:
    """The metadata among a file's extended attributes; what is not UTF-8 becomes U+FFFD."""
    return {
        name.removeprefix(ATTRIBUTE).encode("utf-8", "replace").decode(): value.decode("utf-8", "replace")
        for name, value in list(attributes.items())[: 4 * MAX_NAMES]
        if name.startswith(ATTRIBUTE)
    }
