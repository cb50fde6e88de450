"""A kernelspec of another virtual environment, with another ipykernel than ours."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path

import pytest
from local_processes import LocalProcesses
from waiting import wait_until

from kernelsvc.kernels.port import KernelMessage, Output, StartRequest, StreamText
from kernelsvc.kernels.zmq.launcher import KernelspecLauncher
from kernelsvc.model.exit_status import Exit
from kernelsvc.model.limits import Limits
from kernelsvc.protocol.kernel_messages import ExecuteRequest

#: The last of the line before ours. Its iopub is a plain PUB socket that says no welcome, as that of most other
#: languages' kernels, so readiness has to be shown in the other way.
IPYKERNEL = "6.29.5"
INSTALL_SECONDS = 240

pytestmark = [pytest.mark.slow, pytest.mark.timeout(INSTALL_SECONDS + 60)]


@pytest.fixture(scope="module")
def python() -> Path:
    """The interpreter of a virtual environment with only ipykernel; made once, kept between runs."""
    place = Path(tempfile.gettempdir()) / f"kernelsvc-tests-{os.getuid()}-ipykernel-{IPYKERNEL}-{sys.version_info[1]}"
    with open(f"{place}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "ready").exists():
            shutil.rmtree(place, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", place], check=True, timeout=INSTALL_SECONDS)
            install = [place / "bin" / "pip", "install", "-q", "--no-input", f"ipykernel=={IPYKERNEL}"]
            done = subprocess.run(install, capture_output=True, text=True, timeout=INSTALL_SECONDS)
            if done.returncode:
                pytest.skip(f"ipykernel {IPYKERNEL} can't be installed here: {done.stderr.strip()[-200:]}")
            (place / "ready").touch()
    return place / "bin" / "python"


class Sink:
    def __init__(self) -> None:
        self.got: list[Output] = []
        self.exits: list[Exit] = []

    def deliver(self, batch: Sequence[Output]) -> None:
        self.got += batch

    def exited(self, exit: Exit) -> None:
        self.exits.append(exit)

    @property
    def text(self) -> str:
        return "".join(o.text for o in self.got if isinstance(o, StreamText))

    def ended(self, cell: str) -> bool:
        return any(isinstance(o, KernelMessage) and (o.parent, o.msg_type) == (cell, "execute_reply") for o in self.got)


async def test_a_kernel_of_another_environment(python: Path, short_tmp: Path, tmp_path: Path) -> None:
    runtime = short_tmp / uuid.uuid4().hex[:6]
    spec = runtime / "specs" / "other"
    spec.mkdir(parents=True)
    argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (spec / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "Other", "language": "python"}))
    launcher = KernelspecLauncher(LocalProcesses(), runtime, kernel_dirs=[str(spec.parent)])
    sink = Sink()
    request = StartRequest(session="s", kernel="other", template="other", workdir=str(tmp_path), limits=Limits())
    kernel = await launcher.start(request, sink)
    try:
        assert kernel.info.language == "python"
        assert kernel.info.python
        code = "import sys, ipykernel, importlib.util as u, os\n"
        code += "print(sys.prefix, ipykernel.__version__, u.find_spec('pandas'))\nos.system('echo below')"
        kernel.execute(ExecuteRequest("c", code))
        await wait_until(lambda: sink.ended("c"), what="the cell's end")
        assert f"{python.parent.parent} {IPYKERNEL} None\n" in sink.text
        assert sink.text.count("below\n") == 1
        kernel.execute(ExecuteRequest("d", "import time; print('on', flush=True); time.sleep(60)"))
        await wait_until(lambda: "on\n" in sink.text)
        kernel.interrupt()
        await wait_until(lambda: sink.ended("d"), what="the interrupted cell's end")
    finally:
        await asyncio.shield(kernel.end())
    assert not sink.exits
