"""A session that is deleted for good leaves a signed record, and nothing of its content in the data directory."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from served import QUICK, Served
from waiting import wait_for

from kernelsvc import Client, errors
from kernelsvc.model.hash_chain import digest
from kernelsvc.model.objects import Deletion
from kernelsvc.store.keys import is_good

CANARY = "canary9f3b"


@pytest.fixture(scope="module")
def served(short_tmp: Path) -> Iterator[Served]:
    instance = Served(short_tmp / "deletion", env=QUICK).start()
    yield instance
    instance.stop()


@pytest.fixture
def client(served: Served) -> Iterator[Client]:
    with Client(served.url, served.token) as made:
        yield made


def _holding(data: Path, word: str) -> list[str]:
    """Return the files of a directory whose name or content has a word, also compressed."""
    found = []
    for path in data.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        if word in path.name or word.encode() in content:
            found.append(str(path.relative_to(data)))
    return sorted(found)


def _fill(client: Client) -> str:
    session = client.create_session(name=f"{CANARY}-name", labels={"who": CANARY}, env={"SECRET": CANARY}, keep=True)
    session.run(f"x = '{CANARY}'; print(x); open('{CANARY}.txt', 'w').write(x); open('.hidden', 'w').write(x * 9)")
    return session.id


def test_nothing_but_the_signed_record_stays(served: Served, client: Client) -> None:
    id = _fill(client)
    other = client.create_session(keep=True)
    other.run("'kept: othercanary'")
    with pytest.raises(errors.Conflict, match="is open"):
        client.purge(id)
    parent = client.session(id)
    (branch,) = parent.branch()
    branch.run("y = x + 'branch'; open('b.txt', 'w').write(y)")
    with pytest.raises(errors.Conflict, match=branch.id):
        client.purge(id, force=True)
    parent.close()
    head = digest(parent.journal().splitlines()[-1])
    assert _holding(served.data_dir, CANARY)
    client.purge(branch.id, force=True)
    record = client.purge(id)
    assert _holding(served.data_dir, CANARY) == []
    assert _holding(served.data_dir, branch.id) == ["retention.jsonl"]
    assert _holding(served.data_dir, "othercanary"), "another session keeps its own"
    lines = [json.loads(line) for line in (served.data_dir / "retention.jsonl").read_bytes().splitlines()]
    kept = next(line for line in lines if line["session"] == id)
    assert (kept["action"], kept.get("about"), kept["head"], record.head) == ("deleted", {}, head, head)
    again = Deletion(**kept["deletion"])
    assert again == record
    assert is_good(again.statement(), client.info()["public_key"], again.signature)
    assert (again.by, again.principal) == ("local", "local")
    for gone in (id, branch.id):
        with pytest.raises(errors.NotFound):
            client.session(gone)
        with pytest.raises(errors.NotFound):
            client.purge(gone)
    assert [each.id for each in client.sessions()] == [other.id]
    client.purge(other.id, force=True)


def test_all_sessions_of_a_principal_by_the_command_line(served: Served, client: Client) -> None:
    session = client.session(_fill(client))
    session.branch()
    session.branch()[0].branch()
    command = [sys.executable, "-m", "kernelsvc", "purge", "--principal", "local", "--force"]
    where = ["--url", served.url, "--token", served.token]
    done = subprocess.run([*command, *where], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert len([json.loads(line) for line in done.stdout.splitlines()]) == 4
    assert client.sessions() == []
    assert _holding(served.data_dir, CANARY) == []


def test_an_archived_session_is_deleted_too(short_tmp: Path) -> None:
    served = Served(short_tmp / "archive", "--retention-seconds", "0.1", env=QUICK).start()
    try:
        with Client(served.url, served.token) as client:
            session = client.create_session(keep=True)
            session.run(f"'{CANARY}'")
            session.close()
            archive = served.data_dir / "archive" / session.id
            wait_for(
                lambda: archive.exists() and not (served.data_dir / "sessions" / session.id).exists(),
                what="the archive",
            )
            assert _holding(served.data_dir, CANARY)
            client.purge(session.id)
            assert _holding(served.data_dir, CANARY) == []
    finally:
        served.stop()
