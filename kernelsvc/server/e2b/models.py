"""Sessions as E2B's control plane shows them, and its requests as ours: functions of values.

Metadata are labels. What else this door must remember of a sandbox stands in
labels of its own, whose names begin with ``e2b.``.
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
from kernelsvc.model.usage_history import UsageSample
from kernelsvc.protocol import e2b

#: Labels of this door.
PREFIX = "e2b."
TEMPLATE, SNAPSHOT, SOURCE, RESUMES, PAUSES = (
    PREFIX + name for name in ("template", "snapshot", "source", "resumes", "pauses")
)
LANGUAGE, CWD, DEFAULT = (PREFIX + name for name in ("language", "cwd", "default"))
#: A sandbox's directory as its code sees it.
HOME = "/home/user"
#: What the label of a snapshot without a name holds.
_UNNAMED = "-"
#: Longest name of a snapshot, in characters: a label's.
MAX_NAME = 256
#: Names that E2B's clients ask for by themselves; they mean our default template.
_DEFAULT_TEMPLATES = frozenset({"", "base", "code-interpreter-v1", "code-interpreter", "code-interpreter-beta"})
#: The release of E2B's agent whose behaviour this door has.
ENVD_VERSION = "0.6.4"
#: E2B's own, where a client names none.
DEFAULT_SECONDS = 300
#: Fields of a request that ask for what is not here; each may be there and empty.
_UNSUPPORTED = {
    "network": "There are no rules for one sandbox's network here.",
    "iam": "There is no workload identity here.",
    "volumeMounts": "There are no volumes here.",
    "mcp": "There is no MCP gateway in a sandbox; MCP clients speak to this server at /mcp.",
}
#: What switches on, in a session's process, the results that only this door shows.
ENVIRONMENT = {"E2B_SANDBOX": "true"}


class NewSandbox(msgspec.Struct, kw_only=True):
    """``POST /v2/sandboxes``; what is unknown is left alone, so that a newer client works."""

    templateID: str = ""
    timeout: float = DEFAULT_SECONDS
    autoPause: bool = False
    autoResume: Any = None
    allow_internet_access: bool | None = None
    metadata: dict[str, str] | None = None
    envVars: dict[str, str] | None = None
    network: Any = None
    iam: Any = None
    volumeMounts: Any = None
    mcp: Any = None


def decode(asked: Mapping[str, Any]) -> NewSandbox:
    """A request for a sandbox.

    Raises:
        BadRequest: a field is of the wrong type.
        NotSupported: it asks for what is not here.
    """
    try:
        wanted = msgspec.convert(dict(asked), NewSandbox)
    except msgspec.ValidationError as error:
        raise BadRequest(f"The sandbox can't be made: {error}.") from None
    for name, what in _UNSUPPORTED.items():
        if getattr(wanted, name):
            raise NotSupported(f"{what} Leave {name!r} out.")
    return wanted


def template_of(name: str, known: Iterable[str]) -> str | None:
    """Our template behind E2B's name for one; None for the default one.

    Raises:
        NotFound: there is none.
    """
    name_only = name.partition(":")[0]
    names = set(known)
    if name_only in names:
        return name_only
    if name_only in _DEFAULT_TEMPLATES:
        return None
    raise NotFound(f"There is no template {name!r}; there are {', '.join(sorted(names))}.")


def request_of(wanted: NewSandbox, template: str | None, key: str | None) -> SessionRequest:
    """The session behind a sandbox.

    Args:
        wanted: what the client asks for.
        template: ours, None for the default one.
        key: its idempotency key.

    Raises:
        BadRequest: a name of a variable, or metadata, can't be a session's.
    """
    fields = {
        "template": template,
        "labels": labels(wanted),
        "env": {**(wanted.envVars or {}), **ENVIRONMENT},
        "idempotency_key": key,
        "limits": LimitsRequest(network="none") if wanted.allow_internet_access is False else LimitsRequest(),
    }
    try:
        return msgspec.convert(fields, SessionRequest)
    except msgspec.ValidationError as error:
        raise BadRequest(f"The sandbox can't be made: {error}.") from None


def labels(wanted: NewSandbox) -> dict[str, str]:
    """What is kept of a request.

    Raises:
        BadRequest: metadata with a name of ours.
    """
    found = dict(wanted.metadata or {})
    if taken := sorted(name for name in found if name.startswith(PREFIX)):
        raise BadRequest(f"Metadata may not be named {taken[0]!r}: names that begin with {PREFIX!r} are taken.")
    found[TEMPLATE] = (wanted.templateID or "base")[:256]
    if isinstance(wanted.autoResume, dict) and wanted.autoResume.get("enabled", True):
        found[RESUMES] = "yes"
    if wanted.autoPause:
        found[PAUSES] = "yes"
    return found


def metadata(session: SessionInfo) -> dict[str, str]:
    """The metadata of a sandbox."""
    return {name: value for name, value in session.labels.items() if not name.startswith(PREFIX)}


def is_sandbox(session: SessionInfo) -> bool:
    """Whether this session is a sandbox of its own: no further context, and no snapshot."""
    return session.beside is None and not is_snapshot(session)


def is_snapshot(session: SessionInfo) -> bool:
    """Whether this session only keeps another one's state."""
    return bool(session.labels.get(SNAPSHOT))


def snapshot_name(session: SessionInfo) -> str:
    """A snapshot's name, empty for none."""
    name = session.labels.get(SNAPSHOT, "")
    return "" if name == _UNNAMED else name


def snapshot_labels(name: str, source: str) -> dict[str, str]:
    """What makes a branch a snapshot.

    Args:
        name: empty for none.
        source: the sandbox it is taken of.
    """
    return {SNAPSHOT: name or _UNNAMED, SOURCE: source}


def no_snapshot() -> dict[str, str]:
    """What makes the branch of a snapshot a sandbox again."""
    return {SNAPSHOT: ""}


def matches_snapshot(session: SessionInfo, asked: Mapping[str, str]) -> bool:
    """Whether a snapshot is what a listing asks for."""
    source, name = asked.get("sandboxID"), asked.get("name", "").partition(":")[0]
    return source in (None, "", session.labels.get(SOURCE)) and name in ("", session.id, snapshot_name(session))


# --- what is shown ----------------------------------------------------------------------


def template_shown(session: SessionInfo) -> str:
    """The name of its template, as the client gave it."""
    return session.labels.get(TEMPLATE, session.template)


def access_model(session: SessionInfo, envd: str, traffic: str) -> dict[str, Any]:
    """The answer to ``create`` and ``connect``.

    Args:
        session: the sandbox.
        envd: its secret for files, commands and code.
        traffic: its secret for code.
    """
    return {
        "templateID": template_shown(session),
        "sandboxID": session.id,
        "clientID": "kernelsvc",
        "envdVersion": ENVD_VERSION,
        "envdAccessToken": envd,
        "trafficAccessToken": traffic,
        "domain": None,
    }


def model(session: SessionInfo) -> dict[str, Any]:
    """A sandbox in a listing."""
    limits = session.limits
    return {
        "templateID": template_shown(session),
        "alias": session.template,
        "sandboxID": session.id,
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
    """``GET /sandboxes/{id}``.

    Args:
        session: the sandbox.
        envd: its secret for files, commands and code. None leaves the field out, as E2B's schema allows.
    """
    return (
        model(session)
        | ({} if envd is None else {"envdAccessToken": envd})
        | {
            "domain": None,
            "allowInternetAccess": session.limits.network == "host",
            "lifecycle": {
                "onTimeout": "pause" if PAUSES in session.labels else "kill",
                "autoResume": RESUMES in session.labels,
            },
        }
    )


def moment(asked: Mapping[str, str], name: str, otherwise: int) -> int:
    """A moment in a query, in whole seconds of Unix time.

    Raises:
        BadRequest: it is none.
    """
    text = asked.get(name)
    if text is None:
        return otherwise
    if not text.isdecimal() or len(text) > 12:
        raise BadRequest(f"{name} must be a time in seconds since 1970.")
    return int(text)


def metric_models(session: SessionInfo, samples: Sequence[UsageSample]) -> list[dict[str, Any]]:
    """What a sandbox used; of the CPU, the share between a sample and the one before it.

    Args:
        session: the sandbox.
        samples: the oldest first.
    """
    before = UsageSample(seconds_of(session.created_at, 0.0), 0.0, 0, 0)
    found = []
    for sample in samples:
        spent, passed = sample.cpu_seconds - before.cpu_seconds, max(1.0, sample.at - before.at)
        found.append(_metric_model(session, sample, max(0.0, spent) / passed))  # a new kernel begins at zero
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
    """Processors of a sandbox, as a whole number."""
    return max(1, round(session.limits.cpu_cores or len(os.sched_getaffinity(0))))


def _machine_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def snapshot_model(session: SessionInfo) -> dict[str, Any]:
    """A snapshot."""
    name = snapshot_name(session)
    return {"snapshotID": session.id, "names": [name] if name else []}


# --- listings ------------------------------------------------------------------------------


def wanted_metadata(text: str) -> dict[str, str]:
    """The metadata that a listing asks for: a query in a query, names and values quoted once more."""
    return {unquote(name): unquote(value) for name, value in parse_qsl(text, keep_blank_values=True)}


def matches(session: SessionInfo, asked: Mapping[str, str]) -> bool:
    """Whether a sandbox is what a listing asks for.

    Args:
        session: the sandbox.
        asked: the listing's query.

    Raises:
        BadRequest: the query can't be read.
    """
    states = set(filter(None, asked.get("state", "").split(",")))
    if states and ("paused" if session.paused else "running") not in states:
        return False
    if (template := asked.get("template")) and template not in (template_shown(session), session.template):
        return False
    if since := asked.get("startedAfter"):
        moment = seconds_of(since, -1.0)
        if moment < 0:
            raise BadRequest("startedAfter is no time; write it as 2026-01-31T12:00:00Z.")
        if seconds_of(session.created_at, 0.0) < moment:
            return False
    return metadata(session).items() >= wanted_metadata(asked.get("metadata", "")).items()


def page(found: Sequence[SessionInfo], asked: Mapping[str, str], most: int) -> tuple[list[SessionInfo], str | None]:
    """One page of a listing, and the next one's name.

    The name is a position among the sandboxes, not a count: those that are made or
    ended meanwhile neither repeat nor hide others.

    Args:
        found: everything there is to list.
        asked: the listing's query.
        most: sandboxes on a page where the query does not say.

    Raises:
        BadRequest: the query can't be read.
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
        raise BadRequest("There is no such page; take the x-next-token of the page before.") from None


def secrets_of(access: Any, who: Principal, session: str) -> tuple[str, str]:
    """Return a caller's two secrets of a sandbox: for everything in it, and for code alone.

    Raises:
        Forbidden: the caller's token lacks the scope ``run``.
    """
    return access.secret(who, session, e2b.ENVD), access.secret(who, session, e2b.TRAFFIC)
