"""Volumes through the E2B API, by plain HTTP: workspaces whose files have a token of their own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from e2b_requests import E2bRequests
from served import Served
from waiting import wait_for


class Volume(E2bRequests):
    """A volume and its token."""

    def __init__(self, served: Served, name: str) -> None:
        super().__init__(served)
        status, shown = self.control("POST", "/volumes", {"name": name})
        assert status == 201, shown
        self.id, self.token = shown["volumeID"], shown["token"]

    def call(self, method: str, what: str, body: bytes | None = None, token: str = "") -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {token or self.token}"}
        status, said = self.raw(method, f"/volumecontent/{self.id}/{what}", body, headers)
        return status, said if what.startswith("file") and method == "GET" else json.loads(said) if said else None


@pytest.fixture
def volume(served: Served) -> Iterator[Volume]:
    made = Volume(served, "of-e2b")
    yield made
    wait_for(lambda: made.control("DELETE", f"/volumes/{made.id}")[0] in (204, 404))


def test_files_of_a_volume(volume: Volume) -> None:
    assert volume.call("PUT", "file?path=/a.txt&mode=384", b"one") == (201, volume.call("GET", "path?path=a.txt")[1])
    assert volume.call("GET", "path?path=/a.txt")[1]["mode"] == 0o600
    assert volume.call("PUT", "file?path=/a.txt", b"two")[0] == 409
    assert volume.call("GET", "file?path=/a.txt") == (200, b"one")
    assert volume.call("PUT", "file?path=/a.txt&force=true", b"two")[0] == 201
    assert volume.call("GET", "file?path=/a.txt") == (200, b"two")
    assert volume.call("PUT", "file?path=/no/a.txt", b"")[0] == 404
    assert volume.call("POST", "dir?path=/x/y")[0] == 404
    assert volume.call("POST", "dir?path=/x/y&force=true")[1]["type"] == "directory"
    assert volume.call("POST", "dir?path=/x/y")[0] == 409
    assert volume.call("PUT", "file?path=/x/y&force=true", b"")[0] == 409
    assert volume.call("PATCH", "path?path=/x", b'{"mode": 448}')[1]["mode"] == 0o700
    assert volume.call("PATCH", "path?path=/x", b'{"uid": 0}')[0] == 501
    assert volume.call("PATCH", "path?path=/", b'{"mode": 0}')[0] == 400
    assert [each["path"] for each in volume.call("GET", "dir?path=/&depth=2")[1]] == ["/a.txt", "/x", "/x/y"]
    assert volume.call("DELETE", "path?path=/x")[0] == 204
    assert volume.call("DELETE", "path?path=/x")[0] == 404
    assert volume.call("GET", "file?path=/../../journal")[0] == 404


def test_only_its_own_token_opens_a_volume(volume: Volume) -> None:
    other = Volume(volume.served, "of-e2b-too")
    try:
        for token in (other.token, "x", volume.served.token):
            status, said = volume.call("GET", "path?path=/", token=token)
            assert (status, "token" in said["message"]) == (401, True)
        assert volume.call("GET", "path?path=/")[0] == 200
        status, said = volume.control("POST", "/volumes", {"name": "of-e2b"})
        assert (status, "Connect to it" in said["message"]) == (409, True)
    finally:
        volume.control("DELETE", f"/volumes/{other.id}")
    assert other.call("GET", "path?path=/")[0] == 404
    assert volume.control("GET", f"/volumes/{other.id}")[0] == 404


def test_a_sandbox_sees_its_volume_at_the_path_that_it_names(volume: Volume) -> None:
    volume.call("PUT", "file?path=/in.txt", b"data")
    mounts = [{"name": "of-e2b", "path": "/mnt/data"}]
    status, box = volume.control("POST", "/v2/sandboxes", {"volumeMounts": mounts})
    if status == 503:
        pytest.skip(box["message"])
    assert status == 201, box
    try:
        code = "open('/mnt/data/out.txt', 'w').write(open('/mnt/data/in.txt').read() * 2)"
        assert volume.served.call("POST", f"/v1/sessions/{box['sandboxID']}/cells", {"code": code})["reason"] == "ok"
        assert volume.call("GET", "file?path=/out.txt") == (200, b"datadata")
        assert volume.control("GET", f"/sandboxes/{box['sandboxID']}")[1]["volumeMounts"] == mounts
        assert volume.control("DELETE", f"/volumes/{volume.id}")[0] == 409  # in use
    finally:
        volume.control("DELETE", f"/sandboxes/{box['sandboxID']}")
    for path in ("/etc/x", "/tmp"):
        status, said = volume.control("POST", "/v2/sandboxes", {"volumeMounts": [{"name": "of-e2b", "path": path}]})
        assert (status, "in use" in said["message"]) == (400, True)
    wrong = [{"name": "nothing", "path": "/mnt/data"}]
    assert volume.control("POST", "/v2/sandboxes", {"volumeMounts": wrong})[0] == 404
