"""The files of the console and the documents of its output frames, with the headers that confine both.

Files are read from the package at the first request for each, and kept. They need no token: they hold nothing that the
repository doesn't, and the page that asks for the token must load without one.

An output's HTML is never parsed in the console's own document. It goes by ``postMessage`` into a frame whose document
has an opaque origin (``sandbox`` without ``allow-same-origin``) and a policy of its own: ``still`` runs no script but
its loader, ``run`` runs scripts and reaches nothing. The console's ``frame-src 'self'`` stops a frame that navigates
itself elsewhere.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from tornado.web import HTTPError

from kernelsvc.server.handler import BaseHandler

STATIC = Path(__file__).parent / "static"
#: Content Security Policy of the console. ``trusted-types 'none'``: no text can become HTML or a script in the page.
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "frame-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
#: Policies of the frames. ``{loader}`` is the digest of the only script element that may run. That of ``run`` evaluates
#: the text of the output's scripts.
FRAME_POLICIES = {
    "still": (
        "sandbox allow-scripts; default-src 'none'; script-src 'sha256-{loader}'; style-src 'unsafe-inline'; "
        "img-src data:; font-src data:; media-src data:; form-action 'none'; base-uri 'none'; frame-ancestors 'self'"
    ),
    "run": (
        # No 'unsafe-inline': a frame with srcdoc inherits this policy, and has WebRTC, which no directive stops.
        "sandbox allow-scripts; default-src 'none'; script-src 'sha256-{loader}' 'unsafe-eval'; worker-src blob:; "
        "style-src 'unsafe-inline'; img-src data: blob:; font-src data:; media-src data:; connect-src 'none'; "
        "frame-src 'none'; form-action 'none'; base-uri 'none'; frame-ancestors 'self'"
    ),
}
_TYPES = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".html": "text/html; charset=utf-8",
}


class Asset(NamedTuple):
    """A file as it is sent: its bytes, the same compressed, and the quoted digest of its content."""

    content: bytes
    compressed: bytes
    etag: str
    media: str


def _asset(content: bytes, media: str) -> Asset:
    return Asset(content, gzip.compress(content, 9, mtime=0), f'"{hashlib.sha256(content).hexdigest()[:32]}"', media)


@lru_cache(maxsize=64)
def load_file(name: str) -> Asset | None:
    """Read a file of the console. Return None if there is none of this name, which must be a plain file name."""
    path = STATIC / name
    return _asset(path.read_bytes(), _TYPES[path.suffix]) if path.is_file() else None


@lru_cache(maxsize=2)
def load_frame(kind: str) -> tuple[Asset, str]:
    """Return the document of a frame, ``still`` or ``run``, and its Content Security Policy."""
    loader = (STATIC / f"frame_{kind}.js").read_text("utf-8")
    style = (STATIC / "frame.css").read_text("utf-8")
    page = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Output</title><style>{style}</style>'
    page += f"<body><script>{loader}</script></body></html>"
    # CSP level 3, section 2.3.1: the digest covers the text between the tags.
    digest = base64.b64encode(hashlib.sha256(loader.encode()).digest()).decode()
    return _asset(page.encode(), _TYPES[".html"]), FRAME_POLICIES[kind].format(loader=digest)


class _StaticHandler(BaseHandler):
    """Base of the handlers of files: no token, an ETag, compressed if the browser takes it."""

    scope = None
    route = "/console/"

    async def prepare(self) -> None:
        """Tornado's hook: check origin and host."""
        await self.admit_request()

    def send(self, asset: Asset, policy: str) -> None:
        """Write a file, or 304 if the browser has it."""
        self.keep_headers(Cache_Control="no-cache", Content_Security_Policy=policy, X_DNS_Prefetch_Control="off")
        self.set_header("Content-Type", asset.media)
        self.set_header("Etag", asset.etag)
        self.set_header("Vary", "Accept-Encoding")
        if self.check_etag_header():
            self.set_status(304)
            return
        compressed = "gzip" in self.request.headers.get("Accept-Encoding", "")
        if compressed:
            self.set_header("Content-Encoding", "gzip")
        self.write(asset.compressed if compressed else asset.content)


class AssetHandler(_StaticHandler):
    """Handler of the console's page and its files."""

    def get(self, name: str | None = None) -> None:
        """Serve GET."""
        asset = load_file(name or "index.html")
        if asset is None:
            raise HTTPError(404)
        self.set_header("Cross-Origin-Opener-Policy", "same-origin")
        self.set_header("Permissions-Policy", "camera=(), microphone=(), geolocation=(), clipboard-read=()")
        self.send(asset, PAGE_POLICY)

    head = get


class FrameHandler(_StaticHandler):
    """Handler of the documents that show outputs."""

    def get(self, kind: str) -> None:
        """Serve GET."""
        self.send(*load_frame(kind))


class IndexRedirect(_StaticHandler):
    """Handler of the address without its last slash."""

    def get(self) -> None:
        """Serve GET."""
        self.redirect("/console/", permanent=False)
