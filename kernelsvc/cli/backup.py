"""``kernelsvc backup`` and ``restore``: a copy of a data directory whose logs are all proven, and the way back."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from kernelsvc import settings as conf
from kernelsvc.cli.terminal import Terminal
from kernelsvc.cli.terminal.filter import size
from kernelsvc.errors import BadRequest

if TYPE_CHECKING:
    from kernelsvc.store.keys import SigningKey


def backup(args: argparse.Namespace, terminal: Terminal) -> int:
    """Write a backup of a data directory."""
    # Imported late: cryptography is slow to import.
    from kernelsvc.store.backups.backup import write_backup
    from kernelsvc.store.keys import SigningKey

    settings = conf.load(vars(args), os.environ)
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
    key = _own_key(conf.load({"config": args.config}, os.environ))
    try:
        report = restore_backup(archive, target, key=key, public_key=args.key)
    except OSError as error:
        raise BadRequest(f"Nothing was restored: {error.filename or target}: {error.strerror}.") from None
    for session in report.unproven:
        terminal.message(f"{session} has a log that the server did not vouch for. It will not be signed", "yellow")
    made = report.manifest
    terminal.message(f"restored {made.sessions} sessions of {made.at} into {target}. Start: --data-dir {target}")
    if args.key is None:
        terminal.message(f"signed by {made.key}. Compare it with your server's key, or name that with --key")
    return 0


def _own_key(settings: conf.Settings) -> SigningKey | None:
    """Return the key of the setting ``signing_key``, or None if the key is in the data directory."""
    from kernelsvc.store.keys import SigningKey

    return SigningKey.load(settings.signing_key.absolute()) if settings.signing_key else None
