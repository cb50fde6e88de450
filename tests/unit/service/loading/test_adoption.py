"""What an index learns of a log while it is read in a thread. (Adoption itself: ``chaos/test_server_dies.py``.)"""

import asyncio

from kernelsvc.model import events as ev
from kernelsvc.service.loading.adoption import Adoption
from kernelsvc.store.index import Index

MANY = 450


def past():
    yield stamped(ev.SessionStarted(principal="me", template="python3"), 1)
    for n in range(2, MANY):
        yield stamped(ev.CellQueued(cell=f"c{n}", code=f"word{n}"), n)
    yield stamped(ev.CellFinished(cell="c2"), MANY)


def stamped(event, seq):
    event.session, event.seq, event.at = "s_1", seq, "2026-01-01T00:00:00.000000Z"
    return event


async def test_it_learns_everything_once_and_in_order(tmp_path):
    index = Index(tmp_path / "index.sqlite")
    index.learn_events("s_1", [stamped(ev.SessionStarted(principal="me", template="old"), 1)], anew=True)
    adoption = object.__new__(Adoption)
    adoption._index = index
    telling = adoption._indexed("s_1", past())
    passed = await asyncio.to_thread(lambda: [event.seq for event in telling])
    await asyncio.sleep(0)
    assert passed == list(range(1, MANY + 1))
    ((row,), _) = index.page("me")
    assert (row.template, row.cells, row.last_seq) == ("python3", MANY - 2, MANY)
    assert [found.cell for found in index.search("me", "word77")] == ["c77"]
    index.close()
