"""Files through the E2B API, by plain HTTP, in a directory whose owner means harm."""

from __future__ import annotations

import gzip
import json
import os
import random
import struct
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from e2b_requests import E2bRequests
from served import Served, serving
from waiting import wait_for

from kernelsvc.protocol import connect, e2b
from kernelsvc.server.e2b import connect_rpc, filesystem
from kernelsvc.server.e2b import files as transfer

Answer = tuple[int, Any]
CALLS = [path.replace("\\", "") for path, _ in filesystem.ROUTES]


class Box(E2bRequests):
    """A sandbox, its secret, and its directory as the server sees it."""

    def __init__(self, served: Served, shown: dict[str, Any] | None = None) -> None:
        super().__init__(served)
        if shown is None:
            headers = {"X-API-KEY": served.token}
            _, text = self.raw("POST", "/v2/sandboxes", json.dumps({"templateID": "base"}).encode(), headers)
            shown = json.loads(text)
        self.id, self.secret = shown["sandboxID"], shown["envdAccessToken"]

    def headers(self, **more: str) -> dict[str, str]:
        return {"E2b-Sandbox-Id": self.id, "E2b-Sandbox-Port": "49983", "X-Access-Token": self.secret, **more}

    def call(self, name: str, **asked: Any) -> Answer:
        body = json.dumps(asked).encode()
        status, said = self.raw("POST", f"/filesystem.Filesystem/{name}", body, self.headers())
        return status, json.loads(said)

    def get(self, path: str, **headers: str) -> tuple[int, bytes]:
        return self.raw("GET", f"/files?path={quote(path)}", None, self.headers(**headers))

    def put(self, path: str, data: bytes, **headers: str) -> tuple[int, bytes]:
        kind = {"Content-Type": "application/octet-stream"} | headers
        return self.raw("POST", f"/files?path={quote(path)}", data, self.headers(**kind))

    def run(self, code: str) -> str:
        cell = self.served.call("POST", f"/v1/sessions/{self.id}/cells", {"code": code})
        assert cell["reason"] == "ok", cell
        return "".join(output.get("text", "") for output in cell["outputs"])

    def close(self) -> None:
        self.raw("DELETE", f"/sandboxes/{self.id}", None, {"X-API-KEY": self.served.token})


@pytest.fixture(scope="module")
def box(served: Served) -> Iterator[Box]:
    made = Box(served)
    yield made
    made.close()


def form(*parts: tuple[str, str, bytes]) -> tuple[bytes, dict[str, str]]:
    said = b""
    for name, filename, data in parts:
        head = f'--b\r\nContent-Disposition: form-data; name="{name}"; filename="{filename}"\r\n\r\n'
        said += head.encode() + data + b"\r\n"
    return said + b"--b--\r\n", {"Content-Type": "multipart/form-data; boundary=b"}


# --- up and down -----------------------------------------------------------------------------


def test_a_file_goes_up_and_comes_down(box: Box) -> None:
    status, said = box.put("/home/user/a/b.txt", b"data")
    assert (status, json.loads(said)) == (200, [{"name": "b.txt", "type": "file", "path": "/home/user/a/b.txt"}])
    assert box.run("print(open('/home/user/a/b.txt').read())") == "data\n"
    assert box.get("a/b.txt") == (200, b"data")
    assert box.get("a/b.txt", Range="bytes=1-2") == (206, b"at")
    assert box.get("missing")[0] == 404
    assert box.get("a")[0] == 400
    box.run("open('a/c.txt', 'a').write('the session owns the directory')")


def test_a_form_writes_several(box: Box) -> None:
    body, headers = form(("file", "f/1.txt", b"one"), ("other", "x", b"ignored"), ("file", "f/2.txt", b""))
    status, said = box.raw("POST", "/files", body, box.headers(**headers))
    assert (status, [each["path"] for each in json.loads(said)]) == (200, ["/home/user/f/1.txt", "/home/user/f/2.txt"])
    assert (box.get("f/1.txt"), box.get("f/2.txt")) == ((200, b"one"), (200, b""))


@pytest.mark.parametrize("keep", [10, -4])
def test_a_form_that_is_cut_off_leaves_nothing(box: Box, keep: int) -> None:
    body, headers = form(("file", "cut.txt", b"x" * 100_000))
    assert box.raw("POST", "/files", body[:keep], box.headers(**headers))[0] == 400
    if keep == 10:
        assert box.get("cut.txt")[0] == 404
    assert not [name for name in box.run("import os; print(os.listdir('.'))").split("'") if "upload" in name]


def test_packed_bodies_and_what_is_none(box: Box) -> None:
    packer = zlib.compressobj(wbits=31)
    packed = packer.compress(b"0" * 100_000) + packer.flush()
    packing = {"Content-Encoding": "gzip"}
    assert box.put("packed", packed, **packing)[0] == 200
    assert box.get("packed") == (200, b"0" * 100_000)
    assert box.put("broken", b"not gzip", **packing)[0] == 400
    assert box.put("x", b"", **{"Content-Encoding": "br"})[0] == 400


@pytest.mark.parametrize("cut", [0, 1, 8, 1000])
def test_packed_bodies_that_are_cut_off_leave_nothing(box: Box, cut: int) -> None:
    packed = gzip.compress(random.Random(1).randbytes(100_000))
    whole, part = {"Content-Encoding": "gzip"}, packed[: len(packed) - cut] if cut else b""
    status, said = box.put("cut.gz.txt", part, **whole)
    assert (status, "cut off" in said.decode()) == (400, True)
    assert box.get("cut.gz.txt")[0] == 404
    assert box.put("two.txt", packed + gzip.compress(b"and more"), **whole)[0] == 200
    assert box.get("two.txt")[1].endswith(b"and more")
    box.run("import os; os.remove('two.txt')")


@pytest.mark.parametrize("size", [1 << 20, 3 << 20])
def test_packed_bodies_may_unpack_to_any_number_of_pieces(box: Box, size: int) -> None:
    assert box.put("even", gzip.compress(bytes(size)), **{"Content-Encoding": "gzip"})[0] == 200
    assert box.call("Stat", path="even")[1]["entry"]["size"] == str(size)
    box.run("import os; os.remove('even')")


def test_others_are_served_while_a_body_is_unpacked(box: Box) -> None:
    """Each byte becomes a thousand. Decompressing, hashing and writing all of one read took seconds."""
    packer = zlib.compressobj(wbits=31)
    packed = b"".join(packer.compress(bytes(1 << 20)) for _ in range(192)) + packer.flush()
    answered = 0
    with ThreadPoolExecutor(1) as pool:
        upload = pool.submit(box.put, "zeros", packed, **{"Content-Encoding": "gzip"})
        while not upload.done():
            assert box.raw("GET", "/healthz", None, {})[0] == 200
            answered += 1
        assert upload.result()[0] == 200
    assert box.call("Stat", path="zeros")[1]["entry"]["size"] == str(192 << 20)
    assert answered > 20
    box.run("import os; os.remove('zeros')")


def test_metadata_stay_with_a_file(box: Box) -> None:
    status, said = box.put("told.txt", b"x", **{"X-Metadata-Author": "me", "X-Metadata-Run": "7"})
    assert (status, json.loads(said)[0]["metadata"]) == (200, {"author": "me", "run": "7"})
    told = {"author": "me", "run": "7"}
    assert box.call("Stat", path="told.txt")[1]["entry"]["metadata"] == told
    assert box.run("import os; print(os.getxattr('told.txt', 'user.e2b.author'))") == "b'me'\n"
    box.run("os.setxattr('told.txt', 'user.e2b.run', b'8')")
    assert box.call("Move", source="told.txt", destination="sub/told.txt")[1]["entry"]["metadata"]["run"] == "8"
    (listed,) = box.call("ListDir", path="sub")[1]["entries"]
    assert listed["metadata"] == {"author": "me", "run": "8"}
    assert box.put("sub/told.txt", b"y")[0] == 200  # a new file
    assert "metadata" not in box.call("Stat", path="sub/told.txt")[1]["entry"]
    box.run("os.symlink('told.txt', 'sub/link'); os.mkfifo('sub/pipe')")
    assert len(box.call("ListDir", path="sub")[1]["entries"]) == 3
    assert box.put("x", b"", **{"X-Metadata-Long": "x" * 5000})[0] == 413
    assert box.put("/tmp/x", b"", **{"X-Metadata-A": "b"})[0] == 501


def test_what_is_packed_small_may_not_fill_the_disk(short_tmp: Path) -> None:
    with serving(short_tmp / "small-disk", "--limits-disk-bytes", str(8 << 20)) as served:
        small = Box(served)
        packer = zlib.compressobj(wbits=31)
        bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(64)) + packer.flush()
        assert len(bomb) < 1 << 20
        assert small.put("bomb", bomb, **{"Content-Encoding": "gzip"})[0] == 413
        assert small.get("bomb")[0] == 404
        small.close()


@pytest.mark.parametrize("path", ["../x", "/home/user/../x", "/home/user", "a\0b", "x" * 300])
def test_paths_elsewhere_are_refused(box: Box, path: str) -> None:
    assert box.put(path, b"x")[0] in (400, 409)
    assert box.get(path)[0] == 400
    for call in ("MakeDir", "Remove"):
        assert box.call(call, path=path)[0] in (400, 409)


def test_what_lies_outside_the_home_is_the_sandbox_s_own_affair(box: Box) -> None:
    status, said = box.put("/tmp/new dir/$(x)'.txt", b"elsewhere")
    assert (status, json.loads(said)[0]["path"]) == (200, "/tmp/new dir/$(x)'.txt")
    assert box.get("/tmp/new dir/$(x)'.txt") == (200, b"elsewhere")
    assert not os.path.exists("/tmp/new dir")
    assert box.run("print(open('/tmp/new dir/$(x)\\'.txt').read())") == "elsewhere\n"
    assert box.call("Stat", path="/tmp/new dir/$(x)'.txt")[1]["entry"]["size"] == "9"
    assert box.call("MakeDir", path="/tmp/new dir/sub/sub")[0] == 200
    assert box.call("MakeDir", path="/tmp/new dir/sub")[1]["code"] == "already_exists"
    listed = box.call("ListDir", path="/tmp/new dir", depth=2)[1]["entries"]
    assert [each["name"] for each in listed] == ["$(x)'.txt", "sub", "sub"]
    assert box.call("Move", source="/tmp/new dir/$(x)'.txt", destination="came-home.txt")[0] == 200
    assert box.get("came-home.txt") == (200, b"elsewhere")
    assert box.call("Remove", path="/tmp/new dir")[0] == 200
    assert box.call("Stat", path="/tmp/new dir")[1]["code"] == "not_found"
    assert box.get("/tmp/nothing")[0] == 404
    assert box.get("/tmp")[0] == 400
    assert b"user:x:" in box.get("/etc/passwd")[1]
    assert b"root:x:" not in box.get("/etc/passwd")[1]
    status, said = box.put("/etc/passwd", b"x")
    assert status == 400
    assert b"refused" in said
    assert box.call("Remove", path="/usr/bin")[0] == 400
    assert os.path.exists("/usr/bin/env")
    assert ".e2b" not in box.run("import os; print(os.listdir('.'))")


def test_a_fork_has_files_of_its_own(box: Box) -> None:
    box.put("shared.txt", b"before")
    status, said = box.raw("POST", f"/sandboxes/{box.id}/fork", b"{}", {"X-API-KEY": box.served.token})
    assert status == 201, said
    fork = Box(box.served, json.loads(said)[0]["sandbox"])
    assert fork.get("shared.txt") == (200, b"before")
    assert fork.put("/tmp/of-the-fork", b"carried")[0] == 200
    assert fork.call("Move", source="/tmp/of-the-fork", destination="shared.txt")[0] == 200
    assert fork.get("shared.txt") == (200, b"carried")
    assert fork.run("print(open('shared.txt').read())") == "carried\n"
    assert box.get("shared.txt") == (200, b"before")
    fork.close()


def test_signed_addresses(box: Box) -> None:
    box.put("signed.txt", b"shared")
    where = {"E2b-Sandbox-Id": box.id, "E2b-Sandbox-Port": "49983"}
    for headers in (where, {}):
        signature = e2b.signature("signed.txt", "read", "", box.secret)
        query = urlencode({"path": "signed.txt", "signature": signature})
        assert box.raw("GET", f"/files?{query}", None, headers) == (200, b"shared")
        assert box.raw("POST", f"/files?{query}", b"other", headers)[0] == 401
        other = urlencode({"path": "other.txt", "signature": signature})
        assert box.raw("GET", f"/files?{other}", None, headers)[0] == 401


# --- calls -----------------------------------------------------------------------------------


def test_every_call_is_closed_without_the_secret(box: Box) -> None:
    for path in [*CALLS, *(path for path, _ in transfer.ROUTES)]:
        for secret in ("", "wrong"):
            status, said = box.raw("POST", path, b"{}", box.headers(**{"X-Access-Token": secret}))
            assert status == 401, path
            assert json.loads(said)["message"]


def test_a_tree_is_made_listed_moved_and_removed(box: Box) -> None:
    assert box.call("MakeDir", path="/home/user/t/u/v")[0] == 200
    status, said = box.call("MakeDir", path="t/u")
    assert (status, said["code"]) == (409, "already_exists")
    box.put("t/f.txt", b"1234")
    _, said = box.call("ListDir", path="t", depth=2)
    assert [each["path"] for each in said["entries"]] == [f"/home/user/t/{name}" for name in ("f.txt", "u", "u/v")]
    assert box.call("Stat", path="t/f.txt")[1]["entry"]["size"] == "4"
    assert box.call("Move", source="t/f.txt", destination="new/place.txt")[1]["entry"]["name"] == "place.txt"
    assert box.call("Stat", path="t/f.txt")[1]["code"] == "not_found"
    assert box.call("Move", source="t/nothing", destination="x")[0] == 404
    assert box.call("Remove", path="t")[0] == 200
    assert box.call("ListDir", path="t") == (
        404,
        {"code": "not_found", "message": box.call("ListDir", path="t")[1]["message"]},
    )
    assert box.call("Stat", path=5)[0] == 400


def test_what_a_client_changes_is_on_record(box: Box) -> None:
    box.put("recorded.txt", b"x")
    box.call("Remove", path="recorded.txt")
    events = box.served.call("GET", f"/v1/sessions/{box.id}/events?limit=10000")["events"]
    changes = [file for event in events if event["type"] == "files_changed" for file in event["files"]]
    assert [each["op"] for each in changes if each["path"] == "recorded.txt"] == ["put", "delete"]


def test_links_pipes_and_second_names_harm_nobody(box: Box) -> None:
    box.run(
        "import os\n"
        "os.symlink('/etc', 'etc'); os.symlink('/etc/passwd', 'passwd'); os.mkfifo('pipe')\n"
        "os.symlink('/', 'root'); os.link('packed', 'second')\n"
        "os.mkdir('bad'); open(b'bad/\\xff\\n', 'w').close()"
    )
    for path in ("pipe", "second"):
        assert box.get(path)[0] == 400, path
    inside = box.get("/etc/passwd")
    assert inside[1] != Path("/etc/passwd").read_bytes()
    for path in ("etc/passwd", "passwd", "root/etc/passwd"):  # links lead to the sandbox's own files
        assert box.get(path) == inside, path
    assert box.call("ListDir", path="etc") == box.call("ListDir", path="/etc")
    assert box.call("Stat", path="passwd")[1]["entry"]["symlinkTarget"] == "/etc/passwd"
    assert box.call("ListDir", path="bad")[1]["entries"][0]["name"] == "\ufffd\n"
    assert box.put("root/tmp/x", b"x")[0] == 200
    assert box.get("/tmp/x") == (200, b"x")
    assert not os.path.exists("/tmp/x")
    assert box.put("passwd", b"replaced")[0] == 400
    assert "root:" in Path("/etc/passwd").read_text()
    assert box.call("Move", source="second", destination="root/tmp/escaped")[0] == 200
    assert not os.path.exists("/tmp/escaped")
    assert box.call("Remove", path="root")[0] == 200
    assert os.path.exists("/etc")


def test_links_are_followed_as_e2b_follows_them(box: Box) -> None:
    box.run(
        "import os\nos.makedirs('real/deep'); open('real/deep/t.txt', 'w').write('old')\n"
        "os.symlink('real/deep', 'way'); os.symlink('deep/../deep/t.txt', 'real/name'); os.symlink('gone', 'broken')\n"
        "os.symlink('loop', 'loop'); os.symlink('/home/user/real/name', 'absolute'); os.symlink('../user/way', 'above')"
    )
    for path in ("way/t.txt", "real/name", "absolute", "above/t.txt"):
        assert box.get(path) == (200, b"old"), path
    entry = box.call("Stat", path="absolute")[1]["entry"]
    assert (entry["type"], entry["symlinkTarget"]) == ("FILE_TYPE_FILE", "/home/user/real/deep/t.txt")
    types = {each["name"]: each["type"] for each in box.call("ListDir", path=".")[1]["entries"]}
    assert (types["way"], types["loop"]) == ("FILE_TYPE_DIRECTORY", "FILE_TYPE_SYMLINK")
    assert box.put("absolute", b"new")[0] == 200
    assert box.get("real/deep/t.txt") == (200, b"new")
    assert box.call("Stat", path="absolute")[1]["entry"]["isSymlink"]
    assert box.get("broken")[0] == 404
    assert box.put("broken", b"made")[0] == 200
    assert box.get("gone") == (200, b"made")
    assert box.get("loop")[0] == 400
    assert box.call("Remove", path="way")[0] == 200
    assert box.get("real/deep/t.txt") == (200, b"new")


@pytest.mark.parametrize("path", ["never", "never/there", "/tmp/never"])
def test_a_missing_file_is_removed_without_an_error(box: Box, path: str) -> None:
    assert box.call("Remove", path=path) == (200, {})


# --- watching --------------------------------------------------------------------------------


def messages(data: bytes) -> Iterator[tuple[int, Any]]:
    while data:
        flags, size = struct.unpack(">BI", data[:5])
        yield flags, json.loads(data[5 : 5 + size])
        data = data[5 + size :]


def watch(box: Box, **headers: str) -> list[tuple[int, Any]]:
    body = connect.envelope({"path": "w", "recursive": True})
    kind = {"Content-Type": "application/connect+json"}
    status, said = box.raw("POST", "/filesystem.Filesystem/WatchDir", body, box.headers(**kind, **headers))
    assert status == 200
    assert connect_rpc.KEEPALIVE_SECONDS > 2.5  # so that it is the header that counts
    return [*messages(said)]


def test_a_stream_of_events_ends_at_its_time(box: Box) -> None:
    box.call("MakeDir", path="w")
    timer = threading.Timer(0.3, box.put, ("w/f", b"x"))
    timer.start()
    found = watch(box, **{"Connect-Timeout-Ms": "2500", "Keepalive-Ping-Interval": "1"})
    timer.join()
    assert found[0] == (0, {"start": {}})
    assert {"name": "f", "type": "EVENT_TYPE_WRITE"} in [said.get("filesystem") for _, said in found]
    assert (0, {"keepalive": {}}) in found
    assert found[-1][0] == 2
    assert found[-1][1]["error"]["code"] == "deadline_exceeded"


def test_what_can_t_be_watched_is_said_at_the_end_of_the_stream(box: Box) -> None:
    body = connect.envelope({"path": "nowhere"})
    kind = {"Content-Type": "application/connect+json"}
    _, said = box.raw("POST", "/filesystem.Filesystem/WatchDir", body, box.headers(**kind))
    assert [(flags, each["error"]["code"]) for flags, each in messages(said)] == [(2, "not_found")]


def test_events_are_asked_for(box: Box) -> None:
    box.call("MakeDir", path="asked")
    status, said = box.call("CreateWatcher", path="asked", includeEntry=True)
    assert status == 200
    box.put("asked/f", b"x")
    found: list[Any] = []

    def came() -> bool:
        found.extend(box.call("GetWatcherEvents", watcherId=said["watcherId"])[1]["events"])
        return any(each["type"] == "EVENT_TYPE_WRITE" and each["entry"]["size"] == "1" for each in found)

    wait_for(came, what="the write")
    assert box.call("RemoveWatcher", watcherId=said["watcherId"])[0] == 200
    assert box.call("GetWatcherEvents", watcherId=said["watcherId"])[0] == 404


def test_what_lies_elsewhere_is_watched_from_inside(box: Box) -> None:
    box.run("import os; os.makedirs('/tmp/seen/sub', exist_ok=True)")
    status, made = box.call("CreateWatcher", path="/tmp/seen", recursive=True, includeEntry=True)
    assert status == 200, made
    box.run("open('/tmp/seen/sub/x.txt', 'w').write('abc'); os.mkdir('/tmp/seen/more')")
    box.run("os.rename('/tmp/seen/sub/x.txt', '/tmp/seen/more/y.txt'); os.symlink('/etc', '/tmp/seen/link')")
    seen: list[dict[str, Any]] = []

    def came(kind: str, name: str) -> bool:
        seen.extend(box.call("GetWatcherEvents", watcherId=made["watcherId"])[1]["events"])
        return any((event["type"], event["name"]) == (f"EVENT_TYPE_{kind}", name) for event in seen)

    for kind, name in (("WRITE", "sub/x.txt"), ("CREATE", "more"), ("RENAME", "sub/x.txt"), ("CREATE", "link")):
        wait_for(lambda kind=kind, name=name: came(kind, name), what=f"{kind} of {name}")
    entries = {event["name"]: event["entry"] for event in seen if "entry" in event}
    assert (entries["more"]["type"], entries["more"]["path"]) == ("FILE_TYPE_DIRECTORY", "/tmp/seen/more")
    assert entries["link"]["symlinkTarget"] == "/etc"
    listed = box.raw("POST", "/process.Process/List", b"{}", box.headers())
    assert json.loads(listed[1])["processes"] == []  # it is none of the client's
    assert box.call("RemoveWatcher", watcherId=made["watcherId"])[0] == 200
    assert box.call("CreateWatcher", path="/tmp/nothing")[0] == 404
    box.run("open('/tmp/seen/file', 'w').close()")
    assert box.call("CreateWatcher", path="/tmp/seen/file")[0] == 400


def test_a_watch_of_elsewhere_keeps_no_sandbox_from_its_pause(served: Served) -> None:
    box = Box(served)
    box.run("x = 1")
    assert box.call("CreateWatcher", path="/tmp")[0] == 200
    key = {"X-API-KEY": served.token}
    assert box.raw("POST", f"/sandboxes/{box.id}/pause", None, key)[0] == 204
    kinds = lambda: [e["type"] for e in served.call("GET", f"/v1/sessions/{box.id}/events?limit=100")["events"]]  # noqa: E731
    wait_for(lambda: "hibernated" in kinds(), deadline=30, what="its sleep")
    box.close()
