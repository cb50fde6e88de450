"""The grammar of the command line: each command, its options, its help and the function that runs it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, cast

from kernelsvc import __version__
from kernelsvc.settings import add_options

_EPILOG = """\
exit codes:
  0  success                           3  the server or this machine refused,
  1  a cell failed, a record is not       or a record is not proven
     as it was written, a replay       4  no server answers
     differs                         130  stopped by Ctrl-C
  2  the command line is not valid

Commands that need a server use --url and --token, else KERNELSVC_URL and
KERNELSVC_TOKEN, else your own server on this machine. If there is none, 'run',
'repl' and 'replay' start a server for the time of the command.
"""


class _Commands:
    """Adds subcommands, each with the function that runs it."""

    def __init__(self, parser: argparse.ArgumentParser, dest: str = "command") -> None:
        self._all = parser.add_subparsers(dest=dest, required=True)

    def add(self, name: str, target: str, help: str, description: str = "", **more: Any) -> argparse.ArgumentParser:
        module, _, function = target.partition(":")
        parser = self._all.add_parser(
            name, help=help, description=description or help[0].upper() + help[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter, **more,
        )  # fmt: skip
        parser.set_defaults(module=f"kernelsvc.cli.{module}", function=function, words=parser.prog)
        return parser


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
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
    _action_commands(commands)
    _workspace_commands(commands)
    _branch_commands(commands)
    _record_commands(commands)
    _model_commands(commands)
    _machine_commands(commands)
    return parser


def _server_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("server")
    group.add_argument("--url", help="http://HOST:PORT or unix:/path (default: KERNELSVC_URL, then your own server)")
    group.add_argument(
        "--token", help="default: KERNELSVC_TOKEN, then your own server's. Other users can see it in a process list"
    )


def _data_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-dir", metavar="DIR", help="the server's data directory (default: as 'kernelsvc serve')")
    parser.add_argument("--config", metavar="FILE", help="the server's settings file")


def _own_server_options(parser: argparse.ArgumentParser) -> None:
    _server_options(parser)
    parser.add_argument("--private", action="store_true", help="start a server for this command only")


def _json_option(parser: argparse.ArgumentParser, help: str = "print JSON") -> None:
    parser.add_argument("--json", action="store_true", help=help)


def _session_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("session")
    group.add_argument("--session", metavar="ID", help="use this session and leave it open (default: a new session)")
    group.add_argument("--template", help="environment to fork, or the name of a Jupyter kernelspec")
    group.add_argument("--name", help="display name")
    group.add_argument(
        "--limit", action="append", default=[], metavar="NAME=VALUE",
        help="a lower limit, such as memory_bytes=1e9 or cell_seconds=60. May be repeated",
    )  # fmt: skip
    group.add_argument(
        "--mount", action="append", default=[], metavar="NAME",
        help="show this mount of the server's settings at /data/NAME, read-only. May be repeated",
    )  # fmt: skip
    group.add_argument("--workspace", metavar="NAME", help="a folder that outlives the session, at /workspace")
    group.add_argument(
        "--upload", action="append", default=[], metavar="FILE",
        help="upload this file to the working directory first. May be repeated",
    )  # fmt: skip
    group.add_argument("--keep", action="store_true", help="leave the session open at the end")


def _server_commands(commands: _Commands) -> None:
    serve = commands.add(
        "serve",
        "serve:main",
        "start the server",
        "Start the server in the foreground. It prints its address and, if none is configured, a new token. It prints\n"
        "another line when sessions can start without a wait.\n\n"
        "Ctrl-C ends the server and every session, SIGTERM does with sessions as --on-stop says. SIGHUP and a crash\n"
        "keep sessions: the next server on the same data directory adopts them. A second Ctrl-C stops immediately.",
    )
    serve.add_argument("--while-fd", type=int, metavar="N", help="stop when the other end of this pipe closes")
    serve.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    _serve_options(serve)
    front = commands.add(
        "front",
        "cluster.front:main",
        "start a front: one address for the nodes of a cluster",
        "Start a front. Nodes join it ('kernelsvc serve --join URL'), and clients use it like a server. It keeps no\n"
        "session, so several fronts can run beside each other. It needs the settings file of the nodes, with the same\n"
        "tokens, and the same key in KERNELSVC_CLUSTER_KEY.",
    )
    front.add_argument(
        "--hold-seconds", type=float, default=10.0, metavar="N",
        help="requests wait so long for a node that does not answer (default: 10)",
    )  # fmt: skip
    front.add_argument(
        "--lost-seconds", type=float, default=600.0, metavar="N",
        help="after this silence the sessions of a node count as lost (default: 600)",
    )  # fmt: skip
    _serve_options(front)
    nodes = commands.add("nodes", "cluster.nodes:nodes", "list the nodes of a cluster and their faults")
    _server_options(nodes)
    _json_option(nodes)
    drain = commands.add(
        "drain",
        "cluster.nodes:drain",
        "have a server wait for its cells and stop",
        "Have the server of a data directory of this machine create no more sessions, wait for its running cells\n"
        "(drain_seconds at most) and stop as SIGTERM does (on_stop). The command ends with the server. Run it as the\n"
        "server's user. With NODE, a front asks that node, which also saves its sessions.",
    )
    drain.add_argument("node", metavar="NODE", nargs="?", help="a node of a cluster, from 'kernelsvc nodes'")
    _data_options(drain)
    drain.add_argument("--move", action="store_true", help="move its sessions to the other nodes, for good")
    _server_options(drain)
    _ray_commands(commands)
    host = commands.add(
        "kernel-host",
        "doctor:kernel_host",
        "start only the kernel host (as its systemd unit does)",
        "Start the kernel host: the process that owns templates, forks sessions and confines them. The server starts\n"
        "one if none runs. Under systemd the host has its own unit.",
    )
    _serve_options(host)
    egress = commands.add(
        "egress",
        "doctor:egress",
        "start only the egress proxy (as its systemd unit does)",
        "Start the egress proxy, through which sessions with network rules connect. The server starts one for the\n"
        "first such session. Under systemd the proxy has its own unit.",
    )
    _serve_options(egress)
    console = commands.add(
        "console",
        "sessions.console:console",
        "open the web console, signed in",
        "Print the address of the server's web console with a ticket, and open it in a browser. The ticket stands for\n"
        "your token, works once, and expires after a minute.",
    )
    console.add_argument("id", metavar="ID", nargs="?", help="a session to show (default: the list of sessions)")
    console.add_argument("--no-browser", action="store_true", help="only print the address")
    _server_options(console)


def _serve_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ready-fd", type=int, metavar="N", help="write a line to this file descriptor when ready")
    parser.add_argument("--verbose", "-v", action="count", default=0, help="log more, to standard error")
    _settings_options(parser, "'kernelsvc settings' prints the effective values and their origin")


def _settings_options(parser: argparse.ArgumentParser, description: str) -> None:
    # A group accepts options like a parser. argparse has no public type for both.
    add_options(cast("argparse.ArgumentParser", parser.add_argument_group("settings", description)))


def _run_commands(commands: _Commands) -> None:
    run = commands.add(
        "run",
        "run:main",
        "run a file, or standard input, cell by cell",
        "Run code in a session and show its output live. FILE is Python (cells separated by '# %%'), a notebook, or -\n"
        "for standard input. Ctrl-C interrupts the cell. A second Ctrl-C exits and leaves the cell running.\n\n"
        "Exits with 1 when a cell fails, without running the cells after it.",
    )
    run.add_argument("file", metavar="FILE|-", help="the code to run")
    run.add_argument("--timeout", type=float, metavar="SECONDS", help="maximum wall time of a cell")
    run.add_argument(
        "--save", metavar="FILE", help="at the end, write the notebook to this file (.ipynb, .html or .py)"
    )
    run.add_argument("--images", metavar="DIR", help="write the images that cells display to this directory")
    _json_option(run, "print every event as one line of JSON")
    _session_options(run)
    _own_server_options(run)
    repl = commands.add(
        "repl",
        "repl:main",
        "work in a session as in IPython",
        "Work in a session as in IPython: multi-line input, history, Tab completion by the live kernel, name? for\n"
        "help. Ctrl-C interrupts the cell, Ctrl-D exits. Lines that begin with ':' are commands for the session:\n"
        "see ':help'.",
    )
    _session_options(repl)
    _own_server_options(repl)
    demo = commands.add(
        "demo",
        "demo:main",
        "watch a data analysis run in a session",
        "Start a server, run an analysis of real data in a session over its WebSocket, show it live, and export\n"
        "it as a notebook.",
    )
    demo.add_argument("--out", metavar="DIR", default="out", help="directory of the notebook (default: ./out)")


def _session_commands(commands: _Commands) -> None:
    sessions = commands.add("sessions", "sessions.show:sessions", "list your sessions, newest first")
    sessions.add_argument("--state", help="only those in this state: starting, idle, busy, restoring, dead, closed")
    sessions.add_argument("--label", metavar="NAME[=VALUE]", help="only those with this label")
    sessions.add_argument("--all", action="store_true", help="include closed sessions")
    sessions.add_argument(
        "--principal", metavar="NAME", help="those of this principal, '*' for all. Needs a token with the scope audit"
    )
    sessions.add_argument("--limit", type=int, metavar="N", help="at most this many")
    _json_option(sessions)
    _server_options(sessions)
    show = commands.add("show", "sessions.show:show", "show a session: its cells, their output and their duration")
    show.add_argument("id", metavar="ID", help="the session")
    show.add_argument("--events", action="store_true", help="show its log instead, one event a line")
    show.add_argument(
        "--follow",
        "-f",
        action="store_true",
        help="show its cells, and new ones as they run. With --events or --json: its log",
    )
    _json_option(show)
    _server_options(show)
    why = commands.add(
        "why", "sessions.why:why", "say why a session ended",
        "Print what ended a session, and before it each death of its kernel, each limit that it reached, and\n"
        "each cell that ended with a cause, the last one first. Reads the session's log, also of a closed session, or\n"
        "a log in a file (journal.jsonl), which needs no server.",
    )  # fmt: skip
    why.add_argument("id", metavar="ID|FILE", help="the session, or its log")
    _server_options(why)
    tree = commands.add("tree", "sessions.show:tree", "show which session is a branch of which")
    tree.add_argument("id", metavar="ID", nargs="?", help="only the tree that has this session")
    _json_option(tree)
    _server_options(tree)


def _action_commands(commands: _Commands) -> None:
    for name, title in (
        ("close", "end sessions; their logs and notebooks stay"),
        ("interrupt", "interrupt the running cells of sessions"),
        ("hibernate", "save the variables of idle sessions to disk, and end their kernels"),
    ):
        action = commands.add(name, f"sessions.actions:{name}", title)
        action.add_argument("id", metavar="ID", nargs="+", help="a session")
        _json_option(action)
        _server_options(action)
    purge = commands.add(
        "purge",
        "sessions.actions:purge",
        "delete sessions for good: logs, notebooks and files",
        "Delete everything of closed sessions from the server's data directory, also from its archive. A signed\n"
        "record without content stays: which session, when, by whom, and the digest of its log. Prints the records as\n"
        "JSON, one a line. Branches are deleted before their parents. Backups are not touched.",
    )
    purge.add_argument("id", metavar="ID", nargs="*", help="a session, also an archived one")
    purge.add_argument(
        "--principal", metavar="NAME", help="every session of this principal. Needs a token with the scope operate"
    )
    purge.add_argument("--force", action="store_true", help="end open sessions first")
    _server_options(purge)
    for name, title in (
        ("approvals", "list the calls of a session's code that wait for approval"),
        ("approve", "let calls be carried out that wait for approval"),
        ("deny", "refuse calls that wait for approval"),
    ):
        decision = commands.add(name, f"sessions.approvals:{name}", title)
        decision.add_argument("id", metavar="ID", help="the session")
        if name != "approvals":
            decision.add_argument("call", metavar="CALL", nargs="*", help="a call (default: all that wait)")
        if name == "deny":
            decision.add_argument("--reason", metavar="TEXT", help="shown to the code")
        _json_option(decision)
        _server_options(decision)
    upload = commands.add(
        "upload",
        "sessions.actions:upload",
        "copy files into a session's working directory",
        "Copy files of this machine into a session's working directory. Prints their names there, one a line.",
    )
    upload.add_argument("id", metavar="ID", help="the session")
    upload.add_argument("file", metavar="FILE", nargs="+", help="a file of this machine")
    upload.add_argument("--to", metavar="NAME", help="its path in the working directory (default: its name)")
    _server_options(upload)
    download = commands.add("download", "sessions.actions:download", "copy a file out of a session's working directory")
    download.add_argument("id", metavar="ID", help="the session, open or closed")
    download.add_argument("file", metavar="FILE", help="its path in the working directory")
    download.add_argument(
        "-o", "--output", metavar="PATH", help="file or directory to write (default: .). - writes to standard output"
    )
    _server_options(download)


def _ray_commands(commands: _Commands) -> None:
    ray = commands.add(
        "ray",
        "cluster.ray:up",
        "run a node on each machine of a Ray cluster",
        "Ray reserves a share of each of its machines for a node, starts it and starts it again. Machines that come\n"
        "later get one, too. Sessions do not need Ray: they continue when it ends. It needs kernelsvc[ray].",
    )
    actions = _Commands(ray, "action")
    up = actions.add("up", "cluster.ray:up", "have each machine run a node, and return")
    up.add_argument("--config", metavar="FILE", help="the nodes' settings, which are sent to all machines")
    up.add_argument("--join", action="append", default=[], metavar="URL", help="a front. May be repeated")
    up.add_argument("--cluster-key-file", type=Path, metavar="FILE", help="default: $KERNELSVC_CLUSTER_KEY")
    up.add_argument("--cpus", type=float, default=1.0, metavar="N", help="processors of each machine (default: 1)")
    up.add_argument(
        "--memory", default="4GiB", metavar="SIZE",
        help="memory of each machine, which sessions are promised at most (default: 4GiB)",
    )  # fmt: skip
    up.add_argument(
        "--data", default="~/.local/share/kernelsvc-ray/{ip}", metavar="DIR",
        help="directory on each machine. {ip} is the machine's address (default: %(default)s)",
    )  # fmt: skip
    up.add_argument("--port", type=int, default=0, metavar="N", help="port of the nodes (default: a free one)")
    up.add_argument(
        "--command", default="", dest="program", metavar="WORDS",
        help="how the machines start kernelsvc (default: with Ray's Python, else from the path)",
    )  # fmt: skip
    status = actions.add("status", "cluster.ray:status", "list Ray's machines and their nodes")
    _json_option(status)
    down = actions.add("down", "cluster.ray:down", "save all sessions to disk, and stop all nodes")
    down.add_argument("--end", action="store_true", help="end the sessions instead")
    for each in (up, status, down):
        each.add_argument(
            "--address", metavar="ADDRESS", help="Ray's (default: $RAY_ADDRESS, or this machine's cluster)"
        )


def _workspace_commands(commands: _Commands) -> None:
    workspace = commands.add(
        "workspace",
        "workspaces:main",
        "list, share and remove workspaces, and copy their files",
        "Workspaces are named folders that outlive sessions. 'kernelsvc run --workspace NAME' shows one at\n"
        "/workspace, and makes it if it is missing. NAME is one of yours, OWNER/NAME another principal's.",
    )
    workspace.add_argument("action", choices=["list", "show", "set", "files", "upload", "download", "remove"])
    workspace.add_argument("name", metavar="NAME", nargs="?", help="the workspace (not for list)")
    workspace.add_argument(
        "file", metavar="FILE", nargs="?", help="for upload a file of this machine, for download one there"
    )
    workspace.add_argument(
        "--share",
        metavar="PRINCIPAL",
        action="append",
        help="for set: who else may use it, instead of those so far. May be repeated",
    )
    workspace.add_argument("--max-bytes", type=int, metavar="N", help="for set: its quota, at most the server's")
    workspace.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="for download: file to write (default: its name). - writes to standard output",
    )
    _json_option(workspace)
    _server_options(workspace)


def _branch_commands(commands: _Commands) -> None:
    branch = commands.add(
        "branch",
        "sessions.branch:branch",
        "make new sessions from a session's live state",
        "Fork a session's live kernel. Each branch has its variables, a copy of its files and its notebook so\n"
        "far, and is independent from then on. Prints their ids, one a line. 'kernelsvc tree ID' shows them as a\n"
        "tree.",
    )
    branch.add_argument("id", metavar="ID", help="the session")
    branch.add_argument("--count", type=int, metavar="N", default=1, help="number of branches (default: 1)")
    branch.add_argument(
        "--at", metavar="CHECKPOINT", help="start from this checkpoint, by name or id (default: the present state)"
    )
    branch.add_argument(
        "--label", metavar="NAME=VALUE", action="append", default=[], help="a label of the new sessions"
    )
    branch.add_argument("--force", action="store_true", help="branch even if some objects will be lost")
    branch.add_argument(
        "--isolate", action="store_true", help="in sandboxes of their own, with the variables that pickle can copy"
    )
    _json_option(branch)
    _server_options(branch)
    checkpoint = commands.add("checkpoint", "sessions.branch:checkpoint", "save a session's present state in memory")
    checkpoint.add_argument("id", metavar="ID", help="the session")
    checkpoint.add_argument("name", metavar="NAME", nargs="?", help="name of the checkpoint")
    _json_option(checkpoint)
    _server_options(checkpoint)
    rollback = commands.add(
        "rollback",
        "sessions.branch:rollback",
        "restore a session's variables to an earlier state",
        "Restore the state before the last cell, before a given cell, or of a checkpoint. The log and the\n"
        "notebook keep the undone cells, and mark them.",
    )
    rollback.add_argument("id", metavar="ID", help="the session")
    rollback.add_argument("to", metavar="TO", nargs="?", help="a checkpoint's name or id, or a cell's id")
    rollback.add_argument(
        "--no-replay", action="store_true", help="run no cell again: fail if the state has no checkpoint"
    )
    _json_option(rollback)
    _server_options(rollback)


def _record_commands(commands: _Commands) -> None:
    export = commands.add(
        "export",
        "sessions.record:export",
        "write a session's notebook, log or code",
        "Write a session as a notebook. The file's suffix selects the format: .ipynb, .html, .py, or .jsonl for\n"
        "the log.",
    )
    export.add_argument("id", metavar="ID", help="the session, open or closed")
    export.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="file to write (default: ID.ipynb). - writes the notebook to standard output",
    )
    _server_options(export)
    verify = commands.add(
        "verify",
        "sessions.record:verify",
        "check that a log or an exported notebook is unchanged",
        "Check the hash chain and the signatures of a log (journal.jsonl) or an exported notebook, without a server.\n"
        "\n"
        "exit codes:\n"
        "  0  verified: a signature of the key that --key names covers every entry (every cell)\n"
        "  1  NOT AS WRITTEN: the message names the first entry that was changed, removed, added or moved\n"
        "  2  the file can't be read, or is neither a log nor an exported notebook\n"
        "  3  NOT PROVEN: no fault, but no key was named, another key signed it, or entries are not covered",
    )
    verify.add_argument("file", metavar="FILE", help="journal.jsonl or .ipynb")
    verify.add_argument(
        "--key", metavar="KEY", help="the public key that must have signed it ('public_key' in /v1/info)"
    )
    verify.add_argument("--journal", metavar="FILE", help="the log that the notebook must agree with")
    _json_option(verify)
    replay = commands.add(
        "replay",
        "sessions.record:replay",
        "run a notebook again and report differences",
        "Run a notebook's cells in a new session, one by one, and compare their output with the output in the\n"
        "notebook. Exits with 1 when a cell's output differs.",
    )
    replay.add_argument("file", metavar="F.ipynb", help="a notebook, or a session's journal.jsonl, also compressed")
    replay.add_argument(
        "--tools",
        choices=("recorded", "live", "none"),
        default="recorded",
        help="results of calls to clients' functions: those of the record, new ones, or none. Default: recorded",
    )
    replay.add_argument("--save", metavar="FILE", help="write the new session's notebook to this file")
    _json_option(replay)
    _session_options(replay)
    _own_server_options(replay)


def _model_commands(commands: _Commands) -> None:
    mcp = commands.add(
        "mcp",
        "mcp:main",
        "serve MCP over standard input and output",
        "Serve one MCP client over standard input and output, for MCP hosts that start their servers as programs.\n"
        'In the host\'s configuration: {"mcpServers": {"kernelsvc": {"command": "kernelsvc", "args": ["mcp"]}}}\n\n'
        "The command uses the server of --url, else of KERNELSVC_URL, else your own running server. Sessions then\n"
        "outlive the command. If there is none, it starts a server for this client. That server ends with the\n"
        "command, and its notebooks and logs stay in --data-dir. A host that uses HTTP needs no command: give it\n"
        "the server's address followed by /mcp, and the token as 'Authorization: Bearer TOKEN'.",
    )
    mcp.add_argument(
        "--session", metavar="NAME|ID", help="session of calls that do not name one (default: a new session)"
    )
    mcp.add_argument(
        "--tools",
        metavar="core|all|NAME,...",
        default="all",
        help="tools to list (default: all). core is run_code, "
        "wait, read_output, interrupt, undo, write_file and read_file",
    )
    mcp.add_argument(
        "--facts",
        action="store_true",
        help="add the facts for programs to results, as structured content. Hosts may "
        "then hide text and pictures from the model",
    )
    mcp.add_argument(
        "--data-dir", metavar="DIR", help="data directory of a server that the command starts (default: the first "
        "unused one of mcp/1, mcp/2, ... in the user's data directory)",
    )  # fmt: skip
    _own_server_options(mcp)
    bridge = commands.add(
        "bridge",
        "bridge:main",
        "let code in sessions call tools of MCP servers",
        "Start or connect to the MCP servers of [tools.mcp.NAME] in the settings, and offer their tools to sessions.\n"
        "'kernelsvc serve' starts this command itself if the settings name such a server. Its token needs the scope\n"
        "provide.",
    )
    bridge.add_argument("--config", metavar="FILE", help="the settings file (default: that of 'kernelsvc serve')")
    _server_options(bridge)
    tools = commands.add(
        "tools",
        "mcp:tools",
        "print the tools for models, for function calling",
        "Print the definitions of the tools as JSON, for the field 'tools' of a request to a vendor's API.\n"
        "kernelsvc.integrations runs the calls in the reply.",
    )
    tools.add_argument(
        "--format", choices=["openai", "openai-responses", "anthropic", "gemini"], default="openai",
        help="format of the definitions (default: openai, for Chat Completions)",
    )  # fmt: skip
    tools.add_argument("tool", metavar="TOOL", nargs="*", help="only these (default: all)")


def _machine_commands(commands: _Commands) -> None:
    env = commands.add(
        "env",
        "environments:main",
        "make environments of Python packages for sessions",
        "Make, list and remove environments on the server's machine. A running server uses a new one within\n"
        "seconds, as the template NAME. 'add NAME PACKAGE...' makes a virtual environment (with uv, if it is\n"
        "installed), imports what --preload names, and refuses modules that leave threads running. 'update NAME'\n"
        "makes it again from the newest packages that its requirements allow. Running sessions continue. Without\n"
        "packages, --python PATH registers an existing environment. If a step fails, nothing is left.",
    )
    env.add_argument("action", choices=["add", "list", "show", "update", "remove"])
    env.add_argument("name", metavar="NAME", nargs="?", help="the environment, and its template (not for list)")
    env.add_argument("package", metavar="PACKAGE", nargs="*", help="add: a requirement as pip takes it")
    env.add_argument("-r", "--requirements", metavar="FILE", action="append", help="add: a file of requirements")
    env.add_argument("--python", metavar="PATH|VERSION", help="add: its interpreter (default: the server's)")
    env.add_argument("--preload", metavar="MODULE,...", action="append", help="add: modules to import once")
    env.add_argument("--owner", help=argparse.SUPPRESS)  # the server's, for templates that it builds
    _data_options(env)
    _json_option(env)
    doctor = commands.add(
        "doctor",
        "doctor:doctor",
        "report how sessions are confined on this machine",
        "Test each layer of confinement on this machine. Print whether it is enforced, or the reason and the\n"
        "command that would enable it. Exits with 1 when a layer is missing.",
    )
    _json_option(doctor)
    settings = commands.add("settings", "doctor:settings", "print each setting, its value and the origin of the value")
    _json_option(settings)
    _settings_options(settings, "as for 'serve'")
    token = commands.add(
        "token",
        "tokens:token",
        "create, list, revoke or rotate tokens, also while the server runs",
        "Manage the tokens of a data directory. A running server accepts a new token immediately. It refuses\n"
        "a revoked one within a second and closes its connections. Sessions belong to the name and outlive tokens.\n\n"
        "  kernelsvc token create NAME     print a new token of the principal NAME\n"
        "  kernelsvc token list            show ids, names, scopes and the last use (written once a minute)\n"
        "  kernelsvc token revoke ID       refuse this token, or every token of a NAME\n"
        "  kernelsvc token rotate ID       print a new token with the same rights; the old one expires",
    )
    token.add_argument("action", choices=["create", "list", "revoke", "rotate"])
    token.add_argument("name", nargs="?", metavar="NAME|ID", help="name of a principal, or the id of a token")
    token.add_argument("--scopes", help="separated by commas (default: run,approve)")
    token.add_argument("--max-sessions", type=int, metavar="N", dest="sessions_of_token", help="most open sessions")
    token.add_argument("--days", type=float, metavar="N", help="days until it expires (default: never)")
    token.add_argument("--keep-hours", type=float, metavar="N", default=24, help="rotate: hours for the old token (24)")
    token.add_argument("--e2b", action="store_true", help="a token in the form that E2B's clients insist on")
    _json_option(token, "list: print JSON")
    _data_options(token)
    backup = commands.add(
        "backup",
        "backup:backup",
        "copy a data directory while its server runs",
        "Write a compressed tar archive of a data directory. Of each log it has as much as the recorded head covers.\n"
        "So a server that is started on the copy knows every log as its own. 'kernelsvc restore' restores it.",
    )
    backup.add_argument("file", metavar="FILE.tar.gz", help="the archive. It gets mode 600")
    _data_options(backup)
    restore = commands.add(
        "restore",
        "backup:restore",
        "restore a backup into a new data directory",
        "Check an archive of 'kernelsvc backup' and restore it. DIRECTORY must be empty, or not exist. An archive\n"
        "that is incomplete, or has a log that is not as the server wrote it, leaves nothing there.",
    )
    restore.add_argument("file", metavar="FILE.tar.gz", help="the archive")
    restore.add_argument("directory", metavar="DIRECTORY", help="the new data directory")
    restore.add_argument("--key", metavar="KEY", help="the public key that must have signed it (see /v1/info)")
    restore.add_argument("--config", metavar="FILE", help="settings with its signing_key, or a new encryption key")
    lock = commands.add(
        "lock",
        "backup:lock",
        "remove the key of an encrypted data directory",
        "Remove the key of an encrypted data directory (encryption.key_file) from Linux, when its server has stopped.\n"
        "Its files stay unreadable until a server or a command adds the key again. Exits with 1 if files stay open.",
    )
    _data_options(lock)
    traces = commands.add(
        "traces",
        "companions.traces:main",
        "send spans of sessions to a receiver of OpenTelemetry's protocol",
        "Send the spans of a data directory's sessions to the receiver telemetry.endpoint. Without SESSION it follows\n"
        "the logs until it is ended: 'kernelsvc serve' starts it so if the settings name a receiver. With SESSION it\n"
        "sends all spans of these sessions, also of closed ones, and ends.",
    )
    traces.add_argument("session", metavar="SESSION", nargs="*", help="sessions whose spans are sent")
    _settings_options(traces, "as for 'serve'")
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
