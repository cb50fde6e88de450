"""Directories of the machine that sessions see besides their own."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from command_line import kernelsvc
from served import OTHER_PRINCIPAL, Served, serving

from kernelsvc import Client
from kernelsvc.errors import (
    BadRequest,
    Conflict,
    Forbidden,
    KernelsvcError,
    LimitTooHigh,
    MountUnavailable,
    NotFound,
    TooLarge,
)
from packages import write_wheel


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
    write_wheel("madehere", sales)
    env = {"KERNELSVC_MOUNTS": json.dumps(mounts), "KERNELSVC_WHEELHOUSE": str(sales), **OTHER_PRINCIPAL}
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


#: Maps a file, touches each page, and prints how much of it is in memory: in all, and as this process's share
#: (proc_pid_smaps(5): Pss divides each shared page by the number of processes that map it).
MAP = """
import mmap, os, re
kept = mmap.mmap(os.open('/data/sales/big.bin', os.O_RDONLY), 0, mmap.MAP_SHARED | mmap.MAP_POPULATE, mmap.PROT_READ)
"""
SHARE = """
smaps = open('/proc/self/smaps').read()
part = smaps[smaps.index('/data/sales/big.bin'):]
print(*(int(re.search(rf'^{name}: +([0-9]+) kB', part, re.MULTILINE)[1]) << 10 for name in ('Rss', 'Pss')))
"""


@pytest.mark.parametrize("size", [32 << 20, pytest.param(1 << 30, marks=pytest.mark.thorough)])
def test_twenty_sessions_read_a_file_of_a_mount_with_one_copy_in_memory(place: Place, size: int) -> None:
    big = place.served.root.parent / "sales" / "big.bin"
    with big.open("wb") as file:
        file.truncate(size)  # the page cache has pages of a hole, as of data
    with contextlib.ExitStack() as stack:
        stack.callback(big.unlink)
        sessions = [stack.enter_context(place.client.create_session(mounts=["sales"])) for _ in range(20)]
        for session in sessions:
            session.run(MAP).raise_for_error()
        resident, share = (int(each) for each in sessions[0].run(SHARE).text.split())
        assert resident == size  # it sees all of it ...
        assert size / 22 < share < size / 18  # ... and 20 share one copy


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


# --- the wheelhouse --------------------------------------------------------------------------


def test_packages_come_from_the_wheelhouse_without_a_network(place: Place) -> None:
    with place.client.create_session() as session:
        missing = session.run("%pip install --disable-pip-version-check nothere")
        assert "It can install the packages of /wheels" in missing.text
        assert session.run("open('/wheels/x', 'w')").error is not None
        session.run("!pip install --quiet madehere").raise_for_error()
        assert session.run("import madehere; madehere.answer()").text.split() == ["forty-two", "42"]
        with session.branch()[0] as branch:
            assert branch.run("!say-madehere").text.startswith("forty-two")


# --- workspaces ----------------------------------------------------------------------------


def test_a_workspace_is_written_by_one_session_and_read_by_the_next(place: Place) -> None:
    client = place.client
    with client.create_session(workspace="report") as first:
        # A mode that only the user itself can read, as tempfile makes it.
        made = "import os; os.write(os.open('/workspace/a', os.O_CREAT | os.O_WRONLY, 0o600), b'one')"
        first.run(made).raise_for_error()
        assert place.served.call("GET", f"/v1/sessions/{first.id}")["workspace"] == "local/report"
        event = place.served.call("GET", f"/v1/sessions/{first.id}/events?limit=1")["events"][0]
        assert event["workspace"] == "local/report"
        with client.create_session(workspace="local/report") as second:  # at the same time
            assert second.run("!cat /workspace/a; echo -n two >> /workspace/a").text.strip() == "one"
        for number, branch in enumerate(first.branch() + first.branch(isolate=True)):
            with branch:
                branch.run(f"open('/workspace/{number}', 'w').write('x')").raise_for_error()
        first.run("open('/workspace/after', 'w').write('x')").raise_for_error()
        first.rollback()
        assert first.run("print(sorted(os.listdir('/workspace')))").text.strip() == "['0', '1', 'a', 'after']"
        with pytest.raises(Conflict, match="1 open sessions"):
            client.remove_workspace("report")
    with client.create_session(workspace="report") as third:
        assert third.run("!cat /workspace/a").text.strip() == "onetwo"
    client.remove_workspace("report")
    assert client.workspaces() == []
    with client.create_session() as without:
        assert without.run("import os; os.path.exists('/workspace')").text.strip() == "False"


def test_a_workspace_is_shared_by_a_list_and_does_not_exist_for_others(place: Place) -> None:
    mine = place.client
    mine.set_workspace("shared", shared_with=["nobody"])
    with pytest.raises(BadRequest, match="patterns"):
        mine.set_workspace("shared", shared_with=[f"*{n}" for n in range(51)])
    with Client(place.served.url, "other-token") as other:
        for use in (
            lambda: other.create_session(workspace="local/shared"),
            lambda: other.workspace_files("local/shared"),
            lambda: other.upload_to("local/shared", b"x", "x"),
            lambda: other.set_workspace("local/shared", shared_with=["*"]),
            lambda: other.remove_workspace("local/shared"),
        ):
            with pytest.raises(NotFound):
                use()
        assert other.workspaces() == []
        mine.set_workspace("shared", shared_with=["oth*"])
        with other.create_session(workspace="local/shared") as session:
            session.run("open('/workspace/theirs', 'w').write('x')").raise_for_error()
            mine.set_workspace("shared", shared_with=["nobody"])
            (branch,) = session.branch(isolate=True)
            session.restart()
            for one in (session, branch):
                assert one.run("import os; os.path.exists('/workspace')").text.strip() == "False"
                assert not one.info().workspace
            branch.close()
        mine.set_workspace("shared", shared_with=["oth*"])
        assert [each.workspace for each in other.workspaces()] == ["local/shared"]
        with pytest.raises(NotFound, match="not yours"):
            other.remove_workspace("local/shared")
    assert mine.download_from("shared", "theirs") == b"x"
    mine.remove_workspace("shared")


def test_files_of_a_workspace_over_http(place: Place) -> None:
    client = place.client
    client.set_workspace("files", max_bytes=1 << 20)  # also a name that the route has
    assert client.upload_to("files", b"hello", "files/b.txt") == "files/b.txt"
    assert client.download_from("local/files", "files/b.txt") == b"hello"
    assert [file.path for file in client.workspace_files("files", recursive=True)] == ["files", "files/b.txt"]
    with client.create_session(workspace="files") as session:
        assert session.run("!rm -v /workspace/files/b.txt").text.startswith("removed")
        session.run("import os; os.symlink('/etc', '/workspace/link')").raise_for_error()
    with pytest.raises(KernelsvcError, match="link"):
        client.download_from("files", "link/passwd")
    with pytest.raises(TooLarge):
        client.upload_to("files", b"x" * (2 << 20), "big")
    client.remove_workspace("files")
    with pytest.raises(NotFound):
        client.download_from("files", "b.txt")


def test_a_cell_that_fills_a_workspace_is_interrupted(place: Place) -> None:
    client = place.client
    client.set_workspace("small", max_bytes=4 << 20)
    with client.create_session(workspace="small") as session:
        fill = """
            import time
            end = time.monotonic() + 60
            with open("/workspace/big", "wb") as f:
                while time.monotonic() < end:
                    f.write(bytes(1 << 20)); f.flush()
                    time.sleep(0.05)
        """
        started = time.monotonic()
        cell = session.run(fill)
        assert not cell.ok
        assert "workspace: 4 MiB reached" in str(cell.message), cell
        assert time.monotonic() - started < 55
        assert session.run("import os; os.remove('/workspace/big'); 6 * 7").text.strip() == "42"
    client.remove_workspace("small")


def test_the_command_line(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> str:
        return kernelsvc("workspace", *words, env=place.served.client_env)[0]

    (tmp_path / "in.txt").write_text("hello")
    run("set", "cli", "--share", "bob")
    assert run("upload", "cli", "in.txt").strip() == "in.txt"
    (tmp_path / "in.txt").unlink()
    run("download", "cli", "in.txt")
    assert (tmp_path / "in.txt").read_text() == "hello"
    assert run("list").startswith("local/cli  0 sessions, shared with bob")
    place.client.remove_workspace("cli")


@pytest.mark.parametrize("name", ["", "a/", ".x", "/x", "x" * 101])
def test_a_bad_name_makes_nothing(place: Place, name: str) -> None:
    with pytest.raises(BadRequest) as refused:
        place.client.create_session(workspace=name)
    assert "regex" not in str(refused.value)
    assert place.client.workspaces() == []


def test_a_quota_above_the_servers_is_refused(place: Place) -> None:
    with pytest.raises(LimitTooHigh, match="workspace_bytes"):
        place.client.set_workspace("large", max_bytes=1 << 60)
    assert place.client.workspaces() == []
