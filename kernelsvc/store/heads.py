"""The last head of each journal, outside of the journal: what this server wrote, so that it signs nothing else.

Theory of operation
-------------------
A signature says that the server wrote a history. A server that signs the journal that it finds on disk says that of any
forgery with a correct chain. So each append first writes the journal's head to this file: the head before the append,
the head after it, and the last head that a sync made durable. The next server compares (``judge``).

The file has one slot of ``SLOT`` bytes for each session, with a keyed BLAKE2b (RFC 7693) over it. The key follows from
the signing key, so a process that can write to the data directory but can't read the key can't forge a slot. It can
restore an old copy of both files. Only heads that were sent elsewhere show that (setting ``head_log``).

A slot is written with pwrite(2) and not synced. The page cache survives the death of the
server, so after a crash of the process the slot is exact, but for the entries of the last append, which may be missing.
After a crash of the machine, both files may have lost their ends independently. Then the journal must have the last
durable head, and later entries are accepted and named on the record. The boot id (random(4)) tells the two apart.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import struct
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Literal

import msgspec

from kernelsvc.model.hash_chain import Head

SLOT = 256
_MAC_SIZE = 32
#: Mark, session, boot, refused. Three heads and the MAC follow.
_START = struct.Struct("<4s16s16s?3x")
_HEAD = struct.Struct("<Q32s")
_BODY = _START.size + 3 * _HEAD.size
_MARK = b"KSH1"
#: The boot of a slot that is exact over a restart of the machine: the server closed the journal.
_CLEAN = bytes(16)


class HeadRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a journal.

    Attributes:
        before: The head before the last append.
        after: The head after it.
        durable: The last head that a sync made durable.
        exact: Whether the journal must end with ``before`` or ``after``.
        refused: Whether a mismatch was found before.
    """

    before: Head
    after: Head
    durable: Head
    exact: bool
    refused: bool = False


class Judgement(msgspec.Struct, frozen=True, kw_only=True):
    """Result of ``judge``.

    Attributes:
        kind: ``watched``: this or an earlier server with the same key wrote all of it. ``tail``: all but the entries
            from ``first`` on. ``mismatch``: not as written, or nothing is known of it.
        first: The first entry that is in doubt. 0 if that is on record already.
        message: The result in words. Empty if it was watched.
    """

    kind: Literal["watched", "tail", "mismatch"]
    first: int = 0
    message: str = ""


WATCHED = Judgement(kind="watched")


def judge(record: HeadRecord | None, found: Head, digest_of: Callable[[int], str]) -> Judgement:
    """Compare a journal with its record.

    Args:
        record: The record. None if there is none, or if it was changed.
        found: The head of the journal, whose links were checked.
        digest_of: Returns the digest of an entry.
    """
    if record is None and not found.seq:
        return WATCHED  # The session never began.
    if record is None:
        text = "The server has no record of this log: an earlier version wrote it, or the record was removed."
        return Judgement(kind="mismatch", first=1, message=text)
    if record.refused:
        return Judgement(kind="mismatch", message="This log was found changed at an earlier start.")
    sound = record.before if record.exact else record.durable
    if found in (record.before, record.after, sound):
        return WATCHED
    if found.seq < sound.seq:
        text = f"Entries {found.seq + 1} to {sound.seq} are missing or can't be read."
        return Judgement(kind="mismatch", first=found.seq + 1, message=text)
    if sound.seq and digest_of(sound.seq) != sound.digest:
        text = f"The entries up to {sound.seq} are not those that the server wrote."
        return Judgement(kind="mismatch", first=1, message=text)
    # Up to ``after``: a crash in the middle of an append leaves a part of its lines.
    if record.exact and found.seq >= record.after.seq:
        text = f"Entries {record.after.seq + 1} to {found.seq} were added while no server had the log open."
        return Judgement(kind="mismatch", first=record.after.seq + 1, message=text)
    text = f"The machine or the server stopped while entries {sound.seq + 1} to {found.seq} were written."
    return Judgement(kind="tail", first=sound.seq + 1, message=text)


class HeadFile:
    """The file with the heads of all journals of a data directory. Call methods from one thread at a time.

    Args:
        path: The file. Created with mode 0600 if it is missing.
        key: The key of the MAC, 32 bytes.

    Raises:
        OSError: The file can't be opened.
    """

    def __init__(self, path: Path, key: bytes) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._key = key
        self._boot = _boot_id()
        self._offsets: dict[bytes, int] = {}
        self._free: list[int] = []
        self._end = 0
        while slot := os.pread(self._fd, SLOT, self._end):
            if self._is_genuine(slot):
                self._offsets[slot[4:20]] = self._end
            else:
                self._free.append(self._end)
            self._end += SLOT

    def find(self, session: str) -> HeadRecord | None:
        """Return the record of a session, or None if there is none or if it was changed."""
        offset = self._offsets.get(_name(session))
        slot = os.pread(self._fd, SLOT, offset) if offset is not None else b""
        if not self._is_genuine(slot) or slot[4:20] != _name(session):
            return None
        _, _, boot, refused = _START.unpack_from(slot)
        pairs = _HEAD.iter_unpack(slot[_START.size : _BODY])
        before, after, durable = (Head(seq, digest.hex() if seq else "") for seq, digest in pairs)
        return HeadRecord(
            before=before, after=after, durable=durable, exact=boot in (_CLEAN, self._boot), refused=refused
        )

    def slot(self, session: str, *, refused: bool = False) -> HeadSlot:
        """Return the slot of a session, to be written.

        Args:
            session: The session's id.
            refused: A mismatch was found. It stays on record.
        """
        name = _name(session)
        offset = self._offsets.get(name)
        if offset is None:
            offset = self._free.pop() if self._free else self._end
            self._end = max(self._end, offset + SLOT)
            self._offsets[name] = offset
        return HeadSlot(self, offset, name, refused)

    def forget(self, session: str) -> None:
        """Free the slot of a session whose journal is removed. Never raises."""
        offset = self._offsets.pop(_name(session), None)
        if offset is not None:
            with contextlib.suppress(OSError):
                os.pwrite(self._fd, bytes(SLOT), offset)
                self._free.append(offset)

    def sync(self) -> None:
        """Make all records durable. Never raises: an older record names more entries than necessary."""
        with contextlib.suppress(OSError):
            os.fdatasync(self._fd)

    def close(self) -> None:
        """Make all records durable and close the file."""
        self.sync()
        os.close(self._fd)

    def _write(self, offset: int, body: bytes) -> None:
        os.pwrite(self._fd, (body + self._mac(body)).ljust(SLOT, b"\0"), offset)

    def _mac(self, body: bytes) -> bytes:
        return blake2b(body, key=self._key, digest_size=_MAC_SIZE).digest()

    def _is_genuine(self, slot: bytes) -> bool:
        mac = slot[_BODY : _BODY + _MAC_SIZE]
        return len(slot) == SLOT and slot[:4] == _MARK and hmac.compare_digest(self._mac(slot[:_BODY]), mac)


class HeadSlot:
    """The place of one journal's record."""

    def __init__(self, file: HeadFile, offset: int, name: bytes, refused: bool) -> None:
        self._file = file
        self._offset = offset
        self._start = _START.pack(_MARK, name, file._boot, refused)
        self._clean_start = _START.pack(_MARK, name, _CLEAN, refused)
        # The bytes of the heads that the last call wrote: most calls repeat two of three.
        self._packed: dict[str, bytes] = {}

    def advance(self, before: Head, after: Head, durable: Head) -> None:
        """Write the record before an append.

        Raises:
            OSError: It can't be written. The append must not happen.
        """
        known = self._packed
        old = known.get(before.digest) or _pack(before)
        new = _pack(after)
        synced = known.get(durable.digest) or _pack(durable)
        self._packed = {after.digest: new, durable.digest: synced}
        self._file._write(self._offset, self._start + old + new + synced)

    def settle(self, head: Head) -> None:
        """Write that the journal ends with this head, and that the server closed it.

        Raises:
            OSError: It can't be written.
        """
        self._file._write(self._offset, self._clean_start + 3 * _pack(head))


def _pack(head: Head) -> bytes:
    return _HEAD.pack(head.seq, bytes.fromhex(head.digest))


def _name(session: str) -> bytes:
    return blake2b(session.encode(), digest_size=16).digest()


def _boot_id() -> bytes:
    try:
        return bytes.fromhex(Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", ""))
    except (OSError, ValueError):
        # Unknown: each start counts as one after a crash of the machine.
        return os.urandom(16)
