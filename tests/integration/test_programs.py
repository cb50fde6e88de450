"""Programs beside a kernel: real processes in its sandbox, with its walls and not one right more."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import pytest_asyncio
from hosted import Bench, Running, bench
from waiting import wait_until

from kernelsvc.errors import BadRequest, KernelsvcError, NotFound, TooLarge
from kernelsvc.kernels import exec_process
from kernelsvc.kernels.exec_process import ExecProcess

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["off", "best-effort"])
async def host(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    async with bench(request.param) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def one(host: Bench) -> AsyncIterator[Running]:
    made = await host.start()
    yield made
    await made.kernel.end()


async def begin(host: Bench, one: Running, *argv: str, **more: Any) -> ExecProcess:
    return await exec_process.start(host.client, one.request.kernel, argv, **{"env": {}, "cwd": "", **more})


async def everything(process: ExecProcess, stream: exec_process.Stream = "stdout") -> str:
    said = b""
    async with asyncio.timeout(20):
        while data := await process.read(stream):
            said += data
    return said.decode()


async def output(host: Bench, one: Running, *argv: str, **more: Any) -> str:
    process = await begin(host, one, *argv, **more)
    try:
        return await everything(process)
    finally:
        process.close()


def shell(line: str) -> Sequence[str]:
    return ["/bin/sh", "-c", line]


async def test_output_status_and_environment(host: Bench, one: Running) -> None:
    process = await begin(host, one, *shell("echo to $WHOM; echo wrong >&2; exit 3"), env={"WHOM": "you"})
    assert process.pid > 0
    assert await everything(process) == "to you\n"
    assert await everything(process, "stderr") == "wrong\n"
    status = await asyncio.wait_for(process.ended, 10)
    assert status is not None
    assert os.waitstatus_to_exitcode(status) == 3
    process.close()


async def test_it_works_in_the_session_s_directory(host: Bench, one: Running) -> None:
    await one.run("open('from-the-cell.txt', 'w').write('hello')")
    assert await output(host, one, "cat", "from-the-cell.txt") == "hello"
    await output(host, one, *shell("echo back > from-the-program.txt"))
    assert await one.run("print(open('from-the-program.txt').read(), end='')") == "back\n"
    assert (await output(host, one, "pwd", cwd="/tmp")).strip() == "/tmp"


async def test_a_kernel_that_computes_and_one_that_is_to_be_copied_do_not_care(host: Bench, one: Running) -> None:
    cell = one.send("import time\nend = time.monotonic() + 30\nwhile time.monotonic() < end: pass")
    assert await output(host, one, "echo", "at once") == "at once\n"
    one.kernel.interrupt()
    await wait_until(lambda: one.sink.idle(cell), what="the interrupt")
    process = await begin(host, one, "sleep", "60")
    survey = await one.run("import os\nprint(open(f'/proc/{os.getpid()}/task/{os.getpid()}/children').read().split())")
    assert survey == "[]\n"
    process.close()


async def test_input_is_given_and_ended(host: Bench, one: Running) -> None:
    process = await begin(host, one, "cat")
    process.write(b"a" * 300_000)
    process.write(b"z")
    process.close_input()
    said = await everything(process)
    assert (len(said), said[-1]) == (300_001, "z")
    with pytest.raises(NotFound):
        process.write(b"more")
    process.close()


async def test_input_that_nobody_reads_is_bounded(host: Bench, one: Running) -> None:
    process = await begin(host, one, "sleep", "60")
    for _ in range(4):
        process.write(b"x" * (1 << 20))
    with pytest.raises(TooLarge):
        process.write(b"x" * (1 << 20))
    process.close()


async def test_without_input_it_is_at_its_end(host: Bench, one: Running) -> None:
    assert await output(host, one, "cat", with_input=False) == ""


async def test_signals_reach_what_it_started_too(host: Bench, one: Running) -> None:
    process = await begin(host, one, *shell("sleep 60 & wait"))
    process.signal(signal.SIGTERM)
    status = await asyncio.wait_for(process.ended, 10)
    assert status is not None
    assert os.WTERMSIG(status) == signal.SIGTERM
    assert await everything(process) == ""  # the sleep held the pipe open
    process.close()


async def test_a_terminal(host: Bench, one: Running) -> None:
    process = await begin(host, one, *shell("stty size; read x; echo got $x"), terminal=(132, 43))
    process.write(b"this\n")
    said = await everything(process, "pty")
    assert "43 132" in said
    assert "got this" in said
    process.close()


async def test_one_that_floods_waits_for_its_reader(host: Bench, one: Running) -> None:
    process = await begin(host, one, "yes")
    taken = 0
    while taken < 5_000_000:
        taken += len(await asyncio.wait_for(process.read("stdout"), 10))
    process.close()


@pytest.mark.parametrize(
    ("argv", "more"),
    [(["no-such-program"], {}), (["/etc/passwd"], {}), (["true"], {"cwd": "/no/such/directory"})],
)
async def test_what_can_t_be_started_is_said(host: Bench, one: Running, argv: list[str], more: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match="can't be started"):
        await begin(host, one, *argv, **more)


async def test_too_many_arguments(host: Bench, one: Running) -> None:
    with pytest.raises(TooLarge, match="Use a file"):
        await begin(host, one, "echo", "x" * 100_000)


async def test_no_such_kernel(host: Bench, one: Running) -> None:
    with pytest.raises(KernelsvcError):
        await exec_process.start(host.client, "k_nobody", ["true"], env={}, cwd="")


async def test_it_ends_with_its_session(host: Bench) -> None:
    made = await host.start()
    process = await begin(host, made, "sleep", "60")
    await made.kernel.end()
    if host.settings.sandbox == "off":
        process.close()  # where nothing holds a session together its server ends its programs
    else:
        await asyncio.wait_for(process.ended, 10)
    process.close()


async def test_whoever_lets_go_ends_it(host: Bench, one: Running) -> None:
    process = await begin(host, one, "sleep", "61.5")
    process.close()

    async def gone() -> bool:
        return "61.5" not in await output(host, one, *shell("cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '"))

    await wait_until(gone, what="the program's end")


class TestWalls:
    """It has what the kernel has."""

    FACTS = (
        "import os, re\n"
        "status = open('/proc/self/status').read()\n"
        "for name in ('CapEff', 'CapBnd', 'NoNewPrivs', 'Seccomp', 'Uid', 'Gid', 'Groups'):\n"
        "    print(*re.search(name + r':(.*)', status)[0].split())\n"
        "for name in ('mnt', 'pid', 'net', 'ipc', 'uts', 'user'): print(os.readlink(f'/proc/self/ns/{name}'))\n"
        "print(sorted(os.listdir('/')))\n"
        "import resource\n"
        "print([resource.getrlimit(each) for each in (resource.RLIMIT_CORE, resource.RLIMIT_NOFILE)])\n"
        "print([line.split(':')[1:] for line in open('/proc/self/cgroup')])\n"
    )

    async def test_the_same_as_the_kernel_s(self, host: Bench, one: Running) -> None:
        said = await output(host, one, "python3", "-c", self.FACTS, env={"PATH": os.environ["PATH"]})
        assert said == await one.run(self.FACTS)
        if host.settings.sandbox != "off":
            assert "NoNewPrivs: 1" in said
            assert "CapEff: 0000000000000000" in said

    async def test_nothing_of_ours_is_open_in_it(self, host: Bench, one: Running) -> None:
        assert (await output(host, one, *shell("cd /proc/$$/fd; echo *"))).split()[:3] == ["0", "1", "2"]
        listed = await output(host, one, "ls", "/proc/self/fd")
        assert listed.split() == ["0", "1", "2", "3"]  # the last is its own look at the directory

    async def test_namespaces_can_t_be_left(self, host: Bench, one: Running) -> None:
        if host.settings.sandbox == "off":
            pytest.skip("no walls: that is what 'off' means")
        said = await output(host, one, *shell("unshare -U true; nsenter -t 1 -m true; ls /proc/1/root; echo $? end"))
        assert said.endswith("end\n")
        assert not said.startswith("0")

    async def test_the_keeper_is_out_of_sight(self, host: Bench, one: Running) -> None:
        if host.settings.sandbox == "off":
            pytest.skip("no walls: that is what 'off' means")
        said = await output(host, one, *shell("cat /proc/[0-9]*/comm"))
        assert len(said.splitlines()) <= 4  # init, kernel, shell, cat


async def test_the_next_host_runs_programs_too(host: Bench, one: Running) -> None:
    before = (await host.hello())["pid"]
    os.kill(before, signal.SIGKILL)

    async def another() -> bool:
        with_host = host.client
        try:
            return bool((await host.hello())["pid"] != before and await with_host.kernels())
        except KernelsvcError:
            return False

    await wait_until(another, what="the next host", deadline=20)
    assert await output(host, one, "echo", "still") == "still\n"
