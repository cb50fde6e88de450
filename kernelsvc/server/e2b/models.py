"""Sessions in the format of E2B's control plane, and its requests as session requests: functions of values.

Metadata are labels. Further data about a sandbox is in labels whose names begin with
``e2b.``.
"""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl, unquote

import msgspec

from kernelsvc.errors import BadRequest, NotFound, NotSupported
from kernelsvc.model.hash_chain import seconds_of
from kernelsvc.model.limits import LimitsRequest, MiB
from kernelsvc.model.objects import Principal, SessionInfo, SessionRequest
from kernelsvc.model.storage.mounts import WORKSPACE_DIR
from kernelsvc.model.storage.name_rules import in_words
from kernelsvc.model.usage_history import UsageSample
from kernelsvc.protocol import e2b
from kernelsvc.server.e2b.network import is_host, masked_host, network_of

#: Prefix of this API's own labels.
PREFIX = "e2b."
TEMPLATE, SNAPSHOT, SOURCE, RESUMES, PAUSES, HOST = (
    PREFIX + name for name in ("template", "snapshot", "source", "resumes", "pauses", "host")
)
LANGUAGE, CWD, DEFAULT, VOLUME, BUILD = (PREFIX + name for name in ("language", "cwd", "default", "volume", "build"))
#: The session's directory inside the sandbox.
HOME = "/home/user"
#: Value of the label of a snapshot without a name.
_UNNAMED = "-"
#: Longest name of a snapshot, in characters, as for a label.
MAX_NAME = 256
#: The workspace that has the templates that a principal built.
TEMPLATES = "e2b-templates"
#: Default names in E2B's clients. They mean this server's default template.
DEFAULT_TEMPLATES = frozenset({"", "base", "code-interpreter-v1", "code-interpreter", "code-interpreter-beta"})
#: The release of E2B's agent (envd) that this API imitates.
ENVD_VERSION = "0.6.4"
#: E2B's default timeout.
DEFAULT_SECONDS = 300
#: Fields that ask for features which this server lacks. An empty field is accepted.
_UNSUPPORTED = {
    "iam": "There is no workload identity here.",
    "mcp": "There is no MCP gateway in a sandbox. MCP clients speak to this server at /mcp, and code calls the tools "
    "of the servers that the setting [tools.mcp.NAME] names.",
}
#: Environment variable that makes a session's kernel produce E2B's extra results.
ENVIRONMENT = {"E2B_SANDBOX": "true"}


class VolumeMount(msgspec.Struct):
    """A volume at a path of the sandbox."""

    name: str
    path: str


class NewSandbox(msgspec.Struct, kw_only=True):
    """``POST /v2/sandboxes``. Unknown fields are ignored, so that newer clients work."""

    templateID: str = ""
    timeout: float = DEFAULT_SECONDS
    autoPause: bool = False
    autoResume: Any = None
    allow_internet_access: bool | None = None
    metadata: dict[str, str] | None = None
    envVars: dict[str, str] | None = None
    network: Any = None
    iam: Any = None
    volumeMounts: list[VolumeMount] | None = None
    mcp: Any = None


def decode(asked: Mapping[str, Any]) -> NewSandbox:
    """Decode a request for a sandbox.

    Raises:
        BadRequest: A field has the wrong type.
        NotSupported: It asks for a feature that this server lacks.
    """
    try:
        wanted = msgspec.convert(dict(asked), NewSandbox)
    except msgspec.ValidationError as error:
        raise BadRequest(f"The sandbox can't be created: {in_words(str(error))}.") from None
    for name, what in _UNSUPPORTED.items():
        asked_for = getattr(wanted, name)
        if asked_for:
            raise NotSupported(f"{what} Leave {name!r} out.")
    if any(not mount.path.startswith("/") for mount in wanted.volumeMounts or ()):
        raise BadRequest("The path of a volume is absolute, such as /mnt/data.")
    if wanted.volumeMounts and len(wanted.volumeMounts) > 1:
        raise NotSupported("A sandbox has at most one volume here. Use one with several directories.")
    network_of(wanted.network, wanted.allow_internet_access)
    return wanted


def templates_address(principal: str) -> str:
    """Return the address of the workspace that has the templates that a principal built."""
    return f"{principal}/{TEMPLATES}"


def template_of(name: str, known: Iterable[str]) -> str | None:
    """Return the template for E2B's name of one. None: the default template.

    Raises:
        NotFound: There is none.
    """
    name_only = name.partition(":")[0]
    names = set(known)
    if name_only in names:
        return name_only
    if name_only in DEFAULT_TEMPLATES:
        return None
    raise NotFound(f"There is no template {name!r}. There are {', '.join(sorted(names))}.")


def request_of(
    wanted: NewSandbox, template: str | None, key: str | None, everything: tuple[str, ...] = ("*",)
) -> SessionRequest:
    """Return the session request for a sandbox.

    Args:
        wanted: The client's request.
        template: The template. None: the default one.
        key: The client's idempotency key.
        everything: From ``network.everything_of``.

    Raises:
        BadRequest: A variable's name or the metadata are invalid for a session.
    """
    fields = {
        "template": template,
        "labels": labels(wanted),
        "env": {**(wanted.envVars or {}), **ENVIRONMENT},
        "idempotency_key": key,
        "limits": LimitsRequest(network=network_of(wanted.network, wanted.allow_internet_access, everything)),
    }
    for mount in wanted.volumeMounts or ():
        path = None if mount.path.rstrip("/") == WORKSPACE_DIR else mount.path.rstrip("/")
        fields |= {"workspace": mount.name, "workspace_path": path}
    try:
        return msgspec.convert(fields, SessionRequest)
    except msgspec.ValidationError as error:
        raise BadRequest(f"The sandbox can't be created: {in_words(str(error))}.") from None


def labels(wanted: NewSandbox) -> dict[str, str]:
    """Return the labels for a request.

    Raises:
        BadRequest: The metadata has a reserved name.
    """
    found = dict(wanted.metadata or {})
    if taken := sorted(name for name in found if name.startswith(PREFIX)):
        raise BadRequest(f"Metadata may not be named {taken[0]!r}: names that begin with {PREFIX!r} are reserved.")
    found[TEMPLATE] = (wanted.templateID or "base")[:256]
    if isinstance(wanted.autoResume, dict) and wanted.autoResume.get("enabled", True):
        found[RESUMES] = "yes"
    if wanted.autoPause:
        found[PAUSES] = "yes"
    if masked := masked_host(wanted.network):
        found[HOST] = masked
    for mount in wanted.volumeMounts or ():
        found[VOLUME] = mount.path[:256]
    return found


def host_for(session: SessionInfo, port: int) -> str:
    """Return the ``Host`` of requests to a server in a session."""
    masked = session.labels.get(HOST, "")
    # The native API may set any label, also one that is no host.
    return (masked if is_host(masked) else "localhost:${PORT}").replace("${PORT}", str(port))


def metadata(session: SessionInfo) -> dict[str, str]:
    """Return the metadata of a sandbox."""
    return {name: value for name, value in session.labels.items() if not name.startswith(PREFIX)}


def is_sandbox(session: SessionInfo) -> bool:
    """Return whether this session is a sandbox, and not a further context, a snapshot or a template's build."""
    return session.sidecar_of is None and not is_snapshot(session) and BUILD not in session.labels


def is_snapshot(session: SessionInfo) -> bool:
    """Return whether this session is a snapshot."""
    return bool(session.labels.get(SNAPSHOT))


def snapshot_name(session: SessionInfo) -> str:
    """Return a snapshot's name. Empty if it has none."""
    name = session.labels.get(SNAPSHOT, "")
    return "" if name == _UNNAMED else name


def snapshot_labels(name: str, source: str) -> dict[str, str]:
    """Return the labels that make a branch a snapshot.

    Args:
        name: Empty for none.
        source: The sandbox of the snapshot.
    """
    return {SNAPSHOT: name or _UNNAMED, SOURCE: source}


def no_snapshot() -> dict[str, str]:
    """Return the labels that make the branch of a snapshot a sandbox."""
    return {SNAPSHOT: ""}


def matches_snapshot(session: SessionInfo, asked: Mapping[str, str]) -> bool:
    """Return whether a snapshot matches a listing's query."""
    source, name = e2b.session_id(asked.get("sandboxID", "")), asked.get("name", "").partition(":")[0]
    return source in ("", session.labels.get(SOURCE)) and e2b.session_id(name) in (
        "",
        session.id,
        snapshot_name(session),
    )


# --- what is shown ----------------------------------------------------------------------


def template_shown(session: SessionInfo) -> str:
    """Return the template's name as the client gave it."""
    return session.labels.get(TEMPLATE, session.template)


def access_model(session: SessionInfo, envd: str, traffic: str) -> dict[str, Any]:
    """Return the response to ``create`` and ``connect``.

    Args:
        session: The sandbox.
        envd: Its secret for files, commands and code.
        traffic: Its secret for code.
    """
    return {
        "templateID": template_shown(session),
        "sandboxID": e2b.shown_id(session.id),
        "clientID": "kernelsvc",
        "envdVersion": ENVD_VERSION,
        "envdAccessToken": envd,
        "trafficAccessToken": traffic,
        "domain": None,
    }


def model(session: SessionInfo) -> dict[str, Any]:
    """Return a sandbox for a listing."""
    limits = session.limits
    return {
        "templateID": template_shown(session),
        "alias": session.template,
        "sandboxID": e2b.shown_id(session.id),
        "clientID": "kernelsvc",
        "startedAt": session.created_at,
        "endAt": session.expires_at or session.created_at,
        "cpuCount": cpus(session),
        "memoryMB": (limits.memory_bytes or _machine_memory()) // MiB,
        "diskSizeMB": (limits.disk_bytes or 0) // MiB,
        "state": "paused" if session.paused else "running",
        "envdVersion": ENVD_VERSION,
        "metadata": metadata(session),
    }


def detail_model(session: SessionInfo, envd: str | None) -> dict[str, Any]:
    """Return the response to ``GET /sandboxes/{id}``.

    Args:
        session: The sandbox.
        envd: Its secret for files, commands and code. None leaves the field out, as E2B's schema allows.
    """
    return (
        model(session)
        | ({} if envd is None else {"envdAccessToken": envd})
        | ({"volumeMounts": [{"name": _volume(session), "path": session.labels[VOLUME]}]} if _volume(session) else {})
        | {
            "domain": None,
            "allowInternetAccess": session.limits.network != "none",
            "lifecycle": {
                "onTimeout": "pause" if PAUSES in session.labels else "kill",
                "autoResume": RESUMES in session.labels,
            },
        }
    )


def _volume(session: SessionInfo) -> str:
    return str(session.workspace or "").rpartition("/")[2] if VOLUME in session.labels else ""


def moment(asked: Mapping[str, str], name: str, otherwise: int) -> int:
    """Parse a time in a query, in whole seconds of Unix time.

    Raises:
        BadRequest: It is not a time.
    """
    text = asked.get(name)
    if text is None:
        return otherwise
    if not text.isdecimal() or len(text) > 12:
        raise BadRequest(f"{name} must be a time in seconds since 1970.")
    return int(text)


def metric_models(session: SessionInfo, samples: Sequence[UsageSample]) -> list[dict[str, Any]]:
    """Return a sandbox's usage. CPU is the share between a sample and the one before it.

    Args:
        session: The sandbox.
        samples: The oldest first.
    """
    before = UsageSample(seconds_of(session.created_at, 0.0), 0.0, 0, 0)
    found = []
    for sample in samples:
        spent, passed = sample.cpu_seconds - before.cpu_seconds, max(1.0, sample.at - before.at)
        found.append(_metric_model(session, sample, max(0.0, spent) / passed))  # a new kernel's usage starts at zero
        before = sample
    return found


def _metric_model(session: SessionInfo, sample: UsageSample, busy: float) -> dict[str, Any]:
    return {
        "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(sample.at)),
        "timestampUnix": int(sample.at),
        "cpuCount": cpus(session),
        "cpuUsedPct": round(100 * busy / cpus(session), 2),
        "memUsed": sample.memory_bytes,
        "memTotal": session.limits.memory_bytes or _machine_memory(),
        "memCache": 0,
        "diskUsed": sample.disk_bytes,
        "diskTotal": session.limits.disk_bytes or 0,
    }


def cpus(session: SessionInfo) -> int:
    """Return the number of a sandbox's processors, rounded to an integer."""
    return max(1, round(session.limits.cpu_cores or len(os.sched_getaffinity(0))))


def _machine_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def snapshot_model(session: SessionInfo) -> dict[str, Any]:
    """Return a snapshot in E2B's format."""
    name = snapshot_name(session)
    return {"snapshotID": e2b.shown_id(session.id), "names": [name] if name else []}


# --- listings ------------------------------------------------------------------------------


def wanted_metadata(text: str) -> dict[str, str]:
    """Parse the metadata of a listing's query: an encoded query whose names and values are quoted again."""
    return {unquote(name): unquote(value) for name, value in parse_qsl(text, keep_blank_values=True)}


def matches(session: SessionInfo, asked: Mapping[str, str]) -> bool:
    """Return whether a sandbox matches a listing's query.

    Args:
        session: The sandbox.
        asked: The query.

    Raises:
        BadRequest: The query is invalid.
    """
    states = set(filter(None, asked.get("state", "").split(",")))
    if states and ("paused" if session.paused else "running") not in states:
        return False
    if (template := asked.get("template")) and template not in (template_shown(session), session.template):
        return False
    if since := asked.get("startedAfter"):
        moment = seconds_of(since, -1.0)
        if moment < 0:
            raise BadRequest("startedAfter is not a time. Write it as 2026-01-31T12:00:00Z.")
        if seconds_of(session.created_at, 0.0) < moment:
            return False
    return metadata(session).items() >= wanted_metadata(asked.get("metadata", "")).items()


def page(found: Sequence[SessionInfo], asked: Mapping[str, str], most: int) -> tuple[list[SessionInfo], str | None]:
    """Return one page of a listing, and the token of the next page.

    The token is a position among the sandboxes, not a count. Sandboxes that are created or
    ended meanwhile neither repeat nor hide others.

    Args:
        found: All matching sandboxes.
        asked: The query.
        most: Sandboxes on a page if the query does not say.

    Raises:
        BadRequest: The query is invalid.
    """
    limit = _limit(asked.get("limit"), most)
    rising = asked.get("order") == "asc"
    ordered = sorted(found, key=_position, reverse=not rising)
    if token := asked.get("nextToken"):
        after = _decode_position(token)
        ordered = [each for each in ordered if (_position(each) > after if rising else _position(each) < after)]
    shown = ordered[:limit]
    return shown, _encode_position(shown[-1]) if len(ordered) > limit else None


def _limit(text: str | None, most: int) -> int:
    if not text:
        return most
    if not text.isdecimal() or not 0 < int(text[:9]) <= most:
        raise BadRequest(f"limit must be a number from 1 to {most}.")
    return int(text)


def _position(session: SessionInfo) -> tuple[str, str]:
    return session.created_at, session.id


def _encode_position(session: SessionInfo) -> str:
    return base64.urlsafe_b64encode(json.dumps(_position(session)).encode()).decode().rstrip("=")


def _decode_position(token: str) -> tuple[str, str]:
    try:
        at, session = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        return str(at), str(session)
    except (ValueError, TypeError):
        raise BadRequest("There is no such page. Send the x-next-token of the page before.") from None


def secrets_of(access: Any, who: Principal, session: str) -> tuple[str, str]:
    """Return a caller's two secrets of a sandbox: for everything in it, and for code alone.

    Raises:
        Forbidden: the caller's token lacks the scope ``run``.
    """
    return access.secret(who, session, e2b.ENVD), access.secret(who, session, e2b.TRAFFIC)
