"""Files of a sandbox outside its home directory, for example in ``/tmp``.

They exist only inside the sandbox. Programs in the sandbox (``service.programs``)
therefore do the work, with the rights of the sandbox's cells. Content is
carried by a copy in the home directory, which the server can open.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from kernelsvc.errors import BadRequest, Conflict, NotFound, Timeout
from kernelsvc.model.objects import Principal
from kernelsvc.server.e2b import paths

if TYPE_CHECKING:
    from kernelsvc.service.api import ServiceApi

#: Seconds for one operation, most bytes of its output, most files in it, and most characters of a quoted error.
SECONDS, MAX_ANSWER, MAX_ENTRIES, MAX_WORDS = 60.0, 8 << 20, 10_000, 300
#: Tag of programs that this API runs for its own purposes.
INTERNAL_TAG = "kernelsvc.files"
#: Exit statuses of the scripts: the file does not exist, the directory exists already.
_MISSING, _EXISTS = 44, 45

_IF_EXISTS = '[ -e "$1" ] || [ -L "$1" ] || exit 44; '
_PARENT = 'mkdir -p -- "$(dirname -- "$2")" && '
_STAT = _IF_EXISTS + 'exec find "$1" -mindepth "$2" -maxdepth "$3" -printf \'%y%Y\\t%m\\t%M\\t%s\\t%T@\\t%l\\t%p\\0\''
_MAKE = '[ -d "$1" ] && exit 45; exec mkdir -p -- "$1"'
_MOVE = _IF_EXISTS + _PARENT + 'exec mv -T -- "$1" "$2"'
_REMOVE = 'exec rm -rf -- "$1"'
_FETCH = _IF_EXISTS + '[ -f "$1" ] || { echo "it is not a regular file" >&2; exit 1; }; exec cp -- "$1" "$2"'
_PUT = _PARENT + 'cp -- "$1" "$2"; status=$?; rm -f -- "$1"; exit $status'

_TOO_MANY = "The directory has too many files for one listing. List a part of it."
_KINDS = {"f": "FILE_TYPE_FILE", "d": "FILE_TYPE_DIRECTORY", "l": "FILE_TYPE_SYMLINK"}


class ExecFiles:
    """The files of one sandbox outside its home directory. Paths are absolute.

    Args:
        service: Runs the programs.
        who: The sandbox's owner.
        sandbox: Its id.
    """

    def __init__(self, service: ServiceApi, who: Principal, sandbox: str) -> None:
        self._service, self._who, self._sandbox = service, who, sandbox

    async def stat(self, path: str) -> dict[str, Any]:
        """Describe a file.

        Raises:
            NotFound: It does not exist.
        """
        (found,) = _entries(await self._run(_STAT, path, "0", "0"))
        return found

    async def list(self, path: str, depth: int) -> list[dict[str, Any]]:
        """Describe the files in a directory.

        Raises:
            NotFound: It does not exist.
        """
        return sorted(_entries(await self._run(_STAT, path, "1", str(depth))), key=lambda each: str(each["path"]))

    async def make(self, path: str) -> bool:
        """Make a directory and its parents. Return False if it exists."""
        return await self._run(_MAKE, path) is not None

    async def move(self, source: str, target: str) -> None:
        """Move a file. One of the paths may be in the home directory."""
        await self._run(_MOVE, path_in_sandbox(source), path_in_sandbox(target))

    async def remove(self, path: str) -> None:
        """Remove a file, or a directory with its content. Do nothing if it does not exist, as E2B does."""
        await self._run(_REMOVE, path)

    async def fetch(self, path: str) -> bytes:
        """Copy a file into the home directory. The caller removes the copy.

        Raises:
            NotFound: It does not exist.
        """
        copy = temporary_name()
        await self._run(_FETCH, path, path_in_sandbox(paths.path_of(copy)))
        return copy

    async def put(self, copy: bytes, path: str) -> None:
        """Move a temporary file from the home directory to its path. An existing file is replaced."""
        await self._run(_PUT, path_in_sandbox(paths.path_of(copy)), path)

    async def _run(self, script: str, *args: str) -> bytes | None:
        """Run a script and return its output. None if the directory that it should make exists.

        Raises:
            NotFound: The file does not exist.
            BadRequest: The sandbox refuses. The message quotes the error.
        """
        argv = ["/bin/sh", "-c", script, "files", *args]
        program, output = await self._service.programs.start(
            self._who, self._sandbox, argv, env={"LC_ALL": "C.UTF-8"}, with_input=False, tag=INTERNAL_TAG
        )
        said: dict[str, bytes] = {"stdout": b"", "stderr": b""}
        try:
            async with asyncio.timeout(SECONDS):
                while (piece := await output.next()) is not None:
                    said[piece[0]] += piece[1]
                    if len(said[piece[0]]) > MAX_ANSWER:
                        raise Conflict(_TOO_MANY)
        except TimeoutError:
            raise Timeout("The sandbox took too long to access this file. Try again.") from None
        finally:
            output.close()
            self._service.programs.signal(self._who, self._sandbox, program.id, signal.SIGKILL)
        return _check_status(output.status, said)


def _check_status(status: int | None, said: dict[str, bytes]) -> bytes | None:
    code = -1 if status is None else status >> 8 if not status & 0x7F else -1
    if code == _EXISTS:
        return None
    if code == _MISSING:
        raise NotFound("There is no such file. List the directory and check the path.")
    if code != 0:
        words = said["stderr"].decode("utf-8", "replace").strip()[:MAX_WORDS] or "its program was killed"
        raise BadRequest(f"The sandbox refused this: {words}. {paths.HOME} and /tmp are writable.")
    return said["stdout"]


def path_in_sandbox(path: str) -> str:
    """Return a path for a program in the sandbox. They start in the home directory, whose path differs in a branch."""
    return f".{path.removeprefix(paths.HOME)}" if path.startswith(f"{paths.HOME}/") else path


def temporary_name() -> bytes:
    """Return an unused name in the home directory."""
    return b".e2b-" + secrets.token_hex(12).encode()


def _entries(data: bytes | None) -> list[dict[str, Any]]:
    # The sandbox may have another program named "find". Short lines take the event loop seconds for each MiB.
    if data is not None and data.count(b"\0") > MAX_ENTRIES:
        raise Conflict(_TOO_MANY)
    return [_entry(each.decode("utf-8", "replace")) for each in (data or b"").split(b"\0") if each.count(b"\t") >= 6]


def _entry(line: str) -> dict[str, Any]:
    kind, mode, permissions, size, modified, target, path = line.split("\t", 6)
    found = {
        "name": path.rstrip("/").rpartition("/")[2],
        "type": _KINDS.get(kind[1:], _KINDS.get(kind[:1], "FILE_TYPE_UNSPECIFIED")),
        "path": path,
        "size": size if size.isdecimal() else "0",
        "mode": int(mode, 8) if mode.isascii() and mode.isdecimal() and not set(mode) & {"8", "9"} else 0,
        "permissions": permissions,
        "owner": "user",
        "group": "user",
        "modifiedTime": _time_of(modified),
    }
    if kind.startswith("l"):
        found |= {"symlinkTarget": os.path.normpath(os.path.join(os.path.dirname(path), target)), "isSymlink": True}
    return found


def _time_of(text: str) -> str:
    try:
        at = datetime.fromtimestamp(float(text), UTC)
    except (ValueError, OverflowError, OSError):
        at = datetime.fromtimestamp(0, UTC)
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ") if at.year >= 1000 else "1970-01-01T00:00:00Z"
