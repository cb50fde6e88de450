"""``kernelsvc backup``: a copy of a data directory whose logs are all proven, made while the server runs."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from kernelsvc import settings as conf
from kernelsvc.cli.terminal import Terminal
from kernelsvc.cli.terminal.filter import size
from kernelsvc.errors import BadRequest


def backup(args: argparse.Namespace, terminal: Terminal) -> int:
    """Write a backup of a data directory."""
    # Imported late: cryptography is slow to import.
    from kernelsvc.store.backup import write_backup
    from kernelsvc.store.keys import SigningKey

    settings = conf.load(vars(args), os.environ)
    data, target = settings.data_path(), Path(args.file)
    try:
        if not (data / "sessions").is_dir():
            raise BadRequest(f"{data} is no data directory. Give the server's --data-dir or --config.")
        own = settings.signing_key
        key = SigningKey.load(own.absolute()) if own else SigningKey.load_or_create(data / "keys")
        report = write_backup(data, target, key.secret("heads"))
    except OSError as error:
        raise BadRequest(f"Can't write the backup: {error.filename or target}: {error.strerror}.") from None
    for session in report.left_out:
        terminal.message(f"{session} began during the backup and is not in it", "yellow")
    terminal.message(f"wrote {target} ({size(report.bytes)}): {report.sessions} sessions. It holds keys: encrypt it")
    return 0
