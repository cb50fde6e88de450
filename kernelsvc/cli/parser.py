"""What the command line takes: every command, its options and its help, and where it is carried out."""

from __future__ import annotations

import argparse
from typing import Any, cast

from kernelsvc import __version__
from kernelsvc.settings import add_options

_EPILOG = """\
exit codes:
  0  all went well                     3  the server or this machine refused
  1  a cell failed, a record does not  4  no server answers
     verify, a replay differs        130  stopped by Ctrl-C
  2  the command line is wrong

Commands that talk to a server take --url and --token, else KERNELSVC_URL and
KERNELSVC_TOKEN, else your own server that runs on this machine. 'run', 'repl'
and 'replay' start one of their own when there is none.
"""


class _Commands:
    """Adds subcommands, each with the function that carries it out."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._all = parser.add_subparsers(dest="command", required=True)

    def add(self, name: str, target: str, help: str, description: str = "", **more: Any) -> argparse.ArgumentParser:
        module, _, function = target.partition(":")
        parser = self._all.add_parser(
            name, help=help, description=description or help[0].upper() + help[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter, **more,
        )  # fmt: skip
        parser.set_defaults(module=f"kernelsvc.cli.{module}", function=function)
        return parser


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="kernelsvc",
        description="Stateful IPython sessions for agents, on one machine: each a forked kernel, a log and a notebook.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"kernelsvc {__version__}")
    commands = _Commands(parser)
    _server_commands(commands)
    _run_commands(commands)
    _session_commands(commands)
    _branch_commands(commands)
    _record_commands(commands)
    _model_commands(commands)
    _machine_commands(commands)
    return parser


def _server_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("server")
    group.add_argument("--url", help="http://HOST:PORT or unix:/path (default: KERNELSVC_URL, then your own server)")
    group.add_argument(
        "--token", help="default: KERNELSVC_TOKEN, then your own server's; better not on a shared machine"
    )


def _own_server_options(parser: argparse.ArgumentParser) -> None:
    _server_options(parser)
    parser.add_argument("--private", action="store_true", help="start a server for this command alone")


def _json_option(parser: argparse.ArgumentParser, help: str = "print JSON") -> None:
    parser.add_argument("--json", action="store_true", help=help)


def _session_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("session")
    group.add_argument("--session", metavar="ID", help="use this session and leave it open (default: a new one)")
    group.add_argument("--template", help="environment to fork, or the name of a Jupyter kernelspec")
    group.add_argument("--name", help="a name for people")
    group.add_argument(
        "--limit", action="append", default=[], metavar="NAME=VALUE",
        help="a lower cap, such as memory_bytes=1e9 or cell_seconds=60; may be given more than once",
    )  # fmt: skip
    group.add_argument(
        "--upload", action="append", default=[], metavar="FILE",
        help="put this file into the working directory first; may be given more than once",
    )  # fmt: skip
    group.add_argument("--keep", action="store_true", help="leave the session open at the end")


def _server_commands(commands: _Commands) -> None:
    serve = commands.add(
        "serve",
        "serve:main",
        "start the server",
        "Start the server in the foreground. It prints its address and, if none is configured, a fresh token; then\n"
        "says when the first session would not have to wait.\n\n"
        "Ctrl-C and SIGTERM end it and every session; SIGHUP, a restart under systemd and a crash end no session: the\n"
        "next server on the same data directory finds them. A second Ctrl-C does not wait.",
    )
    serve.add_argument("--while-fd", type=int, metavar="N", help="stop when the other end of this pipe closes")
    _serve_options(serve)
    host = commands.add(
        "kernel-host",
        "doctor:kernel_host",
        "start the kernel host alone (systemd does)",
        "Start the kernel host: the process that owns templates, forks sessions and confines them. The server starts\n"
        "one when none is there; under systemd it is a unit of its own.",
    )
    _serve_options(host)


def _serve_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ready-fd", type=int, metavar="N", help="write a line to this descriptor when ready")
    parser.add_argument("--verbose", "-v", action="count", default=0, help="log more, to standard error")
    _settings_options(parser, "'kernelsvc settings' prints what holds, and why")


def _settings_options(parser: argparse.ArgumentParser, description: str) -> None:
    # A group takes options as a parser does; argparse has no public name for what both are.
    add_options(cast("argparse.ArgumentParser", parser.add_argument_group("settings", description)))


def _run_commands(commands: _Commands) -> None:
    run = commands.add(
        "run",
        "run:main",
        "run a file, or standard input, cell by cell",
        "Run code in a session and show what it prints as it prints it. FILE is Python (cells parted by '# %%'),\n"
        "a notebook, or - for standard input. Ctrl-C interrupts the cell; a second one lets go of it.\n\n"
        "Exits with 1 when a cell fails; the cells behind it are not run.",
    )
    run.add_argument("file", metavar="FILE|-", help="what to run")
    run.add_argument("--timeout", type=float, metavar="SECONDS", help="wall time of one cell")
    run.add_argument("--save", metavar="FILE", help="at the end, write the notebook here (.ipynb, .html or .py)")
    run.add_argument("--images", metavar="DIR", help="write the pictures that cells show into this directory")
    _json_option(run, "print every event as one line of JSON")
    _session_options(run)
    _own_server_options(run)
    repl = commands.add(
        "repl",
        "repl:main",
        "work in a session as in IPython",
        "Work in a session as in IPython: several lines, history, Tab completion by the live kernel, name? for help.\n"
        "Ctrl-C interrupts the cell, Ctrl-D leaves. Lines that begin with ':' speak to the session; see ':help'.",
    )
    _session_options(repl)
    _own_server_options(repl)
    demo = commands.add(
        "demo",
        "demo:main",
        "watch a data analysis run in a session",
        "Start a server, run an analysis of real data in a session over its WebSocket, show it as it happens, and\n"
        "export it as a notebook.",
    )
    demo.add_argument("--out", metavar="DIR", default="out", help="where the notebook goes (default: ./out)")


def _session_commands(commands: _Commands) -> None:
    sessions = commands.add("sessions", "show:sessions", "list your sessions, newest first")
    sessions.add_argument("--state", help="only those in this state: starting, idle, busy, restoring, dead, closed")
    sessions.add_argument("--label", metavar="NAME[=VALUE]", help="only those with this label")
    sessions.add_argument("--all", action="store_true", help="closed ones too")
    sessions.add_argument("--limit", type=int, metavar="N", help="at most this many")
    _json_option(sessions)
    _server_options(sessions)
    show = commands.add("show", "show:show", "show a session: its cells, what they printed, how long they took")
    show.add_argument("id", metavar="ID", help="the session")
    show.add_argument("--events", action="store_true", help="its log instead, one event a line")
    show.add_argument("--follow", "-f", action="store_true", help="and go on as events happen")
    _json_option(show)
    _server_options(show)
    tree = commands.add("tree", "show:tree", "show which session is a branch of which")
    tree.add_argument("id", metavar="ID", nargs="?", help="only this session's family")
    _json_option(tree)
    _server_options(tree)


def _branch_commands(commands: _Commands) -> None:
    branch = commands.add(
        "branch",
        "branch:branch",
        "make new sessions from one's live state",
        "Fork a session's live kernel: each branch has its variables, a copy of its files, its notebook so far, and\n"
        "goes its own way. Prints their ids, one a line; 'kernelsvc tree ID' shows the family.",
    )
    branch.add_argument("id", metavar="ID", help="the session")
    branch.add_argument("--count", type=int, metavar="N", default=1, help="how many (default: 1)")
    branch.add_argument("--at", metavar="CHECKPOINT", help="from this checkpoint, by name or id, and not from now")
    branch.add_argument("--label", metavar="NAME=VALUE", action="append", default=[], help="for finding them again")
    branch.add_argument("--force", action="store_true", help="go on although something will be lost")
    _json_option(branch)
    _server_options(branch)
    checkpoint = commands.add("checkpoint", "branch:checkpoint", "keep a session's present state")
    checkpoint.add_argument("id", metavar="ID", help="the session")
    checkpoint.add_argument("name", metavar="NAME", nargs="?", help="what to call it")
    _json_option(checkpoint)
    _server_options(checkpoint)
    rollback = commands.add(
        "rollback",
        "branch:rollback",
        "make a session's variables those of an earlier moment",
        "Undo: back to the state before the last cell, or before a cell, or to a checkpoint. The log and the notebook\n"
        "keep what was undone, marked so.",
    )
    rollback.add_argument("id", metavar="ID", help="the session")
    rollback.add_argument("to", metavar="TO", nargs="?", help="a checkpoint's name or id, or a cell's id")
    _json_option(rollback)
    _server_options(rollback)


def _record_commands(commands: _Commands) -> None:
    export = commands.add(
        "export",
        "record:export",
        "write a session's notebook, log or code",
        "Write a session as a notebook. The name's ending chooses the form: .ipynb, .html, .py, or .jsonl for the log.",
    )
    export.add_argument("id", metavar="ID", help="the session; closed ones too")
    export.add_argument("-o", "--output", metavar="FILE", help="where to (default: ID.ipynb; - is standard output)")
    _server_options(export)
    verify = commands.add(
        "verify",
        "record:verify",
        "check that a log or an exported notebook was not changed",
        "Check the chain of hashes and the signatures of a log (journal.jsonl) or an exported notebook. No server is\n"
        "needed. Exits with 1 and names the first entry that was changed, removed, added or moved.",
    )
    verify.add_argument("file", metavar="FILE", help="journal.jsonl or .ipynb")
    verify.add_argument("--key", metavar="KEY", help="the public key that must have signed it, as /v1/info shows it")
    verify.add_argument("--journal", metavar="FILE", help="for a notebook: the log that it must agree with")
    _json_option(verify)
    replay = commands.add(
        "replay",
        "record:replay",
        "run a notebook again and say what came out different",
        "Run a notebook's cells in a new session, one by one, and compare what they print and show with what the\n"
        "notebook holds. Exits with 1 when a cell came out different.",
    )
    replay.add_argument("file", metavar="F.ipynb", help="the notebook, or a session's journal.jsonl, also compressed")
    replay.add_argument("--save", metavar="FILE", help="write the new session's notebook here")
    _json_option(replay)
    _session_options(replay)
    _own_server_options(replay)


def _model_commands(commands: _Commands) -> None:
    mcp = commands.add(
        "mcp",
        "mcp:main",
        "give a model sessions: MCP over standard input and output",
        "Serve one MCP client over standard input and output: for hosts that start their tools as programs. In their\n"
        'configuration: {"mcpServers": {"kernelsvc": {"command": "kernelsvc", "args": ["mcp"]}}}\n\n'
        "It works on the server that --url, KERNELSVC_URL or your own running one names; sessions then outlive this\n"
        "command. With none there it starts one for this client alone, which ends with it; its notebooks and logs\n"
        "stay in --data-dir. A host that speaks HTTP needs no command: give it the server's address with /mcp behind\n"
        "it, and the token as 'Authorization: Bearer TOKEN'.",
    )
    mcp.add_argument(
        "--session", metavar="NAME|ID", help="what calls mean that name no session (default: one of this command's own)"
    )
    mcp.add_argument(
        "--data-dir", metavar="DIR", help="where a server of its own keeps its record (default: mcp/1, or the first "
        "that is free, in the user's data directory)",
    )  # fmt: skip
    _own_server_options(mcp)
    tools = commands.add(
        "tools",
        "mcp:tools",
        "print the tools that models are offered, for function calling",
        "Print the definitions of the tools as JSON, as a request to a vendor's API takes them under 'tools'. What\n"
        "carries out the calls that come back is kernelsvc.integrations.",
    )
    tools.add_argument(
        "--format", choices=["openai", "openai-responses", "anthropic", "gemini"], default="openai",
        help="whose form (default: openai, which is Chat Completions)",
    )  # fmt: skip
    tools.add_argument("tool", metavar="TOOL", nargs="*", help="only these (default: all)")


def _machine_commands(commands: _Commands) -> None:
    doctor = commands.add(
        "doctor",
        "doctor:doctor",
        "say what confines a session on this machine",
        "Try each layer of confinement on this machine: enforced, or why not and the command that would change it.\n"
        "Exits with 1 when a layer is missing.",
    )
    _json_option(doctor)
    settings = commands.add("settings", "doctor:settings", "print every setting, its value and where that came from")
    _json_option(settings)
    _settings_options(settings, "what 'serve' would be given")
    kernelspec = commands.add(
        "install-kernelspec",
        "install_kernelspec:install",
        "install a kernelspec that forks, for JupyterLab and other Jupyter applications",
        "Install a Jupyter kernelspec whose kernels are forks of this Python interpreter. They need no server.\n"
        "They are not confined, like all kernels of Jupyter. Applications of one user share one kernel host.",
    )
    kernelspec.add_argument("--name", default="kernelsvc", help="name of the kernelspec (default: kernelsvc)")
    kernelspec.add_argument("--prefix", metavar="DIR", help="environment to install into (default: for this user)")
    kernelspec.add_argument(
        "--preload", nargs="*", metavar="MODULE",
        help="modules to import once for all kernels (default: numpy, pandas and matplotlib.pyplot, if installed)",
    )  # fmt: skip
