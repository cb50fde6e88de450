import gzip
import os
import sys

import msgspec
import pytest
from nested_directories import nest

from kernelsvc.errors import Conflict, NotFound
from kernelsvc.linux.remove_tree import remove_tree
from kernelsvc.model import events as ev
from kernelsvc.model import hash_chain
from kernelsvc.model.objects import Deletion
from kernelsvc.store import sessions
from kernelsvc.store.sessions import RetentionRecord, SessionDirectories
from kernelsvc.store.verify import verify_journal


@pytest.fixture
def data(tmp_path):
    return SessionDirectories(tmp_path / "data", clock=lambda: 1.0)


def made(data, name, *events):
    found, journal = data.create(name, {"name": name})
    journal.append([ev.SessionStarted(), *events])
    journal.close()
    found.notebook.write_text("{}")
    return found


def record(data):
    lines = (data.data / "retention.jsonl").read_bytes().split(b"\n")[:-1]
    return [msgspec.json.decode(line, type=RetentionRecord) for line in lines]


def test_a_session_is_a_private_directory(data):
    found = made(data, "s-1")
    assert sorted(os.listdir(found.path)) == ["files", "home", "journal.jsonl", "notebook.ipynb", "session.json"]
    assert all(p.stat().st_mode & 0o077 == 0 for p in (data.data, found.path, found.files, found.journal, found.about))
    assert data.directory("s-1").read_about() == {"name": "s-1"}
    assert [d.id for d in data.scan()] == ["s-1"]


def test_a_taken_id(data):
    made(data, "s")
    with pytest.raises(Conflict):
        data.create("s", {})
    assert data.directory("s").read_about() == {"name": "s"}


@pytest.mark.parametrize("name", ["", "..", ".", "a/b", "/etc", "a\0b", "a\n", "x" * 129, "-rf", ".hidden", "é"])
def test_ids_that_are_none(data, name):
    for call in (data.directory, lambda n: data.create(n, {}), lambda n: data.remove(n, "why"), data.discard):
        with pytest.raises(NotFound):
            call(name)


def test_a_half_written_about_is_empty(data):
    found = made(data, "s")
    found.about.write_bytes(b'{"na')
    assert found.read_about() == {}
    found.write_about({"a": 1}, durable=True)
    assert found.read_about() == {"a": 1}


def test_removal_is_on_record(data):
    found = made(data, "s", ev.Stream(text="x"))
    head = hash_chain.check(found.journal.read_bytes().splitlines()).head
    data.remove("s", "older than 30 days")
    assert not found.path.exists()
    (entry,) = record(data)
    assert (entry.action, entry.session, entry.why, entry.seq, entry.head) == (
        "removed",
        "s",
        "older than 30 days",
        *head,
    )
    assert entry.about == {"name": "s"}
    with pytest.raises(NotFound):
        data.directory("s")


def test_an_archive_can_be_verified(data):
    found = made(data, "s", ev.Stream(text="x" * 10_000))
    (found.files / "a").write_text("gone")
    found.write_about({**found.read_about(), "env": {"K": "SECRET-77"}, "request_digest": "d"})
    target = data.archive("s", "retention")
    assert "SECRET-77" not in (target / "session.json").read_text() + (data.data / "retention.jsonl").read_text()
    assert sorted(os.listdir(target)) == ["journal.jsonl.gz", "notebook.ipynb.gz", "session.json"]
    assert not found.path.exists()
    verdict = verify_journal(target / "journal.jsonl.gz")
    assert (verdict.result, verdict.entries) == ("not_proven", 2)
    assert verdict.head == record(data)[0].head
    assert gzip.decompress((target / "notebook.ipynb.gz").read_bytes()) == b"{}"


def test_the_record_is_chained_and_survives_a_torn_line(data):
    for n in range(3):
        made(data, f"s{n}")
        data.remove(f"s{n}", "why")
        with (data.data / "retention.jsonl").open("ab") as file:
            file.write(b'{"torn')
    entries = record(data)
    assert [e.session for e in entries] == ["s0", "s1", "s2"]
    lines = (data.data / "retention.jsonl").read_bytes().split(b"\n")[:-1]
    assert [e.prev for e in entries] == ["", hash_chain.digest(lines[0]), hash_chain.digest(lines[1])]


def test_what_a_crash_left_is_swept(data):
    made(data, "whole")
    made(data, "half").journal.unlink()
    (data.sessions / ".odd").mkdir()
    assert sorted(data.sweep()) == [".odd", "half"]
    assert [d.id for d in data.scan()] == ["whole"]


def test_a_creation_that_fails_leaves_nothing(data):
    with pytest.raises(TypeError):
        data.create("s", {"a": object()})
    assert os.listdir(data.sessions) == []


# --- removing what hostile code left ----------------------------------------------------


def test_a_tree_deeper_than_anything_recurses(tmp_path):
    top = tmp_path / "files"
    top.mkdir()
    nest(top, 3 * sys.getrecursionlimit(), "d")
    remove_tree(top)
    assert not top.exists()


def test_links_are_removed_and_not_followed(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    top = tmp_path / "files"
    (top / "sub").mkdir(parents=True)
    (top / "sub" / "dir").symlink_to(outside)
    (top / "file").symlink_to(outside / "precious")
    (top / "loop").symlink_to(top)
    os.mkfifo(top / "fifo")
    remove_tree(top)
    assert not top.exists()
    assert (outside / "precious").read_text() == "x"
    link = tmp_path / "link"
    link.symlink_to(outside)
    with pytest.raises(OSError, match=r"symbolic|directory"):
        remove_tree(link)
    remove_tree(tmp_path / "gone")


def test_directories_without_permissions_and_names_of_ours(tmp_path):
    top = tmp_path / "files"
    for name in (".removing-1", ".removing-2", "a\nb", "c"):
        (top / name / "x" / "y").mkdir(parents=True)
        (top / name / "x" / "f").write_text("")
        (top / name / "x").chmod(0)
        (top / name).chmod(0o500)
    remove_tree(top)
    assert not top.exists()


def test_deletion_of_a_branch_follows_no_link_that_appears_in_between(data, monkeypatch):
    """The ancestor's kernel swaps a directory on the way for a link to another session, at the worst moment."""
    parent, victim = made(data, "s-1"), made(data, "s-2")
    below, bystander = parent.home / "user.d", victim.home / "user.d"
    below.mkdir()
    branch, journal = data.create("s-3", {}, parent=parent.working(), place=below)
    journal.append([ev.SessionStarted()])
    journal.close()
    (branch.working() / "mine").write_text("x")
    (bystander / "s-3").mkdir(parents=True)
    (bystander / "s-3" / "kept").write_text("x")
    unswapped = sessions.open_directory

    def swapped(path):
        fd = unswapped(path)
        below.rename(parent.home / "moved")
        below.symlink_to(bystander)
        return fd

    monkeypatch.setattr(sessions, "open_directory", swapped)
    data.delete(
        "s-3", lambda head: Deletion(session="s-3", at="", by="a", principal="a", seq=head.seq, head=head.digest)
    )
    assert (bystander / "s-3" / "kept").exists()
    assert not (parent.home / "moved" / "s-3").exists()
