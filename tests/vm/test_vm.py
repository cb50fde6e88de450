"""The units and cgroup version 2, under a real systemd in a virtual machine that this test makes itself.

A stage of its own: ``make test-vm``, or ``KERNELSVC_VM=1 pytest tests/vm``. It takes
some minutes: the processor is emulated.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from vm import image

TOOLS = ("mmdebstrap", "mkfs.ext4", "qemu-system-x86_64", "chroot")
BOOT_SECONDS = float(os.environ.get("KERNELSVC_VM_SECONDS", "1800"))

#: For who repairs one of them: KERNELSVC_VM_CHECKS=installs_as_the_docs_write_it,... and no others.
CHECKS = os.environ.get("KERNELSVC_VM_CHECKS", "")
SOME = f" checks={CHECKS}" if CHECKS else ""

pytestmark = pytest.mark.timeout(BOOT_SECONDS + 900)


@pytest.fixture(scope="module")
def told() -> str:
    """Everything that the machine said on its serial line."""
    if os.environ.get("KERNELSVC_VM") != "1":
        pytest.skip("set KERNELSVC_VM=1 to boot a virtual machine; it takes minutes")
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing or os.getuid() != 0:
        pytest.skip(f"needs root and {', '.join(missing) or 'nothing else'}")
    cache = Path(os.environ.get("KERNELSVC_VM_CACHE", "/var/tmp/kernelsvc-vm"))
    cache.mkdir(parents=True, exist_ok=True)
    disk = image.make_disk(cache)
    return boot(disk, *image.kernel_files(cache))


def boot(disk: Path, kernel: Path, initrd: Path) -> str:
    accel = (
        "kvm" if os.access("/dev/kvm", os.W_OK) and os.environ.get("KERNELSVC_VM_KVM") == "1" else "tcg,thread=multi"
    )
    command = [
        *("nice", "qemu-system-x86_64", "-accel", accel, "-cpu", "max", "-smp", "2", "-m", "3072"),
        *("-display", "none", "-monitor", "none", "-serial", "stdio", "-no-reboot", "-nic", "none"),
        *("-kernel", str(kernel), "-initrd", str(initrd), "-append", f"root=/dev/vda rw console=ttyS0 quiet{SOME}"),
        *("-drive", f"file={disk},format=raw,if=virtio,cache=unsafe"),
    ]
    log = disk.with_suffix(".log")
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + BOOT_SECONDS
            while process.poll() is None and time.monotonic() < deadline:
                if b"VM DONE" in log.read_bytes():
                    break
                time.sleep(0.5)
        finally:
            process.kill()
            process.wait()
    return log.read_text(errors="replace")


def names() -> list[str]:
    source = (Path(__file__).parent / "guest_main.py").read_text()
    block = source[source.index("CHECKS = [") : source.index("def main")]
    return re.findall(r"^    (\w+),$", block, re.M)


@pytest.mark.parametrize("check", names())
def test_in_the_machine(told: str, check: str) -> None:
    if CHECKS and check not in CHECKS.split(","):
        pytest.skip("left out by KERNELSVC_VM_CHECKS")
    line = next((line for line in told.splitlines() if line.startswith(f"CHECK {check} ")), None)
    assert line is not None, f"the machine never got there: {told[-3000:]}"
    assert line.startswith(f"CHECK {check} ok"), told[told.index(line) :][:5000]


def test_the_machine_came_to_its_end(told: str) -> None:
    assert "VM DONE" in told
