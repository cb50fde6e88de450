"""Where branches' directories lie: what a parent gives up never holds a later branch."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernelsvc.sandbox import branch_dirs


def test_each_time_has_a_place_that_was_not_given_up(tmp_path: Path) -> None:
    files = tmp_path / "user"
    files.mkdir()
    assert branch_dirs.times(files) == 0
    places = []
    for time in range(branch_dirs.MOST_TIMES):
        places.append(branch_dirs.make_place(files))
        assert branch_dirs.times(files) == time + 1
        kept = branch_dirs.later(files, branch_dirs.times(files))
        assert kept.is_dir(), "Landlock names only what is there"
        assert not any(place.is_relative_to(kept) for place in places)
    assert places[0] == tmp_path / "user.d"
    assert places[2] == tmp_path / "user.d" / "next" / "next"


def test_after_so_many_times_there_is_one_place_left(tmp_path: Path) -> None:
    files = tmp_path / "user"
    files.mkdir()
    places = [branch_dirs.make_place(files) for _ in range(branch_dirs.MOST_TIMES + 3)]
    assert len(set(places)) == branch_dirs.MOST_TIMES + 1
    assert places[-1] == places[-2] == branch_dirs.later(files, branch_dirs.MOST_TIMES)


def test_a_link_in_the_way_is_not_followed(tmp_path: Path) -> None:
    files, elsewhere = tmp_path / "user", tmp_path / "elsewhere"
    files.mkdir()
    elsewhere.mkdir()
    (tmp_path / "user.d").symlink_to(elsewhere)
    with pytest.raises(OSError, match="exists"):
        branch_dirs.make_place(files)
    (tmp_path / "user.d").unlink()
    branch_dirs.branches_root(files).mkdir()
    (tmp_path / "user.d" / "next").symlink_to(elsewhere)
    assert branch_dirs.times(files) == 0
    with pytest.raises(OSError, match="exists"):
        branch_dirs.make_place(files)
    assert list(elsewhere.iterdir()) == []
