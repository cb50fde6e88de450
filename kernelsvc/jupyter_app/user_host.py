"""A kernel host for a user's own Jupyter applications, and the kernelspec that leads to it.

::

    python -m kernelsvc.jupyter_app.user_host install [--name kernelsvc] [--prefix DIR] [--preload M ...]

There is one host to an environment (interpreter and preloaded modules), shared
by all applications of this user and ended some minutes after the last of them.
Its kernels are as unconfined as any Jupyter kernel: they are the user's own.
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

#: The only template of such a host.
TEMPLATE = "python3"
#: Seconds that a host waits for the next application.
STAY_SECONDS = 300.0
#: Imported once for all kernels, where they are installed.
PRELOAD = ("numpy", "pandas", "matplotlib.pyplot")


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """What a host forks from: an interpreter, and what it has imported."""

    python: str = sys.executable
    preload: tuple[str, ...] = ()

    def runtime(self) -> Path:
        """The directory of its host: the same for all of this user's applications."""
        name = hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:8]
        base = os.environ.get("XDG_RUNTIME_DIR")
        parent = Path(base) / "kernelsvc" if base else Path(tempfile.gettempdir()) / f"kernelsvc-{os.getuid()}"
        return parent / f"jupyter-{name}"


def make_private(directory: Path) -> None:
    """Make a directory and its parent for this user alone.

    Raises:
        Internal: somebody else has it, or it can't be made.
    """
    for path in (directory.parent, directory):
        try:
            path.mkdir(mode=0o700, exist_ok=True)
            about = path.lstat()
        except OSError as error:
            raise Internal(f"{path} can't be made ({error.strerror}); set XDG_RUNTIME_DIR.") from error
        if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid() or about.st_mode & 0o022:
            raise Internal(f"{path} is not yours alone; remove it, or set XDG_RUNTIME_DIR.")


async def connect(environment: Environment) -> ForkedLauncher:
    """The launcher of this environment's host, which is started if need be. Safe to cancel.

    Raises:
        KernelsvcError: there is no host and none can be started.
    """
    runtime = environment.runtime()
    make_private(runtime)
    template = ForkServerSettings(python=environment.python, preload=list(environment.preload))
    settings = HostSettings(
        runtime_dir=str(runtime), templates={TEMPLATE: template}, sandbox="off", adoption_seconds=STAY_SECONDS
    )
    host = HostClient(settings)
    await host.start()
    return ForkedLauncher(host, runtime)


def installed(modules: Sequence[str]) -> list[str]:
    """Those of the modules that this interpreter has."""
    return [name for name in modules if importlib.util.find_spec(name.partition(".")[0]) is not None]


def install_kernelspec(name: str, prefix: str | None, preload: Sequence[str]) -> Path:
    """Install a kernelspec whose kernels are forks of this interpreter; returns its directory."""
    config = {"python": sys.executable, "preload": list(preload)}
    spec = {
        "argv": ["kernelsvc", "{connection_file}"],  # never run: the provisioner asks the host
        "display_name": f"Python {sys.version_info[0]} (forked)",
        "language": "python",
        "interrupt_mode": "signal",
        "metadata": {
            "debugger": False,
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
    # Until 0.2: this module was the command that installs the kernelspec.
    sys.stderr.write("kernelsvc: this command is now 'kernelsvc install-kernelspec', and will be removed in 0.2.\n")
    sys.argv[1:2] = ["install-kernelspec"]
    runpy.run_module("kernelsvc", run_name="__main__", alter_sys=False)
