"""The directories of a server, and the token that it keeps."""

from __future__ import annotations

import asyncio
import os
import stat
import time

import pytest

from kernelsvc import settings as s
from kernelsvc.errors import BadRequest
from kernelsvc.model.storage.mounts import Mount
from kernelsvc.model.tokens import hash_token
from kernelsvc.service.directories import (
    FORM_FILE,
    TOKEN_FILE,
    check_clock,
    check_form,
    follow_clock,
    missing_mounts,
    prepare_directories,
    with_kept_token,
)


def test_a_token_is_made_once_when_none_is_configured(tmp_path):
    bare = s.load({"data_dir": str(tmp_path)})
    first, token = with_kept_token(bare)
    assert token is not None
    assert first.tokens[0].name == "local"
    assert first.tokens[0].sha256 == hash_token(token)
    assert with_kept_token(first) == (first, None)
    assert (tmp_path / TOKEN_FILE).stat().st_mode & 0o777 == 0o600
    assert with_kept_token(bare)[1] == token
    (tmp_path / TOKEN_FILE).chmod(0o644)  # others have read it
    assert with_kept_token(bare)[1] != token
    (tmp_path / TOKEN_FILE).write_text("weak")
    assert len(with_kept_token(bare)[1] or "") > 20


def test_a_data_directory_of_a_later_release_is_refused_and_left_as_it_is(tmp_path):
    settings = s.load({"data_dir": str(tmp_path)})
    check_form(settings)
    check_form(settings)
    assert (tmp_path / FORM_FILE).read_text() == "1\n"
    for text, why in (("2\n", "A later release"), ("", "form"), ("one", "form"), ("-1", "form")):
        (tmp_path / FORM_FILE).write_text(text)
        with pytest.raises(BadRequest, match=why):
            check_form(settings)
        assert (tmp_path / FORM_FILE).read_text() == text


def test_a_clock_before_the_last_run_is_refused_and_one_that_is_right_again_is_not(tmp_path):
    settings = s.load({"data_dir": str(tmp_path)})
    check_form(settings)
    last = 1_800_000_000.0
    os.utime(tmp_path / FORM_FILE, (last, last))
    for now in (last - 200, last, last + 1e9):
        check_clock(settings, now)
    with pytest.raises(BadRequest, match=r"2027-01-15T07:00.*touch /.*/form"):
        check_clock(settings, last - 3600)
    assert (tmp_path / FORM_FILE).stat().st_mtime == last, "nothing was changed"
    (tmp_path / FORM_FILE).touch()
    check_clock(settings, time.time())


async def test_a_server_notes_the_time_and_each_step_of_the_clock(tmp_path, monkeypatch, caplog):
    settings = s.load({"data_dir": str(tmp_path)})
    check_form(settings)
    os.utime(tmp_path / FORM_FILE, (1, 1))
    steps = iter([0.0, 0.0, -7200.0])
    ended = asyncio.Event()

    def step(_):
        try:
            return next(steps)
        except StopIteration:
            ended.set()
            return 0.0

    monkeypatch.setattr("kernelsvc.service.directories.NOTE_SECONDS", 0)
    monkeypatch.setattr("kernelsvc.linux.clock.SteadyClock.step", step)
    task = asyncio.create_task(follow_clock(settings))
    await asyncio.wait_for(ended.wait(), 10)
    task.cancel()
    assert [record.getMessage()[:43] for record in caplog.records] == ["The machine's clock was set back by 7200 s."]
    assert (tmp_path / FORM_FILE).stat().st_mtime > 1


def test_prepared_directories_are_private(short_tmp):
    root = short_tmp / "private"
    settings = s.load({"data_dir": str(root / "d" / "e"), "runtime_dir": str(root / "r")})
    prepare_directories(settings)
    assert stat.S_IMODE(settings.data_path().stat().st_mode) == 0o700
    assert stat.S_IMODE(settings.runtime_path().stat().st_mode) == 0o700


@pytest.mark.parametrize("name", ["data_dir", "runtime_dir"])
def test_a_directory_that_holds_other_things_is_not_closed_to_others(short_tmp, name):
    root = short_tmp / name
    theirs = root / "srv"
    theirs.mkdir(parents=True)
    theirs.chmod(0o755)
    (theirs / "something").touch()
    given = {"data_dir": str(root / "d"), "runtime_dir": str(root / "r"), name: str(theirs)}
    with pytest.raises(BadRequest, match="Choose an empty directory"):
        prepare_directories(s.load(given))
    assert stat.S_IMODE(theirs.stat().st_mode) == 0o755
    (theirs / "something").unlink()
    (theirs / "lost+found").mkdir()
    prepare_directories(s.load(given))
    assert stat.S_IMODE(theirs.stat().st_mode) == 0o700


def test_a_link_in_place_of_the_runtime_directory_is_refused(short_tmp):
    root = short_tmp / "linked"
    (root / "elsewhere").mkdir(parents=True)
    (root / "r").symlink_to(root / "elsewhere")
    settings = s.load({"data_dir": str(root / "d"), "runtime_dir": str(root / "r")})
    with pytest.raises(BadRequest, match=r"runtime_dir.*symbolic link"):
        prepare_directories(settings)


def test_a_mount_that_is_missing_is_named(tmp_path):
    mounts = {"there": Mount(path=str(tmp_path)), "later": Mount(path=str(tmp_path / "no"))}
    (line,) = missing_mounts(s.Settings(mounts=mounts))
    assert "'later'" in line
    assert str(tmp_path / "no") in line
