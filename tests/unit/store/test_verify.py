import asyncio
import copy
import gzip
import json

import nbformat
import pytest
from examples import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernelsvc.errors import BadRequest
from kernelsvc.model import events as ev
from kernelsvc.model import hash_chain
from kernelsvc.store.journal import Journal
from kernelsvc.store.keys import SigningKey
from kernelsvc.store.notebook_file import NotebookFile
from kernelsvc.store.verify import verify, verify_journal, verify_notebook


class Session:
    def __init__(self, path, cells=5):
        self.key = SigningKey.load_or_create(path / "keys")
        (path / "s").mkdir()
        self.path = path / "s" / "journal.jsonl"
        self.journal = Journal.create(self.path, "s")
        self.journal.append([ev.SessionStarted(template="t")])
        for n in range(cells):
            show = ev.Display(cell=f"c{n}", data={"text/html": "<b>a\nb</b>", "application/json": {"a": [1, 2.0]}})
            self.journal.append([ev.CellQueued(cell=f"c{n}", code=f"x = {n}\ny"), ev.CellStarted(cell=f"c{n}"), show])
            self.journal.append([ev.Stream(cell=f"c{n}", text="a\nb\n"), ev.CellFinished(cell=f"c{n}")])

    def sign(self):
        self.journal.append([self.key.sign_head("s", self.journal.head)])

    def close(self):
        self.journal.append([ev.SessionClosed()])
        self.sign()

    def export(self):
        file = NotebookFile(self.path.with_name("notebook.ipynb"), self.journal)
        asyncio.run(file.catch_up())
        file.write(sign=self.key.sign_audit)
        file.close()
        return file.path


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    made = Session(tmp_path_factory.mktemp("v"))
    made.sign()
    made.close()
    return made


@pytest.fixture(scope="module")
def lines(session):
    return session.path.read_bytes().splitlines()


@pytest.fixture(scope="module")
def notebook(session):
    return json.loads(session.export().read_bytes())


# --- journals --------------------------------------------------------------------------


def test_a_genuine_journal(session):
    verdict = verify(session.path, public_key=session.key.public)
    assert (verdict.ok, verdict.signature, verdict.trusted, verdict.closed) == (True, "good", True, True)
    assert (verdict.entries, verdict.signed, verdict.session) == (29, 28, "s")
    assert "Signed up to entry 28" in verdict.message


def test_a_compressed_one(session, tmp_path):
    path = tmp_path / "journal.jsonl.gz"
    path.write_bytes(gzip.compress(session.path.read_bytes()))
    assert verify(path, public_key=session.key.public).ok


@pytest.mark.parametrize("damage", ["cut", "junk behind it", "a changed byte", "the first bytes only"])
def test_one_whose_compression_is_damaged(session, tmp_path, damage):
    packed = gzip.compress(session.path.read_bytes())
    middle = len(packed) // 2
    path = tmp_path / "journal.jsonl.gz"
    path.write_bytes(
        {
            "cut": packed[:-20],
            "junk behind it": packed + b"junk",
            "a changed byte": packed[:middle] + bytes([packed[middle] ^ 255]) + packed[middle + 1 :],
            "the first bytes only": packed[:5],
        }[damage]
    )
    with pytest.raises(BadRequest, match="damaged"):
        verify(path, public_key=session.key.public)


def test_another_key(session, tmp_path):
    verdict = verify_journal(session.path, public_key=SigningKey.load_or_create(tmp_path).public)
    assert (verdict.result, verdict.signature, verdict.trusted) == ("not_proven", "good", False)
    assert verdict.uncovered == (1, 29)
    assert "not the key you named" in verdict.message


def test_an_unsigned_one(lines, session):
    for key in (None, session.key.public):
        verdict = verify_journal(lines[:20], public_key=key)
        assert (verdict.result, verdict.signature, verdict.closed) == ("not_proven", "none", False)
        assert verdict.uncovered == (1, 20)
        assert "may be missing from its end" in verdict.message


def test_a_signed_one_without_a_named_key(lines):
    verdict = verify_journal(lines)
    assert (verdict.result, verdict.ok, verdict.uncovered) == ("not_proven", False, None)
    assert "--key" in verdict.message


def test_a_signature_that_was_cut_off(lines, session):
    """An earlier signature does not cover the entries after it."""
    verdict = verify_journal(lines[:-1], public_key=session.key.public)
    assert (verdict.result, verdict.signed, verdict.uncovered) == ("not_proven", 26, (28, 28))
    assert "Entry 28 is not covered" in verdict.message


def forged_entries(lines, *, signer=None):
    """Entries that anyone can append with a correct chain, also with a signature of the forger's own key."""
    head = hash_chain.Head(len(lines), hash_chain.digest(lines[-1]))
    more, head = hash_chain.stamp([ev.CellQueued(cell="x", code="x"), ev.SessionClosed()], "s", head, "2026")
    if signer is not None:
        more += hash_chain.stamp([signer.sign_head("s", head)], "s", head, "2026")[0]
    return [*lines, *more]


@pytest.mark.parametrize("stranger", [False, True])
def test_entries_after_the_signature(lines, session, tmp_path, stranger):
    forged = forged_entries(lines, signer=SigningKey.load_or_create(tmp_path) if stranger else None)
    verdict = verify_journal(forged, public_key=session.key.public)
    assert (verdict.result, verdict.trusted, verdict.signed) == ("not_proven", True, 28)
    assert verdict.uncovered == (30, len(forged))
    assert verdict.key == session.key.public
    assert f"Entries 30 to {len(forged)} are not covered" in verdict.message


@pytest.mark.parametrize("more", [b',"x":"forged"', b',"at":"2020-01-01T00:00:00.000000Z"', b',"cell":"c1"', b" "])
def test_a_signature_that_has_more_in_its_own_line_is_none(lines, session, more):
    forged = [*lines[:-1], lines[-1][:-1] + more + b"}"]
    assert verify_journal(lines, public_key=session.key.public).result == "verified"
    assert verify_journal(forged, public_key=session.key.public).result == "not_proven"


def test_a_torn_one(session, tmp_path):
    path = tmp_path / "j"
    path.write_bytes(session.path.read_bytes() + b'{"type"')
    verdict = verify(path)
    assert (verdict.ok, verdict.torn_bytes) == (False, 7)


def test_an_empty_one(tmp_path):
    (tmp_path / "j").write_bytes(b"")
    verdict = verify(tmp_path / "j")
    assert (verdict.ok, verdict.entries) == (False, 0)
    assert "no entry" in verdict.message


def test_the_last_entry_before_a_signature_is_named(lines):
    changed = list(lines)
    changed[25] = changed[25].replace(b'"ok"', b'"no"')
    verdict = verify_journal(changed)
    assert (verdict.ok, verdict.fault.kind, verdict.fault.seq) == (False, "changed", 26)


def test_a_chain_computed_anew_by_one_without_the_key(lines):
    forged = [ev.decode(line) for line in lines]
    forged[3].data = {"text/plain": "forged"}
    again, _ = hash_chain.stamp(forged, "s", hash_chain.Head(), "2026")
    verdict = verify_journal(again)
    assert not verdict.ok
    without = [e for e in forged if not isinstance(e, ev.JournalSigned)]
    again, _ = hash_chain.stamp(without, "s", hash_chain.Head(), "2026")
    assert verify_journal(again).signature == "none"


def test_a_signature_that_was_swapped(lines, session, tmp_path):
    other = SigningKey.load_or_create(tmp_path)
    forged = [ev.decode(line) for line in lines[:26]]
    forged[3].data = {"text/plain": "forged"}
    again, head = hash_chain.stamp(forged, "s", hash_chain.Head(), "2026")
    again += hash_chain.stamp([other.sign_head("s", head)], "s", head, "2026")[0]
    for key in (None, session.key.public):
        assert verify_journal(again, public_key=key).result == "not_proven"
    assert verify_journal(again, public_key=other.public).ok


@settings(max_examples=examples(30), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_changed_byte_is_found(lines, session, data):
    k = data.draw(st.integers(0, len(lines) - 1))
    at = data.draw(st.integers(0, len(lines[k]) - 1))
    byte = data.draw(st.integers(32, 126).filter(lambda b: b != lines[k][at]))
    changed = list(lines)
    changed[k] = changed[k][:at] + bytes([byte]) + changed[k][at + 1 :]
    verdict = verify_journal(changed, public_key=session.key.public)
    # The very last line is a signature: nothing follows that would vouch for its time.
    assert not verdict.ok or k == len(lines) - 1


@given(st.binary(max_size=300))
def test_garbage_is_judged_and_never_raises(data):
    verify_journal(data.split(b"\n"))


# --- notebooks ---------------------------------------------------------------------------


def test_a_genuine_notebook(session, notebook):
    path = session.path.with_name("notebook.ipynb")
    verdict = verify(path, public_key=session.key.public, journal=session.path)
    assert (verdict.ok, verdict.what, verdict.entries, verdict.closed) == (True, "notebook", 5, True)
    assert verdict.head == session.journal.head.digest


def test_saving_it_in_jupyter_breaks_nothing(notebook, session, tmp_path):
    nb = nbformat.from_dict(copy.deepcopy(notebook))
    for cell in nb.cells:
        cell.metadata["scrolled"] = True
        cell.metadata["trusted"] = True
    nb.metadata["language_info"] = {"name": "python", "version": "3.99", "codemirror_mode": {"name": "ipython"}}
    nb.metadata["kernelspec"] = {"name": "other", "display_name": "Other", "language": "python"}
    nb.metadata["orig_nbformat"] = 4
    nbformat.write(nb, tmp_path / "n.ipynb")
    text = (tmp_path / "n.ipynb").read_text()
    (tmp_path / "n.ipynb").write_text(text.replace(": 0.0,", ": 0,"))
    assert verify(tmp_path / "n.ipynb", public_key=session.key.public).ok


def _set(place, *path, value):
    def act(notebook):
        target = notebook if place is None else notebook["cells"][place]
        for name in path[:-1]:
            target = target.setdefault(name, {})
        target[path[-1]] = value

    return act


@pytest.mark.parametrize(
    ("act", "place"),
    [
        (_set(2, "metadata", "jupyter", value={"source_hidden": True}), 3),
        (_set(2, "metadata", "collapsed", value=True), 3),
        (_set(2, "metadata", "tags", value=["remove-cell"]), 3),
        (_set(2, "metadata", "execution", "iopub.execute_input", value="2001-01-01T00:00:00Z"), 3),
        (_set(2, "metadata", "vscode", value={"languageId": "html"}), 3),
        (_set(2, "metadata", "unknown", value=1), 3),
        (_set(2, "metadata", "kernelsvc", "principal", value="charity"), 3),
        (_set(2, "attachments", value={"a.png": {"image/png": "eA=="}}), 3),
        (_set(2, "unknown", value=1), 3),
        (_set(None, "metadata", "kernelsvc", "principal", value="charity"), 0),
        (_set(None, "metadata", "kernelsvc", "closed", value="never"), 0),
        (_set(None, "metadata", "kernelsvc", "sandbox", "isolation", value="full"), 0),
        (_set(None, "metadata", "kernelsvc", "unknown", value=1), 0),
        (_set(None, "metadata", "widgets", value={"application/vnd.jupyter.widget-state+json": {}}), 0),
        (_set(None, "metadata", "language_info", "name", value="bash"), 0),
        (_set(None, "metadata", "title", value="x"), 0),
        (_set(None, "unknown", value=1), 0),
        (_set(None, "nbformat", value=3), 0),
    ],
)
def test_all_of_a_cell_and_of_the_metadata_is_covered(notebook, session, act, place):
    changed = copy.deepcopy(notebook)
    act(changed)
    verdict = verify_notebook(changed, public_key=session.key.public)
    assert (verdict.result, verdict.fault.kind, verdict.fault.place) == ("not_as_written", "changed", place)


def test_a_name_that_is_there_twice_is_refused(notebook, session):
    """Programs that take the first value would show another notebook than the one that was verified."""
    changed = json.dumps(notebook).replace('"outputs": ', '"outputs": [], "outputs": ', 1)
    with pytest.raises(BadRequest, match="two fields of one name"):
        verify_notebook(changed.encode(), public_key=session.key.public)


#: A notebook as kernelsvc exported it before form 2.
FORM_1 = {
    "cells": [
        {
            "cell_type": "code",
            "execution_count": None,
            "id": "c",
            "metadata": {
                "kernelsvc": {
                    "cell": "c",
                    "state": "finished",
                    "seq": {"first": 2, "last": 5},
                    "queued_at": "2026-12-01T10:43:21.161692Z",
                    "started_at": "2026-12-01T10:43:21.161692Z",
                    "finished_at": "2026-12-01T10:43:21.161692Z",
                    "principal": "",
                    "metadata": {},
                    "reason": "ok",
                    "usage": {"wall_ms": 0.0, "cpu_ms": None, "peak_rss_bytes": None, "output_bytes": 0},
                },
                "execution": {
                    "iopub.execute_input": "2026-12-01T10:43:21.161692Z",
                    "shell.execute_reply": "2026-12-01T10:43:21.161692Z",
                },
            },
            "outputs": [{"output_type": "stream", "name": "stdout", "text": "a\n"}],
            "source": "x",
        }
    ],
    "metadata": {
        "kernelspec": {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"},
        "language_info": {
            "name": "python",
            "file_extension": ".py",
            "mimetype": "text/x-python",
            "pygments_lexer": "ipython3",
        },
        "kernelsvc": {
            "session": "s",
            "name": None,
            "template": "t",
            "principal": "me",
            "created_at": "2026-12-01T10:43:21.161373Z",
            "updated_at": "2026-12-01T10:43:21.161692Z",
            "closed": None,
            "parent": None,
            "last_seq": 5,
            "audit": {
                "version": 1,
                "session": "s",
                "seq": 5,
                "head": "9420b7f753a4b56a4c8fa47935a1111bacb8c5e037cb24e0c573fc1b33f0b209",
                "cells": [["c", "0c2ae2533fb07e186996cd248cb41b9f41f922d67fd93d569f49337cda3b8779"]],
                "key": "oXoPB9AG4Tx3ritB/MdkWqSdRm6XVLF/nG72xd1B0iM=",
                "signature": "jq7e1waVhDTr5Qh8bIs4YeBIvolf7wFgwCpARjYjygVGPSxqqnTYhYQqN3AysH73dmlcBAQS1QJPVxhmjde9DA==",
            },
        },
    },
    "nbformat": 4,
    "nbformat_minor": 5,
}


def test_a_notebook_of_form_1_still_verifies_and_the_verdict_says_so():
    key = FORM_1["metadata"]["kernelsvc"]["audit"]["key"]
    verdict = verify_notebook(FORM_1, public_key=key)
    assert verdict.ok
    assert "form 1" in verdict.message
    changed = copy.deepcopy(FORM_1)
    changed["cells"][0]["source"] += "!"
    assert verify_notebook(changed, public_key=key).result == "not_as_written"


def test_form_2_can_not_become_form_1(notebook, session):
    """The form is signed: otherwise one could drop the digest of the metadata and change it."""
    from kernelsvc.model.audit import cell_digest

    changed = copy.deepcopy(notebook)
    recorded = changed["metadata"]["kernelsvc"]["audit"]
    recorded |= {"version": 1, "cells": [[cell["id"], cell_digest(cell, 1)] for cell in changed["cells"]]}
    verdict = verify_notebook(changed, public_key=session.key.public)
    assert (verdict.result, verdict.fault, verdict.signature) == ("not_as_written", None, "bad")


def test_a_form_of_a_later_version(notebook):
    changed = copy.deepcopy(notebook)
    changed["metadata"]["kernelsvc"]["audit"]["version"] = 3
    with pytest.raises(BadRequest, match="later version"):
        verify_notebook(changed)


def edit_source(cells):
    cells[2]["source"] += "!"


def edit_output(cells):
    cells[2]["outputs"][1]["text"] = "other"


def edit_reason(cells):
    cells[2]["metadata"]["kernelsvc"]["reason"] = "error"


def remove(cells):
    del cells[2]


def add(cells):
    cells.insert(2, {**copy.deepcopy(cells[1]), "id": "new"})


def rename(cells):
    cells[2]["id"] = "other"


def move(cells):
    cells.append(cells.pop(2))


@pytest.mark.parametrize(
    ("act", "kind", "place"),
    [
        (edit_source, "changed", 3),
        (edit_output, "changed", 3),
        (edit_reason, "changed", 3),
        (rename, "changed", 3),
        (remove, "removed", 3),
        (add, "added", 3),
        (move, "reordered", 3),
        (lambda cells: cells.pop(), "removed", 5),
        (lambda cells: cells.append({**cells[0], "id": "new"}), "added", 6),
    ],
)
def test_what_was_done_to_a_cell_is_named(notebook, act, kind, place):
    changed = copy.deepcopy(notebook)
    act(changed["cells"])
    verdict = verify_notebook(changed)
    assert (verdict.ok, verdict.fault.kind, verdict.fault.place) == (False, kind, place)


def test_changing_the_list_of_digests_too_breaks_the_signature(notebook, session):
    changed = copy.deepcopy(notebook)
    edit_source(changed["cells"])
    from kernelsvc.model.audit import cell_digest

    changed["metadata"]["kernelsvc"]["audit"]["cells"][2][1] = cell_digest(changed["cells"][2])
    verdict = verify_notebook(changed)
    assert (verdict.ok, verdict.fault, verdict.signature) == (False, None, "bad")
    changed["metadata"]["kernelsvc"]["audit"]["signature"] = ""
    verdict = verify_notebook(changed)
    assert (verdict.result, verdict.signature) == ("not_proven", "none")
    assert verify_notebook(changed, public_key=session.key.public).result == "not_proven"
    assert "anybody could have made it so" in verdict.message


def test_the_journal_has_the_last_word(notebook, session):
    changed = copy.deepcopy(notebook)
    edit_source(changed["cells"])
    from kernelsvc.model.audit import audit
    from kernelsvc.model.hash_chain import Head

    forged = session.key.sign_audit(audit("s", Head(29, session.journal.head.digest), changed["cells"], changed))
    changed["metadata"]["kernelsvc"]["audit"] |= {"cells": forged.cells, "signature": forged.signature}
    assert verify_notebook(changed, public_key=session.key.public).ok
    verdict = verify_notebook(changed, public_key=session.key.public, journal=session.path)
    assert verdict.result == "not_as_written"
    assert "The journal says otherwise: Cell 3 (c2) was changed." in verdict.message


def test_the_journal_of_another_session_is_named_as_such(notebook, session, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_bytes(session.path.read_bytes().replace(b'"session":"s"', b'"session":"t"'))
    verdict = verify_notebook(notebook, public_key=session.key.public, journal=other)
    assert verdict.result == "not_as_written"
    assert "The journal is that of another session, t." in verdict.message


@pytest.mark.parametrize("start", [b"<!DOCTYPE html>", b"\n<html>"])
def test_a_page_is_refused_with_what_can_be_verified(tmp_path, start):
    (tmp_path / "n.html").write_bytes(start + b"<body>")
    with pytest.raises(BadRequest, match=r"\.ipynb"):
        verify(tmp_path / "n.html")


@pytest.mark.parametrize("content", [b"{}", b"[]", b"nothing", b'{"cells": [1]}', b'{"cells": [], "metadata": {}}'])
def test_what_is_no_notebook_of_ours(tmp_path, content):
    (tmp_path / "n.ipynb").write_bytes(content)
    with pytest.raises(BadRequest):
        verify_notebook(tmp_path / "n.ipynb")
