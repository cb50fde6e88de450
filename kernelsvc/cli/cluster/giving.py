"""The sessions of a node that leaves for good: each family is sent to another node, and removed when that one has it.

The other node answers when the sessions are on its disk and served (``server.moving``). A repeat does no harm.
"""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import socket
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from kernelsvc.linux.remove_tree import remove_tree
from kernelsvc.server.moving import PATH, PUBLIC_KEY
from kernelsvc.server.ws.client import endpoint
from kernelsvc.store.backups.backup import SESSIONS, write_backup
from kernelsvc.store.backups.restore import SENDING
from kernelsvc.store.heads import HeadFile
from kernelsvc.store.keys import SigningKey

#: Seconds for one family: it is sent, checked and synced.
MOVE_SECONDS = 600.0


def give(
    data: Path, key: SigningKey, cluster_key: str, targets: Mapping[str, str], families: Sequence[Collection[str]]
) -> tuple[int, list[str]]:
    """Send families of sessions to other nodes, and remove them here. Call it in a thread, when the server has stopped.

    Args:
        data: The data directory, which no server uses.
        key: Its signing key.
        cluster_key: The cluster's key.
        targets: Addresses of the other nodes, by name.
        families: The sessions of each family.

    Returns:
        The number of sessions that were given, and why others were not.
    """
    given, problems = 0, []
    for family in families:
        why = _give_one(data, key, cluster_key, [targets[name] for name in order_of(family, targets)], family)
        if why is None:
            _remove(data, key, family)
            given += len(family)
        else:
            problems.append(f"{min(family)}: {why}")
    # The index follows from the journals: the next server makes it without those that are gone.
    for index in data.glob("index.sqlite*"):
        index.unlink(missing_ok=True)
    return given, problems


def order_of(family: Collection[str], names: Iterable[str]) -> list[str]:
    """Return the nodes in the order in which a family is offered to them. Pure.

    Rendezvous hashing (Thaler, Ravishankar 1996): families spread evenly, and a repeat asks the same node first.
    """
    return sorted(names, key=lambda name: hashlib.sha256(f"{name} {min(family)}".encode()).digest())


def _give_one(
    data: Path, key: SigningKey, cluster_key: str, targets: Sequence[str], family: Collection[str]
) -> str | None:
    """Send one family to the first node that takes it. Return why none did."""
    why = "there is no other node"
    # In the data directory: the service may write nowhere else (systemd), and an encrypted one stays so.
    with tempfile.TemporaryDirectory(dir=data, prefix=SENDING) as place:
        archive = Path(place) / "family"
        try:
            report = write_backup(data, archive, key, only=family)
            if report.sessions != len(family) or report.skipped:
                return f"{report.first_skipped or 'a log'} can't be copied"
            headers = {"Authorization": f"Bearer {cluster_key}", PUBLIC_KEY: key.public}
            for target in targets:
                try:
                    connection = _connect(target)
                except OSError as error:
                    why = f"{target}: {error}"
                    continue
                try:
                    status, said = _post(connection, archive, headers)
                except (OSError, http.client.HTTPException) as error:
                    # It may have them. If it does, a repeat to it succeeds, and another node must not get them.
                    return f"{target} does not answer ({error}). Start this node's server and drain it again"
                finally:
                    connection.close()
                if status == 200:
                    return None
                why = f"{target}: {said[:300]}"
        except OSError as error:
            return f"{error.filename or data}: {error.strerror}"
    return why


def _connect(url: str) -> http.client.HTTPConnection:
    where = endpoint(url)
    host, port = ("localhost", 80) if isinstance(where, str) else where
    connection = http.client.HTTPConnection(host, port, timeout=MOVE_SECONDS)
    if isinstance(where, str):
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(MOVE_SECONDS)
        connection.sock.connect(where)
    else:
        connection.connect()
    return connection


def _post(connection: http.client.HTTPConnection, archive: Path, headers: dict[str, str]) -> tuple[int, str]:
    with archive.open("rb") as body:
        size = {"Content-Length": str(archive.stat().st_size), "Content-Type": "application/gzip"}
        connection.request("POST", PATH, body, {**headers, **size})
    response = connection.getresponse()
    return response.status, response.read(10_000).decode("utf-8", "replace")


def _remove(data: Path, key: SigningKey, family: Collection[str]) -> None:
    heads = HeadFile(data / "heads", key.secret("heads"))
    try:
        for session in family:
            # The journal first: after a crash in the middle the next server sees no session.
            (data / SESSIONS / session / "journal.jsonl").unlink(missing_ok=True)
            heads.forget(session)
        for session in family:
            remove_tree(data / SESSIONS / session)
    finally:
        heads.close()


async def move_out(
    data: Path, key: SigningKey, cluster_key: str, targets: Mapping[str, str], families: Sequence[Collection[str]]
) -> list[str]:
    """Give all families away. Return a line for people for each part of the result."""
    given, problems = await asyncio.to_thread(give, data, key, cluster_key, targets, families)
    lines = [f"moved {given} sessions to other nodes"]
    return lines + [f"not moved: {each}" for each in problems]
