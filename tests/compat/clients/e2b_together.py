"""E2B's Python SDK: cold kernels, contexts and programs through pauses, forks and snapshots."""

import os
import sys
import time

os.environ.update(E2B_API_URL=sys.argv[1], E2B_SANDBOX_URL=sys.argv[1], E2B_API_KEY=sys.argv[2])

import pytest
from e2b import CommandExitException, SandboxException
from e2b_code_interpreter import Sandbox


def eventually(condition, what):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def cold_kernel():
    """A sandbox whose template is an installed Jupyter kernel: programs, files and code."""
    with Sandbox.create("cold", envs={"MINE": "it's"}, timeout=120) as box:
        assert box.run_code("x = 20; import os; os.environ['MINE']").text == "it's"
        assert box.run_code("print(x + 1); x").logs.stdout == ["21\n"]
        done = box.commands.run("echo $MINE; pwd; echo made > made.txt; cat", stdin=False)
        assert done.stdout == "it's\n/home/user\n", done
        assert box.files.read("made.txt") == "made\n"
        assert box.run_code("open('made.txt').read().strip()").text == "made"
        box.files.write("sent.txt", "sent", metadata={"a": "b"})
        assert box.commands.run("cat sent.txt").stdout == "sent"
        with pytest.raises(CommandExitException) as exited:
            box.commands.run("exit 3")
        assert exited.value.exit_code == 3
        handle = box.commands.run("read line; echo got $line", background=True, stdin=True)
        assert [each.pid for each in box.commands.list()] == [handle.pid]
        box.commands.send_stdin(handle.pid, "it\n")
        assert handle.wait().stdout == "got it\n"
        box.files.write("/tmp/elsewhere.txt", "x")
        assert box.commands.run("cat /tmp/elsewhere.txt").stdout == "x"
        sleeper = box.commands.run("sleep 100", background=True)
        assert box.run_code("x").text == "20"  # a program does not hold up the code
        assert sleeper.kill()
        (refused,) = box.fork()
        assert isinstance(refused, SandboxException), refused
        assert "fork" in str(refused), refused
        with pytest.raises(SandboxException, match="fork"):
            box.create_snapshot()
        assert box.pause()
        again = Sandbox.connect(box.sandbox_id, timeout=120)
        assert again.run_code("x").text == "20"


def paused(box):
    """A pause stops the programs; contexts sleep with their sandbox, and come back with it."""
    box.run_code("x = [1]")
    context = box.create_code_context(cwd="/home/user")
    box.run_code("y = 2", context=context)
    runs = box.commands.run("read line; echo done > done.txt", background=True, stdin=True)
    assert box.pause()
    assert not box.is_running()
    time.sleep(3)  # long enough for a session without programs to go to disk
    again = Sandbox.connect(box.sandbox_id, timeout=120)
    assert again.run_code("x").text == "[1]"
    assert again.run_code("y", context=context).text == "2"
    assert [each.id for each in again.list_code_contexts()] == [box.sandbox_id, context.id]
    again.commands.send_stdin(runs.pid, "go on\n")
    eventually(lambda: again.files.exists("done.txt"), "the program continues after the pause")
    assert runs.pid not in [each.pid for each in again.commands.list()]
    return again, context


def forked(box, context):
    """A fork has the first context's live state and the files; contexts and programs stay where they are."""
    server = box.commands.run("echo begun; sleep 100", background=True)
    one, two = box.fork(count=2)
    assert one.run_code("x.append(1); x").text == "[1, 1]"
    assert (two.run_code("x").text, box.run_code("x").text) == ("[1]", "[1]")
    assert one.commands.list() == []
    assert [each.pid for each in box.commands.list()] == [server.pid]
    assert len(one.list_code_contexts()) == 1
    assert one.commands.run("cat done.txt").stdout == "done\n"
    one.commands.run("echo mine > done.txt")
    assert box.files.read("done.txt") == "done\n"
    fresh = one.create_code_context()
    one.run_code("z = 3", context=fresh)
    assert one.run_code("z", context=fresh).text == "3"
    assert box.run_code("y", context=context).text == "2"
    (third,) = one.fork()  # a fork of a fork
    assert third.run_code("x").text == "[1, 1]"
    for each in (one, two, third):
        each.kill()
    assert server.kill()


def snapshots(box, context):
    """A snapshot, while a program runs; it outlives its sandbox."""
    box.commands.run("sleep 100", background=True)
    taken = box.create_snapshot()
    box.run_code("x = 'changed'")
    box.kill()
    copy = Sandbox.create(taken.snapshot_id, timeout=120)
    assert copy.run_code("x").text == "[1]"
    assert copy.commands.list() == []
    assert copy.files.read("done.txt") == "done\n"
    copy.kill()
    assert Sandbox.delete_snapshot(taken.snapshot_id)


cold_kernel()
sandbox, beside = paused(Sandbox.create(timeout=120))
forked(sandbox, beside)
snapshots(sandbox, beside)
print("ok")
