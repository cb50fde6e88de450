"""E2B's Python SDK, unmodified: files of a sandbox. Arguments: address, token. Says "ok"."""

import asyncio
import io
import os
import sys
import time

ADDRESS, TOKEN = sys.argv[1:]
os.environ |= {"E2B_API_KEY": TOKEN, "E2B_API_URL": ADDRESS, "E2B_SANDBOX_URL": ADDRESS}

import httpx  # noqa: E402
from e2b import (  # noqa: E402
    AsyncSandbox,
    FileNotFoundException,
    FilesystemEventType,
    FileType,
    InvalidArgumentException,
    Sandbox,
    SandboxException,
)


def eventually(condition, what):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def reading_and_writing(box):
    written = box.files.write("/home/user/deep/er/hello.txt", "hello")
    assert (written.name, written.path, written.type) == ("hello.txt", "/home/user/deep/er/hello.txt", FileType.FILE)
    assert box.files.read("deep/er/hello.txt") == "hello"
    box.files.write("deep/er/hello.txt", b"other")
    assert box.files.read("/home/user/deep/er/hello.txt", format="bytes") == b"other"
    many = box.files.write_files([{"path": f"many/{n}.txt", "data": str(n)} for n in range(3)])
    assert [one.path for one in many] == [f"/home/user/many/{n}.txt" for n in range(3)]
    assert box.files.read("many/2.txt") == "2"
    big = os.urandom(3_000_000) + b"\r\n--boundary\r\n"
    box.files.write("big.bin", big)
    assert box.files.read("big.bin", format="bytes") == big
    with box.files.read("big.bin", format="stream") as stream:
        assert b"".join(stream) == big
    box.files.write("streamed.bin", io.BytesIO(big))
    assert box.files.get_info("streamed.bin").size == len(big)
    box.files.write("packed.txt", "packed" * 1000, gzip=True)
    assert box.files.read("packed.txt") == "packed" * 1000
    box.files.write("é ü\u2028.txt", "")
    assert box.files.read("é ü\u2028.txt") == ""
    for wrong in ("missing.txt", "deep/missing.txt"):
        try:
            box.files.read(wrong)
        except FileNotFoundException:
            continue
        raise AssertionError(wrong)
    for wrong in ("../user2/x", "deep"):
        try:
            box.files.read(wrong)
        except InvalidArgumentException:
            continue
        raise AssertionError(wrong)


def metadata(box):
    written = box.files.write("told.txt", "x", metadata={"Author": "me", "run-id": "7"})
    assert written.metadata == {"author": "me", "run-id": "7"}
    assert box.files.get_info("told.txt").metadata == {"author": "me", "run-id": "7"}
    assert box.files.rename("told.txt", "retold.txt").metadata == {"author": "me", "run-id": "7"}
    many = box.files.write_files([{"path": f"told/{n}", "data": "x"} for n in range(2)], metadata={"a": "b"})
    assert [one.metadata for one in many] == [{"a": "b"}] * 2
    assert [one.metadata for one in box.files.list("told")] == [{"a": "b"}] * 2
    assert box.files.get_info(box.files.write("plain.txt", "x").path).metadata is None
    (fork,) = box.fork()
    assert fork.files.get_info("retold.txt").metadata == {"author": "me", "run-id": "7"}
    fork.kill()


def the_tree(box):
    assert box.files.make_dir("a/b/c") is True
    assert box.files.make_dir("a/b/c") is False
    box.files.write("a/one.txt", "1")
    assert [(e.name, e.type, e.path) for e in box.files.list("a")] == [
        ("b", FileType.DIR, "/home/user/a/b"),
        ("one.txt", FileType.FILE, "/home/user/a/one.txt"),
    ]
    assert {e.path for e in box.files.list("a", depth=3)} >= {"/home/user/a/b/c"}
    info = box.files.get_info("a/one.txt")
    assert (info.size, info.owner, info.symlink_target) == (1, "user", None)
    assert time.time() - info.modified_time.timestamp() < 3600
    assert box.files.rename("a/one.txt", "a/two.txt").path == "/home/user/a/two.txt"
    assert box.files.exists("a/two.txt")
    assert not box.files.exists("a/one.txt")
    box.files.remove("a")
    assert not box.files.exists("a/two.txt")
    box.files.remove("a")
    for act in (lambda: box.files.rename("a", "b"), lambda: box.files.list("a")):
        try:
            act()
        except FileNotFoundException:
            continue
        raise AssertionError(act)


def elsewhere(box):
    box.files.write("/tmp/deep/note.txt", "a note")
    assert box.files.read("/tmp/deep/note.txt") == "a note"
    assert [e.path for e in box.files.list("/tmp/deep")] == ["/tmp/deep/note.txt"]
    assert box.commands.run("cat /tmp/deep/note.txt").stdout == "a note"
    assert box.files.exists("/tmp/deep")
    assert not box.files.exists("/tmp/nothing")
    handle = box.files.watch_dir("/tmp/deep", include_entry=True)
    box.files.write("/tmp/deep/new.txt", "x")
    seen = []
    eventually(lambda: seen.extend(handle.get_new_events()) or [e for e in seen if e.name == "new.txt"], "an event")
    assert any(e.entry is not None and e.entry.path == "/tmp/deep/new.txt" for e in seen), seen
    handle.stop()
    box.files.remove("/tmp/deep")
    try:
        box.files.write("/usr/forbidden", "x")
    except InvalidArgumentException:
        return
    raise AssertionError("written to /usr")


def with_code(box):
    box.commands.run("ln -s /etc/passwd link && mkfifo pipe && echo from-a-command > made.txt")
    assert box.files.read("made.txt") == "from-a-command\n"
    assert box.files.get_info("link").symlink_target == "/etc/passwd"
    assert box.files.read("link").startswith("user:")  # the sandbox's own file
    try:
        box.files.read("pipe")
    except SandboxException:
        return
    raise AssertionError("read from a pipe")


def watching(box):
    box.files.make_dir("watched/sub")
    handle = box.files.watch_dir("watched", recursive=True, include_entry=True)
    box.files.write("watched/sub/new.txt", "x")
    seen = []

    def came():
        seen.extend(handle.get_new_events())
        return any(e.type is FilesystemEventType.WRITE and e.name == "sub/new.txt" for e in seen)

    eventually(came, "an event of the write")
    assert any(e.entry is not None and e.entry.path == "/home/user/watched/sub/new.txt" for e in seen)
    box.files.remove("watched/sub/new.txt")
    eventually(lambda: any(e.type is FilesystemEventType.REMOVE for e in handle.get_new_events()), "a removal")
    handle.stop()
    try:
        box.files.watch_dir("not-there")
    except FileNotFoundException:
        pass
    else:
        raise AssertionError("a watch of nothing")


def signed_addresses(box):
    box.files.write("shared.txt", "for everybody")
    assert httpx.get(box.download_url("shared.txt")).text == "for everybody"
    url = box.upload_url("sent.txt")
    assert httpx.post(url, files={"file": ("sent.txt", b"sent")}).status_code == 200
    assert box.files.read("sent.txt") == "sent"
    assert httpx.get(box.download_url("shared.txt").replace("signature=v1_", "signature=v1_x")).status_code == 401


async def watching_as_a_stream():
    box = await AsyncSandbox.create()
    seen = asyncio.Queue()
    await box.files.make_dir("w")
    handle = await box.files.watch_dir("w", on_event=seen.put_nowait)
    await box.files.write("w/f.txt", "text")
    async with asyncio.timeout(20):
        while (event := await seen.get()).type is not FilesystemEventType.WRITE:
            pass
    assert event.name == "f.txt"
    await handle.stop()
    assert await box.files.read("w/f.txt") == "text"
    assert [e.name for e in await box.files.list("w")] == ["f.txt"]
    await box.kill()


with Sandbox.create() as sandbox:
    reading_and_writing(sandbox)
    metadata(sandbox)
    the_tree(sandbox)
    watching(sandbox)
    signed_addresses(sandbox)
    with_code(sandbox)
    elsewhere(sandbox)
asyncio.run(watching_as_a_stream())
print("ok", flush=True)
os._exit(0)  # of fifteen interpreters that end by themselves one is aborted, with no Python frame left: the SDK's
