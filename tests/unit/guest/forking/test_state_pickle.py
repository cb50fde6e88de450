"""Variables to one pickle and back: shared objects stay shared, and what is lost says so."""

import contextlib
import io
import json
import os
import pathlib
import queue
import socket
import sqlite3
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from kernelsvc.guest.forking import state_pickle as ns

SETUP = """
import functools, threading, queue
import numpy as np, pandas as pd
number, text, nothing = 42, "é", None
array = np.arange(12.0).reshape(3, 4)
view = array[1]
frame = pd.DataFrame({"a": [1, 2], "b": ["x", "y"]})
alias = frame
class Point:
    made = []
    def __init__(self, x): self.x = x; Point.made.append(self)
    def double(self): return self.x * 2
point = Point(3)
bound = point.double
def function(x, k=2, *, j=1): return x * k + j + number
square = lambda x: x * x
def counter():
    n = 0
    def tick():
        nonlocal n
        n += 1
        return n
    return tick
tick = counter(); tick()
@functools.lru_cache
def cached(n): return n + number
lock, event = threading.Lock(), threading.Event(); event.set()
line = queue.Queue(); line.put(7)
generator = (i for i in range(3))
"""


def around(space, names=None):
    file = io.BytesIO()
    lost = ns.dump(space, names or ns.user_names(space, {"__builtins__": None}), file)
    fresh = {"__name__": "__main__", "__builtins__": __builtins__}
    file.seek(0)
    ns.load(file, fresh)
    return fresh, lost


CLAIMS = [
    "number == 42 and text == 'é' and nothing is None",
    "array.sum() == 66",
    "alias is frame and frame.b[1] == 'y'",
    "isinstance(point, Point) and Point.made[0] is point",
    "bound.__self__ is point and bound() == 6",
    "function(2) == 2 * 2 + 1 + 42 and function.__kwdefaults__ == {'j': 1}",
    "square(5) == 25",
    "tick() == 2",
    "cached(1) == 43",
    "lock.acquire(False) and event.is_set()",
    "line.get_nowait() == 7",
]
LOADER = """
import json, sys
from kernelsvc.guest.forking import state_pickle as namespace
import __main__
with open(sys.argv[1], "rb") as file:
    namespace.load(file, __main__.__dict__)
print(json.dumps({claim: bool(eval(claim)) for claim in json.loads(sys.argv[2])}))
"""


@pytest.fixture(scope="module")
def space():
    made = {"__name__": "__main__", "__builtins__": __builtins__}
    exec(SETUP, made)
    return made


@pytest.fixture(scope="module")
def claims(space, tmp_path_factory):
    """Loaded where it is meant to be: in another process."""
    path = tmp_path_factory.mktemp("saved") / "pickle"
    with path.open("wb") as file:
        ns.dump(space, ns.user_names(space, {"__builtins__": None}), file)
    found = subprocess.run(
        [sys.executable, "-c", LOADER, str(path), json.dumps(CLAIMS)], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


@pytest.fixture(scope="module")
def both(space):
    return space, *around(space)


@pytest.mark.parametrize("claim", CLAIMS)
def test_what_comes_back(claims, claim):
    assert claims[claim]


def test_saving_changes_nothing(space):
    point = space["Point"].made[0]
    ns.dump(space, ["point", "Point", "frame"], io.BytesIO())
    assert space["Point"].made[0] is point


def test_a_view_is_a_view_again(both):
    fresh = both[1]
    fresh["array"][1, 0] = -1
    assert fresh["view"][0] == -1


def test_functions_see_the_new_variables(both):
    fresh = both[1]
    fresh["number"] = 100
    assert fresh["function"](0) == 101
    fresh["number"] = 42


def test_what_is_lost_is_named_and_explains_itself(both):
    _, fresh, lost = both
    assert set(lost) == {"generator"}
    with pytest.raises(RuntimeError, match="generator was lost"):
        next(fresh["generator"])
    with pytest.raises(RuntimeError, match="lost"):
        _ = fresh["generator"].anything
    assert "lost" in repr(fresh["generator"])


def test_files_go_on_where_they_were(tmp_path):
    path = tmp_path / "f.txt"
    path.write_text("one\ntwo\n")
    with path.open() as reader, (tmp_path / "w.txt").open("w") as writer:
        reader.readline()
        writer.write("buffered ")
        fresh, lost = around({"reader": reader, "writer": writer})
    assert lost == {}
    assert fresh["reader"].readline() == "two\n"
    fresh["writer"].write("more")
    fresh["writer"].close()
    fresh["reader"].close()
    assert (tmp_path / "w.txt").read_text() == "buffered more"


def test_databases(tmp_path):
    memory, disk = sqlite3.connect(":memory:"), sqlite3.connect(tmp_path / "d.db")
    memory.execute("create table t(a)")
    memory.execute("insert into t values (7)")
    memory.commit()
    open_one = sqlite3.connect(":memory:")
    open_one.execute("create table t(a)")
    open_one.execute("insert into t values (1)")
    fresh, lost = around({"memory": memory, "disk": disk, "open_one": open_one})
    assert fresh["memory"].execute("select a from t").fetchone() == (7,)
    assert "transaction" in lost["open_one"]
    for one in (memory, disk, open_one, fresh["memory"], fresh["disk"]):
        one.close()


def test_a_database_in_memory_survives_each_of_several_saves():
    """SQLite names one that was loaded "x", which is no file."""
    space = {"memory": sqlite3.connect(":memory:")}
    space["memory"].executescript("create table t (n); insert into t values (3)")
    for _ in range(3):
        before = space["memory"]
        space, lost = around(space, ["memory"])
        before.close()
        assert not lost
        assert space["memory"].execute("select n from t").fetchall() == [(3,)]
    space["memory"].close()


def test_what_lies_outside_is_lost_with_a_reason():
    held = threading.Lock()
    held.acquire()
    one, two = socket.socketpair()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        fresh, lost = around({"held": held, "one": one, "process": process, "fine": 1, "path": pathlib.Path("/x")})
        assert process.stdin is not None
        process.stdin.close()
    one.close()
    two.close()
    assert set(lost) == {"held", "one", "process"}
    assert "held" in lost["held"]
    assert fresh["fine"] == 1
    assert fresh["path"] == pathlib.Path("/x")


def test_a_bomb_in_one_name_spares_the_others():
    class Bomb:
        def __reduce__(self):
            raise ValueError("no")

    class Slow:
        def __getstate__(self):
            return self.__getstate__()

    class Deadly:
        def __reduce__(self):
            os._exit(9)

    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    fresh, lost = around({"bomb": Bomb(), "deadly": Deadly(), "slow": Slow(), "deep": deep, "fine": np.ones(3)})
    assert {"bomb", "deadly", "slow", "deep"} == set(lost)
    assert "ended the process" in lost["deadly"]
    assert fresh["fine"].sum() == 3
    while deep:
        deep = deep.pop()


class Endless:
    def __getstate__(self):
        while True:
            pass


class EndlessToLoad:
    def __setstate__(self, state):
        while True:
            with contextlib.suppress(BaseException):
                threading.Event().wait(0.01)


@pytest.mark.parametrize("total", [120.0, 0.3])
def test_a_name_that_takes_too_long_is_lost_and_spares_the_others(monkeypatch, total):
    monkeypatch.setattr(ns, "NAME_SECONDS", 0.3)
    monkeypatch.setattr(ns, "MAX_SECONDS", total)
    endless = EndlessToLoad()
    endless.state = 1
    space = {"a": 1, "saving": Endless(), "b": [2], "loading": endless, "c": "3"}
    file = io.BytesIO()
    lost = ns.dump(space, list(space), file)
    assert lost == {"saving": "saving it takes too long", "loading": "saving it takes too long"}
    file.seek(0)
    found = {}
    ns.load(file, found)
    assert (found["a"], found["b"], found["c"]) == (1, [2], "3")


def test_what_is_not_the_users_is_left_out():
    hidden = {"exit": 1, "quit": 2}
    space = {"exit": 1, "quit": 5, "_i1": "x", "In": [], "Out": {}, "mine": pd.DataFrame(), "q": queue}
    assert ns.user_names(space, hidden) == ["quit", "mine", "q"]


def test_a_state_that_an_earlier_version_saved_is_loaded(space, monkeypatch):
    """The module had another name then, and pickles name the functions that rebuild objects."""
    file = io.BytesIO()
    with monkeypatch.context() as earlier:
        earlier.setitem(sys.modules, "kernelsvc.guest.namespace", ns)
        for made in (ns._function, ns._set_function, ns._event, ns._queue):
            earlier.setattr(made, "__module__", "kernelsvc.guest.namespace")
        ns.dump(space, ["function", "event", "line", "number"], file)
    assert b"kernelsvc.guest.namespace" in file.getvalue()
    assert b"state_pickle" not in file.getvalue()
    fresh = {"__name__": "__main__", "__builtins__": __builtins__}
    file.seek(0)
    assert ns.load(file, fresh) == (4, {})
    assert eval("function(2) == 47 and event.is_set() and line.get_nowait() == 7", fresh)


# --- requests of the server ---------------------------------------------------------------


def shell(**variables):
    return SimpleNamespace(user_ns=dict(variables), user_ns_hidden={}, execution_count=7)


def test_there_and_back(tmp_path):
    path = tmp_path / "variables"
    said = ns.answer(shell(x=[1, 2], gone=(i for i in ())), {"op": "save"}, os.open(path, os.O_WRONLY | os.O_CREAT))
    assert (said["ok"], said["saved"], list(said["lost"])) == (True, 1, ["gone"])
    fresh = shell()
    said = ns.answer(fresh, {"op": "load", "count": 9}, os.open(path, os.O_RDONLY))
    assert (said["ok"], fresh.user_ns["x"], fresh.execution_count) == (True, [1, 2], 9)
    assert "lost" in repr(fresh.user_ns["gone"])


def test_what_can_not_be_loaded_is_refused_and_changes_nothing(tmp_path):
    path = tmp_path / "variables"
    path.write_bytes(b"no pickle at all")
    fresh = shell(kept=1)
    said = ns.answer(fresh, {"op": "load"}, os.open(path, os.O_RDONLY))
    assert said["ok"] is False
    assert said["refused"]
    assert fresh.user_ns == {"kept": 1}
    assert fresh.execution_count == 7


def test_a_full_disk_is_refused():
    said = ns.answer(shell(x=bytes(1000)), {"op": "save"}, os.open("/dev/full", os.O_WRONLY))
    assert said["ok"] is False
    assert "No space" in said["refused"][0]
