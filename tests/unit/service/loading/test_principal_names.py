import msgspec
import pytest

from kernelsvc.client import AsyncClient
from kernelsvc.model.tokens import record_for
from kernelsvc.settings import Settings
from kernelsvc.testing import TOKEN, InProcessServer

OLD_NAME = "token-0123456789ab"


def settings(name, **more):
    return Settings(port=0, journal_sync="off", shutdown_seconds=1.0, tokens=[record_for(TOKEN, name)], **more)


async def sessions_after_a_change_of(name, present, tmp_path):
    """Create a session of the principal ``name``, then list the sessions of ``present`` at a new server."""
    async with (
        InProcessServer(settings(name), data_dir=tmp_path) as server,
        AsyncClient(server.url, server.token) as client,
    ):
        session = await client.create_session()
        await session.run("x = 1")
    async with (
        InProcessServer(settings(present), data_dir=tmp_path) as server,
        AsyncClient(server.url, server.token) as client,
    ):
        return session.id, [each.id for each in await client.sessions()]


async def test_sessions_of_a_token_without_a_name_belong_to_local(tmp_path):
    created, listed = await sessions_after_a_change_of(OLD_NAME, "local", tmp_path)
    assert listed == [created]
    about = msgspec.json.decode((tmp_path / "sessions" / created / "session.json").read_bytes())
    assert about["principal"] == "local"
    # The record of the past is not rewritten.
    assert OLD_NAME.encode() in (tmp_path / "sessions" / created / "journal.jsonl").read_bytes()


@pytest.mark.parametrize(("name", "present"), [("ana", "local"), (OLD_NAME, "ana"), ("token-of-ana", "local")])
async def test_no_other_principal_gets_them(name, present, tmp_path):
    assert (await sessions_after_a_change_of(name, present, tmp_path))[1] == []


async def test_a_name_that_the_settings_have_is_kept(tmp_path):
    created, listed = await sessions_after_a_change_of(OLD_NAME, OLD_NAME, tmp_path)
    assert listed == [created]
