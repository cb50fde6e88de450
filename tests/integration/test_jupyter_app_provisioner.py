"""A kernelspec that forks, in applications that know nothing of us: jupyter_client and nbclient, with no server."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from waiting import wait_until

from kernelsvc.errors import Internal
from kernelsvc.jupyter_app.provisioner import background
from kernelsvc.jupyter_app.user_host import (
    TEMPLATE,
    Environment,
    connect,
    install_kernelspec,
    installed,
    make_private,
)

PRELOAD = ["numpy"]
ENVIRONMENT = Environment(python=sys.executable, preload=tuple(PRELOAD))

pytestmark = pytest.mark.skipif(
    not any(e.name == "kernelsvc-fork" for e in entry_points(group="jupyter_client.kernel_provisioners")),
    reason="installed before kernelsvc had this entry point; install it again",
)


@pytest.fixture
async def specs(short_tmp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[KernelSpecManager]:
    """The kernelspec, and a runtime directory whose host ends with the test."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_tmp / "xdg"))
    (short_tmp / "xdg").mkdir(mode=0o700, exist_ok=True)
    target = install_kernelspec("forked", str(tmp_path), PRELOAD)
    yield KernelSpecManager(kernel_dirs=[str(target.parent)])
    launcher = background().launchers.pop(ENVIRONMENT, None)
    if launcher is not None:
        await background().run(_shut_down(launcher))


async def _shut_down(launcher: asyncio.Task[Any]) -> None:
    await (await launcher).host.shutdown(end_kernels=True)


async def test_it_starts_runs_interrupts_restarts_and_ends(specs: KernelSpecManager, tmp_path: Path) -> None:
    manager = AsyncKernelManager(kernel_name="forked", kernel_spec_manager=specs)
    assert manager.kernel_spec is not None
    await manager.start_kernel(cwd=str(tmp_path), env={"MINE": "yes", "PATH": "/usr/bin:/bin"})
    client = manager.client()
    client.start_channels()
    try:
        await client.wait_for_ready(timeout=20)
        texts: list[str] = []

        def hear(message: dict[str, object]) -> None:
            content = message["content"]
            assert isinstance(content, dict)
            texts.append(str(content.get("text", "")))

        code = "import os, sys; print('numpy' in sys.modules, os.environ['MINE'], os.getcwd(), os.getpid())"
        reply = await client.execute_interactive(code, timeout=10, output_hook=hear)
        assert reply["content"]["status"] == "ok"
        numpy, mine, cwd, pid = "".join(texts).split()
        assert (numpy, mine, cwd) == ("True", "yes", str(tmp_path))

        cell = asyncio.ensure_future(
            client.execute_interactive("import time; print('on', flush=True); time.sleep(60)", output_hook=hear)
        )
        await wait_until(lambda: "on" in "".join(texts))
        await manager.interrupt_kernel()
        assert (await asyncio.wait_for(cell, 10))["content"]["ename"] == "KeyboardInterrupt"

        before = time.perf_counter()
        await manager.restart_kernel(now=True)
        await client.wait_for_ready(timeout=10)
        assert time.perf_counter() - before < 5
        await wait_until(lambda: not psutil.pid_exists(int(pid)), what="the first kernel's end")
        reply = await client.execute_interactive("1 / 0", timeout=10, output_hook=hear)
        assert reply["content"]["ename"] == "ZeroDivisionError"
    finally:
        client.stop_channels()
        await manager.shutdown_kernel()
        manager.context.destroy(linger=0)
    assert not await manager.is_alive()


async def test_a_kernel_that_dies_is_seen_to_be_dead(specs: KernelSpecManager) -> None:
    manager = AsyncKernelManager(kernel_name="forked", kernel_spec_manager=specs)
    await manager.start_kernel()
    client = manager.client()
    client.start_channels()
    await client.wait_for_ready(timeout=20)
    client.execute("import os; os._exit(3)")

    async def dead() -> bool:
        return not await manager.is_alive()

    await wait_until(dead)
    assert await manager.provisioner.wait() == 3
    client.stop_channels()
    await manager.cleanup_resources()
    manager.context.destroy(linger=0)


async def test_an_exit_keeps_the_kernel_and_a_shutdown_request_ends_it(specs: KernelSpecManager) -> None:
    manager = AsyncKernelManager(kernel_name="forked", kernel_spec_manager=specs)
    await manager.start_kernel()
    client = manager.client()
    client.start_channels()
    await client.wait_for_ready(timeout=20)
    left = await client.execute_interactive("x = 41; exit()", timeout=10, output_hook=lambda message: None)
    assert (left["content"]["ename"], left["content"]["payload"]) == ("SystemExit", [])
    asked = {"user_expressions": {"x": "x"}, "timeout": 10}
    after = await client.execute_interactive("", **asked)
    assert after["content"]["user_expressions"]["x"]["data"] == {"text/plain": "41"}
    await client.shutdown(reply=True, timeout=10)

    async def dead() -> bool:
        return not await manager.is_alive()

    await wait_until(dead)
    client.stop_channels()
    await manager.cleanup_resources()
    manager.context.destroy(linger=0)


async def test_the_kernels_of_an_application_that_was_killed_end(specs: KernelSpecManager) -> None:
    code = (
        "import sys, time\n"
        "from jupyter_client.kernelspec import KernelSpecManager\n"
        "from jupyter_client.manager import KernelManager\n"
        "specs = KernelSpecManager(kernel_dirs=[sys.argv[1]])\n"
        "manager = KernelManager(kernel_name='forked', kernel_spec_manager=specs)\n"
        "manager.start_kernel()\n"
        "print(manager.provisioner._served.kernel.info.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    argv = [sys.executable, "-W", "ignore", "-c", code, specs.kernel_dirs[0]]
    application = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
    assert application.stdout is not None
    pid = int(await asyncio.wait_for(application.stdout.readline(), 60))
    assert psutil.pid_exists(pid)
    application.kill()
    await application.wait()
    await wait_until(lambda: not psutil.pid_exists(pid), deadline=30)
    # The host stays, with its modules imported, for the next application. The fixture ends it.
    await background().run(background().launcher(ENVIRONMENT, connect))


async def test_nbclient_runs_a_notebook_with_it(specs: KernelSpecManager, tmp_path: Path) -> None:
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [
        nbformat.v4.new_code_cell("import numpy as np\nprint('sum', np.arange(5).sum())"),
        nbformat.v4.new_code_cell("from IPython.display import HTML; HTML('<b>x</b>')"),
    ]
    manager = AsyncKernelManager(kernel_name="forked", kernel_spec_manager=specs)
    client = NotebookClient(notebook, km=manager, timeout=20, resources={"metadata": {"path": str(tmp_path)}})
    await client.async_execute(cleanup_kc=True)
    assert notebook.cells[0].outputs[0].text == "sum 10\n"
    assert notebook.cells[1].outputs[0].data["text/html"] == "<b>x</b>"
    await manager.cleanup_resources()
    manager.context.destroy(linger=0)


async def test_a_directory_of_somebody_else_s_is_refused(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_tmp / "open"))
    (short_tmp / "open" / "kernelsvc").mkdir(parents=True)
    (short_tmp / "open" / "kernelsvc").chmod(0o777)
    with pytest.raises(Internal, match="not yours alone"):
        await connect(ENVIRONMENT)
    with pytest.raises(Internal, match="can't be created"):
        make_private(short_tmp / "no" / "such" / "parent")


def test_what_is_preloaded_is_installed() -> None:
    assert installed(["json", "no_such_module.at_all"]) == ["json"]
    assert TEMPLATE
    assert ENVIRONMENT.runtime() != Environment(python="/other").runtime()
