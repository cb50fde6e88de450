"""Cold kernels beyond the contract: starts that fail, hostile messages, what is kept over a restart, what is freed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import uuid
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from local_processes import LocalProcesses
from waiting import wait_until

from kernelsvc.errors import Internal, KernelDead, NotFound, NotSupported, Timeout
from kernelsvc.kernels.port import KernelMessage, Output, StartRequest, StreamText
from kernelsvc.kernels.zmq.kernel import ZmqKernel
from kernelsvc.kernels.zmq.launcher import KernelspecLauncher, list_kernelspecs
from kernelsvc.model.exit_status import Cause, Exit
from kernelsvc.model.limits import Limits
from kernelsvc.protocol.kernel_messages import ExecuteRequest

IPYKERNEL = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]


class Sink:
    def __init__(self) -> None:
        self.got: list[Output] = []
        self.exits: list[Exit] = []
        self.refusing = False

    def deliver(self, batch: Sequence[Output]) -> None:
        if self.refusing:
            raise OSError(28, "No space left on device")
        self.got += batch

    def exited(self, exit: Exit) -> None:
        self.exits.append(exit)

    def text(self, name: str = "stdout") -> str:
        return "".join(o.text for o in self.got if isinstance(o, StreamText) and o.name == name)

    def reply(self, cell: str) -> dict[str, Any] | None:
        found = [
            o for o in self.got if isinstance(o, KernelMessage) and o.msg_type == "execute_reply" and o.parent == cell
        ]
        return found[0].content if found else None


class Lab:
    """A runtime directory, kernelspecs of its own, and everything started from them."""

    def __init__(self, runtime: Path, workdir: Path) -> None:
        self.runtime, self.workdir = runtime, workdir
        self.processes = LocalProcesses()
        self.sink = Sink()
        self.kernels: list[ZmqKernel] = []

    def spec(self, name: str, argv: list[str], **more: Any) -> str:
        place = self.runtime / "specs" / name
        place.mkdir(parents=True)
        spec = {"argv": argv, "display_name": name, "language": "python"} | more
        (place / "kernel.json").write_text(json.dumps(spec))
        return name

    def launcher(self, **options: Any) -> KernelspecLauncher:
        dirs = [str(self.runtime / "specs")]
        return KernelspecLauncher(self.processes, self.runtime, kernel_dirs=dirs, **options)

    def request(self, template: str, kernel: str = "", **more: Any) -> StartRequest:
        kernel = kernel or uuid.uuid4().hex
        values = {"session": "s", "kernel": kernel, "workdir": str(self.workdir), "limits": Limits()} | more
        return StartRequest(template=template, **values)

    async def start(self, template: str = "python3", **options: Any) -> ZmqKernel:
        env = options.pop("env", {})
        kernel = await self.launcher(**options).start(self.request(template, env=env), self.sink)
        self.kernels.append(kernel)
        return kernel

    async def run(self, kernel: ZmqKernel, code: str) -> dict[str, Any]:
        cell = uuid.uuid4().hex
        kernel.execute(ExecuteRequest(cell, code))
        await wait_until(lambda: self.sink.reply(cell) or self.sink.exits, what="the cell's end")
        return self.sink.reply(cell) or {}

    def left(self) -> list[str]:
        return [p.name for p in self.runtime.iterdir() if p.name != "specs"]

    async def close(self) -> None:
        for kernel in self.kernels:
            await kernel.end()


@pytest.fixture
async def lab(short_tmp: Path, tmp_path: Path) -> AsyncIterator[Lab]:
    runtime = short_tmp / uuid.uuid4().hex[:6]
    runtime.mkdir()
    made = Lab(runtime, tmp_path)
    yield made
    await made.close()
    assert made.left() == []


# --- starts ------------------------------------------------------------------------------------


async def test_kernelspecs_are_listed(lab: Lab) -> None:
    assert "python3" in list_kernelspecs()
    lab.spec("mine", IPYKERNEL, language="snake")
    assert "mine" in lab.launcher().list_kernelspecs()
    assert lab.launcher().language("mine") == "snake"
    assert lab.launcher().languages()["mine"] == "snake"


@pytest.mark.parametrize("name", ["nosuch", "../x", "", "a b", "x" * 300])
async def test_an_unknown_kernelspec_is_not_found(lab: Lab, name: str) -> None:
    with pytest.raises(NotFound, match="python3"):
        await lab.start(name)


async def test_a_program_that_is_missing(lab: Lab) -> None:
    with pytest.raises(NotSupported, match="no-such-program"):
        await lab.start(lab.spec("missing", ["no-such-program", "{connection_file}"]))


async def test_a_program_that_can_t_be_run(lab: Lab) -> None:
    program = lab.runtime / "specs" / "program"
    lab.spec("broken", [str(program)])
    program.write_bytes(b"\0\0\0\0")
    program.chmod(0o755)
    with pytest.raises(Internal, match="kernelspec"):
        await lab.start("broken")


async def test_a_provisioner_that_is_not_installed(lab: Lab) -> None:
    other = {"kernel_provisioner": {"provisioner_name": "yarn"}}
    with pytest.raises(NotFound, match="remote"):
        await lab.start(lab.spec("remote", IPYKERNEL, metadata=other))


async def test_a_kernel_that_ends_at_once_says_why(lab: Lab) -> None:
    argv = [sys.executable, "-c", "import sys; print('a\\nboom', file=sys.stderr); sys.exit(3)", "{connection_file}"]
    with pytest.raises(Internal, match=r"status 3.*boom"):
        await lab.start(lab.spec("dies", argv))


async def test_a_kernel_that_never_answers_is_ended(lab: Lab) -> None:
    mute = lab.spec("mute", [sys.executable, "-c", "import time; time.sleep(100)", "{connection_file}"])
    before = set(psutil.Process().children())  # other tests' servers
    with pytest.raises(Timeout, match="not ready"):
        await lab.start(mute, start_seconds=0.5)
    assert not set(psutil.Process().children()) - before


async def test_a_start_that_is_cancelled_ends_what_it_started(lab: Lab) -> None:
    mute = lab.spec("mute", [sys.executable, "-c", "import time; time.sleep(100)", "{connection_file}"])
    before = set(psutil.Process().children())  # other tests' servers
    task = asyncio.ensure_future(lab.start(mute))
    await wait_until(lambda: set(psutil.Process().children()) - before, what="the process")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await wait_until(lambda: not set(psutil.Process().children()) - before, what="its end")


async def test_a_runtime_directory_whose_path_is_too_long(lab: Lab) -> None:
    launcher = KernelspecLauncher(lab.processes, lab.runtime / ("x" * 100))
    with pytest.raises(Internal, match="shorter"):
        await launcher.start(lab.request("python3"), lab.sink)


async def test_several_start_at_once(lab: Lab) -> None:
    kernels = await asyncio.gather(*[lab.start() for _ in range(4)])
    assert len({kernel.info.pid for kernel in kernels}) == 4


async def test_its_environment_is_its_own(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNELSVC_SECRET", "s3cret")
    monkeypatch.setenv("JPY_PARENT_PID", "1")
    spec = lab.spec("own", IPYKERNEL, env={"FROM_SPEC": "${PATH}", "BOTH": "spec", "JPY_PARENT_PID": "1"})
    kernel = await lab.start(spec, env={"BOTH": "request", "MINE": "1", "JPY_PARENT_PID": "1"})
    await lab.run(kernel, "import json, os; print(json.dumps(dict(os.environ)))")
    env = json.loads(lab.sink.text())
    assert env["FROM_SPEC"] == os.environ["PATH"]
    assert (env["BOTH"], env["MINE"]) == ("request", "1")
    assert env["HOME"] == str(lab.workdir)
    assert not {"KERNELSVC_SECRET", "JPY_PARENT_PID"} & set(env)
    await lab.run(kernel, "print(os.getcwd())")
    assert lab.sink.text().endswith(f"{lab.workdir}\n")
    assert os.listdir(lab.workdir) == []


# --- cells ----------------------------------------------------------------------------------------


async def test_an_interrupt_by_message(lab: Lab) -> None:
    kernel = await lab.start(lab.spec("polite", IPYKERNEL, interrupt_mode="message"))
    kernel.execute(ExecuteRequest("c", "print('on'); import time; time.sleep(60)"))
    await wait_until(lambda: "on" in lab.sink.text())
    kernel.interrupt()
    await wait_until(lambda: lab.sink.reply("c"))
    assert (lab.sink.reply("c") or {})["ename"] == "KeyboardInterrupt"


async def test_a_request_that_an_interrupt_swallows_still_ends(lab: Lab) -> None:
    kernel = await lab.start()
    # What ipykernel does when SIGINT strikes outside of the user's code: no reply, no idle.
    code = "k = get_ipython().kernel\nasync def forget(*a): raise KeyboardInterrupt\n"
    code += "k.shell_handlers['execute_request'], kept = forget, k.shell_handlers['execute_request']"
    await lab.run(kernel, code)
    kernel.execute(ExecuteRequest("c", "1"))
    kernel.interrupt()
    await wait_until(lambda: lab.sink.reply("c"))
    assert (lab.sink.reply("c") or {})["ename"] == "KeyboardInterrupt"
    assert not lab.sink.exits


async def test_output_below_python_comes_once(lab: Lab) -> None:
    kernel = await lab.start()
    await lab.run(
        kernel,
        "import os, subprocess, sys\n"
        "os.write(1, b'one\\n'); os.system('echo two')\n"
        "subprocess.run(['echo', 'three'], stdout=sys.stdout)\n"
        "os.write(2, b'four\\xff\\n')",
    )
    assert lab.sink.text() == "one\ntwo\nthree\n"
    assert lab.sink.text("stderr") == "four\ufffd\n"


async def test_a_refusing_sink_stops_the_kernel(lab: Lab) -> None:
    kernel = await lab.start()
    lab.sink.refusing = True
    kernel.execute(ExecuteRequest("c", "print('x')"))
    process = psutil.Process(kernel.info.pid)
    await wait_until(lambda: process.status() == psutil.STATUS_STOPPED, what="the stop")
    lab.sink.refusing = False
    kernel.resume()
    await wait_until(lambda: lab.sink.reply("c"))
    assert process.status() != psutil.STATUS_STOPPED
    assert lab.sink.text() == "x\n"


# --- the kernel as attacker -------------------------------------------------------------------------

FORGED = "k = get_ipython().kernel; k.iopub_socket.send_multipart({parts})"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (FORGED.format(parts="[b'<IDS|MSG>', b'', b'{}', b'{}', b'{}', b'{}']"), "signature"),
        (FORGED.format(parts="[b'x'] * 5000"), "parts"),
        ("print('x' * 3_000_000)", "above"),
        (
            "get_ipython().kernel.shell_stream.socket.close(linger=0)\nimport threading; threading.Event().wait()",
            "closed",
        ),
    ],
    ids=["forged", "parts", "huge", "closed"],
)
async def test_a_kernel_that_breaks_the_protocol_is_ended(lab: Lab, code: str, reason: str) -> None:
    kernel = await lab.start(max_message_bytes=1_000_000)
    kernel.execute(ExecuteRequest("c", code))
    await wait_until(lambda: lab.sink.exits, what="its end")
    (ended,) = lab.sink.exits
    assert ended.cause is Cause.PROTOCOL
    assert reason in ended.message
    assert not psutil.pid_exists(kernel.info.pid)


@pytest.mark.parametrize("code", ["exit()", "quit()", "exit", "get_ipython().ask_exit()"])
async def test_a_cell_that_exits_ends_with_its_kernel_and_not_before(lab: Lab, code: str) -> None:
    kernel = await lab.start()
    if "(" in code:
        kernel.execute(
            ExecuteRequest("c", f"import atexit, time; atexit.register(time.sleep, 1); print('last words'); {code}")
        )
    else:
        kernel.execute(ExecuteRequest("c", code))
    await wait_until(lambda: lab.sink.exits, what="its end")
    (ended,) = lab.sink.exits
    assert (ended.cause, ended.exit_code) == (Cause.EXITED, 0)
    assert "The cell asked for the end of the kernel" in ended.message
    assert lab.sink.reply("c") is None
    assert ("last words" in lab.sink.text()) == ("(" in code)
    assert not psutil.pid_exists(kernel.info.pid)


async def test_a_kernel_that_stays_after_an_exit_is_ended(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernelsvc.kernels.zmq.kernel.EXIT_CELL_SECONDS", 0.2)
    kernel = await lab.start()
    kernel.execute(ExecuteRequest("c", "import atexit, time; atexit.register(time.sleep, 600); exit()"))
    await wait_until(lambda: lab.sink.exits, what="its end")
    assert (lab.sink.exits[0].signal, lab.sink.reply("c")) == (signal.SIGKILL, None)
    assert "The cell asked for the end of the kernel" in lab.sink.exits[0].message


@pytest.mark.parametrize("code", ["exit(keep_kernel=True)", "raise SystemExit(3)"])
async def test_an_exit_that_keeps_the_kernel_is_an_end_like_any_other(lab: Lab, code: str) -> None:
    kernel = await lab.start()
    assert await lab.run(kernel, code)
    assert (await lab.run(kernel, "1"))["status"] == "ok"
    assert not lab.sink.exits


async def test_a_flood_does_not_fill_the_server(lab: Lab) -> None:
    kernel = await lab.start()
    before = psutil.Process().memory_info().rss
    peak = before

    class Counting(Sink):
        size = 0

        def deliver(self, batch: Sequence[Output]) -> None:
            nonlocal peak
            self.size += sum(len(o.text) for o in batch if isinstance(o, StreamText))
            self.got += [o for o in batch if isinstance(o, KernelMessage)]
            peak = max(peak, psutil.Process().memory_info().rss)

    lab.sink = kernel._sink = Counting()
    await lab.run(kernel, "for i in range(300): print('x' * 1_000_000, flush=True)")
    assert lab.sink.size == 300 * 1_000_001
    assert peak - before < 200_000_000


async def test_output_that_waits_in_the_kernel_is_not_dropped(lab: Lab) -> None:
    kernel = await lab.start()
    await lab.run(kernel, "print(get_ipython().kernel.iopub_thread.socket.sndhwm)")
    assert lab.sink.text() == "0\n"


async def test_its_links_are_not_followed_when_its_directory_is_removed(lab: Lab, tmp_path: Path) -> None:
    kernel = await lab.start()
    treasure = tmp_path / "treasure"
    treasure.mkdir()
    (treasure / "gold").write_text("x")
    await lab.run(kernel, f"import os; os.symlink({str(treasure)!r}, os.environ['IPYTHONDIR'] + '/link')")
    await kernel.end()
    assert (treasure / "gold").exists()


# --- a server that comes back ----------------------------------------------------------------------


#: Puts a link to another socket in place of one of the kernel's own.
LINKED = """
import json, os
from ipykernel.connect import get_connection_file
about = json.load(open(get_connection_file()))
path = f"{{about['ip']}}-{{about['iopub_port']}}"
os.unlink(path); os.symlink({other!r}, path)
"""


async def adopt(lab: Lab, kernel: ZmqKernel) -> tuple[ZmqKernel, Sink]:
    lab.sink = Sink()
    again = await lab.launcher().adopt(lab.request("python3", kernel.info.id), lab.sink, last_frame=0)
    assert again is not None
    lab.kernels.append(again)
    return again, lab.sink


async def test_raw_output_waits_for_the_next_server(lab: Lab) -> None:
    kernel = await lab.start()
    go = lab.workdir / "go"
    kernel.execute(
        ExecuteRequest(
            "c", f"import os, time\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)\nos.system('echo kept')"
        )
    )
    kernel.detach()
    go.touch()
    again, sink = await adopt(lab, kernel)
    await wait_until(lambda: "kept\n" in sink.text(), what="what was written meanwhile")
    assert "lost" in sink.text("stderr")
    assert again.info == kernel.info


async def test_an_adopted_kernel_that_was_stopped_goes_on(lab: Lab) -> None:
    kernel = await lab.start()
    lab.sink.refusing = True
    kernel.execute(ExecuteRequest("c", "print('x')"))
    process = psutil.Process(kernel.info.pid)
    await wait_until(lambda: process.status() == psutil.STATUS_STOPPED)
    kernel.detach()
    again, sink = await adopt(lab, kernel)
    await wait_until(lambda: sink.reply("c"))
    assert (await lab.run(again, "1"))["status"] == "ok"


async def test_an_end_that_was_missed_is_told_as_such(lab: Lab) -> None:
    kernel = await lab.start()
    done = lab.workdir / "done"
    kernel.execute(ExecuteRequest("c", f"x = 5; open({str(done)!r}, 'w').close()"))
    kernel.detach()
    await wait_until(done.exists)
    again, sink = await adopt(lab, kernel)
    await wait_until(lambda: sink.reply("c"), what="an end")
    reply = sink.reply("c") or {}
    # It may just have been heard, if the cell's last steps fell after the adoption.
    assert reply["status"] == "ok" or reply["ename"] == "OutcomeLost"
    assert (await lab.run(again, "assert x == 5"))["status"] == "ok"


async def test_an_adopting_server_connects_to_no_other_socket_of_the_machine(lab: Lab, short_tmp: Path) -> None:
    kernel = await lab.start()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(short_tmp / "other"))
        listener.listen()
        listener.setblocking(False)
        await lab.run(kernel, LINKED.format(other=str(short_tmp / "other")))
        kernel.detach()
        _, sink = await adopt(lab, kernel)
        await wait_until(lambda: sink.exits, what="the kernel's end")
        assert sink.exits[0].cause is Cause.PROTOCOL
        assert "not a socket" in sink.exits[0].message
        with pytest.raises(BlockingIOError):
            listener.accept()


async def test_a_kernel_without_its_record_is_ended(lab: Lab) -> None:
    kernel = await lab.start()
    kernel.detach()
    (record,) = lab.runtime.glob("c*/kernel.json")
    record.unlink()
    assert await lab.launcher().adopt(lab.request("python3", kernel.info.id), lab.sink, last_frame=0) is None
    await wait_until(lambda: not psutil.pid_exists(kernel.info.pid))


async def test_the_record_is_private(lab: Lab) -> None:
    await lab.start()
    (record,) = lab.runtime.glob("c*/kernel.json")
    assert record.stat().st_mode & 0o777 == 0o600
    assert record.parent.stat().st_mode & 0o777 == 0o700


# --- what is freed ---------------------------------------------------------------------------------


async def test_an_ended_kernel_leaves_no_descriptor_and_no_file(lab: Lab) -> None:
    await (await lab.start()).end()  # what is made once for all kernels is made now
    before = set(os.listdir("/proc/self/fd"))
    kernel = await lab.start()
    await lab.run(kernel, "1")
    await kernel.end()
    await wait_until(lambda: set(os.listdir("/proc/self/fd")) == before, what="closed descriptors")


async def test_end_takes_those_who_left_the_process_group(lab: Lab) -> None:
    kernel = await lab.start()
    await lab.run(
        kernel, "import subprocess; p = subprocess.Popen(['sleep', '60'], start_new_session=True); print(p.pid)"
    )
    child = psutil.Process(int(lab.sink.text()))
    await kernel.end()
    await wait_until(lambda: not child.is_running(), what="its end")


async def test_a_child_that_keeps_the_connections_does_not_hold_up_the_end(lab: Lab) -> None:
    kernel = await lab.start()
    kernel.execute(
        ExecuteRequest(
            "c", "import os, signal, time\nif os.fork() == 0: time.sleep(60)\nos.kill(os.getpid(), signal.SIGKILL)"
        )
    )
    await wait_until(lambda: lab.sink.exits, deadline=5, what="its end")
    assert lab.sink.exits[0].signal == signal.SIGKILL


async def test_it_can_t_be_forked(lab: Lab) -> None:
    kernel = await lab.start()
    assert not kernel.forkable
    with pytest.raises(NotSupported):
        await kernel.fork(lab.request("python3"), mode="branch")
    with pytest.raises(KernelDead):
        await lab.launcher().resume_copy(lab.request("python3"), lab.sink)
    await lab.launcher().discard("anything")


ENDLESS = """
import json, os, socket
from ipykernel.connect import get_connection_file

about = json.load(open(get_connection_file()))
ours = f"{about['ip']}-{about['iopub_port']}"
part = b"\\x03" + (1 << 20).to_bytes(8, "big") + bytes(1 << 20)  # ZMTP: a large frame, and more to come
for fd in sorted(map(int, os.listdir("/proc/self/fd"))):
    try:
        connection = socket.socket(fileno=os.dup(fd))
        connection.getpeername()
    except OSError:
        continue
    if connection.getsockname() == ours:
        connection.setblocking(True)
        while True:
            connection.sendall(part)
"""


async def test_a_message_that_never_ends_costs_no_memory_and_ends_the_kernel(lab: Lab) -> None:
    kernel = await lab.start(max_message_bytes=8 << 20)
    await lab.run(kernel, "1")
    before = psutil.Process().memory_info().rss
    kernel.execute(ExecuteRequest("c", ENDLESS))
    most = before
    async with asyncio.timeout(30):
        while not lab.sink.exits:
            most = max(most, psutil.Process().memory_info().rss)
            await asyncio.sleep(0.01)
    assert lab.sink.exits[0].cause is Cause.PROTOCOL
    assert f"a message above {8 << 20} bytes" in lab.sink.exits[0].message
    assert most - before < 64 << 20
