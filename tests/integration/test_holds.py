"""A person takes a session over: cells of every client wait, and each decision is in the log and the notebook."""

from __future__ import annotations

import json
from typing import Any

import pytest
from served import Served
from waiting import wait_for

from kernelsvc import Client
from kernelsvc.errors import Conflict
from kernelsvc.model import events as ev


def metadata(session: Any) -> list[dict[str, Any]]:
    """What the notebook says about each decision."""
    cells = json.loads(session.notebook())["cells"]
    return [own["decision"] for c in cells if "decision" in (own := c["metadata"].get("kernelsvc", {}))]


def test_cells_wait_for_a_person_and_each_decision_is_on_record(served: Served) -> None:
    with Client(served.url, served.token) as client, client.create_session() as session:
        session.run("x = 1")
        assert session.hold(seconds=300).hold.by == "local"
        agents = [session.run(f"x += {n}", wait="queued").id for n in (10, 100)]
        assert session.info().hold.cells == agents
        own = session.run("print('by hand', x)", wait="queued").id
        session.decide(own, decision="approve")
        wait_for(lambda: session.cell(own).reason, what="the person's own cell")
        assert session.cell(own).text == "by hand 1\n"
        (refused,) = session.decide(agents[0], decision="refuse", reason="not that file")
        assert (refused.reason, refused.message) == ("cancelled", "Refused by local: not that file")
        with pytest.raises(Conflict, match="is not held"):
            session.decide(agents[0], decision="approve")
        session.let_go()
        assert session.run("x").text.strip() == "101"
        kept = [e for e in session.events(follow=False) if isinstance(e, ev.SessionHeld | ev.CellHeld | ev.CellDecided)]
        assert [(type(e).__name__, getattr(e, "by", "")) for e in kept] == [
            ("SessionHeld", "local"), ("CellHeld", ""), ("CellHeld", ""), ("CellHeld", ""),
            ("CellDecided", "local"), ("CellDecided", "local"), ("CellDecided", "local"), ("SessionHeld", "local"),
        ]  # fmt: skip
        wait_for(lambda: len(metadata(session)) == 3, what="the notebook")
        decided = {(each["decision"], each["by"], each["reason"]) for each in metadata(session)}
        assert decided == {("approve", "local", None), ("refuse", "local", "not that file")}


def test_a_cell_that_waits_or_was_refused_has_no_output(served: Served) -> None:
    """Code that runs says that its output is that of a cell that waits for a person, before and after the refusal."""
    with Client(served.url, served.token) as client, client.create_session() as session:
        forge = """
import pathlib, threading, time
k = get_ipython().kernel
def forge():
    shown = {"name": "stdout", "text": "forged"}
    while not pathlib.Path("end").exists():
        k.session.send(k.iopub_socket, "stream", shown, parent={"header": {"msg_id": "danger"}, "msg_id": "danger"})
        time.sleep(.02)
threading.Thread(target=forge).start()
"""
        session.run(forge)

        def forged() -> int:
            return sum(isinstance(e, ev.Stream) for e in session.events(follow=False))

        session.hold(seconds=300)
        session.run("print('danger')", cell="danger", wait="queued")
        before = forged()
        wait_for(lambda: forged() > before + 2, what="output while it waits")
        session.decide("danger", decision="refuse")
        before = forged()
        wait_for(lambda: forged() > before + 2, what="output after the refusal")
        session.upload(b"", "end")
        assert session.cell("danger").outputs == []
        (cell,) = (c for c in json.loads(session.notebook())["cells"] if c["id"] == "danger")
        assert cell["outputs"] == []
        assert all(e.cell != "danger" for e in session.events(follow=False) if isinstance(e, ev.Stream))


@pytest.mark.parametrize("kind", ["branch", "isolated branch", "sidecar"])
def test_a_copy_of_a_held_session_is_held(served: Served, kind: str) -> None:
    with Client(served.url, served.token) as client, client.create_session() as session:
        session.hold(seconds=300)
        if kind == "sidecar":
            copy = client.create_session(sidecar_of=session.id)
        else:
            (copy,) = session.branch(isolate=kind != "branch")
        with copy:
            held = copy.run("1", wait="queued").id
            hold = copy.info().hold
            assert (hold.by, hold.seconds, hold.cells) == ("local", 300, [held])
            session.let_go()
            assert copy.info().hold.cells == [held]
