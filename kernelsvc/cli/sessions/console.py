"""``kernelsvc console``: open the web console in a browser, signed in by a ticket that works once."""

from __future__ import annotations

import argparse
import webbrowser
from urllib.parse import quote

from kernelsvc.cli.terminal import Terminal
from kernelsvc.client.address import find
from kernelsvc.client.http import Rest
from kernelsvc.errors import NotFound, NotSupported

#: Seconds to try the first connection, and to repeat a request after a lost one.
CONNECT_SECONDS = 2.0


async def console(args: argparse.Namespace, terminal: Terminal) -> int:
    """Print the address of the console with a ticket, and open it unless ``--no-browser`` is given.

    Raises:
        NotSupported: the server listens on a Unix socket, or its console is off.
    """
    server = find(args.url, args.token)
    if server.uds:
        raise NotSupported(
            "A browser can't open a Unix socket. Start the server with --port, or reach it through a proxy and give "
            "the proxy's address with --url."
        )
    rest = Rest(server, connect_seconds=CONNECT_SECONDS, retry_seconds=CONNECT_SECONDS)
    try:
        answer = await rest.json("POST", "/console/tickets", {})
    except NotFound:
        raise NotSupported("This server has no console. Its setting 'console' is off, or it is older.") from None
    finally:
        rest.close()
    where = f"&to=/s/{quote(args.id, safe='')}" if args.id else ""
    # A fragment is never sent to a server (RFC 9110, section 7.1), so no log has the ticket.
    address = f"{server.base}/console/#ticket={answer['ticket']}{where}"
    terminal.line(address)
    if not args.no_browser and not webbrowser.open(address):
        terminal.message("No browser could be opened. Open the address within a minute. It works once.", "dim")
    return 0
