"""The directories of a server: made private at the start, unlocked if encrypted, and the token in one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import stat
import time
from collections.abc import MutableMapping
from pathlib import Path

import msgspec

from kernelsvc.errors import BadRequest
from kernelsvc.linux import atomic_file
from kernelsvc.linux.clock import SteadyClock
from kernelsvc.model.cluster.ids import NODE_DIGITS, is_node
from kernelsvc.model.hash_chain import timestamp
from kernelsvc.model.tokens import record_for, weakness
from kernelsvc.settings import Settings
from kernelsvc.store import encryption

log = logging.getLogger(__name__)


def prepare_directories(settings: Settings, *, of_others: bool = False) -> None:
    """Create the data and runtime directories, mode 0700, and refuse those of another user. Unlock an encrypted one.

    Args:
        settings: names the directories.
        of_others: accept existing directories of any owner. A kernel host that runs as root uses its server's.

    Raises:
        BadRequest: a directory can't be created, other users can open it, or it can't be unlocked.
    """
    for name, path in (("data_dir", settings.data_path()), ("runtime_dir", settings.runtime_path())):
        if not (of_others and path.is_dir() and not path.is_symlink()):
            _make_private(settings, name, path)
    encryption.unlock(settings.data_path(), settings.encryption)


def unlock_data_directory(settings: Settings) -> None:
    """Unlock the data directory for a command that reads or writes it without a server.

    Only if the settings have a key, a directory that is missing is made: so its first file is encrypted, too.

    Raises:
        BadRequest: see ``prepare_directories``.
    """
    path = settings.data_path()
    if settings.encryption.key_file or settings.encryption.key_command:
        _make_private(settings, "data_dir", path)
    elif not path.is_dir():
        return
    encryption.unlock(path, settings.encryption)


def missing_mounts(settings: Settings) -> list[str]:
    """Return a sentence for each mount of the settings that sessions can't get now."""
    return [
        f"The mount {name!r} can't be used now: {mount.path} is not a directory. Sessions that ask for it are refused."
        for name, mount in settings.mounts.items()
        if not os.path.isdir(mount.path)
    ]


#: Names in a directory of kernelsvc. Only such a directory, or an empty one, may get mode 0700: a mistyped setting
#: must not close a directory like ``/srv`` to its users.
_MARKS = ("sessions", "keys", "host.lock", "server.json")
#: Names in an empty directory: mke2fs(8) creates lost+found in the root of a new file system.
_EMPTY = {"lost+found"}


def _make_private(settings: Settings, name: str, path: Path) -> None:
    try:
        _make_owned(path)
    except OSError as error:
        raise BadRequest(
            f"Setting {name} ({settings.sources.get(name, 'default')}): can't use {path}: {error.strerror}.",
            setting=name,
        ) from None


def _make_owned(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)
    # In a world-writable /tmp another user may have created the directory first, to read our sockets and tokens.
    for part in (path, path.parent) if path.parent.name.startswith("kernelsvc-") else (path,):
        info = part.lstat()
        if stat.S_ISLNK(info.st_mode):
            raise PermissionError(1, f"{part} is a symbolic link, whose owner could lead it elsewhere. Name its target")
        if not stat.S_ISDIR(info.st_mode) or info.st_uid not in (os.geteuid(), 0):
            raise PermissionError(1, "it belongs to another user")
        if info.st_uid == os.geteuid() and info.st_mode & 0o077 and part == path:
            if {each.name for each in part.iterdir()} - _EMPTY and not any((part / mark).exists() for mark in _MARKS):
                raise PermissionError(1, "other users can open it, and it has other files. Choose an empty directory")
            part.chmod(0o700)


#: The file below the data directory with the token of a server without configured tokens.
TOKEN_FILE = Path("keys", "token")


def with_kept_token(settings: Settings) -> tuple[Settings, str | None]:
    """Return the settings and, if they have no token, a token for the principal ``local``.

    The first call makes the token, and the data directory keeps it: clients that have it, and sessions of earlier
    runs, continue after a restart. Remove the file for a new one. ``prepare_directories`` must have been called.

    Raises:
        BadRequest: the file can't be read or made.
    """
    if settings.tokens:
        return settings, None
    path = settings.data_path() / TOKEN_FILE
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            with os.fdopen(fd, "rb") as file:
                kept = file.read(1024).decode("ascii", "replace").strip()
                if not os.fstat(fd).st_mode & 0o077 and weakness(kept, public=True) is None:
                    return _with_local(settings, kept), kept
        token = secrets.token_urlsafe(24)
        atomic_file.replace_bytes(path, token.encode())
    except OSError as error:
        raise BadRequest(f"Can't keep a token in {path}: {error.strerror}. Set one with --token.") from None
    return _with_local(settings, token), token


#: The form of the data directory, and the file in it with the form's number. A release that changes the form so that
#: an earlier one would misread it takes the next number.
DATA_FORM, FORM_FILE = 1, Path("form")


def check_form(settings: Settings) -> None:
    """Refuse a data directory of a later release, and mark one that has no mark. Nothing else in it is changed.

    Raises:
        BadRequest: the directory's form is unknown, or its mark can't be read or made.
    """
    path = settings.data_path() / FORM_FILE
    try:
        if not path.exists():
            atomic_file.replace_bytes(path, b"%d\n" % DATA_FORM, durable=True)
        with path.open("rb") as file:
            kept = file.read(64).strip()
    except OSError as error:
        raise BadRequest(f"Can't read or make {path}: {error.strerror}. Make it readable.") from None
    if not kept.isdigit():
        raise BadRequest(f"{path} does not hold the number of a form. Restore it from a backup.")
    if int(kept) > DATA_FORM:
        raise BadRequest(
            f"A later release wrote this data directory: {path} says {int(kept)}, and this release knows forms up to "
            f"{DATA_FORM}. Start that release, or restore a backup from before the upgrade."
        )


#: Seconds by which the clock may be before the last run of a server, and between two notes of the time.
CLOCK_SECONDS, NOTE_SECONDS = 300.0, 60.0


def check_clock(settings: Settings, now: float) -> None:
    """Refuse to start with a clock that is before the last run: expired tokens would be valid again. Change nothing.

    The modification time of the form's file is the time at which a server last used the directory.

    Args:
        settings: names the data directory.
        now: the machine's clock, in seconds since the epoch.

    Raises:
        BadRequest: the clock is more than ``CLOCK_SECONDS`` before the last run.
    """
    path = settings.data_path() / FORM_FILE
    last = path.stat().st_mtime
    if now < last - CLOCK_SECONDS:
        raise BadRequest(
            f"The machine's clock says {timestamp(now)}, and a server used {settings.data_path()} at "
            f"{timestamp(last)}. Expired tokens and addresses would be valid again. Set the clock (timedatectl set-ntp "
            f"true) and start again. If the clock is right now and was wrong then: touch {path}"
        )


async def follow_clock(settings: Settings) -> None:
    """Note the time for ``check_clock``, and log each step of the clock. Ends when it is cancelled."""
    clock, path = SteadyClock(), settings.data_path() / FORM_FILE
    while True:
        if step := clock.step():
            log.warning(
                "The machine's clock was set %s by %.0f s. Tokens, signed addresses and times in logs follow it. "
                "Limits, leases and waits keep their durations, and retention deletes nothing early. If the clock is "
                "wrong now, correct it before the next start of the server.",
                "forward" if step > 0 else "back", abs(step), extra={"action": "clock_set", "seconds": round(step)},
            )  # fmt: skip
        with contextlib.suppress(OSError):  # A full or read-only disk has messages of its own.
            os.utime(path, (time.time(),) * 2)
        await asyncio.sleep(NOTE_SECONDS)


#: The file below the data directory with the name of a node, and most bytes of a cluster's key.
NODE_FILE = Path("node")
MAX_KEY, MIN_KEY = 1024, 16
KEY_ENV = "KERNELSVC_CLUSTER_KEY"


def node_name(settings: Settings) -> str:
    """Return the name of the node that this data directory is: six hexadecimal digits. The first call makes it.

    The directory is the node's identity, whatever machine and address its server has.

    Raises:
        BadRequest: the file can't be made, or holds something else.
    """
    path = settings.data_path() / NODE_FILE
    try:
        with contextlib.suppress(FileNotFoundError):
            kept = path.read_text("ascii").strip()
            if not is_node(kept):
                raise BadRequest(f"{path} does not hold the name of a node (six hexadecimal digits). Restore the file.")
            return kept
        made = secrets.token_hex(NODE_DIGITS // 2)
        atomic_file.replace_bytes(path, made.encode(), durable=True)
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequest(f"Can't keep the node's name in {path}: {error}. Make the file readable.") from None
    return made


def cluster_key(settings: Settings, env: MutableMapping[str, str]) -> str:
    """Return the key by which nodes and fronts of a cluster know each other, and remove it from the environment.

    Args:
        settings: may name a file with the key.
        env: the environment, which child processes inherit.

    Raises:
        BadRequest: there is no key, it is too short, or other users can read the file.
    """
    key = env.pop(KEY_ENV, "")
    if (file := settings.cluster_key_file) is not None:
        try:
            with file.open("rb") as opened:
                if os.fstat(opened.fileno()).st_mode & 0o007:
                    raise BadRequest(f"Other users can read or write the cluster's key {file}. Give it the mode 600.")
                key = opened.read(MAX_KEY).decode("ascii", "replace")
        except OSError as error:
            raise BadRequest(f"Can't read the cluster's key {file}: {error.strerror}.") from None
    key = key.strip()
    if len(key) < MIN_KEY or not key.isascii() or not key.isprintable() or " " in key:
        raise BadRequest(
            f"A cluster needs a key of {MIN_KEY} or more characters, the same on each node and front. Set {KEY_ENV} or "
            "cluster_key_file. Make one with 'openssl rand -hex 32'."
        )
    return key


def _with_local(settings: Settings, token: str) -> Settings:
    return msgspec.structs.replace(settings, tokens=[record_for(token)])
