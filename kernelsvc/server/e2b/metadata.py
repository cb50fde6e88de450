"""E2B's metadata of a file, stored as extended attributes that the sandbox's code can read.

An upload carries it in headers (``X-Metadata-NAME``), and descriptions of the file
show it. A cell may set and remove the same attributes (``os.setxattr``), so that their
values are untrusted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kernelsvc.errors import BadRequest, TooLarge

#: Prefix of a header and of an extended attribute with metadata, as in E2B.
HEADER, ATTRIBUTE = "x-metadata-", "user.e2b."
#: Limits of one file's metadata: bytes of all names and values, and names. ext4 stores attributes in one block.
MAX_BYTES, MAX_NAMES = 3072, 64
#: xattr(7): a name has at most 255 bytes.
_MAX_NAME = 255 - len(ATTRIBUTE)


def from_headers(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the metadata in an upload's headers, by its name in lower case.

    Raises:
        BadRequest: A name or a value can't be stored.
        TooLarge: It is over the limit.
    """
    found = {name[len(HEADER) :].lower(): value for name, value in headers if name[: len(HEADER)].lower() == HEADER}
    for name, value in found.items():
        if not 0 < len(name) <= _MAX_NAME:
            raise BadRequest(f"The name of metadata must have 1 to {_MAX_NAME} characters.")
        if not value.isascii() or not value.isprintable():
            raise BadRequest(f"The metadata {name[:64]!r} is not printable ASCII. Encode it first.")
    if len(found) > MAX_NAMES or sum(len(name) + len(value) for name, value in found.items()) > MAX_BYTES:
        raise TooLarge(f"A file's metadata are at most {MAX_NAMES} names and {MAX_BYTES} bytes. Send less.")
    return found


def to_attributes(metadata: Mapping[str, str]) -> dict[str, bytes]:
    """Return metadata as extended attributes."""
    return {ATTRIBUTE + name: value.encode() for name, value in metadata.items()}


def from_attributes(attributes: Mapping[str, bytes]) -> dict[str, str]:
    """Return the metadata in a file's extended attributes. Bytes that are not UTF-8 become U+FFFD."""
    return {
        name.removeprefix(ATTRIBUTE).encode("utf-8", "replace").decode(): value.decode("utf-8", "replace")
        for name, value in list(attributes.items())[: 4 * MAX_NAMES]
        if name.startswith(ATTRIBUTE)
    }
