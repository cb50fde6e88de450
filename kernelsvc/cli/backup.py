"""``kernelsvc backup`` and ``restore``: a copy of a data directory whose logs are all proven, and the way back.

Also ``kernelsvc lock``, which removes the key of an encrypted data directory from Linux.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from kernelsvc import settings as conf
from kernelsvc.cli.terminal import Terminal
from kernelsvc.cli.terminal.filter import size
from kernelsvc.errors import BadRequest, Conflict, KernelsvcError

if TYPE_CHECKING:
    from kernelsvc.store.keys import SigningKey


def backup(args: argparse.Namespace, terminal: Terminal) -> int:
    """Write a backup of a data directory."""
    # Imported late: cryptography is slow to import.
    from kernelsvc.service.directories import unlock_data_directory
    from kernelsvc.store.backups.backup import write_backup
    from kernelsvc.store.keys import SigningKey

    settings = conf.load(vars(args), os.environ)
    unlock_data_directory(settings)
    data, target = settings.data_path(), Path(args.file)
    try:
        if not (data / "sessions").is_dir():
            raise BadRequest(f"{data} is no data directory. Give the server's --data-dir or --config.")
        key = _own_key(settings) or SigningKey.load_or_create(data / "keys")
        report = write_backup(data, target, key)
    except OSError as error:
        raise BadRequest(f"Can't write the backup: {error.filename or target}: {error.strerror}.") from None
    for session in report.left_out:
        terminal.message(f"{session} began during the backup and is not in it", "yellow")
    if report.skipped:
        terminal.message(
            f"left out {report.skipped} files or directories of sessions that can't be read or restored, such as "
            f"{report.first_skipped[:200]}",
            "yellow",
        )
    terminal.message(f"wrote {target} ({size(report.bytes)}): {report.sessions} sessions. It holds keys: encrypt it")
    return 0


def restore(args: argparse.Namespace, terminal: Terminal) -> int:
    """Restore a backup into a new data directory."""
    from kernelsvc.store.backups.restore import restore_backup

    archive, target = Path(args.file), Path(args.directory)
    settings = conf.load({"config": args.config}, os.environ)
    made_here = _make_encrypted(target, settings)
    try:
        report = restore_backup(archive, target, key=_own_key(settings), public_key=args.key)
    except (KernelsvcError, OSError) as error:
        if made_here:
            target.rmdir()
        if isinstance(error, KernelsvcError):
            raise
        raise BadRequest(f"Nothing was restored: {error.filename or target}: {error.strerror}.") from None
    for session in report.unproven:
        terminal.message(f"{session} has a log that the server did not vouch for. It will not be signed", "yellow")
    made = report.manifest
    terminal.message(f"restored {made.sessions} sessions of {made.at} into {target}. Start: --data-dir {target}")
    if args.key is None:
        terminal.message(f"signed by {made.key}. Compare it with your server's key, or name that with --key")
    return 0


def _make_encrypted(target: Path, settings: conf.Settings) -> bool:
    """Prepare a directory for files that are encrypted, if the settings have a key. Return whether it was made here."""
    from kernelsvc.store.encryption import unlock

    if settings.encryption.key_file is None and not settings.encryption.key_command:
        return False
    made = not target.exists()
    try:
        target.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise BadRequest(f"Nothing was restored: {target}: {error.strerror}.") from None
    try:
        unlock(target, settings.encryption)
    except KernelsvcError:
        if made:
            target.rmdir()
        raise
    return made


def lock(args: argparse.Namespace, terminal: Terminal) -> int:
    """Remove the key of an encrypted data directory from Linux."""
    from kernelsvc.cli.companions.companion_process import server_of
    from kernelsvc.store import encryption

    data = conf.load(vars(args), os.environ).data_path()
    if server_of(data) is not None:
        raise Conflict(f"A server uses {data}. Stop it first.")
    if not encryption.lock(data):
        terminal.message(
            f"{data}: the key is removed, but some files stay readable: a process has them open, such as a kernel host "
            "with sessions, or another user added the key. Stop it, and run this command again",
            "yellow",
        )
        return 1
    terminal.message(f"{data} is locked")
    return 0


def _own_key(settings: conf.Settings) -> SigningKey | None:
    """Return the key of the setting ``signing_key``, or None if the key is in the data directory."""
    from kernelsvc.store.keys import SigningKey

    return SigningKey.load(settings.signing_key.absolute()) if settings.signing_key else None
