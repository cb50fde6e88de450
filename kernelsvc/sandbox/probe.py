"""Find out which layers can confine a session on this machine, for this user.

``probe`` runs ``kernelsvc.guest.confine.layer_probe`` once, in a process of its own, and turns its result into verdicts
with the reason and the command that would change it. ``kernelsvc doctor`` and ``/v1/info`` show the same.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from kernelsvc.sandbox import seccomp
from kernelsvc.sandbox.probe_result import Layer, Probe
from kernelsvc.sandbox.syscall_table import NUMBERS

_TRIAL_SECONDS = 20.0
#: User id of the trials: any id above those of the system.
TRIAL_UID = 70_000

#: The directories whose overlays the layer "own inodes" tries: on the system's filesystem, and on sysfs.
OVERLAYS_TRIED = ("/usr", "/sys/devices/system/cpu")

_USERNS_SWITCHES = {
    "/proc/sys/kernel/unprivileged_userns_clone": ("0", "sudo sysctl -w kernel.unprivileged_userns_clone=1"),
    "/proc/sys/kernel/apparmor_restrict_unprivileged_userns": (
        "1",
        "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or give the service an AppArmor profile "
        "with 'userns,' (AppArmorProfile= in the unit), or run the kernel host as root",
    ),
    "/proc/sys/user/max_user_namespaces": ("0", "sudo sysctl -w user.max_user_namespaces=10000"),
}
_IN_CONTAINER = (
    "run the kernel host outside of the container, or start the container with "
    "--security-opt seccomp=unconfined --security-opt apparmor=unconfined --cap-add SYS_ADMIN"
)
_FIXES = {
    "own inodes": "use a Linux with CONFIG_OVERLAY_FS, and Linux 5.11 or newer for an ordinary user",
    "landlock": "boot with 'lsm=landlock,...' on the kernel's command line (Linux 5.13 or newer)",
    "seccomp": "use a Linux built with CONFIG_SECCOMP_FILTER",
    "proc": "start the container with --security-opt systempaths=unconfined, so that /proc is whole; "
    "without it sessions run without /proc",
    "task rlimit": "use Linux 5.14 or newer, or let the kernel host have a pids cgroup",
}


def probe(*, directory: str | None = None) -> Probe:
    """Try every layer once. Takes about 0.1 s and leaves nothing behind.

    Args:
        directory: an existing directory in which the trials may make an empty one.
    """
    verdicts, abi = _run_trials(directory)
    layers = {name: _layer(name, why) for name, why in verdicts.items()}
    layers["no_new_privs"] = layers.get("no_new_privs", Layer(name="no_new_privs", ok=False, why="not tried"))
    return Probe(
        root=os.geteuid() == 0,
        arch=platform.machine(),
        release=platform.release(),
        layers=layers,
        landlock_abi=abi,
    )


def try_overlays(directories: Sequence[str], *, directory: str) -> dict[str, str]:
    """Try an overlay of each directory, in 0.1 s for all. Return "" or the error by directory.

    Args:
        directories: what the overlays are to show.
        directory: see ``probe``.
    """
    verdicts, _ = _run_trials(directory, only=directories)
    return {shown: verdicts.get(shown, "the trial itself failed") for shown in directories}


def _run_trials(directory: str | None, *, only: Sequence[str] = ()) -> tuple[Mapping[str, str], int]:
    if sys.platform != "linux":
        return {"filesystem": f"{sys.platform} has none of the layers; Linux is needed"}, 0
    if platform.machine() not in NUMBERS:
        return {"seccomp": f"no system call table for {platform.machine()}"}, 0
    directory_path = tempfile.mkdtemp(prefix="kernelsvc-trial-", dir=directory)
    try:
        program = seccomp.kernel_program(platform.machine(), inet=True, memfd=True)
        request = {
            "directory": directory_path,
            "uid": TRIAL_UID,
            "filter": program.hex(),
            "overlays": OVERLAYS_TRIED,
            "only_overlays": only,
        }
        answer = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _PROGRAM, str(Path(__file__).parents[2])],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=_TRIAL_SECONDS,
            check=False,
        )
    finally:
        shutil.rmtree(directory_path, ignore_errors=True)
    try:
        found = json.loads(answer.stdout)
        return found["layers"], int(found["landlock_abi"])
    except (ValueError, KeyError):
        last = answer.stderr.strip().splitlines()[-1:] or ["no output"]
        return {"filesystem": f"the trial itself failed: {last[0]}"}, 0


_PROGRAM = "import sys; sys.path.insert(0, sys.argv[1]); from kernelsvc.guest.confine.layer_probe import main; main()"


def _layer(name: str, why: str) -> Layer:
    return Layer(name=name, ok=not why, why=why, fix=_fix(name) if why else "")


def _fix(name: str) -> str:
    if name in _FIXES:
        return _FIXES[name]
    if os.geteuid() != 0 and name != "user":
        for path, (bad, command) in _USERNS_SWITCHES.items():
            if _reads(path, bad):
                return command
    if os.path.exists("/.dockerenv") or os.path.exists("/run/.containerenv"):
        return _IN_CONTAINER
    return "run the kernel host as root, or under its systemd unit"


def _reads(path: str, value: str) -> bool:
    try:
        return Path(path).read_text(encoding="ascii").strip() == value
    except OSError:
        return False
