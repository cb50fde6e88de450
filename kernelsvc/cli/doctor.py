"""``kernelsvc doctor``, ``settings``, ``kernel-host``, ``egress``: commands for this machine, without a server."""

from __future__ import annotations

import argparse
import logging
import os

import msgspec

from kernelsvc import logs
from kernelsvc import settings as conf
from kernelsvc.cli.terminal import Terminal
from kernelsvc.cli.terminal.filter import table
from kernelsvc.guest.model_view import fonts
from kernelsvc.linux.systemd import Systemd, ready_fd
from kernelsvc.model.events import SandboxReport
from kernelsvc.sandbox.manager import Examination, examine

#: Levels of isolation (SECURITY.md).
ISOLATION_HELP = {
    "full": "own view of files, processes and network, and no privileges, enforced by Linux",
    "filtered": "as full, and connections go through a proxy that applies rules",
    "networked": "as full, but on the host's network",
    "files": "Landlock and seccomp, no namespaces",
    "process": "limits and the watchdog only",
    "none": "nothing",
}
#: Ways to enforce a limit.
ENFORCEMENT_HELP = {
    "hard": "Linux refuses or kills at the limit",
    "per process": "Linux enforces it for each process, so several processes together can exceed it",
    "supervised": "the server measures, and ends a cell above the limit. It can exceed the limit for a moment",
    "none": "not enforced on this machine",
}
#: Layers that a session does not need here, because another layer does the same.
UNUSED_LAYER_HELP = {
    "cpu cgroup": "works, for sessions with limits.cpu_cores",
    "egress": "works, for sessions with rules for the network",
    "user namespace": "replaced by a user id of the host for each session",
    "user": "replaced by a user namespace",
    "task rlimit": "works, for machines where no cgroup can limit processes",
}


def doctor(args: argparse.Namespace, terminal: Terminal) -> int:
    """Test each layer of confinement as this user, and print the results. Return 1 if a layer is missing."""
    found = conf.load(vars(args), os.environ)
    result = examine(found.limits, policy=found.sandbox)
    needed = {lack.layer for lack in result.report.not_enforced}
    missing = [layer for layer in result.layers if not layer.ok and layer.name in needed]
    if args.json:
        terminal.json(result)
        return 1 if missing else 0
    _show_layers(result, terminal)
    terminal.line()
    _show_limits(result.report, terminal)
    terminal.line()
    for warning in result.warnings:
        terminal.line(f"{terminal.style('warning ', 'yellow')}  {warning}")
    for font in (fonts.CJK, fonts.EMOJI):
        if fonts.find(font) is None:
            terminal.line(f"{terminal.style('optional', 'dim')}  no font for {font.scripts} in figures")
            terminal.line(f"          apt-get install {font.package}, or build and install packages/fonts", "dim")
    isolation = result.report.isolation
    terminal.line(f"isolation: {isolation} ({ISOLATION_HELP[isolation]}); {_consequence(result.report)}")
    return 1 if missing else 0


def _show_layers(result: Examination, terminal: Terminal) -> None:
    """Print each layer of a session's report. A missing layer has its reason and the way to enable it."""
    why = {lack.layer: lack.why for lack in result.report.not_enforced}
    fixes = {layer.name: layer.fix for layer in result.layers}
    for name in result.report.enforced:
        terminal.line(f"{terminal.style('enforced', 'green')}  {name}")
    for name, reason in why.items():
        terminal.line(f"{terminal.style('missing ', 'red')}  {name}: {reason}")
        if fixes.get(name):
            terminal.line(f"          {fixes[name]}", "dim")
    for layer in result.layers:
        if layer.name not in why and layer.name not in result.report.enforced and result.report.policy != "off":
            explanation = UNUSED_LAYER_HELP.get(layer.name, "works") if layer.ok else layer.why
            terminal.line(f"{terminal.style('not used', 'dim')}  {layer.name}: {explanation}")


def _show_limits(report: SandboxReport, terminal: Terminal) -> None:
    """Print the limits, grouped by the way that they are enforced."""
    for word, meaning in ENFORCEMENT_HELP.items():
        names = [name for name, one in report.limits.items() if one == word]
        if names:
            terminal.line(f"{word + ':':<12} {', '.join(names)}")
            terminal.line(f"{'':<12} {meaning}", "dim")


def _consequence(report: SandboxReport) -> str:
    full = report.isolation in ("full", "filtered", "networked")
    if report.policy == "required":
        return "sandbox = required: " + ("sessions start" if full else "sessions are refused with sandbox_unavailable")
    if report.policy == "off":
        return "sandbox = off: sessions are not confined"
    missing = "sessions run without the missing layers" if report.not_enforced else "no layer is missing"
    return f"sandbox = best-effort: {missing}"


def settings(args: argparse.Namespace, terminal: Terminal) -> int:
    """Print every setting."""
    from kernelsvc.service.directories import missing_mounts

    loaded = conf.load(vars(args), os.environ)
    found = conf.describe(loaded)
    for line in missing_mounts(loaded):
        terminal.message(line, "yellow")
    if args.json:
        terminal.json(found)
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
    """Run the kernel host in the foreground until a signal stops it."""
    from kernelsvc.host.daemon import run
    from kernelsvc.service.directories import prepare_directories
    from kernelsvc.service.host_settings import host_settings

    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(args.verbose, 2)]
    logs.configure(level)
    found = conf.load(vars(args), os.environ)
    prepare_directories(found, of_others=os.geteuid() == 0)

    def ready() -> None:
        terminal.line(f"kernel host in {found.runtime_path()}; templates: {', '.join(found.templates)}")
        ready_fd(args.ready_fd)
        Systemd(os.environ).tell("READY=1")

    # A user or systemd started this host explicitly, so it keeps running without a server.
    run(msgspec.structs.replace(host_settings(found), persistent=True), ready)
    return 0


def egress(args: argparse.Namespace, terminal: Terminal) -> int:
    """Run the egress proxy in the foreground until a signal stops it."""
    from kernelsvc.egress.daemon import run
    from kernelsvc.service.egress.proxy_settings import proxy_settings

    logs.configure((logging.WARNING, logging.INFO, logging.DEBUG)[min(args.verbose, 2)])
    found = conf.load(vars(args), os.environ)
    # The environment file of the service has the server's token, which this process has no use for.
    for name in [name for name in os.environ if name.startswith("KERNELSVC_")]:
        del os.environ[name]

    def ready() -> None:
        terminal.line(f"egress proxy in {found.runtime_path()}")
        ready_fd(args.ready_fd)
        Systemd(os.environ).tell("READY=1")

    run(proxy_settings(found, persistent=True), ready)
    return 0
