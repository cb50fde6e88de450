"""Files between this machine and a session's working directory, in chunks."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path, PurePosixPath

from kernelsvc.client.http import Body, Rest
from kernelsvc.errors import BadRequest

_CHUNK = 256 * 1024


def upload_body(source: str | os.PathLike[str] | bytes, name: str | None) -> tuple[Body, int, str]:
    """What to send for a source, how many bytes that is, and under which name.

    Raises:
        BadRequest: there is no such file, or bytes came without a name.
    """
    if isinstance(source, bytes):
        if name is None:
            raise BadRequest("Bytes have no name of their own; give name='data.csv'.")
        return source, len(source), name
    path = Path(source)
    if not path.is_file():
        raise BadRequest(f"There is no file {str(path)!r} to upload.")

    async def chunks() -> AsyncIterator[bytes]:
        with path.open("rb") as file:  # noqa: ASYNC230 - local reads of a quarter MiB; a thread's hop costs more
            while chunk := file.read(_CHUNK):
                yield chunk

    return chunks, path.stat().st_size, name or path.name


def target_of(to: Path, name: str) -> Path:
    """The file to write for a download: inside ``to`` if that is a directory."""
    return to / PurePosixPath(name).name if to.is_dir() else to


async def save(rest: Rest, path: str, target: Path) -> None:
    """Download into a file that appears whole or not at all."""
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as temporary:
        try:

            def start_over() -> None:
                temporary.seek(0)
                temporary.truncate()

            def write(chunk: bytes) -> None:
                temporary.write(chunk)

            await rest.raw("GET", path, sink=write, on_restart=start_over)
            temporary.flush()
            os.replace(temporary.name, target)
        except BaseException:
            os.unlink(temporary.name)
            raise
