"""Closed sessions reach the archive, whatever fails meanwhile: real servers over fake kernels."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from http_server import ALICE, HttpServer
from waiting import wait_until

from kernelsvc.errors import AtCapacity
from kernelsvc.service import projections
from kernelsvc.service.disposal import archiving
from kernelsvc.settings import Settings
from kernelsvc.store import notebook_file
from kernelsvc.store.convert import ConverterQueue
from kernelsvc.store.record_archive import ArchivedRecord, RecordArchive
from kernelsvc.store.verify import verify


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archiving, "SHORTEST_PAUSE", 0.02)
    monkeypatch.setattr(archiving, "LONGEST_PAUSE", 0.1)


class Servers:
    """Servers that use one data directory after another."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._running: HttpServer | None = None

    async def start(self, **changes: Any) -> HttpServer:
        await self.stop()
        settings = Settings(port=0, shutdown_seconds=2.0, checkpoints=0, data_dir=self.root / "data")
        changes = {"archive_url": f"file://{self.root}/archive", **changes}
        self._running = HttpServer(msgspec.structs.replace(settings, **changes))
        return await self._running.start()

    async def stop(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            await running.stop()


@pytest_asyncio.fixture
async def servers(tmp_path: Path) -> AsyncIterator[Servers]:
    (tmp_path / "archive").mkdir()
    made = Servers(tmp_path)
    yield made
    await made.stop()


async def closed(server: HttpServer) -> str:
    """Return a session of Alice that has run a cell and is closed."""
    session = str((await server.json("POST", "/v1/sessions", {}, status=201))["id"])
    await server.json("POST", f"/v1/sessions/{session}/cells", {"code": "print(6 * 7)"}, status=200)
    await server.json("DELETE", f"/v1/sessions/{session}", status=200)
    return session


def archived(tmp_path: Path, session: str) -> Path | None:
    """Return the directory of a session's record, when the server has noted that it is there."""
    noted = (tmp_path / "data" / "sessions" / session / "archived").exists()
    return tmp_path / "archive" / session if noted else None


async def test_a_closed_session_is_copied_and_verifies(servers: Servers, tmp_path: Path) -> None:
    server = await servers.start()
    session = await closed(server)
    folder = await wait_until(lambda: archived(tmp_path, session))
    assert folder is not None
    record = json.loads((folder / "record.json").read_bytes())
    assert (record["session"], record["principal"]) == (session, "alice")
    assert record["key"] == server.service.info()["public_key"]
    for name in ("journal.jsonl", "notebook.ipynb"):
        assert verify(folder / name, public_key=record["key"], journal=folder / "journal.jsonl").ok, name
    await wait_until(lambda: b"kernelsvc_unarchived_sessions 0.0" in server.service.metrics.exposition())


async def test_an_open_session_is_not_copied(servers: Servers, tmp_path: Path) -> None:
    server = await servers.start()
    session = (await server.json("POST", "/v1/sessions", {}, status=201))["id"]
    other = await closed(server)
    await wait_until(lambda: archived(tmp_path, other))
    assert [each.name for each in (tmp_path / "archive").iterdir()] == [other]
    assert server.state(session) == "idle"


async def test_a_failing_archive_delays_no_close_and_gets_the_record_later(
    servers: Servers, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "archive").rmdir()
    server = await servers.start()
    sessions = [await closed(server) for _ in range(3)]
    await wait_until(lambda: "can't be copied" in caplog.text)
    await wait_until(lambda: b"kernelsvc_unarchived_sessions 3.0" in server.service.metrics.exposition())
    (tmp_path / "archive").mkdir()
    for session in sessions:
        await wait_until(lambda session=session: archived(tmp_path, session))
    assert caplog.text.count("can't be copied") == 1


async def test_a_restart_forgets_nothing(servers: Servers, tmp_path: Path) -> None:
    (tmp_path / "archive").rmdir()
    session = await closed(await servers.start())
    server = await servers.start(archive_url="")  # which does not know of an archive, but closes sessions
    other = await closed(server)
    (tmp_path / "archive").mkdir()
    # The last notebook was not written before a crash.
    (tmp_path / "data" / "sessions" / other / "notebook.ipynb").write_text("{}")
    server = await servers.start()
    for each in (session, other):
        folder = await wait_until(lambda each=each: archived(tmp_path, each))
        assert folder is not None
        assert verify(folder / "notebook.ipynb", public_key=server.service.info()["public_key"]).ok


async def test_a_notebook_that_would_fill_memory_is_copied_from_its_file(
    servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await closed(await servers.start(archive_url=""))
    for module in (notebook_file, projections):
        monkeypatch.setattr(module, "EXPORT_BYTES", 100)
    server = await servers.start()
    folder = await wait_until(lambda: archived(tmp_path, session))
    assert folder is not None
    assert verify(folder / "notebook.ipynb", public_key=server.service.info()["public_key"]).ok


async def test_a_session_that_the_stop_ends_is_copied(servers: Servers, tmp_path: Path) -> None:
    server = await servers.start()
    session = (await server.json("POST", "/v1/sessions", {}, status=201))["id"]
    await servers.stop()
    assert archived(tmp_path, session)


async def test_an_archive_that_hangs_stops_neither_a_close_nor_the_server(
    servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, began = threading.Event(), threading.Event()

    def hang(*_: object) -> None:
        began.set()
        go.wait()
        raise OSError("late")

    monkeypatch.setattr(RecordArchive, "put", hang)
    monkeypatch.setattr(archiving, "STOP_SECONDS", 0.1)
    try:
        server = await servers.start()
        async with asyncio.timeout(10):
            session = await closed(server)
            await wait_until(began.is_set)
            await servers.stop()
        assert archived(tmp_path, session) is None
    finally:
        go.set()


async def test_retention_leaves_a_session_until_it_is_archived(servers: Servers, tmp_path: Path) -> None:
    (tmp_path / "archive").rmdir()
    server = await servers.start(retention_seconds=0.01, retention_action="remove")
    session = await closed(server)
    directory = tmp_path / "data" / "sessions" / session
    for _ in range(3):
        assert await server.service._disposal._retention.retire() == []
    assert (directory / "journal.jsonl").exists()
    (tmp_path / "archive").mkdir()
    await wait_until(lambda: not directory.exists())
    assert (tmp_path / "archive" / session / "record.json").exists()


async def test_a_purge_reaches_the_archive(servers: Servers, tmp_path: Path) -> None:
    server = await servers.start()
    session = await closed(server)
    await wait_until(lambda: archived(tmp_path, session))
    await server.json("POST", f"/v1/sessions/{session}/purge", {}, status=200)
    assert not (tmp_path / "archive" / session).exists()


async def test_a_purge_reaches_the_archive_also_after_retention(servers: Servers, tmp_path: Path) -> None:
    server = await servers.start(retention_seconds=1.0, retention_action="remove")
    session = await closed(server)
    await wait_until(lambda: not (tmp_path / "data" / "sessions" / session).exists())
    path = f"/v1/sessions/{session}/purge"
    assert await server.refused("POST", path, {}, token="bob-token") == (404, "not_found")
    (tmp_path / "archive").rename(tmp_path / "away")
    assert await server.refused("POST", path, {}) == (503, "at_capacity")
    (tmp_path / "away").rename(tmp_path / "archive")
    await server.json("POST", path, {}, status=200)
    assert not (tmp_path / "archive" / session).exists()
    assert await server.refused("POST", path, {}) == (404, "not_found")


async def test_a_purge_that_the_archive_refused_can_be_repeated(servers: Servers, tmp_path: Path) -> None:
    server = await servers.start()
    session = await closed(server)
    await wait_until(lambda: archived(tmp_path, session))
    (tmp_path / "archive").rename(tmp_path / "away")
    path = f"/v1/sessions/{session}/purge"
    assert await server.refused("POST", path, {}) == (503, "at_capacity")
    (tmp_path / "away").rename(tmp_path / "archive")
    await server.json("POST", path, {}, status=200)
    assert not (tmp_path / "archive" / session).exists()


async def test_a_copy_that_ends_after_a_purge_leaves_nothing(
    servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, began, put = threading.Event(), threading.Event(), RecordArchive.put

    def late(self: RecordArchive, record: ArchivedRecord, journal: Path, _notebook: object) -> None:
        opened = tmp_path / "opened"  # what an upload goes on to read of a file that is deleted
        opened.write_bytes(journal.read_bytes())
        began.set()
        go.wait()
        put(self, record, opened, b"{}")

    monkeypatch.setattr(RecordArchive, "put", late)
    server = await servers.start()
    session = await closed(server)
    await wait_until(began.is_set)
    await server.service.purge(ALICE, session)
    go.set()
    await wait_until(lambda: b"kernelsvc_unarchived_sessions 0.0" in server.service.metrics.exposition())
    assert not (tmp_path / "archive" / session).exists()


async def test_a_session_that_retention_removed_is_read_in_the_archive(
    servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await servers.start(retention_seconds=1.0, retention_action="remove")
    session = await closed(server)
    paths = [f"/v1/sessions/{session}/{part}" for part in ("notebook", "journal")]
    before = [await server.fetch("GET", path) for path in paths]
    await wait_until(lambda: not (tmp_path / "data" / "sessions" / session).exists())
    after = [await server.fetch("GET", path) for path in paths]
    for old, new in zip(before, after, strict=True):
        assert (old.code, new.code, new.body) == (200, 200, old.body)
        for name in ("Content-Type", "Content-Disposition", "Content-Security-Policy"):
            assert new.headers.get(name) == old.headers.get(name)
    assert await server.refused("GET", f"/v1/sessions/{session}") == (404, "not_found")
    page = await server.fetch("GET", f"{paths[0]}?format=html")
    assert (page.code, page.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert page.headers["Content-Security-Policy"].startswith("sandbox;")
    assert b"<title>" in page.body
    assert b"print(6 * 7)" in (await server.fetch("GET", f"{paths[0]}?format=py")).body
    assert await server.refused("GET", f"{paths[0]}?format=html", token="bob-token") == (404, "not_found")
    monkeypatch.setattr(archiving, "EXPORT_BYTES", 100)
    assert await server.refused("GET", f"{paths[0]}?format=html") == (413, "too_large")
    assert (await server.fetch("GET", paths[0])).code == 200
    for path in paths:
        assert await server.refused("GET", path, token="bob-token") == (404, "not_found")
        assert await server.refused("GET", path, token="wrong") == (401, "unauthenticated")
        assert (await server.fetch("GET", path, token="reader-token")).code == 200
        assert await server.refused("GET", path.replace(session, "s_0123456789abcdef")) == (404, "not_found")


async def test_a_read_of_an_archive_that_hangs_is_refused(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    monkeypatch.setattr(RecordArchive, "find", lambda *_: go.wait())
    monkeypatch.setattr(archiving, "READ_SECONDS", 0.1)
    monkeypatch.setattr(archiving, "MAX_READS", 2)
    server = await servers.start()
    path = "/v1/sessions/s_0123456789abcdef/notebook"
    try:
        for _ in range(6):  # of which the last two find no thread
            assert await server.refused("GET", path) == (503, "at_capacity")
    finally:
        go.set()


async def test_a_record_that_becomes_shorter_cuts_the_response(tmp_path: Path) -> None:
    async def read(start: int, end: int) -> bytes:
        return b"0123"[start:end]

    stream = archiving.RecordStream(read, 10)
    assert await stream.next() == b"0123"
    with pytest.raises(BrokenPipeError):
        await stream.next()
    records = archiving.ArchivedRecords(RecordArchive(f"file://{tmp_path}"), str, ConverterQueue())
    with pytest.raises(AtCapacity):
        await records.convert(ALICE, archiving.RecordStream(read, 10), "py")
