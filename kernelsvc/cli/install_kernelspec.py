"""``kernelsvc install-kernelspec``: forked kernels in JupyterLab and other Jupyter applications, without a server."""

from __future__ import annotations

import argparse

from kernelsvc.cli.terminal import Terminal
from kernelsvc.errors import BadRequest
from kernelsvc.jupyter_app.user_host import PRELOAD, install_kernelspec, installed


def install(args: argparse.Namespace, terminal: Terminal) -> int:
    """Install a kernelspec whose kernels are forks of this interpreter, and print where it is.

    Raises:
        BadRequest: Jupyter does not allow the name, or the directory can't be written.
    """
    preload = installed(PRELOAD) if args.preload is None else args.preload
    try:
        target = install_kernelspec(args.name, args.prefix, preload)
    except (ValueError, OSError) as error:
        raise BadRequest(f"The kernelspec was not installed: {error} Choose another --name or --prefix.") from error
    terminal.line(f"Installed {target}")
    terminal.line(f"Start it with: jupyter console --kernel {args.name}")
    return 0
