"""``/v1/files``: uploaded files, which containers get copies of. ``/v1/models``: the models."""

from __future__ import annotations

import time
from typing import Any

from kernelsvc.answers.answers import new_id
from kernelsvc.answers.containers import file_name
from kernelsvc.answers.kept import KeptFile
from kernelsvc.errors import BadRequest, QuotaExceeded
from kernelsvc.server.openai.handler import OpenAiHandler

#: Most files of one principal, and bytes of them together.
MAX_FILES, MAX_BYTES = 1000, 4 * 1024**3


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
        kept = self.answers.store.files(self.who.name)
        if len(kept) >= MAX_FILES or sum(each.size for each in kept) + len(data) > MAX_BYTES:
            raise QuotaExceeded("There are too many uploaded files. Delete some.")
        file = KeptFile(
            id=new_id("file").replace("_", "-"),
            created=int(time.time()),
            filename=file_name(name).decode("utf-8", "replace"),
            purpose=fields.get("purpose", "user_data")[:64],
            size=len(data),
        )
        self.answers.store.put_file(self.who.name, file, data)
        self.answer(uploaded_json(file))

    async def get(self) -> None:
        """List the uploaded files."""
        self.auth_scope("read")
        purpose = self.get_query_argument("purpose", "")
        files = [each for each in self.answers.store.files(self.who.name) if purpose in ("", each.purpose)]
        self.answer(self.list_of([uploaded_json(each) for each in files]))


class UploadedFileHandler(OpenAiHandler):
    """Handler of ``/v1/files/{id}``."""

    route = "/v1/files/{id}"

    async def get(self, file: str) -> None:
        """Describe a file."""
        self.auth_scope("read")
        self.answer(uploaded_json(self.answers.store.file(self.who.name, file)))

    async def delete(self, file: str) -> None:
        """Erase a file."""
        self.auth_scope("run")
        self.answers.store.file(self.who.name, file)
        self.answers.store.remove(self.who.name, file)
        self.answer({"id": file, "object": "file", "deleted": True})


class UploadedContentHandler(OpenAiHandler):
    """Handler of ``/v1/files/{id}/content``."""

    route = "/v1/files/{id}/content"

    async def get(self, file: str) -> None:
        """Send the content of a file."""
        self.auth_scope("read")
        self.send_bytes(self.answers.store.content(self.who.name, file))


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
