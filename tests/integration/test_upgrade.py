"""What an earlier release wrote is read, verified and adopted, and sessions that it runs survive an upgrade."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import kernelsvc
from served import Served, serving
from waiting import wait_for

from kernelsvc import AsyncClient

ROOT = Path(__file__).parents[2]
#: Made by ``make_written_before.py``, which says what is in it.
ARCHIVE = ROOT / "tests" / "fixtures" / "written_before.tar.xz"
#: The commits that sessions are upgraded from, and the signal that ends the old server: the oldest one that is
#: promised, and the last one before tokens, backups and the log of operators. Raise them with each minor version.
BEFORE = {
    "3f0f94d3131105262df9dd3e2c06ecef8fb2c680": signal.SIGHUP,
    "c2ea39543ca74a20020b97c3c91412fea2b1820b": signal.SIGKILL,
}
#: What a replay says of each cell: a picture that was updated, a text that was cut and an answered question differ.
REPLAYED = {
    "plain": ["same", "same", "different", "same", "same"],
    "cut": ["different"],
    "asks": ["different"],
    "crashed": ["same", "skipped", "same"],
    "rolled": ["same", "skipped", "same"],
}
#: What a hibernated session's variables give, one for each way in which they were saved.
HIBERNATED = {
    "kept['a']": "[1, 2, 3, 4]",
    "double(3, by=5)": "15",
    "event.is_set(), waiting.get()": "(True, 'one')",
    "database.execute('select n from t').fetchall()": "[(3,)]",
    "base[2] = 7; int(view[0])": "7",
    "cached(1), cached.cache_parameters()['maxsize']": "(2, 4)",
    "made.value": "5",
    "file.tell(), file.seek(0), file.read()": "(3, 0, 'abc')",
}
#: Prints, and waits for a file of the next server.
LONG = """import os, time
for n in range(40):
    print(n, flush=True)
    time.sleep(0.05)
while not os.path.exists("go"):
    time.sleep(0.01)
"""
CLOSED = ["plain", "cut", "asks", "crashed", "rolled", "branch"]


class WrittenBefore:
    """A server of today on a copy of what the earlier release wrote.

    Attributes:
        served: the server.
        told: what the release's own server reported of each session, by name.
    """

    def __init__(self, served: Served, told: dict[str, dict[str, Any]]) -> None:
        self.served, self.told = served, told

    def path(self, name: str, file: str) -> Path:
        """A file of a session."""
        return self.served.data_dir / "sessions" / self.told[name]["id"] / file

    def command(self, *args: str, code: int = 0) -> str:
        """Run the command line of today with this server, and return what it printed."""
        return kernelsvc(*args, env=self.served.client_env, code=code)[0]


@pytest.fixture(scope="module")
def before() -> Iterator[WrittenBefore]:
    with tempfile.TemporaryDirectory(prefix="k", dir="/tmp", ignore_cleanup_errors=True) as directory:
        root = Path(directory)
        with tarfile.open(ARCHIVE) as archive:
            archive.extractall(root, numeric_owner=True, filter="tar")
        told = json.loads((root / "data" / "wanted.json").read_text())["sessions"]
        for file in root.glob("data/sessions/*/session.json"):  # it names the session's directory by its whole path
            about = re.sub(r"/tmp/k\w+/data", f"{root}/data", file.read_text())
            # The archive gets older, and a session of a day would have ended.
            about, changed = re.subn(r'("lifetime_seconds": *)86400\.0', r"\g<1>3.0e9", about)
            assert changed == 1
            file.write_text(about)
        # Today's server has to write this one again from the log.
        (root / "data" / "sessions" / told["crashed"]["id"] / "notebook.ipynb").write_text("{")
        with serving(root) as served:
            yield WrittenBefore(served, told)


async def test_each_session_is_listed_with_its_cells(before):
    async with AsyncClient(before.served.url, before.served.token) as client:
        listed = {session.id for session in await client.sessions()}
        assert {told["id"] for told in before.told.values()} <= listed
        for name in [*CLOSED, "hibernated"]:
            told = before.told[name]
            cells = await (await client.session(told["id"])).cells()
            assert [[cell.id, cell.reason, cell.code] for cell in cells] == told["cells"], name


@pytest.mark.parametrize("name", CLOSED)
async def test_a_closed_session_has_the_notebook_that_it_had(before, name):
    async with AsyncClient(before.served.url, before.served.token) as client:
        session = await client.session(before.told[name]["id"])
        assert (await session.info()).state == "closed"
        exported = (before.served.data_dir / "exported" / f"{name}.ipynb").read_bytes()
        assert hashlib.sha256(exported).hexdigest() == before.told[name]["notebook_sha256"]
        then, now = json.loads(exported), json.loads(await session.notebook())
        # The digests of a new export have a newer form.
        for each in (then, now):
            assert each["metadata"]["kernelsvc"].pop("audit")["signature"]
        # The mark of a cut names no route any more.
        route = re.compile(r"; all of it: GET /v1/sessions/\w+/cells/[\w-]+/output")
        then = json.loads(route.sub("; the log has all of it", json.dumps(then, ensure_ascii=False)))
        # A limit that did not exist at that time has its default.
        then["metadata"]["kernelsvc"]["limits"].setdefault("files", 100_000)
        # A crash had three notes, and has one now.
        notes = [
            [cell for cell in each["cells"] if "note" in cell["metadata"].get("kernelsvc", {})] for each in (then, now)
        ]
        assert covered(notes[1]) == covered(notes[0])
        for each, found in zip((then, now), notes, strict=True):
            each["cells"] = [cell for cell in each["cells"] if cell not in found]
        assert now == then


def is_note(cell):
    """Return whether a cell is a note of kernelsvc."""
    return "note" in cell["metadata"].get("kernelsvc", {})


def covered(notes):
    """Return the first and the last entry that notes are about."""
    spans = [note["metadata"]["kernelsvc"]["seq"] for note in notes]
    return [min((one["first"] for one in spans), default=0), max((one["last"] for one in spans), default=0)]


@pytest.mark.parametrize("name", CLOSED)
def test_its_log_and_its_export_are_verified(before, name):
    key = before.served.call("GET", "/v1/info")["public_key"]
    for path in (before.path(name, "journal.jsonl"), before.served.data_dir / "exported" / f"{name}.ipynb"):
        assert before.command("verify", "--key", key, str(path)).startswith("verified")


@pytest.mark.parametrize("name", REPLAYED)
def test_its_log_and_its_notebook_run_again(before, name):
    path = before.path(name, "notebook.ipynb")
    wait_for(lambda: path.stat().st_size > 1, what="the notebook")
    for file in (before.path(name, "journal.jsonl"), path):
        said = before.command("replay", "--json", str(file), code=int("different" in REPLAYED[name]))
        assert [json.loads(line)["outcome"] for line in said.splitlines()] == REPLAYED[name], said


async def test_a_hibernated_session_wakes_with_its_variables(before):
    """A pickle names the functions that rebuild a variable by their module, and that module has moved."""
    async with AsyncClient(before.served.url, before.served.token) as client:
        session = await client.session(before.told["hibernated"]["id"])
        for code, value in HIBERNATED.items():
            assert (await session.run(code)).text.strip() == value, code
        assert "Create it again" in (await session.run("next(lost)")).text


async def test_a_session_that_was_open_when_all_was_killed_has_a_new_kernel(before):
    async with AsyncClient(before.served.url, before.served.token) as client:
        session = await client.session(before.told["open"]["id"])
        done, running = await session.cells()
        assert (done.reason, done.text) == ("ok", "5\n")
        assert running.reason == "kernel_died"
        assert running.text.startswith("on\n")
        assert (await session.info()).state == "idle"
        assert (await session.run("'y' in globals()")).text.strip() == "False"


def old_code(commit: str, to: Path) -> None:
    """The package as it was, from this checkout's history."""
    packed = subprocess.run(["git", "-C", str(ROOT), "archive", commit, "kernelsvc"], capture_output=True)
    if packed.returncode:
        pytest.skip(f"the history of this checkout lacks {commit[:7]}: {packed.stderr.decode()[:100]}")
    subprocess.run(["tar", "-x", "-C", str(to)], input=packed.stdout, check=True)


@pytest.mark.parametrize(
    ("commit", "how"), BEFORE.items(), ids=[f"{each[:7]}-{how.name}" for each, how in BEFORE.items()]
)
@pytest.mark.timeout(120)
async def test_sessions_that_run_survive_an_upgrade(commit, how):
    """The kernel host keeps its code, and its kernels keep theirs; today's server adopts them."""
    with tempfile.TemporaryDirectory(prefix="k", dir="/tmp", ignore_cleanup_errors=True) as directory:
        root = Path(directory)
        code = root / "old"
        code.mkdir()
        old_code(commit, code)
        os.chmod(root, 0o711)
        served = Served(root, env={"PYTHONPATH": str(code), "PYTHONSAFEPATH": "1"})
        served.start()
        try:
            async with AsyncClient(served.url, served.token) as client:
                busy, idle, asleep = [await client.create_session(keep=True) for _ in range(3)]
                await busy.run("x = 41")
                await idle.run("import os\npid = os.getpid()")
                guest = list((served.runtime_dir / "guest" / "kernelsvc" / "guest").rglob("*.py"))
                old = [code / path.relative_to(served.runtime_dir / "guest") for path in guest]
                assert guest
                assert [path.read_bytes() for path in guest] == [path.read_bytes() for path in old], "the old code runs"
                await idle.checkpoint("one")
                await idle.run("y = 1")
                await asleep.run("k = 7")
                await asleep.hibernate()
                await busy.run(LONG, cell="long", wait="queued")
                async with busy.events(0) as events:
                    async for event in events:
                        if type(event).__name__ == "Stream":
                            break
            assert served.process is not None
            served.process.send_signal(how)
            served.process.wait(30)
            del served.env["PYTHONPATH"], served.env["PYTHONSAFEPATH"]
            served.start()
            async with AsyncClient(served.url, served.token) as client:
                again = await client.session(busy.id)
                assert (await again.info()).state == "busy"
                await again.upload(b"", "go")
                assert (await again.run("x + 1")).text.strip() == "42"
                cell = await again.cell("long")
                assert (cell.reason, cell.text.split()) == ("ok", [str(n) for n in range(40)])
                again = await client.session(idle.id)
                assert (await again.run("os.getpid() == pid")).text.strip() == "True"
                await again.rollback("one")
                assert (await again.run("'y' in globals()")).text.strip() == "False"
                (branch,) = await again.branch()
                assert (await branch.run("'pid' in globals()")).text.strip() == "True"
                assert (await (await client.session(asleep.id)).run("k")).text.strip() == "7"
                assert (await (await client.create_session()).run("1 + 1")).text.strip() == "2"
        finally:
            served.stop()
