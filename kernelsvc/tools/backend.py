"""The interface between the tools and the sessions."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

from msgspec import Struct

from kernelsvc.tools.definitions import FileShown

T = TypeVar("T")


class FilePart(Struct, frozen=True, kw_only=True):
    """A part of a file.

    Attributes:
        data: bytes of the part.
        size: size of the whole file, in bytes.
    """

    data: bytes
    size: int


class ToolBackend(Protocol):
    """Access to one principal's sessions. Methods raise ``KernelsvcError`` for errors that the caller should read."""

    async def call(self, method: str, params: dict[str, Any], kind: type[T]) -> T:
        """Call a method of the native API. Safe to cancel: the server still executes a call that it has accepted."""

    async def put_file(self, session: str, path: str, data: bytes) -> None:
        """Write a file of the working directory atomically."""

    async def read_file(self, session: str, path: str, offset: int, limit: int) -> FilePart:
        """Read at most ``limit`` bytes of a file of the working directory."""

    async def list_files(self, session: str, path: str, *, recursive: bool) -> tuple[list[FileShown], bool]:
        """List a directory. Returns at most 1,000 files, and whether there are more."""

    async def notebook(self, session: str, format: str) -> bytes:
        """Return an open or closed session as a notebook."""
