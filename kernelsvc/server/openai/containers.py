"""``/v1/containers``: sessions as containers, and their files."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any

from kernelsvc.answers.containers import LABEL, MAX_LISTED, SOURCE
from kernelsvc.errors import BadRequest
from kernelsvc.model.files import FileStatus
from kernelsvc.model.objects import SessionInfo, SessionState
from kernelsvc.protocol.openai.requests import MEMORY, container_limits, unsupported
from kernelsvc.protocol.openai.responses import container_id, file_id
from kernelsvc.server.openai.handler import OpenAiHandler

_FIELDS = {"name", "expires_after", "file_ids", "memory_limit", "network_policy", "skills"}
#: Longest idle time, in minutes.
MAX_MINUTES = 7 * 24 * 60


def _seconds(stamp: str) -> int:
    return int(datetime.fromisoformat(stamp).timestamp())


def container_json(session: SessionInfo) -> dict[str, Any]:
    """Return a container."""
    idle = float(session.labels.get(LABEL) or 0)
    memory = session.limits.memory_bytes
    return {
        "id": container_id(session.id),
        "object": "container",
        "created_at": _seconds(session.created_at),
        "name": session.name or "",
        "status": "expired" if session.state is SessionState.CLOSED else "running",
        "expires_after": {"anchor": "last_active_at", "minutes": max(1, round(idle / 60))} if idle else None,
        "last_active_at": _seconds(session.last_activity_at),
        "memory_limit": next((name for name, size in MEMORY.items() if size == memory), None),
        "network_policy": {"type": "disabled"} if session.limits.network == "none" else None,
    }


def file_json(container: str, status: FileStatus) -> dict[str, Any]:
    """Return a file of a container."""
    by_user = status.attributes.get(SOURCE) == b"user"
    return {
        "id": file_id(status.path),
        "object": "container.file",
        "container_id": container,
        "bytes": status.size,
        "created_at": _seconds(status.modified),
        "path": "/mnt/data/" + status.path.decode("utf-8", "replace"),
        "source": "user" if by_user else "assistant",
    }


class ContainersHandler(OpenAiHandler):
    """Handler of ``/v1/containers``."""

    route = "/v1/containers"

    async def post(self) -> None:
        """Create a container."""
        self.auth_scope("run")
        body = self.json_body()
        if not isinstance(body, dict) or not isinstance(body.get("name"), str):
            raise BadRequest("'name' is missing.", param="name")
        for name in body:
            if name not in _FIELDS:
                raise unsupported(name)
        memory, no_network = container_limits(body, "body")
        idle = _idle(body.get("expires_after"))
        files = body.get("file_ids") or []
        if not isinstance(files, list) or not all(isinstance(each, str) for each in files):
            raise BadRequest("'file_ids' is a list of ids.", param="file_ids")
        store, containers = self.answers.store, self.answers.containers
        named = store.named(self.who.name, files)
        made = await containers.create(
            self.who, name=body["name"][:256], memory_bytes=memory, no_network=no_network, idle_seconds=idle
        )
        for each in named:
            data = await asyncio.to_thread(store.content, self.who.name, each.id)
            await containers.put(self.who, made.id, each.filename, data)
        self.answer(container_json(made))

    async def get(self) -> None:
        """List the containers."""
        self.auth_scope("read")
        async with self.context.turn_of(self.who):
            self.answer(self.list_of(self._found(self.get_query_argument("name", ""))))

    def _found(self, name: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        page: str | None = None
        while len(found) < MAX_LISTED:
            sessions, page = self.context.service.list(self.who, label=LABEL, limit=100, page=page)
            found += [container_json(each) for each in sessions if not name or each.name == name]
            if page is None:
                break
        return found


def _idle(given: Any) -> float | None:
    if given is None:
        return None
    minutes = given.get("minutes") if isinstance(given, dict) else None
    anchor = given.get("anchor", "last_active_at") if isinstance(given, dict) else None
    if anchor != "last_active_at" or not isinstance(minutes, int) or not 1 <= minutes <= MAX_MINUTES:
        raise BadRequest(
            f"'expires_after' has the anchor 'last_active_at' and 1 to {MAX_MINUTES} minutes.", param="expires_after"
        )
    return minutes * 60.0


class ContainerHandler(OpenAiHandler):
    """Handler of ``/v1/containers/{id}``."""

    route = "/v1/containers/{id}"

    async def get(self, container: str) -> None:
        """Retrieve a container."""
        self.auth_scope("read")
        self.answer(container_json(await self.answers.containers.find(self.who, container)))

    async def delete(self, container: str) -> None:
        """End a container."""
        self.auth_scope("run")
        found = await self.answers.containers.find(self.who, container)
        await self.context.service.close(self.who, found.id)
        self.answer({"id": container, "object": "container.deleted", "deleted": True})


class ContainerFilesHandler(OpenAiHandler):
    """Handler of ``/v1/containers/{id}/files``."""

    route = "/v1/containers/{id}/files"

    async def post(self, container: str) -> None:
        """Put a file into a container: a form with the file, or the id of an uploaded one."""
        self.auth_scope("run")
        containers = self.answers.containers
        found = await containers.need_open(self.who, container)
        if self.request.headers.get("Content-Type", "").startswith("application/json"):
            body = self.json_body()
            given = body.get("file_id") if isinstance(body, dict) else None
            if not isinstance(given, str):
                raise BadRequest("'file_id' is missing.", param="file_id")
            name: str | None = self.answers.store.file(self.who.name, given).filename
            data = await asyncio.to_thread(self.answers.store.content, self.who.name, given)
        else:
            _, name, data = self.form()
        if name is None:
            raise BadRequest("The form has no field 'file'.", param="file")
        path = await containers.put(self.who, found.id, name, data)
        self.answer(file_json(container, await containers.find_file(self.who, found.id, file_id(path))))

    async def get(self, container: str) -> None:
        """List the files of a container."""
        self.auth_scope("read")
        containers = self.answers.containers
        found = await containers.find(self.who, container)
        async with self.context.turn_of(self.who, "files"):
            files = (await containers.files(self.who, found.id, attributes=True)).values()
            newest = sorted(files, key=lambda each: -each.mtime_ns)
            self.answer(self.list_of([file_json(container, each) for each in newest]))


class ContainerFileHandler(OpenAiHandler):
    """Handler of ``/v1/containers/{id}/files/{file}``."""

    route = "/v1/containers/{id}/files/{file}"

    async def get(self, container: str, file: str) -> None:
        """Describe a file."""
        self.auth_scope("read")
        found = await self.answers.containers.find(self.who, container)
        self.answer(file_json(container, await self.answers.containers.find_file(self.who, found.id, file)))

    async def delete(self, container: str, file: str) -> None:
        """Remove a file."""
        self.auth_scope("run")
        containers = self.answers.containers
        found = await containers.need_open(self.who, container)
        status = await containers.find_file(self.who, found.id, file)
        await containers.remove(self.who, found.id, status.path)
        self.answer({"id": file, "object": "container.file.deleted", "deleted": True})


class ContainerContentHandler(OpenAiHandler):
    """Handler of ``/v1/containers/{id}/files/{file}/content``."""

    route = "/v1/containers/{id}/files/{file}/content"

    async def get(self, container: str, file: str) -> None:
        """Send the content of a file, in pieces."""
        self.auth_scope("read")
        found = await self.answers.containers.find(self.who, container)
        status = await self.answers.containers.find_file(self.who, found.id, file)
        await self.send_file(found.id, status.path)
