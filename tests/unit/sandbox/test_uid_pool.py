"""User ids for sessions."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kernelsvc.errors import AtCapacity
from kernelsvc.sandbox.uid_pool import BLOCK, BlockLocks, UidPool, give, users_of_processes


def test_an_id_is_held_by_one_session_at_a_time() -> None:
    ids = UidPool(range(10, 13), taken=[11])
    assert [ids.acquire(), ids.acquire()] == [10, 12]
    with pytest.raises(AtCapacity, match="Close a session"):
        ids.acquire()
    ids.release(12)
    assert ids.acquire() == 12


def test_an_id_is_not_reused_while_others_are_free() -> None:
    ids = UidPool(range(10, 13))
    first = ids.acquire()
    ids.release(first)
    assert ids.acquire() != first


def test_a_session_found_again_keeps_its_id() -> None:
    ids = UidPool(range(10, 12))
    ids.claim(10)
    assert ids.acquire() == 11


def test_sessions_that_share_a_directory_are_one_user() -> None:
    ids = UidPool(range(10, 13), taken=[10])
    ids.claim(10, "/a")
    assert ids.acquire("/a") == 10
    assert (ids.acquire("/b"), ids.acquire()) == (11, 12)
    ids.release(10)
    assert ids.acquire("/a") == 10
    for _ in range(2):
        ids.release(10)
    assert ids.acquire("/c") == 10


def test_a_family_is_one_user_wherever_in_it_one_begins() -> None:
    ids = UidPool(range(10, 13))
    assert ids.acquire("/s/home/user", "/s/home") == 10
    assert ids.acquire("/s/home/user.d/branch", "/s/home") == 10
    assert ids.acquire("/s/home/user.d/branch") == 10
    assert ids.acquire("/t/home/user") == 11
    assert ids.acquire("/t/home/user", "/t/home") == 11
    assert ids.acquire("/t/home/user.d/branch") == 11


def test_hosts_of_one_machine_divide_the_ids(tmp_path: Path) -> None:
    span = range(3_000_000, 3_000_000 + 2 * BLOCK)
    first, second = (BlockLocks(str(tmp_path), span) for _ in range(2))
    one, other = UidPool(locks=first), UidPool(locks=second)
    ids = [one.acquire() for _ in range(BLOCK)]
    theirs = [other.acquire() for _ in range(BLOCK)]
    assert not set(ids) & set(theirs)
    with pytest.raises(AtCapacity):
        one.acquire()
    second.close()  # as Linux does when the host ends
    assert one.acquire() in theirs, "a block that nobody holds any more"
    first.close()


def test_ids_of_sessions_that_a_host_found_again_stay_its_own(tmp_path: Path) -> None:
    span = range(3_000_000, 3_000_000 + 2 * BLOCK)
    first, second = (BlockLocks(str(tmp_path), span) for _ in range(2))
    one, other = UidPool(locks=first), UidPool(locks=second)
    one.claim(span[0])
    assert other.acquire() == span[BLOCK]
    assert one.acquire() == span[1]
    first.close()
    second.close()


def test_an_id_of_a_running_process_is_not_taken(tmp_path: Path) -> None:
    locks = BlockLocks(str(tmp_path), range(os.getuid(), os.getuid() + 2))
    assert UidPool(locks=locks).acquire() == os.getuid() + 1
    locks.close()


def test_running_users_are_seen() -> None:
    assert os.getuid() in users_of_processes()


@pytest.mark.skipif(os.getuid() != 0, reason="changing owners takes root")
def test_a_directory_is_given_without_following_links(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("x")
    inside = tmp_path / "inside"
    (inside / "sub").mkdir(parents=True)
    (inside / "sub" / "f").write_text("x")
    (inside / "link").symlink_to(outside)
    (inside / "dirlink").symlink_to(tmp_path)
    give(str(inside), 70_500)
    assert outside.stat().st_uid == 0
    assert tmp_path.stat().st_uid == 0
    owners = {p.lstat().st_uid for p in [inside, *inside.rglob("*")]}
    assert owners == {70_500}


def test_a_free_id_can_be_preferred(tmp_path: Path) -> None:
    """The files of a workspace keep their user, so that no session's start walks them."""
    pool = UidPool(range(10, 40), locks=BlockLocks(str(tmp_path), range(10, 40)))
    assert pool.acquire("/a", preferred=20) == 20
    assert pool.acquire("/b", preferred=20) != 20
    assert pool.acquire("/c", preferred=99) in range(10, 40)
    pool.release(20)
    assert pool.acquire("/d", preferred=20) == 20
