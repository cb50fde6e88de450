"""``kernelsvc doctor``, ``settings`` and ``kernel-host``: this machine, without a server."""

from __future__ import annotations

import argparse
import logging
import os

import msgspec

from kernelsvc import settings as conf
from kernelsvc.cli.notify import Systemd, ready_fd
from kernelsvc.cli.screen import table
from kernelsvc.cli.terminal import Terminal


def doctor(args: argparse.Namespace, terminal: Terminal) -> int:
    """Try each layer of confinement."""
    from kernelsvc.sandbox.sandbox import examine

    layers = examine()
    if args.json:
        terminal.line(msgspec.json.format(msgspec.json.encode(layers), indent=2).decode())
    for layer in layers if not args.json else ():
        mark = terminal.style("enforced", "green") if layer.ok else terminal.style("missing ", "red")
        terminal.line(f"{mark}  {layer.name}{'' if layer.ok else ': ' + layer.why}")
        if layer.fix and not layer.ok:
            terminal.line(f"          {layer.fix}", "dim")
    missing = sum(not layer.ok for layer in layers)
    if not args.json:
        terminal.line()
        terminal.line(_summary(len(layers), missing))
    return 1 if missing else 0


def _summary(layers: int, missing: int) -> str:
    if not missing:
        return f"All {layers} layers are enforced: sessions are fully confined."
    return f"{missing} of {layers} layers are missing. Sessions run without them unless sandbox = required."


def settings(args: argparse.Namespace, terminal: Terminal) -> int:
    """Print every setting."""
    found = conf.describe(conf.load(vars(args), os.environ))
    if args.json:
        terminal.line(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
        return 0
    rows = [[one["name"], _shown(one), one["source"], one["help"]] for one in found]
    for number, line in enumerate(table(rows, ["SETTING", "VALUE", "FROM", ""])):
        terminal.line(line, *(["bold"] if number == 0 else []))
    return 0


def _shown(one: dict[str, object]) -> str:
    value = one["value"]
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    text = {"null": "none"}.get(text, text)
    return text if len(text) <= 48 else text[:47] + "…"


def kernel_host(args: argparse.Namespace, terminal: Terminal) -> int:
    """Run the kernel host in the foreground until told to stop."""
    from kernelsvc.kernels.host import run
    from kernelsvc.service import host_settings

    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(args.verbose, 2)]
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    found = conf.load(vars(args), os.environ)
    conf.prepare_directories(found)

    def ready() -> None:
        terminal.line(f"kernel host in {found.runtime_path()}; templates: {', '.join(found.templates)}")
        ready_fd(args.ready_fd)
        Systemd(os.environ).tell("READY=1")

    # It is asked for by name here, so it stays when the last server leaves.
    run(msgspec.structs.replace(host_settings(found), stay=True), ready)
    return 0
