"""The server signs nothing that it did not write: journals and notebooks of real servers over fake kernels."""

import asyncio
import json
import re
import subprocess
import threading

import pytest
from tornado.httpclient import AsyncHTTPClient

from kernelsvc import AsyncClient
from kernelsvc.errors import AtCapacity, BadRequest, TooLarge
from kernelsvc.kernels.fake import FakeLauncher
from kernelsvc.model import events as ev
from kernelsvc.model import hash_chain
from kernelsvc.model.hash_chain import Head
from kernelsvc.service import projections
from kernelsvc.settings import Settings, load
from kernelsvc.store import notebook_file
from kernelsvc.store.convert import ConverterQueue
from kernelsvc.store.keys import SigningKey
from kernelsvc.store.verify import verify_journal, verify_notebook
from kernelsvc.testing import InProcessServer


class Record:
    """One session's record over the ends and starts of servers."""

    def __init__(self, data_dir):
        self.data_dir = data_dir
        self.kernels = FakeLauncher(python=True)
        self.key = ""
        self.id = ""

    def server(self, **more):
        settings = Settings(port=0, journal_sync="off", shutdown_seconds=1.0, **more)
        return InProcessServer(settings, kernels=self.kernels, data_dir=self.data_dir)

    async def begin(self, *, close):
        async with Serving(self) as client:
            self.key = (await client.info())["public_key"]
            session = await client.create_session(keep=True)
            self.id = session.id
            await session.run("print('pay mallory')")
            await session.run("print('two')")
            if close:
                await session.close()

    @property
    def journal(self):
        return self.data_dir / "sessions" / self.id / "journal.jsonl"

    def lines(self):
        return self.journal.read_bytes().splitlines()

    def types(self):
        return [json.loads(line)["type"] for line in self.lines()]

    def rewrite(self, change, *, drop=()):
        events = [event for event in map(ev.decode, self.lines()) if not isinstance(event, drop)]
        change(events)
        lines, _ = hash_chain.stamp(events, self.id, Head(), events[-1].at)
        self.journal.write_bytes(b"".join(line + b"\n" for line in lines))


class Serving:
    """A server that leaves its sessions open at its end, and a client of it."""

    def __init__(self, record, **more):
        self.server = record.server(**more)

    async def __aenter__(self):
        await self.server.start()
        self.client = AsyncClient(self.server.url, self.server.token)
        return await self.client.__aenter__()

    async def __aexit__(self, *exc):
        await self.client.__aexit__(*exc)
        await self.server.server.stop()
        await self.server.service.stop(end_sessions=False)


@pytest.fixture
def record(tmp_path):
    return Record(tmp_path / "data")


def forge(events):
    for event in events:
        if isinstance(event, ev.CellQueued):
            event.code = event.code.replace("mallory", "charity")


async def test_a_session_over_a_restart_is_signed(record):
    await record.begin(close=False)
    async with Serving(record) as client:
        session = await client.session(record.id)
        await session.run("print(3)")
        assert verify_notebook(await session.notebook(), public_key=record.key).ok
        await session.close()
    assert "not_as_written" not in record.types()
    assert verify_journal(record.journal, public_key=record.key).ok


@pytest.mark.parametrize("closed", [False, True])
async def test_a_rewritten_journal_is_never_signed(record, caplog, closed):
    """The attack needs no key: it leaves the signature off and waits for the next start."""
    await record.begin(close=closed)
    record.rewrite(forge, drop=(ev.JournalSigned,))
    for _ in range(2):
        async with Serving(record) as client:
            session = await client.session(record.id)
            assert next(cell.code for cell in await session.cells()) == "print('pay charity')"
            assert verify_notebook(await session.notebook(), public_key=record.key).result == "not_proven"
            if not closed:
                await session.run("print(3)")
    async with Serving(record) as client:
        if not closed:
            await (await client.session(record.id)).close()
    assert "NOT AS WRITTEN" in caplog.text
    assert "not_as_written" in record.types()
    assert "journal_signed" not in record.types()
    assert not verify_journal(record.journal, public_key=record.key).ok


async def test_a_closed_journal_that_was_edited_gives_no_signed_notebook(record, caplog):
    await record.begin(close=True)
    record.journal.write_bytes(record.journal.read_bytes().replace(b"mallory", b"charity"))
    async with Serving(record) as client:
        session = await client.session(record.id)
        notebook = json.loads(await session.notebook())
    assert "charity" in json.dumps(notebook["cells"])
    assert "was changed" in notebook["metadata"]["kernelsvc"]["not_as_written"]
    assert verify_notebook(notebook, public_key=record.key).result == "not_proven"
    assert "NOT AS WRITTEN" in caplog.text


async def test_an_export_of_a_closed_session_leaves_its_signed_file_alone(record):
    await record.begin(close=True)
    file = record.journal.with_name("notebook.ipynb")
    written = file.read_bytes()
    assert verify_notebook(written, public_key=record.key).ok
    async with Serving(record) as client:
        exported = await (await client.session(record.id)).notebook()
    assert verify_notebook(exported, public_key=record.key).ok
    assert file.read_bytes() == written


@pytest.fixture
def small_exports(monkeypatch):
    for module in (notebook_file, projections):
        monkeypatch.setattr(module, "EXPORT_BYTES", 100)


async def test_a_closed_notebook_that_would_fill_memory_is_sent_from_its_file(record, small_exports):
    await record.begin(close=True)
    file = record.journal.with_name("notebook.ipynb")
    written = file.read_bytes()
    async with Serving(record) as client:
        assert await (await client.session(record.id)).notebook() == written
    assert verify_notebook(written, public_key=record.key).ok


async def test_exports_of_branches_wait_for_the_cells_of_their_parents(record, monkeypatch):
    goes_on, write = threading.Event(), projections.write_inherited
    monkeypatch.setattr(projections, "write_inherited", lambda *a, **more: goes_on.wait(10) and write(*a, **more))
    async with Serving(record) as client:
        parent = await client.create_session()
        await parent.run("print('of the parent')")
        (branch,) = await parent.branch()
        await branch.run("print('of the branch')")
        (second,) = await branch.branch()
        closing = asyncio.ensure_future(branch.close())
        exporting = asyncio.ensure_future(second.notebook())
        await asyncio.wait([closing])
        goes_on.set()
        notebook = await exporting
        assert b"of the parent" in notebook
        assert b"of the branch" in notebook
        assert b"of the parent" in await branch.notebook()


@pytest.mark.parametrize("closed", [False, True])
async def test_a_branch_gets_its_parents_cells_after_a_crash(record, monkeypatch, closed):
    def killed(*args, **more):
        raise OSError("the server was killed")

    async with Serving(record) as client:
        parent = await client.create_session(keep=True)
        await parent.run("print('of the parent')")
        with monkeypatch.context() as patched:
            patched.setattr(projections, "write_inherited", killed)
            (branch,) = await parent.branch()
            assert b"of the parent" not in await branch.notebook()
            if closed:
                await branch.close()
    async with Serving(record) as client:
        again = await client.session(branch.id)
        assert b"of the parent" in await again.notebook()


async def test_conversions_wait_in_one_queue(record, monkeypatch):
    await record.begin(close=True)
    queue = ConverterQueue(running=1)
    monkeypatch.setattr(projections, "ConverterQueue", lambda: queue)
    async with Serving(record) as client, queue.turn("another"):
        session = await client.session(record.id)
        waiting = asyncio.ensure_future(queue.turn("local").__aenter__())
        await asyncio.sleep(0)
        with pytest.raises(AtCapacity):
            await session.notebook("html")
        waiting.cancel()


async def test_an_export_waits_for_the_last_write(record, small_exports, monkeypatch):
    asked, replace, find = threading.Event(), notebook_file.replace, projections.Projections.notebook_file

    def late(path, write, *, durable=False):
        assert not durable or asked.wait(30)
        replace(path, write, durable=durable)

    async def noted(self, directory):
        asked.set()
        return await find(self, directory)

    monkeypatch.setattr(notebook_file, "replace", late)
    monkeypatch.setattr(projections.Projections, "notebook_file", noted)
    await record.begin(close=False)
    async with Serving(record) as client:
        session = await client.session(record.id)
        await session.close()
        assert await session.notebook() == record.journal.with_name("notebook.ipynb").read_bytes()


@pytest.mark.parametrize("why", ["open", "older", "not signed", "of another session", "no notebook", "missing"])
async def test_only_the_last_signed_file_is_sent(record, small_exports, why):
    await record.begin(close=why != "open")
    changes = {"older": {"seq": 3}, "not signed": {"signature": ""}, "of another session": {"session": "s_1"}}
    serving = Serving(record)
    async with serving as client:
        await serving.server.service._projections.settle()  # else the file is written again after the change
        file = record.journal.with_name("notebook.ipynb")
        if why in changes:
            cells, mark, end = file.read_text().rpartition('\n],\n"metadata":')
            document = json.loads('{"metadata":' + end)
            document["metadata"]["kernelsvc"]["audit"].update(changes[why])
            file.write_text(cells + mark + json.dumps(document).removeprefix('{"metadata": ') + "\n")
        elif why == "no notebook":
            file.write_text("{}\n" * 1000)
        elif why == "missing":
            file.unlink()
        session = await client.session(record.id)
        with pytest.raises(TooLarge, match=r"as ipynb when the session is closed, or the log now"):
            await session.notebook()
        with pytest.raises(TooLarge):
            await session.notebook("py")


async def test_an_end_without_a_signature_is_signed_if_it_was_watched(record):
    """The server died between the session's end and the signature, and its environment is still on disk."""
    await record.begin(close=True)
    about = record.journal.with_name("session.json")
    about.write_text(json.dumps({**json.loads(about.read_text()), "env": {"K": "SECRET-77"}}))
    lines = record.lines()
    assert record.types()[-1] == "journal_signed"
    record.journal.write_bytes(b"".join(line + b"\n" for line in lines[:-1]))
    key = SigningKey.load_or_create(record.data_dir / "keys")
    from kernelsvc.store.heads import HeadFile

    file = HeadFile(record.data_dir / "heads", key.secret("heads"))
    file.slot(record.id).advance(
        Head(len(lines) - 2, hash_chain.digest(lines[-3])), Head(len(lines) - 1, hash_chain.digest(lines[-2])), Head()
    )
    file.close()
    async with Serving(record):
        pass
    assert verify_journal(record.journal, public_key=record.key).ok
    assert "SECRET-77" not in about.read_text()


async def test_a_key_outside_of_the_data_directory(record, tmp_path, monkeypatch):
    (tmp_path / "credentials").mkdir()
    path = tmp_path / "credentials" / "signing-key"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", path], check=True)
    path.chmod(0o440)  # As systemd shows a credential with an ACL.
    with pytest.raises(BadRequest, match="Others can read"):
        SigningKey.load(path)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(path.parent))
    settings = load({}, {"CREDENTIALS_DIRECTORY": str(path.parent)})
    assert settings.signing_key == path
    async with Serving(record, signing_key=settings.signing_key) as client:
        assert (await client.info())["public_key"] == SigningKey.load(path).public
    assert not (record.data_dir / "keys").exists()
    with pytest.raises(BadRequest, match="can't read"):
        SigningKey.load(tmp_path / "none")


async def test_signed_heads_go_to_syslog(record, monkeypatch):
    sent = []
    monkeypatch.setattr("kernelsvc.service.projections.syslog.syslog", lambda _level, text: sent.append(text))
    async with Serving(record, head_log="syslog") as client:
        session = await client.create_session(keep=True)
        await session.close()
    [text] = sent
    assert re.search(rf"session={session.id} head=[0-9a-f]{{64}} key=\S+ signature=\S+", text)


async def test_an_ended_sessions_environment_is_nowhere_on_disk(record, tmp_path):
    """Also in the archive and its record, and a key over a restart still names one request."""
    async with Serving(record) as client:
        body = {"env": {"K": "SECRET-77"}, "idempotency_key": "k"}
        session = await client.create_session(env={"K": "SECRET-77"}, keep=True)
        kept = await http(record, client, body)
    async with Serving(record) as client:
        assert await http(record, client, body) == kept
        assert await http(record, client, {**body, "env": {"K": "SECRET-78"}}) == "conflict"
        assert "SECRET-77" in (record.data_dir / "sessions" / session.id / "session.json").read_text()
        for id in (session.id, kept):
            await (await client.session(id)).close()
    for path in (record.data_dir / "sessions").glob("*/session.json"):
        assert "SECRET-77" not in path.read_text()
        assert '"request_digest": ""' not in path.read_text()


async def http(record, client, body):
    """Create a session with parameters that the client does not offer. Return its id, or the error's code."""
    from kernelsvc.errors import KernelsvcError

    try:
        found = await client._rpc.call("session.create", {"attach": False, **body})
    except KernelsvcError as error:
        return error.code
    return found["id"]


def unknown_cell(events):
    for event in events:
        if isinstance(event, ev.CellStarted | ev.CellFinished | ev.Stream):
            event.cell = "nothing"


def closed_twice(events):
    events.insert(2, ev.SessionClosed())


def begins_in_the_middle(events):
    del events[0]


def another_type(events):
    events[:] = [ev.Woken(), ev.CellFinished(cell="x"), ev.RolledBack(), *events]


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("change", [unknown_cell, closed_twice, begins_in_the_middle, another_type])
async def test_a_senseless_log_is_a_clear_error_or_read(record, change, closed):
    await record.begin(close=closed)
    record.rewrite(change)
    serving = Serving(record)
    async with serving:
        address = serving.server.url

        async def fetch(path):
            request = f"{address}/v1/sessions/{record.id}{path}"
            answer = await AsyncHTTPClient().fetch(
                request, headers={"Authorization": "Bearer test-token"}, raise_error=False
            )
            return answer.code, answer.body

        for path in ("", "/cells", "/notebook", "/events?follow=false"):
            status, data = await fetch(path)
            assert status == 200 or (status, json.loads(data)["code"]) == (409, "conflict"), (path, data)
        status, data = await fetch("/journal")
        assert (status, data) == (200, record.journal.read_bytes())
