"""Where branches' directories lie: what a parent gives up never holds a later branch."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernelsvc.sandbox import branch_dirs


def test_each_time_has_a_place_that_was_not_given_up(tmp_path: Path) -> None:
    files = tmp_path / "user"
    files.mkdir()
    assert branch_dirs.branch_count(files) == 0
    places = []
    for time in range(branch_dirs.MAX_DEPTH):
        places.append(branch_dirs.make_branches_dir(files))
        assert branch_dirs.branch_count(files) == time + 1
        kept = branch_dirs.later_branches_dir(files, branch_dirs.branch_count(files))
        assert kept.is_dir(), "Landlock names only what is there"
        assert not any(place.is_relative_to(kept) for place in places)
    assert places[0] == tmp_path / "user.d"
    assert places[2] == tmp_path / "user.d" / "next" / "next"


def test_after_so_many_times_there_is_one_place_left(tmp_path: Path) -> None:
    files = tmp_path / "user"
    files.mkdir()
    places = [branch_dirs.make_branches_dir(files) for _ in range(branch_dirs.MAX_DEPTH + 3)]
    assert len(set(places)) == branch_dirs.MAX_DEPTH + 1
    assert places[-1] == places[-2] == branch_dirs.later_branches_dir(files, branch_dirs.MAX_DEPTH)


def test_a_link_in_the_way_is_not_followed(tmp_path: Path) -> None:
    files, elsewhere = tmp_path / "user", tmp_path / "elsewhere"
    files.mkdir()
    elsewhere.mkdir()
    (tmp_path / "user.d").symlink_to(elsewhere)
    with pytest.raises(OSError, match="exists"):
        branch_dirs.make_branches_dir(files)
    (tmp_path / "user.d").unlink()
    branch_dirs.branches_root(files).mkdir()
    (tmp_path / "user.d" / "next").symlink_to(elsewhere)
    assert branch_dirs.branch_count(files) == 0
    with pytest.raises(OSError, match="exists"):
        branch_dirs.make_branches_dir(files)
    assert list(elsewhere.iterdir()) == []
