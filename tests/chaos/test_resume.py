"""A session whose kernel is gone: read, exported, verified, and run again from its log or its notebook."""

import asyncio
import json
import os
import subprocess
import sys

import pytest
from waiting import wait_until

from chaos.arena import check, counting

pytestmark = pytest.mark.timeout(120)


async def kernelsvc(arena, *args):
    """The command line, with this server."""
    command = [sys.executable, "-m", "kernelsvc", *args]
    env = {**os.environ, **arena.served.client_env}
    return await asyncio.to_thread(subprocess.run, command, env=env, capture_output=True, text=True, timeout=60)


async def test_the_last_notebook_of_a_session_at_whose_end_the_server_died(arena):
    async with arena.client() as client:
        session = await client.create_session()
        await session.run("print(6 * 7)")
        await session.close()
        arena.kill()
        notebook = arena.session_path(session.id) / "notebook.ipynb"
        notebook.write_text("{")
        await arena.start()
        await wait_until(lambda: notebook.stat().st_size > 1, what="the notebook")
        key = (await client.info())["public_key"]
        done = await kernelsvc(arena, "verify", "--key", key, str(notebook))
        assert done.returncode == 0, done.stdout + done.stderr


async def test_from_its_journal_and_its_notebook(arena, tmp_path):
    async with arena.client() as client:
        session = await client.create_session()
        await session.run(counting("one", 5), cell="one")
        await session.run("import random; print(random.random())")
        await session.run("print(6 * 7)")
        arena.power_off()
        journal = arena.session_path(session.id) / "journal.jsonl"
        before = tmp_path / "journal.jsonl"
        before.write_bytes(journal.read_bytes())
        await arena.start()
        await session.close()
        notebook = tmp_path / "session.ipynb"
        notebook.write_bytes(await session.notebook())
        for file in (notebook, journal):
            done = await kernelsvc(arena, "verify", "--key", (await client.info())["public_key"], str(file))
            assert done.returncode == 0, done.stdout + done.stderr
        for file in (notebook, journal, before):
            done = await kernelsvc(arena, "replay", "--json", str(file))
            assert done.returncode == 1, done.stdout + done.stderr
            verdicts = [json.loads(line) for line in done.stdout.splitlines()]
            assert [v["outcome"] for v in verdicts] == ["same", "different", "same"]
            assert "stdout" in verdicts[1]["why"]
        assert (await kernelsvc(arena, "show", session.id)).stdout.count("ok in") == 3
        check(arena.session_path(session.id), {"one": 5})
