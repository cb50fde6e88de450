"""The archive: copies of the records of closed sessions in a directory of any file system that fsspec knows.

::

    <archive_url>/<session>/journal.jsonl     the log, with its signature
                            notebook.ipynb    the signed notebook. A branch's has the cells of its parents
                            record.json       the owner, and the key of the signatures

``record.json`` comes last: a directory without it holds no record. Files are not compressed, so a reader knows the
size of each before it reads. An archive is trusted no more than a data directory. Paths consist of checked ids and
these names, no link is followed, and a reader takes pieces of limited size.

All methods block. fsspec is an optional package (extra ``archive``), which only an archive imports.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from kernelsvc.errors import BadRequest
from kernelsvc.linux.atomic_file import sync_filesystem
from kernelsvc.model.cluster.ids import session_of

JOURNAL, NOTEBOOK, RECORD = "journal.jsonl", "notebook.ipynb", "record.json"
#: Most bytes of ``record.json``.
MAX_RECORD = 64 * 1024


class ArchivedRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Contents of ``record.json``.

    Attributes:
        session: The session's id.
        principal: Its owner.
        key: The public key of the server that archived it, which signed the notebook and the end of the log.
        at: When it was archived.
    """

    session: str
    principal: str
    key: str
    at: str


class RecordArchive:
    """The archive of one setting ``archive_url``.

    Raises:
        BadRequest: The URL is not valid, or a package for it is missing.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._files, root = _open(url)
        self._root = str(root).rstrip("/")
        #: The directory, if it is one of this machine.
        self.local = self._root if url.startswith(("file://", "local://")) else None

    def put(self, record: ArchivedRecord, journal: Path, notebook: Path | bytes) -> None:
        """Write a record, durably if it is a directory of this machine. An older copy is replaced.

        Raises:
            OSError: It is not there, or not complete.
        """
        folder = self._folder(record.session)
        with _as_os_error():
            if self.local is not None:
                # As in a data directory, the records of others are not for each user of the machine.
                with contextlib.suppress(FileExistsError):
                    os.mkdir(folder, mode=0o700)
            self._files.put_file(str(journal), f"{folder}/{JOURNAL}")
            if isinstance(notebook, bytes):
                self._files.pipe_file(f"{folder}/{NOTEBOOK}", notebook)
            else:
                self._files.put_file(str(notebook), f"{folder}/{NOTEBOOK}")
            self._files.pipe_file(f"{folder}/{RECORD}", msgspec.json.encode(record))
            if self.local is not None:
                sync_filesystem(Path(folder))

    def find(self, session: str) -> ArchivedRecord | None:
        """Return the description of a record, or None if there is none.

        Raises:
            OSError: The archive can't be read.
        """
        try:
            found = msgspec.json.decode(self.read(session, RECORD, 0, MAX_RECORD), type=ArchivedRecord)
        except (FileNotFoundError, msgspec.MsgspecError):
            return None
        return found if found.session == session else None

    def size(self, session: str, name: str) -> int:
        """Return the size of a file of a record.

        Raises:
            FileNotFoundError: There is none.
            OSError: The archive can't be read.
        """
        path = self._path(session, name)
        with _as_os_error():
            return int(self._files.size(path))

    def read(self, session: str, name: str, start: int, end: int) -> bytes:
        """Return bytes of a file of a record, fewer at its end.

        Raises:
            FileNotFoundError: There is none.
            OSError: The archive can't be read.
        """
        path = self._path(session, name)
        with _as_os_error():
            return bytes(self._files.cat_file(path, start=start, end=end))[: end - start]

    def remove(self, session: str) -> None:
        """Remove a record, if there is one.

        Raises:
            OSError: Some of its files may be removed.
        """
        folder = self._folder(session)
        with _as_os_error():
            # First the owner: what is left after a failure is no record.
            for name in (RECORD, NOTEBOOK, JOURNAL):
                with contextlib.suppress(FileNotFoundError):
                    self._files.rm_file(f"{folder}/{name}")
        if self.local is not None:
            with contextlib.suppress(OSError):
                os.rmdir(folder)

    def _folder(self, session: str) -> str:
        if session_of(session) != session:
            raise FileNotFoundError(f"{session!r} is no id of a session")
        if self.local is not None and not os.path.isdir(self.local):
            # It is not created: below a mount point, it would be on the disk of this machine, and lost with it.
            raise OSError(f"the directory {self.local} does not exist")
        return f"{self._root}/{session}"

    def _path(self, session: str, name: str) -> str:
        folder = self._folder(session)
        if self.local is not None and (os.path.islink(folder) or os.path.islink(f"{folder}/{name}")):
            raise FileNotFoundError(f"a link takes the place of {name} of {session}")
        return f"{folder}/{name}"


def _open(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, and the path in it."""
    if "://" not in url:
        raise _refuse(f"{url!r} is not a URL. Use one such as file:///srv/archive or s3://bucket/prefix")
    if urlsplit(url).password is not None:
        raise _refuse("it has a password, which logs would show. Give it to fsspec by its configuration")
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise _refuse("fsspec is not installed. Run: pip install 'kernelsvc[archive]'") from None
    try:
        # Listings that are kept would hide what other nodes write.
        files, root = url_to_fs(url, use_listings_cache=False)
    except Exception as error:  # each file system has its own
        raise _refuse(f"{str(error).rstrip('.')}. A missing package, such as s3fs, can be installed with pip") from None
    return files, root


def _refuse(why: str) -> BadRequest:
    return BadRequest(f"Setting archive_url can't be used: {why}.", setting="archive_url")


@contextlib.contextmanager
def _as_os_error() -> Iterator[None]:
    """Raise each error as an ``OSError``: file systems of fsspec have errors of their own."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error
