"""``kernelsvc bridge``: offer the tools of MCP servers to sessions."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
from pathlib import Path

from kernelsvc import logs
from kernelsvc import settings as conf
from kernelsvc.cli.companions.bridge_process import LOCK_VARIABLE
from kernelsvc.cli.companions.companion_process import locked
from kernelsvc.cli.terminal import Terminal
from kernelsvc.errors import BadRequest, KernelsvcError


def main(args: argparse.Namespace, terminal: Terminal) -> int:
    """Offer tools until a signal ends the process, or no server answers any more."""
    settings = conf.load({"config": args.config}, os.environ)
    if not settings.tools_mcp:
        raise BadRequest("The settings name no MCP server. Add a table [tools.mcp.NAME] with a command or a url.")
    logs.configure(logging.INFO, operator_level=logging.INFO, form=settings.log_format)
    path = os.environ.get(LOCK_VARIABLE)
    with locked(Path(path)) if path else contextlib.nullcontext():
        # Imported late: these imports take a second, and other commands do not need them.
        from kernelsvc.integrations import mcp_bridge

        try:
            asyncio.run(mcp_bridge.run(settings.tools_mcp, args.url, args.token))
        except* KernelsvcError as errors:
            first: BaseException = errors
            while isinstance(first, BaseExceptionGroup):
                first = first.exceptions[0]
            terminal.message(str(first), "red")
    return 1
