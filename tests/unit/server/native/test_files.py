"""Files up and down over real sockets: content, ranges, conditions, bounds, hostile names."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import resource
import socket
import urllib.parse
from pathlib import Path
from typing import Any

import pytest
from http_server import HttpServer
from waiting import wait_until

from kernelsvc.server.native.files import ByteRange, matches, parse_range
from kernelsvc.service.file_access.files import SessionFiles

DATA = bytes(range(256)) * 4096


@pytest.fixture
async def home(http_server):
    """A session's files: its URL and its directory."""
    session = (await http_server.json("POST", "/v1/sessions", {}))["id"]
    return f"/v1/sessions/{session}/files/", http_server.files(session)


async def test_up_and_down(http_server, home):
    url, files = home
    response = await http_server.fetch("PUT", url + "a/b/c.bin", DATA)
    assert response.code == 201
    told = json.loads(response.body)
    assert told["sha256"] == hashlib.sha256(DATA).hexdigest()
    assert (files / "a/b/c.bin").read_bytes() == DATA
    assert http_server.changes(url.split("/")[3])[-1] == [
        {"op": "put", "path": "a/b/c.bin", "size": len(DATA), "sha256": told["sha256"]}
    ]
    down = await http_server.fetch("GET", url + "a/b/c.bin")
    assert down.body == DATA
    assert down.headers["ETag"] == told["etag"]
    assert down.headers["Content-Security-Policy"].startswith("sandbox")
    assert down.headers["Content-Disposition"].startswith("attachment")
    head = await http_server.fetch("HEAD", url + "a/b/c.bin")
    assert (head.code, head.body, head.headers["Content-Length"]) == (200, b"", str(len(DATA)))
    assert (await http_server.fetch("PUT", url + "a/b/c.bin", b"new")).code == 200
    assert (await http_server.fetch("GET", url + "a/b/c.bin")).body == b"new"
    assert (await http_server.fetch("DELETE", url + "a/b/c.bin")).code == 204
    assert await http_server.refused("GET", url + "a/b/c.bin") == (404, "not_found")
    assert await http_server.refused("DELETE", url + "a/b/c.bin") == (404, "not_found")


@pytest.mark.parametrize("form", ["session", "workspace", "e2b", "volume"])
async def test_a_principal_lists_one_directory_at_a_time(
    http_server: HttpServer, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """100 lists of 10,000 entries at the same time kept the event loop from all others for 20 s."""
    under_way, most, read = 0, 0, SessionFiles.list

    async def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        try:
            for _ in range(20):
                await asyncio.sleep(0)  # the other requests arrive
            return await read(*args, **kwargs)
        finally:
            under_way -= 1

    monkeypatch.setattr(SessionFiles, "list", counted)
    verb, path, body, headers = "GET", "", None, {}
    if form == "session":
        path = f"/v1/sessions/{(await http_server.json('POST', '/v1/sessions', {}))['id']}/files/"
    elif form == "workspace":
        made = await http_server.json("POST", "/v1/workspaces", {"name": "w"})
        path = f"/v1/workspaces/{made['workspace']}/files/"
    elif form == "e2b":
        key = {"X-API-Key": "alice-token"}
        made = await http_server.json("POST", "/sandboxes", {"templateID": "base"}, headers=key)
        verb, path, body = "POST", "/filesystem.Filesystem/ListDir", {"path": "."}
        headers = {"X-Access-Token": made["envdAccessToken"], "E2b-Sandbox-Port": "49983"}
        headers |= {"E2b-Sandbox-Id": made["sandboxID"], "Content-Type": "application/json"}
    else:
        made = await http_server.json("POST", "/volumes", {"name": "v"}, headers={"X-API-Key": "alice-token"})
        path = f"/volumecontent/{made['volumeID']}/dir?path=/"
        headers = {"Authorization": f"Bearer {made['token']}"}
    answers = await asyncio.gather(*(http_server.json(verb, path, body, headers=headers) for _ in range(5)))
    assert len(answers) == 5
    assert most == 1


async def test_an_empty_file_and_a_chunked_upload(http_server, home):
    url, files = home
    assert (await http_server.fetch("PUT", url + "empty", b"")).code == 201
    assert (await http_server.fetch("GET", url + "empty")).body == b""

    async def produce(write):
        for _ in range(64):
            await write(b"x" * 65536)

    assert (await http_server.fetch("PUT", url + "big", body_producer=produce)).code == 201
    assert (files / "big").stat().st_size == 64 * 65536


async def test_lists(http_server, home):
    url, files = home
    for name in ("b.txt", "sub/c.txt", "sub/deep/d.txt"):
        await http_server.fetch("PUT", url + name, b"1")
    (files / "link").symlink_to("/etc/passwd")
    os.mkfifo(files / "fifo")
    top = await http_server.json("GET", url, status=200)
    assert [(e["path"], e["kind"]) for e in top["files"]] == [
        ("b.txt", "file"), ("fifo", "other"), ("link", "link"), ("sub", "directory"),
    ]  # fmt: skip
    assert await http_server.json("GET", url.removesuffix("/")) == top
    for path in ("sub", "sub/"):
        assert [e["path"] for e in (await http_server.json("GET", url + path))["files"]] == ["sub/c.txt", "sub/deep"]
    everything = await http_server.json("GET", url + "?recursive=true")
    assert "sub/deep/d.txt" in [e["path"] for e in everything["files"]]
    short = await http_server.json("GET", url + "?recursive=true&limit=2")
    assert (len(short["files"]), short["truncated"]) == (2, True)
    assert await http_server.refused("GET", url + "b.txt/") == (404, "not_found")
    assert await http_server.refused("GET", url + "nope/") == (404, "not_found")


async def test_ranges_and_conditions(http_server, home):
    url, _ = home
    await http_server.fetch("PUT", url + "f", b"0123456789")
    etag = (await http_server.fetch("HEAD", url + "f")).headers["ETag"]

    async def get(**headers):
        return await http_server.fetch("GET", url + "f", headers={k.replace("_", "-"): v for k, v in headers.items()})

    part = await get(Range="bytes=2-4")
    assert (part.code, part.body, part.headers["Content-Range"]) == (206, b"234", "bytes 2-4/10")
    assert (await get(Range="bytes=-3")).body == b"789"
    assert (await get(Range="bytes=8-")).body == b"89"
    assert (await get(Range="bytes=0-1,3-4")).code == 200
    beyond = await get(Range="bytes=10-")
    assert (beyond.code, beyond.headers["Content-Range"]) == (416, "bytes */10")
    assert json.loads(beyond.body)["code"] == "bad_request"
    assert (await get(Range="bytes=2-4", If_Range='"other"')).code == 200
    assert (await get(Range="bytes=2-4", If_Range=etag)).code == 206
    assert (await get(If_None_Match=etag)).code == 304
    put = http_server.refused
    assert await put("PUT", url + "f", b"x", headers={"If-Match": '"other"'}) == (409, "conflict")
    assert await put("PUT", url + "f", b"x", headers={"If-None-Match": "*"}) == (409, "conflict")
    assert await put("PUT", url + "g", b"x", headers={"If-Match": "*"}) == (409, "conflict")
    assert (await http_server.fetch("PUT", url + "f", b"x", headers={"If-Match": etag})).code == 200


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("../journal.jsonl", 400),
        ("..%2fjournal.jsonl", 400),
        ("a/%2e%2e/%2e%2e/journal.jsonl", 400),
        ("/etc/passwd", 400),
        ("%2fetc%2fpasswd", 400),
        ("a//b", 400),
        ("./a", 400),
        ("a%00b", 400),
        ("x" * 300, 400),
        ("/".join("d" * 80), 400),
        ("a/" * 3000 + "b", 400),
        ("nothing", 404),
    ],
)
async def test_paths_that_lead_nowhere(http_server, home, path, status):
    url, files = home
    port = urllib.parse.urlsplit(http_server.url).port
    for verb in ("GET", "PUT", "DELETE"):
        if verb == "PUT" and status == 404:
            continue
        # By hand: a client would tidy the path up.
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"{verb} {url}{path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer alice-token\r\n"
        writer.write(f"{head}Content-Length: 1\r\nConnection: close\r\n\r\nx".encode())
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        assert answer.startswith(b"HTTP/1.1 %d" % status), (verb, answer[:80])
        assert set(json.loads(answer.partition(b"\r\n\r\n")[2])) == {"code", "message", "retryable", "details"}
    assert list(files.iterdir()) == []


async def test_nothing_but_plain_files_is_served(http_server, home, tmp_path):
    url, files = home
    secret = tmp_path / "secret"
    secret.write_text("the secret")
    (files / "link").symlink_to(secret)
    (files / "linkdir").symlink_to(tmp_path)
    (files / "inner").symlink_to("plain")
    (files / "plain").write_text("plain")
    (files / "dangling").symlink_to(files / "nothing")
    os.link(secret, files / "hard")
    os.mkfifo(files / "fifo")
    here = os.open(files, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"/proc/self/fd/{here}/sock")
    os.close(here)
    for name in ("link", "linkdir/secret", "inner", "dangling", "hard", "fifo", "sock"):
        response = await asyncio.wait_for(http_server.fetch("GET", url + name), 5)
        assert response.code in (400, 404), name
        assert b"the secret" not in response.body
        assert str(tmp_path).encode() not in response.body
    assert await http_server.refused("GET", url + "linkdir/") == (400, "bad_request")
    assert await http_server.refused("PUT", url + "linkdir/new", b"x") == (400, "bad_request")
    assert not (tmp_path / "new").exists()
    assert await http_server.refused("DELETE", url + "linkdir/secret") == (400, "bad_request")
    assert (await http_server.fetch("PUT", url + "link", b"mine")).code in (200, 201)
    assert secret.read_text() == "the secret"
    assert not (files / "link").is_symlink()
    assert (await http_server.fetch("DELETE", url + "linkdir")).code == 204
    assert (await http_server.fetch("DELETE", url + "fifo")).code == 204
    assert secret.exists()


async def test_strange_names_are_listed_and_served(http_server, home):
    url, files = home
    names = [b"new\nline", b"\xff\xfe", "ä ö".encode(), b"a?b#c%d", b'"quoted"', b"<script>", b"\x1b[31m"]
    for name in names:
        (files / os.fsdecode(name)).write_bytes(name)
    listed = await http_server.json("GET", url)
    assert len(listed["files"]) == len(names)
    for entry in listed["files"]:
        response = await http_server.fetch("GET", url + entry["url"])
        assert response.body in names
    assert (await http_server.fetch("PUT", url + "%ff%0a", b"odd")).code == 201
    assert (files / os.fsdecode(b"\xff\n")).read_bytes() == b"odd"
    assert (await http_server.fetch("DELETE", url + "%ff%0a")).code == 204


async def test_a_sparse_terabyte_is_bounded(http_server, home):
    url, files = home
    with open(files / "huge", "wb") as file:
        file.truncate(1 << 40)
    assert await http_server.refused("GET", url + "huge") == (413, "too_large")
    part = await http_server.fetch("GET", url + "huge", headers={"Range": f"bytes={(1 << 40) - 5}-"})
    assert part.body == b"\0" * 5


@pytest.fixture
async def small(http_server):
    """``home`` of a session that may hold 1 MiB."""
    session = (await http_server.json("POST", "/v1/sessions", {"limits": {"disk_bytes": 1 << 20}}, status=201))["id"]
    return f"/v1/sessions/{session}/files/", http_server.files(session)


async def test_an_upload_over_its_bound_leaves_nothing(http_server, small):
    url, files = small
    assert await http_server.refused("PUT", url + "f", b"x" * (1 << 20 | 1)) == (413, "too_large")

    async def produce(write):
        for _ in range(20):
            await write(b"x" * 100_000)

    assert await http_server.refused("PUT", url + "f", body_producer=produce) == (413, "too_large")
    assert list(files.iterdir()) == []
    assert http_server.changes(url.split("/")[3]) == []


async def test_a_filesystem_that_takes_no_more_is_told_and_left_clean(http_server, home):
    url, files = home
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        assert await http_server.refused("PUT", url + "f", b"x" * 1_000_000) == (413, "too_large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(files.iterdir()) == []


async def test_a_client_that_leaves_in_the_middle_leaves_nothing(http_server, home):
    url, files = home
    _, writer = await asyncio.open_connection("127.0.0.1", urllib.parse.urlsplit(http_server.url).port)
    head = f"PUT {url}half HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer alice-token\r\nContent-Length: 1000\r\n\r\n"
    writer.write(head.encode() + b"x" * 500)
    await wait_until(lambda: list(files.iterdir()))
    assert (await http_server.json("GET", url))["files"] == []
    writer.close()
    await wait_until(lambda: not list(files.iterdir()))


async def test_a_file_that_shrinks_while_it_is_sent_cuts_the_answer_off(http_server, home):
    url, files = home
    (files / "f").write_bytes(b"x" * 50_000_000)
    reader, writer = await asyncio.open_connection("127.0.0.1", urllib.parse.urlsplit(http_server.url).port)
    writer.write(f"GET {url}f HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer alice-token\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")
    os.truncate(files / "f", 1000)
    rest = await asyncio.wait_for(reader.read(), 10)
    assert len(rest) < 50_000_000
    writer.close()


async def test_a_closed_session_gives_and_does_not_take(http_server, home):
    url, _ = home
    await http_server.fetch("PUT", url + "f", b"1")
    await http_server.fetch("DELETE", url.removesuffix("/files/"))
    assert (await http_server.fetch("GET", url + "f")).body == b"1"
    assert await http_server.refused("PUT", url + "f", b"2") == (409, "session_closed")
    assert await http_server.refused("DELETE", url + "f") == (409, "session_closed")


async def test_directories_are_deleted_on_purpose_only(http_server, home):
    url, files = home
    await http_server.fetch("PUT", url + "d/e/f", b"1")
    assert await http_server.refused("DELETE", url + "d") == (409, "conflict")
    assert await http_server.refused("DELETE", url) == (400, "bad_request")
    assert await http_server.refused("PUT", url + "d", b"1") == (409, "conflict")
    assert await http_server.refused("PUT", url, b"1") == (400, "bad_request")
    assert await http_server.refused("PUT", url.removesuffix("/"), b"1") == (400, "bad_request")
    assert (await http_server.fetch("DELETE", url + "d?recursive=true")).code == 204
    assert list(files.iterdir()) == []


def open_below(directory):
    """The files of a directory, and itself, that this process has open. Other threads open and close others."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(str(link.readlink()))
    return sorted(path for path in found if path == str(directory) or path.startswith(f"{directory}/"))


async def test_no_descriptor_is_left(http_server, home):
    url, files = home
    await http_server.fetch("PUT", url + "f", b"1")
    with (files / "f").open() as file:
        assert open_below(files) == [file.name]
    for _ in range(20):
        await http_server.fetch("PUT", url + "a/f", b"1")
        await http_server.fetch("GET", url + "f")
        await http_server.fetch("GET", url + "nope")
        await http_server.fetch("GET", url)
        await http_server.fetch("HEAD", url + "a")
        await http_server.fetch("PUT", url + "a", b"1")
    assert open_below(files) == []


@pytest.mark.parametrize(
    ("header", "size", "span"),
    [
        (None, 10, None),
        ("bytes=0-0", 10, ByteRange(0, 1)),
        ("bytes=0-99", 10, ByteRange(0, 10)),
        ("bytes=-99", 10, ByteRange(0, 10)),
        ("Bytes=5-", 10, ByteRange(5, 5)),
        ("bytes=5-2", 10, None),
        ("bytes=", 10, None),
        ("bytes=-", 10, None),
        ("bytes=a-b", 10, None),
        ("items=0-1", 10, None),
        ("bytes=" + "9" * 5000 + "-", 10, ValueError),
        ("bytes=-0", 10, ValueError),
        ("bytes=0-", 0, ValueError),
    ],
)
def test_ranges(header, size, span):
    if span is ValueError:
        with pytest.raises(ValueError, match="range"):
            parse_range(header, size)
    else:
        assert parse_range(header, size) == span


def test_conditions():
    assert matches('W/"a", "b"', '"b"')
    assert matches("*", '"b"')
    assert not matches('"a"', '"b"')
    assert not matches(None, '"b"')
