"""The blocking client is the async one: the same methods, arguments and docstrings."""

import inspect
import threading

import pytest

from kernelsvc import Client
from kernelsvc.client import AsyncClient, AsyncEvents, AsyncSession, AsyncStream, Events, Session, Stream, Unreachable
from kernelsvc.model import events as ev
from kernelsvc.testing import TOKEN, serve_in_thread


@pytest.fixture
def url():
    with serve_in_thread() as server:
        yield server.url


def public(cls):
    return {name for name in dir(cls) if not name.startswith("_")}


@pytest.mark.parametrize(
    ("blocking", "own"), [(Client, AsyncClient), (Session, AsyncSession), (Stream, AsyncStream), (Events, AsyncEvents)]
)
def test_the_twins_have_the_same_methods(blocking, own):
    renamed = {"aclose": "close", "next_batch": "__next__"}
    wanted = {renamed.get(name, name) for name in public(own)}
    assert {name for name in wanted if not hasattr(blocking, name)} == set()
    assert public(blocking) - wanted - {"id", "details", "address"} == set()
    for name in public(own) & public(blocking):
        ours, theirs = getattr(blocking, name), getattr(own, name)
        if inspect.isfunction(theirs):
            assert inspect.signature(ours) == inspect.signature(theirs), name
            assert ours.__doc__ == theirs.__doc__


def test_ten_lines(url, tmp_path):
    with Client(url, TOKEN) as client, client.create_session() as session:
        assert session.run("1 + 1").raise_for_error().text == "2\n"
        texts = [event.text for event in session.stream("for n in range(3): print(n)") if isinstance(event, ev.Stream)]
        assert texts == ["0\n", "1\n", "2\n"]
        session.upload(b"a", "a.txt")
        assert session.download("a.txt") == b"a"
        assert [info.path for info in session.files()] == ["a.txt"]
        [branch] = session.branch()
        assert branch.run("2").ok
        assert repr(branch).startswith("<Session s_")
        assert client.session(session.id).id == session.id
        assert len(client.sessions()) == 2


def test_nothing_remains_after_close(url):
    before = threading.active_count()
    client = Client(url, TOKEN)
    client.create_session(keep=True)
    client.close()
    client.close()
    assert threading.active_count() == before


def test_a_client_without_a_server_leaves_no_thread(monkeypatch, tmp_path):
    monkeypatch.delenv("KERNELSVC_URL", raising=False)
    monkeypatch.setenv("KERNELSVC_RUNTIME_DIR", str(tmp_path))
    before = threading.active_count()
    with pytest.raises(Unreachable):
        Client()
    assert threading.active_count() == before


async def test_it_closes_where_a_loop_runs(url):
    # As in a cell of Jupyter, whose thread runs a loop.
    with Client(url, TOKEN) as client, client.create_session() as session:
        assert session.run("1 + 1").ok
    client.close()
