"""Branches with a sandbox of their own: fresh sessions that get a copy of the parent's variables and files.

A fork shares its parent's sandbox (docs/adr/0016). An isolated branch is a new session instead, with its own
namespaces and, as root, its own user id. The parent's variables reach it as a pickle, as a hibernated session's do:
the parent writes into a descriptor, and the new kernel reads from another file. The server reads neither.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from kernelsvc.errors import AtCapacity, TooLarge
from kernelsvc.linux.nofollow import open_directory
from kernelsvc.linux.tree_copy import TreeCopy
from kernelsvc.service.creation import SessionCreator
from kernelsvc.session import Session, SessionSpec
from kernelsvc.session.spec import lost_warnings
from kernelsvc.store.sessions import SessionDirectories, SessionDirectory


async def begin_isolated(
    store: SessionDirectories, creator: SessionCreator, parent: Session, specs: list[SessionSpec]
) -> list[Session]:
    """Begin isolated branches, which the caller has reserved. If one can't begin, none is left.

    Args:
        store: all session directories.
        creator: begins the sessions.
        parent: the session that is copied. It has a kernel.
        specs: one for each branch.

    Raises:
        NotSupported: the parent's kernel can't save its variables.
        TooLarge: the directory holds more than a branch may have.
        KernelsvcError: nothing was created.
    """
    own = store.directory(parent.id)
    fd, name = await asyncio.to_thread(tempfile.mkstemp, dir=own.path, prefix="branch-")
    try:
        source = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            saved = await parent.save_variables(fd)
            made: list[Session] = []
            try:
                for spec in specs:
                    made.append(await creator.begin_isolated(spec, _filler(source, own.working(), spec, saved.lost)))
            except BaseException:
                await asyncio.gather(*(one.close("a sibling could not be made") for one in made))
                raise
            return made
        finally:
            os.close(source)
    finally:
        os.close(fd)
        os.unlink(name)


def _filler(source: int, files: Path, spec: SessionSpec, lost: Mapping[str, str]) -> Callable[[SessionDirectory], None]:
    """Return a function that fills a branch's directory. It runs in a thread, before any process of the branch."""

    def fill(directory: SessionDirectory) -> None:
        tree = TreeCopy(spec.limits.disk_bytes, spec.limits.files)
        try:
            # A copy: the parent may keep the descriptor into which it wrote, and change that file later.
            with open(directory.saved, "xb") as target, open(os.dup(source), "rb") as reader:
                os.fchmod(target.fileno(), 0o600)
                reader.seek(0)
                shutil.copyfileobj(reader, target, 1 << 20)
            old, new = open_directory(files, os.O_RDONLY), open_directory(directory.working(), os.O_RDONLY)
            try:
                tree.copy(old, new)
            finally:
                os.close(old)
                os.close(new)
        except OSError as error:
            raise _explained(error) from error
        spec.add_warnings(_warnings(lost, tree.skipped))

    return fill


def _explained(error: OSError) -> AtCapacity | TooLarge:
    if error.errno == errno.EFBIG:
        return TooLarge("The session's directory holds more than a branch may have. Delete some files first.")
    return AtCapacity(f"The branch's files can't be written ({error.strerror}). Free disk space, then try again.")


def _warnings(lost: Mapping[str, str], skipped: list[str]) -> list[str]:
    files = [f"the file {path} was not copied: it is not readable, or has a second name" for path in skipped]
    return [*lost_warnings(lost), *files]
