"""The table of settings, from which command line, environment, TOML file and docs are derived.

The fields of ``Settings`` are the table. A field has a type, which is checked, and a ``Meta`` with its help and unit.
``rows()`` flattens it (``limits`` becomes ``limits.memory_bytes`` and so on), and ``load()`` fills it. Precedence:
command line, environment, file, platform, default. Modules below ``service`` get values as arguments, and do not read
the environment.

A plain ``token`` never becomes a field: ``load()`` hashes it.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import os
import tempfile
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec
import platformdirs
from msgspec import Meta

from kernelsvc.errors import BadRequest
from kernelsvc.model.answers.model_settings import ANSWER_HELP, AnswerSettings, ModelSettings
from kernelsvc.model.identity import oidc
from kernelsvc.model.limits import Limits
from kernelsvc.model.network.hosts import check_fixed_hosts
from kernelsvc.model.network.policy import check_secrets
from kernelsvc.model.network.rules import NetworkRules
from kernelsvc.model.network.secrets import SecretName, SecretSource
from kernelsvc.model.objects import Scope
from kernelsvc.model.storage import encryption
from kernelsvc.model.storage.mounts import Mount, MountName, why_unsafe
from kernelsvc.model.storage.name_rules import in_words
from kernelsvc.model.tokens import TokenRecord, hash_token, record_for, weakness
from kernelsvc.model.tool_calls.mcp_servers import McpName, McpServer
from kernelsvc.model.tracing import target
from kernelsvc.model.tracing.target import TelemetrySettings

MiB = 1024 * 1024
ENV_PREFIX = "KERNELSVC_"
#: Bytes of its path. unix(7): sun_path has 108 bytes, and a kernel's id and suffix take about 40.
MAX_RUNTIME_DIR = 64


class Template(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An environment that sessions are forked from.

    Attributes:
        python: path of the interpreter. Empty means the server's own.
        preload: modules to import once, before the first session.
        allow_modules: the only top-level modules that a cell may import, if set. Guidance for a model: code can evade
            it.
        deny_modules: top-level modules that a cell may not import, likewise.
        hints: whether an error's lines for a model end with a fact about the session that explains it.
    """

    python: str = ""
    preload: list[str] = []
    allow_modules: list[str] | None = None
    deny_modules: list[str] = []
    hints: bool = True


DEFAULT_TEMPLATES = {"python3": Template(preload=["numpy", "pandas", "matplotlib.pyplot"])}


def _meta(help: str, unit: str | None = None, **bounds: Any) -> Meta:
    return Meta(description=help, extra={"unit": unit} if unit else {}, **bounds)


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of the server. ``sources`` names the origin of each value, ``config_file`` the file or is empty."""

    host: Annotated[str, _meta("Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, _meta("TCP port. 0 picks a free one.", ge=0, le=65535)] = 8888
    uds: Annotated[Path | None, _meta("Listen on this Unix socket (mode 0600) instead of TCP.")] = None
    uds_group: Annotated[
        str | None,
        _meta("Group, by name or number, that may connect to the Unix socket (mode 0660), such as the proxy's."),
    ] = None
    data_dir: Annotated[
        Path | None,
        _meta("Directory of sessions, index and keys. Default: $STATE_DIRECTORY, or the user's data directory."),
    ] = None
    runtime_dir: Annotated[
        Path | None,
        _meta("Directory of sockets (mode 0700, a short path). Default: one for each data_dir, by platform."),
    ] = None
    signing_key: Annotated[
        Path | None,
        _meta(
            "File with the private key (Ed25519, PEM) that signs logs and notebooks. "
            "Default: $CREDENTIALS_DIRECTORY/signing-key (systemd's LoadCredential), or keys/ed25519.pem in data_dir."
        ),
    ] = None
    head_log: Annotated[
        Literal["off", "syslog"],
        _meta("Send each signed head of a log to syslog or journald, so that a copy exists outside of data_dir."),
    ] = "off"
    tokens: Annotated[
        list[TokenRecord], _meta("Principals: name, sha256 (or token), and optionally scopes and max_sessions.")
    ] = []
    origins: Annotated[
        list[str], _meta("Web origins that may call the server, such as https://example.org. * allows any.")
    ] = []
    console: Annotated[
        Literal["on", "read-only", "off"],
        _meta("The web console at /console/. read-only: its page offers nothing that changes a session."),
    ] = "on"
    console_scripts: Annotated[
        Literal["ask", "never"],
        _meta("Whether the web console offers to run the scripts of an output, in a frame that reaches nothing."),
    ] = "ask"
    log_format: Annotated[
        Literal["text", "json"], _meta("Format of the server's log on standard error: text, or one JSON object a line.")
    ] = "text"
    metrics_scope: Annotated[
        Scope | None, _meta("Scope that a token needs for /metrics. None: no token is needed.")
    ] = None
    hosts: Annotated[
        list[str],
        _meta(
            "Names under which clients reach a server on loopback, for example through a proxy. *.example.org allows "
            "all names below. Others get no answer on routes without a token."
        ),
    ] = []
    journal_sync: Annotated[
        Literal["ack", "run", "off"],
        _meta("Sync the log before a client gets a cell's end (ack), also before the cell runs (run), or never (off)."),
    ] = "ack"
    sandbox: Annotated[
        Literal["required", "best-effort", "off"],
        _meta("Confinement of sessions. Under systemd the default is required."),
    ] = "best-effort"
    start_host: Annotated[
        bool, _meta("Start a kernel host if none runs. Under systemd the default is false: the host has its own unit.")
    ] = True
    egress_hosts: Annotated[
        dict[str, str],
        _meta("Addresses of names that sessions with network rules connect to, as in hosts(5). Others are looked up."),
    ] = msgspec.field(default_factory=dict)
    egress_ca: Annotated[
        Path | None,
        _meta(
            "PEM file of authorities, besides the system's, for the certificates of servers whose requests are read."
        ),
    ] = None
    secrets: Annotated[
        dict[SecretName, SecretSource],
        _meta("Secrets that network rules add to requests, by name: hosts, and one of file, command, env."),
    ] = {}
    default_template: Annotated[str, _meta("Template of a session that does not name one.", min_length=1)] = "python3"
    templates: Annotated[
        dict[str, Template], _meta("Environments to fork sessions from, by name: python, preload.")
    ] = msgspec.field(default_factory=lambda: dict(DEFAULT_TEMPLATES))
    mounts: Annotated[
        dict[MountName, Mount],
        _meta("Directories that sessions may ask to see, read-only at /data/NAME, by name: path, principals."),
    ] = {}
    ports: Annotated[
        Literal["off", "private", "on", "open"],
        _meta(
            "Who may reach servers in sessions: no one (off), requests with a token or a signed address (private), and "
            "everybody for ports that their owner makes public (on). open: those of E2B's sandboxes are public."
        ),
    ] = "on"
    port_domain: Annotated[
        str, _meta("Domain whose names PORT-SESSION.DOMAIN lead here by HTTPS, so that each port has a web origin.")
    ] = ""
    port_connections: Annotated[int, _meta("Maximum number of connections to the ports of one session.", ge=1)] = 64
    port_bytes: Annotated[
        int, _meta("Maximum size of a request to a port, of its response, and of a WebSocket's data.", "bytes", ge=1)
    ] = 1024 * MiB
    wheelhouse: Annotated[
        Path | None,
        _meta("Directory of wheels that sessions can install from with pip, without a network. Read-only at /wheels."),
    ] = None
    workspace_bytes: Annotated[
        int | None,
        _meta("Size of one workspace. Above it cells that write to it are interrupted.", "bytes", ge=MiB),
    ] = 10240 * MiB
    max_workspaces_per_principal: Annotated[int, _meta("Maximum number of workspaces of one principal.", ge=0)] = 100
    warm_pool: Annotated[
        int,
        _meta(
            "Maximum number of confined kernels kept ready for new sessions. Demand decides how many.", ge=0, le=1000
        ),
    ] = 0
    limits: Annotated[Limits, _meta("The limits of a session. A request may lower them.")] = Limits()
    max_sessions: Annotated[int, _meta("Maximum number of open sessions on this server.", ge=1)] = 2000
    max_sessions_per_principal: Annotated[int, _meta("Maximum number of open sessions of one principal.", ge=1)] = 2000
    max_total_memory_bytes: Annotated[
        int | None, _meta("Memory of all sessions together. Above it the server creates no session.", "bytes", ge=MiB)
    ] = None
    max_cell_output_bytes: Annotated[
        int | None,
        _meta("Maximum output of one cell in the log. Above it the cell is interrupted, then killed.", "bytes", ge=MiB),
    ] = 1024 * MiB
    # Room for 64 cells of the largest output. A kernel that writes 300 MB/s reaches it in under four minutes.
    max_log_bytes: Annotated[
        int | None,
        _meta("Maximum size of a session's log. Above it output is dropped and cells are refused.", "bytes", ge=MiB),
    ] = 65536 * MiB
    max_queued_cells: Annotated[int, _meta("Maximum number of queued cells in one session.", ge=1)] = 1000
    max_body_bytes: Annotated[
        int, _meta("Maximum size of a request body, except of file uploads.", "bytes", ge=1024)
    ] = 64 * MiB
    max_frame_bytes: Annotated[int, _meta("Maximum size of a WebSocket message.", "bytes", ge=1024)] = 64 * MiB
    max_code_bytes: Annotated[int, _meta("Maximum size of one cell's code.", "bytes", ge=1024)] = 4 * MiB
    max_connections: Annotated[
        int, _meta("Maximum number of open connections, at most half of the process's limit of open files.", ge=1)
    ] = 8192
    max_unauthenticated_connections: Annotated[
        int,
        _meta("Connections of one peer address that have not sent a token yet. One more closes the oldest.", ge=1),
    ] = 256
    request_head_seconds: Annotated[float, _meta("Time for a client to send a request's headers.", "seconds", gt=0)] = (
        10.0
    )
    max_requests: Annotated[int, _meta("Maximum number of concurrent requests on one WebSocket.", ge=1)] = 4096
    ping_seconds: Annotated[float, _meta("Idle time after which the server pings a WebSocket.", "seconds", gt=0)] = 20.0
    ping_timeout_seconds: Annotated[
        float, _meta("Silence after which the server closes a WebSocket as dead.", "seconds", gt=0)
    ] = 120.0
    keepalive_seconds: Annotated[
        float, _meta("Silence after which the server sends a comment line on an event stream.", "seconds", gt=0)
    ] = 15.0
    interrupt_grace_seconds: Annotated[
        float, _meta("Time from an interrupt to the kill of a cell that ignores it.", "seconds", ge=0)
    ] = 1.5
    start_seconds: Annotated[float, _meta("Time for a new session to become ready.", "seconds", gt=0)] = 60.0
    shutdown_seconds: Annotated[
        float,
        _meta(
            "Time for pending requests to finish when the server stops, and for running cells before they hibernate.",
            "seconds",
            ge=0,
        ),
    ] = 5.0
    drain_seconds: Annotated[
        float,
        _meta("Time for cells to finish after SIGUSR1, before the server stops as by SIGTERM.", "seconds", ge=0),
    ] = 600.0
    on_stop: Annotated[
        Literal["end", "hibernate", "keep"],
        _meta(
            "What SIGTERM does with sessions: end them, save their variables to disk (hibernate), or keep their "
            "kernels for the next server. Under systemd the default is keep."
        ),
    ] = "end"
    adoption_seconds: Annotated[float, _meta("Time that sessions survive without a server.", "seconds", ge=0)] = 600.0
    watch_seconds: Annotated[float, _meta("Interval of the resource watchdog.", "seconds", gt=0)] = 1.0
    checkpoints: Annotated[int, _meta("Automatic checkpoints kept for each session. 0 disables them.", ge=0, le=64)] = 1
    checkpoint_max_bytes: Annotated[
        int | None, _meta("A kernel with more private memory gets no automatic checkpoint.", "bytes", ge=0)
    ] = None
    tools_approval: Annotated[
        Literal["offered", "writes", "always"],
        _meta(
            "When a person must approve a call of a client's function: as its offer says, also if the function is not "
            "marked as reading only, or always."
        ),
    ] = "offered"
    tools_absent_seconds: Annotated[
        float, _meta("Time that a call waits for a client that offers its function to connect.", "seconds", ge=0)
    ] = 5.0
    tools_grace_seconds: Annotated[
        float, _meta("Time for a client that offers functions to connect again.", "seconds", ge=0)
    ] = 15.0
    tools_max_result_bytes: Annotated[
        int, _meta("Maximum size of the result of one call of a client's function.", "bytes", ge=1024)
    ] = 16 * MiB
    tools_mcp: Annotated[
        dict[McpName, McpServer],
        _meta("MCP servers whose tools code may call, by name, in a file [tools.mcp.NAME]: command or url, and so on."),
    ] = {}
    hibernate_seconds: Annotated[
        float | None, _meta("Idle time after which a session hibernates.", "seconds", gt=0)
    ] = None
    retention_seconds: Annotated[
        float | None, _meta("Age at which a closed session is archived or removed.", "seconds", gt=0)
    ] = None
    retention_action: Annotated[
        Literal["archive", "remove"], _meta("What to do with a closed session after retention_seconds.")
    ] = "archive"
    archive_url: Annotated[str, _meta("URL (fsspec) of a directory that gets the record of each closed session.")] = ""
    models: Annotated[
        dict[str, ModelSettings],
        _meta("Models that answer with a code interpreter, by name: url, model, key_env and so on. * is any name."),
    ] = {}
    answers: Annotated[AnswerSettings, _meta("Rules for the answers of models.")] = AnswerSettings()
    telemetry: Annotated[TelemetrySettings, _meta("Traces.")] = TelemetrySettings()
    oidc: Annotated[oidc.OidcSettings, _meta("Users of an identity provider.")] = oidc.OidcSettings()
    encryption: Annotated[encryption.EncryptionSettings, _meta("The key of data_dir.")] = (
        encryption.EncryptionSettings()
    )
    workers: Annotated[
        Annotated[int, Meta(ge=1, le=256)] | Literal["auto"],
        _meta("Server processes on this machine behind one address, each with its share of the sessions. auto: cores."),
    ] = 1
    join: Annotated[list[str], _meta("Addresses of the fronts of a cluster that this server joins, as a node.")] = []
    advertise: Annotated[str | None, _meta("Address under which fronts reach this node, if not that of host.")] = None
    cluster_key_file: Annotated[
        Path | None, _meta("File with the key of the cluster. Default: $KERNELSVC_CLUSTER_KEY.")
    ] = None
    sources: dict[str, str] = {}
    config_file: str = ""
    #: The name of this node, from its data directory. Empty: no node of a cluster.
    node: str = ""

    def data_path(self) -> Path:
        """Return the data directory, absolute."""
        return (self.data_dir or _default_data_dir({})).absolute()

    def runtime_path(self) -> Path:
        """Return the runtime directory, absolute."""
        return (self.runtime_dir or _default_runtime_dir({}, self.data_path())).absolute()

    def private_files(self) -> list[str]:
        """Return the paths of the configuration and of each file with a secret that it names."""
        found = [
            self.config_file,
            self.telemetry.headers_file,
            *(model.key_file for model in self.models.values()),
            *(source.file for source in self.secrets.values()),
            *(str(file) for file in (self.signing_key, self.cluster_key_file, self.encryption.key_file) if file),
        ]
        return sorted({os.path.abspath(file) for file in found if file})


#: Settings that are not fields: ``load`` adds their values to another setting. Name to type, help, that setting.
_EXTRA: dict[str, tuple[Any, str, str]] = {
    "token": (
        list[Annotated[str, Meta(min_length=1, max_length=1024)]],
        "A token with every scope. May be repeated. Only its hash is stored.",
        "tokens",
    ),
}

_LIMIT_HELP: dict[str, tuple[str, str | None]] = {
    "memory_bytes": ("Memory of all processes of the session together.", "bytes"),
    "cpu_cores": ("CPU share.", "cores"),
    "cell_seconds": ("Wall time of one cell.", "seconds"),
    "cpu_seconds": ("CPU time of the session.", "seconds"),
    "processes": ("Number of processes and threads.", None),
    "open_files": ("Open files of one process.", None),
    "disk_bytes": ("Size of the working directory, and of one upload.", "bytes"),
    "files": ("Number of files and directories in the working directory.", None),
    "output_bytes": ("Output of one cell in the notebook. The log keeps all of it.", "bytes"),
    "idle_seconds": ("Idle time after which the session is closed.", "seconds"),
    "lifetime_seconds": ("Age at which the session is closed.", "seconds"),
    "network": (
        "Network that the session can reach: none, the host's, or rules (docs/howto/network.md).",
        None,
    ),
}


#: Fields of ``Settings`` that are tables of their own, with the help of their fields.
_SECTIONS: dict[str, tuple[type[msgspec.Struct], dict[str, tuple[str, str | None]]]] = {
    "answers": (AnswerSettings, ANSWER_HELP),
    "telemetry": (TelemetrySettings, target.HELP),
    "oidc": (oidc.OidcSettings, oidc.HELP),
    "encryption": (encryption.EncryptionSettings, encryption.HELP),
}


class SettingRow(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the table of settings.

    Attributes:
        name: its name in TOML, dotted for a field of ``limits``.
        type: annotated type of a value.
        default: default value. None may mean a default by platform.
        help: description, one sentence or two.
        unit: unit of the value, if it has one.
    """

    name: str
    type: Any
    default: Any
    help: str
    unit: str | None = None

    @property
    def option(self) -> str:
        """The name of its command-line option."""
        return "--" + self.name.replace("_", "-").replace(".", "-")

    @property
    def env(self) -> str:
        """The name of its environment variable."""
        return ENV_PREFIX + self.name.replace(".", "_").upper()

    @property
    def dest(self) -> str:
        """The name of its argparse attribute."""
        return self.name.replace(".", "_")

    @property
    def many(self) -> bool:
        """Whether its option may be repeated."""
        return typing.get_origin(self.type) is list

    @property
    def structured(self) -> bool:
        """Whether its text form is JSON."""
        return self.name in {"tokens", "templates", "models", "mounts", "egress_hosts", "secrets", "tools_mcp"}

    @property
    def optional(self) -> bool:
        """Whether it may be None (``none`` as text)."""
        return types.NoneType in typing.get_args(self.type)

    def type_name(self) -> str:
        """Return the type in words, for the docs."""
        return _type_name(self.type)


def _type_name(kind: Any) -> str:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return _type_name(args[0])
    if origin is Literal:
        return " | ".join(str(arg) for arg in args)
    if origin in (typing.Union, types.UnionType):
        return " | ".join("none" if arg is types.NoneType else _type_name(arg) for arg in args)
    if origin is list:
        return f"list of {_type_name(args[0])}"
    if origin is dict:
        return f"table of {_type_name(args[1])}"
    name: str = kind.__name__
    return {"NetworkRules": "table", "str": "text", "int": "integer", "float": "number", "Path": "path"}.get(name, name)


def _split(hint: Any) -> tuple[Any, Meta]:
    kind, *metas = typing.get_args(hint)
    return kind, metas[0]


def rows() -> Iterator[SettingRow]:
    """Yield the rows of the table, in the order of the fields."""
    hints = typing.get_type_hints(Settings, include_extras=True)
    for name, (kind, help, _) in _EXTRA.items():
        yield SettingRow(name=name, type=kind, default=[], help=help)
    blank = Settings()
    for field in msgspec.structs.fields(Settings):
        if field.name in ("sources", "config_file", "node"):
            continue
        kind, meta = _split(hints[field.name])
        if field.name == "limits":
            yield from _limit_rows()
            continue
        if field.name in _SECTIONS:
            yield from _section_rows(field.name)
            continue
        unit = (meta.extra or {}).get("unit")
        checked = Annotated[kind, meta] if not _nullable(kind) else _inner(kind, meta)
        yield SettingRow(
            name=field.name, type=checked if _bounded(meta) else kind, default=getattr(blank, field.name),
            help=meta.description or "", unit=unit,
        )  # fmt: skip


def _nullable(kind: Any) -> bool:
    return types.NoneType in typing.get_args(kind)


def _inner(kind: Any, meta: Meta) -> Any:
    inner = [arg for arg in typing.get_args(kind) if arg is not types.NoneType]
    return Annotated[inner[0], meta] | None


def _bounded(meta: Meta) -> bool:
    return any(getattr(meta, bound) is not None for bound in ("ge", "gt", "le", "lt", "min_length", "max_length"))


def _limit_rows() -> Iterator[SettingRow]:
    hints = typing.get_type_hints(Limits)
    blank = Limits()
    for name in Limits.__struct_fields__:
        help, unit = _LIMIT_HELP[name]
        kind = hints[name]
        if _nullable(kind):
            kind = _inner(kind, Meta(gt=0))
        yield SettingRow(name=f"limits.{name}", type=kind, default=getattr(blank, name), help=help, unit=unit)


def _section_rows(section: str) -> Iterator[SettingRow]:
    kind, texts = _SECTIONS[section]
    hints = typing.get_type_hints(kind, include_extras=True)
    blank = kind()
    for name, (help, unit) in texts.items():
        hint = Annotated[hints[name], Meta(gt=0)] if hints[name] in (int, float) else hints[name]
        yield SettingRow(name=f"{section}.{name}", type=hint, default=getattr(blank, name), help=help, unit=unit)


TABLE: tuple[SettingRow, ...] = tuple(rows())


# --- the command line ----------------------------------------------------------------


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add an option for each setting, and ``--config``, to a parser. An absent option sets no attribute."""
    parser.add_argument("--config", metavar="FILE", default=argparse.SUPPRESS, help="TOML file with settings.")
    for row in TABLE:
        parser.add_argument(
            row.option,
            dest=row.dest,
            action="append" if row.many and not row.structured else "store",
            metavar=row.name.rpartition(".")[2].upper(),
            default=argparse.SUPPRESS,
            help=(f"{row.help} ({row.unit})" if row.unit else row.help).replace("%", "%%"),
        )


# --- loading ---------------------------------------------------------------------------


def load(
    cli: Mapping[str, Any] | None = None, env: Mapping[str, str] | None = None, file: Path | None = None
) -> Settings:
    """Load settings from the command line, the environment, a file and the platform, in this precedence.

    Args:
        cli: option name (``dest``) to text or list of texts, from argparse. Other names are ignored.
        env: environment variables. None reads none.
        file: a TOML file. The default is ``config`` of ``cli``, then ``KERNELSVC_CONFIG``.

    Raises:
        BadRequest: a value has the wrong type, or the file has an unknown key. The message names the source.
    """
    cli, env = cli or {}, env or {}
    chosen = file or cli.get("config") or env.get(ENV_PREFIX + "CONFIG")
    layers = [
        (_from_file(Path(chosen)) if chosen else {}),
        {row.name: (env[row.env], f"environment {row.env}", True) for row in TABLE if env.get(row.env)},
        {row.name: (cli[row.dest], f"option {row.option}", True) for row in TABLE if cli.get(row.dest) is not None},
    ]
    found: dict[str, tuple[Any, str]] = {}
    # Later layers win.
    for layer in layers:
        for row in TABLE:
            if row.name in layer:
                value, source, text = layer[row.name]
                found[row.name] = (_convert(row, value, source, text=text), source)
    # Its tokens must not be readable in a session, where the file lies in a directory that sessions see.
    settings = msgspec.structs.replace(_assemble(found, env), config_file=os.path.abspath(chosen) if chosen else "")
    _check(settings)
    _check_tokens(_plain_tokens(layers), public=not settings.uds and settings.host not in LOOPBACK)
    return settings


#: Values of ``host`` that only this machine's own clients can reach.
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def _plain_tokens(layers: Iterable[Mapping[str, tuple[Any, str, bool]]]) -> Iterator[tuple[str, str]]:
    """Yield the tokens that are given in clear, with their sources."""
    by_name = {row.name: row for row in TABLE}
    for layer in layers:
        if "token" in layer:
            value, source, text = layer["token"]
            found = _from_text(by_name["token"], value) if text else value
            yield from ((str(token), source) for token in found)
        if "tokens" in layer:
            value, source, text = layer["tokens"]
            found = _from_text(by_name["tokens"], value) if text else value
            yield from ((str(each["token"]), source) for each in found if "token" in each)


def _check_tokens(tokens: Iterable[tuple[str, str]], *, public: bool) -> None:
    for token, source in tokens:
        if (why := weakness(token, public=public)) is not None:
            raise BadRequest(f"Setting token ({source}) {why}. Make one with 'openssl rand -hex 32'.", setting="token")


def _from_file(path: Path) -> dict[str, tuple[Any, str, bool]]:
    try:
        data = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise BadRequest(f"Can't read the settings file {path}: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"The settings file {path} is not valid TOML: {error}.") from None
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if (key == "limits" or key in _SECTIONS) and isinstance(value, dict):
            flat |= {f"{key}.{name}": inner for name, inner in value.items()}
        elif key == "tools" and isinstance(value, dict):
            flat |= {f"tools_{name}": inner for name, inner in value.items()}
        else:
            flat[key] = value
    names = [row.name for row in TABLE]
    for key in flat:
        if key not in names:
            near = difflib.get_close_matches(key, names, 1)
            hint = f" Did you mean {near[0]!r}?" if near else " 'kernelsvc settings' lists all settings."
            raise BadRequest(f"The settings file {path} has an unknown setting {key!r}.{hint}")
    return {key: (value, f"file {path}", False) for key, value in flat.items()}


def _convert(row: SettingRow, value: Any, source: str, *, text: bool) -> Any:
    try:
        if text:
            value = _from_text(row, value)
        elif value == "none" and row.optional:
            value = None
        if row.name == "tokens":
            value = _hash_plain(value)
        return msgspec.convert(value, row.type, strict=not text, dec_hook=_to_path)
    except (msgspec.ValidationError, msgspec.DecodeError, ValueError) as error:
        why = in_words(str(error))
        if ".scopes" in why or why.startswith("Invalid enum value"):
            why += f". Write {', '.join(get_args(Scope)) if '.scopes' in why else row.type_name()}"
        shown = "" if row.name in {"token", "tokens", "models", "secrets", "tools_mcp"} else f" = {value!r}"
        raise BadRequest(f"Setting {row.name}{shown} ({source}) is not valid: {why}.", setting=row.name) from None


def _to_path(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, str) and value and "\0" not in value:
        return Path(value)
    raise ValueError("Expected a path")


def _from_text(row: SettingRow, value: Any) -> Any:
    if row.structured or (row.name == "limits.network" and isinstance(value, str) and value.startswith("{")):
        return msgspec.json.decode(value)
    if row.many:
        return [part for part in value.split(",") if part] if isinstance(value, str) else list(value)
    if row.optional and isinstance(value, str) and value.lower() in {"", "none"}:
        return None
    return value


def _hash_plain(value: Any) -> Any:
    """Replace each ``token`` in the table ``tokens`` by its hash."""
    if not isinstance(value, list):
        return value
    return [
        {**{k: v for k, v in item.items() if k != "token"}, "sha256": hash_token(str(item["token"]))}
        if isinstance(item, dict) and "token" in item
        else item
        for item in value
    ]


def _take(values: dict[str, Any], section: str) -> dict[str, Any]:
    return {name.partition(".")[2]: values.pop(name) for name in list(values) if name.startswith(f"{section}.")}


def _assemble(found: dict[str, tuple[Any, str]], env: Mapping[str, str]) -> Settings:
    values = {name: value for name, (value, _) in found.items()}
    sources = {row.name: found[row.name][1] if row.name in found else "default" for row in TABLE}
    for name, file in (("signing_key", "signing-key"), ("encryption.key_file", "data-key")):
        credential = Path(env.get("CREDENTIALS_DIRECTORY", ""), file)
        if values.get(name) is None and env.get("CREDENTIALS_DIRECTORY") and credential.exists():
            values[name], sources[name] = credential, "platform"
    limits = _take(values, "limits")
    plain = [record_for(token) for token in values.pop("token", [])]
    sections: dict[str, Any] = {section: kind(**_take(values, section)) for section, (kind, _) in _SECTIONS.items()}
    tokens = _distinct([*values.pop("tokens", []), *plain])
    templates = DEFAULT_TEMPLATES | values.pop("templates", {})
    if values.get("data_dir") is None:
        values["data_dir"], sources["data_dir"] = _default_data_dir(env), "platform"
    values["data_dir"] = values["data_dir"].expanduser().absolute()
    if values.get("runtime_dir") is None:
        values["runtime_dir"], sources["runtime_dir"] = _default_runtime_dir(env, values["data_dir"]), "platform"
    # systemd.exec(5): $SYSTEMD_EXEC_PID is the PID of the unit's process. $INVOCATION_ID would not do: every process
    # below the unit inherits it, also a shell in which a user starts a server.
    if env.get("SYSTEMD_EXEC_PID") == str(os.getpid()):
        for name, value in (("sandbox", "required"), ("start_host", False), ("on_stop", "keep")):
            if name not in values:
                values[name], sources[name] = value, "platform"
    if plain and sources["tokens"] == "default":
        sources["tokens"] = sources["token"]
    settings = Settings(
        limits=Limits(**limits),
        **sections,
        tokens=tokens,
        templates=templates,
        sources=sources,
        **values,
    )
    return settings


def _distinct(tokens: list[TokenRecord]) -> list[TokenRecord]:
    by_hash: dict[str, TokenRecord] = {}
    for record in tokens:
        by_hash.setdefault(record.sha256, record)
    return list(by_hash.values())


def _valid(setting: str, check: Callable[[], None]) -> None:
    try:
        check()
    except ValueError as error:
        raise BadRequest(f"Setting {setting} is not valid: {error}.", setting=setting) from None


def _check(settings: Settings) -> None:
    _valid("egress_hosts", lambda: check_fixed_hosts(settings.egress_hosts))
    _valid("oidc.issuer", lambda: oidc.check(settings.oidc))
    _valid("encryption.key_file", lambda: encryption.check(settings.encryption))
    rules = settings.limits.network
    if isinstance(rules, NetworkRules):
        _valid("limits.network", lambda: check_secrets(rules, settings.secrets))
    runtime = os.fsencode(settings.runtime_path())
    if len(runtime) > MAX_RUNTIME_DIR:
        raise BadRequest(
            f"Setting runtime_dir ({settings.sources['runtime_dir']}) is a path of {len(runtime)} bytes, too long for "
            f"a socket in it. Choose a directory of at most {MAX_RUNTIME_DIR} bytes.",
            setting="runtime_dir",
        )
    private = [str(settings.data_path()), str(settings.runtime_path()), *settings.private_files()]
    hidden = {os.path.realpath(path) for path in private}
    if settings.wheelhouse is not None:
        why = why_unsafe(os.path.realpath(settings.wheelhouse), hidden)
        if why is None and not settings.wheelhouse.is_dir():
            why = "it is not a directory"
        if why is not None:
            raise BadRequest(
                f"Setting wheelhouse ({settings.sources['wheelhouse']}): can't use {settings.wheelhouse}: {why}.",
                setting="wheelhouse",
            )
    for name, mount in settings.mounts.items():
        if (why := why_unsafe(os.path.realpath(mount.path), hidden)) is not None:
            raise BadRequest(
                f"Setting mounts.{name} ({settings.sources['mounts']}): {mount.path} can't be a mount: {why}. "
                "Choose another directory.",
                setting="mounts",
            )


# --- what the platform says -----------------------------------------------------------


def _default_data_dir(env: Mapping[str, str]) -> Path:
    """Return ``$STATE_DIRECTORY``, else the user's data directory. systemd.exec(5): may be several, colon-separated."""
    if state := env.get("STATE_DIRECTORY"):
        return Path(state.split(":")[0])
    return Path(platformdirs.user_data_dir("kernelsvc"))


def _default_runtime_dir(env: Mapping[str, str], data_dir: Path) -> Path:
    """Return a short path that is the same for each server on one data directory, and differs for others."""
    if runtime := env.get("RUNTIME_DIRECTORY"):
        return Path(runtime.split(":")[0])
    name = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:8]
    if runtime := env.get("XDG_RUNTIME_DIR"):
        candidate = Path(runtime) / "kernelsvc" / name
        if len(os.fsencode(candidate)) <= MAX_RUNTIME_DIR:
            return candidate
    # A per-user name, because other users share the directory.
    base = Path(tempfile.gettempdir())
    if len(os.fsencode(base)) > MAX_RUNTIME_DIR - 32:
        base = Path("/tmp")
    return base / f"kernelsvc-{os.getuid()}" / name


def describe(settings: Settings) -> list[dict[str, Any]]:
    """Return each setting as ``{name, value, source, help, unit}``, for ``kernelsvc settings``. Tokens are left out."""
    described = []
    for row in TABLE:
        if row.name in _EXTRA:
            continue
        value: Any = settings
        for part in row.name.split("."):
            value = getattr(value, part)
        if row.name == "tokens":
            value = [{"name": t.name, "scopes": sorted(t.scopes), "max_sessions": t.max_sessions} for t in value]
        described.append(
            {
                "name": row.name,
                "value": msgspec.to_builtins(value, enc_hook=str),
                "source": settings.sources.get(row.name, "default"),
                "help": row.help,
                "unit": row.unit,
            }
        )
    return described


def markdown() -> str:
    """Return the table of the reference page, in Markdown."""
    lines = ["| setting | type | default | |", "|---|---|---|---|"]
    for row in TABLE:
        default = "" if row.default in (None, []) or row.structured else f"`{row.default}`"
        unit = f" ({row.unit})" if row.unit else ""
        lines.append(f"| `{row.name}` | {row.type_name().replace('|', 'or')} | {default} | {row.help}{unit} |")
    return "\n".join(lines) + "\n"
