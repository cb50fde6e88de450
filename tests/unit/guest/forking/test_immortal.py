"""What the template holds is not written to by those who use it. In processes of its own: it can't be undone."""

import json
import subprocess
import sys

import pytest

from kernelsvc.guest.forking import immortal

pytestmark = pytest.mark.skipif(not immortal.possible(), reason="Python has immortal objects since 3.12")

_PAGES = """
import gc, json, os, resource, sys
from kernelsvc.guest.forking import immortal
things = [object() for _ in range(200_000)]
names = {f"name {n}": (n + 1e9, [n]) for n in range(50_000)}
def use(): return "a constant of nobody else", names
gc.collect()
marked = immortal.immortalize() if sys.argv[1] == "immortal" else 0
gc.freeze()
read, write = os.pipe()
if os.fork() == 0:
    gc.disable()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for thing in things: thing
    for name, (number, numbers) in names.items(): name, number, numbers
    for _ in range(1000): use()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    names["name 0"][1].append(7)
    del names["name 1"]
    names["new"] = {"made": "later"}
    made = sys.getrefcount(names["new"]) < 10
    fine = made and len(names) == 50_000 and names["name 0"] == (1e9, [0, 7]) and gc.collect() >= 0
    os.write(write, json.dumps([marked, faults, fine]).encode())
    os._exit(0)
os.wait()
print(os.read(read, 1000).decode())
"""


def run(code: str, *args: str) -> str:
    argv = [sys.executable, "-c", code, *args]
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout


def test_a_fork_that_uses_what_is_immortal_copies_no_pages_for_it() -> None:
    plain, shared = (json.loads(run(_PAGES, how)) for how in ("mortal", "immortal"))
    assert (plain[0], plain[2], shared[2]) == (0, True, True)
    assert shared[0] > 350_000
    assert shared[1] < plain[1] / 5


def test_what_runs_stays_mortal() -> None:
    code = """
import gc, sys, weakref
from kernelsvc.guest.forking import immortal
class Thing: pass
def numbers():
    thing = Thing()
    told.append(weakref.ref(thing))
    yield 1
    yield 2
told = []
running = numbers()
next(running)
immortal.immortalize()
again = immortal.immortalize()
assert again < 5000, again
assert sys.getrefcount(running) < 100
del running
fresh = Thing()
gone = weakref.ref(fresh)
del fresh
assert gone() is None
print("fine")
"""
    assert run(code) == "fine\n"
