"""The directory that nobody trusts: links, races, owners, with openat2 and without."""

from __future__ import annotations

import ctypes
import os
import stat
import threading
import time
import tracemalloc
from pathlib import Path

import pytest
from nested_directories import nest

from kernelsvc.errors import BadRequest, Conflict, KernelsvcError, NotFound
from kernelsvc.linux import rooted_dir
from kernelsvc.linux.remove_tree import remove_tree
from kernelsvc.linux.rooted_dir import RootedDirectory, parse_path

_LIBC = ctypes.CDLL(None, use_errno=True)
RENAME_EXCHANGE = 2


@pytest.fixture(params=["openat2", "walk"])
def way(request, monkeypatch):
    """Both ways of opening; the second is what old machines get."""
    if request.param == "walk":
        monkeypatch.setattr(rooted_dir, "HAS_OPENAT2", False)
    elif not rooted_dir.HAS_OPENAT2:
        pytest.skip("this machine has no openat2")
    return request.param


@pytest.fixture
def root(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "f").write_text("the secret")
    return tmp_path / "home"


def read(directory, *parts):
    fd, info = directory.open_file(tuple(part.encode() for part in parts))
    try:
        return os.read(fd, info.st_size)
    finally:
        os.close(fd)


def test_plain_files(way, root):
    (root / "a").mkdir()
    (root / "a" / "f").write_bytes(b"hello")
    with RootedDirectory(root) as directory:
        assert read(directory, "a", "f") == b"hello"
        for parts, error in (((b"a",), Conflict), ((b"b",), NotFound), ((b"a", b"f", b"x"), NotFound)):
            with pytest.raises(error):
                directory.open_file(parts)


def test_permissions_are_set_and_never_through_a_link(way, root):
    (root / "f").write_text("")
    (root / "d").mkdir()
    secret = root.parent / "outside" / "f"
    (root / "link").symlink_to(secret)
    before = secret.stat().st_mode
    with RootedDirectory(root) as directory:
        directory.set_mode((b"f",), 0o600)
        directory.set_mode((b"d",), 0o700)
        for parts in ((b"link",), (b"missing",)):
            with pytest.raises(KernelsvcError):
                directory.set_mode(parts, 0o777)
    assert [stat.S_IMODE((root / name).stat().st_mode) for name in "fd"] == [0o600, 0o700]
    assert secret.stat().st_mode == before


def test_no_link_is_followed(way, root):
    (root / "abs").symlink_to(root.parent / "outside")
    (root / "rel").symlink_to("../outside")
    (root / "file").symlink_to("../outside/f")
    (root / "magic").symlink_to("/proc/self/root")
    (root / "loop").symlink_to("loop")
    with RootedDirectory(root) as directory:
        for parts in ((b"abs", b"f"), (b"rel", b"f"), (b"file",), (b"magic", b"etc", b"passwd"), (b"loop",)):
            with pytest.raises((BadRequest, NotFound)):
                directory.open_file(parts)
            with pytest.raises((BadRequest, NotFound)):
                directory.list(parts, depth=None, limit=10)
        for parts in ((b"abs", b"new"), (b"rel", b"sub", b"new")):
            with pytest.raises((BadRequest, NotFound)):
                directory.upload(parts)
            with pytest.raises((BadRequest, NotFound)):
                directory.delete(parts, recursive=True)
        entries, _ = directory.list((), depth=None, limit=100)
        assert {stat.S_IFMT(info.st_mode) for _, info in entries} == {stat.S_IFLNK}
    assert os.listdir(root.parent / "outside") == ["f"]


def test_no_other_filesystem_is_entered(way, tmp_path):
    with RootedDirectory(tmp_path.__class__("/")) as directory, pytest.raises(BadRequest):
        directory.open_file((b"proc", b"self", b"status"))


def exchange(a, b):
    """Swap two names at once (renameat2(2)); nothing is ever missing in between."""
    return _LIBC.renameat2(-100, os.fsencode(a), -100, os.fsencode(b), RENAME_EXCHANGE)


def test_a_directory_swapped_for_a_link_in_the_middle_never_leads_out(way, root):
    """The race that ``realpath`` loses: one thread swaps as fast as it can, the other reads, writes and lists."""
    (root / "d").mkdir()
    (root / "d" / "f").write_text("mine")
    (root / "swap").symlink_to(root.parent / "outside")
    if exchange(root / "d", root / "swap") != 0:
        pytest.skip("this filesystem can't exchange names")
    done = threading.Event()

    def attack():
        while not done.is_set():
            exchange(root / "d", root / "swap")

    thread = threading.Thread(target=attack)
    thread.start()
    seen = set()
    end = time.monotonic() + 1.0
    try:
        with RootedDirectory(root) as directory:
            while time.monotonic() < end:
                seen.add(attempt(lambda: read(directory, "d", "f")))
                attempt(lambda: [path for path, _ in directory.list((b"d",), depth=None, limit=9)[0]])
                attempt(lambda: put(directory, (b"d", b"new")))
                attempt(lambda: directory.delete((b"d", b"new"), recursive=True))
    finally:
        done.set()
        thread.join()
    assert b"mine" in seen
    assert b"the secret" not in seen
    assert os.listdir(root.parent / "outside") == ["f"]
    assert (root.parent / "outside" / "f").read_text() == "the secret"


def attempt(action):
    try:
        return action()
    except KernelsvcError:
        return None


def put(directory, parts, data=b"x"):
    upload = directory.upload(parts)
    try:
        upload.write(data)
        return upload.commit()
    finally:
        upload.abort()


@pytest.mark.parametrize("levels", [5, rooted_dir.MAX_REMOVED_DEPTH, rooted_dir.MAX_REMOVED_DEPTH + 1, 1000])
def test_a_tree_of_any_depth_is_removed_with_few_descriptors(way, root, levels, monkeypatch):
    (root / "deep").mkdir()
    (root / "deep" / "link").symlink_to(root.parent / "outside")
    nest(root / "deep", levels, "x" * 50, b"")
    opened, most = rooted_dir._open_entry, []

    def noted(parent, name):
        most.append(len(os.listdir("/proc/self/fd")))
        return opened(parent, name)

    monkeypatch.setattr(rooted_dir, "_open_entry", noted)
    with RootedDirectory(root) as directory:
        before = len(os.listdir("/proc/self/fd"))
        directory.delete((b"deep",), recursive=True)
        assert len(os.listdir("/proc/self/fd")) == before
    assert os.listdir(root) == []
    assert os.listdir(root.parent / "outside") == ["f"]
    assert max(most) <= before + 2 * (rooted_dir.MAX_REMOVED_DEPTH + 3)


def test_removing_a_tree_ends_also_if_code_nests_more_meanwhile(way, root, monkeypatch):
    monkeypatch.setattr(rooted_dir, "MAX_PASSES", 3)
    (root / "deep").mkdir()
    nest(root / "deep", 600, "d")
    with RootedDirectory(root) as directory, pytest.raises(Conflict, match="nested too deep"):
        directory.delete((b"deep",), recursive=True)
    remove_tree(root / "deep")


def test_an_upload_replaces_the_name_not_what_it_points_to(way, root):
    (root / "f").symlink_to(root.parent / "outside" / "f")
    with RootedDirectory(root) as directory:
        put(directory, (b"f",), b"new")
        assert read(directory, "f") == b"new"
    assert (root.parent / "outside" / "f").read_text() == "the secret"


def test_an_abandoned_upload_leaves_nothing(way, root):
    with RootedDirectory(root) as directory:
        upload = directory.upload((b"a", b"f"))
        upload.write(b"x" * 1000)
        upload.abort()
        upload.abort()
    assert os.listdir(root / "a") == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_files_belong_to_whom_the_directory_belongs_to(way, root):
    os.chown(root, 12345, 12345)
    with RootedDirectory(root) as directory:
        put(directory, (b"a", b"f"))
    for path in (root / "a", root / "a" / "f"):
        assert (path.stat().st_uid, path.stat().st_gid) == (12345, 12345)


def test_a_tree_too_deep_or_wide_is_listed_in_part(way, root):
    deep = root
    for _ in range(80):
        deep = deep / "d"
        deep.mkdir()
    for number in range(300):
        (root / f"f{number}").touch()
    with RootedDirectory(root) as directory:
        entries, truncated = directory.list((), depth=None, limit=10_000)
        assert not truncated
        assert len(entries) == 300 + 65
        assert directory.list((), depth=1, limit=100)[1]


def test_a_listing_has_the_levels_it_is_asked_for(way, root):
    (root / "a/b/c").mkdir(parents=True)
    with RootedDirectory(root) as directory:
        for depth, last in ((1, b"a"), (2, b"a/b"), (None, b"a/b/c")):
            assert directory.list((), depth=depth, limit=9)[0][-1][0] == last
        assert [path for path, _ in directory.list((b"a",), depth=1, limit=9)[0]] == [b"a/b"]


@pytest.mark.parametrize(
    "raw", [b"", b"/a", b"a//b", b"a/", b"..", b"a/../b", b".", b"a/./b", b"a\0b", b"x" * 256, b"a/" * 64 + b"b"]
)
def test_paths_that_are_refused(raw):
    with pytest.raises(BadRequest):
        parse_path(raw)


@pytest.mark.parametrize("raw", [b"a", b"a/b", b"...", b"a..b", b"\xff", b"a\nb", b"-rf", b"~", b"$HOME"])
def test_paths_that_are_fine(raw):
    assert b"/".join(parse_path(raw)) == raw


def test_a_missing_directory_is_told_without_its_path(tmp_path):
    with pytest.raises(NotFound) as caught:
        RootedDirectory(tmp_path / "nothing")
    assert str(tmp_path) not in caught.value.message


def test_looking_says_what_a_name_is_itself(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/link").symlink_to("/etc/passwd")
    with RootedDirectory(tmp_path) as directory:
        info, target = directory.stat_entry((b"d", b"link"))
        assert (stat.S_ISLNK(info.st_mode), target) == (True, b"/etc/passwd")
        assert stat.S_ISDIR(directory.stat_entry(())[0].st_mode)
        assert directory.stat_entry((b"d",))[1] is None
        with pytest.raises(NotFound):
            directory.stat_entry((b"d", b"nothing"))


def test_directories_are_made_and_names_moved_in_here_alone(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "in").mkdir()
    (tmp_path / "in/out").symlink_to(tmp_path / "outside")
    (tmp_path / "in/f").write_text("x")
    with RootedDirectory(tmp_path / "in") as directory:
        directory.make((b"a", b"b"))
        directory.move((b"f",), (b"new", b"f"))
        assert (tmp_path / "in/new/f").read_text() == "x"
        for refused in (
            lambda: directory.make((b"out", b"x")),
            lambda: directory.move((b"new",), (b"out", b"x")),
            lambda: directory.move((b"out", b"x"), (b"y",)),
            lambda: directory.open_directory((b"out",)),
        ):
            with pytest.raises(KernelsvcError):
                refused()
        with pytest.raises(NotFound):
            directory.move((b"nothing",), (b"y",))
        directory.move((b"out",), (b"moved",))
    assert list((tmp_path / "outside").iterdir()) == []
    assert (tmp_path / "in/moved").is_symlink()


def test_a_long_path_is_refused_before_it_is_split():
    path = b"a/" * (1 << 20) + b"a"
    tracemalloc.start()
    try:
        with pytest.raises(BadRequest, match="too long"):
            parse_path(path)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
