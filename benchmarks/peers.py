"""The peers, each installed from the package registry into its own environment below ``.benchmarks/``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.processes import free_port
from benchmarks.subjects import TOKEN, JupyterServer, JupyverseServer, Kernelsvc, PlainZmq, Subject

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ROOT / "requirements" / "constraints.txt"
NODELAY = Path(__file__).with_name("gateway_nodelay.py")

#: What a peer's kernels need beside the peer itself; the same releases as ours, by the same constraints.
KERNEL = ("ipykernel", "numpy", "pandas", "matplotlib")


@dataclass(frozen=True)
class Environment:
    """A virtual environment and its packages.

    Attributes:
        name: name of its directory.
        packages: requirements to install.
        shows: packages whose version the report has.
    """

    name: str
    packages: tuple[str, ...]
    shows: tuple[str, ...]

    def prepared(self, below: Path) -> Path:
        """Return its ``bin`` directory. Create the environment at the first use.

        Raises:
            RuntimeError: the packages could not be installed.
        """
        place = below / self.name
        stamp = place / ".ready"
        wanted = "\n".join((sys.version, *self.packages))  # all subjects run the same Python
        if not stamp.exists() or stamp.read_text() != wanted:
            print(f"benchmarks: installing {', '.join(self.packages)} into {place.name}", file=sys.stderr)
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(place)], check=True)
            command: list[str | Path] = [
                place / "bin" / "python",
                "-m",
                "pip",
                "install",
                "-qqq",
                "--disable-pip-version-check",
            ]
            # A peer that needs another release of a package than ours gets it.
            names = {re.split(r"[^\w.-]", each)[0] for each in self.packages}
            lines = CONSTRAINTS.read_text().splitlines()
            pins = place / "constraints.txt"
            pins.write_text("\n".join(line for line in lines if line.partition("==")[0] not in names))
            done = subprocess.run([*command, "-c", pins, *self.packages, *KERNEL], check=False)
            if done.returncode:
                raise RuntimeError(f"{self.name}: its packages could not be installed")
            stamp.write_text(wanted)
            # Else the first synced appends of the run wait for a gigabyte of packages: 38 cells/s instead of 250.
            os.sync()
        return place / "bin"

    def versions(self, below: Path) -> dict[str, str]:
        """Return the installed version by package."""
        code = "import sys, importlib.metadata as m\nfor n in sys.argv[1:]: print(n, m.version(n))"
        command = [str(below / self.name / "bin" / "python"), "-c", code, *self.shows]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return dict(line.split() for line in out.splitlines())


GATEWAY = Environment(
    "gateway", ("jupyter_kernel_gateway>=3", "jupyter_server"), ("jupyter_kernel_gateway", "jupyter_server")
)
JUPYVERSE = Environment("jupyverse", ("jupyverse[jupyterlab,noauth]",), ("jupyverse",))


def gateway(bin: Path, scratch: Path, *, nodelay: bool) -> Subject:
    """Return Kernel Gateway, as released or without its Nagle delay."""
    port = free_port()
    start = [str(bin / "python"), str(NODELAY)] if nodelay else [str(bin / "jupyter-kernelgateway")]
    options = {"ip": "127.0.0.1", "port": port, "auth_token": TOKEN}
    command = [*start, *(f"--KernelGatewayApp.{name}={value}" for name, value in options.items())]
    name = "Kernel Gateway, no Nagle" if nodelay else "Kernel Gateway"
    found = JupyterServer(name, command, scratch, port, _apart(bin, scratch))
    found.rival = not nodelay
    return found


def jupyter_server(bin: Path, scratch: Path) -> Subject:
    """Return jupyter_server, the server of JupyterLab."""
    port = free_port()
    options = {
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.port": port,
        "IdentityProvider.token": TOKEN,
        "ServerApp.allow_root": True,
        "ServerApp.open_browser": False,
        "ServerApp.root_dir": scratch,
        "ServerApp.disable_check_xsrf": True,
    }
    command = [str(bin / "jupyter-server"), *(f"--{name}={value}" for name, value in options.items())]
    return JupyterServer("jupyter_server", command, scratch, port, _apart(bin, scratch))


def jupyverse(bin: Path, scratch: Path) -> Subject:
    """Return jupyverse, a Jupyter server on ASGI."""
    port = free_port()
    # Its kernelspec starts "python": the one on the path.
    env = _apart(bin, scratch) | {"PATH": f"{bin}{os.pathsep}{os.environ.get('PATH', '')}"}
    return JupyverseServer("jupyverse", [str(bin / "jupyverse"), "--port", str(port)], scratch, port, env)


def _apart(bin: Path, scratch: Path) -> dict[str, str]:
    """Return environment variables: a peer ignores the user's configuration, and starts kernels of its own Python."""
    home = scratch / "jupyter"
    names = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    return {name: str(home / name.lower()) for name in names} | {"JUPYTER_PREFER_ENV_PATH": "1", "VIRTUAL_ENV": ""}


def ours(scratch: Path, *settings: str) -> Subject:
    """Return the subject for this checkout."""
    return Kernelsvc(sys.executable, scratch, *settings)


def everyone(below: Path, scratch: Path, *settings: str) -> tuple[list[Subject], dict[str, str]]:
    """Return kernelsvc and each peer that can be installed, with the peers' releases. Others are named and left out."""
    subjects: list[Subject] = [ours(scratch, *settings)]
    versions: dict[str, str] = {}
    for environment, makers in PEERS:
        try:
            bin = environment.prepared(below)
        except RuntimeError as error:
            print(f"benchmarks: not measured: {error}", file=sys.stderr)
            continue
        versions |= environment.versions(below)
        subjects += [maker(bin, scratch) for maker in makers]
    return [*subjects, PlainZmq()], versions


PEERS: tuple[tuple[Environment, tuple[Callable[[Path, Path], Subject], ...]], ...] = (
    (GATEWAY, (partial(gateway, nodelay=False), partial(gateway, nodelay=True), jupyter_server)),
    (JUPYVERSE, (jupyverse,)),
)
