"""A real kernel host: what it starts, what it survives, what it leaves behind."""

import asyncio
import os
import signal
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import psutil
import pytest

from kernelsvc.errors import Internal, KernelDead, KernelsvcError, NotFound
from kernelsvc.kernels.forked import ForkedLauncher
from kernelsvc.kernels.host import HostSettings
from kernelsvc.kernels.host_client import HostClient
from kernelsvc.kernels.port import Cause, Message, StartRequest, Text
from kernelsvc.kernels.templates import TemplateSettings
from kernelsvc.model.limits import Limits

DEADLINE = 30.0
pytestmark = pytest.mark.timeout(120)


class Lab:
    """A host, a client, kernels; everything is ended at the end."""

    def __init__(self, path: Path, policy: str, adoption_seconds: float = 60.0) -> None:
        self.path = path
        self.settings = HostSettings(
            runtime_dir=str(path / "run"),
            templates={"t": TemplateSettings(preload=["json"])},
            sandbox=policy,
            adoption_seconds=adoption_seconds,
        )
        self.host = HostClient(self.settings)
        self.launcher = ForkedLauncher(self.host, path / "run")
        self.count = 0

    def request(self, **changes) -> StartRequest:
        self.count += 1
        workdir = self.path / f"w{self.count}"
        workdir.mkdir(mode=0o755)
        fields = {"session": f"s{self.count}", "kernel": f"k_{self.count:08x}", "template": "t", "limits": Limits()}
        return StartRequest(**{**fields, "workdir": str(workdir), **changes})

    def host_pid(self) -> int:
        return self.host._process.pid

    def files(self) -> set[str]:
        return {n for n in os.listdir(self.path / "run") if n.startswith("k_")}


class Ear:
    def __init__(self) -> None:
        self.heard, self.exit, self._event = [], None, asyncio.Event()

    def deliver(self, batch) -> None:
        self.heard += batch
        self._event.set()

    def exited(self, exit) -> None:
        self.exit = exit
        self._event.set()

    async def until(self, condition):
        async with asyncio.timeout(DEADLINE):
            while not condition(self):
                self._event.clear()
                await self._event.wait()

    def text(self) -> str:
        return "".join(m.text for m in self.heard if isinstance(m, Text))

    def idle(self, cell: str):
        return any(
            isinstance(m, Message)
            and m.parent == cell
            and m.msg_type == "status"
            and m.content.get("execution_state") == "idle"
            for m in self.heard
        )


@pytest.fixture(params=["off", "required"])
def policy(request):
    if request.param == "required" and os.geteuid() != 0:
        pytest.skip("full confinement of a kernel host is tried here as root only")
    return request.param


@asynccontextmanager
async def working(lab):
    await lab.host.start()
    try:
        yield lab
    finally:
        await lab.host.shutdown(end_kernels=True)
        await lab.host.close()


@pytest.fixture
async def lab(short_tmp, policy, request):
    path = short_tmp / f"h{abs(hash(request.node.nodeid)) % 10**6}"
    path.mkdir(mode=0o755)
    async with working(Lab(path, policy)) as made:
        yield made


async def run(kernel, ear, code, cell):
    kernel.execute(cell, code)
    await ear.until(lambda e: e.idle(cell))
    return ear.text()


async def until(condition):
    async with asyncio.timeout(DEADLINE):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_kernel_and_its_end(lab):
    ear = Ear()
    kernel = await lab.launcher.start(lab.request(env={"SECRET_OF": "one"}), ear)
    assert await run(kernel, ear, "import os; print(os.environ['SECRET_OF'])", "a") == "one\n"
    assert psutil.pid_exists(kernel.info.pid)
    await kernel.end()
    assert not psutil.pid_exists(kernel.info.pid)
    assert lab.files() == set()


async def test_one_sessions_environment_is_not_in_the_next_ones_memory(lab):
    first, second = Ear(), Ear()
    one = await lab.launcher.start(lab.request(env={"TOKEN": "xyzzy" + "plugh"}), first)
    two = await lab.launcher.start(lab.request(), second)
    code = (
        "import os, re\nneedle = ('xyz' + 'zyplugh').encode()\nfound = 0\n"
        "for line in open('/proc/self/maps'):\n"
        "    m = re.match(r'([0-9a-f]+)-([0-9a-f]+) rw', line)\n"
        "    if m and '[v' not in line:\n"
        "        a, b = (int(x, 16) for x in m.groups())\n"
        "        with open('/proc/self/mem', 'rb', 0) as f:\n"
        "            f.seek(a)\n"
        "            try: found += f.read(b - a).count(needle)\n"
        "            except OSError: pass\n"
        "print('TOKEN' in os.environ, found <= 2)"
    )
    assert await run(two, second, code, "a") == "False True\n"
    await asyncio.gather(one.end(), two.end())


@pytest.mark.parametrize(
    ("code", "cause", "words"),
    [
        ("import os; os.kill(os.getpid(), 11)", Cause.SIGNALLED, "segmentation fault"),
        ("import os; os._exit(7)", Cause.EXITED, "status 7"),
        ("import os; os.abort()", Cause.SIGNALLED, "abort"),
    ],
)
async def test_the_true_cause_after_all_output(lab, code, cause, words):
    ear = Ear()
    kernel = await lab.launcher.start(lab.request(), ear)
    kernel.execute("a", f"print('last words')\n{code}")
    await ear.until(lambda e: e.exit)
    assert ear.exit.cause is cause
    assert words in ear.exit.message
    assert "last words" in ear.text()
    await kernel.end()


async def test_nothing_that_a_cell_started_outlives_its_kernel(lab):
    ear = Ear()
    kernel = await lab.launcher.start(lab.request(), ear)
    marker = f"sleep {7000 + os.getpid() % 900}.5"
    code = f"import subprocess\nfor _ in range(3):\n    subprocess.Popen('setsid {marker} & disown', shell=True)\n"

    def left():
        return [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == marker.split()]

    await run(kernel, ear, code, "a")
    await until(lambda: len(left()) == 3)
    await kernel.end()
    await until(lambda: not left())


async def test_a_template_that_dies_is_started_again(lab):
    first, second = Ear(), Ear()
    one = await lab.launcher.start(lab.request(), first)
    host = psutil.Process(lab.host_pid())
    template = next(p for p in host.children() if "kernelsvc.guest.template" in " ".join(p.cmdline()))
    template.kill()
    two = None
    async with asyncio.timeout(DEADLINE):
        while two is None:
            try:
                two = await lab.launcher.start(lab.request(), second)
            except Internal:
                await asyncio.sleep(0.02)
    assert await run(two, second, "print(2)", "a") == "2\n"
    assert await run(one, first, "print(1)", "a") == "1\n"
    await asyncio.gather(one.end(), two.end())


async def test_kernels_outlive_their_host_and_the_next_one_finds_them(lab):
    ear = Ear()
    kernel = await lab.launcher.start(lab.request(), ear)
    await run(kernel, ear, "x = 5", "a")
    old = lab.host_pid()
    os.kill(old, signal.SIGKILL)
    assert await run(kernel, ear, "print(x)", "b") == "5\n"
    async with asyncio.timeout(DEADLINE):
        while True:
            try:
                found = await lab.host.find(kernel.info.id)
                break
            except KernelsvcError:
                await asyncio.sleep(0.02)
    os.close(found.pidfd)
    assert lab.host_pid() != old
    assert found.pid == kernel.info.pid
    await kernel.end()
    await until(lambda: not psutil.pid_exists(found.pid))
    assert lab.files() == set()


async def test_copies_wake_and_end_one_by_one(lab):
    ear, woken = Ear(), Ear()
    kernel = await lab.launcher.start(lab.request(), ear)
    await run(kernel, ear, "x = 1", "a")
    copy = msgspec.structs.replace(lab.request(), kernel="k_copy")
    forked = await kernel.fork(copy, mode="checkpoint")
    assert forked.cost_ms > 0
    await run(kernel, ear, "x = 2", "b")
    await kernel.end()
    again = await lab.launcher.wake(copy, woken)
    assert await run(again, woken, "print(x)", "c") == "1\n"
    again.execute("d", "import os; os._exit(3)")
    await woken.until(lambda e: e.exit)
    assert woken.exit.exit_code == 3
    await again.end()
    assert lab.files() == set()
    with pytest.raises(KernelDead):
        await lab.launcher.wake(copy, Ear())


async def test_adoption_goes_on_where_the_log_was(lab):
    first, second = Ear(), Ear()
    request = lab.request()
    kernel = await lab.launcher.start(request, first)
    await run(kernel, first, "print('one')", "a")
    held = max(m.frame for m in first.heard if m.frame)
    kernel.execute("b", "import time\nfor i in range(5):\n    print(i, flush=True); time.sleep(0.05)")
    await first.until(lambda e: "0\n" in e.text())
    held = max(m.frame for m in first.heard if m.frame)
    seen = first.text()
    kernel.detach()
    again = await lab.launcher.adopt(request, second, last_frame=held)
    await second.until(lambda e: e.idle("b"))
    assert seen + second.text() == "one\n0\n1\n2\n3\n4\n"
    await again.end()
    assert await lab.launcher.adopt(request, Ear(), last_frame=0) is None


async def test_an_unknown_template_and_an_unknown_kernel(lab):
    with pytest.raises(NotFound):
        await lab.launcher.start(lab.request(template="nope"), Ear())
    with pytest.raises(NotFound):
        await lab.host.find("k_nothing")
    assert lab.files() == set()


async def test_nobody_left_ends_everything(short_tmp):
    path = short_tmp / "grace"
    path.mkdir(mode=0o755)
    lab = Lab(path, "off", adoption_seconds=0.3)
    await lab.host.start()
    kernel = await lab.launcher.start(lab.request(), Ear())
    pid, host = kernel.info.pid, lab.host_pid()
    kernel.detach()
    await lab.host.close()
    await until(lambda: not psutil.pid_exists(pid))
    await until(lambda: lab.host._process.poll() is not None)
    assert not psutil.pid_exists(host)


async def test_many_spawns_leave_no_descriptor_and_no_process(lab):
    host = psutil.Process(lab.host_pid())
    kernel = await lab.launcher.start(lab.request(), Ear())
    await kernel.end()

    def held() -> tuple[int, int, int]:
        return host.num_fds(), len(host.children(recursive=True)), len(os.listdir("/proc/self/fd"))

    before = held()
    for _ in range(5):
        kernels = await asyncio.gather(*(lab.launcher.start(lab.request(), Ear()) for _ in range(6)))
        await asyncio.gather(*(kernel.end() for kernel in kernels))
    await until(lambda: all(now <= was for now, was in zip(held(), before, strict=True)))
    assert lab.files() == set()
