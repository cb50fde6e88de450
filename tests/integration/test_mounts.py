"""Directories of the machine that sessions see besides their own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from served import Served, serving

from kernelsvc import Client
from kernelsvc.errors import BadRequest, Forbidden, KernelsvcError, MountUnavailable


@dataclass
class Place:
    """A server with mounts, and a client of it."""

    served: Served
    client: Client


@pytest.fixture(scope="module")
def place(short_tmp: Path) -> Iterator[Place]:
    root = short_tmp / "mounts"
    sales, closed, later = root / "sales", root / "closed", root / "later"
    for path in (sales, closed):
        path.mkdir(parents=True)
    (sales / "q1.csv").write_text("a,b\n1,2\n")
    closed.chmod(0o700)
    root.chmod(0o755)
    mounts = {
        "sales": {"path": str(sales)},
        "pay": {"path": str(sales), "principals": ["boss"]},
        "closed": {"path": str(closed)},
        "later": {"path": str(later)},
    }
    env = {"KERNELSVC_MOUNTS": json.dumps(mounts)}
    with serving(root / "server", env=env) as served, Client(served.url, served.token) as client:
        if "filesystem" not in client.info()["sandbox"]["enforced"]:
            pytest.skip("this machine gives sessions no private root")
        yield Place(served, client)


READ = "print(open('/data/sales/q1.csv').readline().strip())"


def test_a_mount_is_read_only_in_the_session_its_programs_and_its_branches(place: Place) -> None:
    with place.client.create_session(mounts=["sales"]) as session:
        assert session.run(READ).text.strip() == "a,b"
        assert session.run("!cat /data/sales/q1.csv | tail -1").text.strip() == "1,2"
        write = session.run("open('/data/sales/new', 'w')")
        assert "Read-only file system" in write.text
        isolated, *others = session.branch(isolate=True) + session.branch(count=2)
        for branch in (isolated, *others):
            with branch:
                assert branch.run(READ).text.strip() == "a,b", branch.id
        session.restart()
        assert session.run(READ).text.strip() == "a,b"
        assert place.served.call("GET", f"/v1/sessions/{session.id}")["mounts"] == ["sales"]
        first = place.served.call("GET", f"/v1/sessions/{session.id}/events?limit=1")["events"][0]
        assert (first["type"], first["mounts"]) == ("session_started", ["sales"])


def test_a_session_that_asks_for_nothing_sees_nothing(place: Place) -> None:
    with place.client.create_session() as session:
        assert session.run("import os; os.path.exists('/data')").text.strip() == "False"
        about = place.served.call("GET", f"/v1/sessions/{session.id}")
        assert "mounts" not in about
        with pytest.raises(BadRequest, match="sidecar"):
            place.client.create_session(sidecar_of=session.id, mounts=["sales"])


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("nothing", BadRequest, "There is no mount 'nothing'"),
        ("../etc", BadRequest, "mounts"),
        ("pay", Forbidden, "mounts.pay.principals"),
        ("later", MountUnavailable, "No such file or directory"),
        ("closed", MountUnavailable, "chmod -R o+rX"),
    ],
)
def test_a_mount_that_can_not_be_had_is_an_error_and_no_session(
    place: Place, name: str, error: type[KernelsvcError], words: str
) -> None:
    before = len(place.client.sessions())
    with pytest.raises(error) as caught:
        place.client.create_session(mounts=[name])
    assert words in caught.value.message
    assert not caught.value.retryable
    assert len(place.client.sessions()) == before
