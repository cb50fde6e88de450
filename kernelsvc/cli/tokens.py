"""``kernelsvc token``: create, list, revoke and rotate tokens of a data directory, also while its server runs."""

from __future__ import annotations

import argparse
import os
import sys
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import msgspec

from kernelsvc import settings as conf
from kernelsvc.cli.terminal import Terminal
from kernelsvc.cli.terminal.filter import one_line
from kernelsvc.errors import BadRequest, Conflict
from kernelsvc.model.objects import DEFAULT_SCOPES, Scope
from kernelsvc.model.tokens import TokenRecord
from kernelsvc.service.directories import unlock_data_directory
from kernelsvc.store.token_file import KeptToken, TokenFile

#: Characters of the longest name of a principal that a list shows in full.
_WIDTH = 32
#: Longest life of a token, in days.
MAX_DAYS = 36_500


def token(args: argparse.Namespace, terminal: Terminal) -> int:
    """Create, list, revoke or rotate tokens."""
    settings = conf.load(vars(args), os.environ)
    unlock_data_directory(settings)
    file = TokenFile(settings.data_path() / "keys")
    if args.action == "list":
        return _list(file, args, terminal)
    if not args.name:
        raise BadRequest(f"'kernelsvc token {args.action}' needs a name: kernelsvc token {args.action} NAME")
    if args.action == "create":
        return _create(file, settings, args, terminal)
    if args.action == "revoke":
        for kept in file.revoke(args.name):
            terminal.message(f"revoked {kept.id} of {kept.record.name}. A running server refuses it within a second")
        return 0
    if not 0 <= args.keep_hours <= 24 * MAX_DAYS:
        raise BadRequest(f"--keep-hours must be from 0 to {24 * MAX_DAYS}, not {args.keep_hours:g}.")
    secret, kept = file.rotate(args.name, keep=timedelta(hours=args.keep_hours))
    _show(secret, kept, terminal)
    terminal.message(f"the old token is accepted for {args.keep_hours:g} h more")
    return 0


def _create(file: TokenFile, settings: conf.Settings, args: argparse.Namespace, terminal: Terminal) -> int:
    if args.days is not None and not 0 < args.days <= MAX_DAYS:
        raise BadRequest(f"--days must be more than 0 and at most {MAX_DAYS}, not {args.days:g}.")
    if not args.name.isprintable():
        raise BadRequest(
            "The name of a principal has control characters, which logs and lists can't show. Choose another."
        )
    configured = [each.name for each in settings.tokens]
    if args.name in configured:
        raise Conflict(f"The settings have a principal {args.name!r} already. Choose another name.")
    scopes = _scopes(args.scopes)

    def record(digest: str) -> TokenRecord:
        values = {"name": args.name, "sha256": digest, "scopes": scopes, "max_sessions": args.sessions_of_token}
        try:
            return msgspec.convert(values, TokenRecord)
        except msgspec.ValidationError as error:
            raise BadRequest(f"Can't create the token: {error}.") from None

    lifetime = None if args.days is None else timedelta(days=args.days)
    secret, kept = file.create(record, lifetime=lifetime, form="e2b" if args.e2b else "ksv")
    _show(secret, kept, terminal)
    return 0


def _scopes(text: str | None) -> frozenset[Scope]:
    if text is None:
        return DEFAULT_SCOPES
    known = get_args(Scope)
    given = [each.strip() for each in text.split(",") if each.strip()]
    wrong = [each for each in given if each not in known]
    if wrong or not given:
        raise BadRequest(f"Unknown scopes {wrong}. Use some of {', '.join(known)}, separated by commas.")
    return frozenset(scope for scope in known if scope in given)


def _show(secret: str, kept: KeptToken, terminal: Terminal) -> None:
    """Print the token alone on standard output, so that a script can take it, and the rest on standard error."""
    sys.stdout.write(secret + "\n")
    sys.stdout.flush()
    ends = f", until {kept.expires_at:%Y-%m-%d %H:%M} UTC" if kept.expires_at else ""
    scopes = ", ".join(sorted(kept.record.scopes))
    terminal.message(f"token {kept.id} of {kept.record.name} ({scopes}){ends}. It is shown only now")


def _list(file: TokenFile, args: argparse.Namespace, terminal: Terminal) -> int:
    uses, now = file.last_uses(), datetime.now(UTC)
    rows = [_row(kept, uses.get(kept.id), now) for kept in file.read()]
    if args.json:
        terminal.json(rows, indent=0)
        return 0
    if not rows:
        terminal.line("no tokens. Create one with: kernelsvc token create NAME")
    for row in rows:
        ends = f"until {row['expires_at']:%Y-%m-%d}" if row["expires_at"] else "without end"
        ends = "expired" if row["expired"] else ends
        used = f"used {row['last_used_at']:%Y-%m-%d %H:%M}" if row["last_used_at"] else "never used"
        name = one_line(row["name"], _WIDTH)
        terminal.line(f"{row['id']:14} {name:{_WIDTH}} {','.join(row['scopes']):20} {ends:18} {used}")
    return 0


def _row(kept: KeptToken, used: datetime | None, now: datetime) -> dict[str, Any]:
    record = kept.record
    return {
        "id": kept.id,
        "name": record.name,
        "scopes": sorted(record.scopes),
        "max_sessions": record.max_sessions,
        "created_at": kept.created_at,
        "expires_at": kept.expires_at,
        "expired": kept.expired(now),
        "last_used_at": used,
    }
