"""``/v1/files``, ``/v1/containers`` and ``/v1/models`` over plain HTTP."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from http_server import ALICE

from kernelsvc.answers import containers
from kernelsvc.answers.kept import MAX_NAMED, AnswerStore

CODE = {"type": "code_interpreter", "container": {"type": "auto"}}


def form(content: bytes, name: str = "sales.csv", **fields: str) -> dict[str, Any]:
    """The body and headers of an upload."""
    parts = [f'--b\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n' for key, value in fields.items()]
    head = "".join(parts) + f'--b\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
    body = head.encode() + content + b"\r\n--b--\r\n"
    return {"body": body, "headers": {"Content-Type": "multipart/form-data; boundary=b"}}


async def test_a_file_is_uploaded_listed_and_erased(lab: Any) -> None:
    made = await lab.server.json("POST", "/v1/files", status=200, **form(b"a,b\n1,2\n", purpose="user_data"))
    assert (made["filename"], made["bytes"], made["purpose"]) == ("sales.csv", 8, "user_data")
    path = f"/v1/files/{made['id']}"
    assert await lab.read(path) == made
    assert (await lab.server.fetch("GET", path + "/content")).body == b"a,b\n1,2\n"
    assert (await lab.read("/v1/files"))["data"] == [made]
    await lab.read(path, 404, token="bob-token")
    assert (await lab.read("/v1/files", token="bob-token"))["data"] == []
    assert (await lab.server.json("DELETE", path, status=200))["deleted"] is True
    await lab.read(path, 404)
    await lab.read("/v1/files/file-..%2f", 404)


@pytest.mark.parametrize(
    ("kind", "path"), [("uploads", "/v1/files"), ("uploads", "/v1/files/{}/content"), ("", "/v1/containers")]
)
async def test_one_client_of_a_principal_after_the_other_reads_many_files(lab: Any, kind: str, path: str) -> None:
    made = await lab.server.json("POST", "/v1/files", status=200, **form(b"a"))
    others = await lab.server.json("POST", "/v1/files", status=200, token="bob-token", **form(b"b"))
    async with lab.server.app.settings["context"].turn_of(ALICE, kind):
        waits = asyncio.ensure_future(lab.server.fetch("GET", path.format(made["id"])))
        upload = asyncio.ensure_future(lab.server.fetch("POST", "/v1/files", **form(b"c"))) if kind else None
        for _ in range(3):
            assert (await lab.server.fetch("GET", path.format(others["id"]), token="bob-token")).code == 200
        assert not waits.done()
        assert upload is None or not upload.done()
    assert (await waits).code == 200
    assert upload is None or (await upload).code == 200


async def test_a_container_is_made_used_listed_and_ended(lab: Any) -> None:
    file = await lab.server.json("POST", "/v1/files", status=200, **form(b"7"))
    body = {"name": "mine", "file_ids": [file["id"]], "expires_after": {"anchor": "last_active_at", "minutes": 5}}
    made = await lab.server.json("POST", "/v1/containers", body, 200)
    assert (made["name"], made["status"], made["expires_after"]["minutes"]) == ("mine", "running", 5)
    path = f"/v1/containers/{made['id']}"
    [found] = (await lab.read(path + "/files"))["data"]
    assert (found["path"], found["bytes"], found["source"]) == ("/mnt/data/sales.csv", 1, "user")
    assert (await lab.server.fetch("GET", f"{path}/files/{found['id']}/content")).body == b"7"
    named = {"type": "code_interpreter", "container": made["id"]}
    got = await lab.create("python: 1", tools=[named])
    assert got["output"][0]["container_id"] == made["id"]
    added = await lab.server.json("POST", path + "/files", status=200, **form(b"88", "b.txt"))
    assert [each["id"] for each in (await lab.read(path + "/files?limit=1"))["data"]] == [added["id"]]
    assert (await lab.server.json("DELETE", f"{path}/files/{added['id']}", status=200))["deleted"] is True
    assert len((await lab.read("/v1/containers?name=mine"))["data"]) == 1
    assert (await lab.read("/v1/containers?name=other"))["data"] == []
    await lab.read(path, 404, token="bob-token")
    await lab.server.json("DELETE", path, status=200)
    assert (await lab.read(path))["status"] == "expired"
    assert "expired" in (await lab.server.json("POST", path + "/files", {"file_id": file["id"]}, 400, headers=JSON))[
        "error"]["message"]  # fmt: skip


JSON = {"Content-Type": "application/json"}


async def test_files_of_a_request_are_in_the_container(lab: Any) -> None:
    file = await lab.server.json("POST", "/v1/files", status=200, **form(b"7"))
    tool = {"type": "code_interpreter", "container": {"type": "auto", "file_ids": [file["id"]]}}
    got = await lab.create("python: 1", tools=[tool])
    listed = await lab.read(f"/v1/containers/{got['output'][0]['container_id']}/files")
    assert [each["path"] for each in listed["data"]] == ["/mnt/data/sales.csv"]
    tool["container"] = {"type": "auto", "file_ids": ["file-" + "0" * 32]}
    assert (await lab.create("python: 1", 404, tools=[tool]))["error"]["message"]


async def test_the_files_that_a_request_names_are_read_once_each_and_bounded(lab: Any, monkeypatch: Any) -> None:
    file = await lab.server.json("POST", "/v1/files", status=200, **form(b"7"))
    read, real = [], AnswerStore.file
    monkeypatch.setattr(AnswerStore, "file", lambda *given: read.append(given[2]) or real(*given))
    body = {"name": "mine", "file_ids": [file["id"]] * 5000}
    made = await lab.server.json("POST", "/v1/containers", body, 200)
    assert len((await lab.read(f"/v1/containers/{made['id']}/files"))["data"]) == 1
    assert len(read) <= 3
    several = [f"file-{number:032x}" for number in range(MAX_NAMED + 1)]
    tool = {"type": "code_interpreter", "container": {"type": "auto", "file_ids": several}}
    read.clear()
    assert "at most" in (await lab.create("python: 1", 400, tools=[tool]))["error"]["message"]
    assert (await lab.server.json("POST", "/v1/containers", {**body, "file_ids": several}, 400))["error"]["param"]
    assert read == []


async def test_wrong_requests_are_refused(lab: Any) -> None:
    for body in (
        {},
        {"name": "x", "expires_after": {"minutes": 0}},
        {"name": "x", "other": 1},
        {"name": "x", "file_ids": 1},
    ):
        assert (await lab.server.json("POST", "/v1/containers", body, 400))["error"]["param"]
    await lab.server.json("POST", "/v1/files", {"file": "x"}, 400)
    await lab.server.json("POST", "/v1/files", status=400, **form(b"x", ".."))
    for query in ("limit=0", "order=up", "after=nothing"):
        await lab.read(f"/v1/files?{query}", 400)
    await lab.read("/v1/containers/cntr_0000000000000000", 404)
    await lab.read("/v1/models/nothing", 404)


LONG = "1" * 5000


@pytest.mark.parametrize(
    "path",
    [
        "/v1/files?limit=" + LONG,
        "/v1/containers?limit=" + "0" * 5000 + "1",
        "/v1/files?limit=-1",
        "/v1/files?limit=%C2%B2",
        "/v1/files?limit=0",
        "/v1/responses/resp_" + "0" * 32 + "?stream=true&starting_after=" + LONG,
        "/v1/responses/resp_" + "0" * 32 + "?stream=true&starting_after=%D9%A3",
        "/v1/responses/resp_" + "0" * 32 + "?stream=true&starting_after=-1",
    ],
)
async def test_a_number_that_is_none_is_refused(lab: Any, path: str) -> None:
    await lab.read(path, 400)


@pytest.mark.parametrize("options", ["x", 5, [1]])
async def test_stream_options_must_be_an_object(lab: Any, options: Any) -> None:
    body = {"model": "qwen", "messages": [{"role": "user", "content": "x"}], "stream_options": options}
    found = await lab.server.json("POST", "/v1/chat/completions", body, 400)
    assert found["error"]["param"] == "stream_options"


async def test_files_are_read_when_the_container_is_opened(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    file = await lab.server.json("POST", "/v1/files", status=200, **form(b"7"))
    tool = {"type": "code_interpreter", "container": {"type": "auto", "file_ids": [file["id"]]}}
    read = []
    content = AnswerStore.content
    monkeypatch.setattr(AnswerStore, "content", lambda *args: read.append(args) or content(*args))  # type: ignore[func-returns-value]
    await lab.create("no code", tools=[tool])
    assert read == []
    await lab.create("python: 1", tools=[tool])
    assert len(read) == 1


async def test_a_containers_file_is_sent_whole(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "MAX_COPIED", 0)
    made = await lab.server.json("POST", "/v1/containers", {"name": "c"}, 200)
    path = f"/v1/containers/{made['id']}/files"
    added = await lab.server.json("POST", path, status=200, **form(b"1234567", "b.txt"))
    named = f"file_{made['id'].removeprefix('cntr_')}_{added['id']}"
    assert (await lab.server.fetch("GET", f"/v1/files/{named}/content")).body == b"1234567"
