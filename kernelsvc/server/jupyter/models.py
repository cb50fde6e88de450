"""Sessions and templates in the format of Jupyter's REST API: functions of values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from kernelsvc.model.cluster.ids import kernel_id
from kernelsvc.model.objects import SessionInfo, SessionState

_STATES = {
    SessionState.STARTING: "starting",
    SessionState.IDLE: "idle",
    SessionState.BUSY: "busy",
    SessionState.RESTORING: "restarting",
    # Jupyter has no word for a kernel without a process that takes the next cell all the same.
    SessionState.HIBERNATED: "idle",
    SessionState.PAUSED: "idle",
    SessionState.DEAD: "dead",
    SessionState.CLOSED: "dead",
}

#: Labels for a notebook session's path and type.
PATH, TYPE = "jupyter.path", "jupyter.type"
#: Longest value of a label, in characters.
_LABEL = 256

LOGO = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 64 64">'
    '<rect width="64" height="64" rx="12" fill="#306998"/>'
    '<path d="M18 14v36M18 34l24-20M26 28l18 22" stroke="#ffd43b" stroke-width="7" fill="none"/></svg>'
)


def kernel_model(session: SessionInfo, connections: int = 0) -> dict[str, Any]:
    """Return the body of ``/api/kernels/{id}``."""
    return {
        "id": kernel_id(session.id),
        "name": session.template,
        "last_activity": session.last_activity_at,
        "execution_state": _STATES[session.state],
        "connections": connections,
    }


def session_model(session: SessionInfo, connections: int = 0) -> dict[str, Any]:
    """Return the body of ``/api/sessions/{id}``. A session and its kernel have the same id."""
    path = session.labels.get(PATH, session.name or session.id)
    name = session.name or path.rpartition("/")[2]
    kind = session.labels.get(TYPE, "notebook")
    return {
        "id": kernel_id(session.id),
        "path": path,
        "name": name,
        "type": kind,
        "kernel": kernel_model(session, connections),
        "notebook": {"path": path, "name": name},
    }


def labels(asked: Mapping[str, Any]) -> dict[str, str]:
    """Return the fields of a client's request that are stored as labels."""
    found = {PATH: asked.get("path"), TYPE: asked.get("type")}
    return {name: value[:_LABEL] for name, value in found.items() if isinstance(value, str) and value}


def spec_model(template: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the body of ``/api/kernelspecs/{name}``.

    Args:
        template: From the service's list.
        prefix: The prefix of the path in the client's URLs.
    """
    name = str(template["name"])
    forked = template.get("kind") == "forked"
    return {
        "name": name,
        "spec": {
            "argv": [],
            "env": {},
            "display_name": f"Python 3 (kernelsvc, {name})" if forked else name,
            "language": "python" if forked else str(template.get("language") or name),
            "interrupt_mode": "signal",
            "metadata": {"debugger": forked, "kernelsvc": {"kind": template.get("kind")}},
        },
        "resources": {"logo-svg": f"{prefix}/kernelspecs/{quote(name, safe='')}/logo-svg.svg"},
    }


def specs_model(templates: Sequence[Mapping[str, Any]], default: str, prefix: str = "") -> dict[str, Any]:
    """Return the body of ``/api/kernelspecs``."""
    return {"default": default, "kernelspecs": {str(each["name"]): spec_model(each, prefix) for each in templates}}
