"""Responses and files on disk."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from kernelsvc.answers.conversations import Conversations
from kernelsvc.answers.kept import AnswerStore, KeptFile, KeptResponse
from kernelsvc.errors import NotFound, QuotaExceeded
from kernelsvc.model.answers.values import CodeItem, InputMessage, MessageItem, ServerNote
from kernelsvc.model.objects import Principal
from kernelsvc.protocol.openai.requests import AnswerRequest

RESPONSE, FILE = "resp_" + "0" * 32, "file-" + "0" * 32


def kept() -> KeptResponse:
    request = AnswerRequest(model="m", input=[InputMessage(role="user", text="hi")])
    transcript = [
        ServerNote(text="n"),
        CodeItem(id="ci_1"),
        MessageItem(id="msg_1", text="é"),
    ]
    return KeptResponse(id=RESPONSE, created=1, request=request, transcript=transcript)


def test_a_response_is_read_back_by_its_principal_only(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path / "responses", 1)
    store.put_response("alice", kept())
    assert store.response("alice", RESPONSE) == kept()
    for principal, named in (("bob", RESPONSE), ("alice", "resp_" + "1" * 32), ("alice", FILE), ("alice", "../x")):
        with pytest.raises(NotFound):
            store.response(principal, named)
    [directory] = (tmp_path / "responses").iterdir()
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    store.remove("alice", RESPONSE)
    assert list(directory.iterdir()) == []


def test_a_principal_keeps_no_more_than_the_disk_has_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Conversations had no limit: a client could fill the disk of all sessions."""
    store = AnswerStore(tmp_path / "responses", 1)
    conversations = Conversations(store, ())
    named = "conv_" + "0" * 32
    conversations.create("alice", named, {}, [])
    statvfs = os.statvfs

    def almost_full(path: Path) -> os.statvfs_result:
        return os.statvfs_result([4096, 4096, 100, 1, 1, *statvfs(path)[5:]])

    conversations.add("alice", named, [InputMessage(role="user", text="x" * 5000)])
    monkeypatch.setattr(os, "statvfs", almost_full)
    for refused in (
        lambda: conversations.add("alice", named, []),
        lambda: conversations.create("alice", named, {}, []),
        lambda: store.check_room("alice"),
    ):
        with pytest.raises(QuotaExceeded, match="Delete some"):
            refused()
    store.check_room("bob")
    store.remove("alice", named)
    conversations.create("alice", named, {}, [])


def test_old_ones_are_removed(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path, 1)
    store.put_file("alice", KeptFile(id=FILE, created=1, filename="a", purpose="p", size=1), b"x")
    assert store.content("alice", FILE) == b"x"
    for each in tmp_path.glob("*/*"):
        os.utime(each, (1, 1))
    AnswerStore(tmp_path, 1).put_response("bob", kept())
    with pytest.raises(NotFound):
        store.file("alice", FILE)
    assert store.files("alice") == []


def test_the_mark_of_a_background_response_has_no_digest_of_a_token(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path, 1)
    assert store.marked() == {}
    store.mark(Principal(name="alice", scopes=frozenset({"run"}), token_sha256="secret"), RESPONSE)
    assert store.marked() == {RESPONSE: Principal(name="alice", scopes=frozenset({"run"}))}
    store.unmark(RESPONSE)
    store.unmark(RESPONSE)
    assert store.marked() == {}
