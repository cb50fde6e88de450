"""Closed sessions that are old are archived or removed, on purpose and on record; also across a crash."""

import gzip
import json

import pytest
from waiting import wait_until

from chaos.arena import Arena, counting
from chaos.test_resume import kernelsvc
from kernelsvc.errors import NotFound
from kernelsvc.service.disposal.retention import due
from kernelsvc.store.verify import verify

pytestmark = pytest.mark.timeout(120)


def test_due_is_oldest_first_and_only_what_is_over_age():
    assert due([("young", 95.0), ("old", 10.0), ("older", 5.0), ("just", 90.0)], 100.0, 10.0) == [
        "older",
        "old",
        "just",
    ]


async def test_a_parent_stays_as_long_as_its_branches(place):
    """A branch's files lie in the directory of its family's first session."""
    async with Arena(place, "--retention-seconds", "1.5") as arena, arena.client() as client:
        parent = await client.create_session()
        await parent.run("open('note', 'w').write('kept')")
        (branch,) = await parent.branch()
        await parent.close()
        other = await client.create_session()
        await other.close()
        await wait_until(lambda: not arena.session_path(other.id).exists(), deadline=20, what="the other's end")
        assert (await branch.run("open('note').read()")).text.strip() == "'kept'"
        assert arena.session_path(parent.id).exists()
        await branch.close()
        await wait_until(lambda: not arena.session_path(parent.id).exists(), deadline=20, what="the parent's end")


async def by_hand(arena, key, journal, notebook):
    """What a user would do with an archived session: verify it, and run it again from either file."""
    for file in (journal, notebook):
        done = await kernelsvc(arena, "verify", "--key", key, str(file))
        assert done.returncode == 0, done.stdout + done.stderr
        done = await kernelsvc(arena, "replay", str(file))
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("action", ["archive", "remove"])
async def test_a_closed_session_goes_and_that_is_on_record(place, action):
    async with (
        Arena(place, "--retention-seconds", "2", "--retention-action", action) as arena,
        arena.client() as client,
    ):
        stays = await client.create_session()
        session = await client.create_session(name="old")
        await session.run(counting("one", 5), cell="one")
        await session.close()
        await arena.restart()
        path = arena.session_path(session.id)
        await wait_until(lambda: not path.exists(), deadline=20, what="the session's end")

        async def forgotten():
            return session.id not in {one.id for one in await client.sessions()}

        await wait_until(forgotten)
        with pytest.raises(NotFound):
            await client.session(session.id)
        (line,) = (arena.served.data_dir / "retention.jsonl").read_text().splitlines()
        told = json.loads(line)
        assert (told["session"], told["action"]) == (session.id, {"archive": "archived", "remove": "removed"}[action])
        archived = arena.served.data_dir / "archive" / session.id / "journal.jsonl.gz"
        assert archived.exists() == (action == "archive")
        if action == "archive":
            key = (await client.info())["public_key"]
            assert verify(archived, public_key=key).ok
            last = json.loads(gzip.decompress(archived.read_bytes()).splitlines()[-1])
            assert told["seq"] == last["seq"]
            await by_hand(arena, key, archived, archived.with_name("notebook.ipynb.gz"))
        assert (await stays.run("1 + 1")).text.strip() == "2", "open ones are left alone"
        await stays.close()
