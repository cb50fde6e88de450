"""Generate the reference pages from the code, or check that they are up to date.

    python docs/generate.py            write them
    python docs/generate.py --check    exit 1 and name each page that is out of date

A page is a function without arguments that returns its text. ``PAGES`` maps file to function. A generated part of
another page, such as the README's list of commands, stands between the markers ``<!-- generated: NAME -->`` and
``<!-- end -->``. ``PARTS`` maps the name to a function.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import re
import subprocess
import sys
import textwrap
import typing
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

import generate_ts
import msgspec

from kernelsvc import errors, settings
from kernelsvc.model import events as ev
from kernelsvc.model.state import MOVES
from kernelsvc.protocol import methods
from kernelsvc.server.native import openapi
from kernelsvc.tools import TOOLS
from kernelsvc.tools.schema import described, input_schema, output_schema

HERE = Path(__file__).parent
ROOT = HERE.parent
NOTE = "<!-- Written by docs/generate.py from the code. Run `make docs` to update it. -->\n\n"


# --- events ----------------------------------------------------------------------------


def events_page() -> str:
    """Return the page of events: meaning, fields, types, defaults."""
    lines = [
        "# Events",
        "",
        "One journal line is one event. Clients receive the same JSON: over the WebSocket as `params` of an `event` "
        "notification, over server-sent events as `data`. A field that is not set has the default shown. A client "
        "must tolerate types and fields that it does not know.",
        "",
        f"The journal's format is version {ev.SCHEMA}.",
        "",
        "## Envelope",
        "",
        *_fields(ev.Event, ev.Event, {"type": "which of the types below"}),
        "",
        "## Reasons",
        "",
        "Every accepted cell ends in exactly one `cell_finished`, with one of: "
        + ", ".join(f"`{reason.value}`" for reason in ev.Reason)
        + ".",
        "",
        "## Types",
        "",
    ]
    for kind in typing.get_args(ev.AnyEvent):
        tag = kind.__struct_config__.tag
        lines += [f"### {tag}", "", *_prose(kind), "", *_fields(kind, ev.Event), ""]
    return "\n".join(lines)


def _prose(kind: type) -> list[str]:
    """Return a docstring without its ``Attributes`` section, which the table of fields has."""
    return _code_marks(inspect.getdoc(kind) or "").split("\nAttributes:")[0].strip().split("\n")


def _code_marks(text: str) -> str:
    return text.replace("``", "`")


def _described(kind: type) -> dict[str, str]:
    """Return the descriptions by field, from the docstring's ``Attributes`` section."""
    section = (inspect.getdoc(kind) or "").partition("Attributes:\n")[2]
    found = re.findall(r"^    (\w+): (.*(?:\n {8,}.*)*)", section, re.MULTILINE)
    return {name: _code_marks(" ".join(text.split())) for name, text in found}


def _fields(kind: type[msgspec.Struct], base: type, extra: dict[str, str] | None = None) -> list[str]:
    described = _described(kind)
    inherited = set() if kind is base else {field.name for field in msgspec.structs.fields(base)}
    rows = [("type", "string", "", (extra or {})["type"])] if extra else []
    rows += [
        (field.encode_name, _type(field.type), _default(field), described.get(field.name, ""))
        for field in msgspec.structs.fields(kind)
        if field.name not in inherited
    ]
    if not rows:
        return ["No fields of its own."]
    head = ["| field | type | default | |", "|---|---|---|---|"]
    return head + [f"| `{name}` | {kind} | {default} | {text} |" for name, kind, default, text in rows]


def _default(field: msgspec.structs.FieldInfo) -> str:
    value = field.default
    if value is msgspec.NODEFAULT:
        if field.default_factory is msgspec.NODEFAULT:
            return "required"
        value = field.default_factory()
    if value is msgspec.UNSET:
        return "absent"
    if isinstance(value, msgspec.Struct):
        return ""
    return f"`{msgspec.json.encode(value).decode()}`"


def _type(kind: Any) -> str:
    """Return the name of a type in JSON."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return _type(args[0])
    if origin is typing.Literal:
        return " or ".join(f"`{arg}`" for arg in args)
    if origin in (list, tuple):
        return f"list of {_type(args[0])}"
    if origin is dict:
        return "object" if args[1] is Any else f"object of {_type(args[1])}"
    if args:
        return " or ".join(_type(arg) for arg in args if arg is not msgspec.UnsetType)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return " or ".join(f"`{member.value}`" for member in kind)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        inner = ", ".join(f"`{field.encode_name}`" for field in msgspec.structs.fields(kind))
        return f"object: {inner}"
    names = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null", Any: "anything"}
    return names.get(kind, getattr(kind, "__name__", str(kind)))


# --- errors, settings, states -----------------------------------------------------------


def errors_page() -> str:
    """Return the page of errors: the tree, and the meaning of each."""
    tree = textwrap.dedent((errors.__doc__ or "").partition("::\n\n")[2].partition("\n\nThe first")[0])
    lines = [
        "# Errors",
        "",
        "Every API reports errors as one object, `{code, message, retryable, details}`: REST as the body of an answer "
        "with the status shown, JSON-RPC in `error.data`. The message ends with the next step. `retryable` means that "
        "the same request may succeed later, unchanged. In Python, `kernelsvc.errors` has the classes.",
        "",
        "```text",
        tree.rstrip(),
        "```",
        "",
        "| code | status | retryable | whose fault | default message |",
        "|---|---|---|---|---|",
    ]
    for code, kind in sorted(errors.BY_CODE.items()):
        if not kind.__module__.endswith(".errors"):
            continue
        retry = "yes" if kind.retryable else "no"
        message = _code_marks(kind().message)
        lines.append(f"| `{code}` | {kind.http_status} | {retry} | {kind.fault} | {message} |")
    return "\n".join(lines) + "\n"


def settings_page() -> str:
    """Return the page of settings."""
    return (
        "# Settings\n\n"
        "Each is an option of `kernelsvc serve` (`--max-sessions 50`), an environment variable "
        "(`KERNELSVC_MAX_SESSIONS=50`) and a key of the TOML file (`max_sessions = 50`, with `limits.memory_bytes` in "
        "the table `[limits]`). The file is named by `--config` or `KERNELSVC_CONFIG`. The command line takes "
        "precedence over the environment, the environment over the file, the file over the platform's default. "
        "`kernelsvc settings` prints each setting with its value and its source.\n\n" + settings.markdown()
    )


def states_page() -> str:
    """Return the page of the session's state machine, drawn from its table."""
    lines = [
        "# States of a session",
        "",
        "The state machine in `kernelsvc/model/machine.py` decides a session's state. This diagram is drawn from "
        "`MOVES` in `kernelsvc/model/state.py`. An illegal move is an error and changes nothing.",
        "",
        "```mermaid",
        "stateDiagram-v2",
        "    [*] --> starting",
        *(f"    {here.value} --> {there.value}" for here, to in MOVES.items() for there in sorted(to)),
        *(f"    {state.value} --> [*]" for state, to in MOVES.items() if not to),
        "```",
        "",
        "| from | to |",
        "|---|---|",
        *(f"| `{here.value}` | {_listed(to)} |" for here, to in MOVES.items()),
    ]
    return "\n".join(lines) + "\n"


def _listed(states: Iterable[StrEnum]) -> str:
    return ", ".join(f"`{state.value}`" for state in sorted(states)) or "final"


# --- the API ------------------------------------------------------------------------------


WEBSOCKET_CLIENT = """
import asyncio, json, os

from websockets.asyncio.client import connect


async def main():
    url = os.environ["KERNELSVC_URL"].replace("http", "ws", 1) + "/v1/ws"
    token = {"Authorization": "Bearer " + os.environ["KERNELSVC_TOKEN"]}
    async with connect(url, additional_headers=token) as socket:

        async def call(id, method, **params):
            await socket.send(json.dumps({"jsonrpc": "2.0", "id": id, "method": method, "params": params}))
            while (message := json.loads(await socket.recv())).get("id") != id:
                print(message["params"]["seq"], message["params"]["type"])
            return message["result"]

        session = await call(1, "session.create")
        cell = await call(2, "session.execute", session=session["id"], code="print(6 * 7)")
        print(cell["reason"], cell["text"])
        await call(3, "session.close", session=session["id"])


asyncio.run(main())
"""


def websocket_page() -> str:
    """Return the page of the WebSocket's methods, from the table that dispatches them."""
    lines = [
        "# WebSocket",
        "",
        "`/v1/ws` speaks JSON-RPC 2.0 in text frames, for many sessions on one connection. Events of the sessions "
        'that this connection is attached to arrive as `{"jsonrpc": "2.0", "method": "event", "params": EVENT}`, in '
        "order of `seq` for each session, without gap or repeat ([events](events.md)). `error.data` "
        "holds the [error object](errors.md). Parameters are named, never positional, and unknown ones are refused.",
        "",
        "The token goes into `Authorization: Bearer TOKEN`. A browser's WebSocket can't send headers. It "
        "offers the subprotocols `kernelsvc.v1` and `kernelsvc.bearer.TOKEN`, with the token in base64url without `=`, "
        "or uses `?token=TOKEN`, which ends up in logs of proxies.",
        "",
        "A complete client, with the package `websockets`:",
        "",
        "```python",
        *WEBSOCKET_CLIENT.strip().splitlines(),
        "```",
        "",
        "| method | scope | result | |",
        "|---|---|---|---|",
        *(
            f"| [`{row.name}`](#{_anchor(row.name)}) | `{row.scope}` | {_result(row.result)} | {row.summary} |"
            for row in methods.METHODS.values()
        ),
        "",
    ]
    for row in methods.METHODS.values():
        lines += [f"## {row.name}", "", row.summary, "", *_fields(row.params, msgspec.Struct), ""]
    return "\n".join(lines)


def rest_page() -> str:
    """Return the page of the REST routes, from the OpenAPI document."""
    document = openapi.openapi("")
    lines = [
        "# REST",
        "",
        "The same operations as over the [WebSocket](websocket.md), answered with the same [objects](objects.md). "
        "`GET /v1/openapi.json` is this page for programs, with all types. The token goes into `Authorization: Bearer "
        "TOKEN`. The body of an error is the [error object](errors.md).",
        "",
        "From a session to its notebook with curl:",
        "",
        "```bash",
        *REST_CLIENT.strip().splitlines(),
        "```",
        "",
        "| | query and headers | answers | |",
        "|---|---|---|---|",
    ]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            names = [p["name"] for p in operation.get("parameters", []) if p["in"] != "path"]
            codes = sorted(code for code in operation["responses"] if code != "default")
            told = (", ".join(f"`{name}`" for name in names), ", ".join(codes), operation["summary"])
            lines.append(f"| `{method.upper()} {path}` | {' | '.join(told)} |")
    return "\n".join(lines) + "\n"


REST_CLIENT = r"""
call() { curl -sS --fail-with-body -H "Authorization: Bearer $KERNELSVC_TOKEN" "$@"; }

session=$(call -X POST "$KERNELSVC_URL/v1/sessions" | python -c 'import json, sys; print(json.load(sys.stdin)["id"])')
cells=$KERNELSVC_URL/v1/sessions/$session/cells

# wait for the cell ...
call "$cells" -H 'Content-Type: application/json' -d '{"code": "x = 6 * 7\nprint(x)"}'
# ... or watch it
call -N "$cells" -H 'Content-Type: application/json' -H 'Accept: text/event-stream' -d '{"code": "print(x + 1)"}'

echo 'a,b' | call -T - "$KERNELSVC_URL/v1/sessions/$session/files/data.csv"
call "$KERNELSVC_URL/v1/sessions/$session/events?after=2&limit=3"
call -o session.ipynb "$KERNELSVC_URL/v1/sessions/$session/notebook"
call -X DELETE "$KERNELSVC_URL/v1/sessions/$session"
"""


def _anchor(heading: str) -> str:
    return heading.lower().replace(".", "")


def _result(kind: Any) -> str:
    if kind is None:
        return "null"
    if typing.get_origin(kind) is list and _is_struct(typing.get_args(kind)[0]):
        return f"list of {_result(typing.get_args(kind)[0])}"
    if _is_struct(kind):
        return f"[{kind.__name__}](objects.md#{kind.__name__.lower()})"
    return _type(kind)


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def objects_page() -> str:
    """Return the page of the objects in responses."""
    kinds: dict[str, type[msgspec.Struct]] = {}
    for row in methods.METHODS.values():
        _gather(row.result, kinds)
    lines = ["# Objects", "", "The objects in the answers of every API.", ""]
    for name, kind in sorted(kinds.items()):
        lines += [f"## {name}", "", *_prose(kind), "", *_fields(kind, kind), ""]
    return "\n".join(lines)


def _gather(kind: Any, kinds: dict[str, type[msgspec.Struct]]) -> None:
    """Collect the structs in a type."""
    for part in typing.get_args(kind):
        _gather(part, kinds)
    if _is_struct(kind) and kind.__name__ not in kinds:
        kinds[kind.__name__] = kind
        for field in msgspec.structs.fields(kind):
            _gather(field.type, kinds)


# --- the command line -------------------------------------------------------------------


def _help(*words: str) -> str:
    """Return the output of ``kernelsvc WORDS --help``, at a fixed width."""
    # The defaults that help texts show must not be this machine's.
    env = {k: v for k, v in os.environ.items() if not k.startswith("KERNELSVC_")}
    env |= {"COLUMNS": "100", "NO_COLOR": "1", "PYTHON_COLORS": "0"}
    command = [sys.executable, "-m", "kernelsvc", *words, "--help"]
    out = subprocess.run(command, env=env, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    return "\n".join(line.rstrip() for line in out.strip().splitlines())


def _commands(text: str) -> list[str]:
    """Return the subcommands in the usage line of a help text."""
    found = re.search(r"\{([\w,-]+)\}", text)
    return found.group(1).split(",") if found else []


def cli_page() -> str:
    """Return the page of the command line: the help of each command."""
    top = _help()
    lines = ["# Command line", "", "```text", top, "```", ""]
    for name in _commands(top):
        lines += [f"## kernelsvc {name}", "", "```text", _help(name), "```", ""]
    return "\n".join(lines)


# --- the client ---------------------------------------------------------------------------


def client_page() -> str:
    """Return the page of the client's public methods, from their docstrings."""
    client = importlib.import_module("kernelsvc.client")
    lines = [
        "# Client",
        "",
        "`from kernelsvc import Client` blocks; `from kernelsvc import AsyncClient` has the same methods to await. "
        "Both reconnect by themselves after a lost connection, and resume after the last event that they saw.",
        "",
        "A program that only talks to a server needs the client alone: `pip install ./clients/python` installs it with "
        "three packages instead of about ninety. The errors are in `kernelsvc` too: `from kernelsvc import NotFound`.",
        "",
    ]
    for name in ("AsyncClient", "AsyncSession", "AsyncStream", "Cell", "Image", "FileInfo"):
        kind = getattr(client, name)
        lines += [f"## {name.removeprefix('Async')}", "", _docstring(kind), ""]
        lines += [line for method in _methods(kind) for line in (*method, "")]
    return "\n".join(lines)


def _docstring(thing: object) -> str:
    """Convert a Google-style docstring to Markdown: a heading for each section, a list item for each entry."""
    lines, section = [], False
    for line in _code_marks(inspect.getdoc(thing) or "").splitlines():
        if re.fullmatch(r"(Args|Attributes|Returns|Raises|Yields):", line):
            lines += [f"*{line[:-1]}*", ""]
            section = True
        elif section and (entry := re.match(r" {4}(\*{0,2}\w[\w, .]*): (.*)", line)):
            lines.append(f"- `{entry[1]}`: {entry[2]}")
        elif section and line.startswith("    "):
            lines.append(line.strip() if not lines[-1].startswith(("-", " ")) else f"  {line.strip()}")
        else:
            section = False
            lines.append(line)
    return "\n".join(lines)


def _methods(kind: type) -> Iterator[list[str]]:
    for name, method in vars(kind).items():
        if name.startswith("_") or not (inspect.isfunction(method) or isinstance(method, property)):
            continue
        target = method.fget if isinstance(method, property) else method
        shown = name if isinstance(method, property) else f"{name}{_signature(target)}"
        yield [f"### {name}", "", "```text", shown, "```", "", _docstring(target)]


def _signature(method: Callable[..., Any]) -> str:
    signature = inspect.signature(method)
    parameters = [p for p in signature.parameters.values() if p.name != "self"]
    text = str(signature.replace(parameters=parameters))
    for noise in ("kernelsvc.client.values.", "kernelsvc.model.objects.", "typing.", "'", '"'):
        text = text.replace(noise, "")
    return text


#: argparse breaks its lines differently from one Python to the next: this one's are in the page.
CLI_PYTHON = (3, 11)

# --- writing -------------------------------------------------------------------------------

# --- branching -------------------------------------------------------------------------

BRANCHING = """\
# Branching reference

A branch, a checkpoint and a rollback are forks of the live kernel's process. The contents of a process fall into
three classes:

* **works**: it works in both copies.
* **warning**: both copies share it, and a warning says so.
* **refused**: the fork is refused with `cannot_fork` before anything changes, because a copy would hang, crash or
  corrupt something later. Each reason names the thread, library, file or task, and ends with the remedy.

A refused automatic checkpoint is skipped, and `checkpoint_skipped` has the reason. With `force` the fork happens
anyway, and the reasons become warnings. The warnings of a branch are in its `parent.warnings` and in its parent's
`branched` event, those of a checkpoint in the checkpoint.

Each row is a test. `make test` runs those that need no further library, `make test-matrix` the others, each library
in its own environment.

"""

BETWEEN = """
## Between a session and its branches

A session and its branches live in one sandbox: one init, one set of namespaces and filters, one `/tmp` and
`/dev/shm`. Each has its own id, log, notebook, directory, cgroup and limits. `limits` of `session.branch` lowers
them. `network` is the same for all.

* **Files**: a branch's directory is a copy of its parent's. The branch itself makes the copy, with no more rights
  than it has. Where the filesystem can (btrfs, XFS, bcachefs), the copy shares its blocks until one is written. A
  directory with more than the branch's `disk_bytes`, or more than the disk has room for, is refused before anything
  changes. During the copy of a large one, `branching` events of the parent report the progress.
* **Access**: all sessions of the group may read each other's directories, and none may write into another's
  (Landlock). A parent is kept out of its branches' directories for nine branchings: Linux allows 16 layers for a
  process, and some remain for branches of branches. After that, `branched` says that the parent could write into the
  later directories.
* **Memory**: these sessions can't read each other's memory or signal each other, with one exception. A parent that
  has started programs can still signal its branches, because it could not end those programs otherwise.
* **Permissions and times of files**: Landlock does not restrict chmod(2), utime(2), and the extended attributes of
  files. All of the group have one user id, so a branch can change these on its parent's files, and a parent on its
  branches'. It can't change contents or names.
* **Programs from before the branch** (a subprocess, a daemon, a thread that `force` left running) keep their rights:
  they can read a branch's memory and write into its directory. They can't write its memory. Warnings name the child
  processes, and the daemons that the sandbox still runs.
* **`/proc`**: a process may write only below its own directory there. So it can't change another's memory, OOM score
  or other settings.
* **Accounting**: Linux charges memory to the process that touched it first. A branch reads its parent's pages for
  nothing and pays, in its own cgroup, for the pages that it writes. The pages of a closed parent stay charged to its
  cgroup while a branch still maps them. Memory that runs out in one ends none of the others. Without cgroups, limits
  are supervised.
* **Random numbers** of a branch continue its parent's until you seed them.

A rollback never undoes, and a branch never copies: files outside the directory, databases, the network, other
processes, time.
"""


def branching_page() -> str:
    """Return the table of objects that survive a fork, a row for each test of the matrix."""
    sys.path.insert(0, str(ROOT / "tests"))
    rows = importlib.import_module("matrix.rows").ROWS
    lines = ["| | in a branch | |", "|---|---|---|"]
    for row in rows:
        kind = "refused" if row.refused else "warning" if row.told else "works"
        lines.append(f"| {row.what} | **{kind}** | {row.meaning} |")
    return BRANCHING + "\n".join(lines) + "\n" + BETWEEN


def tools_page() -> str:
    """Return the page of tools for models: description, arguments, facts of the result."""
    lines = [
        "# Tools",
        "",
        "Tools for models, the same by [MCP](../howto/mcp.md) and by [function calling](../howto/function-calling.md). "
        "Models read this wording. Every answer is text (and pictures) for the model. Its *facts* hold the same for "
        "programs: MCP's structured content, `ToolResult.facts`, LangChain's artifact. `kernelsvc tools` prints the "
        "definitions as JSON.",
    ]
    for tool in TOOLS.values():
        hints = {"changes nothing": tool.reads, "may lose something": tool.destroys, "safe to repeat": tool.repeats}
        said = ", ".join(word for word, holds in hints.items() if holds)
        lines += [
            "",
            f"## `{tool.name}`",
            "",
            described(tool, " Then what the server has: installed packages, no network.").about,
            "",
            *([f"*{said}*", ""] if said else []),
        ]
        given = input_schema(tool)
        if given["properties"]:
            lines += ["| argument | type | default | |", "|---|---|---|---|"]
            required = given.get("required", [])
            lines += [_argument(name, each, name in required) for name, each in given["properties"].items()]
            lines.append("")
        lines.append("Facts: " + ", ".join(f"`{name}`" for name in output_schema(tool)["properties"]) + ".")
    return "\n".join(lines)


def _argument(name: str, schema: dict[str, Any], required: bool) -> str:
    default = "required" if required else f"`{schema['default']!r}`" if "default" in schema else ""
    kind = " or ".join(f"`{each}`" for each in schema["enum"]) if "enum" in schema else schema["type"]
    return f"| `{name}` | {kind} | {default} | {schema.get('description', '')} |"


PAGES: dict[str, Callable[[], str]] = {
    "docs/reference/tools.md": tools_page,
    "docs/reference/branching.md": branching_page,
    "docs/reference/events.md": events_page,
    "docs/reference/errors.md": errors_page,
    "docs/reference/settings.md": settings_page,
    "docs/reference/states.md": states_page,
    "docs/reference/websocket.md": websocket_page,
    "docs/reference/rest.md": rest_page,
    "docs/reference/objects.md": objects_page,
    "docs/reference/cli.md": cli_page,
    "docs/reference/client.md": client_page,
    "clients/typescript/src/generated.ts": generate_ts.api_module,
    "clients/typescript/src/ai/generated.ts": generate_ts.tools_module,
}


def drifted(*, write: bool) -> list[str]:
    """Return the pages that are out of date. With ``write`` update them."""
    found = []
    for name, page in PAGES.items():
        if page is cli_page and not write and sys.version_info[:2] != CLI_PYTHON:
            continue
        path = ROOT / name
        text = ("" if path.suffix == ".ts" else NOTE) + page().rstrip() + "\n"
        if not path.exists() or path.read_text("utf-8") != text:
            found.append(name)
            if write:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, "utf-8")
    return found


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; fail when a page is out of date")
    check = parser.parse_args().check
    found = drifted(write=not check)
    for name in found:
        print(f"{name}: {'out of date; run make docs' if check else 'written'}")
    return 1 if check and found else 0


if __name__ == "__main__":
    sys.exit(main())
