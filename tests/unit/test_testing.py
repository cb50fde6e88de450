"""The real server over fake kernels that users run their tests against."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
from waiting import wait_until

from kernelsvc import AsyncClient, errors, testing
from kernelsvc.settings import Settings
from kernelsvc.testing import InProcessServer


def test_the_example_of_its_docstring_runs() -> None:
    _, _, rest = (testing.__doc__ or "").partition("blocking client::\n")
    example, _, _ = rest.partition("\nWithin an event loop")
    assert "session.run" in example
    exec(textwrap.dedent(example), {})


async def test_a_cell_is_python_and_a_branch_has_names_of_its_own() -> None:
    async with InProcessServer() as server, AsyncClient(server.url, server.token) as client:
        session = await client.create_session()
        assert (await session.run("import math\nx = 2\nprint('hi', end='!')\nmath.sqrt(x * 8)")).text == "hi!\n4.0\n"
        failed = await session.run("x = 5\n1 / 0")
        assert (failed.reason, failed.error and failed.error.ename) == ("error", "ZeroDivisionError")
        [branch] = await session.branch()
        await branch.run("x = 7")
        assert [(await each.run("x")).text for each in (session, branch)] == ["5\n", "7\n"]
        assert (await session.run("print((")).error.ename == "SyntaxError"  # type: ignore[union-attr]


async def test_servers_with_default_settings_do_not_meet(tmp_path: Path) -> None:
    async with (
        InProcessServer(Settings(data_dir=tmp_path / "a")) as one,
        InProcessServer(Settings(data_dir=tmp_path / "b")) as other,
    ):
        assert one.url != other.url


async def test_an_interrupt_ends_a_cell_at_its_await() -> None:
    async with InProcessServer() as server, AsyncClient(server.url, server.token) as client:
        session = await client.create_session()
        cell = session.stream("import asyncio\nprint('begun')\nawait asyncio.sleep(60)")
        async for event in cell:
            if getattr(event, "text", "") == "begun\n":
                await session.interrupt()
        assert (await cell.cell()).reason == "interrupted"


async def test_starts_can_be_made_to_fail() -> None:
    async with InProcessServer() as server, AsyncClient(server.url, server.token) as client:
        server.kernels.refusals.append(errors.AtCapacity())
        with pytest.raises(errors.AtCapacity):
            await client.create_session()
        assert await client.sessions() == []


async def test_a_temporary_data_directory_is_removed_and_a_given_one_kept(tmp_path: Path) -> None:
    async with InProcessServer() as server:
        temporary = server.settings.data_path()
        assert temporary.is_dir()
    await wait_until(lambda: not temporary.exists())
    async with InProcessServer(Settings(port=0, data_dir=tmp_path)) as server:
        pass
    assert (tmp_path / "sessions").is_dir()
