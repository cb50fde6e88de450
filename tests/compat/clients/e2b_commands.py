"""E2B's Python SDK, unmodified: commands and terminals of a sandbox. Arguments: address, token. Says "ok"."""

import asyncio
import os
import sys
import time
import urllib.error
import urllib.request

ADDRESS, TOKEN = sys.argv[1:]
os.environ |= {"E2B_API_KEY": TOKEN, "E2B_API_URL": ADDRESS, "E2B_SANDBOX_URL": ADDRESS}

from e2b import (  # noqa: E402
    AsyncSandbox,
    CommandExitException,
    InvalidArgumentException,
    NotFoundException,
    PtySize,
    Sandbox,
    TimeoutException,
)


def raised(kind, call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was not raised")


def commands(sandbox):
    run = sandbox.commands.run
    done = run("echo hello; pwd; echo wrong >&2")
    assert (done.stdout, done.stderr, done.exit_code) == ("hello\n/home/user\n", "wrong\n", 0), done
    assert raised(CommandExitException, run, "echo said; exit 3").exit_code == 3
    assert run("echo $A $B", envs={"A": "it's", "B": '"b"'}).stdout == 'it\'s "b"\n'
    assert run("pwd", cwd="/tmp").stdout == "/tmp\n"
    assert run("pwd", cwd="/home/user").stdout == "/home/user\n"
    raised(InvalidArgumentException, run, "true", cwd="/no/such/directory")
    heard = []
    run("seq 1 100000", on_stdout=heard.append)
    assert len("".join(heard)) == 588_895
    raised(TimeoutException, run, "sleep 30", timeout=1)
    deadline = time.monotonic() + 10
    while sandbox.commands.list():  # its end may come a moment after its time
        assert time.monotonic() < deadline
        time.sleep(0.05)


def background(sandbox):
    handle = sandbox.commands.run("cat", background=True, stdin=True)
    assert [(each.pid, each.args[-1]) for each in sandbox.commands.list()] == [(handle.pid, "cat")]
    sandbox.commands.send_stdin(handle.pid, "abc\n")
    sandbox.commands.stream_input(handle.pid, ["more\n", b"and more\n"])
    sandbox.commands.close_stdin(handle.pid)
    assert handle.wait().stdout == "abc\nmore\nand more\n"
    handle = sandbox.commands.run("sleep 30", background=True)
    assert handle.kill()
    assert raised(CommandExitException, handle.wait).exit_code == -1
    assert not sandbox.commands.kill(9999)
    raised(NotFoundException, sandbox.commands.send_stdin, 9999, "x")
    handle = sandbox.commands.run("read line; echo got $line", background=True, stdin=True)
    handle.disconnect()
    again = sandbox.commands.connect(handle.pid)
    sandbox.commands.send_stdin(handle.pid, "this\n")
    assert again.wait().stdout == "got this\n"
    assert sandbox.commands.list() == []


def terminal(sandbox):
    handle = sandbox.pty.create(PtySize(rows=24, cols=80))
    sandbox.pty.resize(handle.pid, PtySize(rows=30, cols=100))
    sandbox.pty.send_stdin(handle.pid, b"stty size; echo pty-$((1 + 1)); exit\n")
    seen = []
    handle.wait(on_pty=seen.append)
    said = b"".join(seen).decode()
    assert "30 100" in said, said
    assert "pty-2" in said, said


def look(host, **headers):
    """The status of the sandbox's own server, by its host name. No name server leads here, so the request says it."""
    try:
        request = urllib.request.Request(ADDRESS, headers={"Host": host, **headers})
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code


def hosts():
    for network, without in (
        (None, 401),
        ({"allow_public_traffic": False}, 401),
        ({"allow_public_traffic": True}, 200),
    ):
        sandbox = Sandbox.create(timeout=120, network=network)
        server = sandbox.commands.run("python3 -m http.server 8001", background=True)
        secret = {"e2b-traffic-access-token": sandbox.traffic_access_token}
        host = sandbox.get_host(8001)
        deadline = time.monotonic() + 30
        while look(host, **secret) != 200:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert look(host) == without
        assert look(sandbox.get_host(8002), **secret) == 502
        server.kill()
        assert look(host, **secret) == 502
        sandbox.kill()


async def later():
    sandbox = await AsyncSandbox.create(timeout=120)
    done = await asyncio.gather(*(sandbox.commands.run(f"sleep 0.2; echo {number}") for number in range(8)))
    assert [each.stdout for each in done] == [f"{number}\n" for number in range(8)]
    handle = await sandbox.commands.run("sleep 30", background=True)
    assert await handle.kill()
    await sandbox.kill()


def main():
    sandbox = Sandbox.create(timeout=300, envs={"OF_THE_SANDBOX": "yes"})
    assert sandbox.commands.run("echo $OF_THE_SANDBOX").stdout == "yes\n"
    commands(sandbox)
    background(sandbox)
    terminal(sandbox)
    sandbox.kill()
    hosts()
    asyncio.run(later())
    print("ok", flush=True)
    os._exit(0)  # of fifteen interpreters that end by themselves one is aborted, with no Python frame left: the SDK's


main()
