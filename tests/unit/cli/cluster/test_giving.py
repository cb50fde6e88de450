"""Sessions are sent to another node once, and removed only when it has them."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kernelsvc.cli.cluster import giving
from kernelsvc.cli.cluster.giving import give, order_of
from kernelsvc.errors import BadRequest, Conflict
from kernelsvc.model import events as ev
from kernelsvc.server.moving import PUBLIC_KEY
from kernelsvc.store.backups.restore import unpack_sessions
from kernelsvc.store.heads import HeadFile
from kernelsvc.store.keys import SigningKey
from kernelsvc.store.sessions import SessionDirectories
from kernelsvc.store.verify import verify_journal


class Place:
    """A data directory with sessions."""

    def __init__(self, data: Path, *sessions: str) -> None:
        self.data = data
        self.key = SigningKey.load_or_create(data / "keys")
        self.heads = HeadFile(data / "heads", self.key.secret("heads"))
        self.store = SessionDirectories(data)
        self.store.use_heads(self.heads)
        for name in sessions:
            workdir = str(data / "sessions" / name / "home" / "user")
            found, journal = self.store.create(name, {"workdir": workdir, "family": str(found_home(data, name))})
            journal.append([ev.SessionStarted(), ev.Stream(cell="c", text="1")])
            journal.close()
            (found.working() / "file").write_text("text")


def found_home(data: Path, name: str) -> Path:
    return data / "sessions" / name / "home"


@pytest.fixture
def source(tmp_path: Path) -> Place:
    return Place(tmp_path / "source" / "data", "s-1", "s-2")


@pytest.fixture
def other(tmp_path: Path) -> Place:
    return Place(tmp_path / "other" / "data")


@pytest.fixture
def node() -> Iterator[Callable[[int], str]]:
    """Starts servers that answer each request with a status."""
    made: list[http.server.HTTPServer] = []

    def start(status: int) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                server.bodies.append((self.headers[PUBLIC_KEY], body))  # type: ignore[attr-defined]
                if status:
                    self.send_response(status)
                    self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        server.bodies = []  # type: ignore[attr-defined]
        made.append(server)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    start.made = made  # type: ignore[attr-defined]
    yield start
    for each in made:
        each.shutdown()
        each.server_close()


def given(source: Place, targets: dict[str, str]) -> tuple[int, list[str]]:
    source.heads.close()
    return give(source.data, source.key, "k" * 16, targets, [frozenset({"s-1"})])


def test_a_family_that_was_taken_is_removed_and_another_stays(source: Place, node: Callable[[int], str]) -> None:
    assert given(source, {"a": node(200)}) == (1, [])
    assert [each.id for each in source.store.scan()] == ["s-2"]
    heads = HeadFile(source.data / "heads", source.key.secret("heads"))
    assert heads.find("s-1") is None
    assert heads.find("s-2") is not None
    heads.close()


def test_the_archive_is_never_outside_of_the_data_directory(
    source: Place, node: Callable[[int], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There it would be in clear beside an encrypted directory, and a service's user may not write there."""
    made: list[Path] = []
    write = giving.write_backup

    def noted(data: Path, target: Path, key: SigningKey, **options: Any) -> Any:
        made.append(target)
        return write(data, target, key, **options)

    monkeypatch.setattr(giving, "write_backup", noted)
    assert given(source, {"a": node(200)}) == (1, [])
    assert [path.is_relative_to(source.data) for path in made] == [True]
    assert not list(source.data.glob(".move-*"))


@pytest.mark.parametrize("status", [401, 409, 503])
def test_a_refused_family_stays(source: Place, node: Callable[[int], str], status: int) -> None:
    count, problems = given(source, {"a": node(status)})
    assert (count, len(problems)) == (0, 1)
    assert {each.id for each in source.store.scan()} == {"s-1", "s-2"}


def test_another_node_is_tried_when_one_has_no_room(source: Place, node: Callable[[int], str]) -> None:
    first, second = order_of({"s-1"}, ["a", "b"])
    assert given(source, {first: node(503), second: node(200)}) == (1, [])


def test_no_other_node_is_tried_when_it_is_not_known_whether_one_took_it(
    source: Place, node: Callable[[int], str]
) -> None:
    first, second = order_of({"s-1"}, ["a", "b"])
    silent, other = node(0), node(200)
    count, problems = given(source, {first: silent, second: other})
    assert count == 0
    assert "drain it again" in problems[0]
    assert [len(each.bodies) for each in node.made] == [1, 0]  # type: ignore[attr-defined]


def test_families_spread_over_the_nodes() -> None:
    first = [order_of({f"s-{number}"}, ["a", "b", "c"])[0] for number in range(300)]
    assert all(70 < first.count(name) < 130 for name in "abc")


def test_what_arrives_is_the_session(source: Place, other: Place, node: Callable[[int], str], tmp_path: Path) -> None:
    given(source, {"a": node(200)})
    ((public_key, body),) = node.made[0].bodies  # type: ignore[attr-defined]
    archive = tmp_path / "archive"
    archive.write_bytes(body)
    assert source.key.secret("heads") not in body
    with pytest.raises(BadRequest, match="signed by"):
        unpack_sessions(archive, other.data, other.key.public)
    stage, heads = unpack_sessions(archive, other.data, public_key)
    (found,) = other.store.take_in(stage, heads)
    assert found.working().joinpath("file").read_text() == "text"
    assert found.read_about()["workdir"] == str(other.data / "sessions" / "s-1" / "home" / "user")
    assert verify_journal(found.journal).fault is None
    journal = other.store.open_journal(found)
    assert journal.judgement.kind == "watched", "this server may sign it"
    journal.close()
    assert sorted(each.name for each in (stage / "sessions").iterdir()) == []
    with pytest.raises(Conflict):
        other.store.take_in(stage, heads)
    other.heads.close()


@pytest.mark.parametrize("forged", ["workdir", "family", "files", "id"])
def test_a_node_that_lies_gets_no_directory_or_name_of_another_session(
    other: Place, source: Place, node: Callable[[int], str], tmp_path: Path, forged: str
) -> None:
    """The session would run in the directory of one that this node has, or in its place."""
    found = source.store.directory("s-1")
    victim = str(source.data / "sessions" / "s-9" / "home" / "user")
    if forged == "files":
        found.files.unlink()
        found.files.symlink_to("../s-9/home/user")
    else:
        found.write_about({**found.read_about(), forged: "s-9" if forged == "id" else victim})
    given(source, {"a": node(200)})
    ((public_key, body),) = node.made[0].bodies  # type: ignore[attr-defined]
    archive = tmp_path / "archive"
    archive.write_bytes(body)
    with pytest.raises(BadRequest, match="not in the archive"):
        unpack_sessions(archive, other.data, public_key)
    assert not list(other.data.glob(".restore*"))
    other.heads.close()


def test_a_damaged_archive_leaves_nothing(
    other: Place, source: Place, node: Callable[[int], str], tmp_path: Path
) -> None:
    given(source, {"a": node(200)})
    ((public_key, body),) = node.made[0].bodies  # type: ignore[attr-defined]
    archive = tmp_path / "archive"
    archive.write_bytes(body[: len(body) // 2])
    with pytest.raises(BadRequest):
        unpack_sessions(archive, other.data, public_key)
    assert not list(other.data.glob(".restore*"))
    assert list(other.store.scan()) == []
    other.heads.close()
