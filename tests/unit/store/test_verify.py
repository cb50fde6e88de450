import asyncio
import copy
import gzip
import json

import nbformat
import pytest
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


def test_another_key(session, tmp_path):
    verdict = verify_journal(session.path, public_key=SigningKey.load_or_create(tmp_path).public)
    assert (verdict.ok, verdict.signature, verdict.trusted) == (False, "good", False)
    assert "not the key you named" in verdict.message


def test_an_unsigned_one(lines, session):
    verdict = verify_journal(lines[:20])
    assert (verdict.ok, verdict.signature, verdict.closed) == (True, "none", False)
    assert "may be missing from its end" in verdict.message
    assert not verify_journal(lines[:20], public_key=session.key.public).ok


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
    assert verify_journal(again).ok
    assert not verify_journal(again, public_key=session.key.public).ok


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


def test_saving_it_in_jupyter_breaks_nothing(notebook, tmp_path):
    nb = nbformat.from_dict(copy.deepcopy(notebook))
    for cell in nb.cells:
        cell.metadata["collapsed"] = True
        cell.metadata["trusted"] = True
    nb.metadata["toc"] = {}
    nbformat.write(nb, tmp_path / "n.ipynb")
    text = (tmp_path / "n.ipynb").read_text()
    (tmp_path / "n.ipynb").write_text(text.replace("0.0", "0"))
    assert verify(tmp_path / "n.ipynb").ok


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


def test_changing_the_list_of_digests_too_breaks_the_signature(notebook):
    changed = copy.deepcopy(notebook)
    edit_source(changed["cells"])
    from kernelsvc.model.audit import cell_digest

    changed["metadata"]["kernelsvc"]["audit"]["cells"][2][1] = cell_digest(changed["cells"][2])
    verdict = verify_notebook(changed)
    assert (verdict.ok, verdict.fault, verdict.signature) == (False, None, "bad")
    changed["metadata"]["kernelsvc"]["audit"]["signature"] = ""
    verdict = verify_notebook(changed)
    assert (verdict.ok, verdict.signature) == (True, "none")
    assert "anybody could have made it so" in verdict.message


def test_the_journal_has_the_last_word(notebook, session):
    changed = copy.deepcopy(notebook)
    edit_source(changed["cells"])
    from kernelsvc.model.audit import audit
    from kernelsvc.model.hash_chain import Head

    forged = session.key.sign_audit(audit("s", Head(29, session.journal.head.digest), changed["cells"]))
    changed["metadata"]["kernelsvc"]["audit"] |= {"cells": forged.cells, "signature": forged.signature}
    assert verify_notebook(changed).ok
    verdict = verify_notebook(changed, journal=session.path)
    assert not verdict.ok
    assert "The journal says otherwise: Cell 3 (c2) was changed." in verdict.message


@pytest.mark.parametrize("content", [b"{}", b"[]", b"nothing", b'{"cells": [1]}', b'{"cells": [], "metadata": {}}'])
def test_what_is_no_notebook_of_ours(tmp_path, content):
    (tmp_path / "n.ipynb").write_bytes(content)
    with pytest.raises(BadRequest):
        verify_notebook(tmp_path / "n.ipynb")
