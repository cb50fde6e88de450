"""The kernel host of a user's own Jupyter applications, and the kernelspec that starts kernels in it.

Each environment (interpreter and preloaded modules) has one host. All applications of the user share it, and it ends a
few minutes after the last of them. Its kernels are not confined, like all Jupyter kernels: they run as the user.
``kernelsvc install-kernelspec`` installs the kernelspec.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import runpy
import stat
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
from jupyter_client.kernelspec import KernelSpecManager

from kernelsvc.errors import Internal
from kernelsvc.host.client import HostClient
from kernelsvc.host.protocol import ForkServerSettings, HostSettings
from kernelsvc.kernels.forked.launcher import ForkedLauncher

#: The only template of this host.
TEMPLATE = "python3"
#: Seconds for which the host waits for the next application before it ends.
STAY_SECONDS = 300.0
#: Seconds for which kernels outlive their application. Another application can't take them over.
ORPHAN_SECONDS = 5.0
#: Modules that are imported once for all kernels, if they are installed.
PRELOAD = ("numpy", "pandas", "matplotlib.pyplot")


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """Environment that a host forks from: an interpreter and the modules that it has imported."""

    python: str = sys.executable
    preload: tuple[str, ...] = ()

    def runtime(self) -> Path:
        """Return the host's runtime directory: the same for all applications of this user."""
        name = hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:8]
        base = os.environ.get("XDG_RUNTIME_DIR")
        parent = Path(base) / "kernelsvc" if base else Path(tempfile.gettempdir()) / f"kernelsvc-{os.getuid()}"
        return parent / f"jupyter-{name}"


def make_private(directory: Path) -> None:
    """Make a directory and its parent, accessible to this user only.

    Raises:
        Internal: Another user owns it, or it can't be created.
    """
    for path in (directory.parent, directory):
        try:
            path.mkdir(mode=0o700, exist_ok=True)
            # lstat: a link of another user in /tmp must not be followed.
            info = path.lstat()
        except OSError as error:
            raise Internal(
                f"{path} can't be created ({error.strerror}). Set XDG_RUNTIME_DIR to your own directory."
            ) from error
        if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid() or info.st_mode & 0o022:
            raise Internal(f"{path} is not yours alone. Remove it, or set XDG_RUNTIME_DIR to a directory of your own.")


async def connect(environment: Environment) -> ForkedLauncher:
    """Return the launcher of this environment's host, and start the host if it does not run. Safe to cancel.

    Raises:
        KernelsvcError: No host runs and none can be started.
    """
    runtime = environment.runtime()
    make_private(runtime)
    template = ForkServerSettings(python=environment.python, preload=list(environment.preload))
    settings = HostSettings(
        runtime_dir=str(runtime),
        templates={TEMPLATE: template},
        sandbox="off",
        adoption_seconds=STAY_SECONDS,
        orphan_seconds=ORPHAN_SECONDS,
    )
    host = HostClient(settings)
    await host.start()
    return ForkedLauncher(host, runtime)


def installed(modules: Sequence[str]) -> list[str]:
    """Return those of the modules that this interpreter can import."""
    return [name for name in modules if importlib.util.find_spec(name.partition(".")[0]) is not None]


def install_kernelspec(name: str, prefix: str | None, preload: Sequence[str]) -> Path:
    """Install a kernelspec whose kernels are forks of this interpreter, and return its directory.

    Args:
        name: The kernelspec's name.
        prefix: The environment to install into. None installs for the user.
        preload: Modules that are imported once for all kernels.

    Raises:
        ValueError: Jupyter does not allow the name.
        OSError: The directory is not writable.
    """
    config = {"python": sys.executable, "preload": list(preload)}
    spec = {
        "argv": ["kernelsvc", "{connection_file}"],  # Never run: the provisioner asks the host instead.
        "display_name": f"Python {sys.version_info[0]} (forked)",
        "language": "python",
        "interrupt_mode": "signal",
        "metadata": {
            "debugger": True,
            "supported_encryption": "curve",
            "kernel_provisioner": {"provisioner_name": "kernelsvc-fork", "config": config},
        },
    }
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory) / name
        source.mkdir(mode=0o755)
        (source / "kernel.json").write_text(json.dumps(spec, indent=1))
        target = KernelSpecManager().install_kernel_spec(
            str(source), kernel_name=name, user=prefix is None, prefix=prefix
        )
    return Path(target)


if __name__ == "__main__":
    # Until 0.2. Before ``kernelsvc install-kernelspec``, this module was the command.
    sys.stderr.write("kernelsvc: this command is now 'kernelsvc install-kernelspec', and will be removed in 0.2.\n")
    sys.argv[1:2] = ["install-kernelspec"]
    runpy.run_module("kernelsvc", run_name="__main__", alter_sys=False)
