"""``kernelsvc ray``: nodes on the machines of a Ray cluster."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import tomllib
from contextlib import closing
from pathlib import Path
from typing import Any

from kernelsvc.cli.terminal import Terminal
from kernelsvc.engines.ray import RayCluster
from kernelsvc.engines.supervisor import Plan
from kernelsvc.errors import BadRequest
from kernelsvc.server.joining import check_addresses
from kernelsvc.service.directories import cluster_key
from kernelsvc.settings import Settings

_UNITS = {"": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def size_of(text: str) -> int:
    """Return the bytes of a size such as ``32GiB``.

    Raises:
        BadRequest: It is none.
    """
    found = re.fullmatch(r"(\d+)\s*([KMGT]iB|)", text, re.IGNORECASE)
    if found is None or not int(found[1]):
        raise BadRequest(f"{text!r} is no size. Write bytes, or a number with KiB, MiB, GiB or TiB, such as 32GiB.")
    return int(found[1]) * _UNITS[found[2].upper()]


def plan_of(args: argparse.Namespace, env: dict[str, str]) -> Plan:
    """Return the plan that the options of ``kernelsvc ray up`` describe.

    Raises:
        BadRequest: One is not valid, or there is no key.
    """
    if not args.join:
        raise BadRequest("Name the front with --join http://HOST:PORT. Start one with 'kernelsvc front'.")
    check_addresses(*args.join)
    if args.cpus <= 0:
        raise BadRequest("--cpus must be above 0: Ray reserves so many processors of each machine.")
    try:
        config = Path(args.config).read_text("utf-8") if args.config else ""
        tomllib.loads(config)
    except OSError as error:
        raise BadRequest(f"Can't read {args.config}: {error.strerror}.") from None
    except ValueError as error:
        raise BadRequest(f"{args.config} is not valid TOML: {error}.") from None
    return Plan(
        join=tuple(args.join),
        cluster_key=cluster_key(Settings(cluster_key_file=args.cluster_key_file), env),
        config=config,
        data=args.data,
        cpus=args.cpus,
        memory=size_of(args.memory),
        port=args.port,
        command=tuple(shlex.split(args.program)),
    )


def up(args: argparse.Namespace, terminal: Terminal) -> int:
    """Have each machine run a node, also those that come later."""
    plan = plan_of(args, {**os.environ})
    with closing(RayCluster(args.address)) as cluster:
        cluster.up(plan)
    terminal.message(
        f"Each machine of this Ray cluster that has {plan.cpus:g} processors and {args.memory} gets a node, also a "
        "later one. 'kernelsvc ray status' shows them."
    )
    return 0


def status(args: argparse.Namespace, terminal: Terminal) -> int:
    """List the machines. The exit code is 1 if one of them does not serve."""
    with closing(RayCluster(args.address)) as cluster:
        found = cluster.status()
    if args.json:
        terminal.json(found)
    else:
        for line in lines(found):
            terminal.line(line)
    return 0 if all(each["state"] in ("serves", "no node") for each in found) else 1


def down(args: argparse.Namespace, terminal: Terminal) -> int:
    """Stop all nodes. The exit code is 1 if one of them did not stop."""
    with closing(RayCluster(args.address)) as cluster:
        done = cluster.down(args.end)
    for each in done:
        terminal.line(f"{each['host']:<20}{'stopped' if each['stopped'] else 'did not stop'}")
    return 0 if all(each["stopped"] for each in done) else 1


def lines(found: list[dict[str, Any]]) -> list[str]:
    """Return the table of ``kernelsvc ray status``."""
    shown = [f"{'MACHINE':<20}{'STATE':<10}{'NODE':<8}ADDRESS"]
    for each in found:
        shown.append(f"{each['host']:<20}{each['state']:<10}{each['node']:<8}{each['url']}".rstrip())
        if each["problem"]:
            shown.append(f"        ! {each['problem']}")
    return shown
