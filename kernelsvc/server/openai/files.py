"""``/v1/files``: uploaded files, which containers get copies of. ``/v1/models``: the models."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Any

from kernelsvc.answers.containers import file_name
from kernelsvc.answers.kept import KeptFile
from kernelsvc.errors import BadRequest, QuotaExceeded
from kernelsvc.protocol.anthropic import container_of_file, file_json
from kernelsvc.server.openai.handler import OpenAiHandler

#: Most files of one principal, and bytes of them together.
MAX_FILES, MAX_BYTES = 1000, 4 * 1024**3


def _stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def uploaded_json(file: KeptFile) -> dict[str, Any]:
    """Return an uploaded file."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.size,
        "created_at": file.created,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
    }


class UploadsHandler(OpenAiHandler):
    """Handler of ``/v1/files``."""

    route = "/v1/files"

    async def post(self) -> None:
        """Upload a file."""
        self.auth_scope("run")
        fields, name, data = self.form()
        if name is None:
            raise BadRequest("The form has no field 'file'.", param="file")
        async with self.context.turn_of(self.who, "uploads"):
            self.answer(await self._keep(fields, name, data))

    async def _keep(self, fields: dict[str, str], name: str, data: bytes) -> dict[str, Any]:
        kept = await asyncio.to_thread(self.answers.store.files, self.who.name)
        if len(kept) >= MAX_FILES or sum(each.size for each in kept) + len(data) > MAX_BYTES:
            raise QuotaExceeded("There are too many uploaded files. Delete some.")
        file = KeptFile(
            id=self.answers.new_id("file").replace("_", "-"),
            created=int(time.time()),
            filename=file_name(name).decode("utf-8", "replace"),
            purpose=fields.get("purpose", "user_data")[:64],
            size=len(data),
        )
        self.answers.store.put_file(self.who.name, file, data)
        return self.shown(file)

    def shown(self, file: KeptFile) -> dict[str, Any]:
        """Return a file in the format of the client's API."""
        if self.for_anthropic:
            return file_json(file.id, file.filename, file.size, _stamp(file.created))
        return uploaded_json(file)

    async def get(self) -> None:
        """List the uploaded files."""
        self.auth_scope("read")
        purpose = self.get_query_argument("purpose", "")
        async with self.context.turn_of(self.who, "uploads"):
            kept = await asyncio.to_thread(self.answers.store.files, self.who.name)
            self.answer(self.list_of([self.shown(each) for each in kept if purpose in ("", each.purpose)]))


class UploadedFileHandler(UploadsHandler):
    """Handler of ``/v1/files/{id}``."""

    route = "/v1/files/{id}"
    post = OpenAiHandler.post  # type: ignore[assignment]  # a file is added to the list

    async def get(self, file: str) -> None:  # type: ignore[override]
        """Describe a file."""
        self.auth_scope("read")
        named = container_of_file(file)
        if named is None:
            self.answer(self.shown(self.answers.store.file(self.who.name, file)))
            return
        containers = self.answers.containers
        session = (await containers.find(self.who, named[0])).id
        found = await containers.find_file(self.who, session, named[1])
        name = found.path.rpartition(b"/")[2].decode("utf-8", "replace")
        self.answer(file_json(file, name, found.size, _stamp(found.mtime_ns / 1e9)))

    async def delete(self, file: str) -> None:
        """Erase a file."""
        self.auth_scope("run")
        self.answers.store.file(self.who.name, file)
        self.answers.store.remove(self.who.name, file)
        deleted = {"type": "file_deleted"} if self.for_anthropic else {"object": "file", "deleted": True}
        self.answer({"id": file, **deleted})


class UploadedContentHandler(OpenAiHandler):
    """Handler of ``/v1/files/{id}/content``."""

    route = "/v1/files/{id}/content"

    async def get(self, file: str) -> None:
        """Send the content of a file."""
        self.auth_scope("read")
        named = container_of_file(file)
        if named is None:
            async with self.context.turn_of(self.who, "uploads"):
                self.send_bytes(await asyncio.to_thread(self.answers.store.content, self.who.name, file))
            return
        containers = self.answers.containers
        session = (await containers.find(self.who, named[0])).id
        found = await containers.find_file(self.who, session, named[1])
        await self.send_file(session, found.path)


def _model_json(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "kernelsvc"}


class ModelsHandler(OpenAiHandler):
    """Handler of ``/v1/models``."""

    route = "/v1/models"

    async def get(self) -> None:
        """List the models."""
        self.auth_scope("read")
        self.answer({"object": "list", "data": [_model_json(each) for each in self.answers.models(self.who)]})


class ModelHandler(OpenAiHandler):
    """Handler of ``/v1/models/{name}``."""

    route = "/v1/models/{name}"

    async def get(self, name: str) -> None:
        """Describe a model."""
        self.auth_scope("read")
        self.answers.model(self.who, name)
        self.answer(_model_json(name))
