"""Builds of E2B's templates: the log, and the script that copies uploaded files."""

from __future__ import annotations

import asyncio
import subprocess
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from http_server import ALICE, TOKENS, HttpServer

from kernelsvc.errors import NotFound, TooLarge
from kernelsvc.model.objects import Principal
from kernelsvc.server.e2b import template_builds
from kernelsvc.settings import Settings


def test_a_log_is_bounded() -> None:
    build = template_builds.Build("ann", "mine")
    build.log("x" * 5000)
    for _ in range(3):
        build.log("line\n" * 1000)
    assert len(build.lines) == template_builds.MAX_LINES
    assert max(len(each.message) for each in build.lines) < 5000
    build.step = "3"
    build.fail("no such file")
    assert (build.status, build.reason["step"], build.reason["message"]) == ("error", "3", "no such file")


async def test_a_build_is_known_after_a_restart(tmp_path: Path) -> None:
    server = HttpServer(Settings(port=0, data_dir=tmp_path / "data", tokens=TOKENS))
    await server.start()
    try:
        context = server.app.settings["context"]
        first = template_builds.TemplateBuilds(context)
        waiting, running, ended = [await first.request(ALICE, f"shop-{number}") for number in range(3)]
        running.status, ended.status = "building", "ready"
        ended.log("shop-2 is ready")
        for each in (running, ended):
            await first._keep(ALICE, each)
        second = template_builds.TemplateBuilds(context)
        assert (await second.find(ALICE, "shop-0", waiting.id)).status == "waiting"
        lost = await second.find(ALICE, "shop-1", running.id)
        assert (lost.status, "restarted" in lost.reason["message"]) == ("error", True)
        assert (await second.find(ALICE, "shop-2", ended.id)).lines == ended.lines
        for name, build in (("other", ended.id), ("shop-2", "0" * 36), ("shop-2", "../shop-2/template.json")):
            with pytest.raises(NotFound):
                await second.find(ALICE, name, build)
        with pytest.raises(NotFound):
            await second.find(Principal(name="bob"), "shop-2", ended.id)
        for number in range(template_builds.MAX_BUILDS + 5):
            await second.request(ALICE, f"more-{number}")
        kept, _ = await server.service.workspaces.files.list(
            ALICE, template_builds.address(ALICE), template_builds.BUILDS
        )
        assert len(kept) <= template_builds.MAX_BUILDS + 1
    finally:
        await server.stop()


async def test_builds_of_files_that_a_caller_wrote_take_no_memory(tmp_path: Path) -> None:
    server = HttpServer(Settings(port=0, data_dir=tmp_path / "data", tokens=TOKENS))
    await server.start()
    try:
        context = server.app.settings["context"]
        builds = template_builds.TemplateBuilds(context)
        forged = await builds.request(ALICE, "shop")
        for number in range(30):
            forged.id = f"{number:036d}"
            await builds._keep(ALICE, forged)
            assert (await builds.find(ALICE, "shop", forged.id)).status == "waiting"
        assert len(builds._builds) == 1
        forged.owner = "bob"
        await builds._keep(ALICE, forged)
        with pytest.raises(NotFound):
            await builds.find(ALICE, "shop", forged.id)
        assert len(builds._builds) == 1
        forged.owner, forged.id = ALICE.name, "1" * 36  # another id than the file's name says
        data = msgspec.json.encode(forged)
        place = template_builds.build_path("2" * 36)
        await server.service.workspaces.files.put(ALICE, template_builds.address(ALICE), place, data)
        with pytest.raises(NotFound):
            await builds.find(ALICE, "shop", "2" * 36)
    finally:
        await server.stop()


async def test_records_that_a_caller_wrote_are_read_in_turn_and_within_a_limit(tmp_path: Path) -> None:
    server = HttpServer(Settings(port=0, data_dir=tmp_path / "data", tokens=TOKENS))
    await server.start()
    try:
        context = server.app.settings["context"]
        builds = template_builds.TemplateBuilds(context)
        await builds.request(ALICE, "shop")
        put, where = server.service.workspaces.files.put, template_builds.address(ALICE)
        await put(ALICE, where, template_builds.record_path("shop"), b'{"start": "serve"}')
        async with context.turn_of(ALICE, "templates"):
            reading = asyncio.ensure_future(builds.read(ALICE, "shop"))
            done, _ = await asyncio.wait([reading], timeout=0.2)
            assert not done
        found = await reading
        assert found is not None
        assert found.start == "serve"
        large = b'{"start": "%b"}' % (b"x" * template_builds.MAX_TEMPLATE)
        await put(ALICE, where, template_builds.record_path("shop"), large)
        assert await builds.read(ALICE, "shop") is None
    finally:
        await server.stop()


async def test_a_template_with_a_longer_record_is_not_made() -> None:
    made = template_builds.BuiltTemplate(start="x" * template_builds.MAX_TEMPLATE)
    service: Any = SimpleNamespace(workspaces=SimpleNamespace(files=None))
    with pytest.raises(TooLarge):
        await template_builds.TemplateSandbox(service, ALICE, "s_1").save("shop", made)


def copy(tmp_path: Path, source: str, target: str, mode: str = "") -> tuple[int, dict[str, str]]:
    """Copy from an archive of ``dir/a``, ``dir/sub/b`` and ``one file`` as a step does. Return the files."""
    context, home = tmp_path / "context", tmp_path / "home"
    (context / "dir" / "sub").mkdir(parents=True)
    for name in ("dir/a", "dir/sub/b", "one file"):
        (context / name).write_text(name)
    (context / "dir" / "link").symlink_to("a")
    (home / "there").mkdir(parents=True)
    with tarfile.open(home / ".archive", "w:gz") as archive:
        archive.add(context, ".")
    argv = ["/bin/sh", "-c", template_builds._COPY, "template", ".archive", source, target, mode]
    done = subprocess.run(argv, cwd=home, capture_output=True, text=True, timeout=60)
    assert not (home / ".archive").exists()
    files = [each for each in sorted(home.rglob("*")) if each.is_symlink() or each.is_file()]
    return done.returncode, {str(each.relative_to(home)): each.read_text() for each in files}


@pytest.mark.parametrize(
    ("source", "target", "made"),
    [
        ("one file", "x", ["x"]),
        ("one file", "x/", ["x/one file"]),
        ("one file", "there", ["there/one file"]),
        ("one file", "new/deep/x", ["new/deep/x"]),
        ("one file", ".", ["one file"]),
        ("dir", "x", ["x/a", "x/link", "x/sub/b"]),
        ("dir", ".", ["a", "link", "sub/b"]),
        ("dir/*", "x", ["x/a", "x/link", "x/sub/b"]),
        ("dir/a*", "x", ["x"]),
    ],
)
def test_files_are_copied_as_in_a_dockerfile(tmp_path: Path, source: str, target: str, made: list[str]) -> None:
    status, files = copy(tmp_path, source, target)
    assert (status, sorted(files)) == (0, made)


def test_a_mode_is_that_of_the_files_and_a_missing_one_is_an_error(tmp_path: Path) -> None:
    assert copy(tmp_path / "1", "dir", "x", "0600")[0] == 0
    assert (tmp_path / "1" / "home" / "x" / "sub" / "b").stat().st_mode & 0o777 == 0o600
    assert copy(tmp_path / "2", "no", "x")[0] == 1
    assert copy(tmp_path / "3", "$(touch pwned); a", "x") == (1, {})
