"""What the tools need of whoever owns the sessions."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

from msgspec import Struct

from kernelsvc.tools.definitions import FileShown

T = TypeVar("T")


class FilePart(Struct, frozen=True, kw_only=True):
    """A part of a file.

    Attributes:
        data: the bytes.
        size: of the whole file, in bytes.
    """

    data: bytes
    size: int


class ToolBackend(Protocol):
    """One principal's way to its sessions. Every method raises ``KernelsvcError`` for what the caller must know."""

    async def call(self, method: str, params: dict[str, Any], kind: type[T]) -> T:
        """A method of the native API, by its name. Safe to cancel: what was accepted goes on."""

    async def put_file(self, session: str, path: str, data: bytes) -> None:
        """Write a file of the working directory, whole or not at all."""

    async def read_file(self, session: str, path: str, offset: int, limit: int) -> FilePart:
        """Some bytes of a file of the working directory."""

    async def list_files(self, session: str, path: str, *, recursive: bool) -> tuple[list[FileShown], bool]:
        """What lies in a directory, at most a thousand names, and whether there are more."""

    async def notebook(self, session: str, format: str) -> bytes:
        """The session as a notebook; closed ones too."""
