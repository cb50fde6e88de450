"""A backup is restored whole and checked, or leaves nothing behind."""

from __future__ import annotations

import copy
import gzip
import hashlib
import io
import json
import logging
import os
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kernelsvc.errors import BadRequest, Conflict, KernelsvcError, NotSupported
from kernelsvc.model import events as ev
from kernelsvc.store.backups.backup import FORM, MANIFEST, Manifest, write_backup
from kernelsvc.store.backups.restore import remove_unfinished, restore_backup
from kernelsvc.store.heads import HeadFile
from kernelsvc.store.keys import SigningKey
from kernelsvc.store.sessions import SessionDirectories
from kernelsvc.store.verify import verify_journal

ABOUT = "sessions/s-0/session.json"
LOG = "sessions/s-0/journal.jsonl"


class Original:
    """A data directory with two sessions, the last of which is closed and signed, and its backup."""

    def __init__(self, root: Path) -> None:
        self.data, self.archive = root / "data", root / "backup.tar.gz"
        self.key = SigningKey.load_or_create(self.data / "keys")
        store = SessionDirectories(self.data, clock=lambda: 1.0)
        heads = HeadFile(self.data / "heads", self.key.secret("heads"))
        store.use_heads(heads)
        for number in range(2):
            name = f"s-{number}"
            working = str(self.data / "sessions" / name / "home" / "user")
            found, journal = store.create(name, {"workdir": working, "env": {"A": f"{self.data}/x"}})
            journal.append([ev.SessionStarted(), ev.Stream(cell="c", text=f"{number}" * 100)])
            if number:
                journal.append([self.key.sign_head(name, journal.head)])
            journal.close()
            (found.working() / "deep").mkdir(mode=0o500)
            (found.working() / "script").write_bytes(b"x" * 10_000)
            (found.working() / "script").chmod(0o751)
            (found.working() / "link").symlink_to("/etc/passwd")
            os.mkfifo(found.working() / "pipe")
        heads.close()
        write_backup(self.data, self.archive, self.key)

    def content(self) -> list[tuple[tarfile.TarInfo, bytes]]:
        """The entries of the archive without its manifest."""
        with tarfile.open(self.archive) as tar:
            found = [entry for entry in tar if entry.name != MANIFEST]
            files = [(entry, tar.extractfile(entry) if entry.isreg() else None) for entry in found]
            return [(entry, file.read() if file else b"") for entry, file in files]

    def write(self, entries: list[tuple[tarfile.TarInfo, bytes]], key: SigningKey | None = None, **more: Any) -> None:
        """Write the archive again with these entries and a manifest that fits them, signed by a key."""
        plain, key = io.BytesIO(), key or self.key
        with tarfile.open(fileobj=plain, mode="w:", format=tarfile.PAX_FORMAT) as tar:
            for entry, data in entries:
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
            values = {"form": FORM, "version": "1", "at": "now", "data": str(self.data), "sessions": 2} | more
            manifest = Manifest(sha256=hashlib.sha256(plain.getvalue()).hexdigest(), key=key.public, **values)
            signed = msgspec.structs.replace(manifest, signature=key.sign(manifest.statement()))
            last, raw = tarfile.TarInfo(MANIFEST), msgspec.json.encode(signed)
            last.size = len(raw)
            tar.addfile(last, io.BytesIO(raw))
        self.archive.write_bytes(gzip.compress(plain.getvalue()))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Original:
    return Original(tmp_path_factory.mktemp("original"))


@pytest.fixture
def original(made: Original, tmp_path: Path) -> Original:
    """The same original, with a copy of its archive to change."""
    one = copy.copy(made)
    one.archive = tmp_path / "backup.tar.gz"
    one.archive.write_bytes(made.archive.read_bytes())
    return one


def tree(root: Path) -> dict[str, tuple[Any, ...]]:
    """Kind, mode, owner and content of each file."""
    found = {}
    for path in sorted(root.rglob("*")):
        info = path.lstat()
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(root))] = (info.st_mode, info.st_uid, info.st_gid, content)
    return found


@pytest.mark.parametrize("exists", [False, True])
def test_all_of_it_comes_back_elsewhere(original: Original, tmp_path: Path, exists: bool) -> None:
    target = tmp_path / "new"
    if exists:
        (target / "lost+found").mkdir(parents=True)
    report = restore_backup(original.archive, target, public_key=original.key.public)
    assert (report.manifest.sessions, report.unproven) == (2, [])
    before, after = tree(original.data), tree(target)
    after.pop("lost+found", None)
    about = json.loads(after[ABOUT][3])
    # The session's directory is in the new place. An environment variable is its owner's, and stays.
    assert about == {"workdir": f"{target}/sessions/s-0/home/user", "env": {"A": f"{original.data}/x"}}
    assert stat.S_IMODE(target.stat().st_mode) == 0o700
    for each in list(before):
        if each.endswith(("/pipe", "session.json")) or each.startswith("server."):
            before.pop(each)
            after.pop(each, None)
    assert after == before
    assert verify_journal(target / "sessions/s-1/journal.jsonl", public_key=original.key.public).ok


def test_a_server_without_sessions_is_restored(tmp_path: Path) -> None:
    key = SigningKey.load_or_create(tmp_path / "data" / "keys")
    SessionDirectories(tmp_path / "data")
    write_backup(tmp_path / "data", tmp_path / "backup.tar.gz", key)
    assert restore_backup(tmp_path / "backup.tar.gz", tmp_path / "new").manifest.sessions == 0
    assert not [*(tmp_path / "new" / "sessions").iterdir()]


def test_a_key_that_is_kept_elsewhere_is_needed(original: Original, tmp_path: Path) -> None:
    without = [(entry, data) for entry, data in original.content() if not entry.name.startswith("keys/")]
    original.write(without)
    other = SigningKey.load_or_create(tmp_path / "other")
    for key in (None, other):
        with pytest.raises(BadRequest, match="--config"):
            restore_backup(original.archive, tmp_path / "new", key=key)
    assert not (tmp_path / "new").exists()
    restore_backup(original.archive, tmp_path / "new", key=original.key)


def test_the_archive_of_another_server_is_refused(original: Original, tmp_path: Path) -> None:
    other = SigningKey.load_or_create(tmp_path / "other")
    with pytest.raises(BadRequest, match="not the key that you named"):
        restore_backup(original.archive, tmp_path / "new", public_key=other.public)
    original.write(original.content(), key=other)  # Signed again, over the same heads.
    with pytest.raises(BadRequest, match="another key"):
        restore_backup(original.archive, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("kind", ["file", "link", "full", "stopped"])
def test_a_target_that_is_not_empty_is_refused_and_stays(original: Original, tmp_path: Path, kind: str) -> None:
    target = tmp_path / "new"
    match kind:
        case "file":
            target.write_text("x")
        case "link":
            (tmp_path / "elsewhere").mkdir()
            target.symlink_to("elsewhere")
        case _:
            (target / {"full": "x", "stopped": ".restore"}[kind]).mkdir(parents=True)
    before = tree(tmp_path)
    with pytest.raises(Conflict, match="Name a new"):
        restore_backup(original.archive, target)
    assert tree(tmp_path) == before


def cut(data: bytes) -> bytes:
    return data[: len(data) * 2 // 3]


def without_end(data: bytes) -> bytes:
    plain = gzip.decompress(data)
    return gzip.compress(plain[: plain.index(MANIFEST.encode())])


def changed(data: bytes) -> bytes:
    return gzip.compress(gzip.decompress(data).replace(b"0" * 100, b"1" * 100))


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        without_end,
        changed,
        lambda data: data[:-8] + b"12345678",  # the sum of the content (RFC 1952)
        lambda data: data + b"more",
        lambda data: gzip.decompress(data),
        lambda data: b"",
        lambda data: b"PK\x03\x04" + data,
        lambda data: gzip.compress(b"no archive" * 1000),
    ],
    ids=["cut", "without end", "changed", "wrong sum", "more", "not compressed", "empty", "zip", "no tar"],
)
def test_an_archive_that_is_not_whole_leaves_nothing(
    original: Original, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    original.archive.write_bytes(damage(original.archive.read_bytes()))
    before = tree(tmp_path)
    with pytest.raises(BadRequest, match=r"whole backup|as it was written"):
        restore_backup(original.archive, tmp_path / "new")
    assert tree(tmp_path) == before


#: Stands for a directory of the test. A directory of the machine must not be at risk if the check fails.
OUTSIDE = "/outside"


def entry(name: str, type: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.uid, info.gid = type, target, os.geteuid(), os.getegid()
    return info


def worker_tokens(target: str) -> list[tarfile.TarInfo]:
    return [
        entry("workers/2/keys", tarfile.DIRTYPE),
        entry("workers/2/keys/tokens.json", tarfile.SYMTYPE, target),
    ]


def environments_link(target: str) -> tarfile.TarInfo:
    return entry("workers/2/environments", tarfile.SYMTYPE, target)


@pytest.mark.parametrize(
    "hostile",
    [
        [entry("/tmp-x")],
        [entry("../x")],
        [entry("sessions/../../x")],
        [entry("./x")],
        [entry("a//x")],
        [entry("x"), entry("x")],
        [entry("none/x")],
        [entry("heads/x")],
        *([entry(name, tarfile.SYMTYPE, OUTSIDE)] for name in ("archive", "keys-2", "workers", "responses", "form")),
        [entry("environments", tarfile.DIRTYPE), entry("environments/a", tarfile.SYMTYPE, OUTSIDE)],
        [entry("workers", tarfile.DIRTYPE), entry("workers/2", tarfile.DIRTYPE), *worker_tokens(OUTSIDE)],
        [entry("workers", tarfile.DIRTYPE), entry("workers/2", tarfile.DIRTYPE), environments_link("../../sessions")],
        [entry("sessions/s-2", tarfile.SYMTYPE, OUTSIDE)],
        [entry("sessions/s-2/home", tarfile.SYMTYPE, OUTSIDE), entry("sessions/s-2/home/x")],
        [entry("sessions/files", tarfile.SYMTYPE, OUTSIDE)],
        [entry("sessions/s-2")],
        *(
            [entry("sessions/s-2/journal.jsonl"), entry("sessions/s-2/files", tarfile.SYMTYPE, where)]
            for where in (
                OUTSIDE,
                f"../../../..{OUTSIDE}",
                "..",
                ".",
                "../s-0",
                "../s-0/keys/../../../keys/x",
                "home/../..",
            )
        ),
        [entry("hard", tarfile.LNKTYPE, "heads")],
        [entry("device", tarfile.CHRTYPE)],
        [entry("pipe", tarfile.FIFOTYPE)],
        [entry(".restore/x")],
    ],
    ids=lambda entries: "+".join(f"{each.name} {each.linkname}" for each in entries),
)
def test_an_entry_that_no_backup_has_is_refused_before_anything_is_written(
    original: Original, tmp_path: Path, hostile: list[tarfile.TarInfo]
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o750)
    for each in hostile:
        each.linkname = each.linkname.replace(OUTSIDE, str(outside))
    original.write(original.content() + [(each, b"") for each in hostile])
    before = tree(tmp_path)
    with pytest.raises(BadRequest, match="is no whole backup"):
        restore_backup(original.archive, tmp_path / "new")
    assert tree(tmp_path) == before
    assert outside.stat().st_mode & 0o777 == 0o750


def replaced(content: list[tuple[tarfile.TarInfo, bytes]], name: str, change: Callable[[bytes], bytes]):
    return [(each, change(data) if each.name == name else data) for each, data in content]


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        (LOG, lambda log: log.replace(b"0" * 100, b"1" * 100), "not as the server wrote it"),
        (LOG, lambda log: log.split(b"\n")[0] + b"\n", "not as the server wrote it"),
        (LOG, lambda log: log[:-5], "not as the server wrote it"),
        ("sessions/s-1/journal.jsonl", lambda log: log.replace(b"1" * 100, b"2" * 100), "not as the server wrote it"),
        (ABOUT, lambda about: b'{"workdir": "/etc"}', "outside of the data directory"),
        # The server reads it, and a stricter parser does not.
        (ABOUT, lambda about: b'{"x": NaN, "workdir": "/etc"}', "outside of the data directory"),
        (ABOUT, lambda about: about.replace(b"/home/user", b"/../../../x"), "outside of the data directory"),
        *((ABOUT, lambda about, binds=binds: about.replace(b"{", b'{"binds":%b,' % binds, 1), "binds are none")
          for binds in (b"5", b"[1]", b'{"a":1}', b'[{"target":"x"}]')),
        ("keys/ed25519.pem", lambda key: b"no key", "no Ed25519 key"),
    ],
)  # fmt: skip
def test_a_signed_archive_with_a_forged_part_leaves_nothing(
    original: Original, tmp_path: Path, name: str, change: Callable[[bytes], bytes], words: str
) -> None:
    """Whoever has the key, and so signs a manifest, still can't pass off a log that the heads don't vouch for."""
    original.write(replaced(original.content(), name, change))
    before = tree(tmp_path)
    with pytest.raises(KernelsvcError, match=words):
        restore_backup(original.archive, tmp_path / "new")
    assert tree(tmp_path) == before


def raw_entry(type: bytes, data: bytes = b"", **more: Any) -> bytes:
    info = entry("x", type)
    info.size = len(data)
    for field, value in more.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


PAX = b"x"


@pytest.mark.parametrize(
    "blocks",
    [
        [raw_entry(PAX, b"12 path=abc\n")] * 5000,
        [raw_entry(tarfile.GNUTYPE_LONGNAME, b"abc\0")] * 5000,
        [raw_entry(PAX, b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n"), raw_entry(tarfile.REGTYPE, b"9\n" * 300)],
        [raw_entry(PAX, b"", size=1 << 40)],
    ],
    ids=["headers without end", "names without end", "a wrong map of holes", "an impossible size"],
)
def test_headers_that_tarfile_fails_on_are_refused(tmp_path: Path, blocks: list[bytes]) -> None:
    archive = tmp_path / "backup.tar.gz"
    archive.write_bytes(gzip.compress(b"".join(blocks) + bytes(1024)))
    with pytest.raises(BadRequest, match="is no whole backup"):
        restore_backup(archive, tmp_path / "new")


@pytest.mark.parametrize("status", [{"mtime": 10**30}, {"uid": 2**40}], ids=str)
def test_an_impossible_status_leaves_nothing(original: Original, tmp_path: Path, status: dict[str, int]) -> None:
    hostile = entry("sessions/s-0/home/user/x")
    for field, value in status.items():
        setattr(hostile, field, value)
    original.write([*original.content(), (hostile, b"")])
    before = tree(tmp_path)
    with pytest.raises(BadRequest, match="is no whole backup"):
        restore_backup(original.archive, tmp_path / "new")
    assert tree(tmp_path) == before


def test_a_log_without_a_record_is_restored_and_named(original: Original, tmp_path: Path) -> None:
    original.write(replaced(original.content(), "heads", lambda heads: b""))
    assert restore_backup(original.archive, tmp_path / "new").unproven == ["s-0", "s-1"]


@pytest.mark.parametrize(
    ("more", "error"), [({"form": FORM + 1}, NotSupported), ({"sessions": 3}, BadRequest)], ids=["later", "count"]
)
def test_a_manifest_that_does_not_fit_is_refused(
    original: Original, tmp_path: Path, more: dict[str, Any], error: type[KernelsvcError]
) -> None:
    original.write(original.content(), **more)
    with pytest.raises(error):
        restore_backup(original.archive, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_disk_without_space_is_named_before_anything_is_written(original: Original, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result((4096, 4096, 9, 9, 9, 9, 9, 9, 0, 255)))
    with pytest.raises(BadRequest, match="bytes free"):
        restore_backup(original.archive, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_no_pipe_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadRequest, match="regular file"):
        restore_backup(tmp_path / "pipe", tmp_path / "new")


def test_unfinished_copies_of_sessions_are_removed_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    data = tmp_path / "data"
    for name in (".restore-0123456789abcdef", ".move-abc", "sessions", ".restore"):
        (data / name / "s_1").mkdir(parents=True)
        (data / name / "s_1" / "journal").write_text("secret")
    (data / ".move-abc" / "link").symlink_to(outside)
    (data / ".move-link").symlink_to(outside)
    with caplog.at_level(logging.INFO):
        remove_unfinished(data)
    assert {each.name for each in data.iterdir()} == {"sessions", ".restore", ".move-link"}
    assert (outside / "kept").exists()
    assert [each.levelname for each in caplog.records] == ["INFO", "INFO"]
