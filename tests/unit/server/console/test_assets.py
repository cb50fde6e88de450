"""The files of the console: their headers, and that they are read when a browser asks for them."""

from __future__ import annotations

import base64
import gzip
import hashlib
import re

import pytest

from kernelsvc.server.console import assets

#: Bytes of all that the list of sessions needs, compressed. The goal is 45 KB.
FIRST_PAGE = 45_000


async def test_the_page_and_its_files_come_without_a_token_and_with_the_policy(http_server):
    page = await http_server.fetch("GET", "/console/", token=None)
    assert page.code == 200
    assert page.headers["Content-Security-Policy"] == assets.PAGE_POLICY
    assert page.headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert page.headers["X-Content-Type-Options"] == "nosniff"
    names = re.findall(r'(?:src|href)="([a-z0-9_]+\.[a-z]+)"', page.body.decode())
    assert {"main.js", "console.css"} <= set(names)
    for name in names:
        found = await http_server.fetch("GET", f"/console/{name}", token=None)
        assert found.code == 200, name
        assert found.headers["Content-Security-Policy"] == assets.PAGE_POLICY
        again = await http_server.fetch(
            "GET", f"/console/{name}", token=None, headers={"If-None-Match": found.headers["Etag"]}
        )
        assert (again.code, again.body) == (304, b"")


@pytest.mark.parametrize("path", ["nothing.js", "../__init__.py", "%2e%2e/assets.py", "frame/other", "assets.py"])
async def test_nothing_else_is_served(http_server, path):
    assert (await http_server.fetch("GET", f"/console/{path}", token=None)).code in (401, 404)


@pytest.mark.parametrize("kind", ["still", "run"])
async def test_the_policy_of_a_frame_names_its_loader_and_no_server(http_server, kind):
    found = await http_server.fetch("GET", f"/console/frame/{kind}", token=None)
    policy = found.headers["Content-Security-Policy"]
    assert "sandbox allow-scripts;" in policy
    assert "allow-same-origin" not in policy
    assert "http" not in policy
    (script,) = re.findall(r"<script>(.*?)</script>", found.body.decode(), re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # A frame with srcdoc inherits the policy: inline scripts would give it the APIs that the loader takes away.
    (scripts,) = [each for each in policy.split("; ") if each.startswith("script-src")]
    assert scripts == f"script-src 'sha256-{digest}'" + (" 'unsafe-eval'" if kind == "run" else "")


def test_files_are_read_once_and_compressed():
    assets.load_file.cache_clear()
    asset = assets.load_file("main.js")
    assert asset is not None
    assert gzip.decompress(asset.compressed) == asset.content
    assert assets.load_file("main.js") is asset
    assert assets.load_file("none.js") is None


def test_the_first_page_is_small():
    names = ["index.html", "console.css", "main.js", "dom.js", "api.js", "sessions.js", "text.js", "icon.svg"]
    total = sum(len(asset.compressed) for name in names if (asset := assets.load_file(name)))
    assert 5_000 < total < FIRST_PAGE


def test_no_file_makes_html_of_a_text_or_names_another_server():
    for path in assets.STATIC.glob("*.js"):
        text = path.read_text("utf-8")
        if path.name.startswith("frame_"):
            continue  # these run in documents of their own
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), (
            path
        )
        # The name of a namespace is no address that is loaded.
        assert not re.search(r"https?://", text.replace('"http://www.w3.org/2000/svg"', "")), path
