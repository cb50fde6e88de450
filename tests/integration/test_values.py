"""The data of variables for programs, by JSON-RPC, REST and the client."""

from __future__ import annotations

import json
import urllib.error
from collections.abc import Iterator

import pandas as pd
import pytest
from served import Served

from kernelsvc import Client
from kernelsvc.client.sync_client import Session
from kernelsvc.errors import NotFound, NotSupported

SETUP = """
import pandas as pd
df = pd.DataFrame({"n": range(300_000), "t": "some text"})
small = {"a": [1, None, {"b": "c"}]}
class Hostile:
    def __reduce__(self): print("REDUCED"); import os; return os.system, ("true",)
    __str__ = __repr__ = lambda self: 1 / 0
odd = pd.DataFrame({"o": [Hostile(), "x"]})
"""


@pytest.fixture(scope="session")
def served(preloaded_server: Served) -> Served:
    return preloaded_server


@pytest.fixture(scope="module")
def session(served: Served) -> Iterator[Session]:
    with Client(served.url, served.token) as client, client.create_session() as made:
        assert made.run(SETUP).ok
        yield made


def test_a_table_comes_in_parts_and_is_one_frame(session: Session) -> None:
    found = session.value("df", format="csv")
    assert found.equals(pd.DataFrame({"n": range(300_000), "t": "some text"}))
    assert list(session.value("df", columns=["n"], rows=3, format="csv")["n"]) == [0, 1, 2]


def test_other_values_are_lists_and_dictionaries(session: Session) -> None:
    assert session.value("small") == {"a": [1, None, {"b": "c"}]}
    assert list(session.value("odd", format="csv")["o"])[1] == "x"
    assert session.value("odd", format="json")["o"][0] == "<Hostile>"
    assert "REDUCED" not in session.run("1").text


def test_errors_have_a_code_and_the_session_continues(session: Session) -> None:
    with pytest.raises(NotFound, match="no variable 'absent'"):
        session.value("absent")
    with pytest.raises(NotSupported):
        session.value("small", format="csv")
    assert session.run("len(small)").text == "1\n"


def test_rest_gives_the_bytes_of_a_format_or_an_error(served: Served, session: Session) -> None:
    path = f"/v1/sessions/{session.id}/values"
    assert served.call("GET", f"{path}/small") == json.loads('{"a": [1, null, {"b": "c"}]}')
    assert served.call("GET", f"{path}/df?format=json&rows=1&columns=t") == [{"t": "some text"}]
    for name, status in (("absent", 404), ("df?format=csv", 413), ("small?format=csv", 501), ("df?rows=0", 400)):
        with pytest.raises(urllib.error.HTTPError) as caught:
            served.call("GET", f"{path}/{name}")
        with caught.value as answer:
            assert answer.code == status, answer.read()
