"""``kernelsvc nodes`` and ``kernelsvc drain``: the nodes of a cluster."""

from __future__ import annotations

import argparse
import os
import signal
from typing import Any
from urllib.parse import quote

import msgspec

from kernelsvc.cli.companions.companion_process import is_holder, server_of
from kernelsvc.cli.terminal import Terminal
from kernelsvc.client.address import find
from kernelsvc.client.http import Rest
from kernelsvc.errors import BadRequest, Conflict, Forbidden, NotFound
from kernelsvc.linux.readable import wait_readable
from kernelsvc.settings import load

_MIB = 1024 * 1024


def _rest(args: argparse.Namespace) -> Rest:
    return Rest(find(args.url, args.token), connect_seconds=5.0, retry_seconds=0.0)


async def nodes(args: argparse.Namespace, terminal: Terminal) -> int:
    """List the nodes. The exit code is 1 if one of them needs attention."""
    found = await _ask(_rest(args), "GET", "/v1/nodes")
    if args.json:
        terminal.line(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
    else:
        for line in lines(found):
            terminal.line(line)
    well = all(each["state"] in ("ready", "draining") and not each["warnings"] for each in found["nodes"])
    return 0 if well and not found["refused"] else 1


async def drain(args: argparse.Namespace, terminal: Terminal) -> int:
    """Ask a node to drain, or drain the server of this machine."""
    if args.node is None:
        if args.move:
            raise BadRequest("Only a node of a cluster moves its sessions. Name it: kernelsvc drain --move NODE.")
        return await _drain_own(args, terminal)
    query = "?move=true" if args.move else ""
    await _ask(_rest(args), "POST", f"/v1/nodes/{quote(args.node, safe='')}/drain{query}")
    terminal.message(
        f"{args.node} creates no more sessions, waits for its cells, saves its sessions and stops. "
        + ("It gives them to the other nodes." if args.move else "Its sessions go on when its server runs again.")
    )
    return 0


async def _drain_own(args: argparse.Namespace, terminal: Terminal) -> int:
    """Signal the server of a data directory, and wait for its end. Safe to cancel: the server drains all the same.

    Raises:
        NotFound: no server uses the directory.
        Conflict: it is in another pid namespace.
        Forbidden: it is another user's.
    """
    settings = load({"data_dir": args.data_dir, "config": args.config}, os.environ)
    data = settings.data_path()
    try:
        if (pid := server_of(data)) is None:
            raise NotFound(f"No server uses {data}. Name its directory: kernelsvc drain --data-dir DIR.")
        elsewhere = Conflict(f"The server of {data} is not among the processes here. Run this in its container.")
        try:
            process = os.pidfd_open(pid)
        except ProcessLookupError:
            raise elsewhere from None
        try:
            if not is_holder(pid, data):
                raise elsewhere
            signal.pidfd_send_signal(process, signal.SIGUSR1)
            terminal.message(f"draining: waits for running cells, {settings.drain_seconds:.0f} s at the latest")
            await wait_readable(process)  # pidfd_open(2): when the process has ended
        finally:
            os.close(process)
    except PermissionError:
        raise Forbidden(f"The server of {data} is another user's. Run this command as that user.") from None
    terminal.message(f"the server of {data} has ended")
    return 0


async def _ask(rest: Rest, verb: str, path: str) -> Any:
    try:
        return await rest.json(verb, path)
    except NotFound as error:
        if "node" in error.details:
            raise
        raise BadRequest("This server is no front. Give the address of one with --url.") from None
    finally:
        rest.close()


def lines(found: dict[str, Any]) -> list[str]:
    """Return the table of ``kernelsvc nodes``."""
    shown = [f"{'NODE':<8}{'STATE':<13}{'SESSIONS':>12}  {'MEMORY PROMISED':>18}  {'VERSION':<10}ADDRESS"]
    for each in found["nodes"]:
        whole = each["memory_bytes"]
        memory = f"{each['promised_bytes'] // _MIB}" + (f" / {whole // _MIB}" if whole else "") + " MiB"
        sessions = f"{each['sessions']} / {each['max_sessions']}"
        shown.append(
            f"{each['node']:<8}{each['state']:<13}{sessions:>12}  {memory:>18}  {each['version']:<10}{each['url']}"
        )
        shown += [f"        ! {warning}" for warning in each["warnings"]]
    if not found["nodes"]:
        shown.append("no node has joined. Start one with 'kernelsvc serve --join URL' and this front's cluster key")
    shown += [f"refused: {why}" for why in found["refused"]]
    return shown
