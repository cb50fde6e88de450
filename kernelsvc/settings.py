"""One table of settings: command line, environment, TOML file and docs are all read from it.

The fields of ``Settings`` *are* the table: a field's type is checked, its
``Meta`` says what it means and in which unit. ``rows()`` flattens it (``limits``
becomes ``limits.memory_bytes`` and so on), ``load()`` fills it. Precedence:
command line, then environment, then file, then what the platform says, then
the default. Everything below ``service`` gets its values as arguments; nobody
else reads the environment.

A plain ``token`` never becomes a field: it is hashed while loading.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import os
import secrets
import stat
import tempfile
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import platformdirs
from msgspec import Meta

from kernelsvc.errors import BadRequest
from kernelsvc.model.limits import Limits
from kernelsvc.model.tokens import TokenRecord, hash_token, record_for

MiB = 1024 * 1024
ENV_PREFIX = "KERNELSVC_"
#: sun_path holds 108 bytes (unix(7)); a kernel's id and suffix need about 40.
MAX_RUNTIME_DIR = 64


class Template(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An environment that sessions are forked from.

    Attributes:
        python: the interpreter; empty means the one that runs the server.
        preload: modules imported once, before the first session.
        allow_modules: when set, the only top-level modules a cell may import (a sign for the model, not a wall).
        deny_modules: top-level modules that a cell is told not to import.
    """

    python: str = ""
    preload: list[str] = []
    allow_modules: list[str] | None = None
    deny_modules: list[str] = []


DEFAULT_TEMPLATES = {"python3": Template(preload=["numpy", "pandas", "matplotlib.pyplot"])}


def _meta(help: str, unit: str | None = None, **bounds: Any) -> Meta:
    return Meta(description=help, extra={"unit": unit} if unit else {}, **bounds)


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every setting of the server. ``sources`` says where each value came from."""

    host: Annotated[str, _meta("Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, _meta("TCP port; 0 takes a free one.", ge=0, le=65535)] = 8888
    uds: Annotated[Path | None, _meta("Listen on this Unix socket (mode 0600) instead of TCP.")] = None
    data_dir: Annotated[
        Path | None,
        _meta("Where sessions, index and keys live; default: $STATE_DIRECTORY or the user's data directory."),
    ] = None
    runtime_dir: Annotated[
        Path | None, _meta("Where sockets live (mode 0700, a short path); default: by platform, one for each data_dir.")
    ] = None
    tokens: Annotated[
        list[TokenRecord], _meta("Principals: name, sha256 (or token) and, if wanted, scopes and max_sessions.")
    ] = []
    origins: Annotated[
        list[str], _meta("Foreign web origins that may call, such as https://example.org; * allows any.")
    ] = []
    journal_sync: Annotated[
        Literal["ack", "run", "off"],
        _meta("Sync the log before a cell's end is told (ack), also before it runs (run), or never (off)."),
    ] = "ack"
    sandbox: Annotated[
        Literal["required", "best-effort", "off"],
        _meta("Confinement of sessions; under systemd the default is required."),
    ] = "best-effort"
    start_host: Annotated[
        bool, _meta("Start a kernel host when none answers; under systemd the default is false, its unit does.")
    ] = True
    default_template: Annotated[str, _meta("Template of a session that names none.", min_length=1)] = "python3"
    templates: Annotated[dict[str, Template], _meta("Environments to fork sessions from: name to python, preload.")] = (
        msgspec.field(default_factory=lambda: dict(DEFAULT_TEMPLATES))
    )
    warm_pool: Annotated[
        int, _meta("Confined, ready kernels kept for new sessions, at most; as many as were asked for.", ge=0, le=1000)
    ] = 0
    limits: Annotated[Limits, _meta("The caps of a session; a request may lower them.")] = Limits()
    max_sessions: Annotated[int, _meta("Open sessions on this server.", ge=1)] = 2000
    max_sessions_per_principal: Annotated[int, _meta("Open sessions of one principal.", ge=1)] = 2000
    max_total_memory_bytes: Annotated[
        int | None, _meta("Memory of all sessions together, above which none is created.", "bytes", ge=MiB)
    ] = None
    max_cell_output_bytes: Annotated[
        int | None,
        _meta("Output of one cell that the log takes; past it the cell is interrupted, then ended.", "bytes", ge=MiB),
    ] = 1024 * MiB
    max_queued_cells: Annotated[int, _meta("Cells that may wait in one session.", ge=1)] = 1000
    max_body_bytes: Annotated[int, _meta("Largest request body (files apart).", "bytes", ge=1024)] = 64 * MiB
    max_frame_bytes: Annotated[int, _meta("Largest WebSocket message.", "bytes", ge=1024)] = 64 * MiB
    max_code_bytes: Annotated[int, _meta("Largest code of one cell.", "bytes", ge=1024)] = 4 * MiB
    max_connections: Annotated[
        int, _meta("Open connections; never more than half of the files that the process may open.", ge=1)
    ] = 8192
    max_unauthenticated_connections: Annotated[
        int,
        _meta("Open connections of one peer address without a token so far; one more closes the oldest.", ge=1),
    ] = 256
    request_head_seconds: Annotated[
        float, _meta("Time that a client has to send the head of a request.", "seconds", gt=0)
    ] = 10.0
    max_requests: Annotated[int, _meta("Requests under way on one WebSocket.", ge=1)] = 4096
    ping_seconds: Annotated[float, _meta("Idle time after which a WebSocket is pinged.", "seconds", gt=0)] = 20.0
    ping_timeout_seconds: Annotated[
        float, _meta("Silence after which a WebSocket is taken for dead.", "seconds", gt=0)
    ] = 120.0
    keepalive_seconds: Annotated[
        float, _meta("Silence after which an event stream gets a comment line.", "seconds", gt=0)
    ] = 15.0
    interrupt_grace_seconds: Annotated[
        float, _meta("Time from an interrupt to the kill of a cell that ignores it.", "seconds", ge=0)
    ] = 1.5
    start_seconds: Annotated[float, _meta("Time a new session may take to be ready.", "seconds", gt=0)] = 60.0
    shutdown_seconds: Annotated[float, _meta("Time that requests under way get at a stop.", "seconds", ge=0)] = 5.0
    adoption_seconds: Annotated[
        float, _meta("Time sessions live without a server before they are ended.", "seconds", ge=0)
    ] = 600.0
    watch_seconds: Annotated[float, _meta("Interval of the resource watchdog.", "seconds", gt=0)] = 1.0
    checkpoints: Annotated[int, _meta("Automatic checkpoints kept per session; 0 makes none.", ge=0, le=64)] = 1
    checkpoint_max_bytes: Annotated[
        int | None, _meta("Private memory of a kernel above which no automatic checkpoint is made.", "bytes", ge=0)
    ] = None
    hibernate_seconds: Annotated[
        float | None, _meta("Idle time after which a session's memory is given back.", "seconds", gt=0)
    ] = None
    retention_seconds: Annotated[
        float | None, _meta("Age at which a closed session is archived or removed.", "seconds", gt=0)
    ] = None
    retention_action: Annotated[Literal["archive", "remove"], _meta("What happens to it then.")] = "archive"
    sources: dict[str, str] = {}

    def data_path(self) -> Path:
        """The data directory; set by ``load``."""
        return (self.data_dir or _default_data_dir({})).absolute()

    def runtime_path(self) -> Path:
        """The runtime directory; set by ``load``."""
        return (self.runtime_dir or _default_runtime_dir({}, self.data_path())).absolute()


#: Settings that are not fields: they feed another one while loading.
_EXTRA: dict[str, tuple[Any, str, str]] = {
    "token": (
        list[Annotated[str, Meta(min_length=1, max_length=1024)]],
        "A token with every scope; may be given more than once. It is kept as a hash only.",
        "tokens",
    ),
}

_LIMIT_HELP: dict[str, tuple[str, str | None]] = {
    "memory_bytes": ("Memory of all the session's processes together.", "bytes"),
    "cpu_cores": ("CPU share, in cores.", "cores"),
    "cell_seconds": ("Wall time of one cell.", "seconds"),
    "cpu_seconds": ("CPU time of the session.", "seconds"),
    "processes": ("Processes and threads.", None),
    "open_files": ("Open files of one process.", None),
    "disk_bytes": ("Size of the working directory, and of one upload.", "bytes"),
    "output_bytes": ("Output of one cell kept in the notebook; the log keeps all.", "bytes"),
    "idle_seconds": ("Time without a cell after which the session is closed.", "seconds"),
    "lifetime_seconds": ("Age at which the session is closed.", "seconds"),
    "network": ("What the session may reach.", None),
}


class SettingRow(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the table.

    Attributes:
        name: dotted for a nested one, as in TOML.
        type: what a value is checked against.
        default: what holds when nothing says otherwise; None may stand for "by platform".
        help: one sentence.
        unit: of the value, if it has one.
    """

    name: str
    type: Any
    default: Any
    help: str
    unit: str | None = None

    @property
    def option(self) -> str:
        """The command line's name for it."""
        return "--" + self.name.replace("_", "-").replace(".", "-")

    @property
    def env(self) -> str:
        """The environment's name for it."""
        return ENV_PREFIX + self.name.replace(".", "_").upper()

    @property
    def dest(self) -> str:
        """What argparse calls it."""
        return self.name.replace(".", "_")

    @property
    def many(self) -> bool:
        """Whether the option may be given more than once."""
        return typing.get_origin(self.type) is list

    @property
    def structured(self) -> bool:
        """Whether a text for it is JSON."""
        return self.name in {"tokens", "templates"}

    @property
    def optional(self) -> bool:
        """Whether it may be empty (``none`` as a text)."""
        return types.NoneType in typing.get_args(self.type)

    def type_name(self) -> str:
        """The type in words, for the docs."""
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
    return {"str": "text", "int": "integer", "float": "number", "Path": "path"}.get(name, name)


def _split(hint: Any) -> tuple[Any, Meta]:
    kind, *metas = typing.get_args(hint)
    return kind, metas[0]


def rows() -> Iterator[SettingRow]:
    """The table, in the order of the fields."""
    hints = typing.get_type_hints(Settings, include_extras=True)
    for name, (kind, help, _) in _EXTRA.items():
        yield SettingRow(name=name, type=kind, default=[], help=help)
    blank = Settings()
    for field in msgspec.structs.fields(Settings):
        if field.name == "sources":
            continue
        kind, meta = _split(hints[field.name])
        if field.name == "limits":
            yield from _limit_rows()
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


TABLE: tuple[SettingRow, ...] = tuple(rows())


# --- the command line ----------------------------------------------------------------


def add_options(parser: argparse.ArgumentParser) -> None:
    """Give a parser one option for each setting, and ``--config``; what is not given stays out of the namespace."""
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
    """Settings from the command line, the environment, a file and the platform, in this precedence.

    Args:
        cli: option name (``dest``) to text or texts, as argparse gives it; names that are no setting are ignored.
        env: the environment; None reads no environment at all.
        file: a TOML file; else ``config`` of ``cli``, else ``KERNELSVC_CONFIG``.

    Raises:
        BadRequest: a value that doesn't fit, or a key of the file that is no setting. The message names the source.
    """
    cli, env = cli or {}, env or {}
    chosen = file or cli.get("config") or env.get(ENV_PREFIX + "CONFIG")
    layers = [
        (_from_file(Path(chosen)) if chosen else {}),
        {row.name: (env[row.env], f"environment {row.env}", True) for row in TABLE if env.get(row.env)},
        {row.name: (cli[row.dest], f"option {row.option}", True) for row in TABLE if cli.get(row.dest) is not None},
    ]
    found: dict[str, tuple[Any, str]] = {}
    for layer in layers:
        for row in TABLE:
            if row.name in layer:
                value, source, text = layer[row.name]
                found[row.name] = (_convert(row, value, source, text=text), source)
    return _assemble(found, env)


def _from_file(path: Path) -> dict[str, tuple[Any, str, bool]]:
    try:
        data = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise BadRequest(f"The settings file {path} can't be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"The settings file {path} is not TOML: {error}.") from None
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if key == "limits" and isinstance(value, dict):
            flat |= {f"limits.{name}": inner for name, inner in value.items()}
        else:
            flat[key] = value
    names = [row.name for row in TABLE]
    for key in flat:
        if key not in names:
            near = difflib.get_close_matches(key, names, 1)
            hint = f" Did you mean {near[0]!r}?" if near else " 'kernelsvc settings' lists them."
            raise BadRequest(f"The settings file {path} has {key!r}, which is no setting.{hint}")
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
        shown = "" if row.name in {"token", "tokens"} else f" = {value!r}"
        raise BadRequest(f"Setting {row.name}{shown} ({source}) is wrong: {error}.", setting=row.name) from None


def _to_path(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, str) and value and "\0" not in value:
        return Path(value)
    raise ValueError("Expected a path")


def _from_text(row: SettingRow, value: Any) -> Any:
    if row.structured:
        return msgspec.json.decode(value)
    if row.many:
        return [part for part in value.split(",") if part] if isinstance(value, str) else list(value)
    if row.optional and isinstance(value, str) and value.lower() in {"", "none"}:
        return None
    return value


def _hash_plain(value: Any) -> Any:
    """``token = "..."`` in a table of ``tokens`` becomes its hash."""
    if not isinstance(value, list):
        return value
    return [
        {**{k: v for k, v in item.items() if k != "token"}, "sha256": hash_token(str(item["token"]))}
        if isinstance(item, dict) and "token" in item
        else item
        for item in value
    ]


def _assemble(found: dict[str, tuple[Any, str]], env: Mapping[str, str]) -> Settings:
    values = {name: value for name, (value, _) in found.items()}
    sources = {row.name: found[row.name][1] if row.name in found else "default" for row in TABLE}
    limits = {name.partition(".")[2]: values.pop(name) for name in list(values) if name.startswith("limits.")}
    plain = [record_for(token) for token in values.pop("token", [])]
    tokens = _distinct([*values.pop("tokens", []), *plain])
    templates = DEFAULT_TEMPLATES | values.pop("templates", {})
    if values.get("data_dir") is None:
        values["data_dir"], sources["data_dir"] = _default_data_dir(env), "platform"
    values["data_dir"] = values["data_dir"].expanduser().absolute()
    if values.get("runtime_dir") is None:
        values["runtime_dir"], sources["runtime_dir"] = _default_runtime_dir(env, values["data_dir"]), "platform"
    # INVOCATION_ID is inherited by every shell under a unit; this one names the unit's own process.
    if env.get("SYSTEMD_EXEC_PID") == str(os.getpid()):
        for name, value in (("sandbox", "required"), ("start_host", False)):
            if name not in values:
                values[name], sources[name] = value, "platform"
    if plain and sources["tokens"] == "default":
        sources["tokens"] = sources["token"]
    settings = Settings(limits=Limits(**limits), tokens=tokens, templates=templates, sources=sources, **values)
    _check(settings)
    return settings


def _distinct(tokens: list[TokenRecord]) -> list[TokenRecord]:
    by_hash: dict[str, TokenRecord] = {}
    for record in tokens:
        by_hash.setdefault(record.sha256, record)
    return list(by_hash.values())


def _check(settings: Settings) -> None:
    runtime = os.fsencode(settings.runtime_path())
    if len(runtime) > MAX_RUNTIME_DIR:
        raise BadRequest(
            f"Setting runtime_dir ({settings.sources['runtime_dir']}) has {len(runtime)} bytes, and a socket's path "
            f"must stay short; give a directory of at most {MAX_RUNTIME_DIR} bytes.",
            setting="runtime_dir",
        )


# --- what the platform says -----------------------------------------------------------


def _default_data_dir(env: Mapping[str, str]) -> Path:
    """``$STATE_DIRECTORY`` (systemd.exec(5): may hold several, colon-separated), else the user's data directory."""
    if state := env.get("STATE_DIRECTORY"):
        return Path(state.split(":")[0])
    return Path(platformdirs.user_data_dir("kernelsvc"))


def _default_runtime_dir(env: Mapping[str, str], data_dir: Path) -> Path:
    """A short path that the next server on the same data directory finds again, and no other server takes."""
    if runtime := env.get("RUNTIME_DIRECTORY"):
        return Path(runtime.split(":")[0])
    name = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:8]
    if runtime := env.get("XDG_RUNTIME_DIR"):
        candidate = Path(runtime) / "kernelsvc" / name
        if len(os.fsencode(candidate)) <= MAX_RUNTIME_DIR:
            return candidate
    base = Path(tempfile.gettempdir())
    if len(os.fsencode(base)) > MAX_RUNTIME_DIR - 32:
        base = Path("/tmp")
    return base / f"kernelsvc-{os.getuid()}" / name


def prepare_directories(settings: Settings, *, of_others: bool = False) -> None:
    """Make the data and runtime directories, mode 0700, and refuse any that somebody else owns.

    Args:
        settings: name them.
        of_others: take those that are there as they are: a kernel host that is root works in a server's.

    Raises:
        BadRequest: one can't be made, or isn't ours alone.
    """
    for name, path in (("data_dir", settings.data_path()), ("runtime_dir", settings.runtime_path())):
        try:
            if not (of_others and path.is_dir() and not path.is_symlink()):
                _make_private(path)
        except OSError as error:
            raise BadRequest(
                f"Setting {name} ({settings.sources.get(name, 'default')}): {path} can't be used: {error.strerror}.",
                setting=name,
            ) from None


#: What one of our directories holds, so that we may close it to others: nobody's ``/srv`` is closed by a slip.
_MARKS = ("sessions", "keys", "host.lock", "server.json")
#: What the root of a filesystem holds that was made for us and nobody else (mke2fs(8)).
_EMPTY = {"lost+found"}


def _make_private(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)
    # In a world-writable /tmp another user may have made the name first.
    for part in (path, path.parent) if path.parent.name.startswith("kernelsvc-") else (path,):
        info = part.lstat()
        if not stat.S_ISDIR(info.st_mode) or info.st_uid not in (os.geteuid(), 0):
            raise PermissionError(1, "it belongs to somebody else")
        if info.st_uid == os.geteuid() and info.st_mode & 0o077 and part == path:
            if {each.name for each in part.iterdir()} - _EMPTY and not any((part / mark).exists() for mark in _MARKS):
                raise PermissionError(1, "it is open to others and holds things of theirs; give a directory of its own")
            part.chmod(0o700)


def with_fresh_token(settings: Settings) -> tuple[Settings, str | None]:
    """These settings and, when no token was configured, a new one for the principal ``local``.

    The name is the same at each start, so that yesterday's sessions still belong to whoever starts the server today.
    """
    if settings.tokens:
        return settings, None
    token = secrets.token_urlsafe(24)
    return msgspec.structs.replace(settings, tokens=[record_for(token, "local")]), token


def describe(settings: Settings) -> list[dict[str, Any]]:
    """Each setting as ``{name, value, source, help, unit}``, for ``kernelsvc settings``. Holds no token."""
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
    """The reference page's table."""
    lines = ["| setting | type | default | |", "|---|---|---|---|"]
    for row in TABLE:
        default = "" if row.default in (None, []) or row.structured else f"`{row.default}`"
        unit = f" ({row.unit})" if row.unit else ""
        lines.append(f"| `{row.name}` | {row.type_name().replace('|', 'or')} | {default} | {row.help}{unit} |")
    return "\n".join(lines) + "\n"
