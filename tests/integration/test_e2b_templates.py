"""Templates of E2B's builder, by plain HTTP: files and commands in a sandbox, and sandboxes that begin with them."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from typing import Any
from urllib.parse import urlsplit

import pytest
from e2b_requests import E2bRequests
from served import Served
from waiting import wait_for

from kernelsvc.store.environments import EnvironmentRecord, EnvironmentStore

HASH = "0" * 64


class Builder(E2bRequests):
    """A client that builds templates."""

    def build(
        self, name: str, *steps: dict[str, Any], files: dict[str, str] | None = None, **more: Any
    ) -> dict[str, Any]:
        """Build, and return the last status."""
        status, asked = self.control("POST", "/v3/templates", {"name": name})
        assert status == 202, asked
        if files is not None:
            archive = io.BytesIO()
            with tarfile.open(fileobj=archive, mode="w:gz") as tar:
                for path, text in files.items():
                    info = tarfile.TarInfo(path)
                    info.size = len(text)
                    tar.addfile(info, io.BytesIO(text.encode()))
            there = urlsplit(self.control("GET", f"/templates/{asked['templateID']}/files/{HASH}")[1]["url"])
            # E2B's clients send no key there.
            assert self.raw("PUT", f"{there.path}?{there.query}", archive.getvalue(), {})[0] == 200
            assert self.raw("PUT", f"{there.path}?{there.query[:-1]}", b"", {})[0] == 401
        path = f"/v2/templates/{asked['templateID']}/builds/{asked['buildID']}"
        status, said = self.control("POST", path, {"steps": list(steps), **more})
        if status != 202:
            return {"status": status, **said}
        found: dict[str, Any] = {}

        def ended() -> bool:
            found.update(self.control("GET", f"{path.removeprefix('/v2')}/status")[1])
            return found["status"] in ("ready", "error")

        wait_for(ended, deadline=60, what="the end of a build")
        return found


@pytest.fixture(scope="module")
def builder(served: Served) -> Builder:
    return Builder(served)


def step(kind: str, *args: str, **more: str) -> dict[str, Any]:
    return {"type": kind, "args": [*args], **more}


def test_a_sandbox_begins_with_the_files_and_the_program_of_its_template(builder: Builder) -> None:
    built = builder.build(
        "shop:v1",
        step("COPY", "src/*", "app/", filesHash=HASH),
        step("ENV", "GREETING", "hello"),
        step("WORKDIR", "app"),
        step("RUN", "echo $GREETING from $(basename $PWD) > said.txt; echo seen", "root"),
        files={"src/main.py": "print('main')", "src/b.txt": "b"},
        startCmd="touch $HOME/started; exec sleep 600",
        readyCmd="test -e $HOME/started && rm $HOME/started",
    )
    assert built["status"] == "ready", built
    assert "seen" in built["logs"]
    assert builder.control("GET", "/templates/aliases/shop")[0] == 200
    second = builder.build("shop-2", step("RUN", "cp said.txt ../copy.txt"), fromTemplate="shop")
    assert second["status"] == "ready", second
    status, box = builder.control("POST", "/v2/sandboxes", {"templateID": "shop-2", "envVars": {"OWN": "1"}})
    assert status == 201, box
    try:
        code = (
            "import os; print(open('copy.txt').read(), sorted(os.listdir('app')), *map(os.getenv, ('GREETING', 'OWN')))"
        )
        cell = builder.served.call("POST", f"/v1/sessions/{box['sandboxID']}/cells", {"code": code})
        assert cell["text"].strip() == "hello from app\n ['b.txt', 'main.py', 'said.txt'] hello 1"
        headers = {"E2b-Sandbox-Id": box["sandboxID"], "X-Access-Token": box["envdAccessToken"]}
        said = builder.raw("POST", "/process.Process/List", b"{}", headers)[1]
        (program,) = json.loads(said)["processes"]
        assert program["config"]["args"][1].endswith("exec sleep 600")
        boxes = builder.control("GET", "/v2/sandboxes")[1]
        assert [each["templateID"] for each in boxes if each["templateID"].startswith("shop")] == ["shop-2"]
    finally:
        builder.control("DELETE", f"/sandboxes/{box['sandboxID']}")
    for name in ("shop", "shop-2"):
        assert builder.control("DELETE", f"/templates/{name}")[0] == 204
        assert builder.control("GET", f"/templates/aliases/{name}")[0] == 404
        assert builder.control("POST", "/v2/sandboxes", {"templateID": name})[0] == 404


@pytest.mark.parametrize(
    ("steps", "number", "words"),
    [
        ([step("RUN", "true"), step("RUN", "echo no >&2; exit 3")], "2", "exit status 3: no"),
        ([step("WORKDIR", "/app")], "1", "/home/user"),
        ([step("COPY", "a", "b", filesHash="f" * 64)], "1", "no such file"),
    ],
)
def test_a_step_that_fails_is_named_and_leaves_no_template(
    builder: Builder, steps: list[dict[str, Any]], number: str, words: str
) -> None:
    built = builder.build("broken", *steps)
    assert (built["status"], built["reason"]["step"]) == ("error", number)
    assert words in built["reason"]["message"]
    assert builder.control("GET", "/templates/aliases/broken")[0] == 404


def test_images_and_taken_names_are_refused(builder: Builder) -> None:
    refused = builder.build("image", fromImage="ubuntu:22.04")
    assert (refused["status"], "from_base_image" in refused["message"]) == (501, True)
    for name, status in (("python3", 409), ("base", 409), ("a/b", 400)):
        assert builder.control("POST", "/v3/templates", {"name": name})[0] == status
    assert builder.control("GET", f"/templates/image/builds/{HASH}/status")[0] == 404


def test_a_forged_record_of_a_template_gives_no_environment_of_the_operator(builder: Builder, served: Served) -> None:
    made = EnvironmentRecord(name="operators", python=sys.executable)
    store = EnvironmentStore(served.data_dir)
    store.write(made)
    try:
        assert builder.control("POST", "/v3/templates", {"name": "mine"})[0] == 202  # makes the workspace
        path = "/v1/workspaces/local/e2b-templates/files/operators/template.json"
        headers = {"Authorization": f"Bearer {served.token}"}
        assert builder.raw("PUT", path, b'{"environment": "operators", "owns": true}', headers)[0] == 201
        builder.control("DELETE", "/templates/operators")
        assert "operators" in store.read_all()
    finally:
        store.remove("operators")
