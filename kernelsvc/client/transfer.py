"""Transfer files between this machine and a session's working directory, in chunks."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from kernelsvc.client.http import Body, Rest
from kernelsvc.client.values import FileInfo, read
from kernelsvc.errors import BadRequest
from kernelsvc.linux.output_file import output_file

_CHUNK = 256 * 1024
#: Headers of a request for a file's content: a directory is then an error, and its listing is no file.
CONTENT = {"Accept": "application/octet-stream"}


def file_list(answer: Any) -> list[FileInfo]:
    """Return the entries of a listing. Bytes of a path that are not UTF-8 are surrogates, as ``quoted`` takes them."""
    files = [{**entry, "path": unquote(entry["url"], errors="surrogateescape")} for entry in answer["files"]]
    return read(files, list[FileInfo])


def upload_body(source: str | os.PathLike[str] | bytes, name: str | None) -> tuple[Body, int, str]:
    """Return the request body for a source, its size in bytes, and the file's name.

    Raises:
        BadRequest: the file does not exist, or the source is bytes and has no name.
    """
    if isinstance(source, bytes):
        if name is None:
            raise BadRequest("Bytes have no file name. Give one, such as name='data.csv'.")
        return source, len(source), name
    path = Path(source)
    if not path.is_file():
        raise BadRequest(f"There is no file {str(path)!r} to upload. Check the path.")

    async def chunks() -> AsyncIterator[bytes]:
        with path.open("rb") as file:  # noqa: ASYNC230 - a switch to a thread costs more than a read of 256 KiB
            while chunk := file.read(_CHUNK):
                yield chunk

    return chunks, path.stat().st_size, name or path.name


def target_of(to: Path, name: str) -> Path:
    """Return the path of a download. If ``to`` is a directory, it is a path in it."""
    return to / PurePosixPath(name).name if to.is_dir() else to


async def save(rest: Rest, path: str, target: Path) -> None:
    """Download a file, see ``output_file``."""
    with output_file(target) as file:

        def start_over() -> None:
            file.seek(0)
            file.truncate()

        def write(chunk: bytes) -> None:
            file.write(chunk)

        await rest.raw("GET", path, headers=CONTENT, sink=write, on_restart=start_over)
